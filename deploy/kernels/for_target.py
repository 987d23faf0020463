"""What schedules have to know of a target's processor."""

from __future__ import annotations

from deploy import host
from deploy.kernels.dot import dot_products_for
from deploy.kernels.machine import Machine
from deploy.target import Target


def machine_for(target: Target) -> Machine:
    """The vector registers and threads of a target's processor."""
    wide_file = target.vector_bits >= 512 or target.architecture in ("aarch64", "riscv64")
    features = host.required_flags(target.mcpu, target.mattr)
    registers = 32 if wide_file else 16
    return Machine(target.vector_bits, registers, target.threads, dots=dot_products_for(features))
