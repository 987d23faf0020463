"""TFLite → Relax: TVM's frontend, with converters of ours where it refuses what the format allows or errs.

An operator that only moves elements works on what is stored, whatever its quantization, as LiteRT's does: it is
imported on integers and never becomes dequantize → float → quantize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend.tflite import tflite_frontend

from deploy import model_tflite, relax_tflite_linear, relax_tflite_moves
from deploy.model_tflite_fold import fold
from deploy.relax_tflite_operator import Operator, Unsupported, shape_of

# Operators of TVM's that move, copy or compare stored elements: it refuses them on quantized tensors.
_PLAIN = (
    *("TRANSPOSE", "SLICE", "PACK", "UNPACK", "SPLIT", "SPLIT_V", "TILE", "REVERSE_V2", "SPACE_TO_DEPTH"),
    *("DEPTH_TO_SPACE", "BROADCAST_TO", "GATHER", "GATHER_ND", "REVERSE_SEQUENCE", "SELECT", "SELECT_V2", "ARG_MAX"),
    *("ARG_MIN", "CAST"),
)
# Operators whose int8 weights may be used with float activations.
_HYBRID = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# Operators with state that outlives a call: a compiled `run` has none.
_STATEFUL = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE")
_INT32 = np.iinfo(np.int32)


class Graph:
    """A TFLite model that is about to be imported. `operators` are (name, name of the first result) in order."""

    def __init__(self, flatbuffer: bytes) -> None:
        import tflite

        model = model_tflite.parse(flatbuffer)
        graph = model.subgraphs[0]
        self.taken = fold(model, dict(enumerate(_name(model, operator) for operator in graph.operators)))
        self.operators = [(_name(model, operator), _result(graph, operator)) for operator in graph.operators]
        self._graph = graph
        # The frontend looks tensors up by name, but a TFLite file may use one name twice.
        for index, tensor in enumerate(graph.tensors):
            tensor.name = f"t{index}"
            _complete(tensor.quantization)
        self._packed = tflite.Model.GetRootAsModel(model_tflite.pack(model), 0)

    def refused(self) -> Iterator[tuple[str, str]]:
        """Operators that are not known, or not for the kind of quantization they are used with, or that keep state."""
        subgraph = self._packed.Subgraphs(0)
        frontend = tflite_frontend.OperatorConverter(self._packed, subgraph, tflite_frontend.ExprTable(), None)
        for (op, name), stored in zip(self.operators, self._graph.operators, strict=True):
            if not self._converts(frontend, op, stored):
                yield op, name

    def _converts(self, frontend: Any, op: str, stored: Any) -> bool:
        if op not in frontend.convert_map or op in _STATEFUL:
            return False
        inputs = [self._graph.tensors[i] for i in _indices(stored.inputs) if i >= 0]
        results = [self._graph.tensors[i] for i in _indices(stored.outputs)]
        if any(tensor.isVariable for tensor in inputs):
            return False
        if not any(_is_quantized(tensor) for tensor in (*inputs, *results)):
            return True
        if op in _PLAIN or op in relax_tflite_moves.CONVERTERS:
            return True
        if any(_is_quantized(tensor) for tensor in (*inputs[:1], *results)):
            return op in frontend._SUPPORTED_QUANTIZED_OPS
        return op in _HYBRID and model_tflite.dtype_of(inputs[1]) == "int8"  # only the weights are quantized

    def convert(self) -> tvm.IRModule:
        """The module that TVM's frontend makes, weights as constants. Raises whatever the frontend raises."""
        return tflite_frontend.from_tflite(self._packed, op_converter=partial(_Converter, self._graph, self.taken))


