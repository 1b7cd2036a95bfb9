"""The demo: few-shot intents on the bundled model and example data, with and without pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minitrans.data.files import Examples, read_examples
from minitrans.encoder.policy import PruningPolicy, describe
from minitrans.evaluation.measurement import embedding_costs
from minitrans.evaluation.metrics import accuracy, macro_metrics
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.files import bundled
from minitrans.sentences.call import PrunedText
from minitrans.sentences.sentence_encoder import SentenceEncoder


@dataclass(frozen=True)
class DemoRow:
    """One line of the table: how a policy did on the test set."""

    pruning: str
    accuracy: float
    macro_f1: float
    texts_per_second: float
    tokens_kept: float  # share of all tokens


@dataclass(frozen=True)
class DemoSample:
    """One utterance with its prediction and the tokens that pruning took."""

    text: str
    expected: str
    predicted: str
    probability: float
    tokens: list[str]
    kept: list[bool]


@dataclass(frozen=True)
class DemoReport:
    """What the demo found."""

    encoder: dict[str, Any]
    intents: int
    training_examples: int
    test_examples: int
    rows: list[DemoRow]
    samples: list[DemoSample]
    probability_in_scope: float  # median of the winning intent's probability
    probability_out_of_scope: float


def run_demo(encoder: SentenceEncoder, policy: PruningPolicy | None) -> DemoReport:
    """Fit on the example set, embed its test set with and without pruning, and measure both.

    Args:
        encoder: its own pruning is not used.
        policy: the pruning to show; None takes the default policy.
    """
    policy = PruningPolicy() if policy is None else policy
    train, test = (read_examples(bundled(f"examples/data/{split}.csv")) for split in ("train", "test"))
    beyond = read_examples(bundled("examples/data/out_of_scope.csv"))
    classifier = FewShotClassifier(encoder).fit(train.texts, train.labels)

    policies: dict[str, PruningPolicy | None] = {"none": None, describe(policy): policy}
    costs = embedding_costs(encoder, test.texts, policies)
    vectors = {name: encoder.encode(test.texts, pruning=each) for name, each in policies.items()}  # [B, H] each
    rows = []
    for name, cost in costs.items():
        predicted = [str(label) for label in classifier.predict_embeddings(vectors[name])]
        metrics = accuracy(test.labels, predicted), macro_metrics(test.labels, predicted).f1
        rows.append(DemoRow(name, *metrics, 1e6 / cost.microseconds_per_text, cost.tokens_kept))

    inside = classifier.predict_proba_embeddings(vectors["none"])  # [B, C]
    outside = classifier.predict_proba(beyond.texts)  # [B', C]
    return DemoReport(
        encoder=encoder.info(),
        intents=len(classifier.classes_),
        training_examples=len(train.texts),
        test_examples=len(test.texts),
        rows=rows,
        samples=_samples(classifier, encoder, policy, test),
        probability_in_scope=float(np.median(inside.max(axis=1))),
        probability_out_of_scope=float(np.median(outside.max(axis=1))),
    )


def _samples(
    classifier: FewShotClassifier, encoder: SentenceEncoder, policy: PruningPolicy, test: Examples, count: int = 4
) -> list[DemoSample]:
    """The text of middle length of some intents, spread over the list of intents."""
    intents = sorted(set(test.labels))[:: max(1, len(set(test.labels)) // count)][:count]
    chosen = []
    for intent in intents:
        of_intent = [i for i, label in enumerate(test.labels) if label == intent]
        chosen.append(sorted(of_intent, key=lambda i: len(test.texts[i]))[len(of_intent) // 2])
    texts = [test.texts[i] for i in chosen]
    probabilities = classifier.predict_proba_embeddings(encoder.encode(texts, pruning=policy))  # [count, C]
    pruned: list[PrunedText] = encoder.pruned_tokens(texts, pruning=policy)
    return [
        DemoSample(
            text=text,
            expected=test.labels[i],
            predicted=str(classifier.classes_[row.argmax()]),
            probability=float(row.max()),
            tokens=tokens.tokens,
            kept=tokens.kept,
        )
        for i, text, row, tokens in zip(chosen, texts, probabilities, pruned, strict=True)
    ]
