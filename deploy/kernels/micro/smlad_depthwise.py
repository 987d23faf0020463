"""The inner loops of depthwise convolutions on Cortex-M cores with the DSP extension, as Thumb-2 assembly.

One channel at a time: its image is copied out of the interleaved tensor as int16, with the border around it, and then
lies in words of two neighbouring pixels. Two neighbouring sums share those words: for the first one the taps w0 w1,
w2 w3, ... fit them, for the second one w1 w2, w3 w4, ... (at a stride of two both are at even pixels, and fit alike).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from deploy.kernels.micro.shapes import PlaneShape, Shape
from deploy.kernels.micro.smlad import constant, function

_FIRST = {"lad": "smuad", "labt": "smulbt", "latb": "smultb"}  # the instruction that begins a sum
_WEIGHTS = ("r4", "r5", "r6", "r7", "r8", "r9")


@dataclass(frozen=True)
class Taps:
    """The weights of one row of a kernel, as words of two int16."""

    width: int
    stride: int

    def __post_init__(self) -> None:
        if self.width < 2 or self.stride not in (1, 2):
            raise ValueError(f"no micro-kernel has {self.width} taps in a row at a stride of {self.stride}")

    @property
    def words(self) -> int:
        """Words of a row."""
        pairs, odd = divmod(self.width, 2)
        if self.stride == 2:
            return pairs + odd
        return pairs + pairs - (not odd)

    @property
    def last(self) -> int:
        """Where the last tap is stored; the others are where they come in the row."""
        return 2 * self.words - 1 if self.width % 2 else self.width - 1

    def stored(self, row: npt.NDArray[np.generic]) -> npt.NDArray[np.int16]:
        """Taps [..., width] → [..., 2 * words]."""
        pairs, odd = divmod(self.width, 2)
        parts = [row[..., : 2 * pairs]]
        if self.stride == 1:
            parts.append(row[..., 1 : self.width - (not odd)])
        elif odd:
            parts += [np.zeros_like(row[..., :1]), row[..., -1:]]
        return np.ascontiguousarray(np.concatenate(parts, axis=-1).astype(np.int16))


@dataclass(frozen=True)
class DepthwiseKernel(Shape):
    """sums[h, w] = over the kernel of image[h * stride + kh, w * stride + kw] * taps[kh, kw], for one channel.

    rows x columns sums of int32, an even number of columns; the image's rows lie `pitch` int16 apart.

    Its function: `void f(const int16_t *image, const int16_t *taps, int32_t *sums)`.
    """

    prefix: ClassVar[str] = "tvm_deploy_depthwise"

    rows: int
    columns: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pitch: int = 0

    @property
    def taps(self) -> Taps:
        """How a row of its weights is stored."""
        return Taps(self.kernel_w, self.stride_w)

    def assembly(self) -> str:
        """The function in GNU assembler syntax.

        r0: image; r1: sums; r2, r3: two sums; lr: pairs left; on the stack: rows left. Weights stay in r4-r9 where
        there are no more than six words of them; else they are loaded when they are needed.
        """
        held = self._held
        skip = 2 * self.stride_h * self.pitch - 2 * self.stride_w * self.columns
        lines = ["push {r4-r11, lr}", *constant("r3", self.rows), "push {r3}"]
        lines += [f"ldmia r1, {{r4-{_WEIGHTS[self.kernel_h * self.taps.words - 1]}}}", "mov r1, r2"] if held else []
        lines += [] if held else ["mov r12, r2"]
        lines += ["1:", *constant("lr", self.columns // 2), "2:"]
        lines += [line for row in reversed(range(self.kernel_h)) for line in self._row(row)]
        lines += ["subs lr, lr, #1", f"strd r2, r3, [{'r1' if held else 'r12'}], #8", "bne 2b"]
        lines += [*constant("r3", skip & 0xFFFFFFFF), "add r0, r0, r3"] if skip else []
        lines += ["ldr r3, [sp]", "subs r3, r3, #1", "str r3, [sp]", "bne 1b", "add sp, sp, #4", "pop {r4-r11, pc}"]
        return function(self.symbol, lines)

    @property
    def _held(self) -> bool:
        return self.kernel_h * self.taps.words <= len(_WEIGHTS)

    def _row(self, row: int) -> Iterator[str]:
        """One row of taps times the pixels of two sums; the last row first, the first one moves on to the next pair."""
        words, products = self.taps.words, self.products()
        image = ("r10", "r11", "r12") if self._held else ("r10", "r11", "r9")
        pixels = {at: image[at % len(image)] for _, _, at, _ in products}
        taps = {tap: _WEIGHTS[row * words + tap] if self._held else _WEIGHTS[tap % 5] for _, _, _, tap in products}
        in_registers = set(taps) if self._held else set[int]()
        started = {"r2": row < self.kernel_h - 1, "r3": row < self.kernel_h - 1}
        pairs = self._paired(row, len(pixels))
        for position, (total, how, at, tap) in enumerate(products):
            if position == 0 or at != products[position - 1][2]:
                yield from self._load(row, at, pixels, pairs)
            if tap not in in_registers:
                in_registers.add(tap)
                yield f"ldr {taps[tap]}, [r1, #{4 * (row * words + tap)}]"
            operation = f"sm{how}" if started[total] else _FIRST[how]
            yield f"{operation} {total}, {pixels[at]}, {taps[tap]}" + (f", {total}" if started[total] else "")
            started[total] = True
        if row == 0 and not pairs:
            yield f"add r0, r0, #{4 * self.stride_w}"

    def _paired(self, row: int, words: int) -> bool:
        """Whether the first two words of a row's pixels can be loaded at once, which needs an address in words."""
        return self.pitch % 2 == 0 and words in (2, 3) and 2 * row * self.pitch <= 1020

    def _load(self, row: int, at: int, pixels: dict[int, str], pairs: bool) -> Iterator[str]:
        offset = 2 * row * self.pitch
        if not pairs:
            yield f"ldr {pixels[at]}, [r0, #{offset + 4 * at}]"
        elif at == 0:
            if len(pixels) == 3:
                yield f"ldr {pixels[2]}, [r0, #{offset + 8}]"
            move = f"[r0], #{4 * self.stride_w}" if row == 0 else f"[r0, #{offset}]"
            yield f"ldrd {pixels[0]}, {pixels[1]}, {move}"

    def products(self) -> list[tuple[str, str, int, int]]:
        """(sum, instruction, word of pixels, word of taps) of one row, by the word of pixels."""
        pairs, odd = divmod(self.kernel_w, 2)
        found: list[tuple[str, str, int, int]] = []
        if self.stride_w == 2:
            for first, total in ((0, "r2"), (1, "r3")):
                found += [(total, "lad", first + t, t) for t in range(pairs)]
                found += [(total, "labt", first + pairs, pairs)] if odd else []
        else:
            found += [("r2", "lad", t, t) for t in range(pairs)]
            found += [("r2", "labt", pairs, 2 * pairs - 1)] if odd else []
            found += [("r3", "latb", 0, 0)]
            found += [("r3", "lad", t + 1, pairs + t) for t in range(pairs - (not odd))]
            found += [] if odd else [("r3", "labt", pairs, pairs - 1)]
        return sorted(found, key=lambda product: product[2])


