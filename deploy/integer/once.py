"""LiteRT's fully connected kernel scales in floating point; here is the integer multiplier that gives the same results.

It computes round(acc * scale) in float64, a half away from zero, and clamps. Both that and multiply-add-shift grow with
the accumulator, so they are equal for all accumulators when each result begins at the same one, which is checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.integer.fixed_point import INT32_MAX, quantize_multiplier

Integers = npt.NDArray[np.int64]
_NUDGES = (0, 1, -1, 2, -2, 3, -3)


def rounds_alike(scale: float, low: int, high: int, largest: int = INT32_MAX) -> tuple[int, int] | None:
    """(multiplier, shift) with (acc * multiplier + 2^(30 - shift)) >> (31 - shift) equal to LiteRT's result.

    The results are those without the zero point, clamped to `low` … `high`, for all accumulators from -`largest` - 1
    to `largest`. Nothing where no multiplier of 31 bits does that, or the product would not fit 64 bits.
    """
    multiplier, shift = quantize_multiplier(scale)
    if multiplier == 0 or shift > 30 or largest > 2**32 - 4:
        return None
    targets = np.arange(low + 1, high + 1, dtype=np.int64)
    first = _first_accumulators(scale, targets)
    for nudge in _NUDGES:
        pair = min(multiplier + nudge, INT32_MAX), shift
        if _agrees(pair, first, targets, largest):
            return pair
    return None


def in_float(accumulators: Any, scale: float) -> npt.NDArray[np.float64]:
    """What LiteRT computes: the product in float64, a half rounded away from zero."""
    product = np.asarray(accumulators, np.float64) * scale
    whole = np.trunc(product)
    return np.asarray(whole + np.where(np.abs(product - whole) >= 0.5, np.sign(product), 0.0))


def _first_accumulators(scale: float, targets: Integers) -> Integers:
    """The smallest accumulator whose result is at least each target."""
    guess = np.clip(np.floor((targets - 0.5) / scale), -(2.0**62), 2.0**62).astype(np.int64)
    candidates = guess[:, None] + np.arange(-2, 4)
    reached = in_float(candidates, scale) >= targets[:, None]
    return np.asarray(np.where(reached.any(axis=1), candidates[np.arange(len(targets)), reached.argmax(axis=1)], 2**62))


def _agrees(pair: tuple[int, int], first: Integers, targets: Integers, largest: int) -> bool:
    """Whether the multiplier reaches each target at the same accumulator as the reference."""
    multiplier, shift = pair
    smallest = -largest - 1

    def scaled(values: Integers) -> Integers:
        return np.asarray((values * multiplier + (1 << (30 - shift))) >> (31 - shift))

    for accumulators, reached in ((first, True), (first - 1, False)):
        exists = (accumulators >= smallest) & (accumulators <= largest)
        if not ((scaled(accumulators[exists]) >= targets[exists]) == reached).all():
            return False
    # a target that no accumulator reaches must not be reached here either, and one that all reach must be
    low, high = scaled(np.array([smallest, largest], np.int64))
    return bool((high < targets[first > largest]).all() and (low >= targets[first < smallest]).all())
