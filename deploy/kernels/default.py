"""The schedule that a kernel gets where nothing was tuned."""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule

from deploy.kernels import fallback, schedule
from deploy.kernels.machine import Machine
from deploy.kernels.micro import schedule as micro
from deploy.kernels.roles import is_packed


def default_schedule(func: tirx.PrimFunc, machine: Machine) -> Schedule:
    """The best guess: a packed kernel's first variant, or the plain schedule of everything else."""
    if not is_packed(func):
        return fallback.schedule(func, machine)
    func = schedule.prepared(func)
    sch = Schedule(func)
    if micro.is_micro(func):
        micro.apply(sch, micro.variants(func)[0])
    else:
        schedule.apply(sch, schedule.variants(func, machine)[0], machine)
    return sch
