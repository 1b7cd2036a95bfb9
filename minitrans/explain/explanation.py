"""What happened to every token of a text, what that saved, and what it changed: the facts behind `minitrans explain`.

Nothing here prints or draws: the command line and the page show the same records.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minitrans.encoder.packing import pack
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.pooling import normalized
from minitrans.encoder.selection import TOP, cost, kept_count
from minitrans.errors import InputError, ModelNotFoundError, NumericalError, TruncationWarning
from minitrans.evaluation.measurement import interleaved
from minitrans.explain.trace import TracedText, reference_blocks, trace_text
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.fewshot.examples import Label, text_list
from minitrans.files import bundled
from minitrans.hub.names import DEFAULT_MODEL
from minitrans.models.config import EncoderConfig
from minitrans.models.parameters import Float32
from minitrans.sentences.call import measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder

# A text is timed alone and as copies in one call: at most so many, of at most so many tokens together.
COPIES, COPIED_TOKENS = 64, 1024
MOST_ROUNDS, LEAST_ROUNDS = 31, 3
SECONDS, ALL_SECONDS = 0.3, 12.0  # to spend on each timing, and on all texts; LEAST_ROUNDS may take longer
LABELS, NEIGHBOURS = 5, 3
RANKED: dict[str, str] = {  # score of a policy -> what it ranks tokens by, on the terminal and in the page
    "attention": "the attention received",
    "attention_value": "the attention received, weighted by the values",
    "learned": "the learned score",
    "random": "chance",
    "first": "place: the first stay",
}
ALIKE = 0.1  # times that differ by less than this share, and by less than the runs among themselves, are about the same
TURN = 30.0  # degrees: from here on pruning is warned about, see docs/explaining.md
# Mean degrees between two unpruned texts of one intent, and of two intents: the bundled model on the 3080 test texts of
# banking77. What a turn is held against where there are no texts to hold it against.
INTENTS_APART = (52.0, 78.0)
MOST_COMPARED = 10_000  # texts: of more no nearest other one is looked for


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
    max_turn: float | None  # degrees, the policy's: by how much what goes may be expected to turn the embedding
    score: str  # the policy's: what the tokens are ranked by
    least: int  # tokens that had to stay: max(min_tokens, n - floor(quantile * n)), n of them entering
    entered: list[int]  # tokens, by their place in the text
    scores: list[float]  # of these
    kept: list[int]  # tokens that stayed
    threshold: float | None  # the lowest score that stayed on its merit; None: none dropped, or only protected kept


@dataclass(frozen=True)
class Neighbour:
    """A training example near a text."""

    text: str | None  # None where the classifier was saved without its texts
    label: Label
    cosine: float


@dataclass(frozen=True)
class Nearest:
    """The other text of the highest cosine: what a search among these texts would find."""

    others: int  # texts to choose from
    examples: bool  # they are a classifier's; else the other texts that were given, pruned alike
    unpruned: str
    pruned: str
    angle: float  # degrees to the one without pruning, neither pruned
    same: bool  # under pruning it is the same text, or one that reads the same


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of an embedding."""

    label: Label
    rejected: bool
    probabilities: list[tuple[Label, float]]  # the most probable labels, best first
    nearest: list[Neighbour]  # the training examples of the highest cosine, best first


@dataclass(frozen=True)
class Timing:
    """Medians over interleaved runs, of a text alone or of several copies in one call, which cost less each."""

    texts: int  # copies of the text in one call
    unpruned_ms: float  # per text
    pruned_ms: float
    noise: float  # half of the interquartile range of the rounds' ratios: a smaller share saved means nothing
    rounds: int

    @property
    def saved(self) -> float:
        """Share of the time; below 0 if pruning took longer."""
        return 1 - self.pruned_ms / self.unpruned_ms

    @property
    def verdict(self) -> str:
        """The saving in words, no surer than the runs allow: "31% less", "about the same"."""
        if abs(self.saved) <= min(self.noise, ALIKE) or abs(self.saved) < 0.005:
            return "about the same"
        return less(self.saved) + (", but the runs differ by as much" if abs(self.saved) <= self.noise else "")


