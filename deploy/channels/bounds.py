"""Intervals: the values that each channel of a tensor can take, carried through operators with their own arithmetic.

An interval whose ends are equal is a channel that is constant whatever the input. Integers are exact and, where an
operation could wrap around, the whole type; floats are computed in the tensor's own precision, of finite inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import erf
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Bounds:
    """The smallest and the largest value, [channels] each, or [1] for all channels; integers are Python's."""

    low: Array
    high: Array

    @property
    def constant(self) -> Array:
        """Which channels have one value only, bool like `low`."""
        with np.errstate(invalid="ignore"):
            return np.asarray((self.low == self.high) & np.isfinite(self.low.astype(np.float64)), bool)

    def hull(self) -> Bounds:
        """One interval, [1], that holds all channels."""
        return Bounds(self.low.min(keepdims=True), self.high.max(keepdims=True))

    def spread(self, channels: int) -> Bounds:
        """The same with an interval for each of `channels`."""
        return Bounds(np.broadcast_to(self.low, (channels,)), np.broadcast_to(self.high, (channels,)))


def is_integer(dtype: str) -> bool:
    """Whether values of the type are integers; bool counts."""
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def numbers(values: Any, dtype: str) -> Array:
    """Values in the form that bounds of that type have."""
    return np.asarray(values).astype(object if is_integer(dtype) else _float(dtype))


def _float(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype if dtype in ("float16", "float64") else "float32")


def _limits(dtype: str) -> tuple[Any, Any]:
    if dtype == "bool":
        return 0, 1
    if is_integer(dtype):
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    return -np.inf, np.inf


def whole(dtype: str) -> Bounds:
    """Any value of the type."""
    low, high = _limits(dtype)
    return Bounds(numbers([low], dtype), numbers([high], dtype))


def of_constant(values: Array, dtype: str, axis: int | None) -> Bounds:
    """The range of a constant tensor for each index of `axis`, or over everything."""
    rows = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return Bounds(numbers(rows.min(axis=1), dtype), numbers(rows.max(axis=1), dtype))


def joined(parts: Sequence[Bounds]) -> Bounds:
    """The intervals of tensors whose elements become channels' elements of one: the hull for each channel."""
    low, high = parts[0].low, parts[0].high
    for part in parts[1:]:
        low, high = np.minimum(low, part.low), np.maximum(high, part.high)
    return Bounds(low, high)


def _fit(bounds: Bounds, dtype: str) -> Bounds:
    """`bounds`, but the whole type where a value is not one of the type's, or not a number."""
    low, high = _limits(dtype)
    if is_integer(dtype):
        outside = np.asarray((bounds.low < low) | (bounds.high > high), bool)
    else:
        outside = np.isnan(bounds.low) | np.isnan(bounds.high)
    return Bounds(np.where(outside, low, bounds.low), np.where(outside, high, bounds.high))


def _times(a: Any, b: Any) -> Any:
    product = a * b
    if product.dtype == object:
        return product
    return np.where((a == 0) | (b == 0), product.dtype.type(0), product)  # 0 * infinity, of an input that is finite


def _quotient(a: Any, b: Any) -> Any:
    """Integers are divided towards zero."""
    return _towards_zero(a, b) if a.dtype == object else a / b


_towards_zero = np.frompyfunc(lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1), 2, 1)

# Monotone in each operand, so that the extremes are at the ends.
BINARY: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "relax.add": lambda a, b: a + b,
        "relax.subtract": lambda a, b: a - b,
        "relax.multiply": _times,
        "relax.divide": _quotient,
        "relax.maximum": np.maximum,
        "relax.minimum": np.minimum,
        "relax.left_shift": lambda a, b: a << b,
        "relax.right_shift": lambda a, b: a >> b,
    }
)


def binary(name: str, left: Bounds, right: Bounds, dtype: str) -> Bounds:
    """The bounds of a BINARY operator whose result has type `dtype`."""
    size = np.broadcast_shapes(left.low.shape, right.low.shape)[0]
    if name == "relax.divide" and ((right.low <= 0) & (right.high >= 0)).any():
        return whole(dtype).spread(size)
    if "shift" in name and ((right.low < 0) | (right.high > 63)).any():
        return whole(dtype).spread(size)
    with np.errstate(all="ignore"):
        ends = [BINARY[name](a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
    low, high = ends[0], ends[0]
    for end in ends[1:]:
        low, high = np.fmin(low, end), np.fmax(high, end)
    return _fit(Bounds(low, high), dtype)


def _logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


_MONOTONE: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "relax.nn.relu": lambda x: np.maximum(x, 0),
        "relax.nn.relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
        "relax.negative": lambda x: -x,
        "relax.sigmoid": _logistic,
        "relax.tanh": np.tanh,
        "relax.exp": np.exp,
        "relax.round": np.round,
        "relax.floor": np.floor,
        "relax.ceil": np.ceil,
    }
)
# Not monotone: known only of channels that are constant already.
_ELSE: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "relax.abs": np.abs,
        "relax.nn.silu": lambda x: x * _logistic(x),
        "relax.nn.gelu": lambda x: x * (0.5 + 0.5 * np.vectorize(erf, otypes=[float])(x * np.sqrt(0.5))),
    }
)
UNARY = (*_MONOTONE, *_ELSE)


