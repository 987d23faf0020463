"""TFLite operators that move or copy elements, on tensors of any type: LiteRT moves what is stored, whatever it means.

Places are computed as LiteRT does, where need be in float32, so a resize reads the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from tvm import relax

from deploy.relax_tflite_operator import Operator, Unsupported, reshaped, shape_of

_REFLECT = 0  # schema.MirrorPadMode


def reshape(op: Operator) -> relax.Expr:
    """A reshape, to the shape of a constant operand or of the options."""
    data = op.expr(0)
    if op.has(1) and op.is_constant(1):
        target = op.values(1)
    elif op.options is not None and op.options.newShape is not None and not op.has(1):
        target = [int(size) for size in op.options.newShape]
    else:
        raise Unsupported("its shape is computed, not constant")
    if target == [0]:  # the oldest converters wrote a scalar so
        target = []
    if -1 in target:
        rest = int(np.prod([size for size in target if size != -1]))
        target = [int(np.prod(shape_of(data))) // rest if size == -1 else size for size in target]
    return reshaped(op, data, target)


def squeeze(op: Operator) -> relax.Expr:
    """Axes of size 1 removed: those named, or all."""
    data = op.expr(0)
    shape = shape_of(data)
    named = op.options.squeezeDims if op.options is not None else None
    gone = [int(axis) % len(shape) for axis in named] if named is not None and len(named) else None
    kept = [size for axis, size in enumerate(shape) if (axis not in gone if gone is not None else size != 1)]
    return reshaped(op, data, kept)


def expand_dims(op: Operator) -> relax.Expr:
    """A new axis of size 1."""
    data = op.expr(0)
    (axis,) = op.values(1)
    shape = list(shape_of(data))
    shape.insert(axis if axis >= 0 else axis + len(shape) + 1, 1)
    return reshaped(op, data, shape)


def strided_slice(op: Operator) -> relax.Expr:
    """x[begin:end:stride, …] with the masks of NumPy's indexing."""
    data, options = op.expr(0), op.options
    begins, ends, strides = (op.values(number) for number in (1, 2, 3))
    shape = shape_of(data)
    ranges: list[range] = []
    kept: list[int] = []
    for number, stride in enumerate(strides):
        bit = 1 << number
        if bit & options.ellipsisMask:
            later = range(number + 1, len(strides))
            count = len(shape) - len(ranges) - sum(1 for n in later if not options.newAxisMask & (1 << n))
            kept += shape[len(ranges) : len(ranges) + count]
            ranges += [range(size) for size in shape[len(ranges) : len(ranges) + count]]
        elif bit & options.newAxisMask:
            kept.append(1)
        else:
            size = shape[len(ranges)]
            first = None if bit & options.beginMask else begins[number]
            start = slice(first, None, stride).indices(size)[0]
            if bit & options.shrinkAxisMask:
                ranges.append(range(start, start + 1))
                continue
            last = None if bit & options.endMask else ends[number] + (start if options.offset else 0)
            ranges.append(range(*slice(first, last, stride).indices(size)))
            kept.append(len(ranges[-1]))
    kept += shape[len(ranges) :]
    return reshaped(op, _taken(op, data, ranges), kept)


def _taken(op: Operator, data: relax.Expr, ranges: Sequence[range]) -> relax.Expr:
    """The elements at these places of the first axes. A range downwards is one upwards, reversed."""
    if any(len(places) == 0 for places in ranges):
        raise Unsupported("it takes nothing")
    upwards = [places if places.step > 0 else places[::-1] for places in ranges]
    axes = [axis for axis, places in enumerate(upwards) if places != range(shape_of(data)[axis])]
    if axes:
        begin, end, step = zip(*((upwards[a].start, upwards[a][-1] + 1, upwards[a].step) for a in axes), strict=True)
        data = op.emit(relax.op.strided_slice(data, axes, list(begin), list(end), list(step)))
    for axis, places in enumerate(ranges):
        if places.step < 0 and len(places) > 1:
            data = op.emit(relax.op.flip(data, axis))
    return data


def pad(op: Operator) -> relax.Expr:
    """PAD and PADV2: by a constant, or by what stands for zero."""
    value = 0.0
    quantization = op.output_quantization()
    if op.has(2):
        value = float(op.value(2).ravel()[0])
    elif quantization is not None:
        value = float(quantization.zero_point[0])
    return _padded(op, op.expr(0), op.values(1), value)


def _padded(op: Operator, data: relax.Expr, width: list[int], value: float) -> relax.Expr:
    return op.emit(relax.op.nn.pad(data, width, pad_value=value)) if any(width) else data


