"""LoweredModel → a folder with the library, its header, its C sources and an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from tvm import tirx
from tvm.target import Target as TvmTarget

from deploy import shell
from deploy.aot import emit
from deploy.aot.emit_extras import example, exports, weights_assembly
from deploy.aot.emit_header import header
from deploy.aot.emit_source import source
from deploy.aot.plan import Plan, lifetimes, plan
from deploy.aot.plan_check import violations
from deploy.aot.weights import pack_weights
from deploy.errors import ToolError
from deploy.graph import COPY, Call, Graph, Tensor
from deploy.kernels.plain import PlainKernel, build_object, to_plain
from deploy.lower import LoweredModel, explained
from deploy.model_spec import TensorSpec, unique
from deploy.target import Target

LIBRARY = "libmodel.so"
COMPILE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Sizes:
    """Bytes: the arena, what a perfect arena would need, the weights, and the stripped library."""

    arena_bytes: int
    arena_bound_bytes: int
    weight_bytes: int
    library_bytes: int


def _with_workspaces(graph: Graph, kernels: Mapping[str, PlainKernel]) -> Graph:
    """The graph with the memory that each kernel asks for besides its results."""
    tensors, calls = dict(graph.tensors), []
    for number, call in enumerate(graph.calls):
        sizes = kernels[call.kernel].workspace_bytes if call.kernel != COPY else ()
        names = tuple(unique((f"w{number}_{i}" for i in range(len(sizes))), tensors))
        for name, size in zip(names, sizes, strict=True):
            tensors[name] = Tensor(name, (size,), "uint8", "workspace")
        calls.append(Call(call.kernel, call.inputs, call.outputs, names))
    return replace(graph, tensors=tensors, calls=tuple(calls))


def _checked_plan(graph: Graph) -> Plan:
    result = plan(lifetimes(graph))
    if wrong := violations(graph, result):
        raise ToolError(f"the memory plan is wrong, which is a bug of tvm-deploy: {wrong[0]}")
    return result


def _compiler(target: Target) -> list[str]:
    flags = ["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    return [target.toolchain.cc, *target.toolchain.cflags, *flags]


def _cc(command: list[str], folder: Path) -> None:
    shell.run(command, timeout_s=COMPILE_TIMEOUT_S, cwd=folder)


def _write_sources(folder: Path, layout: emit.Layout, weights: bytes) -> None:
    inside = folder / "src"
    inside.mkdir()
    for where, name in ((folder, "tvm_deploy.h"), (inside, "tvm_ffi.c"), (inside, "pool.c")):
        if name != "pool.c" or layout.threads > 1:
            (where / name).write_bytes(files("deploy.aot").joinpath("c", name).read_bytes())
    texts = {
        folder / "model.h": header(layout),
        folder / "model_example.c": example(layout),
        inside / "model.c": source(layout),
        inside / "weights.S": weights_assembly(layout.prefix, "weights.bin"),
        inside / "exports.map": exports(layout.prefix),
    }
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    (inside / "weights.bin").write_bytes(weights)


def _link(folder: Path, layout: emit.Layout, target: Target) -> None:
    """Compile the C sources and link the shared library; undefined symbols are an error."""
    from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

    source, compiler, prefix = folder / "src", [*_compiler(target), "-I.."], layout.prefix
    names = {"CALL": f"{prefix}_call", "DESCRIBE": f"{prefix}_describe", "STATUS_TEXT": f"{prefix}_status_text"}
    counts = {"INPUTS": len(layout.inputs), "TENSORS": len(layout.inputs) + len(layout.outputs)}
    facts = {"FFI": f"__tvm_ffi_{prefix}", **names, **counts}
    defined = [f"-DMODEL_{name}={value}" for name, value in facts.items()]
    ffi = [f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
    _cc([*compiler, "-c", "model.c", "-o", "model.o"], source)
    _cc([*compiler, "-c", "weights.S", "-o", "weights.o"], source)
    _cc([*compiler, *defined, *ffi, "-c", "tvm_ffi.c", "-o", "tvm_ffi.o"], source)
    objects = ["model.o", "weights.o", "tvm_ffi.o", "kernels.o"]
    if layout.threads > 1:
        _cc([*compiler, f"-DPOOL_THREADS={layout.threads}", "-c", "pool.c", "-o", "pool.o"], source)
        objects.append("pool.o")
    linking = ["-shared", "-s", "-Wl,--build-id=none", "-Wl,-z,defs", "-Wl,--gc-sections", f"-Wl,-soname,{LIBRARY}"]
    libraries = ["-lm", *(["-lpthread"] if layout.threads > 1 else [])]
    script = "-Wl,--version-script=exports.map"
    flags = list(target.toolchain.ldflags)
    _cc([target.toolchain.cc, *linking, script, *objects, *flags, *libraries, "-o", f"../{LIBRARY}"], source)
    for name in objects:
        if name != "kernels.o":
            (source / name).unlink()


def build(
    model: LoweredModel,
    scheduled: Mapping[str, tirx.PrimFunc],
    ends: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    target: Target,
    prefix: str,
    folder: Path,
) -> tuple[Graph, Plan, Sizes]:
    """Compile `scheduled` kernels and the model's call sequence into `folder`, which exists and is empty.

    Raises ToolError where a compiler is missing or fails.
    """
    tvm_target = TvmTarget(target.tvm)
    kernels = {}
    for name, func in scheduled.items():
        with explained(f"kernel {name} of model '{model.name}'"):
            kernels[name] = to_plain(func, emit.kernel_symbol(prefix, name), tvm_target)
    graph = _with_workspaces(model.graph, kernels)
    memory, weights = _checked_plan(graph), pack_weights(graph)
    layout = emit.Layout(
        prefix, model.name, target.name, graph, memory, weights.offsets, len(weights.data), *ends, target.threads
    )
    _write_sources(folder, layout, weights.data)
    with explained(f"the kernels of model '{model.name}'"):
        build_object(list(kernels.values()), tvm_target, str(folder / "src" / "kernels.o"))
    _link(folder, layout, target)
    library_bytes = (folder / LIBRARY).stat().st_size
    return graph, memory, Sizes(memory.arena_bytes, memory.bound_bytes, len(weights.data), library_bytes)
