"""Timing several calls side by side, in rounds, so that a change of the machine's speed hits all of them alike."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from statistics import geometric_mean, median

Call = Callable[[], object]


def time_in_rounds(calls: Mapping[str, Call], rounds: int, turn_s: float) -> dict[str, list[float]]:
    """The median time of each call in each round, in µs.

    A round gives every call one turn of about `turn_s` seconds, in which each execution is timed by itself. The order
    moves on by one from round to round, and every other round is reversed, so that none always follows the same other.
    """
    counts = {name: _executions(call, turn_s) for name, call in calls.items()}
    medians: dict[str, list[float]] = {name: [] for name in calls}
    with _no_garbage_collection():
        for number in range(rounds):
            for name in turn_order(list(calls), number):
                medians[name].append(_turn(calls[name], counts[name]))
    return medians


def turn_order(names: Sequence[str], number: int) -> list[str]:
    """The names in the order of round `number`: a permutation."""
    start = number % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if number % 2 else order


def ratio_to_best(own: float, peers: Iterable[float]) -> float | None:
    """`own` as a multiple of the smallest of `peers`, or None where there are none. Below 1 is faster than all."""
    return own / best if (best := min(peers, default=None)) else None


def geomean(ratios: Iterable[float | None]) -> float | None:
    """The geometric mean of the ratios that there are, or None where there are none."""
    known = [ratio for ratio in ratios if ratio is not None]
    return geometric_mean(known) if known else None


def middle(values: Sequence[float]) -> float:
    """The median of the rounds' medians."""
    return median(values)


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this thread, and those it starts, on the last `threads` cores it may use: the first ones serve interrupts.

    Raises ValueError if there are not as many.
    """
    before = os.sched_getaffinity(0)
    if not 1 <= threads <= len(before):
        raise ValueError(f"{threads} threads on {len(before)} cores; give a number from 1 to {len(before)}")
    os.sched_setaffinity(0, sorted(before)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _executions(call: Call, turn_s: float) -> int:
    """How many executions fill a turn, found after the first ones, which are slow; at least 3."""
    for _ in range(3):
        call()
    times = chain.from_iterable(_sample(call, 1) for _ in range(5))
    return max(3, min(100_000, math.ceil(turn_s * 1e6 / max(min(times), 0.1))))


def _turn(call: Call, count: int) -> float:
    for _ in range(1 + count // 10):  # caches and predictors are full of the one before
        call()
    return median(_sample(call, count))


def _sample(call: Call, count: int) -> list[float]:
    clock = time.perf_counter_ns
    times = []
    for _ in range(count):
        start = clock()
        call()
        times.append(clock() - start)
    return [one / 1e3 for one in times]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
