"""A whole tuning run: what it finds is used, it survives bad candidates, Ctrl-C and kill -9, and goes on afterwards."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from models import onnx_models
from tuning_support import calling, gigantic, processes_about, product, python, task, this_machine, untranslatable
from tvm_ffi import structural_hash

from deploy import model
from deploy.compile import lower_for, schedule_all
from deploy.errors import ToolError
from deploy.kernels.default import default_schedule
from deploy.kernels.for_target import machine_for
from deploy.progress import Silent
from deploy.tuning import log_edit, store
from deploy.tuning.guard import PREFIX, Interrupts, temporary_folder
from deploy.tuning.log import TuningLog, replay, time_s
from deploy.tuning.search import tune
from deploy.tuning.task import tasks, workload

pytestmark = pytest.mark.tvm
TARGET = this_machine()
FAILED = float("inf")


class Recorder(Silent):
    def __init__(self):
        self.events = []

    def update(self, event):
        self.events.append(event)


def hashes(log, func):
    """Of the scheduled module of each record of a kernel."""
    return [structural_hash(replay(record, workload(func)["main"]).mod) for record in log.records(workload(func))]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    path.write_bytes(onnx_models.conv_net(1).SerializeToString())
    return path


@pytest.fixture(scope="module")
def lowered(onnx_file):
    return lower_for(model.load(onnx_file), TARGET)


@pytest.fixture(scope="module")
def tuned(lowered, tmp_path_factory):
    """A folder with a log of 24 candidates of the small network, the outcome and what the display was told."""
    root = tmp_path_factory.mktemp("logs")
    recorder = Recorder()
    outcome = tune(tasks(lowered), TARGET, TuningLog.open(TARGET, root), 24, recorder)
    return root, outcome, recorder.events


# --- what was found is used ---


def test_a_run_keeps_what_it_measured(lowered, tuned):
    root, outcome, events = tuned
    log = TuningLog.read(TARGET, [root])
    records = [record for t in tasks(lowered) for record in log.records(t.mod)]
    assert outcome.trials == len(records) >= len(tasks(lowered))
    assert outcome.trials <= 24
    assert outcome.failures == sum(time_s(record) == FAILED for record in records) == 0
    assert [event.done for event in events] == list(range(1, outcome.trials + 1))
    assert events[-1].best_s > 0
    for t in tasks(lowered):
        assert len(set(hashes(log, t.func))) == len(log.records(t.mod)), "a candidate was measured twice"


def test_tuned_is_never_slower_than_the_default(lowered, tuned):
    log = TuningLog.read(TARGET, [tuned[0]])
    for t in tasks(lowered):
        default = structural_hash(default_schedule(t.mod["main"], machine_for(TARGET)).mod)
        by_hash = dict(zip(hashes(log, t.func), log.records(t.mod), strict=True))
        assert time_s(log.records(t.mod)[0]) <= time_s(by_hash[default])
        assert structural_hash(log.find(t.mod["main"]).mod) == hashes(log, t.func)[0]


BUILD = """
import json, sys
from pathlib import Path
from tuning_support import this_machine
import deploy
from deploy import model, reference, verify
from deploy.compile import build, lower_for, schedule_all
from deploy.tuning.log import TuningLog

target, source = this_machine(), model.load(sys.argv[1])
log = TuningLog.read(target, [Path(sys.argv[2])])
lowered = lower_for(source, target)
artifact = build(source, target, Path(sys.argv[3]), log)
loaded, expected, worst = deploy.load(artifact.path), reference.Reference(source), 0.0
for inputs in reference.sample_inputs(source, 3, 1):
    compared = verify.compare([s.name for s in source.outputs], expected.run(inputs), [loaded(*inputs)])
    worst = max(worst, *(c.largest_rel for c in compared))
