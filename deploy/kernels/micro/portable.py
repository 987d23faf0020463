"""The inner loops of convolutions and products as C99, for cores that have no instructions made for them.

Activations and weights are int8 and stay so. A block of pixels by channels keeps its sums in registers, so that each
load serves several products; weights are stored in the order in which they are read. What it takes beside that is one
load for each activation and each weight, and a multiplication and an addition for each product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from deploy.kernels.micro.shapes import PlaneShape, Shape

MICRO = "TVM_DEPLOY_MICRO"  # a macro of the file around a function: how it is linked
_POINTERS = 3  # registers that a loop needs beside sums and activations: two addresses and a weight
_PIXELS, _CHANNELS = 4, 8  # the most of a block
_COLUMNS = 8  # the most sums of a depthwise kernel's block
_UNROLLED = 4  # taps in one turn of the innermost loop
_WRITTEN_OUT = 16  # taps without a loop
_CALL = 20  # instructions around one call, and around one block of channels


def function(symbol: str, parameters: str, lines: list[str]) -> str:
    """The definition of a function that returns nothing."""
    body = "".join(f"  {line}\n" for line in lines)
    return f"{MICRO} void {symbol}({parameters}) {{\n{body}}}\n"


def indented(lines: Iterator[str] | list[str]) -> list[str]:
    """One step to the right."""
    return [f"  {line}" for line in lines]


def repeated(times: int, body: list[str], counter: str = "turn") -> list[str]:
    """`body` so many times; `counter` names the loop's variable."""
    if times < 2:
        return body if times else []
    return [f"for (int32_t {counter} = {times}; {counter} != 0; --{counter}) {{", *indented(body), "}"]


def advanced(pointer: str, amount: int) -> list[str]:
    """Move a pointer."""
    return [f"{pointer} {'+' if amount > 0 else '-'}= {abs(amount)};"] if amount else []


