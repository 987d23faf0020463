"""How a kernel around micro-kernels runs: block after block of pixels, all channels of each.

The widened activations lie in a small buffer: the rows that one row of the result needs, or the pixels of one block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from deploy.kernels.buffers import element_bytes
from deploy.kernels.micro import intrinsics
from deploy.kernels.micro.compute import DEPTHWISE, MICRO, OVERWRITTEN, PLANE, WIDENED
from deploy.kernels.micro.helium import HeliumKernel
from deploy.kernels.micro.helium_compute import GATHERED
from deploy.kernels.micro.helium_depthwise import GROUP, GatheredKernel
from deploy.kernels.micro.portable import PortableDepthwise, PortableKernel
from deploy.kernels.micro.rows import DEPTHWISE as PORTABLE_DEPTHWISE
from deploy.kernels.micro.rows import RowKernel
from deploy.kernels.micro.smlad import MicroKernel
from deploy.kernels.micro.smlad_depthwise import DepthwiseKernel
from deploy.kernels.roles import blocks_by_role, is_packed, last_block

VECTOR = 4  # int32 in a register of Helium
SUMS_BYTES = (1024, 512, 2048, 256)  # that the sums of one channel's rows may take
FOUR_SUMS_BYTES = (2048, 1024, 512, 256)  # of four channels
READY_BYTES = 3584  # of activations; with the sums they stay below what is left on the stack
MOST_READY = 8  # rows, or blocks of pixels
UNROLLED = {8: 500_000, 16: 1_000_000}  # steps of a micro-kernel's loop, and the products of a kernel worth that flash
LONG_ROW = 64  # pairs of activations of one pixel
_MARKS = (MICRO, DEPTHWISE, HeliumKernel.mark, GATHERED, PortableKernel.mark, PORTABLE_DEPTHWISE)


@dataclass(frozen=True)
class MicroVariant:
    """What a kernel's schedule decides.

    rows: rows of the result, or blocks of pixels where all are one row, whose activations are made ready at once.
    weights_outside: a block of weights stays while all those pixels pass by. whole: all sums of a block of pixels come
    before what follows them. pixels_inside: what follows does all pixels of a block for one channel before the next.
    unroll: steps of the loop in a micro-kernel for `smlad` that are written out, or pixels of that behind a depthwise
    one. sums: bytes that those of one channel's rows may take, or of four channels'.
    """

    rows: int = 1
    weights_outside: bool = False
    whole: bool = False
    pixels_inside: bool = False
    unroll: int = 0
    sums: int = SUMS_BYTES[0]


def is_micro(func: tirx.PrimFunc) -> bool:
    """Whether `func` is a kernel around a micro-kernel, with a result of its own size."""
    if not is_packed(func):
        return False
    sch = Schedule(func)
    return any(_numbers(sch, name) is not None for name in _MARKS)


def _numbers(sch: Schedule, name: str) -> list[int] | None:
    """What an annotation of the accumulation says."""
    text = sch.get(blocks_by_role(sch)["accumulate"]).annotations.get(name)
    return None if text is None else [int(number) for number in str(text).split()]


def variants(func: tirx.PrimFunc) -> list[MicroVariant]:
    """The schedules worth trying, best guess first."""
    sch = Schedule(func)
    if _numbers(sch, MICRO) is not None:
        return [
            MicroVariant(rows, outside, whole, inside, unroll)
            for inside in (True, False)
            for whole in (False, True)
            for outside in (False, True)
            for rows in _rows_ready(sch)
            for unroll in _unrolls(sch)
            if not (outside and (whole or (rows == 1 and _is_one_row(sch))))
        ]
    if any(_numbers(sch, name) is not None for name in (HeliumKernel.mark, PortableKernel.mark)):
        return [MicroVariant(rows, pixels_inside=inside) for inside in (True, False) for rows in _rows_ready(sch)]
    sums_bytes = FOUR_SUMS_BYTES if _numbers(sch, GATHERED) is not None else SUMS_BYTES
    return [MicroVariant(sums=sums, unroll=unroll) for unroll in (0, 2, 4) for sums in sums_bytes]


def _unrolls(sch: Schedule) -> list[int]:
    """Steps of a micro-kernel's loop, 0 for as many as it has by itself; more take flash, which a long one is worth."""
    pixels, _, rows, pairs, *_ = _numbers(sch, MICRO) or []
    sums = sch.get(blocks_by_role(sch)["accumulate"]).writes[0].source.ty.shape
    macs = prod(map(int, sums)) * rows * pairs * 2
    worth = [steps for steps, least in UNROLLED.items() if macs >= least or (pixels == 1 and pairs >= LONG_ROW)]
    return [0, *(steps for steps in worth if pairs > steps)]


def _is_one_row(sch: Schedule) -> bool:
    """Whether the pixels of a kernel are computed as one row."""
    return len(sch.get(blocks_by_role(sch)["pad"]).iter_vars) == len(("row", "activation"))


