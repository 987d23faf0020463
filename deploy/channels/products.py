"""What convolutions, products and element-wise operators do to channels."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.channels import bounds as cb
from deploy.channels.bounds import Array, Bounds
from deploy.channels.flow import Channels, Fact, Flow, Use, size_from_right
from deploy.relax_rewrite import op_name, shape_of

CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
TRANSPOSED = tuple(f"{name}_transpose" for name in CONVOLUTIONS)
PRODUCTS = (*CONVOLUTIONS, *TRANSPOSED, "relax.matmul")
ELEMENTWISE = (*cb.BINARY, *cb.UNARY, "relax.clip", "relax.astype", "relax.nn.leakyrelu")


@dataclass(frozen=True, eq=False)
class Product:
    """A convolution or product with a constant weight: where its channels are, and its weight in one order of axes.

    weight: [inputs, taps, outputs], or [channels, taps, multiplier] where it is depthwise; nothing for other groups.
    """

    data_axis: int
    result_axis: int
    input_axis: int  # of the weight as it is
    output_axis: int
    groups: int
    is_depthwise: bool
    partial: bool
    weight: Array | None


def product_of(call: Call, weight: Array | None) -> Product | None:
    """The form of a call from PRODUCTS, or nothing where it is not one with a constant weight and plain layouts."""
    rank = len(shape_of(call))
    if weight is None:
        return None
    if op_name(call) == "relax.matmul":
        is_plain = weight.ndim == 2 and len(shape_of(call.args[0])) == rank >= 2
        rows = weight.reshape(weight.shape[0], 1, -1)
        return Product(rank - 1, rank - 1, 0, 1, 1, False, False, rows) if is_plain else None
    attrs = call.attrs
    data, kernel = str(attrs.data_layout), str(attrs.kernel_layout)
    result = str(attrs.out_layout) or data
    if not len(data) == len(kernel) == len(result) == rank:
        return None
    into, out, groups = kernel.index("I"), kernel.index("O"), int(attrs.groups)
    is_transposed = op_name(call) in TRANSPOSED
    inputs = shape_of(call.args[0])[data.index("C")]
    is_depthwise = 1 < groups == inputs and not is_transposed
    ordered: Array | None = None
    if groups == 1:
        ordered = np.moveaxis(weight, (into, out), (0, -1)).reshape(inputs, -1, weight.shape[out])
    elif is_depthwise:
        rows = np.moveaxis(weight, out, 0).reshape(groups, weight.shape[out] // groups, -1)
        ordered = np.swapaxes(rows, 1, 2)
    partial = is_transposed or any(int(padding) for padding in attrs.padding)
    return Product(data.index("C"), result.index("C"), into, out, groups, is_depthwise, partial, ordered)


def product(flow: Flow, call: Call) -> Fact | None:
    form = product_of(call, flow.constant(call.args[1]))
    if form is None or not isinstance(call.args[0], relax.Var):
        return None
    dtype, outputs = str(call.ty.dtype), shape_of(call)[form.result_axis]
    ids, bounds = flow.reading(call.args[0], form.data_axis)
    if form.weight is None:
        flow.pin(call.args[0])
        return Fact(cb.whole(dtype), Channels(form.result_axis, flow.fresh(outputs, pinned=True)))
    if form.is_depthwise:
        ids = flow.fresh(form.groups, pinned=True) if ids is None else ids
        found = cb.depthwise(form.weight, bounds, form.partial, dtype)
        return Fact(found, Channels(form.result_axis, np.repeat(ids, outputs // form.groups)))
    outs = flow.fresh(outputs)
    if ids is not None:
        bounds = bounds.spread(len(ids))
        foldable = bounds.constant & ((bounds.low == 0).astype(bool) | (not form.partial))
        flow.uses.append(Use(ids, outs, (form.weight != 0).any(axis=1), foldable))
    return Fact(cb.linear(form.weight, bounds, form.partial, dtype), Channels(form.result_axis, outs))


def _lead(flow: Flow, call: Call) -> Channels | None:
    """The channels of an element-wise result: those of its operands, which then go together."""
    rank, lead = len(shape_of(call)), None
    variables = [arg for arg in call.args if isinstance(arg, relax.Var) and flow.constant(arg) is None]
    for arg in variables:
        found = flow.fact(arg).channels
        if found is None:
            continue
        axis = found.axis + rank - len(shape_of(arg))
        if shape_of(call)[axis] != len(found.ids) or (lead is not None and lead.axis != axis):
            flow.pin(call)  # one channel meets many, or the operands disagree
            return None
        if lead is not None and (lead.ids != found.ids).any():
            flow.ties.append((lead.ids, found.ids))
        lead = lead or Channels(axis, found.ids)
    others = [arg for arg in variables if flow.fact(arg).channels is None]
    if lead is not None and any(size_from_right(shape_of(arg), rank - lead.axis) != 1 for arg in others):
        flow.pin(call)
        return None
    return lead


def elementwise(flow: Flow, call: Call) -> Fact:
    """An operator from ELEMENTWISE."""
    channels, dtype, name = _lead(flow, call), str(call.ty.dtype), op_name(call)
    place = None if channels is None else len(shape_of(call)) - channels.axis
    data = _operand(flow, call.args[0], place)
    if name in cb.BINARY:
        return Fact(cb.binary(name, data, _operand(flow, call.args[1], place), dtype), channels)
    if name == "relax.clip":
        return Fact(_clipped(call, data, dtype), channels)
    if name == "relax.astype":
        return Fact(cb.cast(data, dtype), channels)
    if name == "relax.nn.leakyrelu":
        return Fact(cb.leaky(data, float(call.attrs.alpha), dtype), channels)
    return Fact(cb.unary(name, data, dtype), channels)


def _operand(flow: Flow, expr: relax.Expr, place: int | None) -> Bounds:
    """The bounds of an operand for each channel, these being at `place` from the right, or for the whole tensor."""
    values = flow.constant(expr)
    if values is None:
        bounds = flow.fact(expr).bounds
        return bounds.hull() if place is None else bounds
    is_wide = place is not None and size_from_right(values.shape, place) > 1
    return cb.of_constant(values, str(expr.ty.dtype), values.ndim - place if place is not None and is_wide else None)


def _clipped(call: Call, data: Bounds, dtype: str) -> Bounds:
    for name, arg in (("relax.maximum", call.args[1]), ("relax.minimum", call.args[2])):
        limit = float(arg.value)
        if isfinite(limit):
            end = cb.numbers([int(limit) if cb.is_integer(dtype) else limit], dtype)
            data = cb.binary(name, data, Bounds(end, end), dtype)
    return data
