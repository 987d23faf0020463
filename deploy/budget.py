"""What a model may cost on a device, and whether readings show that it stays within that.

Three rules decide (see `check`): what was not measured never passes; a reading counts only if it was obtained in a way
the budget accepts; a reading whose confidence interval contains the limit decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import groupby, pairwise

from deploy import units
from deploy.errors import InputError
from deploy.statistics import Summary
from deploy.units import Kind
from deploy.yaml_source import Node, Plain

# From the most to the least trustworthy.
HOW = ("measured", "emulated", "estimated")
STATISTICS = ("median", "p90", "p99")
DEFAULT_STATISTIC = "median"
PEAK = "peak"  # of power; its mean has no name of its own
QUANTITIES: dict[str, Kind] = {
    "latency": "time",
    "instructions": "instructions",  # of one inference
    "ram": "bytes",  # peak resident memory on Linux, all RAM on a microcontroller
    "arena": "bytes",  # the activations' share of it
    "flash": "bytes",  # size of the library or firmware
    "weights": "bytes",
    "power": "power",
    "energy": "energy",  # of one inference
    "battery_life": "lifetime",
    "accuracy_drop": "percent",
}
AT_LEAST = frozenset({"battery_life"})  # of all others less is better
ALIASES = {"size": "flash"}
_OWN = {"latency": STATISTICS, "power": (PEAK,)}  # statistics; None is allowed to all but latency
_KEYS = {"power": ("max", "mean", PEAK), "energy": ("max", "per_inference"), "battery_life": ("min",)}
_WORDS = ("max", "mean", "per_inference", "min")  # that mean the quantity itself


class Verdict(Enum):
    """The outcome of one limit."""

    PASS = "PASS"
    MISS = "MISS"
    NOT_MEASURED = "NOT MEASURED"
    TOO_NOISY = "TOO NOISY"


@dataclass(frozen=True)
class Limit:
    """The largest allowed value of a quantity, in its base unit (seconds, bytes, joules, watts, fraction).

    Of battery_life it is the smallest. `statistic` is median, p90 or p99 for latency, peak for the peak of power and
    None otherwise. `accept` names the least trustworthy way of obtaining a reading that still counts, by default
    "measured".
    """

    quantity: str
    statistic: str | None
    maximum: float
    accept: str = "measured"

    def __post_init__(self) -> None:
        _check_name(self.quantity, self.statistic, self.accept)
        if not (math.isfinite(self.maximum) and (self.maximum > 0 or self.quantity == "accuracy_drop")):
            raise InputError(f"the limit of {self.quantity} must be more than zero")

    @property
    def name(self) -> str:
        """Return "latency p90" or "flash"."""
        return self.quantity if self.statistic is None else f"{self.quantity} {self.statistic}"

    @property
    def at_least(self) -> bool:
        """Whether `maximum` is the smallest allowed value."""
        return self.quantity in AT_LEAST


@dataclass(frozen=True)
class Reading:
    """One number obtained for a quantity, in its base unit.

    `how` is measured, emulated or estimated. `low` and `high` are the confidence interval: both None for an exact
    number (a file's size), one None when the samples bound the value on the other side only.
    """

    quantity: str
    statistic: str | None
    value: float
    how: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _check_name(self.quantity, self.statistic, self.how)
        numbers = [number for number in (self.low, self.value, self.high) if number is not None]
        if not all(math.isfinite(number) for number in numbers) or numbers != sorted(numbers):
            raise InputError(f"the reading of {self.quantity} is not finite or not within its own interval: {numbers}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the interval with infinity for a side without a bound, and the value itself for an exact number."""
        if self.low is None and self.high is None:
            return self.value, self.value
        return (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)


@dataclass(frozen=True)
class Budget:
    """Limits, at most one for each quantity and statistic; kept in the order of QUANTITIES, then STATISTICS."""

    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        order = [(quantity, statistic) for quantity in QUANTITIES for statistic in (None, *STATISTICS, PEAK)]
        limits = tuple(sorted(self.limits, key=lambda limit: order.index((limit.quantity, limit.statistic))))
        for one, other in pairwise(limits):
            if one.name == other.name:
                raise InputError(f"the budget limits {one.name} twice; keep one")
            if one.quantity == other.quantity and one.accept != other.accept:
                raise InputError(f"the limits of {one.quantity} accept different readings; use the same for all")
        object.__setattr__(self, "limits", limits)


@dataclass(frozen=True)
class Check:
    """The verdict on one limit, the reading it rests on (if any) and the reason in one sentence."""

    limit: Limit
    reading: Reading | None
    verdict: Verdict
    reason: str


def check(budget: Budget, readings: Iterable[Reading]) -> tuple[Check, ...]:
    """Return a verdict for each limit, in the budget's order.

    When there are several readings of the same thing the most trustworthy decides: measured, then emulated, then
    estimated. Raising a limit never turns a pass into something else.
    """
    available = tuple(readings)
    return tuple(_check_limit(limit, available) for limit in budget.limits)


def passed(checks: Iterable[Check]) -> bool:
    """Return whether every limit is met; a budget without limits is."""
    return all(one.verdict is Verdict.PASS for one in checks)


def parse_budget(node: Node) -> Budget:
    """Return the budget a YAML mapping describes.

    ```yaml
    latency: {p90: 50 ms}                    # median, p90, p99; a bare "50 ms" is the median
    ram: 128 KiB
    instructions: {max: 15 M, accept: emulated}
    size: 512 KiB                            # another word for flash
    energy: {per_inference: 6 mJ, accept: estimated}   # also emulated; by default only measured readings count
    power: {mean: 300 mW, peak: 1 W}         # a bare "300 mW" is the mean
    battery_life: 1 year                     # at least; see deploy/battery.py
    accuracy_drop: 1 %
    ```

    Raises InputError (`file:line`) for an unknown quantity, statistic, unit or value.
    """
    limits: dict[str, Limit] = {}
    for key, entry in node.mapping("budgets", [*QUANTITIES, *ALIASES]).items():
        quantity = ALIASES.get(key, key)
        for limit in _parse_limits(quantity, entry):
            if limit.name in limits:
                raise entry.error(f"budgets limits {limit.name} twice (size and flash are the same); keep one")
            limits[limit.name] = limit
    return Budget(tuple(limits.values()))


def plain_budget(budget: Budget) -> dict[str, Plain]:
    """Return the budget as the plain data that `parse_budget` reads, in the budget's order."""
    groups = groupby(budget.limits, key=lambda limit: limit.quantity)
    return {quantity: _plain_limits(list(limits)) for quantity, limits in groups}


def latency_readings(summary: Summary, how: str) -> tuple[Reading, ...]:
    """Return a reading in seconds for each statistic of latency samples, with its confidence interval.

    An estimate has none: its samples are computed, not drawn.
    """
    if how == "estimated":
        return tuple(Reading("latency", statistic, summary.value(statistic), how) for statistic in STATISTICS)
    return tuple(_latency_reading(summary, statistic, how) for statistic in STATISTICS)


def _check_limit(limit: Limit, readings: tuple[Reading, ...]) -> Check:
    same = [one for one in readings if (one.quantity, one.statistic) == (limit.quantity, limit.statistic)]
    if not same:
        return Check(limit, None, Verdict.NOT_MEASURED, f"there is no reading of {limit.name}")
    reading = min(same, key=lambda one: HOW.index(one.how))
    if HOW.index(reading.how) > HOW.index(limit.accept):
        reason = f"{limit.name} is {reading.how}, not measured; to accept that, write {_accepting(limit, reading.how)}"
        return Check(limit, reading, Verdict.NOT_MEASURED, reason)
    kind = QUANTITIES[limit.quantity]
    shown, maximum = units.render(reading.value, kind, 3), units.render(limit.maximum, kind)
    if shown == maximum:
        shown = units.render(reading.value, kind)
    low, high = reading.bounds
    if limit.at_least:
        if low >= limit.maximum:
            return Check(limit, reading, Verdict.PASS, f"{shown} is at least {maximum}")
        if high < limit.maximum:
            return Check(limit, reading, Verdict.MISS, f"{shown} is less than {maximum}")
    elif high <= limit.maximum:
        return Check(limit, reading, Verdict.PASS, f"{shown} is within {maximum}")
    elif low > limit.maximum:
        return Check(limit, reading, Verdict.MISS, f"{shown} is more than {maximum}")
    return Check(limit, reading, Verdict.TOO_NOISY, _noise_reason(reading, kind, maximum))


def _noise_reason(reading: Reading, kind: Kind, maximum: str) -> str:
    low, high = (None if bound is None else units.render(bound, kind, 3) for bound in (reading.low, reading.high))
    if high is None:
        return f"too few samples to tell whether it is at most {maximum}: they only show that it is at least {low}"
    span = f"at most {high}" if low is None else f"somewhere from {low} to {high}"
    metered = reading.quantity in ("power", "energy", "battery_life")
    remedy = "meter it for longer (`duration`), or better" if metered else "take more samples on a quieter device"
    return f"it is {span}, and the limit of {maximum} lies in between; {remedy}"


def _accepting(limit: Limit, how: str) -> str:
    key = _key(limit)
    maximum = units.render(limit.maximum, QUANTITIES[limit.quantity])
    return f'"{limit.quantity}: {{{key}: {maximum}, accept: {how}}}" in the target\'s budgets'


def _parse_limits(quantity: str, entry: Node) -> list[Limit]:
    kind = QUANTITIES[quantity]
    default = DEFAULT_STATISTIC if quantity == "latency" else None
    if not isinstance(entry.value, dict):
        return [_limit(entry, quantity, default, "measured")]
    statistics = STATISTICS if quantity == "latency" else _KEYS.get(quantity, ("max",))
    fields = entry.mapping(f"the budget of {quantity}", [*statistics, "accept"])
    accept = fields["accept"].choice(f"accept of {quantity}", HOW) if "accept" in fields else "measured"
    limits = [
        _limit(node, quantity, None if key in _WORDS else key, accept)
        for key, node in fields.items()
        if key != "accept"
    ]
    if len({limit.statistic for limit in limits}) < len(limits):
        raise entry.error(
            f"the budget of {quantity} has the same limit under two names, {' and '.join(fields)}; keep one"
        )
    if not limits:
        example = units.render({"time": 0.05, "bytes": 131072, "lifetime": 31557600}.get(kind, 0.01), kind)
        raise entry.error(f"the budget of {quantity} has no limit; write for example {{{statistics[0]}: {example}}}")
    return limits


def _plain_limits(limits: list[Limit]) -> Plain:
    kind, accept = QUANTITIES[limits[0].quantity], limits[0].accept
    texts = {limit.statistic: units.render(limit.maximum, kind) for limit in limits}
    if accept == "measured" and list(texts) == [None]:
        return texts[None]
    entry: dict[str, Plain] = {_key(limit): texts[limit.statistic] for limit in limits}
    return entry if accept == "measured" else entry | {"accept": accept}


def _key(limit: Limit) -> str:
    """What the YAML calls a limit."""
    plain = {"power": "mean"}.get(limit.quantity, "min" if limit.at_least else "max")
    return plain if limit.statistic is None else limit.statistic


def _latency_reading(summary: Summary, statistic: str, how: str) -> Reading:
    interval = summary.intervals[statistic]
    # Five samples bound their median on neither side; what is certain is that a latency is not negative.
    low = 0.0 if interval.low is None else interval.low
    return Reading("latency", statistic, summary.value(statistic), how, low, interval.high)


def _limit(node: Node, quantity: str, statistic: str | None, accept: str) -> Limit:
    maximum = node.quantity(f"the budget of {quantity}", QUANTITIES[quantity])
    try:
        return Limit(quantity, statistic, maximum, accept)
    except InputError as error:
        raise node.error(f"{error}, not {node.shown()}") from None


def _check_name(quantity: str, statistic: str | None, how: str) -> None:
    if quantity not in QUANTITIES:
        raise InputError(f'unknown quantity "{quantity}"; allowed: {", ".join(QUANTITIES)}')
    own = _OWN.get(quantity, ())
    if statistic not in own and (statistic is not None or quantity == "latency"):
        allowed = ", ".join(own) or "none"
        raise InputError(f'unknown statistic "{statistic}" of {quantity}; allowed: {allowed}')
    if how not in HOW:
        raise InputError(f'a reading cannot be "{how}"; allowed: {", ".join(HOW)}')
