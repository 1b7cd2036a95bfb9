"""What each token is worth, measured on unlabelled texts and distilled into linear maps of its hidden state.

Leave-one-out: take one token out after a layer's attention block, run the rest, and see how far the embedding moves
(1 - cosine). A ridge regression from the token's hidden state to the logarithm of that shift gives a scorer that costs
one dot product per token (`score="learned"`). A second one, to the token's final hidden state, lets a dropped token
still enter the pooling (`reduce="restore"`). Both are solved in closed form from sums over tokens, so that fits with
and without some of the texts share all of the work.

Dimension letters: see models/parameters.py; F = H + 1, the hidden state and a constant 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.blocks import Blocks
from minitrans.encoder.fitted import Fitted
from minitrans.encoder.forward import Encoded, Start, forward, start_behind
from minitrans.encoder.packing import PackedBatch, chunks, pack, segments
from minitrans.encoder.pooling import normalized, pool_encoded
from minitrans.errors import InputError
from minitrans.models.parameters import Float32, Linear
from minitrans.models.sentence import PoolingConfig
from minitrans.sentences.batches import CHUNK_TOKENS, by_length, over_batches
from minitrans.sentences.sentence_encoder import SentenceEncoder

Float64: TypeAlias = NDArray[np.float64]
T = TypeVar("T")

SHORTEST, LONGEST = 5, 40  # tokens of the texts that are measured: shorter ones are not pruned, longer ones are slow
FLOOR = 1e-7  # the least shift that counts: below it is rounding
CENTRED_RIDGE, RIDGE, RESTORE_RIDGE = 0.1, 0.01, 0.001  # of the mean of the Gram matrix's diagonal


@dataclass(frozen=True)
class Moments:
    """Sums over the tokens of some texts, for one layer; they add up."""

    centred: Float64  # [H, H] hidden states, less their mean over the text
    centred_shift: Float64  # [H] these times the centred logarithm of the shift
    gram: Float64  # [F, F] of [hidden state, 1]; its last entry is the number of tokens
    shift: Float64  # [F] times the logarithm of the shift + 2 log n: it then means the same at every length
    final: Float64  # [F, H] times the final hidden state

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


def can_measure(encoder: SentenceEncoder, texts: Sequence[str]) -> bool:
    """Whether any text has a length that `token_moments` takes."""
    return any(SHORTEST <= len(ids) <= LONGEST for ids in encoder.tokenizer.encode(list(texts)).ids)


def token_moments(encoder: SentenceEncoder, texts: Sequence[str], layer: int) -> Moments:
    """Take out each token of each text behind a layer's attention block, and sum up what a fit needs.

    Args:
        encoder: its own pruning plays no part.
        texts: unlabelled; those of fewer than 5 or more than 40 tokens are left out.
        layer: 0-based.

    Raises:
        InputError: no text of a fitting length.
    """
    packed = [batch for _, batch in by_length(encoder.tokenizer, sorted({*texts}))]
    packed = [kept for batch in packed if len((kept := _fitting(batch)).ids)]
    if not packed:
        raise InputError(
            f"none of {len(texts)} texts has {SHORTEST} to {LONGEST} tokens, wanted some to learn from; add texts"
        )

    def work(blocks: Blocks, batch: PackedBatch) -> Moments:
        start = start_behind(blocks, batch, layer)
        full = forward(blocks, batch, start=start)
        embeddings = normalized(pool_encoded(full, encoder.pooling))  # [B, H]
        return _moments(start, full, _shifts(blocks, encoder.pooling, batch, start, embeddings))

    return reduce(add, over_batches(encoder.blocks, packed, work, encoder.threads))


def fit(model: str, moments: dict[int, Moments], by_threshold: bool = False) -> Fitted:
    """Solve for the scorer and the restoring map of every layer.

    Args:
        model: `Identity.weights` of the model that was measured.
        moments: layer -> sums.
        by_threshold: scores that can be compared between texts, for a policy with a threshold; else they are made to
            rank the tokens of one text, which is all that a quantile needs.
    """
    scorers, restore = {}, {}
    for layer, sums in moments.items():
        if by_threshold:
            weight, bias = _ridge(sums.gram, sums.shift[:, None], RIDGE)  # [H, 1], [1]
        else:
            weight = _solve(sums.centred, sums.centred_shift[:, None], CENTRED_RIDGE)  # [H, 1]
            bias = np.zeros(1)
        scorers[layer] = _linear(weight, bias)
        restore[layer] = _linear(*_ridge(sums.gram, sums.final, RESTORE_RIDGE))
    return Fitted(model, scorers, restore, (SHORTEST, LONGEST))


def _fitting(batch: PackedBatch) -> PackedBatch:
    ids = [
        batch.ids[text].tolist() for text in segments(batch.offsets) if SHORTEST <= text.stop - text.start <= LONGEST
    ]
    return pack(ids, batch.prefix, batch.suffix)


def _shifts(blocks: Blocks, pooling: PoolingConfig, batch: PackedBatch, start: Start, embeddings: Float32) -> Float32:
    """[T] 1 - cosine between a text's embedding and that without the token."""
    owner = np.repeat(np.arange(len(embeddings)), np.diff(batch.offsets))  # [T]
    shifts = np.empty(len(owner), np.float32)
    lengths = np.diff(batch.offsets)[owner] - 1  # [T] of the text that is left
    for part in chunks(lengths.tolist(), CHUNK_TOKENS, CHUNK_TOKENS):
        rows = [
            np.delete(np.arange(batch.offsets[owner[t]], batch.offsets[owner[t] + 1]), t - batch.offsets[owner[t]])
            for t in range(part.start, part.stop)
        ]
        left = np.concatenate(rows)
        offsets = np.concatenate([[0], np.cumsum(lengths[part])])
        without = PackedBatch(batch.ids[left], offsets, batch.prefix, batch.suffix)
        encoded = forward(blocks, without, start=Start(start.layer, start.hidden[left]))
        moved = normalized(pool_encoded(encoded, pooling))
        shifts[part] = 1 - (moved * embeddings[owner[part]]).sum(axis=1)
    return shifts


