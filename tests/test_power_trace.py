"""Energy of a stretch of a trace, how far off it may be, and a meter's clock: pure functions."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import DeviceError
from deploy.power import EnergyReading, MeterFacts, joined, per_inference
from deploy.power.clock import fit, missing_s
from deploy.power.csv_text import Table
from deploy.power.evaluate import reading_of, spread, stretches
from deploy.power.trace import Marks, Trace, Window

FACTS = MeterFacts("a meter", 1000.0)


def trace(times, watts, **more):
    return Trace.of_power(times, watts, FACTS, **more)


steps_and_watts = st.lists(st.tuples(st.floats(1e-4, 10), st.floats(0, 1000)), min_size=2, max_size=30)


@given(steps_and_watts, st.floats(0, 1), st.floats(0, 1))
def test_energy_lies_between_the_extremes_and_is_additive(pairs, one, two):
    times = [math.fsum(step for step, _ in pairs[: i + 1]) for i in range(len(pairs))]
    found = trace(times, [watts for _, watts in pairs])
    begin, end = (times[0] + (times[-1] - times[0]) * share for share in sorted((one, two)))
    whole = found.energy(times[0], times[-1])
    parts = found.energy(times[0], begin) + found.energy(begin, end) + found.energy(end, times[-1])
    assert parts == pytest.approx(whole, rel=1e-9)
    low, high = min(w for _, w in pairs), max(w for _, w in pairs)
    assert low * found.seconds * (1 - 1e-9) <= whole <= high * found.seconds * (1 + 1e-9)
    assert found.missing(begin, end) == ""


def test_a_ramp_is_exact_and_ends_are_interpolated():
    ramp = trace([0, 1, 4], [0, 1, 4])
    assert ramp.energy(0, 4) == 8
    fine = trace(np.linspace(0, 1, 1001), np.linspace(0, 1, 1001))
    assert fine.energy(0.25037, 0.75012) == pytest.approx((0.75012**2 - 0.25037**2) / 2, rel=1e-6)


def test_nonsense_cannot_be_a_trace():
    for make in (
        lambda: trace([1, 0], [1, 1]),
        lambda: Trace(np.zeros(2), np.zeros(1), np.zeros(2), FACTS),
        lambda: Window(2, 1),
        lambda: Window(0, math.nan),
        lambda: Window(0, 1, -1),
    ):
        with pytest.raises(ValueError, match=r"backwards|times,|window"):
            make()


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.2, 1)), min_size=1, max_size=20))
def test_windows_add_up(pairs):
    """What is outside of the windows does not count."""
    marks, at = Marks(), 1.0
    for pause, length in pairs:
        marks.mark("begin", at + pause)
        marks.mark("end", at + pause + length)
        at += pause + length
    times = np.linspace(0, at + 1, 5000)
    reading = reading_of(trace(times, np.full(5000, 2.0)).with_windows(marks.windows), "m")
    assert reading.seconds == pytest.approx(sum(length for _, length in pairs))
    assert reading.joules == pytest.approx(2 * reading.seconds)
    assert reading.low <= reading.joules <= reading.high
    assert reading.peak_w == pytest.approx(2)


def test_marks_come_in_pairs():
    marks = Marks()
    with pytest.raises(RuntimeError, match="has not begun"):
        marks.mark("end", 0)
    marks.mark("begin", 0)
    with pytest.raises(RuntimeError, match="has begun"):
        marks.mark("begin", 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"windows": (Window(-1, 1),)}, "do not cover the run: 1 s of 2 s"),
        ({"windows": (Window(1, 11),)}, "do not cover the run: 1 s of 10 s"),
        ({"gaps": ((2.0, 3.0), (5.0, 5.5))}, "missing in 2 places of the run, 1.5 s together"),
        ({"problem": "it broke"}, "it broke"),
    ],
)
def test_a_part_is_never_given_as_if_it_were_all(change, words):
    times = np.linspace(0, 10, 1001)
    reading = reading_of(trace(times, np.ones(1001), **change), "m")
    assert reading.joules is None
    assert words in reading.reason


def test_gaps_outside_of_the_windows_do_no_harm():
    times = np.linspace(0, 10, 1001)
    assert reading_of(trace(times, np.ones(1001), gaps=((2.0, 3.0),), windows=(Window(4, 5),)), "m").joules == 1.0
    assert not reading_of(trace([], []), "m").complete
    assert "1 samples" in reading_of(trace([1], [1]), "m").reason
    assert "wrong way" in reading_of(trace(range(20), [-1] * 20), "m").reason
    assert "only 9 samples while the model ran" in reading_of(trace(range(9), [1] * 9), "m").reason
    assert reading_of(Trace.of_counter([0, 1], [0, 1], FACTS), "m").joules == 1


def test_the_interval_has_accuracy_ends_and_spread():
    times = np.linspace(0, 1, 10001)
    steady = reading_of(trace(times, np.full(10001, 3.0), windows=(Window(0.1, 0.9),)), "m")
    assert steady.high - steady.low < 1e-9
    stated = Trace.of_power(times, np.full(10001, 3.0), MeterFacts("m", accuracy=0.1), windows=(Window(0.1, 0.9),))
    assert reading_of(stated, "m").high == pytest.approx(1.1 * 2.4)
    rising = reading_of(trace(times, 3 + times), "m")
    assert rising.high > 1.02 * rising.joules
    edge = trace(times, np.where(times < 0.1, 1.0, 5.0), windows=(Window(0.1, 0.2, 0.01), Window(0.3, 0.4, 0.01)))
    found = reading_of(edge, "m")
    assert found.high - found.joules > 4 / 2 * 0.01
    assert found.low <= 1.0 <= found.high


@given(st.integers(0, 2**32 - 1))
def test_about_95_percent_of_intervals_hold_the_mean(seed):
    """Of a hundred, at least 85 with any seed."""
    generator = np.random.default_rng(seed)
    holds = sum(abs(np.mean(v := generator.normal(5, 1, 10)) - 5) <= spread(v) for _ in range(100))
    assert holds >= 85
    assert spread([1.0]) == 0.0


def test_many_samples_become_means_that_add_up():
    times = np.linspace(0, 2, 200_001)
    watts = np.where(np.mod(times, 0.01) < 0.001, 0.05, 0.001)
    kept = stretches(trace(times, watts))
    assert len(kept) == 500
    assert sum(one.value for one in kept) / len(kept) * 1e-6 * 2 == pytest.approx(
        trace(times, watts).energy(0, 2), rel=1e-3
    )
    assert stretches(trace([0], [1])) == ()


# --- readings with intervals ---


def measured(joules, seconds, low, high, **more):
    return EnergyReading(joules, seconds, "measured", "m", low=low, high=high, **more)


def test_intervals_go_along():
    one = per_inference(measured(10.0, 1.0, 9.0, 12.0), 100)
    assert (one.low, one.high) == (0.09, 0.12)
    net = per_inference(measured(10.0, 1.0, 9.0, 11.0), 10, measured(4.0, 2.0, 2.0, 6.0))
    assert net.joules == pytest.approx(0.8)
    assert (net.low, net.high) == (pytest.approx(0.8 - 0.1 * math.sqrt(2)), pytest.approx(0.8 + 0.1 * math.sqrt(2)))
    plain = per_inference(measured(10.0, 1.0, 9.0, 11.0), 10, EnergyReading(4.0, 2.0, "measured", "m"))
    assert (plain.low, plain.high) == (pytest.approx(0.7), pytest.approx(0.9))
    assert per_inference(EnergyReading(1.0, 1.0, "measured", "m"), 2).low is None


def test_idle_before_and_after():
    both = joined(measured(2.0, 1.0, 1.9, 2.1, peak_w=3.0), measured(6.0, 2.0, 5.8, 6.2, peak_w=5.0))
    assert (both.joules, both.seconds, both.peak_w) == (8.0, 3.0, 5.0)
    assert both.low <= 2.0 * 3
    assert both.high >= 3.0 * 3
    assert (
        joined(measured(2.0, 1.0, 2.0, 2.0), EnergyReading(None, 1.0, "measured", "m", reason="gone")).reason == "gone"
    )


@pytest.mark.parametrize(
    "fields",
    [{"low": 0.5}, {"low": 2.0, "high": 3.0}, {"low": 0.0, "high": math.inf}, {"peak_w": -1.0}, {"peak_w": math.nan}],
)
def test_impossible_intervals_cannot_be_made(fields):
    with pytest.raises(ValueError, match=r"interval|bounds|peak"):
        EnergyReading(1.0, 1.0, "measured", "m", **fields)


# --- a meter's clock ---


@given(st.floats(-2e-4, 2e-4), st.integers(0, 2**32 - 1), st.floats(2.5, 20))
def test_a_clock_that_drifts_is_seen_through_delays(drift, seed, seconds):
    generator = np.random.default_rng(seed)
    ticks = np.cumsum(generator.integers(500, 1500, int(seconds * 100))).astype(float)
    true = 1000.0 + ticks * 1e-5 * (1 + drift)
    began, slope, off = fit(ticks, true + 2e-4 + generator.exponential(2e-3, len(ticks)), 1e-5)
    wrong = np.abs(began + ticks * slope - true)
    assert np.max(wrong) < 1.5e-3
    assert off >= 1e-3
    assert missing_s(ticks, true + generator.exponential(2e-3, len(ticks)), 1e-5) == 0.0


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.3), st.floats(0.1, 0.8))
def test_samples_that_nobody_counted_are_missed(seed, lost, where):
    generator = np.random.default_rng(seed)
    arrivals = np.arange(0, 1, 0.01) + generator.exponential(1e-3, 100)
    ticks = np.arange(0, 1, 0.01) * 1e5
    ticks[int(where * 100) :] -= lost * 1e5
    assert missing_s(ticks, arrivals, 1e-5) == pytest.approx(lost, abs=6e-3)


# --- tables ---


def rows(text, **options):
    table = Table("the meter x", **options)
    return [row for line in text.splitlines() if (row := table.row(line)) is not None]


def test_tables_in_any_unit():
    assert rows("time_s,power_w\n1,2\n# note\n\n3,4") == [(1, 2), (3, 4)]
    assert rows("Time ms;note;Power mW\n1500;x;250", columns=()) == [(1.5, 0.25)]
    assert rows('"time_us"\t"current_ua"\t"voltage_mv"\n1e6\t2000\t3000') == [(1.0, pytest.approx(6e-3))]
    assert rows("0.5,20", columns=("time", "current_ma"), volts=5.0) == [(0.5, pytest.approx(0.1))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("power_w\n1", "it needs time_s, and power_w"),
        ("time_s,current_a\n1,1", "or current_a with voltage_v"),
        ("time_s,powr_w\n1,1", 'did you mean "power_w"'),
        ("time_s,time_ms,power_w\n", "two columns of time"),
        ("time_s,power_w\n1", "line 2 has 1 columns instead of 2"),
        ("time_s,power_w\n1,2\n1,abc", "line 3 has something that is no number"),
        ("time_s,power_w\n1,nan", "not finite"),
    ],
)
def test_tables_that_say_something_else(text, words):
    with pytest.raises(DeviceError, match=r"^the meter x: line") as caught:
        rows(text)
    assert words in str(caught.value)


@given(st.text())
def test_any_text_is_rows_or_an_error(text):
    with contextlib.suppress(DeviceError):
        assert all(math.isfinite(value) for row in rows(text) for value in row)
