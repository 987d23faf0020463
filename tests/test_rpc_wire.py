"""TVM's RPC as bytes: what is asked is what TVM's own servers read, and whatever comes is an answer or nonsense."""

import contextlib
import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.device import rpc_wire as wire


def test_requests_are_what_tvm_sends():
    assert wire.greeting("ab") == bytes.fromhex("71f20f00 02000000") + b"ab"
    assert wire.init() == bytes.fromhex("15000000 00000000 02000000 0500000000000000") + b"0.8.0" + bytes(4)
    assert wire.find("f") == bytes.fromhex("15000000 00000000 09000000 01000000 08000000 0100000000000000") + b"f"
    assert wire.call(7, b"xy")[8:] == bytes.fromhex(
        "03000000 0700000000000000 01000000 09000000 0200000000000000"
    ) + b"xy"  # fmt: skip


@pytest.mark.parametrize("kind", ["42", "0c"])  # long and short bytes
def test_what_a_function_returned(kind):
    body = bytes.fromhex(f"02000000 01000000 {kind}00000000000000 09000000 0300000000000000") + b"abc"
    assert wire.bytes_of(wire.Packet(wire.RETURN, body)) == b"abc"
    for wrong in (wire.Packet(wire.RETURN, body[:-1]), wire.Packet(9, body), wire.Packet(wire.RETURN, body[:20])):
        with pytest.raises(wire.Nonsense):
            wire.bytes_of(wrong)


def test_handles():
    body = bytes.fromhex("01000000 04000000 1122000000000000")
    assert wire.handle_of(wire.Packet(wire.RETURN, body)) == 0x2211
    assert wire.handle_of(wire.Packet(wire.RETURN, bytes.fromhex("01000000 00000000"))) == 0  # there is none
    with pytest.raises(wire.Nonsense):
        wire.handle_of(wire.Packet(wire.RETURN, bytes.fromhex("01000000 01000000 1122000000000000")))


@given(st.text(max_size=50))
def test_exceptions_come_back(words):
    packet = wire.packet_of(wire.exception(words)[8:])
    assert packet.code == wire.EXCEPTION
    assert wire.words_of(packet) == words


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=4), st.binary(max_size=100))
def test_sheets_come_back(facts, data):
    assert wire.unfolded(wire.sheet(facts, data)) == (facts, data)


@given(st.binary(max_size=60))
def test_whatever_comes_is_read_or_nonsense(data):
    answers = (wire.bytes_of, wire.handle_of, wire.words_of)
    of_packets = [partial(lambda read, code, d: read(wire.Packet(code, d)), r, c) for r in answers for c in (4, 5)]
    for read in (wire.packet_of, wire.content_of, wire.unfolded, *of_packets):
        with contextlib.suppress(wire.Nonsense):
            read(data)


def test_messages_to_the_tracker():
    assert wire.message([3, "k"]) == len(json.dumps([3, "k"])).to_bytes(4, "little") + b'[3, "k"]'
    with pytest.raises(wire.Nonsense):
        wire.content_of(b"[" * 100_000)