scheduled = schedule_all(lowered, target, log)
print(json.dumps([sorted(scheduled.tuned), sorted(lowered.kernels), artifact.facts["kernels"]["tuned"], worst]))
"""


def test_every_tuned_task_is_found_again_by_another_process(lowered, tuned, onnx_file, tmp_path):
    child = python(BUILD, onnx_file, tuned[0], tmp_path / "out")
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    found, kernels, in_manifest, worst = json.loads(out.splitlines()[-1])
    expected = sorted(t.name for t in tasks(lowered))
    assert found == expected == kernels == in_manifest
    assert worst < 1e-5


def test_every_task_of_a_model_is_found_by_the_compiler(lowered, tuned):
    scheduled = schedule_all(lowered, TARGET, TuningLog.read(TARGET, [tuned[0]]))
    assert set(scheduled.tuned) == {t.name for t in tasks(lowered)} == set(lowered.kernels)


def test_the_same_trials_again_measure_nothing(lowered, tuned):
    root, outcome, _ = tuned
    again = tune(tasks(lowered), TARGET, TuningLog.open(TARGET, root), outcome.trials, Silent())
    assert (again.trials, again.failures) == (0, 0)


def test_more_trials_measure_only_what_is_new(tmp_path):
    one = [task(product(24))]
    for wanted in (5, 12):
        tune(one, TARGET, TuningLog.open(TARGET, tmp_path), wanted, Silent())
        log = TuningLog.read(TARGET, [tmp_path])
        assert len(hashes(log, product(24))) == len(set(hashes(log, product(24)))) == wanted


def test_a_default_that_is_not_on_record_is_measured_even_when_there_are_enough(tmp_path):
    tune([task(product(24))], TARGET, TuningLog.open(TARGET, tmp_path), 4, Silent())
    folder = TuningLog.open(TARGET, tmp_path).folder
    store.replace(folder, store.read(folder).records[1:])  # the default is the first
    assert tune([task(product(24))], TARGET, TuningLog.open(TARGET, tmp_path), 3, Silent()).trials == 1


def test_what_another_target_proposes_is_measured_first(tmp_path):
    one, similar = task(product(24)), this_machine(threads=2)
    tune([one], TARGET, TuningLog.open(TARGET, tmp_path), 6, Silent())
    log = TuningLog.open(similar, tmp_path)
    log_edit.transfer(tmp_path, "host", log.folder, top=3)
    proposed = {structural_hash(schedule.mod) for schedule in log.proposals(one.mod)}
    assert len(proposed) == 3
    assert tune([one], similar, log, 4, Silent()).trials == 4
    assert proposed <= set(hashes(log, one.func))
    assert log.proposals(one.mod) == []
    default = structural_hash(default_schedule(one.mod["main"], machine_for(similar)).mod)
    assert default in hashes(log, one.func)


def test_no_trials_touch_nothing(tmp_path):
    outcome = tune([task(product(24))], TARGET, TuningLog.open(TARGET, tmp_path / "log"), 0, Silent())
    assert outcome.trials == 0
    assert list(tmp_path.iterdir()) == []


# --- candidates that fail ---


def test_failures_are_counted_with_their_reasons_and_the_run_goes_on(tmp_path):
    mixed = [
        task(product(24), "good"),
        task(calling("no_such_function"), "undefined"),
        task(calling("abort"), "aborts"),
    ]
    outcome = tune(mixed, TARGET, TuningLog.open(TARGET, tmp_path), 14, Silent())
    assert 2 <= outcome.failures < outcome.trials
    assert set(outcome.reasons) == {
        "candidate.so: undefined symbol: no_such_function",
        "crashed: killed by SIGABRT",
    }
    assert sum(outcome.reasons.values()) == outcome.failures
    log = TuningLog.read(TARGET, [tmp_path])
    assert log.find(calling("abort")) is None
    assert time_s(log.records(workload(product(24)))[0]) < FAILED
    assert log.records(workload(calling("abort"))), "a failed candidate is on record: it is not tried again"


def test_a_run_of_bad_candidates_ends_on_time_with_the_right_counts(tmp_path):
    bad = {
        "no memory for an argument of 107374182464 bytes": gigantic(),
        "crashed: killed by SIGSEGV": calling("raise", 11),
        "hung: did nothing for 3 s": calling("pause"),
    }
    mixed = [task(func, f"bad{number}") for number, func in enumerate([*bad.values(), untranslatable()])]
    mixed.insert(1, task(product(24), "good"))
    start = time.monotonic()
    outcome = tune(mixed, TARGET, TuningLog.open(TARGET, tmp_path), len(mixed), Silent())
    assert (outcome.trials, outcome.failures) == (5, 4)
    assert outcome.reasons.keys() >= bad.keys()
    assert set(outcome.reasons.values()) == {1}
    assert time.monotonic() - start < 30


def test_nothing_measured_is_an_error_with_the_commonest_reasons(tmp_path):
    bad = [task(calling("no_such_function"), "undefined"), task(calling("abort"), "aborts")]
    with pytest.raises(ToolError, match=r"none of \d+ candidates could be measured: .*no_such_function") as caught:
        tune(bad, TARGET, TuningLog.open(TARGET, tmp_path), 8, Silent())
    assert "SIGABRT" in str(caught.value)


def test_a_broken_tool_leaves_no_record_that_would_outlive_it(tmp_path):
    """The linker fails: not the candidates' fault, so they are measured once the linker is well again."""
    cc, ld = tmp_path / "cc", tmp_path / "ld"
    cc.write_text(f'#!/bin/sh\ncase "$*" in *print-prog-name*) echo {ld}; exit;; esac\nexec cc "$@"\n')
    ld.write_text("#!/bin/sh\necho no space >&2; exit 1\n")
    cc.chmod(0o755)
    ld.chmod(0o755)
    with pytest.raises(ToolError, match="no space"):
        tune([task(product(24))], this_machine(str(cc)), TuningLog.open(TARGET, tmp_path / "log"), 3, Silent())
    outcome = tune([task(product(24))], TARGET, TuningLog.open(TARGET, tmp_path / "log"), 3, Silent())
    assert (outcome.trials, outcome.failures) == (3, 0)


