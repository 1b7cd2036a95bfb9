"""safetensors -> Parameters, with every byte of a model folder treated as hostile until it is validated.

The `safetensors` library checks a file's header (size, offsets, overlaps, dtypes); what is checked here is that the
files lie inside the folder and that names, dtypes, shapes and values are those of the configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans.contents import INDEX_FILE, WEIGHTS_FILE, lfs_pointer
from minitrans.errors import ConfigError, ModelNotFoundError, UnsupportedModelError, WeightsError
from minitrans.models.config import EncoderConfig, stored_precision
from minitrans.models.folder import ModelFolder
from minitrans.models.parameters import (
    EMBEDDINGS,
    EMBEDDINGS_NORM,
    LINEARS,
    NORMS,
    Embedding,
    Float32,
    Int8Embedding,
    Int8Linear,
    LayerNorm,
    LayerParameters,
    Linear,
    Parameters,
    layer_prefix,
    tensor_shapes,
)

_KIND_DTYPES = {"float": ("F32", "F16", "BF16"), "int8": ("I8",), "scale": ("F32",)}
_ADAPTER = re.compile(r"\b(lora|adapter)", re.IGNORECASE)
# Pickle files are never opened; other formats are not read.
_OTHER_FORMATS = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.onnx",
    "tf_model.h5",
    "flax_model.msgpack",
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file: raw bytes, not yet converted."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    file: Path

    def describe(self) -> str:
        """Dtype and shape, for messages."""
        return f"{self.dtype} {list(self.shape)}"


def weight_files(folder: Path | ModelFolder) -> list[Path]:
    """The safetensors files of a model folder, each proven to lie inside it.

    Raises:
        WeightsError: the index is broken or points outside the folder.
        UnsupportedModelError: only pickle or other formats are there.
        ModelNotFoundError: no weights at all, or a shard is missing.
    """
    there = ModelFolder.open(folder)
    inner = there.place("")
    if (inner / WEIGHTS_FILE).exists():
        return [_inside(there, WEIGHTS_FILE)]
    if (inner / INDEX_FILE).exists():
        _inside(there, INDEX_FILE)
        weight_map = there.read(there.name(INDEX_FILE)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(f"{inner / INDEX_FILE}: weight_map is missing or empty, wanted tensor name -> file name")
        for name in weight_map.values():
            if not isinstance(name, str) or not name.endswith(".safetensors"):
                raise WeightsError(f"{inner / INDEX_FILE}: weight_map names {name!r}, wanted a .safetensors file")
        return [_inside(there, name) for name in sorted(set(weight_map.values()))]
    for name in _OTHER_FORMATS:
        if (inner / name).exists():
            raise UnsupportedModelError(
                f"{inner} holds {name} but no {WEIGHTS_FILE}; minitrans reads safetensors only (a pickle can run "
                "code): convert the model with save_pretrained(..., safe_serialization=True)"
            )
    raise ModelNotFoundError(f"{inner} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}; fetch the model again")


def _inside(folder: ModelFolder, name: str) -> Path:
    try:
        return folder.file(name)
    except ConfigError as error:
        raise WeightsError(str(error)) from None


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read one safetensors file into memory.

    Raises:
        WeightsError: whatever the safetensors library finds wrong with the file, or an element type it cannot size.
    """
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening validates the header: its size, offsets, overlaps and the file's length
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(header_size))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                file.seek(8 + header_size + begin)
                # Bytes of its own for each tensor, so that those a backend repacks can be let go.
                tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), file.read(end - begin), path)
    except (SafetensorError, OSError, ValueError) as error:
        wrong = f"is not a valid safetensors file ({error}); fetch the model again"
        raise WeightsError(f"{path} {lfs_pointer(path) or wrong}") from error
    return tensors


