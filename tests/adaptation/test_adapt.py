"""adapt() under a clock that is counted work: what it chooses, what it compares with, and the report of it."""

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import random_models
from tiny_tasks import tiny_rows, tiny_task

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder, __version__
from minitrans.adaptation import adapt as adaptation
from minitrans.adaptation import report as adaptation_report
from minitrans.adaptation.adapt import FINALISTS, TIE, adapt
from minitrans.adaptation.costs import WorkCounter
from minitrans.adaptation.fitting import UnforeseenTurnError
from minitrans.adaptation.recipes import CAP, LEAST_OF_TURNS, Recipe, front
from minitrans.adaptation.search import Limits, Outcome, Search, SearchSettings
from minitrans.data.searches import half_search
from minitrans.data.tasks import draw
from minitrans.encoder.forward import forward
from minitrans.errors import InputError, InputTypeError, PolicyError
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.metrics import accuracy
from minitrans.sentences.batches import by_length

SHOTS, SEEDS = (1, 2), (0, 1)
TASKS = [tiny_task("shop", 0), tiny_task("bank", 1)]
PRICES = np.array([5.0, 1.0, 10.0, 0.05, 1.0, 0.02, 8.0, 2.0])  # of costs.KINDS
ANY = Limits(100, 100, 0.5)
NONE = Limits(0, 0, 0.5)
RECIPES = [
    Recipe(((layer, quantile),), score, reduce, min_tokens=3)
    for score, reduce in (("attention", "drop"), ("attention", "merge"), ("learned", "drop"), ("learned", "restore"))
    for layer in (0, 1)
    for quantile in (0.2, 0.6)
]
SETTINGS = {"shots": SHOTS, "seeds": SEEDS, "fit_texts": 40, "test_texts": 100}
SVG = "{http://www.w3.org/2000/svg}"


def seconds_of(run):
    """What embedding a run's texts under its policy is made to cost."""
    encoder, (texts,), policy = run.func.__self__, run.args, run.keywords["pruning"]
    counter = WorkCounter(policy)
    for _, batch in by_length(encoder.tokenizer, texts):
        forward(encoder.blocks, batch, policy, counter)
    return float(PRICES @ counter.work) * (0.5 if encoder.precision == "int8" else 1)


def counted(shown):
    """In place of `interleaved`: seconds are counted work, or what the dict shows for a name."""

    def interleaved(runs, rounds=5):
        return {name: [shown.get(name) or seconds_of(run)] * rounds for name, run in runs.items()}

    return interleaved


@pytest.fixture
def clock(monkeypatch):
    """A clock that counts work; the dict that it gives holds seconds, by name, to show in their place."""
    shown = {}
    monkeypatch.setattr(adaptation, "interleaved", counted(shown))
    return shown


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain, threads=1)


@pytest.fixture
def alone(clock, monkeypatch):
    """The same clock, and nothing that pruning competes with."""
    monkeypatch.setattr(adaptation, "_competitors", lambda *_: {})
    return clock


def run(encoder, limits=ANY, tasks=TASKS, recipes=RECIPES, journal=None, **changes):
    return adapt(encoder, tasks, limits, SearchSettings(**SETTINGS | changes), recipes=recipes, journal=journal)


@pytest.fixture(scope="module")
def first(encoder, tmp_path_factory):
    """One run of all the recipes, and its journal, which is not to be changed."""
    path = tmp_path_factory.mktemp("first") / "run.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "interleaved", counted({}))
        return run(encoder, journal=Journal(path)), path


@pytest.fixture
def hopeless(monkeypatch):
    """No policy comes near what no pruning reaches."""
    base = Search.base
    monkeypatch.setattr(Search, "base", lambda self, trial: base(self, trial) + 1)


# The choice


def test_the_cheapest_within_the_limits_wins(encoder, first):
    found, _ = first
    assert [each.recipe for each in found.outcomes] == RECIPES
    assert found.cost_model.error < 1e-3
    unpruned = Search(encoder, TASKS, SearchSettings(**SETTINGS)).unpruned_work
    for each in found.outcomes:
        assert each.cost == pytest.approx(PRICES @ each.work / (PRICES @ unpruned), rel=5e-3)
    least = min(each.cost for each in found.outcomes)
    assert found.chosen.cost <= least * (1 + 2 * TIE)
    timed = {each.name: each for each in found.timings if each.kind == "policy"}
    assert len(timed) == FINALISTS
    assert timed[str(found.chosen.recipe)].time_ratio == min(each.time_ratio for each in timed.values())
    assert found.timings[0] == adaptation.TimedRun("none", "none", 1.0, 0.0)
    assert found.pareto() == front(found.outcomes, lambda one: (one.cost, one.mean_drop))
    assert found.baseline == {task.name: pytest.approx(mean_accuracy(encoder, encoder.encode, task)) for task in TASKS}


