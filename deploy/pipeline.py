"""The steps in order: load, tune, build, verify, measure, check, report. The only module that knows them all."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from deploy import model, reference, verify
from deploy.artifact import Artifact
from deploy.device.protocol import RunPlan
from deploy.devices import open_device
from deploy.errors import DeployError, InputError
from deploy.evidence import float_form, make_report, save_report
from deploy.measure import Measurement, measure
from deploy.model_spec import SourceModel
from deploy.progress import Progress, ProgressEvent, Silent
from deploy.report import Accuracy, FloatForm, Report, TensorDifference, TuningFacts, Verification
from deploy.target import Target, missing_features
from deploy.targets import load_target, shipped_directory
from deploy.units import did_you_mean

if TYPE_CHECKING:
    from deploy.tuning.log import TuningLog

Array = npt.NDArray[Any]
LOGS = Path("tuning_logs")
SAMPLES = 4  # inputs made up where none are given
ENERGY_SECONDS = 1.0
FLOAT_PLAN = RunPlan(warmup_s=0.1, seconds=0.5, min_samples=10, max_samples=200, max_rounds=1)  # only to compare with


@dataclass(frozen=True)
class Samples:
    """Inputs to verify with, one list of arrays a sample, and their labels where they are known."""

    inputs: Sequence[Sequence[Array]]
    labels: Array | None = None
    real: bool = False


def load_model(given: str | Path | SourceModel, shapes: Mapping[str, tuple[int, ...]] | None = None) -> SourceModel:
    """The model in a file, or the one given. Raises InputError."""
    return given if isinstance(given, SourceModel) else model.load(given, shapes or {})


def samples_for(source: SourceModel | Artifact, path: Path | None, seed: int = 0) -> Samples:
    """Inputs from a .npz or .npy file, its array `labels` apart; random ones where there is no file."""
    if path is None:
        return Samples(reference.sample_inputs(source, SAMPLES, seed))
    inputs = reference.load_inputs(path, source)
    labels = reference.load_labels(path, len(inputs))
    return Samples(inputs, labels, real=True)


def check_runnable(target: Target) -> None:
    """Raise InputError where a target's code cannot be run from here: its device, or this CPU's instructions."""
    open_device(target)  # which looks for what it needs, and touches nothing
    missing = missing_features(target) if target.device.kind == "local" else ()
    if missing:
        raise InputError(
            f"this CPU lacks {', '.join(missing)}, which code for target {target.name} uses; "
            "take a target that it has, such as `--target host`, or only `tvm-deploy build` here"
        )


def check_reference(source: SourceModel, target: Target) -> None:
    """Raise InputError where what the target's rounding is verified against is not installed."""
    reference.check_installed(source, target.rounding)


def check_code(target: Target) -> None:
    """Raise InputError for a CPU that LLVM does not know: it would quietly compile for a generic one."""
    from tvm.target import Target as TvmTarget
    from tvm.target import codegen

    if target.mcpu is None or target.tvm["kind"] != "llvm":
        return
    machine = {key: value for key, value in target.tvm.items() if key in ("kind", "mtriple")}
    known = [str(name) for name in codegen.llvm_get_cpu_archlist(TvmTarget(machine))]
    if target.mcpu not in known:
        hint = did_you_mean(target.mcpu, known)
        raise InputError(f'target {target.name} is for the CPU "{target.mcpu}", which LLVM does not know{hint}')


def open_log(target: Target, root: Path = LOGS) -> TuningLog:
    """The tuning log under `root`, with the shipped records that fit the target."""
    from deploy.tuning.log import TuningLog

    return TuningLog.open(target, root, [shipped_directory("tuning_logs")])


