"""Quantized torch exports in integers give what torch gives: at most 1 off, 99.9 % equal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.torch_quantized import Net, Point, conv, linear
from test_integer_tflite import runner
from torch import nn
from torch.nn import functional as F

from deploy.errors import InputError
from deploy.model import from_object, load
from deploy.reference import Reference
from deploy.relax_import import import_model

pytest.importorskip("tvm")
from deploy.integer import IntegerModel, to_integer

ROOT = Path(__file__).resolve().parents[1]
ENDS = {"the model's input is not quantized", "its result is read as a floating point number"}


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def check(net: nn.Module, *example: torch.Tensor, kept: set[str] | None = None) -> IntegerModel:
    """Every integer result is torch's; what stays in float does so for reasons in `kept`, in addition to the ends."""
    source = from_object(net, "net", example)
    integer = to_integer(import_model(source), source_format="torch")
    reasons = {one.reason for one in integer.kept_float}
    assert reasons - ENDS == (kept or set()), integer.kept_float
    reference, compiled = Reference(source), runner(integer.mod)
    different = total = 0
    for _ in range(3):
        inputs = [torch.randn_like(tensor).numpy() for tensor in example]
        for spec, expected, got in zip(source.outputs, reference.run(inputs), compiled(inputs), strict=True):
            assert got.dtype == expected.dtype
            if expected.dtype.kind == "f":
                continue  # integers of which are compared
            off = np.abs(got.astype(int) - expected.astype(int))
            assert off.max() <= 1, f"{spec.name}: {off.max()} off"
            different, total = different + int((off > 0).sum()), total + off.size
    assert total > 0
    assert different <= total / 1000, f"{different} of {total} differ"
    return integer


def mlp(net: Any, x: torch.Tensor, point: Any) -> torch.Tensor:
    x = point(F.relu(net.first(point(x))))
    x = point(F.relu(net.second(x)))
    return point(net.third(x))


def layers(per_channel: bool = True) -> dict[str, nn.Module]:
    sizes = {"first": (30, 40), "second": (40, 20), "third": (20, 5)}
    return {name: linear(*size, per_channel) for name, size in sizes.items()}


def test_a_multilayer_perceptron():
    x = image(4, 30)
    integer = check(Net(mlp, x, dtype=torch.uint8, **layers(per_channel=False)), x)
    assert integer.after["matmul"] == 3
    assert "quantize" not in integer.after


def cnn(net: Any, x: torch.Tensor, point: Any) -> None:
    x = point(F.relu(net.stem(point(x))))
    y = point(F.relu6(net.depthwise(x)))
    y = point(net.pointwise(y))
    x = point(F.relu(x + y))
    x = point(F.max_pool2d(x, 3, 2, 1))
    x = point(torch.cat([x, point(F.avg_pool2d(y, 2))], 1))
    x = point(net.grouped(x))
    x = point(x.mean([2, 3]))
    point(net.head(x))


def blocks(per_channel: bool = True) -> dict[str, nn.Module]:
    return {
        "stem": conv(3, 16, 3, per_channel=per_channel, stride=2),
        "depthwise": conv(16, 16, 3, 16, per_channel),
        "pointwise": conv(16, 16, 1, per_channel=per_channel),
        "grouped": conv(32, 8, 3, 4, per_channel, dilation=2),
        "head": linear(8, 6, per_channel),
    }


@pytest.mark.parametrize(("dtype", "per_channel"), [(torch.int8, True), (torch.uint8, False)])
def test_a_residual_network(dtype, per_channel):
    x = image(1, 3, 24, 20)
    integer = check(Net(cnn, x, dtype=dtype, **blocks(per_channel)), x)
    assert integer.after["nn.conv2d"] >= 4


