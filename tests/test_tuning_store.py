"""Files of tuning logs: several processes at once, killed at any moment, cut off anywhere. No TVM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_log_support import TVM, damage, fill, folder, kernel, kernel_id, proposal, record
from tuning_support import ROOT

from deploy.errors import InputError, ToolError
from deploy.targets import load_target
from deploy.tuning import store
from deploy.tuning.log_lines import Header, Record, render
from deploy.tuning.store import LogFile

KILLS = int(os.environ.get("TEST_KILLS", "30"))


def lines_of(place):
    return (place / store.LOG).read_text().splitlines()


def test_where_a_log_lies():
    from pathlib import Path

    target = load_target("cortex-m4-mps2")
    place = store.folder_for(Path("logs"), target)
    assert place == Path("logs/cortex-m4-mps2") / f"{target.fingerprint()}-tvm{TVM}"
    assert store.identity(place) == Header("cortex-m4-mps2", target.fingerprint(), TVM)
    assert store.cost_model_path(place) == place / "cost_model.npz"
    assert store.identity(Path("logs/cortex-m4-mps2/notes")) is None


def test_what_is_added_is_read(tmp_path):
    place = fill(folder(tmp_path))
    contents = store.read(place)
    assert list(contents.kernels) == [kernel_id(1), kernel_id(2)]
    assert [r.time_s for r in contents.records if r.kernel == kernel_id(1)] == [3e-6, 1.2e-6, float("inf")]
    assert (contents.proposals, contents.damaged) == ((), ())
    fill(place, proposal(1, 16), record(1, 8, 3000))  # a double counts once
    contents = store.read(place)
    assert (len(contents.records), contents.proposals) == (6, (proposal(1, 16),))
    assert store.folders(tmp_path) == [place]


def test_a_missing_log_is_an_empty_one(tmp_path):
    assert store.read(folder(tmp_path)) == store.Contents({})
    assert LogFile(folder(tmp_path)).news() == []
    assert store.folders(tmp_path / "none") == []
    assert list(tmp_path.iterdir()) == []


def test_a_log_begins_with_whose_it_is(tmp_path):
    place = fill(folder(tmp_path))
    assert lines_of(place)[0] == render(Header("board", "abc123", TVM)).strip()
    moved = place.rename(place.with_name(f"fff-tvm{TVM}"))
    for use in (store.read, lambda path: LogFile(path).news()):
        with pytest.raises(InputError, match=r"is of target board \(abc123, TVM .*move it where it belongs"):
            use(moved)


def test_a_log_of_a_newer_version_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.tuning.log_lines.FORMAT", 7)
    place = fill(folder(tmp_path))
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"log.jsonl: it is in format 7, and this version reads format 1; update"):
        store.read(place)


def test_news_are_what_came_since(tmp_path):
    place = folder(tmp_path)
    first, second = LogFile(place), LogFile(place)
    first.append([kernel(1), record(1, 8, 100)])
    assert len(second.news()) == 3
    assert second.news() == []
    first.append([record(1, 4, 50)])
    assert second.news() == [record(1, 4, 50)]
    assert len(first.news()) == 4
    store.replace(place, [record(1, 4, 50), record(1, 2, 70)])  # as `prune` does
    assert second.news() == [record(1, 2, 70)]
    first.append([record(1, 1, 20)])
    assert second.news() == [record(1, 1, 20)]
    assert len(store.read(place).records) == 3


# --- damage ---


@given(data=st.data())
def test_any_bytes_are_read_and_added_to(tmp_path_factory, data):
    place = folder(tmp_path_factory.mktemp("log"))
    place.mkdir(parents=True)
    whole = [render(line).encode()[:-1] for line in (kernel(1), record(1, 8, 100), proposal(1, 4))]
    line = st.one_of(st.binary(max_size=20), st.sampled_from([*whole, b"", b"null", whole[1][:-9]]))
    (place / store.LOG).write_bytes(b"\n".join(data.draw(st.lists(line, max_size=6))))
    before = store.read(place)
    assert set(LogFile(place).news()) == {*before.kernels.values(), *before.records, *before.proposals}
    fill(place, record(2, 8, 100))
    after = store.read(place)
    assert set(after.records) == {*before.records, record(2, 8, 100)}
    assert (after.kernels, after.proposals) == (before.kernels, before.proposals)


def test_a_line_cut_off_anywhere_costs_one_record(tmp_path):
    place = fill(folder(tmp_path))
    whole = (place / store.LOG).read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start + 1, len(whole) - 1, 17):
        (place / store.LOG).write_bytes(whole[:cut])
        assert len(store.read(place).records) == 5
        assert store.read(place).damaged[0][0] == 9
        follower = LogFile(place)
        assert len(follower.news()) == 8
        assert (place / store.LOG).stat().st_size == cut, "reading repairs nothing: another process may be writing"
        fill(place, record(2, 2, 77))
        assert follower.news() == [record(2, 2, 77)]
        assert len(store.read(place).records) == 6


def test_a_last_line_without_its_newline_is_kept(tmp_path):
    place = fill(folder(tmp_path))
    os.truncate(place / store.LOG, (place / store.LOG).stat().st_size - 1)
    follower = LogFile(place)
    assert len(follower.news()) == 9
    fill(place, record(2, 1, 77))
    assert follower.news() == [record(2, 1, 77)]
    assert (len(store.read(place).records), store.read(place).damaged) == (7, ())


def test_a_kernel_whose_line_is_lost_keeps_its_records(tmp_path):
    place = fill(folder(tmp_path))
    damage(place, 2)
    contents = store.read(place)
    assert (list(contents.kernels), len(contents.records)) == ([kernel_id(2)], 6)
    assert contents.damaged == ((2, "it does not begin with a checksum"),)


# --- several processes ---

WRITE = """
import sys
from pathlib import Path
from deploy.tuning.store import LogFile
from tuning_log_support import kernel, record
place, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
file = LogFile(place)
for trial in range(1, count + 1):
    file.append([kernel(number), record(number, trial % 9, trial * 1000 + number, trial=trial)])
    print(trial, flush=True)