class _Converter(tflite_frontend.OperatorConverter):  # type: ignore[misc]
    """TVM's converter of an operator, or one of ours; `taken` are tensors whose declared shape has been used."""

    def __init__(self, graph: Any, taken: dict[int, tuple[int, ...]], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._graph, self._taken, self._plain = graph, taken, False

    def check_unsupported_ops(self) -> None:
        """Nothing to do: Graph.refused knows more."""

    def get_tensors(self, tensors_idx_list: Any) -> list[Any]:
        """The tensors, without their quantization for an operator that works on what is stored."""
        wrappers: list[Any] = super().get_tensors(tensors_idx_list)
        for wrapper in wrappers if self._plain else ():
            wrapper.qnn_params = None
        return wrappers

    def convert_op_to_relax(self) -> None:
        """Every operator in order; a result that is read twice is computed once."""
        for op_idx, stored in enumerate(self._graph.operators):  # `op_idx` is looked for when a conversion fails
            operator = self.subgraph.Operators(op_idx)
            name = self.get_op_code_str(operator)
            self._narrow_bias(name, stored)
            result = self._converted(name, stored, operator)
            if result is None:
                continue
            result = self.bb.emit(result)
            outputs = _indices(stored.outputs)
            for number, index in enumerate(outputs):
                self._check(index, result if len(outputs) == 1 else result[number])
                self.exp_tab.set_expr(f"t{index}", result if len(outputs) == 1 else result[number])

    def _converted(self, name: str, stored: Any, operator: Any) -> Any:
        if name in relax_tflite_moves.CONVERTERS:
            return relax_tflite_moves.CONVERTERS[name](Operator(self, self._graph, stored))
        original: Callable[[], Any] = partial(self.convert_map[name], op=operator)
        if name in relax_tflite_linear.CONVERTERS:
            return relax_tflite_linear.CONVERTERS[name](Operator(self, self._graph, stored), original)
        self._plain = name in _PLAIN
        try:
            return original()
        finally:
            self._plain = False

    def _narrow_bias(self, name: str, stored: Any) -> None:
        """A bias of 64 bits, which Relax cannot dequantize, as one of 32 that is known to have had more."""
        number = {"TRANSPOSE_CONV": 3}.get(name, 2 if name in _HYBRID else None)
        op = Operator(self, self._graph, stored)
        if number is None or not op.has(number) or op.dtype(number) != "int64":
            return
        values = op.value(number)
        if values.min() < _INT32.min or values.max() > _INT32.max:
            raise Unsupported("its bias needs more than 32 bits")
        wide = relax.const(values, "int64")
        self.exp_tab.set_expr(f"t{op.inputs[number]}", self.bb.emit(relax.op.astype(wide, "int32")))

    def _check(self, index: int, result: Any) -> None:
        declared = self._taken.get(index)
        if declared is not None and shape_of(self.bb.normalize(result)) != declared:
            raise Unsupported(f"its result has not the declared shape {list(declared)}, which SHAPE has given")


def _complete(q: Any) -> None:
    """A zero point for each scale, which is how TVM's frontend wants them."""
    if q is not None and q.scale is not None and len(q.scale):
        points = np.zeros(1, np.int64) if q.zeroPoint is None else np.asarray(q.zeroPoint, np.int64)
        q.zeroPoint = np.resize(points, len(q.scale))


def _is_quantized(tensor: Any) -> bool:
    q = tensor.quantization
    return q is not None and q.scale is not None and len(q.scale) > 0


def _name(model: Any, operator: Any) -> str:
    from ai_edge_litert import schema_py_generated as schema

    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    op = {value: key for key, value in vars(schema.BuiltinOperator).items()}.get(number, f"operator {number}")
    if op != "CUSTOM":
        return str(op)
    custom = code.customCode.decode("utf-8", "replace") if code.customCode else "without a name"
    return "DETECTION_POSTPROCESS" if custom == "TFLite_Detection_PostProcess" else f"CUSTOM {custom}"


def _result(graph: Any, operator: Any) -> str:
    outputs = _indices(operator.outputs)
    return model_tflite.tensor_name(graph, outputs[0]) if outputs else "without output"


def _indices(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]
