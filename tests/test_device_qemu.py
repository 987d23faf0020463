"""The emulated microcontroller: outputs, exact instruction counts, stack, and everything that can go wrong."""

from dataclasses import replace

import numpy as np
import pytest
from firmware_support import ARM, BOARDS, INPUTS, MORE_BOARDS, OUTPUTS, expected, library, samples

from deploy.device.protocol import RunPlan
from deploy.device.qemu import QemuDevice, emulator_command
from deploy.errors import DeviceError, InputError
from deploy.target_memory import Memory
from deploy.target_parts import DeviceSpec, PowerSpec
from deploy.targets import load_target

QUICK = RunPlan(warmup_s=0.0, seconds=0.05, min_samples=1, timeout_s=20)
M0, M4 = "cortex-m0-microbit", "cortex-m4-mps2"


def run(board, file, inputs=None, plan=QUICK, target=None):
    with QemuDevice(target or load_target(board)) as device:
        return device.run(file, "tiny", samples(1) if inputs is None else inputs, OUTPUTS, plan)


@pytest.mark.parametrize("board", [*BOARDS, *MORE_BOARDS])
def test_outputs_and_what_they_cost(board, tmp_path):
    inputs = samples(3)
    found = run(board, library(tmp_path / "a", board), inputs)
    for sample, outputs in zip(inputs, found.outputs, strict=True):
        for want, got, spec in zip(expected(sample), outputs, OUTPUTS, strict=True):
            assert (got.shape, got.dtype.name) == (spec.shape, spec.dtype)
            np.testing.assert_array_equal(got, want)
    assert (found.how, found.threads, found.arena_bytes, found.weight_bytes) == ("estimated", 1, 48, 24)
    assert len(found.instructions) == 3
    assert len(found.layers) == 2
    assert 0 < found.instructions[0] < 1000
    assert abs(sum(found.layers) - found.instructions[0]) < 50  # the hooks make the compiler save registers
    clock = load_target(board).clock
    assert found.samples_s == tuple(count / clock for count in found.instructions)
    assert 0 <= found.stack_bytes <= 256


@pytest.mark.parametrize("board", BOARDS)
def test_instructions_are_exact(board, tmp_path):
    """So many instructions more give a count that is so much larger, in the whole and in the layer they are in."""
    plain = run(board, library(tmp_path / "plain", board, NOPS='"0"'))
    more = run(board, library(tmp_path / "more", board, NOPS='"777"'))
    assert more.instructions[0] - plain.instructions[0] == 777
    assert [b - a for a, b in zip(plain.layers, more.layers, strict=True)] == [0, 777]
    again = run(board, tmp_path / "plain" / "libmodel.a")
    assert (again.instructions, again.layers) == (plain.instructions, plain.layers)


@ARM
def test_the_counter_wraps_without_a_trace(tmp_path):
    """A SysTick of 24 bits covers 671 million instructions; a loop that takes longer is counted exactly too."""
    counts = []
    for loops in (70_001, 140_001, 100_070_001):
        file = library(tmp_path / str(loops), M4, LOOPS=loops)
        (file.parent / "src" / "model.c").unlink()  # to spare the time that counting the layers takes
        counts += run(M4, file).instructions
    each, rest = divmod(counts[1] - counts[0], 70_000)
    assert (rest, counts[2] - counts[0]) == (0, each * 100_000_000)
    assert counts[2] > 2**24 * 40


@pytest.mark.parametrize("board", BOARDS)
def test_the_stack_is_measured(board, tmp_path):
    plain = run(board, library(tmp_path / "plain", board)).stack_bytes
    deep = run(board, library(tmp_path / "deep", board, STACK=1000)).stack_bytes
    assert 1000 <= deep - plain <= 1064


@ARM
def test_without_samples_it_is_only_timed(tmp_path):
    found = run(M4, library(tmp_path / "a", M4), inputs=[])
    assert found.outputs == []
    assert len(found.instructions) == 1


@ARM
def test_energy_is_an_estimate(tmp_path):
    target = replace(load_target(M4), power=PowerSpec("estimate", (("active", 0.5),)))
    found = run(M4, library(tmp_path / "a", M4), plan=replace(QUICK, energy_seconds=1.0), target=target)
    assert found.energy.how == "estimated"
    assert found.energy.joules == pytest.approx(0.5 * found.samples_s[0])
    unknown = run(M4, tmp_path / "a" / "libmodel.a", plan=replace(QUICK, energy_seconds=1.0),
                  target=replace(target, power=PowerSpec("none")))  # fmt: skip
    assert not unknown.energy.complete


