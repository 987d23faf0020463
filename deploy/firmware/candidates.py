"""Many candidates for kernels' schedules in one image: its sources, what it is fed, and what it answers. Pure.

The program is `candidates.c` in an emulator and `serial_candidates.c` on a board. Candidates of the same kernel share
its constants and what its inputs are filled with, which are in flash; all of them share one area of RAM, in which each
has its inputs, outputs and workspaces, because only one runs at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.firmware.harness import KNOWN_INSTRUCTIONS

SOURCE, SHARED = "candidates.c", "candidate_calls.c"  # the program in an emulator, and what it shares with a board's
SERIAL_SOURCE = "serial_candidates.c"
NAME = "candidates"  # as which that calls itself
CONSTANTS = ".rodata.constants"
ALIGNMENT = 16
PAST, FAULTED = "wrote past the end of a buffer", "crashed: the processor faulted"
GUARD_BYTES = 16  # as in candidates.h
_USES = {"input": "BUFFER_READ", "output": "BUFFER_WRITTEN", "workspace": "BUFFER_WORKSPACE"}


@dataclass(frozen=True)
class Argument:
    """A pointer that a kernel is called with: its bytes, and what for.

    at: where in the blob a constant lies, or what an input is filled with.
    """

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


def places(arguments: Sequence[Argument]) -> tuple[list[int], int]:
    """Where in the area each argument lies that is no constant, and the bytes of all with their guards."""
    found, end = [], 0
    for argument in arguments:
        found.append(end)
        end += 0 if argument.use == "constant" else aligned(argument.nbytes) + aligned(GUARD_BYTES)
    return found, max(end, ALIGNMENT)


def _call(number: int, called: Called) -> list[str]:
    placed = list(zip(called.arguments, places(called.arguments)[0], strict=True))
    pointers = ", ".join("void *" for _ in placed) or "void"
    values = [
        f"(void *)(constants + {argument.at}u)" if argument.use == "constant" else f"area + {place}u"
        for argument, place in placed
    ]
    buffers = [
        f"{{{place}u, {argument.nbytes}u, {_USES[argument.use]}, "
        + (f"constants + {argument.at}u}}" if argument.use == "input" else "0}")
        for argument, place in placed
        if argument.use != "constant"
    ]
    return [
        f"int32_t {called.symbol}({pointers});",
        f"static int32_t call_{number}(void) {{ return {called.symbol}({', '.join(values)}); }}",
        f"static const struct buffer buffers_{number}[] = {{{', '.join(buffers)}}};",
    ]


def table(candidates: Sequence[Called], identity: int = 0) -> str:
    """The C file that tells the program of the candidates of an image, and that image from others."""
    lines, rows = ['#include "candidates.h"', "", "extern const unsigned char constants[];", ""], []
    for number, called in enumerate(candidates):
        lines += _call(number, called)
        used = sum(argument.use != "constant" for argument in called.arguments)
        rows.append(f"  {{call_{number}, buffers_{number}, {used}u}},")
    area = max((places(called.arguments)[1] for called in candidates), default=ALIGNMENT)
    return "\n".join(
        [
            *lines,
            "",
            "const struct candidate candidates[] = {",
            *rows,
            "};",
            f"const uint32_t candidate_count = {len(candidates)}u, area_bytes = {area}u;",
            f"const uint64_t candidates_id = 0x{identity:016x}u;",
            f"unsigned char area[{area}] __attribute__((aligned({ALIGNMENT})));",
            "",
        ]
    )


def constants(file: str) -> str:
    """The assembly file that puts the blob of all constants into flash, as the section CONSTANTS."""
    lines = (f'.section {CONSTANTS},"a"', f".balign {ALIGNMENT}", ".globl constants")
    return "\n".join([*lines, "constants:", f'.incbin "{file}"', ""])


def feed(numbers: Sequence[int]) -> bytes:
    """What the program in an emulator reads: the numbers of the candidates to call."""
    return b"".join(number.to_bytes(4, "little") for number in numbers)


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
        return Outcome(None, PAST)
    if word == "status":
        return Outcome(None, status_words(number))
    return Outcome(None, FAULTED)


def status_words(status: int) -> str:
    """What is said of a kernel that returned this; its 32 bits are taken as a number with a sign."""
    return f"the kernel returned {status - (status >> 31 << 32)}"
