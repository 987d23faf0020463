"""Writing files and folders so that a reader sees the old or the new one whole, never a half.

Everything is built under `.<name>.tmp-<random>` beside its final name and renamed. The builder holds a lock (flock) on
what it builds; a temporary without a lock is the left-over of a crashed run and the next run removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from deploy.errors import DeployError, InputError, ToolError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
         errno.EFBIG: "the file would be larger than the limit of this system or shell (ulimit -f)"}  # fmt: skip
_DENIED = {errno.EACCES: "permission denied", errno.EPERM: "operation not permitted",
           errno.EROFS: "the file system is read-only"}  # fmt: skip
_UNFIT = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EBUSY, errno.ELOOP}


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to the file `path` atomically, creating its folder; returns the path with links resolved.

    A device or a pipe (/dev/null, /dev/stdout) is written directly.

    Raises InputError: the folder cannot be written to, or `path` is a folder; ToolError: disk full or I/O error.
    Nothing is left behind on failure, and an existing file keeps its contents.
    """
    target = _resolved(path)
    with _translated(target), _parents(target.parent):
        if target.is_dir():
            raise InputError(f"cannot write {target}: it is a folder; give the name of a file")
        if target.exists() and not target.is_file():
            with open(target, "wb") as stream:
                stream.write(data)
            return target
        _remove_leftovers(target)
        with _locked_temporary(target, folder=False) as (temporary, descriptor):
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            os.replace(temporary, target)
        _sync_folder(target.parent)
    return target


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8; otherwise as `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, marker: str) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the name `path` when the block ends without an exception.

    marker: the name of a file (for example "manifest.json") that the finished folder must hold. A folder that is
    already called `path` is replaced only if it is empty or holds the marker too: a slip of the hand in `--out` must
    not delete somebody's work.

    Raises InputError: `path` is a file, another folder, or its parent cannot be written to; ToolError: disk full or
    I/O error. On any exception nothing is left behind and the old folder stays.
    """
    target = _resolved(path)
    with _translated(target), _parents(target.parent):
        _remove_leftovers(target)
        _check_replaceable(target, marker)
        with _locked_temporary(target, folder=True) as (temporary, _):
            yield temporary
            if not (temporary / marker).is_file():
                raise RuntimeError(f"the folder built for {target} has no {marker}")
            _sync_tree(temporary)
            _swap(temporary, target)
        _sync_folder(target.parent)


def check_directory(path: str | os.PathLike[str], *, marker: str) -> None:
    """Raise InputError now where `atomic_directory` would refuse `path` after hours of work that its folder is for."""
    target = _resolved(path)
    _check_replaceable(target, marker)
    existing = next(parent for parent in target.parents if parent.exists())
    if not existing.is_dir():
        raise InputError(f"cannot write {target}: {existing} is not a folder; give another name")
    if not os.access(existing, os.W_OK | os.X_OK):
        read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
        reason = _DENIED[errno.EROFS if read_only else errno.EACCES]
        raise InputError(f"cannot write {target}: {reason}; give a folder that you may write to")


def _resolved(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InputError(f"{text!r} is not a path: give the name of a file or folder to write")
    target = Path(os.path.realpath(text))
    if not target.name:
        raise InputError(f"cannot write {text}: it is the root folder; give a name inside a folder")
    return target


def _check_replaceable(target: Path, marker: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"cannot write the folder {target}: a file has that name; remove it or give another name")
    if os.listdir(target) and not (target / marker).is_file():
        raise InputError(
            f"will not replace the folder {target}: it holds other files (no {marker}); give a new or empty folder"
        )


@contextlib.contextmanager
def _locked_temporary(target: Path, *, folder: bool) -> Iterator[tuple[Path, int]]:
    """Create and lock a temporary file or folder beside `target`; on exit remove whatever still has its name."""
    while True:
        temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
        if folder:
            temporary.mkdir()
            flags = os.O_RDONLY | os.O_DIRECTORY
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except FileNotFoundError:
            if not folder:
                raise
            continue  # another run took it for a left-over before we could lock it
        with contextlib.suppress(OSError):  # a file system without locks: nobody will take ours for a left-over there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            break
        os.close(descriptor)
    try:
        yield temporary, descriptor
    finally:
        with contextlib.suppress(OSError):  # after a successful rename there is nothing; never hide the first error
            _remove(temporary)
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove temporaries of crashed runs; give back the old folder if the crash fell between the two renames."""
    if not target.parent.is_dir():
        return
    ours = re.compile(rf"\.{re.escape(target.name)}\.(tmp|old)-[0-9a-f]{{8}}")
    for entry in sorted(os.listdir(target.parent)):
        match = ours.fullmatch(entry)
        if match is None:
            continue
        found = target.with_name(entry)
        try:
            descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if match[1] == "old" and not target.exists():
                os.rename(found, target)
            else:
                _remove(found)
        except OSError:
            pass  # another run is at work on it, or it is not ours to remove
        finally:
            os.close(descriptor)


def _swap(temporary: Path, target: Path) -> None:
    """Give `temporary` the name `target`. Between the two renames the name is free, never half filled."""
    try:
        os.rename(temporary, target)  # all there is to do if the name is free or an empty folder has it
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(target, old)
        try:
            os.rename(temporary, target)
        except BaseException:
            os.rename(old, target)
            raise
        _remove(old)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Create `folder` and its parents; on failure remove those that were created."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    created: list[Path] = []
    try:
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            created.append(parent)
        yield
    except BaseException:
        for parent in reversed(created):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder; the rename still happened
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            if stat.S_ISREG(os.lstat(os.path.join(root, name)).st_mode):
                descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        _sync_folder(Path(root))


@contextlib.contextmanager
def _translated(target: Path) -> Iterator[None]:
    """Turn an OSError about `target`, its parents or its temporary into one sentence; others pass."""
    try:
        yield
    except OSError as error:
        if not _concerns(error, target):
            raise
        raise _explained(error, target) from error


def _concerns(error: OSError, target: Path) -> bool:
    if error.filename is None:  # a failed write: a full disk is ours to explain, a broken socket of the caller's is not
        return error.errno in _FULL or error.errno == errno.EIO
    name, parent = Path(os.fsdecode(error.filename)), target.parent
    return name.is_relative_to(parent) or parent.is_relative_to(name)


def _explained(error: OSError, target: Path) -> DeployError:
    code = error.errno or 0
    if code in _FULL:
        return ToolError(f"cannot write {target}: {_FULL[code]}; free some space or give another place")
    if code in _DENIED:
        return InputError(f"cannot write {target}: {_DENIED[code]}; give a folder that you may write to")
    reason = (error.strerror or str(error)).lower()
    if code in _UNFIT:
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        return InputError(f"cannot write {target}: {reason}{where}; give another name")
    return ToolError(f"cannot write {target}: {reason}")
