"""What firmware tests share: hand-written models as libraries, boards in QEMU, and why a test is skipped."""

from pathlib import Path

import numpy as np
import pytest

from deploy import shell
from deploy.aot.archive import STRICT
from deploy.firmware.link import compile_command, tool
from deploy.model_spec import TensorSpec
from deploy.targets import load_target

INPUTS = (TensorSpec("x", (2, 3), "int32"), TensorSpec("n", (4,), "int8"))
OUTPUTS = (TensorSpec("y", (3, 2), "int32"), TensorSpec("total", (), "int32"))
HEADER = """\
#ifndef TINY_MODEL_H
#define TINY_MODEL_H
#include <stddef.h>
#include <stdint.h>
#define TINY_ARENA_BYTES 48u
#define TINY_ARENA_ALIGNMENT 8u
#define TINY_WEIGHT_BYTES 24u
#define TINY_INPUTS(X) X(int32_t, x, 6u) X(int8_t, n, 4u)
#define TINY_OUTPUTS(X) X(int32_t, y, 6u) X(int32_t, total, 1u)
int32_t tiny_run(const int32_t *x, const int8_t *n, int32_t *y, int32_t *total, void *arena, size_t arena_bytes);
#endif
"""
# y = (2 x + 1) transposed, by way of the arena; total = sum of n.
MODEL = r"""
#include "model.h"
#ifndef TVM_DEPLOY_AFTER
#define TVM_DEPLOY_AFTER(call) ((void)0)
#endif
extern const int32_t tiny_weights[6];
#ifdef NOPS
__attribute__((noinline)) static void nops(void) { __asm__ volatile(".rept " NOPS "\n\tnop\n\t.endr"); }
#endif
int32_t tiny_run(const int32_t *x, const int8_t *n, int32_t *y, int32_t *total, void *arena, size_t arena_bytes) {
  int32_t *work = arena;
  if (arena_bytes < TINY_ARENA_BYTES) return 2;
  for (int i = 0; i < 6; ++i) work[i] = 2 * x[i] + tiny_weights[i];
  TVM_DEPLOY_AFTER(0);
  for (int i = 0; i < 6; ++i) y[i % 3 * 2 + i / 3] = work[i];
#ifdef NOPS
  nops();
#endif
  TVM_DEPLOY_AFTER(1);
  *total = n[0] + n[1] + n[2] + n[3];
#ifdef STACK
  {
    volatile char room[STACK];
    for (int i = 0; i < STACK; ++i) room[i] = 1;
    *total += room[STACK - 1] - 1;
  }
#endif
#ifdef LOOPS
  for (volatile int i = 0; i < LOOPS; ++i) {
  }
#endif
#ifdef HANG
  for (;;) {
  }
#endif
#ifdef FAULT
  __asm__ volatile(UNDEFINED);
#endif
#ifdef OVERRUN_ARENA
  ((volatile char *)arena)[TINY_ARENA_BYTES] = 0;
#endif
#ifdef OVERRUN_OUTPUT
  y[6] = 0;
#endif
#ifdef MISSING
  missing_function();
#endif
#ifdef STATUS
  return STATUS;
#endif
  return 0;
}
"""
WEIGHTS = "extern const int tiny_weights[6];\nconst int tiny_weights[6] = {1, 1, 1, 1, 1, 1};\n"


def needs(*programs):
    """A mark that skips a test where a program is missing."""
    missing = [name for name in programs if shell.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")


ARM = needs("arm-none-eabi-gcc", "qemu-system-arm")
RISCV = needs("riscv64-unknown-elf-gcc", "qemu-system-riscv32")
BOARDS = [
    pytest.param("cortex-m0-microbit", marks=ARM),
    pytest.param("cortex-m4-mps2", marks=ARM),
    pytest.param("rv32imc-virt", marks=RISCV),
]
MORE_BOARDS = [pytest.param(f"cortex-{name}", marks=ARM) for name in ("m3-mps2", "m7-mps2", "m33-mps2", "m55-mps3")]


def library(folder: Path, board: str, **defines: object) -> Path:
    """Compile the hand-written model, with macros defined, as firmware for a board; its libmodel.a."""
    toolchain = load_target(board).toolchain
    undefined = ".inst.n 0xde00" if "arm" in toolchain.cc else ".half 0"
    macros = "".join(f"#define {name} {value}\n" for name, value in {**defines, "UNDEFINED": f'"{undefined}"'}.items())
    flags = [*STRICT, "-Wno-implicit-function-declaration"]
    (folder / "src").mkdir(parents=True)
    for name, text in (("model.h", HEADER), ("src/model.c", macros + MODEL), ("src/weights.c", WEIGHTS)):
        (folder / name).write_text(text)
    for name in ("model", "weights"):
        shell.run(compile_command(toolchain, flags, f"{name}.c", f"{name}.o"), timeout_s=60, cwd=folder / "src")
    archive = [tool(toolchain.cc, "ar"), "rcsD", "../libmodel.a", "model.o", "weights.o"]
    shell.run(archive, timeout_s=60, cwd=folder / "src")
    return folder / "libmodel.a"


def samples(count):
    """`count` different samples of the model's inputs."""
    random = np.random.default_rng(7)
    return [
        [random.integers(-1000, 1000, (2, 3)).astype(np.int32), random.integers(-128, 128, 4).astype(np.int8)]
        for _ in range(count)
    ]


def expected(sample):
    """What the model gives for a sample."""
    x, n = sample
    return [(2 * x + 1).T, n.sum(dtype=np.int32)]
