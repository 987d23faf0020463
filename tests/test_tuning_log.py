"""The tuning log: what is written is read again, what is damaged is left out, and two runs do not mix."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_support import ROOT, product, this_machine
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target as TvmTarget
from tvm_ffi import structural_equal

from deploy.errors import InputError, ToolError
from deploy.kernels.for_target import machine_for
from deploy.tuning import listing, store
from deploy.tuning.explore import Setting, cost_model, explorer_for
from deploy.tuning.log import TuningLog, replay, time_s
from deploy.tuning.task import Task, workload

pytestmark = pytest.mark.tvm
TARGET = this_machine()
TVM_TARGET = TvmTarget(TARGET.tvm)


def split(func, factor):
    schedule = Schedule(func)
    block = schedule.get_child_blocks(schedule.get_sblock("root"))[0]
    schedule.split(schedule.get_loops(block)[-1], [None, factor])
    return schedule


def fill(root, times=((8, [3e-6]), (4, [1e-6, 9e-6, 1.2e-6]), (2, ())), sizes=(16, 32)):
    """A log of two kernels with a slow, a fast and a failed candidate each."""
    log = TuningLog.open(TARGET, root)
    with log.writing():
        for size in sizes:
            for factor, seconds in times:
                func = product(size)
                log.commit(workload(func), split(workload(func)["main"], factor), seconds, TVM_TARGET)
    return log


def times(log, size=16):
    return [time_s(record) for record in log.records(workload(product(size)))]


def damage(folder, name, line, text):
    path = folder / name
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")


def test_what_is_committed_is_found_in_this_log_and_the_next(tmp_path):
    log = fill(tmp_path)
    for opened in (log, TuningLog.open(TARGET, tmp_path), TuningLog.read(TARGET, [tmp_path])):
        assert times(opened) == [1.2e-6, 3e-6, float("inf")]  # the median: one run was disturbed
        found = opened.find(product(16))
        assert structural_equal(found.mod, split(workload(product(16))["main"], 4).mod)
        assert opened.find(product(24)) is None


def test_a_kernel_is_the_same_whatever_the_model_calls_it(tmp_path):
    log = fill(tmp_path)
    assert log.find(product(16).with_attr("global_symbol", "fused_matmul_17")) is not None


def test_a_kernel_of_which_all_candidates_failed_is_not_found(tmp_path):
    log = fill(tmp_path, times=((8, ()), (4, ())))
    assert times(log) == [float("inf")] * 2
    assert log.find(product(16)) is None
    assert TuningLog.read(TARGET, [tmp_path]).find(product(16)) is None


def test_metaschedule_reads_the_files(tmp_path):
    folder = fill(tmp_path).folder
    database = ms.database.JSONDatabase(str(folder / store.WORKLOADS), str(folder / store.RECORDS), allow_missing=False)
    best = database.query_tuning_record(workload(product(32)), TVM_TARGET, "main")
    assert [float(s) for s in best.run_secs] in ([3e-6], [1e-6, 9e-6, 1.2e-6])  # it goes by the mean
    assert len(database) == 6


@pytest.mark.parametrize("packed", [True, False])
def test_a_schedule_is_the_same_after_a_round_trip_through_the_file(tmp_path, packed, dense_kernel):
    func = dense_kernel if packed else product(32)
    task = Task("k", func, 1)
    log = TuningLog.open(TARGET, tmp_path)
    setting = Setting(TVM_TARGET, machine_for(TARGET), cost_model(), log.kernels.database, 6)
    candidates = explorer_for(task, setting, set(), 1).propose(6)
    assert len(candidates) >= 2
    with log.writing():
        for number, candidate in enumerate(candidates):
            log.commit(task.mod, candidate.sch, [1e-6 * (number + 1)], TVM_TARGET)
    again = TuningLog.open(TARGET, tmp_path).records(task.mod)
    for record, candidate in zip(again, candidates, strict=True):
        assert structural_equal(replay(record, task.mod["main"]).mod, candidate.sch.mod)


@pytest.fixture(scope="module")
def dense_kernel():
    from models import onnx_models

    from deploy import model
    from deploy.compile import lower_for

    source = model.from_object(onnx_models.conv_net(1), "net")
    from deploy.kernels.schedule import is_packed

    return next(func for func in lower_for(source, TARGET).kernels.values() if is_packed(func))


# --- other targets, other versions, shipped records ---


def test_records_of_another_fingerprint_or_version_are_not_seen(tmp_path, monkeypatch):
    fill(tmp_path)
    other = dataclasses.replace(TARGET, threads=2)
    assert other.fingerprint() != TARGET.fingerprint()
    assert TuningLog.open(other, tmp_path).find(product(16)) is None
    monkeypatch.setattr(store, "version", lambda _: "0.99")
    assert TuningLog.open(TARGET, tmp_path).find(product(16)) is None
    assert TuningLog.read(TARGET, [tmp_path]).find(product(16)) is None


def test_shipped_records_are_used_and_left_alone(tmp_path):
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    folder = fill(shipped).folder
    damage(folder, store.RECORDS, 0, "{half")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    log = TuningLog.open(TARGET, own, [shipped, tmp_path / "nowhere"])
    assert times(log) == [1.2e-6, float("inf")]
    with log.writing():
        log.commit(workload(product(16)), split(workload(product(16))["main"], 8), [1e-7], TVM_TARGET)
    assert times(log)[0] == 1e-7
    assert times(TuningLog.open(TARGET, own)) == [1e-7]
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_a_shipped_folder_that_is_the_log_itself_counts_once(tmp_path):
    fill(tmp_path)
    assert len(times(TuningLog.open(TARGET, tmp_path, [tmp_path]))) == 3
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert len(times(TuningLog.read(TARGET, [tmp_path, tmp_path / "link"]))) == 3


def test_reading_makes_no_folder(tmp_path):
    TuningLog.read(TARGET, [tmp_path / "a"]).find(product(16))
    TuningLog.open(TARGET, tmp_path / "b").find(product(16))
    assert list(tmp_path.iterdir()) == []


# --- damage ---


@given(data=st.data())
def test_any_bytes_in_the_files_are_read_and_mended(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    line = st.one_of(
        st.binary(max_size=20),
        st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda c: st.lists(c, max_size=4)).map(
            lambda value: json.dumps(value).encode()
        ),
        st.sampled_from(
            [b'["1","x"]', b"[0,[[],[1e-6],{},[]]]", b"[7,[[],[1e-6],{},[]]]", b"[-1,[[],[1],{},[]]]", b"null"]
        ),
    )
    for name in (store.WORKLOADS, store.RECORDS):
        (folder / name).write_bytes(b"\n".join(data.draw(st.lists(line, max_size=6))))
    before = store.read(folder)
    store.mend(folder)
    after = store.read(folder)
    assert after.damaged == 0
    assert (after.workloads, after.records) == (before.workloads, before.records)
    assert store.mend(folder) == 0
    assert not TuningLog(folder).records(workload(product(16)))


def test_a_line_cut_off_anywhere_costs_one_record(tmp_path):
    folder = fill(tmp_path).folder
    whole = (folder / store.RECORDS).read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in (start + 1, (start + len(whole)) // 2, len(whole) - 2):
        (folder / store.RECORDS).write_bytes(whole[:cut])
        log = TuningLog.open(TARGET, tmp_path)
        assert len(times(log, 32)) == 2
        assert (folder / store.RECORDS).stat().st_size == cut  # reading repairs nothing: another run may be writing
        with log.writing():
            log.commit(workload(product(32)), split(workload(product(32))["main"], 16), [5e-7], TVM_TARGET)
        assert times(TuningLog.open(TARGET, tmp_path), 32) == [5e-7, 1.2e-6, 3e-6]


def test_a_last_line_without_its_newline_is_kept(tmp_path):
    folder = fill(tmp_path, times=((8, [3e-6]),)).folder
    for name in (store.WORKLOADS, store.RECORDS):
        os.truncate(folder / name, (folder / name).stat().st_size - 1)
    log = fill(tmp_path, times=((4, [1e-6]),), sizes=(16, 32, 64))
    assert (times(log, 16), times(log, 32), times(log, 64)) == ([1e-6, 3e-6], [1e-6, 3e-6], [1e-6])
    assert len((folder / store.WORKLOADS).read_text().splitlines()) == 3


@pytest.mark.parametrize("lost", ["{half", '["1","not base64 at all"]', '["1"]'])
def test_a_kernel_whose_line_is_lost_takes_only_its_own_records_along(tmp_path, lost):
    folder = fill(tmp_path).folder
    damage(folder, store.WORKLOADS, 0, lost)
    for _ in range(2):
        log = fill(tmp_path, times=((16, [7e-7]),), sizes=(16,))
        assert set(times(log, 16)) == {7e-7}
        assert times(log, 32) == [1.2e-6, 3e-6, float("inf")]


@pytest.mark.parametrize(
    "content", ["[]", "[[],[1e-6],{},[]]", '[[[["NoSuchStep",[],[],[]]],[]],[1e-9],null,[]]', '[{},[1e-9],"llvm",[]]']
)
def test_a_record_that_tvm_cannot_read_is_left_out(tmp_path, content):
    folder = fill(tmp_path).folder
    damage(folder, store.RECORDS, 0, f"[0,{content}]")
    assert times(TuningLog.open(TARGET, tmp_path))[0] == 1.2e-6


def test_a_record_that_fits_no_longer_is_passed_over(tmp_path):
    log = fill(tmp_path, sizes=(16,))
    path = log.folder / store.RECORDS
    # The fastest record of the log now asks for a block that the kernel does not have.
    lines = [
        line.replace('["GetSBlock",[],["root"', '["GetSBlock",[],["gone"') for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join([path.read_text().splitlines()[0], *lines[1:]]) + "\n")
    reopened = TuningLog.open(TARGET, tmp_path)
    assert times(reopened) == [3e-6]
    assert structural_equal(reopened.find(product(16)).mod, split(workload(product(16))["main"], 8).mod)


# --- two at once, and folders that cannot be written ---

HOLD = """
import sys, time
from pathlib import Path
from deploy.tuning import store
with store.lock(Path(sys.argv[1]), 0):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def other_run():
    """Return hold(folder, seconds): another process that has the log for so long."""
    started = []

    def hold(folder, seconds):
        command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_run_is_refused_with_the_reason(tmp_path, other_run):
    log = fill(tmp_path)
    other_run(log.folder, 60)
    with pytest.raises(ToolError, match=r"another run is adding to the tuning log .*host"), log.writing(wait_s=0.2):
        pass
    assert times(TuningLog.read(TARGET, [tmp_path]))  # reading is always possible


