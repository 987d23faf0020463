"""LoweredModel → a folder with the library, its header, its C sources and an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from tvm import tirx
from tvm.target import Target as TvmTarget

from deploy import shell
from deploy.aot import archive, emit, in_place
from deploy.aot.emit_extras import example, exports, weights_assembly
from deploy.aot.emit_header import header
from deploy.aot.emit_source import source
from deploy.aot.fit import check_fit, check_flash, io_bytes, weights_outside
from deploy.aot.picture import arena_svg
from deploy.aot.plan import Allowed, Plan, lifetimes, plan, shares
from deploy.aot.plan_check import violations
from deploy.aot.pools import Limits, plan_pools
from deploy.aot.weights import pack_weights
from deploy.errors import ToolError
from deploy.firmware.size_map import FlashSizes
from deploy.graph import COPY, Call, Graph, Tensor
from deploy.kernels.c_code import c_file
from deploy.kernels.for_target import machine_for
from deploy.kernels.micro.assembly import assembly
from deploy.kernels.micro.c_source import c_source
from deploy.kernels.plain import PlainKernel, build_object, external_symbols, to_plain
from deploy.lower import LoweredModel, explained
from deploy.model_spec import TensorSpec, unique
from deploy.target import Target
from deploy.toolchain import compiler, runtime_sources

LIBRARY = "libmodel.so"
PICTURE = "arena.svg"
COMPILE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Sizes:
    """Bytes: the arena, what is alive at its peak, the weights, the library's file, all inputs and outputs.

    arena_in_place_bound_bytes: what would be alive if all results that can be written over a dying input were; no arena
    is smaller. flash: of firmware, what linking it into an image adds. pools: of activations in each of the memories
    beside the arena; both bounds are of all of them together.
    """

    arena_bytes: int
    arena_bound_bytes: int
    arena_in_place_bound_bytes: int
    weight_bytes: int
    library_bytes: int
    io_bytes: int
    flash: FlashSizes | None = None
    pools: Mapping[str, int] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """The sizes as a manifest has them: what is special only where it is there."""
        facts = asdict(self)
        if not self.pools:
            del facts["pools"]
        if self.flash is not None and not self.flash.external:
            del facts["flash"]["external"]
        return facts


def library_name(target: Target) -> str:
    """The library's file in an artifact."""
    return archive.ARCHIVE if target.artifact == "firmware" else LIBRARY


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


def _checked_plan(graph: Graph, target: Target, allowed: Allowed) -> Plan:
    alignment, over, pools = target.alignment, shares(graph, allowed), target.memory.pools
    if pools:
        left = None if target.memory.ram is None else max(0, target.memory.ram - io_bytes(graph))
        result = plan_pools(graph, over, Limits({pool.name: pool.size for pool in pools}, left, alignment))
    else:
        result = plan(lifetimes(graph), alignment, over)
    if wrong := violations(graph, result, allowed, {pool.name: pool.size for pool in pools}):
        raise ToolError(f"the memory plan is wrong, which is a bug of tvm-deploy: {wrong[0]}")
    return result


def _compiler(target: Target) -> list[str]:
    flags = ["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    return [*compiler(target), *target.toolchain.cflags, *flags]


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

    source, cc, prefix = folder / "src", [*_compiler(target), "-I.."], layout.prefix
    names = {"CALL": f"{prefix}_call", "DESCRIBE": f"{prefix}_describe", "STATUS_TEXT": f"{prefix}_status_text"}
    counts = {"INPUTS": len(layout.inputs), "TENSORS": len(layout.inputs) + len(layout.outputs)}
    facts = {"FFI": f"__tvm_ffi_{prefix}", **names, **counts}
    defined = [f"-DMODEL_{name}={value}" for name, value in facts.items()]
    ffi = [f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
    _cc([*cc, "-c", "model.c", "-o", "model.o"], source)
    _cc([*cc, "-c", "weights.S", "-o", "weights.o"], source)
    _cc([*cc, *defined, *ffi, "-c", "tvm_ffi.c", "-o", "tvm_ffi.o"], source)
    if (source / archive.KERNELS).exists():
        _cc([*cc, "-c", archive.KERNELS, "-o", "kernels.o"], source)
    objects = ["model.o", "weights.o", "tvm_ffi.o", "kernels.o"]
    if layout.threads > 1:
        _cc([*cc, f"-DPOOL_THREADS={layout.threads}", "-c", "pool.c", "-o", "pool.o"], source)
        objects.append("pool.o")
    linking = ["-shared", "-s", "-Wl,--build-id=none", "-Wl,-z,defs", "-Wl,--gc-sections", f"-Wl,-soname,{LIBRARY}"]
    libraries = ["-lm", *(["-lpthread"] if layout.threads > 1 else [])]
    script = "-Wl,--version-script=exports.map"
    flags = list(target.toolchain.ldflags)
    parts = [*objects, *runtime_sources(target)]
    _cc([*compiler(target), *linking, script, *parts, *flags, *libraries, "-o", f"../{LIBRARY}"], source)
    kept = set() if (source / archive.KERNELS).exists() else {"kernels.o"}
    for name in set(objects) - kept:
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
    memory = _checked_plan(graph, target, in_place.allowed(scheduled))
    kernels = in_place.with_overlaps(kernels, graph, memory)
    weights = pack_weights(graph, target.alignment)
    layout = emit.Layout(
        prefix, model.name, target.name, graph, memory, weights.offsets, len(weights.data), *ends, target.threads
    )
    if target.artifact == "firmware":
        check_fit(model.name, graph, target, memory)
        archive.write_sources(folder, layout, weights.data)
    else:
        _write_sources(folder, layout, weights.data)
    (folder / PICTURE).write_text(arena_svg(f"{model.name} for {target.name}", graph, memory), encoding="utf-8")
    with explained(f"the kernels of model '{model.name}'"):
        _write_kernels(folder / "src", list(kernels.values()), layout, target)
    flash = _packaged(folder, layout, target)
    library_bytes = (folder / library_name(target)).stat().st_size
    bounds = (memory.bound_bytes, memory.in_place_bound_bytes)
    sizes = Sizes(memory.arena_bytes, *bounds, len(weights.data), library_bytes, io_bytes(graph), flash, memory.pools)
    return graph, memory, sizes


def _write_kernels(folder: Path, kernels: list[PlainKernel], layout: emit.Layout, target: Target) -> None:
    """The kernels, as an object with what it calls beside it, or all of it as one C file."""
    if target.tvm["kind"] == "c":
        read = {emit.kernel_symbol(layout.prefix, call.kernel): len(call.inputs) for call in layout.graph.calls}
        (folder / archive.KERNELS).write_text(c_file(kernels, read, layout.title), encoding="utf-8")
        return
    build_object(kernels, TvmTarget(target.tvm), str(folder / "kernels.o"))
    symbols = external_symbols(kernels)
    plain = machine_for(target).micro == "plain"
    name, text = (archive.MICRO, c_source(symbols)) if plain else (archive.ASSEMBLY, assembly(symbols))
    if text:
        (folder / name).write_text(text, encoding="utf-8")


def _packaged(folder: Path, layout: emit.Layout, target: Target) -> FlashSizes | None:
    """Make the library of the objects and sources in `folder`; what it takes of a flash memory."""
    if target.artifact != "firmware":
        _link(folder, layout, target)
        return None
    flash = archive.package(folder, layout, target)
    if weights_outside(flash, target.memory):
        flash = flash.outside()
        archive.write_header(folder, replace(layout, external_weights=True))
    check_flash(layout.name, flash, target)
    return flash
