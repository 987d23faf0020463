"""When a tuning run ends: the key `tuning` of a target.

```yaml
tuning: {trials: 2000, time: 30 min, patience: 8, until: budget}    # whichever comes first
```
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from deploy import units
from deploy.errors import InputError
from deploy.yaml_source import Node, Plain

MAX_TRIALS = 10_000_000
Until = Literal["trials", "budget"]
UNTILS: tuple[Until, ...] = get_args(Until)


@dataclass(frozen=True)
class Stopping:
    """Ends after `trials` candidates on record, `time_s` seconds, or `patience` rounds in a row without a gain.

    With `until` "budget" also where the kernels' times add up to less than the latency that the target's budget allows.
    """

    trials: int = 1000
    time_s: float | None = None
    patience: int | None = None
    until: Until = "trials"

    def __post_init__(self) -> None:
        if not 0 <= self.trials <= MAX_TRIALS:
            raise InputError(f"trials of tuning must be 0 to {MAX_TRIALS}, not {self.trials}")
        if self.time_s is not None and self.time_s <= 0:
            raise InputError("time of tuning must be more than zero")
        if self.patience is not None and self.patience < 1:
            raise InputError("patience of tuning must be 1 round or more")
        if self.until not in UNTILS:
            raise InputError(f'until of tuning is "{self.until}"; allowed: {", ".join(UNTILS)}')


def parse_stopping(node: Node) -> Stopping:
    """Return the mapping `tuning` of a target. Raises InputError (`file:line`) where it is wrong."""
    entries = node.mapping("tuning", ("trials", "time", "patience", "until"))
    values: dict[str, object] = {}
    for key in ("trials", "patience"):
        if key in entries:
            values[key] = entries[key].integer(f"{key} of tuning", 0 if key == "trials" else 1, MAX_TRIALS)
    if "time" in entries:
        values["time_s"] = entries["time"].quantity("time of tuning", "time")
    if "until" in entries:
        values["until"] = entries["until"].choice("until of tuning", UNTILS)
    return node.placing(lambda: Stopping(**values))  # type: ignore[arg-type]


def plain_stopping(stopping: Stopping) -> dict[str, Plain]:
    """Return the plain data that `parse_stopping` reads."""
    entries: dict[str, Plain] = {"trials": stopping.trials}
    if stopping.time_s is not None:
        entries["time"] = units.render(stopping.time_s, "time")
    if stopping.patience is not None:
        entries["patience"] = stopping.patience
    if stopping.until != "trials":
        entries["until"] = stopping.until
    return entries
