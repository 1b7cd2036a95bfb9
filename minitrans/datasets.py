"""Texts, labelled examples and whole tasks from files: CSV, TSV, JSON lines or plain text; few-shot draws of a task.

Faulty rows are named by their lines.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from minitrans.config import as_int, check_int
from minitrans.errors import InputError, InputTypeError
from minitrans.hub_datasets import KNOWN, fetch, read_parquet
from minitrans.inputs import label_text

FIELD_LIMIT = 16 * 1024 * 1024  # characters of one CSV field; the csv module's own limit of 128 kB cuts long documents
FAULTS_NAMED = 5  # of the faulty rows of a file; the others are counted
SPLITS = "train, valid, test, train_<k>shot, or one of these with oos_ before it"
_SPLIT = re.compile(r"(oos_)?(train(_[1-9][0-9]*shot)?|valid|test)")
_OTHER_NAMES = {"validation": "valid", "dev": "valid", "oos_validation": "oos_valid", "oos_dev": "oos_valid"}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Examples:
    """Labelled texts."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Task:
    """An intent data set.

    Attributes:
        name: for tables.
        splits: "train" and where present "test", "valid" and `train_<k>shot`; or "all" alone. No text of them is out
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
) -> Task:
    """Read an intent data set.

    Args:
        source: a folder of .csv, .tsv or .jsonl files named after their splits (train, valid, test, train_5shot; with
            oos_ before it a split's texts are out of scope, and need no labels); or a single such file, the split
            "all"; or the name of a data set on the hub: banking77, clinc150, hwu64. A local path wins.
        text_column, label_column: of local files.
        out_of_scope_label: rows with this label are out of scope.
        local_files_only: fail rather than open a connection for a data set of the hub.

    Raises:
        InputError: no such source, a file that is no split, a split twice, no train split, faulty rows (named by
            their lines), or a split without an example in scope.
        DownloadError: the hub could not deliver.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputTypeError(f"the task is a {type(source).__name__}, wanted a path or a name")
    path = Path(source)
    splits: dict[str, Examples] = {}
    out_of_scope: dict[str, list[str]] = {}
    if path.is_dir():
        for split, file in _split_files(path).items():
            if split.startswith("oos_"):
                out_of_scope[split.removeprefix("oos_")] = read_texts(file, text_column)
            else:
                splits[split] = read_examples(file, text_column, label_column)
    elif path.is_file():
        splits["all"] = read_examples(path, text_column, label_column)
    elif os.fspath(source) in KNOWN:
        known = KNOWN[os.fspath(source)]
        for split, file in fetch(os.fspath(source), local_files_only).items():
            read = _read_parquet_examples if file.suffix == ".parquet" else read_examples
            splits[split] = read(file, known.text_column, known.label_column)
    else:
        raise InputError(
            f"there is no task {os.fspath(source)!r}: wanted a folder with train.csv and test.csv, a .csv, .tsv or "
            f".jsonl file, or one of {', '.join(KNOWN)}"
        )
    for split, examples in splits.items():
        inside = [i for i, label in enumerate(examples.labels) if label != out_of_scope_label]
        if len(inside) < len(examples.texts):
            outside = [
                text for text, label in zip(examples.texts, examples.labels, strict=True) if label == out_of_scope_label
            ]
            out_of_scope[split] = outside + out_of_scope.get(split, [])
            splits[split] = _subset(examples, inside)
        if not inside:
            raise InputError(
                f"{os.fspath(source)}: every label of {split} is {out_of_scope_label!r}, wanted intents too"
            )
    name = path.resolve().name if path.is_dir() else path.stem
    return Task(name, splits, out_of_scope, os.fspath(source))


def draw(task: Task, shots: int, seed: int) -> Draw:
    """Few examples per class, the same ones for the same task, ``shots`` and ``seed`` on every machine.

    Seed 0 is the split `train_<shots>shot` where the task has one. Otherwise ``shots`` examples of each class come
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
    train = official or _subset(pool, _drawn_apart(pool.labels, keys, shots, number))
    taken, classes = {normalized_text(text) for text in train.texts}, set(train.labels)
    rest = [i for i, key in enumerate(keys) if key not in taken and pool.labels[i] in classes]
    if not rest:
        raise InputError(f"{task.name} leaves no example for the test; wanted at least two texts in some class")
    return Draw(train, _subset(pool, rest), sorted(set(pool.labels) - classes))


def leakage(task: Task) -> list[Leak]:
    """The texts of the split "test" that "train" has too, compared without case and spacing, in the order of "test"."""
    train, test = task.splits.get("train"), task.splits.get("test")
    if train is None or test is None:
        return []
    seen: dict[str, set[str]] = {}
    for text, label in zip(train.texts, train.labels, strict=True):
        seen.setdefault(normalized_text(text), set()).add(label)
    pairs = zip(test.texts, test.labels, strict=True)
    return [Leak(text, label, sorted(seen[key])) for text, label in pairs if (key := normalized_text(text)) in seen]


def normalized_text(text: str) -> str:
    """What makes two texts the same example: no case, and one space wherever there is any."""
    return " ".join(text.casefold().split())


def read_examples(path: str | Path, text_column: str = "text", label_column: str = "label") -> Examples:
    """Read labelled texts from a .csv or .tsv with a header, or a .jsonl of objects.

    Raises:
        InputError: no such file, another format, a column that is not there, or rows without text or label; the
            message names their lines.
    """
    rows = _rows(Path(path), (text_column, label_column), filled=True)
    if not rows:
        raise InputError(f"{path} holds no examples, wanted at least one row below the header")
    return Examples([row[text_column] for row in rows], [row[label_column] for row in rows])


def read_texts(path: str | Path, column: str = "text") -> list[str]:
    """Read texts: a column of a .csv, .tsv or .jsonl, or every line of any other file.

    Raises:
        InputError: no such file, not UTF-8, or rows without that column; the message names their lines.
    """
    path = Path(path)
    if path.suffix.lower() in (*_DELIMITERS, ".jsonl"):
        return [row[column] for row in _rows(path, (column,))]
    with _open(path) as file:
        return list(read_lines(file, str(path)))


def read_lines(file: Iterable[str], name: str = "standard input") -> Iterator[str]:
    """The lines of a text stream without their ends. InputError if it is not UTF-8."""
    try:
        for number, line in enumerate(file):
            # A file is opened without its byte order mark; standard input is not.
            yield (line if number else line.removeprefix("\ufeff")).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}; convert it") from error


def _split_files(folder: Path) -> dict[str, Path]:
    """Split -> file. Other formats are left alone: a README may lie beside the splits."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in (*_DELIMITERS, ".jsonl") or not file.is_file():
            continue
        split = _OTHER_NAMES.get(file.stem, file.stem)
        if not _SPLIT.fullmatch(split):
            raise InputError(f"{file} is named after no split, wanted {SPLITS}; rename it, or move it elsewhere")
        if split in files:
            raise InputError(
                f"{files[split]} and {file} are the same split, wanted one file for it; move one elsewhere"
            )
        files[split] = file
    if "train" not in files:
        raise InputError(f"{folder} has {', '.join(files) or 'no split'}, wanted at least a train.csv, .tsv or .jsonl")
    return files


def _read_parquet_examples(path: Path, text_column: str, label_column: str) -> Examples:
    return Examples(*read_parquet(path, text_column, label_column))


def _subset(examples: Examples, rows: Iterable[int]) -> Examples:
    rows = list(rows)
    return Examples([examples.texts[i] for i in rows], [examples.labels[i] for i in rows])


def _drawn(labels: list[str], shots: int, seed: int) -> list[int]:
    """Indices of so many examples of each class, ascending."""
    ranks = _ranks(len(labels), shots, seed)
    chosen: list[int] = []
    for rows in _by_class(labels).values():
        chosen += sorted(rows, key=ranks.__getitem__)[:shots]
    return sorted(chosen)


def _drawn_apart(labels: list[str], keys: list[str], shots: int, seed: int) -> list[int]:
    """As `_drawn`, but of texts that one class alone has, each once, and never all texts of a class."""
    ranks = _ranks(len(labels), shots, seed)
    owners: dict[str, set[str]] = {}
    for key, label in zip(keys, labels, strict=True):
        owners.setdefault(key, set()).add(label)
    chosen: list[int] = []
    for rows in _by_class(labels).values():
        first = {keys[i]: i for i in reversed(rows)}  # the first example of each text
        own = [i for key, i in first.items() if len(owners[key]) == 1]
        chosen += sorted(own, key=ranks.__getitem__)[: min(shots, len(first) - 1)]
    return sorted(chosen)


def _ranks(count: int, shots: int, seed: int) -> list[float]:
    # Of Python's generator only random() is promised to stay the same in all versions: sample() is not.
    generator = random.Random(f"{shots} shots, draw {seed}")  # noqa: S311
    return [generator.random() for _ in range(count)]


def _by_class(labels: list[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        rows.setdefault(label, []).append(i)
    return rows


def _open(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _rows(path: Path, columns: tuple[str, ...], filled: bool = False) -> list[dict[str, str]]:
    """The wanted columns of each row; ``filled``: an empty one is a fault. All faulty rows are reported together."""
    suffix = path.suffix.lower()
    if suffix not in (*_DELIMITERS, ".jsonl"):
        raise InputError(f"{path}: the file ends in {suffix!r}, wanted .csv, .tsv or .jsonl")
    rows, faults = [], []
    with _open(path) as file:
        delimited = suffix != ".jsonl"
        records = _delimited(file, path, _DELIMITERS[suffix], columns) if delimited else _jsonl(file, path)
        for line, record in records:
            fault = record if isinstance(record, str) else _fault(record, columns, filled)
            if fault:
                faults.append(f"line {line}: {fault}")
            elif isinstance(record, dict):
                rows.append({column: record[column] for column in columns})
    if len(faults) == 1:
        raise InputError(f"{path}, {faults[0]}")
    if faults:
        more = f"; and {len(faults) - FAULTS_NAMED} more" if len(faults) > FAULTS_NAMED else ""
        raise InputError(f"{path} has {len(faults)} faulty rows: {'; '.join(faults[:FAULTS_NAMED])}{more}")
    return rows


def _fault(record: dict[str, Any], columns: tuple[str, ...], filled: bool) -> str | None:
    """What is wrong with a row, or None."""
    for column in columns:
        if not isinstance(record.get(column), str):
            found = ", ".join(sorted(str(key) for key in record))
            seen = "missing" if record.get(column) is None else f"a {type(record[column]).__name__}"
            return f"column {column!r} is {seen}, wanted text; found: {found}"
    if filled and not all(record[column].strip() for column in columns):
        return f"{' or '.join(columns)} is empty, wanted both"
    return None


def _jsonl(file: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, the object, or what is wrong with the line)."""
    for line, text in enumerate(read_lines(file, str(path)), 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield line, f"not valid JSON ({error})"
            continue
        yield line, record if isinstance(record, dict) else f"a JSON {type(record).__name__}, wanted an object"


def _delimited(
    file: TextIO, path: Path, delimiter: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number of the row's last line, the row, or what is wrong with it)."""
    previous = csv.field_size_limit(FIELD_LIMIT)
    try:
        # Not read_lines: a quoted field may hold line ends, which have to stay.
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        header = list(reader.fieldnames or [])
        for column in columns:
            if header.count(column) != 1:
                seen = "missing" if column not in header else "there more than once"
                raise InputError(
                    f"{path}, line 1: column {column!r} is {seen}, wanted it once; found: {', '.join(header)}"
                )
        for record in reader:
            extra = "more fields than the header has; quote the text"
            yield reader.line_num, extra if None in record else record
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it") from error
    finally:
        csv.field_size_limit(previous)
