"""Nordic's Power Profiler Kit II: current at 100,000 samples a second, over USB as a serial port.

A command is a byte with its arguments; there is no answer but to the question for its calibration, which is text:

    R0: 1003.3506    GS0, GI0, O0, S0, I0, UG0, and so for the measuring ranges 1 to 4; VDD: 5000, HW, mode, IA
    END

A sample is 4 bytes, little-endian: 14 bits of the converter, 3 of the range, 1 unused, 6 that count samples, 8 digital
inputs. Within the range r the current in amperes is, of x = (4 * converter - O[r]) * (1.8 / 163840) / R[r],

    UG[r] * (x * (GS[r] * x + GI[r]) + S[r] * volts + I[r])
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from deploy.errors import DeviceError, InputError
from deploy.power.serial_port import SerialPort
from deploy.power.stream import Block
from deploy.power.trace import Array, MeterFacts

RATE_HZ = 100_000.0
LOWEST_V, HIGHEST_V = 0.8, 5.0
RANGES = 5
_BAUD = 115200
_STEP_V = 1.8 / 163840  # of the converter
_COUNTS = 64
_ANSWER_S = 2.0
_SWITCHED_ON_S = 0.1  # for the supply to settle
# What the resistors are in any of these meters, within a factor of 2: one whose memory was overwritten shows nonsense.
_OHMS = (1000.0, 100.0, 10.0, 1.0, 0.05)
_KEYS = ("R", "GS", "GI", "O", "S", "I", "UG")


class Command(IntEnum):
    """First byte of a command."""

    START = 0x06
    STOP = 0x07
    SUPPLY = 0x0C
    VOLTAGE = 0x0D
    MODE = 0x11
    CALIBRATION = 0x19


class Mode(IntEnum):
    """Whether the meter only measures, or is the supply too."""

    AMPERE = 1
    SOURCE = 2


@dataclass(frozen=True, eq=False)
class Calibration:
    """The numbers of each range, by the letters in the meter's text."""

    values: Mapping[str, Array]

    def amperes(self, converter: Any, ranges: Any, volts: float) -> Array:
        """Return the currents of samples."""
        of = {key: self.values[key][ranges] for key in _KEYS}
        x = (converter * 4.0 - of["O"]) * _STEP_V / of["R"]
        result: Array = of["UG"] * (x * (of["GS"] * x + of["GI"]) + of["S"] * volts + of["I"])
        return result


def calibration_of(text: str, meter: str) -> Calibration:
    """Return what the meter's text says. Raises DeviceError: something is missing, or cannot be."""
    found = dict(re.findall(r"^([A-Z]+[0-4]): *(\S+) *$", text, re.MULTILINE))
    values = {}
    for key in _KEYS:
        try:
            values[key] = np.array([float(found[f"{key}{index}"]) for index in range(RANGES)])
        except (KeyError, ValueError) as error:
            raise DeviceError(f"{meter} gave a calibration without {error}: plug it in again, or update it") from error
    plausible = all(0.5 < ohms / usual < 2 for ohms, usual in zip(values["R"], _OHMS, strict=True))
    plausible = plausible and all(bool(((values[k] > 0.5) & (values[k] < 2)).all()) for k in ("GI", "UG"))
    if not plausible or not all(np.isfinite(value).all() for value in values.values()):
        raise DeviceError(f"{meter} has a calibration that cannot be right, so all it says is wrong: have it repaired")
    return Calibration(values)


