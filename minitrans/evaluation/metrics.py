"""How good predictions are: classification metrics, and how sure a mean over draws is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minitrans.errors import InputError


@dataclass(frozen=True)
class MacroMetrics:
    """Unweighted means over the classes, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its confidence interval; None where one value says nothing about the spread."""

    mean: float
    half_width: float | None


def flat(intervals: Mapping[str, Interval | None]) -> dict[str, float | None]:
    """Entries of a table's row, two for each interval: under its name the mean, under "<name>_ci95" the half width."""
    values: dict[str, float | None] = {}
    for name, interval in intervals.items():
        values[name] = None if interval is None else interval.mean
        values[f"{name}_ci95"] = None if interval is None else interval.half_width
    return values


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of labels that are right."""
    _same_length(truth, predicted)
    return float(np.mean(np.asarray(truth) == np.asarray(predicted)))


def macro_metrics(truth: Sequence[str], predicted: Sequence[str]) -> MacroMetrics:
    """Precision, recall and F1 of each class in either list, averaged; a class without a denominator counts 0.

    Precision is tp / (tp + fp), recall tp / (tp + fn), F1 2 tp / (2 tp + fp + fn), as in scikit-learn with
    ``average="macro", zero_division=0``.

    Raises:
        InputError: no labels, or lists of different lengths.
    """
    _same_length(truth, predicted)
    classes, codes = np.unique([*truth, *predicted], return_inverse=True)  # [K], [2 N]
    true, guess = codes[: len(truth)], codes[len(truth) :]
    hits = np.bincount(true[true == guess], minlength=len(classes))  # [K]
    is_true, is_guess = np.bincount(true, minlength=len(classes)), np.bincount(guess, minlength=len(classes))  # [K]
    return MacroMetrics(
        float(np.mean(hits / np.maximum(is_guess, 1))),
        float(np.mean(hits / np.maximum(is_true, 1))),
        float(np.mean(2 * hits / (is_true + is_guess))),
    )


def confidence_interval(values: Sequence[float]) -> Interval:
    """Mean of independent draws and half the width of its Student's t interval, which holds the true mean in 95 %.

    Args:
        values: one or more finite numbers; of a single one the half width is None.

    Raises:
        InputError: no values, or one that is not finite.
    """
    if not len(values) or not all(map(math.isfinite, values)):
        raise InputError(f"the values are {list(values)!r:.100}, wanted one or more finite numbers")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Interval(mean, student_t(0.95, n - 1) * deviation / math.sqrt(n))


@lru_cache(maxsize=1000)  # of thousands of queries it takes a tenth of a second
def student_t(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level, for T of Student's distribution with so many degrees of freedom.

    By bisection of the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        if _within(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle))."""
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for i in range(2 if odd else 1, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * i / (i + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def _same_length(truth: Sequence[str], predicted: Sequence[str]) -> None:
    if len(truth) != len(predicted) or len(truth) == 0:
        raise InputError(f"{len(truth)} true and {len(predicted)} predicted labels, wanted as many, and at least one")
