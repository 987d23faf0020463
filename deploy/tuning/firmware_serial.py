"""Candidates called on a board at the end of a serial line, one by one: a bad one costs nobody else anything.

An image is put on the board once. The host asks for each candidate; one that does not come back is put on record, the
board is reset, by the target's `reset` command or else by flashing the same image again, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from deploy.device import serial_image
from deploy.device.serial import PATIENCE_S, SerialDevice, drive_board, open_port, reading_kind, require_pyserial
from deploy.device.serial_board import COUNTER
from deploy.device.serial_candidates import CandidateBoard
from deploy.device.serial_link import BoardSilent, Link
from deploy.errors import InputError
from deploy.firmware import candidates, serial_program
from deploy.target import Target
from deploy.tuning.firmware_image import IMAGE, Entry, Image, Linker, Source
from deploy.tuning.firmware_task import Known, Result


@dataclass
class SerialRunner:
    """Calls the candidates of an image on a board. flashes: how often its flash was written."""

    linker: Linker
    flashes: int = 0
    clock_seen: bool = False
    expected: dict[int, tuple[Known, bytes]] = field(default_factory=dict)

    @staticmethod
    def sources(target: Target) -> tuple[Source, ...]:
        """The files of the program. Raises InputError: the target lacks something, or pyserial is not installed."""
        SerialDevice(target)  # says what the target lacks
        require_pyserial()
        if not serial_image.builds(target):
            raise InputError(
                f"kernels of {target.name} are tuned on a board by putting candidates on it, and its device has no "
                "`flash` command with {elf} or {bin}: name one in a boards.yaml (--boards, --device), or use "
                "`--trials 0`"
            )
        names = (candidates.SERIAL_SOURCE, candidates.SHARED, *serial_program.SHARED)
        files = serial_image.program_files(target, names, [])
        return tuple(Source(path, tuple(flags)) for path, flags in files)

    @property
    def note(self) -> str:
        """What to tell of the board so far."""
        times = "once" if self.flashes == 1 else f"{self.flashes} times"
        kind = reading_kind(self.linker.target, self._exact)
        return f"board flashed {times}, times {kind}" if self.flashes else ""

    def run(self, image: Image, entries: Sequence[Entry]) -> Iterator[Result]:
        """Flash the image and call each of its candidates. Raises DeviceError: the board or its line fails."""
        self._flash(image)
        done = 0
        while done < len(entries):
            if done:
                self._reset(image)
            before = done
            with open_port(self._port, self._baud) as line:
                link = Link(line, self._baud, max(self._given_s or 0.0, PATIENCE_S))
                self._check_clock(CandidateBoard(link, image.identity, self._limit_s))
                for number in range(before, len(entries)):
                    try:
                        result, lost = self._called(link, image, number, entries[number])
                    except BoardSilent:
                        if done == before:
                            raise
                        break
                    done += 1
                    yield result
                    if lost:
                        break

    def _called(self, link: Link, image: Image, number: int, entry: Entry) -> tuple[Result, bool]:
        """What became of a candidate, and whether the board has to be reset."""
        board = CandidateBoard(link, image.identity, self._limit_s)
        known = self.expected.get(id(entry.known))
        called = board.call(number, entry.outputs, known[1] if known else b"")
        if not called.reason:
            self.expected.setdefault(id(entry.known), (entry.known, called.data))
        return Result(called.counts, called.data, called.reason), called.lost

    def _check_clock(self, board: CandidateBoard) -> None:
        if not self.clock_seen and reading_kind(self.linker.target, self._exact) == "measured":
            board.check_clock(cast(float, self.linker.target.clock))
        self.clock_seen = True

    def _flash(self, image: Image) -> None:
        template = cast("tuple[str, ...]", self.linker.target.device.get("flash"))
        built = self._built(image)
        serial_image.strip_to_flash(self.linker.target.toolchain, built)
        self.flashes += 1
        drive_board(serial_image.flash_command(template, built, self._port), "flashed")

    def _reset(self, image: Image) -> None:
        template = cast("tuple[str, ...]", self.linker.target.device.get("reset") or ())
        if not template:
            return self._flash(image)
        command = serial_image.flash_command(template, self._built(image), self._port, "reset")
        return drive_board(command, "reset")

    def _built(self, image: Image) -> serial_image.Image:
        elf = self.linker.folder / IMAGE
        return serial_image.Image(elf, elf.with_suffix(".bin"), image.external)

    @property
    def _exact(self) -> bool:
        return serial_image.counts_instructions(self.linker.target)

    @property
    def _port(self) -> str:
        return str(self.linker.target.device.get("port"))

    @property
    def _baud(self) -> int:
        return cast(int, self.linker.target.device.get("baud") or serial_image.DEFAULT_BAUD)

    @property
    def _given_s(self) -> float | None:
        return cast("float | None", self.linker.target.device.get("timeout"))

    @property
    def _limit_s(self) -> float:
        """How long a candidate may take, at most as long as cycles are counted."""
        longest_s = float("inf") if self._exact else COUNTER / cast(float, self.linker.target.clock)
        return min(self._given_s or PATIENCE_S, longest_s)
