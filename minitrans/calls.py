"""What a call of ``SentenceEncoder.encode`` is given, checked; and the settings of a sentence-transformers folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans.config import PruningPolicy, optional_file, read_json
from minitrans.errors import ConfigError, InputError, InputTypeError
from minitrans.vectors import Precision

logger = logging.getLogger("minitrans")


@dataclass(frozen=True)
class Call:
    """What one call of encode asks for, checked."""

    batch_size: int
    policy: PruningPolicy | None
    precision: Precision
    normalize: bool
    dimension: int


class Progress:
    """A tqdm bar on standard error if one is wanted, else nothing."""

    def __init__(self, total: int, wanted: bool | None) -> None:
        if wanted is None:
            wanted = logger.getEffectiveLevel() <= logging.INFO and sys.stderr.isatty()
        self._total, self._wanted = total, wanted

    def __enter__(self) -> None:
        self._bar: Any = None
        if self._wanted:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit=" texts")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, texts: int) -> None:
        """So many more texts are done."""
        if self._bar is not None:
            self._bar.update(texts)


def sentence_settings(folder: Path) -> dict[str, Any]:
    """``config_sentence_transformers.json``, its fields checked."""
    file = optional_file(folder, "config_sentence_transformers.json")
    if file is None:
        return {}
    settings = read_json(file)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConfigError(f"{file}: prompts is {prompts!r}, wanted name -> text")
    for key, kind in (("default_prompt_name", str), ("similarity_fn_name", str), ("truncate_dim", int)):
        if not isinstance(settings.get(key), kind | None):
            raise ConfigError(f"{file}: {key} is {settings[key]!r}, wanted a {kind.__name__}")
    return settings


def as_texts(sentences: object) -> list[str]:
    """A str, or any iterable of str, as a list. InputTypeError names the index and type of anything else."""
    if isinstance(sentences, str):
        return [sentences]
    if isinstance(sentences, bytes | Mapping) or not isinstance(sentences, Iterable):
        raise InputTypeError(f"sentences is a {type(sentences).__name__}, wanted a str or an iterable of str")
    texts = list(sentences)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(f"text {i} is a {type(text).__name__} ({text!r:.50}), wanted a str")
    return texts


def output_array(out: NDArray[Any] | None, shape: tuple[int, int], dtype: type[np.generic]) -> NDArray[Any]:
    """A new array, or the caller's own if it fits. InputError says what would."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        seen = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out is {seen}, wanted an array of {np.dtype(dtype)} {list(shape)}")
    if not out.flags.writeable:
        raise InputError("out is read-only, wanted an array that can be written")
    return out
