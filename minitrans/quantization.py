"""int8: the arithmetic that every backend follows, and the export of an int8 model folder.

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
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans.config import check_choice
from minitrans.contents import INDEX_FILE, WEIGHTS_FILE, ModelFolder, model_file, read_json
from minitrans.errors import InputError
from minitrans.manifest import files_read, load_manifest
from minitrans.parameters import (
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
    named_arrays,
)
from minitrans.resources import atomic_folder, sha256_of, target_of
from minitrans.weights import INT8_FORMAT, load_parameters, weight_files

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
    """The float32 form of a linear map: what the int8 one stands for."""
    if isinstance(linear, Linear):
        return linear
    return Linear(linear.weight.astype(np.float32) * linear.scale[:, None], linear.bias)


def dequantize_embedding(embedding: AnyEmbedding) -> Embedding:
    """The float32 form of an embedding table."""
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
    if precision == "int8":
        return _map_matrices(parameters, quantize_linear, quantize_embedding)
    return _map_matrices(parameters, dequantize_linear, dequantize_embedding)


_L = TypeVar("_L", bound=AnyLinear)
_E = TypeVar("_E", bound=AnyEmbedding)


def _map_matrices(
    parameters: Parameters, linear: Callable[[AnyLinear], _L], embedding: Callable[[AnyEmbedding], _E]
) -> Parameters:
    def convert(record: Any) -> Any:
        if isinstance(record, Linear | Int8Linear):
            return linear(record)
        if isinstance(record, Embedding | Int8Embedding):
            return embedding(record)
        if isinstance(record, LayerParameters | Parameters):
            fields = {f.name: convert(getattr(record, f.name)) for f in dataclasses.fields(record)}
            return type(record)(**fields)
        return tuple(convert(item) for item in record) if isinstance(record, tuple) else record

    converted: Parameters = convert(parameters)
    return converted


def quantize_folder(source: str | Path, destination: str | Path) -> Path:
    """Write the int8 form of a model folder: the same input gives the same bytes.

    The result holds the int8 weights and their scales, the configuration, the tokenizer and the sentence-transformers
    files of the source, the licence files, and ``provenance.json`` with the digests of what it was made from.

    Args:
        source: a float model folder.
        destination: a folder that does not exist yet.

    Returns:
        The destination.

    Raises:
        InputError: the destination exists, or the source is int8 already.
        ModelError: the source is not a usable model folder.
        WriteError: the destination cannot be written.
    """
    source, destination = Path(source), target_of(destination)
    if os.path.lexists(destination):
        raise InputError(f"{destination} exists already; name a new folder, or remove it first")
    parameters, there = load_parameters(source), ModelFolder.open(source)
    if parameters.precision == "int8":
        raise InputError(f"{source} is an int8 model already; quantise the float model it came from")
    quantized = with_precision(parameters, "int8")
    size = sum(array.nbytes for array in named_arrays(quantized).values())
    with atomic_folder(destination, size=size) as folder:
        for name in _to_copy(there):
            _copy(source, folder, name)
        config = read_json(there.file("config.json"))
        config["quantization_config"] = {
            "quant_method": INT8_FORMAT,
            "version": 1,
            "weights": "int8, symmetric, per output channel",
            "embeddings": "int8, symmetric, per row",
            "activations": "uint8, asymmetric, per token, at run time",
        }
        _write_json(folder / there.name("config.json"), config)
        _write_tensors(folder / there.name(WEIGHTS_FILE), quantized)
        made_from = {file.name: sha256_of(file) for file in weight_files(source)}
        _write_json(
            folder / "provenance.json",
            {
                "made_by": "minitrans quantize",
                "weights": quantized.sha256,
                "from": {**_origin(made_from), "weights": parameters.sha256, "weights_sha256": made_from},
                "what": "int8 per output channel and per embedding row; layer norms, biases and scales float32",
            },
        )
    return destination


def _origin(digests: dict[str, str]) -> dict[str, str]:
    """Name, revision and licence of the known model that has these weights, if there is one."""
    for known in load_manifest().values():
        if known.revision and digests.items() <= known.files.items():
            return {"model": known.name, "revision": known.revision, "licence": known.licence}
    return {}


def _to_copy(there: ModelFolder) -> list[str]:
    """All that an encoder reads but the weights, and the licences."""
    names = {name for name in files_read(there.path) if not name.endswith((".safetensors", INDEX_FILE))}
    if there.has("tokenizer.json"):
        names.discard(there.name("vocab.txt"))  # not read then
    licences = [*there.path.glob("LICENSE*"), *there.path.glob("NOTICE*")]
    return sorted(names | {file.name for file in licences if file.is_file()})


def _copy(source: Path, folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model_file(source, name), folder / name)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tensors(path: Path, parameters: Parameters) -> None:
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in named_arrays(parameters).items()}
    path.write_bytes(save(arrays, metadata={"format": INT8_FORMAT}))
