"""Targets for Linux on Arm and RISC-V: what schedules know of the processors, and what is in their code."""

import re
from dataclasses import replace

import pytest

from deploy import host, shell
from deploy.kernels.for_target import machine_for
from deploy.targets import list_targets, load_target

# Name → architecture, bits and number of vector registers, lanes of float32, dot products.
FACTS = {
    "aarch64": ("aarch64", 128, 32, 4, False),
    "cortex-a53": ("aarch64", 128, 32, 4, False),
    "cortex-a72": ("aarch64", 128, 32, 4, False),
    "cortex-a76": ("aarch64", 128, 32, 4, True),
    "rpi4": ("aarch64", 128, 32, 4, False),
    "rpi5": ("aarch64", 128, 32, 4, True),
    "neoverse-n1": ("aarch64", 128, 32, 4, True),
    "jetson-orin": ("aarch64", 128, 32, 4, True),
    "armv7-a": ("armv7a", 128, 16, 4, False),
    "riscv64": ("riscv64", 32, 26, 1, False),
}


def test_all_of_them_are_here():
    assert {info.name for info in list_targets() if load_target(info.name).device.kind == "ssh"} == set(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_what_schedules_know(name):
    target = load_target(name)
    machine = machine_for(target)
    architecture, bits, registers, lanes, dots = FACTS[name]
    assert (target.architecture, machine.vector_bits, machine.registers) == (architecture, bits, registers)
    assert (machine.lanes(32), machine.lanes(8)) == (lanes, 4 * lanes)
    assert [dot.name for dot in machine.dots] == (["sdot_128"] if dots else [])
    assert machine.dot("int8") == (machine.dots[0] if dots else None)
    assert (machine.threads, target.threads, target.tvm["num-cores"]) == (1, 1, 1)
    assert machine_for(replace(target, threads=4)).threads == 4
    assert machine.micro is None, "micro-kernels are for microcontrollers"
    assert (target.alignment, target.artifact) == (64, "shared-library")
    assert target.tuning.trials == 0, "a run without --trials has to work"


def test_boards_share_tuning_records_with_their_processor():
    assert load_target("rpi4").fingerprint() == load_target("cortex-a72").fingerprint()
    assert load_target("rpi5").fingerprint() == load_target("cortex-a76").fingerprint()
    assert load_target("rpi5").fingerprint() != load_target("jetson-orin").fingerprint()


def test_dot_products_can_be_taken_away_and_are_known_of_the_processor():
    target = load_target("neoverse-n1")
    options = {**dict(target.tvm_options), "mattr": ("+neon", "-dotprod")}
    assert machine_for(replace(target, tvm_options=tuple(options.items()))).dots == ()
    del options["mattr"]
    for mcpu in ("neoverse-n1", "cortex-a76", "cortex-a78ae"):
        named = {**options, "mcpu": mcpu}
        assert [d.name for d in machine_for(replace(target, tvm_options=tuple(named.items()))).dots] == ["sdot_128"]
    assert "asimddp" not in host.required_flags("cortex-a72", ())


def instructions(target, model, folder):
    """The names of the instructions in an artifact's kernels."""
    from deploy import pipeline

    artifact = pipeline.build(model, target, out=folder)
    objdump = target.toolchain.cc.replace("-gcc", "-objdump")
    listed = shell.run([objdump, "-d", artifact.path / "src" / "kernels.o"], timeout_s=60).stdout
    return set(re.findall(r"^\s+[0-9a-f]+:\t[0-9a-f ]+\t(\S+)", listed, re.MULTILINE)), listed


@pytest.mark.tvm
@pytest.mark.skipif(shell.which("aarch64-linux-gnu-gcc") is None, reason="not installed: aarch64-linux-gnu-gcc")
def test_sdot_is_in_the_code_of_processors_that_have_it_and_of_no_other(tmp_path):
    from models import tflite_quantized

    from deploy import model

    net = tflite_quantized.Net(1)
    net.conv(net.input(1, 8, 8, 16), 16, 3)
    (tmp_path / "model.tflite").write_bytes(net.pack())
    source = model.load(tmp_path / "model.tflite", {})
    for name in ("cortex-a76", "cortex-a72"):
        found, _ = instructions(load_target(name), source, tmp_path / name)
        assert ("sdot" in found) == FACTS[name][4], name


@pytest.mark.tvm
@pytest.mark.skipif(shell.which("arm-linux-gnueabihf-gcc") is None, reason="not installed: arm-linux-gnueabihf-gcc")
def test_armv7_multiplies_floats_in_vectors(conv_onnx, tmp_path):
    found, listed = instructions(load_target("armv7-a"), conv_onnx, tmp_path / "out")
    assert re.search(r"vmul\.f32\s+q", listed), found
