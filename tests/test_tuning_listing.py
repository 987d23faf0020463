"""What `logs list`, `show` and `best` tell, from the files alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tuning_log_support import TVM, damage, fill, folder, kernel, kernel_id, proposal, record, trace
from tuning_support import ROOT

from deploy.errors import InputError
from deploy.tuning import listing, store
from deploy.tuning.log_lines import unpack


def test_rows_of_logs_and_kernels(tmp_path):
    place = fill(folder(tmp_path))
    fill(place, proposal(1, 16), proposal(1, 8))  # one of them has a record by now
    (row,) = listing.logs(tmp_path)
    assert (row.target, row.fingerprint, row.tvm) == ("board", "abc123", TVM)
    assert (row.kernels, row.records, row.failed, row.proposals, row.damaged) == (2, 6, 2, 1, 0)
    assert row.size == (place / store.LOG).stat().st_size
    slow, fast = listing.kernels(tmp_path, "board")
    assert (slow.records, slow.failed, slow.best_s, fast.best_s) == (3, 1, 1.2e-6, 5e-7)
    assert (slow.id, slow.name, slow.arguments) == (kernel_id(1), "fused_add", "float32[1,1] float32[1]")
    assert [found.ns for _, found in listing.best(tmp_path, "board")] == [(1000, 9000, 1200), (500,)]


def test_the_best_records_as_lines_of_json(tmp_path):
    fill(folder(tmp_path))
    fill(folder(tmp_path), kernel(3), record(3, 8))  # it only ever failed
    lines = [json.loads(line) for line in listing.render_best(tmp_path, "board").splitlines()]
    assert [line["best_s"] for line in lines] == [1.2e-6, 5e-7]
    assert lines[0].keys() == {"fingerprint", "tvm", "kernel", "name", "arguments", "best_s", "trace"}
    assert lines[0]["trace"] == unpack(trace(4))


def test_a_kernel_that_always_failed_has_no_time(tmp_path):
    fill(folder(tmp_path), kernel(3), record(3, 8))
    assert [row.best_s for row in listing.kernels(tmp_path, "board")] == [None]
    assert listing.best(tmp_path, "board") == []
    assert "failed" in listing.render_kernels(tmp_path, "board")


def test_tables(tmp_path):
    assert listing.render_logs(tmp_path / "none") == f"no tuning logs in {tmp_path / 'none'}"
    place = fill(folder(tmp_path))
    head, row = listing.render_logs(tmp_path).splitlines()
    assert head.split() == ["target", "fingerprint", "TVM", "kernels", "records", "failed", "size"]
    assert row.split()[:2] == ["board", "abc123"]
    table = listing.render_kernels(tmp_path, "board").splitlines()
    assert table[0].split() == ["fingerprint", "TVM", "best", "records", "failed", "kernel", "arguments"]
    assert [line.split()[6] for line in table[1:]] == ["fused_add", "softmax"]
    assert "1.2 us" in table[1]
    fill(place, proposal(1, 16))
    damage(place, 3)
    damage(place, 2)
    fill(folder(tmp_path, tvm="0.1"))
    old = folder(tmp_path, "older")
    old.mkdir(parents=True)
    (old / "records.json").write_text("")
    text = listing.render_logs(tmp_path)
    assert f"{place}: 1 schedules of other targets, which the next tuning run tries" in text
    assert f"{place}: 2 damaged lines; see `tvm-deploy logs verify`" in text
    assert "tvm0.1: of TVM 0.1, not used; `tvm-deploy logs prune board --stale` drops it" in text
    assert f"{old}: files of another version of tvm-deploy, which are not read" in text
    assert "?" in listing.render_kernels(tmp_path, "board"), "the words for a kernel are lost, its records are not"


def test_a_target_without_a_log_is_bad_input(tmp_path):
    fill(folder(tmp_path))
    with pytest.raises(InputError, match=r'there is no tuning log of target bord in .*did you mean "board"'):
        listing.kernels(tmp_path, "bord")
    with pytest.raises(InputError, match=r"of target x in .*; there are board"):
        listing.kernels(tmp_path, "x")
    with pytest.raises(InputError, match="there is no tuning log of target x"):
        listing.best(tmp_path / "none", "x")


LISTING = """
import sys
from pathlib import Path
from deploy import arguments, logs_command
for action in (["list"], ["show", "board"], ["best", "board"], ["verify"], ["prune", "board", "--top", "1"],
               ["export", "board", sys.argv[1] + "/out"], ["transfer", "board", "host"]):
    assert logs_command.run(arguments.parser().parse_args(["logs", *action, "--logs", sys.argv[1]]))[1] == 0
assert not {"tvm", "torch", "matplotlib"} & set(sys.modules)
"""


def test_logs_do_not_load_tvm(tmp_path):
    fill(folder(tmp_path))
    subprocess.run([sys.executable, "-c", LISTING, str(tmp_path)], check=True, cwd=ROOT)
