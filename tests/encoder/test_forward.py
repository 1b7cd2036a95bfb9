"""The layer loop: its order, its observer, its bookkeeping, and what it says of NaN."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import random_models
from fitted_policies import fitted_to, random_fitted

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.encoder.blocks import Tapped
from minitrans.encoder.forward import Start, forward, start_behind
from minitrans.encoder.packing import pack, segments
from minitrans.encoder.pooling import pool, pool_encoded
from minitrans.encoder.selection import merge, rank, select
from minitrans.errors import NumericalError
from minitrans.models.parameters import Linear
from minitrans.models.sentence import PoolingConfig

FITTED = random_fitted("whatever model", 32)
BATCH = pack([[2, 100, 101, 102, 103, 104, 105, 3], [2, 3], [2, *range(60, 90), 3], [2, 50, 51, 3]])
POLICIES = {
    "unpruned": None,
    "attention": PruningPolicy(min_tokens=3, quantile=0.4, layer=1),
    "attention value": PruningPolicy(min_tokens=3, quantile=0.4, layer=1, score="attention_value"),
    "merge": PruningPolicy(min_tokens=3, quantile=0.4, layer=0, reduce="merge"),
    "two stages": PruningPolicy(min_tokens=3, stages=((0, 0.3), (2, 0.4)), score="random"),
    "two stages of merging": PruningPolicy(min_tokens=3, stages=((0, 0.3), (2, 0.4)), reduce="merge"),
    "max_turn": PruningPolicy(min_tokens=3, quantile=0.9, layer=1, score="learned", max_turn=20, fitted=FITTED),
    "protected": PruningPolicy(min_tokens=1, quantile=0.9, layer=1, protect_special=True),
    "learned": PruningPolicy(min_tokens=3, quantile=0.4, layer=1, score="learned", fitted=FITTED),
    "restore": PruningPolicy(min_tokens=3, quantile=0.4, layer=1, reduce="restore", fitted=FITTED),
    "all of it": PruningPolicy(
        min_tokens=3, stages=((1, 0.5), (2, 0.9)), score="learned", reduce="restore", fitted=FITTED
    ),
}


@pytest.fixture(scope="module", params=product(["float32", "int8"], ["auto", "reference"]), ids=" ".join)
def blocks(request, plain):
    precision, backend = request.param
    blocks = SentenceEncoder(plain, precision=precision, backend=backend).blocks
    with blocks.session():
        yield blocks


@pytest.fixture(params=POLICIES.values(), ids=POLICIES)
def policy(request):
    return request.param


def run_by_hand(blocks, batch, policy):
    """The loop written out from the contract of the blocks; yields hidden, sizes, rows and offsets per layer."""
    hidden, sizes = blocks.embed(batch.ids, batch.offsets), None
    rows, offsets = np.arange(len(batch.ids)), batch.offsets
    yield hidden, sizes, rows, offsets
    for layer in range(blocks.num_layers):
        quantile = policy.plan.get(layer) if policy else None
        want = policy.score if quantile is not None else None
        hidden, scores = blocks.attention_block(hidden, offsets, sizes, layer, want)
        if quantile is not None:
            left, selection, _ = select(hidden, offsets, rank(policy, layer, scores, batch, rows, offsets))
            if policy.reduce == "merge":
                left, sizes, _ = merge(hidden, sizes, offsets, selection)
            hidden = left
            rows, offsets = rows[selection.kept], selection.offsets
        hidden = blocks.feed_forward_block(hidden, offsets, layer)
        yield hidden, sizes, rows, offsets


def equal(one, other):
    return one is other if one is None or other is None else np.array_equal(one, other)


def test_forward_composes_the_blocks(blocks, policy):
    *_, (hidden, sizes, rows, offsets) = run_by_hand(blocks, BATCH, policy)
    result = forward(blocks, BATCH, policy)
    assert result.batch is BATCH
    assert equal(result.hidden, hidden)
    assert equal(result.sizes, sizes)
    assert equal(result.rows, rows)
    assert equal(result.offsets, offsets)


def test_observer_sees_every_layer_and_changes_nothing(blocks, policy):
    seen = []
    result = forward(blocks, BATCH, policy, observer=lambda *arguments: seen.append(arguments))
    assert [layer for layer, _, _ in seen] == [-1, 0, 1, 2]
    for (layer, state, selection), wanted in zip(seen, run_by_hand(blocks, BATCH, policy), strict=True):
        for array, other in zip((state.hidden, state.sizes, state.rows, state.offsets), wanted, strict=True):
            assert equal(array, other)
        assert (selection is not None) == (policy is not None and layer in policy.plan)
        if selection is not None:
            assert np.array_equal(selection.offsets, state.offsets)
            assert (selection.target is not None) == (policy.reduce == "merge")
    unobserved = forward(blocks, BATCH, policy)
    for field in ("hidden", "sizes", "rows", "offsets"):
        assert equal(getattr(result, field), getattr(unobserved, field))


def test_positions_and_rows(blocks, policy):
    result = forward(blocks, BATCH, policy)
    assert len(result.rows) == len(result.positions) == len(result.hidden) == result.offsets[-1]
    for b, text in enumerate(segments(result.offsets)):
        begin, end = BATCH.offsets[b : b + 2]
        assert result.positions[text].tolist() == [row - begin for row in result.rows[text]]
        assert (np.diff(result.rows[text]) > 0).all()
        assert ((result.rows[text] >= begin) & (result.rows[text] < end)).all()
    if policy is None:
        assert result.rows.tolist() == list(range(len(BATCH.ids)))


def test_sizes_count_every_token_once(blocks):
    result = forward(blocks, BATCH, POLICIES["two stages of merging"])
    sums = [result.sizes[text].sum() for text in segments(result.offsets)]
    assert sums == np.diff(BATCH.offsets).tolist()


# Beginning later


def test_a_later_start_gives_the_same_bits(blocks, policy):
    first = 2 if policy is None else min(policy.plan)
    for layer in range(first + 1):
        want = policy.score if policy is not None and layer == first else None
        start = start_behind(blocks, BATCH, layer, want)
        before = start.hidden.copy()
        layers = []
        result = forward(blocks, BATCH, policy, lambda n, *_, layers=layers: layers.append(n), start)
        wanted = forward(blocks, BATCH, policy)
        for field in ("hidden", "sizes", "rows", "offsets", "restored"):
            assert equal(getattr(result, field), getattr(wanted, field)), field
        assert layers == list(range(layer, 3))
        assert np.array_equal(start.hidden, before)


def test_a_start_with_fewer_rows_is_a_batch_of_its_own(blocks):
    whole = forward(blocks, BATCH)
    begin, end = BATCH.offsets[2:4]
    alone = pack([BATCH.ids[begin:end].tolist()])
    result = forward(blocks, alone, start=Start(1, start_behind(blocks, BATCH, 1).hidden[begin:end]))
    assert np.array_equal(result.hidden, whole.hidden[begin:end])


def test_a_tap_changes_nothing_and_is_shown_every_block(blocks, policy):
    seen = []
    tapped = Tapped(blocks, lambda *shown: seen.append(shown))
    assert (tapped.name, tapped.info(), tapped.num_layers) == (blocks.name, blocks.info(), blocks.num_layers)
    wanted = forward(blocks, BATCH, policy)
    with tapped.session(), tapped.chunk(len(BATCH.ids), 0) as inside:
        result = forward(inside, BATCH, policy)
    for field in ("hidden", "sizes", "rows", "offsets", "restored"):
        assert equal(getattr(result, field), getattr(wanted, field)), field
    prunes = {} if policy is None else policy.plan
    steps = [["attention_block", *(["select"] if n in prunes else []), "feed_forward_block"] for n in range(3)]
    assert [block for block, _, _ in seen] == ["embed", *(block for layer in steps for block in layer)]
    for block, arguments, shown in seen:
        again = getattr(blocks, block)(*arguments)
        assert equal(again[0] if isinstance(again, tuple) else again, shown[0] if isinstance(shown, tuple) else shown)


# What dropped tokens leave behind


def restored_by_hand(blocks, policy):
    """[B, H] in float64: every dropped row through the map of its layer, from a run that only drops."""
    wanted = np.zeros((len(BATCH.offsets) - 1, 32))
    offsets, rows = BATCH.offsets, np.arange(len(BATCH.ids))
    selections = {}
    forward(blocks, BATCH, policy, lambda layer, state, selection: selections.update({layer: selection}))
    hidden = blocks.embed(BATCH.ids, offsets)
    for layer in range(blocks.num_layers):
        hidden, _ = blocks.attention_block(hidden, offsets, None, layer, None)
        if layer in policy.plan:
            kept = selections[layer].kept
            for row in set(range(len(hidden))) - set(kept.tolist()):
                text = np.searchsorted(BATCH.offsets, rows[row], side="right") - 1
                linear = policy.restore_map(layer)
                wanted[text] += linear.weight.astype(np.float64) @ hidden[row] + linear.bias
            hidden, offsets, rows = hidden[kept], selections[layer].offsets, rows[kept]
        hidden = blocks.feed_forward_block(hidden, offsets, layer)
    return wanted, hidden, offsets


@pytest.mark.parametrize("name", ["restore", "all of it"])
def test_restored_tokens(blocks, name):
    policy = POLICIES[name]
    restored, hidden, offsets = restored_by_hand(blocks, policy)
    result = forward(blocks, BATCH, policy)
    assert result.restored.dtype == np.float32
    np.testing.assert_allclose(result.restored, restored, rtol=1e-5, atol=1e-4)
    assert np.array_equal(result.restored[1], np.zeros(32))  # two tokens: none went
    assert result.restored[2].any()
    lengths = np.diff(BATCH.offsets)
    means = np.stack([hidden[text].mean(axis=0, dtype=np.float64) for text in segments(offsets)])
    sums = means * lengths[:, None] + restored
    for modes, divisor in ((("mean",), lengths), (("mean_sqrt_len_tokens",), np.sqrt(lengths))):
        pooled = pool_encoded(result, PoolingConfig(modes))
        np.testing.assert_allclose(pooled, sums / divisor[:, None], rtol=1e-5, atol=1e-5)
    assert np.array_equal(pool_encoded(result, PoolingConfig(("cls",))), hidden[offsets[:-1]])


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ("restore", "all of it")])
def test_nothing_is_restored_unless_asked_for(blocks, name):
    assert forward(blocks, BATCH, POLICIES[name]).restored is None


def test_scores_that_are_not_numbers_are_reported(blocks):
    huge = {layer: Linear(np.resize(np.float32([3e38, -3e38]), (1, 32)), np.zeros(1, np.float32)) for layer in (0, 1)}
    policy = PruningPolicy(layer=1, min_tokens=3, score="learned", fitted=dataclasses.replace(FITTED, scorers=huge))
    with (
        np.errstate(all="ignore"),
        pytest.raises(NumericalError, match="the policy's scores at layer 1 are not numbers"),
    ):
        forward(blocks, BATCH, policy)


# Nothing to encode


@pytest.mark.parametrize("texts", [[], [[]], [[], [], []], [[60], [], [61, 62, 63, 64, 65], []]], ids=str)
def test_texts_without_tokens(blocks, policy, texts):
    """Only a tokenizer without special tokens gives one."""
    batch = pack(texts, 0, 0)
    result = forward(blocks, batch, policy)
    assert result.hidden.shape == (result.offsets[-1], 32)
    assert len(result.offsets) == len(texts) + 1
    assert [n == 0 for n in np.diff(result.offsets)] == [not ids for ids in texts]
    for b, ids in enumerate(texts):
        if ids:
            alone = forward(blocks, pack([ids], 0, 0), policy).hidden
            assert np.array_equal(result.hidden[result.offsets[b] : result.offsets[b + 1]], alone)


def test_encode_with_a_tokenizer_without_special_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = random_models.write_model(tmp_path / "model", random_models.find_spec("plain"))
    tokens = random_models.vocabulary(random_models.find_spec("plain"))
    bare = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.save(str(folder / "tokenizer.json"))
    random_models.edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    encoder = SentenceEncoder(folder)
    assert (encoder.tokenizer.prefix, encoder.tokenizer.suffix) == (0, 0)
    texts = ["the", "", "the to my", " "]
    vectors = encoder.encode(texts)
    assert not vectors[[1, 3]].any()
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal(encoder.encode(text), vector)
    assert [tokens.shape for tokens in encoder.encode(texts, output_value="token_embeddings")] == [
        (1, 32),
        (0, 32),
        (3, 32),
        (0, 32),
    ]
    assert encoder.pruned_tokens("")[0].tokens == []


# NaN

HUGE = np.float32(3e38)


def break_embeddings(tensors):
    tensors["embeddings.word_embeddings.weight"][:] = HUGE
    tensors["embeddings.token_type_embeddings.weight"][:] = HUGE


def break_attention(tensors):
    tensors["encoder.layer.1.attention.output.dense.weight"][:] = HUGE


def break_feed_forward(tensors):
    tensors["encoder.layer.1.output.dense.weight"][:] = HUGE


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (break_embeddings, "the embeddings"),
        (break_attention, "the attention block of layer 1"),
        (break_feed_forward, "the feed-forward block of layer 1"),
    ],
)
@pytest.mark.parametrize("policy", [None, PruningPolicy(min_tokens=1, layer=0)], ids=["unpruned", "pruned"])
def test_numerical_error_names_the_place(tmp_path, damage, place, policy):
    spec = random_models.find_spec("plain")
    tensors = random_models.write_tensors(spec)
    damage(tensors)
    encoder = SentenceEncoder(random_models.write_model(tmp_path, spec, tensors))
    with pytest.raises(NumericalError, match=f"^NaN or infinity came out of {place}; the weights are finite but"):
        encoder.encode("play music", pruning=policy)


def test_encoded_is_frozen(blocks):
    with pytest.raises(dataclasses.FrozenInstanceError):
        forward(blocks, BATCH).hidden = None


def test_encode_is_forward_and_pooling(plain):
    encoder = SentenceEncoder(plain)
    texts = random_models.texts()[:3]
    policy = POLICIES["merge"]
    result = forward(encoder.blocks, pack(encoder.tokenizer.encode(texts).ids), policy)
    vectors = pool(result.hidden, result.offsets, encoder.pooling, result.sizes, result.positions)
    assert np.array_equal(encoder.encode(texts, pruning=policy), vectors)
    policy = fitted_to(encoder, min_tokens=3, quantile=0.5, layer=0, score="learned", reduce="restore")
    result = forward(encoder.blocks, pack(encoder.tokenizer.encode(texts).ids), policy)
    assert np.array_equal(encoder.encode(texts, pruning=policy), pool_encoded(result, encoder.pooling))
