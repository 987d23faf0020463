"""Requests to a board and its answers, over a line that loses, garbles and delays, to a board that may reset.

A request is sent again until its answer comes, less and less often. The board carries it out once however often it gets
it, and knows by the session in it whether it was reset since the greeting.
"""

from __future__ import annotations

import secrets
import time
from typing import Protocol

from deploy.device.serial_frames import (
    ANSWER,
    FAULT,
    NO_SESSION,
    Decoder,
    Frame,
    Hello,
    Operation,
    encode,
    fault_words,
    hello_of,
)
from deploy.errors import DeviceError

_FIRST_WAIT_S = 0.1  # for an answer of a board that has nothing to compute, its bytes' own time not counted
_LONGEST_WAIT_S = 2.0
_BITS_A_BYTE = 10
_ROUND_TRIP_BYTES = 520  # of the longest request and the longest answer


class Line(Protocol):
    """A serial line; both methods raise DeviceError."""

    def send(self, data: bytes) -> None:
        """Send all of `data`."""

    def receive(self) -> bytes:
        """What came, after a short while at most."""


class BoardReset(DeviceError):
    """The board was reset and has forgotten everything. Fix: greet it again and repeat; if it happens again and again,
    look at its power supply and its watchdog."""


class BoardUnstable(DeviceError):
    """The board is reset again and again. Fix: look at its power supply and its watchdog."""


class BoardFault(DeviceError):
    """The processor faulted. Fix: greet the board, which begins again; report this if generated code did it."""


class BoardSilent(DeviceError):
    """No answer came in time. Fix: look at the board and its line, reset it; `operation` is what it was asked for."""

    def __init__(self, said: str, operation: Operation) -> None:
        super().__init__(said)
        self.operation = operation


class Link:
    """One board. patience_s: how long it may be silent. retries: requests sent again so far."""

    def __init__(self, line: Line, baud: int, patience_s: float) -> None:
        self._line, self._patience_s = line, patience_s
        self._wait_s = _FIRST_WAIT_S + _ROUND_TRIP_BYTES * _BITS_A_BYTE / baud
        self._session, self._number = 0, 0
        self._decoder = Decoder()
        self._heard, self._fault = 0, ""
        self.retries = 0

    def greet(self) -> Hello:
        """Begin a session. Raises BoardSilent: no answer; DeviceError: the board's program is of another version."""
        self._fault = ""
        self._session = self._session % 0xFFFF + 1 if self._session else 1 + secrets.randbelow(0xFFFF)
        return hello_of(self.request(Operation.HELLO))

    def request(
        self, operation: Operation, data: bytes = b"", limit_s: float | None = None, quiet_s: float = 0.0
    ) -> bytes:
        """The data of the board's answer. limit_s: how long it may take, in place of the patience.

        quiet_s: how long the board is known to compute, and nothing is sent again.

        Raises BoardReset: the session is not known; BoardSilent: no answer; BoardFault; DeviceError: the line failed.
        """
        self._number = (self._number + 1) % 256
        frame = encode(Frame(self._session, self._number, operation, data))
        limit = self._patience_s if limit_s is None else limit_s
        started, wait = time.monotonic(), self._wait_s + quiet_s
        while True:
            left = started + limit - time.monotonic()
            if left <= 0:
                raise BoardSilent(self._silence(operation, limit), operation)
            self._line.send(frame)
            answer = self._answer(operation, time.monotonic() + min(wait, left))
            if answer is not None:
                return answer
            wait = min(2 * wait, _LONGEST_WAIT_S)
            self.retries += 1

    def _answer(self, operation: Operation, until: float) -> bytes | None:
        """The answer to the current request, nothing where none came in time."""
        while time.monotonic() < until:
            came = self._line.receive()
            self._heard += len(came)
            for frame in self._decoder.feed(came):
                if frame.operation == FAULT:
                    self._fault = fault_words(frame.data)
                if (frame.session, frame.number) != (self._session, self._number):
                    continue  # a second answer to a request that was sent twice
                if frame.operation == operation | ANSWER:
                    return frame.data
                if frame.operation == NO_SESSION:
                    raise BoardReset("the board was reset while it worked: look at its power supply and its watchdog")
                if frame.operation == FAULT and operation != Operation.HELLO:
                    raise BoardFault(self._fault)
        return None

    def _silence(self, operation: Operation, limit_s: float) -> str:
        if self._fault:
            return self._fault
        if operation in (Operation.RUN, Operation.STACK, Operation.LAYERS):
            return (
                f"the model did not finish within {limit_s:g} s on the board: it hangs, the line broke, or it needs a "
                "longer `timeout` in the target's device"
            )
        if not self._heard:
            return (
                f"the board did not answer within {limit_s:g} s, not a byte came: check its power, the port, and that "
                "the program is on it and its board_putc and board_getc drive this line"
            )
        return (
            f"the board did not answer within {limit_s:g} s; {self._heard} bytes came and {self._decoder.damaged} "
            "pieces of them were damaged: check `baud`, and that nothing else talks on this line"
        )
