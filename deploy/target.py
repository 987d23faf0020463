"""A target: everything about a kind of device that compiling, tuning, running and judging a model need, from YAML.

```yaml
name: cortex-m7-mps2          # the file's name without .yaml
description: Cortex-M7 at 216 MHz, MPS2 AN500 board (emulated by QEMU)
extends: cortex-m7            # optional: another target, one level; null here removes one of its keys
tvm: {kind: llvm, mtriple: thumbv7em-none-eabihf, mcpu: cortex-m7, mfloat-abi: hard}   # mcpu: detect is this CPU
vector_bits: 32               # optional: the widest vector register; derived from mcpu and mattr otherwise
clock: 216 MHz
memory: {flash: 4 MiB, ram: 512 KiB}             # for an image with flash_at, ram_at; more in deploy/target_memory.py
toolchain: {cc: arm-none-eabi-gcc, cflags: [-mcpu=cortex-m7, -mthumb], ldflags: []}
artifact: firmware            # or shared-library
device: {kind: qemu, machine: mps2-an500, tick: 40 ns}   # local, qemu, rpc, serial, ssh, replay
power: {kind: estimate, active: 120 mW}         # see deploy/power/meters.py
battery: {capacity: 220 mAh, voltage: 3 V, duty: 1 /min}                 # optional, see deploy/battery.py
threads: 1                                      # or detect: the cores this process may use
rounding: single              # or double: whose quantized results are right, LiteRT's or TFLite Micro's (CMSIS-NN's)
budgets: {latency: {p90: 50 ms}, ram: 128 KiB}  # see deploy/budget.py
tuning: {trials: 2000}        # see deploy/stopping.py
verify: {tolerance: {float32: 0.00001, int8: 0}}   # relative for floats, steps for integers
```
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Literal, cast

from deploy import budget as budgets
from deploy import host, units, yaml_source
from deploy import target_parts as parts
from deploy.battery import Battery, parse_battery, plain_battery
from deploy.budget import Budget
from deploy.errors import InputError
from deploy.fields import Options
from deploy.stopping import Stopping, parse_stopping, plain_stopping
from deploy.target_memory import Memory, check_artifact, parse_memory, plain_memory
from deploy.target_parts import DeviceSpec, PowerSpec, Toolchain
from deploy.yaml_source import Node, Plain

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
KEYS = (
    "name",
    "description",
    "extends",
    "tvm",
    "vector_bits",
    "clock",
    "memory",
    "toolchain",
    "artifact",
    "device",
    "power",
    "battery",
    "threads",
    "rounding",
    "budgets",
    "tuning",
    "verify",
)
ROUNDINGS = ("single", "double")
MAX_THREADS = 1024
_VECTOR_BITS = tuple(2**power for power in range(5, 12))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Target:
    """One kind of device; see the module's text for the YAML. `clock` is in Hz, tolerances are by dtype.

    `rounding` is of quantized TFLite models (see deploy.integer); other formats have one of their own.
    """

    name: str
    description: str
    tvm_options: Options
    explicit_vector_bits: int | None = None
    clock: float | None = None
    memory: Memory = field(default_factory=Memory)
    toolchain: Toolchain = field(default_factory=Toolchain)
    artifact: str = "shared-library"
    device: DeviceSpec = field(default_factory=lambda: DeviceSpec("local"))
    power: PowerSpec = field(default_factory=lambda: PowerSpec("none"))
    threads: int = 1
    budget: Budget = field(default_factory=Budget)
    tuning: Stopping = field(default_factory=Stopping)
    tolerances: tuple[tuple[str, float], ...] = ()
    rounding: Literal["single", "double"] = "single"
    battery: Battery | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(_name_problem(self.name))
        options = parts.checked_tvm(self.tvm_options)
        if self.explicit_vector_bits is not None and self.explicit_vector_bits not in _VECTOR_BITS:
            raise InputError(f"vector_bits {self.explicit_vector_bits} is not one of {_VECTOR_BITS}")
        parts.check_device(self.artifact, self.device)
        check_artifact(self.artifact, self.memory)
        if self.rounding not in ROUNDINGS:
            raise InputError(f'rounding "{self.rounding}" is not one of {", ".join(ROUNDINGS)}')
        if unknown := [dtype for dtype, _ in self.tolerances if dtype not in DTYPES]:
            raise InputError(f'tolerance of "{unknown[0]}": allowed are {", ".join(DTYPES)}')
        if self.clock is not None and self.clock <= 0:
            raise InputError("clock must be more than zero Hz")
        if not 1 <= self.threads <= MAX_THREADS:
            raise InputError(f"threads must be 1 to {MAX_THREADS}")
        if self.artifact == "firmware" and self.threads > 1:
            raise InputError(f"firmware runs on one thread; target {self.name} was given {self.threads}")
        object.__setattr__(self, "tvm_options", options)
        object.__setattr__(self, "tolerances", tuple(sorted(self.tolerances)))

    @property
    def tvm(self) -> dict[str, object]:
        """Return the dict for `tvm.target.Target`; `num-cores` is the number of threads unless the YAML has it.

        The search splits parallel loops over that many cores, so it must be what the library will really use.
        """
        options: dict[str, object] = {
            key: list(value) if isinstance(value, tuple) else value for key, value in self.tvm_options
        }
        if options["kind"] == "llvm":
            options.setdefault("num-cores", self.threads)
            if self.artifact == "firmware":
                options.setdefault("opt-level", 2)  # as fast as 3, in a quarter less code
        else:
            options.pop("mtriple", None)  # only says which processor runs the C code
        return options

    @property
    def mcpu(self) -> str | None:
        """Return LLVM's name of the CPU, if the target has one."""
        return cast("str | None", dict(self.tvm_options).get("mcpu"))

    @property
    def mattr(self) -> tuple[str, ...]:
        """Return the extensions added to (+) or taken from (-) the CPU."""
        return cast("tuple[str, ...]", dict(self.tvm_options).get("mattr", ()))

    @property
    def architecture(self) -> str:
        """Return the instruction set the code is for, such as x86_64, aarch64 or thumbv7em."""
        mtriple = dict(self.tvm_options).get("mtriple")
        if mtriple is None:
            return (host.cpu_architecture(self.mcpu) if self.mcpu else None) or host.architecture()
        machine = str(mtriple).partition("-")[0]
        return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)

    @property
    def vector_bits(self) -> int:
        """Return the width of the widest vector register: given, or 512 for AVX-512, 256 for AVX2, else 128."""
        if self.explicit_vector_bits is not None:
            return self.explicit_vector_bits
        flags = host.required_flags(self.mcpu, self.mattr)
        return 512 if "avx512f" in flags else 256 if "avx2" in flags else 128

    @property
    def alignment(self) -> int:
        """Return what the arena and each tensor in it begin on a multiple of, in bytes.

        A cache line, which is also the widest vector; in firmware, where memory is scarce, a vector or a double.
        """
        return max(8, self.vector_bits // 8) if self.artifact == "firmware" else 64

    def tolerance(self, dtype: str, default: float) -> float:
        """Return the largest accepted difference for outputs of `dtype`, or `default` when the YAML has none."""
        return dict(self.tolerances).get(dtype, default)

    def fingerprint(self) -> str:
        """Return 12 hex digits of a hash over what decides the generated code: equal ones can share tuning records.

        Rounding is not in it: records are found by the kernel itself, and most kernels are the same under both.
        """
        facts: dict[str, object] = {"tvm": self.tvm, "vector_bits": self.explicit_vector_bits, "threads": self.threads}
        if dict(self.tvm_options)["kind"] == "c":
            facts["compiler"] = [self.toolchain.cc, *self.toolchain.cflags]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def missing_features(target: Target) -> tuple[str, ...]:
    """Return what this machine lacks to run the target's code: extensions as Linux names them, or the architecture.

    Empty means that code for the target can run here. Only for artifacts that are to run on this very machine.
    """
    if target.architecture != host.architecture():
        return (target.architecture,)
    available = host.host_flags()
    return tuple(sorted(host.required_flags(target.mcpu, target.mattr) - available)) if available else ()


def from_text(text: str | bytes, source: str) -> Target:
    """Return the target a YAML text without `extends` describes; InputError (`source:line: ...`) when it is wrong."""
    return from_node(yaml_source.parse(text, source))


def from_node(node: Node) -> Target:
    """Return the target of a parsed YAML file whose `extends` is resolved; InputError (`file:line: ...`) if wrong."""
    entries = node.mapping("a target", KEYS)
    if "extends" in entries:
        raise entries["extends"].error("extends needs a file, from which the other target is looked for")
    for key in ("name", "description", "tvm"):
        if key not in entries:
            raise node.error(f'the target has no "{key}", which it needs')
    artifact = entries["artifact"].choice("artifact", parts.ARTIFACTS) if "artifact" in entries else "shared-library"
    if artifact == "firmware" and "device" not in entries:
        raise node.error('a firmware target needs a "device", such as {kind: qemu, machine: mps2-an385}')
    values: dict[str, object] = {key: read(entries[key]) for key, read in _READERS.items() if key in entries}
    renamed = {_FIELD.get(key, key): value for key, value in values.items()}
    place = entries.get("device", node)
    return place.placing(lambda: Target(artifact=artifact, **renamed))  # type: ignore[arg-type]


def render(target: Target) -> str:
    """Return the target as YAML with every default written out; `from_text` reads the same target back."""
    return yaml_source.dump(plain(target))


def plain(target: Target) -> dict[str, Plain]:
    """Return the target as plain data, keys as in the YAML."""
    entries: dict[str, Plain] = {
        "name": target.name,
        "description": target.description,
        "tvm": parts.plain_tvm(target.tvm_options),
        "vector_bits": target.explicit_vector_bits,
        "clock": None if target.clock is None else units.render(target.clock, "frequency"),
        "memory": plain_memory(target.memory) or None,
        "toolchain": parts.plain_toolchain(target.toolchain),
        "artifact": target.artifact,
        "device": parts.plain_device(target.device),
        "power": parts.plain_power(target.power),
        "battery": None if target.battery is None else plain_battery(target.battery),
        "threads": target.threads,
        "rounding": target.rounding,
        "budgets": budgets.plain_budget(target.budget) or None,
        "tuning": plain_stopping(target.tuning),
        "verify": {"tolerance": dict(target.tolerances)} if target.tolerances else None,
    }
    return {key: value for key, value in entries.items() if value is not None}


def _name_problem(name: str) -> str:
    return f'the name "{name[:80]}" must be letters, digits, ".", "_" and "-" (at most 64)'


def _read_name(node: Node) -> str:
    name = node.text("name")
    if not _NAME.fullmatch(name):
        raise node.error(_name_problem(name))
    return name


def _read_clock(node: Node) -> float:
    clock = node.quantity("clock", "frequency")
    if clock <= 0:
        raise node.error(f"clock must be more than zero, not {node.shown()}")
    return clock


def _read_threads(node: Node) -> int:
    return host.core_count() if node.value == parts.DETECT else node.integer("threads", 1, MAX_THREADS)


def _read_tolerances(node: Node) -> tuple[tuple[str, float], ...]:
    entries = node.mapping("verify", ["tolerance"])
    if "tolerance" not in entries:
        return ()
    by_dtype = entries["tolerance"].mapping("tolerance of verify", DTYPES)
    return tuple((dtype, value.number(f"the tolerance of {dtype}", 0, 1e6)) for dtype, value in by_dtype.items())


def _read_vector_bits(node: Node) -> int:
    if node.value not in _VECTOR_BITS or isinstance(node.value, float):
        raise node.error(f"vector_bits must be one of {', '.join(map(str, _VECTOR_BITS))}, not {node.shown()}")
    return cast(int, node.value)


_READERS = {
    "name": _read_name,
    "description": lambda node: node.text("description"),
    "tvm": parts.parse_tvm,
    "vector_bits": _read_vector_bits,
    "clock": _read_clock,
    "memory": parse_memory,
    "toolchain": parts.parse_toolchain,
    "device": parts.parse_device,
    "power": parts.parse_power,
    "battery": parse_battery,
    "threads": _read_threads,
    "rounding": lambda node: node.choice("rounding", ROUNDINGS),
    "budgets": budgets.parse_budget,
    "tuning": parse_stopping,
    "verify": _read_tolerances,
}
_FIELD = {"tvm": "tvm_options", "vector_bits": "explicit_vector_bits", "budgets": "budget", "verify": "tolerances"}
