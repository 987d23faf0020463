"""The tuning log: what was measured for which kernel, kept by target fingerprint and TVM version.

Records of another fingerprint or TVM version lie in another folder and are never looked at. Reading changes nothing;
lines that cannot be used, such as one cut off when the power went, are taken out by the next run that writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import ScheduleError
from tvm.target import Target as TvmTarget
from tvm_ffi import structural_equal, structural_hash

from deploy.kernels.micro.intrinsics import register_named
from deploy.target import Target
from deploy.tuning import store
from deploy.tuning.store import FAILED_S, RECORDS, WORKLOADS, folder_for
from deploy.tuning.task import workload

WAIT_S = 5.0  # for another run to let go of the log


def time_s(record: ms.database.TuningRecord) -> float:
    """Seconds of one call; infinite for a candidate that failed."""
    return store.typical_s([float(s) for s in record.run_secs or ()])


def replay(record: ms.database.TuningRecord, func: tirx.PrimFunc) -> Schedule | None:
    """A record's schedule applied to `func`, or nothing where it does not fit."""
    schedule = Schedule(func)
    try:
        record.trace.apply_to_schedule(schedule, remove_postproc=False)
    except ScheduleError:
        return None
    return schedule


@dataclass
class _Entry:
    """A record as it stands in the file; decoding replays its trace, so that is done for those that are wanted."""

    owner: ms.database.Workload
    time_s: float
    content: list[Any]
    record: ms.database.TuningRecord | None = None

    def decode(self, database: ms.database.Database) -> ms.database.TuningRecord | None:
        """The record, which then is in `database` too; nothing where its trace does not fit the kernel or this TVM."""
        if self.record is None and self.content:
            content, self.content = self.content, []
            with contextlib.suppress(RuntimeError, ValueError, TypeError, KeyError, AttributeError):
                _know_instructions(content)
                self.record = ms.database.TuningRecord.from_json(content, self.owner)
                database.commit_tuning_record(self.record)
        return self.record


def _know_instructions(content: Any) -> None:
    """Make known to TVM what a record's trace puts in the place of loops."""
    if isinstance(content, str):
        register_named(content)
    elif isinstance(content, list):
        for part in content:
            _know_instructions(part)


class Kernels:
    """Records in memory, by kernel. `database` holds those of kernels that were asked for."""

    def __init__(self) -> None:
        self.database = ms.database.MemoryDatabase()
        self._groups: dict[int, list[list[_Entry]]] = {}  # by the kernel's hash; a group is of one kernel

    def add(self, record: ms.database.TuningRecord) -> None:
        """Remember a record."""
        self.database.commit_tuning_record(record)
        self._insert(_Entry(record.workload, time_s(record), [], record))

    def _insert(self, entry: _Entry) -> None:
        groups = self._groups.setdefault(structural_hash(entry.owner.mod), [])
        group = next((group for group in groups if group[0].owner.same_as(entry.owner)), None)
        if group is None:
            groups.append(group := [])
        group.append(entry)

    def of(self, mod: IRModule) -> list[tuple[float, Callable[[], ms.database.TuningRecord | None]]]:
        """For each record of a kernel its time, and how to get it."""
        groups = self._groups.get(structural_hash(mod), [])
        found = next((group for group in groups if structural_equal(group[0].owner.mod, mod)), [])
        return [(entry.time_s, partial(entry.decode, self.database)) for entry in found]

    def read(self, folder: Path) -> list[IRModule]:
        """Add the records in a folder; the kernels of its workloads, by line."""
        contents = store.read(folder)
        workloads = [_decoded(line) for line in contents.workloads]
        known = [None if w is None else self.database.commit_workload(w.mod) for w in workloads]
        for line in contents.records:
            owner = known[line.workload]
            if owner is not None:
                self._insert(_Entry(owner, store.typical_s(line.content[1]), line.content))
        return [IRModule() if w is None else w.mod for w in workloads]


