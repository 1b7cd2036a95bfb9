"""Nothing is timed before all contenders agree on what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import Contender
from benchmarks.timing import BenchmarkError

REFERENCES = ("torch float32", "ONNX Runtime float32", "minitrans float32")


def reference(contenders: Sequence[Contender]) -> Contender:
    """Who the others are held against: torch, or else ONNX Runtime, or else our float32.

    Raises:
        BenchmarkError: none of them is there.
    """
    by_name = {contender.name: contender for contender in contenders}
    for name in REFERENCES:
        if name in by_name:
            return by_name[name]
    raise BenchmarkError(f"the contenders are {', '.join(by_name)}, wanted one of {', '.join(REFERENCES)} among them")


def check(contenders: Sequence[Contender], texts: Sequence[str]) -> dict[str, float]:
    """Hold every setting of every contender against the reference, text by text.

    Args:
        contenders: the reference among them.
        texts: are batched together, so they should be of much the same length.

    Returns:
        The least cosine of each contender.

    Raises:
        BenchmarkError: an embedding is too far from the reference, or not of length 1.
    """
    trusted = reference(contenders)
    expected = _embed(next(iter(trusted.bulk(len(texts), False).values())), texts)
    least = {}
    for contender in contenders:
        bulk = {setting: _embed(encode, texts) for setting, encode in contender.bulk(len(texts), True).items()}
        single = {
            f"one text, {setting}": np.stack([encode(text) for text in texts])
            for setting, encode in contender.single.items()
        }
        worst = [
            _worst(contender, setting, vectors, expected, trusted.name, texts)
            for setting, vectors in (bulk | single).items()
        ]
        least[contender.name] = min(worst)
    return least


def _embed(encode: Callable[[Sequence[str]], NDArray], texts: Sequence[str]) -> NDArray:
    return np.asarray(encode(texts), np.float64)


def _worst(
    contender: Contender, setting: str, vectors: NDArray, expected: NDArray, against: str, texts: Sequence[str]
) -> float:
    if vectors.shape != expected.shape:
        raise BenchmarkError(
            f"{contender.name} ({setting}) gives {vectors.shape}, {against} {expected.shape}: nothing was timed"
        )
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (vectors * expected).sum(axis=1) / lengths
    i = int(np.argmin(np.nan_to_num(cosines, nan=-1)))
    if not cosines[i] >= contender.least_cosine:
        raise BenchmarkError(
            f"{contender.name} ({setting}) disagrees with {against}: cosine {cosines[i]:.5f}, wanted at least "
            f"{contender.least_cosine}, for {texts[i]!r:.60}; nothing was timed. Empty the cache of graphs if they "
            "were made by other releases"
        )
    return float(cosines[i])
