"""Two ways to the same numbers, compared layer by layer: backends, precisions, and the rows that pruning keeps.

Differences are relative to the root mean square of the numbers they are found in, layer by layer. Two questions are
asked. What does each block make of the very same input (``blocks``)? And how far apart are two whole runs (``layers``)?
In int8 the second grows where the first does not: an activation at the edge between two bytes is rounded one way here
and the other way there, each difference moves more of them, and in the end two correct runs differ by about as much as
int8 from float32. So the first question has the tight bar.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitrans.audit.checks import NUMBERS, PRUNING, Check, broken, judged
from minitrans.encoder.blocks import Blocks, Tapped
from minitrans.encoder.forward import Encoded, forward
from minitrans.encoder.packing import PackedBatch, chunks, pack, segments
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.pooling import normalized, pool_encoded
from minitrans.encoder.selection import Selection, cost, limits_by_length
from minitrans.errors import MinitransError
from minitrans.models.parameters import Float32
from minitrans.models.sentence import PoolingConfig
from minitrans.models.tokenization.tokenizer import Tokenizer
from minitrans.sentences.batches import over_batches
from minitrans.words import counted

_PARAGRAPH = (
    "The parcel that I ordered on Monday has not arrived, although your message said that it would be here by noon. I "
    "have called twice, waited for half an hour, and was told that nobody knows where it is. Please find out, or send "
    "the money back to my account. "
)
TEXTS = (
    "hello",
    "",
    "Where is my parcel? I ordered it on Monday.",
    "Could you tell me how to reset the password of my account, please?",
    "caf\u00e9 na\u00efve \u6771\u4eac \u2602 \U0001f600\U0001f44d\U0001f3fd \u0395\u03bb\u03bb\u03ac\u03b4\u03b1 "
    "\u043f\u0440\u0438\u0432\u0435\u0442",
    "!!! ... ??? -- ,,,,; (){}[]",
    "0 1 12 123 3.14159 2024-02-29 +49 170 1234567",
    "the the the the the the the the the the",
    "supercalifragilisticexpialidocious" * 3,
    " \t tabs and\nnew lines \n ",
    _PARAGRAPH,
    _PARAGRAPH * 40,  # as long as the model takes
)

# What tokenizers are known to treat differently, in one text each.
PROBES = (
    "UPPER lower MiXeD WORDS 12AB",
    "\u00c9cole na\u00efve \u00c5ngstr\u00f6m caf\u00e9 \u00dcber \u00f1and\u00fa",  # accents, composed
    "E\u0301cole nai\u0308ve A\u030angstro\u0308m cafe\u0301",  # and decomposed
    "\u0301 a \u0308\u0308 \u20dd \u0951 \u0e49",  # marks without a letter
    "I\u0307stanbul \u0130\u0131 Stra\u00dfe \u1e9e \ufb01n \u01c5",  # letters whose case is no pair
    "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u039f\u0394\u039f\u03a3",
    "\u6771\u4eac\u90fd \u306f\u3072\u3089\u304c\u306a \u30ab\u30bf\u30ab\u30ca \uff21\uff22 \U00020000 \uf900",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "zero\u200bwidth\u200djoined soft\u00adhyphen\u2060 \ufeffmark \u202eright\u202c \ue000 \U000e0041",
    "nul\x00bell\x07escape\x1b[0m delete\x7f next\x85line \u2028 \u2029 \ufffd",
    "no\u00a0break\u2007figure\u3000wide\u1680ogham\tspaces\r\n",
    "\u0660\u0661\u0662 \u00b2\u00bd \u2167 \u20ac5 \u201cquoted\u201d it\u2019s \u2014 \u2026 \u00bf\u00a1",
    "\u0001\u0002",  # no token at all
    " \u3000 ",
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101,  # WordPiece gives up on long words
    "##ing a##b [unk] [CLS][SEP] [MASK]s <s></s> <pad>",
)
TOKENS_PROBED = 64  # of those that a folder declares


@dataclass(frozen=True)
class Bars:
    """The most that correct code shows, and several times that; measured values: docs/auditing.md.

    Attributes:
        block: largest and mean difference of a block's result, from the same input.
        layer: the same after each layer of two runs.
        unit: largest difference of embeddings of length 1.
        cosine: least cosine of the embeddings.
        tie: a row may be kept in one run and not in the other if its score is so close to the cut, in means of the
            text's scores.
    """

    block: tuple[float, float]
    layer: tuple[float, float]
    unit: float
    cosine: float
    tie: float


BARS = {
    "float32": Bars(block=(1e-4, 5e-6), layer=(1e-4, 1e-5), unit=2e-6, cosine=0.999999, tie=1e-4),
    "int8": Bars(block=(0.2, 1e-4), layer=(math.inf, 5e-2), unit=math.inf, cosine=0.99, tie=0.1),
}
NUMBER_CHECKS = ("blocks", "layers", "embeddings")
SCORE_BAR = 1e-4  # largest difference of a score, from the same input, in means of the text's scores
INT8_MEAN, INT8_LEAST = 0.995, 0.985  # cosine of int8 and float32 embeddings


@dataclass(frozen=True)
class Sample:
    """Texts, tokenised.

    Attributes:
        texts: as they were given.
        ids: token ids of each, cut to what the model takes.
        prefix, suffix: special tokens around each.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    prefix: int
    suffix: int

    @classmethod
    def of(cls, texts: Iterable[str], tokenizer: Tokenizer) -> Sample:
        """Tokenise texts."""
        texts = tuple(texts)
        ids = tuple(map(tuple, tokenizer.encode(texts).ids))
        return cls(texts, ids, tokenizer.prefix, tokenizer.suffix)

    def batches(self, texts: int = 32, tokens: int = 512) -> Iterator[tuple[slice, PackedBatch]]:
        """Which texts, and these packed: at most so many texts and, unless one alone has more, tokens."""
        for part in chunks([len(ids) for ids in self.ids], texts, tokens):
            yield part, pack(self.ids[part], self.prefix, self.suffix)

    def named(self, text: int) -> str:
        """How messages call a text: its number and how it begins."""
        if not self.texts[text]:
            return f"text {text}, the empty text"
        words = ascii(self.texts[text])
        return f"text {text} {words if len(words) <= 40 else words[:36] + '...' + words[0]}"


