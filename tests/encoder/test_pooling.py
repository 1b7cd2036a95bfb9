"""Pooling: the six modes against a plain formula, and what modules.json may say."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_models import edit_json, find_spec, write_model

from minitrans.encoder.pooling import normalized, pool
from minitrans.errors import ConfigError, ModelNotFoundError, UnsupportedModelError
from minitrans.models.sentence import PoolingConfig

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
LEGACY_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
LENGTHS = (1, 4, 0, 9, 2)

WIDTH = find_spec("plain").hidden_size


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", find_spec("plain"))


def refusal(error, folder):
    """The message of the error that reading the folder raises."""
    with pytest.raises(error) as caught:
        PoolingConfig.from_folder(folder, WIDTH)
    assert type(caught.value) is error
    return str(caught.value)


def naive(rows, mode, sizes, positions):
    """One text, one number at a time: rows are lists of floats."""
    if not rows:
        return None
    columns = list(zip(*rows, strict=True))
    if mode == "cls":
        return list(rows[0])
    if mode == "lasttoken":
        return list(rows[-1])
    if mode == "max":
        return [max(column) for column in columns]
    weights = [
        size * (position + 1 if mode == "weightedmean" else 1) for size, position in zip(sizes, positions, strict=True)
    ]
    total = math.fsum(weights)
    below = math.sqrt(total) if mode == "mean_sqrt_len_tokens" else total
    return [math.fsum(x * w for x, w in zip(column, weights, strict=True)) / below for column in columns]


def naive_pool(hidden, offsets, config, sizes, positions):
    """Text after text: [B][H * modes]."""
    vectors = []
    for begin, end in pairwise(offsets):
        rows = hidden[begin:end].tolist()
        text_sizes = [1.0] * len(rows) if sizes is None else sizes[begin:end].tolist()
        text_positions = list(range(len(rows))) if positions is None else positions[begin:end].tolist()
        vector = []
        for mode in config.modes:
            vector += naive(rows, mode, text_sizes, text_positions) or [0.0] * hidden.shape[1]
        if config.normalize:
            length = math.sqrt(math.fsum(x * x for x in vector))
            vector = [x / length if length else 0.0 for x in vector]
        vectors.append(vector)
    return vectors


def batch(lengths=LENGTHS, width=6, seed=0):
    """Hidden rows, offsets, sizes and positions of a pruned batch."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    hidden = random.standard_normal((offsets[-1], width)).astype(np.float32)
    sizes = random.integers(1, 5, offsets[-1]).astype(np.float32)
    kept = [np.sort(random.permutation(2 * n)[:n]) for n in lengths]  # half of the tokens are left
    return hidden, offsets, sizes, np.concatenate(kept)


# --- the formula


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize("with_sizes", [False, True])
@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), ("mean", "cls"), ("lasttoken", "max"), MODES])
def test_every_mode_against_a_plain_formula(modes, with_sizes, with_positions, normalize):
    hidden, offsets, sizes, positions = batch()
    config = PoolingConfig(modes, normalize)
    options = (config, sizes if with_sizes else None, positions if with_positions else None)
    seen = pool(hidden, offsets, *options)
    assert (seen.dtype, seen.shape) == (np.float32, (len(LENGTHS), 6 * len(modes)))
    np.testing.assert_allclose(seen, naive_pool(hidden, offsets, *options), rtol=1e-5, atol=1e-6)
    assert not seen[2].any()  # the text without tokens


def test_two_modes_worked_out_by_hand():
    hidden = np.array([[1, -2], [3, -4], [5, 6]], np.float32)
    offsets = np.array([0, 2, 3])
    seen = pool(hidden, offsets, PoolingConfig(("mean", "max")))
    np.testing.assert_array_equal(seen, [[2, -3, 3, -2], [5, 6, 5, 6]])
    weighted = pool(hidden, offsets, PoolingConfig(("weightedmean",)), positions=np.array([0, 2, 4]))
    np.testing.assert_allclose(weighted, [[(1 + 9) / 4, (-2 - 12) / 4], [5, 6]], rtol=1e-6)
    merged = pool(hidden, offsets, PoolingConfig(("mean_sqrt_len_tokens",)), sizes=np.array([3, 1, 4], np.float32))
    np.testing.assert_allclose(merged, [[3, -5], [10, 12]], rtol=1e-6)


