"""The package against the golden files: every layer, every score, every kept row, every vector."""

from itertools import pairwise

import golden_files
import numpy as np
import pytest
import random_models

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.encoder.forward import forward
from minitrans.encoder.packing import pack
from minitrans.errors import BackendError

HIDDEN_BAR = 1e-4  # largest difference of any value of a hidden state
SCORE_BAR = 1e-4  # relative
UNIT_BAR = 2e-6  # largest difference of any value of a pooled vector of length 1
POLICIES = 10  # in every file

MINILM = golden_files.MINILM
NAMES = [pytest.param(MINILM, marks=pytest.mark.float32), *(spec.name for spec in random_models.SPECS)]


def test_there_is_a_golden_file_of_every_model():
    assert golden_files.names() == sorted([MINILM, *(spec.name for spec in random_models.SPECS)])


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return golden_files.load(request.param)


@pytest.fixture(scope="module")
def folder(golden, request, random_folder):
    return request.getfixturevalue("float32_folder") if golden.spec is None else random_folder(golden.name)


@pytest.fixture(scope="module", params=["reference", "compiled"])
def encoder(request, folder):
    try:
        encoder = SentenceEncoder(folder, backend=request.param)
    except BackendError as error:
        pytest.skip(str(error))
    with encoder.blocks.session():  # `forward` alone would let BLAS threads fight over products this small
        yield encoder


@pytest.fixture(scope="module")
def batch(golden):
    return pack([golden.ids[begin:end] for begin, end in pairwise(golden.offsets)])


def test_weights_are_the_recorded_ones(golden, folder):
    assert random_models.weights_sha256(folder) == golden.weights_sha256
    assert golden.spec is None or golden.spec == random_models.find_spec(golden.name)


def test_token_ids(golden, encoder):
    ids = encoder.tokenizer.encode(golden.texts).ids
    assert [i for text in ids for i in text] == golden.ids.tolist()
    assert np.cumsum([0, *map(len, ids)]).tolist() == golden.offsets.tolist()


def test_every_layer(golden, encoder, batch):
    states = []
    result = forward(encoder.blocks, batch, observer=lambda layer, state, _: states.append((layer, state.hidden)))
    assert [layer for layer, _ in states] == list(range(-1, encoder.blocks.num_layers))
    assert len(states) == len(golden.hidden)
    full = golden.offsets[golden.full_texts]
    for (layer, hidden), wanted in zip(states, golden.hidden, strict=True):
        np.testing.assert_allclose(hidden[:full], wanted, rtol=0, atol=HIDDEN_BAR, err_msg=f"after layer {layer}")
    assert np.array_equal(result.hidden, states[-1][1])
    assert np.array_equal(result.offsets, golden.offsets)


@pytest.mark.parametrize(("score", "field"), [("attention", "importance"), ("attention_value", "importance_value")])
def test_importance_at_every_layer(golden, encoder, batch, score, field):
    hidden = encoder.blocks.embed(batch.ids, batch.offsets)
    for layer, wanted in enumerate(getattr(golden, field)):
        hidden, scores = encoder.blocks.attention_block(hidden, batch.offsets, None, layer, want=score)
        np.testing.assert_allclose(scores, wanted, rtol=SCORE_BAR, err_msg=f"layer {layer}")
        hidden = encoder.blocks.feed_forward_block(hidden, batch.offsets, layer)


def test_pooled(golden, encoder):
    assert len(golden.runs) == POLICIES
    units = encoder.encode(golden.texts, normalize_embeddings=True)
    np.testing.assert_allclose(units, golden.unit, rtol=0, atol=UNIT_BAR)
    if not encoder.pooling.normalize:
        np.testing.assert_allclose(encoder.encode(golden.texts), golden.pooled, rtol=0, atol=HIDDEN_BAR)


@pytest.mark.parametrize("index", range(POLICIES))
def test_pruned(golden, encoder, batch, index):
    run = golden.runs[index]
    policy = PruningPolicy(**run.policy)
    seen = {}  # layer -> (scores, rows, offsets) of a stage

    def observe(layer, state, selection):
        if selection is not None:
            seen[layer] = selection.scores, state.rows, state.offsets

    result = forward(encoder.blocks, batch, policy, observe)

    assert list(seen) == [stage.layer for stage in run.stages]
    for stage in run.stages:
        scores, rows, offsets = seen[stage.layer]
        ranked = np.isfinite(stage.scores)  # protected rows have no score there
        np.testing.assert_allclose(scores[ranked], stage.scores[ranked], rtol=SCORE_BAR)
        assert np.array_equal(rows, stage.rows)
        assert np.array_equal(offsets, stage.offsets)
    assert np.array_equal(result.rows, run.rows)
    assert np.array_equal(result.offsets, run.offsets)
    assert np.array_equal(np.ones(len(run.rows)) if result.sizes is None else result.sizes, run.sizes)
    full = run.offsets[golden.full_texts]
    np.testing.assert_allclose(result.hidden[:full], run.hidden, rtol=0, atol=HIDDEN_BAR)

    units = encoder.encode(golden.texts, normalize_embeddings=True, pruning=policy)
    np.testing.assert_allclose(units, run.unit, rtol=0, atol=UNIT_BAR)


def test_bundled_int8_model_stays_close_to_the_float32_one(no_network):
    golden = golden_files.load(MINILM)
    encoder = SentenceEncoder()
    assert encoder.precision == "int8"
    cosines = (encoder.encode(golden.texts) * golden.unit).sum(axis=1)
    assert cosines.min() >= 0.995
