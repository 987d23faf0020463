"""Real programs: what they print, how they fail, and that nothing they started outlives a time-out."""

import os
import re
import signal
import sys
import threading
import time

import pytest

from deploy import shell
from deploy.errors import InputError, ToolError
from deploy.shell import exit_words, package_of, require, run, which

PYTHON = sys.executable


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stream:
        return stream.read().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_output_of_both_streams_and_time_are_returned():
    done = run(["sh", "-c", "echo out; echo err >&2"], timeout_s=10)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 0)
    assert done.command == ("sh", "-c", "echo out; echo err >&2")
    assert 0 < done.seconds < 10


def test_stdin_is_fed_and_empty_by_default():
    assert run(["cat"], timeout_s=10, stdin=b"\x00\xffabc").stdout_bytes == b"\x00\xffabc"
    assert run(["cat"], timeout_s=10).stdout == ""


def test_more_stdin_than_the_program_reads_is_no_error():
    assert run(["true"], timeout_s=10, stdin=b"x" * 1_000_000).returncode == 0


def test_bytes_that_are_not_utf8_are_shown():
    assert run(["printf", r"a\377"], timeout_s=10).stdout == "a\\xff"


def test_folder_and_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("KEPT", "kept")
    done = run(["sh", "-c", "pwd; echo $KEPT $ADDED $LC_ALL"], timeout_s=10, cwd=tmp_path, env={"ADDED": "added"})
    assert done.stdout == f"{tmp_path}\nkept added C.UTF-8\n"


def test_failure_names_command_status_and_last_lines():
    with pytest.raises(ToolError) as caught:
        run(["sh", "-c", "seq 40 >&2; exit 3"], timeout_s=10)
    message = str(caught.value)
    assert "sh -c seq 40 >&2; exit 3 failed: exit status 3." in message
    assert message.endswith("  39\n  40")
    assert "\n  25\n" not in message


def test_failure_shows_stdout_when_stderr_is_empty():
    with pytest.raises(ToolError, match=r"Last lines of its stdout:\n  why"):
        run(["sh", "-c", "echo why; false"], timeout_s=10)


def test_failure_is_a_value_when_not_checked():
    assert run(["false"], timeout_s=10, check=False).returncode == 1


def test_signal_is_named():
    with pytest.raises(ToolError, match="killed by SIGSEGV"):
        run([PYTHON, "-c", "import os; os.kill(os.getpid(), 11)"], timeout_s=10)
    assert exit_words(-9) == "killed by SIGKILL (out of memory?)"
    assert exit_words(-200) == "killed by signal 200"


@pytest.mark.parametrize(
    ("program", "install"),
    [
        ("gcc", "apt install build-essential"),
        ("/opt/bin/ld", "apt install binutils"),
        ("arm-none-eabi-gcc", "apt install gcc-arm-none-eabi"),
        ("arm-none-eabi-objcopy", "apt install binutils-arm-none-eabi"),
        ("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu"),
        ("pyocd", "pip install pyocd"),
        ("frobnicate", None),
    ],
)
def test_package_of(program, install):
    assert package_of(program) == install


def test_missing_program_names_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"gcc was not found: install it \(apt install build-essential\)"):
        run(["gcc"], timeout_s=10)
    with pytest.raises(ToolError, match=r"apt install special"):
        run(["frob"], timeout_s=10, package="special")
    with pytest.raises(ToolError, match="put its folder on PATH"):
        require("frob")
    assert which("gcc") is None


def test_script_with_a_missing_interpreter(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(ToolError, match="interpreter or loader it names is missing"):
        run([script], timeout_s=10)


def test_not_executable_and_missing_folder(tmp_path):
    (tmp_path / "data").write_text("x")
    with pytest.raises(ToolError, match=r"cannot run .*data: "):
        run([tmp_path / "data"], timeout_s=10)
    with pytest.raises(ToolError, match="no such folder"):
        run(["true"], timeout_s=10, cwd=tmp_path / "none")


@pytest.mark.parametrize(
    ("command", "timeout_s"), [([], 1), ([""], 1), (["a\0b"], 1), (["true"], 0), (["true"], float("nan"))]
)
def test_nonsense_is_refused(command, timeout_s):
    with pytest.raises(InputError):
        run(command, timeout_s=timeout_s)


def test_timeout_kills_the_whole_group_and_shows_the_last_output(tmp_path):
    pid_file = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 60 & echo $! > {pid_file}; echo started >&2; wait"]
    begun = time.monotonic()
    with pytest.raises(ToolError, match=r"did not finish within 0.5 s(.|\n)*  started"):
        run(command, timeout_s=0.5)
    assert time.monotonic() - begun < 5
    assert wait_for(lambda: not alive(int(pid_file.read_text())))


def test_timeout_is_kept_by_a_process_that_left_the_group(tmp_path):
    pid_file = tmp_path / "pid"
    command = ["sh", "-c", f"echo before; setsid sleep 60 & echo $! > {pid_file}; wait"]
    begun = time.monotonic()
    try:
        with pytest.raises(ToolError, match=r"did not finish(.|\n)*  before"):
            run(command, timeout_s=0.3)
        assert time.monotonic() - begun < 6
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_interrupt_ends_the_program(tmp_path):
    pid_file = tmp_path / "pid"
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", f"echo $$ > {pid_file}; sleep 60"], timeout_s=30)
    assert wait_for(lambda: not alive(int(pid_file.read_text())))


# --- programs that go on ---


def test_a_program_that_goes_on_is_read_and_ended(tmp_path):
    code = "import sys, time, os\nprint(os.getpid(), flush=True)\nwhile True: print('x', flush=True); time.sleep(0.01)"
    running = shell.Running([sys.executable, "-c", code])
    heard = b""
    while heard.count(b"x") < 3:
        heard += running.read(1.0) or b""
    running.close()
    number = int(heard.split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_program_that_ends_by_itself_says_how():
    running = shell.Running([sys.executable, "-c", "import sys; sys.stderr.write('no meter\\n'); sys.exit(3)"])
    while running.read(1.0) is not None:
        pass
    assert re.search(r"ended with exit status 3\. Last lines of its stderr:\n  no meter", running.ending())
    running.close()
    with pytest.raises(ToolError, match="was not found"):
        shell.Running(["no-such-program"])
