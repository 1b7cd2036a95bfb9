"""Classification metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minitrans.errors import InputError


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of labels that are right."""
    _same_length(truth, predicted)
    return float(np.mean(np.asarray(truth) == np.asarray(predicted)))


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Unweighted mean over the classes in either list of F1 = 2 tp / (2 tp + fp + fn)."""
    _same_length(truth, predicted)
    true, guess = np.asarray(truth), np.asarray(predicted)
    scores = []
    for label in np.union1d(true, guess):
        hits = np.sum((true == label) & (guess == label))
        scores.append(2 * hits / (np.sum(true == label) + np.sum(guess == label)))
    return float(np.mean(scores))


def _same_length(truth: Sequence[str], predicted: Sequence[str]) -> None:
    if len(truth) != len(predicted) or len(truth) == 0:
        raise InputError(f"{len(truth)} true and {len(predicted)} predicted labels, wanted as many, and at least one")
