"""What a tuning run has done: counts of candidates and of the reasons why some failed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from deploy.tuning.runner import Measured


@dataclass
class Tally:
    """What a tuning run has done so far."""

    wanted: int
    started: float = field(default_factory=time.monotonic)
    trials: int = 0
    failures: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def count(self, measured: Measured) -> None:
        """Add a candidate."""
        self.trials += 1
        if measured.reason:
            self.failures += 1
            self.reasons[measured.reason] = self.reasons.get(measured.reason, 0) + 1

    @property
    def a_minute(self) -> float | None:
        """Candidates a minute, the search for them included; nothing in the first seconds."""
        elapsed_s = time.monotonic() - self.started
        return 60 * self.trials / elapsed_s if elapsed_s > 2 else None

    def common(self, count: int = 3) -> list[str]:
        """The commonest reasons of failures, with their numbers."""
        ranked = sorted(self.reasons, key=lambda reason: -self.reasons[reason])[:count]
        return [f"{reason} ({self.reasons[reason]} times)" if self.reasons[reason] > 1 else reason for reason in ranked]


@dataclass(frozen=True)
class Outcome:
    """Tasks of the model, candidates measured now, and those of them that failed, with the reasons' counts."""

    tasks: int
    trials: int
    failures: int
    reasons: dict[str, int]
    stopped: str = ""  # why, where that was before all candidates were measured
    note: str = ""  # what there is to tell of the device

    @property
    def words(self) -> str:
        """What to tell of it in the end."""
        told = f"{self.trials} candidates measured" + (f", {self.note}" if self.note else "")
        return told + (f", then ended: {self.stopped}" if self.stopped else "")
