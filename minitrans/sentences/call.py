"""What a call of ``SentenceEncoder.encode`` is given, checked."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minitrans.columns import plain, str_items
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.selection import kept_count
from minitrans.errors import (
    InputError,
    InputTypeError,
    PruningWarning,
    TruncationError,
    TruncationWarning,
)
from minitrans.sentences.vectors import Precision

logger = logging.getLogger("minitrans")


OnTruncation = Literal["warn", "error", "ignore"]


@dataclass(frozen=True)
class Call:
    """What one call of encode asks for, checked, and how the encoder was set when it began."""

    batch_size: int
    policy: PruningPolicy | None
    precision: Precision
    normalize: bool
    dimension: int
    limit: int  # max_seq_length
    on_truncation: OnTruncation
    threads: int


@dataclass(frozen=True)
class PrunedText:
    """A text's tokens, special ones included, and whether each is kept to the end."""

    tokens: list[str]
    kept: list[bool]


class Lengths:
    """How long the texts of a call are, in tokens: what is to be said about that, once, at its end."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._cut: list[int] = []  # which texts
        self._unseen: list[int] = []  # lengths that are pruned though the policy was not fitted on them

    def add(self, lengths: Sequence[int], begin: int) -> None:
        """Of some texts, the first of which is text ``begin``. TruncationError where that is asked for."""
        call = self._call
        too_long = [i for i, length in enumerate(lengths) if length > call.limit]
        if too_long and call.on_truncation == "error":
            raise TruncationError(
                f"text {begin + too_long[0]} has {lengths[too_long[0]]} tokens, max_seq_length is {call.limit}; "
                'shorten it, or accept it with SentenceEncoder(on_truncation="warn")'
            )
        self._cut.extend(begin + i for i in too_long)
        if call.policy is not None:
            self._unseen.extend(unseen(call.policy, [min(length, call.limit) for length in lengths]))

    def warn(self, texts: int, stacklevel: int) -> None:
        """One warning of each kind that there is cause for."""
        call = self._call
        if self._cut and call.on_truncation == "warn":
            warnings.warn(
                f"{len(self._cut)} of {texts} texts are longer than max_seq_length={call.limit} tokens "
                'and were cut; shorten them, or accept it with SentenceEncoder(on_truncation="ignore")',
                TruncationWarning,
                stacklevel=stacklevel,
            )
        if self._unseen and not _measuring.get() and call.policy is not None and call.policy.fitted is not None:
            least, most = call.policy.fitted.lengths or (0, 0)
            count = len(self._unseen)
            warnings.warn(
                f"the pruning policy was fitted on texts of {_span(least, most)} tokens, and here {count} of {texts} "
                f"{'has' if count == 1 else 'have'} {_span(min(self._unseen), max(self._unseen))}: pruned, such texts "
                "may be far from their own embeddings, and find other neighbours; prune none (pruning=None, or no "
                "--pruning), or, where a measurement shows no harm, accept it with "
                'warnings.simplefilter("ignore", minitrans.errors.PruningWarning)',
                PruningWarning,
                stacklevel=stacklevel,
            )


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def unseen(policy: PruningPolicy, lengths: Sequence[int]) -> list[int]:
    """Those of the lengths, in tokens, that the policy prunes though it was fitted on none like them."""
    known = None if policy.fitted is None else policy.fitted.lengths
    if known is None:
        return []
    beyond = [length for length in lengths if not known[0] <= length <= known[1]]
    return [
        length
        for length in beyond
        if any(kept_count(np.array(length), quantile, policy.min_tokens) < length for quantile in policy.plan.values())
    ]


_measuring = ContextVar("measuring", default=False)


@contextmanager
def measuring() -> Iterator[None]:
    """Around calls that find out what pruning does to some texts: the warning about that is not for them."""
    token = _measuring.set(True)  # not warnings.catch_warnings, which is every thread's and shows again what was shown
    try:
        yield
    finally:
        _measuring.reset(token)


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
        """Note that ``count`` more are done."""
        if self._bar is not None:
            self._bar.update(count)


def check_options(options: Mapping[str, object], function: CodeType) -> None:
    """InputTypeError for a name that is none of the options of a method, behind its first argument."""
    known = function.co_varnames[2 : function.co_argcount + function.co_kwonlyargcount]
    if unknown := [name for name in options if name not in known]:
        raise InputTypeError(f"there is no argument {unknown[0]!r:.100}, wanted {', '.join(known)}")


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
    if isinstance(out, np.ma.MaskedArray | np.matrix):
        raise InputError(f"out is a {type(out).__name__}, wanted a plain array; give its `.data` or np.asarray of it")
    if not out.flags.writeable:
        raise InputError("out is read-only, wanted an array that can be written")
    room = out.itemsize  # of a number, and then of a row or a column of them
    for step, count in sorted((abs(step), count) for step, count in zip(out.strides, shape, strict=True)):
        if count > 1 and step < room:
            raise InputError(f"out has numbers that overlap in memory: strides {list(out.strides)}, wanted each apart")
        room += step * max(count - 1, 0)
    return out
