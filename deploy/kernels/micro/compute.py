"""What an integer kernel computes on a microcontroller, in the form that the micro-kernels of `smlad` take.

Three stages, as in `compute`: `pad` widens the activations that are needed next to int16, with the zero point around
the image; `accumulate` sums; `unpack` separates the two digits of the sums and adds the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tvm import te, tirx, topi
from tvm.ir import Expr

from deploy.kernels.compute import ROLE, Window

MICRO = "deploy.micro"  # annotates the accumulation: pixels, channels, rows, pairs, step, dilation
# Annotates the widening: 1 and the first and last element of each row that the image has, or 0 and those of the only
# row.
WIDENED = "deploy.widened"
PLANE = "deploy.plane"  # annotates the copy of a channel: height, width, channels, top, left, border
OVERWRITTEN = "deploy.overwritten"  # annotates a loop that sets to zero what a micro-kernel writes without reading
DEPTHWISE = "deploy.depthwise"  # annotates its sums: columns, kernel height and width, strides


@dataclass(frozen=True)
class Blocks:
    """Output channels, and the pixels and channels that one micro-kernel sums."""

    total: int
    pixels: int
    channels: int


def _digit(number: Expr, lane: Expr) -> Expr:
    """The part of a stored weight that is multiplied: its low digit for even lanes, the whole number for odd ones."""
    return tirx.Select(lane % 2 == 0, number.astype("int8").astype("int32"), number.astype("int32"))


def _separated(sums: te.Tensor, at: tuple[Expr, ...], channel: Expr, lanes: int) -> Expr:
    """The channel's own sum, from the sums of a block [..., block, pixel, lane]."""
    *outer, pixel = at
    block, lane = channel // lanes, channel % lanes
    whole, low = sums[(*outer, block, pixel, lane)], sums[(*outer, block, pixel, lane // 2 * 2)]
    return tirx.Select(channel % 2 == 1, (whole - low) >> tirx.const(8, "int32"), whole)


def facts(role: str, name: str, *numbers: int) -> dict[str, str]:
    """The annotations of a stage: its role, and what its schedule has to know."""
    return {ROLE: role, name: " ".join(map(str, numbers))}


def image_rows(data: te.Tensor, window: Window, length: int, border: int, dtype: str) -> te.Tensor:
    """[N, H, W, C] → [N, padded H, length] of `dtype`: a row's pixels one after the other, `border` around them."""
    batch, height, width, inputs = (int(d) for d in data.shape)
    top, left = window.padding[:2]
    first, last = left * inputs, (left + width) * inputs

    def widened(n: Expr, h: Expr, j: Expr) -> Expr:
        within = tirx.all(h >= top, h < height + top, j >= first, j < last)
        source = data[n, h - top, j // inputs - left, j % inputs].astype(dtype)
        return tirx.if_then_else(within, source, tirx.const(border, dtype))

    size = (batch, window.padded((height, width))[0], length)
    return te.compute(size, widened, name="pad", attrs=facts("pad", WIDENED, 1, first, last))


def pixel_row(data: te.Tensor, length: int, dtype: str) -> te.Tensor:
    """[..., K] → [1, length] of `dtype`: all pixels one after the other; behind them lies what is never read."""
    *outer, size = (int(d) for d in data.shape)

    def position(pixel: Expr) -> list[Expr]:
        at = []
        for extent in reversed(outer):
            at.append(pixel % extent)
            pixel = pixel // extent
        return at[::-1]

    def widened(n: Expr, j: Expr) -> Expr:
        source = data[(*position(j // size), j % size)].astype(dtype)
        return tirx.if_then_else(j < prod(outer) * size, source, tirx.const(0, dtype))

    return te.compute((1, length), widened, name="pad", attrs=facts("pad", WIDENED, 0, 0, prod(outer) * size))


def pixel_of(outer: Sequence[int], at: Sequence[Expr]) -> Expr:
    """The number of the pixel at a position."""
    pixel: Expr = tirx.const(0, "int32")
    for extent, index in zip(outer, at, strict=True):
        pixel = pixel * extent + index
    return pixel


def micro_conv2d(
    data: te.Tensor, weight: te.Tensor, bias: te.Tensor, kernel_w: int, window: Window, border: int, blocks: Blocks
) -> te.Tensor:
    """[N, H, W, CI], two-digit weights [CO/C, KH, pairs, C/2, 2], [CO] → int32 [N, OH, OW, CO]; no dilation in width.

    border: the stored activation that lies around the image.
    """
    batch, height, width, inputs = (int(d) for d in data.shape)
    count, kernel_h, pairs = (int(d) for d in weight.shape[:3])
    (sh, sw), dh = window.stride, window.dilation[0]
    out_h, out_w = window.output((height, width), (kernel_h, kernel_w))
    step, filled = sw * inputs, -(-out_w // blocks.pixels) * blocks.pixels
    length = max(window.padded((height, width))[1] * inputs, (filled - 1) * step + 2 * pairs)
    rows = image_rows(data, window, length, border, "int16")
    taps = [te.reduce_axis((0, kernel_h), "kh")] if kernel_h > 1 else []
    j, g = te.reduce_axis((0, pairs), "j"), te.reduce_axis((0, 2), "g")

    def total(n: Expr, h: Expr, o: Expr, w: Expr, i: Expr) -> Expr:
        kh = taps[0] if taps else 0
        left_side = rows[n, h * sh + kh * dh, w * step + j * 2 + g].astype("int32")
        return te.sum(left_side * _digit(weight[o, kh, j, i // 2, g], i), axis=[*taps, j, g])

    attrs = facts("accumulate", MICRO, blocks.pixels, blocks.channels, kernel_h, pairs, step, dh)
    acc = te.compute((batch, out_h, count, filled, blocks.channels), total, name="acc", attrs=attrs)
    return te.compute(
        (batch, out_h, out_w, blocks.total),
        lambda n, h, w, c: _separated(acc, (n, h, w), c, blocks.channels) + bias[c],
        name="unpack",
        attrs={ROLE: "unpack"},
    )


def micro_product(data: te.Tensor, weight: te.Tensor, bias: te.Tensor, blocks: Blocks) -> te.Tensor:
    """[..., K], two-digit weights [CO/C, 1, pairs, C/2, 2], [CO] → int32 [..., CO]: all pixels as one row."""
    *outer, size = (int(d) for d in data.shape)
    count, _, pairs = (int(d) for d in weight.shape[:3])
    filled = -(-prod(outer) // blocks.pixels) * blocks.pixels
    rows = pixel_row(data, (filled - 1) * size + 2 * pairs, "int16")
    j, g = te.reduce_axis((0, pairs), "j"), te.reduce_axis((0, 2), "g")

    def total(o: Expr, w: Expr, i: Expr) -> Expr:
        left_side = rows[0, w * size + j * 2 + g].astype("int32")
        return te.sum(left_side * _digit(weight[o, 0, j, i // 2, g], i), axis=[j, g])

    attrs = facts("accumulate", MICRO, blocks.pixels, blocks.channels, 1, pairs, size, 1)
    acc = te.compute((count, filled, blocks.channels), total, name="acc", attrs=attrs)
    return te.compute(
        (*outer, blocks.total),
        lambda *at: _separated(acc, (pixel_of(outer, at[:-1]),), at[-1], blocks.channels) + bias[at[-1]],
        name="unpack",
        attrs={ROLE: "unpack"},
    )


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution, channel by channel: the kernel's size, and where it lies on the image.

    border: the stored activation around the image. turned: the image and its result have one column, which is computed
    as one row, and all sizes are the row's.
    """

    kernel: tuple[int, int]
    window: Window
    border: int
    turned: bool

    def output(self, data: te.Tensor) -> tuple[int, int]:
        """Height and width of the result."""
        return self.window.output(self._size(data), self.kernel)

    def _size(self, data: te.Tensor) -> tuple[int, int]:
        height, width = int(data.shape[1]), int(data.shape[2])
        return (width, height) if self.turned else (height, width)

    def planes(self, data: te.Tensor, columns: int, dtype: str) -> te.Tensor:
        """[N, H, W, C] → each channel's image [N, C, rows, width], as far as `columns` of the result need it."""
        (height, width), (top, left), channels = self._size(data), self.window.padding[:2], int(data.shape[3])
        (sh, sw), (kernel_h, kernel_w) = self.window.stride, self.kernel

        def copied(n: Expr, c: Expr, h: Expr, j: Expr) -> Expr:
            within = tirx.all(h >= top, h < height + top, j >= left, j < width + left)
            source = data[n, j - left, h - top, c] if self.turned else data[n, h - top, j - left, c]
            return tirx.if_then_else(within, source.astype(dtype), tirx.const(self.border, dtype))

        rows = (self.output(data)[0] - 1) * sh + kernel_h
        attrs = facts("pad", PLANE, height, width, channels, top, left, self.border)
        size = (int(data.shape[0]), channels, rows, (columns - 1) * sw + kernel_w)
        return te.compute(size, copied, name="pad", attrs=attrs)

    def unpacked(self, acc: te.Tensor, bias: te.Tensor, columns: int) -> te.Tensor:
        """Sums [N, C, OH, columns or more] → [N, OH, OW, C], with the bias."""
        batch, channels, rows, _ = (int(d) for d in acc.shape)
        return te.compute(
            (batch, columns, rows, channels) if self.turned else (batch, rows, columns, channels),
            lambda n, h, w, c: (acc[n, c, w, h] if self.turned else acc[n, c, h, w]) + bias[c],
            name="unpack",
            attrs={ROLE: "unpack"},
        )


def micro_depthwise(data: te.Tensor, weight: te.Tensor, bias: te.Tensor, layer: Depthwise) -> te.Tensor:
    """[N, H, W, C], taps [C, KH, stored], [C] → int32 [N, OH, OW, C], channel by channel; no dilation."""
    (kernel_h, kernel_w), (sh, sw) = layer.kernel, layer.window.stride
    batch, channels, stored = int(data.shape[0]), int(data.shape[3]), int(weight.shape[2])
    out_h, out_w = layer.output(data)
    columns = out_w + out_w % 2
    after = stored - kernel_w if kernel_w % 2 else 0  # what lies before the last tap
    plane = layer.planes(data, columns, "int16")
    kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
    taps = [kh, kw] if kernel_h > 1 else [kw]

    def total(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        row = kh if kernel_h > 1 else 0
        tap = weight[c, row, kw + kw // (kernel_w - 1) * after]
        return te.sum(plane[n, c, h * sh + row, w * sw + kw].astype("int32") * tap.astype("int32"), axis=taps)

    attrs = facts("accumulate", DEPTHWISE, columns, kernel_h, kernel_w, sh, sw, int(layer.turned))
    acc = te.compute((batch, channels, out_h, columns), total, name="acc", attrs=attrs)
    return layer.unpacked(acc, bias, out_w)


def wide_sum(data: te.Tensor, axes: list[int], keepdims: bool, dtype: str) -> te.Tensor:
    """Sums over `axes` in a wider type."""
    return topi.sum(topi.cast(data, dtype), axis=axes, keepdims=keepdims)
