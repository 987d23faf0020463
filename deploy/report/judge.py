"""A report against a budget."""

from __future__ import annotations

from dataclasses import replace

from deploy.budget import Budget, Reading, check, latency_readings
from deploy.report.model import Report
from deploy.statistics import summarize


def readings(report: Report) -> tuple[Reading, ...]:
    """Return what a report knows, as readings for a budget; there is none of what was not measured."""
    found: list[Reading] = []
    if report.latency is not None:
        found += latency_readings(summarize(report.latency.samples_s), report.latency.how)
    if report.sizes is not None:
        sizes = report.sizes
        exact = {"arena": sizes.arena_bytes, "weights": sizes.weights_bytes, "flash": sizes.library_bytes}
        found += [Reading(quantity, None, size, "measured") for quantity, size in exact.items()]
        if sizes.peak_rss_bytes is not None:
            found.append(Reading("ram", None, sizes.peak_rss_bytes, "measured"))
    if report.power is not None and report.power.watts is not None:
        found.append(Reading("power", None, report.power.watts, report.power.how))
    if report.energy is not None and report.energy.joules is not None:
        found.append(Reading("energy", None, report.energy.joules, report.energy.how))
    if report.accuracy is not None:
        drop = max(0.0, report.accuracy.reference - report.accuracy.device)
        found.append(Reading("accuracy_drop", None, drop, "measured"))
    return tuple(found)


def judged(report: Report, budget: Budget) -> Report:
    """Return the report with every limit of `budget` checked against it."""
    return replace(report, checks=check(budget, readings(report)))
