"""What a schedule has to know of a processor."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.kernels.dot import DotProduct

# That a kernel may use in each of its threads: of the pool's 1 MiB, and of the caller's own stack.
THREAD_STACK_BYTES = 512 * 1024


@dataclass(frozen=True)
class Machine:
    """Bits and number of the vector registers, threads that share a kernel, bytes of the cache next to a core.

    dots: the dot-product instructions for signed 8-bit and for 16-bit weights, where there are any.
    """

    vector_bits: int
    registers: int
    threads: int = 1
    cache_bytes: int = 512 * 1024
    dots: tuple[DotProduct, ...] = ()

    def dot(self, weight: str) -> DotProduct | None:
        """The instruction for weights of a type, or nothing."""
        wide = {"int8": ("int8", "int16"), "int16": ("int16",)}.get(weight, ())
        return next((dot for dot in self.dots if dot.weight in wide), None)

    def lanes(self, element_bits: int) -> int:
        """Elements of `element_bits` in one vector register."""
        return max(1, self.vector_bits // element_bits)
