"""A session on a board's RPC server: sheets of facts and data there and back, with a limit on every answer."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from deploy.device import rpc_wire as wire
from deploy.device.rpc_link import FUNCTION, SLOWEST_LINK, Dial, Offer, Wire
from deploy.errors import DeviceError

GRACE_S = 5.0  # by which the server's own limit is longer than what it was asked to do


class Session:
    """A session of at most `lasts_s`, after which the server ends it; nobody else has the board meanwhile.

    timeout_s: of connecting, and of answers beyond what is asked for takes. queue_s: how long to wait until the server
    is done with another's session. Raises DeviceError: that failed, or what listens there is no board's server.
    """

    def __init__(
        self, offer: Offer, lasts_s: float, timeout_s: float, queue_s: float = 0.0, dial: Dial | None = None
    ) -> None:
        self.name = offer.name
        self._timeout_s, self._lasts_s = timeout_s, lasts_s
        self._wire = Wire.to(offer.place, offer.name, timeout_s, dial)
        try:
            self._greet(offer, queue_s)
            self._ends = time.monotonic() + lasts_s
            self._asked(wire.init(), timeout_s)
            with self._wire.sense():
                self._handle = wire.handle_of(self._asked(wire.find(FUNCTION), timeout_s))
            if self._handle == 0:
                raise DeviceError(
                    f"{self.name} runs another RPC server than `tvm-deploy board serve`: start that one there"
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def left_s(self) -> float:
        """Seconds until the server ends the session."""
        return self._ends - time.monotonic()

    def ask(self, facts: Mapping[str, object], data: bytes = b"", takes_s: float = 0.0) -> tuple[dict[str, Any], bytes]:
        """The board's answer to a sheet. takes_s: what it may take to do what is asked, beyond an answer.

        Raises DeviceError: the link or the board failed, or the board says what is wrong.
        """
        packet = self._asked(wire.call(self._handle, wire.sheet(facts, data)), takes_s + self._timeout_s)
        with self._wire.sense():
            told, answer = wire.unfolded(wire.bytes_of(packet))
        if "error" in told:
            raise DeviceError(f"{self.name}: {str(told['error'])[:500]}")
        return told, answer

    def interrupt(self) -> None:
        """Have what waits for an answer, in another thread, fail now."""
        self._wire.interrupt()

    def close(self) -> None:
        """End the session; the board is free then."""
        self._wire.close()

    def _greet(self, offer: Offer, queue_s: float) -> None:
        limit = f" -timeout={self._lasts_s:g}"
        self._wire.send(wire.greeting(f"client:{offer.match}{limit}"), self._timeout_s)
        code = self._wire.word(self._timeout_s + queue_s)
        if code == wire.MISMATCH:
            raise DeviceError(f"{self.name} serves another key, or was offered to somebody else meanwhile: try again")
        if code != wire.ACCEPTED:
            raise self._wire.nonsense("not an RPC server")
        self._wire.text(self._timeout_s)

    def _asked(self, request: bytes, limit_s: float) -> wire.Packet:
        self._wire.send(request, self._timeout_s)
        packet = self._wire.packet(limit_s + len(request) / SLOWEST_LINK)
        if packet.code == wire.EXCEPTION:
            with self._wire.sense():
                raise self._told(wire.words_of(packet))
        if packet.code != wire.RETURN:
            raise self._wire.nonsense(f"code {packet.code}")
        return packet

    def _told(self, words: str) -> DeviceError:
        if words.startswith(wire.LATE):
            return DeviceError(f"{self.name} ended the session: {words.removeprefix(wire.LATE)}")
        if version := re.search(r"server protocol=([\w.]+)", words):
            return DeviceError(
                f"{self.name} has another version of TVM (protocol {version[1]}, here {wire.PROTOCOL.decode()}): "
                "install apache-tvm of the same version there"
            )
        lines = [line.strip() for line in words.splitlines() if line.strip()]
        return DeviceError(f"{self.name} failed: {lines[-1][:300] if lines else 'it said nothing'}")
