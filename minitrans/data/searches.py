"""Search tasks: queries, documents, and which documents answer which query; from files, long texts or labelled ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minitrans.data.files import read_pairs
from minitrans.data.tasks import Task
from minitrans.errors import InputError
from minitrans.fewshot.examples import grouped, is_blank

_SENTENCE_END = re.compile(r"[.!?\u2026][\"')\]\u201d\u2019]*\s+|\n\s*|[\u3002\uff01\uff1f]")
_BLANKS = re.compile(r"\s+")
_WIDE_ENDS = ("\u3002", "\uff01", "\uff1f")  # of scripts that put no blanks between words
_LEAST_WORDS = 3  # of a first sentence: "Mr." is none


@dataclass(frozen=True)
class SearchTask:
    """A search data set.

    Attributes:
        name: for tables.
        queries: the texts that are searched for.
        documents: the texts that are searched.
        relevant: for each query the rows of the documents that answer it: at least one, each once, ascending.
        source: where it came from.

    Raises:
        InputError: no queries, or `relevant` that does not fit.
    """

    name: str
    queries: list[str]
    documents: list[str]
    relevant: list[list[int]]
    source: str

    def __post_init__(self) -> None:
        if not self.queries or len(self.queries) != len(self.relevant):
            raise InputError(
                f"{self.name} has {len(self.queries)} queries and relevant documents of {len(self.relevant)}, wanted "
                "as many, and at least one"
            )
        for query, rows in zip(self.queries, self.relevant, strict=True):
            if not rows or rows != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= len(self.documents):
                raise InputError(
                    f"{self.name}: the relevant documents of {query!r:.80} are {rows!r:.80}, wanted ascending rows of "
                    f"the {len(self.documents)} documents, at least one"
                )

    @cached_property
    def digest(self) -> str:
        """sha256 of all texts, in their order, and of what answers what; name and source do not count."""
        return hashlib.sha256(json.dumps([self.queries, self.documents, self.relevant]).encode()).hexdigest()


def load_search(
    source: str | os.PathLike[str],
    query_column: str = "query",
    document_column: str = "document",
    delimiter: str | None = None,
) -> SearchTask:
    """Read a search task: a .csv, .tsv or .jsonl with a query and a document that answers it in each row.

    A query in several rows has several documents, and a document in several rows answers several queries; each text
    stands once in the task. All documents of the file are searched.

    Args:
        source: the file.
        query_column, document_column: names of its columns.
        delimiter: of a .csv or .tsv; see `minitrans.data.files.read_examples`.

    Raises:
        InputTypeError, InputError: as `minitrans.data.files.read_pairs` does.
    """
    pairs = read_pairs(source, query_column, document_column, delimiter)
    answers = grouped(*zip(*pairs, strict=True))
    return _search(Path(source).stem, answers, os.fspath(source))


def headline_search(name: str, texts: Iterable[str], source: str = "long texts") -> SearchTask:
    """Find the rest of a text by its first sentence.

    A sentence ends at a full stop, an exclamation or a question mark before a blank, or at the end of a line, and has
    at least three words (or is in a script that puts no blanks between them). A text of one sentence takes no part.

    Args:
        name, source: of the task.
        texts: long ones.

    Raises:
        InputError: no text has a second sentence.
    """
    return _from_texts(name, texts, _headline, "a second sentence", source)


def half_search(name: str, texts: Iterable[str], source: str = "long texts") -> SearchTask:
    """Find the second half of a text by its first one, which ends at the blank that is nearest to the middle.

    A text of one word takes no part.

    Args:
        name, source: of the task.
        texts: long ones.

    Raises:
        InputError: no text has two words.
    """
    return _from_texts(name, texts, _halves, "two words", source)


def intent_search(task: Task) -> SearchTask:
    """Find training texts of the same intent by the texts of the split "test".

    The documents are all texts of "train", and every one of the query's label is relevant. So most queries have many
    relevant documents: the reciprocal rank is that of the first of them, and the recall counts those among the first
    ten against ten, or against all of them where they are fewer. Queries of a label that "train" lacks take no part.

    Raises:
        InputError: a task without these splits, or without a label in both.
    """
    test, train = task.splits.get("test"), task.splits.get("train")
    if test is None or train is None:
        raise InputError(f"{task.name} has the splits {', '.join(task.splits)}, wanted train and test")
    known = grouped(train.labels, train.texts)
    answers: dict[str, list[str]] = {}
    for text, label in zip(test.texts, test.labels, strict=True):
        if label in known:
            answers.setdefault(text, []).extend(known[label])
    if not answers:
        raise InputError(f"{task.name} has no label that is in train and in test, wanted one at least")
    return _search(task.name, answers, task.source, train.texts)


Splitter = Callable[[str], tuple[str, str]]


def _from_texts(name: str, texts: Iterable[str], split: Splitter, wanted: str, source: str) -> SearchTask:
    if isinstance(texts, str):
        raise InputError(f"{name}: the texts are one str, wanted a list of them")
    answers: dict[str, list[str]] = {}
    for text in texts:
        query, document = split(text)
        if not is_blank(query) and not is_blank(document):
            answers.setdefault(query, []).append(document)
    if not answers:
        raise InputError(f"{name}: no text has {wanted}, wanted longer texts")
    return _search(name, answers, source)


def _headline(text: str) -> tuple[str, str]:
    """The first sentence, and the text behind it; "" for what is not there."""
    text = text.strip()
    for end in _SENTENCE_END.finditer(text):
        first = text[: end.end()].strip()
        if len(first.split()) >= _LEAST_WORDS or first[-1:] in _WIDE_ENDS:
            return first, text[end.end() :].strip()
    return text, ""


def _halves(text: str) -> tuple[str, str]:
    """The text up to the blanks that are nearest to its middle, and behind them; "" for what is not there."""
    text = text.strip()
    middle = len(text) / 2
    blanks = min(
        _BLANKS.finditer(text), key=lambda found: abs((found.start() + found.end()) / 2 - middle), default=None
    )
    return (text, "") if blanks is None else (text[: blanks.start()], text[blanks.end() :])


def _search(name: str, answers: Mapping[str, Iterable[str]], source: str, more: Iterable[str] = ()) -> SearchTask:
    """The task of some queries with the documents that answer them; ``more`` documents stand before all others."""
    documents = dict.fromkeys(more)
    for found in answers.values():
        documents |= dict.fromkeys(found)
    row = {document: i for i, document in enumerate(documents)}
    relevant = [sorted({row[document] for document in found}) for found in answers.values()]
    return SearchTask(name, list(answers), list(documents), relevant, source)
