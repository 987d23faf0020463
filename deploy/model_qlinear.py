"""ONNX operators on quantized tensors (QLinearConv and its kin) as DequantizeLinear → operator → QuantizeLinear.

Both forms say the same; the second is the one that the rest of this package computes in integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# DequantizeLinear exists since operator set 10, with a scale for each channel since 13.
_FIRST_OPSET, _PER_AXIS_OPSET = 10, 13


@dataclass(frozen=True)
class _Quantized:
    """A tensor with the names of its scale and zero point; `axis` is that of the channels, None for one scale."""

    tensor: str
    scale: str
    zero_point: str
    axis: int | None = None


@dataclass(frozen=True)
class _Plan:
    """What replaces a node: its operands as quantized tensors (None where that is impossible) and its result.

    `result` without a scale stays in float; attributes in `dropped` mean nothing to the float operator.
    """

    operands: tuple[_Quantized | None, ...]
    result: _Quantized | None
    dropped: tuple[str, ...] = ()


def as_qdq(model: Any) -> Any:
    """`model` (an onnx.ModelProto, left as it is) with its QLinear operators written as DequantizeLinear, the float
    operator and QuantizeLinear, with the same scales and zero points.

    The float operator keeps the node's name and the result the tensor's. Operators that have no such form here stay:
    those whose scales are not constants, that keep channels last, or that need another operator set than the model
    can be raised to. Returns `model` itself when there is nothing to rewrite.
    """
    if not any(_key(node) in _RULES for node in model.graph.node):
        return model
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(_raised(model))
    graph = _Graph(result)
    if graph.opset < _FIRST_OPSET:
        return model
    nodes: list[Any] = []
    changed = False
    for node in result.graph.node:
        new = _rewritten(graph, node)
        changed |= new is not None
        nodes.extend([node] if new is None else new)
    if not changed:
        return model
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    result.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in graph.added.items())
    return result


class _Graph:
    """The constants and names of a model that is being rewritten; constants that were `added`."""

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.opset = _opset(model)
        self.added: dict[str, Array] = {}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._stored[node.output[0]] = node.attribute[0].t
        self._taken = {*self._stored, *(value.name for value in graph.input)}
        for node in graph.node:
            self._taken.update((node.name, *node.input, *node.output))

    def fresh(self, name: str) -> str:
        """`name`, with a number behind it when the model has one like it."""
        found, number = name, 1
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found

    def constant(self, name: str) -> Array | None:
        """The values of constant `name`, None when it is computed or given by the caller."""
        from onnx import numpy_helper

        if name in self.added:
            return self.added[name]
        stored = self._stored.get(name)
        return None if stored is None else numpy_helper.to_array(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of constant `name`, () for what is not one."""
        return tuple(self._stored[name].dims) if name in self._stored else ()

    def add(self, name: str, values: Array) -> str:
        """A new constant; its name."""
        name = self.fresh(name)
        self.added[name] = values
        return name

    def quantized(self, tensor: str, scale: str, zero_point: str, axis: int | None = None) -> _Quantized | None:
        """`tensor` with constant parameters of a shape that DequantizeLinear takes: one value, or one per channel."""
        scales, zeros = self.constant(scale), self.constant(zero_point)
        if scales is None or (zero_point and zeros is None) or scales.dtype != np.float32:
            return None
        if zeros is not None and zeros.dtype not in (np.int8, np.uint8):
            return None
        count = max(scales.size, 1 if zeros is None else zeros.size)
        if count > 1 and (axis is None or self.opset < _PER_AXIS_OPSET or scales.ndim > 1):
            return None
        shape = () if count == 1 else (count,)
        names = self._shaped(scale, shape), self._shaped(zero_point, shape) if zero_point else ""
        return _Quantized(tensor, *names, axis if count > 1 else None)

    def bias(self, tensor: str, x: _Quantized | None, w: _Quantized | None) -> _Quantized | None:
        """`tensor` of int32 values, its channels last, in the unit of the products of `x` and `w`."""
        if x is None or w is None:
            return None
        x_scale, w_scale = self.constant(x.scale), self.constant(w.scale)
        if x_scale is None or w_scale is None or x_scale.ndim:
            return None
        scale, shape = np.asarray(x_scale * w_scale, np.float32), self.shape(tensor)
        if scale.ndim and shape[-1:] != scale.shape:
            return None
        names = self.add(f"{tensor}_scale", scale), self.add(f"{tensor}_zero_point", np.zeros(scale.shape, np.int32))
        return _Quantized(tensor, *names, len(shape) - 1 if scale.ndim else None)

    def _shaped(self, name: str, shape: tuple[int, ...]) -> str:
        values = self.constant(name)
        if values is None or values.shape == shape:
            return name
        fitted = values.reshape(shape) if values.size == 1 and not shape else np.broadcast_to(values.ravel(), shape)
        return self.add(f"{name}_fitted", np.ascontiguousarray(fitted).reshape(shape))


