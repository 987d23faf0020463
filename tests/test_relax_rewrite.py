"""The rewrites of the imported graph: nothing changes but the number of operators."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
import tvm
from built import Function, assert_correct, build, deployed, host, torch_source
from torch import nn
from tvm import relax

from deploy import lower as lowering
from deploy.compile import lower_for
from deploy.relax_fold import fold_constants
from deploy.relax_import import import_model
from deploy.relax_layout import convert_each_convolution
from deploy.relax_rewrite import (
    rewrite_clips,
    rewrite_conv1d,
    rewrite_reshapes,
    rewrite_takes,
    sink_reshapes,
)

pytestmark = pytest.mark.tvm


def trained(module):
    """Batch norms as training leaves them: every statistic different."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for values in (part.weight, part.bias, part.running_mean, part.running_var):
                values.data = torch.rand(values.shape, generator=generator) + 0.5
    return module.eval()


def calls(mod):
    values = [binding.value for block in mod["main"].body.blocks for binding in block.bindings]
    return [v for v in values if isinstance(v, tvm.ir.Call) and isinstance(v.op, tvm.ir.Op)]


def operators(mod):
    return Counter(str(call.op.name).removeprefix("relax.") for call in calls(mod))


def imported(module, *examples):
    mod = import_model(torch_source(module, *examples)).mod
    prepare = [relax.transform.DecomposeOpsForInference(), relax.transform.CanonicalizeBindings()]
    return tvm.transform.Sequential(prepare)(mod)


def evaluate(mod, *inputs):
    machine = relax.VirtualMachine(
        tvm.compile(relax.get_pipeline("zero")(mod), tvm.target.Target({"kind": "llvm"})), tvm.cpu()
    )
    outputs = machine["main"](*[tvm.runtime.tensor(np.asarray(x)) for x in inputs])
    return [o.numpy() for o in outputs] if not hasattr(outputs, "numpy") else [outputs.numpy()]


def assert_same(before, after, *inputs):
    for a, b in zip(evaluate(before, *inputs), evaluate(after, *inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def simplified(module, *examples):
    """The operators of a module as the pass list leaves them, before they become kernels."""
    mod = import_model(torch_source(module, *examples)).mod
    return operators(tvm.transform.Sequential(lowering._simplify())(mod))


# --- constants and affine operators


def test_batch_norm_becomes_constants_without_compiling():
    mod = imported(trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))), torch.rand(1, 3, 6, 6))
    folded = tvm.transform.Sequential([fold_constants(), relax.transform.DeadCodeElimination(["main"])])(mod)
    assert_same(mod, folded, np.random.rand(1, 3, 6, 6).astype(np.float32))
    assert not operators(folded) & Counter({"sqrt": 1, "expand_dims": 1, "reshape": 1})


AFFINE = {
    "add": lambda s, x: s.linear(x) + s.a,
    "subtract": lambda s, x: s.linear(x) - s.a,
    "subtract from": lambda s, x: s.a - s.linear(x),
    "multiply": lambda s, x: s.linear(x) * s.a,
    "divide": lambda s, x: s.linear(x) / s.a,
    "scalar": lambda s, x: (s.linear(x) * 3 + 1) / 2,
    "chain": lambda s, x: ((2 - s.linear(x)) * s.a - s.b) / s.b + s.a,
}


LINEAR = {
    "conv": (nn.Conv2d(4, 8, 3), (1, 4, 6, 6)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8, bias=False), (1, 8, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 8, 3), (1, 4, 6, 6)),
    "dense": (nn.Linear(4, 8, bias=False), (5, 4)),
}


def affine(kind, function):
    linear, shape = LINEAR[kind]
    per_channel = (8,) if kind == "dense" else (8, 1, 1)
    parts = {"linear": linear, "a": torch.linspace(0.5, 2, 8).reshape(per_channel)}
    return Function(function, **parts, b=torch.linspace(-2, -0.5, 8).reshape(per_channel)), torch.rand(shape)


