"""TFLite flatbuffers: a complete check in Python before any C++ sees the bytes.

The interpreter's own verifier checks offsets, not meaning: a tensor index or a constant of the wrong size that passes
it can still crash the process. So the model is parsed here, every index and size in it is checked, and what goes on is
written anew from the parsed form, which makes its offsets right by construction.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deploy.errors import InputError
from deploy.model_spec import DTYPES, Dim, TensorSpec, check_overrides, check_size, one_line, static_shape, unique

IDENTIFIER = b"TFL3"

# What the schema calls an element type, for those a library can hold.
_TYPE_NAMES = {"BOOL": "bool", **{name.upper(): name for name in DTYPES}}


def is_tflite(data: bytes) -> bool:
    """Whether `data` carries the identifier of a TFLite flatbuffer."""
    return data[4:8] == IDENTIFIER


def parse(data: bytes) -> Any:
    """The `schema.ModelT` in `data`, structure and indices checked. Raises InputError (a sentence without the path)."""
    from ai_edge_litert import schema_py_generated as schema

    if len(data) < 16 or not is_tflite(data):
        raise InputError("is not a TFLite model (identifier TFL3 missing).")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        _check_model(model)
    except (struct.error, LookupError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise _damaged(one_line(error)) from None
    return model


def pack(model: Any) -> bytes:
    """The flatbuffer of a `schema.ModelT`."""
    from ai_edge_litert import schema_py_generated as schema

    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = schema.flatbuffers.Builder(size + 65536)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def load(
    data: bytes, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[bytes, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The checked flatbuffer with static shapes, its inputs and its outputs.

    A TFLite tensor stores a concrete shape beside the signature that says which dimensions may change. A changeable
    first dimension (the batch) has its stored size; that is what every interpreter runs until told otherwise. Another
    changeable dimension is an error unless `shapes` gives the input a shape. Raises InputError.
    """
    model = parse(data)
    graph = model.subgraphs[0]
    names = unique(tensor_name(graph, index) for index in graph.inputs)
    by_name = dict(zip(names, (int(index) for index in graph.inputs), strict=True))
    check_overrides(shapes, {name: len(_shape(graph.tensors[index])) for name, index in by_name.items()})
    for name, index in by_name.items():
        tensor = graph.tensors[index]
        shape = tuple(shapes[name]) if name in shapes else static_shape(name, _signature(tensor))
        if shape != _shape(tensor):
            raise InputError(
                f"--shape gives input '{name}' the shape {list(shape)}, but the file was converted for "
                f"{list(_shape(tensor))}; convert the model again with that shape."
            )
    for tensor in graph.tensors:
        tensor.shapeSignature = None
    inputs = tuple(tensor_spec(name, graph.tensors[index]) for name, index in by_name.items())
    output_names = unique(tensor_name(graph, index) for index in graph.outputs)
    outputs = tuple(
        tensor_spec(name, graph.tensors[index]) for name, index in zip(output_names, graph.outputs, strict=True)
    )
    return pack(model), inputs, outputs


def tensor_name(graph: Any, index: int) -> str:
    """A tensor's name in the file, or one made from its index."""
    name = graph.tensors[index].name
    text = name.decode("utf-8") if isinstance(name, bytes) else name
    return text or f"tensor_{index}"


