"""The functions that a model's kernels call and that are written in assembly, as one file."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.kernels.micro import helium, smlad
from deploy.kernels.micro.helium_depthwise import GatheredKernel, Planes
from deploy.kernels.micro.smlad_depthwise import DepthwiseKernel, Plane

_NO_STACK = '  .section .note.GNU-stack,"",%progbits\n'


def assembly(symbols: Iterable[str]) -> str:
    """A file in GNU assembler syntax with those of the functions that are defined here; empty where none is."""
    texts = [text for symbol in sorted(symbols) if (text := _function(symbol)) is not None]
    return "\n".join(["  .syntax unified\n  .thumb\n", *texts, _NO_STACK]) if texts else ""


def _function(symbol: str) -> str | None:
    for kind in (smlad.MicroKernel, helium.HeliumKernel, DepthwiseKernel, Plane, GatheredKernel, Planes):
        found = kind.of(symbol)
        if found is not None:
            return found.assembly()
    return smlad.fixed(symbol) or helium.fixed(symbol)
