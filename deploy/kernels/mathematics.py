"""float32 exp, tanh, sigmoid and erf as arithmetic, so that they run in vectors.

LLVM has no vector form of them: it would call the C library once for every element. The polynomials are those of Cephes
(exp) and Eigen (tanh, erf); the relative error is below 5e-7. NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import ir, tirx
from tvm_ffi import structural_map

Expr = Any  # tvm.ir.Expr

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_EXP_LOW, _EXP_HIGH = -86.6, 88.722839  # below: 0, as a float near the smallest one may be; above: infinity
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts, the first exact in few bits
_TANH_LIMIT = 7.90531110763549805  # the nearest float to its tanh is 1
_TANH_P = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
           1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
          -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
_ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
          -1.42647390514189e-02)  # fmt: skip


def _number(value: float) -> Expr:
    return tirx.const(value, "float32")


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme, highest power first."""
    result = _number(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _number(coefficient)
    return result


def _with(name: str, value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of a value that is computed once."""
    variable = tirx.Var(name, str(value.ty.dtype))
    return tirx.Let(variable, value, body(variable))


def _clamped(x: Expr, limit: float) -> Expr:
    """`x` within +-limit; the order of the operands lets NaN through."""
    return tirx.max(_number(-limit), tirx.min(_number(limit), x))


def _exp(x: Expr) -> Expr:
    """2^n * exp(r) with |r| <= ln(2) / 2; the power of two is made of exponent bits."""
    within = tirx.min(tirx.max(x, _number(_EXP_LOW)), _number(_EXP_HIGH))

    def scaled(n: Expr) -> Expr:
        rest = x - n * _number(_LN2_HIGH) - n * _number(_LN2_LOW)
        bits = (n.astype("int32") + tirx.const(126, "int32")) * tirx.const(1 << 23, "int32")  # 2^(n - 1): n may be 128
        power = tirx.reinterpret("float32", bits)
        return _with("r", rest, lambda r: (_polynomial(r, _EXP) * r * r + r + _number(1)) * _number(2) * power)

    value = _with("n", tirx.floor(within * _number(1.44269504088896341) + _number(0.5)), scaled)
    finite = tirx.Select(x > _number(_EXP_HIGH), _number(float("inf")), value)
    return tirx.Select(x < _number(_EXP_LOW), _number(0), finite)


def _sigmoid(x: Expr) -> Expr:
    return _number(1) / (_number(1) + _with("minus", -x, _exp))


def _odd(x: Expr, over: Sequence[float], under: Sequence[float]) -> Expr:
    return _with("square", x * x, lambda y: x * _polynomial(y, over) / _polynomial(y, under))


def _tanh(x: Expr) -> Expr:
    return _with("within", _clamped(x, _TANH_LIMIT), lambda c: _odd(c, _TANH_P, _TANH_Q))


def _erf(x: Expr) -> Expr:
    ratio = _with("within", _clamped(x, 4.0), lambda c: _odd(c, _ERF_P, _ERF_Q))
    return _with("ratio", ratio, lambda r: _clamped(r, 1.0))


_FORMS: dict[str, Callable[[Expr], Expr]] = {
    "tirx.exp": _exp,
    "tirx.sigmoid": _sigmoid,
    "tirx.tanh": _tanh,
    "tirx.erf": _erf,
}


def expand(body: tirx.Stmt) -> tirx.Stmt:
    """`body` with arithmetic in place of every call of exp, sigmoid, tanh and erf on float32."""

    def replace(call: ir.Call) -> Expr:
        form = _FORMS.get(str(getattr(call.op, "name", "")))
        if form is None or str(call.ty.dtype) != "float32":
            return call
        return _with("x", call.args[0], form)

    return structural_map(body, (ir.Call, replace))
