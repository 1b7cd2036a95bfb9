"""Taking rows out and mapping them: the kernels against NumPy, bit for bit where the sums are in the same order."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, product

import guarded
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kernel_tools import BUILDS, LEVELS, any_kernels, kernels_of, normal, offsets_of, pruned, why_not

from minitrans.backends.compiled import CompiledBlocks
from minitrans.backends.reference import ReferenceBlocks
from minitrans.backends.workspace import PRUNINGS
from minitrans.encoder.selection import TOP, Ranking, kept_count, score_rows, select
from minitrans.errors import InputError
from minitrans.kernels.library.loading import AHEAD, IN_TIME
from minitrans.models.parameters import Linear

SPECS = {spec.hidden_size: spec for spec in guarded.SPECS if spec.hidden_size in (8, 9, 17, 24, 31, 32, 40, 128)}
LONGEST = 400  # tokens of a text
by_level = pytest.mark.parametrize("level", LEVELS)


EVERY_BUILD = [
    # Compiling takes seconds: one level of it is enough for most runs.
    pytest.param(
        (built, level), marks=[pytest.mark.slow] * (built == IN_TIME and level != LEVELS[0]), id=f"{level} {built}"
    )
    for level, built in product(LEVELS, BUILDS)
]


@pytest.fixture(scope="module", params=EVERY_BUILD)
def kernels(request):
    return kernels_of(*request.param)


@cache
def blocks_of(level, width=32, precision="float32"):
    """The blocks of a level's kernels, or the reference's."""
    parameters = guarded.parameters_of(SPECS[width], precision)
    return ReferenceBlocks(parameters) if level == "reference" else CompiledBlocks(parameters, any_kernels(level))


@pytest.fixture(scope="module", params=["reference", *LEVELS])
def any_blocks(request):
    return blocks_of(request.param)


@st.composite
def cases(draw):
    """Hidden states, offsets and what is asked for."""
    seed = draw(st.integers(0, 2**32 - 1))
    lengths = draw(st.lists(st.integers(0, 20) | st.sampled_from([0, 1, 63, 64, 65, 300]), max_size=5))
    width, random = draw(st.sampled_from(sorted(SPECS))), np.random.default_rng(seed)
    rows = sum(lengths)
    scores = {
        "ties": random.integers(0, 4, rows),
        "all equal": np.zeros(rows),
        "signed zeros": random.choice([0.0, -0.0], rows),
        "any": random.standard_normal(rows),
        "with infinities": random.choice([-np.inf, -1, 0, 1, np.inf], rows),
        "scorer": None,
    }[draw(st.sampled_from(["ties", "all equal", "signed zeros", "any", "with infinities", "scorer"]))]
    scorer = Linear(normal(seed, 1, width), normal(seed + 1, 1))
    least = draw(
        st.just(kept_count(np.arange(LONGEST + 1), draw(st.floats(0, 0.99)), draw(st.integers(1, 9))))
        | st.just(random.integers(-2, 12, LONGEST + 1))
    )
    ranking = Ranking(
        None if scores is None else scores.astype(np.float32),
        scorer,
        least.astype(np.int64),
        draw(st.none() | st.floats(-3, 20).map(budgets_about)),
        draw(st.sampled_from([0, 0, 1, 2, 400])),
        draw(st.sampled_from([0, 0, 1, 3])),
        Linear(normal(seed + 3, width, width), normal(seed + 4, width)) if draw(st.booleans()) else None,
    )
    return normal(seed + 2, rows, width), offsets_of(lengths), ranking


def budgets_about(log_cost):
    """[N + 1] for texts of every length."""
    return np.exp(log_cost - TOP + 0.01 * np.arange(LONGEST + 1)).astype(np.float32)


def is_near_a_budget(hidden, offsets, ranking, scores):
    """Whether what some row costs is so near to the budget that rounding decides."""
    if ranking.budgets is None:
        return False
    for begin, end in pairwise(offsets.tolist()):
        place = np.arange(end - begin)
        outside = (place < ranking.prefix) | (place >= end - begin - ranking.suffix)
        keys = np.where(outside, np.inf, scores[begin:end].astype(np.float64))
        worth = np.exp(np.minimum(np.sort(keys) - TOP, 0))
        costs = np.cumsum(worth) * (place + 1)
        if (np.abs(costs - ranking.budgets[end - begin]) <= 1e-4 * costs + 1e-37).any():
            return True
    return False


def check_same(seen, wanted):
    """Hidden, scores, kept, offsets and sums, bit for bit."""
    for mine, other in zip(seen, wanted, strict=True):
        if other is None:
            assert mine is None
        else:
            assert mine.dtype == other.dtype
            assert mine.shape == other.shape
            assert mine.tobytes() == other.tobytes() or np.array_equal(mine, other)


def flat(selected):
    hidden, selection, sums = selected
    return [hidden, selection.scores, selection.kept, selection.offsets, sums]


def check_against_numpy(seen, hidden, offsets, ranking):
    """The kernel's rows and sums; the backend's are what the map makes of them, and compared elsewhere."""
    scores = seen[1]
    assume(not is_near_a_budget(hidden, offsets, ranking, scores))
    if ranking.scores is None:
        exact = hidden.astype(np.float64) @ ranking.scorer.weight[0].astype(np.float64) + ranking.scorer.bias[0]
        size = np.abs(hidden).astype(np.float64) @ np.abs(ranking.scorer.weight[0]) + np.abs(ranking.scorer.bias[0])
        bound = (hidden.shape[1] + 2) * 2.0**-24 * size  # as of any sum of so many products
        assert (np.abs(scores - exact) <= bound).all()
        assert (np.abs(score_rows(hidden, ranking) - exact) <= bound).all()
    wanted = flat(select(hidden, offsets, dataclasses.replace(ranking, scores=scores)))
    check_same(seen[:4], wanted[:4])
    return wanted[4]


@given(case=cases())
def test_the_kernel_alone(kernels, case):
    hidden, offsets, ranking = case
    before = [array.tobytes() for array in (hidden, offsets, ranking.least)]
    seen = pruned(kernels, hidden, offsets, ranking)
    check_against_numpy(seen, hidden, offsets, ranking)
    assert [array.tobytes() for array in (hidden, offsets, ranking.least)] == before
    assert (seen[4] is None) == (ranking.restore is None)
    for b, (begin, end) in enumerate(pairwise(offsets.tolist()) if seen[4] is not None else ()):
        total = np.zeros(hidden.shape[1], np.float32)
        for row in sorted({*range(begin, end)} - {*seen[2].tolist()}):
            total += hidden[row]  # in their order
        assert np.array_equal(seen[4][b], total)


@by_level
@given(case=cases(), precision=st.sampled_from(["float32", "int8"]))
def test_select_of_the_backend(level, case, precision):
    hidden, offsets, ranking = case
    seen = blocks_of(level, hidden.shape[1], precision).select(hidden, offsets, ranking)
    restored = check_against_numpy(flat(seen), hidden, offsets, ranking)
    assert (seen[2] is None) == (restored is None)
    if restored is not None:
        size = np.abs(hidden).sum(axis=0) @ np.abs(ranking.restore.weight).T + len(hidden)
        np.testing.assert_allclose(seen[2], restored, rtol=0, atol=1e-5 * float(np.max(size, initial=1)))
    assert seen[1].target is None
    if ranking.scores is not None:
        assert seen[1].scores is ranking.scores


def a_ranking(width):
    """With everything in it."""
    scorer, restore = Linear(normal(1, 1, width), normal(2, 1)), Linear(normal(3, width, width), normal(4, width))
    return Ranking(None, scorer, kept_count(np.arange(LONGEST + 1), 0.8, 3), budgets_about(6.0), 1, 1, restore)


@by_level
def test_both_builds_give_the_same_bits(level):
    ahead, in_time = (kernels_of(built, level) for built in (AHEAD, IN_TIME))
    for width in SPECS:
        hidden, offsets = normal(width, 70, width), offsets_of([31, 0, 1, 38])
        ranking = a_ranking(width)
        check_same(pruned(ahead, hidden, offsets, ranking), pruned(in_time, hidden, offsets, ranking))


@given(case=cases())
def test_a_text_is_ranked_by_itself(any_blocks, case):
    """Scores and all that follows, whatever the other texts are."""
    hidden, offsets, ranking = case
    hidden = np.resize(hidden, (len(hidden), 32))
    ranking = dataclasses.replace(ranking, scorer=Linear(normal(5, 1, 32), normal(6, 1)))
    if ranking.restore is not None:
        ranking = dataclasses.replace(ranking, restore=Linear(normal(7, 32, 32), normal(8, 32)))
    left, selection, restored = any_blocks.select(hidden, offsets, ranking)
    for b, (begin, end) in enumerate(pairwise(offsets.tolist())):
        scores = None if ranking.scores is None else ranking.scores[begin:end].copy()
        alone = dataclasses.replace(ranking, scores=scores)
        mine = flat(any_blocks.select(hidden[begin:end].copy(), np.array([0, end - begin]), alone))
        rows = slice(*selection.offsets[b : b + 2])
        check_same(
            mine,
            [
                left[rows],
                selection.scores[begin:end],
                selection.kept[rows] - begin,
                selection.offsets[b : b + 2] - rows.start,
                None if restored is None else restored[b : b + 1],
            ],
        )


@by_level
def test_scores_that_are_not_numbers_do_no_harm(level):
    """What they select is nobody's concern: the encoder reports them. Nothing else may be touched."""
    hidden, offsets = normal(1, 40, 32), offsets_of([17, 0, 23])
    hidden[[3, 20, 21]] = np.nan
    for scores in (
        None,
        np.where(np.arange(40) % 3, np.float32(1), np.float32(np.nan)),
        np.full(40, np.nan, np.float32),
    ):
        ranking = dataclasses.replace(a_ranking(32), scores=scores)
        kept = pruned(any_kernels(level), hidden, offsets, ranking)[2]
        assert (np.diff(kept) > 0).all()
        assert set(kept.tolist()) <= set(range(40))


