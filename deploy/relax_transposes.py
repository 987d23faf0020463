"""Transposes before the widening of 8-bit tensors, not behind it: a quarter of the bytes, and known to the kernels.

Layout conversion puts a transpose right before the first convolution of a network whose input has channels first, and
behind what it does not know. There it separates an integer convolution from the 8-bit tensor that its kernel reads.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call
from tvm.relax.expr_functor import PyExprMutator, mutator

from deploy.relax_rewrite import array_of, op_name, per_function, shape_of

_BINARY = ("relax.add", "relax.subtract", "relax.multiply")
_NARROW = ("int8", "uint8")
_LONGEST = 8  # operators that a transpose is moved across


@mutator
class _Raised(PyExprMutator):  # type: ignore[misc]
    """permute_dims(astype(x)) → astype(permute_dims(x)), and so on up to what made the 8-bit tensor."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if op_name(call) != "relax.permute_dims" or call.attrs.axes is None or str(call.ty.dtype) != "int16":
            return call
        axes = [int(axis) for axis in call.attrs.axes]
        return self._raised(call.args[0], axes, _LONGEST) if self._widens(call.args[0]) else call

    def _value(self, expr: relax.Expr) -> Any:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else None

    def _widens(self, expr: relax.Expr) -> bool:
        """Whether an int16 tensor is an 8-bit one, with or without a zero point subtracted."""
        value = self._value(expr)
        if op_name(value) == "relax.subtract" and array_of(value.args[1]) is not None:
            value = self._value(value.args[0])
        return op_name(value) == "relax.astype" and str(value.args[0].ty.dtype) in _NARROW

    def _raised(self, expr: relax.Expr, axes: list[int], left: int) -> relax.Expr:
        """`expr` with its axes permuted, as early as that is the same."""
        shape, value = shape_of(expr), self._value(expr)
        if not shape:
            return expr
        name = op_name(value) if left else ""
        emit = self.builder_.emit
        if name == "relax.permute_dims" and value.attrs.axes is not None:
            before = [int(axis) for axis in value.attrs.axes]
            composed = [before[axis] for axis in axes]
            inner = value.args[0]
            return inner if composed == sorted(composed) else emit(relax.op.permute_dims(inner, composed))
        if name == "relax.astype":
            inner = self._raised(value.args[0], axes, left - 1)
            return emit(relax.op.astype(inner, value.attrs.dtype))
        if name in _BINARY and all(len(shape_of(arg)) in (0, len(axes)) for arg in value.args):
            return emit(Call(value.op, [self._raised(arg, axes, left - 1) for arg in value.args], value.attrs))
        if name == "relax.nn.pad" and str(value.attrs.pad_mode) == "constant":
            ends = [int(width) for width in value.attrs.pad_width]
            width = [end for axis in axes for end in ends[2 * axis : 2 * axis + 2]]
            inner = self._raised(value.args[0], axes, left - 1)
            return emit(relax.op.nn.pad(inner, width, pad_value=float(value.attrs.pad_value)))
        return emit(relax.op.permute_dims(expr, axes))


def raise_transposes() -> tvm.ir.transform.Pass:
    """Pass: a transpose of a widened 8-bit tensor → the widening of a transposed one."""
    return per_function(_Raised, "RaiseTransposes")
