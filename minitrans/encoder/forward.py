"""The whole encoder on one page: read this file first.

A BERT encoder turns token ids into one vector per token. Each layer lets every token look at the others of its text
(attention block), then transforms every token by itself (feed-forward block). In between, at the layers that the
policy names, tokens that the others hardly look at are taken out, so that everything after runs on fewer rows.

Texts of a batch lie one behind the other in `hidden`; `offsets` say where each begins. There is no padding and no
mask, so removing a token is removing a row. Dimension letters: see models/parameters.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.blocks import Blocks
from minitrans.encoder.packing import PackedBatch
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.selection import Selection, may_prune, merge, rank
from minitrans.errors import NumericalError
from minitrans.models.parameters import Float32


@dataclass(frozen=True)
class Encoded:
    """What is left of a batch: after the last layer, or, for an observer, on the way."""

    batch: PackedBatch
    hidden: Float32  # [T', H]
    offsets: NDArray[np.int64]  # [B + 1]
    sizes: Float32 | None  # [T'] how many tokens a row stands for; None: one each
    rows: NDArray[np.int64]  # [T'] which token of the batch each row began as
    # [B, H] what dropped tokens were expected to add to the mean of the others, added up over them; None: nothing
    restored: Float32 | None = None

    @property
    def positions(self) -> NDArray[np.int64]:
        """[T'] where in its text each row began, 0-based."""
        return self.rows - np.repeat(self.batch.offsets[:-1], np.diff(self.offsets))


@dataclass(frozen=True)
class Start:
    """A place to begin at other than the embeddings: behind the attention block of a layer, with nothing pruned yet."""

    layer: int
    hidden: Float32  # [T, H]
    scores: Float32 | None = None  # [T] what the block gathered for the policy


class Observer(Protocol):
    """Is shown the state after the embeddings (layer -1) and after every layer; it must not change it.

    What goes on inside a layer, a tap is shown (`minitrans.encoder.blocks.Tapped`).
    """

    def __call__(self, layer: int, state: Encoded, selection: Selection | None) -> None:
        """``selection`` is what was pruned in this layer, if anything."""
        ...


def forward(
    blocks: Blocks,
    batch: PackedBatch,
    policy: PruningPolicy | None = None,
    observer: Observer | None = None,
    start: Start | None = None,
) -> Encoded:
    """Run a batch through all layers, pruning where the policy says.

    Args:
        blocks: a backend's three blocks.
        batch: token ids [T] and offsets [B + 1].
        policy: None prunes nothing.
        observer: called after the embeddings and after every layer.
        start: what several policies share need be computed only once; they may not prune before it.

    Raises:
        NumericalError: NaN or infinity, with the layer where it appeared.
    """
    offsets, sizes, rows, restored = batch.offsets, None, np.arange(len(batch.ids)), None  # [B + 1], -, [T], -
    hidden = blocks.embed(batch.ids, offsets) if start is None else start.hidden  # [T, H]
    if observer is not None and start is None:
        observer(-1, Encoded(batch, hidden, offsets, sizes, rows), None)

    for layer in range(0 if start is None else start.layer, blocks.num_layers):
        selection = None
        # Texts that are too short to lose anything cost nothing; an observer is shown their scores all the same.
        prunes = policy if policy is not None and layer in policy.plan else None
        if prunes is not None and observer is None and not may_prune(prunes, layer, batch, offsets):
            prunes = None
        if start is not None and layer == start.layer:
            scores = start.scores  # [T]
        else:
            want = None if prunes is None else prunes.score
            hidden, scores = blocks.attention_block(hidden, offsets, sizes, layer, want)  # [T, H], [T]
        if prunes is not None:
            ranking = rank(prunes, layer, scores, batch, rows, offsets)
            before = hidden  # [T, H]
            hidden, selection, expected = blocks.select(before, offsets, ranking)  # [T', H], -, [B, H]
            if np.isnan(selection.scores).any() and np.isfinite(before).all():
                raise NumericalError(f"the policy's scores at layer {layer} are not numbers; adapt again")
            if prunes.reduce == "merge":
                hidden, sizes, selection = merge(before, sizes, offsets, selection)  # [T', H], [T']
            elif expected is not None:
                restored = expected if restored is None else restored + expected  # [B, H]
            offsets, rows = selection.offsets, rows[selection.kept]  # [B + 1], [T']
        hidden = blocks.feed_forward_block(hidden, offsets, layer)  # [T', H]
        if observer is not None:
            observer(layer, Encoded(batch, hidden, offsets, sizes, rows, restored), selection)

    if not np.isfinite(hidden).all():
        raise NumericalError(_where_it_broke(blocks, batch))
    return Encoded(batch, hidden, offsets, sizes, rows, restored)


def start_behind(blocks: Blocks, batch: PackedBatch, layer: int, want: str | None = None) -> Start:
    """The place behind the attention block of a layer, reached without pruning; ``want`` as for `Blocks`."""
    _, hidden = next(islice(_unpruned(blocks, batch), 2 * layer, None))  # [T, H] what enters the layer
    return Start(layer, *blocks.attention_block(hidden, batch.offsets, None, layer, want))


def _where_it_broke(blocks: Blocks, batch: PackedBatch) -> str:
    """Run once more, looking behind every block: the check costs nothing as long as all is well."""
    place = next((place for place, hidden in _unpruned(blocks, batch) if not np.isfinite(hidden).all()), "pruning")
    return f"NaN or infinity came out of {place}; the weights are finite but too large for float32, or damaged"


def _unpruned(blocks: Blocks, batch: PackedBatch) -> Iterator[tuple[str, Float32]]:
    """Where a run without pruning is, and its hidden states [T, H], behind the embeddings and behind every block."""
    hidden = blocks.embed(batch.ids, batch.offsets)
    yield "the embeddings", hidden
    for layer in range(blocks.num_layers):
        hidden, _ = blocks.attention_block(hidden, batch.offsets, None, layer, None)
        yield f"the attention block of layer {layer}", hidden
        hidden = blocks.feed_forward_block(hidden, batch.offsets, layer)
        yield f"the feed-forward block of layer {layer}", hidden
