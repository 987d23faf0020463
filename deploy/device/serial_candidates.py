"""Candidates for the schedules of kernels on a board at the end of a serial line, each called when it is asked for."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.device.serial_board import Board
from deploy.device.serial_frames import Code, Operation, outcome_of
from deploy.device.serial_link import BoardFault, BoardReset, BoardSilent, BoardUnstable, Link
from deploy.errors import DeviceError
from deploy.firmware import candidates

REPEATS = 5  # counts of cycles of a candidate, after a first call that fills caches
LONGEST_S = 1.0  # after which a candidate is not called again


@dataclass(frozen=True)
class Called:
    """What became of a candidate: the counts of its calls and its outputs' bytes, or the reason why there are none.

    lost: the board has to be reset, for it did not come back.
    """

    counts: tuple[int, ...] = ()
    data: bytes = b""
    reason: str = ""
    lost: bool = False


class CandidateBoard(Board):
    """A board with the program of candidates that has that build id; see `Board`."""

    def __init__(self, link: Link, identity: int, limit_s: float) -> None:
        super().__init__(link, candidates.NAME, identity, limit_s)

    def call(self, number: int, outputs: Sequence[tuple[int, int]], expected: bytes) -> Called:
        """Call a candidate. outputs: place and bytes of each in the area; expected: their bytes, if they are known.

        What is as expected, by its CRC-32, is not sent over the line. After one that went wrong the board is reset.

        Raises BoardSilent: the board does not even greet; DeviceError: it has another program, or the line failed.
        """
        self.greet()
        try:
            called = self._whole(lambda: self._called(number, outputs, expected))
        except BoardFault:
            return Called(reason=candidates.FAULTED)
        except BoardUnstable:
            return Called(reason="the board was reset each time that it ran")
        except BoardSilent:
            return Called(reason=f"did not come back within {self._limit_s:.3g} s", lost=True)
        if called.reason or (expected and called.data != expected):
            return self._again(called)
        return called

    def _called(self, number: int, outputs: Sequence[tuple[int, int]], expected: bytes) -> Called:
        exact = self.greet().counts_instructions
        if self._link.request(Operation.SELECT, _number(number)) != bytes([Code.GOOD]):
            raise DeviceError(f"the board has no candidate {number}: please report this")
        counts, reason = self._run()
        if reason:
            return Called(reason=reason)
        data, at = [], 0
        for place, nbytes in outputs:
            data.append(self._output(place, nbytes, expected[at : at + nbytes]))
            at += nbytes
        started = time.monotonic()
        while not exact and len(counts) <= REPEATS and (len(counts) < 2 or time.monotonic() - started < LONGEST_S):
            more, reason = self._run()
            if reason:
                return Called(reason=reason)
            counts += more
        return Called(tuple(counts if exact else counts[1:]), b"".join(data))

    def _run(self) -> tuple[list[int], str]:
        """The count of a call in a list, or the reason why there is none."""
        code, status, count = outcome_of(self._answer(Operation.RUN, None))
        if code == Code.GOOD:
            return [count], ""
        if code == Code.STATUS:
            return [], candidates.status_words(status)
        return [], candidates.PAST

    def _output(self, place: int, nbytes: int, expected: bytes) -> bytes:
        asked = _number(place) + _number(nbytes)
        answer = self._link.request(Operation.CHECK, asked, self._limit_s)
        if len(expected) == nbytes and answer == bytes([Code.GOOD]) + _number(zlib.crc32(expected)):
            return expected
        return self._read(place, nbytes)

    def _again(self, called: Called) -> Called:
        """Reset the board, whose memory a candidate may have spoilt, and give what became of that one."""
        try:
            self._link.request(Operation.RESET)
        except BoardReset:
            return called
        except DeviceError:
            pass
        return Called(called.counts, called.data, called.reason, lost=True)


def _number(number: int) -> bytes:
    return number.to_bytes(4, "little")
