"""Dot-product instructions as data: how many lanes, how many products each lane adds up, and of what types.

A packed integer kernel stores its weights as `[..., lanes, depth]`, so that one instruction takes `depth` neighbouring
activations, the same for all lanes, and one vector of weights.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T


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


def _description(dot: DotProduct):  # type: ignore[no-untyped-def]
    lanes, depth, data, weight = dot.lanes, dot.depth, dot.data, dot.weight

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((depth,), data, offset_factor=1),
        B: T.Buffer((lanes, depth), weight, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:depth], B[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, depth):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return description


def _accumulating(dot: DotProduct):  # type: ignore[no-untyped-def]
    lanes, depth, data, weight, llvm = dot.lanes, dot.depth, dot.data, dot.weight, dot.llvm
    group, vector, total = f"{data}x{depth}", f"{weight}x{lanes * depth}", f"int32x{lanes}"

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((depth,), data, offset_factor=1),
        B: T.Buffer((lanes, depth), weight, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:depth], B[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(llvm),
                C.vload([0], dtype=total),
                T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], group), dtype="int32"), lanes), dtype=vector),
                B.vload([0, 0], dtype=vector),
                dtype=total,
            )

    return implementation


def _adding(dot: DotProduct):  # type: ignore[no-untyped-def]
    lanes, depth, data, weight, llvm = dot.lanes, dot.depth, dot.data, dot.weight, dot.llvm
    group, vector, total = f"{data}x{depth}", f"{weight}x{lanes * depth}", f"int32x{lanes}"

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((depth,), data, offset_factor=1),
        B: T.Buffer((lanes, depth), weight, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:depth], B[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=total) + T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(llvm),
                T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], group), dtype="int32"), lanes), dtype=vector),
                B.vload([0, 0], dtype=vector),
                dtype=total,
            )

    return implementation


def intrinsic_name(dot: DotProduct) -> str:
    """The name under which TVM knows the instruction."""
    return f"deploy.dot.{dot.name}"


def register(dot: DotProduct) -> str:
    """Make the instruction known to TVM's tensorize; its name there."""
    name = intrinsic_name(dot)
    if TensorIntrin.get(name, allow_missing=True) is None:
        TensorIntrin.register(name, _description(dot), (_accumulating if dot.accumulates else _adding)(dot))
    return name


# Schedules on record name the instructions, so all of them have to be known before one is replayed.
for _, _dot in BY_FEATURES:
    register(_dot)
