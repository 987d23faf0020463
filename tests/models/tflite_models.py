"""Tiny TFLite models, written with the schema's object API."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Builtin = schema.BuiltinOperator
FLOAT32, INT32, UINT8, INT64, INT8 = (
    getattr(schema.TensorType, n) for n in ("FLOAT32", "INT32", "UINT8", "INT64", "INT8")
)
TYPES = {"float32": FLOAT32, "int32": INT32, "uint8": UINT8, "int64": INT64, "int8": INT8}
RELU = schema.ActivationFunctionType.RELU


class Builder:
    """Collects tensors and operators of one subgraph; tensors are named by their index in the graph."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: list[Any] = []

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str = "float32",
        data: np.ndarray | None = None,
        scale: Any = None,
        zero_point: Any = 0,
        axis: int = 0,
        signature: tuple[int, ...] | None = None,
    ) -> int:
        t = schema.TensorT()
        t.name, t.shape, t.type, t.buffer = name, np.array(shape, np.int32), TYPES[dtype], 0
        if signature is not None:
            t.shapeSignature = np.array(signature, np.int32)
        if data is not None:
            b = schema.BufferT()
            b.data = np.frombuffer(np.ascontiguousarray(data, dtype).tobytes(), np.uint8)
            self.buffers.append(b)
            t.buffer = len(self.buffers) - 1
        if scale is not None:
            q = schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(scale, np.float32))
            q.zeroPoint = np.broadcast_to(np.asarray(zero_point, np.int64), q.scale.shape).copy()
            q.quantizedDimension = axis
            t.quantization = q
        self.tensors.append(t)
        return len(self.tensors) - 1

    def op(
        self, code: int, inputs: list[int], outputs: list[int], options: Any = None, custom: str | None = None
    ) -> None:
        c = schema.OperatorCodeT()
        c.builtinCode, c.deprecatedBuiltinCode, c.version, c.customCode = code, min(code, 127), 1, custom
        self.codes.append(c)
        o = schema.OperatorT()
        o.opcodeIndex = len(self.codes) - 1
        o.inputs, o.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            o.builtinOptions = options
            o.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        self.operators.append(o)

    def model(self, inputs: list[int], outputs: list[int]) -> Any:
        g = schema.SubGraphT()
        g.tensors, g.operators, g.name = self.tensors, self.operators, "main"
        g.inputs, g.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        m = schema.ModelT()
        m.version, m.description, m.subgraphs, m.buffers, m.operatorCodes = 3, "", [g], self.buffers, self.codes
        return m


