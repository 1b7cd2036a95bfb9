"""The commands that the documents show, and how they are tried as they stand.

    python tests/documents.py FOLDER

makes in FOLDER a copy of the repository, with the files that the documents speak of as the reader's own, and a new
virtual environment; and runs there, in a shell, every command that is not in NOT_RUN. tests/test_docs.py checks the
names of commands and options.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.M)
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
IN_A_SENTENCE = re.compile(r"(pip install|python -m|pytest|bash|pre-commit|ruff|minitrans pull) .*[^./]")

CI = "a step of .ci/run"
PEERS = "2 GB of other runtimes, and half an hour"
DATA = "needs the intent data"
NOT_RUN = {
    "ruff check . && ruff format --check . && mypy": CI,
    'pip install -e ".[test]" && pytest': CI,
    'pip install -e ".[docs]" && mkdocs build --strict': CI,
    'pip install -e ".[browser,docs]" && pytest -m browser': CI,
    'pytest -m "slow or hypothesis" --hypothesis-profile=thorough': CI,
    "pip install -r tests/golden/requirements.txt && pytest -m transformers": CI,
    "pytest": "the README's test command once more",
    "pytest -m transformers": "comes with its installation too",
    "bash .ci/run": "is what runs this",
    'pip install -e ".[benchmarks]" && python -m benchmarks': PEERS,
    'pip install -e ".[benchmarks]" && minitrans pull all-MiniLM-L6-v2': PEERS,
    "python -m benchmarks": PEERS,
    "python -m benchmarks --quick": PEERS,
    "python -m benchmarks --json results.json --svg speed.svg": PEERS,
    "python -m benchmarks.accuracy": DATA,
    "python -m benchmarks.classifier": DATA,
    "python -m benchmarks.observer": "200 rounds, minutes of an idle machine; tests/test_benchmarks.py runs a few",
    "python -m study run": "takes hours",
}


def pages() -> list[Path]:
    """The documents, in the order in which they are read."""
    names = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"]
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8") if (ROOT / "mkdocs.yml").is_file() else ""
    names += [f"docs/{name}" for name in re.findall(r"^ +- (?:\w+: )?([\w-]+\.md)$", site, re.M)]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def lines_of(text: str) -> list[str]:
    """The lines of the shell in a page's blocks, without comments."""
    blocks = [match for match in FENCE.finditer(text) if match["kind"] in ("sh", "bash", "console")]
    lines = "".join(block["text"].replace("\\\n", " ") for block in blocks).splitlines()
    return [line for line in (re.sub(r"(^|\s\s+)#\s.*", "", line).strip() for line in lines) if line]


def commands_of(page: Path) -> list[str]:
    """Every command that a page shows: its lines of the shell, then those that stand in a sentence or a table."""
    text = page.read_text(encoding="utf-8")
    inline = [" ".join(code.split()) for _, code in CODE.findall(FENCE.sub("", text))]
    return [*lines_of(text), *(code for code in inline if IN_A_SENTENCE.fullmatch(code))]


def reader_files(folder: Path, model: Path, data: Path) -> None:
    """Write what the documents speak of as the reader's own: of the example data, and of a model."""
    shutil.copytree(model, folder / "my-model")
    for name in ("my-intents", "clinc150", "sofmattress"):
        shutil.copytree(data, folder / name, ignore=shutil.ignore_patterns("*.md"))
    for name in ("train.csv", "test.csv"):
        shutil.copy(data / name, folder / name)
    with (data / "train.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    for i, name in enumerate(("shop.csv", "bank.csv", "travel.csv")):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows[i::3]])
    with (data / "out_of_scope.csv").open(encoding="utf-8", newline="") as file:
        texts = [row[0] for row in csv.reader(file)][1:]
    (folder / "chatter.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    with (data / "test.csv").open(encoding="utf-8", newline="") as file:
        asked = list(csv.reader(file))[1:]
    known = {label: text for text, label in rows}
    pairs = [(text, known[label]) for text, label in asked]
    for name, some in (("headlines.csv", pairs), ("questions-train.csv", pairs[::3])):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("query", "document"), *some])
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts[:5])])


def main(work: Path) -> int:
    """Run all; the number of those that failed."""
    ignored = shutil.ignore_patterns(
        ".git", "site", "build", "dist", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "kernels.so"
    )
    copy = Path(shutil.copytree(ROOT, work / "repository", ignore=ignored))
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    reader_files(copy, ROOT / "weights" / "all-MiniLM-L6-v2-int8", ROOT / "examples" / "data")
    venv.create(work / "venv", with_pip=True)
    path = os.pathsep.join([str(work / "venv" / "bin"), os.environ["PATH"]])
    shown = {command: page for page in reversed(pages()) for command in reversed(commands_of(page))}
    commands = [command for command in reversed(shown) if command not in NOT_RUN]
    failed = 0
    for command in sorted(commands, key=lambda command: not command.startswith("pip install")):
        print(f"\n{shown[command].relative_to(ROOT)}$ {command}", flush=True)
        start = time.monotonic()
        shell = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=copy,
            env=os.environ | {"PATH": path, "VIRTUAL_ENV": str(work / "venv")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines = shell.stdout.decode(errors="replace").splitlines()
        print("\n".join(lines if shell.returncode else lines[-3:]))
        print(f"exit {shell.returncode}, {time.monotonic() - start:.0f} s", flush=True)
        failed += shell.returncode != 0
    print(f"\n{len(commands)} commands of the documents, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]))))
