"""Whatever can be wrong with what a user gives, or with the machine: one sentence, the right exit code, no traces.

What a single module refuses is tested beside it; here each case goes through the command line.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from models import onnx_models, tflite_models, torch_models
from onnx import TensorProto

import deploy
from deploy.errors import InputError
from deploy.target import missing_features
from deploy.targets import load_target

pytestmark = pytest.mark.tvm

PROGRAM = [sys.executable, "-m", "deploy.cli"]


def refused(ran, code, pattern):
    """Assert that a command ended with `code` and one sentence that matches, and printed no report."""
    assert ran.code == code, ran
    assert ran.out == ""
    lines = [line for line in ran.err.splitlines() if not re.match(r"(import|tune|compile|verify|measure) ", line)]
    assert lines[0].startswith("tvm-deploy: "), ran.err
    assert "internal error" not in ran.err
    assert "Traceback" not in ran.err
    assert re.search(pattern, ran.err, re.DOTALL), ran.err
    return ran.err


def left_in(folder):
    """Names of what is in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def build(cli, model, *more, target="host", out="out"):
    return cli("build", model, "--target", target, "--out", out, *more)


def deployed_nothing(folder):
    """Whether neither an artifact nor a piece of one is in `folder`."""
    ours = ("out", "artifacts", "manifest.json")
    return not any(path.name in ours or ".tmp-" in path.name for path in folder.rglob("*"))


