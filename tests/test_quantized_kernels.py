"""Integer kernels against NumPy, for every dot-product instruction that this CPU has; the others are compiled."""

import numpy as np
import pytest
from built import SHARED, Kernels, build, host
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te
from tvm.s_tir import Schedule
from tvm.target import Target as TvmTarget

import deploy
from deploy import shell
from deploy.host import host_flags
from deploy.kernels import compute, dot, packing, quantized, schedule
from deploy.kernels.default import default_schedule
from deploy.kernels.legalize_quantized import dot_weights
from deploy.kernels.machine import Machine
from deploy.kernels.plain import build_object, to_plain
from deploy.model import load
from deploy.reference import Reference, sample_inputs

pytestmark = pytest.mark.tvm

HERE = [one for needed, one in dot.BY_FEATURES if needed <= set(host_flags())]
COMPILED = {  # what each instruction is called in assembly, on a CPU that has it
    "vnni_512": ("icelake-client", "vpdpbusd"),
    "vnni_256": ("alderlake", "vpdpbusd"),
    "madd_512": ("skylake-avx512", "vpmaddwd"),
    "madd_256": ("haswell", "vpmaddwd"),
    "madd_128": ("x86-64-v2", "pmaddwd"),
}
WINDOWS = {
    "same": (3, 3, compute.Window(padding=(1, 1, 1, 1))),
    "stride": (3, 3, compute.Window(stride=(2, 2), padding=(0, 0, 1, 1))),
    "wide": (1, 5, compute.Window(stride=(1, 2), padding=(0, 2, 0, 2))),
    "tall, dilated": (5, 1, compute.Window(dilation=(2, 1), padding=(4, 0, 4, 0))),
    "pointwise": (1, 1, compute.Window()),
}


def machine(instruction, threads=1):
    return Machine(32 * instruction.lanes, 32 if instruction.lanes == 16 else 16, threads, dots=(instruction,))


def scheduled(func, processor):
    return default_schedule(func, processor).mod["main"]


def numbers(shape, dtype, seed):
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def convolved(data, kernel, window, zero_point, groups=1):
    """int32 sums of (data - zero_point) * kernel, nothing outside the image; kernel [KH, KW, CI / groups, CO]."""
    top, left, bottom, right = window.padding
    image = np.pad(data.astype(np.int32) - zero_point, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height, width = window.output(data.shape[1:3], kernel.shape[:2])
    total = 0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            rows = slice(i * window.dilation[0], i * window.dilation[0] + (height - 1) * window.stride[0] + 1)
            columns = slice(j * window.dilation[1], j * window.dilation[1] + (width - 1) * window.stride[1] + 1)
            part = image[:, rows, columns][:, :: window.stride[0], :: window.stride[1]]
            taps = kernel[i, j].astype(np.int32)
            total = total + (part @ taps if groups == 1 else part * taps[0])
    return total.astype(np.int32)


def conv_func(data, kernel, window, instruction, zero_point):
    """The kernel, and what it takes besides the data."""
    height, width, inputs, channels = kernel.shape
    operand = quantized.operand_for(instruction, data.dtype.name, zero_point)
    packed = dot_weights(kernel.reshape(height, width * inputs, channels), instruction)
    correction = (-(operand.shift + zero_point) * kernel.astype(np.int64).sum((0, 1, 2))).astype(np.int32)
    x = te.placeholder(data.shape, data.dtype.name, name="x")
    w = te.placeholder(packed.shape, packed.dtype.name, name="w")
    c = te.placeholder(correction.shape, "int32", name="c")
    sums = quantized.Sums(channels, operand, instruction)
    return te.create_prim_func([x, w, c, quantized.quantized_conv2d(x, w, c, width, window, sums)]), packed, correction


def product_func(data, weight, instruction, zero_point):
    """The kernel, and what it takes besides the data."""
    operand = quantized.operand_for(instruction, "int8", zero_point)
    packed = dot_weights(weight, instruction)
    correction = (-(operand.shift + zero_point) * weight.astype(np.int64).sum(0)).astype(np.int32)
    x, w = te.placeholder(data.shape, "int8", name="x"), te.placeholder(packed.shape, packed.dtype.name, name="w")
    c = te.placeholder(correction.shape, "int32", name="c")
    product = quantized.quantized_matmul(x, w, c, quantized.Sums(weight.shape[1], operand, instruction))
    func = te.create_prim_func([x, w, c, product])
    return func, packed, correction


@pytest.mark.parametrize("instruction", HERE, ids=lambda one: one.name)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("channels", [(16, 32), (3, 8), (1, 5), (20, 17)], ids=str)
def test_a_convolution_is_exact(instruction, window, channels):
    kernel_h, kernel_w, shape = WINDOWS[window]
    data = numbers((1, 9, 17, channels[0]), np.int8, 1)
    kernel = numbers((kernel_h, kernel_w, *channels), np.int8, 2)
    func, packed, correction = conv_func(data, kernel, shape, instruction, -7)
    got = Kernels({"conv": scheduled(func, machine(instruction))}).call("conv", data, packed, correction)
    np.testing.assert_array_equal(got, convolved(data, kernel, shape, -7))


@pytest.mark.parametrize("instruction", HERE, ids=lambda one: one.name)
def test_every_variant_computes_the_same(instruction):
    data, kernel = numbers((1, 6, 8, 8), np.uint8, 3), numbers((3, 3, 8, 32), np.int8, 4)
    window = compute.Window(padding=(1, 1, 1, 1))
    func, packed, correction = conv_func(data, kernel, window, instruction, 131)
    found = {}
    for number, variant in enumerate(schedule.variants(func, machine(instruction))):
        found[f"v{number}"] = Schedule(func)
        schedule.apply(found[f"v{number}"], variant, machine(instruction))
    library = Kernels({name: sch.mod["main"] for name, sch in found.items()})
    expected = convolved(data, kernel, window, 131)
    for name in found:
        np.testing.assert_array_equal(library.call(name, data, packed, correction), expected)


@pytest.mark.parametrize("rows", [1, 5])
def test_every_variant_of_a_product_can_be_applied(rows):
    data, weight = numbers((rows, 64), np.int8, 1), numbers((64, 128), np.int8, 2)
    func, packed, correction = product_func(data, weight, HERE[0], -3)
    found = {}
    for number, variant in enumerate(schedule.variants(func, machine(HERE[0]))):
        found[f"v{number}"] = sch = Schedule(func)
        schedule.apply(sch, variant, machine(HERE[0]))
    library = Kernels({name: sch.mod["main"] for name, sch in found.items()})
    for name in found:
        got = library.call(name, data, packed, correction)
        np.testing.assert_array_equal(got, (data.astype(np.int32) + 3) @ weight.astype(np.int32))


@settings(max_examples=12)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40), st.integers(-128, 127), st.integers(0, 99))
def test_a_product_is_exact(rows, size, channels, zero_point, seed):
    instruction = HERE[seed % len(HERE)]
    data, weight = numbers((rows, size), np.int8, seed), numbers((size, channels), np.int8, seed + 1)
    func, packed, correction = product_func(data, weight, instruction, zero_point)
    got = Kernels({"k": scheduled(func, machine(instruction))}).call("k", data, packed, correction)
    np.testing.assert_array_equal(got, (data.astype(np.int32) - zero_point) @ weight.astype(np.int32))


