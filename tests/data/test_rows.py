import csv
import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrans.data.files import read_examples, read_texts
from minitrans.data.rows import check_delimiter, decoded, table_rows, text_lines
from minitrans.errors import DataWarning, InputError, InputTypeError


def examples_of(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_examples(path, **options)
    return list(zip(found.texts, found.labels, strict=True))


def refused(path, content, message, **options):
    with pytest.raises(InputError, match=message):
        examples_of(path, content, **options)


# ---------------------------------------------------------------- quotation marks


RIGHT_TSV = {
    "inside a field": ('say "hi"\ta\n5" disk\tb\n', [('say "hi"', "a"), ('5" disk', "b")]),
    "at the end": ('bye"\ta\n', [('bye"', "a")]),
    "at both ends of parts": (
        '"hi" she said\ta\n"no" and "yes"\tb\n',
        [('"hi" she said', "a"), ('"no" and "yes"', "b")],
    ),
    "around a whole text": ('"Titanic"\tfilm\nhi, you\ta\n', [('"Titanic"', "film"), ("hi, you", "a")]),
    "by pandas": ('"say ""hi"""\ta\nbye\tb\n', [('say "hi"', "a"), ("bye", "b")]),
    "by Excel": ('"hi, you"\ta\nbye\tb\n', [("hi, you", "a"), ("bye", "b")]),
    "over lines": ('"two\nlines"\ta\nbye\tb\n', [("two\nlines", "a"), ("bye", "b")]),
    "never closed": ('"hi\ta\nbye\tb\n', [('"hi', "a"), ("bye", "b")]),
}


@pytest.mark.parametrize("kind", RIGHT_TSV)
def test_marks_in_a_tsv_lose_no_row(tmp_path, kind):
    content, rows = RIGHT_TSV[kind]
    assert examples_of(tmp_path / "a.tsv", "text\tlabel\n" + content) == rows


def test_a_header_in_marks_means_that_every_field_is(tmp_path):
    assert examples_of(tmp_path / "a.tsv", '"text"\t"label"\n"hi"\t"a"\n') == [("hi", "a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('hi\ta\n"bye\tb\nand\tc\nyes"\td\n', r"line 3: the quotation mark may be a letter .* a field of lines 3 to 5"),
        ('id\t"x\ty"\tz\n', "line 2: .* a field with a tab in it"),
        ('"Titanic"\tfilm\n"say ""hi"""\ta\n', "line 2: a field in quotation marks that needs none"),
        ('"two\nlines"\ta\n"bye\tb\nyes"\tc\n', "line 4: .* a field of lines 4 to 5"),
    ],
)
def test_marks_in_a_tsv_with_two_readings_are_refused(tmp_path, content, message):
    header = "text\tlabel\tnote\tmore\n" if "\tz" in content else "text\tlabel\n"
    refused(tmp_path / "a.tsv", header + content, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('hi,a\n"bye,b\nyes,a\n', "line 3: a quotation mark opens a field here and nothing closes it"),
        (
            'hi,a\n"bye" now,b\n',
            "line 3: the quotation mark that opens a field here is closed in line 3 with more behind",
        ),
        ('hi,a\n"two\nlines" now,b\n', "line 3: the quotation mark that opens a field here is closed in line 4"),
        (
            'hi,a\n"bye,b\nso long",b\n"x",c\ny,b\n',
            "line 3: a quotation mark opens a field that holds rows, up to line 4",
        ),
        ('hi,a\nbye, "b, c"\n', "line 3: more fields than the header has"),
        ('hi,a\nbye, "b"\n', "line 3: a quotation mark behind a blank, where it quotes nothing"),
        ('"two\nlines",a\nhi\n', "line 4: column 'label' is missing"),
        ('"two\nlines",a\n"one\nmore",\n', "line 4: text or label is empty"),
    ],
)
def test_marks_in_a_csv_are_refused_where_the_record_begins(tmp_path, content, message):
    refused(tmp_path / "a.csv", "text,label\n" + content, message)


def test_a_field_whose_lines_could_be_rows_is_told(tmp_path):
    with pytest.warns(DataWarning, match=r"a.csv: each line of the field of lines 2 to 3 could be a row"):
        assert len(examples_of(tmp_path / "a.csv", 'text,label\n"hi,a\nbye",b\nx,c\n')) == 2