def test_the_limits_hold_for_the_chosen(encoder, clock, first, tmp_path):
    outcomes = first[0].outcomes
    bounds = [each.bounds(0.9) for each in outcomes]
    limits = Limits(max(0, np.median([mean for mean, _ in bounds])), max(0, np.median([worst for _, worst in bounds])))
    within = [each for each in outcomes if each.meets(limits)]
    assert 0 < len(within) < len(outcomes)
    found = run(encoder, limits, journal=Journal(shutil.copy(first[1], tmp_path)))
    assert found.chosen.meets(limits)
    assert found.policy is not None
    assert found.chosen.cost <= min(each.cost for each in within) * (1 + 2 * TIE)
    names = {str(each.recipe) for each in within}
    assert {each.name for each in found.timings if each.kind == "policy"} <= names


@pytest.mark.parametrize(("learned", "simple_wins"), [(100.0, True), (99.2, True), (98.5, False)])
def test_ties_go_to_the_simpler(encoder, alone, learned, simple_wins):
    simple, fitted = Recipe(((1, 0.5),), "attention", "drop"), Recipe(((1, 0.5),), "learned", "restore")
    alone |= {str(simple): 100.0, str(fitted): learned, "none": 200.0}
    for recipes in ([simple, fitted], [fitted, simple]):
        found = run(encoder, recipes=recipes)
        assert found.chosen.recipe == (simple if simple_wins else fitted)
        ratio = found.policy.provenance["time_ratio"]
        assert ratio == round((100 if simple_wins else learned) / 200, 3)


def test_the_papers_method_is_timed_too(encoder, alone):
    paper = [Recipe(((1, quantile),), "attention", "drop", min_tokens=3) for quantile in (0.1, 0.3)]
    alone |= {str(each): 300.0 for each in paper}
    strong = [Recipe(((0, quantile),), "learned", "drop", min_tokens=3) for quantile in (0.6, 0.65, 0.7, 0.75)]
    found = run(encoder, recipes=[*paper, *strong])
    assert [each.name for each in found.timings if each.kind == "paper"] == [str(paper[1])]  # nearest in time
    assert {each.name for each in found.timings if each.kind == "policy"} == {str(each) for each in strong}


def test_no_policy_within_the_limits(encoder, clock, hopeless, tmp_path):
    found = run(encoder, NONE, recipes=RECIPES[::9])
    assert found.policy is None
    excess = [max(each.bounds(0.5)) for each in found.outcomes]
    assert max(found.chosen.bounds(0.5)) == min(excess) > 0
    mean, worst = found.chosen.bounds(0.5)
    with pytest.raises(PolicyError) as error:
        found.save_policy(tmp_path / "policy.json")
    assert str(error.value).startswith(
        f"none of {len(found.outcomes)} policies stays within 0 points on average and 0 on the worst task; the "
        f"nearest is {found.chosen.recipe} with {mean:.2f} and {worst:.2f}; allow more"
    )
    assert not list(tmp_path.iterdir())
    files = adaptation_report.save_report(found, tmp_path / "policy.md")
    assert files[0] == tmp_path / "policy.md"
    text = files[0].read_text()
    assert f"**No policy stays within the limits.** The nearest, {found.chosen.recipe}, loses" in text
    assert "(chosen)" not in text
    assert {each.kind for each in found.timings} >= {"none", "layers", "precision"}


