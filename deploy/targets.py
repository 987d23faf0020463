"""Target files: finding them by name, resolving `extends`, and what is shipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from deploy import target, units, yaml_source
from deploy.errors import InputError
from deploy.stopping import Stopping
from deploy.target import Target
from deploy.yaml_source import Node

SUFFIXES = (".yaml", ".yml")
_OWN_KEYS = ("name", "description")  # Never inherited.


class TargetInfo(NamedTuple):
    """A target file as a listing shows it; `problem` says why it cannot be read and is empty otherwise."""

    name: str
    description: str
    path: Path
    problem: str


def shipped_directory(name: str) -> Path:
    """Return the directory "targets" or "tuning_logs" that comes with this package.

    Inside the package it is a link to the one at the top of the checkout, and in an installed wheel a copy of it.
    """
    return (Path(__file__).resolve().parent / f"{name}_data").resolve()


def search_directories() -> tuple[Path, ...]:
    """Return where targets are looked for by name: `targets` in the working directory, then the shipped ones."""
    own, shipped = Path("targets"), shipped_directory("targets")
    return (shipped,) if own.resolve() == shipped else (own, shipped)


def find(name_or_path: str, directories: Iterable[Path]) -> Path:
    """Return the file of a target given by name, or by path (with a "/" or ending in .yaml).

    Raises InputError when there is none, with the names there are and the nearest.
    """
    folders = list(directories)
    if "/" in name_or_path or name_or_path.endswith(SUFFIXES):
        return Path(name_or_path)  # Whether it exists is found out when it is read.
    files = _files(folders)
    if name_or_path not in files:
        hint = units.did_you_mean(name_or_path, files)
        known = ", ".join(sorted(files)) or "none"
        raise InputError(f'there is no target "{name_or_path[:80]}"; known: {known}{hint} (or give a file\'s path)')
    return files[name_or_path]


def load_target(name_or_path: str) -> Target:
    """Return the target of this name or in this file; InputError (`file:line: ...`) when it is wrong or missing."""
    return load_target_file(find(name_or_path, search_directories()), search_directories())


def in_portable_c(given: Target) -> Target:
    """Return the target with C99 for any compiler in place of machine code: one thread, no vectors, not tuned."""
    kept = tuple((key, value) for key, value in given.tvm_options if key in ("mcpu", "mtriple"))
    return replace(given, tvm_options=(("kind", "c"), *kept), explicit_vector_bits=32, threads=1, tuning=Stopping(0))


def load_target_file(path: Path, directories: Iterable[Path]) -> Target:
    """Return the target in `path`; one it extends is looked for next to it and then in `directories`."""
    node = yaml_source.load(path)
    entries = node.mapping("a target", target.KEYS)
    if "extends" in entries:
        node = merge(_base(entries["extends"], path, directories), node)
    loaded = target.from_node(node)
    if loaded.name != path.stem:
        raise entries["name"].error(f'the name is "{loaded.name}" but the file is called {path.name}; make them agree')
    return loaded


def list_targets() -> tuple[TargetInfo, ...]:
    """Return the targets that can be given by name, sorted; a file that is not a target is listed with its problem."""
    return tuple(_info(name, path) for name, path in sorted(_files(search_directories()).items()))


def merge(base: Node, child: Node) -> Node:
    """Return the target `child` that extends `base`: its keys win, mappings are merged key by key, null removes a key.

    `device`, `power` and `tvm` of another kind replace those of the base as a whole. Places stay those of the files the
    values come from.
    """
    merged = {key: node for key, node in base.mapping("a target", target.KEYS).items() if key not in _OWN_KEYS}
    for key, node in child.mapping("a target", target.KEYS).items():
        if key == "extends":
            continue
        merged[key] = _merge_entry(merged[key], node) if key in merged else node
    kept = {key: node for key, node in merged.items() if node.value is not None}
    return Node(kept, child.source, child.line)


def _merge_entry(base: Node, child: Node) -> Node:
    if not isinstance(base.value, dict) or not isinstance(child.value, dict):
        return child
    kind, other = child.value.get("kind"), base.value.get("kind")
    if kind is not None and other is not None and kind.value != other.value:
        return child
    entries = {**base.value, **child.value}
    return Node({key: node for key, node in entries.items() if node.value is not None}, child.source, child.line)


def _base(extends: Node, path: Path, directories: Iterable[Path]) -> Node:
    """The file that `path` extends, as a node."""
    name = extends.text("extends")
    if "/" in name or name.endswith(SUFFIXES):
        file = path.parent / name
    else:
        others = {path.parent: None, **dict.fromkeys(directories)}
        file = extends.placing(lambda: find(name, others))
    if file.resolve() == path.resolve():
        raise extends.error("a target cannot extend itself")
    base = extends.placing(lambda: yaml_source.load(file))
    further = base.mapping("a target", target.KEYS).get("extends")
    if further is not None:
        raise extends.error(f"{name} itself extends {further.shown()}; only one level is allowed, extend that instead")
    return base


def _files(directories: Iterable[Path]) -> dict[str, Path]:
    """Target files by name; an earlier directory wins."""
    found: dict[str, Path] = {}
    for directory in directories:
        try:
            paths = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES)
        except OSError:
            continue  # No such directory is the usual case for ./targets.
        for path in paths:
            found.setdefault(path.stem, path)
    return found


def _info(name: str, path: Path) -> TargetInfo:
    try:
        entries = yaml_source.load(path).mapping("a target", target.KEYS)
        if "description" not in entries:
            return TargetInfo(name, "", path, f'{path}: the target has no "description", which it needs')
        return TargetInfo(name, entries["description"].text("description"), path, "")
    except InputError as error:
        return TargetInfo(name, "", path, str(error))
