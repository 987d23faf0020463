"""Placing intervals of memory: greedy, and a search among the orders in which greedy placement could go."""

from __future__ import annotations

import math
import random
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

WORK = 3_000_000  # pairs of tensors that a search may look at: less than a second
MOST_STEPS = 4000
HOTTEST = 0.02  # of the bound: how much larger a step may make the arena at first
SPLITS = 0.2  # of the steps change whether a tensor may lie on its input, instead of the order


@dataclass(frozen=True)
class Problem:
    """`sizes` in bytes; the numbers of the tensors that may not overlap each, and of those that it may start on.

    Both relations are symmetric, and the second is a part of the first: two such tensors either start at one address,
    or do not overlap.
    """

    sizes: tuple[int, ...]
    conflicts: tuple[tuple[int, ...], ...]
    shares: tuple[frozenset[int], ...]

    @cached_property
    def pairs(self) -> int:
        """What one placement looks at."""
        return len(self.sizes) + sum(map(len, self.conflicts))

    def extent(self, offsets: Sequence[int]) -> int:
        """Bytes up to the end of the last tensor."""
        return max((offset + size for offset, size in zip(offsets, self.sizes, strict=True)), default=0)


@dataclass(frozen=True)
class Choice:
    """What a placement is made from: the order, and the tensors that do not start on another one."""

    order: tuple[int, ...]
    apart: frozenset[int] = frozenset()


def place(problem: Problem, choice: Choice) -> list[int]:
    """The offset of each tensor: on one that it may start on, else in the tightest gap that is free for it."""
    offsets = [-1] * len(problem.sizes)
    for tensor in choice.order:
        taken: list[tuple[int, int, int]] = []
        for other in problem.conflicts[tensor]:
            if offsets[other] >= 0:
                insort(taken, (offsets[other], offsets[other] + problem.sizes[other], other))
        shared = problem.shares[tensor] if tensor not in choice.apart else frozenset[int]()
        offset = _shared(problem.sizes[tensor], taken, shared) if shared else None
        offsets[tensor] = _gap(problem.sizes[tensor], taken) if offset is None else offset
    return offsets


def _shared(need: int, taken: Sequence[tuple[int, int, int]], shared: frozenset[int]) -> int | None:
    """The first offset of one of `shared` at which nothing else is in the way."""
    for offset, _, candidate in taken:
        if candidate in shared and all(
            stop <= offset or offset + need <= start or (start == offset and other in shared)
            for start, stop, other in taken
        ):
            return offset
    return None


def _gap(need: int, taken: Iterable[tuple[int, int, int]]) -> int:
    best, best_size, cursor = None, 0, 0
    for start, stop, _ in taken:
        size = start - cursor
        if size >= need and (best is None or size < best_size):
            best, best_size = cursor, size
        cursor = max(cursor, stop)
    return cursor if best is None else best


def search(problem: Problem, starts: Sequence[Choice], bound: int, work: int = WORK) -> list[int]:
    """The smallest placement found from `starts` on: their own, and what simulated annealing makes of the best.

    Stops at `bound` bytes. The same problem gives the same offsets on every machine: there is no clock in it.
    """
    best, choice = min(((place(problem, one), one) for one in starts), key=lambda pair: problem.extent(pair[0]))
    least = now = problem.extent(best)
    steps = min(MOST_STEPS, work // max(problem.pairs, 1))
    dice = random.Random(0)
    offsets = best
    for step in range(steps):
        if least <= bound:
            break
        heat = HOTTEST * bound * (1 - step / steps)
        changed = _changed(problem, choice, offsets, dice)
        found = place(problem, changed)
        size = problem.extent(found)
        if size <= now or dice.random() < math.exp((now - size) / max(heat, 1.0)):
            choice, offsets, now = changed, found, size
        if size < least:
            best, least = found, size
    return best


def _changed(problem: Problem, choice: Choice, offsets: Sequence[int], dice: random.Random) -> Choice:
    """A tensor at the arena's end, or one that is in its way, placed at another time; or its sharing changed."""
    end = problem.extent(offsets)
    highest = [t for t, size in enumerate(problem.sizes) if offsets[t] + size == end]
    tensor = dice.choice(highest)
    near = [tensor, *problem.conflicts[tensor]]
    if len(near) == 1:
        return choice  # nothing is in its way: no order makes the arena smaller
    if dice.random() < SPLITS and (able := [t for t in near if problem.shares[t]]):
        return Choice(choice.order, choice.apart ^ {dice.choice(able)})
    moved, before = dice.sample(near, 2) if dice.random() < 0.5 else (tensor, dice.choice(near))
    order = [t for t in choice.order if t != moved]
    order.insert(order.index(before) if before != moved else 0, moved)
    return Choice(tuple(order), choice.apart)