def test_no_texts_and_texts_of_nothing():
    empty = np.empty((0, 6), np.float32)
    assert pool(empty, np.array([0]), PoolingConfig()).shape == (0, 6)
    seen = pool(empty, np.array([0, 0, 0]), PoolingConfig(MODES, normalize=True))
    np.testing.assert_array_equal(seen, np.zeros((2, 36), np.float32), strict=True)


def test_the_input_stays_as_it_was():
    arguments = batch()
    before = [array.copy() for array in arguments]
    hidden, offsets, sizes, positions = arguments
    pool(hidden, offsets, PoolingConfig(MODES, normalize=True), sizes, positions)
    for array, copy in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_normalisation():
    vectors = np.array([[3, 4], [0, 0], [1e-20, 0]], np.float32)
    np.testing.assert_allclose(normalized(vectors)[:2], [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(normalized(vectors)).all()
    np.testing.assert_allclose(np.linalg.norm(normalized(batch()[0]), axis=1), 1, rtol=1e-6)


@given(st.data())
def test_a_text_depends_on_itself_alone(data):
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    width = data.draw(st.integers(1, 20))
    _, offsets, sizes, positions = batch(lengths, seed=data.draw(st.integers(0, 99)))
    hidden = data.draw(arrays(np.float32, (int(offsets[-1]), width), elements=st.floats(-1e3, 1e3, width=32)))
    config = PoolingConfig(tuple(data.draw(st.permutations(MODES))), data.draw(st.booleans()))
    if data.draw(st.booleans()):
        sizes = None
    if data.draw(st.booleans()):
        positions = None
    whole = pool(hidden, offsets, config, sizes, positions)
    for b in range(len(lengths)):
        rows = slice(offsets[b], offsets[b + 1])
        own_sizes = None if sizes is None else sizes[rows].copy()
        own_positions = None if positions is None else positions[rows].copy()
        alone = pool(hidden[rows].copy(), np.array([0, lengths[b]]), config, own_sizes, own_positions)
        assert alone[0].tobytes() == whole[b].tobytes()


# --- what a folder says


def set_modules(folder, *kinds, package="sentence_transformers.models"):
    """modules.json with modules of these kinds, as path and type."""
    modules = [{"idx": i, "path": path, "type": f"{package}.{kind}"} for i, (kind, path) in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))


TRANSFORMER, POOLING, NORMALIZE = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")


@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), ("cls", "mean"), ("max", "mean", "lasttoken"), MODES])
@pytest.mark.parametrize("style", ["legacy", "string", "list"])
def test_modes_under_every_style_of_keys(folder, modes, style):
    if style == "legacy":
        values = {key: mode in modes for mode, key in LEGACY_KEYS.items()} | {"word_embedding_dimension": 32}
    else:
        values = {"pooling_mode": "+".join(modes) if style == "string" else modes, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    assert PoolingConfig.from_folder(folder, WIDTH) == PoolingConfig(modes, normalize=True)


@pytest.mark.parametrize("package", ["sentence_transformers.models", "sentence_transformers.base.modules.any"])
def test_normalisation_is_a_module(folder, package):
    set_modules(folder, TRANSFORMER, POOLING, package=package)
    assert PoolingConfig.from_folder(folder, WIDTH) == PoolingConfig(("mean",), normalize=False)
    set_modules(folder, TRANSFORMER, POOLING, NORMALIZE, package=package)
    assert PoolingConfig.from_folder(folder, WIDTH) == PoolingConfig(("mean",), normalize=True)


def test_without_modules_it_is_the_mean(folder):
    (folder / "modules.json").unlink()
    (folder / "1_Pooling" / "config.json").unlink()
    assert PoolingConfig.from_folder(folder, WIDTH) == PoolingConfig(("mean",), normalize=False)


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm", "Asym", "Router", "StaticEmbedding", "CNN", ""])
def test_a_module_that_is_not_computed(folder, kind):
    set_modules(folder, TRANSFORMER, POOLING, (kind, "2_More"))
    message = refusal(UnsupportedModelError, folder)
    assert message.startswith(f"{folder / 'modules.json'}: module {kind!r} is not supported, wanted Transformer")


@pytest.mark.parametrize("kinds", [(), (TRANSFORMER,)])
def test_no_pooling(folder, kinds):
    set_modules(folder, *kinds)
    assert (
        refusal(UnsupportedModelError, folder) == f"{folder / 'modules.json'}: there is no Pooling module, wanted one"
    )


def test_prompts_that_are_not_pooled(folder):
    edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
    message = refusal(UnsupportedModelError, folder)
    assert message.startswith(f"{folder / '1_Pooling' / 'config.json'}: include_prompt=false is not supported")


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (dict.fromkeys(LEGACY_KEYS.values(), False), "[]"),
        ({"pooling_mode": "median"}, "['median']"),
        ({"pooling_mode": "mean+median"}, "['mean', 'median']"),
        ({"pooling_mode": ""}, "['']"),
        ({"pooling_mode": []}, "[]"),
        ({"pooling_mode": ["mean", 3]}, "['mean', 3]"),
        ({"pooling_mode": ["mean", "cls", "mean"]}, "['mean', 'cls', 'mean']"),
        ({"pooling_mode": [["mean"]]}, "[['mean']]"),
        ({"pooling_mode": {"mean": True}}, "{'mean': True}"),
        ({"pooling_mode": True}, "True"),
    ],
)
def test_modes_that_are_none(folder, values, seen):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    message = refusal(ConfigError, folder)
    assert message.startswith(f"{folder / '1_Pooling' / 'config.json'}: pooling is {seen}, wanted some of cls")


