"""The harness, `deploy/firmware/c`, from outside: how it is compiled for a model, and what it answers. Pure.

It writes lines of a word and hexadecimal numbers:

    known 186a3
    stack 1c8
    instructions 1c7f3a0
    done 1

or, when something went wrong, a last line that begins with `error`, `status` or `fault`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from deploy.errors import DeviceError, InputError
from deploy.target_memory import Memory

GUARD_BYTES = 8  # as in buffers.h
KNOWN_INSTRUCTIONS = 100_003  # of a loop whose length is known, as in stopwatch.h
# Architecture's first letters → the files that are its own.
OWN_SOURCES: Mapping[str, tuple[str, ...]] = {
    "thumb": ("start_cortex_m.c", "stopwatch_cortex_m.c"),
    "riscv32": ("start_riscv.S", "stopwatch_riscv.c"),
}
_MOST_PHASES = 255  # of a tick, which the stopwatch visits


@dataclass(frozen=True)
class Answer:
    """What the harness found: instructions of each sample, instructions of each call of a kernel, bytes of stack."""

    instructions: tuple[int, ...]
    layers: tuple[int, ...]
    stack_bytes: int | None


def sources(architecture: str) -> tuple[str, ...]:
    """The files that do not depend on a model. Raises InputError for a processor that has none."""
    for start, names in OWN_SOURCES.items():
        if architecture.startswith(start):
            return (*names, "semihosting.c")
    raise InputError(f"firmware for {architecture} cannot be run from here; processors that can: Cortex-M and RV32")


def tick_flags(tick_s: float | None) -> list[str]:
    """Macros for a timer's tick, as a fraction of nanoseconds; none where the processor counts instructions itself."""
    if tick_s is None:
        return []
    tick = (Fraction(tick_s) * 10**9).limit_denominator(1000)
    if tick.numerator > _MOST_PHASES or tick.numerator % 7 == 0:
        raise InputError(
            f"a tick of {tick_s:g} s, {tick} ns, cannot be counted in instructions: the numerator of that fraction "
            f"must be at most {_MOST_PHASES} and no multiple of 7"
        )
    return [f"-DTICK_NUMERATOR={tick.numerator}", f"-DTICK_DENOMINATOR={tick.denominator}"]


def model_flags(prefix: str, header: str, memory: Memory, *, layers: bool) -> list[str]:
    """Macros that make the harness one model's, of whose model.h `header` is the text, and a target's.

    Raises InputError: `prefix` is not a C identifier, or the target lacks a memory that the model computes in.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", prefix, re.ASCII):
        raise InputError(f'"{prefix[:80]}" is not the C name of a model: use letters, digits and underscores')
    named = [f"-DMODEL_RUN={prefix}_run", f"-DMODEL_MACRO={prefix.upper()}"]
    if pools := _pools(prefix, header):
        there = {pool.name: pool.size for pool in memory.pools}
        for name, nbytes in pools.items():
            if there.get(name, 0) < nbytes:
                raise InputError(_other_memory(f"a pool {name} of {nbytes} bytes or more"))
        full = any(there[name] < nbytes + GUARD_BYTES for name, nbytes in pools.items())
        named += [f"-DMODEL_POOLS={prefix.upper()}_POOLS", *(["-DPOOL_GUARD=0"] if full else [])]
    return [*named, "-DMODEL_LAYERS"] if layers else named


def _pools(prefix: str, header: str) -> dict[str, int]:
    """The memories besides the arena that a model computes in, and the bytes there."""
    listed = re.search(rf"^#define {prefix.upper()}_POOLS\(X\) (.*)$", header, re.MULTILINE)
    names = re.findall(r"X\((\w+), ", listed[1]) if listed else []
    return {name: macro_value(header, prefix, f"ARENA_{name.upper()}_BYTES") for name in names}


def _other_memory(what: str) -> str:
    return f"the library was built for a target with {what}, and this one has none: build it again for this target"


def external_weights(prefix: str, header: str, memory: Memory) -> str | None:
    """The section of a model's weights if they are meant for the external flash, by its model.h.

    Raises InputError where the target has no such flash.
    """
    if not re.search(rf"^#define {re.escape(prefix.upper())}_WEIGHTS_EXTERNAL 1u$", header, re.MULTILINE):
        return None
    if memory.external_flash is None:
        raise InputError(_other_memory("an external flash, which its weights are for"))
    return f".rodata.{prefix}_weights"


def macro_value(header: str, prefix: str, name: str) -> int:
    """The whole number that `<PREFIX>_<name>` is defined as in a model's header. Raises InputError where it is not."""
    found = re.search(rf"^#define {re.escape(prefix.upper())}_{name} (\d+)u?$", header, re.MULTILINE)
    if found is None:
        raise InputError(f"model.h does not define {prefix.upper()}_{name}: build the artifact again")
    return int(found[1])


def decode(text: str, ended: str) -> Answer:
    """The answer in the file that the harness wrote; `ended` says how the emulator did.

    Raises DeviceError where the model failed or the answer is not whole.
    """
    facts: dict[str, list[int]] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("error", "fault", "status"):
            raise DeviceError(_failure(word, rest))
        try:
            facts.setdefault(word, []).append(int(rest, 16))
        except ValueError:
            raise DeviceError(f"the harness wrote {line[:80]!r}, which is not a fact: please report this") from None
    if "done" not in facts:
        raise DeviceError(f"the emulator ended before the model was done, with {ended}; its stack may be too small")
    if facts.get("known") != [KNOWN_INSTRUCTIONS]:
        raise DeviceError(
            f"{KNOWN_INSTRUCTIONS} instructions were counted as {facts.get('known', ['none'])[0]}: "
            "the target's `tick` is not that of this emulated board, or the emulator does not count instructions"
        )
    return Answer(
        tuple(facts.get("instructions", ())), tuple(facts.get("layer", ())), facts.get("stack", [None])[0]
    )  # fmt: skip


def _failure(word: str, rest: str) -> str:
    if word == "status":
        return f"the model returned the status 0x{rest}, see enum tvm_deploy_status in tvm_deploy.h"
    if word == "error":
        wrong = ": its code is wrong; please report this" if "wrote past" in rest else ""
        return f"{rest}{wrong}"
    *numbers, names = rest.split(" ", 4)
    known = zip(names.split(", "), numbers, strict=False)
    return f"the model's code faulted: {', '.join(f'{name} 0x{number}' for name, number in known)}"
