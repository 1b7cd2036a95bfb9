"""Lines of text files and rows of tables (CSV, TSV, JSON lines): strict UTF-8, each fault with its line.

What can be read in two ways is refused. A line is counted from 1, and ends in LF, CRLF or CR.
"""

from __future__ import annotations

import json
import re
import warnings
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from minitrans.errors import DataWarning, InputError, InputTypeError
from minitrans.words import without_surrogates

FAULTS_NAMED = 5  # of the faulty rows of a file; the others are counted
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".jsonl")
_LIKELY = ",;\t|"  # what a header is tried with
_MARK = '"'

# How files begin that are no text, or no text in UTF-8.
_OTHER_FORMATS = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive, as Excel's .xlsx files are",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh9": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\x93NUMPY": "a NumPy array",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF-": "a PDF",
    b"\x00\x05\x16\x07": "a file of macOS's attributes",
    b"version https://git-lfs": "a Git LFS pointer in place of the file (run `git lfs pull`)",
    b"\xff\xfe": 'text in UTF-16 (Excel\'s "Unicode Text")',
    b"\xfe\xff": "text in UTF-16",
}


@dataclass(slots=True)
class Row:
    """One row of a table.

    Attributes:
        line: where it begins.
        last: where it ends: a quoted field may hold line ends.
        fields: of a delimited file; None where the row cannot be read.
        values: those of the wanted columns, in their order; None where there is a fault.
        fault: what is wrong with the row, or None.
    """

    line: int
    last: int
    fields: list[str] | None = None
    values: list[str] | None = None
    fault: str | None = None

    def refuse(self, fault: str) -> None:
        """Note what is wrong with the row, unless something else was noted before."""
        if self.fault is None:
            self.fault, self.values = fault, None


def decoded(data: bytes, name: str, line: int | None = None, offset: int = 0) -> str:
    """Bytes as text, the one way for arguments, files and pipes. InputError where they are no UTF-8, or hold NUL.

    Messages say that ``name`` holds them, as this ``line`` of it, from byte ``offset`` on.
    """
    place = "" if line is None else f" in line {line},"
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        seen = f"{error.reason}{place} at byte {offset + error.start} ({data[error.start]:#04x})"
        raise InputError(f"{name} is not UTF-8 text: {seen}; save it as UTF-8") from error
    if "\0" in text:
        seen = f"NUL{place} at byte {offset + data.index(0)}"
        raise InputError(f"{name} is not UTF-8 text: {seen}; save it as UTF-8 if it is UTF-16, or convert it")
    return text


def text_lines(file: Iterable[bytes], name: str = "standard input", ends: bool = False) -> Iterator[str]:
    """The lines of a binary stream, decoded; with their ``ends`` if asked for.

    InputError where the stream cannot be read, is no text, or no UTF-8; the message has its ``name``, line and byte.
    """
    number, offset = 0, 0
    try:
        for chunk in file:
            if not offset:
                for start, kind in _OTHER_FORMATS.items():
                    if chunk.startswith(start):
                        raise InputError(f"{name} is {kind}, wanted text in UTF-8; convert it to .csv or .jsonl")
            for data in chunk.splitlines(keepends=True):  # of bytes: at LF, CRLF and CR alone
                number += 1
                line = decoded(data, name, number, offset)
                if not offset:
                    line = line.removeprefix("\ufeff")
                offset += len(data)
                yield line if ends else line.rstrip("\r\n")
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error


def file_lines(path: Path, ends: bool = False) -> list[str]:
    """`text_lines` of a file. InputError also where it cannot be opened."""
    try:
        with path.open("rb") as file:
            return list(text_lines(file, str(path), ends))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def check_delimiter(delimiter: str | None) -> str | None:
    r"""One character between the fields of a table; r"\t" and "tab" are a tab, and None is None. InputError else."""
    if delimiter in ("\\t", "tab"):
        return "\t"
    fits = isinstance(delimiter, str) and len(delimiter) == 1 and not (delimiter.isalnum() or delimiter.isspace())
    if delimiter not in (None, "\t") and (not fits or delimiter == _MARK):
        raise InputError(f"delimiter is {delimiter!r}, wanted one character, as ';', or tab")
    return delimiter


