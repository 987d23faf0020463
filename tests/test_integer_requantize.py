"""The arithmetic of requantization, against its definition step by step in Python integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import InputError

tvm = pytest.importorskip("tvm")
from tvm import relax  # noqa: E402

from deploy.integer import fixed_point as fp  # noqa: E402
from deploy.integer import once  # noqa: E402
from deploy.integer.context import Context, Output  # noqa: E402
from deploy.integer.requantize import requantize, requantize_once  # noqa: E402
from deploy.integer.rules import Rules  # noqa: E402
from deploy.relax_rewrite import array_of, op_name  # noqa: E402

INT32 = st.integers(-(2**31), 2**31 - 1)
SCALES = st.floats(2.0**-20, 0.999)
OPERATIONS = {
    "relax.multiply": np.multiply,
    "relax.add": np.add,
    "relax.right_shift": np.right_shift,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.round": np.round,
}


def evaluate(accumulators, build):
    """What the operators that `build` emits for an int32 vector compute, by NumPy in the types they have."""
    x = relax.Var("x", relax.TensorType((len(accumulators), 1), "int32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        builder.emit_func_output(x)
    ctx = Context(builder.get(), Rules(*build.rules))
    with ctx.builder.function("main", [x]):
        with ctx.builder.dataflow():
            result = ctx.builder.emit_output(build(ctx, x))
        ctx.builder.emit_func_output(result)
    main = ctx.builder.get()["main"]
    values = {x: np.array(accumulators, np.int32).reshape(-1, 1)}
    for binding in (b for block in main.body.blocks for b in block.bindings):
        values[binding.var] = _value(binding.value, values)
    return values[main.body.body]


def _value(expr, values):
    if isinstance(expr, relax.Var):
        return values[expr]
    constants = [array_of(arg) for arg in expr.args]
    operands = [values[a] if c is None else c for a, c in zip(expr.args, constants, strict=True)]
    if op_name(expr) == "relax.astype":
        return operands[0].astype(str(expr.attrs.dtype))
    assert len({operand.dtype for operand in operands}) == 1
    return OPERATIONS[op_name(expr)](*operands)


def requantizing(scales, out, rules=("tflite",), once_only=False):
    """A builder of one requantization of [n, 1] accumulators to [n, channels]."""

    def build(ctx, x):
        shape = (len(scales),)
        if once_only:
            return requantize_once(ctx, x, np.array(scales), out, shape, fp.INT32_MAX)
        return requantize(ctx, x, np.array(scales), out, shape)

    build.rules = rules
    return build


def doubling_high_multiply(a: int, b: int) -> int:
    """gemmlowp's SaturatingRoundingDoublingHighMul, as it is defined."""
    if a == b == -(2**31):
        return 2**31 - 1
    product = a * b
    nudge = (1 << 30) if product >= 0 else 1 - (1 << 30)
    return math.trunc((product + nudge) / 2**31) if abs(product) < 2**52 else _truncated(product + nudge, 31)


def _truncated(value: int, bits: int) -> int:
    return value >> bits if value >= 0 else -(-value >> bits)


def rounding_divide(value: int, exponent: int) -> int:
    """gemmlowp's RoundingDivideByPOT, as it is defined."""
    mask = (1 << exponent) - 1
    remainder = value & mask
    threshold = (mask >> 1) + (1 if value < 0 else 0)
    return (value >> exponent) + (1 if remainder > threshold else 0)


def defined(accumulator: int, scale: float, out: Output) -> int:
    """The result by TFLite's definition."""
    multiplier, shift = fp.quantize_multiplier(scale)
    high = doubling_high_multiply(accumulator << max(shift, 0), multiplier)
    return min(max(rounding_divide(high, max(-shift, 0)) + out.zero_point, out.low), out.high)


def output(zero_point: int, low: int = -128, high: int = 127) -> Output:
    return Output(np.float32(1), zero_point, "int8", low, high)


@given(INT32, st.integers(-(2**31) + 1, 2**31 - 1))
def test_high_multiplication(a, b):
    assert fp.high_multiply(a, b) == doubling_high_multiply(a, b)


@given(INT32, st.integers(0, 31))
def test_division_by_a_power(value, exponent):
    assert fp.divide_by_power(value, exponent) == rounding_divide(value, exponent)


@given(st.floats(2.0**-30, 2.0**10))
def test_multipliers(scale):
    multiplier, shift = fp.quantize_multiplier(scale)
    assert 2**30 <= multiplier < 2**31
    assert math.isclose(multiplier * 2.0 ** (shift - 31), scale, rel_tol=2**-31)


