"""Intervals hold whatever an operator gives for values inside of its operands' intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.channels import bounds as cb
from deploy.channels.bounds import Bounds

TYPES = ("int8", "int16", "int32", "float32")
OPERATIONS = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
}


def interval(rng: np.random.Generator, dtype: str, size: int = 4) -> Bounds:
    """Random ends, now and then equal, now and then those of the type."""
    spread = 20 if rng.random() < 0.5 else 100
    ends = np.sort(rng.integers(-spread, spread, (2, size)), axis=0)
    ends[1] = np.where(rng.random(size) < 0.3, ends[0], ends[1])
    return Bounds(cb.numbers(ends[0], dtype), cb.numbers(ends[1], dtype))


def inside(rng: np.random.Generator, bounds: Bounds, dtype: str, count: int = 30) -> np.ndarray:
    """Values of the interval, its ends among them: [count, channels]."""
    low, high = bounds.low.astype(np.float64), bounds.high.astype(np.float64)
    values = low + rng.random((count, low.size)) * (high - low)
    values = np.concatenate([values, low[None], high[None]])
    return (values if dtype == "float32" else np.round(values)).astype(dtype)


def holds(bounds: Bounds, values: np.ndarray) -> bool:
    exact = values.astype(np.float64)
    return bool(((exact >= bounds.low.astype(np.float64)) & (exact <= bounds.high.astype(np.float64))).all())


@given(st.integers(0, 2**32 - 1), st.sampled_from(TYPES), st.sampled_from(sorted(OPERATIONS)))
def test_operators_of_two_tensors(seed, dtype, name):
    """Also where the type wraps around."""
    rng = np.random.default_rng(seed)
    left, right = interval(rng, dtype), interval(rng, dtype)
    found = cb.binary(name, left, right, dtype)
    assert holds(found, OPERATIONS[name](inside(rng, left, dtype)[:, None], inside(rng, right, dtype)[None]))


@given(st.integers(0, 2**32 - 1))
def test_shifts_and_quotients(seed):
    rng = np.random.default_rng(seed)
    data, shift = interval(rng, "int32"), cb.of_constant(rng.integers(0, 9, 4), "int32", 0)
    values, by = inside(rng, data, "int32"), shift.low.astype(int)
    assert holds(cb.binary("relax.right_shift", data, shift, "int32"), values >> by)
    assert holds(cb.binary("relax.left_shift", data, shift, "int32"), values << by)
    divisor = Bounds(shift.low + 1, shift.high + 1)
    assert holds(cb.binary("relax.divide", data, divisor, "int32"), np.trunc(values / (by + 1)))


@given(st.integers(0, 2**32 - 1), st.sampled_from(cb.UNARY))
def test_functions_of_one_tensor(seed, name):
    rng = np.random.default_rng(seed)
    data = interval(rng, "float32")
    point = Bounds(data.low, data.low)
    found = cb.unary(name, data, "float32")
    for value in inside(rng, data, "float32", 8):
        assert holds(found, cb.unary(name, Bounds(value, value), "float32").low)
    assert cb.unary(name, point, "float32").constant.all()


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["int32", "float32"]))
def test_sums_of_products(seed, partial, dtype):
    rng = np.random.default_rng(seed)
    data = interval(rng, dtype, 5)
    weight = rng.integers(-127, 128, (5, 3, 4)) * (rng.random((5, 3, 4)) < 0.5)
    values = np.stack([inside(rng, data, dtype, 20) for _ in range(3)], 2).astype(np.float64)
    if partial:
        values = values * (rng.random(values.shape) < 0.7)
    assert holds(cb.linear(weight, data, partial, dtype), np.einsum("nct,cto->no", values, weight))
    within = np.einsum("nct,ctm->ncm", values, weight).reshape(len(values), -1)
    assert holds(cb.depthwise(weight, data, partial, dtype), within)


def test_sums_of_any_number():
    weight = np.zeros((2, 1, 3))
    weight[0, 0, 1] = 1
    found = cb.linear(weight, cb.whole("float32"), False, "float32")
    assert found.low.tolist() == [0, -np.inf, 0]
    assert found.constant.tolist() == [True, False, True]


def test_an_accumulator_that_can_wrap_around_is_anything():
    found = cb.linear(np.full((1, 1, 1), 127), cb.whole("int32"), False, "int32")
    assert (found.low[0], found.high[0]) == (-(2**31), 2**31 - 1)


@pytest.mark.parametrize(("low", "high", "dtype", "expected"), [
    (-1.7, 2.9, "int8", (-1, 2)),
    (0.0, 300.0, "int8", (-128, 127)),
    (-np.inf, 1.0, "int16", (-32768, 32767)),
])  # fmt: skip
def test_floats_become_integers_towards_zero(low, high, dtype, expected):
    found = cb.cast(Bounds(np.array([low], np.float32), np.array([high], np.float32)), dtype)
    assert (found.low[0], found.high[0]) == expected


def test_a_table_is_read_at_its_edges_outside():
    index = Bounds(cb.numbers([-5, 2, 0], "int32"), cb.numbers([0, 9, 3], "int32"))
    found = cb.looked_up(np.array([4, -1, 7, 3]), index, "int8")
    assert found.low.tolist() == [4, 3, -1]
    assert found.high.tolist() == [4, 7, 7]
