"""Functions of one 8-bit tensor as tables of 256 results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.integer import fixed_point as fp
from deploy.integer import wide
from deploy.integer.context import Array, Context, Output, Quantized, Stays, const
from deploy.integer.rules import RANGES, Float
from deploy.relax_rewrite import op_name

Function = Callable[..., Array]


def _erf(x: Array) -> Array:
    from math import erf

    return np.asarray(np.vectorize(erf, otypes=[np.float64])(x))


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + _erf(x / np.sqrt(2.0))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


# What a chain of float operators between two quantizations may consist of, to become one table.
FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        "relax.sigmoid": _sigmoid,
        "relax.tanh": np.tanh,
        "relax.exp": np.exp,
        "relax.log": np.log,
        "relax.sqrt": np.sqrt,
        "relax.rsqrt": lambda x: 1 / np.sqrt(x),
        "relax.abs": np.abs,
        "relax.negative": np.negative,
        "relax.floor": np.floor,
        "relax.ceil": np.ceil,
        "relax.round": np.round,
        "relax.square": np.square,
        "relax.erf": _erf,
        "relax.sin": np.sin,
        "relax.cos": np.cos,
        "relax.nn.relu": lambda x: np.maximum(x, 0),
        "relax.nn.silu": lambda x: x * _sigmoid(x),
        "relax.nn.gelu": _gelu,
        "relax.nn.gelu_tanh": _gelu_tanh,
        "relax.nn.softplus": lambda x: np.logaddexp(0, x),
        "relax.add": np.add,
        "relax.subtract": np.subtract,
        "relax.multiply": np.multiply,
        "relax.divide": np.divide,
        "relax.power": np.power,
        "relax.maximum": np.maximum,
        "relax.minimum": np.minimum,
        "relax.greater": np.greater,
        "relax.less": np.less,
        "relax.where": np.where,
    }
)


def lookup(ctx: Context, tensor: Quantized, table: Any, dtype: str) -> relax.Expr:
    """table[value], for a table that begins with the smallest value of the tensor's type."""
    index = ctx.emit(relax.op.astype(tensor.value, "int32"))
    low, _ = RANGES[tensor.dtype]
    if low:
        index = ctx.emit(relax.op.subtract(index, const(low, "int32")))
    return ctx.emit(relax.op.take(const(table, dtype), index, mode="clip"))


