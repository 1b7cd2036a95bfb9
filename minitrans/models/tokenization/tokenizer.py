"""Text -> token ids, on the `tokenizers` library. Truncation is counted, never silent."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitrans.arguments import as_int
from minitrans.errors import ConfigError, InputError, TokenizerError
from minitrans.models.config import EncoderConfig
from minitrans.models.folder import ModelFolder
from minitrans.models.tokenization.file import added_without_row, library_errors, lowercase_first, read_tokenizer
from minitrans.words import without_surrogates

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as FastTokenizer

YIELD = 8  # texts between two chances for other threads; sleeping for no time takes up to 0.1 ms


@dataclass(frozen=True)
class Tokenized:
    """Token ids of some texts, and what truncation took.

    ``lengths`` are the full lengths in tokens, special tokens included, before truncation.
    """

    ids: list[list[int]]
    lengths: list[int]


class Tokenizer:
    """A model's own tokenizer, with the truncation and padding of its file switched off.

    Args:
        fast: the `tokenizers` object.
        vocab_size: rows of the word embedding; every id has to be below it.
        max_seq_length: texts are cut to this many tokens, special tokens included.
        truncation_side: which end a text that is too long loses, "right" or "left".

    Raises:
        TokenizerError: an id at or above ``vocab_size``, or no room beside the special tokens.
    """

    def __init__(
        self,
        fast: FastTokenizer,
        vocab_size: int,
        max_seq_length: int,
        truncation_side: str = "right",
    ) -> None:
        fast.no_truncation()
        fast.no_padding()
        if getattr(fast.model, "dropout", None):
            fast.model.dropout = None  # a training aid that draws another split each time
        self._fast = fast
        vocabulary = fast.get_vocab(with_added_tokens=True)
        vocabulary.pop("", None)  # an empty line of vocab.txt: no text has it
        around = self._probe(vocabulary)  # the template of the special tokens has ids of its own
        largest = max([*vocabulary.values(), *around.ids], default=-1)
        if largest >= vocab_size:
            token = fast.id_to_token(largest)
            raise TokenizerError(
                added_without_row(token, largest, vocab_size)
                if largest in fast.get_added_tokens_decoder()
                else f"the tokenizer has id {largest}, but the model's vocabulary ends at {vocab_size - 1}: it has no "
                f"row for {token!r:.50}; tokenizer and weights belong to different models"
            )
        if any(around.type_ids):
            raise TokenizerError(f"the template gives token types {sorted({*around.type_ids})}, wanted 0 throughout")
        self._truncation_side = truncation_side
        mask = around.special_tokens_mask
        self.prefix, self.suffix = mask.index(0), mask[::-1].index(0)  # special tokens before and behind a text
        self.least = self.prefix + self.suffix + 1
        self.max_seq_length = max_seq_length

    @classmethod
    def from_folder(cls, folder: Path | ModelFolder, config: EncoderConfig) -> Tokenizer:
        """Read ``tokenizer.json``, or ``vocab.txt`` of an older WordPiece model, and the settings beside it.

        Raises:
            ModelError: see minitrans.models.tokenization.file.read_tokenizer; or a limit is broken, or leaves no room.
            ModelNotFoundError: there is neither.
        """
        there = ModelFolder.open(folder)
        fast = read_tokenizer(there, config.vocab_size)
        name, settings = there.sentence_settings()
        lower = settings.get("do_lower_case")
        if lower not in (None, False, True) or isinstance(lower, int) != isinstance(lower, bool):
            raise ConfigError(f"{there.file(name)}: do_lower_case is {lower!r:.50}, wanted true or false")
        if lower:
            lowercase_first(fast)
        side = there.settings("tokenizer_config.json").get("truncation_side", "right")
        if side not in ("right", "left"):
            place = there.place("tokenizer_config.json")
            raise ConfigError(f"{place}: truncation_side is {side!r}, wanted 'right' or 'left'")
        limit = _max_seq_length(there, config)
        try:
            return cls(fast, config.vocab_size, limit, side)
        except TokenizerError as error:
            raise TokenizerError(f"{there.path}: {error}") from None

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special tokens included."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if value < self.least:
            raise TokenizerError(
                f"max_seq_length is {value}, wanted at least {self.least}: one token and the special ones"
            )
        self._max_seq_length = value

    def encode(self, texts: Sequence[str], max_seq_length: int | None = None) -> Tokenized:
        """Token ids of each text; a text that is too long loses its end, its special tokens stay.

        Args:
            texts: str, each.
            max_seq_length: in place of the tokenizer's own.

        Texts are taken one by one: the library's own thread pool would print a warning in a forked child.
        """
        limit = self._max_seq_length if max_seq_length is None else max_seq_length
        ids: list[list[int]] = []
        lengths: list[int] = []
        for text in texts:
            if ids and len(ids) % YIELD == 0:
                time.sleep(0)  # other threads wait for Python's lock, which the library holds for the time of a text
            whole = self._encoding(without_surrogates(text)).ids
            lengths.append(len(whole))
            ids.append(self._cut(whole, limit))
        return Tokenized(ids, lengths)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The token strings of some ids."""
        return [self._fast.id_to_token(i) or f"[{i}]" for i in ids]

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        if len(ids) <= limit:
            return ids
        room = limit - self.prefix - self.suffix
        end = len(ids) - self.suffix
        content = ids[self.prefix : self.prefix + room] if self._truncation_side == "right" else ids[end - room : end]
        return ids[: self.prefix] + content + ids[end:]

    def _encoding(self, text: str) -> Encoding:
        with library_errors(lambda: f"the tokenizer cannot encode {text!r:.50}"):
            return self._fast.encode(text)

    def _probe(self, vocabulary: Mapping[str, int]) -> Encoding:
        """A short text with its special tokens: the first that gives a token at all."""
        for text in ("a", *islice(vocabulary, 1000)):
            encoding = self._encoding(text)
            if 0 in encoding.special_tokens_mask:
                return encoding
        raise TokenizerError("the tokenizer gives no token for any text tried, wanted one; fetch the model again")

    @property
    def sha256(self) -> str:
        """Digest of all that decides the ids of a text, as the library writes it down; the files do not matter."""
        parts = (self._fast_sha256, self._max_seq_length, self._truncation_side)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @cached_property
    def _fast_sha256(self) -> str:
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def __reduce__(self) -> Any:
        return _rebuild, (self._fast.to_str(), self._max_seq_length, self._truncation_side)


