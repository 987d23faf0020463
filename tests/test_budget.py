"""Verdicts: not measured never passes, estimates count only where accepted, noise decides nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import yaml_source
from deploy.budget import (
    HOW,
    QUANTITIES,
    STATISTICS,
    Budget,
    Limit,
    Reading,
    Verdict,
    check,
    latency_readings,
    parse_budget,
    passed,
    plain_budget,
)
from deploy.errors import InputError
from deploy.statistics import summarize


def budget_of(text: str) -> Budget:
    return parse_budget(yaml_source.parse(text, "t.yaml"))


def verdict(limit: Limit, *readings: Reading) -> Verdict:
    return check(Budget((limit,)), readings)[0].verdict


P90 = Limit("latency", "p90", 0.050)


@pytest.mark.parametrize(
    ("low", "value", "high", "expected"),
    [
        (None, 0.049, None, Verdict.PASS),
        (None, 0.050, None, Verdict.PASS),
        (None, 0.051, None, Verdict.MISS),
        (0.045, 0.047, 0.050, Verdict.PASS),
        (0.045, 0.049, 0.051, Verdict.TOO_NOISY),
        (0.050, 0.052, 0.054, Verdict.TOO_NOISY),
        (0.051, 0.052, 0.054, Verdict.MISS),
        (0.040, 0.041, None, Verdict.TOO_NOISY),
        (0.060, 0.061, None, Verdict.MISS),
    ],
)
def test_the_interval_decides(low: float | None, value: float, high: float | None, expected: Verdict) -> None:
    assert verdict(P90, Reading("latency", "p90", value, "measured", low, high)) is expected


def test_nothing_measured_is_not_a_pass() -> None:
    checks = check(Budget((P90, Limit("ram", None, 1024))), [Reading("latency", "median", 0.001, "measured")])
    assert [one.verdict for one in checks] == [Verdict.NOT_MEASURED] * 2
    assert checks[0].reason == "there is no reading of latency p90"
    assert not passed(checks)
    assert passed(())


def test_an_estimate_counts_only_where_accepted_and_the_reason_says_how() -> None:
    estimate = Reading("energy", None, 0.005, "estimated")
    (refused,) = check(budget_of("energy: 6 mJ"), [estimate])
    assert refused.verdict is Verdict.NOT_MEASURED
    assert '"energy: {max: 6 mJ, accept: estimated}"' in refused.reason
    advised = budget_of(refused.reason.split('"')[1])
    assert check(advised, [estimate])[0].verdict is Verdict.PASS


@pytest.mark.parametrize("accept", HOW)
@pytest.mark.parametrize("how", HOW)
def test_accept_names_the_least_trustworthy_reading(accept: str, how: str) -> None:
    limit = Limit("power", None, 1.0, accept)
    counts = HOW.index(how) <= HOW.index(accept)
    assert verdict(limit, Reading("power", None, 0.5, how)) is (Verdict.PASS if counts else Verdict.NOT_MEASURED)
    assert verdict(limit, Reading("power", None, 1.5, how)) is (Verdict.MISS if counts else Verdict.NOT_MEASURED)


def test_a_measured_reading_wins_over_an_estimate() -> None:
    limit = Limit("power", None, 1.0, "estimated")
    measured, estimated = Reading("power", None, 1.5, "measured"), Reading("power", None, 0.5, "estimated")
    assert verdict(limit, estimated, measured) is Verdict.MISS


def test_reason_tells_the_two_numbers_apart() -> None:
    (one,) = check(budget_of("size: 128 KiB"), [Reading("flash", None, 131073, "measured")])
    assert one.reason == "131073 B is more than 128 KiB"


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    numbers = sorted(draw(st.lists(st.floats(1e-6, 1), min_size=3, max_size=3)))
    low = draw(st.sampled_from([None, numbers[0]]))
    high = draw(st.sampled_from([None, numbers[2]]))
    return Reading("latency", draw(st.sampled_from(STATISTICS)), numbers[1], draw(st.sampled_from(HOW)), low, high)


@given(
    some=st.lists(readings(), max_size=4),
    limits=st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)),
    accept=st.sampled_from(HOW),
)
def test_check_is_monotone_in_the_limit(some: list[Reading], limits: tuple[float, float], accept: str) -> None:
    rank = [Verdict.MISS, Verdict.TOO_NOISY, Verdict.PASS]
    tight, loose = (verdict(Limit("latency", "p90", maximum, accept), *some) for maximum in sorted(limits))
    if Verdict.NOT_MEASURED in (tight, loose):
        assert tight is loose
    else:
        assert rank.index(tight) <= rank.index(loose)


def test_latency_readings_carry_the_samples_intervals() -> None:
    quick = latency_readings(summarize([0.010 + i % 7 * 1e-5 for i in range(1000)]), "measured")
    assert [one.verdict for one in check(budget_of("latency: {median: 11 ms, p90: 11 ms, p99: 11 ms}"), quick)] == [
        Verdict.PASS
    ] * 3
    few = latency_readings(summarize([0.010] * 5), "measured")
    (one,) = check(budget_of("latency: 11 ms"), few)
    assert one.verdict is Verdict.TOO_NOISY
    assert "too few samples" in one.reason


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    limits = []
    for quantity in draw(st.lists(st.sampled_from(list(QUANTITIES)), unique=True)):
        accept = draw(st.sampled_from(HOW))
        names = draw(st.sets(st.sampled_from(STATISTICS), min_size=1)) if quantity == "latency" else {None}
        for name in names:
            if QUANTITIES[quantity] == "bytes":
                maximum: float = draw(st.integers(1, 2**40))
            else:
                maximum = draw(st.floats(1e-6, 1e3))
            limits.append(Limit(quantity, name, maximum, accept))
    return Budget(tuple(limits))


@given(budget=budgets())
def test_plain_budget_is_read_back(budget: Budget) -> None:
    assert parse_budget(yaml_source.parse(yaml_source.dump(plain_budget(budget)) or "{}", "t")) == budget


def test_yaml_forms() -> None:
    budget = budget_of("latency: 50 ms\nsize: 1 MiB\nenergy: {max: 6 mJ, accept: estimated}\naccuracy_drop: 0 %")
    assert budget.limits == (
        Limit("latency", "median", 0.05),
        Limit("flash", None, 1048576),
        Limit("energy", None, 0.006, "estimated"),
        Limit("accuracy_drop", None, 0.0),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "latency: 50",
            't.yaml:1: the budget of latency: "50" has no unit; write for example "20 ms" '
            "(units: ns, us, µs, ms, s, min, h)",
        ),
        (
            "ram: 1 KiB\nlatency:\n  p95: 50 ms",
            't.yaml:3: unknown key "p95" in the budget of latency; allowed: accept, median, p90, p99; '
            'did you mean "p99"?',
        ),
        (
            "latncy: 1 s",
            't.yaml:1: unknown key "latncy" in budgets; allowed: accuracy_drop, arena, battery_life, energy, flash, '
            'instructions, latency, power, ram, size, weights; did you mean "latency"?',
        ),
        ("size: 1 B\nflash: 1 B", "t.yaml:2: budgets limits flash twice (size and flash are the same); keep one"),
        ("energy: {accept: estimated}", "t.yaml:1: the budget of energy has no limit; write for example {max: 10 mJ}"),
        ("energy: 0 J", 't.yaml:1: the limit of energy must be more than zero, not "0 J"'),
        (
            "energy: {max: 1 J, accept: guessed}",
            't.yaml:1: accept of energy must be one of measured, emulated, estimated, not "guessed"',
        ),
        ("ram: [1]", 't.yaml:1: the budget of ram must be a quantity such as "128 KiB", not a list'),
    ],
)
def test_wrong_budgets_say_where_and_what(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        budget_of(text)
    assert str(caught.value) == message


def test_limits_and_readings_validate_themselves() -> None:
    for build in (
        lambda: Limit("speed", None, 1),
        lambda: Limit("latency", None, 1),
        lambda: Limit("ram", "p90", 1),
        lambda: Limit("ram", None, float("inf")),
        lambda: Limit("ram", None, 1, "guessed"),
        lambda: Reading("ram", None, float("nan"), "measured"),
        lambda: Reading("ram", None, 5, "measured", 6, 7),
        lambda: Budget((P90, P90)),
        lambda: Budget((P90, Limit("latency", "p99", 1, "estimated"))),
    ):
        with pytest.raises(InputError):
            build()


POWER = """
energy: {per_inference: 2 mJ}
power: {mean: 300 mW, peak: 1 W}
battery_life: 1 year
"""


def test_power_energy_and_battery_life() -> None:
    budget = budget_of(POWER)
    assert budget.limits == (
        Limit("power", None, 0.3),
        Limit("power", "peak", 1.0),
        Limit("energy", None, 0.002),
        Limit("battery_life", None, 31_557_600.0),
    )
    assert plain_budget(budget) == {
        "power": {"mean": "300 mW", "peak": "1 W"},
        "energy": "2 mJ",
        "battery_life": "1 year",
    }
    again = "power: {peak: 1 W, accept: estimated}\nbattery_life: {min: 30 days, accept: estimated}"
    for text in (POWER, again, "power: 300 mW", "power: {max: 1 W, accept: estimated}", "energy: {max: 1 J}"):
        assert parse_budget(yaml_source.parse(yaml_source.dump(plain_budget(budget_of(text))), "t")) == budget_of(text)
    assert budget_of("power: {max: 300 mW}") == budget_of("power: {mean: 300 mW}") == budget_of("power: 300 mW")
    with pytest.raises(InputError, match="same limit under two names, max and mean"):
        budget_of("power: {max: 300 mW, mean: 200 mW}")
    with pytest.raises(InputError, match=r'unknown key "max" in the budget of battery_life; allowed: accept, min'):
        budget_of("battery_life: {max: 1 year}")


@pytest.mark.parametrize(
    ("low", "value", "high", "expected"),
    [
        (None, 100.0, None, Verdict.PASS),
        (None, 99.0, None, Verdict.MISS),
        (100.0, 110.0, 120.0, Verdict.PASS),
        (90.0, 110.0, 120.0, Verdict.TOO_NOISY),
        (80.0, 90.0, 99.0, Verdict.MISS),
    ],
)
def test_a_battery_lasts_at_least(low: float | None, value: float, high: float | None, expected: Verdict) -> None:
    limit = Limit("battery_life", None, 100.0)
    assert verdict(limit, Reading("battery_life", None, value, "measured", low, high)) is expected
    assert verdict(limit) is Verdict.NOT_MEASURED
    assert verdict(limit, Reading("battery_life", None, 1e9, "estimated")) is Verdict.NOT_MEASURED
    accepting = Limit("battery_life", None, 100.0, "estimated")
    assert verdict(accepting, Reading("battery_life", None, 1e9, "estimated")) is Verdict.PASS
    (refused,) = check(Budget((limit,)), [Reading("battery_life", None, 1e9, "estimated")])
    assert '"battery_life: {min: 100 s, accept: estimated}"' in refused.reason
