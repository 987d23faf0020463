"""Where tuning logs lie and how their files are read and added to, without TVM. `log_lines` says what is in them.

```
tuning_logs/<target>/<fingerprint>-tvm<version>/log.jsonl         records of other ones have other folders
                                               /cost_model.npz    what was learned from them
```

Several processes may add to a log at once: each adds whole lines with one write, under a lock that is held no longer
than that, and sees what the others added. A process that is killed in the middle, or a power cut, leaves half a line at
most: the next line begins a new one, readers leave the half out, and `verify` finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from deploy import files
from deploy.errors import InputError, ToolError
from deploy.target import Target
from deploy.tuning.log_lines import Header, Kernel, Line, NewerFormatError, Proposal, Record, parse, render

FAILED_S = 1e10  # what MetaSchedule takes for the time of a candidate that failed
LOG, COST_MODEL = "log.jsonl", "cost_model.npz"
OLD_FILES = ("workloads.json", "records.json")  # of the first version, MetaSchedule's own
LOCK_S, POLL_S = 30.0, 0.005
_FOLDER = re.compile(r"(?P<fingerprint>[0-9a-f]+)-tvm(?P<tvm>.+)")


@dataclass(frozen=True)
class Contents:
    """What a log holds; kernels by id. `damaged`: the lines that cannot be used, by number from 1, with the reason."""

    kernels: dict[str, Kernel]
    records: tuple[Record, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    damaged: tuple[tuple[int, str], ...] = ()


def folder_for(root: Path, target: Target) -> Path:
    """Where a target's records lie under `root`: other fingerprints and TVM versions have other folders."""
    return root / target.name / f"{target.fingerprint()}-tvm{version('apache-tvm')}"


def kin_folders(root: Path, target: Target) -> list[Path]:
    """Logs under `root` of targets with another name that have the same code: a board and its emulator."""
    own = folder_for(root, target)
    return [path for path in folders(root) if path.name == own.name and path != own]


def cost_model_path(folder: Path) -> Path:
    """The file of the cost model that was trained on the records in `folder`."""
    return folder / COST_MODEL


def identity(folder: Path) -> Header | None:
    """Whose records a folder holds by its name; None where it is no folder of a tuning log."""
    match = _FOLDER.fullmatch(folder.name)
    return Header(folder.parent.name, match["fingerprint"], match["tvm"]) if match else None


def folders(root: Path) -> list[Path]:
    """The folders of tuning logs under `root`, by target. Raises InputError where they cannot be listed."""
    try:
        found = [path for path in root.glob("*/*") if identity(path) is not None and path.is_dir()]
    except OSError as error:
        raise InputError(f"cannot read the tuning logs in {root}: {error.strerror or error}") from None
    return sorted(found, key=lambda path: (path.parent.name, path.name))


def typical_s(run_secs: list[float]) -> float:
    """Seconds of one call, from the times of several runs: their median, as one of them may have been disturbed.

    Infinite for a candidate that failed.
    """
    seconds = median(run_secs) if run_secs else FAILED_S
    return seconds if seconds < FAILED_S / 10 else float("inf")


def read(folder: Path) -> Contents:
    """A log as it is, each line once however often it is there. A missing file is an empty log.

    Raises InputError where it cannot be read, or is another target's or a newer version's.
    """
    kernels: dict[str, Kernel] = {}
    records: dict[Record, None] = {}
    proposals: dict[Proposal, None] = {}
    damaged = []
    for number, text in enumerate(_bytes(folder / LOG)[0].split(b"\n"), 1):
        if text:
            line = _parsed(text, folder)
            if isinstance(line, str):
                damaged.append((number, line))
            elif isinstance(line, Kernel):
                kernels[line.id] = line.joined(kernels.get(line.id, line))
            elif isinstance(line, Record):
                records[line] = None
            elif isinstance(line, Proposal):
                proposals[line] = None
    return Contents(kernels, tuple(records), tuple(proposals), tuple(damaged))


def _parsed(text: bytes, folder: Path) -> Line | str:
    """What a line says, or why it cannot be used."""
    try:
        line = parse(text)
    except NewerFormatError as error:
        raise InputError(f"cannot use the tuning log {folder / LOG}: {error}; update tvm-deploy, or move it") from None
    except ValueError as error:
        return str(error)
    if isinstance(line, Header) and (wanted := identity(folder)) is not None and line != wanted:
        whose = f"{line.target} ({line.fingerprint}, TVM {line.tvm})"
        raise InputError(f"the tuning log {folder / LOG} is of target {whose}: move it where it belongs")
    return line


