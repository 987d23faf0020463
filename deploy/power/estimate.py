"""Meters without a sensor: a declared power times the time, and none at all."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Self

from deploy.errors import InputError
from deploy.power.reading import EnergyReading
from deploy.power.trace import Edge, Marks
from deploy.units import render


class _Timer:
    """The part of a meter that needs only a clock."""

    def __init__(self, kind: str, source: str) -> None:
        self.kind = kind
        self.source = source
        self._started_s: float | None = None
        self._marks = Marks()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started_s = None

    def start(self) -> None:
        """Begin a reading; see `Meter.start`."""
        if self._started_s is not None:
            raise RuntimeError("the meter is already running")
        self._started_s, self._marks = time.monotonic(), Marks()

    def mark(self, edge: Edge, at_s: float | None = None, slack_s: float = 0.0) -> None:
        """Begin or end a window; see `Meter.mark`."""
        if self._started_s is None:
            raise RuntimeError("the meter was not started")
        self._marks.mark(edge, time.monotonic() if at_s is None else at_s, slack_s)

    def _elapsed_s(self) -> float:
        if self._started_s is None:
            raise RuntimeError("the meter was not started")
        elapsed = time.monotonic() - self._started_s
        self._started_s = None
        marked = self._marks.windows
        return math.fsum(window.seconds for window in marked) if marked else elapsed


class EstimateMeter(_Timer):
    """Energy from the power that the target declares: never measured, and labelled so.

    note: why there is no measurement; goes into every reading. Raises InputError for a power that makes no sense.
    """

    def __init__(self, active_w: float, idle_w: float | None = None, note: str = "") -> None:
        for name, watts in (("active", active_w), ("idle", idle_w)):
            if watts is not None and not (math.isfinite(watts) and watts >= 0):
                raise InputError(f"the {name} power is {watts!r} W: give a power of 0 W or more")
        if active_w == 0 or (idle_w is not None and idle_w > active_w):
            idle = "" if idle_w is None else f" and the idle power {render(idle_w, 'power')}"
            raise InputError(
                f"active power is {render(active_w, 'power')}{idle}: it must be above 0 W and not below the idle power"
            )
        super().__init__("estimate", f"declared active power {render(active_w, 'power')}")
        self.active_w = active_w
        self.idle_w = idle_w
        self.note = note

    def stop(self) -> EnergyReading:
        """End the reading; see `Meter.stop`."""
        seconds = self._elapsed_s()
        return estimate(self.active_w, seconds, self.source, self.note)

    def idle(self, seconds: float) -> EnergyReading:
        """Return the energy of `seconds` at the declared idle power, without waiting; not complete if none is."""
        if self.idle_w is None:
            return EnergyReading(None, seconds, "estimated", "declared idle power", reason="no idle power is declared")
        return estimate(self.idle_w, seconds, f"declared idle power {render(self.idle_w, 'power')}", self.note)


class NoMeter(_Timer):
    """Measures nothing and says why, so that a run without a meter gives NOT MEASURED and not an error."""

    def __init__(self, reason: str) -> None:
        super().__init__("none", "no meter")
        self.reason = reason

    def stop(self) -> EnergyReading:
        """End the reading, which has no energy."""
        return EnergyReading(None, self._elapsed_s(), "measured", self.source, reason=self.reason)

    def idle(self, seconds: float) -> EnergyReading:
        """Return a reading without energy, without waiting."""
        return EnergyReading(None, seconds, "measured", self.source, reason=self.reason)


def estimate(watts: float, seconds: float, source: str, note: str = "") -> EnergyReading:
    """Return `watts` for `seconds` as energy, labelled an estimate; for devices that keep their own time."""
    return EnergyReading(watts * seconds, seconds, "estimated", source, reason=note)
