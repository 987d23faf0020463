"""The measuring program, `deploy/aot/c/bench.c`, from outside: its command line, its files and its answer. Pure.

It runs on every Linux device, so that no interpreter is in what is measured. Its answer is one JSON object:

    {"status": 0, "model": "net", "inferences": 5120, "batch": 4, "clock_ns": 24.1, "threads": 1, "arena_bytes": 1024,
     "weight_bytes": 4096, "peak_rss_bytes": 1998848, "rss_before_load_bytes": 1503232, "input_bytes": [24],
     "output_bytes": [24, 4], "samples_ns": [5031.25, ...]}

with "loop": {"inferences": 9000, "start_ns": 1, "stop_ns": 2} for a power meter's run, or on failure
{"status": 2, "error": "..."}.
"""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.device.protocol import RunPlan
from deploy.errors import DeviceError, InputError
from deploy.model_spec import TensorSpec
from deploy.shell import exit_words

_OUTSIDE = 105  # the program's status for "wrote past the end"
_SIGNAL_WORDS = {
    signal.SIGILL: "the library uses an instruction that this CPU does not have (SIGILL): compile it for a target "
    "whose mcpu and mattr this CPU supports",
    signal.SIGSEGV: "the library crashed: it used memory that is not its own (SIGSEGV)",
    signal.SIGBUS: "the library crashed (SIGBUS): the file may be truncated; compile it again",
    signal.SIGFPE: "the library crashed on an impossible division (SIGFPE)",
    signal.SIGABRT: "the library or the C library aborted (SIGABRT): memory may have been overwritten",
    signal.SIGKILL: "the model was killed (SIGKILL): the device may have run out of memory",
}


@dataclass(frozen=True)
class Loop:
    """The run for a power meter: inferences in a row, and its monotonic start and end in seconds."""

    inferences: int
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Answer:
    """The program's answer; times in seconds, sizes in bytes, None where the device does not tell."""

    model: str
    inferences: int
    batch: int
    clock_s: float
    threads: int
    arena_bytes: int
    weight_bytes: int
    peak_rss_bytes: int | None
    baseline_rss_bytes: int | None
    input_bytes: tuple[int, ...]
    output_bytes: tuple[int, ...]
    samples_s: tuple[float, ...]
    loop: Loop | None


def compile_command(cc: str, source: str, program: str, flags: Sequence[str] = ()) -> list[str]:
    """Return the command that builds the program for a Linux with dlopen."""
    return [cc, "-O2", *flags, source, "-o", program, "-ldl"]


def command(program: str, library: str, prefix: str, cpus: Sequence[int]) -> list[str]:
    """Return the part of the command line that all runs share. Raises InputError: `prefix` is not a C identifier."""
    check_prefix(prefix)
    return [program, "--library", library, "--prefix", prefix, *pinned(cpus)]


def check_prefix(prefix: str) -> None:
    """Raise InputError where `prefix` is not a C identifier."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", prefix, re.ASCII):
        raise InputError(f'"{prefix[:80]}" is not the C name of a model: use letters, digits and underscores')


def pinned(cpus: Sequence[int]) -> list[str]:
    """Return the arguments that keep the program on `cpus`; none for no CPUs."""
    return ["--cpu", ",".join(map(str, cpus))] if cpus else []


def sample_arguments(inputs: str, outputs: str, count: int) -> list[str]:
    """Return the arguments that run `count` samples of the file `inputs`; none for no samples."""
    return ["--inputs", inputs, "--outputs", outputs, "--count", str(count)] if count else []


def timing_arguments(plan: RunPlan) -> list[str]:
    """Return the arguments that take the samples of `plan`."""
    numbers = {"warmup-seconds": plan.warmup_s, "seconds": plan.seconds}
    counts = {"min-samples": plan.min_samples, "max-samples": plan.max_samples}
    return [text for key, value in {**numbers, **counts}.items() for text in (f"--{key}", f"{value:.9g}")]


def energy_arguments(seconds: float, batch: int) -> list[str]:
    """Return the arguments that run without pause for `seconds`, looking at the clock every `batch` inferences."""
    return ["--warmup-seconds", "0", "--measure-for", f"{seconds:.9g}", "--batch", str(batch)]


def encode(inputs: Sequence[Sequence[NDArray[Any]]]) -> Iterator[bytes]:
    """Yield the bytes of the inputs file, one array at a time: dense, row-major, in this machine's byte order."""
    for sample in inputs:
        for array in sample:
            yield np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).tobytes()


