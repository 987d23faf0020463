"""RelaxModel → LoweredModel: the one ordered pass list, shared by tuning and compiling so that they cannot drift."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from deploy import operators
from deploy.graph import Graph
from deploy.graph_from_relax import to_graph
from deploy.kernels.legalize import legalizations
from deploy.kernels.machine import Machine
from deploy.relax_import import RelaxModel
from deploy.relax_rewrite import fold_affine, rewrite_clips, rewrite_reshapes

LAYOUTS = {"relax.nn.conv2d": ["NHWC", "HWIO"]}


@dataclass(frozen=True)
class LoweredModel:
    """A model as a straight list of kernel calls; `kernels` holds each distinct kernel once, unscheduled."""

    name: str
    graph: Graph
    kernels: dict[str, tirx.PrimFunc]
    operators: dict[str, int]
    macs: int


def _simplify() -> list[tvm.ir.transform.Pass]:
    """Inference form, one layout, constants folded."""
    return [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.FoldConstant(),
        rewrite_clips(),
        rewrite_reshapes(),  # ConvertLayout overflows on a negative axis of squeeze
        relax.transform.CanonicalizeBindings(),
        relax.transform.ConvertLayout(LAYOUTS),
        relax.transform.Normalize(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.FoldConstant(),
        rewrite_reshapes(),
        fold_affine(),
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.DeadCodeElimination(["main"]),
    ]


def _to_kernels(machine: Machine) -> list[tvm.ir.transform.Pass]:
    """Every operator a PrimFunc, element-wise ones fused into what they follow."""
    return [
        relax.transform.LegalizeOps(legalizations(machine)),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.FuseOps(fuse_opt_level=2),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(["main"]),
    ]


def lower(model: RelaxModel, target: tvm.target.Target, machine: Machine) -> LoweredModel:
    """Lower an imported model for `target`.

    Raises InputError where an operator has no ahead-of-time form, all such operators named at once.
    """
    with target, tvm.transform.PassContext(opt_level=3):
        simple = tvm.transform.Sequential(_simplify())(model.mod)
        mod = tvm.transform.Sequential(_to_kernels(machine))(simple)
    graph = to_graph(mod, model)
    used = {call.kernel for call in graph.calls}
    kernels = {gv.name_hint: f for gv, f in mod.functions.items() if gv.name_hint in used}
    return LoweredModel(model.name, graph, kernels, *operators.count(model.mod))
