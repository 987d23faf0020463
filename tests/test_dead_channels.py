"""Dead channels go, and every result stays: exactly in integers, up to the rounding of sums in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from built import host, new_folder, torch_source
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tflite_quantized as q
from models import torch_models
from models.onnx_quantized import QdqNet
from models.tflite_models import Builtin
from test_integer_tflite import runner
from torch import nn

from deploy import compile as compiling
from deploy import operators, runtime
from deploy.dead_channels import Eliminated, eliminate_dead_channels
from deploy.model import from_object, load
from deploy.reference import Reference
from deploy.relax_import import import_model

tvm = pytest.importorskip("tvm")
from tvm import relax  # noqa: E402

from deploy.integer import to_integer  # noqa: E402

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
RELU, NONE = q.Activation.RELU, q.Activation.NONE
VWW = Path(__file__).resolve().parents[2] / "shared" / "models" / "mlperf-tiny" / "vww_mobilenetv1_int8.tflite"
FEWER_MACS = 3_733_073  # what is known to be possible for this model


class Pruned(q.Net):
    """A network of which only the last result is an output; the next weights' channels `zero` are zero, and biases of
    `large` so large that the activation saturates whatever the input."""

    zero: Any = ()
    large: Any = ()
    value = 1900  # bias of zero channels

    def weights(self, shape, axis, per_channel):
        index, scales = super().weights(shape, axis, per_channel)
        data = self.stored(index, "int8").reshape(shape)
        np.moveaxis(data, axis, 0)[list(self.zero)] = 0
        return index, scales

    def bias(self, x, scales, channels):
        index = super().bias(x, scales, channels)
        data = self.stored(index, "int32")
        data[list(self.zero)] = self.value
        data[list(self.large)] = -(2**28)
        return index

    def stored(self, index: int, dtype: str) -> np.ndarray:
        """The values of a constant, to be changed."""
        buffer = self.b.buffers[self.b.tensors[index].buffer]
        buffer.data = buffer.data.copy()
        return buffer.data.view(dtype)

    def planted(self, zero: Any = (), large: Any = ()) -> Pruned:
        """The network, whose next operators have these channels dead."""
        self.zero, self.large = zero, large
        return self

    def integers(self, *outputs: q.Tensor) -> Any:
        """The integer form, with these outputs."""
        self.outputs = list(outputs)
        file = new_folder() / "net.tflite"
        file.write_bytes(self.pack())
        return to_integer(import_model(load(file))).mod


def same(mod: Any, inputs: list[list[np.ndarray]], tolerance: float = 0.0) -> Eliminated:
    """What elimination does to `mod`, whose results do not change, and which then has nothing left to remove."""
    found = eliminate_dead_channels(mod)
    assert found.macs_before == operators.count(mod)[1]
    assert found.macs_after == operators.count(found.mod)[1] <= found.macs_before
    assert (found.mod is mod) == (not found.removed)
    if found.removed:
        relax.analysis.well_formed(found.mod)  # raises if not
        again = eliminate_dead_channels(found.mod)
        assert again.mod is found.mod
        before, after = runner(mod), runner(found.mod)
        for values in inputs:
            for expected, got in zip(before(values), after(values), strict=True):
                assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
                assert np.abs(got - expected.astype(np.float64)).max() <= tolerance * max(1, np.abs(expected).max())
    return found


def checked(net: Pruned, *outputs: q.Tensor) -> dict[str, int]:
    return dict(same(net.integers(*outputs), [net.data(seed) for seed in range(4)]).removed)


def test_nothing_dead_leaves_the_module_as_it_is():
    net = Pruned(0)
    x = net.input(1, 6, 6, 3)
    mod = net.integers(net.conv(net.conv(x, 8, 3, fusedActivationFunction=RELU), 2, 1))
    found = eliminate_dead_channels(mod)
    assert found.mod is mod
    assert found.removed == {}
    assert found.macs_before == found.macs_after


@pytest.mark.parametrize("relu", [RELU, NONE])
def test_zero_channels_through_a_product_without_padding(relu):
    """Whatever their constant is, the next bias takes it over."""
    net = Pruned(1)
    x = net.planted([0, 5]).input(1, 6, 5, 3)
    a = net.conv(x, 8, 3, padding=SAME, fusedActivationFunction=relu)
    assert checked(net, net.planted().conv(a, 4, 2, padding=VALID)) == {"nn.conv2d 1": 2}


def test_channels_saturated_by_bias_and_clamp():
    net = Pruned(2)
    x = net.planted(large=[1, 2, 6]).input(1, 6, 5, 3)
    a = net.conv(x, 8, 3, padding=SAME, fusedActivationFunction=RELU)
    # a ReLU leaves them at the zero point, which is what padding holds
    b = net.planted().depthwise(a, 1, 3, padding=SAME)
    assert checked(net, net.conv(b, 4, 1)) == {"nn.conv2d 1": 3, "nn.conv2d 2": 3}


def test_a_constant_that_is_not_the_zero_point_stays_before_padding():
    net = Pruned(3)
    x = net.planted([0, 4]).input(1, 6, 5, 3)
    a = net.conv(x, 8, 3, padding=SAME)
    assert checked(net, net.planted().conv(a, 4, 3, padding=SAME)) == {}
    assert checked(net, net.conv(a, 4, 3, padding=VALID)) == {"nn.conv2d 1": 2}


def test_the_zero_point_goes_also_before_padding():
    net = Pruned(4)
    net.value = -(2**27)
    x = net.planted([0, 4]).input(1, 6, 5, 3)
    a = net.conv(x, 8, 3, padding=SAME, fusedActivationFunction=RELU)
    assert checked(net, net.planted().conv(a, 4, 3, padding=SAME)) == {"nn.conv2d 1": 2}


def test_a_depthwise_convolution_whose_border_differs_keeps_the_channel():
    net = Pruned(5)
    x = net.planted([1]).input(1, 6, 5, 3)
    a = net.conv(x, 6, 1)
    padded = net.planted().depthwise(a, 1, 3, padding=SAME)
    assert checked(net, net.conv(padded, 4, 1)) == {}
    assert checked(net, net.conv(net.depthwise(a, 1, 3, padding=VALID), 4, 1)) == {"nn.conv2d 1": 1, "nn.conv2d 2": 1}


def test_a_depthwise_multiplier():
    """All copies of a channel are dead, or it stays."""
    net = Pruned(6)
    x = net.planted([1, 3]).input(1, 6, 5, 3)
    a = net.conv(x, 4, 1)
    half = net.planted([6]).depthwise(a, 2, 3, padding=VALID)
    assert checked(net, net.planted().conv(half, 4, 1)) == {"nn.conv2d 1": 2, "nn.conv2d 2": 4}
    alive = net.planted().conv(x, 4, 1)
    half = net.planted([4]).depthwise(alive, 2, 3, padding=VALID)
    assert checked(net, net.planted().conv(half, 4, 1)) == {}
    both = net.planted([4, 5]).depthwise(alive, 2, 3, padding=VALID)
    assert checked(net, net.planted().conv(both, 4, 1)) == {"nn.conv2d 1": 1, "nn.conv2d 2": 2}


@pytest.mark.parametrize(("first", "second", "dead"), [([1, 2, 5], [2, 5, 6], 2), ([1, 2], [3], 0)])
def test_sums_lose_what_is_dead_in_both_operands(first, second, dead):
    net = Pruned(7)
    x = net.input(1, 6, 5, 3)
    a = net.planted(first).conv(x, 8, 1)
    b = net.planted(second).conv(x, 8, 3, padding=SAME)
    total = net.planted().binary(Builtin.ADD, a, b, schema.AddOptionsT)
    removed = checked(net, net.conv(total, 4, 1))
    assert removed == ({"nn.conv2d 1": dead, "nn.conv2d 2": dead} if dead else {})


def test_an_output_keeps_its_channels():
    net = Pruned(8)
    x = net.planted([0, 1]).input(1, 6, 5, 3)
    a = net.conv(x, 8, 1)
    assert checked(net, net.planted().conv(a, 4, 1), a) == {}


def test_unread_channels_go_back_to_where_they_begin():
    """The second layer's only readers of channel 3 are dead themselves."""
    net = Pruned(9)
    x = net.input(1, 6, 5, 3)
    a = net.conv(x, 8, 1)
    b = net.depthwise(a, 1, 3, padding=SAME)
    c = net.planted([0, 1]).conv(b, 6, 1)
    weights = next(i for i, t in enumerate(net.b.tensors) if tuple(t.shape) == (6, 1, 1, 8))
    net.stored(weights, "int8").reshape(6, 8)[2:, 3] = 0
    assert checked(net, net.planted().conv(c, 4, 1)) == {"nn.conv2d 1": 1, "nn.conv2d 2": 1, "nn.conv2d 3": 2}


