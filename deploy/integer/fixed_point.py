"""The integer arithmetic that TFLite defines quantized operators with: multipliers, rounding, fixed-point functions.

Everything here is exact Python arithmetic at compile time; what has to run on the device is written in the same
formulas by `requantize` and `softmax`.
"""

from __future__ import annotations

import math

INT32_MAX = 2**31 - 1
MIN_SHIFT = -31

# exp(-2^k) for k = -2 .. 4, and exp(-1/8), 1/3, all with 31 bits behind the point.
_EXPONENTIALS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
_EXP_EIGHTH, _THIRD = 1895147668, 715827883
# The first guess of Newton's method for 1/x on [1/2, 1]: 48/17 - 32/17 x, with 29 bits behind the point.
GUESS, SLOPE, ONE_IN_29_BITS, NEWTON_STEPS = 1515870810, -1010580540, 1 << 29, 3


def round_away(value: float) -> int:
    """The nearest integer; a half goes away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def quantize_multiplier(scale: float) -> tuple[int, int]:
    """(multiplier, shift) with scale ≈ multiplier * 2^(shift - 31) and a multiplier of 31 bits, or (0, 0)."""
    if scale == 0.0:
        return 0, 0
    fraction, shift = math.frexp(scale)
    multiplier = round_away(fraction * 2.0**31)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (multiplier, shift) if shift >= MIN_SHIFT else (0, 0)


def high_multiply(a: int, b: int) -> int:
    """a * b / 2^31, rounded to the nearest, a half upwards, saturated."""
    return min((a * b + (1 << 30)) >> 31, INT32_MAX)


def divide_by_power(value: int, exponent: int) -> int:
    """value / 2^exponent, rounded to the nearest, a half away from zero."""
    if exponent == 0:
        return value
    return (value + (1 << (exponent - 1)) - (value < 0)) >> exponent


def multiply_by_power(value: int, exponent: int) -> int:
    """value * 2^exponent saturated to 32 bits, or divided with rounding where the exponent is negative."""
    if exponent < 0:
        return divide_by_power(value, -exponent)
    return max(-INT32_MAX - 1, min(INT32_MAX, value << exponent))


def rescale(value: int, multiplier: int, shift: int) -> int:
    """value * multiplier * 2^(shift - 31) as TFLite computes it for a 32-bit accumulator: it rounds twice."""
    high = high_multiply(value << max(shift, 0), multiplier)
    return divide_by_power(high, max(-shift, 0))


def exp_of_negative(value: int, integer_bits: int) -> int:
    """exp(value / 2^(31 - integer_bits)) for value <= 0, with 31 bits behind the point."""
    if value == 0:
        return INT32_MAX
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    rest = (value & (quarter - 1)) - quarter  # in [-1/4, 0)
    result = _exp_near_zero(multiply_by_power(rest, integer_bits))
    whole = rest - value
    for exponent, factor in enumerate(_EXPONENTIALS, -2):
        if exponent < integer_bits and whole & (1 << (fraction_bits + exponent)):
            result = high_multiply(result, factor)
    return result


def _exp_near_zero(value: int) -> int:
    """exp on [-1/4, 0): a polynomial of the fourth degree around -1/8."""
    x = value + (1 << 28)
    x2 = high_multiply(x, x)
    x3, x4 = high_multiply(x2, x), high_multiply(x2, x2)
    tail = divide_by_power(high_multiply(divide_by_power(x4, 2) + x3, _THIRD) + x2, 1)
    return _EXP_EIGHTH + high_multiply(_EXP_EIGHTH, x + tail)


def _half_denominator(value: int) -> int:
    return (value + INT32_MAX + 1) // 2


def _newton(half: int) -> int:
    """1 / half, both with 31 bits behind the point for `half` in [1/2, 1] and 29 for the result."""
    x = GUESS + high_multiply(half, SLOPE)
    for _ in range(NEWTON_STEPS):
        x += multiply_by_power(high_multiply(x, ONE_IN_29_BITS - high_multiply(half, x)), 2)
    return x


def reciprocal_of_one_plus(value: int) -> int:
    """1 / (1 + value) for value in [0, 1], both with 31 bits behind the point."""
    return multiply_by_power(_newton(_half_denominator(value)), 1)


def logistic(value: int, integer_bits: int) -> int:
    """1 / (1 + exp(-value)), with 31 bits behind the point."""
    if value == 0:
        return 1 << 30
    positive = reciprocal_of_one_plus(exp_of_negative(-abs(value), integer_bits))
    return positive if value > 0 else INT32_MAX - positive


def tanh(value: int, integer_bits: int) -> int:
    """tanh(value), with 31 bits behind the point."""
    if value == 0:
        return 0
    exponential = exp_of_negative(-abs(value), integer_bits + 1)  # the same bits read as twice the value
    two_over = multiply_by_power(_newton(_half_denominator(exponential)) - ONE_IN_29_BITS, 2)
    return two_over if value > 0 else -two_over


def input_radius(integer_bits: int, left_shift: int) -> int:
    """The largest difference whose scaled value still fits `integer_bits`."""
    return math.floor(((1 << integer_bits) - 1) * (1 << (31 - integer_bits)) / (1 << left_shift))


def softmax_exponentials(scale: float) -> list[int]:
    """exp(scale * d) for d = -255 .. 0 with 31 bits behind the point; zero where TFLite leaves an element out."""
    integer_bits = 5
    multiplier, shift = quantize_multiplier(min(scale * (1 << (31 - integer_bits)), float(INT32_MAX)))
    smallest = -input_radius(integer_bits, shift)
    return [
        exp_of_negative(rescale(d, multiplier, shift), integer_bits) if d >= smallest else 0 for d in range(-255, 1)
    ]
