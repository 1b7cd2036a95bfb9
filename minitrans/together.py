"""A JSON file and the files of arrays that it names: the one rename of the first changes all of them together.

The arrays are in files that are named after their content, so that those of before and of after can lie side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from minitrans.errors import MinitransError
from minitrans.files import locked, make_folder, reporting, write_file

T = TypeVar("T")


def content_name(stem: str, sha256: str) -> str:
    """The name of a file of arrays after what it holds: another content never takes its place."""
    return f"{stem}-{sha256[:16]}.safetensors"


def write_together(
    path: Path, data: bytes, arrays: Mapping[str, Callable[[Path, Path], object]], clean: Callable[[bool], None]
) -> None:
    """Write a JSON file and the files of arrays that it names, all of them or none.

    The arrays come first, then the JSON file, then the old arrays go: whoever reads meanwhile, or goes on after this
    process was killed, has what was there before or what is new.

    Args:
        path: of the JSON file. Its folder is made where it is missing, and removed again if nothing can be written.
        data: what the JSON file is to hold.
        arrays: the name of each file beside it (see `content_name`), and what writes that, given its path and one whose
            permissions it takes.
        clean: removes what the JSON file does not name, after a failure too. It is told whether the folder is `locked`.

    Raises:
        InputTypeError, InputError, WriteError: see `minitrans.files.atomic_file`.
    """

    def write_arrays() -> None:
        for name, write in arrays.items():
            write(path.with_name(name), path)

    with reporting(path):
        new = make_folder(path.parent)
    try:
        with locked(path.parent) as held:
            try:
                write_arrays()
                write_file(path, data)
                if not all(path.with_name(name).exists() for name in arrays):
                    write_arrays()  # another process, without locks, saw no use for them
            finally:
                clean(held)
    except BaseException:
        with suppress(OSError):
            for each in new:
                each.rmdir()
        raise


def consistent(folder: Path, read: Callable[[], T]) -> T:
    """What ``read`` makes of such files of a folder, all of one save, while others may be saving there.

    ``read`` fails where a save comes between, and is tried again, at last with the folder locked. What fails then is
    really broken, and the error is that of ``read``.
    """
    for _ in range(2):
        with suppress(MinitransError):
            return read()
    with locked(folder, shared=True) as held:
        for _ in range(0 if held else 20):  # where there are no locks, luck has to do
            with suppress(MinitransError):
                return read()
            time.sleep(0.01)
        return read()
