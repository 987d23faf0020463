"""Tuning tasks: each distinct kernel of a model, weighted by how often the model calls it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
from tvm import tirx
from tvm.ir import IRModule

from deploy.graph import COPY
from deploy.lower import LoweredModel


@dataclass(frozen=True)
class Task:
    """One kernel to tune; `calls` is how often one inference runs it.

    constants: those of the first call, for each input that is one, in the kernel's order; None for all others.
    """

    name: str
    func: tirx.PrimFunc
    calls: int
    constants: tuple[npt.NDArray[Any] | None, ...] = field(default=(), compare=False, repr=False)

    @property
    def mod(self) -> IRModule:
        """The kernel as the module under which its records are kept."""
        return workload(self.func)


def workload(func: tirx.PrimFunc) -> IRModule:
    """A kernel as a module of its own, the same whatever the model calls it."""
    return IRModule({"main": func.with_attr("global_symbol", "main")})


def tasks(model: LoweredModel) -> list[Task]:
    """The model's distinct kernels, in the order of their first call."""
    calls = [call for call in model.graph.calls if call.kernel != COPY]
    first = {call.kernel: call for call in reversed(calls)}
    return [
        Task(name, model.kernels[name], count, tuple(model.graph.root(i).values for i in first[name].inputs))
        for name, count in Counter(call.kernel for call in calls).items()
    ]