def test_a_second_run_waits_a_while(tmp_path, other_run):
    log = fill(tmp_path)
    other_run(log.folder, 0.5)
    with log.writing(wait_s=30):
        pass


def test_a_killed_run_locks_nothing(tmp_path, other_run):
    log = fill(tmp_path)
    other_run(log.folder, 60).kill()
    with log.writing():
        pass


def test_what_another_run_added_meanwhile_is_kept_and_seen(tmp_path):
    first = TuningLog.open(TARGET, tmp_path)
    assert times(first) == []
    fill(tmp_path, sizes=(32, 16))
    with first.writing():
        assert len(times(first)) == 3
        first.commit(workload(product(16)), split(workload(product(16))["main"], 16), [1e-7], TVM_TARGET)
    again = TuningLog.open(TARGET, tmp_path)
    assert (len(times(again, 16)), len(times(again, 32))) == (4, 3)


def test_a_reader_beside_a_writer_sees_whole_records(tmp_path):
    done = threading.Event()

    def write():
        fill(tmp_path, times=[(2, [1e-6])] * 40)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    while not done.is_set():
        seen.append(len(times(TuningLog.read(TARGET, [tmp_path]))))
        time.sleep(0.01)
    writer.join()
    assert seen == sorted(seen)
    assert len(times(TuningLog.read(TARGET, [tmp_path]))) == 40


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--logs"), TuningLog.open(TARGET, tmp_path / "file").writing():
        pass


