"""What tokens are worth: shifts against a loop that leaves each out, sums that add up, fits of what was planted."""

import dataclasses

import numpy as np
import pytest
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.adaptation.fitting import (
    CENTRED_RIDGE,
    FLOOR,
    LONGEST,
    RIDGE,
    SHORTEST,
    Moments,
    fit,
    token_moments,
)
from minitrans.adaptation.fitting import _moments as moments_of
from minitrans.encoder.forward import Encoded, Start
from minitrans.encoder.packing import pack
from minitrans.errors import InputError
from minitrans.models.parameters import Linear

TEXTS = random_models.texts()
LAYERS = (0, 2)
FIELDS = [field.name for field in dataclasses.fields(Moments)]


@pytest.fixture(scope="module", params=["compiled", "reference"])
def encoder(request, plain):
    try:
        return SentenceEncoder(plain, backend="auto" if request.param == "compiled" else "reference", threads=2)
    except Exception as error:  # no kernels for this machine
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def measured(encoder):
    return {layer: token_moments(encoder, TEXTS, layer) for layer in LAYERS}


def run_on(blocks, hidden, layer):
    """One text, from behind the attention block of a layer to the end."""
    offsets = np.array([0, len(hidden)])
    for number in range(layer, blocks.num_layers):
        if number > layer:
            hidden, _ = blocks.attention_block(hidden, offsets, None, number, None)
        hidden = blocks.feed_forward_block(hidden, offsets, number)
    return hidden


def naive_tokens(encoder, text, layer):
    """[n, H] behind the attention block, [n, H] at the end, [n] how far the embedding moves without each token."""
    ids = np.array(encoder.tokenizer.encode([text]).ids[0])
    offsets = np.array([0, len(ids)])
    blocks = encoder.blocks
    hidden = blocks.embed(ids, offsets)
    for number in range(layer + 1):
        hidden, _ = blocks.attention_block(hidden, offsets, None, number, None)
        if number < layer:
            hidden = blocks.feed_forward_block(hidden, offsets, number)

    def embedding(rows):
        mean = run_on(blocks, rows, layer).mean(axis=0, dtype=np.float64)
        return mean / np.linalg.norm(mean)

    whole = embedding(hidden)
    shifts = [1 - embedding(np.delete(hidden, token, axis=0)) @ whole for token in range(len(ids))]
    return hidden, run_on(blocks, hidden, layer), np.array(shifts)


def assert_close(one, other, tolerance):
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


def test_sums_against_a_loop_that_leaves_each_token_out(encoder, measured):
    for layer in LAYERS:
        width = encoder.config.hidden_size
        total = Moments(
            np.zeros((width, width)),
            np.zeros(width),
            np.zeros((width + 1, width + 1)),
            np.zeros(width + 1),
            np.zeros((width + 1, width)),
        )
        tokens = 0
        for text in TEXTS:
            hidden, final, shifts = naive_tokens(encoder, text, layer)
            if not SHORTEST <= len(hidden) <= LONGEST:
                continue
            tokens += len(hidden)
            log_shift = np.log(np.maximum(shifts, FLOOR))
            hidden = hidden.astype(np.float64)
            centred = hidden - hidden.mean(axis=0)
            ones = np.column_stack([hidden, np.ones(len(hidden))])
            total += Moments(
                centred.T @ centred,
                centred.T @ (log_shift - log_shift.mean()),
                ones.T @ ones,
                ones.T @ (log_shift + 2 * np.log(len(hidden))),
                ones.T @ final,
            )
        assert measured[layer].gram[-1, -1] == tokens > 100
        assert_close(measured[layer], total, 1e-3)


def test_every_shift_is_measured_without_its_own_token(encoder):
    """Not only their sums: one text at a time, the centred regression sees which token a shift belongs to."""
    text = TEXTS[3]
    found = token_moments(encoder, [text], 1)
    hidden, _, shifts = naive_tokens(encoder, text, 1)
    log_shift = np.log(np.maximum(shifts, FLOOR))
    wanted = (hidden - hidden.mean(axis=0)).T @ (log_shift - log_shift.mean())
    np.testing.assert_allclose(found.centred_shift, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())
    mixed = (hidden - hidden.mean(axis=0)).T @ np.roll(log_shift - log_shift.mean(), 1)
    assert np.abs(found.centred_shift - mixed).max() > 0.1 * np.abs(wanted).max()


def test_halves_add_up_to_the_whole(encoder, measured):
    for layer in LAYERS:
        both = token_moments(encoder, TEXTS[:5], layer) + token_moments(encoder, TEXTS[5:], layer)
        assert both.gram[-1, -1] == measured[layer].gram[-1, -1]
        assert_close(both, measured[layer], 1e-6)


