"""SourceModel → RelaxModel: TVM's frontends, with all that they cannot do said at once and in our words."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy import relax_onnx, relax_torch, relax_torch_quantized
from deploy.errors import InputError, ToolError
from deploy.model_spec import SourceModel, TensorSpec, c_identifier, one_line, unique

# ONNX operator sets that the frontend knows; an operator of another one is a stranger, whatever its name.
_ONNX_DOMAINS = ("", "ai.onnx", "com.microsoft")

# Where the frontends keep the node they are converting: function → local variable.
_FRONTEND_LOOPS = {
    "_construct_nodes": "node",
    "_convert_subgraph": "node",
    "_translate_fx_graph": "node",
    "convert_op_to_relax": "op_idx",
}


@dataclass(frozen=True, eq=False)
class RelaxModel:
    """`mod` has one function, `main`: its parameters are `inputs` in order (named as C identifiers), all weights are
    constants, and it returns one tensor or a tuple of `outputs` in order. Shapes are static."""

    name: str
    mod: Any = field(repr=False)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class _Node:
    """An operator of the source model, for messages."""

    op: str
    name: str

    def __str__(self) -> str:
        return f"{self.op} (node '{self.name}')"


def import_model(source: SourceModel) -> RelaxModel:
    """`source` in Relax.

    Raises InputError naming every operator that TVM's frontend does not have, with its nodes; or the operator and node
    that failed to convert; or the tensor whose shape is not static.
    """
    convert = {"onnx": _from_onnx, "tflite": _from_tflite, "torch": _from_torch}[source.format]
    names = unique(c_identifier(spec.name, "input") for spec in source.inputs)
    with _silent():
        mod = _finish(convert(source), names)
    _check_ends(source, mod)
    return RelaxModel(source.name, mod, source.inputs, source.outputs)


def _from_onnx(source: SourceModel) -> Any:
    known = relax_onnx.known_operators()
    _refuse(
        source,
        (
            _Node(f"{node.domain}.{node.op_type}" if node.domain else node.op_type, node.name or node.output[0])
            for node in _onnx_nodes(source.payload.graph)
            if node.op_type not in known or node.domain not in _ONNX_DOMAINS
        ),
    )
    with _explained(source):
        return relax_onnx.import_graph(source.payload)


def _onnx_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _onnx_nodes(inner)


def _from_tflite(source: SourceModel) -> Any:
    from deploy import relax_tflite

    graph = relax_tflite.Graph(source.payload)
    _refuse(source, (_Node(*operator) for operator in graph.refused()))
    with _explained(source, [_Node(*operator) for operator in graph.operators]):
        return graph.convert()


def _from_torch(source: SourceModel) -> Any:
    from tvm.relax.frontend.torch import exported_program_translator as frontend

    with _explained(source):
        program = source.payload.run_decompositions()
    custom = {**relax_torch.converters(), **relax_torch_quantized.converters()}
    known = {*frontend.ExportedProgramImporter().convert_map, *custom}
    _refuse(
        source,
        (
            _torch_node(node)
            for module in program.graph_module.modules()
            for node in module.graph.nodes
            if node.op == "call_function" and node.target.__name__ not in known
        ),
    )
    with _explained(source):
        mod = frontend.from_exported_program(
            program, unwrap_unit_return_tuple=True, run_ep_decomposition=False, custom_convert_map=custom
        )
        return relax_torch.without_pairs(mod)


def _torch_node(node: Any) -> _Node:
    """`node` with the module it came from, which is what its author knows."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    where = f"{stack[-1][0]}.{node.name}" if stack and stack[-1][0] else node.name
    return _Node(getattr(node.target, "__name__", str(node.target)), where)


def _finish(mod: Any, names: Sequence[str]) -> Any:
    """`main` of `mod` with its parameters called `names`, without the frontend's notes, which repeat all weights."""
    import tvm
    from tvm import relax

    main = mod["main"]
    params = [relax.Var(name, old.ty) for name, old in zip(names, main.params, strict=True)]
    bound = main.bind_params(dict(zip(main.params, params, strict=True)))
    attributes = tvm.ir.make_node("ir.DictAttrs", global_symbol="main")
    mod = tvm.IRModule(dict(mod.functions))
    mod["main"] = relax.Function(params, bound.body, bound.ret_ty, bound.is_pure, attributes)
    return mod


def _check_ends(source: SourceModel, mod: Any) -> None:
    """Raises when a shape in `main` is not static, or its ends are not what the source model declares."""
    from tvm import relax

    main = mod["main"]
    for block in main.body.blocks if isinstance(main.body, relax.SeqExpr) else ():
        for binding in block.bindings:
            if not _is_static(binding.var.ty):
                op = getattr(getattr(binding.value, "op", None), "name", type(binding.value).__name__)
                raise InputError(
                    f"Model '{source.name}' has an operator (relax {op}) whose output shape depends on the values of "
                    "its input; ahead-of-time code needs fixed sizes, so replace it or end the model before it."
                )
    returned = main.ret_ty.fields if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
    for specs, types in ((source.inputs, [param.ty for param in main.params]), (source.outputs, returned)):
        for spec, ty in zip(specs, types, strict=True):
            shape = tuple(int(size) for size in ty.shape.values)
            if (shape, str(ty.dtype)) != (spec.shape, spec.dtype):
                raise ToolError(
                    f"TVM's {source.format} frontend gives '{spec.name}' of model '{source.name}' the type {ty.dtype}"
                    f"{list(shape)}, but the model declares {spec.dtype}{list(spec.shape)}; please report it to us."
                )


def _is_static(ty: Any) -> bool:
    from tvm import relax, tirx

    if isinstance(ty, relax.TupleType):
        return all(_is_static(item) for item in ty.fields)
    if isinstance(ty, relax.TensorType):
        return isinstance(ty.shape, relax.ShapeExpr) and all(isinstance(s, tirx.IntImm) for s in ty.shape.values)
    return True


def _refuse(source: SourceModel, nodes: Iterable[_Node]) -> None:
    """Raises one InputError that names all of `nodes`, when there are any."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(node.op, []).append(node.name)
    if found:
        ops = "; ".join(f"{op} (in {', '.join(names)})" for op, names in sorted(found.items()))
        raise InputError(
            f"Model '{source.name}' has operators that TVM's {source.format} frontend cannot convert: {ops}. "
            "Replace them in the model, or end the model before them."
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The frontends print, warn and log to streams that are not theirs; what matters is in their exceptions."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def _explained(source: SourceModel, nodes: Sequence[_Node] = ()) -> Iterator[None]:
    """Turn whatever a frontend raises into an InputError that names the node it was at."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the frontends raise anything from AssertionError to tvm.error.InternalError
        node = _failing_node(error, nodes)
        where = f"{node} of model '{source.name}'" if node else f"Model '{source.name}'"
        raise InputError(f"{where} cannot be imported by TVM's {source.format} frontend: {one_line(error)}.") from error


def _failing_node(error: BaseException, nodes: Sequence[_Node]) -> _Node | None:
    """The node a frontend was converting when `error` was raised, found in the frames of its traceback."""
    found: _Node | None = None
    trace = error.__traceback__
    while trace is not None:
        local: Any = trace.tb_frame.f_locals.get(_FRONTEND_LOOPS.get(trace.tb_frame.f_code.co_name, ""))
        if isinstance(local, int) and local < len(nodes):
            found = nodes[local]
        elif hasattr(local, "op_type"):
            found = _Node(local.op_type, local.name or (local.output[0] if local.output else "without output"))
        elif hasattr(local, "target"):
            found = _torch_node(local)
        trace = trace.tb_next
    return found