@pytest.mark.parametrize("kind", LINEAR)
def test_affine_operators_fold_into_the_weight(kind):
    """One addition is left for each of the cases, and the numbers are the same."""
    module, data = affine(kind, lambda s, x: tuple(function(s, x) for function in AFFINE.values()))
    counts = simplified(module, data)
    assert counts["add"] == len(AFFINE)
    assert not counts & Counter({"subtract": 1, "multiply": 1, "divide": 1})
    deployed(module, data)


def test_a_value_with_another_reader_is_kept():
    def function(s, x):
        y = s.conv(x)
        return y * s.a, y

    module = Function(function, conv=nn.Conv2d(3, 8, 3, bias=False), a=torch.rand(8, 1, 1))
    assert simplified(module, torch.rand(1, 3, 6, 6))["multiply"] == 1
    deployed(module, torch.rand(1, 3, 6, 6))


@pytest.mark.parametrize("constant", [(6, 6), (8, 6, 6), (8, 1, 6)])
def test_what_is_not_per_channel_is_kept(constant):
    module = Function(lambda s, x: s.conv(x) * s.a, conv=nn.Conv2d(3, 8, 1, bias=False), a=torch.rand(constant))
    assert simplified(module, torch.rand(1, 3, 6, 6))["multiply"] == 1


def test_division_by_zero_is_kept():
    module = Function(lambda s, x: s.linear(x) / s.a, linear=nn.Linear(4, 2, bias=False), a=torch.tensor([1.0, 0.0]))
    assert simplified(module, torch.rand(3, 4))["divide"] == 1


def test_a_computed_weight_is_kept():
    examples = torch.rand(1, 3, 6, 6), torch.rand(4, 3, 3, 3)
    assert simplified(lambda _, x, w: torch.nn.functional.conv2d(x, w) * 2, *examples)["multiply"] == 1


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()), (1, 3, 9, 9)),
        (nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU()), (4, 5)),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU()), (1, 3, 20)),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), (1, 3, 5, 5)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish()), (1, 3, 9, 9)),
        (nn.Sequential(nn.Linear(5, 8), nn.GELU()), (2, 3, 5)),
    ],
    ids=["conv", "dense", "conv1d", "transposed", "hard-swish", "3-d dense and gelu"],
)
def test_a_layer_is_one_kernel(module, shape):
    """What is left besides the product is at most the change of layout at both ends."""
    artifact = deployed(trained(module), torch.rand(shape))
    layout_only = re.compile(r"(fused|_|transpose\d*|reshape\d*)+")
    computing = [name for name in artifact.facts["calls"] if not layout_only.fullmatch(name)]
    assert len(computing) == 1


# --- clips, reshapes, takes


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.0, 1.0, {"maximum": 1, "minimum": 1}),
        (0.5, None, {"maximum": 1}),
        (None, 0.25, {"minimum": 1}),
    ],
)
def test_clip_bounds(low, high, expected):
    mod = rewrite_clips()(imported(lambda _, x: torch.clamp(x, low, high), torch.rand(3, 4)))
    assert {n: c for n, c in operators(mod).items() if n in ("clip", "maximum", "minimum")} == expected
    values = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(evaluate(mod, values)[0], np.clip(values, low, high))


def test_squeeze_with_negative_axes_next_to_a_convolution():
    module = Function(lambda s, x: s.conv(x).squeeze(-1).squeeze(-1), conv=nn.Conv2d(3, 8, 9))
    deployed(module, torch.rand(1, 3, 9, 9))


def test_chains_of_reshapes_are_one_and_identities_none():
    mod = imported(
        lambda _, x: x.unsqueeze(1).flatten(1).reshape(3, 4).relu().reshape(12, 1).reshape(3, 4), torch.rand(3, 4)
    )
    mod = relax.transform.DeadCodeElimination(["main"])(relax.transform.CanonicalizeBindings()(rewrite_reshapes()(mod)))
    assert operators(mod) == {"nn.relu": 1}


