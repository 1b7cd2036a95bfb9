import enum
import io
from collections import namedtuple

import numpy as np
import pytest

from minitrans.columns import column_items, str_items
from minitrans.errors import InputError, InputTypeError
from minitrans.fewshot.examples import label_array, normalized_label, text_list
from minitrans.sentences.call import as_texts

TEXTS = ["hello", "card", "a b"]


class Name(str, enum.Enum):
    CARD = "card"


class NotIterable:
    def __iter__(self):
        raise TypeError("as the accessors of pandas do")


class Frame:
    """As much of a table of pandas or polars as tells it from a column."""

    columns = ("title", "text")
    shape = (3, 2)

    def __iter__(self):
        return iter(self.columns)


class Arrow:
    """As much of an array of pyarrow as is used: to iterate over it gives scalars of its own."""

    def __iter__(self):
        return iter([object()] * 3)

    def to_pylist(self):
        return TEXTS


class Series:
    """As much of a column of polars or pandas as is used; an index that does not count from 0."""

    shape = (3,)
    index = (7, 7, 9)

    def __iter__(self):
        return iter(TEXTS)


COLUMNS = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "values": lambda texts: dict(enumerate(texts)).values(),
    "keys": lambda texts: dict.fromkeys(texts).keys(),
    "str array": np.array,
    "object array": lambda texts: np.array(texts, dtype=object),
    "masked array": np.ma.masked_array,
    "pyarrow": lambda _: Arrow(),
    "series": lambda _: Series(),
    "namedtuple": lambda texts: namedtuple("Row", "a b c")(*texts),
}
if hasattr(np.dtypes, "StringDType"):
    COLUMNS["string array"] = lambda texts: np.array(texts, dtype=np.dtypes.StringDType())


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_any_kind_are_taken(kind):
    for function in (as_texts, text_list):
        found = function(COLUMNS[kind](TEXTS))
        assert found == TEXTS
        assert {type(text) for text in found} == {str}
    assert label_array(COLUMNS[kind](TEXTS), 3).tolist() == TEXTS


TABLES = {
    "set": (set(TEXTS), r"is a set, which has no order, wanted a list; pass sorted\(...\)"),
    "frozenset": (frozenset(TEXTS), "is a frozenset, which has no order"),
    "items": (Frame(), r'is a Frame, a table, wanted one column; pass one by its name, as table\["text"\]'),
    "mapping": ({"text": TEXTS}, "is a dict, wanted a list; pass one of its columns"),
    "structured": (np.zeros(2, [("q", "U1"), ("n", int)]), r'of several fields, wanted one; .* table\["q"\]'),
    "matrix": (np.array([TEXTS]), r"has 2 dimensions, wanted one; pass a single column, as array\[:, 0\]"),
    "column vector": (np.array(TEXTS)[:, None], "has 2 dimensions"),
    "scalar": (np.array("hello"), r"has 0 dimensions, wanted one; put what its item\(\) gives in brackets"),
    "bytes": (b"hello", "is a bytes, .* decode it"),
    "bytearray": (bytearray(b"hello"), "is a bytearray, .* decode it"),
    "memoryview": (memoryview(b"hello"), "is a memoryview, .* decode it"),
    "file": (io.StringIO("hello\ncard\n"), "is a StringIO, .*read_texts"),
    "number": (5, "is a int, wanted a list"),
    "nothing": (None, "is a NoneType, wanted a list"),
    "seemingly iterable": (NotIterable(), "is a NotIterable, wanted a list"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_what_is_no_column_is_refused_with_a_remedy(kind):
    values, message = TABLES[kind]
    for function, name in (
        (as_texts, "sentences"),
        (text_list, "texts"),
        (lambda labels: label_array(labels, 3), "labels"),
    ):
        with pytest.raises(InputTypeError, match=f"^{name} .*{message}"):
            function(values)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (None, "text 1 is None of type NoneType, wanted str; it is a missing value"),
        (float("nan"), "text 1 is nan of type float, wanted str; it is a missing value"),
        (np.float32("nan"), "missing value"),
        (np.ma.masked, "missing value"),
        (7, r"text 1 is 7 of type int, wanted str; convert it with str\(\)"),
        (b"x", r"decode it, as with .decode\(\)"),
        (["x"], "drop it, or pass the text in it"),
    ],
)
def test_an_item_that_is_no_text_is_named(item, message):
    with pytest.raises(InputTypeError, match=message):
        str_items(["a", item, "b"], "texts")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (True, r'label 0 is True of type bool, wanted str or int; name the two classes, as \["yes"'),
        (np.bool_(False), "name the two classes"),
        (2.0, r"label 0 is 2.0 of type float, .* convert the labels with int\(\)"),
        (float("nan"), "missing value: drop the example or name its class"),
        (None, "missing value"),
        (b"card", "decode it"),
        (("card",), "drop the example or name its class"),
    ],
)
def test_a_label_of_another_type_is_refused_with_a_remedy(label, message):
    with pytest.raises(InputTypeError, match=message):
        label_array([label], 1)


def test_members_of_an_enum_are_what_they_stand_for():
    assert as_texts(Name.CARD) == as_texts([Name.CARD]) == ["card"]
    assert label_array([Name.CARD, "card"], 2).tolist() == ["card", "card"]


@pytest.mark.parametrize("label", ["", "  ", "\u200b", "\u00a0\u200d"])
def test_a_label_that_shows_nothing_is_refused(label):
    with pytest.raises(InputError, match=r"label 1 is .* which shows nothing"):
        label_array(["a", label], 2)


@pytest.mark.parametrize(
    "other",
    [
        "\u061cab",
        "a\u034fb",
        "a\u2062b",
        "ab\u206f",
        "ab\u3164",
        "\ufff9ab",
        "a\u200cb",
        "ab\u200d\u200c",
        "a\u200c\u200db",
    ],
)
def test_what_shows_nothing_makes_no_other_label(other):
    assert normalized_label(other) == "ab"
    with pytest.raises(InputError, match="one in two spellings"):
        label_array(["ab", other], 2)


@pytest.mark.parametrize("label", ["\u2764\ufe0f", "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f"])
def test_what_tells_signs_apart_stays(label):
    assert normalized_label(label) == label


FRAMES = {
    "pandas": lambda pandas, columns: pandas.DataFrame(columns, index=[7, 7, 9]),
    "polars": lambda polars, columns: polars.DataFrame(columns),
    "pyarrow": lambda pyarrow, columns: pyarrow.table(columns),
}


@pytest.mark.tables
@pytest.mark.parametrize("library", FRAMES)
def test_real_tables_are_refused_and_their_columns_taken(library):
    make, module = FRAMES[library], pytest.importorskip(library)
    table = make(module, {"n": [1, 2, 3], "text": TEXTS})
    with pytest.raises(InputTypeError, match=r'a table, wanted one column; pass .* table\["text"\]'):
        column_items(table, "texts")
    assert as_texts(table["text"]) == label_array(table["text"], 3).tolist() == TEXTS
    assert label_array(table["n"], 3).tolist() == [1, 2, 3]
    gap = make(module, {"text": ["a", None, "b"]})["text"]
    with pytest.raises(InputTypeError, match=r"text 1 is .*missing value"):
        as_texts(gap)
