"""Integer operators of ONNX models in QDQ form give what ONNX Runtime gives: at most 1 off, 99.9 % equal."""

from __future__ import annotations

import numpy as np
import pytest
from models.onnx_quantized import QdqNet
from test_integer_tflite import runner

from deploy.model import from_object
from deploy.reference import Reference
from deploy.relax_import import import_model

pytest.importorskip("tvm")
from deploy.integer import IntegerModel, to_integer

KINDS = [("int8", True), ("uint8", True), ("int8", False)]
each_kind = pytest.mark.parametrize(("dtype", "per_channel"), KINDS)


def check(net: QdqNet, seeds: int = 3) -> IntegerModel:
    """Every result of every operator is ONNX Runtime's."""
    source = from_object(net.pack(), "net")
    integer = to_integer(import_model(source), source_format="onnx")
    assert integer.kept_float == ()
    assert not {"quantize", "dequantize"} & set(integer.after)
    reference, compiled = Reference(source), runner(integer.mod)
    different = total = 0
    for seed in range(seeds):
        inputs = net.data(seed)
        for spec, expected, got in zip(source.outputs, reference.run(inputs), compiled(inputs), strict=True):
            assert got.dtype == expected.dtype
            off = np.abs(got.astype(int) - expected.astype(int))
            assert off.max() <= 1, f"{spec.name}: {off.max()} off"
            different, total = different + int((off > 0).sum()), total + off.size
    assert different <= total / 1000, f"{different} of {total} differ"
    return integer


@each_kind
def test_convolutions(dtype, per_channel):
    net = QdqNet(1, dtype, per_channel)
    six = [net.constant(np.float32(0)), net.constant(np.float32(6))]
    x = net.input(1, 8, 9, 7)
    a = net.conv(x, 12, 3, then=[("Relu", [])])
    b = net.conv(a, 12, 3, groups=12, then=[("Clip", six)], strides=[2, 2])
    net.conv(b, 8, 3, groups=4)
    net.conv(x, 4, 3, dilations=[2, 2], pads=[2, 2, 2, 2])
    integer = check(net)
    assert integer.after["nn.conv2d"] == 4


@each_kind
def test_products(dtype, per_channel):
    net = QdqNet(2, dtype, per_channel)
    x = net.input(3, 40)
    w, _ = net.weight((40, 30), axis=1)
    a = net.op("MatMul", [x, w], (3, 30), net.scale(0.05), [("Relu", [])])
    w, scales = net.weight((20, 30))
    net.op("Gemm", [a, w, net.bias(a, scales, 20)], (3, 20), net.scale(0.1), transB=1)
    y = net.input(40, 6)
    net.op("MatMul", [x, y], (3, 6), net.scale(0.5))
    check(net)


@each_kind
def test_elementwise(dtype, per_channel):
    net = QdqNet(3, dtype, per_channel)
    x, y = net.input(1, 5, 8, 8), net.input(1, 5, 8, 8)
    for op in ("Add", "Sub", "Mul", "Max", "Min"):
        net.op(op, [x, y], (1, 5, 8, 8))
    net.op("Add", [x, y], (1, 5, 8, 8), then=[("Relu", [])])
    net.op("Mul", [x, net.constant(net.rng.uniform(0, 2, (5, 1, 1)).astype(np.float32))], (1, 5, 8, 8))
    net.op("Relu", [x], (1, 5, 8, 8))
    check(net)


@each_kind
def test_functions(dtype, per_channel):
    net = QdqNet(4, dtype, per_channel)
    x = net.input(4, 100)
    for op in ("Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Erf", "Exp", "Elu", "Softplus", "Gelu"):
        if op != "Gelu":
            net.op(op, [x], (4, 100))
    net.op("Softmax", [x], (4, 100), net.scale(1 / 256))
    check(net)


@each_kind
def test_pools(dtype, per_channel):
    net = QdqNet(5, dtype, per_channel)
    x = net.input(2, 3, 8, 9)
    net.op("MaxPool", [x], (2, 3, 4, 4), kernel_shape=[2, 2], strides=[2, 2])
    net.op("AveragePool", [x], (2, 3, 8, 9), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    net.op("AveragePool", [x], (2, 3, 8, 9), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    net.op("GlobalAveragePool", [x], (2, 3, 1, 1))
    net.op("ReduceMean", [x, net.constant(np.array([2, 3]))], (2, 3), keepdims=0)
    check(net)


@each_kind
def test_moves(dtype, per_channel):
    net = QdqNet(6, dtype, per_channel)
    x = net.input(1, 4, 6, 5)
    same = net.scales[x]
    a = net.op("Transpose", [x], (1, 6, 5, 4), same, perm=[0, 2, 3, 1])
    net.op("Reshape", [a, net.constant(np.array([1, -1]))], (1, 120), same)
    starts, ends, axes = (net.constant(np.array(v)) for v in ([1, 0], [5, 3], [2, 3]))
    net.op("Slice", [x, starts, ends, axes], (1, 4, 4, 3), same)
    net.op("Pad", [x, net.constant(np.array([0, 0, 1, 2, 0, 0, 1, 0]))], (1, 4, 8, 7), same)
    net.op("Concat", [x, net.input(1, 2, 6, 5)], (1, 6, 6, 5), axis=1)
    check(net)
