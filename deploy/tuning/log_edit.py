"""Joining, shrinking and handing on tuning logs. All of it is work on lines: no TVM, and no kernels at hand.

What is written here is compacted: sorted, each line once. The same records give the same bytes, wherever they came
from, so that a log under version control changes only where its records did.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from deploy.errors import InputError
from deploy.tuning import store
from deploy.tuning.current import stale_folders
from deploy.tuning.listing import of_target
from deploy.tuning.log_lines import Kernel, Line, Proposal, Record, unpack
from deploy.tuning.store import Contents


@dataclass(frozen=True)
class Change:
    """What became of one log: the records in it now, and how many it has more (or, below 0, fewer) than before.

    gone: the whole log was deleted.
    """

    folder: Path
    records: int
    more: int
    gone: bool = False


def compacted(contents: Iterable[Contents], top: int | None = None, proposals: bool = True) -> list[Line]:
    """The lines of several logs as one log, in the one order that they have there.

    top: only so many candidates of each kernel, the fastest; failed ones are dropped, and of a candidate that was
    measured more than once the fastest record stays, as disturbances only ever make it slower.
    """
    read = list(contents)
    kernels: dict[str, Kernel] = {}
    for kernel in (k for one in read for k in one.kernels.values()):
        kernels[kernel.id] = kernel.joined(kernels.get(kernel.id, kernel))
    groups: dict[str, list[Record]] = {}
    for record in _once(record for one in read for record in one.records):
        groups.setdefault(record.kernel, []).append(record)
    if top is not None:
        counts = {kernel: len({_trace(record) for record in records}) for kernel, records in groups.items()}
        kernels = {name: replace(k, of=max(k.of, counts.get(name, 0))) for name, k in kernels.items()}
        groups = {kernel: _fastest(records, top) for kernel, records in groups.items()}
    proposed: dict[str, set[Proposal]] = {}
    for proposal in (p for one in read for p in one.proposals if proposals):
        proposed.setdefault(proposal.kernel, set()).add(proposal)
    lines: list[Line] = []
    for kernel_id in sorted({kernel for kernel, records in groups.items() if records} | proposed.keys()):
        lines += [kernels[kernel_id]] if kernel_id in kernels else []
        lines += groups.get(kernel_id, [])
        measured = {record.trace for record in groups.get(kernel_id, [])}
        left = [proposal for proposal in proposed.get(kernel_id, ()) if proposal.trace not in measured]
        left.sort(key=lambda proposal: (proposal.source, proposal.trace))
        lines += left
    return lines


def _once(records: Iterable[Record]) -> list[Record]:
    """Records without doubles, which differ in the number of the trial at most, sorted by time."""
    found: dict[Record, Record] = {}
    for record in records:
        key = replace(record, trial=1)
        if key not in found or record.trial < found[key].trial:
            found[key] = record
    return sorted(found.values(), key=lambda record: (record.time_s, record.trace, record.ns, record.failed))


def _fastest(records: Sequence[Record], top: int) -> list[Record]:
    first: dict[str, Record] = {}
    for record in records:
        if record.ns:
            first.setdefault(_trace(record), record)
    return list(first.values())[:top]


def _trace(record: Record) -> str:
    """What tells candidates apart: the trace as such, as it may have been packed by another version of zlib."""
    try:
        return str(unpack(record.trace))
    except ValueError:
        return record.trace


def merge(root: Path, sources: Sequence[Path]) -> list[Change]:
    """Add the records of other logs: of roots, of a target's folder in one, or of a single log's folder.

    Raises InputError where a source has no log.
    """
    found: dict[Path, list[Path]] = {}
    for source in sources:
        folders = _logs_in(source)
        if not folders:
            raise InputError(
                f"nothing to merge: there is no tuning log in {source}; give a folder as --logs names it, or one in it"
            )
        for folder in folders:
            place = root / folder.parent.name / folder.name
            if place.resolve() == folder.resolve():
                raise InputError(f"nothing to merge: {source} is in {root} already; --logs names where logs are added")
            found.setdefault(place, []).append(folder)
    read = {place: [store.read(folder) for folder in folders] for place, folders in found.items()}  # all, or no change
    changes = []
    for place, contents in read.items():
        with store.lock(place):
            own = store.read(place)
            changes.append(_replace(place, own, compacted([own, *contents])))
    return changes


def _logs_in(source: Path) -> list[Path]:
    """The folders of logs in a root, in a target's folder, or of a log itself."""
    source = Path(source).absolute()
    if store.identity(source) is not None:
        found = [source]
    else:
        below = [path for path in sorted(source.glob("*")) if store.identity(path) is not None]
        found = below or store.folders(source)
    return [folder for folder in found if (folder / store.LOG).is_file()]


