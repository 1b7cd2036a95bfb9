"""The parts of the study: each computes one set of results and stores it under study/results."""

from __future__ import annotations

import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.models import float32_folder, random_model
from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder
from minitrans.adaptation.adapt import Adaptation, adapt
from minitrans.adaptation.costs import KINDS
from minitrans.adaptation.recipes import Recipe
from minitrans.adaptation.report import save_picture, timing_table
from minitrans.adaptation.search import Search, SearchSettings
from minitrans.data.tasks import Task, draw
from minitrans.encoder.fitted import Fitted
from minitrans.evaluation import measurement
from minitrans.evaluation.few_shot import evaluate
from minitrans.evaluation.measurement import interleaved, ratios
from minitrans.evaluation.out_of_scope import measure_rejection
from minitrans.sentences.call import measuring
from study.settings import (
    ADAPTATION,
    DRAWS,
    EVALUATION,
    FEWER_DRAWS,
    FEWER_SHOTS,
    LIMITS,
    LONG,
    LONG_POLICY,
    PICTURES,
    PRECISIONS,
    ROOT,
    ROUNDS,
    SHOTS,
    encoder,
    journal,
    policies,
    save,
    task,
    without_test,
)

LAYER_ROWS = KINDS.index("layer_rows")
PROGRESS = sys.stderr.isatty()
PROTECTED = (("attention", "drop"), ("learned", "restore"))  # tried with specials protected too
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5)
STOP_WORDS = frozenset(
    """
    a an the i me my we our you your he she it its they them this that these those am is are was were be been being
    have has had do does did will would can could shall should may might must and or but if of at by for with about
    to from in on up out as so than then there here when where why how what which who whom please just some any
    """.split()  # noqa: SIM905
)
NEGATIONS = frozenset(
    """
    no not never none nothing nobody neither nor cannot without dont don didn doesn isn wasn aren couldn wouldn
    shouldn won haven hasn hadn t
    """.split()  # noqa: SIM905
)


def machine() -> None:
    """The machine that runs the study."""
    save("machine", describe_machine())


def adaptation() -> None:
    """Search for the policies: on other data sets, and on the training and validation splits of the evaluation's."""
    few = [
        Recipe(((layer, quantile),), score, reduce, min_tokens=least)
        for score, reduce in (("attention", "drop"), ("learned", "restore"))
        for layer in range(4)
        for quantile in (0.3, 0.4, 0.5, 0.6, 0.7)
        for least in (4, 6)
    ]
    variants = {
        "transfer": ([task(name) for name in ADAPTATION], DRAWS, None),
        "in-domain": ([without_test(name) for name in EVALUATION], 2, few),
    }
    for variant, (tasks, draws, recipes) in variants.items():
        for name, limits in LIMITS.items():
            found = adapt(
                encoder("int8"),
                tasks,
                limits,
                SearchSettings(seeds=range(draws)),
                recipes=recipes,
                journal=journal(f"adaptation-{variant}"),
                progress=PROGRESS,
            )
            picture = f"study-{variant}-{name}.svg"
            save_picture(found, PICTURES / picture)
            save(f"adaptation-{variant}-{name}", _described(found, picture))
            if found.policy is not None:
                file = f"{name}.json" if variant == "transfer" else f"{name}-intents.json"
                found.policy.save(ROOT / "weights" / "policies" / file)


def _search(model: SentenceEncoder, tasks: Sequence[Task], seeds: Sequence[int], test_texts: int, name: str) -> Search:
    """A search at 10 shots, with arrays fitted on the texts of the data sets for adaptation."""
    settings = SearchSettings((10,), seeds, test_texts=test_texts)
    return Search(model, tasks, settings, journal(name), PROGRESS, fit_on=[task(each) for each in ADAPTATION])


def long_inputs() -> None:
    """A policy for long texts: the strongest that loses nothing on held-out training texts; arrays from short texts."""
    model, data = encoder("int8"), task(LONG)
    held_out = Task(f"{LONG} (train)", {"all": data.splits["train"]}, {}, data.source)
    search = _search(model, [held_out], range(FEWER_DRAWS), 300, "long")
    recipes = [
        Recipe(((layer, quantile),), "learned", "restore") for layer in (0, 1) for quantile in (0.5, 0.6, 0.7, 0.8)
    ]
    unpruned = search.unpruned_work[LAYER_ROWS]
    outcomes = search.run(recipes, mean_drop=1000.0)
    lossless = [each for each in outcomes if each.mean_drop <= 0] or [min(outcomes, key=lambda each: each.mean_drop)]
    chosen = min(lossless, key=lambda each: each.work[LAYER_ROWS])
    texts = data.splits["train"].texts[:48]
    policy = search.policy(chosen.recipe)
    runs = {name: partial(model.encode, texts, pruning=each) for name, each in (("none", None), ("long", policy))}
    provenance = {
        "made_by": "python -m study run long",
        "model": {"name": model.name_or_path, **model.identity.to_dict()},
        "tasks": {held_out.name: held_out.digest},
        "fitted_on": {name: task(name).digest for name in ADAPTATION},
        "limits": {"mean_drop": 0.0},
        "mean_drop": round(chosen.mean_drop, 3),
        "time_ratio": round(ratios(interleaved(runs, 3), "none")["long"], 3),
    }
    search.policy(chosen.recipe, provenance).save(ROOT / "weights" / "policies" / f"{LONG_POLICY}.json")
    rows = [
        {"policy": str(each.recipe), "mean_drop": each.mean_drop, "rows": float(each.work[LAYER_ROWS] / unpruned)}
        for each in outcomes
    ]
    save("long", {"rows": rows, "chosen": str(chosen.recipe)})


