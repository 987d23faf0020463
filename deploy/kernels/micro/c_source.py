"""The functions that a model's kernels call and that are written in C99, as one text."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.kernels.micro.dsp_in_c import WORDS, in_c
from deploy.kernels.micro.helium import COPY, SET
from deploy.kernels.micro.portable import MICRO, PortableDepthwise, PortableKernel, PortablePlane, function

# Several models in one image bring the same functions: the linker keeps one of each.
SHARED = '__attribute__((weak, visibility("hidden")))'
_FIXED = {
    COPY: function(COPY, "const int8_t *from, int8_t *to, int32_t count", ["memcpy(to, from, (size_t)count);"]),
    SET: function(SET, "int8_t *to, int32_t count, int32_t value", ["memset(to, value, (size_t)count);"]),
}


# The blocks just fit RISC-V's registers, until GCC's second level of optimization moves loads and addresses around.
_FIRST_LEVEL = """\
#if defined(__riscv) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O1")
#endif
"""


def functions(symbols: Iterable[str]) -> list[str]:
    """The definitions of those of the functions that are written in C, each with the macro `MICRO` before it."""
    texts = [text for symbol in sorted(symbols) if (text := _function(symbol)) is not None]
    return [WORDS, *texts] if any("tvm_deploy_word" in text for text in texts) else texts


def c_source(symbols: Iterable[str]) -> str:
    """A file with those of the functions that are written in C, to be linked; empty where none is."""
    texts = functions(symbols)
    if not texts:
        return ""
    declared = [f"{text.partition(' {')[0]};\n" for text in texts]
    return "\n".join(
        ["#include <stdint.h>\n#include <string.h>\n", _FIRST_LEVEL, f"#define {MICRO} {SHARED}\n", *declared, *texts]
    )


def _function(symbol: str) -> str | None:
    for kind in (PortableKernel, PortableDepthwise, PortablePlane):
        found = kind.of(symbol)
        if found is not None:
            return found.c()
    return in_c(symbol) or _FIXED.get(symbol)
