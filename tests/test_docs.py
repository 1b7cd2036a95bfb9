"""The guides and the reference: links lead somewhere, examples run, commands exist, parameters are described.

A Python block of a page runs, after those above it, in a folder where the files that the page speaks of as the reader's
own are made of the example data, and the bundled model stands for every other. One that would take too long stands
under the line `<!-- not run: why -->`.
"""

import ast
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import click
import documents
import pytest
from documents import CODE, FENCE

import minitrans
from minitrans.cli.main import cli
from minitrans.data.files import read_examples
from minitrans.files import bundled

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
if not GUIDES:
    pytest.skip("the guides are no part of the package", allow_module_level=True)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
PAGES = [page for page in PAGES if page.is_file()] + GUIDES
REFERENCE = sorted((ROOT / "docs" / "api").glob("*.md"))
SOURCES = sorted((ROOT / "minitrans").rglob("*.py"))

LINK = re.compile(r"!?\[[^\]\[]*(?:\[[^\]]*\][^\]\[]*)*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML_LINK = re.compile(r"<(?:a|img)\b[^>]*?\s(?:href|src)=\"([^\"]+)\"")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def fenced(text):
    return [SimpleNamespace(**match.groupdict()) for match in FENCE.finditer(text)]


def prose(text):
    """A page without its blocks of code."""
    return FENCE.sub("", text)


def anchors(text):
    """The names that a repository's host and the site give to the headings of a page."""
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        name = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        numbers = (f"{name}-{i}" for i in range(1, 100))
        found.add(name if name not in found else next(each for each in numbers if each not in found))
    return found


def broken(page, text):
    """Links of a page that lead nowhere."""
    plain = CODE.sub("", prose(text))
    for link in LINK.findall(plain) + HTML_LINK.findall(plain):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no {target}"
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            yield f"{link}: no heading of {target.name} has that name"


# Links


@pytest.mark.parametrize("page", PAGES + REFERENCE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_are_there(page):
    assert list(broken(page, page.read_text(encoding="utf-8"))) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One `two` three\n\n## Again\n\n## Again\n")
    text = """# Here: it is

[a](other.md) [b](other.md#one-two-three) [c](#here-it-is) ![d](gone.svg) [`e`](gone.md#x) [f](other.md#gone) [g](#gone)
[h](other.md#again-1) <img src="gone.png"> [i](https://example.org/gone) `[j](gone)`

```
[k](gone.md)
```
"""
    page.write_text(text)
    assert [line.partition(":")[0] for line in broken(page, text)] == [
        "gone.svg",
        "gone.md#x",
        "other.md#gone",
        "#gone",
        "gone.png",
    ]


# Python


def python_of(page):
    return [block for block in fenced(page.read_text(encoding="utf-8")) if block.kind in ("python", "py")]


@pytest.fixture
def readers_folder(tmp_path, monkeypatch, no_network):
    """The working directory of a reader: models, tasks and files of the names that the pages use."""
    data, model = bundled("examples/data"), bundled("weights/all-MiniLM-L6-v2-int8")
    for name in ("my-model-int8", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(model, target_is_directory=True)
    (tmp_path / "my-intents").mkdir()
    for name in ("train.csv", "test.csv"):
        shutil.copy(data / name, tmp_path / "my-intents" / name)
        shutil.copy(data / name, tmp_path / name)
    minitrans.PruningPolicy().save(tmp_path / "policy.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def readers_names():
    examples = read_examples(bundled("examples/data/train.csv"))
    return {
        "texts": list(examples.texts),
        "labels": list(examples.labels),
        "chatter": list(read_examples(bundled("examples/data/out_of_scope.csv")).texts),
    }


SLOW = ("auditing.md", "evaluation.md", "few-shot.md")  # whole audits and evaluations


def marked(page):
    return pytest.param(page, marks=[pytest.mark.slow] * (page.name in SLOW), id=page.name)


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if python_of(page)])
def test_python_runs(page, readers_folder):
    names = readers_names()
    for block in python_of(page):
        code = compile(block.text, f"{page.name}: {block.text.splitlines()[0]}", "exec")
        if block.why is None:
            exec(code, names)


def test_few_blocks_do_not_run():
    left_out = [block.why for page in PAGES for block in fenced(page.read_text(encoding="utf-8")) if block.why]
    assert len(left_out) <= 2, left_out


# Commands


def commands_of(text):
    """The commands of a page and whether each is whole: those in blocks are, a mention in a sentence need not be."""
    scripts = [block.text.replace("\\\n", " ") for block in fenced(text) if block.kind in ("sh", "bash", "console")]
    for line in "".join(scripts).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                if words and words[0] == "minitrans":
                    yield words[1:], True
                words = []
            else:
                words.append(word)
    for _, code in CODE.findall(prose(text)):
        words = " ".join(code.split()).split(" ")
        if words[0] == "minitrans" and re.fullmatch(r"[\w\s./\[\]=\"',:-]+", code):
            yield [word for word in words[1:] if word != "..."], False


def check(arguments, whole):
    """UsageError if there is no such command or option, or, of a whole command, if something is missing."""
    command, context = cli, click.Context(cli, info_name="minitrans", **cli.context_settings)
    if arguments and not arguments[0].startswith("-"):
        name, command, arguments = cli.resolve_command(context, list(arguments))
        context = click.Context(command, context, name)
    if whole and command is not cli:
        command.make_context(context.info_name, list(arguments), context.parent)
    else:
        command.make_parser(context).parse_args(list(arguments))


@every_page
def test_commands_exist(page):
    for arguments, whole in commands_of(page.read_text(encoding="utf-8")):
        try:
            check(arguments, whole)
        except click.exceptions.Exit:
            pass  # --help, --version
        except click.UsageError as error:
            pytest.fail(f"minitrans {' '.join(arguments)}: {error.format_message()}")


def test_commands_are_found_and_wrong_ones_refused():
    text = """Do `minitrans fit --reject`, `minitrans
pull x`, not `minitrans/cli/main.py`.

```sh
pip install minitrans && minitrans demo --json  # minitrans no
minitrans fit a.csv b/ \\
    --reject
cat x | minitrans embed; echo "minitrans no"
```
"""
    assert list(commands_of(text)) == [
        (["demo", "--json"], True),
        (["fit", "a.csv", "b/", "--reject"], True),
        (["embed"], True),
        (["fit", "--reject"], False),
        (["pull", "x"], False),
    ]
    for arguments, whole in commands_of(text):
        check(arguments, whole)
    for arguments, whole in ((["feet"], False), (["fit", "--rejekt"], False), (["fit", "a.csv"], True)):
        with pytest.raises(click.UsageError):
            check(arguments, whole)


def test_every_command_is_run_or_has_its_reason():
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8") if (ROOT / ".ci").is_dir() else None
    shown = {command for page in documents.pages() for command in documents.commands_of(page)}
    assert set(documents.NOT_RUN) <= shown
    assert {page.name for page in GUIDES} <= {page.name for page in documents.pages()}
    for command, reason in documents.NOT_RUN.items():
        if reason == documents.CI and checks is not None:
            assert f" '{command}'\n" in checks
    assert checks is None or "tests/documents.py" in checks


def test_commands_are_taken_as_they_stand(tmp_path):
    (tmp_path / "page.md").write_text(
        """Do `python -m one --two`, `minitrans pull
x` or `python -m`, not `pip`, `tests/` or `pytest`.

```sh
pip install ".[a]" && b  # why
minitrans predict \\
    "one # two"    # why
```
"""
    )
    assert documents.commands_of(tmp_path / "page.md") == [
        'pip install ".[a]" && b',
        'minitrans predict      "one # two"',
        "python -m one --two",
        "minitrans pull x",
    ]


# The reference


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def shown():
    return [
        name for page in REFERENCE for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M)
    ]


