"""How near pruned embeddings stay to unpruned ones: by what angle they turn, and whether similarities keep their order.

An accuracy cannot tell that: a classifier fitted on pruned embeddings forgives whatever turns all of them alike.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import InputError, TruncationWarning
from minitrans.evaluation.journal import foreign_result
from minitrans.evaluation.tables import Column
from minitrans.sentences.call import measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder

Float64 = NDArray[np.float64]

LENGTHS = (8, 16, 32, 64, 128, 256)  # tokens, special ones included
MOST_TEXTS = 1000  # of which all pairs are compared: half a million

LENGTH_COLUMNS = (
    Column("task", "task"),
    Column("pruning", "pruning"),
    *(Column(f"turn_{length}", f"{length} tokens", ".1f") for length in LENGTHS),
)
COUNT_COLUMNS = tuple(Column(f"texts_{length}", f"texts of {length}") for length in LENGTHS)  # for files


@dataclass(frozen=True)
class LengthTurn:
    """The turn of the texts of one length.

    Attributes:
        length: in tokens, one of `LENGTHS`: each text counts to the nearest one, on a logarithmic scale.
        texts: how many there are.
        turn, turn_p95: mean and 95th percentile, in degrees.
    """

    length: int
    texts: int
    turn: float
    turn_p95: float


@dataclass(frozen=True)
class Fidelity:
    """How near the embeddings of some texts under a policy are to those without pruning.

    Attributes:
        turn, turn_p95: angle between the two embeddings of a text, in degrees: mean and 95th percentile.
        similarity: Spearman's rank correlation of the cosines of all pairs of texts, pruned against unpruned; None
            where it is not defined, as of two texts.
        lengths: the turn by length, ascending; lengths without texts are left out.
    """

    turn: float
    turn_p95: float
    similarity: float | None
    lengths: tuple[LengthTurn, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"lengths": [asdict(each) for each in self.lengths]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Fidelity:
        """What `to_dict` made. InputError if it is something else: anybody may have written the journal."""
        if not _is_fidelity(value):
            raise foreign_result(value, "turns from 0 to 180, a similarity from -1 to 1, and turns by length")
        return cls(**{**value, "lengths": tuple(LengthTurn(**each) for each in value["lengths"])})

    def by_length(self) -> dict[str, Any]:
        """Entries of a table's row, for `LENGTH_COLUMNS` and `COUNT_COLUMNS`."""
        turns = {f"turn_{each.length}": each.turn for each in self.lengths}
        return turns | {f"texts_{each.length}": each.texts for each in self.lengths}


