"""What is printed: nothing in it steers a terminal, and columns stay columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrans.words import columns, escaped, isolated, listed, padded, printable, shortened, some


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\x1b[31m\x07\nb", "a\\x1b[31m\\x07\\nb"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),  # C1: escape sequences of one byte
        ("\tx\r\u2028\u2029", "\\tx\\r\\u2028\\u2029"),
        ("\u202e\u2066\u200f\u061c", "\\u202e\\u2066\\u200f\\u061c"),
        ("a\u200bb\ufeff\u2060\xad\xa0", "a\\u200bb\\ufeff\\u2060\\xad\\xa0"),
        ("\ud800\U000e0041", "\\ud800\\U000e0041"),
        ("é 中 👍🏽 \\n", "é 中 👍🏽 \\n"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, wanted):
    assert printable(text) == wanted


def test_joiners_are_part_of_the_writing():
    for text in ("می\u200cخواهم", "👩\u200d👧", "क्\u200dष"):
        assert printable(text) == text
    assert printable("a\u200db \u200c") == "a\\u200db \\u200c"


@given(st.text())
def test_a_line_stays_one_line_with_its_columns(text):
    line = f"{escaped(text)}\t1\t{escaped(text)}"
    assert line.splitlines() == [line]
    assert line.count("\t") == 2


@given(st.text(), st.text())
def test_different_labels_look_different(one, other):
    assert (escaped(one) == escaped(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", 0),
        ("abc", 3),
        ("中文", 4),
        ("e\u0301", 1),
        ("👍🏽", 2),
        ("👩\u200d👧", 2),
        ("❤\ufe0f", 2),
        ("각", 2),
        ("\u1100\u1161\u11a8", 2),
    ],
)
def test_columns_of_a_terminal(text, wanted):
    assert columns(text) == wanted
    assert columns(padded(text, 9)) == columns(padded(text, 9, right=True)) == 9


@given(st.text(), st.integers(2, 30))
def test_a_shortened_text_fits(text, width):
    cut = shortened(text, width)
    assert columns(cut) <= width
    assert cut == text or cut.endswith("~")


def test_right_to_left_is_kept_apart():
    assert isolated("plain 中") == "plain 中"
    assert isolated("שלום") == "\u2068שלום\u2069"
    assert columns(isolated("سلام")) == 4


def test_names_are_listed():
    assert [listed(names) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert [some(names, 2) for names in ("", "ab", ["a", "\x1b", "c"])] == ["", "a, b", "a, \\x1b and 1 more"]