def test_a_missing_compiler_is_an_error_at_once(tmp_path):
    with pytest.raises(ToolError, match="build-essential"):
        tune([task(product(24))], this_machine("no-such-cc"), TuningLog.open(TARGET, tmp_path), 3, Silent())


# --- stopping at any moment ---

TUNE = """
import sys
from pathlib import Path
from tuning_support import product, task, this_machine
from deploy.progress import Silent
from deploy.tuning.log import TuningLog
from deploy.tuning.search import tune

class Loud(Silent):
    def update(self, event):
        print(event.done, flush=True)

log = TuningLog.open(this_machine(), Path(sys.argv[1]))
try:
    tune([task(product(32)), task(product(40))], this_machine(), log, int(sys.argv[2]), Loud())
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(42)
"""
ENDLESS = 100_000


def started(root, tmp, trials=ENDLESS):
    """A run in another process that has its first record."""
    tmp.mkdir(exist_ok=True)
    child = python(TUNE, root, trials, tmp=tmp)
    assert child.stdout.readline() == "1\n", child.communicate()[1]
    return child


def assert_nothing_is_left_running(tmp):
    deadline = time.monotonic() + 5  # a process that was just killed may take a moment to be gone
    while processes_about(str(tmp)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_about(str(tmp)) == []


def own_records(root):
    return store.read(TuningLog.open(TARGET, root).folder)


@pytest.mark.parametrize("delay", [0.05, 1.1])
def test_ctrl_c_keeps_the_records_and_the_next_run_goes_on(tmp_path, delay):
    root, tmp = tmp_path / "logs", tmp_path / "tmp"
    child = started(root, tmp)
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    out, errors = child.communicate(timeout=60)
    assert child.returncode == 42, errors
    lines = out.split()
    assert lines[-1] == "interrupted"
    assert list(tmp.iterdir()) == []
    assert_nothing_is_left_running(tmp)
    contents = own_records(root)
    known = len(contents.records)
    assert contents.damaged == ()
    assert known >= max([int(n) for n in lines[:-1]], default=1)
    both = [task(product(32)), task(product(40))]
    assert tune(both, TARGET, TuningLog.open(TARGET, root), known + 4, Silent()).trials == 4
    log = TuningLog.read(TARGET, [root])
    for t in both:
        assert len(set(hashes(log, t.func))) == len(log.records(t.mod)), "a candidate was measured twice"


def test_kill_9_loses_at_most_the_batch_in_flight_and_the_next_run_cleans_up(tmp_path):
    root, tmp = tmp_path / "logs", tmp_path / "tmp"
    told = 1
    for delay in (0.4, 1.1):
        child = started(root, tmp)
        time.sleep(delay)
        child.kill()
        out, _ = child.communicate(timeout=10)
        told += max([int(n) for n in out.split()], default=1)
        assert_nothing_is_left_running(tmp)
        assert len(list(tmp.iterdir())) == 1  # the second run removed what the first had left
    contents = own_records(root)
    assert contents.damaged == ()
    assert len(contents.records) >= told - 1
    child = python(TUNE, root, len(contents.records) + 3, tmp=tmp)
    out, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert list(tmp.iterdir()) == []
    assert own_records(root).damaged == ()
    assert len(own_records(root).records) == len(contents.records) + 3


def test_ctrl_c_is_held_off_while_tvm_searches_and_then_handed_on():
    reached = []
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(interrupts.pending)  # here TVM would be searching
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            reached.append("the interrupt was lost")
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_search_is_handed_on_at_the_end():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_while_candidates_are_timed_comes_at_once():
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.allowed():
        signal.raise_signal(signal.SIGINT)


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
            with interrupts.allowed():
                pass
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_temporary_folder_of_a_living_run_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{PREFIX}dead").mkdir()
    (tmp_path / "somebody's").mkdir()
    with temporary_folder() as first, temporary_folder() as second:
        assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name, "somebody's"}
    assert [path.name for path in tmp_path.iterdir()] == ["somebody's"]
