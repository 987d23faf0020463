"""Results written over inputs: kernels and whole models compute the same as in memory of their own."""

import ctypes
from dataclasses import replace
from functools import cache
from math import prod

import numpy as np
import pytest
import torch
from built import SHARED, assert_correct, build, host, new_folder, torch_source
from torch import nn
from tvm import tirx
from tvm.target import Target

from deploy import compile as compiling
from deploy import model as models
from deploy import reference, runtime, shell
from deploy.aot import in_place
from deploy.aot.plan import lifetimes, plan, shares
from deploy.graph import Call, Graph, Tensor
from deploy.kernels.plain import PlainKernel, build_object, to_plain
from deploy.targets import load_target

pytestmark = pytest.mark.tvm


class Inverted(nn.Module):
    """MobileNetV2's block: wider, depthwise, narrower, and its input added."""

    def __init__(self, channels, wide):
        super().__init__()
        parts = [nn.Conv2d(channels, wide, 1), nn.ReLU6(), nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.ReLU6()]
        self.body = nn.Sequential(*parts, nn.Conv2d(wide, channels, 1))

    def forward(self, x):
        return x + self.body(x)


@cache
def residual():
    torch.manual_seed(0)
    blocks = [
        Inverted(16, 48),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        Inverted(32, 64),
        Inverted(32, 64),
    ]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10), nn.Softmax(-1)]
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *blocks, *end)
    return torch_source(net, torch.rand(1, 3, 24, 24), name="residual")


def outputs(artifact, count=3):
    model = runtime.Model(artifact.path)
    return [model(*inputs) for inputs in reference.sample_inputs(residual(), count, seed=2)]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_residual_network_computes_the_same_in_less_memory(threads, monkeypatch):
    over = build(residual(), host(threads))
    assert_correct(residual(), over)
    monkeypatch.setattr(in_place, "may_share", lambda *_: False)
    apart = build(residual(), host(threads))
    assert over.arena_bytes < apart.arena_bytes
    assert [x.tobytes() for x in outputs(over)] == [x.tobytes() for x in outputs(apart)]
    sizes = over.facts["sizes"]
    assert sizes["arena_in_place_bound_bytes"] <= over.arena_bytes < sizes["arena_bound_bytes"]
    assert apart.facts["sizes"]["arena_in_place_bound_bytes"] == apart.facts["sizes"]["arena_bound_bytes"]


def library(kernels):
    """Kernels that promise nothing about their pointers, compiled."""
    folder = new_folder()
    open_ones = [replace(kernel, func=kernel.func.without_attr("tirx.noalias")) for kernel in kernels.values()]
    build_object(open_ones, Target(host().tvm), str(folder / "kernels.o"))
    linked = ["cc", "-shared", "kernels.o", "-lm", "-o", "kernels.so"]
    shell.run(linked, timeout_s=60, cwd=folder)
    return ctypes.CDLL(str(folder / "kernels.so"))


def test_every_kernel_that_may_computes_in_place_what_it_computes_apart():
    model = compiling.lower_for(residual(), host())
    scheduled = compiling.schedule_all(model, host(), None).kernels
    kernels = {name: to_plain(func, f"k_{name}", Target(host().tvm)) for name, func in scheduled.items()}
    compiled, allowed, generator, tried = library(kernels), in_place.allowed(scheduled), np.random.default_rng(0), 0

    def run(name, call, inputs, over=None):
        spaces = [runtime.aligned_empty((n,), "uint8", 64) for n in kernels[name].workspace_bytes]
        shapes = [model.graph.tensors[n].shape for n in (*call.inputs, *call.outputs)]
        arrays = [runtime.aligned_empty((max(prod(s), 1 << 18),), "float32", 64) for s in shapes]
        for array, values in zip(arrays, inputs, strict=False):
            array[: values.size] = values.ravel()
        result = arrays[len(call.inputs) if over is None else over]
        pointers = [*arrays[: len(call.inputs)], result, *spaces]
        assert compiled[kernels[name].name](*(ctypes.c_void_p(one.ctypes.data) for one in pointers)) == 0
        return result[: prod(shapes[-1])].copy()

    for name, call in {call.kernel: call for call in model.graph.calls if call.kernel in kernels}.items():
        inputs = [generator.random(model.graph.tensors[n].shape, np.float32) - 0.3 for n in call.inputs]
        for read in (read for read in range(len(inputs)) if allowed(call, read, 0)):
            np.testing.assert_array_equal(run(name, call, inputs, over=read), run(name, call, inputs))
            tried += 1
    assert tried > 5


def test_only_kernels_that_run_in_place_lose_their_promise():
    kernels = {name: PlainKernel(name, plain(), ()) for name in ("first", "second", "third")}
    tensors = [Tensor("x", (64,), "uint8", "input"), Tensor("y", (64,), "uint8", "output")]
    tensors += [Tensor(name, (64,), "uint8", "activation") for name in "abc"]
    calls = (Call("first", ("x",), ("a",)), Call("second", ("a",), ("b",)), Call("third", ("b",), ("c",)))
    graph = Graph({t.name: t for t in tensors}, (*calls, Call("copy", ("c",), ("y",))), ("x",), ("y",))
    made = plan(lifetimes(graph), 64, shares(graph, lambda call, *_: call.kernel == "second"))
    assert in_place.overwritten(graph, made) == {"b": "a"}
    opened = in_place.with_overlaps(kernels, graph, made)
    assert {name for name, kernel in opened.items() if "tirx.noalias" not in kernel.func.attrs} == {"second"}


def plain():
    """Any function with the promise that its pointers do not overlap."""
    buffer = tirx.decl_buffer((1,), "int8")
    return tirx.PrimFunc([buffer], tirx.Evaluate(0)).with_attr("tirx.noalias", True)


def test_a_copy_is_never_in_place():
    assert not in_place.allowed({})(Call("copy", ("a",), ("b",)), 0, 0)


def test_integer_kernels_of_a_microcontroller_run_in_place():
    """Residual additions, depthwise convolutions and products of no more outputs than inputs."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not there")
    target = load_target("cortex-m4-mps2")
    for name, least in (("ic_resnet8_int8", 3), ("kws_dscnn_int8", 8), ("ad_autoencoder_int8", 8)):
        lowered = compiling.lower_for(models.load(SHARED / "models" / "mlperf-tiny" / f"{name}.tflite"), target)
        allowed = in_place.allowed(compiling.schedule_all(lowered, target, None).kernels)
        assert len(shares(lowered.graph, allowed)) >= least, name
