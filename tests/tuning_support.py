"""What the tests of tuning share: small kernels, some of them broken on purpose, and a target that is this machine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from tvm import te, tirx

from deploy.target import Target
from deploy.targets import load_target
from deploy.tuning.task import Task

ROOT = Path(__file__).resolve().parents[1]


def this_machine(cc: str | None = None, threads: int = 1) -> Target:
    target = dataclasses.replace(load_target("host"), threads=threads)
    if cc is not None:
        target = dataclasses.replace(target, toolchain=dataclasses.replace(target.toolchain, cc=cc))
    return target


def product(size: int = 48) -> tirx.PrimFunc:
    """A product of two matrices, which is searched over TVM's own space."""
    a, b = te.placeholder((size, size), name="a"), te.placeholder((size, size), name="b")
    k = te.reduce_axis((0, size), "k")
    return te.create_prim_func([a, b, te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]))])


def calling(function: str, *arguments: int) -> tirx.PrimFunc:
    """A kernel that calls a C function for its only element: `abort`, `pause`, or one that does not exist."""
    a = te.placeholder((1,), name="a")
    values = [tirx.const(value, "int32") for value in arguments]

    def element(i: tirx.Var) -> tirx.PrimExpr:
        return a[i] + tirx.call_extern("int32", function, *values).astype("float32")

    return te.create_prim_func([a, te.compute((1,), element)])


def unbound() -> tirx.PrimFunc:
    """A kernel that uses a variable which nothing defines: TVM refuses to generate code for it."""
    a, free = te.placeholder((4,), name="a"), tirx.Var("free", "float32")
    return te.create_prim_func([a, te.compute((4,), lambda i: a[i] + free)])


def untranslatable() -> tirx.PrimFunc:
    """A kernel with an operation of graphics processors: it can be scheduled, and no code can be generated for it."""
    a = te.placeholder((4,), name="a")

    def element(i: tirx.Var) -> tirx.PrimExpr:
        return tirx.call_intrin("float32", "tirx.texture2d_load", a[i])

    return te.create_prim_func([a, te.compute((4,), element)])


def gigantic() -> tirx.PrimFunc:
    """A kernel with an argument of a hundred gigabytes."""
    a = te.placeholder((25 << 30,), name="a")
    return te.create_prim_func([a, te.compute((1,), lambda i: a[i] + 1.0)])


def enormous() -> tirx.PrimFunc:
    """A kernel that takes the compiler for ever: a loop of twenty million steps, written out."""
    from tvm.s_tir import Schedule

    a = te.placeholder((20_000_000,), name="a")
    schedule = Schedule(
        te.create_prim_func([a, te.compute((20_000_000,), lambda i: a[i] * a[i] + i.astype("float32"))])
    )
    block = schedule.get_child_blocks(schedule.get_sblock("root"))[0]
    schedule.unroll(schedule.get_loops(block)[0])
    return schedule.mod["main"]


def task(func: tirx.PrimFunc, name: str = "kernel", calls: int = 1) -> Task:
    return Task(name, func, calls)


def python(code: str, *arguments: object, tmp: Path | None = None) -> subprocess.Popen[str]:
    """Start Python on `code`, which can import the tests' modules; its temporary folders lie in `tmp`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    if tmp is not None:
        env["TMPDIR"] = str(tmp)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT)


def processes_about(text: str) -> list[str]:
    """Command lines of running processes that mention `text`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found