def test_the_saved_policy(encoder, alone, tmp_path):
    recipe = Recipe(((0, 0.3), (1, 0.4)), "learned", "restore", min_tokens=3)
    found = run(encoder, recipes=[recipe])
    found.save_policy(tmp_path / "policy.json")
    loaded = PruningPolicy.load(tmp_path / "policy.json")
    search = Search(encoder, TASKS, SearchSettings(**SETTINGS))
    assert loaded == found.policy
    assert loaded.fitted == search.policy(recipe).fitted
    assert loaded.fitted != recipe.policy(search.fitted(recipe, without="shop")).fitted
    texts = TASKS[0].splits["test"].texts
    pruned = encoder.encode(texts, pruning=loaded)
    np.testing.assert_array_equal(pruned, encoder.encode(texts, pruning=search.policy(recipe)))
    assert np.abs(pruned - encoder.encode(texts, pruning=None)).max() > 1e-3
    mean, worst = found.chosen.bounds(0.5)
    time_ratio = next(each.time_ratio for each in found.timings if each.name == str(recipe))
    used = {text for task in TASKS for split in task.splits.values() for text in split.texts}
    lengths = [len(ids) for ids in encoder.tokenized(sorted(used)).ids]
    assert loaded.provenance == {
        "made_by": f"minitrans {__version__} adapt",
        "model": {"name": encoder.name_or_path, **encoder.identity.to_dict()},
        "backend": encoder.backend,
        "tasks": {task.name: task.digest for task in TASKS},
        "shots": [1, 2],
        "seeds": [0, 1],
        "limits": {"mean_drop": 100, "task_drop": 100, "confidence": 0.5, "turn": None, "search_drop": None},
        "searches": {},
        "lengths": [min(lengths), max(lengths)],
        "turns": {str(length): round(turn, 2) for length, turn in found.chosen.turns.items()},
        "mean_drop": round(found.chosen.mean_drop, 3),
        "mean_drop_bound": round(mean, 3),
        "worst_task_drop_bound": round(worst, 3),
        "tokens_kept": round(found.chosen.tokens_kept, 4),
        "time_ratio": round(time_ratio, 3),
    }


def summary(found):
    drops = [{name: each.tolist() for name, each in one.drops.items()} for one in found.outcomes]
    kept = [(one.recipe, one.tokens_kept, one.cost, one.work.tolist()) for one in found.outcomes]
    return drops, kept, found.chosen.recipe, found.policy, found.timings, found.baseline, found.settings


def test_two_runs_are_one(clock, plain, first):
    assert summary(run(SentenceEncoder(plain, threads=2))) == summary(first[0])


def test_the_grid_and_its_neighbours(encoder, alone, monkeypatch):
    monkeypatch.setattr("minitrans.adaptation.recipes.METHODS", (("attention", "drop"), ("learned", "restore")))
    monkeypatch.setattr("minitrans.adaptation.recipes.QUANTILES", (0.4,))
    monkeypatch.setattr("minitrans.adaptation.recipes.LEARNED_QUANTILES", (0.5,))
    monkeypatch.setattr("minitrans.adaptation.recipes.TURNS", (8.0, 9.0))
    monkeypatch.setattr(adaptation, "PARENTS", 1)
    found = run(encoder, recipes=None, shots=(2,), seeds=(0,))
    recipes = [each.recipe for each in found.outcomes]
    assert len(set(recipes)) == len(recipes)
    wanted = [Recipe(((layer, 0.4),), "attention", "drop") for layer in (0, 1)]
    for layer in (0, 1):
        wanted.append(Recipe(((layer, 0.5),), "learned", "restore"))
        wanted.append(Recipe(((layer, CAP),), "learned", "restore", LEAST_OF_TURNS, max_turn=8.0))
    assert recipes[:6] == wanted
    neighbours = [set(adaptation.neighbours(parent, 3)) - set(recipes[:6]) for parent in recipes[:6]]
    assert set(recipes[6:]) in neighbours


def test_neighbours_of_what_is_near_the_limits():
    def outcome(cost, drop, turn):
        recipe = Recipe(((1, cost),), "learned", "drop")
        return Outcome(recipe, {"a": np.array([[drop]])}, 0.5, np.zeros(8), cost, {64: turn})

    # By time and accuracy alone the first ones are best; they turn too far.
    outcomes = [outcome(0.4 + i / 100, 0.0, 60.0 - i) for i in range(9)]
    outcomes += [outcome(0.6 + i / 100, 0.5 + i / 100, 14.5 - i) for i in range(8)]
    found = adaptation._promising(outcomes, Limits(1, 2, turn=12.0))
    assert len(found) == adaptation.PARENTS
    assert found[:3] == outcomes[12:15]  # the cheapest within the limits
    assert {each.cost for each in found} <= {each.cost for each in outcomes[9:]}
    found = adaptation._promising(outcomes, Limits(1, 2))
    assert found[0] is outcomes[0]


# Searches and turns


def tiny_search(name, seed):
    """Find the second half of a text by the first: texts of 20 to 60 words, each with a topic of its own."""
    rows = [text for text, _ in tiny_rows(seed, classes=9, examples=6)]
    return half_search(name, [" ".join(rows[begin : begin + 3]) for begin in range(0, len(rows), 3)])


