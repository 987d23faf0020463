"""The schedules that a kernel is searched over: a list, or a generator for what is not packed and has vectors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import ScheduleError
from tvm.target import Target as TvmTarget

from deploy.kernels import fallback
from deploy.kernels import schedule as packed
from deploy.kernels.machine import Machine
from deploy.kernels.micro import schedule as micro
from deploy.kernels.roles import is_packed

INTRINSICS = "tvm.s_tir.tensor_intrin"


def has_list(func: tirx.PrimFunc, machine: Machine) -> bool:
    """Whether `listed_schedules` has those of a kernel: TVM's own space has nothing that helps a microcontroller."""
    return is_packed(func) or machine.microcontroller


def listed_schedules(sch: Schedule, machine: Machine) -> list[Schedule]:
    """Every variant of a kernel that can be applied, best guess first."""
    func = sch.mod["main"]
    if not is_packed(func):
        return [fallback.schedule(func, machine, plan) for plan in fallback.plans(machine)]
    apply: Callable[[Schedule, Any], None] = partial(packed.apply, machine=machine)
    variants: list[Any] = []
    if micro.is_micro(func):
        apply, variants = micro.apply, micro.variants(func)
    else:
        variants = packed.variants(func, machine)
    found = []
    for variant in variants:
        attempt = sch.copy()
        try:
            apply(attempt, variant)
        except ScheduleError:
            continue
        found.append(attempt)
    return found


def generic_space(machine: Machine) -> ms.SpaceGenerator:
    """TVM's own space for CPUs, without parallel loops where there is one thread."""
    rule, postproc, mutator = ms.schedule_rule, ms.postproc, ms.mutator
    rules = [
        rule.InlineConstantScalars(),
        rule.AutoInline(
            into_producer=False,
            into_consumer=True,
            inline_const_tensor=True,
            disallow_if_then_else=True,
            require_injective=True,
            require_ordered=True,
            disallow_op=["tirx.exp"],
        ),
        rule.MultiLevelTiling(
            structure="SSRSRS",
            max_innermost_factor=64,
            reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
        ),
        rule.ParallelizeVectorizeUnroll(
            max_jobs_per_core=16 if machine.threads > 1 else -1,
            max_vectorize_extent=machine.lanes(32),
            unroll_max_steps=[0, 16, 64, 512],
        ),
        rule.RandomComputeLocation(),
    ]
    postprocs = [
        postproc.DisallowDynamicLoop(),
        postproc.RewriteParallelVectorizeUnroll(),
        postproc.RewriteReductionBlock(),
    ]
    mutators = {
        mutator.MutateTileSize(): 0.9,
        mutator.MutateComputeLocation(): 0.05,
        mutator.MutateUnroll(): 0.05,
    }
    return ms.space_generator.PostOrderApply(sch_rules=rules, postprocs=postprocs, mutator_probs=mutators)


@contextmanager
def without_intrinsics() -> Iterator[None]:
    """Keep TVM from parsing its tensor intrinsics, of every GPU too, which takes it 15 s and which no space here uses.

    `TuneContext` imports them; within this block it finds an empty module in their place.
    """
    if INTRINSICS in sys.modules:
        yield
        return
    sys.modules[INTRINSICS] = ModuleType(INTRINSICS)
    try:
        yield
    finally:
        del sys.modules[INTRINSICS]


def context(
    schedule: Schedule, target: TvmTarget, space: ms.SpaceGenerator | None, threads: int, seed: int
) -> ms.TuneContext:
    """What MetaSchedule's parts want to know of the kernel in `schedule`."""
    strategy = None
    if space is not None:
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=64, init_min_unmeasured=8, genetic_num_iters=3, max_fail_count=5
        )
    with without_intrinsics():
        return ms.TuneContext(
            schedule.mod, target=target, space_generator=space, search_strategy=strategy, task_name="main",
            rand_state=seed, num_threads=threads, logger=_quiet(),
        )  # fmt: skip


def _quiet() -> ms.logging.Logger:
    logger = ms.logging.get_logger("deploy.tuning.meta_schedule")
    logger.setLevel("CRITICAL")
    return logger
