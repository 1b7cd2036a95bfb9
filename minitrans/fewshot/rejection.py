"""Out-of-scope rejection: how much a text belongs to the known classes, and from where on it does not. Arrays only.

Four scores, each the higher the more a text is in scope, from the classifier's logits or from the embeddings:

    probability   the largest probability (Hendrycks & Gimpel 2017, arXiv 1610.02136)
    energy        log sum exp of the logits (Liu et al. 2020, arXiv 2010.03759)
    nearest       the cosine to the nearest training example
    mahalanobis   minus the squared distance to the nearest class mean, under one covariance for all classes
                  (Lee et al. 2018, arXiv 1807.03888), shrunk towards a multiple of the identity

A threshold must come from texts that the classifier was not fitted on: from examples held out in turn (`cross_fit`) or
from others. A text is in scope where its score is at least the threshold.

Dimension letters: N examples (label names among them), B texts, H embedding width, K classes, M held-out texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.arguments import check_choice
from minitrans.backends.blas import single_threaded_blas
from minitrans.errors import InputError
from minitrans.fewshot.logistic import fit_logistic, probabilities
from minitrans.words import counted, escaped

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Codes = NDArray[np.int64]
_Float = TypeVar("_Float", np.float32, np.float64)

# Both chosen on HINT3, and on SNIPS with two intents held out. Of shrinkages from 0.1 to 0.98 and Ledoit & Wolf's
# estimate (which is far lower where examples are many), 0.8 gave the best AUROC and the fewest false positives.
SHRINKAGE = 0.8
DEFAULT_SCORE = "mahalanobis"
DEFAULT_KEEP = 0.95


@dataclass(frozen=True)
class KnownClasses:
    """What a text is compared with.

    Attributes:
        coef, intercept: ``[K, H]`` and ``[K]``, of the logits.
        examples: ``[N, H]``, each class at least once.
        codes: ``[N]``, the class of each example, 0..K-1.
    """

    coef: NDArray[np.floating]
    intercept: NDArray[np.floating]
    examples: NDArray[np.floating]
    codes: Codes

    @cached_property
    def unit_examples(self) -> Float32:
        """``[H, N]``, the examples at length one; zeros stay zeros."""
        return _unit(_float64(self.examples)).T.astype(np.float32, order="C")

    @cached_property
    def gaussians(self) -> tuple[Float64, Float64, Float64]:
        """The mean of the class means ``[H]``, a factor F ``[H, H]`` with ``F F' = covariance^-1``, and the class means
        ``[H, K]`` in whitened coordinates, ``(mean - centre) F``.
        """
        X, K = _float64(self.examples), len(self.coef)
        counts, order = np.bincount(self.codes), np.argsort(self.codes, kind="stable")  # [K], [N]
        means = np.add.reduceat(X[order], np.cumsum(counts) - counts) / counts[:, None]  # [K, H]
        residuals = X - means[self.codes]  # [N, H]
        # Over the degrees of freedom: thresholds come from fits on fewer examples, so the scale must not follow N.
        covariance = residuals.T @ residuals / max(len(X) - K, 1)  # [H, H]
        scale = float(np.trace(covariance)) / X.shape[1]
        covariance *= 1 - SHRINKAGE
        # Without any scatter, as with one example per class, this is the Euclidean distance.
        covariance[np.diag_indices(X.shape[1])] += SHRINKAGE * scale if scale else 1.0
        factor = _inverse(np.linalg.cholesky(covariance)).T.copy()  # [H, H]
        centre = means.mean(axis=0)  # [H]
        return centre, factor, ((means - centre) @ factor).T.copy()

    @single_threaded_blas()
    def score(self, name: str, rows: NDArray[np.floating]) -> Float64:
        """The scores ``[B]`` of that name for embeddings ``[B, H]``, each the same whatever the other rows are.

        Raises:
            InputError: no such score.
        """
        check_choice("score", name, SCORES)
        return SCORES[name](self, _float64(rows))

    def scores(self, rows: NDArray[np.floating]) -> dict[str, Float64]:
        """Name -> the scores ``[B]`` of embeddings ``[B, H]``."""
        return {name: self.score(name, rows) for name in SCORES}


def row_products(rows: NDArray[_Float], matrix: NDArray[_Float]) -> NDArray[_Float]:
    """``rows [B, H] @ matrix [H, D]``, one product per row: in a product of all rows, the rounding of one would depend
    on how many there are. ``matrix`` has to be C-contiguous, as the order too decides on the rounding.
    """
    return np.matmul(rows[:, None, :], matrix)[:, 0]


@single_threaded_blas()
def logits(rows: NDArray[np.floating], coef: NDArray[np.floating], intercept: NDArray[np.floating]) -> Float64:
    """Logits ``[B, K]`` of embeddings ``[B, H]``, for ``coef [K, H]`` and ``intercept [K]``, in float64."""
    return row_products(_float64(rows), _float64(coef.T)) + intercept


def _probability(known: KnownClasses, rows: Float64) -> Float64:
    return probabilities(logits(rows, known.coef, known.intercept)).max(axis=1)


def _energy(known: KnownClasses, rows: Float64) -> Float64:
    z = logits(rows, known.coef, known.intercept)  # [B, K]
    top = z.max(axis=1)  # [B]
    return top + np.log(np.exp(z - top[:, None]).sum(axis=1))


def _nearest(known: KnownClasses, rows: Float64) -> Float64:
    return row_products(_unit(rows).astype(np.float32), known.unit_examples).max(axis=1).astype(np.float64)


def _mahalanobis(known: KnownClasses, rows: Float64) -> Float64:
    centre, factor, means = known.gaussians
    z = row_products(rows - centre, factor)  # [B, H]
    to_means = row_products(z, 2 * means) - np.einsum("hk,hk->k", means, means)  # [B, K]
    # Rounding could turn a distance of zero into less than none.
    return np.minimum(to_means.max(axis=1) - _squares(z), 0.0)


SCORES: Mapping[str, Callable[[KnownClasses, Float64], Float64]] = {
    "probability": _probability,
    "energy": _energy,
    "nearest": _nearest,
    "mahalanobis": _mahalanobis,
}


@dataclass(frozen=True)
class HeldOut:
    """Texts that were not fitted on, in scope all of them.

    Attributes:
        scores: ``[M]`` by the name of the score.
        right: ``[M]``, whether the most probable class is the right one; None where that is not known.
    """

    scores: Mapping[str, Float64]
    right: NDArray[np.bool_] | None


@single_threaded_blas()
def cross_fit(
    X: NDArray[np.floating], y: Codes, names: NDArray[np.floating] | None, *, C: float, folds: int = 5, seed: int = 0
) -> HeldOut:
    """Score each example by a classifier that was fitted on the other folds.

    The folds are stratified and drawn by seed. A class whose only example is held out is represented by its name. If
    there are no names, such examples are never held out. If there are no others (one example of each class and no
    names), they are scored against the other classes: the scores are then too low, so that a threshold from them
    rejects only what is farther from all classes than the classes are from one another.

    Args:
        X: ``[N, H]`` examples, without the names.
        y: ``[N]``, codes 0..K-1, each present.
        names: ``[K, H]``, one more example of each class that is never held out; or None.
        C: see `fit_logistic`.
        folds: how many, at least 2; no more are made than there are examples.
        seed: of the draw.

    Returns:
        The held-out examples in the order of X.

    Raises:
        InputError: folds or seed out of range, or a single example without a name, which leaves nothing to fit on.
    """
    for what, value, least in (("folds", folds, 2), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{what} is {value!r}, wanted an integer of at least {least}")
    if len(X) == 1 and names is None:
        raise InputError("there is 1 example, wanted 2 to hold one out; add examples, or give held-out texts")
    alone = np.bincount(y)[y] == 1  # [N]
    vanishing = names is None and bool(alone.all())
    held_out = np.full(len(X), names is not None) | ~alone | vanishing  # [N]
    # Shuffled and then sorted by class, the examples of a class stand in a row and are dealt to different folds.
    order = np.random.default_rng(seed).permutation(len(X))
    order = order[np.argsort(y[order], kind="stable")]
    order = order[held_out[order]]
    fold = np.full(len(X), -1)  # [N]
    fold[order] = np.arange(len(order)) % folds
    scores = {name: np.empty(len(X)) for name in SCORES}
    right = np.zeros(len(X), np.bool_)
    for part in range(min(folds, len(order))):
        train, test = fold != part, fold == part
        examples, labels = X[train], y[train]
        if names is not None:
            examples, labels = np.vstack([examples, names]), np.append(labels, np.arange(len(names)))
        present, codes = np.unique(labels, return_inverse=True)
        fitted = fit_logistic(examples, codes, C=C)
        known = KnownClasses(fitted.coef, fitted.intercept, examples, codes)
        for name, values in known.scores(X[test]).items():
            scores[name][test] = values
        right[test] = present[logits(X[test], fitted.coef, fitted.intercept).argmax(axis=1)] == y[test]
    kept = {name: values[held_out] for name, values in scores.items()}
    return HeldOut(kept, None if vanishing else right[held_out])


@dataclass(frozen=True)
class Rejection:
    """A threshold and what was measured when it was set.

    Attributes:
        score: the name of the score.
        threshold: a text whose score is below is rejected.
        abstention: the label that a rejected text gets.
        in_scope: how many held-out texts in scope it was set on.
        out_of_scope: how many texts out of scope it was set on.
        kept: the share of the texts in scope that are not rejected.
        rejected: the share of the texts out of scope that are; None without such texts.
        accuracy: the share of the texts in scope that are not rejected and get the right label; None where that is not
            known.
        auroc: the area under the ROC curve of each score; None without texts out of scope.
    """

    score: str
    threshold: float
    abstention: str | int
    in_scope: int
    out_of_scope: int
    kept: float
    rejected: float | None
    accuracy: float | None
    auroc: dict[str, float] | None

    def summary(self) -> str:
        """What was calibrated, in one line of text."""
        outside = "" if self.rejected is None else f" and {self.rejected:.1%} of {self.out_of_scope} out of it rejected"
        return (
            f"{self.score} below {self.threshold:.4g} gives {self.abstention!r}; "
            f"{self.kept:.1%} of {counted(self.in_scope, 'held-out text')} in scope kept{outside}"
        )


@dataclass(frozen=True)
class Answer:
    """What a classifier says about a text.

    Attributes:
        label: what it predicts: the most probable label, or the abstention where the text is rejected.
        labels: the most probable labels with their probabilities, best first.
        rejected: whether the text is out of scope.
        score: how much it is in scope; None before a calibration.
    """

    label: str | int
    labels: list[tuple[str | int, float]]
    rejected: bool
    score: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the score only where there is one."""
        labels = [{"label": label, "probability": p} for label, p in self.labels]
        score = {} if self.score is None else {"score": self.score}
        return {"label": self.label, "rejected": self.rejected, **score, "labels": labels}

    def to_lines(self, text: str, top: int) -> list[str]:
        """A line for each label, tabs between label, probability and text.

        Of a rejected text the first line holds the abstention, with "-" for the probability; the labels follow where
        ``top`` is more than one. What would break a line is written out by `words.escaped`.
        """
        labels = [] if self.rejected and top == 1 else self.labels
        pairs = [(str(self.label), "-")] * self.rejected + [(str(label), f"{p:.4f}") for label, p in labels]
        words = escaped(" ".join(text.split()))
        return [f"{escaped(label)}\t{p}\t{words}" for label, p in pairs]