def _rows_ready(sch: Schedule) -> list[int]:
    """Numbers of rows, or of blocks of pixels, whose activations may lie on the stack together."""
    found = blocks_by_role(sch)
    pad, sums = (sch.get(found[role]).writes[0].source for role in ("pad", "accumulate"))
    *_, height, length = (int(d) for d in pad.ty.shape)
    if _is_one_row(sch):
        pixels = next(numbers[0] for name in _MARKS if (numbers := _numbers(sch, name)) is not None)
        count = int(sums.ty.shape[-2]) // pixels
        nbytes = {n: n * length // count * _bytes(pad) for n in range(1, MOST_READY + 1)}
    else:
        count = int(sums.ty.shape[1])
        step = max(1, height // count)
        reach = max(1, height - step * (count - 1))
        nbytes = {n: ((n - 1) * step + reach) * length * _bytes(pad) for n in range(1, MOST_READY + 1)}
    return [n for n in nbytes if n == 1 or (count % n == 0 and nbytes[n] <= READY_BYTES)]


def _bytes(buffer: tirx.Buffer) -> int:
    return element_bytes(str(buffer.ty.dtype))


def apply(sch: Schedule, variant: MicroVariant) -> None:
    """Schedule the kernel in `sch`, which is `prepared`, as `variant` says."""
    depthwise = _numbers(sch, DEPTHWISE)
    if depthwise is not None:
        _depthwise(sch, variant, depthwise)
    elif (numbers := _numbers(sch, MICRO)) is not None:
        *sizes, dilation = numbers
        _product(sch, variant, _unrolling(MicroKernel(*sizes), variant.unroll), dilation)
    elif (numbers := _numbers(sch, HeliumKernel.mark)) is not None:
        *sizes, dilation = numbers
        _rows(sch, variant, HeliumKernel(*sizes), dilation)
    elif (numbers := _numbers(sch, PortableKernel.mark)) is not None:
        *sizes, dilation = numbers
        _rows(sch, variant, PortableKernel(*sizes), dilation)
    elif (numbers := _numbers(sch, GATHERED)) is not None:
        _gathered(sch, variant, numbers)
    elif (numbers := _numbers(sch, PORTABLE_DEPTHWISE)) is not None:
        _depthwise(sch, variant, numbers)


def _product(sch: Schedule, variant: MicroVariant, kernel: MicroKernel, dilation: int) -> None:
    found = blocks_by_role(sch)
    accumulate, pad = found["accumulate"], found["pad"]
    last = last_block(sch, found)
    *outer, pixel, channel = sch.get_loops(last)
    pixel_outer, pixel_inner = sch.split(pixel, [None, kernel.pixels])
    channel_outer, channel_inner = sch.split(channel, [None, kernel.channels])
    ready, within = _made_ready(sch, outer, pixel_outer, variant.rows)
    blocks = [channel_outer, *within] if variant.weights_outside else [*within, channel_outer]
    block = [channel_inner, pixel_inner] if variant.pixels_inside else [pixel_inner, channel_inner]
    sch.reorder(*blocks, *block)
    sch.compute_at(accumulate, within[-1] if variant.whole else blocks[-1], preserve_unit_loops=True)
    for loop in block:
        sch.unroll(loop)
    inner = sch.get_loops(accumulate)[-2 - _reductions(sch, accumulate) :]
    sch.compute_at(pad, ready, preserve_unit_loops=True)
    sch.annotate(sch.get_loops(pad)[-1], WIDENED, sch.get(pad).annotations[WIDENED])
    start = sch.decompose_reduction(accumulate, inner[0])
    for loop in sch.get_loops(start)[-2:]:
        sch.unroll(loop)
    whole = inner[0] if kernel.pixels > 1 else inner[1]
    sch.tensorize(whole, intrinsics.register(kernel, dilation))


def _unrolling(kernel: MicroKernel, steps: int) -> MicroKernel:
    return replace(kernel, unroll=steps) if steps else kernel


def _made_ready(sch: Schedule, outer: list[LoopRV], pixel_outer: LoopRV, rows: int) -> tuple[LoopRV, list[LoopRV]]:
    """The loop in which activations are made ready, and the loops over blocks of pixels that use them."""
    if not outer and rows == 1:
        return pixel_outer, [pixel_outer]
    if not outer:
        ready, block = sch.split(pixel_outer, [None, rows])
        return ready, [block]
    if rows == 1:
        return outer[-1], [pixel_outer]
    ready, row = sch.split(outer[-1], [None, rows])
    return ready, [row, pixel_outer]


def _rows(sch: Schedule, variant: MicroVariant, kernel: RowKernel, dilation: int) -> None:
    """A block of pixels at a time, all its channels; what follows the sums in vectors of channels, if there are any."""
    found = blocks_by_role(sch)
    accumulate, pad = found["accumulate"], found["pad"]
    last = last_block(sch, found)
    *outer, pixel, channel = sch.get_loops(last)
    pixel_outer, pixel_inner = sch.split(pixel, [None, kernel.pixels])
    ready, within = _made_ready(sch, outer, pixel_outer, variant.rows)
    sch.compute_at(accumulate, within[-1], preserve_unit_loops=True)
    if kernel.lanes > 1:
        count = int(sch.get(channel).extent)
        channel, lane = sch.split(channel, [None, min(VECTOR, count & -count)])
        sch.vectorize(lane)
    if variant.pixels_inside:
        sch.reorder(channel, pixel_inner)
        sch.unroll(pixel_inner)
    sch.compute_at(pad, ready, preserve_unit_loops=True)
    sch.annotate(sch.get_loops(pad)[-1], WIDENED, sch.get(pad).annotations[WIDENED])
    inner = sch.get_loops(accumulate)[-2 - _reductions(sch, accumulate) :]
    start = sch.decompose_reduction(accumulate, inner[0])
    sch.annotate(sch.get_loops(start)[-2], OVERWRITTEN, "yes")
    whole = _first_of_several(sch, inner)
    sch.tensorize(whole, intrinsics.register_rows(kernel, dilation))


def _depthwise(sch: Schedule, variant: MicroVariant, sizes: list[int]) -> None:
    """A channel at a time, a few rows of the result at a time."""
    columns, *window, turned = sizes
    kind = DepthwiseKernel if _numbers(sch, DEPTHWISE) is not None else PortableDepthwise
    found = blocks_by_role(sch)
    accumulate, pad = found["accumulate"], found["pad"]
    last = last_block(sch, found)
    batch, *pixels, channel = sch.get_loops(last)
    row, pixel = pixels[::-1] if turned else pixels
    rows = _rows_of(int(sch.get(row).extent), columns, variant.sums)
    row_outer, row_inner = sch.split(row, [None, rows])
    once, pixel = sch.split(pixel, [None, columns])  # an odd last sum is computed and dropped
    sch.reorder(batch, channel, row_outer, once, row_inner, pixel)
    sch.compute_at(accumulate, once, preserve_unit_loops=True)
    _unrolled(sch, pixel, variant.unroll)
    sch.compute_at(pad, channel, preserve_unit_loops=True)
    if kind is DepthwiseKernel:
        sch.storage_align(pad, 0, 2, 2, 0)
    sch.annotate(sch.get_loops(pad)[-2], PLANE, sch.get(pad).annotations[PLANE])
    inner = sch.get_loops(accumulate)[-2 - _reductions(sch, accumulate) :]
    start = sch.decompose_reduction(accumulate, inner[0])
    sch.annotate(sch.get_loops(start)[-2], OVERWRITTEN, "yes")
    whole = _first_of_several(sch, inner)
    sch.tensorize(whole, intrinsics.register_depthwise(kind(rows, columns, *window)))


def _gathered(sch: Schedule, variant: MicroVariant, sizes: list[int]) -> None:
    """Four channels at a time, a few rows of the result at a time, what follows in vectors of the four channels."""
    columns, *window = sizes
    found = blocks_by_role(sch)
    accumulate, pad = found["accumulate"], found["pad"]
    last = last_block(sch, found)
    batch, row, pixel, channel = sch.get_loops(last)
    rows = _rows_of(int(sch.get(row).extent), columns * GROUP, variant.sums)
    row_outer, row_inner = sch.split(row, [None, rows])
    group, lane = sch.split(channel, [None, GROUP])
    sch.reorder(batch, group, row_outer, row_inner, pixel, lane)
    sch.compute_at(accumulate, row_outer, preserve_unit_loops=True)
    _unrolled(sch, pixel, variant.unroll)
    sch.compute_at(pad, group, preserve_unit_loops=True)
    sch.annotate(sch.get_loops(pad)[-3], PLANE, sch.get(pad).annotations[PLANE])
    sch.vectorize(lane)
    inner = sch.get_loops(accumulate)[-3 - _reductions(sch, accumulate) :]
    start = sch.decompose_reduction(accumulate, inner[0])
    sch.annotate(sch.get_loops(start)[-3], OVERWRITTEN, "yes")
    kernel = GatheredKernel(rows, columns, *window)
    whole = _first_of_several(sch, inner)
    sch.tensorize(whole, intrinsics.register_gathered(kernel))


def _rows_of(height: int, width: int, nbytes: int) -> int:
    """Rows of sums, `width` each, that are computed at once."""
    return max(n for n in range(1, height + 1) if height % n == 0 and (n == 1 or n * width * 4 <= nbytes))


def _unrolled(sch: Schedule, loop: LoopRV, steps: int) -> None:
    """Write out so many steps of a loop, where they are a part of it."""
    if steps and int(sch.get(loop).extent) % steps == 0:
        sch.unroll(sch.split(loop, [None, steps])[1])


def _first_of_several(sch: Schedule, loops: list[LoopRV]) -> LoopRV:
    """The outermost loop of more than one step: blocks that tensorize compares have no other ones."""
    return next(loop for loop in loops if int(sch.get(loop).extent) > 1)


def _reductions(sch: Schedule, accumulate: SBlockRV) -> int:
    return sum(axis.iter_type == tirx.IterVar.CommReduce for axis in sch.get(accumulate).iter_vars)
