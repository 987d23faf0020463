"""An artifact: the folder that a build leaves, described by its `manifest.json`.

```
model.h  tvm_deploy.h     what a program includes
libmodel.so               what it links
model_example.c           a program to start from
src/                      the call sequence as C, the weights, the kernels' object
arena.svg                 what lies where in the arena, call by call
manifest.json             what is in here, from what, for what, and what was measured of it
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy import files
from deploy.errors import InputError
from deploy.model_spec import TensorSpec

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
REQUIRED = (
    "name", "prefix", "library", "arena_alignment", "model", "target", "threads", "inputs", "outputs", "operators",
    "macs", "kernels", "versions", "sizes", "files",
)  # fmt: skip


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the manifest, by relative path."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def manifest_text(facts: Mapping[str, Any]) -> str:
    """The manifest as stable, readable JSON."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **facts}, indent=2, sort_keys=True) + "\n"


def spec_facts(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Tensor specifications for the manifest."""
    return [asdict(spec) for spec in specs]


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk; `facts` is the manifest."""

    path: Path
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """The artifact in folder `path`. Raises InputError where it is none, or is of another version."""
        manifest = path / MANIFEST
        try:
            facts = json.loads(manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} is no artifact: it has no {MANIFEST}; make one with `tvm-deploy build`") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{manifest} cannot be read: {error}; build the artifact again") from None
        version = facts.get("schema_version") if isinstance(facts, dict) else None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{manifest} has schema_version {version}, this program reads {SCHEMA_VERSION}; build it again"
            )
        if missing := [name for name in REQUIRED if name not in facts]:
            raise InputError(f"{manifest} lacks {', '.join(missing)}; build the artifact again")
        return cls(path, facts)

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.facts["name"])

    @property
    def prefix(self) -> str:
        """What the C names of the model begin with."""
        return str(self.facts["prefix"])

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.path / str(self.facts["library"])

    @property
    def arena_bytes(self) -> int:
        """Bytes of memory that a call needs."""
        return int(self.facts["sizes"]["arena_bytes"])

    @property
    def arena_alignment(self) -> int:
        """What the arena's address is a multiple of."""
        return int(self.facts["arena_alignment"])

    def _specs(self, role: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in self.facts[role])

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes, in order."""
        return self._specs("inputs")

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives, in order."""
        return self._specs("outputs")

    def check_files(self) -> None:
        """Raise InputError where a file was changed or removed since the build; a program built beside it may stay."""
        expected, found = self.facts["files"], file_hashes(self.path)
        differing = sorted(name for name, digest in expected.items() if found.get(name) != digest)
        if differing:
            raise InputError(f"{self.path}: {', '.join(differing)} changed since the build; build the artifact again")

    def with_facts(self, **more: Any) -> Artifact:
        """The same artifact with `more` in its manifest, on disk too."""
        facts = {**self.facts, **more}
        files.write_text(self.path / MANIFEST, manifest_text(facts))
        return Artifact(self.path, facts)
