"""Models as firmware, end to end: compiled with TVM, run in QEMU, equal to the reference and to the host's build."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from built import SHARED, build, host, new_folder, torch_source
from firmware_support import ARM, BOARDS, RISCV, needs
from models import tflite_quantized as q
from models.tflite_models import Builtin
from torch import nn

import deploy.compile as compiling
from deploy import model, pipeline, reference, runtime, shell
from deploy.aot.archive import STRICT
from deploy.artifact import Artifact
from deploy.device.protocol import RunPlan
from deploy.errors import InputError
from deploy.firmware.link import compile_command, tool
from deploy.progress import Silent
from deploy.report import render_json, render_markdown, render_text
from deploy.report.json_report import SCHEMA_FILE
from deploy.targets import load_target

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.tvm
M0, M4, M55, RV32 = "cortex-m0-microbit", "cortex-m4-mps2", "cortex-m55-mps3", "rv32imc-virt"
ONCE = RunPlan(warmup_s=0.0, seconds=0.01, min_samples=1)


@cache
def small():
    """An int8 network that fits a micro:bit: convolutions, depthwise, addition, pool, dense."""
    net = q.Net(3)
    x = net.input(1, 8, 8, 3)
    first = net.conv(x, 8, 3, padding=0)
    second = net.depthwise(first, 1, 3, padding=0)
    third = net.binary(Builtin.ADD, second, net.conv(first, 8, 1), q.schema.AddOptionsT)
    pooled = net.pool(third, Builtin.AVERAGE_POOL_2D, 4, strideH=4, strideW=4)
    last = net.dense(net.reshape(pooled, 1, 32), 5)
    net.outputs = [last]
    file = new_folder() / "small.tflite"
    file.write_bytes(net.pack())
    return model.load(file)


@cache
def firmware(board):
    return build(small(), load_target(board))


@cache
def samples():
    return pipeline.Samples(reference.sample_inputs(small(), 3, seed=5))


@cache
def report(board):
    """What `run` reports; the artifact keeps it."""
    artifact = compiling.build(small(), load_target(board), new_folder() / "artifact")
    return pipeline.evaluate(artifact, small(), load_target(board), samples(), Silent())


def objdump(board, *arguments, file="libmodel.a"):
    artifact = firmware(board)
    program = tool(load_target(board).toolchain.cc, "objdump")
    return shell.run([program, *arguments, artifact.path / file], timeout_s=60).stdout


@pytest.mark.parametrize("board", [*BOARDS, pytest.param(M55, marks=ARM)])
def test_outputs_are_the_reference_s_and_the_host_s(board):
    found = pipeline.measure_artifact(firmware(board), load_target(board), samples(), ONCE)
    original, on_host = reference.Reference(small()), runtime.Model(build(small(), host()).path)
    for inputs, outputs in zip(samples().inputs, found.outputs, strict=True):
        np.testing.assert_array_equal(outputs[0], original.run(inputs)[0])
        np.testing.assert_array_equal(outputs[0], on_host(*inputs))
    assert len(found.layers) == len(firmware(board).facts["calls"])
    assert 0 <= found.instructions[0] - sum(found.layers) < 60


@pytest.mark.parametrize("board", BOARDS)
def test_the_archive_needs_nothing_and_keeps_nothing(board):
    program = tool(load_target(board).toolchain.cc, "nm")
    lines = shell.run([program, firmware(board).library], timeout_s=60).stdout.splitlines()
    symbols = [line.split() for line in lines if len(line.split()) in (2, 3) and not line.endswith(":")]
    prefix = firmware(board).prefix
    defined = {words[-1]: words[-2] for words in symbols if words[-2] != "U" and not words[-1].startswith((".", "$"))}
    wanted = {words[-1] for words in symbols if words[-2] == "U"} - set(defined)
    integers = r"__aeabi_(l(mul|asr|lsl|lsr|cmp)|llsl|llsr|u?(l|i)div(mod)?)|__\w+[ds]i3"  # the toolchain's arithmetic
    helpers = {name for name in wanted if re.fullmatch(integers, name)}
    assert wanted - helpers <= {"memcpy", "memset"}
    assert not {kind for kind in defined.values() if kind in "dDbBcCsSgG"}, "state outside the arena"
    assert [name for name, kind in defined.items() if kind in "TR" and not name.startswith(f"{prefix}_")] == []


@ARM
def test_an_integer_model_has_no_float_code():
    code = objdump(M4, "-d", "--no-show-raw-insn")
    assert "smla" in code or "mla" in code
    assert ".f32" not in code
    assert ".f64" not in code


@ARM
def test_the_same_build_twice_is_the_same_bytes():
    again = build(small(), load_target(M4))
    for name in ("libmodel.a", "model.h", "manifest.json"):
        assert (again.path / name).read_bytes() == (firmware(M4).path / name).read_bytes()


@ARM
def test_the_sources_compile_strictly_and_weights_go_where_they_should():
    artifact, toolchain = firmware(M4), load_target(M4).toolchain
    folder = artifact.path / "src"
    place = '-DTVM_DEPLOY_WEIGHTS_SECTION=".external"'
    output = new_folder()
    for name, flags in (("../model_example.c", ()), ("weights.c", (place,)), ("model.c", ("-O0",))):
        result = str(output / f"{Path(name).stem}.o")
        shell.run(compile_command(toolchain, [*STRICT, *flags], name, result), timeout_s=60, cwd=folder)
    listed = shell.run([tool(toolchain.cc, "objdump"), "-h", output / "weights.o"], timeout_s=60).stdout
    assert f"{artifact.facts['sizes']['weight_bytes']:08x}" in next(x for x in listed.splitlines() if ".external" in x)
    header = (artifact.path / "model.h").read_text()
    (spec,) = small().inputs
    for line in ("_SHAPE {1, 8, 8, 3}", "_BYTES 192u", f"_SCALE {spec.scale!r}f", f"_ZERO_POINT ({spec.zero_point})"):
        assert line in header
    assert not {"tvm_ffi.c", "pool.c", "exports.map"} & {path.name for path in artifact.path.rglob("*")}


@ARM
def test_memory_is_aligned_no_more_than_needed():
    for board, alignment in ((M4, 8), (M55, 16)):
        artifact = firmware(board)
        assert artifact.arena_alignment == alignment
        assert all(offset % alignment == 0 for offset, _ in artifact.facts["memory_plan"].values())
        assert artifact.arena_bytes <= 1.05 * artifact.facts["sizes"]["arena_bound_bytes"]


@ARM
def test_the_report_has_flash_ram_and_instructions():
    found = report(M4)
    sizes, facts = found.firmware, Artifact.open(Path(found.artifact)).facts["sizes"]
    assert found.verification.passed
    assert sizes.weights_bytes == facts["weight_bytes"]
    assert min(sizes.code_bytes, sizes.glue_bytes, sizes.stack_bytes) > 0
    assert sizes.ram_bytes == facts["arena_bytes"] + 192 + 5 + sizes.stack_bytes
    assert (sizes.how, found.latency.how) == ("emulated", "estimated")
    assert found.latency.samples_s == tuple(count / 120e6 for count in sizes.instructions)
    assert [layer.kernel for layer in sizes.layers] == Artifact.open(Path(found.artifact)).facts["calls"]
    checks = {check.limit.quantity: check for check in found.checks}
    assert checks["flash"].reading.value == sizes.flash_bytes
    assert (checks["ram"].reading.value, checks["ram"].reading.how) == (sizes.ram_bytes, "emulated")
    assert found.exit_code == 0
    jsonschema.validate(json.loads(render_json(found)), json.loads(SCHEMA_FILE.read_text()))
    for text in (render_text(found), render_markdown(found)):
        assert f"{sizes.instructions[0]:,} an inference" in " ".join(text.split())
        assert "an instruction a cycle at 120 MHz" in " ".join(text.split())


def test_the_command_runs_it_and_refuses_what_it_cannot(cli, tmp_path):
    path = small().path
    for board in ("rp2040", "esp32-c3"):
        ran = cli("run", path, "--target", board)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == (
            f"tvm-deploy: target {board} runs on a board with a serial line, and its device has no `port`: name your "
            "board's in a boards.yaml (--boards, --device); `tvm-deploy build` needs none\n"
        )
    ran = cli("tune", path, "--target", "rp2040", "--trials", 3)
    assert ran.code == 2
    assert "its device has no `port`" in ran.err
    ran = cli("build", path, "--target", M4, "--threads", 2)
    assert ran.code == 2
    assert "firmware runs on one thread" in ran.err


@ARM
def test_one_command_does_it_all(cli):
    ran = cli("run", small().path, "--target", "cortex-m7-mps2", "--trials", 6, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["firmware"]["instructions"]


@ARM
def test_firmware_cannot_be_loaded_here():
    with pytest.raises(InputError, match=f"is firmware for {M4}: it is linked into a program"):
        runtime.Model(firmware(M4).path)


@pytest.mark.parametrize("board", [pytest.param("rp2350", marks=ARM), pytest.param("esp32-c3", marks=RISCV)])
def test_boards_that_are_not_here_are_compiled_for(board):
    artifact = firmware(board)
    assert artifact.library.stat().st_size > 0
    assert artifact.facts["sizes"]["flash"]["code"] > 0


@ARM
def test_what_does_not_fit_leaves_nothing():
    wide = torch_source(nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 8, 1)), torch.rand(1, 8, 24, 24))
    out = new_folder() / "artifact"
    with pytest.raises(InputError, match=r"does not fit cortex-m0-microbit: its .*; alive at the peak"):
        compiling.build(wide, load_target(M0), out)
    assert not out.exists()


@pytest.mark.parametrize("board", BOARDS)
def test_float_models_run_on_any_core(board):
    """In hardware or by the toolchain's functions, and with its mathematics."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 5), nn.Softmax(-1))
    source = torch_source(net, torch.rand(1, 2, 6, 6))
    target = load_target(board)
    artifact = build(source, target)
    inputs = pipeline.Samples(reference.sample_inputs(source, 2, seed=1))
    found = pipeline.measure_artifact(artifact, target, inputs, ONCE)
    assert pipeline.verify_outputs(source, inputs, found.outputs, target)[0].passed
    if board != M4:
        assert artifact.facts["sizes"]["flash"]["libraries"] > 1000


