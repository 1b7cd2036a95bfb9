"""What is timed. Every figure keeps the raw numbers of its rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks.contenders import Contender, Encode, EncodeOne
from benchmarks.texts import Corpus, sample
from benchmarks.timing import Spread, fastest, interleaved, percentile, ratios, seconds, settle
from minitrans import PruningPolicy
from minitrans.encoder.selection import kept_count
from minitrans.models.config import EncoderConfig

POLICY = PruningPolicy(quantile=0.3, layer=1, min_tokens=8)
LENGTHS = (64, 128, 256, 512)
WARM_TEXTS = 5  # untimed ones before a block of single texts: the caches hold another contender's weights


@dataclass(frozen=True)
class Size:
    """How much is timed."""

    bulk: int  # texts of BANKING77 at once
    single: int  # texts of BANKING77, one at a time
    tokens: int  # of all the texts of one length
    lengths: tuple[int, ...]
    layers_12: int  # texts for the model of 12 layers
    choosing: int  # texts on which the settings are chosen
    repetitions: int  # of whole processes


FULL = Size(3080, 200, 16_384, LENGTHS, 640, 640, 5)
QUICK = Size(320, 50, 4_096, (256, 512), 128, 256, 3)


@dataclass(frozen=True)
class Result:
    """One workload: what each contender took in each round.

    ``rounds`` are seconds per run, except for the units "MB" (as it says). A unit "per second" is shown as ``amount``
    over the seconds, "ms" as milliseconds.
    """

    key: str
    title: str
    unit: str  # texts/s, tokens/s, ms, s, MB
    amount: float  # texts or tokens in one run
    rounds: dict[str, list[float]]
    settings: dict[str, str] = field(default_factory=dict)  # the fastest, which was timed
    tried: dict[str, dict[str, float]] = field(default_factory=dict)  # what each setting took when it was chosen
    extra: dict[str, Any] = field(default_factory=dict)

    def figure(self, name: str) -> Spread:
        """A contender's figure in the unit."""
        values = self.rounds[name]
        if self.unit.endswith("/s"):
            return Spread.of([self.amount / value for value in values])
        return Spread.of([value * (1000 if self.unit == "ms" else 1) for value in values])

    def ratio(self, ours: str, theirs: str) -> Spread:
        """How many times as fast (as small) ours is, round by round."""
        return ratios(self.rounds[ours], self.rounds[theirs])


def bulk(
    key: str,
    title: str,
    contenders: Sequence[Contender],
    corpus: Corpus,
    rounds: int,
    choosing: int,
    unit: str = "texts/s",
    tuned: bool = False,
) -> list[Result]:
    """Many texts at once, tokenised by everyone; then tokenisation apart, and what is left without it.

    Args:
        key, title, unit: as in Result.
        contenders: who takes part.
        corpus: what they embed.
        rounds: how many.
        choosing: number of texts on which each contender's setting is chosen.
        tuned: whether peers also try small batches, and a batch for each thread.
    """
    texts = corpus.texts
    chosen: dict[str, Encode] = {}
    names: dict[str, str] = {}
    tried: dict[str, dict[str, float]] = {}
    few = sample(texts, corpus.lengths, choosing)
    for contender in contenders:
        settings = contender.bulk(len(texts), tuned)
        for encode in settings.values():
            encode(few[:8])  # first calls allocate and compile
        names[contender.name], tried[contender.name] = fastest(
            {setting: partial(encode, few) for setting, encode in settings.items()}
        )
        chosen[contender.name] = settings[names[contender.name]]

    def work(contender: Contender) -> tuple[float, float]:
        whole = seconds(partial(chosen[contender.name], texts))
        settle()  # threads that still spin are in the way of the tokenizer's
        return whole, seconds(partial(contender.tokenize, texts))

    timed = interleaved({contender.name: partial(work, contender) for contender in contenders}, rounds)
    whole = {name: [each[0] for each in values] for name, values in timed.items()}
    tokenisation = {name: [each[1] for each in values] for name, values in timed.items()}
    engine = {name: [each[0] - each[1] for each in values] for name, values in timed.items()}
    amount = len(texts) if unit == "texts/s" else sum(corpus.lengths)
    return [
        Result(key, title, unit, amount, whole, names, tried),
        Result(f"{key}-tokenisation", f"{title}: tokenisation alone", unit, amount, tokenisation),
        Result(f"{key}-engine", f"{title}: without tokenisation (the difference)", unit, amount, engine),
    ]


