"""Targets: what the YAML means, what is refused and how, and that what is rendered is read back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import fields, host, target, target_parts, units
from deploy.budget import Budget, Limit
from deploy.errors import InputError
from deploy.stopping import UNTILS, Stopping
from deploy.target import Target, from_text, missing_features, render
from deploy.target_memory import Memory
from deploy.target_parts import DeviceSpec, PowerSpec, Toolchain

MINIMAL = "name: a\ndescription: b\ntvm: {kind: llvm}\n"
FULL = """\
name: cortex-m7-mps2
description: Cortex-M7 at 216 MHz, MPS2 AN500 board (emulated by QEMU)
tvm: {kind: llvm, mtriple: thumbv7em-none-eabihf, mcpu: cortex-m7, mfloat-abi: hard}
vector_bits: 32
clock: 216 MHz
memory: {flash: 4 MiB, ram: 512 KiB}
toolchain: {cc: arm-none-eabi-gcc, cflags: [-mcpu=cortex-m7, -mthumb], ldflags: [-nostdlib]}
artifact: firmware
device: {kind: qemu, machine: mps2-an500, timeout: 10 s}
power: {kind: estimate, active: 120 mW}
budgets:
  latency: {p90: 50 ms}
  ram: 128 KiB
  flash: 512 KiB
  energy: 6 mJ
  accuracy_drop: 1 %
