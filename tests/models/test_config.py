"""What a model may be, what a policy may ask for, and JSON files that lie, break or never end."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import edit_json, find_spec, write_model

from minitrans.contents import JSON_LIMIT, read_json
from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import ConfigError, ModelNotFoundError, PolicyError, UnsupportedModelError, WeightsError
from minitrans.models.config import EncoderConfig
from minitrans.models.folder import ModelFolder
from minitrans.models.weights import load_parameters

HUGE = 10**400  # JSON can say it, a float cannot
SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
CONFIG = {"model_type": "bert", **SIZES}
ENCODER = EncoderConfig(**SIZES)


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", find_spec("plain"))


def refusal(error, call):
    """The message of the error that a call raises."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return str(caught.value)


# --- EncoderConfig


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        *(
            ({"model_type": name}, f"model_type is {name!r}, wanted 'bert'")
            for name in ("roberta", "mpnet", "distilbert", "t5", "BERT")
        ),
        ({"model_type": None}, "model_type is None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"position_embedding_type": "relative_key_query"}, "position_embedding_type is 'relative_key_query'"),
        ({"position_embedding_type": None}, "position_embedding_type is None"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"embedding_size": 16}, "embedding_size is 16, wanted 32"),
        *(({"hidden_act": act}, f"hidden_act is {act!r}") for act in ("silu", "quick_gelu", "", None, 3, ["gelu"])),
    ],
)
def test_architectures_that_are_refused_by_name(changes, seen):
    message = refusal(UnsupportedModelError, lambda: EncoderConfig.from_dict(CONFIG | changes, "here/config.json"))
    assert message.startswith("here/config.json: ")
    assert seen in message
    assert ("BERT-family" in message) or ("wanted one of" in message and "gelu_new" in message)


@pytest.mark.parametrize(
    ("act", "computed"),
    [("gelu", "gelu"), ("gelu_new", "gelu_new"), ("gelu_pytorch_tanh", "gelu_new"), ("relu", "relu")],
)
def test_names_of_activations(act, computed):
    assert EncoderConfig.from_dict(CONFIG | {"hidden_act": act}).hidden_act == computed


def test_defaults_and_fields_that_do_not_matter():
    harmless = {"is_decoder": False, "embedding_size": 32, "position_embedding_type": "absolute", "pruned_heads": {}}
    config = EncoderConfig.from_dict(CONFIG | harmless)
    assert config == ENCODER
    assert (config.type_vocab_size, config.layer_norm_eps, config.hidden_act) == (2, 1e-12, "gelu")
    assert config.head_size == 8


def test_the_constructor_takes_no_alias():
    assert "'silu'" in refusal(UnsupportedModelError, lambda: dataclasses.replace(ENCODER, hidden_act="silu"))


@pytest.mark.parametrize(
    "value", [0, -1, True, 32.0, "32", None, [32], 2**31, HUGE], ids=lambda value: f"{value!r:.12}"
)
@pytest.mark.parametrize("name", [*SIZES, "type_vocab_size"])
def test_sizes_that_are_no_sizes(name, value):
    message = refusal(ConfigError, lambda: EncoderConfig.from_dict(CONFIG | {name: value}, "here/config.json"))
    assert message.startswith("here/config.json: ")
    assert f"{name} is {value!r}, wanted a positive integer" in message


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"hidden_size": 33}, "hidden_size is 33, wanted a multiple of num_attention_heads, 4"),
        ({"num_hidden_layers": 1001}, "num_hidden_layers is 1001, wanted at most 1000"),
        *(
            ({"layer_norm_eps": eps}, f"layer_norm_eps is {eps!r}, wanted a number between 0 and 1")
            for eps in (0, -1e-12, 1, float("nan"), float("inf"), HUGE, True, "1e-12", None)
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value!r:.40}",
)
def test_values_that_cannot_be(changes, seen):
    assert seen in refusal(ConfigError, lambda: EncoderConfig.from_dict(CONFIG | changes))


@pytest.mark.parametrize("name", SIZES)
def test_a_missing_field(name):
    values = {key: value for key, value in CONFIG.items() if key != name}
    message = refusal(ConfigError, lambda: EncoderConfig.from_dict(values, "here/config.json"))
    assert message.startswith(f"here/config.json: {name} missing")


def test_all_missing_fields_are_named_at_once():
    message = refusal(ConfigError, lambda: EncoderConfig.from_dict({"model_type": "bert"}))
    assert all(name in message for name in SIZES)


