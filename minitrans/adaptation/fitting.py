"""What each token is worth, measured on unlabelled texts and distilled into linear maps of its hidden state.

Leave-one-out: take one token out after a layer's attention block, run the rest, and see how far the embedding moves
(1 - cosine). A ridge regression from the token's hidden state to the logarithm of that shift gives a scorer that costs
one dot product per token (`score="learned"`). A second one, to how far the token's final hidden state lies from the
mean of its text's, lets a dropped token still enter the pooling (`reduce="restore"`). Both are solved in closed form
from sums over tokens, so that fits with and without some of the texts share all of the work. Then texts that the fit
did not see are pruned by several shares: how far they turn is what `max_turn` goes by.

Dimension letters: see models/parameters.py; F = H + 1, the hidden state and a constant 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.blocks import Blocks
from minitrans.encoder.fitted import Fitted
from minitrans.encoder.forward import Encoded, Start, forward, start_behind
from minitrans.encoder.packing import PackedBatch, chunks, pack, segments
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.pooling import normalized, pool_encoded
from minitrans.encoder.selection import TOP, Selection, cost
from minitrans.errors import InputError
from minitrans.evaluation.fidelity import turns as turns_between
from minitrans.models.parameters import Float32, Linear
from minitrans.models.sentence import PoolingConfig
from minitrans.sentences.batches import CHUNK_TOKENS, by_length, over_batches
from minitrans.sentences.sentence_encoder import SentenceEncoder

Float64: TypeAlias = NDArray[np.float64]
T = TypeVar("T")

SHORTEST, LONGEST = 5, 256  # tokens: shorter texts are not measured, longer ones are cut
SAMPLED = 8  # tokens of a text that are left out in turn
FLOOR = 1e-7  # the least shift that counts: below it is rounding
RIDGE, RESTORE_RIDGE, TURN_RIDGE = 0.01, 0.01, 1e-6  # of the mean of the Gram matrix's diagonal
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # by which texts are pruned to see how far they turn
LEAST_TURN = 0.01  # degrees: below it is rounding


class UnforeseenTurnError(InputError):
    """What tokens are worth says nothing of how far embeddings turn."""


@dataclass(frozen=True)
class Moments:
    """Sums over the tokens of some texts, for one layer; they add up."""

    gram: Float64  # [F, F] of [hidden state, 1] of the tokens that were left out; its last entry is their number
    shift: Float64  # [F] times the logarithm of the shift + 2 log n: it then means the same at every length
    whole: Float64  # [F, F] of [hidden state, 1] of all tokens, each text counting 1
    final: Float64  # [F, H] times the final hidden state, less the mean of the text's
    lengths: tuple[int, int]  # tokens of the shortest and of the longest text

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.gram + other.gram,
            self.shift + other.shift,
            self.whole + other.whole,
            self.final + other.final,
            (min(self.lengths[0], other.lengths[0]), max(self.lengths[1], other.lengths[1])),
        )


def can_measure(encoder: SentenceEncoder, texts: Sequence[str]) -> list[bool]:
    """Which texts have a length that `token_moments` takes."""
    return [len(ids) >= SHORTEST for ids in encoder.tokenizer.encode(list(texts)).ids]


def token_moments(encoder: SentenceEncoder, texts: Sequence[str], layer: int) -> Moments:
    """Take out tokens of each text behind a layer's attention block, one at a time, and sum up what a fit needs.

    Args:
        encoder: its own pruning plays no part.
        texts: unlabelled; those of fewer than 5 tokens are left out, those of more than 256 are cut. Of a text of more
            than 8 tokens, 8 are drawn: always the same ones of the same text.
        layer: 0-based.

    Raises:
        InputError: no text of a fitting length.
    """

    def work(blocks: Blocks, batch: PackedBatch) -> Moments:
        start = start_behind(blocks, batch, layer)
        full = forward(blocks, batch, start=start)
        embeddings = normalized(pool_encoded(full, encoder.pooling))  # [B, H]
        tokens = _drawn(batch)  # [S]
        return _moments(start, full, tokens, _shifts(blocks, encoder.pooling, batch, start, embeddings, tokens))

    return reduce(add, over_batches(encoder.blocks, _packed(encoder, texts), work, encoder.threads))


def fit(model: str, moments: dict[int, Moments]) -> Fitted:
    """Solve for the scorer and the restoring map of every layer.

    Args:
        model: `Identity.weights` of the model that was measured.
        moments: layer -> sums.
    """
    scorers, restore = {}, {}
    for layer, sums in moments.items():
        scorers[layer] = _linear(*_ridge(sums.gram, sums.shift[:, None], RIDGE))
        restore[layer] = _linear(*_ridge(sums.whole, sums.final, RESTORE_RIDGE))
    shortest, longest = zip(*(sums.lengths for sums in moments.values()), strict=True)
    return Fitted(model, scorers, restore, lengths=(min(shortest), max(longest)))


def calibrated(
    encoder: SentenceEncoder, texts: Sequence[str], policy: PruningPolicy, shares: Sequence[float] = SHARES
) -> Fitted:
    """The policy's arrays, with the map to the turn that ``max_turn`` goes by.

    Args:
        encoder: what the arrays were fitted for.
        texts: unlabelled, and best not those of the fit; lengths as for `token_moments`.
        policy: "learned", with one stage; its quantile and ``max_turn`` play no part.
        shares: by which every text is pruned to see how far it turns.

    Raises:
        InputError: no text of a fitting length.
        UnforeseenTurnError: what tokens are worth says nothing of the turn; an InputError too.
    """
    ((layer, _),) = policy.plan.items()

    def work(blocks: Blocks, batch: PackedBatch) -> tuple[Float64, Float64]:
        start = start_behind(blocks, batch, layer)
        embeddings = normalized(pool_encoded(forward(blocks, batch, start=start), encoder.pooling))  # [B, H]
        features, turns = [], []
        for share in shares:
            tried = replace(policy, min_tokens=2, stages=None, layer=layer, quantile=share, max_turn=None)
            watch = _Costs()
            pruned = normalized(pool_encoded(forward(blocks, batch, tried, watch, start), encoder.pooling))
            moved = turns_between(embeddings, pruned)  # [B]
            counts = (watch.costs > 0) & (moved > LEAST_TURN)
            features.append(turn_features(watch.costs[counts], np.diff(batch.offsets)[counts]))
            turns.append(np.log(moved[counts]))
        return np.concatenate(features), np.concatenate(turns)

    parts = over_batches(encoder.blocks, _packed(encoder, texts), work, encoder.threads)
    found = [np.concatenate(each) for each in zip(*parts, strict=True)]
    features, turns = np.column_stack([found[0], np.ones(len(found[0]))]), found[1]
    unforeseen = UnforeseenTurnError(
        f"of {len(turns)} prunings that turned a text none turned it the farther the more was given up, wanted texts "
        "whose turn can be foreseen; add texts"
    )
    if len({*features[:, 0].tolist()}) < 2:  # nothing to go by
        raise unforeseen
    turn = _linear(*_ridge(features.T @ features, (features.T @ turns)[:, None], TURN_RIDGE))
    if not turn.weight[0, 0] > 0:
        raise unforeseen
    return replace(policy.fitted or Fitted(encoder.fingerprint, {}, {}), turns={layer: turn})


def turn_features(costs: Float64, lengths: NDArray[np.int64]) -> Float64:
    """[N, 3], what `Fitted.turns` maps: of costs [N], in units of e**`TOP`, of texts of so many tokens [N]."""
    log_n = np.log(lengths)
    return np.column_stack([np.log(costs) + TOP, log_n, log_n**2])


class _Costs:
    """An observer that notes what it cost each text to give up what went, 0 where nothing did."""

    costs: Float64

    def __call__(self, layer: int, state: Encoded, selection: Selection | None) -> None:
        if selection is None:
            return
        offsets = state.batch.offsets
        self.costs = np.zeros(len(offsets) - 1)
        gone = np.ones(offsets[-1], bool)
        gone[selection.kept] = False
        for b, text in enumerate(segments(offsets)):
            if gone[text].any():
                self.costs[b] = cost(np.sort(selection.scores[text][gone[text]]))[-1]


def _packed(encoder: SentenceEncoder, texts: Sequence[str]) -> list[PackedBatch]:
    packed = [_fitting(batch) for _, batch in by_length(encoder.tokenizer, sorted({*texts}))]
    if not any(len(batch.ids) for batch in packed):
        raise InputError(
            f"none of {len(texts)} texts has {SHORTEST} tokens, wanted some to learn from; add longer ones"
        )
    return [batch for batch in packed if len(batch.ids)]


def _fitting(batch: PackedBatch) -> PackedBatch:
    found = [batch.ids[text].tolist() for text in segments(batch.offsets)]
    cut = LONGEST - batch.suffix
    ids = [each if len(each) <= LONGEST else each[:cut] + each[len(each) - batch.suffix :] for each in found]
    return pack([each for each in ids if len(each) >= SHORTEST], batch.prefix, batch.suffix)


def _drawn(batch: PackedBatch) -> NDArray[np.int64]:
    """[S] the rows that are left out in turn: all of a short text, some of a long one."""
    rows = []
    for text in segments(batch.offsets):
        n = text.stop - text.start
        some = np.arange(n)
        if n > SAMPLED:
            some = np.sort(np.random.default_rng(batch.ids[text].tolist()).permutation(n)[:SAMPLED])
        rows.append(text.start + some)
    return np.concatenate(rows)


def _shifts(
    blocks: Blocks,
    pooling: PoolingConfig,
    batch: PackedBatch,
    start: Start,
    embeddings: Float32,
    tokens: NDArray[np.int64],
) -> Float32:
    """[S] 1 - cosine between a text's embedding and that without the token."""
    owner = np.searchsorted(batch.offsets, tokens, side="right") - 1  # [S]
    begins, ends = batch.offsets[owner], batch.offsets[owner + 1]
    lengths = ends - begins - 1  # [S] of the text that is left
    shifts = np.empty(len(tokens), np.float32)
    for part in chunks(lengths.tolist(), CHUNK_TOKENS, CHUNK_TOKENS):
        rows = [
            np.delete(np.arange(begin, end), token - begin)
            for begin, end, token in zip(begins[part], ends[part], tokens[part], strict=True)
        ]
        left = np.concatenate(rows)
        offsets = np.concatenate([[0], np.cumsum(lengths[part])])
        without = PackedBatch(batch.ids[left], offsets, batch.prefix, batch.suffix)
        encoded = forward(blocks, without, start=Start(start.layer, start.hidden[left]))
        moved = normalized(pool_encoded(encoded, pooling))
        shifts[part] = 1 - (moved * embeddings[owner[part]]).sum(axis=1)
    return shifts


