"""Tables of results: as text for a terminal, as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from minitrans import words
from minitrans.arguments import check_choice
from minitrans.errors import InputError
from minitrans.files import target_of, write_file
from minitrans.words import one_of

Style = Literal["text", "markdown", "csv", "json"]
STYLES: dict[str, Style] = {".csv": "csv", ".json": "json", ".md": "markdown", ".txt": "text"}


TABLES = ("", "turn-by-length", "out-of-scope", "search")  # the names of `Table`s, as they may follow each other


@dataclass(frozen=True)
class Column:
    """What of a row to show, and how.

    Attributes:
        key: which entry of a row; the name of the column in CSV and JSON, where values stand unrounded.
        title: heading in text and Markdown.
        form: format specification for text and Markdown, as ".1%".
        spread: the entry that stands behind a "±", in the same form but for its "+"; in CSV and JSON it has a column of
            its own.
    """

    key: str
    title: str
    form: str = ""
    spread: str | None = None


@dataclass(frozen=True)
class Table:
    """What to show of some results.

    Attributes:
        name: of the file that a .csv puts beside the first table's: "results.NAME.csv".
        columns: for files.
        narrow: for a terminal.
        rows: see `render`.
    """

    name: str
    columns: Sequence[Column]
    narrow: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]


def render(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], style: Style = "text") -> str:
    """A table, ending in a line end. A value that is None or absent shows as "-", in CSV as nothing.

    Raises:
        InputError: an unknown style.
    """
    check_choice("style", style, get_args(Style))
    keys = [key for column in columns for key in (column.key, column.spread) if key is not None]
    if style == "json":
        return json.dumps([{key: row.get(key) for key in keys} for row in rows], indent=2) + "\n"
    if style == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(keys)
        writer.writerows([row.get(key) for key in keys] for row in rows)
        return buffer.getvalue()
    cells = [[column.title for column in columns], *([_shown(column, row) for column in columns] for row in rows)]
    right = [any(isinstance(row.get(column.key), int | float) for row in rows) for column in columns]
    if style == "markdown":
        cells = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(3, *(words.columns(line[i]) for line in cells)) for i in range(len(columns))]
    lines = [
        [words.padded(cell, width, right=numeric) for cell, width, numeric in zip(line, widths, right, strict=True)]
        for line in cells
    ]
    if style == "markdown":
        rule = ["-" * (width - 1) + (":" if numeric else "-") for width, numeric in zip(widths, right, strict=True)]
        return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rule, *lines[1:]])
    return "".join("  ".join(line).rstrip() + "\n" for line in lines)


def to_json(values: Mapping[str, Any]) -> str:
    """Plain values as text, ending in a line end."""
    return json.dumps(values, indent=2) + "\n"


def save_tables(path: str | os.PathLike[str], tables: Sequence[Table], values: Mapping[str, Any]) -> list[str]:
    """Write what was found in the style that the end of the file's name stands for; say what is where, a line each.

    Args:
        path: of the file. One in CSV holds one table: each further one goes to a file of its own beside it.
        tables: at least one.
        values: all that was found, which a file in JSON holds in place of the tables.

    Raises:
        InputError: a name that ends otherwise.
        WriteError: the file cannot be written.
    """
    style, path = check_table_file(path), Path(path)
    counts = [len(table.rows) for table in tables]
    if style == "json":
        save_text(path, to_json(values))
    elif style == "csv":
        files = table_files(path, [table.name for table in tables])
        for file, table in zip(files, tables, strict=True):
            save_text(file, render(table.columns, table.rows, style))
        return [f"{file}: {count} rows" for file, count in zip(files, counts, strict=True)]
    else:
        save_text(path, "\n".join(render(table.columns, table.rows, style) for table in tables))
    return [f"{path}: {' and '.join(map(str, counts))} rows"]


def table_files(path: str | os.PathLike[str], names: Sequence[str]) -> list[Path]:
    """The files that `save_tables` writes for tables of these names."""
    style, path = check_table_file(path), Path(path)
    return [path, *(path.with_suffix(f".{name}.csv") for name in names[1:] if style == "csv")]


def check_table_file(path: str | os.PathLike[str]) -> Style:
    """The style that the end of a file's name stands for. InputError if it stands for none."""
    suffix = target_of(path).suffix.lower()
    if suffix not in STYLES:
        raise InputError(f"{os.fspath(path)} ends in {suffix!r}, wanted {one_of(STYLES)}")
    return STYLES[suffix]


def save_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as UTF-8, whole or not at all."""
    write_file(path, text.encode())


def _shown(column: Column, row: Mapping[str, Any]) -> str:
    value = row.get(column.key)
    if value is None:
        return "-"
    text = format(value, column.form)
    spread = None if column.spread is None else row.get(column.spread)
    if spread is not None:
        text += f" ± {format(spread, column.form.replace('+', ''))}"
    return words.printable(" ".join(text.split()))  # a line end in a name would break the table
