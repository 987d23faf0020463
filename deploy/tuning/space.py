"""The schedules that a task is searched over."""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import ScheduleError

from deploy.kernels import schedule as packed
from deploy.kernels.machine import Machine


def packed_schedules(sch: Schedule, machine: Machine) -> list[Schedule]:
    """Every variant of a packed kernel that can be applied."""
    found = []
    for variant in packed.variants(sch.mod["main"], machine):
        attempt = sch.copy()
        try:
            packed.apply(attempt, variant, machine)
        except ScheduleError:
            continue
        found.append(attempt)
    return found


def _generic(machine: Machine) -> ms.SpaceGenerator:
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


def space_for(func: tirx.PrimFunc, machine: Machine, measured: frozenset[str]) -> ms.SpaceGenerator | None:
    """The space of a kernel without the traces in `measured`; nothing where it is used up."""
    if not packed.is_packed(func):
        return _generic(machine)

    def fresh(sch: Schedule) -> list[Schedule]:
        return [s for s in packed_schedules(sch, machine) if str(s.trace) not in measured]

    if not fresh(Schedule(func)):
        return None
    return ms.space_generator.ScheduleFn(fresh, sch_rules=[], postprocs=[], mutator_probs={})


def strategy_for(func: tirx.PrimFunc) -> ms.SearchStrategy:
    """How a kernel's space is searched: a packed kernel has a hundred schedules and nothing to mutate."""
    if packed.is_packed(func):
        return ms.search_strategy.EvolutionarySearch(
            population_size=48, init_min_unmeasured=1, genetic_num_iters=1, max_fail_count=20
        )
    return ms.search_strategy.EvolutionarySearch(population_size=256, init_min_unmeasured=1)
