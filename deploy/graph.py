"""A model as plain data: tensors, and the calls that turn inputs into outputs, in order."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from deploy.model_spec import DTYPES

Kind = Literal["input", "output", "constant", "activation", "workspace"]


@dataclass(frozen=True)
class Tensor:
    """One value: `shape` in elements; `values` only for constants; `alias_of` where it shares another's memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    alias_of: str | None = None
    values: npt.NDArray[np.generic] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return prod(self.shape) * DTYPES[self.dtype]


@dataclass(frozen=True)
class Call:
    """One kernel call: the kernel's parameters are inputs, outputs, workspaces. The kernel `copy` copies bytes."""

    kernel: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    workspaces: tuple[str, ...] = ()

    @property
    def written(self) -> tuple[str, ...]:
        """Tensors that the call writes."""
        return (*self.outputs, *self.workspaces)

    @property
    def arguments(self) -> tuple[str, ...]:
        """All parameters, in the kernel's order."""
        return (*self.inputs, *self.written)


COPY = "copy"


@dataclass(frozen=True)
class Graph:
    """Tensors by name, calls in the order of execution, the model's inputs and outputs in its own order."""

    tensors: dict[str, Tensor]
    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def root(self, name: str) -> Tensor:
        """The tensor whose memory `name` lives in."""
        tensor = self.tensors[name]
        while tensor.alias_of is not None:
            tensor = self.tensors[tensor.alias_of]
        return tensor

    @property
    def constant_bytes(self) -> int:
        """Bytes of all constants that a call reads."""
        return sum(t.nbytes for t in self.used_constants())

    def used_constants(self) -> list[Tensor]:
        """Constants that some call reads, in the order of first use."""
        found: dict[str, Tensor] = {}
        for call in self.calls:
            for name in call.inputs:
                root = self.root(name)
                if root.kind == "constant":
                    found.setdefault(root.name, root)
        return list(found.values())
