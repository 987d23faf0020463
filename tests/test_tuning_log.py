"""The tuning log: what is written is read again, what is damaged is left out, and two runs do not mix."""

from __future__ import annotations

import dataclasses
import os

import pytest
from tuning_log_support import damage
from tuning_support import product, this_machine
from tvm.s_tir import Schedule
from tvm.target import Target as TvmTarget
from tvm_ffi import structural_equal

from deploy.errors import InputError
from deploy.kernels.for_target import machine_for
from deploy.tuning import log_edit, store
from deploy.tuning.explore import Setting, cost_model, explorer_for
from deploy.tuning.log import TuningLog, replay, time_s
from deploy.tuning.log_lines import Record, pack, unpack
from deploy.tuning.task import Task, workload

pytestmark = pytest.mark.tvm
TARGET = this_machine()
TVM_TARGET = TvmTarget(TARGET.tvm)


def kernel(size=16):
    return Task("fused_matmul7", product(size), 1)


def split(func, factor):
    schedule = Schedule(workload(func))
    block = schedule.get_child_blocks(schedule.get_sblock("root"))[0]
    schedule.split(schedule.get_loops(block)[-1], [None, factor])
    return schedule


def fill(root, times=((8, [3e-6]), (4, [1e-6, 9e-6, 1.2e-6]), (2, ())), sizes=(16, 32)):
    """A log of two kernels with a slow, a fast and a failed candidate each."""
    log = TuningLog.open(TARGET, root)
    with log.writing():
        for size in sizes:
            for factor, seconds in times:
                log.commit(kernel(size), split(product(size), factor), seconds, "crashed: killed by\n SIGSEGV")
    return log


def times(log, size=16):
    return [time_s(record) for record in log.records(workload(product(size)))]


def test_what_is_committed_is_found_in_this_log_and_the_next(tmp_path):
    log = fill(tmp_path)
    for opened in (log, TuningLog.open(TARGET, tmp_path), TuningLog.read(TARGET, [tmp_path])):
        assert times(opened) == [1.2e-6, 3e-6, float("inf")]  # the median: one run was disturbed
        found = opened.find(product(16))
        assert structural_equal(found.mod, split(product(16), 4).mod)
        assert opened.find(product(24)) is None


def test_a_kernel_is_the_same_whatever_the_model_calls_it(tmp_path):
    log = fill(tmp_path)
    assert log.find(product(16).with_attr("global_symbol", "fused_matmul_17")) is not None


def test_a_kernel_of_which_all_candidates_failed_is_not_found(tmp_path):
    log = fill(tmp_path, times=((8, ()), (4, ())))
    assert times(log) == [float("inf")] * 2
    assert log.find(product(16)) is None
    assert TuningLog.read(TARGET, [tmp_path]).find(product(16)) is None


def test_what_the_file_says(tmp_path):
    contents = store.read(fill(tmp_path, sizes=(16,)).folder)
    (described,) = contents.kernels.values()
    assert (described.name, described.arguments) == ("fused_matmul", "float32[16,16] float32[16,16] float32[16,16]")
    assert [(r.trial, r.ns) for r in contents.records] == [(1, (3000,)), (2, (1000, 9000, 1200)), (3, ())]
    assert contents.records[2].failed == "crashed: killed by SIGSEGV"


def test_a_candidate_that_was_measured_twice_counts_once(tmp_path):
    log = fill(tmp_path, times=((8, [3e-6]), (4, ()), (8, [2e-6]), (4, [4e-6]), (4, ())), sizes=(16,))
    for opened in (log, TuningLog.open(TARGET, tmp_path)):
        assert times(opened) == [2e-6, 4e-6]
    assert len(store.read(log.folder).records) == 5


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
            log.commit(task, candidate.sch, [1e-6 * (number + 1)])
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
    damage(folder, 3, "{half")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    log = TuningLog.open(TARGET, own, [shipped, tmp_path / "nowhere"])
    assert times(log) == [1.2e-6, float("inf")]
    with log.writing():
        log.commit(kernel(), split(product(16), 8), [1e-7])
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


