"""QLinear operators written as DequantizeLinear → operator → QuantizeLinear compute what ONNX Runtime says they do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from models.onnx_models import model, node, value
from onnx import TensorProto

from deploy import model as models
from deploy.model_qlinear import as_qdq
from deploy.reference import Reference, sample_inputs

TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
MS = "com.microsoft"


class QLinearNet:
    """Builds a network of operators on quantized tensors; every result is an output."""

    def __init__(self, dtype: str = "uint8", per_channel: bool = False, vector_scales: bool = False) -> None:
        self.rng, self.dtype, self.per_channel = np.random.default_rng(3), dtype, per_channel
        self.scale_shape = (1,) if vector_scales else ()
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.scales: dict[str, tuple[str, str]] = {}

    def constant(self, data: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(data)
        return name

    def scale(self, scale: float, zero_point: int | None = None) -> tuple[str, str]:
        middle = 0 if self.dtype == "int8" else 128
        zero = int(self.rng.integers(middle - 20, middle + 20)) if zero_point is None else zero_point
        stored = np.full(self.scale_shape, scale, np.float32), np.full(self.scale_shape, zero, self.dtype)
        return self.constant(stored[0]), self.constant(stored[1])

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(value(name, shape, TYPES[self.dtype]))
        self.scales[name] = self.scale(0.03)
        return name

    def weight(self, shape: tuple[int, ...], axis: int) -> tuple[str, str, str]:
        count = (shape[axis],) if self.per_channel else self.scale_shape
        scales = self.rng.uniform(0.005, 0.02, count).astype(np.float32)
        data = self.rng.integers(-127, 128, shape).astype(np.int8)
        return self.constant(data), self.constant(scales), self.constant(np.zeros(count, np.int8))

    def bias(self, count: int) -> str:
        return self.constant(self.rng.integers(-3000, 3000, count).astype(np.int32))

    def op(self, op: str, inputs: list[str], shape: tuple[int, ...] | None, domain: str = "", **attributes: Any) -> str:
        """An operator whose `inputs` are complete; "->" stands for the scale and zero point of the result."""
        result = f"y{len(self.outputs)}"
        self.scales[result] = self.scale(attributes.pop("scale", 0.03), attributes.pop("zero_point", None))
        names = [part for name in inputs for part in (self.scales[result] if name == "->" else [name])]
        self.nodes.append(node(op, names, [result], name=f"{op}_{result}", domain=domain, **attributes))
        self.outputs.append(value(result, shape, TYPES[self.dtype]))
        return result

    def quantized(self, name: str) -> list[str]:
        return [name, *self.scales[name]]

    def conv(self, x: str, channels: tuple[int, int], shape: tuple[int, ...], **attributes: Any) -> str:
        weight = self.weight((channels[1], channels[0] // attributes.get("group", 1), 3, 3), 0)
        inputs = [*self.quantized(x), *weight, "->", self.bias(channels[1])]
        return self.op("QLinearConv", inputs, shape, scale=0.2, **attributes)

    def pack(self, opset: int = 13) -> Any:
        made = model(self.nodes, self.inputs, self.outputs, self.constants, opset)
        made.opset_import.append(onnx.helper.make_opsetid(MS, 1))
        return made


def run(proto: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime, which computes the operators as they are written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def assert_close(expected: list[np.ndarray], got: list[np.ndarray]) -> None:
    different = total = 0
    for index, (wanted, found) in enumerate(zip(expected, got, strict=True)):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert len(np.unique(wanted)) > 3, f"output {index} says nothing"
        off = np.abs(found.astype(int) - wanted.astype(int))
        assert off.max() <= 1, f"output {index}: {off.max()} off"
        different, total = different + int((off > 0).sum()), total + off.size
    assert different <= total / 1000, f"{different} of {total} differ"


def check(net: QLinearNet, opset: int = 13) -> Any:
    """`net` rewritten, compared with itself; the result has no QLinear operator, and the model given is as it was."""
    proto = net.pack(opset)
    before = proto.SerializeToString()
    rewritten = as_qdq(proto)
    assert proto.SerializeToString() == before
    onnx.checker.check_model(rewritten, full_check=True)
    assert not [n.op_type for n in rewritten.graph.node if n.op_type.startswith(("QLinear", "QGemm"))]
    assert {n.name for n in proto.graph.node} <= {n.name for n in rewritten.graph.node}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        limits = np.iinfo(net.dtype)
        shapes = [[d.dim_value for d in given.type.tensor_type.shape.dim] for given in net.inputs]
        inputs = [rng.integers(limits.min, limits.max, s, net.dtype, endpoint=True) for s in shapes]
        assert_close(run(proto, inputs), run(rewritten, inputs))
    return rewritten


each_kind = pytest.mark.parametrize(
    ("dtype", "per_channel", "vector_scales"), [("uint8", False, False), ("int8", True, False), ("uint8", True, True)]
)


def conv_net(*kind: Any) -> QLinearNet:
    net = QLinearNet(*kind)
    a = net.conv(net.input(1, 4, 9, 8), (4, 8), (1, 8, 9, 8), pads=[1, 1, 1, 1])
    net.conv(a, (8, 8), (1, 8, 5, 4), pads=[1, 1, 1, 1], strides=[2, 2], group=8)
    net.op("QLinearConv", [*net.quantized(a), *net.weight((6, 8, 1, 1), 0), "->"], (1, 6, 9, 8), scale=0.1)
    return net


@each_kind
def test_convolutions(dtype, per_channel, vector_scales):
    rewritten = check(conv_net(dtype, per_channel, vector_scales))
    axes = [a.i for n in rewritten.graph.node if n.op_type == "DequantizeLinear" for a in n.attribute]
    assert axes == ([0] * 5 if per_channel else [])


@each_kind
def test_products(dtype, per_channel, vector_scales):
    net = QLinearNet(dtype, per_channel, vector_scales)
    x = net.input(5, 24)
    a = net.op("QLinearMatMul", [*net.quantized(x), *net.weight((24, 16), 1), "->"], (5, 16), scale=0.1)
    gemm = [*net.quantized(a), *net.weight((20, 16), 0), net.bias(20), "->"]
    b = net.op("QGemm", gemm, (5, 20), MS, scale=0.3, transB=1)
    net.op("QGemm", [*net.quantized(b), *net.weight((20, 6), 1), net.bias(6), "->"], (5, 6), MS, scale=0.5)
    y = net.input(16, 3)
    net.op("QLinearMatMul", [*net.quantized(a), *net.quantized(y), "->"], (5, 3), scale=0.2)
    check(net)


@pytest.mark.parametrize("dtype", TYPES)
def test_elementwise(dtype):
    net = QLinearNet(dtype)
    shape = (1, 3, 8, 8)
    x, y = net.quantized(net.input(*shape)), net.quantized(net.input(*shape))
    net.op("QLinearAdd", [*x, *y, "->"], shape, MS, scale=0.05)
    net.op("QLinearMul", [*x, *y, "->"], shape, MS, scale=0.1)
    net.op("QLinearSigmoid", [*x, "->"], shape, MS, scale=1 / 256)
    net.op("QLinearLeakyRelu", [*x, "->"], shape, MS, alpha=0.2)
    net.op("QLinearConcat", ["->", *x, *y], (1, 6, 8, 8), MS, axis=1)
    check(net)


@pytest.mark.parametrize("dtype", TYPES)
def test_pools(dtype):
    net = QLinearNet(dtype)
    x = net.quantized(net.input(2, 16, 9, 8))
    net.op("QLinearGlobalAveragePool", [*x, "->"], (2, 16, 1, 1), MS, scale=0.0117)
    sizes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    net.op("QLinearAveragePool", [*x, "->"], (2, 16, 5, 4), MS, scale=0.0213, **sizes)
    net.op("QLinearAveragePool", [*x, "->"], (2, 16, 5, 4), MS, scale=0.0213, count_include_pad=1, **sizes)
    check(net)


def test_an_older_operator_set_is_raised_for_scales_of_each_channel():
    rewritten = check(conv_net("int8", True, False), opset=10)
    assert [entry.version for entry in rewritten.opset_import if entry.domain == ""] == [13]


def test_without_quantized_operators_the_model_is_itself():
    nodes = [node("Relu", ["x"], ["y"])]
    proto = model(nodes, [value("x", [2, 2])], [value("y", [2, 2])], {})
    assert as_qdq(proto) is proto


def test_what_has_no_simple_form_stays():
    net = QLinearNet()
    x = net.input(1, 4, 4, 8)
    net.op("QLinearGlobalAveragePool", [*net.quantized(x), "->"], (1, 1, 1, 8), MS, channels_last=1)
    proto = net.pack()
    assert as_qdq(proto) is proto
    net = QLinearNet()
    x = net.input(2, 2)
    net.inputs.append(value("unit", []))  # a scale that the caller gives
    net.op("QLinearAdd", [x, "unit", net.scales[x][1], *net.quantized(x), "->"], (2, 2), MS)
    proto = net.pack()
    assert as_qdq(proto) is proto


def test_a_model_compiles_to_integers_only():
    pytest.importorskip("tvm")
    from built import build

    import deploy

    net = QLinearNet("uint8", True)
    a = net.conv(net.input(1, 4, 9, 8), (4, 8), (1, 8, 9, 8), pads=[1, 1, 1, 1])
    b = net.conv(a, (8, 8), (1, 8, 9, 8), pads=[1, 1, 1, 1])
    c = net.op("QLinearAdd", [*net.quantized(a), *net.quantized(b), "->"], (1, 8, 9, 8), MS, scale=0.3)
    d = net.op("QLinearGlobalAveragePool", [*net.quantized(c), "->"], (1, 8, 1, 1), MS, scale=0.03)
    net.nodes.append(node("Flatten", [d], ["flat"], axis=1))
    product = ["flat", *net.scales[d], *net.weight((8, 10), 1), "->"]
    net.op("QLinearMatMul", product, (1, 10), scale=0.02)
    del net.outputs[:-1]
    source = models.from_object(net.pack(), "net")
    kinds = Counter(n.op_type for n in source.original.graph.node)
    assert (kinds["QLinearConv"], kinds["DequantizeLinear"]) == (2, 0), "the reference is the user's model"
    artifact = build(source)
    assert artifact.facts["integer"]["float"] == []
    loaded, reference = deploy.load(artifact.path), Reference(source)
    for inputs in sample_inputs(source, 5, seed=1):
        assert_close(reference.run(inputs), [loaded(*inputs)])