@dataclass(frozen=True)
class Explanation:
    """One text, followed through the encoder with and without pruning."""

    text: str
    truncated: bool  # it is longer than the model takes, and these are the tokens that it keeps
    tokens: list[Token]
    stages: list[Stage]
    rows: list[int]  # that left each layer
    multiply_adds: int  # of the layers' products and of attention, with pruning
    unpruned_multiply_adds: int
    timings: list[Timing]  # empty where nothing was pruned, or the text was not to be timed
    cosine: float  # between the embeddings with and without pruning
    expected_angle: float | None  # degrees that `max_turn` foresaw for what went; None without it
    nearest: Nearest | None  # None without pruning, with fewer than two other texts, or more than `MOST_COMPARED`
    apart: tuple[float, float] | None  # `INTENTS_APART`; None for another model
    prediction: Prediction | None
    unpruned_prediction: Prediction | None
    pruned: TracedText  # the records behind it all
    unpruned: TracedText

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the records behind it."""
        left_out = ("pruned", "unpruned")
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in left_out}
        plain["timings"] = [asdict(each) | {"verdict": each.verdict} for each in self.timings]
        return plain | {name: getattr(self, name) for name in ("kept", "work_saved", "angle", "meaning", "warning")}

    @property
    def kept(self) -> list[int]:
        """Tokens that are left at the end, by their place in the text."""
        return [place for place, token in enumerate(self.tokens) if token.dropped_at is None]

    @property
    def work_saved(self) -> float:
        """Share of the multiply-adds that pruning saved."""
        return (self.unpruned_multiply_adds - self.multiply_adds) / max(1, self.unpruned_multiply_adds)

    @property
    def angle(self) -> float:
        """Degrees by which pruning turned the embedding."""
        return _degrees(self.cosine)

    @property
    def meaning(self) -> str:
        """The turn in other words: its cosine, what was expected of it, and the nearest text, else `INTENTS_APART`."""
        said = f"cosine {self.cosine:.4f}"
        if self.expected_angle is not None:
            said += f", {self.expected_angle:.1f} degrees expected"
        if self.nearest is not None:
            others = f"{self.nearest.others} {'examples' if self.nearest.examples else 'other texts'}"
            stays = "stays" if self.nearest.same else "is no longer"
            return f"{said}; the nearest of {others}, {self.nearest.angle:.0f} degrees away, {stays} the nearest"
        if self.apart is not None and len(self.kept) < len(self.tokens):
            return f"{said}; texts of one intent lie some {self.apart[0]:.0f} apart, of two some {self.apart[1]:.0f}"
        return said

    @property
    def warning(self) -> str | None:
        """What to beware of where the embedding turned by `TURN` degrees or more."""
        if self.angle < TURN:
            return None
        return (
            f"pruning turned the embedding by {self.angle:.1f} degrees, and other texts may be hardly farther away; "
            "measure what that costs a search or a comparison, or prune less"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def less(saved: float) -> str:
    """ "14% less", or "3% more" for a saving below 0."""
    return f"{saved:.0%} less" if saved >= 0 else f"{-saved:.0%} more"


def explain(
    encoder: SentenceEncoder,
    texts: Iterable[str],
    *,
    pruning: PruningPolicy | str | None = "inherit",
    classifier: FewShotClassifier | None = None,
    timed: int | None = 1,
) -> Iterator[Explanation]:
    """Follow texts through the encoder, each with and without pruning.

    Args:
        encoder: of any backend and precision.
        texts: at least one.
        pruning: as for ``SentenceEncoder.encode``.
        classifier: a fitted one of this encoder, to say what pruning changes in its predictions.
        timed: how many texts to time, the first of those that lose tokens; None for all of them. Timing takes much
            longer than all the rest, and is all that differs from run to run.

    Returns:
        One explanation after the other, made when it is asked for: it holds every number of its text's run.

    With a classifier the nearest text is looked for among its examples, where it keeps them, else among the others of
    these texts; all of them are embedded for that, with and without pruning, when the first explanation is asked for.

    Raises:
        InputError: no texts.
        InputTypeError, TruncationError, PolicyError, NumericalError: as ``SentenceEncoder.encode``; NumericalError too
            where the scores of the policy are not finite.
        NotFittedError: the classifier is not fitted.
    """
    texts = text_list(texts)
    if not texts:
        raise InputError("there are no texts, wanted at least one to explain")
    policy = encoder.policy_for(pruning)
    tokenized = encoder.tokenized(texts)  # warns once for all of them
    limit, prefix, suffix = encoder.max_seq_length, encoder.tokenizer.prefix, encoder.tokenizer.suffix
    reference = reference_blocks(encoder)
    most = len(texts) if timed is None else min(int(timed), len(texts))
    seconds = min(SECONDS, ALL_SECONDS / max(1, most) / 2)
    apart = INTENTS_APART if _is_bundled(encoder.folder) else None

    def explanations() -> Iterator[Explanation]:
        left = most  # to be timed
        compared = texts if classifier is None else classifier.texts_  # None where a classifier does not keep them
        others = None if policy is None or compared is None else _both_ways(encoder, compared, policy)
        for number, (text, ids, length) in enumerate(zip(texts, tokenized.ids, tokenized.lengths, strict=True)):
            batch = pack([ids], prefix, suffix)
            pruned = trace_text(encoder, batch, policy, reference)
            unpruned = trace_text(encoder, batch, None, reference, keep_attention=False)
            answers: list[Prediction | None] = [None, None]
            nearest = None
            if others is not None and classifier is None:
                nearest = _nearest(texts, others, [vectors[number] for vectors in others], number)
            timings: list[Timing] = []
            with measuring(), warnings.catch_warnings():
                warnings.simplefilter("ignore", TruncationWarning)  # given already
                if classifier is not None:
                    # Through encode, because it is what the classifier's examples came from (truncate_dim, prompts).
                    vectors = [encoder.encode(text, pruning=each) for each in (None, policy)]
                    answers = [_predict(classifier, vector) for vector in vectors]
                    if others is not None and compared is not None:
                        nearest = _nearest(compared, others, vectors)
                if left and len(pruned.layers[-1].rows) < len(ids):
                    copies = max(2, min(COPIES, COPIED_TOKENS // len(ids)))
                    timings = [_time(encoder, policy, text, count, seconds) for count in (1, copies)]
                    left -= 1
            both = normalized(np.stack([pruned.embedding, unpruned.embedding]))  # [2, H]
            yield Explanation(
                text=text,
                truncated=length > limit,
                tokens=_tokens(encoder, pruned, unpruned),
                stages=[] if policy is None else list(_stages(policy, pruned)),
                rows=[len(layer.rows) for layer in pruned.layers[1:]],
                multiply_adds=multiply_adds(encoder.config, pruned),
                unpruned_multiply_adds=multiply_adds(encoder.config, unpruned),
                timings=timings,
                cosine=float(both[0] @ both[1]),
                expected_angle=None if policy is None else _expected_angle(policy, pruned),
                nearest=nearest,
                apart=apart,
                prediction=answers[1],
                unpruned_prediction=answers[0],
                pruned=pruned,
                unpruned=unpruned,
            )

    return explanations()


def multiply_adds(config: EncoderConfig, traced: TracedText) -> int:
    """Those of one run: six linear maps a layer, and 2 n^2 H for the two products of its attention heads."""
    H, I = config.hidden_size, config.intermediate_size  # noqa: E741 - the letter of the formulas
    sizes = [(len(layer.entered), len(layer.rows)) for layer in traced.layers[1:]]
    return sum(entered * 4 * H * H + 2 * entered * entered * H + left * 2 * H * I for entered, left in sizes)


def _tokens(encoder: SentenceEncoder, pruned: TracedText, unpruned: TracedText) -> list[Token]:
    ids = pruned.batch.ids.tolist()
    dropped: dict[int, int] = {}
    taker: dict[int, int] = {}
    importance: list[list[float | None]] = [[] for _ in ids]
    for layer in pruned.layers[1:]:
        here = dict(zip(layer.entered.tolist(), layer.importance.tolist(), strict=True))
        for place, seen in enumerate(importance):
            seen.append(here.get(place))
        if layer.stage is None:
            continue
        for row in layer.stage.dropped.tolist():
            place = int(layer.entered[row])
            dropped[place] = layer.layer
            if layer.stage.target is not None:
                taker[place] = int(layer.rows[layer.stage.target[row]])
    last = pruned.layers[-1]
    sizes = dict(zip(last.rows.tolist(), last.sizes.tolist(), strict=True))
    without = [layer.importance.tolist() for layer in unpruned.layers[1:]]
    return [
        Token(
            token=token,
            id=ids[place],
            special=place < pruned.batch.prefix or place >= len(ids) - pruned.batch.suffix,
            dropped_at=dropped.get(place),
            merged_into=taker.get(place),
            size=sizes.get(place, 0.0),
            importance=importance[place],
            unpruned=[layer[place] for layer in without],
        )
        for place, token in enumerate(encoder.tokenizer.tokens(ids))
    ]


def _stages(policy: PruningPolicy, pruned: TracedText) -> Iterator[Stage]:
    protected = pruned.batch.prefix + pruned.batch.suffix if policy.protect_special else 0
    for layer in pruned.layers[1:]:
        stage = layer.stage
        if stage is None:
            continue
        if not np.isfinite(stage.scores).all():
            raise NumericalError(
                f"the policy's scores at layer {layer.layer} are {stage.scores.tolist()}, wanted finite numbers; "
                "fit it again with `minitrans adapt`"
            )
        entered, quantile = layer.entered.tolist(), policy.plan[layer.layer]
        least = kept_count(np.array([len(entered)]), quantile, max(policy.min_tokens, protected))
        threshold = float(stage.threshold[0])
        yield Stage(
            layer=layer.layer,
            quantile=quantile,
            max_turn=policy.max_turn,
            score=policy.score,
            least=int(least[0]),
            entered=entered,
            scores=stage.scores.tolist(),
            kept=[entered[row] for row in stage.kept.tolist()],
            threshold=None if np.isnan(threshold) else threshold,
        )


def _expected_angle(policy: PruningPolicy, pruned: TracedText) -> float | None:
    """The degrees that ``max_turn`` foresees for what a run gave up: `minitrans.encoder.selection.budgets` solved."""
    if policy.max_turn is None:
        return None
    ((layer, _),) = policy.plan.items()
    stage = pruned.layers[1 + layer].stage
    spent = 0.0 if stage is None or not len(stage.dropped) else float(cost(np.sort(stage.scores[stage.dropped]))[-1])
    if spent == 0:
        return 0.0
    turn, log_n = policy.turn_map(layer), math.log(len(pruned.batch.ids))
    features = np.array([math.log(spent) + TOP, log_n, log_n**2])  # [3]
    return min(180.0, math.exp(min(10.0, float(turn.weight[0].astype(np.float64) @ features + turn.bias[0]))))


def _is_bundled(folder: Path) -> bool:
    try:
        return folder.resolve() == bundled(f"weights/{DEFAULT_MODEL}").resolve()
    except ModelNotFoundError:  # left out where minitrans was installed
        return False


def _both_ways(encoder: SentenceEncoder, texts: list[str], policy: PruningPolicy) -> tuple[Float32, Float32] | None:
    """The texts' embeddings of length 1, [N, H] without pruning and [N, H] with it; None: too few, or too many."""
    if not 2 <= len(texts) <= MOST_COMPARED:
        return None
    with measuring(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # given already
        plain, pruned = (normalized(encoder.encode(texts, pruning=each)) for each in (None, policy))
    return plain, pruned


def _nearest(
    texts: list[str], others: tuple[Float32, Float32], vectors: Sequence[Float32], own: int | None = None
) -> Nearest | None:
    """The nearest of others [N, H] without pruning and of others with it, to a text's vectors [H] of both kinds."""
    count = len(others[0]) - (own is not None)
    if count < 2:
        return None
    found, cosines = [], []
    for rows, vector in zip(others, vectors, strict=True):
        near = rows @ normalized(vector[None])[0]  # [N]
        if own is not None:
            near[own] = -np.inf
        found.append(int(near.argmax()))
        cosines.append(float(near.max()))
    one, other = (texts[place] for place in found)
    return Nearest(count, own is None, one, other, _degrees(cosines[0]), one == other)


def _degrees(cosine: float) -> float:
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def _predict(classifier: FewShotClassifier, embedding: Float32) -> Prediction:
    rows = embedding[None]  # [1, H]
    probabilities = classifier.predict_proba_embeddings(rows)[0]  # [K]
    best = np.argsort(-probabilities, kind="stable")[:LABELS]
    label = classifier.predict_embeddings(rows)[0].item()
    cosines = normalized(classifier.embeddings_) @ normalized(rows)[0]  # [N]
    near = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
    texts, labels = classifier.texts_, classifier.classes_[classifier.codes_[near]]
    return Prediction(
        label=label,
        rejected=classifier.rejection_ is not None and label == classifier.rejection_.abstention,
        probabilities=[(classifier.classes_[k].item(), float(probabilities[k])) for k in best],
        nearest=[
            Neighbour(None if texts is None else texts[i], near_label.item(), float(cosines[i]))
            for i, near_label in zip(near.tolist(), labels, strict=True)
        ],
    )


def _time(encoder: SentenceEncoder, policy: PruningPolicy | None, text: str, texts: int, seconds: float) -> Timing:
    wanted: dict[str, PruningPolicy | None] = {"unpruned": None, "pruned": policy}
    runs = {name: partial(encoder.encode, [text] * texts, pruning=each) for name, each in wanted.items()}
    first = interleaved(runs, 1)  # tells how many rounds there is time for
    rounds = int(seconds / sum(each[0] for each in first.values()))
    found = interleaved(runs, max(LEAST_ROUNDS, min(MOST_ROUNDS, rounds)))
    medians = {name: statistics.median(each) * 1e3 / texts for name, each in found.items()}
    shares = [mine / other for mine, other in zip(found["pruned"], found["unpruned"], strict=True)]
    low, _, high = statistics.quantiles(shares, n=4)
    return Timing(texts, medians["unpruned"], medians["pruned"], (high - low) / 2, len(shares))
