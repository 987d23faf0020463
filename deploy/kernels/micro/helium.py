"""The inner loops of convolutions and products on Cortex-M cores with Helium, as Thumb-2 assembly.

`vmlava.s8` adds 16 products of int8 to a general register. A block of up to three pixels by up to six channels keeps
its sums in six such registers (an instruction takes even ones), and a hardware loop runs over the taps of a row, with
the lanes beyond the last tap switched off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from deploy.kernels.micro.shapes import Shape
from deploy.kernels.micro.smlad import constant, function

COPY = "tvm_deploy_copy"  # void f(const int8_t *from, int8_t *to, int32_t count)
SET = "tvm_deploy_set"  # void f(int8_t *to, int32_t count, int32_t value)
LANES = 16
CALL = 30  # instructions around one call
FARTHEST = 255  # offset of a gathering load of bytes
_SUMS = ("r4", "r6", "r8", "r10", "r12", "r2")
_PIXELS = ("r0", "r3", "r7")  # the next activations of each pixel
_ADDRESSES = ("r5", "r3", "r7")  # of each pixel, where all its taps are gathered from there
_UNROLLED_ROWS = 4
_UNROLLED = 12  # vectors of activations that are written out


@dataclass(frozen=True)
class HeliumKernel(Shape):
    """sums[pixel, channel] = sum of image[row * pitch + pixel * step + tap] * weights[row, tap, channel].

    `pixels` x `total` sums of int32, one after the other, of which a block has `channels`; `rows` x `taps` int8
    activations; a pixel's lie `step` after the last one's, a row's `pitch`. `together` is 1 where the taps of all rows
    are gathered into the same vectors: a row of few taps would leave most lanes empty.

    Its function: `void f(const int8_t *image, const int8_t *weights, int32_t *sums)`.
    """

    prefix: ClassVar[str] = "tvm_deploy_vmlava"

    lanes: ClassVar[int] = LANES
    mark: ClassVar[str] = "deploy.helium"  # annotates the accumulation: sizes, dilation

    pixels: int
    channels: int
    total: int
    rows: int
    taps: int
    step: int
    together: int = 0
    pitch: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.pixels <= len(_PIXELS) or not 1 <= self.pixels * self.channels <= len(_SUMS):
            raise ValueError(f"no micro-kernel has {self.pixels} pixels and {self.channels} channels")

    @property
    def sizes(self) -> tuple[int, ...]:
        """What its annotation says: all but the pitch."""
        return self.pixels, self.channels, self.total, self.rows, self.taps, self.step, self.together

    @property
    def chunks(self) -> int:
        """Vectors of activations in a row, or in all where they are taken together."""
        return -(-self.taps * (self.rows if self.together else 1) // LANES)

    @property
    def blocks(self) -> int:
        """Blocks of channels, the last of which may have fewer."""
        return -(-self.total // self.channels)

    def instructions(self) -> int:
        """How many one call takes, about."""
        whole, rest = divmod(self.total, self.channels)
        return whole * self._block_instructions(self.channels) + (self._block_instructions(rest) if rest else 0)

    def _block_instructions(self, channels: int) -> int:
        vectors = self.pixels + channels + self.pixels * channels
        if self.together:
            return self.chunks * vectors + 2 * self.pixels + 4
        if self._unrolled:
            return self.rows * (self.chunks * vectors + self.pixels) + 2 * self.pixels + 4
        return self.rows * (self.chunks * (vectors + 1) + 1 + self.pixels) + self.pixels * (channels + 3) + 4

    @property
    def _unrolled(self) -> bool:
        """Whether all vectors of a block are written out, without a loop."""
        return bool(self.together) or (self.rows * self.chunks <= _UNROLLED and LANES * (self.chunks - 1) <= 112)

    def assembly(self) -> str:
        """The function in GNU assembler syntax.

        r1: weights; r5: image; r0, r3, r7: pixels; r11: taps, then a pixel's sums; r9: sums; lr: the loop's, or the
        number of blocks left, which else is on the stack.
        """
        whole, rest = divmod(self.total, self.channels)
        saved = f"{{d8-d{7 + 2 * self.chunks}}}"  # what holds the offsets belongs to the caller
        lines = ["push {r4-r11, lr}", *([f"vpush {saved}"] if self.together else []), "sub sp, sp, #8"]
        lines += ["mov r5, r0", "mov r9, r2"]
        lines += [] if self._unrolled else constant("r11", self.taps)
        lines += self._offsets() if self.together else []
        if whole > 1:
            lines += [*constant("r0", whole), "str r0, [sp]", "8:"]
        lines += self._block(self.channels) if whole else []
        lines += ["ldr r0, [sp]", "subs r0, r0, #1", "str r0, [sp]", "bne 8b"] if whole > 1 else []
        lines += self._block(rest) if rest else []
        lines += ["add sp, sp, #8", *([f"vpop {saved}"] if self.together else []), "pop {r4-r11, pc}"]
        return function(self.symbol, [*lines, *(self._places() if self.together else [])])

    def _offsets(self) -> list[str]:
        """Load the offsets of all taps, and take the address of each pixel."""
        lines = [f"adr r4, .L{self.symbol}"]
        lines += [f"vldrb.8 q{4 + chunk}, [r4, #{LANES * chunk}]" for chunk in range(self.chunks)]
        addresses = _ADDRESSES[: self.pixels]
        for before, address in pairwise(addresses):
            lines += moved(address, before, self.step)
        return lines

    def _places(self) -> list[str]:
        """The offsets of all taps, as data."""
        places = [row * self.pitch + tap for row in range(self.rows) for tap in range(self.taps)]
        places += [0] * (LANES * self.chunks - len(places))
        return [".balign 4", f".L{self.symbol}:", f".byte {', '.join(map(str, places))}"]

    def _gathered(self, channels: int) -> Iterator[str]:
        for chunk in range(self.chunks):
            for pixel in range(self.pixels):
                yield f"vldrb.u8 q{pixel}, [{_ADDRESSES[pixel]}, q{4 + chunk}]"
            yield from self._products(channels, "vmlava" if chunk else "vmladav")

    def _block(self, channels: int) -> list[str]:
        if self._unrolled:
            return [*(self._gathered if self.together else self._vectors)(channels), *self._store(channels)]
        lines = [f"mov {_PIXELS[0]}, r5"]
        for pixel in range(1, self.pixels):
            lines += moved(_PIXELS[pixel], _PIXELS[pixel - 1], self.step)
        lines += [f"mov {register}, #0" for register in self._sums(channels)]
        if self.rows <= _UNROLLED_ROWS:
            for row in range(self.rows):
                lines += [*self._row(channels), *(self._next_row() if row < self.rows - 1 else [])]
        else:
            lines += [*constant("lr", self.rows), "str lr, [sp, #4]", "7:", *self._row(channels), *self._next_row()]
            lines += ["ldr lr, [sp, #4]", "subs lr, lr, #1", "str lr, [sp, #4]", "bne 7b"]
        return [*lines, *self._store(channels)]

    def _sums(self, channels: int) -> list[str]:
        """The registers of all sums, pixel by pixel, ascending within a pixel so that one instruction stores them."""
        return [register for pixel in range(self.pixels) for register in self._of_pixel(pixel, channels)]

    def _of_pixel(self, pixel: int, channels: int) -> list[str]:
        used = _SUMS[pixel * channels : (pixel + 1) * channels]
        return sorted(used, key=lambda register: int(register[1:]))

    def _vectors(self, channels: int) -> Iterator[str]:
        """All vectors of a block, one after the other; the lanes beyond the last tap are switched off."""
        rest = self.taps % LANES
        for row in range(self.rows):
            yield from moved(_PIXELS[0], "r5", row * self.pitch)
            for pixel in range(1, self.pixels):
                yield from moved(_PIXELS[pixel], _PIXELS[pixel - 1], self.step)
            for chunk in range(self.chunks):
                partly = bool(rest) and chunk == self.chunks - 1
                if partly:
                    yield from [*constant("r11", rest), "vctp.8 r11", f"vps{'t' * self.pixels}"]
                for pixel in range(self.pixels):
                    yield f"vldrb{'t' if partly else ''}.u8 q{pixel}, [{_PIXELS[pixel]}, #{LANES * chunk}]"
                yield from self._products(channels, "vmladav" if row == chunk == 0 else "vmlava")

    def _products(self, channels: int, operation: str) -> Iterator[str]:
        for channel in range(channels):
            skipped = self.channels - channels if channel == channels - 1 else 0
            yield f"vldrb.8 q3, [r1], #{LANES * (1 + skipped)}"
            for pixel in range(self.pixels):
                yield f"{operation}.s8 {self._of_pixel(pixel, channels)[channel]}, q{pixel}, q3"

    def _row(self, channels: int) -> Iterator[str]:
        yield from ["dlstp.8 lr, r11", "1:"]
        for pixel in range(self.pixels):
            yield f"vldrb.8 q{pixel}, [{_PIXELS[pixel]}], #16"
        yield from self._products(channels, "vmlava")
        yield "letp lr, 1b"

    def _next_row(self) -> list[str]:
        distance = self.pitch - LANES * self.chunks
        return [line for pixel in range(self.pixels) for line in moved(_PIXELS[pixel], _PIXELS[pixel], distance)]

    def _store(self, channels: int) -> Iterator[str]:
        for pixel in range(self.pixels):
            address = "r9"
            if pixel:
                address = "r0"
                yield from moved("r0", "r9" if pixel == 1 else "r0", 4 * (self.total - (channels if pixel == 1 else 0)))
            registers = self._of_pixel(pixel, channels)
            if channels == 1:
                yield f"str {registers[0]}, [{address}]" + (", #4" if pixel == 0 else "")
            else:
                yield f"stm {address}{'!' if pixel == 0 else ''}, {{{', '.join(registers)}}}"


def moved(result: str, register: str, distance: int) -> list[str]:
    """Instructions for result = register + distance, up to 4095 at once."""
    operation, size = ("addw", distance) if distance >= 0 else ("subw", -distance)
    if size == 0:
        return [] if result == register else [f"mov {result}, {register}"]
    steps = [4095] * (size // 4095) + ([size % 4095] if size % 4095 else [])
    return [f"{operation} {result}, {register if index == 0 else result}, #{s}" for index, s in enumerate(steps)]


def blocking(pixels: int, channels: int, rows: int, taps: int, step: int, pitch: int = 0) -> HeliumKernel:
    """The micro-kernel that needs the fewest instructions for a row of `pixels` by `channels`."""
    gathers = rows > 1 and (rows - 1) * pitch + taps - 1 <= FARTHEST and rows * taps <= 4 * LANES
    kernels = [
        HeliumKernel(p, min(c, channels), channels, rows, taps, step, together)
        for p in range(1, min(len(_PIXELS), max(1, pixels)) + 1)
        for c in range(1, len(_SUMS) // p + 1)
        for together in range(2 if gathers else 1)
    ]
    return min(kernels, key=lambda kernel: -(-pixels // kernel.pixels) * (kernel.instructions() + CALL))


def chunked(weights: npt.NDArray[np.generic], channels: int) -> npt.NDArray[np.int8]:
    """int8 weights [rows, taps, CO] → [CO / channels, rows, taps / 16, channels, 16], what is missing zero."""
    rows, taps, count = weights.shape
    filled = np.zeros((rows, -(-taps // LANES) * LANES, -(-count // channels) * channels), np.int8)
    filled[:, :taps, :count] = weights
    split = filled.reshape(rows, filled.shape[1] // LANES, LANES, filled.shape[2] // channels, channels)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 4, 2))


_COPYING = """\
push {lr}
cmp r2, #0
ble 2f
dlstp.8 lr, r2
1:
vldrb.8 q0, [r0], #16
vstrb.8 q0, [r1], #16
letp lr, 1b
2:
pop {pc}"""
_SETTING = """\
push {lr}
cmp r1, #0
ble 2f
vdup.8 q0, r2
dlstp.8 lr, r1
1:
vstrb.8 q0, [r0], #16
letp lr, 1b
2:
pop {pc}"""


def fixed(symbol: str) -> str | None:
    """The function of a symbol that is the same for every model."""
    lines = {COPY: _COPYING, SET: _SETTING}.get(symbol)
    return None if lines is None else function(symbol, lines.split("\n"))
