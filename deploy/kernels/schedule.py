"""How a packed kernel runs: one register block of accumulators, everything else around it.

The innermost loops keep `rows x columns` pixels times `vectors` vectors of channels in registers; each step of the
reduction loads `vectors` weights and multiplies each with the broadcast activations of the block's pixels (Goto and
van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). `variants` lists the ways worth trying,
best guess first: the first is what an untuned build runs, all of them are what the tuner searches.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm import tirx
from tvm.ir import Expr
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx.function import IndexMap

from deploy.kernels import dot_intrinsics  # noqa: F401  (a schedule names instructions, which must be known by then)
from deploy.kernels.buffers import buffer_bytes, element_bytes
from deploy.kernels.compute import ROLE
from deploy.kernels.machine import THREAD_STACK_BYTES, Machine
from deploy.kernels.quantized import DOT, PIXEL
from deploy.kernels.roles import blocks_by_role, is_packed, last_block

REDUCTION_AXIS = tirx.IterVar.CommReduce
PARALLEL_MACS = 200_000  # a smaller kernel is done before a second thread has started


@dataclass(frozen=True)
class Variant:
    """A register block, rows x columns of pixels by vectors of channels, and the order of the loops around it.

    weights_outside: a block of weights stays while all pixels pass by; otherwise all weights pass by each block of
    pixels. pad_rows: the padded input is made for a few rows at a time instead of for the whole image at once.
    unroll: steps of the reduction written out.
    """

    rows: int
    columns: int
    vectors: int
    weights_outside: bool = True
    pad_rows: bool = False
    unroll: int = 1


@dataclass(frozen=True)
class Problem:
    """What bounds a variant: pixels of one image, blocks of channels, and bytes that pass through the cache.

    steps: of the innermost loop of the reduction.
    """

    height: int
    width: int
    blocks: int
    steps: int
    depthwise: bool
    macs: int
    padded_bytes: int
    weight_bytes: int


def problem(func: tirx.PrimFunc) -> Problem:
    """The sizes of the packed kernel `func`."""
    sch = Schedule(func)
    found = blocks_by_role(sch)
    block = sch.get(found["accumulate"])
    data, weight = (region.source for region in block.reads[:2])
    *pixels, blocks, _lanes = (int(d) for d in block.writes[0].source.ty.shape)
    reductions = [int(axis.dom.extent) for axis in block.iter_vars if axis.iter_type == REDUCTION_AXIS]
    return Problem(
        height=pixels[-2] if len(pixels) > 1 else 1,
        width=pixels[-1],
        blocks=blocks,
        steps=reductions[-2] if DOT in block.annotations else reductions[-1],
        depthwise=len(weight.ty.shape) == 4 and DOT not in block.annotations,
        macs=prod(reductions) * prod(int(d) for d in block.writes[0].source.ty.shape),
        padded_bytes=buffer_bytes(data) if "pad" in found else 0,
        weight_bytes=buffer_bytes(weight),
    )


def _divisors(number: int, limit: int) -> list[int]:
    return [d for d in range(1, min(number, limit) + 1) if number % d == 0]


def _register_blocks(size: Problem, registers: int) -> list[Variant]:
    """Register blocks that fit, best first.

    A step costs `vectors` loads of weights and `pixels` broadcasts for their product of multiply-adds; a block of
    fewer than 8 sums cannot hide a multiply-add's latency (4 cycles on 2 ports). A depthwise step loads its
    activations as vectors, so they need registers too.
    """
    room = registers // 2 + 1 if size.depthwise else registers - 2
    found = [
        Variant(rows, columns, vectors)
        for vectors in _divisors(size.blocks, 8)
        for columns in _divisors(size.width, room)
        for rows in _divisors(size.height, 4)
        if rows * columns * vectors + vectors <= room or rows * columns == 1
    ]

    def cost(block: Variant) -> float:
        pixels = block.rows * block.columns
        sums = pixels * block.vectors
        return max(1.0, 8 / sums) * (1 + (pixels + block.vectors) / sums) + 0.01 * block.rows

    return sorted(found, key=cost)


def variants(func: tirx.PrimFunc, machine: Machine, count: int = 96) -> list[Variant]:
    """The schedules worth trying for the packed kernel `func`, best guess first."""
    size = problem(func)
    blocks = _register_blocks(size, machine.registers)
    large = size.padded_bytes > machine.cache_bytes or machine.micro is not None  # too large to lie there as a whole
    inside_first = large and size.padded_bytes > 0 and size.weight_bytes < machine.cache_bytes
    orders = [True, False] if not inside_first else [False, True]
    pads = [large]
    if size.padded_bytes and size.height > 1:
        pads.append(not pads[0])
    unrolls = [1, 4] if not size.depthwise and size.steps % 4 == 0 else [1]
    every = [
        Variant(b.rows, b.columns, b.vectors, order, pad and not order, unroll)
        for unroll in unrolls
        for order in orders
        for pad in pads
        for b in blocks[: count // 4]
    ]
    return list(dict.fromkeys(every))[:count]


def prepared(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A pointwise kernel with one axis for all pixels in its last block too; any other function as it is.

    This is done once, before a kernel is known to tuning: TVM cannot write the layout transformation to a log.
    """
    if not is_packed(func):
        return func
    sch = Schedule(func)
    found = blocks_by_role(sch)
    axes = len(sch.get(found["accumulate"]).writes[0].source.ty.shape)
    if axes > len(("pixel", "block", "lane")) or len(sch.get(found["unpack"]).iter_vars) <= len(("pixel", "channel")):
        return func
    last = last_block(sch, found)
    *extents, _ = (int(axis.dom.extent) for axis in sch.get(last).iter_vars)

    def one_axis(*at: tirx.Var) -> tuple[Expr, Expr]:
        pixel = at[0]
        for extent, index in zip(extents[1:], at[1:-1], strict=True):
            pixel = pixel * extent + index
        return pixel, at[-1]

    sch.transform_block_layout(last, IndexMap.from_func(one_axis, ndim=len(extents) + 1))
    # The same layout again, for its side effect: TVM simplifies the position that `last` reads to the new axis.
    # Otherwise it does not see that a block of pixels across the end of a row is one piece, and fails.
    sch.transform_layout(found["accumulate"], ("write", 0), IndexMap.from_func(lambda *at: at, ndim=axes))
    if ROLE not in sch.get(last).annotations:
        sch.annotate(last, ROLE, "unpack")
    return sch.mod["main"]


