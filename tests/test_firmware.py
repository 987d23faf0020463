"""Firmware without a device: command lines, the linker's map, the harness's answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import DeviceError, InputError
from deploy.firmware.harness import Answer, decode, external_weights, macro_value, model_flags, sources, tick_flags
from deploy.firmware.link import EXTERNAL, compile_command, link_command, memories_script, source_path, tool
from deploy.firmware.size_map import FlashSizes, flash_sizes, pieces
from deploy.target_memory import Memory, Pool
from deploy.target_parts import Toolchain
from deploy.targets import load_target

MAP = """\
Archive member included to satisfy reference by file (symbol)

../libmodel.a(model.o)        (net_run)

Discarded input sections

 .text          0x00000000       0x44 ../libmodel.a(unused.o)

Memory Configuration

Name             Origin             Length             Attributes
FLASH            0x10000000         0x40000000         xr

Linker script and memory map

LOAD ../libmodel.a
.text           0x10000000      0x2e8
 *(.vectors)
 *(.text .text.*)
 .text          0x10000000       0x40 ../libmodel.a(kernels.o)
                0x10000000                net_k_conv
 .text.net_run  0x10000040       0x9c ../libmodel.a(model.o)
                0x10000040                net_run
 *fill*         0x100000dc        0x4
 .text          0x100000e0       0x20 ../libmodel.a(micro.o)
 .text          0x10000100       0x64 /usr/lib/libc.a(libc_a-memcpy.o)
 .rodata.net_weights
                0x10000164      0x180 ../libmodel.a(weights.o)
                0x10000164                net_weights
 .rodata        0x100002e4        0x0 ../libmodel.a(model.o)
                0x100002f0                . = ALIGN (0x10)
 *fill*         0x100002e4        0xc

.bss            0x60000000       0x10
 .bss           0x60000000       0x10 /usr/lib/libc.a(state.o)

/DISCARD/
 .comment       0x00000000       0x45 ../libmodel.a(model.o)
