"""Several memories, end to end: activations in pools and weights in external flash, where they should be, in QEMU."""

import json
import re
from dataclasses import replace
from functools import cache

import jsonschema
import numpy as np
import onnx
import pytest
from built import SHARED, build, new_folder
from firmware_support import ARM, needs
from onnx import TensorProto, helper
from serial_support import on_pty, serial_target
from test_export import ARDUINO, CMAKE, cmake
from test_firmware_models import ONCE, TINY, samples, small

from deploy import model, pipeline, reference, shell
from deploy.aot.archive import STRICT
from deploy.device.protocol import RunPlan
from deploy.device.qemu import QemuDevice
from deploy.device.serial import SerialDevice
from deploy.device.serial_image import build_image, flash_command
from deploy.errors import InputError
from deploy.firmware.export import FORMATS, export
from deploy.firmware.link import compile_command
from deploy.progress import Silent
from deploy.report import render_json, render_text
from deploy.report.json_report import SCHEMA_FILE
from deploy.target import render
from deploy.target_memory import Pool
from deploy.targets import load_target

pytestmark = [pytest.mark.tvm, ARM]
M4, M7 = "cortex-m4-mps2", "cortex-m7-mps2"
# The boards' 4 MiB behind 0x20000000 and the 16 MiB of their PSRAM, divided up.
PSRAM = {M4: 0x21000000, M7: 0x60000000}
OUTSIDE = {M4: 0x21800000, M7: 0x60800000}


@cache
def target(board=M7, fast=600, slow=1024, weights="external"):
    """A board of QEMU's with two pools, which are too small for all activations, and an external flash."""
    one = load_target(board)
    pools = (Pool("dtcm", fast, PSRAM[board]), Pool("sram2", slow, 0x20200000))
    memory = replace(
        one.memory,
        ram=2 << 20,
        pools=pools,
        external_flash=8 << 20,
        external_flash_at=OUTSIDE[board],
        weights=weights,
    )
    return replace(one, memory=memory)


@cache
def artifact(board=M7, weights="external"):
    return build(small(), target(board, weights=weights))


def inside(address, start, size):
    return start <= address < start + size


def symbols(image):
    """The addresses of an image's symbols."""
    lines = shell.run(["arm-none-eabi-nm", image], timeout_s=60).stdout.splitlines()
    return {words[2]: int(words[0], 16) for words in map(str.split, lines) if len(words) == 3}


def check_places(found, prefix, board, pool="pool_{}"):
    """The buffers, the weights and everything else are in their memories."""
    assert inside(found[pool.format("dtcm")], PSRAM[board], 600)
    assert inside(found[pool.format("sram2")], 0x20200000, 1024)
    assert inside(found[f"{prefix}_weights"], OUTSIDE[board], 8 << 20)
    assert inside(found["arena"], 0x20000000, 2 << 20)
    assert inside(found[f"{prefix}_run"], 0, 4 << 20)


def check_outputs(source, inputs, outputs):
    original = reference.Reference(source)
    for given, got in zip(inputs, outputs, strict=True):
        np.testing.assert_array_equal(got[0], original.run(given)[0])


def test_a_model_computes_the_same_wherever_its_tensors_lie():
    one = artifact()
    with QemuDevice(target()) as device:
        found = device.run(one.library, one.prefix, samples().inputs, one.outputs, ONCE)
        check_places(symbols(device._work / "image"), one.prefix, M7)
        mapped = (device._work / "image.map").read_text()
    check_outputs(small(), samples().inputs, found.outputs)
    assert len(found.layers) == len(one.facts["calls"])
    assert re.search(rf"^\.external\s+0x{OUTSIDE[M7]:08x}\s", mapped, re.MULTILINE)
    assert re.search(rf"^\.pool_dtcm\s+0x{PSRAM[M7]:08x}\s", mapped, re.MULTILINE)


