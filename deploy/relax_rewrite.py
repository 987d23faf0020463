"""Rewrites of the imported graph that TVM has no pass for; all are exact."""

from __future__ import annotations

from collections.abc import Callable
from math import isinf
from typing import Any

import numpy.typing as npt
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule, Op
from tvm.relax.expr_functor import PyExprMutator, mutator

Array = npt.NDArray[Any]
LINEAR = ("relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul")
BINARY = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.maximum", "relax.minimum")
UNARY = (
    "relax.nn.relu",
    "relax.nn.gelu",
    "relax.nn.gelu_tanh",
    "relax.nn.silu",
    "relax.nn.leakyrelu",
    "relax.sigmoid",
    "relax.tanh",
    "relax.exp",
    "relax.negative",
    "relax.abs",
)
RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")
CHAIN = 8  # element-wise operators behind a product that are looked through


def op_name(expr: relax.Expr) -> str:
    """The operator that `expr` calls, or nothing."""
    return str(expr.op.name) if isinstance(expr, Call) and isinstance(expr.op, Op) else ""


def array_of(expr: relax.Expr) -> Array | None:
    """The values of a constant tensor, or nothing for a computed one."""
    if isinstance(expr, GenericConst) and hasattr(expr.value, "numpy"):
        values: Array = expr.value.numpy()
        return values
    return None


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """The static shape of a tensor."""
    return tuple(int(d) for d in expr.ty.shape)


