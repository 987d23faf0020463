"""Accumulators → quantized results, in plain Relax operators that fuse into the kernel that made the accumulators.

TFLite, with constants for the tensor or for each channel:

    int64 → multiply(m) → [add(sign)] → add(r) → right_shift(s) → int32 → add(zero point) → maximum → minimum → int8

TFLite rounds twice: to 31 bits less, a half upwards, and then to s - 31 bits less, a half away from zero. For results
that are not negative this is one rounding with r = 2^(s-1) + 2^30; for negative ones r is 2^31 less, which `sign`
= right_shift(63) * 2^31 adds; it is left out where a ReLU cuts negative results off anyway. Where TFLite rounds once,
r = 2^(s-1) and there is no `sign`.

ONNX Runtime and torch: float32 → multiply(scale) → [add(bias)] → round to even → add(zero point) → … → int8
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from deploy.integer.context import Array, Context, Output, Quantized, const
from deploy.integer.fixed_point import quantize_multiplier
from deploy.integer.once import rounds_alike
from deploy.integer.rules import RANGES, Scales

Pairs = Sequence[tuple[int, int]]


def requantize(
    ctx: Context, accumulator: relax.Expr, scales: Scales, out: Output, shape: Sequence[int] = (), bias: Any = None
) -> relax.Expr:
    """int32 or int64 `accumulator` * `scales`, quantized.

    `scales` has one element or those of `shape`, which is broadcast to the accumulator; `bias` (in units of the result,
    of the same shape) is for the formats that are defined in float.
    """
    if not ctx.rules.fixed_point:
        return from_float(ctx, ctx.emit(relax.op.astype(accumulator, "float32")), scales, out, shape, bias)
    pairs = [quantize_multiplier(float(scale)) for scale in np.atleast_1d(scales)]
    if str(accumulator.ty.dtype) == "int64":
        return finish(ctx, _reduced(ctx, accumulator, pairs, shape), out)
    return finish(ctx, rescale(ctx, accumulator, pairs, shape, positive=out.low >= out.zero_point), out)


def requantize_once(
    ctx: Context, accumulator: relax.Expr, scales: Scales, out: Output, shape: Sequence[int], largest: int
) -> relax.Expr:
    """`accumulator` (at most `largest`) * `scales`, quantized as LiteRT's fully connected kernel does.

    In integers where a multiplier gives the same results, else in float64 as LiteRT: for results of 16 bits.
    """
    low, high = out.low - out.zero_point, out.high - out.zero_point
    found = [rounds_alike(float(scale), low, high, largest) for scale in np.atleast_1d(scales)]
    pairs = [pair for pair in found if pair is not None]
    if len(pairs) < len(found):
        return _once_in_double(ctx, accumulator, scales, out, shape)
    return finish(ctx, rescale_once(ctx, accumulator, pairs, shape), out)


def _once_in_double(
    ctx: Context, accumulator: relax.Expr, scales: Scales, out: Output, shape: Sequence[int]
) -> relax.Expr:
    """round(accumulator * scale) in float64, a half away from zero: twice what truncation leaves is at least 1 then."""
    factors = const(np.reshape(scales, tuple(shape) if np.size(scales) > 1 else ()), "float64")
    value = ctx.emit(relax.op.multiply(ctx.emit(relax.op.astype(accumulator, "float64")), factors))
    # clamped while it is a number of any size; between whole numbers that is as good as later
    value = ctx.emit(relax.op.maximum(value, const(out.low - out.zero_point, "float64")))
    value = ctx.emit(relax.op.minimum(value, const(out.high - out.zero_point, "float64")))
    whole = ctx.emit(relax.op.astype(value, "int32"))
    rest = ctx.emit(relax.op.subtract(value, ctx.emit(relax.op.astype(whole, "float64"))))
    half = ctx.emit(relax.op.astype(ctx.emit(relax.op.add(rest, rest)), "int32"))
    return finish(ctx, ctx.emit(relax.op.add(whole, half)), out)


def rescale(
    ctx: Context, value: relax.Expr, pairs: Pairs, shape: Sequence[int] = (), left: int = 0, positive: bool = False
) -> relax.Expr:
    """value * 2^left * multiplier * 2^(shift - 31) for one pair, or one for each element of `shape`, rounded twice.

    `positive` says that a negative result is as good as 0.
    """
    multipliers, shifts = _columns(pairs)
    if left and (multipliers == 1 << 30).all() and not shifts.any():
        return ctx.emit(relax.op.left_shift(value, const(left - 1, str(value.ty.dtype))))  # exactly a half
    value = _wide(ctx, value)
    scaled = _times(ctx, value, multipliers << (np.maximum(shifts, 0) + left), shape)
    second = np.maximum(-shifts, 0)
    if second.any() and not positive:
        negative = ctx.emit(relax.op.right_shift(value, const(63, "int64")))  # -1 or 0
        down = _times(ctx, negative, np.where(second > 0, 1 << 31, 0), shape)
        scaled = ctx.emit(relax.op.add(scaled, down))
    rounding = np.where(second > 0, np.left_shift(1, 30 + second) + (1 << 30), 1 << 30)
    return _shifted(ctx, scaled, rounding, 31 + second, shape)


def rescale_once(ctx: Context, value: relax.Expr, pairs: Pairs, shape: Sequence[int] = ()) -> relax.Expr:
    """value * multiplier * 2^(shift - 31) for one pair, or one for each element of `shape`, a half upwards."""
    multipliers, shifts = _columns(pairs)
    scaled = _times(ctx, _wide(ctx, value), multipliers, shape)
    return _shifted(ctx, scaled, np.left_shift(1, 30 - shifts), 31 - shifts, shape)


def _reduced(ctx: Context, value: relax.Expr, pairs: Pairs, shape: Sequence[int]) -> relax.Expr:
    """A sum of products of 16-bit activations: TFLite scales those 64-bit numbers by multipliers cut to 16 bits."""
    multipliers, shifts = _columns(pairs)
    short = np.where(multipliers < 0x7FFF0000, (multipliers + (1 << 15)) >> 16, 0x7FFF)
    return _shifted(ctx, _times(ctx, value, short, shape), np.left_shift(1, 14 - shifts), 15 - shifts, shape)


def _columns(pairs: Pairs) -> tuple[Array, Array]:
    columns = np.array(pairs, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _wide(ctx: Context, value: relax.Expr) -> relax.Expr:
    return value if str(value.ty.dtype) == "int64" else ctx.emit(relax.op.astype(value, "int64"))


def _operand(values: Array, shape: Sequence[int]) -> relax.Expr:
    """One number, or the array in `shape`."""
    return const(values[0], "int64") if values.size == 1 else const(values.reshape(tuple(shape)), "int64")


def _times(ctx: Context, value: relax.Expr, factors: Array, shape: Sequence[int]) -> relax.Expr:
    return ctx.emit(relax.op.multiply(value, _operand(factors, shape)))


def _shifted(ctx: Context, value: relax.Expr, rounding: Array, shifts: Array, shape: Sequence[int]) -> relax.Expr:
    rounded = ctx.emit(relax.op.add(value, _operand(rounding, shape)))
    return ctx.emit(relax.op.right_shift(rounded, _operand(shifts, shape)))


def finish(ctx: Context, value: relax.Expr, out: Output) -> relax.Expr:
    """Zero point, clamp and type of a result that is scaled already, in 32 bits."""
    value = value if str(value.ty.dtype) == "int32" else ctx.emit(relax.op.astype(value, "int32"))
    if out.zero_point:
        value = ctx.emit(relax.op.add(value, const(out.zero_point, "int32")))
    return ctx.emit(relax.op.astype(clamp(ctx, value, out.low, out.high), out.dtype))


def clamp(ctx: Context, value: relax.Expr, low: int, high: int) -> relax.Expr:
    """value limited to low … high."""
    dtype = str(value.ty.dtype)
    smallest, largest = RANGES.get(dtype, (None, None))
    if low != smallest:
        value = ctx.emit(relax.op.maximum(value, const(low, dtype)))
    return value if high == largest else ctx.emit(relax.op.minimum(value, const(high, dtype)))


def from_float(
    ctx: Context, value: relax.Expr, scales: Scales, out: Output, shape: Sequence[int] = (), bias: Any = None
) -> relax.Expr:
    """float32 `value` * `scales` + `bias`, rounded to even and quantized."""
    target = tuple(shape) if np.size(scales) > 1 else ()
    value = ctx.emit(relax.op.multiply(value, const(np.reshape(scales, target), "float32")))
    if bias is not None:
        value = ctx.emit(relax.op.add(value, const(np.reshape(bias, tuple(shape)), "float32")))
    return _to_type(ctx, value, out)


def from_real(ctx: Context, value: relax.Expr, out: Output) -> relax.Expr:
    """A real number in float32 in units of the scale, rounded to even and quantized."""
    inverse = ctx.rules.inverse(out.scale)
    operation, factor = (relax.op.divide, out.scale) if inverse is None else (relax.op.multiply, inverse)
    return _to_type(ctx, ctx.emit(operation(value, const(factor, "float32"))), out)


def from_computed(ctx: Context, value: relax.Expr, scale: relax.Expr, zero_point: relax.Expr, dtype: str) -> relax.Expr:
    """A real number in float32 quantized to `dtype`, with a scale and a zero point that the model computes."""
    value = ctx.emit(relax.op.round(ctx.emit(relax.op.divide(value, scale))))
    value = ctx.emit(relax.op.add(value, ctx.emit(relax.op.astype(zero_point, "float32"))))
    low, high = RANGES[dtype]
    value = ctx.emit(relax.op.maximum(value, const(low, "float32")))
    value = ctx.emit(relax.op.minimum(value, const(high, "float32")))
    return ctx.emit(relax.op.astype(ctx.emit(relax.op.astype(value, "int32")), dtype))


def real(ctx: Context, tensor: Quantized) -> relax.Expr:
    """The real numbers of a quantized tensor in float32, as a dequantization gives them."""
    wide = ctx.emit(relax.op.astype(ctx.centered(tensor, "int32"), "float32"))
    return ctx.emit(relax.op.multiply(wide, const(tensor.scale, "float32")))


def _to_type(ctx: Context, value: relax.Expr, out: Output) -> relax.Expr:
    value = ctx.emit(relax.op.round(value))
    # clamped while it is float: the conversion of a number outside the integer type's range is undefined
    low, high = out.low - out.zero_point, out.high - out.zero_point
    value = ctx.emit(relax.op.maximum(value, const(low, "float32")))
    value = ctx.emit(relax.op.minimum(value, const(high, "float32")))
    value = ctx.emit(relax.op.astype(value, "int32"))
    if out.zero_point:
        value = ctx.emit(relax.op.add(value, const(out.zero_point, "int32")))
    return ctx.emit(relax.op.astype(value, out.dtype))


def convert(ctx: Context, tensor: Quantized, out: Output) -> relax.Expr:
    """A quantized tensor in another quantization."""
    if tensor.same_scale(out) and tensor.dtype == out.dtype:
        return clamp(ctx, tensor.value, out.low, out.high)
    if ctx.rules.inverse(out.scale) is not None:  # two factors, each rounded: one would round a half otherwise
        return from_real(ctx, real(ctx, tensor), out)
    ratio = ctx.rules.ratio(tensor.scale, out.scale, in_float=out.activated)
    return requantize(ctx, ctx.centered(tensor, "int32"), np.array([ratio]), out)