# --- records that do not fit ---


def committed(folder, *traces):
    """Put the traces on record for a kernel, the first one the fastest."""
    kernel_id = next(iter(store.read(folder).kernels))
    file = store.LogFile(folder)
    file.append([Record(kernel_id, trace, (number,)) for number, trace in enumerate(traces, 1)])


def test_a_line_that_is_lost_takes_nothing_else_along(tmp_path):
    folder = fill(tmp_path).folder
    damage(folder, 2)  # the first kernel's
    damage(folder, 4)  # its best record
    log = fill(tmp_path, times=((16, [7e-7]),), sizes=(16,))
    assert times(log, 16) == [7e-7, 3e-6, float("inf")]
    assert times(log, 32) == [1.2e-6, 3e-6, float("inf")]
    assert len(store.read(folder).kernels) == 2, "the next run describes the kernel again"


UNREADABLE = [[["NoSuchStep", [], [], []]], [["GetSBlock", ["x"], [], ["b0"]]], [["GetLoops", ["b7"], [], ["l1"]]]]


@pytest.mark.parametrize(
    "trace", ["no trace at all", pack([[], [[7, "x"]]]), *(pack([instructions, []]) for instructions in UNREADABLE)]
)
def test_a_record_that_tvm_cannot_read_is_left_out(tmp_path, trace):
    folder = fill(tmp_path, sizes=(16,)).folder
    committed(folder, trace)
    log = TuningLog.open(TARGET, tmp_path)
    assert log.find(product(16)) is not None
    assert times(log)[0] == 1.2e-6


def test_a_record_that_fits_no_longer_is_passed_over(tmp_path):
    folder = fill(tmp_path, sizes=(16,)).folder
    instructions, decisions = unpack(min(store.read(folder).records, key=lambda r: r.time_s).trace)
    instructions[0] = ["GetSBlock", [], ["gone", "main"], ["b0"]]  # a block that the kernel does not have
    committed(folder, pack([instructions, decisions]))
    log = TuningLog.open(TARGET, tmp_path)
    assert times(log) == [1.2e-6, 3e-6, float("inf")]
    assert structural_equal(log.find(product(16)).mod, split(product(16), 4).mod)


def test_the_record_of_one_kernel_cannot_change_what_another_computes(tmp_path):
    """Should two kernels ever have one id: a trace only moves loops of the kernel that it is applied to."""
    folder = fill(tmp_path, times=((8, [1e-6]),), sizes=(16, 32)).folder
    first, second = store.read(folder).records
    store.replace(
        folder, [dataclasses.replace(first, kernel=second.kernel), dataclasses.replace(second, kernel=first.kernel)]
    )
    found = TuningLog.open(TARGET, tmp_path).find(product(32))
    assert structural_equal(found.mod, split(product(32), 8).mod)


# --- other targets with the same code ---


def test_what_an_emulator_found_best_serves_its_board_until_that_is_measured(tmp_path):
    fill(tmp_path)
    board = dataclasses.replace(TARGET, name="board")
    assert board.fingerprint() == TARGET.fingerprint()
    read = TuningLog.read(board, [tmp_path])
    assert structural_equal(read.find(product(16)).mod, split(product(16), 4).mod)
    assert read.records(workload(product(16))) == []  # its times are of another device
    own = TuningLog.open(board, tmp_path)
    proposed = zip(own.proposals(kernel().mod), (4, 8), strict=True)  # the best first, none that failed
    assert all(structural_equal(schedule.mod, split(product(16), factor).mod) for schedule, factor in proposed)
    with own.writing():
        own.commit(kernel(), split(product(16), 8), [1.0])
    assert structural_equal(own.find(product(16)).mod, split(product(16), 8).mod)
    assert [structural_equal(p.mod, split(product(16), 4).mod) for p in own.proposals(kernel().mod)] == [True]