def test_texts_of_several_lines_with_commas_are_fine(tmp_path):
    letter = "Hello,\nI am waiting, please help,\n\nJo"
    assert examples_of(tmp_path / "a.csv", f'text,label\n"{letter}",a\n5" disk,b\n') == [
        (letter, "a"),
        ('5" disk', "b"),
    ]


# ---------------------------------------------------------------- delimiters and headers


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_delimiter_is_found_from_the_header(tmp_path, name, delimiter, end):
    lines = [["id", "text", "label"], ["1", "hi there", "a"], ["2", "bye", "b"]]
    content = "\ufeff" + "".join(delimiter.join(line) + end for line in lines)
    assert examples_of(tmp_path / name, content) == [("hi there", "a"), ("bye", "b")]
    assert read_texts(tmp_path / name) == ["hi there", "bye"]


def test_a_comma_in_a_text_is_none_where_semicolons_delimit(tmp_path):
    assert examples_of(tmp_path / "a.csv", "text;label\nhi, you;a\n") == [("hi, you", "a")]


def test_excels_own_line_for_the_delimiter_counts(tmp_path):
    assert examples_of(tmp_path / "a.csv", "sep=;\r\ntext;label\r\nhi;a\r\n") == [("hi", "a")]
    refused(tmp_path / "a.csv", "sep=;\ntext;label\nhi\n", "line 3: column 'label' is missing")


@pytest.mark.parametrize(("given", "between"), [("~", "~"), ("tab", "\t"), ("\\t", "\t"), (":", ":")])
def test_a_delimiter_can_be_given(tmp_path, given, between):
    content = f"text{between}label\nhi, you;{between}a\n"
    assert examples_of(tmp_path / "a.csv", content, delimiter=given) == [("hi, you;", "a")]


def test_a_given_delimiter_is_not_second_guessed(tmp_path):
    refused(tmp_path / "a.csv", "text,label\nhi,a\n", r"the delimiter seems to be ',', not ';'", delimiter=";")
    refused(
        tmp_path / "a.csv", "satz;klasse\nhi;a\n", "the delimiter seems to be ';', not ',', and the columns to have"
    )


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n", " ", "x", 5])
def test_impossible_delimiters_are_refused(delimiter):
    with pytest.raises(InputError, match="wanted one character, as ';', or tab"):
        check_delimiter(delimiter)


@pytest.mark.parametrize("header", [" text ,label", "text\u00a0,\tlabel ", "\ufefftext,label,,", '"text","label"'])
def test_blanks_around_the_names_of_columns_do_not_count(tmp_path, header):
    assert examples_of(tmp_path / "a.csv", f"{header}\nhi,a\n") == [("hi", "a")]


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("lines", [0, 3, 40_000])
def test_a_byte_that_is_no_utf8_is_named_where_it_is(tmp_path, name, lines):
    good = {".csv": b"text,label\n", ".tsv": b"text\tlabel\n", ".jsonl": b'{"text": "a"}\n', ".txt": b"hi\n"}
    data = b"\xef\xbb\xbf" + good[name[1:]] + "naïve\n".encode() * lines
    (tmp_path / name).write_bytes(data + b"na\xefve\n")
    with pytest.raises(InputError, match=rf"continuation byte in line {lines + 2}, at byte {len(data) + 2} \(0xef\)"):
        read_texts(tmp_path / name)


def test_arguments_files_and_pipes_are_judged_alike(tmp_path, run_cli):
    bad, seen = b"na\xefve", "is not UTF-8 text: invalid continuation byte"
    (tmp_path / "a.txt").write_bytes(bad)
    for arguments, stdin in (
        (["-i", tmp_path / "a.txt"], None),
        ([bad.decode("utf-8", "surrogateescape")], None),
        ([], bad),
    ):
        code, out, err = run_cli("embed", *arguments, stdin=stdin)
        assert (code, out) == (2, "")
        assert seen in err
        assert "at byte 2 (0xef)" in err


def test_a_pipe_is_read_as_utf8_in_any_locale(monkeypatch, run_cli):
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="latin-1", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", stdin)
    code, _, err = run_cli("embed")
    assert code == 2
    assert "standard input is not UTF-8 text: invalid continuation byte in line 1, at byte 3 (0xe9)" in err