SEARCHES = [tiny_search("faq", 3), tiny_search("manual", 4)]


@pytest.fixture(scope="module")
def searched(encoder, tmp_path_factory):
    """One run of all the recipes on tasks and searches, and its journal, which is not to be changed."""
    path = tmp_path_factory.mktemp("searched") / "run.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "interleaved", counted({}))
        return run(encoder, journal=Journal(path), searches=SEARCHES), path


@pytest.mark.parametrize("what", ["turn", "search_drop"])
def test_limits_on_turns_and_searches_hold(encoder, alone, searched, tmp_path, what):
    outcomes = searched[0].outcomes
    middle = float(np.median([getattr(each, what) for each in outcomes]))
    middle = max(0.0, middle)
    found = run(
        encoder,
        Limits(100, 100, 0.5, **{"search_drop": 100, what: middle}),
        journal=Journal(shutil.copy(searched[1], tmp_path)),
        searches=SEARCHES,
    )
    within = [each for each in outcomes if getattr(each, what) <= middle]
    assert 0 < len(within) < len(outcomes)
    assert getattr(found.chosen, what) <= middle
    assert found.chosen.cost <= min(each.cost for each in within) * (1 + 2 * TIE)
    names = {str(each.recipe) for each in within}
    assert {each.name for each in found.timings if each.kind == "policy"} <= names
    text = adaptation_report.markdown(found)
    limit = f"a turn of {middle:g} degrees" if what == "turn" else f"{middle:g} points of MRR@10"
    assert re.search(rf"Limits: 100 points on average.*; {re.escape(limit)}", text)


def test_the_policy_says_what_it_was_found_on(searched):
    found, _ = searched
    assert found.search_baseline.keys() == found.chosen.search_drops.keys() == {"faq", "manual"}
    provenance = found.policy.provenance
    assert provenance["tasks"] == {task.name: task.digest for task in TASKS}
    assert provenance["searches"] == {task.name: task.digest for task in SEARCHES}
    assert provenance["limits"] == {
        "mean_drop": 100,
        "task_drop": 100,
        "confidence": 0.5,
        "turn": None,
        "search_drop": 100,
    }
    assert {int(length) for length in provenance["turns"]} == found.chosen.turns.keys() >= {8, 16}
    for name, drops in found.chosen.search_drops.items():
        assert provenance["search_drops"][name] == {way: round(points, 3) for way, points in drops.items()}
        assert drops.keys() == {"both", "queries", "documents"}
    assert provenance["lengths"][0] < 8
    assert provenance["lengths"][1] > 18
    assert json.loads(json.dumps(provenance)) == provenance


def test_the_report_of_searches(searched):
    found, _ = searched
    text = adaptation_report.markdown(found)
    assert text.startswith("# A pruning policy for shop, bank, faq, manual\n\n")
    length = max(found.chosen.turns, key=found.chosen.turns.__getitem__)
    assert (
        f"it loses {found.chosen.search_drop:.2f} points of MRR@10 on average, whichever side is pruned; it turns "
        f"texts of about {length} tokens, which it turns the most, by {found.chosen.turn:.1f} degrees. It keeps"
    ) in text
    _, pareto, _, searches = tables(text)
    places = [pareto[0].index(name) for name in ("worst drop of MRR@10", "worst turn °")]
    for row, each in zip(pareto[2:], found.pareto(), strict=True):
        assert [row[place] for place in places] == [f"{each.search_drop:+.2f}", f"{each.turn:.1f}"]
    for row in searches[2:]:
        ways = found.chosen.search_drops[row[0]]
        assert row[1:] == [f"{found.search_baseline[row[0]]:.3f}", *(f"{points:+.2f}" for points in ways.values())]