def pack(model: Any) -> bytes:
    """The flatbuffer of a schema.ModelT."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def options(kind: Any, **values: Any) -> Any:
    """An options object of `kind` with `values` set."""
    o = kind()
    for key, value in values.items():
        assert hasattr(o, key), key
        setattr(o, key, value)
    return o


def conv_net(signature: tuple[int, ...] | None = None, second_output: bool = False) -> bytes:
    """float32, NHWC 1x8x8x3: conv3x3 relu → depthwise3x3 relu → average pool 8x8 → reshape → dense 5 (→ softmax)."""
    rng = np.random.default_rng(1)
    b = Builder()
    x = b.tensor("x:0", (1, 8, 8, 3), signature=signature)
    w = b.tensor("w", (4, 3, 3, 3), data=rng.standard_normal((4, 3, 3, 3)))
    bias = b.tensor("b", (4,), data=rng.standard_normal(4))
    c = b.tensor("conv", (1, 8, 8, 4))
    same = schema.Padding.SAME
    b.op(
        Builtin.CONV_2D,
        [x, w, bias],
        [c],
        options(schema.Conv2DOptionsT, padding=same, strideW=1, strideH=1, fusedActivationFunction=RELU),
    )
    dw = b.tensor("dw", (1, 3, 3, 4), data=rng.standard_normal((1, 3, 3, 4)))
    d = b.tensor("depthwise", (1, 8, 8, 4))
    b.op(
        Builtin.DEPTHWISE_CONV_2D,
        [c, dw, bias],
        [d],
        options(
            schema.DepthwiseConv2DOptionsT,
            padding=same,
            strideW=1,
            strideH=1,
            depthMultiplier=1,
            fusedActivationFunction=RELU,
        ),
    )
    p = b.tensor("pool", (1, 1, 1, 4))
    b.op(
        Builtin.AVERAGE_POOL_2D,
        [d],
        [p],
        options(
            schema.Pool2DOptionsT, padding=schema.Padding.VALID, strideW=8, strideH=8, filterWidth=8, filterHeight=8
        ),
    )
    shape = b.tensor("shape", (2,), "int32", data=np.array([1, 4]))
    r = b.tensor("flat", (1, 4))
    b.op(Builtin.RESHAPE, [p, shape], [r], options(schema.ReshapeOptionsT, newShape=[1, 4]))
    fw = b.tensor("fw", (5, 4), data=rng.standard_normal((5, 4)))
    fb = b.tensor("fb", (5,), data=rng.standard_normal(5))
    f = b.tensor("logits", (1, 5))
    b.op(Builtin.FULLY_CONNECTED, [r, fw, fb], [f], options(schema.FullyConnectedOptionsT))
    s = b.tensor("y", (1, 5))
    b.op(Builtin.SOFTMAX, [f], [s], options(schema.SoftmaxOptionsT, beta=1.0))
    return pack(b.model([x], [s, f] if second_output else [s]))


def int8_dense() -> bytes:
    """int8: dense 4→3 with per-tensor scales and zero points."""
    b = Builder()
    x = b.tensor("x", (1, 4), "int8", scale=0.05, zero_point=3)
    w = b.tensor("w", (3, 4), "int8", data=np.arange(-6, 6).reshape(3, 4), scale=0.02)
    bias = b.tensor("b", (3,), "int32", data=np.array([10, -20, 30]), scale=0.001)
    y = b.tensor("y", (1, 3), "int8", scale=0.04, zero_point=-5)
    b.op(Builtin.FULLY_CONNECTED, [x, w, bias], [y], options(schema.FullyConnectedOptionsT))
    return pack(b.model([x], [y]))


def same_names() -> bytes:
    """Two inputs and an intermediate that share one name, which TFLite allows: y = (a - b) - a."""
    b = Builder()
    first, second = b.tensor("t", (1, 4)), b.tensor("t", (1, 4))
    middle, y = b.tensor("t", (1, 4)), b.tensor("y", (1, 4))
    b.op(Builtin.SUB, [first, second], [middle], options(schema.SubOptionsT))
    b.op(Builtin.SUB, [middle, first], [y], options(schema.SubOptionsT))
    return pack(b.model([first, second], [y]))


def unsupported() -> bytes:
    """Operators that no Relax frontend has: a custom one, twice, and LSH_PROJECTION; plus a supported one."""
    b = Builder()
    x = b.tensor("x", (1, 4))
    a, c, d, e = (b.tensor(n, (1, 4)) for n in ("a", "c", "d", "e"))
    b.op(Builtin.CUSTOM, [x], [a], custom="Wobble")
    b.op(Builtin.RELU, [a], [c])
    b.op(Builtin.CUSTOM, [c], [d], custom="Wobble")
    b.op(Builtin.SKIP_GRAM, [d], [e])
    return pack(b.model([x], [e]))


def dynamic_range(code: int = Builtin.FULLY_CONNECTED) -> bytes:
    """A float dense layer with int8 weights, as dynamic-range quantization leaves it, or another operator like it."""
    b = Builder()
    x = b.tensor("x", (1, 4))
    w = b.tensor("w", (3, 4), "int8", data=np.arange(-6, 6).reshape(3, 4), scale=0.02)
    y = b.tensor("y", (1, 3))
    is_dense = code == Builtin.FULLY_CONNECTED
    kind = schema.FullyConnectedOptionsT if is_dense else schema.BatchMatMulOptionsT
    b.op(code, [x, w, -1] if is_dense else [x, w], [y], options(kind))
    return pack(b.model([x], [y]))
