"""An artifact's report: made of all that is known, kept in its manifest, judged again. Compiles and runs nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

from deploy.artifact import Artifact
from deploy.battery import Battery, Drain, life
from deploy.errors import InputError
from deploy.measure import Measurement
from deploy.model_spec import SourceModel
from deploy.report import (
    Accuracy,
    Firmware,
    FloatForm,
    Latency,
    Layer,
    ModelFacts,
    Report,
    Sizes,
    TargetFacts,
    TuningFacts,
    Verification,
    judged,
    parse_json,
    render_json,
)
from deploy.target import Target
from deploy.units import render

ROUNDING = {"single": "LiteRT's reference kernels", "double": "TFLite Micro and CMSIS-NN"}


def make_report(
    artifact: Artifact,
    target: Target,
    tuning: TuningFacts | None,
    verified: tuple[Verification, Accuracy | None] | None,
    measured: Measurement,
    float_form: FloatForm | None = None,
) -> Report:
    """Everything that is known of an artifact, judged."""
    facts, sizes, kernels = artifact.facts, artifact.facts["sizes"], artifact.facts["kernels"]
    verification, accuracy = verified if verified is not None else (None, None)
    tuned = len(kernels["tuned"])
    report = Report(
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        versions=facts["versions"],
        artifact=str(artifact.path),
        target=TargetFacts(target.name, target.fingerprint()),
        model=ModelFacts(**facts["model"]),
        operators=facts["operators"],
        macs=facts["macs"],
        threads=facts["threads"],
        sizes=Sizes(sizes["arena_bytes"], sizes["weight_bytes"], sizes["library_bytes"], measured.peak_rss_bytes),
        tuning=TuningFacts(kernels["count"], tuned, tuning.trials if tuning else 0, tuned),
        verification=verification,
        latency=Latency.of(measured.samples_s, measured.how, _basis(target, measured)),
        power=measured.power,
        energy=measured.energy,
        checks=(),
        accuracy=accuracy,
        float_form=float_form,
        firmware=_firmware(artifact, measured),
        energy_above_idle=measured.energy_above_idle,
    )
    return judged(with_battery(report, target.battery), target.budget)


def with_battery(report: Report, battery: Battery | None) -> Report:
    """The report with how long the battery lasts, of the energy that it has."""
    if battery is None:
        return replace(report, battery_life=None)
    energy, above = report.energy, report.energy_above_idle
    if energy is None or energy.joules is None:
        return replace(report, battery_life=life(battery, None, "measured"))
    idle_w = None
    if above is not None and above.joules is not None and energy.seconds > 0:
        idle_w = (energy.joules - above.joules) / energy.seconds
    low, high = (energy.joules if bound is None else bound for bound in (energy.low, energy.high))
    drain = Drain(energy.joules, energy.seconds, low, high, idle_w)
    guessed = energy.how == "estimated" or (battery.sleep is None and above is not None and above.how == "estimated")
    return replace(report, battery_life=life(battery, drain, "estimated" if guessed else "measured"))


def float_form(artifact: Artifact, target: Target, measured: Measurement) -> FloatForm:
    """What the measured float form of a quantized model, itself an artifact, says about that model."""
    kernels = artifact.facts["kernels"]
    latency = Latency.of(measured.samples_s, measured.how, _basis(target, measured))
    return FloatForm(latency, kernels["count"], len(kernels["tuned"]))


def _basis(target: Target, measured: Measurement) -> str:
    """What an estimated latency rests on."""
    if measured.how != "estimated" or target.clock is None:
        return ""
    return f"an instruction a cycle at {render(target.clock, 'frequency')}"


def _firmware(artifact: Artifact, measured: Measurement) -> Firmware | None:
    sizes = artifact.facts["sizes"]
    flash = sizes.get("flash")
    if flash is None:
        return None
    counted = measured.layers if measured.instructions else ()  # a board's are cycles
    layers = zip(artifact.facts["calls"], counted, strict=False)
    return Firmware(
        weights_bytes=flash["weights"],
        code_bytes=flash["code"],
        glue_bytes=flash["glue"],
        libraries_bytes=flash["libraries"],
        arena_bytes=sizes["arena_bytes"],
        io_bytes=sizes["io_bytes"],
        stack_bytes=measured.stack_bytes,
        instructions=measured.instructions,
        layers=tuple(Layer(kernel, count) for kernel, count in layers),
        how="measured" if measured.how == "measured" else "emulated",
        pools=sizes.get("pools", {}),
        external_flash_bytes=flash.get("external", 0),
    )


def save_report(artifact: Artifact, report: Report) -> Artifact:
    """Put a report into the artifact's manifest."""
    return artifact.with_facts(report=json.loads(render_json(report)))


def saved_report(artifact: Artifact) -> Report:
    """The report in an artifact's manifest. Raises InputError where it was never measured."""
    stored = artifact.facts.get("report")
    if stored is None:
        raise InputError(f"{artifact.path} was not measured yet; run `tvm-deploy measure` on it first")
    return parse_json(json.dumps(stored), str(artifact.path))


def judged_again(artifact: Artifact, target: Target) -> Report:
    """The artifact's last measurement against a target's budgets. Raises InputError where it is of another target."""
    check_target(target, artifact)
    return judged(with_battery(saved_report(artifact), target.battery), target.budget)


def check_same(source: SourceModel, artifact: Artifact) -> None:
    """Raise InputError where an artifact was built from another model."""
    if artifact.facts["model"]["sha256"] != source.sha256:
        given = source.path or source.name
        raise InputError(f"{artifact.path} was built from another model than {given}; build it again")


def check_target(target: Target, artifact: Artifact) -> None:
    """Raise InputError where an artifact was built for other code generation than the target's."""
    built = artifact.facts["target"]
    if built["fingerprint"] != target.fingerprint():
        raise InputError(
            f"{artifact.path} was built for {built['name']} ({built['fingerprint']}), "
            f"not for {target.name} ({target.fingerprint()}); name that target, or build it again"
        )
    rounding = (artifact.facts.get("integer") or {}).get("rounding")
    if rounding not in (None, target.rounding):
        raise InputError(
            f"{artifact.path} was built with 'rounding: {rounding}', target {target.name} has "
            f"'rounding: {target.rounding}'; name a target with the same, or build it again"
        )


def explain(artifact: Artifact) -> str:
    """How a quantized model was brought into integers: operators before and after, and what stayed in float."""
    facts = artifact.facts.get("integer")
    if facts is None:
        return f"{artifact.name} is not quantized: it computes in the types of the source model"
    names = sorted({*facts["before"], *facts["after"]})
    width = max(map(len, names))
    lines = [f"{'operator':{width}}  before  after"]
    lines += [f"{name:{width}}  {facts['before'].get(name, 0):6}  {facts['after'].get(name, 0):5}" for name in names]
    if facts.get("rounding"):
        lines.append(f"rounding: {facts['rounding']}, as {ROUNDING[facts['rounding']]}")
    lines += [f"stays in float: {one['name']}: {one['reason']}" for one in facts["float"]]
    return "\n".join(lines if facts["float"] else [*lines, "nothing stays in float"])
