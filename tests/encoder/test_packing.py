"""Packed batches and chunks: every row and every text is there once, in order, within the limits."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minitrans.encoder.packing import chunks, pack, segments

TOKEN_IDS = st.lists(st.lists(st.integers(0, 40_000), max_size=20), max_size=8)


@given(TOKEN_IDS)
def test_pack_and_segments_give_the_texts_back(token_ids):
    batch = pack(token_ids)
    assert [batch.ids[text].tolist() for text in segments(batch.offsets)] == token_ids
    assert batch.ids.dtype == batch.offsets.dtype == np.int64
    assert len(batch.offsets) == len(token_ids) + 1
    assert batch.offsets[-1] == len(batch.ids)


def test_pack_of_nothing():
    batch = pack([])
    assert (batch.ids.tolist(), batch.offsets.tolist()) == ([], [0])
    assert list(segments(batch.offsets)) == []


def test_special_tokens_around_a_text():
    assert (pack([[1]]).prefix, pack([[1]]).suffix) == (1, 1)
    assert (pack([[1]], 0, 2).prefix, pack([[1]], 0, 2).suffix) == (0, 2)


LENGTHS = st.lists(st.integers(0, 60), max_size=40)


@given(LENGTHS, st.integers(1, 12), st.integers(1, 100))
def test_chunks(lengths, max_texts, max_tokens):
    cut = list(chunks(lengths, max_texts, max_tokens))
    assert [i for chunk in cut for i in range(chunk.start, chunk.stop)] == list(range(len(lengths)))
    for chunk in cut:
        assert 1 <= chunk.stop - chunk.start <= max_texts
        assert sum(lengths[chunk]) <= max_tokens or chunk.stop - chunk.start == 1
    for chunk, following in pairwise(cut):  # as few as can be: the next text would not have fitted
        full = chunk.stop - chunk.start == max_texts
        assert full or sum(lengths[chunk]) + lengths[following.start] > max_tokens


def test_chunks_by_hand():
    def cut(*arguments):
        return [(chunk.start, chunk.stop) for chunk in chunks(*arguments)]

    assert cut([], 4, 10) == []
    assert cut([5, 5, 1, 9, 1], 4, 10) == [(0, 2), (2, 4), (4, 5)]
    assert cut([50], 4, 10) == [(0, 1)]
    assert cut([1, 50, 1], 4, 10) == [(0, 1), (1, 2), (2, 3)]
    assert cut([1] * 5, 2, 10) == [(0, 2), (2, 4), (4, 5)]
    assert cut([0, 0, 0], 9, 1) == [(0, 3)]
