"""The imported graph, operator by operator: what lies between a dequantization and a quantization becomes integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from deploy import operators
from deploy.integer import conv, elementwise, pool, requantize, shapes, softmax, tables
from deploy.integer.context import MOVES, Context, Output, Stays, operator, recall
from deploy.integer.rules import RANGES, Rounding, Rules
from deploy.relax_import import RelaxModel
from deploy.relax_rewrite import op_name, shape_of

Handler = Callable[[Context, Call, Output], relax.Expr]

# The float operator whose result is quantized → its integer form. One that is not here, or whose form does not apply,
# is tried as a table, and else stays in float.
HANDLERS: Mapping[str, Handler] = MappingProxyType(
    {
        **dict.fromkeys(conv.LINEAR, conv.linear),
        **dict.fromkeys(MOVES, shapes.move),
        "relax.image.resize2d": shapes.move,
        "relax.dequantize": shapes.requantized,
        "relax.nn.pad": shapes.pad,
        "kernel pad": shapes.pad_kernel,
        "relax.concat": shapes.concatenate,
        "relax.add": elementwise.add,
        "relax.subtract": elementwise.subtract,
        "relax.multiply": elementwise.multiply,
        "relax.maximum": elementwise.extremum,
        "relax.minimum": elementwise.extremum,
        "relax.max": elementwise.extremum_of_stack,
        "relax.min": elementwise.extremum_of_stack,
        "relax.nn.max_pool2d": pool.max_pool,
        "relax.nn.avg_pool2d": pool.average,
        "relax.nn.adaptive_avg_pool2d": pool.average,
        "relax.mean": pool.mean,
        "relax.sum": pool.mean,
        "relax.nn.softmax": softmax.softmax,
    }
)


# Operators that may stand behind a quantization as well as before it: that is one function, and it keeps every order.
MONOTONE = (*MOVES, "relax.nn.max_pool2d")


@dataclass(frozen=True)
class FloatOperator:
    """An operator that still computes on floating point numbers, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """`mod` has the same `main` as the imported module, in integers but for `kept_float`; the counts are of operators
    by name, in the imported module and in this one."""

    mod: Any = field(repr=False)
    kept_float: tuple[FloatOperator, ...]
    before: Mapping[str, int]
    after: Mapping[str, int]


def to_integer(model: RelaxModel, rounding: Rounding = "single", source_format: str = "tflite") -> IntegerModel:
    """`model` with its quantized operators computing on integers.

    `source_format` (tflite, onnx, torch) says whose rounding is right, `rounding` which of TFLite's: `single` is
    LiteRT's, `double` TFLite Micro's and CMSIS-NN's. Inputs, outputs and their types stay. Raises InputError for an
    unknown format or rounding.
    """
    rules = Rules(source_format, rounding)
    before, _ = operators.count(model.mod)
    rewriting = _Rewriting(model.mod, rules)
    mod = tvm.IRModule(dict(model.mod.functions))
    mod["main"] = rewriting.function()
    mod = relax.transform.DeadCodeElimination(["main"])(mod)
    live = {str(binding.var.name) for block in mod["main"].body.blocks for binding in block.bindings}
    kept = tuple(one for name, one in rewriting.kept() if name in live)
    mod = relax.transform.CanonicalizeBindings()(mod)  # the result's variable would be another's second name
    return IntegerModel(mod, kept, MappingProxyType(before), MappingProxyType(operators.count(mod)[0]))


