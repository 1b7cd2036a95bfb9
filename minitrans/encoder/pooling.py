"""Token vectors -> one vector per text: the six poolings of sentence-transformers, and normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.packing import segments
from minitrans.models.parameters import Float32
from minitrans.models.sentence import PoolingConfig, PoolingMode

if TYPE_CHECKING:
    from minitrans.encoder.forward import Encoded


def pool(
    hidden: Float32,
    offsets: NDArray[np.int64],
    config: PoolingConfig,
    sizes: Float32 | None = None,
    positions: NDArray[np.int64] | None = None,
    restored: tuple[NDArray[np.int64], Float32] | None = None,
) -> Float32:
    """Pool the rows of each text.

    Args:
        hidden: [T, H].
        offsets: [B + 1].
        config: the modes, and whether the result is normalised.
        sizes: [T] how many tokens each row stands for (merged rows); None means one each.
        positions: [T] 0-based position of each row in its text before pruning, for "weightedmean"; None means
            that nothing was pruned.
        restored: how many rows [B] are gone, and how far they are expected to lie from the mean of those that are
            left, added up over them [B, H]; a mean is then that of all.

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
        more = None if restored is None else (restored[0][b], restored[1][b])  # -, [H]
        for m, mode in enumerate(config.modes):
            pooled[b, m * width : (m + 1) * width] = _pool_text(hidden[rows], mode, weight, position, more)
    return normalized(pooled) if config.normalize else pooled


def pool_encoded(encoded: Encoded, config: PoolingConfig) -> Float32:
    """The embeddings [B, H * modes] of what is left of a batch."""
    restored = None
    if encoded.restored is not None:
        restored = np.diff(encoded.batch.offsets) - np.diff(encoded.offsets), encoded.restored  # [B], [B, H]
    return pool(encoded.hidden, encoded.offsets, config, encoded.sizes, encoded.positions, restored)


def _pool_text(
    hidden: Float32,
    mode: PoolingMode,
    sizes: Float32 | None,
    position: NDArray[np.int64],
    more: tuple[int, Float32] | None,
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
            whole = count + np.float32(more[0])
            total, count = total * (whole / count) + more[1], whole
    else:
        weight = np.ones(len(hidden), np.float32) if sizes is None else sizes  # [n]
        if mode == "weightedmean":
            weight = weight * (position + 1).astype(np.float32)  # [n] later tokens count more
        total, count = (hidden * weight[:, None]).sum(axis=0), weight.sum()  # [H]
    return total / (np.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)


def normalized(vectors: Float32) -> Float32:
    """Divide each row [.., H] by its Euclidean length; a zero vector stays zero."""
    with np.errstate(over="ignore"):
        length = np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True))
    if np.isinf(length).any():  # the squares of finite numbers may be beyond float32
        exact = vectors.astype(np.float64)
        return (exact / np.maximum(np.sqrt(np.square(exact).sum(axis=-1, keepdims=True)), 1e-12)).astype(np.float32)
    return vectors / np.maximum(length, np.float32(1e-12))
