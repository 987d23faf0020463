"""A trained model, from a file or a Python object, as a `SourceModel`: checked, with static shapes. No TVM here."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deploy import model_onnx, model_tflite, model_torch
from deploy.errors import InputError
from deploy.model_spec import DTYPES, MAX_TENSOR_BYTES, Format, SourceModel, TensorSpec, c_identifier

__all__ = ["DTYPES", "MAX_TENSOR_BYTES", "SourceModel", "TensorSpec", "c_identifier", "from_object", "load"]

Shapes = Mapping[str, tuple[int, ...]]
_NO_SHAPES: Shapes = MappingProxyType({})

# Files that people try, and what to do with them.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF", "is an HDF5 file (Keras); convert it to TFLite first"),
    (b"GGUF", "is a GGUF file (llama.cpp), which is not supported"),
    (b"\x80\x02", "is a Python pickle; export the module with torch.export.save instead"),
)


def load(path: str | Path, shapes: Shapes = _NO_SHAPES) -> SourceModel:
    """The model in the file `path`, told by its content: ONNX, TFLite or an archive of torch.export.save (.pt2).

    `shapes` fixes the shape of inputs by name (the `--shape` flag). Raises InputError for a file that is missing,
    empty, unreadable, damaged or of another format, and for a dynamic dimension that `shapes` does not fix.
    """
    file = Path(path)
    data = _read(file)
    digest = hashlib.sha256(data)
    stem = file.stem or file.name
    try:
        if model_tflite.is_tflite(data):
            return _from_tflite(data, stem, str(file), digest.hexdigest(), shapes)
        if model_torch.is_archive(data):
            return _from_torch(model_torch.load_archive(data), stem, str(file), digest.hexdigest(), shapes)
        if file.suffix.lower() in (".tflite", ".pt2", ".pt", ".pth"):
            kind = "TFLite" if file.suffix.lower() == ".tflite" else "torch.export"
            raise InputError(f"is not a {kind} file, or is damaged; copy or export it again.")
        for magic, what in _OTHERS:
            if data.startswith(magic):
                raise InputError(f"{what}.")
        proto = model_onnx.parse(data)
        digest.update(model_onnx.complete(proto, file.parent))
        return _from_onnx(proto, stem, str(file), digest.hexdigest(), shapes)
    except InputError as error:
        raise _placed(f"Model {file}", error) from None


def from_object(
    obj: Any, name: str, example_inputs: Sequence[Any] | None = None, shapes: Shapes = _NO_SHAPES
) -> SourceModel:
    """A model that is already in Python: an `onnx.ModelProto`, an `ExportedProgram`, or a `torch.nn.Module`.

    A module is exported in evaluation mode with `example_inputs`, a sequence of tensors that fix its shapes. `obj` is
    not changed. Raises InputError.
    """
    kind = type(obj).__module__.partition(".")[0]
    try:
        if kind == "onnx":
            import onnx

            if isinstance(obj, onnx.ModelProto):
                copy = onnx.ModelProto()
                copy.CopyFrom(obj)
                model_onnx.complete(copy, None)
                digest = hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()
                return _from_onnx(copy, name, None, digest, shapes)
        import torch

        if isinstance(obj, torch.nn.Module) and not isinstance(obj, torch.jit.ScriptModule):
            obj = model_torch.export(obj, example_inputs)
        if isinstance(obj, torch.export.ExportedProgram):
            return _from_torch(obj, name, None, model_torch.fingerprint(obj), shapes)
    except InputError as error:
        raise _placed(f"Model '{name}'", error) from None
    raise InputError(
        f"Model '{name}' is a {type(obj).__module__}.{type(obj).__qualname__}; "
        "give an onnx.ModelProto, a torch.nn.Module or a torch.export.ExportedProgram."
    )


def _read(file: Path) -> bytes:
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"Model {file} is a folder; give the path of an .onnx, .tflite or .pt2 file.")
        if not stat.S_ISREG(mode):
            raise InputError(f"Model {file} is not a regular file; give the path of an .onnx, .tflite or .pt2 file.")
        data = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"Model {file} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Model {file} cannot be read: {reason}.") from None
    if not data:
        raise InputError(f"Model {file} is empty; copy or export it again.")
    return data


def _placed(where: str, error: InputError) -> InputError:
    """`error` with the model named; messages of the loaders start with a verb or are sentences of their own."""
    text = str(error)
    return InputError(f"{where} {text}" if text[:1].islower() else f"{where}: {text}")


def _from_onnx(proto: Any, name: str, path: str | None, sha256: str, shapes: Shapes) -> SourceModel:
    model = model_onnx.prepare(proto, shapes)
    return _source(name, "onnx", path, sha256, (model.inputs, model.outputs), model.simplified, model.original)


def _from_tflite(data: bytes, name: str, path: str | None, sha256: str, shapes: Shapes) -> SourceModel:
    payload, inputs, outputs = model_tflite.load(data, shapes)
    return _source(name, "tflite", path, sha256, (inputs, outputs), payload)


def _from_torch(program: Any, name: str, path: str | None, sha256: str, shapes: Shapes) -> SourceModel:
    model = model_torch.prepare(program, shapes)
    return _source(name, "torch", path, sha256, (model.inputs, model.outputs), model.functional, model.original)


def _source(
    name: str,
    format_: Format,
    path: str | None,
    sha256: str,
    ends: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    payload: Any,
    original: Any = None,
) -> SourceModel:
    return SourceModel(name, c_identifier(name), format_, path, sha256, *ends, payload, original)
