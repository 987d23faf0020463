"""TVM's own tuning, MetaSchedule as it comes: its builder and runner on given candidates, and its whole search."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tvm
from tvm import relax
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target as TvmTarget

from deploy.host import core_count
from deploy.kernels.machine import Machine
from deploy.target import Target
from deploy.tuning.space import generic_space, without_intrinsics

TIMEOUT_S = 30.0  # stock's own
BATCH = 64  # candidates that stock builds and measures at a time


@dataclass(frozen=True)
class Timed:
    """What became of candidates: the median seconds of one call of each, None where it failed."""

    seconds: tuple[float | None, ...]
    wall_s: float
    cpu_s: float

    @property
    def per_minute(self) -> float:
        """Candidates a minute that were built and measured; those that failed are not."""
        return 60 * (len(self.seconds) - self.failed) / self.wall_s

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(one is None for one in self.seconds)


def prepared(mod: Any) -> Any:
    """A Relax model as stock tunes it: legalized and fused, nothing packed."""
    return relax.get_pipeline("zero")(relax.transform.DecomposeOpsForInference()(mod))


def sampled(mod: Any, target: Target, machine: Machine, count: int, seed: int) -> list[Any]:
    """Schedules of the tasks of a Relax model, random ones out of TVM's own space, `count` of each task at most."""
    tvm_target, found = TvmTarget(target.tvm), []
    for number, task in enumerate(ms.relax_integration.extract_tasks(prepared(mod), tvm_target)):
        with without_intrinsics():
            context = ms.TuneContext(
                task.dispatched[0], target=tvm_target, space_generator=generic_space(machine),
                search_strategy=ms.search_strategy.ReplayTrace(), num_threads=core_count(),
                rand_state=seed + number + 1, task_name="main", logger=_quiet(),
            )  # fmt: skip
        context.pre_tuning(count, count, database=ms.database.MemoryDatabase(), cost_model=ms.cost_model.RandomModel())
        found += [candidate.sch for candidate in context.generate_measure_candidates() or []][:count]
        context.post_tuning()
    return found


def build_and_run(schedules: Sequence[Schedule], target: Target, timeout_s: float = TIMEOUT_S) -> Timed:
    """Stock's LocalBuilder and LocalRunner in batches of their default size.

    timeout_s: what a worker may take for a candidate, and for importing TVM before its first.
    """
    tvm_target, seconds = TvmTarget(target.tvm), []
    started, used_s = time.perf_counter(), processor_s()
    with without_intrinsics():
        builder, runner = ms.builder.LocalBuilder(timeout_sec=timeout_s), ms.runner.LocalRunner()
    for first in range(0, len(schedules), BATCH):
        batch = schedules[first : first + BATCH]
        built = builder.build([ms.builder.BuilderInput(schedule.mod, tvm_target) for schedule in batch])
        seconds += list(_run(batch, built, runner))
    return Timed(tuple(seconds), time.perf_counter() - started, processor_s() - used_s)


def processor_s() -> float:
    """Processor time of this process, of those that it waited for, and of those that still run."""
    own = os.times()
    running = [one.cpu_times() for one in psutil.Process().children(recursive=True) if one.is_running()]
    return own.user + own.system + own.children_user + own.children_system + sum(t.user + t.system for t in running)


def _run(batch: Sequence[Schedule], built: Sequence[Any], runner: Any) -> Iterator[float | None]:
    infos = [ms.arg_info.ArgInfo.from_entry_func(schedule.mod, remove_preproc=True) for schedule in batch]
    inputs = [
        ms.runner.RunnerInput(one.artifact_path, "cpu", info)
        for one, info in zip(built, infos, strict=True)
        if one.artifact_path is not None
    ]
    results = iter([future.result() for future in runner.run(inputs)])
    for one in built:
        result = next(results) if one.artifact_path is not None else None
        yield None if result is None or not result.run_secs else median(float(s) for s in result.run_secs)
        if one.artifact_path is not None:
            shutil.rmtree(Path(one.artifact_path).parent, ignore_errors=True)


@dataclass(frozen=True)
class Plan:
    """How much stock searches: trials in all, its seed, and what a worker may take for a candidate."""

    trials: int
    seed: int
    timeout_s: float = TIMEOUT_S


def tune(mod: Any, target: Target, plan: Plan, folder: Path) -> Path:
    """Stock's whole search, then the model compiled with what it found: a library.

    A task gets its share of the trials at a time: with stock's 64 one task would get all of a short run.
    """
    tvm_target, ready = TvmTarget(target.tvm), prepared(mod)
    count = len(ms.relax_integration.extract_tasks(ready, tvm_target))
    database = ms.relax_integration.tune_relax(
        ready, {}, tvm_target, str(folder / "work"), plan.trials, seed=plan.seed,
        num_trials_per_iter=max(1, min(BATCH, -(-plan.trials // count))),
        builder=ms.builder.LocalBuilder(timeout_sec=plan.timeout_s),
    )  # fmt: skip
    library = folder / "stock.so"
    ms.relax_integration.compile_relax(database, ready, tvm_target, {}).export_library(str(library))
    return library


def load(library: Path, inputs: Sequence[Any]) -> Any:
    """A function without arguments that runs a library of `tune`."""
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    machine.set_input("main", *(tvm.runtime.tensor(one) for one in inputs))
    return lambda: machine.invoke_stateful("main")


def _quiet() -> Any:
    logger = ms.logging.get_logger("stock")
    logger.setLevel("CRITICAL")
    return logger