@by_level
def test_select_with_helpers(level):
    blocks = blocks_of(level)
    hidden, offsets = normal(1, 200, 32), offsets_of([63, 0, 1, 136])
    ranking = a_ranking(32)
    wanted = flat(blocks.select(hidden, offsets, ranking))
    with guarded.every_chunk_shared():
        for _ in range(20):
            with blocks.chunk(200, helpers=3) as inside:
                check_same(flat(inside.select(hidden, offsets, ranking)), wanted)


# Linear maps


def restoring(weight, bias=None):
    """Half of the rows go; what the map makes of them is left."""
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    return Ranking(
        None, Linear(normal(1, 1, 32), normal(2, 1)), np.arange(LONGEST + 1) // 2, restore=Linear(weight, bias)
    )


def restored_by(blocks, hidden, weight):
    return blocks.select(hidden, np.array([0, len(hidden)]), restoring(weight))[2]


def expected_by(hidden, weight):
    return select(hidden, np.array([0, len(hidden)]), restoring(weight))[2]


def test_what_is_restored_is_the_callers_own(any_blocks):
    x, weight = normal(1, 5, 32), normal(2, 32, 32)
    first = restored_by(any_blocks, x, weight)
    kept = first.copy()
    restored_by(any_blocks, x + 1, weight)
    any_blocks.embed(np.arange(5), np.array([0, 5]))
    assert np.array_equal(first, kept)


