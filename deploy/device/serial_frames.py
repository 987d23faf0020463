"""What goes over the serial line to a board, as bytes and as data; in C it is `serial_session.c`. Pure.

A frame is session (2 bytes), number, operation and data, with a CRC-32 behind, encoded by COBS, between zeros.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from deploy.errors import DeviceError

VERSION = 1
MAX_DATA = 245  # bytes of data in a frame
CHUNK = 240  # bytes of a tensor in a frame
ANSWER = 0x80
NO_SESSION, FAULT = 0xFE, 0xFF
_HEADER = struct.Struct("<HBB")
_HELLO = struct.Struct("<BBQIIIIQ")
_OUTCOME = struct.Struct("<BIQ")
_CRC_BYTES = 4
_LONGEST = 254  # encoded


class Operation(IntEnum):
    """What a board can be asked for."""

    HELLO = 1
    WRITE = 2
    RUN = 3
    READ = 4
    STACK = 5
    LAYERS = 6
    LAYER = 7
    SPIN = 8
    SELECT = 9
    CHECK = 10
    RESET = 11


class Code(IntEnum):
    """How a request ended on the board."""

    GOOD = 0
    STATUS = 1
    PAST_OUTPUT = 2
    PAST_ARENA = 3
    SMALL_STACK = 4
    REFUSED = 5


@dataclass(frozen=True)
class Frame:
    """One request or answer."""

    session: int
    number: int
    operation: int
    data: bytes = b""


@dataclass(frozen=True)
class Hello:
    """What a board says of itself; counts_instructions: its stopwatch does, otherwise cycles.

    known: what it counted for the loop whose instructions are known.
    """

    counts_instructions: bool
    build_id: int
    input_bytes: int
    output_bytes: int
    arena_bytes: int
    calls: int
    known: int
    name: str


def encode(frame: Frame) -> bytes:
    """The bytes to send. Raises ValueError: more than MAX_DATA bytes of data."""
    if len(frame.data) > MAX_DATA:
        raise ValueError(f"{len(frame.data)} bytes are too many for a frame")
    content = _HEADER.pack(frame.session, frame.number, frame.operation) + frame.data
    content += zlib.crc32(content).to_bytes(_CRC_BYTES, "little")
    coded = b"".join(bytes([len(block) + 1]) + block for block in content.split(b"\0"))
    return b"\0" + coded + b"\0"


def decode(coded: bytes) -> Frame | None:
    """The frame in what stood between two zeros; nothing where it is not whole."""
    if not 0 < len(coded) <= _LONGEST:
        return None
    blocks, at = [], 0
    while at < len(coded):
        blocks.append(coded[at + 1 : at + coded[at]])
        at += coded[at]
    if at != len(coded):
        return None
    content = b"\0".join(blocks)
    body, crc = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
    if len(body) < _HEADER.size or zlib.crc32(body).to_bytes(_CRC_BYTES, "little") != crc:
        return None
    session, number, operation = _HEADER.unpack_from(body)
    return Frame(session, number, operation, body[_HEADER.size :])


class Decoder:
    """Finds the frames in a stream of bytes, whatever else is in it. damaged: pieces that were no frame."""

    def __init__(self) -> None:
        self._rest = b""
        self.damaged = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that end in `data`, given what came before."""
        *pieces, rest = (self._rest + data).split(b"\0")
        self._rest = rest[: _LONGEST + 1]  # enough to tell that it is too long
        found = [decode(piece) for piece in pieces if piece]
        self.damaged += found.count(None)
        return [frame for frame in found if frame is not None]


def hello_of(data: bytes) -> Hello:
    """A board's greeting. Raises DeviceError where it is of another version."""
    if len(data) < _HELLO.size or data[0] != VERSION:
        said = data[0] if data else "none"
        raise DeviceError(f"the board's program speaks version {said} of the protocol, not {VERSION}: flash it again")
    _, unit, identity, inputs, outputs, arena, calls, known = _HELLO.unpack_from(data)
    name = data[_HELLO.size :].decode("utf-8", "replace")
    return Hello(unit == 1, identity, inputs, outputs, arena, calls, known, name)


def outcome_of(data: bytes) -> tuple[int, int, int]:
    """How a run ended: a Code or a number that is none, a status, the count. Raises DeviceError: it is cut short."""
    if len(data) != _OUTCOME.size:
        raise DeviceError("the board's answer is too short: its program and this one do not match; flash it again")
    code, status, count = _OUTCOME.unpack(data)
    return code, status, count


def count_of(data: bytes, *, refused: bool = False) -> int | None:
    """The count that a run gave. Raises DeviceError where it gave none, saying why.

    refused: that the program cannot do it is no error, and gives None.
    """
    code, detail, count = outcome_of(data)
    if code == Code.GOOD:
        return count
    if code == Code.REFUSED and refused:
        return None
    raise DeviceError(_FAILURES.get(code, f"the board answered with the unknown code {code}").format(detail))


def fault_words(data: bytes) -> str:
    """What a board says of a fault: a number of words, the words, and their names."""
    count = data[0] if data else 0
    words = struct.unpack_from(f"<{count}I", data, 1) if len(data) >= 1 + 4 * count else ()
    names = data[1 + 4 * count :].decode("ascii", "replace").split(", ")
    said = ", ".join(f"{name} 0x{word:x}" for name, word in zip(names, words, strict=False))
    return f"the model's code faulted: {said}"


_WRONG = "its code is wrong; please report this"
_FAILURES: dict[int, str] = {
    Code.STATUS: "the model returned the status 0x{:x}, see enum tvm_deploy_status in tvm_deploy.h",
    Code.PAST_OUTPUT: f"the model wrote past the end of an output: {_WRONG}",
    Code.PAST_ARENA: f"the model wrote past the end of its arena: {_WRONG}",
    Code.SMALL_STACK: "the stack is too small: almost no RAM is left for it",
    Code.REFUSED: "the board's program cannot do that: it was built without it",
}
