"""Weights that an ONNX model keeps in a file of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import InputError


def read_external(name: str, entries: Mapping[str, str], folder: Path | None, nbytes: int) -> bytes:
    """The `nbytes` bytes of tensor `name`, whose `entries` (location, offset, length) say where they are.

    Only files inside the model's `folder` are read. Raises InputError (a sentence without the model's path).
    """
    location = entries.get("location", "")
    where = f"weights '{name}' in the external file '{location}'"
    if folder is None:
        raise InputError(f"keeps {where}; load the model from its file, or with its weights inside.")
    parts = Path(location.replace("\\", "/"))
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\0" in location or ":" in parts.parts[0]:
        raise InputError(f"keeps {where}; only files inside the model's own folder are read.")
    file = folder / parts
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"keeps {where}, a link that leads out of the model's folder; put the file itself there.")
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or nbytes)
    except ValueError:
        raise InputError(f"keeps {where} with an offset or length that is not a number.") from None
    if offset < 0 or length != nbytes:
        raise InputError(f"keeps {where} with offset {offset} and length {length}; {nbytes} bytes are declared.")
    if not file.is_file():
        raise InputError(f"keeps {where}, which is missing from {folder}; put it beside the model.")
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(nbytes)
    except OSError as error:
        raise InputError(f"keeps {where}, which cannot be read: {error.strerror}.") from None
    if len(data) != nbytes:
        raise InputError(f"keeps {where}, which is too short: {nbytes} bytes from offset {offset} are declared.")
    return data
