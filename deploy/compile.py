"""SourceModel → Artifact: import, lower, schedule, compile; written as one folder that appears whole or not at all."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target as TvmTarget

from deploy import files, operators
from deploy.aot import build as aot
from deploy.aot.fit import check_fit
from deploy.artifact import MANIFEST, Artifact, file_hashes, manifest_text, spec_facts
from deploy.dead_channels import Eliminated, eliminate_dead_channels
from deploy.integer import IntegerModel, to_integer
from deploy.integer.as_float import as_float
from deploy.kernels.default import default_schedule
from deploy.kernels.for_target import machine_for
from deploy.lower import LoweredModel, explained, lower
from deploy.model_spec import SourceModel
from deploy.relax_import import RelaxModel, import_model
from deploy.target import Target
from deploy.target_memory import memory_facts

QUANTIZED = {"quantize", "dequantize"}
TOOLS = ("apache-tvm", "torch", "onnx", "onnxruntime", "ai-edge-litert", "xgboost-cpu", "numpy")


class Schedules(Protocol):
    """Where tuned schedules come from."""

    def find(self, func: tirx.PrimFunc) -> Schedule | None:
        """The best known schedule of exactly this kernel, or nothing."""


@dataclass(frozen=True)
class Scheduled:
    """Every kernel with a schedule, and the names of those whose schedule was found by tuning."""

    kernels: dict[str, tirx.PrimFunc]
    tuned: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """A model in Relax, ready to be lowered; its operators as they came, and what was done with it since."""

    model: RelaxModel
    operators: dict[str, int]
    integer: IntegerModel | None
    eliminated: Eliminated


def imported(source: SourceModel, target: Target, in_float: bool = False) -> Imported:
    """Import a model, bring a quantized one into integers, and remove channels that no result depends on.

    in_float: compute a quantized model in float32 instead, to compare with.
    """
    model, integer = import_model(source), None
    counts = operators.count(model.mod)[0]
    if in_float:
        with explained(f"model '{source.name}' in float"):
            model = replace(model, mod=as_float(model.mod))
    elif counts.keys() & QUANTIZED:
        with explained(f"model '{source.name}' in integers"):
            integer = to_integer(model, target.rounding, source.format)
        model = replace(model, mod=integer.mod)
    with explained(f"model '{source.name}' without dead channels"):
        eliminated = eliminate_dead_channels(model.mod, machine_for(target).lanes(32))
    return Imported(replace(model, mod=eliminated.mod), counts, integer, eliminated)


def lower_for(source: SourceModel, target: Target) -> LoweredModel:
    """Import and lower a model for a target. Raises InputError for what cannot be compiled."""
    return _lowered(imported(source, target), target)


def _lowered(ready: Imported, target: Target) -> LoweredModel:
    model = lower(ready.model, TvmTarget(target.tvm), machine_for(target))
    check_fit(model.name, model.graph, target)
    return model


def schedule_all(model: LoweredModel, target: Target, schedules: Schedules | None) -> Scheduled:
    """A schedule for every kernel: the best that was found by tuning, else the default."""
    machine = machine_for(target)
    kernels, tuned = {}, []
    for name, func in model.kernels.items():
        with explained(f"kernel {name} of model '{model.name}'"):
            found = schedules.find(func) if schedules is not None else None
            if found is not None:
                tuned.append(name)
            kernels[name] = (found or default_schedule(func, machine)).mod["main"]
    return Scheduled(kernels, tuple(tuned))


def tool_versions() -> dict[str, str]:
    """Versions of this program, Python and the libraries whose behaviour shapes the result."""
    return {"tvm-deploy": version("tvm-deploy"), "python": platform.python_version(), **{t: version(t) for t in TOOLS}}


def _integer_facts(source: SourceModel, integer: IntegerModel | None, target: Target) -> dict[str, Any] | None:
    """Operators of a quantized model before and after it was brought into integers, and what stayed in float.

    `rounding` is None for formats that have only one.
    """
    if integer is None:
        return None
    kept = [{"name": one.name, "reason": one.reason} for one in integer.kept_float]
    rounding = target.rounding if source.format == "tflite" else None
    return {"rounding": rounding, "before": dict(integer.before), "after": dict(integer.after), "float": kept}


def _facts(
    source: SourceModel, model: LoweredModel, ready: Imported, target: Target, scheduled: Scheduled
) -> dict[str, Any]:
    integer, gone = ready.integer, ready.eliminated
    return {
        "name": source.name,
        "prefix": source.c_name,
        "library": aot.library_name(target),
        "arena_alignment": target.alignment,
        "model": {"name": source.name, "format": source.format, "sha256": source.sha256},
        "target": {
            "name": target.name,
            "fingerprint": target.fingerprint(),
            "tvm": {**dict(target.tvm_options), **target.tvm},
            "toolchain": asdict(target.toolchain),
            "memory": memory_facts(target.memory),
        },
        "threads": target.threads,
        "inputs": spec_facts(source.inputs),
        "outputs": spec_facts(source.outputs),
        "operators": ready.operators,
        "integer": _integer_facts(source, integer, target),
        "macs": model.macs,
        "dead_channels": {"removed": dict(gone.removed), "macs_before": gone.macs_before},
        "kernels": {"count": len(scheduled.kernels), "tuned": sorted(scheduled.tuned)},
        "versions": tool_versions(),
    }


def build(
    source: SourceModel, target: Target, out: Path, schedules: Schedules | None = None, *, in_float: bool = False
) -> Artifact:
    """Compile `source` for `target` into the folder `out`; `in_float` as for `imported`.

    Raises InputError for a model that cannot be compiled or a folder that cannot be written, ToolError for a compiler.
    """
    ready = imported(source, target, in_float)
    model = _lowered(ready, target)
    scheduled = schedule_all(model, target, schedules)
    facts: Mapping[str, Any] = _facts(source, model, ready, target, scheduled)
    with files.atomic_directory(out, marker=MANIFEST) as folder:
        graph, plan, sizes = aot.build(
            model, scheduled.kernels, (source.inputs, source.outputs), target, source.c_name, folder
        )
        facts = {
            **facts,
            "sizes": sizes.facts,
            "memory_plan": {
                name: [offset, graph.tensors[name].nbytes, *([plan.pool_of[name]] if name in plan.pool_of else [])]
                for name, offset in plan.offsets.items()
            },
            "calls": [call.kernel for call in graph.calls],
            "files": file_hashes(folder),
        }
        (folder / MANIFEST).write_text(manifest_text(facts))
    return Artifact.open(out)
