"""Candidates for microcontrollers, measured on the device: many in one image, each on its own account.

Each is compiled on its own, then all of a batch are linked into one image, or as few as the memories allow. The
device is an emulator, which counts instructions exactly, or a board at the end of a serial line, which counts cycles. A
candidate that crashes, hangs or does not fit is put on record, and the others are measured all the same. All outputs
are compared with those of the default schedule, on the same inputs. The seconds of a candidate are its cycles, or
instructions, at the target's clock.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from tvm import tirx
from tvm_ffi import structural_equal

from deploy.errors import InputError
from deploy.host import core_count
from deploy.kernels.for_target import machine_for
from deploy.target import Target
from deploy.tuning.builder import Built, compile_all
from deploy.tuning.firmware_image import Entry, Image, Linker
from deploy.tuning.firmware_qemu import Emulator
from deploy.tuning.firmware_serial import SerialRunner
from deploy.tuning.firmware_shop import Job, ObjectShop
from deploy.tuning.firmware_task import Known, Result, same
from deploy.tuning.runner import Measured
from deploy.tuning.task import Task

LARGEST_IMAGE = 64  # candidates


class Runner(Protocol):
    """Calls candidates on a device; `note` says what there is to tell of it so far."""

    @property
    def note(self) -> str: ...

    def run(self, image: Image, entries: Sequence[Entry]) -> Iterator[Result]:
        """What became of each candidate of an image, in their order, each as soon as it is known."""


@dataclass(frozen=True)
class _Batch:
    """Candidates to run: kernels of all that were asked for, and what was compiled for them, by their numbers.

    references: default schedules, by the id of their kernel, which are run first.
    """

    kernels: list[Known]
    references: dict[int, Entry]
    built: dict[int, Built]
    compiled: dict[int, Entry]

    @property
    def entries(self) -> list[Entry]:
        return [*self.references.values(), *self.compiled.values()]

    def place(self, number: int) -> int | None:
        """Where among the entries a candidate is, or the default schedule that it is the same as."""
        if number in self.compiled:
            return len(self.references) + list(self.compiled).index(number)
        return None if number in self.built else self._standard(number)

    def needs(self, number: int) -> set[int]:
        """Places of the entries that a candidate is judged by."""
        return {place for place in (self.place(number), self._standard(number)) if place is not None}

    def _standard(self, number: int) -> int | None:
        own = id(self.kernels[number])
        return list(self.references).index(own) if own in self.references else None


@dataclass
class FirmwareBench:
    """Where candidates for one microcontroller are built and measured."""

    shop: ObjectShop
    linker: Linker
    runner: Runner
    known: dict[int, tuple[Task, Known]] = field(default_factory=dict)
    largest_round: int = LARGEST_IMAGE

    @property
    def note(self) -> str:
        """What there is to tell of the device so far."""
        return self.runner.note

    @classmethod
    def open(cls, target: Target, folder: Path) -> FirmwareBench:
        """Compile in `folder` what all images have. Raises InputError: the target lacks something; ToolError."""
        if target.tvm["kind"] != "llvm":
            raise InputError(f"kernels of {target.name} are made as C source, which cannot be tuned: use `--trials 0`")
        linker, runner = _device(target, folder)
        linker.prepare()
        return cls(ObjectShop(folder, target, core_count()), linker, runner)

    def measure(self, funcs: Sequence[tirx.PrimFunc], tasks: Sequence[Task]) -> Iterator[Measured]:
        """Build all scheduled kernels, each of the task beside it, and run them; a new task's default schedule too."""
        kernels = [self._known(task) for task in tasks]
        fresh = [kernel for kernel in {id(k): k for k in kernels}.values() if kernel.allowance is None]
        references = self._references(fresh)
        others = [
            (number, Job(func, kernel.allowance))
            for number, (func, kernel) in enumerate(zip(funcs, kernels, strict=True))
            if kernel.allowance is not None and not (id(kernel) in references and structural_equal(func, kernel.func))
        ]
        built = dict(zip([n for n, _ in others], compile_all(self.shop, [job for _, job in others]), strict=True))
        try:
            compiled = {number: Entry.of(kernels[number], b.folder) for number, b in built.items() if not b.reason}
            yield from self._measured(_Batch(kernels, references, built, compiled))
        finally:
            for folder in [*(e.folder for e in references.values()), *(b.folder for b in built.values())]:
                shutil.rmtree(folder, ignore_errors=True)

    def _measured(self, batch: _Batch) -> Iterator[Measured]:
        """Run a batch; what became of each candidate, in their order, each as soon as it is known."""
        entries, found, told = batch.entries, dict[int, Result](), 0
        for at, result in self._run(entries):
            found[at] = result
            if at < len(batch.references):
                _expect(entries[at].known, result)
            while told < len(batch.kernels) and batch.needs(told) <= found.keys():
                yield self._judged(batch, told, found)
                told += 1
        for number in range(told, len(batch.kernels)):  # where there was nothing to run
            yield self._judged(batch, number, found)

    def _known(self, task: Task) -> Known:
        if id(task) not in self.known:
            self.known[id(task)] = (task, Known.of(task, machine_for(self.shop.target)))
        return self.known[id(task)][1]

    def _references(self, kernels: Sequence[Known]) -> dict[int, Entry]:
        """The default schedules of kernels, compiled; one that cannot be leaves its reason."""
        found = {}
        for kernel, built in zip(kernels, compile_all(self.shop, [Job(k.func, None) for k in kernels]), strict=True):
            if built.reason:
                kernel.reason = built.reason
            else:
                found[id(kernel)] = entry = Entry.of(kernel, built.folder)
                kernel.learn(entry.workspaces)
        return found

    def _judged(self, batch: _Batch, number: int, found: dict[int, Result]) -> Measured:
        kernel, built, place = batch.kernels[number], batch.built.get(number), batch.place(number)
        if built is not None and built.reason:
            return Measured(reason=built.reason)
        if kernel.expected is None or place is None:
            return Measured(reason=kernel.reason)
        result = found[place]
        if result.reason:
            return Measured(reason=result.reason)
        if not same(kernel.outputs(result.data), kernel.expected):
            return Measured(reason="gave other outputs than the default schedule")
        clock = cast(float, self.shop.target.clock)
        return Measured(tuple(count / clock for count in result.counts))

    def _run(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Result]]:
        """Link candidates and run them, in as many images as it takes; each one's place, and what became of it."""
        reasons: dict[int, str] = {}
        for image in self.linker.images(entries, reasons):
            yield from _drained(reasons)
            members = [entries[number] for number in image.numbers]
            yield from zip(image.numbers, self.runner.run(image, members), strict=True)
        yield from _drained(reasons)


def _drained(reasons: dict[int, str]) -> Iterator[tuple[int, Result]]:
    while reasons:
        number, reason = reasons.popitem()
        yield number, Result(reason=reason)


def _device(target: Target, folder: Path) -> tuple[Linker, Runner]:
    """What links images for a target's device, and what runs them. Raises InputError: there are none."""
    outside = target.memory.external_flash is not None and target.memory.weights != "internal"
    if target.device.kind == "qemu":
        linker = Linker(folder, target, Emulator.sources(target), outside)
        return linker, Emulator(linker)
    if target.device.kind == "serial":
        flash = cast("tuple[str, ...]", target.device.get("flash") or ())
        linker = Linker(folder, target, SerialRunner.sources(target), outside and not any("{bin}" in p for p in flash))
        return linker, SerialRunner(linker)
    raise InputError(
        f"kernels of {target.name} cannot be tuned on a device of kind {target.device.kind}; tune them on a board, on "
        "an emulated one with the same core, or use `--trials 0`"
    )


def _expect(kernel: Known, result: Result) -> None:
    """Take a default schedule's outputs as those that all candidates must give."""
    if result.reason:
        kernel.reason = result.reason
    else:
        kernel.expected = kernel.outputs(result.data)
