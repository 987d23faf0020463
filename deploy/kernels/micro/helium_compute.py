"""What a depthwise kernel computes on a core with Helium, in the form that its micro-kernels take."""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from deploy.kernels.compute import ROLE, Window
from deploy.kernels.micro.compute import PLANE, facts
from deploy.kernels.micro.helium_depthwise import GROUP

GATHERED = "deploy.gathered"  # annotates a depthwise kernel's sums: columns, kernel height and width, strides


def helium_depthwise(
    data: te.Tensor, weight: te.Tensor, bias: te.Tensor, size: tuple[int, int], window: Window, border: int
) -> te.Tensor:
    """[N, H, W, C], weights [C/4, 4, 16], [C] → int32 [N, OH, OW, C], four channels at a time; no dilation.

    size: of the kernel.
    """
    batch, height, width, channels = (int(d) for d in data.shape)
    (kernel_h, kernel_w), (sh, sw), (top, left) = size, window.stride, window.padding[:2]
    out_h, out_w = window.output((height, width), size)

    def copied(n: Expr, o: Expr, i: Expr, h: Expr, j: Expr) -> Expr:
        within = tirx.all(h >= top, h < height + top, j >= left, j < width + left)
        return tirx.if_then_else(within, data[n, h - top, j - left, o * GROUP + i], tirx.const(border, "int8"))

    shape = (batch, channels // GROUP, GROUP, (out_h - 1) * sh + kernel_h, (out_w - 1) * sw + kernel_w)
    attrs = facts("pad", PLANE, height, width, channels, top, left, border)
    planes = te.compute(shape, copied, name="pad", attrs=attrs)
    axes = [te.reduce_axis((0, extent), name) for name, extent in (("kh", kernel_h), ("kw", kernel_w)) if extent > 1]

    def total(n: Expr, o: Expr, h: Expr, w: Expr, i: Expr) -> Expr:
        taps = {axis.var.name: axis.var for axis in axes}
        kh, kw = taps.get("kh", 0), taps.get("kw", 0)
        left_side = planes[n, o, i, h * sh + kh, w * sw + kw].astype("int32")
        return te.sum(left_side * weight[o, i, kh * kernel_w + kw].astype("int32"), axis=axes)

    attrs = facts("accumulate", GATHERED, out_w, kernel_h, kernel_w, sh, sw)
    acc = te.compute((batch, channels // GROUP, out_h, out_w, GROUP), total, name="acc", attrs=attrs)
    return te.compute(
        (batch, out_h, out_w, channels),
        lambda n, h, w, c: acc[n, c // GROUP, h, w, c % GROUP] + bias[c],
        name="unpack",
        attrs={ROLE: "unpack"},
    )
