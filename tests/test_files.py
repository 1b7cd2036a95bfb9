"""Bundled files, digests, and writing wholly or not at all."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from minitrans import files as resources
from minitrans.errors import InputError, ModelNotFoundError
from minitrans.files import atomic_file, atomic_folder, bundled, is_inside, sha256_of


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package as if installed in an empty site-packages."""
    folder = tmp_path / "site-packages" / "minitrans"
    folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "__file__", str(folder / "resources.py"))
    return folder


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_bundled_finds_the_manifest_of_this_installation():
    assert bundled("weights/manifest.toml").is_file()


def test_bundled_in_a_wheel(package):
    wanted = write(package / "bundled" / "weights" / "manifest.toml")
    assert bundled("weights/manifest.toml") == wanted


def test_bundled_in_a_checkout(package):
    write(package.parent / "pyproject.toml")
    wanted = write(package.parent / "weights" / "manifest.toml")
    assert bundled("weights/manifest.toml") == wanted


def test_bundled_ignores_a_neighbour_in_site_packages(package):
    write(package.parent / "weights" / "manifest.toml")
    with pytest.raises(ModelNotFoundError, match="Reinstall"):
        bundled("weights/manifest.toml")


def test_bundled_names_what_it_tried(package):
    write(package.parent / "pyproject.toml")
    with pytest.raises(ModelNotFoundError) as error:
        bundled("weights/nothing")
    assert str(package / "bundled" / "weights/nothing") in str(error.value)
    assert str(package.parent / "weights/nothing") in str(error.value)


OUTSIDE = [
    "",
    "/a",
    "../a",
    "a/../b",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "..",
    "C:/a",
    "c:a",
    "a\\b",
    "\\\\host\\a",
    "a\0b",
    "a\nb",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave_their_folder(name):
    assert not is_inside(name)
    with pytest.raises(InputError, match="relative path"):
        bundled(name)


@pytest.mark.parametrize("name", ["a", "a/b.json", "1_Pooling/config.json", ".hidden", "a..b", "ä b"])
def test_names_that_stay_inside(name):
    assert is_inside(name)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path, size):
    data = b"m" * size
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_atomic_file_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "file.json"
    for text in ("one", "two"):
        with atomic_file(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_atomic_file_leaves_the_old_one(tmp_path, kind):
    path = write(tmp_path / "file", "old")

    def interrupted():
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_file_needs_a_file(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_what_is_written_has_usual_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("x")
        with atomic_folder(tmp_path / "folder") as temporary:
            pass
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_atomic_folder(tmp_path):
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as temporary:
        write(temporary / "a" / "b", "text")
        assert not path.exists()
    assert (path / "a" / "b").read_text() == "text"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("replace", [False, True])
def test_atomic_folder_leaves_nothing(tmp_path, kind, replace):
    path = tmp_path / "folder"
    if replace:
        write(path / "old")

    def interrupted():
        with atomic_folder(path, replace=replace) as temporary:
            write(temporary / "new")
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert [file.name for file in tmp_path.rglob("*")] == (["folder", "old"] if replace else [])


def test_atomic_folder_refuses_an_existing_one_at_once(tmp_path):
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(tmp_path):
        pytest.fail("the block ran")


def test_atomic_folder_refuses_one_that_came_meanwhile(tmp_path):
    path = tmp_path / "folder"

    def late():
        with atomic_folder(path) as temporary:
            write(temporary / "mine")
            write(path / "theirs")

    with pytest.raises(FileExistsError):
        late()
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "theirs"]


def test_atomic_folder_that_loses_the_last_moment(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    rename = Path.rename

    def late(self, target):
        write(path / "theirs")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(FileExistsError), atomic_folder(path) as temporary:
        write(temporary / "mine")
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "theirs"]


@pytest.mark.parametrize("old", ["folder", "file", "nothing"])
def test_atomic_folder_replaces(tmp_path, old):
    path = tmp_path / "folder"
    if old != "nothing":
        write(path / "old" if old == "folder" else path)
    with atomic_folder(path, replace=True) as temporary:
        write(temporary / "new")
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "new"]


def test_atomic_folder_puts_the_old_one_back(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    write(path / "old")
    rename = Path.rename

    def failing(self, target):
        if Path(target) == path and (self / "new").exists():
            raise OSError("disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk"), atomic_folder(path, replace=True) as temporary:
        write(temporary / "new")
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "old"]
