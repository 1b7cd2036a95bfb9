"""Texts and labelled examples from files: CSV, TSV, JSON lines or plain text. Bad rows are named by their line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from minitrans.errors import InputError

FIELD_LIMIT = 16 * 1024 * 1024  # characters of one CSV field; the csv module's own limit of 128 kB cuts long documents
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Examples:
    """Labelled texts."""

    texts: list[str]
    labels: list[str]


def read_examples(path: str | Path, text_column: str = "text", label_column: str = "label") -> Examples:
    """Read labelled texts from a .csv or .tsv with a header, or a .jsonl of objects.

    Raises:
        InputError: no such file, another format, a column that is not there, or a row without text or label; the
            message names the line.
    """
    texts, labels = [], []
    for line, row in _rows(Path(path), (text_column, label_column)):
        if not row[text_column].strip() or not row[label_column].strip():
            raise InputError(f"{path}, line {line}: {text_column} or {label_column} is empty, wanted both")
        texts.append(row[text_column])
        labels.append(row[label_column])
    if not texts:
        raise InputError(f"{path} holds no examples, wanted at least one row below the header")
    return Examples(texts, labels)


def read_texts(path: str | Path, column: str = "text") -> list[str]:
    """Read texts: a column of a .csv, .tsv or .jsonl, or every line of any other file.

    Raises:
        InputError: no such file, not UTF-8, or a row without that column; the message names the line.
    """
    path = Path(path)
    if path.suffix.lower() in (*_DELIMITERS, ".jsonl"):
        return [row[column] for _, row in _rows(path, (column,))]
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


def _open(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, the wanted columns) of each row."""
    suffix = path.suffix.lower()
    if suffix not in (*_DELIMITERS, ".jsonl"):
        raise InputError(f"{path}: the file ends in {suffix!r}, wanted .csv, .tsv or .jsonl")
    with _open(path) as file:
        delimited = suffix != ".jsonl"
        records = _delimited(file, path, _DELIMITERS[suffix], columns) if delimited else _jsonl(file, path)
        for line, record in records:
            for column in columns:
                if not isinstance(record.get(column), str):
                    found = ", ".join(sorted(str(key) for key in record if key is not None))
                    seen = "missing" if record.get(column) is None else f"a {type(record[column]).__name__}"
                    raise InputError(f"{path}, line {line}: column {column!r} is {seen}, wanted text; found: {found}")
            yield line, {column: record[column] for column in columns}


def _jsonl(file: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(read_lines(file, str(path)), 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {line}: a JSON {type(record).__name__}, wanted an object")
        yield line, record


def _delimited(
    file: TextIO, path: Path, delimiter: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
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
            if None in record:
                raise InputError(f"{path}, line {reader.line_num}: more fields than the header has; quote the text")
            yield reader.line_num, record
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it") from error
    finally:
        csv.field_size_limit(previous)
