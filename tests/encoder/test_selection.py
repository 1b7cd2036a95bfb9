"""Scores -> kept rows -> merged rows, against exact fractions, quadratic selection and plain loops."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.encoder.packing import pack, segments
from minitrans.encoder.selection import (
    TOP,
    Ranking,
    Selection,
    budgets,
    control_scores,
    cost,
    kept_count,
    merge,
    positions,
    rank,
    score_rows,
    select,
)
from minitrans.errors import InputError
from minitrans.models.parameters import Linear

QUANTILES = st.decimals(0, 1, places=6).filter(lambda q: q < 1)
TEXTS = [
    "help",
    "play music",
    "is there a fee for the exchange of cash?",
    "turn off the light and set an alarm for tomorrow",
    "please send me the number of the card that was stolen",
]


def chosen(policy, scores, batch, hidden=None):
    """The selection of a policy's first stage, on a whole batch."""
    hidden = np.zeros((len(batch.ids), 4), np.float32) if hidden is None else hidden
    layer = next(iter(policy.plan))
    ranking = rank(policy, layer, scores, batch, np.arange(len(batch.ids)), batch.offsets)
    return select(hidden, batch.offsets, ranking)[1]


# How many stay


@given(st.integers(0, 600), QUANTILES, st.integers(1, 40))
def test_kept_count(n, q, s):
    exact = n if n <= s else max(s, n - floor(Fraction(q) * n))
    kept = kept_count(np.array([n]), float(q), s).item()
    assert kept == exact
    assert kept == n if n <= s else s <= kept <= n


@pytest.mark.parametrize(
    ("n", "q", "s", "wanted"),
    [
        (100, 0.29, 1, 71),  # 0.29 * 100 is 28.999... in floating point
        (100, 0.3, 1, 70),
        (9, 0.3, 8, 8),  # 2 would go, 1 may
        (8, 0.9, 8, 8),
        (7, 0.9, 8, 7),
        (0, 0.5, 1, 0),
        (1, 0.999999, 1, 1),
        (10, 0.0, 1, 10),
        (10, 0.0999999, 1, 10),
    ],
)
def test_kept_count_by_hand(n, q, s, wanted):
    assert kept_count(np.array([n]), q, s).tolist() == [wanted]


def test_kept_count_of_many_texts():
    tokens = np.arange(60)
    kept = kept_count(tokens, 0.37, 5)
    assert kept.dtype == np.int64
    assert kept.tolist() == [kept_count(tokens[n : n + 1], 0.37, 5).item() for n in range(60)]


# Which ones


@st.composite
def scored_batches(draw):
    lengths = draw(st.lists(st.integers(0, 14), max_size=5))
    scores = draw(st.lists(st.integers(0, 4), min_size=sum(lengths), max_size=sum(lengths)))  # many ties
    prefix, suffix = draw(st.sampled_from([(1, 1), (0, 0), (1, 0), (0, 1), (2, 1)]))
    return pack([[0] * length for length in lengths], prefix, suffix), np.array(scores, np.float32)


BUDGETS = st.none() | st.floats(-12, 12)  # logarithms, for scores from 0 to 4


