"""All constants of a model in one read-only block."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from deploy.aot.plan import ALIGNMENT
from deploy.graph import Graph


@dataclass(frozen=True)
class Weights:
    """The block and each constant's offset in it, bytes; equal constants share their place."""

    data: bytes
    offsets: dict[str, int]


def pack_weights(graph: Graph, alignment: int = ALIGNMENT) -> Weights:
    """Lay out the constants that calls read, each on a multiple of `alignment` bytes."""
    block = bytearray()
    offsets: dict[str, int] = {}
    known: dict[bytes, int] = {}
    for tensor in graph.used_constants():
        if tensor.values is None:
            raise ValueError(f"constant {tensor.name} has no values")
        raw = np.ascontiguousarray(tensor.values).tobytes()
        digest = hashlib.sha256(raw).digest()
        if digest not in known:
            block.extend(bytes(-len(block) % alignment))
            known[digest] = len(block)
            block.extend(raw)
        offsets[tensor.name] = known[digest]
    return Weights(bytes(block), offsets)
