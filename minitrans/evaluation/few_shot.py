"""Few-shot evaluation: tasks x pruning policies x shots x draws, with a journal to go on from after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans import __version__
from minitrans.data.tasks import Draw, Task, draw, leakage
from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import InputError
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.measurement import Cost, measure
from minitrans.evaluation.metrics import Interval, accuracy, confidence_interval, macro_scores
from minitrans.evaluation.tables import Column
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.sentences.call import measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder

Float32 = NDArray[np.float32]
Pair = tuple[int, int]  # shots, seed
Lookup = Callable[[Sequence[str]], Float32]
T = TypeVar("T")

NO_PRUNING = "none"
MEAN = "(mean)"
SCORES = ("accuracy", "precision", "recall", "f1")

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
)
NARROW = tuple(column for column in COLUMNS if column.key not in ("precision", "recall"))  # for a terminal


@dataclass(frozen=True)
class Cell:
    """One classifier: fitted on one draw of one task under one policy, and tested."""

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
    """The cells of a task, a number of shots and a policy, over the draws; or the mean of such rows over tasks."""

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

    def to_dict(self) -> dict[str, Any]:
        """Flat, with the keys of `COLUMNS`; "..._ci95" is half the width of the 95% confidence interval, or None."""
        values: dict[str, Any] = {"task": self.task, "shots": self.shots, "pruning": self.pruning, "draws": self.draws}
        for name in (*SCORES, "accuracy_change"):
            interval: Interval | None = getattr(self, name)
            values[name] = None if interval is None else interval.mean
            values[f"{name}_ci95"] = None if interval is None else interval.half_width
        peak = self.cost.peak_memory
        return values | {
            "microseconds_per_text": self.cost.microseconds_per_text,
            "time_ratio": self.cost.time_ratio,
            "tokens_kept": self.cost.tokens_kept,
            "peak_memory_mb": None if peak is None else peak / 1e6,
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
        return {
            "minitrans": __version__,
            "encoder": dict(self.encoder),
            "settings": dict(self.settings),
            "rows": [row.to_dict() for row in self.rows],
            "cells": [asdict(cell) for cell in self.cells],
            "from_journal": self.from_journal,
            "computed": self.computed,
        }

    def to_json(self) -> str:
        """`to_dict` as text, ending in a line end."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def table(self) -> list[dict[str, Any]]:
        """The rows, for `COLUMNS`."""
        return [row.to_dict() for row in self.rows]


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
    tasks, policies, draws = prepare(tasks, shots, seeds, policies or {})
    journal = Journal(None) if journal is None else journal
    cells_per_policy = len(draws[tasks[0].name])

    cells: list[Cell] = []
    costs: dict[tuple[str, str], Cost] = {}
    from_journal = 0
    with bar(len(tasks) * len(policies) * (cells_per_policy + 1), progress) as update:
        for task in tasks:
            key = {**_identity(encoder), "task": task.digest}
            for name, cost in _costs(encoder, task, policies, key, journal).items():
                costs[task.name, name] = cost
                update(1)
            for name, policy in policies.items():
                values, found = finish(
                    "evaluation", encoder, task, policy, draws[task.name], journal, _scores, C, label_names, update
                )
                from_journal += found
                for (shot, seed), value in values.items():
                    named = {"task": task.name, "pruning": name, "shots": shot, "seed": seed}
                    cells.append(_stored(Cell, named, value))
    settings = {
        "C": float(C),
        "label_names": bool(label_names),
        "policies": {name: None if policy is None else policy.to_dict() for name, policy in policies.items()},
        "tasks": {task.name: {"source": task.source, "sha256": task.digest} for task in tasks},
    }
    return Evaluation(encoder.info(), settings, _rows(cells, costs), cells, from_journal, len(cells) - from_journal)


def notes(tasks: Iterable[Task], shots: Iterable[int], seeds: Iterable[int]) -> list[str]:
    """What to know of the data behind an evaluation, a line each: leakage, classes left out, classes never learnt.

    Raises as `minitrans.data.tasks.draw` does.
    """
    lines = []
    plan = _plan(shots, seeds)
    for task in tasks:
        if leaks := leakage(task):
            lines.append(
                f"{task.name}: {len(leaks)} of {len(task.splits['test'].texts)} test texts are in train too, "
                f"{sum(not leak.agrees for leak in leaks)} of them under another label; for example "
                f"{leaks[0].text!r:.80} ({_some([leaks[0].test_label])})"
            )
        draws = [draw(task, *pair) for pair in plan]
        if left_out := sorted({label for each in draws for label in each.left_out}):
            lines.append(f"{task.name}: left out, with too few texts to learn from and to test on: {_some(left_out)}")
        if unknown := sorted({label for each in draws for label in set(each.test.labels) - set(each.train.labels)}):
            lines.append(f"{task.name}: in the test but not in train, so never predicted: {_some(unknown)}")
    return lines