def calibrate(
    held_out: HeldOut,
    out_of_scope: Mapping[str, Float64] | None,
    *,
    abstention: str | int,
    score: str = "auto",
    keep: float | None = None,
) -> Rejection:
    """Choose a score and its threshold: `threshold_that_keeps`, or without ``keep`` `threshold_between`.

    The scores of the texts out of scope, if there are any, are by name. ``abstention``, ``score`` and ``keep`` are as
    for `FewShotClassifier.calibrate_rejection`.

    Raises:
        InputError: an unknown score, no texts out of scope where some were given, or a keep out of range.
    """
    auroc_of = None
    if out_of_scope is not None:
        if not all(map(len, out_of_scope.values())):
            raise InputError("out_of_scope has 0 texts, wanted at least one; leave it out to calibrate without any")
        auroc_of = {name: auroc(held_out.scores[name], out_of_scope[name]) for name in SCORES}
    if score == "auto":
        # The default comes first, so that it wins among equals.
        candidates = sorted(SCORES, key=lambda name: name != DEFAULT_SCORE)
        score = DEFAULT_SCORE if auroc_of is None else max(candidates, key=auroc_of.__getitem__)
    check_choice("score", score, SCORES)
    inside, outside = held_out.scores[score], None if out_of_scope is None else out_of_scope[score]
    if outside is None or keep is not None:
        threshold = threshold_that_keeps(inside, DEFAULT_KEEP if keep is None else keep)
    else:
        threshold = threshold_between(inside, outside)
    accepted = inside >= threshold
    return Rejection(
        score=score,
        threshold=threshold,
        abstention=abstention,
        in_scope=len(inside),
        out_of_scope=0 if outside is None else len(outside),
        kept=float(accepted.mean()),
        rejected=None if outside is None else float((outside < threshold).mean()),
        accuracy=None if held_out.right is None else float((accepted & held_out.right).mean()),
        auroc=auroc_of,
    )


