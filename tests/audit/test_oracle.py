"""minitrans.audit against transformers, live: every layer, every vector, token ids, kept rows."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import random_models
from fitted_policies import fitted_to

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.audit.comparison import TEXTS, Sample
from minitrans.audit.oracle import oracle_checks, pooled, why_not
from minitrans.audit.signoff import sign_off
from minitrans.backends.reference import ReferenceBlocks
from minitrans.encoder.pooling import pool
from minitrans.models.export import quantize_folder
from minitrans.models.quantization import with_precision
from minitrans.models.sentence import PoolingConfig
from minitrans.models.weights import load_parameters

pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.transformers


class Setting:
    def __init__(self, folder):
        self.folder = folder
        self.parameters = with_precision(load_parameters(folder), "float32")
        self.encoder = SentenceEncoder(folder, on_truncation="ignore")
        self.sample = Sample.of(TEXTS, self.encoder.tokenizer)
        layer = min(1, self.encoder.config.num_hidden_layers - 1)
        protect = self.encoder.pooling.modes == ("cls",)
        self.policies = {
            name: fitted_to(
                self.encoder,
                **({"min_tokens": 4, "quantile": 0.4, "layer": layer, "protect_special": protect} | more),
            )
            for name, more in {
                "attention": {},
                "attention value": {"score": "attention_value"},
                "turn": {"score": "learned", "max_turn": 20, "quantile": 0.9},
                "random": {"score": "random"},
            }.items()
        }

    def checks(self, blocks=None, policies=None):
        blocks = {"reference": ReferenceBlocks(self.parameters) if blocks is None else blocks}
        encoder = self.encoder
        found = oracle_checks(
            self.folder,
            self.parameters,
            blocks,
            self.sample,
            self.sample,
            encoder.pooling,
            encoder.max_seq_length,
            self.policies if policies is None else policies,
        )
        return {check.name: check for check in found}


@pytest.fixture(scope="module")
def plain_setting(plain):
    return Setting(plain)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("spec", random_models.SPECS, ids=lambda spec: spec.name)
def test_random_models_agree(random_folder, tmp_path, spec, int8):
    folder = random_folder(spec.name)
    setting = Setting(quantize_folder(folder, tmp_path / "int8") if int8 else folder)
    checks = setting.checks()
    assert {check.verdict for check in checks.values()} == {"PASS"}, checks
    assert list(checks) == [
        "token ids",
        "layers, reference",
        "embeddings, reference",
        "rows, attention",
        "rows, attention value",
        "rows, turn",
    ]
    assert len(checks["layers, reference"].values) == 2 * (1 + spec.num_hidden_layers)
    assert checks["rows, attention"].values == {}
    assert checks["rows, attention"].measured == f"{len(TEXTS)} of {len(TEXTS)} alike"


def test_the_bundled_model_agrees_with_its_fitted_policies():
    setting = Setting(SentenceEncoder().folder)
    names = ("balanced", "fast")
    checks = setting.checks(policies={name: PruningPolicy.named(name) for name in names})
    assert {check.verdict for check in checks.values()} == {"PASS"}, checks
    assert {f"rows, {name}" for name in names} <= checks.keys()


def test_a_layer_that_is_broken_is_named_and_the_later_ones_too(plain_setting):
    class Broken(ReferenceBlocks):
        def feed_forward_block(self, hidden, offsets, layer):
            return super().feed_forward_block(hidden, offsets, layer) + np.float32(0.01 * (layer == 1))

    checks = plain_setting.checks(Broken(plain_setting.parameters))
    assert checks["layers, reference"].verdict == "FAIL"
    assert checks["layers, reference"].detail[0] == "over the bar: layer 1, layer 2"
    assert checks["embeddings, reference"].verdict == "FAIL"


def test_rows_that_differ_fail(plain_setting):
    class Broken(ReferenceBlocks):
        def attention_block(self, hidden, offsets, sizes, layer, want):
            result, scores = super().attention_block(hidden, offsets, sizes, layer, want)
            return result, None if scores is None else -scores

    checks = plain_setting.checks(Broken(plain_setting.parameters))
    assert checks["rows, attention"].verdict == checks["rows, attention value"].verdict == "FAIL"
    assert checks["layers, reference"].verdict == "PASS"
    assert "are kept in one run only" in checks["rows, attention"].detail[0]


def test_a_backend_that_fails_fails(plain_setting):
    class Broken(ReferenceBlocks):
        def feed_forward_block(self, hidden, offsets, layer):
            return super().feed_forward_block(hidden, offsets, layer) * np.float32(np.nan)

    checks = plain_setting.checks(Broken(plain_setting.parameters))
    assert {check.verdict for name, check in checks.items() if name.startswith(("layers", "rows"))} == {"FAIL"}


def test_the_first_of_several_stages_is_compared_and_said_to_be(plain_setting):
    policy = PruningPolicy(min_tokens=4, stages=((0, 0.3), (2, 0.5)))
    check = plain_setting.checks(policies={"two": policy})["rows, two"]
    assert check.verdict == "PASS"
    assert check.detail == ("the first of 2 stages; the others start from fewer rows",)


def test_token_ids_that_differ_fail(tmp_path):
    folder = random_models.write_model(tmp_path / "m", random_models.find_spec("plain"))
    setting = Setting(folder)
    ids = [list(each) for each in setting.sample.ids]
    ids[2][3] += 1
    sample = Sample(setting.sample.texts, tuple(map(tuple, ids)), 1, 1)
    setting.sample = sample
    check = setting.checks()["token ids"]
    assert check.verdict == "FAIL"
    assert check.detail[0].startswith("text 2 'Where is my parcel?")
    assert check.detail[0].endswith("they differ from id 3 on")


def test_a_tokenizer_that_transformers_cannot_load_fails(tmp_path):
    folder = random_models.write_model(tmp_path / "m", random_models.find_spec("plain"))
    setting = Setting(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"model": {"type": "Nothing"}}))
    (folder / "vocab.txt").unlink()
    check = setting.checks()["token ids"]
    assert (check.verdict, check.measured) == ("FAIL", "its tokenizer cannot be loaded")


HOSTILE = {
    "id2label": [3, {"a": 1}],
    "num_labels": [100_000_000],  # whoever made a table of them would be busy for long
    "pad_token_id": [99999],
    "use_return_dict": [False],
    "return_dict": [False],
    "output_attentions": ["x"],
    "tie_word_embeddings": [3],
    "attention_probs_dropout_prob": ["x", 0.9],
    "chunk_size_feed_forward": [3],
    "_attn_implementation": ["sdpa", 7],
    "transformers_version": [3],
    "torch_dtype": ["float16", "x"],
    "is_decoder": [False],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_keys_that_do_not_concern_the_encoder_have_no_effect(tmp_path, monkeypatch, key, value):
    monkeypatch.setattr("minitrans.audit.sentence_oracle.why_not", lambda: "not asked")  # which takes its time
    folder = random_models.write_model(tmp_path / "m", random_models.find_spec("plain"))
    random_models.edit_json(folder / "config.json", **{key: value})
    audit = sign_off(folder, against="transformers")
    assert audit.passed, audit.failed
    assert {"token ids", "layers, reference", "rows, default"} <= {check.name for check in audit.checks}


def test_the_configuration_may_name_the_tokenizer(tmp_path):
    folder = random_models.write_model(tmp_path / "m", random_models.find_spec("plain"))
    random_models.edit_json(folder / "config.json", tokenizer_class="BertTokenizer")
    assert Setting(folder).checks()["token ids"].verdict == "PASS"


@pytest.mark.parametrize("broken", ["__init__", "forward", "load_state_dict"])
def test_whatever_transformers_raises_is_a_failure_not_an_error(plain, monkeypatch, broken):
    import transformers

    def fail(*_, **__):
        raise AttributeError("no such thing\nin this release")

    monkeypatch.setattr(transformers.BertModel, broken, fail)
    audit = sign_off(plain)
    (check,) = [check for check in audit.failed if check.group == "transformers"]
    assert (check.name, check.measured) == ("all", "no result")
    what = "run" if broken == "forward" else "build"
    assert check.detail == (f"transformers cannot {what} its BertModel: AttributeError: no such thing",)


def test_lower_casing_and_lone_surrogates(tmp_path):
    folder = random_models.write_model(tmp_path / "m", random_models.find_spec("plain"))
    random_models.edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    setting = Setting(folder)
    setting.sample = Sample.of(["HELLO Where", "a \ud800 b", ""], setting.encoder.tokenizer)
    assert setting.checks()["token ids"].verdict == "PASS"


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_poolings(mode):
    hidden = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    modes = (mode, "mean")
    ours = pool(hidden, np.array([0, 7]), PoolingConfig(modes, normalize=True))[0]
    np.testing.assert_allclose(pooled(hidden, modes), ours, rtol=0, atol=1e-6)


def test_the_whole_audit_asks_transformers(plain, no_network, monkeypatch):
    assert why_not() is None
    audit = sign_off(plain, against="transformers")
    assert audit.passed, audit.failed
    names = {check.name for check in audit.checks if check.group == "transformers"}
    assert {"token ids", "layers, reference", "rows, default"} <= names
    monkeypatch.setattr("minitrans.audit.oracle.find_spec", lambda name: None)
    (skip,) = [check for check in sign_off(plain).skipped if check.group == "transformers"]
    assert skip.stands_for == len(names)
    assert {"torch", "transformers"} <= audit.versions.keys()


def test_a_transformers_without_attentions_is_a_failure(plain, monkeypatch):
    import transformers

    monkeypatch.setattr(
        transformers.BertModel,
        "forward",
        lambda self, **_: SimpleNamespace(hidden_states=(), attentions=None),
    )
    audit = sign_off(plain)
    (check,) = [check for check in audit.failed if check.group == "transformers"]
    assert "returns no attentions" in check.detail[0]


def test_an_installation_that_cannot_be_imported_is_skipped(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("minitrans.audit.oracle.find_spec", lambda name: name)
    assert why_not().startswith("transformers cannot be imported")