tuning: {trials: 2000}
verify: {tolerance: {float32: 1e-5, int8: 0}}
"""


def test_everything_is_read() -> None:
    read = from_text(FULL, "f.yaml")
    assert read.tvm == {
        "kind": "llvm",
        "mtriple": "thumbv7em-none-eabihf",
        "mcpu": "cortex-m7",
        "mfloat-abi": "hard",
        "num-cores": 1,
        "opt-level": 2,
    }
    assert (read.clock, read.memory) == (216e6, Memory(flash=4 << 20, ram=512 << 10))
    assert read.toolchain == Toolchain("arm-none-eabi-gcc", ("-mcpu=cortex-m7", "-mthumb"), ("-nostdlib",))
    assert (read.artifact, read.device.kind, read.device.get("timeout")) == ("firmware", "qemu", 10.0)
    assert (read.power.active, read.power.idle) == (0.12, None)
    assert [limit.name for limit in read.budget.limits] == ["latency p90", "ram", "flash", "energy", "accuracy_drop"]
    assert (read.tuning.trials, read.threads, read.vector_bits, read.architecture) == (2000, 1, 32, "thumbv7em")
    assert read.tolerance("float32", 1.0) == 1e-5
    assert read.tolerance("int16", 1.0) == 1.0


def test_defaults_are_a_library_for_this_machine() -> None:
    read = from_text(MINIMAL, "f.yaml")
    assert (read.artifact, read.device, read.power, read.threads) == (
        "shared-library",
        DeviceSpec("local"),
        PowerSpec("none"),
        1,
    )
    assert read.architecture == host.architecture()
    assert (read.budget, read.rounding) == (Budget(), "single")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "memroy: {ram: 1 KiB}",
            'f.yaml:4: unknown key "memroy" in a target; allowed: artifact, battery, budgets, clock, description, '
            "device, extends, memory, name, power, rounding, threads, toolchain, tuning, tvm, vector_bits, verify; "
            'did you mean "memory"?',
        ),
        (
            "memory: {ram: 4}",
            'f.yaml:4: ram of memory: "4" has no unit; write for example "128 KiB" '
            "(units: B, KiB, MiB, GiB, kB, MB, GB)",
        ),
        (
            "memory:\n  ram: 4 KiB\n  flash: 4 kb",
            'f.yaml:6: flash of memory: unknown unit "kb" in "4 kb"; allowed: B, KiB, MiB, GiB, kB, MB, GB; '
            'did you mean "kB"?',
        ),
        ("memory: {ram: 0 B}", "f.yaml:4: memory: ram must be more than zero bytes"),
        (
            "memory: {ram: 1 KiB, ram_at: 536870912}",
            'f.yaml:4: ram_at of memory must be an address of 32 bits, such as 0x20000000, not 536870912',
        ),
        ("memory: 4 KiB", 'f.yaml:4: memory must be a mapping (key: value), not "4 KiB"'),
        ("clock: fast", 'f.yaml:4: clock: "fast" is not a quantity; write a number and a unit, such as "216 MHz"'),
        ("clock:", 'f.yaml:4: clock must be a quantity such as "216 MHz", not nothing'),
        ("clock: 0 Hz", 'f.yaml:4: clock must be more than zero, not "0 Hz"'),
        ("threads: 0", "f.yaml:4: threads must be a whole number from 1 to 1024, not 0"),
        ("rounding: triple", 'f.yaml:4: rounding must be one of single, double, not "triple"'),
        ("threads: true", "f.yaml:4: threads must be a whole number from 1 to 1024, not true"),
        (
            "device: {kind: serail}",
            'f.yaml:4: kind of device must be one of local, qemu, rpc, serial, ssh, replay, not "serail"; '
            'did you mean "serial"?',
        ),
        ("device: {port: 3}", 'f.yaml:4: device has no "kind"; write one of local, qemu, rpc, serial, ssh, replay'),
        (
            "device: {kind: ssh, prot: 3}",
            'f.yaml:4: unknown key "prot" in device of kind ssh; allowed: config, directory, emulated, host, identity, '
            'kind, port, run_with, timeout, user; did you mean "port"?',
        ),
        (
            "device: {kind: serial}",
            'f.yaml:4: a device of kind "serial" cannot run the artifact "shared-library"; '
            "allowed: local, qemu, rpc, ssh, replay",
        ),
        (
            "artifact: firmware",
            'f.yaml:1: a firmware target needs a "device", such as {kind: qemu, machine: mps2-an385}',
        ),
        ("artifact: lib", 'f.yaml:4: artifact must be one of shared-library, firmware, not "lib"'),
        (
            "power: {kind: estimate}",
            'f.yaml:4: power of kind estimate needs "active", such as {kind: estimate, active: 120 mW}',
        ),
        (
            "power: {kind: hwmon, duration: 0 s}",
            'f.yaml:4: power: "duration" must be more than zero: it is how long the device is watched',
        ),
        (
            "power: {kind: auto, active: 1 W, idle: 2 W}",
            'f.yaml:4: power: "idle" needs an "active" that is not less than it',
        ),
        ("toolchain: {cflags: -O2}", 'f.yaml:4: cflags of toolchain must be a list such as [a, b], not "-O2"'),
        (
            "toolchain:\n  cflags:\n    - -O2\n    - 1",
            "f.yaml:7: an entry of cflags of toolchain must be text on one line, not 1; put it in quotes",
        ),
        ("tuning: {trials: 1.5}", "f.yaml:4: trials of tuning must be a whole number from 0 to 10000000, not 1.5"),
        (
            "verify: {tolerance: {flaot32: 1}}",
            'f.yaml:4: unknown key "flaot32" in tolerance of verify; allowed: bfloat16, bool, float16, float32, '
            'float64, int16, int32, int64, int8, uint8; did you mean "float32"?',
        ),
        ("vector_bits: 100", "f.yaml:4: vector_bits must be one of 32, 64, 128, 256, 512, 1024, 2048, not 100"),
        ("extends: host", "f.yaml:4: extends needs a file, from which the other target is looked for"),
        ("name: twice", 'f.yaml:4: the key "name" is given twice (first on line 1); keep one'),
    ],
)
def test_what_is_wrong_is_named_with_its_place(lines: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_text(MINIMAL + lines + "\n", "f.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\n", 'f.yaml:1: the target has no "description", which it needs'),
        (
            MINIMAL.replace("a\n", "a/b\n"),
            'f.yaml:1: the name "a/b" must be letters, digits, ".", "_" and "-" (at most 64)',
        ),
        (MINIMAL.replace("llvm", "cuda"), 'f.yaml:3: kind of tvm must be one of llvm, c, not "cuda"'),
        (
            MINIMAL.replace("llvm", "c, mabi: x"),
            'f.yaml:3: unknown key "mabi" in tvm of kind c; allowed: constants-byte-alignment, device, keys, kind, '
            "libs, march, mcpu, model, mtriple, workspace-byte-alignment",
        ),
        (MINIMAL.replace("llvm", "llvm, mattr: [avx2]"), 'f.yaml:3: mattr of tvm: "avx2" must start with + or -'),
        (MINIMAL.replace("llvm", "c, mcpu: detect"), "f.yaml:3: mcpu: detect needs kind: llvm; name the CPU"),
    ],
)
def test_a_wrong_head_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_text(text, "f.yaml")
    assert str(caught.value) == message


def words(alphabet: str = "abcXYZ019 -+=./_:#'\"{}[],é") -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=1, max_size=12)


def option(kind: str) -> st.SearchStrategy[object]:
    if kind in units.KINDS:
        return st.integers(1, 2**40) if kind == "bytes" else st.floats(1e-6, 1e6)
    strategies: dict[str, st.SearchStrategy[object]] = {
        "text": words(),
        "texts": st.lists(words(), max_size=3).map(tuple),
        "count": st.integers(1, 2**40),
        "whole": st.integers(0, 9),
        "number": st.floats(0, 1e9),
        "flag": st.booleans(),
    }
    return strategies[kind]


@st.composite
def options(draw: st.DrawFn, table: fields.Table) -> tuple[tuple[str, object], ...]:
    keys = draw(st.lists(st.sampled_from(sorted(table)), unique=True)) if table else []
    return tuple((key, draw(option(table[key]))) for key in keys)


@st.composite
def tvm_options(draw: st.DrawFn) -> tuple[tuple[str, object], ...]:
    kind = draw(st.sampled_from(sorted(target_parts.TVM)))
    pairs = dict(draw(options(target_parts.TVM[kind])))
    if "mattr" in pairs:
        pairs["mattr"] = tuple(f"+{name}" for name in pairs["mattr"])
    return (("kind", kind), *pairs.items())


@st.composite
def powers(draw: st.DrawFn) -> PowerSpec:
    kind = draw(st.sampled_from(sorted(target_parts.POWER)))
    pairs = dict(draw(options(target_parts.POWER[kind])))
    if kind == "estimate":
        pairs["active"] = 1.25
    if "idle" in pairs:
        pairs["active"] = pairs["idle"] * 2
    return PowerSpec(kind, tuple(pairs.items()))


@st.composite
def targets(draw: st.DrawFn) -> Target:
    artifact = draw(st.sampled_from(target_parts.ARTIFACTS))
    kind = draw(st.sampled_from(["qemu", "replay"] if artifact == "firmware" else ["local", "rpc", "ssh", "qemu"]))
    limits = [Limit("latency", "p99", draw(st.floats(1e-6, 10))), Limit("ram", None, draw(st.integers(1, 2**40)))]
    return Target(
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)),
        description=draw(words()),
        tvm_options=draw(tvm_options()),
        explicit_vector_bits=draw(st.sampled_from([None, 32, 256])),
        clock=draw(st.none() | st.floats(1, 1e10)),
        memory=Memory(
            *draw(st.tuples(*[st.none() | st.integers(1, 2**40)] * 2)),
            *draw(st.tuples(*[st.none() | st.integers(0, 2**32 - 1)] * 2)),
        ),
        toolchain=Toolchain(draw(words()), *draw(st.tuples(*[st.lists(words(), max_size=3).map(tuple)] * 2))),
        artifact=artifact,
        device=DeviceSpec(kind, draw(options(target_parts.DEVICES[kind]))),
        power=draw(powers()),
        threads=1 if artifact == "firmware" else draw(st.integers(1, 64)),
        rounding=draw(st.sampled_from(target.ROUNDINGS)),
        budget=Budget(tuple(draw(st.sets(st.sampled_from(limits))))),
        tuning=Stopping(draw(st.integers(0, 10_000)), until=draw(st.sampled_from(UNTILS))),
        tolerances=tuple(draw(st.dictionaries(st.sampled_from(target.DTYPES), st.floats(0, 1e6), max_size=3)).items()),
    )


@given(one=targets())
def test_what_is_rendered_is_read_back(one: Target) -> None:
    assert from_text(render(one), "rendered.yaml") == one


def test_target_validates_itself() -> None:
    good = from_text(FULL, "f.yaml")
    wrong: tuple[dict[str, object], ...] = (
        {"name": "../up"},
        {"tvm_options": (("kind", "cuda"),)},
        {"tvm_options": (("kind", "llvm"), ("nonsense", 1))},
        {"artifact": "zip"},
        {"device": DeviceSpec("local")},
        {"threads": 0},
        {"threads": 2, "artifact": "firmware"},
        {"rounding": "up"},
        {"clock": 0.0},
        {"explicit_vector_bits": 7},
        {"tolerances": (("float31", 1.0),)},
    )
    for change in wrong:
        with pytest.raises(InputError):
            dataclasses.replace(good, **change)
    with pytest.raises(InputError, match='unknown option "host" of device of kind local'):
        DeviceSpec("local", (("host", "x"),))


def made(tvm: str, extra: str = "") -> Target:
    return from_text(f"name: a\ndescription: b\ntvm: {tvm}\n{extra}", "f.yaml")


def test_fingerprint_follows_what_decides_the_code() -> None:
    base = made("{kind: llvm, mcpu: x86-64-v3}")
    same = "clock: 1 GHz\nrounding: double\nbudgets: {ram: 1 KiB}"
    assert base.fingerprint() == made("{mcpu: x86-64-v3, kind: llvm}", same).fingerprint()
    others = [
        made("{kind: llvm, mcpu: x86-64-v4}"),
        made("{kind: llvm, mcpu: x86-64-v3, mattr: [+avx512f]}"),
        made("{kind: llvm, mcpu: x86-64-v3}", "threads: 2"),
        made("{kind: llvm, mcpu: x86-64-v3}", "vector_bits: 128"),
        made("{kind: c}"),
        made("{kind: c}", "toolchain: {cc: clang}"),
    ]
    assert len({one.fingerprint() for one in [base, *others]}) == 7
    assert len(base.fingerprint()) == 12


@pytest.mark.parametrize(
    ("tvm", "bits"),
    [
        ("{kind: llvm, mcpu: x86-64-v2}", 128),
        ("{kind: llvm, mcpu: x86-64-v3}", 256),
        ("{kind: llvm, mcpu: znver3}", 256),
        ("{kind: llvm, mcpu: znver4}", 512),
        ("{kind: llvm, mcpu: tigerlake}", 512),
        ("{kind: llvm, mcpu: x86-64-v3, mattr: [+avx512f]}", 512),
        ("{kind: llvm, mcpu: x86-64-v4, mattr: [-avx512f]}", 256),
        ("{kind: llvm, mcpu: cortex-a72}", 128),
        ("{kind: c}", 128),
    ],
)
def test_vector_bits_come_from_cpu_and_extensions(tvm: str, bits: int) -> None:
    assert made(tvm).vector_bits == bits


def test_detect_is_this_cpu_and_its_cores() -> None:
    here = made("{kind: llvm, mcpu: detect, mattr: [-prefer-256-bit]}", "threads: detect")
    mcpu, extensions = host.detect_cpu()
    assert (here.mcpu, here.mattr) == (mcpu, (*extensions, "-prefer-256-bit"))
    assert here.threads == here.tvm["num-cores"] == host.core_count()
    assert missing_features(here) == ()


def test_missing_features_name_what_this_cpu_lacks() -> None:
    lacking = made("{kind: llvm, mcpu: x86-64-v4, mtriple: x86_64-linux-gnu}")
    other = made("{kind: llvm, mtriple: riscv64-linux-gnu}")
    assert missing_features(other) == ("riscv64",)
    if host.architecture() != "x86_64":
        assert missing_features(lacking) == ("x86_64",)
        return
    expected = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} - host.host_flags()
    assert expected <= set(missing_features(lacking))
    # No CPU has both AMD's FMA4 (dropped in 2017) and AVX-512 FP16.
    assert missing_features(made("{kind: llvm, mattr: [+fma4, +avx512fp16]}"))


def test_importing_is_quick_and_needs_neither_tvm_nor_torch_nor_archspec() -> None:
    code = (
        "import time; started = time.perf_counter(); import deploy.target, deploy.targets, deploy.boards, sys;"
        "print(time.perf_counter() - started, *[m for m in ('tvm', 'torch', 'numpy', 'archspec') if m in sys.modules])"
    )
    # The best of three: another process may have the core.
    outputs = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(3)
    ]
    assert all(len(output) == 1 for output in outputs), outputs
    assert min(float(output[0]) for output in outputs) < 0.15
