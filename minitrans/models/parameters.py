"""The weights of a BERT encoder as named records, and the one list of tensors that a checkpoint must hold.

Dimension letters used all over the numeric core:

    T  tokens of a packed batch      B  texts of a batch       n  tokens of one text
    H  hidden_size                   A  attention heads        D  size of a head, H / A
    I  intermediate_size             V  vocab_size             P  max_position_embeddings
    K  inputs of a linear map        N  outputs of a linear map

Matrices keep the hub's orientation, [outputs, inputs]. Precision is a property of a record, not of a class tree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitrans.errors import UnsupportedModelError
from minitrans.models.config import EncoderConfig

Float32: TypeAlias = NDArray[np.float32]
Int8: TypeAlias = NDArray[np.int8]


INT8_INPUTS = (2**31 - 1) // (255 * 127)  # the most products of a uint8 and an int8 that an int32 holds


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias in float32."""

    weight: Float32  # [N, K]
    bias: Float32  # [N]


@dataclass(frozen=True)
class Int8Linear:
    """The same with int8 weights: row j of the matrix is weight[j] * scale[j] (symmetric, per output channel)."""

    weight: Int8  # [N, K]
    scale: Float32  # [N]
    bias: Float32  # [N]

    def __post_init__(self) -> None:
        inputs = self.weight.shape[1]
        if inputs > INT8_INPUTS:
            raise UnsupportedModelError(
                f"an int8 linear map has {inputs} inputs, wanted at most {INT8_INPUTS}, the most whose sum is exact in "
                "32 bits; use precision='float32'"
            )


@dataclass(frozen=True)
class Embedding:
    """A table of float32 rows."""

    weight: Float32  # [V, H]


@dataclass(frozen=True)
class Int8Embedding:
    """A table of int8 rows: row i is weight[i] * scale[i]."""

    weight: Int8  # [V, H]
    scale: Float32  # [V]


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation over the last axis (arXiv 1607.06450)."""

    weight: Float32  # [H]
    bias: Float32  # [H]


AnyLinear: TypeAlias = Linear | Int8Linear
AnyEmbedding: TypeAlias = Embedding | Int8Embedding


@dataclass(frozen=True)
class LayerParameters:
    """One encoder layer: the attention block, then the feed-forward block."""

    query: AnyLinear  # [H, H]
    key: AnyLinear  # [H, H]
    value: AnyLinear  # [H, H]
    attention_output: AnyLinear  # [H, H]
    attention_norm: LayerNorm  # [H]
    intermediate: AnyLinear  # [I, H]
    output: AnyLinear  # [H, I]
    output_norm: LayerNorm  # [H]


@dataclass(frozen=True)
class Parameters:
    """All weights of an encoder."""

    config: EncoderConfig
    word_embeddings: AnyEmbedding  # [V, H]
    position_embeddings: AnyEmbedding  # [P, H]
    token_type_embeddings: AnyEmbedding  # [type_vocab_size, H]
    embeddings_norm: LayerNorm  # [H]
    layers: tuple[LayerParameters, ...]  # num_hidden_layers of them

    @property
    def precision(self) -> str:
        """ "int8" or "float32"."""
        return "int8" if isinstance(self.layers[0].query, Int8Linear) else "float32"

    @property
    def sha256(self) -> str:
        """Of the configuration and of every array: whatever files, order and float format they were stored in."""
        # What a field has by default is left out: a later release may add fields.
        config = {
            field.name: value
            for field in dataclasses.fields(self.config)
            if (value := getattr(self.config, field.name)) != field.default
        }
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, array in named_arrays(self).items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


# Field of the record -> name in the checkpoint.
EMBEDDING_NAMES = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
}
EMBEDDINGS_NORM = "embeddings.LayerNorm"
LINEAR_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
NORM_NAMES = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}


def layer_prefix(layer: int) -> str:
    """Where the tensors of a layer begin in a checkpoint."""
    return f"encoder.layer.{layer}."


def embedding_shapes(config: EncoderConfig) -> dict[str, tuple[int, int]]:
    """Shape of each embedding table, by field name."""
    hidden = config.hidden_size
    return {
        "word_embeddings": (config.vocab_size, hidden),
        "position_embeddings": (config.max_position_embeddings, hidden),
        "token_type_embeddings": (config.type_vocab_size, hidden),
    }


def linear_shapes(config: EncoderConfig) -> dict[str, tuple[int, int]]:
    """Shape [N, K] of each linear map of a layer, by field name."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    square = (hidden, hidden)
    return {
        "query": square,
        "key": square,
        "value": square,
        "attention_output": square,
        "intermediate": (intermediate, hidden),
        "output": (hidden, intermediate),
    }


def tensor_shapes(config: EncoderConfig, precision: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield (name, kind, shape) of every tensor that a checkpoint must hold.

    ``kind`` is "float" (any float storage), or, for a checkpoint of ``precision`` "int8", "int8" for a quantised
    matrix and "scale" for the float32 scale of its rows, stored as ``<matrix>_scale``.
    """

    def matrix(name: str, shape: tuple[int, int]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        if precision == "int8":
            yield f"{name}.weight", "int8", shape
            yield f"{name}.weight_scale", "scale", shape[:1]
        else:
            yield f"{name}.weight", "float", shape

    def norm(name: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield f"{name}.weight", "float", (config.hidden_size,)
        yield f"{name}.bias", "float", (config.hidden_size,)

    for field, table_shape in embedding_shapes(config).items():
        yield from matrix(EMBEDDING_NAMES[field], table_shape)
    yield from norm(EMBEDDINGS_NORM)
    for layer in range(config.num_hidden_layers):
        for field, shape in linear_shapes(config).items():
            yield from matrix(layer_prefix(layer) + LINEAR_NAMES[field], shape)
            yield f"{layer_prefix(layer)}{LINEAR_NAMES[field]}.bias", "float", shape[:1]
        for name in NORM_NAMES.values():
            yield from norm(layer_prefix(layer) + name)


def named_arrays(parameters: Parameters) -> dict[str, Float32 | Int8]:
    """Every array of the weights, as it is (no copy), under the name and in the order of `tensor_shapes`."""
    records: dict[str, AnyEmbedding | AnyLinear | LayerNorm] = {
        name: getattr(parameters, field) for field, name in EMBEDDING_NAMES.items()
    }
    records[EMBEDDINGS_NORM] = parameters.embeddings_norm
    for index, layer in enumerate(parameters.layers):
        for field, name in (LINEAR_NAMES | NORM_NAMES).items():
            records[layer_prefix(index) + name] = getattr(layer, field)
    arrays: dict[str, Float32 | Int8] = {}
    for name, record in records.items():
        for field, suffix in (("weight", "weight"), ("scale", "weight_scale"), ("bias", "bias")):
            if hasattr(record, field):
                arrays[f"{name}.{suffix}"] = getattr(record, field)
    return arrays
