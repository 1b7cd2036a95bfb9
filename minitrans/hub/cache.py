"""Copies of models on this machine: where they lie, whether they are whole, and unchanged since they were checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from minitrans.contents import read_json
from minitrans.errors import ConfigError, DigestError, InputError, InputTypeError, MinitransError
from minitrans.files import recover_folder, sha256_of, write_file
from minitrans.hub.names import COMMIT, Wanted
from minitrans.models.folder import ModelFolder
from minitrans.models.manifest import KnownModel, size_of, verify


def missing_files(snapshot: Path, known: KnownModel | None = None) -> list[str]:
    """List what a snapshot in the hub's cache lacks to be a whole model.

    Other programs fetch single files into the same cache, so that a folder alone says little. ``modules.json`` counts
    as missing unless the hub is on record as having none: without it the pooling would silently be the default one.
    """
    folder = ModelFolder(snapshot)
    missing = {*folder.missing(), *(name for name in (known.files if known else ()) if not (snapshot / name).is_file())}
    record = snapshot.parent.parent / ".no_exist" / snapshot.name / "modules.json"
    if folder.modules is None and not record.exists():
        missing.add("modules.json")
    return sorted(missing)


def lacking(folder: Path, missing: list[str]) -> str:
    """What a folder lacks, for messages."""
    lacks = f"{folder}: lacks {', '.join(missing[:4])}{' ...' if missing[4:] else ''}"
    return lacks if folder.is_dir() else f"no {folder}"


@dataclass(frozen=True)
class Seal:
    """A note of size and times of a cached model's files when they were checked, which spares later loads the digests.

    Attributes:
        path: of the note, in our own cache.
        folder: the model that it vouches for.
        known: whose digests apply, or None.
    """

    path: Path
    folder: Path
    known: KnownModel | None

    def holds(self) -> bool:
        """Whether the note is there and still true: no file that an encoder reads was changed, added or removed."""
        note = self._note()
        states = {name: _state(self.folder / name) for name in ModelFolder(self.folder).files()}
        return bool(note) and note.get("digests") == self._digests() and note.get("files") == states

    def begin(self, names: Collection[str]) -> None:
        """Note which files are about to be fetched: until `Seal.check`, the model is whole only with all of them."""
        noted = self._note().get("sha256", {})
        self._write({"folder": str(self.folder), "sha256": noted, "fetching": sorted(names)})

    def lacks(self) -> list[str]:
        """The files that an interrupted fetch has not brought."""
        names = self._note().get("fetching", [])
        return [str(name) for name in names if not (self.folder / str(name)).is_file()]

    def check(self, *, whole: bool = False) -> None:
        """Check the files and write the note.

        They have to be those of the manifest; else those of the last note, or as the hub's cache names them by their
        digests. Nothing is known of a model that another program fetched: it has to stay as it is at first.

        Args:
            whole: the hub has just delivered every file: what was noted before does not count.

        Raises:
            DigestError: a file is another one, is gone, or was added.
            ModelNotFoundError: a file of the manifest is missing.
        """
        names = ModelFolder(self.folder).files()
        states = {name: _state(self.folder / name) for name in names}  # before the files are read
        if self.known is not None:
            verify(self.folder, self.known)
        published, noted = self._digests(), {} if whole else self._note().get("sha256", {})
        if not (published or noted or whole or _can_write(self.path)):
            return
        seen = {name: published.get(name) or sha256_of(self.folder / name) for name in names}
        for name in sorted({*names, *noted}, key=lambda name: size_of(self.folder / name)):
            path = self.folder / name
            wanted = published.get(name) or _name_in_cache(path) or noted.get(name)
            if name not in seen:
                raise DigestError(f"{path} is gone since the model was fetched.")
            if wanted is None and noted:
                raise DigestError(f"{path} was added since the model was fetched.")
            if wanted is not None and wanted not in (seen[name], *(_sha1(path) if len(wanted) == 40 else ())):
                raise DigestError(f"{path} is not what was fetched: it has sha256 {seen[name]}, wanted {wanted}.")
        self._write({"folder": str(self.folder), "digests": published, "files": states, "sha256": seen})

    def _write(self, note: dict[str, Any]) -> None:
        with suppress(OSError, MinitransError):  # a cache that cannot be written costs a check at each load
            write_file(self.path, json.dumps(note, indent=1).encode())

    def _note(self) -> dict[str, Any]:
        try:
            note = read_json(self.path)
        except ConfigError:  # there is none, or none that can be read
            return {}
        return note if note.get("folder") == str(self.folder) and isinstance(note.get("sha256"), dict) else {}

    def _digests(self) -> dict[str, str]:
        return dict(self.known.files) if self.known else {}


def _state(path: Path) -> list[int] | None:
    with suppress(OSError):
        state = path.stat()
        return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    return None


def _can_write(path: Path) -> bool:
    return os.access(next(each for each in path.absolute().parents if each.exists()), os.W_OK)


def _name_in_cache(path: Path) -> str | None:
    """The digest by which the hub's cache names a file that is a link to it: sha256, or of small files a sha1."""
    target = path.resolve() if path.is_symlink() else path
    named = target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", target.name)
    return target.name if named else None


