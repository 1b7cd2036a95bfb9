"""The README's first screen: its code prints what stands below it, and its picture is there."""

import re
import shlex
from pathlib import Path

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_first_code_prints_what_is_shown(run_python):
    (language, code), (_, output) = BLOCKS[:2]
    assert language == "python"
    assert len([line for line in code.splitlines() if line]) <= 8
    for backend in ("auto", "reference"):
        source = code.replace("SentenceEncoder()", f'SentenceEncoder(backend="{backend}")')
        assert source != code
        assert run_python(source, HF_HUB_OFFLINE="1").stdout == output


def test_the_first_screen_shows_what_to_read_and_the_picture():
    first = README.split("\n## ", 1)[0]
    assert "read [`minitrans/encoder/forward.py`](minitrans/encoder/forward.py) first" in first
    assert "](docs/overview.svg)" in first
    assert first.count("```") == 4


def test_the_commands_of_the_installation_are_whole_lines():
    commands = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("pip install")]
    assert commands[:2] == ["pip install -e . && minitrans demo", 'pip install -e ".[test]" && pytest']


def test_explain_prints_what_is_shown(run_cli):
    (shown,) = (block for _, block in BLOCKS if block.startswith("$ minitrans explain"))
    command, _, output = shown.partition("\n")
    code, out, _ = run_cli(*shlex.split(command.removeprefix("$ minitrans ")))
    assert code == 0

    def words(text: str) -> list[str]:
        return re.sub(r"[\d.█┊»]+", " ", text).split()  # the last digits of scores differ between processors

    assert words(out) == words(output)
    (quoted,) = re.findall(r"^> (.*)", README, re.MULTILINE)
    assert "  " + re.sub(r"~~(.*?)~~", r"[-\1-]", quoted) in out.splitlines()
