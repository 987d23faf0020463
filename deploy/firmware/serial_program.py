"""The measuring program for a serial line, `serial_harness.c`, from outside: what it is made of for a model. Pure."""

from __future__ import annotations

import hashlib
import re

from deploy.firmware import harness
from deploy.target_memory import Memory

SHARED = ("serial_session.c", "frames.c", "board.c")  # of all programs and processors
SOURCES = ("serial_harness.c", *SHARED)
HEADERS = (
    *("serial_harness.h", "serial_session.h", "frames.h", "board.h", "buffers.h", "hook.h", "memory.h", "stopwatch.h"),
    "stopwatch_known.h",
)
_HOOK = re.compile(r"^\s*TVM_DEPLOY_AFTER\(\d+u?\);", re.MULTILINE)


def build_id(library: bytes) -> int:
    """64 bits that tell one build of a library from another."""
    return int.from_bytes(hashlib.sha256(library).digest()[:8], "little")


def calls_in(sequence: str) -> int:
    """How many calls of a kernel `src/model.c` has."""
    return len(_HOOK.findall(sequence))


def definitions(prefix: str, header: str, memory: Memory, identity: int, calls: int) -> list[str]:
    """Macros, `NAME=value`, that make the program one model's, of whose model.h `header` is the text, and a target's.

    Raises InputError: `prefix` is not a C identifier.
    """
    named = [flag.removeprefix("-D") for flag in harness.model_flags(prefix, header, memory, layers=False)]
    named += [f'MODEL_NAME="{prefix}"', f"BUILD_ID=0x{identity:016x}ull"]
    return [*named, f"MODEL_LAYERS_RUN={_by_layers(prefix)}", f"MODEL_CALLS={calls}"] if calls else named


def layers_source(prefix: str, sequence: str) -> str:
    """A C file with a second call sequence, which tells the program of each call; `sequence` is the path of model.c."""
    return f"""\
/* The model's calls again, each of them followed by a call of harness_after. */
#include "hook.h"

#define {prefix}_run {_by_layers(prefix)}
#include "{sequence}"
"""


def _by_layers(prefix: str) -> str:
    return f"{prefix}_run_by_layers"