def table_rows(path: Path, columns: tuple[str, ...], delimiter: str | None = None) -> list[Row]:
    """The rows of a .csv or .tsv with a header, or of a .jsonl; faulty ones are there too, with their fault.

    Args:
        path: of the file.
        columns: the wanted ones; `Row.values` has them.
        delimiter: None takes that of the file's name, or of a line ``sep=;`` on top; where the header lacks the
            columns, another of comma, semicolon, tab and bar with which it has them.

    Raises:
        InputTypeError: a column that is no str.
        InputError: no such file, another format, no header with the columns, or marks that can be read in two ways.
    """
    for column in columns:
        if not isinstance(column, str):
            raise InputTypeError(f"a column is {column!r:.100}, wanted its name as str")
    delimiter = check_delimiter(delimiter)
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise InputError(f"{path}: the file ends in {suffix!r}, wanted .csv, .tsv or .jsonl")
    lines = file_lines(path, ends=True)
    if suffix == ".jsonl":
        return [_json_row(number, line, columns) for number, line in enumerate(lines, 1) if line.strip()]
    skipped = 0
    if lines and (found := re.fullmatch("sep=(.)", lines[0].rstrip("\r\n"))):  # Excel's own way to name it
        skipped, delimiter = 1, delimiter or found[1]
    first = delimiter or DELIMITERS[suffix]
    header, delimiter = _header(path, lines, skipped, columns, first, fixed=delimiter is not None)
    return _Table(path, lines, header.last, _names(header.fields or []), columns, delimiter).rows()


def raise_faults(path: Path, rows: Iterable[Row]) -> None:
    """InputError that names the faulty rows, the first few of them with what is wrong; nothing if there are none."""
    faults = [f"line {row.line}: {row.fault}" for row in rows if row.fault is not None]
    if len(faults) == 1:
        raise InputError(f"{path}, {faults[0]}")
    if faults:
        more = f"; and {len(faults) - FAULTS_NAMED} more" if len(faults) > FAULTS_NAMED else ""
        raise InputError(f"{path} has {len(faults)} faulty rows: {'; '.join(faults[:FAULTS_NAMED])}{more}")


