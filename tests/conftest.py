"""Fixtures that several test files share, and what a test sees of the machine.

Options of the tests, as variables of the environment:

    MINITRANS_FLOAT32   the folder of the float32 all-MiniLM-L6-v2: `minitrans pull all-MiniLM-L6-v2` prints it
    MINITRANS_DATA      the folder of the intent data sets
    MINITRANS_CHROMIUM  the browser, where it is not found by itself
    MINITRANS_REQUIRE   markers, separated by commas: a test that has no others of these markers may not skip
"""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# Tests see neither the settings nor the files of whoever runs them. This stands above every import of NumPy and of the
# package, which read the environment as they are imported.
OPTIONS = {f"MINITRANS_{name}" for name in ("FLOAT32", "DATA", "CHROMIUM", "REQUIRE")}
MACHINE = {"PATH", "CC", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "TEMP", "TMP"}
MACHINE |= {"SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT"}  # Windows
for name in set(os.environ) - OPTIONS - MACHINE:
    if not name.startswith(("PYTEST_", "COV")):
        del os.environ[name]
HOME = Path(tempfile.mkdtemp(prefix="minitrans-tests-"))
os.environ |= {"HOME": str(HOME), "USERPROFILE": str(HOME)}
MARKERS = {"transformers", "tables", "float32", "browser", "data", "slow"}
REQUIRED = set(filter(None, os.environ.get("MINITRANS_REQUIRE", "").split(",")))
if not REQUIRED <= MARKERS:
    raise pytest.UsageError(f"MINITRANS_REQUIRE: {sorted(REQUIRED - MARKERS)}, wanted some of {sorted(MARKERS)}")


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What is required may not skip."""
    report = yield
    needs = MARKERS & {marker.name for marker in item.iter_markers()}
    if report.skipped and not hasattr(report, "wasxfail") and needs and needs <= REQUIRED:
        report.outcome, report.longrepr = "failed", f"required, but skipped: {call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Neither may a whole file with tests of what is required."""
    report = yield
    if report.skipped and re.search(rf"\.mark\.({'|'.join(REQUIRED) or '$.'})\b", collector.path.read_text("utf-8")):
        report.outcome, report.longrepr = "failed", f"required, but skipped: {report.longrepr}"
    return report


# The same examples in every run, so that a failure means a change; no deadline, because machines are busy. More of them
# in .ci/run: pytest -m "slow or hypothesis" --hypothesis-profile=thorough
for name, count in (("quick", 30), ("thorough", 300)):
    settings.register_profile(name, max_examples=count, deadline=None, derandomize=True, database=None)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory) -> Callable[[str], Path]:
    """A function: the name of a spec of random_models.SPECS -> its model folder, written once and not to be changed."""

    import random_models

    @cache
    def folder(name: str) -> Path:
        return random_models.write_model(tmp_path_factory.mktemp("models") / name, random_models.find_spec(name))

    return folder


@pytest.fixture(scope="session")
def plain(random_folder) -> Path:
    """The folder of the random model "plain": 3 layers, 4 heads, width 32, mean pooling, normalised."""
    return random_folder("plain")


@pytest.fixture(scope="session")
def bundled_audit():
    """The audit of the bundled model, made once: without transformers, with one order and size for invariance."""
    from minitrans.audit import invariance, oracle
    from minitrans.audit.signoff import sign_off

    shuffled = invariance.Setting("shuffled", 3, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "find_spec", lambda name: None)
        patch.setattr(invariance, "settings", lambda threads: [shuffled])
        return sign_off()


@pytest.fixture(scope="session")
def float32_folder() -> Path:
    """The float32 all-MiniLM-L6-v2 (mark the test `float32`)."""
    if folder := os.environ.get("MINITRANS_FLOAT32"):
        return Path(folder)
    pytest.skip("no float32 all-MiniLM-L6-v2: name its folder, MINITRANS_FLOAT32=$(minitrans pull all-MiniLM-L6-v2)")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The intent data sets (mark the test `data`)."""
    folder = Path(os.environ.get("MINITRANS_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the intent data sets are not here: {folder} is missing, name another with MINITRANS_DATA")
    return folder


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Whatever opens a connection or looks a host up fails the test."""

    def blocked(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the network was asked for: {arguments}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, blocked)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, blocked)


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function: source, arguments, variables -> the finished process of a fresh interpreter, which has succeeded."""

    def run(source: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", source, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def run_cli(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """A function: arguments of `minitrans`, stdin=bytes -> exit code, standard output, standard error."""
    from minitrans.cli.main import main

    def call(*arguments: object, stdin: bytes | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minitrans", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        monkeypatch.setattr("warnings.showwarning", None)  # main replaces it; monkeypatch puts it back
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return call