class Ppk2:
    """The meter as a source of samples; it is asked for its calibration and set up at once.

    volts: what it gives the device in mode source, or what the device's own supply gives it in mode ampere. channel:
    the digital input, 0 to 7, that is high while the model runs. Raises InputError for a voltage that it cannot give.
    """

    kind, tick_s, even = "ppk2", 1 / RATE_HZ, True

    def __init__(
        self,
        port: str,
        volts: float,
        mode: Mode = Mode.SOURCE,
        channel: int | None = None,
        facts: MeterFacts | None = None,
    ) -> None:
        if mode is Mode.SOURCE and not LOWEST_V <= volts <= HIGHEST_V:
            raise InputError(f"a PPK2 gives {LOWEST_V:g} V to {HIGHEST_V:g} V, not {volts:g} V: change power's voltage")
        name = f"PPK2 at {port}"
        supply = "it is the supply" if mode is Mode.SOURCE else "in the supply's line"
        given = facts or MeterFacts(name)
        wiring = f"{supply}; {given.wiring}" if given.wiring else supply
        self.facts = MeterFacts(
            name, RATE_HZ, volts, ("VOUT" if mode is Mode.SOURCE else "VIN",), wiring, given.accuracy
        )
        self._volts, self._channel = volts, channel
        self._rest, self._next, self._count = b"", 0, -1
        self._port = SerialPort(port, _BAUD, name)
        try:
            self._calibration = self._set_up(mode)
        except BaseException:
            self._port.close()
            raise

    def begin(self) -> None:
        """Have the meter sample."""
        self._rest, self._next, self._count = b"", 0, -1
        self._port.send(bytes([Command.START]))

    def read(self) -> Block | None:
        """The next samples."""
        data = self._rest + self._port.receive()
        at = time.monotonic()
        whole = len(data) // 4 * 4
        self._rest = data[whole:]
        return self._block(np.frombuffer(data[:whole], "<u4"), at) if whole else None

    def checked(self) -> float:
        """Of each sample one sees whether it is there."""
        return math.inf

    def end(self) -> None:
        """Have the meter stop sampling."""
        self._port.send(bytes([Command.STOP]))
        self._port.drain(0.05, _ANSWER_S)

    def close(self) -> None:
        """Let go of the meter, which goes on giving power."""
        self._port.close()

    def _set_up(self, mode: Mode) -> Calibration:
        self._port.send(bytes([Command.STOP]))  # of a program that crashed
        self._port.drain(0.1, _ANSWER_S)
        self._port.send(bytes([Command.CALIBRATION]))
        calibration = calibration_of(self._text(), self.facts.meter)
        millivolts = round(self._volts * 1000)
        self._port.send(bytes([Command.MODE, mode]))
        if mode is Mode.SOURCE:
            self._port.send(bytes([Command.VOLTAGE, millivolts >> 8, millivolts & 0xFF]))
        self._port.send(bytes([Command.SUPPLY, 1]))
        time.sleep(_SWITCHED_ON_S)
        return calibration

    def _text(self) -> str:
        text, deadline = b"", time.monotonic() + _ANSWER_S
        while b"END" not in text:
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"{self.facts.meter} does not answer ({len(text)} bytes came): check that it is a PPK2, that it is "
                    "switched on, and that `port` is the first of its two"
                )
            text += self._port.receive()
        return text.decode("ascii", "replace")

    def _block(self, words: Any, at_s: float) -> Block:
        """Samples from their bytes. One that is missing makes the reading useless: of how many, 6 bits cannot tell."""
        counts = ((words >> 18) & 0x3F).astype(np.int64)
        ranges = ((words >> 14) & 0x7).astype(np.int64)
        before = np.concatenate([[self._count if self._count >= 0 else counts[0] - 1], counts[:-1]])
        if ((counts - before) % _COUNTS != 1).any() or (ranges >= RANGES).any():
            raise DeviceError(
                f"{self.facts.meter} lost samples, or they were damaged: connect it to a USB port of this computer's "
                "own, close other programs that use it, and try again"
            )
        numbers = np.arange(self._next, self._next + len(words), dtype=np.float64)
        self._next, self._count = self._next + len(words), int(counts[-1])
        current = self._calibration.amperes((words & 0x3FFF).astype(np.float64), ranges, self._volts)
        levels = None if self._channel is None else ((words >> (24 + self._channel)) & 1).astype(np.bool_)
        return Block(at_s, numbers, current * self._volts, levels)
