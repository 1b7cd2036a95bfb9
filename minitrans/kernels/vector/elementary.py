"""exp, erf and the activation functions on vectors of float32: polynomials, no calls, no table.

NaN and infinity pass through: selections keep a value where a comparison with it is false.
"""

from __future__ import annotations

from minitrans.encoder.activations import ERF_LIMIT, ERF_P, ERF_Q
from minitrans.kernels.vector.emitter import Emitter, Lanes

ROUNDER = 12582912.0  # 1.5 * 2**23: adding and subtracting it rounds |x| < 2**22 to integers, halves to even
ROUNDER_BITS = 0x4B400000  # of that float; ROUNDER + n has ROUNDER_BITS + n
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.428606765330187e-06  # ln 2; the first has few bits, so n * high is exact
# exp(r) = 1 + r + r^2 * P(r) for |r| <= ln(2) / 2, fitted for the least largest relative error.
EXP_P = (0.49999994, 0.16666521, 0.041668389, 0.0083687175, 0.0013814596)
EXP_LOWEST = -87.0


def rint(v: Emitter, x: Lanes) -> Lanes:
    """The nearest integer, halves to even, for |x| < 2**22."""
    return (x + ROUNDER) - ROUNDER


def polynomial(v: Emitter, x: Lanes, coefficients: tuple[float, ...]) -> Lanes:
    """coefficients[0] + coefficients[1] * x + ..., by Horner's rule."""
    total = v.constant(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = v.fma(total, x, v.constant(coefficient))
    return total


def exp(v: Emitter, x: Lanes) -> Lanes:
    """e**x for x <= 0, within 2e-7 of it; what is below -87 gives exp(-87). NaN gives NaN."""
    x = v.greatest(v.constant(EXP_LOWEST), x)  # the second one where x is NaN
    shifted = v.fma(x, v.constant(LOG2_E), v.constant(ROUNDER))
    n = shifted - ROUNDER
    r = v.fma(n, v.constant(-LN2_HIGH), x)
    r = v.fma(n, v.constant(-LN2_LOW), r)
    mantissa = v.fma(r * r, polynomial(v, r, EXP_P), r) + 1.0
    return v.as_floats(v.as_ints(mantissa) + (v.as_ints(shifted) << 23))  # times 2**n


def erf(v: Emitter, x: Lanes) -> Lanes:
    """The error function: the reference's quotient of polynomials."""
    limit = float(ERF_LIMIT)
    x = v.greatest(v.constant(-limit), v.least(v.constant(limit), x))
    square = x * x
    p = polynomial(v, square, tuple(map(float, ERF_P)))
    q = polynomial(v, square, tuple(map(float, ERF_Q)))
    return x * p / q


def gelu(v: Emitter, x: Lanes) -> Lanes:
    """x * Phi(x) (arXiv 1606.08415), by the error function."""
    half = x * 0.5
    return v.fma(half, erf(v, x * 0.7071067811865476), half)


def gelu_new(v: Emitter, x: Lanes) -> Lanes:
    """The approximation of gelu by tanh: x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    u = (x + x * x * x * 0.044715) * 0.7978845608028654
    sign = v.as_ints(u) & -0x80000000
    e = exp(v, v.as_floats(Lanes(v, v.builder.or_(v.as_ints(u * 2.0).value, v.constant(-0x80000000, v.ints).value))))
    tanh = (v.constant(1.0) - e) / (e + 1.0)  # of |u|
    tanh = v.as_floats(Lanes(v, v.builder.or_(v.as_ints(tanh).value, sign.value)))
    half = x * 0.5
    return v.fma(half, tanh, half)


def relu(v: Emitter, x: Lanes) -> Lanes:
    """max(x, 0)"""
    return v.greatest(v.constant(0.0), x)
