"""Integer convolutions and products with constant weights → packed kernels around a dot-product instruction.

The integer form of a model subtracts the zero point from an activation in int16 and convolves that with int8 weights.
A kernel takes the stored activation instead and corrects its sums by what the zero point adds to each channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, te, topi
from tvm.ir import Call, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from deploy.kernels import compute, packing, quantized
from deploy.kernels.dot import DotProduct
from deploy.kernels.legalize import as_hwio, emit, four, pair
from deploy.kernels.machine import Machine
from deploy.relax_rewrite import array_of, op_name, per_function

EXACT_FLOAT = 2**24  # whole numbers up to here are exact in float32
LARGEST_PRODUCT = 255 * 128


@dataclass(frozen=True)
class Stored:
    """An activation as it lies in memory: the real operand is tensor - zero_point."""

    tensor: relax.Expr
    zero_point: int

    @property
    def dtype(self) -> str:
        """int8 or uint8."""
        return str(self.tensor.ty.dtype)


def stored_operand(value_of: Callable[[relax.Expr], Any], operand: relax.Expr) -> Stored | None:
    """The 8-bit tensor that an int16 operand is made from, and the zero point that was subtracted."""
    value, zero_point = value_of(operand), 0
    if op_name(value) == "relax.subtract":
        constant = array_of(value.args[1])
        if constant is None or constant.size != 1:
            return None
        zero_point, value = int(constant.reshape(-1)[0]), value_of(value.args[0])
    if op_name(value) != "relax.astype" or str(value.args[0].ty.dtype) not in ("int8", "uint8"):
        return None
    return Stored(value.args[0], zero_point)


def dot_weights(taps: npt.NDArray[np.generic], dot: DotProduct) -> npt.NDArray[np.generic]:
    """[..., K, CO] → [CO/L, ..., K/G, L, G], what is missing filled with zeros."""
    *outer, size, channels = taps.shape
    more = [(0, 0)] * len(outer) + [(0, -size % dot.depth), (0, -channels % dot.lanes)]
    filled = np.pad(taps, more).astype(dot.weight)
    groups, blocks = filled.shape[-2] // dot.depth, filled.shape[-1] // dot.lanes
    split = filled.reshape(*outer, groups, dot.depth, blocks, dot.lanes)
    n = len(outer)
    order = [n + 2, *range(n), n, n + 3, n + 1]
    return np.ascontiguousarray(split.transpose(order))


def widening_multiply(left: te.Tensor, right: te.Tensor) -> te.Tensor:
    """int64 left * int32 right."""
    return topi.multiply(left, topi.cast(right, "int64"))


@mutator
class _Quantized(PyExprMutator):  # type: ignore[misc]
    """Replaces what a kernel computes; the rest keeps its operators."""

    def __init__(self, mod: IRModule, machine: Machine) -> None:
        super().__init__(mod)
        self.machine = machine

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        rewrite = {"relax.nn.conv2d": self._conv2d, "relax.matmul": self._matmul}.get(op_name(call))
        if rewrite is None or str(call.ty.dtype) != "int32":
            return call
        stored = stored_operand(self._value, call.args[0])
        weight = array_of(call.args[1])
        if stored is None or weight is None or weight.dtype.name not in ("int8", "int16"):
            return call
        changed = rewrite(call, stored, weight)
        return call if changed is None else changed

    def _value(self, expr: relax.Expr) -> Any:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else None

    def _sums(self, function, stored: Stored, taps: npt.NDArray[np.generic], **sizes: object) -> relax.Expr | None:  # type: ignore[no-untyped-def]
        """A kernel over `taps` [..., K, CO]: packed weights, and the zero point's share of each channel's sum."""
        dot = self.machine.dot(taps.dtype.name)
        if dot is None:
            return None
        operand = quantized.operand_for(dot, stored.dtype, stored.zero_point)
        total = taps.astype(np.int64).sum(axis=tuple(range(taps.ndim - 1)))
        correction = (-(operand.shift + stored.zero_point) * total).astype(np.int32)
        packed = relax.const(dot_weights(taps, dot))
        sums = quantized.Sums(taps.shape[-1], operand, dot)
        return emit(self.builder_, function, stored.tensor, packed, relax.const(correction), sums=sums, **sizes)

    def _matmul(self, call: Call, stored: Stored, weight: npt.NDArray[np.generic]) -> relax.Expr | None:
        if weight.ndim != 2 or len(stored.tensor.ty.shape) < 2:
            return None
        return self._sums(quantized.quantized_matmul, stored, weight)

    def _conv2d(self, call: Call, stored: Stored, weight: npt.NDArray[np.generic]) -> relax.Expr | None:
        attrs, groups = call.attrs, int(call.attrs.groups)
        if attrs.data_layout != "NHWC" or attrs.out_layout not in ("", "NHWC"):
            return None
        kernel = as_hwio(weight, str(attrs.kernel_layout), groups)
        window = compute.Window(pair(attrs.strides), pair(attrs.dilation), four(attrs.padding))
        height, width, inputs, channels = kernel.shape
        if groups == 1 and (window.dilation[1] == 1 or width == 1):
            taps = kernel.reshape(height, width * inputs, channels)
            return self._sums(quantized.quantized_conv2d, stored, taps, kernel_w=width, window=window)
        vectors = self.machine.lanes(32) > 1  # one by one, floats are no faster, and without a unit for them slow
        if vectors and groups == channels and inputs == 1 and height * width * LARGEST_PRODUCT < EXACT_FLOAT:
            return self._depthwise(stored, kernel[:, :, 0, :], window)
        return None

    def _depthwise(self, stored: Stored, kernel: npt.NDArray[np.generic], window: compute.Window) -> relax.Expr | None:
        channels = kernel.shape[-1]
        if channels != int(stored.tensor.ty.shape[-1]):
            return None
        lanes = packing.dividing_lanes(channels, self.machine.lanes(32))
        packed = relax.const(packing.pack_channels(kernel.astype(np.float32), lanes))
        sizes = {"channels": channels, "window": window, "operand": quantized.float_operand(stored.zero_point)}
        return emit(self.builder_, compute.depthwise, stored.tensor, packed, **sizes)


def quantized_kernels(machine: Machine) -> tvm.ir.transform.Pass:
    """Pass: what integer kernels compute, in place of int16 convolutions and products."""

    return per_function(partial(_Quantized, machine=machine), "QuantizedKernels")


@mutator
class _Products(PyExprMutator):  # type: ignore[misc]
    """Replaces products of 64 bits by cheaper ones."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        is_wide = op_name(call) == "relax.multiply" and str(call.ty.dtype) == "int64"
        return self._widening(call) if is_wide else call

    def _widening(self, call: Call) -> relax.Expr:
        """A product with powers of two as a shift, one with 32-bit constants as such: 64 bits take a CPU longer."""
        left, right = call.args
        constants = array_of(right)
        if constants is None or constants.size == 0:
            return call
        values = constants.astype(np.int64)
        if values.min() > 0 and not np.any(values & (values - 1)):
            places = np.log2(values.astype(np.float64)).astype(np.int64)
            return relax.op.left_shift(left, relax.const(places, "int64"))
        if np.abs(values).max() > np.iinfo(np.int32).max:
            return call
        return self.builder_.call_te(widening_multiply, left, relax.const(values.astype(np.int32), "int32"))


def cheaper_products() -> tvm.ir.transform.Pass:
    """Pass: 64-bit products with constants as shifts, or as products with 32-bit numbers."""
    return per_function(_Products, "CheaperProducts")
