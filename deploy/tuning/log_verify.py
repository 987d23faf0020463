"""Finding the damaged lines of tuning logs, and taking them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy import files
from deploy.errors import InputError
from deploy.tuning import store
from deploy.tuning.log_lines import Proposal, Record, parse, unpack


@dataclass(frozen=True)
class Verified:
    """What one log holds, and what is wrong with it: numbers of lines, from 1, with the reason.

    unusable: why nothing of it can be used, or "".
    """

    folder: Path
    lines: int
    records: int
    damaged: tuple[tuple[int, str], ...]
    unusable: str = ""

    @property
    def sound(self) -> bool:
        """Whether everything in it can be read."""
        return not self.damaged and not self.unusable


def verify(folder: Path) -> Verified:
    """Check every line of a log: its checksum, that it says something, and that its trace can be unpacked.

    Raises InputError where the file cannot be read.
    """
    try:
        lines = (folder / store.LOG).read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read the tuning log {folder / store.LOG}: {error.strerror or error}") from None
    damaged = tuple((n, reason) for n, text in enumerate(lines, 1) if text and (reason := _wrong(text)))
    try:
        return Verified(folder, sum(map(bool, lines)), len(store.read(folder).records), damaged)
    except InputError as error:
        return Verified(folder, sum(map(bool, lines)), 0, (), str(error))


def _wrong(text: bytes) -> str:
    """What is wrong with a line, or nothing."""
    try:
        line = parse(text)
        if isinstance(line, Record | Proposal):
            unpack(line.trace)
    except ValueError as error:
        return str(error)
    return ""


def repair(folder: Path) -> Verified:
    """Take the damaged lines out of a log and leave the others as they are; what was found.

    Raises InputError or ToolError where the file cannot be read or written.
    """
    with store.lock(folder):
        found = verify(folder)
        if found.damaged:
            lines = (folder / store.LOG).read_bytes().split(b"\n")
            files.write_bytes(folder / store.LOG, b"".join(t + b"\n" for t in lines if t and not _wrong(t)))
    return found
