"""What a converter of ours sees of a TFLite operator: operands as expressions or values, options, quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

Array = npt.NDArray[Any]


class Unsupported(Exception):
    """A form of an operator that is not known here; the message says which."""


@dataclass(frozen=True, eq=False)
class Quantization:
    """real = scale * (stored - zero_point), one number each or one for each index of `axis`."""

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]
    axis: int


class Operator:
    """One operator of the main graph of `converter`, which is TVM's; `stored` is a schema.OperatorT."""

    def __init__(self, converter: Any, graph: Any, stored: Any) -> None:
        self.converter, self.graph, self.options = converter, graph, stored.builtinOptions
        self.inputs = [] if stored.inputs is None else [int(index) for index in stored.inputs]
        self.outputs = [int(index) for index in stored.outputs]

    def has(self, number: int) -> bool:
        """Whether an operand is given."""
        return number < len(self.inputs) and self.inputs[number] >= 0

    def expr(self, number: int) -> relax.Expr:
        """An operand."""
        (wrapper,) = self.converter.get_tensors([self.inputs[number]])
        return self.emit(self.converter.get_tensor_expr(wrapper))

    def is_constant(self, number: int) -> bool:
        """Whether an operand's values are in the file."""
        index = self.inputs[number]
        stored = self.converter.model.Buffers(self._tensor(index).buffer).DataLength()
        return not self.converter.has_expr(index) and stored > 0

    def value(self, number: int) -> Array:
        """The values of a constant operand. Raises Unsupported for a computed one."""
        if not self.is_constant(number):
            raise Unsupported(f"its operand {number} is computed, not constant")
        (wrapper,) = self.converter.get_tensors([self.inputs[number]])
        return np.asarray(self.converter.get_tensor_value(wrapper))

    def values(self, number: int) -> list[int]:
        """The whole numbers of a constant operand."""
        return [int(value) for value in self.value(number).ravel()]

    def dtype(self, number: int) -> str:
        """The stored type of an operand."""
        return str(self.converter.get_tensor_type_str(self._tensor(self.inputs[number]).type))

    def input_quantization(self, number: int) -> Quantization | None:
        """What the stored numbers of an operand mean, nothing where they are not quantized."""
        return _quantization(self._tensor(self.inputs[number]))

    def output_quantization(self) -> Quantization | None:
        """The same for the result."""
        return _quantization(self._tensor(self.outputs[0]))

    def output_dtype(self) -> str:
        """The stored type of the result."""
        return str(self.converter.get_tensor_type_str(self._tensor(self.outputs[0]).type))

    def emit(self, expr: relax.Expr) -> relax.Expr:
        """`expr` as a variable with a type."""
        return expr if isinstance(expr, relax.Var) else self.converter.bb.emit(expr)

    def _tensor(self, index: int) -> Any:
        return self.graph.tensors[index]


def _quantization(tensor: Any) -> Quantization | None:
    q = tensor.quantization
    if q is None or q.scale is None or len(q.scale) == 0:
        return None
    zero_point = np.zeros(1, np.int64) if q.zeroPoint is None else np.asarray(q.zeroPoint, np.int64)
    return Quantization(np.asarray(q.scale, np.float32), zero_point, int(q.quantizedDimension))


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """The static shape of a tensor."""
    return tuple(int(size) for size in expr.ty.shape)


def reshaped(op: Operator, data: relax.Expr, shape: Sequence[int]) -> relax.Expr:
    """`data` in another shape, itself where it has that."""
    return data if shape_of(data) == tuple(shape) else op.emit(relax.op.reshape(data, tuple(shape)))
