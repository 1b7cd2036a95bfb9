"""The rules of the house, read off the source: imports point one way, files stay small, names stay few."""

import ast
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import minitrans

PACKAGE = Path(minitrans.__file__).parent
REPOSITORY = Path(__file__).resolve().parents[1]

# From the bottom up: the modules of a folder import those of its own and of folders before it.
FOLDERS = [
    "",
    "models",
    "models.tokenization",
    "hub",
    "encoder",
    "kernels.vector",
    "kernels",
    "kernels.library",
    "backends",
    "sentences",
    "fewshot",
    "data",
    "evaluation",
    "adaptation",
    "explain",
    "audit",
    "cli",
]

PUBLIC = [
    "FewShotClassifier",
    "MinitransError",
    "PruningPolicy",
    "SentenceEncoder",
    "TruncationWarning",
    "__version__",
    "pull",
    "quantize_folder",
]

# Beside these names; all other modules may change between releases.
PUBLIC_MODULES = [
    "errors",
    "encoder.forward",
    "encoder.blocks",
    "encoder.policy",
    "models.folder",
    "data.files",
    "data.tasks",
    "data.searches",
    "evaluation.few_shot",
    "evaluation.out_of_scope",
    "evaluation.retrieval",
    "adaptation.adapt",
    "fewshot.head",
    "explain.trace",
    "explain.explanation",
    "audit.signoff",
]

DEPENDENCIES = {"numpy", "safetensors", "tokenizers", "huggingface_hub", "click", "threadpoolctl", "tqdm", "tomli"}
COMPILERS = {"numba", "llvmlite"}
DRAWING = {"matplotlib"}  # extra "report"
ORACLE = {"torch", "transformers", "sentence_transformers"}  # extra "transformers"
COMPILED = {f"kernels.{name}" for name in ("rows", "products", "attention", "prune", "run", "library.build")}
COMPILED |= {f"kernels.vector.{name}" for name in ("emitter", "elementary", "tiles")}
CODE_THAT_RUNS_DATA = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def module_name(path: Path) -> str:
    """minitrans/backends/__init__.py -> backends; minitrans/__init__.py -> "" """
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}
MODULES = {f"minitrans.{name}" for name in PATHS}
every_module = pytest.mark.parametrize("name", PATHS, ids=lambda name: name or "minitrans")


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything that can run: what stands under `if TYPE_CHECKING` is left out."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from (node for branch in child.orelse for node in [branch, *nodes(branch)])
        else:
            yield child
            yield from nodes(child)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of imported modules, those inside functions included."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            if node.module == "minitrans":
                yield from (f"minitrans.{alias.name}" for alias in node.names)
            else:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                yield from inner & MODULES or {node.module or ""}


def called(tree: ast.AST) -> Iterator[str]:
    """Names of functions that are called by their bare name."""
    for node in nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def test_imports_in_functions_count_and_those_for_types_not():
    source = """
import a
from minitrans import b, __version__
if TYPE_CHECKING:
    import types_only
else:
    import c
def f():
    if x:
        from minitrans.d import e
    print(eval("1"))
"""
    tree = ast.parse(source)
    assert list(imports(tree)) == ["a", "minitrans.b", "minitrans.__version__", "c", "minitrans.d"]
    assert list(called(tree)) == ["print", "eval"]


def private_names(tree: ast.AST) -> Iterator[str]:
    """Names with one underscore in front that are taken from other modules of the package."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "minitrans":
            yield from (f"{node.module}.{alias.name}" for alias in node.names if re.match("_(?!_)", alias.name))
            modules = (alias for alias in node.names if f"{node.module}.{alias.name}" in MODULES)
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield from [f"{aliases[node.value.id]}.{node.attr}"] * bool(re.match("_(?!_)", node.attr))


def test_private_names_are_found():
    source = """
