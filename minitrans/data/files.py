"""Examples and texts of one file: CSV, TSV, JSON Lines, Parquet, or a text per line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minitrans.data.hub import read_parquet
from minitrans.data.rows import TABLES, Row, file_lines, raise_faults, table_rows
from minitrans.errors import DataWarning, InputError
from minitrans.fewshot.examples import case_warning, conflict_warning, grouped, is_blank, normalized_label
from minitrans.files import target_of


@dataclass(frozen=True)
class Examples:
    """Labelled texts."""

    texts: list[str]
    labels: list[str]


def read_examples(
    path: str | os.PathLike[str],
    text_column: str = "text",
    label_column: str = "label",
    delimiter: str | None = None,
) -> Examples:
    """Read labelled texts from a .csv or .tsv with a header, or a .jsonl of objects, all of them UTF-8.

    Labels come in one spelling (see `minitrans.fewshot.examples.normalized_label`): no blanks at the ends, no invisible
    characters, NFC.

    Args:
        path: of the file.
        text_column, label_column: names in the header or the objects, blanks around them aside.
        delimiter: between the fields of a .csv or .tsv: one character, or "tab". None takes what the name of the file
            says, or where the header lacks the columns so, another with which it has them.

    Raises:
        InputTypeError, InputError: a path that is none.
        InputError: no such file, another format, a column that is not there, or rows without text or label; the
            message names their lines.

    Warns with DataWarning of labels whose spellings became one, of labels that differ in case alone, and of one text
    with several labels.
    """
    path = target_of(path)
    if text_column == label_column:
        raise InputError(f"{path}: text_column and label_column are both {text_column!r}, wanted two columns")
    rows = table_rows(path, (text_column, label_column), delimiter)
    values = _filled(path, rows, (text_column, label_column))
    texts, labels = ([each[i] for each in values] for i in (0, 1))
    return _examples(path, texts, labels, "line", [row.line for row in rows])


def read_pairs(
    path: str | os.PathLike[str],
    query_column: str = "query",
    document_column: str = "document",
    delimiter: str | None = None,
) -> list[tuple[str, str]]:
    """Read queries, each with a document that answers it, from a file as `read_examples` takes it.

    Args:
        path: of the file.
        query_column, document_column: names in the header or the objects, blanks around them aside.
        delimiter: of a .csv or .tsv; see `read_examples`.

    Raises as `read_examples` does.
    """
    path = target_of(path)
    if query_column == document_column:
        raise InputError(f"{path}: query_column and document_column are both {query_column!r}, wanted two columns")
    rows = table_rows(path, (query_column, document_column), delimiter)
    return [(query, document) for query, document in _filled(path, rows, (query_column, document_column))]


def _filled(path: Path, rows: Sequence[Row], columns: tuple[str, ...]) -> list[list[str]]:
    """The values of all rows. InputError where one lacks a value, or there are no rows."""
    _refuse_blank(rows, columns)
    raise_faults(path, rows)
    values = [row.values for row in rows if row.values is not None]
    if not values:
        raise InputError(f"{path} holds no examples, wanted at least one row below the header")
    return values


def read_texts(
    path: str | os.PathLike[str], column: str = "text", delimiter: str | None = None, *, keep_blank: bool = False
) -> list[str]:
    """Read texts: a column of a .csv, .tsv or .jsonl, or every line of any other file, all of them UTF-8.

    Args:
        path: of the file.
        column: of a table.
        delimiter: of a .csv or .tsv; see `read_examples`.
        keep_blank: keep blank lines and fields as texts, so that text i belongs to line or row i. Without it blank
            lines are passed over, and a blank field is a fault.

    Raises:
        InputTypeError, InputError: a path that is none.
        InputError: no such file, not UTF-8, no text in it (unless blank ones are kept), or rows without that column;
            the message names their lines.
    """
    path = target_of(path)
    suffix = path.suffix.lower()
    if suffix in (".json", ".ndjson"):
        raise InputError(f"{path}: the file ends in {suffix!r}, wanted .jsonl for an object a line, .csv or plain text")
    if suffix in TABLES:
        rows = table_rows(path, (column,), delimiter)
        if not keep_blank:
            _refuse_blank(rows, (column,))
        raise_faults(path, rows)
        texts = [row.values[0] for row in rows if row.values is not None]
    else:
        texts = [line for line in file_lines(path) if keep_blank or not is_blank(line)]
    if not texts and not keep_blank:
        raise InputError(f"{path} holds no text, wanted at least one")
    return texts


def _refuse_blank(rows: Iterable[Row], columns: tuple[str, ...]) -> None:
    """Refuse each row with a value that is empty or shows nothing."""
    for row in rows:
        if row.values is not None and any(map(is_blank, row.values)):
            row.refuse(f"{' or '.join(columns)} is empty, wanted {'both' if len(columns) > 1 else 'text'}")


def _examples(path: Path, texts: list[str], labels: list[str], unit: str, numbers: Iterable[int]) -> Examples:
    """The examples with their labels in one spelling; warns of what may not be meant. Numbers: of their lines."""
    places = [f"{unit} {number}" for number in numbers]
    first = dict(reversed(list(zip(labels, places, strict=True))))
    names = {label: normalized_label(label) for label in dict.fromkeys(labels)}
    spellings = grouped(names.values(), (f"{label!a} ({first[label]})" for label in names))
    if merged := [f"{', '.join(each[:5])} as {name!r}" for name, each in spellings.items() if len(each) > 1]:
        warn(f"several spellings of a label are read as one: {'; '.join(merged[:5])}", path)
    found = [names[label] for label in labels]
    warn(case_warning(found), path)
    warn(conflict_warning(texts, found, places), path)
    return Examples(texts, found)


def warn(message: str | None, place: object) -> None:
    """DataWarning with the place before the message, on behalf of the caller's caller; nothing for None."""
    if message is not None:
        warnings.warn(f"{place}: {message}", DataWarning, stacklevel=4)


def read_parquet_examples(path: Path, text_column: str, label_column: str) -> Examples:
    """`read_examples` for a Parquet file of a known data set."""
    texts, labels = read_parquet(path, text_column, label_column)
    return _examples(path, texts, labels, "row", range(len(texts)))