@pytest.mark.parametrize("code", [Builtin.AVERAGE_POOL_2D, Builtin.MAX_POOL_2D])
@pytest.mark.parametrize("padding", [SAME, VALID])
def test_pooling_and_a_dense_layer(code, padding):
    net = Pruned(10)
    x = net.planted([0, 3], [4]).input(1, 6, 6, 3)
    a = net.conv(x, 8, 1, fusedActivationFunction=RELU)
    pooled = net.pool(a, code, 2, strideH=2, strideW=2, padding=padding)
    whole = net.pool(pooled, Builtin.AVERAGE_POOL_2D, 3, padding=VALID)
    assert checked(net, net.planted().dense(net.reshape(whole, 1, 8), 5))["nn.conv2d 1"] == 3
    flat = net.dense(net.reshape(pooled, 1, 72), 5)
    assert checked(net, flat)["nn.conv2d 1"] == 3


def test_joined_tensors():
    net = Pruned(11)
    x = net.planted([0, 1], [2]).input(1, 5, 5, 3)
    a = net.conv(x, 8, 1, fusedActivationFunction=RELU)
    b = net.op(Builtin.MAX_POOL_2D, [a.index], net.tensor(a.shape, a.scale, a.zero_point), schema.Pool2DOptionsT,
               filterHeight=3, filterWidth=3, strideH=1, strideW=1, padding=SAME)  # fmt: skip
    joined = net.concat([a, b], 3, a.scale, a.zero_point)
    net.planted()
    assert checked(net, net.conv(joined, 4, 1)) == {"nn.conv2d 1": 3}
    rows = net.concat([a, b], 1, a.scale, a.zero_point)
    assert checked(net, net.conv(rows, 4, 1)) == {"nn.conv2d 1": 3}


