"""What is done with finished embeddings: shorter ones, smaller number formats, similarities."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.arguments import check_choice
from minitrans.encoder.pooling import normalized
from minitrans.errors import InputError
from minitrans.files import atomic_file, target_of
from minitrans.models.parameters import Float32
from minitrans.models.sentence import SimilarityName

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
Vectors: TypeAlias = NDArray[Any]

DTYPES: dict[Precision, type[np.generic]] = {
    "float32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}


def output_width(dimension: int, precision: Precision) -> int:
    """Numbers per embedding: one per dimension, or one per eight dimensions for the binary formats."""
    return -(-dimension // 8) if precision in ("binary", "ubinary") else dimension


def to_precision(vectors: Float32, precision: Precision) -> Vectors:
    """Store embeddings in a smaller number format.

    "int8" scales each vector by its own largest absolute value to [-127, 127], so cosines survive and a vector does not
    depend on the others of the call (sentence-transformers calibrates on them); "uint8" is the same plus 128.
    "ubinary" packs the signs, eight to a byte, first dimension in the highest bit; "binary" is that minus 128.

    Args:
        vectors: [B, H].
        precision: one of the five.

    Returns:
        [B, H] or, binary, [B, ceil(H / 8)], of the dtype in DTYPES.

    Raises:
        InputError: another precision.
    """
    check_precision(precision)
    if precision == "float32":
        return vectors
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=-1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), np.float32(1e-30))
    scaled = np.rint(vectors * (np.float32(127) / largest))
    return scaled.astype(np.int8) if precision == "int8" else (scaled + 128).astype(np.uint8)


def check_precision(precision: str) -> Precision:
    """Validate the ``precision`` of an encode call. InputError if it is not one of the five."""
    check_choice("precision", precision, DTYPES)
    return cast(Precision, precision)


def check_output(path: str | Path) -> None:
    """Refuse a file that ``save_vectors`` could not write.

    InputTypeError where it is no path, InputError unless it ends in .npy or .jsonl.
    """
    if target_of(path).suffix not in (".npy", ".jsonl"):
        raise InputError(f"{os.fspath(path)} ends in {target_of(path).suffix!r}, wanted .npy or .jsonl")


def save_vectors(path: str | Path, texts: Sequence[str], vectors: Vectors) -> None:
    """Write embeddings [B, H] to .npy, or texts and embeddings to .jsonl; whole or not at all."""
    check_output(path)
    npy = target_of(path).suffix == ".npy"
    # "w+b": to a file that is open for writing alone NumPy writes past Python, and a full disk has no number then.
    with atomic_file(path, size=vectors.nbytes + 128 if npy else None) as temporary, temporary.open("w+b") as file:
        if npy:
            np.save(file, vectors, allow_pickle=False)
        else:
            file.writelines(line.encode() + b"\n" for line in as_lines(texts, vectors, as_json=True))


def as_lines(texts: Sequence[str], vectors: Vectors, as_json: bool) -> Iterator[str]:
    """One line per text: its numbers with spaces between them, or a JSON object with "text" and "embedding"."""
    for text, vector in zip(texts, vectors, strict=True):
        numbers = [str(number) for number in vector]  # the shortest digits that read back to the same number
        if as_json:
            yield f'{{"text": {json.dumps(text)}, "embedding": [{", ".join(numbers)}]}}'
        else:
            yield " ".join(numbers)


def _matrix(vectors: ArrayLike) -> Float32:
    """[H] or [B, H] -> float32 [B, H]"""
    if np.ma.is_masked(vectors):
        raise InputError("embeddings have values that are masked, wanted all of them; fill them, as with .filled()")
    try:
        array = np.asarray(vectors)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"embeddings are no array ({error}), wanted rows of numbers, all as long") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"embeddings are of type {array.dtype}, wanted numbers, in rows that are all as long")
    if array.ndim not in (1, 2):
        raise InputError(f"embeddings have {array.ndim} dimensions, wanted one vector [H] or a matrix [B, H]")
    rows = np.atleast_2d(array)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinity
        rows = np.asarray(rows, np.float32)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InputError(f"embedding {bad[0]} holds NaN, infinity or more than float32 can, wanted finite numbers")
    return rows


def _distances(difference: Float32, name: SimilarityName) -> Float32:
    """Lengths, negated, of differences of embeddings: [.., H] -> [..]"""
    if name == "manhattan":
        return -np.abs(difference).sum(axis=-1)
    return -np.sqrt(np.square(difference).sum(axis=-1))


def similarity(a: ArrayLike, b: ArrayLike, name: SimilarityName = "cosine") -> Float32:
    """Similarity of every row of a [B, H] with every row of b [B', H]: [B, B']; a distance is negated.

    Raises:
        InputError: the widths differ, or an unknown name.
    """
    x, y = _checked(a, b, name)
    if name in ("cosine", "dot"):
        return x @ y.T
    # One row of x at a time: [B, B', H] at once would not fit in memory for a large B.
    return np.stack([_distances(row - y, name) for row in x]) if len(x) else np.empty((0, len(y)), np.float32)


def similarity_pairwise(a: ArrayLike, b: ArrayLike, name: SimilarityName = "cosine") -> Float32:
    """Similarity of row i of a [B, H] with row i of b [B, H]: [B].

    Raises:
        InputError: the shapes differ, or an unknown name.
    """
    x, y = _checked(a, b, name)
    if len(x) != len(y):
        raise InputError(f"pairs of embeddings: {len(x)} and {len(y)} rows, wanted as many in both")
    return (x * y).sum(axis=-1) if name in ("cosine", "dot") else _distances(x - y, name)


def _checked(a: ArrayLike, b: ArrayLike, name: str) -> tuple[Float32, Float32]:
    """Both as float32 [B, H] and [B', H], of length 1 for the cosine."""
    check_choice("similarity", name, get_args(SimilarityName))
    x, y = _matrix(a), _matrix(b)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"embeddings have {x.shape[1]} and {y.shape[1]} dimensions, wanted the same")
    return (normalized(x), normalized(y)) if name == "cosine" else (x, y)