def test_every_public_name_is_on_the_first_page():
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8"), re.M)
    assert {f"minitrans.{name}" for name in minitrans.__all__} <= set(names)


def test_every_module_is_on_one_page():
    """Packages that only hold modules need none."""
    documented = [name for name in shown() if name in {module_of(path) for path in SOURCES}]
    assert len(documented) == len(set(documented))
    for path in SOURCES:
        name = module_of(path)
        if name.endswith("__main__") or name.startswith("minitrans.cli."):
            continue  # the reference shows commands as they print themselves
        defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree_of(path).body)
        if defines and name != "minitrans":
            assert name in documented, f"put `::: {name}` on a page of docs/api"


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(body, prefix=""):
    """Public functions and methods by name, each with the docstring that speaks of its parameters."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for name, function, docstring in functions(node.body, f"{prefix}{node.name}."):
                yield name, function, ast.get_docstring(node) if name.endswith(".__init__") else docstring
        elif isinstance(node, ast.FunctionDef) and not re.match("_(?!_init__)", node.name):
            decorators = {ast.unparse(each) for each in node.decorator_list}
            if not {"overload", f"{node.name}.setter"} & decorators:
                yield f"{prefix}{node.name}", node, ast.get_docstring(node)


def parameters(function):
    arguments = function.args
    own = [each.arg for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    return [name for name in own if name not in ("self", "cls")], [
        f"{stars}{each.arg}" for stars, each in (("*", arguments.vararg), ("**", arguments.kwarg)) if each
    ]


def described(docstring):
    """The names under "Args:"; None where there is no such section."""
    lines = (docstring or "").splitlines()
    if "Args:" not in lines:
        return None
    section = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        section.append(line)
    names = [re.match(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", line) for line in section]
    return [name for match in names if match for name in match[1].split(", ")]


def gaps(path):
    """What a module's docstrings say of parameters that are not there, or do not say of those that are."""
    for name, function, docstring in functions(tree_of(path).body):
        wanted, rest = parameters(function)
        found = described(docstring)
        if found is not None:
            for each in sorted(set(wanted) - set(found)):
                yield f"{name}: {each} is not described"
            for each in sorted(set(found) - set(wanted) - set(rest)):
                yield f"{name}: {each} is described but is no parameter"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_list_of_parameters_is_whole(path):
    assert list(gaps(path)) == []


def test_every_parameter_of_a_public_name_is_described_or_named():
    """A lone one may go without; of several, each has its entry under "Args:" or is named in the words."""
    missing = []
    for public in minitrans.__all__:
        home = minitrans._HOME.get(public)
        if home is None:
            continue
        path = ROOT / f"{home.replace('.', '/')}.py"
        for name, function, docstring in functions(tree_of(path).body):
            wanted, _ = parameters(function)
            if name.partition(".")[0] == public and len(wanted) > 1 and described(docstring) is None:
                missing += [f"{name}: {each}" for each in wanted if not re.search(rf"\b{each}\b", docstring or "")]
    assert missing == []


def test_gaps_are_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('''
class C:
    """Args:
        a, b: two.
        gone: nothing.
    """

    def __init__(self, a, *, c): ...

    def f(self, x, y, *args, **kwargs):
        """Do it.

        Args:
            x: one.
                more: of it.
            **kwargs: others.

        Raises:
            z: no.
        """

    def g(self, x): """Do it."""
''')
    path.write_text(path.read_text().replace('"""Args:', '"""A class.\n\n    Args:'))
    assert list(gaps(path)) == [
        "C.__init__: c is not described",
        "C.__init__: b is described but is no parameter",
        "C.__init__: gone is described but is no parameter",
        "C.f: y is not described",
    ]
