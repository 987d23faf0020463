"""A report against a budget."""

from __future__ import annotations

from dataclasses import replace

from deploy.budget import PEAK, Budget, Reading, check, latency_readings
from deploy.report.firmware import Firmware
from deploy.report.model import Report
from deploy.statistics import summarize


def readings(report: Report) -> tuple[Reading, ...]:
    """Return what a report knows, as readings for a budget; there is none of what was not measured."""
    found: list[Reading] = []
    if report.latency is not None:
        found += latency_readings(summarize(report.latency.samples_s), report.latency.how)
    if report.sizes is not None:
        sizes = report.sizes
        flash = sizes.library_bytes if report.firmware is None else report.firmware.flash_bytes
        exact = {"arena": sizes.arena_bytes, "weights": sizes.weights_bytes, "flash": flash}
        found += [Reading(quantity, None, size, "measured") for quantity, size in exact.items()]
        if sizes.peak_rss_bytes is not None:
            found.append(Reading("ram", None, sizes.peak_rss_bytes, "measured"))
    if report.firmware is not None:
        found += _of_firmware(report.firmware)
    found += _of_power(report)
    if report.accuracy is not None:
        drop = max(0.0, report.accuracy.reference - report.accuracy.device)
        found.append(Reading("accuracy_drop", None, drop, "measured"))
    return tuple(found)


def _of_power(report: Report) -> list[Reading]:
    """Mean and peak power, energy of an inference, and how long a battery lasts; each with its interval, if any."""
    found = []
    power, energy, life = report.power, report.energy, report.battery_life
    if power is not None and power.watts is not None:
        bounds = [None if joules is None else joules / power.seconds for joules in (power.low, power.high)]
        found.append(Reading("power", None, power.watts, power.how, *bounds))
        if power.peak_w is not None:
            off = (power.meter.accuracy or 0.0) if power.meter is not None else 0.0
            bounds = [power.peak_w * max(0.0, 1 - off), power.peak_w * (1 + off)]
            found.append(Reading("power", PEAK, power.peak_w, power.how, *bounds))
    if energy is not None and energy.joules is not None:
        found.append(Reading("energy", None, energy.joules, energy.how, energy.low, energy.high))
    if life is not None and life.seconds is not None:
        found.append(Reading("battery_life", None, life.seconds, life.how, life.low, life.high))
    return found


def _of_firmware(firmware: Firmware) -> list[Reading]:
    """RAM with its stack, and the instructions of the sample that takes most."""
    found = []
    if firmware.ram_bytes is not None:
        found.append(Reading("ram", None, firmware.ram_bytes, firmware.how))
    if firmware.instructions:
        found.append(Reading("instructions", None, max(firmware.instructions), firmware.how))
    return found


def judged(report: Report, budget: Budget) -> Report:
    """Return the report with every limit of `budget` checked against it."""
    return replace(report, checks=check(budget, readings(report)))
