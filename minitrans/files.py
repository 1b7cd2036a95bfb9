"""Where the bundled files lie, and how files and folders are written: wholly or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TypeGuard

from minitrans.errors import InputError, InputTypeError, MinitransError, ModelNotFoundError, WriteError

LOCK_SECONDS = 10  # how long to wait for another process that is saving in the same folder
STALE_SECONDS = 24 * 3600  # where there are no locks, what is older has no writer any more
_READ_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OLD = ".old.tmp"
_TEMPORARY = re.compile(r"\..*\.\d+-[0-9a-f]{8}(\.old)?\.tmp", re.DOTALL)


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


def is_sha256(value: object) -> TypeGuard[str]:
    """Whether a value is a digest as `sha256_of` gives it."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


@contextmanager
def atomic_file(
    path: str | os.PathLike[str], *, size: int | None = None, like: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """Write a file wholly or not at all.

    Yields the path of a temporary file beside ``path``, empty, to be written by any means. At the end of the block it
    is flushed to disk and renamed to ``path``, replacing an older file, whose permissions it takes. If the block raises
    anything, ``KeyboardInterrupt`` too, the temporary file is removed and ``path`` stays as it was. What a killed
    process left is removed by the next one that writes ``path``. Missing parents are created.

    Args:
        path: the file to make.
        size: how many bytes it will have, for the message where there is no room; None where that is not known.
        like: an older file whose permissions the new one takes, if it is there; None takes ``path`` itself.

    Raises:
        FileNotFoundError: the block wrote nothing.
        InputTypeError, InputError: ``path`` cannot be one, or names a folder or a device.
        WriteError: it cannot be written.
    """
    path = target_of(path)
    old = path if like is None else Path(like)
    with reporting(path, size):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is {kind_of(path)}, wanted a file; name another")
        make_folder(path.parent)
        remove_stale(path.parent, path.name)
    with _claimed(path, lambda temporary: _make_file(temporary, 0o600 if old.exists() else 0o666)) as temporary:
        with reporting(path, size, temporary):
            yield temporary
        with reporting(path, size):
            if temporary.stat().st_mtime == 0:
                raise FileNotFoundError(f"nothing was written to {path}")
            with temporary.open("r+b") as file:
                _keep_permissions(temporary, old)
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)


def kind_of(path: Path) -> str:
    """What there is, in words: "a file", "a folder", "a pipe", "a socket" or "a device". OSError: nothing."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(path.stat().st_mode), "a device")


def write_file(path: str | os.PathLike[str], data: bytes, like: str | os.PathLike[str] | None = None) -> None:
    """`atomic_file` for bytes that are at hand."""
    with atomic_file(path, size=len(data), like=like) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False, size: int | None = None) -> Iterator[Path]:
    """Fill a folder wholly or not at all.

    Yields a new empty folder beside ``path``. At the end of the block its files are flushed to disk and it is renamed
    to ``path``. If the block raises anything, ``KeyboardInterrupt`` too, it is removed and ``path`` stays as it was.
    What a killed process left is removed, or put back (see `recover_folder`), by the next one that makes ``path``.
    Missing parents are created.

    Args:
        path: the folder to make.
        replace: let the new folder take the place of an existing one; without it an existing ``path`` is an error.
        size: how many bytes it will hold, for the message where there is no room; None where that is not known.

    Raises:
        FileExistsError: ``path`` exists, or came to exist meanwhile, and ``replace`` is false.
        InputTypeError, InputError: ``path`` cannot be one.
        WriteError: it cannot be written.
    """
    path = target_of(path)
    with reporting(path, size):
        recover_folder(path)
        if not replace:
            _refuse_existing(path)
        make_folder(path.parent)
        remove_stale(path.parent, path.name)
    with _claimed(path, Path.mkdir) as temporary:
        with reporting(path, size, temporary):
            yield temporary
        with reporting(path, size):
            for each in temporary.rglob("*"):
                if each.is_dir() and not each.is_symlink():
                    sync_folder(each)
                elif each.is_file() and not each.is_symlink():
                    with each.open("r+b") as file:
                        os.fsync(file.fileno())
            sync_folder(temporary)
            if replace and os.path.lexists(path):
                _keep_permissions(temporary, path)
                _swap(temporary, path)
            else:
                _refuse_existing(path)
                try:
                    temporary.rename(path)
                except OSError:
                    _refuse_existing(path)  # another process was quicker
                    raise
            sync_folder(path.parent)


def recover_folder(path: Path) -> None:
    """Put an old folder back that was to be replaced by a process which was killed between the two renames."""
    if os.path.lexists(path):
        return
    for left in _leftovers(path.parent, path.name):
        if left.name.endswith(_OLD) and left.name.startswith(f".{path.name}."):
            with suppress(OSError):  # another process may be quicker
                left.rename(path)


def target_of(path: str | os.PathLike[str]) -> Path:
    """What a user named as a file or folder, as a path. InputTypeError or InputError where it cannot be one."""
    try:
        name = os.fsdecode(path)
        fine = bool(name) and b"\0" not in os.fsencode(name)
    except TypeError:
        raise InputTypeError(f"the path is a {type(path).__name__}; wanted a str or a path") from None
    except ValueError:  # a character that the file system's encoding lacks
        fine = False
    if not fine:
        raise InputError(f"{os.fspath(path)!r} cannot be a path; wanted one without NUL, not empty; name another")
    return Path(name)


@contextmanager
def reporting(path: Path, size: int | None = None, temporary: Path | None = None) -> Iterator[None]:
    """Turn an error of the system while ``path`` is written into a WriteError that says what is missing.

    Args:
        path: what is being written.
        size: its bytes, if they are known.
        temporary: leave errors alone that are neither about this path nor about room: the block does other things too.
    """
    try:
        yield
    except OSError as error:
        # Without a number it was not the system that raised it.
        if isinstance(error, MinitransError) or error.errno is None:
            raise
        if temporary is not None and error.errno not in _NO_ROOM:
            named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
            if not any(Path(name).is_relative_to(temporary) for name in named):
                raise
        told = WriteError(_told(path, error, size))
        told.errno, told.filename = error.errno, str(path)
        raise told from error


_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))


def _told(path: Path, error: OSError, size: int | None) -> str:
    import shutil

    message = f"cannot write {path}: {(error.strerror or str(error)).lower()}"
    if error.errno not in _NO_ROOM or error.errno == errno.EROFS:
        where = f" ({error.filename})" if error.errno in (errno.ENOTDIR, errno.EEXIST) and error.filename else ""
        return f"{message}{where}; name another place"
    wanted = "" if size is None else f"; wanted room for {size} bytes"
    with suppress(OSError):
        place = next(each for each in path.absolute().parents if each.is_dir())
        wanted += f"{',' if wanted else ';'} {shutil.disk_usage(place).free} bytes are free there"
    return f"{message}{wanted}; make room, or name another place"


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its parents where they are missing; returns those that are new, the deepest first."""
    new = list(takewhile(lambda each: not os.path.lexists(each), (path, *path.parents)))
    path.mkdir(parents=True, exist_ok=True)
    for each in new:
        sync_folder(each.parent)
    return new


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to disk, where the system can: before that a rename may be lost."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # a folder may be written to without being readable
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, *_NO_ROOM):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[bool]:
    """Keep others who ask for it out of a folder: processes and threads. Several may have it ``shared``.

    Yields whether that worked: some systems have no locks, and a process may keep one for longer than LOCK_SECONDS.
    """
    end = time.monotonic() + LOCK_SECONDS
    with _opened(folder) as descriptor:
        while (held := _flock(descriptor, shared)) is False and time.monotonic() <= end:
            time.sleep(0.002)
        yield bool(held)


