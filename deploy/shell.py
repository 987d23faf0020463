"""Starting other programs: the one module that does. Commands are built, and output is decoded, elsewhere."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.errors import InputError, ToolError

_TAIL_LINES = 15
_TAIL_CHARS = 4000
_GRACE_S = 2.0  # to drain the pipes of a killed group; a process that left the group could hold them open for ever

# Program → how to get it. Cross tools are recognised by prefix in `package_of`.
_PACKAGES: Mapping[str, str] = {
    **dict.fromkeys(("cc", "gcc", "c++", "g++", "make"), "build-essential"),
    **dict.fromkeys(("ld", "as", "ar", "nm", "size", "strip", "objdump", "objcopy", "readelf", "strings"), "binutils"),
    **dict.fromkeys(("ssh", "scp", "sftp", "ssh-keygen"), "openssh-client"),
    **dict.fromkeys(("qemu-arm", "qemu-aarch64", "qemu-riscv64", "qemu-x86_64"), "qemu-user"),
    **dict.fromkeys(("st-flash", "st-info"), "stlink-tools"),
    **dict.fromkeys(("taskset", "lscpu", "setarch"), "util-linux"),
    "clang": "clang",
    "ld.lld": "lld",
    "cmake": "cmake",
    "gdb": "gdb",
    "gdb-multiarch": "gdb-multiarch",
    "git": "git",
    "openocd": "openocd",
    "qemu-system-arm": "qemu-system-arm",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-riscv64": "qemu-system-misc",
    "qemu-system-riscv32": "qemu-system-misc",
    "qemu-system-x86_64": "qemu-system-x86",
}
_PIP_PACKAGES: Mapping[str, str] = {"pyocd": "pyocd", "esptool": "esptool", "esptool.py": "esptool"}
_CROSS_PREFIXES = (
    "arm-none-eabi",
    "aarch64-linux-gnu",
    "arm-linux-gnueabihf",
    "riscv64-unknown-elf",
    "riscv64-linux-gnu",
)


@dataclass(frozen=True)
class Completed:
    """A program that ran to its end. `returncode` is negative for a signal; `seconds` is wall-clock time."""

    command: tuple[str, ...]
    stdout_bytes: bytes
    stderr_bytes: bytes
    returncode: int
    seconds: float

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are shown as \\xNN."""
        return self.stdout_bytes.decode("utf-8", "backslashreplace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are shown as \\xNN."""
        return self.stderr_bytes.decode("utf-8", "backslashreplace")


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    package: str | None = None,
    check: bool = True,
) -> Completed:
    """Run `command` (no shell) to its end and return its output.

    env: variables added to this process's environment; messages are asked for in English so that they can be decoded.
    stdin: bytes to feed; without it the program reads an empty input, never the user's terminal.
    package: the Debian package to name when the program is missing; by default looked up in a table.
    check: whether a non-zero exit status is an error (otherwise it is a value in the result).

    Raises ToolError: the program is missing or cannot be started; it ran longer than `timeout_s` (its whole process
    group is killed and the last output shown); it failed and `check` is set.
    """
    arguments = _validated(command, timeout_s)
    started = time.monotonic()
    process = _start(arguments, cwd, {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}, package)
    try:
        stdout, stderr = process.communicate(stdin or b"", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        stdout, stderr = _kill(process)
        raise ToolError(
            f"{_shown(arguments)} did not finish within {timeout_s:g} s and was stopped; "
            f"give it more time or look at what it waits for.{_last_output(stdout, stderr)}"
        ) from None
    except BaseException:  # Ctrl-C reaches only us: the program has a process group of its own, so we must end it
        _kill(process)
        raise
    done = Completed(tuple(arguments), stdout, stderr, process.returncode, time.monotonic() - started)
    if check and done.returncode != 0:
        raise ToolError(f"{_shown(arguments)} failed: {exit_words(done.returncode)}.{_last_output(stdout, stderr)}")
    return done


class Running:
    """A program that goes on while this one does something else; `close` ends it and all that it started.

    Raises ToolError: the program is missing or cannot be started.
    """

    def __init__(self, command: Sequence[str | os.PathLike[str]]) -> None:
        self._arguments = _validated(command, 1.0)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        try:
            self._process = _start(self._arguments, None, environment, None, self._errors)
        except BaseException:
            self._errors.close()
            raise
        if self._process.stdin is not None:
            self._process.stdin.close()
            self._process.stdin = None  # which is how it knows that nothing is left to flush

    def read(self, seconds: float) -> bytes | None:
        """What it wrote to its standard output, within `seconds` at most; None once it has ended."""
        stdout = self._process.stdout
        if stdout is None or not select.select([stdout], [], [], seconds)[0]:
            return b""
        return os.read(stdout.fileno(), 1 << 16) or None

    def ending(self) -> str:
        """How it ended, with the last lines that it wrote to standard error."""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return f"{_shown(self._arguments)} closed its output"
        self._errors.seek(0)
        return f"{_shown(self._arguments)} ended with {exit_words(code)}.{_last_output(b'', self._errors.read())}"

    def close(self) -> None:
        """End it."""
        _kill(self._process)
        self._errors.close()


def which(program: str) -> Path | None:
    """Return the file that `run([program])` would start, or None if there is none on PATH."""
    found = shutil.which(program)
    return Path(found) if found else None


def require(program: str, package: str | None = None) -> Path:
    """Return the file of `program`; raises ToolError that names the package to install if it is missing."""
    found = which(program)
    if found is None:
        raise _missing(program, package)
    return found


def package_of(program: str) -> str | None:
    """Return the command that installs `program` on Debian ("apt install binutils"), or None if not known."""
    name = Path(program).name
    if name in _PACKAGES:
        return f"apt install {_PACKAGES[name]}"
    if name in _PIP_PACKAGES:
        return f"pip install {_PIP_PACKAGES[name]}"
    for prefix in _CROSS_PREFIXES:
        tool = name.removeprefix(f"{prefix}-")
        if tool != name:
            return f"apt install {_cross_package(prefix, tool)}"
    return None


def exit_words(returncode: int) -> str:
    """Say in words how a program ended: "exit status 2", "killed by SIGSEGV"."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _cross_package(prefix: str, tool: str) -> str:
    if tool in ("g++", "c++"):
        return "libstdc++-arm-none-eabi-newlib" if prefix == "arm-none-eabi" else f"g++-{prefix}"
    if tool == "gdb":
        return "gdb-multiarch"
    return f"gcc-{prefix}" if tool in ("gcc", "cc", "cpp") else f"binutils-{prefix}"


def _validated(command: Sequence[str | os.PathLike[str]], timeout_s: float) -> list[str]:
    arguments = [os.fspath(part) for part in command]
    if not arguments or not arguments[0]:
        raise InputError("the command to run is empty: name a program, for example [cc, -O2]")
    if bad := next((part for part in arguments if "\0" in part), None):
        raise InputError(f"the argument {bad!r} of {arguments[0]} contains a NUL character: remove it")
    if not timeout_s > 0:
        raise InputError(f"the time limit for {arguments[0]} is {timeout_s!r}: give a number of seconds above 0")
    return arguments


def _start(
    arguments: list[str],
    cwd: str | os.PathLike[str] | None,
    env: dict[str, str],
    package: str | None,
    errors: IO[bytes] | int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    if cwd is not None and not os.path.isdir(cwd):
        raise ToolError(f"cannot run {arguments[0]} in {os.fspath(cwd)}: no such folder")
    try:
        return subprocess.Popen(
            arguments,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # a group of its own, so that a time-out also ends what the program started
        )
    except FileNotFoundError:
        found = shutil.which(arguments[0], path=env.get("PATH"))
        if found:  # the kernel says "not found" of a script whose interpreter is missing
            raise ToolError(f"cannot run {found}: the interpreter or loader it names is missing") from None
        raise _missing(arguments[0], package) from None
    except OSError as error:
        raise ToolError(f"cannot run {arguments[0]}: {error.strerror or error}") from None


def _missing(program: str, package: str | None) -> ToolError:
    install = f"apt install {package}" if package else package_of(program)
    remedy = f"install it ({install})" if install else "install it, or put its folder on PATH"
    return ToolError(f"the program {program} was not found: {remedy}")


def _kill(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """End the whole process group and return what it had written."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired as error:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):  # flushing what the dead program never read
                    pipe.close()
        process.wait()
        return error.stdout or b"", error.stderr or b""


def _shown(arguments: list[str]) -> str:
    line = " ".join(arguments)
    return line if len(line) <= 200 else line[:200] + " …"


def _last_output(stdout: bytes, stderr: bytes) -> str:
    """Return the last lines a program wrote, indented, to append to an error; standard error if there is any."""
    for name, data in (("stderr", stderr), ("stdout", stdout)):
        lines = data.decode("utf-8", "backslashreplace").rstrip().splitlines()
        if lines:
            tail = "\n".join("  " + line for line in lines[-_TAIL_LINES:])[-_TAIL_CHARS:]
            return f" Last lines of its {name}:\n{tail}"
    return " It wrote nothing."
