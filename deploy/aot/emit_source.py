"""Layout → `model.c`, the call sequence that a person can read."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.aot.emit import C_TYPES, Layout, kernel_symbol, literal, signature
from deploy.graph import COPY
from deploy.model_spec import TensorSpec


def prototypes(layout: Layout) -> list[str]:
    seen: dict[str, str] = {}
    for call in layout.graph.calls:
        if call.kernel == COPY or call.kernel in seen:
            continue
        tensors = layout.graph.tensors
        inputs = [f"const {C_TYPES[tensors[n].dtype]} *" for n in call.inputs]
        written = [f"{C_TYPES[tensors[n].dtype]} *" for n in call.written]
        symbol = kernel_symbol(layout.prefix, call.kernel)
        seen[call.kernel] = f"int32_t {symbol}({', '.join([*inputs, *written])});"
    return list(seen.values())


def _address(layout: Layout, name: str) -> str:
    """A C expression for the tensor's first element."""
    tensor, root = layout.graph.tensors[name], layout.graph.root(name)
    ctype = C_TYPES[tensor.dtype]
    if root.kind == "constant":
        return f"(const {ctype} *)(const void *)({layout.prefix}_weights + {layout.weight_offsets[root.name]})"
    if root.kind in ("input", "output"):
        identifier, const = layout.ends[root.name], "const " if root.kind == "input" else ""
        same = C_TYPES[root.dtype] == ctype
        return identifier if same else f"({const}{ctype} *)({const}void *){identifier}"
    pool, offset = layout.plan.place(root.name)
    return f"({ctype} *)(void *)({f'base_{pool}' if pool else 'base'} + {offset})"


def _call_lines(layout: Layout, hook: str | None) -> list[str]:
    lines = []
    for number, call in enumerate(layout.graph.calls):
        arguments = [_address(layout, name) for name in call.arguments]
        shapes = " ".join("x".join(map(str, layout.graph.tensors[n].shape)) or "1" for n in call.outputs)
        lines.append(f"  /* {number}: {call.kernel} -> {shapes} */")
        if call.kernel == COPY:
            nbytes = layout.graph.tensors[call.outputs[0]].nbytes
            lines.append(f"  memcpy({arguments[1]}, {arguments[0]}, {nbytes}u);")
        else:
            separator = ",\n                "
            symbol = kernel_symbol(layout.prefix, call.kernel)
            lines.append(f"  status |= {symbol}({separator.join(arguments)});")
        if hook is not None:
            lines.append(f"  {hook}({number}u);")
    return lines


def _checks(layout: Layout) -> list[str]:
    ends, tensors = layout.ends, layout.graph.tensors
    checks = [f"  if ({ends[n]} == NULL) return TVM_DEPLOY_NULL_POINTER;" for n in ends]
    checks += [
        f"  if ((uintptr_t){ends[n]} % sizeof *{ends[n]} != 0u) return TVM_DEPLOY_MISALIGNED;"
        for n in ends
        if C_TYPES[tensors[n].dtype] not in ("int8_t", "uint8_t")
    ]
    pools = layout.plan.pools
    if len(layout.plan.pool_of) == len(layout.plan.offsets):
        else_where = " and the pools" if pools else ""
        checks += [f"  (void)arena; /* everything is computed into the outputs{else_where} */", "  (void)arena_bytes;"]
    else:
        checks += _memory(layout, "")
    return [*checks, *(line for pool in pools for line in _memory(layout, f"_{pool}"))]


def _memory(layout: Layout, pool: str) -> list[str]:
    """The checks of the arena, or of a pool's part of it, and its start."""
    macro = f"{layout.macro}_ARENA{pool.upper()}_BYTES"
    return [
        f"  if (arena{pool} == NULL) return TVM_DEPLOY_NULL_POINTER;",
        f"  if (arena{pool}_bytes < {macro}) return TVM_DEPLOY_ARENA_TOO_SMALL;",
        f"  if ((uintptr_t)arena{pool} % {layout.macro}_ARENA_ALIGNMENT != 0u) return TVM_DEPLOY_ARENA_MISALIGNED;",
        f"  unsigned char *const base{pool} = arena{pool};",
    ]


def run_function(layout: Layout, hook: str | None = None) -> list[str]:
    """The definition of `run`; `hook` names a macro to call after each kernel, with the call's number."""
    return [
        f"{signature(layout)} {{",
        *_checks(layout),
        "  int32_t status = 0;",
        *_call_lines(layout, hook),
        "  return status == 0 ? TVM_DEPLOY_OK : TVM_DEPLOY_NO_THREADS;",
        "}",
    ]


def _info(layout: Layout, role: str, names: Sequence[str], specs: Sequence[TensorSpec]) -> list[str]:
    shapes, rows = [], []
    for number, (name, spec) in enumerate(zip(names, specs, strict=True)):
        tensor = layout.graph.tensors[name]
        shape = f"{role}_{number}_shape"
        if tensor.shape:
            shapes.append(f"static const int64_t {shape}[] = {{{', '.join(map(str, tensor.shape))}}};")
        pointer = shape if tensor.shape else "NULL"
        dtype = f"TVM_DEPLOY_{tensor.dtype.upper()}"
        fields = [literal(spec.name), pointer, str(len(tensor.shape)), dtype, f"{tensor.nbytes}u"]
        fields += [repr(float(spec.scale or 0.0)), str(int(spec.zero_point or 0))]
        rows.append(f"    {{{', '.join(fields)}}},")
    return [*shapes, f"static const tvm_deploy_tensor_info {role}_info[] = {{", *rows, "};"]


