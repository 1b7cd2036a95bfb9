"""Texts, labelled examples and whole tasks from files: CSV, TSV, JSON lines or plain text; few-shot draws of a task.

Faulty rows are named by their lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minitrans.arguments import as_int, check_int
from minitrans.data.files import Examples, read_examples, read_parquet_examples, read_texts, warn
from minitrans.data.hub import KNOWN, fetch
from minitrans.data.rows import TABLES
from minitrans.errors import InputError, InputTypeError
from minitrans.fewshot.examples import case_warning, grouped, label_text
from minitrans.fewshot.examples import normalized_text as normalized_text

_SPLIT = re.compile(r"(oos_)?(train(_[1-9][0-9]*shot)?|valid|test)")
_OTHER_NAMES = {
    "validation": "valid",
    "dev": "valid",
    "oos_validation": "oos_valid",
    "oos_dev": "oos_valid",
    "out_of_scope": "oos_test",
    "oos": "oos_test",
}


@dataclass(frozen=True)
class Task:
    """An intent data set.

    Attributes:
        name: for tables.
        splits: "train" and where present "test", "valid" and ``train_<k>shot``; or "all" alone. No text of them is out
            of scope.
        out_of_scope: split -> texts that belong to none of the classes.
        source: where it came from.
    """

    name: str
    splits: Mapping[str, Examples]
    out_of_scope: Mapping[str, list[str]]
    source: str

    @cached_property
    def digest(self) -> str:
        """sha256 of all texts and labels, in their order; name and source do not count."""
        pairs = {split: [each.texts, each.labels] for split, each in self.splits.items()}
        values = [pairs, {split: list(texts) for split, texts in self.out_of_scope.items()}]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Draw:
    """Few examples to learn from, and those to test on; ``left_out``: classes too small for both, sorted."""

    train: Examples
    test: Examples
    left_out: list[str]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes as words, in the order of a classifier's classes."""
        return [label_text(label) for label in sorted(set(self.train.labels))]


@dataclass(frozen=True)
class Leak:
    """A text of the test split that the train split has too, in other case or spacing perhaps."""

    text: str
    test_label: str
    train_labels: list[str]

    @property
    def agrees(self) -> bool:
        """Whether the train split has it under the label of the test split."""
        return self.test_label in self.train_labels


