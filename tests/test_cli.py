"""The command line from end to end, on tiny models: real compilations, real runs, real measurements."""

import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pytest
from models import tflite_models
from tuning_log_support import fill, folder

import deploy
from deploy.arguments import parser
from deploy.report import parse_json
from deploy.report.json_report import SCHEMA_FILE
from deploy.statistics import summarize

pytestmark = pytest.mark.tvm

VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
PROGRAM = [sys.executable, "-m", "deploy.cli"]
ENERGY_FREE = "power: {kind: none}\n"


@pytest.fixture
def copy(deployed, tmp_path):
    """The deployed artifact, to do with as one likes."""
    return shutil.copytree(deployed[0], tmp_path / "copy")


def target_file(folder, more=ENERGY_FREE, name="strict", **budgets):
    """A target of this machine with its own budgets, and none of those it extends, as a file."""
    file = folder / f"{name}.yaml"
    limits = {**dict.fromkeys(("latency", "ram", "size", "energy"), "null"), **budgets}
    listed = ", ".join(f"{quantity}: {limit}" for quantity, limit in limits.items())
    file.write_text(f"name: {name}\ndescription: For a test\nextends: host\n{more}budgets: {{{listed}}}\n")
    return file


def budgets_of(report_text):
    """Verdict by budget of a text report."""
    rows = re.findall(r"^[│|] (.+?) +[│|].*[│|] ([A-Z ]+?) +[│|]$", report_text, re.MULTILINE)
    return dict(rows)


# --- run ---


def test_run_prints_the_report_and_nothing_else(deployed):
    out, ran = deployed
    assert ran.code == 0, ran.err
    first, *_, verdict, artifact = ran.out.splitlines()
    assert first.startswith("Model    conv (onnx, sha256 ")
    assert verdict == "PASS: 4 of 4 budgets met, output verified"
    assert artifact == f"Artifact: {out}"
    assert budgets_of(ran.out) == dict.fromkeys(("latency p90", "ram", "flash", "energy"), "PASS")
    assert "matches ONNX Runtime" in ran.out
    assert "\x1b" not in ran.out
    assert ran.err.splitlines() == ["compile conv", "measure conv", "verify conv"]


def test_reason_of_the_estimate_is_told_once(deployed):
    assert deployed[1].out.count("/sys/class/powercap") <= 1


def test_what_was_deployed_can_be_called(deployed, conv_onnx):
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    expected = onnxruntime.InferenceSession(conv_onnx).run(None, {"input.1": image})[0]
    np.testing.assert_allclose(deploy.load(deployed[0])(image), expected, rtol=1e-4, atol=1e-4)


def test_artifact_holds_what_the_readme_says(deployed):
    out, _ = deployed
    names = {path.name for path in out.iterdir()}
    assert names == {"model.h", "tvm_deploy.h", "libmodel.so", "model_example.c", "arena.svg", "src", "manifest.json"}
    assert {path.name for path in out.parent.iterdir()} <= {"conv", "logs"}, "nothing temporary is left beside it"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["report"]["verdict"] == "PASS"
    assert len(manifest["model"]["sha256"]) == 64
    assert manifest["versions"]["apache-tvm"].startswith("0.27")


def test_kernels_can_be_emitted_as_c(cli, conv_onnx, tmp_path):
    target = target_file(tmp_path)
    ran = cli("run", conv_onnx, "--target", target, "--emit", "c", "--out", tmp_path / "in-c", "--json", "-q")
    assert json.loads(ran.out)["verification"]["passed"], ran.err
    assert "kernels.c" in {path.name for path in (tmp_path / "in-c" / "src").iterdir()}
    assert cli("measure", tmp_path / "in-c", "--model", conv_onnx, "--target", target, "-q").code == 0
    assert cli("build", conv_onnx, "--target", target, "--emit", "rust").code == 2


