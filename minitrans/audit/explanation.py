"""What happened to every token of a text, what that saved, and what it changed: the facts behind `minitrans explain`.

Nothing here prints or draws: the command line and the page (report.py) show the same records.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np

from minitrans.audit.trace import TracedStage, TracedText, reference_blocks, trace
from minitrans.classifier import FewShotClassifier
from minitrans.config import EncoderConfig
from minitrans.costs import interleaved
from minitrans.errors import InputError, TruncationWarning
from minitrans.inputs import Label
from minitrans.model import SentenceEncoder
from minitrans.parameters import Float32
from minitrans.policy import PruningPolicy
from minitrans.pooling import normalized
from minitrans.pruning import kept_count

ROUNDS = {1: 31, 64: 15}  # of timing, with and without pruning in turn: the text alone, and so many copies in one call
LABELS, NEIGHBOURS = 5, 3


@dataclass(frozen=True)
class Token:
    """A token of the text, in the order of the text; what it became."""

    token: str  # as the vocabulary spells it: "##" continues a word
    id: int
    special: bool  # put there by the tokenizer
    dropped_at: int | None  # the layer whose pruning stage took it out; None: kept to the end
    merged_into: int | None  # the token that took it in, with reduce="merge"
    size: float  # tokens that its row stands for at the end; 0 if it has none
    importance: list[float | None]  # per layer, attention received in the run with pruning; None once it is gone
    unpruned: list[float]  # per layer, the same without pruning


@dataclass(frozen=True)
class Stage:
    """A pruning stage: which of the tokens that were left entered it, how they scored, and what was decided."""

    layer: int
    quantile: float
    score: str  # the policy's: what the tokens are ranked by
    least: int  # tokens that had to stay: max(min_tokens, n - floor(quantile * n)), n of them entering
    entered: list[int]  # tokens, by their place in the text
    scores: list[float]  # of these
    kept: list[int]  # tokens that stayed
    threshold: float | None  # the lowest score that stayed on its merit; None: nothing was dropped


@dataclass(frozen=True)
class Neighbour:
    """A training example near a text."""

    text: str | None  # None where the classifier was saved without its texts
    label: Label
    cosine: float


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of an embedding."""

    label: Label
    rejected: bool
    probabilities: list[tuple[Label, float]]  # the most probable labels, best first
    nearest: list[Neighbour]  # the training examples of the highest cosine, best first


@dataclass(frozen=True)
class Timing:
    """Medians over interleaved runs: the text alone has other costs than one of many."""

    texts: int  # copies of the text in one call
    unpruned_ms: float  # per text
    pruned_ms: float
    noise: float  # half of the interquartile range of the rounds' ratios: a smaller share saved means nothing
    rounds: int

    @property
    def saved(self) -> float:
        """Share of the time; below 0 if pruning took longer."""
        return 1 - self.pruned_ms / self.unpruned_ms


