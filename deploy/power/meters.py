"""Choosing a meter.

```yaml
power: {kind: auto, active: 15 W}               # RAPL, then hwmon, then this estimate
power: {kind: hwmon, rails: [ina3221/VDD_IN]}
power: {kind: ppk2, voltage: 3 V}               # mode: source or ampere; mark: D0, an input that is high in inferences
power: {kind: lpm01a, voltage: 3 V, rate: 10 kHz}
power: {kind: scpi, queries: ["MEAS:CURR?", "MEAS:VOLT?"], setup: ["SENS:CURR:NPLC 0.1"]}
power: {kind: csv, command: [my-meter, --csv]}    # or file: NAME, a pipe, "-"; see csv_text for the table
```

All meters take `accuracy: 1 %` (the maker's) and `duration: 5 s` (how long idle and busy device are watched), all
but RAPL `wiring: "what a reader should know"`. Where the meter is (`port`, `address`, `file`) belongs into boards.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from deploy.errors import DeviceError, InputError
from deploy.fields import Option
from deploy.power.estimate import EstimateMeter, NoMeter
from deploy.power.hwmon import open_hwmon
from deploy.power.rapl import open_rapl
from deploy.power.reading import Meter
from deploy.power.stream import Source, StreamMeter
from deploy.power.trace import MeterFacts
from deploy.target_parts import LAB_KEYS, PowerSpec
from deploy.units import did_you_mean

KINDS = ("auto", "rapl", "hwmon", "estimate", "none")
_MODES = ("source", "ampere")
_Texts = tuple[str, ...]


def meter_for(power: PowerSpec) -> Meter:
    """Return the meter of a target, opened. Raises as `open_meter`, and InputError for an option that is missing."""
    root, accuracy = Path(str(power.get("root") or "/sys")), cast("float | None", power.get("accuracy"))
    if power.kind == "rapl":
        return open_rapl(root, accuracy=accuracy)
    if power.kind == "hwmon":
        return open_hwmon(root, power.rails, accuracy=accuracy, wiring=str(power.get("wiring") or ""))
    if power.kind in SOURCES:
        return StreamMeter(SOURCES[power.kind](power))
    return open_meter(power.kind, root, power.active, power.idle, rails=power.rails)


def is_external(power: PowerSpec) -> bool:
    """Whether the meter is a device of its own, which can watch a board as well as this machine."""
    return power.kind in SOURCES


def _stated(power: PowerSpec) -> MeterFacts:
    volts, accuracy = (cast("float | None", power.get(key)) for key in ("voltage", "accuracy"))
    return MeterFacts(power.kind, None, volts, power.rails, str(power.get("wiring") or ""), accuracy)


def _needed(power: PowerSpec, key: str, example: str) -> Option:
    value = power.get(key)
    if value is None:
        place = " in your boards.yaml (--boards, --device)" if key in LAB_KEYS else ""
        raise InputError(
            f'power of kind {power.kind} has no "{key}", which it needs: add for example {key}: {example}{place}'
        )
    return value


def _ppk2(power: PowerSpec) -> Source:
    from deploy.power.ppk2 import Mode, Ppk2

    mode, mark = str(power.get("mode") or "source"), str(power.get("mark") or "")
    if mode not in _MODES:
        raise InputError(f'the mode of power of kind ppk2 is "source" or "ampere", not "{mode[:40]}"')
    if not re.fullmatch(r"(D[0-7])?", mark, re.ASCII):
        raise InputError(f'the mark of power of kind ppk2 is a digital input, D0 to D7, not "{mark[:40]}"')
    port, volts = str(_needed(power, "port", "/dev/ttyACM0")), cast(float, _needed(power, "voltage", "3 V"))
    chosen = Mode.SOURCE if mode == "source" else Mode.AMPERE
    return Ppk2(port, volts, chosen, int(mark[1]) if mark else None, _stated(power))


def _lpm01a(power: PowerSpec) -> Source:
    from deploy.power.lpm01a import Lpm01a

    port, volts = str(_needed(power, "port", "/dev/ttyACM0")), cast(float, _needed(power, "voltage", "3 V"))
    return Lpm01a(port, volts, cast(float, power.get("rate", 10_000.0)), _stated(power))


def _scpi(power: PowerSpec) -> Source:
    from deploy.power.scpi import CURRENT, VOLTAGE, ScpiMeter

    address = str(_needed(power, "address", '"TCPIP::192.168.1.5::5025::SOCKET"'))
    queries = cast(_Texts, power.get("queries") or ((CURRENT, VOLTAGE) if power.get("voltage") is None else (CURRENT,)))
    return ScpiMeter(address, queries, cast(_Texts, power.get("setup") or ()), _stated(power))


def _csv(power: PowerSpec) -> Source:
    from deploy.power.csv_meter import CsvMeter

    texts = [cast(_Texts, power.get(key) or ()) for key in ("command", "columns")]
    return CsvMeter(
        texts[0], str(power.get("file") or ""), str(power.get("clock") or "arrival"), texts[1], _stated(power)
    )


SOURCES: dict[str, Callable[[PowerSpec], Source]] = {"ppk2": _ppk2, "lpm01a": _lpm01a, "scpi": _scpi, "csv": _csv}


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
