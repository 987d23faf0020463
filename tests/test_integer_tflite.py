"""Integer TFLite operators give what LiteRT's reference kernels give, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tflite_quantized as q
from models.tflite_models import Builtin

from deploy.model import SourceModel, load
from deploy.reference import Reference
from deploy.relax_import import import_model

tvm = pytest.importorskip("tvm")
from deploy.integer import IntegerModel, to_integer  # noqa: E402

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


def runner(mod: Any) -> Any:
    """A function that runs a module, compiled once without tuning."""
    from tvm import relax

    layouts = {"relax.nn.conv2d_transpose": ["NCHW", "IOHW"]}  # TVM's own kernel is in no other
    passes = [relax.transform.ConvertLayout(layouts), relax.transform.Normalize(), relax.get_pipeline("zero")]
    compiled = tvm.compile(tvm.transform.Sequential(passes)(mod), target=tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(compiled, tvm.cpu())

    def call(inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs = machine["main"](*[tvm.runtime.tensor(value) for value in inputs])
        return [outputs.numpy()] if hasattr(outputs, "numpy") else [output.numpy() for output in outputs]

    return call


def converted(net: q.Net, folder: Path) -> tuple[SourceModel, IntegerModel]:
    """The network as loaded, and in integers."""
    file = folder / "net.tflite"
    file.write_bytes(net.pack())
    source = load(file)
    return source, to_integer(import_model(source))


def check(net: q.Net, folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> IntegerModel:
    """Every result of every operator equals LiteRT's, and nothing is left in float."""
    source, integer = converted(net, folder)
    assert integer.kept_float == ()
    assert not {"quantize", "dequantize"} & set(integer.after)
    reference, compiled = Reference(source), runner(integer.mod)
    for seed in seeds:
        inputs = net.data(seed)
        results = zip(reference.run(inputs), compiled(inputs), strict=True)
        for number, (expected, got) in enumerate(results):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected, err_msg=f"result {number}, seed {seed}")
    return integer


@pytest.mark.parametrize("seed", range(3))
def test_convolutions(tmp_path, seed):
    net = q.Net(seed)
    x = net.input(1, 9, 7, 5)
    a = net.conv(x, 6, 3, padding=SAME, fusedActivationFunction=q.Activation.RELU)
    net.conv(x, 4, 3, padding=SAME, strideH=2, strideW=2, fusedActivationFunction=q.Activation.RELU6)
    net.conv(x, 3, 2, dilationHFactor=2, dilationWFactor=2, fusedActivationFunction=q.Activation.RELU_N1_TO_1)
    net.depthwise(a, 1, 3, padding=SAME, strideH=2, strideW=2)
    net.depthwise(a, 2, 3, fusedActivationFunction=q.Activation.RELU6)
    net.conv(net.conv(a, 8, 1), 2, 1)
    check(net, tmp_path)


def test_fused_activations_round_like_tflite(tmp_path):
    """6 / scale is 12.5: TFLite rounds it to 13, a half to the even neighbour would be 12."""
    net = q.Net(0)
    x = net.input(1, 9)
    w, scales = net.weights((4, 9), 0, False)
    for activation in q.ACTIVATIONS:
        out, inputs = net.tensor((1, 4), 0.48, -3), [x.index, w, net.bias(x, scales, 4)]
        net.op(Builtin.FULLY_CONNECTED, inputs, out, schema.FullyConnectedOptionsT, fusedActivationFunction=activation)
    integer = check(net, tmp_path, tuple(range(6)))
    assert integer.after["maximum"] <= 4


@pytest.mark.parametrize("seed", range(4))
def test_fully_connected(tmp_path, seed):
    net = q.Net(seed)
    x = net.input(2, 33)
    a = net.dense(x, 17, fusedActivationFunction=q.Activation.RELU)
    b = net.dense(x, 9, per_channel=True)
    net.dense(a, 5, per_channel=True, fusedActivationFunction=q.Activation.RELU6)
    net.dense(b, 5)
    integer = check(net, tmp_path)
    assert integer.after["matmul"] == 4


