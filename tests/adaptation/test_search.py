"""The search's steps: limits, accuracies and arrays against the public encoder and classifier, and the journal."""

import math
import random
from dataclasses import replace
from functools import cache, reduce
from operator import add

import numpy as np
import pytest
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tasks import tiny_task

from minitrans import FewShotClassifier, SentenceEncoder
from minitrans.adaptation import search as search_module
from minitrans.adaptation import trials
from minitrans.adaptation.fitting import UnforeseenTurnError, calibrated, fit, token_moments
from minitrans.adaptation.recipes import Recipe
from minitrans.adaptation.search import DEGREE, HOPELESS, Limits, Outcome, Search, SearchSettings, mean_turns
from minitrans.adaptation.trials import SearchTrial, Trial, prompted_search, smaller_search, unlabelled_texts
from minitrans.data.files import Examples
from minitrans.data.searches import SearchTask, half_search
from minitrans.data.tasks import Draw, Task, draw
from minitrans.encoder.forward import forward
from minitrans.errors import InputError
from minitrans.evaluation.fidelity import nearest_length, turns
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.metrics import accuracy
from minitrans.evaluation.retrieval import evaluate_search

pytestmark = pytest.mark.filterwarnings("ignore::minitrans.errors.PruningWarning")  # texts of other lengths, too

SHOTS, SEEDS = (1, 2), (0, 3)
TASKS = [tiny_task("shop", 0), tiny_task("bank", 1), tiny_task("road", 2, classes=4)]
RECIPES = {
    "attention": Recipe(((1, 0.5),), "attention", "drop"),
    "attention of two stages": Recipe(((0, 0.3), (2, 0.5)), "attention", "drop", min_tokens=3),
    "attention_value, merged": Recipe(((0, 0.4),), "attention_value", "merge"),
    "restored": Recipe(((1, 0.6),), "learned", "restore", min_tokens=4),
    "restored in two stages": Recipe(((0, 0.3), (1, 0.3)), "attention", "restore"),
    "turn": Recipe(((1, 0.9),), "learned", "drop", min_tokens=4, max_turn=12.0),
    "specials protected": Recipe(((2, 0.5),), "learned", "drop", protect_special=True),
}


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


def make_search(encoder, tasks=TASKS, journal=None, fit_on=None, **changes):
    settings = SearchSettings(**{"shots": SHOTS, "seeds": SEEDS, "fit_texts": 30, "test_texts": 100} | changes)
    return Search(encoder, tasks, settings, journal, fit_on=fit_on)


class Pruned:
    def __init__(self, encoder, policy):
        self.encoder, self.policy = encoder, policy

    def encode(self, texts):
        return self.encoder.encode(texts, pruning=self.policy)


def by_hand(encoder, task, policy):
    """Accuracies [shots, draws] with the public classes alone."""
    rows = []
    for count in SHOTS:
        draws = [draw(task, count, seed) for seed in SEEDS]
        fitted = [FewShotClassifier(Pruned(encoder, policy)).fit(one.train.texts, one.train.labels) for one in draws]
        rows.append(
            [
                accuracy(one.test.labels, classifier.predict(one.test.texts).tolist())
                for one, classifier in zip(draws, fitted, strict=True)
            ]
        )
    return np.array(rows)


@cache
def unpruned(encoder, place):
    return by_hand(encoder, TASKS[place], None)


# Limits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean_drop", -0.1),
        ("mean_drop", math.nan),
        ("mean_drop", "1"),
        ("task_drop", math.inf),
        ("task_drop", None),
        ("turn", -1),
        ("turn", math.nan),
        ("search_drop", "2"),
        ("search_drop", -0.5),
        ("confidence", 0.49),
        ("confidence", 1),
        ("confidence", math.nan),
        ("confidence", 90),
    ],
)
def test_bad_limits_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"{name} is {value!r}, wanted"):
        Limits(**{name: value})


def outcome(drops, recipe=RECIPES["attention"]):
    return Outcome(recipe, {name: np.array(each, float) for name, each in drops.items()}, 0.5, np.zeros(8))


def test_bounds_of_one_draw_are_the_means():
    one = outcome({"a": [[1.0], [2.0]], "b": [[-3.0], [0.0]]})
    assert one.mean_drop == 0
    assert one.bounds(0.5) == one.bounds(0.9) == (0, 1.5)


