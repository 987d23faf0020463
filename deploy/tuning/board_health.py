"""Which boards can be trusted, and whose fault a failure is: a board's, or the candidate's that it ran."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_ATTEMPTS = 5
CHANCE = 0.001  # that boards alone would have failed so often for one candidate
SLOWED = 0.85  # of its highest frequency: below, a CPU that is to run at it is throttled


@dataclass(frozen=True)
class Rules:
    """When boards are given up, and for how long; times in seconds, temperature in °C.

    failures: in a row, before a board is put aside, for `aside_s`, twice as long each time up to `longest_aside_s`.
    wait_s: without any board that answers, before the run ends. queue_s: without one that is not taken by others.
    session_s: that a board is kept at most. idle_s: that it is kept without work. hot_c: where a board is too warm to
    time anything, cool_s: how long it may take to cool down, cooling_s: between looks whether it has.
    """

    failures: int = 3
    aside_s: float = 10.0
    longest_aside_s: float = 60.0
    wait_s: float = 120.0
    queue_s: float = 3600.0
    session_s: float = 300.0
    idle_s: float = 1.0
    hot_c: float = 80.0
    cool_s: float = 120.0
    cooling_s: float = 2.0


@dataclass
class _Board:
    """A board's failures in a row, until when it is put aside, and for how long that was."""

    failures: int = 0
    until: float = 0.0
    aside_s: float = 0.0
    last: str = ""


@dataclass
class Ledger:
    """What is known of all boards, for a whole tuning run; safe to use from several threads."""

    rules: Rules = field(default_factory=Rules)
    runs: int = 0  # of candidates, whichever way they ended
    losses: int = 0  # of these, how many a board did not bring back
    _boards: dict[str, _Board] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def well(self, board: str) -> None:
        """A board did what it was asked to."""
        with self._lock:
            self._boards[board] = _Board()

    def failed(self, board: str, why: str) -> None:
        """A board failed."""
        with self._lock:
            known = self._boards.setdefault(board, _Board())
            known.failures, known.last = known.failures + 1, why
            if known.failures >= self.rules.failures:
                self._put_aside(known)

    def put_aside(self, board: str, why: str) -> None:
        """A board is not to be used for a while."""
        with self._lock:
            known = self._boards.setdefault(board, _Board())
            known.failures, known.last = max(known.failures, self.rules.failures), why
            self._put_aside(known)

    def _put_aside(self, known: _Board) -> None:
        known.aside_s = min(2 * known.aside_s or self.rules.aside_s, self.rules.longest_aside_s)
        known.until = time.monotonic() + known.aside_s

    def aside_s(self, board: str) -> float:
        """For how many more seconds a board is put aside."""
        with self._lock:
            return max(0.0, self._boards.setdefault(board, _Board()).until - time.monotonic())

    def doubtful(self, board: str) -> bool:
        """Whether a board was put aside and has not done anything right since."""
        with self._lock:
            return self._boards.setdefault(board, _Board()).failures >= self.rules.failures

    def suspects(self) -> int:
        """How many boards were put aside and have not done anything right since."""
        with self._lock:
            return sum(board.failures >= self.rules.failures for board in self._boards.values())

    def ran(self, *, lost: bool) -> None:
        """A candidate was sent to a board, which did or did not bring it back."""
        with self._lock:
            self.runs += 1
            self.losses += lost

    def enough(self, losses: int) -> bool:
        """Whether a candidate that was lost so often is to blame itself: boards alone rarely fail so often in a row.

        Two losses are enough where boards hardly ever fail; where they often do it takes more.
        """
        with self._lock:
            others = max(0, self.losses - losses)  # this candidate's own say nothing about boards
            rate = others / max(1, self.runs - losses)
        needed = 2
        while needed < MOST_ATTEMPTS and rate**needed > CHANCE:
            needed += 1
        return losses >= needed

    def words(self) -> str:
        """The boards that were in use, for the progress line."""
        with self._lock:
            now = time.monotonic()
            aside = sum(board.until > now for board in self._boards.values())
            count = len(self._boards)
        shown = f"{count} board{'s' if count != 1 else ''}" if count else ""
        return f"{shown}, {aside} put aside" if aside else shown

    def last(self) -> str:
        """What went wrong last with any board."""
        with self._lock:
            return next((board.last for board in reversed(self._boards.values()) if board.last), "")


def throttled(conditions: Mapping[str, object], hot_c: float) -> str:
    """Why times taken under these conditions are not to be trusted; empty where they are."""
    degrees, governor = conditions.get("temperature_c"), conditions.get("governor")
    now, highest = conditions.get("frequency_hz"), conditions.get("max_frequency_hz")
    if isinstance(degrees, int | float) and degrees >= hot_c:
        return f"it is {degrees:.0f} °C warm"
    if governor != "performance" or not isinstance(now, int | float) or not isinstance(highest, int | float):
        return ""  # other governors change the clock as they like
    return f"its clock is slowed to {now / 1e6:.0f} MHz" if now < SLOWED * highest else ""
