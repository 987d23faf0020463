"""What a report knows, as readings for a budget."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.budget import QUANTITIES, Budget, Limit, Verdict
from deploy.power import EnergyReading
from deploy.report import Accuracy, Firmware, Latency, Layer, ModelFacts, Report, Sizes, TargetFacts, judged, readings

BARE = Report(
    created="2026-01-31T12:00:00Z", versions={}, artifact="a", target=TargetFacts("t", "f"),
    model=ModelFacts("m", "onnx", "0" * 64), operators={}, macs=None, threads=1, sizes=None, tuning=None,
    verification=None, latency=None, power=None, energy=None, checks=(),
)  # fmt: skip
FULL = replace(
    BARE,
    sizes=Sizes(1000, 2000, 3000, 4000),
    latency=Latency.of([1e-3] * 100, "emulated"),
    power=EnergyReading(6.0, 2.0, "measured", "meter"),
    energy=EnergyReading(0.5, 0.1, "estimated", "declared"),
    accuracy=Accuracy(reference=0.9, device=0.85, samples=100),
)
FIRMWARE = Firmware(1000, 200, 30, 4, 500, 60, 7, (100, 105), (Layer("conv", 90),), "emulated")


def by_name(report):
    return {(r.quantity, r.statistic): (r.value, r.how) for r in readings(report)}


def test_every_quantity_has_a_reading():
    found = by_name(FULL)
    assert {quantity for quantity, _ in found} == set(QUANTITIES) - {"instructions", "battery_life"}
    assert found["arena", None] == (1000, "measured")
    assert found["weights", None] == (2000, "measured")
    assert found["flash", None] == (3000, "measured")
    assert found["ram", None] == (4000, "measured")
    assert found["latency", "p99"] == (pytest.approx(1e-3), "emulated")
    assert found["power", None] == (3.0, "measured")
    assert found["energy", None] == (0.5, "estimated")
    assert found["accuracy_drop", None] == (pytest.approx(0.05), "measured")


def test_a_microcontroller_s_memory_and_instructions():
    found = by_name(replace(FULL, sizes=replace(FULL.sizes, peak_rss_bytes=None), firmware=FIRMWARE))
    assert found["flash", None] == (1000 + 200 + 30 + 4, "measured")
    assert found["ram", None] == (500 + 60 + 7, "emulated")
    assert found["instructions", None] == (105, "emulated")
    unknown = replace(FIRMWARE, stack_bytes=None, instructions=())
    found = by_name(replace(BARE, sizes=Sizes(1, 2, 3), firmware=unknown))
    assert not {quantity for quantity, _ in found} & {"ram", "instructions"}


def test_an_estimated_latency_is_not_noisy():
    """It is computed: a few samples decide, and no interval lies around them."""
    latency = Latency.of([1e-3, 1e-3, 5e-3], "estimated", "a clock")
    assert (latency.noisy, latency.reason, latency.basis) == (False, "", "a clock")
    limits = (Limit("latency", "p90", 6e-3, "estimated"), Limit("latency", "p99", 4e-3, "estimated"))
    checks = judged(replace(BARE, latency=latency), Budget(limits)).checks
    assert [check.verdict for check in checks] == [Verdict.PASS, Verdict.MISS]


def test_what_was_not_measured_has_no_reading():
    assert readings(BARE) == ()
    unknown = EnergyReading(None, 2.0, "measured", "meter", reason="it broke")
    partly = replace(FULL, sizes=Sizes(1, 2, 3), power=unknown, energy=unknown)
    assert not {quantity for quantity, _ in by_name(partly)} & {"ram", "power", "energy"}


def test_a_device_that_is_better_has_lost_nothing():
    better = replace(BARE, accuracy=Accuracy(reference=0.8, device=0.9, samples=10))
    assert by_name(better)["accuracy_drop", None] == (0.0, "measured")


def test_exact_sizes_decide_to_the_byte():
    for most, verdict in ((3000, Verdict.PASS), (2999, Verdict.MISS)):
        assert [c.verdict for c in judged(FULL, Budget((Limit("flash", None, most),))).checks] == [verdict]


def test_an_estimate_counts_only_where_it_is_accepted():
    for accept, verdict in (("measured", Verdict.NOT_MEASURED), ("estimated", Verdict.PASS)):
        report = judged(FULL, Budget((Limit("energy", None, 1.0, accept),)))
        assert [check.verdict for check in report.checks] == [verdict]


@given(st.sampled_from(sorted(QUANTITIES)), st.floats(1e-9, 1e9))
def test_nothing_passes_that_has_no_reading(quantity, most):
    limit = Limit(quantity, "median" if quantity == "latency" else None, most)
    assert [check.verdict for check in judged(BARE, Budget((limit,))).checks] == [Verdict.NOT_MEASURED]


def test_judging_replaces_earlier_verdicts():
    once = judged(FULL, Budget((Limit("flash", None, 1),)))
    assert judged(once, Budget()).checks == ()
    assert judged(once, Budget((Limit("arena", None, 1e6),))).checks[0].verdict is Verdict.PASS
