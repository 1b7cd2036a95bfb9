"""Where the bundled files lie, and the few file helpers that several modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitrans.errors import InputError, ModelNotFoundError

_READ_BYTES = 1 << 20


def bundled(relative: str) -> Path:
    """Find a file or folder that travels with minitrans.

    Args:
        relative: its path with forward slashes, as in a checkout: ``"weights/manifest.toml"``.

    Returns:
        The path inside the installed package, or inside the checkout for an editable install.

    Raises:
        InputError: ``relative`` is absolute or climbs out with ``..``.
        ModelNotFoundError: neither place holds it.
    """
    if not is_inside(relative):
        raise InputError(f"{relative!r} cannot name a bundled file: give a relative path without '..' or backslashes.")
    package = Path(__file__).resolve().parent
    roots = [package / "bundled"]
    # Beside an installed package lies site-packages, where a folder "weights" would be somebody else's.
    if (package.parent / "pyproject.toml").is_file():
        roots.append(package.parent)
    for root in roots:
        if (root / relative).exists():
            return root / relative
    tried = ", ".join(str(root / relative) for root in roots)
    raise ModelNotFoundError(
        f"The bundled {relative!r} is missing (looked for {tried}). Reinstall minitrans, or restore the file."
    )


def is_inside(relative: str) -> bool:
    """Tell whether ``relative`` is a plain relative path that stays below the folder it is joined to.

    Forward slashes only; no ``..``, drive letter, backslash or control character, on any platform.
    """
    parts = relative.split("/")
    return all(part not in ("", ".", "..") for part in parts) and not any(
        character in '\\:*?"<>|' or ord(character) < 32 for character in relative
    )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file as 64 lower-case hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    import hashlib

    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file wholly or not at all.

    Yields the path of a temporary file beside ``path`` (not yet created) to be written by any means. At the end of the
    block it is flushed to disk and renamed to ``path``, replacing an older file. If the block raises anything,
    ``KeyboardInterrupt`` too, the temporary file is removed and ``path`` stays as it was. Missing parents are created.

    Raises:
        FileNotFoundError: the block wrote nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder wholly or not at all.

    Yields a new empty folder beside ``path``. At the end of the block its files are flushed to disk and it is renamed
    to ``path``. If the block raises anything, ``KeyboardInterrupt`` too, it is removed and ``path`` stays as it was.
    Missing parents are created.

    Args:
        path: the folder to make.
        replace: let the new folder take the place of an existing one; without it an existing ``path`` is an error.

    Raises:
        FileExistsError: ``path`` exists, or came to exist meanwhile, and ``replace`` is false.
    """
    path = Path(path)
    if not replace:
        _refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _flush(file)
        if replace and os.path.lexists(path):
            _swap(temporary, path)
        else:
            _rename_new(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def _rename_new(temporary: Path, path: Path) -> None:
    _refuse_existing(path)
    try:
        temporary.rename(path)
    except OSError:
        _refuse_existing(path)  # another process was quicker
        raise


def _swap(temporary: Path, path: Path) -> None:
    # No system call exchanges two folders everywhere, so the old one steps aside and returns if the rename fails.
    aside = _sibling(path)
    try:
        path.rename(aside)
        temporary.rename(path)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(path):
            aside.rename(path)
        raise
    _remove(aside)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already. Give another path, or ask for it to be replaced.")


def _sibling(path: Path) -> Path:
    # Not tempfile: its files and folders are readable by their owner only, also in a cache that a group shares.
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
