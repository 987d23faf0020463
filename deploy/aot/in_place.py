"""Results of calls written over inputs that die in them: which calls may do so, and what their kernels need for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from tvm import tirx

from deploy.aot.plan import Allowed, Plan
from deploy.graph import COPY, Call, Graph
from deploy.kernels.in_place import may_share
from deploy.kernels.plain import PlainKernel


def allowed(scheduled: Mapping[str, tirx.PrimFunc]) -> Allowed:
    """What the scheduled kernels allow. Each question is answered once."""

    @cache
    def answer(kernel: str, read: int, written: int) -> bool:
        return kernel != COPY and may_share(scheduled[kernel], read, written)

    return lambda call, read, written: answer(call.kernel, read, len(call.inputs) + written)


def overwritten(graph: Graph, plan: Plan) -> dict[str, str]:
    """The tensors that `plan` puts at the address of an input of the call that writes them, with that input."""
    return {one: other for call in graph.calls for one, other in _overwritten(graph, call, plan)}


def _overwritten(graph: Graph, call: Call, plan: Plan) -> list[tuple[str, str]]:
    results, inputs = ([graph.root(name).name for name in names] for names in (call.outputs, call.inputs))
    at = {name: plan.place(name) for name in (*results, *inputs) if name in plan.offsets}
    return [(one, other) for one in results for other in inputs if one in at and at[one] == at.get(other)]


def with_overlaps(kernels: Mapping[str, PlainKernel], graph: Graph, plan: Plan) -> dict[str, PlainKernel]:
    """The kernels, those that are called in place without the promise that their pointers never overlap."""
    overlapping = {call.kernel for call in graph.calls if _overwritten(graph, call, plan)}
    return {
        name: replace(kernel, func=kernel.func.without_attr("tirx.noalias")) if name in overlapping else kernel
        for name, kernel in kernels.items()
    }