def threshold_that_keeps(in_scope: ArrayLike, keep: float) -> float:
    """The highest threshold that at least this share of the scores ``[M]`` reach.

    Raises:
        InputError: no scores, scores that are not finite, or a share outside (0, 1].
    """
    scores = _scores(in_scope, "in_scope")
    if isinstance(keep, bool) or not isinstance(keep, int | float | np.number) or not 0 < keep <= 1:
        raise InputError(f"keep is {keep!r}, wanted a share above 0 and up to 1, such as {DEFAULT_KEEP}")
    return float(np.sort(scores)[len(scores) - math.ceil(keep * len(scores))])


def threshold_between(in_scope: ArrayLike, out_of_scope: ArrayLike) -> float:
    """The threshold of the highest mean of the share in scope that is kept and the share out of scope that is rejected.

    That is Youden's J (1950), which does not depend on how many texts of either kind there are. The threshold lies in
    the middle between two scores that were seen; of several it is the lowest. Raises InputError as `auroc` does.
    """
    inside, outside = np.sort(_scores(in_scope, "in_scope")), np.sort(_scores(out_of_scope, "out_of_scope"))
    values = np.union1d(inside, outside)
    kept = len(inside) - np.searchsorted(inside, values)
    rejected = np.searchsorted(outside, values)
    best = int(np.argmax(kept * len(outside) + rejected * len(inside)))  # whole numbers, so that equals are equal
    high = float(values[best])
    if best == 0:
        return high
    low = float(values[best - 1])
    middle = low + (high - low) / 2
    return middle if middle > low else high


