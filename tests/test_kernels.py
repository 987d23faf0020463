"""The packed kernels and their schedules against torch and NumPy, on every vector width and number of threads."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from built import Function, Kernels, deployed, host
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace
from tvm_ffi import structural_equal

from deploy.errors import ToolError
from deploy.kernels import compute, fallback, packing, schedule
from deploy.kernels.default import default_schedule
from deploy.kernels.machine import Machine
from deploy.kernels.mathematics import expand

pytestmark = pytest.mark.tvm

MACHINES = {
    "128x16": Machine(128, 16),
    "256x16": Machine(256, 16),
    "512x32": Machine(512, 32),
    "512x32 small cache": Machine(512, 32, cache_bytes=1024),
}


PLAIN = compute.Window()


@dataclass(frozen=True)
class Conv:
    """A convolution: image, channels in and out, kernel, window; depthwise where `outputs` is 0."""

    size: tuple[int, int]
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    window: compute.Window = PLAIN
    batch: int = 1

    @property
    def channels(self) -> int:
        return self.outputs or self.inputs

    @property
    def groups(self) -> int:
        return 1 if self.outputs else self.inputs

    def lanes(self, machine: Machine) -> int:
        choose = packing.lanes_for if self.outputs else packing.dividing_lanes
        return choose(self.channels, machine.lanes(32))

    def func(self, machine: Machine) -> tirx.PrimFunc:
        """relu(conv(data, packed weights) + bias), as fusion makes it."""
        lanes = self.lanes(machine)
        blocks = -(-self.channels // lanes)
        packed = (blocks, *self.kernel, self.inputs, lanes) if self.outputs else (blocks, *self.kernel, lanes)
        data = te.placeholder((self.batch, *self.size, self.inputs), name="data")
        weight, bias = te.placeholder(packed, name="weight"), te.placeholder((self.channels,), name="bias")
        function = compute.conv2d if self.outputs else compute.depthwise
        out = function(data, weight, self.channels, self.window)
        zero = tirx.const(0, "float32")
        relu = te.compute(out.shape, lambda *i: tirx.max(out(*i) + bias[i[-1]], zero), name="relu")
        return te.create_prim_func([data, weight, bias, relu])

    def arrays(self) -> list[np.ndarray]:
        """Data, weight [KH, KW, CI / groups, CO] and bias."""
        rng = np.random.default_rng(0)
        shapes = [(self.batch, *self.size, self.inputs), (*self.kernel, self.inputs // self.groups, self.channels)]
        return [rng.standard_normal(shape).astype(np.float32) for shape in (*shapes, (self.channels,))]

    def expected(self) -> np.ndarray:
        data, weight, bias = (torch.from_numpy(a).double() for a in self.arrays())
        top, left, bottom, right = self.window.padding
        padded = torch.nn.functional.pad(data.permute(0, 3, 1, 2), (left, right, top, bottom))
        weights = weight.permute(3, 2, 0, 1)
        stride, dilation = self.window.stride, self.window.dilation
        out = torch.nn.functional.conv2d(padded, weights, bias, stride, 0, dilation, self.groups)
        return out.relu().permute(0, 2, 3, 1).numpy()

    def run(self, kernels: Kernels, name: str, machine: Machine) -> np.ndarray:
        data, weight, bias = self.arrays()
        packed = packing.pack_channels(weight if self.outputs else weight[:, :, 0, :], self.lanes(machine))
        return kernels.call(name, data, packed, bias)


W = compute.Window
CONVS = {
    "one pixel": Conv((1, 1), 24, 1000, (1, 1)),
    "pointwise": Conv((13, 7), 10, 24, (1, 1)),
    "pointwise, prime area, one channel": Conv((17, 31), 1, 1, (1, 1)),
    "pointwise, stride 2": Conv((7, 13), 16, 10, (1, 1), W((2, 2))),
    "pointwise, padded": Conv((5, 5), 8, 8, (1, 1), W(padding=(1, 1, 1, 1))),
    "pointwise, batch": Conv((5, 7), 3, 16, (1, 1), batch=3),
    "3x3": Conv((7, 13), 3, 10, (3, 3), W(padding=(1, 1, 1, 1))),
    "3x3, no padding": Conv((31, 17), 1, 1, (3, 3)),
    "3x3, stride 2, asymmetric": Conv((16, 16), 16, 32, (3, 3), W((2, 2), padding=(0, 0, 1, 1))),
    "3x3, asymmetric everywhere": Conv((8, 9), 3, 24, (3, 3), W((1, 2), padding=(3, 0, 1, 2))),
    "3x3, dilated": Conv((17, 17), 10, 16, (3, 3), W(dilation=(2, 3), padding=(2, 3, 2, 3))),
    "5x5, width 1": Conv((13, 1), 10, 24, (5, 5), W(padding=(2, 2, 2, 2))),
    "1x7": Conv((3, 13), 4, 3, (1, 7), W(padding=(0, 3, 0, 3))),
    "even kernel": Conv((9, 9), 4, 17, (2, 4), W(padding=(0, 1, 1, 2))),
    "many channels": Conv((7, 7), 40, 100, (3, 3), W(padding=(1, 1, 1, 1))),
    "batch": Conv((6, 5), 4, 16, (3, 3), W(padding=(1, 1, 1, 1)), batch=2),
    "depthwise": Conv((7, 13), 24, 0, (3, 3), W(padding=(1, 1, 1, 1))),
    "depthwise, odd channels": Conv((11, 7), 7, 0, (3, 3), W((2, 2), padding=(0, 0, 1, 1))),
    "depthwise, one channel": Conv((17, 1), 1, 0, (3, 1), W(dilation=(2, 1))),
    "depthwise, 5x5": Conv((14, 14), 48, 0, (5, 5), W((2, 1), padding=(2, 2, 2, 2)), batch=2),
}


@cache
def convolutions(machine: Machine, threads: int = 1) -> Kernels:
    machine = replace(machine, threads=threads)
    return Kernels(
        {f"k{i}": default_schedule(conv.func(machine), machine).mod["main"] for i, conv in enumerate(CONVS.values())},
        host(threads),
    )


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("case", CONVS)
def test_convolution(case, machine):
    conv, name = CONVS[case], f"k{list(CONVS).index(case)}"
    result = conv.run(convolutions(machine), name, machine)
    np.testing.assert_allclose(result, conv.expected(), rtol=2e-6, atol=2e-5)


PARALLEL = {
    "3x3": Conv((28, 28), 16, 32, (3, 3), W(padding=(1, 1, 1, 1))),
    "pointwise, prime": Conv((13, 31), 24, 48, (1, 1)),
    "depthwise": Conv((48, 48), 16, 0, (3, 3), W(padding=(1, 1, 1, 1))),
    "one row": Conv((1, 1), 512, 1000, (1, 1)),
}


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_change_nothing(threads):
    one, several = Machine(512, 32), Machine(512, 32, threads=threads)
    results = []
    for machine in (one, several):
        funcs = {
            f"k{i}": default_schedule(c.func(machine), machine).mod["main"] for i, c in enumerate(PARALLEL.values())
        }
        if machine is several:
            assert all("T.parallel" in func.script() for func in funcs.values())
        kernels = Kernels(funcs, host(machine.threads))
        results.append([c.run(kernels, f"k{i}", machine) for i, c in enumerate(PARALLEL.values())])
    for conv, alone, together in zip(PARALLEL.values(), *results, strict=True):
        np.testing.assert_array_equal(alone, together)
        np.testing.assert_allclose(alone, conv.expected(), rtol=2e-6, atol=3e-4)


@pytest.mark.parametrize(
    ("case", "threads"), [("3x3, stride 2, asymmetric", 1), ("pointwise", 1), ("depthwise, 5x5", 1), ("3x3", 2)]
)
def test_every_variant_computes_the_same(case, threads):
    conv, machine = CONVS[case], Machine(256, 16, threads=threads)
    func = schedule.prepared(conv.func(machine))
    variants = schedule.variants(func, machine)
    assert len(variants) >= 8
    chosen = variants[:: max(1, len(variants) // 24)]
    scheduled = {}
    for index, variant in enumerate(chosen):
        sch = Schedule(func)
        schedule.apply(sch, variant, machine)
        scheduled[f"v{index}"] = sch.mod["main"]
    kernels = Kernels(scheduled, host(threads))
    expected = conv.expected()
    for name in scheduled:
        np.testing.assert_allclose(conv.run(kernels, name, machine), expected, rtol=2e-6, atol=2e-5, err_msg=name)


def matmul_func(leading: tuple[int, ...], depth: int, channels: int, machine: Machine) -> tirx.PrimFunc:
    lanes = packing.lanes_for(channels, machine.lanes(32))
    data = te.placeholder((*leading, depth), name="data")
    weight = te.placeholder((-(-channels // lanes), depth, lanes), name="weight")
    return te.create_prim_func([data, weight, compute.matmul(data, weight, channels)])


MATMULS = [((1,), 10, 24), ((7,), 16, 1), ((13,), 1, 17), ((2, 3), 33, 10), ((2, 1, 7), 8, 1000), ((1, 31), 64, 64)]


@cache
def matmuls(machine: Machine) -> Kernels:
    funcs = [matmul_func(*case, machine) for case in MATMULS]
    return Kernels({f"k{i}": default_schedule(f, machine).mod["main"] for i, f in enumerate(funcs)})


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("case", range(len(MATMULS)))
def test_matmul(case, machine):
    leading, depth, channels = MATMULS[case]
    rng = np.random.default_rng(case)
    data, weight = (rng.standard_normal(s).astype(np.float32) for s in ((*leading, depth), (depth, channels)))
    packed = packing.pack_channels(weight, packing.lanes_for(channels, machine.lanes(32)))
    result = matmuls(machine).call(f"k{case}", data, packed)
    np.testing.assert_allclose(result, data.astype(float) @ weight.astype(float), rtol=2e-6, atol=1e-5)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.tuples(*[st.integers(1, 5)] * 2),
    st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(0, 4)] * 4),
)
def test_window_output_is_torchs(height, width, kernel, stride, dilation, padding):
    top, left, bottom, right = padding
    rows, columns = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    if height + top + bottom < rows or width + left + right < columns:
        return
    data = torch.nn.functional.pad(torch.zeros(1, 1, height, width), (left, right, top, bottom))
    out = torch.nn.functional.conv2d(data, torch.zeros(1, 1, *kernel), None, stride, 0, dilation)
    assert W(stride, dilation, padding).output((height, width), kernel) == tuple(out.shape[2:])


@given(st.integers(1, 70), st.sampled_from([1, 4, 8, 16]), st.integers(0, 3))
def test_packing_keeps_every_weight_and_adds_only_zeros(channels, lanes, leading):
    weight = np.random.default_rng(channels).standard_normal((*[2] * leading, 3, channels))
    packed = packing.pack_channels(weight, lanes)
    assert packed.shape == (-(-channels // lanes), *weight.shape[:-1], lanes)
    back = np.moveaxis(packed, 0, -2).reshape(*weight.shape[:-1], -1)
    np.testing.assert_array_equal(back[..., :channels], weight)
    assert not back[..., channels:].any()


@given(st.integers(1, 5000), st.sampled_from([1, 4, 8, 16]))
def test_lanes(channels, vector):
    lanes, dividing = packing.lanes_for(channels, vector), packing.dividing_lanes(channels, vector)
    assert lanes <= vector
    assert lanes == vector or lanes >= channels
    assert channels % dividing == 0
    assert dividing <= vector


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_register_blocks_fit_the_registers_and_divide_the_layer(machine):
    func = Conv((12, 15), 8, 96, (3, 3), W(padding=(1, 1, 1, 1))).func(machine)
    size = schedule.problem(func)
    for block in schedule.variants(func, machine):
        assert (size.height % block.rows, size.width % block.columns, size.blocks % block.vectors) == (0, 0, 0)
        sums = block.rows * block.columns * block.vectors
        assert sums + block.vectors <= machine.registers or sums == block.vectors


def test_what_is_packed_is_told_by_its_stages():
    a, b = te.placeholder((4, 4)), te.placeholder((4, 4))
    plain = te.create_prim_func([a, b, te.compute((4, 4), lambda i, j: a[i, j] + b[i, j])])
    assert not schedule.is_packed(plain)
    assert schedule.is_packed(CONVS["3x3"].func(Machine(128, 16)))


def test_padded_rows_of_a_thread_fit_its_stack():
    """Rows of an image that are too large for a thread's stack are padded all at once, outside the parallel loop."""
    machine = Machine(512, 32, threads=2, cache_bytes=1024)
    funcs = {}
    for width, channels in ((8, 16), (200, 128)):
        func = Conv((16, width), channels, 16, (3, 3), W(padding=(1, 1, 1, 1))).func(machine)
        by_rows = [v for v in schedule.variants(func, machine) if v.pad_rows]
        assert by_rows
        sch = Schedule(func)
        schedule.apply(sch, by_rows[0], machine)
        funcs[f"w{width}"] = sch.mod["main"]
    kernels = Kernels(funcs, host(2))
    assert kernels.plain["w8"].workspace_bytes == ()
    assert kernels.plain["w200"].workspace_bytes == (18 * 202 * 128 * 4,)


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.tuples(st.integers(1, 19), st.integers(1, 19)),
    st.sampled_from([1, 3, 8, 20]),
    st.sampled_from([0, 1, 7, 16, 40]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from(list(MACHINES)),
)
def test_random_convolution(size, inputs, outputs, kernel, stride, padding, machine):
    window = W(stride, (1, 1), padding)
    if min(window.output(size, kernel)) < 1:
        return
    conv, machine = Conv(size, inputs, outputs, kernel, window), MACHINES[machine]
    kernels = Kernels({"k": default_schedule(conv.func(machine), machine).mod["main"]})
    np.testing.assert_allclose(conv.run(kernels, "k", machine), conv.expected(), rtol=2e-6, atol=2e-5)


