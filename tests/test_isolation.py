"""The tests see neither the settings nor the files of whoever runs them; what is required does not skip."""

import os
import subprocess
import sys
from pathlib import Path

import conftest

from minitrans.hub.resolve import find_local

ROOT = Path(__file__).resolve().parents[1]
WANTED = {
    "HF_HOME": "/nonexistent",
    "HF_HUB_OFFLINE": "1",
    "MINITRANS_LEVEL": "nonsense",
    "OMP_NUM_THREADS": "nonsense",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error",
    "COLUMNS": "20",
    "FORCE_COLOR": "1",
    "LC_ALL": "C",
}


def test_the_environment_is_the_tests_own():
    assert not set(WANTED) & set(os.environ)
    assert Path.home() == conftest.HOME == Path("~").expanduser()
    assert find_local("sentence-transformers/all-MiniLM-L6-v2") is None


def test_what_a_user_has_set_is_not_seen(tmp_path):
    """In a process of its own: settings that would break many tests, and a cache that holds something else."""
    arguments = [__file__, "tests/cli/test_main.py", "-k", "own or help or version", "-q", "-p", "no:cacheprovider"]
    done = pytest_of(*arguments, **WANTED, HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_is_required_does_not_skip(tmp_path):
    (tmp_path / "conftest.py").symlink_to(conftest.__file__)
    (tmp_path / "test_some.py").write_text(
        """import pytest
@pytest.mark.float32
def test_one(float32_folder): pass
@pytest.mark.float32
@pytest.mark.data
def test_two(data_folder): pass
@pytest.mark.slow
def test_left_out(): pass
"""
    )
    (tmp_path / "test_whole.py").write_text(
        "import pytest\npytest.importorskip('gone')\n@pytest.mark.browser\ndef test(): pass"
    )
    here = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    done = pytest_of(
        *here, "-q", "--continue-on-collection-errors", MINITRANS_REQUIRE="float32,browser", MINITRANS_DATA="gone"
    )
    assert done.returncode == 1, done.stdout
    assert "1 skipped, 1 deselected, 2 errors" in done.stdout  # test_two; test_left_out; test_one and the whole file


def pytest_of(*arguments, **variables):
    command = [sys.executable, "-m", "pytest", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=300)
