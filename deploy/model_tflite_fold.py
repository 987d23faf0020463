"""Operators of a TFLite model whose operands are constants, computed before the model is imported.

Shapes are static here, so SHAPE is a constant, and so is what a model computes from it: the typical SHAPE →
STRIDED_SLICE → PACK → RESHAPE of a Keras model becomes a RESHAPE. LiteRT computes the values: it defines them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.model_tflite import dtype_of, has_data, pack

Array = npt.NDArray[Any]

# What models compute shapes with. Their results depend on nothing but their operands.
FOLDED = (
    *("SHAPE", "RANK", "STRIDED_SLICE", "SLICE", "PACK", "UNPACK", "CONCATENATION", "GATHER", "RESHAPE", "SQUEEZE"),
    *("EXPAND_DIMS", "SPLIT", "TRANSPOSE", "CAST", "ADD", "SUB", "MUL", "DIV", "FLOOR_DIV", "FLOOR_MOD", "MAXIMUM"),
    *("MINIMUM", "NEG", "ABS", "SUM", "REDUCE_PROD", "REDUCE_MAX", "REDUCE_MIN", "RANGE", "FILL", "TILE", "PAD"),
    *("BROADCAST_TO", "BROADCAST_ARGS", "SELECT", "SELECT_V2", "EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL"),
    *("LESS", "LESS_EQUAL", "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "ZEROS_LIKE"),
)
_LARGEST = 2**20  # bytes of a result: a constant that is larger than its operands costs flash


def fold(model: Any, names: Mapping[int, str]) -> dict[int, tuple[int, ...]]:
    """Replace operators of `model` (a checked schema.ModelT, changed in place) that can be computed by their results.

    `names` has an operator's name by its index in the main graph. Gives the tensors whose declared shape was taken for
    their real one, with that shape.
    """
    graph = model.subgraphs[0]
    constant = {i for i, tensor in enumerate(graph.tensors) if has_data(model, tensor) and not tensor.isVariable}
    taken: dict[int, tuple[int, ...]] = {}
    selected: list[int] = []
    values: dict[int, Array] = {}
    for number, operator in enumerate(graph.operators):
        inputs, outputs = _indices(operator.inputs), _indices(operator.outputs)
        if names[number] in ("SHAPE", "RANK") and len(inputs) == len(outputs) == 1:
            shape = tuple(int(size) for size in _indices(graph.tensors[inputs[0]].shape))
            taken[inputs[0]] = shape
            value = shape if names[number] == "SHAPE" else len(shape)
            values[outputs[0]] = np.array(value, dtype_of(graph.tensors[outputs[0]]))
        elif names[number] in FOLDED and inputs and all(i == -1 or i in constant for i in inputs):
            selected.append(number)
        else:
            continue
        constant.update(outputs)
    _store(model, values)
    results = _evaluated(model, [graph.operators[number] for number in selected])
    _store(model, results)
    known = {**values, **results}
    graph.operators = [op for op in graph.operators if not all(i in known for i in _indices(op.outputs))]
    return taken


def _evaluated(model: Any, operators: list[Any]) -> dict[int, Array]:
    """The results of operators by the index of their tensor, as LiteRT computes them; nothing where it refuses."""
    if not operators:
        return {}
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    results = [index for operator in operators for index in _indices(operator.outputs)]
    small, place = _extracted(model, operators, results)
    try:
        interpreter = Interpreter(
            model_content=pack(small), num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
        )
        interpreter.allocate_tensors()
        interpreter.invoke()
        values = {index: interpreter.get_tensor(place[index]) for index in results}
    except (RuntimeError, ValueError):  # importing the model as it is will name the operator that cannot be
        return {}
    return {index: value for index, value in values.items() if 0 < value.nbytes <= _LARGEST}


def _extracted(model: Any, operators: list[Any], results: list[int]) -> tuple[Any, dict[int, int]]:
    """A model of these operators alone that takes nothing and gives `results`; where it has which tensor."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    used = sorted({i for op in operators for part in (op.inputs, op.outputs) for i in _indices(part) if i >= 0})
    place = {index: number for number, index in enumerate(used)}
    small, inner, buffers = schema.ModelT(), schema.SubGraphT(), [schema.BufferT()]
    inner.tensors, inner.operators, inner.name = [], [], "constants"
    for index in used:
        tensor = copy.copy(graph.tensors[index])
        if has_data(model, tensor):
            buffers.append(model.buffers[tensor.buffer])
        tensor.buffer = len(buffers) - 1 if has_data(model, tensor) else 0
        inner.tensors.append(tensor)
    for operator in operators:
        moved = copy.copy(operator)
        moved.inputs = np.array([place.get(i, -1) for i in _indices(operator.inputs)], np.int32)
        moved.outputs = np.array([place[i] for i in _indices(operator.outputs)], np.int32)
        inner.operators.append(moved)
    inner.inputs, inner.outputs = np.array([], np.int32), np.array([place[i] for i in results], np.int32)
    small.version, small.description, small.subgraphs = 3, "", [inner]
    small.operatorCodes, small.buffers = model.operatorCodes, buffers
    return small, place


def _store(model: Any, values: Mapping[int, Array]) -> None:
    """Make tensors of the main graph constants."""
    from ai_edge_litert import schema_py_generated as schema

    for index, value in values.items():
        buffer, tensor = schema.BufferT(), model.subgraphs[0].tensors[index]
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer, tensor.shape = len(model.buffers) - 1, np.array(value.shape, np.int32)


def _indices(values: Iterable[int] | None) -> list[int]:
    return [] if values is None else [int(value) for value in values]