def test_other_code_is_no_kin(tmp_path):
    fill(tmp_path)
    other = dataclasses.replace(TARGET, name="board", threads=TARGET.threads + 1)
    assert TuningLog.read(other, [tmp_path]).find(product(16)) is None


# --- proposals ---


def test_what_another_target_found_is_proposed_until_it_is_measured(tmp_path):
    other = dataclasses.replace(TARGET, threads=2)
    fill(tmp_path)
    log = TuningLog.open(other, tmp_path)
    assert log.proposals(kernel().mod) == []
    assert log_edit.transfer(tmp_path, "host", log.folder, top=4).more == 4
    assert log_edit.transfer(tmp_path, "host", log.folder, top=4).more == 0
    log = TuningLog.open(other, tmp_path)
    assert log.find(product(16)) is None, "building uses nothing that was not measured"
    first, second = log.proposals(kernel().mod)
    assert structural_equal(first.mod, split(product(16), 4).mod)
    assert structural_equal(second.mod, split(product(16), 8).mod)
    with log.writing():
        log.commit(kernel(), first, [5e-6])
    for opened in (log, TuningLog.open(other, tmp_path)):
        assert [structural_equal(p.mod, second.mod) for p in opened.proposals(kernel().mod)] == [True]
        assert times(opened) == [5e-6]


def test_a_proposal_that_does_not_fit_is_none(tmp_path):
    folder = fill(tmp_path, sizes=(16,)).folder
    other = TuningLog.open(dataclasses.replace(TARGET, threads=2), tmp_path)
    committed(folder, pack([[["GetSBlock", [], ["gone", "main"], ["b0"]]], []]))
    log_edit.transfer(tmp_path, "host", other.folder, top=1)
    assert other.proposals(kernel().mod) == []


# --- several runs at once ---


def test_runs_at_once_see_what_the_others_add(tmp_path):
    first, second = TuningLog.open(TARGET, tmp_path), TuningLog.open(TARGET, tmp_path)
    with first.writing(), second.writing():
        first.commit(kernel(), split(product(16), 8), [3e-6])
        assert times(second) == [3e-6]
        second.commit(kernel(), split(product(16), 4), [1e-6])
        first.commit(kernel(), split(product(16), 2), [2e-6])
        assert times(first) == times(second) == [1e-6, 2e-6, 3e-6]
    assert [r.trial for r in store.read(first.folder).records] == [1, 2, 3]
    assert len(store.read(first.folder).kernels) == 1


def test_a_log_that_is_pruned_meanwhile_goes_on(tmp_path):
    log = fill(tmp_path, sizes=(16,))
    with log.writing():
        log_edit.prune(tmp_path, "host", top=1, stale=False)
        log.commit(kernel(), split(product(16), 16), [2e-6])
    assert times(TuningLog.open(TARGET, tmp_path)) == [1.2e-6, 2e-6]


def test_committing_needs_a_log_that_is_open_for_it(tmp_path):
    log = TuningLog.open(TARGET, tmp_path)
    with pytest.raises(ValueError, match="writing"):
        log.commit(kernel(), split(product(16), 8), [1e-6])
    with pytest.raises(ValueError, match="reading"), TuningLog.read(TARGET, [tmp_path]).writing():
        pass


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--logs"), TuningLog.open(TARGET, tmp_path / "file").writing():
        pass


def test_what_was_committed_is_on_the_disk_after_sync(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), fsync(descriptor))
    )
    log = TuningLog.open(TARGET, tmp_path)
    with log.writing():
        log.commit(kernel(), split(product(16), 8), [1e-6])
        assert synced == []
        log.sync()
        assert (log.folder / store.LOG).stat().st_size in synced
        count = len(synced)
        log.sync()
        assert len(synced) == count
        log.commit(kernel(), split(product(16), 4), [1e-6])
    assert len(synced) > count
