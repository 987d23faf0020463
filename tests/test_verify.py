"""What counts as equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from deploy.errors import InputError
from deploy.verify import STEP_TOLERANCES, TOLERANCES, TensorComparison, compare, first_failure

INFINITY = float("inf")


def one(expected: object, actual: object, dtype: str = "float32", **arguments: object) -> TensorComparison:
    (result,) = compare(["t"], [np.array(expected, dtype)], [np.array(actual, dtype)], **arguments)
    return result


def test_relative_to_the_scale_of_the_tensor() -> None:
    result = one([100.0, 0.0, -50.0], [100.0, 0.0005, -50.0])
    assert result.passed
    assert (result.count, result.differing) == (3, 1)
    assert result.largest_abs == pytest.approx(0.0005)
    assert result.largest_rel == pytest.approx(0.000005)
    assert not one([100.0, 0.0], [100.0, 0.0011]).passed


def test_all_zeros_have_scale_one() -> None:
    assert one([0.0, 0.0], [0.0, 9e-6]).passed
    assert not one([0.0, 0.0], [0.0, 2e-5]).passed


@pytest.mark.parametrize(
    ("dtype", "step", "passes"),
    [
        ("float16", 0.005, True),
        ("float16", 0.05, False),
        ("float32", 5e-6, True),
        ("float32", 5e-5, False),
        ("float64", 5e-11, True),
        ("float64", 5e-10, False),
        ("int8", 1, False),
        ("uint8", 1, False),
        ("int64", 1, False),
    ],
)
def test_tolerance_by_type(dtype: str, step: float, passes: bool) -> None:
    result = one([1, 1], [1, 1 + step], dtype)
    assert (result.passed, result.differing, result.dtype) == (passes, 1, dtype)
    assert result.tolerance == TOLERANCES[dtype]


def test_integers_are_counted_in_steps() -> None:
    result = one([-128, 5], [127, 4], "int8")
    assert (result.largest_abs, result.differing) == (255.0, 2)
    assert one([3, 5], [4, 5], "int8", tolerances={"int8": 1}).passed
    assert not one([3, 5], [5, 5], "int8", tolerances={"int8": 1}).passed
    assert not one([2**62], [2**62 + 1], "int64").passed  # equal once rounded to float64
    assert not one([True, False], [True, True], "bool").passed


def test_nan_and_infinity() -> None:
    nan = float("nan")
    assert one([nan, INFINITY, -INFINITY, 1], [nan, INFINITY, -INFINITY, 1]).passed
    for expected, actual in (
        ([1.0], [nan]),
        ([nan], [1.0]),
        ([INFINITY], [-INFINITY]),
        ([INFINITY], [1.0]),
        ([1.0], [INFINITY]),
    ):
        result = one(expected, actual)
        assert not result.passed
        assert result.largest_abs == INFINITY
        assert result.reason == "1 elements are NaN or infinite in one tensor only"
    # an infinity does not make everything else look small
    assert not one([INFINITY, 1.0], [INFINITY, 1.1]).passed


def test_shape_and_type() -> None:
    (shape,) = compare(["t"], [np.zeros((1, 5), np.float32)], [np.zeros((5,), np.float32)])
    assert (shape.passed, shape.reason, shape.differing) == (False, "shape [5] instead of [1, 5]", 5)
    (dtype,) = compare(["t"], [np.zeros(5, np.float32)], [np.zeros(5, np.float64)])
    assert (dtype.passed, dtype.reason) == (False, "type float64 instead of float32")


def test_empty_and_scalar() -> None:
    assert one([], []).passed
    assert one(1.5, 1.5).passed


def test_first_failure() -> None:
    values = [np.zeros(1, np.float32), np.ones(1, np.float32), np.ones(1, np.float32)]
    result = compare(["a", "b", "c"], values, [values[0], values[0], values[0]])
    failure = first_failure(result)
    assert failure is not None
    assert failure.name == "b"
    assert first_failure(result[:1]) is None


def test_pairs_and_types_are_checked() -> None:
    with pytest.raises(InputError, match="2 names, 1 expected and 1 actual"):
        compare(["a", "b"], [np.zeros(1)], [np.zeros(1)])
    with pytest.raises(InputError, match="complex128, for which no tolerance"):
        compare(["a"], [np.zeros(1, complex)], [np.zeros(1, complex)])


FLOATS = npst.arrays(np.float32, npst.array_shapes(), elements=st.floats(width=32))


@given(FLOATS)
def test_everything_equals_itself(values: np.ndarray) -> None:
    (result,) = compare(["t"], [values], [values.copy()])
    assert result.passed
    assert (result.differing, result.largest_abs, result.largest_rel) == (0, 0.0, 0.0)


@given(FLOATS, st.data())
def test_one_wrong_element_is_found(values: np.ndarray, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, values.size - 1))
    changed = values.copy()
    scale = float(np.max(np.abs(values[np.isfinite(values)]), initial=1.0))
    changed.flat[position] = np.float32(scale) if not np.isclose(values.flat[position], scale) else -np.float32(scale)
    (result,) = compare(["t"], [values], [changed])
    assert not result.passed
    assert result.differing == 1


def test_formats_defined_in_float_may_differ_by_a_step():
    expected, near, far = (np.array(values, np.float32) for values in ([1.27, -0.5], [1.26, -0.5], [1.25, -0.5]))
    assert not compare(["y"], [expected], [near])[0].passed
    assert compare(["y"], [expected], [near], STEP_TOLERANCES)[0].passed
    assert not compare(["y"], [expected], [far], STEP_TOLERANCES)[0].passed
    steps = [np.array([3, 4], np.int8), np.array([4, 4], np.int8), np.array([5, 4], np.int8)]
    assert compare(["y"], steps[:1], steps[1:2], STEP_TOLERANCES)[0].passed
    assert not compare(["y"], steps[:1], steps[2:], STEP_TOLERANCES)[0].passed
