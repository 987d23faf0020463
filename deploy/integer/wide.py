"""TFLite's functions of 16-bit tensors: tables of a few hundred values with straight lines between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.integer import fixed_point as fp
from deploy.integer.context import Array, Context, Output, Quantized, Stays, const
from deploy.integer.requantize import finish, rescale
from deploy.integer.rules import Float
from deploy.relax_rewrite import op_name

FRACTION = Float(1 / 32768)  # the scale of a result between -1 and 1
_STEPS = 512  # straight lines of a table for all 16-bit numbers
_SUM_BITS = 14  # of a softmax' sum, which is at least 2^15 - 1, these do not tell how long it is


def function(ctx: Context, call: Call, tensor: Quantized, out: Output) -> relax.Expr:
    """Logistic, tanh or leaky ReLU of `tensor`. Raises Stays."""
    name = op_name(call)
    if name in ("relax.sigmoid", "relax.tanh"):
        if out.scale != FRACTION or out.zero_point or out.dtype != "int16" or tensor.zero_point:
            raise Stays("TFLite's result of it has a scale of 1/32768")
        return _curve(ctx, tensor, name == "relax.tanh")
    if name == "relax.nn.leakyrelu":
        return _leaky(ctx, float(call.attrs.alpha), tensor, out)
    raise Stays(f"TFLite's integer form of {name.removeprefix('relax.')} for 16 bits is not known here")


def _curve(ctx: Context, tensor: Quantized, is_tanh: bool) -> relax.Expr:
    """The logistic function, or tanh(x) = 2 logistic(2x) - 1, by one table of the logistic function from 0 upwards.

    The other half is the reverse of this one: `sign` is -1 for negative numbers, else 0, and value ^ sign then is
    -value - 1 or value.
    """
    multiplier, shift = _table_scale(tensor.scale, is_tanh)
    bits = 8 if is_tanh else 9  # behind the place in the table
    value = _times(ctx, ctx.emit(relax.op.astype(tensor.value, "int32")), multiplier)
    if shift:
        value = _shifted(ctx, _plus(ctx, value, 1 << (shift - 1)), shift)
    sign, size = _shifted(ctx, value, 31), ctx.emit(relax.op.abs(value))
    place = ctx.emit(relax.op.minimum(_shifted(ctx, size, bits), const(255, "int32")))
    table = _logistic_table()
    starts = np.append(table[:255] << bits, 0xFFFF << 8 if is_tanh else 0x7FFF << 10)
    slopes = np.append(np.diff(table), 0)
    between = ctx.emit(relax.op.bitwise_and(size, const((1 << bits) - 1, "int32")))
    rise = ctx.emit(relax.op.multiply(_take(ctx, slopes, place, "int16"), between))
    result = ctx.emit(relax.op.add(_take(ctx, starts, place, "int32"), rise))
    result = _plus(ctx, result, -(1 << 23)) if is_tanh else result
    result = ctx.emit(relax.op.bitwise_xor(result, sign))
    if not is_tanh:
        result = ctx.emit(relax.op.add(result, ctx.emit(relax.op.bitwise_and(sign, const(1 << 25, "int32")))))
    kept = bits if is_tanh else bits + 1  # are below the last of a result
    result = _shifted(ctx, _plus(ctx, result, 1 << (kept - 1)), kept)
    return ctx.emit(relax.op.astype(result, "int16"))


def _table_scale(scale: Float, is_tanh: bool) -> tuple[int, int]:
    """(multiplier, shift) that bring a scale to that of the table's places, 1 / (3 * 4096)."""
    power = Float(np.log(scale)) * (Float(1) / Float(np.log(Float(2))))
    left = 12 + int(np.rint(power))
    if abs(power - np.rint(power)) < 1e-3 and left in ((0, 1) if is_tanh else (0,)):
        return 3 << left, 0
    multiplier, shift = float(scale) * 4096.0 * 3.0, 0
    while multiplier <= 32767.0 / 2.0 and shift <= 30:
        multiplier, shift = multiplier * 2.0, shift + 1
    if int(multiplier) > 32767:
        raise Stays("its operand's scale is too large")
    return int(multiplier), shift


def _logistic_table() -> Array:
    """65536 / (1 + exp(-i / 24)), moved by half of what a straight line to the next one misses in the middle."""
    exact = 65536 / (1 + np.exp(-np.arange(0, 256.5, 0.5) / 24))
    at, middle, after = exact[:-1:2], exact[1::2], exact[2::2]
    table = np.floor(at + (middle - (at + after) / 2) / 2 + 0.5).astype(np.int64)
    table[-1] = 65535
    return table


def _leaky(ctx: Context, alpha: float, tensor: Quantized, out: Output) -> relax.Expr:
    """Both halves scaled: each is 0 where the other is not."""
    identity = fp.quantize_multiplier(ctx.rules.ratio(tensor.scale, out.scale, in_float=True))
    below = fp.quantize_multiplier(float(abs(tensor.scale * Float(alpha) / out.scale)))
    value, zero = ctx.centered(tensor, "int32"), const(0, "int32")
    positive = rescale(ctx, ctx.emit(relax.op.maximum(value, zero)), [identity])
    negative = rescale(ctx, ctx.emit(relax.op.minimum(value, zero)), [below])
    combine = relax.op.subtract if alpha < 0 else relax.op.add
    return finish(ctx, ctx.emit(combine(positive, negative)), out)


