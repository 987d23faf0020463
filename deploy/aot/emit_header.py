"""Layout → `model.h`, the public header."""

from __future__ import annotations

from math import prod

from deploy.aot.emit import Layout, signature
from deploy.graph import Tensor
from deploy.model_spec import TensorSpec


def describe_tensor(identifier: str, tensor: Tensor, spec: TensorSpec) -> str:
    shape = "".join(f"[{d}]" for d in tensor.shape) or " (one number)"
    quantized = spec.scale is not None
    scaled = f", scale {float(spec.scale or 0.0)!r}, zero point {spec.zero_point}" if quantized else ""
    return f"{identifier}{shape} {tensor.dtype}{scaled}"


def end_tensors(layout: Layout) -> list[tuple[str, str, Tensor, TensorSpec]]:
    """Role, C identifier, tensor and specification of every input and output."""
    names = (*layout.graph.inputs, *layout.graph.outputs)
    roles = ["input"] * len(layout.inputs) + ["output"] * len(layout.outputs)
    specs = (*layout.inputs, *layout.outputs)
    ends, tensors = layout.ends, layout.graph.tensors
    return [(role, ends[n], tensors[n], spec) for role, n, spec in zip(roles, names, specs, strict=True)]


OPENING = """\
#include "tvm_deploy.h"

#ifdef __cplusplus
extern "C" {
#endif
"""

CLOSING = """
#ifdef __cplusplus
}
#endif
#endif
"""


def _declarations(layout: Layout) -> list[str]:
    prefix = layout.prefix
    return [
        "/* Compute the outputs. All tensors are dense, row-major and the caller's, and must not overlap;",
        " * returns enum tvm_deploy_status. */",
        f"{signature(layout)};",
        "",
        "/* The same with shapes and types checked first. */",
        f"int32_t {prefix}_call(const tvm_deploy_tensor *inputs, int32_t input_count,",
        "    const tvm_deploy_tensor *outputs, int32_t output_count, void *arena, size_t arena_bytes);",
        "",
        "/* Names, shapes and sizes, for programs that load a model they do not know. */",
        f"const tvm_deploy_model_info *{prefix}_describe(void);",
        "",
        "/* A sentence for a status. */",
        f"const char *{prefix}_status_text(int32_t status);",
    ]


def header(layout: Layout) -> str:
    """The public header `model.h`."""
    macro, tensors = layout.macro, end_tensors(layout)
    return "\n".join(
        [
            f"/* {layout.title}",
            " *",
            *(f" *   {role} {describe_tensor(name, tensor, spec)}" for role, name, tensor, spec in tensors),
            " *",
            " * Re-entrant: all state is in the arena that the caller passes; calls with different arenas may run",
            " * at once.",
            *([" * Needs 1 MiB of the calling thread's stack."] if layout.threads > 1 else []),
            " */",
            f"#ifndef {macro}_MODEL_H",
            f"#define {macro}_MODEL_H",
            "",
            OPENING,
            f"#define {macro}_ARENA_BYTES {layout.plan.arena_bytes}u",
            f"#define {macro}_ARENA_ALIGNMENT {layout.plan.alignment}u",
            f"#define {macro}_WEIGHT_BYTES {layout.weight_bytes}u",
            f"#define {macro}_THREADS {layout.threads}",
            *(f"#define {macro}_{name.upper()}_ELEMENTS {prod(tensor.shape)}u" for _, name, tensor, _ in tensors),
            "",
            *_declarations(layout),
            CLOSING,
        ]
    )