def _plan(shots: Iterable[int], seeds: Iterable[int]) -> list[Pair]:
    """(shots, seed) pairs, each once."""
    counts, numbers = list(dict.fromkeys(shots)), list(dict.fromkeys(seeds))
    if not counts or not numbers:
        raise InputError(f"shots are {counts} and seeds {numbers}, wanted at least one of each")
    return [(count, number) for count in counts for number in numbers]


def prepare(
    tasks: Iterable[Task], shots: Iterable[int], seeds: Iterable[int], policies: Mapping[str, PruningPolicy | None]
) -> tuple[list[Task], dict[str, PruningPolicy | None], dict[str, dict[Pair, Draw]]]:
    """The tasks, the policies with no pruning before them, and the draws by task and (shots, seed).

    Raises InputError as `evaluate`.
    """
    tasks, policies = list(tasks), _with_no_pruning(policies)
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise InputError(f"the tasks are {', '.join(names) or 'none'}, wanted at least one, each with its own name")
    plan = _plan(shots, seeds)
    return tasks, policies, {task.name: {pair: draw(task, *pair) for pair in plan} for task in tasks}


def finish(
    kind: str,
    encoder: SentenceEncoder,
    task: Task,
    policy: PruningPolicy | None,
    draws: Mapping[Pair, Draw],
    journal: Journal,
    compute: Callable[[FewShotClassifier, Draw, Lookup], dict[str, Any]],
    C: float,
    label_names: bool,
    update: Callable[[int], object],
    others: Iterable[str] = (),
) -> tuple[dict[Pair, dict[str, Any]], int]:
    """The results of a task under a policy for each draw, and how many of them the journal had.

    Args:
        kind: of results, for the journal.
        encoder, task, policy, draws: what is evaluated on what; None for no pruning.
        journal: what it lacks is computed, and put there at once.
        compute: the result for a fitted classifier, its draw, and what gives the embeddings of texts.
        C, label_names: of the classifier.
        update: told of each result.
        others: texts that `compute` needs beside those of the draw.
    """
    key = {**_identity(encoder), "task": task.digest, "kind": kind, "C": float(C), "label_names": bool(label_names)}
    keys = {pair: key | _policy_key(policy) | {"shots": pair[0], "seed": pair[1]} for pair in draws}
    values = {pair: value for pair in draws if (value := journal.get(keys[pair])) is not None}
    pending = [pair for pair in draws if pair not in values]
    rows_of = _embedded(encoder, policy, [draws[pair] for pair in pending], label_names, others) if pending else None
    finished = {}
    for pair, few in draws.items():
        if rows_of is not None and pair not in values:
            names = rows_of(few.class_names) if label_names else None
            classifier = FewShotClassifier(C=C, label_names=label_names)
            classifier.fit_embeddings(rows_of(few.train.texts), few.train.labels, names)
            values[pair] = compute(classifier, few, rows_of)
            journal.put(keys[pair], values[pair])
        finished[pair] = values[pair]
        update(1)
    return finished, len(draws) - len(pending)


def _with_no_pruning(policies: Mapping[str, PruningPolicy | None]) -> dict[str, PruningPolicy | None]:
    if policies.get(NO_PRUNING) is not None:
        raise InputError(f"the policy {NO_PRUNING!r} prunes, wanted another name: this one is for no pruning")
    return {NO_PRUNING: None} | dict(policies)


def _identity(encoder: SentenceEncoder) -> dict[str, Any]:
    """All of an encoder that an embedding depends on."""
    return {
        "minitrans": __version__,
        "encoder": encoder.identity.sha256,
        "backend": encoder.backend,
    }


def _policy_key(policy: PruningPolicy | None) -> dict[str, Any]:
    """All of a policy but where it came from."""
    values = None if policy is None else {**policy.to_dict(), "provenance": None}
    return {"policy": values}


