"""Where each activation lies in the arena: lifetimes → offsets, the smallest of several greedy plans kept.

Greedy by size and greedy by order are from Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
Inference" (2020): place one tensor after the other, each in the smallest gap that is free for its whole lifetime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.graph import Graph

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class Lifetime:
    """A tensor that needs `nbytes` from call number `first` to call number `last`, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are alive during some call."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """Offset of every planned tensor, in bytes from the arena's start; `bound_bytes` is what is alive at the peak."""

    offsets: dict[str, int]
    arena_bytes: int
    bound_bytes: int


def lifetimes(graph: Graph) -> list[Lifetime]:
    """First and last use of each activation and workspace; an alias counts as its root."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, call in enumerate(graph.calls):
        for name in call.arguments:
            root = graph.root(name)
            if root.kind in ("activation", "workspace"):
                first.setdefault(root.name, number)
                last[root.name] = number
    return [Lifetime(name, graph.tensors[name].nbytes, first[name], last[name]) for name in first]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def live_bound(tensors: Sequence[Lifetime]) -> int:
    """Bytes alive during the worst call: no plan can be smaller."""
    calls = {t.first for t in tensors}
    return max((sum(_aligned(t.nbytes) for t in tensors if t.first <= c <= t.last) for c in calls), default=0)


def _gap(tensor: Lifetime, placed: Sequence[tuple[int, Lifetime]]) -> int:
    """Offset of the tightest free gap for `tensor` among what is placed and alive with it."""
    need, best, best_size, cursor = _aligned(tensor.nbytes), None, 0, 0
    for offset, other in sorted((p for p in placed if p[1].overlaps(tensor)), key=lambda p: p[0]):
        size = offset - cursor
        if size >= need and (best is None or size < best_size):
            best, best_size = cursor, size
        cursor = max(cursor, offset + _aligned(other.nbytes))
    return cursor if best is None else best


def _place(order: Sequence[Lifetime]) -> dict[str, int]:
    placed: list[tuple[int, Lifetime]] = []
    for tensor in order:
        placed.append((_gap(tensor, placed), tensor))
    return {tensor.name: offset for offset, tensor in placed}


ORDERS: dict[str, Callable[[Lifetime], tuple[int, ...]]] = {
    "size": lambda t: (-t.nbytes, t.first),
    "execution": lambda t: (t.first, -t.nbytes),
    "area": lambda t: (-t.nbytes * (t.last - t.first + 1), t.first),
    "duration": lambda t: (t.first - t.last, -t.nbytes),
}


def plan(tensors: Sequence[Lifetime]) -> Plan:
    """Offsets for `tensors`, each a multiple of `ALIGNMENT`."""
    sizes = {t.name: _aligned(t.nbytes) for t in tensors}

    def extent(offsets: dict[str, int]) -> int:
        return max((offset + sizes[name] for name, offset in offsets.items()), default=0)

    candidates = [_place(sorted(tensors, key=key)) for key in ORDERS.values()]
    best = min(candidates, key=extent)
    return Plan(best, extent(best), live_bound(tensors))
