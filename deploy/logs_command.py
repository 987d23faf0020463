"""`tvm-deploy logs ACTION`: arguments → what to print, and the exit code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import InputError
from deploy.tuning import listing, log_edit, log_plot, log_verify, store
from deploy.tuning.log_edit import Change

if TYPE_CHECKING:
    from argparse import Namespace

Said = tuple[str, int]  # what to print, and the exit code


def run(args: Namespace) -> Said:
    """Carry out one action on tuning logs. Raises InputError for what is wrong with it, ToolError as the files do."""
    return ACTIONS[args.action or "list"](args)


def _list(args: Namespace) -> Said:
    return listing.render_logs(args.logs), 0


def _show(args: Namespace) -> Said:
    return listing.render_kernels(args.logs, args.target), 0


def _best(args: Namespace) -> Said:
    return listing.render_best(args.logs, args.target), 0


def _merge(args: Namespace) -> Said:
    return "\n".join(map(_told, log_edit.merge(args.logs, args.sources))), 0


def _export(args: Namespace) -> Said:
    changes = log_edit.export(args.logs, args.target, args.out, args.top)
    return "\n".join(f"{_told(change)}, {_size(change.folder)}" for change in changes), 0


def _prune(args: Namespace) -> Said:
    if args.top is None and not args.stale:
        raise InputError("say what to drop: --top N leaves the N best candidates of each kernel, --stale drops logs of "
                         "other fingerprints and TVM versions")  # fmt: skip
    changes = log_edit.prune(args.logs, args.target, args.top, args.stale)
    return "\n".join(map(_told, changes)) or f"nothing to drop: no log of target {args.target} is stale", 0


def _told(change: Change) -> str:
    if change.gone:
        return f"{change.folder}: dropped, with {-change.more} records"
    more = f"{change.more} more" if change.more > 0 else f"{-change.more} dropped" if change.more else "none new"
    return f"{change.folder}: {change.records} records, {more}"


def _size(folder: Path) -> str:
    return f"{(folder / store.LOG).stat().st_size / 1024:.1f} KiB"


def _verify(args: Namespace) -> Said:
    if args.target is not None:
        folders = listing.of_target(args.logs, args.target)
    else:
        folders = [folder for folder in store.folders(args.logs) if (folder / store.LOG).is_file()]
    lines, sound = [], True
    for folder in folders:
        found = log_verify.repair(folder) if args.repair else log_verify.verify(folder)
        sound = sound and not found.unusable and (args.repair or found.sound)
        what = f"{len(found.damaged)} of {found.lines} lines damaged{', now taken out' if args.repair else ''}"
        lines.append(f"{folder}: {found.records} records, {what if found.damaged else 'sound'}")
        lines += [f"  line {number}: {reason}" for number, reason in found.damaged]
        if found.unusable:
            lines[-1] = found.unusable
    if not folders:
        lines.append(f"no tuning logs in {args.logs}")
    elif not args.repair and any("  line" in line for line in lines):
        lines.append("`tvm-deploy logs verify --repair` takes damaged lines out")
    return "\n".join(lines), 0 if sound else 1


def _transfer(args: Namespace) -> Said:
    from deploy.targets import load_target

    target = load_target(args.to)
    if args.threads is not None:
        target = replace(target, threads=args.threads)
    place = store.folder_for(args.logs, target)
    change = log_edit.transfer(args.logs, args.source, place, args.top)
    if not change.more:
        return f"nothing new in the log of {args.source} for {target.name}", 0
    return f"{change.folder}: {change.more} schedules, which the next tuning run of {target.name} measures first", 0


def _plot(args: Namespace) -> Said:
    return str(log_plot.plot(args.logs, args.target, args.out or Path(f"{args.target}.svg"))), 0


ACTIONS: dict[str, Callable[[Namespace], Said]] = {
    "list": _list, "show": _show, "best": _best, "merge": _merge, "export": _export, "prune": _prune,
    "verify": _verify, "transfer": _transfer, "plot": _plot,
}  # fmt: skip
