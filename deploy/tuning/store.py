"""The files of a tuning log, without TVM: where they lie, what their lines mean, how they are read and mended.

```
tuning_logs/<target>/<fingerprint>-tvm<version>/workloads.json    one kernel a line: [hash, module]
                                               /records.json      one candidate a line: [kernel's line, record]
```

These are the files of MetaSchedule's JSONDatabase. A record is [trace, seconds of each run, target, arguments]; a
candidate that failed has FAILED_S as its time. The seconds of a microcontroller's kernel are its instructions, counted
in an emulator, at the target's clock, one a cycle: a single number, always the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from deploy import files
from deploy.errors import InputError, ToolError
from deploy.target import Target

FAILED_S = 1e10  # what MetaSchedule takes for the time of a candidate that failed
WORKLOADS, RECORDS = "workloads.json", "records.json"
POLL_S = 0.05


@dataclass(frozen=True)
class Record:
    """One line of records.json: the line of its kernel in workloads.json, and the record."""

    workload: int
    content: list[Any]


@dataclass(frozen=True)
class Contents:
    """What a log holds; a kernel whose line was lost is None. `damaged` counts lines that nobody has mended yet."""

    workloads: tuple[list[Any] | None, ...] = ()
    records: tuple[Record, ...] = ()
    damaged: int = 0


def folder_for(root: Path, target: Target) -> Path:
    """Where a target's records lie under `root`: other fingerprints and TVM versions have other folders."""
    return root / target.name / f"{target.fingerprint()}-tvm{version('apache-tvm')}"


def typical_s(run_secs: list[float]) -> float:
    """Seconds of one call, from the times of several runs: their median, as one of them may have been disturbed.

    Infinite for a candidate that failed.
    """
    seconds = median(run_secs) if run_secs else FAILED_S
    return seconds if seconds < FAILED_S / 10 else float("inf")


def _parsed(path: Path) -> list[Any]:
    """The lines of a file as JSON; a line that is none is `...`, which JSON has not."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    parsed: list[Any] = []
    for line in text.split("\n"):
        if line:
            try:
                parsed.append(json.loads(line))
            except (ValueError, RecursionError):
                parsed.append(...)
    return parsed


def _is_workload(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _is_record(value: Any) -> bool:
    """Whether a line has the shape [line of its kernel, [trace, [seconds...], target, arguments]]."""
    if not (isinstance(value, list) and len(value) == 2 and type(value[0]) is int and isinstance(value[1], list)):
        return False
    times = value[1][1] if len(value[1]) == 4 else None
    return isinstance(times, list) and all(type(t) in (int, float) and t > 0 for t in times)


def read(folder: Path) -> Contents:
    """A log as it is, which may be that its last line is still being written. A missing file is an empty one.

    Raises InputError where the files cannot be read.
    """
    try:
        lines, found = _parsed(folder / WORKLOADS), _parsed(folder / RECORDS)
    except OSError as error:
        raise InputError(f"cannot read the tuning log {folder}: {error.strerror or error}") from None
    workloads = tuple(line if _is_workload(line) else None for line in lines)
    records = [Record(*line) for line in found if _is_record(line)]
    usable = tuple(r for r in records if 0 <= r.workload < len(workloads) and workloads[r.workload] is not None)
    lost = sum(line is not None and not _is_workload(line) for line in lines)
    return Contents(workloads, usable, lost + len(found) - len(usable))


def mend(folder: Path) -> int:
    """Take lines that cannot be used out of a log that nobody else writes to; how many that were.

    A kernel that was lost leaves a `null`, so that the others keep their line numbers, by which the records know them.
    Raises InputError or ToolError where the files cannot be written.
    """
    contents = read(folder)
    if contents.damaged or not all(_ends_well(folder / name) for name in (WORKLOADS, RECORDS)):
        records = "".join(as_line([record.workload, record.content]) for record in contents.records)
        # Records first: should this be cut short between the two, none is left whose kernel is about to go.
        files.write_text(folder / RECORDS, records)
        files.write_text(folder / WORKLOADS, "".join(map(as_line, contents.workloads)))
    return contents.damaged


def _ends_well(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            return stream.read() == b"\n"
    return True


def as_line(value: Any) -> str:
    """A value as one line of JSON, written as TVM writes it."""
    return json.dumps(value, separators=(",", ":")) + "\n"


def append(path: Path, value: Any) -> None:
    """Add a line to a log and have it on the disk when this returns. Raises ToolError where it cannot be written."""
    data = as_line(value).encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ToolError(f"cannot add to the tuning log {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def lock(folder: Path, wait_s: float) -> Iterator[None]:
    """Keep other processes from writing to the log in `folder`, which is made where it is missing.

    Raises InputError where the folder cannot be written to, ToolError where another process has it after `wait_s`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(
            f"cannot keep a tuning log in {folder}: {error.strerror or error}; choose another folder with --logs"
        ) from None
    try:
        _acquire(descriptor, folder, wait_s)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ToolError(
                    f"another run is adding to the tuning log {folder}: wait for its end, or give this run another "
                    "folder with --logs"
                ) from None
        except OSError:
            return  # a file system without locks
        time.sleep(POLL_S)
