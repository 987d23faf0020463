"""Does a model fit its target's memories? Asked before anything is compiled, and again when all sizes are known."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.aot.plan import Plan, alive_at_peak, lifetimes, live_bound, shares
from deploy.errors import InputError
from deploy.firmware.size_map import FlashSizes
from deploy.graph import Graph, Tensor
from deploy.target import Target
from deploy.target_memory import Memory
from deploy.units import render

_SHOWN = 6  # tensors in a message
_EXTERNAL = "external flash"


@dataclass(frozen=True)
class _Room:
    """A memory, or several of them, and its bytes; None where it has no limit."""

    name: str
    size: int | None


def io_bytes(graph: Graph) -> int:
    """Bytes of the model's inputs and outputs, which are the caller's."""
    return sum(graph.tensors[name].nbytes for name in (*graph.inputs, *graph.outputs))


def check_fit(name: str, graph: Graph, target: Target, plan: Plan | None = None) -> None:
    """Raise InputError where weights, or activations with inputs and outputs, are larger than their memory.

    plan: of the memory, if it is made: what it has in no pool must fit the RAM. Where there is none yet, the least that
    any could need must fit RAM and pools together, every result written over an input that dies. Stack and code come
    on top, and are not known here.
    """
    if target.artifact != "firmware":
        return
    _check(name, target, _room_for_weights(target.memory), {"weights": graph.constant_bytes})
    alive, pools, ram = lifetimes(graph), target.memory.pools, target.memory.ram
    if plan is None:
        what, arena = "activations", live_bound(alive, target.alignment, shares(graph, lambda *_: True))
        total = None if ram is None else ram + sum(pool.size for pool in pools)
        *names, last = ["RAM", *(pool.name for pool in pools)]
        room = _Room(f"{', '.join(names)} and {last}" if names else last, total)
    else:
        alive, arena, room = [t for t in alive if t.name not in plan.pool_of], plan.arena_bytes, _Room("RAM", ram)
        what = f"activations that are not in {' or '.join(p.name for p in pools)}" if pools else "activations"
    largest = ", ".join(_described(graph.tensors[t.name]) for t in alive_at_peak(alive)[:_SHOWN])
    needed = {what: arena, "inputs and outputs": io_bytes(graph)}
    _check(name, target, room, needed, f"; alive at the peak: {largest}" if largest else "")


def _room_for_weights(memory: Memory) -> _Room:
    """The memory that all weights must fit into: the one that was asked for, else the larger one."""
    inside, outside = memory.flash, memory.external_flash
    if outside is None or memory.weights == "internal":
        return _Room("flash", inside)
    larger = inside is not None and outside >= inside
    return _Room(_EXTERNAL, outside) if memory.weights == "external" or larger else _Room("flash", inside)


def weights_outside(sizes: FlashSizes, memory: Memory) -> bool:
    """Whether the weights go to the external flash: they are to, or the library does not fit the flash with them."""
    if memory.external_flash is None or memory.weights == "internal":
        return False
    return memory.weights == "external" or (memory.flash is not None and sizes.total > memory.flash)


def check_flash(name: str, sizes: FlashSizes, target: Target) -> None:
    """Raise InputError where a compiled library is larger than the flash memory, or its weights than the external."""
    what = "library without its weights" if sizes.external else "library"
    _check(name, target, _Room("flash", target.memory.flash), {what: sizes.total})
    _check(name, target, _Room(_EXTERNAL, target.memory.external_flash), {"weights": sizes.external})


def _described(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "1"
    return f"{tensor.name} {shape} {tensor.dtype} ({render(tensor.nbytes, 'bytes', 3)})"


def _check(name: str, target: Target, room: _Room, needed: dict[str, int], detail: str = "") -> None:
    total = sum(needed.values())
    if room.size is None or total <= room.size:
        return
    parts = " and ".join(f"{render(size, 'bytes', 3)} of {what}" for what, size in needed.items())
    raise InputError(
        f"model '{name}' does not fit {target.name}: its {parts} are {render(total - room.size, 'bytes', 3)} more than "
        f"the {render(room.size, 'bytes', 3)} of {room.name}{detail}; "
        "make the model smaller, or take a target with more memory"
    )
