"""The trace: what it keeps of a run is what the run did, whatever the backend, the precision and the policy."""

from itertools import pairwise, product

import golden_files
import numpy as np
import pytest
from fitted_policies import fitted_to
from hypothesis import given
from hypothesis import strategies as st

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.encoder.forward import forward
from minitrans.encoder.packing import pack, segments
from minitrans.encoder.selection import merge, rank, select
from minitrans.explain.trace import Trace, reference_blocks, trace

TEXTS = ["where is the parcel that i ordered", "", "hello", "a b c d e f g h i j k l m n o p"]
KINDS = {
    "none": lambda encoder: None,
    "attention": lambda encoder: PruningPolicy(min_tokens=3, quantile=0.4, layer=1),
    "protected": lambda encoder: PruningPolicy(min_tokens=3, quantile=0.7, layer=1, protect_special=True),
    "value": lambda encoder: PruningPolicy(min_tokens=2, quantile=0.8, layer=0, score="attention_value"),
    "turn": lambda encoder: fitted_to(
        encoder, min_tokens=2, quantile=0.8, layer=0, score="learned", max_turn=20, protect_special=True
    ),
    "merge twice": lambda encoder: PruningPolicy(min_tokens=3, stages=((0, 0.3), (2, 0.4)), reduce="merge"),
    "learned, restore": lambda encoder: fitted_to(
        encoder, min_tokens=3, quantile=0.5, layer=1, score="learned", reduce="restore"
    ),
}


@pytest.fixture(scope="module", params=product(["float32", "int8"], ["auto", "reference"]), ids=" ".join)
def encoder(request, plain):
    precision, backend = request.param
    return SentenceEncoder(plain, precision=precision, backend=backend)


@pytest.fixture(params=KINDS)
def policy(request, encoder):
    return KINDS[request.param](encoder)


def observed(encoder, batch, policy):
    seen = Trace(reference_blocks(encoder), policy)
    with encoder.blocks.session():
        result = forward(encoder.blocks, batch, policy, observer=seen)
    return seen.layers, result


def test_the_run_is_the_same_with_a_trace(encoder, policy):
    batch = encoder.tokenize(TEXTS)
    layers, result = observed(encoder, batch, policy)
    with encoder.blocks.session():
        alone = forward(encoder.blocks, batch, policy)
    assert [layer.layer for layer in layers] == [-1, 0, 1, 2]
    for mine, other in ((result.hidden, alone.hidden), (layers[-1].hidden, alone.hidden)):
        assert np.array_equal(mine, other)
    assert np.array_equal(layers[-1].rows, alone.rows)
    assert np.array_equal(layers[-1].offsets, alone.offsets)
    assert np.array_equal(layers[-1].sizes, np.ones(len(alone.rows)) if alone.sizes is None else alone.sizes)


def test_attention_is_a_distribution_its_mean_the_importance(encoder, policy):
    layers, _ = observed(encoder, encoder.tokenize(TEXTS), policy)
    assert layers[0].attention == ()
    assert len(layers[0].importance) == 0
    for before, layer in pairwise(layers):
        assert np.array_equal(layer.entered, before.rows)
        lengths = np.diff(before.offsets)
        assert [each.shape for each in layer.attention] == [(4, n, n) for n in lengths]
        for text, attention in zip(segments(before.offsets), layer.attention, strict=True):
            np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=0, atol=1e-5)
            np.testing.assert_allclose(attention.mean(axis=(0, 1)), layer.importance[text], rtol=1e-6)
            assert layer.importance[text].sum() == pytest.approx(1, abs=1e-5)


def test_importance_is_what_the_backend_ranked_by(encoder):
    for score, tolerance in (("attention", 2e-5), ("attention_value", None)):
        layers, _ = observed(encoder, encoder.tokenize(TEXTS), PruningPolicy(min_tokens=3, layer=1, score=score))
        stage = layers[2].stage
        difference = np.abs(stage.scores / layers[2].importance - 1).max()
        assert difference <= tolerance if tolerance else difference > 0.01


