"""Layout → the small files around the model: an example program, the weights' assembly, the list of exports."""

from __future__ import annotations

from deploy.aot.emit import C_TYPES, Layout


def example(layout: Layout) -> str:
    """`model_example.c`: run the model once on zeros and print the first numbers of each output."""
    ends, tensors, macro = layout.ends, layout.graph.tensors, layout.macro
    counts = {n: f"{macro}_{ends[n].upper()}_ELEMENTS" for n in ends}
    prints = [
        f"  for (unsigned i = 0; i < {counts[n]} && i < 10u; ++i)\n"
        f'    printf("{ends[n]}[%u] = %g\\n", i, (double){ends[n]}[i]);'
        for n in layout.graph.outputs
    ]
    lines = [
        "/* Build and run, in this folder:",
        " *   cc model_example.c -o model_example -L. -lmodel -Wl,-rpath,'$ORIGIN' && ./model_example",
        " */",
        "#include <stdio.h>",
        "",
        '#include "model.h"',
        "",
        "int main(void) {",
        "  /* Fill the inputs; they are zero now. */",
        *(f"  static {C_TYPES[tensors[n].dtype]} {ends[n]}[{counts[n]}];" for n in ends),
        f"  static _Alignas({macro}_ARENA_ALIGNMENT) unsigned char arena[{macro}_ARENA_BYTES + 1u];",
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
    return "\n".join(lines)


def weights_assembly(prefix: str, file_name: str) -> str:
    """`weights.S`: the weights file as a read-only, cache-line aligned symbol."""
    return (
        f"  .section .rodata\n  .balign 64\n  .globl {prefix}_weights\n  .hidden {prefix}_weights\n"
        f'{prefix}_weights:\n  .incbin "{file_name}"\n  .byte 0\n  .section .note.GNU-stack,"",%progbits\n'
    )


def exports(prefix: str) -> str:
    """Linker version script: what the shared library shows; everything else stays inside."""
    public = "".join(f"    {prefix}_{name};\n" for name in ("run", "call", "describe", "status_text"))
    return f"{{\n  global:\n{public}    __tvm_ffi_{prefix};\n  local: *;\n}};\n"
