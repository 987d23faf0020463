"""Candidates → shared libraries: each compiled in a fork of this process, where TVM is loaded already.

A candidate that crashes the compiler or takes too long costs only itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol, TypeVar

from tvm import tirx
from tvm.target import Target as TvmTarget

from deploy import shell
from deploy.kernels.buffers import buffer_bytes
from deploy.kernels.plain import build_object, to_plain
from deploy.target import Target

SYMBOL = "candidate"
LIBRARY = "candidate.so"
SIZES = "sizes.json"
POLL_S = 0.002
LINK_S = 20.0
LONGEST_REASON = 300
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
Job = TypeVar("Job", contravariant=True)


class Workplace(Protocol[Job]):
    """Where candidates are compiled: a folder, how many at once, and for how long each at most."""

    @property
    def folder(self) -> Path: ...

    @property
    def workers(self) -> int: ...

    @property
    def timeout_s(self) -> float: ...

    def compile(self, job: Job, folder: Path) -> None:
        """Compile one candidate into `folder`, in a process of its own. May raise anything."""


@dataclass(frozen=True)
class Workshop:
    """Where candidates of one target are built: a folder, the target, and how many compile at once."""

    folder: Path
    target: Target
    workers: int
    timeout_s: float = 60.0

    def prepare(self) -> None:
        """Compile once what every candidate is linked with. Raises ToolError where there is no C compiler."""
        if self.target.threads > 1:
            pool = files("deploy.aot").joinpath("c", "pool.c")
            (self.folder / "pool.c").write_bytes(pool.read_bytes())
            threads = f"-DPOOL_THREADS={self.target.threads}"
            flags = ["-std=gnu11", "-O2", "-fPIC", "-c", threads, "pool.c", "-o", "pool.o"]
            shell.run([self.target.toolchain.cc, *flags], timeout_s=60, cwd=self.folder, package="build-essential")

    def compile(self, job: tirx.PrimFunc, folder: Path) -> None:
        """Build one scheduled kernel into `folder`. Raises ToolError where that fails, and whatever TVM raises."""
        tvm_target = TvmTarget(self.target.tvm)
        kernel = to_plain(job, SYMBOL, tvm_target)
        build_object([kernel], tvm_target, str(folder / "candidate.o"))
        sizes = [f"{_fill(b)}{buffer_bytes(b)}" for b in job.params]
        sizes += [f"z{nbytes}" for nbytes in kernel.workspace_bytes]
        (folder / SIZES).write_text(json.dumps(sizes))
        pool = [str(self.folder / "pool.o"), "-lpthread"] if self.target.threads > 1 else []
        command = [self.target.toolchain.cc, "-shared", "candidate.o", *pool, "-lm", "-o", LIBRARY]
        # Shorter than what the parent allows, so that a linker that hangs is ended by who started it.
        shell.run(command, timeout_s=min(LINK_S, self.timeout_s / 2), cwd=folder)


@dataclass(frozen=True)
class Built:
    """A candidate's folder, and the reason why it holds no library, empty where it does."""

    folder: Path
    reason: str


def _fill(buffer: tirx.Buffer) -> str:
    """How the timing program fills a buffer: floats with numbers, anything else with zeros."""
    return "f" if str(buffer.ty.dtype) == "float32" else "z"


def told(error: BaseException) -> str:
    """An error on one line: its first, and its last where there are more, which is where programs say what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}")[:LONGEST_REASON]


def _child(workshop: Workplace[Job], job: Job, folder: Path) -> None:
    """The forked process: compile, leave the library or a reason, and never return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also where it has no time to: nobody would look at the result
        workshop.compile(job, folder)
        code = 0
    except BaseException as error:  # whatever it was, it must not unwind into the parent's code
        (folder / "error").write_text(told(error))
    finally:
        os._exit(code)


def _fork(workshop: Workplace[Job], job: Job, folder: Path, running: dict[int, float]) -> int:
    """Start compiling; the process, which is in `running` with its deadline before Ctrl-C can come between."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pid = os.fork()
        if pid == 0:
            _child(workshop, job, folder)
        running[pid] = time.monotonic() + workshop.timeout_s
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _reap(pid: int, deadline: float, timeout_s: float) -> str | None:
    """Whether a child is done: nothing while it runs, else an empty text or the reason of its end."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done == 0:
        if time.monotonic() < deadline:
            return None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return f"compiling took longer than {timeout_s:g} s"
    code = os.waitstatus_to_exitcode(status)
    return "" if code == 0 else f"compiling ended with {shell.exit_words(code)}"


def compile_all(workshop: Workplace[Job], jobs: Sequence[Job]) -> list[Built]:
    """Compile each candidate in a folder of its own; no process is left when this returns or raises."""
    folders = [Path(tempfile.mkdtemp(dir=workshop.folder)) for _ in jobs]
    reasons = [""] * len(jobs)
    waiting = list(range(len(jobs)))[::-1]
    running: dict[int, float] = {}
    owner: dict[int, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workshop.workers:
                index = waiting.pop()
                owner[_fork(workshop, jobs[index], folders[index], running)] = index
            for pid, deadline in list(running.items()):
                outcome = _reap(pid, deadline, workshop.timeout_s)
                if outcome is not None:
                    del running[pid]
                    told = folders[owner[pid]] / "error"
                    reasons[owner[pid]] = told.read_text() if told.exists() else outcome
            time.sleep(POLL_S)
    finally:
        for pid in running:
            _end(pid)
    return [Built(folder, reason) for folder, reason in zip(folders, reasons, strict=True)]


def _end(pid: int) -> None:
    """Kill a child and wait for its end; it may have ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
