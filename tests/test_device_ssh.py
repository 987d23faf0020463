"""Boards over SSH, with a real server on this machine: the contract of all devices, faults, emulated processors."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ssh_server
from device_contract import (
    OUTPUTS,
    PREFIX,
    QUICK,
    DeviceContract,
    artifact_folders,
    reference,
    samples,
)
from ssh_server import EMULATORS

from deploy import pipeline, shell
from deploy.artifact import Artifact
from deploy.device import RunPlan
from deploy.device.ssh import SshDevice, is_left
from deploy.device.ssh_script import Session
from deploy.errors import DeviceError, InputError, ToolError
from deploy.reference import Reference, sample_inputs
from deploy.target import from_text
from deploy.target_parts import DeviceSpec, PowerSpec
from deploy.targets import load_target

TINY = Path(__file__).resolve().parents[2] / "shared" / "models" / "mlperf-tiny"
NATIVE = "name: board\ndescription: d\ntvm: {kind: llvm, mcpu: detect}\ndevice: {kind: ssh}\n"
LONG = RunPlan(warmup_s=0, seconds=0.1, min_samples=1, max_samples=10, timeout_s=60)
pytestmark = pytest.mark.skipif(bool(ssh_server.missing()), reason=f"not installed: {', '.join(ssh_server.missing())}")


def needs(name):
    """Skip where the emulator or the cross compiler of a target is missing."""
    target = load_target(name)
    lacking = [p for p in (EMULATORS[name], target.toolchain.cc) if shell.which(p) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {', '.join(lacking)}")


def started(folder):
    """A server while it runs; the test is skipped where none can."""
    made = ssh_server.Server(folder).make()
    try:
        try:
            made.start()
        except RuntimeError as error:
            pytest.skip(str(error))
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    yield from started(tmp_path_factory.mktemp("ssh"))


@pytest.fixture
def own_server(tmp_path_factory):
    """A server whose files a test may change."""
    yield from started(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """For each variant an artifact's folder as far as a board over SSH needs one."""
    return artifact_folders(tmp_path_factory)


@pytest.fixture(scope="module")
def device(server, tmp_path_factory):
    place = tmp_path_factory.mktemp("board")
    with on(server, place) as opened:
        yield opened
    assert list(place.iterdir()) == []


def on(server, directory, target=None, **options):
    """A device on this machine as a board, or with an emulator as another one."""
    spec = DeviceSpec("ssh", tuple(server.board(directory=str(directory), **options).items()))
    return SshDevice(replace(target or from_text(NATIVE, "board.yaml"), device=spec))


def refused(device, words):
    """Opening the device gives a DeviceError with `words` that names the board."""
    with pytest.raises(DeviceError, match=words) as caught, device:
        pass
    assert "127.0.0.1" in str(caught.value) or "invalid" in str(caught.value)
    assert "\n" not in str(caught.value)


def works(device, libraries):
    run = device.run(libraries["good"], PREFIX, samples(1), OUTPUTS, QUICK)
    np.testing.assert_array_equal(run.outputs[0][0], reference(samples(1)[0])[0])
    return run


class TestContract(DeviceContract):
    def test_what_is_not_a_library(self, device, libraries, tmp_path):
        (tmp_path / "alone.so").write_text("")
        for file in (tmp_path / "missing.so", tmp_path, tmp_path / "alone.so"):
            with pytest.raises(InputError, match=r"give the libmodel\.so of an artifact"):
                self.run(device, file)
        self.refused(device, libraries, "unresolved", "no symbol missing_function")