def _json_row(number: int, line: str, columns: tuple[str, ...]) -> Row:
    row = Row(number, number)
    try:
        record = json.loads(line, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        row.refuse(f"not valid JSON ({error})")
        return row
    if not isinstance(record, dict):
        row.refuse(f"a JSON {type(record).__name__}, wanted an object")
        return row
    for column in columns:
        value = record.get(column)
        if not isinstance(value, str):
            seen = "missing" if value is None else f"a {type(value).__name__}"
            found = ", ".join(sorted(record))
            row.refuse(f"column {column!r} is {seen}, wanted text; {_json_remedy(value)}found: {found}")
        elif without_surrogates(value) != value:
            row.refuse(f"column {column!r} holds half of a surrogate pair, wanted text; write it whole")
    if row.fault is None:
        row.values = [record[column] for column in columns]
    return row


def _json_remedy(value: object) -> str:
    if isinstance(value, float) and value != value:
        return "NaN is a missing value: drop the row or fill it; "
    if isinstance(value, int | float):
        return f"put {json.dumps(value)} into quotation marks if it is one, or name the column of the texts; "
    return ""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        [(double, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {double!r} comes twice")
    return record


def _names(fields: Iterable[str]) -> list[str]:
    """The names of columns, whatever blanks stand around them."""
    return [" ".join(field.replace("\ufeff", "").split()) for field in fields]


def _header(
    path: Path, lines: list[str], skipped: int, columns: tuple[str, ...], first: str, fixed: bool
) -> tuple[Row, str]:
    """The header, and the delimiter with which it has the columns: the first, or else, unless fixed, a likely one."""
    headers: dict[str, Row] = {}
    for delimiter in first if fixed else dict.fromkeys(first + _LIKELY):
        headers[delimiter] = next(_quoted(lines, skipped, delimiter), Row(skipped + 1, skipped + 1, []))
    fitting = [
        each for each, row in headers.items() if all(_names(row.fields or []).count(c) == 1 for c in _names(columns))
    ]
    if first in fitting or len(fitting) == 1:
        delimiter = first if first in fitting else fitting[0]
        return headers[delimiter], delimiter
    header = headers[first]
    if header.fields is None:
        raise InputError(f"{path}, line {header.line}: {header.fault}")
    names = _names(header.fields)
    column, name = next(pair for pair in zip(columns, _names(columns), strict=True) if names.count(pair[1]) != 1)
    seen = "there more than once" if name in names else "missing"
    alike = [each for each in names if each.casefold() == name.casefold()]
    likely = [each for each in _LIKELY if len(names) == 1 and each in names[0]]
    hint = ""
    if name not in names and alike:
        hint = f"; name the column {alike[0]!r}, as it is written"
    elif likely:
        hint = f"; the delimiter seems to be {likely[0]!r}, not {first!r}"
        hint += "" if fixed else ", and the columns to have other names"
    elif name not in names:
        hint = "; wanted a header line, as text,label, or the name of another column"
    raise InputError(
        f"{path}, line {header.line}: column {column!r} is {seen}, wanted it once; found: {', '.join(names)}{hint}"
    )


def _quoted(lines: list[str], skipped: int, delimiter: str) -> Iterator[Row]:
    """Rows as in RFC 4180: a field that begins with a mark ends with one, and holds two in place of one."""
    text, starts = "".join(lines), list(accumulate(map(len, lines[:-1]), initial=0))
    # A field in marks, its content as the group, or any other; none where nothing closes a mark.
    field = re.compile(f'"([^"]*(?:""[^"]*)*)"(?!")|(?!")[^{re.escape(delimiter)}\r\n]*')
    number = skipped  # of the line that was read last
    while number < len(lines):
        line = lines[number]
        number += 1
        if _MARK not in line:
            if body := line.rstrip("\r\n"):
                yield Row(number, number, body.split(delimiter))
            continue
        first, fields, place = number, [], starts[number - 1]
        while True:
            opened, found = bisect(starts, place), field.match(text, place)
            if found is None:
                fault = "a quotation mark opens a field here and nothing closes it; close it, or put the field in "
                yield Row(opened, len(lines), fault=f"{fault}marks and double those in it")
                return
            fields.append(found[0] if found[1] is None else found[1].replace(2 * _MARK, _MARK))
            place = found.end()
            number = bisect(starts, place)
            if text[place : place + 1] != delimiter:
                break
            place += 1
        if text[place : place + 1] in ("", "\r", "\n"):
            yield Row(first, number, fields)
        else:
            fault = f"the quotation mark that opens a field here is closed in line {number} with more behind it"
            yield Row(opened, number, fault=f"{fault}; put the whole field in marks, and double those in it")


@dataclass(frozen=True)
class _Table:
    """The lines of a delimited file, and what its header says of those below it."""

    path: Path
    lines: list[str]
    header: int  # its last line
    names: list[str]
    columns: tuple[str, ...]
    delimiter: str

    @cached_property
    def places(self) -> list[int]:
        """The place of each wanted column among the fields of a row."""
        return [self.names.index(name) for name in _names(self.columns)]

    def rows(self) -> list[Row]:
        """All rows below the header."""
        rows = self._checked(_quoted(self.lines, self.header, self.delimiter))
        if not any(_MARK in line for line in self.lines[self.header :]):
            return rows
        if self.delimiter != "\t":
            self._refuse_blanks(rows)
            self._refuse_swallowed(rows)
            return rows
        # Some programs write tabs with quotation marks as in CSV, others without any meaning.
        bodies = enumerate((line.rstrip("\r\n") for line in self.lines[self.header :]), self.header + 1)
        plain = self._checked(Row(number, number, body.split(self.delimiter)) for number, body in bodies if body)
        faults, plain_faults = (sum(row.fault is not None for row in each) for each in (rows, plain))
        if faults:
            return plain if plain_faults <= faults else rows
        for row in rows:
            self._refuse_doubt(row)
        if any(row.fault is not None for row in rows) or _MARK in self.lines[self.header - 1]:
            return rows  # whoever put the header in marks did so with every field
        needed, literal = self._marked_fields(rows, plain)
        if literal and not needed:
            return plain
        for row in rows:
            if row.line in literal:
                row.refuse(
                    "a field in quotation marks that needs none, in a file with others that need them; take them away, "
                    "or save the table as .csv or .jsonl"
                )
        return rows

    def _checked(self, rows: Iterable[Row]) -> list[Row]:
        """The rows, with the values of the columns, or a fault."""
        places, most = self.places, len(self.names)
        least = 1 + max(places)
        found = list(rows)
        for row in found:
            fields = row.fields
            if fields is None:
                continue
            if least <= len(fields) <= most:
                row.values = [fields[place] for place in places]
            elif len(fields) > most:
                row.refuse("more fields than the header has; quote the text")
            else:
                missing = self.columns[next(i for i, place in enumerate(places) if place >= len(fields))]
                there = ", ".join(self.names[: len(fields)])
                row.refuse(f"column {missing!r} is missing, wanted text; found: {there}")
        return found

    @cached_property
    def _least(self) -> int:
        """The fewest fields of the lines without marks below the header: they are rows for certain."""
        lines = (line for line in self.lines[self.header :] if _MARK not in line and line.strip("\r\n"))
        fewest = min((line.count(self.delimiter) + 1 for line in lines), default=len(self.names))
        return max(fewest, 1 + max(self.places))

    def _alone(self, row: Row) -> list[list[str]] | None:
        """The fields of each line of a row, as if marks had no meaning; None where the lines are then no rows."""
        lines = (line.rstrip("\r\n") for line in self.lines[row.line - 1 : row.last])
        fields = [line.split(self.delimiter) for line in lines if line]
        return fields if all(self._least <= len(each) <= len(self.names) for each in fields) else None

    def _refuse_doubt(self, row: Row) -> None:
        """Refuse a row of a .tsv whose lines, with marks read as letters, are rows too, and not the same ones."""
        if row.last == row.line and _MARK not in self.lines[row.line - 1]:
            return
        alone = self._alone(row)
        if alone is not None and not (len(alone) == 1 and all(map(_same, row.fields or [], alone[0]))):
            until = f"a field of lines {row.line} to {row.last}" if row.last > row.line else "a field with a tab in it"
            fault = f"the quotation mark may be a letter of the text or open {until}; take it away, or save the table "
            row.refuse(f"{fault}as .csv or .jsonl")

    def _marked_fields(self, rows: list[Row], plain: list[Row]) -> tuple[bool, set[int]]:
        """Whether some field needs its marks, and the lines of fields that do not: no program puts marks around these.

        Besides tabs, line ends and marks, a comma needs them too where the file has no comma outside of marks, as Excel
        writes it.
        """
        fields = [field for row in plain for field in row.fields or []]
        excel = not any("," in field for field in fields if not field.startswith(_MARK))
        needed, literal = False, set()
        for row in rows:
            if row.last > row.line:
                needed = True
                continue
            for field, seen in zip(row.fields or [], (self._alone(row) or [[]])[0], strict=False):
                if field != seen and (_MARK in field or (excel and "," in field)):
                    needed = True
                elif field != seen:
                    literal.add(row.line)
        return needed, literal

    def _refuse_blanks(self, rows: list[Row]) -> None:
        """Refuse each row where a quotation mark stands behind a blank, and so quotes nothing."""
        behind_blank = re.compile(f"(?:^|{re.escape(self.delimiter)})[ \t]+{_MARK}")
        for row in rows:
            lines = self.lines[row.line - 1 : row.last]
            if any(behind_blank.search(line) for line in lines):
                bare = re.sub('"[^"]*(?:""[^"]*)*"', _MARK, "".join(lines))
                if behind_blank.search(bare):
                    row.refuse("a quotation mark behind a blank, where it quotes nothing; take the blank away")

    def _refuse_swallowed(self, rows: list[Row]) -> None:
        """Refuse each row whose marks hold a line that reads as a row with a label that other rows have.

        Warns with DataWarning where there is no such label, as in a text that has commas in all its lines.
        """
        known = {row.values[-1] for row in rows if row.values is not None and row.line == row.last}
        doubtful = []
        for row in rows:
            if row.fault is not None or row.last == row.line or len(self.names) == 1:
                continue
            alone = self._alone(row)
            values = [] if alone is None else [fields[self.places[-1]] for fields in alone[:-1]]
            if len(self.columns) > 1 and known.intersection(values):
                fault = f"a quotation mark opens a field that holds rows, up to line {row.last}"
                row.refuse(f"{fault}; close it where it should end, or save the table as .jsonl")
            elif values and all(field and not field[0].isspace() for fields in alone or [] for field in fields):
                doubtful.append(row)
        if doubtful:
            where = f"the field of lines {doubtful[0].line} to {doubtful[0].last}"
            where += f", and of {len(doubtful) - 1} more," if len(doubtful) > 1 else ""
            message = f"each line of {where} could be a row; see whether its quotation marks are right"
            warnings.warn(f"{self.path}: {message}", DataWarning, stacklevel=5)


def _same(field: str, seen: str) -> bool:
    """Whether a field and what stands in the file differ by the marks around it at most."""
    return field == seen or seen == _MARK + field.replace(_MARK, 2 * _MARK) + _MARK