def mirror_pad(op: Operator) -> relax.Expr:
    """Padding by the elements at the border in reverse: without the outermost (REFLECT) or with it (SYMMETRIC)."""
    data = op.expr(0)
    skip = 1 if op.options.mode == _REFLECT else 0
    for axis, (before, after) in enumerate(op.value(1).reshape(-1, 2).tolist()):
        size = shape_of(data)[axis]
        places = np.arange(-before, size + after)
        places = np.where(places < 0, -places - 1 + skip, places)
        places = np.where(places >= size, 2 * size - 1 - skip - places, places)
        data = _gathered(op, data, places, axis)
    return data


def _gathered(op: Operator, data: relax.Expr, places: np.ndarray, axis: int) -> relax.Expr:
    """The elements at constant places of an axis."""
    if np.array_equal(places, np.arange(shape_of(data)[axis])):
        return data
    return op.emit(relax.op.take(data, relax.const(places.astype(np.int32), "int32"), axis=axis, mode="clip"))


def resize_nearest(op: Operator) -> relax.Expr:
    """The nearest pixel of [N, H, W, C]."""
    data, align, half = op.expr(0), bool(op.options.alignCorners), bool(op.options.halfPixelCenters)
    for axis, target in zip((1, 2), op.values(1), strict=True):
        places = _nearest(shape_of(data)[axis], target, align, half)
        data = _gathered(op, data, places, axis)
    return data


def _nearest(size: int, target: int, align: bool, half: bool) -> np.ndarray:
    offset = np.float32(0.5 if half else 0)
    corners = align and target > 1
    scale = np.float32(size - 1) / np.float32(target - 1) if corners else np.float32(size) / np.float32(target)
    places = (np.arange(target).astype(np.float32) + offset) * scale
    whole = np.floor(places.astype(np.float64) + (0.5 if align else 0.0))
    return np.clip(whole.astype(np.int64), 0, size - 1)


def space_to_batch(op: Operator) -> relax.Expr:
    """[N, H, W, …] → [N * blocks, H / block, W / block, …], padded by what stands for zero."""
    data, block, rank = op.expr(0), op.values(1), len(shape_of(op.expr(0)))
    quantization = op.output_quantization()
    value = 0.0 if quantization is None else float(quantization.zero_point[0])
    width = [0, 0, *op.values(2), *[0] * (2 * (rank - 1 - len(block)))]
    data = _padded(op, data, width, value)
    batch, *sizes = shape_of(data)
    spatial, rest = sizes[: len(block)], sizes[len(block) :]
    split = [part for size, b in zip(spatial, block, strict=True) for part in (size // b, b)]
    order = [*range(2, 2 * len(block) + 1, 2), 0, *range(1, 2 * len(block), 2)]
    order += range(2 * len(block) + 1, 2 * len(block) + 1 + len(rest))
    moved = op.emit(relax.op.permute_dims(reshaped(op, data, [batch, *split, *rest]), order))
    shape = [batch * int(np.prod(block)), *(size // b for size, b in zip(spatial, block, strict=True)), *rest]
    return reshaped(op, moved, shape)


def batch_to_space(op: Operator) -> relax.Expr:
    """The reverse of space_to_batch, cropped."""
    data, block, crops = op.expr(0), op.values(1), op.values(2)
    batch, *sizes = shape_of(data)
    spatial, rest, count = sizes[: len(block)], sizes[len(block) :], len(block)
    outer = batch // int(np.prod(block))
    order = [count, *(axis for n in range(count) for axis in (count + 1 + n, n))]
    order += range(2 * count + 1, 2 * count + 1 + len(rest))
    split = reshaped(op, data, [*block, outer, *spatial, *rest])
    grown = [size * b for size, b in zip(spatial, block, strict=True)]
    joined = reshaped(op, op.emit(relax.op.permute_dims(split, order)), [outer, *grown, *rest])
    inside = [range(crops[2 * n], size - crops[2 * n + 1]) for n, size in enumerate(grown)]
    return _taken(op, joined, [range(outer), *inside])


CONVERTERS: Mapping[str, Callable[[Operator], relax.Expr]] = MappingProxyType(
    {
        "RESHAPE": reshape,
        "SQUEEZE": squeeze,
        "EXPAND_DIMS": expand_dims,
        "STRIDED_SLICE": strided_slice,
        "PAD": pad,
        "PADV2": pad,
        "MIRROR_PAD": mirror_pad,
        "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
        "SPACE_TO_BATCH_ND": space_to_batch,
        "BATCH_TO_SPACE_ND": batch_to_space,
    }
)
