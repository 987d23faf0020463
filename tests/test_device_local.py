"""The measuring program and LocalDevice, with real processes; the contract that all devices share is included."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from device_contract import (
    C_FOLDER,
    MODEL_C,
    OUTPUTS,
    PREFIX,
    QUICK,
    DeviceContract,
    build_libraries,
    reference,
    samples,
)
from hypothesis import given
from hypothesis import strategies as st

from deploy import shell
from deploy.device import DeviceRun, LocalDevice, RunPlan, bench
from deploy.device.local import choose_cpus, read_conditions
from deploy.errors import DeviceError, InputError, ToolError
from deploy.power import open_meter

ENERGY = RunPlan(warmup_s=0, seconds=0.02, min_samples=8, max_samples=50, energy_seconds=0.3, timeout_s=20)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return build_libraries(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="module")
def device():
    with LocalDevice() as opened:
        yield opened


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Return run(*arguments) of the measuring program; its JSON, exit status included as "exit"."""
    file = tmp_path_factory.mktemp("bench") / "bench"
    flags = ("-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wpedantic", "-std=c11")
    shell.run(bench.compile_command("cc", str(C_FOLDER / "bench.c"), str(file), flags), timeout_s=60)

    def run(*arguments):
        done = shell.run([file, *map(str, arguments)], timeout_s=20, check=False)
        assert done.stdout.count("\n") == 1
        return {**json.loads(done.stdout), "exit": done.returncode}

    run.file = file
    return run


class TestContract(DeviceContract):
    pass


# The program


def test_bench_answer_has_every_figure(program, libraries):
    answer = program("--library", libraries["good"], "--prefix", PREFIX, "--seconds", 0.05, "--warmup-seconds", 0)
    assert (answer["status"], answer["exit"], answer["threads"]) == (0, 0, 1)
    assert answer["model"] == 'tiny "net"\u00c3\u00a9\n'  # bytes that are not ASCII come through one by one
    assert (answer["input_bytes"], answer["output_bytes"]) == ([24, 4], [24, 4])
    assert 0 < answer["rss_before_load_bytes"] < answer["peak_rss_bytes"] < 64 << 20
    assert 0 < answer["clock_ns"] < 10_000
    assert answer["batch"] * min(answer["samples_ns"]) > 5_000  # 20 µs when the batch was chosen


def test_bench_batch_can_be_set(program, libraries):
    answer = program("--library", libraries["good"], "--prefix", PREFIX, "--seconds", 0.01, "--batch", 3)
    assert answer["batch"] == 3


def test_bench_spreads_samples_over_the_time(program, libraries):
    common = ("--library", libraries["good"], "--prefix", PREFIX, "--warmup-seconds", 0)
    started = time.monotonic()
    answer = program(*common, "--seconds", 0.3, "--max-samples", 20)
    assert len(answer["samples_ns"]) == 20
    assert time.monotonic() - started > 0.25


def test_bench_runs_for_a_meter(program, libraries):
    before = time.monotonic_ns()
    answer = program("--library", libraries["slow"], "--prefix", PREFIX, "--measure-for", 0.1, "--warmup-seconds", 0)
    loop = answer["loop"]
    assert before < loop["start_ns"] < loop["stop_ns"] < time.monotonic_ns()
    assert loop["stop_ns"] - loop["start_ns"] >= 1e8
    assert 1 <= loop["inferences"] <= 50
    assert answer["samples_ns"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--library",),
        ("--library", "x"),
        ("--nonsense", "1"),
        ("--seconds", "-1"),
        ("--seconds", "nan"),
        ("--seconds", "1e9"),
        ("--seconds", "1s"),
        ("--seconds", ""),
        ("--min-samples", "0"),
        ("--min-samples", "99999999999999999999999"),
        ("--min-samples", "5.5"),
        ("--batch", "0"),
        ("--batch", "many"),
        ("--library", "x", "--prefix", "y", "--min-samples", "20", "--max-samples", "10"),
        ("--library", "x", "--prefix", "y", "--inputs", "z"),
        ("--library", "x", "--prefix", "y" * 1000),
        ("--library", "x", "--prefix", "y", "--cpu", ""),
        ("--library", "x", "--prefix", "y", "--cpu", "0,"),
        ("--library", "x", "--prefix", "y", "--cpu", "999999"),
    ],
)
def test_bench_bad_arguments(program, arguments):
    answer = program(*arguments)
    assert (answer["status"], answer["exit"]) == (101, 1)
    assert answer["error"]


