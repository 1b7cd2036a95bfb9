"""minitrans.audit against SentenceTransformer, live: what it reads of a folder, every way in which we may differ."""

import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import odd_folders
import pytest
import random_models

from minitrans import SentenceEncoder
from minitrans.audit import sentence_oracle
from minitrans.audit.comparison import Sample
from minitrans.audit.sentence_oracle import how_many, lay_out, sentence_checks, why_not
from minitrans.audit.signoff import sign_off
from minitrans.errors import BackendError
from minitrans.models.export import quantize_folder
from minitrans.models.quantization import with_precision
from minitrans.models.weights import load_parameters

pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.transformers

TEXTS = ("Where is my card?", "", "to the bank " * 40)


@pytest.fixture
def folder(tmp_path):
    return odd_folders.make(tmp_path / "m", "prompts and dimensions")


def checks(folder, encoder=None):
    encoder = SentenceEncoder(folder, precision="float32", on_truncation="ignore") if encoder is None else encoder
    parameters = with_precision(load_parameters(folder), "float32")
    sample = Sample.of(TEXTS, encoder.tokenizer)
    return {check.name: check for check in sentence_checks(folder, encoder, parameters, sample)}


def failed(found):
    return {name for name, check in found.items() if check.verdict == "FAIL"}


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("name", ["plain", "bfloat16", "sharded", "bert_prefix", "cls_pooling"])
def test_random_models_agree(random_folder, tmp_path, name, int8):
    folder = random_folder(name)
    found = checks(quantize_folder(folder, tmp_path / "int8") if int8 else folder)
    assert failed(found) == set(), found
    assert list(found) == ["settings", "token ids", "embeddings", "queries", "documents"]


def test_prompts_are_tried_each(folder):
    found = checks(folder)
    assert failed(found) == set(), found
    assert found["prompts"].measured == "3 of 3 prompts"
    assert len(found) == how_many(SentenceEncoder(folder))


def shorter(encoder):
    encoder.max_seq_length = 20


def other_prompt(encoder):
    encoder.prompts = encoder.prompts | {"query": "seek "}


def no_default(encoder):
    encoder.default_prompt_name = None


def other_pooling(encoder):
    encoder.pooling = type(encoder.pooling)(("max",), normalize=True)


def not_normalised(encoder):
    encoder.pooling = type(encoder.pooling)(("mean",), normalize=False)


def other_width(encoder):
    encoder.truncate_dim = 8


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (shorter, {"settings", "token ids", "embeddings", "queries", "documents", "prompts"}),
        (other_prompt, {"settings", "queries", "prompts"}),
        (no_default, {"settings", "embeddings"}),
        (other_pooling, {"embeddings", "queries", "documents", "prompts"}),
        (not_normalised, {"embeddings", "queries", "documents", "prompts"}),
        (other_width, {"settings", "embeddings", "queries", "documents", "prompts"}),
    ],
)
def test_every_difference_is_found(folder, change, names):
    encoder = SentenceEncoder(folder, on_truncation="ignore")
    change(encoder)
    found = checks(folder, encoder)
    assert failed(found) == names
    for name in names:
        assert found[name].detail or found[name].wanted


def test_a_file_that_only_the_other_reads_is_found(folder, monkeypatch):
    """As if minitrans passed over a setting: its own reader does not see it."""
    odd_folders.edit(folder, "sentence_bert_config.json", query_length=5)
    monkeypatch.setattr("minitrans.models.folder.check_keys", lambda *_: None)
    assert failed(checks(folder)) == {"queries"}


def test_only_what_may_be_read_is_copied(folder, tmp_path):
    for name in ("evil.py", "pytorch_model.bin", "more.safetensors"):
        (folder / name).write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"")
    (tmp_path / "outside.json").write_text("{}")
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    (folder / "vocab.txt").unlink()
    odd_folders.edit(folder, "config.json", auto_map=None, id2label={"0": "x"}, torch_dtype="float16")
    parameters = load_parameters(folder)
    lay_out(folder, tmp_path / "copy", parameters)
    names = {each.relative_to(tmp_path / "copy").as_posix() for each in (tmp_path / "copy").rglob("*")}
    assert names == {
        "1_Pooling",
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    kept = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert kept.keys() == {"model_type", *vars(parameters.config)}


def test_a_module_of_its_own_is_never_loaded(folder, tmp_path, monkeypatch):
    odd_folders.modules(folder, "sentence_transformers.models.Transformer", "antigravity.Pooling")
    parameters = load_parameters(random_models.write_model(tmp_path / "p", odd_folders.SPEC))
    with pytest.raises(BackendError, match=r"'antigravity.Pooling', wanted modules of sentence_transformers"):
        lay_out(folder, tmp_path / "copy", parameters)
    assert "antigravity" not in sys.modules


def test_nothing_is_fetched_and_nothing_stays_changed(folder, no_network, capfd, caplog):
    from huggingface_hub import constants
    from transformers.utils import logging as of_transformers

    logger = logging.getLogger("sentence_transformers")
    before = constants.HF_HUB_OFFLINE, of_transformers.is_progress_bar_enabled(), logger.level
    assert failed(checks(folder)) == set()
    assert (constants.HF_HUB_OFFLINE, of_transformers.is_progress_bar_enabled(), logger.level) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_what_it_cannot_load_fails(folder, monkeypatch):
    from sentence_transformers import SentenceTransformer

    def fail(*_, **__):
        raise AttributeError("no such thing\nin this release")

    monkeypatch.setattr(SentenceTransformer, "__init__", fail)
    audit = sign_off(folder)
    (check,) = audit.failed
    assert (check.group, check.name, check.measured) == ("sentence-transformers", "all", "no result")
    assert check.detail == ("SentenceTransformer cannot load this folder: AttributeError: no such thing",)


def test_what_it_cannot_encode_fails(folder, monkeypatch):
    from sentence_transformers import SentenceTransformer

    def fail(*_, **__):
        raise IndexError("index out of range")

    monkeypatch.setattr(SentenceTransformer, "encode_query", fail)
    found = checks(folder)
    assert failed(found) == {"queries"}
    assert found["queries"].detail == ("SentenceTransformer cannot encode: IndexError: index out of range",)


def test_the_whole_audit_asks_it(plain, no_network, monkeypatch):
    assert why_not() is None
    audit = sign_off(plain, against="sentence-transformers")
    assert audit.passed, audit.failed
    assert "sentence-transformers" in audit.versions
    count = sum(check.group == "sentence-transformers" for check in audit.checks)
    monkeypatch.setattr("minitrans.audit.oracle.find_spec", lambda name: None)
    (skip,) = [check for check in sign_off(plain).skipped if check.group == "sentence-transformers"]
    assert skip.stands_for == count


def test_an_installation_that_is_too_old_or_broken_is_skipped(plain, monkeypatch):
    monkeypatch.setattr("minitrans.audit.oracle.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=object))
    assert why_not() == "sentence-transformers is older than 5.0, which brought encode_query"
    (skip,) = [check for check in sign_off(plain).skipped if check.group == "sentence-transformers"]
    assert skip.reason == "older than"
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert why_not().startswith("sentence-transformers cannot be imported: ")


def test_half_of_a_surrogate_pair_is_no_difference(folder):
    encoder = SentenceEncoder(folder, on_truncation="ignore")
    sample = Sample.of(["a \ud800 b", "x"], encoder.tokenizer)
    found = sentence_checks(folder, encoder, load_parameters(folder), sample)
    assert {check.verdict for check in found} == {"PASS"}
    assert sentence_oracle.PROMPTS >= 3
    assert np.isfinite(encoder.encode(sample.texts)).all()
