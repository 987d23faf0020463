"""What schedules have to know of a target's processor."""

from __future__ import annotations

from typing import Literal

from deploy import host
from deploy.kernels.dot import dot_products_for
from deploy.kernels.machine import Machine
from deploy.target import Target

# Cortex-M cores with Helium, and those that have only the DSP extension.
HELIUM_CORES = frozenset({"cortex-m52", "cortex-m55", "cortex-m85"})
REGISTERS = {"thumbv6m": 8, "riscv32": 26, "riscv64": 26}  # general ones that hold operands, where there are not 13
DSP_CORES = frozenset({"cortex-m4", "cortex-m7", "cortex-m33", "cortex-m35p"})


def machine_for(target: Target) -> Machine:
    """The vector registers and threads of a target's processor; C has neither vectors nor threads."""
    if target.tvm["kind"] == "c":
        dsp = target.mcpu in HELIUM_CORES | DSP_CORES
        return Machine(32, REGISTERS.get(target.architecture, 13), micro="dsp" if dsp else "plain")
    wide_file = target.vector_bits >= 512 or target.architecture in ("aarch64", "riscv64")
    features = host.required_flags(target.mcpu, target.mattr)
    registers = 32 if wide_file else 16
    if target.vector_bits <= 32:  # no vectors: general registers that hold operands
        registers = REGISTERS.get(target.architecture, 13)
    elif target.architecture.startswith("thumb"):  # Helium
        registers = 8
    dots = dot_products_for(features)
    return Machine(target.vector_bits, registers, target.threads, dots=dots, micro=_micro(target))


def _micro(target: Target) -> Literal["dsp", "helium", "plain"] | None:
    """Which micro-kernels a microcontroller has; extensions that its YAML takes away do not count."""
    if target.artifact != "firmware":
        return None
    if target.mcpu in HELIUM_CORES and not {"-mve", "-mve.fp"} & set(target.mattr):
        return "helium"
    return "dsp" if target.mcpu in HELIUM_CORES | DSP_CORES and "-dsp" not in target.mattr else "plain"
