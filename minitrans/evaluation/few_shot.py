"""Few-shot evaluation of pruning policies: classifiers for every task, policy, number of shots and draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter, sub
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans import __version__
from minitrans.data.tasks import Draw, Task, draw, leakage
from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import InputError
from minitrans.evaluation.fidelity import COUNT_COLUMNS, LENGTH_COLUMNS, Fidelity, mean_fidelity, measure_fidelity
from minitrans.evaluation.journal import Journal, foreign_result
from minitrans.evaluation.measurement import Cost, embedding_costs
from minitrans.evaluation.metrics import Interval, MacroMetrics, accuracy, confidence_interval, flat, macro_metrics
from minitrans.evaluation.tables import Column, Table
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.sentences.call import Progress, measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder
from minitrans.words import some

Float32 = NDArray[np.float32]
Pair = tuple[int, int]  # shots, seed
Lookup = Callable[[Sequence[str]], Float32]
T = TypeVar("T")

NO_PRUNING = "none"
MEAN = "(mean)"
METRICS = ("accuracy", *(field.name for field in fields(MacroMetrics)))

COLUMNS = (
    Column("task", "task"),
    Column("shots", "shots"),
    Column("pruning", "pruning"),
    Column("draws", "draws"),
    Column("accuracy", "accuracy", ".1%", "accuracy_ci95"),
    Column("accuracy_change", "vs none", "+.1%", "accuracy_change_ci95"),
    Column("precision", "precision", ".1%", "precision_ci95"),
    Column("recall", "recall", ".1%", "recall_ci95"),
    Column("f1", "macro F1", ".1%", "f1_ci95"),
    Column("microseconds_per_text", "µs/text", ".0f"),
    Column("time_ratio", "time/none", ".2f"),
    Column("tokens_kept", "tokens kept", ".1%"),
    Column("peak_memory_mb", "peak MB", ".0f"),
    Column("turn", "turn °", ".1f"),
    Column("turn_p95", "95% °", ".1f"),
    Column("similarity", "similarity", ".3f"),
)
WIDE = ("precision", "recall", "peak_memory_mb", "turn_p95")  # in files only: a terminal has no room for them
NARROW = tuple(column for column in COLUMNS if column.key not in WIDE)


@dataclass(frozen=True)
class Cell:
    """How one classifier did: fitted on one draw of one task, embedded under one policy, and tested."""

    task: str
    pruning: str
    shots: int
    seed: int
    accuracy: float
    precision: float  # these three are macro means
    recall: float
    f1: float
    train_examples: int
    test_examples: int


@dataclass(frozen=True)
class Row:
    """Means over the draws of a task, a number of shots and a policy; or, over several tasks, the mean of such rows."""

    task: str
    shots: int
    pruning: str
    draws: int
    accuracy: Interval
    precision: Interval
    recall: Interval
    f1: Interval
    accuracy_change: Interval | None  # to no pruning, draw by draw; None for no pruning itself
    cost: Cost
    fidelity: Fidelity | None  # None for no pruning

    def to_dict(self) -> dict[str, Any]:
        """Flat, with the keys of `COLUMNS`; "..._ci95" is half the width of the 95% confidence interval, or None."""
        peak = self.cost.peak_memory
        return {
            **{name: getattr(self, name) for name in ("task", "shots", "pruning", "draws")},
            **flat({name: getattr(self, name) for name in (*METRICS, "accuracy_change")}),
            "microseconds_per_text": self.cost.microseconds_per_text,
            "time_ratio": self.cost.time_ratio,
            "tokens_kept": self.cost.tokens_kept,
            "peak_memory_mb": None if peak is None else peak / 1e6,
            **{name: getattr(self.fidelity, name, None) for name in ("turn", "turn_p95", "similarity")},
        }


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        encoder: what ran, as of ``SentenceEncoder.info``.
        settings: C, label_names, the policies by name, the digests of the tasks.
        rows: one per task, shots and policy; then, of several tasks, their means.
        cells: what the rows are means of.
        from_journal, computed: how many cells were taken from the journal, and how many were not there.
    """

    encoder: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: list[Row]
    cells: list[Cell]
    from_journal: int
    computed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        cells = [asdict(cell) for cell in self.cells]
        found = {"rows": self.table(), "turn_by_length": self.turn_by_length(), "cells": cells}
        return {"minitrans": __version__, **vars(self), **found}

    def table(self) -> list[dict[str, Any]]:
        """The rows, for `COLUMNS`."""
        return [row.to_dict() for row in self.rows]

    def turn_by_length(self) -> list[dict[str, Any]]:
        """By task and policy, which the number of shots has no part in: rows for `LENGTH_COLUMNS` of `fidelity`."""
        found = {(row.task, row.pruning): row.fidelity for row in self.rows if row.fidelity is not None}
        return [{"task": task, "pruning": name, **each.by_length()} for (task, name), each in found.items()]

    def tables(self) -> list[Table]:
        """The table, and where the texts of a task have several lengths a second one, of the turn by length."""
        tables = [Table("", COLUMNS, NARROW, self.table())]
        if any(row.fidelity is not None and len(row.fidelity.lengths) > 1 for row in self.rows):
            rows = self.turn_by_length()
            narrow = [each for each in LENGTH_COLUMNS if any(each.key in row for row in rows)]
            tables.append(Table("turn-by-length", (*LENGTH_COLUMNS, *COUNT_COLUMNS), narrow, rows))
        return tables


