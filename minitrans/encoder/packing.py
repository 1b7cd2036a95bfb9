"""Texts as packed rows: no padding, only offsets. And how a long list of texts is cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedBatch:
    """B texts, one behind the other; text b is rows offsets[b] to offsets[b + 1].

    ``prefix`` and ``suffix`` count the special tokens that the tokenizer puts before and behind every text.
    """

    ids: NDArray[np.int64]  # [T]
    offsets: NDArray[np.int64]  # [B + 1]
    prefix: int = 1
    suffix: int = 1


def pack(token_ids: Sequence[Sequence[int]], prefix: int = 1, suffix: int = 1) -> PackedBatch:
    """Pack the token ids of several texts into one batch.

    Args:
        token_ids: one sequence of ids per text, special tokens included.
        prefix: how many special tokens stand before each text.
        suffix: how many stand behind it.
    """
    lengths = [len(ids) for ids in token_ids]
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    packed = np.fromiter((i for ids in token_ids for i in ids), np.int64, count=int(offsets[-1]))
    return PackedBatch(packed, offsets, prefix, suffix)


def segments(offsets: NDArray[np.int64]) -> Iterator[slice]:
    """The rows of each text."""
    bounds = offsets.tolist()
    return map(slice, bounds, bounds[1:])


def chunks(lengths: Sequence[int], max_texts: int, max_tokens: int) -> Iterator[slice]:
    """Cut texts into consecutive chunks of at most ``max_texts`` texts and, unless one text alone is longer,
    ``max_tokens`` tokens."""
    begin = tokens = 0
    for i, length in enumerate(lengths):
        if i > begin and (i - begin >= max_texts or tokens + length > max_tokens):
            yield slice(begin, i)
            begin, tokens = i, 0
        tokens += length
    if begin < len(lengths):
        yield slice(begin, len(lengths))
