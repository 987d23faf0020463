"""The kernels for microcontrollers: many shapes in one model, run in QEMU, equal to the reference byte for byte."""

import ctypes
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from built import build, new_folder
from firmware_support import ARM, RISCV
from models import tflite_quantized as q
from models.tflite_models import Builtin

from deploy import model, pipeline, reference, shell
from deploy.device.protocol import RunPlan
from deploy.kernels.micro import helium, helium_depthwise, smlad, smlad_depthwise
from deploy.kernels.micro.assembly import assembly
from deploy.kernels.micro.legalize_scaling import channel_sums
from deploy.targets import in_portable_c, load_target

pytestmark = pytest.mark.tvm
M3, M4, M55, RV32 = "cortex-m3-mps2", "cortex-m4-mps2", "cortex-m55-mps3", "rv32imc-virt"
CORES = [pytest.param(core, marks=ARM) for core in (M3, M4, M55)]
HEADERS = {"math.h", "stdbool.h", "stddef.h", "stdint.h", "string.h", "arm_acle.h"}
ONCE = RunPlan(warmup_s=0.0, seconds=0.01, min_samples=1)


@cache
def branches():
    """Convolutions, depthwise ones and products of awkward shapes, each a result of its own."""
    net = q.Net(11)
    wide, narrow, column = net.input(1, 9, 11, 8), net.input(1, 12, 7, 1), net.input(1, 15, 1, 8)
    even, odd = net.input(1, 8, 8, 4), net.input(1, 5, 9, 3)
    net.outputs = [
        net.conv(wide, 7, 3),  # an odd number of channels and of columns
        net.conv(wide, 13, 3, strideH=2, strideW=2, padding=1),
        net.conv(wide, 5, 5, padding=1),
        net.conv(wide, 9, 1),
        net.conv(wide, 16, 1, strideH=2, strideW=2),
        net.conv(narrow, 6, 4, padding=0),  # few taps in a row, which are gathered
        net.conv(narrow, 12, 3, dilationHFactor=2, padding=0),
        net.depthwise(wide, 1, 3),
        net.depthwise(wide, 1, 3, strideH=2, strideW=2),
        net.depthwise(wide, 1, 3, strideH=2, strideW=2, padding=1),
        net.depthwise(odd, 1, 2, strideH=2, strideW=2, padding=1),  # the last column is in no window
        net.depthwise(even, 1, 3, strideH=2, strideW=2, padding=1),  # nor is it here
        net.depthwise(odd, 1, 5, strideH=5, strideW=5, padding=1),  # one window
        net.depthwise(wide, 1, 4, padding=0),
        net.depthwise(wide, 1, 5, padding=0),  # more taps than one load gathers
        net.dense(net.reshape(net.conv(column, 8, 1), 1, 120), 11),
        net.binary(Builtin.ADD, net.conv(wide, 8, 3), wide, q.schema.AddOptionsT),
    ]
    file = new_folder() / "branches.tflite"
    file.write_bytes(net.pack())
    return model.load(file)


@cache
def in_c(core):
    """The artifact for a core, its kernels as C; rounding as on a microcontroller, so that all give the same."""
    return build(branches(), in_portable_c(replace(load_target(core), rounding="double")))


@cache
def samples():
    return pipeline.Samples(reference.sample_inputs(branches(), 2, seed=7))


def assert_right(results):
    original = reference.Reference(branches(), "double")
    for inputs, outputs in zip(samples().inputs, results, strict=True):
        for spec, expected, actual in zip(branches().outputs, original.run(inputs), outputs, strict=True):
            np.testing.assert_array_equal(actual, expected, spec.name)


@pytest.mark.parametrize("core", CORES)
def test_every_shape_is_what_the_reference_computes(core):
    artifact = build(branches(), load_target(core))
    assert_right(pipeline.measure_artifact(artifact, load_target(core), samples(), ONCE).outputs)
    name, word = {M4: ("micro.S", "smlad r"), M55: ("micro.S", "vmlava")}.get(core, ("micro.c", "portable"))
    assert word in (artifact.path / "src" / name).read_text()


@pytest.mark.parametrize("core", [pytest.param(M4, marks=ARM), pytest.param(RV32, marks=RISCV), "host"])
def test_every_shape_is_the_same_in_c(core):
    artifact = in_c(core)
    target = in_portable_c(load_target(core))
    assert_right(pipeline.measure_artifact(artifact, target, samples(), ONCE).outputs)
    text = (artifact.path / "src" / "kernels.c").read_text()
    assert not set(re.findall(r"#include <(.*?)>", text)) - HEADERS
    assert not re.search(r"tvm/|TVM_DLL|llvm", text)
    assert ("__smlad" in text) == (core == M4)
    if core != "host":
        assert {path.name for path in (artifact.path / "src").iterdir()} == {"kernels.c", "model.c", "weights.c"}


