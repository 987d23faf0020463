"""Quantities with units: read exactly, written back so that they read the same, refused with the way out."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import InputError
from deploy.units import KINDS, Kind, did_you_mean, parse, render


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("128 KiB", "bytes", 131072),
        ("128KiB", "bytes", 131072),
        ("1.5 MiB", "bytes", 1572864),
        ("2 MB", "bytes", 2_000_000),
        ("0.3 B", "bytes", 0),
        ("50 ms", "time", 0.05),
        ("  12.5 us ", "time", 12.5e-6),
        ("12.5 µs", "time", 12.5e-6),
        ("12.5 μs", "time", 12.5e-6),  # the Greek letter, not the micro sign
        ("1e3 ns", "time", 1e-6),
        ("6 mJ", "energy", 0.006),
        ("1 Wh", "energy", 3600.0),
        (".5 W", "power", 0.5),
        ("216 MHz", "frequency", 216e6),
        ("1 %", "percent", 0.01),
        ("3.3 V", "voltage", 3.3),
        ("220 mAh", "charge", 792.0),
        ("1 /min", "rate", 1440.0),
        ("10/day", "rate", 10.0),
        ("1 year", "lifetime", 31_557_600.0),
        ("2 years", "lifetime", 63_115_200.0),
        ("90 days", "lifetime", 7_776_000.0),
    ],
)
def test_parse_reads_numbers_exactly(text: str, kind: Kind, value: float) -> None:
    assert parse(text, kind) == value
    assert isinstance(parse(text, kind), int if kind == "bytes" else float)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("50", "time", '"50" has no unit; write for example "20 ms" (units: ns, us, µs, ms, s, min, h)'),
        (50, "time", '"50" has no unit; write for example "20 ms" (units: ns, us, µs, ms, s, min, h)'),
        ("5 Ms", "time", 'unknown unit "Ms" in "5 Ms"; allowed: ns, us, µs, ms, s, min, h; did you mean "ms"?'),
        (
            "4 KB",
            "bytes",
            'unknown unit "KB" in "4 KB"; allowed: B, KiB, MiB, GiB, kB, MB, GB; did you mean "kB"?',
        ),
        (
            "1 month",
            "lifetime",
            'unknown unit "month" in "1 month"; allowed: s, min, h, day, days, year, years',
        ),
        ("220", "charge", '"220" has no unit; write for example "220 mAh" (units: mAh, Ah, C)'),
        ("fast", "frequency", '"fast" is not a quantity; write a number and a unit, such as "216 MHz"'),
        ("", "power", '"" is not a quantity; write a number and a unit, such as "120 mW"'),
        ("1,5 ms", "time", '"1,5 ms" is not a quantity; write a number and a unit, such as "20 ms"'),
        ("-1 J", "energy", '"-1 J" is negative; write zero or more'),
        ("1e99 B", "bytes", '"1e99 B" is more than any memory holds (2^63 bytes)'),
        ("1e999999999 s", "time", '"1e999999999 s" is not a quantity; write a number and a unit, such as "20 ms"'),
        ("nan s", "time", '"nan s" is not a quantity; write a number and a unit, such as "20 ms"'),
        (True, "time", '"True" is not a quantity; write a number and a unit, such as "20 ms"'),
        (None, "time", '"None" is not a quantity; write a number and a unit, such as "20 ms"'),
        ("9" * 99 + " s", "time", f'"{"9" * 57}..." is not a quantity; write a number and a unit, such as "20 ms"'),
    ],
)
def test_parse_refuses_with_the_way_out(text: object, kind: Kind, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, kind)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "kind", "exact", "short"),
    [
        (131072, "bytes", "128 KiB", "128 KiB"),
        (131073, "bytes", "131073 B", "128 KiB"),
        (0, "bytes", "0 B", "0 B"),
        (0.05, "time", "50 ms", "50 ms"),
        (0.0497123, "time", "49.7123 ms", "49.7 ms"),
        (0.9999e-3, "time", "999.9 us", "1 ms"),
        (1e-12, "time", "0.001 ns", "0.001 ns"),
        (0.0, "time", "0 s", "0 s"),
        (6e-3, "energy", "6 mJ", "6 mJ"),
        (216e6, "frequency", "216 MHz", "216 MHz"),
        (0.07, "percent", "7 %", "7 %"),
        (-0.0012, "percent", "-0.12 %", "-0.12 %"),
        (792.0, "charge", "220 mAh", "220 mAh"),
        (1440.0, "rate", "1 /min", "1 /min"),
        (31_557_600.0, "lifetime", "1 year", "1 year"),
        (40_000_000.0, "lifetime", "40000000 s", "1.27 years"),
        (86_400.0, "lifetime", "1 day", "1 day"),
        (7.0, "lifetime", "7 s", "7 s"),
    ],
)
def test_render_chooses_a_readable_unit(value: float, kind: Kind, exact: str, short: str) -> None:
    assert render(value, kind) == exact
    assert render(value, kind, digits=3) == short


@given(
    kind=st.sampled_from([kind for kind in KINDS if kind != "bytes"]), value=st.floats(0, 1e15, allow_subnormal=False)
)
def test_render_is_read_back_exactly(kind: Kind, value: float) -> None:
    if value == 0 or value > 1e-15:  # Less would be written with an exponent of three digits.
        assert parse(render(value, kind), kind) == value


@given(value=st.integers(0, 2**62))
def test_render_of_bytes_is_read_back_exactly(value: int) -> None:
    assert parse(render(value, "bytes"), "bytes") == value


@given(text=st.text(), kind=st.sampled_from(KINDS))
def test_any_text_is_a_number_or_an_input_error(text: str, kind: Kind) -> None:
    with suppress(InputError):
        assert parse(text, kind) >= 0


def test_did_you_mean_ignores_case_and_stays_silent_without_a_near_word() -> None:
    assert did_you_mean("LATENCY", ["latency", "ram"]) == '; did you mean "latency"?'
    assert did_you_mean("zzz", ["latency", "ram"]) == ""
