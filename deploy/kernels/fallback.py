"""A plain schedule for kernels that are not packed: vectorized over the last axis, sums in registers, no search.

It is what an untuned build runs for pooling, softmax, transposes, normalizations and products of two computed
matrices; each transformation is applied only where it is legal and divides evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV, ScheduleError

from deploy.kernels.machine import Machine

REDUCTION_AXIS = tirx.IterVar.CommReduce
ROWS = 4  # rows of a product computed together, so that each loaded vector is used that often
PARALLEL_WORK = 4096  # innermost iterations below which starting threads costs more than it saves


@dataclass(frozen=True)
class Plan:
    """What an untuned build leaves as it is: steps of an element-wise loop, and of a sum's columns, written out."""

    unroll: int = 1
    columns: int = 1


def plans(machine: Machine) -> list[Plan]:
    """What is worth trying, best guess first: on a microcontroller every instruction around a loop's body counts."""
    if not machine.microcontroller:
        return [Plan()]
    columns = (2, 4, 1, 8) if machine.lanes(32) == 1 else (4, 2, 1, 8)
    return [Plan(unroll, column) for column in columns for unroll in (1, 2, 4)]


def _is_reduction(sch: Schedule, block: SBlockRV) -> bool:
    return any(axis.iter_type == REDUCTION_AXIS for axis in sch.get(block).iter_vars)


def _inline(sch: Schedule, block: SBlockRV, machine: Machine) -> bool:
    """Inline an element-wise block into consumers that are element-wise too; whether that was possible.

    A microcontroller has no memory for a tensor between an element-wise block and the only sum that reads it.
    """
    consumers = sch.get_consumers(block)
    alone = len(consumers) == 1 and machine.microcontroller
    if not consumers or _is_reduction(sch, block) or (not alone and any(_is_reduction(sch, c) for c in consumers)):
        return False
    try:
        sch.compute_inline(block)
    except ScheduleError:
        return False
    return True


def _lanes(extent: int, machine: Machine) -> int:
    """The widest vector that divides `extent`."""
    return min(extent & -extent, machine.lanes(32))


def _parallel(sch: Schedule, loops: list[LoopRV], inner_work: int, machine: Machine) -> None:
    extents = [int(sch.get(loop).extent) for loop in loops]
    if machine.threads > 1 and prod(extents) > 1 and prod(extents) * inner_work >= PARALLEL_WORK:
        sch.parallel(sch.fuse(*loops))


def _divisor(extent: int, limit: int) -> int:
    return max(d for d in range(1, limit + 1) if extent % d == 0)


def _elementwise(sch: Schedule, block: SBlockRV, machine: Machine, plan: Plan) -> None:
    if not sch.get_loops(block):  # a scalar
        return
    *outer, last = sch.get_loops(block)
    extent = int(sch.get(last).extent)
    lanes = _lanes(extent, machine)
    if lanes > 1:
        last_outer, inner = sch.split(last, [None, lanes])
        sch.vectorize(inner)
        last = last_outer
        outer = [*outer, last]
    if (steps := _divisor(extent // lanes, plan.unroll)) > 1:
        _, step = sch.split(last, [None, steps])
        sch.unroll(step)
    else:
        _parallel(sch, outer, lanes, machine)


def _split_loops(sch: Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    axes = sch.get(block).iter_vars
    loops = sch.get_loops(block)
    if len(loops) != len(axes):
        return [], []
    kinds = [axis.iter_type == REDUCTION_AXIS for axis in axes]
    spatial = [loop for loop, reduces in zip(loops, kinds, strict=True) if not reduces]
    return spatial, [loop for loop, reduces in zip(loops, kinds, strict=True) if reduces]


def _row_sum(sch: Schedule, block: SBlockRV, spatial: list[LoopRV], reduction: LoopRV, machine: Machine) -> None:
    """A reduction along the last axis: `lanes` partial results, combined at the end."""
    lanes = _lanes(int(sch.get(reduction).extent), machine)
    if lanes < 2 or len(sch.get(block).writes) > 1:
        _parallel(sch, spatial, int(sch.get(reduction).extent), machine)
        return
    _, lane = sch.split(reduction, [None, lanes])
    partial = sch.rfactor(lane, factor_axis=len(spatial))
    outer = sch.get_loops(partial)[: len(spatial)]
    *_, step, vector = sch.get_loops(partial)
    sch.reorder(step, vector)
    sch.vectorize(vector)
    for loops in (outer, sch.get_loops(block)[: len(spatial)]):
        _parallel(sch, loops, lanes, machine)
    sch.decompose_reduction(partial, step)


def _columns_sum(sch: Schedule, block: SBlockRV, machine: Machine, plan: Plan) -> None:
    """A reduction whose last output axis is long enough: sums of one vector of outputs, or of a few, in registers."""
    spatial, reduction = _split_loops(sch, block)
    extent = int(sch.get(spatial[-1]).extent)
    lanes = _lanes(extent, machine)
    columns = _divisor(extent // lanes, plan.columns)
    work = prod(int(sch.get(loop).extent) for loop in reduction) * lanes
    result = sch.cache_write(block, 0, "global")
    spatial, reduction = _split_loops(sch, block)
    last, *inner = sch.split(spatial[-1], [None, *([columns] if columns > 1 else []), *([lanes] if lanes > 1 else [])])
    outer = [*spatial[:-1], last]
    if len(sch.get(block).reads) > 1 and len(spatial) > 1 and int(sch.get(spatial[-2]).extent) % ROWS == 0:
        row_outer, row = sch.split(spatial[-2], [None, ROWS])
        outer, inner = [*spatial[:-2], row_outer, last], [row, *inner]
    sch.reorder(*outer, *reduction, *inner)
    sch.reverse_compute_at(result, outer[-1], preserve_unit_loops=True)
    for loop in inner[:-1]:
        sch.unroll(loop)
    for loop in (inner[-1], sch.get_loops(result)[-1]):
        (sch.vectorize if lanes > 1 else sch.unroll)(loop)
    _parallel(sch, outer, work, machine)
    sch.decompose_reduction(block, reduction[0])


def _reduce(sch: Schedule, block: SBlockRV, machine: Machine, plan: Plan) -> None:
    spatial, reduction = _split_loops(sch, block)
    if not reduction:
        return
    extent = int(sch.get(spatial[-1]).extent) if spatial else 1
    width = _lanes(extent, machine) * _divisor(extent // _lanes(extent, machine), plan.columns)
    if spatial and width > 1 and len(sch.get(block).writes) == 1:
        _columns_sum(sch, block, machine, plan)
    elif len(reduction) == 1 and spatial:
        _row_sum(sch, block, spatial, reduction[0], machine)


def schedule(func: tirx.PrimFunc, machine: Machine, plan: Plan | None = None) -> Schedule:
    """A schedule for any static PrimFunc; one that a rule does not fit keeps that part as it was written."""
    sch, plan = Schedule(func), plan or plans(machine)[0]
    root = sch.get_sblock("root", func_name="main")
    blocks = [block for block in sch.get_child_blocks(root) if not _inline(sch, block, machine)]
    for block in blocks:
        attempt = sch.copy()
        rule = _reduce if _is_reduction(sch, block) else _elementwise
        try:
            rule(attempt, block, machine, plan)
        except ScheduleError:
            continue
        sch = attempt
    return sch