def test_conditions_and_energy(server, libraries, tmp_path):
    sys = tmp_path / "sys"
    for number in range(os.cpu_count() or 1):
        cpufreq = sys / f"devices/system/cpu/cpu{number}/cpufreq"
        cpufreq.mkdir(parents=True)
        (cpufreq / "scaling_governor").write_text("powersave\n")
        (cpufreq / "scaling_cur_freq").write_text("600000\n")
        (cpufreq / "cpuinfo_max_freq").write_text("1500000\n")
    for number, value in enumerate((41000, 52500)):
        (sys / f"class/thermal/thermal_zone{number}").mkdir(parents=True)
        (sys / f"class/thermal/thermal_zone{number}/temp").write_text(f"{value}\n")
    target = replace(from_text(NATIVE, "b.yaml"), power=PowerSpec("estimate", (("active", 4.0),)))
    target = replace(target, device=DeviceSpec("ssh", tuple(server.board(directory=str(tmp_path)).items())))
    with SshDevice(target, sysfs_root=sys) as device:
        run = device.run(libraries["good"], PREFIX, samples(1), OUTPUTS, replace(QUICK, energy_seconds=0.1))
    found = run.conditions
    assert (found["governor"], found["governor_before"]) == ("powersave", "powersave")
    assert (found["frequency_hz"], found["max_frequency_hz"]) == (600e6, 1500e6)
    assert (found["temperature_c"], found["temperature_c_before"]) == (52.5, 52.5)
    assert found["load_average"] >= 0
    assert int(found["pinned_cpus"]) == max(os.sched_getaffinity(0))
    assert found["board"].endswith(f"@127.0.0.1 (port {server.port})")
    assert run.how == "measured"
    assert (run.energy.how, run.energy_inferences) == ("estimated", 1)
    assert run.energy.joules == pytest.approx(4 * sorted(run.samples_s)[len(run.samples_s) // 2], rel=0.5)
    assert run.peak_rss_bytes > run.baseline_rss_bytes > 0


def test_a_program_is_copied_once(server, libraries, tmp_path):
    with on(server, tmp_path) as device:
        works(device, libraries)
        (folder,) = tmp_path.iterdir()
        before = (folder / "program").stat().st_ino
        works(device, libraries)
        assert (folder / "program").stat().st_ino == before
        assert folder.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_run_with_and_what_is_emulated(server, libraries, tmp_path):
    with on(server, tmp_path, run_with=("nice", "-n", "1")) as device:
        run = works(device, libraries)
    assert (run.how, run.conditions["run_with"]) == ("measured", "nice -n 1")
    assert "pinned_cpus" not in run.conditions
    with on(server, tmp_path, emulated=True) as device:
        run = device.run(libraries["good"], PREFIX, samples(1), OUTPUTS, replace(QUICK, energy_seconds=0.1))
    assert (run.how, run.peak_rss_bytes) == ("emulated", None), "memory is the emulator's own"
    assert not run.energy.complete
    with on(server, tmp_path, run_with=("no-such-program",)) as device, pytest.raises(DeviceError, match="run_with"):
        works(device, libraries)


def test_without_room_for_a_socket_each_step_logs_in(server, libraries, tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with on(server, tmp_path) as device:
        works(device, libraries)
    assert [entry.name for entry in tmp_path.iterdir()] == [deep.name]


def test_a_target_without_a_host_says_where_to_name_one():
    with pytest.raises(InputError, match=r"no `host`.*--device ssh://USER@HOST"):
        SshDevice(load_target("armv7-a"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "-oProxyCommand=x"}, "not a name or an address"),
        ({"user": "a b"}, "not a name or an address"),
        ({"identity": "/nowhere/key"}, "no file /nowhere/key, the `identity`"),
        ({"port": 70000}, "1 to 65535"),
    ],
)
def test_options_are_checked_before_anything_is_done(server, options, words):
    with pytest.raises(InputError, match=words):
        on(server, "/tmp", **options)


class TestLoggingIn:
    def test_nobody_there(self, server, tmp_path):
        refused(on(server, tmp_path, port=ssh_server.free_port()), "refuses connections.*`port`")
        refused(on(server, tmp_path, host="no-such-board.invalid"), "no network knows the host")

    def test_a_server_that_says_nothing(self, server, tmp_path):
        import socket

        with socket.create_server(("127.0.0.1", 0)) as mute:
            started = time.monotonic()
            refused(on(server, tmp_path, port=mute.getsockname()[1], timeout=1.0), "cannot be reached")
            assert time.monotonic() - started < 8

    def test_a_server_of_something_else(self, server, tmp_path):
        import socket

        with socket.create_server(("127.0.0.1", 0)) as other:
            threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
            refused(on(server, tmp_path, port=other.getsockname()[1]), "before the log-in")

    def test_a_key_that_is_not_accepted(self, server, tmp_path):
        refused(on(server, tmp_path, identity=str(server.folder / "other_key")), "not accept your key.*ssh-copy-id")

    def test_a_key_that_others_may_read(self, own_server, tmp_path):
        (own_server.folder / "key").chmod(0o644)
        refused(on(own_server, tmp_path), "chmod 600")

    def test_a_changed_and_an_unknown_host_key(self, own_server, tmp_path):
        own_server.trust(own_server.folder / "other_key.pub")
        refused(on(own_server, tmp_path), "another host key.*ssh-keygen -R")
        (own_server.folder / "known_hosts").write_text("")
        refused(on(own_server, tmp_path), "not known here: log in once")

    def test_a_wrong_configuration(self, own_server, tmp_path):
        (own_server.folder / "ssh_config").write_text("NoSuchOption yes\n")
        refused(on(own_server, tmp_path), "does not accept its configuration")

    def test_no_such_folder_on_the_board(self, server, tmp_path):
        refused(on(server, tmp_path / "none"), "has no folder .*none.*`directory`")
        refused(on(server, "/proc"), "/proc on .* cannot be written to .*another `directory`")


class TestFaults:
    def test_the_link_is_cut_while_the_model_runs_and_can_be_used_again(self, own_server, libraries, tmp_path):
        with on(own_server, tmp_path) as device:
            works(device, libraries)
            cut_when_running(own_server, tmp_path)
            started = time.monotonic()
            with pytest.raises(DeviceError, match=r"127\.0\.0\.1.* was cut while the model ran.*next connection"):
                device.run(libraries["hangs"], PREFIX, samples(1), OUTPUTS, LONG)
            assert time.monotonic() - started < 30
            assert in_folder(tmp_path), "the model runs on"
            works(device, libraries)
            assert not in_folder(tmp_path), "until the next connection"
        assert list(tmp_path.iterdir()) == []

    def test_a_board_that_is_gone_when_the_device_is_closed_is_cleaned_by_the_next(
        self, own_server, libraries, tmp_path
    ):
        with on(own_server, tmp_path) as device:
            works(device, libraries)
            own_server.stop()
        assert len(list(tmp_path.iterdir())) == 1
        own_server.start()
        with on(own_server, tmp_path):
            assert len(list(tmp_path.iterdir())) == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_connection_that_ended_while_nothing_was_done(self, own_server, libraries, tmp_path):
        with on(own_server, tmp_path) as device:
            works(device, libraries)
            own_server.cut()
            works(device, libraries)
            own_server.cut()
        assert list(tmp_path.iterdir()) == []

    def test_a_program_that_ends_after_the_cut_takes_the_folder_away(self, own_server, libraries, tmp_path):
        with on(own_server, tmp_path) as device:
            cut_when_running(own_server, tmp_path)
            with pytest.raises(DeviceError, match="was cut"):
                device.run(libraries["hangs"], PREFIX, samples(1), OUTPUTS, replace(LONG, timeout_s=2))
        until = time.monotonic() + 10
        while list(tmp_path.iterdir()) and time.monotonic() < until:
            time.sleep(0.1)
        assert list(tmp_path.iterdir()) == []

    def test_the_server_dies(self, own_server, libraries, tmp_path):
        with on(own_server, tmp_path) as device:
            own_server.stop()
            with pytest.raises(DeviceError, match="refuses connections"):
                works(device, libraries)
            own_server.start()
            works(device, libraries)

    def test_the_folder_vanishes(self, server, libraries, tmp_path):
        with on(server, tmp_path) as device:
            works(device, libraries)
            shutil.rmtree(next(tmp_path.iterdir()))
            with pytest.raises(DeviceError, match=r"is gone from .*restarted"):
                works(device, libraries)
            works(device, libraries)

    def test_what_sessions_that_are_over_left_is_removed(self, server, tmp_path):
        with on(server, tmp_path):
            computer = next(tmp_path.iterdir()).name.split("-")[2]
        ended = subprocess.Popen(["true"])
        ended.wait()
        names = {
            "over": f"tvm-deploy-{computer}-{ended.pid}-abc-1",
            "running": f"tvm-deploy-{computer}-{os.getppid()}-abc-1",
            "of another computer": "tvm-deploy-00000000-1-abc-1",
            "of another computer, old": "tvm-deploy-00000000-2-abc-1",
            "not ours": "tvm-deploy-notes",
        }
        for name in names.values():
            (tmp_path / name).mkdir()
        os.utime(tmp_path / names["of another computer, old"], (0, time.time() - 3 * 86400))
        with on(server, tmp_path):
            pass
        kept = {entry.name for entry in tmp_path.iterdir()}
        assert kept == {names["running"], names["of another computer"], names["not ours"]}

    @pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
    def test_a_full_disk_and_one_that_programs_may_not_run_on(self, server, libraries, tmp_path):
        for options, words in (("size=64k", "no space is left in .*free some"), ("noexec", "mounted noexec")):
            place = tmp_path / options
            place.mkdir()
            done = shell.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], timeout_s=10, check=False)
            if done.returncode:
                pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
            try:
                with on(server, place) as device, pytest.raises(DeviceError, match=words):
                    works(device, libraries)
                assert list(place.iterdir()) == []
            finally:
                shell.run(["umount", "-l", place], timeout_s=10)  # what was killed may not be gone yet

    def test_a_limit_of_file_sizes(self, own_server, libraries, tmp_path):
        config = own_server.folder / "sshd_config"
        own_server.stop()
        limited = 'ForceCommand ulimit -f 32; eval "$SSH_ORIGINAL_COMMAND"\n'
        config.write_text(config.read_text() + limited)
        own_server.start()
        with on(own_server, tmp_path) as device, pytest.raises(DeviceError, match="does not allow files that large"):
            works(device, libraries)
        assert list(tmp_path.iterdir()) == []

    def test_a_shell_that_answers_nonsense(self, own_server, tmp_path):
        config = own_server.folder / "sshd_config"
        own_server.stop()
        config.write_text(config.read_text() + "ForceCommand echo This account is not available.\n")
        own_server.start()
        refused(on(own_server, tmp_path), "127.0.0.1.*answered something else")


