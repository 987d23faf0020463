"""What a report knows of a library on a microcontroller: flash and RAM by what needs them, instructions by kernel."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
    stack_bytes: the most that an inference used, None where it was not run. instructions: of an inference, a number for
    each sample, exact; layers: the first sample's. how: stack and instructions were obtained.
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

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ValueError(f"instructions cannot be {self.how!r}; allowed: {', '.join(HOW)}")
        values = [getattr(self, field.name) for field in fields(self)]
        if any(isinstance(value, int) and value < 0 for value in (*values, *self.instructions)):
            raise ValueError("bytes and instructions are 0 or more")

    @property
    def flash_bytes(self) -> int:
        """Bytes of flash in all."""
        return self.weights_bytes + self.code_bytes + self.glue_bytes + self.libraries_bytes

    @property
    def ram_bytes(self) -> int | None:
        """Bytes of RAM in all; None where the stack is not known."""
        return None if self.stack_bytes is None else self.arena_bytes + self.io_bytes + self.stack_bytes
