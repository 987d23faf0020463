"""TFLite operators that TVM's converters import wrongly or not at all: layers with weights, and softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from tvm import relax

from deploy import relax_tflite_hybrid as hybrid
from deploy.relax_tflite_operator import Operator, Quantization, Unsupported, reshaped, shape_of

# An operator's converter: it may leave the operator to TVM's, which it is given.
Converter = Callable[[Operator, Callable[[], relax.Expr]], relax.Expr]
_SAME, _VALID = 0, 1  # schema.Padding


def fully_connected(op: Operator, _: Callable[[], relax.Expr]) -> relax.Expr:
    """[…, depth] → [rows, units], or […, units] where the dimensions are kept."""
    if op.options.weightsFormat:
        raise Unsupported("its weight is shuffled for one processor")
    weight_shape = shape_of(op.expr(1))
    if hybrid.is_hybrid(op):
        result = op.converter.convert_fused_activation_function(
            hybrid.product(op, op.value(1)), op.options.fusedActivationFunction
        )
    else:
        result = _product(op, weight_shape)
    if not op.options.keepNumDims:
        return op.emit(result)
    return reshaped(op, op.emit(result), (*shape_of(op.expr(0))[:-1], weight_shape[0]))


def _product(op: Operator, weight_shape: tuple[int, ...]) -> relax.Expr:
    data, quantization = op.expr(0), op.input_quantization(0)
    rows = reshaped(op, data, (int(np.prod(shape_of(data))) // weight_shape[1], weight_shape[1]))
    weight = op.emit(relax.op.permute_dims(op.expr(1), [1, 0]))
    if quantization is None:
        result = relax.op.matmul(rows, weight)
    else:
        weights = op.input_quantization(1)
        if weights is None or (weights.scale.size > 1 and weights.axis != 0):
            raise Unsupported("its weight has no scale, or scales along its depth")
        result = relax.op.matmul(_dequantized(op, rows, quantization, 0), _dequantized(op, weight, weights, 1))
    result = op.emit(result)
    if op.has(2):
        result = op.emit(relax.op.add(result, _bias(op)))
    return quantized(op, result)


def _bias(op: Operator) -> relax.Expr:
    """The bias of a quantized layer is in units of its sums, whatever scale is stored for it."""
    data, weight = op.input_quantization(0), op.input_quantization(1)
    if data is None or weight is None:
        return op.expr(2)
    return _dequantized(op, op.expr(2), Quantization(data.scale * weight.scale, np.zeros(1, np.int64), 0), 0)


def _dequantized(op: Operator, value: relax.Expr, q: Quantization, axis: int) -> relax.Expr:
    scale = q.scale if q.scale.size > 1 else q.scale[0]
    zero_point = int(q.zero_point.flat[0])
    return op.emit(
        relax.op.dequantize(value, relax.const(scale, "float32"), relax.const(zero_point, "int32"), axis=axis)
    )


def quantized(op: Operator, real: relax.Expr) -> relax.Expr:
    """A float result within its fused activation, quantized where the operator's result is."""
    converter, activation, q = op.converter, op.options.fusedActivationFunction, op.output_quantization()
    if q is None:
        return converter.convert_fused_activation_function(real, activation)
    scale, zero_point, dtype = float(q.scale[0]), int(q.zero_point.flat[0]), op.output_dtype()
    stored = op.emit(
        relax.op.quantize(real, relax.const(q.scale[0], "float32"), relax.const(zero_point, "int32"), 0, dtype)
    )
    return converter.convert_qnn_fused_activation_function(stored, activation, scale, zero_point, dtype)


def convolution(op: Operator, original: Callable[[], relax.Expr]) -> relax.Expr:
    """CONV_2D."""
    if not hybrid.is_hybrid(op):
        return original()
    weight = op.value(1).transpose(1, 2, 3, 0)
    groups = shape_of(op.expr(0))[3] // weight.shape[2]
    attributes = {**_window(op, weight.shape[:2]), "groups": groups, "kernel_layout": "HWIO"}
    result = hybrid.convolution(op, weight, attributes)
    return op.converter.convert_fused_activation_function(result, op.options.fusedActivationFunction)


def depthwise(op: Operator, original: Callable[[], relax.Expr]) -> relax.Expr:
    """DEPTHWISE_CONV_2D."""
    if not hybrid.is_hybrid(op):
        return original()
    channels, weight = shape_of(op.expr(0))[3], op.value(1)[0]
    shape = (*weight.shape, 1) if channels > 1 else (*weight.shape[:2], 1, weight.shape[2])
    layout = "HWOI" if channels > 1 else "HWIO"
    attributes = {**_window(op, weight.shape[:2]), "groups": channels, "kernel_layout": layout}
    result = hybrid.depthwise(op, weight.reshape(shape), attributes)
    return op.converter.convert_fused_activation_function(result, op.options.fusedActivationFunction)


def _window(op: Operator, kernel: tuple[int, ...]) -> dict[str, Any]:
    options, size = op.options, shape_of(op.expr(0))[1:3]
    strides, dilation = [options.strideH, options.strideW], [options.dilationHFactor, options.dilationWFactor]
    before, after = [0, 0], [0, 0]
    if options.padding == _SAME:
        for n in range(2):
            reach = (kernel[n] - 1) * dilation[n] + 1
            total = max(0, (-(-size[n] // strides[n]) - 1) * strides[n] + reach - size[n])
            before[n], after[n] = total // 2, total - total // 2
    elif options.padding != _VALID:
        raise Unsupported(f"its padding {options.padding} is unknown")
    return {"strides": strides, "dilation": dilation, "padding": [*before, *after], "data_layout": "NHWC"}


def softmax(op: Operator, original: Callable[[], relax.Expr]) -> relax.Expr:
    """softmax(beta * x) over the last axis."""
    beta = np.float32(op.options.beta)
    if beta == 1:
        return original()
    data, quantization = op.expr(0), op.input_quantization(0)
    real = data if quantization is None else _dequantized(op, data, quantization, 0)
    result = op.emit(relax.op.nn.softmax(op.emit(relax.op.multiply(real, relax.const(beta, "float32"))), axis=-1))
    q = op.output_quantization()
    if q is None:
        return result
    zero_point = relax.const(int(q.zero_point.flat[0]), "int32")
    return relax.op.quantize(result, relax.const(q.scale[0], "float32"), zero_point, 0, op.output_dtype())


def dequantize(op: Operator, original: Callable[[], relax.Expr]) -> relax.Expr:
    """Weights that are stored in integers and used in float stay as they are stored."""
    quantization = op.input_quantization(0)
    if quantization is None or not op.is_constant(0):
        return original()
    return _dequantized(op, op.expr(0), quantization, quantization.axis)


CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        "FULLY_CONNECTED": fully_connected,
        "CONV_2D": convolution,
        "DEPTHWISE_CONV_2D": depthwise,
        "SOFTMAX": softmax,
        "DEQUANTIZE": dequantize,
    }
)