def decode_outputs(data: bytes, outputs: Sequence[TensorSpec], count: int) -> list[list[NDArray[Any]]]:
    """Return the arrays of the outputs file, for each sample one of each output. Raises DeviceError: wrong length."""
    expected = count * sum(spec.nbytes for spec in outputs)
    if len(data) != expected:
        raise DeviceError(f"the model gave {len(data)} bytes of output for {count} samples; {expected} were expected")
    at = 0
    samples: list[list[NDArray[Any]]] = []
    for _ in range(count):
        arrays: list[NDArray[Any]] = []
        for spec in outputs:
            flat = np.frombuffer(data, np.dtype(spec.dtype), spec.count, at)
            arrays.append(flat.reshape(spec.shape).copy())
            at += spec.nbytes
        samples.append(arrays)
    return samples


def decode(stdout: str, returncode: int) -> Answer:
    """Return the answer of a program that ended with `returncode` (negative: a signal).

    Raises DeviceError: it crashed, reported an error, or what it printed is not such an answer.
    """
    if returncode < 0:
        words = _SIGNAL_WORDS.get(signal.Signals(-returncode)) if -returncode in set(signal.Signals) else None
        raise DeviceError(words or f"the model was {exit_words(returncode)} while it ran")
    try:
        answer = json.loads(stdout)
        status = _whole(answer["status"])
    except (ValueError, KeyError, TypeError, RecursionError):
        shown = stdout.strip()[:200] or "nothing"
        raise DeviceError(
            f"the measuring program printed something else than its result ({exit_words(returncode)}): {shown!r}"
        ) from None
    if status != 0 or returncode != 0:
        raise DeviceError(_failure(status, str(answer.get("error", exit_words(returncode)))[:2000]))
    try:
        return _answer(answer)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DeviceError(
            f"the measuring program's result is not as expected ({type(error).__name__}: {error}): "
            "it may be of another version; build it again"
        ) from None


def check_outputs(answer: Answer, outputs: Sequence[TensorSpec]) -> None:
    """Raise DeviceError when the library's outputs are not of the sizes of `outputs`."""
    expected = tuple(spec.nbytes for spec in outputs)
    if answer.output_bytes != expected:
        raise DeviceError(
            f"the library's outputs have {_sizes(answer.output_bytes)} bytes, the model's {_sizes(expected)}: "
            "the library belongs to another model; compile it again"
        )


def _failure(status: int, error: str) -> str:
    if 1 <= status < 100:
        return f"the model ran into an error on the device: {error}"
    if status == _OUTSIDE:
        return f"{error}: its code is wrong, and its results cannot be trusted; please report this"
    return error


def _answer(answer: dict[str, Any]) -> Answer:
    loop = answer.get("loop")
    return Answer(
        model=str(answer["model"]),
        inferences=_whole(answer["inferences"]),
        batch=_whole(answer["batch"]),
        clock_s=_seconds(answer["clock_ns"]),
        threads=_whole(answer["threads"]),
        arena_bytes=_whole(answer["arena_bytes"]),
        weight_bytes=_whole(answer["weight_bytes"]),
        peak_rss_bytes=None if answer["peak_rss_bytes"] is None else _whole(answer["peak_rss_bytes"]),
        baseline_rss_bytes=None if answer["rss_before_load_bytes"] is None else _whole(answer["rss_before_load_bytes"]),
        input_bytes=tuple(map(_whole, answer["input_bytes"])),
        output_bytes=tuple(map(_whole, answer["output_bytes"])),
        samples_s=tuple(map(_seconds, answer["samples_ns"])),
        loop=None if loop is None else _loop(loop),
    )


def _loop(loop: dict[str, Any]) -> Loop:
    found = Loop(_whole(loop["inferences"]), _seconds(loop["start_ns"]), _seconds(loop["stop_ns"]))
    if found.inferences < 1 or found.stop_s <= found.start_s:
        raise ValueError("a run for the meter without inferences or time")
    return found


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a whole number of 0 or more")
    return value


def _seconds(nanoseconds: object) -> float:
    if isinstance(nanoseconds, bool) or not isinstance(nanoseconds, int | float):
        raise TypeError(f"{nanoseconds!r} is not a number")
    if not (math.isfinite(nanoseconds) and nanoseconds >= 0):
        raise ValueError(f"{nanoseconds!r} is not a time")
    return nanoseconds / 1e9


def _sizes(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes)) or "no"
