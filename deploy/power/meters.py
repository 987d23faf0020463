"""Choosing a meter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.errors import DeviceError, InputError
from deploy.power.estimate import EstimateMeter, NoMeter
from deploy.power.hwmon import open_hwmon
from deploy.power.rapl import open_rapl
from deploy.power.reading import Meter
from deploy.units import did_you_mean

KINDS = ("auto", "rapl", "hwmon", "estimate", "none")


def open_meter(
    kind: str,
    sysfs_root: Path = Path("/sys"),
    active_w: float | None = None,
    idle_w: float | None = None,
    *,
    rails: Sequence[str] = (),
) -> Meter:
    """Return a meter of `kind`, tried once so that a sensor that cannot be read is known now.

    active_w, idle_w: the declared powers an estimate uses. rails: the hwmon sensors to add up ("ina3221/VDD_IN").
    "auto" takes RAPL, else a hwmon sensor, else the estimate if `active_w` is given, else none; the readings of the
    last two say why there is no measurement.

    Raises InputError: an unknown kind, a sensor name or power that makes no sense, or an estimate without `active_w`;
    DeviceError: the sensor that was asked for is not there or cannot be read, and what to do about it.
    """
    if kind == "rapl":
        return open_rapl(sysfs_root)
    if kind == "hwmon":
        return open_hwmon(sysfs_root, rails)
    if kind == "estimate":
        if active_w is None:
            raise InputError("an estimate needs the power of the busy device: add for example active: 120 mW to power")
        return EstimateMeter(active_w, idle_w)
    if kind == "none":
        return NoMeter("no meter is configured; set power in the target or boards file")
    if kind == "auto":
        return _first_that_works(sysfs_root, active_w, idle_w, rails)
    raise InputError(f'unknown kind of power meter "{kind}"; allowed: {", ".join(KINDS)}{did_you_mean(kind, KINDS)}')


def _first_that_works(sysfs_root: Path, active_w: float | None, idle_w: float | None, rails: Sequence[str]) -> Meter:
    attempts: list[Callable[[], Meter]] = [lambda: open_rapl(sysfs_root), lambda: open_hwmon(sysfs_root, rails)]
    reasons = []
    for attempt in attempts:
        try:
            return attempt()
        except DeviceError as error:
            reasons.append(str(error))
    note = "; ".join(reasons)
    if active_w is not None:
        return EstimateMeter(active_w, idle_w, note)
    return NoMeter(f"{note}; no active power is declared to estimate from")
