"""The one way from texts to what the layers make of them: tokenise, cut into chunks, pack, run on threads, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans.encoder.blocks import Blocks
from minitrans.encoder.packing import PackedBatch, chunks, pack
from minitrans.models.tokenization.tokenizer import Tokenizer
from minitrans.sentences.threads import in_order

CHUNK_TOKENS = 512  # a chunk's arrays stay within a core's caches
CHUNK_TEXTS = 32
CHARACTERS = 4  # of a token, about: texts are grouped before they are tokenised, by the thread that encodes them

T = TypeVar("T")
Work: TypeAlias = Callable[[Blocks, PackedBatch], T]  # given the blocks to use, and a batch


def over_texts(
    blocks: Blocks,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    work: Work[T],
    *,
    threads: int = 1,
    limit: int | None = None,
    batch_size: int = CHUNK_TEXTS,
    told: Callable[[Sequence[int], int], None] = lambda lengths, first: None,
) -> Iterator[tuple[slice, T]]:
    """Tokenise texts and do some work on each batch of them; yields which texts, and what the work gave, in order.

    Args:
        blocks: of a backend; the work gets blocks with memory of their own.
        tokenizer: of the model.
        texts: each behind its prompt.
        work: on a batch; several threads do it at once.
        threads: how many.
        limit: tokens at which a text is cut; None takes the tokenizer's own.
        batch_size: most texts of a batch.
        told: is called with the lengths in tokens of some texts before they were cut, and the first text's number.
    """

    def one(place: slice, helpers: int = 0) -> list[tuple[slice, T]]:
        tokens = sum(len(text) for text in texts[place]) // CHARACTERS
        with _ready(blocks, tokens, helpers) as inside:  # helpers wake up while the texts are tokenised
            tokenized = tokenizer.encode(texts[place], limit)
            told(tokenized.lengths, place.start)
            done = []
            for part in chunks([len(ids) for ids in tokenized.ids], batch_size, CHUNK_TOKENS):
                batch = pack(tokenized.ids[part], tokenizer.prefix, tokenizer.suffix)
                done.append((slice(place.start + part.start, place.start + part.stop), work(inside, batch)))
            return done

    places = list(chunks([len(text) for text in texts], batch_size, CHUNK_TOKENS * CHARACTERS))
    with blocks.session():
        for results in in_order(one, places, threads):
            yield from results


def over_batches(blocks: Blocks, batches: Sequence[PackedBatch], work: Work[T], threads: int = 1) -> Iterator[T]:
    """Do some work on each of some batches; yields what it gave, in order."""

    def one(batch: PackedBatch, helpers: int = 0) -> T:
        with _ready(blocks, len(batch.ids), helpers) as inside:
            return work(inside, batch)

    with blocks.session():
        yield from in_order(one, batches, threads)


@contextmanager
def _ready(blocks: Blocks, tokens: int, helpers: int) -> Iterator[Blocks]:
    """Blocks for a chunk of work. NumPy keeps quiet about overflows: `forward` reports them, with their place."""
    with np.errstate(all="ignore"), blocks.chunk(tokens, helpers) as inside:
        yield inside


def by_length(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[NDArray[np.int64], PackedBatch]]:
    """Tokenised texts in batches of about equal length: which texts [B], and their tokens."""
    ids = tokenizer.encode(texts).ids
    lengths = np.array([len(text) for text in ids], np.int64)
    order = np.argsort(lengths, kind="stable")
    parts = (order[part] for part in chunks(lengths[order].tolist(), CHUNK_TEXTS, CHUNK_TOKENS))
    return [(part, pack([ids[i] for i in part], tokenizer.prefix, tokenizer.suffix)) for part in parts]
