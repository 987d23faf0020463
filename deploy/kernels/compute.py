"""What a kernel computes, as tensor expressions over NHWC activations and packed weights.

Every kernel has two stages that the schedule finds by their `role`: `accumulate` reduces into
[pixels..., channel block, lane], and `unpack` brings the result back to the layer's own shape. A third,
`pad`, is there only where the window leaves the image. What fusion adds after `unpack` is element-wise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import te, tirx

ROLE = "deploy.role"


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


def _role(name: str) -> dict[str, str]:
    return {ROLE: name}


def _padded(data: te.Tensor, window: Window) -> te.Tensor:
    top, left, _, _ = window.padding
    if not any(window.padding) and window.spread == (1, 1):
        return data
    batch, height, width, channels = data.shape
    step_h, step_w = window.spread
    zero = tirx.const(0, data.dtype)

    def inside(n, h, w, c):  # type: ignore[no-untyped-def]
        rows, columns = (height - 1) * step_h + 1, (width - 1) * step_w + 1
        within = [h >= top, h < rows + top, w >= left, w < columns + left]
        within += [tirx.floormod(at, step) == 0 for at, step in ((h - top, step_h), (w - left, step_w)) if step > 1]
        source = data[n, tirx.floordiv(h - top, step_h), tirx.floordiv(w - left, step_w), c]
        return tirx.if_then_else(tirx.all(*within), source, zero)

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
        (batch, out_h, out_w, blocks, lanes),
        lambda n, h, w, o, i: te.sum(
            padded[n, h * sh + kh * dh, w * sw + kw * dw, ic] * weight[o, kh, kw, ic, i], axis=[kh, kw, ic]
        ),
        name="acc",
        attrs=_role("accumulate"),
    )
    return _unpack(acc, (batch, out_h, out_w, channels))


def _pointwise(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """1x1 convolution over all pixels as one axis, so that a register block may cross the end of a row."""
    blocks, _, _, in_channels, lanes = (int(d) for d in weight.shape)
    batch, height, width = (int(d) for d in data.shape[:3])
    area = height * width
    ic = te.reduce_axis((0, in_channels), "ic")
    acc = te.compute(
        (batch * area, blocks, lanes),
        lambda p, o, i: te.sum(data[p // area, (p % area) // width, p % width, ic] * weight[o, 0, 0, ic, i], axis=[ic]),
        name="acc",
        attrs=_role("accumulate"),
    )
    return te.compute(
        (batch, height, width, channels),
        lambda n, h, w, c: acc[n * area + h * width + w, c // lanes, c % lanes],
        name="unpack",
        attrs=_role("unpack"),
    )


def depthwise(data: te.Tensor, weight: te.Tensor, channels: int, window: Window) -> te.Tensor:
    """Depthwise convolution: data [N, H, W, C], weight [C/L, KH, KW, L] → [N, OH, OW, C]."""
    blocks, kernel_h, kernel_w, lanes = (int(d) for d in weight.shape)
    batch, height, width = (int(d) for d in data.shape[:3])
    out_h, out_w = window.output((height, width), (kernel_h, kernel_w))
    padded = _padded(data, window)
    kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
    (sh, sw), (dh, dw) = window.stride, window.dilation
    acc = te.compute(
        (batch, out_h, out_w, blocks, lanes),
        lambda n, h, w, o, i: te.sum(
            padded[n, h * sh + kh * dh, w * sw + kw * dw, o * lanes + i] * weight[o, kh, kw, i], axis=[kh, kw]
        ),
        name="acc",
        attrs=_role("accumulate"),
    )
    return _unpack(acc, (batch, out_h, out_w, channels))


def matmul(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """Product with a constant matrix: data [..., K], weight [N/L, K, L] → [..., N]."""
    blocks, depth, lanes = (int(d) for d in weight.shape)
    leading = tuple(int(d) for d in data.shape[:-1])
    k = te.reduce_axis((0, depth), "k")
    acc = te.compute(
        (*leading, blocks, lanes),
        lambda *i: te.sum(data[(*i[:-2], k)] * weight[i[-2], k, i[-1]], axis=[k]),
        name="acc",
        attrs=_role("accumulate"),
    )
    return _unpack(acc, (*leading, channels))


def _unpack(acc: te.Tensor, shape: Sequence[int]) -> te.Tensor:
    lanes = int(acc.shape[-1])
    return te.compute(
        tuple(shape),
        lambda *i: acc[(*i[:-1], i[-1] // lanes, i[-1] % lanes)],
        name="unpack",
        attrs=_role("unpack"),
    )
