"""How a scheduled kernel becomes a library that can be timed on this machine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm import te, tirx
from tvm.target import Target as TvmTarget

from deploy import shell
from deploy.kernels.buffers import buffer_bytes
from deploy.kernels.default import default_schedule
from deploy.kernels.for_target import machine_for
from deploy.kernels.plain import build_object, to_plain
from deploy.target import Target
from deploy.tuning.builder import STALL_S

SYMBOL = "candidate"
OBJECT = "candidate.o"
LIBRARY = "candidate.so"
SIZES = "sizes.json"
LINK_S = STALL_S / 2  # who waits for the linker does nothing meanwhile, and must not be taken for hanging
COMPILE_S = 20.0  # of processor time; an ordinary candidate takes a tenth of a second
MEMORY_BYTES = 4 << 30


def linker_of(cc: str) -> tuple[str, ...]:
    """The linker that a C compiler calls, itself: as its driver it takes five times as long.

    Raises ToolError where there is no such compiler.
    """
    said = shell.run([cc, "-print-prog-name=ld"], timeout_s=20, package="build-essential", check=False).stdout.strip()
    return (said,) if said and shell.which(said) else (cc, "-nostdlib")


def assemble(job: tirx.PrimFunc, tvm: Mapping[str, Any], folder: Path) -> None:
    """Compile one scheduled kernel to an object for TVM's target `tvm`, and note the sizes of its arguments."""
    tvm_target = TvmTarget(dict(tvm))
    kernel = to_plain(job, SYMBOL, tvm_target)
    build_object([kernel], tvm_target, str(folder / OBJECT))
    sizes = [f"{_fill(b)}{buffer_bytes(b)}" for b in job.params]
    sizes += [f"z{nbytes}" for nbytes in kernel.workspace_bytes]
    (folder / SIZES).write_text(json.dumps(sizes))


@dataclass(frozen=True)
class Workshop:
    """Where candidates of one target are built: a folder, the target, how many compile at once, and what one may take.

    linker: the command that links; what candidates call themselves is found by whoever loads them.
    """

    folder: Path
    target: Target
    workers: int
    linker: tuple[str, ...] = ("ld",)
    timeout_s: float = COMPILE_S
    memory_bytes: int = MEMORY_BYTES
    link_s: float = LINK_S

    def prepare(self) -> None:
        """Compile something once, so that the processes that are forked find the compiler set up.

        Where that fails candidates fail too, and say why.
        """
        a = te.placeholder((16,), name="a")
        func = te.create_prim_func([a, te.compute((16,), lambda i: a[i] + 1.0)])
        with contextlib.suppress(Exception):
            assemble(default_schedule(func, machine_for(self.target)).mod["main"], self.target.tvm, self.folder)

    def compile(self, job: tirx.PrimFunc, folder: Path) -> None:
        """Build one scheduled kernel into `folder`. Raises ToolError where that fails, and whatever TVM raises."""
        assemble(job, self.target.tvm, folder)
        self.link(folder)

    def link(self, folder: Path) -> None:
        """Link the object in a folder. Raises ToolError."""
        shell.run([*self.linker, "-shared", OBJECT, "-o", LIBRARY], timeout_s=self.link_s, cwd=folder)


def _fill(buffer: tirx.Buffer) -> str:
    """How the timing program fills a buffer: floats with numbers, anything else with zeros."""
    return "f" if str(buffer.ty.dtype) == "float32" else "z"
