"""Trying pruning policies on tasks: what each does to the accuracies, and how much work it leaves.

What policies share is computed once: the hidden states up to the pruning layer, per layer and task. A policy with
fitted arrays is tried on each task with arrays fitted to the texts of the other tasks: it is to do well on tasks that
it never saw.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import compress
from operator import add
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans import __version__
from minitrans.adaptation.costs import WorkCounter
from minitrans.adaptation.fitting import SHORTEST, Moments, calibrated, can_measure, fit, token_moments
from minitrans.adaptation.recipes import Recipe
from minitrans.adaptation.trials import Trial, prompted, unlabelled_texts
from minitrans.columns import str_items
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
from minitrans.models.parameters import Float32, Linear
from minitrans.sentences.batches import Work, by_length, over_batches
from minitrans.sentences.call import Progress, measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder

T = TypeVar("T")

HELD_OUT, ENOUGH = 5, 50  # every fifth text of so many foresees turns, and takes no part in the fit
HOPELESS = 8.0  # points beyond the limit at which stronger pruning of the same kind is not tried any more


@dataclass(frozen=True)
class Limits:
    """What a policy may cost in accuracy, in points (hundredths).

    Args:
        mean_drop: on average over tasks, shots and draws.
        task_drop: on the worst task, on average over shots and draws.
        confidence: how sure both must be, over the draws, in [0.5, 1); 0.5 takes the means as they are.
    """

    mean_drop: float = 1.0
    task_drop: float = 2.0
    confidence: float = 0.9

    def __post_init__(self) -> None:
        for name in ("mean_drop", "task_drop"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value!r}, wanted a number of points of at least 0, as 1.0")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"confidence is {self.confidence!r}, wanted a number in [0.5, 1), as 0.9")


@dataclass(frozen=True)
class SearchSettings:
    """What policies are tried on.

    Args:
        shots: examples per class.
        seeds: of the draws.
        texts: more unlabelled texts to fit on, such as one's own logs; InputTypeError if they are no column of str.
        fit_texts: the most texts that the fit takes from all tasks together.
        test_texts: the most test texts per task.
    """

    shots: Sequence[int] = (5, 10)
    seeds: Sequence[int] = range(5)
    texts: Sequence[str] = ()
    fit_texts: int = 2000
    test_texts: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", str_items(self.texts, "texts"))


@dataclass(frozen=True)
class Outcome:
    """What one policy does to the accuracies, and the work that it leaves.

    Attributes:
        recipe: the policy without its arrays.
        drops: task -> accuracy without pruning less that with it, in points, [shots, draws].
        tokens_kept: share of all tokens that reach the end.
        work: [kinds] per text, see costs.KINDS; mean over the tasks.
        cost: predicted time, as a share of that without pruning.
    """

    recipe: Recipe
    drops: Mapping[str, NDArray[np.float64]]
    tokens_kept: float
    work: NDArray[np.float64]
    cost: float = math.nan

    @property
    def mean_drop(self) -> float:
        """Mean over the tasks, in points."""
        return float(np.mean([each.mean() for each in self.drops.values()]))

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Upper confidence bounds over the draws of the mean drop and of the worst task's."""
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
        """By how many points a bound is beyond its limit, the worse of both; within the limits at most 0."""
        mean, worst = self.bounds(limits.confidence)
        return max(mean - limits.mean_drop, worst - limits.task_drop)

    def meets(self, limits: Limits) -> bool:
        """Whether the policy stays within the limits."""
        return self.excess(limits) <= 0


