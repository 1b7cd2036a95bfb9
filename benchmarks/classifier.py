"""Fit time of the logistic regression against scikit-learn's lbfgs: python -m benchmarks.classifier [--data FOLDER]

Both fit the same float32 embeddings of the official 5- and 10-shot splits and the label names, with C = 10. Before
anything is timed, both are held against a tightly converged optimum and against each other's predictions. Then the
rounds alternate, so that a busy machine is unkind to both; the ratio is the median over the rounds. scikit-learn is
timed at its default tolerance, and once more at the first that brings it within 1e-6 of the optimum, which is what
this solver promises.

    --encoder NAME      model to embed with (default: the bundled one)
    --vectors FILE.npz  take embeddings from a file instead: arrays `<set>_<shots>_X` [N, H] and `<set>_<shots>_y` [N]
    --rounds N          default 9
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression

from minitrans.fewshot.logistic import fit_logistic

SETS = ("banking77", "clinc150", "hwu64")
C = 10.0
PROMISE = 1e-6  # how far above the minimum, relative, the answer may lie
TIGHT = 1e-9  # scikit-learn's tolerance for the optimum that both are held against


def problems(arguments: argparse.Namespace) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, `X [N, H]` and integer `y [N]` of every training set with its label names."""
    keys = [f"{name}_{shots}" for name in SETS for shots in (5, 10)]
    if arguments.vectors:
        stored = np.load(arguments.vectors)
        for key in keys:
            yield key, stored[f"{key}_X"], np.unique(stored[f"{key}_y"], return_inverse=True)[1]
        return
    from minitrans import SentenceEncoder
    from minitrans.data.files import read_examples
    from minitrans.fewshot.classifier import label_text

    encoder = SentenceEncoder(arguments.encoder)
    for key in keys:
        name, shots = key.split("_")
        examples = read_examples(arguments.data / name / f"train_{shots}shot.csv")
        classes = sorted(set(examples.labels))
        texts = [*examples.texts, *map(label_text, classes)]
        yield key, encoder.encode(texts), np.searchsorted(classes, [*examples.labels, *classes])


def objective(coef: np.ndarray, intercept: np.ndarray, X: np.ndarray, y: np.ndarray) -> float:
    """What both minimise, in float64."""
    logits = X.astype(np.float64) @ coef.T.astype(np.float64) + intercept  # [N, K]
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(y)), y]
    return float(0.5 * (coef.astype(np.float64) ** 2).sum() + C * losses.sum())


def lbfgs(X: np.ndarray, y: np.ndarray, tol: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at a tight tolerance it may warn that it gets no closer
        return LogisticRegression(C=C, solver="lbfgs", tol=tol, max_iter=10_000).fit(X, y)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("MINITRANS_DATA", Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--encoder", help=argparse.SUPPRESS)
    parser.add_argument("--vectors", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=9, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    print(f"scikit-learn {sklearn.__version__}, numpy {np.__version__}, {os.cpu_count()} CPUs, {platform.processor()}")
    print("above: how far the objective ends above the minimum, relative. Times in ms, median of the rounds.\n")
    print("| data | N x H, K | minitrans above | lbfgs above | minitrans | lbfgs | ratio | lbfgs to 1e-6 | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, X, y in problems(arguments):
        ours, theirs, tight = fit_logistic(X, y, C=C), lbfgs(X, y, 1e-4), lbfgs(X.astype(np.float64), y, TIGHT)
        best = objective(tight.coef_, tight.intercept_, X, y)
        above = objective(ours.coef, ours.intercept, X, y) / best - 1
        above_lbfgs = objective(theirs.coef_, theirs.intercept_, X, y) / best - 1
        same = ((X @ ours.coef.T + ours.intercept).argmax(axis=1) == tight.predict(X)).mean()
        if above > PROMISE or same < 0.999:
            raise SystemExit(
                f"{name}: no agreement ({above:.1e} above the minimum, {same:.2%} equal labels); not timed"
            )
        exact = next((tol for tol in 10.0 ** -np.arange(4, 9) if _above(X, y, tol, best) <= PROMISE), TIGHT)

        work = {
            "minitrans": lambda X=X, y=y: fit_logistic(X, y, C=C),
            "lbfgs": lambda X=X, y=y: lbfgs(X, y, 1e-4),
            "exact": lambda X=X, y=y, exact=exact: lbfgs(X, y, exact),
        }
        times: dict[str, list[float]] = {key: [] for key in work}
        for _ in range(arguments.rounds):
            for key, each in work.items():
                times[key].append(seconds(each))
        ms = {key: 1000 * statistics.median(values) for key, values in times.items()}
        pairs = {key: zip(times["minitrans"], values, strict=True) for key, values in times.items()}
        ratio = {key: statistics.median(other / own for own, other in pair) for key, pair in pairs.items()}
        cells = [name, f"{X.shape[0]} x {X.shape[1]}, {y.max() + 1}", f"{above:.0e}", f"{above_lbfgs:.0e}"]
        cells += [f"{ms['minitrans']:.0f}", f"{ms['lbfgs']:.0f}", f"{ratio['lbfgs']:.1f}"]
        cells += [f"{ms['exact']:.0f} (tol {exact:.0e})", f"{ratio['exact']:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def _above(X: np.ndarray, y: np.ndarray, tol: float, best: float) -> float:
    model = lbfgs(X, y, tol)
    return objective(model.coef_, model.intercept_, X, y) / best - 1


if __name__ == "__main__":
    main()
