"""An artifact's report: made of all that is known, kept in its manifest, judged again. Compiles and runs nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from deploy.artifact import Artifact
from deploy.errors import InputError
from deploy.measure import Measurement
from deploy.model_spec import SourceModel
from deploy.report import (
    Accuracy,
    Latency,
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


def make_report(
    artifact: Artifact,
    target: Target,
    tuning: TuningFacts | None,
    verified: tuple[Verification, Accuracy | None] | None,
    measured: Measurement,
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
        latency=Latency.of(measured.samples_s, measured.how),
        power=measured.power,
        energy=measured.energy,
        checks=(),
        accuracy=accuracy,
    )
    return judged(report, target.budget)


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
    return judged(saved_report(artifact), target.budget)


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


def explain(artifact: Artifact) -> str:
    """How a quantized model was brought into integers: operators before and after, and what stayed in float."""
    facts = artifact.facts.get("integer")
    if facts is None:
        return f"{artifact.name} is not quantized: it computes in the types of the source model"
    names = sorted({*facts["before"], *facts["after"]})
    width = max(map(len, names))
    lines = [f"{'operator':{width}}  before  after"]
    lines += [f"{name:{width}}  {facts['before'].get(name, 0):6}  {facts['after'].get(name, 0):5}" for name in names]
    lines += [f"stays in float: {one['name']}: {one['reason']}" for one in facts["float"]]
    return "\n".join(lines if facts["float"] else [*lines, "nothing stays in float"])
