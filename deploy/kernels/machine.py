"""What a schedule has to know of a processor."""

from __future__ import annotations

from dataclasses import dataclass

THREAD_STACK_BYTES = 128 * 1024  # that a kernel may use in a thread: the smallest stack that a C library gives one


@dataclass(frozen=True)
class Machine:
    """Bits and number of the vector registers, threads that share a kernel, bytes of the cache next to a core."""

    vector_bits: int
    registers: int
    threads: int = 1
    cache_bytes: int = 512 * 1024

    def lanes(self, element_bits: int) -> int:
        """Elements of `element_bits` in one vector register."""
        return max(1, self.vector_bits // element_bits)
