"""Images of many candidates: linked, and as few of them as the memories of the target allow."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import shell
from deploy.aot.archive import ASSEMBLY, FAST, HALF_FLOATS, MICRO
from deploy.errors import ToolError
from deploy.firmware import candidates
from deploy.firmware.candidates import Argument, Called
from deploy.firmware.link import MEMORIES, compile_command, link_command, memories_script, source_path, tool
from deploy.kernels.for_target import machine_for
from deploy.kernels.micro.assembly import assembly
from deploy.kernels.micro.c_source import c_source
from deploy.target import Target
from deploy.tuning.firmware_shop import COMPILE_S, FACTS, OBJECT
from deploy.tuning.firmware_task import Blob, Known
from deploy.tuning.reasons import LONGEST_REASON, told

IMAGE = "image.elf"
_CONSTANTS = "constants.bin"
_LOADED = (".text", ".rodata", ".data")
PROGRAM_BYTES = 4 << 10  # of flash, that candidates and the program that calls them take at least
_STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
_NO_STACK = "left for the stack"
_COMPLAINTS = ("undefined reference", "overflowed", "will not fit", _NO_STACK)  # the plainest first
_UNDEFINED = re.compile(r"undefined reference to `(\w+)'")
_OVERFLOWED = re.compile(r"region `(\w+)' overflowed by (\d+) bytes")
# An exception's unwinding, which kernels have none of, and which would draw in a large part of a library.
_NO_UNWINDING = tuple(f"-Wl,--defsym=__aeabi_unwind_cpp_pr{number}=0" for number in (0, 1))


@dataclass(frozen=True)
class Entry:
    """A candidate in an image: its kernel, and its compiled form."""

    known: Known
    folder: Path
    symbol: str
    workspaces: tuple[int, ...]
    calls: tuple[str, ...]

    @classmethod
    def of(cls, known: Known, folder: Path) -> Entry:
        """What was compiled into `folder`."""
        facts = json.loads((folder / FACTS).read_text())
        return cls(known, folder, facts["symbol"], tuple(facts["workspaces"]), tuple(facts["calls"]))

    def arguments(self, blob: Blob) -> tuple[Argument, ...]:
        """What it is called with; what of that is in flash is put into `blob`."""
        return self.known.arguments(self.workspaces, blob)

    @property
    def outputs(self) -> tuple[tuple[int, int], ...]:
        """Place in the area and bytes of each output."""
        arguments = self.arguments(Blob())
        placed = zip(arguments, candidates.places(arguments)[0], strict=True)
        return tuple((place, argument.nbytes) for argument, place in placed if argument.use == "output")

    @property
    def ram_bytes(self) -> int:
        return candidates.places(self.arguments(Blob()))[1]

    @property
    def flash_bytes(self) -> int:
        """Of its kernel's constants and inputs."""
        blob = Blob()
        self.arguments(blob)
        return len(blob.data)


@dataclass(frozen=True)
class Image:
    """Candidates that were linked into IMAGE, by their numbers; external: their constants are in external flash."""

    numbers: tuple[int, ...]
    identity: int
    external: bool


