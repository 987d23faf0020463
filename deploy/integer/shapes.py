"""Operators that move, copy or join elements: on integers they are what they were."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.integer.context import Context, Output, Quantized, Stays, recall
from deploy.integer.requantize import clamp, convert
from deploy.integer.rules import RANGES, Float
from deploy.integer.tables import lookup
from deploy.relax_rewrite import op_name


def move(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A reshape, transpose, slice or nearest-neighbour resize. Raises Stays."""
    if op_name(call) == "relax.image.resize2d" and str(call.attrs.method) != "nearest_neighbor":
        raise Stays(f"it interpolates ({call.attrs.method})")
    data = ctx.quantized(call.args[0])
    moved = ctx.emit(recall(call, [data.value, *call.args[1:]]))
    return convert(ctx, Quantized(moved, data.scale, data.zero_point), out)


def requantized(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A dequantization that is quantized again at once. Raises Stays."""
    if ctx.weight(call) is not None:
        raise Stays("its operand is constant")
    return convert(ctx, ctx.quantized(call), out)


def pad(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """Padding with a constant, which becomes the integer that stands for it. Raises Stays."""
    data, mode = ctx.quantized(call.args[0]), str(call.attrs.pad_mode)
    width = [int(width) for width in call.attrs.pad_width]
    if mode != "constant":
        padded = recall(call, [data.value, *call.args[1:]])
    else:
        low, high = RANGES[data.dtype]
        value = ctx.rules.quantized(float(call.attrs.pad_value), data.scale, data.zero_point)
        padded = relax.op.nn.pad(data.value, width, float(min(max(value, low), high)))
    return convert(ctx, Quantized(ctx.emit(padded), data.scale, data.zero_point), out)


def concatenate(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """Parts joined, each in the result's quantization. Raises Stays."""
    operands = ctx.bound(call.args[0])
    if not isinstance(operands, relax.Tuple):
        raise Stays("what it joins is not a list of tensors")
    parts = [_part(ctx, ctx.quantized(field), out) for field in operands.fields]
    joined = ctx.emit(relax.op.concat(parts, axis=int(call.attrs.axis)))
    return clamp(ctx, joined, out.low, out.high)


def _part(ctx: Context, tensor: Quantized, out: Output) -> relax.Expr:
    plain = Output(out.scale, out.zero_point, out.dtype, *RANGES[out.dtype])
    if tensor.same_scale(out) or not ctx.rules.fixed_point:
        return convert(ctx, tensor, plain)
    if tensor.dtype != "uint8":
        raise Stays("TFLite joins tensors of this type only where their scales are equal")
    scale = tensor.scale * (Float(1) / out.scale)
    moved = np.arange(256).astype(Float) * scale + Float(-tensor.zero_point) * scale
    values = np.copysign(np.floor(np.abs(moved) + Float(0.5)), moved) + out.zero_point
    return lookup(ctx, tensor, np.clip(values, 0, 255), out.dtype)
