"""Finding the policies: time against turn, accuracy and retrieval, for each layer and turn; two points are named.

What decides stands on training halves and held-out prose: no test split is seen.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans import PruningPolicy, SentenceEncoder, __version__
from minitrans.adaptation import fitting
from minitrans.adaptation.costs import KINDS, count_work
from minitrans.adaptation.fitting import calibrated, fit, token_moments
from minitrans.adaptation.trials import Trial
from minitrans.data.searches import SearchTask, half_search, headline_search, intent_search
from minitrans.data.tasks import Task
from minitrans.evaluation.fidelity import nearest_length, turns
from minitrans.evaluation.measurement import interleaved, ratios
from minitrans.evaluation.retrieval import evaluate_search
from minitrans.sentences.batches import by_length
from minitrans.sentences.call import measuring
from study.settings import EVALUATION, LONG, ROOT, cache, encoder, journal, save, task, without_test
from study.texts import fit_texts

LAYERS, TURNS = (0, 1), (9.0, 11.0, 13.0, 16.0, 19.0)
CAP, MIN_TOKENS = 0.7, 6
SHOTS, SEEDS, TEST_TEXTS = (10,), range(8), 1500
ROUNDS = 9  # of timing
TIE = 0.01  # works that differ by less are about equal


@dataclass(frozen=True)
class Allowed:
    """What a policy may cost on the training halves.

    Attributes:
        accuracy: points at 10 shots, mean over the sets.
        mrr: points of MRR@10, mean over the searches, however pruned and unpruned are mixed.
        cosine: the least mean cosine to the unpruned embedding, at 16, 64 and 256 tokens.
    """

    accuracy: float
    mrr: float
    cosine: float


ALLOWED = {"balanced": Allowed(0.4, 0.5, 0.96), "fast": Allowed(1.2, 1.5, 0.92)}
WEIGHED = (16, 64, 256)  # tokens


def policies() -> None:
    """Fit, measure every layer and turn, and write the two policies that travel along."""
    model = encoder("int8")
    learn, held_out, sources = fit_texts()
    candidates = {}
    for layer in LAYERS:
        fitted = _fitted(model, layer, learn, held_out, sources)
        candidates |= {(layer, turn): replace(fitted, max_turn=turn) for turn in TURNS}
    rows = _measured(model, candidates, held_out)
    chosen = {}
    for name, allowed in ALLOWED.items():
        best = choice(rows, allowed)
        chosen[name] = {"layer": best["layer"], "turn": best["turn"], "meets": overrun(best, allowed) <= 1}
        provenance = {
            "made_by": f"minitrans {__version__}, python -m study run policies",
            "model": {"name": model.name_or_path, **model.identity.to_dict()},
            "fitted_on": sources,
            "chosen_on": [*(task.name for task in _searches()), *(f"{each} (valid)" for each in EVALUATION)],
            "allowed": asdict(allowed),
            "found": best,
        }
        policy = replace(candidates[best["layer"], best["turn"]], provenance=provenance)
        policy.save(ROOT / "weights" / "policies" / f"{name}.json")
    save(
        "policies", {"rows": rows, "chosen": chosen, "allowed": {name: asdict(each) for name, each in ALLOWED.items()}}
    )


def _fitted(
    model: SentenceEncoder, layer: int, learn: Sequence[str], held_out: Sequence[str], sources: Mapping[str, str]
) -> PruningPolicy:
    """The policy of a layer, but for its turn; as it was fitted before, if it was, to the same texts."""
    settings = [learn, held_out, MIN_TOKENS, CAP, Path(fitting.__file__).read_text(encoding="utf-8")]
    texts = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    key = {"sources": dict(sources), "fit": texts, "model": model.identity.sha256}
    place = cache() / f"policy-{layer}.json"
    if place.is_file() and (kept := PruningPolicy.load(place)).provenance == key:
        return kept
    moments = token_moments(model, learn, layer)
    bare = PruningPolicy(
        min_tokens=MIN_TOKENS,
        quantile=CAP,
        layer=layer,
        score="learned",
        reduce="restore",
        fitted=fit(model.fingerprint, {layer: moments}),
        provenance=key,
    )
    found = replace(bare, fitted=calibrated(model, held_out, bare))
    found.save(place)
    return found


def mean_by_length(values: NDArray[np.float64], lengths: NDArray[np.int64]) -> dict[str, float]:
    """Length, as a key of JSON -> mean of the values [N] whose texts have it; ``lengths`` is [N] too."""
    return {str(length): float(values[lengths == length].mean()) for length in sorted({*lengths.tolist()})}


def choice(rows: Sequence[Mapping[str, Any]], allowed: Allowed) -> Mapping[str, Any]:
    """Of those that stay within what is allowed the one with the least work, both kinds of texts alike.

    Of works that are about equal the one that costs least; where none stays within, the one that is nearest to that.
    Work is counted, so that the choice is the same on every machine.
    """
    fine = [row for row in rows if overrun(row, allowed) <= 1]
    if fine:
        least = min(sum(row["work"].values()) for row in fine)
        fine = [row for row in fine if sum(row["work"].values()) <= least * (1 + TIE)]
    return min(fine or rows, key=lambda row: overrun(row, allowed))


def overrun(row: Mapping[str, Any], allowed: Allowed) -> float:
    """What a policy costs as a share of what is allowed, in the worst respect: up to 1 it stays within."""
    turned = max(1 - row["cosine"][str(length)] for length in WEIGHED)
    return max(row["accuracy"] / allowed.accuracy, row["mrr"] / allowed.mrr, turned / (1 - allowed.cosine))


def _searches() -> list[SearchTask]:
    long = task(LONG).splits["train"].texts
    banking = task("banking77").splits["train"]
    every_third = {
        split: type(banking)(
            [text for i, text in enumerate(banking.texts) if (i % 3 == 0) == (split == "test")],
            [label for i, label in enumerate(banking.labels) if (i % 3 == 0) == (split == "test")],
        )
        for split in ("train", "test")
    }
    # The headlines and the halves are of different articles, each up to 256 tokens.
    return [
        headline_search(f"{LONG} (train), headlines", [_cut(text, 190) for text in long[:500]]),
        half_search(f"{LONG} (train), halves", [_cut(text, 340) for text in long[500:800]]),
        intent_search(Task("banking77 (train)", every_third, {}, "banking77")),
    ]


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _work(model: SentenceEncoder, texts: Sequence[str], policy: PruningPolicy | None) -> float:
    """How many rows go through a layer, over all texts and layers."""
    batches = [batch for _, batch in by_length(model.tokenizer, list(texts))]
    return float(count_work(model, batches, policy)[KINDS.index("layer_rows")])


@measuring()
def _measured(
    model: SentenceEncoder, candidates: Mapping[tuple[int, float], PruningPolicy], held_out: Sequence[str]
) -> list[dict[str, Any]]:
    named = {f"l={layer} turn={turn:g}": policy for (layer, turn), policy in candidates.items()}
    found = evaluate_search(model, _searches(), named, journal("policies"), progress=sys.stderr.isatty())
    trials = [Trial(without_test(each), SHOTS, SEEDS, TEST_TEXTS) for each in EVALUATION]
    plain = [model.encode(trial.texts, pruning=None) for trial in trials]
    unpruned, lengths = model.encode(list(held_out), pruning=None), model.tokenizer.encode(list(held_out)).lengths
    bins = nearest_length([min(length, model.max_seq_length) for length in lengths])
    times = {"short": task("banking77").splits["train"].texts[:600], "long": task(LONG).splits["train"].texts[:16]}
    unpruned_work = {kind: _work(model, texts, None) for kind, texts in times.items()}
    ratio = {
        kind: ratios(
            interleaved(
                {
                    name: partial(model.encode, texts, pruning=policy, batch_size=64)
                    for name, policy in ({"none": None} | named).items()
                },
                ROUNDS,
            ),
            "none",
        )
        for kind, texts in times.items()
    }
    rows = []
    for (name, policy), (layer, turn) in zip(named.items(), candidates, strict=True):
        drops = [
            100 * float((trial.accuracies(whole) - trial.accuracies(model.encode(trial.texts, pruning=policy))).mean())
            for trial, whole in zip(trials, plain, strict=True)
        ]
        moved = turns(unpruned, model.encode(list(held_out), pruning=policy))
        ways = {
            row["pruned"]: -100 * row["mrr_change"]
            for row in found.table()
            if (row["task"], row["pruning"]) == ("(mean)", name)
        }
        rows.append(
            {
                "layer": layer,
                "turn": turn,
                "short": ratio["short"][name],
                "long": ratio["long"][name],
                "work": {kind: _work(model, texts, policy) / unpruned_work[kind] for kind, texts in times.items()},
                "accuracy": float(np.mean(drops)),
                "drops": dict(zip(EVALUATION, drops, strict=True)),
                "mrr": max(ways.values()),
                "ways": ways,
                "turns": mean_by_length(moved, bins),
                "cosine": mean_by_length(np.cos(np.radians(moved)), bins),
                "p95": float(np.quantile(moved, 0.95)),
            }
        )
    return rows