def test_functions_by_table_and_means():
    net = Pruned(12)
    x = net.planted([0, 3]).input(1, 5, 5, 3)
    a = net.conv(x, 8, 1)
    b = net.op(Builtin.HARD_SWISH, [a.index], net.tensor(a.shape, a.scale * 0.9), schema.HardSwishOptionsT)
    c = net.reduce(b, Builtin.MEAN, (1, 2), False)
    assert checked(net, net.planted().dense(c, 5)) == {"nn.conv2d 1": 2}


def test_one_channel_stays_where_all_are_dead():
    net = Pruned(13)
    x = net.planted(range(8)).input(1, 5, 5, 3)
    a = net.conv(x, 8, 1)
    assert checked(net, net.planted().conv(a, 4, 1)) == {"nn.conv2d 1": 7}


def test_a_transposed_convolution_reads_zeros_only():
    net = Pruned(14)
    x = net.planted(large=[0, 3]).input(1, 5, 5, 3)
    a = net.conv(x, 8, 1, fusedActivationFunction=RELU)
    assert checked(net, net.planted().transpose_conv(a, 4, 3, 2, VALID)) == {"nn.conv2d 1": 2}
    b = net.planted([1]).conv(x, 8, 1)
    assert checked(net, net.planted().transpose_conv(b, 4, 3, 2, VALID)) == {}


STEPS = ("conv", "wide", "depthwise", "multiplied", "add", "max", "average", "concat", "swish")


def grown(net: Pruned, x: q.Tensor, step: str) -> q.Tensor:
    """One more operator with random dead channels."""
    depth = {"depthwise": x.shape[3], "multiplied": 2 * x.shape[3]}.get(step, 6)
    net.value = int(net.rng.integers(-4000, 4000))
    net.planted(np.flatnonzero(net.rng.random(depth) < 0.3), np.flatnonzero(net.rng.random(depth) < 0.2))
    values = {"padding": net.rng.choice([SAME, VALID]), "fusedActivationFunction": net.rng.choice(q.ACTIVATIONS)}
    if step == "wide":
        return net.conv(x, 6, 3, padding=SAME, strideH=1, fusedActivationFunction=values["fusedActivationFunction"])
    if step in ("depthwise", "multiplied"):
        return net.depthwise(x, depth // x.shape[3], 3, **values)
    if step == "add":
        a, b = net.conv(x, 6, 1), net.conv(x, 6, 3, padding=SAME)
        return net.binary(Builtin.ADD, a, b, schema.AddOptionsT)
    if step in ("max", "average"):
        code = Builtin.MAX_POOL_2D if step == "max" else Builtin.AVERAGE_POOL_2D
        return net.pool(x, code, 2, padding=values["padding"])
    if step == "concat":
        a = net.conv(x, 6, 1)
        b = net.pool(a, Builtin.MAX_POOL_2D, 3, padding=SAME)
        return net.concat([a, b], 3, a.scale, a.zero_point)
    if step == "swish":
        return net.op(Builtin.HARD_SWISH, [x.index], net.tensor(x.shape, x.scale * 0.9), schema.HardSwishOptionsT)
    return net.conv(x, 6, 1, **{**values, "padding": VALID})


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(STEPS), min_size=1, max_size=4))
def test_random_integer_networks(seed, steps):
    net = Pruned(seed)
    x = net.input(1, 11, 10, 4)
    for step in ("conv", *steps):
        x = grown(net, x, step)
    net.planted()
    checked(net, net.conv(x, 3, int(net.rng.integers(1, 3)), padding=SAME))