def test_the_manifest_has_the_memories():
    facts = artifact().facts
    sizes, planned = facts["sizes"], facts["memory_plan"]
    assert {pool["name"] for pool in facts["target"]["memory"]["pools"]} == set(sizes["pools"]) == {"dtcm", "sram2"}
    assert sizes["pools"]["dtcm"] <= 600
    for memory, size in {**sizes["pools"], None: sizes["arena_bytes"]}.items():
        ends = [at + nbytes for at, nbytes, *pool in planned.values() if (pool or [None])[0] == memory]
        assert ends
        assert max(ends) <= size
    assert (sizes["flash"]["weights"], sizes["flash"]["external"]) == (0, sizes["weight_bytes"])
    plain = build(small(), load_target(M7)).facts
    assert "pools" not in plain["sizes"]
    assert plain["sizes"]["arena_bytes"] <= sizes["arena_bytes"] + sum(sizes["pools"].values())
    picture = (artifact().path / "arena.svg").read_text()
    assert ">dtcm</text>" in picture
    assert ">sram2</text>" in picture


def test_weights_stay_inside_where_they_fit_and_are_not_told_otherwise():
    inner = artifact(weights=None)
    assert inner.facts["sizes"]["flash"]["weights"] == inner.facts["sizes"]["weight_bytes"]
    assert "WEIGHTS_EXTERNAL" not in (inner.path / "model.h").read_text()
    assert (inner.path / "libmodel.a").read_bytes() == (artifact().path / "libmodel.a").read_bytes()
    total = sum(inner.facts["sizes"]["flash"].values())
    tight = replace(target(weights=None), memory=replace(target(weights=None).memory, flash=total - 1))
    assert build(small(), tight).facts["sizes"]["flash"]["external"] == inner.facts["sizes"]["weight_bytes"]
    with pytest.raises(InputError, match=r"of library are 1 B more than the .* of flash"):
        build(small(), replace(tight, memory=replace(tight.memory, weights="internal")))


STATUSES = """
#include "{prefix}/model.h"
{buffers}
#define RUN(a, an, b, bn, c, cn) {prefix}_run(in, out, a, an, b, bn, c, cn)
static int8_t in[192], out[5];
int main(void) {{
  enum {{ A = {macro}_ARENA_BYTES, D = {macro}_ARENA_DTCM_BYTES, S = {macro}_ARENA_SRAM2_BYTES }};
  if (RUN(arena, A, arena_dtcm, D, arena_sram2, S) != TVM_DEPLOY_OK) return 1;
  if (RUN(arena, A, arena_dtcm, D - 1, arena_sram2, S) != TVM_DEPLOY_ARENA_TOO_SMALL) return 2;
  if (RUN(arena, A, arena_dtcm, D, arena_sram2, S - 1) != TVM_DEPLOY_ARENA_TOO_SMALL) return 3;
  if (RUN(arena, A, arena_dtcm + 1, D, arena_sram2, S) != TVM_DEPLOY_ARENA_MISALIGNED) return 4;
  if (RUN(arena, A, arena_dtcm, D, arena_sram2 + 4, S) != TVM_DEPLOY_ARENA_MISALIGNED) return 5;
  if (RUN(arena, A, NULL, D, arena_sram2, S) != TVM_DEPLOY_NULL_POINTER) return 6;
  if (RUN(arena, A, arena_dtcm, D, NULL, S) != TVM_DEPLOY_NULL_POINTER) return 7;
  return 42;
}}
"""


