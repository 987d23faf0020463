"""What the text and the Markdown report have in common: facts and budget rows in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.budget import QUANTITIES, Check, Verdict
from deploy.report.firmware import Firmware
from deploy.report.model import Accuracy, Report, Verification
from deploy.report.power_words import battery_words, energy_words, meter_words, power_words
from deploy.units import render

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_CALLS_SHOWN, _NAME_SHOWN = 3, 24


@dataclass(frozen=True)
class Row:
    """One budget as a row of the table."""

    name: str
    limit: str
    value: str
    how: str
    verdict: Verdict


def facts(report: Report) -> list[tuple[str, str]]:
    """Return what is known about the run as (label, text), without the artifact's path and what did not run."""
    model, target = report.model, report.target
    pairs = [
        ("Model", f"{model.name} ({model.format}, sha256 {model.sha256[:12]})"),
        ("Target", f"{target.name} ({target.fingerprint}), {_count(report.threads, 'thread')}"),
        ("Work", _work(report.macs, report.operators)),
        ("Tuning", _tuning(report)),
        ("Sizes", _sizes(report)),
        ("Flash", "" if report.firmware is None else _flash(report.firmware)),
        ("RAM", "" if report.firmware is None else _ram(report.firmware)),
        ("Output", "not verified" if report.verification is None else _verification(report.verification)),
        ("Accuracy", "" if report.accuracy is None else _accuracy(report.accuracy)),
        ("Instructions", "" if report.firmware is None else _instructions(report.firmware)),
        ("Latency", _latency(report)),
        ("In float", _float_form(report)),
        ("Power", "" if report.power is None else power_words(report.power)),
        ("Energy", "" if report.energy is None else energy_words(report)),
        ("Meter", "" if report.power is None else meter_words(report.power)),
        ("Battery", "" if report.battery_life is None else battery_words(report.battery_life)),
    ]
    return [(label, visible(text)) for label, text in pairs if text]


def rows(report: Report) -> list[Row]:
    """Return the budgets as rows of a table."""
    return [_row(check) for check in report.checks]


def reasons(report: Report) -> list[str]:
    """Return a sentence for each budget that is not met."""
    return [visible(_reason(check)) for check in report.checks if check.verdict is not Verdict.PASS]


def warnings(report: Report) -> list[str]:
    """Return the report's warnings, safe to show."""
    return [visible(sentence) for sentence in report.warnings]


def tensor_rows(verification: Verification) -> list[tuple[str, str, str, str, str]]:
    """Return name, dtype, differing/count, largest absolute and relative difference of each tensor."""
    return [
        (
            visible(tensor.name),
            visible(tensor.dtype),
            f"{tensor.differing}/{tensor.count}",
            f"{tensor.largest_abs:.3g}",
            f"{tensor.largest_rel:.3g}",
        )
        for tensor in verification.tensors
    ]