def apply(sch: Schedule, variant: Variant, machine: Machine) -> None:
    """Schedule the packed kernel in `sch`, which is `prepared`, as `variant` says."""
    threads = machine.threads if problem(sch.mod["main"]).macs >= PARALLEL_MACS else 1
    found = blocks_by_role(sch)
    accumulate = found["accumulate"]
    lanes = int(sch.get(accumulate).writes[0].source.ty.shape[-1])
    last = last_block(sch, found)
    *pixels, channel = sch.get_loops(last)
    channel_outer, vector, lane = sch.split(channel, [None, variant.vectors, lanes])
    column_outer, column = sch.split(pixels[-1], [None, variant.columns])
    outer, inner = list(pixels[:-1]), [column]
    if outer:
        outer[-1], row = sch.split(outer[-1], [None, variant.rows])
        inner = [row, column]
    around = [channel_outer, *outer, column_outer] if variant.weights_outside else [*outer, column_outer, channel_outer]
    sch.reorder(*around, *inner, vector, lane)
    sch.compute_at(accumulate, around[-1], preserve_unit_loops=True)
    reduction, innermost = _accumulate(sch, accumulate, len(around), variant.unroll)
    for loop in [*inner, vector]:
        sch.unroll(loop)
    sch.vectorize(lane)
    by_rows = variant.pad_rows and "pad" in found
    if "pad" in found:
        by_rows = _pad(sch, found["pad"], outer[-1] if by_rows and outer else None, machine, threads)
    if threads > 1:
        sch.parallel(sch.fuse(*outer if by_rows else around))
    start = sch.decompose_reduction(accumulate, reduction)
    if instruction := _instruction(sch, accumulate):
        sch.vectorize(sch.get_loops(start)[-1])
        sch.tensorize(innermost, instruction)


def _instruction(sch: Schedule, accumulate: SBlockRV) -> str | None:
    """The dot-product instruction that an integer accumulation is made for."""
    name = sch.get(accumulate).annotations.get(DOT)
    return None if name is None else str(name)


def _accumulate(sch: Schedule, accumulate: SBlockRV, outer: int, unroll: int) -> tuple[LoopRV, LoopRV]:
    """Put the reduction around the register block; its outermost loop, and the loop over lanes."""
    axes = sch.get(accumulate).iter_vars
    loops = sch.get_loops(accumulate)[outer:]
    reduction = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == REDUCTION_AXIS]
    spatial = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type != REDUCTION_AXIS]
    if _instruction(sch, accumulate):
        sch.reorder(*reduction[:-1], *spatial, reduction.pop())  # the products that one instruction adds up
    else:
        sch.reorder(*reduction, *spatial)
        sch.vectorize(spatial[-1])
    for loop in spatial[:-1]:
        sch.unroll(loop)
    if unroll > 1:
        reduction[-1], step = sch.split(reduction[-1], [None, unroll])
        sch.unroll(step)
    return reduction[0], spatial[-1]


def _pad(sch: Schedule, pad: SBlockRV, at: LoopRV | None, machine: Machine, threads: int) -> bool:
    """Vectorize the padding over the channels of a pixel; make it row by row under `at`, or all at once.

    Whether it is row by row: what a thread pads lies on its stack, so it may not be large.
    """
    pixel = int(sch.get(pad).annotations.get(PIXEL, 0))
    lanes = machine.lanes(8 * element_bytes(str(sch.get(pad).writes[0].source.ty.dtype)))
    if at is not None and threads > 1 and _bytes_at(sch, pad, at) > THREAD_STACK_BYTES // 2:
        at = None
    if at is not None:
        sch.compute_at(pad, at, preserve_unit_loops=True)
    *outer, channel = sch.get_loops(pad)
    extent = int(sch.get(channel).extent)
    lanes = min(lanes, extent & -extent, pixel & -pixel or lanes)
    if lanes > 1:
        _, inner = sch.split(channel, [None, lanes])
        sch.vectorize(inner)
    if threads > 1 and at is None:
        sch.parallel(sch.fuse(*outer[:2]))
    return at is not None


def _bytes_at(sch: Schedule, block: SBlockRV, loop: LoopRV) -> int:
    """Bytes of the block's output that one step of `loop` would compute."""
    trial = sch.copy()
    before = len(trial.get_loops(block))
    trial.compute_at(block, loop, preserve_unit_loops=True)
    buffer = trial.get(block).writes[0].source
    extents = [int(trial.get(inner).extent) for inner in trial.get_loops(block)[-before:]]
    return prod(extents) * element_bytes(str(buffer.ty.dtype))
