"""Tuning microcontrollers: exact counts, bad candidates alone pay for themselves, what is found is right and used."""

from __future__ import annotations

import json

import pytest
from built import new_folder
from firmware_kernels import beyond, crashing, ending, endless, greedy, small, twice, undefined, wrong
from firmware_support import ARM
from hypothesis import given
from hypothesis import strategies as st
from tuning_support import python, task
from tvm.s_tir import Schedule

from deploy import pipeline
from deploy.compile import lower_for
from deploy.firmware import candidates
from deploy.firmware.candidates import Argument, Called, Outcome
from deploy.kernels.default import default_schedule
from deploy.kernels.fallback import Plan, plans
from deploy.kernels.fallback import schedule as plain_schedule
from deploy.kernels.for_target import machine_for
from deploy.progress import Silent
from deploy.targets import load_target
from deploy.tuning import explore, store
from deploy.tuning.firmware_runner import FirmwareBench
from deploy.tuning.log import TuningLog, time_s
from deploy.tuning.search import tune
from deploy.tuning.space import listed_schedules
from deploy.tuning.task import tasks

pytestmark = pytest.mark.tvm
M4, M55 = "cortex-m4-mps2", "cortex-m55-mps3"
KNOWN = f"known {candidates.KNOWN_INSTRUCTIONS:x}\n"


# --- what the harness says ---


def test_an_answer_says_what_became_of_each_candidate():
    text = KNOWN + "candidate 0\ntook 1f\ncandidate 2\npast 1\ncandidate 3\nstatus ffffffff\ncandidate 4\nfault 123\n"
    answer = candidates.decode(text)
    assert answer.outcomes == {
        0: Outcome(31),
        2: Outcome(None, "wrote past the end of a buffer"),
        3: Outcome(None, "the kernel returned -1"),
        4: Outcome(None, "crashed: the processor faulted"),
    }
    assert (answer.lost, answer.done) == (None, False)


def test_an_answer_that_ends_early_names_who_did_not_come_back():
    assert candidates.decode(KNOWN + "candidate 0\ntook 1f\ncandidate 1\n").lost == 1
    assert candidates.decode(KNOWN + "candidate 0\ntook 1").lost == 0, "half a number is none"


def test_counting_wrongly_is_an_error():
    with pytest.raises(ValueError, match="counted as 16"):
        candidates.decode("known 10\n")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 1 << 40)), unique_by=lambda pair: pair[0]), st.integers(0))
def test_any_answer_cut_anywhere_is_a_part_of_the_whole(pairs, cut):
    text = KNOWN + "".join(f"candidate {number:x}\ntook {count:x}\n" for number, count in pairs)
    part = candidates.decode(text[: cut % (len(text) + 1)])
    assert part.outcomes.items() <= {number: Outcome(count) for number, count in pairs}.items()


def test_arguments_do_not_overlap():
    arguments = [
        Argument("input", 5, 48),
        Argument("constant", 7, 32),
        Argument("output", 16),
        Argument("workspace", 1),
    ]
    text = candidates.table([Called("k", tuple(arguments))])
    assert "k(area + 0u, (void *)(constants + 32u), area + 32u, area + 64u)" in text
    assert (
        "{{0u, 5u, BUFFER_READ, constants + 48u}, {32u, 16u, BUFFER_WRITTEN, 0}, {64u, 1u, BUFFER_WORKSPACE, 0}}"
        in text
    )
    assert "area[96]" in text


# --- measuring ---