def load_task(
    source: str | os.PathLike[str],
    text_column: str = "text",
    label_column: str = "label",
    out_of_scope_label: str = "oos",
    local_files_only: bool = False,
    delimiter: str | None = None,
) -> Task:
    """Read an intent data set.

    Args:
        source: a folder of .csv, .tsv or .jsonl files named after their splits (train, valid, test, train_5shot; with
            oos_ before it a split's texts are out of scope, and need no labels; out_of_scope is another name of
            oos_test; hidden files are passed over); or a single such file, the split "all"; or the name of a data set
            on the hub: banking77, clinc150, hwu64. A local path wins.
        text_column, label_column: of local files.
        out_of_scope_label: rows with this label are out of scope.
        local_files_only: fail rather than open a connection for a data set of the hub.
        delimiter: of local .csv and .tsv files; see `read_examples`.

    Raises:
        InputError: no such source, a file that is no split, a split twice, no train split, faulty rows (named by
            their lines), or a split without an example in scope.
        DownloadError: the hub could not deliver.

    Warns as `read_examples` does.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputTypeError(f"the task is a {type(source).__name__}, wanted a path or a name")
    path, named = Path(source), os.fspath(source)
    splits: dict[str, Examples] = {}
    out_of_scope: dict[str, list[str]] = {}
    if path.is_dir():
        for split, file in _split_files(path).items():
            if split.startswith("oos_"):
                out_of_scope[split.removeprefix("oos_")] = read_texts(file, text_column, delimiter)
            else:
                splits[split] = read_examples(file, text_column, label_column, delimiter)
    elif path.is_file():
        splits["all"] = read_examples(path, text_column, label_column, delimiter)
    elif named in KNOWN:
        known = KNOWN[named]
        for split, file in fetch(named, local_files_only).items():
            read = read_parquet_examples if file.suffix == ".parquet" else read_examples
            splits[split] = read(file, known.text_column, known.label_column)
    else:
        raise InputError(
            f"there is no task {named!r}: wanted a folder with train.csv and test.csv, a .csv, .tsv or "
            f".jsonl file, or one of {', '.join(KNOWN)}"
        )
    for split, examples in splits.items():
        if out_of_scope_label not in examples.labels:
            alike = [label for label in examples.labels if label.casefold() == out_of_scope_label.casefold()]
            warn(case_warning([out_of_scope_label, *alike]), f"{named}, {split}")
        inside = [i for i, label in enumerate(examples.labels) if label != out_of_scope_label]
        if outside := grouped(examples.labels, examples.texts).get(out_of_scope_label):
            out_of_scope[split] = outside + out_of_scope.get(split, [])
            splits[split] = _subset(examples, inside)
        if not inside:
            raise InputError(f"{named}: every label of {split} is {out_of_scope_label!r}, wanted intents too")
    name = path.resolve().name if path.is_dir() else path.stem
    return Task(name, splits, out_of_scope, named)


def draw(task: Task, shots: int, seed: int) -> Draw:
    """Few examples per class, the same ones for the same task, ``shots`` and ``seed`` on every machine.

    Seed 0 is the split ``train_<shots>shot`` where the task has one. Otherwise ``shots`` examples of each class come
    from "train", without replacement; a class with fewer gives all. The test part is the split "test".

    Without a split "test", all other examples are the test part. No text is in both parts then, compared without case
    and spacing; every class keeps a text for the test, and gives none that other classes have too; a class that
    cannot is left out of both parts.

    Args:
        task: as `load_task` gives it.
        shots: examples per class, at least 1.
        seed: 0 or more; another seed is another, independent draw.

    Raises:
        InputError: shots or seed out of range; no train split; or no class is left.
    """
    shots = check_int("shots", shots)
    number = as_int(seed)
    if number is None or number < 0:
        raise InputError(f"seed is {seed!r}, wanted an integer of at least 0")
    pool = task.splits.get("train") or task.splits.get("all")
    if pool is None:
        raise InputError(f"{task.name} has the splits {', '.join(task.splits)}, wanted train")
    official = task.splits.get(f"train_{shots}shot") if number == 0 else None
    test = task.splits.get("test")
    if test is not None:
        return Draw(official or _subset(pool, _drawn(pool.labels, shots, number)), test, [])

    keys = [normalized_text(text) for text in pool.texts]
    train = official or _subset(pool, _drawn(pool.labels, shots, number, keys))
    taken, classes = {normalized_text(text) for text in train.texts}, set(train.labels)
    rest = [i for i, key in enumerate(keys) if key not in taken and pool.labels[i] in classes]
    if not rest:
        raise InputError(f"{task.name} leaves no example for the test, wanted at least two texts in some class")
    return Draw(train, _subset(pool, rest), sorted(set(pool.labels) - classes))


def leakage(task: Task) -> list[Leak]:
    """The texts of the split "test" that "train" has too, compared without case and spacing, in the order of "test"."""
    train, test = task.splits.get("train"), task.splits.get("test")
    if train is None or test is None:
        return []
    seen = grouped(map(normalized_text, train.texts), train.labels)
    pairs = zip(test.texts, test.labels, strict=True)
    return [
        Leak(text, label, sorted(set(seen[key]))) for text, label in pairs if (key := normalized_text(text)) in seen
    ]


def _split_files(folder: Path) -> dict[str, Path]:
    """Split -> file. Hidden files, and other formats that are named after no split, are left alone, as a README."""
    files: dict[str, Path] = {}
    others: dict[str, Path] = {}
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from error
    for file in found:
        # "._train.csv" holds attributes of macOS, ".train.csv.swp" and "~$train.csv" belong to open editors.
        if file.name.startswith((".", "~")) or not file.is_file():
            continue
        if file.suffix.lower() not in TABLES:
            stem = file.name.partition(".")[0]
            if _SPLIT.fullmatch(split := _OTHER_NAMES.get(stem, stem)):
                others[split] = file
            continue
        split = _OTHER_NAMES.get(file.stem, file.stem)
        if not _SPLIT.fullmatch(split):
            wanted = "train, valid, test, train_<k>shot, or one of these with oos_ before it"
            raise InputError(f"{file} is named after no split, wanted {wanted}; rename it, or move it elsewhere")
        if split in files:
            raise InputError(
                f"{files[split]} and {file} are the same split, wanted one file for it; move one elsewhere"
            )
        files[split] = file
    for split, file in others.items():
        if split not in files:
            raise InputError(
                f"{file} is named after a split, wanted .csv, .tsv or .jsonl; convert it or move it elsewhere"
            )
    if "train" not in files:
        raise InputError(f"{folder} has {', '.join(files) or 'no split'}, wanted at least a train.csv, .tsv or .jsonl")
    return files


def _subset(examples: Examples, rows: Iterable[int]) -> Examples:
    rows = list(rows)
    return Examples([examples.texts[i] for i in rows], [examples.labels[i] for i in rows])


def _drawn(labels: list[str], shots: int, seed: int, keys: list[str] | None = None) -> list[int]:
    """Indices of so many examples of each class, ascending.

    With the ``keys`` of the texts, only of those that one class alone has, each once, and never all texts of a class.
    """
    # Of Python's generator only random() is promised to stay the same in all versions: sample() is not.
    generator = random.Random(f"{shots} shots, draw {seed}")  # noqa: S311
    ranks = [generator.random() for _ in labels]
    owners = grouped(keys, labels) if keys else {}
    chosen: list[int] = []
    for rows in grouped(labels, range(len(labels))).values():
        most = shots
        if keys is not None:
            first = {keys[i]: i for i in reversed(rows)}  # the first example of each text
            rows = [i for key, i in first.items() if len(set(owners[key])) == 1]
            most = min(shots, len(first) - 1)
        chosen += sorted(rows, key=ranks.__getitem__)[:most]
    return sorted(chosen)
