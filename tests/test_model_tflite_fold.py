"""What a TFLite model computes from constants alone is a constant before it is imported."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from models import tflite_models as m
from models.tflite_models import Builtin

from deploy.model_tflite import has_data, parse
from deploy.model_tflite_fold import fold

NAMES = {value: key for key, value in vars(Builtin).items() if not key.startswith("_")}


def folded(builder, inputs, outputs):
    """The model, its constants by index, and what `fold` gave."""
    model = parse(m.pack(builder.model(inputs, outputs)))
    graph = model.subgraphs[0]
    names = {i: NAMES[model.operatorCodes[op.opcodeIndex].builtinCode] for i, op in enumerate(graph.operators)}
    taken = fold(model, names)
    types = {value: np.dtype(key) for key, value in m.TYPES.items()}
    constants = {
        index: np.frombuffer(model.buffers[t.buffer].data.tobytes(), types[t.type]).reshape(t.shape)
        for index, t in enumerate(graph.tensors)
        if has_data(model, t)
    }
    return graph, constants, taken


def test_arithmetic_on_a_shape():
    b = m.Builder()
    x = b.tensor("x", (2, 3, 5))
    shape, double, last = b.tensor("s", (3,), "int32"), b.tensor("d", (3,), "int32"), b.tensor("l", (), "int32")
    two, y = b.tensor("two", (), "int32", data=np.array(2)), b.tensor("y", (2, 3, 5))
    b.op(Builtin.SHAPE, [x], [shape], m.options(schema.ShapeOptionsT, outType=m.INT32))
    b.op(Builtin.MUL, [shape, two], [double], schema.MulOptionsT())
    axis = b.tensor("a", (1,), "int32", data=np.array([0]))
    b.op(Builtin.REDUCE_PROD, [double, axis], [last], schema.ReducerOptionsT())
    b.op(Builtin.RELU, [x], [y])
    graph, constants, taken = folded(b, [x], [y, last])
    assert constants[double].tolist() == [4, 6, 10]
    assert constants[last].tolist() == 240
    assert len(graph.operators) == 1
    assert taken == {x: (2, 3, 5)}


def test_what_would_only_cost_flash_is_left():
    b = m.Builder()
    x, y = b.tensor("x", (1024, 1024)), b.tensor("y", (1024, 1024))
    dims, zero = b.tensor("d", (2,), "int32", data=np.array([1024, 1024])), b.tensor("z", (), data=np.array(0.5))
    filled = b.tensor("f", (1024, 1024))
    b.op(Builtin.FILL, [dims, zero], [filled], schema.FillOptionsT())
    b.op(Builtin.ADD, [x, filled], [y], schema.AddOptionsT())
    graph, constants, _ = folded(b, [x], [y])
    assert filled not in constants
    assert len(graph.operators) == 2


def test_what_litert_refuses_is_left_for_the_frontend_to_name():
    b = m.Builder()
    x, y = b.tensor("x", (1, 4)), b.tensor("y", (1, 4))
    left, right = b.tensor("l", (2,), "int32", data=np.array([1, 2])), b.tensor("r", (3,), "int32", data=np.arange(3))
    out = b.tensor("o", (2,), "int32")
    b.op(Builtin.ADD, [left, right], [out], schema.AddOptionsT())
    b.op(Builtin.RELU, [x], [y])
    graph, constants, _ = folded(b, [x], [y, out])
    assert out not in constants
    assert len(graph.operators) == 2