@ARM
def test_a_bad_candidate_pays_for_itself_only(tmp_path):
    one = task(twice)
    bench = FirmwareBench.open(load_target(M4), tmp_path)
    bench.runner.start_s = 0.5
    funcs = [twice, wrong, endless, crashing, ending, beyond, undefined, greedy, twice]
    first, *bad, last = bench.measure(funcs, [one] * len(funcs))
    assert first == last
    assert (first.reason, 8 < first.seconds[0] * 120e6 < 100) == ("", True)
    assert [measured.reason.partition(":")[0] for measured in bad[:5]] == [
        "gave other outputs than the default schedule",
        "ran for ever",
        "crashed",
        "the emulator ended with exit status 0",
        "wrote past the end of a buffer",
    ]
    assert bad[5].reason == "undefined reference to `no_such_function'"
    assert bad[6].reason == "needs 8000 bytes of workspace, the default 0"
    assert not any(measured.seconds for measured in bad)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("board", [pytest.param(name, marks=ARM) for name in (M4, M55)])
def test_every_schedule_gives_what_the_default_gives(board, tmp_path):
    target = load_target(board)
    machine = machine_for(target)
    found = tasks(lower_for(small(new_folder()), target))
    every = [(one, schedule) for one in found for schedule in listed_schedules(Schedule(one.mod), machine)[::2]]
    bench = FirmwareBench.open(target, tmp_path)
    measured = list(bench.measure([s.mod["main"] for _, s in every], [t for t, _ in every]))
    reasons = {m.reason for m in measured}
    assert reasons <= {"", "its result cannot take the place of an input, that of the default schedule can"}
    assert len({m.seconds for m in measured}) > len({t.name for t, _ in every}), "schedules differ"


def test_plain_schedules_of_microcontrollers_are_few_and_different():
    machine = machine_for(load_target("cortex-m3-mps2"))
    assert len({str(plain_schedule(twice, machine, plan).mod) for plan in plans(machine)}) > 1
    assert plans(machine_for(load_target("x86-64-v3"))) == [Plan()]


# --- a whole run ---

FIND = """
import json, sys
from pathlib import Path
from deploy import model
from deploy.compile import lower_for, schedule_all
from deploy.targets import load_target
from deploy.tuning.log import TuningLog

target = load_target(sys.argv[2])
lowered = lower_for(model.load(sys.argv[1]), target)
scheduled = schedule_all(lowered, target, TuningLog.read(target, [Path(sys.argv[3])]))
print(json.dumps(sorted(scheduled.tuned) == sorted(lowered.kernels)))
"""


@ARM
def test_a_run_finds_no_worse_the_same_every_time_and_builds_use_it(tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "WARM_UP", 6)  # the cost model has its say too
    target, source = load_target(M4), small(tmp_path, convolution=True)
    found = tasks(lower_for(source, target))
    outcomes = [tune(found, target, TuningLog.open(target, tmp_path / name), 14, Silent(), 7) for name in ("a", "b")]
    logs = [store.folder_for(tmp_path / name, target) / store.LOG for name in ("a", "b")]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].trials == 14
    assert logs[0].read_bytes() == logs[1].read_bytes(), "the same seed gives the same result"
    log = TuningLog.read(target, [tmp_path / "a"])
    for one in found:
        times = [time_s(record) for record in log.records(one.mod)]
        assert times[0] == min(times) < float("inf")
        assert all(t * target.clock == pytest.approx(round(t * target.clock), rel=1e-5) for t in times if t < 1)
    child = python(FIND, source.path, M4, tmp_path / "a")
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert json.loads(out.splitlines()[-1])
    samples = pipeline.samples_for(source, None)
    artifact = pipeline.build(source, target, out=tmp_path / "out", logs=tmp_path / "a")
    run = pipeline.measure_artifact(artifact, target, samples)
    assert pipeline.verify_outputs(source, samples, run.outputs, target)[0].passed
    assert run.layers == pytest.approx([time_s(log.records(one.mod)[0]) * target.clock for one in found], abs=10)


def test_defaults_are_among_the_schedules(tmp_path):
    for board in (M4, M55):
        machine = machine_for(load_target(board))
        for one in tasks(lower_for(small(tmp_path), load_target(board))):
            first = listed_schedules(Schedule(one.mod), machine)[0]
            assert str(first.mod) == str(default_schedule(one.mod["main"], machine).mod)
