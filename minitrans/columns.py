"""What callers pass as a column of values, as a list: any container whose order is its own; others refused by name."""

from __future__ import annotations

import io
import reprlib
from collections.abc import Iterable, KeysView, Mapping, Set
from typing import Any

import numpy as np

from minitrans.errors import InputTypeError

_MISSING = ("NoneType", "NAType", "NaTType", "MaskedConstant")  # of pandas and NumPy, known without importing them


def column_items(values: object, what: str) -> list[Any]:
    """The items of a list, tuple, generator, one-dimensional array, or column of pandas, polars or pyarrow.

    Raises:
        InputTypeError: no iterable, a single str, bytes, a file, a set, a mapping, a table, or an array of other than
            one dimension; the message names it by ``what``, as "texts", and says what to pass instead.
    """
    if (refusal := _refusal(values)) is not None:
        raise InputTypeError(f"{what} {refusal}")
    column: Any = values
    try:
        # Iterating over a column of pyarrow gives its own scalars.
        items = iter(column.to_pylist() if hasattr(type(column), "to_pylist") else column)
    except TypeError:  # pandas has things that look as if they could be iterated over
        raise InputTypeError(f"{what} {_no_list(values)}") from None
    return list(items)


def str_items(values: object, what: str) -> list[str]:
    """`column_items` that are all str, as plain str. InputTypeError names the index, value and type of another."""
    items = column_items(values, what)
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise InputTypeError(f"text {i} is {described(item)}, wanted str; {_text_remedy(item)}")
    return [plain(item) for item in items]


def plain(text: str) -> str:
    """The same characters as a str itself: of NumPy's str, and of an Enum's member, whose str() is another."""
    return str.__str__(text)


def described(value: object) -> str:
    """A value and its type, for messages."""
    return f"{' '.join(reprlib.repr(value).split())} of type {type(value).__name__}"


def is_missing(value: object) -> bool:
    """Whether a value stands for a gap: None, NaN, and what pandas and NumPy have for it."""
    return type(value).__name__ in _MISSING or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _text_remedy(item: object) -> str:
    if is_missing(item):
        return "it is a missing value: drop it or fill it"
    if isinstance(item, bytes | bytearray):
        return "decode it, as with .decode()"
    if isinstance(item, int | float | complex | np.number):
        return "convert it with str() if it is meant as a text, or drop it"
    return "drop it, or pass the text in it"


def _refusal(values: Any) -> str | None:
    """What is wrong with a container and what to do; None if it is in order."""
    kind = type(values)
    seen = f"is a {kind.__name__}"
    if isinstance(values, str):
        return f"{seen}, wanted a list; put a single one in brackets"
    if isinstance(values, bytes | bytearray | memoryview):
        return f"{seen}, wanted a list of str; decode it, as with .decode(), and put it in brackets"
    if isinstance(values, Mapping):
        return f"{seen}, wanted a list; pass one of its columns, or list(....values())"
    if isinstance(values, Set) and not isinstance(values, KeysView):
        return f"{seen}, which has no order, wanted a list; pass sorted(...)"
    if isinstance(values, io.IOBase):
        return f"{seen}, wanted a list; read the file with minitrans.data.files.read_texts, or read_examples"
    if kind.__name__ == "LazyFrame":  # of polars, whose columns are not known yet
        return f'{seen}, a table, wanted one column; pass one by its name, as table.collect()["text"]'
    if names := next((name for name in ("column_names", "columns") if hasattr(kind, name)), None):
        found = [name for name in getattr(values, names) if isinstance(name, str)]
        return f"{seen}, a table, wanted one column; pass {_column(found)}"
    if getattr(getattr(values, "dtype", None), "names", None):
        return f"{seen} of several fields, wanted one; pass {_column(list(values.dtype.names))}"
    shape = getattr(values, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 1:
        remedy = "pass a single column, as array[:, 0]" if shape else "put what its item() gives in brackets"
        return f"has {len(shape)} dimensions, wanted one; {remedy}"
    return None if isinstance(values, Iterable) else _no_list(values)


def _no_list(values: object) -> str:
    seen = f"is a {type(values).__name__}"
    return f"{seen}, wanted a list; put a single text or label in brackets, or read a file with minitrans.data.tasks"


def _column(names: list[str]) -> str:
    name = next((name for name in names if name in ("text", "label")), names[0] if names else "text")
    return f'one by its name, as table["{name}"]'