@given(scored_batches(), QUANTILES, st.integers(1, 6), st.booleans(), BUDGETS)
def test_select(batch_and_scores, q, s, protect, log_budget):
    batch, scores = batch_and_scores
    policy = PruningPolicy(min_tokens=s, quantile=float(q), protect_special=protect)
    hidden = np.arange(len(scores) * 3, dtype=np.float32).reshape(-1, 3)
    before = scores.copy(), hidden.copy()
    ranking = rank(policy, policy.layer, scores, batch, np.arange(len(scores)), batch.offsets)
    assert ranking.budgets is None
    if log_budget is not None:
        ranking = replace(ranking, budgets=np.exp(log_budget - TOP + 0.1 * np.arange(20)).astype(np.float32))
    left, selection, restored = select(hidden, batch.offsets, ranking)
    assert restored is None
    assert np.array_equal(scores, before[0])
    assert np.array_equal(hidden, before[1])
    assert np.array_equal(left, hidden[selection.kept])
    assert selection.scores is scores
    assert selection.target is None
    assert len(selection.kept) == selection.offsets[-1]
    for text, rows in zip(segments(batch.offsets), segments(selection.offsets), strict=True):
        n = text.stop - text.start
        special = [protect and (i < batch.prefix or i >= n - batch.suffix) for i in range(n)]
        ranks = [(special[i], scores[text.start + i], -i) for i in range(n)]  # ties: the earlier wins
        least = max(s, batch.prefix + batch.suffix) if protect else s
        count = kept_count(np.array([n]), float(q), least).item()
        costs = [too_dear(i, ranks, scores[text], log_budget) for i in range(n)]
        assume(not any(near for _, near in costs))
        dear = [far for far, _ in costs]
        wanted = [text.start + i for i in range(n) if sum(other > ranks[i] for other in ranks) < count or dear[i]]
        assert selection.kept[rows].tolist() == wanted
        assert not protect or {text.start + i for i in range(n) if special[i]} <= set(wanted)


def too_dear(i, ranks, scores, log_budget):
    """Whether giving up row i, and all that rank behind it, is beyond the budget of its text; whether it is near it."""
    if log_budget is None:
        return False, False
    behind = [j for j in range(len(ranks)) if ranks[j] <= ranks[i]]
    protected = ranks[i][0]  # then it stays anyhow, and counts as the dearest
    worth = math.fsum(math.exp(TOP if ranks[j][0] else float(scores[j])) for j in behind)
    distance = math.log(len(behind) * worth) - (log_budget + 0.1 * len(ranks))
    return distance > 0, not protected and abs(distance) < 1e-4


@given(scored_batches(), QUANTILES, st.integers(0, 2**32 - 1))
def test_rows_that_go_are_restored(batch_and_scores, q, seed):
    batch, scores = batch_and_scores
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((len(scores), 5)).astype(np.float32)
    restore = Linear(random.standard_normal((5, 5)).astype(np.float32), random.standard_normal(5).astype(np.float32))
    least = kept_count(np.arange(20), float(q), 1)
    left, selection, restored = select(hidden, batch.offsets, Ranking(scores, None, least, restore=restore))
    assert restored.dtype == np.float32
    assert restored.shape == (len(batch.offsets) - 1, 5)
    for text, rows, total in zip(segments(batch.offsets), segments(selection.offsets), restored, strict=True):
        gone = hidden[text].sum(axis=0, dtype=np.float64) - left[rows].sum(axis=0, dtype=np.float64)
        count = (text.stop - text.start) - (rows.stop - rows.start)
        np.testing.assert_allclose(total, restore.weight @ gone + count * restore.bias, rtol=0, atol=1e-4)
        if not count:
            assert not total.any()


def test_ties_go_to_the_earlier_position():
    policy = PruningPolicy(min_tokens=1, quantile=0.5)
    assert chosen(policy, np.float32([1, 2, 1, 1, 2, 1]), pack([[0] * 6])).kept.tolist() == [0, 1, 4]


def test_protected_tokens_stay_beyond_min_tokens():
    policy = PruningPolicy(min_tokens=1, quantile=0.99, protect_special=True)
    assert chosen(policy, np.float32([0, 3, 2, 1, 0]), pack([[0] * 5])).kept.tolist() == [0, 4]


def test_a_budget_is_spent_on_the_least_important_first():
    # Each costs e**score; the sum counts as often as there are tokens in it.
    scores = np.log(np.float32([5, 1, 3, 1, 2, 3, 1, 4]))
    for budget, kept in (
        (0.9, [*range(8)]),
        (1, [*range(6), 7]),
        (3.9, [*range(6), 7]),
        (4, [0, 1, 2, 4, 5, 7]),
        (8.9, [0, 1, 2, 4, 5, 7]),
        (9, [0, 2, 4, 5, 7]),
        (20, [0, 2, 5, 7]),
        (99, [0, 7]),
    ):
        budgets = np.full(9, budget * 1.0001 * math.exp(-TOP), np.float32)
        ranking = Ranking(scores, None, np.full(9, 2), budgets)
        _, selection, _ = select(np.zeros((8, 4), np.float32), np.array([0, 8]), ranking)
        assert selection.kept.tolist() == kept, budget


