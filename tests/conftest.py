"""Fixtures that several test files share."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import random_models
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# The same examples in every run, so that a failure means a change; no deadline, because machines are busy.
settings.register_profile("minitrans", deadline=None, derandomize=True, database=None)
settings.load_profile("minitrans")


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory) -> Callable[[str], Path]:
    """A function: the name of a spec of random_models.SPECS -> its model folder, written once and not to be changed."""

    @cache
    def folder(name: str) -> Path:
        return random_models.write_model(tmp_path_factory.mktemp("models") / name, random_models.find_spec(name))

    return folder


@pytest.fixture(scope="session")
def plain(random_folder) -> Path:
    """The folder of the random model "plain": 3 layers, 4 heads, width 32, mean pooling, normalised."""
    return random_folder("plain")


@pytest.fixture(scope="session")
def float32_folder() -> Path:
    """The float32 all-MiniLM-L6-v2 (mark the test `float32`)."""
    if folder := os.environ.get("MINITRANS_FLOAT32"):
        return Path(folder)
    from minitrans.hub import find_local

    found = find_local("sentence-transformers/all-MiniLM-L6-v2")
    if found is None:
        pytest.skip("the float32 all-MiniLM-L6-v2 is not here: run `minitrans pull all-MiniLM-L6-v2`")
    return found


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
    from minitrans.cli import main

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
