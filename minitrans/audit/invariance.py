"""The promise that a text's embedding is the same to the last bit, whatever else is in the call, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from minitrans.audit.checks import INVARIANCE, Check, broken, judged
from minitrans.audit.comparison import Sample
from minitrans.encoder.blocks import Blocks
from minitrans.encoder.forward import forward
from minitrans.encoder.packing import PackedBatch
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.pooling import pool_encoded
from minitrans.errors import MinitransError
from minitrans.models.parameters import Float32
from minitrans.sentences.batches import over_batches
from minitrans.sentences.call import measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder
from minitrans.words import counted

# Tokens of a packed batch, one after the other; ``encode`` takes 512.
CHUNKS = (1, 64, 200, 100_000)


@dataclass(frozen=True)
class Setting:
    """One way to encode all texts in a call."""

    order: str
    batch_size: int
    threads: int

    def __str__(self) -> str:
        return f"order {self.order}, batch_size {self.batch_size}, threads {self.threads}"


def settings(threads: Sequence[int]) -> Iterator[Setting]:
    """Every order with every batch size, and each number of threads with some of them."""
    orders, sizes = ("as given", "reversed", "shuffled"), (1, 3, 32)
    for i, order in enumerate(orders):
        for j, size in enumerate(sizes):
            yield Setting(order, size, threads[(i + j) % len(threads)])
    for number in threads[3:]:
        yield Setting("shuffled", 3, number)


@measuring()
def invariance_check(
    name: str, encoder: SentenceEncoder, sample: Sample, policy: PruningPolicy | None, threads: int | None = None
) -> Check:
    """Encode the texts one at a time, then together in many ways, and compare bits.

    Args:
        name: of the check.
        encoder: what is checked, with the backend and precision that it has.
        sample: the texts.
        policy: None prunes nothing.
        threads: one more number of threads to check, besides 1, 2 and 4.
    """
    before = encoder.threads
    ways = list(settings(tuple(dict.fromkeys((1, 2, 4, threads or 1)))))
    faults: list[str] = []

    def pooled(blocks: Blocks, batch: PackedBatch) -> Float32:
        return pool_encoded(forward(blocks, batch, policy), encoder.pooling)

    try:
        encoder.threads = 1
        alone = np.stack([encoder.encode(text, prompt="", pruning=policy) for text in sample.texts])  # [B, W]
        for setting in ways:
            encoder.threads = setting.threads
            order = _order(setting.order, len(sample.texts))
            texts = [sample.texts[i] for i in order]
            together = encoder.encode(texts, prompt="", batch_size=setting.batch_size, pruning=policy)
            faults += _differences(alone[order], together, order, sample, str(setting))
        for tokens in CHUNKS:
            batches = [batch for _, batch in sample.batches(len(sample.texts), tokens)]
            packed = np.concatenate(list(over_batches(encoder.blocks, batches, pooled)))[:, : alone.shape[1]]
            everything = list(range(len(sample.texts)))
            faults += _differences(alone, packed, everything, sample, f"chunks of up to {tokens} tokens")
    except MinitransError as error:
        return broken(INVARIANCE, name, "the same bits", error)
    finally:
        encoder.threads = before
    measured = f"{counted(len(sample.texts), 'text')} in {len(ways) + len(CHUNKS)} ways"
    measured += f", {len(faults)} differ" if faults else ""
    return judged(INVARIANCE, name, not faults, measured, "the same bits as alone", faults)


def _order(name: str, texts: int) -> list[int]:
    if name == "shuffled":
        return [int(i) for i in np.random.default_rng(0).permutation(texts)]
    return list(range(texts))[:: -1 if name == "reversed" else 1]


def _differences(right: Float32, seen: Float32, order: Sequence[int], sample: Sample, way: str) -> Iterator[str]:
    """A line per text whose bits differ; bits, so that NaN is equal to itself and -0 is not 0."""
    different = right.view(np.uint32) != np.ascontiguousarray(seen).view(np.uint32)  # [B, W]
    for row in np.flatnonzero(different.any(axis=1)).tolist():
        apart = np.abs(right[row] - seen[row]).max()
        count = int(different[row].sum())
        yield f"{sample.named(order[row])}, {way}: {count} of {right.shape[1]} numbers differ, by up to {apart:.1e}"
