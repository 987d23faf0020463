"""What a meter says: energy over a stretch of time, with the raw samples it was computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Protocol, Self

from deploy.power.trace import Edge, MeterFacts, Trace

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
    samples: raw, or means where a meter takes very many. low, high: the 95 % interval of the joules, None where it is
    not known. peak_w: the highest power that was seen, at the meter's own rate. trace: everything the meter saw, which
    is not part of a report.
    """

    joules: float | None
    seconds: float
    how: How
    source: str
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    reason: str = ""
    low: float | None = None
    high: float | None = None
    peak_w: float | None = None
    meter: MeterFacts | None = None
    trace: Trace | None = field(default=None, repr=False, compare=False, metadata={"report": False})

    def __post_init__(self) -> None:
        if self.how not in ("measured", "estimated"):
            raise ValueError(f"how is {self.how!r}; allowed: measured, estimated")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"a reading lasts {self.seconds!r} s; it must be a finite time of 0 s or more")
        if self.joules is not None and not (math.isfinite(self.joules) and self.joules >= 0):
            raise ValueError(f"a reading of {self.joules!r} J; it must be finite and 0 J or more")
        if self.joules is None and not self.reason:
            raise ValueError("a reading without energy must say why")
        bounds = [value for value in (self.low, self.joules, self.high) if value is not None]
        if (self.low is None) != (self.high is None) or (self.low is not None and self.joules is None):
            raise ValueError("a reading has both bounds or none, and none without energy")
        if not all(math.isfinite(value) for value in bounds) or bounds != sorted(bounds):
            raise ValueError(f"a reading of {self.joules!r} J is not within its own interval: {bounds}")
        if self.peak_w is not None and not (math.isfinite(self.peak_w) and self.peak_w >= 0):
            raise ValueError(f"a peak of {self.peak_w!r} W; it must be finite and 0 W or more")

    @property
    def complete(self) -> bool:
        """Whether the energy is known for the whole time."""
        return self.joules is not None

    @property
    def watts(self) -> float | None:
        """Average power, or None when the energy or the time is not known."""
        return self.joules / self.seconds if self.joules is not None and self.seconds > 0 else None


class Meter(Protocol):
    """Measures energy between `start` and `stop`, any number of times; leaving the context ends what still runs.

    What counts is the windows that `mark` tells of, or everything where there are none.
    """

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

    def mark(self, edge: Edge, at_s: float | None = None, slack_s: float = 0.0) -> None:
        """Begin or end a window, now or at a time of `time.monotonic` since `start`; slack_s: how far off that may be.

        Raises RuntimeError: the meter does not run, or the window has begun already, or has not.
        """

    def stop(self) -> EnergyReading:
        """End the reading; a sensor that failed on the way gives a reading that is not complete and says why."""

    def idle(self, seconds: float) -> EnergyReading:
        """Return the energy of `seconds` of doing nothing (a sensor is really watched for that long)."""


def per_inference(reading: EnergyReading, inferences: int, idle: EnergyReading | None = None) -> EnergyReading:
    """Return the energy and time of one of `inferences`; with `idle`, only what is above the idle power.

    The result is estimated if either reading is, and not complete (saying why) if either is not, or if the device
    drew less than when idle. `reading`'s raw samples and peak are kept, its interval and the idle power's are joined.
    """
    if inferences < 1:
        raise ValueError(f"energy of {inferences} inferences; at least 1 is needed")
    readings = [reading] if idle is None else [reading, idle]
    how: How = "estimated" if any(one.how == "estimated" for one in readings) else "measured"
    source = reading.source if idle is None else f"{reading.source}, above idle ({idle.source})"
    joules, reason = _net(reading, idle)
    low, high = _bounds(reading, idle, joules)
    return replace(
        reading,
        joules=None if joules is None else joules / inferences,
        seconds=reading.seconds / inferences,
        how=how,
        source=source,
        reason=reason,
        low=None if low is None else low / inferences,
        high=None if high is None else high / inferences,
    )


def joined(before: EnergyReading, after: EnergyReading) -> EnergyReading:
    """Return two readings of the same idle device as one; not complete if either is not.

    Where their powers differ, both lie within the interval: the device did not come to rest, or something else ran.
    """
    seconds = before.seconds + after.seconds
    lost = next((one for one in (before, after) if not one.complete), None)
    if lost is not None or before.watts is None or after.watts is None:
        reason = lost.reason if lost is not None else "the idle device was watched for no time"
        return EnergyReading(None, seconds, before.how, before.source, before.samples, reason)
    joules = (before.joules or 0.0) + (after.joules or 0.0)
    if before.how == "estimated":
        return replace(before, joules=joules, seconds=seconds)
    half = [
        one.high / one.seconds - one.watts for one in (before, after) if one.high is not None and one.watts is not None
    ]
    apart = max(abs(one - joules / seconds) for one in (before.watts, after.watts))
    off = (apart + max(half, default=0.0)) * seconds
    peak = max(before.peak_w or 0.0, after.peak_w or 0.0)
    return replace(
        before,
        joules=joules,
        seconds=seconds,
        samples=before.samples + after.samples,
        reason=before.reason or after.reason,
        low=max(0.0, joules - off),
        high=joules + off,
        peak_w=peak,
        trace=None,
    )


def _bounds(
    reading: EnergyReading, idle: EnergyReading | None, joules: float | None
) -> tuple[float | None, float | None]:
    """The interval of what is above idle; none where the reading has none."""
    if joules is None or reading.joules is None or reading.low is None or reading.high is None:
        return None, None
    if idle is None:
        return reading.low, reading.high
    if idle.joules is None or idle.low is None or idle.high is None:
        return max(0.0, joules - (reading.joules - reading.low)), joules + (reading.high - reading.joules)
    scale = reading.seconds / idle.seconds
    down = math.hypot(reading.joules - reading.low, (idle.high - idle.joules) * scale)
    up = math.hypot(reading.high - reading.joules, (idle.joules - idle.low) * scale)
    return max(0.0, joules - down), joules + up


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
