"""Whole models through the pass list: every operator, type and shape that must work, against the source framework."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from built import SHARED, Function, assert_correct, build, deployed, host, torch_source
from models import onnx_models, tflite_models, torch_models
from torch import nn

from deploy import model
from deploy.compile import lower_for
from deploy.errors import InputError
from deploy.runtime import Model

pytestmark = pytest.mark.tvm
F = nn.functional


def several(*functions):
    """One module whose outputs are those of several functions of the same inputs."""
    return Function(lambda s, *x: tuple(function(*x) for function in functions))


def image(*shape):
    return torch.rand(shape) - 0.5


GROUPS = {
    "pools": (
        several(
            lambda x: F.max_pool2d(x, 3, 2, 1),
            lambda x: F.avg_pool2d(x, 2),
            lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
            lambda x: x.mean((2, 3)),
            lambda x: F.max_pool2d(x, (1, 13)),
        ),
        [image(2, 10, 7, 13)],
    ),
    "softmax and norms": (
        several(
            lambda x: x.softmax(-1),
            lambda x: x.softmax(1),
            lambda x: x.log_softmax(-1),
            lambda x: F.layer_norm(x, (33,)),
            lambda x: F.group_norm(x, 2, torch.ones(4), torch.zeros(4)),
            lambda x: F.instance_norm(x),
            lambda x: x.var(-1),
            lambda x: x / x.norm(dim=-1, keepdim=True),
        ),
        [image(3, 4, 33)],
    ),
    "moves": (
        several(
            lambda x: x.permute(2, 0, 1).contiguous(),
            lambda x: torch.cat([x, x * 2, x[:, :1]], 1),
            lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
            lambda x: F.pad(x, (2, 1), mode="reflect"),
            lambda x: x[:, 1::2, 3:9],
            lambda x: x.chunk(2, 2)[1],
            lambda x: torch.stack([x, -x], 1),
            lambda x: x.repeat(1, 2, 1),
            lambda x: x.flip(1),
            lambda x: torch.where(x > 0, x, x * 0.1),
        ),
        [image(2, 5, 12)],
    ),
    "resizes": (
        several(
            lambda x: F.interpolate(x, scale_factor=2),
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            lambda x: F.interpolate(x, size=(9, 11), mode="bilinear", align_corners=True),
            lambda x: F.pixel_shuffle(x, 2),
        ),
        [image(1, 8, 5, 6)],
    ),
    "reductions": (
        several(
            lambda x: x.argmax(-1),
            lambda x: x.argmax(1),
            lambda x: x.mean(-1),
            lambda x: x.sum((0, 2)),
            lambda x: x.sum(),
            lambda x: x.max(-1)[0],
            lambda x: x.topk(1, 2)[0],
            lambda x: x.topk(1, 0, largest=False)[0],
        ),
        [image(3, 7, 16)],
    ),
    "functions": (
        several(
            *(
                getattr(F, n)
                for n in ("gelu", "silu", "hardswish", "hardsigmoid", "mish", "elu", "softplus", "leaky_relu")
            ),
            lambda x: F.gelu(x, approximate="tanh"),
            torch.tanh,
            torch.sigmoid,
            torch.exp,
            torch.erf,
            lambda x: (x.abs() + 0.1).sqrt() + (x.abs() + 1).log(),
            lambda x: x.sin() * x.cos(),
            lambda x: x**2 + 1 / (x.abs() + 1),
        ),
        [image(3, 17) * 8],
    ),
    "products": (
        several(
            lambda a, b: a @ b,
            lambda a, b: b.transpose(1, 2) @ a.transpose(1, 2),
            lambda a, b: torch.einsum("bij,bjk->bik", a * 2, b),
            lambda a, b: F.scaled_dot_product_attention(a, a * 0.5, a + 1),
            lambda a, b: a[:, :1] @ b,
        ),
        [image(3, 7, 13), image(3, 13, 11)],
    ),
    "numbers without a shape": (
        several(lambda a, b: a * 2 + 1, lambda a, b: a * b, lambda a, b: b.sum() - a, lambda a, b: a.reshape(1)),
        [torch.tensor(1.5), image(3, 16)],
    ),
    "recurrent": (
        Function(
            lambda s, x: s.gru(s.lstm(x)[0])[0],
            lstm=nn.LSTM(4, 8, batch_first=True),
            gru=nn.GRU(8, 5, batch_first=True),
        ),
        [image(1, 4, 4)],
    ),
    "encoder": (
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0, activation="gelu"),
        [image(2, 5, 32)],
    ),
    "transposed convolutions": (
        Function(
            lambda s, x: (s.a(x), s.b(x), s.c(x), s.d(x), s.e(x).relu(), s.f(s.g(x).relu())),
            a=nn.ConvTranspose2d(8, 5, 3, 2, 1, 1),
            b=nn.ConvTranspose2d(8, 4, 3, 2, 1, groups=2),
            c=nn.ConvTranspose2d(8, 4, 3, padding=3, dilation=2),
            d=nn.ConvTranspose2d(8, 1, (5, 1), (3, 2), bias=False),
            e=nn.ConvTranspose2d(8, 17, 2, 2),
            f=nn.ConvTranspose2d(8, 8, 3, groups=8),
            g=nn.Conv2d(8, 8, 3, padding=1),
        ),
        [image(2, 8, 7, 5)],
    ),
    "other convolutions": (
        Function(
            lambda s, x: (s.grouped(x), s.multiplied(x), s.volume(x[:, None, :, :4]), s.back(x[:, :, 0])),
            grouped=nn.Conv2d(12, 24, 3, padding=1, groups=4),
            multiplied=nn.Conv2d(12, 24, 3, stride=2, groups=12),
            volume=nn.Conv3d(1, 2, 3, padding=1),
            back=nn.ConvTranspose1d(12, 5, 3, 2),
        ),
        [image(1, 12, 9, 7)],
    ),
    "convolution with a computed weight": (
        several(lambda x, w: F.conv2d(x, w), lambda x, w: F.conv_transpose2d(x, w.transpose(0, 1) * 2, stride=2)),
        [image(1, 3, 8, 8), image(4, 3, 3, 3)],
    ),
}


@pytest.mark.parametrize("group", GROUPS)
def test_operators(group):
    module, examples = GROUPS[group]
    deployed(module, *examples)


@pytest.mark.parametrize(
    ("group", "bits", "threads"),
    [
        ("pools", 128, 2),
        ("pools", 512, 1),
        ("softmax and norms", 256, 1),
        ("softmax and norms", 512, 4),
        ("products", 256, 2),
        ("moves", 128, 4),
    ],
)
def test_other_vectors_and_threads(group, bits, threads):
    module, examples = GROUPS[group]
    deployed(module, *examples, target=replace(host(threads), explicit_vector_bits=bits))


def whole(dtype, *shape):
    return torch.zeros(shape, dtype=dtype)


TYPES = {
    "float16": (several(lambda x: x * 2 + 1, lambda x: x.softmax(-1), lambda x: x.mean(-1)), [image(3, 16).half()]),
    "float64": (several(lambda x: (x * 2).exp(), lambda x: x @ x.T), [image(3, 16).double()]),
    "int8": (several(lambda x: x + 1, lambda x: x.to(torch.int32) * 1000), [whole(torch.int8, 3, 16)]),
    "uint8": (several(lambda x: x + x, lambda x: x.float() / 255), [whole(torch.uint8, 3, 16)]),
    "int32": (several(lambda x: x * 3 - 1, lambda x: x @ x.T, lambda x: x.argmax(-1)), [whole(torch.int32, 5, 7)]),
    "int64": (several(lambda x: x * 3 - 1, lambda x: x > 0, lambda x: x.sum(-1)), [whole(torch.int64, 5, 7)]),
    "bool": (several(lambda x, y: ~x, lambda x, y: (y > 0) & x, lambda x, y: torch.where(x, y, -y)),
             [whole(torch.bool, 16), image(16)]),
    "constants of 64 bits": (
        Function(
            lambda s, x, i: (s.conv(x) * s.third, s.dense(x) + s.third[0, 0], i[:, None] + torch.tensor([[2**40, 1]])),
            conv=nn.Conv2d(2, 3, 1).double(),
            dense=nn.Linear(4, 5).double(),
            third=torch.full((3, 1, 1), 1 / 3).double(),
        ),
        [image(1, 2, 4, 4).double(), whole(torch.int64, 3)],
    ),
    "embedding": (nn.Embedding(11, 8), [whole(torch.int64, 3, 4)]),
    "gather": (several(lambda x, i: torch.gather(x, 1, i)), [image(3, 16), whole(torch.int64, 3, 2)]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
def test_types(dtype):
    module, examples = TYPES[dtype]
    deployed(module, *examples)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "threads"), [(torch_models.mobilenet_v2, 2), (torch_models.resnet18, 1)])
def test_image_networks(make, threads):
    deployed(make(), torch.rand(1, 3, 32, 32), target=host(threads))


def test_float16_network():
    deployed(torch_models.HalfNet(), torch.rand(1, 3, 8, 8).half())


def test_causal_transformer():
    deployed(torch_models.transformer_block(), torch.zeros(1, 8, dtype=torch.int64), target=host(2))


@pytest.mark.parametrize(
    "proto",
    [onnx_models.conv_net(1), onnx_models.attention(1, 5), onnx_models.subtract()],
    ids=["conv", "attention", "sub"],
)
def test_onnx(proto):
    source = model.from_object(proto, "net")
    assert_correct(source, build(source))


def tflite(data, folder):
    path = folder / "net.tflite"
    path.write_bytes(data)
    return model.load(path)


def test_tflite(tmp_path):
    source = tflite(tflite_models.conv_net(), tmp_path)
    assert_correct(source, build(source))


@pytest.mark.parametrize(("stride", "same", "kernel"), [(2, True, 3), (1, False, 3), (2, False, 2), (3, True, 5)])
def test_tflite_transposed_convolution(tmp_path, stride, same, kernel):
    """TFLite's layout: NHWC data, the kernel as [outputs, height, width, inputs]."""
    schema = tflite_models.schema
    height, width, inputs, outputs = 5, 6, 8, 3
    grown = [size * stride if same else (size - 1) * stride + kernel for size in (height, width)]
    b = tflite_models.Builder()
    weight = np.random.default_rng(0).standard_normal((outputs, kernel, kernel, inputs)).astype(np.float32)
    x = b.tensor("x", (1, height, width, inputs))
    y = b.tensor("y", (1, *grown, outputs))
    shape = b.tensor("shape", (4,), "int32", np.array([1, *grown, outputs]))
    padding = schema.Padding.SAME if same else schema.Padding.VALID
    options = tflite_models.options(schema.TransposeConvOptionsT, padding=padding, strideW=stride, strideH=stride)
    b.op(tflite_models.Builtin.TRANSPOSE_CONV, [shape, b.tensor("w", weight.shape, data=weight), x], [y], options)
    source = tflite(tflite_models.pack(b.model([x], [y])), tmp_path)
    artifact = build(source)
    assert_correct(source, artifact)
    assert [name.startswith(("fused_conv2d", "conv2d")) for name in artifact.facts["calls"]] == [True]