def test_an_encoder_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ENCODER.hidden_size = 64


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_hidden_layers": 2}, ["16 unexpected tensors: encoder.layer.2.", ", ...", "(2 layers, float32)"]),
        ({"num_hidden_layers": 4}, ["16 tensors missing: encoder.layer.3.", ", ...", "(4 layers, float32)"]),
        ({"vocab_size": 100}, ["word_embeddings.weight' is F32 [200, 32], wanted", "[100, 32]"]),
        ({"max_position_embeddings": 128}, ["position_embeddings.weight' is F32 [64, 32], wanted", "[128, 32]"]),
        ({"type_vocab_size": 1}, ["token_type_embeddings.weight' is F32 [2, 32], wanted", "[1, 32]"]),
        ({"hidden_size": 16}, ["word_embeddings.weight' is F32 [200, 32], wanted", "[200, 16]"]),
        ({"intermediate_size": 32}, ["intermediate.dense.weight' is F32 [64, 32], wanted", "[32, 32]"]),
        ({"vocab_size": 2**31 - 1}, ["is F32 [200, 32], wanted", "[2147483647, 32]"]),  # refused before it is allocated
    ],
)
def test_a_configuration_that_does_not_fit_the_tensors(folder, changes, parts):
    edit_json(folder / "config.json", **changes)
    message = refusal(WeightsError, lambda: load_parameters(folder))
    assert str(folder) in message
    assert all(part in message for part in parts)


# --- JSON files and names of files

HOSTILE_JSON = {
    "empty": b"",
    "cut off": b'{"model_type": "bert"',
    "a list nested deep": b"[" * 100_000 + b"]" * 100_000,
    "objects nested deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "an endless number": b'{"a": ' + b"9" * 10_000 + b"}",
    "not UTF-8": b'{"model_type": "b\xffrt"}',
    "UTF-16": '{"model_type": "bert"}'.encode("utf-16"),
    "a pickle": b"\x80\x04}.",
}


@pytest.mark.parametrize("content", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_files_that_are_not_json(folder, content):
    (folder / "config.json").write_bytes(content)
    message = refusal(ConfigError, lambda: EncoderConfig.from_folder(folder))
    assert message.startswith(f"{folder / 'config.json'} is not valid JSON")


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("3", "int"), ('"bert"', "str"), ("null", "NoneType")])
def test_json_of_another_kind(folder, content, kind):
    (folder / "config.json").write_text(content)
    message = refusal(ConfigError, lambda: EncoderConfig.from_folder(folder))
    assert message == f"{folder / 'config.json'} holds a JSON {kind}, wanted a dict"


def test_a_json_file_that_is_too_large(folder):
    with (folder / "config.json").open("ab") as file:
        file.truncate(JSON_LIMIT + 1)
    message = refusal(ConfigError, lambda: EncoderConfig.from_folder(folder))
    assert message == f"{folder / 'config.json'} has {JSON_LIMIT + 1} bytes, wanted at most {JSON_LIMIT}"


def test_reading_a_file_that_is_not_there(tmp_path):
    assert str(tmp_path / "x.json") in refusal(ConfigError, lambda: read_json(tmp_path / "x.json"))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "1_Pooling/../config.json", "..", "{folder}/config.json"]
)
def test_names_that_leave_the_folder(folder, name):
    (folder.parent / "secret").write_text("{}")
    name = name.format(folder=folder)
    message = refusal(ConfigError, lambda: ModelFolder(folder).inside(name))
    assert str(folder) in message
    assert repr(name) in message
    assert "inside the model folder" in message


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "a" * 5000], ids=["NUL", "surrogate", "long"])
def test_names_that_no_file_has(folder, name):
    assert repr(name) in refusal(ConfigError, lambda: ModelFolder(folder).inside(name))


def test_links_that_go_round_in_circles(folder):
    (folder / "loop").symlink_to("loop")
    with pytest.raises((ConfigError, ModelNotFoundError), match="loop"):  # the Python release decides which
        ModelFolder(folder).inside("loop")


@pytest.mark.parametrize("name", ["nothing.json", "1_Pooling", "nowhere/config.json"])
def test_files_that_are_missing(folder, name):
    assert str(folder / name) in refusal(ModelNotFoundError, lambda: ModelFolder(folder).inside(name))


def test_links_out_of_the_folder_are_refused_others_not(folder):
    (folder.parent / "config.json").write_text(json.dumps(CONFIG))
    (folder / "out.json").symlink_to("../config.json")
    (folder / "within.json").symlink_to("config.json")
    assert ModelFolder(folder).inside("within.json") == folder / "within.json"
    assert str(folder.parent / "config.json") in refusal(ConfigError, lambda: ModelFolder(folder).inside("out.json"))


