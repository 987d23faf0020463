"""Command lines that link for bare metal. Pure: `deploy.shell` runs them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from deploy.target_memory import Memory, section_of
from deploy.target_parts import Toolchain

# Where nothing says how large a memory is: enough for any model, and apart from each other.
MEMORIES = "memories.ld"
EXTERNAL = ".external"  # the section of an image that is in external flash
_ANYWHERE = Memory(flash=1 << 30, ram=1 << 30, flash_at=0x10000000, ram_at=0x60000000)


def source_path(name: str) -> Path:
    """A file of the harness, such as firmware.ld."""
    return Path(str(files("deploy.firmware").joinpath("c", name)))


def tool(cc: str, name: str) -> str:
    """The program, such as ar or objcopy, that works on a compiler's objects."""
    return f"{cc.removesuffix('gcc')}{name}" if cc.endswith("gcc") else name


def without_unwinding(cc: str, kernels: str) -> list[str]:
    """Take the tables for C++ exceptions out of LLVM's object: they would pull a library's unwinder into the image."""
    program = f"{cc.removesuffix('gcc')}objcopy" if cc.endswith("gcc") else "objcopy"
    tables = (".ARM.exidx*", ".rel.ARM.exidx*", ".ARM.extab*", ".eh_frame*", ".rela.eh_frame*")
    return [program, *(word for table in tables for word in ("-R", table)), "--strip-unneeded", kernels]


def compile_command(toolchain: Toolchain, flags: Sequence[str], source: str, result: str) -> list[str]:
    """Compile one file; its functions and data can be left out of an image one by one."""
    sections = ["-ffunction-sections", "-fdata-sections", "-fno-common"]
    return [toolchain.cc, "-Os", *sections, *toolchain.cflags, *flags, "-c", source, "-o", result]


def memories_script(memory: Memory, weights: str | None) -> str:
    """What memories.ld, read before firmware.ld, has to say of pools, and of the section `weights` in external flash.

    Empty where there is nothing to say. All of these memories have an address.
    """
    regions, sections = [], []
    for pool in memory.pools:
        region = f"POOL_{pool.name.upper()}"
        regions.append(f"  {region} (rw) : ORIGIN = 0x{pool.at:08x}, LENGTH = {pool.size}")
        sections.append(f"  .pool_{pool.name} (NOLOAD) : {{ *({section_of(pool.name)}) }} > {region}")
    if weights is not None:
        place = f"ORIGIN = 0x{memory.external_flash_at:08x}, LENGTH = {memory.external_flash}"
        regions.append(f"  EXTERNAL_FLASH (r) : {place}")
        sections.append(f"  {EXTERNAL} : {{ *({weights}) }} > EXTERNAL_FLASH")
    if not regions:
        return ""
    about = "/* Memories beside those of firmware.ld, which takes what is left. Nobody clears the pools. */"
    return "\n".join([about, "MEMORY {", *regions, "}", "", "SECTIONS {", *sections, "}", ""])


def link_command(
    toolchain: Toolchain,
    objects: Sequence[str],
    result: str,
    *,
    memory: Memory = _ANYWHERE,
    entry: str = "reset",
    memories: str = "",
) -> list[str]:
    """Link an image for `memory` that begins at `entry`, and write what went where to `result`.map.

    memories: the file with what `memories_script` says.
    """
    places = {
        "FLASH_AT": memory.flash_at,
        "FLASH_BYTES": memory.flash,
        "RAM_AT": memory.ram_at,
        "RAM_BYTES": memory.ram,
    }
    defined = [f"-Wl,--defsym={name}={value}" for name, value in places.items()]
    first = [f"-Wl,-T,{memories}"] if memories else []
    script = ["-nostartfiles", "-static", *first, "-T", str(source_path("firmware.ld"))]
    return [
        toolchain.cc, *toolchain.cflags, *script, "-Wl,--gc-sections", f"-Wl,-e,{entry}", *defined, f"-Wl,-u,{entry}",
        f"-Wl,-Map={result}.map", *objects, *toolchain.ldflags, "-lm", "-o", result,
    ]  # fmt: skip
