"""Candidates → shared libraries: each compiled in a fork of this process, where TVM is loaded already.

A candidate that crashes the compiler or takes too long costs only itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target as TvmTarget

from deploy import shell
from deploy.errors import DeployError
from deploy.kernels.buffers import buffer_bytes
from deploy.kernels.plain import build_object, to_plain
from deploy.target import Target

SYMBOL = "candidate"
LIBRARY = "candidate.so"
SIZES = "sizes.json"
POLL_S = 0.002


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

    def compile(self, func: tirx.PrimFunc, folder: Path) -> None:
        """Build one scheduled kernel into `folder`."""
        tvm_target = TvmTarget(self.target.tvm)
        kernel = to_plain(func, SYMBOL, tvm_target)
        build_object([kernel], tvm_target, str(folder / "candidate.o"))
        sizes = [f"{_fill(b)}{buffer_bytes(b)}" for b in func.params]
        sizes += [f"z{nbytes}" for nbytes in kernel.workspace_bytes]
        (folder / SIZES).write_text(json.dumps(sizes))
        pool = [str(self.folder / "pool.o"), "-lpthread"] if self.target.threads > 1 else []
        command = [self.target.toolchain.cc, "-shared", "candidate.o", *pool, "-lm", "-o", LIBRARY]
        shell.run(command, timeout_s=self.timeout_s, cwd=folder)


def _fill(buffer: tirx.Buffer) -> str:
    """How the timing program fills a buffer: floats with numbers, anything else with zeros."""
    return "f" if str(buffer.ty.dtype) == "float32" else "z"


def _child(workshop: Workshop, func: tirx.PrimFunc, folder: Path) -> None:
    """The forked process: compile, leave the library or a reason, and never return."""
    code = 0
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
        workshop.compile(func, folder)
    except BaseException as error:  # whatever it was, it must not unwind into the parent's code
        code = 1
        first = str(error).strip().splitlines() or [type(error).__name__]
        (folder / "error").write_text(first[-1] if not isinstance(error, DeployError) else str(error))
    finally:
        os._exit(code)


def _reap(pid: int, deadline: float) -> str | None:
    """Whether a child is done: nothing while it runs, else an empty text or the reason of its end."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done == 0:
        if time.monotonic() < deadline:
            return None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "compiling took too long"
    code = os.waitstatus_to_exitcode(status)
    return "" if code == 0 else f"the compiler ended with {shell.exit_words(code)}"


def compile_all(workshop: Workshop, funcs: list[tirx.PrimFunc]) -> list[tuple[Path, str]]:
    """A folder for each candidate, and the reason why it holds no library, empty where it does."""
    folders = [Path(tempfile.mkdtemp(dir=workshop.folder)) for _ in funcs]
    reasons = [""] * len(funcs)
    waiting = list(range(len(funcs)))[::-1]
    running: dict[int, tuple[int, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workshop.workers:
                index = waiting.pop()
                pid = os.fork()
                if pid == 0:
                    _child(workshop, funcs[index], folders[index])
                running[pid] = (index, time.monotonic() + workshop.timeout_s)
            for pid, (index, deadline) in list(running.items()):
                outcome = _reap(pid, deadline)
                if outcome is not None:
                    del running[pid]
                    told = folders[index] / "error"
                    reasons[index] = told.read_text() if told.exists() else outcome
            time.sleep(POLL_S)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return list(zip(folders, reasons, strict=True))


@derived_object
class Builder(ms.builder.PyBuilder):  # type: ignore[misc]
    """MetaSchedule's view of `compile_all`."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__()
        self.workshop = workshop

    def build(self, build_inputs: list[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        results = []
        for folder, reason in compile_all(self.workshop, [item.mod["main"] for item in build_inputs]):
            if reason:
                shutil.rmtree(folder, ignore_errors=True)
                results.append(ms.builder.BuilderResult(None, reason))
            else:
                results.append(ms.builder.BuilderResult(str(folder), None))
        return results