def _decoded(line: list[str] | None) -> ms.database.Workload | None:
    if line is None:
        return None
    try:
        return ms.database.Workload.from_json(line)
    except (RuntimeError, ValueError, TypeError, KeyError):
        return None


class TuningLog:
    """A target's records: those in `folder`, which may grow, and those in `others`, such as the shipped ones."""

    def __init__(self, folder: Path | None, others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._others = tuple(others)
        self._own: Kernels | None = None
        self._shipped: Kernels | None = None
        self._lines: list[IRModule] = []
        self._writable = False

    @classmethod
    def open(cls, target: Target, root: Path, shipped: Sequence[Path] = ()) -> TuningLog:
        """The log under `root`, which need not exist yet, beside the shipped ones that fit the target."""
        own = folder_for(root, target)
        found = [folder_for(other, target) for other in shipped]
        return cls(own, [path for path in found if path.is_dir() and path.resolve() != own.resolve()])

    @classmethod
    def read(cls, target: Target, roots: Sequence[Path]) -> TuningLog:
        """The records under `roots` that fit the target, for building; nothing is written."""
        found = {path.resolve(): path for root in roots if (path := folder_for(root, target)).is_dir()}
        return cls(None, list(found.values()))

    @property
    def kernels(self) -> Kernels:
        """The records in the log's own folder."""
        if self._own is None:
            self._own = Kernels()
            self._lines = self._own.read(self.folder) if self.folder is not None else []
        return self._own

    @contextlib.contextmanager
    def writing(self, wait_s: float = WAIT_S) -> Iterator[None]:
        """Let `commit` add records, and no other process.

        Raises InputError where the folder cannot be written to, ToolError where another run has it after `wait_s`.
        """
        if self.folder is None:
            raise ValueError("this tuning log was opened for reading")
        with store.lock(self.folder, wait_s):
            store.mend(self.folder)
            self._own = None  # another run may have added records since this log was opened
            self._writable = True
            try:
                yield
            finally:
                self._writable = False

    def commit(self, mod: IRModule, schedule: Schedule, seconds: Sequence[float], target: TvmTarget) -> None:
        """Add a measured candidate of the kernel `mod`; no `seconds` says that it failed. It is on disk at once.

        Raises ToolError where it cannot be written.
        """
        if self.folder is None or not self._writable:
            raise ValueError("records are added inside `writing()`")
        kernels = self.kernels
        owner = kernels.database.commit_workload(mod)
        info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)
        record = ms.database.TuningRecord(schedule.trace, owner, list(seconds) or [FAILED_S], target, info)
        store.append(self.folder / RECORDS, [self._line_of(owner), record.as_json()])
        kernels.add(record)

    def _line_of(self, owner: ms.database.Workload) -> int:
        """The line of a kernel in workloads.json, written where it is new."""
        assert self.folder is not None
        for index, known in enumerate(self._lines):
            if structural_equal(known, owner.mod):
                return index
        store.append(self.folder / WORKLOADS, owner.as_json())
        self._lines.append(owner.mod)
        return len(self._lines) - 1

    def _ranked(self, mod: IRModule) -> Iterator[ms.database.TuningRecord]:
        if self._shipped is None:
            self._shipped = Kernels()
            for folder in self._others:
                self._shipped.read(folder)
        entries = [*self.kernels.of(mod), *self._shipped.of(mod)]
        for _, decode in sorted(entries, key=lambda entry: entry[0]):
            record = decode()
            if record is not None:
                yield record

    def records(self, mod: IRModule) -> list[ms.database.TuningRecord]:
        """All records of a kernel, failed ones too, the fastest first."""
        return list(self._ranked(mod))

    def find(self, func: tirx.PrimFunc) -> Schedule | None:
        """The fastest schedule on record for exactly this kernel, or nothing."""
        for record in self._ranked(workload(func)):
            if time_s(record) == float("inf"):
                return None
            schedule = replay(record, func)
            if schedule is not None:
                return schedule
        return None