OUTPUT(image elf32-littlearm)
"""


def test_the_map_is_split_by_what_the_bytes_are_for():
    sizes = flash_sizes(MAP)
    assert sizes == FlashSizes(weights=0x180, code=0x60, glue=0x9C + 4 + 12, libraries=0x64)
    assert sizes.total == 0x180 + 0x60 + 0x9C + 16 + 0x64
    assert (".bss", "/usr/lib/libc.a(state.o)", 0x10) in pieces(MAP)
    assert not any("unused" in file for _, file, _ in pieces(MAP))


@given(st.text(max_size=300))
def test_any_text_is_a_map_of_something(text):
    assert flash_sizes(f"Linker script and memory map\n{text}").total >= 0


def test_tools_of_a_compiler():
    assert tool("arm-none-eabi-gcc", "ar") == "arm-none-eabi-ar"
    assert tool("/opt/gcc/bin/riscv64-unknown-elf-gcc", "objcopy") == "/opt/gcc/bin/riscv64-unknown-elf-objcopy"
    assert tool("armclang", "ar") == "ar"


def test_an_image_is_linked_for_its_memory():
    toolchain = Toolchain("arm-none-eabi-gcc", ("-mcpu=cortex-m0",), ("-lextra",))
    memory = Memory(flash=1024, ram=512, flash_at=0, ram_at=0x20000000)
    command = link_command(toolchain, ["a.o"], "image", memory=memory)
    assert {"-Wl,--defsym=RAM_AT=536870912", "-Wl,--defsym=FLASH_BYTES=1024", "-mcpu=cortex-m0"} <= set(command)
    assert command.index("a.o") < command.index("-lextra") < command.index("-o")
    assert compile_command(toolchain, ["-DX"], "a.c", "a.o")[-4:] == ["-c", "a.c", "-o", "a.o"]


def test_other_memories_have_a_script_of_their_own():
    memory = Memory(pools=(Pool("dtcm", 128 << 10, 0x20000000),), external_flash=8 << 20, external_flash_at=0x90000000)
    script = memories_script(memory, ".rodata.net_weights")
    assert "POOL_DTCM (rw) : ORIGIN = 0x20000000, LENGTH = 131072" in script
    assert ".pool_dtcm (NOLOAD) : { *(.bss.tvm_deploy_dtcm) } > POOL_DTCM" in script
    assert f"{EXTERNAL} : {{ *(.rodata.net_weights) }} > EXTERNAL_FLASH" in script
    assert "EXTERNAL" not in memories_script(memory, None)
    assert memories_script(Memory(flash=1024), None) == ""
    command = link_command(Toolchain(), ["a.o"], "image", memory=memory, memories="memories.ld")
    assert command.index("-Wl,-T,memories.ld") < command.index("-T")


@pytest.mark.parametrize("architecture", ["thumbv6m", "thumbv7em", "thumbv8.1m.main", "riscv32"])
def test_every_file_of_the_harness_is_there(architecture):
    assert all(source_path(name).is_file() for name in (*sources(architecture), "harness.c", "hook.h", "firmware.ld"))


@pytest.mark.parametrize(
    ("tick", "numerator", "denominator"),
    [
        ("cortex-m4-mps2", 40, 1),
        ("cortex-m33-mps2", 50, 1),
        ("cortex-m0-microbit", 125, 2),
        ("cortex-m55-mps3", 125, 4),
    ],
)
def test_a_tick_is_a_fraction_of_nanoseconds(tick, numerator, denominator):
    flags = tick_flags(load_target(tick).device.get("tick"))
    assert flags == [f"-DTICK_NUMERATOR={numerator}", f"-DTICK_DENOMINATOR={denominator}"]


@given(st.integers(1, 10**6))
def test_a_tick_is_counted_or_refused(nanoseconds):
    """What is accepted visits every phase of a tick: the reads are 7 instructions apart."""
    try:
        flags = tick_flags(nanoseconds * 1e-9)
    except InputError:
        assert nanoseconds > 255 or nanoseconds % 7 == 0
    else:
        assert flags[0] == f"-DTICK_NUMERATOR={nanoseconds}"
        assert len({7 * k % nanoseconds for k in range(nanoseconds)}) == nanoseconds


def test_the_answer():
    assert decode("known 186a3\nstack 1c8\ninstructions ff\ninstructions 100\ndone 1\n", "") == Answer(
        (255, 256), (), 456
    )
    assert decode("known 186a3\nlayer 1\nlayer 2\ndone 1\n", "") == Answer((), (1, 2), None)


PROBLEMS = {
    "known 186a3\nerror the model wrote past the end of its arena\n": "past the end of its arena: its code is wrong",
    "error the outputs cannot be written: is the disk full?\n": r"is the disk full\?$",
    "status 8\n": "returned the status 0x8, see enum tvm_deploy_status in tvm_deploy.h",
    "fault 3 694 2 8200 exception, at, called from, reason\n": "exception 0x3, at 0x694, called from 0x2, reason",
    "known 186a3\n": "ended before the model was done, with exit status 1",
    "known 1\ndone 1\n": "100003 instructions were counted as 1: the target's `tick`",
    "done 1\n": "were counted as none",
    "\xff\x00": "which is not a fact",
}


@pytest.mark.parametrize("text", PROBLEMS)
def test_what_went_wrong_is_one_sentence(text):
    with pytest.raises(DeviceError, match=PROBLEMS[text]) as caught:
        decode(text, "exit status 1")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200), st.sampled_from(["", "fault ", "status ", "error ", "known "]))
def test_any_answer_is_refused_with_a_sentence(text, start):
    with pytest.raises(DeviceError):
        decode(start + text, "exit status 0")


def test_macros_of_a_model():
    assert macro_value("#define NET_ARENA_BYTES 1024u\n", "net", "ARENA_BYTES") == 1024
    with pytest.raises(InputError, match=r"model.h does not define NET_ARENA_BYTES: build the artifact again"):
        macro_value("#define OTHER_ARENA_BYTES 1024u\n", "net", "ARENA_BYTES")
    assert model_flags("net", "", Memory(), layers=True) == [
        "-DMODEL_RUN=net_run",
        "-DMODEL_MACRO=NET",
        "-DMODEL_LAYERS",
    ]
    pools = "#define NET_POOLS(X) X(a, NET_ARENA_A_BYTES, TVM_DEPLOY_A_SECTION)\n#define NET_ARENA_A_BYTES 8u\n"
    header = f"#define NET_WEIGHTS_EXTERNAL 1u\n{pools}"
    for size, more in ((16, []), (15, ["-DPOOL_GUARD=0"])):
        flags = model_flags("net", header, Memory(pools=(Pool("b", 1), Pool("a", size))), layers=False)
        assert flags[2:] == ["-DMODEL_POOLS=NET_POOLS", *more]
    with pytest.raises(
        InputError, match="built for a target with a pool a of 8 bytes or more, and this one has none"
    ):
        model_flags("net", header, Memory(pools=(Pool("a", 7),)), layers=False)
    assert external_weights("net", header, Memory(external_flash=1)) == ".rodata.net_weights"
    assert external_weights("other", header, Memory()) is None
    with pytest.raises(
        InputError, match="built for a target with an external flash, which its weights are for"
    ):
        external_weights("net", header, Memory())
    with pytest.raises(InputError, match="is not the C name of a model"):
        model_flags("net; rm", "", Memory(), layers=False)