def unary(name: str, data: Bounds, dtype: str) -> Bounds:
    """The bounds of a UNARY operator."""
    operation = _MONOTONE.get(name)
    with np.errstate(all="ignore"):
        if operation is not None:
            ends = [numbers(operation(end), dtype) for end in (data.low, data.high)]
            return _fit(Bounds(np.minimum(*ends), np.maximum(*ends)), dtype)
        known = np.where(data.constant, data.low, 0)
        value = numbers(_ELSE[name](known), dtype)
    low, high = _limits(dtype)
    return _fit(Bounds(np.where(data.constant, value, low), np.where(data.constant, value, high)), dtype)


def leaky(data: Bounds, alpha: float, dtype: str) -> Bounds:
    """x, or alpha * x where that is negative."""
    ends = [numbers(np.where(end < 0, end * alpha, end), dtype) for end in (data.low, data.high)]
    return joined([Bounds(end, end) for end in ends]) if alpha >= 0 else whole(dtype).spread(data.low.size)


def cast(data: Bounds, dtype: str) -> Bounds:
    """The values in another type: floats to integers towards zero."""
    if dtype == "bool":
        return whole(dtype).spread(data.low.size)
    if is_integer(dtype) and data.low.dtype != object:
        known = np.isfinite(data.low) & np.isfinite(data.high)
        ends = [_whole_numbers(np.where(known, end, 0)) for end in _ends(data)]
        low, high = _limits(dtype)
        return _fit(Bounds(np.where(known, ends[0], low), np.where(known, ends[1], high)), dtype)
    return _fit(Bounds(numbers(data.low, dtype), numbers(data.high, dtype)), dtype)


def _whole_numbers(values: Array) -> Array:
    return np.array([int(value) for value in values], object)


def _ends(bounds: Bounds) -> tuple[Array, Array]:
    return bounds.low, bounds.high


def looked_up(table: Array, index: Bounds, dtype: str) -> Bounds:
    """Elements of a table; an index outside it reads its edge."""
    first, last = (np.clip(end.astype(np.float64), 0, len(table) - 1).astype(int) for end in _ends(index))
    spans = [table[low : high + 1] for low, high in zip(first, last, strict=True)]
    return Bounds(numbers([span.min() for span in spans], dtype), numbers([span.max() for span in spans], dtype))


def summed(data: Bounds, count: int, dtype: str) -> Bounds:
    """The sum of `count` elements of a channel; with `count` 1 and a float type, a mean."""
    with np.errstate(all="ignore"):
        return _fit(Bounds(numbers(data.low * count, dtype), numbers(data.high * count, dtype)), dtype)


def linear(weight: Array, data: Bounds, partial: bool, dtype: str) -> Bounds:
    """Sums of products: weight [inputs, taps, outputs], data [inputs] → [outputs].

    `partial` says that any of the taps may fall on a border, where the operand is 0.
    """
    return _weighted(weight, data.spread(weight.shape[0]), partial, dtype, lambda values, taps: values @ taps)


def depthwise(weight: Array, data: Bounds, partial: bool, dtype: str) -> Bounds:
    """The same within channels: weight [channels, taps, multiplier], data [channels] → [channels * multiplier]."""
    spread = data.spread(weight.shape[0])
    return _weighted(weight, spread, partial, dtype, lambda values, taps: (values[:, None] * taps).reshape(-1))


def _weighted(weight: Array, data: Bounds, partial: bool, dtype: str, total: Callable[[Array, Array], Array]) -> Bounds:
    """Exact for integers of at most 16 bits: their sums have less than 53 bits."""
    ends = [end.astype(np.float64) for end in _ends(data)]
    low, high = (np.minimum(ends[0], 0), np.maximum(ends[1], 0)) if partial else ends
    positive = np.maximum(weight, 0).sum(axis=1, dtype=np.float64)
    negative = np.minimum(weight, 0).sum(axis=1, dtype=np.float64)
    finite_low, finite_high = (np.where(np.isfinite(end), end, 0) for end in (low, high))
    least = total(finite_low, positive) + total(finite_high, negative)
    most = total(finite_high, positive) + total(finite_low, negative)
    endless = [np.isinf(end).astype(np.float64) for end in (low, high)]
    signs = [(part != 0).astype(np.float64) for part in (positive, negative)]
    no_least = total(endless[0], signs[0]) + total(endless[1], signs[1]) > 0
    no_most = total(endless[1], signs[0]) + total(endless[0], signs[1]) > 0
    magnitude = total(np.maximum(np.abs(finite_low), np.abs(finite_high)), positive - negative)
    if is_integer(dtype):
        exact = magnitude < 2**53
        smallest, largest = _limits(dtype)
        whole_ends = [_whole_numbers(end) for end in (least, most)]
        found = Bounds(np.where(exact, whole_ends[0], smallest), np.where(exact, whole_ends[1], largest))
        return _fit(found, dtype)
    # what the order of a sum may change, where there is anything to sum
    slack = np.where(least < most, magnitude * np.finfo(_float(dtype)).eps * weight[:, :, 0].size, 0)
    least, most = np.where(no_least, -np.inf, least - slack), np.where(no_most, np.inf, most + slack)
    return Bounds(numbers(least, dtype), numbers(most, dtype))
