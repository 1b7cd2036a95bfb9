"""Fitted policies: their two files, arrays that lie or break, and models that they do not fit."""

import dataclasses
import hashlib
import json
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import random_models
from fitted_policies import fitted_to, random_fitted
from hypothesis import given
from hypothesis import strategies as st
from random_models import write_safetensors

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.encoder.fitted import Fitted
from minitrans.encoder.policy_files import arrays_of, shipped_policies
from minitrans.errors import PolicyError
from minitrans.models.config import EncoderConfig
from minitrans.models.parameters import Linear

WIDTH = 6
CONFIG = EncoderConfig(
    vocab_size=50, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8,
    max_position_embeddings=16,
)  # fmt: skip
MODEL = "ab" * 32
FITTED = random_fitted(MODEL, WIDTH)
BOTH = {"score": "learned", "reduce": "restore", "layer": 1}


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain)


def refusal(call):
    with pytest.raises(PolicyError) as caught:
        call()
    return str(caught.value)


def linear(outputs, width, value=0.5, dtype=np.float32):
    return Linear(np.full((outputs, width), value, dtype), np.full(outputs, value, dtype))


# Two files


fitted_arrays = st.builds(
    random_fitted,
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.integers(1, 9),
    st.lists(st.integers(0, 9999), min_size=1, max_size=3, unique=True),
    st.integers(0, 2**32 - 1),
)


