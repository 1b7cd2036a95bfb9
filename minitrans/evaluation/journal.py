"""Journal: results that are finished, one JSON line each, so that an interrupted run goes on where it was.

A journal is a text file of lines: a header that names the format, then one ``{"key": ..., "value": ...}`` per result.
Lines are only ever appended, in one write each, so that a crash can damage no more than the end of the last one.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minitrans.errors import InputError
from minitrans.files import reporting, sync_folder, target_of

FORMAT, VERSION = "minitrans-journal", 1


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


def _header() -> bytes:
    return (json.dumps({"format": FORMAT, "version": VERSION}, separators=(",", ":")) + "\n").encode()


def _load(path: Path) -> dict[str, str]:
    try:
        if path.exists() and not path.is_file():  # opening a pipe waits for a writer
            raise InputError(f"cannot read the journal {path}: it is no regular file; give another path")
        with path.open("rb") as file, _locked(file.fileno(), shared=True):
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
    if not end and _header().startswith(line):
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
    path.parent.mkdir(parents=True, exist_ok=True)
    # O_APPEND: the end is found and written to in one step, whoever else appends.
    binary = getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | binary, 0o666)
    try:
        with _locked(descriptor):
            _check_begin(path, os.read(descriptor, 4096))  # it may have come since the journal was opened
            size = _repaired(descriptor)
            data = line if size else _header() + line
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError(errno.ENOSPC, "the disk took only a part of a line")
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
            os.fsync(descriptor)
            if not size:
                sync_folder(path.parent)
    finally:
        os.close(descriptor)


def _repaired(descriptor: int) -> int:
    """Cut off what a crash left behind the last whole line; the size in bytes."""
    size = end = os.lseek(descriptor, 0, os.SEEK_END)
    while end:
        begin = max(0, end - 4096)
        os.lseek(descriptor, begin, os.SEEK_SET)
        found = os.read(descriptor, end - begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        os.ftruncate(descriptor, end)
    return end


@contextmanager
def _locked(descriptor: int, shared: bool = False) -> Iterator[None]:
    """Keep other processes out, where the system can; without it, appending in one write is what there is."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    else:
        yield
