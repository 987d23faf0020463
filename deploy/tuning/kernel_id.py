"""By what a kernel is known in tuning logs: the same in every process and model, whatever its variables are called."""

from __future__ import annotations

import hashlib
import re

from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm_ffi import structural_equal, structural_hash

_WORDS = re.compile(r'"(?:\\.|[^"\\\n])*"|\bT\.[\w.]+|(?<![\w.])\d[\w.]*')  # texts, operations, numbers
_TYPE = re.compile(r'"(u?int|b?float|bool)\d*(x\d+)?"')
_COUNTER = re.compile(r"\d+(?=_|$)")
_LONGEST_NAME = 48


def kernel_id(mod: IRModule) -> str:
    """24 hex digits that no other kernel has, for a module as `workload` makes it.

    Of TVM's structural hash, which has but 64 bits and was not made to be safe, and of every operation, number and
    type in the kernel's text, without order and names: two kernels would have to agree in both.
    """
    found = _WORDS.findall(mod.script())
    words = sorted(word for word in found if word[0] != '"' or _TYPE.fullmatch(word))  # other texts are names
    return hashlib.sha256(f"{structural_hash(mod)} {' '.join(words)}".encode()).hexdigest()[:24]


class KernelIds:
    """Ids of kernels, each worked out once."""

    def __init__(self) -> None:
        self._known: dict[int, list[tuple[IRModule, str]]] = {}

    def of(self, mod: IRModule) -> str:
        """The id of a kernel."""
        known = self._known.setdefault(structural_hash(mod), [])
        for other, found in known:
            if structural_equal(other, mod):
                return found
        known.append((mod, kernel_id(mod)))
        return known[-1][1]


def readable_name(name: str) -> str:
    """A kernel's name without the numbers that a model gives it, and not too long: "conv2d12_add3" is "conv2d_add"."""
    plain = _COUNTER.sub("", name)
    return plain if len(plain) <= _LONGEST_NAME else plain[: _LONGEST_NAME - 1] + "…"


def arguments(mod: IRModule) -> str:
    """A kernel's tensors as text: "float32[1,640] float32[640]"."""
    found = (info.as_json() for info in ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True))
    return " ".join(f"{dtype}[{','.join(map(str, shape))}]" for _, dtype, shape in found)