@dataclass(frozen=True)
class Explanation:
    """One text, followed through the encoder with and without pruning."""

    text: str
    truncated: bool  # the tokens are those of its beginning only
    tokens: list[Token]
    stages: list[Stage]
    rows: list[int]  # that left each layer
    multiply_adds: int  # of the layers' products and of attention, with pruning
    unpruned_multiply_adds: int
    timings: list[Timing]  # empty where nothing was pruned, or timing was not wanted
    cosine: float  # between the embeddings with and without pruning
    prediction: Prediction | None
    unpruned_prediction: Prediction | None
    pruned: TracedText  # the records behind it all
    unpruned: TracedText

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the records behind it."""
        left_out = ("pruned", "unpruned")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        plain = {name: _plain(value) for name, value in values.items()}
        return plain | {"kept": self.kept, "work_saved": self.work_saved}

    @property
    def kept(self) -> list[int]:
        """Tokens that are left at the end, by their place in the text."""
        return [place for place, token in enumerate(self.tokens) if token.dropped_at is None]

    @property
    def work_saved(self) -> float:
        """Share of the multiply-adds that pruning saved."""
        return 1 - self.multiply_adds / self.unpruned_multiply_adds


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def explain(
    encoder: SentenceEncoder,
    texts: Sequence[str],
    *,
    pruning: PruningPolicy | str | None = "inherit",
    classifier: FewShotClassifier | None = None,
    timed: bool = True,
) -> list[Explanation]:
    """Follow texts through the encoder, each with and without pruning.

    Args:
        encoder: of any backend and precision.
        texts: at least one.
        pruning: as for ``SentenceEncoder.encode``.
        classifier: a fitted one of this encoder, to say what pruning changes in its predictions.
        timed: whether to time the runs; times differ from run to run.

    Raises:
        InputError: no texts.
        InputTypeError, TruncationError, PolicyError, NumericalError: as ``SentenceEncoder.encode``.
        NotFittedError: the classifier is not fitted.
    """
    if not texts:
        raise InputError("there are no texts, wanted at least one to explain")
    policy = encoder.policy_for(pruning)
    reference = reference_blocks(encoder)
    with_pruning = trace(encoder, texts, pruning=policy, reference=reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # given above
        without = trace(encoder, texts, pruning=None, reference=reference)
        lengths = encoder.tokenizer.encode([*texts]).lengths
        return [
            _explain(encoder, policy, classifier, text, length > encoder.max_seq_length, pruned, unpruned, timed)
            for text, length, pruned, unpruned in zip(texts, lengths, with_pruning, without, strict=True)
        ]


def multiply_adds(config: EncoderConfig, traced: TracedText) -> int:
    """Of one run: the six linear maps of every layer and its attention, 2 n^2 H for the two products of all heads."""
    H, I = config.hidden_size, config.intermediate_size  # noqa: E741 - the letter of the formulas
    total = 0
    for layer in traced.layers[1:]:
        entered, left = len(layer.entered), len(layer.rows)
        total += entered * 4 * H * H + 2 * entered * entered * H + left * 2 * H * I
    return total


def _explain(
    encoder: SentenceEncoder,
    policy: PruningPolicy | None,
    classifier: FewShotClassifier | None,
    text: str,
    truncated: bool,
    pruned: TracedText,
    unpruned: TracedText,
    timed: bool,
) -> Explanation:
    both = normalized(np.stack([pruned.embedding, unpruned.embedding]))  # [2, H]
    answers: list[Prediction | None] = [None, None]
    if classifier is not None:
        # Through encode, because it is what the classifier's examples came from (truncate_dim, prompts).
        answers = [_predict(classifier, encoder.encode(text, pruning=each)) for each in (policy, None)]
    shrank = len(pruned.layers[-1].rows) < len(pruned.batch.ids)
    return Explanation(
        text=text,
        truncated=truncated,
        tokens=_tokens(encoder, pruned, unpruned),
        stages=[] if policy is None else _stages(policy, pruned),
        rows=[len(layer.rows) for layer in pruned.layers[1:]],
        multiply_adds=multiply_adds(encoder.config, pruned),
        unpruned_multiply_adds=multiply_adds(encoder.config, unpruned),
        timings=[_time(encoder, policy, text, texts) for texts in ROUNDS] if timed and shrank else [],
        cosine=float(both[0] @ both[1]),
        prediction=answers[0],
        unpruned_prediction=answers[1],
        pruned=pruned,
        unpruned=unpruned,
    )


def _tokens(encoder: SentenceEncoder, pruned: TracedText, unpruned: TracedText) -> list[Token]:
    ids = pruned.batch.ids
    count = len(ids)
    dropped: dict[int, int] = {}
    taker: dict[int, int] = {}
    importance: list[list[float | None]] = [[] for _ in ids]
    for layer in pruned.layers[1:]:
        here = dict(zip(layer.entered.tolist(), layer.importance.tolist(), strict=True))
        for place in range(count):
            importance[place].append(here.get(place))
        if layer.stage is None:
            continue
        for row in layer.stage.dropped.tolist():
            place = int(layer.entered[row])
            dropped[place] = layer.layer
            if layer.stage.target is not None:
                taker[place] = int(layer.rows[layer.stage.target[row]])
    last = pruned.layers[-1]
    sizes = dict(zip(last.rows.tolist(), last.sizes.tolist(), strict=True))
    alone = [layer.importance.tolist() for layer in unpruned.layers[1:]]
    strings = encoder.tokenizer.tokens(ids.tolist())
    return [
        Token(
            token=strings[place],
            id=int(ids[place]),
            special=place < pruned.batch.prefix or place >= count - pruned.batch.suffix,
            dropped_at=dropped.get(place),
            merged_into=taker.get(place),
            size=sizes.get(place, 0.0),
            importance=importance[place],
            unpruned=[layer[place] for layer in alone],
        )
        for place in range(count)
    ]


def _stages(policy: PruningPolicy, pruned: TracedText) -> list[Stage]:
    stages = []
    for layer in pruned.layers[1:]:
        if layer.stage is not None:
            quantile = policy.plan[layer.layer]
            stages.append(_stage(policy, pruned, layer.layer, quantile, layer.entered.tolist(), layer.stage))
    return stages


def _stage(
    policy: PruningPolicy, pruned: TracedText, layer: int, quantile: float, entered: list[int], stage: TracedStage
) -> Stage:
    protected = pruned.batch.prefix + pruned.batch.suffix if policy.protect_special else 0
    least = kept_count(np.array([len(entered)]), quantile, max(policy.min_tokens, protected))
    threshold = float(stage.threshold[0])
    return Stage(
        layer=layer,
        quantile=quantile,
        score=policy.score,
        least=int(least[0]),
        entered=entered,
        scores=stage.scores.tolist(),
        kept=[entered[row] for row in stage.kept.tolist()],
        threshold=None if np.isnan(threshold) else threshold,
    )


def _predict(classifier: FewShotClassifier, embedding: Float32) -> Prediction:
    rows = embedding[None]  # [1, H]
    probabilities = classifier.predict_proba_embeddings(rows)[0]  # [K]
    best = np.argsort(-probabilities, kind="stable")[:LABELS]
    label = classifier.predict_embeddings(rows)[0].item()
    cosines = normalized(classifier.embeddings_) @ normalized(rows)[0]  # [N]
    near = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
    texts = classifier.texts_
    return Prediction(
        label=label,
        rejected=classifier.rejection_ is not None and label == classifier.rejection_.abstention,
        probabilities=[(classifier.classes_[k].item(), float(probabilities[k])) for k in best],
        nearest=[
            Neighbour(None if texts is None else texts[i], classifier.labels_[i].item(), float(cosines[i]))
            for i in near.tolist()
        ],
    )


def _time(encoder: SentenceEncoder, policy: PruningPolicy | None, text: str, texts: int) -> Timing:
    wanted: dict[str, PruningPolicy | None] = {"unpruned": None, "pruned": policy}
    runs = {name: partial(encoder.encode, [text] * texts, pruning=each) for name, each in wanted.items()}
    seconds = interleaved(runs, ROUNDS[texts])
    medians = {name: statistics.median(each) * 1e3 / texts for name, each in seconds.items()}
    shares = [mine / other for mine, other in zip(seconds["pruned"], seconds["unpruned"], strict=True)]
    low, _, high = statistics.quantiles(shares, n=4)
    return Timing(texts, medians["unpruned"], medians["pruned"], (high - low) / 2, ROUNDS[texts])
