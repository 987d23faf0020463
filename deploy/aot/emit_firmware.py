"""Layout → the C files of a firmware library: header, call sequence, weights and an example, all of them C99."""

from __future__ import annotations

from deploy.aot.emit import C_TYPES, Layout, signature
from deploy.aot.emit_header import CLOSING, OPENING, describe_tensor, end_tensors
from deploy.aot.emit_source import prototypes, run_function
from deploy.graph import COPY, Tensor
from deploy.model_spec import TensorSpec

HOOK = "TVM_DEPLOY_AFTER"
SECTION = "TVM_DEPLOY_WEIGHTS_SECTION"
_NUMBERS_A_LINE = 24


def _tensor_macros(macro: str, identifier: str, tensor: Tensor, spec: TensorSpec) -> list[str]:
    name = f"{macro}_{identifier.upper()}"
    facts = {
        "ELEMENTS": f"{spec.count}u",
        "BYTES": f"{tensor.nbytes}u",
        "RANK": str(len(tensor.shape)),
    }
    if tensor.shape:
        facts["SHAPE"] = f"{{{', '.join(map(str, tensor.shape))}}}"
    if spec.scale is not None:
        facts |= {"SCALE": f"{float(spec.scale)!r}f", "ZERO_POINT": f"({spec.zero_point})"}
    return [f"#define {name}_{key} {value}" for key, value in facts.items()]


def _list_macro(layout: Layout, role: str) -> str:
    rows = [
        f"X({C_TYPES[tensor.dtype]}, {identifier}, {spec.count}u)"
        for kind, identifier, tensor, spec in end_tensors(layout)
        if kind == role
    ]
    return f"#define {layout.macro}_{role.upper()}S(X) {' '.join(rows)}"


def header(layout: Layout) -> str:
    """The public header `model.h`: everything that is known at compile time, and `run`."""
    macro, tensors = layout.macro, end_tensors(layout)
    return "\n".join(
        [
            f"/* {layout.title}",
            " *",
            *(f" *   {role} {describe_tensor(name, tensor, spec)}" for role, name, tensor, spec in tensors),
            " *",
            " * Re-entrant: all state is in the arena that the caller passes. Nothing is allocated, and of the C",
            " * library only memcpy and memset are used (by float models its mathematics too). The weights are",
            f' * constant; to have them in another memory, compile src/weights.c with -D{SECTION}=\\"NAME\\",',
            f" * or place the section .rodata.{layout.prefix}_weights.",
            " */",
            f"#ifndef {macro}_MODEL_H",
            f"#define {macro}_MODEL_H",
            "",
            OPENING,
            "/* The memory that `run` computes in: the caller's, and free for something else between calls. */",
            f"#define {macro}_ARENA_BYTES {layout.plan.arena_bytes}u",
            f"#define {macro}_ARENA_ALIGNMENT {layout.plan.alignment}u",
            f"#define {macro}_WEIGHT_BYTES {layout.weight_bytes}u",
            "",
            "/* The value that a quantized tensor's number q stands for is SCALE * (q - ZERO_POINT). */",
            *(line for _, name, tensor, spec in tensors for line in _tensor_macros(macro, name, tensor, spec)),
            "",
            "/* Every input and every output as X(type, name, elements), in the order of the parameters. */",
            _list_macro(layout, "input"),
            _list_macro(layout, "output"),
            "",
            "/* Compute the outputs. All tensors are dense, row-major and the caller's, and must not overlap;",
            " * returns enum tvm_deploy_status. */",
            f"{signature(layout)};",
            CLOSING,
        ]
    )


def source(layout: Layout) -> str:
    """`model.c`: the call sequence over fixed addresses."""
    uses_copy = any(call.kernel == COPY for call in layout.graph.calls)
    return "\n".join(
        [
            f"/* {layout.title}: the kernels in order, each on fixed addresses in the arena. */",
            *(["#include <string.h>", ""] if uses_copy else []),
            '#include "model.h"',
            "",
            f"#ifndef {HOOK}",
            f"#define {HOOK}(call) ((void)0) /* after each kernel, with the call's number: for a profiler */",
            "#endif",
            "",
            f"extern const unsigned char {layout.prefix}_weights[]; /* {layout.weight_bytes} bytes */",
            "",
            *prototypes(layout),
            "",
            *run_function(layout, HOOK),
            "",
        ]
    )


def weights(layout: Layout, data: bytes) -> str:
    """`weights.c`: all constants as one array, in a section of the user's choice."""
    shown = data or b"\0"
    rows = (shown[at : at + _NUMBERS_A_LINE] for at in range(0, len(shown), _NUMBERS_A_LINE))
    return "\n".join(
        [
            f"/* {layout.title}: its weights, as the kernels read them. */",
            f"#ifdef {SECTION}",
            f"#define PLACED __attribute__((section({SECTION})))",
            "#else",
            "#define PLACED",
            "#endif",
            "",
            f"extern const unsigned char {layout.prefix}_weights[];",
            "",
            f"const unsigned char {layout.prefix}_weights[{len(shown)}]",
            f"    __attribute__((aligned({layout.plan.alignment}))) PLACED = {{",
            *(f"  {','.join(map(str, row))}," for row in rows),
            "};",
            "",
        ]
    )


def example(layout: Layout) -> str:
    """`model_example.c`: the memory that a model needs, and a call of it."""
    ends, tensors, macro = layout.ends, layout.graph.tensors, layout.macro
    return "\n".join(
        [
            f"/* How {layout.prefix} is called. Link it with libmodel.a, for example:",
            f" *   {' '.join(('arm-none-eabi-gcc', '-mcpu=...'))} your_program.c model_example.c -L. -lmodel",
            " */",
            '#include "model.h"',
            "",
            f"int32_t {layout.prefix}_example(void);",
            "",
            f"static unsigned char arena[{macro}_ARENA_BYTES + 1u] __attribute__((aligned({macro}_ARENA_ALIGNMENT)));",
            *(f"static {C_TYPES[tensors[n].dtype]} {ends[n]}[{macro}_{ends[n].upper()}_ELEMENTS];" for n in ends),
            "",
            "/* Fill the inputs, call this, and read the outputs; 0 means that all went well. */",
            f"int32_t {layout.prefix}_example(void) {{",
            f"  return {layout.prefix}_run({', '.join([*ends.values(), 'arena', f'{macro}_ARENA_BYTES'])});",
            "}",
            "",
        ]
    )
