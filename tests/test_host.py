"""What this CPU is, in LLVM's words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import archspec.cpu
import pytest

from deploy import host

MODELS = archspec.cpu.TARGETS
KNOWN = [name for name, model in MODELS.items() if model.family.name in ("x86_64", "aarch64")]


def llvm_cpus(triple: str) -> set[str]:
    target = pytest.importorskip("tvm.target")
    return set(target.codegen.llvm_get_cpu_archlist(target.Target({"kind": "llvm", "mtriple": triple})))


@pytest.mark.tvm
def test_every_known_cpu_has_a_name_that_llvm_takes() -> None:
    cpus = {family: llvm_cpus(f"{family}-linux-gnu") for family in ("x86_64", "aarch64")}
    for name in KNOWN:
        mcpu, extensions = host.describe_cpu(MODELS[name], MODELS[name].features)
        assert mcpu in cpus[MODELS[name].family.name], name
        assert all(extension.startswith("+") for extension in extensions)


@pytest.mark.tvm
def test_detected_extensions_are_ones_llvm_knows_and_turn_on_what_they_say() -> None:
    target = pytest.importorskip("tvm.target")
    mcpu, extensions = host.detect_cpu()
    options = {"kind": "llvm", "mcpu": mcpu, "mattr": list(extensions)}
    features = set(target.codegen.llvm_get_cpu_features(target.Target(options)))
    assert {extension[1:] for extension in extensions} <= features


def test_this_cpu_can_run_code_for_itself() -> None:
    mcpu, extensions = host.detect_cpu()
    assert host.required_flags(mcpu, extensions) <= host.host_flags()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's /proc/cpuinfo")
def test_host_flags_are_the_kernels() -> None:
    words = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    assert host.host_flags()
    if platform.machine() == "x86_64":
        assert {"sse2", "fpu"} <= host.host_flags() & set(words)


def test_a_cpu_llvm_does_not_know_becomes_its_ancestor_with_what_it_adds() -> None:
    newer = MODELS["zen6"]
    assert host.describe_cpu(newer, newer.features) == ("znver5", ("+avx512fp16",))


def test_an_unknown_arm_cpu_is_generic_with_its_extensions() -> None:
    assert host.describe_cpu(MODELS["armv8.2a"], {"asimd", "asimddp", "asimdhp"}) == (
        "generic",
        ("+dotprod", "+fullfp16"),
    )


def test_required_flags_know_llvm_names() -> None:
    assert "avx512f" in host.required_flags("x86-64-v4", ())
    assert "avx2" in host.required_flags("haswell", ())
    assert "avx512_vnni" in host.required_flags("tigerlake", ())
    plain, changed = (
        host.required_flags("x86-64-v2", mattr) for mattr in ((), ("+avx512vnni", "-ssse3", "-prefer-256-bit"))
    )
    assert plain - changed == {"ssse3"}
    assert changed - plain == {"avx512_vnni"}
    assert host.required_flags("no-such-cpu", ("+no-such-extension",)) == set()
    assert "rdrand" not in host.required_flags("haswell", ())
    assert host.cpu_flags("no-such-cpu") is None
    assert host.cpu_architecture("cortex-a72") == "aarch64"


def test_core_count_is_what_this_process_may_use() -> None:
    assert host.core_count() == len(os.sched_getaffinity(0))