def test_the_import_of_a_model_is_not_changed():
    source = torch_source(nn.Conv2d(3, 8, 3), torch.rand(1, 3, 8, 8))
    first, second = (lower_for(source, host()) for _ in range(2))
    assert first.kernels.keys() == second.kernels.keys()
    assert first.graph.calls == second.graph.calls


def test_an_operator_without_an_ahead_of_time_form_is_an_input_error():
    with pytest.raises(InputError, match="no ahead-of-time form for topk"):
        lower_for(torch_source(lambda _, x: x.topk(3)[0], torch.rand(3, 17)), host())


def test_a_layer_of_the_c_library_is_not_needed_for_the_common_functions():
    """exp, tanh, sigmoid and erf are computed in vectors: no call of the C library is left in the kernels."""
    from deploy import shell

    source = torch_source(several(torch.exp, torch.tanh, torch.sigmoid, F.gelu), torch.rand(4, 16))
    artifact = build(source)
    symbols = shell.run(["nm", "-u", artifact.path / "src" / "kernels.o"], timeout_s=10).stdout.split()
    assert not {"expf", "tanhf", "erff"} & set(symbols)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")
@pytest.mark.parametrize("name", ["ic_resnet8_f32", "vww_mobilenetv1_f32", "ad_autoencoder_f32"])
def test_known_models(name):
    source = model.load(SHARED / "models" / "mlperf-tiny" / f"{name}.tflite")
    assert_correct(source, build(source), count=3)


def test_a_batch_of_images_gives_what_the_images_give():
    module = nn.Sequential(nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 5, 3, padding=1))
    data = torch.rand(3, 3, 13, 7)
    many, one = (Model(build(torch_source(module, data[:n])).path) for n in (3, 1))
    together = many(data.numpy())
    for index in range(3):
        np.testing.assert_allclose(together[index], one(data[index : index + 1].numpy())[0], rtol=1e-5, atol=1e-6)
