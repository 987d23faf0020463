"""The tuning run: whose turn it is, measuring what the explorers propose, and remembering it at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.utils import shash2hex
from tvm.target import Target as TvmTarget
from tvm_ffi import structural_hash

from deploy.errors import InputError, ToolError
from deploy.kernels.default import default_schedule
from deploy.kernels.for_target import machine_for
from deploy.progress import Progress, ProgressEvent, left
from deploy.target import Target
from deploy.tuning.board_runner import BoardBench
from deploy.tuning.ending import Ending
from deploy.tuning.experience import kept
from deploy.tuning.explore import Explorer, Setting, cost_model, explorer_for, result_of
from deploy.tuning.farm import opened
from deploy.tuning.firmware_runner import FirmwareBench
from deploy.tuning.guard import Interrupts, temporary_folder
from deploy.tuning.log import TuningLog, replay, time_s
from deploy.tuning.runner import Bench, Measured, Measuring
from deploy.tuning.store import typical_s
from deploy.tuning.tally import Outcome, Tally
from deploy.tuning.task import Task

SMALLEST_SHARE = 0.005  # a task below this share of the model's time is left as it is
LARGEST_BATCH = 16
UNKNOWN = float("inf")


@dataclass
class _State:
    """What is known of a task: how many candidates are on record, the best time of one call, and how to go on.

    waiting: candidates that were proposed and are yet to be measured.
    """

    task: Task
    seed: int
    trials: int = 0
    waiting: int = 0
    best_s: float = UNKNOWN
    explorer: Explorer | None = None
    used_up: bool = False

    @property
    def share_s(self) -> float:
        """Seconds of one inference that go to this task."""
        return self.task.calls * self.best_s


@dataclass
class _Run:
    """One tuning run."""

    target: Target
    log: TuningLog
    bench: Measuring
    tally: Tally
    progress: Progress
    interrupts: Interrupts
    states: list[_State]
    model: ms.cost_model.XGBModel
    ending: Ending
    stopped: str = ""
    withheld: list[tuple[Task, Schedule, Measured]] = field(default_factory=list)
    succeeded: bool = False

    def __post_init__(self) -> None:
        self.machine, self.tvm_target = machine_for(self.target), TvmTarget(self.target.tvm)
        for state in self.states:
            records = self.log.records(state.task.mod)
            state.trials = len(records)
            state.best_s = time_s(records[0]) if records else UNKNOWN
        self.batch = max(2, min(LARGEST_BATCH, self.tally.wanted // (2 * len(self.states))))

    def measure(self, states: Sequence[_State], schedules: Sequence[Schedule]) -> list[Measured]:
        """Build and time schedules, each of the state beside it, and put each on record as soon as it is timed."""
        found = []
        with self.interrupts.allowed():
            funcs, tasks = [schedule.mod["main"] for schedule in schedules], [state.task for state in states]
            measuring = self.bench.measure(funcs, tasks)
            for state, schedule, measured in zip(states, schedules, measuring, strict=True):
                self._keep(state, schedule, measured)
                found.append(measured)
        self.log.sync()
        return found

    def _keep(self, state: _State, schedule: Schedule, measured: Measured) -> None:
        """Put a candidate on record; a failure only once something succeeds: it may be this machine that fails."""
        self.tally.count(measured)
        state.trials += 1
        state.best_s = min(state.best_s, typical_s(list(measured.seconds)))
        self.succeeded = self.succeeded or bool(measured.seconds)
        self.withheld.append((state.task, schedule, measured))
        if self.succeeded:
            held, self.withheld = self.withheld, []
            for task, candidate, outcome in held:
                self.log.commit(task, candidate, outcome.seconds, outcome.reason)
        self._tell(state)

    def _tell(self, state: _State) -> None:
        tally = self.tally
        self.progress.update(
            ProgressEvent(
                "tune", state.task.name, min(tally.trials, tally.wanted), tally.wanted,
                None if state.best_s == UNKNOWN else state.best_s, tally.failures,
                self._left_s(), share=self._share(state), rate=tally.a_minute, reason="".join(tally.common(1)),
                message=self.bench.note,
            )
        )  # fmt: skip

    def _share(self, state: _State) -> float | None:
        """Of the model's time, as far as it is known, that goes to a task."""
        total = sum(other.share_s for other in self.states if other.best_s != UNKNOWN)
        return state.share_s / total if state.best_s != UNKNOWN and total else None

    def _left_s(self) -> float | None:
        """Seconds until all candidates are measured, or the time is over."""
        tally = self.tally
        limits = (left(tally.trials, tally.wanted, time.monotonic() - tally.started), self.ending.left_s())
        return min((limit for limit in limits if limit is not None), default=None)

    def known(self, task: Task) -> set[int]:
        """Hashes of the scheduled modules on record for a task."""
        replayed = (replay(record, task.mod["main"]) for record in self.log.records(task.mod))
        return {structural_hash(schedule.mod) for schedule in replayed if schedule is not None}

    def measure_defaults(self) -> None:
        """Measure the default schedule of each task that has no record of it: what tuning chooses is no worse."""
        schedules = [default_schedule(state.task.mod["main"], self.machine) for state in self.states]
        pairs = zip(self.states, schedules, strict=True)
        new = [(s, d) for s, d in pairs if structural_hash(d.mod) not in self.known(s.task)]
        self.measure([state for state, _ in new], [schedule for _, schedule in new])

    def measure_proposals(self) -> None:
        """Measure what was good on a similar target, each task's best first, as far as the trials go."""
        found: list[tuple[int, _State, Schedule]] = []
        for state in self.states:
            known = self.known(state.task)
            fresh = {structural_hash(schedule.mod): schedule for schedule in self.log.proposals(state.task.mod)}
            new = [schedule for key, schedule in fresh.items() if key not in known]
            found += [(rank, state, schedule) for rank, schedule in enumerate(new)]
        found.sort(key=lambda proposal: proposal[0])
        found = found[: max(0, self.tally.wanted - self.tally.trials)]
        self.measure([state for _, state, _ in found], [schedule for _, _, schedule in found])

    def search(self) -> None:
        """Measure what the explorers propose until there are enough candidates or no more, or the run is to end."""
        while self.tally.trials < self.tally.wanted:
            self.stopped = self.ending.reason(sum(state.share_s for state in self.states))
            chosen = [] if self.stopped else self._round()
            if not chosen:
                self.stopped = self.stopped or "no schedule is left to try"
                return
            measured = self.measure([state for state, _ in chosen], [c.sch for _, c in chosen])
            for state in {id(state): state for state, _ in chosen}.values():
                own = [(c, m) for (s, c), m in zip(chosen, measured, strict=True) if s is state]
                state.waiting = 0
                assert state.explorer is not None
                state.explorer.learn([c for c, _ in own], [result_of(m.seconds, m.reason) for _, m in own])

    def _round(self) -> list[tuple[_State, ms.MeasureCandidate]]:
        """What to measure next: candidates of one task, or of several where the bench takes as many."""
        chosen: list[tuple[_State, ms.MeasureCandidate]] = []
        room = min(self.tally.wanted - self.tally.trials, self.bench.largest_round or self.batch)
        while room and (state := self._next()) is not None:
            if state.explorer is None:
                state.explorer = self._explorer(state)
            candidates = state.explorer.propose(min(self.batch, room))
            state.used_up = not candidates
            state.waiting += len(candidates)
            chosen += [(state, candidate) for candidate in candidates]
            room -= len(candidates)
            if chosen and not self.bench.largest_round:
                break
        return chosen

    def _next(self) -> _State | None:
        """The task with the most time for each candidate so far; trials end up shared out as the time is.

        A task of unknown time counts as the slowest that is known, so that it gets its turn and not all of them.
        """
        known = [state.share_s for state in self.states if state.best_s != UNKNOWN]
        total, slowest = sum(known), max(known, default=1.0)

        def claim(state: _State) -> float:
            return (slowest if state.best_s == UNKNOWN else state.share_s) / (1 + state.trials + state.waiting)

        open_ = [
            s for s in self.states if not s.used_up and (s.best_s == UNKNOWN or s.share_s >= SMALLEST_SHARE * total)
        ]
        return max(open_, key=claim, default=None)

    def _explorer(self, state: _State) -> Explorer:
        setting = Setting(self.tvm_target, self.machine, self.model, self.log.kernels.database, self.batch)
        explorer = explorer_for(state.task, setting, self.known(state.task), state.seed)
        records = self.log.records(state.task.mod)
        if records and shash2hex(state.task.mod) not in self.model.data:  # what earlier runs measured, and the default
            candidates = [record.as_measure_candidate() for record in records]
            seconds = [tuple(float(s) for s in record.run_secs or ()) for record in records]
            self.model.update(explorer.context, candidates, [result_of(s, "") for s in seconds])
        return explorer