def test_searches_without_tasks(encoder, clock, tmp_path):
    pytest.importorskip("matplotlib")
    few = [RECIPES[0], RECIPES[3], RECIPES[13]]
    found = run(encoder, tasks=[], recipes=few, searches=SEARCHES)
    assert found.baseline == {}
    assert found.policy is not None
    assert "mean_drop" not in found.policy.provenance
    assert {each.kind for each in found.timings} >= {"none", "policy", "layers", "precision"}
    rivals = [each for each in found.timings if each.name == "1 layers"]
    shallow, _ = adaptation._competitors(encoder, found.policy)["1 layers"]
    search = Search(encoder, [], SearchSettings(**SETTINGS, searches=SEARCHES))
    assert rivals[0].mean_drop == pytest.approx(search.drop(shallow, None))
    text = adaptation_report.save_report(found, tmp_path / "policy.md")[0].read_text()
    assert text.startswith("# A pruning policy for faq, manual\n")
    assert f"Limits: 100 points of MRR@10. A negative drop is a gain. {len(few)} policies" in text
    assert "accuracy on average" not in text
    assert "worst task's bound" not in text
    with pytest.raises(PolicyError, match=r"within 0 points of MRR@10 and 0\.5 degrees; the nearest is"):
        replace(found, policy=None, limits=Limits(0, 0, turn=0.5)).save_policy(tmp_path / "policy.json")


@pytest.mark.parametrize(("tasks", "limit"), [([], 3.0), (TASKS, 100)])
def test_what_is_hopeless_depends_on_what_there_is(encoder, alone, monkeypatch, tasks, limit):
    asked, tried = [], Search.run
    monkeypatch.setattr(Search, "run", lambda self, recipes, bar: asked.append(bar) or tried(self, recipes, bar))
    run(encoder, Limits(100, 100, 0.5, search_drop=3.0), tasks=tasks, recipes=RECIPES[:1], searches=SEARCHES)
    assert asked == [limit]


def test_what_is_nearest_to_limits_on_turns(encoder, alone, searched, tmp_path):
    journal = Journal(shutil.copy(searched[1], tmp_path))
    found = run(encoder, Limits(100, 100, 0.5, turn=0.0), journal=journal, searches=SEARCHES)
    assert found.policy is None
    assert found.chosen.turn == min(each.turn for each in found.outcomes) > 0
    with pytest.raises(PolicyError) as error:
        found.save_policy(tmp_path / "policy.json")
    assert f"100 points of MRR@10 and 0 degrees; the nearest is {found.chosen.recipe} with" in str(error.value)
    assert f"{found.chosen.search_drop:.2f} and {found.chosen.turn:.1f}; allow more" in str(error.value)


def test_turns_that_nothing_foresees(encoder, alone, monkeypatch):
    def unforeseen(*_):
        raise UnforeseenTurnError("no idea")

    monkeypatch.setattr("minitrans.adaptation.search.calibrated", unforeseen)
    by_turn = Recipe(((1, 0.7),), "learned", "drop", max_turn=10.0)
    with pytest.raises(InputError, match=r"max_turn is 10.0 in learned, drop, .* cannot be foreseen; wanted recipes"):
        run(encoder, recipes=[by_turn])
    assert [each.recipe for each in run(encoder, recipes=[by_turn, RECIPES[0]]).outcomes] == [RECIPES[0]]


# A journal


