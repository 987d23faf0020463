"""Operators that move, copy or join elements: on integers they are what they were."""

from __future__ import annotations

import numpy as np
from tvm import relax, tirx
from tvm.ir import Call

from deploy.integer.context import Context, Output, Quantized, Stays, recall
from deploy.integer.requantize import clamp, convert
from deploy.integer.rules import RANGES, Float
from deploy.integer.tables import lookup
from deploy.relax_rewrite import op_name, shape_of


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
    """Padding, by a constant in the integer that stands for it. Raises Stays."""
    if str(call.attrs.pad_mode) != "constant":
        return move(ctx, call, out)
    width = [int(width) for width in call.attrs.pad_width]
    return _padded(ctx, ctx.quantized(call.args[0]), width, float(call.attrs.pad_value), out)


def pad_kernel(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """Padding that the ONNX frontend imported as a kernel: element i is the operand's i - before. Raises Stays."""
    function, operands = ctx.mod[call.args[0]], call.args[1]
    if len(operands.fields) != 1:
        raise Stays("the size of its padding is computed")
    store = function.body
    while not isinstance(store, tirx.BufferStore):
        store = store.block.body if hasattr(store, "block") else store.body
    choice = store.value  # if inside then operand[i - before] else number
    arms = list(choice.args)[1:] if isinstance(choice, Call) else []
    if len(arms) != 2 or not hasattr(arms[0], "indices") or not hasattr(arms[1], "value"):
        raise Stays("it is a kernel of an unknown form")
    before = [_before(index) for index in arms[0].indices]
    sizes = zip(shape_of(operands.fields[0]), before, shape_of(call), strict=True)
    width = [end for size, first, total in sizes for end in (first, total - size - first)]
    return _padded(ctx, ctx.quantized(operands.fields[0]), width, float(arms[1].value), out)


def _before(index: tirx.Expr) -> int:
    """How far back an index reads: 2 for `i - 2`. Raises Stays for anything else."""
    if isinstance(index, tirx.Var):
        return 0
    if isinstance(index, tirx.Sub) and isinstance(index.a, tirx.Var) and isinstance(index.b, tirx.IntImm):
        return int(index.b.value)
    raise Stays("it is a kernel of an unknown form")


def _padded(ctx: Context, data: Quantized, width: list[int], value: float, out: Output) -> relax.Expr:
    low, high = RANGES[data.dtype]
    stored = min(max(ctx.rules.quantized(value, data.scale, data.zero_point), low), high)
    padded = ctx.emit(relax.op.nn.pad(data.value, width, pad_value=float(stored)))
    return convert(ctx, Quantized(padded, data.scale, data.zero_point), out)


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