file.sync()
"""
HOLD = """
import sys, time
from pathlib import Path
from deploy.tuning import store
with store.lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start():
    """Return start(code, *arguments): another process of Python."""
    started = []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}

    def run(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_processes_that_write_at_once_lose_nothing(tmp_path, start):
    place = folder(tmp_path)
    count, writers = 300, 4
    for process in [start(WRITE, place, number, count) for number in range(writers)]:
        assert process.communicate(timeout=60)[0].split()[-1] == str(count)
        assert process.returncode == 0
    contents = store.read(place)
    assert contents.damaged == ()
    assert len(contents.records) == count * writers
    assert len(lines_of(place)) == 1 + 2 * count * writers


KILL = """
import json, os, random, signal, sys, time
from pathlib import Path
from deploy.tuning.store import LogFile
from tuning_log_support import fill, kernel, record
place, kills = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(kills)

def write(number, pipe):
    file, trial = LogFile(place), 0
    while True:
        trial += 1
        file.append([kernel(number), record(number, trial % 9, trial * 1000, trial=trial)])
        if trial % 16 == 0:
            file.sync()
        os.write(pipe, b"x")  # acknowledged

acknowledged, running = {}, []
for number in range(1, kills + 2):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        write(number, theirs)
    os.close(theirs)
    running.append((number, child, ours))
    if len(running) == 2:  # two are always at it
        time.sleep(chance.uniform(0, 0.02))
        victim, child, pipe = running.pop(0)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        acknowledged[victim] = len(os.read(pipe, 1 << 20))
        os.close(pipe)
        fill(place, record(0, number % 9, number))  # nothing is locked
os.kill(running[0][1], signal.SIGKILL)
os.waitpid(running[0][1], 0)
print(json.dumps(acknowledged))
"""


def test_kill_9_at_any_moment_loses_no_record_that_was_acknowledged(tmp_path, start):
    """TEST_KILLS=200 kills more."""
    place = folder(tmp_path)
    killer = start(KILL, place, KILLS)
    acknowledged = json.loads(killer.communicate(timeout=60 + KILLS)[0])
    assert len(acknowledged) == KILLS
    assert sum(acknowledged.values()) > KILLS
    contents = store.read(place)
    assert contents.damaged == ()  # a line of this size is written whole or not at all
    for number, count in acknowledged.items():
        trials = {r.trial for r in contents.records if r.kernel == kernel_id(int(number))}
        assert set(range(1, count + 1)) <= trials
        assert len(trials) <= count + 1
    assert len([r for r in contents.records if r.kernel == kernel_id(0)]) == KILLS
    assert {path.name for path in place.iterdir()} == {store.LOG}


def test_a_process_that_does_not_let_go_is_said_in_the_end(tmp_path, start, monkeypatch):
    place = fill(folder(tmp_path))
    holder = start(HOLD, place)
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(ToolError, match=r"has kept the tuning log .* locked for 0.1 s"), store.lock(place, 0.1):
        pass
    assert len(store.read(place).records) == 6  # reading is always possible
    releasing = threading.Timer(0.3, holder.kill)
    releasing.start()
    fill(place, record(1, 1, 10))  # waits
    releasing.join()
    assert len(store.read(place).records) == 7


def test_a_process_that_was_forked_meanwhile_locks_nothing(tmp_path):
    place = fill(folder(tmp_path))
    with store.lock(place):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with store.lock(place, 0.1):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_reader_beside_a_writer_sees_whole_records(tmp_path, start):
    place = folder(tmp_path)
    writer = start(WRITE, place, 1, 400)
    seen, follower, followed = [], LogFile(place), 0
    while writer.poll() is None:
        contents = store.read(place)
        seen.append(len(contents.records))
        followed += sum(isinstance(line, Record) for line in follower.news())
        assert followed <= 400
    followed += sum(isinstance(line, Record) for line in follower.news())
    assert seen == sorted(seen)
    assert followed == len(store.read(place).records) == 400


# --- folders that cannot be written ---


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "board").write_text("")
    for use in (lambda: store.make(folder(tmp_path)), lambda: fill(folder(tmp_path))):
        with pytest.raises(InputError, match="--logs"):
            use()


