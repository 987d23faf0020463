"""ST's X-NUCLEO-LPM01A (PowerShield): supply and current meter, over USB as a serial port, in lines of text.

htc                          →  PowerShield > ack htc            the host has control
volt 3300m, freq 10k, ...    →  PowerShield > ack volt 3300m     or an error
start                        →  PowerShield > ack start
                                6409-07                          6409e-7 A
                                TimeStamp: 001s 352ms, buff 00%
stop                         →  PowerShield > Acquisition completed
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np

from deploy.errors import DeviceError, InputError
from deploy.power.serial_port import SerialPort
from deploy.power.stream import Block
from deploy.power.trace import MeterFacts

LOWEST_V, HIGHEST_V = 1.8, 3.3
RATES = {10_000: "10k", 5_000: "5k", 2_000: "2k", 1_000: "1k", 500: "500", 200: "200", 100: "100"}  # as text
BAUD = 3_686_400
_PROMPT = "PowerShield > "
_ANSWER_S = 2.0
_SETTLE_S = 0.1
_SAMPLE = re.compile(r"(\d{4})([+-]\d{2})", re.ASCII)  # always as long, so that a piece of one is none
_STAMP = re.compile(r"TimeStamp: (\d+)s (\d+)ms, buff (\d+)%", re.ASCII)
_STAMP_OFF_S = 0.0025  # a time stamp is in whole milliseconds, and stands between two samples; less is not seen


class Lpm01a:
    """The meter as a source of samples; it is set up, and supplies the device, at once.

    Raises InputError for a voltage or a rate that it does not have.
    """

    kind, even = "lpm01a", True

    def __init__(self, port: str, volts: float, rate_hz: float = 10_000, facts: MeterFacts | None = None) -> None:
        if not LOWEST_V <= volts <= HIGHEST_V:
            raise InputError(
                f"an LPM01A gives {LOWEST_V:g} V to {HIGHEST_V:g} V, not {volts:g} V: change power's voltage"
            )
        if rate_hz not in RATES:
            allowed = ", ".join(f"{rate} Hz" for rate in RATES)
            raise InputError(f"an LPM01A sends {allowed} as text, not {rate_hz:g} Hz: change power's rate")
        name = f"LPM01A at {port}"
        given = facts or MeterFacts(name)
        wiring = "; ".join(filter(None, ("it is the supply", given.wiring)))
        self.facts = MeterFacts(name, float(rate_hz), volts, ("VOUT",), wiring, given.accuracy)
        self.tick_s, self._rate, self._volts = 1 / rate_hz, int(rate_hz), volts
        self._rest, self._next = b"", 0
        self._stamp: tuple[float, int] | None = None
        self._last = 0
        self._port = SerialPort(port, BAUD, name)
        try:
            self._set_up()
        except BaseException:
            self._port.close()
            raise

    def begin(self) -> None:
        """Have the meter sample."""
        self._rest, self._next, self._stamp = b"", 0, None
        self._ask("start")

    def read(self) -> Block | None:
        """The next samples."""
        data = self._rest + self._port.receive()
        at = time.monotonic()
        *lines, self._rest = data.split(b"\n")
        ticks: list[int] = []
        amperes: list[float] = []
        for line in lines:
            self._take(line.decode("ascii", "replace").strip("\0\r "), ticks, amperes)
        if len(self._rest) > 200:
            raise DeviceError(f"{self.facts.meter} sends no lines of text: plug it in again")
        return Block(at, np.array(ticks, np.float64), np.array(amperes) * self._volts) if ticks else None

    def checked(self) -> float:
        """Up to the last time stamp, which tells how many samples there should be."""
        return -1.0 if self._stamp is None else float(self._last)

    def end(self) -> None:
        """Have the meter stop sampling."""
        self._port.send(b"stop\r\n")
        self._wait(lambda line: "Acquisition completed" in line or line.endswith("ack stop"), "stop")
        self._port.drain(0.05, _ANSWER_S)

    def close(self) -> None:
        """Let go of the meter, which goes on giving power."""
        self._port.close()

    def _take(self, line: str, ticks: list[int], amperes: list[float]) -> None:
        if found := _SAMPLE.fullmatch(line):
            if self._stamp is not None:  # nobody can tell whether any was lost before the first one
                ticks.append(self._next)
                amperes.append(float(f"{found[1]}e{found[2]}"))
            self._next += 1
        elif found := _STAMP.fullmatch(line):
            self._stamped(int(found[1]) + int(found[2]) / 1000, int(found[3]))
        elif "error" in line.lower() or "overcurrent" in line.lower():
            raise DeviceError(f"{self.facts.meter} stopped: {line[-120:]}; check that the device takes 50 mA at most")
        elif line and not line.startswith(_PROMPT.strip()):
            raise DeviceError(
                f"{self.facts.meter} sent {line[:40]!r}, which is no sample: check its cable and try again"
            )

    def _stamped(self, seconds: float, full: int) -> None:
        """Compare the meter's own time with the samples that came since the last time stamp."""
        if self._stamp is None:
            self._stamp = seconds, self._next  # all others are compared with the first one, so that losses add up
        lost = seconds - self._stamp[0] - (self._next - self._stamp[1]) / self._rate
        if full >= 100 or abs(lost) > _STAMP_OFF_S + 1 / self._rate:
            raise DeviceError(
                f"{self.facts.meter} lost samples of {lost:.3g} s: lower power's rate, connect it to a USB port of "
                "this computer's own, and try again"
            )
        self._last = self._next

    def _set_up(self) -> None:
        self._port.send(b"\r\nstop\r\n")  # of a program that crashed
        self._port.drain(0.1, _ANSWER_S)
        self._ask("htc")
        for command in (
            "format ascii_dec",
            "output current",
            "acqmode dyn",
            "funcmode high",
            "trigsrc sw",
            "acqtime 0",
        ):
            self._ask(command)
        self._ask(f"volt {round(self._volts * 1000)}m")
        self._ask(f"freq {RATES[self._rate]}")
        self._ask("pwrend on")
        self._ask("pwr on")
        time.sleep(_SETTLE_S)

    def _ask(self, command: str) -> None:
        self._port.send(f"{command}\r\n".encode())
        self._wait(lambda line: line.endswith(f"ack {command}"), command)

    def _wait(self, done: Callable[[str], bool], command: str) -> None:
        """Read lines until one is the answer; what comes behind it is kept."""
        deadline = time.monotonic() + _ANSWER_S
        while True:
            while b"\n" in self._rest:
                raw, _, self._rest = self._rest.partition(b"\n")
                line = raw.decode("ascii", "replace").strip("\0\r ")
                if done(line):
                    return
                if "error" in line.lower():
                    raise DeviceError(
                        f"{self.facts.meter} refused `{command}`: {line.removeprefix(_PROMPT)[:120]}; it may be busy "
                        "with another measurement or program: press its reset button"
                    )
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"{self.facts.meter} did not answer `{command}`: check that it is one, and press its reset button"
                )
            self._rest += self._port.receive()