def test_a_journal_saves_all_trying_and_timing(encoder, monkeypatch, first, tmp_path):
    shutil.copy(first[1], tmp_path)
    lines = (tmp_path / "run.jsonl").read_bytes()

    def forbidden(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(adaptation, "interleaved", forbidden)
    monkeypatch.setattr(Search, "_embed", forbidden)
    monkeypatch.setattr(SentenceEncoder, "encode", forbidden)
    assert summary(run(encoder, journal=Journal(tmp_path / "run.jsonl"))) == summary(first[0])
    assert (tmp_path / "run.jsonl").read_bytes() == lines


@pytest.mark.parametrize("name", ["_cost_model", "_finals"])
def test_an_interruption_while_timing(encoder, alone, monkeypatch, tmp_path, name):
    few = RECIPES[::9]
    wanted = summary(run(encoder, recipes=few))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adaptation, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(encoder, recipes=few, journal=Journal(tmp_path / "run.jsonl"))
    monkeypatch.setattr(Search, "_embed", lambda *_: pytest.fail("computed again"))
    assert summary(run(encoder, recipes=few, journal=Journal(tmp_path / "run.jsonl"))) == wanted


# Competitors


def mean_accuracy(encoder, encode, task):
    class Encoder:
        def encode(self, texts):
            return encode(texts)

    found = []
    for count in SHOTS:
        for seed in SEEDS:
            few = draw(task, count, seed)
            classifier = FewShotClassifier(Encoder()).fit(few.train.texts, few.train.labels)
            found.append(accuracy(few.test.labels, classifier.predict(few.test.texts).tolist()))
    return np.mean(found)


def mean_drop(encoder, encode):
    drops = [mean_accuracy(encoder, encoder.encode, task) - mean_accuracy(encoder, encode, task) for task in TASKS]
    return pytest.approx(100 * np.mean(drops), abs=1e-9)


def shallow_encode(encoder, layers, policy=None):
    """Mean-pooled, with the first layers alone."""

    def encode(texts):
        states = {}  # behind each layer
        embeddings = np.empty((len(texts), encoder.config.hidden_size), np.float32)
        for places, batch in by_length(encoder.tokenizer, texts):
            forward(encoder.blocks, batch, policy, lambda layer, state, _: states.update({layer: state}))
            encoded = states[layers - 1]
            sums = np.add.reduceat(encoded.hidden, encoded.offsets[:-1], axis=0)
            means = sums / np.diff(encoded.offsets)[:, None]
            embeddings[places] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return embeddings

    return encode


def test_competitors_are_what_they_say(encoder, clock, plain):
    recipe = Recipe(((1, 0.6),), "attention", "drop", min_tokens=3)
    found = run(encoder, recipes=[recipe])
    policy = found.policy
    rivals = {each.name: each for each in found.timings if each.kind in ("layers", "precision")}
    assert {name: each.kind for name, each in rivals.items()} == {
        "2 layers": "layers",
        "2 layers + policy": "layers",
        "1 layers": "layers",
        "precision int8": "precision",
        "precision int8 + policy": "precision",
    }
    int8 = SentenceEncoder(plain, precision="int8", threads=1)
    encoders = {
        "2 layers": shallow_encode(encoder, 2),
        "2 layers + policy": shallow_encode(encoder, 2, policy),
        "1 layers": shallow_encode(encoder, 1),
        "precision int8": int8.encode,
        "precision int8 + policy": lambda texts: int8.encode(texts, pruning=policy),
    }
    for name, encode in encoders.items():
        assert rivals[name].mean_drop == mean_drop(encoder, encode), name
    assert rivals["precision int8"].time_ratio == 0.5
    assert rivals["1 layers"].time_ratio < rivals["2 layers"].time_ratio < 1
    assert rivals["2 layers + policy"].time_ratio < rivals["2 layers"].time_ratio
    assert encoder.blocks.num_layers == encoder.config.num_hidden_layers == 3


def test_fewer_layers_are_encoded_with(encoder):
    policy = RECIPES[2].policy(None)
    rivals = adaptation._competitors(encoder, policy)
    texts = TASKS[0].splits["test"].texts
    for layers in (1, 2):
        shallow, plain = rivals[f"{layers} layers"]
        assert plain is None
        found = shallow.encode(texts, pruning=None)
        np.testing.assert_allclose(found, shallow_encode(encoder, layers)(texts), atol=2e-6)
        assert np.abs(found - encoder.encode(texts)).max() > 0.01


def test_the_other_precision_has_the_same_settings(plain):
    settings = {"truncate_dim": 12, "prompts": {"q": "tell me: "}, "default_prompt_name": "q"}
    mine = SentenceEncoder(plain, precision="int8", threads=1, **settings)
    mine.max_seq_length = 20
    rival, _ = adaptation._competitors(mine, RECIPES[0].policy(None))["precision float32"]
    assert (rival.precision, rival.backend, rival.threads) == ("float32", mine.backend, 1)
    assert (rival.truncate_dim, rival.prompts, rival.default_prompt_name) == tuple(settings.values())
    assert rival.max_seq_length == 20


@pytest.mark.parametrize(("name", "layers"), [("one_layer", []), ("head_dim_64", ["1 layers", "1 layers + policy"])])
def test_shallow_models(random_folder, clock, name, layers):
    encoder = SentenceEncoder(random_folder(name), threads=1)
    found = run(
        encoder,
        recipes=[Recipe(((0, 0.5),), "attention", "drop", min_tokens=3), Recipe(((0, 0.5),), "learned", "restore")],
        shots=(2,),
    )
    assert sorted(each.name for each in found.timings if each.kind == "layers") == layers
    assert found.policy is not None
    found.policy.check_fits(encoder.config, encoder.pooling.modes, encoder.identity.weights)


def test_the_grid_of_a_single_layer(random_folder, alone, monkeypatch):
    monkeypatch.setattr("minitrans.adaptation.recipes.QUANTILES", (0.5,))
    monkeypatch.setattr(adaptation, "PARENTS", 1)
    found = run(SentenceEncoder(random_folder("one_layer"), threads=1), recipes=None, shots=(1,), seeds=(0,))
    assert {layer for each in found.outcomes for layer, _ in each.recipe.stages} == {0}
    assert found.policy is not None


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max", "weightedmean", "mean_sqrt_len_tokens"])
def test_every_policy_that_is_tried_runs_on_the_model(tmp_path, alone, monkeypatch, pooling):
    monkeypatch.setattr("minitrans.adaptation.recipes.QUANTILES", (0.5,))
    monkeypatch.setattr(adaptation, "PARENTS", 1)
    spec = random_models.ModelSpec("pooled", pooling=pooling, pooling_style="string", seed=31)
    encoder = SentenceEncoder(random_models.write_model(tmp_path, spec), threads=1)
    found = run(encoder, tasks=TASKS[:1], recipes=None, shots=(1,), seeds=(0,))
    search = Search(encoder, TASKS[:1], SearchSettings((1,), (0,), fit_texts=40))
    for each in found.outcomes:
        search.policy(each.recipe).check_fits(encoder.config, encoder.pooling.modes, encoder.identity.weights)
    assert encoder.encode("where is my new card please", pruning=found.policy).shape == (32,)
    assert {each.recipe.score for each in found.outcomes} == {"attention", "learned"}


@pytest.mark.parametrize(
    ("pooling", "recipe"),
    [
        ("mean", Recipe(((3, 0.5),), "attention", "drop")),
        ("mean", Recipe(((1, 0.5), (3, 0.5)), "learned", "drop")),
        ("cls", Recipe(((1, 0.5),), "attention", "drop")),
        ("lasttoken", Recipe(((1, 0.5),), "attention", "restore", protect_special=True)),
        ("max", Recipe(((1, 0.5),), "learned", "restore")),
    ],
)
def test_recipes_that_cannot_run_are_refused_at_once(tmp_path, monkeypatch, pooling, recipe):
    spec = random_models.ModelSpec("pooled", pooling=pooling, pooling_style="string", seed=31)
    encoder = SentenceEncoder(random_models.write_model(tmp_path, spec), threads=1)
    monkeypatch.setattr(adaptation, "Search", lambda *_: pytest.fail("began"))
    message = f"{re.escape(str(recipe))} cannot run on this model, which has 3 layers and {pooling} pooling"
    with pytest.raises(InputError, match=message):
        run(encoder, recipes=[recipe])


# What is refused


def test_impossible_searches(encoder):
    for tasks, message in (([], "the tasks are none"), ([TASKS[0], TASKS[0]], "the tasks are shop, shop")):
        with pytest.raises(InputError, match=message):
            run(encoder, tasks=tasks)
    with pytest.raises(InputError, match="recipes is empty, wanted at least one"):
        run(encoder, recipes=[])
    with pytest.raises(InputError, match="shots is 0"):
        run(encoder, shots=(0,))
    with pytest.raises(InputTypeError, match="texts is a set, which has no order"):
        run(encoder, texts={"a", "b"})


def test_a_recipe_that_comes_twice_is_tried_once(encoder, alone):
    found = run(encoder, recipes=[RECIPES[0], RECIPES[1], RECIPES[0]])
    assert [each.recipe for each in found.outcomes] == RECIPES[:2]


# The report


@pytest.fixture(scope="module")
def found(encoder, first):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "interleaved", counted({}))
        return run(encoder, Limits(100, 100, 0.9), journal=Journal(shutil.copy(first[1], first[1].with_name("found"))))