def _moments(start: Start, full: Encoded, tokens: NDArray[np.int64], shifts: Float32) -> Moments:
    lengths = np.diff(full.offsets)  # [B]
    counts = np.repeat(lengths, lengths)  # [T]
    log_shift = np.log(np.maximum(shifts.astype(np.float64), FLOOR))  # [S]
    final = full.hidden.astype(np.float64)  # [T, H]
    means = np.add.reduceat(final, full.offsets[:-1], axis=0) / lengths[:, None]  # [B, H]
    all_ones = np.hstack([start.hidden.astype(np.float64), np.ones((len(final), 1))])  # [T, F]
    some, weighted = all_ones[tokens], all_ones / counts[:, None]  # [S, F], [T, F]
    return Moments(
        some.T @ some,
        some.T @ (log_shift + 2 * np.log(counts[tokens])),
        weighted.T @ all_ones,
        weighted.T @ (final - np.repeat(means, lengths, axis=0)),
        (int(lengths.min()), int(lengths.max())),
    )


def _ridge(gram: Float64, cross: Float64, ridge: float) -> tuple[Float64, Float64]:
    """Weights [H, N] and a bias [N] that is not penalised, from sums over [x, 1]."""
    count, x_mean, y_mean = gram[-1, -1], gram[-1, :-1] / gram[-1, -1], cross[-1] / gram[-1, -1]
    spread = gram[:-1, :-1] - count * np.outer(x_mean, x_mean)
    penalty = ridge * np.diag(spread).mean() * np.eye(len(spread))
    weight = np.linalg.solve(spread + penalty, cross[:-1] - count * np.outer(x_mean, y_mean))
    return weight, y_mean - x_mean @ weight


def _linear(weight: Float64, bias: Float64) -> Linear:
    return Linear(np.ascontiguousarray(weight.T, dtype=np.float32), bias.astype(np.float32))
