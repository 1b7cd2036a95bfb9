"""What a classifier has learned from embeddings: one immutable value, and what follows from it. Arrays only.

Dimension letters: N examples, B texts, H embedding width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.arguments import check_choice, check_int
from minitrans.errors import InputError, InputTypeError
from minitrans.fewshot.examples import Label, Labels, abstention_label, float_rows, label_array
from minitrans.fewshot.logistic import fit_logistic, probabilities
from minitrans.fewshot.rejection import (
    DEFAULT_SCORE,
    SCORES,
    Answer,
    HeldOut,
    KnownClasses,
    Rejection,
    calibrate,
    cross_fit,
    logits,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Codes = NDArray[np.int64]

CLASSES_LIMIT = 1 << 25  # bytes of an array of the classes, which gives each the room of the longest


@dataclass(frozen=True, eq=False)
class Head:
    """The classes, the weights, and the examples that they were learned from. Never changed: others are made from it.

    Attributes:
        classes: ``[K]`` labels, sorted: str or int64.
        coef, intercept: ``[K, H]`` and ``[K]``; the logits are ``embeddings @ coef.T + intercept``.
        converged: whether the fit came within the solver's tolerance.
        embeddings, codes: ``[N, H]`` and ``[N]``: the examples and their classes, 0..K-1.
        names: ``[K, H]``, the embeddings of the labels' names, each one more example; or None.
        rejection: the threshold below which a text is rejected; None before a calibration.
    """

    classes: Labels
    coef: Float32
    intercept: Float32
    converged: bool
    embeddings: Float32
    codes: Codes
    names: Float32 | None
    rejection: Rejection | None = None

    @property
    def width(self) -> int:
        """H, the width of the embeddings."""
        return self.coef.shape[1]

    @property
    def labels(self) -> Labels:
        """The labels ``[N]`` of the examples; not kept, as an array gives each label the room of the longest."""
        labels: Labels = self.classes[self.codes]
        return labels

    @cached_property
    def known(self) -> KnownClasses:
        """What a text is compared with to be rejected."""
        rows, codes = self.embeddings, self.codes  # [N, H], [N]
        if self.names is not None:
            rows = np.vstack([rows, self.names])  # [N + K, H]
            codes = np.append(codes, np.arange(len(self.classes)))  # [N + K]
        return KnownClasses(self.coef, self.intercept, rows, codes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "known"}  # can be made again

    def rows(self, embeddings: ArrayLike) -> Float32:
        """Embeddings ``[B, H]`` as float32. InputError where they are not that, or not finite."""
        rows = float_rows(embeddings, "embeddings")
        if rows.shape[1] != self.width:
            raise InputError(
                f"the embeddings are {rows.shape[1]} wide, wanted {self.width}, as in fit; use the same encoder"
            )
        return rows

    def probabilities(self, rows: Float32) -> Float64:
        """The probabilities ``[B, K]`` of the classes for embeddings ``[B, H]``."""
        return probabilities(logits(rows, self.coef, self.intercept))

    def predict(self, rows: Float32) -> Labels:
        """The labels ``[B]`` of embeddings ``[B, H]``, the abstention for what is rejected."""
        best: Labels = self.classes[self.probabilities(rows).argmax(axis=1)]
        if self.rejection is None:
            return best
        accepted = self.score_in_scope(rows, None) >= self.rejection.threshold  # [B]
        return np.where(accepted, best, np.array(self.rejection.abstention, best.dtype.type))

    def score_in_scope(self, rows: Float32, name: str | None) -> Float64:
        """A score ``[B]`` of embeddings ``[B, H]``, by its name; None takes the calibrated one, or else the default."""
        if name is None:
            name = DEFAULT_SCORE if self.rejection is None else self.rejection.score
        return self.known.score(name, rows)

    def answer(self, rows: Float32, top: int, reject: bool) -> list[Answer]:
        """An answer for each of the embeddings ``[B, H]``, with ``top`` labels; without ``reject`` none is rejected."""
        top = check_int("top", top, "an integer of at least 1")
        p = self.probabilities(rows)  # [B, K]
        order = np.argsort(-p, axis=1, kind="stable")[:, :top]  # [B, top]
        ranked = [[(self.classes[k].item(), float(p[i, k])) for k in row] for i, row in enumerate(order)]
        if self.rejection is None:
            return [Answer(labels[0][0], labels, False, None) for labels in ranked]
        answers = []
        for labels, score in zip(ranked, self.score_in_scope(rows, None).tolist(), strict=True):
            rejected = reject and score < self.rejection.threshold
            label = self.rejection.abstention if rejected else labels[0][0]
            answers.append(Answer(label, labels, rejected, score))
        return answers

    def without(self, gone: NDArray[np.bool_]) -> Head:
        """This head with fewer examples, and without the classes that then have none; the weights stay as they are.

        ``gone [N]`` says which examples go; not all of them may.
        """
        kept, codes = np.unique(self.codes[~gone], return_inverse=True)  # [K'], [N']
        names = None if self.names is None else self.names[kept]
        arrays = self.classes[kept], self.coef[kept], self.intercept[kept]
        return Head(*arrays, self.converged, self.embeddings[~gone], codes.astype(np.int64), names, self.rejection)

    def check_kind(self, labels: Labels) -> None:
        """InputTypeError unless the labels are str where the classes are, and int where they are."""
        if labels.dtype.kind != self.classes.dtype.kind:
            raise InputTypeError(f"label 0 is {labels[0]!r}, wanted the kind of the classes, as {self.classes[0]!r}")

    def calibrated(
        self,
        embeddings: ArrayLike | None,
        labels: Iterable[Label] | None,
        out_of_scope: ArrayLike | None,
        *,
        C: float,
        score: str,
        keep: float | None,
        abstention: Label | None,
        folds: int,
        seed: int,
    ) -> Head:
        """This head with a rejection; the arguments as for `FewShotClassifier.calibrate_rejection_embeddings`."""
        abstention = abstention_label(abstention, self.classes)
        check_choice("score", score, ("auto", *SCORES))
        _check_tells_apart(score, self.classes)
        outside = None if out_of_scope is None else self.known.scores(self.rows(out_of_scope))
        if embeddings is not None:
            rows = self.rows(embeddings)
            right = None  # [M]
            if labels is not None:
                labels = label_array(labels, len(rows))
                self.check_kind(labels)
                if unknown := set(labels.tolist()) - set(self.classes.tolist()):
                    seen = f"the label {min(unknown)!r} is no class"
                    raise InputError(f"{seen}, wanted texts in scope; give it as out_of_scope")
                right = replace(self, rejection=None).predict(rows) == labels
            held_out = HeldOut(self.known.scores(rows), right)
        elif labels is not None:
            raise InputError("there are labels without texts, wanted both, or neither to hold out examples of fit")
        else:
            held_out = cross_fit(self.embeddings, self.codes, self.names, C=C, folds=folds, seed=seed)
        return replace(self, rejection=calibrate(held_out, outside, abstention=abstention, score=score, keep=keep))


def merged(before: Head | None, labels: Labels) -> tuple[Labels, Codes]:
    """The classes ``[K]`` of the examples before, if any, and of more labels ``[M]``; and that of each ``[N + M]``.

    InputError where an array of the classes, which gives each the room of the longest, would take too much memory.
    """
    classes, codes = np.unique(labels, return_inverse=True)  # [K], [M]
    if before is not None:
        new, classes = classes, np.union1d(before.classes, classes)
        old_codes = np.searchsorted(classes, before.classes)[before.codes]  # [N]
        codes = np.concatenate([old_codes, np.searchsorted(classes, new)[codes]])  # [N + M]
    if classes.nbytes > CLASSES_LIMIT:
        raise InputError(
            f"{len(classes)} classes at the length of the longest take {classes.nbytes} bytes; "
            f"wanted at most {CLASSES_LIMIT}; shorten the longest labels"
        )
    return classes, codes.astype(np.int64)


def fit_head(
    rows: Float32, classes: Labels, codes: Codes, names: Float32 | None, *, C: float, before: Head | None = None
) -> Head:
    """Learn from embeddings ``rows [N, H]`` of the classes ``codes [N]``.

    Args:
        rows: the examples.
        classes: ``[K]``, sorted.
        codes: ``[N]``, 0..K-1, each at least once.
        names: ``[K, H]`` of the labels' names, or None.
        C: see `fit_logistic`.
        before: the head to start from, whose classes are some of these; its rejection is kept.

    Raises:
        InputError: names of another shape, an impossible C, a class that is what stands for rejected texts, or a single
            class, for which the score that rejects them says nothing.
        NumericalError: see `fit_logistic`.
    """
    K, H = len(classes), rows.shape[1]
    rejection = None if before is None else before.rejection
    if rejection is not None:
        abstention_label(rejection.abstention, classes)
        _check_tells_apart(rejection.score, classes)
    if names is not None and names.shape != (K, H):
        raise InputError(f"the label names' embeddings have shape {names.shape}, wanted {(K, H)}")
    X = rows if names is None else np.vstack([rows, names])  # [N + K, H]
    y = codes if names is None else np.append(codes, np.arange(K))  # [N + K]
    start = None
    if before is not None:
        coef, intercept = np.zeros((K, H)), np.full(K, before.intercept.min())  # [K, H], [K]
        places = np.searchsorted(classes, before.classes)
        coef[places], intercept[places] = before.coef, before.intercept
        start = coef, intercept
    found = fit_logistic(X, y, C=C, start=start)
    coef32, intercept32 = found.coef.astype(np.float32), found.intercept.astype(np.float32)
    return Head(classes, coef32, intercept32, found.converged, rows, codes, names, rejection)


def _check_tells_apart(score: str, classes: Labels) -> None:
    if score in ("probability", "energy") and len(classes) == 1:
        raise InputError(f"score is {score!r}, equal for all texts where there is one class, wanted 'mahalanobis'")
