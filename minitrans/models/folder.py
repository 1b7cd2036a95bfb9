"""A model folder, opened once: where its files lie, which of them are read, and that none of them is refused."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from minitrans.contents import (
    INDEX_FILE,
    MODULE_FOLDER,
    REFUSED_FILES,
    SENTENCE_CONFIGS,
    WEIGHTS_FILE,
    check_keys,
    files_to_fetch,
    read_json,
)
from minitrans.errors import ConfigError, MinitransError, ModelNotFoundError, UnsupportedModelError
from minitrans.files import is_inside

# The module of the class is another in each release of sentence-transformers, the class is the same.
_MODULE_TYPE = re.compile(r"sentence_transformers(?:\.\w+)*\.(\w*)")


class Module(NamedTuple):
    """A module of ``modules.json``: its kind, and its folder, which is "" for the model folder itself."""

    kind: str
    path: str

    @property
    def file(self) -> str:
        """The name, from the model folder, of the module's configuration."""
        return (PurePosixPath(self.path) / "config.json").as_posix()


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, where ``modules.json`` lies if there is one.

    `ModelFolder.open` refuses what must not be loaded; the value itself only looks, for what is fetched or checked.
    Each JSON file is read once: all that is made of one value saw the same files.
    """

    path: Path
    _values: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path | ModelFolder) -> ModelFolder:
        """Open a folder, unless it holds what is refused by name. One that is open stays it, with what was read.

        Raises:
            UnsupportedModelError: a file or module that is not supported, or several Transformers.
            ConfigError: ``modules.json`` is broken, or this is the inner folder of another.
        """
        folder = path if isinstance(path, ModelFolder) else cls(Path(path))
        if os.path.lexists(folder.path / "modules.json"):
            folder._check_modules()
        else:
            folder._refuse_without_modules()
        for name, why in REFUSED_FILES.items():
            for place in {name, folder.name(name)}:
                if os.path.lexists(folder.path / place):
                    raise UnsupportedModelError(f"{folder.path / place} is {why}")
        return folder

    @cached_property
    def modules(self) -> tuple[Module, ...] | None:
        """The modules of ``modules.json``, as far as it can be read; None where there is no such file."""
        try:
            values = self.read("modules.json", list)
        except MinitransError:
            return None
        pairs = [pair for value in values if (pair := _described(value)) is not None]
        return tuple(Module(kind.rpartition(".")[2], path if is_inside(path) else "") for kind, path in pairs)

    # Where files lie

    @property
    def transformer(self) -> str:
        """Where the configuration, weights and tokenizer lie.

        It is "" for the folder itself, or the relative path that ``modules.json`` gives, as older releases of
        sentence-transformers wrote ("0_Transformer").
        """
        return next((module.path for module in self.modules or () if module.kind == "Transformer"), "")

    def name(self, name: str) -> str:
        """The name, from this folder, of a file that lies beside the transformer."""
        return (PurePosixPath(self.transformer) / name).as_posix()

    def place(self, name: str) -> Path:
        """Where a file beside the transformer is, or would be, for messages."""
        return self.path / self.name(name)

    def has(self, name: str) -> bool:
        """Whether there is such a file beside the transformer; a dangling link counts."""
        return os.path.lexists(self.place(name))

    def file(self, name: str) -> Path:
        """The path of a file beside the transformer; raises as `inside`."""
        return self.inside(self.name(name))

    def inside(self, name: str) -> Path:
        """The path of a file of the folder, refused where it would leave it.

        The hub cache's own layout is the one exception: there ``snapshots/<revision>/x`` links to ``blobs/y``.

        Raises:
            ConfigError: an absolute name, one with "..", or a symlink that leads out.
            ModelNotFoundError: no such file.
        """
        path = self.path / name
        try:
            root, target = self.path.resolve(), path.resolve()
            is_file = target.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # too long, a NUL in it, links that go round in circles
            raise ConfigError(f"{self.path}: {name!r} cannot name a file ({error}); fetch the model again") from error
        allowed = [root]
        if root.parent.name == "snapshots":
            allowed.append(root.parent.parent / "blobs")
        plain = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not plain or not any(target.is_relative_to(place) for place in allowed):
            remedy = "; replace the link by the file" if path.is_symlink() else ""
            raise ConfigError(
                f"{self.path}: {name!r} leads to {target}, wanted a relative name inside the model folder{remedy}"
            )
        if not is_file:
            raise ModelNotFoundError(f"{path} is missing; fetch the model again")
        return path

    # What they hold

    def read(self, name: str, kind: type[Any] = dict) -> Any:
        """The JSON object (or list) in a file of the folder; raises as `inside` and `minitrans.contents.read_json`."""
        if name not in self._values:
            self._values[name] = read_json(self.inside(name), kind)
        return self._values[name]

    @property
    def config(self) -> dict[str, Any]:
        """``config.json`` of the transformer."""
        values: dict[str, Any] = self.read(self.name("config.json"))
        return values

    def checked(self, name: str, kind: str) -> dict[str, Any]:
        """The keys of a JSON object, each of them followed or harmless; nothing where there is no such file.

        Args:
            name: of the file, from this folder.
            kind: whose keys it may have, see `minitrans.contents.check_keys`.
        """
        if not os.path.lexists(self.path / name):
            return {}
        values: dict[str, Any] = self.read(name)
        check_keys(values, kind, str(self.path / name))
        return values

    def settings(self, name: str) -> dict[str, Any]:
        """`checked` for a file beside the transformer."""
        return self.checked(self.name(name), name)

    def sentence_settings(self) -> tuple[str, dict[str, Any]]:
        """The name and the keys of the first of `SENTENCE_CONFIGS` that says anything."""
        for name in SENTENCE_CONFIGS:
            if values := self.settings(name):
                return name, values
        return SENTENCE_CONFIGS[0], {}

    def _check_modules(self) -> None:
        file = self.path / "modules.json"
        names: set[str] = set()
        for place, module in enumerate(self.read("modules.json", list)):
            if (described := _described(module)) is None:
                raise ConfigError(f"{file} holds {module!r}, wanted a list of objects with a 'type' and a 'path'")
            check_keys(module, "modules.json", str(file))
            if (name := str(module.get("name", place))) in names:
                raise ConfigError(f"{file}: two modules are named {name!r}, wanted a name of its own for each")
            names.add(name)
            kind, path = described
            if (match := _MODULE_TYPE.fullmatch(kind)) is None:
                raise UnsupportedModelError(
                    f"{file}: the type {kind!r} is no module of sentence-transformers, and code of the model's own is "
                    "not run; wanted sentence_transformers.models.Transformer, .Pooling, .Dropout or .Normalize"
                )
            if match[1] not in ("Transformer", "Pooling", "Dropout", "Normalize"):
                raise UnsupportedModelError(
                    f"{file}: module {match[1]!r} is not supported, wanted Transformer, Pooling, Dropout or Normalize"
                )
            if path and not is_inside(path):
                raise ConfigError(f"{file}: a module has the path {path!r}, wanted one inside the model folder")
        if (count := sum(module.kind == "Transformer" for module in self.modules or ())) > 1:
            raise UnsupportedModelError(f"{file} has {count} Transformer modules, wanted one")

    def _refuse_without_modules(self) -> None:
        """Refuse a folder whose pooling would have to be guessed: a file elsewhere, or here, says how to pool."""
        path, outer = self.path.resolve(), self.path.resolve().parent
        if MODULE_FOLDER.fullmatch(path.name) and ("Transformer", path.name) in (ModelFolder(outer).modules or ()):
            raise ConfigError(
                f"{self.path} is the transformer of the model in {outer}, whose modules.json says how to pool; "
                f"give {outer}, or copy this folder elsewhere for a model with mean pooling"
            )
        for name in ("config_sentence_transformers.json", "1_Pooling/config.json"):  # read only beside modules.json
            if os.path.lexists(self.path / name):
                raise ConfigError(
                    f"{self.path} has {name} but no modules.json, which says how to pool; fetch the model again, or "
                    f"remove {name} for a model with mean pooling"
                )

    # Which are read

    @property
    def folders(self) -> list[str] | None:
        """The folders of the modules; None where none is known."""
        return [module.path for module in self.modules or ()] or None

    def shards(self) -> list[str]:
        """The weight files that the index names, also those that are missing or lead out of the folder."""
        if self.place(WEIGHTS_FILE).exists():
            return []
        try:
            weight_map = self.read(self.name(INDEX_FILE)).get("weight_map")
        except MinitransError:  # who loads the weights says why
            return []
        names = weight_map.values() if isinstance(weight_map, dict) else ()
        return sorted({self.name(name) for name in names if isinstance(name, str) and name})

    def files(self) -> list[str]:
        """The files here that are read, and those for which the folder is refused."""
        here = {path.name for path in _files_in(self.path)}
        for place in self.folders or [path.name for path in _files_in(self.path, folders=True)]:
            here |= {f"{place}/{path.name}" for path in _files_in(self.path / place) if place}
        return sorted({*files_to_fetch(here, self.folders), *(here & {*self.shards()})})

    def missing(self) -> list[str]:
        """The files that are not here, and without which this is no whole model."""
        needed = [self.name("config.json"), *(module.file for module in self.modules or () if module.kind == "Pooling")]
        if not _is_file(self.place("vocab.txt")):
            needed.append(self.name("tokenizer.json"))
        needed += self.shards() or [self.name(WEIGHTS_FILE)]
        return sorted({name for name in needed if not _is_file(self.path / name)})


def _described(module: object) -> tuple[str, str] | None:
    """Type and path of an entry of modules.json, the path "" for the folder itself; None where it says neither."""
    kind, path = (module.get("type"), module.get("path", "")) if isinstance(module, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(path, str):
        return None
    return kind, "" if path in ("", ".") else PurePosixPath(path).as_posix()


def _files_in(path: Path, folders: bool = False) -> list[Path]:
    """The files of a folder, or the folders in it; a link that leads nowhere counts as a file."""
    with suppress(OSError):  # no folder, or one that may not be read
        return [each for each in path.iterdir() if (each.is_dir() if folders else each.is_symlink() or each.is_file())]
    return []


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # a name that no file can have
        return path.is_file()
    return False
