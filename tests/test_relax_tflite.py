"""TFLite operators that TVM's frontend refuses or means otherwise: equal to LiteRT's reference kernels, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tflite_quantized as q
from models.tflite_models import Builtin
from test_integer_tflite import check, converted, runner

from deploy.errors import InputError
from deploy.model import load
from deploy.reference import Reference
from deploy.relax_import import import_model

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
TYPES = ("int8", "uint8", "int16")
KINDS = {
    "reshape": schema.ReshapeOptionsT, "slice": schema.StridedSliceOptionsT, "pack": schema.PackOptionsT
}  # fmt: skip


# --- what only moves elements


@pytest.mark.parametrize("dtype", TYPES)
def test_padding(tmp_path, dtype):
    net = q.Net(1, dtype)
    x = net.input(1, 4, 5, 3)
    width = [[0, 0], [1, 2], [0, 3], [0, 0]]
    net.move(Builtin.PAD, x, (1, 7, 8, 3), width)
    value = net.b.tensor("v", (1,), dtype, data=np.array([7]), scale=x.scale, zero_point=x.zero_point)
    net.op(Builtin.PADV2, [x.index, net.integers(width), value], net.tensor((1, 7, 8, 3), x.scale, x.zero_point))
    if dtype != "int16":  # LiteRT has no mirror of 16-bit tensors
        for mode in (schema.MirrorPadMode.REFLECT, schema.MirrorPadMode.SYMMETRIC):
            net.move(Builtin.MIRROR_PAD, x, (1, 7, 8, 3), width, kind=schema.MirrorPadOptionsT, mode=mode)
    check(net, tmp_path, (0,))


@pytest.mark.parametrize("dtype", TYPES)
def test_moves(tmp_path, dtype):
    net = q.Net(2, dtype)
    x = net.input(1, 4, 6, 3)
    net.move(Builtin.TRANSPOSE, x, (3, 1, 6, 4), [3, 0, 2, 1])
    net.move(Builtin.SLICE, x, (1, 2, 6, 2), [0, 1, 0, 1], [1, 2, -1, 2])
    net.move(Builtin.SQUEEZE, x, (4, 6, 3), kind=schema.SqueezeOptionsT, squeezeDims=[0])
    net.move(Builtin.EXPAND_DIMS, x, (1, 4, 6, 1, 3), -2)
    net.move(Builtin.RESHAPE, x, (6, 12), [6, -1], kind=schema.ReshapeOptionsT)
    if dtype != "uint8":
        net.move(Builtin.REVERSE_V2, x, (1, 4, 6, 3), [2])
    net.op(Builtin.PACK, [x.index, x.index], net.tensor((1, 2, 4, 6, 3), x.scale, x.zero_point), schema.PackOptionsT,
           axis=1, valuesCount=2)  # fmt: skip
    parts = [net.tensor((1, 4, 3, 3), x.scale, x.zero_point) for _ in range(2)]
    net.b.op(Builtin.SPLIT, [net.integers(2), x.index], [part.index for part in parts], split(2))
    net.outputs += parts
    check(net, tmp_path, (0,))


def split(number):
    options = schema.SplitOptionsT()
    options.numSplits = number
    return options


def test_blocks(tmp_path):
    """What older converters wrote around a dilated convolution."""
    net = q.Net(3)
    x = net.input(1, 5, 6, 2)
    a = net.move(
        Builtin.SPACE_TO_BATCH_ND, x, (4, 3, 4, 2), [2, 2], [[0, 1], [1, 1]], kind=schema.SpaceToBatchNDOptionsT
    )
    net.move(Builtin.BATCH_TO_SPACE_ND, a, (1, 5, 7, 2), [2, 2], [[1, 0], [0, 1]], kind=schema.BatchToSpaceNDOptionsT)
    net.move(
        Builtin.SPACE_TO_DEPTH, net.input(1, 4, 6, 3), (1, 2, 3, 12), kind=schema.SpaceToDepthOptionsT, blockSize=2
    )
    check(net, tmp_path, (0,))


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1))
def test_strided_slices(tmp_path_factory, seed):
    """Any begin, end, stride and masks that leave something, as NumPy reads them."""
    net = q.Net(seed)
    rng = net.rng
    x = net.input(3, 5, 4)
    for _ in range(3):
        stride = rng.choice([-2, -1, 1, 2], 3)
        begin, end = rng.integers(-5, 6, 3), rng.integers(-5, 6, 3)
        begin_mask, end_mask = (int(mask) for mask in rng.integers(0, 8, 2))
        shrink = int(rng.integers(0, 8))
        key = []
        for axis, size in enumerate(x.shape):
            if shrink >> axis & 1:
                begin[axis], end[axis], stride[axis] = rng.integers(-size, size), 0, 1
                end[axis] = begin[axis] + 1
                key.append(0 if begin_mask >> axis & 1 else int(begin[axis]))
            else:
                first = None if begin_mask >> axis & 1 else int(begin[axis])
                last = None if end_mask >> axis & 1 else int(end[axis])
                key.append(slice(first, last, int(stride[axis])))
        shape = np.zeros(x.shape)[tuple(key)].shape
        if 0 not in shape and shape:
            net.move(Builtin.STRIDED_SLICE, x, shape, begin, end, stride, kind=schema.StridedSliceOptionsT,
                     beginMask=begin_mask, endMask=end_mask, shrinkAxisMask=shrink)  # fmt: skip
    net.move(Builtin.STRIDED_SLICE, x, (3, 5, 1, 2), [0, 0, 1], [0, 0, 3], [1, 1, 1], kind=schema.StridedSliceOptionsT,
             ellipsisMask=1, newAxisMask=2)  # fmt: skip
    check(net, tmp_path_factory.mktemp("slices"), (0,))


@settings(max_examples=6)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 60), st.integers(1, 60), st.sampled_from(TYPES))
def test_nearest_neighbours(tmp_path_factory, height, width, new_height, new_width, dtype):
    net = q.Net(height, dtype)
    x = net.input(1, height, width, 2)
    for align, half in ((False, False), (False, True), (True, False)):
        net.resize(x, new_height, new_width, alignCorners=align, halfPixelCenters=half)
    check(net, tmp_path_factory.mktemp("resize"), (0,))


# --- shapes that are computed


def test_a_computed_shape(tmp_path):
    """What Keras writes for Flatten: SHAPE, its first element, and a list of it and -1."""
    net = q.Net(4)
    x = net.input(2, 3, 4, 5)
    shape = net.plain((4,), "int32")
    batch, target = net.plain((), "int32"), net.plain((2,), "int32")
    net.op(Builtin.SHAPE, [x.index], shape, schema.ShapeOptionsT, outType=schema.TensorType.INT32)
    inputs = [shape.index, *(net.integers([value]) for value in (0, 1, 1))]
    net.op(Builtin.STRIDED_SLICE, inputs, batch, schema.StridedSliceOptionsT, shrinkAxisMask=1)
    net.op(
        Builtin.PACK, [batch.index, net.integers(-1)], target, schema.PackOptionsT, valuesCount=2, axis=0
    )  # fmt: skip
    net.outputs.clear()
    a = net.op(Builtin.RESHAPE, [x.index, target.index], net.tensor((2, 60), x.scale, x.zero_point))
    net.dense(a, 3)
    integer = check(net, tmp_path, (0,))
    assert not {"shape_of", "shape_to_tensor", "concat"} & set(integer.after)


def test_a_shape_that_is_an_output(tmp_path):
    net = q.Net(4)
    x = net.input(2, 3)
    net.reshape(x, 3, 2)
    net.op(Builtin.SHAPE, [x.index], net.plain((2,), "int32"), schema.ShapeOptionsT, outType=schema.TensorType.INT32)
    check(net, tmp_path, (0,))


def test_a_shape_that_the_file_declares_wrongly(tmp_path):
    net = q.Net(4)
    x = net.input(2, 3)
    a = net.reshape(x, 3, 2)
    net.b.tensors[a.index].shape = np.array([6, 1], np.int32)
    net.outputs.clear()
    shape = net.plain((2,), "int32")
    net.op(Builtin.SHAPE, [a.index], shape, schema.ShapeOptionsT, outType=schema.TensorType.INT32)
    net.outputs.clear()
    net.op(Builtin.RESHAPE, [x.index, shape.index], net.tensor((6, 1), x.scale, x.zero_point))
    assert "RESHAPE (node" in refusal(net, tmp_path)


def refusal(net, folder: Path) -> str:
    file = folder / "net.tflite"
    file.write_bytes(net.pack())
    with pytest.raises(InputError) as caught:
        import_model(load(file))
    return str(caught.value)


# --- softmax, layers


@pytest.mark.parametrize("dtype", TYPES)
def test_softmax_of_a_multiple(tmp_path, dtype):
    net = q.Net(5, dtype)
    x = net.tensor((3, 11), 0.0004 if dtype == "int16" else 0.05)
    net.inputs.append(x)
    scale, zero_point = (1 / 32768, 0) if dtype == "int16" else (1 / 256, q.RANGES[dtype][0])
    for beta in (0.3, 1.0, 2.0):
        net.fixed(Builtin.SOFTMAX, x, scale, zero_point, schema.SoftmaxOptionsT, beta=beta)
    check(net, tmp_path)


def test_float_softmax_of_a_multiple(tmp_path):
    net = q.Net(6)
    x = net.float_input(3, 11)
    for beta in (0.3, 1.0, 2.0):
        net.op(Builtin.SOFTMAX, [x.index], net.plain(x.shape, "float32"), schema.SoftmaxOptionsT, beta=beta)
    close(net, tmp_path, 1e-6)


def close(net, folder: Path, tolerance: float) -> None:
    """Every result is LiteRT's, but for so much of the largest."""
    file = folder / "net.tflite"
    file.write_bytes(net.pack())
    source = load(file)
    compiled, inputs = runner(import_model(source).mod), net.data(0)
    for expected, got in zip(Reference(source).run(inputs), compiled(inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("dtype", TYPES[::2])
@pytest.mark.parametrize("keep", [True, False])
def test_fully_connected_layers_of_higher_rank(tmp_path, dtype, keep):
    net = q.Net(7, dtype)
    for shape in ((2, 3, 8), (2, 2, 3, 8)):
        x = net.input(*shape)
        w, scales = net.weights((5, 8), 0, False)
        bias = net.bias(x, scales, 5) if dtype == "int8" else net.wide_bias(x, scales, 5)
        out = net.tensor(
            (*shape[:-1], 5) if keep else (x.shape[0] * x.shape[1] * (1 if len(shape) == 3 else 3), 5), x.scale * 20
        )
        net.op(Builtin.FULLY_CONNECTED, [x.index, w, bias], out, schema.FullyConnectedOptionsT, keepNumDims=keep)
    check(net, tmp_path, (0, 1))


def test_a_fully_connected_layer_flattens(tmp_path):
    net = q.Net(8)
    x = net.input(2, 3, 4)
    w, scales = net.weights((5, 12), 0, True)
    out = net.tensor((2, 5), x.scale * float(np.mean(scales)) * 300)
    net.op(Builtin.FULLY_CONNECTED, [x.index, w, net.bias(x, scales, 5)], out, schema.FullyConnectedOptionsT)
    check(net, tmp_path, (0,))


# --- 16-bit activations


def test_16_bit_layers(tmp_path):
    """Biases of 64 bits, the 64-bit sums of LiteRT."""
    net = q.Net(1, "int16")
    x = net.tensor((1, 6, 5, 4), 1e-4)
    net.inputs.append(x)
    values = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": SAME}
    for code, shape, axis, kind, more in (
        (Builtin.CONV_2D, (6, 3, 3, 4), 0, schema.Conv2DOptionsT, {}),
        (Builtin.DEPTHWISE_CONV_2D, (1, 3, 3, 8), 3, schema.DepthwiseConv2DOptionsT, {"depthMultiplier": 2}),
    ):
        w, scales = net.weights(shape, axis, True)
        channels = shape[axis]
        for activation in q.ACTIVATIONS[:2]:
            out = net.tensor((1, 6, 5, channels), x.scale * float(np.mean(scales)) * 200)
            inputs = [x.index, w, net.wide_bias(x, scales, channels)]
            net.op(code, inputs, out, kind, **values, **more, fusedActivationFunction=activation)
    w, scales = net.weights((5, 120), 0, False)
    flat = net.reshape(x, 1, 120)
    net.op(Builtin.FULLY_CONNECTED, [flat.index, w, net.wide_bias(x, scales, 5)],
           net.tensor((1, 5), x.scale * float(np.mean(scales)) * 1000), schema.FullyConnectedOptionsT)  # fmt: skip
    net.concat([x, x], 3, x.scale)
    net.move(Builtin.PAD, x, (1, 8, 5, 4), [[0, 0], [1, 1], [0, 0], [0, 0]])
    for code in (Builtin.MAXIMUM, Builtin.MINIMUM):
        net.op(code, [x.index, x.index], net.tensor(x.shape, x.scale), schema.MaximumMinimumOptionsT)
    check(net, tmp_path)


@pytest.mark.parametrize("scale", [1 / 4096, 1 / 2048, 3.7e-4])
def test_16_bit_functions(tmp_path, scale):
    """All 65536 values."""
    net = q.Net(0, "int16")
    x = net.tensor((256, 256), scale)
    net.inputs.append(x)
    for code in (Builtin.LOGISTIC, Builtin.TANH):
        net.fixed(code, x, 1 / 32768, 0)
    for alpha in (0.1, 0.25):
        net.op(Builtin.LEAKY_RELU, [x.index], net.tensor(x.shape, scale * 0.9), schema.LeakyReluOptionsT, alpha=alpha)
    source, integer = converted(net, tmp_path)
    assert integer.kept_float == ()
    values = [np.arange(-32768, 32768).astype(np.int16).reshape(256, 256)]
    for expected, got in zip(Reference(source).run(values), runner(integer.mod)(values), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_16_bit_softmax(tmp_path):
    net = q.Net(1, "int16")
    for length, scale, beta in ((1, 1e-4, 1.0), (7, 2e-3, 1.0), (300, 3e-4, 0.5), (41, 1e-5, 2.0)):
        x = net.tensor((4, length), scale)
        net.inputs.append(x)
        net.fixed(Builtin.SOFTMAX, x, 1 / 32768, 0, schema.SoftmaxOptionsT, beta=beta)
    check(net, tmp_path, (0, 1, 2))


# --- dynamic range: float activations, int8 weights


def hybrid_net(seed: int = 9) -> q.Net:
    """A convolution of each kind, with one scale and with many, and fully connected layers."""
    net = q.Net(seed)
    x = net.float_input(2, 6, 5, 4)
    window = {"strideH": 1, "strideW": 2, "dilationHFactor": 1, "dilationWFactor": 1, "padding": SAME}
    shape, conv, deep = (2, 6, 3, 6), schema.Conv2DOptionsT, schema.DepthwiseConv2DOptionsT
    a = net.hybrid(Builtin.CONV_2D, x, shape, (6, 3, 3, 4), conv, **window, fusedActivationFunction=q.Activation.RELU)
    net.hybrid(Builtin.CONV_2D, x, shape, (6, 3, 3, 4), conv, **window, one=True)
    net.hybrid(Builtin.CONV_2D, x, shape, (6, 2, 2, 2), conv, **window)  # grouped
    net.hybrid(Builtin.DEPTHWISE_CONV_2D, x, (2, 6, 3, 8), (1, 3, 3, 8), deep, axis=3, **window, depthMultiplier=2)
    flat = net.op(Builtin.RESHAPE, [a.index, net.integers([2, 108])], net.plain((2, 108), "float32"))
    dense = schema.FullyConnectedOptionsT
    for one, asymmetric in ((True, False), (True, True), (False, False), (False, True)):
        b = net.hybrid(
            Builtin.FULLY_CONNECTED, flat, (2, 5), (5, 108), dense, one=one, asymmetricQuantizeInputs=asymmetric
        )
    net.hybrid(Builtin.FULLY_CONNECTED, b, (2, 3), (3, 5), dense, one=True, bias=False)
    return net


def test_dynamic_range_is_equal(tmp_path):
    net = hybrid_net()
    source, integer = converted(net, tmp_path)
    reference, compiled = Reference(source), runner(integer.mod)
    zeros = [np.zeros((2, 6, 5, 4), np.float32)]
    for inputs in (net.data(0), net.data(1), zeros):
        for number, (expected, got) in enumerate(zip(reference.run(inputs), compiled(inputs), strict=True)):
            np.testing.assert_array_equal(got, expected, err_msg=f"result {number}")


def test_dynamic_range_keeps_weights_in_8_bits_and_says_what_is_float(tmp_path):
    _, integer = converted(hybrid_net(), tmp_path)
    text = integer.mod.script(show_meta=False)
    assert 'out_dtype="int32"' in text
    reasons = {one.reason for one in integer.kept_float if one.name == "dequantize"}
    assert reasons == {"its activations are quantized when the model runs: only its weights are stored in integers"}


def test_weights_that_are_stored_in_8_bits_and_used_in_float(tmp_path):
    net = q.Net(10)
    x = net.float_input(1, 4, 4, 3)
    w, _ = net.weights((5, 3, 3, 3), 0, True)
    real = net.plain((5, 3, 3, 3), "float32")
    net.b.op(Builtin.DEQUANTIZE, [w], [real.index])
    bias = net.b.tensor("fb", (5,), data=np.arange(5.0))
    window = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": SAME}
    out = net.plain((1, 4, 4, 5), "float32")
    net.op(Builtin.CONV_2D, [x.index, real.index, bias], out, schema.Conv2DOptionsT, **window)
    close(net, tmp_path, 1e-6)


def test_moves_of_floats(tmp_path):
    net = q.Net(11)
    x = net.float_input(1, 4, 6, 3)
    width = [[0, 0], [1, 2], [0, 1], [0, 0]]
    for code, shape, others, kind in (
        (Builtin.PAD, (1, 7, 7, 3), [width], None),
        (Builtin.STRIDED_SLICE, (1, 2, 6, 3), [[0, 3, 0, 0], [1, 0, 6, 3], [1, -2, 1, 1]], schema.StridedSliceOptionsT),
        (Builtin.RESIZE_NEAREST_NEIGHBOR, (1, 5, 9, 3), [[5, 9]], schema.ResizeNearestNeighborOptionsT),
        (Builtin.SPACE_TO_BATCH_ND, (4, 2, 3, 3), [[2, 2], [[0, 0], [0, 0]]], schema.SpaceToBatchNDOptionsT),
        (Builtin.EXPAND_DIMS, (1, 1, 4, 6, 3), [1], schema.ExpandDimsOptionsT),
    ):
        inputs = [x.index, *(net.integers(other) for other in others)]
        net.op(code, inputs, net.plain(shape, "float32"), kind)
    close(net, tmp_path, 0)


def test_16_bit_sums_beyond_32_bits(tmp_path):
    net = q.Net(12, "int16")
    x = net.tensor((1, 900), 1e-4)
    net.inputs.append(x)
    w = net.b.tensor("w", (2, 900), "int8", data=np.array([[127] * 900, [-127] * 900]), scale=0.01)
    bias = net.b.tensor("b", (2,), "int64", data=np.array([5, -7]), scale=1e-6)
    net.op(Builtin.FULLY_CONNECTED, [x.index, w, bias], net.tensor((1, 2), 0.12), schema.FullyConnectedOptionsT)
    source, integer = converted(net, tmp_path)
    for value in (32767, -32768):
        inputs = [np.full((1, 900), value, np.int16)]
        np.testing.assert_array_equal(runner(integer.mod)(inputs)[0], Reference(source).run(inputs)[0])


def test_forms_that_are_not_known_are_refused_by_name(tmp_path):
    net = q.Net(13)
    x = net.input(1, 8)
    w, scales = net.weights((4, 8), 0, False)
    net.op(Builtin.FULLY_CONNECTED, [x.index, w, net.bias(x, scales, 4)], net.tensor((1, 4)),
           schema.FullyConnectedOptionsT, weightsFormat=1)  # fmt: skip
    message = refusal(net, tmp_path)
    assert message.startswith("FULLY_CONNECTED (node")
    assert "its weight is shuffled" in message