def one_text(key: str, title: str, contenders: Sequence[Contender], texts: Sequence[str], rounds: int) -> Result:
    """One text at a time: the median and the 95th percentile of the latencies of a round."""
    chosen: dict[str, EncodeOne] = {}
    names: dict[str, str] = {}
    tried: dict[str, dict[str, float]] = {}
    for contender in contenders:
        works = {
            setting: partial(_each, encode, texts[: 4 * WARM_TEXTS]) for setting, encode in contender.single.items()
        }
        for work in works.values():
            work()
        names[contender.name], tried[contender.name] = fastest(works)
        chosen[contender.name] = contender.single[names[contender.name]]

    timed = interleaved({name: partial(latencies, encode, texts) for name, encode in chosen.items()}, rounds)
    medians = {name: [statistics.median(values) for values in each] for name, each in timed.items()}
    extra = {
        "p95_seconds": {name: [percentile(values, 95) for values in each] for name, each in timed.items()},
        "latencies_seconds": {
            name: [[round(value, 7) for value in values] for values in each] for name, each in timed.items()
        },
    }
    return Result(key, title, "ms", 1, medians, names, tried, extra)


def latencies(encode: Callable[[str], object], texts: Sequence[str]) -> list[float]:
    """Seconds of each text, one after the other."""
    _each(encode, texts[:WARM_TEXTS])
    taken = []
    for text in texts:
        start = time.perf_counter()
        encode(text)
        taken.append(time.perf_counter() - start)
    return taken


def pruning(
    key: str, title: str, contenders: Sequence[Contender], texts: Sequence[str], rounds: int, saved: float
) -> Result:
    """Ours with and without pruning, on many texts.

    Args:
        key, title: as in Result.
        contenders: ours; the pruned ones have the name of the other and ", pruned".
        texts: what they embed.
        rounds: how many.
        saved: share of the work that pruning saves.
    """
    encodes = {contender.name: contender.bulk(len(texts), False)["default"] for contender in contenders}
    for encode in encodes.values():
        encode(texts[:8])
    timed = interleaved({name: partial(seconds, partial(encode, texts)) for name, encode in encodes.items()}, rounds)
    extra = {"policy": POLICY.to_dict(), "work_saved": saved, "speedup_if_time_followed_work": 1 / (1 - saved)}
    return Result(key, title, "texts/s", len(texts), timed, extra=extra)


def work_saved(lengths: Sequence[int], config: EncoderConfig, policy: PruningPolicy = POLICY) -> float:
    """Share of the layers' products that pruning saves, by the rows that they run on.

    A layer costs a row 4 H^2 products in its attention block and 2 H I in its feed-forward block. A pruned row is
    spared the feed-forward block of the layer where it goes, and all of the layers after. The products of queries and
    keys, and of attention and values, are left out of the count; pruning saves more of those than of the others.
    """
    attention, feed_forward = 4 * config.hidden_size**2, 2 * config.hidden_size * config.intermediate_size
    rows = np.array(lengths, np.int64)
    full, kept = int(rows.sum()) * (attention + feed_forward) * config.num_hidden_layers, 0
    for layer in range(config.num_hidden_layers):
        kept += int(rows.sum()) * attention
        if layer in policy.plan:
            rows = kept_count(rows, policy.plan[layer], policy.min_tokens)
        kept += int(rows.sum()) * feed_forward
    return 1 - kept / full


def _each(encode: Callable[[str], object], texts: Sequence[str]) -> None:
    for text in texts:
        encode(text)
