"""Power over time as a meter saw it, the windows in which the model ran, and the energy of such a window. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Edge = Literal["begin", "end"]
_ULP_S = 1e-9  # what times computed in different ways differ by


@dataclass(frozen=True)
class MeterFacts:
    """What a figure depends on beside the device.

    rate_hz: samples a second, None where the meter has no fixed rate. voltage_v: of the supply. rails: what was
    watched. wiring: a note. accuracy: the maker's, as a fraction of the reading; None where nobody stated it.
    """

    meter: str
    rate_hz: float | None = None
    voltage_v: float | None = None
    rails: tuple[str, ...] = ()
    wiring: str = ""
    accuracy: float | None = None


@dataclass(frozen=True)
class Window:
    """A stretch of this computer's monotonic clock. slack_s: how far off each end may be."""

    begin_s: float
    end_s: float
    slack_s: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.begin_s) and math.isfinite(self.end_s) and self.begin_s <= self.end_s):
            raise ValueError(f"a window from {self.begin_s!r} s to {self.end_s!r} s; it must end after it begins")
        if not (math.isfinite(self.slack_s) and self.slack_s >= 0):
            raise ValueError(f"the ends of a window are off by {self.slack_s!r} s; it must be 0 s or more")

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end_s - self.begin_s


class Marks:
    """Collects the windows that a meter is told of while it runs."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self._begun: tuple[float, float] | None = None

    def mark(self, edge: Edge, at_s: float, slack_s: float = 0.0) -> None:
        """Begin or end a window. Raises RuntimeError: it has begun already, or has not."""
        if (edge == "begin") == (self._begun is not None):
            raise RuntimeError(f"a window cannot {edge} now: it has{'' if edge == 'begin' else ' not'} begun")
        if self._begun is None:
            self._begun = at_s, slack_s
            return
        (begin, slack), self._begun = self._begun, None
        self.windows.append(Window(begin, at_s, max(slack, slack_s)))


@dataclass(frozen=True, eq=False)
class Trace:
    """Samples at increasing times of the monotonic clock, and the windows of interest.

    joules: the energy since the first sample, which is what everything is computed from. watts: at each sample; of a
    counter of energy the mean since the sample before. gaps: stretches of which samples are missing. problem: why none
    of it counts, or empty.
    """

    times_s: Array
    watts: Array
    joules: Array
    facts: MeterFacts
    windows: tuple[Window, ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()
    problem: str = ""
    counted: bool = field(default=False)

    def __post_init__(self) -> None:
        if not len(self.times_s) == len(self.watts) == len(self.joules):
            raise ValueError(f"{len(self.times_s)} times, {len(self.watts)} powers and {len(self.joules)} energies")
        if len(self.times_s) > 1 and float(np.min(np.diff(self.times_s))) < 0:
            raise ValueError("time goes backwards in the samples")

    @classmethod
    def of_power(cls, times_s: Any, watts: Any, facts: MeterFacts, **more: Any) -> Self:
        """Samples of power, joined by straight lines."""
        times, power = np.asarray(times_s, np.float64), np.asarray(watts, np.float64)
        steps = np.diff(times) * (power[1:] + power[:-1]) / 2
        return cls(times, power, np.concatenate([np.zeros(min(1, len(times))), np.cumsum(steps)]), facts, **more)

    @classmethod
    def of_counter(cls, times_s: Any, joules: Any, facts: MeterFacts, **more: Any) -> Self:
        """Samples of a counter of energy that only increases: between two of them the power is their mean."""
        times, energy = np.asarray(times_s, np.float64), np.asarray(joules, np.float64)
        means = np.diff(energy) / np.maximum(np.diff(times), _ULP_S)
        watts = np.concatenate([means[:1], means]) if len(means) else np.zeros(len(times))
        return cls(times, watts, energy - (energy[0] if len(energy) else 0.0), facts, counted=True, **more)

    @property
    def seconds(self) -> float:
        """From the first sample to the last."""
        return float(self.times_s[-1] - self.times_s[0]) if len(self.times_s) else 0.0

    @property
    def interval_s(self) -> float:
        """The usual time between two samples."""
        return float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else 0.0

    def with_windows(self, windows: Sequence[Window]) -> Trace:
        """The same samples, other windows."""
        return replace(self, windows=tuple(windows))

    def energy(self, begin_s: float, end_s: float) -> float:
        """Joules between two times, interpolated between samples; only where nothing is `missing`."""
        first, last = np.interp([begin_s, end_s], self.times_s, self.joules)
        return float(last - first)

    def within(self, begin_s: float, end_s: float) -> Array:
        """The powers of the samples between two times."""
        first, last = np.searchsorted(self.times_s, [begin_s - _ULP_S, end_s + _ULP_S])
        return self.watts[first:last]

    def missing(self, begin_s: float, end_s: float) -> str:
        """Why the energy between two times is not known; empty where it is."""
        if self.problem:
            return self.problem
        if len(self.times_s) < 2:
            return f"{self.facts.meter} gave {len(self.times_s)} samples: at least two are needed"
        first, last = float(self.times_s[0]), float(self.times_s[-1])
        if begin_s < first - _ULP_S or end_s > last + _ULP_S:
            short = max(first - begin_s, 0.0) + max(end_s - last, 0.0)
            words = f"{short:.3g} s of {end_s - begin_s:.3g} s are missing"
            return f"the samples of {self.facts.meter} do not cover the run: {words}; check its cable and try again"
        lost = [(max(a, begin_s), min(b, end_s)) for a, b in self.gaps if a < end_s and b > begin_s]
        if lost:
            total = sum(b - a for a, b in lost)
            return f"samples of {self.facts.meter} are missing in {len(lost)} places of the run, {total:.3g} s together"
        return ""
