"""What a meter says: energy over a stretch of time, with the raw samples it was computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self

How = Literal["measured", "estimated"]


@dataclass(frozen=True)
class Sample:
    """One raw value of one sensor channel; `time_s` is monotonic, half-way between before and after the read."""

    channel: str
    time_s: float
    value: int
    unit: Literal["uJ", "uW"]


@dataclass(frozen=True)
class EnergyReading:
    """Energy over `seconds`.

    joules: None exactly when the reading is not `complete`; a part of the energy is never given as if it were all.
    source: the sensor or the declaration it comes from. reason: why it is not complete; otherwise a note or empty.
    """

    joules: float | None
    seconds: float
    how: How
    source: str
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    reason: str = ""

    def __post_init__(self) -> None:
        if self.how not in ("measured", "estimated"):
            raise ValueError(f"how is {self.how!r}; allowed: measured, estimated")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"a reading lasts {self.seconds!r} s; it must be a finite time of 0 s or more")
        if self.joules is not None and not (math.isfinite(self.joules) and self.joules >= 0):
            raise ValueError(f"a reading of {self.joules!r} J; it must be finite and 0 J or more")
        if self.joules is None and not self.reason:
            raise ValueError("a reading without energy must say why")

    @property
    def complete(self) -> bool:
        """Whether the energy is known for the whole time."""
        return self.joules is not None

    @property
    def watts(self) -> float | None:
        """Average power, or None when the energy or the time is not known."""
        return self.joules / self.seconds if self.joules is not None and self.seconds > 0 else None


class Meter(Protocol):
    """Measures energy between `start` and `stop`, any number of times; leaving the context ends what still runs."""

    @property
    def kind(self) -> str:
        """One of `deploy.power.KINDS` except "auto"."""

    @property
    def source(self) -> str:
        """The sensor or declaration, for the report."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self) -> None:
        """Begin a reading. Raises RuntimeError if one is already running."""

    def stop(self) -> EnergyReading:
        """End the reading; a sensor that failed on the way gives a reading that is not complete and says why."""

    def idle(self, seconds: float) -> EnergyReading:
        """Return the energy of `seconds` of doing nothing (a sensor is really watched for that long)."""


def per_inference(reading: EnergyReading, inferences: int, idle: EnergyReading | None = None) -> EnergyReading:
    """Return the energy and time of one of `inferences`; with `idle`, only what is above the idle power.

    The result is estimated if either reading is, and not complete (saying why) if either is not, or if the device
    drew less than when idle. `reading`'s raw samples are kept.
    """
    if inferences < 1:
        raise ValueError(f"energy of {inferences} inferences; at least 1 is needed")
    readings = [reading] if idle is None else [reading, idle]
    how: How = "estimated" if any(one.how == "estimated" for one in readings) else "measured"
    source = reading.source if idle is None else f"{reading.source}, above idle ({idle.source})"
    joules, reason = _net(reading, idle)
    return EnergyReading(
        joules=None if joules is None else joules / inferences,
        seconds=reading.seconds / inferences,
        how=how,
        source=source,
        samples=reading.samples,
        reason=reason,
    )


def _net(reading: EnergyReading, idle: EnergyReading | None) -> tuple[float | None, str]:
    if reading.joules is None or idle is None:
        return reading.joules, reading.reason
    if idle.watts is None:
        return None, f"the idle power is not known: {idle.reason or 'it was watched for no time'}"
    net = reading.joules - idle.watts * reading.seconds
    if net < 0:
        return None, (
            f"the device drew {reading.joules:.3g} J in {reading.seconds:.3g} s, less than when idle "
            f"({idle.watts:.3g} W): other work ran while the idle power was measured, or the run is too short"
        )
    return net, reading.reason
