"""The float form of a quantized graph: the network that was quantized, as far as the graph still says, to compare with.

Weights are their dequantized values, and activations are no longer rounded to integers in between. Integer inputs and
outputs stay, so that both forms take and give the same: they are dequantized and quantized where they enter and leave.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, IRModule

from deploy.integer.context import MOVES, Array, Context, const, recall
from deploy.integer.rules import RANGES, Rules
from deploy.relax_rewrite import op_name

# What gives the same integers as the quantization of what it gives on the real numbers, up to rounding.
HOMOGENEOUS = (*MOVES, "relax.image.resize2d", "relax.nn.max_pool2d", "relax.nn.avg_pool2d", "relax.astype")
_ACTIVATIONS = (-1.0, 0.0, 1.0, 6.0)  # where activations end


@dataclass(frozen=True, eq=False)
class _Real:
    """What an integer tensor means: float32 values of the new graph, and how the integers come from them."""

    value: relax.Expr
    scale: Array
    zero_point: Array
    axis: int

    def same_quantization(self, other: _Real) -> bool:
        """Whether the same integers mean the same numbers."""
        equal = np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point)
        return equal and (self.scale.size == self.zero_point.size == 1 or self.axis == other.axis)


def as_float(mod: IRModule) -> IRModule:
    """`mod` with its `main` computing in float32 wherever it dequantizes: same inputs and outputs.

    Integers of which the graph does not say what they mean are computed as they were.
    """
    changed = IRModule(dict(mod.functions))
    changed["main"] = _Floats(mod).function()
    passes = [relax.transform.DeadCodeElimination(["main"]), relax.transform.CanonicalizeBindings()]
    return tvm.transform.Sequential(passes)(changed)


class _Floats:
    """One walk over `main`: every operator is copied, and what nobody reads any more is removed afterwards."""

    def __init__(self, mod: IRModule) -> None:
        self.main, self.ctx = mod["main"], Context(mod, Rules("onnx"))
        self.reals: dict[relax.Var, _Real] = {}

    def function(self) -> relax.Function:
        """The new `main`."""
        ctx = self.ctx
        with ctx.builder.function("main", list(self.main.params)):
            with ctx.builder.dataflow():
                for var, value in ctx.bindings.items():
                    ctx.env[var] = self._copied(value)
                    real = self._real(value)
                    if real is not None:
                        self.reals[var] = real
                result = ctx.builder.emit_output(ctx.new(self.main.body.body))
            ctx.builder.emit_func_output(result)
        built = ctx.builder.get()["main"]
        return relax.Function(built.params, built.body, built.ret_ty, built.is_pure, self.main.attrs)

    def _copied(self, value: relax.Expr) -> relax.Expr:
        """The same in the new graph; a dequantization gives the numbers that were quantized, or a constant."""
        if op_name(value) != "relax.dequantize":
            return self.ctx.emit(self.ctx.new(value)) if isinstance(value, Call) else self.ctx.new(value)
        weight = self.ctx.weight(value)
        if weight is not None:
            real = (weight.values.astype(np.float64) - weight.zero_point) * weight.scale
            return const(real, str(value.ty.dtype))
        before, meant = self.reals.get(value.args[0]), self._quantization(value)
        if before is not None and meant is not None and before.same_quantization(meant):
            return before.value
        return self.ctx.emit(self.ctx.new(value))

    def _quantization(self, call: Call) -> _Real | None:
        """The constant scales and zero points of a quantization or dequantization, with its operand."""
        scale, zero_point = (self.ctx.constant(arg) for arg in call.args[1:3])
        if scale is None or zero_point is None:
            return None
        return _Real(self.ctx.new(call.args[0]), scale.ravel(), zero_point.ravel(), int(call.attrs.axis))

    def _real(self, value: relax.Expr) -> _Real | None:
        """The real numbers behind an integer result, or nothing where the graph does not say."""
        if isinstance(value, relax.Var):  # another name
            return self.reals.get(value)
        name = op_name(value)
        if name == "relax.quantize":
            return self._quantization(value)
        if name == "relax.concat":
            return self._joined(value)
        before = self.reals.get(value.args[0]) if isinstance(value, Call) and value.args else None
        if before is None or before.scale.size * before.zero_point.size != 1:
            return None
        if name == "relax.clip":
            return self._clipped(value, before)
        if name == "relax.astype":
            return before if str(value.ty.dtype).startswith(("int", "uint")) else None
        if name in HOMOGENEOUS:
            return replace(before, value=self.ctx.emit(recall(value, [before.value, *value.args[1:]])))
        return None

    def _joined(self, call: Call) -> _Real | None:
        """The concatenation of tensors that are quantized alike."""
        fields = self.ctx.bound(call.args[0])
        parts = [self.reals.get(field) for field in fields.fields] if isinstance(fields, relax.Tuple) else []
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts) or not all(known[0].same_quantization(part) for part in known):
            return None
        joined = relax.op.concat([part.value for part in known], axis=call.attrs.axis)
        return replace(known[0], value=self.ctx.emit(joined)) if known[0].scale.size == 1 else None

    def _clipped(self, call: Call, before: _Real) -> _Real | None:
        """The activation that a clip of integers is. The end of their type is none, but where an activation ends."""
        dtype = str(call.ty.dtype)
        if dtype not in RANGES:
            return None
        scale, zero_point = float(before.scale[0]), int(before.zero_point[0])
        limits = []
        for arg, end, no_limit in zip(call.args[1:], RANGES[dtype], (-np.inf, np.inf), strict=True):
            limit = (float(arg.value) - zero_point) * scale
            near = [number for number in _ACTIVATIONS if abs(limit - number) <= scale / 2]
            limits.append(near[0] if near else no_limit if float(arg.value) == end else limit)
        value = before.value
        if limits[0] > -np.inf:
            value = self.ctx.emit(relax.op.maximum(value, const(limits[0], "float32")))
        if limits[1] < np.inf:
            value = self.ctx.emit(relax.op.minimum(value, const(limits[1], "float32")))
        return replace(before, value=value)