@given(
    fitted_arrays,
    st.sampled_from(["learned", "attention", "first"]),
    st.sampled_from(["restore", "drop", "merge"]),
    st.none() | st.floats(0.1, 90),
    st.booleans(),
)
def test_a_fitted_policy_survives_its_files(fitted, score, reduce, max_turn, several):
    layers = sorted(fitted.scorers)
    stages = [(layer, 0.3) for layer in layers] if several else None
    max_turn = max_turn if score == "learned" and not (several and len(layers) > 1) else None
    policy = PruningPolicy(layer=layers[0], stages=stages, score=score, reduce=reduce, max_turn=max_turn, fitted=fitted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "policy.json"
        policy.save(path)
        names = {"policy.json", f"policy-{policy.fitted.sha256[:16]}.safetensors"}
        assert {file.name for file in path.parent.iterdir()} == names
        loaded = PruningPolicy.load(str(path))
        digest = hashlib.sha256(arrays_of(path).read_bytes()).hexdigest()
        first = path.read_bytes(), arrays_of(path).read_bytes()
        loaded.save(path)
        assert (path.read_bytes(), arrays_of(path).read_bytes()) == first
    assert loaded == policy
    assert hash(loaded) == hash(policy)
    assert loaded.fitted.sha256 == policy.fitted.sha256 == digest == json.loads(first[0])["fitted"]["sha256"]
    for name in ("scorers", "restore", "turns"):
        held, wanted = getattr(loaded.fitted, name), getattr(fitted, name)
        assert sorted(held) == sorted(wanted)
        for layer in held:
            assert np.array_equal(held[layer].weight, wanted[layer].weight)
            assert np.array_equal(held[layer].bias, wanted[layer].bias)


def test_a_policy_without_arrays_is_one_file(tmp_path):
    PruningPolicy().save(tmp_path / "policy.json")
    assert [file.name for file in tmp_path.iterdir()] == ["policy.json"]


def test_a_file_by_the_name_of_its_arrays_is_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    assert str(path) in refusal(lambda: PruningPolicy(fitted=FITTED, **BOTH).save(path))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "policy.json"
    PruningPolicy(fitted=FITTED, **BOTH).save(path)
    return path


def test_arrays_that_are_missing(saved):
    arrays_of(saved).unlink()
    message = refusal(lambda: PruningPolicy.load(saved))
    assert str(arrays_of(saved)) in message
    assert "two files, copy both" in message


def test_arrays_that_are_a_folder(saved):
    arrays_of(saved).unlink()
    arrays_of(saved).mkdir()
    assert str(arrays_of(saved)) in refusal(lambda: PruningPolicy.load(saved))


def test_arrays_of_another_policy(saved):
    other = random_fitted(MODEL, WIDTH, seed=1)
    other.save(arrays_of(saved))
    message = refusal(lambda: PruningPolicy.load(saved))
    assert str(arrays_of(saved)) in message
    assert other.sha256 in message
    assert FITTED.sha256 in message


@given(st.data())
def test_any_damaged_byte_is_noticed(data):
    content = FITTED._bytes
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.safetensors"
        path.write_bytes(damaged)
        assert "sha256" in refusal(lambda: Fitted.load(path, MODEL, FITTED.sha256))


def load_bytes(path, content):
    path.write_bytes(content)
    return Fitted.load(path, MODEL, hashlib.sha256(content).hexdigest())


@given(st.integers(0, 2000) | st.none(), st.binary(max_size=200))
def test_arrays_that_were_never_whole(cut, content):
    """Their digest is right, for whoever writes a file can write its digest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.safetensors"
        content = content if cut is None else FITTED._bytes[: min(cut, len(FITTED._bytes) - 1)]
        assert "is not safetensors" in refusal(lambda: load_bytes(path, content))


def header_only(size, header=b"{}"):
    return struct.pack("<Q", size) + header


@pytest.mark.parametrize(
    "content",
    [
        header_only(2**63),
        header_only(2**64 - 1),
        header_only(10**8),
        header_only(2, b"[]"),
        header_only(4, b"null"),
        header_only(60, b'{"layer.0.scorer.weight":{"dtype":"F32","shape":[1,6]}}'.ljust(60)),
        header_only(100_000, b'{"a":' * 20_000),
    ],
    ids=["2**63", "2**64 - 1", "10**8", "list", "null", "no offsets", "deep"],
)
def test_headers_that_lie(tmp_path, content):
    assert "is not safetensors" in refusal(lambda: load_bytes(tmp_path / "policy.safetensors", content))


def load_tensors(tmp_path, changes, dtype="float32"):
    tensors = {
        "layer.1.scorer.weight": np.ones((1, WIDTH), np.float32),
        "layer.1.scorer.bias": np.ones(1, np.float32),
        "layer.1.restore.weight": np.ones((WIDTH, WIDTH), np.float32),
        "layer.1.restore.bias": np.ones(WIDTH, np.float32),
    }
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    path = tmp_path / "policy.safetensors"
    write_safetensors(path, tensors, dtype=dtype)
    return Fitted.load(path, MODEL, hashlib.sha256(path.read_bytes()).hexdigest())


SCORER, RESTORE = "layer.1.scorer.weight", "layer.1.restore.weight"
ONES = np.ones((WIDTH, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        *(
            ({name: np.ones(1, np.float32)}, [repr(name), "wanted layer.<n>"])
            for name in (
                "scorer.weight",
                "layer.01.scorer.weight",
                "layer.-1.scorer.weight",
                "layer.1.scorer.scale",
                "layer.1.other.weight",
                "layer.99999.scorer.weight",
                "layer.1.scorer.weight\n",
                "",
            )
        ),
        ({SCORER: None}, ["lacks its weight or its bias"]),
        ({"layer.1.scorer.bias": None}, ["lacks its weight or its bias"]),
        ({"layer.2.restore.bias": ONES[0]}, ["lacks its weight or its bias"]),
        ({SCORER: ONES[:1, :4]}, ["[4, 6]", "one width"]),
        ({SCORER: ONES[:2]}, ["layer 1, scorer is float32 [2, 6]", "wanted float32 [1, H]"]),
        ({SCORER: ONES[0]}, ["layer 1, scorer is float32 [6]"]),
        ({SCORER: ONES[0, 0]}, ["layer 1, scorer is float32 []"]),
        ({SCORER: ONES[:1, :0], RESTORE: None, "layer.1.restore.bias": None}, ["layer 1, scorer is float32 [1, 0]"]),
        ({"layer.1.scorer.bias": ONES[0]}, ["layer 1, scorer", "and float32 [6], wanted"]),
        ({"layer.1.scorer.bias": ONES[0, 0]}, ["layer 1, scorer", "and float32 [], wanted"]),
        ({SCORER: np.ones((1, WIDTH), np.float64)}, ["layer 1, scorer is float64 [1, 6]"]),
        ({SCORER: np.ones((1, WIDTH), np.int8)}, ["layer 1, scorer is int8 [1, 6]"]),
        ({"layer.1.scorer.bias": np.ones(1, np.int32)}, ["and int32 [1], wanted"]),
        ({RESTORE: ONES[:5]}, ["layer 1, restore is float32 [5, 6]", "wanted float32 [6, H]"]),
        ({RESTORE: ONES[0, 0]}, ["layer 1, restore is float32 []"]),
        ({"layer.1.restore.bias": ONES[0, :5]}, ["layer 1, restore", "and float32 [5]"]),
        *(
            ({SCORER: ONES[:1] * np.float32(bad)}, ["layer 1, scorer holds NaN or infinity"])
            for bad in (np.nan, np.inf)
        ),
        ({"layer.1.restore.bias": ONES[0] * np.float32(np.nan)}, ["layer 1, restore holds NaN or infinity"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else f"{next(iter(value))!r:.30}",
)
def test_arrays_that_are_refused(tmp_path, changes, parts):
    message = refusal(lambda: load_tensors(tmp_path, changes))
    assert message.startswith(str(tmp_path / "policy.safetensors"))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_arrays_of_half_precision_are_refused(tmp_path, dtype):
    assert str(tmp_path) in refusal(lambda: load_tensors(tmp_path, {}, dtype))


def test_arrays_that_are_fine_load(tmp_path):
    assert load_tensors(tmp_path, {}).width == WIDTH


@pytest.mark.parametrize(
    "fitted",
    [
        True,
        3,
        "model",
        [],
        {},
        {"model": MODEL},
        {"sha256": FITTED.sha256},
        {"model": 3, "sha256": FITTED.sha256},
        {"model": MODEL, "sha256": None},
        {"model": [MODEL], "sha256": FITTED.sha256},
    ],
    ids=repr,
)
def test_a_description_of_arrays_that_is_none(saved, fitted):
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"fitted": fitted}))
    message = refusal(lambda: PruningPolicy.load(saved))
    assert message.startswith(f"{saved}: fitted is ")
    assert "wanted an object of model and sha256" in message


def test_a_dict_with_arrays_needs_their_file():
    values = PruningPolicy(fitted=FITTED, **BOTH).to_dict()
    assert "PruningPolicy.load" in refusal(lambda: PruningPolicy.from_dict(values))


@pytest.mark.parametrize(
    ("fields", "name"), [({"score": "learned"}, "score is 'learned'"), ({"reduce": "restore"}, "reduce is 'restore'")]
)
def test_arrays_that_a_policy_needs(tmp_path, fields, name):
    half = Fitted(MODEL, {1: FITTED.scorers[1]}, {1: FITTED.restore[1]})
    for more, layer in (({}, 2), ({"fitted": half}, 2), ({"fitted": half, "stages": [[0, 0.1], [1, 0.2]]}, 0)):
        message = refusal(lambda more=more: PruningPolicy(**fields, **more))
        assert message.startswith(f"pruning policy: {name} but nothing was fitted for layer {layer};")
        assert "minitrans adapt" in message
    (tmp_path / "policy.json").write_text(json.dumps(fields))
    message = refusal(lambda: PruningPolicy.load(tmp_path / "policy.json"))
    assert message.startswith(f"{tmp_path / 'policy.json'}: {name}")


def test_a_save_that_fails_leaves_the_old_policy(saved):
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}
    other = PruningPolicy(fitted=random_fitted(MODEL, WIDTH, seed=2), provenance={"date": object()}, **BOTH)
    with pytest.raises(TypeError):
        other.save(saved)
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before


# Values


def test_policies_with_equal_arrays_are_equal():
    policy = PruningPolicy(fitted=FITTED, **BOTH)
    same = PruningPolicy(fitted=random_fitted(MODEL, WIDTH), **BOTH)
    others = [
        PruningPolicy(fitted=random_fitted(MODEL, WIDTH, seed=1), **BOTH),
        PruningPolicy(fitted=random_fitted("cd" * 32, WIDTH), **BOTH),
        dataclasses.replace(policy, max_turn=5.0),
        dataclasses.replace(policy, score="attention"),
    ]
    assert policy == same
    assert len({policy, same, *others}) == 5
    assert all(other != policy for other in others)
    assert FITTED != "something else"


def test_pickled_policies_are_equal():
    policy = PruningPolicy(fitted=FITTED, max_turn=7.5, **BOTH)
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy
    assert hash(copy) == hash(policy)
    assert np.array_equal(copy.scorer(1).weight, policy.scorer(1).weight)


def test_only_what_a_policy_needs():
    stages = ((0, 0.1), (2, 0.2))
    learned = PruningPolicy(stages=stages, score="learned", fitted=FITTED)
    restore = PruningPolicy(stages=stages, reduce="restore", fitted=FITTED)
    assert (sorted(learned.needed(FITTED).scorers), learned.needed(FITTED).restore) == ([0, 2], {})
    assert (restore.needed(FITTED).scorers, sorted(restore.needed(FITTED).restore)) == ({}, [0, 2])
    turning = dataclasses.replace(learned, stages=None, layer=1, max_turn=4)
    assert (learned.needed(FITTED).turns, sorted(turning.needed(FITTED).turns)) == ({}, [1])
    assert PruningPolicy().needed(FITTED) is None
    assert learned.needed(FITTED).model == MODEL


def test_maps_of_the_layers():
    policy = PruningPolicy(fitted=FITTED, **BOTH)
    assert policy.scorer(1) is FITTED.scorers[1]
    assert policy.restore_map(1) is FITTED.restore[1]
    assert policy.turn_map(1) is FITTED.turns[1]


@pytest.mark.parametrize("lay_out", [np.asfortranarray, lambda array: np.repeat(array, 2, axis=-1)[..., ::2]])
def test_arrays_however_they_lie_in_memory(encoder, lay_out):
    policy = fitted_to(encoder, min_tokens=3, **BOTH)

    def changed(linears):
        return {layer: Linear(lay_out(linear.weight), lay_out(linear.bias)) for layer, linear in linears.items()}

    maps = (changed(each) for each in (policy.fitted.scorers, policy.fitted.restore, policy.fitted.turns))
    other = Fitted(encoder.identity.weights, *maps)
    same = dataclasses.replace(policy, fitted=other)
    assert same == policy
    texts = random_models.texts()
    assert np.array_equal(encoder.encode(texts, pruning=same), encoder.encode(texts, pruning=policy))


def test_a_pickled_encoder_keeps_its_policy(encoder, plain):
    policy = fitted_to(encoder, min_tokens=3, **BOTH)
    mine = SentenceEncoder(plain, pruning=policy)
    copy = pickle.loads(pickle.dumps(mine))
    assert copy.pruning == policy
    assert np.array_equal(copy.encode(random_models.texts()), mine.encode(random_models.texts()))


# Models that it does not fit


def test_another_model_is_refused_with_the_remedy(encoder, plain, random_folder):
    policy = fitted_to(encoder, **BOTH)
    assert SentenceEncoder(plain, precision="int8", pruning=policy).identity.weights == encoder.identity.weights
    for make in (
        lambda: SentenceEncoder(random_folder("float16"), pruning=policy),
        lambda: SentenceEncoder(random_folder("float16")).encode("help", pruning=policy),
    ):
        message = refusal(make)
        assert f"the weights {encoder.identity.weights[:12]}, this one has " in message
        assert "`minitrans adapt`" in message


def test_another_width_is_refused(random_folder, encoder):
    message = refusal(lambda: SentenceEncoder(random_folder("odd_sizes"), pruning=fitted_to(encoder, **BOTH)))
    assert "hidden states of 32 numbers, this model has 24" in message
    PruningPolicy(fitted=FITTED, **BOTH).check_fits(CONFIG)
    assert "of 6 numbers" in refusal(
        lambda: PruningPolicy(fitted=FITTED, **BOTH).check_fits(dataclasses.replace(CONFIG, hidden_size=8))
    )


def test_the_weights_are_checked_where_they_are_given():
    policy = PruningPolicy(fitted=FITTED, **BOTH)
    policy.check_fits(CONFIG, ("mean",), MODEL)
    assert "fitted for a model with the weights" in refusal(lambda: policy.check_fits(CONFIG, ("mean",), "cd" * 32))
    PruningPolicy().check_fits(CONFIG, ("mean",), "cd" * 32)


@pytest.mark.parametrize("pooling", [("max",), ("mean", "weightedmean"), ("lasttoken", "max")])
def test_restored_tokens_cannot_enter_every_pooling(pooling):
    policy = PruningPolicy(fitted=FITTED, protect_special=True, **BOTH)
    message = refusal(lambda: policy.check_fits(CONFIG, pooling))
    assert pooling[-1] in message
    assert "use reduce='drop'" in message
    dataclasses.replace(policy, reduce="drop").check_fits(CONFIG, pooling)
    policy.check_fits(CONFIG, ("mean", "cls", "mean_sqrt_len_tokens"))


def test_an_encoder_that_pools_the_maximum_restores_nothing(tmp_path, encoder):
    spec = dataclasses.replace(random_models.find_spec("plain"), pooling="max")
    folder = random_models.write_model(tmp_path / "model", spec)
    assert "'restore'" in refusal(lambda: SentenceEncoder(folder, pruning=fitted_to(encoder, **BOTH)))


# By name


@pytest.mark.parametrize("name", ["", "no-such-policy", "../policy", "attention", "inherit"])
def test_names_that_no_policy_has(plain, name):
    for make in (lambda: PruningPolicy.named(name), lambda: SentenceEncoder(plain, pruning=name)):
        message = refusal(make)
        assert repr(name) in message
        assert "PruningPolicy.load" in message
        assert all(repr(known) in message for known in shipped_policies())


def test_no_policy_at_all_travels_with_a_broken_installation(monkeypatch, tmp_path):
    from minitrans.encoder import policy_files

    monkeypatch.setattr(policy_files, "SHIPPED", "weights/nowhere")
    assert shipped_policies() == ()
    assert "PruningPolicy.load" in refusal(lambda: PruningPolicy.named("balanced"))


def test_a_policy_by_its_name(monkeypatch, tmp_path, encoder, plain):
    from minitrans.encoder import policy_files

    folder = tmp_path / "shipped"
    wanted = {"fast": fitted_to(encoder, quantile=0.6, min_tokens=3, **BOTH), "plain": PruningPolicy(min_tokens=3)}
    for name, one in wanted.items():
        one.save(folder / f"{name}.json")
    shipped = policy_files.SHIPPED
    monkeypatch.setattr(policy_files, "bundled", lambda relative: tmp_path / relative.replace(shipped, "shipped"))
    assert shipped_policies() == ("fast", "plain")
    assert "'default', 'fast' or 'plain'" in refusal(lambda: PruningPolicy.named("slow"))
    text = random_models.texts()[3]
    for name, one in wanted.items():
        assert PruningPolicy.named(name) == one
        named = SentenceEncoder(plain, pruning=name)
        assert named.pruning == one
        vector = encoder.encode(text, pruning=one)
        assert np.array_equal(named.encode(text), vector)
        assert np.array_equal(encoder.encode(text, pruning=name), vector)
        assert not np.array_equal(encoder.encode(text), vector)


def test_the_default_as_far_as_it_fits(random_folder):
    for name, wanted in (("plain", {}), ("one_layer", {"layer": 0}), ("cls_pooling", {"protect_special": True})):
        encoder = SentenceEncoder(random_folder(name))
        policy = PruningPolicy.default_for(encoder.config, encoder.pooling.modes)
        assert policy == PruningPolicy(**({"layer": min(2, encoder.config.num_hidden_layers - 1)} | wanted))
        assert np.isfinite(encoder.encode("a b c d e f g h i j", pruning=policy)).all()


def test_a_name_is_read_once_and_default_is_one():
    assert PruningPolicy.named("default") == PruningPolicy()
    for name in shipped_policies():
        assert PruningPolicy.named(name) is PruningPolicy.named(name)


def test_the_policies_that_travel_along_run():
    for name in shipped_policies():
        vectors = SentenceEncoder(pruning=name).encode(["play music", "is there a fee for the exchange of cash? " * 3])
        assert np.isfinite(vectors).all()
