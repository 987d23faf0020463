"""What a tuning log holds, for people: read from its files alone, without TVM.

`logs`, `kernels` and `best` return rows; `render_logs`, `render_kernels` and `render_best` show them as text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from deploy.errors import InputError
from deploy.tuning import store
from deploy.tuning.current import stale_folders
from deploy.tuning.log_lines import Header, Record, unpack
from deploy.units import did_you_mean


@dataclass(frozen=True)
class LogRow:
    """One log: kernels with records, records, those of them that failed, lines that are damaged, bytes of its file.

    proposals: schedules of other targets that are yet to be measured. stale: why nobody uses the records, or "".
    """

    target: str
    fingerprint: str
    tvm: str
    kernels: int
    records: int
    failed: int
    proposals: int
    damaged: int
    size: int
    stale: str
    folder: Path


@dataclass(frozen=True)
class KernelRow:
    """One kernel of a log, by its arguments, such as "float32[1,640] float32[128]"; best_s is None if all failed."""

    target: str
    fingerprint: str
    tvm: str
    id: str
    name: str
    arguments: str
    records: int
    failed: int
    best_s: float | None


def logs(root: Path) -> list[LogRow]:
    """Every log under `root`, by target; none where there is no such folder. Raises InputError if it is unreadable."""
    folders = store.folders(root)
    stale = stale_folders(folders)
    return [_log_row(folder, stale.get(folder, "")) for folder in folders if (folder / store.LOG).is_file()]


def of_target(root: Path, target: str) -> list[Path]:
    """The folders with a target's logs. Raises InputError where there are none, with the nearest name there is."""
    folders = [folder for folder in store.folders(root) if (folder / store.LOG).is_file()]
    found = [folder for folder in folders if folder.parent.name == target]
    if not found:
        names = sorted({folder.parent.name for folder in folders})
        there = f"; there are {', '.join(names)}" if names else ""
        hint = did_you_mean(target, names) or there
        raise InputError(f"there is no tuning log of target {target} in {root}{hint}")
    return found


def kernels(root: Path, target: str) -> list[KernelRow]:
    """The kernels in the logs of a target, the slowest first. Raises InputError where it has no log."""
    rows = [row for folder in of_target(root, target) for row, _ in _kernel_rows(folder)]
    return sorted(rows, key=lambda row: (row.fingerprint, row.tvm, -inf if row.best_s is None else -row.best_s))


def best(root: Path, target: str) -> list[tuple[KernelRow, Record]]:
    """The fastest record of each kernel of a target. Kernels of which every candidate failed are left out.

    Raises InputError where the target has no log.
    """
    rows = [found for folder in of_target(root, target) for found in _kernel_rows(folder)]
    return [(row, min(records, key=lambda record: record.time_s)) for row, records in rows if row.best_s is not None]


def render_logs(root: Path) -> str:
    """The logs under `root` as a table."""
    rows = logs(root)
    head = ("target", "fingerprint", "TVM", "kernels", "records", "failed", "size")
    cells = [
        (r.target, r.fingerprint, r.tvm, str(r.kernels), str(r.records), str(r.failed), f"{r.size / 1024:.1f} KiB")
        for r in rows
    ]
    lines = [_table(head, cells, "<<<>>>>") if rows else f"no tuning logs in {root}"]
    for row in rows:
        if row.stale:
            lines.append(f"{row.folder}: {row.stale}, not used; `tvm-deploy logs prune {row.target} --stale` drops it")
        if row.proposals:
            lines.append(f"{row.folder}: {row.proposals} schedules of other targets, which the next tuning run tries")
        if row.damaged:
            lines.append(f"{row.folder}: {row.damaged} damaged lines; see `tvm-deploy logs verify`")
    for folder in store.folders(root):
        if any((folder / name).is_file() for name in store.OLD_FILES):
            lines.append(f"{folder}: files of another version of tvm-deploy, which are not read; delete or tune again")
    return "\n".join(lines)


def render_kernels(root: Path, target: str) -> str:
    """The kernels of a target as a table."""
    head = ("fingerprint", "TVM", "best", "records", "failed", "kernel", "arguments")
    cells = [
        (r.fingerprint, r.tvm, _time(r.best_s), str(r.records), str(r.failed), r.name, r.arguments)
        for r in kernels(root, target)
    ]
    return _table(head, cells, "<<>>><<") if cells else f"no records of target {target} in {root}"


def render_best(root: Path, target: str) -> str:
    """The fastest record of each kernel of a target, a line of JSON each; empty where every candidate failed."""
    lines = [
        {
            "fingerprint": row.fingerprint,
            "tvm": row.tvm,
            "kernel": row.id,
            "name": row.name,
            "arguments": row.arguments,
            "best_s": row.best_s,
            "trace": unpack(record.trace),
        }
        for row, record in best(root, target)
    ]
    return "\n".join(json.dumps(line) for line in lines)


def _log_row(folder: Path, stale: str) -> LogRow:
    contents = store.read(folder)
    done = {(record.kernel, record.trace) for record in contents.records}
    counts = (
        len({record.kernel for record in contents.records}),
        len(contents.records),
        sum(not record.ns for record in contents.records),
        sum((proposal.kernel, proposal.trace) not in done for proposal in contents.proposals),
        len(contents.damaged),
    )
    owner = _owner(folder)
    size = (folder / store.LOG).stat().st_size
    return LogRow(owner.target, owner.fingerprint, owner.tvm, *counts, size, stale, folder)


def _owner(folder: Path) -> Header:
    owner = store.identity(folder)
    assert owner is not None, folder
    return owner


def _kernel_rows(folder: Path) -> list[tuple[KernelRow, list[Record]]]:
    contents, owner = store.read(folder), _owner(folder)
    groups: dict[str, list[Record]] = {}
    for record in contents.records:
        groups.setdefault(record.kernel, []).append(record)
    rows = []
    for kernel, records in groups.items():
        described = contents.kernels.get(kernel)
        words = (described.name, described.arguments) if described else ("?", "?")
        fastest = min(record.time_s for record in records)
        counts = (len(records), sum(not record.ns for record in records))
        time_s = None if fastest == inf else fastest
        rows.append((KernelRow(owner.target, owner.fingerprint, owner.tvm, kernel, *words, *counts, time_s), records))
    return rows


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
