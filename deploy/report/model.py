"""The report as data. Everything a renderer shows is here; the verdict and the exit code follow from it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import Enum

from deploy.battery import BatteryLife
from deploy.budget import HOW, Check, Verdict
from deploy.power import EnergyReading
from deploy.report.firmware import Firmware
from deploy.statistics import summarize
from deploy.units import render

SCHEMA_VERSION = 1


class Overall(Enum):
    """The outcome of a run; only PASS gives exit code 0."""

    PASS = "PASS"
    WRONG_OUTPUT = "WRONG OUTPUT"
    NOT_VERIFIED = "NOT VERIFIED"
    MISS = "MISS"
    NOT_MEASURED = "NOT MEASURED"
    TOO_NOISY = "TOO NOISY"


@dataclass(frozen=True)
class TargetFacts:
    """The device's name and the fingerprint of all that code generation depends on."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class ModelFacts:
    """The model file: name, format ("onnx", "tflite", "pt2") and the SHA-256 of its bytes in hexadecimal."""

    name: str
    format: str
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"the SHA-256 {self.sha256[:80]!r} is not 64 hexadecimal digits")


@dataclass(frozen=True)
class Sizes:
    """Memory in bytes; peak_rss_bytes is of a process that only loads and runs the artifact, None if not measured."""

    arena_bytes: int
    weights_bytes: int
    library_bytes: int
    peak_rss_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_counts(self)


@dataclass(frozen=True)
class TuningFacts:
    """How many of the model's tasks have a tuned schedule, trials run this time, and log records used."""

    tasks: int
    tuned: int
    trials: int
    records_used: int

    def __post_init__(self) -> None:
        _check_counts(self)
        if self.tuned > self.tasks:
            raise ValueError(f"{self.tuned} of {self.tasks} tasks are tuned; it cannot be more than all")


@dataclass(frozen=True)
class TensorDifference:
    """One tensor against the reference, over all samples: values compared, values that differ at all, largest errors.

    largest_rel is relative to the reference's value; infinite where that is 0, nan where either is not a number.
    """

    name: str
    dtype: str
    count: int
    differing: int
    largest_abs: float
    largest_rel: float

    def __post_init__(self) -> None:
        _check_counts(self)
        if self.differing > self.count:
            raise ValueError(f"{self.differing} of {self.count} values of {self.name} differ; that is more than all")


@dataclass(frozen=True)
class Verification:
    """The comparison with the source framework.

    reference: what was compared with ("ONNX Runtime 1.27"); tolerance: in words; first_mismatch: the first tensor, in
    the order of computation, that is out of tolerance, or None.
    """

    reference: str
    samples: int
    passed: bool
    tolerance: str
    tensors: tuple[TensorDifference, ...]
    first_mismatch: str | None = None

    def __post_init__(self) -> None:
        _check_counts(self)
        if self.passed and (self.samples == 0 or not self.tensors):
            raise ValueError("a verification that compared nothing cannot pass")
        if self.passed and self.first_mismatch is not None:
            raise ValueError(f"a verification that passed has no first mismatch, but {self.first_mismatch!r} is given")


@dataclass(frozen=True)
class Accuracy:
    """Share of labelled samples whose largest output is at the label: in the source framework, and on the device."""

    reference: float
    device: float
    samples: int

    def __post_init__(self) -> None:
        _check_counts(self)
        for share in (self.reference, self.device):
            if not 0 <= share <= 1:
                raise ValueError(f"an accuracy of {share!r}; it is a share from 0 to 1")


@dataclass(frozen=True)
class Latency:
    """Time of one inference in seconds: every sample in the order taken, and what follows from them.

    how: measured, emulated or estimated; reason: why the samples are noisy, or empty. basis: what an estimate rests on.
    """

    samples_s: tuple[float, ...]
    median_s: float
    p90_s: float
    p99_s: float
    noisy: bool
    how: str
    reason: str = ""
    basis: str = ""

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ValueError(f"a latency cannot be {self.how!r}; allowed: {', '.join(HOW)}")
        for value in (*self.samples_s, self.median_s, self.p90_s, self.p99_s):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"a latency of {value!r} s; it must be finite and 0 s or more")

    @classmethod
    def of(cls, samples_s: Sequence[float], how: str, basis: str = "") -> Latency:
        """Return the latency that samples in seconds show; an estimate has no noise. InputError if there are none."""
        found = summarize(samples_s)
        noisy, reason = (False, "") if how == "estimated" else (found.noisy, found.reason)
        return cls(tuple(samples_s), found.median, found.p90, found.p99, noisy, how, reason, basis)