def test_multipliers_at_the_ends():
    assert fp.quantize_multiplier(0.0) == fp.quantize_multiplier(2.0**-40) == (0, 0)
    assert fp.quantize_multiplier(1 - 2.0**-40) == (2**30, 1)


near_ties = st.tuples(st.integers(-140, 140), st.integers(-3, 3))


@given(
    st.lists(SCALES, min_size=1, max_size=4), st.lists(near_ties, min_size=1), st.lists(INT32), st.integers(-128, 127)
)
def test_rounding_twice(scales, ties, anywhere, zero_point):
    """Accumulators around the halves, where rounding decides, and anywhere."""
    around = [int((tie + 0.5) / scales[0]) + step for tie, step in ties]
    accumulators = [min(max(a, -(2**31)), 2**31 - 1) for a in around] + anywhere
    for out in (output(zero_point), output(zero_point, low=zero_point), output(-128, -128, 100)):
        got = evaluate(accumulators, requantizing(scales, out))
        assert got.dtype == np.int8
        assert got.tolist() == [[defined(a, scale, out) for scale in scales] for a in accumulators]


@given(st.lists(st.floats(1.0, 30.0), min_size=1, max_size=3), st.lists(st.integers(-4000, 4000), min_size=1))
def test_scales_above_one(scales, accumulators):
    got = evaluate(accumulators, requantizing(scales, output(3)))
    assert got.tolist() == [[defined(a, scale, output(3)) for scale in scales] for a in accumulators]


def rounded_away(accumulator: int, scale: float, out: Output) -> int:
    product = float(accumulator) * scale
    away = math.copysign(math.floor(abs(product)) + (abs(product) % 1 >= 0.5), product)
    return min(max(int(away) + out.zero_point, out.low), out.high)


@given(st.lists(SCALES | st.sampled_from([0.5, 0.25, 0.375, 2.0**-12]), min_size=1, max_size=3),
       st.lists(near_ties, min_size=1), st.lists(INT32), st.integers(-128, 127))  # fmt: skip
def test_rounding_once(scales, ties, anywhere, zero_point):
    around = [int((tie + 0.5) / scales[0]) + step for tie, step in ties]
    accumulators = [min(max(a, -(2**31)), 2**31 - 1) for a in around] + anywhere
    out = output(zero_point)
    got = evaluate(accumulators, requantizing(scales, out, once_only=True))
    assert got.tolist() == [[rounded_away(a, scale, out) for scale in scales] for a in accumulators]


@given(st.floats(2.0**-14, 100.0), st.integers(-128, 127))  # below, some have none and the layer stays in float
def test_a_multiplier_that_rounds_once_is_found(scale, zero_point):
    assert once.rounds_alike(scale, -128 - zero_point, 127 - zero_point) is not None


def test_no_multiplier_rounds_once():
    assert once.rounds_alike(0.0, -128, 127) is None
    assert once.rounds_alike(0.1, -128, 127, 2**40) is None


@given(st.lists(SCALES, min_size=1, max_size=3), st.lists(st.integers(-(2**20), 2**20), min_size=1), st.integers(-9, 9))
def test_rounding_to_even_in_float32(scales, accumulators, zero_point):
    out = output(zero_point)
    got = evaluate(accumulators, requantizing(scales, out, ("onnx",)))
    real = np.array(accumulators, np.float32)[:, None] * np.array(scales, np.float32)
    assert got.tolist() == np.clip(np.round(real) + zero_point, -128, 127).tolist()


@given(st.integers(-(2**31) + 1, 0))
def test_exponential(value):
    real = math.exp(value / 2**26)
    assert abs(fp.exp_of_negative(value, 5) / 2**31 - real) < 1e-6


@given(st.integers(-(2**31) + 1, 2**31 - 1))
def test_logistic_and_tanh(value):
    x = value / 2**27
    assert abs(fp.logistic(value, 4) / 2**31 - 1 / (1 + math.exp(-x))) < 1e-6
    assert abs(fp.tanh(value, 4) / 2**31 - math.tanh(x)) < 1e-6


@given(st.integers(0, 2**31 - 1))
def test_reciprocal(value):
    assert abs(fp.reciprocal_of_one_plus(value) / 2**31 - 1 / (1 + value / 2**31)) < 1e-6


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (("caffe",), "'caffe' is not one of tflite, onnx, torch"),
        (("tflite", "up"), "'up' is not one of single, double"),
    ],
)
def test_unknown_rules(rules, words):
    with pytest.raises(InputError, match=words):
        Rules(*rules)
