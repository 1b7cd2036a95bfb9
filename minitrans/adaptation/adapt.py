"""Offline adaptation: one pruning policy for several tasks and searches, found by trying many (as in arXiv 2408.11799).

The cheapest policy within the limits wins; of about equal ones the simplest. Cost is embedding time: predicted by a
model of this machine for all policies, and measured for the finalists and for what pruning competes with.
"""

from __future__ import annotations

import copy
import operator
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minitrans import __version__
from minitrans.adaptation.costs import CostModel, fit_cost_model
from minitrans.adaptation.recipes import Recipe, front, grid, neighbours, new_ones
from minitrans.adaptation.search import Limits, Outcome, Search, SearchSettings
from minitrans.backends import load_blocks
from minitrans.data.tasks import Task
from minitrans.encoder.policy import RESTORABLE, PruningPolicy
from minitrans.errors import InputError, PolicyError
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.measurement import interleaved, ratios
from minitrans.models.quantization import with_precision
from minitrans.models.weights import load_parameters
from minitrans.sentences.call import measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder

PARENTS = 6  # policies of the grid whose neighbours are tried
FINALISTS = 4  # policies within the limits that are timed
TIE = 0.01  # relative difference in time that is none
TIMED_TEXTS = 2000
BATCH = 64  # texts, while timing

TIME_AND_DROP = operator.attrgetter("cost", "mean_drop")


@dataclass(frozen=True)
class TimedRun:
    """How fast a finalist is, or what pruning competes with, and what it loses.

    Attributes:
        name: the policy's fields, or the competitor's description.
        kind: "none"; "policy", a finalist; "paper", averaged attention with dropping, at about the same time;
            "layers" and "precision", the competitors, with the best policy too.
        time_ratio: to no pruning with the same model; interleaved, median.
        mean_drop: in points, of MRR@10 where there are no tasks; those of policies are cross-fitted, see search.py.
    """

    name: str
    kind: Literal["none", "policy", "paper", "layers", "precision"]
    time_ratio: float
    mean_drop: float


@dataclass(frozen=True)
class Adaptation:
    """What a search found.

    Attributes:
        policy: the one to use, with arrays fitted on all tasks; None where none meets the limits.
        chosen: its outcome; without one, the outcome that came nearest.
        outcomes: everything that was tried.
        timings: the finalists and the competitors.
        baseline: task -> mean accuracy without pruning, in [0, 1].
        search_baseline: search -> MRR@10 without pruning, in [0, 1].
        limits, cost_model, settings: what led there.
    """

    policy: PruningPolicy | None
    chosen: Outcome
    outcomes: list[Outcome]
    timings: list[TimedRun]
    baseline: Mapping[str, float]
    limits: Limits
    cost_model: CostModel
    settings: Mapping[str, Any] = field(default_factory=dict)
    search_baseline: Mapping[str, float] = field(default_factory=dict)

    def pareto(self) -> list[Outcome]:
        """Those that no other beats in both predicted time and mean drop, the cheapest first."""
        return front(self.outcomes, TIME_AND_DROP)

    def save_policy(self, path: str | os.PathLike[str]) -> None:
        """Write the policy.

        Raises:
            PolicyError: none stays within the limits; the message says what comes nearest.
        """
        if self.policy is None:
            limits, nearest = self.limits, self.chosen
            mean, worst = nearest.bounds(limits.confidence)
            rows: list[tuple[str, str]] = []
            if nearest.drops:
                rows += [(f"{limits.mean_drop:g} points on average", f"{mean:.2f}")]
                rows += [(f"{limits.task_drop:g} on the worst task", f"{worst:.2f}")]
            if nearest.search_drop is not None:
                rows.append((f"{limits.of_searches:g} points of MRR@10", f"{nearest.search_drop:.2f}"))
            if limits.turn is not None:
                rows.append((f"{limits.turn:g} degrees", f"{nearest.turn:.1f}"))
            wanted, reached = (" and ".join(words) for words in zip(*rows, strict=True))
            raise PolicyError(
                f"none of {len(self.outcomes)} policies stays within {wanted}; the nearest is {nearest.recipe} with "
                f"{reached}; allow more, or use more draws or larger tasks, which makes the bounds narrower"
            )
        self.policy.save(Path(path))


