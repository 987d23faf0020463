"""Lines of tuning logs: what is written is read again, whatever it is, and nothing else is taken for one."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tuning_log_support import kernel, kernel_id, proposal, record, trace

from deploy.tuning.log_lines import (
    Header,
    Kernel,
    NewerFormatError,
    Proposal,
    Record,
    nanoseconds,
    pack,
    parse,
    render,
    unpack,
)

ids = st.integers(0, 16**24 - 1).map(kernel_id)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
times = st.lists(st.floats(1e-3, 1e15).map(lambda ns: nanoseconds(ns / 1e9)), min_size=1, max_size=5).map(tuple)
numbers = st.integers(1, 10**6)
LINES = st.one_of(
    st.builds(Header, texts, texts, texts),
    st.builds(Kernel, ids, texts, texts),
    st.builds(Proposal, ids, texts, texts),
    st.builds(Record, ids, texts, times, st.just(""), numbers),
    st.builds(Record, ids, texts, st.just(()), texts.filter(bool), numbers),
)


@given(LINES)
def test_a_line_is_read_as_it_was_written(line):
    text = render(line)
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert parse(text[:-1].encode()) == line
    assert json.loads(text)  # for other programs too


@given(LINES, st.data())
def test_no_changed_byte_goes_unseen(line, data):
    text = bytearray(render(line)[:-1].encode())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"checksum|cut off|no line"):
        parse(bytes(text))


@given(LINES, st.data())
def test_half_a_line_is_none(line, data):
    text = render(line)[:-1].encode()
    with pytest.raises(ValueError, match=r"cut off|checksum"):
        parse(text[: data.draw(st.integers(0, len(text) - 1))])


@given(st.binary(max_size=60))
@example(b"")
@example(b'{"crc":"00000000",')
def test_anything_else_is_no_line(text):
    with pytest.raises(ValueError, match=r"checksum|cut off|no line"):
        parse(text)


def with_checksum(rest):
    return f'{{"crc":"{zlib.crc32(rest.encode()):08x}",{rest}'.encode()


OWNER = f'"kernel":"{kernel_id(1)}","trace":""'


@pytest.mark.parametrize(
    "rest",
    [
        "}", '"kernel":"0"}', '"ns":[1],"kernel":"0","trace":"","trial":1}', f'"ns":["1"],{OWNER},"trial":1}}',
        f'"ns":[],{OWNER},"trial":1}}', f'"ns":[-1],{OWNER},"trial":1}}', f'"ns":[1],{OWNER},"trial":0}}',
        f'"ns":[NaN],{OWNER},"trial":1}}', f'"failed":"",{OWNER},"trial":1}}', f'"ns":[1],{OWNER}}}',
        '"ns":7}', '"name":[]}', '"from":{}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_whole_line_that_says_nothing_is_damage(rest):
    with pytest.raises(ValueError, match="no line of a tuning log"):
        parse(with_checksum(rest))


def test_another_format_is_told_apart_from_damage():
    with pytest.raises(NewerFormatError, match="format 2, and this version reads format 1"):
        parse(with_checksum('"format":2,"anything":"else"}'))


# --- traces ---

WRITTEN = (
    rb'{"crc":"cac7fa49","kernel":"000000000000000000000001","trial":3,"ns":[15154.2,900],'
    rb'"trace":"!{!NR0*MS>DH>s^>mWg9f}@f^OY1-f#Kr;u"}'
)
names = st.sampled_from(["b", "l", "v"])


@st.composite
def traces(draw):
    """Any trace: results are mostly numbered on, as TVM does it, and sometimes not."""
    instructions, number = [], 0
    for _ in range(draw(st.integers(0, 8))):
        count, kind = draw(st.integers(0, 4)), draw(names)
        results = [f"{kind}{number + i}" for i in range(count)] if draw(st.integers(0, 4)) else ["x"] * count
        number += count
        inputs = draw(st.lists(st.one_of(st.integers(), st.just("None"), texts), max_size=3))
        instructions.append([draw(texts), inputs, draw(st.lists(st.one_of(st.booleans(), texts), max_size=2)), results])
    decision = st.tuples(st.integers(0, max(0, len(instructions) - 1)), st.lists(st.integers(), max_size=3)).map(list)
    decisions = draw(st.lists(decision, max_size=2 if instructions else 0))
    return [instructions, decisions]


@given(traces())
def test_a_trace_is_unpacked_as_it_was_packed(value):
    packed = pack(value)
    assert unpack(packed) == value
    assert not set(packed) & set('"\\\n')


@given(st.one_of(st.text(max_size=30), st.binary(max_size=20).map(lambda data: pack([[], []]) + data.hex())))
@example("")
def test_what_is_no_packed_trace_is_refused_or_one_by_chance(text):
    try:
        found = unpack(text)
    except ValueError:
        return
    assert len(found) == 2


def test_logs_that_were_written_once_are_read_for_ever():
    """Whoever changes the dictionary, or anything else here, has to change the number of the format."""
    line = parse(WRITTEN)
    assert isinstance(line, Record)
    assert (line.kernel, line.ns, line.trial) == (kernel_id(1), (15154.2, 900), 3)
    instructions, decisions = unpack(line.trace)
    assert (instructions[2], decisions) == (["Split", ["l2", "None", 4], [True, False], ["l3", "l4"]], [])


def test_a_small_trace_that_unpacks_to_a_huge_one_is_refused():
    with pytest.raises(ValueError, match="trace cannot be read"):
        unpack(pack([[["A", ["x" * (1 << 23)], [], []]], []]))
    with pytest.raises(ValueError, match="trace cannot be read"):
        unpack(pack([[["A", [], [], "l999999999"]], []]))


def test_records_are_small():
    assert len(render(record(1, 4, 15154.3, 13419.4, 12766.7, 12741, 15153.2, trial=123))) < 250
    assert len(render(proposal(1, 4))) < 200
    assert len(render(kernel(1))) < 150


# --- times ---


@pytest.mark.parametrize(
    ("seconds", "ns"),
    [(1.515427587e-05, 15154.3), (1e-6, 1000), (0.000141925, 141925), (25e-9, 25), (2.5230001e-8, 25.23),
     (1.5, 1500000000)],
)  # fmt: skip
def test_times_are_rounded_to_six_digits(seconds, ns):
    assert nanoseconds(seconds) == ns
    assert isinstance(nanoseconds(seconds), int) == float(ns).is_integer()


def test_the_time_of_a_record_is_its_median():
    assert record(1, 4, 1000, 9000, 1200).time_s == 1.2e-6
    assert record(1, 4).time_s == float("inf")


@pytest.mark.parametrize(("ns", "failed"), [((), ""), ((1.0,), "crashed")])
def test_a_record_has_times_or_a_reason(ns, failed):
    with pytest.raises(ValueError, match="times or the reason"):
        Record(kernel_id(1), trace(1), ns, failed)
