"""What an integer kernel computes: convolutions and products of int8 tensors, summed exactly.

Like the float kernels of `compute`, with a stage in front that every integer kernel has: `pad` brings the activations
into the form that the target's dot-product instruction takes, and puts the zero point where the window leaves the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx

from deploy.kernels.compute import ROLE, Window, depthwise, unpack
from deploy.kernels.dot import DotProduct, intrinsic_name

DOT = "deploy.dot"


@dataclass(frozen=True)
class Activation:
    """How a stored activation becomes an operand: `operand = stored + shift`, of type `dtype`.

    border: the operand outside the image, where the stored value would be the zero point.
    """

    dtype: str
    shift: int
    border: int

    @classmethod
    def for_dot(cls, dot: DotProduct, stored: str, zero_point: int) -> Activation:
        """For an instruction that takes unsigned bytes, an int8 is moved by 128; one that takes int16, to its zero."""
        if dot.data == "int16":
            return cls("int16", -zero_point, 0)
        shift = dot.offset if stored == "int8" else 0
        return cls(dot.data, shift, zero_point + shift)

    @classmethod
    def as_float(cls, zero_point: int) -> Activation:
        """float32 holds every sum of an int8 kernel of up to 500 products exactly."""
        return cls("float32", -zero_point, 0)

    def correction(self, zero_point: int) -> int:
        """What the sum of an output's weights is multiplied with, to be added to the sum over operands."""
        return -(self.shift + zero_point)

    def convert(self, stored: tirx.PrimExpr) -> tirx.PrimExpr:
        """The operand for a stored value."""
        return (stored.astype("int16") + tirx.const(self.shift, "int16")).astype(self.dtype)


def rows(data: te.Tensor, window: Window, activation: Activation, length: int) -> te.Tensor:
    """data [N, H, W, C] → operands [N, padded H, length], a row's pixels one after the other; zeros fill the rest."""
    top, left, _, _ = window.padding
    batch, height, width, channels = (int(d) for d in data.shape)
    padded_height, padded_width = window.padded((height, width))
    border = tirx.const(activation.border, activation.dtype)

    def operand(n, h, j):  # type: ignore[no-untyped-def]
        w = j // channels
        within = [h >= top, h < height + top, w >= left, w < width + left]
        value = activation.convert(data[n, h - top, w - left, j % channels])
        return tirx.if_then_else(tirx.all(*within), value, border)

    del padded_width
    return te.compute((batch, padded_height, length), operand, name="pad", attrs={ROLE: "pad"})


def conv2d(
    data: te.Tensor, weight: te.Tensor, correction: te.Tensor, *,
    channels: int, kernel: tuple[int, int], window: Window, activation: Activation, dot: DotProduct,
) -> te.Tensor:  # fmt: skip
    """Convolution without horizontal dilation: [N, H, W, CI], [CO/L, KH, KW*CI/G, L, G], [CO] → int32 [N, OH, OW, CO].

    The taps of one kernel row and their channels lie next to each other in a row of the image, so they are one axis.
    """
    blocks, kernel_h, groups, lanes, depth = (int(d) for d in weight.shape)
    batch, height, width, in_channels = (int(d) for d in data.shape)
    out_h, out_w = window.output((height, width), kernel)
    (sh, sw), (dh, _) = window.stride, window.dilation
    length = max((out_w - 1) * sw * in_channels + groups * depth, window.padded((height, width))[1] * in_channels)
    operands = rows(data, window, activation, length)
    kh, group, g = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, groups), "group"), te.reduce_axis((0, depth), "g")
    acc = te.compute(
        (batch, out_h, out_w, blocks, lanes),
        lambda n, h, w, o, i: te.sum(
            operands[n, h * sh + kh * dh, w * (sw * in_channels) + group * depth + g].astype("int32")
            * weight[o, kh, group, i, g].astype("int32"),
            axis=[kh, group, g],
        ),
        name="acc",
        attrs={ROLE: "accumulate", DOT: intrinsic_name(dot)},
    )
    return unpack(acc, (batch, out_h, out_w, channels), correction)


def matmul(
    data: te.Tensor, weight: te.Tensor, correction: te.Tensor, *,
    channels: int, activation: Activation, dot: DotProduct,
) -> te.Tensor:  # fmt: skip
    """Product with a constant matrix: data [..., K], weight [N/L, K/G, L, G], correction [N] → int32 [..., N]."""
    blocks, groups, lanes, depth = (int(d) for d in weight.shape)
    *leading, size = (int(d) for d in data.shape)
    border = tirx.const(0, activation.dtype)

    def operand(*i):  # type: ignore[no-untyped-def]
        value = activation.convert(data[i])
        return value if size == groups * depth else tirx.if_then_else(i[-1] < size, value, border)

    operands = te.compute((*leading, groups * depth), operand, name="pad", attrs={ROLE: "pad"})
    group, g = te.reduce_axis((0, groups), "group"), te.reduce_axis((0, depth), "g")
    acc = te.compute(
        (*leading, blocks, lanes),
        lambda *i: te.sum(
            operands[(*i[:-2], group * depth + g)].astype("int32") * weight[i[-2], group, i[-1], g].astype("int32"),
            axis=[group, g],
        ),
        name="acc",
        attrs={ROLE: "accumulate", DOT: intrinsic_name(dot)},
    )
    return unpack(acc, (*leading, channels), correction)


def depthwise_exact(data: te.Tensor, weight: te.Tensor, *, channels: int, window: Window, zero_point: int) -> te.Tensor:
    """Depthwise convolution of int8 in float32, which is exact: data [N, H, W, C] → int32 [N, OH, OW, C].

    One multiply-add a tap and vector of channels; integers would need two instructions for it.
    """
    batch, height, width, _ = (int(d) for d in data.shape)
    activation = Activation.as_float(zero_point)
    padded_height, padded_width = window.padded((height, width))
    flat = rows(data, window, activation, padded_width * channels)
    del prod_check
    shape = (batch, padded_height, padded_width, channels)
    del shape, flat, weight
    return depthwise(data, weight, channels, window)