def adapt(
    encoder: SentenceEncoder,
    tasks: Sequence[Task],
    limits: Limits | None = None,
    settings: SearchSettings | None = None,
    *,
    recipes: Sequence[Recipe] | None = None,
    journal: Journal | None = None,
    progress: bool = False,
) -> Adaptation:
    """Search for the cheapest pruning policy that several tasks and searches can bear.

    Everything but the times is the same in every run with the same arguments; with a journal the times are too.

    Args:
        encoder: its own pruning is not used.
        tasks: with different names, none if the settings have searches. Labels serve the accuracies only; fitted arrays
            see unlabelled training texts.
        limits: what a policy may cost; None takes the defaults.
        settings: what policies are tried on, such as searches; None takes the defaults.
        recipes: what to try in place of the grid and its neighbours.
        journal: None keeps nothing; else an interrupted search goes on where it was.
        progress: show bars on standard error.

    Raises:
        InputError: neither tasks nor searches, names that come twice, recipes that the model cannot run or whose turn
            cannot be foreseen, all of them, or as `minitrans.data.tasks.draw` does.
    """
    tries = _grid(encoder) if recipes is None else _checked(recipes, encoder)
    search = Search(encoder, tasks, settings, journal, progress)
    limits = limits or Limits()
    bar = limits.mean_drop if search.trials else limits.of_searches
    tried = search.run(tries, bar)
    if not tried:
        raise InputError(
            f"max_turn is {tries[0].max_turn} in {tries[0]}, and how far texts turn cannot be foreseen; wanted recipes "
            "without max_turn, or more texts"
        )
    model = _cost_model(search, tried)
    if recipes is None:
        parents = _promising(_priced(search, tried, model), limits)
        more = [other for each in parents for other in neighbours(each.recipe, search.num_layers)]
        tried += search.run(new_ones(more, [each.recipe for each in tried]), bar)
    return _decided(search, _priced(search, tried, model), limits, model)


def _grid(encoder: SentenceEncoder) -> list[Recipe]:
    """What the model can run of the grid, with the special tokens protected where it pools one of them."""
    protect = bool({*encoder.pooling.modes} & {"cls", "lasttoken"})
    recipes = [replace(each, protect_special=protect) for each in grid(encoder.blocks.num_layers)]
    return [each for each in recipes if _runs(each, encoder)]


def _checked(recipes: Sequence[Recipe], encoder: SentenceEncoder) -> list[Recipe]:
    if not recipes:
        raise InputError("recipes is empty, wanted at least one, or None for the grid")
    for each in recipes:
        if not _runs(each, encoder):
            raise InputError(
                f"the policy {each} cannot run on this model, which has {encoder.blocks.num_layers} layers and "
                f"{'+'.join(encoder.pooling.modes)} pooling; leave it out"
            )
    return new_ones(recipes, ())


def _runs(recipe: Recipe, encoder: SentenceEncoder) -> bool:
    """Whether the model can run such a policy: as `PruningPolicy.check_fits`, which needs the fitted arrays."""
    modes = {*encoder.pooling.modes}
    return (
        max(layer for layer, _ in recipe.stages) < encoder.blocks.num_layers
        and (recipe.protect_special or not modes & {"cls", "lasttoken"})
        and (recipe.reduce != "restore" or modes <= {*RESTORABLE})
    )