def test_bench_files(program, libraries, tmp_path):
    common = ("--library", libraries["good"], "--prefix", PREFIX, "--seconds", 0.01, "--warmup-seconds", 0)
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    inputs.write_bytes(bytes(2 * 28 - 1))
    files = ("--inputs", inputs, "--count", 2, "--outputs", outputs)
    short = program(*common, *files)
    assert (short["status"], short["exit"]) == (103, 1)
    assert "55 bytes; 2 samples of this model's inputs are 2 times 28 bytes" in short["error"]
    inputs.write_bytes(bytes(2 * 28))
    for unwritable in (tmp_path / "no" / "outputs", tmp_path, "/dev/full/x"):
        assert program(*common, *files[:-1], unwritable)["status"] == 103
    assert program(*common, "--inputs", "/dev/zero", *files[2:])["status"] == 103
    assert program(*common, *files)["status"] == 0
    assert sorted(os.listdir(tmp_path)) == ["inputs", "outputs"]


def test_bench_full_disk_leaves_no_outputs(libraries, program, tmp_path):
    """A limit on file sizes stands in for the disk: the C library sees the same failing write."""
    inputs = tmp_path / "inputs"
    inputs.write_bytes(bytes(28 * 1000))
    command = bench.command(str(program.file), str(libraries["good"]), PREFIX, ())
    command += bench.sample_arguments(str(inputs), str(tmp_path / "outputs"), 1000)
    limited = ["sh", "-c", 'trap "" XFSZ; ulimit -f 1; exec "$@"', "sh", *command]
    done = shell.run(limited, timeout_s=20, check=False)
    assert json.loads(done.stdout)["status"] == 103
    assert os.listdir(tmp_path) == ["inputs"]


def test_bench_linked_with_the_model(tmp_path):
    """As for boards without a dynamic linker."""
    model, file = tmp_path / "model.c", tmp_path / "bench"
    model.write_text(MODEL_C)
    flags = ["-O2", "-Wall", "-Werror", f"-I{C_FOLDER}", "-DBENCH_STATIC", f"-DBENCH_PREFIX={PREFIX}"]
    shell.run(["cc", *flags, C_FOLDER / "bench.c", model, "-o", file], timeout_s=60)
    answer = json.loads(shell.run([file, "--seconds", "0.01"], timeout_s=20).stdout)
    assert (answer["status"], answer["weight_bytes"]) == (0, 24)
    assert shell.run([file, "--library", "x"], timeout_s=20, check=False).returncode == 1


# The answer


GOOD = {
    "status": 0, "model": "m", "inferences": 9, "batch": 1, "clock_ns": 20.5, "threads": 1, "arena_bytes": 0,
    "weight_bytes": 0, "peak_rss_bytes": None, "rss_before_load_bytes": 4096, "input_bytes": [4], "output_bytes": [4],
    "samples_ns": [1000.0, 2000],
}  # fmt: skip


def test_decode():
    answer = bench.decode(json.dumps(GOOD), 0)
    assert answer.samples_s == (1e-6, 2e-6)
    assert answer.peak_rss_bytes is None
    assert answer.loop is None


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "null", '{"status": "0"}', '{"status": true}', "{", "[" * 100_000, "\0", '{"status": 0}',
        *(json.dumps(GOOD | change) for change in (
            {"batch": -1}, {"batch": 1.5}, {"batch": None}, {"samples_ns": 3}, {"samples_ns": ["1"]},
            {"samples_ns": [float("nan")]}, {"samples_ns": [-1]}, {"samples_ns": [10**400]}, {"output_bytes": None},
            {"loop": 3}, {"loop": {"inferences": 0, "start_ns": 1, "stop_ns": 2}},
            {"loop": {"inferences": 1, "start_ns": 2, "stop_ns": 2}},
        )),
    ],
)  # fmt: skip
def test_decode_nonsense(text):
    with pytest.raises(DeviceError) as caught:
        bench.decode(text, 0)
    assert len(str(caught.value)) < 500