class _Rewriting:
    """One walk over `main`; by its new variable's name, `copied` has every float operator that was taken as it is, and
    `scaled` every linear one whose sums are integers and whose result is not."""

    def __init__(self, mod: tvm.IRModule, rules: Rules) -> None:
        self.main, self.copied, self.scaled = mod["main"], dict[str, Call](), dict[str, Call]()
        self.ctx = Context(mod, rules)
        self.reasons: dict[relax.Expr, str] = {}
        self.clipped: set[relax.Var] = set()  # quantized results that are within their clip already
        self.clips: dict[relax.Var, Call] = {  # a clip that alone reads a quantized result, by that result
            value.args[0]: value
            for value in self.ctx.bindings.values()
            if op_name(value) == "relax.clip" and self.ctx.uses[value.args[0]] == 1
        }

    def function(self) -> relax.Function:
        """The new `main`."""
        ctx = self.ctx
        with ctx.builder.function("main", list(self.main.params)):
            with ctx.builder.dataflow():
                for var, value in ctx.bindings.items():
                    integers = self._integers(var, value)
                    ctx.env[var] = self._copy(value) if integers is None else integers
                result = ctx.builder.emit_output(ctx.new(self.main.body.body))
            ctx.builder.emit_func_output(result)
        built = ctx.builder.get()["main"]
        return relax.Function(built.params, built.body, built.ret_ty, built.is_pure, self.main.attrs)

    def _integers(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """The integer form of what a variable is bound to, or nothing where it has none."""
        name = op_name(value)
        try:
            if name == "relax.quantize":
                result = self._quantize(value.args[0], self._output(var, value))
                if result is not None and var in self.clips:
                    self.clipped.add(var)
                return result
            if name == "relax.clip":
                return self._clip(value)
            if name == "relax.astype":
                return self._average(value)
            if name in conv.LINEAR and not self.ctx.rules.fixed_point and str(value.ty.dtype) == "float32":
                result = conv.real(self.ctx, value)
                self.scaled[str(result.name)] = value
                return result
        except Stays as stays:
            self.reasons.setdefault(value, str(stays))
        return None

    def _output(self, var: relax.Var, call: Call) -> Output:
        """What a quantization gives, within the clip that TFLite's frontend puts behind it. Raises Stays."""
        out = self.ctx.output(call)
        if var not in self.clips:
            return out
        low, high = _limits(self.clips[var], out.dtype)
        return replace(out, low=self._exact(low, out), high=self._exact(high, out))

    def _exact(self, limit: int, out: Output) -> int:
        """A limit of a fused activation as TFLite rounds it: the frontend divides in double, a half to the even."""
        for real in (0.0, -1.0, 1.0, 6.0) if self.ctx.rules.fixed_point else ():
            if limit == round(real / float(out.scale)) + out.zero_point:
                limit = self.ctx.rules.quantized(real, out.scale, out.zero_point)
                break
        return min(max(limit, out.low), out.high)

    def _quantize(self, expr: relax.Expr, out: Output) -> relax.Expr | None:
        """The quantized result of the float operators behind `expr`, or nothing, with the reason noted."""
        while (limited := self.ctx.limits(expr)) is not None:
            expr, low, high = limited
            out = self._limited(out, low, high)
        root = self.ctx.bound(expr)
        if not isinstance(root, Call):
            return None
        reasons = []
        for handler in (HANDLERS.get(operator(root)), tables.function):
            try:
                if handler is not None:
                    return handler(self.ctx, root, out)
            except Stays as stays:
                reasons.append(str(stays))
        self.reasons[root] = reasons[0]
        if op_name(root) not in MONOTONE or self.ctx.rules.fixed_point:
            return None
        inner = self._quantize(root.args[0], out)
        return None if inner is None else self.ctx.emit(recall(root, [inner, *root.args[1:]]))

    def _limited(self, out: Output, low: float, high: float) -> Output:
        """`out` within the range that an activation leaves."""
        first, last = (self.ctx.rules.quantized(bound, out.scale, out.zero_point) for bound in (low, high))
        # an empty range is the type's nearest end
        first, last = (min(max(bound, out.low), out.high) for bound in (first, last))
        return replace(out, low=first, high=last, activated=True)

    def _clip(self, call: Call) -> relax.Expr | None:
        """A clamp of integers; nothing to do where the quantization before it has done it."""
        dtype, value = str(call.ty.dtype), self.ctx.new(call.args[0])
        if dtype not in RANGES:
            return None
        if call.args[0] in self.clipped:
            return value
        return requantize.clamp(self.ctx, value, *_limits(call, dtype))

    def _average(self, call: Call) -> relax.Expr | None:
        """TFLite's average: the frontend averages in int32, and rounds towards zero."""
        pooled = self.ctx.bound(call.args[0])
        if op_name(pooled) != "relax.nn.avg_pool2d" or not self.ctx.rules.fixed_point:
            return None
        widened = self.ctx.bound(pooled.args[0])
        if op_name(widened) != "relax.astype":
            return None
        data, dtype = self.ctx.new(widened.args[0]), str(call.ty.dtype)
        if dtype not in RANGES or str(data.ty.dtype) != dtype:
            return None
        return pool.average_of_integers(self.ctx, data, pooled, Output(np.float32(1), 0, dtype, *RANGES[dtype]))

    def _copy(self, value: relax.Expr) -> relax.Expr:
        """The same operator in the new graph, noted when it computes on floating point numbers."""
        if not isinstance(value, Call):
            return self.ctx.new(value)
        quantized = self._float_quantization(value)
        copied = self.ctx.emit(self.ctx.new(value)) if quantized is None else quantized
        computes = self.ctx.constant(value) is None  # what is constant is gone when the model runs
        if computes and any(is_float(expr.ty) for expr in (copied, *value.args)):
            self.copied[str(copied.name)] = value
        return copied

    def _float_quantization(self, call: Call) -> relax.Expr | None:
        """What quantizes or dequantizes where Relax's own operator would differ, or be in the way.

        torch multiplies with the inverse of the scale. And layout conversion does not know relax.quantize and
        relax.dequantize: between two convolutions they would be between two transposes.
        """
        real = call if op_name(call) == "relax.dequantize" else call.args[0] if call.args else call
        if self.ctx.rules.fixed_point or str(getattr(real.ty, "dtype", "")) != "float32":
            return None
        if op_name(call) == "relax.dequantize":
            return self._float_dequantization(call)
        if op_name(call) != "relax.quantize" or str(call.attrs.out_dtype) not in RANGES:
            return None
        data, scale, zero_point = (self.ctx.new(arg) for arg in call.args)
        if all(self.ctx.constant(arg) is None and shape_of(arg) == () for arg in call.args[1:]):
            return requantize.from_computed(self.ctx, data, scale, zero_point, str(call.attrs.out_dtype))
        try:
            out = self.ctx.output(call)
        except Stays:
            return None
        if self.ctx.rules.inverse(out.scale) is None:
            return None
        return requantize.from_real(self.ctx, data, out)

    def _float_dequantization(self, call: Call) -> relax.Expr | None:
        try:
            tensor = self.ctx.quantized(call)
        except Stays:
            return None
        return None if tensor.constant is not None else requantize.real(self.ctx, tensor)

    def kept(self) -> list[tuple[str, FloatOperator]]:
        """Everything that gives floating point numbers, by its variable's name."""
        read = "the integer sums of {} are read as floating point numbers"
        scaled = {n: FloatOperator("dequantize", read.format(operator(c)[6:])) for n, c in self.scaled.items()}
        return [*((name, self._described(call)) for name, call in self.copied.items()), *scaled.items()]

    def _described(self, call: Call) -> FloatOperator:
        """A float operator's name, and why it is one."""
        return FloatOperator(operator(call).removeprefix("relax."), self.reasons.get(call) or self._reason(call))

    def _reason(self, call: Call) -> str:
        name = op_name(call)
        if name == "relax.quantize":
            is_input = isinstance(self.ctx.bound(call.args[0]), relax.Var)
            return "the model's input is not quantized" if is_input else "what it quantizes is computed in float"
        if name == "relax.dequantize":
            is_sum = str(call.args[0].ty.dtype) == "int32" and self.ctx.constant(call.args[0]) is None
            if is_sum and self.ctx.rules.fixed_point:  # as relax_tflite_hybrid imports it
                return "its activations are quantized when the model runs: only its weights are stored in integers"
            return "its result is read as a floating point number"
        return "its operands or its result are not quantized"


def _limits(clip: Call, dtype: str) -> tuple[int, int]:
    """The integers that a clip limits a tensor of that type to."""
    smallest, largest = RANGES[dtype]
    low, high = (int(min(max(float(arg.value), smallest), largest)) for arg in clip.args[1:])
    return low, high


def is_float(ty: Any) -> bool:
    """Whether a type is a floating point tensor, or a tuple with one."""
    if isinstance(ty, relax.TupleType):
        return any(is_float(item) for item in ty.fields)
    return isinstance(ty, relax.TensorType) and str(ty.dtype).startswith(("float", "bfloat"))