def test_bounds_of_several_draws():
    one = outcome({"a": [[1, 2, 3]], "b": [[0, 0, 3], [0, 4, 5]]})  # draws of b, over the shots: 0, 2, 4
    assert one.mean_drop == 2
    assert one.bounds(0.5) == (2, 2)
    errors = 1 / math.sqrt(3), 2 / math.sqrt(3)
    t = 1.88562  # 90th percentile of Student's distribution with 2 degrees of freedom
    mean, worst = one.bounds(0.9)
    assert mean == pytest.approx(2 + t * math.hypot(*errors) / 2, rel=1e-5)
    assert worst == pytest.approx(2 + t * errors[1], rel=1e-5)


def test_the_worst_task_need_not_have_the_worst_mean():
    one = outcome({"steady": [[3, 3]], "shaky": [[0, 4]]})
    assert one.bounds(0.5)[1] == 3
    assert one.bounds(0.9)[1] == pytest.approx(2 + 3.07768 * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("limits", "meets"),
    [((2, 2, 0.5), True), ((1.9, 5, 0.5), False), ((5, 1.9, 0.5), False), ((2, 2, 0.6), False), ((50, 50, 0.9), True)],
)
def test_both_limits_have_to_hold(limits, meets):
    assert outcome({"a": [[1, 2, 3]], "b": [[0, 2, 4]]}).meets(Limits(*limits)) is meets


def searched(turns, **drops):
    return replace(outcome({"a": [[1.0]]}), turns=turns, search_drops=drops)


def test_the_worst_length_and_the_worst_way_count():
    one = searched({8: 3.0, 64: 9.0, 256: 5.0})
    assert (one.turn, one.search_drop) == (9.0, None)
    ways = {"both": 1.0, "queries": 4.0, "documents": 0.0}, {"both": 3.0, "queries": -4.0, "documents": 5.0}
    one = searched({8: 3.0}, a=ways[0], b=ways[1])
    assert one.search_drop == 2.5  # of documents: 0 and 5; the worst way of each would be 4.5
    assert one.mean_drop == 1.0
    assert replace(one, drops={}).mean_drop == 2.5
    assert replace(one, drops={}).bounds(0.9) == (0, 0)


WAYS = {"both": 1.0, "queries": 2.0, "documents": 3.0}


@pytest.mark.parametrize(
    ("limits", "excess"),
    [
        ({}, 2.0),  # the limit on searches is that on tasks
        ({"search_drop": 2.5}, 0.5),
        ({"search_drop": 3.0}, 0.0),
        ({"search_drop": 3.0, "turn": 9.5}, -0.0),
        ({"search_drop": 3.0, "turn": 7.0}, 2 * DEGREE),
        ({"search_drop": 2.0, "turn": 9.0 - 0.5 / DEGREE}, 1.0),
        ({"search_drop": 3.5, "turn": 9.0, "mean_drop": 0.25}, 0.75),
    ],
)
def test_what_is_limited_has_to_hold_everywhere(limits, excess):
    one, all_limits = searched({8: 3.0, 64: 9.0}, faq=WAYS), Limits(confidence=0.5, **limits)
    assert one.excess(all_limits) == pytest.approx(excess, abs=1e-12)
    assert one.meets(all_limits) is (one.excess(all_limits) <= 0)
    alone = replace(one, drops={})
    assert alone.excess(Limits(0, 0, search_drop=3.0)) == 0  # no tasks, no limit on them


def test_turns_without_a_limit_are_free():
    assert searched({64: 90.0}).meets(Limits())
    assert not searched({64: 90.0}).meets(Limits(turn=89.0))


rows = st.tuples(st.sampled_from([8, 16, 32]), st.integers(1, 25), st.floats(0, 90))


@settings(max_examples=60)
@given(st.lists(st.lists(rows, max_size=4), min_size=1, max_size=4).filter(any))
def test_mean_turns_count_texts(found):
    texts = {
        length: [turn for rows in found for near, count, turn in rows for _ in range(count) if near == length]
        for length in (8, 16, 32)
    }
    wanted = {length: np.mean(each) for length, each in texts.items() if each}
    enough = {length: each for length, each in wanted.items() if len(texts[length]) >= 10}
    assert mean_turns(found) == pytest.approx(enough or wanted)


# Trials


def test_accuracies_are_those_of_the_classifier(encoder):
    for place, task in enumerate(TASKS):
        trial = Trial(task, SHOTS, SEEDS, 100)
        assert len(set(trial.texts)) == len(trial.texts)
        found = trial.accuracies(encoder.encode(trial.texts))
        np.testing.assert_array_equal(found, unpruned(encoder, place))
        assert 0 < found.mean() < 1  # else the comparison says little