@dataclass(frozen=True)
class Plane(PlaneShape):
    """One channel's image as int16: [height, width, channels] int8 → [rows, pitch], `border` around it.

    Its function: `void f(const int8_t *channel, int16_t *plane)`.
    """

    prefix: ClassVar[str] = "tvm_deploy_plane"

    def assembly(self) -> str:
        """The function in GNU assembler syntax: fill the plane, eight numbers at a time, then copy row by row.

        A stride may leave the last pixels of a row out.
        """
        halves, copied = self.rows * self.pitch, min(self.height, self.rows - self.top)
        value = (self.border & 0xFFFF) * 0x10001
        lines = ["push {r4-r6, lr}", "mov r2, r1", *constant("r3", value), "mov r4, r3", "mov r5, r3", "mov r6, r3"]
        if halves >= 8:
            lines += [*constant("r12", halves // 8), "1:", "subs r12, r12, #1", "stmia r2!, {r3-r6}", "bgt 1b"]
        lines += ["strh r3, [r2], #2"] * (halves % 8)
        lines += _increased("r1", 2 * (self.top * self.pitch + self.left))
        width = min(self.width, self.pitch - self.left)
        lines += [*constant("r12", copied), "2:", *self._line(width)]
        lines += [*_increased("r0", (self.width - width) * self.channels), *_increased("r1", 2 * (self.pitch - width))]
        lines += ["subs r12, r12, #1", "bne 2b", "pop {r4-r6, pc}"]
        return function(self.symbol, lines)

    def _line(self, width: int) -> Iterator[str]:
        """One row of the image: its pixels are `channels` bytes apart."""
        groups, rest = divmod(width, 4)
        if groups > 2:
            yield from [*constant("lr", groups), "3:", *self._four(), "subs lr, lr, #1", "bne 3b"]
        else:
            for _ in range(groups):
                yield from self._four()
        for _ in range(rest):
            yield from self._pixel("r3")
            yield "strh r3, [r1], #2"

    def _four(self) -> Iterator[str]:
        for register in ("r3", "r4", "r5", "r6"):
            yield from self._pixel(register)
        yield from ["pkhbt r3, r3, r4, lsl #16", "pkhbt r5, r5, r6, lsl #16", "str r3, [r1], #4", "str r5, [r1], #4"]

    def _pixel(self, register: str) -> Iterator[str]:
        if self.channels <= 255:
            yield f"ldrsb {register}, [r0], #{self.channels}"
        else:
            yield f"ldrsb {register}, [r0]"
            yield from _increased("r0", self.channels)


def _increased(register: str, amount: int) -> list[str]:
    """Add up to 4095 at once."""
    steps = [4095] * (amount // 4095) + ([amount % 4095] if amount % 4095 else [])
    return [f"addw {register}, {register}, #{step}" for step in steps]