from minitrans.encoder import forward as f, _a
from minitrans import __version__
f._restore(x._y)
"""
    assert list(private_names(ast.parse(source))) == ["minitrans.encoder._a", "minitrans.encoder.forward._restore"]


@every_module
def test_no_private_name_of_another_module(name):
    assert list(private_names(TREES[name])) == []


def folder_of(name: str) -> str:
    return name if PATHS[name].name == "__init__.py" else name.rpartition(".")[0]


def own_imports(name: str) -> set[str]:
    """The modules of the package that one imports."""
    found = (module.removeprefix("minitrans.") for module in imports(TREES[name]) if module.startswith("minitrans."))
    return {module for module in found if module != "__version__"}


@pytest.mark.parametrize("name", [name for name in PATHS if name and not name.endswith("__main__")])
def test_imports_point_downward(name):
    for module in own_imports(name):
        assert module in PATHS, f"{name} imports {module}, which is not a module"
        assert FOLDERS.index(folder_of(module)) <= FOLDERS.index(folder_of(name)), f"{name} imports {module}"


def test_no_imports_go_round_in_a_circle():
    TopologicalSorter({name: own_imports(name) for name in PATHS}).prepare()


def test_a_folder_has_at_most_nine_modules():
    held = Counter(folder_of(name) for name, path in PATHS.items() if not path.name.startswith("__"))
    assert max(held.values()) <= 9, held.most_common(1)


def test_the_package_itself_needs_the_standard_library_alone():
    assert set(imports(TREES[""])) <= {"__future__", "importlib", "typing"}


@every_module
def test_third_party_imports_are_declared(name):
    modules = Counter(imports(TREES[name]))
    for node in nodes(TREES[name]):  # scikit-learn calls these itself, so it is there
        if isinstance(node, ast.FunctionDef) and node.name.startswith("__sklearn_"):
            modules -= Counter(imports(node))
    roots = {module.partition(".")[0] for module in modules}
    extras = {"adaptation.report": DRAWING, "audit.oracle": ORACLE, "audit.sentence_oracle": ORACLE}
    allowed = COMPILERS if name in COMPILED else extras.get(name, set())
    assert roots <= {*sys.stdlib_module_names, *DEPENDENCIES, *allowed, "minitrans"}


def test_only_the_build_imports_kernel_sources():
    """What a run needs imports no compiler: the just-in-time path, inside a function, and the command reach `build`."""
    for name, tree in TREES.items():
        reaches = {module.removeprefix("minitrans.") for module in imports(tree)} & COMPILED
        may = {"kernels.library.build"} if name in ("kernels.library.loading", "kernels.__main__") else set()
        assert name in COMPILED or reaches <= may


@every_module
def test_length(name):
    limit = 199 if name in ("encoder.forward", "backends.reference") else 500
    assert len(PATHS[name].read_text(encoding="utf-8").splitlines()) <= limit


@every_module
def test_nothing_is_printed(name):
    assert "print" not in called(TREES[name])


@every_module
def test_no_data_is_run_as_code(name):
    assert not {module.partition(".")[0] for module in imports(TREES[name])} & CODE_THAT_RUNS_DATA
    assert not {"eval", "exec", "compile", "__import__"} & set(called(TREES[name]))
    for node in nodes(TREES[name]):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


def undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if not ast.get_docstring(node) and not {"overload", f"{node.name}.setter"} & decorators:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{node.name}.")


@every_module
def test_public_names_have_docstrings(name):
    assert ast.get_docstring(TREES[name])
    assert list(undocumented(TREES[name].body)) == []


def test_undocumented_names_are_found():
    source = """
def f(): pass
def _g(): pass
class C:
    def m(self): pass
    @x.setter
    def x(self, value): pass
class D:
    '''Has one.'''
    def m(self): '''Has one.'''
"""
    assert list(undocumented(ast.parse(source).body)) == ["f", "C", "C.m"]


def test_public_names():
    assert minitrans.__all__ == PUBLIC == dir(minitrans)
    assert len(PUBLIC) == 8


def test_public_modules_are_there_and_the_reference_lists_them():
    page = REPOSITORY / "docs" / "api" / "index.md"
    assert set(PUBLIC_MODULES) <= set(PATHS)
    assert (
        re.findall(r"^- \[`minitrans\.([\w.]+)`\]\[minitrans\.\1\]: ", page.read_text("utf-8"), re.M) == PUBLIC_MODULES
    )


def test_names_of_tests_are_short():
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                assert len(node.name) < 60, f"{path.name}: {node.name}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_can_be_imported(name):
    home = minitrans._HOME.get(name)
    if home is not None and home.removeprefix("minitrans.") not in PATHS:
        pytest.skip(f"{home} does not exist")
    value = getattr(minitrans, name)
    if home is not None:
        assert value is getattr(importlib.import_module(home), name)
        assert value.__module__ == home
        assert value.__doc__


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'minitrans' has no attribute 'Encoder'"):
        minitrans.Encoder  # noqa: B018