def probe_texts(tokens: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """`PROBES`, each token that a folder declares, alone, in words and in another case, and texts about as long as fit.

    Of very many tokens the first and the last are taken.
    """
    half = TOKENS_PROBED // 2
    some = tokens if len(tokens) <= 2 * half else (*tokens[:half], *tokens[-half:])
    texts = [f"where {x} is{x}{x}it  {x}  {x.lower()} {x.upper()} {x.swapcase()}s" for x in some]
    room = tokenizer.max_seq_length - tokenizer.prefix - tokenizer.suffix
    limits = ["a " * length for length in (0, 1, room - 1, room, room + 1)]
    return list(dict.fromkeys((*PROBES, *some, *texts, *limits)))


# Runs


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


Tallies: TypeAlias = defaultdict[str, Tally]  # place -> differences there


@dataclass(frozen=True)
class Kept:
    """What one pruning stage did to one text."""

    layer: int
    scores: Float32  # [n]
    kept: NDArray[np.int64]  # [k] of these rows, ascending


class Differences:
    """A tap on one backend's blocks: runs each of them on another backend too, and notes how far apart they are.

    Args:
        other: the backend that is compared with the one that is tapped.
    """

    def __init__(self, other: Blocks) -> None:
        self.other = other
        self.blocks: Tallies = defaultdict(Tally)
        self.scores = 0.0  # largest difference of a score, in means of the text's scores
        self.moved = 0.0  # likewise: how far from the cut a row was that only one of the two kept

    def __call__(self, block: str, arguments: tuple[Any, ...], right: Any) -> None:
        """Called by `Tapped`."""
        other = getattr(self.other, block)(*arguments)
        if block == "embed":
            self.blocks["embeddings"].add(right, other)
        elif block == "attention_block":
            _, offsets, _, layer, _ = arguments
            self.blocks[f"attention {layer}"].add(right[0], other[0])
            if right[1] is not None and other[1] is not None:
                self._note_scores(right[1], other[1], offsets)
        elif block == "feed_forward_block":
            self.blocks[f"feed-forward {arguments[2]}"].add(right, other)
        elif block == "select":
            _, offsets, ranking = arguments
            self._note_scores(right[1].scores, other[1].scores, offsets)
            stages = zip(stages_of(0, right[1], offsets), stages_of(0, other[1], offsets), strict=True)
            cuts = [distance_from_cut(one, two, ranking.budgets) for one, two in stages]
            self.moved = float(np.max([self.moved, *cuts]))
            if max(cuts, default=0.0) == 0 and right[2] is not None and other[2] is not None:
                self.blocks["restored rows"].add(right[2], other[2])

    def _note_scores(self, right: Float32, other: Float32, offsets: NDArray[np.int64]) -> None:
        for text in segments(offsets):
            if text.start < text.stop:
                apart = float(np.abs(right[text] - other[text]).max())
                self.scores = float(np.maximum(self.scores, apart / (np.abs(right[text]).mean() or 1.0)))


@dataclass
class Watch:
    """An observer that keeps the hidden states and the pruning stages of every text."""

    before: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    states: dict[str, Float32] = field(default_factory=dict)  # "embeddings", "layer 0" ... -> [T, H]
    stages: list[list[Kept]] = field(default_factory=list)  # per text

    def __call__(self, layer: int, state: Encoded, selection: Selection | None) -> None:
        """Called by the layer loop."""
        if layer < 0:
            self.stages = [[] for _ in range(len(state.offsets) - 1)]
        self.states["embeddings" if layer < 0 else f"layer {layer}"] = state.hidden
        if selection is not None:
            for text, stage in zip(self.stages, stages_of(layer, selection, self.before), strict=True):
                text.append(stage)
        self.before = state.offsets


def stages_of(layer: int, selection: Selection, offsets: NDArray[np.int64]) -> Iterator[Kept]:
    """What a selection among the rows at ``offsets`` did to each text."""
    for before, after in zip(segments(offsets), segments(selection.offsets), strict=True):
        yield Kept(layer, selection.scores[before], selection.kept[after] - before.start)


def distance_from_cut(right: Kept, other: Kept, budgets: Float32 | None = None) -> float:
    """How far from the cut the rows lie that only one of two runs kept, in means of the text's scores; 0: none.

    The cut is half-way between the worst row that was kept on its merit and the best one that was not. Where there
    are budgets (see `minitrans.encoder.selection.Ranking`), what giving up a row costs may also be near to that of
    the text, relative to it.
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
    near = np.abs(scores[moved] - cut) / (np.abs(scores).mean() or 1.0)  # [M]
    if budgets is not None:
        counted = np.flatnonzero(~stayed | (scores >= best_gone))  # [C] protected rows cost nothing
        order = counted[np.argsort(scores[counted], kind="stable")]  # [C]
        costs = np.full(len(scores), np.inf)
        costs[order] = cost(right.scores[order])
        near = np.minimum(near, np.abs(costs[moved] / budgets[len(scores)] - 1))
    return float(near.max())


Run: TypeAlias = tuple[slice, PackedBatch, Watch, Encoded]


def watched(blocks: Blocks, sample: Sample, policy: PruningPolicy | None = None) -> Iterator[Run]:
    """Run a sample: which texts, packed, what an observer saw, and what is left of them. Raises as `forward`."""

    def work(blocks: Blocks, batch: PackedBatch) -> tuple[Watch, Encoded]:
        watch = Watch()
        return watch, forward(blocks, batch, policy, watch)

    batches = list(sample.batches())
    done = over_batches(blocks, [batch for _, batch in batches], work)
    for (part, batch), (watch, encoded) in zip(batches, done, strict=True):
        yield part, batch, watch, encoded


def _side_by_side(
    reference: Blocks, other: Blocks, sample: Sample, policy: PruningPolicy | None = None
) -> tuple[Differences, Iterator[tuple[Run, Run]]]:
    """Two runs of a sample, batch by batch; the first also runs each block of the other, and notes how far it is."""
    differences = Differences(other)
    runs = watched(Tapped(reference, differences), sample, policy), watched(other, sample, policy)
    return differences, zip(*runs, strict=True)


def unit_vectors(encoded: Encoded, pooling: PoolingConfig) -> Float32:
    """Embeddings of length 1: [B, W]"""
    return normalized(pool_encoded(encoded, pooling))


def embed(blocks: Blocks, sample: Sample, pooling: PoolingConfig) -> Float32:
    """Embeddings of length 1: [B, W]"""
    return np.concatenate([unit_vectors(encoded, pooling) for _, _, _, encoded in watched(blocks, sample)])


# Checks


def number_checks(
    reference: Blocks, other: Blocks, sample: Sample, pooling: PoolingConfig, precision: str
) -> list[Check]:
    """The reference against another backend, for one precision: block by block, and two runs."""
    names = [f"{what}, {precision}" for what in NUMBER_CHECKS]
    bars = BARS[precision]
    differences, runs = _side_by_side(reference, other, sample)
    layers: Tallies = defaultdict(Tally)
    right, rest = [], []
    try:
        for (_, _, one, ours), (_, _, two, theirs) in runs:
            right.append(unit_vectors(ours, pooling))
            rest.append(unit_vectors(theirs, pooling))
            for place, state in one.states.items():
                layers[place].add(state, two.states[place])
    except MinitransError as error:
        return [broken(NUMBERS, name, "finite numbers", error) for name in names]
    return [
        difference_check(NUMBERS, names[0], differences.blocks, bars.block),
        difference_check(NUMBERS, names[1], layers, bars.layer),
        embedding_check(NUMBERS, names[2], np.concatenate(right), np.concatenate(rest), sample, bars.cosine, bars.unit),
    ]


def _over(tallies: Mapping[str, Tally], largest: float, mean: float) -> str:
    """The places whose largest or mean difference is over its bar, or not a number."""
    over = (p for p, tally in tallies.items() if not (tally.relative[0] <= largest and tally.relative[1] <= mean))
    return ", ".join(over)


def difference_check(group: str, name: str, tallies: Mapping[str, Tally], bars: tuple[float, float]) -> Check:
    """Largest and mean difference of every place, against bars of both."""
    relative = {place: tally.relative for place, tally in tallies.items()}
    over = _over(tallies, *bars)
    largest, mean = (float(np.max([each[i] for each in relative.values()])) for i in (0, 1))
    by_largest = math.isfinite(bars[0])
    wanted = f"at most {bars[0]:.0e}, {bars[1]:.0e}" if by_largest else f"mean at most {bars[1]:.0e}"
    detail = [f"over the bar: {over}"] if over else []
    detail += series({place: each[0 if by_largest else 1] for place, each in relative.items()}, by_largest)
    values = {f"{place}, largest": each[0] for place, each in relative.items()}
    values |= {f"{place}, mean": each[1] for place, each in relative.items()}
    return judged(group, name, not over, f"largest {largest:.1e}, mean {mean:.1e}", wanted, detail, values)


def series(values: Mapping[str, float], by_largest: bool) -> Iterator[str]:
    """Lines of values, with those of "layer 0", "layer 1" and so on in one: "layer 0..5: 2e-06 3e-06"."""
    lines: dict[str, list[float]] = {}
    for place, value in values.items():
        what, _, number = place.rpartition(" ")
        lines.setdefault(what if number.isdigit() else place, []).append(value)
    for what, each in lines.items():
        count = f" 0..{len(each) - 1}" if len(each) > 1 else ""
        for begin in range(0, len(each), 12):
            title = "    " if begin else f"{'' if by_largest else 'mean, '}{what}{count}: "
            yield title + " ".join(f"{value:.0e}" for value in each[begin : begin + 12])


def embedding_check(
    group: str, name: str, right: Float32, other: Float32, sample: Sample, cosine: float, unit: float = math.inf
) -> Check:
    """Embeddings of length 1, [B, W] each, against bars of their least cosine and their largest difference."""
    cosines: NDArray[np.float64] = (right.astype(np.float64) * other).sum(axis=1)  # [B]
    apart = np.abs(right - other).max(axis=1)  # [B]
    bad = np.flatnonzero(~((cosines >= cosine) & (apart <= unit)))
    wanted = f"at least {cosine:g}" + (f", at most {unit:.0e}" if math.isfinite(unit) else "")
    least = float(cosines.min())
    shown = f"{least:.6f}" if least < 0.9999995 else "1"  # as many digits as tell it from 1
    measured = f"least cosine {shown}, largest {float(apart.max()):.1e}"
    detail = [f"{sample.named(int(b))}: cosine {cosines[b]:.6f}, largest {apart[b]:.1e}" for b in bad]
    values = {"least cosine": least, "mean cosine": float(cosines.mean()), "largest": float(apart.max())}
    return judged(group, name, not len(bad), measured, wanted, detail, values)


def int8_check(name: str, full: Float32, small: Float32, sample: Sample) -> Check:
    """Embeddings of length 1 in float32 and int8, [B, W] each."""
    cosines: NDArray[np.float64] = (full.astype(np.float64) * small).sum(axis=1)  # [B]
    measured = f"cosine mean {cosines.mean():.4f}, least {cosines.min():.4f}"
    wanted = f"at least {INT8_MEAN:g}, {INT8_LEAST:g}"
    passes = bool(cosines.mean() >= INT8_MEAN and cosines.min() >= INT8_LEAST)
    worst = int(np.nan_to_num(cosines, nan=-2).argmin())
    detail = [f"least: {sample.named(worst)}"]
    values = {"mean cosine": float(cosines.mean()), "least cosine": float(cosines.min())}
    return judged(NUMBERS, name, passes, measured, wanted, detail, values)


def pruning_check(
    name: str, policy: PruningPolicy, reference: Blocks, other: Blocks, sample: Sample, precision: str
) -> Check:
    """The rows that two backends keep: from the same states, and in two runs of their own."""
    bars = BARS[precision]
    differences, runs = _side_by_side(reference, other, sample, policy)
    right: list[list[Kept]] = []
    rest: list[list[Kept]] = []
    try:
        for (_, _, one, _), (_, _, two, _) in runs:
            right += one.stages
            rest += two.stages
    except MinitransError as error:
        return broken(PRUNING, name, "the same rows", error)
    measured, faults, values = kept_rows(right, rest, sample, bars.tie, policy)
    if not differences.scores <= SCORE_BAR:
        faults.append(
            f"from the same states, scores differ by {differences.scores:.1e}, wanted at most {SCORE_BAR:.0e}"
        )
    if not differences.moved <= SCORE_BAR:
        faults.append(f"from the same states, other rows are kept, {differences.moved:.1e} from the cut")
    if over := _over(differences.blocks, *bars.block):
        faults.append(f"over the bar of {bars.block[0]:.0e}, {bars.block[1]:.0e}: {over}")
    values |= {"texts": len(sample.texts), "score difference": differences.scores}
    measured += f"; scores {differences.scores:.0e}"
    wanted = f"all but ties up to {bars.tie:.0e}, at most {SCORE_BAR:.0e}"
    return judged(PRUNING, name, not faults, measured, wanted, faults, values)


def kept_rows(
    right: Sequence[Sequence[Kept]], other: Sequence[Sequence[Kept]], sample: Sample, tie: float, policy: PruningPolicy
) -> tuple[str, list[str], dict[str, float]]:
    """The stages of each text in two runs: what was found in words, what no tie explains, and the numbers behind it."""
    same = ties = 0
    faults: list[str] = []
    furthest = 0.0
    for text, (one, two) in enumerate(zip(right, other, strict=True)):
        # After a difference everything else differs too, so the first one decides.
        first = next(((a, b) for a, b in zip(one, two, strict=True) if not np.array_equal(a.kept, b.kept)), None)
        if first is None:
            same += 1
            continue
        distance = distance_from_cut(*first, limits_by_length(policy, first[0].layer, len(first[0].scores))[1])
        furthest = max(furthest, distance)
        if distance <= tie:
            ties += 1
        else:
            moved = np.setxor1d(first[0].kept, first[1].kept).tolist()
            faults.append(
                f"{sample.named(text)}, layer {first[0].layer}: tokens {moved} are kept in one run only, "
                f"{distance:.1e} from the cut"
            )
    tail = f", {counted(ties, 'tie')} of {furthest:.0e}" if ties else ""
    values = {"same": same, "near ties": ties, "furthest from the cut": furthest}
    return f"{same} of {len(right)} alike{tail}", faults, values
