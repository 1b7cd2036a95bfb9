"""Weights laid out for the kernels: panels of columns, as wide as a tile, filled up with zeros.

These records hold all that kernels read of a model. They can be turned back into parameters, as pickling does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.products import PreparedLayer, contiguous, prepare_layer
from minitrans.kernels.vector.levels import Level
from minitrans.models.config import EncoderConfig
from minitrans.models.parameters import (
    AnyEmbedding,
    AnyLinear,
    Embedding,
    Float32,
    Int8Embedding,
    Int8Linear,
    LayerNorm,
    LayerParameters,
    Linear,
    Parameters,
)
from minitrans.models.quantization import dequantize_embedding

WIDEST = 16  # lanes of the widest vector
ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array of zeros whose first byte stands at a multiple of ALIGNMENT."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(count + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    array: NDArray[Any] = memory[begin : begin + count].view(dtype).reshape(shape)
    return array


def address(array: NDArray[Any] | None) -> int:
    """Where the array's first byte stands; 0 for None."""
    return 0 if array is None else int(array.ctypes.data)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below the number."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class PackedLinear:
    """One linear map, or several of the same input side by side."""

    outputs: int  # N
    inputs: int  # K
    depth: int  # K rounded up to what the level's int8 products take
    weight: NDArray[Any]  # float32 [N / panel, K, panel] or int8 [N / panel, K / 4, panel, 4]
    bias: Float32  # [N rounded up]
    scale: Float32 | None  # [N rounded up], int8 only
    column_sum: NDArray[np.int32] | None  # [N rounded up], int8 only: for the zero points

    @property
    def panels(self) -> int:
        """How many panels."""
        return len(self.weight)

    @property
    def is_int8(self) -> bool:
        """Whether the weights are bytes."""
        return self.scale is not None


def pack_linears(level: Level, *linears: AnyLinear) -> PackedLinear:
    """Lay out the weights of one or more linear maps of the same input and precision."""
    outputs = sum(len(linear.bias) for linear in linears)
    is_int8 = isinstance(linears[0], Int8Linear)
    inputs = linears[0].weight.shape[1]
    depth = round_up(inputs, level.depth_multiple) if is_int8 else inputs
    columns = round_up(outputs, level.panel)
    weight = np.zeros((columns, depth), linears[0].weight.dtype)  # [N rounded up, K rounded up]
    weight[:outputs, :inputs] = np.concatenate([linear.weight for linear in linears])
    bias = _row([linear.bias for linear in linears], columns)
    panels = weight.reshape(-1, level.panel, depth)  # [panels, panel, K]
    if not is_int8:
        return PackedLinear(outputs, inputs, depth, _copy(panels.transpose(0, 2, 1)), bias, None, None)
    fours = panels.reshape(-1, level.panel, depth // 4, 4).transpose(0, 2, 1, 3)  # [panels, K / 4, panel, 4]
    scale = _row([linear.scale for linear in linears if isinstance(linear, Int8Linear)], columns)
    return PackedLinear(outputs, inputs, depth, _copy(fours), bias, scale, _copy(weight.sum(axis=1, dtype=np.int32)))


def _copy(values: NDArray[Any]) -> NDArray[Any]:
    array = aligned(values.shape, values.dtype)
    array[...] = values
    return array


def _row(parts: list[Float32], columns: int) -> Float32:
    row = aligned((columns,), np.float32)
    values = np.concatenate(parts)
    row[: len(values)] = values
    return row


def unpack_linears(packed: PackedLinear, count: int = 1) -> Iterator[AnyLinear]:
    """The ``count`` linear maps, with as many outputs each, that were laid out side by side."""
    weight = np.moveaxis(packed.weight, 2, 1).reshape(-1, packed.depth)  # [N rounded up, K rounded up]
    size = packed.outputs // count
    for begin in range(0, packed.outputs, size):
        rows = slice(begin, begin + size)
        values, bias = weight[rows, : packed.inputs].copy(), packed.bias[rows].copy()
        yield Linear(values, bias) if packed.scale is None else Int8Linear(values, packed.scale[rows].copy(), bias)


@dataclass(frozen=True)
class PackedModel:
    """All weights, for one instruction-set level."""

    config: EncoderConfig
    level: Level
    table: NDArray[Any]  # [V, H] float32 or int8
    table_scale: Float32 | None  # [V], int8 only
    positions: Float32  # [P, H], the token type's embedding added
    embeddings_norm: LayerNorm  # [H]
    layers: tuple[PreparedLayer[PackedLinear], ...]


def pack_model(parameters: Parameters, level: Level) -> PackedModel:
    """Lay all weights out."""
    layers = tuple(prepare_layer(layer, partial(pack_linears, level)) for layer in parameters.layers)
    words = parameters.word_embeddings
    positions = dequantize_embedding(parameters.position_embeddings).weight  # [P, H]
    token_type = dequantize_embedding(parameters.token_type_embeddings).weight[0]  # [H]
    return PackedModel(
        parameters.config,
        level,
        _table(words),
        np.ascontiguousarray(words.scale) if isinstance(words, Int8Embedding) else None,
        np.ascontiguousarray(positions + token_type),
        contiguous(parameters.embeddings_norm),
        layers,
    )


def unpack_model(model: PackedModel) -> Parameters:
    """The parameters that were laid out; the token type's embedding is found in that of the positions."""
    layers = []
    for layer in model.layers:
        query, key, value = unpack_linears(layer.qkv, 3)
        maps = layer.attention_output, layer.intermediate, layer.output
        (attention_output,), (intermediate,), (output,) = map(unpack_linears, maps)
        norms = layer.attention_norm, layer.output_norm
        layers.append(LayerParameters(query, key, value, attention_output, norms[0], intermediate, output, norms[1]))
    table = model.table[: model.config.vocab_size].copy()
    return Parameters(
        model.config,
        Embedding(table) if model.table_scale is None else Int8Embedding(table, model.table_scale),
        Embedding(model.positions),
        Embedding(np.zeros((model.config.type_vocab_size, model.config.hidden_size), np.float32)),
        model.embeddings_norm,
        tuple(layers),
    )


def _table(words: AnyEmbedding) -> NDArray[Any]:
    """Rows of bytes are read a whole vector at a time: the last one needs bytes behind it, unless it fills them."""
    if isinstance(words, Int8Embedding) and words.weight.shape[1] % WIDEST:
        return np.concatenate([words.weight, np.zeros((WIDEST, words.weight.shape[1]), np.int8)])
    return np.ascontiguousarray(words.weight)