# --- models ---


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes of a good model in each format."""
    program = torch.export.export(torch_models.TwoInputs(), (torch.zeros(2, 3), torch.zeros(2, 3)))
    file = tmp_path_factory.mktemp("good") / "two.pt2"
    torch.export.save(program, file)
    onnx_bytes = onnx_models.conv_net(1).SerializeToString()
    return {"onnx": onnx_bytes, "tflite": tflite_models.conv_net(), "pt2": file.read_bytes()}


@pytest.mark.parametrize("suffix", ["onnx", "tflite", "pt2"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_models(cli, good, suffix, share, tmp_path):
    data = good[suffix]
    (tmp_path / f"m.{suffix}").write_bytes(data[: max(1, int(len(data) * share))])
    refused(build(cli, f"m.{suffix}"), 2, rf"Model m\.{suffix} ")
    assert deployed_nothing(tmp_path)


@pytest.mark.parametrize("suffix", ["onnx", "tflite", "pt2", "pt", "bin"])
@pytest.mark.parametrize("size", [0, 1, 17, 5000])
def test_random_bytes(cli, suffix, size, tmp_path):
    (tmp_path / f"m.{suffix}").write_bytes(random.Random(size).randbytes(size))
    refused(build(cli, f"m.{suffix}"), 2, rf"Model m\.{suffix} ")
    assert deployed_nothing(tmp_path)


@pytest.mark.parametrize("suffix", ["onnx", "tflite", "pt2"])
def test_flipped_bytes_are_refused_or_harmless(cli, good, suffix, tmp_path):
    """A damaged weight is still a weight; everything else must be found, and nothing may crash."""
    source = random.Random(5)
    for number in range(12):
        data = bytearray(good[suffix])
        for _ in range(4):
            data[source.randrange(len(data))] = source.randrange(256)
        file = tmp_path / f"m{number}.{suffix}"
        file.write_bytes(data)
        ran = build(cli, file, out=f"out{number}")
        assert ran.code == 0 or refused(ran, 2, "Model|model")


def test_two_gigabytes_in_a_few_bytes(cli, tmp_path):
    onnx.save(onnx_models.huge_constant(), tmp_path / "huge.onnx")
    assert (tmp_path / "huge.onnx").stat().st_size < 1024
    refused(build(cli, "huge.onnx"), 2, r"Tensor 'w' of shape 536870912 .* 2\.0 GiB")
    onnx.save(onnx_models.huge_constant((1 << 28,)), tmp_path / "large.onnx")
    refused(build(cli, "large.onnx"), 2, "declares 1073741824 bytes for constant 'w', but stores 4; the file is")


def test_two_gigabytes_computed_from_a_few_bytes(cli, tmp_path):
    shape = {"shape": np.array([1 << 15, 1 << 15, 4])}
    nodes = [onnx_models.node("ConstantOfShape", ["shape"], ["c"]), onnx_models.node("Add", ["x", "c"], ["y"])]
    value = onnx_models.value
    onnx.save(onnx_models.model(nodes, [value("x", [1])], [value("y", list("abc"))], shape), tmp_path / "bomb.onnx")
    refused(build(cli, "bomb.onnx"), 2, "GiB; a tensor is smaller than 2 GiB")


@pytest.mark.parametrize("place", ["/etc/hostname", "../outside.bin", "folder/../../outside.bin", "link.bin"])
def test_weights_outside_the_models_folder(cli, place, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1024))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    proto = onnx_models.model(
        [onnx_models.node("Add", ["x", "w"], ["y"])],
        [onnx_models.value("x", [4])], [onnx_models.value("y", [4])], {"w": np.zeros(4, np.float32)},
    )  # fmt: skip
    weights = proto.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place)
    onnx.save(proto, folder / "m.onnx")
    refused(build(cli, "model/m.onnx"), 2, "only files inside the model's own folder are read|a link that leads out of")


def test_unsupported_operators_are_all_named(cli, tmp_path):
    onnx.save(onnx_models.unsupported(), tmp_path / "u.onnx")
    told = refused(build(cli, "u.onnx"), 2, "Bernoulli")
    assert all(word in told for word in ("stranger", "coin", "coin2"))
    (tmp_path / "u.tflite").write_bytes(tflite_models.unsupported())
    told = refused(build(cli, "u.tflite"), 2, "CUSTOM Wobble")
    assert "SKIP_GRAM" in told
    example = (torch.eye(3),)
    torch.export.save(torch.export.export(torch_models.Unsupported(), example), tmp_path / "u.pt2")
    told = refused(build(cli, "u.pt2"), 2, "bessel_j0")
    assert "det" in told


def test_dynamic_dimensions_name_the_flag(cli, tmp_path):
    onnx.save(onnx_models.attention(), tmp_path / "d.onnx")
    refused(build(cli, "d.onnx"), 2, r"Input 'x' has a dynamic dimension 0 \('batch'\).* --shape 'x=1,length,16'")
    assert build(cli, "d.onnx", "--shape", "x=1,4,16").code == 0
    refused(build(cli, "d.onnx", "--shape", "z=1,4,16"), 2, "--shape names input 'z', which the model does not have")
    refused(build(cli, "d.onnx", "--shape", "x=1,4"), 2, "gives input 'x' 2 dimensions")
    refused(build(cli, "d.onnx", "--shape", "x=1,0,16"), 2, "every dimension is at least 1")
    refused(build(cli, "d.onnx", "--shape", "x=99999999,99999999,16"), 2, "GiB|dimension|not a valid ONNX model")
    onnx.save(onnx_models.data_dependent(), tmp_path / "n.onnx")
    refused(build(cli, "n.onnx"), 2, "depends on the values of the input")


def test_a_folder_or_nothing_for_a_model(cli, tmp_path):
    refused(build(cli, "."), 2, r"Model \. is a folder; give the path of an \.onnx, \.tflite or \.pt2 file")
    refused(build(cli, "nowhere.onnx"), 2, r"Model nowhere\.onnx does not exist; check the path")
    refused(build(cli, "/dev/zero"), 2, "is not a regular file")
    refused(build(cli, "x" * 300), 2, "cannot be read|does not exist|too long")
    refused(build(cli, "a\0b"), 2, "Model")


# --- inputs ---


def test_inputs_that_do_not_fit(cli, conv_onnx, tmp_path):
    run = ("run", conv_onnx, "--target", "host", "--trials", 0, "--out", "out", "--inputs")
    refused(cli(*run, "nowhere.npz"), 2, r"nowhere\.npz")
    (tmp_path / "random.npz").write_bytes(random.Random(1).randbytes(500))
    refused(cli(*run, "random.npz"), 2, r"random\.npz")
    np.savez(tmp_path / "shape.npz", **{"input.1": np.zeros((2, 3, 7, 8), np.float32)})
    refused(cli(*run, "shape.npz"), 2, "input.1")
    np.savez(tmp_path / "dtype.npz", **{"input.1": np.zeros((2, 3, 8, 8))})
    refused(cli(*run, "dtype.npz"), 2, "float64")
    np.savez(tmp_path / "labels.npz", **{"input.1": np.zeros((2, 3, 8, 8), np.float32), "labels": np.arange(3)})
    refused(cli(*run, "labels.npz"), 2, "labels")
    np.savez(tmp_path / "pickle.npz", **{"input.1": np.array([{"a": 1}], dtype=object)})
    refused(cli(*run, "pickle.npz"), 2, r"pickle\.npz")
    assert deployed_nothing(tmp_path), "inputs are looked at before anything is built"


def test_a_call_that_does_not_fit(deployed):
    model = deploy.load(deployed[0])
    for wrong in (np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 8), np.float32), "text", None, [[1, 2], [3]]):
        with pytest.raises((InputError, ValueError)):
            model(wrong)
    with pytest.raises(InputError, match="takes 1 arrays"):
        model()


# --- targets and boards ---


LETTERS = "abcdefghijklmnop"
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in pairwise(LETTERS))
DEEP = "name: " + "[" * 5000
WIDE = "name: [" + "x, " * 400_000 + "x]"


@pytest.mark.parametrize("text", [LAUGHS, DEEP, WIDE, "\0\1\2", "a: !!python/object:os.system x", "- a\n- list", ""])
def test_yaml_bombs_and_nonsense(cli, deployed, text, tmp_path):
    (tmp_path / "bomb.yaml").write_text(text)
    started = time.monotonic()
    refused(cli("targets", "check", "bomb.yaml"), 2, r"bomb\.yaml")
    refused(build(cli, "m.onnx", target="./bomb.yaml"), 2, r"bomb\.yaml")
    board = ("--boards", "bomb.yaml", "--device", "b")
    refused(cli("measure", deployed[0], "--target", "host", *board), 2, r"bomb\.yaml")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("treads: 2", r'bad\.yaml:4: .*treads.*threads'),
        ("threads: 0", r"bad\.yaml:4: .*threads"),
        ("threads: two", r"bad\.yaml:4: .*threads"),
        ("budgets: {latency: 20 mJ}", r"bad\.yaml:4: .*latency.*20 mJ"),
        ("budgets: {latency: 20}", r"bad\.yaml:4: .*20"),
        ("budgets: {latency: -1 ms}", r"bad\.yaml:4: "),
        ("power: {kind: solar}", r"bad\.yaml:4: .*estimate.*solar"),
        ("device: {kind: lokal}", r"bad\.yaml:4: .*lokal.*local"),
        ("extends: nothing", r"bad\.yaml:4: .*nothing"),
    ],
)
def test_mistakes_in_a_target_are_placed(cli, conv_onnx, line, pattern, tmp_path):
    (tmp_path / "bad.yaml").write_text(f"name: bad\ndescription: d\ntvm: {{kind: llvm, mcpu: x86-64-v2}}\n{line}\n")
    refused(build(cli, conv_onnx, target="bad.yaml"), 2, pattern)


def test_names_of_targets_that_are_nearly_right(cli, conv_onnx, tmp_path):
    refused(build(cli, conv_onnx, target="x86-64-v5"), 2, r'there is no target "x86-64-v5"; known: .*did you mean')
    refused(build(cli, conv_onnx, target="./no.yaml"), 2, r"no\.yaml")
    refused(cli("targets", "show", "hots"), 2, "host")
    refused(build(cli, conv_onnx, "--threads", 0), 2, "threads")
    refused(build(cli, conv_onnx, "--threads", 100_000), 2, "threads")


def test_a_cpu_that_tvm_does_not_know(cli, conv_onnx, tmp_path):
    text = "name: odd\ndescription: d\nextends: host\ntvm: {kind: llvm, mcpu: pentium-9}\n"
    (tmp_path / "odd.yaml").write_text(text)
    pattern = 'for the CPU "pentium-9", which LLVM does not know.*did you mean "pentium'
    refused(build(cli, conv_onnx, target="odd.yaml"), 2, pattern)
    assert deployed_nothing(tmp_path)


@pytest.mark.parametrize("command", ["run", "tune"])
def test_code_that_this_cpu_cannot_run(cli, conv_onnx, command, tmp_path):
    for mcpu in ("bdver4", "sapphirerapids"):  # no CPU has what both need
        (tmp_path / f"{mcpu}.yaml").write_text(
            f"name: {mcpu}\ndescription: d\nextends: host\ntvm: {{kind: llvm, mcpu: {mcpu}}}\n"
        )
    missing = [mcpu for mcpu in ("bdver4", "sapphirerapids") if missing_features(load_target(f"./{mcpu}.yaml"))]
    ran = cli(command, conv_onnx, "--target", f"{missing[0]}.yaml", "--trials", 4)
    refused(ran, 2, r"this CPU lacks .*, which code for target \w+ uses; take")


# --- artifacts ---


@pytest.fixture
def copy(deployed, tmp_path):
    """The deployed artifact, to damage."""
    return shutil.copytree(deployed[0], tmp_path / "copy")


def test_a_folder_that_is_no_artifact(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    for command in (("report",), ("check", "--target", "host"), ("measure", "--target", "host")):
        pattern = r"empty is no artifact: it has no manifest\.json; make one with `tvm-deploy build`"
        refused(cli(*command, "empty"), 2, pattern)
    (tmp_path / "file").write_text("x")
    refused(cli("report", "file"), 2, "file")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 99}', '{"schema_version": "1"}'])
def test_manifests_of_another_kind(cli, copy, text):
    (copy / "manifest.json").write_text(text)
    refused(cli("report", copy), 2, r"manifest\.json")
    with pytest.raises(InputError, match=r"manifest\.json"):
        deploy.load(copy)


@pytest.mark.parametrize("name", ["libmodel.so", "model.h", "src/model.c"])
def test_files_changed_after_the_build(cli, copy, name):
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    pattern = rf"copy: {name} changed since the build; build the artifact again"
    refused(cli("measure", copy, "--target", "host"), 2, pattern)
    (copy / name).unlink()
    refused(cli("measure", copy, "--target", "host"), 2, name)


def test_a_report_that_was_tampered_with(cli, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["report"]["checks"][0]["verdict"] = "MISS"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(cli("report", copy), 2, "its verdict is 'PASS', its checks say MISS")


def test_another_model_than_the_artifacts(cli, copy, tmp_path):
    onnx.save(onnx_models.subtract(), tmp_path / "other.onnx")
    ran = cli("measure", copy, "--target", "host", "--model", "other.onnx")
    refused(ran, 2, r"built from another model than other\.onnx; build it again")


# --- the machine ---


@contextlib.contextmanager
def mounted(folder, options):
    """A small file system of its own, where this user may mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_read_only_folder(cli, conv_onnx, deployed, tmp_path):
    with mounted(tmp_path / "ro", "ro") as folder:
        refused(build(cli, conv_onnx, out="ro/out"), 2, "cannot write .*ro/out: the file system is read-only; give a")
        tune = cli("tune", conv_onnx, "--target", "host", "--trials", 4, "--logs", "ro/logs")
        refused(tune, 2, "ro/logs.*[Rr]ead-only")
        assert left_in(folder) == []
    if os.getuid() != 0:
        (tmp_path / "denied").mkdir(mode=0o555)
        refused(build(cli, conv_onnx, out="denied/out"), 2, "permission denied; give a folder that you may write to")


