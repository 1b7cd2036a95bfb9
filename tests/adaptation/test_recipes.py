"""The policies that a search tries: which ones, that they are valid, and which of them nothing beats."""

import json
from dataclasses import replace

import pytest
from fitted_policies import random_fitted
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrans.adaptation.recipes import (
    CAP,
    DEEPEST,
    LEARNED_QUANTILES,
    METHODS,
    QUANTILES,
    TURNS,
    Recipe,
    front,
    grid,
    is_milder,
    neighbours,
    new_ones,
)
from minitrans.errors import PolicyError

DEPTHS = (1, 2, 6, 12)
FITTED = random_fitted("any", 4, range(12))

quantiles = st.integers(1, 19).map(lambda n: n / 20)
by_quantile = st.builds(
    lambda layers, shares, method, *rest: Recipe(tuple(zip(sorted(layers), shares, strict=False)), *method, *rest),
    st.sets(st.integers(0, 5), min_size=1, max_size=2),
    st.lists(quantiles, min_size=2, max_size=2),
    st.sampled_from([*METHODS, ("random", "drop"), ("attention_value", "restore")]),
    st.integers(1, 12),
    st.booleans(),
)
by_turn = st.builds(
    lambda layer, share, *rest: Recipe(((layer, share),), "learned", *rest),
    st.integers(0, 5),
    quantiles,
    st.sampled_from(["drop", "merge", "restore"]),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([*TURNS, 1.0, 7.5, 90.0]),
)
recipes = by_quantile | by_turn


@pytest.mark.parametrize("num_layers", DEPTHS)
def test_the_grid(num_layers):
    found = grid(num_layers)
    layers = sorted({recipe.layer for recipe in found})
    assert len(set(found)) == len(found)
    for score, reduce in METHODS:
        for layer in layers:
            mine = [each for each in found if (each.score, each.reduce, each.layer) == (score, reduce, layer)]
            shares = [each.stages[0][1] for each in mine if each.max_turn is None]
            turns = [each.max_turn for each in mine if each.max_turn is not None]
            assert shares == list(LEARNED_QUANTILES if score == "learned" else QUANTILES)
            assert {each.stages[0][1] for each in mine if each.max_turn is not None} <= {CAP}
            assert bool(turns) == (score == "learned")
            assert turns == sorted(turns)
            assert not turns or (turns[0] == min(TURNS) and turns[-1] >= 0.75 * max(TURNS))
    assert layers == list(range(len(layers)))
    assert 1 <= len(layers) <= DEEPEST + 1
    assert layers[-1] < num_layers
    assert num_layers == 1 or layers[-1] < num_layers - 1  # nothing is left to save behind the last layer
    assert {(recipe.score, recipe.reduce) for recipe in found} == set(METHODS)
    assert all(recipe.policy(FITTED).plan == dict(recipe.stages) for recipe in found)


def test_the_grid_is_gentle_first():
    for method in METHODS:
        stages = [recipe.stages[0] for recipe in grid(6) if (recipe.score, recipe.reduce) == method]
        assert stages == sorted(stages)


def differences(one, other):
    return {name for name in one.to_dict() if one.to_dict()[name] != other.to_dict()[name]}


@settings(max_examples=60)
@given(recipes, st.sampled_from([6, 12]))
def test_neighbours_differ_and_are_valid(recipe, num_layers):
    found = neighbours(recipe, num_layers)
    assert recipe not in found
    assert len(set(found)) == len(found)
    for other in found:
        changed = differences(recipe, other)
        assert len(changed) == 1
        assert (other.score, other.reduce) == (recipe.score, recipe.reduce)
        assert all(0 <= layer < num_layers and 0 <= quantile < 1 for layer, quantile in other.stages)
        assert other.policy(FITTED).plan == dict(other.stages)
        assert str(other) != str(recipe)


@pytest.mark.parametrize("num_layers", DEPTHS)
def test_neighbours_of_the_grid_stay_within_the_model(num_layers):
    for recipe in grid(num_layers):
        for other in neighbours(recipe, num_layers):
            assert max(layer for layer, _ in other.stages) < num_layers


def test_every_turn_is_a_step_from_the_grid():
    tried = grid(6)
    more = [other for recipe in tried for other in neighbours(recipe, 6)]
    for layer in range(DEEPEST + 1):
        for reduce in ("drop", "restore"):
            kind = [each for each in [*tried, *more] if (each.layer, each.reduce) == (layer, reduce)]
            assert {each.max_turn for each in kind} == {None, *TURNS}
    assert all(each.score == "learned" and len(each.stages) == 1 for each in more if each.max_turn is not None)


