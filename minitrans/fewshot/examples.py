"""What users pass to a classifier, checked: texts, labels and embeddings; and the words of a label's name."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.arguments import as_int
from minitrans.columns import column_items, described, is_missing, plain, str_items
from minitrans.errors import DataWarning, InputError, InputTypeError
from minitrans.fewshot.logistic import checked_rows
from minitrans.words import some

Label = str | int
Labels = NDArray[Any]  # of str or int64
LABEL_LENGTH = 1000  # characters
K = TypeVar("K")
V = TypeVar("V")


class Encoder(Protocol):
    """What a classifier needs of an encoder.

    Its ``name_or_path``, ``identity``, ``precision`` and ``pruning`` are saved too, where it has them.
    """

    def encode(self, sentences: list[str], /) -> NDArray[Any]:
        """Texts -> ``[B, H]`` float32."""


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
    """The values as a float32 array ``[B, H]``. InputError, naming ``what``, where a number is not finite in it."""
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        return checked_rows(checked_rows(values, what).astype(np.float32), what)


def encoded(encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    """The encoder's embeddings of the texts, ``[B, H]``. InputError where it answers with anything else."""
    rows = float_rows(encoder.encode(texts), "the encoder's answer")  # [B, H]
    if len(rows) != len(texts):
        raise InputError(f"the encoder returned {len(rows)} embeddings, wanted {len(texts)}, one for each text")
    return rows


def text_list(texts: Iterable[str]) -> list[str]:
    """The texts of any column of str (see `minitrans.columns`) as a list. Raises as `str_items` does."""
    return str_items(texts, "texts")


def label_array(
    labels: Iterable[Label],
    count: int,
    texts: list[str] | None = None,
    known: tuple[list[str] | None, Labels] | None = None,
) -> Labels:
    """The labels of ``count`` texts as an array ``[count]`` of str or int64.

    Args:
        labels: any column of labels (see `minitrans.columns`).
        count: how many there should be.
        texts: the texts, where a classifier is to learn from them. Warns with DataWarning of labels that differ in
            case alone, and of one text with several labels.
        known: what it has learned from before: the texts, where they were kept, and the labels.

    Raises:
        InputTypeError: no column, a label of another type, or str and int labels mixed.
        InputError: none, another number than there are texts, a label that cannot be saved, or one label in several
            spellings.
    """
    items = column_items(labels, "labels")
    for i, label in enumerate(items):
        seen = _checked_label(label, f"label {i}")
        if isinstance(label, str) != isinstance(items[0], str):
            raise InputTypeError(f"{seen}, but label 0 is {items[0]!r}, wanted all str or all int; convert them")
        if isinstance(label, str) and is_blank(label):
            raise InputError(f"{seen}, which shows nothing, wanted a name; drop the example or name its class")
    if not count or count != len(items):
        raise InputError(f"{count} texts and {len(items)} labels, wanted as many of each, and at least one")
    if isinstance(items[0], str):
        items = [plain(label) for label in items]
    names = [str(label) for label in items]
    if texts is not None and known is not None and (known[1].dtype.kind == "U") == isinstance(items[0], str):
        known_texts, known_labels = known
        names = [*map(str, known_labels), *names]
        texts = [f"text {i}" for i in range(len(names))] if known_texts is None else [*known_texts, *texts]
    _check_spellings(names)
    if texts is not None:
        for message in filter(None, (case_warning(names), conflict_warning(texts, names))):
            warnings.warn(message, DataWarning, stacklevel=3)
    return np.array(items, dtype=np.str_ if isinstance(items[0], str) else np.int64)


# Characters that show nothing: soft hyphen, zero-width space, marks of direction and their kin, invisible operators,
# fillers, byte order mark. Variation selectors and tags are not among them: they tell signs and flags apart.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x200B, 0x200E, 0x200F, 0x3164, 0xFEFF, 0xFFA0]
)
_INVISIBLE |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2060, 0x2070), *range(0xFFF9, 0xFFFC)])
# Joiners shape the letters beside them: between two beyond Latin they count.
_JOINERS = re.compile("([^\u200c\u200d]?)([\u200c\u200d]+)(?=(.?))", re.DOTALL)


def normalized_label(label: str) -> str:
    """One spelling for what looks the same: NFC, single spaces, none at the ends, no invisible characters."""
    text = " ".join(label.split())
    if text.isascii():
        return text
    text = text.translate(_INVISIBLE)
    before = ""
    while text != before:  # what goes away can bring together what has a shorter form
        before, text = text, " ".join(_JOINERS.sub(_without_joiner, unicodedata.normalize("NFC", text)).split())
    return text


