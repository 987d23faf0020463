"""The measuring program and a model as one static executable, which needs nothing of the board but its kernel."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from deploy import shell
from deploy.device import bench
from deploy.device.local import BENCH
from deploy.errors import DeviceError, InputError, ToolError
from deploy.target import Target
from deploy.toolchain import compiler, runtime_sources

_COMPILE_S = 300.0
_UNDEFINED = re.compile(r"undefined (?:reference to|symbol:) [`']?(\w+)")
_SOURCES = ("model.c", "weights.S", "pool.c", "kernels.c", "kernels.o")  # kernels as C or as an object


def sources_of(library: Path) -> list[str]:
    """The files that a shared library was made of, in the folder `src` beside it. Raises InputError: there are none."""
    if not library.is_file():
        raise InputError(f"there is no library {library}: give the libmodel.so of an artifact")
    folder = library.parent / "src"
    found = [name for name in _SOURCES if (folder / name).is_file()]
    if "model.c" not in found:
        raise InputError(f"there is no {folder / 'model.c'} beside the library: give the libmodel.so of an artifact")
    return [name for name in found if name != "kernels.o" or "kernels.c" not in found]


def program_command(target: Target, sources: list[str], prefix: str, program: str) -> list[str]:
    """The command that builds the program in the folder `src` of an artifact. Raises InputError: `prefix` is no C name.

    Raises ToolError: there is no compiler for the target.
    """
    bench.check_prefix(prefix)
    pool = [f"-DPOOL_THREADS={target.threads}", "-pthread"] if "pool.c" in sources else []
    return [
        *compiler(target, static=True), "-static", "-std=gnu11", "-O2", *target.toolchain.cflags, "-w", "-s",
        "-DBENCH_STATIC", f"-DBENCH_PREFIX={prefix}", *pool, f"-I{BENCH.parent}", "-I..",
        str(BENCH), *sources, *runtime_sources(target), *target.toolchain.ldflags, "-Wl,--gc-sections", "-lm",
        "-o", program,
    ]  # fmt: skip


def build_program(target: Target, library: Path, prefix: str, program: Path) -> None:
    """Build the program for the model `prefix` of the artifact that `library` is in.

    Raises InputError: there is no artifact; ToolError: the compiler is missing or failed; DeviceError: the model has
    another name, or its parts do not fit together.
    """
    sources = sources_of(library)
    command = program_command(target, sources, prefix, str(program.absolute()))
    try:
        shell.run(command, timeout_s=_COMPILE_S, cwd=library.parent / "src")
    except ToolError as error:
        missing = sorted(set(_UNDEFINED.findall(str(error))), reverse=True)
        if not missing:
            raise
        raise DeviceError(
            f"the model does not link to a program for {target.name}: it has no symbol {', '.join(missing)}; it is "
            "not a compiled model, or the model has another name"
        ) from None


def built_once(target: Target, library: Path, prefix: str, folder: Path) -> Path:
    """The program for a model, in `folder`, built where it is not there yet. Raises as `build_program`."""
    digest = hashlib.sha256(f"{library} {prefix}".encode())
    for name in sources_of(library):
        digest.update((library.parent / "src" / name).read_bytes())
    program = folder / f"program-{digest.hexdigest()[:16]}"
    if not program.is_file():
        build_program(target, library, prefix, program)
    return program