BINARY = {
    b"PAR1\x15\x04": "is a Parquet file",
    b"PK\x03\x04\x14": "is a zip archive, as Excel's .xlsx files are",
    b"\x1f\x8b\x08": "is compressed by gzip",
    "text,label\n".encode("utf-16"): "is text in UTF-16",
    "text,label\n".encode("utf-16-le"): "NUL in line 1, at byte 1; .* if it is UTF-16",
    b"version https://git-lfs.github.com/spec/v1\n": "is a Git LFS pointer in place of the file",
    b"text,label\nhi\0,a\n": "NUL in line 2, at byte 13",
}


@pytest.mark.parametrize("data", BINARY)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_what_is_no_text_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=BINARY[data]):
        read_texts(tmp_path / name)


def test_lines_end_in_lf_crlf_or_cr_and_in_nothing_else():
    data = "\ufeffone\rtwo\r\nthree\u2028\x0b\x0c\x85 still\n\nfive".encode()
    assert list(text_lines(io.BytesIO(data))) == ["one", "two", "three\u2028\x0b\x0c\x85 still", "", "five"]
    assert "".join(text_lines(io.BytesIO(data), ends=True)) == data.decode().removeprefix("\ufeff")


@given(st.binary())
def test_bytes_are_text_exactly_where_python_says_so(data):
    data = b" " + data  # which no other format begins with
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(InputError, match=f"at byte {error.start} "):
            list(text_lines([data]))
        return
    if "\0" in text:
        with pytest.raises(InputError, match=f"NUL at byte {data.index(0)};"):
            decoded(data, "x")
    else:
        assert decoded(data, "x") == text


def test_a_stream_that_fails_is_an_error_of_the_package(tmp_path):
    def broken():
        yield b"one\n"
        raise OSError(5, "Input/output error")

    with pytest.raises(InputError, match="cannot read standard input: Input/output error"):
        list(text_lines(broken()))
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_texts(tmp_path)


# ---------------------------------------------------------------- any table


def some_tables(letters):
    fields = st.text(st.sampled_from(letters), max_size=8).map(lambda field: f"{field}x{field[:1]}")
    return st.lists(st.tuples(fields, fields), min_size=1, max_size=6)


ignored = pytest.mark.filterwarnings("ignore::minitrans.errors.DataWarning")


def write(path, rows, delimiter):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *rows])
    return path


def reading(path):
    """Texts, or None where the file is refused."""
    try:
        return read_examples(path).texts
    except InputError:
        return None


@ignored
@given(some_tables('ab, ;"\t\n\r|'), st.sampled_from([",", ";", "\t"]))
def test_what_the_csv_module_writes_is_read_or_refused(tmp_path_factory, rows, delimiter):
    path = write(tmp_path_factory.mktemp("any") / ("a.tsv" if delimiter == "\t" else "a.csv"), rows, delimiter)
    assert reading(path) in (None, [text for text, _ in rows])


@ignored
@given(some_tables('ab ,"'))
def test_an_unquoted_tsv_keeps_every_row(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "a.tsv"
    path.write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]), newline="")
    unmarked = [text[1:-1].replace('""', '"') if re.fullmatch('"([^"]|"")*"', text) else text for text, _ in rows]
    assert reading(path) in (None, [text for text, _ in rows], unmarked)


@ignored
@given(some_tables('ab,"\t'), st.integers(0, 200), st.sampled_from(['"', "", "\n", "\t", ","]))
def test_a_broken_mark_never_yields_fewer_rows_unseen(tmp_path_factory, rows, place, letter):
    rows = [(text, f"l{i}") for i, (text, _) in enumerate(rows)]
    path = write(tmp_path_factory.mktemp("any") / "a.tsv", rows, "\t")
    data = path.read_text()
    body = data.index("\n") + 1
    place = body + place % (len(data) - body)
    path.write_text(data[:place] + letter + data[place + 1 :], newline="")
    found = reading(path)
    assert found is None or len(found) >= len(rows) - 1  # one line end may have been the letter that broke


@pytest.mark.parametrize("column", [5, None, ["text"]])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_column_that_is_no_name_is_refused(tmp_path, name, column):
    (tmp_path / name).write_text('{"text": "a"}\n')
    with pytest.raises(InputTypeError, match=r"a column is .* wanted its name"):
        table_rows(tmp_path / name, ("text", column))
