"""Which activation lies in which memory: the fastest memories are filled with what is used most for the room it takes.

A call reads its inputs and writes its results once, and does both to its workspaces: a tensor is accessed as often as
that, times its size. Each strategy is an order in which tensors ask for room in the fastest pool, then in the next; a
tensor gets it where the pool can still be planned within its size. What found no room is in the RAM. The strategy is
kept with which the RAM's part is within its limit, then most bytes are accessed in the fastest pool, then in the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.aot.place import place
from deploy.aot.plan import Lifetime, Plan, Shares, greedy, lifetimes, live_bound, plan, problem
from deploy.graph import Graph

_Split = tuple[tuple[Lifetime, ...], ...]  # the tensors of each pool, at last those of the RAM


@dataclass(frozen=True)
class Limits:
    """Bytes of each pool, the fastest first, and of the RAM, None where it has no limit; alignment of all tensors."""

    pools: Mapping[str, int]
    ram: int | None
    alignment: int


def uses(graph: Graph) -> Counter[str]:
    """How often the calls read or write all of each activation and workspace."""
    found: Counter[str] = Counter()
    for call in graph.calls:
        roots = (graph.root(name) for name in (*call.arguments, *call.workspaces))
        found.update(root.name for root in roots if root.kind in ("activation", "workspace"))
    return found


def plan_pools(graph: Graph, shares: Shares, limits: Limits) -> Plan:
    """A plan in which every tensor lies in one pool or in the RAM. No pool is fuller than its limit; the RAM may be."""
    alive, count = lifetimes(graph), uses(graph)
    splits = dict.fromkeys(_split(sorted(alive, key=order), shares, limits) for order in _orders(count))
    best = min(splits, key=lambda split: _badness(split, count, shares, limits))
    *pooled, ram = (plan(tensors, limits.alignment, _within(shares, tensors)) for tensors in best)
    named = [(name, part) for name, part in zip(limits.pools, pooled, strict=True) if part.offsets]
    offsets = {name: offset for part in (ram, *pooled) for name, offset in part.offsets.items()}
    return replace(
        ram,
        offsets={tensor.name: offsets[tensor.name] for tensor in alive},
        bound_bytes=live_bound(alive, limits.alignment),
        in_place_bound_bytes=live_bound(alive, limits.alignment, shares),
        pools={name: part.arena_bytes for name, part in named},
        pool_of={tensor: name for name, part in named for tensor in part.offsets},
    )


def _orders(count: Counter[str]) -> list[Callable[[Lifetime], tuple[float, ...]]]:
    return [
        lambda t: (-count[t.name], t.nbytes),
        lambda t: (-count[t.name] / (t.last - t.first + 1), t.nbytes),
        lambda t: (-count[t.name] * t.nbytes,),
        lambda t: (t.nbytes,),
        lambda t: (-t.nbytes,),
    ]


def _within(shares: Shares, tensors: Sequence[Lifetime]) -> Shares:
    """The part of `shares` that is between tensors of one memory."""
    names = {t.name for t in tensors}
    kept = {name: inputs & names for name, inputs in shares.items() if name in names}
    return {name: inputs for name, inputs in kept.items() if inputs}


def _extent(tensors: Sequence[Lifetime], shares: Shares, alignment: int) -> int:
    """The bytes that the best greedy plan takes."""
    within = _within(shares, tensors)
    to_place = problem(tensors, alignment, within)
    return min((to_place.extent(place(to_place, choice)) for choice in greedy(tensors, within)), default=0)


def _split(tensors: Sequence[Lifetime], shares: Shares, limits: Limits) -> _Split:
    """The memories that tensors get which ask in this order."""
    left, found = list(tensors), []
    for limit in limits.pools.values():
        chosen: list[Lifetime] = []
        for tensor in left:
            asked = [*chosen, tensor]
            at_least = live_bound(asked, limits.alignment, _within(shares, asked))
            if at_least <= limit and _extent(asked, shares, limits.alignment) <= limit:
                chosen = asked
        left = [tensor for tensor in left if tensor not in chosen]
        found.append(tuple(sorted(chosen, key=lambda t: (t.first, t.name))))
    return (*found, tuple(sorted(left, key=lambda t: (t.first, t.name))))


def _badness(split: _Split, count: Counter[str], shares: Shares, limits: Limits) -> tuple[int, ...]:
    *pools, left = split
    needed = _extent(left, shares, limits.alignment)
    accessed = (-sum(count[t.name] * t.nbytes for t in tensors) for tensors in pools)
    return (max(0, needed - (needed if limits.ram is None else limits.ram)), *accessed, needed)
