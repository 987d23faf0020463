"""Tuning curves: the numbers in them, and that there is a picture."""

from __future__ import annotations

import sys
from math import isnan

import pytest
from tuning_log_support import fill, folder, kernel, record

from deploy.errors import InputError
from deploy.tuning import log_plot


def test_curves_go_down_with_the_candidates(tmp_path):
    place = fill(folder(tmp_path))
    fill(place, kernel(3), record(3, 8, trial=1), record(3, 4, 900, trial=3), record(3, 2, 950, trial=2))
    slowest, middle, fastest = log_plot.curves(tmp_path, "board")
    assert (slowest.name, slowest.trials, slowest.best_us) == ("fused_add", (1, 2, 3), (3.0, 1.2, 1.2))
    assert (middle.trials, middle.best_us[1:]) == ((1, 2, 3), pytest.approx((0.95, 0.9)))
    assert isnan(middle.best_us[0]), "there is no time before the first that succeeded"
    assert (fastest.name, fastest.best_us) == ("softmax", (0.5, 0.5, 0.5))


@pytest.mark.parametrize(("name", "begin"), [("a.svg", b"<?xml"), ("b.PNG", b"\x89PNG")])
def test_a_picture_is_drawn(tmp_path, name, begin):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    fill(folder(tmp_path))
    fill(folder(tmp_path, fingerprint="fff"))
    drawn = log_plot.plot(tmp_path, "board", tmp_path / "new" / name)
    data = drawn.read_bytes()
    assert data.startswith(begin)
    if name.endswith("svg"):
        assert data.count(b'id="axes_') == 4
        assert log_plot.plot(tmp_path, "board", tmp_path / name).read_bytes() == data, "the same picture every time"


def test_only_the_slowest_kernels_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    count = log_plot.MOST_CURVES + 1
    fill(folder(tmp_path), *(record(number, 1, number) for number in range(1, count + 1)))
    text = log_plot.plot(tmp_path, "board", tmp_path / "a.svg").read_text()
    assert text.count('id="axes_') == log_plot.MOST_CURVES
    assert f"{log_plot.MOST_CURVES} slowest of {count} kernels" in text


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    fill(folder(tmp_path), kernel(1), record(1, 8))
    with pytest.raises(InputError, match="nothing to draw: no candidate of target board"):
        log_plot.plot(tmp_path, "board", tmp_path / "a.svg")
    with pytest.raises(InputError, match=r"a picture's name ends in \.svg or \.png"):
        log_plot.plot(tmp_path, "board", tmp_path / "a.pdf")
    fill(folder(tmp_path))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'tvm-deploy\[plot\]'"):
        log_plot.plot(tmp_path, "board", tmp_path / "a.svg")