def test_a_full_disk_is_said(tmp_path):
    place = folder(tmp_path)
    place.mkdir(parents=True)
    (place / store.LOG).symlink_to("/dev/full")
    with pytest.raises(ToolError, match=r"cannot add to the tuning log .*No space left"):
        fill(place)


def test_a_disk_that_fills_up_in_the_middle_is_said_and_the_log_stays_readable(tmp_path):
    place = fill(folder(tmp_path))
    size = (place / store.LOG).stat().st_size
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom tuning_log_support import fill, record\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 50}, {size + 50}))\n"
        "fill(Path(sys.argv[1]), record(1, 1, 10))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    ran = subprocess.run([sys.executable, "-c", script, str(place)], capture_output=True, text=True, env=env, cwd=ROOT)
    assert "ToolError: cannot add to the tuning log" in ran.stderr
    assert len(store.read(place).damaged) == 1
    fill(place, record(1, 1, 10))
    assert (len(store.read(place).records), len(store.read(place).damaged)) == (7, 1)


def test_a_log_that_cannot_be_read_is_bad_input(tmp_path):
    place = folder(tmp_path)
    (place / store.LOG).mkdir(parents=True)
    with pytest.raises(InputError, match="cannot read the tuning log"):
        store.read(place)


def test_what_is_replaced_is_the_old_or_the_new(tmp_path):
    place = fill(folder(tmp_path))
    before = (place / store.LOG).read_bytes()

    def failing():
        yield record(1, 8, 5)
        raise RuntimeError("interrupted")

    with contextlib.suppress(RuntimeError):
        store.replace(place, failing())
    assert (place / store.LOG).read_bytes() == before
    store.replace(place, [record(1, 8, 5)])
    assert len(lines_of(place)) == 2
