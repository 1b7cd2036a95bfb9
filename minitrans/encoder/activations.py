"""The activation functions of BERT models, and the softmax of attention, in float32."""

from __future__ import annotations

import numpy as np

from minitrans.models.parameters import Float32

# erf(x) = x P(x*x) / Q(x*x) up to the limit, then +-1: fitted for the least largest error, within 5e-7 in float32.
ERF_LIMIT = np.float32(3.92)
ERF_P = np.array([1.12837902, 0.192764192, 0.0530604855, 3.86832929e-3, 2.87478842e-4, 2.03472653e-6], np.float32)
ERF_Q = np.array([1.0, 0.504164484, 0.115084663, 0.0151723004, 1.18811448e-3, 3.80705241e-5], np.float32)


def erf(x: Float32) -> Float32:
    """The error function, element by element."""
    x = np.clip(x, -ERF_LIMIT, ERF_LIMIT)
    square = x * x
    p, q = np.full_like(x, ERF_P[-1]), np.full_like(x, ERF_Q[-1])
    for a, b in zip(ERF_P[-2::-1], ERF_Q[-2::-1], strict=True):
        p *= square
        p += a
        q *= square
        q += b
    p *= x
    p /= q
    return p


def gelu(x: Float32) -> Float32:
    """x * Phi(x) (arXiv 1606.08415), by the error function."""
    return np.float32(0.5) * x * (np.float32(1) + erf(x * np.float32(0.7071067811865476)))


def gelu_new(x: Float32) -> Float32:
    """The approximation of gelu by tanh."""
    inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


def relu(x: Float32) -> Float32:
    """max(x, 0)"""
    return np.maximum(x, np.float32(0))


def softmax_in_place(logits: Float32) -> Float32:
    """exp(x) / sum(exp(x)) over the last axis, which overwrites x: [.., n] -> [.., n]"""
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)
    return logits


ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_new, "relu": relu}
