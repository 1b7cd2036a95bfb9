"""The texts that are embedded: the BANKING77 test set, or texts of the same lengths; texts of exact lengths."""

from __future__ import annotations

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
    """Texts, and where they come from."""

    texts: list[str]
    origin: str

    def every(self, step: int) -> Corpus:
        """Every step-th text: a smaller corpus of much the same lengths."""
        return self if step == 1 else Corpus(self.texts[::step], f"every {step}th of {self.origin}")


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
    from minitrans.datasets import read_examples

    folder = Path(os.environ.get("MINITRANS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    file = folder / "banking77" / "test.csv"
    if file.is_file():
        return Corpus(read_examples(file).texts, "the BANKING77 test set")
    lengths = [length for length, count in BANKING77_LENGTHS.items() for _ in range(count)]
    order = np.random.default_rng(77).permutation(len(lengths))
    return Corpus(
        generate([lengths[i] for i in order], tokenizer), f"texts of the lengths of BANKING77 ({file} is missing)"
    )


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


def sample(texts: Sequence[str], lengths: Sequence[int], blocks: int) -> list[str]:
    """Some blocks of texts that stand side by side when sorted by length, from the short to the long.

    A batch of them is padded as it is among all texts; were texts taken one by one, large batches would look worse.
    """
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    starts = range(0, len(order), BLOCK)
    if len(starts) <= blocks:
        return list(texts)
    chosen = np.linspace(0, len(starts) - 1, blocks).round().astype(int)
    return [texts[i] for block in chosen for i in order[starts[block] : starts[block] + BLOCK]]
