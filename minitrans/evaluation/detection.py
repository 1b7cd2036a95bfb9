"""How well texts out of scope are told from those in scope: every score on a test set, at its calibrated threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.fewshot.examples import Encoder, Label, encoded, label_array, text_list
from minitrans.fewshot.rejection import SCORES, auroc, calibrate, cross_fit, fpr_at


class RejectionRow(TypedDict):
    """One score on one test set. All but `score`, `chosen` and `threshold` are shares of one.

    Attributes:
        score: its name.
        chosen: whether `score="auto"` takes it.
        auroc: the area under the ROC curve of in scope against out of scope.
        fpr_at_95: the share out of scope that passes where 95 % in scope do. It is about the test set: no threshold
            that is set beforehand can promise it.
        threshold: as calibrated, without the test set.
        in_scope_recall: the share in scope that the threshold keeps.
        out_of_scope_recall: the share out of scope that it rejects.
        out_of_scope_precision: the share of what it rejects that is out of scope; None where it rejects nothing.
        in_scope_accuracy: the share in scope that gets its label, a rejected text being wrong.
        accuracy_without_rejection: the same where nothing is rejected.
    """

    score: str
    chosen: bool
    auroc: float
    fpr_at_95: float
    threshold: float
    in_scope_recall: float
    out_of_scope_recall: float
    out_of_scope_precision: float | None
    in_scope_accuracy: float
    accuracy_without_rejection: float


def evaluate_rejection(
    encoder: Encoder,
    train_texts: Sequence[str],
    train_labels: Sequence[Label],
    test_texts: Sequence[str],
    test_labels: Sequence[Label],
    out_of_scope: Sequence[str],
    *,
    calibration: Sequence[str] | None = None,
    keep: float | None = None,
    C: float = 10.0,
    label_names: bool = True,
    folds: int = 5,
    seed: int = 0,
) -> list[RejectionRow]:
    """Fit on a training set, calibrate each score on it, and measure it on a test set; each text is encoded once.

    Args:
        encoder: what encodes the texts.
        train_texts, train_labels: what `FewShotClassifier.fit` gets.
        test_texts, test_labels: texts in scope.
        out_of_scope: test texts of no class.
        calibration: other texts of no class, to choose the score and the thresholds with; None for none.
        keep, folds, seed: see `FewShotClassifier.calibrate_rejection`.
        C, label_names: see `FewShotClassifier`.

    Returns:
        One row for each of `minitrans.fewshot.rejection.SCORES`, in their order.

    Raises as `fit` and `calibrate_rejection` do.
    """
    classifier = FewShotClassifier(encoder, C=C, label_names=label_names).fit(train_texts, train_labels)
    inside, outside = (encoded(encoder, text_list(texts)) for texts in (test_texts, out_of_scope))  # [B, H] each
    beyond = None if calibration is None else encoded(encoder, text_list(calibration))
    (rows,) = measure_rejection(
        classifier, inside, test_labels, outside, calibrations=[beyond], keep=keep, folds=folds, seed=seed
    )
    return rows


def measure_rejection(
    classifier: FewShotClassifier,
    inside: ArrayLike,
    test_labels: Sequence[Label],
    outside: ArrayLike,
    *,
    calibrations: Sequence[ArrayLike | None] = (None,),
    keep: float | None = None,
    folds: int = 5,
    seed: int = 0,
) -> list[list[RejectionRow]]:
    """What `evaluate_rejection` measures, for a fitted classifier and texts that are encoded already, `[B, H]` each.

    Args:
        classifier: its own calibration is neither used nor changed.
        inside, test_labels: texts in scope.
        outside: test texts of no class.
        calibrations: other texts of no class to calibrate with, or None for none; several ways, one after the other.
        keep, folds, seed: see `FewShotClassifier.calibrate_rejection`.

    Returns:
        For each calibration, one row for each of `minitrans.fewshot.rejection.SCORES`, in their order.

    Raises as `calibrate_rejection` does.
    """
    names = classifier.name_embeddings_
    held_out = cross_fit(classifier.embeddings_, classifier.codes_, names, C=classifier.C, folds=folds, seed=seed)
    scores_in, scores_out = (_scores(classifier, rows) for rows in (inside, outside))
    p = classifier.predict_proba_embeddings(inside)  # [B, K]
    right = classifier.classes_[p.argmax(axis=1)] == label_array(test_labels, len(p))  # [B]
    measured = []
    for rows in calibrations:
        beyond = None if rows is None else _scores(classifier, rows)
        chosen = calibrate(held_out, beyond, abstention="", keep=keep).score
        rows_of_scores: list[RejectionRow] = []
        for name in SCORES:
            threshold = calibrate(held_out, beyond, abstention="", score=name, keep=keep).threshold
            rejected_in, rejected_out = scores_in[name] < threshold, scores_out[name] < threshold
            rejected = int(rejected_in.sum() + rejected_out.sum())
            rows_of_scores.append(
                RejectionRow(
                    score=name,
                    chosen=name == chosen,
                    auroc=auroc(scores_in[name], scores_out[name]),
                    fpr_at_95=fpr_at(scores_in[name], scores_out[name]),
                    threshold=threshold,
                    in_scope_recall=float(np.mean(~rejected_in)),
                    out_of_scope_recall=float(np.mean(rejected_out)),
                    out_of_scope_precision=int(rejected_out.sum()) / rejected if rejected else None,
                    in_scope_accuracy=float(np.mean(right & ~rejected_in)),
                    accuracy_without_rejection=float(np.mean(right)),
                )
            )
        measured.append(rows_of_scores)
    return measured


def _scores(classifier: FewShotClassifier, rows: ArrayLike) -> dict[str, NDArray[np.float64]]:
    return {name: classifier.score_in_scope_embeddings(rows, name) for name in SCORES}