def _without_joiner(found: re.Match[str]) -> str:
    return found[0] if found[1] > "\xff" and found[3] > "\xff" else found[1]


def normalized_text(text: str) -> str:
    """What makes two texts the same example: no case, and one spelling, as of a label."""
    return normalized_label(text.casefold())


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or all blanks and invisible characters."""
    return not (text[:1].isascii() and text[:1].isalnum()) and not normalized_label(text)


def grouped(keys: Iterable[K], values: Iterable[V]) -> dict[K, list[V]]:
    """Key -> the values that stand beside it, in their order."""
    groups: dict[K, list[V]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    return groups


def case_warning(labels: Iterable[str]) -> str | None:
    """A message where two labels differ in case, width or compatibility forms alone; else None."""
    known = dict.fromkeys(labels)
    alike = grouped((unicodedata.normalize("NFKC", normalized_label(label)).casefold() for label in known), known)
    pairs = [f"{first!r} and {label!r}" for first, *others in alike.values() for label in others]
    if not pairs:
        return None
    return f"labels that differ in case alone are several classes: {some(pairs)}; write alike what means the same"


def conflict_warning(texts: Iterable[str], labels: Iterable[str], places: list[str] | None = None) -> str | None:
    """A message where one text, without case and spacing, has several labels; else None. It names the ``places``."""
    texts, labels = list(texts), list(labels)
    owners = grouped(map(normalized_text, texts), range(len(labels))).values()
    several = [rows for rows in owners if len(rows) > 1 and len({labels[i] for i in rows}) > 1]
    if not several:
        return None
    found = {labels[i]: i for i in reversed(several[0])}  # where each label comes first
    told = [f"{labels[i]!r}" + (f" ({places[i]})" if places else "") for i in sorted(found.values())]
    count, text = "one text has" if len(several) == 1 else f"{len(several)} texts have", texts[several[0][0]]
    return f"{count} several labels, which share its probability: {text!r:.80} is {' and '.join(told[:5])}"


def _check_spellings(labels: Iterable[str]) -> None:
    known = dict.fromkeys(labels)
    for first, *others in grouped(map(normalized_label, known), known).values():
        if others:
            label = others[0]
            raise InputError(
                f"the labels {first!a} and {label!a} are one in two spellings (spaces, invisible characters or Unicode "
                "forms), wanted one; pass [minitrans.fewshot.examples.normalized_label(label) for label in labels]"
            )


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
        raise InputTypeError(f"{seen}, wanted the kind of the classes, as {classes[0]!r}; name another")
    if isinstance(label, str) and is_blank(label):
        raise InputError(f"{seen}, which shows nothing, wanted a name; name one in calibrate_rejection")
    if label in classes.tolist() or (
        of_str and normalized_label(str(label)) in map(normalized_label, classes.tolist())
    ):
        raise InputError(f"{seen}, which is a class, wanted a label that is none; name one in calibrate_rejection")
    return str(label) if of_str else int(label)


def storable(label: object) -> bool:
    """Whether a label can be saved, and held in an array that gives each label the room of the longest."""
    if isinstance(label, str):
        return "\0" not in label and len(label) <= LABEL_LENGTH
    number = as_int(label)
    return number is not None and -(2**63) <= number < 2**63


def _checked_label(label: object, what: str) -> str:
    """A few words on the label for messages. InputTypeError or InputError, naming ``what``, if it cannot be one."""
    seen = f"{what} is {described(label)}"
    if isinstance(label, bool | np.bool_) or not isinstance(label, str | int | np.integer):
        raise InputTypeError(f"{seen}, wanted str or int; {_label_remedy(label)}")
    if not storable(label):
        wanted = f"a str without NUL of at most {LABEL_LENGTH} characters, or an integer of 64 bits"
        raise InputError(f"{seen}, wanted {wanted}; rename the class")
    return seen


def _label_remedy(label: object) -> str:
    if isinstance(label, bool | np.bool_):
        return 'name the two classes, as ["yes" if label else "no" for label in labels]'
    if is_missing(label):
        return "it is a missing value: drop the example or name its class"
    if isinstance(label, float | np.floating):
        return "convert the labels with int(), or with str() to names"
    if isinstance(label, bytes):
        return "decode it, as with .decode()"
    return "drop the example or name its class"
