"""Bench supplies and multimeters that speak SCPI, through PyVISA: asked for a value again and again.

Their rate is what the instrument and the network give, some ten to a thousand a second, and each value is of the
moment in the middle of its question and answer.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deploy.errors import DeviceError, InputError
from deploy.power.stream import Block
from deploy.power.trace import MeterFacts

POWER, CURRENT, VOLTAGE = "MEAS:POW?", "MEAS:CURR?", "MEAS:VOLT?"
_ANSWER_MS = 2000
_NOT_A_VALUE = 9e36  # SCPI's infinity is 9.9e37, its not-a-number 9.91e37


class ScpiMeter:
    """An instrument at a VISA address (TCPIP::192.168.1.5::5025::SOCKET) as a source of samples.

    queries: one of amperes and one of volts; or one whose answer is watts, with POW in it; or one of amperes alone,
    where `facts` has the voltage. setup: commands that are sent first. backend: PyVISA's, "@py" for the one in Python.
    """

    kind, tick_s, even = "scpi", None, False

    def __init__(
        self,
        address: str,
        queries: Sequence[str] = (CURRENT, VOLTAGE),
        setup: Sequence[str] = (),
        facts: MeterFacts | None = None,
        backend: str = "@py",
    ) -> None:
        given = facts or MeterFacts(address)
        if len(queries) not in (1, 2):
            raise InputError("power of kind scpi takes one query, of watts, or two, of amperes and of volts")
        in_watts = len(queries) == 1 and "POW" in queries[0].upper()
        if len(queries) == 1 and not in_watts and given.voltage_v is None:
            raise InputError(
                f'power of kind scpi asks "{queries[0]}" only, which gives amperes: add `voltage`, or a query of volts'
            )
        self._queries, self._factor = tuple(queries), 1.0 if in_watts else given.voltage_v or 0.0
        self._name = f"the instrument at {address}"
        self.facts = replace(given, meter=self._name)
        self._device = _opened(address, backend, self._name)
        try:
            for command in setup:
                self._told(lambda line=command: self._device.write(line), command)
            identity = self._ask("*IDN?")
            error = self._ask("SYST:ERR?")
            volts = self._number(self._queries[1]) if len(queries) == 2 else given.voltage_v
        except BaseException:
            self.close()
            raise
        if not error.lstrip("+").startswith(("0", "-0")):
            self.close()
            raise DeviceError(f"{self._name} did not understand its setup: {error[:100]}; see its manual for `setup`")
        words = ",".join(identity.split(",")[:2])[:60]
        self._name = f"{words} at {address}"
        self.facts = replace(given, meter=self._name, voltage_v=volts, rails=given.rails or ("output",))

    def begin(self) -> None:
        """There is nothing to begin."""

    def read(self) -> Block | None:
        """One sample."""
        before = time.monotonic()
        values = [self._number(query) for query in self._queries]
        at = time.monotonic()
        watts = values[0] * (values[1] if len(values) == 2 else self._factor)
        return Block(at, np.array([(before + at) / 2]), np.array([watts]))

    def checked(self) -> float:
        """Of each sample one sees whether it is there."""
        return math.inf

    def end(self) -> None:
        """There is nothing to end."""

    def close(self) -> None:
        """Let go of the instrument."""
        with contextlib.suppress(Exception):  # PyVISA's errors are many, and there is nothing left to lose
            self._device.close()  # its manager is shared by all instruments

    def _ask(self, query: str) -> str:
        return str(self._told(lambda: self._device.query(query), query)).strip()

    def _number(self, query: str) -> float:
        text = self._ask(query)
        try:
            value = float(text)
        except ValueError:
            raise DeviceError(
                f"{self._name} answered `{query}` with {text[:40]!r}, which is no number: see its manual for `queries`"
            ) from None
        if not math.isfinite(value) or abs(value) > _NOT_A_VALUE:
            raise DeviceError(
                f"{self._name} is out of its range (`{query}` gave {text[:40]}): choose a larger one in `setup`"
            )
        return value

    def _told(self, work: Any, words: str) -> Any:
        try:
            return work()
        except Exception as error:  # PyVISA raises its own errors, and whatever its backends do
            raise DeviceError(
                f"{self._name} did not answer `{words}`: {' '.join(str(error).split())[:150]}; check its cable, "
                "and that no other program has it"
            ) from error


def _opened(address: str, backend: str, name: str) -> Any:
    visa = _pyvisa()
    try:
        manager = visa.ResourceManager(backend)
        return manager.open_resource(address, read_termination="\n", write_termination="\n", timeout=_ANSWER_MS)
    except (visa.errors.Error, OSError, ValueError) as error:
        raise DeviceError(
            f"{name} cannot be opened: {' '.join(str(error).split())[:150]}; check the address "
            "(TCPIP::HOST::5025::SOCKET), that it is switched on, and that no other program has it"
        ) from error


def _pyvisa() -> Any:
    try:
        import pyvisa
    except ImportError:
        raise InputError("SCPI instruments need PyVISA: pip install 'tvm-deploy[scpi]'") from None
    return pyvisa
