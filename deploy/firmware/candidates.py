"""Many candidates for kernels' schedules in one image: its sources, what it is fed, and what it answers. Pure.

The harness is `deploy/firmware/c/candidates.c`. Candidates of the same kernel share its constants; all of them share
one area of RAM, in which each has its inputs, outputs and workspaces, because only one runs at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.firmware.harness import KNOWN_INSTRUCTIONS

ALIGNMENT = 16
GUARD_BYTES = 16  # as in candidates.h
_USES = {"input": "BUFFER_READ", "output": "BUFFER_WRITTEN", "workspace": "BUFFER_WORKSPACE"}


@dataclass(frozen=True)
class Argument:
    """A pointer that a kernel is called with: its bytes, and what for; a constant's `at` is its place in the blob."""

    use: Literal["constant", "input", "output", "workspace"]
    nbytes: int
    at: int = 0


@dataclass(frozen=True)
class Called:
    """A candidate in an image: the symbol of its function, and its arguments."""

    symbol: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: instructions, or the reason why there are none."""

    instructions: int | None
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """Outcomes by the candidates' numbers; the number of the one that did not come back; whether all are here."""

    outcomes: dict[int, Outcome]
    lost: int | None
    done: bool


def aligned(nbytes: int) -> int:
    """Bytes up to the next place that anything may begin at."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _placed(arguments: Sequence[Argument]) -> tuple[list[int], int]:
    """Where in the area each argument lies that is no constant, and the bytes of all with their guards."""
    places, end = [], 0
    for argument in arguments:
        places.append(end)
        end += 0 if argument.use == "constant" else aligned(argument.nbytes) + aligned(GUARD_BYTES)
    return places, end


def _call(number: int, called: Called, places: Sequence[int]) -> list[str]:
    pointers = ", ".join("void *" for _ in called.arguments) or "void"
    values = [
        f"(void *)(constants + {argument.at}u)" if argument.use == "constant" else f"area + {place}u"
        for argument, place in zip(called.arguments, places, strict=True)
    ]
    buffers = [
        f"{{{place}u, {argument.nbytes}u, {_USES[argument.use]}}}"
        for argument, place in zip(called.arguments, places, strict=True)
        if argument.use != "constant"
    ]
    return [
        f"int32_t {called.symbol}({pointers});",
        f"static int32_t call_{number}(void) {{ return {called.symbol}({', '.join(values)}); }}",
        f"static const struct buffer buffers_{number}[] = {{{', '.join(buffers)}}};",
    ]


def table(candidates: Sequence[Called]) -> str:
    """The C file that tells the harness of the candidates of an image."""
    lines, rows, area = ['#include "candidates.h"', "", "extern const unsigned char constants[];", ""], [], ALIGNMENT
    for number, called in enumerate(candidates):
        places, end = _placed(called.arguments)
        area = max(area, end)
        lines += _call(number, called, places)
        used = sum(argument.use != "constant" for argument in called.arguments)
        rows.append(f"  {{call_{number}, buffers_{number}, {used}u}},")
    return "\n".join(
        [
            *lines,
            "",
            "const struct candidate candidates[] = {",
            *rows,
            "};",
            f"const uint32_t candidate_count = {len(candidates)}u, area_bytes = {area}u;",
            f"unsigned char area[{area}] __attribute__((aligned({ALIGNMENT})));",
            "",
        ]
    )


def constants(file: str) -> str:
    """The assembly file that puts the blob of all constants into flash."""
    lines = ('.section .rodata.constants,"a"', f".balign {ALIGNMENT}", ".globl constants")
    return "\n".join([*lines, "constants:", f'.incbin "{file}"', ""])


def feed(numbers: Sequence[int], inputs: Sequence[bytes]) -> bytes:
    """What the harness reads: the numbers of the candidates to call, each with what its inputs hold."""
    return b"".join(n.to_bytes(4, "little") + data for n, data in zip(numbers, inputs, strict=True))


def decode(text: str) -> Answer:
    """The harness's answer, which may end anywhere. Raises ValueError where instructions are not counted rightly."""
    outcomes: dict[int, Outcome] = {}
    current, done, known = None, False, None
    for line in text.split("\n")[:-1]:  # what has no end may be half a number
        word, _, digits = line.partition(" ")
        number = int(digits, 16)
        if word == "known":
            known = number
        elif word == "candidate":
            current = number
        elif word == "done":
            done = True
        elif current is not None:
            outcomes[current] = _outcome(word, number)
            current = None
    if known not in (None, KNOWN_INSTRUCTIONS):
        raise ValueError(f"{KNOWN_INSTRUCTIONS} instructions were counted as {known}")
    return Answer(outcomes, current, done)


def _outcome(word: str, number: int) -> Outcome:
    if word == "took":
        return Outcome(number)
    if word == "past":
        return Outcome(None, "wrote past the end of a buffer")
    if word == "status":
        return Outcome(None, f"the kernel returned {number - (number >> 31 << 32)}")
    return Outcome(None, "crashed: the processor faulted")