def test_run_with_json_threads_and_the_default_folder(cli, conv_onnx, tmp_path):
    target = target_file(tmp_path)
    ran = cli("run", conv_onnx, "--target", target, "--trials", 0, "--threads", 2, "--json", "-q")
    assert ran.err == ""
    data = json.loads(ran.out)
    VALIDATOR.validate(data)
    assert (ran.code, data["exit_code"], data["threads"]) == (data["exit_code"], 0, 2)
    assert data["artifact"] == os.path.join("artifacts", "conv-strict")
    assert deploy.load(tmp_path / "artifacts" / "conv-strict").artifact.facts["threads"] == 2
    refused = cli("measure", data["artifact"], "--target", target)
    assert refused.code == 2
    assert "was built for strict" in refused.err


def test_run_with_labelled_inputs_tells_the_accuracy(cli, conv_onnx, tmp_path):
    images = np.random.default_rng(1).standard_normal((12, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(conv_onnx)
    labels = np.array([session.run(None, {"input.1": image[None]})[0].argmax() for image in images])
    labels[:3] = (labels[:3] + 1) % 5
    np.savez(tmp_path / "inputs.npz", **{"input.1": images, "labels": labels})
    target = target_file(tmp_path, accuracy_drop="0 %", arena="1 MiB", weights="1 KiB")
    ran = cli("run", conv_onnx, "--target", target, "--trials", 0, "--inputs", "inputs.npz", "--out", "out")
    assert re.search("Accuracy +75.00% top-1 on 12 labelled samples, 75.00% in the source framework", ran.out)
    assert budgets_of(ran.out) == {"accuracy_drop": "PASS", "arena": "PASS", "weights": "MISS"}
    assert (ran.code, "MISS: 2 of 3 budgets met, output verified" in ran.out) == (1, True)


def test_run_names_the_first_wrong_tensor(cli, conv_onnx, tmp_path):
    """Rounding differs from ONNX Runtime's, which an absurd tolerance of 1e-12 makes wrong from the first layer on."""
    target = target_file(tmp_path, ENERGY_FREE + "verify: {tolerance: {float32: 1e-12}}\n")
    build = ("run", conv_onnx, "--target", target, "--trials", 0, "--out", "out")
    ran = cli(*build, "--trace", "--markdown")
    assert ran.code == 1
    assert ran.out.startswith("# conv on strict: WRONG OUTPUT")
    assert re.search(r"DIFFERS from ONNX Runtime .* first in (?!y\b)\w+: ", ran.out.replace("\\", ""))
    assert (tmp_path / "out" / "manifest.json").exists(), "a wrong output is a result, and what it came from is kept"
    untraced = cli("measure", "out", "--target", target, "--model", conv_onnx)
    assert untraced.code == 1
    assert " first in y: " in " ".join(untraced.out.split())
    assert "WRONG OUTPUT: no budgets given, output wrong" in untraced.out


def test_a_quantized_model_is_compared_with_its_float_form(cli, tmp_path):
    (tmp_path / "net.tflite").write_bytes(tflite_models.int8_dense())
    ran = cli("run", "net.tflite", "--target", target_file(tmp_path), "--trials", 0, "--json")
    assert (ran.code, ran.err.splitlines()[2]) == (0, "compare net in float")
    data = json.loads(ran.out)
    VALIDATOR.validate(data)
    assert data["speedup"] == data["float_form"]["latency"]["median_s"] / data["latency"]["median_s"]
    text = " ".join(cli("report", data["artifact"]).out.split())
    assert re.search(r" In float median \S+ \S+ \(\d+ samples, measured,.* 0 of \d+ kernels tuned\); integers", text)
    assert ("WARNING: integers are not faster" in text) == (data["speedup"] < 1)


def test_the_other_rounding_is_refused_before_anything_is_tuned(cli, tmp_path, monkeypatch):
    (tmp_path / "net.tflite").write_bytes(tflite_models.int8_dense())
    target = target_file(tmp_path, ENERGY_FREE + "rounding: double\n")
    monkeypatch.setitem(sys.modules, "tflite_micro", None)  # how Python itself notes that a module is not there
    ran = cli("run", "net.tflite", "--target", target, "--trials", 100_000)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("tvm-deploy: 'rounding: double' has model 'net' verified against TFLite Micro")
    assert "pip install tflite-micro" in ran.err
    assert not (tmp_path / "tuning_logs").exists()
    assert cli("build", "net.tflite", "--target", target).code == 0, "building needs no reference"


def test_tflite_runs_too(cli, tmp_path):
    (tmp_path / "net.tflite").write_bytes(tflite_models.conv_net())
    target = target_file(tmp_path, "", power="20 W", energy="1 J")
    ran = cli("run", "net.tflite", "--target", target, "--trials", 0)
    assert "matches LiteRT" in ran.out
    if "estimated" in ran.out:  # no sensor in this machine
        assert budgets_of(ran.out) == {"power": "NOT MEASURED", "energy": "NOT MEASURED"}
        assert "accept: estimated" in ran.out
        assert ran.code == 1


# --- build, measure, check, report ---


def test_build_prints_the_folder(cli, conv_onnx, tmp_path):
    ran = cli("build", conv_onnx, "--target", "host", "--out", "built")
    assert ran == (0, "built\n", "compile conv\n")
    assert cli("report", "built").code == 2
    ran = cli("check", "built", "--target", "host")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "tvm-deploy: built was not measured yet; run `tvm-deploy measure` on it first\n"
    measured = cli("measure", "built", "--target", target_file(tmp_path, arena="1 MiB", energy="1 J"))
    assert "NOT VERIFIED: 1 of 2 budgets met, output not verified" in measured.out
    assert budgets_of(measured.out) == {"arena": "PASS", "energy": "NOT MEASURED"}
    assert measured.code == 1


def test_build_replaces_an_artifact_but_no_other_folder(cli, conv_onnx, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for command in (("build",), ("run", "--trials", 100_000)):  # refused before anything is tuned
        ran = cli(*command, conv_onnx, "--target", "host", "--out", "mine")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("tvm-deploy: will not replace the folder ")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_check_judges_by_any_budget(cli, copy, tmp_path):
    assert cli("check", copy, "--target", "host").code == 0
    strict = cli("check", copy, "--target", target_file(tmp_path, latency="{median: 1 ns}", size="1 GiB"))
    assert budgets_of(strict.out) == {"latency median": "MISS", "flash": "PASS"}
    assert strict.code == 1
    assert "is more than 1 ns" in strict.out


def test_check_does_not_decide_within_the_noise(cli, copy, tmp_path):
    report = parse_json(cli("report", copy, "--json").out)
    interval = summarize(report.latency.samples_s).intervals["p99"]
    high = interval.high or max(report.latency.samples_s)
    if not interval.low < high:
        pytest.skip("every sample took exactly the same time")
    target = target_file(tmp_path, latency=f"{{p99: {(interval.low + high) / 2 * 1e9!r} ns}}")
    ran = cli("check", copy, "--target", target)
    assert budgets_of(ran.out) == {"latency p99": "TOO NOISY"}
    assert ran.code == 1


def test_check_refuses_another_target(cli, copy, tmp_path):
    other = target_file(tmp_path, "tvm: {kind: llvm, mcpu: x86-64-v2}\n")
    ran = cli("check", copy, "--target", other)
    assert (ran.code, ran.out) == (2, "")
    assert re.match(r"tvm-deploy: .*copy was built for host \(\w+\), not for strict", ran.err)


def test_report_shows_the_same_in_three_forms(cli, deployed):
    out, ran = deployed
    assert cli("report", out) == (0, ran.out, "")
    data = json.loads(cli("report", out, "--json").out)
    VALIDATOR.validate(data)
    assert data["verdict"] == "PASS"
    assert data["latency"]["samples_s"]
    assert cli("report", out, "--markdown").out.startswith("# conv on host: PASS\n")
    assert cli("report", out, "--json", "--markdown").code == 2


def test_measure_with_a_board_and_its_meter(cli, copy, conv_onnx, tmp_path):
    """The board's meter is a tree as Linux lays out /sys; the code that reads it is the one that reads a sensor."""
    chip = tmp_path / "sys" / "class" / "hwmon" / "hwmon0"
    chip.mkdir(parents=True)
    for name, value in {"name": "ina226", "power1_input": 2_000_000, "update_interval": 10}.items():
        (chip / name).write_text(f"{value}\n")
    meter = f"{{kind: hwmon, root: {tmp_path / 'sys'}}}"
    (tmp_path / "boards.yaml").write_text(f"bench-1: {{power: {meter}}}\nother: {{target: pi, power: {meter}}}\n")
    target = target_file(tmp_path, "", power="2.1 W", energy="1 mJ")
    board = ("--target", target, "--boards", "boards.yaml")
    ran = cli("measure", copy, "--model", conv_onnx, *board, "--device", "bench-1", "--power", "trace.csv")
    assert "Power    2 W ± 0.1 %, peak 2 W (measured, hwmon ina226/rail1)" in ran.out
    assert "Meter    hwmon: 100 Hz samples, ina226/rail1, accuracy not stated" in ran.out
    assert budgets_of(ran.out) == {"power": "PASS", "energy": "PASS"}
    assert ran.code == 0
    lines = (tmp_path / "trace.csv").read_text().splitlines()
    assert lines[0] == "time_s,power_w,inference"
    assert {line.split(",", 1)[1].rstrip("01").rstrip(",") for line in lines[1:]} == {"2"}
    assert {line[-1] for line in lines[1:]} == {"0", "1"}
    refused = cli("measure", copy, *board, "--device", "bench-1", "--power", "trace.pdf")
    assert (refused.code, refused.out) == (2, "")
    assert "written to .svg, .png, .csv" in refused.err
    for arguments, message in (
        ((*board, "--device", "bench-2"), 'has the boards bench-1, other; --device bench-2'),
        (board, "no --device was given"),
        ((*board, "--device", "other"), 'board "other" is a "pi", not a "strict"'),
        (("--target", target, "--device", "bench-1"), "give that file with --boards"),
    ):
        refused = cli("measure", copy, *arguments)
        assert (refused.code, refused.out) == (2, "")
        assert message in refused.err


def test_a_battery_and_what_it_must_last(cli, copy, conv_onnx, tmp_path):
    """Once with a meter, once with an estimate, which counts only where the budget says so."""
    chip = tmp_path / "sys" / "class" / "hwmon" / "hwmon0"
    chip.mkdir(parents=True)
    for name, value in {"name": "ina226", "power1_input": 500_000}.items():
        (chip / name).write_text(f"{value}\n")
    battery = "battery: {capacity: 3000 mAh, voltage: 3.7 V, duty: 1 /min, sleep: 100 uW}\n"
    metered = f"{battery}power: {{kind: hwmon, root: {tmp_path / 'sys'}, accuracy: 1 %, duration: 300 ms}}\n"
    target = target_file(tmp_path, metered, power="{mean: 510 mW, peak: 1 W}", battery_life="1 year")
    ran = cli("measure", copy, "--model", conv_onnx, "--target", target)
    assert budgets_of(ran.out) == {"power": "PASS", "power peak": "PASS", "battery_life": "PASS"}, ran.out
    assert "3000 mAh at 3.7 V, an inference 1 /min, 100 uW asleep between" in ran.out
    strict = target_file(tmp_path, metered, battery_life="{min: 20 years}")
    again = cli("check", copy, "--target", strict)
    assert (again.code, budgets_of(again.out)) == (1, {"battery_life": "MISS"})
    guessed = f"{battery}power: {{kind: estimate, active: 500 mW}}\n"
    for accept, verdict in (("", "NOT MEASURED"), (", accept: estimated", "PASS")):
        target = target_file(tmp_path, guessed, battery_life=f"{{min: 1 year{accept}}}")
        ran = cli("measure", copy, "--model", conv_onnx, "--target", target)
        assert budgets_of(ran.out) == {"battery_life": verdict}
        assert ran.code == (0 if verdict == "PASS" else 1)


# --- tune, logs ---


def test_tune_keeps_records_that_build_uses(cli, conv_onnx):
    ran = cli("tune", conv_onnx, "--target", "host", "--trials", 12, "--logs", "logs")
    assert ran.code == 0, ran.err
    found = re.fullmatch(r"(\d+) of (\d+) kernels have a tuned schedule; (\d+) candidates measured now\n", ran.out)
    assert found
    assert 0 < int(found[1]) <= int(found[2])
    assert 12 <= int(found[3]) <= 24
    assert re.search(r"^tune.*: .*/12 trials", ran.err, re.MULTILINE)
    again = cli("tune", conv_onnx, "--target", "host", "--trials", 12, "--logs", "logs")
    assert again.out.endswith("; 0 candidates measured now\n")
    assert cli("build", conv_onnx, "--target", "host", "--logs", "logs", "--out", "out").code == 0
    assert deploy.load("out").artifact.facts["kernels"]["tuned"]
    listed = cli("logs", "--logs", "logs")
    assert (listed.code, "host" in listed.out) == (0, True)
    assert cli("logs", "list", "--logs", "logs") == listed
    shown = cli("logs", "show", "host", "--logs", "logs")
    assert (shown.code, len(shown.out.splitlines()) >= int(found[1])) == (0, True)
    best = cli("logs", "best", "host", "--logs", "logs")
    assert (best.code, best.err, len(best.out.splitlines())) == (0, "", len(shown.out.splitlines()) - 1)
    assert all(json.loads(line)["best_s"] > 0 for line in best.out.splitlines())
    refused = cli("logs", "best", "hots", "--logs", "logs")
    assert (refused.code, refused.out, refused.err.endswith('did you mean "host"?\n')) == (2, "", True)


def test_records_that_are_not_used_are_told_of_once(cli, conv_onnx):
    fill(folder(Path("stale"), "host", "fff"))
    ran = cli("tune", conv_onnx, "--target", "host", "--trials", 0, "--logs", "stale")
    assert ran.code == 0, ran.err
    assert ran.err.count("tvm-deploy: note: 6 records of target host in stale are of another fingerprint or TVM") == 1
    assert cli("-q", "tune", conv_onnx, "--target", "host", "--trials", 0, "--logs", "stale").err == ""


# --- targets, help, flags ---


def test_targets_are_listed_shown_and_checked(cli, tmp_path):
    ran = cli("targets")
    assert (ran.code, ran.err) == (0, "")
    assert {line.split()[0] for line in ran.out.splitlines()} >= {"host", "x86-64-v2", "x86-64-v3", "x86-64-v4"}
    assert cli("targets", "list") == ran
    shown = cli("targets", "show", "x86-64-v4-vnni")
    assert "avx512vnni" in shown.out
    (tmp_path / "x86-64-v4-vnni.yaml").write_text(shown.out)
    ran = cli("targets", "check", "x86-64-v4-vnni.yaml")
    assert ran == (0, "x86-64-v4-vnni.yaml: target x86-64-v4-vnni is valid\n", "")
    (tmp_path / "bad.yaml").write_text("name: bad\ndescription: d\ntvm: {kind: llvm}\nbudgets:\n  latencz: 1 ms\n")
    ran = cli("targets", "check", "bad.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("tvm-deploy: bad.yaml:5: ")
    assert "latency" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "m.onnx"],
        ["run", "m.onnx", "--target", "host", "--trials", "-1"],
        ["run", "m.onnx", "--target", "host", "--trials", "many"],
        ["run", "m.onnx", "--target", "host", "--shape", "1,2,3"],
        ["run", "m.onnx", "--target", "host", "--shape", "x=1,two"],
        ["run", "m.onnx", "--target", "host", "--json", "--markdown"],
        ["targets", "show"],
    ],
)
def test_wrong_arguments_are_exit_2_with_usage(cli, arguments):
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("usage: tvm-deploy")
    assert len(ran.err.splitlines()[-1]) > 20


def test_every_command_helps(cli):
    for command in ("run", "tune", "build", "measure", "check", "report", "targets", "logs"):
        ran = cli(command, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(f"usage: tvm-deploy {command}")


def test_quiet_and_verbose_go_anywhere(cli, conv_onnx):
    for arguments in (("-v", "report", "nothing"), ("report", "nothing", "-v")):
        ran = cli(*arguments)
        assert ran.code == 2
        assert ran.err.startswith("Traceback")
        assert ran.err.splitlines()[-1].startswith("tvm-deploy: nothing is no artifact")
    assert cli("-q", "build", conv_onnx, "--target", "host", "--out", "out") == (0, "out\n", "")
    assert cli("build", conv_onnx, "--target", "host", "--out", "out", "-q") == (0, "out\n", "")


def test_a_bug_is_reported_in_one_line(cli, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["report"] = 7
    del manifest["target"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    ran = cli("check", copy, "--target", "host")
    assert "Traceback" not in ran.err
    assert ran.code in (2, 3)
    assert ran.err.startswith("tvm-deploy: ")
    assert ran.err.count("\n") == 1


# --- terminals and pipes ---


def in_terminal(arguments, columns=70, env=None):
    """Run the program with stdout and stderr on a terminal of `columns`; all it wrote there, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CI", "COLUMNS")}
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdout=theirs, stderr=theirs, env={**clean, "TERM": "xterm", **(env or {})}
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the last one to hold the terminal has gone
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    return written.decode(), process.wait(60)


def test_report_is_coloured_and_fits_a_terminal(deployed):
    written, code = in_terminal(("report", deployed[0]))
    assert code == 0
    assert "\x1b[1;32mPASS" in written
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written).splitlines()
    assert max(map(len, plain[:-1])) <= 70
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in in_terminal(("report", deployed[0]), env=env)[0]
    assert "\x1b" in in_terminal(("report", deployed[0]), env={"NO_COLOR": ""})[0]
    assert len(in_terminal(("report", deployed[0]), columns=0)[0].splitlines()[0]) > 40


def test_progress_is_live_in_a_terminal(conv_onnx, tmp_path):
    arguments = ("build", conv_onnx, "--target", "host", "--out", tmp_path / "out")
    written, code = in_terminal(arguments)
    assert code == 0
    assert "\x1b[?25l" in written, "the cursor is hidden while the bar is drawn"
    assert written.rstrip().endswith(str(tmp_path / "out"))
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "and comes back"


def test_a_reader_that_goes_away_changes_nothing(deployed, tmp_path):
    read, write = os.pipe()
    os.close(read)
    strict = target_file(tmp_path, latency="1 ns")
    for arguments, code in ((("report", deployed[0]), 0), (("check", deployed[0], "--target", strict), 1)):
        done = subprocess.run([*PROGRAM, *arguments], stdout=write, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (code, "")
    os.close(write)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_a_failure(deployed):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, "report", deployed[0]], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr == "tvm-deploy: cannot write the report to stdout: No space left on device\n"


def test_report_survives_a_terminal_without_unicode(deployed, tmp_path):
    shutil.copytree(deployed[0], tmp_path / "größe")
    for style in ([], ["--markdown"], ["--json"]):
        done = subprocess.run(
            [*PROGRAM, "report", tmp_path / "größe", *style],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        done.stdout.decode("ascii")


# --- the README ---


README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_command_in_the_readme_is_one():
    lines = re.findall(r"^(?:\$ )?(tvm-deploy .+)$", README, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_readme_tells_every_flag_of_run_and_no_other(cli):
    table = README[README.index("| Flag | |") : README.index("The report is all that goes to stdout")]
    told = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "\n".join(re.findall("`[^`]+`", table))))
    helped = cli("run", "--help").out
    there = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", helped)) - {"-h", "--help"}
    assert told <= there, "flags that do not exist"
    assert there - told <= {"--seed", "--verbose", "--quiet", "--markdown"}, "flags that are not told"
