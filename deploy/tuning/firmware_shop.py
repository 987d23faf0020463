"""Candidates for microcontrollers compiled to objects, each on its own; one that needs more memory is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tvm import tirx
from tvm.target import Target as TvmTarget

from deploy.errors import ToolError
from deploy.kernels.in_place import may_share
from deploy.kernels.plain import build_object, external_symbols, to_plain
from deploy.target import Target
from deploy.tuning.firmware_task import Allowance
from deploy.tuning.runner import MEMORY_BYTES

OBJECT, FACTS = "candidate.o", "facts.json"
COMPILE_S = 60.0


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
