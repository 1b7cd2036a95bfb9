"""What a call of ``SentenceEncoder.encode`` is given, checked; and the settings of a sentence-transformers folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from minitrans.columns import plain, str_items
from minitrans.config import check_choice, check_int
from minitrans.contents import check_keys, optional_file, read_json
from minitrans.errors import ConfigError, InputError
from minitrans.policy import PruningPolicy
from minitrans.vectors import Precision, SimilarityName

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

    def __init__(self, total: int, wanted: bool | None, unit: str = " texts") -> None:
        if wanted is None:
            wanted = logger.getEffectiveLevel() <= logging.INFO and sys.stderr.isatty()
        self._total, self._wanted, self._unit = total, wanted, unit

    def __enter__(self) -> None:
        self._bar: Any = None
        if self._wanted:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit=self._unit)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        """So many more are done."""
        if self._bar is not None:
            self._bar.update(count)


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


def as_texts(sentences: object) -> list[str]:
    """A str, or the items of any column of str (see `minitrans.columns`), as a list. Raises as `str_items` does."""
    return [plain(sentences)] if isinstance(sentences, str) else str_items(sentences, "sentences")


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
