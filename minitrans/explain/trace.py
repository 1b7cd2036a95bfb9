"""An observer of the layer loop that keeps what every token attends to, what it scores, and what becomes of it.

`encoder.forward` takes it as any other observer, and knows nothing of it. Kernels do not hand out what each head
attends to, so the trace computes it anew with the reference backend, from the very hidden states that entered the
layer: it is the specification of what the kernels compute. Scores, kept rows, targets and sizes are the run's own.

Dimension letters: see `minitrans.models.parameters`; n rows of one text, T rows that enter a layer, T' that leave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.blas import single_threaded_blas
from minitrans.backends.reference import ReferenceBlocks
from minitrans.encoder.forward import Encoded, forward
from minitrans.encoder.packing import PackedBatch, segments
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.pooling import pool_encoded
from minitrans.encoder.selection import Selection
from minitrans.models.parameters import Float32
from minitrans.models.quantization import with_precision
from minitrans.models.weights import load_parameters
from minitrans.sentences.batches import over_batches
from minitrans.sentences.sentence_encoder import SentenceEncoder


@dataclass(frozen=True)
class TracedStage:
    """One pruning stage: which of the T rows that entered the layer stayed, and why."""

    scores: Float32  # [T] by which the rows were ranked, as the backend computed them
    kept: NDArray[np.int64]  # [T'] rows that stayed, ascending
    threshold: Float32  # [B] the lowest score kept on its merit; NaN: nothing dropped, or only protected rows kept
    target: NDArray[np.int64] | None  # [T] which of the T' rows took each in (a kept one: itself); None: no merging

    @property
    def dropped(self) -> NDArray[np.int64]:
        """[T - T'] the other rows."""
        return np.setdiff1d(np.arange(len(self.scores)), self.kept, assume_unique=True)


@dataclass(frozen=True)
class TracedLayer:
    """What one layer did to a batch; layer -1 stands for the embeddings."""

    layer: int
    entered: NDArray[np.int64]  # [T] tokens of the batch that entered
    rows: NDArray[np.int64]  # [T'] tokens of the batch that left
    offsets: NDArray[np.int64]  # [B + 1] of the T' rows
    hidden: Float32  # [T', H] on leaving
    sizes: Float32  # [T'] tokens that each row stands for
    attention: tuple[Float32, ...]  # per text [A, n, n], rows are queries; nothing for the embeddings
    importance: Float32  # [T] attention that each row receives, averaged over heads and queries; nothing likewise
    stage: TracedStage | None


class Trace:
    """An observer for `encoder.forward`; for one run.

    Args:
        reference: the weights of the encoder in the reference backend (`reference_blocks`).
        policy: that of the run: it says which rows were protected.
        keep_attention: without it only the importance is kept of it, n numbers of A * n * n.

    Attributes:
        layers: what it saw, the embeddings first.
    """

    def __init__(
        self, reference: ReferenceBlocks, policy: PruningPolicy | None = None, keep_attention: bool = True
    ) -> None:
        self.layers: list[TracedLayer] = []
        self._reference, self._policy, self._keep = reference, policy, keep_attention
        self._before: Encoded | None = None

    def __call__(self, layer: int, state: Encoded, selection: Selection | None) -> None:
        """Keep the state after a layer. The arrays are copies."""
        before, self._before = self._before, state
        sizes = np.ones(len(state.rows), np.float32) if state.sizes is None else state.sizes.copy()
        attention: tuple[Float32, ...] = ()
        importance = np.empty(0, np.float32)
        if before is not None:
            attention = tuple(self._attend(before, layer))
            received = [each.sum(axis=(0, 1)) / max(1, each.shape[0] * each.shape[1]) for each in attention]  # [n] each
            importance = np.concatenate(received, dtype=np.float32)
        self.layers.append(
            TracedLayer(
                layer,
                state.rows if before is None else before.rows,
                state.rows,
                state.offsets,
                state.hidden.copy(),
                sizes,
                attention if self._keep else (),
                importance,
                None if before is None or selection is None else self._stage(before, selection),
            )
        )

    def _attend(self, before: Encoded, layer: int) -> Iterator[Float32]:
        found = {
            rows.start: attention
            for rows, attention, _ in self._reference.attend(before.hidden, before.offsets, before.sizes, layer)
        }
        heads = self._reference.config.num_attention_heads
        for text in segments(before.offsets):
            yield np.empty((heads, 0, 0), np.float32) if text.start == text.stop else found[text.start]

    def _stage(self, before: Encoded, selection: Selection) -> TracedStage:
        protects = self._policy is not None and self._policy.protect_special
        prefix, suffix = (before.batch.prefix, before.batch.suffix) if protects else (0, 0)
        threshold = np.full(len(before.offsets) - 1, np.nan, np.float32)  # [B]
        for b, (text, left) in enumerate(zip(segments(before.offsets), segments(selection.offsets), strict=True)):
            kept = selection.kept[left]
            earned = kept[(kept >= text.start + prefix) & (kept < text.stop - suffix)]
            if len(kept) < text.stop - text.start and len(earned):
                threshold[b] = selection.scores[earned].min()
        return TracedStage(selection.scores.copy(), selection.kept, threshold, selection.target)


@dataclass(frozen=True)
class TracedText:
    """A run of one text, with all that was seen on the way."""

    batch: PackedBatch  # of one text, cut at max_seq_length
    layers: list[TracedLayer]
    embedding: Float32  # [H * modes] as `encode` gives it before truncate_dim and normalize_embeddings


def reference_blocks(encoder: SentenceEncoder) -> ReferenceBlocks:
    """The weights of an encoder in the reference backend: its own, or the model folder's in the same precision."""
    if isinstance(encoder.blocks, ReferenceBlocks):
        return encoder.blocks
    return ReferenceBlocks(with_precision(load_parameters(encoder.folder), encoder.precision))


def trace(
    encoder: SentenceEncoder,
    sentences: str | Iterable[str],
    *,
    pruning: PruningPolicy | str | None = "inherit",
    reference: ReferenceBlocks | None = None,
) -> list[TracedText]:
    """Run texts through the encoder, each by itself, and keep everything. It takes A * n * n numbers a layer.

    Args:
        encoder: of any backend and precision.
        sentences: one text or several.
        pruning: as for ``encode``.
        reference: of `reference_blocks`, where it is at hand.

    Raises as ``encode`` does.
    """
    policy = encoder.policy_for(pruning)
    whole = encoder.tokenize(sentences)
    reference = reference_blocks(encoder) if reference is None else reference
    return [trace_text(encoder, one, policy, reference) for one in alone(whole)]


def alone(batch: PackedBatch) -> Iterator[PackedBatch]:
    """Each text of a batch as a batch of its own."""
    for text in segments(batch.offsets):
        ids = batch.ids[text]  # [n]
        yield PackedBatch(ids, np.array([0, len(ids)]), batch.prefix, batch.suffix)


def trace_text(
    encoder: SentenceEncoder,
    batch: PackedBatch,
    policy: PruningPolicy | None,
    reference: ReferenceBlocks,
    keep_attention: bool = True,
) -> TracedText:
    """`trace` of one text that is tokenised already."""
    seen = Trace(reference, policy, keep_attention)
    with single_threaded_blas():  # the reference's products are small: BLAS threads would spin longer than compute
        (encoded,) = over_batches(encoder.blocks, [batch], lambda blocks, one: forward(blocks, one, policy, seen))
    return TracedText(batch, seen.layers, pool_encoded(encoded, encoder.pooling)[0])
