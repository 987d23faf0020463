"""Tiny ONNX models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

node = helper.make_node
_RNG = np.random.default_rng(7)


def _repeatable(generator: Callable[..., Any]) -> Callable[..., Any]:
    """Give `generator` the same random numbers whatever was generated before it: tests may run in any order."""

    @functools.wraps(generator)
    def seeded(*args: Any, **kwargs: Any) -> Any:
        global _RNG
        _RNG = np.random.default_rng(7)
        return generator(*args, **kwargs)

    return seeded


def floats(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def value(name: str, shape: Any, elem_type: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, elem_type, shape)


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Mapping[str, np.ndarray], opset: int = 18
) -> Any:
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@_repeatable
def conv_net(batch: int | str = "N") -> Any:
    """Convolution, batch norm, relu, max pool, a reshape computed from Shape, dense: needs simplifying to import."""
    constants = {
        "w": floats(4, 3, 3, 3),
        "b": floats(4),
        "scale": floats(4),
        "shift": floats(4),
        "mean": floats(4),
        "var": np.abs(floats(4)) + 0.5,
        "zero": np.array([0]),
        "rest": np.array([-1]),
        "fw": floats(64, 5),
    }
    nodes = [
        node("Conv", ["input.1", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="norm"),
        node("Relu", ["n"], ["r"], name="relu"),
        node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["p"], ["s"]),
        node("Gather", ["s", "zero"], ["g"], axis=0),
        node("Concat", ["g", "rest"], ["shape"], axis=0),
        node("Reshape", ["p", "shape"], ["f"], name="flatten"),
        node("MatMul", ["f", "fw"], ["y"], name="dense"),
    ]
    return model(nodes, [value("input.1", [batch, 3, 8, 8])], [value("y", [batch, 5])], constants)


@_repeatable
def attention(batch: int | str = "batch", length: int | str = "length") -> Any:
    """Two-head self-attention whose reshapes are computed from the input's shape; second output: the probabilities."""
    constants = {
        "w": floats(16, 48),
        "gain": floats(16),
        "bias": floats(16),
        "i0": np.array(0),
        "i1": np.array(1),
        "heads": np.array([2]),
        "size": np.array([8]),
        "axis": np.array([0]),
    }
    nodes = [
        node("LayerNormalization", ["x", "gain", "bias"], ["ln"], axis=-1),
        node("MatMul", ["ln", "w"], ["qkv"]),
        node("Split", ["qkv"], ["q", "k", "v"], axis=-1, num_outputs=3),
        node("Shape", ["q"], ["s"]),
        node("Gather", ["s", "i0"], ["s0"], axis=0),
        node("Gather", ["s", "i1"], ["s1"], axis=0),
        node("Unsqueeze", ["s0", "axis"], ["u0"]),
        node("Unsqueeze", ["s1", "axis"], ["u1"]),
        node("Concat", ["u0", "u1", "heads", "size"], ["split"], axis=0),
    ]
    for name in "qkv":
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes.append(node("Reshape", [name, "split"], [name + "r"]))
        nodes.append(node("Transpose", [name + "r"], [name + "t"], perm=perm))
    nodes += [
        node("MatMul", ["qt", "kt"], ["scores"]),
        node("Softmax", ["scores"], ["p"], axis=-1),
        node("MatMul", ["p", "vt"], ["o"]),
        node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        node("Shape", ["x"], ["xs"]),
        node("Reshape", ["ot", "xs"], ["of"]),
        node("Add", ["x", "of"], ["y"]),
    ]
    outputs = [value("y", [batch, length, 16]), value("p", [batch, 2, length, length])]
    return model(nodes, [value("x", [batch, length, 16])], outputs, constants)


def subtract() -> Any:
    """Two inputs whose order matters, integers and a truth value: d = b - a, less = a < b, and an unused input."""
    nodes = [node("Sub", ["b", "a"], ["d"]), node("Less", ["a", "b"], ["less"])]
    inputs = [value(n, [2, 3], TensorProto.INT32) for n in ("b", "a", "unused")]
    return model(nodes, inputs, [value("d", [2, 3], TensorProto.INT32), value("less", [2, 3], TensorProto.BOOL)], {})


def unsupported() -> Any:
    """Operators that the frontend does not have, in standard and foreign sets; Relu of a foreign set is not Relu."""
    nodes = [
        node("Relu", ["x"], ["a"], name="fine"),
        node("Relu", ["a"], ["b"], name="stranger", domain="my.ops"),
        node("Bernoulli", ["b"], ["c"], name="coin"),
        node("Bernoulli", ["c"], ["d"], name="coin2"),
    ]
    proto = model(nodes, [value("x", [1, 4])], [value("d", [1, 4])], {})
    proto.opset_import.append(helper.make_opsetid("my.ops", 1))
    return proto


def data_dependent() -> Any:
    """The output's size is the number of non-zero elements."""
    return model([node("NonZero", ["x"], ["y"])], [value("x", [2, 2])], [value("y", [2, "n"], TensorProto.INT64)], {})


@_repeatable
def huge_constant(dims: tuple[int, ...] = (1 << 29,)) -> Any:
    """A few bytes that declare a constant of 2 GiB."""
    proto = model([node("Add", ["x", "w"], ["y"])], [value("x", [1])], [value("y", [1])], {"w": floats(1)})
    proto.graph.initializer[0].dims[:] = dims
    return proto


def huge_fill() -> Any:
    """A few bytes whose evaluation would take 6 GiB."""
    nodes = [
        node("ConstantOfShape", ["s"], ["z"]),
        node("ReduceMax", ["z"], ["m"], keepdims=0),
        node("Add", ["x", "m"], ["y"]),
    ]
    return model(nodes, [value("x", [1])], [value("y", [1])], {"s": np.array([40000, 40000])})


@_repeatable
def external(location: str, length: int | None = None, offset: int = 0) -> Any:
    """y = x + w, with the 16 bytes of w in the file `location`."""
    proto = model([node("Add", ["x", "w"], ["y"])], [value("x", [4])], [value("y", [4])], {"w": floats(4)})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, entry in (
        ("location", location),
        ("offset", str(offset)),
        ("length", str(16 if length is None else length)),
    ):
        tensor.external_data.add(key=key, value=entry)
    return proto


@_repeatable
def quantized() -> Any:
    """A convolution between QuantizeLinear and DequantizeLinear, with int8 weights and an int32 bias."""
    constants = {
        "sx": np.float32(0.05),
        "zx": np.int8(3),
        "wq": _RNG.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8),
        "sw": np.full(4, 0.02, np.float32),
        "zw": np.zeros(4, np.int8),
        "bq": _RNG.integers(-99, 99, 4).astype(np.int32),
        "sb": np.full(4, 0.001, np.float32),
        "zb": np.zeros(4, np.int32),
        "sy": np.float32(0.1),
        "zy": np.int8(-2),
    }
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"], axis=0),
        node("DequantizeLinear", ["bq", "sb", "zb"], ["bd"], axis=0),
        node("Conv", ["xd", "wd", "bd"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "sy", "zy"], ["rq"]),
        node("DequantizeLinear", ["rq", "sy", "zy"], ["y"]),
    ]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 4, 8, 8])], constants)