def test_elementwise_operators_and_functions():
    def forward(net: Any, x: torch.Tensor, y: torch.Tensor, point: Any) -> None:
        x, y = point(x), point(y)
        for operator in (torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum):
            point(operator(x, y))
        point(x * net.factors)
        point(x + 0.7)
        for function in (torch.sigmoid, torch.tanh, F.gelu, F.silu, F.hardswish, F.leaky_relu, F.softplus, F.elu):
            point(function(x))
        point(F.hardtanh(x, -0.5, 1.5))
        point(torch.softmax(x, -1))

    x, y = image(6, 10), image(6, 10)
    factors = nn.Parameter(torch.rand(10) * 2)
    check(Net(forward, x, y, dtype=torch.uint8, factors=factors), x, y)


def test_moves():
    def forward(net: Any, x: torch.Tensor, point: Any) -> None:
        x = point(x)
        point(x.permute(0, 2, 3, 1).reshape(1, -1))
        point(x[:, 1:, ::2].flatten(1))
        point(F.pad(x, (1, 2, 0, 1)))
        point(F.interpolate(x, scale_factor=2))
        point(torch.cat([x, x], 1)[:, :5].mean([2, 3]))

    x = image(1, 4, 6, 5)
    check(Net(forward, x), x)


def test_a_quantization_behind_what_moves_the_results_of_a_layer():
    """A layer on three axes is one on two between reshapes; and a maximum may be quantized before or after."""

    def forward(net: Any, x: torch.Tensor, y: torch.Tensor, point: Any) -> None:
        x = point(x)
        point(F.relu(net.layer(x)).transpose(1, 2))
        point(F.max_pool2d(F.relu(net.conv(point(y))), 2))
        point(net.row(x))

    x, y = image(2, 7, 12), image(1, 3, 8, 8)
    parts = {"layer": linear(12, 9), "conv": conv(3, 5), "row": conv(7, 4, 3, rank=1)}
    integer = check(Net(forward, x, y, **parts), x, y)
    assert not {"nn.relu", "nn.max_pool2d"} & {kept.name for kept in integer.kept_float}


@pytest.mark.parametrize("tensors", [False, True])
def test_a_range_smaller_than_its_type(tensors):
    """The x86 quantizer leaves a bit of uint8 unused; scales may be tensors of one element."""
    x = image(4, 30)
    check(Net(mlp, x, dtype=torch.uint8, limits=(0, 127), tensors=tensors, **layers()), x)


def test_a_layer_whose_result_is_not_quantized_adds_up_integers():
    def forward(net: Any, x: torch.Tensor, point: Any) -> torch.Tensor:
        return F.log_softmax(net.head(point(x)), -1)

    x = image(4, 30)
    net = Net(forward, x, head=linear(30, 8))
    read = "the integer sums of matmul are read as floating point numbers"
    integer = check(net, x, kept={read, "its operands or its result are not quantized"})
    source, inputs = from_object(net, "net", (x,)), [x.numpy()]
    np.testing.assert_allclose(runner(integer.mod)(inputs)[1], Reference(source).run(inputs)[1], rtol=1e-5, atol=1e-5)


def test_halves_are_rounded_as_torch_rounds_them():
    """x * (1 / scale) where x / scale is, or is not, exactly between two integers."""
    scale, other = np.float32(0.3), np.float32(0.123)
    steps = np.arange(-128, 128, dtype=np.float32)
    halves = np.concatenate([(steps + np.float32(0.5)) * scale, np.nextafter((steps + np.float32(0.5)) * scale, 9)])

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points = nn.ModuleList([Point(), Point()])
            for point, value in zip(self.points, (scale, other), strict=True):
                point.scale, point.zero_point = float(value), 3

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            q, real = self.points[0](x)
            return q, self.points[1](real)[0], self.points[1](real + real)[0]

    source = from_object(Ends(), "net", (torch.zeros(halves.size),))
    integer = to_integer(import_model(source), source_format="torch")
    for expected, got in zip(Reference(source).run([halves]), runner(integer.mod)([halves]), strict=True):
        np.testing.assert_array_equal(got, expected)
    divided = np.clip(np.round(halves / scale) + 3, -128, 127)
    assert (divided != Reference(source).run([halves])[0]).any(), "nothing here tells the two apart"


