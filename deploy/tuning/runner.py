"""Candidates timed on this machine, each in a process of its own that knows neither Python nor TVM."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from deploy import shell
from deploy.errors import DeployError
from deploy.tuning.builder import LIBRARY, SIZES, SYMBOL

PROGRAM = "time_kernel"


@dataclass(frozen=True)
class Stopwatch:
    """How a candidate is timed: `repeats` means, together at least `min_seconds` of running."""

    folder: Path
    cc: str
    min_seconds: float = 0.05
    repeats: int = 5
    timeout_s: float = 10.0

    def prepare(self) -> None:
        """Compile the timing program. Raises ToolError where there is no C compiler."""
        source = files("deploy.tuning").joinpath("c", f"{PROGRAM}.c")
        (self.folder / f"{PROGRAM}.c").write_bytes(source.read_bytes())
        command = [self.cc, "-std=gnu11", "-O2", f"{PROGRAM}.c", "-ldl", "-o", PROGRAM]
        shell.run(command, timeout_s=60, cwd=self.folder, package="build-essential")

    def time(self, candidate: Path) -> list[float]:
        """Seconds of one call, `repeats` times. Raises DeployError where the candidate fails or hangs."""
        sizes = json.loads((candidate / SIZES).read_text())
        program, library = str(self.folder / PROGRAM), str(candidate / LIBRARY)
        limits = [str(self.min_seconds), str(self.repeats)]
        done = shell.run([program, library, SYMBOL, *limits, *sizes], timeout_s=self.timeout_s)
        return decode(done.stdout)


def decode(text: str) -> list[float]:
    """The timing program's output as seconds. Raises DeployError where it is anything else."""
    try:
        seconds = [float(line) for line in text.split()]
    except ValueError:
        seconds = []
    if not seconds or not all(math.isfinite(s) and s > 0 for s in seconds):
        raise DeployError(f"the timing program answered nonsense: {text[:80]!r}")
    return seconds


@derived_object
class Future(ms.runner.PyRunnerFuture):  # type: ignore[misc]
    """A result that is there already: candidates are timed one at a time."""

    def __init__(self, result: ms.runner.RunnerResult) -> None:
        super().__init__()
        self._result = result

    def done(self) -> bool:
        return True

    def result(self) -> ms.runner.RunnerResult:
        return self._result


@derived_object
class Runner(ms.runner.PyRunner):  # type: ignore[misc]
    """MetaSchedule's view of a stopwatch."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.stopwatch = stopwatch

    def run(self, runner_inputs: list[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        return [Future(self._result(Path(item.artifact_path))) for item in runner_inputs]

    def _result(self, candidate: Path) -> ms.runner.RunnerResult:
        try:
            return ms.runner.RunnerResult(self.stopwatch.time(candidate), None)
        except DeployError as error:
            return ms.runner.RunnerResult(None, str(error))
        finally:
            shutil.rmtree(candidate, ignore_errors=True)
