"""Quantities with units as people write them ("128 KiB", "20 ms", "2 mJ") and as numbers.

Numbers are in the base unit of their kind: bytes (int), seconds, joules, watts, hertz, volts, coulombs; a percentage is
a fraction (`1 %` is 0.01). How often something is done is a number a day; a lifetime is in seconds, and a year has
365.25 days.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Literal, get_args

from deploy.errors import InputError

Kind = Literal[
    "bytes", "time", "energy", "power", "frequency", "percent", "instructions", "voltage", "charge", "rate", "lifetime"
]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The first spelling of a size is the one `render` uses; ASCII "us" and both code points of the micro sign are read.
_UNITS: dict[Kind, dict[str, str]] = {
    "bytes": {"B": "1", "KiB": "1024", "MiB": "1048576", "GiB": "1073741824", "kB": "1e3", "MB": "1e6", "GB": "1e9"},
    "time": {"ns": "1e-9", "us": "1e-6", "µs": "1e-6", "μs": "1e-6", "ms": "1e-3", "s": "1", "min": "60", "h": "3600"},
    "energy": {"nJ": "1e-9", "uJ": "1e-6", "µJ": "1e-6", "μJ": "1e-6", "mJ": "1e-3", "J": "1", "Wh": "3600"},
    "power": {"uW": "1e-6", "µW": "1e-6", "μW": "1e-6", "mW": "1e-3", "W": "1"},
    "frequency": {"Hz": "1", "kHz": "1e3", "MHz": "1e6", "GHz": "1e9"},
    "percent": {"%": "0.01"},
    "instructions": {"": "1", "k": "1e3", "M": "1e6", "G": "1e9"},
    "voltage": {"mV": "1e-3", "V": "1"},
    "charge": {"mAh": "3.6", "Ah": "3600", "C": "1"},
    "rate": {"/s": "86400", "/min": "1440", "/h": "24", "/day": "1"},
    "lifetime": {
        **{"s": "1", "min": "60", "h": "3600"},
        **dict.fromkeys(("day", "days"), "86400"),
        **dict.fromkeys(("year", "years"), "31557600"),
    },
}
_RENDERED: dict[Kind, tuple[str, ...]] = {
    "bytes": ("GiB", "MiB", "KiB", "B"),
    "time": ("s", "ms", "us", "ns"),
    "energy": ("J", "mJ", "uJ", "nJ"),
    "power": ("W", "mW", "uW"),
    "frequency": ("GHz", "MHz", "kHz", "Hz"),
    "percent": ("%",),
    "instructions": ("G", "M", "k", ""),
    "voltage": ("V", "mV"),
    "charge": ("mAh",),
    "rate": ("/s", "/min", "/h", "/day"),
    "lifetime": ("years", "days", "h", "min", "s"),
}
_PLURAL = ("years", "days")
EXAMPLES: dict[Kind, str] = {
    "bytes": "128 KiB",
    "time": "20 ms",
    "energy": "2 mJ",
    "power": "120 mW",
    "frequency": "216 MHz",
    "percent": "1 %",
    "instructions": "15 M",
    "voltage": "3.3 V",
    "charge": "220 mAh",
    "rate": "1 /min",
    "lifetime": "1 year",
}
# Bounded digits and exponent: a hostile "1e999999999" must not cost time or overflow.
_QUANTITY = re.compile(r"([+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,2})?)\s*(\S*)", re.ASCII)
_LARGEST_BYTES = 2**63 - 1


def parse(text: object, kind: Kind) -> float:
    """Return the quantity `text` (such as "50 ms") in the base unit of `kind`; an int for bytes, rounded to whole ones.

    Raises InputError when the unit is missing or unknown (with the allowed and the nearest ones), when the text is not
    a number, or when the value is negative or too large to hold.
    """
    units = _UNITS[kind]
    match = _QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else _QUANTITY.fullmatch(_number_text(text))
    if match is None:
        raise InputError(f'{_quoted(text)} is not a quantity; write a number and a unit, such as "{EXAMPLES[kind]}"')
    number, unit = match.groups()
    if unit not in units and not unit:
        raise InputError(f'{_quoted(text)} has no unit; write for example "{EXAMPLES[kind]}" (units: {_listed(kind)})')
    if unit not in units:
        hint = did_you_mean(unit, units)
        raise InputError(f'unknown unit "{_short(unit)}" in {_quoted(text)}; allowed: {_listed(kind)}{hint}')
    value = Decimal(number) * Decimal(units[unit])
    if value < 0:
        raise InputError(f"{_quoted(text)} is negative; write zero or more")
    if kind != "bytes":
        return float(value)
    if value > _LARGEST_BYTES:
        raise InputError(f"{_quoted(text)} is more than any memory holds (2^63 bytes)")
    return round(value)


def render(value: float, kind: Kind, digits: int | None = None) -> str:
    """Return `value` (base unit of `kind`) with the unit people would choose.

    Without `digits`, `parse` reads exactly the same number back; with it, at most that many significant digits are
    shown ("49.7 ms"), which is what a report wants.
    """
    exact = Decimal(repr(float(value))) if kind != "bytes" or isinstance(value, float) else Decimal(value)
    for unit in _RENDERED[kind]:
        scaled = exact / Decimal(_UNITS[kind][unit])
        if digits is not None:
            scaled = Decimal(f"{scaled:.{digits}g}")
        if abs(scaled) >= 1 and (digits is not None or _is_short(scaled, kind, unit)):
            return f"{_plain(scaled)} {unit.removesuffix('s') if scaled == 1 and unit in _PLURAL else unit}".rstrip()
    smallest = _RENDERED[kind][-1] if exact else _zero_unit(kind)
    scaled = exact / Decimal(_UNITS[kind][smallest])
    if digits is not None:
        scaled = Decimal(f"{scaled:.{digits}g}")
    return f"{_plain(scaled)} {smallest}".rstrip()


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return '; did you mean "ms"?' for the allowed word nearest to `word`, or nothing when none is near."""
    choices = list(allowed)
    same_letters = [choice for choice in choices if choice.lower() == word.lower()]
    near = same_letters or difflib.get_close_matches(word[:80], choices, n=1, cutoff=0.6)
    if not near:
        folded = {choice.lower(): choice for choice in choices}
        near = [folded[low] for low in difflib.get_close_matches(word[:80].lower(), list(folded), n=1, cutoff=0.6)]
    return f'; did you mean "{near[0]}"?' if near else ""


def _is_short(scaled: Decimal, kind: Kind, unit: str) -> bool:
    """Whether `scaled` can be written in `unit` exactly and readably: not every unit is a power of ten of the next."""
    is_last = unit == _RENDERED[kind][-1]
    return kind not in ("bytes", "rate", "lifetime") or is_last or len(scaled.normalize().as_tuple().digits) <= 6


def _zero_unit(kind: Kind) -> str:
    return next(unit for unit in _UNITS[kind] if _UNITS[kind][unit] == "1") if kind != "percent" else "%"


def _plain(number: Decimal) -> str:
    """`number` without trailing zeros, and without an exponent unless it is extreme."""
    number = number.normalize()
    exponent = number.adjusted()
    return f"{number:f}" if -6 <= exponent < 15 else str(number)


def _number_text(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and abs(value) < 1e30 else "not a number"  # type: ignore[arg-type]


def _listed(kind: Kind) -> str:
    return ", ".join(unit for unit in _UNITS[kind] if unit and not unit.startswith("μ"))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _quoted(value: object) -> str:
    return f'"{_short(str(value))}"'
