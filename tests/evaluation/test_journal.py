"""The journal: what is put comes back, also after crashes at any byte; what a crash does not explain is refused."""

import json
import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrans.errors import InputError, InputTypeError
from minitrans.evaluation import journal as module
from minitrans.evaluation.journal import Journal

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), plain, max_size=4)


@pytest.fixture(params=["file", "memory"])
def journal(request, tmp_path):
    return Journal(tmp_path / "folder" / "j" if request.param == "file" else None)


def test_what_is_put_comes_back(journal):
    assert journal.get({"a": 1}) is None
    journal.put({"a": 1, "b": [1.5, None, {"c": "é\n"}]}, {"found": 0.1})
    journal.put({"a": 2}, {})
    assert journal.get({"b": [1.5, None, {"c": "é\n"}], "a": 1}) == {"found": 0.1}
    assert journal.get({"a": 2}) == {}
    assert journal.get({"a": 3}) is None
    journal.put({"a": 2}, {"later": True})
    assert journal.get({"a": 2}) == {"later": True}
    assert len(journal) == 2


def test_what_comes_back_can_be_changed_without_harm(journal):
    value = {"list": [1]}
    journal.put({}, value)
    value["list"].append(2)
    journal.get({})["list"].append(3)
    assert journal.get({}) == {"list": [1]}


@settings(max_examples=30)
@given(st.lists(st.tuples(objects, objects), max_size=4))
def test_a_new_reader_finds_all(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("journal") / "j"
    journal = Journal(path)
    for key, value in pairs:
        journal.put(key, value)
    again = Journal(path)
    assert len(again) == len(journal)
    for key, _ in pairs:
        assert again.get(key) == journal.get(key)
        assert again.get(key) is not None


def test_a_cut_in_the_last_line_costs_that_line_only(tmp_path):
    path = tmp_path / "j"
    Journal(path).put({"n": 1}, {"text": "erste Zeile, äöü"})
    whole = path.stat().st_size
    Journal(path).put({"n": 2}, {"text": "zweite Zeile, 東京"})
    data = path.read_bytes()
    for end in range(whole, len(data)):
        path.write_bytes(data[:end])
        journal = Journal(path)
        assert journal.get({"n": 1}) == {"text": "erste Zeile, äöü"}
        assert journal.get({"n": 2}) is None
        assert path.read_bytes() == data[:end]  # reading repairs nothing
        journal.put({"n": 2}, {"text": "zweite Zeile, 東京"})
        assert path.read_bytes() == data


def test_a_cut_in_the_header_leaves_an_empty_journal(tmp_path):
    path = tmp_path / "j"
    Journal(path).put({"n": 1}, {"m": 2})
    data = path.read_bytes()
    for end in range(data.index(b"\n") + 1):
        path.write_bytes(data[:end])
        journal = Journal(path)
        assert len(journal) == 0
        journal.put({"n": 1}, {"m": 2})
        assert path.read_bytes() == data


def test_the_first_line_names_format_and_version(tmp_path):
    Journal(tmp_path / "j").put({"b": 1, "a": 2}, {"v": 3})
    assert (tmp_path / "j").read_text().splitlines() == [
        '{"format":"minitrans-journal","version":1}',
        '{"key":{"a":2,"b":1},"value":{"v":3}}',
    ]


HEADER = '{"format":"minitrans-journal","version":1}\n'
GOOD = '{"key":{},"value":{}}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "{]\n" + GOOD, "line 2: b'{]' is no result"),
        (HEADER + GOOD + '{"key": 1, "value": {}}\n', "line 3"),
        (HEADER + '{"key": {}}\n', "line 2"),
        (HEADER + "[1, 2]\n", "line 2"),
        (HEADER + '{"key": {"a": NaN}, "value": {}}\n', "line 2"),
        (HEADER + "\n" + GOOD, "line 2"),
        (HEADER + '{"key":' + "[" * 100_000 + "\n", "line 2"),
        ('{"format":"minitrans-journal","version":2}\n', "version is 2, this release reads 1"),
        ('{"format":"something else"}\n', "is not a journal"),
        ("text,label\nhello,a\n", "is not a journal: its first line is b'text,label'"),
        ("no line end", "is not a journal"),
        ("[]\n", "is not a journal"),
    ],
)
def test_what_no_crash_explains_is_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "j"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        Journal(path)
    assert path.read_text() == content


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(InputError, match="cannot read the journal"):
        Journal(tmp_path)


@pytest.mark.parametrize(
    "bad", [{"a": float("nan")}, {"a": float("inf")}, {"a": (1, 2)}, {1: 2}, {"a": object()}, {"a": {1}}, [("a", 1)]]
)
def test_only_plain_json_is_taken(journal, bad):
    for call in (lambda: journal.put(bad, {}), lambda: journal.put({}, bad), lambda: journal.get(bad)):
        with pytest.raises(InputError, match="wanted plain JSON values"):
            call()
    assert len(journal) == 0
    assert journal.path is None or not journal.path.exists()


def test_a_write_that_fails_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")
    journal.put({"n": 1}, {})
    before = (tmp_path / "j").read_bytes()
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    with pytest.raises(OSError, match="only a part"):
        journal.put({"n": 2}, {})
    assert (tmp_path / "j").read_bytes() == before
    assert journal.get({"n": 2}) is None


def test_a_file_that_came_meanwhile_is_left_alone(tmp_path):
    journal = Journal(tmp_path / "j")
    for text in ("text,label\nhello,a\n", "no line end"):
        (tmp_path / "j").write_text(text)
        with pytest.raises(InputError, match="is not a journal"):
            journal.put({"n": 1}, {})
        assert (tmp_path / "j").read_text() == text


@pytest.mark.parametrize(("path", "kind"), [(3, InputTypeError), ("", InputError), ("a\0b", InputError)])
def test_a_path_that_cannot_be_one(path, kind):
    with pytest.raises(kind, match="path"):
        Journal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_no_journal(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        Journal(tmp_path / "pipe")


def test_what_the_system_padded_with_zeros_is_cut_off(tmp_path):
    path = tmp_path / "j"
    Journal(path).put({"n": 1}, {})
    with path.open("ab") as file:
        file.write(b'{"key":{"n":2' + bytes(9000))
    journal = Journal(path)
    journal.put({"n": 3}, {})
    assert len(Journal(path)) == 2
    assert bytes(1) not in path.read_bytes()


def append_many(path, writer):
    journal = Journal(path)
    for i in range(40):
        journal.put({"writer": writer, "i": i}, {"text": "x" * (i * 370 % 5000)})


def test_two_processes_may_append_at_once(tmp_path, monkeypatch):
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=append_many, args=(tmp_path / "j", writer)) for writer in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    journal = Journal(tmp_path / "j")
    assert len(journal) == 80
    assert journal.get({"writer": 1, "i": 39}) == {"text": "x" * (39 * 370 % 5000)}
    assert sum(json.loads(line).get("format") is not None for line in (tmp_path / "j").read_text().splitlines()) == 1
