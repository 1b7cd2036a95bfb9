"""What users pass to a classifier, checked: texts, labels and embeddings; and the words of a label's name."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.errors import InputError, InputTypeError
from minitrans.logistic import checked_rows
from minitrans.saved import LABEL_LENGTH, storable

Label = str | int
Labels = NDArray[Any]  # of str or int64


class Encoder(Protocol):
    """What a classifier needs; `name_or_path`, `identity`, `precision` and `pruning` are saved where offered."""

    def encode(self, sentences: list[str], /) -> NDArray[Any]:
        """Texts -> `[B, H]` float32."""


def label_text(label: str) -> str:
    """The words of a label's name: "card_arrival", "card-arrival" and "cardArrival" give "card arrival".

    Acronyms stay in one piece: "HTTPError2" gives "http error2", "B2B_SALES" gives "b2b sales".
    """
    words = ""
    for i, letter in enumerate(label):
        tail = label[i + 1 : i + 3]
        # A capital begins a word after a small letter, or where at least two small letters follow it.
        if i and letter.isupper() and (label[i - 1].islower() or (len(tail) == 2 and all(map(str.islower, tail)))):
            words += " "
        words += " " if letter in "_-" else letter
    return " ".join(words.lower().split()) or label


def float_rows(values: ArrayLike, what: str) -> NDArray[np.float32]:
    """The values as a float32 array `[B, H]`. InputError, naming `what`, where they are not finite numbers of it."""
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        return checked_rows(checked_rows(values, what).astype(np.float32), what)


def encoded(encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    """The encoder's embeddings of the texts, `[B, H]`. InputError where it answers with anything else."""
    rows = float_rows(encoder.encode(texts), "the encoder's answer")  # [B, H]
    if len(rows) != len(texts):
        raise InputError(f"the encoder returned {len(rows)} embeddings; wanted {len(texts)}, one for each text")
    return rows


def text_list(texts: Iterable[str]) -> list[str]:
    """The texts as a list of str. InputTypeError for a single str, and for anything else that is no list of str."""
    items = _items(texts, "texts")
    for i, text in enumerate(items):
        if not isinstance(text, str):
            raise InputTypeError(f"text {i} is {reprlib.repr(text)} of type {type(text).__name__}; wanted str; drop it")
    return [str(text) for text in items]  # numpy.str_ too


def label_array(labels: Iterable[Label], count: int) -> Labels:
    """The labels of `count` texts as an array `[count]` of str or int64.

    Raises:
        InputTypeError: a label of another type, or str and int labels mixed.
        InputError: none, another number than there are texts, or a label that cannot be saved.
    """
    items = _items(labels, "labels")
    for i, label in enumerate(items):
        seen = _checked_label(label, f"label {i}")
        if isinstance(label, str) != isinstance(items[0], str):
            raise InputTypeError(f"{seen}, but label 0 is {items[0]!r}; wanted all str or all int; convert them")
    if not count or count != len(items):
        raise InputError(f"{count} texts and {len(items)} labels; wanted as many of each, and at least one")
    return np.array(items, dtype=np.str_ if isinstance(items[0], str) else np.int64)


def abstention_label(label: Label | None, classes: Labels) -> Label:
    """The label of texts that belong to none of the classes, as a plain str or int; for None "oos" or -1.

    Raises:
        InputTypeError: a label of another kind than the classes.
        InputError: a label that is one of the classes, or cannot be saved.
    """
    of_str = classes.dtype.kind == "U"
    label = label if label is not None else "oos" if of_str else -1
    seen = _checked_label(label, "abstention")
    if isinstance(label, str) != of_str:
        raise InputTypeError(f"{seen}; wanted the kind of the classes, as {classes[0]!r}; name another")
    if label in classes.tolist():
        raise InputError(f"{seen}, which is a class; wanted a label that is none; name one in calibrate_rejection")
    return str(label) if of_str else int(label)


def _checked_label(label: object, what: str) -> str:
    """A few words on the label for messages. InputTypeError or InputError, naming `what`, if it cannot be one."""
    seen = f"{what} is {reprlib.repr(label)} of type {type(label).__name__}"
    if isinstance(label, bool | np.bool_) or not isinstance(label, str | int | np.integer):
        raise InputTypeError(f"{seen}; wanted str or int; drop the example or name its class")
    if not storable(label):
        wanted = f"a str without NUL of at most {LABEL_LENGTH} characters, or an integer of 64 bits"
        raise InputError(f"{seen}; wanted {wanted}; rename the class")
    return seen


def _items(values: Iterable[Any], what: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputTypeError(f"{what} is a {type(values).__name__}; wanted a list; put a single one in brackets")
    if (ndim := getattr(values, "ndim", 1)) != 1:
        raise InputTypeError(f"{what} has {ndim} dimensions; wanted one; pass a single column")
    return list(values)
