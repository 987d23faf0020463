"""What every device does: run a compiled model on given samples, time it, and say what memory and energy it took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from deploy.budget import HOW
from deploy.errors import DeviceError, InputError
from deploy.model_spec import TensorSpec
from deploy.power import EnergyReading

MAX_SAMPLES = 1_000_000
Condition = str | int | float


@dataclass(frozen=True)
class RunPlan:
    """How long to run. Raises InputError for numbers that make no sense.

    warmup_s: untimed running first. seconds: the samples are spread over this time; at least `min_samples` and at most
    `max_samples` are taken. energy_seconds: how long to run for the power meter, None for no energy reading.
    timeout_s: for everything before that; the model is stopped then. max_rounds: how often a noisy
    measurement is made in all (see `deploy.measure`).
    """

    warmup_s: float = 0.3
    seconds: float = 2.0
    min_samples: int = 30
    max_samples: int = 2000
    energy_seconds: float | None = None
    timeout_s: float = 120.0
    max_rounds: int = 3

    def __post_init__(self) -> None:
        times = {"warm-up": self.warmup_s, "measuring time": self.seconds, "time limit": self.timeout_s}
        if self.energy_seconds is not None:
            times["time for the power meter"] = self.energy_seconds
        for name, value in times.items():
            if not (math.isfinite(value) and (value > 0 or (name == "warm-up" and value == 0))):
                raise InputError(f"the {name} is {value!r} s: give a time above 0 s")
        if not 1 <= self.min_samples <= self.max_samples <= MAX_SAMPLES:
            raise InputError(
                f"between {self.min_samples} and {self.max_samples} samples were asked for: "
                f"give two numbers from 1 to {MAX_SAMPLES}, the larger one last"
            )
        if self.timeout_s <= self.warmup_s + self.seconds:
            raise InputError(
                f"the time limit of {self.timeout_s:g} s is not longer than warm-up and measuring together "
                f"({self.warmup_s + self.seconds:g} s): raise it"
            )
        if not 1 <= self.max_rounds <= 100:
            raise InputError(f"{self.max_rounds} rounds of measuring were asked for: give a number from 1 to 100")


@dataclass(frozen=True, eq=False)
class DeviceRun:
    """What a device found out. Raises DeviceError for numbers that cannot be.

    outputs: for each sample, one array for each output of the model. samples_s: seconds of one inference each, in the
    order taken; a sample is the average of `batch` inferences in a row. how: measured, emulated or estimated.
    inferences: how often the model ran in all, the energy run not counted.
    peak_rss_bytes: of a process that only loads and runs the library, baseline_rss_bytes: of that process before it
    loaded it; None where the device cannot tell. threads: what the library was compiled for.
    energy: of the `energy_inferences` inferences that took `energy_busy_s` (the reading is longer by the time it takes
    to start the program); idle: of the device doing nothing, before. None when they were not asked for.
    conditions: what may have influenced the times, as far as it could be read: `pinned_cpus`, `governor`,
    `frequency_hz` and `max_frequency_hz` of those CPUs, `load_average` before, `temperature_c` after,
    `clock_ns` (cost of reading the clock, not subtracted).
    Of an emulated microcontroller, exact: instructions of each sample's inference, layers: those of each call of a
    kernel for the first sample, stack_bytes: the most that an inference used. Of a board there are no instructions,
    and layers are cycles.
    """

    outputs: list[list[NDArray[Any]]]
    samples_s: tuple[float, ...]
    how: str
    batch: int
    inferences: int
    arena_bytes: int
    weight_bytes: int
    threads: int
    peak_rss_bytes: int | None = None
    baseline_rss_bytes: int | None = None
    energy: EnergyReading | None = None
    idle: EnergyReading | None = None
    energy_inferences: int = 0
    energy_busy_s: float = 0.0
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    instructions: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    stack_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ValueError(f"a run cannot be {self.how!r}; allowed: {', '.join(HOW)}")
        if not self.samples_s or not all(math.isfinite(sample) and sample > 0 for sample in self.samples_s):
            raise DeviceError("the device gave no times, or times that are not above 0 s: its clock may be broken")
        counts = (self.arena_bytes, self.weight_bytes, self.peak_rss_bytes or 0, self.energy_inferences)
        if min(self.batch, self.inferences, self.threads) < 1 or min(counts) < 0:
            raise DeviceError("the device reported sizes or counts that cannot be: its program and ours may not match")


class Device(Protocol):
    """A place where libraries run; entering reserves and prepares it, leaving gives it back."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(
        self,
        library: Path,
        prefix: str,
        inputs: Sequence[Sequence[NDArray[Any]]],
        outputs: Sequence[TensorSpec],
        plan: RunPlan,
    ) -> DeviceRun:
        """Run the model `prefix` of `library` once on each sample, then time it on the first one.

        inputs: for each sample, one array for each input of the model, of its shape and type (`deploy.measure` checks
        that); none at all to only time it, on zeros. outputs: what the model gives.

        Raises DeviceError when the library cannot be loaded, crashes, does not finish in `plan.timeout_s`, returns an
        error or does not fit the inputs and outputs; the device can be used again afterwards. A power meter that fails
        gives a reading that is not complete and says why. ToolError: this machine lacks a program or disk space.
        """
