"""The dot-product instructions of `dot` in TVMScript, for tensorize: what each computes, and the call that does it.

TVMScript reads these functions' text; as Python they have no types.
"""

from __future__ import annotations

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from deploy.kernels.dot import BY_FEATURES, DotProduct, intrinsic_name


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


def register(dot: DotProduct) -> str:
    """Make the instruction known to TVM's tensorize; its name there."""
    name = intrinsic_name(dot)
    if TensorIntrin.get(name, allow_missing=True) is None:
        TensorIntrin.register(name, _description(dot), (_accumulating if dot.accumulates else _adding)(dot))
    return name


# Schedules on record name the instructions, so all of them have to be known before one is replayed.
for _, _dot in BY_FEATURES:
    register(_dot)
