"""What the commands print: nothing that a user typed steers a terminal, breaks a line or ends a run."""

import errno
import io
import json
import os
import sys

import pytest

from minitrans import FewShotClassifier, SentenceEncoder
from minitrans.cli import options
from minitrans.errors import InputError

LABELS = ["tab\there", "line\nend", "\x1b[31mred\x1b[0m", "\u202edlo", "back\\slash", "\u4e2d\u6587"]
TEXTS = ["one", "two", "three", "four", "five", "six"]


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain)


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "intents"
    FewShotClassifier(encoder, label_names=False).fit(TEXTS, LABELS).save(folder)
    return folder


def safe(text):
    return all(c in "\n\t" or c.isprintable() for c in text)


def test_predictions_stay_rows_of_three(run_cli, folder):
    code, out, _ = run_cli("predict", folder, "--top", "6", "one \x1b]0;x\x07", "a\tb\u2028c")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 12
    assert {len(row) for row in rows} == {3}
    shown = {"tab\\there", "line\\nend", "\\x1b[31mred\\x1b[0m", "\\u202edlo", "back\\\\slash", "\u4e2d\u6587"}
    assert {row[0] for row in rows} == shown
    assert safe(out)


def test_json_keeps_labels_exact(run_cli, folder):
    _, out, _ = run_cli("predict", folder, "--json", "--top", "6", "a\tb\nc")
    row = json.loads(out)
    assert row["text"] == "a\tb\nc"
    assert {each["label"] for each in row["labels"]} == set(LABELS)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_what_the_encoding_lacks_is_written_out(run_cli, folder, monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    code, _, err = run_cli("predict", folder, "--top", "6", "\u4e2d", "\U0001f600")
    assert (code, err) == (0, "")
    seen = stream.buffer.getvalue().decode(encoding)
    assert len(seen.splitlines()) == 12
    assert "\\u4e2d\\u6587\t" in seen
    assert "\t\\U0001f600" in seen


def test_explain_prints_no_control_characters(run_cli, folder, monkeypatch):
    _, out, _ = run_cli("explain", "a \x1b[2J\x9b \u200f b", "--classifier", folder, "--no-timing")
    assert safe(out.replace("\u2068", "").replace("\u2069", ""))
    assert 'tab\\there: "one"' in out


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("embed", "-i", "no\x1b[31m\nfile\u202e.txt"), "no\\x1b[31m\\nfile\\u202e.txt"),
        (("predict", "no\tsuch\x9bfolder", "x"), "such\\x9bfolder"),
        (("embed", "x", "--threads", "\x1b[2J"), "x1b[2J"),
        (("\x1b]0;x\x07",), "x1b]0;x"),
        (("embed", "--\x1b[2J"), "\\x1b[2J"),
        (("info", "no\nmodel\x85"), "no\\nmodel\\x85"),
    ],
)
def test_errors_are_one_line_without_control_characters(run_cli, no_network, arguments, shown):
    code, out, err = run_cli(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert shown in err
    assert len(err.splitlines()) == 1
    assert safe(err.replace("\t", "\x1b"))


def test_warnings_are_one_line(capsys):
    from minitrans.cli.main import _show_warning

    _show_warning("a \x1b[31m name\nand more")
    assert capsys.readouterr().err == "Warning: a \\x1b[31m name; and more\n"


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_once(run_cli, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    code, _, err = run_cli("predict", folder, "one")
    assert code == 1
    assert err == f"Error: standard output cannot be written: {os.strerror(errno.ENOSPC)}\n"
    monkeypatch.setattr(sys, "stderr", Full())
    assert run_cli("predict", folder, "one")[0] == 1


def test_streams_may_be_closed(run_cli, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_cli("explain", "one", "--classifier", folder, "--no-timing")[0] == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert run_cli("info", "--nope")[0] == 2


COMMANDS = [
    ("embed",),
    ("predict", "c"),
    ("fit", "t.csv"),
    ("explain",),
    ("audit",),
    ("info",),
    ("quantize", "m"),
    ("evaluate", "--task"),
    ("adapt", "-o", "p.json", "--task"),
    ("pull",),
    ("demo", "--model"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("argument", ["a\0b", "\ud800"])
def test_no_argument_that_the_system_cannot_give(run_cli, command, argument, no_network):
    code, out, err = run_cli(*command, argument)
    assert (code, out) == (2, "")
    assert "no system can give" in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the working folder cannot be removed")
@pytest.mark.parametrize(
    "arguments",
    [
        ("embed", "hi", "-o", "a.npy"),
        ("embed", "-i", "a.txt"),
        ("predict", "intents", "hi"),
        ("fit", "train.csv", "intents"),
        ("explain", "hi", "--html", "a.html"),
        ("quantize", "a", "b"),
        ("info", "a/b"),
        ("audit", "a/b/c"),
        ("evaluate", "--task", "a.csv"),
        ("adapt", "--task", "a.csv", "-o", "p.json"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_working_folder_that_is_gone_is_named(run_cli, tmp_path, monkeypatch, no_network, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, out, err = run_cli(*arguments)
    assert (code, out) == (2, "")
    assert "the working folder is gone: change to one that exists" in err
    assert len(err.splitlines()) == 1


def test_an_output_is_never_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task").mkdir()
    for name in ("a.jsonl", "task/train.csv", "task/table.csv"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    for given, read, said in (
        ({"--output": "a.jsonl"}, ["a.jsonl"], "--output is a.jsonl, which is read too"),
        ({"--output": "link.jsonl"}, ["a.jsonl"], "which is read too"),
        ({"--output": str(tmp_path / "a.jsonl")}, ["./a.jsonl"], "which is read too"),
        ({"--output": "task/train.csv"}, ["task"], "which is read too"),
        ({"--output": "new", "--journal": "./new"}, [], "--journal is new, which --output names too"),
        ({"--output": "task"}, [], "--output is task, which is a folder, wanted the name of a file; name another"),
        ({"--output": "pipe"}, [], "which is a pipe"),
        ({"--output": "/dev/null"}, [], "which is a device"),
        ({"--output": "a.jsonl/b"}, [], "a.jsonl is a file, wanted a folder; name another file"),
        ({"--output": "a.jsonl/deeper/b"}, [], "a.jsonl is a file"),
    ):
        with pytest.raises(InputError, match=said):
            options.check_outputs(given, read)
    options.check_outputs({"--output": "task/table.csv", "--journal": None, "--report": "new/folder/a"}, ["task", None])
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"the folder {tmp_path} may not be written to; name another file"):
        options.check_outputs({"--output": "new/folder/a"})


def test_an_output_with_too_long_a_name_is_one_line(run_cli):
    code, out, err = run_cli("audit", "--write-digests", "x" * 300)
    assert (code, out) == (2, "")
    assert err.endswith("File name too long\n")


def test_the_input_survives(run_cli, tmp_path, plain):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "hi"}\n')
    code, _, err = run_cli("embed", "-i", file, "-o", file, "--model", plain)
    assert (code, "which is read too" in err) == (2, True)
    assert file.read_text() == '{"text": "hi"}\n'


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert options.mark_dropped("a") == "[-a-]"
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert "\x1b[" in options.mark_dropped("a")
    monkeypatch.setenv("TERM", "dumb")
    assert options.mark_dropped("a") == "[-a-]"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert options.mark_dropped("a") == "[-a-]"