def test_more_texts_than_rows(any_blocks):
    """Empty ones; each has a row of its own in what is restored."""
    offsets = offsets_of([0] * 90 + [7] + [0] * 90)
    hidden, weight, bias = normal(1, 7, 32), normal(2, 32, 32), normal(3, 32)
    seen = any_blocks.select(hidden, offsets, restoring(weight, bias))[2]
    np.testing.assert_allclose(seen, select(hidden, offsets, restoring(weight, bias))[2], rtol=0, atol=2e-4)
    assert seen[90].any()
    assert not np.delete(seen, 90, axis=0).any()


def test_many_maps_from_several_threads(any_blocks):
    """More maps than are kept laid out, some of them gone in between and their addresses taken by others."""
    lasting = [normal(seed, 32, 32) for seed in range(PRUNINGS + 5)]
    barrier = threading.Barrier(3, timeout=60)

    def call(shift):
        random = np.random.default_rng(shift)
        barrier.wait()
        for turn in range(300):
            weight = lasting[random.integers(len(lasting))] if turn % 2 else normal(1000 * shift + turn, 32, 32)
            x = normal(turn, 1 + turn % 4, 32)
            with any_blocks.chunk(len(x), 0) as inside:
                seen = restored_by(inside, x, weight)
            np.testing.assert_allclose(seen, expected_by(x, weight), rtol=0, atol=4e-4)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, range(3)))


@by_level
def test_maps_that_are_kept_do_not_pile_up(level):
    blocks = CompiledBlocks(guarded.parameters_of(SPECS[32], "float32"), any_kernels(level))
    with blocks.chunk(4, 0) as inside:
        for seed in range(3 * PRUNINGS):
            restored_by(inside, normal(1, 4, 32), normal(seed, 32, 32))
        assert len(blocks._rankings) <= PRUNINGS
        assert len(inside._chunk.workspace._prunings) <= PRUNINGS


# What comes from outside


def compiled_blocks():
    if not LEVELS or (why_not(AHEAD) and why_not(IN_TIME)):
        pytest.skip("there are no kernels for this machine")
    return blocks_of(LEVELS[0])