@mutator
class _Clips(PyExprMutator):  # type: ignore[misc]
    """clip → maximum and minimum, which layout conversion knows and clip it does not."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if op_name(call) != "relax.clip":
            return call
        value, low, high = call.args[0], float(call.args[1].value), float(call.args[2].value)
        dtype = str(value.ty.dtype)
        if not isinf(low):
            value = self.builder_.emit(relax.op.maximum(value, relax.const(low, dtype)))
        return value if isinf(high) else relax.op.minimum(value, relax.const(high, dtype))


@mutator
class _Reshapes(PyExprMutator):  # type: ignore[misc]
    """Whatever only renames axes → one reshape, which costs nothing."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        if name in RESHAPES:
            return self._reshape(call.args[0], shape_of(call))
        if name == "relax.stack":
            return self._stack(call)
        if name == "relax.broadcast_to" and shape_of(call) == shape_of(call.args[0]):
            return call.args[0]
        if name == "relax.permute_dims" and _moves_only_units(call):
            return self._reshape(call.args[0], shape_of(call))
        return call

    def _stack(self, call: Call) -> relax.Expr:
        """Concatenation of the parts with one more axis: layout conversion fails on stack."""
        parts = _bound(self.builder_, call.args[0])
        if not isinstance(parts, relax.Tuple):
            return call
        shape = list(shape_of(call))
        axis = (int(call.attrs.axis) if call.attrs.axis is not None else 0) % len(shape)
        shape[axis] = 1
        return relax.op.concat([self.builder_.emit(relax.op.reshape(part, shape)) for part in parts.fields], axis)

    def _reshape(self, value: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        before = _bound(self.builder_, value)
        if op_name(before) == "relax.reshape":
            value = before.args[0]
        return value if shape_of(value) == shape else relax.op.reshape(value, shape)


def _bound(builder: relax.BlockBuilder, expr: relax.Expr) -> relax.Expr:
    """What the variable `expr` is bound to, or `expr` itself."""
    found = builder.lookup_binding(expr) if isinstance(expr, relax.Var) else None
    return expr if found is None else found


def _moves_only_units(call: Call) -> bool:
    shape = shape_of(call.args[0])
    axes = [int(a) for a in call.attrs.axes] if call.attrs.axes is not None else list(range(len(shape)))[::-1]
    moved = [axis % len(shape) for axis in axes if shape[axis] != 1]
    return moved == sorted(moved)


@mutator
class _Conv1d(PyExprMutator):  # type: ignore[misc]
    """conv1d → conv2d over an image of height 1, which has fast kernels."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if op_name(call) != "relax.nn.conv1d":
            return call
        attrs = call.attrs
        layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
        if layouts not in (("NCW", "OIW", "NCW"), ("NCW", "OIW", "")):
            return call
        data, weight = (self.builder_.emit(relax.op.expand_dims(arg, 2)) for arg in call.args)
        left, right = (int(p) for p in attrs.padding)
        image = relax.op.nn.conv2d(
            data,
            weight,
            strides=(1, int(attrs.strides[0])),
            padding=(0, left, 0, right),
            dilation=(1, int(attrs.dilation[0])),
            groups=int(attrs.groups),
            out_dtype=attrs.out_dtype,
        )
        return relax.op.reshape(self.builder_.emit(image), shape_of(call))


@mutator
class _SunkReshapes(PyExprMutator):  # type: ignore[misc]
    """product → reshape → element-wise becomes product → element-wise → reshape, which is one kernel."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if op_name(call) not in (*UNARY, *BINARY):
            return call
        for index, operand in enumerate(call.args):
            inner = self._behind_reshape(operand)
            moved = _moved_operands(call, index, inner) if inner is not None else None
            if moved is not None:
                outer = Call(call.op, [self._emitted(arg) for arg in moved], call.attrs, call.ty_args)
                return relax.op.reshape(self.builder_.emit(outer), shape_of(call))
        return call

    def _emitted(self, expr: relax.Expr) -> relax.Expr:
        return expr if isinstance(expr, relax.Var | GenericConst) else self.builder_.emit(expr)

    def _behind_reshape(self, operand: relax.Expr) -> relax.Expr | None:
        """What `operand` is a reshaped form of, if that is a product with element-wise operators behind it."""
        bound = _bound(self.builder_, operand)
        if op_name(bound) not in RESHAPES or not self._is_product(bound.args[0], CHAIN):
            return None
        return bound.args[0]

    def _is_product(self, expr: relax.Expr, steps: int) -> bool:
        bound = _bound(self.builder_, expr)
        if op_name(bound) in LINEAR:
            return True
        elementwise = steps > 0 and op_name(bound) in (*UNARY, *BINARY)
        return elementwise and any(self._is_product(arg, steps - 1) for arg in bound.args)


def _moved_operands(call: Call, index: int, inner: relax.Expr) -> list[relax.Expr] | None:
    """The operands of `call` in the shape of `inner`, which operand `index` is a reshape of; nothing if impossible."""
    if shape_of(call) != shape_of(call.args[index]):
        return None
    if len(call.args) == 1:
        return [inner]
    other = call.args[1 - index]
    values = array_of(other)
    if values is not None:
        moved = _moved_constant(values, shape_of(call), shape_of(inner))
        other = relax.const(moved, str(moved.dtype)) if moved is not None else None
    elif shape_of(other) == shape_of(call):
        other = relax.op.reshape(other, shape_of(inner))
    else:
        other = None
    if other is None:
        return None
    return [inner, other] if index == 0 else [other, inner]


def _moved_constant(values: Array, shape: tuple[int, ...], inner: tuple[int, ...]) -> Array | None:
    """A constant that is broadcast to `shape` in a form that is broadcast to `inner`, the same elements reshaped."""
    if values.size == 1:
        return values.reshape(())
    if values.ndim == 0 or values.ndim > len(shape):
        return None
    if shape[-1] == inner[-1] and values.shape[-1] == values.size:
        return values.reshape(-1)
    full = (1,) * (len(shape) - values.ndim) + values.shape
    for axis in range(len(inner)):
        if inner[axis] == 1 and inner[:axis] + inner[axis + 1 :] == shape:
            return values.reshape((*full[:axis], 1, *full[axis:]))
    return None


@mutator
class _Takes(PyExprMutator):  # type: ignore[misc]
    """take with indices that a caller passes: one outside the table reads its edge, not another's memory."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if op_name(call) != "relax.take" or str(call.attrs.mode) != "fast":
            return call
        return relax.op.take(call.args[0], call.args[1], call.attrs.axis, mode="clip")


@mutator
class _TopOne(PyExprMutator):  # type: ignore[misc]
    """topk of one → maximum and its position: sorting has no ahead-of-time form."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if op_name(call) != "relax.topk" or int(call.attrs.k) != 1:
            return call
        data, axis, largest = call.args[0], int(call.attrs.axis), bool(call.attrs.largest)
        value = (relax.op.max if largest else relax.op.min)(data, axis, keepdims=True)
        index = (relax.op.argmax if largest else relax.op.argmin)(data, axis, keepdims=True)
        index = relax.op.astype(self.builder_.emit(index), str(call.attrs.dtype))
        parts = {"values": [value], "indices": [index]}.get(str(call.attrs.ret_type), [value, index])
        emitted = [self.builder_.emit(part) for part in parts]
        return emitted[0] if len(emitted) == 1 else relax.Tuple(emitted)


def per_function(rewrite: Callable[[IRModule], PyExprMutator], name: str) -> tvm.ir.transform.Pass:
    """A pass that applies a mutator to `main`."""

    def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        changed = rewrite(mod)
        changed.builder_.update_func(mod.get_global_var("main"), changed.visit_expr(mod["main"]))
        return changed.builder_.get()

    return tvm.transform.module_pass(run, opt_level=0, name=name)


def rewrite_clips() -> tvm.ir.transform.Pass:
    """Pass: relax.clip → relax.maximum, relax.minimum."""
    return per_function(_Clips, "RewriteClips")


def rewrite_reshapes() -> tvm.ir.transform.Pass:
    """Pass: squeeze, expand_dims, flatten, transposes of unit axes and chains of them → one relax.reshape."""
    return per_function(_Reshapes, "RewriteReshapes")


def rewrite_conv1d() -> tvm.ir.transform.Pass:
    """Pass: relax.nn.conv1d → relax.nn.conv2d between two reshapes."""
    return per_function(_Conv1d, "RewriteConv1d")


def sink_reshapes() -> tvm.ir.transform.Pass:
    """Pass: a reshape between a product and element-wise operators moves behind them."""
    return per_function(_SunkReshapes, "SinkReshapes")


def rewrite_topk() -> tvm.ir.transform.Pass:
    """Pass: relax.topk with k = 1 → relax.max or min, and relax.argmax or argmin."""
    return per_function(_TopOne, "RewriteTopk")


def rewrite_takes() -> tvm.ir.transform.Pass:
    """Pass: relax.take never reads outside its table."""
    return per_function(_Takes, "RewriteTakes")
