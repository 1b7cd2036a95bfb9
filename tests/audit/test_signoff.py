"""`minitrans audit`: the whole of it, its records, its lines, its JSON, its exit codes."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import random_models

from minitrans import PruningPolicy, SentenceEncoder, __version__
from minitrans.audit import invariance, oracle, signoff
from minitrans.audit.checks import NOTES, SHOWN, Audit, Check, counted, judged, skipped
from minitrans.audit.digests import Digests
from minitrans.audit.signoff import sign_off
from minitrans.backends import load_blocks
from minitrans.backends.reference import ReferenceBlocks
from minitrans.errors import BackendError, DigestError, InputError, InputTypeError, ModelNotFoundError, PolicyError
from minitrans.files import bundled
from minitrans.models.export import quantize_folder

GROUPS = ["Folder", "Tokenizer", "Numbers", "Pruning", "transformers", "sentence-transformers", "Invariance"]
HAS_TRANSFORMERS = oracle.why_not() is None
without_transformers = pytest.mark.skipif(HAS_TRANSFORMERS, reason="torch and transformers are installed here")


@pytest.fixture
def run(run_cli):
    return run_cli


@pytest.fixture
def folder(plain, tmp_path):
    """A copy of the random model "plain", to be changed."""
    return shutil.copytree(plain, tmp_path / "model")


@pytest.fixture(autouse=True)
def no_transformers(monkeypatch):
    """What transformers says is tested in test_oracle.py."""
    monkeypatch.setattr(oracle, "find_spec", lambda name: None)


@pytest.fixture(autouse=True)
def few_ways(request, monkeypatch):
    """Whether bits depend on the call is tried in one way, but for tests that take the fixture `all_ways`."""
    if "all_ways" not in request.fixturenames:
        first = next(invariance.settings((1, 2, 4)))
        monkeypatch.setattr(invariance, "settings", lambda threads: [first])


@pytest.fixture
def all_ways():
    """As users have it."""


def groups_of(audit):
    return list(dict.fromkeys(check.group for check in audit.checks))


def flip(file, place_from_end):
    data = bytearray(file.read_bytes())
    data[-place_from_end] ^= 1
    file.write_bytes(data)


# The whole of it


def test_the_bundled_model_is_signed_off(bundled_audit):
    audit = bundled_audit
    assert audit.passed, audit.failed
    assert groups_of(audit) == GROUPS
    assert (audit.model, audit.known_as) == ("all-MiniLM-L6-v2-int8",) * 2
    names = {(check.group, check.name) for check in audit.checks}
    assert len(names) == len(audit.checks)
    shipped = {"balanced", "fast"}
    assert {("Invariance", name) for name in ("unpruned", "default", "balanced")} <= names
    if SentenceEncoder().backend == "compiled":
        assert {("Pruning", name) for name in {"default", *shipped}} <= names
        assert {("Numbers", f"layers, {precision}") for precision in ("int8", "float32")} <= names


@pytest.mark.float32
def test_the_float32_model_is_signed_off(float32_folder):
    audit = sign_off(float32_folder)
    assert audit.passed, audit.failed
    assert audit.known_as == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.float32
def test_the_bundled_model_is_compared_with_its_original(float32_folder):
    audit = sign_off(original=float32_folder)
    assert audit.passed, audit.failed
    checks = {check.name: check for check in audit.checks}
    assert checks["as quantised"].verdict == checks["int8 to the original"].verdict == "PASS"
    assert checks["as quantised"].measured == "140 of 140 tensors"


MODELS = [(spec.name, False) for spec in random_models.SPECS] + [(name, True) for name in ("plain", "odd_sizes")]
SOON = {("odd_sizes", False), ("sharded", False), ("cls_pooling", False), ("plain", True)}  # the others are slow
RANDOM = [pytest.param(*each, marks=[pytest.mark.slow] * (each not in SOON)) for each in MODELS]


@pytest.mark.parametrize(("name", "int8"), RANDOM, ids=lambda each: each if isinstance(each, str) else None)
def test_every_random_model_is_signed_off(random_folder, tmp_path, all_ways, name, int8):
    folder = random_folder(name)
    original = folder if int8 else None
    audit = sign_off(quantize_folder(folder, tmp_path / "int8") if int8 else folder, original=original, threads=3)
    assert audit.passed, audit.failed
    assert groups_of(audit) == GROUPS
    assert audit.known_as is None


def test_where_there_are_no_kernels_the_reference_is_signed_off(plain, monkeypatch):
    def no_kernels(backend, parameters):
        if backend == "compiled":
            raise BackendError("no compiler here; install one")
        return ReferenceBlocks(parameters)

    monkeypatch.setattr(signoff, "load_blocks", no_kernels)
    audit = sign_off(plain)
    assert audit.passed
    skips = {(check.group, check.name): check for check in audit.checks if check.verdict == "SKIP"}
    assert skips["Numbers", "blocks"].wanted == "no compiler here; install one"
    assert ("Pruning", "all") in skips
    assert "blocks and Pruning (no compiled kernels; 7 checks)" in audit.summary()  # three a precision, one policy
    assert any(check.name == "int8 to float32" for check in audit.checks)


def test_a_form_that_cannot_be_had_is_skipped(plain, monkeypatch):
    def refuse(parameters, precision):
        if precision == "int8":
            raise InputError("too wide for int8")
        return parameters

    monkeypatch.setattr(signoff, "with_precision", refuse)
    audit = sign_off(plain)
    assert audit.passed
    (check,) = [check for check in audit.checks if check.name == "int8 to float32"]
    assert (check.verdict, check.wanted) == ("SKIP", "too wide for int8")


def test_texts_and_policies_of_ones_own_are_checked_too(plain):
    told = []
    policy = PruningPolicy(min_tokens=2, quantile=0.5, layer=0, reduce="merge")
    audit = sign_off(plain, texts=["one more"], pruning={"mine": policy}, progress=told.append)
    assert audit.passed
    assert {"mine"} <= {check.name for check in audit.checks if check.group == "Invariance"}
    invariance = [check for check in audit.checks if check.group == "Invariance"]
    assert all(check.measured.startswith("13 texts in ") for check in invariance)
    assert told[0] == "folder"
    assert "invariance, mine" in told


# What is broken


def test_a_model_that_cannot_be_loaded_fails(folder):
    (folder / "model.safetensors").write_bytes(b"\0" * 8)
    audit = sign_off(folder)
    assert not audit.passed
    assert {check.name for check in audit.failed} == {"tensors", "loads"}
    assert [check.group for check in audit.checks if check.name == "all"] == GROUPS[2:]
    assert {check.measured for check in audit.checks if check.name == "all"} == {"the model cannot be used"}


def test_a_tokenizer_that_fails_on_a_text_fails(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["[NONE]"] = tokenizer["model"]["vocab"].pop("[UNK]")
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["content"] != "[UNK]"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    failed = {check.name: check for check in sign_off(folder).failed}
    # The plain texts need no unknown token, the others do.
    assert failed.keys() == {"special tokens", "added tokens", "loads"}
    assert "the tokenizer cannot encode" in failed["loads"].detail[0]


def test_a_broken_kernel_is_found_and_its_layer_named(plain, monkeypatch):
    class Broken(ReferenceBlocks):
        def feed_forward_block(self, hidden, offsets, layer):
            return super().feed_forward_block(hidden, offsets, layer) + np.float32(layer == 1)

    def load(backend, parameters):
        return Broken(parameters) if backend == "compiled" else load_blocks(backend, parameters)

    monkeypatch.setattr(signoff, "load_blocks", load)
    audit = sign_off(plain)
    failed = {check.name: check for check in audit.failed}
    assert {
        "blocks, float32",
        "layers, float32",
        "blocks, int8",
        "layers, int8",
        "embeddings, float32",
    } <= failed.keys()
    assert failed["blocks, float32"].detail[0] == failed["blocks, int8"].detail[0] == "over the bar: feed-forward 1"
    assert failed["layers, float32"].detail[0] == "over the bar: layer 1, layer 2"
    assert "Numbers: layers, float32" in audit.summary()


def test_a_broken_form_of_the_model_fails_not_the_audit(plain, monkeypatch):
    class Broken(ReferenceBlocks):
        def embed(self, ids, offsets):
            return super().embed(ids, offsets) * np.float32(np.inf)

    monkeypatch.setattr(signoff, "load_blocks", lambda backend, parameters: Broken(parameters))
    failed = {check.name: check for check in sign_off(plain).failed}
    assert "NaN or infinity" in failed["int8 to float32"].detail[0]


def test_a_damaged_copy_in_the_cache_fails(monkeypatch):
    def damaged(*_, **__):
        raise DigestError("config.json is not the published file")

    monkeypatch.setattr(signoff, "find_local", damaged)
    audit = sign_off("all-MiniLM-L6-v2")
    assert audit.summary() == "FAIL: 1 of 1 check: Folder: published digests"
    assert audit.checks[0].detail == ("config.json is not the published file",)
    assert json.loads(audit.to_json())["files"] == {}


def test_an_original_that_cannot_be_read_is_skipped(plain, tmp_path):
    int8 = quantize_folder(plain, tmp_path / "int8")
    (int8 / "provenance.json").unlink()
    other = shutil.copytree(plain, tmp_path / "other")
    (other / "config.json").write_text("{}")
    audit = sign_off(int8, original=other)
    assert audit.passed
    skips = {check.name: check for check in audit.checks if check.verdict == "SKIP"}
    for name in ("as quantised", "int8 to the original"):
        assert "the original cannot be read" in skips[name].measured


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "no/such-model"}, ModelNotFoundError, "downloads nothing; fetch it with `minitrans pull no/such-"),
        ({"original": "no/such-model"}, ModelNotFoundError, "no/such-model is not on this machine"),
        ({"known_as": "no/such-model"}, InputError, "no known model is called 'no/such-model', wanted one of"),
        ({"model": "./nowhere"}, ModelNotFoundError, "no model folder"),
        ({"against": "onnx"}, InputError, "against is 'onnx'"),
        ({"against": "transformers"}, InputError, "torch and transformers not installed; pip install"),
        ({"threads": 0}, InputError, "threads is 0"),
        ({"texts": [1]}, InputTypeError, "text 0 is 1 of type int"),
        ({"pruning": {"deep": PruningPolicy(layer=99)}}, PolicyError, "layer 99 is out of range"),
        ({"original": "./nowhere"}, ModelNotFoundError, "no model folder"),
    ],
)
def test_what_was_asked_for_wrongly_is_an_error(plain, no_network, options, error, message):
    with pytest.raises(error, match=message):
        sign_off(**({"model": plain} | options))


# Records


def sample_audit(*checks, identity="published digests"):
    date = "2025-01-01T00:00:00+00:00"
    return Audit("m", "/m", None, date, {"minitrans": "1"}, {"threads": "2"}, checks, None, identity)


def test_the_summary_counts():
    passed, failed = judged("g", "a", True, "1", "1"), judged("g", "b", False, "2", "1")
    skip = skipped("g", "c", "not on this machine", "how", reason="not here")
    assert sample_audit(passed).summary() == "PASS: 1 check"
    assert sample_audit(passed, skip).summary() == "PASS: 1 check; not checked: c (not here)"
    assert sample_audit(passed, failed, skip).summary() == "FAIL: 1 of 2 checks: g: b; not checked: c (not here)"
    assert sample_audit(passed).passed
    assert not sample_audit(failed).passed


def test_the_summary_names_what_was_not_checked_by_its_reason():
    found = sample_audit(
        judged("Folder", "files", True, "1", "1"),
        skipped("Folder", "digests", "not recognised"),
        skipped("Folder", "as quantised", "no original on this machine", reason="no original here"),
        skipped("transformers", "all", "torch not installed", reason="not installed", checks=11),
        skipped("Numbers", "c", "no original on this machine", reason="no original here"),
        skipped("Numbers", "d", "x", reason="no original here"),
        identity=None,
    )
    assert found.summary() == (
        "PASS: 1 check; identity not checked: no digests of this folder; not checked: as quantised, c and d "
        "(no original here), transformers (not installed; 11 checks)"
    )
    values = json.loads(found.to_json())
    assert values["identity"] is None
    assert values["summary"] == found.summary()
    assert values["skipped"][2] == {
        "group": "transformers",
        "name": "all",
        "checks": 11,
        "reason": "torch not installed",
    }
    assert [each["checks"] for each in values["skipped"]] == [1, 1, 11, 1, 1]
    assert "  SKIP  all           torch not installed (11 checks)" in found.lines()


def test_lines_are_aligned_and_short():
    audit = sample_audit(
        judged("First", "a", True, "1e-05", "at most 1e-04", ["layer 0..1: 1e-05 1e-06"]),
        skipped("First", "long name", "why", "how"),
        judged("Second", "b", False, "x" * 60, "y", [f"line {i}" for i in range(SHOWN + 2)]),
    )
    lines = list(audit.lines())
    assert lines[:5] == ["m", "/m", "minitrans 1, 2025-01-01T00:00:00+00:00", "threads 2", ""]
    assert lines[5:8] == ["        check      found" + " " * 43 + "wanted", "", "First"]
    assert lines[8:12] == [
        "  PASS  a          1e-05" + " " * 43 + "at most 1e-04",
        "                   layer 0..1: 1e-05 1e-06",
        "  SKIP  long name  why",
        "                   how",
    ]
    assert lines[-3] == " " * 19 + "... and 2 lines more, which --json shows"
    assert lines[-1] == "FAIL: 1 of 2 checks: Second: b; not checked: long name (why)"


def test_nothing_that_steers_a_terminal_is_printed(folder):
    tensors = random_models.write_tensors(random_models.find_spec("plain"))
    tensors["encoder.\x1b[2Jgone\x07"] = np.zeros(1, np.float32)
    random_models.write_weights(folder, tensors)
    audit = sign_off(folder)
    assert not audit.passed
    assert "\x1b" not in "".join(audit.lines())
    assert "\\x1b[2Jgone" in "\n".join(audit.lines())


def test_json_has_no_infinity():
    check = Check("g", "n", "FAIL", "m", values={"a": float("nan"), "b": float("inf"), "c": 1.5})
    assert check.to_dict()["values"] == {"a": None, "b": None, "c": 1.5}


def test_numbers_are_counted():
    assert (counted(1, "file"), counted(2, "file"), counted(0, "file")) == ("1 file", "2 files", "0 files")


# The command


def test_the_command_prints_every_check_and_the_verdict(run, plain):
    code, out, err = run("audit", plain)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == str(plain)
    assert [heading for line in lines if (heading := line.partition(":")[0]) in GROUPS] == GROUPS
    assert lines[-1].startswith("PASS: ")
    assert all(len(line) <= 125 for line in lines[:-1])
    assert out.isascii()
    assert f"minitrans {__version__}, numpy {np.__version__}, Python " in out


def test_a_failure_is_named_with_exit_code_1(run, folder):
    flip(folder / "tokenizer.json", 1)
    code, out, _ = run("audit", folder)
    assert code == 1
    assert out.splitlines()[-1].startswith("FAIL: ")
    assert "  FAIL  tokenizer " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere"], "no model folder"),
        (["--against", "transformers"], 'pip install "minitrans[transformers]"'),
        (["--against", "onnx"], "Invalid value for '--against'"),
        (["--digests", "none.json"], "none.json"),
        (["--digests", "a.json", "--write-digests", "b.json"], "give one of them"),
        (["--pruning", "none.json"], "none.json"),
        (["--input", "none.txt"], "none.txt"),
        (["--threads", "0"], "threads is 0"),
        (["--original", "./nowhere"], "no model folder"),
        (["no/such-model"], "an audit downloads nothing; fetch it with `minitrans pull no/such-model`"),
        (["."], "is no model folder: it holds none of config.json, tokenizer.json"),
        (["--as", "bert"], "no known model is called 'bert', wanted one of sentence-transformers/all-MiniLM-L6-v2, "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("audit", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


KEYS = ["format", "version", "model", "folder", "known_as", "date", "versions", "machine", "verdict", "summary"]
KEYS += ["identity", "encoder_identity", "skipped"]


@pytest.mark.parametrize("broken", [False, True])
def test_the_json_holds_the_same(run, folder, tmp_path, broken):
    if broken:
        flip(folder / "tokenizer.json", 1)
    code, out, _ = run("audit", folder, "--json")
    found = json.loads(out)
    assert list(found) == [*KEYS, "files", "checks"]
    assert (found["format"], found["version"]) == ("minitrans-audit", 1)
    assert code == (found["verdict"] == "FAIL") == broken
    assert found["versions"].keys() == {"minitrans", "numpy", "Python"}
    assert found["machine"].keys() >= {"architecture", "system"}
    assert set(map(len, found["files"].values())) == {64}
    assert found["identity"] is None
    skips = [check for check in found["checks"] if check["verdict"] == "SKIP"]
    assert [(each["group"], each["name"], each["reason"]) for each in found["skipped"]] == [
        (check["group"], check["name"], check["measured"]) for check in skips
    ]
    for check in found["checks"]:
        assert list(check) == ["group", "name", "verdict", "measured", "wanted", "detail", "values"]
        assert check["group"] in GROUPS
        assert check["verdict"] in ("PASS", "FAIL", "SKIP")
        assert all(
            isinstance(line, str) for line in (check["name"], check["measured"], check["wanted"], *check["detail"])
        )
        assert all(value is None or isinstance(value, int | float) for value in check["values"].values())


def test_digests_are_written_once_and_compared_later(run, folder, tmp_path):
    code, _, err = run("audit", folder, "--write-digests", tmp_path / "seal.json")
    doubt = "the digests vouch for what is there now, not for where it came from"
    assert (code, err) == (0, f"{tmp_path / 'seal.json'}: written; {doubt}\n")
    code, out, _ = run("audit", folder, "--digests", tmp_path / "seal.json")
    assert code == 0
    assert "sealed digests" in out
    assert "as in seal.json" in out
    assert "identity" not in out.splitlines()[-1]
    flip(folder / "model.safetensors", 3)  # a low bit of the last tensor of the file
    code, out, _ = run("audit", folder, "--digests", tmp_path / "seal.json")
    assert code == 1
    names = "Folder: sealed digests, Folder: tensor digests, Folder: encoder identity"
    assert f": {names}; not checked: " in out.splitlines()[-1]
    assert "model.safetensors: encoder.layer.2.output.dense.weight, F32 [32, 64], bytes " in out


def test_digests_of_a_model_that_fails_are_not_written(run, folder, tmp_path):
    flip(folder / "tokenizer.json", 1)
    code, _, err = run("audit", folder, "--write-digests", tmp_path / "seal.json")
    assert code == 1
    assert err == f"{tmp_path / 'seal.json'}: not written, because the audit failed\n"
    assert not (tmp_path / "seal.json").exists()


def test_the_shipped_digests_are_what_the_command_writes(run, tmp_path, no_network, monkeypatch, bundled_audit):
    name = "all-MiniLM-L6-v2-int8"
    asked = {}
    monkeypatch.setattr(signoff, "sign_off", lambda model, **options: asked.update(options) or bundled_audit)
    code, _, err = run("audit", "--write-digests", tmp_path / "digests.json", "--pruning", "fast")
    assert (code, err) == (0, f"{tmp_path / 'digests.json'}: written\n")
    assert asked["pruning"] == {"fast": PruningPolicy.named("fast")}
    written = json.loads((tmp_path / "digests.json").read_text())
    identity = written.pop("identity")  # the libraries of a later day may have another one
    assert identity == SentenceEncoder().identity.to_dict()
    assert written == json.loads(bundled(f"weights/digests/{name}.json").read_text())


def test_texts_and_a_policy_come_from_files(run, plain, tmp_path, all_ways):
    (tmp_path / "texts.csv").write_text("q\nhello there\nwhere is it\n")
    PruningPolicy(min_tokens=2, layer=0).save(tmp_path / "mine.json")
    code, out, _ = run(
        "audit",
        plain,
        "-i",
        tmp_path / "texts.csv",
        "--column",
        "q",
        "--pruning",
        tmp_path / "mine.json",
        "--threads",
        "3",
    )
    assert code == 0
    assert "14 texts in 14 ways" in out
    assert "  PASS  mine " in out


def test_progress_shows_on_a_terminal_only(run, plain, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    code, out, err = run("audit", plain)
    assert code == 0
    assert "checking: invariance, unpruned ..." in err
    assert err.endswith("\r\x1b[K")
    assert "checking" not in out


def test_a_folder_has_to_be_what_as_says(run, plain):
    code, out, _ = run("audit", plain, "--as", "all-MiniLM-L6-v2")
    assert code == 1
    assert out.startswith(f"{plain}, known as sentence-transformers/all-MiniLM-L6-v2\n")
    assert "Folder: published digests, Folder: tensor digests" in out.splitlines()[-1]


def test_the_last_line_says_what_was_not_checked(plain, tmp_path, bundled_audit):
    int8 = quantize_folder(plain, tmp_path / "int8")
    audit = sign_off(int8)
    assert "; identity not checked: no digests of this folder; not checked: as quantised and " in audit.summary()
    assert " and int8 to the original (no original here)" in audit.summary()
    peers = [check for check in audit.skipped if check.group.endswith("transformers")]
    count = sum(check.stands_for for check in peers)
    assert f"transformers and sentence-transformers (not installed; {count} checks)" in audit.summary()
    assert [check.measured for check in peers] == [
        "torch and transformers not installed",
        "torch, transformers and sentence-transformers not installed",
    ]
    assert bundled_audit.identity == "published digests"
    assert "identity" not in bundled_audit.summary()


def test_headings_and_help_can_be_read_without_the_guide(run):
    for note in NOTES.values():
        assert "in means of" not in note
        assert "in root mean squares" not in note
    _, out, _ = run("audit", "--help")
    for words in ("exit code 0", "exit code 1", "Exit code 2", "--as NAME"):
        assert words in " ".join(out.split())


@without_transformers
def test_without_transformers_the_audit_says_how_to_have_it(plain, monkeypatch):
    monkeypatch.setattr(oracle, "find_spec", importlib.util.find_spec)
    for check in [check for check in sign_off(plain).checks if check.group.endswith("transformers")]:
        assert (check.verdict, check.wanted) == ("SKIP", 'pip install "minitrans[transformers]"')
        assert "not installed" in check.measured


# Which encoder it is


def check_of(audit, name="encoder identity"):
    (check,) = [check for check in audit.checks if check.name == name]
    return check


def test_the_identity_of_the_encoder_is_shown(folder):
    audit = sign_off(folder)
    identity = SentenceEncoder(folder).identity
    assert audit.encoder_identity == identity
    assert audit.to_dict()["encoder_identity"] == identity.to_dict()
    check = check_of(audit)
    assert check.verdict == "PASS"
    assert check.measured.startswith(identity.sha256[:16])
    assert f"weights: {identity.weights}" in check.detail
    (folder / "config.json").write_text("{")
    assert sign_off(folder).to_dict()["encoder_identity"] is None


@pytest.fixture
def int8(plain, tmp_path):
    return quantize_folder(plain, tmp_path / "int8")


def test_an_int8_model_with_its_provenance_is_the_float32_one(plain, int8):
    check = check_of(sign_off(int8, original=plain))
    assert check.verdict == "PASS"
    assert f"weights: {SentenceEncoder(plain).identity.weights}" in check.detail


def test_a_provenance_of_other_weights_fails(int8, random_folder, tmp_path):
    other = quantize_folder(random_folder("odd_sizes"), tmp_path / "other")
    shutil.copyfile(other / "provenance.json", int8 / "provenance.json")
    check = check_of(sign_off(int8))
    assert check.verdict == "FAIL"
    assert check.detail[0].startswith("provenance.json is of the weights '")


def test_a_provenance_of_another_origin_fails(plain, int8):
    said = json.loads((int8 / "provenance.json").read_text())
    said["from"]["weights"] = "0" * 64
    (int8 / "provenance.json").write_text(json.dumps(said))
    check = check_of(sign_off(int8, original=plain))
    assert check.verdict == "FAIL"
    assert check.detail[0].startswith(f"provenance.json says that they were made from {'0' * 64}, wanted ")


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        (None, "PASS", "without a provenance.json these weights count as a model of their own"),
        ('{"made_by": "me"}', "PASS", "provenance.json names no weights"),
        ('{"weights": 3}', "FAIL", "provenance.json is of the weights 3, here are "),
        ("[]", "FAIL", "holds a JSON list"),
    ],
)
def test_what_a_provenance_leaves_out_is_said(int8, text, verdict, words):
    (int8 / "provenance.json").unlink()
    if text is not None:
        (int8 / "provenance.json").write_text(text)
    check = check_of(sign_off(int8))
    assert check.verdict == verdict
    assert words in "\n".join(check.detail)


def test_a_seal_holds_the_identity(folder, tmp_path):
    written = sign_off(folder).digests
    written.save(tmp_path / "seal.json")
    seal = Digests.load(tmp_path / "seal.json")
    assert seal.identity == SentenceEncoder(folder).identity
    assert sign_off(folder, digests=seal).passed
    other = replace(seal, identity=replace(seal.identity, tokenizer="0" * 64))
    audit = sign_off(folder, digests=other)
    assert audit.failed == (check_of(audit),)
    assert check_of(audit).detail[0].startswith("other tokenizer than in seal.json; where all files are as sealed, ")
    values = json.loads((tmp_path / "seal.json").read_text())
    values["identity"]["prompts"] = "1" * 64
    (tmp_path / "seal.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"seal.json: an encoder's identity is .*write the file anew with"):
        Digests.load(tmp_path / "seal.json")
    del values["identity"]  # one of an earlier release
    (tmp_path / "seal.json").write_text(json.dumps(values))
    assert sign_off(folder, digests=Digests.load(tmp_path / "seal.json")).passed