def tables(text):
    """The tables of a Markdown text, as lists of rows of cells."""
    blocks = [block.splitlines() for block in re.split(r"\n\n", text.strip()) if block.startswith("|")]
    return [[[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block] for block in blocks]


def test_the_report(found):
    text = adaptation_report.markdown(found, "picture.svg")
    chosen, (mean, worst) = str(found.chosen.recipe), found.chosen.bounds(0.9)
    assert text.startswith("# A pruning policy for shop, bank\n\n")
    ratio = found.policy.provenance["time_ratio"]
    assert f"**{chosen}** embeds in {ratio:.1%} of the time" in text
    assert f"loses {found.chosen.mean_drop:.2f} points of accuracy on average (bound {mean:.2f})" in text
    assert f"on the worst task at most {worst:.2f}" in text
    assert f"keeps {found.chosen.tokens_kept:.1%} of the tokens" in text
    assert "Limits: 100 points on average, 100 on the worst task, each with a confidence of 90%" in text
    assert f"over 2 draws at 1, 2 shots. A negative drop is a gain. {len(RECIPES)} policies were tried" in text
    assert "![Accuracy against time, one point per policy](picture.svg)" in text
    assert text.endswith("|\n")
    timed, pareto, baseline = tables(text)
    for table in (timed, pareto, baseline):
        assert len({len(row) for row in table}) == 1
        assert all(set(cell) <= {"-", ":"} for cell in table[1])
    rows = {row[0].removesuffix(" (chosen)").partition(" (the paper's")[0]: row for row in timed[2:]}
    assert len(rows) == len(found.timings)
    for each in found.timings:
        name, *values = rows["no pruning" if each.kind == "none" else each.name]
        assert values == [f"{each.time_ratio:.1%}", f"{each.mean_drop:+.2f}"]
        assert ("(chosen)" in name) == (each.name == chosen)
        assert ("the paper's method" in name) == (each.kind == "paper")
    assert [row[0].removesuffix(" (chosen)") for row in pareto[2:]] == [str(each.recipe) for each in found.pareto()]
    assert {row[-1] for row in pareto[2:]} == {"yes"}
    assert baseline[2:] == [[name, f"{value:.1%}"] for name, value in found.baseline.items()]
    ratios = [float(row[1].rstrip("%")) for row in timed[2:]]
    assert ratios == sorted(ratios)


def test_the_front_marks_what_was_chosen(found):
    chosen = found.pareto()[1]
    for policy, names in ((found.policy, [f"{chosen.recipe} (chosen)"]), (None, [])):
        text = adaptation_report.markdown(replace(found, chosen=chosen, policy=policy))
        assert [row[0] for row in tables(text)[1] if "(chosen)" in row[0]] == names
    assert {row[-1] for row in tables(adaptation_report.markdown(replace(found, limits=NONE)))[1][2:]} >= {"no"}


def test_the_table_for_a_terminal(found):
    lines = adaptation_report.timing_table(found).splitlines()
    assert len(lines) == 1 + len(found.timings)
    assert sum("(chosen)" in line for line in lines) == 1
    assert len({len(line) for line in lines[1:]}) == 1


def test_report_files(found, tmp_path):
    pytest.importorskip("matplotlib")
    files = adaptation_report.save_report(found, tmp_path / "new" / "policy.md")
    assert files == [tmp_path / "new" / "policy.md", tmp_path / "new" / "policy.svg"]
    assert sorted((tmp_path / "new").iterdir()) == files
    assert files[0].read_text(encoding="utf-8") == adaptation_report.markdown(found, "policy.svg")


@pytest.mark.parametrize("name", ["policy.html", "policy", "policy.json", "policy.md.txt"])
def test_a_report_ends_in_md(found, tmp_path, name):
    with pytest.raises(InputError, match=r"wanted \.md"):
        adaptation_report.save_report(found, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_picture(found, tmp_path):
    pytest.importorskip("matplotlib")
    one, other = tmp_path / "one.svg", tmp_path / "other.svg"
    assert adaptation_report.save_picture(found, one)
    assert adaptation_report.save_picture(found, other)
    assert one.read_bytes() == other.read_bytes()
    root = ElementTree.parse(one).getroot()
    assert root.tag == f"{SVG}svg"
    words = {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}
    assert f"chosen: {found.chosen.recipe}" in words
    assert {"no pruning", "limit of the mean drop"} <= words
    near = [each for each in found.timings if each.kind in ("layers", "precision") and each.mean_drop < 6]
    assert {each.name for each in near if each.time_ratio < 1.6} <= words


def test_the_picture_without_a_choice(found, tmp_path):
    pytest.importorskip("matplotlib")
    lost = replace(found.chosen, drops={name: each + 50 for name, each in found.chosen.drops.items()})
    bare = replace(found, policy=None, chosen=lost, outcomes=[lost], limits=NONE)
    assert adaptation_report.save_picture(bare, tmp_path / "bare.svg")
    root = ElementTree.parse(tmp_path / "bare.svg").getroot()
    words = {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}
    assert f"nearest to the limits: {found.chosen.recipe}" in words


def test_the_report_without_matplotlib(found, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not adaptation_report.save_picture(found, tmp_path / "policy.svg")
    assert adaptation_report.save_report(found, tmp_path / "policy.md") == [tmp_path / "policy.md"]
    assert [path.name for path in tmp_path.iterdir()] == ["policy.md"]
    text = (tmp_path / "policy.md").read_text()
    assert "pip install minitrans[report]" in text
    assert "![" not in text
