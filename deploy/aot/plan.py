"""Where each activation lies in the arena: lifetimes → offsets, the smallest of many plans kept.

A plan places one tensor after the other, each in the smallest gap that is free for its whole lifetime, or over an input
that dies in the call which writes it. Greedy orders are tried first (by size and by order are from Pisarchyk and Lee,
"Efficient Memory Management for Deep Neural Net Inference", 2020), with and without writing in place; where they need
more than what is alive at once, a search goes on from the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from deploy.aot.place import Choice, Problem, search
from deploy.graph import Call, Graph

ALIGNMENT = 64  # bytes: a cache line, and the widest vector

Shares = Mapping[str, frozenset[str]]  # a tensor → those at whose address it may be written
Allowed = Callable[[Call, int, int], bool]  # may this output of a call start at the address of this input?


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
    """Offset of every planned tensor, in bytes from the arena's start; `bound_bytes` is what is alive at the peak.

    in_place_bound_bytes: the same, if all that may be written over a dying input is; no plan is smaller.
    pools: the memories beside the arena in which tensors lie, with the bytes that those take; pool_of: these tensors,
    whose offsets are from the pool's start. Both bounds are of all memories together.
    """

    offsets: dict[str, int]
    arena_bytes: int
    bound_bytes: int
    alignment: int = ALIGNMENT
    in_place_bound_bytes: int = 0
    pools: Mapping[str, int] = field(default_factory=dict)
    pool_of: Mapping[str, str] = field(default_factory=dict)

    def place(self, name: str) -> tuple[str, int]:
        """The tensor's pool, empty for the arena, and its offset there."""
        return self.pool_of.get(name, ""), self.offsets[name]


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


def shares(graph: Graph, allowed: Allowed) -> Shares:
    """For each result of a call, the inputs that die in it and at whose address it may be written.

    allowed: asked with positions among the call's inputs and outputs; an input that comes twice must be allowed twice.
    """
    alive, found = {t.name: t for t in lifetimes(graph)}, {}
    for number, call in enumerate(graph.calls):
        dying: dict[str, list[int]] = {}
        for position, name in enumerate(call.inputs):
            root = graph.root(name)
            if root.kind == "activation" and alive[root.name].last == number:
                dying.setdefault(root.name, []).append(position)
        for output, name in enumerate(call.outputs):
            root = graph.root(name)
            if root.kind == "activation" and alive[root.name].first == number:
                found[root.name] = frozenset(n for n, at in dying.items() if all(allowed(call, p, output) for p in at))
    return {name: inputs for name, inputs in found.items() if inputs}


def _aligned(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def alive_at_peak(tensors: Sequence[Lifetime]) -> list[Lifetime]:
    """The tensors that are alive during the call with most bytes alive, the largest first."""
    at_call = ([t for t in tensors if t.first <= call <= t.last] for call in sorted({t.first for t in tensors}))
    peak: list[Lifetime] = max(at_call, key=lambda alive: sum(t.nbytes for t in alive), default=[])
    return sorted(peak, key=lambda t: -t.nbytes)


def live_bound(tensors: Sequence[Lifetime], alignment: int = ALIGNMENT, shares: Shares | None = None) -> int:
    """Bytes alive during the worst call: no plan can be smaller. `shares` as in `plan`."""
    sizes = {t.name: _aligned(t.nbytes, alignment) for t in tensors}
    at_call = dict.fromkeys((t.first for t in tensors), 0)
    for tensor in tensors:
        for call in at_call:
            if tensor.first <= call <= tensor.last:
                at_call[call] += sizes[tensor.name]
        if inputs := (shares or {}).get(tensor.name):
            at_call[tensor.first] -= min(sizes[tensor.name], max(sizes[name] for name in inputs))
    return max(at_call.values(), default=0)


ORDERS: dict[str, Callable[[Lifetime], tuple[int, ...]]] = {
    "size": lambda t: (-t.nbytes, t.first),
    "execution": lambda t: (t.first, -t.nbytes),
    "area": lambda t: (-t.nbytes * (t.last - t.first + 1), t.first),
    "duration": lambda t: (t.first - t.last, -t.nbytes),
}


def greedy(tensors: Sequence[Lifetime], shares: Shares | None = None) -> list[Choice]:
    """The orders worth trying, each of them with and without results written over inputs."""
    keys = [[key(t) for t in tensors] for key in ORDERS.values()]
    orders = [tuple(sorted(range(len(tensors)), key=key.__getitem__)) for key in keys]
    apart = [frozenset[int](), frozenset(range(len(tensors)))] if shares else [frozenset[int]()]
    return [Choice(order, kept) for kept in apart for order in orders]


def problem(tensors: Sequence[Lifetime], alignment: int = ALIGNMENT, shares: Shares | None = None) -> Problem:
    """What has to be placed, tensors by their number in `tensors`."""
    numbers = {t.name: number for number, t in enumerate(tensors)}
    conflicts = [[i for i, other in enumerate(tensors) if other is not t and other.overlaps(t)] for t in tensors]
    shared: list[set[int]] = [set() for _ in tensors]
    for name, inputs in (shares or {}).items():
        for other in inputs:
            shared[numbers[name]].add(numbers[other])
            shared[numbers[other]].add(numbers[name])
    sizes = (_aligned(t.nbytes, alignment) for t in tensors)
    return Problem(tuple(sizes), tuple(map(tuple, conflicts)), tuple(map(frozenset, shared)))


def plan(tensors: Sequence[Lifetime], alignment: int = ALIGNMENT, shares: Shares | None = None) -> Plan:
    """Offsets for `tensors`, each a multiple of `alignment`.

    shares: what `shares` finds; each such pair may start at the same address.
    """
    to_place, bound = problem(tensors, alignment, shares), live_bound(tensors, alignment, shares)
    found = search(to_place, greedy(tensors, shares), bound)
    offsets = {t.name: offset for t, offset in zip(tensors, found, strict=True)}
    return Plan(offsets, to_place.extent(found), live_bound(tensors, alignment), alignment, bound)
