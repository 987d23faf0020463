"""Percentiles, their intervals, and the detection of noise; checked against numpy and by simulation."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import InputError
from deploy.statistics import STATISTICS, confidence_interval, percentile, samples_needed, summarize

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(values=samples, share=st.floats(0, 1))
def test_percentile_agrees_with_numpy(values: list[float], share: float) -> None:
    assert percentile(sorted(values), share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-9)


@given(values=samples)
def test_statistics_stay_within_their_intervals_and_the_samples(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.minimum <= summary.median <= summary.p90 <= summary.p99 <= summary.maximum
    assert summary.count == len(values)
    for name in STATISTICS:
        interval = summary.intervals[name]
        assert interval.low is None or interval.low <= summary.value(name)
        assert interval.high is None or interval.high >= summary.value(name)
    assert bool(summary.reason) == summary.noisy


@pytest.mark.parametrize(("share", "true"), [(0.5, 0.6931), (0.9, 2.3026), (0.99, 4.6052)])
def test_intervals_of_independent_samples_contain_the_true_quantile(share: float, true: float) -> None:
    generator = random.Random(7)
    hits = 0
    for _ in range(400):
        interval = confidence_interval(sorted(generator.expovariate(1) for _ in range(500)), share)
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= true <= interval.high
    assert hits / 400 > 0.93  # 95 % promised; the simulation's own error is about 1 %


def test_interval_has_no_upper_bound_when_samples_are_too_few() -> None:
    needed = samples_needed("p99")
    assert needed == 368
    assert confidence_interval([float(i) for i in range(needed - 1)], 0.99).high is None
    assert confidence_interval([float(i) for i in range(needed)], 0.99).high == needed - 1
    one = summarize([1.0]).intervals["median"]
    assert (one.low, one.high) == (None, None)


def test_quiet_samples_are_not_noisy() -> None:
    generator = random.Random(1)
    assert not summarize([1.0] * 100).noisy
    for _ in range(50):
        assert not summarize([generator.gauss(100, 2) for _ in range(200)]).noisy


def test_drift_is_noisy_and_widens_the_interval() -> None:
    generator = random.Random(2)
    values = [generator.gauss(100 + 0.2 * i, 1) for i in range(200)]
    summary = summarize(values)
    assert summary.noisy
    assert "drifted" in summary.reason
    plain = confidence_interval(sorted(values), 0.5)
    widened = summary.intervals["median"]
    assert plain.low is not None
    assert widened.low is not None
    assert plain.high is not None
    assert widened.high is not None
    assert widened.low < plain.low
    assert widened.high > plain.high
    shuffled = random.Random(3).sample(values, len(values))
    assert "drifted" not in summarize(shuffled).reason


def test_spread_outliers_and_few_samples_are_noisy() -> None:
    generator = random.Random(4)
    assert "spreads over" in summarize([generator.uniform(50, 150) for _ in range(100)]).reason
    assert "outliers" in summarize([200.0 if i % 10 == 0 else 100 + i % 3 / 10 for i in range(100)]).reason
    assert "only 3 samples" in summarize([1.0, 1.0, 1.0]).reason


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_unusable_samples_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError):
        summarize(values)
