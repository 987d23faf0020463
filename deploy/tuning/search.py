"""The search: MetaSchedule's evolutionary strategy and XGBoost cost model over this package's builder and runner."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target as TvmTarget

from deploy.errors import ToolError
from deploy.host import core_count
from deploy.kernels.default import default_schedule
from deploy.kernels.machine import Machine
from deploy.progress import Progress, ProgressEvent
from deploy.target import Target
from deploy.tuning.builder import Builder, Workshop
from deploy.tuning.log import FAILED_S, TuningLog, mean_s
from deploy.tuning.runner import Runner, Stopwatch
from deploy.tuning.space import space_for, strategy_for
from deploy.tuning.task import Task

SMALLEST_SHARE = 0.005  # a task below this share of the model's time is left as it is


@dataclass
class Tally:
    """What a tuning run has done so far."""

    wanted: int
    started: float = field(default_factory=time.monotonic)
    trials: int = 0
    failures: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def count(self, results: Sequence[ms.runner.RunnerResult], built: Sequence[ms.builder.BuilderResult]) -> None:
        """Add a batch of candidates."""
        for compiled, result in zip(built, results, strict=True):
            self.trials += 1
            reason = compiled.error_msg or result.error_msg
            if reason:
                self.failures += 1
                self.reasons[str(reason)] = self.reasons.get(str(reason), 0) + 1

    @property
    def left_s(self) -> float | None:
        """Seconds until the wanted trials are done at the rate so far."""
        if not self.trials:
            return None
        return (time.monotonic() - self.started) / self.trials * max(0, self.wanted - self.trials)


@dataclass(frozen=True)
class Outcome:
    """Tasks of the model, candidates measured now, and those of them that failed, with the reasons' counts."""

    tasks: int
    trials: int
    failures: int
    reasons: dict[str, int]


@derived_object
class _Watch(ms.measure_callback.PyMeasureCallback):  # type: ignore[misc]
    """Counts candidates and tells the progress display."""

    def __init__(self, names: list[str], tally: Tally, progress: Progress) -> None:
        super().__init__()
        self.names, self.tally, self.progress = names, tally, progress
        self.best: dict[int, float] = {}

    def apply(self, task_scheduler, task_id, measure_candidates, builder_results, runner_results) -> None:  # type: ignore[no-untyped-def]
        self.tally.count(runner_results, builder_results)
        times = [_mean(r) for r in runner_results]
        self.best[task_id] = min([*times, self.best.get(task_id, float("inf"))])
        tell(self.progress, self.tally, self.names[task_id], self.best[task_id])


def _mean(result: ms.runner.RunnerResult) -> float:
    seconds = [float(s) for s in result.run_secs or ()]
    return sum(seconds) / len(seconds) if seconds else float("inf")


