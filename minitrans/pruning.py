"""Importance scores -> the rows that stay, and what happens to the rest (arXiv 2408.11799; fields: PruningPolicy)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitrans.config import PruningPolicy
from minitrans.packing import PackedBatch, segments
from minitrans.parameters import Float32


@dataclass(frozen=True)
class Selection:
    """Which of T rows stay after one pruning stage, and what became of the others."""

    scores: Float32  # [T] the importance of every row before the stage
    kept: NDArray[np.int64]  # [T'] rows that stay, ascending
    offsets: NDArray[np.int64]  # [B + 1] of the rows that stay
    target: NDArray[np.int64] | None = None  # [T] merged into which of the T' rows (a kept row: itself); None: dropped


def kept_count(tokens: int, quantile: float, min_tokens: int) -> int:
    """How many of a text's tokens stay: max(s, n - floor(q * n)), and all n if n <= s.

    The small term undoes rounding: 0.29 * 100 is 28.999..., and 29 is meant.
    """
    return min(tokens, max(min_tokens, tokens - math.floor(quantile * tokens + 1e-9)))


def importance(
    policy: PruningPolicy, batch: PackedBatch, rows: NDArray[np.int64], offsets: NDArray[np.int64]
) -> Float32:
    """Scores that need no attention: the controls "random" and "first".

    Args:
        policy: the policy whose ``score`` this is.
        batch: the texts as they came.
        rows: [T] which tokens of the batch are still there.
        offsets: [B + 1] of these.

    Returns:
        [T]; a text's scores depend on that text alone.
    """
    scores = np.empty(len(rows), np.float32)
    for text in segments(offsets):
        n = text.stop - text.start
        if policy.score == "first":
            scores[text] = -np.arange(n)
        else:
            scores[text] = np.random.default_rng([policy.seed, *batch.ids[rows[text]]]).random(n)
    return scores


def select(
    policy: PruningPolicy, quantile: float, scores: Float32, batch: PackedBatch, offsets: NDArray[np.int64]
) -> Selection:
    """Keep the most important tokens of each text, in their order.

    Args:
        policy: gives min_tokens and protect_special.
        quantile: q of this stage.
        scores: [T].
        batch: gives the number of special tokens around a text.
        offsets: [B + 1] of the rows that are there.
    """
    protected = batch.prefix + batch.suffix if policy.protect_special else 0
    min_tokens = max(policy.min_tokens, protected)
    kept = []
    for text in segments(offsets):
        n = text.stop - text.start
        ranking = scores[text].copy()  # [n]
        if policy.protect_special:
            ranking[: batch.prefix] = np.inf
            ranking[n - batch.suffix :] = np.inf
        order = np.argsort(-ranking, kind="stable")  # ties: the earlier position first
        kept.append(text.start + np.sort(order[: kept_count(n, quantile, min_tokens)]))
    new_offsets = np.zeros_like(offsets)
    np.cumsum([len(rows) for rows in kept], out=new_offsets[1:])
    return Selection(scores, np.concatenate(kept) if kept else np.empty(0, np.int64), new_offsets)


def merge(
    hidden: Float32, sizes: Float32 | None, offsets: NDArray[np.int64], selection: Selection
) -> tuple[Float32, Float32, Selection]:
    """Average each dropped row into the most similar kept row of its text, weighted by size.

    Similarity is the cosine of the hidden states; ties go to the earlier row (as in token merging, arXiv 2210.09461).

    Args:
        hidden: [T, H].
        sizes: [T] how many tokens each row stands for; None means one each.
        offsets: [B + 1] of the T rows.
        selection: what stays.

    Returns:
        hidden [T', H], sizes [T'], and the selection with ``target`` filled in.
    """
    sizes = np.ones(len(hidden), np.float32) if sizes is None else sizes
    merged = hidden[selection.kept]  # [T', H]
    merged_sizes = sizes[selection.kept]  # [T']
    target = np.empty(len(hidden), np.int64)
    target[selection.kept] = np.arange(len(selection.kept))
    for text, left in zip(segments(offsets), segments(selection.offsets), strict=True):
        rows = np.arange(text.start, text.stop)
        dropped = np.setdiff1d(rows, selection.kept[left], assume_unique=True)  # [d]
        if not len(dropped):
            continue
        unit = hidden[text] / np.linalg.norm(hidden[text], axis=-1, keepdims=True)  # [n, H]
        similarity = unit[dropped - text.start] @ unit[selection.kept[left] - text.start].T  # [d, k]
        target[dropped] = left.start + similarity.argmax(axis=-1)
        merged[left] *= merged_sizes[left, None]
        np.add.at(merged, target[dropped], hidden[dropped] * sizes[dropped, None])
        np.add.at(merged_sizes, target[dropped], sizes[dropped])
        merged[left] /= merged_sizes[left, None]
    return merged, merged_sizes, Selection(selection.scores, selection.kept, selection.offsets, target)