def softmax(ctx: Context, data: Quantized, beta: Float, shape: tuple[int, ...], out: Output) -> relax.Expr:
    """A softmax over the last axis of `shape`. Raises Stays."""
    if out.dtype != "int16" or out.scale != FRACTION or out.zero_point or data.zero_point:
        raise Stays("TFLite has no integer form of it with this quantization")
    if shape[-1] > 1 << 12:
        raise Stays("TFLite's integer form of it is not known here for this length")
    largest = ctx.emit(relax.op.max(data.value, axis=[-1], keepdims=True))
    wide = [ctx.emit(relax.op.astype(value, "int32")) for value in (data.value, largest)]
    scale = float(Float(data.scale) * beta) / (10.0 / 65535.0)
    moved = rescale(ctx, ctx.emit(relax.op.subtract(*wide)), [fp.quantize_multiplier(scale)])
    moved = _plus(ctx, ctx.emit(relax.op.astype(moved, "int32")), 32767)
    exponentials = _interpolated(ctx, _limited(ctx, moved), _lines(math.exp, -10.0, 0.0))
    total = ctx.emit(relax.op.sum(exponentials, axis=[-1], keepdims=True))
    length = np.array([_SUM_BITS + i.bit_length() for i in range(2 * shape[-1] + 1)])  # in bits, by the upper ones
    upper = _shifted(ctx, total, _SUM_BITS)
    left = _take(ctx, 31 - length, upper, "int64")
    full = ctx.emit(relax.op.left_shift(ctx.emit(relax.op.astype(total, "int64")), left))
    full = _shifted(ctx, _plus(ctx, full, 1 << 13, "int64"), 14, "int64")
    full = _plus(ctx, ctx.emit(relax.op.astype(full, "int32")), -(1 << 15) - (1 << 16))
    inverse = _interpolated(ctx, _limited(ctx, full), _lines(lambda x: 1.0 / (1.0 + x), 0.0, 1.0))
    result = ctx.emit(relax.op.multiply(exponentials, inverse))
    result = ctx.emit(relax.op.add(result, _take(ctx, np.left_shift(1, length - 2), upper, "int32")))
    result = ctx.emit(relax.op.right_shift(result, _take(ctx, length - 1, upper, "int32")))
    result = ctx.emit(relax.op.maximum(result, const(0, "int32")))
    return ctx.emit(relax.op.astype(ctx.emit(relax.op.minimum(result, const(32767, "int32"))), "int16"))


def _lines(exact: Callable[[float], float], first: float, last: float) -> Array:
    """513 values from -1 to 1 in units of 2 / 65535, at the ends of straight lines over the 16-bit numbers.

    `first` and `last` are what the smallest and the largest of these mean. Each value is moved by half of what its line
    misses in the middle.
    """
    unit = 2.0 / 65535
    step, inverse = (last - first) / _STEPS, 65536 / (32767 * unit - -32768 * unit)
    values = np.empty(_STEPS + 1)
    for i in range(_STEPS):
        at, middle, after = (exact(first + part) * inverse for part in (i * step, i * step + step / 2, (i + 1) * step))
        start = _nearest(at)
        miss = _nearest((after + start) / 2) - _nearest(middle)
        values[i] = start - _nearest(miss / 2)
    values[_STEPS] = _nearest(exact(last) * inverse)
    return np.clip(values, -32768, 32767).astype(np.int64)


def _nearest(value: float) -> float:
    return math.copysign(math.floor(abs(value) + 0.5), value)


def _interpolated(ctx: Context, value: relax.Expr, table: Array) -> relax.Expr:
    """The table at a 16-bit number (as int32): its upper 9 bits are the place, the lower 7 how far to the next one."""
    place = _plus(ctx, _shifted(ctx, value, 7), _STEPS // 2)
    between = ctx.emit(relax.op.bitwise_and(value, const(127, "int32")))
    rise = ctx.emit(relax.op.multiply(_take(ctx, np.diff(table), place, "int16"), between))
    rise = _shifted(ctx, _plus(ctx, rise, 64), 7)
    return ctx.emit(relax.op.add(_take(ctx, table[:-1], place, "int16"), rise))


def _limited(ctx: Context, value: relax.Expr) -> relax.Expr:
    low = ctx.emit(relax.op.maximum(value, const(-32768, "int32")))
    return ctx.emit(relax.op.minimum(low, const(32767, "int32")))


def _take(ctx: Context, table: Array, index: relax.Expr, stored: str) -> relax.Expr:
    """table[index] in at least 32 bits."""
    taken = ctx.emit(relax.op.take(const(table, stored), index, mode="clip"))
    return ctx.emit(relax.op.astype(taken, "int32")) if stored == "int16" else taken


def _plus(ctx: Context, value: relax.Expr, number: int, dtype: str = "int32") -> relax.Expr:
    return ctx.emit(relax.op.add(value, const(number, dtype)))


def _times(ctx: Context, value: relax.Expr, number: int) -> relax.Expr:
    return ctx.emit(relax.op.multiply(value, const(number, "int32")))


def _shifted(ctx: Context, value: relax.Expr, bits: int, dtype: str = "int32") -> relax.Expr:
    return ctx.emit(relax.op.right_shift(value, const(bits, dtype)))
