"""The same model with its intermediate tensors as outputs, so that a mismatch can be followed to where it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from deploy import model_onnx, model_tflite, model_torch
from deploy.model_spec import DTYPES, SourceModel, TensorSpec, unique

# ONNX operators that give another value every time although they have no inputs.
_RANDOM = ("RandomNormal", "RandomUniform")


def expose_intermediates(source: SourceModel) -> SourceModel:
    """`source` with more outputs: first its own, in their order, then every intermediate tensor in topological order.

    Left out are constants, what is computed from constants alone, and values that a library cannot return (strings,
    sequences, tensors without a static shape). The first of the added outputs that differs is where to look.
    """
    payload, specs = {"onnx": _onnx, "tflite": _tflite, "torch": _torch}[source.format](source)
    names = unique((spec.name for spec in specs), (spec.name for spec in source.outputs))
    added = tuple(dataclasses.replace(spec, name=name) for spec, name in zip(specs, names, strict=True))
    return dataclasses.replace(
        source,
        name=f"{source.name}_exposed",
        c_name=f"{source.c_name}_exposed",
        outputs=source.outputs + added,
        payload=payload,
        original=None,
    )


def _onnx(source: SourceModel) -> tuple[Any, list[TensorSpec]]:
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(source.payload)
    graph = model.graph
    values = {value.name: value for value in graph.value_info}
    constant = {tensor.name for tensor in graph.initializer}
    present = {value.name for value in graph.output}
    specs: list[TensorSpec] = []
    for node in graph.node:
        if _all_in(node.input, constant | {""}) and node.op_type not in _RANDOM and not _has_subgraph(node):
            constant.update(node.output)
            continue
        for name in node.output:
            spec = model_onnx.value_spec(values[name]) if name in values and name not in present else None
            if spec is not None:
                graph.output.append(values[name])
                specs.append(spec)
    return model, specs


def _has_subgraph(node: Any) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _tflite(source: SourceModel) -> tuple[bytes, list[TensorSpec]]:
    import numpy as np

    model = model_tflite.parse(source.payload)
    graph = model.subgraphs[0]
    outputs = [int(index) for index in graph.outputs]
    constant = {-1} | {i for i, t in enumerate(graph.tensors) if model_tflite.has_data(model, t) and not t.isVariable}
    specs: list[TensorSpec] = []
    for operator in graph.operators:
        if operator.outputs is None:
            continue
        if _all_in((int(index) for index in operator.inputs), constant):
            constant.update(int(index) for index in operator.outputs)
            continue
        for index in (int(index) for index in operator.outputs):
            tensor = graph.tensors[index]
            if index not in outputs and model_tflite.dtype_of(tensor) is not None and all(tensor.shape):
                outputs.append(index)
                specs.append(model_tflite.tensor_spec(model_tflite.tensor_name(graph, index), tensor))
    graph.outputs = np.array(outputs, np.int32)
    return model_tflite.pack(model), specs


def _torch(source: SourceModel) -> tuple[Any, list[TensorSpec]]:
    import torch

    module = source.payload.module(check_guards=False)
    graph = torch.fx.Graph()
    copies: dict[Any, Any] = {}
    constant: set[Any] = set()
    seen: list[Any] = []
    finals: list[Any] = []
    for node in module.graph.nodes:
        if node.op == "output":
            finals = torch.utils._pytree.tree_leaves(node.args[0], is_leaf=lambda leaf: isinstance(leaf, torch.fx.Node))
            continue
        copies[node] = graph.node_copy(node, lambda old: copies[old])
        if node.op == "get_attr" or (node.op == "call_function" and _all_in(node.all_input_nodes, constant)):
            constant.add(node)
        elif node.op == "call_function" and _is_returnable(node.meta.get("val")):
            seen.append(node)
    added = [node for node in seen if node not in finals]
    graph.output(tuple(copies[node] for node in [*finals, *added]))
    examples = tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in source.inputs)
    exposed = model_torch.export(torch.fx.GraphModule(module, graph), examples)
    model = model_torch.prepare(exposed, {})
    specs = model.outputs[len(source.outputs) :]
    return model.functional, [dataclasses.replace(s, name=n.name) for s, n in zip(specs, added, strict=True)]


def _is_returnable(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and str(value.dtype).removeprefix("torch.") in DTYPES


def _all_in(items: Iterable[Any], known: set[Any]) -> bool:
    return all(item in known for item in items)