def test_each_rounding_of_a_fully_connected_layer_is_its_own_reference_s(tmp_path):
    """LiteRT scales a sum once in floating point, TFLite Micro twice in integers: some results are one unit apart."""
    pytest.importorskip("tflite_micro", reason="TFLite Micro is not installed")
    net = q.Net(0)
    a = net.dense(net.input(64, 33), 17, fusedActivationFunction=q.Activation.RELU)
    net.dense(net.dense(a, 9, per_channel=True), 5)
    source, _ = converted(net, tmp_path)
    inputs, model = net.data(0), import_model(source)
    expected = {rounding: Reference(source, rounding).run(inputs) for rounding in ("single", "double")}
    assert any((one != other).any() for one, other in zip(*expected.values(), strict=True)), "they differ at all"
    for rounding, results in expected.items():
        for wanted, got in zip(results, runner(to_integer(model, rounding).mod)(inputs), strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=rounding)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("code", "kind"),
    [(Builtin.ADD, schema.AddOptionsT), (Builtin.SUB, schema.SubOptionsT), (Builtin.MUL, schema.MulOptionsT)],
)
def test_sums_differences_and_products(tmp_path, seed, code, kind):
    net = q.Net(seed)
    x, y = net.input(2, 5, 4, 3), net.input(2, 5, 4, 3)
    row = net.input(1, 1, 1, 3)
    for activation in q.ACTIVATIONS[:3]:
        net.binary(code, x, y, kind, fusedActivationFunction=activation)
    net.binary(code, x, row, kind)
    net.binary(code, y, net.constant(3), kind)
    check(net, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_pools_and_means(tmp_path, seed):
    net = q.Net(seed)
    x = net.input(1, 7, 6, 5)
    for code in (Builtin.AVERAGE_POOL_2D, Builtin.MAX_POOL_2D):
        net.pool(x, code, 2, strideH=2, strideW=2)
        net.pool(x, code, 3, padding=SAME, strideH=2, strideW=1, fusedActivationFunction=q.Activation.RELU)
        net.pool(x, code, 6)
    net.pool(net.input(1, 4, 4, 3), Builtin.AVERAGE_POOL_2D, 4)
    for axes, keep in (((1, 2), True), ((1, 2), False), ((3,), True), ((1,), False)):
        net.reduce(x, Builtin.MEAN, axes, keep)
    check(net, tmp_path)


@pytest.mark.parametrize("seed", range(6))
def test_softmax(tmp_path, seed):
    net = q.Net(seed)
    scale = float(np.float32(2.0 ** net.rng.uniform(-7, 1)))
    x = net.tensor((7, int(net.rng.integers(2, 40))), scale)
    net.inputs.append(x)
    net.fixed(Builtin.SOFTMAX, x, 1 / 256, -128, schema.SoftmaxOptionsT, beta=1.0)
    integer = check(net, tmp_path, tuple(range(8)))
    assert "nn.softmax" not in integer.after


@pytest.mark.parametrize("seed", range(5))
def test_functions_of_one_tensor(tmp_path, seed):
    net = q.Net(seed)
    x = net.tensor((2, 300), float(np.float32(2.0 ** net.rng.uniform(-6, -2))))
    net.inputs.append(x)
    net.fixed(Builtin.LOGISTIC, x, 1 / 256, -128)
    net.fixed(Builtin.TANH, x, 1 / 128, 0)
    net.op(Builtin.HARD_SWISH, [x.index], net.tensor(x.shape, x.scale * 0.9), schema.HardSwishOptionsT)
    for alpha in (0.1, 0.25):
        net.unary(Builtin.LEAKY_RELU, x, schema.LeakyReluOptionsT, alpha=alpha)
    for code in (Builtin.RELU, Builtin.RELU6, Builtin.RELU_N1_TO_1, Builtin.QUANTIZE):
        net.unary(code, x)
    check(net, tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_what_only_moves_elements(tmp_path, seed):
    net = q.Net(seed)
    x = net.input(1, 4, 6, 3)
    a = net.reshape(x, 1, 6, 4, 3)
    same = net.pool(a, Builtin.MAX_POOL_2D, 1)
    net.concat([a, same], 3, x.scale, x.zero_point)
    for code in (Builtin.MAXIMUM, Builtin.MINIMUM):
        out = net.tensor(a.shape, x.scale, x.zero_point)
        net.op(code, [a.index, same.index], out, schema.MaximumMinimumOptionsT)
    check(net, tmp_path)


@pytest.mark.parametrize("padding", [SAME, VALID])
def test_transposed_convolution(tmp_path, padding):
    net = q.Net(padding)
    net.transpose_conv(net.input(1, 4, 5, 3), 4, 3, 2, padding)
    check(net, tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_16_bit_activations(tmp_path, seed):
    net = q.Net(seed, "int16")
    x, y = (net.tensor((1, 6, 6, 4), scale) for scale in (1e-4, 2e-4))
    net.inputs += [x, y]
    net.wide_conv(x, 5, 3)
    net.transpose_conv(x, 3, 2, 2, VALID, has_bias=False)
    net.dense(net.reshape(y, 4, 36), 5, has_bias=False)
    net.dense(net.reshape(x, 4, 36), 5, quantizedBiasType=schema.TensorType.INT32)
    for code, kind in (
        (Builtin.ADD, schema.AddOptionsT), (Builtin.SUB, schema.SubOptionsT), (Builtin.MUL, schema.MulOptionsT)
    ):  # fmt: skip
        net.op(code, [x.index, y.index], net.tensor(x.shape, 3e-4), kind)
    for code in (Builtin.AVERAGE_POOL_2D, Builtin.MAX_POOL_2D):
        net.pool(x, code, 2, strideH=2, strideW=2)
    net.reduce(x, Builtin.MEAN, (1, 2), True)
    net.op(Builtin.RELU, [x.index], net.tensor(x.shape, 2e-4))
    check(net, tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_unsigned_convolutions(tmp_path, seed):
    """The older form: uint8 weights with a zero point, one scale."""
    net = q.Net(seed, "uint8")
    x = net.input(1, 6, 5, 3)
    zero_point = int(net.rng.integers(90, 160))
    for code, shape, kind in (
        (Builtin.CONV_2D, (4, 3, 3, 3), schema.Conv2DOptionsT),
        (Builtin.DEPTHWISE_CONV_2D, (1, 3, 3, 3), schema.DepthwiseConv2DOptionsT),
    ):
        data, scale = net.rng.integers(0, 256, shape), np.float32(net.rng.uniform(0.002, 0.01))
        w = net.b.tensor("w", shape, "uint8", data=data, scale=scale, zero_point=zero_point)
        channels = shape[0] if code == Builtin.CONV_2D else shape[3]
        values = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": SAME}
        values |= {"depthMultiplier": 1} if code == Builtin.DEPTHWISE_CONV_2D else {}
        inputs = [x.index, w, net.bias(x, np.array([scale]), channels)]
        net.op(code, inputs, net.tensor((1, 6, 5, channels), x.scale * scale * 200), kind, **values)
    check(net, tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_unsigned_sums(tmp_path, seed):
    """LiteRT's SUM of int8 tensors reads them as uint8; the definition is what it does with uint8."""
    net = q.Net(seed, "uint8")
    x = net.input(1, 3, 2, 5)
    for axes, keep in (((1, 2), True), ((3,), False)):
        net.reduce(x, Builtin.SUM, axes, keep)
    check(net, tmp_path)


def test_unsigned_tensors_joined_with_different_scales(tmp_path):
    net = q.Net(3, "uint8")
    x, y = net.input(2, 6), net.input(2, 4)
    net.concat([x, y], 1)
    check(net, tmp_path)


@settings(max_examples=6)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.sampled_from(["conv", "depthwise", "add", "max", "mean", "mul"]), max_size=5)
)
def test_random_networks(tmp_path_factory, seed, steps):
    net = q.Net(seed)
    x = net.input(1, 6, 6, 4)
    other = net.conv(x, 4, 3, padding=SAME)
    for step in steps:
        activation = net.rng.choice(q.ACTIVATIONS)
        if step == "conv":
            x = net.conv(x, 4, 3, padding=SAME, fusedActivationFunction=activation)
        elif step == "depthwise":
            x = net.depthwise(x, 1, 3, padding=SAME, fusedActivationFunction=activation)
        elif step == "max":
            x = net.pool(x, Builtin.MAX_POOL_2D, 3, padding=SAME)
        elif step == "mean":
            x = net.binary(Builtin.ADD, x, net.reduce(x, Builtin.MEAN, (1, 2), True), schema.AddOptionsT)
        else:
            code, kind = (Builtin.ADD, schema.AddOptionsT) if step == "add" else (Builtin.MUL, schema.MulOptionsT)
            x = net.binary(code, x, other, kind, fusedActivationFunction=activation)
    net.fixed(Builtin.SOFTMAX, net.dense(net.reshape(x, 1, 144), 5), 1 / 256, -128, schema.SoftmaxOptionsT, beta=1.0)
    check(net, tmp_path_factory.mktemp("random"), (0, 1))
