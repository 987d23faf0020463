"""Scripts for a board's shell, run by this machine's, and what they print, decoded."""

import contextlib
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import shell
from deploy.device import ssh_script, ssh_words
from deploy.device.ssh_script import Ran, Session, board_of, ran_of, session_of
from deploy.errors import DeviceError

SHELLS = [name for name in ("dash", "bash", "busybox") if shell.which(name)]
NAME = Session("0123abcd", 42, "t0k_n", 1).name


def sh(program, script, stdin=b"", cwd="/"):
    command = [program, *(["sh"] if program == "busybox" else []), "-c", script]
    return shell.run(command, timeout_s=30, stdin=stdin, check=False, cwd=cwd)


@pytest.mark.parametrize("program", SHELLS)
def test_a_session_in_every_shell(program, tmp_path):
    odd = tmp_path / "it's a $(folder)"
    odd.mkdir()
    (odd / "tvm-deploy-00000000-7-x-1").mkdir()
    begun = sh(program, ssh_script.begin(str(odd), NAME, "/sys"))
    assert begun.returncode == 0, begun.stderr
    board = board_of("Welcome to the board\n" + begun.stdout)
    assert (board.base, board.machine) == (str(odd), os.uname().machine)
    assert set(board.speeds) == os.sched_getaffinity(0)
    assert board.folders == ("tvm-deploy-00000000-7-x-1",)
    folder = f"{board.base}/{NAME}"
    data = bytes(range(256)) * 9
    assert sh(program, ssh_script.put(folder, "program", 10), b"#!/bin/sh\n").returncode == 0
    for cut in (b"", b"#!"):
        done = sh(program, ssh_script.put(folder, "program", 10), cut)
        assert done.returncode == ssh_script.CUT_SHORT
        assert not os.path.exists(f"{folder}/program")
    text = b'#!/bin/sh\necho "$*"; echo complaint >&2; cat inputs > outputs; exit $1\n'
    assert sh(program, ssh_script.put(folder, "program", len(text)), text).returncode == 0
    done = sh(program, ssh_script.run(folder, ["./program", "0", "it's"], len(data), 5, 0, "/sys"), data)
    assert done.stdout_bytes == b"0 it's\n" + data
    ran = ran_of(done.stderr)
    assert (ran.status, ran.late, ran.said) == (0, False, "complaint")
    done = sh(program, ssh_script.run(folder, ["./program", "3"], None, 5, 0, "/sys"))
    assert (done.stdout, ran_of(done.stderr).status) == ("3\n", 3)
    assert sh(program, ssh_script.end(str(odd), [NAME, "tvm-deploy-00000000-7-x-1"])).returncode == 0
    assert list(odd.iterdir()) == []
    assert sh(program, ssh_script.run(folder, ["./program"], None, 5, 0, "/sys")).returncode == ssh_script.GONE
    assert sh(program, ssh_script.begin(f"{odd}/none", NAME, "/sys")).returncode == ssh_script.NO_BASE


@pytest.mark.parametrize("program", SHELLS)
def test_a_program_that_hangs_or_is_killed(program, tmp_path):
    (tmp_path / "program").write_text("#!/bin/sh\nkill -$1 $$\nexec sleep 60\n")
    started = time.monotonic()
    hung = ran_of(sh(program, ssh_script.run(str(tmp_path), ["./program", "0"], None, 0.3, 0, "/sys")).stderr)
    assert hung.late
    assert time.monotonic() - started < 20
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "program").write_text('#!/bin/sh\nrm -rf "$PWD"\nexec sleep 60\n')
    gone = sh(program, ssh_script.run(str(tmp_path / "gone"), ["./program"], None, 0.3, 0, "/sys"))
    assert ran_of(gone.stderr).status == -9
    assert time.monotonic() - started < 20
    killed = ran_of(sh(program, ssh_script.run(str(tmp_path), ["./program", "11"], None, 9, 0, "/sys")).stderr)
    assert (killed.status, killed.late) == (-11, False)