def test_names_that_mean_something_in_c():
    from test_emit import NAMES, onnx_source

    target = replace(load_target(M4), toolchain=load_target(M4).toolchain)
    for case in ("macros", "our own"):
        name, inputs, outputs = NAMES[case]
        source = onnx_source(inputs, outputs, name)
        given = pipeline.Samples(reference.sample_inputs(source, 1, seed=1))
        found = pipeline.measure_artifact(build(source, target), target, given, ONCE)
        assert pipeline.verify_outputs(source, given, found.outputs, target)[0].passed


test_names_that_mean_something_in_c = ARM(test_names_that_mean_something_in_c)
TINY = SHARED / "models" / "mlperf-tiny"


@pytest.mark.slow
@pytest.mark.skipif(not TINY.is_dir(), reason="the MLPerf Tiny models are not beside the project")
@needs("arm-none-eabi-gcc", "qemu-system-arm", "riscv64-unknown-elf-gcc", "qemu-system-riscv32")
@pytest.mark.parametrize(
    ("name", "board"),
    [("ic_resnet8", M4), ("kws_dscnn", M55), ("kws_dscnn", RV32), ("vww_mobilenetv1", "cortex-m7-mps2")],
)
def test_mlperf_tiny(name, board):
    """Byte for byte LiteRT's reference, on the golden inputs."""
    source, target = model.load(TINY / f"{name}_int8.tflite"), load_target(board)
    golden = np.load(TINY / f"{name}_int8_golden.npz")
    inputs = [[values.reshape(source.inputs[0].shape)] for values in golden["inputs"][:2]]
    found = pipeline.measure_artifact(build(source, target), target, pipeline.Samples(inputs), ONCE)
    for outputs, expected in zip(found.outputs, golden["litert_reference"], strict=False):
        np.testing.assert_array_equal(outputs[0].ravel(), expected.ravel())