def _rebuild(text: str, *options: Any) -> Tokenizer:
    from tokenizers import Tokenizer as FastTokenizer

    return Tokenizer(FastTokenizer.from_str(text), 2**31, *options)


def _max_seq_length(folder: ModelFolder, config: EncoderConfig) -> int:
    """What sentence_bert_config.json says; else tokenizer_config.json; never more than there are positions."""
    limit = config.max_position_embeddings
    sentence_config, settings = folder.sentence_settings()
    tokenizer_config = folder.settings("tokenizer_config.json")
    for file, value in (
        (sentence_config, settings.get("max_seq_length")),
        ("tokenizer_config.json", tokenizer_config.get("model_max_length", tokenizer_config.get("max_len"))),
    ):
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (value >= 1 and (value == math.inf or value % 1 == 0)):
            raise ConfigError(
                f"{folder.place(file)}: the longest text is {value!r}, wanted a positive number of whole tokens"
            )
        return int(min(value, limit))  # some files say 1e30 for "no limit"
    return limit


def check_max_seq_length(value: object, least: int, config: EncoderConfig) -> int:
    """Validate a ``max_seq_length`` given by the user.

    Raises:
        InputError: not an integer, no room beside the special tokens, or more than the model has positions.
    """
    limit = as_int(value)
    if limit is None or not least <= limit <= config.max_position_embeddings:
        raise InputError(
            f"max_seq_length is {value!r:.100}, wanted an integer from {least} (one token and the special ones) to "
            f"{config.max_position_embeddings} (the positions of this model)"
        )
    return limit
