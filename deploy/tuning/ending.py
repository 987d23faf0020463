"""Why a tuning run ends before its candidates are used up: time, nothing gained any more, or fast enough already."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from deploy.budget import Budget
from deploy.errors import InputError
from deploy.progress import duration
from deploy.stopping import Stopping
from deploy.target import Target
from deploy.units import render

GAIN = 0.001  # by which the model's time must shrink in a round that counts as a gain
MARGIN = 0.95  # of the allowed latency: what the kernels take is not all of an inference


@dataclass
class Ending:
    """Asked after each round, with the seconds that all kernels of one inference take now."""

    rules: Stopping
    latency_s: float | None = None
    started: float = field(default_factory=time.monotonic)
    least_s: float = math.inf
    dry: int = 0

    @classmethod
    def of(cls, target: Target) -> Ending:
        """The target's rules. Raises InputError where it is to end with a budget that the target has not."""
        limit = latency_limit(target.budget)
        if target.tuning.until == "budget" and limit is None:
            raise InputError(
                f"tuning for {target.name} is to end when the latency budget is met, and there is none; give the "
                "target one, such as `budgets: {latency: {p90: 20 ms}}`, or leave out `until: budget`"
            )
        return cls(target.tuning, limit if target.tuning.until == "budget" else None)

    def reason(self, total_s: float) -> str:
        """Why the run is over, or nothing. `total_s` is infinite while a kernel's time is unknown."""
        self.dry = 0 if total_s < self.least_s * (1 - GAIN) else self.dry + 1
        self.least_s = min(self.least_s, total_s)
        if self.rules.time_s is not None and time.monotonic() - self.started >= self.rules.time_s:
            return f"{duration(self.rules.time_s)} are over"
        if self.latency_s is not None and total_s <= MARGIN * self.latency_s:
            return f"its kernels take {render(total_s, 'time', 3)} of the {render(self.latency_s, 'time', 3)} allowed"
        if self.rules.patience is not None and self.dry >= self.rules.patience:
            return f"nothing gained in {self.dry} rounds"
        return ""

    def left_s(self) -> float | None:
        """Seconds until the time is over, if it is limited."""
        return None if self.rules.time_s is None else max(0.0, self.started + self.rules.time_s - time.monotonic())


def latency_limit(budget: Budget) -> float | None:
    """The smallest latency that a budget allows, in seconds."""
    return min((limit.maximum for limit in budget.limits if limit.quantity == "latency"), default=None)
