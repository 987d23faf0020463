"""64-bit operators that scale sums, as `integer.requantize` writes them for TFLite → `scaling`'s, in 32 bits.

A sum of two quantized tensors becomes one operator that reads both as they are stored: fusion would else scale one of
them behind the kernel that makes it, and keep it in memory four times as large.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from deploy.integer.fixed_point import rescale
from deploy.kernels.micro import scaling
from deploy.kernels.micro.legalize import STORED, UNKNOWN, is_kernel
from deploy.kernels.micro.scaling import Scale, Term
from deploy.relax_rewrite import array_of, op_name, per_function, shape_of

Array = npt.NDArray[Any]
LARGEST = 255  # of a byte, and of the difference of two
_VECTOR_KERNELS = ("quantized_conv2d", "quantized_matmul", "depthwise")  # those of `quantized` and `compute`, exact


@mutator
class _Scaling(PyExprMutator):  # type: ignore[misc]
    """`alike`: the scales that are the same for a whole tensor, by the kernel that was made for them."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self.alike: dict[str, Scale] = {}
        self.bounds: dict[str, int] = {}

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        rewrite = {"relax.right_shift": self._scaled, "relax.add": self._terms}.get(op_name(call))
        changed = None if rewrite is None else rewrite(call)
        return call if changed is None else changed

    def _value(self, expr: relax.Expr) -> Any:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr

    def _scaled(self, call: Call) -> relax.Expr | None:
        found = self._parts(call)
        if found is None:
            return None
        data, factor, sign, rounding, shift = found
        second = np.where(factor == 0, 1, shift - 31)  # nothing is left of a channel whose weights are all zero
        if (second < 1).any() or ((rounding != (1 << (shift - 1)) + (1 << 30)) & (factor != 0)).any():
            return None
        data, factor, second = self._settled(data, factor, second, sign)
        left = max(0, int(factor.max()).bit_length() - 31)
        multiplier, magnitude = factor >> left, self._magnitude(data)
        clamped = magnitude << (left + 1) >= 1 << 31
        if (multiplier << left != factor).any() or (clamped and not self._may_clamp(data, multiplier, second, left)):
            return None
        scale = Scale(int(multiplier.max()), int(second.max()), left, not sign, clamped)
        if multiplier.size == shift.size == 1:
            alike = partial(scaling.scaled_alike, scale=scale)
            result = self.builder_.call_te(alike, data, primfunc_name_hint="scaled_alike")
            self.alike[_name(result)], self.bounds[_name(result)] = scale, scale.bound(magnitude)
            return relax.op.astype(result, "int64")
        size = max(multiplier.size, shift.size)
        arrays = (np.broadcast_to(values.reshape(-1), size).astype(np.int32) for values in (multiplier, second - 1))
        each = partial(scaling.scaled, like=scale)
        result = self.builder_.call_te(each, data, *map(relax.const, arrays), primfunc_name_hint="scaled")
        return relax.op.astype(result, "int64")

    def _settled(self, data: relax.Expr, factor: Array, second: Array, sign: bool) -> tuple[relax.Expr, Array, Array]:
        """Channels without weights, whose bias is their sum, with a bias that is scaled in 32 bits to the same result.

        TFLite's converter cuts the bias of such a channel to 2^30, which cannot be doubled.
        """
        kernel = self._value(data)
        if not is_kernel(kernel):
            return data, factor, second
        inputs, weight, bias = kernel.args[1].fields
        values = np.asarray(array_of(bias)).astype(np.int64)
        still = (channel_sums(np.asarray(array_of(weight)))[: values.size] == 0) & (np.abs(values) >= 1 << 29)
        if not still.any():
            return data, factor, second
        each, places = (np.broadcast_to(a.reshape(-1), values.size).copy() for a in (factor, second))
        for channel in np.flatnonzero(still):
            result = rescale(int(values[channel]), int(each[channel]), -int(places[channel]))
            result = max(0, result) if not sign else result
            values[channel], each[channel], places[channel] = 4 * result, 1 << 30, 1
        if np.abs(values).max() >= UNKNOWN:
            return data, factor, second
        fields = relax.Tuple([inputs, weight, relax.const(values.astype(np.int32))])
        settled = self.builder_.emit(Call(kernel.op, [kernel.args[0], fields], kernel.attrs, kernel.ty_args))
        return settled, each, places

    def _may_clamp(self, data: relax.Expr, multiplier: Array, second: Array, left: int) -> bool:
        """Whether sums that are too large to be doubled end beyond 16 bits, to which a layer's results are cut."""
        large = ((multiplier >= 1 << 30) | (multiplier == 0)).all() and second.max() <= 12
        return left == 0 and large and is_kernel(self._value(data))

    def _parts(self, call: Call) -> tuple[relax.Expr, Array, bool, Array, Array] | None:
        """(sums, factor, whether negative ones round the other way, rounding, shift) of a scaling in 64 bits."""
        shift, rounded = array_of(call.args[1]), self._value(call.args[0])
        if str(call.ty.dtype) != "int64" or shift is None or op_name(rounded) != "relax.add":
            return None
        rounding, product, sign = array_of(rounded.args[1]), self._value(rounded.args[0]), False
        if op_name(product) == "relax.add":
            product, down = (self._value(arg) for arg in product.args)
            sign = op_name(down) == "relax.multiply"
            if not sign or np.any(np.asarray(array_of(down.args[1])) != 1 << 31):
                return None
        if rounding is None or op_name(product) != "relax.multiply":
            return None
        factor, wide = array_of(product.args[1]), self._value(product.args[0])
        if factor is None or factor.min() < 0 or op_name(wide) != "relax.astype" or not _along_channels(call, factor):
            return None
        if str(wide.args[0].ty.dtype) != "int32":
            return None
        return wide.args[0], factor.astype(np.int64), sign, rounding.astype(np.int64), shift.astype(np.int64)

    def _terms(self, call: Call) -> relax.Expr | None:
        """A sum of two quantized tensors of the same shape."""
        if str(call.ty.dtype) != "int32" or shape_of(call.args[0]) != shape_of(call.args[1]):
            return None
        left, right = (self._term(arg) for arg in call.args)
        if left is None or right is None:
            return None
        terms_of = partial(scaling.sum_of_terms, left_term=left[1], right_term=right[1])
        result = self.builder_.call_te(terms_of, left[0], right[0], primfunc_name_hint="sum_of_terms")
        self.bounds[_name(result)] = sum(self._magnitude(arg) for arg in call.args)
        return result

    def _term(self, expr: relax.Expr) -> tuple[relax.Expr, Term] | None:
        """The stored tensor behind an operand of a sum, and how it becomes the operand."""
        value = self._value(expr)
        while op_name(value) == "relax.astype" and str(value.args[0].ty.dtype) in ("int32", "int64"):
            value = self._value(value.args[0])
        if op_name(value) == "relax.left_shift":
            places = array_of(value.args[1])
            stored = None if places is None or places.size != 1 else self._stored(value.args[0])
            return None if stored is None else (stored[0], Term(stored[1], None, int(np.asarray(places).item())))
        scale = self.alike.get(_name(value)) if op_name(value) == "relax.call_tir" else None
        stored = None if scale is None else self._stored(value.args[1].fields[0])
        return None if stored is None else (stored[0], Term(stored[1], scale))

    def _stored(self, expr: relax.Expr) -> tuple[relax.Expr, int] | None:
        """The int8 tensor from which a zero point is subtracted in int32, and that."""
        value, zero_point = self._value(expr), 0
        if op_name(value) == "relax.subtract":
            constant = array_of(value.args[1])
            if constant is None or constant.size != 1:
                return None
            zero_point, value = int(constant.reshape(-1)[0]), self._value(value.args[0])
        if op_name(value) != "relax.astype" or str(value.args[0].ty.dtype) != "int8":
            return None
        return value.args[0], zero_point

    def _magnitude(self, expr: relax.Expr) -> int:
        """A bound of an integer tensor's elements."""
        value = self._value(expr)
        constant = array_of(value)
        if constant is not None:
            return int(np.abs(constant.astype(np.int64)).max(initial=0))
        limit = {"int8": STORED, "uint8": 255, "int16": 1 << 15}.get(str(expr.ty.dtype), UNKNOWN)
        name = op_name(value)
        if name == "relax.astype":
            return min(limit, self._magnitude(value.args[0]))
        if name in ("relax.add", "relax.subtract"):
            return min(limit, sum(self._magnitude(arg) for arg in value.args))
        if name == "relax.left_shift":
            return min(limit, self._magnitude(value.args[0]) << min(31, self._magnitude(value.args[1])))
        if is_kernel(value):
            _, weight, bias = value.args[1].fields
            added = np.abs(np.asarray(array_of(bias)).astype(np.int64))
            return int((STORED * channel_sums(np.asarray(array_of(weight)))[: added.size] + added).max(initial=0))
        if name == "relax.call_tir" and _name(value).startswith(_VECTOR_KERNELS):
            _, weight, *corrections = value.args[1].fields
            return _largest_sum(np.asarray(array_of(weight))) + sum(map(self._magnitude, corrections))
        return self.bounds.get(_name(value), limit) if name == "relax.call_tir" else limit


