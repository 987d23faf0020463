"""Integer convolutions and products → kernels around the micro-kernels of a microcontroller.

The zero point's share of a sum and the layer's bias become one constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from deploy.kernels.compute import Window
from deploy.kernels.legalize import as_hwio, emit, four, pair
from deploy.kernels.legalize_quantized import Stored, stored_operand
from deploy.kernels.machine import Machine
from deploy.kernels.micro import compute, helium, helium_compute, portable, rows
from deploy.kernels.micro.helium_depthwise import GROUP, fits, stored_taps
from deploy.kernels.micro.smlad import two_digits
from deploy.kernels.micro.smlad_depthwise import Taps
from deploy.relax_rewrite import array_of, op_name, per_function, shape_of

Array = npt.NDArray[Any]
STORED = 128  # the largest magnitude of an int8
UNKNOWN = 1 << 31
_KERNELS = (
    "micro_conv2d", "micro_product", "micro_depthwise", "row_conv2d", "row_product", "helium_depthwise",
    "portable_depthwise",
)  # fmt: skip


@mutator
class _Micro(PyExprMutator):  # type: ignore[misc]
    """Replaces what a micro-kernel computes; the rest keeps its operators."""

    def __init__(self, mod: IRModule, machine: Machine) -> None:
        super().__init__(mod)
        self.machine = machine

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        rewrite = {
            "relax.nn.conv2d": self._conv2d,
            "relax.matmul": self._matmul,
            "relax.add": self._bias,
            "relax.sum": self._sum,
        }.get(op_name(call))
        changed = None if rewrite is None else rewrite(call)
        return call if changed is None else changed

    def _value(self, expr: relax.Expr) -> Any:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr

    def _operands(self, call: Call) -> tuple[Stored, Array] | None:
        """The stored activation and the constant weight of an operator, where both are int8."""
        stored, weight = stored_operand(self._value, call.args[0]), array_of(call.args[1])
        if stored is None or stored.dtype != "int8" or weight is None or weight.dtype != np.int8:
            return None
        return stored, weight

    def _conv2d(self, call: Call) -> relax.Expr | None:
        attrs, groups, operands = call.attrs, int(call.attrs.groups), self._operands(call)
        if attrs.data_layout != "NHWC" or attrs.out_layout not in ("", "NHWC") or str(call.ty.dtype) != "int32":
            return None
        if operands is None:
            return None
        stored, weight = operands
        kernel = as_hwio(weight, str(attrs.kernel_layout), groups)
        window = Window(pair(attrs.strides), pair(attrs.dilation), four(attrs.padding))
        height, width, inputs, channels = kernel.shape
        if groups > 1:
            return self._depthwise(stored, kernel[:, :, 0, :], window) if inputs == 1 and groups == channels else None
        taps = kernel.reshape(height, width * inputs, channels)
        if (height, width) == (1, 1) and window == Window():
            return self._product(stored, taps, prod(shape_of(call)[:-1]))
        if window.dilation[1] > 1 and width > 1:
            return None
        pixels = shape_of(call)[2]
        if self.machine.micro != "dsp":
            pitch = window.dilation[0] * inputs * window.padded(shape_of(stored.tensor)[1:3])[1]
            kernel_, packed = self._rows(taps, pixels, window.stride[1] * inputs, pitch)
            sizes = {"window": window, "border": stored.zero_point, "kernel": kernel_}
            return self._sums(rows.row_conv2d, stored, taps, packed, **sizes)
        blocks = _blocks(pixels, channels)
        sizes = {"kernel_w": width, "window": window, "border": stored.zero_point, "blocks": blocks}
        return self._sums(compute.micro_conv2d, stored, taps, two_digits(taps, blocks.channels, STORED), **sizes)

    def _product(self, stored: Stored, taps: Array, pixels: int) -> relax.Expr | None:
        """Products of pixels with `taps` [1, K, CO]."""
        _, size, channels = taps.shape
        if size * channels * pixels == 1:
            return None
        if self.machine.micro != "dsp":
            kernel, packed = self._rows(taps, pixels, size, 0)
            return self._sums(rows.row_product, stored, taps, packed, kernel=kernel)
        blocks = _blocks(pixels, channels)
        return self._sums(compute.micro_product, stored, taps, two_digits(taps, blocks.channels, STORED), blocks=blocks)

    def _rows(self, taps: Array, pixels: int, step: int, pitch: int) -> tuple[rows.RowKernel, Array]:
        """The micro-kernel for a row of `pixels` and `taps` [rows, K, CO], and the taps as it reads them."""
        height, size, channels = taps.shape
        if self.machine.micro == "helium":
            vectors = helium.blocking(pixels, channels, height, size, step, pitch)
            stored = taps.reshape(1, -1, channels) if vectors.together else taps
            return vectors, helium.chunked(stored, vectors.channels)
        block = portable.blocking(pixels, channels, height, size, step, self.machine.registers)
        return block, portable.in_blocks(taps, block.channels)

    def _depthwise(self, stored: Stored, kernel: Array, window: Window) -> relax.Expr | None:
        """A kernel over `kernel` [KH, KW, C], or nothing where no micro-kernel has its window."""
        _, _, image_width, channels = shape_of(stored.tensor)
        turned = kernel.shape[1] == image_width == 1
        if turned:  # pairs of neighbours are found along a row only
            kernel, window = kernel.transpose(1, 0, 2), _turned(window)
        height, width, _ = kernel.shape
        if window.dilation != (1, 1) or kernel.shape[2] != channels:
            return None
        bias = (-stored.zero_point * kernel.astype(np.int64).sum(axis=(0, 1))).astype(np.int32)
        bias, layer = relax.const(bias), compute.Depthwise((height, width), window, stored.zero_point, turned)
        if self._gathers(kernel, window, shape_of(stored.tensor)) and not turned:
            sizes = {"size": (height, width), "window": window, "border": stored.zero_point}
            weights = relax.const(stored_taps(kernel))
            return emit(self.builder_, helium_compute.helium_depthwise, stored.tensor, weights, bias, **sizes)
        if self.machine.micro == "plain":
            return self._portable_depthwise(stored, kernel, bias, layer)
        if width < 2 or window.stride[1] > 2:
            return None
        taps = relax.const(Taps(width, window.stride[1]).stored(kernel.transpose(2, 0, 1)))
        return emit(self.builder_, compute.micro_depthwise, stored.tensor, taps, bias, layer=layer)

    def _portable_depthwise(
        self, stored: Stored, kernel: Array, bias: relax.Expr, layer: compute.Depthwise
    ) -> relax.Expr | None:
        height, width, _ = kernel.shape
        if height * width == 1:
            return None
        axis = 1 if layer.turned else 2
        image, taps = shape_of(stored.tensor), relax.const(np.ascontiguousarray(kernel.transpose(2, 0, 1)[:, None]))
        columns = layer.window.output((1, image[axis]), (1, width))[1]
        block = portable.sums_in_registers(columns, width, self.machine.registers)
        return emit(self.builder_, rows.portable_depthwise, stored.tensor, taps, bias, layer=layer, block=block)

    def _gathers(self, kernel: Array, window: Window, image: Sequence[int]) -> bool:
        """Whether one gathering load takes all taps of a window."""
        height, width, channels = kernel.shape
        columns = window.output((image[1], image[2]), (height, width))[1]
        whole = channels % GROUP == 0 and height * width > 1
        return self.machine.micro == "helium" and whole and fits(height, width, columns, window.stride[1])

    def _matmul(self, call: Call) -> relax.Expr | None:
        operands = self._operands(call)
        if operands is None or operands[1].ndim != 2:
            return None
        stored, weight = operands
        return self._product(stored, weight[None], prod(shape_of(call)[:-1]))

    def _sums(
        self, function: Any, stored: Stored, taps: Array, packed: Array | None, **sizes: object
    ) -> relax.Expr | None:
        """A kernel over `taps` [rows, k, CO], stored as `packed`, or nothing where they cannot be stored."""
        if packed is None:
            return None
        bias = (-stored.zero_point * taps.astype(np.int64).sum(axis=(0, 1))).astype(np.int32)
        return emit(self.builder_, function, stored.tensor, relax.const(packed), relax.const(bias), **sizes)

    def _sum(self, call: Call) -> relax.Expr | None:
        """A sum that widens what it reads: on its own the wide tensor would be four times as large, and in memory."""
        wide = self._value(call.args[0])
        if op_name(wide) != "relax.astype" or call.attrs.axis is None:
            return None
        while op_name(narrow := self._value(wide.args[0])) == "relax.astype" and _widens(narrow):
            wide = narrow
        axes, keep = [int(axis) for axis in call.attrs.axis], bool(call.attrs.keepdims)
        return self.builder_.call_te(compute.wide_sum, wide.args[0], axes=axes, keepdims=keep, dtype=str(call.ty.dtype))

    def _bias(self, call: Call) -> relax.Expr | None:
        """The kernel whose sums `call` adds constants to, with those in its bias."""
        kernel, added = self._value(call.args[0]), array_of(call.args[1])
        if added is None or not is_kernel(kernel):
            return None
        data, weight, bias = kernel.args[1].fields
        size = int(bias.ty.shape[0])
        if added.dtype != np.int32 or added.size not in (1, size) or (added.ndim and added.shape[-1] != added.size):
            return None
        total = np.asarray(array_of(bias)).astype(np.int64) + added.reshape(-1)
        if np.abs(total).max(initial=0) >= UNKNOWN:
            return None
        fields = relax.Tuple([data, weight, relax.const(total.astype(np.int32))])
        return Call(kernel.op, [kernel.args[0], fields], kernel.attrs, kernel.ty_args)


def _blocks(pixels: int, channels: int) -> compute.Blocks:
    """Pixels and channels that a micro-kernel of `smlad` sums at once."""
    return compute.Blocks(channels, 2, 4) if pixels > 1 else compute.Blocks(channels, 1, 8 if channels > 4 else 4)


def _turned(window: Window) -> Window:
    """Rows for columns."""
    top, left, bottom, right = window.padding
    return Window(window.stride[::-1], window.dilation[::-1], (left, top, right, bottom), window.spread[::-1])


def _widens(cast: Call) -> bool:
    """Whether a change of type keeps every integer."""
    return str(cast.args[0].ty.dtype) == "int8" and str(cast.ty.dtype) in ("int16", "int32")


def is_kernel(value: Any) -> bool:
    """Whether a call is one of those kernels: its operands are data, weights and bias."""
    return op_name(value) == "relax.call_tir" and str(value.args[0].name_hint).startswith(_KERNELS)


def micro_kernels(machine: Machine) -> tvm.ir.transform.Pass:
    """Pass: what micro-kernels compute, in place of int16 convolutions and products."""
    return per_function(partial(_Micro, machine=machine), "MicroKernels")