def test_the_same_texts_give_the_same_bits(encoder, measured, plain):
    alone = SentenceEncoder(plain, backend=encoder.backend, threads=1)
    for texts, other in ((TEXTS[::-1] + TEXTS, encoder), (TEXTS, alone)):
        for layer in LAYERS:
            again = token_moments(other, texts, layer)
            for name in FIELDS:
                assert np.array_equal(getattr(again, name), getattr(measured[layer], name))


def test_the_pruning_of_the_encoder_plays_no_part(encoder, measured, plain):
    policy = PruningPolicy(min_tokens=2, quantile=0.6, layer=0)
    pruned = token_moments(SentenceEncoder(plain, backend=encoder.backend, pruning=policy), TEXTS, LAYERS[0])
    assert np.array_equal(pruned.gram, measured[LAYERS[0]].gram)


def test_texts_that_are_too_short_or_too_long_are_left_out(encoder):
    length = {n: "the " * (n - 2) for n in (SHORTEST - 1, SHORTEST, LONGEST, LONGEST + 1)}
    assert [len(ids) for ids in encoder.tokenizer.encode(list(length.values())).ids] == list(length)
    found = token_moments(encoder, list(length.values()), 1)
    assert found.gram[-1, -1] == SHORTEST + LONGEST


@pytest.mark.parametrize("texts", [[], [""], ["the", "the " * LONGEST]])
def test_nothing_to_learn_from(encoder, texts):
    with pytest.raises(InputError, match=rf"none of {len(texts)} texts has {SHORTEST} to {LONGEST} tokens"):
        token_moments(encoder, texts, LAYERS[0])


# Texts and blocks


# Fits


def made_moments(hidden, log_shift, final, lengths):
    """As `token_moments` sums up texts of these lengths, of which so much is known."""
    batch = pack([[0] * n for n in lengths])
    full = Encoded(batch, final.astype(np.float32), batch.offsets, None, np.arange(len(hidden)))
    return moments_of(Start(0, hidden.astype(np.float32)), full, np.exp(log_shift).astype(np.float32))


def planted(seed, width=7, texts=80, noise=0.0):
    """Hidden states, a scorer and a map, and what they say of the hidden states."""
    random = np.random.default_rng(seed)
    lengths = random.integers(SHORTEST, LONGEST + 1, texts)
    hidden = random.standard_normal((lengths.sum(), width)) * 0.5 + random.standard_normal(width)
    scorer, bias = random.standard_normal(width), -3.0
    square = Linear(random.standard_normal((width, width)), random.standard_normal(width))
    each = np.repeat(lengths, lengths)
    score = hidden @ scorer + bias + noise * random.standard_normal(len(hidden))
    return hidden, lengths, scorer, bias, score - 2 * np.log(each), square


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_what_was_planted_is_found(seed):
    hidden, lengths, scorer, bias, log_shift, square = planted(seed)
    log_shift = np.maximum(log_shift, np.log(FLOOR))
    final = hidden @ square.weight.T + square.bias
    moments = {3: made_moments(hidden, log_shift, final, lengths)}
    by_threshold, by_rank = fit("model", moments, by_threshold=True), fit("model", moments)
    assert sorted(by_threshold.scorers) == sorted(by_threshold.restore) == sorted(by_rank.scorers) == [3]
    assert by_rank.model == "model"

    def cosine(found):
        return found[0] @ scorer / np.linalg.norm(found[0]) / np.linalg.norm(scorer)

    if log_shift.min() > np.log(FLOOR):  # else the floor bends the line
        assert cosine(by_rank.scorers[3].weight) > 0.99
        np.testing.assert_allclose(by_threshold.scorers[3].weight[0], scorer, rtol=0, atol=0.05 * np.abs(scorer).max())
        seen = hidden @ by_threshold.scorers[3].weight[0] + by_threshold.scorers[3].bias[0]
        assert np.corrcoef(seen, hidden @ scorer + bias)[0, 1] > 0.999
    assert by_rank.scorers[3].bias.tolist() == [0]
    restored = hidden @ by_threshold.restore[3].weight.T + by_threshold.restore[3].bias
    np.testing.assert_allclose(restored, final, rtol=0, atol=0.02 * np.abs(final).max())


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2))
def test_a_rank_does_not_see_what_all_tokens_of_a_text_share(seed, size):
    hidden, lengths, _, _, log_shift, square = planted(seed, texts=20, noise=0.3)
    log_shift = np.clip(log_shift, -8, 0)
    random = np.random.default_rng(seed)
    by_text = np.repeat(random.uniform(-1, 1, len(lengths)) * size, lengths)
    place = np.repeat(random.standard_normal((len(lengths), hidden.shape[1])), lengths, axis=0)
    final = hidden @ square.weight.T
    one = fit("", {0: made_moments(hidden, log_shift, final, lengths)})
    other = fit("", {0: made_moments(hidden + size * place, log_shift + by_text, final, lengths)})
    np.testing.assert_allclose(other.scorers[0].weight, one.scorers[0].weight, rtol=0, atol=2e-4)