@settings(max_examples=60)
@given(by_turn)
def test_the_next_turns_are_tried(recipe):
    turns = {other.max_turn for other in neighbours(recipe, 6)} - {recipe.max_turn}
    gentler, farther = [t for t in TURNS if t < recipe.max_turn], [t for t in TURNS if t > recipe.max_turn]
    assert turns == {*gentler[-1:], *farther[:1]}


BASE = Recipe(((1, 0.4),), "learned", "drop")
BY_TURN = replace(BASE, max_turn=10.0)


@pytest.mark.parametrize(
    ("one", "other", "milder"),
    [
        (BASE, replace(BASE, stages=((1, 0.5),)), True),
        (BASE, replace(BASE, stages=((1, 0.5), (2, 0.1))), True),
        (BASE, BASE, False),
        (replace(BASE, stages=((1, 0.4), (2, 0.1))), replace(BASE, stages=((1, 0.5),)), False),
        (BASE, replace(BASE, stages=((2, 0.5),)), False),
        (BASE, replace(BASE, stages=((1, 0.5),), min_tokens=4), False),
        (BASE, replace(BASE, stages=((1, 0.5),), reduce="restore"), False),
        (BY_TURN, replace(BY_TURN, max_turn=12.0), True),
        (BY_TURN, replace(BY_TURN, max_turn=8.0), False),
        (BY_TURN, replace(BY_TURN, max_turn=12.0, stages=((1, 0.3),)), False),
        (BY_TURN, replace(BASE, stages=((1, 0.7),)), False),
        (BASE, replace(BY_TURN, stages=((1, 0.7),)), False),
    ],
)
def test_which_of_two_is_milder(one, other, milder):
    assert is_milder(one, other) is milder
    assert not (milder and is_milder(other, one))


@settings(max_examples=40)
@given(recipes)
def test_a_recipe_is_its_policy(recipe):
    policy = recipe.policy(FITTED, {"tasks": ["a"]})
    assert policy.plan == dict(recipe.stages)
    for name in ("score", "reduce", "min_tokens", "protect_special", "max_turn"):
        assert getattr(policy, name) == getattr(recipe, name)
    assert policy.provenance == {"tasks": ["a"]}
    layers = sorted(dict(recipe.stages))
    assert (policy.stages is None) == (len(recipe.stages) == 1)
    assert (policy.fitted is None) == (not recipe.is_fitted)
    if recipe.is_fitted:
        assert sorted(policy.fitted.scorers) == (layers if recipe.score == "learned" else [])
        assert sorted(policy.fitted.restore) == (layers if recipe.reduce == "restore" else [])
        assert sorted(policy.fitted.turns) == (layers if recipe.max_turn is not None else [])
        with pytest.raises(PolicyError, match="nothing was fitted"):
            recipe.policy(None)
    values = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe(**values | {"stages": tuple(map(tuple, values["stages"]))}) == recipe


def test_what_is_fitted_or_has_more_parts_is_less_simple():
    plain = Recipe(((1, 0.3),), "attention", "drop")
    others = [
        Recipe(((1, 0.3),), "attention", "merge"),
        Recipe(((1, 0.3),), "attention", "drop", protect_special=True),
        Recipe(((1, 0.3), (2, 0.3)), "attention", "drop"),
        Recipe(((1, 0.3),), "learned", "drop"),
        Recipe(((1, 0.3),), "learned", "drop", max_turn=10.0),
        Recipe(((1, 0.3),), "learned", "restore"),
    ]
    assert sorted([*others[::-1], plain], key=lambda recipe: recipe.simplicity) == [plain, *others]


@settings(max_examples=30)
@given(st.lists(recipes, max_size=8), st.lists(recipes, max_size=4))
def test_new_ones(found, known):
    new = new_ones([*found, *found], known)
    assert len(set(new)) == len(new)
    assert set(new) == set(found) - set(known)
    assert new == sorted(new, key=found.index)


points = st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)) | st.tuples(st.floats(0, 1), st.floats(-1, 1)))


@settings(max_examples=100)
@given(points)
def test_the_front_is_what_nothing_beats(points):
    def beats(one, other):
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    wanted = {point for point in points if not any(beats(other, point) for other in points)}
    found = front(range(len(points)), points.__getitem__)
    assert {points[i] for i in found} == wanted
    assert len(found) == len(wanted)
    assert all(points[i] not in points[:i] for i in found)  # of equals the first
    costs = [points[i][0] for i in found]
    assert costs == sorted(costs)
