"""The texts that are embedded: the BANKING77 test set, or texts of the same lengths; texts of exact lengths."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.timing import BenchmarkError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# BANKING77's test set by length: tokens of all-MiniLM-L6-v2 with [CLS] and [SEP] -> texts.
# fmt: off
BANKING77_LENGTHS = {
    4: 1, 5: 4, 6: 25, 7: 62, 8: 138, 9: 230, 10: 304, 11: 316, 12: 320, 13: 276, 14: 259, 15: 222, 16: 157, 17: 119,
    18: 102, 19: 78, 20: 51, 21: 38, 22: 36, 23: 37, 24: 33, 25: 19, 26: 18, 27: 25, 28: 19, 29: 16, 30: 13, 31: 11,
    32: 17, 33: 11, 34: 10, 35: 12, 36: 12, 37: 3, 38: 9, 39: 7, 40: 5, 41: 7, 42: 4, 43: 3, 44: 1, 45: 10, 46: 8,
    47: 3, 48: 5, 50: 2, 51: 3, 52: 1, 53: 1, 54: 2, 55: 2, 56: 1, 57: 1, 58: 2, 59: 1, 60: 1, 62: 1, 64: 1, 69: 1,
    71: 1, 76: 1, 81: 1, 82: 1,
}
# fmt: on
BLOCK = 64  # the largest batch: consecutive texts of a sample must fill it


@dataclass(frozen=True)
class Corpus:
    """Texts, their tokens, and where they come from."""

    texts: list[str]
    lengths: list[int]  # special tokens included
    origin: str

    @classmethod
    def of(cls, texts: list[str], origin: str, tokenizer: Tokenizer) -> Corpus:
        """Texts, and their lengths by this tokenizer."""
        return cls(texts, token_counts(texts, tokenizer), origin)

    def part(self, count: int, tokenizer: Tokenizer) -> Corpus:
        """About so many of the texts, or all if there are fewer: see ``sample``."""
        return Corpus.of(sample(self.texts, self.lengths, count), self.origin, tokenizer)


def read_tokenizer(folder: Path) -> Tokenizer:
    """A model's tokenizer.json with its truncation and padding switched off."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_counts(texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each text, special tokens included."""
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def banking77(tokenizer: Tokenizer) -> Corpus:
    """The test set, or, where the data sets are absent, generated texts of the same lengths.

    The folder of the data sets is the environment's MINITRANS_DATA, or ../shared/data beside the repository.
    """
    from minitrans.data.files import read_examples

    folder = Path(os.environ.get("MINITRANS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    file = folder / "banking77" / "test.csv"
    if file.is_file():
        return Corpus.of(read_examples(file).texts, "the BANKING77 test set", tokenizer)
    lengths = [length for length, count in BANKING77_LENGTHS.items() for _ in range(count)]
    order = np.random.default_rng(77).permutation(len(lengths))
    texts = generate([lengths[i] for i in order], tokenizer)
    return Corpus.of(texts, f"texts of the lengths of BANKING77 ({file} is missing)", tokenizer)


def generate(lengths: Sequence[int], tokenizer: Tokenizer, seed: int = 0) -> list[str]:
    """Texts of exactly so many tokens each, special tokens included: words drawn from the vocabulary.

    Raises:
        BenchmarkError: no room beside the special tokens, or the vocabulary has too few whole words.
    """
    special = len(tokenizer.encode("").ids)
    if least := [length for length in lengths if length <= special]:
        raise BenchmarkError(f"a text of {least[0]} tokens was asked for, wanted more than the {special} special ones")
    candidates = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and word.islower())
    words = [
        word
        for word, count in zip(candidates, token_counts(candidates, tokenizer), strict=True)
        if count == special + 1 and len(word) > 2
    ]
    if len(words) < 10:
        raise BenchmarkError(f"the vocabulary has {len(words)} whole words, wanted at least 10 to make texts from")
    random = np.random.default_rng(seed)
    texts = [" ".join(words[i] for i in random.integers(len(words), size=length - special)) for length in lengths]
    if token_counts(texts, tokenizer) != list(lengths):
        raise BenchmarkError("generated texts do not have the lengths asked for: this tokenizer joins words")
    return texts


def sample(texts: Sequence[str], lengths: Sequence[int], count: int) -> list[str]:
    """About so many of the texts, in random order: blocks that stand side by side when all are sorted by length.

    A batch of them is padded as little as it is among all texts. Were texts taken one by one, their neighbours would
    differ more in length, to the disadvantage of whoever pads.
    """
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    blocks = math.ceil(count / BLOCK)
    if blocks * BLOCK >= len(order):
        return list(texts)
    middles = (np.arange(blocks) + 0.5) / blocks * len(order)
    chosen = [i for middle in middles for i in order[round(middle) - BLOCK // 2 :][:BLOCK]]
    return [texts[i] for i in np.random.default_rng(0).permutation(chosen)]
