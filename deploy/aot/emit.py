"""Graph and memory plan → C that a person can read: the header, the call sequence, and an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from deploy.aot.plan import ALIGNMENT, Plan
from deploy.graph import COPY, Graph, Tensor
from deploy.model_spec import TensorSpec, c_identifier, unique

C_TYPES = {
    "bool": "uint8_t", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t",
    "int32": "int32_t", "uint32": "uint32_t", "int64": "int64_t", "uint64": "uint64_t",
    "float16": "uint16_t", "float32": "float", "float64": "double",
}  # fmt: skip
RESERVED = ("arena", "arena_bytes", "status")


@dataclass(frozen=True)
class Layout:
    """Everything the C files are made from. `weight_offsets` are bytes into the weights, per constant's name."""

    prefix: str
    title: str
    graph: Graph
    plan: Plan
    weight_offsets: dict[str, int]
    weight_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    threads: int

    @property
    def macro(self) -> str:
        """Prefix of the model's macros."""
        return self.prefix.upper()

    @property
    def ends(self) -> dict[str, str]:
        """C identifiers of the model's inputs and outputs, by tensor name."""
        names = (*self.graph.inputs, *self.graph.outputs)
        identifiers = unique((c_identifier(name, "tensor") for name in names), RESERVED)
        return dict(zip(names, identifiers, strict=True))


def kernel_symbol(prefix: str, kernel: str) -> str:
    """Name of a kernel's C function."""
    return f"{prefix}_k_{kernel}"


def _signature(layout: Layout) -> str:
    ends, tensors = layout.ends, layout.graph.tensors
    inputs = [f"const {C_TYPES[tensors[n].dtype]} *{ends[n]}" for n in layout.graph.inputs]
    outputs = [f"{C_TYPES[tensors[n].dtype]} *{ends[n]}" for n in layout.graph.outputs]
    return f"int32_t {layout.prefix}_run({', '.join([*inputs, *outputs, 'void *arena', 'size_t arena_bytes'])})"


def _describe_tensor(identifier: str, tensor: Tensor, spec: TensorSpec) -> str:
    shape = "".join(f"[{d}]" for d in tensor.shape) or " (one number)"
    scaled = f", scale {spec.scale!r}, zero point {spec.zero_point}" if spec.scale is not None else ""
    return f"{identifier}{shape} {tensor.dtype}{scaled}"


def header(layout: Layout) -> str:
    """The public header `model.h`."""
    macro, ends = layout.macro, layout.ends
    lines, described = [], []
    for role, specs, names in (("input", layout.inputs, layout.graph.inputs), ("output", layout.outputs, layout.graph.outputs)):
        for spec, name in zip(specs, names, strict=True):
            tensor = layout.graph.tensors[name]
            described.append(f" *   {role} {_describe_tensor(ends[name], tensor, spec)}")
            lines.append(f"#define {macro}_{ends[name].upper()}_ELEMENTS {prod(tensor.shape)}u")
    return "\n".join(
        [
            f"/* {layout.title}",
            " *",
            *described,
            " *",
            " * Re-entrant: all state is in the arena that the caller passes; calls with different arenas may run at once.",
            " */",
            f"#ifndef {macro}_MODEL_H",
            f"#define {macro}_MODEL_H",
            "",
            '#include "tvm_deploy.h"',
            "",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            f"#define {macro}_ARENA_BYTES {layout.plan.arena_bytes}u",
            f"#define {macro}_ARENA_ALIGNMENT {ALIGNMENT}u",
            f"#define {macro}_WEIGHT_BYTES {layout.weight_bytes}u",
            f"#define {macro}_THREADS {layout.threads}",
            *lines,
            "",
            "/* Compute the outputs. All tensors are dense, row-major and the caller's; returns enum tvm_deploy_status. */",
            f"{_signature(layout)};",
            "",
            "/* The same with shapes and types checked first. */",
            f"int32_t {layout.prefix}_call(const tvm_deploy_tensor *inputs, int32_t input_count,",
            f"    const tvm_deploy_tensor *outputs, int32_t output_count, void *arena, size_t arena_bytes);",
            "",
            "/* Names, shapes and sizes, for programs that load a model they do not know. */",
            f"const tvm_deploy_model_info *{layout.prefix}_describe(void);",
            "",
            "/* A sentence for a status. */",
            f"const char *{layout.prefix}_status_text(int32_t status);",
            "",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "#endif",
            "",
        ]
    )


def _prototypes(layout: Layout) -> list[str]:
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
        identifier = layout.ends[root.name]
        return identifier if root.dtype == tensor.dtype else f"({ctype} *)(void *){identifier}"
    return f"({ctype} *)(void *)(base + {layout.plan.offsets[root.name]})"


def _call_lines(layout: Layout) -> list[str]:
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
    return lines


