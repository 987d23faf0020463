"""A meter's serial port: what fails is a DeviceError that names the meter and says what to do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from deploy.errors import DeviceError, InputError

_POLL_S = 0.02
_WRITE_S = 2.0


class SerialPort:
    """The port `name`, kept from other programs that lock it. meter: what is at its end, for messages."""

    def __init__(self, name: str, baud: int, meter: str) -> None:
        self.meter = meter
        serial = _pyserial()
        try:
            self._port: Any = serial.Serial(name, baud, timeout=_POLL_S, write_timeout=_WRITE_S, exclusive=True)
        except OSError as error:
            raise DeviceError(
                f"{meter} cannot be opened: {error}; check that it is plugged in, that you may use the port (on Linux "
                "the group dialout), and that no other program has it"
            ) from error
        except ValueError as error:
            raise InputError(f"{meter} cannot be opened: {error}; check `port`") from error

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        with self._told():
            self._port.write(data)

    def receive(self) -> bytes:
        """What came, after a short while at most."""
        with self._told():
            return bytes(self._port.read(max(1, self._port.in_waiting)))

    def drain(self, quiet_s: float, limit_s: float) -> None:
        """Throw away what comes until nothing did for a while. Raises DeviceError: it does not end."""
        heard = begun = time.monotonic()
        while time.monotonic() - heard < quiet_s:
            if self.receive():
                heard = time.monotonic()
            if heard - begun > limit_s:
                raise DeviceError(f"{self.meter} does not stop sending: unplug it, plug it in again and retry")

    def close(self) -> None:
        """Let go of the port; one that is gone already is no error."""
        with contextlib.suppress(OSError):
            self._port.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # pyserial's own errors are of this kind too
            raise DeviceError(f"{self.meter} is gone: {error}; check its cable and try again") from error


def _pyserial() -> Any:
    try:
        import serial
    except ImportError:
        raise InputError("a power meter at a serial port needs pyserial: pip install 'tvm-deploy[serial]'") from None
    return serial
