"""TVM's RPC as bytes: what its servers and its tracker are asked, and what they answer. Pure.

A packet is its length (64 bits), a code (32 bits) and a sequence of values: their number, then the type and content of
each. A message of the tracker is its length (32 bits) and JSON. All numbers are little-endian. This is protocol 0.8.0,
of apache-tvm 0.25 to 0.27; a server of another one says so when a session is opened.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAGIC, TRACKER_MAGIC = 0xFF271, 0x2F271
ACCEPTED, MISMATCH = MAGIC, MAGIC + 2
PROTOCOL = b"0.8.0"
LARGEST_KEY, LARGEST_MESSAGE, LARGEST_PACKET = 4096, 1 << 20, 1 << 30  # what is longer is no such message
LATE = "RPCSessionTimeoutError: "  # how TVM's clients know that a session was ended by its limit
_INIT, _CALL, RETURN, EXCEPTION, _FIND = 2, 3, 4, 5, 9
_POINTER, _TEXT, _BYTES = 4, 8, 9  # types of values

WORD, LENGTH = struct.Struct("<i"), struct.Struct("<Q")
_HANDLE = struct.Struct("<iiQ")
_VALUE = struct.Struct("<iQ")


class Nonsense(ValueError):
    """Bytes that are no such message."""


class TrackerCode:
    """What a message to the tracker asks for, and the status of its answer."""

    SUCCESS, PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING = 0, 3, 4, 5, 6, 7


@dataclass(frozen=True)
class Packet:
    """A packet's code, and what comes after it."""

    code: int
    body: bytes


def greeting(key: str) -> bytes:
    """The first bytes of a client to a server, and, without the magic number before them, of a server's answer."""
    data = key.encode()
    return WORD.pack(MAGIC) + WORD.pack(len(data)) + data


def init() -> bytes:
    """Open a session."""
    return _packet(_INIT, LENGTH.pack(len(PROTOCOL)) + PROTOCOL + WORD.pack(0))


def find(name: str) -> bytes:
    """Ask for the handle of a function; `handle_of` reads the answer."""
    return _packet(_FIND, WORD.pack(1) + _VALUE.pack(_TEXT, len(name.encode())) + name.encode())


def call(handle: int, data: bytes) -> bytes:
    """Call a function of bytes that returns bytes; `bytes_of` reads the answer."""
    return _packet(_CALL, LENGTH.pack(handle) + WORD.pack(1) + _VALUE.pack(_BYTES, len(data)) + data)


def exception(words: str) -> bytes:
    """Tell the client that its call failed, in place of an answer."""
    data = words.encode()
    return _packet(EXCEPTION, WORD.pack(1) + _VALUE.pack(_TEXT, len(data)) + data)


def packet_of(data: bytes) -> Packet:
    """Read a packet without its length. Raises Nonsense."""
    if len(data) < WORD.size:
        raise Nonsense(f"a packet of {len(data)} bytes")
    return Packet(WORD.unpack_from(data)[0], data[WORD.size :])


def handle_of(packet: Packet) -> int:
    """The handle that `find` asked for, 0 where there is no such function. Raises Nonsense."""
    if packet.code == RETURN and packet.body[:8] == struct.pack("<ii", 1, 0):
        return 0
    if packet.code != RETURN or len(packet.body) != _HANDLE.size:
        raise Nonsense("no handle of a function")
    count, kind, handle = _HANDLE.unpack(packet.body)
    if (count, kind) != (1, _POINTER):
        raise Nonsense("no handle of a function")
    return int(handle)


def bytes_of(packet: Packet) -> bytes:
    """What a function returned: the type of the value as a number, then the value. Raises Nonsense."""
    start = 20  # number of values, type and content of the first, type of the second
    if packet.code != RETURN or len(packet.body) < start + LENGTH.size or packet.body[16:20] != WORD.pack(_BYTES):
        raise Nonsense("no bytes")
    (size,) = LENGTH.unpack_from(packet.body, start)
    if size != len(packet.body) - start - LENGTH.size:
        raise Nonsense("bytes of another length")
    return packet.body[start + LENGTH.size :]


def words_of(packet: Packet) -> str:
    """What an exception says. Raises Nonsense."""
    start = WORD.size + _VALUE.size
    if packet.code != EXCEPTION or len(packet.body) < start:
        raise Nonsense("no words")
    return packet.body[start:].decode("utf-8", "backslashreplace")


def message(content: object) -> bytes:
    """A message to the tracker, or of it."""
    data = json.dumps(content).encode()
    return WORD.pack(len(data)) + data


def content_of(data: bytes) -> Any:
    """Read a message without its length. Raises Nonsense."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Nonsense(f"no JSON: {data[:80]!r}") from None


def sheet(facts: Mapping[str, object], data: bytes = b"") -> bytes:
    """Facts and data as one sequence of bytes: the length of the facts, the facts as JSON, the data."""
    return message(facts) + data


def unfolded(sheet: bytes) -> tuple[dict[str, Any], bytes]:
    """Read a sheet. Raises Nonsense."""
    size = WORD.unpack_from(sheet)[0] if len(sheet) >= WORD.size else -1
    if not 0 <= size <= len(sheet) - WORD.size:
        raise Nonsense("no sheet")
    facts = content_of(sheet[WORD.size : WORD.size + size])
    if not isinstance(facts, dict):
        raise Nonsense("no facts")
    return facts, sheet[WORD.size + size :]


def _packet(code: int, body: bytes) -> bytes:
    return LENGTH.pack(WORD.size + len(body)) + WORD.pack(code) + body
