"""A plain schedule for kernels that are not packed: vectorized over the last axis, sums in registers, no search.

It is what an untuned build runs for pooling, softmax, transposes, normalizations and products of two computed
matrices; each transformation is applied only where it is legal and divides evenly.
"""

from __future__ import annotations

from math import prod

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV, ScheduleError

from deploy.kernels.machine import Machine

REDUCTION_AXIS = tirx.IterVar.CommReduce
ROWS = 4  # rows of a product computed together, so that each loaded vector is used that often
PARALLEL_WORK = 4096  # innermost iterations below which starting threads costs more than it saves


def _is_reduction(sch: Schedule, block: SBlockRV) -> bool:
    return any(axis.iter_type == REDUCTION_AXIS for axis in sch.get(block).iter_vars)


def _inline(sch: Schedule, block: SBlockRV) -> bool:
    """Inline an element-wise block into consumers that are element-wise too; whether that was possible."""
    consumers = sch.get_consumers(block)
    if not consumers or _is_reduction(sch, block) or any(_is_reduction(sch, c) for c in consumers):
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


def _elementwise(sch: Schedule, block: SBlockRV, machine: Machine) -> None:
    if not sch.get_loops(block):  # a scalar
        return
    *outer, last = sch.get_loops(block)
    extent = int(sch.get(last).extent)
    lanes = _lanes(extent, machine)
    if lanes > 1:
        last_outer, inner = sch.split(last, [None, lanes])
        sch.vectorize(inner)
        outer = [*outer, last_outer]
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


def _columns_sum(sch: Schedule, block: SBlockRV, machine: Machine) -> None:
    """A reduction whose last output axis is long enough for vectors: sums of one vector of outputs in registers."""
    spatial, reduction = _split_loops(sch, block)
    lanes = _lanes(int(sch.get(spatial[-1]).extent), machine)
    work = prod(int(sch.get(loop).extent) for loop in reduction) * lanes
    result = sch.cache_write(block, 0, "global")
    spatial, reduction = _split_loops(sch, block)
    last, lane = sch.split(spatial[-1], [None, lanes])
    inner = [lane]
    outer = [*spatial[:-1], last]
    if len(sch.get(block).reads) > 1 and len(spatial) > 1 and int(sch.get(spatial[-2]).extent) % ROWS == 0:
        row_outer, row = sch.split(spatial[-2], [None, ROWS])
        outer, inner = [*spatial[:-2], row_outer, last], [row, lane]
    sch.reorder(*outer, *reduction, *inner)
    sch.reverse_compute_at(result, outer[-1], preserve_unit_loops=True)
    for loop in inner[:-1]:
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.vectorize(sch.get_loops(result)[-1])
    _parallel(sch, outer, work, machine)
    sch.decompose_reduction(block, reduction[0])


def _reduce(sch: Schedule, block: SBlockRV, machine: Machine) -> None:
    spatial, reduction = _split_loops(sch, block)
    if not reduction:
        return
    if spatial and _lanes(int(sch.get(spatial[-1]).extent), machine) > 1 and len(sch.get(block).writes) == 1:
        _columns_sum(sch, block, machine)
    elif len(reduction) == 1 and spatial:
        _row_sum(sch, block, spatial, reduction[0], machine)


def schedule(func: tirx.PrimFunc, machine: Machine) -> Schedule:
    """A schedule for any static PrimFunc; one that a rule does not fit keeps that part as it was written."""
    sch = Schedule(func)
    root = sch.get_sblock("root", func_name="main")
    blocks = [block for block in sch.get_child_blocks(root) if not _inline(sch, block)]
    for block in blocks:
        attempt = sch.copy()
        rule = _reduce if _is_reduction(sch, block) else _elementwise
        try:
            rule(attempt, block, machine)
        except ScheduleError:
            continue
        sch = attempt
    return sch
