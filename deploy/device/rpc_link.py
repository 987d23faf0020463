"""The way to boards over TVM RPC: connections to a tracker and to servers on which nothing waits for ever.

TVM's own client waits in C++ for as long as the other side is silent. This one speaks the same protocol with a limit on
each answer, and says of every failure whether nothing came, the link was cut, or what came makes no sense.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from deploy.device import rpc_wire as wire
from deploy.errors import DeviceError, InputError

TRACKER_PORT, SERVER_PORT = 9190, 9090
FUNCTION = "tvm_deploy.board"  # what a board's server answers to, see `rpc_session`
SLOWEST_LINK = 50_000  # bytes a second
_CHUNK = 1 << 16
_PLACE = re.compile(r"(?:\[([\w:.%]+)\]|([A-Za-z0-9_.-]+))(?::(\d{1,5}))?", re.ASCII)
# A silent link is cut after 20 s, where the system can do that.
_ALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000))


class QueueError(DeviceError):
    """All boards are taken. Fix: wait for those who use them, or add a board."""


@dataclass(frozen=True)
class Place:
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def place_of(text: str, what: str, port: int) -> Place:
    """Read HOST:PORT or HOST, whose port is then `port`. Raises InputError."""
    found = _PLACE.fullmatch(text)
    number = int(found[3] or port) if found else 0
    if found is None or not 1 <= number <= 65535:
        raise InputError(f'"{text[:80]}" is no address of {what}: write HOST or HOST:PORT')
    return Place(found[1] or found[2], number)


Dial = Callable[[Place, float], socket.socket]  # connects to a place within so many seconds


def _directly(place: Place, limit_s: float) -> socket.socket:
    return socket.create_connection((place.host, place.port), limit_s)


class Wire:
    """A connection. name: of the other side in messages.

    Every method raises DeviceError where the other side is silent for too long, is gone, or sends nonsense.
    """

    def __init__(self, connected: socket.socket, name: str) -> None:
        self.socket, self.name = connected, name
        keep_alive(connected)

    @classmethod
    def to(cls, place: Place, name: str, limit_s: float, dial: Dial | None = None) -> Self:
        """Connect, with `dial` where that is not done directly."""
        try:
            return cls((dial or _directly)(place, limit_s), name)
        except TimeoutError:
            raise DeviceError(
                f"{name} cannot be reached: nothing answers at {place}; check that it is on, and in this network"
            ) from None
        except ConnectionRefusedError:
            words = f"{name} refuses connections at {place}: check that its server runs, and the port"
            raise DeviceError(words) from None
        except OSError as error:
            words = f"{name} cannot be reached at {place}: {(error.strerror or str(error)).lower()}"
            raise DeviceError(words) from None

    def send(self, data: bytes, limit_s: float) -> None:
        """Send all of it."""
        try:
            self.socket.settimeout(limit_s + len(data) / SLOWEST_LINK)
            self.socket.sendall(data)
        except TimeoutError:
            raise DeviceError(f"{self.name} takes no data: its link is stuck") from None
        except OSError:
            raise self.cut() from None

    def receive(self, size: int, limit_s: float, slack_s: float = 0.0) -> bytes:
        """Receive `size` bytes, the first within `limit_s`, all in as much longer as the slowest link takes."""
        found = bytearray()
        deadline = time.monotonic() + limit_s + slack_s + size / SLOWEST_LINK
        while len(found) < size:
            try:
                self.socket.settimeout(max(0.001, deadline - time.monotonic()))
                piece = self.socket.recv(min(_CHUNK, size - len(found)))
            except TimeoutError:
                raise DeviceError(f"{self.name} did not answer within {limit_s:.3g} s") from None
            except OSError:
                raise self.cut() from None
            if not piece:
                raise self.cut()
            found += piece
        return bytes(found)

    def word(self, limit_s: float) -> int:
        """Receive a number of 32 bits."""
        return int(wire.WORD.unpack(self.receive(wire.WORD.size, limit_s))[0])

    def text(self, limit_s: float, largest: int = wire.LARGEST_KEY) -> bytes:
        """Receive bytes with their length (32 bits) before them."""
        size = self.word(limit_s)
        if not 0 <= size <= largest:
            raise self.nonsense(f"a length of {size}")
        return self.receive(size, limit_s)

    def packet(self, limit_s: float) -> wire.Packet:
        """Receive a packet of the RPC."""
        (size,) = wire.LENGTH.unpack(self.receive(wire.LENGTH.size, limit_s))
        if size > wire.LARGEST_PACKET:
            raise self.nonsense(f"a packet of {size} bytes")
        data = self.receive(size, limit_s)
        with self.sense():
            return wire.packet_of(data)

    def cut(self) -> DeviceError:
        """The other side, or something between, ended the connection."""
        return DeviceError(f"the link to {self.name} was cut: its server may have ended, or it lost power or network")

    def nonsense(self, what: object) -> DeviceError:
        """What came cannot be an answer."""
        return DeviceError(f"{self.name} answered nonsense ({what}): something else may listen there")

    @contextlib.contextmanager
    def sense(self) -> Any:
        """Within this block `Nonsense` is an error of the other side."""
        try:
            yield
        except wire.Nonsense as error:
            raise self.nonsense(error) from None

    def interrupt(self) -> None:
        """Have whatever waits for the other side, in another thread, fail now."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """Have nothing to do with the connection in this process, which was forked; the other one keeps it."""
        with contextlib.suppress(OSError):
            self.socket.close()

    def close(self) -> None:
        """End the connection, also where a process that was forked meanwhile has it too."""
        self.interrupt()
        with contextlib.suppress(OSError):
            self.socket.close()


@dataclass(frozen=True)
class Listed:
    """A board as a tracker lists it: its key, where its server is, and what the server tells of itself."""

    key: str
    place: Place
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """A board that may be used now: where, and what to say there."""

    place: Place
    match: str
    key: str

    @property
    def name(self) -> str:
        """The board's name in messages."""
        return f"board {self.key} ({self.place})" if self.key else f"board {self.place}"


