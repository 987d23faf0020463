"""Energy of a board on a serial line: a meter of its own beside it watches one inference after the other.

When an inference ran is known from when it was asked for, when the answer came, and how long it took by the board's own
counter; where in between, only as far as the line lets one see. A pin that the program drives (`board_mark`), on an
input of the meter, says it exactly.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.device.serial_board import Board
from deploy.power import EnergyReading, Meter, Window, is_external, joined, meter_for
from deploy.target import Target

FEWEST = 5
MOST = 10_000
_LATE_S = 0.001  # beyond twice the usual delay: something came in between, such as a request that was sent again


@dataclass(frozen=True)
class Metering:
    """What the meter said of `inferences`, and of the board while it waited, before and after."""

    reading: EnergyReading
    idle: EnergyReading
    inferences: int


@contextmanager
def meter_beside(target: Target, wanted: bool) -> Iterator[Meter | None]:
    """The target's meter, opened before the board is spoken to, which it may supply; nothing where it has none.

    Raises DeviceError: it cannot be opened; InputError: an option of its is wrong.
    """
    if not wanted or not is_external(target.power):
        yield None
        return
    with meter_for(target.power) as meter:
        yield meter


def meter_inferences(board: Board, sample: bytes | None, meter: Meter, seconds: float, clock_hz: float) -> Metering:
    """Run the model for `seconds` and FEWEST times at least, the meter on. Raises DeviceError: board or meter fail."""
    idle = meter.idle(seconds)
    meter.start()
    calls: list[tuple[float, float, float]] = []
    started = time.monotonic()
    while len(calls) < FEWEST or (time.monotonic() - started < seconds and len(calls) < MOST):
        asked = time.monotonic()
        count = board.time(sample)
        calls.append((asked, time.monotonic(), count / clock_hz))
    windows = windows_of(calls)
    for window in windows:
        meter.mark("begin", window.begin_s, window.slack_s)
        meter.mark("end", window.end_s, window.slack_s)
    reading = meter.stop()
    return Metering(reading, joined(idle, meter.idle(seconds)), len(windows))


def windows_of(calls: Sequence[tuple[float, float, float]]) -> list[Window]:
    """Return when each inference ran: in the middle between question and answer, as far off as these leave room.

    calls: when it was asked for, when the answer came, how long it took, in seconds. Those that took unusually long
    beside that are left out.
    """
    rooms = [max(0.0, answered - asked - took) / 2 for asked, answered, took in calls]
    most = 2 * statistics.median(rooms) + _LATE_S
    found = []
    for (asked, answered, took), room in zip(calls, rooms, strict=True):
        if room <= most:
            begin = asked + room
            found.append(Window(begin, min(begin + took, answered), room))
    return found
