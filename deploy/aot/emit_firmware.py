"""Layout → the C files of a firmware library: header, call sequence, weights and an example, all of them C99."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.aot.emit import C_TYPES, Layout, signature
from deploy.aot.emit_header import CLOSING, OPENING, describe_tensor, end_tensors
from deploy.aot.emit_source import prototypes, run_function
from deploy.graph import COPY, Tensor
from deploy.model_spec import TensorSpec
from deploy.target_memory import section_macro, section_of

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


def _external_weights(layout: Layout) -> list[str]:
    if not layout.external_weights:
        return []
    return [
        "",
        f"/* The section .rodata.{layout.prefix}_weights is meant for the external flash, which must be readable",
        " * before `run` is called. */",
        f"#define {layout.macro}_WEIGHTS_EXTERNAL 1u",
    ]


def _pools(layout: Layout) -> list[str]:
    """Macros for the memories besides the arena. Their sections are ordinary RAM where no linker script knows them."""
    macro, pools = layout.macro, layout.plan.pools
    if not pools:
        return []
    sizes = {pool: f"{macro}_ARENA_{pool.upper()}_BYTES" for pool in pools}
    rows = " ".join(f"X({pool}, {size}, {section_macro(pool)})" for pool, size in sizes.items())
    defaults = [
        (f"#ifndef {section_macro(pool)}", f'#define {section_macro(pool)} "{section_of(pool)}"', "#endif")
        for pool in pools
    ]
    return [
        "/* Besides the arena `run` computes in a buffer in each of these memories, aligned as the arena is, and the",
        " * caller's too. One that is too small or misaligned gives the status of an arena that is. */",
        *(f"#define {size} {pools[pool]}u" for pool, size in sizes.items()),
        "",
        "/* The section for a buffer in each of them, which a linker script places; any other with -D. */",
        *(line for lines in defaults for line in lines),
        "",
        "/* Every such memory as X(name, bytes, section), in the order of the parameters. */",
        f"#define {macro}_POOLS(X) {rows}",
        "",
    ]


def header(layout: Layout) -> str:
    """The public header `model.h`: everything that is known at compile time, and `run`."""
    macro, tensors = layout.macro, end_tensors(layout)
    state = "memory" if layout.plan.pools else "arena"
    return "\n".join(
        [
            f"/* {layout.title}",
            " *",
            *(f" *   {role} {describe_tensor(name, tensor, spec)}" for role, name, tensor, spec in tensors),
            " *",
            f" * Re-entrant: all state is in the {state} that the caller passes. Nothing is allocated, and of the C",
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
            *_external_weights(layout),
            "",
            *_pools(layout),
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


def pool_buffers(macro: str, pools: Iterable[str]) -> list[str]:
    """C definitions of a buffer in each pool."""
    return [
        f"static unsigned char arena_{pool}[{macro}_ARENA_{pool.upper()}_BYTES]\n"
        f"    __attribute__((aligned({macro}_ARENA_ALIGNMENT), section({section_macro(pool)})));"
        for pool in pools
    ]


def arena_arguments(macro: str, pools: Iterable[str]) -> list[str]:
    """The arguments of `run` for the arena and the buffers in pools."""
    more = (word for pool in pools for word in (f"arena_{pool}", f"{macro}_ARENA_{pool.upper()}_BYTES"))
    return ["arena", f"{macro}_ARENA_BYTES", *more]


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
            *pool_buffers(macro, layout.plan.pools),
            *(f"static {C_TYPES[tensors[n].dtype]} {ends[n]}[{macro}_{ends[n].upper()}_ELEMENTS];" for n in ends),
            "",
            "/* Fill the inputs, call this, and read the outputs; 0 means that all went well. */",
            f"int32_t {layout.prefix}_example(void) {{",
            f"  return {layout.prefix}_run({', '.join([*ends.values(), *arena_arguments(macro, layout.plan.pools)])});",
            "}",
            "",
        ]
    )