def _moments(start: Start, full: Encoded, shifts: Float32) -> Moments:
    offsets = full.offsets
    counts = np.diff(offsets)  # [B]
    hidden = start.hidden.astype(np.float64)  # [T, H]
    log_shift = np.log(np.maximum(shifts.astype(np.float64), FLOOR))  # [T]

    def centred(values: Float64) -> Float64:
        means = np.add.reduceat(values, offsets[:-1], axis=0) / counts[:, None]
        return values - np.repeat(means, counts, axis=0)

    features, target = centred(hidden), centred(log_shift[:, None])[:, 0]  # [T, H], [T]
    whole = np.hstack([hidden, np.ones((len(hidden), 1))])  # [T, F]
    return Moments(
        features.T @ features,
        features.T @ target,
        whole.T @ whole,
        whole.T @ (log_shift + 2 * np.log(np.repeat(counts, counts))),
        whole.T @ full.hidden.astype(np.float64),
    )


def _solve(gram: Float64, cross: Float64, ridge: float) -> Float64:
    penalty = ridge * np.diag(gram).mean()
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), cross)


def _ridge(gram: Float64, cross: Float64, ridge: float) -> tuple[Float64, Float64]:
    """Weights [H, N] and a bias [N] that is not penalised, from sums over [x, 1]."""
    count, x_mean, y_mean = gram[-1, -1], gram[-1, :-1] / gram[-1, -1], cross[-1] / gram[-1, -1]
    weight = _solve(
        gram[:-1, :-1] - count * np.outer(x_mean, x_mean), cross[:-1] - count * np.outer(x_mean, y_mean), ridge
    )
    return weight, y_mean - x_mean @ weight


def _linear(weight: Float64, bias: Float64) -> Linear:
    return Linear(np.ascontiguousarray(weight.T, dtype=np.float32), bias.astype(np.float32))