def test_a_folder_that_is_a_link_itself(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert EncoderConfig.from_folder(tmp_path / "link") == EncoderConfig.from_folder(folder)


def hub_cache(root):
    """A folder as the hub's cache lays it out: snapshots/<revision>/config.json -> ../../blobs/<digest>."""
    snapshot = root / "models--a--b" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    blobs = root / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "4567").write_text(json.dumps(CONFIG))
    (snapshot / "config.json").symlink_to(os.path.relpath(blobs / "4567", snapshot))
    return snapshot


@pytest.mark.parametrize("target", ["../../refs", "../../../secret", "../other/config.json"])
def test_the_hubs_cache_beyond_its_blobs(tmp_path, target):
    snapshot = hub_cache(tmp_path)
    (snapshot / "x.json").symlink_to(target)
    assert repr("x.json") in refusal(ConfigError, lambda: ModelFolder(snapshot).inside("x.json"))


# --- PruningPolicy

NO_STAGES = "a non-empty list of (layer, quantile) pairs, layers ascending, quantiles in [0, 1)"
INFINITY, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *(("min_tokens", value, "an integer of at least 1") for value in (0, -1, True, 8.0, "8", None, NAN)),
        *(
            ("quantile", value, "a number in [0, 1)")
            for value in (1, 1.0, -0.01, NAN, INFINITY, -INFINITY, HUGE, -HUGE, True, False, "0.3", None)
        ),
        *(("layer", value, "an integer of at least 0") for value in (-1, True, 2.0, "2", None)),
        *(("score", value, "one of attention") for value in ("", "Attention", "best", None, 3, [])),
        *(("reduce", value, "one of drop, merge") for value in ("", "keep", None, True)),
        *(
            ("max_turn", value, "a number of degrees in (0, 90], or null")
            for value in (0, -1, 90.1, NAN, INFINITY, -INFINITY, HUGE, -HUGE, True, "0.5", [])
        ),
        *(("fitted", value, "a Fitted or None") for value in ({}, "policy.safetensors", 3)),
        *(("protect_special", value, "true or false") for value in (0, 1, "true", None)),
        *(("seed", value, "an integer in [0, 2**32)") for value in (-1, 2**32, True, 1.0, None)),
        *(("provenance", value, "a JSON object") for value in (None, [], "tasks")),
        *(
            ("stages", value, NO_STAGES)
            for value in (
                [],
                (),
                3,
                "12",
                {1: 0.3},
                [1, 0.3],
                [[1]],
                [[1, 0.3, 0.4]],
                ["ab"],
                [[1, 0.2], None],
                [[-1, 0.3]],
                [[True, 0.3]],
                [[1.0, 0.3]],
                [[1, 1.0]],
                [[1, NAN]],
                [[1, True]],
                [[1, HUGE]],
                [[3, 0.2], [1, 0.2]],
                [[1, 0.2], [1, 0.3]],
            )
        ),
    ],
    ids=lambda value: f"{value!r:.25}",
)
def test_fields_of_a_policy_that_are_out_of_range(name, value, wanted):
    message = refusal(PolicyError, lambda: PruningPolicy(**{name: value}))
    assert message.startswith(f"pruning policy: {name} is {value!r}, wanted {wanted}")


@pytest.mark.parametrize(
    "fields",
    [
        {"min_tokens": 1},
        {"quantile": 0},
        {"quantile": 1 - 2**-53},
        {"layer": 0},
        {"seed": 2**32 - 1},
        {"stages": [[0, 0]]},
        {"stages": ((0, 0.1), (5, 0.999))},
    ],
)
def test_fields_at_the_edge_of_their_range(fields):
    policy = PruningPolicy(**fields)
    assert PruningPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_the_defaults_are_the_methods():
    policy = PruningPolicy()
    assert (policy.min_tokens, policy.quantile, policy.layer) == (8, 0.3, 2)
    assert (policy.score, policy.reduce, policy.protect_special) == ("attention", "drop", False)
    assert policy.plan == {2: 0.3}
    assert PruningPolicy(stages=[[1, 0.2], [4, 0]]).plan == {1: 0.2, 4: 0.0}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
quantiles = st.floats(0, 1, exclude_max=True)
policies = st.builds(
    PruningPolicy,
    min_tokens=st.integers(1, 10**6),
    quantile=quantiles | st.just(0),
    layer=st.integers(0, 10**6),
    score=st.sampled_from(["attention", "attention_value", "random", "first"]),
    reduce=st.sampled_from(["drop", "merge"]),
    protect_special=st.booleans(),
    stages=st.none()
    | st.dictionaries(st.integers(0, 99), quantiles, min_size=1, max_size=4).map(lambda plan: sorted(plan.items())),
    seed=st.integers(0, 2**32 - 1),
    provenance=st.dictionaries(st.text(), json_values, max_size=3),
)


