"""How well texts out of scope are told from those in scope: each rejection score, at its calibrated threshold.

`evaluate_scope` measures that on tasks x pruning policies x shots x draws, as `evaluate` does accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.data.tasks import Draw, Task
from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import InputError
from minitrans.evaluation.few_shot import Lookup, Plan, by_row
from minitrans.evaluation.journal import Journal, foreign_result
from minitrans.evaluation.metrics import Interval, confidence_interval, flat
from minitrans.evaluation.tables import Column, Table
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.fewshot.examples import Label, label_array
from minitrans.fewshot.rejection import SCORES, auroc, calibrate, cross_fit, fpr_at
from minitrans.sentences.call import Progress
from minitrans.sentences.sentence_encoder import SentenceEncoder


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


WITHOUT, WITH = "without oos", "with oos"  # texts out of scope to calibrate with
AUTO = "auto"
MEASURES = tuple(name for name in RejectionRow.__annotations__ if name not in ("score", "chosen", "threshold"))

COLUMNS = (
    Column("task", "task"),
    Column("shots", "shots"),
    Column("pruning", "pruning"),
    Column("draws", "draws"),
    Column("calibration", "calibrated"),
    Column("score", "score"),
    Column("chosen", "chosen", ".0%"),
    Column("auroc", "AUROC", ".1%", "auroc_ci95"),
    Column("fpr_at_95", "FPR at 95%", ".1%", "fpr_at_95_ci95"),
    Column("in_scope_recall", "kept", ".1%", "in_scope_recall_ci95"),
    Column("out_of_scope_recall", "oos recall", ".1%", "out_of_scope_recall_ci95"),
    Column("out_of_scope_precision", "oos precision", ".1%", "out_of_scope_precision_ci95"),
    Column("in_scope_accuracy", "accuracy", ".1%", "in_scope_accuracy_ci95"),
    Column("accuracy_without_rejection", "if none rejected", ".1%", "accuracy_without_rejection_ci95"),
)
NARROW = tuple(column for column in COLUMNS if column.key not in ("draws", "chosen", "in_scope_recall"))


@dataclass(frozen=True)
class ScopeCell:
    """How one classifier rejects by each score: fitted on one draw of one task, calibrated in one way."""

    task: str
    pruning: str
    shots: int
    seed: int
    calibration: str
    scores: list[RejectionRow]

    def of(self, score: str) -> RejectionRow:
        """The row of a score; for "auto", of the score that it takes."""
        return next(row for row in self.scores if (row["chosen"] if score == AUTO else row["score"] == score))


@dataclass(frozen=True)
class ScopeRow:
    """The cells of a task, a number of shots, a policy, a calibration and a score; or the mean of such rows over tasks.

    Attributes:
        score: of "auto", what it took, with "/" between them where that is not the same in all draws.
        chosen: the share of the draws in which "auto" takes the score.
        measures: by the names of `MEASURES`, see `RejectionRow`; over the draws in which they are defined, None where
            there are none.
    """

    task: str
    shots: int
    pruning: str
    calibration: str
    score: str
    draws: int
    chosen: float
    measures: Mapping[str, Interval | None]

    def to_dict(self) -> dict[str, Any]:
        """Flat, with the keys of `COLUMNS`; "..._ci95" is half the width of the 95% confidence interval, or None."""
        return {name: value for name, value in vars(self).items() if name != "measures"} | flat(self.measures)


@dataclass(frozen=True)
class ScopeEvaluation:
    """What `evaluate_scope` found.

    Attributes:
        rows: one per task, shots, policy, calibration and score; then, of several tasks, their means.
        cells: what the rows are means of.
        from_journal, computed: how many classifiers were taken from the journal, and how many were not there.
    """

    rows: list[ScopeRow]
    cells: list[ScopeCell]
    from_journal: int
    computed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return vars(self) | {"rows": self.table(), "cells": [vars(cell) for cell in self.cells]}

    def table(self) -> list[dict[str, Any]]:
        """The rows, for `COLUMNS`."""
        return [row.to_dict() for row in self.rows]

    def tables(self) -> list[Table]:
        """The table."""
        return [Table("out-of-scope", COLUMNS, NARROW, self.table())]


def with_out_of_scope(tasks: Iterable[Task]) -> tuple[list[Task], list[str]]:
    """The tasks that have texts out of scope to test with, and a note for each that has none.

    Raises:
        InputError: no task has any.
    """
    tasks = list(tasks)
    able = [task for task in tasks if _outside(task)]
    if not able:
        raise InputError(
            f"{', '.join(task.name for task in tasks) or 'no task'}: no texts out of scope to test with; wanted some, "
            "in oos_test.csv or labelled 'oos' in test.csv; add them, or evaluate without"
        )
    left = [task.name for task in tasks if task not in able]
    return able, [f"{name}: no texts out of scope to test with, so only in the first table" for name in left]


def evaluate_scope(
    encoder: SentenceEncoder,
    tasks: Iterable[Task],
    shots: Iterable[int],
    seeds: Iterable[int],
    policies: Mapping[str, PruningPolicy | None] | None = None,
    journal: Journal | None = None,
    progress: bool = False,
    C: float = 10.0,
    label_names: bool = True,
    all_scores: bool = False,
) -> ScopeEvaluation:
    """Fit, calibrate and test rejection on every task, with every policy, number of shots and draw.

    Each classifier is calibrated from its own examples alone, and where the task has texts out of scope in "train" a
    second time with them. All draws of a task share one embedding of each text under each policy.

    Args:
        encoder, shots, seeds, policies, journal, progress, C, label_names: as of
            `minitrans.evaluation.few_shot.evaluate`; one journal serves both.
        tasks: those without texts out of scope to test with take no part.
        all_scores: a row for every score in place of the one that "auto" takes.

    Raises as `evaluate`, and InputError where no task has texts out of scope to test with.
    """
    able, _ = with_out_of_scope(tasks)
    plan = Plan(encoder, able, shots, seeds, policies, journal, C, label_names)
    cells: list[ScopeCell] = []
    total = 0
    bar = Progress(sum(map(len, plan.draws.values())) * len(plan.policies), progress, unit=" cells")
    with bar:
        for task in plan.tasks:
            outside, beyond = _outside(task), task.out_of_scope.get("train", [])
            calibrations = {WITHOUT: None} | ({WITH: beyond} if beyond else {})
            compute = partial(_measured, outside=outside, calibrations=calibrations)
            others = [*outside, *beyond]
            for name, policy in plan.policies.items():
                values = plan.results("scope", task, policy, compute, bar, others)
                total += len(values)
                for (count, seed), value in values.items():
                    for calibration, scores in _stored(value, calibrations).items():
                        cells.append(ScopeCell(task.name, name, count, seed, calibration, scores))
    rows = _rows(cells, tuple(SCORES) if all_scores else (AUTO,))
    return ScopeEvaluation(rows, cells, plan.from_journal, total - plan.from_journal)


def measure_rejection(
    classifier: FewShotClassifier,
    inside: ArrayLike,
    test_labels: Sequence[Label],
    outside: ArrayLike,
    calibrations: Mapping[str, ArrayLike | None],
    keep: float | None = None,
) -> dict[str, list[RejectionRow]]:
    """Calibrate each score as is asked for, and measure it on a test set.

    Args:
        classifier: fitted; its own calibration is neither used nor changed.
        inside, test_labels: test texts in scope, as embeddings `[B, H]`, and their labels.
        outside: test texts of no class, as embeddings.
        calibrations: ways to calibrate, by name: with the embeddings of other texts of no class, or None for none.
        keep: see `FewShotClassifier.calibrate_rejection`.

    Returns:
        By the name of the calibration, one row for each of `SCORES`, in their order.

    Raises as `calibrate_rejection` does.
    """
    names = classifier.name_embeddings_
    held_out = cross_fit(classifier.embeddings_, classifier.codes_, names, C=classifier.C)
    scores_in, scores_out = (_in_scope(classifier, rows) for rows in (inside, outside))
    p = classifier.predict_proba_embeddings(inside)  # [B, K]
    right = classifier.classes_[p.argmax(axis=1)] == label_array(test_labels, len(p))  # [B]
    measured: dict[str, list[RejectionRow]] = {}
    for calibration, rows in calibrations.items():
        measured[calibration] = []
        beyond = None if rows is None else _in_scope(classifier, rows)
        chosen = calibrate(held_out, beyond, abstention="", keep=keep).score
        for name in SCORES:
            threshold = calibrate(held_out, beyond, abstention="", score=name, keep=keep).threshold
            rejected_in, rejected_out = scores_in[name] < threshold, scores_out[name] < threshold
            rejected = int(rejected_in.sum() + rejected_out.sum())
            measured[calibration].append(
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
    return measured


def _in_scope(classifier: FewShotClassifier, rows: ArrayLike) -> dict[str, NDArray[np.float64]]:
    return {name: classifier.score_in_scope_embeddings(rows, name) for name in SCORES}


def _outside(task: Task) -> Sequence[str]:
    """Texts out of scope to test with; those of a single file without splits have no other use."""
    return task.out_of_scope.get("test") or task.out_of_scope.get("all") or []


def _measured(
    classifier: FewShotClassifier,
    few: Draw,
    rows_of: Lookup,
    outside: Sequence[str],
    calibrations: Mapping[str, Sequence[str] | None],
) -> dict[str, Any]:
    rows = {name: None if texts is None else rows_of(texts) for name, texts in calibrations.items()}
    return {**measure_rejection(classifier, rows_of(few.test.texts), few.test.labels, rows_of(outside), rows)}


def _stored(value: Mapping[str, Any], calibrations: Iterable[str]) -> dict[str, list[RejectionRow]]:
    """The rows that a journal holds. InputError if it holds something else: anybody may have written the file."""
    for name in calibrations:
        rows = value[name] if isinstance(value.get(name), list) else []
        good = [row["score"] for row in rows if _is_row(row)] == [*SCORES] and sum(row["chosen"] for row in rows) == 1
        if set(value) != set(calibrations) or not good:
            raise foreign_result(value, f"for {' and '.join(calibrations)} what {', '.join(SCORES)} achieve")
    return {name: value[name] for name in calibrations}


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or set(row) != {*MEASURES, "score", "chosen", "threshold"}:
        return False
    shares = [row[name] for name in MEASURES if row[name] is not None or name != "out_of_scope_precision"]
    in_range = all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares)
    return in_range and isinstance(row["chosen"], bool) and isinstance(row["threshold"], int | float)


def _rows(cells: Sequence[ScopeCell], scores: Sequence[str]) -> list[ScopeRow]:
    rows = by_row(cells, lambda cell: (cell.task, cell.shots, cell.pruning, cell.calibration))
    return [_row(members, task, score) for task, members in rows for score in scores]


def _row(members: Sequence[Sequence[ScopeCell]], task: str, score: str) -> ScopeRow:
    """The row of some cells, which stand in the order of their draws; with several tasks, draw i is their mean."""
    draws = [[cell.of(score) for cell in cells] for cells in zip(*members, strict=True)]
    seen = [row for rows in draws for row in rows]
    taken = [name for name in SCORES if any(row["score"] == name for row in seen)]
    measures: dict[str, Interval | None] = {}
    for name in MEASURES:
        values = [[row[name] for row in rows] for rows in draws]
        means = [math.fsum(each) / len(each) for each in values if None not in each]
        measures[name] = confidence_interval(means) if means else None
    chosen = sum(row["chosen"] for row in seen) / len(seen)
    one = members[0][0]
    return ScopeRow(task, one.shots, one.pruning, one.calibration, "/".join(taken), len(draws), chosen, measures)