@given(st.text() | st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_decode_anything_else(text):
    with pytest.raises(DeviceError):
        bench.decode(text, 1)


def test_decode_signals():
    expected = {9: "SIGKILL.*out of memory", 7: "truncated", 15: "killed by SIGTERM", 200: "signal 200"}
    for number, words in expected.items():
        with pytest.raises(DeviceError, match=words):
            bench.decode("", -number)


def test_a_failed_exit_is_never_a_result():
    with pytest.raises(DeviceError, match="exit status 2"):
        bench.decode(json.dumps(GOOD), 2)


# The device


def test_times_and_memory_of_a_run(device, libraries):
    run = device.run(libraries["good"], PREFIX, samples(1), OUTPUTS, QUICK)
    assert run.how == "measured"
    assert 0 < run.baseline_rss_bytes < run.peak_rss_bytes < 64 << 20
    assert run.conditions["load_average"] >= 0
    assert run.conditions["clock_ns"] > 0
    assert int(run.conditions["pinned_cpus"]) in os.sched_getaffinity(0)


def test_unpinned_and_more_threads_than_cpus(libraries):
    for options in ({"pin": False}, {"threads": 100_000}):
        with LocalDevice(**options) as opened:
            assert "pinned_cpus" not in opened.run(libraries["good"], PREFIX, [], OUTPUTS, QUICK).conditions


def test_a_relative_path_is_a_file_not_a_system_library(device, libraries, monkeypatch):
    monkeypatch.chdir(libraries["good"].parent)
    assert device.run(type(libraries["good"])("good.so"), PREFIX, [], OUTPUTS, QUICK).inferences > 0


def test_nothing_is_left_behind(libraries, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LocalDevice() as opened:
        opened.run(libraries["good"], PREFIX, samples(2), OUTPUTS, QUICK)
        (work,) = tmp_path.iterdir()
        assert [file.name for file in work.iterdir()] == ["bench"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ToolError, match="no-such-compiler"), LocalDevice("no-such-compiler"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_temporary_folder_that_cannot_be_used(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ToolError, match="set TMPDIR"), LocalDevice():
        pass


def test_wrong_use():
    with pytest.raises(InputError, match="0 threads"):
        LocalDevice(threads=0)
    with pytest.raises(RuntimeError, match="not open"):
        LocalDevice().run(C_FOLDER / "bench.c", PREFIX, [], OUTPUTS, QUICK)


def test_estimated_energy(libraries):
    with LocalDevice(open_meter=lambda: open_meter("estimate", active_w=10, idle_w=2)) as opened:
        run = opened.run(libraries["good"], PREFIX, samples(1), OUTPUTS, ENERGY)
    assert run.energy.complete
    assert run.energy.how == "estimated"
    assert run.energy.watts == pytest.approx(10)
    assert run.idle.watts == pytest.approx(2)
    assert 0.3 <= run.energy_busy_s <= run.energy.seconds
    assert run.energy_inferences > 100


def hwmon(root):
    """A power sensor of a constant 5 W."""
    chip = root / "class" / "hwmon" / "hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina3221\n")
    (chip / "power1_input").write_text("5000000\n")
    return chip / "power1_input"


def test_energy_of_a_sensor(libraries, tmp_path):
    hwmon(tmp_path)
    with LocalDevice(open_meter=lambda: open_meter("hwmon", tmp_path)) as opened:
        run = opened.run(libraries["good"], PREFIX, samples(1), OUTPUTS, ENERGY)
    assert run.energy.how == "measured"
    assert run.energy.watts == pytest.approx(5, rel=0.01)
    assert run.energy.samples
    assert run.energy.seconds == pytest.approx(run.energy_busy_s), "the program's start does not count"
    (window,) = run.energy.trace.windows
    assert window.seconds == pytest.approx(run.energy_busy_s)
    assert run.idle.watts == pytest.approx(5, rel=0.01)
    assert run.idle.seconds > 0.6, "before and after"


def test_a_meter_that_fails_gives_a_reason_and_the_times(libraries, tmp_path):
    def opens_then_breaks():
        sensor = hwmon(tmp_path)
        meter = open_meter("hwmon", tmp_path)
        sensor.unlink()
        return meter

    meters = {
        "no power meter": None,
        "no meter is configured": lambda: open_meter("none"),
        "no power sensor": lambda: open_meter("hwmon", tmp_path / "nothing"),
        "power1_input": opens_then_breaks,
    }
    for words, opener in meters.items():
        with LocalDevice(open_meter=opener) as opened:
            run = opened.run(libraries["good"], PREFIX, samples(1), OUTPUTS, ENERGY)
        assert run.samples_s
        assert not run.energy.complete
        assert words in run.energy.reason


def test_a_model_that_fails_with_the_meter_on(libraries, tmp_path):
    """The error is the model's, the meter is let go, and the next run works."""
    hwmon(tmp_path)
    library = tmp_path / "library.so"
    shutil.copy(libraries["good"], library)
    variants = iter(("segfaults", "good"))

    def meter_for_another_library():  # it is opened between the run for the times and the one for the energy
        shutil.copy(libraries[next(variants)], library)
        return open_meter("hwmon", tmp_path)

    with LocalDevice(open_meter=meter_for_another_library) as opened:
        with pytest.raises(DeviceError, match="SIGSEGV"):
            opened.run(library, PREFIX, samples(1), OUTPUTS, ENERGY)
        shutil.copy(libraries["good"], library)
        assert opened.run(library, PREFIX, samples(1), OUTPUTS, ENERGY).energy.complete


# Conditions


def cpufreq(root, cpu, **files):
    folder = root / "devices" / "system" / "cpu" / f"cpu{cpu}" / "cpufreq"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_choose_cpus(tmp_path):
    assert choose_cpus(1, {0, 1, 2}, tmp_path) == (2,)
    assert choose_cpus(2, {0, 1, 2}, tmp_path) == (1, 2)
    assert choose_cpus(4, {0, 1, 2}, tmp_path) == ()
    for cpu, khz in ((0, 3_000_000), (1, 3_000_000), (2, 1_500_000)):
        cpufreq(tmp_path, cpu, cpuinfo_max_freq=khz)
    assert choose_cpus(1, {0, 1, 2}, tmp_path) == (1,)
    assert choose_cpus(1, {0, 2}, tmp_path) == (0,)


def test_conditions_are_what_sysfs_says(tmp_path):
    assert read_conditions((), tmp_path) == {}
    cpufreq(tmp_path, 1, scaling_governor="powersave", scaling_cur_freq=1_800_000, cpuinfo_max_freq="garbage")
    for zone, text in enumerate(("45000", "61500", "", "-")):
        folder = tmp_path / "class" / "thermal" / f"thermal_zone{zone}"
        folder.mkdir(parents=True)
        (folder / "temp").write_text(text)
    assert read_conditions((1,), tmp_path) == {
        "pinned_cpus": "1", "governor": "powersave", "frequency_hz": 1_800_000_000, "temperature_c": 61.5,
    }  # fmt: skip


# Plans and results


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_s": -1}, {"warmup_s": float("nan")}, {"seconds": 0}, {"seconds": float("inf")}, {"min_samples": 0},
        {"min_samples": 5000}, {"max_samples": 10**9}, {"energy_seconds": 0}, {"timeout_s": 1}, {"max_rounds": 0},
    ],
)  # fmt: skip
def test_plans_that_make_no_sense(wrong):
    with pytest.raises(InputError, match=r"give|raise it"):
        RunPlan(**wrong)


def test_results_that_cannot_be():
    good = {"outputs": [], "samples_s": (1.0,), "how": "measured", "batch": 1, "inferences": 1, "arena_bytes": 0,
            "weight_bytes": 0, "threads": 1}  # fmt: skip
    assert DeviceRun(**good).samples_s == (1.0,)
    for wrong in ({"samples_s": ()}, {"samples_s": (0.0,)}, {"samples_s": (float("nan"),)}, {"batch": 0},
                  {"arena_bytes": -1}, {"threads": 0}):  # fmt: skip
        with pytest.raises(DeviceError):
            DeviceRun(**good | wrong)


def test_outputs_file_of_another_length():
    data = b"".join(array.tobytes() for array in reference(samples(1)[0]))
    (arrays,) = bench.decode_outputs(data, OUTPUTS, 1)
    assert arrays[1].shape == ()
    for wrong in (data[:-1], data + b"x", b""):
        with pytest.raises(DeviceError, match="28 were expected"):
            bench.decode_outputs(wrong, OUTPUTS, 1)
    assert bench.decode_outputs(b"", OUTPUTS, 0) == []
    assert np.array_equal(arrays[0], reference(samples(1)[0])[0])
