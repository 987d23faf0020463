"""What an integer kernel computes, in the form that the micro-kernels of `helium` and `portable` take.

Stages as in `compute`; activations stay int8 and are only copied, because a window's taps have to lie in one row.
"""

from __future__ import annotations

from math import prod

from tvm import te
from tvm.ir import Expr

from deploy.kernels.compute import ROLE, Window
from deploy.kernels.micro.compute import Depthwise, facts, image_rows, pixel_of, pixel_row
from deploy.kernels.micro.helium import HeliumKernel
from deploy.kernels.micro.portable import PortableKernel

RowKernel = HeliumKernel | PortableKernel
DEPTHWISE = "deploy.portable_depthwise"  # annotates its sums: columns, kernel height and width, strides, block, turned


def row_conv2d(
    data: te.Tensor, weight: te.Tensor, bias: te.Tensor, window: Window, border: int, kernel: RowKernel
) -> te.Tensor:
    """[N, H, W, CI], weights [CO/C, KH, taps/L, C, L], [CO] → int32 [N, OH, OW, CO]; no dilation in width.

    border: the stored activation that lies around the image. L: lanes of the kernel.
    """
    batch, height, width, inputs = (int(d) for d in data.shape)
    (sh, _), dh = window.stride, window.dilation[0]
    out_h, out_w = window.output((height, width), (kernel.rows, kernel.taps // inputs))
    filled = -(-out_w // kernel.pixels) * kernel.pixels
    length = max(window.padded((height, width))[1] * inputs, (filled - 1) * kernel.step + kernel.taps)
    rows = image_rows(data, window, length, border, "int8")
    taps = [te.reduce_axis((0, kernel.rows), "kh")] if kernel.rows > 1 else []
    k = te.reduce_axis((0, kernel.taps), "k")

    def total(n: Expr, h: Expr, w: Expr, o: Expr) -> Expr:
        kh = taps[0] if taps else 0
        left_side = rows[n, h * sh + kh * dh, w * kernel.step + k].astype("int32")
        return te.sum(left_side * _weight(weight, kernel, o, kh, k), axis=[*taps, k])

    attrs = facts("accumulate", kernel.mark, *kernel.sizes, dh)
    acc = te.compute((batch, out_h, filled, kernel.total), total, name="acc", attrs=attrs)
    return te.compute(
        (batch, out_h, out_w, int(bias.shape[0])),
        lambda n, h, w, c: acc[n, h, w, c] + bias[c],
        name="unpack",
        attrs={ROLE: "unpack"},
    )


def row_product(data: te.Tensor, weight: te.Tensor, bias: te.Tensor, kernel: RowKernel) -> te.Tensor:
    """[..., K], weights [CO/C, 1, K/L, C, L], [CO] → int32 [..., CO]: all pixels as one row. L: lanes of the kernel."""
    *outer, size = (int(d) for d in data.shape)
    filled = -(-prod(outer) // kernel.pixels) * kernel.pixels
    rows = pixel_row(data, filled * size, "int8")
    k = te.reduce_axis((0, size), "k")

    def total(w: Expr, o: Expr) -> Expr:
        left_side = rows[0, w * size + k].astype("int32")
        return te.sum(left_side * _weight(weight, kernel, o, 0, k), axis=[k])

    attrs = facts("accumulate", kernel.mark, *kernel.sizes, 1)
    acc = te.compute((filled, kernel.total), total, name="acc", attrs=attrs)
    return te.compute(
        (*outer, int(bias.shape[0])),
        lambda *at: acc[pixel_of(outer, at[:-1]), at[-1]] + bias[at[-1]],
        name="unpack",
        attrs={ROLE: "unpack"},
    )


def portable_depthwise(
    data: te.Tensor, weight: te.Tensor, bias: te.Tensor, layer: Depthwise, block: int
) -> te.Tensor:
    """[N, H, W, C], taps [C, 1, KH, KW], [C] → int32 [N, OH, OW, C], channel by channel; no dilation.

    block: sums that are kept in registers.
    """
    (kernel_h, kernel_w), (sh, sw) = layer.kernel, layer.window.stride
    out_h, out_w = layer.output(data)
    plane = layer.planes(data, out_w, "int8")
    axes = [te.reduce_axis((0, extent), name) for name, extent in (("kh", kernel_h), ("kw", kernel_w)) if extent > 1]

    def total(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        taps = {axis.var.name: axis.var for axis in axes}
        kh, kw = taps.get("kh", 0), taps.get("kw", 0)
        left_side = plane[n, c, h * sh + kh, w * sw + kw].astype("int32")
        return te.sum(left_side * weight[c, 0, kh, kw].astype("int32"), axis=axes)

    attrs = facts("accumulate", DEPTHWISE, out_w, kernel_h, kernel_w, sh, sw, block, int(layer.turned))
    acc = te.compute((int(data.shape[0]), int(data.shape[3]), out_h, out_w), total, name="acc", attrs=attrs)
    return layer.unpacked(acc, bias, out_w)


def _weight(weight: te.Tensor, kernel: RowKernel, channel: Expr, row: Expr | int, tap: Expr) -> Expr:
    block, lane = channel // kernel.channels, channel % kernel.channels
    if kernel.together:
        row, tap = 0, row * kernel.taps + tap
    return weight[block, row, tap // kernel.lanes, lane, tap % kernel.lanes].astype("int32")