def _bench(target: Target, folder: Path, executor: Executor | None) -> Measuring:
    if target.device.kind == "rpc":
        return BoardBench.open(target, folder, executor)
    if target.artifact != "firmware":
        return Bench.open(target, folder, executor)
    if executor is not None:
        raise InputError(f"candidates for {target.name} are firmware, which is compiled here: leave out --builders")
    return FirmwareBench.open(target, folder)


def tune(
    tasks: list[Task],
    target: Target,
    log: TuningLog,
    trials: int,
    progress: Progress,
    seed: int = 0,
    builders: Executor | str | None = None,
) -> Outcome:
    """Measure until `trials` candidates of `tasks` are on record; each record is in the log at once.

    The default schedule of every task is measured first, so there may be as many more. Ctrl-C ends the run between
    two candidates with KeyboardInterrupt; the next run goes on from there.

    builders: who compiles candidates on other machines, an executor or a Dask scheduler's address (dask://host:port).

    Raises ToolError where not one candidate could be measured, with the commonest reasons, and InputError where the
    log cannot be written, no scheduler answers, or there are `builders` for firmware.
    """
    if trials <= 0 or not tasks:
        return Outcome(len(tasks), 0, 0, {})
    ending, model = Ending.of(target), cost_model()
    with opened(builders) as executor, Interrupts() as interrupts, log.writing(), temporary_folder() as folder:
        known = sum(len(log.records(task.mod)) for task in tasks)
        tally = Tally(max(0, trials - known))
        with interrupts.allowed():
            bench = _bench(target, folder, executor)
        states = [_State(task, seed + number + 1) for number, task in enumerate(tasks)]
        with kept(model, log.folder):
            run = _Run(target, log, bench, tally, progress, interrupts, states, model, ending)
            run.measure_defaults()
            run.measure_proposals()
            run.search()
    if tally.trials and tally.failures == tally.trials:
        raise ToolError(f"none of {tally.trials} candidates could be measured: {'; '.join(tally.common())}")
    return Outcome(len(tasks), tally.trials, tally.failures, tally.reasons, run.stopped, bench.note)