def evaluate(
    encoder: SentenceEncoder,
    tasks: Iterable[Task],
    shots: Iterable[int],
    seeds: Iterable[int],
    policies: Mapping[str, PruningPolicy | None] | None = None,
    journal: Journal | None = None,
    progress: bool = False,
    C: float = 10.0,
    label_names: bool = True,
) -> Evaluation:
    """Fit and test few-shot classifiers on every task, with every policy, number of shots and draw.

    What stands in the journal is not computed again; what is computed is put there at once, so that an interrupted
    evaluation goes on where it was. All draws of a task share one embedding of each text under each policy. Texts out
    of scope take no part.

    Args:
        encoder: its own pruning is not used.
        tasks: with different names.
        shots: examples per class.
        seeds: of the draws; see `minitrans.data.tasks.draw`.
        policies: by name. "none", no pruning, is always evaluated too: the time ratios refer to it.
        journal: None keeps nothing.
        progress: show a bar on standard error.
        C, label_names: of the classifier.

    Raises:
        InputError: nothing to evaluate, two tasks of one name, a policy "none" that prunes, a journal whose results
            cannot be read, or as `draw` does.
        PolicyError: a policy does not fit the model.
    """
    plan = Plan(encoder, tasks, shots, seeds, policies, journal, C, label_names)
    cells: list[Cell] = []
    costs: dict[tuple[str, str], Cost] = {}
    turned: dict[tuple[str, str], Fidelity | None] = {}
    total = sum(len(draws) + 2 for draws in plan.draws.values()) * len(plan.policies)
    with (bar := Progress(total, progress, unit=" cells")):
        for task in plan.tasks:
            for name, cost in _costs(plan, task).items():
                costs[task.name, name] = cost
                bar.update(1)
            for name, fidelity in _fidelities(plan, task).items():
                turned[task.name, name] = fidelity
                bar.update(1)
            for name, policy in plan.policies.items():
                for (shot, seed), value in plan.results("evaluation", task, policy, _metrics, bar).items():
                    named = {"task": task.name, "pruning": name, "shots": shot, "seed": seed}
                    cells.append(_stored(Cell, named, value))
    settings = {
        "C": plan.C,
        "label_names": plan.label_names,
        "policies": {name: None if policy is None else policy.to_dict() for name, policy in plan.policies.items()},
        "tasks": {task.name: {"source": task.source, "sha256": task.digest} for task in plan.tasks},
    }
    computed = len(cells) - plan.from_journal
    return Evaluation(encoder.info(), settings, _rows(cells, costs, turned), cells, plan.from_journal, computed)


