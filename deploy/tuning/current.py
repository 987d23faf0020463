"""Which logs this version of TVM and a target as it is now make use of; all others are stale."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from deploy.errors import InputError
from deploy.target import Target
from deploy.targets import load_target
from deploy.tuning import store

MOST_THREADS = 128


def fingerprints(target: Target) -> frozenset[str]:
    """Those of a target with any number of threads, which is often given on the command line."""
    counts = {target.threads, *range(1, MOST_THREADS + 1)}
    return frozenset(replace(target, threads=count).fingerprint() for count in counts)


def stale_folders(folders: list[Path]) -> dict[Path, str]:
    """Those of `folders` whose records nobody uses, with the reason.

    A log of a target that has no file (any more) is stale only if it is of another TVM.
    """
    known: dict[str, frozenset[str] | None] = {}
    found = {}
    for folder in folders:
        identity = store.identity(folder)
        if identity is None:
            continue
        if identity.target not in known:
            try:
                known[identity.target] = fingerprints(load_target(identity.target))
            except InputError:
                known[identity.target] = None
        current = known[identity.target]
        if identity.tvm != version("apache-tvm"):
            found[folder] = f"of TVM {identity.tvm}"
        elif current is not None and identity.fingerprint not in current:
            found[folder] = "of another fingerprint"
    return found


def stale_note(target: Target, root: Path) -> str:
    """What to tell where the records of a target under `root` are all of another fingerprint or TVM; else nothing.

    Raises InputError where a log cannot be read.
    """
    own = store.folder_for(root, target)
    if target.tvm["kind"] == "c":
        return ""  # its kernels are never tuned
    others = [path for path in store.folders(root) if path.parent.name == target.name and path.name != own.name]
    if not others or store.read(own).records:
        return ""
    count = sum(len(store.read(path).records) for path in others)
    if not count:
        return ""
    are, number = ("is", "1 record") if count == 1 else ("are", f"{count} records")
    return (
        f"{number} of target {target.name} in {root} {are} of another fingerprint or TVM version and {are} not used; "
        "`tvm-deploy logs` lists them"
    )