def _described(found: Adaptation, picture: str) -> dict[str, Any]:
    mean, worst = found.chosen.bounds(found.limits.confidence)
    return {
        "chosen": str(found.chosen.recipe),
        "meets": found.policy is not None,
        "mean_drop": found.chosen.mean_drop,
        "bounds": [mean, worst],
        "tried": len(found.outcomes),
        "limits": asdict(found.limits),
        "timings": [asdict(each) for each in found.timings],
        "table": timing_table(found, "markdown"),
        "cost_model_error": found.cost_model.error,
        "baseline": dict(found.baseline),
        "picture": picture,
        "provenance": None if found.policy is None else dict(found.policy.provenance),
    }


def main_results() -> None:
    """The test splits at every number of shots, and the long inputs."""
    measurement.ROUNDS = 1  # the part `speed` times the policies
    for precision in PRECISIONS:
        model = encoder(precision)
        for name, tasks in (("intents", EVALUATION), ("long", (LONG,))):
            whole = (precision, name) == ("int8", "intents")
            found = evaluate(
                model,
                [task(each) for each in tasks],
                SHOTS if whole else FEWER_SHOTS,
                range(DRAWS if whole else FEWER_DRAWS),
                policies(with_long=name == "long"),
                journal(f"main-{precision}"),
                progress=PROGRESS,
            )
            save(f"main-{name}-{precision}", {"rows": found.table(), "settings": _settings(found.settings)})


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("C", "label_names")}


def ablation() -> None:
    """Every layer, quantile, score and reduction, at 10 shots on the test splits; arrays from the other data sets."""
    kinds = [
        ("attention", "drop"), ("attention_value", "drop"), ("learned", "drop"), ("random", "drop"), ("first", "drop"),
        ("attention", "merge"), ("attention", "restore"), ("learned", "restore"),
    ]  # fmt: skip
    search = _search(encoder("int8"), [task(name) for name in EVALUATION], (0,), 600, "ablation")
    recipes = [
        Recipe(((layer, quantile),), score, reduce, protect_special=protect)
        for layer in range(search.num_layers)
        for score, reduce in kinds
        for quantile in QUANTILES
        for protect in ((False, True) if (score, reduce) in PROTECTED else (False,))
    ]
    outcomes = search.run(recipes, mean_drop=1000.0)
    rows = [
        {
            "layer": each.recipe.layer,
            "quantile": each.recipe.stages[0][1],
            "score": each.recipe.score,
            "reduce": each.recipe.reduce,
            "protect": each.recipe.protect_special,
            "mean_drop": each.mean_drop,
            "drops": {name: float(values.mean()) for name, values in each.drops.items()},
            "tokens_kept": each.tokens_kept,
        }
        for each in outcomes
    ]
    save("ablation", {"rows": rows, "shots": [10], "draws": 1})


def token_kind(token: str, is_special: bool) -> str:
    """What kind of token this is, for the table of what pruning drops."""
    if is_special:
        return "special"
    if token.startswith("##"):
        return "word piece"
    if token in NEGATIONS:
        return "negation"
    if all(letter in string.punctuation for letter in token):
        return "punctuation"
    if any(letter.isdigit() for letter in token):
        return "number"
    return "stop word" if token in STOP_WORDS else "other word"


def tokens() -> None:
    """Which kinds of tokens go, and how utterances with negations or numbers fare."""
    model = encoder("int8")
    kinds: dict[str, dict[str, list[int]]] = {}
    subsets: dict[str, dict[str, list[float]]] = {}
    for name in EVALUATION:
        data = task(name)
        few = draw(data, 10, 0)
        texts, labels = few.test.texts, np.array(few.test.labels)
        plain = model.pruned_tokens(texts, pruning=None)
        found = [
            {token_kind(token, not 0 < i < len(each.tokens) - 1) for i, token in enumerate(each.tokens)}
            for each in plain
        ]
        groups = {"all": np.ones(len(texts), bool)}
        groups |= {f"with a {kind}": np.array([kind in each for each in found]) for kind in ("negation", "number")}
        for policy_name, policy in ({"none": None} | policies()).items():
            classifier = FewShotClassifier(_Pruned(model, policy)).fit(few.train.texts, few.train.labels)
            right = classifier.predict(texts) == labels
            for group, members in groups.items():
                subsets.setdefault(group, {}).setdefault(policy_name, []).append(float(right[members].mean()))
            if policy is None:
                subsets.setdefault("size", {})[name] = [int(members.sum()) for members in groups.values()]
                continue
            counts = kinds.setdefault(policy_name, {})
            for each in model.pruned_tokens(texts, pruning=policy):
                for i, (token, kept) in enumerate(zip(each.tokens, each.kept, strict=True)):
                    count = counts.setdefault(token_kind(token, not 0 < i < len(each.tokens) - 1), [0, 0])
                    count[0] += 1
                    count[1] += not kept
    save("tokens", {"kinds": kinds, "accuracy": subsets, "tasks": EVALUATION})