def notes(tasks: Iterable[Task], shots: Iterable[int], seeds: Iterable[int]) -> list[str]:
    """What to know of the data behind an evaluation, a line each: leakage, classes left out, classes never learnt.

    Raises as `minitrans.data.tasks.draw` does.
    """
    lines = []
    pairs = _pairs(shots, seeds)
    for task in tasks:
        if leaks := leakage(task):
            lines.append(
                f"{task.name}: {len(leaks)} of {len(task.splits['test'].texts)} test texts are in train too, "
                f"{sum(not leak.agrees for leak in leaks)} of them under another label; for example "
                f"{leaks[0].text!r:.80} ({some([leaks[0].test_label])})"
            )
        draws = [draw(task, *pair) for pair in pairs]
        if left_out := sorted({label for each in draws for label in each.left_out}):
            lines.append(f"{task.name}: left out, with too few texts to learn from and to test on: {some(left_out)}")
        if unknown := sorted({label for each in draws for label in set(each.test.labels) - set(each.train.labels)}):
            lines.append(f"{task.name}: in the test but not in train, so never predicted: {some(unknown)}")
    return lines


def _pairs(shots: Iterable[int], seeds: Iterable[int]) -> list[Pair]:
    """(shots, seed) pairs, each once."""
    counts, numbers = list(dict.fromkeys(shots)), list(dict.fromkeys(seeds))
    if not counts or not numbers:
        raise InputError(f"shots are {counts} and seeds {numbers}, wanted at least one of each")
    return [(count, number) for count in counts for number in numbers]


def result_key(encoder: SentenceEncoder, kind: str, digest: str, policy: PruningPolicy | None) -> dict[str, Any]:
    """The key of a result in the journal: all that it depends on, but for what the caller adds.

    Args:
        encoder, policy: what runs; None for no pruning.
        kind: of result.
        digest: of the task.
    """
    return {
        "minitrans": __version__,
        "encoder": encoder.identity.sha256,
        "backend": encoder.backend,
        "task": digest,
        "kind": kind,
        "policy": None if policy is None else {**policy.to_dict(), "provenance": None},
    }


def with_no_pruning(policies: Mapping[str, PruningPolicy | None] | None) -> dict[str, PruningPolicy | None]:
    """The policies by name, "none" before all others. InputError where that one prunes."""
    found = {NO_PRUNING: None, **(policies or {})}
    if found[NO_PRUNING] is not None:
        raise InputError(f"the policy {NO_PRUNING!r} prunes, wanted another name: this one is for no pruning")
    return found


def check_names(names: Sequence[str]) -> None:
    """InputError unless there are tasks, each with its own name."""
    if not names or len(set(names)) < len(names):
        raise InputError(f"the tasks are {', '.join(names) or 'none'}, wanted at least one, each with its own name")