OVERFLOWS = r"the stack is too small|ended before the model was done, with killed by SIGABRT, saying: .*Lockup"
FAILURES = {
    "FAULT": "the model's code faulted: .*at 0x",
    "STATUS": "the model returned the status 0x2, see enum tvm_deploy_status",
    "OVERRUN_ARENA": "the model wrote past the end of its arena",
    "OVERRUN_OUTPUT": "the model wrote past the end of an output",
    "MISSING": r"(?s)does not link to an image for .*missing_function",
}


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("define", FAILURES)
def test_failures_are_told(board, define, tmp_path):
    with pytest.raises(DeviceError, match=FAILURES[define]):
        run(board, library(tmp_path / "a", board, **{define: 2}))


@ARM
@pytest.mark.parametrize("depth", [16_200, 20_000])
def test_a_stack_that_overflows_is_told(depth, tmp_path):
    with pytest.raises(
        DeviceError,
        match=OVERFLOWS,
    ):
        run(M0, library(tmp_path / "a", M0, STACK=depth))


@ARM
def test_a_hang_ends_in_time_and_the_device_still_works(tmp_path):
    hangs, good = library(tmp_path / "hangs", M4, HANG=1), library(tmp_path / "good", M4)
    with QemuDevice(load_target(M4)) as device:
        with pytest.raises(DeviceError, match=r"did not finish within 0.5 s in qemu-system-arm and was stopped"):
            device.run(hangs, "tiny", samples(1), OUTPUTS, replace(QUICK, timeout_s=0.5))
        assert device.run(good, "tiny", samples(1), OUTPUTS, QUICK).inferences == 1


@ARM
def test_inputs_of_another_size_are_refused(tmp_path):
    inputs = [[array[:1] for array in sample] for sample in samples(1)]
    with pytest.raises(DeviceError, match="the samples are not of the size of the model's inputs"):
        run(M4, library(tmp_path / "a", M4), inputs)


@ARM
def test_a_wrong_board_is_told(tmp_path):
    file = library(tmp_path / "a", M4)

    def on(**options):
        known = dict(load_target(M4).device.options)
        spec = DeviceSpec("qemu", tuple((known | options).items()))
        return run(M4, file, target=replace(load_target(M4), device=spec))

    with pytest.raises(DeviceError, match=r"did not start .* with exit status 1, saying: .*unsupported machine type"):
        on(machine="nothing")
    with pytest.raises(DeviceError, match="100003 instructions were counted as 50001: the target's `tick`"):
        on(tick=20e-9)
    with pytest.raises(DeviceError, match=r"qemu-system-none was not found: install it"):
        on(program="qemu-system-none")
    with pytest.raises(InputError, match=r"a tick of 4.9e-08 s, 49 ns, cannot be counted"):
        on(tick=49e-9)


@ARM
def test_a_library_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no library"):
        run(M4, tmp_path / "libmodel.a")


@pytest.mark.parametrize("key", ["clock", "memory", "tick", "architecture"])
def test_a_target_must_say_what_an_image_needs(key):
    target = load_target(M4)
    changes = {
        "clock": {"clock": None},
        "memory": {"memory": Memory(flash=1 << 20, ram=1 << 20, flash_at=0)},
        "tick": {"device": DeviceSpec("qemu", (("machine", "mps2-an386"),))},
        "architecture": {"tvm_options": (("kind", "llvm"), ("mtriple", "xtensa-none-elf"))},
    }
    words = {"clock": "has no clock", "memory": "has no ram_at in memory", "tick": "has no tick in device"}
    with pytest.raises(InputError, match=words.get(key, "firmware for xtensa cannot be run from here")):
        QemuDevice(replace(target, **changes[key]))


def test_the_command_counts_instructions():
    command = emulator_command(load_target("rv32imc-virt"), "image")
    assert command[:3] == ["qemu-system-riscv32", "-M", "virt"]
    assert command[-4:] == ["-bios", "none", "-kernel", "image"]
    assert "shift=0" in command
    assert {spec.nbytes for spec in INPUTS} == {24, 4}