def tune(
    source: SourceModel,
    target: Target,
    trials: int | None,
    progress: Progress,
    root: Path = LOGS,
    builders: str | None = None,
) -> TuningFacts:
    """Have `trials` measured schedules of the model's kernels on record. Raises ToolError where there are none.

    Without a number it is the target's, and kernels that come tuned, as in the shipped logs, are left as they are.
    """
    from deploy.compile import lower_for, schedule_all
    from deploy.tuning.search import tune as search
    from deploy.tuning.task import tasks

    if target.tvm["kind"] == "c":
        raise InputError(f"kernels of {target.name} in C are not tuned: another compiler decides; use `--trials 0`")
    if target.device.kind == "ssh":
        raise InputError(
            f"candidates for {target.name} cannot be timed on a board over SSH by this version; use `--trials 0`: the "
            "kernels then have the best schedules on record, and defaults for the rest"
        )
    check_runnable(target)
    check_code(target)
    lowered, log = lower_for(source, target), open_log(target, root)
    every = tasks(lowered)
    left = [task for task in every if trials is not None or not log.is_tuned(task.mod)]
    count = target.tuning.trials if trials is None else trials
    outcome = search(left, target, log, count, progress, builders=builders)
    words = outcome.words if left else "all kernels come tuned; --trials N tunes them again"
    progress.update(ProgressEvent("tune", finished=True, message=words))
    tuned = len(schedule_all(lowered, target, log).tuned)
    return TuningFacts(len(every), tuned, outcome.trials, tuned)


