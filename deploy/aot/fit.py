"""Does a model fit its target's memory? Asked before anything is compiled, and again when all sizes are known."""

from __future__ import annotations

from deploy.aot.plan import alive_at_peak, lifetimes, live_bound, shares
from deploy.errors import InputError
from deploy.graph import Graph, Tensor
from deploy.target import Target
from deploy.units import render

_SHOWN = 6  # tensors in a message
_WORDS = {"flash": "flash", "ram": "RAM"}


def io_bytes(graph: Graph) -> int:
    """Bytes of the model's inputs and outputs, which are the caller's."""
    return sum(graph.tensors[name].nbytes for name in (*graph.inputs, *graph.outputs))


def check_fit(name: str, graph: Graph, target: Target, arena_bytes: int | None = None) -> None:
    """Raise InputError where weights, or activations with inputs and outputs, are larger than their memory.

    arena_bytes: of a finished memory plan. Where there is none yet, the least that any could need counts, every result
    written over an input that dies. Stack and code come on top, and are not known here.
    """
    if target.artifact != "firmware":
        return
    _check(name, "flash", {"weights": graph.constant_bytes}, target)
    alive = lifetimes(graph)
    arena = arena_bytes
    if arena is None:
        arena = live_bound(alive, target.alignment, shares(graph, lambda *_: True))
    needed = {"activations": arena, "inputs and outputs": io_bytes(graph)}
    largest = ", ".join(_described(graph.tensors[t.name]) for t in alive_at_peak(alive)[:_SHOWN])
    _check(name, "ram", needed, target, f"; alive at the peak: {largest}" if largest else "")


def check_flash(name: str, flash_bytes: int, target: Target) -> None:
    """Raise InputError where a compiled library is larger than the flash memory."""
    _check(name, "flash", {"library": flash_bytes}, target)


def _described(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "1"
    return f"{tensor.name} {shape} {tensor.dtype} ({render(tensor.nbytes, 'bytes', 3)})"


def _check(name: str, memory: str, needed: dict[str, int], target: Target, detail: str = "") -> None:
    limit: int | None = getattr(target.memory, memory)
    total = sum(needed.values())
    if limit is None or total <= limit:
        return
    parts = " and ".join(f"{render(size, 'bytes', 3)} of {what}" for what, size in needed.items())
    raise InputError(
        f"model '{name}' does not fit {target.name}: its {parts} are {render(total - limit, 'bytes', 3)} more than the "
        f"{render(limit, 'bytes', 3)} of {_WORDS[memory]}{detail}; "
        "make the model smaller, or take a target with more memory"
    )