@given(st.floats(-4, 4))
@settings(max_examples=20)
def test_the_intercept_is_not_penalised(shift):
    """A constant added to every target moves the bias and nothing else, however strong the ridge is."""
    hidden, lengths, _, _, log_shift, square = planted(5, texts=20)
    log_shift = np.clip(log_shift, -10, -5)
    final = hidden @ square.weight.T
    fits = [
        fit("", {0: made_moments(hidden, log_shift + more, final + more, lengths)}, by_threshold=True)
        for more in (0.0, shift)
    ]
    for kind in ("scorers", "restore"):
        one, other = (getattr(found, kind)[0] for found in fits)
        np.testing.assert_allclose(other.weight, one.weight, rtol=0, atol=1e-4)
        np.testing.assert_allclose(other.bias, one.bias + shift, rtol=0, atol=1e-3)


def test_fits_are_ridge_regressions_over_all_tokens():
    """Against the normal equations written with the tokens themselves."""
    hidden, lengths, _, _, log_shift, square = planted(9, texts=12, noise=0.5)
    log_shift = np.clip(log_shift, -12, 0)
    hidden = hidden.astype(np.float32).astype(np.float64)
    moments = {0: made_moments(hidden, log_shift, hidden @ square.weight.T, lengths)}
    each = np.repeat(np.arange(len(lengths)), lengths)
    means = np.stack([hidden[each == text].mean(axis=0) for text in range(len(lengths))])[each]
    x, y = hidden - means, log_shift - np.array([log_shift[each == text].mean() for text in range(len(lengths))])[each]
    penalty = CENTRED_RIDGE * np.square(x).sum(axis=0).mean() * np.eye(x.shape[1])
    np.testing.assert_allclose(
        fit("", moments).scorers[0].weight[0], np.linalg.solve(x.T @ x + penalty, x.T @ y), rtol=1e-3, atol=1e-5
    )
    x, y = hidden - hidden.mean(axis=0), log_shift + 2 * np.log(lengths[each])
    penalty = RIDGE * np.square(x).sum(axis=0).mean() * np.eye(x.shape[1])
    wanted = np.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean()))
    found = fit("", moments, by_threshold=True).scorers[0]
    np.testing.assert_allclose(found.weight[0], wanted, rtol=1e-3, atol=1e-5)
    assert found.bias[0] == pytest.approx(y.mean() - hidden.mean(axis=0) @ wanted, abs=1e-3)


def test_fitted_arrays_are_ready_for_the_kernels(encoder, measured):
    for by_threshold in (False, True):
        fitted = fit(encoder.identity.weights, measured, by_threshold)
        assert fitted.width == encoder.config.hidden_size
        for linear in (*fitted.scorers.values(), *fitted.restore.values()):
            assert linear.weight.dtype == linear.bias.dtype == np.float32
            assert linear.weight.flags.c_contiguous
        assert fit(encoder.identity.weights, measured, by_threshold) == fitted


@pytest.mark.filterwarnings("ignore::minitrans.errors.PruningWarning")  # texts of other lengths too
@pytest.mark.parametrize("by_threshold", [False, True])
def test_fitted_policies_run_and_rank_better_than_chance(encoder, by_threshold):
    """On the texts that they were fitted to, tokens with a larger shift get a larger score."""
    fitted = fit(encoder.identity.weights, {1: token_moments(encoder, TEXTS, 1)}, by_threshold)
    policy = PruningPolicy(min_tokens=3, quantile=0.4, layer=1, score="learned", reduce="restore", fitted=fitted)
    assert np.isfinite(encoder.encode(TEXTS, pruning=policy)).all()
    correlations = []
    for text in TEXTS:
        hidden, _, shifts = naive_tokens(encoder, text, 1)
        if SHORTEST <= len(hidden) <= LONGEST:
            scores = hidden @ policy.scorer(1).weight[0]
            correlations.append(np.corrcoef(scores, np.log(np.maximum(shifts, FLOOR)))[0, 1])
    assert np.mean(correlations) > 0.2
