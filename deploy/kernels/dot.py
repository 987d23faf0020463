"""Dot-product instructions as data: how many lanes, how many products each lane adds up, and of what types.

A packed integer kernel stores its weights as `[..., lanes, depth]`, so that one instruction takes `depth` neighbouring
activations, the same for all lanes, and one vector of weights.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True)
class DotProduct:
    """acc[lane] += sum over depth of data[depth] * weight[lane, depth], in int32.

    llvm: the intrinsic, called with (acc, data, weight), or with (data, weight) where it does not accumulate.
    offset: what is added to a signed activation so that it has the type of `data`; the bias takes it out again.
    """

    name: str
    lanes: int
    depth: int
    data: str
    weight: str
    llvm: str
    accumulates: bool
    offset: int = 0


VNNI_512 = DotProduct("vnni_512", 16, 4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.512", True, 128)
VNNI_256 = DotProduct("vnni_256", 8, 4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.256", True, 128)
MADD_512 = DotProduct("madd_512", 16, 2, "int16", "int16", "llvm.x86.avx512.pmaddw.d.512", False)
MADD_256 = DotProduct("madd_256", 8, 2, "int16", "int16", "llvm.x86.avx2.pmadd.wd", False)
MADD_128 = DotProduct("madd_128", 4, 2, "int16", "int16", "llvm.x86.sse2.pmadd.wd", False)
SDOT_128 = DotProduct("sdot_128", 4, 4, "int8", "int8", "llvm.aarch64.neon.sdot.v4i32.v16i8", True)

# The widest first.
BY_FEATURES: tuple[tuple[frozenset[str], DotProduct], ...] = (
    (frozenset({"avx512_vnni"}), VNNI_512),
    (frozenset({"avx_vnni"}), VNNI_256),
    (frozenset({"avx512bw"}), MADD_512),
    (frozenset({"avx2"}), MADD_256),
    (frozenset({"sse2"}), MADD_128),
    (frozenset({"asimddp"}), SDOT_128),
)


def dot_products_for(features: Set[str]) -> tuple[DotProduct, ...]:
    """The dot-product instructions of a CPU with these features, the best for each type of weights first."""
    return tuple(dot for needed, dot in BY_FEATURES if needed <= features)


def intrinsic_name(dot: DotProduct) -> str:
    """The name under which TVM's tensorize knows the instruction."""
    return f"deploy.dot.{dot.name}"
