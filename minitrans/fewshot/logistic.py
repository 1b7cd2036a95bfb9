"""Multinomial logistic regression with an L2 penalty: arrays in, arrays out.

The objective is scikit-learn's, with the softmax over all classes however many there are:

    0.5 * ||W||^2  +  C * sum_i -log softmax(W x_i + b)[y_i]          (b is not penalised)

It is minimised by L-BFGS (Liu & Nocedal 1989). Three things make it quick on a few hundred sentence embeddings:

1. **Coordinates.** The examples are centred and turned into the eigenbasis of their weighted scatter matrix. There,
   Boehning's model of the Hessian (1992), ``I + a * scatter`` for every class, is diagonal and so free to invert. Where
   Boehning bounds ``p(1-p)`` by a constant ``a``, the mean of the current ``p(1-p)`` is used. Fewer examples than
   features also means fewer coordinates.
2. **Own examples.** For its own examples a class's ``p(1-p)`` is far above that mean. They are added to its model as
   one rank-one term, which is inverted by the Sherman-Morrison formula.
3. **Line search.** Logits change linearly along a direction, so a step is tried at the price of a softmax, with no
   product by the examples. An almost exact step then costs little and saves iterations.

The iterations run in float32; the result is judged, and finished where it must be, in float64.

Dimension letters: N examples, H features, K classes, R = min(N, H) rotated features, D = R + 1 (the intercept last).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.backends.blas import single_threaded_blas
from minitrans.errors import InputError, NumericalError

Array = NDArray[np.floating[Any]]

MEMORY = 20  # pairs that L-BFGS remembers
MAX_TRIALS = 30  # steps that one line search tries
SLOPE_RATIO = 0.2  # the line search stops once the slope has fallen to this share of the first
MODEL_PERIOD = 5  # iterations between two estimates of the Hessian
MIN_CURVATURE = 1e-6  # the least mean p(1-p) in the model: keeps steps finite where everything is separated


@dataclass(frozen=True)
class LogisticFit:
    """What the solver found.

    Attributes:
        coef: ``[K, H]`` float64; each column sums to zero over the classes.
        intercept: ``[K]`` float64, summing to zero.
        objective: the value of the objective at this point.
        gap: about how far at most the objective lies above its minimum: half the squared norm of the gradient, taken in
            float64, each intercept's part divided by its curvature.
        iterations: how many steps were taken.
        converged: whether ``gap <= tol * objective``; where it is False the point is the best that was reached.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    objective: float
    gap: float
    iterations: int
    converged: bool


@single_threaded_blas()
def fit_logistic(
    X: ArrayLike,
    y: ArrayLike,
    *,
    C: float = 10.0,
    start: tuple[ArrayLike, ArrayLike] | None = None,
    tol: float = 1e-7,
    max_iter: int = 1000,
) -> LogisticFit:
    """Fit a linear softmax classifier.

    With two classes the softmax has one vector per class where scikit-learn's binary model has one in all; the same
    probabilities come out of its ``LogisticRegression(C=2 * C)``, whose ``coef_[0]`` is ``coef[1] - coef[0]`` here.
    From three classes on the objectives are the same.

    Args:
        X: ``[N, H]`` examples, finite, N >= 1.
        y: ``[N]`` integer codes 0..K-1, each present at least once. With a single class the answer is zero weights,
            that is probability one.
        C: inverse strength of the penalty, > 0.
        start: ``(coef [K, H], intercept [K])`` to start from, such as an earlier fit. Without it the start is zero
            weights and the logarithm of the class frequencies.
        tol: how far the objective may stay above its minimum, relative to its value.
        max_iter: the most steps in each precision.

    BLAS runs on one thread meanwhile: products this small gain nothing from more, and a ``fork`` beside them is safe.

    Returns:
        The best point found. Running out of steps or of precision is no error: `converged` says so.

    Raises:
        InputError: an argument has a wrong shape, type or range.
        NumericalError: the result is not finite, because the arithmetic overflowed.

    Sources: Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44 (1992);
    Liu & Nocedal, "On the limited memory BFGS method", Math. Programming 45 (1989).
    """
    X, y = _checked(X, y)
    weight = np.full(len(X), check_strength(C))  # [N]
    K, H = int(y.max()) + 1, X.shape[1]
    if K == 1:
        return LogisticFit(np.zeros((1, H)), np.zeros(1), 0.0, 0.0, 0, True)
    with np.errstate(all="ignore"):  # what overflows is reported below, by its result
        order = np.argsort(y, kind="stable")  # [N]: examples of a class stand together, so that sums are over runs
        X, y = X[order], y[order]
        mean = weight @ X / weight.sum()  # [H]
        X -= mean
        basis, scatter = _eigenbasis(X, weight)  # [H, R], [R]
        problem = _Problem(
            Z=np.column_stack([X @ basis, np.ones(len(X))]),  # [N, D]
            y=y,
            weight=weight,
            penalty=np.append(np.ones(len(scatter)), 0.0)[:, None],  # [D, 1]
            scatter=np.append(scatter, weight.sum())[:, None],  # [D, 1]
        )
        theta = _start(start, problem, K, mean, basis)  # [D, K]
        quick = _minimise(problem.astype(np.float32), theta, tol / 2, max_iter)
        if np.isfinite(quick.theta).all():
            theta = quick.theta.astype(np.float64)
        theta -= theta.mean(axis=1, keepdims=True)  # the minimum is there, and the objective only falls
        exact = _minimise(problem, theta, tol, max_iter)
        coef = (basis @ exact.theta[:-1]).T  # [K, H]
        intercept = exact.theta[-1] - coef @ mean  # [K]
    if not (np.isfinite(coef).all() and np.isfinite(intercept).all() and math.isfinite(exact.gap + exact.value)):
        raise NumericalError(
            f"logistic regression overflowed: C is {C:g} and the largest feature {np.abs(X).max():.3g}; "
            "wanted a finite result; scale the features to about one or lower C"
        )
    steps, converged = quick.steps + exact.steps, exact.gap <= tol * exact.value
    intercept -= intercept.mean()
    return LogisticFit(coef - coef.mean(axis=0), intercept, exact.value, exact.gap, steps, converged)


