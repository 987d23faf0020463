"""The inner loops of convolutions and products on Cortex-M cores with the DSP extension, as Thumb-2 assembly.

LLVM has one name for `smlad`, which multiplies two pairs of int16 and adds both products, but no way to keep eight sums
of it in registers: it spills a third of them. So the loop is written here, for each shape that a model has.

Weights are stored as 16-bit numbers of two digits: 256 * (weight of an odd channel) + (weight of the even one before
it). `smlad` with the stored words sums 256 * odd + even; with the low bytes, sign-extended by one `sxtb16` in place, it
sums the even channel; the odd one is their difference divided by 256, exact as long as it is below 2^23.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from deploy.kernels.micro.shapes import Shape

FILL = "tvm_deploy_fill"  # void f(int16_t *to, int32_t count, int32_t value)
WIDEN = "tvm_deploy_widen"  # void f(const int8_t *from, int16_t *to, int32_t count)
LARGEST_SUM = 2**23  # of the digit that is read off the upper 24 bits
_NEXT_ROW = (
    "ldr r2, [sp, #4]", "subs r2, r2, #1", "str r2, [sp, #4]", "ldr r3, [sp, #12]", "add r0, r0, r3", "bne 1b"
)  # fmt: skip
_SUMS = ("r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11")


@dataclass(frozen=True)
class MicroKernel(Shape):
    """sums[pixel, channel] += over rows and pairs of activations[row, pixel * step + k] * weights[row, k, channel].

    `pixels` x `channels` sums of int32; `rows` x `pairs` of two int16 activations; pixels lie `step` activations apart;
    `unroll` pairs are one turn of the innermost loop.

    Its function: `void f(const int16_t *activations, const int16_t *weights, int32_t *sums, int32_t pitch)`, pitch in
    bytes, from the end of what one row reads for the first pixel to the start of the next row.
    """

    prefix: ClassVar[str] = "tvm_deploy_smlad"

    pixels: int
    channels: int
    rows: int
    pairs: int
    step: int
    unroll: int = 4

    def __post_init__(self) -> None:
        if self.pixels * self.channels not in (4, 8) or self.channels % 4 or not 1 <= self.pixels <= 2:
            raise ValueError(f"no micro-kernel has {self.pixels} pixels and {self.channels} channels")
        if self.step * 2 + 4 > 4095 or min(self.rows, self.pairs) < 1:
            raise ValueError(f"no micro-kernel has {self.rows} rows of {self.pairs} pairs, {self.step} apart")

    def assembly(self) -> str:
        """The function in GNU assembler syntax.

        r0, r1: next activation and weight. r4-r11: sums. On the stack: the weights' end, rows left, the last two
        arguments.
        """
        steps, rest = divmod(self.pairs, self.unroll)
        looped = steps > 1
        body = [line for _ in range(self.unroll if steps else 0) for line in self._step()]
        tail = [line for _ in range(rest) for line in self._step()]
        loop = ["ldr r2, [sp]", "cmp r1, r2", "bne 2b"] if looped else []
        start = [*constant("r2", steps * self.unroll * self.channels * 2), "add r2, r1, r2", "str r2, [sp]", "2:"]
        lines = [
            "push {r2-r11, lr}",
            "sub sp, sp, #8",
            f"ldm r2, {{{self._range()}}}",
            *([*constant("r2", self.rows), "str r2, [sp, #4]", "1:"] if self.rows > 1 else []),
            *(start if looped else []),
            *body,
            *loop,
            *tail,
            *(_NEXT_ROW if self.rows > 1 else []),
            "ldr r2, [sp, #8]",
            f"stm r2, {{{self._range()}}}",
            "add sp, sp, #16",
            "pop {r4-r11, pc}",
        ]
        return function(self.symbol, lines)

    def _range(self) -> str:
        return f"r4-{_SUMS[self.pixels * self.channels - 1]}"

    def _step(self) -> Iterator[str]:
        """Two activations of each pixel times those weights of every channel."""
        yield "ldr r2, [r0], #4"
        if self.pixels > 1:
            yield f"ldr r3, [r0, #{self.step * 2 - 4}]"
        for pair in range(0, self.channels // 2, 2):
            yield "ldrd r12, lr, [r1], #8"
            for word, first in (("r12", 2 * pair), ("lr", 2 * pair + 2)):
                yield from self._products(word, first + 1)
                yield f"sxtb16 {word}, {word}"
                yield from self._products(word, first)

    def _products(self, word: str, channel: int) -> Iterator[str]:
        for pixel in range(self.pixels):
            total = _SUMS[pixel * self.channels + channel]
            yield f"smlad {total}, r{2 + pixel}, {word}, {total}"


_WIDENING = """\
push {r4-r6, lr}
orr r3, r0, r1
lsls r3, r3, #30
bne 2f
subs r2, r2, #8
blt 1f
0:
ldmia r0!, {r3, r12}
subs r2, r2, #8
sxtb16 r4, r3
sxtb16 r3, r3, ror #8
pkhtb r5, r3, r4, asr #16
pkhbt r4, r4, r3, lsl #16
sxtb16 r6, r12
sxtb16 r3, r12, ror #8
pkhtb r12, r3, r6, asr #16
pkhbt r6, r6, r3, lsl #16
stmia r1!, {r4, r5, r6, r12}
bge 0b
1:
adds r2, r2, #8
2:
cmp r2, #0
ble 4f
3:
ldrsb r3, [r0], #1
subs r2, r2, #1
strh r3, [r1], #2
bne 3b
4:
pop {r4-r6, pc}"""

_FILLING = """\
1:
subs r1, r1, #1
strh r2, [r0], #2
bgt 1b
bx lr"""


def constant(register: str, value: int) -> list[str]:
    """Instructions that load a number."""
    high = [f"movt {register}, #{value >> 16}"] if value >> 16 else []
    return [f"movw {register}, #{value & 0xFFFF}", *high]


def function(symbol: str, lines: list[str]) -> str:
    """A Thumb function in a section of its own, so that a linker can drop it."""
    body = "".join(line + "\n" if line.endswith(":") else f"  {line}\n" for line in lines)
    return (
        f'  .section .text.{symbol},"ax",%progbits\n  .balign 4\n  .weak {symbol}\n  .hidden {symbol}\n'
        f"  .type {symbol}, %function\n  .thumb_func\n{symbol}:\n{body}  .size {symbol}, . - {symbol}\n"
    )


def two_digits(weights: npt.NDArray[np.generic], channels: int, largest: int) -> npt.NDArray[np.int16] | None:
    """int8 weights [rows, k, CO] → stored numbers int16 [CO / channels, rows, k / 2, channels / 2, 2].

    Missing channels and an odd k are filled with zeros. Nothing where a digit could overflow, or a sum of products with
    activations of at most `largest` that is read off as the upper digit.
    """
    rows, size, count = weights.shape
    filled = np.zeros((rows, size + size % 2, -(-count // channels) * channels), np.int64)
    filled[:, :size, :count] = weights
    even, odd = filled[..., 0::2], filled[..., 1::2]
    numbers = 256 * odd + even
    sums = np.abs(odd).sum(axis=(0, 1)) * largest
    if numbers.min(initial=0) < -(2**15) or numbers.max(initial=0) >= 2**15 or sums.max(initial=0) >= LARGEST_SUM:
        return None
    split = numbers.reshape(rows, filled.shape[1] // 2, 2, filled.shape[2] // channels, channels // 2)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 4, 2)).astype(np.int16)


def fixed(symbol: str) -> str | None:
    """The function of a symbol that is the same for every model."""
    lines = {WIDEN: _WIDENING, FILL: _FILLING}.get(symbol)
    return None if lines is None else function(symbol, lines.split("\n"))