def _name(call: Call) -> str:
    return str(call.args[0].name_hint)


def _along_channels(call: Call, factor: Array) -> bool:
    return factor.size == 1 or int(call.ty.shape[-1]) == factor.size == factor.shape[-1]


def _largest_sum(packed: Array) -> int:
    """A bound of the sums over weights [..., lanes, depth] in int, or [..., lanes] in float, and bytes."""
    wide = np.abs(packed.astype(np.int64))
    kept = (0, wide.ndim - (1 if packed.dtype == np.float32 else 2))
    return LARGEST * int(wide.sum(axis=tuple(axis for axis in range(wide.ndim) if axis not in kept)).max(initial=0))


def channel_sums(packed: Array) -> Array:
    """The sum of the magnitudes of each channel's stored weights: two-digit ones, chunks, or a depthwise kernel's."""
    wide = packed.astype(np.int64)
    if packed.ndim == 3:
        sums = np.abs(wide).sum(axis=2) if packed.dtype == np.int8 else np.abs(wide).sum(axis=(1, 2))
    elif packed.ndim == 4:
        sums = np.abs(wide).sum(axis=(1, 2, 3))
    elif packed.dtype == np.int8:
        sums = np.abs(wide).sum(axis=(1, 2, 4))
    else:
        low = packed.astype(np.int8).astype(np.int64)
        sums = np.stack([np.abs(digit).sum(axis=(1, 2, 4)) for digit in (low, (wide - low) >> 8)], axis=-1)
    return np.asarray(sums.reshape(-1))


def scaled_in_32_bits() -> tvm.ir.transform.Pass:
    """Pass: sums are scaled in 32 bits, where they are small enough for that."""
    return per_function(_Scaling, "ScaledIn32Bits")