def tell(progress: Progress, tally: Tally, task: str, best_s: float) -> None:
    """Report the state of the run."""
    progress.update(
        ProgressEvent(
            "tune", task, min(tally.trials, tally.wanted), tally.wanted,
            None if best_s == float("inf") else best_s, tally.failures, tally.left_s,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What candidates are built and timed with."""

    builder: Builder
    runner: Runner

    @classmethod
    def open(cls, target: Target, folder: Path) -> Bench:
        """Prepare builder and runner in `folder`."""
        workshop = Workshop(folder, target, core_count())
        stopwatch = Stopwatch(folder, target.toolchain.cc)
        workshop.prepare()
        stopwatch.prepare()
        return cls(Builder(workshop), Runner(stopwatch))


def _commit(log: TuningLog, task: Task, schedule: Schedule, seconds: list[float] | None, target: TvmTarget) -> None:
    database, mod = log.database, task.mod
    info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)
    times = seconds or [10 * FAILED_S]
    database.commit_tuning_record(
        ms.database.TuningRecord(schedule.trace, database.commit_workload(mod), times, target, info)
    )


def measure_defaults(tasks: list[Task], log: TuningLog, target: Target, bench: Bench, tally: Tally) -> None:
    """Measure the default schedule of each task that has no record yet, so that tuning can only improve on it."""
    from deploy.compile import machine_for

    tvm_target = TvmTarget(target.tvm)
    new = [task for task in tasks if not log.records(task.mod)]
    schedules = [default_schedule(task.mod["main"], machine_for(target)) for task in new]
    inputs = [ms.builder.BuilderInput(schedule.mod, tvm_target) for schedule in schedules]
    built = bench.builder.build(inputs)
    for task, schedule, result in zip(new, schedules, built, strict=True):
        measured = ms.runner.RunnerResult(None, result.error_msg)
        if result.artifact_path:
            run = ms.runner.RunnerInput(result.artifact_path, "cpu", [])
            measured = bench.runner.run([run])[0].result()
        tally.count([measured], [result])
        seconds = [float(s) for s in measured.run_secs] if measured.run_secs else None
        _commit(log, task, schedule, seconds, tvm_target)


def _worthwhile(tasks: list[Task], log: TuningLog) -> list[tuple[Task, float]]:
    """Tasks with a share of the model's time that matters, and that share."""
    times = [task.calls * mean_s(log.records(task.mod)[0]) for task in tasks]
    total = sum(t for t in times if t != float("inf"))
    pairs = [(task, t / total if total and t != float("inf") else 1.0) for task, t in zip(tasks, times, strict=True)]
    return [(task, share) for task, share in pairs if share >= SMALLEST_SHARE]


def _contexts(
    pairs: list[tuple[Task, float]], log: TuningLog, machine: Machine, target: TvmTarget, seed: int
) -> tuple[list[ms.TuneContext], list[float]]:
    contexts, weights = [], []
    quiet = logging.getLogger("deploy.tuning.meta_schedule")
    quiet.setLevel(logging.CRITICAL)
    for number, (task, share) in enumerate(pairs):
        known = frozenset(str(record.trace) for record in log.records(task.mod))
        space = space_for(task.mod["main"], machine, known)
        if space is None:
            continue
        contexts.append(
            ms.TuneContext(
                task.mod, target=target, space_generator=space, task_name=task.name, rand_state=seed + number + 1,
                search_strategy=strategy_for(task.mod["main"]), num_threads=core_count(), logger=quiet,
            )
        )  # fmt: skip
        weights.append(share)
    return contexts, weights


def tune(tasks: list[Task], target: Target, log: TuningLog, trials: int, progress: Progress, seed: int = 0) -> Outcome:
    """Measure until `trials` candidates of `tasks` are on record; each record is in the log at once.

    Raises ToolError where not one candidate could be measured, with the commonest reasons.
    """
    from deploy.compile import machine_for

    known = sum(len(log.records(task.mod)) for task in tasks)
    tally = Tally(max(0, trials - known))
    if tally.wanted == 0:
        return Outcome(len(tasks), 0, 0, {})
    machine, tvm_target = machine_for(target), TvmTarget(target.tvm)
    with tempfile.TemporaryDirectory(prefix="tvm-deploy-tune-") as folder:
        bench = Bench.open(target, Path(folder))
        measure_defaults(tasks, log, target, bench, tally)
        tell(progress, tally, "", float("inf"))
        contexts, weights = _contexts(_worthwhile(tasks, log), log, machine, tvm_target, seed)
        if contexts and tally.trials < tally.wanted:
            _search(contexts, weights, tally, log, bench, progress)
    if tally.trials and tally.failures == tally.trials:
        common = sorted(tally.reasons, key=lambda r: -tally.reasons[r])[:3]
        raise ToolError(f"none of {tally.trials} candidates could be measured: " + "; ".join(common))
    return Outcome(len(tasks), tally.trials, tally.failures, tally.reasons)


def _search(
    contexts: list[ms.TuneContext], weights: list[float], tally: Tally, log: TuningLog, bench: Bench, progress: Progress
) -> None:
    left = tally.wanted - tally.trials
    batch = max(1, min(32, left // len(contexts)))
    ms.tune.tune_tasks(
        tasks=contexts,
        task_weights=weights,
        work_dir="",
        max_trials_global=left,
        num_trials_per_iter=batch,
        builder=bench.builder,
        runner=bench.runner,
        database=log.database,
        cost_model="xgb",
        measure_callbacks=[
            ms.measure_callback.AddToDatabase(),
            ms.measure_callback.UpdateCostModel(),
            _Watch([context.task_name for context in contexts], tally, progress),
        ],
    )
