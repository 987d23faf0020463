"""Sums, differences, products, maxima and minima of two quantized tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.integer.context import Context, Output, Quantized, Stays, const
from deploy.integer.conv import LINEAR, is_bias, linear
from deploy.integer.fixed_point import quantize_multiplier
from deploy.integer.requantize import convert, finish, from_real, real, requantize, rescale
from deploy.integer.rules import Float
from deploy.relax_rewrite import op_name

# Bits that TFLite adds to the operands of a sum before it brings them to a common scale.
_SUM_BITS = {"int8": 20, "uint8": 20, "int16": 15}


def add(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A sum, or the bias of a linear operator. Raises Stays."""
    for data, other in (call.args, call.args[::-1]):
        product = ctx.bound(data)
        if op_name(product) in LINEAR and is_bias(ctx, other, product):
            return linear(ctx, product, out, other)
    return _sum(ctx, call, out, relax.op.add)


def subtract(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A difference. Raises Stays."""
    return _sum(ctx, call, out, relax.op.subtract)


def _sum(ctx: Context, call: Call, out: Output, combine: Any) -> relax.Expr:
    if not ctx.rules.fixed_point:
        return _combined(ctx, call, out, combine)
    left, right = (ctx.quantized(arg) for arg in call.args)
    if left.dtype != out.dtype or right.dtype != out.dtype:
        raise Stays("its operands and its result are of different types")
    bits = _SUM_BITS[out.dtype]
    left_scale, right_scale, total_scale = _sum_scales(ctx, left, right, out, bits, combine is relax.op.subtract)
    terms = [
        rescale(ctx, ctx.centered(tensor, "int32"), [quantize_multiplier(scale)], left=bits)
        for tensor, scale in ((left, left_scale), (right, right_scale))
    ]
    narrow = [term if str(term.ty.dtype) == "int32" else ctx.emit(relax.op.astype(term, "int32")) for term in terms]
    pair = quantize_multiplier(total_scale)
    total = rescale(ctx, ctx.emit(combine(*narrow)), [pair], positive=out.low >= out.zero_point)
    return finish(ctx, total, out)


def _sum_scales(
    ctx: Context, left: Quantized, right: Quantized, out: Output, bits: int, is_difference: bool
) -> tuple[float, float, float]:
    """Scales of the two operands to twice the larger one, and from there to the result."""
    number: Any = Float if is_difference and ctx.rules.micro else np.float64
    twice = number(2 * max(left.scale, right.scale))
    total = twice / number((1 << bits) * out.scale)
    return float(number(left.scale) / twice), float(number(right.scale) / twice), float(total)


def _combined(ctx: Context, call: Call, out: Output, combine: Any) -> relax.Expr:
    """The formats that are defined in float: dequantized in registers, combined, quantized."""
    if all(ctx.constant(arg) is not None for arg in call.args):
        raise Stays("both its operands are constant")
    return from_real(ctx, ctx.emit(combine(*(_real(ctx, arg) for arg in call.args))), out)


def _real(ctx: Context, expr: relax.Expr) -> relax.Expr:
    """An operand's real value in float32: a constant's, or as a dequantization gives it."""
    numbers = ctx.constant(expr)
    if numbers is not None:
        return const(numbers, "float32")
    return real(ctx, ctx.quantized(expr))


def multiply(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A product. Raises Stays."""
    if not ctx.rules.fixed_point:
        return _combined(ctx, call, out, relax.op.multiply)
    left, right = (ctx.quantized(arg) for arg in call.args)
    if not left.dtype == right.dtype == out.dtype:
        raise Stays("its operands and its result are of different types")
    product = ctx.emit(relax.op.multiply(ctx.centered(left, "int32"), ctx.centered(right, "int32")))
    scale = ctx.rules.product(left.scale, right.scale, out.scale)
    return requantize(ctx, product, np.array([scale]), out)


_EXTREMA = {"maximum": relax.op.maximum, "minimum": relax.op.minimum, "max": relax.op.maximum, "min": relax.op.minimum}


def extremum(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A maximum or minimum of two tensors, of integers in the result's quantization. Raises Stays."""
    return _extremum(ctx, op_name(call), list(call.args), out)


def extremum_of_stack(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A maximum or minimum over tensors that were stacked for it, as the ONNX frontend writes it. Raises Stays."""
    stack = ctx.bound(call.args[0])
    tensors = ctx.bound(stack.args[0]) if op_name(stack) == "relax.stack" else None
    axes = [int(axis) for axis in call.attrs.axis or ()]
    if not isinstance(tensors, relax.Tuple) or bool(call.attrs.keepdims) or axes != [int(stack.attrs.axis)]:
        raise Stays("it is over an axis")
    return _extremum(ctx, op_name(call), list(tensors.fields), out)


def _extremum(ctx: Context, name: str, exprs: list[relax.Expr], out: Output) -> relax.Expr:
    operands = [ctx.quantized(expr) for expr in exprs]
    if ctx.rules.fixed_point and not all(tensor.same_scale(out) and tensor.dtype == out.dtype for tensor in operands):
        raise Stays("TFLite compares integers, and its operands and result have different scales")
    combine = _EXTREMA[name.removeprefix("relax.")]
    first, *others = [convert(ctx, tensor, out) for tensor in operands]
    for other in others:
        first = ctx.emit(combine(first, other))
    return first
