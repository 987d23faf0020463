"""Is a memory plan right? Decided by executing the calls on addresses, without looking at lifetimes."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.aot.plan import Allowed, Plan
from deploy.graph import Call, Graph

Place = tuple[str, int, int]  # a pool, or "" for the arena; from byte, to byte (excluded)
Piece = tuple[Place, str]  # with the tensor that was written there last


def violations(
    graph: Graph, plan: Plan, allowed: Allowed | None = None, sizes: Mapping[str, int] | None = None
) -> list[str]:
    """What is wrong with `plan`, one sentence each; empty where nothing is.

    Every byte of every memory remembers which tensor was written to it last. A call must find all bytes of its inputs
    as their producer left them, and must not write over its own inputs, unless a result starts where an input does and
    that is `allowed`, asked with their positions in the call. sizes: bytes of the pools that there are.
    """
    known = sizes or {}
    problems = [f"the pool {name} is not there" for name in plan.pools if name not in known]
    problems += [
        f"the pool {name} takes {nbytes} bytes of {known[name]}"
        for name, nbytes in plan.pools.items()
        if name in known and nbytes > known[name]
    ]
    problems += [
        f"{name} at offset {offset} is not aligned to {plan.alignment} bytes"
        for name, offset in plan.offsets.items()
        if offset % plan.alignment or offset < 0
    ]
    owners: list[Piece] = []
    for number, call in enumerate(graph.calls):
        reads, writes = (_planned(graph, plan, names) for names in (call.inputs, call.written))
        where = f"call {number} ({call.kernel})"
        for name, place in reads.items():
            if lost := place[2] - place[1] - _held(owners, place, name):
                problems.append(f"{where} reads {name}, of which {lost} bytes are lost")
        for name, place in writes.items():
            problems += _beyond(plan, name, place)
            clashes = [other for other, its in reads.items() if _overlap(its, place)]
            clashes = [n for n in clashes if reads[n][1] != place[1] or not _in_place(graph, call, name, n, allowed)]
            clashes += [other for other, its in writes.items() if other < name and _overlap(its, place)]
            problems += [f"{where} writes {name} over {other}" for other in clashes]
            owners = [*_without(owners, place), (place, name)]
    return problems


def _overlap(one: Place, other: Place) -> bool:
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


def _beyond(plan: Plan, name: str, place: Place) -> list[str]:
    memory, _, stop = place
    size = plan.pools.get(memory, 0) if memory else plan.arena_bytes
    what = f"pool {memory}" if memory else "arena"
    return [f"{name} ends at {stop}, beyond the {what} of {size} bytes"] if stop > size else []


def _in_place(graph: Graph, call: Call, result: str, read: str, allowed: Allowed | None) -> bool:
    """Whether a call may write one of its results over one of its inputs, wherever it gets that."""
    outputs = [position for position, name in enumerate(call.outputs) if graph.root(name).name == result]
    inputs = [position for position, name in enumerate(call.inputs) if graph.root(name).name == read]
    return allowed is not None and len(outputs) == 1 and all(allowed(call, position, outputs[0]) for position in inputs)


def _held(owners: list[Piece], place: Place, name: str) -> int:
    """Bytes of `place` that are still as `name` was written."""
    mine = (its for its, owner in owners if owner == name and _overlap(its, place))
    return sum(min(place[2], stop) - max(place[1], start) for _, start, stop in mine)


def _planned(graph: Graph, plan: Plan, names: tuple[str, ...]) -> dict[str, Place]:
    found = {}
    for name in names:
        root = graph.root(name)
        if root.kind in ("activation", "workspace"):
            start = plan.offsets[root.name]
            found[root.name] = (plan.pool_of.get(root.name, ""), start, start + root.nbytes)
    return found


def _without(owners: list[Piece], place: Place) -> list[Piece]:
    """The pieces with everything in `place` cut out."""
    kept: list[Piece] = []
    for its, owner in owners:
        if not _overlap(its, place):
            kept.append((its, owner))
            continue
        memory, start, stop = its
        if start < place[1]:
            kept.append(((memory, start, place[1]), owner))
        if place[2] < stop:
            kept.append(((memory, place[2], stop), owner))
    return kept