@pytest.mark.parametrize("channels", [8, 12, 40])
@pytest.mark.parametrize("window", ["same", "stride", "wide"])
def test_a_depthwise_convolution_in_floats_is_exact(channels, window):
    kernel_h, kernel_w, shape = WINDOWS[window]
    data, kernel = numbers((1, 7, 10, channels), np.int8, 5), numbers((kernel_h, kernel_w, 1, channels), np.int8, 6)
    lanes = packing.dividing_lanes(channels, 16)
    packed = packing.pack_channels(kernel[:, :, 0].astype(np.float32), lanes)
    x, w = te.placeholder(data.shape, "int8", name="x"), te.placeholder(packed.shape, "float32", name="w")
    func = te.create_prim_func([x, w, compute.depthwise(x, w, channels, shape, quantized.float_operand(-128))])
    got = Kernels({"k": scheduled(func, machine(HERE[0]))}).call("k", data, packed)
    np.testing.assert_array_equal(got, convolved(data, kernel, shape, -128, channels))


@pytest.mark.parametrize(
    "instruction", [one for _, one in dot.BY_FEATURES if one.name in COMPILED], ids=lambda one: one.name
)
def test_the_instruction_is_in_the_code(instruction, tmp_path):
    mcpu, mnemonic = COMPILED[instruction.name]
    data, kernel = numbers((1, 8, 8, 16), np.int8, 7), numbers((3, 3, 16, 32), np.int8, 8)
    func, _, _ = conv_func(data, kernel, compute.Window(padding=(1, 1, 1, 1)), instruction, 0)
    target = TvmTarget({"kind": "llvm", "mcpu": mcpu})
    build_object([to_plain(scheduled(func, machine(instruction)), "conv", target)], target, str(tmp_path / "k.o"))
    text = shell.run(["objdump", "-d", str(tmp_path / "k.o")], timeout_s=60).stdout
    assert text.count(mnemonic) >= 8  # the register block holds at least that many sums


MODELS = ("ic_resnet8", "kws_dscnn", "vww_mobilenetv1", "ad_autoencoder", "sww")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real trained models are not beside this checkout")
@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_is_bit_exact(name):
    folder = SHARED / "models" / "mlperf-tiny"
    source = load(folder / f"{name}_int8.tflite")
    artifact = build(source)
    run, original = deploy.load(artifact.path), Reference(source)
    for inputs in sample_inputs(source, 5, seed=11):
        np.testing.assert_array_equal(run(*inputs), original.run(inputs)[0])
    golden = folder / f"{name}_int8_golden.npz"
    if golden.exists():  # real inputs, whose outputs do not saturate
        with np.load(golden) as known:
            for given_, expected in zip(known["inputs"], known["litert_reference"], strict=True):
                got = run(given_.reshape(source.inputs[0].shape))
                np.testing.assert_array_equal(got.reshape(-1), expected.reshape(-1))
    assert artifact.facts["integer"]["float"] == []
    assert not {"quantize", "dequantize"} & set(artifact.facts["integer"]["after"])
    if dot.VNNI_512 in HERE:
        code = shell.run(["objdump", "-d", str(artifact.path / "libmodel.so")], timeout_s=60).stdout
        assert "vpdpbusd" in code


def test_threads_do_not_change_integers():
    data, kernel = numbers((1, 32, 32, 16), np.int8, 9), numbers((3, 3, 16, 64), np.int8, 10)
    window = compute.Window(padding=(1, 1, 1, 1))
    func, packed, correction = conv_func(data, kernel, window, HERE[0], 3)
    kernels = Kernels({"k": scheduled(func, machine(HERE[0], threads=2))}, host(2))
    got = kernels.call("k", data, packed, correction)
    np.testing.assert_array_equal(got, convolved(data, kernel, window, 3))