@settings(max_examples=3)
@given(st.data())
def test_random_networks(data):
    """A chain of layers of random kinds, sizes and types."""
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    dtype = data.draw(st.sampled_from([torch.int8, torch.uint8]))
    channels = data.draw(st.integers(1, 9))
    kinds = data.draw(st.lists(st.sampled_from(["conv", "depthwise", "residual", "pool", "relu6"]), max_size=4))
    parts: dict[str, nn.Module] = {}
    for index, kind in enumerate(kinds):
        if kind in ("conv", "depthwise", "residual"):
            groups = channels if kind == "depthwise" else 1
            parts[f"layer{index}"] = conv(channels, channels, 3, groups, data.draw(st.booleans()))
    parts["head"] = linear(channels, 7)

    def forward(net: Any, x: torch.Tensor, point: Any) -> None:
        x = point(x)
        for index, kind in enumerate(kinds):
            y = getattr(net, f"layer{index}")(x) if hasattr(net, f"layer{index}") else x
            if kind == "residual":
                y = x + point(y)
            x = point({"conv": nn.Identity(), "pool": nn.MaxPool2d(3, 1, 1), "relu6": F.relu6}.get(kind, F.relu)(y))
        point(net.head(point(x.mean((2, 3)))))

    x = image(1, channels, data.draw(st.integers(3, 9)), data.draw(st.integers(3, 9)))
    check(Net(forward, x, dtype=dtype, **parts), x)


def test_an_archive_is_loaded_where_torch_does_not_know_the_operators(tmp_path):
    x = image(4, 30)
    torch.export.save(torch.export.export(Net(mlp, x, **layers()), (x,)), tmp_path / "net.pt2")
    code = f"from deploy.model import load\nprint(load({str(tmp_path / 'net.pt2')!r}).outputs[0].dtype)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.returncode) == ("int8", 0), done.stderr


def test_a_scale_that_is_computed_is_refused_by_name():
    class Dynamic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ops = torch.ops.quantized_decomposed
            scale, zero = ops.choose_qparams.tensor(x, 0, 255, 1e-5, torch.uint8)
            return ops.quantize_per_tensor.tensor(x, scale, zero, 0, 255, torch.uint8)

    with pytest.raises(InputError, match=r"choose_qparams.tensor \(in "):
        import_model(from_object(Dynamic(), "net", (image(3, 4),)))


def test_an_export_compiles_to_integers(tmp_path):
    from built import build

    import deploy

    x = image(1, 3, 24, 20)
    torch.export.save(torch.export.export(Net(cnn, x, **blocks()), (x,)), tmp_path / "net.pt2")
    source = load(tmp_path / "net.pt2")
    artifact = build(source)
    assert [kept["name"] for kept in artifact.facts["integer"]["float"]] == ["quantize"]
    for expected, got in zip(Reference(source).run([x.numpy()]), deploy.load(artifact.path)(x.numpy()), strict=True):
        assert np.abs(expected.astype(int) - got.astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["x86", "xnnpack"])
def test_what_torchs_quantizers_write(kind):
    pytest.importorskip("torchao", reason="needs torchao, which has the quantizers: pip install 'tvm-deploy[test]'")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)
            self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.norm(self.conv(x)))
            x = F.max_pool2d(F.relu(x + self.deep(x)), 2)
            return self.head(x.mean([2, 3]))

    if kind == "x86":
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    else:
        from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

        config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
        quantizer = xnnpack.XNNPACKQuantizer().set_global(config)
    x = image(1, 3, 8, 8)
    prepared = prepare_pt2e(torch.export.export(Small().eval(), (x,)).module(), quantizer)
    for _ in range(4):
        prepared(torch.randn_like(x))
    source = from_object(torch.export.export(convert_pt2e(prepared), (x,)), "net")
    integer = to_integer(import_model(source), source_format="torch")
    assert not {"nn.conv2d", "matmul"} & {kept.name for kept in integer.kept_float}
    reference, compiled = Reference(source), runner(integer.mod)
    for _ in range(3):
        inputs = [torch.randn_like(x).numpy()]
        np.testing.assert_allclose(compiled(inputs)[0], reference.run(inputs)[0], atol=0.02)