class Tracker:
    """A connection to a tracker. Raises DeviceError: there is none, and from each method: it does not answer."""

    def __init__(self, place: Place, limit_s: float, dial: Dial | None = None) -> None:
        self._limit_s = limit_s
        self._wire = Wire.to(place, f"the tracker {place}", limit_s, dial)
        try:
            self._wire.send(wire.WORD.pack(wire.TRACKER_MAGIC), limit_s)
            if self._wire.word(limit_s) != wire.TRACKER_MAGIC:
                raise self._wire.nonsense("not a tracker")
        except BaseException:
            self._wire.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def summary(self) -> tuple[list[Listed], dict[str, int]]:
        """All boards, and how many of each key are free."""
        answer = self._asked([wire.TrackerCode.SUMMARY])
        try:
            _, found = answer
            free = {str(key): int(numbers["free"]) for key, numbers in found["queue_info"].items()}
            listed = [_listed(facts) for facts in found["server_info"]]
        except (TypeError, ValueError, KeyError, AttributeError, IndexError):
            raise self._wire.nonsense(f"{answer!r:.80}") from None
        return sorted(listed, key=lambda one: (one.key, str(one.place))), free

    def request(self, key: str, limit_s: float) -> Offer:
        """A free board; raises QueueError where none becomes free in `limit_s`. Then only `close` may follow."""
        self._wire.send(wire.message([wire.TrackerCode.REQUEST, key, "", 1]), self._limit_s)
        try:
            size = self._wire.word(limit_s)
        except DeviceError as error:
            if "did not answer" in str(error):
                raise QueueError(f"{self._wire.name} had no free board of the key {key} for {limit_s:g} s") from None
            raise
        if not 0 <= size <= wire.LARGEST_MESSAGE:
            raise self._wire.nonsense(f"a length of {size}")
        with self._wire.sense():
            answer = wire.content_of(self._wire.receive(size, self._limit_s))
        try:
            _, (host, port, match) = answer
            return Offer(Place(str(host), int(port)), str(match), key)
        except (TypeError, ValueError):
            raise self._wire.nonsense(f"{answer!r:.80}") from None

    def update(self, facts: Mapping[str, object]) -> None:
        """Tell what a server is, and how it is."""
        self._succeed([wire.TrackerCode.UPDATE_INFO, dict(facts)])

    def put(self, key: str, port: int, match: str, address: str | None) -> None:
        """Offer a server to whoever requests one of its key."""
        self._succeed([wire.TrackerCode.PUT, key, [port, match], address])

    def pending(self) -> list[str]:
        """Which offers of this connection nobody has taken."""
        answer = self._asked([wire.TrackerCode.PENDING])
        return [str(match) for match in answer] if isinstance(answer, list) else []

    def leave(self) -> None:
        """Have nothing to do with the connection in this process, which was forked."""
        self._wire.leave()

    def close(self) -> None:
        """End the connection; a request that is waiting is withdrawn."""
        self._wire.close()

    def _succeed(self, question: list[object]) -> None:
        if self._asked(question) != wire.TrackerCode.SUCCESS:
            raise self._wire.nonsense("a refusal")

    def _asked(self, question: list[object]) -> Any:
        self._wire.send(wire.message(question), self._limit_s)
        with self._wire.sense():
            return wire.content_of(self._wire.text(self._limit_s, wire.LARGEST_MESSAGE))


def _listed(facts: Mapping[str, Any]) -> Listed:
    host, port = facts["addr"]
    told = facts.get("board")
    key = str(facts["key"]).partition(":")[2]
    return Listed(key, Place(str(host), int(port)), told if isinstance(told, dict) else {})


def keep_alive(connected: socket.socket) -> None:
    """Have the system notice when the other side is gone without a word."""
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE:
        with contextlib.suppress(OSError, AttributeError):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