@pytest.mark.parametrize(
    "module",
    [3, None, "Pooling", [], {}, {"type": 3, "path": ""}, {"type": "Pooling", "path": None}, {"path": "1_Pooling"}],
)
def test_modules_that_are_none(folder, module):
    (folder / "modules.json").write_text(json.dumps([module]))
    message = refusal(ConfigError, folder)
    assert message.startswith(f"{folder / 'modules.json'} holds {module!r}, wanted a list of objects with a 'type'")


@pytest.mark.parametrize(("content", "seen"), [("{}", "holds a JSON dict"), ("[" * 100_000, "not valid JSON")])
def test_a_list_of_modules_that_is_broken(folder, content, seen):
    (folder / "modules.json").write_text(content)
    message = refusal(ConfigError, folder)
    assert message.startswith(str(folder / "modules.json"))
    assert seen in message


@pytest.mark.parametrize("path", ["../outside", "/etc", "1_Pooling/../../outside", "a\0b", "{outside}"])
def test_a_pooling_outside_the_folder(folder, path):
    outside = folder.parent / "outside"
    (folder / "1_Pooling").rename(outside)
    path = path.format(outside=outside)
    set_modules(folder, TRANSFORMER, ("Pooling", path))
    message = refusal(ConfigError, folder)
    assert str(folder) in message
    assert f"{path!r}, wanted one inside the model folder" in message


def test_a_pooling_that_is_missing(folder):
    (folder / "1_Pooling" / "config.json").unlink()
    assert str(folder / "1_Pooling" / "config.json") in refusal(ModelNotFoundError, folder)


def test_a_pooling_without_modes_is_the_mean(folder):
    (folder / "1_Pooling" / "config.json").write_text("{}")
    assert PoolingConfig.from_folder(folder, WIDTH).modes == ("mean",)


@pytest.mark.parametrize("key", ["word_embedding_dimension", "embedding_dimension"])
def test_a_pooling_of_another_width(folder, key):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean", key: WIDTH + 1}))
    assert f"the embeddings are {WIDTH + 1} wide, wanted {WIDTH}" in refusal(ConfigError, folder)


@pytest.mark.parametrize("kinds", [["Normalize"], ["Normalize", "Pooling"], ["Pooling", "Pooling"]])
def test_modules_out_of_place(folder, kinds):
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": "" if kind == "Transformer" else "1_Pooling"}
        for kind in ["Transformer", *kinds]
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "is out of place, wanted Transformer, Pooling, Normalize" in refusal(UnsupportedModelError, folder)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e19, 1e30, 3e37]))
def test_long_vectors_are_normalised_too(seed, length):
    vectors = np.random.default_rng(seed).standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(normalized(vectors * np.float32(length)), normalized(vectors), rtol=1e-5, atol=1e-6)
