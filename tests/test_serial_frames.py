"""Frames of the serial protocol: any content survives, nothing damaged counts as a frame, C agrees with Python."""

import contextlib
import struct
from functools import cache

import pytest
from built import new_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import shell
from deploy.device.serial_frames import MAX_DATA, Code, Decoder, Frame, count_of, decode, encode, fault_words, hello_of
from deploy.errors import DeviceError
from deploy.firmware.link import source_path

FRAMES = st.builds(
    Frame, st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 255),
    st.binary(max_size=MAX_DATA) | st.integers(0, MAX_DATA).map(bytes),
)  # fmt: skip
NOISE = st.binary(max_size=40)
# Sends back every frame that comes in.
ECHO = """
#include <stdio.h>
#include <stdlib.h>
#include "board.h"
#include "frames.h"
int32_t board_getc(void) { int byte = getchar(); if (byte < 0) exit(0); return byte; }
void board_putc(uint8_t byte) { putchar(byte); }
int main(void) {
  static uint8_t content[FRAME_BYTES];
  for (;;) frame_send(content, frame_receive(content));
}
"""


@given(FRAMES)
def test_a_frame_survives(frame):
    coded = encode(frame)
    assert coded[0] == coded[-1] == 0
    assert 0 not in coded[1:-1]
    assert decode(coded[1:-1]) == frame


@given(FRAMES, st.data())
def test_a_damaged_frame_is_none(frame, data):
    coded = bytearray(encode(frame)[1:-1])
    at = data.draw(st.integers(0, len(coded) - 1))
    change = data.draw(st.integers(1, 255))
    coded[at] ^= change
    found = Decoder().feed(b"\0" + bytes(coded) + b"\0")
    assert found == []


@given(st.lists(st.tuples(NOISE, FRAMES), max_size=6), st.integers(1, 50))
def test_frames_are_found_in_a_stream(pieces, size):
    """Whatever stands between them, and however the stream is cut."""
    stream = b"".join(noise + encode(frame) for noise, frame in pieces)
    decoder, found = Decoder(), []
    for at in range(0, len(stream), size):
        found += decoder.feed(stream[at : at + size])
    assert found == [frame for _, frame in pieces]


@cache
def echo():
    folder = new_folder()
    (folder / "echo.c").write_text(ECHO)
    place = source_path("frames.c")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", f"-I{place.parent}"]
    shell.run(["cc", *flags, "echo.c", place, "-o", "echo"], timeout_s=60, cwd=folder)
    return folder / "echo"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(NOISE, FRAMES), max_size=20), st.binary(max_size=600))
def test_c_understands_and_says_the_same(pieces, rubbish):
    rubbish = rubbish.replace(b"\0", b"\1")  # one piece, often longer than any frame
    stream = b"".join(noise + encode(frame) for noise, frame in pieces) + rubbish + b"\0"
    said = shell.run([echo()], timeout_s=20, stdin=stream).stdout_bytes
    assert said == b"".join(encode(frame) for _, frame in pieces)


def test_too_much_for_a_frame():
    assert len(encode(Frame(1, 2, 3, bytes(MAX_DATA)))) <= 256
    with pytest.raises(ValueError, match="246 bytes are too many"):
        encode(Frame(1, 2, 3, bytes(MAX_DATA + 1)))


@given(st.binary(max_size=60))
def test_any_answer_is_a_value_or_one_error(data):
    for read in (hello_of, count_of):
        with contextlib.suppress(DeviceError):
            read(data)
    assert fault_words(data).startswith("the model's code faulted: ")


def test_what_a_run_gives():
    assert count_of(struct.pack("<BIQ", Code.GOOD, 0, 1 << 40)) == 1 << 40
    for code, words in ((Code.STATUS, "status 0x2"), (Code.SMALL_STACK, "stack is too small"), (77, "unknown code 77")):
        with pytest.raises(DeviceError, match=words):
            count_of(struct.pack("<BIQ", code, 2, 0))
    assert fault_words(b"\2\3\0\0\0\x10\0\0\0exception, at") == "the model's code faulted: exception 0x3, at 0x10"
    with pytest.raises(DeviceError, match="speaks version 9 of the protocol, not 1"):
        hello_of(b"\x09" + bytes(40))
