"""Work that is counted by hand, prices that were planted, and ratios of timings."""

import numpy as np
import pytest
from fitted_policies import random_fitted
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.adaptation.costs import KINDS, CostModel, WorkCounter, fit_cost_model
from minitrans.encoder.forward import forward, start_behind
from minitrans.encoder.packing import pack
from minitrans.evaluation.measurement import interleaved, ratios

FITTED = random_fitted("any", 32)
LENGTHS = (10, 4, 7)
BATCH = pack([[2, *range(50, 48 + n), 3] for n in LENGTHS])


@pytest.fixture(scope="module")
def blocks(plain):
    return SentenceEncoder(plain).blocks


def counted(blocks, policy, start=0):
    counter = WorkCounter(policy, start)
    begin = None
    if start:
        begin = start_behind(blocks, BATCH, start, None if policy is None else policy.score)
    forward(blocks, BATCH, policy, counter, begin)
    return dict(zip(KINDS, counter.work.tolist(), strict=True))


def squares(lengths):
    return sum(n * n for n in lengths)


def expected(layers, **more):
    """`layers`: for each, the lengths before and after its pruning."""
    return dict.fromkeys(KINDS, 0.0) | {
        "texts": len(LENGTHS),
        "tokens": sum(LENGTHS),
        "layer_rows": pytest.approx(sum((sum(before) + 2 * sum(after)) / 3 for before, after in layers)),
        "pairs": sum(squares(before) for before, _ in layers),
        **more,
    }


HALF = (5, 3, 4)  # 10 - 5, max(3, 4 - 2), 7 - 3
POLICIES = {
    "unpruned": (None, expected([(LENGTHS, LENGTHS)] * 3)),
    "attention": (
        PruningPolicy(min_tokens=3, quantile=0.5, layer=1),
        expected(
            [(LENGTHS, LENGTHS), (LENGTHS, HALF), (HALF, HALF)],
            scored_rows=sum(LENGTHS),
            attention_pairs=squares(LENGTHS),
        ),
    ),
    "merge": (
        PruningPolicy(min_tokens=3, quantile=0.5, layer=2, reduce="merge", score="attention_value"),
        expected(
            [(LENGTHS, LENGTHS), (LENGTHS, LENGTHS), (LENGTHS, HALF)],
            scored_rows=sum(LENGTHS),
            attention_pairs=squares(LENGTHS),
            merged_rows=sum(LENGTHS) - sum(HALF),
        ),
    ),
    "learned": (
        PruningPolicy(min_tokens=3, quantile=0.5, layer=2, score="learned", fitted=FITTED),
        expected([(LENGTHS, LENGTHS), (LENGTHS, LENGTHS), (LENGTHS, HALF)], scored_rows=sum(LENGTHS)),
    ),
    "two stages of restoring": (
        PruningPolicy(
            min_tokens=3, stages=((1, 0.5), (2, 0.5)), score="learned", reduce="restore", fitted=FITTED
        ),
        expected(
            [(LENGTHS, LENGTHS), (LENGTHS, HALF), (HALF, (3, 3, 3))],
            scored_rows=sum(LENGTHS) + sum(HALF),
            restored_texts=2 * len(LENGTHS),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "wanted"), POLICIES.values(), ids=POLICIES)
def test_work_by_hand(blocks, policy, wanted):
    assert counted(blocks, policy) == wanted


@pytest.mark.parametrize(("policy", "wanted"), POLICIES.values(), ids=POLICIES)
def test_work_before_a_start_counts(blocks, policy, wanted):
    for start in range(1, 3 if policy is None else 1 + min(policy.plan)):
        assert counted(blocks, policy, start) == wanted


def test_no_texts_are_no_work(blocks):
    counter = WorkCounter(None)
    forward(blocks, pack([]), None, counter)
    assert not counter.work.any()


def draw_work(seed, runs, kinds):
    random = np.random.default_rng(seed)
    return random.random((runs, kinds)) * np.geomspace(1, 1e6, kinds) + 1


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 4))
def test_planted_prices_are_found(seed, kinds, free):
    work = draw_work(seed, 40, kinds)
    prices = np.random.default_rng(seed).uniform(1, 5, kinds) / work.mean(axis=0)
    prices[: min(free, kinds - 1)] = 0
    seconds = work @ prices
    model = fit_cost_model(work, seconds)
    assert all(price >= 0 for price in model.prices)
    assert model.error < 1e-4
    np.testing.assert_allclose([model.seconds(row) for row in work], seconds, rtol=1e-4)
    np.testing.assert_allclose(model.prices * work.mean(axis=0), prices * work.mean(axis=0), rtol=0, atol=1e-2)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, len(KINDS)), st.booleans())
def test_prices_are_never_negative_and_the_best_there_are(seed, runs, kinds, unused):
    """Noise as large as can be; the conditions of Karush, Kuhn and Tucker say that nothing non-negative is better."""
    random = np.random.default_rng(seed)
    work, seconds = draw_work(seed, runs, kinds), random.uniform(0.1, 9, runs)
    if unused:
        work[:, -1] = 0
    model = fit_cost_model(work, seconds)
    prices = np.array(model.prices)
    assert np.isfinite(prices).all()
    assert (prices >= 0).all()
    relative = work / seconds[:, None]
    residual = relative @ prices - 1
    assert model.error == pytest.approx(np.abs(residual).max(), rel=1e-6)
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)
    gradient = relative.T @ residual / scale
    assert (gradient >= -1e-4).all()
    assert np.abs(gradient[prices > 0]).max(initial=0) <= 1e-4


def test_seconds_of_a_model():
    assert CostModel((1.0, 0.5), 0.0).seconds([2, 6]) == 5


def test_runs_take_turns():
    order = []
    seconds = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_ratios_are_medians_within_rounds():
    seconds = {"base": [1, 2, 4], "half": [0.5, 1, 2], "other": [3, 2, 100]}
    assert ratios(seconds, "base") == {"base": 1, "half": 0.5, "other": 3}
    assert ratios({"a": [1, 3], "b": [2, 2]}, "b") == {"a": 1, "b": 1}


def test_ratios_need_as_many_rounds():
    with pytest.raises(ValueError, match="zip"):
        ratios({"a": [1, 2], "b": [1]}, "a")
