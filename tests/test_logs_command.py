"""`tvm-deploy logs`: every action from its arguments to its exit code."""

from __future__ import annotations

import json

import pytest
from tuning_log_support import damage, fill, folder, proposal

from deploy.arguments import LOG_ACTIONS
from deploy.cli import main
from deploy.targets import load_target
from deploy.tuning import store


@pytest.fixture
def logs(capsys, tmp_path, monkeypatch):
    """Return logs(*arguments): run `tvm-deploy logs` in a folder with a log; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    fill(folder(tmp_path / "tuning_logs"))

    def run(*arguments):
        code = main(["logs", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_every_action_helps(logs, capsys):
    for action in LOG_ACTIONS:
        with pytest.raises(SystemExit) as stopped:
            logs(action, "--help")
        assert stopped.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: tvm-deploy logs {action}")


def test_listing(logs):
    code, out, err = logs()
    assert (code, err) == (0, "")
    assert logs("list") == (code, out, err)
    assert logs("show", "board")[1].count("\n") == 3
    assert [json.loads(line)["best_s"] for line in logs("best", "board")[1].splitlines()] == [1.2e-6, 5e-7]
    code, out, err = logs("show", "bord")
    assert (code, out) == (2, "")
    assert err.endswith('did you mean "board"?\n')


def test_merge_export_and_prune(logs, tmp_path):
    fill(folder(tmp_path / "theirs"), proposal(1, 64))
    assert logs("merge", "theirs", "--logs", "new") == (
        0,
        f"{folder(tmp_path / 'new').relative_to(tmp_path)}: 0 records, none new\n",
        "",
    )
    code, out, _ = logs("merge", "tuning_logs", "--logs", "new")
    assert (code, out.endswith(": 6 records, 6 more\n")) == (0, True)
    code, out, _ = logs("export", "board", "shipped", "--top", 2)
    assert (code, ": 4 records, 4 more, " in out, out.endswith(" KiB\n")) == (0, True, True)
    code, out, _ = logs("prune", "board", "--top", 1)
    assert (code, out.endswith(": 2 records, 4 dropped\n")) == (0, True)
    assert logs("prune", "board", "--stale")[:2] == (0, "nothing to drop: no log of target board is stale\n")
    code, _, err = logs("prune", "board")
    assert (code, "--top N" in err, "--stale" in err) == (2, True, True)
    assert logs("merge", "nowhere")[0] == 2


def test_verify_and_repair(logs, tmp_path):
    place = folder(tmp_path / "tuning_logs")
    assert logs("verify")[0] == 0
    damage(place, 3)
    code, out, _ = logs("verify", "board")
    assert code == 1
    assert "1 of 9 lines damaged" in out
    assert "\n  line 3: it does not begin with a checksum\n" in out
    code, out, _ = logs("verify", "--repair")
    assert (code, "now taken out" in out) == (0, True)
    assert logs("verify")[0] == 0
    place.rename(place.with_name("fff-tvm1"))
    code, out, _ = logs("verify")
    assert (code, "move it where it belongs" in out) == (1, True)
    assert logs("verify", "--logs", "none") == (0, "no tuning logs in none\n", "")


def test_transfer(logs, tmp_path):
    code, out, _ = logs("transfer", "board", "cortex-m4-mps2", "--top", 1)
    place = store.folder_for(tmp_path / "tuning_logs", load_target("cortex-m4-mps2"))
    assert code == 0
    assert out.endswith(": 2 schedules, which the next tuning run of cortex-m4-mps2 measures first\n")
    assert len(store.read(place).proposals) == 2
    assert logs("transfer", "board", "cortex-m4-mps2", "--top", 1)[1].startswith("nothing new in the log of board")
    code, _, err = logs("transfer", "board", "cortex-m44-mps2")
    assert (code, "did you mean" in err) == (2, True)


def test_plot(logs, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    assert logs("plot", "board") == (0, f"{tmp_path / 'board.svg'}\n", "")
    assert (tmp_path / "board.svg").stat().st_size > 1000
    assert logs("plot", "board", "--out", "x.jpg")[0] == 2
