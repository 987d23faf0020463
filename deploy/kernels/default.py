"""The schedule that a kernel gets where nothing was tuned."""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule

from deploy.kernels import fallback, schedule
from deploy.kernels.machine import Machine


def default_schedule(func: tirx.PrimFunc, machine: Machine) -> Schedule:
    """The best guess: a packed kernel's first variant, or the plain schedule of everything else."""
    if not schedule.is_packed(func):
        return fallback.schedule(func, machine)
    func = schedule.prepared(func)
    sch = Schedule(func)
    schedule.apply(sch, schedule.variants(func, machine)[0], machine)
    return sch
