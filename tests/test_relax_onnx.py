"""ONNX operators on integers give ONNX Runtime's numbers: the same integers, and what is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from models.onnx_models import model, node, value
from onnx import TensorProto
from test_integer_tflite import runner

from deploy.errors import InputError
from deploy.model import from_object
from deploy.reference import Reference, sample_inputs
from deploy.relax_import import import_model

pytest.importorskip("tvm")
from deploy.integer import IntegerModel, to_integer

TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
each_type = pytest.mark.parametrize("weights", ["int8", "uint8"])


class Net:
    """Builds a network; every operator's result is an output, unless it says otherwise."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, dtype: str, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(value(name, shape, TYPES[dtype]))
        return name

    def constant(self, data: Any, dtype: str) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(data, dtype)
        return name

    def random(self, dtype: str, *shape: int) -> str:
        limits = np.iinfo(dtype)
        return self.constant(self.rng.integers(limits.min, limits.max, shape, endpoint=True), dtype)

    def integer(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"y{len(self.outputs)}"
        self.nodes.append(node(op, inputs, [name], **attributes))
        self.outputs.append(value(name, shape, TensorProto.INT32))
        return name

    def source(self) -> Any:
        return from_object(model(self.nodes, self.inputs, self.outputs, self.constants), "net")


def check_exact(source: Any, inputs: list[list[np.ndarray]] | None = None) -> None:
    reference, compiled = Reference(source), runner(import_model(source).mod)
    for given in inputs or sample_inputs(source, 3, 1):
        for spec, expected, got in zip(source.outputs, reference.run(given), compiled(given), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected, err_msg=spec.name)


@each_type
def test_products(weights):
    net = Net()
    x, signed, zero = net.input("uint8", 4, 24), net.input("int8", 2, 4, 24), net.input("uint8")
    w, columns = net.random(weights, 24, 7), net.random(weights, 7)
    third = net.constant(77, "uint8")
    net.integer("MatMulInteger", [x, w], (4, 7))
    net.integer("MatMulInteger", [x, w, third], (4, 7))
    net.integer("MatMulInteger", [x, w, third, net.constant(9, weights)], (4, 7))
    net.integer("MatMulInteger", [x, w, zero, columns], (4, 7))
    net.integer("MatMulInteger", [signed, w, "", columns], (2, 4, 7))
    net.integer("MatMulInteger", [x, net.random(weights, 3, 24, 5), zero], (3, 4, 5))
    net.integer("MatMulInteger", [x, net.input(weights, 24, 6), zero, net.constant(5, weights)], (4, 6))
    check_exact(net.source())


@each_type
def test_convolutions(weights):
    net = Net()
    x, zero = net.input("uint8", 2, 6, 9, 8), net.input("uint8")
    w, w_zero, third = net.random(weights, 4, 6, 3, 3), net.constant(13, weights), net.constant(77, "uint8")
    net.integer("ConvInteger", [x, w], (2, 4, 7, 6))
    net.integer("ConvInteger", [x, w, third, w_zero], (2, 4, 9, 8), pads=[1, 1, 1, 1])
    net.integer("ConvInteger", [x, w, zero, w_zero], (2, 4, 5, 4), pads=[1, 1, 1, 1], strides=[2, 2])
    net.integer("ConvInteger", [x, w, zero], (2, 4, 9, 6), pads=[3, 1, 1, 1], dilations=[2, 2])
    net.integer("ConvInteger", [x, net.random(weights, 4, 3, 3, 3), zero], (2, 4, 9, 8), group=2, pads=[1, 1, 1, 1])
    net.integer("ConvInteger", [x, net.random(weights, 4, 6, 2, 3), zero], (2, 4, 9, 8), auto_pad="SAME_UPPER")
    net.integer("ConvInteger", [x, net.random(weights, 4, 6, 2, 3), zero], (2, 4, 5, 4), auto_pad="SAME_LOWER",
                strides=[2, 2])  # fmt: skip
    net.integer("ConvInteger", [x, w, zero], (2, 4, 7, 6), auto_pad="VALID")
    row = net.input("uint8", 1, 3, 12)
    net.integer("ConvInteger", [row, net.random(weights, 2, 3, 3), zero], (1, 2, 12), pads=[1, 1])
    check_exact(net.source())


def test_the_range_of_a_tensor_becomes_its_scale():
    net = Net()
    x = net.input("float32", 6, 5)
    net.nodes.append(node("DynamicQuantizeLinear", [x], ["y", "scale", "zero"]))
    kinds = {"y": ([6, 5], TensorProto.UINT8), "scale": ([], TensorProto.FLOAT), "zero": ([], TensorProto.UINT8)}
    net.outputs = [value(name, *kind) for name, kind in kinds.items()]
    source = net.source()
    found = [given[0] for given in sample_inputs(source, 4, 1)]
    tensors = [*found, abs(found[0]) + 1, -abs(found[1]) - 1, np.zeros_like(found[0]), found[0] * np.float32(1e-30)]
    check_exact(source, [[tensor] for tensor in tensors])


def quantized_by_onnxruntime(tmp_path: Any, float_model: Any, **options: Any) -> Any:
    quantization = pytest.importorskip("onnxruntime.quantization")
    before, after = tmp_path / "float.onnx", tmp_path / "net.onnx"
    onnx.save(float_model, before)
    kinds = {"weight_type": quantization.QuantType.QInt8, "op_types_to_quantize": ["Conv", "MatMul", "Gemm"]}
    quantization.quantize_dynamic(before, after, **{**kinds, **options})
    return from_object(onnx.load(after), "net")


def float_net() -> Any:
    rng = np.random.default_rng(1)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "w2": (8, 2, 3, 3), "m": (8, 6), "mb": (6,), "m2": (5, 6), "b2": (5,)}
    constants = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "w2"], ["c2"], group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
        node("GlobalAveragePool", ["c2"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "m"], ["mm"]),
        node("Add", ["mm", "mb"], ["a"]),
        node("Gemm", ["a", "m2", "b2"], ["y"], transB=1),
    ]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 5])], constants)


