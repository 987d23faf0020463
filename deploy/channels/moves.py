"""What operators do to channels that move, join or gather elements."""

from __future__ import annotations

from math import prod

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.channels import bounds as cb
from deploy.channels.bounds import Array, Bounds
from deploy.channels.flow import Channels, Fact, Flow
from deploy.relax_rewrite import op_name, shape_of


def take(flow: Flow, call: Call) -> Fact | None:
    """A table of constants, read at the operand."""
    table = flow.constant(call.args[0])
    if table is None or table.ndim != 1 or not table.size or str(call.attrs.mode) != "clip":
        return None
    index = flow.fact(call.args[1])
    return Fact(cb.looked_up(table, index.bounds, str(call.ty.dtype)), index.channels)


def _with_channels(call: Call, fact: Fact, axis: int, bounds: Bounds | None = None) -> Fact:
    """The fact of a result that has its operand's channels on `axis`."""
    bounds = fact.bounds if bounds is None else bounds
    channels = None if fact.channels is None else Channels(axis, fact.channels.ids)
    return Fact(bounds if channels is not None else bounds.hull(), channels)


def reshape(flow: Flow, call: Call) -> Fact | None:
    """Channels keep an axis of their own, or share one with others, as where an image becomes a row."""
    fact = flow.fact(call.args[0])
    if fact.channels is None:
        return Fact(fact.bounds.hull())
    before, after, axis = shape_of(call.args[0]), shape_of(call), fact.channels.axis
    for place, size in enumerate(after):
        for first in range(axis + 1):
            for last in range(axis + 1, len(before) + 1):
                if prod(before[:first]) == prod(after[:place]) and prod(before[first:last]) == size >= before[axis]:
                    return _merged(fact, before[first:last], axis - first, place)
    return None


def _merged(fact: Fact, shape: tuple[int, ...], axis: int, place: int) -> Fact | None:
    """Axes of sizes `shape`, the channels' being `axis`, in one."""
    if fact.channels is None or shape[axis] == 1:
        return None

    def spread(values: Array) -> Array:
        column = values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return np.broadcast_to(column, shape).reshape(-1)

    bounds = fact.bounds.spread(shape[axis])
    return Fact(Bounds(spread(bounds.low), spread(bounds.high)), Channels(place, spread(fact.channels.ids)))


def permute(flow: Flow, call: Call) -> Fact:
    """A transpose."""
    fact, axes = flow.fact(call.args[0]), call.attrs.axes
    rank = len(shape_of(call))
    order = [int(axis) % rank for axis in axes] if axes is not None else list(range(rank))[::-1]
    return _with_channels(call, fact, order.index(fact.channels.axis) if fact.channels is not None else 0)


def pad(flow: Flow, call: Call) -> Fact | None:
    """Padding between channels is unknown; around them it is one more value."""
    fact, width = flow.fact(call.args[0]), [int(width) for width in call.attrs.pad_width]
    axis = fact.channels.axis if fact.channels is not None else 0
    if fact.channels is not None and any(width[2 * axis : 2 * axis + 2]):
        return None
    bounds = fact.bounds
    if str(call.attrs.pad_mode) == "constant":
        value = float(call.attrs.pad_value)
        end = cb.numbers([int(value) if cb.is_integer(str(call.ty.dtype)) else value], str(call.ty.dtype))
        bounds = cb.joined([bounds, Bounds(end, end)])
    return _with_channels(call, fact, axis, bounds)


def strided_slice(flow: Flow, call: Call) -> Fact | None:
    """A part of other axes than the channels'."""
    fact, rank = flow.fact(call.args[0]), len(shape_of(call))
    axis = fact.channels.axis if fact.channels is not None else 0
    axes = call.args[1]
    is_other = isinstance(axes, relax.Tuple) and axis not in [int(item.value) % rank for item in axes.fields]
    return _with_channels(call, fact, axis) if is_other or fact.channels is None else None


def resize(flow: Flow, call: Call) -> Fact | None:
    """Nearest neighbours: the same values."""
    fact = flow.fact(call.args[0])
    axis = str(call.attrs.layout).index("C")
    if str(call.attrs.method) != "nearest_neighbor" or (fact.channels is not None and fact.channels.axis != axis):
        return None
    return _with_channels(call, fact, axis)


def concat(flow: Flow, call: Call) -> Fact | None:
    """Tensors joined along their channels, or, where these go together, along another axis."""
    joined = flow.tuples.get(call.args[0]) if isinstance(call.args[0], relax.Var) else call.args[0]
    if not isinstance(joined, relax.Tuple) or not all(isinstance(field, relax.Var) for field in joined.fields):
        return None
    facts, rank = [flow.fact(field) for field in joined.fields], len(shape_of(call))
    axes = {fact.channels.axis for fact in facts if fact.channels is not None}
    if len(axes) != 1 or any(field in flow.constants for field in joined.fields):
        return None
    axis = axes.pop()
    along = int(call.attrs.axis) % rank if call.attrs.axis is not None else -1
    ids, bounds = [], []
    for field, fact in zip(joined.fields, facts, strict=True):
        size = shape_of(field)[axis]
        ids.append(flow.fresh(size, pinned=True) if fact.channels is None else fact.channels.ids)
        bounds.append(fact.bounds.spread(size))
    if along == axis:
        low, high = (np.concatenate([getattr(part, end) for part in bounds]) for end in ("low", "high"))
        return Fact(Bounds(low, high), Channels(axis, np.concatenate(ids)))
    flow.ties += [(ids[0], other) for other in ids[1:]]
    return Fact(cb.joined(bounds), Channels(axis, ids[0]))


def pool(flow: Flow, call: Call) -> Fact | None:
    """An average or maximum over windows: between the extremes of what is in them."""
    fact, attrs, name = flow.fact(call.args[0]), call.attrs, op_name(call)
    layout = str(attrs.layout)
    axis = layout.index("C")
    if (str(attrs.out_layout) or layout) != layout or len(layout) != len(shape_of(call)):
        return None
    if fact.channels is not None and fact.channels.axis != axis:
        return None
    bounds, dtype = fact.bounds, str(call.ty.dtype)
    if "adaptive" not in name and (any(int(padding) for padding in attrs.padding) or attrs.ceil_mode):
        # a window may hold nothing but padding, which an average counts as 0 and a maximum as the smallest value
        border = cb.whole(dtype).low if "max" in name and attrs.ceil_mode else cb.numbers([0], dtype)
        if "avg" in name or attrs.ceil_mode:
            bounds = cb.joined([bounds, Bounds(border, border)])
    return _with_channels(call, fact, axis, bounds)


def reduction(flow: Flow, call: Call) -> Fact | None:
    """A sum, mean or extreme over other axes than the channels'."""
    fact, shape, dtype = flow.fact(call.args[0]), shape_of(call.args[0]), str(call.ty.dtype)
    axes = [int(axis) % len(shape) for axis in call.attrs.axis] if call.attrs.axis is not None else range(len(shape))
    axis = fact.channels.axis if fact.channels is not None else 0
    if fact.channels is not None and axis in axes:
        return None
    count = prod(shape[axis] for axis in axes) if op_name(call) == "relax.sum" else 1
    place = axis if call.attrs.keepdims else axis - sum(other < axis for other in axes)
    return _with_channels(call, fact, place, cb.summed(fact.bounds, count, dtype))
