"""The reference backend: plain NumPy, and the specification of what every other backend computes.

First bare functions over arrays and records of weights, in the order in which a text passes through them, then
`ReferenceBlocks`, which calls them for the layer loop. The dimension letters are those of models/parameters.py. Linear
maps are laid out for BLAS by backends/products.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.blas import single_threaded_blas
from minitrans.backends.products import FloatProduct, PreparedLayer, Product, prepare, prepare_layer
from minitrans.encoder.activations import ACTIVATIONS, softmax_in_place
from minitrans.encoder.packing import segments
from minitrans.encoder.selection import Ranking, Selection, positions, select
from minitrans.models.parameters import AnyEmbedding, Embedding, Float32, LayerNorm, Parameters
from minitrans.models.quantization import quantize_activations


def lookup(table: AnyEmbedding, ids: NDArray[np.int64]) -> Float32:
    """Rows of an embedding table: [T] -> [T, H]"""
    if isinstance(table, Embedding):
        return table.weight[ids]  # [T, H]
    return table.weight[ids].astype(np.float32) * table.scale[ids, None]  # [T, H]


def layer_norm(x: Float32, norm: LayerNorm, eps: float) -> Float32:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis: [T, H] -> [T, H]"""
    centered = x - x.mean(axis=-1, keepdims=True)  # [T, H]
    variance = np.square(centered).mean(axis=-1, keepdims=True)  # [T, 1]
    centered /= np.sqrt(variance + np.float32(eps))  # [T, H]
    return centered * norm.weight + norm.bias  # [T, H]


def embed(ids: NDArray[np.int64], offsets: NDArray[np.int64], parameters: Parameters) -> Float32:
    """Word, token type and position embeddings, added and normalised: [T], [B + 1] -> [T, H]"""
    word = lookup(parameters.word_embeddings, ids)  # [T, H]
    token_type = lookup(parameters.token_type_embeddings, np.zeros_like(ids))  # [T, H]
    position = lookup(parameters.position_embeddings, positions(offsets))  # [T, H]
    return layer_norm(word + token_type + position, parameters.embeddings_norm, parameters.config.layer_norm_eps)


def linear(x: Float32, weights: Product, offsets: NDArray[np.int64]) -> Float32:
    """x weight^T + bias; models/quantization.py defines the arithmetic of int8 weights: [T, K], [B + 1] -> [T, N]"""
    if isinstance(weights, FloatProduct):
        y = weights.multiply(x, offsets)  # [T, N]
    else:
        q, scale, zero = quantize_activations(x)  # [T, K], [T], [T]
        y = weights.accumulate(q, zero).astype(np.float32)  # [T, N]
        y *= scale[:, None] * weights.scale  # [T, N]
    y += weights.bias  # [T, N]
    return y


def attention(query: Float32, key: Float32, value: Float32, sizes: Float32 | None) -> tuple[Float32, Float32]:
    """softmax(query key^T / sqrt(D) + log sizes) value for one text, [A, n, D] each, sizes [n] or None.

    Returns:
        The context [n, H], and the attention [A, n, n], whose rows are queries.
    """
    logits = query @ key.transpose(0, 2, 1)  # [A, n, n]
    logits *= np.float32(1 / np.sqrt(query.shape[-1]))  # [A, n, n]
    if sizes is not None:
        logits += np.log(sizes)  # [A, n, n]
    weights = softmax_in_place(logits)  # [A, n, n]
    context = weights @ value  # [A, n, D]
    return context.transpose(1, 0, 2).reshape(value.shape[1], -1), weights  # [n, H], [A, n, n]


def importance(weights: Float32, value: Float32 | None) -> Float32:
    """The attention that each key gets, averaged over queries and heads: [A, n, n] -> [n].

    With the values [A, n, D] it is weighted by their norms.
    """
    received = weights.mean(axis=1)  # [A, n]
    if value is not None:
        received = received * np.linalg.norm(value, axis=-1)  # [A, n]
    return received.mean(axis=0)  # [n]


def feed_forward(
    x: Float32, layer: PreparedLayer[Product], activation: Callable[[Float32], Float32], offsets: NDArray[np.int64]
) -> Float32:
    """Two linear maps with the activation between them: [T, H], [B + 1] -> [T, H]"""
    inner = activation(linear(x, layer.intermediate, offsets))  # [T, I]
    return linear(inner, layer.output, offsets)  # [T, H]


class ReferenceBlocks:
    """The three blocks in NumPy (contract: encoder/blocks.py)."""

    name = "reference"

    def __init__(self, parameters: Parameters, why: str | None = None) -> None:
        self.why = why  # this backend and not a compiled one
        self.config = parameters.config
        self.num_layers = len(parameters.layers)
        self._parameters = parameters
        self._layers = [prepare_layer(layer, prepare) for layer in parameters.layers]

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
        return embed(ids, offsets, self._parameters)  # [T, H]

    def attention_block(
        self, hidden: Float32, offsets: NDArray[np.int64], sizes: Float32 | None, layer: int, want: str | None
    ) -> tuple[Float32, Float32 | None]:
        """Attention within each text, the output map, residual and layer norm."""
        weights = self._layers[layer]
        context = np.empty_like(hidden)  # [T, H]
        scores = np.empty(len(hidden), np.float32) if want in ("attention", "attention_value") else None  # [T]
        for text, query, key, value in self._heads(hidden, offsets, layer):
            context[text], received = attention(query, key, value, None if sizes is None else sizes[text])
            if scores is not None:
                scores[text] = importance(received, value if want == "attention_value" else None)  # [n]
        output = linear(context, weights.attention_output, offsets)  # [T, H]
        return layer_norm(output + hidden, weights.attention_norm, self.config.layer_norm_eps), scores  # [T, H], [T]

    def attend(
        self, hidden: Float32, offsets: NDArray[np.int64], sizes: Float32 | None, layer: int
    ) -> Iterator[tuple[slice, Float32, Float32]]:
        """Per text that is not empty: its rows, the attention [A, n, n] (rows are queries), the values [A, n, D]."""
        for text, query, key, value in self._heads(hidden, offsets, layer):
            yield text, attention(query, key, value, None if sizes is None else sizes[text])[1], value

    def _heads(
        self, hidden: Float32, offsets: NDArray[np.int64], layer: int
    ) -> Iterator[tuple[slice, Float32, Float32, Float32]]:
        """Per text that is not empty: its rows, and query, key and value [A, n, D]."""
        qkv = linear(hidden, self._layers[layer].qkv, offsets)  # [T, 3H]
        qkv = qkv.reshape(-1, 3, self.config.num_attention_heads, self.config.head_size)  # [T, 3, A, D]
        for text in segments(offsets):
            if text.start < text.stop:
                query, key, value = qkv[text].transpose(1, 2, 0, 3)  # [A, n, D] each
                yield text, query, key, value

    def feed_forward_block(self, hidden: Float32, offsets: NDArray[np.int64], layer: int) -> Float32:
        """Two linear maps with the activation between them, residual and layer norm."""
        weights, activation = self._layers[layer], ACTIVATIONS[self.config.hidden_act]
        output = feed_forward(hidden, weights, activation, offsets)  # [T, H]
        return layer_norm(output + hidden, weights.output_norm, self.config.layer_norm_eps)  # [T, H]

    def select(
        self, hidden: Float32, offsets: NDArray[np.int64], ranking: Ranking
    ) -> tuple[Float32, Selection, Float32 | None]:
        """The definition itself: encoder/selection.py."""
        return select(hidden, offsets, ranking)
