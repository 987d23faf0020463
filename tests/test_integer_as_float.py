"""The float form of quantized graphs: what it still rounds, what becomes of clips and constants, what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from models import tflite_models
from models import tflite_quantized as q
from models.onnx_quantized import QdqNet
from models.tflite_models import Builtin
from test_integer_tflite import runner

from deploy.model import SourceModel, from_object, load
from deploy.reference import Reference
from deploy.relax_import import import_model

tvm = pytest.importorskip("tvm")
from tvm.relax.analysis import well_formed  # noqa: E402

from deploy import operators  # noqa: E402
from deploy.integer.as_float import as_float  # noqa: E402
from deploy.relax_rewrite import op_name  # noqa: E402

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models" / "mlperf-tiny"
SAME = schema.Padding.SAME


def loaded(net: q.Net, folder: Path, outputs: int = 0) -> SourceModel:
    """The network as a file; only its last `outputs` results are given, if not all of them."""
    net.outputs = net.outputs[-outputs:]
    file = folder / "net.tflite"
    file.write_bytes(net.pack())
    return load(file)


def converted(source: SourceModel) -> tuple[Any, dict[str, int]]:
    """The float form and its operators."""
    mod = as_float(import_model(source).mod)
    well_formed(mod)
    return mod, operators.count(mod)[0]


def largest_difference(source: SourceModel, mod: Any, inputs: list[np.ndarray]) -> int:
    """In units of the outputs, each of which must take many values."""
    largest = 0
    for expected, got in zip(Reference(source).run(inputs), runner(mod)(inputs), strict=True):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert len(np.unique(expected)) > 10, "a result that is the same everywhere proves nothing"
        largest = max(largest, int(np.abs(got.astype(int) - expected).max()))
    return largest


def test_nothing_is_rounded_in_between(tmp_path):
    net = q.Net(0)
    a = net.conv(net.input(1, 9, 7, 5), 6, 3, padding=SAME, fusedActivationFunction=q.Activation.RELU)
    b = net.depthwise(a, 1, 3, padding=SAME)
    c = net.pool(b, Builtin.AVERAGE_POOL_2D, 2, strideH=2, strideW=2)
    d = net.pool(b, Builtin.MAX_POOL_2D, 2, strideH=2, strideW=2)
    net.dense(net.reshape(net.concat([c, d], 3, b.scale, b.zero_point), 12, 20), 11)
    _, found = converted(loaded(net, tmp_path, outputs=1))
    boundary = {name: found.pop(name) for name in ("dequantize", "quantize")}
    assert boundary == {"dequantize": 1, "quantize": 1}
    assert not {"clip", "astype"} & set(found)
    assert {name: found[name] for name in ("nn.conv2d", "nn.avg_pool2d", "nn.max_pool2d", "concat", "matmul")} == {
        "nn.conv2d": 2, "nn.avg_pool2d": 1, "nn.max_pool2d": 1, "concat": 1, "matmul": 1,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_results_are_within_a_rounding_of_the_integers(tmp_path, seed):
    """One operator deep, every result is the same number, rounded once."""
    net = q.Net(seed)
    x, y = net.input(1, 8, 8, 5), net.input(1, 8, 8, 5)
    net.conv(x, 6, 3, padding=SAME, fusedActivationFunction=q.Activation.RELU6)
    net.depthwise(x, 2, 3)
    net.pool(x, Builtin.AVERAGE_POOL_2D, 2, strideH=2, strideW=2)
    net.pool(x, Builtin.MAX_POOL_2D, 3, padding=SAME)
    net.binary(Builtin.ADD, x, y, schema.AddOptionsT, fusedActivationFunction=q.Activation.RELU)
    net.binary(Builtin.MUL, x, y, schema.MulOptionsT)
    net.reduce(x, Builtin.MEAN, (1, 2), True)
    source = loaded(net, tmp_path)
    outputs = [len(np.unique(value)) > 10 for value in Reference(source).run(net.data(1))]
    assert sum(outputs) >= 5
    net.outputs = [tensor for tensor, varied in zip(net.outputs, outputs, strict=True) if varied]
    source = loaded(net, tmp_path)
    mod, _ = converted(source)
    assert largest_difference(source, mod, net.data(1)) <= 1


def test_an_activation_is_where_a_clip_ends(tmp_path):
    """The end of the type limits integers only: the float model has a ReLU, and no 127th part of something."""
    expected = {"NONE": {}, "RELU": {"maximum": 1}, "RELU6": {"maximum": 1, "minimum": 1},
                "RELU_N1_TO_1": {"maximum": 1, "minimum": 1}}  # fmt: skip
    for activation, limits in expected.items():
        net = q.Net(0)
        x = net.input(1, 9)
        w, scales = net.weights((4, 9), 0, False)
        inner, inputs = net.tensor((1, 4), 0.06, -3), [x.index, w, net.bias(x, scales, 4)]
        kind, value = schema.FullyConnectedOptionsT, getattr(q.Activation, activation)
        net.op(Builtin.FULLY_CONNECTED, inputs, inner, kind, fusedActivationFunction=value)
        net.dense(inner, 3)
        _, found = converted(loaded(net, tmp_path, outputs=1))
        assert {name: found[name] for name in ("maximum", "minimum", "clip") if name in found} == limits, activation


def test_zero_and_six_are_activations_even_at_the_type_s_ends(tmp_path):
    """Where zero is the lowest integer and six the highest, a ReLU6 is the whole type: the clip alone says it."""
    net = q.Net(0)
    x = net.input(1, 9)
    w, scales = net.weights((4, 9), 0, False)
    inner, inputs = net.tensor((1, 4), 6 / 255, -128), [x.index, w, net.bias(x, scales, 4)]
    kind, activation = schema.FullyConnectedOptionsT, q.Activation.RELU6
    net.op(Builtin.FULLY_CONNECTED, inputs, inner, kind, fusedActivationFunction=activation)
    net.dense(inner, 3)
    mod, found = converted(loaded(net, tmp_path, outputs=1))
    assert (found["maximum"], found["minimum"]) == (1, 1)
    limits = [float(b.value.args[1].value.numpy()) for block in mod["main"].body.blocks for b in block.bindings
              if op_name(b.value) in ("relax.maximum", "relax.minimum")]  # fmt: skip
    assert limits == [0.0, 6.0]


@pytest.mark.parametrize("per_channel", [True, False])
def test_onnx(per_channel):
    net = QdqNet(1, "uint8", per_channel)
    x = net.input(1, 8, 9, 7)
    net.conv(net.conv(x, 12, 3, then=[("Relu", [])]), 12, 3, groups=12)
    net.outputs = net.outputs[-1:]
    _, found = converted(from_object(net.pack(), "net"))
    assert (found["dequantize"], found["quantize"], found["nn.conv2d"]) == (1, 1, 2)
    net = QdqNet(1, "uint8", per_channel)
    net.conv(net.input(1, 8, 9, 7), 12, 3, then=[("Relu", [])])
    source = from_object(net.pack(), "net")
    assert largest_difference(source, converted(source)[0], net.data(0)) <= 1


def test_integers_of_unknown_meaning_stay(tmp_path):
    """A model's input has no scale but in what reads it: what is pooled before that is pooled as integers."""
    net = q.Net(0)
    net.conv(net.pool(net.input(1, 6, 6, 3), Builtin.MAX_POOL_2D, 2), 4, 3)
    source = loaded(net, tmp_path, outputs=1)
    mod, found = converted(source)
    assert (found["nn.max_pool2d"], found["dequantize"], found["quantize"]) == (1, 1, 1)
    assert largest_difference(source, mod, net.data(1)) <= 1


