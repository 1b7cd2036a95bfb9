"""The solver against scikit-learn's, on random problems and on the edges."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrans.errors import InputError, NumericalError
from minitrans.fewshot.logistic import fit_logistic, probabilities


def objective(coef, intercept, X, y, C):
    """The definition, in plain float64: the oracle of what is minimised."""
    logits = X.astype(np.float64) @ coef.T + intercept  # [N, K]
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(y)), y]
    return 0.5 * (coef**2).sum() + C * losses.sum()


def sklearn_optimum(X, y, C):
    """scikit-learn's tightly converged weights, as one vector per class: (coef [K, H], intercept [K])."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    K = y.max() + 1
    # Its binary model has one vector w where the softmax has -w/2 and w/2; C doubles (see fit_logistic).
    model = linear_model.LogisticRegression(C=2 * C if K == 2 else C, tol=1e-10, max_iter=100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may warn that it gets no closer
        model.fit(X.astype(np.float64), y)
    if K == 2:
        w, b = model.coef_[0] / 2, model.intercept_[0] / 2
        return np.stack([-w, w]), np.array([-b, b])
    return model.coef_, model.intercept_


@st.composite
def problems(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    K = draw(st.integers(2, 7))
    N = draw(st.integers(K, 40))
    H = draw(st.integers(1, 20))
    kind = draw(st.sampled_from(["noise", "separable", "unit rows", "few values", "uneven scales"]))
    C = 10.0 ** draw(st.floats(-3, 2))
    random = np.random.default_rng(seed)
    y = np.concatenate([np.arange(K), random.integers(0, K, N - K)])
    X = random.normal(size=(N, H))
    if kind == "separable":
        X += 4 * random.normal(size=(K, H))[y]
    elif kind == "unit rows":
        X /= np.linalg.norm(X, axis=1, keepdims=True)
    elif kind == "few values":
        X = np.round(X)  # duplicates, contradictory labels and rows of zeros
        X[random.random(N) < 0.3] = 0
    elif kind == "uneven scales":
        X *= 10.0 ** random.uniform(-3, 0.5, H)
    return X, y, C


@given(problems())
@settings(max_examples=60)
def test_reaches_the_optimum_of_scikit_learn(problem):
    X, y, C = problem
    fit = fit_logistic(X, y, C=C)
    best = objective(*sklearn_optimum(X, y, C), X, y, C)
    reached = objective(fit.coef, fit.intercept, X, y, C)
    assert fit.converged
    assert reached <= best * (1 + 1e-6)
    assert fit.objective == pytest.approx(reached, rel=1e-6)
    assert reached - best <= 10 * fit.gap + 1e-9 * best


@pytest.mark.parametrize("C", [0.1, 1e5])
def test_separable_data(C):
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 6)
    X = np.eye(5, 16)[y] + 0.05 * random.normal(size=(30, 16))
    fit = fit_logistic(X, y, C=C)
    best = objective(*sklearn_optimum(X, y, C), X, y, C)
    assert fit.converged
    assert objective(fit.coef, fit.intercept, X, y, C) <= best * (1 + 1e-6)
    assert (probabilities(X @ fit.coef.T + fit.intercept).argmax(axis=1) == y).all()


def test_float32_examples_of_many_classes():
    random = np.random.default_rng(3)
    centres = random.normal(size=(20, 48))
    y = np.repeat(np.arange(20), 4)
    X = (centres[y] + 1.5 * random.normal(size=(80, 48))).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    fit = fit_logistic(X, y)
    best = objective(*sklearn_optimum(X, y, 10.0), X, y, 10.0)
    assert fit.converged
    assert objective(fit.coef, fit.intercept, X, y, 10.0) <= best * (1 + 1e-6)


def test_answer_is_centred_over_the_classes():
    random = np.random.default_rng(4)
    fit = fit_logistic(random.normal(size=(30, 5)), np.arange(30) % 3)
    np.testing.assert_allclose(fit.coef.sum(axis=0), 0, atol=1e-12)
    assert fit.intercept.sum() == pytest.approx(0, abs=1e-12)


def test_same_input_same_bits():
    random = np.random.default_rng(5)
    X, y = random.normal(size=(60, 12)), np.arange(60) % 5
    first, second = fit_logistic(X, y), fit_logistic(X, y)
    np.testing.assert_array_equal(first.coef, second.coef)
    np.testing.assert_array_equal(first.intercept, second.intercept)


def test_warm_start_takes_fewer_steps_to_the_same_answer():
    random = np.random.default_rng(8)
    X, y = random.normal(size=(200, 20)), np.arange(200) % 8
    before = fit_logistic(X[:199], y[:199])
    cold, warm = fit_logistic(X, y), fit_logistic(X, y, start=(before.coef, before.intercept))
    assert warm.iterations < cold.iterations
    assert warm.objective == pytest.approx(cold.objective, rel=1e-6)
    assert fit_logistic(X, y, start=(cold.coef, cold.intercept)).iterations <= 1


def test_one_class_is_certain():
    fit = fit_logistic([[1.0, 2.0], [3.0, 4.0]], [0, 0])
    assert fit.converged
    assert fit.coef.tolist() == [[0.0, 0.0]]
    assert probabilities(np.array([[5.0, 5.0]]) @ fit.coef.T + fit.intercept).tolist() == [[1.0]]


@pytest.mark.parametrize("X", [np.zeros((4, 3)), np.ones((4, 3))], ids=["zeros", "equal rows"])
def test_rows_that_tell_nothing_give_the_class_frequencies(X):
    fit = fit_logistic(X, [0, 0, 0, 1])
    assert fit.converged
    np.testing.assert_allclose(probabilities(X @ fit.coef.T + fit.intercept), [[0.75, 0.25]] * 4, atol=1e-4)


def test_running_out_of_steps_is_told_not_raised():
    random = np.random.default_rng(9)
    X, y = random.normal(size=(80, 10)), random.integers(0, 4, 80)
    fit = fit_logistic(X, y, C=100.0, max_iter=2)
    assert not fit.converged
    assert fit.gap > 1e-7 * fit.objective
    assert np.isfinite(fit.coef).all()


@pytest.mark.parametrize("C", [1e-12, 1e9, 1e20])
def test_extreme_c_gives_something_finite(C):
    random = np.random.default_rng(10)
    fit = fit_logistic(random.normal(size=(20, 5)), np.arange(20) % 4, C=C, max_iter=50)
    assert np.isfinite(fit.coef).all()
    assert np.isfinite([fit.objective, fit.gap]).all()


@pytest.mark.parametrize("scale", [1e160, 1e300])
def test_overflow_is_a_numerical_error(scale):
    random = np.random.default_rng(11)
    with pytest.raises(NumericalError, match=r"overflow.*scale"):
        fit_logistic(scale * random.normal(size=(20, 5)), np.arange(20) % 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": [1.0, 2.0]}, r"X: shape \(2,\).*wanted numbers \[N, H\]"),
        ({"X": [["a"], ["b"]]}, r"X: .*wanted numbers"),
        ({"X": np.zeros((2, 0))}, r"X: shape \(2, 0\)"),
        ({"X": np.zeros((0, 2)), "y": []}, "at least one example"),
        ({"X": [[1.0], [np.nan]]}, "row 1 holds NaN"),
        ({"X": [[np.inf], [1.0]]}, "row 0 holds NaN or infinity"),
        ({"y": [0, 1, 0]}, r"y has shape \(3,\).*\[2\]"),
        ({"y": [0.0, 1.0]}, "float64, wanted integers"),
        ({"y": [0, -1]}, "wanted 0..K-1"),
        ({"y": [1, 1]}, "each at least once"),
        ({"y": [0, 10**9]}, "wanted 0..K-1"),
        ({"C": 0.0}, "C is 0.0, wanted"),
        ({"C": float("nan")}, "C is nan"),
        ({"C": float("inf")}, "C is inf"),
        ({"C": "1"}, "C is '1'"),
        ({"C": None}, "C is None"),
        ({"start": (np.zeros((2, 2)), np.zeros(2))}, r"start has shapes \(2, 2\) and \(2,\), wanted .*\(2, 1\)"),
        ({"start": (np.full((2, 1), np.nan), np.zeros(2))}, "wanted finite arrays"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    arguments = {"X": [[1.0], [2.0]], "y": [0, 1]} | change
    with pytest.raises(InputError, match=message):
        fit_logistic(**arguments)


def test_arguments_are_not_changed():
    X, y = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]), np.array([1, 0, 1])
    copies = X.copy(), y.copy()
    fit_logistic(X, y)
    for after, before in zip((X, y), copies, strict=True):
        np.testing.assert_array_equal(after, before)


def test_probabilities_of_large_logits():
    np.testing.assert_array_equal(probabilities(np.array([[1e5, 0.0], [-1e5, -1e5]])), [[1.0, 0.0], [0.5, 0.5]])