def test_a_folder_relative_to_home_and_the_default(tmp_path):
    for directory, place in (("~/a", "a"), ("a", "a"), ("~", "."), ("./-x", "-x")):
        (tmp_path / place).mkdir(exist_ok=True)
        done = sh("sh", ssh_script.begin(directory, NAME, "/sys"), cwd=tmp_path)
        assert board_of(done.stdout).base == str((tmp_path / place).resolve())
        sh("sh", ssh_script.end(directory, [NAME]), cwd=tmp_path)
    assert board_of(sh("sh", ssh_script.begin(None, NAME, "/sys")).stdout).base.startswith("/")
    sh("sh", ssh_script.end(None, [NAME]))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "base\n", "This account is not available.\n", "machine x86_64\nbase relative\n"])
def test_what_is_no_answer(text):
    with pytest.raises(DeviceError, match="answered something else"):
        board_of(text)


@given(st.text())
def test_any_text_is_no_status_or_one(text):
    ran = ran_of(text)
    assert ran is None or ran.status >= -64


@given(st.text())
def test_any_text_is_a_board_or_an_error(text):
    for whole in (text, f"base /x\nmachine m\n{text}"):
        with contextlib.suppress(DeviceError):
            assert board_of(whole).base.startswith("/")


def test_conditions():
    text = "@before scaling_governor ondemand\n@before scaling_cur_freq 600000\n@before cpuinfo_max_freq 1500000\n"
    text += "@before temp 41000\n@before temp 43500\n@before temp broken\n@before load 0.25 0.1 0.1 1/99 1234\n"
    text += (
        "@after scaling_governor performance\n@after temp 60000\n@after load 9 9 9 1/9 9\n@odd\n@before\n@status 0\n"
    )
    assert ran_of(text).conditions == {
        "governor_before": "ondemand",
        "frequency_hz_before": 600e6,
        "max_frequency_hz": 1500e6,
        "temperature_c_before": 43.5,
        "load_average": 0.25,
        "governor": "performance",
        "temperature_c": 60.0,
    }


@given(st.integers(0, 2**30), st.from_regex(r"\A[0-9a-f]{8}\Z"), st.from_regex(r"\A[a-z0-9_]{1,20}\Z"))
def test_names_of_folders(process, computer, token):
    session = Session(computer, process, token, process % 7)
    assert session_of(session.name) == session
    for other in ("", "tvm-deploy-", session.name + "/", "x" + session.name, "tvm-deploy-float-abc"):
        assert session_of(other) is None


def test_which_machines_run_what():
    for machine, architecture in (("armv7l", "armv7a"), ("aarch64", "armv7a"), ("arm64", "aarch64"), ("m", "m")):
        assert ssh_words.runs(machine, architecture)
    for machine, architecture in (("x86_64", "aarch64"), ("armv7l", "aarch64"), ("riscv64", "armv7a")):
        assert not ssh_words.runs(machine, architecture)


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (126, "sh: 1: ./program: Exec format error", "cannot run code for aarch64: its processor is called armv7l"),
        (126, "bash: ./program: cannot execute binary file: Exec format error", "cannot run code for aarch64"),
        (2, "./program: line 1: syntax error: unexpected word", "cannot run code for aarch64"),
        (127, "sh: ./program: not found", "cannot run code for aarch64"),
        (255, "qemu-arm: ./program: Invalid ELF image for this architecture", "cannot run code for aarch64"),
        (1, "an error of the program", None),
    ],
)
def test_why_a_program_did_not_start(status, said, words):
    found = ssh_words.not_started("board pi", "/tmp/x", "armv7l", "aarch64", Ran(status, False, said, {}))
    assert (found is None) if words is None else (words in str(found) and "board pi" in str(found))


def test_why_a_program_for_this_processor_did_not_start():
    for status, said, words in (
        (126, "sh: 1: ./program: Permission denied", "mounted noexec"),
        (127, "sh: 1: qemu-arm: not found", "check `run_with`"),
    ):
        found = ssh_words.not_started("board pi", "/tmp/x", "armv7l", "armv7a", Ran(status, False, said, {}))
        assert words in str(found)
