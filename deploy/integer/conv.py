"""Convolutions and products: integer accumulators, the bias as stored, one requantization.

The data operand is astype(x) minus its zero point, so that padding with 0 is padding with the zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.integer.context import MOVES, Array, Context, Output, Quantized, Stays, Weight, const
from deploy.integer.fixed_point import INT32_MAX
from deploy.integer.requantize import requantize, requantize_once
from deploy.integer.rules import RANGES, Scales
from deploy.relax_rewrite import array_of, op_name, shape_of

LINEAR = (
    "relax.nn.conv1d",
    "relax.nn.conv2d",
    "relax.nn.conv3d",
    "relax.nn.conv1d_transpose",
    "relax.nn.conv2d_transpose",
    "relax.nn.conv3d_transpose",
    "relax.matmul",
)
_BIAS_TOLERANCE = 1e-5  # relative: frameworks compute a bias' scale in float32


@dataclass(frozen=True, eq=False)
class _Bias:
    """Integers to add to the accumulator, or float numbers for the formats that are defined in float."""

    integers: Array | None = None
    scale: Scales | None = None
    numbers: Array | None = None


def linear(ctx: Context, call: Call, out: Output, bias_expr: relax.Expr | None = None) -> relax.Expr:
    """The quantized result of a convolution or product `call`, with a bias. Raises Stays."""
    data = ctx.quantized(call.args[0])
    bias = _Bias() if bias_expr is None else _bias(ctx, bias_expr)
    weight, scales = _weight(ctx, call)
    accumulator = _accumulate(ctx, call, data, weight, _total_type(data, bias))
    channels = channel_shape(call)
    if bias.integers is not None and _fits(ctx, bias, np.float64(data.scale) * scales):
        stored = np.broadcast_to(bias.integers.reshape(-1), (int(np.prod(channels)),)).reshape(channels)
        accumulator = ctx.emit(relax.op.add(accumulator, const(stored, str(accumulator.ty.dtype))))
        bias = _Bias()
    is_dense = op_name(call) == "relax.matmul"
    if is_dense and ctx.rules.dense_rounds_once and data.dtype != "uint8":
        exact = ctx.rules.linear(data.scale, scales, out.scale, in_float=False)
        return requantize_once(ctx, accumulator, exact, out, channels, _largest(call, data, accumulator))
    in_float = (is_dense and scales.size == 1) or data.dtype == "uint8"
    effective = ctx.rules.linear(data.scale, scales, out.scale, in_float)
    return requantize(ctx, accumulator, effective, out, channels, _in_units_of(bias, out, channels))


def real(ctx: Context, call: Call) -> relax.Expr:
    """The result of a convolution or product `call` of quantized tensors in float32: integer sums, scaled.

    For the formats that are defined in float. Raises Stays.
    """
    data = ctx.quantized(call.args[0])
    weight, scales = _weight(ctx, call)
    total = _accumulate(ctx, call, data, weight, _total_type(data, _Bias()))
    factor = np.float64(data.scale) * scales
    shape = channel_shape(call) if factor.size > 1 else ()
    number = const(factor.reshape(shape), "float32")
    return ctx.emit(relax.op.multiply(ctx.emit(relax.op.astype(total, "float32")), number))


def _largest(call: Call, data: Quantized, accumulator: relax.Expr) -> int:
    """A bound of an accumulator: of its type, or of what 16-bit activations can add up to."""
    if str(accumulator.ty.dtype) == "int32":
        return INT32_MAX
    low, high = RANGES[data.dtype]
    return min(shape_of(call.args[0])[-1] * max(-low, high) * 128 + INT32_MAX, 2**62)  # and a bias


def channel_shape(call: Call) -> tuple[int, ...]:
    """The shape in which one value for each output channel is broadcast to the result."""
    shape = shape_of(call)
    if op_name(call) == "relax.matmul":
        return shape[-1:]
    axis = str(call.attrs.out_layout or call.attrs.data_layout).index("C")
    return (shape[axis],) if axis == len(shape) - 1 else tuple(s if i == axis else 1 for i, s in enumerate(shape))


def _output_axis(call: Call) -> int:
    """The axis of the weight that is the output's channels."""
    if op_name(call) == "relax.matmul":
        return -1
    if "transpose" in op_name(call) and int(call.attrs.groups) > 1:
        raise Stays("a grouped transposed convolution has its channels in two axes")
    return str(call.attrs.kernel_layout).index("O")


def _weight(ctx: Context, call: Call) -> tuple[relax.Expr, Scales]:
    """The second operand without its zero point, and its scales: one, or one for each output channel."""
    constant = ctx.weight(call.args[1])
    if constant is not None:
        values = constant.values.astype(np.int64) - constant.zero_point
        small = values.min(initial=0) >= -128 and values.max(initial=0) <= 127
        return const(values, "int8" if small else "int16"), constant.channel_scales(_output_axis(call))
    if op_name(call) != "relax.matmul":
        raise Stays("its weight is not constant")
    tensor = ctx.quantized(call.args[1])
    return ctx.centered(tensor, "int16"), np.array([np.float64(tensor.scale)])


