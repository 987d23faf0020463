"""What a kernel's candidates are given on a microcontroller, must give back, and may need of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm_ffi import structural_walk

from deploy.firmware import candidates
from deploy.firmware.candidates import Argument
from deploy.kernels.buffers import buffer_bytes
from deploy.kernels.default import default_schedule
from deploy.kernels.in_place import may_share
from deploy.kernels.machine import Machine
from deploy.tuning.task import Task

SMALL = 8  # integers of 32 bits that a kernel is given are below: they may be places in a table
RELATIVE = 1e-4  # by which sums of floats may differ that were added in another order

Outputs = list[npt.NDArray[Any]]


@dataclass
class Blob:
    """The constants of an image, each once."""

    data: bytearray = field(default_factory=bytearray)
    places: dict[int, int] = field(default_factory=dict)

    def place(self, values: npt.NDArray[Any]) -> int:
        """Where a constant lies."""
        if id(values) not in self.places:
            self.places[id(values)] = len(self.data)
            data = np.ascontiguousarray(values).tobytes()
            self.data += data.ljust(candidates.aligned(len(data)), b"\0")
        return self.places[id(values)]


@dataclass(frozen=True)
class Allowance:
    """What the default schedule of a kernel needs: bytes of workspaces, and which parameters may share memory."""

    workspace_bytes: int
    shared: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Result:
    """What became of a candidate on a device: counts of its calls, its outputs' bytes, or why there are none."""

    counts: tuple[int, ...] = ()
    data: bytes = b""
    reason: str = ""


@dataclass
class Known:
    """A kernel's default schedule, what candidates are given, what they must give, and what it took."""

    func: tirx.PrimFunc
    constants: tuple[npt.NDArray[Any] | None, ...]
    inputs: dict[int, npt.NDArray[Any]]  # by the parameter
    allowance: Allowance | None = None
    expected: Outputs | None = None
    reason: str = "was not run"

    @classmethod
    def of(cls, task: Task, machine: Machine) -> Known:
        func = default_schedule(task.mod["main"], machine).mod["main"]
        written = _written(func)
        constants = (*task.constants, *[None] * (len(func.params) - len(task.constants)))
        random = np.random.default_rng(0)
        given = {
            number: _numbers(buffer, random)
            for number, (buffer, constant) in enumerate(zip(func.params, constants, strict=True))
            if constant is None and number not in written
        }
        return cls(func, constants, given)

    def learn(self, workspaces: Sequence[int]) -> None:
        """Note what the default schedule needs, which is all that candidates may need."""
        written, count = _written(self.func), len(self.func.params)
        free = [n for n in range(count) if n not in written and self.constants[n] is None]
        shared = [(read, wrote) for read in free for wrote in sorted(written) if may_share(self.func, read, wrote)]
        self.allowance = Allowance(sum(workspaces), tuple(shared))

    def arguments(self, workspaces: Sequence[int], blob: Blob) -> tuple[Argument, ...]:
        """What a candidate is called with."""
        written, found = _written(self.func), []
        for number, (buffer, constant) in enumerate(zip(self.func.params, self.constants, strict=True)):
            nbytes = buffer_bytes(buffer)
            if constant is not None:
                found.append(Argument("constant", nbytes, blob.place(constant)))
            elif number in written:
                found.append(Argument("output", nbytes))
            else:
                found.append(Argument("input", nbytes, blob.place(self.inputs[number])))
        return (*found, *(Argument("workspace", nbytes) for nbytes in workspaces))

    def outputs(self, data: bytes) -> Outputs:
        """The outputs in what the harness wrote."""
        found, at = [], 0
        for number in sorted(_written(self.func)):
            buffer = self.func.params[number]
            found.append(np.frombuffer(data[at : at + buffer_bytes(buffer)], str(buffer.ty.dtype)))
            at += buffer_bytes(buffer)
        return found

    @property
    def output_bytes(self) -> int:
        return sum(buffer_bytes(self.func.params[number]) for number in _written(self.func))


def _written(func: tirx.PrimFunc) -> set[int]:
    """The parameters that a kernel writes: those that its statements store to."""
    stored: list[Any] = []
    structural_walk(func.body, (tirx.BufferStore, lambda node: stored.append(node.buffer)))
    return {number for number, p in enumerate(func.params) if any(p.same_as(buffer) for buffer in stored)}


def _numbers(buffer: tirx.Buffer, random: np.random.Generator) -> npt.NDArray[Any]:
    """What an input that is no constant is filled with: the same for all candidates and in every run."""
    dtype, count = np.dtype(str(buffer.ty.dtype)), prod(map(int, buffer.ty.shape))
    if dtype.kind == "f":
        return random.uniform(0, 2, count).astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, count).astype(dtype)
    if dtype.itemsize > 2:
        return random.integers(0, SMALL, count).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max + 1, count).astype(dtype)


def same(actual: Outputs, expected: Outputs) -> bool:
    """Whether a candidate gives what the default schedule gives: integers exactly, floats nearly."""
    for one, other in zip(actual, expected, strict=True):
        if one.dtype.kind != "f":
            if not np.array_equal(one, other):
                return False
        elif not np.allclose(one, other, RELATIVE, RELATIVE * float(np.abs(other).max(initial=0)), equal_nan=True):
            return False
    return True