@dataclass(frozen=True)
class Source:
    """A file that all images of a target have, and its flags."""

    path: Path
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Linker:
    """Links images in a folder. sources: what all of them have. external: constants may be in external flash."""

    folder: Path
    target: Target
    sources: tuple[Source, ...]
    external: bool = False

    def prepare(self) -> None:
        """Compile what all images have. Raises ToolError."""
        for number, source in enumerate(self.sources):
            self._compile(str(source.path), _object(number), [*_STRICT, *source.flags])

    def images(self, entries: Sequence[Entry], reasons: dict[int, str]) -> Iterator[Image]:
        """Images that hold all candidates, each in IMAGE until the next is asked for.

        reasons: gets those why candidates do not link, or do not fit, by their numbers.
        """
        groups = self._grouped(entries)
        while groups:
            numbers, external = groups.pop(0)
            members = [entries[number] for number in numbers]
            try:
                identity = self._link(members, external=external)
            except ToolError as error:
                groups[:0] = self._divided(numbers, members, error, reasons, external=external)
            else:
                yield Image(tuple(numbers), identity, external)

    def _grouped(self, entries: Sequence[Entry]) -> list[tuple[list[int], bool]]:
        """Numbers of candidates for one image each, and whether their constants are in external flash."""
        memory = self.target.memory
        largest = (memory.flash or 0) - PROGRAM_BYTES
        always = self.external and memory.weights == "external"
        outside = [self.external and (always or (memory.flash and e.flash_bytes > largest)) for e in entries]
        kernels = list(dict.fromkeys(id(entry.known) for entry in entries))  # those of one beside each other
        ordered = sorted(range(len(entries)), key=lambda number: kernels.index(id(entries[number].known)))
        inner = [number for number in ordered if not outside[number]]
        outer = [number for number in ordered if outside[number]]
        return [(numbers, external) for numbers, external in ((inner, False), (outer, True)) if numbers]

    def _divided(
        self, numbers: list[int], members: list[Entry], error: ToolError, reasons: dict[int, str], *, external: bool
    ) -> list[tuple[list[int], bool]]:
        """What to link in place of a group that did not; those who are to blame get a reason if that can be told."""
        large = {region: int(nbytes) for region, nbytes in _OVERFLOWED.findall(str(error))}
        if len(numbers) == 1 and "FLASH" in large and self.external and not external:
            return [(numbers, True)]
        found = _blamed(members, str(error), large)
        if len(numbers) == 1 and not found:
            found = {0: linker_says(error)}
        reasons |= {numbers[at]: reason for at, reason in found.items()}
        if found:
            left = [number for at, number in enumerate(numbers) if at not in found]
            return [(left, external)] if left else []
        groups = self._packed(members, large, external=external) if "FLASH" in large else []
        if len(groups) < 2:
            half = len(numbers) // 2
            groups = [list(range(half)), list(range(half, len(numbers)))]
        return [([numbers[at] for at in group], external) for group in groups]

    def _packed(self, entries: Sequence[Entry], large: dict[str, int], *, external: bool) -> list[list[int]]:
        """Groups of entries that each fit into the internal flash as far as it can be told; all of them do not."""
        blob, room = Blob(), self.target.memory.flash or 0
        for entry in entries:
            entry.arguments(blob)
        objects = [str(entry.folder / OBJECT) for entry in entries]
        sizes = [tool(self.target.toolchain.cc, "size"), "-A", *objects]
        code = code_sizes(shell.run(sizes, timeout_s=COMPILE_S, cwd=self.folder).stdout)
        constants = 0 if external else len(blob.data)
        program = max(0, room + large["FLASH"] - sum(code) - constants)
        kernels = [(id(entry.known), 0 if external else entry.flash_bytes) for entry in entries]
        return packed(code, kernels, room - program)

    def _link(self, entries: Sequence[Entry], *, external: bool) -> int:
        """Link candidates into IMAGE; a number that tells the image from others."""
        blob, target = Blob(), self.target
        called = [Called(entry.symbol, entry.arguments(blob)) for entry in entries]
        objects = [entry.folder / OBJECT for entry in entries]
        parts = [candidates.table(called).encode(), bytes(blob.data), *(path.read_bytes() for path in objects)]
        identity = int.from_bytes(hashlib.sha256(b"".join(parts)).digest()[:8], "little")
        texts = self._texts(candidates.table(called, identity), {symbol for entry in entries for symbol in entry.calls})
        (self.folder / _CONSTANTS).write_bytes(bytes(blob.data))
        for name, text in texts.items():
            (self.folder / name).write_text(text, encoding="utf-8")
            self._compile(name, f"{name}.o", FAST if name == MICRO else [f"-I{source_path('candidates.h').parent}"])
        script = memories_script(target.memory, candidates.CONSTANTS if external else None)
        (self.folder / MEMORIES).write_text(script, encoding="utf-8")
        common = [_object(number) for number in range(len(self.sources))]
        every = [*common, *(f"{name}.o" for name in texts), *map(str, objects), *_NO_UNWINDING]
        memories = MEMORIES if script else ""
        command = link_command(target.toolchain, every, IMAGE, memory=target.memory, memories=memories)
        shell.run(command, timeout_s=COMPILE_S, cwd=self.folder)
        return identity

    def _texts(self, table: str, symbols: set[str]) -> dict[str, str]:
        """The files of an image, by name. symbols: of the micro-kernels that its candidates call."""
        texts = {"table.c": table, "constants.S": candidates.constants(_CONSTANTS)}
        plain = machine_for(self.target).micro == "plain"
        name, text = (MICRO, c_source(symbols)) if plain else (ASSEMBLY, assembly(symbols))
        return {**texts, name: text} if text else texts

    def _compile(self, source: str, result: str, flags: Sequence[str]) -> None:
        command = compile_command(self.target.toolchain, flags, source, result)
        shell.run(command, timeout_s=COMPILE_S, cwd=self.folder)


def code_sizes(listed: str) -> list[int]:
    """Bytes of code and constants of each object, from what `size -A` lists, without those that no image has."""
    found: list[int] = []
    for line in listed.splitlines():
        name, *numbers = line.split() or [""]
        if name == "section":
            found.append(0)
        elif name.startswith(_LOADED) and name != HALF_FLOATS:
            found[-1] += int(numbers[0])
    return found


def packed(code: Sequence[int], kernels: Sequence[tuple[int, int]], room: int) -> list[list[int]]:
    """Places of candidates in order, in groups of which each has at most `room` bytes, or one candidate.

    code: bytes of each. kernels: which is whose, and the bytes of its constants, which a group has once.
    """
    groups: list[list[int]] = []
    used, there = room + 1, set[int]()
    for at, (own, (kernel, constants)) in enumerate(zip(code, kernels, strict=True)):
        more = own + (0 if kernel in there else constants)
        if used + more > room:
            groups.append([])
            used, there, more = 0, set(), own + constants
        groups[-1].append(at)
        there.add(kernel)
        used += more
    return groups


def _object(number: int) -> str:
    return f"common-{number}.o"


def _blamed(entries: Sequence[Entry], said: str, large: dict[str, int]) -> dict[int, str]:
    """Those among entries of whom it is known that they cannot be in an image, and why, by what the linker said.

    large: regions that overflow, and by how much. The largest need of RAM is that of the image.
    """
    missing = set(_UNDEFINED.findall(said))
    found = {at: f"undefined reference to `{s}'" for at, e in enumerate(entries) for s in e.calls if s in missing}
    if "RAM" in large or _NO_STACK in said:
        room = max(entry.ram_bytes for entry in entries) - large.get("RAM", 1)
        excess = {at: entry.ram_bytes - room for at, entry in enumerate(entries)}
        found |= {at: f"does not fit into RAM by {over} bytes or more" for at, over in excess.items() if over > 0}
    return found


def linker_says(error: ToolError) -> str:
    """Why an image cannot be linked: the linker's plainest complaint, without the names of temporary files."""
    lines = [line for word in _COMPLAINTS for line in str(error).splitlines() if word in line]
    return lines[0].split(": ")[-1].strip()[:LONGEST_REASON] if lines else told(error)