def build(
    given: str | Path | SourceModel,
    target: str | Target,
    *,
    out: str | Path,
    trials: int = 0,
    progress: Progress | None = None,
    logs: Path = LOGS,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Artifact:
    """Tune up to `trials` candidates, then compile the model into the folder `out` with the best known schedules.

    Raises InputError for a wrong model, target or folder, ToolError where a compiler or TVM fails.
    """
    from deploy.compile import build as compile_model
    from deploy.tuning.log import TuningLog

    shown = progress or Silent()
    source = load_model(given, shapes)
    chosen = load_target(target) if isinstance(target, str) else target
    if trials:
        tune(source, chosen, trials, shown, logs)
    shown.update(ProgressEvent("compile", source.name))
    check_code(chosen)
    records = TuningLog.read(chosen, [logs, shipped_directory("tuning_logs")])
    return compile_model(source, chosen, Path(out), records)


def measure_artifact(artifact: Artifact, target: Target, samples: Samples, plan: RunPlan | None = None) -> Measurement:
    """Run the artifact on its device: every sample for its outputs, the first one for latency, power and energy."""
    check_runnable(target)
    with open_device(target) as device:
        return measure(
            device, artifact.library, artifact.prefix, artifact, samples.inputs,
            plan or RunPlan(energy_seconds=cast("float | None", target.power.get("duration")) or ENERGY_SECONDS),
        )  # fmt: skip


def _tolerances(target: Target, defaults: Mapping[str, float] = verify.TOLERANCES) -> dict[str, float]:
    return {dtype: target.tolerance(dtype, default) for dtype, default in defaults.items()}


def _stacked(runs: Sequence[Sequence[Array]]) -> list[Array]:
    """One array an output, over all samples."""
    return [np.stack(values) for values in zip(*runs, strict=True)]


def verify_outputs(
    source: SourceModel, samples: Samples, outputs: Sequence[Sequence[Array]], target: Target, in_steps: bool = False
) -> tuple[Verification, Accuracy | None]:
    """Compare the device's outputs with the source framework's; accuracy of both where labels are known.

    in_steps: the model is quantized in a format that is defined in floating point (see verify.STEP_TOLERANCES).
    """
    original = reference.Reference(source, target.rounding)
    expected = _stacked([original.run(sample) for sample in samples.inputs])
    actual = _stacked(outputs)
    tolerances = _tolerances(target, verify.STEP_TOLERANCES if in_steps else verify.TOLERANCES)
    compared = verify.compare([spec.name for spec in source.outputs], expected, actual, tolerances)
    failure = verify.first_failure(compared)
    dtypes = sorted({c.dtype for c in compared})
    facts = Verification(
        reference=original.name,
        samples=len(samples.inputs),
        passed=failure is None,
        tolerance=", ".join(f"{dtype} {tolerances[dtype]:g}" for dtype in dtypes),
        tensors=tuple(
            TensorDifference(c.name, c.dtype, c.count, c.differing, c.largest_abs, c.largest_rel) for c in compared
        ),
        first_mismatch=failure.name if failure else None,
    )
    if samples.labels is None:
        return facts, None
    return facts, Accuracy(_top1(expected[0], samples.labels), _top1(actual[0], samples.labels), len(samples.inputs))


def _top1(scores: Array, labels: Array) -> float:
    """Share of samples whose largest score is at the label; scores [samples, ...] are flattened."""
    return float(np.mean(scores.reshape(len(labels), -1).argmax(axis=1) == labels))


def first_wrong_tensor(source: SourceModel, target: Target, samples: Samples, folder: Path) -> str | None:
    """The first intermediate tensor, in the order of computation, that differs; nothing where none does.

    The model is compiled once more with every intermediate tensor as an output, so fusion differs from the real build:
    where that build is right everywhere, the fault is in what only the fused one does.
    """
    from deploy.compile import build as compile_model

    exposed = reference.expose_intermediates(source)
    artifact = compile_model(exposed, target, folder / "exposed")
    one = Samples(samples.inputs[:1])
    plan = RunPlan(warmup_s=0.0, seconds=0.01, min_samples=1, max_samples=1, max_rounds=1)
    outputs = measure_artifact(artifact, target, one, plan).outputs[0]
    expected = reference.Reference(exposed, target.rounding).run(one.inputs[0])
    names = [spec.name for spec in exposed.outputs]
    compared = verify.compare(names, expected, outputs, _tolerances(target))
    inner = verify.first_failure(compared[len(source.outputs) :])
    return inner.name if inner else None


def evaluate(
    artifact: Artifact,
    source: SourceModel | None,
    target: Target,
    samples: Samples,
    progress: Progress,
    tuning: TuningFacts | None = None,
    *,
    trace: bool = False,
    float_logs: Path | None = None,
) -> Report:
    """Measure an artifact, verify it where the source model is at hand, judge it, and store the report in it.

    trace: where an output is wrong, name the first intermediate tensor that differs instead of the output.
    float_logs: compare a quantized model with its float form, built with the schedules of that tuning log.
    """
    progress.update(ProgressEvent("measure", artifact.prefix))
    measured = measure_artifact(artifact, target, samples)
    verified = in_float = None
    if source is not None and float_logs is not None and artifact.facts.get("integer"):
        progress.update(ProgressEvent("compare", f"{artifact.prefix} in float"))
        in_float = measure_float_form(source, target, samples, float_logs)
    if source is not None:
        progress.update(ProgressEvent("verify", source.name))
        in_steps = bool(artifact.facts.get("integer")) and source.format != "tflite"
        verified = verify_outputs(source, samples, measured.outputs, target, in_steps)
        if trace and not verified[0].passed:
            verified = (replace(verified[0], first_mismatch=_traced(verified[0], source, target, samples)), verified[1])
    report = make_report(artifact, target, tuning, verified, measured, in_float)
    save_report(artifact, report)
    return report


def measure_float_form(source: SourceModel, target: Target, samples: Samples, logs: Path) -> FloatForm:
    """The float form of a quantized model on the target's device, shortly; why not, where that does not work."""
    from deploy.compile import build as compile_model
    from deploy.tuning.log import TuningLog

    records = TuningLog.read(target, [logs, shipped_directory("tuning_logs")])
    with tempfile.TemporaryDirectory(prefix="tvm-deploy-float-") as folder:
        try:
            artifact = compile_model(source, target, Path(folder) / "float", records, in_float=True)
            measured = measure_artifact(artifact, target, Samples(samples.inputs[:1]), FLOAT_PLAN)
        except DeployError as error:  # it may not fit the device: that says nothing about the model
            return FloatForm(None, 0, 0, str(error))
    return float_form(artifact, target, measured)


def _traced(verification: Verification, source: SourceModel, target: Target, samples: Samples) -> str | None:
    with tempfile.TemporaryDirectory(prefix="tvm-deploy-trace-") as folder:
        found = first_wrong_tensor(source, target, samples, Path(folder))
    return found or verification.first_mismatch
