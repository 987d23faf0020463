"""The tuning log: what was measured for which kernel, kept by target fingerprint and TVM version.

```
tuning_logs/<target>/<fingerprint>-tvm<version>/workloads.json    one kernel a line
                                               /records.json      one measured schedule a line
```

Records of another fingerprint or TVM version lie in another folder and are never looked at. A line that was cut off
when the power went is dropped at the next opening.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import ScheduleError

from deploy import files
from deploy.target import Target
from deploy.tuning.task import workload

FAILED_S = 1e9  # MetaSchedule stores a candidate that failed as taking 1e10 s
WORKLOADS, RECORDS = "workloads.json", "records.json"


def folder_for(root: Path, target: Target) -> Path:
    """Where a target's records lie under `root`."""
    return root / target.name / f"{target.fingerprint()}-tvm{version('apache-tvm')}"


def _whole_lines(text: str) -> list[str]:
    lines = []
    for line in text.split("\n"):
        try:
            json.loads(line)
        except ValueError:
            continue
        lines.append(line)
    return lines


def mend(folder: Path) -> int:
    """Drop lines that are not whole JSON from a log; how many that were."""
    dropped = 0
    for name in (WORKLOADS, RECORDS):
        path = folder / name
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        kept = _whole_lines(text)
        lost = len([line for line in text.split("\n") if line]) - len(kept)
        if lost or (text and not text.endswith("\n")):
            files.write_text(path, "".join(f"{line}\n" for line in kept))
        dropped += lost
    return dropped


def _open(folder: Path) -> ms.database.JSONDatabase:
    mend(folder)
    return ms.database.JSONDatabase(str(folder / WORKLOADS), str(folder / RECORDS), allow_missing=True)


def mean_s(record: ms.database.TuningRecord) -> float:
    """Mean seconds of one call; infinite for a candidate that failed."""
    seconds = [float(s) for s in record.run_secs or ()]
    mean = sum(seconds) / len(seconds) if seconds else float("inf")
    return mean if mean < FAILED_S else float("inf")


@dataclass(frozen=True)
class TuningLog:
    """A target's records: `database` is written to, `others` are only read, such as those that are shipped."""

    database: ms.database.Database
    others: tuple[ms.database.Database, ...] = ()

    @classmethod
    def open(cls, target: Target, root: Path, shipped: Sequence[Path] = ()) -> TuningLog:
        """The log under `root`, which is made where it is missing, and the shipped ones that fit the target."""
        folder = folder_for(root, target)
        folder.mkdir(parents=True, exist_ok=True)
        found = (folder_for(other, target) for other in shipped)
        return cls(_open(folder), tuple(_open(path) for path in found if path.is_dir() and path != folder))

    @classmethod
    def read(cls, target: Target, roots: Sequence[Path]) -> TuningLog:
        """The records under `roots` that fit the target, for building; nothing is written."""
        found = [_open(path) for root in roots if (path := folder_for(root, target)).is_dir()]
        return cls(ms.database.MemoryDatabase(), tuple(found))

    def records(self, mod: IRModule) -> list[ms.database.TuningRecord]:
        """All records of a kernel, the fastest first."""
        found = []
        for database in (self.database, *self.others):
            if database.has_workload(mod):
                found += database.get_top_k(database.commit_workload(mod), 1 << 20)
        return sorted(found, key=mean_s)

    def find(self, func: tirx.PrimFunc) -> Schedule | None:
        """The fastest schedule on record for exactly this kernel, or nothing."""
        for record in self.records(workload(func)):
            if mean_s(record) == float("inf"):
                return None
            schedule = Schedule(func)
            try:
                record.trace.apply_to_schedule(schedule, remove_postproc=False)
            except ScheduleError:
                continue
            return schedule
        return None
