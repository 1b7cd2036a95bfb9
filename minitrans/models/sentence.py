"""What a folder says of sentences: how tokens are pooled, which prompts there are, how vectors are compared."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from minitrans.arguments import check_choice, check_int
from minitrans.errors import ConfigError, InputError, UnsupportedModelError
from minitrans.models.folder import ModelFolder

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
SimilarityName = Literal["cosine", "dot", "euclidean", "manhattan"]

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
    def from_folder(cls, folder: Path | ModelFolder, hidden_size: int) -> PoolingConfig:
        """What ``modules.json`` says; without one it is mean pooling, as in sentence-transformers.

        Raises:
            UnsupportedModelError: a module other than Transformer, Pooling, Dropout and Normalize, or out of place.
            ConfigError: a broken file.
        """
        there = ModelFolder.open(folder)
        if there.modules is None:
            return cls()
        file = there.path / "modules.json"
        modes: tuple[PoolingMode, ...] | None = None
        normalize = False
        before = ""
        for module in there.modules:
            kind = module.kind
            if (kind == "Transformer") != (before == "") or (kind == "Pooling") != (before == "Transformer"):
                raise UnsupportedModelError(f"{file}: {kind} is out of place, wanted Transformer, Pooling, Normalize")
            if kind == "Pooling":
                modes = _read_modes(there, module.file, hidden_size)
            elif kind != "Transformer":  # Dropout does nothing while encoding
                normalize |= kind == "Normalize"
                if module.path:
                    there.checked(module.file, kind)
            before = kind
        if modes is None:
            raise UnsupportedModelError(f"{file}: there is no Pooling module, wanted one")
        return cls(modes, normalize)


def _read_modes(folder: ModelFolder, name: str, hidden_size: int) -> tuple[PoolingMode, ...]:
    file = folder.inside(name)
    values = folder.checked(name, "Pooling")
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


def check_prompts(prompts: object, source: str) -> dict[str, str]:
    """Name -> text. InputError names the source."""
    if not isinstance(prompts, Mapping) or not all(isinstance(x, str) for pair in prompts.items() for x in pair):
        raise InputError(f"{source}: prompts is {prompts!r:.100}, wanted name -> text")
    return dict(prompts)


def sentence_settings(folder: ModelFolder) -> dict[str, Any]:
    """``config_sentence_transformers.json``, its fields checked; ModelError names the one that is wrong."""
    name = "config_sentence_transformers.json"
    settings = {**folder.checked(name, name)}
    file = folder.path / name
    try:
        settings["prompts"] = check_prompts(settings.get("prompts") or {}, str(file))
        if (default := settings.get("default_prompt_name")) is not None:
            check_choice(f"{file}: default_prompt_name", default, settings["prompts"])
        if (similarity := settings.get("similarity_fn_name")) is not None:
            check_choice(f"{file}: similarity_fn_name", similarity, get_args(SimilarityName))
        if (dimension := settings.get("truncate_dim")) is not None:
            check_int(f"{file}: truncate_dim", dimension)
    except InputError as error:
        raise ConfigError(str(error)) from None
    return settings