def dtype_of(tensor: Any) -> str | None:
    """A tensor's element type as in `DTYPES`, or None for those that no library can hold (strings, complex, 4-bit)."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: key for key, value in vars(schema.TensorType).items() if not key.startswith("_")}
    return _TYPE_NAMES.get(names.get(tensor.type, ""))


def tensor_spec(name: str, tensor: Any) -> TensorSpec:
    """`tensor` of the flatbuffer as an input or output. Raises InputError for a type or quantization that none has."""
    dtype = dtype_of(tensor)
    if dtype is None:
        raise InputError(f"Tensor '{name}' has TFLite type {tensor.type}; allowed are {', '.join(DTYPES)}.")
    q = tensor.quantization
    if q is None or q.scale is None or len(q.scale) == 0:
        return TensorSpec(name, _shape(tensor), dtype)
    if len(q.scale) != 1:
        raise InputError(f"Tensor '{name}' is quantized per channel; inputs and outputs have one scale.")
    zero_point = 0 if q.zeroPoint is None or len(q.zeroPoint) == 0 else int(q.zeroPoint[0])
    return TensorSpec(name, _shape(tensor), dtype, float(q.scale[0]), zero_point)


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def _signature(tensor: Any) -> list[Dim]:
    shape = _shape(tensor)
    signature = shape if tensor.shapeSignature is None else tuple(int(size) for size in tensor.shapeSignature)
    if len(signature) != len(shape):
        signature = shape
    return [None if dim < 0 and axis else size for axis, (size, dim) in enumerate(zip(shape, signature, strict=True))]


def _check_model(model: Any) -> None:
    if model.version != 3:
        raise InputError(f"is a TFLite model of schema version {model.version}; version 3 is the one in use.")
    if not model.subgraphs or not model.operatorCodes or not model.buffers:
        raise InputError("is a TFLite model without a graph, operators or buffers.")
    if any(buffer.offset or buffer.size for buffer in model.buffers):
        raise InputError("keeps weights outside its flatbuffer (a model over 2 GiB), which is not supported.")
    for graph in model.subgraphs:
        graph.tensors, graph.operators = graph.tensors or [], graph.operators or []
        graph.inputs = np.array(list(_indices(graph.inputs)), np.int32)
        graph.outputs = np.array(list(_indices(graph.outputs)), np.int32)
        for index in range(len(graph.tensors)):
            _check_tensor(model, graph, index)
        _check_order(model, graph)


def _check_tensor(model: Any, graph: Any, index: int) -> None:
    tensor, name = graph.tensors[index], tensor_name(graph, index)
    if not 0 <= tensor.buffer < len(model.buffers):
        raise _damaged(f"tensor '{name}' uses buffer {tensor.buffer} of {len(model.buffers)}")
    dtype, shape = dtype_of(tensor), _shape(tensor)
    if dtype is not None and all(size > 0 for size in shape):
        check_size(name, shape, dtype)
    if any(size < 0 for size in shape):
        raise _damaged(f"tensor '{name}' has shape {list(shape)}")
    stored = model.buffers[tensor.buffer].data
    if dtype is not None and stored is not None and len(stored) and tensor.sparsity is None:
        declared = math.prod(shape) * DTYPES[dtype]
        if len(stored) != declared:
            raise _damaged(f"tensor '{name}' declares {declared} bytes, but {len(stored)} are stored")
    _check_quantization(tensor, name, dtype, shape)


def _check_quantization(tensor: Any, name: str, dtype: str | None, shape: tuple[int, ...]) -> None:
    q = tensor.quantization
    if q is None or q.scale is None or len(q.scale) == 0:
        return
    if not all(math.isfinite(scale) and scale >= 0 for scale in q.scale):
        raise _damaged(f"tensor '{name}' has a scale that is not a positive number")
    points = np.zeros(1, np.int64) if q.zeroPoint is None else q.zeroPoint
    if len(points) not in (1, len(q.scale)):
        raise _damaged(f"tensor '{name}' has {len(q.scale)} scales and {len(points)} zero points")
    axis = q.quantizedDimension
    if len(q.scale) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(q.scale)):
        raise _damaged(f"tensor '{name}' has {len(q.scale)} scales along dimension {axis} of {list(shape)}")
    if dtype is not None and dtype.startswith(("int", "uint")):
        limits = np.iinfo(dtype)
        if any(not limits.min <= int(point) <= limits.max for point in points):
            raise _damaged(f"tensor '{name}' has a zero point outside {dtype}")


def _check_order(model: Any, graph: Any) -> None:
    """Every tensor is written once, and read only after it is written, given or constant."""
    count = len(graph.tensors)
    for index in [*graph.inputs, *graph.outputs]:
        if not 0 <= index < count:
            raise _damaged(f"the graph names tensor {index} of {count}")
    constant = {i for i, t in enumerate(graph.tensors) if t.isVariable or has_data(model, t)}
    given = {int(index) for index in graph.inputs}
    if len(given) != len(graph.inputs) or given & constant:
        raise _damaged("an input is named twice or is a constant")
    known = constant | given
    for number, op in enumerate(graph.operators):
        label = f"operator {number}"
        if not 0 <= op.opcodeIndex < len(model.operatorCodes):
            raise _damaged(f"{label} uses operator code {op.opcodeIndex} of {len(model.operatorCodes)}")
        for index in _indices(op.inputs):
            if index != -1 and not (0 <= index < count and (index in known or _is_empty(graph.tensors[index]))):
                raise _damaged(f"{label} reads tensor {index}, which nothing has written")
        for index in _indices(op.outputs):
            if not 0 <= index < count or index in known:
                raise _damaged(f"{label} writes tensor {index}, which is missing, an input, constant or written before")
            known.add(index)
    if any(int(index) not in known for index in graph.outputs):
        raise _damaged("an output is never written")


def has_data(model: Any, tensor: Any) -> bool:
    """Whether `tensor` is a constant: its values are in the file."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _is_empty(tensor: Any) -> bool:
    return 0 in _shape(tensor)


def _indices(values: Any) -> Iterator[int]:
    if values is not None and not isinstance(values, int):
        yield from (int(value) for value in values)


def _damaged(what: str) -> InputError:
    return InputError(f"is a damaged TFLite model ({what}); copy or convert it again.")
