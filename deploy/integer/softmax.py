"""Softmax of 8-bit tensors in fixed point: two tables of exponentials and a reciprocal by Newton's method."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.integer import fixed_point as fp
from deploy.integer import wide
from deploy.integer.context import Array, Context, Output, Stays, const
from deploy.integer.requantize import from_real
from deploy.integer.rules import Float
from deploy.relax_rewrite import op_name, shape_of

SUM_BITS = 12  # integer bits of the sum of exponentials
ONE = 31 - SUM_BITS  # its fraction bits: an exponential of 1 is 2^19


def softmax(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A softmax over the last axis, of a tensor or of its product with a positive number. Raises Stays."""
    operand, beta = _scaled(ctx, call.args[0])
    data, shape = ctx.quantized(operand), shape_of(call)
    if int(call.attrs.axis) not in (-1, len(shape) - 1):
        raise Stays("it is not over the last axis")
    if data.dtype == "int16" and ctx.rules.fixed_point:
        return wide.softmax(ctx, data, beta, shape, out)
    if data.dtype not in ("int8", "uint8") or out.dtype not in ("int8", "uint8"):
        raise Stays(f"it is from {data.dtype} to {out.dtype}")
    largest = ctx.emit(relax.op.max(data.value, axis=[-1], keepdims=True))
    pair = [ctx.emit(relax.op.astype(value, "int32")) for value in (data.value, largest)]
    index = ctx.emit(relax.op.add(ctx.emit(relax.op.subtract(*pair)), const(255, "int32")))
    if not ctx.rules.fixed_point:
        return _in_float(ctx, index, float(data.scale) * float(beta), out)
    if (
        data.dtype != out.dtype
        or out.scale != Float(1 / 256)
        or out.zero_point != out.low
        or shape[-1] >= 1 << SUM_BITS
    ):
        raise Stays("TFLite has no integer form of it with this quantization or length")
    if float(data.scale) * float(beta) * 2**26 <= 1:
        raise Stays("TFLite has no integer form of it for so small a scale")
    exponentials = np.array(fp.softmax_exponentials(float(data.scale) * float(beta)))
    coarse = np.array([fp.divide_by_power(int(value), SUM_BITS) for value in exponentials])
    total = ctx.emit(relax.op.sum(_take(ctx, coarse, index, "int32"), axis=[-1], keepdims=True))
    bits = ctx.emit(relax.op.right_shift(total, const(ONE, "int32")))  # 1 … the length: a number of leading zeros
    lengths = np.array([int(i).bit_length() for i in range(shape[-1] + 1)])
    scale = _reciprocal(ctx, total, _take(ctx, SUM_BITS + 1 - lengths, bits, "int64"))
    exact = _take(ctx, exponentials, index, "int64")
    shifts = np.maximum(lengths, 1) - 1 + 31 - 8
    value = ctx.emit(relax.op.add(_high(ctx, scale, exact), _take(ctx, np.left_shift(1, shifts - 1), bits, "int64")))
    value = ctx.emit(relax.op.right_shift(value, _take(ctx, shifts, bits, "int64")))
    value = ctx.emit(relax.op.add(ctx.emit(relax.op.astype(value, "int32")), const(out.zero_point, "int32")))
    return ctx.emit(relax.op.astype(ctx.emit(relax.op.minimum(value, const(out.high, "int32"))), out.dtype))


def _scaled(ctx: Context, expr: relax.Expr) -> tuple[relax.Expr, Float]:
    """The tensor and the number that a product is of; 1 for anything else."""
    product = ctx.bound(expr)
    number = ctx.constant(product.args[1]) if op_name(product) == "relax.multiply" else None
    if number is None or number.size != 1 or not number.flat[0] > 0:
        return expr, Float(1)
    return product.args[0], Float(number.flat[0])


def _take(ctx: Context, table: Array, index: relax.Expr, dtype: str) -> relax.Expr:
    return ctx.emit(relax.op.take(const(table, dtype), index, mode="clip"))


def _high(ctx: Context, left: relax.Expr, right: relax.Expr) -> relax.Expr:
    """fixed_point.high_multiply on the device; neither operand is the smallest number, so nothing saturates."""
    product = ctx.emit(relax.op.multiply(left, right))
    product = ctx.emit(relax.op.add(product, const(1 << 30, "int64")))
    return ctx.emit(relax.op.right_shift(product, const(31, "int64")))


def _reciprocal(ctx: Context, total: relax.Expr, zeros: relax.Expr) -> relax.Expr:
    """fixed_point.reciprocal_of_one_plus on the device, of the sum moved to the left by its leading zeros.

    The first step is half the sum: (total * 2^zeros - 2^31 + 2^31) / 2.
    """
    moved = ctx.emit(relax.op.left_shift(ctx.emit(relax.op.astype(total, "int64")), zeros))
    half = ctx.emit(relax.op.right_shift(moved, const(1, "int64")))
    x = ctx.emit(relax.op.add(_high(ctx, half, const(fp.SLOPE, "int64")), const(fp.GUESS, "int64")))
    for _ in range(fp.NEWTON_STEPS):
        rest = ctx.emit(relax.op.subtract(const(fp.ONE_IN_29_BITS, "int64"), _high(ctx, half, x)))
        step = ctx.emit(relax.op.left_shift(_high(ctx, x, rest), const(2, "int64")))
        x = ctx.emit(relax.op.add(x, step))
    twice = ctx.emit(relax.op.left_shift(x, const(1, "int64")))
    return ctx.emit(relax.op.minimum(twice, const(fp.INT32_MAX, "int64")))


def _in_float(ctx: Context, index: relax.Expr, scale: float, out: Output) -> relax.Expr:
    """A table of float32 exponentials, one sum and one division."""
    table = np.exp(np.arange(-255, 1) * scale)
    exponentials = _take(ctx, table, index, "float32")
    total = ctx.emit(relax.op.sum(exponentials, axis=[-1], keepdims=True))
    share = ctx.emit(relax.op.divide(exponentials, total))
    return from_real(ctx, share, out)