def visible(text: str) -> str:
    """Return `text` on one line without control or direction characters: a model's name must not steer a terminal.

    Bytes of a file's name that are not UTF-8 are shown as \\xNN, so that the result can be written.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub("?", " ".join(text.split()))


def _reason(check: Check) -> str:
    name = check.limit.name
    return check.reason if check.reason.startswith(f"{name} ") else f"{name}: {check.reason}"


def _row(check: Check) -> Row:
    limit, reading = check.limit, check.reading
    kind = QUANTITIES[limit.quantity]
    maximum = render(limit.maximum, kind)
    shown = f"min {maximum}" if limit.at_least else maximum
    if reading is None:
        return Row(limit.name, shown, "-", "-", check.verdict)
    value = render(reading.value, kind, 3)
    if value == maximum:  # 50.01 ms is not within 50 ms: show as many digits as it takes to see it
        value = render(reading.value, kind)
    return Row(limit.name, shown, value, reading.how, check.verdict)


def _work(macs: int | None, operators: Mapping[str, int]) -> str:
    kinds = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count} {name}" for name, count in kinds)
    total = "" if macs is None else f"{_short_count(macs)} MACs"
    return "; ".join(part for part in (total, listed) if part)


def _tuning(report: Report) -> str:
    tuning = report.tuning
    if tuning is None:
        return ""
    return (
        f"{tuning.tuned} of {_count(tuning.tasks, 'task')} tuned, {_count(tuning.trials, 'trial')} now, "
        f"{_count(tuning.records_used, 'record')} used"
    )


def _sizes(report: Report) -> str:
    sizes = report.sizes
    if sizes is None or report.firmware is not None:
        return ""
    named = (
        ("arena", sizes.arena_bytes),
        ("weights", sizes.weights_bytes),
        ("library", sizes.library_bytes),
        ("peak RSS", sizes.peak_rss_bytes),
    )
    return ", ".join(f"{name} {render(size, 'bytes', 3)}" for name, size in named if size is not None)


def _flash(firmware: Firmware) -> str:
    parts = {
        "weights": firmware.weights_bytes,
        "code": firmware.code_bytes,
        "glue": firmware.glue_bytes,
        "toolchain's functions": firmware.libraries_bytes,
    }
    external = firmware.external_flash_bytes
    if external:
        del parts["weights"]
    outside = f"; external flash {render(external, 'bytes', 3)}: weights" if external else ""
    return f"{render(firmware.flash_bytes, 'bytes', 3)}: {_listed(parts)}{outside}"


def _ram(firmware: Firmware) -> str:
    parts = {"arena": firmware.arena_bytes, **firmware.pools, "inputs and outputs": firmware.io_bytes}
    if firmware.ram_bytes is None or firmware.stack_bytes is None:
        return f"{_listed(parts)}, and a stack that was not measured"
    total = render(firmware.ram_bytes, "bytes", 3)
    return f"{total}: {_listed(parts | {'stack': firmware.stack_bytes})} ({firmware.how})"


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {render(size, 'bytes', 3)}" for name, size in parts.items())


def _instructions(firmware: Firmware) -> str:
    """Return the instructions of an inference, and the calls of kernels that take most of them."""
    counts = firmware.instructions
    if not counts:
        return ""
    spread = f"{min(counts):,} to {max(counts):,}" if min(counts) != max(counts) else f"{counts[0]:,}"
    text = f"{spread} an inference ({_count(len(counts), 'sample')}, {firmware.how})"
    calls = sorted(enumerate(firmware.layers), key=lambda call: -call[1].instructions)[:_CALLS_SHOWN]
    most = [f"{layer.instructions / max(1, counts[0]):.0%} call {n} {_short(layer.kernel)}" for n, layer in calls]
    return f"{text}; most: {', '.join(most)}" if most else text


def _short(name: str) -> str:
    """The beginning of a kernel's name, which lists everything that was fused into it."""
    return name if len(name) <= _NAME_SHOWN else name[: _NAME_SHOWN - 1] + "…"


def _accuracy(accuracy: Accuracy) -> str:
    """Return both accuracies; a top-1 answer is the position of the largest output."""
    return (
        f"{accuracy.device:.2%} top-1 on {_count(accuracy.samples, 'labelled sample')}, "
        f"{accuracy.reference:.2%} in the source framework"
    )


def _verification(verification: Verification) -> str:
    differing = sum(tensor.differing for tensor in verification.tensors)
    count = sum(tensor.count for tensor in verification.tensors)
    outcome = "matches" if verification.passed else "DIFFERS from"
    text = f"{outcome} {verification.reference} on {_count(verification.samples, 'sample')}"
    if verification.first_mismatch is not None:
        text += f", first in {verification.first_mismatch}"
    text += f": {differing} of {_count(count, 'value')} not identical"
    if differing:
        largest_abs = _worst([tensor.largest_abs for tensor in verification.tensors])
        largest_rel = _worst([tensor.largest_rel for tensor in verification.tensors])
        text += f", largest difference {largest_abs:.3g} absolute, {largest_rel:.3g} relative"
    return f"{text} (allowed: {verification.tolerance})"


def _latency(report: Report) -> str:
    latency = report.latency
    if latency is None:
        return ""
    named = (("median", latency.median_s), ("p90", latency.p90_s), ("p99", latency.p99_s))
    times = ", ".join(f"{name} {render(value, 'time', 3)}" for name, value in named)
    noise = f"; noisy: {latency.reason}" if latency.noisy else ""
    basis = f": {latency.basis}" if latency.basis else ""
    return f"{times} ({_count(len(latency.samples_s), 'sample')}, {latency.how}{basis}{noise})"


def _float_form(report: Report) -> str:
    """Return the latency of a quantized model's float form, and what integers gain over it."""
    form = report.float_form
    if form is None:
        return ""
    if form.latency is None:
        return f"not measured: {form.reason}"
    gain = "" if report.speedup is None else f"; integers are {report.speedup:.3g} times as fast"
    tuned = f"{form.tuned} of {_count(form.kernels, 'kernel')} tuned"
    noise = ", noisy" if form.latency.noisy else ""
    samples = _count(len(form.latency.samples_s), "sample")
    return f"median {render(form.latency.median_s, 'time', 3)} ({samples}, {form.latency.how}{noise}, {tuned}){gain}"


def _worst(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _short_count(number: int) -> str:
    for factor, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{name}"
    return str(number)
