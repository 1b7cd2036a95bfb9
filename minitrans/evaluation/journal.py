"""Journal: results that are finished, one JSON line each, so that an interrupted run goes on where it was.

A journal is a text file of lines: a header that names the format, then one ``{"key": ..., "value": ...}`` per result.
Lines are only ever appended, in one write each, so that a crash can damage no more than the end of the last one.

Why no SQLite: a kill in the middle of a write mostly leaves a second file behind, which the first needs to be whole
again; a file that lost its end is lost whole; and a file of one foreign byte is taken for an empty database.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from minitrans.errors import InputError
from minitrans.files import locked, make_folder, reporting, sync_folder, target_of

FORMAT, VERSION = "minitrans-journal", 1
HEADER = f'{{"format":"{FORMAT}","version":{VERSION}}}\n'.encode()


class Journal:
    """Finished results by what they depend on: plain JSON values in, the same out.

    Several processes may append to one file; each sees what was there when it opened it, and what it put itself.

    Args:
        path: the file, made by the first `put`; None keeps everything in memory.

    Raises:
        InputError: the file cannot be read, is no journal, or has a broken line that a crash does not explain.
        InputTypeError: the path is none.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else target_of(path)
        self._values: dict[str, str] = {} if self.path is None else _load(self.path)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The value that was last put under an equal key, or None. InputError for a key that is not plain JSON."""
        text = self._values.get(_canonical(key, "key"))
        return None if text is None else json.loads(text)

    def put(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Keep a result; when the call returns it is on the disk.

        Args:
            key: what the result depends on. The order of its entries does not count.
            value: the result.

        Raises:
            InputError: a key or value that is not plain JSON (finite numbers, str, bool, None, lists, objects); or the
                file is no journal any more.
            WriteError: the file cannot be written; it holds no part of the line then.
        """
        name, text = _canonical(key, "key"), _canonical(value, "value")
        if self.path is not None:
            line = f'{{"key":{name},"value":{text}}}\n'.encode()
            with reporting(self.path, len(line)):
                _append(self.path, line)
        self._values[name] = text


def foreign_result(value: Mapping[str, Any], wanted: str) -> InputError:
    """The error for a journal that holds something else than the result that belongs under its key."""
    return InputError(f"the journal holds {dict(value)!r:.200}, wanted {wanted}; start a new one")


def _canonical(values: Mapping[str, Any], what: str) -> str:
    """Equal objects give equal text."""
    try:
        if not isinstance(values, Mapping):
            raise TypeError("not an object")
        text = json.dumps(dict(values), sort_keys=True, separators=(",", ":"), allow_nan=False)
        if json.loads(text) != dict(values):  # a tuple, or a key that is a number
            raise ValueError("it reads back as something else")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"journal: the {what} is {values!r:.200}, wanted plain JSON values ({error})") from None
    return text


def _load(path: Path) -> dict[str, str]:
    try:
        if path.exists() and not path.is_file():  # opening a pipe waits for a writer
            raise InputError(f"cannot read the journal {path}: it is no regular file; give another path")
        with path.open("rb") as file, locked(path, shared=True):
            data = file.read()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"cannot read the journal {path}: {error.strerror or error}") from error
    _check_begin(path, data)
    lines = data.split(b"\n")[:-1]  # the last one is not whole
    values = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            record = json.loads(line)
            values[_canonical(record["key"], "key")] = _canonical(record["value"], "value")
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, line {number}: {line!r:.60} is no result of a journal ({error!r:.100}), wanted a JSON object "
                "with key and value; remove the line, and what it held is computed again"
            ) from None
    return values


def _check_begin(path: Path, data: bytes) -> None:
    """InputError unless this is how a journal begins, whole or cut in its first line."""
    line, end, _ = data.partition(b"\n")
    if not end and HEADER.startswith(line):
        return
    try:
        header = json.loads(line) if end else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path} is not a journal: its first line is {line!r:.60}; give another path")
    if header.get("version") != VERSION:
        raise InputError(f"{path}: version is {header.get('version')!r}, this release reads {VERSION}; start a new one")


def _append(path: Path, line: bytes) -> None:
    make_folder(path.parent)
    with path.open("ab+", buffering=0) as file, locked(path):  # to append is to find the end and write in one step
        file.seek(0)
        _check_begin(path, file.read(4096))  # the file may have come since the journal was opened
        size = _cut_broken_line(file)
        data = line if size else HEADER + line
        try:
            if os.write(file.fileno(), data) < len(data):
                raise OSError(errno.ENOSPC, "the disk took only a part of a line")
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
        os.fsync(file.fileno())
    if not size:
        sync_folder(path.parent)


def _cut_broken_line(file: FileIO) -> int:
    """Cut off what a crash left behind the last whole line; the size in bytes."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            size = file.truncate(file.readall().rfind(b"\n") + 1)
    return size
