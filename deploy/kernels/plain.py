"""Scheduled PrimFunc → plain C function: pointers in, no packed arguments, no allocation, no TVM runtime.

`int32_t kernel(const float *x, const float *w, float *y, float *workspace_0)`: the parameters of the PrimFunc in
order, then one pointer for every intermediate buffer too large for the stack. It returns 0; a parallel loop that
could not be launched returns what the launcher returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import ir, s_tir, tirx
from tvm.ir import IRModule, PointerType, PrimType, Var
from tvm_ffi import structural_map, structural_walk

from deploy.errors import ToolError
from deploy.kernels.buffers import buffer_bytes
from deploy.kernels.machine import THREAD_STACK_BYTES
from deploy.kernels.mathematics import expand
from deploy.kernels.micro.calls import with_calls
from deploy.kernels.micro.helium_multiply import with_high_products

# An intermediate buffer up to this size is a local variable; inside a parallel loop every one is.
STACK_BYTES = 4096


@dataclass(frozen=True)
class PlainKernel:
    """A kernel with C calling convention, `name` its symbol, and the bytes of each workspace it asks for."""

    name: str
    func: tirx.PrimFunc
    workspace_bytes: tuple[int, ...]


def _to_loops() -> list[tvm.ir.transform.Pass]:
    """From blocks to loops over buffers."""
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        tirx.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
    ]


def _to_vectors() -> list[tvm.ir.transform.Pass]:
    """From loops to flat, vectorized, unrolled code."""
    return [
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
    ]


def _pointer(name: str, dtype: str) -> Var:
    return Var(name, PointerType(PrimType(dtype)))


def _with_pointer_parameters(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Take the address of each buffer instead of the buffer, and return a status."""
    pointers = [_pointer(f"{buffer.name}_ptr", str(buffer.ty.dtype)) for buffer in func.params]
    declared = [tirx.DeclBuffer(b, data=p) for b, p in zip(func.params, pointers, strict=True)]
    success = tirx.Return(tirx.const(0, "int32"))
    body = tirx.SeqStmt([*declared, func.body, success])
    return tirx.PrimFunc(pointers, body, PrimType("int32"), func.attrs)


def _allocations(body: tirx.Stmt) -> list[tirx.Buffer]:
    found: list[tirx.Buffer] = []
    structural_walk(body, (tirx.AllocBuffer, lambda node: found.append(node.buffer)))
    return found


def _parallel_allocations(body: tirx.Stmt) -> list[tirx.Buffer]:
    found: list[tirx.Buffer] = []

    def visit(loop: tirx.For) -> None:
        if loop.kind == tirx.ForKind.PARALLEL:
            found.extend(_allocations(loop.body))

    structural_walk(body, (tirx.For, visit))
    return found


def _with_workspaces(func: tirx.PrimFunc, name: str) -> PlainKernel:
    """Make every large buffer outside parallel loops a parameter, so that the memory plan can place it."""
    local = _parallel_allocations(func.body)
    stack = sum(map(buffer_bytes, local))
    if stack > THREAD_STACK_BYTES:
        raise ToolError(f"kernel {name} needs {stack} bytes of stack a thread, more than {THREAD_STACK_BYTES}")
    shared = [b for b in _allocations(func.body) if not any(b.same_as(other) for other in local)]
    large = [b for b in shared if buffer_bytes(b) > STACK_BYTES]
    pointers = [_pointer(f"workspace_{i}", str(b.ty.dtype)) for i, b in enumerate(large)]

    def replace(node: tirx.AllocBuffer) -> tirx.Stmt:
        for buffer, pointer in zip(large, pointers, strict=True):
            if node.buffer.same_as(buffer):
                return tirx.DeclBuffer(node.buffer, data=pointer)
        return node

    body = structural_map(func.body, (tirx.AllocBuffer, replace)) if large else func.body
    plain = tirx.PrimFunc([*func.params, *pointers], body, func.ret_type, func.attrs)
    return PlainKernel(name, plain, tuple(map(buffer_bytes, large)))


def to_plain(func: tirx.PrimFunc, name: str, target: tvm.target.Target) -> PlainKernel:
    """Lower one scheduled PrimFunc to a C function called `name`.

    Raises ToolError where a thread's share of its buffers does not fit a stack.
    """
    bound = func.with_attr("global_symbol", name).with_attr("tirx.noalias", True)
    with target, tvm.transform.PassContext(opt_level=3):
        mod = tirx.transform.BindTarget(target)(IRModule({name: bound}))
        mod = tvm.transform.Sequential(_to_loops())(mod)
        looped = mod[name]
        body = with_calls(looped.body)
        body = body if target.kind.name == "c" else expand(body)  # C has functions, and no vectors
        mod = IRModule({name: looped.with_body(body)})
        mod = IRModule({name: _with_pointer_parameters(mod[name])})
        mod = tvm.transform.Sequential(_to_vectors())(mod)
        flat = mod[name]
        if target.attrs.get("feature.has_mve"):
            flat = flat.with_body(with_high_products(flat.body))
        kernel = _with_workspaces(flat, name)
        mod = tirx.transform.LowerIntrin()(IRModule({name: kernel.func}))
    return PlainKernel(name, mod[name], kernel.workspace_bytes)


def external_symbols(kernels: list[PlainKernel]) -> set[str]:
    """The functions that kernels call and do not contain."""
    found: set[str] = set()

    def visit(call: ir.Call) -> None:
        if str(getattr(call.op, "name", "")) == "tirx.call_extern":
            found.add(str(call.args[0].value))

    for kernel in kernels:
        structural_walk(kernel.func.body, (ir.Call, visit))
    return found


def build_object(kernels: list[PlainKernel], target: tvm.target.Target, path: str) -> None:
    """Compile kernels to one ELF object at `path`."""
    module = IRModule({kernel.name: kernel.func for kernel in kernels})
    tvm.get_global_func("target.build.llvm")(module, target).write_to_file(path, "o")
