"""The ladder in examples/: each script runs alone, without a network, and prints what it says that it prints."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minitrans.files import sha256_of
from minitrans.hub.resolve import resolve

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
STORED = Path("stored") / "encoder.safetensors"
STEPS = 9
MOST_LINES = 79
MARK = "# Prints:"
SLOW = ("04", "05", "06", "07", "08")  # steps

# What no two machines have in common: a number before one of these units, and a rounding difference, which is written
# as 1e-07. All else that a script prints has to be the same everywhere.
VARYING = re.compile(r"\s*\b\d+(\.\d+)?(?= (ms|GFLOP/s)\b)|\b\d+(\.\d+)?e[+-]\d+\b")

NUMBA_IS_HERE = importlib.util.find_spec("numba") is not None
NEEDS_NUMBA = "08_microkernel.py"
NUMBA_LINE = "Numba, "  # how its lines begin that need Numba
NO_NUMBA = "Numba is not installed: pip install 'minitrans[jit]' for the rest"

STOPPED = 70  # exit code
# One process for several scripts, each run as __main__ with its own folder in front; what they import is shared, except
# other steps of a ladder. Prints what each printed, as JSON.
RUN = f"""
import contextlib, io, json, os, runpy, sys, traceback

def stop(event, arguments):
    if event.startswith("socket."):
        os.write(2, event.encode())
        os._exit({STOPPED})  # not an exception, which a library might catch

sys.addaudithook(stop)
if os.environ.get("WITHOUT_NUMBA"):
    sys.modules["numba"] = sys.modules["llvmlite"] = None
done = []
for script in sys.argv[1:]:
    for name in [name for name in sys.modules if name[:2].isdigit()]:
        del sys.modules[name]
    sys.path[0] = os.path.dirname(script)
    out, failed = io.StringIO(), ""
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            failed = "" if end.code is None else f"exit {{end.code}}"
        except BaseException:
            failed = traceback.format_exc()
    done.append((out.getvalue(), failed))
print(json.dumps(done))
"""

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function: scripts, variables -> the finished process of a fresh interpreter that may not open a socket."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fixed = {
        "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path),
        "PYTHONWARNINGS": "error",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(elsewhere / "hub"),
    }

    def start(*scripts: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", RUN, *map(str, scripts)],
            cwd=elsewhere,
            env=os.environ | fixed | variables,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return start


@pytest.fixture(scope="module")
def run(start):
    """A function: scripts, variables -> what each of them printed, and how it failed if it did."""

    def run(*scripts: Path, **variables: str) -> list[list[str]]:
        done = start(*scripts, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return run


@pytest.fixture
def ladder(tmp_path):
    """A function: name -> a copy of examples/ to be changed."""
    left_out = shutil.ignore_patterns("__pycache__")
    return lambda name: Path(shutil.copytree(EXAMPLES, tmp_path / name, ignore=left_out))


def shown(script: Path) -> str:
    """The output that a script shows at its end."""
    _, mark, block = script.read_text(encoding="utf-8").partition(f"\n{MARK}\n")
    assert mark, f"{script.name} lacks a line {MARK!r}"
    lines = block.splitlines()
    assert lines, f"{script.name} shows nothing"
    assert all(line == "#" or line.startswith("# ") for line in lines), f"{script.name} goes on after what it prints"
    return "\n".join(line[2:] for line in lines)


def comparable(output: str) -> list[str]:
    """Its lines, without what varies, and without blanks at their ends, which an editor would take from a comment."""
    return [VARYING.sub(" #", line).rstrip() for line in output.rstrip("\n").split("\n")]


def without_numba(lines: list[str]) -> list[str]:
    """What is left of the lines of NEEDS_NUMBA where Numba is not installed."""
    return [*(line for line in lines if not line.startswith(NUMBA_LINE)), NO_NUMBA]


def test_the_ladder_is_complete():
    assert [script.name[:3] for script in SCRIPTS] == [f"{step:02}_" for step in range(1, STEPS + 1)]
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [script.name for script in SCRIPTS] == re.findall(r"^\| \[`(.*?)`\]", table, re.MULTILINE)


@every_script
def test_a_script_fits_on_a_page(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert lines[0].startswith(f'"""Step {int(script.name[:2])}: ')


@every_script
def test_a_script_builds_on_earlier_ones(script):
    steps = {int(step) for step in re.findall(r'"(\d\d)_\w+"', script.read_text(encoding="utf-8"))}
    assert all(step < int(script.name[:2]) for step in steps)