def _sha1(path: Path) -> list[str]:
    """The sha1 of a file as git computes it, which the hub uses, and the plain one, which some proxies use."""
    data = path.read_bytes()
    return [hashlib.sha1(each, usedforsecurity=False).hexdigest() for each in (b"blob %d\0" % len(data) + data, data)]


def caches(cache_folder: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    """The folders of our own cache and of the hub's."""
    if cache_folder is not None:
        folder = expanded(cache_folder, "cache_folder")
        if not str(cache_folder) or "\0" in str(cache_folder):
            raise InputError(f"cache_folder is {str(cache_folder)!r:.300}, which cannot be a path; name another")
        folders = folder / "minitrans", folder
    else:
        constants = constants_of_the_hub()
        folders = Path(constants.HF_ASSETS_CACHE, "minitrans"), Path(constants.HF_HUB_CACHE)
    try:
        return folders[0].absolute(), folders[1].absolute()
    except OSError:
        raise InputError(
            f"the cache is {folders[1]} in the working folder, which is gone; give a whole path as cache_folder, or "
            "as HF_HOME"
        ) from None


def constants_of_the_hub() -> ModuleType:
    """huggingface_hub.constants, which follows the HF_* variables. DownloadError without huggingface_hub."""
    try:
        from huggingface_hub import constants
    except ValueError as error:  # a variable that should be a number
        raise InputError(f"huggingface_hub cannot start: {error}; look at the variables HF_HUB_*") from None
    return constants


def cached(wanted: Wanted) -> tuple[Path | None, list[str]]:
    """The cached folder, or None and where it was looked for. DigestError if the only complete copy is a wrong one."""
    tried: list[str] = []
    wrong: DigestError | None = None
    for folder, note in _copies(wanted):
        mirrored = note.name.endswith(MIRRORED)
        seal = Seal(note, folder, wanted.known)
        try:
            if seal.holds():
                return folder, tried
            if mirrored and wanted.known is not None:
                missing = [name for name in wanted.known.files if not (folder / name).is_file()]
            else:
                missing = sorted({*missing_files(folder, wanted.known), *seal.lacks()})
            if missing:
                tried.append(lacking(folder, missing))
                continue
            seal.check()
        except DigestError as error:
            if mirrored or wanted.known is None or folder.name == wanted.revision:
                wrong = wrong or error
            tried.append(str(error))
        except OSError as error:
            tried.append(f"{folder}: {error.strerror or error}")
        else:
            return folder, tried
    if wrong is not None:
        command = f"minitrans pull {wanted.name} --force"
        command += f" --revision {wanted.revision}" if wanted.known is None and wanted.revision else ""
        command += "" if wanted.cache_folder is None else f" --cache-folder {wanted.cache_folder}"
        raise DigestError(f"{wrong} The model is not used. Fetch it again: `{command}`.")
    return None, tried


def _copies(wanted: Wanted) -> Iterator[tuple[Path, Path]]:
    """The folders that may hold the model, the likeliest first, and for each the note that it was checked."""
    own, hub = caches(wanted.cache_folder)
    notes = own / wanted.folder
    if wanted.known is not None and wanted.known.mirrors:
        recover_folder(notes / str(wanted.revision))
        yield notes / str(wanted.revision), notes / f"{wanted.revision}{MIRRORED}"
    repository = hub / f"models--{wanted.folder}"
    snapshots = repository / "snapshots"
    revision = wanted.revision or "main"
    if not COMMIT.fullmatch(revision):
        reference = repository / "refs" / revision
        with suppress(OSError, ValueError):
            revision = reference.read_text(encoding="utf-8").strip()
        if not COMMIT.fullmatch(revision):  # the file could say "../.."
            yield reference, notes / f"{reference.name}.json"
            return
    yield snapshots / revision, notes / f"{revision}.json"
    # A known model's bytes are what counts: other revisions with the same files serve as well.
    if wanted.known is not None:
        others: list[Path] = []
        with suppress(OSError):
            others = sorted(path for path in snapshots.iterdir() if path.name != revision and path.is_dir())
        yield from ((path, notes / f"{path.name}.json") for path in others)


MIRRORED = ".mirror.json"  # ends the name of the note for what came from a mirror


def expanded(path: str | os.PathLike[str], what: str) -> Path:
    """The path with the home folder in place of "~"; ``what`` it is the path of stands in the error."""
    try:
        return Path(path).expanduser()
    except TypeError:
        raise InputTypeError(f"{what} is {type(path).__name__}, wanted str or a path") from None
    except RuntimeError:
        user = Path(path).parts[0]
        raise InputError(f"{what} is {str(path)!r:.300}, but {user} has no home folder; give the whole path") from None
