"""What a folder says of sentences: how tokens are pooled, which prompts there are, how vectors are compared."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from minitrans.arguments import check_choice, check_int
from minitrans.contents import check_keys, read_json
from minitrans.errors import ConfigError, InputError, UnsupportedModelError
from minitrans.models.folder import model_file, optional_file, read_modules

# The older key style: one boolean per mode.
_LEGACY_KEYS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class PoolingConfig:
    """How a model pools: one mode, or several whose vectors are concatenated; and whether it normalises."""

    modes: tuple[PoolingMode, ...] = ("mean",)
    normalize: bool = False

    @classmethod
    def from_folder(cls, folder: Path, hidden_size: int) -> PoolingConfig:
        """Follow ``modules.json``; without one it is mean pooling, as in sentence-transformers.

        Raises:
            UnsupportedModelError: a module other than Transformer, Pooling, Dropout and Normalize, or out of place.
            ConfigError: a broken file.
        """
        if optional_file(folder, "modules.json") is None:
            return cls()
        modes: tuple[PoolingMode, ...] | None = None
        normalize = False
        before = ""
        for kind, path in read_modules(folder):
            if (kind == "Transformer") != (before == "") or (kind == "Pooling") != (before == "Transformer"):
                raise UnsupportedModelError(
                    f"{folder / 'modules.json'}: {kind} is out of place, wanted Transformer, Pooling, Normalize"
                )
            if kind == "Pooling":
                modes = _read_modes(folder, pooling_file(path), hidden_size)
            elif kind != "Transformer":  # Dropout does nothing while encoding
                normalize |= kind == "Normalize"
                if path and (file := optional_file(folder, pooling_file(path))) is not None:
                    check_keys(read_json(file), kind, str(file))
            before = kind
        if modes is None:
            raise UnsupportedModelError(f"{folder / 'modules.json'}: there is no Pooling module, wanted one")
        return cls(modes, normalize)


def pooling_file(path: str) -> str:
    """The file, inside the model folder, that says how a module of kind "Pooling" with this path pools."""
    return (PurePosixPath(path) / "config.json").as_posix()


def _read_modes(folder: Path, name: str, hidden_size: int) -> tuple[PoolingMode, ...]:
    file = model_file(folder, name)
    values = read_json(file)
    check_keys(values, "Pooling", str(file))
    for key in ("include_prompt", *_LEGACY_KEYS):
        if not isinstance(values.get(key, False), bool):
            raise ConfigError(f"{file}: {key} is {values[key]!r:.100}, wanted true or false")
    if values.get("include_prompt") is False:
        raise UnsupportedModelError(
            f"{file}: include_prompt=false is not supported, wanted prompts that are pooled too"
        )
    width = values.get("embedding_dimension", values.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise ConfigError(f"{file}: the embeddings are {width!r} wide, wanted {hidden_size}, the model's hidden_size")
    modes: Any = values.get("pooling_mode")
    if modes is None and not any(key in values for key in _LEGACY_KEYS):
        modes = ["mean"]
    elif modes is None:
        modes = [mode for key, mode in _LEGACY_KEYS.items() if values.get(key) is True]
    elif isinstance(modes, str):
        modes = modes.split("+")
    known = get_args(PoolingMode)
    if not (isinstance(modes, list) and modes and all(mode in known for mode in modes) and len({*modes}) == len(modes)):
        raise ConfigError(f"{file}: pooling is {reprlib.repr(modes)}, wanted some of {', '.join(known)}, each once")
    return tuple(modes)


SimilarityName = Literal["cosine", "dot", "euclidean", "manhattan"]


def check_prompts(prompts: object, source: str) -> dict[str, str]:
    """Name -> text. InputError names the source."""
    if not isinstance(prompts, Mapping) or not all(isinstance(x, str) for pair in prompts.items() for x in pair):
        raise InputError(f"{source}: prompts is {prompts!r:.100}, wanted name -> text")
    return dict(prompts)


def sentence_settings(folder: Path) -> dict[str, Any]:
    """``config_sentence_transformers.json``, its fields checked; ModelError names the one that is wrong."""
    file = optional_file(folder, "config_sentence_transformers.json")
    if file is None:
        return {}
    settings = read_json(file)
    check_keys(settings, file.name, str(file))
    try:
        settings["prompts"] = check_prompts(settings.get("prompts") or {}, str(file))
        if (name := settings.get("default_prompt_name")) is not None:
            check_choice(f"{file}: default_prompt_name", name, settings["prompts"])
        if (name := settings.get("similarity_fn_name")) is not None:
            check_choice(f"{file}: similarity_fn_name", name, get_args(SimilarityName))
        if (dimension := settings.get("truncate_dim")) is not None:
            check_int(f"{file}: truncate_dim", dimension)
    except InputError as error:
        raise ConfigError(str(error)) from None
    return settings


PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
