"""What an integer kernel computes: convolutions and products of 8-bit tensors, summed exactly in int32.

Like the float kernels of `compute`, behind a stage `pad` that every integer kernel has: it brings the activations into
the form that the target's dot-product instruction takes, with the zero point where a window leaves the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr

from deploy.kernels.compute import ROLE, Operand, Window, clamped, filled, unpack
from deploy.kernels.dot import DotProduct, intrinsic_name

DOT = "deploy.dot"  # names the instruction of an accumulation
PIXEL = "deploy.pixel"  # elements of one pixel in a row of operands


@dataclass(frozen=True)
class Sums:
    """Output channels, what is multiplied with the weights, and the instruction that does it."""

    channels: int
    operand: Operand
    dot: DotProduct


def operand_for(dot: DotProduct, stored: str, zero_point: int) -> Operand:
    """What an instruction multiplies: for unsigned bytes an int8 is moved by 128, for int16 to its zero point."""
    if dot.data == "int16":
        return Operand("int16", -zero_point, 0)
    shift = dot.offset if stored == "int8" else 0
    return Operand(dot.data, shift, zero_point + shift)


def float_operand(zero_point: int) -> Operand:
    """float32 holds every sum of up to 500 products of 8-bit numbers exactly."""
    return Operand("float32", -zero_point, 0)


def _rows(data: te.Tensor, window: Window, operand: Operand, length: int) -> te.Tensor:
    """data [N, H, W, C] → operands [N, padded H, length]: a row's pixels one after the other."""
    top, left, _, _ = window.padding
    batch, height, width, channels = (int(d) for d in data.shape)
    border = tirx.const(operand.border, operand.dtype)

    def value(n: Expr, h: Expr, j: Expr) -> Expr:
        w = j // channels
        within = tirx.all(h >= top, h < height + top, w >= left, w < width + left)
        return tirx.if_then_else(within, operand.of(data[n, h - top, w - left, j % channels]), border)

    shape = (batch, window.padded((height, width))[0], length)
    return te.compute(shape, value, name="pad", attrs={ROLE: "pad", PIXEL: channels})


def quantized_conv2d(
    data: te.Tensor, weight: te.Tensor, correction: te.Tensor, kernel_w: int, window: Window, sums: Sums
) -> te.Tensor:
    """Convolution without horizontal dilation: [N, H, W, CI], [CO/L, KH, KW*CI/G, L, G], [CO] → int32 [N, OH, OW, CO].

    The taps of a kernel's row and their channels lie next to each other in a row of the image, so they are one axis.
    """
    blocks, kernel_h, groups, lanes, depth = (int(d) for d in weight.shape)
    batch, height, width, in_channels = (int(d) for d in data.shape)
    out_h, out_w = window.output((height, width), (kernel_h, kernel_w))
    (sh, sw), dh = window.stride, window.dilation[0]
    step = sw * in_channels
    row = window.padded((height, width))[1] * in_channels
    operands = _rows(data, window, sums.operand, max(row, (out_w - 1) * step + groups * depth))
    kh = te.reduce_axis((0, kernel_h), "kh")
    group, g = te.reduce_axis((0, groups), "j"), te.reduce_axis((0, depth), "g")

    def total(n: Expr, h: Expr, w: Expr, o: Expr, i: Expr) -> Expr:
        value = operands[n, h * sh + kh * dh, clamped(w, out_w) * step + group * depth + g]
        return te.sum(value.astype("int32") * weight[o, kh, group, i, g].astype("int32"), axis=[kh, group, g])

    attrs = {ROLE: "accumulate", DOT: intrinsic_name(sums.dot)}
    acc = te.compute((batch, out_h, filled(out_w), blocks, lanes), total, name="acc", attrs=attrs)
    return unpack(acc, (batch, out_h, out_w, sums.channels), correction)


def quantized_matmul(data: te.Tensor, weight: te.Tensor, correction: te.Tensor, sums: Sums) -> te.Tensor:
    """Product with a constant matrix: data [..., K], weight [N/L, K/G, L, G], correction [N] → int32 [..., N]."""
    blocks, groups, lanes, depth = (int(d) for d in weight.shape)
    *batch, rows, size = (int(d) for d in data.shape)
    border = tirx.const(0, sums.operand.dtype)

    def value(*i: Expr) -> Expr:
        if size == groups * depth:
            return sums.operand.of(data[i])
        return tirx.if_then_else(i[-1] < size, sums.operand.of(data[i]), border)

    operands = te.compute((*batch, rows, groups * depth), value, name="pad", attrs={ROLE: "pad"})
    group, g = te.reduce_axis((0, groups), "j"), te.reduce_axis((0, depth), "g")

    def total(*i: Expr) -> Expr:
        left = operands[(*i[:-3], clamped(i[-3], rows), group * depth + g)]
        return te.sum(left.astype("int32") * weight[i[-2], group, i[-1], g].astype("int32"), axis=[group, g])

    attrs = {ROLE: "accumulate", DOT: intrinsic_name(sums.dot)}
    acc = te.compute((*batch, filled(rows), blocks, lanes), total, name="acc", attrs=attrs)
    return unpack(acc, (*batch, rows, sums.channels), correction)
