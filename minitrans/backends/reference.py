"""The reference backend: plain NumPy, and the specification of what every other backend computes.

Bits. A BLAS product may round a row differently when the matrix has more rows, or when the row stands elsewhere in it
(OpenBLAS's AVX2 kernels do both). So a float32 product takes the rows of one text at a time: its result depends on
that text alone. Few rows at a time cost BLAS half of its speed and more; panels of columns that stay in the cache give
most of it back. int8 products are exact in any order, so they take all rows at once: float32 holds every partial sum of
up to 512 products of a uint8 and an int8 exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.blas import single_threaded_blas
from minitrans.encoder.activations import ACTIVATIONS, softmax
from minitrans.encoder.packing import segments
from minitrans.encoder.selection import Ranking, Selection, select
from minitrans.models.parameters import AnyEmbedding, AnyLinear, Embedding, Float32, Int8Linear, LayerNorm, Parameters
from minitrans.models.quantization import quantize_activations

EXACT = 512  # 512 * 255 * 127 < 2**24
PANEL = 128  # columns


@dataclass(frozen=True)
class FloatProduct:
    """A linear map laid out for BLAS."""

    weight: Float32  # [panels, K, PANEL]
    bias: Float32  # [N]

    def __call__(self, x: Float32, offsets: NDArray[np.int64]) -> Float32:
        """[T, K] -> [T, N], one text at a time."""
        y = np.empty((len(x), len(self.bias)), np.float32)  # [T, N]
        for text in segments(offsets):
            y[text] = times(x[text], self.weight)[:, : len(self.bias)]
        y += self.bias
        return y


@dataclass(frozen=True)
class Int8Product:
    """The same for int8 weights; quantization.py defines the arithmetic."""

    weight: Float32  # [panels, K, PANEL] holds integers
    column_sum: NDArray[np.int32]  # [N] sum of the weights of each column, for the zero points
    scale: Float32  # [N]
    bias: Float32  # [N]

    def __call__(self, x: Float32, offsets: NDArray[np.int64]) -> Float32:
        """[T, K] -> [T, N]"""
        q, scale, zero = quantize_activations(x)  # [T, K], [T], [T]
        y = self.accumulate(q, zero).astype(np.float32)  # [T, N]
        y *= scale[:, None] * self.scale
        y += self.bias
        return y

    def accumulate(self, q: NDArray[np.uint8], zero: NDArray[np.int32]) -> NDArray[np.int32]:
        """sum_k (q[t, k] - zero[t]) * w[k, n], exact: [T, K], [T] -> [T, N]"""
        values = q.astype(np.float32)  # [T, K]
        total = -zero[:, None] * self.column_sum  # [T, N]
        for k in range(0, values.shape[1], EXACT):
            part = times(values[:, k : k + EXACT], self.weight[:, k : k + EXACT])  # [T, N rounded up]
            total += part[:, : len(self.bias)].astype(np.int32)
        return total


Product: TypeAlias = FloatProduct | Int8Product


def prepare(*linears: AnyLinear) -> Product:
    """Lay out one linear map, or several of the same input side by side."""
    weight = np.concatenate([linear.weight for linear in linears]).T  # [K, N]
    bias = np.concatenate([linear.bias for linear in linears])  # [N]
    filled = np.pad(weight, ((0, 0), (0, -weight.shape[1] % PANEL)))  # [K, N rounded up]
    panels = filled.reshape(len(weight), -1, PANEL).transpose(1, 0, 2)  # [panels, K, PANEL]
    panels = np.ascontiguousarray(panels, np.float32)
    scales = [linear.scale for linear in linears if isinstance(linear, Int8Linear)]
    if not scales:
        return FloatProduct(panels, bias)
    return Int8Product(panels, weight.sum(axis=0, dtype=np.int32), np.concatenate(scales), bias)


def times(x: Float32, panels: Float32) -> Float32:
    """[T, K] @ [panels, K, PANEL] -> [T, N rounded up to whole panels]"""
    return np.matmul(x, panels).transpose(1, 0, 2).reshape(len(x), len(panels) * PANEL)


def lookup(table: AnyEmbedding, ids: NDArray[np.int64]) -> Float32:
    """Rows of an embedding table: [T] -> [T, H]"""
    if isinstance(table, Embedding):
        return table.weight[ids]
    return table.weight[ids].astype(np.float32) * table.scale[ids, None]


def layer_norm(x: Float32, norm: LayerNorm, eps: float) -> Float32:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis: [T, H] -> [T, H]"""
    centered = x - x.mean(axis=-1, keepdims=True)  # [T, H]
    variance = np.square(centered).mean(axis=-1, keepdims=True)  # [T, 1]
    centered /= np.sqrt(variance + np.float32(eps))
    return centered * norm.weight + norm.bias


