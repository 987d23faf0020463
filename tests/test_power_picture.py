"""Traces as pictures and as tables."""

import sys

import numpy as np
import pytest

from deploy.errors import InputError
from deploy.power import EnergyReading, MeterFacts, Trace, Window
from deploy.power.csv_text import Table
from deploy.power.evaluate import reading_of
from deploy.power.picture import MOST_POINTS, check, draw, points, table

FACTS = MeterFacts("a meter", 1e5)


def reading(count=50_000, **more):
    times = 100 + np.arange(count) / 1e5
    watts = np.where(np.mod(np.arange(count), 1000) < 100, 0.05, 0.001)
    end = float(times[-1])
    trace = Trace.of_power(times, watts, FACTS, windows=(Window(100.1 * (end > 100.2) or 100.0, end),), **more)
    return reading_of(trace, "a meter")


@pytest.mark.parametrize(("name", "begin"), [("a.svg", b"<?xml"), ("b.PNG", b"\x89PNG")])
def test_a_picture_has_its_windows_shaded(tmp_path, name, begin):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    data = draw(reading(), tmp_path / "new" / name).read_bytes()
    assert data.startswith(begin)
    if name.endswith("svg"):
        assert b"inferences" in data
        assert draw(reading(), tmp_path / name).read_bytes() == data, "the same picture every time"
    counted = Trace.of_counter([0, 1, 2], [0, 1, 3], FACTS)
    assert draw(reading_of(counted, "a counter"), tmp_path / name).is_file()


def test_what_is_shown_is_all_there_was():
    trace = reading().trace
    times, means, lowest, highest = points(trace)
    assert len(times) == MOST_POINTS
    assert (lowest.min(), highest.max()) == (0.001, 0.05)
    assert np.mean(means) == pytest.approx(np.mean(trace.watts))
    assert np.all((lowest <= means * (1 + 1e-9)) & (means <= highest * (1 + 1e-9)))
    assert len(points(reading(1000).trace)[0]) == 1000


def test_a_table_is_what_a_csv_meter_reads(tmp_path):
    found = reading(2000)
    text = draw(found, tmp_path / "a.csv").read_text()
    assert text == table(found.trace)
    reader = Table("again")
    rows = [row for line in text.splitlines() if (row := reader.row(line)) is not None]
    assert len(rows) == 2000
    again = Trace.of_power(*np.array(rows).T, FACTS)
    assert again.energy(0.001, 0.015) == pytest.approx(found.trace.energy(100.001, 100.015), rel=1e-6)
    windows = (Window(100.0, 100.001), Window(100.002, 100.003))
    lines = table(found.trace.with_windows(windows)).splitlines()[1:]
    assert sum(line.endswith(",1") for line in lines) == pytest.approx(202, abs=2)


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"\.svg, \.png, \.csv"):
        check(tmp_path / "a.pdf")
    for nothing, words in (
        (None, "power was not asked for"),
        (EnergyReading(1.0, 1.0, "estimated", "declared"), "it is estimated: declared"),
        (EnergyReading(None, 1.0, "measured", "m", reason="gone"), "gone"),
    ):
        with pytest.raises(InputError, match=words):
            draw(nothing, tmp_path / "a.csv")
    incomplete = reading(gaps=((100.2, 100.3),))
    assert not incomplete.complete
    assert draw(incomplete, tmp_path / "gap.csv").is_file()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'tvm-deploy\[plot\]'"):
        check(tmp_path / "a.svg")
    check(tmp_path / "a.csv")
    assert draw(reading(1000), None) is None
