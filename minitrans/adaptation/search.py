"""Trying pruning policies on tasks: what each does to accuracies, searches and embeddings, and the work that it leaves.

What policies share is computed once: the hidden states up to the pruning layer, per layer and task. A policy with
fitted arrays is tried on each task with arrays fitted to the texts of the other tasks: it is to do well on tasks that
it never saw.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import compress
from operator import add
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans import __version__
from minitrans.adaptation.costs import WorkCounter, count_work
from minitrans.adaptation.fitting import (
    SHORTEST,
    Moments,
    UnforeseenTurnError,
    calibrated,
    can_measure,
    fit,
    token_moments,
)
from minitrans.adaptation.recipes import Recipe, is_milder
from minitrans.adaptation.trials import SearchTrial, Trial, prompted, unlabelled_texts
from minitrans.columns import str_items
from minitrans.data.searches import SearchTask
from minitrans.data.tasks import Task
from minitrans.encoder.blocks import Blocks
from minitrans.encoder.fitted import Fitted
from minitrans.encoder.forward import Start, forward, start_behind
from minitrans.encoder.packing import PackedBatch
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.pooling import pool_encoded
from minitrans.errors import InputError
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.metrics import student_t
from minitrans.evaluation.retrieval import SIDES
from minitrans.models.parameters import Float32, Linear
from minitrans.sentences.batches import Work, by_length, over_batches
from minitrans.sentences.call import Progress, measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder

T = TypeVar("T")

HELD_OUT, ENOUGH = 5, 50  # every fifth text of so many foresees turns, and takes no part in the fit
FEWER_SHARES = (0.2, 0.4, 0.6)  # by which these are pruned; those of the fit foresee turns that differ by up to 4 %
HOPELESS = 8.0  # points beyond the limit at which stronger pruning of the same kind is not tried any more
ENOUGH_TURNS = 10  # texts of a length, for their turn to count
# Points that a degree weighs beside points of accuracy and of MRR: on long texts a turn of 20 degrees costs a search
# about one point of MRR, one of 30 degrees six.
DEGREE = 0.2


@dataclass(frozen=True)
class Limits:
    """What a policy may cost: in accuracy and in MRR@10, in points (hundredths), and in degrees.

    Args:
        mean_drop: on average over tasks, shots and draws.
        task_drop: on the worst task, on average over shots and draws.
        confidence: how sure both must be, over the draws, in [0.5, 1); 0.5 takes the means as they are.
        turn: mean angle between pruned and unpruned embeddings at the length where it is largest, in degrees. None is
            no limit: a classifier that is fitted on pruned embeddings forgives what turns all of them alike.
        search_drop: of MRR@10, on average over the searches, whichever side is pruned; None takes ``mean_drop``.
    """

    mean_drop: float = 1.0
    task_drop: float = 2.0
    confidence: float = 0.9
    turn: float | None = None
    search_drop: float | None = None

    def __post_init__(self) -> None:
        for name in ("mean_drop", "task_drop", "turn", "search_drop"):
            value, unit = getattr(self, name), "degrees" if name == "turn" else "points"
            if value is None and name in ("turn", "search_drop"):
                continue
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value!r}, wanted a number of {unit} of at least 0, as 1.0")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"confidence is {self.confidence!r}, wanted a number in [0.5, 1), as 0.9")

    @property
    def of_searches(self) -> float:
        """The limit on the drop of MRR@10, in points."""
        return self.mean_drop if self.search_drop is None else self.search_drop


@dataclass(frozen=True)
class SearchSettings:
    """What policies are tried on.

    Args:
        shots: examples per class.
        seeds: of the draws.
        texts: more unlabelled texts to fit on, such as one's own logs; InputTypeError if they are no column of str.
        fit_texts: the most texts that the fit takes from all tasks and searches together.
        test_texts: the most test texts per task, and the most queries and documents per search, but for documents that
            answer them.
        searches: with names that no task has.
    """

    shots: Sequence[int] = (5, 10)
    seeds: Sequence[int] = range(5)
    texts: Sequence[str] = ()
    fit_texts: int = 2000
    test_texts: int = 1000
    searches: Sequence[SearchTask] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", str_items(self.texts, "texts"))


@dataclass(frozen=True)
class Outcome:
    """What one policy does to accuracies, embeddings and searches, and the work that it leaves.

    Attributes:
        recipe: the policy without its arrays.
        drops: task -> accuracy without pruning less that with it, in points, [shots, draws].
        tokens_kept: share of all tokens that reach the end.
        work: [kinds] per text, see costs.KINDS; mean over tasks and searches.
        cost: predicted time, as a share of that without pruning.
        turns: length, of fidelity.LENGTHS -> mean turn of the texts of that length, in degrees. Lengths with fewer than
            10 texts are left out, unless all have fewer.
        search_drops: search -> what is pruned, of retrieval.SIDES -> MRR@10 without pruning less that with it, in
            points.
    """

    recipe: Recipe
    drops: Mapping[str, NDArray[np.float64]]
    tokens_kept: float
    work: NDArray[np.float64]
    cost: float = math.nan
    turns: Mapping[int, float] = field(default_factory=dict)
    search_drops: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def mean_drop(self) -> float:
        """Mean over the tasks, in points of accuracy; without tasks ``search_drop`` stands in its place."""
        if not self.drops:
            return self.search_drop or 0.0
        return float(np.mean([each.mean() for each in self.drops.values()]))

    @property
    def turn(self) -> float:
        """The mean turn at the length where it is largest, in degrees."""
        return max(self.turns.values(), default=0.0)

    @property
    def search_drop(self) -> float | None:
        """Mean over the searches, in points of MRR@10, of the worst of the ways to prune; None without searches."""
        if not self.search_drops:
            return None
        return max(statistics.fmean(each[way] for each in self.search_drops.values()) for way in SIDES)

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Upper confidence bounds over the draws of the mean drop and of the worst task's; 0 without tasks."""
        if not self.drops:
            return 0.0, 0.0
        means, errors = [], []
        for each in self.drops.values():
            draws = each.mean(axis=0)  # [draws]
            means.append(draws.mean())
            errors.append(draws.std(ddof=1) / math.sqrt(len(draws)) if len(draws) > 1 else 0.0)
        draws = next(iter(self.drops.values())).shape[1]
        t = student_t(2 * confidence - 1, draws - 1) if draws > 1 and confidence > 0.5 else 0.0
        mean_error = math.sqrt(sum(error**2 for error in errors)) / len(errors)
        return float(np.mean(means) + t * mean_error), float(np.max(np.array(means) + t * np.array(errors)))

    def excess(self, limits: Limits) -> float:
        """By how many points the worst of what is limited is beyond its limit; within the limits at most 0.

        Points of MRR@10 weigh as much as points of accuracy, a degree weighs a fifth of one.
        """
        beyond = []
        if self.drops:
            mean, worst = self.bounds(limits.confidence)
            beyond += [mean - limits.mean_drop, worst - limits.task_drop]
        if self.search_drop is not None:
            beyond.append(self.search_drop - limits.of_searches)
        if limits.turn is not None:
            beyond.append(DEGREE * (self.turn - limits.turn))
        return max(beyond)

    def meets(self, limits: Limits) -> bool:
        """Whether the policy stays within the limits."""
        return self.excess(limits) <= 0


