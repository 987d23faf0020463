"""The tuning log: what was measured for which kernel, kept by target fingerprint and TVM version.

Records of another fingerprint or TVM version lie in another folder and are never looked at. A kernel is known by its
id (`kernel_id`); its module is not kept, as whoever looks for records has it. Applying a trace can only give another
schedule of the very kernel it is applied to, or fail: no record can change what is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import ScheduleError, Trace

from deploy.kernels.micro.intrinsics import register_named
from deploy.target import Target
from deploy.tuning import store
from deploy.tuning.kernel_id import KernelIds, arguments, readable_name
from deploy.tuning.log_lines import LONGEST_REASON, Kernel, Line, Proposal, Record, nanoseconds, pack, unpack
from deploy.tuning.store import FAILED_S, LogFile, folder_for, kin_folders
from deploy.tuning.task import Task, workload

KIN_PROPOSALS = 4  # of each kernel


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


def _applied(packed: str, mod: IRModule) -> Schedule | None:
    """A packed trace applied to a kernel; nothing where it does not fit the kernel or this TVM."""
    schedule = Schedule(mod)
    try:
        trace = unpack(packed)
        _know_instructions(trace)
        Trace.apply_json_to_schedule(trace, schedule)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return schedule


def _plain(value: Any) -> Any:
    """TVM's containers and numbers as Python's."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return value.value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value]


def _know_instructions(content: Any) -> None:
    """Make known to TVM what a trace puts in the place of loops."""
    if isinstance(content, str):
        register_named(content)
    elif isinstance(content, list):
        for part in content:
            _know_instructions(part)


@dataclass
class _Entry:
    """A record as it stands in the file; decoding applies its trace, so that is done for those that are wanted."""

    line: Record
    record: ms.database.TuningRecord | None = None
    tried: bool = False

    def decoded(self, mod: IRModule, database: ms.database.Database) -> ms.database.TuningRecord | None:
        """The record, which then is in `database` too; nothing where its trace does not fit."""
        if not self.tried:
            self.tried = True
            schedule = _applied(self.line.trace, mod)
            if schedule is not None:
                self.keep(schedule, mod, database)
        return self.record

    def keep(self, schedule: Schedule, mod: IRModule, database: ms.database.Database) -> None:
        """Put the record into `database`."""
        self.tried = True
        seconds = [ns / 1e9 for ns in self.line.ns] or [FAILED_S]
        self.record = ms.database.TuningRecord(schedule.trace, database.commit_workload(mod), seconds)
        database.commit_tuning_record(self.record)


class Kernels:
    """Lines of logs in memory, by kernel. `database` holds the records of kernels that were asked for."""

    def __init__(self) -> None:
        self.database = ms.database.MemoryDatabase()
        self.described: dict[str, int] = {}  # kernels, and of how many measured candidates the best were kept
        self._entries: dict[str, dict[str, _Entry]] = {}  # by kernel and trace: the fastest record of each
        self._proposals: dict[str, dict[str, None]] = {}  # traces by kernel

    def add(self, line: Line) -> _Entry | None:
        """Remember a line; the entry of a record, unless the candidate has a faster one already."""
        if isinstance(line, Kernel):
            self.described[line.id] = max(line.of, self.described.get(line.id, 0))
        elif isinstance(line, Proposal):
            self._proposals.setdefault(line.kernel, {})[line.trace] = None
        elif isinstance(line, Record):
            known = self._entries.setdefault(line.kernel, {})
            if line.trace not in known or line.time_s < known[line.trace].line.time_s:
                known[line.trace] = _Entry(line)
                return known[line.trace]
        return None

    def of(self, kernel: str) -> list[_Entry]:
        """The records of a kernel, the fastest first."""
        return sorted(self._entries.get(kernel, {}).values(), key=lambda entry: entry.line.time_s)

    def proposed(self, kernel: str) -> list[str]:
        """Packed traces that were proposed for a kernel and have no record."""
        return [trace for trace in self._proposals.get(kernel, {}) if trace not in self._entries.get(kernel, {})]


