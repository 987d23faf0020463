"""Channels that are constant whatever the input, or that nobody reads, taken out of a model; its results stay.

A channel is dead where each convolution or product that reads it either has only zero weights for it, or finds it
constant and adds the same for it everywhere, so that the bias can do that. Around a border of padding that is so for
channels that are 0 only. Works on the imported graph of a float model and on the integer form of a quantized one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, IRModule

from deploy import operators
from deploy.channels.bounds import Array, is_integer
from deploy.channels.flow import Flow, Use, size_from_right
from deploy.channels.products import ELEMENTWISE, PRODUCTS, Product, product_of
from deploy.channels.rules import analysed
from deploy.relax_fold import fold_constants
from deploy.relax_rewrite import RESHAPES, op_name, shape_of

_PLAIN = (Call, relax.Tuple, relax.TupleGetItem, relax.Var, tvm.ir.GenericConst, relax.ShapeExpr)


@dataclass(frozen=True, eq=False)
class Eliminated:
    """`mod` without dead channels.

    removed: how many output channels each convolution or product lost, named "nn.conv2d 3" for the third of all of
    them; those that lost none are not in it. macs_*: multiply-accumulates of one inference.
    """

    mod: Any = field(repr=False)
    removed: Mapping[str, int]
    macs_before: int
    macs_after: int


def eliminate_dead_channels(mod: IRModule, multiple: int = 1) -> Eliminated:
    """`mod` with dead channels of `main` removed, exactly for integers, up to the rounding of sums for floats.

    multiple: as many dead channels of a tensor stay as make their number a multiple of this, such as the lanes of a
    vector: what does not fill a vector takes as long as what does. One channel stays even if all are dead, so that
    there is a tensor. Shapes of inputs and outputs stay. Where nothing can go `mod` itself is returned.
    """
    macs = operators.count(mod)[1]
    simple = tvm.transform.Sequential(_simplify())(mod)
    main = simple["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    if not all(isinstance(one, relax.VarBinding) and isinstance(one.value, _PLAIN) for one in bindings):
        return Eliminated(mod, MappingProxyType({}), macs, macs)  # has branches, or shapes that are computed
    flow = analysed(main)
    dead = _dead(flow, multiple)
    if not dead.any():
        return Eliminated(mod, MappingProxyType({}), macs, macs)
    changed = tvm.IRModule(dict(simple.functions))
    changed["main"] = _Removal(flow, main, dead).function()
    changed = relax.transform.DeadCodeElimination(["main"])(changed)
    return Eliminated(changed, MappingProxyType(_removed(flow, main, dead)), macs, operators.count(changed)[1])


def _simplify() -> list[tvm.ir.transform.Pass]:
    """Batch normalizations in parts, constants in their places, and no readers that nobody reads."""
    return [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        fold_constants(),
        relax.transform.DeadCodeElimination(["main"]),
    ]


def _dead(flow: Flow, multiple: int) -> Array:
    """Which channels go, bool [flow.count]."""
    allowed = np.ones(flow.count, bool)
    for ids in flow.pinned:
        allowed[ids] = False
    tensors = {fact.channels.ids.tobytes(): fact.channels.ids for fact in flow.facts.values() if fact.channels}
    while True:
        dead = _spread(flow, allowed)
        kept = np.concatenate([_kept(ids, dead, multiple) for ids in tensors.values()] or [np.zeros(0, int)])
        if not len(kept):
            return dead
        allowed[kept] = False


def _kept(ids: Array, dead: Array, multiple: int) -> Array:
    """The dead channels among `ids` that stay to fill up a multiple."""
    alive = int((~dead[ids]).sum())
    wanted = max(1, -(-alive // multiple) * multiple)
    return np.asarray(ids[dead[ids]][: wanted - alive])


def _spread(flow: Flow, allowed: Array) -> Array:
    """Which of the allowed channels go: what is read only by channels that go, goes too."""
    dead = np.zeros(flow.count, bool)
    while True:
        found = allowed.copy()
        for use in flow.uses:
            found[use.rows[_is_needed(use, dead)]] = False
        _tie(flow, found)
        if (found == dead).all():
            return dead
        dead = found


def _is_needed(use: Use, dead: Array) -> Array:
    """Which rows of a product change its result in a way that no bias can replace, [rows]."""
    return np.asarray(use.nonzero[:, ~dead[use.outs]].any(axis=1) & ~use.foldable)


def _tie(flow: Flow, found: Array) -> None:
    """Let channels that go together stay together."""
    count = -1
    while count != found.sum():
        count = found.sum()
        for left, right in flow.ties:
            both = found[left] & found[right]
            np.logical_and.at(found, left, both)
            np.logical_and.at(found, right, both)


def _removed(flow: Flow, main: relax.Function, dead: Array) -> dict[str, int]:
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    layers = [binding for binding in bindings if op_name(binding.value) in PRODUCTS]
    counts = {}
    for number, binding in enumerate(layers, start=1):
        fact = flow.facts.get(binding.var)
        count = int(dead[fact.channels.ids].sum()) if fact is not None and fact.channels is not None else 0
        if count:
            counts[f"{op_name(binding.value).removeprefix('relax.')} {number}"] = count
    return counts


class _Removal:
    """The same `main`, binding by binding, with what is left of each tensor."""

    def __init__(self, flow: Flow, main: relax.Function, dead: Array) -> None:
        self.flow, self.main, self.dead = flow, main, dead
        self.builder = relax.BlockBuilder()
        self.env: dict[relax.Var, relax.Var] = {}
        self.bindings: list[relax.Binding] = []
        self.shifts: dict[relax.Var, Array] = {}  # to be added to the bias that is added to a product
        self.readers: dict[relax.Var, list[relax.Expr]] = defaultdict(list)
        for expr in (*(binding.value for block in main.body.blocks for binding in block.bindings), main.body.body):
            relax.analysis.post_order_visit(
                expr, lambda e, reader=expr: self.readers[e].append(reader) if isinstance(e, relax.Var) else None
            )

    def function(self) -> relax.Function:
        """The new function."""
        blocks = []
        for block in self.main.body.blocks:
            self.bindings = []
            for binding in block.bindings:
                self._bind(binding)
            blocks.append(type(block)(self.bindings))
        body, old = relax.SeqExpr(blocks, self._new(self.main.body.body)), self.main
        built = relax.Function(old.params, body, old.ret_ty, old.is_pure, old.attrs)
        return relax.transform.Normalize()(tvm.IRModule({"main": built}))["main"]

    def _bind(self, binding: relax.Binding) -> None:
        value, name = binding.value, op_name(binding.value)
        if name in PRODUCTS:
            new = self._product(binding.var, value)
        elif name in ELEMENTWISE:
            new = self._elementwise(binding.var, value)
        elif name in RESHAPES and self._kept(binding.var) is not None:
            new = relax.op.reshape(self._new(value.args[0]), self._shape(binding.var))
        else:
            new = self._new(value)
        self.env[binding.var] = self._emit(binding.var, str(binding.var.name), new)

    def _emit(self, like: relax.Var, name: str, value: relax.Expr) -> relax.Var:
        """A variable of the same kind as `like` for `value`."""
        value = self.builder.normalize(value)
        var = type(like)(name, value.ty)
        self.bindings.append(relax.VarBinding(var, value))
        return var

    def _new(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Var):
            return self.env.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._new(item) for item in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self._new(expr.tuple_value), expr.index)
        if isinstance(expr, Call):
            return Call(expr.op, [self._new(arg) for arg in expr.args], expr.attrs, expr.ty_args)
        return expr

    def _kept(self, var: relax.Expr) -> Array | None:
        """The places of the channels that stay, or nothing where all do."""
        fact = self.flow.facts.get(var) if isinstance(var, relax.Var) else None
        if fact is None or fact.channels is None or not self.dead[fact.channels.ids].any():
            return None
        return np.flatnonzero(~self.dead[fact.channels.ids])

    def _shape(self, var: relax.Var) -> list[int]:
        kept, channels = self._kept(var), self.flow.fact(var).channels
        shape = list(shape_of(var))
        if kept is not None and channels is not None:
            shape[channels.axis] = len(kept)
        return shape

    def _elementwise(self, var: relax.Var, call: Call) -> relax.Expr:
        """The same operator; constants for each channel lose theirs, and a bias takes over what was removed."""
        kept, channels = self._kept(var), self.flow.fact(var).channels
        shift = next((self.shifts[arg] for arg in call.args if arg in self.shifts), None)
        args = []
        for arg in call.args:
            values = self.flow.constant(arg)
            if values is None or (kept is None and shift is None):
                args.append(self._new(arg))
                continue
            if kept is not None and channels is not None:
                place = len(shape_of(call)) - channels.axis
                if size_from_right(values.shape, place) > 1:
                    values = values.take(kept, axis=values.ndim - place)
            args.append(_constant(values if shift is None else values + shift, str(arg.ty.dtype)))
        return Call(call.op, args, call.attrs, call.ty_args)

    def _product(self, var: relax.Var, call: Call) -> relax.Expr:
        """The product of what is left, in a form whose removed rows are added afterwards."""
        rows, outs = self._kept(call.args[0]), self._kept(var)
        if rows is None and outs is None:
            return self._new(call)
        weight = self.flow.constant(call.args[1])
        form = product_of(call, weight)
        if weight is None or form is None:
            raise TypeError(f"{var.name} has a computed weight")
        dtype = str(call.args[1].ty.dtype)
        if outs is not None:
            weight = weight.take(outs, axis=form.output_axis)
        if form.is_depthwise:
            groups = form.groups * weight.shape[form.output_axis] // shape_of(call)[form.result_axis]
            return _grouped(call, self._new(call.args[0]), _constant(weight, dtype), groups)
        shift = self._shift(call, form, outs)
        if rows is not None:
            weight = weight.take(rows, axis=form.input_axis)
        reduced = Call(call.op, [self._new(call.args[0]), _constant(weight, dtype)], call.attrs, call.ty_args)
        return reduced if shift is None else self._shifted(var, reduced, shift)

    def _shift(self, call: Call, form: Product, outs: Array | None) -> Array | None:
        """What the removed rows add to each output channel, in its shape; nothing where that is 0."""
        fact = self.flow.fact(call.args[0])
        if form.weight is None or fact.channels is None:
            return None
        rows = np.flatnonzero(self.dead[fact.channels.ids])
        taps = form.weight[rows].sum(axis=1, dtype=np.int64 if is_integer(str(call.ty.dtype)) else np.float64)
        taps = taps if outs is None else taps[:, outs]
        bounds = fact.bounds.spread(len(fact.channels.ids))
        values = np.where(bounds.constant, bounds.low, 0)[rows].astype(taps.dtype)
        shift = values @ taps
        return shift.reshape(-1, *[1] * (len(shape_of(call)) - 1 - form.result_axis)) if shift.any() else None

    def _shifted(self, var: relax.Var, product: relax.Expr, shift: Array) -> relax.Expr:
        """`product` + `shift`, in the bias that follows, or in an addition of its own."""
        first, *others = self.readers[var]
        is_biased = op_name(first) == "relax.add" and any(self.flow.constant(arg) is not None for arg in first.args)
        if is_biased and not others:
            self.shifts[var] = shift
            return product
        inner = self._emit(var, f"{var.name}_product", product)
        return relax.op.add(inner, _constant(shift, str(inner.ty.dtype)))


def _grouped(call: Call, data: relax.Expr, weight: relax.Expr, groups: int) -> relax.Expr:
    """The depthwise convolution `call` on other operands."""
    attrs = call.attrs
    sizes = {name: [int(size) for size in getattr(attrs, name)] for name in ("strides", "padding", "dilation")}
    layouts = {name: str(getattr(attrs, name)) for name in ("data_layout", "kernel_layout", "out_layout")}
    convolution = getattr(relax.op.nn, op_name(call).removeprefix("relax.nn."))
    return convolution(data, weight, **sizes, **layouts, groups=groups, out_dtype=str(call.ty.dtype))


def _constant(values: Any, dtype: str) -> relax.Expr:
    """A constant of that type; sums of integers wrap around as they do when computed."""
    return relax.const(np.ascontiguousarray(values).astype(dtype).reshape(np.shape(values)), dtype)
