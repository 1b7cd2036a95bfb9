"""Batches: every text once, results in order, the same work whether texts come as strings or packed."""

from itertools import chain

import numpy as np
import pytest

from minitrans import SentenceEncoder
from minitrans.encoder.forward import forward
from minitrans.encoder.packing import segments
from minitrans.sentences import batches
from minitrans.sentences.batches import by_length, over_batches, over_texts

TEXTS = ["help", "", "where is my card", "the card is late", "please cancel the order that i made " * 9, "hi"] * 4


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain, threads=1)


def test_batches_by_length_hold_every_text_once(encoder):
    found = by_length(encoder.tokenizer, TEXTS)
    ids = encoder.tokenizer.encode(TEXTS).ids
    assert sorted(np.concatenate([which for which, _ in found]).tolist()) == list(range(len(TEXTS)))
    for which, batch in found:
        for place, text in enumerate(which):
            assert batch.ids[batch.offsets[place] : batch.offsets[place + 1]].tolist() == ids[text]
        assert (batch.prefix, batch.suffix) == (1, 1)
    lengths = [len(ids[text]) for which, _ in found for text in which]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(encoder, threads):
    packed = [batch for _, batch in by_length(encoder.tokenizer, TEXTS)] * 4
    wanted = [batch.ids.sum() for batch in packed]
    assert list(over_batches(encoder.blocks, packed, lambda _, batch: batch.ids.sum(), threads)) == wanted
    done = list(over_texts(encoder.blocks, encoder.tokenizer, TEXTS, lambda _, batch: batch.ids, threads=threads))
    assert [place.start for place, _ in done] == [0, *(place.stop for place, _ in done[:-1])]
    assert np.concatenate([ids for _, ids in done]).tolist() == [*chain(*encoder.tokenizer.encode(TEXTS).ids)]


def test_texts_and_packed_batches_give_the_same_bits(encoder):
    rows = {}
    for place, encoded in over_texts(encoder.blocks, encoder.tokenizer, TEXTS, forward, batch_size=5):
        for text, part in enumerate(segments(encoded.offsets), place.start):
            rows[text] = encoded.hidden[part]
    found = by_length(encoder.tokenizer, TEXTS)
    for (which, _), encoded in zip(found, over_batches(encoder.blocks, [b for _, b in found], forward), strict=True):
        for text, part in zip(which, segments(encoded.offsets), strict=True):
            assert np.array_equal(rows[text], encoded.hidden[part])


def test_a_batch_has_few_texts_and_few_tokens(encoder, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK_TOKENS", 40)
    seen = []
    work = lambda _, batch: seen.append(np.diff(batch.offsets))  # noqa: E731
    list(over_texts(encoder.blocks, encoder.tokenizer, TEXTS, work, batch_size=4))
    assert all(len(lengths) <= 4 and (lengths.sum() <= 40 or len(lengths) == 1) for lengths in seen)


def test_lengths_are_told_before_texts_are_cut(encoder):
    told = {}

    def tell(lengths, first):
        told.update(enumerate(lengths, first))

    done = over_texts(encoder.blocks, encoder.tokenizer, TEXTS, lambda _, batch: batch, limit=5, told=tell)
    assert max(np.diff(batch.offsets).max() for _, batch in done) == 5
    assert [told[i] for i in range(len(TEXTS))] == encoder.tokenizer.encode(TEXTS).lengths