def test_another_name_is_the_same_number():
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    scale, zero = relax.const(0.5, "float32"), relax.const(0, "int32")
    with builder.function("main", [x]):
        with builder.dataflow():
            stored = builder.emit(relax.op.quantize(x, scale, zero, out_dtype="int8"))
            renamed = builder.emit(stored)
            result = builder.emit(relax.op.dequantize(renamed, scale, zero))
            doubled = builder.emit_output(relax.op.add(result, result))
        builder.emit_func_output(doubled)
    assert operators.count(as_float(builder.get()))[0] == {"add": 1}


def test_another_scale_behind_is_another_number():
    """A result read with other scales than it was written with is not the number that was written."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    zero = relax.const(0, "int32")
    with builder.function("main", [x]):
        with builder.dataflow():
            stored = builder.emit(relax.op.quantize(x, relax.const(0.5, "float32"), zero, out_dtype="int8"))
            result = builder.emit_output(relax.op.dequantize(stored, relax.const(0.25, "float32"), zero))
        builder.emit_func_output(result)
    mod = as_float(builder.get())
    assert operators.count(mod)[0] == {"dequantize": 1, "quantize": 1}


def test_a_float_model_stays_as_it_is(tmp_path):
    file = tmp_path / "net.tflite"
    file.write_bytes(tflite_models.conv_net())
    mod = import_model(load(file)).mod
    assert operators.count(as_float(mod)) == operators.count(mod)


@pytest.mark.skipif(not MODELS.is_dir(), reason="the MLPerf Tiny models are not beside the project")
@pytest.mark.parametrize("name", ["ad_autoencoder_int8", "ic_resnet8_int8", "kws_dscnn_int8", "vww_mobilenetv1_int8"])
def test_the_mlperf_tiny_models_are_float_all_through(name):
    source = load(MODELS / f"{name}.tflite")
    before = operators.count(import_model(source).mod)
    mod, found = converted(source)
    assert (found["quantize"], found["dequantize"]) == (1, 1)
    assert operators.count(mod)[1] == before[1], "the same multiply-accumulates"
    products = ("nn.conv2d", "matmul")
    assert [found.get(one) for one in products] == [before[0].get(one) for one in products]
