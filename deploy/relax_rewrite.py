"""Rewrites of the imported graph that TVM has no pass for: all exact but for the rounding of folded constants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import isinf

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule, Op
from tvm.relax.expr_functor import PyExprMutator, mutator

Array = npt.NDArray[np.floating]
LINEAR = ("relax.nn.conv2d", "relax.matmul")
AFFINE = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")


def op_name(expr: relax.Expr) -> str:
    """The operator that `expr` calls, or nothing."""
    return str(expr.op.name) if isinstance(expr, Call) and isinstance(expr.op, Op) else ""


def array_of(expr: relax.Expr) -> Array | None:
    """The values of a constant tensor, or nothing for a computed one."""
    if isinstance(expr, GenericConst) and hasattr(expr.value, "numpy"):
        values: Array = expr.value.numpy()
        return values
    return None


def _shape(expr: relax.Expr) -> tuple[int, ...]:
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
    """Whatever only renames axes → reshape, which costs nothing."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        if name in ("relax.squeeze", "relax.expand_dims", "relax.flatten"):
            return relax.op.reshape(call.args[0], _shape(call))
        if name == "relax.broadcast_to" and _shape(call) == _shape(call.args[0]):
            return call.args[0]
        if name == "relax.permute_dims" and _moves_only_units(call):
            return relax.op.reshape(call.args[0], _shape(call))
        return call


def _moves_only_units(call: Call) -> bool:
    shape = _shape(call.args[0])
    axes = [int(a) for a in call.attrs.axes] if call.attrs.axes is not None else list(range(len(shape)))[::-1]
    moved = [axis % len(shape) for axis in axes if shape[axis] != 1]
    return moved == sorted(moved)


def _per_function(rewrite: type[PyExprMutator], name: str) -> tvm.ir.transform.Pass:
    def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        changed = rewrite(mod)
        changed.builder_.update_func(mod.get_global_var("main"), changed.visit_expr(mod["main"]))
        return changed.builder_.get()

    return tvm.transform.module_pass(run, opt_level=0, name=name)


def rewrite_clips() -> tvm.ir.transform.Pass:
    """Pass: relax.clip → relax.maximum, relax.minimum."""
    return _per_function(_Clips, "RewriteClips")


def rewrite_reshapes() -> tvm.ir.transform.Pass:
    """Pass: squeeze, expand_dims, flatten and transposes of unit axes → relax.reshape."""
    return _per_function(_Reshapes, "RewriteReshapes")


@dataclass(frozen=True)
class _Affine:
    """scale * linear(x) + shift, both [channels] of the last axis; `folded` counts the operators in it."""

    linear: Call
    scale: Array
    shift: Array
    folded: int = 0


def _channel_constant(expr: relax.Expr, channels: int) -> Array | None:
    values = array_of(expr)
    if values is None or values.size not in (1, channels) or (values.ndim and values.shape[-1] != values.size):
        return None
    return np.broadcast_to(values.reshape(-1), (channels,)).astype(np.float64)


def _start(call: Call) -> _Affine | None:
    """The trivial affine form of a convolution or product with a constant float weight, channels last."""
    weight = array_of(call.args[1]) if op_name(call) in LINEAR else None
    if weight is None or weight.dtype != np.float32 or len(_shape(call)) < 2:
        return None
    if op_name(call) == "relax.nn.conv2d":
        attrs = call.attrs
        if attrs.data_layout != "NHWC" or attrs.out_layout != "NHWC" or attrs.kernel_layout != "HWIO":
            return None
    elif weight.ndim != 2:
        return None
    channels = _shape(call)[-1]
    return _Affine(call, np.ones(channels), np.zeros(channels))


def _extend(form: _Affine, call: Call, constant: Array, constant_first: bool) -> _Affine | None:
    """The form after one more per-channel operator, or nothing where it is not affine."""
    name = op_name(call).removeprefix("relax.")
    scale, shift, count = form.scale, form.shift, form.folded + 1
    if name == "add":
        return _Affine(form.linear, scale, shift + constant, count)
    if name == "multiply":
        return _Affine(form.linear, scale * constant, shift * constant, count)
    if constant_first:
        return _Affine(form.linear, -scale, constant - shift, count) if name == "subtract" else None
    if name == "subtract":
        return _Affine(form.linear, scale, shift - constant, count)
    return _Affine(form.linear, scale / constant, shift / constant, count) if np.all(constant != 0) else None


def _grown(call: Call, forms: dict[relax.Var, _Affine]) -> tuple[relax.Var, _Affine] | None:
    """The operand that `call` extends and the form that results."""
    if op_name(call) not in AFFINE:
        return None
    for operand, other in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        form = forms.get(operand) if isinstance(operand, relax.Var) else None
        constant = _channel_constant(other, len(form.scale)) if form is not None else None
        if form is not None and constant is not None and _shape(call) == _shape(operand):
            grown = _extend(form, call, constant, constant_first=other.same_as(call.args[0]))
            return (operand, grown) if grown is not None else None
    return None


def _uses(function: relax.Function) -> Counter[relax.Var]:
    counts: Counter[relax.Var] = Counter()
    for block in function.body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(
                binding.value, lambda e: counts.update([e]) if isinstance(e, relax.Var) else None
            )
    relax.analysis.post_order_visit(
        function.body.body, lambda e: counts.update([e]) if isinstance(e, relax.Var) else None
    )
    return counts


def _emit(var: relax.Var, form: _Affine) -> list[relax.VarBinding]:
    """Bindings for one convolution or product with scaled weights and one addition."""
    data, weight = form.linear.args
    scaled = (array_of(weight) * form.scale).astype(np.float32)
    linear = Call(form.linear.op, [data, relax.const(scaled)], form.linear.attrs, form.linear.ty_args)
    inner = relax.DataflowVar(f"{var.name}_linear", form.linear.ty)
    total = relax.op.add(inner, relax.const(form.shift.astype(np.float32)))
    return [relax.VarBinding(inner, linear), relax.VarBinding(var, total)]


def _fold_block(block: relax.BindingBlock, uses: Counter[relax.Var]) -> relax.BindingBlock:
    forms: dict[relax.Var, _Affine] = {}
    absorbed: set[relax.Var] = set()
    for binding in block.bindings:
        if not isinstance(binding.value, Call):
            continue
        grown = _grown(binding.value, forms)
        form = grown[1] if grown else _start(binding.value)
        if grown and uses[grown[0]] == 1:
            absorbed.add(grown[0])
        elif grown:
            form = None  # another reader needs the value in between
        if form is not None:
            forms[binding.var] = form
    bindings: list[relax.Binding] = []
    for binding in block.bindings:
        form = forms.get(binding.var)
        if binding.var in absorbed:
            continue
        bindings.extend(_emit(binding.var, form) if form is not None and form.folded else [binding])
    return type(block)(bindings)


def fold_affine() -> tvm.ir.transform.Pass:
    """Pass: per-channel add, subtract, multiply and divide behind a linear operator → its weights and one bias.

    This is how a batch normalization in inference form disappears.
    """

    def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        main = mod["main"]
        uses = _uses(main)
        blocks = [_fold_block(block, uses) for block in main.body.blocks]
        body = relax.SeqExpr(blocks, main.body.body)
        changed = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
        result = IRModule({**dict(mod.functions.items()), mod.get_global_var("main"): changed})
        return relax.transform.Normalize()(result)

    return tvm.transform.module_pass(run, opt_level=0, name="FoldAffine")
