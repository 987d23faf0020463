"""The stages of this package's kernels, found by their roles."""

from __future__ import annotations

from math import prod

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from deploy.kernels.compute import ROLE


def blocks_by_role(sch: Schedule) -> dict[str, SBlockRV]:
    """The stages of a kernel of this package."""
    root = sch.get_sblock("root", func_name="main")
    roles = ((sch.get(block).annotations.get(ROLE), block) for block in sch.get_child_blocks(root))
    return {str(role): block for role, block in roles if role is not None}


def is_packed(func: tirx.PrimFunc) -> bool:
    """Whether `func` is one of this package's kernels, with a result of its own size.

    Fusion may have put an operator behind it that broadcasts: each of its sums would be computed many times.
    """
    sch = Schedule(func)
    found = blocks_by_role(sch)
    if not {"accumulate", "unpack"} <= set(found):
        return False
    last = sch.get_child_blocks(sch.get_sblock("root", func_name="main"))[-1]
    result, sums = (prod(map(int, sch.get(b).writes[0].source.ty.shape)) for b in (last, found["unpack"]))
    return result == sums


def last_block(sch: Schedule, found: dict[str, SBlockRV]) -> SBlockRV:
    """The block that writes the result, every element-wise one between the accumulation and it inlined."""
    root = sch.get_sblock("root", func_name="main")
    stages = [str(sch.get(found[role]).name_hint) for role in ("pad", "accumulate") if role in found]
    *between, last = (b for b in sch.get_child_blocks(root) if str(sch.get(b).name_hint) not in stages)
    for block in between:
        sch.compute_inline(block)
    return last
