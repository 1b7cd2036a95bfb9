"""Turns, lengths and rank correlations against their definitions, and what `evaluate` makes of them."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from fitted_policies import fitted_to_lengths
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_tasks import PRUNED, WORDS, word_task

from minitrans import SentenceEncoder
from minitrans.errors import InputError, PruningWarning, TruncationWarning
from minitrans.evaluation import fidelity as near
from minitrans.evaluation import measurement
from minitrans.evaluation.few_shot import COLUMNS, NARROW, evaluate
from minitrans.evaluation.fidelity import (
    LENGTHS,
    Fidelity,
    LengthTurn,
    fidelity,
    mean_fidelity,
    measure_fidelity,
    nearest_length,
    rank_correlation,
    similarity_correlation,
    turns,
)
from minitrans.evaluation.journal import Journal

FEW = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12)
TEXTS = [text for texts in WORDS.values() for text in texts]


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain, threads=1)


@pytest.fixture(autouse=True)
def no_rounds(monkeypatch):
    monkeypatch.setattr(measurement, "ROUNDS", 1)


# The turn


@given(st.floats(1e-12, math.pi - 1e-6), st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_a_turn_is_the_angle_whatever_its_size(angle, scale, seed):
    draw = np.random.default_rng(seed)
    a = draw.normal(size=8)
    b = draw.normal(size=8)
    a /= np.linalg.norm(a)
    b -= (a @ b) * a
    b /= np.linalg.norm(b)
    turned = scale * (math.cos(angle) * a + math.sin(angle) * b)
    (found,) = turns(a[None], turned[None])
    assert math.radians(found) == pytest.approx(angle, rel=1e-6, abs=1e-14)


def test_small_turns_are_told_apart_in_float32():
    """Where an arccos of the float32 cosine gives 0 for both."""
    a = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    b = np.array([[1.0, 1e-5], [1.0, 2e-5]], np.float32)
    assert turns(a, b) == pytest.approx([math.degrees(1e-5), math.degrees(2e-5)], rel=1e-6)


@given(arrays(np.float32, (4, 3), elements=st.floats(-1e3, 1e3, width=32)))
def test_equal_rows_do_not_turn_at_all(rows):
    assert turns(rows, rows).tolist() == [0, 0, 0, 0]


def test_opposite_rows_and_rows_of_zeros():
    a = np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    b = np.array([[-1.0, -2.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert turns(a, b).tolist() == [180, 0, 180, 180]


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 3)])
def test_other_shapes_have_no_turn(shape):
    with pytest.raises(InputError, match=r"wanted \[B, H\] both times"):
        turns(np.ones((2, 3)), np.ones(shape))


# Lengths


def test_lengths_count_to_the_nearest_on_a_logarithmic_scale():
    lengths = range(1, 600)
    wanted = [min(LENGTHS, key=lambda each: abs(math.log(each / length))) for length in lengths]
    assert nearest_length(lengths).tolist() == wanted


def test_turns_by_length_are_means_over_the_texts_of_each():
    a = np.tile([1.0, 0.0], (4, 1))
    angles = [1.0, 3.0, 10.0, 20.0]
    b = np.array([[math.cos(math.radians(x)), math.sin(math.radians(x))] for x in angles])
    found = fidelity(a, b, [7, 9, 60, 300])
    assert (found.turn, found.turn_p95) == pytest.approx((8.5, np.percentile(angles, 95)))
    assert [(each.length, each.texts) for each in found.lengths] == [(8, 2), (64, 1), (256, 1)]
    assert [each.turn for each in found.lengths] == pytest.approx([2, 10, 20])
    assert found.lengths[0].turn_p95 == pytest.approx(2.9)
    for lengths in ([7, 9, 60], []):
        with pytest.raises(InputError, match="lengths for 4 texts"):
            fidelity(a, b, lengths)


def test_lengths_are_those_that_run(plain):
    """With special tokens, and cut."""
    encoder = SentenceEncoder(plain, threads=1, on_truncation="ignore")
    encoder.max_seq_length = 16
    texts = ["card card card card", "card " * 100]
    (found,) = measure_fidelity(encoder, texts, {"half": PRUNED}).values()
    assert [(each.length, each.texts) for each in found.lengths] == [(8, 1), (16, 1)]
    assert len(encoder.tokenized(texts).ids[0]) == 6


# Rank correlation


def naive_ranks(values):
    """1 + how many are smaller + half of how many others are equal."""
    return [1 + sum(x < value for x in values) + (sum(x == value for x in values) - 1) / 2 for value in values]


def naive_correlation(a, b):
    x, y = naive_ranks(a), naive_ranks(b)
    mean = (len(x) + 1) / 2
    top = math.fsum((i - mean) * (j - mean) for i, j in zip(x, y, strict=True))
    bottom = math.fsum((i - mean) ** 2 for i in x) * math.fsum((j - mean) ** 2 for j in y)
    return top / math.sqrt(bottom) if bottom else None


@given(FEW)
def test_rank_correlations_are_their_definition(pairs):
    a, b = zip(*pairs, strict=True)
    wanted = naive_correlation(a, b)
    found = rank_correlation(a, b)
    assert found == (None if wanted is None else pytest.approx(wanted, abs=1e-12))


@given(FEW)
def test_rank_correlations_agree_with_scipy(pairs):
    stats = pytest.importorskip("scipy.stats")
    a, b = zip(*pairs, strict=True)
    found = rank_correlation(a, b)
    if found is not None:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50, unique=True))
def test_the_same_order_is_one_and_its_reverse_minus_one(values):
    assert rank_correlation(values, np.argsort(np.argsort(values))) == 1
    assert rank_correlation(values, -np.array(values)) == -1


def test_no_correlation_where_there_is_no_order():
    assert rank_correlation([], []) is None
    assert rank_correlation([1.0], [2.0]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(InputError, match="lists of 2 and 3 numbers"):
        rank_correlation([1, 2], [1, 2, 3])


def test_similarities_are_cosines_of_all_pairs():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 7, 5))
    b *= draw.uniform(1, 9, size=(7, 1))  # lengths do not count

    def cosines(rows):
        pairs = [(i, j) for i in range(7) for j in range(i)]
        return [rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]) for i, j in pairs]

    wanted = naive_correlation(cosines(a), cosines(b))
    assert similarity_correlation(a, b) == pytest.approx(wanted, abs=1e-12)
    assert abs(wanted) < 0.9
    assert similarity_correlation(a[:2], b[:2]) is None  # one pair


def test_of_many_texts_the_same_ones_are_drawn():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 40, 5))
    rows = near._drawn(40, 10)
    assert len(set(rows)) == 10
    assert rows == sorted(rows) == near._drawn(40, 10)
    assert rows != list(range(10))
    assert similarity_correlation(a, b, most=10) == similarity_correlation(a[rows], b[rows])
    assert similarity_correlation(a, b, most=10) != similarity_correlation(a, b)


# Of an encoder


def test_fidelity_compares_embeddings(encoder):
    found = measure_fidelity(encoder, TEXTS, {"half": PRUNED, "nothing": None})
    unpruned, pruned = (encoder.encode(TEXTS, pruning=policy).astype(float) for policy in (None, PRUNED))
    angles = [math.degrees(math.acos(min(1, float(a @ b)))) for a, b in zip(unpruned, pruned, strict=True)]
    assert found["half"].turn == pytest.approx(np.mean(angles), abs=1e-2)
    assert found["half"].turn_p95 == pytest.approx(np.percentile(angles, 95), abs=1e-2)
    assert found["half"].turn > 1
    assert 0 < found["half"].similarity < 1
    assert (found["nothing"].turn, found["nothing"].turn_p95, found["nothing"].similarity) == (0, 0, 1)


def test_it_is_measured_without_warnings(plain):
    encoder = SentenceEncoder(plain, threads=1)
    policy, texts = fitted_to_lengths(encoder, 5, 8), ["card " * 1000, "time"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_fidelity(encoder, texts, {"half": policy})
    with pytest.warns(TruncationWarning), pytest.warns(PruningWarning):
        encoder.encode(texts, pruning=policy)


SOME = Fidelity(2.0, 4.0, 0.5, (LengthTurn(8, 3, 1.0, 2.0), LengthTurn(32, 1, 5.0, 5.0)))


def test_means_over_tasks():
    other = Fidelity(4.0, 8.0, None, (LengthTurn(32, 2, 7.0, 9.0),))
    wanted = Fidelity(3.0, 6.0, 0.5, (LengthTurn(8, 3, 1.0, 2.0), LengthTurn(32, 3, 6.0, 7.0)))
    assert mean_fidelity([SOME, other]) == wanted
    assert mean_fidelity([other]) == other


def test_it_survives_a_journal(tmp_path):
    Journal(tmp_path / "j").put({"a": 1}, SOME.to_dict())
    assert Fidelity.from_dict(Journal(tmp_path / "j").get({"a": 1})) == SOME


GOOD = SOME.to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"turn": -1},
        {"turn": "1"},
        {"turn_p95": 181},
        {"similarity": 2},
        {"similarity": "high"},
        {"lengths": None},
        {"lengths": [1]},
        {"lengths": [GOOD["lengths"][0] | {"length": 9}]},
        {"lengths": [GOOD["lengths"][0] | {"length": []}]},
        {"lengths": [GOOD["lengths"][0] | {"texts": 0}]},
        {"lengths": [GOOD["lengths"][0] | {"turn": None}]},
        {"more": 1},
        None,
    ],
)
def test_a_journal_with_something_else_is_refused(encoder, change):
    class Foreign(Journal):
        def get(self, key):
            if key["kind"] != "fidelity":
                return super().get(key)
            return {} if change is None else GOOD | change

    assert Fidelity.from_dict(GOOD) == SOME
    with pytest.raises(InputError, match=r"the journal holds .*, wanted turns from 0 to 180.*; start a new one"):
        evaluate(encoder, [word_task()], [1], [0], {"half": PRUNED}, Foreign(None))


# In `evaluate`


def test_rows_have_the_fidelity_of_the_test_texts(encoder):
    tasks = [word_task("a"), word_task("b", words=dict(list(WORDS.items())[:2]))]
    found = evaluate(encoder, tasks, [1, 2], [0], {"half": PRUNED, "nothing": None})
    by_task = {task.name: measure_fidelity(encoder, task.splits["test"].texts, {"half": PRUNED}) for task in tasks}
    for row in found.rows:
        if row.pruning == "none":
            assert row.fidelity is None
        elif row.pruning == "nothing":
            assert (row.fidelity.turn, row.fidelity.similarity) == (0, 1)
        elif row.task == "(mean)":
            assert row.fidelity == mean_fidelity([by_task["a"]["half"], by_task["b"]["half"]])
        else:
            assert row.fidelity == by_task[row.task]["half"]
    table = {(row["task"], row["pruning"]): row for row in found.table()}
    assert table["a", "none"]["turn"] is table["a", "none"]["similarity"] is table["a", "none"]["turn_p95"] is None
    assert table["a", "half"]["turn"] == by_task["a"]["half"].turn
    assert {"turn", "similarity"} <= {column.key for column in NARROW} < {column.key for column in COLUMNS}


def test_the_turn_by_length_is_a_table_where_there_are_several(encoder):
    words = {"card": ["lost card"] * 4 + ["my card", "card " * 30], "time": ["what time"] * 4 + ["time", "now time"]}
    task = word_task("both", words=words)
    found = evaluate(encoder, [task, word_task("short")], [1, 2], [0], {"half": PRUNED})
    first, second = found.tables()
    assert (first.name, len(first.rows), second.name) == ("", 12, "turn-by-length")
    assert [(row["task"], row["pruning"]) for row in second.rows] == [
        ("both", "half"),
        ("short", "half"),
        ("(mean)", "half"),
    ]
    assert [column.title for column in second.narrow] == ["task", "pruning", "8 tokens", "32 tokens"]
    both, short, mean = second.rows
    assert (both["texts_8"], both["texts_32"], short["texts_8"]) == (3, 1, 6)
    assert "turn_32" not in short
    assert (mean["turn_8"], mean["turn_32"]) == pytest.approx(((both["turn_8"] + short["turn_8"]) / 2, both["turn_32"]))
    assert found.to_dict()["turn_by_length"] == second.rows
    json.dumps(found.to_dict(), allow_nan=False)
    for policies in ({}, {"half": PRUNED}):  # no pruning, one length
        assert len(evaluate(encoder, [word_task("short")], [1], [0], policies).tables()) == 1


def test_only_a_new_policy_is_measured(encoder, monkeypatch):
    journal, measured = Journal(None), []

    def counted(encoder, texts, policies):
        measured.append(list(policies))
        return measure_fidelity(encoder, texts, policies)

    monkeypatch.setattr("minitrans.evaluation.few_shot.measure_fidelity", counted)
    first = evaluate(encoder, [word_task()], [1], [0], {"a": PRUNED}, journal)
    more = {"a": PRUNED, "b": replace(PRUNED, quantile=0.3)}
    second = evaluate(encoder, [word_task()], [1], [0], more, journal)
    assert measured == [["a"], ["b"]]
    assert second.rows[1] == first.rows[1]
