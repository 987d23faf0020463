"""Plain kernels → one file of C99 that needs no header but the standard ones, for any compiler."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.prim.expr import LShift
from tvm_ffi import structural_map

from deploy.kernels.micro.c_source import functions
from deploy.kernels.micro.portable import MICRO
from deploy.kernels.plain import PlainKernel, external_symbols

_HEADERS = ("math.h", "stdbool.h", "stddef.h", "stdint.h", "string.h")
_BITS = {"float32": "int32", "float64": "int64"}
_FLOAT = "tvm_deploy_float"  # stands for a number while TVM writes the rest
_LEAST = "(-9223372036854775807LL - 1LL)"  # how TVM writes the smallest int64
_NUMBER = re.compile(_FLOAT + rf"\((\(int64_t\))?(-?\d+|{re.escape(_LEAST)})\)")
_DEFINITION = re.compile(r"^TVM_DLL (int32_t (\w+)\(([^\n]*)\)) \{\n(.*?)^\}\n", re.MULTILINE | re.DOTALL)


def c_file(kernels: Sequence[PlainKernel], inputs: Mapping[str, int], title: str) -> str:
    """The kernels, and the functions that they call, which nothing outside the file sees.

    inputs: how many of a kernel's first parameters it only reads, by its symbol. title: for the comment at the top.
    """
    module = IRModule({kernel.name: _exact(kernel.func) for kernel in kernels})
    written = tvm.get_global_func("target.build.c")(module, tvm.target.Target({"kind": "c"})).inspect_source()
    texts = {found[2]: _definition(found, inputs[found[2]]) for found in _DEFINITION.finditer(written)}
    return "\n".join(
        [
            f"/* {title}: the kernels. */",
            *(f"#include <{name}>" for name in _HEADERS),
            "",
            f"#define {MICRO} static",
            "",
            *functions(external_symbols(list(kernels))),
            *(f"{text.partition(' {')[0]};" for text in texts.values()),
            "",
            *texts.values(),
        ]
    )


def _definition(found: re.Match[str], inputs: int) -> str:
    """The text of a function, `const` before what it only reads, and nothing that only TVM's headers know."""
    parameters = [
        f"const {parameter}" if number < inputs else parameter
        for number, parameter in enumerate(found[3].split(", "))
    ]
    return f"int32_t {found[2]}({', '.join(parameters)}) {{\n{_NUMBER.sub(_literal, found[4])}}}\n"


def _exact(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """C leaves open what it means to shift a negative number to the left, and TVM writes floats with seven digits."""

    def product(shift: Any) -> Any:
        return shift.a * (tirx.const(1, str(shift.a.ty.dtype)) << shift.b)

    def bits(number: tirx.FloatImm) -> Any:
        dtype = str(number.ty.dtype)
        if dtype not in _BITS:
            return number
        value = np.array(number.value, dtype).view(_BITS[dtype])
        return tirx.call_pure_extern(dtype, _FLOAT, tirx.const(int(value), _BITS[dtype]))

    return func.with_body(structural_map(structural_map(func.body, (LShift, product)), (tirx.FloatImm, bits)))


def _literal(found: re.Match[str]) -> str:
    """The C99 literal of a float whose bits are in the text."""
    single = found[1] is None
    bits = np.array(-(1 << 63) if found[2] == _LEAST else int(found[2]), "int32" if single else "int64")
    value = float(bits.view("float32" if single else "float64"))
    if np.isnan(value):
        return "NAN"
    if np.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    return f"({value.hex()}{'f' if single else ''})"
