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


def model_flags(prefix: str, *, layers: bool) -> list[str]:
    """Macros that make the harness one model's. Raises InputError: `prefix` is not a C identifier."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", prefix, re.ASCII):
        raise InputError(f'"{prefix[:80]}" is not the C name of a model: use letters, digits and underscores')
    named = [f"-DMODEL_RUN={prefix}_run", f"-DMODEL_MACRO={prefix.upper()}"]
    return [*named, "-DMODEL_LAYERS"] if layers else named


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
