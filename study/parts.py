"""The parts of the study: each computes one set of results and stores it under study/results."""

from __future__ import annotations

import random
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.machine import describe_machine
from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder
from minitrans.adaptation.recipes import Recipe
from minitrans.adaptation.search import Search, SearchSettings
from minitrans.data.searches import half_search, headline_search, intent_search
from minitrans.data.tasks import Task, draw
from minitrans.encoder.policy import Reduce, Score
from minitrans.evaluation import measurement
from minitrans.evaluation.few_shot import evaluate
from minitrans.evaluation.fidelity import fidelity as fidelity_of
from minitrans.evaluation.fidelity import nearest_length, turns
from minitrans.evaluation.measurement import interleaved, ratios
from minitrans.evaluation.out_of_scope import measure_rejection
from minitrans.evaluation.retrieval import evaluate_search
from minitrans.sentences.call import measuring
from study import curve
from study.settings import (
    ADAPTATION,
    DRAWS,
    EVALUATION,
    FEWER_DRAWS,
    FEWER_SHOTS,
    LONG,
    ONE_BY_ONE,
    PRECISIONS,
    ROUNDS,
    SHOTS,
    encoder,
    journal,
    policies,
    save,
    task,
)

PROGRESS = sys.stderr.isatty()
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5)
KINDS: tuple[tuple[Score, Reduce], ...] = (
    ("attention", "drop"), ("attention_value", "drop"), ("learned", "drop"), ("random", "drop"), ("first", "drop"),
    ("attention", "merge"), ("attention", "restore"), ("learned", "restore"),
)  # fmt: skip
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


def _search(model: SentenceEncoder, tasks: Sequence[Task], seeds: Sequence[int], test_texts: int, name: str) -> Search:
    """A search at 10 shots, with arrays fitted on the texts of the data sets for adaptation."""
    settings = SearchSettings((10,), seeds, test_texts=test_texts)
    return Search(model, tasks, settings, journal(name), PROGRESS, fit_on=[task(each) for each in ADAPTATION])


@patch.object(measurement, "ROUNDS", 1)  # the part `speed` times the policies
def main_results() -> None:
    """The test splits at every number of shots."""
    for precision in PRECISIONS:
        whole = precision == "int8"
        found = evaluate(
            encoder(precision),
            [task(each) for each in EVALUATION],
            SHOTS if whole else FEWER_SHOTS,
            range(DRAWS if whole else FEWER_DRAWS),
            policies(),
            journal(f"main-{precision}"),
            progress=PROGRESS,
        )
        save(f"main-{precision}", {"rows": found.table(), "settings": _settings(found.settings)})


def fidelity() -> None:
    """How far embeddings turn by length, and searches, on texts that decided nothing."""
    long = task(LONG).splits["test"].texts[:300]
    chance = random.Random(0)
    texts = [text for name in EVALUATION for text in chance.sample(task(name).splits["test"].texts, 300)]
    # As many of 12 to 24 words as of 24 to 48, ...
    texts += [" ".join(text.split()[: round(12 * 2 ** chance.uniform(0, 4))]) for text in long]
    searches = [
        headline_search(f"{LONG}, headlines", long),
        half_search(f"{LONG}, halves", long),
        intent_search(task("banking77")),
    ]
    for precision in PRECISIONS:
        model = encoder(precision)
        found = evaluate_search(model, searches, policies(), journal(f"search-{precision}"), progress=PROGRESS)
        save(f"fidelity-{precision}", {"turns": _turns(model, texts), "searches": found.table()})


@measuring()
def _turns(model: SentenceEncoder, texts: list[str]) -> dict[str, dict[str, Any]]:
    """By policy, how far embeddings turn, and the mean cosine by length."""
    lengths = [min(length, model.max_seq_length) for length in model.tokenizer.encode(texts).lengths]
    near, unpruned, found = nearest_length(lengths), model.encode(texts, pruning=None), {}
    for name, policy in policies().items():
        pruned = model.encode(texts, pruning=policy)
        cosines = curve.mean_by_length(np.cos(np.radians(turns(unpruned, pruned))), near)
        found[name] = fidelity_of(unpruned, pruned, lengths).to_dict() | {"cosines": cosines}
    return found


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("C", "label_names")}


def ablation() -> None:
    """Every layer, quantile, score and reduction, at 10 shots on the test splits; arrays from the other data sets."""
    search = _search(encoder("int8"), [task(name) for name in EVALUATION], (0,), 600, "ablation")
    recipes = [
        Recipe(((layer, quantile),), score, reduce)
        for layer in range(search.num_layers)
        for score, reduce in KINDS
        for quantile in QUANTILES
    ]
    outcomes = search.run(recipes, mean_drop=1000.0)
    rows = [
        {
            "layer": each.recipe.layer,
            "quantile": each.recipe.stages[0][1],
            "score": each.recipe.score,
            "reduce": each.recipe.reduce,
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
    """The policies on both backends and precisions, on many texts and one by one."""
    banking = task("banking77").splits["test"].texts
    texts = {"banking77": banking, LONG: task(LONG).splits["test"].texts, ONE_BY_ONE: _of_few_tokens(banking)}
    rows = []

    def measure(
        model: SentenceEncoder, what: str, chosen: Mapping[str, PruningPolicy | None], names: Iterable[str]
    ) -> None:
        for name in names:
            few = texts[name][: _sample(model, name)]
            calls = few if name == ONE_BY_ONE else [few]
            runs: dict[str, Callable[[], object]] = {
                policy_name: partial(_embed, model, calls, policy) for policy_name, policy in chosen.items()
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
    save("speed", rows)


def _embed(model: SentenceEncoder, calls: Iterable[str | list[str]], policy: PruningPolicy | None) -> None:
    for call in calls:
        model.encode(call, pruning=policy, batch_size=64)


def _of_few_tokens(texts: Sequence[str]) -> list[str]:
    """Texts of 5 to 15 tokens, as many of each length as there are of the rarest."""
    by_length: dict[int, list[str]] = {}
    for text, length in zip(texts, encoder("int8").tokenizer.encode(list(texts)).lengths, strict=True):
        by_length.setdefault(length, []).append(text)
    columns = [by_length.get(length, []) for length in range(5, 16)]
    return [text for row in zip(*filter(None, columns), strict=False) for text in row]


def _sample(model: SentenceEncoder, name: str) -> int:
    whole, least = {"banking77": (600, 1), LONG: (24, 1), ONE_BY_ONE: (66, 11)}[name]  # 11: one of each length
    slow = 1 if model.precision == "int8" else 3
    return max(least, whole // (slow * (6 if model.backend == "reference" else 1)))


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
    "policies": curve.policies,
    "main": main_results,
    "fidelity": fidelity,
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
