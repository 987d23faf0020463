"""Candidates sent to all free boards of a kind at once, a thread for each board.

What a candidate may take counts from when its program is started on a board: waiting for a board, copying and waiting
in a queue have limits of their own. A board that reboots, hangs, is cut off or answers nonsense loses the candidate,
which goes to another board; the board is put aside after some failures, and taken back when it does right what it did
right before. A candidate that is lost time after time is itself to blame.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self

from deploy.device.rpc_client import Session
from deploy.device.rpc_link import Offer, QueueError
from deploy.device.rpc_source import Source
from deploy.errors import DeployError, DeviceError
from deploy.tuning.board_health import Ledger, throttled
from deploy.tuning.board_queue import Job, Queue
from deploy.tuning.board_work import Candidate, Proof, Result, Work

REQUEST_S = 2.0  # between looks whether anything is left to do, while waiting for a free board
SCOUT_S = 2.0  # between looks for more boards
BREATH_S = 0.5
MOST_BOARDS = 256


@dataclass
class _Hold:
    """A board that a thread holds."""

    session: Session
    board: str
    facts: dict[str, Any]
    idle_since: float


class Pool(Generic[Candidate, Result]):
    """Threads that measure what is submitted, from `__enter__` on; none is left to work when the block is left."""

    def __init__(
        self, source: Source, work: Work[Candidate, Result], ledger: Ledger, proof: Proof[Candidate] | None = None
    ) -> None:
        self._source, self._work, self._ledger, self._rules = source, work, ledger, ledger.rules
        self._proof: Proof[Candidate] = proof or Proof()
        self._queue: Queue[Candidate, Result] = Queue()
        self._changed = self._queue.changed
        self._holds: dict[int, _Hold] = {}
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._count = 0  # of boards that the tracker knows
        self._trouble = ""  # why there are no boards, as far as that is known
        self._lively = self._worked = time.monotonic()

    def __enter__(self) -> Self:
        self._start(self._scout if self._source.tracker else self._serve)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            threads = list(self._threads)
            for hold in self._holds.values():
                hold.session.interrupt()
        for thread in threads:
            thread.join(2 * REQUEST_S)  # one that still connects ends by itself
        self._source.close()

    def submit(self, number: int, candidate: Candidate) -> None:
        """Have a candidate measured on some board."""
        if self._queue.idle():
            self._lively = self._worked = time.monotonic()
        self._queue.put(number, candidate)

    def done(self, number: int) -> bool:
        """Whether a candidate's result is there."""
        with self._changed:
            return number in self._queue.results

    def result(self, number: int) -> Result:
        """A candidate's result, once it is there. Raises DeviceError: there is no board to measure it."""
        with self._changed:
            while number not in self._queue.results:
                self._changed.wait(BREATH_S)
                now = time.monotonic()
                if self._queue.flying():
                    self._lively = self._worked = now
                elif now - self._lively > self._rules.wait_s:
                    raise self._deserted(self._rules.wait_s, "has answered")
                elif now - self._worked > self._rules.queue_s:
                    raise self._deserted(self._rules.queue_s, "was free")
            return self._queue.results.pop(number)

    def _deserted(self, seconds: float, what: str) -> DeviceError:
        why = self._trouble or self._ledger.last() or "none is there"
        return DeviceError(f"no {self._source.words} {what} for {seconds:g} s ({why}); what was measured is kept")

    # --- the threads ---

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _scout(self) -> None:
        """Have a thread for each board that the tracker knows."""
        serving = 0
        while not self._closing:
            try:
                self._count = self._source.count()
            except DeviceError as error:
                self._count, self._trouble = 0, str(error)
            with self._changed:
                while not self._closing and serving < min(self._count, MOST_BOARDS):
                    self._start(self._serve)
                    serving += 1
            self._pause(SCOUT_S)

    def _serve(self) -> None:
        """One board after the other, as long as there is anything to measure."""
        me = threading.get_ident()
        hold: _Hold | None = None
        while not self._closing:
            if hold is not None and self._over(hold):
                self._release(me, hold)
                hold = None
            if not self._queue.wanting():
                self._pause(BREATH_S, until_work=True)
            elif hold is None:
                hold = self._take(me)
            elif not self._measured(hold):
                self._release(me, hold)
                hold = None
        if hold is not None:
            self._release(me, hold)

    def _over(self, hold: _Hold) -> bool:
        """Whether a board is to be given back: its session ends soon, or there was nothing to do for a while."""
        return hold.session.left_s < self._work.takes_s or time.monotonic() - hold.idle_since > self._rules.idle_s

    def _release(self, me: int, hold: _Hold) -> None:
        with self._changed:
            self._holds.pop(me, None)
        hold.session.close()

    def _take(self, me: int) -> _Hold | None:
        """A board to use; nothing where there is none now, or not one to be trusted."""
        try:
            offer = self._source.offer(REQUEST_S)
        except QueueError:
            if self._count > self._ledger.suspects():  # there are boards, and others use them
                self._lively = time.monotonic()
            return None
        except DeployError as error:
            self._trouble = str(error)
            self._pause(BREATH_S)
            return None
        board = str(offer.place)
        aside_s = self._ledger.aside_s(board)
        self._pause(min(aside_s, REQUEST_S))
        if aside_s > REQUEST_S or self._closing:  # the offer lapses
            return None
        return self._greeted(me, offer, board)

    def _greeted(self, me: int, offer: Offer, board: str) -> _Hold | None:
        session = None
        try:
            session = self._source.session(offer, self._rules.session_s, REQUEST_S)
            hold = _Hold(session, board, self._work.greet(session), time.monotonic())
            with self._changed:
                self._holds[me] = hold
            if self._ledger.doubtful(board):
                if self._proof.candidate is not None:
                    self._work.measure(session, hold.facts, self._proof.candidate)
                self._ledger.well(board)
        except DeviceError as error:
            self._ledger.failed(board, str(error))
            with self._changed:
                self._holds.pop(me, None)
            if session is not None:
                session.close()
            self._pause(BREATH_S)
            return None
        self._lively, self._trouble = time.monotonic(), ""
        return hold

    def _measured(self, hold: _Hold) -> bool:
        """Measure a candidate; False where the board is to be given back."""
        job = self._queue.take(hold.board, alone=len(self._holds) <= 1)
        if job is None:  # what there is was lost by this board: it is for another one
            self._pause(BREATH_S)
            return True
        try:
            answer = self._work.measure(hold.session, hold.facts, job.candidate)
        except DeviceError as error:
            self._lose(job, hold, str(error))
            return False
        hold.idle_since = time.monotonic()
        if slow := throttled(answer.conditions, self._rules.hot_c):
            self._queue.put_back(job, hold.board, lost=False)
            return self._cooled(hold, slow)
        self._ledger.ran(lost=False)
        self._ledger.well(hold.board)
        self._proof.candidate = job.candidate
        self._queue.finish(job, hold.board, answer.result)
        return True

    def _lose(self, job: Job[Candidate], hold: _Hold, why: str) -> None:
        if self._closing and not job.done:  # it was interrupted
            return
        self._ledger.failed(hold.board, why)
        if job.done:  # another board was faster
            return
        self._ledger.ran(lost=True)
        if self._ledger.enough(len(job.lost_on) + 1) and job.on == [hold.board]:
            lost = self._work.lost(why.replace(hold.session.name, "the board"))
            self._queue.finish(job, hold.board, lost)
        else:
            self._queue.put_back(job, hold.board, lost=True)

    def _cooled(self, hold: _Hold, why: str) -> bool:
        """Wait until a board is not throttled any more; False, and it is put aside, where that takes too long."""
        deadline = time.monotonic() + self._rules.cool_s
        try:
            while why and time.monotonic() < deadline and not self._closing:
                self._pause(self._rules.cooling_s)
                self._lively = time.monotonic()
                facts = self._work.greet(hold.session)
                why = throttled(facts.get("conditions", {}), self._rules.hot_c)
        except DeviceError as error:
            self._ledger.failed(hold.board, str(error))
            return False
        if why:
            self._ledger.put_aside(hold.board, f"{hold.session.name} is throttled: {why}")
        hold.idle_since = time.monotonic()
        return not why

    def _pause(self, seconds: float, *, until_work: bool = False) -> None:
        """Wait, unless the pool closes, or something is there to be measured."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._closing and not (until_work and self._queue.wanting()):
                if (left_s := deadline - time.monotonic()) <= 0:
                    return
                self._changed.wait(left_s)