def mean_turns(found: Iterable[Iterable[tuple[int, int, float]]]) -> dict[int, float]:
    """Length -> mean turn, of what `Trial.turned` gives of several; of lengths with enough texts, if there are any."""
    texts: dict[int, int] = {}
    total: dict[int, float] = {}
    for length, count, turn in (row for rows in found for row in rows):
        texts[length] = texts.get(length, 0) + count
        total[length] = total.get(length, 0.0) + count * turn
    enough = [length for length, count in texts.items() if count >= ENOUGH_TURNS]
    return {length: total[length] / texts[length] for length in enough or texts}


class Search:
    """Tries policies on tasks and searches. Keeps what the tries share: texts and draws, the fits, the journal."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        tasks: Sequence[Task],
        settings: SearchSettings | None = None,
        journal: Journal | None = None,
        progress: bool = False,
        fit_on: Sequence[Task] | None = None,
    ) -> None:
        settings = settings or SearchSettings()
        names = [*(task.name for task in tasks), *(task.name for task in settings.searches)]
        if not names or len({*names}) < len(names):
            raise InputError(f"the tasks are {', '.join(names) or 'none'}, wanted at least one, each with its own name")
        self.encoder, self.progress = encoder, progress
        self.journal = Journal(None) if journal is None else journal  # an empty one is false
        self.num_layers = encoder.blocks.num_layers
        self.trials = [Trial(task, settings.shots, settings.seeds, settings.test_texts) for task in tasks]
        self.searches = [SearchTrial(task, settings.test_texts) for task in settings.searches]
        pools = (tasks, settings.searches) if fit_on is None else (fit_on, ())
        found = unlabelled_texts(encoder, pools[0], settings.texts, settings.fit_texts, pools[1])
        self.unlabelled, self.held_out = {}, {}
        for name, few in found.items():
            # A task without any text of a fitting length is tried all the same, with arrays from the others.
            kept = list(compress(few, can_measure(encoder, few)))
            if kept:
                enough = len(kept) >= ENOUGH
                self.held_out[name] = kept[::HELD_OUT] if enough else kept
                self.unlabelled[name] = [text for i, text in enumerate(kept) if i % HELD_OUT] if enough else kept
        if not self.unlabelled:
            raise InputError(
                f"no training text of {', '.join(found)} has {SHORTEST} tokens, wanted some to learn scores from; add "
                "longer unlabelled texts"
            )
        self._turns: dict[tuple[Recipe, tuple[str, ...]], Mapping[int, Linear]] = {}
        self._unpruned: dict[str, Float32] = {}
        self._moments: dict[int, dict[str, Moments]] = {}
        self.key = {
            "minitrans": __version__,
            "encoder": encoder.identity.sha256,
            "backend": encoder.backend,
            "tasks": {task.name: task.digest for task in tasks},
            "searches": {task.name: task.digest for task in settings.searches},
            "similarity": encoder.similarity_fn_name,
            "shots": list(settings.shots),
            "seeds": list(settings.seeds),
            "fit_texts": settings.fit_texts,
            "test_texts": settings.test_texts,
            "texts": 0,
        }
        if settings.texts:
            self.key["texts"] = hashlib.sha256(json.dumps(sorted({*settings.texts})).encode()).hexdigest()
        if fit_on is not None:
            self.key["fit_on"] = sorted(task.digest for task in fit_on)

    @property
    def measured(self) -> list[Trial | SearchTrial]:
        """Tasks and searches."""
        return [*self.trials, *self.searches]

    # What a policy does to accuracies, searches and embeddings

    def run(self, recipes: Sequence[Recipe], mean_drop: float) -> list[Outcome]:
        """Try the recipes, layer by layer, so that one layer's states are in memory at a time.

        Left out are recipes whose turn cannot be foreseen, and those of which a milder one is hopeless.

        Args:
            recipes: each once.
            mean_drop: the limit; several points beyond it a policy is hopeless.
        """
        found: dict[Recipe, Outcome] = {}
        with (bar := Progress(len(recipes), self.progress, unit=" policies")):
            for layer in sorted({recipe.layer for recipe in recipes}):
                here = [recipe for recipe in recipes if recipe.layer == layer]
                states: dict[tuple[str, str], list[Start]] = {}
                for recipe in here:
                    bar.update(1)
                    milder = [other for other in found.values() if is_milder(other.recipe, recipe)]
                    if any(other.mean_drop > mean_drop + HOPELESS for other in milder):
                        continue
                    if (outcome := self._outcome(recipe, states)) is not None:
                        found[recipe] = outcome
        return [found[recipe] for recipe in recipes if recipe in found]

    def _outcome(self, recipe: Recipe, states: dict[tuple[str, str], list[Start]]) -> Outcome | None:
        """None where the turn that the recipe goes by cannot be foreseen."""
        key = self.key | {"kind": "policy", "recipe": recipe.to_dict()}
        value = self.journal.get(key)
        if value is None:
            try:
                value = self._tried(recipe, states)
            except UnforeseenTurnError as error:
                value = {"unforeseen": str(error)}
            self.journal.put(key, value)
        if "unforeseen" in value:
            return None
        drops = {
            trial.name: 100 * (self.base(trial) - np.array(value["accuracy"][trial.name])) for trial in self.trials
        }
        search_drops = {
            search.name: {way: 100 * (self.base_mrr(search) - mrr) for way, mrr in value["mrr"][search.name].items()}
            for search in self.searches
        }
        work = np.mean([value["work"][trial.name] for trial in self.measured], axis=0)
        kept = statistics.fmean(value["kept"].values())
        turns = mean_turns(value["turns"][trial.name] for trial in self.measured)  # a journal keeps no order
        return Outcome(recipe, drops, kept, work, turns=turns, search_drops=search_drops)

    def _tried(self, recipe: Recipe, states: dict[tuple[str, str], list[Start]]) -> dict[str, Any]:
        """What the journal keeps of a recipe: accuracies, MRR, tokens kept, work and turns, by task and search."""
        names = [trial.name for trial in self.measured]
        fits = {name: self.fitted(recipe, without=name) if recipe.is_fitted else None for name in names}
        if recipe.max_turn is not None:
            self.fitted(recipe)  # so that what is tried can be used, too
        value: dict[str, Any] = {name: {} for name in ("accuracy", "mrr", "kept", "work", "turns")}
        for trial in self.measured:
            policy, start = recipe.policy(fits[trial.name]), None
            if isinstance(trial, Trial):  # not so the states of searches, which may have a great many documents
                want = recipe.score if recipe.score.startswith("attention") else "attention"
                if (trial.name, want) not in states:
                    states[trial.name, want] = self._states(trial, recipe.layer, want)
                start = states[trial.name, want]
            embeddings, kept, work = self._embed(trial, policy, start)
            unpruned = self._without_pruning(trial)
            if isinstance(trial, Trial):
                value["accuracy"][trial.name] = trial.accuracies(embeddings).tolist()
            else:
                value["mrr"][trial.name] = trial.mrr(self.encoder, unpruned, embeddings)
            value["kept"][trial.name] = kept
            value["work"][trial.name] = work.tolist()
            value["turns"][trial.name] = list(map(list, trial.turned(self.encoder, unpruned, embeddings)))
        return value

    def base(self, trial: Trial) -> NDArray[np.float64]:
        """Accuracies without pruning, [shots, draws]."""
        key = self.key | {"kind": "no pruning", "task": trial.name}
        value = self.journal.get(key)
        if value is None:
            value = {"accuracy": trial.accuracies(self._without_pruning(trial)).tolist()}
            self.journal.put(key, value)
        return np.array(value["accuracy"])

    def base_mrr(self, search: SearchTrial) -> float:
        """MRR@10 without pruning, in [0, 1]."""
        key = self.key | {"kind": "no pruning", "task": search.name}
        value = self.journal.get(key)
        if value is None:
            embeddings = self._without_pruning(search)
            value = {"mrr": search.mrr(self.encoder, embeddings, embeddings)["both"]}
            self.journal.put(key, value)
        return float(value["mrr"])

    def _without_pruning(self, trial: Trial | SearchTrial) -> Float32:
        """Embeddings [texts, H]."""
        if trial.name not in self._unpruned:
            self._unpruned[trial.name] = self._encoded(self.encoder, trial, None)
        return self._unpruned[trial.name]

    def _encoded(self, encoder: SentenceEncoder, trial: Trial | SearchTrial, policy: PruningPolicy | None) -> Float32:
        """Embeddings [texts, H] of another encoder, too; of a search with the prompts for queries and documents."""
        options: dict[str, Any] = {"pruning": policy, "show_progress_bar": False}
        if isinstance(trial, Trial):
            return np.asarray(encoder.encode(trial.texts, **options))
        queries = encoder.encode_query(trial.task.queries, **options)
        return np.concatenate([queries, encoder.encode_document(trial.task.documents, **options)])

    def _states(self, trial: Trial, layer: int, want: str) -> list[Start]:
        """Behind the attention block of a layer, for every batch of a task; computed without the layers above."""

        return self._over(trial.packed(self.encoder), lambda blocks, batch: start_behind(blocks, batch, layer, want))

    def _over(self, packed: Sequence[tuple[NDArray[np.int64], PackedBatch]], work: Work[T]) -> list[T]:
        return list(over_batches(self.encoder.blocks, [batch for _, batch in packed], work, self.encoder.threads))

    def _embed(
        self, trial: Trial | SearchTrial, policy: PruningPolicy, states: Sequence[Start] | None
    ) -> tuple[Float32, float, NDArray[np.float64]]:
        """Embeddings [B, H], share of the tokens kept, and the work per text; from the states, where there are some."""
        packed = trial.packed(self.encoder)
        by_batch = {id(batch): start for (_, batch), start in zip(packed, states or (), strict=states is not None)}

        def work(blocks: Blocks, batch: PackedBatch) -> tuple[Float32, int, NDArray[np.float64]]:
            start = by_batch.get(id(batch))
            if start is not None and not policy.score.startswith("attention"):
                start = replace(start, scores=None)
            counter = WorkCounter(policy, 0 if start is None else start.layer)
            encoded = forward(blocks, batch, policy, counter, start)
            return pool_encoded(encoded, self.encoder.pooling), len(encoded.rows), counter.work

        parts = self._over(packed, work)
        embeddings = np.empty((len(trial.texts), parts[0][0].shape[1]), np.float32)
        for (which, _), part in zip(packed, parts, strict=True):
            embeddings[which] = part[0]
        tokens = sum(len(batch.ids) for _, batch in packed)
        total: NDArray[np.float64] = np.sum([part[2] for part in parts], axis=0)
        embeddings = embeddings[:, : self.encoder.get_embedding_dimension()]
        return embeddings, sum(part[1] for part in parts) / tokens, total / len(trial.texts)

    def fitted(self, recipe: Recipe, without: str | None = None) -> Fitted:
        """Arrays fitted to the texts of all tasks, or, if there are others, of all but one."""
        parts = [self._layer_moments(layer) for layer, _ in recipe.stages]
        names = [name for name in self.unlabelled if name != without] or list(self.unlabelled)
        moments = {
            layer: reduce(add, [part[name] for name in names])
            for (layer, _), part in zip(recipe.stages, parts, strict=True)
        }
        found = fit(self.encoder.fingerprint, moments)
        return found if recipe.max_turn is None else self._calibrated(recipe, found, names)

    def _calibrated(self, recipe: Recipe, found: Fitted, names: Sequence[str]) -> Fitted:
        """The arrays with the map that foresees turns, which is the same for every turn, share and least length."""
        key = replace(recipe, stages=((recipe.layer, 0.0),), min_tokens=1, max_turn=None), tuple(names)
        if key not in self._turns:
            texts = [text for name in names for text in self.held_out[name]]
            self._turns[key] = calibrated(self.encoder, texts, key[0].policy(found), FEWER_SHARES).turns
        return replace(found, turns=self._turns[key])

    def _layer_moments(self, layer: int) -> dict[str, Moments]:
        if layer not in self._moments:
            self._moments[layer] = {
                name: token_moments(self.encoder, texts, layer) for name, texts in self.unlabelled.items()
            }
        return self._moments[layer]

    @measuring()
    def drop(self, encoder: SentenceEncoder, policy: PruningPolicy | None) -> float:
        """Mean drop in points of another encoder or policy, against this encoder without pruning.

        Of accuracy, or without tasks of MRR@10, with queries and documents by that encoder.
        """
        drops = [
            (self.base(trial) - trial.accuracies(self._encoded(encoder, trial, policy))).mean() for trial in self.trials
        ]
        if not drops:
            for search in self.searches:
                embeddings = self._encoded(encoder, search, policy)
                drops.append(self.base_mrr(search) - search.mrr(encoder, embeddings, embeddings)["both"])
        return 100 * float(np.mean(drops))

    # What they cost

    @cached_property
    def unpruned_work(self) -> NDArray[np.float64]:
        """The work [kinds] per text without pruning, mean over tasks and searches; found by running every text."""
        parts = [self._counted(trial.packed(self.encoder), None) / len(trial.texts) for trial in self.measured]
        return np.asarray(np.mean(parts, axis=0))

    def count(self, texts: Sequence[str], policy: PruningPolicy | None) -> NDArray[np.float64]:
        """The work [kinds] of embedding the texts."""
        return self._counted(by_length(self.encoder.tokenizer, prompted(self.encoder, texts)), policy)

    def _counted(
        self, packed: Sequence[tuple[NDArray[np.int64], PackedBatch]], policy: PruningPolicy | None
    ) -> NDArray[np.float64]:
        return count_work(self.encoder, [batch for _, batch in packed], policy)

    def policy(self, recipe: Recipe, provenance: Mapping[str, Any] | None = None) -> PruningPolicy:
        """The policy, with arrays fitted on all tasks."""
        return recipe.policy(self.fitted(recipe) if recipe.is_fitted else None, dict(provenance or {}))