def auroc(in_scope: ArrayLike, out_of_scope: ArrayLike) -> float:
    """The area under the ROC curve: the share of pairs in which the text in scope has the higher score, ties half.

    Raises:
        InputError: no scores on either side, or scores that are not finite ``[M]``.
    """
    inside, outside = _scores(in_scope, "in_scope"), np.sort(_scores(out_of_scope, "out_of_scope"))
    below = np.searchsorted(outside, inside, side="left") + np.searchsorted(outside, inside, side="right")
    return int(below.sum()) / (2 * len(inside) * len(outside))


def fpr_at(in_scope: ArrayLike, out_of_scope: ArrayLike, recall: float = 0.95) -> float:
    """The share of texts out of scope that pass at the highest threshold which this share in scope passes.

    Raises InputError as `auroc` and `threshold_that_keeps` do.
    """
    threshold = threshold_that_keeps(in_scope, recall)
    return float((_scores(out_of_scope, "out_of_scope") >= threshold).mean())


def _scores(values: ArrayLike, what: str) -> Float64:
    scores = np.asarray(values)
    if scores.ndim != 1 or not len(scores) or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        seen = f"shape {scores.shape} and type {scores.dtype}"
        raise InputError(f"{what} has {seen}, wanted finite numbers [M], at least one; drop NaN and infinity")
    return scores.astype(np.float64)


def _float64(values: NDArray[np.floating]) -> Float64:
    return values.astype(np.float64, order="C")


def _squares(rows: Float64) -> Float64:
    """The squared lengths ``[B]`` of rows ``[B, H]``."""
    return np.matmul(rows[:, None, :], rows[:, :, None])[:, 0, 0]


def _inverse(lower: Float64) -> Float64:
    """The inverse of a lower triangular matrix ``[H, H]``, by halves: a general solver computes with the zeros too."""
    half = len(lower) // 2
    inverse = np.zeros_like(lower)
    if half < 24:
        inverse[:] = np.linalg.inv(lower)
        return inverse
    inverse[:half, :half], inverse[half:, half:] = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse


def _unit(rows: Float64) -> Float64:
    lengths = np.sqrt(_squares(rows))  # [B]
    return rows / np.where(lengths > 0, lengths, 1.0)[:, None]