# --- functions


def elementwise(function, count: int) -> tirx.PrimFunc:
    x = te.placeholder((count,), name="x")
    return te.create_prim_func([x, te.compute((count,), lambda i: function(x[i]))])


NUMBERS = np.concatenate([np.linspace(-100, 100, 40001), np.logspace(-30, 1, 2000), -np.logspace(-30, 1, 2000)])
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 88.7, -86.5, 3e38, -3e38])
MATH = {
    "exp": (tirx.exp, np.exp),
    "tanh": (tirx.tanh, np.tanh),
    "sigmoid": (tirx.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "erf": (tirx.erf, lambda x: torch.special.erf(torch.from_numpy(x)).numpy()),
}


@cache
def functions() -> Kernels:
    machine, count = Machine(512, 32), len(NUMBERS) + len(SPECIAL)
    count += -count % 16
    return Kernels({n: fallback.schedule(elementwise(f, count), machine).mod["main"] for n, (f, _) in MATH.items()})


@pytest.mark.parametrize("name", MATH)
def test_mathematics_is_accurate_everywhere(name):
    kernels = functions()
    (count,), _ = kernels.params[name][0]
    values = np.concatenate([NUMBERS, SPECIAL, np.zeros(count)])[:count].astype(np.float32)
    result = kernels.call(name, values)
    with np.errstate(over="ignore"):
        expected = MATH[name][1](values.astype(np.float64))
        expected = np.where(np.abs(expected) < 2e-38, 0, expected)  # what is smaller than a float may be zero
        np.testing.assert_allclose(result, expected.astype(np.float32), rtol=5e-7, atol=4e-38)


def test_mathematics_leaves_other_types_alone():
    x = te.placeholder((4,), "float64", name="x")
    func = te.create_prim_func([x, te.compute((4,), lambda i: tirx.exp(x[i]))])
    assert "T.exp" in str(tirx.PrimFunc(func.params, expand(func.body)).script())


def test_an_unusable_stack_is_refused():
    x = te.placeholder((4, 262144), name="x")
    double = te.compute(x.shape, lambda i, j: x[i, j] * tirx.const(2, "float32"), name="double")
    out = te.compute(x.shape, lambda i, j: double[i, 262143 - j], name="out")
    sch = Schedule(te.create_prim_func([x, out]))
    i, _ = sch.get_loops(sch.get_sblock("out", func_name="main"))
    sch.compute_at(sch.get_sblock("double", func_name="main"), i)
    sch.parallel(i)
    with pytest.raises(ToolError, match="kernel big needs 1048576 bytes of stack"):
        Kernels({"big": sch.mod["main"]}, host(2))


@pytest.mark.parametrize("case", CONVS)
def test_a_schedule_can_be_written_and_read(case):
    conv, machine = CONVS[case], MACHINES["512x32"]
    func = schedule.prepared(conv.func(machine))
    sch, again = default_schedule(func, machine), Schedule(func)
    Trace.apply_json_to_schedule(sch.trace.as_json(), again)
    assert structural_equal(again.mod, sch.mod)


def test_a_result_that_is_broadcast_is_no_packed_kernel():
    squeeze = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(16, 16, 1), torch.nn.Sigmoid())
    deployed(Function(lambda module, x: x * module.squeeze(x), squeeze=squeeze), torch.rand(1, 16, 9, 9))