class Search:
    """Tries policies on tasks. Keeps what the tries share: the tasks' texts and draws, the fits, the journal."""

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
        names = [task.name for task in tasks]
        if not names or len({*names}) < len(names):
            raise InputError(f"the tasks are {', '.join(names) or 'none'}, wanted at least one, each with its own name")
        self.encoder, self.progress = encoder, progress
        self.journal = Journal(None) if journal is None else journal  # an empty one is false
        self.num_layers = encoder.blocks.num_layers
        self.trials = [Trial(task, settings.shots, settings.seeds, settings.test_texts) for task in tasks]
        found = unlabelled_texts(tasks if fit_on is None else fit_on, settings.texts, settings.fit_texts)
        self.unlabelled, self.held_out = {}, {}
        for name, few in found.items():
            # A task without any text of a fitting length is tried all the same, with arrays from the others.
            kept = list(compress(few, can_measure(encoder, prompted(encoder, few))))
            if kept:
                enough = len(kept) >= ENOUGH
                self.held_out[name] = kept[::HELD_OUT] if enough else kept
                self.unlabelled[name] = [text for i, text in enumerate(kept) if i % HELD_OUT] if enough else kept
        if not self.unlabelled:
            raise InputError(
                f"no training text of {', '.join(found)} has {SHORTEST} tokens, wanted some to learn scores from; add "
                "longer unlabelled texts"
            )
        self._turns: dict[tuple[int, str, tuple[str, ...]], Mapping[int, Linear]] = {}
        self._moments: dict[int, dict[str, Moments]] = {}
        self.key = {
            "minitrans": __version__,
            "encoder": encoder.identity.sha256,
            "backend": encoder.backend,
            "tasks": {task.name: task.digest for task in tasks},
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

    # What a policy does to the accuracies

    def run(self, recipes: Sequence[Recipe], mean_drop: float) -> list[Outcome]:
        """Try the recipes, layer by layer, so that one layer's states are in memory at a time."""
        found: dict[Recipe, Outcome] = {}
        with (bar := Progress(len(recipes), self.progress, unit=" policies")):
            for layer in sorted({recipe.layer for recipe in recipes}):
                here = [recipe for recipe in recipes if recipe.layer == layer]
                states: dict[tuple[str, str], list[Start]] = {}
                for recipe in here:
                    bar.update(1)
                    milder = [
                        other
                        for other in found.values()
                        if replace(other.recipe, stages=recipe.stages) == recipe
                        and other.recipe.layer == layer
                        and other.recipe.stages[1:] in ((), recipe.stages[1:])
                        and other.recipe.stages[0][1] < recipe.stages[0][1]
                    ]
                    if any(other.mean_drop > mean_drop + HOPELESS for other in milder):
                        continue
                    found[recipe] = self._outcome(recipe, states)
        return [found[recipe] for recipe in recipes if recipe in found]

    def _outcome(self, recipe: Recipe, states: dict[tuple[str, str], list[Start]]) -> Outcome:
        key = self.key | {"kind": "policy", "recipe": recipe.to_dict()}
        value = self.journal.get(key)
        if value is None:
            value = {"accuracy": {}, "kept": {}, "work": {}}
            for trial in self.trials:
                want = recipe.score if recipe.score.startswith("attention") else "attention"
                if (trial.name, want) not in states:
                    states[trial.name, want] = self._states(trial, recipe.layer, want)
                fitted = self.fitted(recipe, without=trial.name) if recipe.is_fitted else None
                embeddings, kept, work = self._embed(trial, recipe.policy(fitted), states[trial.name, want])
                value["accuracy"][trial.name] = trial.accuracies(embeddings).tolist()
                value["kept"][trial.name] = kept
                value["work"][trial.name] = work.tolist()
            self.journal.put(key, value)
        drops = {
            trial.name: 100 * (self.base(trial) - np.array(value["accuracy"][trial.name])) for trial in self.trials
        }
        work = np.mean([value["work"][trial.name] for trial in self.trials], axis=0)
        return Outcome(recipe, drops, statistics.fmean(value["kept"].values()), work)

    def base(self, trial: Trial) -> NDArray[np.float64]:
        """Accuracies without pruning, [shots, draws]."""
        key = self.key | {"kind": "no pruning", "task": trial.name}
        value = self.journal.get(key)
        if value is None:
            embeddings = self.encoder.encode(trial.texts, pruning=None, show_progress_bar=False)
            value = {"accuracy": trial.accuracies(embeddings).tolist()}
            self.journal.put(key, value)
        return np.array(value["accuracy"])

    def _states(self, trial: Trial, layer: int, want: str) -> list[Start]:
        """Behind the attention block of a layer, for every batch of a task; computed without the layers above."""

        return self._over(trial.packed(self.encoder), lambda blocks, batch: start_behind(blocks, batch, layer, want))

    def _over(self, packed: Sequence[tuple[NDArray[np.int64], PackedBatch]], work: Work[T]) -> list[T]:
        return list(over_batches(self.encoder.blocks, [batch for _, batch in packed], work, self.encoder.threads))

    def _embed(
        self, trial: Trial, policy: PruningPolicy, states: Sequence[Start]
    ) -> tuple[Float32, float, NDArray[np.float64]]:
        """Embeddings [B, H], share of the tokens kept, and the work per text."""
        packed = trial.packed(self.encoder)
        by_batch = {id(batch): start for (_, batch), start in zip(packed, states, strict=True)}

        def work(blocks: Blocks, batch: PackedBatch) -> tuple[Float32, int, NDArray[np.float64]]:
            start = by_batch[id(batch)]
            if not policy.score.startswith("attention"):
                start = replace(start, scores=None)
            counter = WorkCounter(policy, start.layer)
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
        """The arrays with the map that foresees turns, which is the same for every turn and share."""
        key = recipe.layer, recipe.reduce, tuple(names)
        if key not in self._turns:
            texts = [text for name in names for text in self.held_out[name]]
            policy = replace(recipe, max_turn=None).policy(found)
            self._turns[key] = calibrated(self.encoder, prompted(self.encoder, texts), policy).turns
        return replace(found, turns=self._turns[key])

    def _layer_moments(self, layer: int) -> dict[str, Moments]:
        if layer not in self._moments:
            self._moments[layer] = {
                name: token_moments(self.encoder, prompted(self.encoder, texts), layer)
                for name, texts in self.unlabelled.items()
            }
        return self._moments[layer]

    @measuring()
    def drop(self, encoder: SentenceEncoder, policy: PruningPolicy | None) -> float:
        """Mean drop in points of another encoder or policy, against this encoder without pruning."""
        drops = []
        for trial in self.trials:
            embeddings = encoder.encode(trial.texts, pruning=policy, show_progress_bar=False)
            drops.append(100 * (self.base(trial) - trial.accuracies(embeddings)).mean())
        return float(np.mean(drops))

    # What they cost

    @cached_property
    def unpruned_work(self) -> NDArray[np.float64]:
        """The work [kinds] per text without pruning, mean over the tasks; found by running every text."""
        parts = [self.count(trial.texts, None) / len(trial.texts) for trial in self.trials]
        return np.asarray(np.mean(parts, axis=0))

    def count(self, texts: Sequence[str], policy: PruningPolicy | None) -> NDArray[np.float64]:
        """The work [kinds] of embedding the texts."""

        def work(blocks: Blocks, batch: PackedBatch) -> NDArray[np.float64]:
            counter = WorkCounter(policy)
            forward(blocks, batch, policy, counter)
            return counter.work

        packed = by_length(self.encoder.tokenizer, prompted(self.encoder, texts))
        total: NDArray[np.float64] = np.sum(self._over(packed, work), axis=0)
        return total

    def policy(self, recipe: Recipe, provenance: Mapping[str, Any] | None = None) -> PruningPolicy:
        """The policy, with arrays fitted on all tasks."""
        return recipe.policy(self.fitted(recipe) if recipe.is_fitted else None, dict(provenance or {}))
