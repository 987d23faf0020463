"""How sums are scaled where 64 bits are slow: as the upper half of one product, and shifts of 32 bits.

`high_half` is what TFLite calls a saturating rounding doubling high multiplication (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 2.2); it cannot saturate
here, because no multiplier is negative.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr


@dataclass(frozen=True)
class Scale:
    """value * 2^left * multiplier / 2^31, half upwards; / 2^shift, half away from zero.

    `positive`: a negative result is as good as 0. `clamped`: a value may be too large to be doubled in 32 bits; its
    result is then larger than every 16-bit number, and as good as one of a smaller value.
    """

    multiplier: int
    shift: int
    left: int
    positive: bool
    clamped: bool = False

    def of(self, value: Expr) -> Expr:
        """An int32 value, scaled."""
        high = _high_half(value, tirx.const(self.multiplier, "int64"), self.left, self.clamped)
        return _divided(high, tirx.const(self.shift - 1, "int32"), self.positive)

    def bound(self, magnitude: int) -> int:
        """The largest result for values up to `magnitude`."""
        return ((magnitude << self.left) * self.multiplier >> 31 + self.shift) + 1


@dataclass(frozen=True)
class Term:
    """An operand of a sum of quantized tensors: its zero point, and how the difference to it is scaled.

    Without a scale it is multiplied by 2^left.
    """

    zero_point: int
    scale: Scale | None
    left: int = 0

    def of(self, stored: Expr) -> Expr:
        """A stored int8 as int32."""
        value = stored.astype("int32") - tirx.const(self.zero_point, "int32")
        return value << tirx.const(self.left, "int32") if self.scale is None else self.scale.of(value)


def _high_half(value: Expr, multiplier: Expr, left: int, clamped: bool) -> Expr:
    given = tirx.Var("sum", "int32")
    within = given
    if clamped:
        within = tirx.max(tirx.min(given, tirx.const((1 << 30) - 1, "int32")), tirx.const(-(1 << 30), "int32"))
    wide = (within << tirx.const(left + 1, "int32")).astype("int64") * multiplier
    high = ((wide + tirx.const(1 << 31, "int64")) >> tirx.const(32, "int64")).astype("int32")
    return tirx.Let(given, value, high)


def _divided(value: Expr, less: Expr, positive: bool) -> Expr:
    """value / 2^(less + 1); TVM's analysis of a shift by a difference is wrong, so that 1 is subtracted before.

    A variable for what is scaled: without, an expression doubles, and TVM takes long where scales follow each other.
    """
    high, one = tirx.Var("high", "int32"), tirx.const(1, "int32")
    down = high if positive else high + (high >> tirx.const(31, "int32"))
    return tirx.Let(high, value, ((down >> less) + one) >> one)


def scaled(data: te.Tensor, multiplier: te.Tensor, shift: te.Tensor, like: Scale) -> te.Tensor:
    """int32 `data` with a `Scale` for each channel that differs from `like` in multiplier and shift.

    The tensor `shift` has one less than the scale's.
    """

    def value(*at: Expr) -> Expr:
        high = _high_half(data[at], multiplier[at[-1]].astype("int64"), like.left, like.clamped)
        return _divided(high, shift[at[-1]], like.positive)

    return te.compute(data.shape, value, name="scaled")


def scaled_alike(data: te.Tensor, scale: Scale) -> te.Tensor:
    """int32 `data` with the same scale everywhere."""
    return te.compute(data.shape, lambda *at: scale.of(data[at]), name="scaled")


def sum_of_terms(left: te.Tensor, right: te.Tensor, left_term: Term, right_term: Term) -> te.Tensor:
    """int8 `left` + `right`, each brought to the same scale, as int32."""
    return te.compute(left.shape, lambda *at: left_term.of(left[at]) + right_term.of(right[at]), name="terms")
