"""How long a battery lasts: energy of an inference, and of the sleep between two.

```yaml
battery: {capacity: 220 mAh, voltage: 3 V, duty: 1 /min, sleep: 3 uW}
```

`duty` is how often an inference is made. Between two the device takes `sleep`, or its idle power where that is not
stated. The capacity is what the battery gives at that voltage, without what it keeps and what it loses by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deploy import fields
from deploy.errors import InputError
from deploy.units import render
from deploy.yaml_source import Node, Plain

_DAY_S = 86400.0
_TABLE = {"capacity": "charge", "voltage": "voltage", "duty": "rate", "sleep": "power"}


@dataclass(frozen=True)
class Battery:
    """capacity: coulombs; voltage: volts; duty: inferences a day; sleep: watts between two, None for the idle power."""

    capacity: float
    voltage: float
    duty: float
    sleep: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("capacity", self.capacity), ("voltage", self.voltage), ("duty", self.duty)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"the {name} of the battery must be more than zero")

    @property
    def joules(self) -> float:
        """What is in it."""
        return self.capacity * self.voltage


@dataclass(frozen=True)
class Drain:
    """What a device takes: joules and seconds of one inference, with an interval; watts while idle, None if unknown."""

    joules: float
    seconds: float
    low: float
    high: float
    idle_w: float | None


@dataclass(frozen=True)
class BatteryLife:
    """How long the battery lasts, with an interval where there is one; reason: why that is not known, else empty.

    basis: what it was computed of, in words.
    """

    seconds: float | None
    how: str
    basis: str
    reason: str = ""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) != bool(self.reason):
            raise ValueError("a battery lasts for some time, or there is a reason why that is not known")


def life(battery: Battery, drain: Drain | None, how: str) -> BatteryLife:
    """Return how long the battery lasts. how: as the energy is known."""
    capacity, voltage = render(battery.capacity, "charge", 3), render(battery.voltage, "voltage", 3)
    basis = f"{capacity} at {voltage}, an inference {render(battery.duty, 'rate', 3)}"
    if drain is None:
        return BatteryLife(None, how, basis, "the energy of an inference is not known")
    if drain.seconds * battery.duty > _DAY_S:
        took = f"an inference takes {render(drain.seconds, 'time', 3)}"
        return BatteryLife(None, how, basis, f"{took}, which is longer than the duty leaves time for: lower it")
    sleep = battery.sleep if battery.sleep is not None else drain.idle_w
    if sleep is None:
        return BatteryLife(
            None, how, basis, "the power between two inferences is not known: add `sleep` to the battery"
        )
    asleep = f"{render(sleep, 'power', 3)} {'asleep' if battery.sleep is not None else 'idle'} between"
    seconds, low, high = (_life_s(battery, drain, sleep, joules) for joules in (drain.joules, drain.high, drain.low))
    if seconds is None:
        return BatteryLife(None, how, basis, "the device takes no energy at all: look at the meter")
    return BatteryLife(seconds, how, f"{basis}, {asleep}", low=low, high=high)


def _life_s(battery: Battery, drain: Drain, sleep: float, joules: float) -> float | None:
    """How long it lasts at so many joules an inference; nothing for ever."""
    a_day = battery.duty * joules + sleep * (_DAY_S - battery.duty * drain.seconds)
    seconds = battery.joules / a_day * _DAY_S if a_day > 0 else math.inf
    return seconds if math.isfinite(seconds) else None


def parse_battery(node: Node) -> Battery:
    """Return what the YAML says of the battery. Raises InputError (`file:line`)."""
    values = dict(fields.read(node, "battery", _TABLE, ("capacity", "voltage", "duty")))
    return node.placing(lambda: Battery(**values))  # type: ignore[arg-type]


def plain_battery(battery: Battery) -> dict[str, Plain]:
    """Return the plain data that `parse_battery` reads."""
    given = {key: getattr(battery, key) for key in _TABLE}
    return fields.write(tuple((key, value) for key, value in given.items() if value is not None), _TABLE)
