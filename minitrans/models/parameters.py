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
        """Digest of the configuration and of every array, the same for any files, order and float format of storage."""
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


# Field of the record -> name in the checkpoint, and rows and columns as `EncoderConfig` calls them.
EMBEDDINGS = {
    "word_embeddings": ("embeddings.word_embeddings", "vocab_size", "hidden_size"),
    "position_embeddings": ("embeddings.position_embeddings", "max_position_embeddings", "hidden_size"),
    "token_type_embeddings": ("embeddings.token_type_embeddings", "type_vocab_size", "hidden_size"),
}
LINEARS = {
    "query": ("attention.self.query", "hidden_size", "hidden_size"),
    "key": ("attention.self.key", "hidden_size", "hidden_size"),
    "value": ("attention.self.value", "hidden_size", "hidden_size"),
    "attention_output": ("attention.output.dense", "hidden_size", "hidden_size"),
    "intermediate": ("intermediate.dense", "intermediate_size", "hidden_size"),
    "output": ("output.dense", "hidden_size", "intermediate_size"),
}
EMBEDDINGS_NORM = "embeddings.LayerNorm"
NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}


def layer_prefix(layer: int) -> str:
    """Where the tensors of a layer begin in a checkpoint."""
    return f"encoder.layer.{layer}."


def tensor_shapes(config: EncoderConfig, precision: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield (name, kind, shape) of every tensor that a checkpoint must hold.

    ``kind`` is "float" (any float storage), or, for a checkpoint of ``precision`` "int8", "int8" for a quantised
    matrix and "scale" for the float32 scale of its rows, stored as ``<matrix>_scale``.
    """

    def matrix(name: str, rows: str, columns: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        shape = getattr(config, rows), getattr(config, columns)
        if precision == "int8":
            yield f"{name}.weight", "int8", shape
            yield f"{name}.weight_scale", "scale", shape[:1]
        else:
            yield f"{name}.weight", "float", shape

    def norm(name: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield f"{name}.weight", "float", (config.hidden_size,)
        yield f"{name}.bias", "float", (config.hidden_size,)

    for name, rows, columns in EMBEDDINGS.values():
        yield from matrix(name, rows, columns)
    yield from norm(EMBEDDINGS_NORM)
    for layer in range(config.num_hidden_layers):
        prefix = layer_prefix(layer)
        for name, rows, columns in LINEARS.values():
            yield from matrix(prefix + name, rows, columns)
            yield f"{prefix}{name}.bias", "float", (getattr(config, rows),)
        for name in NORMS.values():
            yield from norm(prefix + name)


def named_arrays(parameters: Parameters) -> dict[str, Float32 | Int8]:
    """Every array of the weights, as it is (no copy), under the name and in the order of `tensor_shapes`."""
    records: dict[str, AnyEmbedding | AnyLinear | LayerNorm] = {
        name: getattr(parameters, field) for field, (name, *_) in EMBEDDINGS.items()
    }
    records[EMBEDDINGS_NORM] = parameters.embeddings_norm
    for index, layer in enumerate(parameters.layers):
        for field, name in ({field: name for field, (name, *_) in LINEARS.items()} | NORMS).items():
            records[layer_prefix(index) + name] = getattr(layer, field)
    arrays: dict[str, Float32 | Int8] = {}
    for name, record in records.items():
        for field, suffix in (("weight", "weight"), ("scale", "weight_scale"), ("bias", "bias")):
            if hasattr(record, field):
                arrays[f"{name}.{suffix}"] = getattr(record, field)
    return arrays