def test_scores_far_below_all_others_cost_what_the_kernels_say():
    assert cost(np.float32([-200, -300, 5])).tolist() == cost(np.float32([-71, -71, 5])).tolist()


def test_budgets_are_where_the_turn_is_foreseen():
    turn = 0.4, -0.9, -0.02, 4.1
    lengths = np.array([8, 100, 256])
    for degrees in (0.5, 5, 40):
        log_cost, log_n = np.log(budgets(degrees, turn, lengths)) + TOP, np.log(lengths)
        foreseen = np.exp(0.4 * log_cost - 0.9 * log_n - 0.02 * log_n**2 + 4.1)
        np.testing.assert_allclose(foreseen, degrees, rtol=1e-5)


# Scores of a scorer


SCORER = Linear(np.float32([[1, -2, 0, 4]]), np.float32([0.5]))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 12), max_size=5))
def test_scores_of_a_scorer_are_a_linear_map_of_each_row(seed, lengths):
    hidden = np.random.default_rng(seed).standard_normal((sum(lengths), 4)).astype(np.float32)
    ranking = Ranking(None, SCORER, kept_count(np.arange(13), 0.5, 1))
    scores = score_rows(hidden, ranking)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, hidden @ SCORER.weight[0] + 0.5, rtol=0, atol=1e-5)
    for row in range(len(hidden)):
        assert score_rows(hidden[row : row + 1].copy(), ranking) == scores[row]


def test_scores_come_before_a_scorer():
    hidden, scores = np.ones((3, 4), np.float32), np.float32([1, 2, 3])
    assert score_rows(hidden, Ranking(scores, SCORER, np.arange(4))) is scores


def test_a_ranking_of_nothing_is_refused():
    with pytest.raises(InputError, match="neither scores nor a scorer"):
        select(np.zeros((2, 4), np.float32), np.array([0, 2]), Ranking(None, None, np.arange(3)))


def test_positions():
    assert positions(np.array([0, 3, 3, 5])).tolist() == [0, 1, 2, 0, 1]
    assert positions(np.array([0])).tolist() == []


# Scores that need no attention


def scores_by_text(policy, batch):
    scores = control_scores(policy, batch, np.arange(len(batch.ids)), batch.offsets)
    assert scores.dtype == np.float32
    return [scores[text].tolist() for text in segments(batch.offsets)]


def test_first_prefers_what_comes_earlier():
    policy = PruningPolicy(score="first")
    assert scores_by_text(policy, pack([[5, 6, 7], [], [8]])) == [[0, -1, -2], [], [0]]


def test_random_depends_on_the_text_and_the_seed_only():
    policy = PruningPolicy(score="random", seed=3)
    texts = [[2, 9, 8, 3], [2, 3], [], [2, 9, 7, 3]]
    alone = [scores_by_text(policy, pack([ids]))[0] for ids in texts]
    for order in itertools.permutations(range(len(texts))):
        assert scores_by_text(policy, pack([texts[i] for i in order])) == [alone[i] for i in order]
    assert alone[0] != alone[3]
    assert scores_by_text(PruningPolicy(score="random", seed=4), pack(texts[:1])) != alone[:1]


def test_random_of_a_later_stage_sees_the_tokens_that_are_left():
    policy = PruningPolicy(score="random")
    batch = pack([[2, 9, 8, 7, 3], [2, 4, 3]])
    scores = control_scores(policy, batch, np.array([0, 2, 4, 5, 7]), np.array([0, 3, 5]))
    assert scores.tolist() == [
        *scores_by_text(policy, pack([[2, 8, 3]]))[0],
        *scores_by_text(policy, pack([[2, 3]]))[0],
    ]


# Merging