def linear_types(integer: IntegerModel) -> list[str]:
    """The type that each convolution and product of a model is summed in."""
    values = [binding.value for block in integer.mod["main"].body.blocks for binding in block.bindings]
    calls = [v for v in values if getattr(getattr(v, "op", None), "name", "") in ("relax.nn.conv2d", "relax.matmul")]
    return [str(call.ty.dtype) for call in calls]


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_network_quantized_dynamically(tmp_path, per_channel):
    source = quantized_by_onnxruntime(tmp_path, float_net(), per_channel=per_channel)
    integer = to_integer(import_model(source), source_format="onnx")
    assert linear_types(integer) == ["int32"] * 4
    reasons = {kept.reason for kept in integer.kept_float if kept.name == "quantize"}
    assert reasons == {"an activation has a scale or zero point that is computed when the model runs"}
    assert "quantize" not in integer.after, "layout conversion would stop there"
    reference, compiled = Reference(source), runner(integer.mod)
    for inputs in sample_inputs(source, 5, 1):
        np.testing.assert_allclose(compiled(inputs)[0], reference.run(inputs)[0], rtol=1e-5, atol=1e-6)


def test_a_network_quantized_dynamically_compiles(tmp_path):
    from built import build

    import deploy

    source = quantized_by_onnxruntime(tmp_path, float_net())
    artifact, reference = build(source), Reference(source)
    assert {kept["name"] for kept in artifact.facts["integer"]["float"]} >= {"quantize", "multiply"}
    loaded = deploy.load(artifact.path)
    for inputs in sample_inputs(source, 3, 1):
        np.testing.assert_allclose(loaded(*inputs), reference.run(inputs)[0], rtol=1e-5, atol=1e-6)


def test_a_recurrent_operator_is_refused_by_name():
    shapes = {"w": (1, 4, 32), "r": (1, 8, 32)}
    constants = {name: np.zeros(shape, np.int8) for name, shape in shapes.items()}
    for name in shapes:
        constants |= {f"{name}s": np.ones((1,), np.float32), f"{name}z": np.zeros((1,), np.int8)}
    inputs = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    nodes = [node("DynamicQuantizeLSTM", inputs, ["y"], name="memory", domain="com.microsoft", hidden_size=8)]
    made = model(nodes, [value("x", [3, 1, 4])], [value("y", [3, 1, 1, 8])], constants)
    made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(InputError, match=r"com.microsoft.DynamicQuantizeLSTM \(in memory\)"):
        import_model(from_object(made, "net"))


def test_computed_weights_of_a_convolution_are_refused():
    net = Net()
    x, w = net.input("uint8", 1, 2, 5, 5), net.input("uint8", 3, 2, 3, 3)
    net.integer("ConvInteger", [x, w], (1, 3, 3, 3), name="moving")
    with pytest.raises(InputError, match=r"ConvInteger .node 'moving'.*make them constants"):
        import_model(net.source())
