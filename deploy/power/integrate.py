"""Raw values of sensors; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def counter_steps(values: Sequence[int], maximum: int | None) -> list[int]:
    """Return the increase between consecutive values of a counter that starts again at 0 after `maximum`.

    Two values less than one full turn apart are told apart exactly. Raises ValueError: a value outside 0..maximum, or
    one that decreases when `maximum` is None (the counter never wraps).
    """
    for value in values:
        if value < 0 or (maximum is not None and value > maximum):
            raise ValueError(f"the counter reads {value}, outside 0..{'' if maximum is None else maximum}")
    steps = [after - before for before, after in pairwise(values)]
    if maximum is None and any(step < 0 for step in steps):
        raise ValueError("the counter went backwards: it was reset, or it wrapped and its range is not known")
    return [step if step >= 0 or maximum is None else step + maximum for step in steps]


def largest_gap(times_s: Sequence[float]) -> float:
    """Return the longest time between consecutive samples; 0.0 for fewer than two."""
    return max((after - before for before, after in pairwise(times_s)), default=0.0)
