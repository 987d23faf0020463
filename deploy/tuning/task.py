"""Tuning tasks: each distinct kernel of a model, weighted by how often the model calls it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import IRModule

from deploy.graph import COPY
from deploy.lower import LoweredModel


@dataclass(frozen=True)
class Task:
    """One kernel to tune; `calls` is how often one inference runs it."""

    name: str
    func: tirx.PrimFunc
    calls: int

    @property
    def mod(self) -> IRModule:
        """The kernel as the module under which its records are kept."""
        return workload(self.func)


def workload(func: tirx.PrimFunc) -> IRModule:
    """A kernel as a module of its own, the same whatever the model calls it."""
    return IRModule({"main": func.with_attr("global_symbol", "main")})


def tasks(model: LoweredModel) -> list[Task]:
    """The model's distinct kernels, in the order of their first call."""
    counts = Counter(call.kernel for call in model.graph.calls if call.kernel != COPY)
    return [Task(name, model.kernels[name], calls) for name, calls in counts.items()]