_CHECKED_CALL = """\
static int32_t check(const tvm_deploy_tensor *tensors, const tvm_deploy_tensor_info *info, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    if (tensors[i].data == NULL) return TVM_DEPLOY_NULL_POINTER;
    if (tensors[i].dtype != info[i].dtype) return TVM_DEPLOY_WRONG_DTYPE;
    if (tensors[i].ndim != info[i].ndim) return TVM_DEPLOY_WRONG_SHAPE;
    if (info[i].ndim > 0 && tensors[i].shape == NULL) return TVM_DEPLOY_NULL_POINTER;
    for (int32_t d = 0; d < info[i].ndim; ++d)
      if (tensors[i].shape[d] != info[i].shape[d]) return TVM_DEPLOY_WRONG_SHAPE;
  }
  return TVM_DEPLOY_OK;
}
"""

_STATUS_TEXT = """\
  switch (status) {
    case TVM_DEPLOY_OK: return "ok";
    case TVM_DEPLOY_NULL_POINTER: return "an input, an output or the arena is NULL";
    case TVM_DEPLOY_ARENA_TOO_SMALL: return "the arena is smaller than the model's ARENA_BYTES";
    case TVM_DEPLOY_ARENA_MISALIGNED: return "the arena is not aligned to the model's ARENA_ALIGNMENT";
    case TVM_DEPLOY_MISALIGNED: return "an input or output is not aligned to its element size";
    case TVM_DEPLOY_WRONG_COUNT: return "the number of inputs or outputs is not the model's";
    case TVM_DEPLOY_WRONG_DTYPE: return "an element type is not the model's";
    case TVM_DEPLOY_WRONG_SHAPE: return "a shape is not the model's";
    case TVM_DEPLOY_NO_THREADS: return "a kernel could not run its threads";
    default: return "unknown status";
  }
}
"""


def _call(layout: Layout) -> list[str]:
    prefix, inputs, outputs = layout.prefix, layout.graph.inputs, layout.graph.outputs
    arguments = [f"inputs[{i}].data" for i in range(len(inputs))] + [f"outputs[{i}].data" for i in range(len(outputs))]
    return [
        f"TVM_DEPLOY_EXPORT int32_t {prefix}_call(const tvm_deploy_tensor *inputs, int32_t input_count,",
        "    const tvm_deploy_tensor *outputs, int32_t output_count, void *arena, size_t arena_bytes) {",
        f"  if (input_count != {len(inputs)} || output_count != {len(outputs)}) return TVM_DEPLOY_WRONG_COUNT;",
        "  if (inputs == NULL || outputs == NULL) return TVM_DEPLOY_NULL_POINTER;",
        f"  int32_t status = check(inputs, input_info, {len(inputs)});",
        f"  if (status == TVM_DEPLOY_OK) status = check(outputs, output_info, {len(outputs)});",
        "  if (status != TVM_DEPLOY_OK) return status;",
        f"  return {prefix}_run({', '.join([*arguments, 'arena', 'arena_bytes'])});",
        "}",
    ]


def _model_info(layout: Layout) -> list[str]:
    macro = layout.macro
    counts = f"{len(layout.inputs)}, {len(layout.outputs)}"
    return [
        *_info(layout, "input", layout.graph.inputs, layout.inputs),
        *_info(layout, "output", layout.graph.outputs, layout.outputs),
        "static const tvm_deploy_model_info model_info = {",
        f"    {literal(layout.name)}, {counts}, input_info, output_info,",
        f"    {macro}_ARENA_BYTES, {macro}_ARENA_ALIGNMENT, {macro}_WEIGHT_BYTES, {layout.threads}}};",
        "",
        f"TVM_DEPLOY_EXPORT const tvm_deploy_model_info *{layout.prefix}_describe(void) {{ return &model_info; }}",
    ]


def source(layout: Layout) -> str:
    """`model.c`: the call sequence over fixed addresses."""
    prefix = layout.prefix
    uses_copy = any(call.kernel == COPY for call in layout.graph.calls)
    declaration, *body = run_function(layout)
    return "\n".join(
        [
            f"/* {layout.title}: the kernels in order, each on fixed addresses in the arena. */",
            *(["#include <string.h>", ""] if uses_copy else []),
            '#include "model.h"',
            "",
            '#define TVM_DEPLOY_EXPORT __attribute__((visibility("default")))',
            "",
            f"extern const unsigned char {prefix}_weights[]; /* {layout.weight_bytes} bytes */",
            "",
            *prototypes(layout),
            "",
            f"TVM_DEPLOY_EXPORT {declaration}",
            *body,
            "",
            *_model_info(layout),
            "",
            _CHECKED_CALL,
            *_call(layout),
            "",
            f"TVM_DEPLOY_EXPORT const char *{prefix}_status_text(int32_t status) {{",
            _STATUS_TEXT,
        ]
    )