@settings(max_examples=25)
@given(policies)
def test_a_policy_survives_a_dict_json_and_a_file(policy):
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "policy.json")
        copies = [
            PruningPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))),
            PruningPolicy.load(f"{folder}/policy.json"),
        ]
    for copy in copies:
        assert copy == policy
        assert hash(copy) == hash(policy)
        assert copy.provenance == policy.provenance
        assert copy.plan == policy.plan


def test_a_policy_file_of_version_1_that_means_the_same():
    values = {"version": 1, "threshold": None, "reduce": "merge", "quantile": 0.2}
    assert PruningPolicy.from_dict(values) == PruningPolicy(reduce="merge", quantile=0.2)


def test_fields_left_out_take_their_defaults():
    assert PruningPolicy.from_dict({}) == PruningPolicy()
    assert PruningPolicy.from_dict({"quantile": 0.5}) == PruningPolicy(quantile=0.5)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"quantil": 0.3, "limit": 1}, ["['limit', 'quantil']", "newer release"]),
        ({"format": "minitrans-classifier"}, ["'minitrans-classifier'", "'minitrans-pruning-policy'"]),
        ({"format": None}, ["None", "'minitrans-pruning-policy'"]),
        ({"version": 3}, ["version is 3", "reads versions 1 and 2"]),
        ({"version": "1"}, ["version is '1'", "reads versions 1 and 2"]),
        ({"version": True}, ["version is True", "reads versions 1 and 2"]),
        ({"version": 1, "threshold": 0.5}, ["threshold is of version 1", "max_turn"]),
        ({"version": 2, "threshold": None}, ["unknown fields ['threshold']"]),
        ({"version": 1, "reduce": "restore", "threshold": None}, ["'restore' of version 1", "adapt again"]),
        ({"max_turn": 5}, ["max_turn is 5 but nothing was fitted for layer 2", "minitrans adapt"]),
        ({"quantile": 2}, ["quantile is 2", "wanted a number in [0, 1)"]),
    ],
)
def test_a_policy_file_that_is_refused(tmp_path, values, parts):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(values))
    message = refusal(PolicyError, lambda: PruningPolicy.load(path))
    assert message.startswith(f"{path}: ")
    assert all(part in message for part in parts)


@pytest.mark.parametrize("content", [*HOSTILE_JSON.values(), b"[]"], ids=[*HOSTILE_JSON, "a list"])
def test_a_policy_file_that_is_broken(tmp_path, content):
    (tmp_path / "policy.json").write_bytes(content)
    assert str(tmp_path / "policy.json") in refusal(PolicyError, lambda: PruningPolicy.load(tmp_path / "policy.json"))


def test_a_policy_file_that_is_not_there(tmp_path):
    assert str(tmp_path / "policy.json") in refusal(PolicyError, lambda: PruningPolicy.load(tmp_path / "policy.json"))


def test_a_policy_is_read_from_an_object_only():
    assert "list" in refusal(PolicyError, lambda: PruningPolicy.from_dict([]))


def test_the_layers_of_the_model_bound_a_policy():
    PruningPolicy(layer=2).check_fits(ENCODER)
    PruningPolicy(layer=99, stages=[[0, 0.1], [2, 0.2]]).check_fits(ENCODER)  # stages take the place of layer
    for policy in (PruningPolicy(layer=3), PruningPolicy(stages=[[0, 0.1], [3, 0.1]])):
        message = refusal(PolicyError, lambda policy=policy: policy.check_fits(ENCODER))
        assert "layer 3 is out of range, the model has layers 0 to 2" in message


@pytest.mark.parametrize("pooling", [("cls",), ("lasttoken",), ("mean", "cls")])
def test_a_pooled_token_has_to_be_protected(pooling):
    PruningPolicy(protect_special=True).check_fits(ENCODER, pooling)
    message = refusal(PolicyError, lambda: PruningPolicy().check_fits(ENCODER, pooling))
    assert pooling[-1] in message
    assert "protect_special=True" in message


def test_poolings_over_all_tokens_need_no_protection():
    PruningPolicy().check_fits(ENCODER, ("mean", "max", "mean_sqrt_len_tokens", "weightedmean"))


def test_a_policy_is_frozen_and_hashed_without_its_provenance():
    policy = PruningPolicy(stages=[[1, 0.3]], provenance={"tasks": ["banking"]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.quantile = 0.5
    assert policy.stages == ((1, 0.3),)
    assert len({policy, PruningPolicy(stages=((1, 0.3),)), PruningPolicy()}) == 2


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "policy.json"
    PruningPolicy(quantile=0.1).save(path)
    with pytest.raises(TypeError):
        PruningPolicy(quantile=0.2, provenance={"model": object()}).save(path)
    assert PruningPolicy.load(path) == PruningPolicy(quantile=0.1)
    assert list(tmp_path.iterdir()) == [path]
