"""What the pass leaves alone, and what it says about it."""

from __future__ import annotations

import numpy as np
import pytest
from models import onnx_models, tflite_models
from models import tflite_quantized as q
from models.onnx_quantized import QdqNet
from models.tflite_models import Builtin
from test_integer_tflite import runner

from deploy.errors import InputError
from deploy.model import from_object, load
from deploy.relax_import import RelaxModel, import_model

tvm = pytest.importorskip("tvm")
from tvm.relax.analysis import well_formed  # noqa: E402

from deploy.integer import FloatOperator, IntegerModel, to_integer  # noqa: E402
from deploy.relax_rewrite import op_name  # noqa: E402


def tflite(tmp_path, data: bytes) -> RelaxModel:
    file = tmp_path / "net.tflite"
    file.write_bytes(data)
    return import_model(load(file))


def operators(integer: IntegerModel) -> list[str]:
    return [
        op_name(b.value).removeprefix("relax.") for block in integer.mod["main"].body.blocks for b in block.bindings
    ]


def test_a_float_model_stays_as_it_is(tmp_path):
    model = tflite(tmp_path, tflite_models.conv_net())
    integer = to_integer(model)
    assert integer.before == integer.after
    assert {kept.reason for kept in integer.kept_float} == {"its operands or its result are not quantized"}
    assert "nn.conv2d" in {kept.name for kept in integer.kept_float}


def test_the_form_of_a_convolution(tmp_path):
    net = q.Net(0)
    net.conv(net.input(1, 6, 6, 3), 4, 3)
    integer = to_integer(tflite(tmp_path, net.pack()))
    well_formed(integer.mod)
    assert operators(integer) == [
        "astype", "subtract", "nn.conv2d", "add",
        "astype", "multiply", "right_shift", "multiply", "add", "add", "right_shift",
        "astype", "add", "maximum", "minimum", "astype",
    ]  # fmt: skip


def test_a_relu_saves_the_sign(tmp_path):
    net = q.Net(0)
    x = net.input(1, 6)
    net.op(Builtin.RELU, [x.index], net.tensor(x.shape, x.scale * 2, -128))
    integer = to_integer(tflite(tmp_path, net.pack()))
    assert operators(integer).count("right_shift") == 1


def test_the_ends_of_a_model_with_float_ends():
    """QDQ models often take and give floating point numbers: those two operators stay, and say so."""
    integer = to_integer(import_model(from_object(onnx_models.quantized(), "net")), source_format="onnx")
    assert integer.kept_float == (
        FloatOperator("quantize", "the model's input is not quantized"),
        FloatOperator("dequantize", "its result is read as a floating point number"),
    )
    assert integer.after["nn.conv2d"] == 1


def test_an_operator_without_an_integer_form_is_named():
    net = QdqNet(1)
    x = net.input(1, 4, 6)
    net.op("CumSum", [x, net.constant(np.array(2))], (1, 4, 6))
    integer = to_integer(import_model(from_object(net.pack(), "net")), source_format="onnx")
    assert {kept.name: kept.reason for kept in integer.kept_float}["cumsum"] == "it has no integer form here"


def test_a_computed_weight_is_named():
    net = QdqNet(1)
    x, w = net.input(1, 2, 6, 6), net.input(4, 2, 3, 3)
    net.op("Conv", [x, w], (1, 4, 4, 4))
    integer = to_integer(import_model(from_object(net.pack(), "net")), source_format="onnx")
    assert FloatOperator("nn.conv2d", "its weight is not constant") in integer.kept_float


def test_float_parts_compute_what_they_did(tmp_path):
    net = QdqNet(2)
    x = net.input(1, 4, 6)
    a = net.op("Relu", [x], (1, 4, 6))
    net.op("CumSum", [a, net.constant(np.array(2))], (1, 4, 6))
    model = import_model(from_object(net.pack(), "net"))
    inputs = net.data(0)
    before, after = runner(model.mod)(inputs), runner(to_integer(model, source_format="onnx").mod)(inputs)
    for expected, got in zip(before, after, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_inputs_and_outputs_stay(tmp_path):
    model = tflite(tmp_path, tflite_models.int8_dense())
    main = to_integer(model).mod["main"]
    assert [param.name for param in main.params] == [param.name for param in model.mod["main"].params]
    assert main.ret_ty == model.mod["main"].ret_ty
    assert main.attrs["global_symbol"] == "main"


def test_the_model_is_not_changed(tmp_path):
    model = tflite(tmp_path, tflite_models.int8_dense())
    before = model.mod.script()
    to_integer(model)
    assert model.mod.script() == before


def test_unknown_format(tmp_path):
    with pytest.raises(InputError, match="Source format 'keras'"):
        to_integer(tflite(tmp_path, tflite_models.int8_dense()), source_format="keras")
