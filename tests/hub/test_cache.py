"""Copies on this machine: what a snapshot lacks, and the seal that spares later loads the digests."""

import dataclasses
import hashlib
import json
import os

import pytest
from model_files import DIGEST, fill, sha256

from minitrans.errors import DigestError
from minitrans.hub import cache
from minitrans.hub.cache import Seal, missing_files
from minitrans.models.manifest import KnownModel

WHOLE = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w", "modules.json": b"[]"}
POOLING = json.dumps([{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]).encode()
SHARDS = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode()


@pytest.mark.parametrize(
    ("without", "added", "missing"),
    [
        (None, {}, []),
        ("config.json", {}, ["config.json"]),
        ("tokenizer.json", {}, ["tokenizer.json"]),
        ("tokenizer.json", {"vocab.txt": b"a"}, []),
        ("model.safetensors", {}, ["model.safetensors"]),
        ("model.safetensors", {"pytorch_model.bin": b"p"}, ["model.safetensors"]),
        ("model.safetensors", {"model.safetensors.index.json": b"{"}, ["model.safetensors"]),
        ("model.safetensors", {"model.safetensors.index.json": SHARDS}, ["1.safetensors", "2.safetensors"]),
        (
            "model.safetensors",
            {"model.safetensors.index.json": SHARDS, "1.safetensors": b"", "2.safetensors": b""},
            [],
        ),
        ("modules.json", {}, ["modules.json"]),
        ("modules.json", {"modules.json": POOLING}, ["1_Pooling/config.json"]),
        ("modules.json", {"modules.json": POOLING, "1_Pooling/config.json": b"{}"}, []),
        ("modules.json", {"../../.no_exist/snapshot/modules.json": b""}, []),
    ],
)
def test_missing_files(tmp_path, without, added, missing):
    snapshot = tmp_path / "snapshots" / "snapshot"
    fill(snapshot, {name: data for name, data in WHOLE.items() if name != without})
    fill(snapshot, added)
    assert missing_files(snapshot) == missing


def test_missing_files_of_a_known_model(tmp_path):
    fill(tmp_path, WHOLE)
    assert missing_files(tmp_path, KnownModel("m", "MIT", files={"vocab.txt": DIGEST, "config.json": DIGEST})) == [
        "vocab.txt"
    ]


@pytest.fixture
def seal(tmp_path):
    snapshot = fill(tmp_path / "snapshot", WHOLE)
    known = KnownModel("m", "MIT", files={name: sha256(data) for name, data in WHOLE.items()})
    return Seal(tmp_path / "notes" / "snapshot.json", snapshot, known)


def test_seal_spares_the_digests(seal, monkeypatch):
    assert not seal.holds()
    seal.check()
    assert seal.holds()
    monkeypatch.setattr(cache, "sha256_of", None)
    assert Seal(seal.path, seal.folder, seal.known).holds()


@pytest.mark.parametrize("change", ["size", "time", "gone", "digests", "moved", "note"])
def test_seal_breaks(seal, change):
    seal.check()
    file = seal.folder / "config.json"
    if change == "size":
        file.write_bytes(b"{ }")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "gone":
        file.unlink()
    elif change == "digests":
        seal = dataclasses.replace(seal, known=KnownModel("m", "MIT", files={"config.json": DIGEST}))
    elif change == "moved":
        seal = dataclasses.replace(seal, folder=seal.folder.rename(seal.folder.with_name("other")))
    else:
        seal.path.write_text("{")
    assert not seal.holds()


def test_seal_is_not_given_to_wrong_files(seal):
    (seal.folder / "config.json").write_bytes(b"[]")
    with pytest.raises(DigestError):
        seal.check()
    assert not seal.path.exists()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("change", ["bytes", "gone", "added"])
def test_seal_without_digests_keeps_what_it_saw(seal, whole, change):
    seal = dataclasses.replace(seal, known=None)
    seal.check(whole=whole)
    assert seal.holds()
    file = seal.folder / "config.json"
    if change == "bytes":
        state = file.stat()
        file.write_bytes(b"[]")  # as long
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "gone":
        file.unlink()
    else:
        (seal.folder / "added_tokens.json").write_bytes(b"{}")
    assert not seal.holds()
    words = {"bytes": "is not what was fetched", "gone": "is gone", "added": "was added"}[change]
    with pytest.raises(DigestError, match=words):
        seal.check()
    seal.check(whole=True)  # the hub has just delivered it
    assert seal.holds()


def test_seal_of_a_file_that_was_touched_is_renewed(seal):
    seal = dataclasses.replace(seal, known=None)
    seal.check()
    os.utime(seal.folder / "config.json", ns=(1, 1))
    assert not seal.holds()
    seal.check()
    assert seal.holds()


def test_what_no_encoder_reads_breaks_no_seal(seal):
    seal.check()
    fill(seal.folder, {"onnx/model.onnx": b"o", "README.md": b"r", "pytorch_model.bin": b"p"})
    assert seal.holds()


def linked(folder, name, data, blob):
    """A file as the hub's cache keeps it: a link to what is named by its digest."""
    fill(folder / "blobs", {blob: data})
    path = folder / "snapshots" / "s" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(folder / "blobs" / blob)


SMALL = hashlib.sha1(b"blob 2\0{}").hexdigest()


@pytest.mark.skipif(os.name == "nt", reason="links")
@pytest.mark.parametrize(
    ("name", "blob"),
    [
        ("config.json", SMALL),
        ("config.json", hashlib.sha1(b"{}").hexdigest()),
        ("model.safetensors", sha256(b"{}")),
    ],
)
def test_the_hub_s_cache_says_what_a_file_has_to_be(tmp_path, name, blob):
    linked(tmp_path, name, b"{}", blob)
    seal = Seal(tmp_path / "note.json", tmp_path / "snapshots" / "s", None)
    seal.check()
    assert seal.holds()
    linked(tmp_path, "vocab.txt", b"a", sha256(b"a"))  # another program fetches more
    seal.check()
    assert seal.holds()
    (tmp_path / "blobs" / blob).write_bytes(b"[]")
    for path in (tmp_path / "note.json", tmp_path / "other.json"):
        with pytest.raises(DigestError, match=f"{name} is not what was fetched"):
            Seal(path, seal.folder, None).check()


def test_nothing_to_compare_with_and_nowhere_to_note_it(seal, monkeypatch):
    seal = dataclasses.replace(seal, known=None)
    monkeypatch.setattr(cache, "_can_write", lambda path: False)
    monkeypatch.setattr(cache, "sha256_of", None)
    seal.check()
    assert not seal.path.exists()


def test_seal_in_a_cache_that_cannot_be_written(seal):
    seal.path.parent.write_text("a file where the folder should be")
    seal.check()
    assert not seal.holds()
