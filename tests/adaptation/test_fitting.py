"""What tokens are worth: shifts against a loop that leaves each out, sums that add up, fits of what was planted."""

import dataclasses
import random

import numpy as np
import pytest
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.adaptation import fitting
from minitrans.adaptation.fitting import (
    FLOOR,
    LONGEST,
    RESTORE_RIDGE,
    RIDGE,
    SAMPLED,
    SHARES,
    SHORTEST,
    Moments,
    UnforeseenTurnError,
    calibrated,
    can_measure,
    fit,
    token_moments,
)
from minitrans.adaptation.fitting import _drawn as drawn
from minitrans.adaptation.fitting import _fitting as cut
from minitrans.adaptation.fitting import _moments as moments_of
from minitrans.encoder.forward import Encoded, Start
from minitrans.encoder.packing import pack, segments
from minitrans.encoder.selection import TOP
from minitrans.errors import InputError
from minitrans.evaluation.fidelity import turns

TEXTS = random_models.texts()
LAYERS = (0, 2)
FIELDS = [field.name for field in dataclasses.fields(Moments)]


def made_texts(seed, count):
    """Texts of 6 to some 50 tokens, about as many of each length on a logarithmic scale."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(random_models.WORDS, k=int(2 ** draw.uniform(2, 5.5)))) for _ in range(count)]


@pytest.fixture(scope="module", params=["compiled", "reference"])
def encoder(request, plain):
    try:
        return SentenceEncoder(plain, backend="auto" if request.param == "compiled" else "reference", threads=2)
    except Exception as error:  # no kernels for this machine
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def quick(plain):
    """One encoder where the backend does not matter."""
    return SentenceEncoder(plain, threads=1)


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


def behind_attention(encoder, ids, layer):
    """[n, H] of one text."""
    offsets, blocks = np.array([0, len(ids)]), encoder.blocks
    hidden = blocks.embed(ids, offsets)
    for number in range(layer + 1):
        hidden, _ = blocks.attention_block(hidden, offsets, None, number, None)
        if number < layer:
            hidden = blocks.feed_forward_block(hidden, offsets, number)
    return hidden


def naive_tokens(encoder, ids, layer):
    """[n, H] behind the attention block, [n, H] at the end, [n] how far the embedding moves without each token."""
    hidden = behind_attention(encoder, ids, layer)

    def embedding(rows):
        mean = run_on(encoder.blocks, rows, layer).mean(axis=0, dtype=np.float64)
        return mean / np.linalg.norm(mean)

    whole = embedding(hidden)
    shifts = [1 - embedding(np.delete(hidden, token, axis=0)) @ whole for token in range(len(ids))]
    return hidden.astype(np.float64), run_on(encoder.blocks, hidden, layer).astype(np.float64), np.array(shifts)


def ids_of(encoder, texts):
    return [np.array(ids) for ids in encoder.tokenizer.encode(list(texts)).ids]


def assert_close(one, other, tolerance):
    for name in FIELDS:
        a, b = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


# Measuring


def test_sums_against_a_loop_that_leaves_tokens_out(encoder, measured):
    for layer in LAYERS:
        sums, lengths = [], []
        for ids in ids_of(encoder, TEXTS):
            if len(ids) < SHORTEST:
                continue
            hidden, final, shifts = naive_tokens(encoder, ids, layer)
            ones, some = np.column_stack([hidden, np.ones(len(ids))]), drawn(pack([ids]))
            worth = np.log(np.maximum(shifts, FLOOR)) + 2 * np.log(len(ids))
            away = final - final.mean(axis=0)
            parts = ones[some].T @ ones[some], ones[some].T @ worth[some], ones.T @ ones / len(ids)
            sums.append((*parts, ones.T @ away / len(ids)))
            lengths.append(len(ids))
        total = Moments(*(np.sum(part, axis=0) for part in zip(*sums, strict=True)), (min(lengths), max(lengths)))
        assert_close(measured[layer], total, 1e-3)
        assert measured[layer].lengths == (min(lengths), max(lengths))
        assert measured[layer].gram[-1, -1] == sum(min(n, SAMPLED) for n in lengths) > 50
        assert measured[layer].whole[-1, -1] == pytest.approx(len(lengths))


def test_every_shift_is_measured_without_its_own_token(encoder):
    """Not only their sums: of one text, the regression sees which token a shift belongs to."""
    (ids,) = ids_of(encoder, TEXTS[3:4])
    found = token_moments(encoder, TEXTS[3:4], 1)
    hidden, _, shifts = naive_tokens(encoder, ids, 1)
    some = drawn(pack([ids]))
    worth = np.log(np.maximum(shifts[some], FLOOR)) + 2 * np.log(len(ids))
    wanted, mixed = hidden[some].T @ worth, hidden[some].T @ np.roll(worth, 1)
    np.testing.assert_allclose(found.shift[:-1], wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())
    assert np.abs(found.shift[:-1] - mixed).max() > 0.02 * np.abs(wanted).max()


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), min_size=1, max_size=5), st.data())
def test_the_tokens_that_are_left_out(texts, data):
    batch = pack(texts)
    rows = drawn(batch)
    assert rows.tolist() == sorted({*rows.tolist()})
    for number, text in enumerate(segments(batch.offsets)):
        mine = rows[(rows >= text.start) & (rows < text.stop)] - text.start
        assert len(mine) == min(SAMPLED, len(texts[number]))
        assert mine.tolist() == drawn(pack([texts[number]])).tolist()  # whatever stands beside it


def test_any_token_may_be_left_out():
    counts = np.zeros(30, int)
    for word in range(400):
        counts[drawn(pack([[word, *range(29)]]))] += 1
    assert counts.sum() == 400 * SAMPLED
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 1.4 * counts.mean()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 2 * LONGEST), min_size=1, max_size=4), st.integers(0, 2), st.integers(0, 2))
def test_long_texts_are_cut_before_their_closing_tokens(lengths, prefix, suffix):
    texts = [[1000 + place for place in range(n)] for n in lengths]
    found = cut(pack(texts, prefix, suffix))
    assert (found.prefix, found.suffix) == (prefix, suffix)
    wanted = []
    for text in texts:
        if len(text) > LONGEST:
            text = text[: LONGEST - suffix] + (text[-suffix:] if suffix else [])
        if len(text) >= SHORTEST:
            wanted.append(text)
    assert [found.ids[text].tolist() for text in segments(found.offsets)] == wanted


def test_what_is_cut_is_measured_as_if_it_were_shorter(quick, monkeypatch):
    monkeypatch.setattr(fitting, "LONGEST", 12)
    short = token_moments(quick, ["the " * 10], 1)
    long = token_moments(quick, ["the " * 10 + "card"], 1)
    assert long.lengths == short.lengths == (12, 12)
    assert_close(long, short, 1e-12)


def test_texts_that_are_too_short_are_left_out(encoder):
    texts = ["the " * (n - 2) for n in (SHORTEST - 1, SHORTEST, SHORTEST + 4, 40)]
    assert [len(ids) for ids in ids_of(encoder, texts)] == [4, 5, 9, 40]
    assert can_measure(encoder, texts) == [False, True, True, True]
    found = token_moments(encoder, texts, 1)
    assert found.gram[-1, -1] == SHORTEST + 2 * SAMPLED
    assert found.whole[-1, -1] == pytest.approx(3)
    assert found.lengths == (5, 40)


@pytest.mark.parametrize("texts", [[], [""], ["the", "the the"]])
def test_nothing_to_learn_from(encoder, texts):
    with pytest.raises(InputError, match=f"none of {len(texts)} texts has {SHORTEST} tokens, wanted some"):
        token_moments(encoder, texts, LAYERS[0])


def test_halves_add_up_to_the_whole(encoder, measured):
    for layer in LAYERS:
        both = token_moments(encoder, TEXTS[:5], layer) + token_moments(encoder, TEXTS[5:], layer)
        assert both.gram[-1, -1] == measured[layer].gram[-1, -1]
        assert_close(both, measured[layer], 1e-6)


@given(*[st.tuples(st.integers(5, 256), st.integers(5, 256)).map(sorted)] * 2)
def test_lengths_of_a_sum(one, other):
    nothing = np.zeros(1)
    found = Moments(*[nothing] * 4, tuple(one)) + Moments(*[nothing] * 4, tuple(other))
    assert found.lengths == (min(one + other), max(one + other))


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


# Fits


def made_moments(hidden, worth, final, lengths):
    """As `token_moments` sums up texts of these lengths, of which so much is known; worth: log shift + 2 log n."""
    batch = pack([[place] * n for place, n in enumerate(lengths)])
    full = Encoded(batch, final.astype(np.float32), batch.offsets, None, np.arange(len(hidden)))
    tokens = drawn(batch)
    shifts = np.exp(worth - 2 * np.log(np.repeat(lengths, lengths)))[tokens].astype(np.float32)
    return moments_of(Start(0, hidden.astype(np.float32)), full, tokens, shifts)


def planted(seed, width=7, texts=80, noise=0.0):
    """Hidden states, of which a scorer and a map say what tokens are worth, and where they end, text by text."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(SHORTEST, 60, texts)
    each = np.repeat(np.arange(texts), lengths)
    hidden = draw.standard_normal((len(each), width)) * 0.5
    hidden += draw.standard_normal(width) - by_text(hidden, each)  # where all texts have one mean, the map is exact
    scorer, square = draw.standard_normal(width) * 0.5, draw.standard_normal((width, width))
    worth = hidden @ scorer - 3.0 + noise * draw.standard_normal(len(each))
    final = hidden @ square.T + draw.standard_normal((texts, width))[each]
    return hidden, lengths, scorer, worth, square, final, each