def _costs(
    encoder: SentenceEncoder,
    task: Task,
    policies: Mapping[str, PruningPolicy | None],
    key: Mapping[str, Any],
    journal: Journal,
) -> dict[str, Cost]:
    """Of embedding the test split. What the journal lacks is measured in turn with no pruning."""
    key = {**key, "kind": "cost", "threads": encoder.threads}
    keys = {name: key | _policy_key(policy) for name, policy in policies.items()}
    pending = {name: policy for name, policy in policies.items() if journal.get(keys[name]) is None}
    if pending:
        texts = next(task.splits[split].texts for split in ("test", "train", "all") if split in task.splits)
        for name, cost in measure(encoder, texts, {NO_PRUNING: None} | pending).items():
            if name in pending:
                journal.put(keys[name], asdict(cost))
    return {name: _stored(Cost, {}, journal.get(keys[name]) or {}) for name in policies}


@measuring()
def _embedded(
    encoder: SentenceEncoder,
    policy: PruningPolicy | None,
    draws: Sequence[Draw],
    label_names: bool,
    others: Iterable[str] = (),
) -> Lookup:
    """Embed every text of the draws, and others, once; the function gives the embeddings `[B, H]` of any of them."""
    place: dict[str, int] = {}
    for each in draws:
        for text in (*each.train.texts, *each.test.texts, *(each.class_names if label_names else [])):
            place.setdefault(text, len(place))
    for text in others:
        place.setdefault(text, len(place))
    vectors = encoder.encode(list(place), pruning=policy, show_progress_bar=False)  # [B', H]
    return lambda texts: vectors[[place[text] for text in texts]]


def _scores(classifier: FewShotClassifier, examples: Draw, rows_of: Lookup) -> dict[str, Any]:
    test = examples.test
    predicted = [str(label) for label in classifier.predict_embeddings(rows_of(test.texts))]
    return {
        "accuracy": accuracy(test.labels, predicted),
        **asdict(macro_scores(test.labels, predicted)),
        "train_examples": len(examples.train.texts),
        "test_examples": len(test.texts),
    }


def _rows(cells: Sequence[Cell], costs: Mapping[tuple[str, str], Cost]) -> list[Row]:
    """One per task, shots and policy; then, of several tasks, the means over them."""
    groups: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task, cell.shots, cell.pruning), []).append(cell)
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    counts = list(dict.fromkeys(cell.shots for cell in cells))
    policies = list(dict.fromkeys(cell.pruning for cell in cells))

    def row(task: str, members: Sequence[str], count: int, name: str) -> Row:
        def scores(score: str, policy: str = name) -> list[float]:
            """Draw by draw; of several tasks, draw i is the mean of their draws i."""
            draws = zip(*(groups[member, count, policy] for member in members), strict=True)
            return [math.fsum(getattr(cell, score) for cell in each) / len(members) for each in draws]

        change = None
        if name != NO_PRUNING:
            pairs = zip(scores("accuracy"), scores("accuracy", NO_PRUNING), strict=True)
            change = confidence_interval([pruned - unpruned for pruned, unpruned in pairs])
        intervals = {score: confidence_interval(scores(score)) for score in SCORES}
        cost = _mean_cost([costs[member, name] for member in members])
        draws = len(groups[members[0], count, name])
        return Row(task, count, name, draws, accuracy_change=change, cost=cost, **intervals)

    wanted = [(task, [task]) for task in tasks] + ([(MEAN, tasks)] if len(tasks) > 1 else [])
    return [row(task, members, count, name) for task, members in wanted for count in counts for name in policies]


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
    """A record of what a journal holds: anybody may have written that."""
    wanted = {field.name for field in fields(kind)} - set(named)  # type: ignore[arg-type]
    numbers = all(
        (isinstance(x, int | float) and (x > 0 or (x == 0 and name != "time_ratio")))
        or (x is None and name == "peak_memory")
        for name, x in value.items()
    )
    if set(value) != wanted or not numbers:
        raise foreign_result(value, f"numbers from 0 on for {', '.join(sorted(wanted))}")
    return kind(**named, **value)


def foreign_result(value: Mapping[str, Any], wanted: str) -> InputError:
    """For a journal that holds another result than this module's."""
    return InputError(f"the journal holds {dict(value)!r:.200}, wanted {wanted}; start a new one")


def _some(labels: Sequence[str]) -> str:
    # Labels come from a file: no control characters to a terminal.
    shown = [label if label.isprintable() else repr(label) for label in labels[:5]]
    return ", ".join(shown) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


@contextmanager
def bar(total: int, wanted: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar of cells on standard error, if wanted: the function moves it on."""
    if not wanted:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=" cells") as bar:
        yield bar.update