@dataclass(frozen=True)
class PortableKernel(Shape):
    """sums[pixel, channel] = sum of image[row * pitch + pixel * step + tap] * weights[row, tap, channel].

    `pixels` x `total` sums of int32, one after the other, of which a block has `channels`; `rows` x `taps` int8
    activations; a pixel's lie `step` after the last one's, a row's `pitch`. As for Helium's, with one lane.

    Its function: `void f(const int8_t *image, const int8_t *weights, int32_t *sums)`.
    """

    prefix: ClassVar[str] = "tvm_deploy_portable"

    lanes: ClassVar[int] = 1
    mark: ClassVar[str] = "deploy.portable"  # annotates the accumulation: sizes, dilation
    together: ClassVar[int] = 0

    pixels: int
    channels: int
    total: int
    rows: int
    taps: int
    step: int
    pitch: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """What its annotation says: all but the pitch."""
        return self.pixels, self.channels, self.total, self.rows, self.taps, self.step

    @property
    def chunks(self) -> int:
        """Groups of taps that are stored together: single ones."""
        return self.taps

    @property
    def blocks(self) -> int:
        """Blocks of channels, the last of which may have fewer."""
        return -(-self.total // self.channels)

    def instructions(self) -> int:
        """How many one call takes, about, where multiplying and adding is one."""
        whole, rest = divmod(self.total, self.channels)
        blocks = [self.channels] * whole + ([rest] if rest else [])
        taps = self.rows * self.taps
        return _CALL + sum(taps * (self.pixels + c + self.pixels * c) + self.pixels * c + _CALL for c in blocks)

    def c(self) -> str:
        """The function in C99."""
        whole, rest = divmod(self.total, self.channels)
        lines = repeated(whole, self._block(self.channels), "block") + (self._block(rest) if rest else [])
        return function(self.symbol, "const int8_t *image, const int8_t *weights, int32_t *sums", lines)

    def _block(self, channels: int) -> list[str]:
        sums = [f"s{pixel}_{channel} = 0" for pixel in range(self.pixels) for channel in range(channels)]
        fitting = [n for n in range(1, self.rows + 1) if self.rows % n == 0 and n * self.taps <= _WRITTEN_OUT]
        together = max(fitting, default=1)
        lines = self._written_out(together, channels) if together * self.taps <= _WRITTEN_OUT else self._row(channels)
        stores = [
            f"sums[{pixel * self.total + channel}] = s{pixel}_{channel};"
            for pixel in range(self.pixels)
            for channel in range(channels)
        ]
        start = [f"int32_t {', '.join(sums)};", "const int8_t *x = image;"]
        body = [*start, *repeated(self.rows // together, lines, "row"), *stores, f"sums += {channels};"]
        return ["{", *indented(body), "}"]

    def _written_out(self, rows: int, channels: int) -> list[str]:
        """All taps of some rows."""
        taps = [row * self.pitch + tap for row in range(rows) for tap in range(self.taps)]
        return self._taps(taps, channels, rows * self.pitch)

    def _row(self, channels: int) -> list[str]:
        """All taps of a row, a few in each turn."""
        turns, rest = divmod(self.taps, _UNROLLED)
        turn, left = (self._taps(list(range(n)), channels, n) for n in (_UNROLLED, rest))
        lines = repeated(turns, turn, "turn") + (left if rest else [])
        return lines + (advanced("x", self.pitch - self.taps) if self.rows > 1 else [])

    def _taps(self, activations: list[int], channels: int, move: int) -> list[str]:
        """Activations of each pixel, this far from the next one, times their weights; then the next one is moved."""
        lines = []
        for tap, activation in enumerate(activations):
            loads = [f"x{pixel} = x[{pixel * self.step + activation}]" for pixel in range(self.pixels)]
            lines += ["{", f"  const int32_t {', '.join(loads)};", "  int32_t w;"]
            for channel in range(channels):
                products = " ".join(f"s{pixel}_{channel} += x{pixel} * w;" for pixel in range(self.pixels))
                lines.append(f"  w = weights[{tap * self.channels + channel}]; {products}")
            lines.append("}")
        return [*lines, *advanced("x", move), f"weights += {len(activations) * self.channels};"]


def blocking(pixels: int, channels: int, rows: int, taps: int, step: int, registers: int) -> PortableKernel:
    """The micro-kernel that needs the fewest instructions for a row of `pixels` by `channels`."""
    kernels = [
        PortableKernel(p, min(c, channels), channels, rows, taps, step)
        for p in range(1, min(_PIXELS, max(1, pixels)) + 1)
        for c in range(1, _CHANNELS + 1)
        if p * c + p + _POINTERS <= registers or p * c == 1
    ]
    return min(kernels, key=lambda kernel: -(-pixels // kernel.pixels) * kernel.instructions())


def in_blocks(weights: npt.NDArray[np.generic], channels: int) -> npt.NDArray[np.int8]:
    """int8 weights [rows, taps, CO] → [CO / channels, rows, taps, channels, 1], what is missing zero."""
    rows, taps, count = weights.shape
    filled = np.zeros((rows, taps, -(-count // channels) * channels), np.int8)
    filled[:, :, :count] = weights
    split = filled.reshape(rows, taps, filled.shape[2] // channels, channels, 1)
    return np.ascontiguousarray(split.transpose(2, 0, 1, 3, 4))


@dataclass(frozen=True)
class PortableDepthwise(Shape):
    """sums[h, w] = over the kernel of image[h * stride + kh, w * stride + kw] * taps[kh, kw], for one channel.

    rows x columns sums of int32, of which a block has up to `block`; the image's rows lie `pitch` int8 apart.

    Its function: `void f(const int8_t *image, const int8_t *taps, int32_t *sums)`.
    """

    prefix: ClassVar[str] = "tvm_deploy_portable_depthwise"

    rows: int
    columns: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    block: int
    pitch: int = 0

    def c(self) -> str:
        """The function in C99."""
        turns, rest = divmod(self.columns, self.block)
        line = repeated(turns, self._block(self.block), "turn") + (self._block(rest) if rest else [])
        line += advanced("image", self.stride_h * self.pitch - self.columns * self.stride_w)
        lines = repeated(self.rows, line, "row")
        return function(self.symbol, "const int8_t *image, const int8_t *taps, int32_t *sums", lines)

    def _block(self, count: int) -> list[str]:
        """Neighbouring sums: a row of taps after the other, each activation for all sums that it is in."""
        lines = [f"int32_t x, {', '.join(f's{index} = 0' for index in range(count))};"]
        for row in range(self.kernel_h):
            taps = [f"w{tap} = taps[{row * self.kernel_w + tap}]" for tap in range(self.kernel_w)]
            lines += ["{", f"  const int32_t {', '.join(taps)};"]
            for column in range((count - 1) * self.stride_w + self.kernel_w):
                used = [(s, column - s * self.stride_w) for s in range(count)]
                products = [f"s{s} += x * w{tap};" for s, tap in used if 0 <= tap < self.kernel_w]
                if products:
                    lines.append(f"  x = image[{row * self.pitch + column}]; {' '.join(products)}")
            lines.append("}")
        lines += [f"sums[{index}] = s{index};" for index in range(count)]
        return ["{", *indented([*lines, f"image += {count * self.stride_w};", f"sums += {count};"]), "}"]


def sums_in_registers(columns: int, taps: int, registers: int) -> int:
    """Sums of a depthwise kernel's block: as many as leave room for a row of taps, and all blocks about alike."""
    most = max(1, min(_COLUMNS, registers - taps - _POINTERS))
    return -(-columns // -(-columns // most))


@dataclass(frozen=True)
class PortablePlane(PlaneShape):
    """One channel's image: [height, width, channels] int8 → [rows, pitch] int8, `border` around it.

    Its function: `void f(const int8_t *channel, int8_t *plane)`.
    """

    prefix: ClassVar[str] = "tvm_deploy_portable_plane"

    def c(self) -> str:
        """The function in C99."""
        whole = self.top == self.left == 0 and self.height >= self.rows and self.width >= self.pitch
        fill = f"memset(plane, {self.border}, {self.rows * self.pitch}u);"
        lines = self.copies() if whole else [fill, *self.copies()]
        return function(self.symbol, "const int8_t *channel, int8_t *plane", lines)

    def copies(self) -> list[str]:
        """The statements that copy the image, row by row; a stride may leave its last pixels out."""
        height, width = min(self.height, self.rows - self.top), min(self.width, self.pitch - self.left)
        turns, rest = divmod(width, _UNROLLED)
        line = repeated(turns, self._pixels(_UNROLLED)) + self._pixels(rest)
        line += advanced("plane", self.pitch - width) + advanced("channel", (self.width - width) * self.channels)
        return [*advanced("plane", self.top * self.pitch + self.left), *repeated(height, line, "row")]

    def _pixels(self, count: int) -> list[str]:
        copies = [f"plane[{index}] = channel[{index * self.channels}];" for index in range(count)]
        return [*copies, *advanced("plane", count), *advanced("channel", count * self.channels)]