def _replace(folder: Path, before: Contents, lines: list[Line]) -> Change:
    store.replace(folder, lines)
    count = sum(isinstance(line, Record) for line in lines)
    return Change(folder, count, count - len(before.records))


def export(root: Path, target: str, out: Path, top: int = 1) -> list[Change]:
    """Write the best records of a target's kernels to logs under `out`, to commit or to ship; those there count too.

    Raises InputError where the target has no records of this TVM version.
    """
    if out.resolve() == root.resolve():
        raise InputError(f"{out} holds the log itself; give another folder, or use `tvm-deploy logs prune`")
    folders = _of_this_tvm(root, target)
    changes = []
    for folder in folders:
        contents = store.read(folder)
        if any(record.ns for record in contents.records):
            place = out / target / folder.name
            with store.lock(place):
                own = store.read(place)
                changes.append(_replace(place, own, compacted([own, contents], top, proposals=False)))
    if not changes:
        raise InputError(f"nothing to export: no candidate of target {target} in {root} has a time")
    return changes


def _of_this_tvm(root: Path, target: str) -> list[Path]:
    tvm = version("apache-tvm")
    folders = of_target(root, target)
    found = [folder for folder in folders if folder.name.endswith(f"-tvm{tvm}")]
    if not found:
        raise InputError(f"the records of target {target} in {root} are of other versions of TVM; this is {tvm}")
    return found


def prune(root: Path, target: str, top: int | None, stale: bool) -> list[Change]:
    """Shrink a target's logs.

    top: how many candidates of each kernel stay; failed ones, proposals and damaged lines go. stale: logs of other
    fingerprints and TVM versions go. Raises InputError where the target has no log.
    """
    folders = of_target(root, target)
    gone = stale_folders(folders) if stale else {}
    changes = []
    for folder in folders:
        with store.lock(folder):
            if folder in gone:
                changes.append(Change(folder, 0, -_count(folder), gone=True))
                _delete(folder)
            elif top is not None:
                own = store.read(folder)
                changes.append(_replace(folder, own, compacted([own], top, proposals=False)))
    return changes


def _count(folder: Path) -> int:
    with contextlib.suppress(InputError):  # of a log that cannot be read at all
        return len(store.read(folder).records)
    return 0


def _delete(folder: Path) -> None:
    """Take away a log with what was learned from it; the file first, by which a reader knows the folder."""
    (folder / store.LOG).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # there are other logs of the target
        folder.parent.rmdir()


def transfer(root: Path, source: str, place: Path, top: int) -> Change:
    """Propose the best schedules of one target's kernels to the log in `place`, whose next tuning run tries them first.

    Raises InputError where the source has no records of this TVM version, or is the log itself.
    """
    folders = [folder for folder in _of_this_tvm(root, source) if folder.resolve() != place.resolve()]
    if not folders:
        raise InputError(f"target {source} has no records in {root} but those that are to be added to")
    best = compacted([store.read(folder) for folder in folders], top, proposals=False)
    with store.lock(place):
        own = store.read(place)
        known = {(r.kernel, r.trace) for r in own.records} | {(p.kernel, p.trace) for p in own.proposals}
        new: list[Line] = []
        for line in best:
            if isinstance(line, Kernel) and line.id not in own.kernels:
                new.append(line)
            elif isinstance(line, Record) and (line.kernel, line.trace) not in known:
                new.append(Proposal(line.kernel, line.trace, source))
    added = sum(isinstance(line, Proposal) for line in new)
    if added:
        file = store.LogFile(place)
        file.append(new)
        file.sync()
    return Change(place, len(own.records), added)