def function(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A function of one 8-bit tensor, or a chain of them, as a table. Raises Stays."""
    leaves: dict[relax.Expr, Quantized] = {}
    evaluate = _chain(ctx, call, leaves, 16)
    if len(leaves) != 1:
        raise Stays("it is not a function of one quantized tensor")
    tensor = next(iter(leaves.values()))
    if tensor.dtype == "int16" and ctx.rules.fixed_point:
        return wide.function(ctx, call, tensor, out)
    if tensor.dtype not in ("int8", "uint8"):
        raise Stays(f"a table for {tensor.dtype} would be too large")
    low, high = RANGES[tensor.dtype]
    values = np.arange(low, high + 1)
    if ctx.rules.fixed_point:
        table = _tflite_table(ctx, call, tensor, values, out)
    else:
        real = (values - tensor.zero_point).astype(Float) * tensor.scale
        with np.errstate(all="ignore"):
            result = np.asarray(evaluate(real.astype(np.float64))).astype(Float)
        table = np.round(np.nan_to_num(ctx.rules.steps(result, out.scale), posinf=1e9, neginf=-1e9)) + out.zero_point
    return lookup(ctx, tensor, np.clip(table, out.low, out.high), out.dtype)


def _chain(ctx: Context, expr: relax.Expr, leaves: dict[relax.Expr, Quantized], depth: int) -> Callable[[Array], Any]:
    """A function that evaluates the float expression on the real values of its only quantized leaf."""
    call = ctx.bound(expr)
    constant = ctx.constant(call)
    if constant is not None and constant.size == 1:
        number = float(constant.flat[0])
        return lambda _: number
    name = op_name(call)
    if name == "relax.dequantize":
        leaves.setdefault(call.args[0], ctx.quantized(call))
        return lambda x: x
    if depth == 0 or (name not in FUNCTIONS and name not in ("relax.clip", "relax.nn.leakyrelu")):
        raise Stays("it has no integer form here")
    operands = [_chain(ctx, arg, leaves, depth - 1) for arg in call.args[: 1 if name == "relax.clip" else None]]
    operation = _function_of(call)
    return lambda x: operation(*(operand(x) for operand in operands))


def _function_of(call: Call) -> Function:
    if op_name(call) == "relax.clip":
        low, high = float(call.args[1].value), float(call.args[2].value)
        return lambda x: np.clip(x, low, high)
    if op_name(call) == "relax.nn.leakyrelu":
        alpha = float(call.attrs.alpha)
        return lambda x: np.where(x < 0, alpha * x, x)
    return FUNCTIONS[op_name(call)]


def _tflite_table(ctx: Context, call: Call, tensor: Quantized, values: Array, out: Output) -> Array:
    """What TFLite's reference kernel gives for each value. Raises Stays where it has none of a known form."""
    if tensor.dtype != out.dtype:
        raise Stays("its operand and its result are of different types")
    name = op_name(call)
    if name in ("relax.sigmoid", "relax.tanh"):
        if ctx.rules.micro:
            return _micro_table(name, tensor, values)
        return _float_table(FUNCTIONS[name], tensor, values, out)
    if name == "relax.nn.leakyrelu":
        return _leaky_table(ctx, float(call.attrs.alpha), tensor, values, out)
    if name == "relax.divide" and _is_hard_swish(ctx, call):
        return _hard_swish_table(tensor, values, out)
    raise Stays(f"TFLite's integer form of {name.removeprefix('relax.')} is not known here")


def _float_table(operation: Function, tensor: Quantized, values: Array, out: Output) -> Array:
    """LiteRT: the function in float32, times the inverse of the result's scale."""
    real = tensor.scale * (values - tensor.zero_point).astype(Float)
    result = np.asarray(operation(real.astype(np.float64))).astype(Float)
    scaled = result * (Float(1) / out.scale)
    return np.asarray(np.copysign(np.floor(np.abs(scaled) + Float(0.5)), scaled).astype(np.int64) + out.zero_point)


def _micro_table(name: str, tensor: Quantized, values: Array) -> Array:
    """TFLite Micro: fixed point with four integer bits."""
    bits = 4
    multiplier, shift = fp.quantize_multiplier(float(tensor.scale) * (1 << (31 - bits)))
    radius = fp.input_radius(bits, shift)
    operation, digits = (fp.logistic, 8) if name == "relax.sigmoid" else (fp.tanh, 7)
    zero_point = -128 if name == "relax.sigmoid" else 0

    def result(value: int) -> int:
        if abs(value) >= radius:
            return -128 if value < 0 else 127
        raw = operation(fp.rescale(value, multiplier, shift), bits)
        return min(fp.divide_by_power(raw, 31 - digits) + zero_point, 127)

    return np.array([result(int(value) - tensor.zero_point) for value in values])


def _leaky_table(ctx: Context, alpha: float, tensor: Quantized, values: Array, out: Output) -> Array:
    identity = fp.quantize_multiplier(ctx.rules.ratio(tensor.scale, out.scale, in_float=True))
    below = fp.quantize_multiplier(float(abs(tensor.scale * Float(alpha) / out.scale)))
    sign = -1 if alpha < 0 else 1

    def result(value: int) -> int:
        if value >= 0:
            return fp.rescale(value, *identity)
        return sign * fp.rescale(value, *below)

    return np.array([result(int(value) - tensor.zero_point) for value in values]) + out.zero_point


def _is_hard_swish(ctx: Context, call: Call) -> bool:
    """x * clip(x + 3, 0, 6) / 6"""
    product, six = ctx.bound(call.args[0]), ctx.constant(call.args[1])
    if op_name(product) != "relax.multiply" or six is None or six.size != 1 or six.flat[0] != 6:
        return False
    clip = ctx.bound(product.args[1])
    if op_name(clip) != "relax.clip" or (float(clip.args[1].value), float(clip.args[2].value)) != (0.0, 6.0):
        return False
    moved = ctx.bound(clip.args[0])
    three = ctx.constant(moved.args[1]) if op_name(moved) == "relax.add" else None
    return three is not None and three.size == 1 and bool(three.flat[0] == 3)


def _hard_swish_table(tensor: Quantized, values: Array, out: Output) -> Array:
    """The reference's arithmetic on 16 bits."""
    fine = Float(1 / 128) * tensor.scale
    to_output = fp.quantize_multiplier(float(fine / out.scale))
    to_unit = fp.quantize_multiplier(float(fine / Float(3 / 32768)))
    if to_output[1] > 0:
        raise Stays("TFLite has no hard-swish whose result has a scale this much smaller than its operand's")
    short_output, short_unit = (_short(pair[0]) for pair in (to_output, to_unit))

    def result(value: int) -> int:
        value <<= 7
        scaled = (value * short_output + (1 << 14)) >> 15
        unit = value
        if to_unit[1] > 0:
            unit = _saturated(unit << (to_unit[1] - 1))
        unit = (unit * short_unit + (1 << 14)) >> 15
        if to_unit[1] > 0:
            unit = _saturated(unit << 1)
        unit = fp.divide_by_power(unit, max(-to_unit[1], 0))
        unit = (unit + (1 << 15)) >> 1
        product = abs(unit * scaled) >> 15  # towards zero
        return fp.divide_by_power(product if unit * scaled >= 0 else -product, -to_output[1])

    return np.array([result(int(value) - tensor.zero_point) for value in values]) + out.zero_point


def _short(multiplier: int) -> int:
    """A 31-bit multiplier in 15 bits."""
    return 32767 if multiplier >= fp.INT32_MAX - (1 << 15) else (multiplier + (1 << 15)) >> 16


def _saturated(value: int) -> int:
    return max(-32768, min(32767, value))