def test_a_stage_is_the_selection_of_the_run(encoder, policy):
    layers, _ = observed(encoder, encoder.tokenize(TEXTS), policy)
    staged = {layer.layer for layer in layers if layer.stage is not None}
    assert staged == (set() if policy is None else set(policy.plan))
    for before, layer in pairwise(layers):
        stage = layer.stage
        if stage is None:
            assert np.array_equal(layer.entered, layer.rows)
            continue
        assert np.array_equal(layer.entered[stage.kept], layer.rows)
        assert sorted([*stage.kept, *stage.dropped]) == list(range(len(layer.entered)))
        assert (stage.target is not None) == (policy.reduce == "merge")
        if stage.target is not None:
            assert np.array_equal(stage.target[stage.kept], np.arange(len(stage.kept)))
            counted = np.zeros(len(layer.rows), np.float32)
            np.add.at(counted, stage.target, before.sizes)
            np.testing.assert_array_equal(counted, layer.sizes)
        for b, text in enumerate(segments(before.offsets)):
            rows = np.arange(text.start, text.stop)
            gone = np.isin(rows, stage.dropped)
            guard = policy.protect_special * 1
            inner = rows[guard : len(rows) - guard]
            earned = stage.scores[np.intersect1d(inner, stage.kept)]
            assert np.isnan(stage.threshold[b]) == (not gone.any())
            if gone.any():
                assert stage.threshold[b] == earned.min() >= stage.scores[rows[gone]].max()


def test_each_text_alone_is_its_part_of_the_batch(encoder, policy):
    batch = encoder.tokenize(TEXTS)
    together, _ = observed(encoder, batch, policy)
    alone = trace(encoder, TEXTS, pruning=policy)
    embeddings = encoder.encode(TEXTS, pruning=policy)
    for b, one in enumerate(alone):
        begin = batch.offsets[b]
        assert np.array_equal(one.batch.ids, batch.ids[begin : batch.offsets[b + 1]])
        assert np.array_equal(one.embedding, embeddings[b])
        for layer, whole in zip(one.layers, together, strict=True):
            rows = slice(*whole.offsets[b : b + 2])
            assert np.array_equal(layer.hidden, whole.hidden[rows])
            assert np.array_equal(layer.rows + begin, whole.rows[rows])
            if layer.layer >= 0:
                np.testing.assert_allclose(layer.attention[0], whole.attention[b], rtol=0, atol=1e-6)
            if layer.stage is not None:
                entered = np.isin(whole.entered, np.arange(begin, batch.offsets[b + 1]))
                assert np.array_equal(layer.stage.scores, whole.stage.scores[entered])
                np.testing.assert_array_equal(layer.stage.threshold[0], whole.stage.threshold[b])


def test_a_trace_keeps_copies(encoder):
    seen = Trace(reference_blocks(encoder))

    def spoil(layer, state, selection):
        seen(layer, state, selection)
        kept = seen.layers[-1].hidden.copy()
        state.hidden[:] = 0
        assert np.array_equal(seen.layers[-1].hidden, kept)
        assert kept.any()
        state.hidden[:] = kept

    with encoder.blocks.session():
        forward(encoder.blocks, encoder.tokenize(TEXTS), observer=spoil)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_attention_is_that_of_the_oracle(random_folder, backend):
    """The golden importance is transformers' own attention, averaged: the trace's is the same at every layer."""
    golden = golden_files.load("plain")
    encoder = SentenceEncoder(random_folder("plain"), backend=backend)
    layers, _ = observed(encoder, pack([golden.ids[a:b] for a, b in pairwise(golden.offsets)]), None)
    for layer, wanted in zip(layers[1:], golden.importance, strict=True):
        np.testing.assert_allclose(layer.importance, wanted, rtol=1e-4)


@pytest.fixture(scope="module")
def reference_encoder(plain):
    return SentenceEncoder(plain, backend="reference")


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    quantile=st.floats(0, 0.99),
    least=st.integers(1, 12),
    merges=st.booleans(),
)
def test_hidden_states_follow_from_the_records(reference_encoder, lengths, quantile, least, merges):
    """Whoever has the records of a layer can redo its pruning with the NumPy definition."""
    encoder = reference_encoder
    batch = pack([[2, *range(60, 60 + n), 3] for n in lengths])
    policy = PruningPolicy(min_tokens=least, quantile=quantile, layer=1, reduce="merge" if merges else "drop")
    layers, _ = observed(encoder, batch, policy)
    before, layer = layers[1], layers[2]
    blocks = encoder.blocks
    with blocks.session():
        hidden, _ = blocks.attention_block(before.hidden, before.offsets, None, 1, None)
        ranking = rank(policy, 1, layer.stage.scores, batch, layer.entered, before.offsets)
        left, selection, _ = select(hidden, before.offsets, ranking)
        if merges:
            left, _, selection = merge(hidden, None, before.offsets, selection)
            assert np.array_equal(selection.target, layer.stage.target)
        assert np.array_equal(selection.kept, layer.stage.kept)
        np.testing.assert_allclose(
            blocks.feed_forward_block(left, selection.offsets, 1), layer.hidden, rtol=0, atol=1e-5
        )
