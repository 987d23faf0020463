"""From a trace to a reading: energy of the windows, mean and peak power, and how far off that may be. Pure.

The interval is of 95 %: the accuracy that the meter's maker states, the ends of the windows (half a sample each way,
and what the marks may be off) and the spread over the windows are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from deploy.power.reading import EnergyReading, Sample
from deploy.power.trace import Trace, Window

PARTS = 10  # of a single window, to see how much its power varies
FEWEST = 10  # samples of power in all windows: fewer say little of what was between them
MOST_SAMPLES = 500  # kept in a report of a meter that takes many: means of as many stretches
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 95 % by degrees of freedom, from 1
_MANY = 2.23


def reading_of(trace: Trace, source: str, samples: tuple[Sample, ...] | None = None) -> EnergyReading:
    """Return the energy of the trace's windows, or of all of it where it has none; not complete if any is in doubt.

    samples: the raw ones, where they are few; otherwise means over stretches of the trace are kept.
    """
    whole = (Window(float(trace.times_s[0]), float(trace.times_s[-1])),) if len(trace.times_s) else ()
    windows = trace.windows or whole
    seconds = math.fsum(window.seconds for window in windows)
    kept = stretches(trace) if samples is None else samples
    problems = (trace.missing(window.begin_s, window.end_s) for window in windows)
    problem = next(filter(None, problems), "") if windows else trace.missing(0.0, 0.0)
    if not problem and seconds <= 0:
        problem = "the metered run took no time"
    powers = [trace.within(window.begin_s, window.end_s) for window in windows]
    count = sum(map(len, powers))
    if not problem and not trace.counted and count < FEWEST:
        problem = f"{trace.facts.meter} took only {count} samples while the model ran: raise power's `duration`"
    energies = [] if problem else [trace.energy(window.begin_s, window.end_s) for window in windows]
    if not problem and math.fsum(energies) < 0:
        problem = f"the meter shows {math.fsum(energies) / seconds:.3g} W, less than nothing: it is wired the wrong way"
    if problem:
        return EnergyReading(None, seconds, "measured", source, kept, problem, meter=trace.facts, trace=trace)
    joules, off = math.fsum(energies), _uncertainty(trace, windows, energies)
    means = [energy / window.seconds for energy, window in zip(energies, windows, strict=True) if window.seconds > 0]
    peak = max([*means, *(float(np.max(part)) for part in powers if len(part))])
    return EnergyReading(
        joules, seconds, "measured", source, kept,
        low=max(0.0, joules - off), high=joules + off, peak_w=max(peak, 0.0), meter=trace.facts, trace=trace,
    )  # fmt: skip


def stretches(trace: Trace, most: int = MOST_SAMPLES) -> tuple[Sample, ...]:
    """Return the mean powers of at most `most` stretches of equal numbers of samples, in the middle of each."""
    count = len(trace.times_s)
    if count < 2:
        return ()
    cuts = np.unique(np.linspace(0, count - 1, min(most, count - 1) + 1).round().astype(np.int64))
    kept = []
    for first, last in pairwise(cuts):
        begin, end = trace.times_s[first], trace.times_s[last]
        if end > begin:
            watts = (trace.joules[last] - trace.joules[first]) / (end - begin)
            kept.append(Sample("power", float(begin + end) / 2, round(float(watts) * 1e6), "uW"))
    return tuple(kept)


def spread(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean of `values`; 0.0 for one."""
    freedom = len(values) - 1
    if freedom < 1:
        return 0.0
    factor = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _MANY
    return factor * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _uncertainty(trace: Trace, windows: Sequence[Window], energies: Sequence[float]) -> float:
    """How many joules the energy of all windows may be off."""
    total, seconds = math.fsum(energies), math.fsum(window.seconds for window in windows)
    stated = (trace.facts.accuracy or 0.0) * total
    ends = math.fsum(_end(trace, at, window.slack_s) for window in windows for at in (window.begin_s, window.end_s))
    return math.hypot(stated, ends, spread(_means(trace, windows)) * seconds)


def _means(trace: Trace, windows: Sequence[Window]) -> list[float]:
    """The mean power of each window, or of each part of the only one."""
    parts = windows
    if len(windows) == 1 and windows[0].seconds > PARTS * trace.interval_s:
        cuts = np.linspace(windows[0].begin_s, windows[0].end_s, PARTS + 1)
        parts = [Window(float(begin), float(end)) for begin, end in pairwise(cuts)]
    return [trace.energy(part.begin_s, part.end_s) / part.seconds for part in parts if part.seconds > 0]


def _end(trace: Trace, at_s: float, slack_s: float) -> float:
    """How many joules hang on where exactly a window begins or ends: half of what the power changes by around there."""
    reach = trace.interval_s + slack_s
    near = trace.within(at_s - reach, at_s + reach)
    return float(np.max(near) - np.min(near)) / 2 * reach if len(near) else 0.0