def naive_merge(hidden, sizes, offsets, selection):
    """Row by row in float64: hidden [T', H], sizes [T'], target [T]."""
    hidden, kept = hidden.astype(np.float64), selection.kept.tolist()
    totals = [hidden[row] * sizes[row] for row in kept]
    counts = [sizes[row] for row in kept]
    target = [0] * len(hidden)
    for text in segments(offsets):
        own = [i for i, row in enumerate(kept) if text.start <= row < text.stop]
        for row in range(text.start, text.stop):
            if row in kept:
                target[row] = kept.index(row)
                continue
            cosines = [
                hidden[row] @ hidden[kept[i]] / np.linalg.norm(hidden[row]) / np.linalg.norm(hidden[kept[i]])
                for i in own
            ]
            best = own[cosines.index(max(cosines))]
            target[row] = best
            totals[best] = totals[best] + hidden[row] * sizes[row]
            counts[best] += sizes[row]
    merged = [total / count for total, count in zip(totals, counts, strict=True)]
    return np.array(merged).reshape(-1, hidden.shape[1]), np.array(counts), np.array(target, np.int64)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 14), max_size=4),
    st.floats(0, 0.95),
    st.sampled_from([None, 1, 7]),
)
def test_merge(seed, lengths, q, largest_size):
    random = np.random.default_rng(seed)
    batch = pack([[0] * length for length in lengths])
    T = len(batch.ids)
    hidden = random.standard_normal((T, 8)).astype(np.float32)
    sizes = None if largest_size is None else random.integers(1, largest_size + 1, T).astype(np.float32)
    weights = np.ones(T, np.float32) if sizes is None else sizes.copy()
    scores = random.random(T).astype(np.float32)
    selection = chosen(PruningPolicy(min_tokens=2, quantile=q), scores, batch)
    before = hidden.copy()

    merged, merged_sizes, result = merge(hidden, sizes, batch.offsets, selection)

    wanted, wanted_sizes, target = naive_merge(hidden, weights, batch.offsets, selection)
    assert np.array_equal(hidden, before)
    assert sizes is None or np.array_equal(sizes, weights)
    assert merged.dtype == merged_sizes.dtype == np.float32
    assert np.array_equal(result.target, target)
    assert np.array_equal(merged_sizes, wanted_sizes)
    np.testing.assert_allclose(merged, wanted, rtol=0, atol=1e-5)
    assert np.array_equal(result.kept, selection.kept)
    assert np.array_equal(result.offsets, selection.offsets)
    assert result.scores is selection.scores
    for text, left in zip(segments(batch.offsets), segments(selection.offsets), strict=True):
        assert merged_sizes[left].sum() == weights[text].sum()
        total, merged_total = weights[text] @ hidden[text], merged_sizes[left] @ merged[left]
        np.testing.assert_allclose(merged_total, total, rtol=0, atol=1e-4)


def test_merge_gives_ties_to_the_earlier_row():
    hidden = np.float32([[1, 0], [1, 0], [2, 0], [0, 1]])
    selection = Selection(np.zeros(4, np.float32), np.array([0, 1, 3]), np.array([0, 3]))
    merged, sizes, result = merge(hidden, None, np.array([0, 4]), selection)
    assert result.target.tolist() == [0, 1, 0, 2]
    assert merged.tolist() == [[1.5, 0], [1, 0], [0, 1]]
    assert sizes.tolist() == [2, 1, 1]


def test_merge_weighs_by_size():
    hidden = np.float32([[1, 0], [5, 0]])
    selection = Selection(np.zeros(2, np.float32), np.array([0]), np.array([0, 1]))
    merged, sizes, _ = merge(hidden, np.float32([3, 1]), np.array([0, 2]), selection)
    assert (merged.tolist(), sizes.tolist()) == ([[2, 0]], [4])


# In the encoder


@pytest.fixture(scope="module", params=["float32", "int8"])
def encoder(request, plain):
    return SentenceEncoder(plain, precision=request.param)


def kept_positions(encoder, policy, text):
    return [i for i, kept in enumerate(encoder.pruned_tokens(text, pruning=policy)[0].kept) if kept]