class _Pruned:
    """An encoder with a policy of its own."""

    def __init__(self, model: SentenceEncoder, policy: PruningPolicy | None) -> None:
        self.model, self.policy = model, policy

    @measuring()
    def encode(self, texts: list[str]) -> Any:
        """Embeddings under the policy."""
        return self.model.encode(texts, pruning=self.policy)


def speed() -> None:
    """The same policies on both backends and precisions, and on random weights of MiniLM-L12's shape."""
    texts = {"banking77": task("banking77").splits["test"].texts, LONG: task(LONG).splits["test"].texts}
    rows = []

    def measure(
        model: SentenceEncoder, what: str, chosen: Mapping[str, PruningPolicy | None], names: Iterable[str]
    ) -> None:
        for name in names:
            few = texts[name][: _sample(model, name)]
            runs: dict[str, Callable[[], object]] = {
                policy_name: partial(model.encode, few, pruning=policy, batch_size=64)
                for policy_name, policy in chosen.items()
            }
            seconds = interleaved(runs, ROUNDS)
            for policy_name, ratio in ratios(seconds, "none").items():
                rows.append(
                    {
                        "model": what,
                        "backend": model.backend,
                        "precision": model.precision,
                        "texts": name,
                        "policy": policy_name,
                        "time_ratio": ratio,
                        "microseconds_per_text": float(np.median(seconds[policy_name])) / len(few) * 1e6,
                    }
                )

    chosen = {"none": None} | policies()
    for backend in ("compiled", "reference"):
        for precision in PRECISIONS:
            measure(encoder(precision, backend), "all-MiniLM-L6-v2", chosen, texts)
    with tempfile.TemporaryDirectory() as cache:
        folder = random_model(float32_folder(), Path(cache))
        for precision in PRECISIONS:
            model = SentenceEncoder(folder, precision=precision, on_truncation="ignore")
            moved = {name: _moved(each, model) for name, each in chosen.items()}
            measure(model, "random weights, 12 layers", moved, ["banking77"])
    save("speed", rows)


def _moved(policy: PruningPolicy | None, model: SentenceEncoder) -> PruningPolicy | None:
    """The policy for another model of the same width: its arrays do not fit that model, but take as much time."""
    if policy is None or policy.fitted is None:
        return policy
    return replace(policy, fitted=Fitted(model.identity.weights, policy.fitted.scorers, policy.fitted.restore))


def _sample(model: SentenceEncoder, name: str) -> int:
    whole = {"banking77": 1200, LONG: 48}[name]
    slow = 1 if model.precision == "int8" else 3
    return whole // (slow * (6 if model.backend == "reference" else 1))


def out_of_scope() -> None:
    """Rejection on CLINC150 and HINT3, every score."""
    model, rows = encoder("int8"), []
    sets: list[tuple[str, int | None]] = [("clinc150", 5), ("clinc150", 10)]
    sets += [(name, None) for name in ADAPTATION if name.startswith("hint3")]
    for name, shots in sets:
        data = task(name)
        train = data.splits["train"] if shots is None else draw(data, shots, 0).train
        test, beyond = data.splits["test"], data.out_of_scope
        classifier = FewShotClassifier(model).fit(train.texts, train.labels)
        calibrations = {"without": None} | ({} if shots is None else {"with oos": model.encode(beyond["train"])})
        inside, outside = model.encode(test.texts), model.encode(beyond["test"])
        for calibrated, found in measure_rejection(classifier, inside, test.labels, outside, calibrations).items():
            about = {"task": name, "shots": shots or "all", "calibrated": calibrated}
            rows += [{**about, **row} for row in found]
    save("out-of-scope", rows)


PARTS: dict[str, Callable[[], None]] = {
    "machine": machine,
    "adaptation": adaptation,
    "long": long_inputs,
    "main": main_results,
    "tokens": tokens,
    "ablation": ablation,
    "out-of-scope": out_of_scope,
    "speed": speed,
}


def run(names: Iterable[str]) -> None:
    """Run some parts, in their order."""
    wanted = Counter(names) or Counter(PARTS)
    if unknown := set(wanted) - set(PARTS):
        raise SystemExit(f"there is no part {min(unknown)!r}, wanted some of {', '.join(PARTS)}")
    for name, part in PARTS.items():
        if name in wanted:
            print(f"{name} ...", file=sys.stderr, flush=True)
            part()