def _decided(search: Search, outcomes: list[Outcome], limits: Limits, model: CostModel) -> Adaptation:
    """Time the cheapest policies within the limits, and what they compete with; take the best of them."""
    finalists = _cheapest(outcomes, limits)[:FINALISTS]
    nearest = min(outcomes, key=lambda each: (each.excess(limits), each.cost))
    best = finalists[0] if finalists else nearest
    papers = [each for each in outcomes if (each.recipe.score, each.recipe.reduce) == ("attention", "drop")]
    papers = [each for each in papers if each not in finalists]
    paper = min(papers, key=lambda each: (abs(each.cost - best.cost), str(each.recipe)), default=None)
    timed = {str(each.recipe): each for each in [*finalists, *([paper] if paper else [])]}
    seconds, drops = _finals(search, timed, best.recipe)
    ratio = ratios(seconds, "none")
    timings = [TimedRun("none", "none", 1.0, 0.0)]
    for name, each in timed.items():
        timings.append(TimedRun(name, "paper" if each is paper else "policy", ratio[name], each.mean_drop))
    for name, drop in sorted(drops.items()):  # a journal keeps no order
        timings.append(TimedRun(name, "precision" if "precision" in name else "layers", ratio[name], drop))
    found = partial(
        Adaptation,
        outcomes=outcomes,
        timings=timings,
        baseline={trial.name: float(search.base(trial).mean()) for trial in search.trials},
        search_baseline={each.name: search.base_mrr(each) for each in search.searches},
        limits=limits,
        cost_model=model,
        settings=search.key | {"unlabelled": {name: len(texts) for name, texts in search.unlabelled.items()}},
    )
    if not finalists:
        return found(policy=None, chosen=nearest)
    fastest = min(ratio[str(each.recipe)] for each in finalists)
    about = [each for each in finalists if ratio[str(each.recipe)] <= fastest * (1 + TIE)]
    chosen = min(about, key=lambda each: (each.recipe.simplicity, ratio[str(each.recipe)]))
    policy = search.policy(chosen.recipe, _provenance(search, chosen, limits, ratio[str(chosen.recipe)]))
    return found(policy=policy, chosen=chosen)


# Time


def _sample(search: Search) -> list[str]:
    """Texts to time: test texts of every task, and texts of every search."""
    each = TIMED_TEXTS // len(search.measured)
    return [text for trial in search.measured for text in trial.timed_texts[:each]]


def _encoding(encoder: SentenceEncoder, texts: list[str], policy: PruningPolicy | None) -> Callable[[], object]:
    return partial(encoder.encode, texts, pruning=policy, batch_size=BATCH, show_progress_bar=False)


@measuring()
def _cost_model(search: Search, outcomes: Sequence[Outcome]) -> CostModel:
    """Time some policies, on short and on long texts, and fit the prices of their work."""
    timed = _spread([each.recipe for each in outcomes])
    key = search.key | {"kind": "cost model", "threads": search.encoder.threads, "policies": list(map(str, timed))}
    value = search.journal.get(key)
    if value is None:
        texts = sorted(_sample(search), key=len)
        policies = [None, *(search.policy(recipe) for recipe in timed)]
        work, seconds = [], []
        for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
            took = interleaved({str(i): _encoding(search.encoder, half, each) for i, each in enumerate(policies)}, 3)
            work += [search.count(half, each) for each in policies]
            seconds += [statistics.median(each) for each in took.values()]
        model = fit_cost_model(np.array(work), np.array(seconds))
        value = {"prices": list(model.prices), "error": model.error}
        search.journal.put(key, value)
    return CostModel(tuple(value["prices"]), value["error"])


