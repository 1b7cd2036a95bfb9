"""Which encoder is this: every part that changes a vector changes the identity, and nothing else does."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import random_models
from fitted_policies import fitted_to
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tasks import tiny_task

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder, quantize_folder
from minitrans.errors import ClassifierError, InputError, ModelError, PolicyError
from minitrans.evaluation.few_shot import evaluate
from minitrans.evaluation.journal import Journal
from minitrans.models.identity import Identity
from minitrans.models.parameters import named_arrays
from minitrans.models.weights import assemble, load_parameters

PARTS = ("weights", "tokenizer", "pooling", "prompts", "precision")
SPEC = random_models.find_spec("plain")
TASK = [tiny_task("one", 1)]


@pytest.fixture
def copy(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "copy")


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain)


@pytest.fixture(scope="module")
def int8_folder(plain, tmp_path_factory):
    return quantize_folder(plain, tmp_path_factory.mktemp("int8") / "model")


def in_tokenizer(folder, change):
    values = json.loads((folder / "tokenizer.json").read_text())
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))


def other_token(values):
    vocabulary = values["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    vocabulary[words[0]], vocabulary[words[1]] = vocabulary[words[1]], vocabulary[words[0]]


def keeping_control_characters(values):
    values["normalizer"]["clean_text"] = False


def setting(file, **changes):
    return lambda folder: random_models.edit_json(folder / file, **changes)


def rewritten(change):
    """Other tensors in the same files."""

    def write(folder):
        tensors = random_models.write_tensors(SPEC)
        change(tensors)
        random_models.write_weights(folder, tensors)

    return write


def one_bit(tensors):
    tensors["embeddings.word_embeddings.weight"].view(np.uint32)[3, 5] ^= 1


def negated(tensors):
    tensors["encoder.layer.1.attention.self.value.weight"] *= -1


def write_prompts(folder, **settings):
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))


CHANGES = {
    "one bit of a weight": ("weights", rewritten(one_bit)),
    "a negated matrix": ("weights", rewritten(negated)),
    "activation": ("weights", setting("config.json", hidden_act="relu")),
    "heads": ("weights", setting("config.json", num_attention_heads=2)),
    "epsilon": ("weights", setting("config.json", layer_norm_eps=1e-5)),
    "lower case by setting": ("tokenizer", setting("tokenizer_config.json", do_lower_case=False)),
    "lower case before": (
        "tokenizer",
        lambda folder: (
            random_models.edit_json(folder / "tokenizer_config.json", do_lower_case=False),
            random_models.edit_json(folder / "sentence_bert_config.json", do_lower_case=True),
        ),
    ),
    "normalizer": (
        "tokenizer",
        lambda folder: (
            in_tokenizer(folder, keeping_control_characters),
            random_models.edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"),
        ),
    ),
    "two tokens swapped": ("tokenizer", lambda folder: in_tokenizer(folder, other_token)),
    "longest text": ("tokenizer", setting("sentence_bert_config.json", max_seq_length=17)),
    "side": ("tokenizer", setting("tokenizer_config.json", truncation_side="left")),
    "modes": ("pooling", setting("1_Pooling/config.json", pooling_mode_cls_token=True)),
    "no normalisation": (
        "pooling",
        lambda folder: (folder / "modules.json").write_text(
            json.dumps(json.loads((folder / "modules.json").read_text())[:2])
        ),
    ),
    "dimensions": ("pooling", lambda folder: write_prompts(folder, truncate_dim=7)),
    "a prompt": ("prompts", lambda folder: write_prompts(folder, prompts={"query": "find: "})),
    "a default prompt": (
        "prompts",
        lambda folder: write_prompts(folder, prompts={"query": "find: "}, default_prompt_name="query"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_another_encoder_and_says_in_what(encoder, copy, name):
    part, change = CHANGES[name]
    change(copy)
    other = SentenceEncoder(copy).identity
    assert encoder.identity.difference(other) == part
    assert encoder.identity.sha256 != other.sha256


def test_prompts_differ_by_which_is_the_default(copy):
    write_prompts(copy, prompts={"query": "find: ", "other": "find: no "})
    identities = {SentenceEncoder(copy, default_prompt_name=name).identity for name in (None, "query", "other")}
    assert len(identities) == 3


def same(folder):
    write_prompts(folder, prompts={"query": "", "document": ""}, similarity_fn_name="dot")
    random_models.edit_json(folder / "tokenizer_config.json", name_or_path="elsewhere")
    (folder / "README.md").write_text("a copy")
    cut = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    in_tokenizer(folder, lambda values: values.update(truncation=cut))


@pytest.mark.parametrize(
    "change",
    [
        same,
        lambda folder: random_models.write_weights(folder, random_models.write_tensors(SPEC), shards=1),
        lambda folder: (
            random_models.write_weights(folder, random_models.write_tensors(SPEC), shards=3),
            (folder / "model.safetensors").unlink(),
        ),
        lambda folder: random_models.write_model(folder, replace(SPEC, prefix="bert.", with_pooler=True)),
    ],
)
def test_what_no_vector_depends_on_does_not_count(encoder, copy, change):
    change(copy)
    assert SentenceEncoder(copy, threads=1, backend="reference", on_truncation="ignore").identity == encoder.identity


@pytest.fixture(scope="module")
def parameters(plain):
    assert load_parameters(plain).sha256 == load_parameters(plain).sha256
    return load_parameters(plain)


@settings(max_examples=40)
@given(st.data())
def test_any_bit_of_any_weight_counts(parameters, data):
    arrays = {name: array.copy() for name, array in named_arrays(parameters).items()}
    name = data.draw(st.sampled_from(sorted(arrays)))
    values = arrays[name].reshape(-1).view(np.uint8)
    values[data.draw(st.integers(0, values.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert assemble(parameters.config, arrays).sha256 != parameters.sha256


# int8


def test_the_int8_form_has_the_weights_of_its_source(encoder, plain, int8_folder):
    stored = SentenceEncoder(int8_folder).identity
    assert encoder.identity.difference(stored) == "precision"
    assert SentenceEncoder(plain, precision="int8").identity == stored


def test_int8_weights_in_float32_are_not_their_source(encoder, int8_folder):
    found = SentenceEncoder(int8_folder, precision="float32").identity
    assert encoder.identity.difference(found) == "precision"
    assert found.precision == "float32 from int8"


def test_a_provenance_beside_other_weights_does_not_count(encoder, int8_folder, tmp_path):
    other = random_models.write_model(tmp_path / "other", replace(SPEC, seed=77))
    target = quantize_folder(other, tmp_path / "target")
    shutil.copyfile(int8_folder / "provenance.json", target / "provenance.json")
    found = SentenceEncoder(target).identity.weights
    assert found not in (encoder.identity.weights, SentenceEncoder(other).identity.weights)
    assert found == load_parameters(target).sha256


@pytest.mark.parametrize("text", [None, "[]", "{", '{"from": 3}', '{"from": {"weights": "x"}}'])
def test_without_a_provenance_int8_weights_are_their_own(int8_folder, tmp_path, text):
    target = shutil.copytree(int8_folder, tmp_path / "target")
    (target / "provenance.json").unlink()
    if text is not None:
        (target / "provenance.json").write_text(text)
    assert SentenceEncoder(target).identity.weights == load_parameters(target).sha256


# An encoder whose settings change; files that change


def test_the_identity_follows_the_settings(plain):
    encoder = SentenceEncoder(plain, prompts={"a": "one "})
    before = encoder.identity
    encoder.max_seq_length = 11
    assert before.difference(encoder.identity) == "tokenizer"
    encoder.default_prompt_name = "a"
    encoder.truncate_dim = 5
    assert before.difference(encoder.identity) == "tokenizer, pooling and prompts"
    encoder.max_seq_length, encoder.default_prompt_name, encoder.truncate_dim = 64, None, 32
    assert encoder.identity == before


def test_weights_replaced_meanwhile_are_not_taken_as_read(copy):
    encoder = SentenceEncoder(copy)
    rewritten(negated)(copy)
    with pytest.raises(ModelError, match="make a new SentenceEncoder"):
        _ = encoder.identity


def test_a_configuration_that_was_changed_meanwhile(copy):
    encoder = SentenceEncoder(copy)
    setting("config.json", hidden_act="relu")(copy)
    with pytest.raises(ModelError, match="make a new SentenceEncoder"):
        _ = encoder.identity


def test_a_pickled_encoder_keeps_its_identity(encoder, copy):
    pickled = pickle.dumps(SentenceEncoder(copy))
    rewritten(negated)(copy)
    assert pickle.loads(pickled).identity == encoder.identity
    shutil.rmtree(copy)
    assert pickle.loads(pickled).identity == encoder.identity
    pickle.loads(pickle.dumps(pickle.loads(pickled)))


# The value


def test_the_value_as_json(encoder):
    values = json.loads(json.dumps(encoder.identity.to_dict()))
    assert Identity.from_dict(values) == encoder.identity
    assert values["sha256"] == encoder.identity.sha256
    assert encoder.info()["identity"] == values


@pytest.mark.parametrize("change", [{"weights": 3}, {"pooling": "cls"}, {"sha256": "ab"}, {"more": "x"}])
def test_json_that_is_no_identity(encoder, change):
    with pytest.raises(InputError, match="an encoder's identity is"):
        Identity.from_dict(encoder.identity.to_dict() | change)
    with pytest.raises(InputError, match="an encoder's identity is"):
        Identity.from_dict("x")


@given(st.lists(st.sampled_from(["a", "b"]), min_size=10, max_size=10))
def test_two_are_one_just_when_all_parts_are(values):
    one, two = Identity(*values[:5]), Identity(*values[5:])
    names = one.difference(two).replace(" and ", ", ").split(", ")
    assert names == ([part for part in PARTS if getattr(one, part) != getattr(two, part)] or [""])
    assert (one == two) == (one.sha256 == two.sha256) == (names == [""])


# Where it is used


def test_a_policy_is_refused_by_a_fine_tune_with_frozen_norms(encoder, copy):
    policy = fitted_to(encoder, score="learned", reduce="restore", min_tokens=3)
    rewritten(negated)(copy)
    with pytest.raises(PolicyError, match="minitrans adapt"):
        SentenceEncoder(copy, pruning=policy)
    with pytest.raises(PolicyError, match="minitrans adapt"):
        SentenceEncoder(copy).encode("help", pruning=policy)


def test_a_policy_takes_the_int8_form_and_another_tokenizer(encoder, copy, int8_folder):
    policy = fitted_to(encoder, score="learned", reduce="restore", min_tokens=3)
    setting("tokenizer_config.json", do_lower_case=False)(copy)
    for folder in (copy, int8_folder):
        assert SentenceEncoder(folder, pruning=policy).pruning == policy


def test_the_shipped_policies_belong_to_the_bundled_model():
    encoder = SentenceEncoder(pruning="balanced")
    assert encoder.pruning.fitted.model == encoder.fingerprint == encoder.identity.weights


def test_a_policy_that_is_not_fitted_reads_no_weights_again(copy):
    encoder = SentenceEncoder(copy)
    (copy / "model.safetensors").unlink()
    assert encoder.encode("help", pruning=PruningPolicy(layer=1)).shape == (32,)


@pytest.mark.parametrize("name", ["lower case by setting", "modes", "a default prompt"])
def test_a_journal_keeps_encoders_apart(encoder, copy, name):
    journal = Journal(None)
    evaluate(encoder, TASK, [1], [0], journal=journal)
    CHANGES[name][1](copy)
    assert evaluate(SentenceEncoder(copy), TASK, [1], [0], journal=journal).from_journal == 0
    assert evaluate(encoder, TASK, [1], [0], journal=journal).from_journal == 1


@pytest.mark.parametrize("name", ["lower case by setting", "modes", "a default prompt", "a negated matrix"])
def test_a_classifier_keeps_encoders_apart(encoder, copy, tmp_path, name):
    FewShotClassifier(encoder).fit(["card", "time"], ["a", "b"]).save(tmp_path / "saved")
    CHANGES[name][1](copy)
    with pytest.raises(ClassifierError):
        FewShotClassifier.load(tmp_path / "saved", SentenceEncoder(copy))
    assert FewShotClassifier.load(tmp_path / "saved", encoder).predict("card") == "a"
