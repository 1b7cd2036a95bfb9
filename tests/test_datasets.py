import csv
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrans.datasets import Examples, read_examples, read_texts
from minitrans.errors import InputError

ROWS = [("hello, world", "greeting"), ('say "hi"', "greeting"), ("two\nlines", "odd"), ("naïve 東京", "odd")]


def write(path, rows=ROWS, header=("text", "label")):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "A.CSV"])
def test_examples_are_read_from_each_format(tmp_path, name):
    path = write(tmp_path / name)
    assert read_examples(path) == Examples([text for text, _ in ROWS], [label for _, label in ROWS])
    assert read_texts(path) == [text for text, _ in ROWS]


def test_columns_may_have_other_names(tmp_path):
    path = write(tmp_path / "a.csv", header=("utterance", "intent"))
    assert read_examples(path, "utterance", "intent").labels == [label for _, label in ROWS]
    assert read_texts(path, "intent") == [label for _, label in ROWS]


def test_plain_text_is_a_text_a_line_and_keeps_empty_lines(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\r\n\ntwo words".encode())
    assert read_texts(path) == ["one", "", "two words"]


def test_a_field_may_be_longer_than_the_csv_module_allows_and_its_limit_stays(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path / "a.csv", [("x" * 300_000, "long")])
    assert len(read_examples(path).texts[0]) == 300_000
    assert csv.field_size_limit() == limit


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1))
def test_csv_round_trip(tmp_path_factory, rows):
    # Empty fields are refused by design; lone surrogates have no UTF-8 form; older csv modules refuse NUL.
    rows = [(t, x) for t, x in rows if t.strip() and x.strip() and not re.search("[\0\ud800-\udfff]", t + x)]
    if rows:
        path = write(tmp_path_factory.mktemp("csv") / "a.csv", rows)
        assert list(zip(*vars(read_examples(path)).values(), strict=True)) == rows


BAD = {
    "missing.csv": (None, "cannot read .*missing.csv: No such file"),
    "a.xlsx": (b"PK", r"ends in '.xlsx', wanted .csv, .tsv or .jsonl"),
    "column.csv": (
        b"utterance,label\nhi,a\n",
        "line 1: column 'text' is missing, wanted it once; found: utterance, label",
    ),
    "twice.csv": (b"text,label,text\nhi,a,there\n", "line 1: column 'text' is there more than once"),
    "nothing.csv": (b"", "line 1: column 'text' is missing"),
    "short.csv": (b"text,label\nhi\n", "line 2: column 'label' is missing"),
    "long.csv": (b"text,label\nhi,a\nhi, there,a\n", "line 3: more fields than the header has"),
    "quote.csv": (b'text,label\n"hi,a\n', r"line \d: unexpected end of data"),
    "latin.csv": ("text,label\nnaïve,a\n".encode("latin-1"), "is not UTF-8 text"),
    "empty.csv": (b"text,label\n", "holds no examples"),
    "blank.csv": (b"text,label\nhi,a\n  ,b\n", "line 3: text or label is empty"),
    "broken.jsonl": (b'{"text": "hi", "label": "a"}\n{"text": \n', "line 2: not valid JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1: a JSON list, wanted an object"),
    "number.jsonl": (b'{"text": 5, "label": "a"}\n', "line 1: column 'text' is a int, wanted text"),
    "latin.jsonl": ('{"text": "naïve"}\n'.encode("latin-1"), "is not UTF-8 text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_the_line(tmp_path, name):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_examples(tmp_path / name)