def test_a_file_where_a_folder_should_be(cli, conv_onnx, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(build(cli, conv_onnx), 2, "a file has that name")
    refused(build(cli, conv_onnx, out="out/inner"), 2, "cannot write .*out/inner")
    refused(cli("tune", conv_onnx, "--target", "host", "--trials", 4, "--logs", "out"), 2, "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("size", ["8k", "32k"])
def test_a_full_disk(cli, conv_onnx, size, tmp_path):
    with mounted(tmp_path / "full", f"size={size}") as folder:
        refused(build(cli, conv_onnx, out="full/out"), 3, "full|[Nn]o space")
        assert left_in(folder) == []


@pytest.mark.parametrize("cc", ["no-such-cc", "arm-none-eabi-gcc-99"])
def test_a_missing_compiler(cli, conv_onnx, cc, tmp_path):
    (tmp_path / "nocc.yaml").write_text(f"name: nocc\ndescription: d\nextends: host\ntoolchain: {{cc: {cc}}}\n")
    refused(build(cli, conv_onnx, target="nocc.yaml"), 3, f"the program {cc} was not found: install it")
    assert deployed_nothing(tmp_path)
    tune = cli("tune", conv_onnx, "--target", "nocc.yaml", "--trials", 4, "--logs", "logs")
    refused(tune, 3, f"the program {cc} was not found")


def test_no_compiler_on_the_path_names_the_package(cli, conv_onnx, deployed, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(build(cli, conv_onnx), 3, r"the program cc was not found: install it \(apt install build-essential\)")
    refused(cli("measure", deployed[0], "--target", "host"), 3, r"cc was not found: install it \(apt install build")
    assert deployed_nothing(tmp_path)


def test_a_compiler_that_fails(cli, conv_onnx, tmp_path):
    (tmp_path / "bad.yaml").write_text("name: bad\ndescription: d\nextends: host\ntoolchain: {cflags: [--nonsense]}\n")
    refused(build(cli, conv_onnx, target="bad.yaml"), 3, r"cc --nonsense .* failed: exit status 1\. Last lines of its")
    assert deployed_nothing(tmp_path)


# --- interruptions ---


def start(*arguments, cwd):
    """Start the program as a shell would: in a process group of its own."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def records_in(folder):
    """How many whole lines of records a log folder holds."""
    return sum(line.count('"trial":') for file in folder.rglob("log.jsonl") for line in file.read_text().splitlines())


def wait_for(condition, process, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_ctrl_c_in_the_middle_of_tuning(cli, conv_onnx, tmp_path):
    logs = tmp_path / "logs"
    process = start("tune", conv_onnx, "--target", "host", "--trials", 100_000, "--logs", logs, cwd=tmp_path)
    wait_for(lambda: records_in(logs) >= 8, process)
    pressed = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - pressed < 15
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == (
        "tvm-deploy: interrupted; what was measured is in the tuning log, run again to go on"
    )
    assert "Traceback" not in err
    kept = records_in(logs)
    assert kept >= 8
    ran = cli("tune", conv_onnx, "--target", "host", "--trials", kept + 4, "--logs", logs)
    assert ran.code == 0, ran.err
    measured = int(re.search(r"(\d+) candidates measured now", ran.out)[1])
    assert 1 <= measured < kept + 4, "what was on record is not measured again"


def test_ctrl_c_in_the_middle_of_a_build(conv_onnx, tmp_path):
    process = start("build", conv_onnx, "--target", "host", "--out", tmp_path / "a" / "out", cwd=tmp_path)
    wait_for(lambda: any((tmp_path / "a").glob(".out.tmp-*")), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert left_in(tmp_path) == []


def test_kill_in_the_middle_of_a_build(cli, conv_onnx, tmp_path):
    process = start("build", conv_onnx, "--target", "host", "--out", tmp_path / "out", cwd=tmp_path)
    wait_for(lambda: any(tmp_path.glob(".out.tmp-*/src")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    ran = build(cli, conv_onnx)
    assert ran.code == 0
    assert left_in(tmp_path) == ["out"], "and the next run clears away what was left"