def cut_when_running(server, place):
    """Cut the server's connections as soon as a program runs below `place`."""

    def wait():
        until = time.monotonic() + 20
        while not in_folder(place) and time.monotonic() < until:
            time.sleep(0.02)
        server.cut()

    threading.Thread(target=wait, daemon=True).start()


def in_folder(place):
    """The processes whose working folder is below `place`."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        with contextlib.suppress(OSError):
            if target.startswith(f"{place}/") and Path(link.parent / "comm").read_text().strip() == "program":
                found.append(int(link.parent.name))
    return found


def test_is_left(tmp_path):
    mine = Session("0123abcd", os.getpid(), "mine", 2)
    for name in ("mine", "open"):
        (tmp_path / f"tvm-deploy-{name}").mkdir()
    for name, left in {
        f"0123abcd-{os.getpid()}-mine-2": False,
        f"0123abcd-{os.getpid()}-mine-1": True,
        f"0123abcd-{os.getpid()}-open-1": False,
        f"0123abcd-{os.getpid()}-closed-1": True,
        "0123abcd-4194305-x-1": True,  # a number that no process can have
        "0123abcd-1-x-1": False,
        "ffffffff-4194305-x-1": False,
        "else": False,
    }.items():
        assert is_left(f"tvm-deploy-{name}", mine, tmp_path) == left, name


@needs("aarch64")
@pytest.mark.skipif(Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists(), reason="this kernel runs them")
@pytest.mark.skipif(os.uname().machine == "aarch64", reason="this machine runs them")
def test_a_program_for_another_processor(server, libraries, tmp_path):
    words = f"cannot run code for aarch64: its processor is called {os.uname().machine}.*`run_with`"
    with on(server, tmp_path, load_target("aarch64")) as device, pytest.raises(DeviceError, match=words):
        works(device, libraries)
    wrong = EMULATORS["armv7-a"]
    if shell.which(wrong):
        emulated = on(server, tmp_path, load_target("aarch64"), run_with=(wrong,))
        with emulated as device, pytest.raises(DeviceError, match="cannot run code for aarch64"):
            works(device, libraries)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in EMULATORS])
def test_emulated_processors(server, libraries, tmp_path, name):
    with on(server, tmp_path, load_target(name), run_with=(EMULATORS[name],)) as device:
        assert works(device, libraries).how == "emulated"
        with pytest.raises(DeviceError, match="SIGSEGV"):
            device.run(libraries["segfaults"], PREFIX, samples(1), OUTPUTS, QUICK)


@needs("armv7-a")
@pytest.mark.tvm
def test_run_from_the_command_line(server, cli, conv_onnx, tmp_path):
    (tmp_path / "board").mkdir()
    options = server.board(directory=str(tmp_path / "board"), run_with=[EMULATORS["armv7-a"]])
    (tmp_path / "boards.yaml").write_text(f"mypi: {{target: armv7-a, device: {options}}}\n")
    board = ("--target", "armv7-a", "--boards", "boards.yaml", "--device", "mypi")
    ran = cli("run", conv_onnx, *board, "--trials", 0, "--out", "out")
    assert ran.code == 1, ran.err  # times and memory under an emulator are no measurement
    assert ran.out.count("NOT MEASURED") >= 2
    assert "PASS" in ran.out  # the size
    facts = Artifact.open(tmp_path / "out").facts
    assert facts["target"]["name"] == "armv7-a"
    assert facts["report"]["verification"]["passed"] is True
    assert list((tmp_path / "board").iterdir()) == []
    tuned = cli("tune", conv_onnx, *board, "--trials", 8)
    assert tuned.code == 2
    assert "over SSH" in tuned.err
    assert "--trials 0" in tuned.err
    assert cli("run", conv_onnx, "--target", "armv7-a").code == 2


@pytest.mark.tvm
@pytest.mark.skipif(not TINY.is_dir(), reason="the MLPerf Tiny models are not beside this checkout")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("armv7-a", marks=needs("armv7-a")),
        pytest.param("aarch64", marks=[needs("aarch64"), pytest.mark.slow]),
        pytest.param("riscv64", marks=[needs("riscv64"), pytest.mark.slow]),
    ],
)
def test_integers_are_the_references_on_every_processor(server, tmp_path, name):
    source = pipeline.load_model(TINY / "ad_autoencoder_int8.tflite")
    spec = DeviceSpec("ssh", tuple(server.board(directory=str(tmp_path), run_with=(EMULATORS[name],)).items()))
    target = replace(load_target(name), device=spec)
    artifact = pipeline.build(source, target, out=tmp_path / "out")
    inputs = sample_inputs(source, 2, 3)
    plan = RunPlan(warmup_s=0, seconds=0.01, min_samples=1, max_samples=2, max_rounds=1)
    outputs = pipeline.measure_artifact(artifact, target, pipeline.Samples(inputs), plan).outputs
    original = Reference(source, target.rounding)
    for given, got in zip(inputs, outputs, strict=True):
        for expected, array in zip(original.run(given), got, strict=True):
            np.testing.assert_array_equal(array, expected)


def test_without_ssh(server, tmp_path, monkeypatch):
    device = on(server, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"ssh was not found.*openssh-client"), device:
        pass