def measure_fidelity(
    encoder: SentenceEncoder, texts: Sequence[str], policies: Mapping[str, PruningPolicy | None]
) -> dict[str, Fidelity]:
    """Embed the texts without pruning and under each policy, and compare.

    Args:
        encoder: its own pruning is not used, its default prompt is.
        texts: at least one.
        policies: by name.
    """
    with measuring(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # whoever asks embeds the same texts for a purpose too
        lengths = [len(ids) for ids in encoder.tokenized(texts).ids]
        unpruned = encoder.encode(texts, pruning=None, show_progress_bar=False)  # [B, H]
        return {
            name: fidelity(unpruned, encoder.encode(texts, pruning=policy, show_progress_bar=False), lengths)
            for name, policy in policies.items()
        }


def fidelity(unpruned: ArrayLike, pruned: ArrayLike, lengths: Sequence[int]) -> Fidelity:
    """Compare embeddings of the same texts.

    Args:
        unpruned, pruned: `[B, H]`, B at least 1.
        lengths: of the texts, in tokens: [B].

    Raises:
        InputError: shapes that do not match, or no texts.
    """
    angles = turns(unpruned, pruned)  # [B]
    if len(lengths) != len(angles) or not len(angles):
        raise InputError(f"{len(lengths)} lengths for {len(angles)} texts, wanted as many, and at least one")
    near = nearest_length(lengths)  # [B]
    by_length = []
    for length in LENGTHS:
        if len(some := angles[near == length]):
            by_length.append(LengthTurn(length, len(some), float(some.mean()), float(np.percentile(some, 95))))
    similarity = similarity_correlation(unpruned, pruned)
    return Fidelity(float(angles.mean()), float(np.percentile(angles, 95)), similarity, tuple(by_length))


def turns(unpruned: ArrayLike, pruned: ArrayLike) -> Float64:
    """The angle between row i of one and row i of the other, in degrees: `[B]`, exactly 0 for equal rows.

    By W. Kahan's formula, which is exact for small angles too, where an arccos of a cosine knows nothing below 0.02
    degrees in float32. A row of zeros has no direction: it counts as 0 degrees from another one, and 180 from the rest.

    Raises:
        InputError: other than two arrays `[B, H]` of one shape.
    """
    a, b = np.asarray(unpruned, np.float64), np.asarray(pruned, np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise InputError(f"embeddings are {list(a.shape)} and {list(b.shape)}, wanted [B, H] both times")
    left = a * np.linalg.norm(b, axis=1, keepdims=True)  # [B, H], as long as the right one
    right = b * np.linalg.norm(a, axis=1, keepdims=True)
    apart, along = np.linalg.norm(left - right, axis=1), np.linalg.norm(left + right, axis=1)  # [B]
    angles = np.degrees(2 * np.arctan2(apart, along))
    angles[a.any(axis=1) != b.any(axis=1)] = 180.0
    return angles


def nearest_length(lengths: Sequence[int]) -> NDArray[np.int64]:
    """For each number of tokens that of `LENGTHS` which is nearest on a logarithmic scale: [B]."""
    edges = np.sqrt(np.multiply(LENGTHS[:-1], LENGTHS[1:]))  # none of them is a whole number
    return np.asarray(LENGTHS)[np.searchsorted(edges, np.asarray(lengths))]


def similarity_correlation(unpruned: ArrayLike, pruned: ArrayLike, most: int = MOST_TEXTS) -> float | None:
    """Rank correlation of the cosines of all pairs of rows, in one array and in the other.

    Args:
        unpruned, pruned: `[B, H]`.
        most: of more rows so many are drawn, the same ones each time.

    Returns:
        In [-1, 1]; None with fewer than three rows, or where all cosines of one array are the same.
    """
    rows = _drawn(len(np.asarray(unpruned)), most)
    upper = np.triu_indices(len(rows), 1)
    cosines = []
    for vectors in (unpruned, pruned):
        chosen = np.asarray(vectors, np.float64)[rows]  # [R, H]
        chosen = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        cosines.append((chosen @ chosen.T)[upper])  # [R (R - 1) / 2]
    return rank_correlation(*cosines)


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's rank correlation of two lists of numbers of the same length, ties having their mean rank.

    Returns:
        In [-1, 1], exactly 1 where the order is the same; None where all numbers of a list are equal, or for less than
        two.
    """
    x, y = _ranks(np.asarray(a)), _ranks(np.asarray(b))  # [N], mean 0
    if x.shape != y.shape:
        raise InputError(f"lists of {len(x)} and {len(y)} numbers, wanted as many")
    spread = float(np.sum(x * x)) * float(np.sum(y * y))
    if not spread:
        return None
    return min(1.0, max(-1.0, float(np.sum(x * y)) / math.sqrt(spread)))


def mean_fidelity(found: Sequence[Fidelity]) -> Fidelity:
    """Means over tasks: of each length over those that have it, of the similarity over those where it is defined."""
    similarities = [each.similarity for each in found if each.similarity is not None]
    by_length = []
    for length in LENGTHS:
        if some := [one for each in found for one in each.lengths if one.length == length]:
            count = sum(one.texts for one in some)
            by_length.append(
                LengthTurn(length, count, _mean([x.turn for x in some]), _mean([x.turn_p95 for x in some]))
            )
    return Fidelity(
        _mean([each.turn for each in found]),
        _mean([each.turn_p95 for each in found]),
        _mean(similarities) if similarities else None,
        tuple(by_length),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _ranks(values: NDArray[Any]) -> Float64:
    """The rank of each number less the mean of all ranks; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)  # the ranks of a group are ends - counts + 1 ... ends
    return (ends - (counts - 1) / 2 - (len(values) + 1) / 2)[place.reshape(-1)]


def _drawn(count: int, most: int) -> list[int]:
    """So many of the first whole numbers, ascending: all, or a draw that is the same on every machine."""
    generator = random.Random(f"{most} texts")  # noqa: S311
    ranks = [generator.random() for _ in range(count)]
    return sorted(sorted(range(count), key=ranks.__getitem__)[:most])


def _is_fidelity(value: Mapping[str, Any]) -> bool:
    if set(value) != {field.name for field in fields(Fidelity)} or not isinstance(value["lengths"], list):
        return False
    similarity, keys = value["similarity"], {field.name for field in fields(LengthTurn)}
    for each in value["lengths"]:
        if not isinstance(each, dict) or set(each) != keys or each["length"] not in LENGTHS or not _turns(each):
            return False
        if not isinstance(each["texts"], int) or each["texts"] < 1:
            return False
    return _turns(value) and (similarity is None or (isinstance(similarity, int | float) and -1 <= similarity <= 1))


def _turns(value: Mapping[str, Any]) -> bool:
    return all(isinstance(value[name], int | float) and 0 <= value[name] <= 180 for name in ("turn", "turn_p95"))
