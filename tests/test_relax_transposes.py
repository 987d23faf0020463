"""Transposes go before the widening of 8-bit tensors, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from models.onnx_quantized import QdqNet
from test_integer_tflite import runner

from deploy.model import from_object
from deploy.relax_import import import_model

tvm = pytest.importorskip("tvm")
from tvm import relax  # noqa: E402

from deploy.integer import to_integer  # noqa: E402
from deploy.relax_layout import convert_layout, rewrite_constants  # noqa: E402
from deploy.relax_rewrite import op_name  # noqa: E402
from deploy.relax_transposes import raise_transposes  # noqa: E402


def converted(mod):
    """Channels last, as before lowering, without and with the pass."""
    passes = [
        rewrite_constants(),
        convert_layout(),
        relax.transform.Normalize(),
        relax.transform.CanonicalizeBindings(),
    ]
    before = tvm.transform.Sequential(passes)(mod)
    after = tvm.transform.Sequential([raise_transposes(), relax.transform.DeadCodeElimination(["main"])])(before)
    return before, after


def transposed_types(mod):
    values = [binding.value for block in mod["main"].body.blocks for binding in block.bindings]
    return [str(v.ty.dtype) for v in values if op_name(v) == "relax.permute_dims" and str(v.ty.dtype) != "float32"]


def same(before, after, inputs):
    for expected, got in zip(runner(before)(inputs), runner(after)(inputs), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_input_of_a_network():
    net = QdqNet(1)
    net.conv(net.conv(net.input(1, 8, 9, 7), 12, 3), 4, 3)
    del net.outputs[0]
    mod = to_integer(import_model(from_object(net.pack(), "net")), source_format="onnx").mod
    before, after = converted(mod)
    assert transposed_types(before)[0] == "int16"
    assert transposed_types(after)[0] == "int8"
    same(before, after, net.data(0))


def test_padding_and_computed_zero_points():
    x = relax.Var("x", relax.TensorType((1, 3, 5, 4), "uint8"))
    zero = relax.Var("zero", relax.TensorType((), "uint8"))
    builder = relax.BlockBuilder()
    border = np.pad(np.zeros((1, 1, 5, 4), np.uint8), [(0, 0), (0, 0), (1, 1), (2, 0)], constant_values=1)
    weight = np.random.default_rng(0).integers(-9, 9, (2, 3, 3, 3)).astype(np.int8)
    with builder.function("main", [x, zero]):
        with builder.dataflow():
            padded = builder.emit(relax.op.nn.pad(x, [0, 0, 0, 0, 1, 1, 2, 0]))
            filled = builder.emit(relax.op.add(padded, builder.emit(relax.op.multiply(zero, relax.const(border)))))
            wide = builder.emit(relax.op.astype(filled, "int16"))
            total = builder.emit_output(relax.op.nn.conv2d(wide, relax.const(weight), out_dtype="int32"))
        builder.emit_func_output(total)
    before, after = converted(builder.get())
    assert "int16" in transposed_types(before)
    assert "int16" not in transposed_types(after)
    given = np.arange(60, dtype=np.uint8).reshape(1, 3, 5, 4), np.uint8(77)
    same(before, after, [given[0], np.asarray(given[1])])


def test_what_is_not_widened_stays():
    x = relax.Var("x", relax.TensorType((2, 3), "int16"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.permute_dims(x, [1, 0]))
        builder.emit_func_output(result)
    mod = builder.get()
    assert transposed_types(raise_transposes()(mod)) == ["int16"]
