"""Token vectors -> one vector per text: the six poolings of sentence-transformers, and normalisation."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from minitrans.config import PoolingMode
from minitrans.contents import check_keys, model_file, optional_file, read_json, read_modules
from minitrans.errors import ConfigError, UnsupportedModelError
from minitrans.packing import segments
from minitrans.parameters import Float32

if TYPE_CHECKING:
    from minitrans.encoder import Encoded

# The older key style: one boolean per mode.
_LEGACY_KEYS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class PoolingConfig:
    """How a model pools: one mode, or several whose vectors are concatenated; and whether it normalises."""

    modes: tuple[PoolingMode, ...] = ("mean",)
    normalize: bool = False

    @classmethod
    def from_folder(cls, folder: Path, hidden_size: int) -> PoolingConfig:
        """Follow ``modules.json``; without one it is mean pooling, as in sentence-transformers.

        Raises:
            UnsupportedModelError: a module other than Transformer, Pooling, Dropout and Normalize, or out of place.
            ConfigError: a broken file.
        """
        if optional_file(folder, "modules.json") is None:
            return cls()
        modes: tuple[PoolingMode, ...] | None = None
        normalize = False
        before = ""
        for kind, path in read_modules(folder):
            if (kind == "Transformer") != (before == "") or (kind == "Pooling") != (before == "Transformer"):
                raise UnsupportedModelError(
                    f"{folder / 'modules.json'}: {kind} is out of place, wanted Transformer, Pooling, Normalize"
                )
            if kind == "Pooling":
                modes = _read_modes(folder, pooling_file(path), hidden_size)
            elif kind != "Transformer":  # Dropout does nothing while encoding
                normalize |= kind == "Normalize"
                if path and (file := optional_file(folder, pooling_file(path))) is not None:
                    check_keys(read_json(file), kind, str(file))
            before = kind
        if modes is None:
            raise UnsupportedModelError(f"{folder / 'modules.json'}: there is no Pooling module, wanted one")
        return cls(modes, normalize)


def pooling_file(path: str) -> str:
    """The file, inside the model folder, that says how a module of kind "Pooling" with this path pools."""
    return (PurePosixPath(path) / "config.json").as_posix()


def _read_modes(folder: Path, name: str, hidden_size: int) -> tuple[PoolingMode, ...]:
    file = model_file(folder, name)
    values = read_json(file)
    check_keys(values, "Pooling", str(file))
    for key in ("include_prompt", *_LEGACY_KEYS):
        if not isinstance(values.get(key, False), bool):
            raise ConfigError(f"{file}: {key} is {values[key]!r:.100}, wanted true or false")
    if values.get("include_prompt") is False:
        raise UnsupportedModelError(
            f"{file}: include_prompt=false is not supported, wanted prompts that are pooled too"
        )
    width = values.get("embedding_dimension", values.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise ConfigError(f"{file}: the embeddings are {width!r} wide, wanted {hidden_size}, the model's hidden_size")
    modes: Any = values.get("pooling_mode")
    if modes is None and not any(key in values for key in _LEGACY_KEYS):
        modes = ["mean"]
    elif modes is None:
        modes = [mode for key, mode in _LEGACY_KEYS.items() if values.get(key) is True]
    elif isinstance(modes, str):
        modes = modes.split("+")
    known = get_args(PoolingMode)
    if not (isinstance(modes, list) and modes and all(mode in known for mode in modes) and len({*modes}) == len(modes)):
        raise ConfigError(f"{file}: pooling is {reprlib.repr(modes)}, wanted some of {', '.join(known)}, each once")
    return tuple(modes)


def pool(
    hidden: Float32,
    offsets: NDArray[np.int64],
    config: PoolingConfig,
    sizes: Float32 | None = None,
    positions: NDArray[np.int64] | None = None,
    restored: tuple[Float32, NDArray[np.int64]] | None = None,
) -> Float32:
    """Pool the rows of each text.

    Args:
        hidden: [T, H].
        offsets: [B + 1].
        config: the modes, and whether the result is normalised.
        sizes: [T] how many tokens each row stands for (merged rows); None means one each.
        positions: [T] 0-based position of each row in its text before pruning, for "weightedmean"; None means
            that nothing was pruned.
        restored: a sum of rows [B, H] that counts in a mean as so many more rows [B].

    Returns:
        [B, H * number of modes]; a text without tokens gives zeros.
    """
    width = hidden.shape[1]
    pooled = np.zeros((len(offsets) - 1, width * len(config.modes)), np.float32)  # [B, H * modes]
    for b, rows in enumerate(segments(offsets)):
        if rows.start == rows.stop:
            continue
        weight = None if sizes is None else sizes[rows]  # [n]
        position = np.arange(rows.stop - rows.start) if positions is None else positions[rows]  # [n]
        more = None if restored is None else (restored[0][b], restored[1][b])  # [H], -
        for m, mode in enumerate(config.modes):
            pooled[b, m * width : (m + 1) * width] = _pool_text(hidden[rows], mode, weight, position, more)
    return normalized(pooled) if config.normalize else pooled


def pool_encoded(encoded: Encoded, config: PoolingConfig) -> Float32:
    """The embeddings [B, H * modes] of what is left of a batch."""
    restored = None
    if encoded.restored is not None:
        restored = encoded.restored, np.diff(encoded.batch.offsets) - np.diff(encoded.offsets)  # [B, H], [B]
    return pool(encoded.hidden, encoded.offsets, config, encoded.sizes, encoded.positions, restored)


def _pool_text(
    hidden: Float32,
    mode: PoolingMode,
    sizes: Float32 | None,
    position: NDArray[np.int64],
    more: tuple[Float32, int] | None,
) -> Float32:
    """[n, H] -> [H]"""
    if mode == "cls":
        return hidden[0]
    if mode == "lasttoken":
        return hidden[-1]
    if mode == "max":
        return hidden.max(axis=0)
    if sizes is None and mode != "weightedmean":  # all weights are 1
        total, count = hidden.sum(axis=0), np.float32(len(hidden))  # [H]
        if more is not None:
            total, count = total + more[0], count + np.float32(more[1])
        return total / (np.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)
    weight = np.ones(len(hidden), np.float32) if sizes is None else sizes  # [n]
    if mode == "weightedmean":
        weight = weight * (position + 1).astype(np.float32)  # [n] later tokens count more
    total = (hidden * weight[:, None]).sum(axis=0)  # [H]
    count = weight.sum()
    return total / (np.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)


def normalized(vectors: Float32) -> Float32:
    """Divide each row [.., H] by its Euclidean length; a zero vector stays zero."""
    length = np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True))
    return vectors / np.maximum(length, np.float32(1e-12))
