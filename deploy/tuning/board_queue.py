"""What waits to be measured, what is being measured and where, and what came of it; for several threads at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Generic

from deploy.tuning.board_work import Candidate, Result

STRAGGLES_S = 1.0  # beyond twice the usual time: then a board that has nothing else to do measures it too
REMEMBERED = 50  # times of which the usual one is taken


@dataclass
class Job(Generic[Candidate]):
    """A candidate, the boards that measure it now, since when, and the boards that lost it."""

    number: int
    candidate: Candidate
    on: list[str] = field(default_factory=list)
    since: float = 0.0
    lost_on: list[str] = field(default_factory=list)
    done: bool = False


class Queue(Generic[Candidate, Result]):
    """Candidates from being submitted until their results are taken. `changed` is notified of every change."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.results: dict[int, Result] = {}
        self._waiting: list[Job[Candidate]] = []
        self._flying: list[Job[Candidate]] = []
        self._times: deque[float] = deque(maxlen=REMEMBERED)

    def put(self, number: int, candidate: Candidate) -> None:
        """Add a candidate."""
        with self.changed:
            self._waiting.append(Job(number, candidate))
            self.changed.notify_all()

    def idle(self) -> bool:
        """Whether nothing waits and nothing is being measured."""
        with self.changed:
            return not self._waiting and not self._flying

    def flying(self) -> bool:
        """Whether anything is being measured."""
        with self.changed:
            return bool(self._flying)

    def wanting(self) -> bool:
        """Whether there is anything to do for a board that does nothing."""
        with self.changed:
            return bool(self._waiting) or any(self._straggles(job) for job in self._flying)

    def take(self, board: str, *, alone: bool) -> Job[Candidate] | None:
        """A candidate for a board: one that it did not lose, unless it is alone; or one that another is slow with."""
        with self.changed:
            found = next((job for job in self._waiting if alone or board not in job.lost_on), None)
            if found is not None:
                self._waiting.remove(found)
                found.since = time.monotonic()
                self._flying.append(found)
            else:
                fresh = (job for job in self._flying if self._straggles(job) and board not in (*job.on, *job.lost_on))
                found = next(fresh, None)
            if found is not None:
                found.on.append(board)
            return found

    def finish(self, job: Job[Candidate], board: str, result: Result) -> None:
        """A candidate's result is there; the first that comes counts."""
        with self.changed:
            if not job.done:
                self._times.append(time.monotonic() - job.since)
                self.results[job.number], job.done = result, True
                self._flying.remove(job)
            job.on.remove(board)
            self.changed.notify_all()

    def put_back(self, job: Job[Candidate], board: str, *, lost: bool) -> None:
        """A board does not measure a candidate after all; unless another one does, it waits again, as the first."""
        with self.changed:
            job.on.remove(board)
            if lost:
                job.lost_on.append(board)
            if not job.done and not job.on:
                self._flying.remove(job)
                self._waiting.insert(0, job)
            self.changed.notify_all()

    def _straggles(self, job: Job[Candidate]) -> bool:
        usual_s = median(self._times) if self._times else 0.0
        return len(job.on) == 1 and time.monotonic() - job.since > 2 * usual_s + STRAGGLES_S
