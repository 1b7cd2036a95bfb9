"""How long embedding under a policy would take on this machine: a linear model of the work, fitted to timings.

The work of a policy is counted (rows through layers, pairs of tokens in attention, rows scored, ...); a handful of
timed runs give each kind of work its price. Hundreds of policies can then be compared without timing each of them;
those that matter are timed after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.blocks import Blocks
from minitrans.encoder.forward import Encoded, forward
from minitrans.encoder.packing import PackedBatch
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.selection import Selection
from minitrans.sentences.batches import over_batches
from minitrans.sentences.sentence_encoder import SentenceEncoder

KINDS = ("texts", "tokens", "layer_rows", "pairs", "scored_rows", "attention_pairs", "restored_texts", "merged_rows")


class WorkCounter:
    """An observer of the layer loop that counts the work of a batch, as `KINDS` names it.

    Args:
        policy: under which the layers run.
        start: the layer at which the run starts, after unpruned ones.
    """

    def __init__(self, policy: PruningPolicy | None, start: int = 0) -> None:
        self.policy, self.start = policy, start
        self.work = np.zeros(len(KINDS))
        self._lengths: NDArray[np.int64] | None = None

    def __call__(self, layer: int, state: Encoded, selection: Selection | None) -> None:
        """Add what the layer did."""
        if self._lengths is None:
            self._lengths = np.diff(state.batch.offsets)
            rows, pairs = self._lengths.sum(), np.square(self._lengths).sum()
            self.work[:4] += len(self._lengths), rows, rows * self.start, pairs * self.start
        if layer < 0:
            return
        before, after = self._lengths, np.diff(state.offsets)
        pairs = np.square(before).sum()
        self.work[2:4] += (before.sum() + 2 * after.sum()) / 3, pairs
        if selection is not None and self.policy is not None:
            self.work[4] += before.sum()
            self.work[5] += pairs * self.policy.score.startswith("attention")
            self.work[6] += len(before) * (self.policy.reduce == "restore")
            self.work[7] += (before.sum() - after.sum()) * (self.policy.reduce == "merge")
        self._lengths = after


def count_work(
    encoder: SentenceEncoder, batches: Sequence[PackedBatch], policy: PruningPolicy | None
) -> NDArray[np.float64]:
    """The work [kinds] of embedding the batches under a policy; None for no pruning."""

    def work(blocks: Blocks, batch: PackedBatch) -> NDArray[np.float64]:
        counter = WorkCounter(policy)
        forward(blocks, batch, policy, counter)
        return counter.work

    return np.asarray(np.sum(list(over_batches(encoder.blocks, batches, work, encoder.threads)), axis=0))


@dataclass(frozen=True)
class CostModel:
    """Seconds per unit of each kind of work.

    Attributes:
        prices: in the order of `KINDS`, none negative.
        error: largest relative error on the timings that it was fitted to.
    """

    prices: tuple[float, ...]
    error: float

    def seconds(self, work: Sequence[float] | NDArray[np.float64]) -> float:
        """What it takes to do the ``work`` [kinds]."""
        return float(np.dot(self.prices, work))


def fit_cost_model(work: NDArray[np.float64], seconds: NDArray[np.float64]) -> CostModel:
    """Least squares of the relative errors, no price negative.

    Args:
        work: [runs, kinds].
        seconds: [runs].
    """
    relative = work / seconds[:, None]  # [runs, kinds]
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)  # [kinds]
    x = relative / scale
    kinds = [k for k in range(x.shape[1]) if x[:, k].any()]
    prices, least = np.zeros(x.shape[1]), np.inf
    # Which prices are best at zero is not known before; there are few kinds, so every choice is tried.
    for paid in (which for size in range(len(kinds), 0, -1) for which in combinations(kinds, size)):
        found = np.linalg.lstsq(x[:, paid], np.ones(len(x)), rcond=None)[0]
        if found.min() < -1e-9:
            continue
        found = np.maximum(found, 0)
        residual = float(np.square(x[:, paid] @ found - 1).sum())
        if residual < least:
            prices, least = np.zeros_like(prices), residual
            prices[list(paid)] = found
        if len(paid) == len(kinds):
            break  # nothing is better than the best of all
    error = float(np.abs(x @ prices - 1).max())
    return CostModel(tuple(float(price) for price in prices / scale), error)