def _total_type(data: Quantized, bias: _Bias) -> str:
    """The accumulator's type: 64 bits for 16-bit activations, unless the model says by its bias that 32 are enough."""
    narrow = bias.integers is not None and bias.integers.dtype == np.int32
    return "int64" if data.dtype == "int16" and not narrow else "int32"


def _accumulate(ctx: Context, call: Call, data: Quantized, weight: relax.Expr, total: str) -> relax.Expr:
    if data.dtype not in RANGES:
        raise Stays(f"its operand is quantized to {data.dtype}")
    values = ctx.centered(data, "int32" if data.dtype == "int16" else "int16")
    summed = "int32" if _sums_fit(call, data, weight) else total
    if op_name(call) == "relax.matmul":
        sums = ctx.emit(relax.op.matmul(values, weight, out_dtype=summed))
    else:
        sums = ctx.emit(_convolution(call)(values, weight, **_attributes(call), out_dtype=summed))
    return sums if summed == total else ctx.emit(relax.op.astype(sums, total))


def _sums_fit(call: Call, data: Quantized, weight: relax.Expr) -> bool:
    """Whether no sum of products exceeds 32 bits, whatever the activations are: sums of 64 bits are slow."""
    values = array_of(weight)
    if values is None:
        return False
    low, high = RANGES[data.dtype]
    largest = max(data.zero_point - low, high - data.zero_point)
    channels = np.moveaxis(np.abs(values.astype(np.int64)), _output_axis(call), 0)
    return int(channels.reshape(len(channels), -1).sum(axis=1).max(initial=0)) * largest <= INT32_MAX


def _convolution(call: Call) -> Any:
    return getattr(relax.op.nn, op_name(call).removeprefix("relax.nn."))


def _attributes(call: Call) -> dict[str, Any]:
    attrs = call.attrs
    names = ["strides", "padding", "dilation"] + (["output_padding"] if "transpose" in op_name(call) else [])
    sizes = {name: [int(size) for size in getattr(attrs, name)] for name in names}
    layouts = {name: str(getattr(attrs, name)) for name in ("data_layout", "kernel_layout", "out_layout")}
    return {**sizes, **layouts, "groups": int(attrs.groups)}


def _bias(ctx: Context, expr: relax.Expr) -> _Bias:
    """A bias as it is stored. Raises Stays where it is computed."""
    weight = ctx.weight(expr)
    if weight is not None and not weight.zero_point.any():
        stored = weight.values.astype(_stored_type(ctx, expr, weight))
        return _Bias(stored, weight.scale.reshape(-1), weight.values.astype(np.float64) * weight.scale)
    numbers = ctx.constant(expr)
    if numbers is None:
        raise Stays("what is added to it is not constant")
    return _Bias(numbers=numbers.astype(np.float64))


def _stored_type(ctx: Context, expr: relax.Expr, weight: Weight) -> str:
    """The type that a bias has in the source model: one of 64 bits was narrowed to be dequantized."""
    call = ctx.bound(expr)
    while op_name(call) in MOVES:
        call = ctx.bound(call.args[0])
    stored = ctx.bound(call.args[0])
    return str(stored.args[0].ty.dtype) if op_name(stored) == "relax.astype" else str(weight.values.dtype)


def is_bias(ctx: Context, expr: relax.Expr, call: Call) -> bool:
    """Whether `expr` is a constant with at most one value for each output channel of `call`."""
    if ctx.constant(expr) is None and ctx.weight(expr) is None:
        return False
    shape, channels = shape_of(ctx.bound(expr)), channel_shape(call)
    padded = (1,) * (len(shape_of(call)) - len(shape)) + shape
    full = (1,) * (len(shape_of(call)) - len(channels)) + channels
    return len(padded) == len(full) and all(p in (1, f) for p, f in zip(padded, full, strict=True))


def _fits(ctx: Context, bias: _Bias, scales: Scales) -> bool:
    """Whether a stored bias is in units of the accumulator; TFLite says that it always is."""
    if ctx.rules.fixed_point or bias.scale is None:
        return True
    comparable = 1 in (bias.scale.size, scales.size) or bias.scale.size == scales.size
    return comparable and bool(np.allclose(bias.scale, scales, rtol=_BIAS_TOLERANCE, atol=0))


def _in_units_of(bias: _Bias, out: Output, channels: tuple[int, ...]) -> Array | None:
    if bias.numbers is None:
        return None
    return np.asarray(np.broadcast_to(bias.numbers.reshape(-1), (int(np.prod(channels)),)) / np.float64(out.scale))