class ReferenceBlocks:
    """The three blocks in NumPy (contract: encoder/blocks.py)."""

    name = "reference"

    def __init__(self, parameters: Parameters, why: str | None = None) -> None:
        self.why = why  # this backend and not a compiled one
        self.config = parameters.config
        self.num_layers = len(parameters.layers)
        self._word_embeddings = parameters.word_embeddings
        self._position_embeddings = parameters.position_embeddings
        self._token_type_embeddings = parameters.token_type_embeddings
        self._embeddings_norm = parameters.embeddings_norm
        self._attention_norm = [layer.attention_norm for layer in parameters.layers]
        self._output_norm = [layer.output_norm for layer in parameters.layers]
        self._qkv = [prepare(layer.query, layer.key, layer.value) for layer in parameters.layers]  # H -> 3H
        self._attention_output = [prepare(layer.attention_output) for layer in parameters.layers]  # H -> H
        self._intermediate = [prepare(layer.intermediate) for layer in parameters.layers]  # H -> I
        self._output = [prepare(layer.output) for layer in parameters.layers]  # I -> H
        self._activation = ACTIVATIONS[self.config.hidden_act]

    def info(self) -> dict[str, str | None]:
        """No kernels, and why if they were wanted."""
        return {"kernels": None if self.why is None else f"none: {self.why}", "instruction_set": None}

    def session(self) -> AbstractContextManager[None]:
        """One BLAS thread per chunk."""
        return single_threaded_blas()

    def chunk(self, rows: int, helpers: int) -> AbstractContextManager[ReferenceBlocks]:
        """Nothing to keep, and each thread works alone."""
        return nullcontext(self)

    def embed(self, ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> Float32:
        """Word, position and token type embeddings, then layer norm."""
        positions = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets))  # [T]
        hidden = lookup(self._word_embeddings, ids) + lookup(self._token_type_embeddings, np.zeros_like(ids))
        hidden += lookup(self._position_embeddings, positions)  # [T, H]
        return layer_norm(hidden, self._embeddings_norm, self.config.layer_norm_eps)

    def attention_block(
        self, hidden: Float32, offsets: NDArray[np.int64], sizes: Float32 | None, layer: int, want: str | None
    ) -> tuple[Float32, Float32 | None]:
        """softmax(query key^T / sqrt(D)) value per head and text; then output map, residual, layer norm."""
        context = np.empty_like(hidden)  # [T, H]
        scores = np.empty(len(hidden), np.float32) if want in ("attention", "attention_value") else None  # [T]
        for text, attention, value in self.attend(hidden, offsets, sizes, layer):
            context[text] = (attention @ value).transpose(1, 0, 2).reshape(-1, hidden.shape[1])  # [n, H]
            if scores is not None:
                received = attention.mean(axis=1)  # [A, n] what each key gets, averaged over the queries
                if want == "attention_value":
                    received = received * np.linalg.norm(value, axis=-1)  # [A, n]
                scores[text] = received.mean(axis=0)  # [n]
        output = self._attention_output[layer](context, offsets)  # [T, H]
        return layer_norm(output + hidden, self._attention_norm[layer], self.config.layer_norm_eps), scores

    def attend(
        self, hidden: Float32, offsets: NDArray[np.int64], sizes: Float32 | None, layer: int
    ) -> Iterator[tuple[slice, Float32, Float32]]:
        """Per text that is not empty: its rows, the attention [A, n, n] (rows are queries), the values [A, n, D]."""
        A, D = self.config.num_attention_heads, self.config.head_size
        qkv = self._qkv[layer](hidden, offsets).reshape(-1, 3, A, D)  # [T, 3, A, D]
        for text in segments(offsets):
            if text.start == text.stop:
                continue
            query, key, value = qkv[text].transpose(1, 2, 0, 3)  # [A, n, D] each
            logits = query @ key.transpose(0, 2, 1)  # [A, n, n]
            logits *= np.float32(1 / np.sqrt(D))
            if sizes is not None:
                logits += np.log(sizes[text])
            yield text, softmax(logits), value

    def feed_forward_block(self, hidden: Float32, offsets: NDArray[np.int64], layer: int) -> Float32:
        """output(activation(intermediate(x))) + x, then layer norm."""
        inner = self._activation(self._intermediate[layer](hidden, offsets))  # [T, I]
        output = self._output[layer](inner, offsets)  # [T, H]
        return layer_norm(output + hidden, self._output_norm[layer], self.config.layer_norm_eps)

    def select(
        self, hidden: Float32, offsets: NDArray[np.int64], ranking: Ranking
    ) -> tuple[Float32, Selection, Float32 | None]:
        """The definition itself."""
        return select(hidden, offsets, ranking)

    def project(self, x: Float32, weight: Float32) -> Float32:
        """x @ weight.T, one row at a time."""
        return np.matmul(x[:, None, :], weight.T)[:, 0]  # [B, H]
