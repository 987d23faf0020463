"""Statistics of raw samples: percentiles with confidence intervals, and whether the samples are too noisy to trust.

Percentiles and their intervals are order statistics: no assumption about the distribution, which for latencies is
skewed, and no random numbers (J.-Y. Le Boudec, Performance Evaluation of Computer and Communication Systems, 2010,
section 2.2 and appendix A; H. A. David and H. N. Nagaraja, Order Statistics, 2003, section 7.1).

Those intervals hold for independent samples. Samples taken one after the other on a warming or shared machine are not:
see `_drift` for how the intervals are widened then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from deploy.errors import InputError

CONFIDENCE = 0.95
STATISTICS: dict[str, float] = {"median": 0.50, "p90": 0.90, "p99": 0.99}

_BLOCKS = 10  # Of consecutive samples: few enough for a median each, many enough to see a drift.
_MIN_FOR_BLOCKS = 50
_DRIFT_LIMIT = 0.05  # Block medians further apart than this share of the median: the machine changed meanwhile.
_KRUSKAL_WALLIS_LIMIT = 21.67  # 99 % point of chi-squared with 9 degrees of freedom (10 blocks).
_SPREAD_LIMIT = 0.25  # Quartile distance as a share of the median.
_OUTLIER_LIMIT = 0.05  # Share of samples that are outliers.
_OUTLIER_SCORE = 3.5  # Modified z-score; the cut-off of Iglewicz and Hoaglin, see `_outlier_share`.
_MIN_FOR_NOISE = 8


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval; `None` is a side on which there are too few samples to give a bound."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Summary:
    """Statistics of samples, in the samples' unit; `reason` says why they are noisy and is empty otherwise."""

    median: float
    p90: float
    p99: float
    minimum: float
    maximum: float
    count: int
    intervals: dict[str, Interval]
    noisy: bool
    reason: str

    def value(self, statistic: str) -> float:
        """Return "median", "p90" or "p99" by name."""
        return {"median": self.median, "p90": self.p90, "p99": self.p99}[statistic]