@measuring()
def _finals(
    search: Search, timed: Mapping[str, Outcome], best: Recipe
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Interleaved seconds of the finalists and of the competitors, and the competitors' mean drops."""
    key = search.key | {
        "kind": "finals",
        "policies": sorted(timed),
        "best": str(best),
        "threads": search.encoder.threads,
    }
    value = search.journal.get(key)
    if value is None:
        encoder, texts = search.encoder, _sample(search)
        competitors = _competitors(encoder, search.policy(best))
        runs = {"none": _encoding(encoder, texts, None)}
        runs |= {name: _encoding(encoder, texts, search.policy(each.recipe)) for name, each in timed.items()}
        runs |= {name: _encoding(other, texts, policy) for name, (other, policy) in competitors.items()}
        drops = {name: search.drop(other, policy) for name, (other, policy) in competitors.items()}
        value = {"seconds": interleaved(runs), "drops": drops}
        search.journal.put(key, value)
    return value["seconds"], value["drops"]


def _competitors(
    encoder: SentenceEncoder, policy: PruningPolicy
) -> dict[str, tuple[SentenceEncoder, PruningPolicy | None]]:
    """What pruning competes with: fewer layers, and the other precision, each without and with the policy."""
    found: dict[str, tuple[SentenceEncoder, PruningPolicy | None]] = {}
    layers = encoder.config.num_hidden_layers
    parameters = with_precision(load_parameters(encoder.folder), encoder.precision)
    choices: list[tuple[PruningPolicy | None, str]] = [(None, ""), (policy, " + policy")]
    for fewer in sorted({layers - 1, layers - 2, layers // 2} & {*range(1, layers)}, reverse=True):
        shallow = copy.copy(encoder)
        shallow.config = replace(encoder.config, num_hidden_layers=fewer)
        less = replace(parameters, config=shallow.config, layers=parameters.layers[:fewer])
        shallow.blocks = load_blocks(encoder.backend, less)
        for each, suffix in choices:
            if each is None or max(each.plan) < fewer:
                found[f"{fewer} layers{suffix}"] = shallow, each
    other = "float32" if encoder.precision == "int8" else "int8"
    requantized = SentenceEncoder(
        encoder.folder,
        precision=other,
        backend=encoder.backend,
        threads=encoder.threads,
        truncate_dim=encoder.truncate_dim,
        prompts=encoder.prompts,
        default_prompt_name=encoder.default_prompt_name,
        on_truncation="ignore",
    )
    requantized.max_seq_length = encoder.max_seq_length
    return found | {f"precision {other}{suffix}": (requantized, each) for each, suffix in choices}


# Choice


def _priced(search: Search, outcomes: Sequence[Outcome], model: CostModel) -> list[Outcome]:
    unpruned = model.seconds(search.unpruned_work)
    return [replace(each, cost=model.seconds(each.work) / unpruned) for each in outcomes]


def _cheapest(outcomes: Sequence[Outcome], limits: Limits) -> list[Outcome]:
    """Those within the limits, the cheapest first; costs that are about equal count as equal, and the simpler wins."""

    def preference(each: Outcome) -> tuple[float, Any, str]:
        return round(each.cost / TIE) * TIE, each.recipe.simplicity, str(each.recipe)

    return sorted((each for each in outcomes if each.meets(limits)), key=preference)


def _promising(outcomes: Sequence[Outcome], limits: Limits) -> list[Outcome]:
    """Whose neighbours to try: the cheapest within the limits, then those of the front that come nearest to them.

    The front is that of time and of whatever limit is hardest to keep: one of turns or of searches, too.
    """
    best = front(outcomes, lambda each: (each.cost, each.excess(limits)))
    near = sorted(best, key=lambda each: abs(each.excess(limits)))
    chosen = {str(each.recipe): each for each in [*_cheapest(outcomes, limits)[: PARENTS // 2], *near]}
    return list(chosen.values())[:PARENTS]


def _spread(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The first and the last policy of each method in the grid: they differ in every kind of work."""
    found: dict[tuple[str, str], list[Recipe]] = {}
    for recipe in recipes:
        found.setdefault((recipe.score, recipe.reduce), []).append(recipe)
    return list(dict.fromkeys(recipe for group in found.values() for recipe in (group[0], group[-1])))


def _provenance(search: Search, chosen: Outcome, limits: Limits, ratio: float) -> dict[str, Any]:
    encoder = search.encoder
    mean, worst = chosen.bounds(limits.confidence)
    lengths = np.concatenate([trial.lengths(encoder) for trial in search.measured])
    found = {
        "made_by": f"minitrans {__version__} adapt",
        "model": {"name": encoder.name_or_path, **encoder.identity.to_dict()},
        "backend": encoder.backend,
        **{name: search.key[name] for name in ("tasks", "searches", "shots", "seeds")},
        "limits": asdict(limits) | {"search_drop": limits.of_searches if search.searches else None},
        "lengths": [int(lengths.min()), int(lengths.max())],  # tokens of the texts that it was tried on
        "turns": {str(length): round(turn, 2) for length, turn in chosen.turns.items()},
        "tokens_kept": round(chosen.tokens_kept, 4),
        "time_ratio": round(ratio, 3),
    }
    if search.trials:
        found |= {
            "mean_drop": round(chosen.mean_drop, 3),
            "mean_drop_bound": round(mean, 3),
            "worst_task_drop_bound": round(worst, 3),
        }
    if search.searches:
        found["search_drops"] = {
            name: {way: round(points, 3) for way, points in drops.items()}
            for name, drops in chosen.search_drops.items()
        }
    return found
