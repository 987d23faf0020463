"""RelaxModel → LoweredModel: the one ordered pass list, shared by tuning and compiling so that they cannot drift."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from deploy import operators
from deploy.errors import DeployError, ToolError
from deploy.graph import Graph
from deploy.graph_from_relax import to_graph
from deploy.kernels.legalize import legalizations
from deploy.kernels.legalize_quantized import cheaper_products, quantized_kernels
from deploy.kernels.machine import Machine
from deploy.kernels.micro.legalize import micro_kernels
from deploy.kernels.micro.legalize_scaling import scaled_in_32_bits
from deploy.kernels.schedule import prepared
from deploy.model_spec import one_line
from deploy.relax_fold import fold_affine, fold_constants
from deploy.relax_import import RelaxModel
from deploy.relax_layout import convert_layout, rewrite_constants
from deploy.relax_rewrite import (
    op_name,
    rewrite_clips,
    rewrite_conv1d,
    rewrite_reshapes,
    rewrite_takes,
    rewrite_topk,
    sink_reshapes,
)
from deploy.relax_transposes import raise_transposes


@dataclass(frozen=True)
class LoweredModel:
    """A model as a straight list of kernel calls; `kernels` holds each distinct kernel once, unscheduled."""

    name: str
    graph: Graph
    kernels: dict[str, tirx.PrimFunc]
    macs: int


def _simplify() -> list[tvm.ir.transform.Pass]:
    """Inference form, one layout, constants folded."""
    return [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        fold_constants(),
        relax.transform.FoldConstant(),
        rewrite_clips(),
        rewrite_takes(),
        rewrite_topk(),
        rewrite_constants(),
        rewrite_conv1d(),
        rewrite_reshapes(),  # ConvertLayout overflows on a negative axis of squeeze
        sink_reshapes(),
        rewrite_reshapes(),
        relax.transform.CanonicalizeBindings(),
        convert_layout(),
        relax.transform.Normalize(),
        relax.transform.CanonicalizeBindings(),
        raise_transposes(),
        fold_constants(),
        relax.transform.FoldConstant(),
        rewrite_reshapes(),
        fold_affine(),
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.DeadCodeElimination(["main"]),
    ]


def _to_kernels(machine: Machine) -> list[tvm.ir.transform.Pass]:
    """Every operator a PrimFunc, element-wise ones fused into what they follow."""
    return [
        micro_kernels(machine) if machine.micro else quantized_kernels(machine),
        scaled_in_32_bits(),
        *(() if machine.micro else (cheaper_products(),)),
        relax.transform.DeadCodeElimination(["main"]),
        relax.transform.LegalizeOps(legalizations(machine)),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.FuseOps(fuse_opt_level=2),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(["main"]),
    ]


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever TVM raises while it works on `what` into a ToolError of one sentence that names it."""
    try:
        yield
    except DeployError:
        raise
    except Exception as error:  # TVM raises anything from TypeError to InternalError
        operator = _failing_operator(error)
        where = f" at operator {operator}" if operator else ""
        raise ToolError(
            f"TVM cannot compile {what}{where}: {one_line(error)}; "
            "replace that part of the model, or report it with the model"
        ) from error


def _failing_operator(error: BaseException) -> str | None:
    """The operator that was being legalized when `error` was raised, found in the frames of its traceback."""
    found, trace = None, error.__traceback__
    while trace is not None:
        name = op_name(trace.tb_frame.f_locals.get("call"))
        found = name.removeprefix("relax.") or found
        trace = trace.tb_next
    return found


def lower(model: RelaxModel, target: tvm.target.Target, machine: Machine) -> LoweredModel:
    """Lower an imported model for `target`.

    Raises InputError where an operator has no ahead-of-time form, all such operators named at once; ToolError where
    TVM fails.
    """
    with explained(f"model '{model.name}'"), target, tvm.transform.PassContext(opt_level=3):
        simple = tvm.transform.Sequential(_simplify())(model.mod)
        mod = tvm.transform.Sequential(_to_kernels(machine))(simple)
    graph = to_graph(mod, model)
    used = {call.kernel for call in graph.calls}
    kernels = {gv.name_hint: prepared(f) for gv, f in mod.functions.items() if gv.name_hint in used}
    return LoweredModel(model.name, graph, kernels, operators.count(model.mod)[1])