@pytest.mark.parametrize("reduce", ["drop", "merge"])
@pytest.mark.parametrize("score", ["attention", "attention_value", "random", "first"])
def test_a_quantile_of_zero_changes_no_bit(encoder, score, reduce):
    policy = PruningPolicy(min_tokens=1, quantile=0.0, layer=1, score=score, reduce=reduce)
    assert np.array_equal(encoder.encode(TEXTS, pruning=policy), encoder.encode(TEXTS))


@pytest.mark.parametrize("reduce", ["drop", "merge"])
def test_short_texts_keep_their_bits_beside_long_ones(encoder, reduce):
    policy = PruningPolicy(min_tokens=8, quantile=0.5, layer=0, reduce=reduce)
    lengths = [len(ids) for ids in encoder.tokenizer.encode(TEXTS).ids]
    assert min(lengths) < 8 < max(lengths)
    same = (encoder.encode(TEXTS, pruning=policy) == encoder.encode(TEXTS)).all(axis=1)
    assert same.tolist() == [length <= 8 for length in lengths]


def test_first_keeps_the_first(encoder):
    for text in TEXTS:
        n = len(encoder.tokenizer.encode([text]).ids[0])
        policy = PruningPolicy(min_tokens=3, quantile=0.4, layer=1, score="first")
        assert kept_positions(encoder, policy, text) == list(range(kept_count(np.array([n]), 0.4, 3).item()))


@pytest.mark.parametrize("reduce", ["drop", "merge"])
@pytest.mark.parametrize("score", ["attention", "attention_value", "random", "first"])
def test_two_stages_compose(encoder, score, reduce):
    once = PruningPolicy(min_tokens=3, quantile=0.3, layer=0, score=score, reduce=reduce)
    twice = PruningPolicy(min_tokens=3, stages=((0, 0.3), (2, 0.4)), score=score, reduce=reduce)
    for text in TEXTS:
        n = len(encoder.tokenizer.encode([text]).ids[0])
        after_one, after_two = kept_positions(encoder, once, text), kept_positions(encoder, twice, text)
        assert len(after_one) == kept_count(np.array([n]), 0.3, 3).item()
        assert len(after_two) == kept_count(np.array([len(after_one)]), 0.4, 3).item()
        assert set(after_two) <= set(after_one)


def test_one_stage_is_its_layer_and_quantile(encoder):
    pair = PruningPolicy(min_tokens=3, quantile=0.4, layer=1)
    stage = PruningPolicy(min_tokens=3, quantile=0.9, layer=0, stages=((1, 0.4),))
    assert np.array_equal(encoder.encode(TEXTS, pruning=pair), encoder.encode(TEXTS, pruning=stage))


def test_protect_special_keeps_both_ends(encoder):
    policy = PruningPolicy(min_tokens=1, quantile=0.99, layer=0, protect_special=True)
    for pruned in encoder.pruned_tokens(TEXTS, pruning=policy):
        kept = [token for token, kept in zip(pruned.tokens, pruned.kept, strict=True) if kept]
        assert kept == ["[CLS]", "[SEP]"]


def test_every_policy_changes_long_texts(encoder):
    """None of the fields is ignored."""
    base = {"min_tokens": 3, "quantile": 0.4, "layer": 1}
    changes = [
        {},
        {"min_tokens": 9},
        {"quantile": 0.6},
        {"layer": 0},
        {"score": "attention_value"},
        {"score": "first"},
        {"score": "random"},
        {"score": "random", "seed": 5},
        {"reduce": "merge"},
        {"stages": ((0, 0.2), (1, 0.3))},
        {"protect_special": True},
    ]
    policies = [None, *(PruningPolicy(**{**base, **change}) for change in changes)]
    vectors = [encoder.encode(TEXTS, pruning=policy) for policy in policies]
    for (i, one), (j, other) in itertools.combinations(enumerate(vectors), 2):
        assert not np.array_equal(one, other), f"{policies[i]} and {policies[j]}"