def _run(layout: Layout) -> list[str]:
    ends, tensors = layout.ends, layout.graph.tensors
    checks = [f"  if ({ends[n]} == NULL) return TVM_DEPLOY_NULL_POINTER;" for n in ends]
    checks += [
        f"  if ((uintptr_t){ends[n]} % sizeof *{ends[n]} != 0u) return TVM_DEPLOY_MISALIGNED;"
        for n in ends
        if C_TYPES[tensors[n].dtype] not in ("int8_t", "uint8_t")
    ]
    arena = [
        "  if (arena == NULL) return TVM_DEPLOY_NULL_POINTER;",
        f"  if (arena_bytes < {layout.macro}_ARENA_BYTES) return TVM_DEPLOY_ARENA_TOO_SMALL;",
        f"  if ((uintptr_t)arena % {layout.macro}_ARENA_ALIGNMENT != 0u) return TVM_DEPLOY_ARENA_MISALIGNED;",
        "  unsigned char *const base = arena;",
    ]
    no_arena = ["  (void)arena;", "  (void)arena_bytes;"]
    return [
        f"TVM_DEPLOY_EXPORT {_signature(layout)} {{",
        *checks,
        *(arena if layout.plan.offsets else no_arena),
        "  int32_t status = 0;",
        *_call_lines(layout),
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
        scale, zero = (spec.scale, spec.zero_point) if spec.scale is not None else (0.0, 0)
        dtype = f"TVM_DEPLOY_{tensor.dtype.upper()}"
        quoted = spec.name.replace("\\", "\\\\").replace('"', '\\"')
        rows.append(f'    {{"{quoted}", {pointer}, {len(tensor.shape)}, {dtype}, {tensor.nbytes}u, {scale!r}, {zero}}},')
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


def source(layout: Layout) -> str:
    """`model.c`: the call sequence over fixed addresses."""
    prefix, title = layout.prefix, layout.title.replace('"', "'")
    uses_copy = any(call.kernel == COPY for call in layout.graph.calls)
    model_info = [
        "static const tvm_deploy_model_info model_info = {",
        f'    "{title}", {len(layout.inputs)}, {len(layout.outputs)}, input_info, output_info,',
        f"    {layout.macro}_ARENA_BYTES, {layout.macro}_ARENA_ALIGNMENT, {layout.macro}_WEIGHT_BYTES, {layout.threads}}};",
    ]
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
            *_prototypes(layout),
            "",
            *_run(layout),
            "",
            *_info(layout, "input", layout.graph.inputs, layout.inputs),
            *_info(layout, "output", layout.graph.outputs, layout.outputs),
            *model_info,
            "",
            f"TVM_DEPLOY_EXPORT const tvm_deploy_model_info *{prefix}_describe(void) {{ return &model_info; }}",
            "",
            _CHECKED_CALL,
            *_call(layout),
            "",
            f"TVM_DEPLOY_EXPORT const char *{prefix}_status_text(int32_t status) {{",
            _STATUS_TEXT,
        ]
    )


def example(layout: Layout) -> str:
    """`model_example.c`: run the model once on zeros and print the first numbers of each output."""
    ends, tensors, macro = layout.ends, layout.graph.tensors, layout.macro
    buffers = [f"static {C_TYPES[tensors[n].dtype]} {ends[n]}[{macro}_{ends[n].upper()}_ELEMENTS];" for n in ends]
    arena = f"static _Alignas({macro}_ARENA_ALIGNMENT) unsigned char arena[{macro}_ARENA_BYTES + 1u];"
    prints = [
        f'  for (unsigned i = 0; i < {macro}_{ends[n].upper()}_ELEMENTS && i < 10u; ++i)\n'
        f'    printf("{ends[n]}[%u] = %g\\n", i, (double){ends[n]}[i]);'
        for n in layout.graph.outputs
    ]
    return "\n".join(
        [
            "/* Build and run, in this folder:",
            " *   cc model_example.c -o model_example -L. -lmodel -Wl,-rpath,'$ORIGIN' && ./model_example",
            " */",
            "#include <stdio.h>",
            "",
            '#include "model.h"',
            "",
            *buffers,
            arena,
            "",
            "int main(void) {",
            "  /* Fill the inputs here; they are zero now. */",
            f"  int32_t status = {layout.prefix}_run({', '.join([*ends.values(), 'arena', f'{macro}_ARENA_BYTES'])});",
            "  if (status != TVM_DEPLOY_OK) {",
            f'    fprintf(stderr, "%s\\n", {layout.prefix}_status_text(status));',
            "    return 1;",
            "  }",
            *prints,
            "  return 0;",
            "}",
            "",
        ]
    )


def weights_assembly(prefix: str, file_name: str) -> str:
    """`weights.S`: the weights file as a read-only, cache-line aligned symbol."""
    return (
        f'  .section .rodata\n  .balign 64\n  .globl {prefix}_weights\n  .hidden {prefix}_weights\n'
        f'{prefix}_weights:\n  .incbin "{file_name}"\n  .byte 0\n  .section .note.GNU-stack,"",%progbits\n'
    )


def exports(prefix: str) -> str:
    """Linker version script: what the shared library shows; everything else stays inside."""
    public = "".join(f"    {prefix}_{name};\n" for name in ("run", "call", "describe", "status_text"))
    return f"{{\n  global:\n{public}    __tvm_ffi_{prefix};\n  local: *;\n}};\n"