def summarize(samples: Sequence[float]) -> Summary:
    """Return the statistics of `samples`, given in the order they were taken.

    Raises InputError when there are none, or one of them is not a finite number.
    """
    values = [float(sample) for sample in samples]
    if not values:
        raise InputError("there are no samples to summarize; measure at least once")
    if not all(math.isfinite(value) for value in values):
        raise InputError("a sample is not a finite number; discard the measurement and repeat it")
    ordered = sorted(values)
    center = percentile(ordered, 0.5)
    drift = _drift(values, center)
    reasons = _noise_reasons(ordered, center, drift)
    return Summary(
        median=center,
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        minimum=ordered[0],
        maximum=ordered[-1],
        count=len(ordered),
        intervals={name: _widened(ordered, share, drift) for name, share in STATISTICS.items()},
        noisy=bool(reasons),
        reason="; ".join(reasons),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the `share` (0 to 1) quantile of ascending values, interpolated linearly (type 7 of Hyndman and Fan)."""
    position = (len(ordered) - 1) * share
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    step = ordered[above] - ordered[below]
    # Rounding must not carry the result past a neighbour, or a median could lie outside its own interval.
    return min(max(ordered[below] + step * (position - below), ordered[below]), ordered[above])


def samples_needed(statistic: str) -> int:
    """Return how many samples `statistic` takes before its interval has an upper bound (368 for p99)."""
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(STATISTICS[statistic]))


def confidence_interval(ordered: Sequence[float], share: float) -> Interval:
    """Return the order-statistic interval of the `share` quantile of ascending values.

    The number of samples below the true quantile is binomial(n, share); the bounds are the samples at the ranks that
    leave at most 2.5 % of it on each side.
    """
    count = len(ordered)
    tail = (1 - CONFIDENCE) / 2
    below = -1  # The largest rank r with P(B <= r) <= tail; sample r (from 0) is then a lower bound.
    above = count  # The smallest rank r with P(B > r) <= tail, i.e. sample r is an upper bound.
    cumulative = 0.0
    for rank in range(count):
        cumulative += _binomial(count, rank, share)
        if cumulative <= tail:
            below = rank
        if cumulative >= 1 - tail:
            above = rank
            break
    return Interval(ordered[below] if below >= 0 else None, ordered[above] if above < count else None)


def _binomial(count: int, hits: int, share: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return math.exp(ways + hits * math.log(share) + (count - hits) * math.log1p(-share))


def _widened(ordered: Sequence[float], share: float, drift: tuple[float, float] | None) -> Interval:
    """The interval of a quantile, moved out by the drift between blocks where there is one."""
    interval = confidence_interval(ordered, share)
    value = percentile(ordered, share)
    low = None if interval.low is None else min(interval.low, value)
    high = None if interval.high is None else max(interval.high, value)
    if drift is None:
        return Interval(low, high)
    return Interval(None if low is None else min(low, low * drift[0]), None if high is None else high * drift[1])


def _drift(values: Sequence[float], center: float) -> tuple[float, float] | None:
    """Lowest and highest block median as a share of the overall median, when the blocks differ by more than chance.

    Blocks of consecutive samples are the batches of simulation output analysis (A. M. Law, Simulation Modeling and
    Analysis, section 9.5) with medians for means. Independent samples make blocks that agree; what these differ by is
    a change of the machine that no number of samples in one run averages away. "More than chance" is the test of
    Kruskal and Wallis (1952) at 1 %; a difference of less than 5 % is let pass even when it is certain.
    """
    if len(values) < _MIN_FOR_BLOCKS or center <= 0:
        return None
    size = len(values) / _BLOCKS
    edges = [round(index * size) for index in range(_BLOCKS + 1)]
    blocks = [values[start:stop] for start, stop in pairwise(edges)]
    medians = [percentile(sorted(block), 0.5) for block in blocks]
    lowest, highest = min(medians) / center, max(medians) / center
    if highest - lowest <= _DRIFT_LIMIT or _kruskal_wallis(blocks) <= _KRUSKAL_WALLIS_LIMIT:
        return None
    return min(lowest, 1.0), max(highest, 1.0)


def _kruskal_wallis(blocks: Sequence[Sequence[float]]) -> float:
    """The statistic H of Kruskal and Wallis with their correction for ties; 0 when all samples are equal."""
    ordered = sorted(value for block in blocks for value in block)
    count = len(ordered)
    rank_of: dict[float, float] = {}
    ties = 0
    start = 0
    for value, group in groupby(ordered):
        length = sum(1 for _ in group)
        rank_of[value] = start + (length + 1) / 2
        ties += length**3 - length
        start += length
    correction = 1 - ties / (count**3 - count)
    if correction == 0:
        return 0.0
    squares = sum(sum(rank_of[value] for value in block) ** 2 / len(block) for block in blocks)
    return (12 / (count * (count + 1)) * squares - 3 * (count + 1)) / correction


def _outlier_share(ordered: Sequence[float], center: float) -> float:
    """Share of samples whose modified z-score, 0.6745 |x - median| / MAD, exceeds 3.5.

    B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers, 1993. A timer that always returns the same few ticks
    has MAD 0; then nothing within 1 % of the median counts, which the floor under MAD sees to.
    """
    deviations = sorted(abs(value - center) for value in ordered)
    spread = max(percentile(deviations, 0.5), 0.0025 * abs(center))
    if spread == 0:
        return 0.0
    return sum(0.6745 * deviation / spread > _OUTLIER_SCORE for deviation in deviations) / len(ordered)


def _noise_reasons(ordered: Sequence[float], center: float, drift: tuple[float, float] | None) -> list[str]:
    """What makes the samples noisy, in words; empty when nothing does."""
    if len(ordered) < _MIN_FOR_NOISE:
        return [f"only {len(ordered)} samples; take at least {_MIN_FOR_NOISE}"]
    reasons = []
    if drift is not None:
        reasons.append(f"the median drifted between {drift[0]:.0%} and {drift[1]:.0%} of itself during the run")
    spread = percentile(ordered, 0.75) - percentile(ordered, 0.25)
    if spread > _SPREAD_LIMIT * abs(center):
        share = f"{spread / abs(center):.0%}" if center else "more than all"
        reasons.append(f"the middle half of the samples spreads over {share} of the median")
    outliers = _outlier_share(ordered, center)
    if outliers > _OUTLIER_LIMIT:
        reasons.append(f"{outliers:.0%} of the samples are outliers")
    return reasons
