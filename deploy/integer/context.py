"""The graph while it is rewritten: what is bound to what, which variable stands for it, and what real value it has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.ir import Call, IRModule

from deploy.integer.rules import RANGES, Rules, Scales
from deploy.relax_rewrite import RESHAPES, array_of, op_name, shape_of

Array = npt.NDArray[Any]
# Operators that move elements and do not compute: they commute with a quantization that is the same for all elements.
MOVES = (*RESHAPES, "relax.permute_dims", "relax.strided_slice", "relax.broadcast_to", "relax.tile", "relax.flip")

# Operators that frontends leave on constants: scales of a bias, and the limits of a clip.
_COMPUTED: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"relax.multiply": np.multiply, "relax.isnan": np.isnan, "relax.where": np.where}
)


class Stays(Exception):
    """An operator has no integer form here; the message says why."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """An integer tensor of the new graph with its meaning: real = scale * (value - zero_point)."""

    value: relax.Expr
    scale: np.float32
    zero_point: int
    constant: Array | None = None

    @property
    def dtype(self) -> str:
        """The stored type."""
        return str(self.value.ty.dtype)

    def same_scale(self, other: Quantized | Output) -> bool:
        """Whether the same integers mean the same numbers."""
        return self.scale == other.scale and self.zero_point == other.zero_point


@dataclass(frozen=True)
class Output:
    """What a quantized result has to be: its quantization, and the range that fused activations leave."""

    scale: np.float32
    zero_point: int
    dtype: str
    low: int
    high: int
    activated: bool = False  # an activation of its own stands before the quantization


@dataclass(frozen=True, eq=False)
class Weight:
    """Constant integers with the scale and zero point of each element (broadcast to `values`' shape)."""

    values: Array
    scale: Scales
    zero_point: Array

    def mapped(self, move: Any) -> Weight:
        """All three through a function that moves elements."""
        return Weight(move(self.values), move(self.scale), move(self.zero_point))

    def channel_scales(self, axis: int) -> Scales:
        """One scale for each index of `axis`, or one for all. Raises Stays when they differ within a channel."""
        scales = np.moveaxis(self.scale, axis, 0).reshape(self.scale.shape[axis], -1)
        if scales.size and not (scales == scales[:, :1]).all():
            raise Stays("its weight has scales that differ within an output channel")
        return scales[:1, 0] if (scales == scales.flat[0]).all() else scales[:, 0]


class Context:
    """`main` of the imported module, and the new one that is being built."""

    def __init__(self, mod: IRModule, rules: Rules) -> None:
        self.mod, self.rules, self.builder = mod, rules, relax.BlockBuilder()
        main = mod["main"]
        bindings = [binding for block in main.body.blocks for binding in block.bindings]
        self.bindings: dict[relax.Var, relax.Expr] = {binding.var: binding.value for binding in bindings}
        self.env: dict[relax.Var, relax.Expr] = {param: param for param in main.params}
        self.uses: Counter[relax.Var] = Counter()
        for expr in (*self.bindings.values(), main.body.body):
            relax.analysis.post_order_visit(expr, lambda e: self.uses.update([e]) if isinstance(e, relax.Var) else None)
        self._centered: dict[tuple[relax.Expr, str], relax.Expr] = {}

    def emit(self, expr: relax.Expr) -> relax.Var:
        """A new variable for `expr`."""
        return self.builder.emit(expr)

    def bound(self, expr: relax.Expr) -> relax.Expr:
        """What a variable of the imported graph is bound to; any other expression itself."""
        return self.bindings.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def new(self, expr: relax.Expr) -> relax.Expr:
        """`expr` of the imported graph in the new one."""
        if isinstance(expr, relax.Var):
            return self.env[expr]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.new(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self.new(expr.tuple_value), expr.index)
        return recall(expr, [self.new(arg) for arg in expr.args]) if isinstance(expr, Call) else expr

    def quantized(self, expr: relax.Expr) -> Quantized:
        """The integers behind a float tensor. Raises Stays where it is not a dequantized one."""
        call = self.bound(expr)
        if op_name(call) == "relax.dequantize":
            scale, zero_point = self._scalar(call.args[1]), self._scalar(call.args[2])
            constant = self.constant(call.args[0])
            value = self.new(call.args[0]) if constant is None else const(constant, str(constant.dtype))
            return Quantized(value, np.float32(scale), int(zero_point), constant)
        if op_name(call) in MOVES:
            inner = self.quantized(call.args[0])
            if shape_of(call) == shape_of(call.args[0]) and op_name(call) == "relax.broadcast_to":
                return inner
            moved = self.emit(recall(call, [inner.value, *call.args[1:]]))
            return Quantized(moved, inner.scale, inner.zero_point)
        if op_name(call) == "relax.concat" and isinstance(self.bound(call.args[0]), relax.Tuple):
            return self._joined(call)
        raise Stays("an operand is not quantized")

    def _joined(self, call: Call) -> Quantized:
        """Quantized tensors joined, where the same integers mean the same in all of them."""
        first, *others = parts = [self.quantized(field) for field in self.bound(call.args[0]).fields]
        if not all(part.same_scale(first) and part.dtype == first.dtype for part in others):
            raise Stays("it joins tensors of different scales")
        joined = self.emit(relax.op.concat([part.value for part in parts], axis=int(call.attrs.axis)))
        return Quantized(joined, first.scale, first.zero_point)

    def _scalar(self, expr: relax.Expr) -> Any:
        values = self.constant(expr)
        if values is None:
            raise Stays("an activation has a scale or zero point that is computed when the model runs")
        if values.size == 0 or not (values == values.flat[0]).all():
            raise Stays("an activation has more than one scale or zero point")
        return values.flat[0]

    def constant(self, expr: relax.Expr) -> Array | None:
        """The values of an expression of constants, looked through moves, type changes and products of scales."""
        call = self.bound(expr)
        values = array_of(call)
        if values is not None:
            return values
        name = op_name(call)
        if name in RESHAPES:
            inner = self.constant(call.args[0])
            return None if inner is None else inner.reshape(shape_of(call))
        if name == "relax.permute_dims":
            inner = self.constant(call.args[0])
            return None if inner is None else np.transpose(inner, axes_of(call))
        if name == "relax.astype":
            inner = self.constant(call.args[0])
            return None if inner is None else inner.astype(str(call.ty.dtype))
        if name in _COMPUTED:
            operands = [self.constant(arg) for arg in call.args]
            known = [values for values in operands if values is not None]
            return np.asarray(_COMPUTED[name](*known)) if len(known) == len(operands) else None
        return None

    def limits(self, expr: relax.Expr) -> tuple[relax.Expr, float, float] | None:
        """(operand, low, high) where `expr` limits a float tensor to a range of numbers: relu, clip and their forms."""
        call = self.bound(expr)
        name = op_name(call)
        if name == "relax.nn.relu":
            return call.args[0], 0.0, np.inf
        if name == "relax.clip":
            return call.args[0], float(call.args[1].value), float(call.args[2].value)
        kernel = kernel_name(call)
        if kernel and name == "relax.call_tir" and isinstance(call.args[1], relax.Tuple):
            operands = list(call.args[1].fields)
        elif name in ("relax.maximum", "relax.minimum"):
            kernel, operands = name.removeprefix("relax."), list(call.args)
        else:
            return None
        bound = self.constant(operands[1]) if kernel in ("maximum", "minimum") and len(operands) == 2 else None
        if bound is None or bound.size != 1:
            return None
        number = float(bound.flat[0])
        return (operands[0], number, np.inf) if kernel == "maximum" else (operands[0], -np.inf, number)

    def weight(self, expr: relax.Expr) -> Weight | None:
        """The constant integers behind a float tensor, or nothing where it is not one."""
        call = self.bound(expr)
        name = op_name(call)
        if name == "relax.dequantize":
            return self._dequantized_constant(call)
        if name not in (*RESHAPES, "relax.permute_dims"):
            return None
        inner = self.weight(call.args[0])
        if inner is None:
            return None
        shape = shape_of(call)
        if name == "relax.permute_dims":
            return inner.mapped(lambda a: np.transpose(a, axes_of(call)))
        return inner.mapped(lambda a: a.reshape(shape))

    def _dequantized_constant(self, call: Call) -> Weight | None:
        values, scale, zero_point = (self.constant(arg) for arg in call.args[:3])
        if values is None or scale is None or zero_point is None:
            return None
        shape = [1] * values.ndim
        if scale.size > 1 or zero_point.size > 1:
            shape[int(call.attrs.axis) % values.ndim] = max(scale.size, zero_point.size)
        scales = np.resize(scale.astype(np.float64), shape)  # one number is repeated
        zero_points = np.resize(zero_point.astype(np.int64), shape)
        return Weight(values, np.broadcast_to(scales, values.shape), np.broadcast_to(zero_points, values.shape))

    def centered(self, tensor: Quantized, dtype: str) -> relax.Expr:
        """The tensor minus its zero point in a type that holds the difference."""
        key = (tensor.value, f"{dtype} {tensor.zero_point}")
        if tensor.constant is not None:
            return const(tensor.constant.astype(np.int64) - tensor.zero_point, dtype)
        if key not in self._centered:
            wide = self.emit(relax.op.astype(tensor.value, dtype))
            zero = const(tensor.zero_point, dtype)
            self._centered[key] = wide if tensor.zero_point == 0 else self.emit(relax.op.subtract(wide, zero))
        return self._centered[key]

    def output(self, call: Call) -> Output:
        """The quantization that relax.quantize `call` gives. Raises Stays when it is not one for the whole tensor."""
        dtype = str(call.attrs.out_dtype)
        if dtype not in RANGES:
            raise Stays(f"its result is quantized to {dtype}")
        scale, zero_point = np.float32(self._scalar(call.args[1])), int(self._scalar(call.args[2]))
        return Output(scale, zero_point, dtype, *RANGES[dtype])


def const(values: Any, dtype: str) -> relax.Expr:
    """A constant tensor of that type."""
    return relax.const(np.ascontiguousarray(np.asarray(values, dtype)).reshape(np.shape(values)), dtype)


def recall(call: Call, args: list[relax.Expr]) -> Call:
    """The same operator on other operands."""
    return Call(call.op, args, call.attrs, call.ty_args)


def axes_of(call: Call) -> list[int] | None:
    """The axes of relax.permute_dims."""
    return None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]


def kernel_name(call: relax.Expr) -> str:
    """The kernel that relax.call_tir calls, as its frontend named it, or nothing for another expression."""
    if op_name(call) != "relax.call_tir":
        return ""
    return re.sub(r"_?\d+$", "", str(call.args[0].name_hint))


def operator(call: relax.Expr) -> str:
    """What an expression computes: a Relax operator, or a kernel that a frontend made, as "kernel <name>"."""
    return f"kernel {kernel_name(call)}" if kernel_name(call) else op_name(call)
