"""Candidates timed on this machine, each in a process of its own that knows neither Python nor TVM."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from tvm import tirx

from deploy import shell
from deploy.errors import ToolError
from deploy.host import core_count
from deploy.target import Target
from deploy.tuning.builder import LIBRARY, LONGEST_REASON, SIZES, SYMBOL, Workshop, compile_all
from deploy.tuning.task import Task

PROGRAM = "time_kernel"
SLACK_S = 5.0  # the program ends itself when its time is up; this long after that it is ended
SIGALRM = -14


@dataclass(frozen=True)
class Measured:
    """What became of a candidate: seconds of one call, several times, or the reason why there are none."""

    seconds: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Stopwatch:
    """How a candidate is timed: `repeats` means, together about `min_seconds` of running, within `timeout_s`."""

    folder: Path
    cc: str
    min_seconds: float = 0.03
    repeats: int = 5
    timeout_s: int = 10

    def prepare(self) -> None:
        """Compile the timing program. Raises ToolError where there is no C compiler."""
        source = files("deploy.tuning").joinpath("c", f"{PROGRAM}.c")
        (self.folder / f"{PROGRAM}.c").write_bytes(source.read_bytes())
        command = [self.cc, "-std=gnu11", "-O2", f"{PROGRAM}.c", "-ldl", "-o", PROGRAM]
        shell.run(command, timeout_s=60, cwd=self.folder, package="build-essential")

    def time(self, candidate: Path) -> Measured:
        """Time the library in the folder `candidate`."""
        sizes = json.loads((candidate / SIZES).read_text())
        program, library = str(self.folder / PROGRAM), str(candidate / LIBRARY)
        limits = [str(self.timeout_s), str(self.min_seconds), str(self.repeats)]
        command = [program, library, SYMBOL, *limits, *sizes]
        try:
            done = shell.run(command, timeout_s=self.timeout_s + SLACK_S, check=False)
        except ToolError as error:
            return Measured(reason=str(error)[:LONGEST_REASON])
        if done.returncode:
            return Measured(reason=self._explained(done, candidate))
        return decode(done.stdout)

    def _explained(self, done: shell.Completed, candidate: Path) -> str:
        """Why the program ended without an answer, in words that are the same for every candidate."""
        if done.returncode == SIGALRM:
            return f"ran longer than {self.timeout_s} s"
        if done.returncode < 0:
            return f"crashed: {shell.exit_words(done.returncode)}"
        said = done.stderr.replace(f"{candidate}/", "").strip().splitlines() or [shell.exit_words(done.returncode)]
        return said[-1][:LONGEST_REASON]


def decode(text: str) -> Measured:
    """The timing program's output."""
    try:
        seconds = tuple(float(line) for line in text.split())
    except ValueError:
        seconds = ()
    if not seconds or not all(math.isfinite(s) and s > 0 for s in seconds):
        return Measured(reason=f"the timing program answered nonsense: {text[:80]!r}")
    return Measured(seconds)


class Measuring(Protocol):
    """Where candidates are built and measured; `largest_round` of several kernels at once, or 0: of one at a time."""

    @property
    def largest_round(self) -> int: ...

    def measure(self, funcs: Sequence[tirx.PrimFunc], tasks: Sequence[Task]) -> Iterator[Measured]:
        """What becomes of each scheduled kernel, of the task beside it."""


@dataclass(frozen=True)
class Bench:
    """Where candidates are built and timed."""

    workshop: Workshop
    stopwatch: Stopwatch
    largest_round: int = 0

    @classmethod
    def open(cls, target: Target, folder: Path) -> Bench:
        """Prepare both in `folder`. Raises ToolError where there is no C compiler."""
        bench = cls(Workshop(folder, target, core_count()), Stopwatch(folder, target.toolchain.cc))
        bench.workshop.prepare()
        bench.stopwatch.prepare()
        return bench

    def measure(self, funcs: Sequence[tirx.PrimFunc], tasks: Sequence[Task] = ()) -> Iterator[Measured]:
        """Build all scheduled kernels, then time them one after the other on a machine that is quiet again."""
        for built in compile_all(self.workshop, funcs):
            yield Measured(reason=built.reason) if built.reason else self.stopwatch.time(built.folder)
            shutil.rmtree(built.folder, ignore_errors=True)
