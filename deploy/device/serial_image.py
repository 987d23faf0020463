"""The program that a board runs: a model's library, the measuring program for a serial line, the board's own files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from deploy import shell
from deploy.errors import DeviceError, InputError, ToolError
from deploy.firmware import harness, serial_program
from deploy.firmware.link import (
    EXTERNAL,
    MEMORIES,
    compile_command,
    link_command,
    memories_script,
    source_path,
    tool,
)
from deploy.target import Target
from deploy.target_parts import Toolchain

DEFAULT_BAUD = 115_200
PLACES = ("elf", "bin", "port")  # of a flash or reset command
_COMPILE_S = 120.0
_HEADERS = f"-I{source_path('board.h').parent}"
_STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Image:
    """A program for a board as ELF and as the bare bytes of its flash, without those of an external one."""

    elf: Path
    binary: Path
    uses_external: bool = False


def counts_instructions(target: Target) -> bool:
    """Whether the board's program counts instructions, as in an emulator that does; otherwise it counts cycles."""
    emulated = bool(target.device.get("emulated"))
    return emulated and (target.architecture.startswith("riscv") or target.device.get("tick") is not None)


def board_files(target: Target) -> tuple[list[Path], list[str]]:
    """The C and assembly files that are the board's own, and the flags to compile them with.

    Raises InputError where there is none, or one does not exist.
    """
    entries = cast("tuple[str, ...]", target.device.get("board") or ())
    flags = [entry for entry in entries if entry.startswith("-")]
    shipped = {path.name: path for path in source_path("board.c").parent.glob("uart_*.c")}
    paths = [shipped.get(entry, Path(entry).absolute()) for entry in entries if not entry.startswith("-")]
    if not paths:
        raise InputError(
            f"the device of target {target.name} has no `board`: name the C files with your board's board_init, "
            f"board_putc and board_getc, or one of {', '.join(sorted(shipped))} with its flags"
        )
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(f"board: there is no file {missing[0]}; give its path, or one of {', '.join(sorted(shipped))}")
    return paths, flags


def stopwatch(target: Target) -> tuple[list[str], list[str]]:
    """The files of the start-up code and the stopwatch, and their macros. Raises InputError: they do not exist."""
    start, exact = harness.sources(target.architecture)[:2]
    if start.startswith("start_riscv"):
        return [start, exact], [] if counts_instructions(target) else ["-DCOUNT_CYCLES"]
    if counts_instructions(target):
        return [start, exact], harness.tick_flags(cast(float, target.device.get("tick")))
    return [start, "stopwatch_board.c"], []


def builds(target: Target) -> bool:
    """Whether the `flash` command takes a program that is built here."""
    flash = cast("tuple[str, ...]", target.device.get("flash") or ())
    return any(place in part for part in flash for place in ("{elf}", "{bin}"))


def flash_command(template: Sequence[str], image: Image, port: str, key: str = "flash") -> list[str]:
    """The command `key` of a device with `{elf}`, `{bin}` and `{port}` filled in.

    Raises InputError for another name in braces, and for `{bin}` where it would not be the whole program.
    """
    values = {"elf": str(image.elf), "bin": str(image.binary), "port": port}
    for part in template:
        for name in re.findall(r"\{(\w+)\}", part):
            if name not in values:
                raise InputError(f"{key}: {{{name}}} is not known; allowed: {', '.join(f'{{{p}}}' for p in PLACES)}")
    if image.uses_external and any("{bin}" in part for part in template):
        raise InputError(
            "flash: {bin} is what is in the internal flash, and weights of this model are in the external one: "
            "flash {elf}, with a tool that writes both"
        )
    return [re.sub(r"\{(\w+)\}", lambda found: values[found[1]], part) for part in template]


def program_files(target: Target, sources: Sequence[str], flags: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """All files of a program for the board, and the flags of each; `flags` are those of its own `sources`.

    Raises InputError: the target lacks something.
    """
    own, macros = stopwatch(target)
    files, board_flags = board_files(target)
    counts = ["-DCOUNTS_INSTRUCTIONS"] if counts_instructions(target) else []
    return [
        *((source_path(name), [_HEADERS, *macros]) for name in own),
        *((source_path(name), [_HEADERS, *flags, "-DOWN_START", *counts]) for name in sources),
        *((path, [_HEADERS, *_board_flags(target), *board_flags]) for path in files),
    ]


def build_image(target: Target, library: Path, prefix: str, folder: Path) -> Image:
    """Build the program for the model `prefix` in `library`, with model.h and src/model.c beside it, in `folder`.

    Raises DeviceError: it does not link (the memories are too small, a function is missing); ToolError: the compiler
    failed on a file; InputError: the target lacks something, or there is no such library.
    """
    if not library.is_file():
        raise InputError(f"there is no library {library}: give the libmodel.a of an artifact")
    built = _Builder(target, folder)
    sequence = library.parent / "src" / "model.c"
    calls = serial_program.calls_in(sequence.read_text(encoding="utf-8")) if sequence.is_file() else 0
    identity = serial_program.build_id(library.read_bytes())
    header = (library.parent / "model.h").read_text(encoding="utf-8")
    named = [f"-D{defined}" for defined in serial_program.definitions(prefix, header, target.memory, identity, calls)]
    for path, flags in program_files(target, serial_program.SOURCES, [f"-I{library.parent}", *named]):
        built.compile(path, flags)
    if calls:
        layers = folder / "layers.c"
        layers.write_text(serial_program.layers_source(prefix, str(sequence)), encoding="utf-8")
        built.compile(layers, [f"-I{library.parent}", _HEADERS])
    return built.link(library, harness.external_weights(prefix, header, target.memory))


def _board_flags(target: Target) -> list[str]:
    clock, baud = round(target.clock or 0), target.device.get("baud") or DEFAULT_BAUD
    return [f"-DBOARD_CLOCK_HZ={clock}u", f"-DBOARD_BAUD={baud}u"]


class _Builder:
    """Compiles files into numbered objects of a folder and links them."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target, self._folder = target, folder
        self._objects: list[str] = []

    def compile(self, source: Path, flags: Sequence[str]) -> None:
        result = f"{len(self._objects)}-{source.stem}.o"
        command = compile_command(self._target.toolchain, [*_STRICT, *flags], str(source), result)
        shell.run(command, timeout_s=_COMPILE_S, cwd=self._folder)
        self._objects.append(result)

    def link(self, library: Path, weights: str | None) -> Image:
        """Link, and take the bytes of the internal flash out of the image. weights: their section, if outside of it."""
        toolchain, memory = self._target.toolchain, self._target.memory
        script = memories_script(memory, weights)
        (self._folder / MEMORIES).write_text(script, encoding="utf-8")
        more, objects = MEMORIES if script else "", [*self._objects, str(library)]
        link = link_command(toolchain, objects, "image.elf", memory=memory, memories=more)
        try:
            shell.run(link, timeout_s=_COMPILE_S, cwd=self._folder)
        except ToolError as error:
            raise DeviceError(f"the library does not link to an image for {self._target.name}: {error}") from error
        image = Image(self._folder / "image.elf", self._folder / "image.bin", weights is not None)
        strip_to_flash(toolchain, image)
        return image


def strip_to_flash(toolchain: Toolchain, image: Image) -> None:
    """Make an image's bare bytes of the internal flash from its ELF."""
    command = [tool(toolchain.cc, "objcopy"), "-O", "binary", "-R", EXTERNAL, str(image.elf), str(image.binary)]
    shell.run(command, timeout_s=_COMPILE_S)
