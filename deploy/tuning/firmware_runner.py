"""Candidates for microcontrollers, measured in an emulator: many in one image, each in instructions, which are exact.

Each is compiled on its own, then all of a batch are linked into one image with the constants of their kernels. A
candidate that ends the program or runs for ever is put on record, and the rest of its batch is run again without it.
All outputs are compared with those of the default schedule, on the same inputs. The seconds of a candidate are its
instructions at the target's clock, one a cycle.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tvm import tirx
from tvm.target import Target as TvmTarget
from tvm_ffi import structural_equal

from deploy import shell
from deploy.aot.archive import ASSEMBLY, FAST, MICRO
from deploy.device.qemu import QemuDevice, emulator_command
from deploy.errors import InputError, ToolError
from deploy.firmware import candidates, harness
from deploy.firmware.candidates import Called, Outcome
from deploy.firmware.link import compile_command, link_command, source_path
from deploy.host import core_count
from deploy.kernels.for_target import machine_for
from deploy.kernels.in_place import may_share
from deploy.kernels.micro.assembly import assembly
from deploy.kernels.micro.c_source import c_source
from deploy.kernels.plain import build_object, external_symbols, to_plain
from deploy.target import Target
from deploy.tuning.builder import Built, compile_all
from deploy.tuning.firmware_task import Allowance, Blob, Known, same
from deploy.tuning.reasons import LONGEST_REASON, told
from deploy.tuning.runner import MEMORY_BYTES, Measured
from deploy.tuning.task import Task

OBJECT, FACTS = "candidate.o", "facts.json"
LARGEST_IMAGE = 64  # candidates
COMPILE_S = 60.0
START_S = 10.0  # that an image may run, and as much longer for each candidate
PER_CANDIDATE_S = 0.5
_STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
_COMPLAINTS = ("undefined reference", "overflowed", "will not fit")
# An exception's unwinding, which kernels have none of, and which would draw in a large part of a library.
_NO_UNWINDING = tuple(f"-Wl,--defsym=__aeabi_unwind_cpp_pr{number}=0" for number in (0, 1))


@dataclass(frozen=True)
class Job:
    """A scheduled kernel to compile, and what it may need; nothing about that for the default schedule itself."""

    func: tirx.PrimFunc
    allowance: Allowance | None


@dataclass(frozen=True)
class ObjectShop:
    """Where candidates are compiled to objects for one target."""

    folder: Path
    target: Target
    workers: int
    timeout_s: float = COMPILE_S
    memory_bytes: int = MEMORY_BYTES

    def compile(self, job: Job, folder: Path) -> None:
        """Compile one candidate. Raises ToolError where it needs more memory than the default, and what TVM raises."""
        tvm_target = TvmTarget(self.target.tvm)
        symbol = f"candidate_{folder.name}"
        kernel = to_plain(job.func, symbol, tvm_target)
        if job.allowance is not None:
            _check_memory(job.func, sum(kernel.workspace_bytes), job.allowance)
        build_object([kernel], tvm_target, str(folder / OBJECT))
        facts = {"symbol": symbol, "workspaces": kernel.workspace_bytes, "calls": sorted(external_symbols([kernel]))}
        (folder / FACTS).write_text(json.dumps(facts))


def _check_memory(func: tirx.PrimFunc, workspace_bytes: int, allowed: Allowance) -> None:
    if workspace_bytes > allowed.workspace_bytes:
        raise ToolError(f"needs {workspace_bytes} bytes of workspace, the default {allowed.workspace_bytes}")
    if not all(may_share(func, read, written) for read, written in allowed.shared):
        raise ToolError("its result cannot take the place of an input, that of the default schedule can")


@dataclass(frozen=True)
class _Entry:
    """A candidate in an image: its kernel, and its compiled form."""

    known: Known
    folder: Path
    symbol: str
    workspaces: tuple[int, ...]
    calls: tuple[str, ...]

    @classmethod
    def of(cls, known: Known, folder: Path) -> _Entry:
        facts = json.loads((folder / FACTS).read_text())
        return cls(known, folder, facts["symbol"], tuple(facts["workspaces"]), tuple(facts["calls"]))


@dataclass(frozen=True)
class _Result:
    """What became of an entry, and the bytes of its outputs where it came back."""

    outcome: Outcome
    data: bytes = b""


@dataclass
class FirmwareBench:
    """Where candidates for one emulated board are built and measured."""

    shop: ObjectShop
    known: dict[int, tuple[Task, Known]] = field(default_factory=dict)
    largest_round: int = LARGEST_IMAGE
    start_s: float = START_S

    @classmethod
    def open(cls, target: Target, folder: Path) -> FirmwareBench:
        """Compile in `folder` what all images have. Raises InputError for a board that is not emulated, ToolError."""
        if target.device.kind != "qemu":
            raise InputError(
                f"kernels of {target.name} cannot be tuned on a device of kind {target.device.kind}; tune them on an "
                "emulated board with the same core, or use `--trials 0`"
            )
        if target.tvm["kind"] != "llvm":
            raise InputError(f"kernels of {target.name} are made as C source, which cannot be tuned: use `--trials 0`")
        QemuDevice(target)  # says what the target lacks
        shell.require(emulator_command(target, "image")[0])
        bench = cls(ObjectShop(folder, target, core_count()))
        tick = harness.tick_flags(cast("float | None", target.device.get("tick")))
        for name in bench._sources:
            bench._compile(str(source_path(name)), f"{name}.o", [*_STRICT, *tick])
        return bench

    @property
    def _sources(self) -> tuple[str, ...]:
        return ("candidates.c", *harness.sources(self.shop.target.architecture))

    def _compile(self, source: str, result: str, flags: Sequence[str]) -> None:
        command = compile_command(self.shop.target.toolchain, flags, source, result)
        shell.run(command, timeout_s=COMPILE_S, cwd=self.shop.folder)

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
            entries = {number: _Entry.of(kernels[number], b.folder) for number, b in built.items() if not b.reason}
            results = self._run([*references.values(), *entries.values()])
            for reference, result in zip(references.values(), results, strict=False):
                _expect(reference.known, result)
            measured = dict(zip(entries, results[len(references) :], strict=True))
            own = {id(e.known): r for e, r in zip(references.values(), results, strict=False)}
            for number, kernel in enumerate(kernels):
                yield self._judged(kernel, built.get(number), measured.get(number) or own.get(id(kernel)))
        finally:
            for folder in [*(e.folder for e in references.values()), *(b.folder for b in built.values())]:
                shutil.rmtree(folder, ignore_errors=True)

    def _known(self, task: Task) -> Known:
        if id(task) not in self.known:
            self.known[id(task)] = (task, Known.of(task, machine_for(self.shop.target)))
        return self.known[id(task)][1]

    def _references(self, kernels: Sequence[Known]) -> dict[int, _Entry]:
        """The default schedules of kernels, compiled; one that cannot be leaves its reason."""
        found = {}
        for kernel, built in zip(kernels, compile_all(self.shop, [Job(k.func, None) for k in kernels]), strict=True):
            if built.reason:
                kernel.reason = built.reason
            else:
                found[id(kernel)] = entry = _Entry.of(kernel, built.folder)
                kernel.learn(entry.workspaces)
        return found

    def _judged(self, kernel: Known, built: Built | None, result: _Result | None) -> Measured:
        if built is not None and built.reason:
            return Measured(reason=built.reason)
        if kernel.expected is None or result is None:
            return Measured(reason=kernel.reason)
        if result.outcome.instructions is None:
            return Measured(reason=result.outcome.reason)
        if not same(kernel.outputs(result.data), kernel.expected):
            return Measured(reason="gave other outputs than the default schedule")
        return Measured((result.outcome.instructions / cast(float, self.shop.target.clock),))

    def _run(self, entries: Sequence[_Entry]) -> list[_Result]:
        """Link and run candidates; where they do not link, each half of them on its own."""
        if not entries:
            return []
        try:
            self._link(entries)
        except ToolError as error:
            if len(entries) == 1:
                return [_Result(Outcome(None, _linker_says(error)))]
            half = len(entries) // 2
            return [*self._run(entries[:half]), *self._run(entries[half:])]
        return self._emulated(entries)

    def _link(self, entries: Sequence[_Entry]) -> None:
        folder, blob, target = self.shop.folder, Blob(), self.shop.target
        called = [Called(e.symbol, e.known.arguments(e.workspaces, blob)) for e in entries]
        (folder / "constants.bin").write_bytes(bytes(blob.data))
        symbols = {symbol for entry in entries for symbol in entry.calls}
        micro = (MICRO, c_source(symbols)) if machine_for(target).micro == "plain" else (ASSEMBLY, assembly(symbols))
        made = [("table.c", candidates.table(called)), ("constants.S", candidates.constants("constants.bin")), micro]
        texts = {name: text for name, text in made if text}
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
            flags = FAST if name == MICRO else [f"-I{source_path('candidates.h').parent}"]
            self._compile(name, f"{name}.o", flags)
        objects = [*(f"{name}.o" for name in (*self._sources, *texts)), *(str(e.folder / OBJECT) for e in entries)]
        command = link_command(target.toolchain, [*objects, *_NO_UNWINDING], "image", memory=target.memory)
        shell.run(command, timeout_s=COMPILE_S, cwd=folder)

    def _emulated(self, entries: Sequence[_Entry]) -> list[_Result]:
        """Run an image until each of its candidates was called once."""
        results: dict[int, _Result] = {}
        while len(results) < len(entries):
            left = [number for number in range(len(entries)) if number not in results]
            answer, data, ended = self._answer(left, entries)
            at = 0
            for number, outcome in answer.outcomes.items():
                size = entries[number].known.output_bytes
                results[number] = _Result(outcome, data[at : at + size])
                at += size
            stuck = [answer.lost] if answer.lost is not None else left if not answer.outcomes else []
            results |= {number: _Result(Outcome(None, ended)) for number in stuck}
        return [results[number] for number in range(len(entries))]

    def _answer(self, numbers: Sequence[int], entries: Sequence[_Entry]) -> tuple[candidates.Answer, bytes, str]:
        """What the image answers about some of its candidates, their outputs, and how the emulator ended."""
        folder, limit_s = self.shop.folder, self.start_s + PER_CANDIDATE_S * len(numbers)
        (folder / "inputs").write_bytes(candidates.feed(numbers, [entries[n].known.inputs for n in numbers]))
        for name in ("answer", "outputs"):
            (folder / name).write_bytes(b"")
        started = time.monotonic()
        try:
            command = emulator_command(self.shop.target, "image")
            done = shell.run(command, timeout_s=limit_s, cwd=folder, check=False)
            ended = f"the emulator ended with {shell.exit_words(done.returncode)}"
        except ToolError:
            if time.monotonic() - started < limit_s:
                raise
            ended = "ran for ever"
        try:
            answer = candidates.decode((folder / "answer").read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            raise ToolError(f"{self.shop.target.name} cannot be tuned: {error}") from None
        return answer, (folder / "outputs").read_bytes(), ended


def _linker_says(error: ToolError) -> str:
    """Why an image cannot be linked: the linker's first complaint, without the names of temporary files."""
    lines = [line for line in str(error).splitlines() if any(word in line for word in _COMPLAINTS)]
    return lines[0].split(": ")[-1].strip()[:LONGEST_REASON] if lines else told(error)


def _expect(kernel: Known, result: _Result) -> None:
    """Take a default schedule's outputs as those that all candidates must give."""
    if result.outcome.instructions is None:
        kernel.reason = result.outcome.reason
    else:
        kernel.expected = kernel.outputs(result.data)
