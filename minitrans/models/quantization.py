"""int8: the arithmetic that every backend follows.

Weights are symmetric, one scale per output channel (per row for embedding tables). Activations are unsigned bytes
with a scale and a zero point of their own per token, so that a token's result depends on nothing but that token:

    scale = (high - low) / 255       low = min(x, 0), high = max(x, 0) over the token's row
    zero  = rint(-low / scale)       in [0, 255]
    q     = clip(rint(x / scale) + zero, 0, 255)
    y     = (sum_k (q_k - zero) * w_k) * scale * weight_scale + bias      the sum in int32, exact

rint rounds halves to even. All of it is float32 arithmetic; divisions are products with the reciprocal.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans.arguments import check_choice
from minitrans.models.parameters import (
    EMBEDDINGS,
    LINEARS,
    AnyEmbedding,
    AnyLinear,
    Embedding,
    Float32,
    Int8,
    Int8Embedding,
    Int8Linear,
    LayerParameters,
    Linear,
    Parameters,
)

PRECISIONS = ("auto", "float32", "int8")

# A row whose range is below this holds nothing but zeros for all purposes; its scale is taken as 1.
TINY = np.float32(1e-30)


def quantize_rows(weight: Float32) -> tuple[Int8, Float32]:
    """Symmetric int8 per row: weight[i] ~ quantized[i] * scale[i], values in [-127, 127].

    Args:
        weight: [N, K].

    Returns:
        int8 [N, K] and scales [N], all above 0.
    """
    largest = np.abs(weight).max(axis=-1)  # [N]
    scale = np.where(largest > TINY, largest / np.float32(127), np.float32(1)).astype(np.float32)  # [N]
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def quantize_activations(x: Float32) -> tuple[NDArray[np.uint8], Float32, NDArray[np.int32]]:
    """Unsigned bytes per token, asymmetric, as the module's docstring defines.

    Args:
        x: [T, K].

    Returns:
        uint8 [T, K], scales [T] and zero points [T].
    """
    low = np.minimum(x.min(axis=-1), np.float32(0))  # [T]
    span = np.maximum(x.max(axis=-1), np.float32(0)) - low  # [T]
    # NaN and infinity stay in the scale, and so in every result of the row: the bytes cannot hold them.
    scale = np.where(span <= TINY, np.float32(1), span * np.float32(1 / 255)).astype(np.float32)  # [T]
    inverse = np.float32(1) / scale  # [T]
    zero = np.minimum(np.rint(-low * inverse), np.float32(255))  # [T]
    q = x * inverse[:, None]  # [T, K]
    np.rint(q, out=q)
    q += zero[:, None]
    np.clip(q, 0, 255, out=q)
    return q.astype(np.uint8), scale, zero.astype(np.int32)


def quantize_linear(linear: AnyLinear) -> Int8Linear:
    """The int8 form of a linear map; an int8 one is returned as it is."""
    return linear if isinstance(linear, Int8Linear) else Int8Linear(*quantize_rows(linear.weight), linear.bias)


def quantize_embedding(embedding: AnyEmbedding) -> Int8Embedding:
    """The int8 form of an embedding table; an int8 one is returned as it is."""
    return embedding if isinstance(embedding, Int8Embedding) else Int8Embedding(*quantize_rows(embedding.weight))


def dequantize_linear(linear: AnyLinear) -> Linear:
    """The float32 form of a linear map; a float32 one is returned as it is."""
    if isinstance(linear, Linear):
        return linear
    return Linear(linear.weight.astype(np.float32) * linear.scale[:, None], linear.bias)


def dequantize_embedding(embedding: AnyEmbedding) -> Embedding:
    """The float32 form of an embedding table; a float32 one is returned as it is."""
    if isinstance(embedding, Embedding):
        return embedding
    return Embedding(embedding.weight.astype(np.float32) * embedding.scale[:, None])


def with_precision(parameters: Parameters, precision: str) -> Parameters:
    """Convert every matrix to "int8" or "float32"; "auto" leaves what was stored.

    Raises:
        InputError: another precision.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision in ("auto", parameters.precision):
        return parameters
    to_int8 = precision == "int8"
    linear, embedding = (quantize_linear, quantize_embedding) if to_int8 else (dequantize_linear, dequantize_embedding)

    def layer(record: LayerParameters) -> LayerParameters:
        maps: dict[str, Any] = {field: linear(getattr(record, field)) for field in LINEARS}
        return dataclasses.replace(record, **maps)

    tables: dict[str, Any] = {field: embedding(getattr(parameters, field)) for field in EMBEDDINGS}
    return dataclasses.replace(parameters, layers=tuple(map(layer, parameters.layers)), **tables)
