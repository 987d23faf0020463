"""Constants computed at compile time: operators on constants, and per-channel operators behind a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from deploy.relax_rewrite import LINEAR, RESHAPES, Array, array_of, op_name, shape_of

AFFINE = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")

# TVM's FoldConstant compiles and runs a program for every operator that it folds, a tenth of a second each; what
# batch normalization and layout changes leave behind in great number is computed by NumPy instead.
_ARITHMETIC: dict[str, Callable[..., Array]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.negative": np.negative,
    "relax.sqrt": np.sqrt,
    "relax.rsqrt": lambda x: np.reciprocal(np.sqrt(x)),
}
FOLDABLE = (*_ARITHMETIC, *RESHAPES, "relax.permute_dims")


def _folded(call: Call, operands: list[Array]) -> Array | None:
    """The value of `call`, or nothing where NumPy does not compute exactly that."""
    name = op_name(call)
    if name in RESHAPES:
        return operands[0].reshape(shape_of(call))
    if name == "relax.permute_dims":
        axes = call.attrs.axes
        return np.transpose(operands[0], None if axes is None else [int(a) for a in axes])
    if name in _ARITHMETIC:
        with np.errstate(all="ignore"):
            return _ARITHMETIC[name](*operands)
    return None


@mutator
class _Constants(PyExprMutator):  # type: ignore[misc]
    """Operators whose operands are constants → their value."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        tensors = call.args[:1] if op_name(call) in RESHAPES else call.args  # the others are shapes
        operands = [self._constant(arg) for arg in tensors] if op_name(call) in FOLDABLE else [None]
        known = [value for value in operands if value is not None]
        value = _folded(call, known) if len(known) == len(operands) else None
        if value is None or value.dtype != np.dtype(str(call.ty.dtype)) or value.shape != shape_of(call):
            return call
        # Without its type, relax.const makes int64 int32, and float64 float32.
        return relax.const(np.ascontiguousarray(value).reshape(value.shape), str(value.dtype))

    def _constant(self, expr: relax.Expr) -> Array | None:
        bound = self.builder_.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
        return array_of(bound) if bound is not None else None


def fold_constants() -> tvm.ir.transform.Pass:
    """Pass: reshapes, transposes and arithmetic of constants → constants."""

    def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        changed = _Constants(mod)
        changed.builder_.update_func(mod.get_global_var("main"), changed.visit_expr(mod["main"]))
        return changed.builder_.get()

    return tvm.transform.module_pass(run, opt_level=0, name="FoldConstants")


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
    if weight is None or weight.dtype != np.float32 or len(shape_of(call)) < 2:
        return None
    if op_name(call) == "relax.matmul":
        if weight.ndim != 2:
            return None
    elif not _channels_last(call):
        return None
    channels = shape_of(call)[-1]
    return _Affine(call, np.ones(channels), np.zeros(channels))


def _channels_last(call: Call) -> bool:
    """Whether the last axis of a convolution's weight is its output's channels, the last axis there."""
    attrs = call.attrs
    if op_name(call) == "relax.nn.conv2d_transpose" and int(attrs.groups) > 1:
        return False  # the weight has the channels of one group only
    return bool((attrs.data_layout, attrs.out_layout, attrs.kernel_layout) == ("NHWC", "NHWC", "HWIO"))


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
        if form is not None and constant is not None and shape_of(call) == shape_of(operand):
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
    values = array_of(weight)
    if values is None:
        raise TypeError(f"{var.name} has a computed weight")
    scaled = (values * form.scale).astype(np.float32)
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
