"""Any other meter: a program that writes a table while it measures, or a file or pipe to which another one does."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from deploy import shell
from deploy.errors import DeviceError, InputError
from deploy.power.csv_text import Table
from deploy.power.stream import Block
from deploy.power.trace import MeterFacts

CLOCKS = ("arrival", "monotonic", "unix")
_POLL_S = 0.02
_PIECE = 1 << 16


class _Bytes(Protocol):
    """Where the table comes from; `read` gives None at its end."""

    def read(self, seconds: float) -> bytes | None: ...

    def ending(self) -> str: ...

    def close(self) -> None: ...


class _File:
    """A file that grows, from where it ends now or from its start; a pipe; or standard input, which is called "-"."""

    def __init__(self, path: str, from_start: bool) -> None:
        try:
            # A pipe whose writer is not there yet must not hold us up.
            self._descriptor = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise DeviceError(
                f"cannot read the power meter's file {path}: {(error.strerror or str(error)).lower()}"
            ) from error
        self._path, self._grows = path, path != "-" and Path(path).is_file()
        if self._grows and not from_start:
            os.lseek(self._descriptor, 0, os.SEEK_END)

    def read(self, seconds: float) -> bytes | None:
        """What was written since; a file that grows has no end."""
        if not self._grows and not select.select([self._descriptor], [], [], seconds)[0]:
            return b""
        try:
            data = os.read(self._descriptor, _PIECE)
        except BlockingIOError:
            data = b""
        except OSError as error:
            raise DeviceError(f"the power meter's file {self._path} is gone: {error.strerror}") from error
        if data or not self._grows:
            return data or None
        time.sleep(seconds)
        return b""

    def ending(self) -> str:
        return f"nobody writes to {'standard input' if self._path == '-' else self._path} any more"

    def close(self) -> None:
        if self._path != "-":
            os.close(self._descriptor)


class CsvMeter:
    """A table as a source of samples, see csv_text; exactly one of `command` and `file` is given.

    clock: what its times are: "arrival" for a clock of the meter's own, of which rows arrive as they are measured;
    "monotonic" or "unix" for this computer's. columns: the names of the table's columns, where it has no header.
    """

    kind, even = "csv", None

    def __init__(
        self,
        command: Sequence[str] = (),
        file: str = "",
        clock: str = "arrival",
        columns: Sequence[str] = (),
        facts: MeterFacts | None = None,
    ) -> None:
        if bool(command) == bool(file):
            raise InputError('power of kind csv needs "command" or "file", and not both')
        if clock not in CLOCKS:
            raise InputError(f'the clock of power of kind csv is one of {", ".join(CLOCKS)}, not "{clock[:40]}"')
        name = f"the meter {command[0] if command else 'at standard input' if file == '-' else file}"
        self.facts = replace(facts or MeterFacts(name), meter=name)
        self.tick_s = 1.0 if clock == "arrival" else None
        self._command, self._file, self._columns, self._clock = tuple(command), file, tuple(columns), clock
        self._ahead_s = time.time() - time.monotonic() if clock == "unix" else 0.0
        self._bytes: _Bytes | None = None
        self._rest = b""
        self._table = Table(name, columns, self.facts.voltage_v)

    def begin(self) -> None:
        """Start the program or look for the file's end."""
        self._rest = b""
        if self._bytes is not None and self._file:
            return  # a pipe cannot be begun again, and a file is read on
        self._table = Table(self.facts.meter, self._columns, self.facts.voltage_v)
        if self._command:
            self._bytes = shell.Running(self._command)
        else:
            self._bytes = _File(self._file, from_start=self._clock != "arrival" or not self._columns)

    def read(self) -> Block | None:
        """The next rows."""
        assert self._bytes is not None
        data = self._bytes.read(_POLL_S)
        at = time.monotonic()
        if data is None:
            why = self._bytes.ending()
            raise DeviceError(f"{self.facts.meter} must measure until it is stopped; try again: {why}")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _PIECE:
            raise DeviceError(f"{self.facts.meter} writes no lines of text")
        rows = [row for line in lines if (row := self._table.row(line.decode("utf-8", "replace"))) is not None]
        if not rows:
            return None
        times, watts = np.array(rows, np.float64).T
        return Block(at, times - self._ahead_s, watts)

    def checked(self) -> float:
        """Rows have their times, so that one sees whether they are there."""
        return math.inf

    def end(self) -> None:
        """End the program; a file is left open."""
        if self._command and self._bytes is not None:
            self._bytes.close()
            self._bytes = None

    def close(self) -> None:
        """End the program, close the file."""
        if self._bytes is not None:
            self._bytes.close()
            self._bytes = None
