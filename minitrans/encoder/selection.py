"""Importance scores -> the rows that stay, and what happens to the others (arXiv 2408.11799; see encoder/policy.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.packing import PackedBatch, segments
from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import InputError
from minitrans.models.parameters import Float32, Linear


@dataclass(frozen=True)
class Ranking:
    """How the tokens of a batch are to be ranked at one stage, and how many stay at least."""

    scores: Float32 | None  # [T], or None where the scorer gives them
    scorer: Linear | None  # [1, H] of the hidden state
    least: NDArray[np.int64]  # [B] tokens that stay of each text
    threshold: float = math.inf  # what scores at least this much stays besides
    prefix: int = 0  # tokens at the beginning of each text that rank before all others
    suffix: int = 0  # and at its end
    sums: bool = False  # whether the rows that go are to be added up


@dataclass(frozen=True)
class Selection:
    """Which of T rows stay after one pruning stage, and what became of the others."""

    scores: Float32  # [T] the importance of every row before the stage
    kept: NDArray[np.int64]  # [T'] rows that stay, ascending
    offsets: NDArray[np.int64]  # [B + 1] of the rows that stay
    target: NDArray[np.int64] | None = None  # [T] merged into which of the T' rows (a kept row: itself); None: dropped


def kept_count(tokens: NDArray[np.int64], quantile: float, min_tokens: int) -> NDArray[np.int64]:
    """How many tokens stay of texts of so many: max(s, n - floor(q * n)), and all n if n <= s.

    The small term undoes rounding: 0.29 * 100 is 28.999..., and 29 is meant.
    """
    given_up = np.floor(quantile * tokens + 1e-9).astype(np.int64)
    return np.minimum(tokens, np.maximum(min_tokens, tokens - given_up))


def rank(
    policy: PruningPolicy,
    layer: int,
    scores: Float32 | None,
    batch: PackedBatch,
    rows: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> Ranking:
    """What the policy asks for at a layer of its plan.

    Args:
        policy: gives the score, the quantile of the layer, min_tokens, threshold and protect_special.
        layer: 0-based.
        scores: [T] that attention gave, or None.
        batch: the texts as they came.
        rows: [T] which tokens of the batch are still there.
        offsets: [B + 1] of these.
    """
    prefix, suffix = (batch.prefix, batch.suffix) if policy.protect_special else (0, 0)
    least = kept_count(np.diff(offsets), policy.plan[layer], max(policy.min_tokens, prefix + suffix))  # [B]
    scorer = policy.scorer(layer) if policy.score == "learned" else None
    if scores is None and scorer is None:
        scores = control_scores(policy, batch, rows, offsets)
    threshold = math.inf if policy.threshold is None else policy.threshold
    return Ranking(scores, scorer, least, threshold, prefix, suffix, policy.reduce == "restore")


def control_scores(
    policy: PruningPolicy, batch: PackedBatch, rows: NDArray[np.int64], offsets: NDArray[np.int64]
) -> Float32:
    """Scores [T] that look at nothing: "random" and "first". A text's scores depend on that text alone."""
    if policy.score == "first":
        return -positions(offsets).astype(np.float32)
    scores = np.empty(len(rows), np.float32)
    for text in segments(offsets):
        scores[text] = np.random.default_rng([policy.seed, *batch.ids[rows[text]]]).random(text.stop - text.start)
    return scores


def select(hidden: Float32, offsets: NDArray[np.int64], ranking: Ranking) -> tuple[Float32, Selection, Float32 | None]:
    """Keep the most important tokens of each text, in their order; of equals the earlier is more important.

    Args:
        hidden: [T, H].
        offsets: [B + 1].
        ranking: of these rows.

    Returns:
        hidden [T', H], which rows these are, and if asked for, per text the sum [B, H] of the rows that went.
    """
    scores = score_rows(hidden, ranking)  # [T]
    lengths = np.diff(offsets)  # [B]
    text, place = np.repeat(np.arange(len(lengths)), lengths), positions(offsets)  # [T], [T]
    outside = (place < ranking.prefix) | (place >= np.repeat(lengths - ranking.suffix, lengths))  # [T]
    damaged = np.isnan(scores)  # [T] these stay, to be reported
    top = np.float32(np.inf)
    keys = np.where(outside, top, np.where(damaged, -top, scores))  # [T]
    order = np.lexsort((-keys, text))  # best first; the sort is stable
    stays = np.empty(len(scores), bool)  # [T]
    stays[order] = place < np.repeat(ranking.least, lengths)
    stays |= outside | damaged | (scores >= np.float32(ranking.threshold))
    kept, gone = np.flatnonzero(stays), np.flatnonzero(~stays)  # [T'], [T - T']
    new_offsets = np.zeros_like(offsets)
    np.cumsum(np.bincount(text[kept], minlength=len(lengths)), out=new_offsets[1:])
    sums = None
    if ranking.sums:
        sums = np.zeros((len(lengths), hidden.shape[1]), np.float32)  # [B, H]
        np.add.at(sums, text[gone], hidden[gone])  # row by row, in their order
    return hidden[kept], Selection(scores, kept, new_offsets), sums


def score_rows(hidden: Float32, ranking: Ranking) -> Float32:
    """The scores [T] that are there, or those of the scorer on hidden [T, H]."""
    if ranking.scores is not None:
        return ranking.scores
    if ranking.scorer is None:
        raise InputError("a ranking has neither scores nor a scorer, wanted one of them")
    # Not a BLAS product, whose rounding of a row may depend on the rows beside it.
    return np.einsum("th,h->t", hidden, ranking.scorer.weight[0]) + ranking.scorer.bias[0]


def positions(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """[T] 0-based place of every row in its text."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))


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