@CMAKE
def test_the_cmake_export_places_them_and_statuses_tell():
    one, folder = artifact(), new_folder()
    export(one, "cmake", folder / "net")
    shown = (folder / "net/example/main.c").read_text()
    buffers = shown[shown.index("#define TENSOR") : shown.index("int main")]
    buffers = re.sub(r"^\w+_(IN|OUT)PUTS\(TENSOR\)$", "", buffers, flags=re.MULTILINE)
    main = STATUSES.format(prefix=one.prefix, macro=one.prefix.upper(), buffers=buffers)
    (folder / "net/example/main.c").write_text(main)
    built = cmake(folder / "net", f"-DCMAKE_TOOLCHAIN_FILE={folder / 'net/toolchain.cmake'}")
    program = built / f"{one.prefix}_example"
    check_places(symbols(program), one.prefix, M7, "arena_{}")
    qemu = ["qemu-system-arm", "-M", "mps2-an500", "-display", "none", "-semihosting-config", "enable=on,target=native"]
    assert shell.run([*qemu, "-kernel", program], timeout_s=20, check=False).returncode == 42


def test_every_export_says_so_and_its_example_compiles():
    one, toolchain = artifact(), target().toolchain
    internal = sum(size for part, size in one.facts["sizes"]["flash"].items() if part != "external")
    trees = {kind: export(one, kind, new_folder() / kind) for kind in FORMATS}
    for folder in trees.values():
        said = (folder / "README.md").read_text()
        assert f"computes in {one.facts['sizes']['pools']['dtcm']} bytes of the memory `dtcm`" in said
        assert f"section `.rodata.{one.prefix}_weights` there" in said
        assert f", and {internal} bytes of flash" in said
    mine, output = '-DTVM_DEPLOY_DTCM_SECTION=".mine"', new_folder()
    for example in (trees["platformio"] / "examples/once/main.c", one.path / "model_example.c"):
        flags = [*STRICT, mine, f"-I{trees['platformio']}/include", f"-I{one.path}"]
        shell.run(compile_command(toolchain, flags, str(example), str(output / "a.o")), timeout_s=60)
        sections = shell.run(["arm-none-eabi-objdump", "-h", output / "a.o"], timeout_s=60).stdout
        assert " .mine " in sections
        assert " .bss.tvm_deploy_sram2 " in sections
    (output / "Arduino.h").write_text(ARDUINO)
    sketch = ["-x", "c++", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable", "-c", "-o", output / "b.o"]
    sketch += [f"-I{trees['arduino'] / 'src'}", "-include", output / "Arduino.h", *toolchain.cflags]
    shell.run(["arm-none-eabi-gcc", *sketch, trees["arduino"] / "examples/Once/Once.ino"], timeout_s=60)
    metadata = json.loads((trees["mlf"] / "metadata.json").read_text())
    (main,) = metadata["modules"][one.prefix]["memory"]["functions"]["main"]
    assert main["workspace_size_bytes"] == one.arena_bytes + sum(one.facts["sizes"]["pools"].values())


def test_a_board_on_a_serial_line(tmp_path):
    one = artifact(M4)
    with_line = replace(serial_target(M4, "none"), memory=target(M4).memory)
    image = build_image(with_line, one.library, one.prefix, tmp_path)
    check_places(symbols(image.elf), one.prefix, M4)
    assert image.binary.stat().st_size < 1 << 16  # not all that lies between two flash memories
    with pytest.raises(InputError, match=r"\{bin\} is what is in the internal flash, .*: flash \{elf\}"):
        flash_command(["write", "{bin}"], image, "port")
    plan = RunPlan(warmup_s=0.0, seconds=0.05, min_samples=1)
    with on_pty(M4, image.elf) as port, SerialDevice(serial_target(M4, port)) as device:
        found = device.run(one.library, one.prefix, samples().inputs[:1], one.outputs, plan)
    check_outputs(small(), samples().inputs[:1], found.outputs)


def test_the_report_has_each_memory(tmp_path):
    file = tmp_path / f"{M7}.yaml"
    file.write_text(render(target()))
    assert load_target(str(file)) == target()
    found, sizes = pipeline.evaluate(artifact(), small(), target(), samples(), Silent()), artifact().facts["sizes"]
    firmware = found.firmware
    assert found.verification.passed
    assert (firmware.pools, firmware.external_flash_bytes) == (sizes["pools"], sizes["weight_bytes"])
    needed = (sizes["arena_bytes"], *sizes["pools"].values(), sizes["io_bytes"], firmware.stack_bytes)
    assert firmware.ram_bytes == sum(needed)
    assert "sram2 " in render_text(found)
    jsonschema.validate(json.loads(render_json(found)), json.loads(SCHEMA_FILE.read_text()))


def test_an_image_needs_the_addresses_of_all_memories():
    memory = target().memory
    without = replace(memory, pools=(Pool("dtcm", 600),))
    with pytest.raises(InputError, match=f"target {M7} has no at of the pool dtcm in memory, which running it in QEMU"):
        QemuDevice(replace(target(), memory=without))
    with pytest.raises(InputError, match="has no external_flash_at in memory, which running it in QEMU needs"):
        QemuDevice(replace(target(), memory=replace(memory, external_flash_at=None)))
    compiled = build(small(), replace(target(), memory=without))
    assert compiled.facts["sizes"]["pools"].keys() == {"dtcm"}
    lists = export(compiled, "cmake", new_folder() / "out") / "CMakeLists.txt"
    assert "the example is compiled and not linked" in lists.read_text()


def test_a_shipped_board_has_a_pool_that_takes_all_of_a_small_model():
    one = build(small(), load_target("nucleo-h743zi"))
    sizes = one.facts["sizes"]
    assert (sizes["arena_bytes"], sizes["pools"]) == (0, {"dtcm": sizes["arena_in_place_bound_bytes"]})
    lists = (export(one, "cmake", new_folder() / "out") / "example/bare_metal/memories.ld").read_text()
    assert "POOL_DTCM (rw) : ORIGIN = 0x20000000, LENGTH = 131072" in lists


def test_names_of_tensors_and_pools_do_not_meet():
    names = ["arena_dtcm", "base_dtcm", "arena_dtcm_bytes", "dtcm"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in names]
    weights = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32) * 3, "w")
    nodes = [
        helper.make_node("MatMul", [names[0], "w"], ["inner"]),
        helper.make_node("MatMul", ["inner", "w"], ["more"]),
        helper.make_node("Add", ["more", names[1]], [names[2]]),
        helper.make_node("Add", ["inner", names[1]], [names[3]]),
    ]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:], [weights])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source = model.from_object(proto, "net")
    board = replace(target(), memory=replace(target().memory, pools=(Pool("dtcm", 400, PSRAM[M7]),)))
    one = build(source, board)
    assert (one.arena_bytes, one.facts["sizes"]["pools"]["dtcm"] >= 24) == (0, True)
    given = pipeline.Samples(reference.sample_inputs(source, 1, seed=1))
    found = pipeline.measure_artifact(one, board, given, ONCE)
    assert pipeline.verify_outputs(source, given, found.outputs, board)[0].passed


@pytest.mark.slow
@pytest.mark.skipif(not TINY.is_dir(), reason=f"{SHARED.name}/models is not beside the project")
@needs("arm-none-eabi-gcc", "qemu-system-arm")
def test_ic_with_two_pools_and_external_weights():
    source, board = model.load(TINY / "ic_resnet8_int8.tflite"), target(M7, 8 << 10, 16 << 10)
    golden = np.load(TINY / "ic_resnet8_int8_golden.npz")
    one = build(source, board)
    assert one.facts["sizes"]["flash"]["external"] > 70_000
    assert one.facts["sizes"]["pools"] == {"dtcm": 8 << 10, "sram2": 16 << 10}  # full to the last byte
    inputs = pipeline.Samples([[values.reshape(source.inputs[0].shape)] for values in golden["inputs"][:1]])
    found = pipeline.measure_artifact(one, board, inputs, ONCE)
    np.testing.assert_array_equal(found.outputs[0][0].ravel(), golden["litert_reference"][0].ravel())
