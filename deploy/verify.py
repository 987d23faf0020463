"""Device output against the source framework's output. Pure NumPy; a difference is a result, never an exception."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import InputError

Array = npt.NDArray[Any]

# The largest difference that still passes: for floats relative to the tensor's scale, for others in steps of 1.
TOLERANCES: Mapping[str, float] = MappingProxyType(
    {"float16": 1e-2, "float32": 1e-5, "float64": 1e-10, "bool": 0.0}
    | {f"{sign}int{bits}": 0.0 for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
# Quantized models of the formats that are defined in floating point: frameworks add up in an order of their own, and a
# value just between two integers may become either. For floats it is a step of 8 bits.
STEP_TOLERANCES: Mapping[str, float] = MappingProxyType(
    {**TOLERANCES, **dict.fromkeys(("int8", "uint8", "int16"), 1.0), "float32": 1 / 127}
)


@dataclass(frozen=True)
class TensorComparison:
    """How one tensor compares.

    `differing` of `count` elements are not equal. `largest_abs` is the largest difference of two elements,
    `largest_rel` the same divided by the tensor's own scale, the largest absolute value that was expected in it (1 when
    it is all zeros): dividing element by element would make rounding noise near zero look like an error. `tolerance`
    bounds `largest_rel` for floats and `largest_abs` for integers and truth values. A difference that no number
    describes (another shape or type, NaN or infinity in other places) is infinite, and `reason` says what it is.
    """

    name: str
    dtype: str
    count: int
    differing: int
    largest_abs: float
    largest_rel: float
    tolerance: float
    passed: bool
    reason: str | None = None


def compare(
    names: Sequence[str],
    expected: Sequence[Array],
    actual: Sequence[Array],
    tolerances: Mapping[str, float] = TOLERANCES,
) -> tuple[TensorComparison, ...]:
    """Compare tensors pairwise; `tolerances` maps the expected tensor's type to what passes (see TensorComparison).

    NaN equals NaN and an infinity equals itself; anything else against one of them fails. Raises InputError when the
    numbers of names and tensors differ, or a type has no tolerance.
    """
    if not len(names) == len(expected) == len(actual):
        raise InputError(f"{len(names)} names, {len(expected)} expected and {len(actual)} actual tensors: not pairs.")
    return tuple(_compare(*item, tolerances) for item in zip(names, expected, actual, strict=True))


def first_failure(comparisons: Sequence[TensorComparison]) -> TensorComparison | None:
    """The first comparison that did not pass: with tensors in topological order, where a mismatch begins."""
    return next((comparison for comparison in comparisons if not comparison.passed), None)


def _compare(name: str, expected: Array, actual: Array, tolerances: Mapping[str, float]) -> TensorComparison:
    dtype = expected.dtype.name
    if dtype not in tolerances:
        known = ", ".join(tolerances)
        raise InputError(f"Tensor '{name}' is {dtype}, for which no tolerance is set; there are ones for {known}.")
    tolerance = tolerances[dtype]
    reason = _mismatch(expected, actual)
    if reason is not None:
        infinite = float("inf")
        return TensorComparison(name, dtype, expected.size, expected.size, infinite, infinite, tolerance, False, reason)
    floating = expected.dtype.kind == "f"
    same = expected == actual
    if floating:
        same |= np.isnan(expected) & np.isnan(actual)
    differing = int(expected.size - np.count_nonzero(same))
    finite = np.isfinite(expected) & np.isfinite(actual) if floating else np.ones(expected.shape, bool)
    if not np.all(finite | same):
        reason = f"{int(np.count_nonzero(~(finite | same)))} elements are NaN or infinite in one tensor only"
    reference, other = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
    largest_abs = float("inf") if reason else float(np.max(np.abs(reference - other), initial=0.0))
    scale = float(np.max(np.abs(reference), initial=0.0)) or 1.0
    largest_rel = largest_abs / scale
    passed = (largest_rel if floating else largest_abs) <= tolerance and (tolerance > 0 or differing == 0)
    return TensorComparison(name, dtype, expected.size, differing, largest_abs, largest_rel, tolerance, passed, reason)


def _mismatch(expected: Array, actual: Array) -> str | None:
    if expected.shape != actual.shape:
        return f"shape {list(actual.shape)} instead of {list(expected.shape)}"
    if expected.dtype != actual.dtype:
        return f"type {actual.dtype.name} instead of {expected.dtype.name}"
    return None