@dataclass(frozen=True)
class FloatForm:
    """The same quantized model computing in float32, on the same device in the same run, to compare with.

    kernels, tuned: of this form. reason: why it has no latency, else empty.
    """

    latency: Latency | None
    kernels: int
    tuned: int
    reason: str = ""

    def __post_init__(self) -> None:
        _check_counts(self)
        if self.tuned > self.kernels:
            raise ValueError(f"{self.tuned} of {self.kernels} kernels are tuned; it cannot be more than all")
        if (self.latency is None) != bool(self.reason):
            raise ValueError("a float form has a latency, or a reason why not")


@dataclass(frozen=True)
class Report:
    """All that a run found out; None where a step did not run.

    created: UTC, as 2026-01-31T12:00:00Z. versions: of this tool and those it used. operators: how many of each kind.
    macs: multiply-accumulates of one inference. power: the whole measured run, with the meter's raw samples;
    energy: one inference, energy_above_idle: what of it is more than the idle device takes (they have no samples of
    their own). float_form: of a quantized model. firmware: on a microcontroller. battery_life: where the target has a
    battery.
    """

    created: str
    versions: Mapping[str, str]
    artifact: str
    target: TargetFacts
    model: ModelFacts
    operators: Mapping[str, int]
    macs: int | None
    threads: int
    sizes: Sizes | None
    tuning: TuningFacts | None
    verification: Verification | None
    latency: Latency | None
    power: EnergyReading | None
    energy: EnergyReading | None
    checks: tuple[Check, ...]
    accuracy: Accuracy | None = None
    float_form: FloatForm | None = None
    firmware: Firmware | None = None
    energy_above_idle: EnergyReading | None = None
    battery_life: BatteryLife | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check_counts(self)
        try:
            datetime.strptime(self.created, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            raise ValueError(f"created is {self.created[:80]!r}; a time looks like 2026-01-31T12:00:00Z") from None
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema version {self.schema_version}; this program writes {SCHEMA_VERSION}")
        if any(count < 1 for count in self.operators.values()) or self.threads < 1:
            raise ValueError("an operator that is listed occurs, and a model runs on a thread: both at least once")
        for name in ("energy", "energy_above_idle"):
            reading = getattr(self, name)
            if reading is not None and reading.samples:
                object.__setattr__(self, name, replace(reading, samples=()))

    @property
    def verdict(self) -> Overall:
        """The worst that was found: wrong or unverified output, then the budgets' verdicts."""
        if self.verification is None:
            return Overall.NOT_VERIFIED
        if not self.verification.passed:
            return Overall.WRONG_OUTPUT
        found = {check.verdict for check in self.checks}
        for verdict in (Verdict.MISS, Verdict.NOT_MEASURED, Verdict.TOO_NOISY):
            if verdict in found:
                return Overall(verdict.value)
        return Overall.PASS

    @property
    def speedup(self) -> float | None:
        """How many times as fast as its float form a quantized model is, by medians; None where that is not known."""
        other = self.float_form.latency if self.float_form is not None else None
        if other is None or self.latency is None or not self.latency.median_s:
            return None
        ratio = other.median_s / self.latency.median_s
        return ratio if math.isfinite(ratio) else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what should not be as it is, although no budget forbids it."""
        form, speedup = self.float_form, self.speedup
        if form is None or form.latency is None or self.latency is None or speedup is None or speedup >= 1:
            return ()
        integers, floats = (render(latency.median_s, "time", 3) for latency in (self.latency, form.latency))
        return (f"integers are not faster than this model's float form: median {integers} against {floats}",)

    @property
    def exit_code(self) -> int:
        """0 if every budget is met and the output verified, else 1."""
        return 0 if self.verdict is Overall.PASS else 1


def _check_counts(
    facts: Sizes | TuningFacts | TensorDifference | Verification | Accuracy | FloatForm | Report,
) -> None:
    for field in fields(facts):
        value = getattr(facts, field.name)
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{field.name} is {value}; it must be 0 or more")