def test_a_full_disk_is_said(tmp_path):
    log = TuningLog.open(TARGET, tmp_path)
    with log.writing():
        assert times(log) == []
        (log.folder / store.RECORDS).symlink_to("/dev/full")
        with pytest.raises(ToolError, match="No space left"):
            log.commit(workload(product(16)), split(workload(product(16))["main"], 8), [1e-6], TVM_TARGET)


def test_committing_needs_the_lock(tmp_path):
    log = TuningLog.open(TARGET, tmp_path)
    with pytest.raises(ValueError, match="writing"):
        log.commit(workload(product(16)), split(workload(product(16))["main"], 8), [1e-6], TVM_TARGET)
    with pytest.raises(ValueError, match="reading"), TuningLog.read(TARGET, [tmp_path]).writing():
        pass


# --- the listing ---


def test_rows_of_logs_and_kernels(tmp_path):
    folder = fill(tmp_path).folder
    (row,) = listing.logs(tmp_path)
    assert (row.target, row.fingerprint) == ("host", TARGET.fingerprint())
    assert (row.kernels, row.records, row.failed, row.damaged) == (2, 6, 2, 0)
    assert row.size == sum(path.stat().st_size for path in folder.iterdir())
    kernels = listing.kernels(tmp_path, "host")
    assert [(k.records, k.failed, k.best_s) for k in kernels] == [(3, 1, 1.2e-6)] * 2
    assert kernels[0].arguments == "float32[16,16] float32[16,16] float32[16,16]"
    assert [record[1] for _, record in listing.best(tmp_path, "host")] == [[1e-6, 9e-6, 1.2e-6]] * 2


