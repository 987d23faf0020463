"""The upper half of a rounded product, which Helium has an instruction for and LLVM does not find.

`scaled` writes it as 64-bit arithmetic. Vectors of 64-bit numbers do not exist on these cores: LLVM would take them
apart.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir.prim.expr import LShift, RShift
from tvm_ffi import structural_map

INSTRUCTION = "llvm.arm.mve.vqrdmulh"
LANES = 4


def with_high_products(body: tirx.Stmt) -> tirx.Stmt:
    """`body` with vqrdmulh(a, b) in place of (int64(a << 1) * int64(b) + 2^31) >> 32 on int32 vectors."""
    return structural_map(body, (tirx.Cast, _replaced))


def _replaced(cast: tirx.Cast) -> Any:
    shifted = cast.value
    if str(cast.ty.dtype) != f"int32x{LANES}" or not isinstance(shifted, RShift) or _number(shifted.b) != 32:
        return cast
    rounded = shifted.a
    if not isinstance(rounded, tirx.Add) or _number(rounded.b) != 1 << 31 or not isinstance(rounded.a, tirx.Mul):
        return cast
    left, right = rounded.a.a, rounded.a.b
    factor = _factor(right)
    if factor is None or not isinstance(left, tirx.Cast) or not isinstance(left.value, LShift):
        return cast
    data, times = left.value.a, _number(left.value.b)
    if times is None or times < 1:
        return cast
    if times > 1:
        data = data << tirx.Broadcast(tirx.const(times - 1, "int32"), LANES)
    return tirx.call_llvm_pure_intrin(f"int32x{LANES}", INSTRUCTION, data, factor)


def _factor(expr: Any) -> Any:
    """The 32-bit vector that a 64-bit one was made from, or nothing."""
    if isinstance(expr, tirx.Cast):
        return expr.value
    number = _number(expr)
    small = number is not None and -(1 << 31) <= number < 1 << 31
    return tirx.Broadcast(tirx.const(number, "int32"), LANES) if small else None


def _number(expr: Any) -> int | None:
    """The number that is in all lanes."""
    value = expr.value if isinstance(expr, tirx.Broadcast) else expr
    return int(value.value) if isinstance(value, tirx.IntImm) else None
