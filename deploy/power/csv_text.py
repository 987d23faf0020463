"""Lines of a table of power over time, as data. Pure.

    time_s,power_mw            the header says what the columns are, in which unit; others are left alone
    0.0000,12.25
    0.0001,12.31

Columns are time, power, voltage and current, with s, ms, us or ns; w, mw, uw; v, mv; a, ma, ua or na behind an
underscore (without one: s, w, v, a). Commas, semicolons or tabs separate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from deploy.errors import DeviceError
from deploy.units import did_you_mean

_UNITS = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "power": {"w": 1.0, "mw": 1e-3, "uw": 1e-6},
    "voltage": {"v": 1.0, "mv": 1e-3},
    "current": {"a": 1.0, "ma": 1e-3, "ua": 1e-6, "na": 1e-9},
}
KNOWN = {f"{name}_{unit}": (name, scale) for name, units in _UNITS.items() for unit, scale in units.items()}
KNOWN |= {name: (name, 1.0) for name in _UNITS}
_SEPARATOR = re.compile(r"[,;\t]")


class Table:
    """Reads rows, given a line at a time. columns: their names, where there is no header. volts: of the supply, for a
    table with currents only. name: of the meter, for messages. All methods raise DeviceError."""

    def __init__(self, name: str, columns: Sequence[str] = (), volts: float | None = None) -> None:
        self._name, self._volts = name, volts
        self._places: dict[str, tuple[int, float]] = {}
        self._width = self._line = 0
        if columns:
            self._head(list(columns))

    def row(self, line: str) -> tuple[float, float] | None:
        """Return time in seconds and power in watts; nothing for the header, an empty line and a comment (#)."""
        self._line += 1
        text = line.strip()
        if not text or text.startswith("#"):
            return None
        cells = [cell.strip().strip('"') for cell in _SEPARATOR.split(text)]
        if not self._places:
            self._head(cells)
            return None
        if len(cells) != self._width:
            raise self._error(f"has {len(cells)} columns instead of {self._width}: {text[:60]!r}")
        try:
            found = {name: float(cells[place]) * scale for name, (place, scale) in self._places.items()}
        except ValueError:
            raise self._error(f"has something that is no number: {text[:60]!r}") from None
        if not all(math.isfinite(value) for value in found.values()):
            raise self._error(f"has a value that is not finite: {text[:60]!r}")
        return found["time"], self._watts(found)

    def _watts(self, found: dict[str, float]) -> float:
        if "power" in found:
            return found["power"]
        return found["current"] * found.get("voltage", self._volts or 0.0)

    def _head(self, cells: list[str]) -> None:
        names = [cell.lower().replace(" ", "_") for cell in cells]
        found = [KNOWN[name][0] for name in names if name in KNOWN]
        if twice := [name for name in dict.fromkeys(found) if found.count(name) > 1]:
            raise self._error(f"has two columns of {twice[0]}")
        has = set(found)
        enough = "power" in has or ("current" in has and ("voltage" in has or self._volts is not None))
        if "time" not in has or not enough:
            near = next(filter(None, (did_you_mean(name, KNOWN) for name in names if name not in KNOWN)), "")
            raise self._error(
                f'has the columns "{", ".join(names)[:80]}": it needs time_s, and power_w, or current_a with voltage_v '
                f"or power's voltage; without a header give power's columns{near}"
            )
        self._width = len(names)
        self._places = {KNOWN[n][0]: (place, KNOWN[n][1]) for place, n in enumerate(names) if n in KNOWN}

    def _error(self, words: str) -> DeviceError:
        return DeviceError(f"{self._name}: line {max(self._line, 1)} {words}")