@ARM
def test_what_is_emitted_for_a_microcontroller_is_any_compiler_s(tmp_path):
    """Its sources, strictly compiled for this machine: without the core's own instructions, the same bytes."""
    artifact = in_c(M4)
    names = [str(artifact.path / "src" / f"{name}.c") for name in ("kernels", "model", "weights")]
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", f"-I{artifact.path}"]
    shell.run(["cc", *strict, "-shared", "-fPIC", *names, "-o", tmp_path / "model.so"], timeout_s=60)
    run = getattr(ctypes.CDLL(str(tmp_path / "model.so")), f"{artifact.prefix}_run")
    results = []
    for inputs in samples().inputs:
        outputs = [np.zeros(spec.shape, spec.dtype) for spec in branches().outputs]
        arena = np.zeros(artifact.arena_bytes + 64, np.uint8)
        place = arena[-arena.ctypes.data % 64 :]
        given = [array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, *outputs, place)]
        assert run(*given, ctypes.c_size_t(artifact.arena_bytes)) == 0
        results.append(outputs)
    assert_right(results)


def test_two_digits_give_both_channels_back():
    random = np.random.default_rng(0)
    weights = random.integers(-127, 128, (3, 5, 7)).astype(np.int8)
    packed = smlad.two_digits(weights, 4, 128)
    assert packed is not None
    assert packed.shape == (2, 3, 3, 2, 2)
    low = packed.astype(np.int8).astype(int)
    high = (packed.astype(int) - low) >> 8
    channels = np.stack([low, high], axis=4).transpose(1, 2, 5, 0, 3, 4).reshape(3, 6, 8)
    np.testing.assert_array_equal(channels[:, :5, :7], weights)
    assert not channels[:, 5].any()
    assert not channels[..., 7].any()
    np.testing.assert_array_equal(channel_sums(packed)[:7], np.abs(weights.astype(int)).sum(axis=(0, 1)))


def test_two_digits_are_refused_where_one_overflows():
    assert smlad.two_digits(np.array([[[-1, -128, 0, 0]]], np.int8), 4, 128) is None
    many = np.full((1, 600, 4), 127, np.int8)  # 600 * 127 * 128 > 2^23
    assert smlad.two_digits(many, 4, 128) is None
    assert smlad.two_digits(many[:, :500], 4, 128) is not None


@pytest.mark.parametrize(("width", "stride"), [(2, 1), (3, 1), (4, 1), (5, 1), (3, 2), (4, 2), (5, 2)])
def test_taps_are_stored_so_that_pairs_of_pixels_fit(width, stride):
    """The products that a row of taps is made of, on numbers: what the instructions do."""
    kernel = smlad_depthwise.DepthwiseKernel(1, 2, 1, width, 1, stride, 32)
    random = np.random.default_rng(width * 10 + stride)
    taps, pixels = random.integers(-127, 128, width), random.integers(-128, 128, 32)
    words = smlad_depthwise.Taps(width, stride).stored(taps).reshape(-1, 2).astype(int)
    sums = {"r2": 0, "r3": 0}
    for total, how, at, tap in kernel.products():
        (low, high), (first, second) = pixels[2 * at : 2 * at + 2], words[tap]
        sums[total] += {"lad": low * first + high * second, "labt": low * second, "latb": high * first}[how]
    expected = [int(pixels[start : start + width] @ taps) for start in (0, stride)]
    assert [sums["r2"], sums["r3"]] == expected
    assert words.size == 2 * smlad_depthwise.Taps(width, stride).words


def test_symbols_say_everything():
    kernels = [
        smlad.MicroKernel(2, 4, 3, 24, 16),
        smlad_depthwise.DepthwiseKernel(5, 6, 3, 3, 1, 2, 8),
        smlad_depthwise.Plane(25, 5, 64, 1, 1, 27, 8, -128),
        helium.HeliumKernel(2, 3, 64, 3, 48, 16, 0, 544),
        helium_depthwise.GatheredKernel(5, 5, 3, 3, 1, 1, 7, 189),
        helium_depthwise.Planes(25, 5, 64, 1, 1, 27, 7, 3),
    ]
    for kernel in kernels:
        assert type(kernel).of(kernel.symbol) == kernel
        text = assembly([kernel.symbol])
        assert f"{kernel.symbol}:" in text
        assert f".weak {kernel.symbol}" in text  # two models in one image may have the same
    assert assembly(["memcpy"]) == ""
    with pytest.raises(ValueError, match="no micro-kernel has"):
        smlad.MicroKernel(3, 4, 1, 1, 1)


def test_a_block_of_helium_is_chosen_by_its_instructions():
    assert helium.blocking(1, 128, 1, 640, 640).pixels == 1
    stem = helium.blocking(25, 64, 10, 4, 2, pitch=12)
    assert stem.together  # four taps of sixteen lanes would be wasted ten times
    assert not helium.blocking(32, 16, 3, 48, 16, pitch=544).together