class TuningLog:
    """A target's records: those in `folder`, which may grow, and those in `others`, such as the shipped ones.

    `kin` are logs of other targets with the same code: what was best there serves where nothing is on record here, and
    is measured first. Times are not compared across targets: an emulator counts what a board takes time for.
    """

    def __init__(self, folder: Path | None, others: Sequence[Path] = (), kin: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._own = LogFile(folder) if folder is not None else None
        self._files = [*([self._own] if self._own else []), *map(LogFile, others)]
        self._kernels = Kernels()
        self._kin_files, self._kin = [LogFile(path) for path in kin], Kernels()
        self._ids = KernelIds()
        self._writable = False

    @classmethod
    def open(cls, target: Target, root: Path, shipped: Sequence[Path] = ()) -> TuningLog:
        """The log under `root`, which need not exist yet, beside the shipped ones that fit the target."""
        own = folder_for(root, target)
        found = [folder_for(other, target) for other in shipped]
        others = [path for path in found if path.is_dir() and path.resolve() != own.resolve()]
        return cls(own, others, _kin(target, [root, *shipped]))

    @classmethod
    def read(cls, target: Target, roots: Sequence[Path]) -> TuningLog:
        """The records under `roots` that fit the target, for building; nothing is written."""
        found = {path.resolve(): path for root in roots if (path := folder_for(root, target)).is_dir()}
        return cls(None, list(found.values()), _kin(target, roots))

    @property
    def kernels(self) -> Kernels:
        """What is on record up to now, other processes' records too. Raises InputError where a log cannot be read."""
        for file in self._files:
            for line in file.news():
                self._kernels.add(line)
        return self._kernels

    @property
    def kin(self) -> Kernels:
        """What is on record for other targets with the same code."""
        for file in self._kin_files:
            for line in file.news():
                self._kin.add(line)
        return self._kin

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Let `commit` add records, as other processes may at the same time; all are on the disk at the end.

        Raises InputError where the folder cannot be written to.
        """
        if self._own is None:
            raise ValueError("this tuning log was opened for reading")
        store.make(self._own.folder)
        self._writable = True
        try:
            yield
        finally:
            self._writable = False
            self._own.sync()

    def commit(self, task: Task, schedule: Schedule, seconds: Sequence[float], reason: str = "") -> None:
        """Add a measured candidate; no `seconds` says that it failed, for that reason.

        From then on it survives this process, and after `sync` a power cut. Raises ToolError where it cannot be
        written.
        """
        if self._own is None or not self._writable:
            raise ValueError("records are added inside `writing()`")
        kernels, mod = self.kernels, task.mod
        kernel = self._ids.of(mod)
        trace, ns = pack(_plain(schedule.trace.as_json())), tuple(map(nanoseconds, seconds))
        failed = "" if ns else (" ".join(reason.split()).encode("utf-8", "replace").decode() or "failed")
        record = Record(kernel, trace, ns, failed[:LONGEST_REASON], len(kernels.of(kernel)) + 1)
        described = kernel in kernels.described
        new: list[Line] = [] if described else [Kernel(kernel, readable_name(task.name), arguments(mod))]
        new.append(record)
        self._own.append(new)
        for line in new:
            entry = kernels.add(line)
            if entry is not None:
                entry.keep(schedule, mod, kernels.database)

    def sync(self) -> None:
        """Have on the disk what was added. Raises ToolError where that fails."""
        if self._own is not None:
            self._own.sync()

    def records(self, mod: IRModule) -> list[ms.database.TuningRecord]:
        """All records of a kernel, failed ones too, the fastest first; of a candidate with several the fastest."""
        return list(self._ranked(mod, self.kernels))

    def _ranked(self, mod: IRModule, kernels: Kernels) -> Iterator[ms.database.TuningRecord]:
        for entry in kernels.of(self._ids.of(mod)):
            record = entry.decoded(mod, kernels.database)
            if record is not None:
                yield record

    def is_tuned(self, mod: IRModule) -> bool:
        """Whether a kernel's best candidates come out of an earlier tuning run, whose others were not kept."""
        kernel, kernels = self._ids.of(mod), self.kernels
        return bool(kernels.described.get(kernel)) and any(entry.line.ns for entry in kernels.of(kernel))

    def proposals(self, mod: IRModule) -> list[Schedule]:
        """Schedules that were good for a kernel on another target and have no record here yet, the best first."""
        kernel, kernels = self._ids.of(mod), self.kernels
        measured = {entry.line.trace for entry in kernels.of(kernel)}
        best = [entry.line.trace for entry in self.kin.of(kernel)[:KIN_PROPOSALS] if entry.line.ns]
        traces = dict.fromkeys([*kernels.proposed(kernel), *(trace for trace in best if trace not in measured)])
        found = (_applied(trace, mod) for trace in traces)
        return [schedule for schedule in found if schedule is not None]

    def find(self, func: tirx.PrimFunc) -> Schedule | None:
        """The fastest schedule on record for exactly this kernel, or nothing."""
        mod = workload(func)
        for kernels in (self.kernels, self.kin):
            for record in self._ranked(mod, kernels):
                if time_s(record) == float("inf"):
                    break
                schedule = replay(record, func)
                if schedule is not None:
                    return schedule
        return None


def _kin(target: Target, roots: Sequence[Path]) -> list[Path]:
    found = {path.resolve(): path for root in roots for path in kin_folders(root, target)}
    return list(found.values())