def test_at_most_so_many_test_texts():
    texts = [f"text {i}" for i in range(100)]
    whole = Draw(Examples(["a"], ["b"]), Examples(texts, [str(i) for i in range(100)]), [])
    assert trials._smaller(whole, 100) is whole
    found = trials._smaller(whole, 40).test
    assert found == trials._smaller(whole, 40).test
    assert len(set(found.texts)) == 40
    assert all(text == f"text {label}" for text, label in zip(found.texts, found.labels, strict=True))
    assert min(map(int, found.labels)) < 20
    assert max(map(int, found.labels)) > 80
    trial = Trial(TASKS[0], SHOTS, SEEDS, 5)
    assert [len(each.test.texts) for row in trial.draws for each in row] == [5] * 4
    assert trial.draws[0][0].train == draw(TASKS[0], SHOTS[0], SEEDS[0]).train


def test_unlabelled_texts_are_shares_of_the_training_texts(quick):
    found = unlabelled_texts(quick, TASKS, (), 15)
    assert list(found) == ["shop", "bank", "road"]
    for task in TASKS:
        assert len(set(found[task.name])) == 5
        assert set(found[task.name]) <= set(task.splits["train"].texts)
    assert found == unlabelled_texts(quick, TASKS, (), 15)
    whole = unlabelled_texts(quick, TASKS, ["mine", "yours", "mine"], 1000)
    assert whole.pop("(texts)") == ["mine", "yours"]
    assert {name: set(texts) for name, texts in whole.items()} == {
        task.name: set(task.splits["train"].texts) for task in TASKS
    }
    assert [len(texts) for texts in unlabelled_texts(quick, TASKS, (), 1).values()] == [1, 1, 1]


def test_a_task_of_one_file_gives_what_it_has(quick):
    one = Task("one", {"all": TASKS[0].splits["train"]}, {}, "made up")
    assert set(unlabelled_texts(quick, [one], (), 1000)["one"]) == set(TASKS[0].splits["train"].texts)


# What a policy does


@pytest.fixture(scope="module")
def search(encoder):
    """One for all the recipes: it keeps what no pruning reaches, and the fits."""
    return make_search(encoder)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_an_outcome_is_what_encoding_under_the_policy_gives(encoder, search, recipe):
    (found,) = search.run([recipe], 1000)
    kept, work = [], []
    for place, (task, trial) in enumerate(zip(TASKS, search.trials, strict=True)):
        policy = recipe.policy(search.fitted(recipe, without=task.name) if recipe.is_fitted else None)
        drops = 100 * (unpruned(encoder, place) - by_hand(encoder, task, policy))
        np.testing.assert_allclose(found.drops[task.name], drops, atol=1e-9)
        flags = [flag for text in encoder.pruned_tokens(trial.texts, pruning=policy) for flag in text.kept]
        kept.append(np.mean(flags))
        work.append(search.count(trial.texts, policy) / len(trial.texts))
    assert found.tokens_kept == pytest.approx(np.mean(kept))
    assert 0 < found.tokens_kept < 1
    np.testing.assert_allclose(found.work, np.mean(work, axis=0))
    assert found.mean_drop == pytest.approx(np.mean([each.mean() for each in found.drops.values()]))
    # Accuracies are coarse: the embeddings from the shared states, too.
    want = recipe.score if recipe.score.startswith("attention") else "attention"
    embeddings, _, _ = search._embed(trial, policy, search._states(trial, recipe.layer, want))
    np.testing.assert_allclose(embeddings, encoder.encode(trial.texts, pruning=policy), atol=2e-5)


def test_recipes_of_one_layer_share_its_states(quick, monkeypatch):
    calls = []
    states = Search._states
    monkeypatch.setattr(
        Search, "_states", lambda self, trial, *rest: calls.append((trial.name, *rest)) or states(self, trial, *rest)
    )
    names = ("attention", "restored", "turn", "attention_value, merged")
    search = make_search(quick)
    outcomes = search.run([RECIPES[name] for name in names], 1000)
    assert sorted(calls) == sorted(
        [(task.name, 1, "attention") for task in TASKS] + [(task.name, 0, "attention_value") for task in TASKS]
    )
    assert [str(each.recipe) for each in outcomes] == [str(RECIPES[name]) for name in names]


