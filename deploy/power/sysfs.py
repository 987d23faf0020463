"""Reading one-number files of sysfs, and saying plainly what is wrong with them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from deploy.errors import DeviceError

_NUMBER = re.compile(rb"[+-]?[0-9]{1,19}")
_LONGEST = 4096  # sysfs gives at most a page


def read_int(path: Path, *, remedy: str = "run as a user who may read it") -> int:
    """Return the whole number in `path`. Raises DeviceError: gone, not permitted (with `remedy`), not a number."""
    data = _read(path, remedy).strip()
    if not _NUMBER.fullmatch(data):
        raise DeviceError(f"{path} holds {data[:40]!r}, not a whole number: the sensor or its driver is broken")
    return int(data)


def read_name(path: Path) -> str:
    """Return the text in `path` on one line, or "" if there is none to read."""
    try:
        return " ".join(_read(path, "").decode("utf-8", "replace").split())
    except DeviceError:
        return ""


def _read(path: Path, remedy: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.read(descriptor, _LONGEST)
        finally:
            os.close(descriptor)
    except PermissionError:
        raise DeviceError(f"no permission to read {path}: {remedy}") from None
    except FileNotFoundError:
        raise DeviceError(f"{path} does not exist: the sensor or its driver is not there (any more)") from None
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror or error}") from None
