"""Candidates timed on this machine, each in a process of its own that knows neither Python nor TVM.

They are built at the same time. The clock has a core to itself, as far as this program decides: whoever builds on it
stands still while it is used.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from tvm import tirx

from deploy import shell
from deploy.errors import ToolError
from deploy.host import core_count
from deploy.target import Target
from deploy.tuning.builder import Built, Crew
from deploy.tuning.farm import Farm
from deploy.tuning.reasons import LONGEST_REASON
from deploy.tuning.task import Task
from deploy.tuning.workshop import LIBRARY, SIZES, SYMBOL, Workshop, linker_of

PROGRAM = "time_kernel"
IDLE_S = 3  # a candidate that does nothing for so long waits for something that will not come
LONGEST_S = 300.0  # on the clock; the program ends itself long before, however busy the machine is
MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Measured:
    """What became of a candidate: seconds of one call, several times, or the reason why there are none."""

    seconds: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Stopwatch:
    """How a candidate is timed: `repeats` clean means of about `repeat_s` each, more where they differ.

    timeout_s: processor time that a candidate may take, for each thread. memory_bytes: all it may have.
    """

    folder: Path
    cc: str
    threads: int = 1
    repeat_s: float = 0.002
    repeats: int = 5
    timeout_s: int = 10
    memory_bytes: int = MEMORY_BYTES

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores that candidates run on: the last ones, for the first ones serve interrupts."""
        return tuple(sorted(os.sched_getaffinity(0))[-self.threads :])

    def prepare(self) -> None:
        """Compile the timing program. Raises ToolError where there is no C compiler."""
        sources = [(f"{PROGRAM}.c", files("deploy.tuning"))]
        sources += [("pool.c", files("deploy.aot"))] if self.threads > 1 else []
        for name, package in sources:
            (self.folder / name).write_bytes(package.joinpath("c", name).read_bytes())
        # Candidates find the thread pool and C's functions in the program that loads them.
        flags = ["-std=gnu11", "-O2", "-rdynamic", f"-DPOOL_THREADS={self.threads}"]
        libraries = ["-Wl,--no-as-needed", "-ldl", "-lm", "-lpthread", "-o", PROGRAM]
        command = [self.cc, *flags, *(name for name, _ in sources), *libraries]
        shell.run(command, timeout_s=60, cwd=self.folder, package="build-essential")

    def time(self, candidate: Path, best_s: float = 0.0) -> Measured:
        """Time the library in the folder `candidate`.

        best_s: seconds of the best candidate for the same task, if there is one: a clearly slower one is timed less.
        """
        sizes = json.loads((candidate / SIZES).read_text())
        program, library = str(self.folder / PROGRAM), str(candidate / LIBRARY)
        limits = [self.timeout_s * self.threads, IDLE_S, self.memory_bytes]
        plan = [self.repeat_s, self.repeats, best_s]
        cores = ",".join(map(str, self.cores))
        command = [program, library, SYMBOL, cores, *map(str, [*limits, *plan]), *sizes]
        try:
            done = shell.run(command, timeout_s=LONGEST_S, check=False)
        except ToolError as error:
            return Measured(reason=str(error)[:LONGEST_REASON])
        if done.returncode:
            return Measured(reason=self._explained(done, candidate))
        return decode(done.stdout)

    def _explained(self, done: shell.Completed, candidate: Path) -> str:
        """Why the program ended without an answer, in words that are the same for every candidate."""
        if done.returncode == -signal.SIGXCPU:
            return f"ran longer than {self.timeout_s} s"
        if done.returncode == -signal.SIGALRM:
            return f"hung: did nothing for {IDLE_S} s"
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

    @property
    def note(self) -> str:
        """What there is to tell of the device so far."""

    def measure(self, funcs: Sequence[tirx.PrimFunc], tasks: Sequence[Task]) -> Iterator[Measured]:
        """What becomes of each scheduled kernel, of the task beside it."""


class Building(Protocol):
    """A batch that is being built."""

    def built(self, number: int) -> Built:
        """The candidate of that number, once it is built or given up."""

    def paused(self, cores: Sequence[int]) -> AbstractContextManager[None]:
        """Within this block nothing is built on these cores."""


@dataclass
class Bench:
    """Where candidates are built and timed, and the best time of each task so far.

    executor: who builds them, on other machines; without it they are built here.
    """

    workshop: Workshop
    stopwatch: Stopwatch
    executor: Executor | None = None
    largest_round: int = 0
    note: str = ""
    best: dict[int, tuple[Task, float]] = field(default_factory=dict)

    @classmethod
    def open(cls, target: Target, folder: Path, executor: Executor | None = None) -> Bench:
        """Prepare both in `folder`. Raises ToolError where there is no C compiler."""
        stopwatch = Stopwatch(folder, target.toolchain.cc, target.threads)
        stopwatch.prepare()
        workshop = Workshop(folder, target, core_count(), linker_of(target.toolchain.cc))
        workshop.prepare()
        return cls(workshop, stopwatch, executor)

    def measure(self, funcs: Sequence[tirx.PrimFunc], tasks: Sequence[Task] = ()) -> Iterator[Measured]:
        """Build and time scheduled kernels, each of the task beside it if there are any."""
        with self._batch(funcs) as batch:
            for number in range(len(funcs)):
                yield self._timed(batch, number, tasks[number] if tasks else None)

    def _batch(self, funcs: Sequence[tirx.PrimFunc]) -> AbstractContextManager[Building]:
        return Crew(self.workshop, funcs) if self.executor is None else Farm(self.workshop, self.executor, funcs)

    def _timed(self, batch: Building, number: int, task: Task | None) -> Measured:
        """A candidate, once it is built, timed."""
        built = batch.built(number)
        try:
            if built.reason:
                return Measured(reason=built.reason)
            best_s = self.best[id(task)][1] if id(task) in self.best else 0.0
            with batch.paused(self.stopwatch.cores):
                measured = self.stopwatch.time(built.folder, best_s)
        finally:
            shutil.rmtree(built.folder, ignore_errors=True)
        if task is not None and measured.seconds:
            fastest = min(measured.seconds)
            self.best[id(task)] = (task, min(best_s or fastest, fastest))
        return measured
