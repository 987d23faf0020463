"""ONNX files: checked before anything is allocated, weights from the model's own folder only, shapes made static."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import InputError
from deploy.model_external import read_external
from deploy.model_qlinear import as_qdq
from deploy.model_spec import DTYPES, Dim, TensorSpec, check_overrides, check_size, one_line, static_shape

# A protocol buffer is at most 2 GiB, and so is a model with its weights inside.
MAX_MODEL_BYTES = 2**31 - 1

# Larger results of constant folding stay operators: they would only make the library bigger.
FOLD_LIMIT_BYTES = 2**26

_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True)
class OnnxModel:
    """A loaded model: `simplified` is what gets imported, `original` what was given (static shapes, weights inside)."""

    simplified: Any
    original: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def parse(data: bytes) -> Any:
    """`data` as an onnx.ModelProto. Raises InputError (a sentence without the path)."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, which has no type stubs
        raise InputError(f"is not an ONNX model, or a damaged one ({one_line(error)}).") from None
    if not model.ir_version or not model.HasField("graph") or not model.graph.output:
        raise InputError("is not an ONNX model, or a damaged one (no graph in it).")
    return model


def complete(model: Any, folder: Path | None) -> bytes:
    """Check the sizes of `model`'s constants and read the external ones into it, from files inside `folder` only.

    Returns a digest of what was read, empty when nothing was external. Raises InputError (a sentence without the path).
    """
    _check_tensors(model)
    return _inline_external(model, folder)


