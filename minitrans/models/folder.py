"""A model folder, opened once: where its files lie, and that none of them is refused."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from minitrans.contents import _MODULE_FOLDER, _REFUSED_FILES, SENTENCE_CONFIGS, check_keys, read_json
from minitrans.errors import ConfigError, ModelError, ModelNotFoundError, UnsupportedModelError


def model_file(folder: Path, name: str) -> Path:
    """The path of a file of a model folder, refused where it would leave the folder.

    The hub cache's own layout is the one exception: there ``snapshots/<revision>/x`` links to ``blobs/y``.

    Raises:
        ConfigError: an absolute name, one with "..", or a symlink that leads out.
        ModelNotFoundError: no such file.
    """
    path = folder / name
    try:
        root, target = folder.resolve(), path.resolve()
        is_file = target.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a NUL in it, links that go round in circles
        raise ConfigError(f"{folder}: {name!r} cannot name a file ({error}); fetch the model again") from error
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    plain = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not plain or not any(target.is_relative_to(place) for place in allowed):
        remedy = "; replace the link by the file" if path.is_symlink() else ""
        raise ConfigError(
            f"{folder}: {name!r} leads to {target}, wanted a relative name inside the model folder{remedy}"
        )
    if not is_file:
        raise ModelNotFoundError(f"{path} is missing; fetch the model again")
    return path


def optional_file(folder: Path, name: str) -> Path | None:
    """The path of a file that a model folder need not have; a dangling link counts as there, and is refused."""
    return model_file(folder, name) if os.path.lexists(folder / name) else None


# The module of the class is another in each release of sentence-transformers, the class is the same.
_MODULE_TYPE = re.compile(r"sentence_transformers(?:\.\w+)*\.(\w*)")


_MODULE_KINDS = ("Transformer", "Pooling", "Dropout", "Normalize")


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, path) of each module of ``modules.json``; the path is relative, "" for the folder itself.

    Raises:
        ConfigError: the file is broken.
        UnsupportedModelError: a module of another kind, or of another package.
        ModelNotFoundError: there is none.
    """
    file = model_file(folder, "modules.json")
    entries: list[tuple[str, str]] = []
    names: set[str] = set()
    for place, module in enumerate(read_json(file, list)):
        kind, path = (module.get("type"), module.get("path", "")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise ConfigError(f"{file} holds {module!r}, wanted a list of objects with a 'type' and a 'path'")
        check_keys(module, "modules.json", str(file))
        if (name := str(module.get("name", place))) in names:
            raise ConfigError(f"{file}: two modules are named {name!r}, wanted a name of its own for each")
        names.add(name)
        entries.append((_module_kind(kind, file), PurePosixPath(path).as_posix() if path not in ("", ".") else ""))
    return entries


def _module_kind(name: str, file: Path) -> str:
    match = _MODULE_TYPE.fullmatch(name)
    if match is None:
        raise UnsupportedModelError(
            f"{file}: the type {name!r} is no module of sentence-transformers, and code of the model's own is not run; "
            "wanted sentence_transformers.models.Transformer, .Pooling, .Dropout or .Normalize"
        )
    if (kind := match[1]) not in _MODULE_KINDS:
        raise UnsupportedModelError(
            f"{file}: module {kind!r} is not supported, wanted Transformer, Pooling, Dropout or Normalize"
        )
    return kind


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, known to hold nothing that is refused by name.

    Attributes:
        path: where ``modules.json`` lies, if there is one.
        transformer: where the configuration, weights and tokenizer lie: "" for the folder itself, or the relative
            path that ``modules.json`` gives, as older releases of sentence-transformers wrote ("0_Transformer").
    """

    path: Path
    transformer: str = ""

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Look where the transformer lies, and for files that are refused.

        Raises:
            UnsupportedModelError: a file or module that is not supported, or several Transformers.
            ConfigError: ``modules.json`` is broken, or this is the inner folder of another.
        """
        transformer = ""
        if optional_file(path, "modules.json") is not None:
            paths = [place for kind, place in read_modules(path) if kind == "Transformer"]
            if len(paths) > 1:
                raise UnsupportedModelError(f"{path / 'modules.json'} has {len(paths)} Transformer modules, wanted one")
            transformer = "".join(paths)
        else:
            _refuse_inner(path)
            _refuse_without_modules(path)
        found = cls(path, transformer)
        for name, why in _REFUSED_FILES.items():
            for place in {name, found.name(name)}:
                if os.path.lexists(path / place):
                    raise UnsupportedModelError(f"{path / place} is {why}")
        return found

    def name(self, name: str) -> str:
        """The name, from this folder, of a file that lies beside the transformer."""
        return (PurePosixPath(self.transformer) / name).as_posix()

    def has(self, name: str) -> bool:
        """Whether there is such a file beside the transformer; a dangling link counts."""
        return os.path.lexists(self.path / self.name(name))

    def file(self, name: str) -> Path:
        """The path of a file beside the transformer, as `model_file`."""
        return model_file(self.path, self.name(name))

    def settings(self, name: str) -> dict[str, Any]:
        """The checked keys of a JSON object beside the transformer; nothing where there is no such file."""
        if not self.has(name):
            return {}
        file = self.file(name)
        values = read_json(file)
        check_keys(values, name, str(file))
        return values

    def sentence_settings(self) -> tuple[str, dict[str, Any]]:
        """The name and the keys of the first of `SENTENCE_CONFIGS` that says anything."""
        for name in SENTENCE_CONFIGS:
            if values := self.settings(name):
                return name, values
        return SENTENCE_CONFIGS[0], {}


def _refuse_inner(path: Path) -> None:
    """A folder that the modules.json beside it calls the transformer: how to pool is said out there."""
    outer = path.resolve().parent
    if not _MODULE_FOLDER.fullmatch(path.resolve().name) or not (outer / "modules.json").is_file():
        return
    try:
        modules = read_modules(outer)
    except (ModelError, ModelNotFoundError):
        return  # of something else
    if ("Transformer", path.resolve().name) in modules:
        raise ConfigError(
            f"{path} is the transformer of the model in {outer}, whose modules.json says how to pool; give {outer}, or "
            "copy this folder elsewhere for a model with mean pooling"
        )


def _refuse_without_modules(path: Path) -> None:
    """Refuse settings that are read only beside a modules.json, which is not there: pooling would be guessed."""
    for name in ("config_sentence_transformers.json", "1_Pooling/config.json"):
        if os.path.lexists(path / name):
            raise ConfigError(
                f"{path} has {name} but no modules.json, which says how to pool; fetch the model again, or remove "
                f"{name} for a model with mean pooling"
            )
