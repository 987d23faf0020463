"""Is a memory plan right? Decided by executing the calls on addresses, without looking at lifetimes."""

from __future__ import annotations

from deploy.aot.plan import Allowed, Plan
from deploy.graph import Call, Graph

Piece = tuple[int, int, str]  # of the arena: from byte, to byte (excluded), the tensor written there last


def violations(graph: Graph, plan: Plan, allowed: Allowed | None = None) -> list[str]:
    """What is wrong with `plan`, one sentence each; empty where nothing is.

    Every byte of the arena remembers which tensor was written to it last. A call must find all bytes of its inputs as
    their producer left them, and must not write over its own inputs, unless a result starts where an input does and
    that is `allowed`, asked with their positions in the call.
    """
    problems = [
        f"{name} at offset {offset} is not aligned to {plan.alignment} bytes"
        for name, offset in plan.offsets.items()
        if offset % plan.alignment or offset < 0
    ]
    owners: list[Piece] = []
    for number, call in enumerate(graph.calls):
        reads, writes = (_planned(graph, plan, names) for names in (call.inputs, call.written))
        where = f"call {number} ({call.kernel})"
        for name, (start, stop) in reads.items():
            held = _held(owners, start, stop, name)
            if held != stop - start:
                problems.append(f"{where} reads {name}, of which {stop - start - held} bytes are lost")
        for name, (start, stop) in writes.items():
            if stop > plan.arena_bytes:
                problems.append(f"{name} ends at {stop}, beyond the arena of {plan.arena_bytes} bytes")
            clashes = [other for other, (a, b) in reads.items() if a < stop and start < b]
            clashes = [n for n in clashes if reads[n][0] != start or not _in_place(graph, call, name, n, allowed)]
            clashes += [other for other, (a, b) in writes.items() if other < name and a < stop and start < b]
            problems += [f"{where} writes {name} over {other}" for other in clashes]
            owners = [*_without(owners, start, stop), (start, stop, name)]
    return problems


def _in_place(graph: Graph, call: Call, result: str, read: str, allowed: Allowed | None) -> bool:
    """Whether a call may write one of its results over one of its inputs, wherever it gets that."""
    outputs = [position for position, name in enumerate(call.outputs) if graph.root(name).name == result]
    inputs = [position for position, name in enumerate(call.inputs) if graph.root(name).name == read]
    return allowed is not None and len(outputs) == 1 and all(allowed(call, position, outputs[0]) for position in inputs)


def _held(owners: list[Piece], start: int, stop: int, name: str) -> int:
    """Bytes from `start` to `stop` that are still as `name` was written."""
    return sum(min(stop, b) - max(start, a) for a, b, owner in owners if owner == name and a < stop and start < b)


def _planned(graph: Graph, plan: Plan, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    found = {}
    for name in names:
        root = graph.root(name)
        if root.kind in ("activation", "workspace"):
            start = plan.offsets[root.name]
            found[root.name] = (start, start + root.nbytes)
    return found


def _without(owners: list[Piece], start: int, stop: int) -> list[Piece]:
    """The pieces with everything from `start` to `stop` cut out."""
    kept = []
    for a, b, owner in owners:
        if a < min(b, start):
            kept.append((a, min(b, start), owner))
        if max(a, stop) < b:
            kept.append((max(a, stop), b, owner))
    return kept