def good_call():
    scorer = Linear(normal(3, 1, 32), normal(4, 1))
    return {
        "hidden": normal(1, 14, 32),
        "offsets": offsets_of([5, 0, 9]),
        "scores": normal(2, 14),
        "scorer": scorer,
        "least": np.arange(LONGEST + 1) // 2,
        "budgets": budgets_about(1.0),
        "restore": normal(5, 32, 32),
    }


def call_select(hidden, offsets, scores, scorer, least, budgets, restore):
    restore = Linear(restore, normal(6, 32))
    return compiled_blocks().select(hidden, offsets, Ranking(scores, scorer, least, budgets, restore=restore))


def test_texts_longer_than_the_tables_are_refused():
    call = good_call()
    call |= {"least": call["least"][:9], "budgets": call["budgets"][:9]}
    with pytest.raises(InputError, match=r"a text has 9 tokens, the ranking's tables end at 8"):
        call_select(**call)
    call |= {"least": np.arange(10) // 2, "budgets": budgets_about(1.0)[:10]}
    call_select(**call)


def scorer_like(change):
    return lambda scorer: Linear(change(scorer.weight), scorer.bias)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("hidden", lambda hidden: hidden.astype(np.float64), r"hidden is float64"),
        ("hidden", lambda hidden: hidden[:, :31].copy(), r"hidden is float32 \[14, 31\], wanted"),
        ("hidden", lambda hidden: hidden.ravel(), r"hidden is float32 \[448\], wanted"),
        ("hidden", lambda hidden: np.asfortranarray(hidden), "hidden is float32"),
        ("hidden", lambda hidden: hidden[:13], "wanted to rise from 0 to 13"),
        ("scores", lambda scores: scores.astype(np.float64), r"scores is float64 \[14\]"),
        ("scores", lambda scores: scores[:13], r"scores is float32 \[13\]"),
        ("scores", lambda scores: scores[:, None], r"scores is float32 \[14, 1\]"),
        ("scores", lambda scores: np.repeat(scores, 2)[::2], "scores is float32"),
        ("scores", lambda _: None, None),
        ("least", lambda least: least.astype(np.int32), r"least is int32 \[401\]"),
        ("least", lambda least: least[:, None], r"least is int64 \[401, 1\]"),
        ("least", lambda least: np.repeat(least, 2)[::2], "least is int64"),
        ("budgets", lambda budgets: budgets.astype(np.float64), "budgets is float64"),
        ("budgets", lambda budgets: budgets[:9], r"budgets is float32 \[9\], wanted C-contiguous float32 \[401\]"),
        ("budgets", lambda budgets: budgets[:, None], r"budgets is float32 \[401, 1\]"),
        ("restore", lambda weight: weight[:, :31].copy(), r"restore is float32 \[32, 31\]"),
        ("restore", lambda weight: weight[:31], r"restore is float32 \[31, 32\]"),
        ("restore", lambda weight: weight.T, "restore is float32"),
        ("restore", lambda weight: weight.astype(np.float16), "restore is float16"),
        ("offsets", lambda offsets: offsets.astype(np.int32), "offsets is int32"),
        ("offsets", lambda offsets: np.repeat(offsets, 2)[::2], "offsets is int64"),
        ("offsets", lambda offsets: offsets + 1, "wanted to rise from 0 to 14"),
        ("offsets", lambda offsets: offsets[[0, 3, 1, 3]], "wanted to rise"),
        ("offsets", lambda offsets: np.array([0, 2**62, -(2**62), 14]), "wanted to rise"),
        ("offsets", lambda offsets: offsets[:0], "wanted"),
        ("scorer", scorer_like(lambda weight: weight.astype(np.float64)), "scorer is float64"),
        ("scorer", scorer_like(lambda weight: weight[:, :31]), r"scorer is float32 \[1, 31\]"),
        ("scorer", scorer_like(lambda weight: np.repeat(weight, 2, axis=0)), r"scorer is float32 \[2, 32\]"),
        ("scorer", scorer_like(lambda weight: weight[0]), r"scorer is float32 \[32\]"),
        ("scorer", scorer_like(lambda weight: np.repeat(weight, 2, axis=1)[:, ::2]), "scorer is float32"),
        ("scorer", lambda _: None, "neither scores nor a scorer"),
    ],
)
def test_arrays_that_select_refuses(field, change, message):
    call = good_call()
    call_select(**call)
    if field == "scorer":
        call["scores"] = None
        call_select(**call)
    changed = call | {field: change(call[field])}
    if message is None:
        call_select(**changed)
        return
    with pytest.raises(InputError, match=message):
        call_select(**changed)
    call_select(**call)
