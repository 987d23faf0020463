"""TFLite's hybrid operators, which dynamic-range quantization makes: float activations, int8 weights.

LiteRT quantizes the activations of each batch to 8 bits when it runs, sums integers, and scales the sums. This computes
the same: the weights stay int8, and a convolution or product is one of integers. It does so in the same order and with
the same float32 roundings, so the results are LiteRT's, bit for bit, as long as the activations are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from deploy.relax_tflite_operator import Array, Operator, Quantization, Unsupported, reshaped, shape_of

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Activations:
    """Quantized when the model runs: int32 `values` of 8 bits, with float32 `scale` and int32 `zero_point` (None for 0)
    of each batch, which have as many axes as the values."""

    values: relax.Expr
    scale: relax.Expr
    zero_point: relax.Expr | None


def is_hybrid(op: Operator) -> bool:
    """Whether an operator reads float activations and int8 weights."""
    return op.has(1) and op.dtype(0) == "float32" and op.dtype(1) == "int8" and op.is_constant(1)


def product(op: Operator, weight: Array) -> relax.Expr:
    """A fully connected layer on [rows, depth] of float32 with `weight` [units, depth]."""
    data, quantization = op.expr(0), _weights(op)
    rows = reshaped(op, data, (int(np.prod(shape_of(data))) // weight.shape[1], weight.shape[1]))
    symmetric = not op.options.asymmetricQuantizeInputs
    activations = _symmetric(op, rows) if symmetric else _asymmetric(op, rows)
    product = relax.op.matmul(_bytes(op, activations.values), relax.const(weight.T.copy(), "int8"), out_dtype="int32")
    total = _without_zero_point(op, op.emit(product), activations, weight.sum(axis=1, dtype=np.int64))
    scale = op.emit(relax.op.multiply(activations.scale, _const(quantization.scale)))
    return _with_bias(op, op.emit(relax.op.multiply(_number(op, total), scale)))


def convolution(op: Operator, weight: Array, attributes: dict[str, Any]) -> relax.Expr:
    """A convolution of float32 [N, H, W, C] with `weight` in the layout of `attributes` (those of relax.nn.conv2d).

    LiteRT quantizes symmetrically where all channels of the weight have one scale, and else with a zero point.
    """
    data, quantization = op.expr(0), _weights(op)
    grouped = attributes["groups"] > 1
    if not (quantization.scale != quantization.scale[0]).any() and not grouped:
        activations = _symmetric(op, data)
        total = _sums(op, activations, weight, attributes)
        scale = op.emit(relax.op.multiply(activations.scale, _const(quantization.scale[0])))
        return _with_bias(op, op.emit(relax.op.multiply(_number(op, total), scale)))
    if quantization.scale.size == 1:
        raise Unsupported("it has groups but one scale for all channels, for which TFLite has no meaning")
    activations = _asymmetric(op, data)
    scaled = relax.op.multiply(_number(op, _sums(op, activations, weight, attributes)), _const(quantization.scale))
    return _with_bias(op, op.emit(relax.op.multiply(op.emit(scaled), activations.scale)))


def depthwise(op: Operator, weight: Array, attributes: dict[str, Any]) -> relax.Expr:
    """The same for a depthwise convolution, which always has a zero point."""
    quantization = _weights(op)
    activations = _asymmetric(op, op.expr(0))
    scale = op.emit(relax.op.multiply(_const(quantization.scale), activations.scale))
    total = _number(op, _sums(op, activations, weight, attributes))
    return _with_bias(op, op.emit(relax.op.multiply(total, scale)))


def _weights(op: Operator) -> Quantization:
    quantization = op.input_quantization(1)
    if quantization is None or quantization.zero_point.any():
        raise Unsupported("its int8 weight has no scale, or a zero point")
    return quantization


def _sums(op: Operator, activations: Activations, weight: Array, attributes: dict[str, Any]) -> relax.Expr:
    """Sums of the products of weights with activations less their zero point: the border of an image is nothing."""
    values, padding = activations.values, attributes["padding"]
    if activations.zero_point is not None and any(padding):
        top, left, bottom, right = padding
        values = op.emit(relax.op.subtract(values, activations.zero_point))
        values = op.emit(relax.op.nn.pad(values, [0, 0, top, bottom, left, right, 0, 0]))
        values = op.emit(relax.op.add(values, activations.zero_point))
        attributes = {**attributes, "padding": [0, 0, 0, 0]}
    kernel = relax.const(weight, "int8")
    total = op.emit(relax.op.nn.conv2d(_bytes(op, values), kernel, **attributes, out_dtype="int32"))
    axes = tuple(axis for axis, letter in enumerate(attributes["kernel_layout"]) if letter != "O")
    return _without_zero_point(op, total, activations, weight.sum(axis=axes, dtype=np.int64))


def _bytes(op: Operator, values: relax.Expr) -> relax.Expr:
    """Values of 8 bits as an operand of an integer kernel, which loads them as such."""
    return op.emit(relax.op.astype(op.emit(relax.op.astype(values, "int8")), "int16"))


def _without_zero_point(op: Operator, total: relax.Expr, activations: Activations, weights: Array) -> relax.Expr:
    """Sums of products with what is stored, less those with the zero point; `weights` are summed for each channel."""
    if activations.zero_point is None:
        return total
    excess = op.emit(relax.op.multiply(activations.zero_point, _const(weights, "int32")))
    return op.emit(relax.op.subtract(total, excess))


def _number(op: Operator, total: relax.Expr) -> relax.Expr:
    """Integer sums in float32. As a dequantization by 1, so that they are seen to leave the integers here."""
    return op.emit(relax.op.dequantize(total, _const(1.0), relax.const(0, "int32"), axis=-1))


def _with_bias(op: Operator, scaled: relax.Expr) -> relax.Expr:
    return op.emit(relax.op.add(_rounded(op, scaled), op.expr(2))) if op.has(2) else scaled


def _rounded(op: Operator, value: relax.Expr, dtype: str = "float32") -> relax.Expr:
    """A product as its type holds it: a compiler does not reach through the maximum to make a fused multiply-add."""
    return op.emit(relax.op.maximum(value, _const(-_LARGEST, dtype)))


def _symmetric(op: Operator, data: relax.Expr) -> Activations:
    """[-range, range] of each batch as [-127, 127]."""
    low, high = _ends(op, data)
    reach = op.emit(relax.op.maximum(op.emit(relax.op.abs(low)), op.emit(relax.op.abs(high))))
    empty = op.emit(relax.op.equal(reach, _const(0.0)))
    scale = op.emit(relax.op.where(empty, _const(1.0), op.emit(relax.op.divide(reach, _const(127.0)))))
    inverse = op.emit(relax.op.divide(_const(127.0), op.emit(relax.op.where(empty, _const(1.0), reach))))
    steps = op.emit(relax.op.multiply(data, inverse))
    return Activations(op.emit(relax.op.clip(_away(op, steps), -127, 127)), scale, None)


def _asymmetric(op: Operator, data: relax.Expr) -> Activations:
    """The range of each batch, with zero in it, as [-128, 127]; scale and zero point are computed in float64.

    In the order of LiteRT's vector code, which is what runs on ARM and on x86.
    """
    ends = _ends(op, data)
    low, high = op.emit(relax.op.minimum(ends[0], _const(0.0))), op.emit(relax.op.maximum(ends[1], _const(0.0)))
    empty = op.emit(relax.op.equal(low, high))
    span = op.emit(relax.op.where(empty, _const(255.0), op.emit(relax.op.subtract(high, low))))
    wide = op.emit(relax.op.divide(_double(op, span), _const(255.0, "float64")))
    below, above = (op.emit(relax.op.divide(_double(op, end), wide)) for end in (low, high))
    errors = [
        op.emit(relax.op.add(_const(size, "float64"), op.emit(relax.op.abs(part))))
        for size, part in ((128.0, below), (127.0, above))
    ]
    points = [
        op.emit(relax.op.subtract(_const(end, "float64"), part)) for end, part in ((-128.0, below), (127.0, above))
    ]
    point = op.emit(relax.op.where(op.emit(relax.op.less(*errors)), *points))
    point = _away(op, op.emit(relax.op.clip(point, -128, 127)), "float64")
    point = op.emit(relax.op.where(empty, relax.const(0, "int32"), point))
    scale = op.emit(relax.op.astype(wide, "float32"))
    steps = op.emit(relax.op.multiply(data, op.emit(relax.op.divide(_const(1.0), scale))))
    stored = op.emit(relax.op.clip(op.emit(relax.op.add(_away(op, steps), point)), -128, 127))
    return Activations(stored, scale, point)


def _ends(op: Operator, data: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """The smallest and the largest element of each batch, in the shape [N, 1, …]."""
    axes = list(range(1, len(shape_of(data))))
    ends = (reduce(data, axis=axes, keepdims=True) for reduce in (relax.op.min, relax.op.max))
    low, high = (op.emit(end) for end in ends)
    return low, high


def _away(op: Operator, value: relax.Expr, dtype: str = "float32") -> relax.Expr:
    """The nearest int32, a half away from zero: twice what truncation leaves is exact, and at least 1 for a half."""
    value = _rounded(op, value, dtype)
    whole = op.emit(relax.op.astype(value, "int32"))
    rest = op.emit(relax.op.subtract(value, op.emit(relax.op.astype(whole, dtype))))
    half = op.emit(relax.op.astype(op.emit(relax.op.add(rest, rest)), "int32"))
    return op.emit(relax.op.add(whole, half))


def _double(op: Operator, value: relax.Expr) -> relax.Expr:
    return op.emit(relax.op.astype(value, "float64"))


def _const(value: Any, dtype: str = "float32") -> relax.Expr:
    return relax.const(np.asarray(value, dtype), dtype)