def _bytes(path: Path, known: tuple[int, int] = (0, 0)) -> tuple[bytes, tuple[int, int]]:
    """A file from where a reader stopped to its end, with (its inode, the place of the first byte).

    From the beginning where the file is another one, or shorter than it was.
    """
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            start = known[1] if status.st_ino == known[0] and status.st_size >= known[1] else 0
            stream.seek(start)
            return stream.read(), (status.st_ino, start)
    except FileNotFoundError:
        return b"", (0, 0)
    except OSError as error:
        raise InputError(f"cannot read the tuning log {path}: {error.strerror or error}") from None


class LogFile:
    """A log that this process follows and adds to, as others may at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = (0, 0)
        self._seen: set[int] = set()  # hashes of the lines
        self._dirty = False

    def news(self) -> list[Line]:
        """The lines that were not there when this was asked last; damaged ones are left out.

        Raises InputError where the log cannot be read, or is another target's or a newer version's.
        """
        data, (inode, start) = _bytes(self.folder / LOG, self._place)
        end = data.rfind(b"\n") + 1
        self._place = (inode, start + end)  # a last line without newline is looked at again: it may grow
        found = []
        for text in data.split(b"\n"):
            if text and (key := hash(text)) not in self._seen:
                line = _parsed(text, self.folder)
                if not isinstance(line, str):
                    self._seen.add(key)
                    found.append(line)
        return found

    def append(self, lines: Iterable[Line]) -> None:
        """Add lines, all of them or, should the disk be full, the first ones. They are safe from a power cut after
        `sync`.

        Raises ToolError where they cannot be written, or another process keeps the log locked.
        """
        data = "".join(map(render, lines)).encode()
        with lock(self.folder), _explained(self.folder):
            descriptor = os.open(self.folder / LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                data = self._before(descriptor) + data
                if os.write(descriptor, data) < len(data):
                    raise OSError(0, "only a part of a record could be written: is the disk full?")
            finally:
                os.close(descriptor)
        self._dirty = True

    def _before(self, descriptor: int) -> bytes:
        """What has to stand before new lines: the end of one that was cut off, or the log's first line."""
        size = os.fstat(descriptor).st_size
        if size:
            return b"" if os.pread(descriptor, 1, size - 1) == b"\n" else b"\n"
        header = identity(self.folder)
        return render(header).encode() if header is not None else b""

    def sync(self) -> None:
        """Have on the disk what was added. Raises ToolError where that fails."""
        if self._dirty:
            with _explained(self.folder):
                for path, flags in ((self.folder / LOG, os.O_RDONLY), (self.folder, os.O_RDONLY | os.O_DIRECTORY)):
                    descriptor = os.open(path, flags)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
            self._dirty = False


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ToolError(f"cannot add to the tuning log {folder / LOG}: {error.strerror or error}") from None


def replace(folder: Path, lines: Iterable[Line]) -> None:
    """Put other lines in the place of a log's, all or none; the caller has the lock. Raises InputError or ToolError."""
    header = identity(folder)
    head = [header] if header is not None else []
    files.write_text(folder / LOG, "".join(map(render, [*head, *lines])))


def make(folder: Path) -> None:
    """Make the folder of a log where it is missing. Raises InputError where that, or writing to it, is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "permission denied")
    except OSError as error:
        raise InputError(
            f"cannot keep a tuning log in {folder}: {error.strerror or error}; choose another folder with --logs"
        ) from None


@contextlib.contextmanager
def lock(folder: Path, wait_s: float = LOCK_S) -> Iterator[None]:
    """Keep other processes from changing the log in `folder`, which is made where it is missing, for a moment.

    Raises InputError where the folder cannot be written to, ToolError where another process has it after `wait_s`.
    """
    make(folder)
    with _explained(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _acquire(descriptor, folder, wait_s)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where another thread forks meanwhile
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ToolError(
                    f"another process has kept the tuning log {folder} locked for {wait_s:g} s: is it stopped? "
                    "End it, or choose another folder with --logs"
                ) from None
        except OSError:
            return  # a file system without locks
        time.sleep(POLL_S)
