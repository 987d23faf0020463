"""Which channels of a Relax `main` belong together, what values they can take, and who reads them.

Every output channel of a convolution or product gets a number. Operators that keep channels apart (element-wise ones,
depthwise convolutions, pooling, reshapes, concatenation) carry the numbers on; those that are not known here, and the
model's outputs, pin them: a pinned channel stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.channels.bounds import Array, Bounds, is_integer, whole
from deploy.relax_rewrite import array_of, op_name


@dataclass(frozen=True, eq=False)
class Channels:
    """The axis that a tensor has its channels on, and the number of each: [size of that axis]."""

    axis: int
    ids: Array


@dataclass(frozen=True, eq=False)
class Fact:
    """What is known of a tensor; the bounds are for each of its channels, or for all."""

    bounds: Bounds
    channels: Channels | None = None


@dataclass(frozen=True, eq=False)
class Use:
    """A product that reads channels `rows` and makes channels `outs`.

    nonzero, [rows, outs]: whether there is a weight between them; foldable, [rows]: whether the row adds the same to
    every element of an output channel, so that the bias can do it.
    """

    rows: Array
    outs: Array
    nonzero: Array
    foldable: Array


Handler = Callable[["Flow", Call], Fact | None]


class Flow:
    """One walk over `main`, with a handler for each operator that says what is known of its result.

    A handler gives nothing for a form that it does not know. Afterwards `facts` are by variable, and `pinned`, `ties`
    and `uses` are what limits removal of the `count` channels.
    """

    def __init__(self, main: relax.Function, handlers: Mapping[str, Handler]) -> None:
        self.count, self._handlers = 0, handlers
        self.constants: dict[relax.Var, Array] = {}
        self.tuples: dict[relax.Var, relax.Tuple] = {}
        self.facts: dict[relax.Var, Fact] = {}
        self.pinned: list[Array] = []
        self.ties: list[tuple[Array, Array]] = []  # channels that only go together, pair by pair
        self.uses: list[Use] = []
        for block in main.body.blocks:
            for binding in block.bindings:
                self._bind(binding)
        self.pin(main.body.body)

    def _bind(self, binding: relax.Binding) -> None:
        var, value = binding.var, binding.value
        constant = self.constant(value)
        if constant is not None:
            self.constants[var] = constant
        elif isinstance(value, relax.Tuple):
            self.tuples[var] = value
        elif isinstance(value, relax.Var) and value in self.facts:
            self.facts[var] = self.facts[value]
        else:
            handler = self._handlers.get(op_name(value))
            fact = handler(self, value) if handler is not None and _is_static(value) else None
            if fact is None:
                self.pin(value)
            else:
                self.facts[var] = fact

    def fresh(self, count: int, pinned: bool = False) -> Array:
        """Numbers for new channels."""
        ids = np.arange(self.count, self.count + count)
        self.count += count
        if pinned:
            self.pinned.append(ids)
        return ids

    def constant(self, expr: relax.Expr) -> Array | None:
        """The values of a constant, also one that has a name."""
        return self.constants.get(expr) if isinstance(expr, relax.Var) else array_of(expr)

    def pin(self, expr: relax.Expr) -> None:
        """Keep all channels of all tensors in an expression."""
        found: list[relax.Var] = []
        relax.analysis.post_order_visit(expr, lambda e: found.append(e) if isinstance(e, relax.Var) else None)
        for var in found:
            if var in self.tuples:
                self.pin(self.tuples[var])
            channels = self.fact(var).channels if var in self.facts else None
            if channels is not None:
                self.pinned.append(channels.ids)

    def fact(self, expr: relax.Expr) -> Fact:
        """What is known of a tensor that is not constant."""
        found = self.facts.get(expr) if isinstance(expr, relax.Var) else None
        return found if found is not None else Fact(whole(str(expr.ty.dtype)))

    def reading(self, expr: relax.Expr, axis: int) -> tuple[Array | None, Bounds]:
        """Numbers and bounds of the channels on `axis`; numbers of those on another axis are pinned."""
        fact = self.fact(expr)
        if fact.channels is not None and fact.channels.axis == axis:
            return fact.channels.ids, fact.bounds
        self.pin(expr)
        return None, fact.bounds.hull()


def _is_static(call: Call) -> bool:
    """Whether all tensors of a call have shapes of numbers and types that bounds are known for."""
    args = [field for arg in call.args for field in (arg.fields if isinstance(arg, relax.Tuple) else [arg])]
    types = [call.ty, *(arg.ty for arg in args if isinstance(arg, relax.Var))]
    tensors = [ty for ty in types if isinstance(ty, relax.TensorType)]
    shapes = [ty.shape for ty in tensors]
    return all(isinstance(s, relax.ShapeExpr) and all(hasattr(d, "value") for d in s) for s in shapes) and all(
        is_integer(str(ty.dtype)) or str(ty.dtype) in ("float16", "float32", "float64") for ty in tensors
    )


def size_from_right(shape: tuple[int, ...], place: int) -> int:
    """The size of the axis at `place` from the right, counted from 1; what is broadcast there has 1."""
    return shape[-place] if place <= len(shape) else 1
