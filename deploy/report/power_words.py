"""Power, energy, the meter and the battery in words, for the text and the Markdown report."""

from __future__ import annotations

from deploy.battery import BatteryLife
from deploy.power import EnergyReading
from deploy.report.model import Report
from deploy.units import render


def power_words(reading: EnergyReading) -> str:
    """Mean and peak power, and where they come from."""
    if reading.watts is None:
        return f"not measured: {reading.reason or reading.source}"
    peak = "" if reading.peak_w is None else f", peak {render(reading.peak_w, 'power', 3)}"
    return f"{render(reading.watts, 'power', 3)}{_off(reading)}{peak} ({_origin(reading)})"


def energy_words(report: Report) -> str:
    """Energy of an inference; a reason that stands with the power already is not told again."""
    reading, power, above = report.energy, report.power, report.energy_above_idle
    if reading is None:
        return ""
    same = power is not None and reading.reason == power.reason
    if reading.joules is None:
        missing = power is not None and power.joules is None
        return "not measured, as the power" if same and missing else f"not measured: {reading.reason or reading.source}"
    origin = f"{reading.how}, {reading.source}" if same else _origin(reading)
    net = (
        ""
        if above is None or above.joules is None
        else f", {render(above.joules, 'energy', 3)}{_off(above)} above idle"
    )
    return f"{render(reading.joules, 'energy', 3)}{_off(reading)} per inference{net} ({origin})"


def meter_words(reading: EnergyReading) -> str:
    """What the figures depend on beside the device; empty for an estimate."""
    meter = reading.meter
    if meter is None:
        return ""
    parts = (
        "" if meter.rate_hz is None else f"{render(meter.rate_hz, 'frequency', 3)} samples",
        "" if meter.voltage_v is None else f"supply {render(meter.voltage_v, 'voltage', 4)}",
        " + ".join(meter.rails),
        meter.wiring,
        "accuracy not stated" if meter.accuracy is None else f"accuracy {render(meter.accuracy, 'percent', 3)}",
    )
    return f"{meter.meter}: {', '.join(part for part in parts if part)}"


def battery_words(life: BatteryLife) -> str:
    """How long the battery lasts, and of what that was computed."""
    if life.seconds is None:
        return f"not known: {life.reason} ({life.basis})"
    return f"{render(life.seconds, 'lifetime', 3)} ({life.how}; {life.basis})"


def _off(reading: EnergyReading) -> str:
    """How far off the energy may be, as a share of it."""
    if not reading.joules or reading.low is None or reading.high is None:
        return ""
    share = max(reading.high - reading.joules, reading.joules - reading.low) / reading.joules
    if share > 1:
        return f" (at most {render(reading.high, 'energy', 3)})"
    return f" ± {render(max(share, 1e-3), 'percent', 2)}"


def _origin(reading: EnergyReading) -> str:
    note = f": {reading.reason}" if reading.reason else ""
    return f"{reading.how}, {reading.source}{note}"
