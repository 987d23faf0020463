"""What a tuning log holds, for people: read from its files alone, without TVM.

`logs`, `kernels` and `best` return rows; `render_logs`, `render_kernels` and `render_best` show them as text.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from deploy.errors import InputError
from deploy.tuning import store

_FOLDER = re.compile(r"(?P<fingerprint>[0-9a-f]+)-tvm(?P<tvm>.+)")


@dataclass(frozen=True)
class LogRow:
    """One log: kernels with records, records, those of them that failed, lines that are damaged, bytes of its files."""

    target: str
    fingerprint: str
    tvm: str
    kernels: int
    records: int
    failed: int
    damaged: int
    size: int
    folder: Path


@dataclass(frozen=True)
class KernelRow:
    """One kernel of a log, by its arguments, such as "float32[1,640] float32[128]"; best_s is None if all failed."""

    target: str
    fingerprint: str
    tvm: str
    line: int
    arguments: str
    records: int
    failed: int
    best_s: float | None


def logs(root: Path) -> list[LogRow]:
    """Every log under `root`, by target; none where there is no such folder. Raises InputError if it is unreadable."""
    return [_log_row(folder, store.read(folder)) for folder in _folders(root)]


def kernels(root: Path, target: str) -> list[KernelRow]:
    """The kernels in the logs of a target, the slowest first. Raises InputError where it has no log."""
    rows = []
    for folder in _of_target(root, target):
        for line, records in _by_kernel(store.read(folder)).items():
            rows.append(_kernel_row(folder, line, records))
    return sorted(rows, key=lambda row: (row.fingerprint, row.tvm, -inf if row.best_s is None else -row.best_s))


def best(root: Path, target: str) -> list[tuple[KernelRow, Any]]:
    """The fastest record of each kernel of a target, as it stands in the log: [trace, seconds, target, arguments].

    Kernels of which every candidate failed are left out. Raises InputError where the target has no log.
    """
    found = []
    for folder in _of_target(root, target):
        for line, records in _by_kernel(store.read(folder)).items():
            row = _kernel_row(folder, line, records)
            if row.best_s is not None:
                found.append((row, min(records, key=_time_s).content))
    return found


def render_logs(root: Path) -> str:
    """The logs under `root` as a table."""
    rows = logs(root)
    if not rows:
        return f"no tuning logs in {root}"
    head = ("target", "fingerprint", "TVM", "kernels", "records", "failed", "size")
    cells = [
        (r.target, r.fingerprint, r.tvm, str(r.kernels), str(r.records), str(r.failed), f"{r.size / 1024:.0f} KiB")
        for r in rows
    ]
    notes = [
        f"{row.folder}: {row.damaged} damaged lines, which the next tuning run removes" for row in rows if row.damaged
    ]
    return "\n".join([_table(head, cells, "<<<>>>>"), *notes])


def render_kernels(root: Path, target: str) -> str:
    """The kernels of a target as a table."""
    head = ("fingerprint", "TVM", "best", "records", "failed", "arguments")
    cells = [
        (r.fingerprint, r.tvm, _time(r.best_s), str(r.records), str(r.failed), r.arguments)
        for r in kernels(root, target)
    ]
    return _table(head, cells, "<<>>><") if cells else f"no records of target {target} in {root}"


def render_best(root: Path, target: str) -> str:
    """The fastest record of each kernel of a target, a line of JSON each; empty where every candidate failed."""
    lines = [
        {
            "fingerprint": row.fingerprint,
            "tvm": row.tvm,
            "kernel": row.line,
            "arguments": row.arguments,
            "best_s": row.best_s,
            "record": record,
        }
        for row, record in best(root, target)
    ]
    return "\n".join(json.dumps(line) for line in lines)


def _folders(root: Path) -> list[Path]:
    try:
        found = [path for path in root.glob("*/*") if path.is_dir() and _FOLDER.fullmatch(path.name)]
    except OSError as error:
        raise InputError(f"cannot read the tuning logs in {root}: {error.strerror or error}") from None
    return sorted(found, key=lambda path: (path.parent.name, path.name))


def _of_target(root: Path, target: str) -> list[Path]:
    folders = _folders(root)
    found = [folder for folder in folders if folder.parent.name == target]
    if not found:
        names = sorted({folder.parent.name for folder in folders})
        near = difflib.get_close_matches(target, names, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}" if names else ""
        raise InputError(f"there is no tuning log of target {target} in {root}{hint}")
    return found


def _identity(folder: Path) -> tuple[str, str, str]:
    match = _FOLDER.fullmatch(folder.name)
    assert match is not None
    return folder.parent.name, match["fingerprint"], match["tvm"]


def _time_s(record: store.Record) -> float:
    return store.typical_s(record.content[1])


def _by_kernel(contents: store.Contents) -> dict[int, list[store.Record]]:
    found: dict[int, list[store.Record]] = {}
    for record in contents.records:
        found.setdefault(record.workload, []).append(record)
    return found


def _log_row(folder: Path, contents: store.Contents) -> LogRow:
    failed = sum(_time_s(record) == inf for record in contents.records)
    files = (folder / name for name in (store.WORKLOADS, store.RECORDS))
    size = sum(path.stat().st_size for path in files if path.is_file())
    counts = (len(_by_kernel(contents)), len(contents.records), failed, contents.damaged)
    return LogRow(*_identity(folder), *counts, size, folder)


def _kernel_row(folder: Path, line: int, records: list[store.Record]) -> KernelRow:
    times = [_time_s(record) for record in records]
    fastest = min(times)
    arguments = _arguments(records[0].content[3])
    counts = (len(records), times.count(inf))
    return KernelRow(*_identity(folder), line, arguments, *counts, None if fastest == inf else fastest)


def _arguments(described: Any) -> str:
    """MetaSchedule's list of ["TENSOR", dtype, shape] as text."""
    try:
        return " ".join(f"{dtype}[{','.join(map(str, shape))}]" for _, dtype, shape in described)
    except (TypeError, ValueError):
        return "?"


def _time(seconds: float | None) -> str:
    return "failed" if seconds is None else f"{seconds * 1e6:.4g} us"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """Columns as wide as they must be, each flush with the side that `sides` has for it: < or >."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
