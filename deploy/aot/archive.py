"""Packaging as firmware: C files, objects, `libmodel.a`, and what it takes of a microcontroller's flash."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from deploy import shell
from deploy.aot import emit_firmware
from deploy.aot.emit import Layout
from deploy.firmware.link import compile_command, link_command, tool, without_unwinding
from deploy.firmware.size_map import FlashSizes, flash_sizes
from deploy.target import Target

ARCHIVE = "libmodel.a"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-I..")
ASSEMBLY = "micro.S"  # the micro-kernels, where a model's kernels call any
MICRO = "micro.c"  # those that are written in C
KERNELS = "kernels.c"  # all kernels, where they are emitted as C
# They are blocks of sums that just fit the registers: GCC would move loads up until they do not.
FAST = ("-O2", "-fno-schedule-insns", "-std=c99", "-Wall", "-Wextra", "-Werror")
_OBJECTS = ("model.o", "weights.o", "kernels.o")
HALF_FLOATS = ".text.tvm.fp16.conv"  # TVM puts conversions of them into every object
_TIMEOUT_S = 600.0


def write_sources(folder: Path, layout: Layout, weights: bytes) -> None:
    """Write everything that is C into `folder`."""
    inside = folder / "src"
    inside.mkdir()
    (folder / "tvm_deploy.h").write_bytes(files("deploy.aot").joinpath("c", "tvm_deploy.h").read_bytes())
    write_header(folder, layout)
    texts = {
        folder / "model_example.c": emit_firmware.example(layout),
        inside / "model.c": emit_firmware.source(layout),
        inside / "weights.c": emit_firmware.weights(layout, weights),
    }
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def write_header(folder: Path, layout: Layout) -> None:
    """Write `model.h`, in place of another one."""
    (folder / "model.h").write_text(emit_firmware.header(layout), encoding="utf-8")


def package(folder: Path, layout: Layout, target: Target) -> FlashSizes:
    """Compile the C files, make the archive of them and kernels.o, and measure it. Raises ToolError."""
    source, toolchain = folder / "src", target.toolchain
    for name in ("model", "weights"):
        _run(compile_command(toolchain, STRICT, f"{name}.c", f"{name}.o"), source)
    in_c = (source / KERNELS).exists()
    if in_c:
        _run(compile_command(toolchain, FAST, KERNELS, "kernels.o"), source)
    _run(without_unwinding(toolchain.cc, "kernels.o"), source)
    if not in_c and not any(tensor.dtype == "float16" for tensor in layout.graph.tensors.values()):
        _run([tool(toolchain.cc, "objcopy"), f"--remove-section={HALF_FLOATS}", "kernels.o"], source)
    objects = list(_OBJECTS)
    for name, flags in ((ASSEMBLY, ()), (MICRO, FAST)):
        if (source / name).exists():
            _run(compile_command(toolchain, flags, name, "micro.o"), source)
            objects.append("micro.o")
    _run([tool(toolchain.cc, "ar"), "rcsD", f"../{ARCHIVE}", *objects], source)
    _run(link_command(toolchain, [f"../{ARCHIVE}"], "image", entry=f"{layout.prefix}_run"), source)
    sizes = flash_sizes((source / "image.map").read_text(encoding="utf-8", errors="replace"))
    for name in ("model.o", "weights.o", "micro.o", *(["kernels.o"] if in_c else []), "image", "image.map"):
        (source / name).unlink(missing_ok=True)
    return sizes


def _run(command: list[str], folder: Path) -> None:
    shell.run(command, timeout_s=_TIMEOUT_S, cwd=folder)
