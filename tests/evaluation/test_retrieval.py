"""Rankings and their metrics against loops, and the ways in which pruned and unpruned embeddings meet."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fitted_policies import fitted_to_lengths
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_tasks import PRUNED, WORDS, word_task

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.data.searches import SearchTask, intent_search
from minitrans.errors import InputError, PolicyError, TruncationWarning
from minitrans.evaluation import retrieval
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.metrics import Interval, confidence_interval
from minitrans.evaluation.retrieval import (
    COLUMNS,
    evaluate_search,
    recalls,
    reciprocal_ranks,
    top_documents,
)

WAYS = ["both", "queries", "documents"]
NOTHING = PruningPolicy(min_tokens=500, layer=0)  # prunes nothing


def small(count):
    """Whole numbers, whose products are exact, with many ties."""
    return arrays(np.float32, (count, 3), elements=st.integers(-2, 2).map(float))


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain, threads=1)


@pytest.fixture(scope="module")
def task():
    return intent_search(word_task())


@pytest.fixture(scope="module")
def found(encoder, task):
    return evaluate_search(encoder, [task], {"half": PRUNED})


# Rankings and metrics


def naive_top(queries, documents, most):
    products = [[sum(float(x) * float(y) for x, y in zip(q, d, strict=True)) for d in documents] for q in queries]
    return [sorted(range(len(documents)), key=lambda i: (-row[i], i))[:most] for row in products]


@given(st.data(), st.integers(1, 6), st.integers(1, 25), st.integers(1, 12), st.integers(1, 60))
def test_the_first_documents_are_the_greatest_products(data, asked, held, most, block):
    queries, documents = data.draw(small(asked)), data.draw(small(held))
    found = top_documents(queries, documents, most, block)
    assert found.tolist() == naive_top(queries, documents, most)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3000))
def test_of_equal_embeddings_the_earlier_comes_first(seed, block):
    """Whatever place in a block of products changes in the last bits."""
    draw = np.random.default_rng(seed)
    some = draw.normal(size=(13, 48)).astype(np.float32)
    documents = some[draw.integers(0, 13, size=101)]
    queries = draw.normal(size=(9, 48)).astype(np.float32)
    exact = (queries[:, None].astype(float) * documents).sum(axis=2)
    wanted = [sorted(range(101), key=lambda i: (-row[i], i))[:10] for row in exact]
    assert top_documents(queries, documents, block=block).tolist() == wanted


def test_few_documents_and_other_shapes():
    assert top_documents(np.ones((2, 3)), np.ones((1, 3))).tolist() == [[0], [0]]
    assert top_documents(np.ones((2, 3)), np.ones((0, 3))).shape == (2, 0)
    for queries, documents in ((np.ones(3), np.ones((1, 3))), (np.ones((1, 3)), np.ones((1, 4)))):
        with pytest.raises(InputError, match=r"wanted \[Q, H\] and \[D, H\]"):
            top_documents(queries, documents)


rankings = st.lists(
    st.tuples(st.permutations(range(14)).map(lambda rows: rows[:10]), st.sets(st.integers(0, 13), min_size=1)),
    min_size=1,
    max_size=8,
)


@given(rankings)
def test_metrics_are_their_definitions(pairs):
    found, relevant = [list(column) for column in zip(*pairs, strict=True)]
    ranks, shares = [], []
    for rows, wanted in pairs:
        places = [place for place, row in enumerate(rows, 1) if row in wanted]
        ranks.append(1 / places[0] if places else 0)
        shares.append(len(places) / min(10, len(wanted)))
    relevant = [sorted(rows) for rows in relevant]
    assert reciprocal_ranks(found, relevant).tolist() == ranks
    assert recalls(found, relevant).tolist() == shares


def test_metrics_of_known_rankings():
    found = [[3, 1, 2], [3, 1, 2], [3, 1, 2]]
    assert reciprocal_ranks(found, [[3], [2], [0]]).tolist() == [1, 1 / 3, 0]
    assert recalls(found, [[3], [0, 2], list(range(4, 40))]).tolist() == [1, 0.5, 0]
    assert recalls([list(range(10))], [list(range(40))]).tolist() == [1]
    with pytest.raises(InputError, match="for 2 queries"):
        recalls(found, [[1], [2]])


# Searches


def by_hand(encoder, task, sides, policy=PRUNED):
    texts = (task.queries, task.documents)
    rows = [encoder.encode(each, pruning=policy if side else None) for each, side in zip(texts, sides, strict=True)]
    top = naive_top(*rows, 10)
    places = [
        [place for place, row in enumerate(rows, 1) if row in wanted]
        for rows, wanted in zip(top, task.relevant, strict=True)
    ]
    ranks = [1 / each[0] if each else 0 for each in places]
    shares = [len(each) / min(10, len(wanted)) for each, wanted in zip(places, task.relevant, strict=True)]
    return np.array(ranks), np.array(shares)


def test_every_way_in_which_pruned_and_unpruned_meet(encoder, task, found):
    assert [(row.task, row.pruning, row.pruned) for row in found.rows] == [
        ("tiny", "none", None),
        *(("tiny", "half", way) for way in WAYS),
    ]
    assert {(row.queries, row.documents) for row in found.rows} == {(6, 12)}
    base = by_hand(encoder, task, (False, False))
    for row, sides in zip(found.rows, [(False, False), (True, True), (True, False), (False, True)], strict=True):
        ranks, shares = by_hand(encoder, task, sides)
        assert row.result.mrr == pytest.approx(ranks.mean())
        assert row.result.recall == pytest.approx(shares.mean())
        if any(sides):
            for change, difference in (
                (row.result.mrr_change, ranks - base[0]),
                (row.result.recall_change, shares - base[1]),
            ):
                wanted = confidence_interval(difference.tolist())
                assert (change.mean, change.half_width) == pytest.approx((wanted.mean, wanted.half_width), abs=1e-12)
    assert len({row.result.mrr for row in found.rows}) > 2  # the ways can be told apart


def test_turns_are_those_of_what_is_pruned(encoder, task, found):
    none, both, queries, documents = (row.result for row in found.rows)
    wanted = []
    for texts in (task.queries, task.documents):
        pairs = zip(encoder.encode(texts), encoder.encode(texts, pruning=PRUNED), strict=True)
        wanted.append(np.mean([math.degrees(math.acos(min(1, float(a.astype(float) @ b)))) for a, b in pairs]))
    assert (both.query_turn, both.document_turn) == pytest.approx(wanted, abs=1e-2)
    assert (queries.query_turn, queries.document_turn) == (both.query_turn, None)
    assert (documents.query_turn, documents.document_turn) == (None, both.document_turn)
    assert none.query_turn is none.document_turn is none.mrr_change is none.recall_change is None


@pytest.mark.parametrize("policy", [None, NOTHING])
def test_what_prunes_nothing_changes_nothing(encoder, task, policy):
    none, both, queries, documents = (row.result for row in evaluate_search(encoder, [task], {"it": policy}).rows)
    for result in (both, queries, documents):
        assert (result.mrr, result.recall) == (none.mrr, none.recall)
        assert result.mrr_change == result.recall_change == Interval(0, 0)
    assert (both.query_turn, both.document_turn) == (0, 0)


def test_a_text_may_be_query_and_document(encoder):
    """It finds itself first, whether or not that is an answer."""
    texts = WORDS["card"]
    own = SearchTask("own", texts, texts, [[i] for i in range(6)], "")
    other = SearchTask("other", texts, texts, [[(i + 1) % 6] for i in range(6)], "")
    rows = evaluate_search(encoder, [own, other]).rows
    assert rows[0].result.mrr == rows[0].result.recall == 1
    assert rows[1].result.mrr <= 0.5
    assert rows[1].result.recall == 1


def test_queries_and_documents_have_their_prompts(plain, task):
    prompts = {"query": "card ", "document": "money account "}
    encoder = SentenceEncoder(plain, threads=1, prompts=prompts)
    rows = evaluate_search(encoder, [task]).rows
    spelt = SearchTask(
        "tiny", [f"card {q}" for q in task.queries], [f"money account {d}" for d in task.documents], task.relevant, ""
    )
    assert rows[0].result == evaluate_search(SentenceEncoder(plain, threads=1), [spelt]).rows[0].result
    assert rows[0].result != evaluate_search(SentenceEncoder(plain, threads=1), [task]).rows[0].result


def test_a_model_of_dot_products_is_ranked_by_them(plain, task, monkeypatch):
    asked = []
    encode = SentenceEncoder.encode_query
    monkeypatch.setattr(
        SentenceEncoder,
        "encode_query",
        lambda self, texts, **o: asked.append(o["normalize_embeddings"]) or encode(self, texts, **o),
    )
    for name, wanted in (("dot", False), ("cosine", True)):
        asked.clear()
        evaluate_search(SentenceEncoder(plain, threads=1, similarity_fn_name=name), [task])
        assert asked == [wanted]


def test_several_tasks_end_in_their_means(encoder, task):
    other = SearchTask("other", WORDS["time"], WORDS["send"], [[i] for i in range(6)], "")
    rows = evaluate_search(encoder, [task, other], {"half": PRUNED}).rows
    first, second, mean = (rows[begin : begin + 4] for begin in (0, 4, 8))
    assert [row.task for row in rows] == ["tiny"] * 4 + ["other"] * 4 + ["(mean)"] * 4
    for a, b, both in zip(first, second, mean, strict=True):
        assert (both.pruning, both.pruned) == (a.pruning, a.pruned) == (b.pruning, b.pruned)
        assert (both.queries, both.documents) == (12, 18)
        for name in ("mrr", "recall", "query_turn", "document_turn"):
            values = [getattr(row.result, name) for row in (a, b)]
            wanted = None if None in values else pytest.approx(sum(values) / 2)
            assert getattr(both.result, name) == wanted
        changes = [row.result.mrr_change for row in (a, b)]
        if a.pruned is None:
            assert both.result.mrr_change is None
            continue
        assert both.result.mrr_change.mean == pytest.approx(sum(each.mean for each in changes) / 2)
        width = math.hypot(*(each.half_width for each in changes)) / 2
        assert both.result.mrr_change.half_width == pytest.approx(width)
        assert width > 0


def test_one_query_has_no_interval(encoder):
    one = SearchTask("one", ["card"], WORDS["card"], [[0]], "")
    rows = evaluate_search(encoder, [one, replace(one, name="two")], {"half": PRUNED}).rows
    assert {row.result.mrr_change.half_width for row in rows if row.pruned} == {None}


def test_rows_are_for_the_columns_and_plain(found):
    values = found.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert {key for column in COLUMNS for key in (column.key, column.spread) if key} == set(values["rows"][0])
    (table,) = found.tables()
    assert (table.name, table.rows) == ("search", found.table())
    assert set(table.narrow) < set(table.columns)


def test_texts_that_are_cut_are_told_once(plain):
    encoder = SentenceEncoder(plain, threads=1)
    long = SearchTask("long", ["card"], ["card " * 1000], [[0]], "")
    with pytest.warns(TruncationWarning) as told:
        evaluate_search(encoder, [long], {"half": fitted_to_lengths(encoder, 5, 8)})
    assert len(told) == 1  # and none of the lengths that the policy was not fitted on


# The journal


def test_an_interrupted_search_goes_on(encoder, task, tmp_path, monkeypatch):
    other = SearchTask("other", WORDS["time"], WORDS["send"], [[i] for i in range(6)], "")
    what = [task, other], {"half": PRUNED, "nothing": None}
    whole = evaluate_search(encoder, *what)
    assert (whole.from_journal, whole.computed) == (0, 6)
    done, embedded = [], retrieval._embedded

    def counted(*arguments):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(arguments)
        return embedded(*arguments)

    monkeypatch.setattr(retrieval, "_embedded", counted)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate_search(encoder, *what, Journal(tmp_path / "j"))
    stop = None
    found = evaluate_search(encoder, *what, Journal(tmp_path / "j"))
    assert (found.from_journal, found.computed) == (2, 4)
    assert found.rows == whole.rows
    done.clear()
    again = evaluate_search(encoder, *what, Journal(tmp_path / "j"))
    assert (again.from_journal, again.computed, done) == (6, 0, [])
    assert again.rows == whole.rows


def test_whatever_a_search_depends_on_makes_it_another(plain, encoder, task):
    journal = Journal(None)

    def computed(encoder=encoder, task=task, **policies):
        return evaluate_search(encoder, [task], policies, journal).computed

    assert computed(half=PRUNED) == 2
    assert computed(half=PRUNED) == computed(renamed=PRUNED) == computed() == 0
    assert computed(nothing=None) == 1
    assert computed(half=replace(PRUNED, quantile=0.4)) == 1
    assert computed(half=replace(PRUNED, provenance={"by": "hand"})) == 0
    assert computed(task=replace(task, name="renamed", source="elsewhere")) == 0
    assert computed(task=replace(task, relevant=[[0]] * 6)) == 1
    assert computed(SentenceEncoder(plain, threads=1, similarity_fn_name="dot")) == 1
    assert computed(SentenceEncoder(plain, threads=1, prompts={"query": "card "})) == 1


RESULT = {
    "mrr": 0.5,
    "recall": 1,
    "mrr_change": {"mean": -0.1, "half_width": None},
    "recall_change": {"mean": 0.0, "half_width": 0.2},
    "query_turn": 3.0,
    "document_turn": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mrr": 1.1},
        {"recall": None},
        {"mrr_change": 0.1},
        {"mrr_change": {"mean": 2, "half_width": 1}},
        {"mrr_change": {"mean": "0", "half_width": 1}},
        {"mrr_change": {"mean": 0, "half_width": -1}},
        {"recall_change": {"mean": 0}},
        {"query_turn": 200},
        {"document_turn": "1"},
        {"more": 1},
        None,
    ],
)
def test_a_journal_with_something_else_is_refused(encoder, task, change):
    class Foreign(Journal):
        def get(self, key):
            if key["kind"] != "pruned search":
                return super().get(key)
            return {"both": RESULT} if change is None else dict.fromkeys(WAYS, RESULT | change)

    if change == {}:
        found = evaluate_search(encoder, [task], {"half": PRUNED}, Foreign(None))
        assert found.rows[-1].result.mrr_change == Interval(-0.1, None)
        return
    with pytest.raises(InputError, match=r"the journal holds .*, wanted for both, queries, documents .*; start a new"):
        evaluate_search(encoder, [task], {"half": PRUNED}, Foreign(None))


def test_impossible_searches_are_refused(encoder, task):
    with pytest.raises(InputError, match="the tasks are none"):
        evaluate_search(encoder, [])
    with pytest.raises(InputError, match="the tasks are tiny, tiny"):
        evaluate_search(encoder, [task, task])
    with pytest.raises(InputError, match="the policy 'none' prunes"):
        evaluate_search(encoder, [task], {"none": PRUNED})
    with pytest.raises(PolicyError, match="layer 9"):
        evaluate_search(encoder, [task], {"deep": PruningPolicy(layer=9)})


def test_progress_is_shown_when_asked_for(encoder, task, capsys):
    evaluate_search(encoder, [task], progress=True)
    assert "searches" in capsys.readouterr().err
    evaluate_search(encoder, [task])
    assert capsys.readouterr() == ("", "")
