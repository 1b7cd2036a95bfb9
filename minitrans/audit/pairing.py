"""Two backends on the same input: how far apart each block's results are, and which rows each keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.blocks import Blocks
from minitrans.encoder.forward import Encoded
from minitrans.encoder.packing import segments
from minitrans.encoder.selection import Ranking, Selection
from minitrans.models.parameters import Float32


@dataclass
class Tally:
    """Differences of one place, gathered over batches."""

    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, right: Float32, other: Float32) -> None:
        """Two arrays of the same shape; ``right`` gives the measure."""
        if right.size:
            apart = np.abs(right.astype(np.float64) - other)
            self.largest = float(np.maximum(self.largest, apart.max()))  # NaN stays
            self.total += float(apart.sum())
            self.squares += float(np.square(right, dtype=np.float64).sum())
            self.count += right.size

    @property
    def relative(self) -> tuple[float, float]:
        """Largest and mean difference, in root mean squares of the right numbers."""
        unit = math.sqrt(self.squares / self.count) if self.count and self.squares > 0 else 1.0
        return self.largest / unit, self.total / max(self.count, 1) / unit


Tallies = dict[str, Tally]


@dataclass(frozen=True)
class Stage:
    """What one pruning stage did to one text."""

    layer: int
    scores: Float32  # [n]
    kept: NDArray[np.int64]  # [k] of these rows, ascending


class Paired:
    """Blocks that run two backends on the same input, note how far apart the results are, and return the first's.

    As they fulfil the contract of any backend, the one layer loop runs them.

    Args:
        right: the backend whose results go on.
        other: the backend that is compared with it.
    """

    def __init__(self, right: Blocks, other: Blocks) -> None:
        self.right, self.other = right, other
        self.name, self.num_layers = f"{right.name} and {other.name}", right.num_layers
        self.blocks: Tallies = {}
        self.scores = 0.0  # largest difference of a score, in means of the text's scores
        self.moved = 0.0  # likewise: how far from the cut a row was that only one of the two kept

    def info(self) -> dict[str, str | None]:
        """Of the backend that is compared."""
        return self.other.info()

    def session(self) -> AbstractContextManager[None]:
        """That of both."""
        return _both(self.right.session(), self.other.session())

    def chunk(self, rows: int, helpers: int) -> AbstractContextManager[Paired]:
        """Itself: each block takes what it needs, and one thread compares."""
        return nullcontext(self)

    def embed(self, ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> Float32:
        """Both, compared: see Blocks."""
        right = self.right.embed(ids, offsets)
        self._note("embeddings", right, self.other.embed(ids, offsets))
        return right

    def attention_block(
        self, hidden: Float32, offsets: NDArray[np.int64], sizes: Float32 | None, layer: int, want: str | None
    ) -> tuple[Float32, Float32 | None]:
        """Both, compared: see Blocks."""
        right, scores = self.right.attention_block(hidden, offsets, sizes, layer, want)
        other, others = self.other.attention_block(hidden, offsets, sizes, layer, want)
        self._note(f"attention {layer}", right, other)
        if scores is not None and others is not None:
            self._note_scores(scores, others, offsets)
        return right, scores

    def feed_forward_block(self, hidden: Float32, offsets: NDArray[np.int64], layer: int) -> Float32:
        """Both, compared: see Blocks."""
        right = self.right.feed_forward_block(hidden, offsets, layer)
        self._note(f"feed-forward {layer}", right, self.other.feed_forward_block(hidden, offsets, layer))
        return right

    def select(
        self, hidden: Float32, offsets: NDArray[np.int64], ranking: Ranking
    ) -> tuple[Float32, Selection, Float32 | None]:
        """Both, compared: see Blocks."""
        result, others = self.right.select(hidden, offsets, ranking), self.other.select(hidden, offsets, ranking)
        self._note_scores(result[1].scores, others[1].scores, offsets)
        one, two = stages_of(0, result[1], offsets), stages_of(0, others[1], offsets)
        cuts = [distance_from_cut(a, b, ranking.threshold) for a, b in zip(one, two, strict=True)]
        self.moved = float(np.max([self.moved, *cuts]))
        if max(cuts, default=0.0) == 0 and result[2] is not None and others[2] is not None:
            self._note("sums of dropped rows", result[2], others[2])
        return result

    def project(self, x: Float32, weight: Float32) -> Float32:
        """Both, compared: see Blocks."""
        right = self.right.project(x, weight)
        self._note("restored rows", right, self.other.project(x, weight))
        return right

    def _note(self, place: str, right: Float32, other: Float32) -> None:
        self.blocks.setdefault(place, Tally()).add(right, other)

    def _note_scores(self, right: Float32, other: Float32, offsets: NDArray[np.int64]) -> None:
        for text in segments(offsets):
            if text.start < text.stop:
                apart = float(np.abs(right[text] - other[text]).max())
                self.scores = float(np.maximum(self.scores, apart / (np.abs(right[text]).mean() or 1.0)))


@contextmanager
def _both(one: AbstractContextManager[None], two: AbstractContextManager[None]) -> Iterator[None]:
    with one, two:
        yield


@dataclass
class Watch:
    """An observer that keeps the hidden states and the pruning stages of every text."""

    before: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    states: list[Float32] = field(default_factory=list)  # L + 1 of [T, H]
    stages: list[list[Stage]] = field(default_factory=list)  # per text

    def __call__(self, layer: int, state: Encoded, selection: Selection | None) -> None:
        """Called by the layer loop."""
        if layer < 0:
            self.stages = [[] for _ in range(len(state.offsets) - 1)]
        self.states.append(state.hidden)
        if selection is not None:
            for text, stage in zip(self.stages, stages_of(layer, selection, self.before), strict=True):
                text.append(stage)
        self.before = state.offsets


def stages_of(layer: int, selection: Selection, offsets: NDArray[np.int64]) -> Iterator[Stage]:
    """What a selection among the rows at ``offsets`` did to each text."""
    for before, after in zip(segments(offsets), segments(selection.offsets), strict=True):
        yield Stage(layer, selection.scores[before], selection.kept[after] - before.start)


def distance_from_cut(right: Stage, other: Stage, threshold: float = math.inf) -> float:
    """How far from the cut the rows lie that only one of two runs kept, in means of the text's scores; 0: none.

    The cut is half-way between the worst row that was kept on its merit and the best one that was not, or the
    policy's threshold, whichever is nearer.
    """
    if np.array_equal(right.kept, other.kept):
        return 0.0
    scores = right.scores.astype(np.float64)
    rows = np.arange(len(scores))
    stayed = np.isin(rows, right.kept)  # [n]
    moved = np.setxor1d(right.kept, other.kept)
    if stayed.all() or not stayed.any():
        return math.inf
    best_gone = scores[~stayed].max()
    merit = scores[stayed & (scores >= best_gone)]  # protected rows stay with any score
    cut = (merit.min() + best_gone) / 2 if merit.size else best_gone
    near = np.minimum(np.abs(scores[moved] - cut), np.abs(scores[moved] - threshold))
    return float(near.max() / (np.abs(scores).mean() or 1.0))