@every_script
def test_a_script_needs_nothing_but_the_package(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    optional = {"numba"} if script.name == NEEDS_NUMBA else set()
    known = {*sys.stdlib_module_names, "minitrans", "numpy", "safetensors", *optional}
    assert {module.partition(".")[0] for module in modules} <= known


def check_output(script, run, **variables):
    wanted = comparable(shown(script))
    if script.name == NEEDS_NUMBA and (variables or not NUMBA_IS_HERE):
        assert any(line.startswith(NUMBA_LINE) for line in wanted)
        wanted = without_numba(wanted)
    ((printed, failed),) = run(script, **variables)
    assert failed == ""
    assert comparable(printed) == wanted


def test_quick_scripts_print_what_they_show(run):
    quick = [script for script in SCRIPTS if script.name[:2] not in SLOW]
    for script, done in zip(quick, run(*quick), strict=True):
        check_output(script, lambda _, done=done: [done])


@pytest.mark.slow
@pytest.mark.parametrize("step", SLOW)
def test_slow_scripts_print_what_they_show(step, run):
    (script,) = (script for script in SCRIPTS if script.name.startswith(step))
    check_output(script, run)


@pytest.mark.skipif(not NUMBA_IS_HERE, reason="Numba is not installed: the script has run without it")
def test_the_microkernel_without_numba(run):
    check_output(EXAMPLES / NEEDS_NUMBA, run, WITHOUT_NUMBA="1")


def test_the_stored_numbers_belong_to_the_bundled_weights():
    with safe_open(EXAMPLES / STORED, "np") as stored:
        recorded = json.loads(stored.metadata()["record"])["weights_sha256"]
    assert recorded == sha256_of(resolve(None) / "model.safetensors"), "make them again: examples/stored/make.py"


def test_one_sentence_runs_through_the_first_steps():
    with safe_open(EXAMPLES / STORED, "np") as stored:
        sentence = json.loads(stored.metadata()["record"])["texts"][0]
    assert f'"{sentence}"' in (EXAMPLES / "01_attention.py").read_text(encoding="utf-8")
    assert sentence in " ".join((EXAMPLES / "README.md").read_text(encoding="utf-8").split())
    for guide in ("README.md", "docs/explaining.md"):
        assert f'minitrans explain "{sentence}"' in (ROOT / guide).read_text(encoding="utf-8"), guide


@pytest.mark.slow
def test_changes_are_noticed(ladder, run):
    """Of either of two stored numbers, and of a formula: hardly another softmax."""
    scripts = []
    for name in ("vector.1", "hidden.2"):
        copy = ladder(name)
        with safe_open(copy / STORED, "np") as stored:
            metadata = stored.metadata()
        tensors = load_file(copy / STORED)
        tensors[name].flat[5] += np.float32(1e-4)
        save_file(tensors, copy / STORED, metadata)
        scripts.append(copy / "03_encoder.py")
    script = ladder("formula") / "01_attention.py"
    source = script.read_text(encoding="utf-8")
    changed = source.replace("** 0.5)", "** 0.51)")
    assert changed != source
    script.write_text(changed, encoding="utf-8")
    *stored, (printed, failed) = run(*scripts, script)
    assert all("AssertionError" in failed for _, failed in stored)
    assert failed == ""
    assert comparable(printed) != comparable(shown(script))


@pytest.mark.parametrize(
    ("output", "same"),
    [
        ("layer 2, 81.8% of the work, 12.28 ms\nnone 3 GFLOP/s", True),
        ("layer 2, 81.8% of the work,   7.1 ms\nnone 165.201 GFLOP/s\n", True),
        ("layer 2, 81.8% of the work,   7.1 ms  \nnone 165.201 GFLOP/s\n", True),
        ("layer 3, 81.8% of the work, 12.28 ms\nnone 3 GFLOP/s", False),
        ("layer 2, 81.9% of the work, 12.28 ms\nnone 3 GFLOP/s", False),
        ("layer 2, 81.8% of the time, 12.28 ms\nnone 3 GFLOP/s", False),
        ("layer 2, 81.8% of the work, 12.28 s\nnone 3 GFLOP/s", False),
        ("layer 2, 81.8% of the work, nan ms\nnone 3 GFLOP/s", False),
        ("layer 2, 81.8% of the work, 12.28 ms", False),
        ("layer 2, 81.8% of the work, 12.28 ms\nnone 3 GFLOP/s\nmore", False),
        ("none 3 GFLOP/s\nlayer 2, 81.8% of the work, 12.28 ms", False),
    ],
)
def test_the_comparison(output, same):
    assert (comparable(output) == comparable("layer 2, 81.8% of the work, 12.28 ms\nnone 3 GFLOP/s")) is same


def test_the_comparison_of_rounding_differences():
    assert comparable("apart 9.5e-07 (0.5)") == comparable("apart 1e-06 (0.5)")
    assert comparable("apart 9.5e-07 (0.5)") != comparable("apart 9.5e-07 (0.6)")


@pytest.mark.parametrize("source", ["socket.socket()", "socket.getaddrinfo('localhost', 80)"])
def test_a_socket_is_noticed(source, start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import socket\ntry:\n    {source}\nexcept BaseException:\n    pass\n", encoding="utf-8")
    done = start(script)
    assert done.returncode == STOPPED
    assert done.stderr.startswith("socket.")