def test_the_best_records_as_lines_of_json(tmp_path):
    fill(tmp_path, times=((8, ()),), sizes=(64,))
    fill(tmp_path)
    lines = [json.loads(line) for line in listing.render_best(tmp_path, "host").splitlines()]
    assert [line["best_s"] for line in lines] == [1.2e-6] * 2
    assert lines[0].keys() == {"fingerprint", "tvm", "kernel", "arguments", "best_s", "record"}
    assert [line["record"] for line in lines] == [record for _, record in listing.best(tmp_path, "host")]


def test_a_kernel_that_always_failed_has_no_time(tmp_path):
    fill(tmp_path, times=((8, ()),), sizes=(16,))
    fill(tmp_path, sizes=(32,))
    assert [k.best_s for k in listing.kernels(tmp_path, "host")] == [None, 1.2e-6]
    assert len(listing.best(tmp_path, "host")) == 1
    assert "failed" in listing.render_kernels(tmp_path, "host")


def test_tables(tmp_path):
    assert listing.render_logs(tmp_path / "none") == f"no tuning logs in {tmp_path / 'none'}"
    folder = fill(tmp_path).folder
    head, row = listing.render_logs(tmp_path).splitlines()
    assert head.split() == ["target", "fingerprint", "TVM", "kernels", "records", "failed", "size"]
    assert row.split()[:2] == ["host", TARGET.fingerprint()]
    assert "1.2 us" in listing.render_kernels(tmp_path, "host")
    damage(folder, store.RECORDS, 0, "half")
    assert "1 damaged line" in listing.render_logs(tmp_path)


def test_a_target_without_a_log_is_bad_input(tmp_path):
    fill(tmp_path)
    with pytest.raises(InputError, match="did you mean host"):
        listing.kernels(tmp_path, "hots")
    with pytest.raises(InputError, match="there is no tuning log of target x"):
        listing.best(tmp_path / "none", "x")


LISTING = """
import sys
from pathlib import Path
from deploy.tuning import listing
listing.render_logs(Path(sys.argv[1])), listing.render_kernels(Path(sys.argv[1]), "host")
assert not {"tvm", "torch"} & set(sys.modules)
"""


def test_listing_does_not_load_tvm(tmp_path):
    fill(tmp_path)
    subprocess.run([sys.executable, "-c", LISTING, str(tmp_path)], check=True, cwd=ROOT)