def test_a_transpose_of_unit_axes_is_a_reshape():
    mod = rewrite_reshapes()(imported(lambda _, x: x.permute(0, 2, 1, 3) + 1, torch.rand(1, 4, 1, 5)))
    assert operators(mod) == {"reshape": 1, "add": 1}
    mod = rewrite_reshapes()(imported(lambda _, x: x.permute(1, 0) + 1, torch.rand(4, 5)))
    assert operators(mod) == {"permute_dims": 1, "add": 1}


SUNK = (
    lambda s, x: s.linear(x),
    lambda s, x: x + s.linear(x),
    lambda s, x: s.linear(x) - x,
    lambda s, x: torch.tanh(s.linear(x)) * 3,
    lambda s, x: s.linear(x) * s.wide,
    lambda s, x: s.linear(x) + s.linear(x.flip(0)),
)


def test_reshapes_behind_products_move_behind_elementwise_operators():
    module = Function(lambda s, x: tuple(f(s, x) for f in SUNK), linear=nn.Linear(5, 5), wide=torch.rand(3, 1))
    mod = imported(module, torch.rand(2, 3, 5))
    sunk = tvm.transform.Sequential([rewrite_reshapes(), sink_reshapes(), rewrite_reshapes()])(mod)
    assert_same(mod, sunk, np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 8, 3, padding=1),
        nn.Conv1d(4, 8, 5, stride=2, dilation=2),
        nn.Conv1d(8, 8, 3, groups=8, padding="same"),
        nn.Conv1d(4, 8, 1, bias=False),
    ],
    ids=str,
)
def test_conv1d_is_a_convolution_of_one_row(conv):
    shape = (2, conv.in_channels, 21)
    mod = imported(conv, torch.rand(shape))
    changed = rewrite_conv1d()(mod)
    assert operators(changed)["nn.conv2d"] == 1
    assert_same(mod, changed, np.random.rand(*shape).astype(np.float32))


def test_a_network_of_conv1d():
    module = nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=1, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8, dilation=2),
        nn.ReLU6(), nn.Conv1d(8, 16, 1), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(80, 3),
    )  # fmt: skip
    deployed(trained(module), torch.rand(2, 4, 30))


def test_an_index_outside_the_table_reads_its_edge():
    source = torch_source(nn.Embedding(5, 3), torch.zeros(4, dtype=torch.int64))
    from deploy.runtime import Model

    artifact = build(source)
    assert_correct(source, artifact)
    run = Model(artifact.path)
    np.testing.assert_array_equal(run(np.array([99, 4, 0, 2])), run(np.array([4, 4, 0, 2])))
    mod = rewrite_takes()(import_model(source).mod)
    assert 'mode="fast"' not in mod["main"].script()


def test_rewriting_keeps_the_workloads_of_the_tuned_kernels_small_in_number():
    """Equal layers are one kernel, however they are written."""
    block = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    module = trained(nn.Sequential(*block, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
    lowered = lower_for(torch_source(module, torch.rand(1, 8, 8, 8)), host())
    assert sum("conv2d" in name for name in lowered.kernels) == 1


def test_layout_conversion_that_fails_is_done_for_each_convolution():
    """relax.stack makes TVM's layout conversion fail; ours leaves it out, and has another way for what else does."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), nn.Conv2d(8, 8, 3, groups=8)
    )
    mod = imported(module, torch.rand(1, 3, 8, 8))
    changed = convert_each_convolution()(mod)
    layouts = {str(call.attrs.data_layout) for call in calls(changed) if "conv2d" in str(call.op.name)}
    assert layouts == {"NHWC"}
    weights = {str(call.attrs.kernel_layout) for call in calls(changed) if "conv2d" in str(call.op.name)}
    assert weights == {"HWIO"}


def test_a_failing_layout_conversion_still_deploys(monkeypatch):
    def fails(layouts):
        raise RuntimeError("Invalid SLayout")

    monkeypatch.setattr(relax.transform, "ConvertLayout", fails)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, 2))
    deployed(trained(module), torch.rand(1, 3, 8, 8))
