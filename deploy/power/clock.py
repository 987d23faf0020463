"""A meter's clock against this computer's, from when its samples arrived. Pure.

A sample arrives some time after it was taken, hardly ever at the same delay; so the line of the meter's ticks lies
below all arrivals and touches some of them. Its slope is how fast the meter's clock runs, its height when it began.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from deploy.power.trace import Array

LONG_S = 2.0  # for a slope of its own: over less the delays say more of it than the clock
MOST_DRIFT = 5e-4  # no quartz is further off
TRANSPORT_S = 1e-3  # a frame of USB: the delay that no sample was without cannot be seen
_STEP_S = 0.005  # a delay that never again gets shorter by this was no delay: samples are missing
_FEW = 10  # pieces at the end, which may be under way
_LATE_S = 0.03


def fit(ticks: Array, arrivals_s: Array, tick_s: float) -> tuple[float, float, float]:
    """Return when tick 0 was, how long a tick is, of this computer's clock, and how far off the former may be.

    ticks: the newest one in each piece that arrived, increasing; tick_s: how long one is said to be.
    """
    slope = tick_s
    if (ticks[-1] - ticks[0]) * tick_s >= LONG_S:
        slope = float(np.clip(_slope(ticks, arrivals_s), tick_s * (1 - MOST_DRIFT), tick_s * (1 + MOST_DRIFT)))
    late = np.sort(arrivals_s - ticks * slope)
    return float(late[0]), slope, TRANSPORT_S + float(late[len(late) // 10] - late[0])


def missing_s(ticks: Array, arrivals_s: Array, tick_s: float) -> float:
    """Return how much less time the ticks make than passed while they arrived; 0.0 where that may be chance."""
    _, slope, _ = fit(ticks, arrivals_s, tick_s)
    late = arrivals_s - ticks * slope
    if len(late) <= _FEW:
        less = float(late[-1] - np.min(late))
        return less if less > _LATE_S else 0.0
    from_here = np.minimum.accumulate(late[::-1])[::-1]
    less = float(np.max(from_here[: len(late) - _FEW]) - np.min(late))
    return less if less > _STEP_S else 0.0


def _slope(ticks: Array, arrivals_s: Array) -> float:
    """The slope of the lower convex hull in the middle of the ticks, of all lines below the points the closest."""
    hull: list[tuple[float, float]] = []
    for x, y in zip(ticks.tolist(), arrivals_s.tolist(), strict=True):
        while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    middle = (ticks[0] + ticks[-1]) / 2
    for (x0, y0), (x1, y1) in pairwise(hull):
        if x1 >= middle and x1 > x0:
            return (y1 - y0) / (x1 - x0)
    return float("nan")


def _above(one: tuple[float, float], two: tuple[float, float], three: tuple[float, float]) -> bool:
    """Whether the second point is on or above the line from the first to the third."""
    return (two[0] - one[0]) * (three[1] - one[1]) <= (two[1] - one[1]) * (three[0] - one[0])