def _opset(model: Any) -> int:
    return max((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _raised(model: Any) -> Any:
    """`model` in an operator set that knows scales for each channel; itself where onnx cannot convert it."""
    from onnx import version_converter

    if _opset(model) >= _PER_AXIS_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _PER_AXIS_OPSET)
    except Exception:  # the converter's errors have no common class; the model is as good as it was
        return model


def _key(node: Any) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _rewritten(graph: _Graph, node: Any) -> list[Any] | None:
    """The nodes in place of `node`, None to leave it alone."""
    from onnx import helper

    rule = _RULES.get(_key(node))
    plan = rule(graph, node) if rule else None
    if plan is None or plan.result is None or None in plan.operands:
        return None
    label = node.name or node.output[0]
    operands = [operand for operand in plan.operands if operand is not None]
    nodes, reals = [], []
    for operand in operands:
        reals.append(graph.fresh(f"{operand.tensor}_dequantized"))
        inputs = [name for name in (operand.tensor, operand.scale, operand.zero_point) if name]
        name = graph.fresh(f"{label}_dequantize")
        axis: dict[str, Any] = {} if operand.axis is None else {"axis": operand.axis}
        nodes.append(helper.make_node("DequantizeLinear", inputs, [reals[-1]], name, **axis))
    result = plan.result
    real = graph.fresh(f"{result.tensor}_real") if result.scale else result.tensor
    op = node.op_type.removeprefix("QLinear").removeprefix("Q")
    nodes.append(helper.make_node(op, reals, [real], label))
    nodes[-1].attribute.extend(a for a in node.attribute if a.name not in plan.dropped)
    if result.scale:
        inputs = [real, result.scale, result.zero_point]
        nodes.append(helper.make_node("QuantizeLinear", inputs, [result.tensor], graph.fresh(f"{label}_quantize")))
    return nodes


def _inputs(node: Any, count: int) -> list[str]:
    """Names of `count` inputs, empty for those left out."""
    return [*node.input, *[""] * (count - len(node.input))]


def _attribute(node: Any, name: str, default: float) -> float:
    found = [attribute for attribute in node.attribute if attribute.name == name]
    return (found[0].f if found[0].type == found[0].FLOAT else found[0].i) if found else default


def _result(graph: _Graph, node: Any, scale: str, zero_point: str) -> _Quantized | None:
    """The node's result; the zero point tells its type, so there must be one."""
    return graph.quantized(node.output[0], scale, zero_point) if zero_point else None


def _conv(graph: _Graph, node: Any) -> _Plan:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = _inputs(node, 9)
    operands = graph.quantized(x, x_scale, x_zero), graph.quantized(w, w_scale, w_zero, 0)
    biases = (graph.bias(bias, *operands),) if bias else ()
    return _Plan((*operands, *biases), _result(graph, node, y_scale, y_zero))


def _matmul(graph: _Graph, node: Any) -> _Plan:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
    columns = len(graph.shape(b)) - 1
    axis = None if columns < 0 else columns
    operands = graph.quantized(a, a_scale, a_zero), graph.quantized(b, b_scale, b_zero, axis)
    return _Plan(operands, _result(graph, node, y_scale, y_zero))


def _gemm(graph: _Graph, node: Any) -> _Plan | None:
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = _inputs(node, 9)
    if _attribute(node, "alpha", 1.0) != 1.0:  # it would be part of the unit of `c`
        return None
    columns = 0 if _attribute(node, "transB", 0) else 1
    operands = graph.quantized(a, a_scale, a_zero), graph.quantized(b, b_scale, b_zero, columns)
    biases = (graph.bias(c, *operands),) if c else ()
    real = _Quantized(node.output[0], "", "")
    result = _result(graph, node, y_scale, y_zero) if y_scale else real
    return _Plan((*operands, *biases), result, ("alpha",))


def _pair(graph: _Graph, node: Any) -> _Plan:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
    operands = graph.quantized(a, a_scale, a_zero), graph.quantized(b, b_scale, b_zero)
    return _Plan(operands, _result(graph, node, y_scale, y_zero))


def _single(graph: _Graph, node: Any) -> _Plan | None:
    x, x_scale, x_zero, y_scale, y_zero = _inputs(node, 5)
    if _attribute(node, "channels_last", 0):
        return None
    return _Plan((graph.quantized(x, x_scale, x_zero),), _result(graph, node, y_scale, y_zero), ("channels_last",))


def _concat(graph: _Graph, node: Any) -> _Plan:
    y_scale, y_zero, *rest = node.input
    parts = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    return _Plan(tuple(graph.quantized(*part) for part in parts), _result(graph, node, y_scale, y_zero))


_RULES: dict[tuple[str, str], Callable[[_Graph, Any], _Plan | None]] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    ("com.microsoft", "QGemm"): _gemm,
    ("com.microsoft", "QLinearAdd"): _pair,
    ("com.microsoft", "QLinearMul"): _pair,
    ("com.microsoft", "QLinearGlobalAveragePool"): _single,
    ("com.microsoft", "QLinearAveragePool"): _single,
    ("com.microsoft", "QLinearSigmoid"): _single,
    ("com.microsoft", "QLinearLeakyRelu"): _single,
    ("com.microsoft", "QLinearConcat"): _concat,
}
