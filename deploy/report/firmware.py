"""What a report knows of a library on a microcontroller: flash and RAM by what needs them, instructions by kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from deploy.budget import HOW


@dataclass(frozen=True)
class Layer:
    """One call of a kernel, in the order of execution, and the instructions that it took."""

    kernel: str
    instructions: int

    def __post_init__(self) -> None:
        if self.instructions < 0:
            raise ValueError(f"{self.instructions} instructions of {self.kernel}; it must be 0 or more")


@dataclass(frozen=True)
class Firmware:
    """Bytes of flash that linking the library adds, bytes of RAM that an inference needs, instructions it takes.

    libraries_bytes: of flash, functions of the toolchain that the model's code calls. io_bytes: inputs and outputs.
    pools: bytes of activations in each memory beside the arena; external_flash_bytes: weights that are in external
    flash, and not among the others. stack_bytes: the most that an inference used, None where it was not run.
    instructions: of an inference, a number for each sample, exact; layers: the first sample's. how: stack and
    instructions were obtained.
    """

    weights_bytes: int
    code_bytes: int
    glue_bytes: int
    libraries_bytes: int
    arena_bytes: int
    io_bytes: int
    stack_bytes: int | None
    instructions: tuple[int, ...]
    layers: tuple[Layer, ...]
    how: str
    pools: Mapping[str, int] = field(default_factory=dict)
    external_flash_bytes: int = 0

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ValueError(f"instructions cannot be {self.how!r}; allowed: {', '.join(HOW)}")
        values = [getattr(self, one.name) for one in fields(self)]
        if any(isinstance(value, int) and value < 0 for value in (*values, *self.pools.values(), *self.instructions)):
            raise ValueError("bytes and instructions are 0 or more")

    @property
    def flash_bytes(self) -> int:
        """Bytes of flash in all, those of external flash not counted."""
        return self.weights_bytes + self.code_bytes + self.glue_bytes + self.libraries_bytes

    @property
    def ram_bytes(self) -> int | None:
        """Bytes of RAM in all, pools too; None where the stack is not known."""
        if self.stack_bytes is None:
            return None
        return self.arena_bytes + sum(self.pools.values()) + self.io_bytes + self.stack_bytes
