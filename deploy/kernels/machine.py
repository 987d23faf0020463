"""What a schedule has to know of a processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.kernels.dot import DotProduct

# That a kernel may use in each of its threads: of the pool's 1 MiB, and of the caller's own stack.
THREAD_STACK_BYTES = 512 * 1024


@dataclass(frozen=True)
class Machine:
    """Bits and number of the vector registers, threads that share a kernel, bytes of the cache next to a core.

    dots: the dot-product instructions for signed 8-bit and for 16-bit weights, where there are any.
    micro: it is a microcontroller with micro-kernels: "dsp" has `smlad` on two pairs of int16, "helium" vectors, and
    "plain" neither.
    """

    vector_bits: int
    registers: int
    threads: int = 1
    cache_bytes: int = 512 * 1024
    dots: tuple[DotProduct, ...] = ()
    micro: Literal["dsp", "helium", "plain"] | None = None

    @property
    def microcontroller(self) -> bool:
        """Whether it has micro-kernels, or no vectors at all."""
        return self.micro is not None or self.lanes(32) == 1

    def dot(self, weight: str) -> DotProduct | None:
        """The instruction for weights of a type, or nothing."""
        wide = {"int8": ("int8", "int16"), "int16": ("int16",)}.get(weight, ())
        return next((dot for dot in self.dots if dot.weight in wide), None)

    def lanes(self, element_bits: int) -> int:
        """Elements of `element_bits` in one vector register."""
        return max(1, self.vector_bits // element_bits)
