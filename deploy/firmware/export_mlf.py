"""An artifact in TVM's Model Library Format, version 7, as microTVM's tools read it. Pure.

The parameters are compiled into the library; they are in `parameters/` too, as TVM stores arrays by name. There is no
`runtime/`: none is needed. `export_datetime` is when the artifact was built.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from math import prod
from typing import Any

from deploy.artifact import MANIFEST
from deploy.firmware.export_parts import Project, Tree
from deploy.model_spec import TensorSpec

VERSION = 7
_CPU = 1  # as DLPack numbers devices
_LIST_MAGIC, _ARRAY_MAGIC = 0xF7E58D4F05049CB7, 0xDD5E40F096B4A13F
_UINT = 1  # as DLPack numbers types


def mlf(project: Project) -> Tree:
    """The format's tree."""
    return {
        "metadata.json": (json.dumps(metadata(project), indent=2, sort_keys=True) + "\n").encode(),
        **project.sources("codegen/host/src"),
        **project.headers("codegen/host/include"),
        f"codegen/host/lib/{project.archive}": project.library(),
        f"parameters/{project.prefix}.params": parameters({f"{project.prefix}_weights": weights(project)}),
        **project.common("mlf", _usage(project)),
    }


def metadata(project: Project) -> dict[str, Any]:
    """`metadata.json`."""
    artifact, sizes = project.artifact, project.artifact.facts["sizes"]
    built = datetime.fromtimestamp((artifact.path / MANIFEST).stat().st_mtime, UTC)
    main = {
        "device": _CPU,
        "workspace_size_bytes": sizes["arena_bytes"] + sum(project.pools.values()),
        "constants_size_bytes": sizes["weight_bytes"],
        "io_size_bytes": sizes["io_bytes"],
        "inputs": _tensors(artifact.inputs),
        "outputs": _tensors(artifact.outputs),
    }
    module = {
        "model_name": project.prefix,
        "export_datetime": built.strftime("%Y-%m-%d %H:%M:%SZ"),
        "external_dependencies": [],
        "executors": ["aot"],
        "style": "full-model",
        "target": [project.target["tvm"]],
        "memory": {"functions": {"main": [main], "operator_functions": []}},
    }
    return {"version": VERSION, "modules": {project.prefix: module}}


def _tensors(specs: Sequence[TensorSpec]) -> dict[str, dict[str, Any]]:
    return {spec.name: {"dtype": spec.dtype, "size": spec.nbytes, "shape": list(spec.shape)} for spec in specs}


def weights(project: Project) -> bytes:
    """The model's constants as the library has them, from the numbers in src/weights.c."""
    text = project.read("src/weights.c").decode()
    numbers = re.findall(r"\d+", text[text.index("PLACED = {") :])
    return bytes(map(int, numbers))


def parameters(arrays: dict[str, bytes]) -> bytes:
    """Arrays of bytes as `tvm.runtime.load_param_dict` reads them."""
    names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    stored = b"".join(_array(data) for data in arrays.values())
    count = struct.pack("<Q", len(arrays))
    return struct.pack("<QQ", _LIST_MAGIC, 0) + count + names + count + stored


def _array(data: bytes) -> bytes:
    shape = (len(data),)
    header = struct.pack("<QQiiiBBH", _ARRAY_MAGIC, 0, _CPU, 0, len(shape), _UINT, 8, 1)
    return header + struct.pack(f"<{len(shape)}qq", *shape, prod(shape)) + data


def _usage(project: Project) -> str:
    return f"""\
TVM's Model Library Format, version {VERSION}, as a folder: `metadata.json`, the generated code, headers and library in
`codegen/host`, the parameters in `parameters` (the library has them already). There is no `runtime`: none is needed.
"""
