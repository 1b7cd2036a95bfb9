"""The weights of linear maps laid out for BLAS, and products with them; what a map computes is `reference.linear`.

Bits. A BLAS product may round a row differently when the matrix has more rows, or when the row stands elsewhere in it
(OpenBLAS's AVX2 kernels do both). So a float32 product takes the rows of one text at a time: its result depends on
that text alone. Few rows at a time cost BLAS half of its speed and more; panels of columns that stay in the cache give
most of it back. int8 products are exact in any order, so they take all rows at once: float32 holds every partial sum of
up to 512 products of a uint8 and an int8 exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.packing import segments
from minitrans.models.parameters import AnyLinear, Float32, Int8Linear, LayerNorm, LayerParameters

EXACT = 512  # 512 * 255 * 127 < 2**24
PANEL = 128  # columns

M = TypeVar("M")  # a linear map, laid out


@dataclass(frozen=True)
class FloatProduct:
    """A float32 linear map, or several of the same input side by side."""

    weight: Float32  # [panels, K, PANEL]
    bias: Float32  # [N]

    def multiply(self, x: Float32, offsets: NDArray[np.int64]) -> Float32:
        """sum_k x[t, k] * w[k, n], one text at a time: [T, K] -> [T, N]"""
        total = np.empty((len(x), len(self.bias)), np.float32)  # [T, N]
        for text in segments(offsets):
            total[text] = times(x[text], self.weight)[:, : len(self.bias)]  # [n, N]
        return total


@dataclass(frozen=True)
class Int8Product:
    """The same for int8 weights."""

    weight: Float32  # [panels, K, PANEL] holds integers
    column_sum: NDArray[np.int32]  # [N] sum of the weights of each column, for the zero points
    scale: Float32  # [N]
    bias: Float32  # [N]

    def accumulate(self, q: NDArray[np.uint8], zero: NDArray[np.int32]) -> NDArray[np.int32]:
        """sum_k (q[t, k] - zero[t]) * w[k, n], exact: [T, K], [T] -> [T, N]"""
        values = q.astype(np.float32)  # [T, K]
        total = -zero[:, None] * self.column_sum  # [T, N]
        for k in range(0, values.shape[1], EXACT):
            part = times(values[:, k : k + EXACT], self.weight[:, k : k + EXACT])  # [T, N rounded up]
            total += part[:, : len(self.bias)].astype(np.int32)  # [T, N]
        return total


Product: TypeAlias = FloatProduct | Int8Product


def prepare(*linears: AnyLinear) -> Product:
    """Lay out one linear map, or several of the same input and precision side by side."""
    weight = np.concatenate([linear.weight for linear in linears]).T  # [K, N]
    bias = np.concatenate([linear.bias for linear in linears])  # [N]
    filled = np.pad(weight, ((0, 0), (0, -weight.shape[1] % PANEL)))  # [K, N rounded up]
    panels = filled.reshape(len(weight), -1, PANEL).transpose(1, 0, 2)  # [panels, K, PANEL]
    panels = np.ascontiguousarray(panels, np.float32)
    scales = [linear.scale for linear in linears if isinstance(linear, Int8Linear)]
    if not scales:
        return FloatProduct(panels, bias)
    return Int8Product(panels, weight.sum(axis=0, dtype=np.int32), np.concatenate(scales), bias)


@dataclass(frozen=True)
class PreparedLayer(Generic[M]):
    """The weights of one layer, its linear maps laid out for some backend."""

    qkv: M  # H -> 3H, query, key and value side by side
    attention_output: M  # H -> H
    attention_norm: LayerNorm  # [H]
    intermediate: M  # H -> I
    output: M  # I -> H
    output_norm: LayerNorm  # [H]


def prepare_layer(layer: LayerParameters, lay_out: Callable[..., M]) -> PreparedLayer[M]:
    """Lay out the linear maps of a layer; the norms become contiguous."""
    return PreparedLayer(
        lay_out(layer.query, layer.key, layer.value),
        lay_out(layer.attention_output),
        contiguous(layer.attention_norm),
        lay_out(layer.intermediate),
        lay_out(layer.output),
        contiguous(layer.output_norm),
    )


def contiguous(norm: LayerNorm) -> LayerNorm:
    """The same numbers, one behind the other in memory."""
    return LayerNorm(np.ascontiguousarray(norm.weight), np.ascontiguousarray(norm.bias))


def times(x: Float32, panels: Float32) -> Float32:
    """[T, K] @ [panels, K, PANEL] -> [T, N rounded up to whole panels]"""
    return np.matmul(x, panels).transpose(1, 0, 2).reshape(len(x), len(panels) * PANEL)