def test_onnx_in_integers():
    """NCHW, accumulators scaled in float32."""
    net = QdqNet(1)
    x = net.input(1, 5, 6, 6)
    a = net.conv(x, 8, 3, then=[("Relu", [])])
    b = net.conv(a, 8, 3, groups=8, then=[("Relu", [])])
    net.conv(b, 4, 1)
    net.outputs = net.outputs[-1:]
    weight, bias = (next(v for k, v in net.constants.items() if k.startswith(p) and len(v) == 8) for p in ("w", "b"))
    weight[[1, 6]], bias[[1, 6]] = 0, -900
    mod = to_integer(import_model(from_object(net.pack(), "net")), source_format="onnx").mod
    assert same(mod, [net.data(seed) for seed in range(3)]).removed == {"nn.conv2d 1": 2, "nn.conv2d 2": 2}


def pruned(module: nn.Module, share: float, seed: int) -> nn.Module:
    """The module with that share of the output channels of its convolutions zero, and batch norms shifted."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.bias.uniform_(-1, 1)
            elif isinstance(part, nn.Conv2d | nn.Linear):
                part.weight[torch.rand(part.weight.shape[0]) < share] = 0
    return module.eval()


def float_module(module: nn.Module, *shape: int) -> tuple[Any, list[list[np.ndarray]]]:
    rng = np.random.default_rng(0)
    mod = import_model(torch_source(module, torch.zeros(shape))).mod
    return mod, [[rng.standard_normal(shape).astype(np.float32)] for _ in range(3)]


class SqueezeExcite(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(depth, 4, 1), nn.Conv2d(4, depth, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.last(torch.relu(self.first(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


@settings(max_examples=6)
@given(st.integers(0, 1000), st.sampled_from([nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Identity]))
def test_random_float_networks(seed, activation):
    layers = [
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation()),
        *(nn.Conv2d(8, 8, 3, padding=seed % 2, groups=8), activation(), SqueezeExcite(8)),
        *(nn.Conv2d(8, 6, 1), nn.MaxPool2d(2), activation(), nn.Conv2d(6, 6, 3, padding=1), activation()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.LazyLinear(12), activation(), nn.Linear(12, 5)),
    ]
    module = nn.Sequential(*layers)
    module(torch.zeros(1, 3, 12, 12))
    same(*float_module(pruned(module, 0.4, seed), 1, 3, 12, 12), tolerance=1e-6)


def test_zero_filters_of_a_float_model():
    """relu(bias) of the first is 0, padding's number; the other's is not."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    with torch.no_grad():
        module[0].weight[[2, 5]] = 0
        module[0].bias[2], module[0].bias[5] = -0.5, 0.5
    found = same(*float_module(module, 1, 3, 8, 8), tolerance=1e-6)
    assert found.removed == {"nn.conv2d 1": 1}
    assert found.macs_after == 8 * 8 * 9 * (3 * 7 + 7 * 4)


@pytest.mark.parametrize(("multiple", "left"), [(1, 20), (4, 20), (16, 32), (3, 21)])
def test_a_multiple_of_channels_stays(multiple, left):
    network = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 5, 1))
    with torch.no_grad():
        network[0].weight[20:] = 0
    found = eliminate_dead_channels(float_module(network.eval(), 1, 3, 8, 8)[0], multiple)
    assert list(found.removed.values()) == [40 - left]


@pytest.mark.slow
@pytest.mark.parametrize("network", [torch_models.resnet18, torch_models.mobilenet_v2])
def test_networks_with_residual_sums(network):
    found = same(*float_module(pruned(network(), 0.5, 1), 1, 3, 32, 32), tolerance=1e-6)
    assert found.macs_after < found.macs_before


@pytest.mark.slow
@pytest.mark.skipif(not VWW.exists(), reason="the MLPerf Tiny models are not beside the project")
def test_the_vww_model_halves_and_its_results_stay_litert_s(tmp_path, monkeypatch):
    def everything(mod, multiple):
        assert multiple > 1  # a build keeps whole vectors of channels
        return eliminate_dead_channels(mod)

    source = load(VWW)
    whole = compiling.build(source, host(), tmp_path / "whole")
    assert FEWER_MACS < whole.facts["macs"] < 0.55 * whole.facts["dead_channels"]["macs_before"]
    monkeypatch.setattr(compiling, "eliminate_dead_channels", everything)
    artifact = compiling.build(source, host(), tmp_path / "vww")
    assert artifact.facts["macs"] <= FEWER_MACS
    (spec,) = source.inputs
    stored = np.load(VWW.with_name(f"{VWW.stem}_golden.npz"))["inputs"]
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 5 + 2 * i, spec.shape) + spec.zero_point for i in range(100)]
    inputs = [*stored, *(np.clip(np.round(values), -128, 127) for values in noise)]
    compiled, reference = runtime.Model(artifact.path), Reference(source)
    for number, values in enumerate(inputs):
        one = values.reshape(spec.shape).astype(spec.dtype)
        np.testing.assert_array_equal(compiled(one), reference.run([one])[0], err_msg=f"input {number}")
