"""The inner loops of depthwise convolutions on Cortex-M cores with Helium, as Thumb-2 assembly.

Four channels at a time: their images are copied out of the interleaved tensor into planes of bytes with the border
around them. One gathering load then takes all taps of a window (up to 16), and `vmladav.s8` sums their products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from deploy.kernels.micro.helium import FARTHEST, LANES, moved
from deploy.kernels.micro.shapes import PlaneShape, Shape
from deploy.kernels.micro.smlad import constant, function

GROUP = 4  # channels
_UNROLLED = 4  # sums in one turn of the loop


@dataclass(frozen=True)
class GatheredKernel(Shape):
    """sums[h, w, c] = over the kernel of plane c at [h * stride + kh, w * stride + kw] * weights[c, kh, kw].

    There are four planes, one a channel, `plane` bytes apart; their rows lie `pitch` bytes apart.

    Its function: `void f(const int8_t *planes, const int8_t *weights, int32_t *sums)`.
    """

    prefix: ClassVar[str] = "tvm_deploy_gathered"

    rows: int
    columns: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pitch: int = 0
    plane: int = 0

    def assembly(self) -> str:
        """The function in GNU assembler syntax.

        r0: window; r1: weights; r2: sums; r3, r8: image of a row and of a channel; r5: rows left; r6: channels left;
        r9: a channel's sums; q0: taps; q1: weights; q2: their offsets.
        """
        offsets = f".L{self.symbol}_offsets"
        lines = ["push {r4-r9, lr}", "mov r8, r0", "mov r9, r2", f"adr r4, {offsets}", "vldrb.8 q2, [r4]"]
        lines += ["movs r6, #4", "6:", "vldrb.8 q1, [r1], #16", "mov r3, r8", "mov r2, r9", *constant("r5", self.rows)]
        lines += ["5:", "mov r0, r3"]
        turns, rest = divmod(self.columns, _UNROLLED)
        body = [line for _ in range(_UNROLLED) for line in self._sum()]
        if turns > 1:
            lines += [*constant("lr", turns), "dls lr, lr", "4:", *body, "le lr, 4b"]
        elif turns:
            lines += body
        lines += [line for _ in range(rest) for line in self._sum()]
        lines += [*moved("r3", "r3", self.stride_h * self.pitch), "subs r5, r5, #1", "bne 5b"]
        lines += [*moved("r8", "r8", self.plane), "add r9, r9, #4", "subs r6, r6, #1", "bne 6b", "pop {r4-r9, pc}"]
        taps = [kh * self.pitch + kw for kh in range(self.kernel_h) for kw in range(self.kernel_w)]
        data = ", ".join(map(str, [*taps, *[0] * (LANES - len(taps))]))
        return function(self.symbol, [*lines, ".balign 4", f"{offsets}:", f".byte {data}"])

    def _sum(self) -> Iterator[str]:
        yield from ["vldrb.u8 q0, [r0, q2]", "vmladav.s8 r4, q0, q1"]
        yield from [f"adds r0, r0, #{self.stride_w}", "str r4, [r2], #16"]


def stored_taps(kernel: npt.NDArray[np.generic]) -> npt.NDArray[np.int8]:
    """[KH, KW, C] → [C / 4, 4, 16], what is missing zero."""
    height, width, channels = kernel.shape
    filled = np.zeros((channels, LANES), np.int8)
    filled[:, : height * width] = kernel.reshape(height * width, channels).T
    return filled.reshape(channels // GROUP, GROUP, LANES)


def fits(height: int, width: int, columns: int, stride: int) -> bool:
    """Whether one gathering load takes a window of a kernel [height, width], in rows of so many results."""
    pitch = (columns - 1) * stride + width
    return height * width <= LANES and (height - 1) * pitch + width - 1 <= FARTHEST


@dataclass(frozen=True)
class Planes(PlaneShape):
    """Four channels' images: [height, width, channels] int8 → [4, rows, pitch], `border` around each.

    Its function: `void f(const int8_t *channels, int8_t *planes)`.
    """

    prefix: ClassVar[str] = "tvm_deploy_planes"

    def assembly(self) -> str:
        """The function in GNU assembler syntax: fill the planes, then scatter pixel by pixel; q1: where they begin.

        A stride may leave the last pixels of a row out.
        """
        places = f".L{self.symbol}_places"
        copied, width = min(self.height, self.rows - self.top), min(self.width, self.pitch - self.left)
        lines = ["push {r4, lr}", *constant("r2", self.border & 0xFF), "vdup.8 q0, r2", "mov r3, r1"]
        lines += [*constant("r2", GROUP * self.rows * self.pitch), "dlstp.8 lr, r2", "1:", "vstrb.8 q0, [r3], #16"]
        lines += ["letp lr, 1b", f"adr r3, {places}", "vldrw.32 q1, [r3]"]
        lines += [*moved("r1", "r1", self.top * self.pitch + self.left), *constant("r4", copied), "2:"]
        lines += [*constant("lr", width), "dls lr, lr", "3:", *self._pixel(), "le lr, 3b"]
        lines += [*moved("r0", "r0", (self.width - width) * self.channels), *moved("r1", "r1", self.pitch - width)]
        lines += ["subs r4, r4, #1", "bne 2b", "pop {r4, pc}"]
        data = ", ".join(str(index * self.rows * self.pitch) for index in range(GROUP))
        return function(self.symbol, [*lines, ".balign 4", f"{places}:", f".word {data}"])

    def _pixel(self) -> Iterator[str]:
        if self.channels <= 127:
            yield f"vldrb.u32 q0, [r0], #{self.channels}"
        else:
            yield from ["vldrb.u32 q0, [r0]", *moved("r0", "r0", self.channels)]
        yield from ["vstrb.32 q0, [r1, q1]", "adds r1, r1, #1"]
