"""An artifact → a project of another build system, in a folder that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from deploy import files
from deploy.artifact import Artifact
from deploy.errors import InputError
from deploy.firmware.export_cmake import cmake
from deploy.firmware.export_libraries import arduino, platformio
from deploy.firmware.export_mlf import mlf
from deploy.firmware.export_parts import MARKER, Project, Tree, tree_paths
from deploy.firmware.export_zephyr import zephyr
from deploy.units import did_you_mean

FORMATS: Mapping[str, Callable[[Project], Tree]] = {
    "cmake": cmake,
    "zephyr": zephyr,
    "arduino": arduino,
    "platformio": platformio,
    "mlf": mlf,
}
_OF_SHARED = ("cmake",)


def export(artifact: Artifact, kind: str, out: Path) -> Path:
    """Write `artifact` as a project of `kind`, one of FORMATS, into the folder `out`, which this returns.

    An export that is already there is replaced. Raises InputError: an unknown kind, one that takes firmware only, an
    artifact that was changed since it was built, or a folder that cannot be written; ToolError: the disk is full.
    """
    if kind not in FORMATS:
        raise InputError(f'the format "{kind}" is not one of {", ".join(FORMATS)}{did_you_mean(kind, FORMATS)}')
    artifact.check_files()
    project = Project(artifact)
    if not project.is_firmware and kind not in _OF_SHARED:
        raise InputError(
            f"{artifact.path} is a shared library for Linux, and {kind} takes firmware; "
            "export it as cmake, or build it for a firmware target"
        )
    tree = FORMATS[kind](project)
    with files.atomic_directory(out, marker=MARKER) as folder:
        for path, content in zip(tree_paths(tree), tree.values(), strict=True):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    return out
