"""Importance scores -> the rows that stay, and what happens to the others (arXiv 2408.11799; see encoder/policy.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.packing import PackedBatch, segments
from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import InputError
from minitrans.models.parameters import Float32, Linear

TOP = 16.0  # what a score may reach and still count: the kernels raise e to a power of at most 0,
LOWEST = -87.0  # and of at least this


@dataclass(frozen=True)
class Ranking:
    """How the tokens of a batch are to be ranked at one stage, and how many of each text may go."""

    scores: Float32 | None  # [T], or None where the scorer gives them
    scorer: Linear | None  # [1, H] of the hidden state
    least: NDArray[np.int64]  # [N + 1] by the length of a text: tokens that stay at least
    budgets: Float32 | None = None  # [N + 1] likewise: what those that go may cost together (see `cost`); None: no end
    prefix: int = 0  # tokens at the beginning of each text that rank before all others
    suffix: int = 0  # and at its end
    restore: Linear | None = None  # [H, H] what rows that go are expected to add to the mean of those that stay


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
        policy: gives the score, what stays of a text, what happens to the rest, and protect_special.
        layer: 0-based.
        scores: [T] that attention gave, or None.
        batch: the texts as they came.
        rows: [T] which tokens of the batch are still there.
        offsets: [B + 1] of these.
    """
    prefix, suffix = _protected(policy, batch)
    least, budgets = limits_by_length(policy, layer, len(batch.ids), prefix + suffix)
    scorer = policy.scorer(layer) if policy.score == "learned" else None
    if scores is None and scorer is None:
        scores = control_scores(policy, batch, rows, offsets)
    restore = policy.restore_map(layer) if policy.reduce == "restore" else None
    return Ranking(scores, scorer, least, budgets, prefix, suffix, restore)


def may_prune(policy: PruningPolicy, layer: int, batch: PackedBatch, offsets: NDArray[np.int64]) -> bool:
    """Whether any text is long enough to lose tokens at a layer of the plan; arguments as for `rank`."""
    least, _ = limits_by_length(policy, layer, len(batch.ids), sum(_protected(policy, batch)))
    lengths = np.diff(offsets)  # [B]
    return bool((least[lengths] < lengths).any())


def _protected(policy: PruningPolicy, batch: PackedBatch) -> tuple[int, int]:
    return (batch.prefix, batch.suffix) if policy.protect_special else (0, 0)


def limits_by_length(
    policy: PruningPolicy, layer: int, tokens: int, protected: int = 0
) -> tuple[NDArray[np.int64], Float32 | None]:
    """`Ranking.least` and `Ranking.budgets` of a stage, for texts of up to so many tokens, and perhaps longer ones."""
    budget = None
    if policy.max_turn is not None:
        budget = policy.max_turn, *numbers_of(policy.turn_map(layer))
    longest = max(512, 1 << tokens.bit_length())
    return _limits(policy.plan[layer], max(policy.min_tokens, protected), budget, longest)


@lru_cache(maxsize=64)  # all calls under a policy share these
def _limits(
    quantile: float, min_tokens: int, budget: tuple[float, ...] | None, longest: int
) -> tuple[NDArray[np.int64], Float32 | None]:
    lengths = np.arange(longest + 1)  # [N + 1]
    least = kept_count(lengths, quantile, min_tokens)
    return least, None if budget is None else budgets(budget[0], budget[1:], lengths)


# The turn of an embedding grows with the number d of tokens that go and with what each is worth, e**score. Fitted on
# texts of all lengths n, its logarithm is a linear function of log(d * sum of e**score), log n and (log n)**2.


def cost(scores: Float32) -> Float32:
    """What giving up the first, the first two, ... of some tokens costs: their number times the sum of e**score.

    Args:
        scores: [d], in the order in which they go.

    Returns:
        [d], in units of e**`TOP`.
    """
    worth: Float32 = np.exp(np.clip(scores - np.float32(TOP), np.float32(LOWEST), np.float32(0)))
    total: Float32 = np.cumsum(worth, dtype=np.float32)
    counts: Float32 = np.arange(1, len(scores) + 1, dtype=np.float32)
    return total * counts


def numbers_of(turn: Linear) -> tuple[float, ...]:
    """The three weights and the bias of the map to the logarithm of a turn."""
    return *turn.weight[0].tolist(), *turn.bias.tolist()


def budgets(degrees: float, turn: Sequence[float], lengths: NDArray[np.int64]) -> Float32:
    """The `cost` [N] at which texts of so many tokens are expected to turn so far.

    Args:
        degrees: of the turn.
        turn: the `numbers_of` the map to its logarithm (see `Fitted.turns`).
        lengths: [N] in tokens.
    """
    log_n = np.log(np.maximum(lengths, 1))
    on_cost, linear, square, bias = turn
    log_cost = (math.log(degrees) - bias - linear * log_n - square * log_n**2) / on_cost
    return np.exp(np.clip(log_cost - TOP, LOWEST, -LOWEST)).astype(np.float32)


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
        hidden [T', H], which rows these are, and, if the ranking restores, what those that went are expected to add to
        the mean of those that stay, added up over them [B, H].
    """
    scores = score_rows(hidden, ranking)  # [T]
    place, stays = positions(offsets), np.zeros(len(scores), bool)  # [T], [T]
    new_offsets = np.zeros_like(offsets)
    restored = None if ranking.restore is None else np.zeros((len(offsets) - 1, hidden.shape[1]), np.float32)  # [B, H]
    for b, text in enumerate(segments(offsets)):
        n = text.stop - text.start
        outside = (place[text] < ranking.prefix) | (place[text] >= n - ranking.suffix)  # [n]
        damaged = np.isnan(scores[text])  # [n] these stay, to be reported
        top = np.float32(np.inf)
        keys = np.where(outside, top, np.where(damaged, -top, scores[text]))  # [n]
        order = np.argsort(-keys, kind="stable")  # best first
        goes = np.arange(n) >= ranking.least[n]  # [n] in this order
        if ranking.budgets is not None:
            goes &= cost(keys[order][::-1])[::-1] <= ranking.budgets[n]
        stays[text][order] = ~goes
        stays[text] |= outside | damaged
        new_offsets[b + 1] = new_offsets[b] + stays[text].sum()
        if restored is not None and ranking.restore is not None:
            restored[b] = _expected(hidden[text][~stays[text]], ranking.restore)
    kept = np.flatnonzero(stays)  # [T']
    return hidden[kept], Selection(scores, kept, new_offsets), restored


def _expected(gone: Float32, restore: Linear) -> Float32:
    """[H] what rows [d, H] are expected to add. The map is linear: one product per text will do."""
    total = np.zeros(gone.shape[1], np.float32)
    for row in gone:  # in their order: a text's sum does not depend on the memory that it lies in
        total += row
    return total @ restore.weight.T + np.float32(len(gone)) * restore.bias


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