def prepare(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> OnnxModel:
    """Fix the shapes of a complete `model` (in place) and simplify it. Raises InputError (without the path)."""
    import onnx
    import onnx.inliner

    if model.ByteSize() > MAX_MODEL_BYTES:
        raise InputError("has more than 2 GiB of weights, which is more than an ONNX model in memory can have.")
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _fix_inputs(model, shapes)
        inferred = _infer(model)
        _check_inferred(inferred)
        quantized = as_qdq(inferred)
        if quantized is not inferred:  # onnx infers nothing behind operators that it does not know
            quantized = _infer(quantized)
            _check_inferred(quantized)
        simplified = _infer(_simplify(quantized))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise InputError(f"is not a valid ONNX model: {one_line(error)}.") from None
    inputs = tuple(_input_spec(value) for value in _real_inputs(simplified))
    outputs = tuple(_output_spec(value) for value in simplified.graph.output)
    return OnnxModel(simplified, inferred, inputs, outputs)


def dtype_name(elem_type: int) -> str | None:
    """An ONNX element type as in `DTYPES`, or None for those that no library can hold."""
    import onnx

    try:
        name = onnx.TensorProto.DataType.Name(elem_type)
    except ValueError:
        return None
    name = {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
    return name if name in DTYPES else None


def tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto in `model`: initializers and attributes, also in subgraphs and functions."""
    stack = [model.graph, *model.functions]
    while stack:
        graph = stack.pop()
        if hasattr(graph, "initializer"):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)


def _check_tensors(model: Any) -> None:
    """Declared sizes against stored bytes, before anything is allocated by them."""
    import onnx

    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise InputError(f"has a sparse initializer ('{name}'); store weights as dense tensors.")
    for tensor in tensors(model):
        name = tensor.name or "(unnamed constant)"
        if tensor.data_type == onnx.TensorProto.STRING and len(tensor.string_data) == math.prod(tensor.dims):
            continue  # only harmful where an operator uses it, and then the import names that operator
        dtype = dtype_name(tensor.data_type)
        if dtype is None:
            allowed = ", ".join(DTYPES)
            raise InputError(f"has a constant '{name}' of ONNX type {tensor.data_type}; allowed are {allowed}.")
        if any(size < 0 for size in tensor.dims):
            raise InputError(f"has a constant '{name}' with a negative dimension: {list(tensor.dims)}.")
        if all(tensor.dims):
            check_size(name, tensor.dims, dtype)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            _check_stored(name, tensor, math.prod(tensor.dims), DTYPES[dtype])


def _check_stored(name: str, tensor: Any, count: int, itemsize: int) -> None:
    if tensor.HasField("raw_data"):
        declared, stored, unit = count * itemsize, len(tensor.raw_data), "bytes"
    else:
        declared, stored, unit = count, max(len(getattr(tensor, field)) for field in _TYPED_FIELDS), "values"
    if declared != stored:
        raise InputError(f"declares {declared} {unit} for constant '{name}', but stores {stored}; the file is damaged.")


def _inline_external(model: Any, folder: Path | None) -> bytes:
    import onnx

    total, digest = 0, hashlib.sha256()
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype = dtype_name(tensor.data_type)
        if dtype is None:
            raise InputError(f"keeps strings '{tensor.name}' in an external file; allowed are numbers.")
        nbytes = math.prod(tensor.dims) * DTYPES[dtype]
        total += nbytes
        if total > MAX_MODEL_BYTES:
            raise InputError("has more than 2 GiB of weights, which is more than an ONNX model in memory can have.")
        tensor.raw_data = read_external(tensor.name, entries, folder, nbytes)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
        digest.update(tensor.raw_data)
    return digest.digest() if total else b""


def _real_inputs(model: Any) -> list[Any]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _dims(value: Any) -> list[Dim]:
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else (dim.dim_param or None)
        for dim in value.type.tensor_type.shape.dim
    ]


def _fix_inputs(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    values = _real_inputs(model)
    for value in values:
        if not value.type.HasField("tensor_type"):
            raise InputError(f"has an input '{value.name}' that is not a tensor; inputs are tensors.")
        if not value.type.tensor_type.HasField("shape"):
            if value.name not in shapes:
                flag = f"--shape '{value.name}=1,3,224,224'"
                raise InputError(f"gives input '{value.name}' no shape; give it, for example {flag}.")
            for _ in shapes[value.name]:
                value.type.tensor_type.shape.dim.add()
    check_overrides(shapes, {value.name: len(_dims(value)) for value in values})
    for value in values:
        fixed = shapes.get(value.name) or static_shape(value.name, _dims(value))
        for dim, size in zip(value.type.tensor_type.shape.dim, fixed, strict=True):
            dim.dim_value = size
    if shapes:  # recorded shapes of the rest belong to the old sizes
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")


def _infer(model: Any) -> Any:
    import onnx

    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _check_inferred(model: Any) -> None:
    """A few bytes can ask for a huge tensor (ConstantOfShape, Expand, Tile): refuse before it is evaluated."""
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        dtype, dims = dtype_name(value.type.tensor_type.elem_type), _dims(value)
        if dtype is not None:
            check_size(value.name, [size if isinstance(size, int) else 1 for size in dims], dtype)


def _simplify(model: Any) -> Any:
    """Constants folded and shapes static, by onnxslim; large folded constants are left as operators."""
    import onnx
    import onnxslim

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            simplified = onnxslim.slim(copy, size_threshold=FOLD_LIMIT_BYTES)
    except Exception:  # any failure of an optional rewriting: the model itself was found valid, so go on with it
        return model
    if [value.name for value in simplified.graph.output] != [value.name for value in model.graph.output]:
        return model
    inputs = _real_inputs(model)  # inputs that nothing uses are still the caller's to give
    del simplified.graph.input[:]
    simplified.graph.input.extend(inputs)
    return simplified


def _input_spec(value: Any) -> TensorSpec:
    return TensorSpec(value.name, static_shape(value.name, _dims(value)), _value_dtype("input", value))


def _output_spec(value: Any) -> TensorSpec:
    dtype = _value_dtype("output", value)
    if not value.type.tensor_type.HasField("shape"):
        raise InputError(f"has an output '{value.name}' whose shape cannot be inferred; declare it in the model.")
    dims = _dims(value)
    for axis, size in enumerate(dims):
        if not isinstance(size, int):
            called = f" ('{size}')" if size else ""
            raise InputError(
                f"has an output '{value.name}' whose dimension {axis}{called} depends on the values of the input; "
                "ahead-of-time code needs fixed sizes, so end the model before that operator."
            )
    return TensorSpec(value.name, tuple(size for size in dims if isinstance(size, int)), dtype)


def value_spec(value: Any) -> TensorSpec | None:
    """`value` (a ValueInfoProto) as a tensor that a library can return, or None when it is not one."""
    tensor, dims = value.type.tensor_type, _dims(value)
    dtype = dtype_name(tensor.elem_type)
    if dtype is None or not tensor.HasField("shape") or not all(isinstance(size, int) for size in dims):
        return None
    return TensorSpec(value.name, tuple(size for size in dims if isinstance(size, int)), dtype)


def _value_dtype(kind: str, value: Any) -> str:
    dtype = dtype_name(value.type.tensor_type.elem_type) if value.type.HasField("tensor_type") else None
    if dtype is None:
        raise InputError(f"has an {kind} '{value.name}' that is not a tensor of {', '.join(DTYPES)}.")
    return dtype