def by_text(rows, each):
    """[T, H] the mean of each row's text."""
    return np.stack([rows[each == text].mean(axis=0) for text in range(each[-1] + 1)])[each]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_what_was_planted_is_found(seed):
    hidden, lengths, scorer, worth, square, final, each = planted(seed)
    found = fit("model", {3: made_moments(hidden, worth, final, lengths)})
    assert (found.model, found.lengths, [*found.scorers], [*found.restore]) == (
        "model",
        (lengths.min(), lengths.max()),
        [3],
        [3],
    )
    assert not found.turns
    if (worth - 2 * np.log(np.repeat(lengths, lengths))).min() > np.log(FLOOR):  # else the floor bends the line
        np.testing.assert_allclose(found.scorers[3].weight[0], scorer, rtol=0, atol=0.03 * np.abs(scorer).max())
        seen = hidden @ found.scorers[3].weight[0] + found.scorers[3].bias[0]
        np.testing.assert_allclose(seen, worth, rtol=0, atol=0.05 * np.abs(worth - worth.mean()).max())
    np.testing.assert_allclose(found.restore[3].weight, square, rtol=0, atol=0.03 * np.abs(square).max())
    away = final - by_text(final, each)
    restored = hidden @ found.restore[3].weight.T + found.restore[3].bias
    np.testing.assert_allclose(restored, away, rtol=0, atol=0.05 * np.abs(away).max())


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_the_intercept_is_not_penalised(seed, more):
    """A constant added to what every token is worth moves the bias and nothing else, however strong the ridge is."""
    hidden, lengths, _, worth, _, final, _ = planted(seed, texts=20)
    worth = np.clip(worth, -4, -1)
    one, other = (fit("", {0: made_moments(hidden, worth + add, final, lengths)}).scorers[0] for add in (0.0, more))
    np.testing.assert_allclose(other.weight, one.weight, rtol=0, atol=1e-4)
    np.testing.assert_allclose(other.bias, one.bias + more, rtol=0, atol=1e-3)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5))
