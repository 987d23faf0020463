"""What a kernel computes, as tensor expressions over NHWC activations and packed weights.

Every kernel has two stages that the schedule finds by their `role`: `accumulate` reduces into
[pixels..., channel block, lane], and `unpack` brings the result back to the layer's own shape. A third,
`pad`, is there only where the window leaves the image. What fusion adds after `unpack` is element-wise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from tvm import te, tirx
from tvm.ir import Expr

ROLE = "deploy.role"
BLOCK_PIXELS = range(6, 17)


@dataclass(frozen=True)
class Window:
    """A convolution's geometry: stride, dilation (h, w) and padding (top, left, bottom, right), in pixels.

    spread: the input's pixels lie this far apart with zeros between them, as a transposed convolution has it.
    """

    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    spread: tuple[int, int] = (1, 1)

    def output(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Output height and width for an input `size` and a `kernel` size."""
        height, width = self.padded(size)
        rows = (height - self.dilation[0] * (kernel[0] - 1) - 1) // self.stride[0] + 1
        columns = (width - self.dilation[1] * (kernel[1] - 1) - 1) // self.stride[1] + 1
        return rows, columns

    def padded(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the input `size` with zeros between and around its pixels."""
        top, left, bottom, right = self.padding
        height, width = ((n - 1) * step + 1 for n, step in zip(size, self.spread, strict=True))
        return height + top + bottom, width + left + right


@dataclass(frozen=True)
class Operand:
    """How a stored activation becomes what a kernel multiplies: stored + shift, as `dtype`.

    border: the operand outside the image.
    """

    dtype: str
    shift: int
    border: int

    def of(self, stored: Expr) -> Expr:
        """The operand for a stored value."""
        return (stored.astype("int16") + tirx.const(self.shift, "int16")).astype(self.dtype)


def _role(name: str) -> dict[str, str]:
    return {ROLE: name}


def filled(pixels: int) -> int:
    """The smallest number, not below `pixels`, that register blocks of 6 to 16 pixels divide.

    The sums of the pixels beyond the last one are computed, from the last one again, and dropped: a prime number of
    pixels would otherwise leave one pixel to a block. Up to 16 pixels fit one block as they are.
    """
    if pixels <= max(BLOCK_PIXELS):
        return pixels
    return next(n for n in count(pixels) if any(n % size == 0 for size in BLOCK_PIXELS))


def clamped(position: Expr, pixels: int) -> Expr:
    """The position of a pixel on an axis that is `filled`, or the last one."""
    return position if filled(pixels) == pixels else tirx.min(position, pixels - 1)


def _padded(data: te.Tensor, window: Window, operand: Operand | None = None) -> te.Tensor:
    top, left, _, _ = window.padding
    if not any(window.padding) and window.spread == (1, 1) and operand is None:
        return data
    batch, height, width, channels = data.shape
    step_h, step_w = window.spread
    zero = tirx.const(operand.border, operand.dtype) if operand else tirx.const(0, data.dtype)

    def inside(n, h, w, c):  # type: ignore[no-untyped-def]
        rows, columns = (height - 1) * step_h + 1, (width - 1) * step_w + 1
        within = [h >= top, h < rows + top, w >= left, w < columns + left]
        within += [tirx.floormod(at, step) == 0 for at, step in ((h - top, step_h), (w - left, step_w)) if step > 1]
        source = data[n, tirx.floordiv(h - top, step_h), tirx.floordiv(w - left, step_w), c]
        return tirx.if_then_else(tirx.all(*within), operand.of(source) if operand else source, zero)

    return te.compute((batch, *window.padded((height, width)), channels), inside, name="pad", attrs=_role("pad"))


def conv2d(data: te.Tensor, weight: te.Tensor, channels: int, window: Window) -> te.Tensor:
    """Convolution: data [N, H, W, CI], weight [CO/L, KH, KW, CI, L] → [N, OH, OW, CO]."""
    blocks, kernel_h, kernel_w, in_channels, lanes = (int(d) for d in weight.shape)
    batch, height, width = (int(d) for d in data.shape[:3])
    if (kernel_h, kernel_w) == (1, 1) and window == Window():
        return _pointwise(data, weight, channels)
    out_h, out_w = window.output((height, width), (kernel_h, kernel_w))
    padded = _padded(data, window)
    kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
    ic = te.reduce_axis((0, in_channels), "ic")
    (sh, sw), (dh, dw) = window.stride, window.dilation
    acc = te.compute(
        (batch, out_h, filled(out_w), blocks, lanes),
        lambda n, h, w, o, i: te.sum(
            padded[n, h * sh + kh * dh, clamped(w, out_w) * sw + kw * dw, ic] * weight[o, kh, kw, ic, i],
            axis=[kh, kw, ic],
        ),
        name="acc",
        attrs=_role("accumulate"),
    )
    return unpack(acc, (batch, out_h, out_w, channels))


def _pointwise(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """1x1 convolution over all pixels as one axis, so that a register block may cross the end of a row."""
    blocks, _, _, in_channels, lanes = (int(d) for d in weight.shape)
    batch, height, width = (int(d) for d in data.shape[:3])
    area = height * width
    ic = te.reduce_axis((0, in_channels), "ic")

    def sums(position: Expr, o: Expr, i: Expr) -> Expr:
        p = clamped(position, batch * area)
        return te.sum(data[p // area, (p % area) // width, p % width, ic] * weight[o, 0, 0, ic, i], axis=[ic])

    shape = (filled(batch * area), blocks, lanes)
    acc = te.compute(shape, sums, name="acc", attrs=_role("accumulate"))
    return te.compute(
        (batch, height, width, channels),
        lambda n, h, w, c: acc[n * area + h * width + w, c // lanes, c % lanes],
        name="unpack",
        attrs=_role("unpack"),
    )


def depthwise(
    data: te.Tensor, weight: te.Tensor, channels: int, window: Window, operand: Operand | None = None
) -> te.Tensor:
    """Depthwise convolution: data [N, H, W, C], weight [C/L, KH, KW, L] → [N, OH, OW, C].

    With an `operand`, stored integers are multiplied as floats and the exact sums are int32.
    """
    blocks, kernel_h, kernel_w, lanes = (int(d) for d in weight.shape)
    batch, height, width = (int(d) for d in data.shape[:3])
    out_h, out_w = window.output((height, width), (kernel_h, kernel_w))
    padded = _padded(data, window, operand)
    kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
    (sh, sw), (dh, dw) = window.stride, window.dilation
    acc = te.compute(
        (batch, out_h, filled(out_w), blocks, lanes),
        lambda n, h, w, o, i: te.sum(
            padded[n, h * sh + kh * dh, clamped(w, out_w) * sw + kw * dw, o * lanes + i] * weight[o, kh, kw, i],
            axis=[kh, kw],
        ),
        name="acc",
        attrs=_role("accumulate"),
    )
    result = unpack(acc, (batch, out_h, out_w, channels))
    if operand is None:
        return result
    return te.compute(result.shape, lambda *at: result[at].astype("int32"), name="exact")


def matmul(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """Product with a constant matrix: data [..., K], weight [N/L, K, L] → [..., N]."""
    blocks, depth, lanes = (int(d) for d in weight.shape)
    *batch, rows = (int(d) for d in data.shape[:-1])
    k = te.reduce_axis((0, depth), "k")
    acc = te.compute(
        (*batch, filled(rows), blocks, lanes),
        lambda *i: te.sum(data[(*i[:-3], clamped(i[-3], rows), k)] * weight[i[-2], k, i[-1]], axis=[k]),
        name="acc",
        attrs=_role("accumulate"),
    )
    return unpack(acc, (*batch, rows, channels))


def unpack(acc: te.Tensor, shape: Sequence[int], correction: te.Tensor | None = None) -> te.Tensor:
    """Sums [pixels..., channel block, lane] in the layer's own `shape`, plus a `correction` for each channel."""
    lanes = int(acc.shape[-1])

    def value(*i: Expr) -> Expr:
        total = acc[(*i[:-1], i[-1] // lanes, i[-1] % lanes)]
        return total if correction is None else total + correction[i[-1]]

    return te.compute(tuple(shape), value, name="unpack", attrs=_role("unpack"))