def remove_unnamed(folder: Path, names: re.Pattern[str], named: Collection[str], held: bool) -> None:
    """Remove the files of a folder whose names match, unless they are ``named``.

    Args:
        folder: where they are.
        names: of files that are named after their content.
        named: those in use.
        held: whether the folder is `locked`; else another process may be about to name what it has just written, and
            only files that are older than STALE_SECONDS go.
    """
    with suppress(OSError):
        for each in [Path(entry.path) for entry in os.scandir(folder)]:
            if names.fullmatch(each.name) and each.name not in named and (held or _is_old(each)):
                with suppress(OSError):
                    each.unlink()


def remove_stale(folder: Path, name: str) -> None:
    """Remove the temporary files and folders that killed processes left of writing ``name...`` in a folder."""
    for left in _leftovers(folder, name):
        _remove(left)


def _leftovers(folder: Path, name: str) -> Iterator[Path]:
    """The temporaries of ``name...`` whose writers are gone, as their locks are; each is locked until the next."""
    try:
        entries = [*os.scandir(folder)]
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(f".{_short(name)}") and _TEMPORARY.fullmatch(entry.name):
            left = Path(entry.path)
            plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
            with _opened(left if plain else None) as descriptor:
                free = _flock(descriptor)
                if _is_old(left) if free is None else free:
                    yield left


def _is_old(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.stat().st_ctime > STALE_SECONDS
    return False


@contextmanager
def _claimed(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new temporary file or folder beside ``path``, locked so that others know that it is in use."""
    while True:
        # Not tempfile: its files and folders are readable by their owner only, also in a cache that a group shares.
        temporary = path.with_name(f".{_short(path.name)}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
        try:
            with reporting(path):
                make(temporary)
            with _opened(temporary) as descriptor:
                if _flock(descriptor) is False or not os.path.lexists(temporary):
                    continue  # another process took it for a leftover before it was locked
                yield temporary
                return
        finally:
            _remove(temporary)  # unless it was renamed


def _make_file(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    os.utime(path, (0, 0))  # any write changes that


def _short(name: str) -> str:
    return name if len(os.fsencode(name)) <= 200 else name[:48]  # a name has at most 255 bytes


@contextmanager
def _opened(path: Path | None) -> Iterator[int | None]:
    """A descriptor to lock a file or folder by, which is unlocked at the end; None where that cannot be had."""
    descriptor = None
    if path is not None and sys.platform != "win32":
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _flock(descriptor: int | None, shared: bool = False) -> bool | None:
    """Whether the lock could be had at once; None where there are no locks."""
    if descriptor is None or sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _keep_permissions(new: Path, old: Path) -> None:
    """Give what replaces ``old``, if that is there, its mode, and its owner and group as far as they can be given."""
    try:
        state = old.stat()
    except OSError:
        return
    mode = stat.S_IMODE(state.st_mode)
    if sys.platform != "win32":
        with suppress(OSError):
            os.chown(new, -1, state.st_gid)
            os.chown(new, state.st_uid, -1)
        if new.stat().st_gid != state.st_gid:
            mode &= ~0o070 | (mode & 0o007) << 3  # another group may do no more than everybody
    new.chmod(mode)


def _swap(temporary: Path, path: Path) -> None:
    # No system call exchanges two folders everywhere, so the old one steps aside and returns if the rename fails.
    aside = path.with_name(f".{_short(path.name)}.{os.getpid()}-{os.urandom(4).hex()}{_OLD}")
    with _opened(path) as descriptor:
        _flock(descriptor)
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


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
