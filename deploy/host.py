"""What this machine's CPU is and can do, in LLVM's words; archspec does the detecting."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archspec.cpu import Microarchitecture

# The LLVM inside apache-tvm 0.27's wheel; a CPU it does not know yet is described as the newest ancestor it does.
LLVM_MAJOR = "22.0"

# LLVM's names of instruction set extensions and Linux's, where these differ.
_LINUX_FLAG = {
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "pclmul": "pclmulqdq",
    "rdrnd": "rdrand",
    "sahf": "lahf_lm",
    "sha": "sha_ni",
    "avxvnni": "avx_vnni",
    "avxifma": "avx_ifma",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "neon": "asimd",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "crc": "crc32",
    "lse": "atomics",
    "sve": "sve",
    "sve2": "sve2",
    "i8mm": "i8mm",
    "bf16": "bf16",
}
# Extensions worth telling LLVM about when this CPU has them although its model, as archspec sees it, does not: a
# virtual machine often hides one unrelated feature and so looks like an older model. AMX is not among them: a process
# must ask the kernel before it may use that.
_WORTH_NAMING = {
    "x86_64": ("avx2", "fma", "f16c", "avxvnni", "avx512vnni", "avx512bf16", "avx512fp16"),
    "aarch64": ("dotprod", "fullfp16", "i8mm", "bf16"),
}
# Of the extensions a CPU model has, those that a compiler uses for numeric code unasked. The others (`rdrand`, `clwb`)
# must not keep code from running in a virtual machine that hides them.
_GENERATED = re.compile(
    "sse.*|ssse3|avx.*|fma4?|f16c|xop|bmi[12]|abm|popcnt|movbe|gfni|asimd.*|fp|fphp|fcma|sve.*|i8mm|bf16|atomics|crc32"
)
# What LLVM calls a CPU where archspec's name with hyphens is not it.
_LLVM_NAME = {"apple-m1": "apple-a14"}
# Models that LLVM knows and archspec does not, with the nearest one that archspec knows: none of them lacks any of
# its vector extensions.
_RELATED = {
    "icelake_server": "icelake",
    "tigerlake": "icelake",
    "rocketlake": "icelake",
    "emeraldrapids": "sapphirerapids",
    "graniterapids": "sapphirerapids",
    "raptorlake": "alderlake",
    "meteorlake": "alderlake",
    "lunarlake": "arrowlake_s",
    "skx": "skylake_avx512",
    "core_avx2": "haswell",
    "corei7": "nehalem",
    "corei7_avx": "sandybridge",
    "k8": "x86_64",
    **dict.fromkeys(("cortex_a76", "cortex_a76ae", "cortex_a77", "cortex_a78", "cortex_a78ae"), "neoverse_n1"),
}


def architecture() -> str:
    """Return this machine's instruction set as LLVM names it: x86_64, aarch64, ..."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def core_count() -> int:
    """Return the number of cores this process may run on, which in a container is less than the machine has."""
    return len(os.sched_getaffinity(0))


def detect_cpu() -> tuple[str, tuple[str, ...]]:
    """Return LLVM's name of this CPU and the extensions to add (such as "+avxvnni").

    A CPU that is not in archspec's list becomes its x86-64 level, or "generic" with the extensions it has.
    """
    return describe_cpu(_host(), host_flags())


def describe_cpu(model: Microarchitecture, flags: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Return LLVM's CPU name and extensions for an archspec model whose kernel reports `flags`."""
    name, features = "generic", frozenset[str]()
    for candidate in (model, *model.ancestors):
        llvm_name = _llvm_name(candidate)
        if llvm_name is not None:
            name, features = llvm_name, frozenset(candidate.features)
            break
    if name == "generic":
        features = frozenset()
    present = set(flags)
    extra = [
        f"+{extension}"
        for extension in _WORTH_NAMING.get(str(model.family.name), ())
        if (flag := _LINUX_FLAG.get(extension, extension)) in present and flag not in features
    ]
    return name, tuple(extra)


@cache
def host_flags() -> frozenset[str]:
    """Return the extensions this CPU has, as Linux names them (/proc/cpuinfo); empty where they cannot be read."""
    from archspec.cpu.detect import detected_info

    return frozenset(detected_info().features)


@cache
def cpu_flags(mcpu: str) -> frozenset[str] | None:
    """Return the extensions of the CPU that LLVM calls `mcpu`, as Linux names them; None when it is not known."""
    model = _model(mcpu)
    return None if model is None else frozenset(model.features)


@cache
def cpu_architecture(mcpu: str) -> str | None:
    """Return the instruction set of the CPU that LLVM calls `mcpu`; None when it is not known."""
    model = _model(mcpu)
    return None if model is None else str(model.family.name)


def required_flags(mcpu: str | None, mattr: Iterable[str]) -> frozenset[str]:
    """Return what code for an LLVM CPU and extensions needs, as Linux names it; unknown CPUs contribute nothing.

    Of the CPU's own extensions only those count that a compiler uses unasked. Tuning hints in `mattr` (such as
    "-prefer-256-bit") and names no flag is known for are left out.
    """
    known = cpu_flags(mcpu) if mcpu else None
    flags = {flag for flag in known or () if _GENERATED.fullmatch(flag)}
    for attribute in mattr:
        flag = _LINUX_FLAG.get(attribute[1:], attribute[1:])
        if attribute.startswith("-"):
            flags.discard(flag)
        elif attribute[1:] in _LINUX_FLAG or flag in _all_flags():
            flags.add(flag)
    return frozenset(flags)


def _host() -> Microarchitecture:
    import archspec.cpu

    return archspec.cpu.host()


def _models() -> Mapping[str, Microarchitecture]:
    import archspec.cpu

    models: Mapping[str, Microarchitecture] = archspec.cpu.TARGETS
    return models


def _model(mcpu: str) -> Microarchitecture | None:
    models = _models()
    plain = mcpu.replace("-", "_")
    for name in (plain, _RELATED.get(plain)):
        if name is not None and name in models:
            return models[name]
    return next((model for model in models.values() if _llvm_name(model) == mcpu), None)


@cache
def _all_flags() -> frozenset[str]:
    return frozenset(flag for model in _models().values() for flag in model.features)


def _llvm_name(model: Microarchitecture) -> str | None:
    """LLVM's name of `model`, from the options archspec would give to clang; None if LLVM does not know it."""
    from archspec.cpu import UnsupportedMicroarchitecture

    try:
        options = str(model.optimization_flags("clang", LLVM_MAJOR)).split()
    except UnsupportedMicroarchitecture:
        return None
    for option in options:
        if option.startswith("-mcpu=") or (option.startswith("-march=") and model.family.name == "x86_64"):
            name = option.partition("=")[2]
            return _LLVM_NAME.get(name, name)
    # On ARM the option may name only the architecture's version; LLVM knows the vendors' cores by name nevertheless.
    return None if model.vendor == "generic" or not options else str(model.name).replace("_", "-")