def check_strength(C: Any) -> float:
    """C as a float. InputError unless it is a finite number above 0."""
    known = isinstance(C, int | float | np.integer | np.floating) and not isinstance(C, bool)
    try:
        value = float(C) if known else math.nan
    except OverflowError:  # an int beyond all floats
        value = math.inf
    if not 0 < value < math.inf:
        raise InputError(f"C is {C!r:.100}, wanted a finite number above 0")
    return value


def checked_rows(values: ArrayLike, what: str) -> NDArray[Any]:
    """The values as an array ``[N, H]`` of finite numbers, H >= 1. InputError, naming ``what``, for anything else."""
    if np.ma.is_masked(values):
        raise InputError(f"{what}: there are masked values, wanted all of them; fill them, as with .filled()")
    rows = np.asarray(values)
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or not rows.shape[1]:
        raise InputError(f"{what}: shape {rows.shape} and type {rows.dtype}, wanted numbers [N, H], an example per row")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InputError(f"{what}: row {bad[0]} holds NaN or infinity, wanted finite numbers; drop or repair that row")
    return rows


def probabilities(logits: Array) -> NDArray[Any]:
    """The softmax over the last axis, of the same shape, without overflow; in float64 for logits in float64."""
    return _softmax(logits)[0]


def _softmax(logits: Array) -> tuple[Array, Array]:
    top = logits.max(axis=-1, keepdims=True)  # [..., 1]
    p = logits - top  # [..., K]
    np.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)  # [..., 1]
    p /= total
    return p, (np.log(total) + top)[..., 0]