def test_prompts_and_fewer_dimensions_count(plain):
    recipe = RECIPES["restored"]
    other = SentenceEncoder(plain, threads=1, truncate_dim=12, prompts={"q": "tell me: "}, default_prompt_name="q")
    search = make_search(other)
    trial, policy = search.trials[0], search.policy(recipe)
    embeddings, kept, _ = search._embed(trial, policy, search._states(trial, 1, "attention"))
    assert embeddings.shape[1] == 12
    np.testing.assert_allclose(embeddings, other.encode(trial.texts, pruning=policy), atol=2e-5)
    flags = [flag for text in other.pruned_tokens(trial.texts, pruning=policy) for flag in text.kept]
    assert kept == pytest.approx(np.mean(flags))
    alone = make_search(other, TASKS[:1])
    texts = alone.unlabelled["shop"]
    assert all(text.startswith("tell me: ") for text in texts)
    assert alone.fitted(recipe) == fit(other.identity.weights, {1: token_moments(other, texts, 1)})
    settings = [make_search(each).key for each in (other, SentenceEncoder(plain, threads=1))]
    assert settings[0] != settings[1]


# Searches


def tiny_search(name, seed, count=24):
    """Find the second half of a text by the first; each text has few words of its own, of 6 to some 40 tokens."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words = draw.sample(random_models.WORDS, 6)
        texts.append(" ".join(draw.choices(words, k=draw.randint(8, 56))))
    return half_search(name, texts)


SEARCHES = [tiny_search("faq", 3), tiny_search("manual", 4)]


def searching(encoder, tasks=TASKS[:1], searches=SEARCHES, **changes):
    return make_search(encoder, tasks, searches=searches, **changes)


@pytest.mark.parametrize("name", ["attention", "restored", "turn", "attention of two stages"])
def test_searches_and_turns_are_what_evaluate_finds(plain, name):
    encoder = SentenceEncoder(plain, threads=1, prompts={"query": "find: ", "passage": "text: "})
    recipe, search = RECIPES[name], searching(encoder)
    (found,) = search.run([recipe], 1000)
    angles, lengths, kept, work = [], [], [], []
    for task in SEARCHES:
        policy = recipe.policy(search.fitted(recipe, without=task.name) if recipe.is_fitted else None)
        result = evaluate_search(encoder, [task], {"it": policy})
        base, *rows = result.table()
        for row in rows:
            assert found.search_drops[task.name][row["pruned"]] == pytest.approx(100 * (base["mrr"] - row["mrr"]))
        assert 0.1 < base["mrr"] < 1
        prompted = [f"find: {query}" for query in task.queries] + [f"text: {each}" for each in task.documents]
        assert prompted_search(encoder, task) == prompted
        angles.append(turns(encoder.encode(prompted), encoder.encode(prompted, pruning=policy)))
        lengths += [len(ids) for ids in encoder.tokenized(prompted).ids]
        kept.append(np.mean([flag for each in encoder.pruned_tokens(prompted, pruning=policy) for flag in each.kept]))
        work.append(search.count(prompted, policy) / len(prompted))
    task, trial = TASKS[0], search.trials[0]
    policy = recipe.policy(search.fitted(recipe, without=task.name) if recipe.is_fitted else None)
    texts = [text for split in task.splits.values() for text in split.texts]
    used = [text for text in dict.fromkeys(texts) if text in trial.texts]
    assert trial.own == len(used)
    angles.append(turns(encoder.encode(used), encoder.encode(used, pruning=policy)))
    lengths += [len(ids) for ids in encoder.tokenized(used).ids]
    near, turned = nearest_length(lengths), np.concatenate(angles)
    wanted = {length: turned[near == length].mean() for length in {*near.tolist()} if (near == length).sum() >= 10}
    assert len(wanted) > 1
    assert found.turns == pytest.approx(wanted, abs=0.05)
    assert any(each for ways in found.search_drops.values() for each in ways.values())
    flags = [flag for each in encoder.pruned_tokens(trial.texts, pruning=policy) for flag in each.kept]
    assert found.tokens_kept == pytest.approx(np.mean([*kept, np.mean(flags)]))
    np.testing.assert_allclose(
        found.work, np.mean([*work, search.count(trial.texts, policy) / len(trial.texts)], axis=0)
    )


def test_documents_by_dot_product_are_ranked_so(quick, plain):
    by_dot = SentenceEncoder(plain, threads=1, similarity_fn_name="dot")
    trial, draw = SearchTrial(SEARCHES[0], 100), np.random.default_rng(0)
    rows = draw.standard_normal((len(trial.texts), 32)).astype(np.float32)
    stretched = rows * draw.uniform(0.2, 5, (len(rows), 1)).astype(np.float32)
    assert trial.mrr(quick, rows, rows) == trial.mrr(quick, stretched, stretched)
    assert trial.mrr(by_dot, rows, rows) != trial.mrr(by_dot, stretched, stretched)
    assert searching(quick).key != searching(by_dot).key


@st.composite
def search_tasks(draw):
    documents = draw(st.integers(1, 12))
    relevant = draw(st.lists(st.sets(st.integers(0, documents - 1), min_size=1).map(sorted), min_size=1, max_size=12))
    queries = [f"q{i}" for i in range(len(relevant))]
    return SearchTask("s", queries, [f"d{i}" for i in range(documents)], relevant, "made up")


@settings(max_examples=80)
@given(search_tasks(), st.integers(1, 12))
def test_a_smaller_search_asks_the_same(task, most):
    small = smaller_search(task, most)
    assert len(small.queries) == min(most, len(task.queries))
    answers = {document for rows in small.relevant for document in (small.documents[row] for row in rows)}
    assert len(small.documents) == min(len(task.documents), max(most, len(answers)))
    for query, rows in zip(small.queries, small.relevant, strict=True):
        wanted = task.relevant[task.queries.index(query)]
        assert [small.documents[row] for row in rows] == [task.documents[row] for row in wanted]
    assert small.documents == [each for each in task.documents if each in set(small.documents)]
    assert smaller_search(task, most) == small
    assert (small is task) == (max(len(task.queries), len(task.documents)) <= most)


def test_a_search_is_tried_with_arrays_that_never_saw_it(quick):
    search, recipe = searching(quick), RECIPES["restored"]
    assert {*search.unlabelled} == {"shop", "faq", "manual"}
    assert {*search.unlabelled["faq"]} <= {*SEARCHES[0].queries, *SEARCHES[0].documents}
    assert len(search.unlabelled["faq"]) == 10  # its share of 30
    other = searching(quick, searches=[tiny_search("faq", 9), SEARCHES[1]])
    assert search.fitted(recipe, without="faq") == other.fitted(recipe, without="faq")
    assert search.fitted(recipe, without="shop") != other.fitted(recipe, without="shop")
    assert search.fitted(recipe) != other.fitted(recipe)


def test_searches_alone(quick):
    search = searching(quick, tasks=[])
    (found,) = search.run([RECIPES["attention"]], 1000)
    assert found.drops == {}
    assert found.mean_drop == found.search_drop
    plain = evaluate_search(quick, SEARCHES).table()
    assert [search.base_mrr(each) for each in search.searches] == [row["mrr"] for row in plain[:2]]
    policy = RECIPES["attention"].policy(None)
    rows = evaluate_search(quick, SEARCHES, {"it": policy}).table()
    both = [row["mrr"] for row in rows if row["pruned"] == "both" and row["task"] != "(mean)"]
    wanted = np.mean([row["mrr"] for row in plain[:2]]) - np.mean(both)
    assert search.drop(quick, policy) == pytest.approx(100 * wanted)


def test_searches_are_kept_in_the_journal(quick, tmp_path, monkeypatch):
    journal, few = Journal(tmp_path / "run.jsonl"), [RECIPES["attention"], RECIPES["turn"]]
    first = searching(quick, journal=journal).run(few, 1000)
    monkeypatch.setattr(search_module, "forward", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(SentenceEncoder, "encode", lambda *_, **__: pytest.fail("computed again"))
    again = searching(quick, journal=Journal(tmp_path / "run.jsonl")).run(few, 1000)
    assert_same(again, first)
    assert [(each.turns, each.search_drops) for each in again] == [(each.turns, each.search_drops) for each in first]
    keys = [searching(quick, searches=each).key for each in ([], SEARCHES[:1], SEARCHES, [tiny_search("faq", 9)])]
    assert all(one != other for i, one in enumerate(keys) for other in keys[:i])


def test_a_search_has_a_name_of_its_own(quick):
    with pytest.raises(InputError, match="the tasks are shop, shop, wanted at least one, each with its own name"):
        searching(quick, searches=[tiny_search("shop", 1)])


# Turns


def test_turns_are_foreseen_for_each_kind_of_policy(quick, monkeypatch):
    """Once for all turns, shares and least lengths of a kind: whatever was asked for before."""
    search, recipe, calls = make_search(quick), RECIPES["turn"], []
    monkeypatch.setattr(search_module, "calibrated", lambda *each: calls.append(each) or calibrated(*each))
    alike = [recipe, replace(recipe, max_turn=5.0), replace(recipe, min_tokens=9, stages=((1, 0.2),))]
    assert len({search.fitted(each) for each in alike}) == len(calls) == 1
    others = [
        replace(recipe, protect_special=True),
        replace(recipe, reduce="restore"),
        replace(recipe, stages=((0, 0.5),)),
    ]
    found = {search.fitted(each) for each in [recipe, *others]}
    assert len(found) == len(calls) == 4
    assert found == {make_search(quick).fitted(each) for each in [*others, recipe]}
    assert search.fitted(recipe, without="shop") != search.fitted(recipe)


def test_a_turn_that_cannot_be_foreseen_is_not_tried(quick, tmp_path, monkeypatch):
    def unforeseen(*_):
        raise UnforeseenTurnError("no idea")

    journal, few = Journal(tmp_path / "run.jsonl"), [RECIPES["attention"], RECIPES["turn"], RECIPES["restored"]]
    with monkeypatch.context() as patch:
        patch.setattr(search_module, "calibrated", unforeseen)
        found = make_search(quick, journal=journal).run(few, 1000)
    assert [each.recipe for each in found] == [few[0], few[2]]
    assert_same(make_search(quick, journal=journal).run(few, 1000), found)  # it is known, and not tried again


def test_a_policy_by_turn_keeps_to_it(quick):
    texts = tiny_search("more", 5, 60).documents
    outcomes = searching(quick, searches=[tiny_search("faq", 3, 80)], texts=texts, fit_texts=200).run(
        [replace(RECIPES["turn"], max_turn=degrees) for degrees in (6.0, 12.0)], 1000
    )
    for each, degrees in zip(outcomes, (6.0, 12.0), strict=True):
        assert 0.5 * degrees < each.turn < 1.4 * degrees
    assert outcomes[0].tokens_kept > outcomes[1].tokens_kept


# Fitted arrays


def policies_used(search, recipe, monkeypatch):
    """Task -> the policy that it was tried with."""
    used, embed = {}, search._embed

    def spying(trial, policy, states):
        used[trial.name] = policy
        return embed(trial, policy, states)

    monkeypatch.setattr(search, "_embed", spying)
    search.run([recipe], 1000)
    return used


def summed(parts, layers):
    return {layer: reduce(add, [part[layer] for part in parts]) for layer in layers}


@pytest.mark.parametrize("name", ["restored in two stages", "turn"])
def test_arrays_are_fitted_to_the_other_tasks(quick, monkeypatch, name):
    recipe = RECIPES[name]
    layers = [layer for layer, _ in recipe.stages]
    search = make_search(quick, texts=["where is my new card please", "play some music for me"])
    moments = {
        name: {layer: token_moments(quick, texts, layer) for layer in layers}
        for name, texts in search.unlabelled.items()
    }
    assert list(moments) == ["shop", "bank", "road", "(texts)"]
    used = policies_used(search, recipe, monkeypatch)
    for task in TASKS:
        fitted = by_hand_fitted(quick, search, recipe, moments, [name for name in moments if name != task.name])
        assert_close(used[task.name].fitted, used[task.name].needed(fitted))
    everything = by_hand_fitted(quick, search, recipe, moments, list(moments))
    final = search.policy(recipe, {"made": "here"})
    assert_close(final.fitted, final.needed(everything))
    assert final.provenance == {"made": "here"}


def by_hand_fitted(encoder, search, recipe, moments, names):
    found = fit(encoder.identity.weights, summed([moments[name] for name in names], [*dict(recipe.stages)]))
    if recipe.max_turn is None:
        return found
    texts = [text for name in names for text in search.held_out[name]]
    return calibrated(encoder, texts, replace(recipe, max_turn=None).policy(found), search_module.FEWER_SHARES)


def assert_close(one, other):
    assert one.model == other.model
    for mine, wanted in ((one.scorers, other.scorers), (one.restore, other.restore), (one.turns, other.turns)):
        assert mine.keys() == wanted.keys()
        for layer in mine:
            np.testing.assert_allclose(mine[layer].weight, wanted[layer].weight, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(mine[layer].bias, wanted[layer].bias, rtol=1e-3, atol=1e-5)


def test_a_task_is_tried_with_arrays_that_never_saw_it(quick, monkeypatch):
    recipe = RECIPES["restored"]
    before = policies_used(make_search(quick), recipe, monkeypatch)
    changed = [tiny_task("shop", 7), *TASKS[1:]]
    after = policies_used(make_search(quick, changed), recipe, monkeypatch)
    assert after["shop"].fitted == before["shop"].fitted
    assert after["bank"].fitted != before["bank"].fitted
    assert after["road"].fitted != before["road"].fitted


def test_labels_and_test_texts_play_no_part_in_the_arrays(quick):
    train, test = TASKS[0].splits["train"], TASKS[0].splits["test"]
    relabelled = Task("shop", {"train": Examples(train.texts, train.labels[::-1]), "test": test}, {}, "")
    other_test = Task("shop", {"train": train, "test": tiny_task("", 5).splits["test"]}, {}, "")
    recipe = RECIPES["restored"]
    wanted = make_search(quick).fitted(recipe)
    for task in (relabelled, other_test):
        assert make_search(quick, [task, *TASKS[1:]]).fitted(recipe) == wanted


def test_other_tasks_to_fit_on(quick, monkeypatch):
    recipe, others = RECIPES["restored"], [tiny_task("a", 5), tiny_task("b", 6)]
    search = make_search(quick, fit_on=others)
    assert list(search.unlabelled) == ["a", "b"]
    used = policies_used(search, recipe, monkeypatch)
    assert {policy.fitted for policy in used.values()} == {make_search(quick, others).policy(recipe).fitted}
    assert search.key != make_search(quick).key != make_search(quick, fit_on=others[:1]).key


def test_one_task_alone_is_fitted_on_itself(quick, monkeypatch):
    recipe, search = RECIPES["restored"], make_search(quick, TASKS[:1])
    used = policies_used(search, recipe, monkeypatch)
    assert used["shop"].fitted == search.policy(recipe).fitted
    search = make_search(quick, TASKS[:1], texts=["where is my new card please"])
    used = policies_used(search, recipe, monkeypatch)
    alone = fit(quick.identity.weights, {1: token_moments(quick, ["where is my new card please"], 1)})
    assert used["shop"].fitted == used["shop"].needed(alone)


# What is not tried


def tried(search, recipes, drop, limit, monkeypatch):
    """The recipes that are tried when each drops as much as `drop` says."""
    asked = []

    def made_up(recipe, states):
        asked.append(recipe)
        return outcome({"a": [[drop(recipe)]]}, recipe)

    monkeypatch.setattr(search, "_outcome", made_up)
    outcomes = search.run(recipes, limit)
    assert [each.recipe for each in outcomes] == [recipe for recipe in recipes if recipe in asked]
    return [each.recipe for each in outcomes]


def test_stronger_ones_of_a_hopeless_kind_are_skipped(quick, monkeypatch):
    kinds = [("attention", "drop"), ("attention", "merge")]
    recipes = [
        Recipe(((layer, quantile),), *kind) for kind in kinds for layer in (0, 1) for quantile in (0.2, 0.4, 0.6, 0.8)
    ]
    limit = 1.0

    def drop(recipe):
        hopeless = recipe.reduce == "merge" and recipe.layer == 1 and recipe.stages[0][1] >= 0.4
        return limit + HOPELESS + (0.01 if hopeless else 0)

    skipped = [recipe for recipe in recipes[12:] if recipe.stages[0][1] > 0.4]
    assert tried(make_search(quick), recipes, drop, limit, monkeypatch) == [
        recipe for recipe in recipes if recipe not in skipped
    ]
    assert len(skipped) == 2


def test_what_is_not_stronger_in_every_respect_is_tried(quick, monkeypatch):
    base = Recipe(((1, 0.4),), "attention", "drop")
    others = [
        replace(base, stages=((1, 0.3),)),
        replace(base, stages=((1, 0.5),), min_tokens=8),
        replace(base, stages=((1, 0.5),), protect_special=True),
        replace(base, stages=((2, 0.5),)),
    ]
    assert tried(make_search(quick), [base, *others], lambda _: 99.0, 1.0, monkeypatch) == [base, *others]
    two = replace(base, stages=((1, 0.4), (2, 0.7)))
    assert tried(make_search(quick), [two, others[0]], lambda _: 99.0, 1.0, monkeypatch) == [two, others[0]]
    one_stage = replace(base, stages=((1, 0.5),))  # milder than the two together, perhaps
    assert tried(make_search(quick), [two, one_stage], lambda _: 99.0, 1.0, monkeypatch) == [two, one_stage]
    assert tried(make_search(quick), [replace(two, stages=((1, 0.5), (2, 0.7))), two], lambda _: 9.0, 0, monkeypatch)
    both = [two, replace(two, stages=((1, 0.5), (2, 0.7)))]
    assert tried(make_search(quick), both, lambda _: 99.0, 1.0, monkeypatch) == both[:1]


# The journal


def assert_same(found, wanted):
    assert [each.recipe for each in found] == [each.recipe for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.drops.keys() == other.drops.keys()
        for name in one.drops:
            np.testing.assert_array_equal(one.drops[name], other.drops[name])
        np.testing.assert_array_equal(one.work, other.work)
        assert one.tokens_kept == other.tokens_kept


FEW = [RECIPES[name] for name in ("attention", "restored", "attention of two stages")]


def test_what_is_in_the_journal_is_not_computed_again(quick, tmp_path, monkeypatch):
    journal = Journal(tmp_path / "run.jsonl")
    assert not len(journal)
    first = make_search(quick, journal=journal).run(FEW, 1000)
    assert (tmp_path / "run.jsonl").is_file()
    assert len(journal) == len(FEW) + len(TASKS)

    def forbidden(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(search_module, "forward", forbidden)
    monkeypatch.setattr(SentenceEncoder, "encode", forbidden)
    monkeypatch.setattr(search_module, "token_moments", forbidden)
    monkeypatch.setattr(Trial, "accuracies", forbidden)
    for again in (journal, Journal(tmp_path / "run.jsonl")):
        assert_same(make_search(quick, journal=again).run(FEW, 1000), first)
    for changes in ({"shots": (1,)}, {"seeds": (0,)}, {"texts": ["some more text to fit on"]}, {"test_texts": 5}):
        with pytest.raises(AssertionError, match="computed again"):
            make_search(quick, journal=journal, **changes).run(FEW, 1000)
    with pytest.raises(AssertionError, match="computed again"):
        make_search(quick, [tiny_task("shop", 7), *TASKS[1:]], journal=journal).run(FEW, 1000)


def test_other_texts_of_the_same_number_are_another_key(quick):
    keys = [make_search(quick, texts=texts).key for texts in ((), ["a b c"], ["a b d"], ["a b c", "a b c"])]
    assert keys[1] == keys[3]
    assert keys[0] != keys[1] != keys[2]


def test_an_interrupted_run_goes_on(quick, tmp_path, monkeypatch):
    wanted = make_search(quick).run(FEW, 1000)
    calls = []

    def counting(blocks, batch, *rest):
        calls.append(batch)
        return forward(blocks, batch, *rest)

    monkeypatch.setattr(search_module, "forward", counting)
    make_search(quick).run(FEW, 1000)
    everything = len(calls)

    def interrupted(blocks, batch, *rest):
        if len(calls) > everything // 2:
            raise KeyboardInterrupt
        return counting(blocks, batch, *rest)

    calls.clear()
    monkeypatch.setattr(search_module, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_search(quick, journal=Journal(tmp_path / "run.jsonl")).run(FEW, 1000)
    finished = Journal(tmp_path / "run.jsonl")
    assert 0 < len(finished) < len(FEW) + len(TASKS)
    calls.clear()
    monkeypatch.setattr(search_module, "forward", counting)
    assert_same(make_search(quick, journal=finished).run(FEW, 1000), wanted)
    assert 0 < len(calls) < everything


def test_tasks_need_names_of_their_own(quick):
    for tasks, names in (([], "none"), ([TASKS[0], TASKS[0]], "shop, shop")):
        with pytest.raises(InputError, match=f"the tasks are {names}, wanted at least one, each with its own name"):
            make_search(quick, tasks)


def test_the_drop_of_another_encoder(quick, plain):
    search = make_search(quick)
    other = SentenceEncoder(plain, precision="int8", threads=1)
    base = [unpruned(quick, place) for place in range(len(TASKS))]
    wanted = [100 * (each - by_hand(other, task, None)).mean() for each, task in zip(base, TASKS, strict=True)]
    assert search.drop(other, None) == pytest.approx(np.mean(wanted))
    policy = RECIPES["attention"].policy(None)
    wanted = [100 * (each - by_hand(quick, task, policy)).mean() for each, task in zip(base, TASKS, strict=True)]
    assert search.drop(quick, policy) == pytest.approx(np.mean(wanted))
    assert search.drop(quick, None) == 0


def test_work_without_pruning(quick):
    search = make_search(quick)
    lengths = [[len(each.tokens) for each in quick.pruned_tokens(trial.texts, pruning=None)] for trial in search.trials]
    work = search.unpruned_work
    assert work[0] == 1
    assert work[1] == pytest.approx(np.mean([np.mean(each) for each in lengths]))
    assert work[2] == pytest.approx(3 * work[1])
    assert work[3] == pytest.approx(3 * np.mean([np.square(each).mean() for each in lengths]))
    assert not work[4:].any()
    assert random_models.find_spec("plain").num_hidden_layers == search.num_layers
