import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrans.errors import InputError
from minitrans.evaluation.tables import Column, check_table_file, render

COLUMNS = [
    Column("name", "name"),
    Column("score", "score", ".1%", "score_ci"),
    Column("change", "change", "+.1f", "change_ci"),
    Column("count", "n"),
]
ROWS = [
    {"name": "a", "score": 0.5, "score_ci": 0.125, "change": 1.0, "change_ci": 0.25, "count": 3},
    {"name": "long | name", "score": 1.0, "score_ci": None, "change": None, "change_ci": None, "count": 12},
]


def test_text_is_aligned_numbers_to_the_right():
    assert render(COLUMNS, ROWS) == (
        "name                 score      change    n\n"
        "a            50.0% ± 12.5%  +1.0 ± 0.2    3\n"
        "long | name         100.0%           -   12\n"
    )


def test_markdown_escapes_what_would_end_a_cell():
    assert render(COLUMNS, ROWS, "markdown") == (
        "| name         |         score |     change |   n |\n"
        "| ------------ | ------------: | ---------: | --: |\n"
        "| a            | 50.0% ± 12.5% | +1.0 ± 0.2 |   3 |\n"
        "| long \\| name |        100.0% |          - |  12 |\n"
    )


def test_csv_and_json_hold_the_values_as_they_are():
    read = list(csv.DictReader(io.StringIO(render(COLUMNS, ROWS, "csv"))))
    assert read[0] == {
        "name": "a",
        "score": "0.5",
        "score_ci": "0.125",
        "change": "1.0",
        "change_ci": "0.25",
        "count": "3",
    }
    assert read[1]["score_ci"] == read[1]["change"] == ""
    assert json.loads(render(COLUMNS, ROWS, "json")) == ROWS


def test_a_table_without_rows_has_its_head():
    assert render(COLUMNS, []) == "name  score  change  n\n"
    assert render(COLUMNS, [], "csv") == "name,score,score_ci,change,change_ci,count\n"
    assert json.loads(render(COLUMNS, [], "json")) == []


def test_what_a_row_lacks_is_shown_as_missing():
    assert render(COLUMNS, [{"name": "a"}]).splitlines()[1].split() == ["a", "-", "-", "-"]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_names_never_break_a_table(names):
    rows = [{"name": name} for name in names]
    columns = [Column("name", "name")]
    assert len(render(columns, rows).split("\n")) == len(names) + 2
    assert len(render(columns, rows, "markdown").split("\n")) == len(names) + 3
    assert [row["name"] for row in json.loads(render(columns, rows, "json"))] == names


@pytest.mark.parametrize(
    ("name", "style"), [("a.csv", "csv"), ("a.MD", "markdown"), ("a.json", "json"), ("folder/a.txt", "text")]
)
def test_the_style_of_a_name(name, style):
    assert check_table_file(name) == style


def test_other_names_and_styles_are_refused():
    with pytest.raises(InputError, match=r"a.xlsx ends in '.xlsx', wanted '.csv', '.json', '.md' or '.txt'"):
        check_table_file("a.xlsx")
    with pytest.raises(InputError, match="ends in ''"):
        check_table_file("table")
    with pytest.raises(InputError, match="style is 'html'"):
        render(COLUMNS, ROWS, "html")