def _checked(X: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    X, y = checked_rows(X, "X"), np.asarray(y)
    if not len(X):
        raise InputError("X has no rows, wanted at least one example")
    if y.shape != X.shape[:1] or y.dtype.kind not in "iu":
        raise InputError(f"y has shape {y.shape} and type {y.dtype}, wanted integers [{len(X)}], one for each row of X")
    if y.min() < 0 or y.max() >= len(y) or not np.bincount(y).all():
        raise InputError(
            f"y has the codes {np.unique(y)[:9]}..., wanted 0..K-1, each at least once; use np.unique's inverse"
        )
    return X.astype(np.float64), y.astype(np.intp)


def _eigenbasis(X: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Orthonormal directions ``[H, R]`` that hold all rows of X, and the weighted scatter ``[R]`` along each."""
    span = np.linalg.qr(X.T)[0] if len(X) < X.shape[1] else None  # [H, R]; None where R = H
    rows = np.sqrt(weight)[:, None] * (X if span is None else X @ span)  # [N, R]
    matrix = rows.T @ rows  # [R, R]
    if not np.isfinite(matrix).all():
        raise NumericalError(
            f"the squares of the features overflow: the largest is {np.abs(X).max():.3g}, wanted about one; scale them"
        )
    scatter, rotation = np.linalg.eigh(matrix)  # [R], [R, R]
    return rotation if span is None else span @ rotation, np.maximum(scatter, 0.0)


def _start(
    start: tuple[ArrayLike, ArrayLike] | None, problem: _Problem, K: int, mean: Array, basis: Array
) -> NDArray[np.float64]:
    """The first ``theta [D, K]``, in rotated coordinates."""
    theta = np.zeros((len(problem.penalty), K))  # [D, K]
    if start is None:
        theta[-1] = np.log(np.bincount(problem.y, weights=problem.weight) / problem.weight.sum())
        return theta
    coef, intercept = (np.asarray(part, dtype=np.float64) for part in start)  # [K, H], [K]
    finite = np.isfinite(coef).all() and np.isfinite(intercept).all()
    if coef.shape != (K, len(mean)) or intercept.shape != (K,) or not finite:
        raise InputError(
            f"start has shapes {coef.shape} and {intercept.shape}, wanted finite arrays {(K, len(mean))} and {(K,)}"
        )
    theta[:-1] = basis.T @ coef.T
    theta[-1] = intercept + coef @ mean
    return theta


@dataclass(frozen=True)
class _Problem:
    """The objective in rotated coordinates; its precision is that of Z."""

    Z: Array  # [N, D]: centred and rotated examples in order of class, and a column of ones
    y: NDArray[np.intp]  # [N]
    weight: Array  # [N]: C for each example
    penalty: Array  # [D, 1]: one, and zero for the intercept
    scatter: Array  # [D, 1]: sum_i weight_i * z_i^2

    def astype(self, dtype: type[np.floating[Any]]) -> _Problem:
        """The same problem in another precision."""
        arrays = (part.astype(dtype) for part in (self.weight, self.penalty, self.scatter))
        return _Problem(self.Z.astype(dtype), self.y, *arrays)

    def of_label(self, values: Array) -> Array:
        """The entry of each example's own class: ``[N, K]`` -> ``[N]``."""
        return values[np.arange(len(values)), self.y]

    def loss(self, logits: Array) -> tuple[float, Array]:
        """The loss without the penalty, and the probabilities ``[N, K]``."""
        p, log_total = _softmax(logits)  # [N, K], [N]
        return _dot(self.weight, log_total - self.of_label(logits)), p

    def gradient(self, theta: Array, p: Array) -> Array:
        """The gradient ``[D, K]`` of the whole objective."""
        residual = self.weight[:, None] * p  # [N, K]
        residual[np.arange(len(p)), self.y] -= self.weight
        return self.penalty * theta + self.Z.T @ residual

    def gap(self, gradient: Array, p: Array) -> float:
        """About how far above the minimum the objective is at most: half the squared gradient norm over the curvature.

        The penalty gives every weight a curvature of at least one, so their part is a bound; the curvature of an
        intercept is an estimate, taken at this point.
        """
        curvature = np.einsum("n,nk,nk->k", self.weight, p, 1 - p)  # [K]
        intercept = gradient[-1].astype(np.float64) ** 2 / np.maximum(curvature, np.finfo(np.float32).tiny)  # [K]
        return 0.5 * _dot(gradient[:-1], gradient[:-1]) + 0.5 * float(intercept.sum())

    def inverse_hessian(self, p: Array) -> Callable[[Array], Array]:
        """The model of the Hessian at probabilities p, inverted: from gradients ``[D, K]`` to steps ``[D, K]``."""
        own = self.of_label(p)  # [N]
        own = self.weight * own * (1 - own)  # [N]
        others = self.weight @ (1 - np.einsum("nk,nk->n", p, p)) - own.sum()
        a = max(others / (self.weight.sum() * (p.shape[1] - 1)), MIN_CURVATURE)
        diagonal = 1 / (self.penalty + a * self.scatter)  # [D, 1]

        first = np.flatnonzero(np.diff(self.y, prepend=-1))  # [K]: where the examples of each class begin
        mass = np.add.reduceat(own, first) + MIN_CURVATURE  # [K]
        u = (np.add.reduceat(own[:, None] * self.Z, first) / np.sqrt(mass)[:, None]).T  # [D, K]
        v = diagonal * u  # [D, K]
        scale = 1 / (1 + np.einsum("dk,dk->k", u, v))  # [K]
        return lambda g: diagonal * g - v * (scale * np.einsum("dk,dk->k", v, g))  # Sherman-Morrison


@dataclass(frozen=True)
class _Point:
    theta: Array  # [D, K]
    value: float
    gap: float
    steps: int


def _minimise(problem: _Problem, theta: Array, tol: float, max_iter: int) -> _Point:
    """L-BFGS from ``theta [D, K]``, in the problem's precision, until the estimated gap is within tol of the value."""
    scalar = problem.Z.dtype.type  # keeps products with Python numbers in this precision
    theta = theta.astype(scalar, copy=False)  # [D, K]
    logits: Array = problem.Z @ theta  # [N, K]
    loss, p = problem.loss(logits)
    gradient = problem.gradient(theta, p)  # [D, K]
    pairs: deque[tuple[Array, Array, float]] = deque(maxlen=MEMORY)
    for steps in range(max_iter + 1):
        value = loss + 0.5 * _dot(theta, problem.penalty * theta)
        if steps % MODEL_PERIOD == 0:
            model = problem.inverse_hessian(p)
        gap = problem.gap(gradient, p)
        if not gap > tol * value or steps == max_iter:  # NaN ends it too
            break
        direction = -_two_loops(gradient, pairs, model)  # [D, K]
        found = _line_search(problem, theta, logits, value, gradient, direction)
        if found is None and not pairs:  # no step goes down in this precision
            break
        if found is None:
            pairs.clear()
            continue
        step, logits, loss, p = found
        s = scalar(step) * direction  # [D, K]
        theta = theta + s
        gradient, previous = problem.gradient(theta, p), gradient
        y = gradient - previous  # [D, K]
        if (curvature := _dot(s, y)) > 0:
            pairs.append((s, y, 1 / curvature))
    return _Point(theta, value, gap, steps)


def _two_loops(g: Array, pairs: deque[tuple[Array, Array, float]], model: Callable[[Array], Array]) -> Array:
    """L-BFGS's inverse Hessian times ``g [D, K]``: the two loops of Liu & Nocedal around the inverted model."""
    scalar = g.dtype.type
    q, alphas = g.copy(), []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * _dot(s, q))
        q -= scalar(alphas[-1]) * y
    q = model(q)
    if pairs:  # the model's overall scale, after the curvature seen last
        _, y, rho = pairs[-1]
        q /= scalar(rho * _dot(y, model(y)))
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q += scalar(alpha - rho * _dot(y, q)) * s
    return q


def _line_search(
    problem: _Problem, theta: Array, logits: Array, value: float, gradient: Array, direction: Array
) -> tuple[float, Array, float, Array] | None:
    """A step along ``direction [D, K]`` that leaves at most SLOPE_RATIO of the slope and does not go up.

    The objective is convex along the line, so its slope grows with the step: secants on the slope find its zero,
    kept inside the bracket known so far.

    Returns: the step, and there the logits ``[N, K]``, the loss and the probabilities ``[N, K]``; None without one.
    """
    along = problem.Z @ direction  # [N, K]: how the logits change for a step of one
    along_label = _dot(problem.weight, problem.of_label(along))
    shrink = problem.penalty * direction  # [D, K]
    start, linear, square = _dot(theta, problem.penalty * theta), _dot(theta, shrink), _dot(direction, shrink)
    slope = _dot(gradient, direction)
    noise = 10 * np.finfo(logits.dtype).eps * value
    low, low_slope, high, high_slope = 0.0, slope, math.inf, math.inf
    step = 1.0
    for _ in range(MAX_TRIALS if slope < 0 else 0):
        trial = logits + logits.dtype.type(step) * along  # [N, K]
        loss, p = problem.loss(trial)
        trial_value = loss + 0.5 * start + step * linear + 0.5 * step**2 * square
        trial_slope = linear + step * square + _dot(problem.weight, np.einsum("nk,nk->n", p, along)) - along_label
        down = trial_value <= value + noise
        if down and abs(trial_slope) <= SLOPE_RATIO * -slope:
            return step, trial, loss, p
        if down and trial_slope < 0:
            growth = (trial_slope - low_slope) / (step - low)
            low, low_slope = step, trial_slope
            step = min(max(step - trial_slope / growth, 1.5 * step), 4 * step) if growth > 0 else 4 * step
        else:
            high, high_slope = step, trial_slope if trial_slope > 0 else math.inf
        if high < math.inf:
            secant = low - low_slope * (high - low) / (high_slope - low_slope)
            width = high - low
            step = min(max(secant, low + 0.1 * width), high - 0.1 * width)
    return None


def _dot(a: Array, b: Array) -> float:
    """The sum of ``a * b``, finished in float64. Not ``np.vdot``, whose threads cost more than they save here."""
    products = a * b if a.ndim == 1 else np.einsum("nk,nk->n", a, b)  # [n]
    return float(products.sum(dtype=np.float64))