def load_parameters(folder: Path | ModelFolder) -> Parameters:
    """Read and validate the weights of a model folder.

    Accepts tensor names with or without the ``bert.`` prefix, one file or shards, float32, float16 or bfloat16
    storage (always computed in float32), and int8 folders written by ``quantize_folder``.

    Args:
        folder: holds ``config.json`` and ``model.safetensors`` or shards with their index.

    Raises:
        ConfigError, UnsupportedModelError, ModelNotFoundError: see EncoderConfig and weight_files.
        WeightsError: a broken file; missing, unexpected, wrongly shaped or typed tensors; NaN or infinity. The
            message names file, tensor, what was seen and what was wanted.
    """
    there = ModelFolder.open(folder)
    config = EncoderConfig.from_folder(there)
    precision = stored_precision(there)
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(there):
        for name, tensor in read_tensors(file).items():
            name = canonical_name(name)
            if name in stored:
                raise WeightsError(f"{file}: tensor {name!r} is also in {stored[name].file.name}, wanted it once")
            stored[name] = tensor
    _check_names(stored, config, precision, there.path)
    arrays = {name: convert(name, stored[name], kind, shape) for name, kind, shape in tensor_shapes(config, precision)}
    return assemble(config, arrays)


def assemble(config: EncoderConfig, arrays: Mapping[str, NDArray[Any]]) -> Parameters:
    """Build the records from arrays under their checkpoint names; a matrix with a ``_scale`` becomes int8."""

    def record(name: str, plain: type[Any], int8: type[Any]) -> Any:
        names = [f"{name}.{each}" for each in ("weight", "weight_scale", "bias")]
        return (int8 if names[1] in arrays else plain)(*(arrays[each] for each in names if each in arrays))

    def layer(prefix: str) -> LayerParameters:
        linears = {field: record(prefix + name, Linear, Int8Linear) for field, (name, *_) in LINEARS.items()}
        norms = {field: record(prefix + name, LayerNorm, LayerNorm) for field, name in NORMS.items()}
        return LayerParameters(**linears, **norms)

    tables = {field: record(name, Embedding, Int8Embedding) for field, (name, *_) in EMBEDDINGS.items()}
    norm = record(EMBEDDINGS_NORM, LayerNorm, LayerNorm)
    layers = tuple(layer(layer_prefix(index)) for index in range(config.num_hidden_layers))
    return Parameters(config, **tables, embeddings_norm=norm, layers=layers)


def is_ignored(name: str) -> bool:
    """Whether a tensor belongs to a part of a BERT checkpoint that a sentence encoder does not use."""
    # What lies elsewhere is a head, whatever its name.
    outside = not name.startswith(("embeddings.", "encoder.")) and not _ADAPTER.search(name)
    return outside or name in ("embeddings.position_ids", "embeddings.token_type_ids")


def canonical_name(name: str) -> str:
    """The name of a tensor as tensor_shapes gives it.

    Checkpoints of BertForMaskedLM and the like put the encoder under "bert."; the oldest ones say gamma and beta.
    """
    name = name.removeprefix("bert.")
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        if name.endswith(f"LayerNorm.{old}"):
            return name.removesuffix(old) + new
    return name


def _check_names(stored: Mapping[str, StoredTensor], config: EncoderConfig, precision: str, folder: Path) -> None:
    wanted = {name for name, _, _ in tensor_shapes(config, precision)}
    missing = sorted(wanted - set(stored))
    unexpected = sorted(name for name in set(stored) - wanted if not is_ignored(name))
    problems = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in (("tensors missing", missing), ("unexpected tensors", unexpected))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{folder}: the weights do not fit config.json ({config.num_hidden_layers} layers, {precision}): "
            + "; ".join(problems)
        )


def convert(name: str, tensor: StoredTensor, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Bytes -> a float32 or int8 array, refused unless dtype, shape and values are what the configuration says."""
    dtypes = _KIND_DTYPES[kind]
    if tensor.dtype not in dtypes or tensor.shape != shape:
        raise WeightsError(
            f"{tensor.file}: tensor {name!r} is {tensor.describe()}, wanted {' or '.join(dtypes)} {list(shape)}"
        )
    if kind == "int8":
        return np.frombuffer(tensor.data, np.int8).reshape(shape)
    array: Float32
    if tensor.dtype == "BF16":  # the upper half of a float32
        array = (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(invalid="ignore"):  # a NaN is reported below, with its place
            array = np.frombuffer(tensor.data, f"<f{4 if tensor.dtype == 'F32' else 2}").astype(np.float32, copy=False)
    array = array.reshape(shape)
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise WeightsError(
            f"{tensor.file}: tensor {name!r} holds {array[where]} at {list(where)}, wanted finite values"
        )
    if kind == "scale" and (array <= 0).any():
        raise WeightsError(f"{tensor.file}: tensor {name!r} holds {array.min()}, wanted scales above 0")
    return array