class Plan:
    """The arguments of `evaluate`, checked, which `evaluate_scope` takes too. Raises InputError as `evaluate` does.

    Attributes:
        policies: by name; no pruning before all others.
        draws: by the name of the task, then by (shots, seed).
        from_journal: how many results the journal had so far; what it lacks is computed, and put there at once.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        tasks: Iterable[Task],
        shots: Iterable[int],
        seeds: Iterable[int],
        policies: Mapping[str, PruningPolicy | None] | None,
        journal: Journal | None,
        C: float,
        label_names: bool,
    ) -> None:
        self.encoder, self.tasks, pairs = encoder, list(tasks), _pairs(shots, seeds)
        self.policies = with_no_pruning(policies)
        check_names([task.name for task in self.tasks])
        self.draws = {task.name: {pair: draw(task, *pair) for pair in pairs} for task in self.tasks}
        self.journal = Journal(None) if journal is None else journal
        self.from_journal = 0
        self.C, self.label_names = float(C), bool(label_names)

    def key(self, kind: str, task: Task, policy: PruningPolicy | None) -> dict[str, Any]:
        """The key of a result in the journal: all that it depends on, but for what the caller adds."""
        return result_key(self.encoder, kind, task.digest, policy)

    def results(
        self,
        kind: str,
        task: Task,
        policy: PruningPolicy | None,
        compute: Callable[[FewShotClassifier, Draw, Lookup], dict[str, Any]],
        bar: Progress,
        others: Iterable[str] = (),
    ) -> dict[Pair, dict[str, Any]]:
        """The results of a task under a policy for each draw.

        Args:
            kind: of results, for the journal.
            task, policy: what is evaluated on what; None for no pruning.
            compute: the result for a fitted classifier, its draw, and what gives the embeddings of texts.
            bar: is told of each result.
            others: texts that `compute` needs besides those of the draw.
        """
        draws = self.draws[task.name]
        key = self.key(kind, task, policy) | {"C": self.C, "label_names": self.label_names}
        keys = {(shots, seed): key | {"shots": shots, "seed": seed} for shots, seed in draws}
        stored = {pair: value for pair in draws if (value := self.journal.get(keys[pair])) is not None}
        pending = [few for pair, few in draws.items() if pair not in stored]
        rows_of = self._embedded(policy, pending, others) if pending else None
        found = {}
        for pair, few in draws.items():
            if rows_of is None or pair in stored:
                found[pair] = stored[pair]
            else:
                names = rows_of(few.class_names) if self.label_names else None
                classifier = FewShotClassifier(C=self.C, label_names=self.label_names)
                classifier.fit_embeddings(rows_of(few.train.texts), few.train.labels, names)
                found[pair] = compute(classifier, few, rows_of)
                self.journal.put(keys[pair], found[pair])
            bar.update(1)
        self.from_journal += len(stored)
        return found

    @measuring()
    def _embedded(self, policy: PruningPolicy | None, draws: Sequence[Draw], others: Iterable[str]) -> Lookup:
        """Embed every text of the draws, and the others, once; the function gives `[B, H]` for any of them."""
        texts: dict[str, None] = {}  # in order, each once
        for few in draws:
            texts |= dict.fromkeys((*few.train.texts, *few.test.texts, *(few.class_names if self.label_names else ())))
        texts |= dict.fromkeys(others)
        vectors = self.encoder.encode(list(texts), pruning=policy, show_progress_bar=False)  # [B', H]
        place = {text: row for row, text in enumerate(texts)}
        return lambda wanted: vectors[[place[text] for text in wanted]]


def _costs(plan: Plan, task: Task) -> dict[str, Cost]:
    """What it costs to embed the test split, by policy. What the journal lacks is measured in turn with no pruning."""
    keys = {
        name: plan.key("cost", task, policy) | {"threads": plan.encoder.threads}
        for name, policy in plan.policies.items()
    }
    pending = {name: policy for name, policy in plan.policies.items() if plan.journal.get(keys[name]) is None}
    if pending:
        for name, cost in embedding_costs(plan.encoder, _measured_on(task), {NO_PRUNING: None} | pending).items():
            if name in pending:
                plan.journal.put(keys[name], asdict(cost))
    return {name: _stored(Cost, {}, plan.journal.get(key) or {}) for name, key in keys.items()}


def _fidelities(plan: Plan, task: Task) -> dict[str, Fidelity | None]:
    """How near the embeddings of the test split are to those without pruning, by policy; None for "none"."""
    policies = {name: policy for name, policy in plan.policies.items() if name != NO_PRUNING}
    keys = {name: plan.key("fidelity", task, policy) for name, policy in policies.items()}
    pending = {name: policy for name, policy in policies.items() if plan.journal.get(keys[name]) is None}
    if pending:
        for name, each in measure_fidelity(plan.encoder, _measured_on(task), pending).items():
            plan.journal.put(keys[name], each.to_dict())
    found = {name: Fidelity.from_dict(plan.journal.get(key) or {}) for name, key in keys.items()}
    return {NO_PRUNING: None, **found}


def _measured_on(task: Task) -> Sequence[str]:
    """The texts that costs and fidelity are measured on."""
    return next(task.splits[split].texts for split in ("test", "train", "all") if split in task.splits)


def _metrics(classifier: FewShotClassifier, examples: Draw, rows_of: Lookup) -> dict[str, Any]:
    test = examples.test
    predicted = [str(label) for label in classifier.predict_embeddings(rows_of(test.texts))]
    return {
        "accuracy": accuracy(test.labels, predicted),
        **asdict(macro_metrics(test.labels, predicted)),
        "train_examples": len(examples.train.texts),
        "test_examples": len(test.texts),
    }


def by_row(cells: Iterable[T], kind: Callable[[T], tuple[Any, ...]]) -> list[tuple[str, list[list[T]]]]:
    """The cells of each row of a table: by task, then by shots; then, of several tasks, of the means over them.

    Args:
        cells: those of one row stand in the order of their draws.
        kind: of a cell its task, its shots, and whatever else tells rows apart.

    Returns:
        For each row the task, and one list of cells. Rows of means, for each kind that all tasks have, are named `MEAN`
        and have a list for each task.
    """
    groups: dict[str, dict[tuple[Any, ...], list[T]]] = {}
    kinds = [(cell, *kind(cell)) for cell in cells]
    counts = list(dict.fromkeys(shots for _, _, shots, *_ in kinds))
    for cell, task, *key in sorted(kinds, key=lambda each: counts.index(each[2])):  # stable
        groups.setdefault(task, {}).setdefault(tuple(key), []).append(cell)
    rows = [(task, [members]) for task, group in groups.items() for members in group.values()]
    if len(groups) > 1:
        shared = [key for key in next(iter(groups.values())) if all(key in group for group in groups.values())]
        rows += [(MEAN, [group[key] for group in groups.values()]) for key in shared]
    return rows


def _by_draw(members: Sequence[Sequence[T]], value: Callable[[T], float]) -> list[float]:
    """A value of each draw of a row as of `by_row`; with several tasks, draw i is the mean of their draws i."""
    return [math.fsum(map(value, cells)) / len(cells) for cells in zip(*members, strict=True)]


def _rows(
    cells: Sequence[Cell],
    costs: Mapping[tuple[str, str], Cost],
    fidelities: Mapping[tuple[str, str], Fidelity | None],
) -> list[Row]:
    """One per task, shots and policy; then, of several tasks, the means over them."""
    unpruned = {(cell.task, cell.shots, cell.seed): cell.accuracy for cell in cells if cell.pruning == NO_PRUNING}
    rows = []
    for task, members in by_row(cells, lambda cell: (cell.task, cell.shots, cell.pruning)):
        by_draw = {metric: _by_draw(members, attrgetter(metric)) for metric in METRICS}
        change, first = None, members[0][0]
        if first.pruning != NO_PRUNING:
            base = _by_draw(members, lambda cell: unpruned[cell.task, cell.shots, cell.seed])
            change = confidence_interval(list(map(sub, by_draw["accuracy"], base)))
        intervals = {metric: confidence_interval(values) for metric, values in by_draw.items()}
        cost = _mean_cost([costs[group[0].task, first.pruning] for group in members])
        near = [each for group in members if (each := fidelities[group[0].task, first.pruning]) is not None]
        fidelity = mean_fidelity(near) if near else None
        row = Row(
            task,
            first.shots,
            first.pruning,
            len(members[0]),
            accuracy_change=change,
            cost=cost,
            fidelity=fidelity,
            **intervals,
        )
        rows.append(row)
    return rows


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    """Mean time and share of tokens, geometric mean of the ratios, the highest peak."""
    count = len(costs)
    peaks = [cost.peak_memory for cost in costs if cost.peak_memory is not None]
    return Cost(
        math.fsum(cost.microseconds_per_text for cost in costs) / count,
        math.exp(math.fsum(math.log(cost.time_ratio) for cost in costs) / count),
        math.fsum(cost.tokens_kept for cost in costs) / count,
        max(peaks, default=None),
    )


def _stored(kind: Callable[..., T], named: Mapping[str, Any], value: Mapping[str, Any]) -> T:
    """The record that a journal holds. InputError if it is none: anybody may have written the file."""
    wanted = {field.name for field in fields(kind)} - set(named)  # type: ignore[arg-type]
    numbers = all(
        (isinstance(x, int | float) and (x > 0 or (x == 0 and name != "time_ratio")))
        or (x is None and name == "peak_memory")
        for name, x in value.items()
    )
    if set(value) != wanted or not numbers:
        raise foreign_result(value, f"numbers from 0 on for {', '.join(sorted(wanted))}")
    return kind(**named, **value)