def test_restoring_does_not_see_what_all_tokens_of_a_text_share(seed, size):
    hidden, lengths, _, worth, _, final, each = planted(seed, texts=20)
    shared = np.random.default_rng(seed).standard_normal((20, final.shape[1]))[each]
    one = fit("", {0: made_moments(hidden, worth, final, lengths)}).restore[0]
    other = fit("", {0: made_moments(hidden, worth, final + size * shared, lengths)}).restore[0]
    np.testing.assert_allclose(other.weight, one.weight, rtol=0, atol=1e-3)
    np.testing.assert_allclose(other.bias, one.bias, rtol=0, atol=1e-3)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_each_text_counts_one_for_restoring(seed, times):
    """Every token of a text so many times over: the text is longer, and says the same."""
    hidden, lengths, _, worth, _, final, each = planted(seed, texts=6)
    again = np.repeat(np.arange(len(each)), np.where(each == 0, times, 1))
    longer = np.where(np.arange(6) == 0, lengths * times, lengths)
    one = made_moments(hidden, worth, final, lengths)
    other = made_moments(hidden[again], worth[again], final[again], longer)
    for name in ("whole", "final"):
        mine, wanted = getattr(other, name), getattr(one, name)
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_fits_are_ridge_regressions():
    """Against the normal equations written with the tokens themselves."""
    hidden, lengths, _, worth, _, final, each = planted(9, texts=12, noise=0.5)
    hidden += np.random.default_rng(1).standard_normal((12, hidden.shape[1]))[each]
    hidden, final = hidden.astype(np.float32).astype(np.float64), final.astype(np.float32).astype(np.float64)
    found = fit("", {0: made_moments(hidden, worth, final, lengths)})
    some = drawn(pack([[place] * n for place, n in enumerate(lengths)]))

    def ridge(x, y, weight, strength):
        x_mean, y_mean = (np.average(each, axis=0, weights=weight) for each in (x, y))
        spread = (x - x_mean).T @ ((x - x_mean) * weight[:, None])
        penalty = strength * np.trace(spread) / len(spread) * np.eye(len(spread))
        solved = np.linalg.solve(spread + penalty, (x - x_mean).T @ ((y - y_mean) * weight[:, None]))
        return solved.T, y_mean - x_mean @ solved

    away = final - by_text(final, each)
    for linear, wanted in (
        (found.scorers[0], ridge(hidden[some], worth[some, None], np.ones(len(some)), RIDGE)),
        (found.restore[0], ridge(hidden, away, 1 / lengths[each], RESTORE_RIDGE)),
    ):
        np.testing.assert_allclose(linear.weight, wanted[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(linear.bias, wanted[1], rtol=1e-3, atol=1e-4)


def test_lengths_are_those_of_all_layers(quick):
    one, other = token_moments(quick, ["the " * 8], 0), token_moments(quick, ["the " * 20], 1)
    assert fit("", {0: one, 1: other}).lengths == (10, 22)


def test_fitted_arrays_are_ready_for_the_kernels(encoder, measured):
    fitted = fit(encoder.identity.weights, measured)
    assert fitted.width == encoder.config.hidden_size
    for linear in (*fitted.scorers.values(), *fitted.restore.values()):
        assert linear.weight.dtype == linear.bias.dtype == np.float32
        assert linear.weight.flags.c_contiguous
    assert fit(encoder.identity.weights, measured) == fitted


@pytest.mark.filterwarnings("ignore::minitrans.errors.PruningWarning")  # texts of other lengths too
def test_fitted_policies_run_and_rank_better_than_chance(encoder):
    """On texts that the fit never saw, tokens with a larger shift get a larger score."""
    fitted = fit(encoder.identity.weights, {1: token_moments(encoder, made_texts(0, 80), 1)})
    policy = PruningPolicy(min_tokens=3, quantile=0.4, layer=1, score="learned", reduce="restore", fitted=fitted)
    assert np.isfinite(encoder.encode(TEXTS, pruning=policy)).all()
    correlations = []
    for ids in ids_of(encoder, TEXTS):
        if len(ids) >= SHORTEST:
            hidden, _, shifts = naive_tokens(encoder, ids, 1)
            correlations.append(np.corrcoef(hidden @ policy.scorer(1).weight[0], np.log(shifts))[0, 1])
    assert np.mean(correlations) > 0.2


# Foreseen turns

FITTED_ON, CALIBRATED_ON, HELD_OUT = made_texts(0, 120), made_texts(1, 60), made_texts(2, 160)


@pytest.fixture(scope="module", params=["drop", "restore"])
def learned(request, quick):
    """A policy with arrays, and no map to turns yet."""
    fitted = fit(quick.identity.weights, {1: token_moments(quick, FITTED_ON, 1)})
    return PruningPolicy(min_tokens=4, layer=1, score="learned", reduce=request.param, fitted=fitted)


@pytest.fixture(scope="module")
def by_turn(quick, learned):
    """The same policy with the map, and whatever share the turn allows."""
    fitted = calibrated(quick, CALIBRATED_ON, learned)
    return dataclasses.replace(learned, min_tokens=2, quantile=0.6, max_turn=10.0, fitted=fitted)


def test_only_the_map_to_turns_is_new(learned, by_turn):
    assert by_turn.fitted.scorers.keys() == by_turn.fitted.restore.keys() == by_turn.fitted.turns.keys() == {1}
    for one, other in (
        (learned.fitted.scorers, by_turn.fitted.scorers),
        (learned.fitted.restore, by_turn.fitted.restore),
    ):
        np.testing.assert_array_equal(one[1].weight, other[1].weight)
    assert by_turn.fitted.lengths == learned.fitted.lengths


@pytest.mark.filterwarnings("ignore::minitrans.errors.PruningWarning")  # texts of other lengths too
def test_a_turn_is_foreseen_better_than_by_a_constant(quick, learned, by_turn):
    """By the words of the documentation alone, on texts that neither fit saw."""
    plain = quick.encode(HELD_OUT, pruning=None)
    scores = [
        behind_attention(quick, ids, 1) @ learned.scorer(1).weight[0] + learned.scorer(1).bias[0]
        for ids in ids_of(quick, HELD_OUT)
    ]
    foreseen, found = [], []
    for share in SHARES:
        policy = dataclasses.replace(learned, min_tokens=2, quantile=share)
        angles = turns(plain, quick.encode(HELD_OUT, pruning=policy))
        for angle, score in zip(angles, scores, strict=True):
            n = len(score)
            if gone := n - max(2, n - int(share * n + 1e-9)):
                cost = gone * np.exp(np.sort(score)[:gone].astype(np.float64)).sum()
                features = np.array([np.log(cost), np.log(n), np.log(n) ** 2])
                foreseen.append(float(by_turn.turn_map(1).weight[0] @ features + by_turn.turn_map(1).bias[0]))
                found.append(np.log(angle))
    errors, spread = np.subtract(foreseen, found), np.subtract(found, np.mean(found))
    assert len(found) > 800
    assert np.square(errors).mean() < 0.4 * np.square(spread).mean()
    assert abs(errors.mean()) < 0.05


@pytest.mark.filterwarnings("ignore::minitrans.errors.PruningWarning")  # texts of other lengths too
def test_texts_turn_as_far_as_the_policy_says(quick, by_turn):
    """At every length: a little less than asked for, as tokens go one by one."""
    plain, lengths = quick.encode(HELD_OUT, pruning=None), np.array([len(ids) for ids in ids_of(quick, HELD_OUT)])
    for degrees in (7.0, 10.0, 15.0):
        policy = dataclasses.replace(by_turn, max_turn=degrees)
        angles = turns(plain, quick.encode(HELD_OUT, pruning=policy))
        for least, most in ((8, 15), (16, 31), (32, 64)):
            some = angles[(lengths >= least) & (lengths <= most)]
            assert len(some) > 25
            assert 0.7 * degrees < some.mean() < 1.1 * degrees


def test_calibrations_do_not_depend_on_order_or_threads(quick, plain, learned, by_turn):
    other = SentenceEncoder(plain, threads=2)
    changed = dataclasses.replace(learned, quantile=0.9, min_tokens=20)  # which play no part
    for texts, encoder, policy in ((CALIBRATED_ON[::-1] * 2, quick, learned), (CALIBRATED_ON, other, changed)):
        assert calibrated(encoder, texts, policy) == by_turn.fitted
    again = calibrated(quick, CALIBRATED_ON, by_turn)
    assert again == by_turn.fitted


def test_what_is_protected_is_not_counted(quick, learned, by_turn):
    protected = calibrated(quick, CALIBRATED_ON, dataclasses.replace(learned, protect_special=True))
    assert protected != by_turn.fitted


def test_features_of_turns():
    costs, lengths = np.array([1.0, 0.5]), np.array([8, 100])
    found = fitting.turn_features(costs * np.exp(-TOP), lengths)
    wanted = [[0.0, np.log(8), np.log(8) ** 2], [np.log(0.5), np.log(100), np.log(100) ** 2]]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_turns_that_cannot_be_foreseen(quick, learned, monkeypatch):
    with pytest.raises(InputError, match=f"none of 1 texts has {SHORTEST} tokens"):
        calibrated(quick, ["the"], learned)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "LEAST_TURN", 180.0)  # as if no text turned
        with pytest.raises(UnforeseenTurnError, match="of 0 prunings that turned a text none turned it the farther"):
            calibrated(quick, CALIBRATED_ON, learned)
    features = fitting.turn_features
    monkeypatch.setattr(fitting, "turn_features", lambda costs, lengths: features(1 / costs, lengths))
    with pytest.raises(UnforeseenTurnError, match="wanted texts whose turn can be foreseen; add texts"):
        calibrated(quick, CALIBRATED_ON, learned)
