"""One model on one board: greeting, samples, counts; begun again where the board was reset in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from deploy.device.serial_frames import CHUNK, Code, Hello, Operation, count_of
from deploy.device.serial_link import BoardReset, BoardUnstable, Link
from deploy.errors import DeviceError
from deploy.firmware.harness import KNOWN_INSTRUCTIONS
from deploy.units import render

COUNTER = 2.0**32  # of cycles, after which DWT begins again
_RESETS = 3  # of one run; a board that resets itself more often than that is not to be trusted
_SPIN_S = 0.5
_SPIN_QUIET_S, _SPIN_LIMIT_S = 8.0, 30.0  # the clock may be far slower than the target says
_CLOCK_TOLERANCE = 0.1  # of the clock, as it is seen through the delays of a serial line
_CLOCK_TRIES = 4
_Result = TypeVar("_Result")


class Board:
    """A board with the program of the model `prefix`, of the library with that build id. limit_s: of an inference.

    resets: how often it was reset. longest_s: the longest time that an answer to a request to run took.
    """

    def __init__(self, link: Link, prefix: str, identity: int, limit_s: float) -> None:
        self._link, self._prefix, self._identity, self._limit_s = link, prefix, identity, limit_s
        self._greeted: Hello | None = None
        self._held: bytes | None = None  # the sample that the board has
        self.resets, self.longest_s = 0, 0.0

    def greet(self) -> Hello:
        """What the board says of itself. Raises DeviceError where its program is another one."""
        return self._whole(self._greeting)

    def stack_bytes(self, sample: bytes | None) -> int | None:
        """The most stack that an inference uses; nothing where the program does not know where its stack ends."""
        return self._whole(lambda: count_of(self._answer(Operation.STACK, sample), refused=True))

    def run(self, sample: bytes | None) -> tuple[int, bytes]:
        """The count of an inference, and the bytes of all outputs. sample: the bytes of all inputs, None for zeros."""

        def once() -> tuple[int, bytes]:
            return self._counted(Operation.RUN, sample), self._read(0, self._greeting().output_bytes)

        return self._whole(once)

    def time(self, sample: bytes | None) -> int:
        """The count of an inference, and nothing else."""
        return self._whole(lambda: self._counted(Operation.RUN, sample))

    def layers(self, sample: bytes | None) -> tuple[int, ...]:
        """The count of each call of a kernel."""

        def once() -> tuple[int, ...]:
            calls = range(self._counted(Operation.LAYERS, sample))
            answers = [self._link.request(Operation.LAYER, call.to_bytes(4, "little")) for call in calls]
            return tuple(int.from_bytes(answer, "little") for answer in answers)

        return self._whole(once) if self.greet().calls else ()

    def check_clock(self, clock_hz: float) -> float:
        """How many cycles a second this computer's clock sees. Raises DeviceError where it is not `clock_hz`."""
        wanted = min(round(clock_hz * _SPIN_S), 2**31)
        seen: list[float] = []
        while len(seen) < _CLOCK_TRIES and not (len(seen) > 1 and _alike(seen[-2], seen[-1])):  # the same error twice
            seen.append(self._whole(lambda: self._seen_hz(wanted)))
            if _alike(seen[-1], clock_hz):
                return seen[-1]
        raise DeviceError(
            f"the board's clock is about {render(seen[-1], 'frequency', 3)}, the target says "
            f"{render(clock_hz, 'frequency', 3)}: set it in board_init, or say what it is in the target's `clock`"
        )

    def _seen_hz(self, wanted: int) -> float:
        """Cycles a second, from a long and a short pause, so that what the line takes cancels out."""
        counts, seconds = [], []
        for cycles in (1, wanted):
            started, retries = time.monotonic(), self._link.retries
            answer = self._link.request(Operation.SPIN, cycles.to_bytes(4, "little"), _SPIN_LIMIT_S, _SPIN_QUIET_S)
            seconds.append(time.monotonic() - started)
            counts.append(count_of(answer) or 0)
            if self._link.retries != retries:
                return 0.0
        return (counts[1] - counts[0]) / max(seconds[1] - seconds[0], 1e-9)

    def _whole(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` in one session, from its beginning where the board was reset."""
        while True:
            try:
                self._greeting()
                return work()
            except BoardReset as error:
                self._greeted = None
                self.resets += 1
                if self.resets > _RESETS:
                    raise BoardUnstable(
                        f"the board was reset {self.resets} times while the model ran: look at its power supply and "
                        "its watchdog; a stack that is too small does that too"
                    ) from error

    def _greeting(self) -> Hello:
        if self._greeted is None:
            self._greeted, self._held = self._checked(self._link.greet()), None
        return self._greeted

    def _checked(self, hello: Hello) -> Hello:
        if (hello.name, hello.build_id) != (self._prefix, self._identity):
            raise DeviceError(
                f'the board runs another program, of "{hello.name}" with the build id {hello.build_id:016x} instead of '
                f'"{self._prefix}" with {self._identity:016x}: give the target\'s device a `flash` command that '
                "works, or put the program on the board yourself"
            )
        if hello.counts_instructions and hello.known != KNOWN_INSTRUCTIONS:
            raise DeviceError(
                f"{KNOWN_INSTRUCTIONS} instructions were counted as {hello.known}: the target's `tick` is not that of "
                "this emulated board, or the emulator does not count instructions"
            )
        if not hello.known:
            raise DeviceError("the board's counter of cycles stands still: neither DWT nor SysTick counts there")
        return hello

    def _counted(self, operation: Operation, sample: bytes | None) -> int:
        return count_of(self._answer(operation, sample)) or 0

    def _answer(self, operation: Operation, sample: bytes | None) -> bytes:
        if sample is not None and sample != self._held:
            self._write(sample)
        started = time.monotonic()
        answer = self._link.request(operation, limit_s=self._limit_s)
        if operation == Operation.RUN:
            self.longest_s = max(self.longest_s, time.monotonic() - started)
        return answer

    def _write(self, sample: bytes) -> None:
        self._held = None
        if len(sample) != self._greeting().input_bytes:
            raise DeviceError("the samples are not of the size of the model's inputs")
        for at in range(0, len(sample), CHUNK):
            asked = at.to_bytes(4, "little") + sample[at : at + CHUNK]
            if self._link.request(Operation.WRITE, asked) != bytes([Code.GOOD]):
                raise DeviceError("the board refused to take an input: please report this")
        self._held = sample

    def _read(self, start: int, size: int) -> bytes:
        parts = []
        for at in range(0, size, CHUNK):
            asked = (start + at).to_bytes(4, "little") + bytes([min(CHUNK, size - at)])
            answer = self._link.request(Operation.READ, asked)
            if answer[:1] != bytes([Code.GOOD]):
                raise DeviceError("the board refused to give an output: please report this")
            parts.append(answer[1:])
        return b"".join(parts)


def _alike(one_hz: float, other_hz: float) -> bool:
    return abs(one_hz - other_hz) <= _CLOCK_TOLERANCE * other_hz
