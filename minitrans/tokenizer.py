"""Text -> token ids, on the `tokenizers` library. Truncation is counted, never silent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitrans.config import EncoderConfig, model_file, optional_file, read_json
from minitrans.errors import ConfigError, InputError, ModelNotFoundError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as FastTokenizer

# Half of a surrogate pair alone is no character and has no UTF-8 form; the usual replacement stands in for it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
        lowercase: lower-case the text first (``do_lower_case`` of sentence_bert_config.json).

    Raises:
        TokenizerError: an id at or above ``vocab_size``, or no room beside the special tokens.
    """

    def __init__(self, fast: FastTokenizer, vocab_size: int, max_seq_length: int, lowercase: bool = False) -> None:
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        around = self._encoding("a")  # the template of the special tokens has ids of its own
        largest = max([*fast.get_vocab(with_added_tokens=True).values(), *around.ids], default=-1)
        if largest >= vocab_size:
            raise TokenizerError(
                f"the tokenizer has id {largest}, but the model's vocabulary ends at {vocab_size - 1}; tokenizer and "
                "weights belong to different models"
            )
        self._lowercase = lowercase
        self.prefix, self.suffix = _special_tokens(around.special_tokens_mask)
        self.least = self.prefix + self.suffix + 1
        self.max_seq_length = max_seq_length

    @classmethod
    def from_folder(cls, folder: Path, config: EncoderConfig) -> Tokenizer:
        """Read ``tokenizer.json``, or ``vocab.txt`` of an older WordPiece model, and the limits beside it."""
        settings = _optional_json(folder, "sentence_bert_config.json")
        tokenizer_config = _optional_json(folder, "tokenizer_config.json")
        fast = _read(folder, tokenizer_config)
        lowercase = settings.get("do_lower_case", False) is True
        limit = _max_seq_length(folder, settings, tokenizer_config, config)
        try:
            return cls(fast, config.vocab_size, limit, lowercase)
        except TokenizerError as error:
            raise TokenizerError(f"{folder}: {error}") from None

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

    def encode(self, texts: Sequence[str]) -> Tokenized:
        """Token ids of each text; a text that is too long loses its end, its special tokens stay.

        Texts are taken one by one: the library's own thread pool would print a warning in a forked child.
        """
        ids, lengths = [], []
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                text = _LONE_SURROGATE.sub("\ufffd", text)
            whole = self._encoding(text.lower() if self._lowercase else text).ids
            lengths.append(len(whole))
            ids.append(self._cut(whole))
        return Tokenized(ids, lengths)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The token strings of some ids."""
        return [self._fast.id_to_token(i) or f"[{i}]" for i in ids]

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self._max_seq_length:
            return ids
        return ids[: self._max_seq_length - self.suffix] + ids[len(ids) - self.suffix :]

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._fast.encode(text)
        except Exception as error:  # the library raises bare Exception, as for a vocabulary without [UNK]
            raise TokenizerError(
                f"the tokenizer cannot encode {text!r:.50} ({error}); fetch the model again"
            ) from error

    def __reduce__(self) -> Any:
        return _rebuild, (self._fast.to_str(), self._max_seq_length, self._lowercase)


def _special_tokens(mask: list[int]) -> tuple[int, int]:
    """How many special tokens the template puts before and behind a text."""
    if 0 not in mask:
        return len(mask), 0
    return mask.index(0), mask[::-1].index(0)


def _rebuild(text: str, max_seq_length: int, lowercase: bool) -> Tokenizer:
    from tokenizers import Tokenizer as FastTokenizer

    return Tokenizer(FastTokenizer.from_str(text), 2**31, max_seq_length, lowercase)


def _optional_json(folder: Path, name: str) -> dict[str, Any]:
    file = optional_file(folder, name)
    return {} if file is None else read_json(file)


def _read(folder: Path, settings: dict[str, Any]) -> FastTokenizer:
    try:
        file = model_file(folder, "tokenizer.json")
    except ModelNotFoundError:
        return _read_vocabulary(folder, settings)
    from tokenizers import Tokenizer as FastTokenizer

    try:
        return FastTokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{file} is not a tokenizer that can be read ({error}); fetch the model again") from error


def _read_vocabulary(folder: Path, settings: dict[str, Any]) -> FastTokenizer:
    try:
        file = model_file(folder, "vocab.txt")
    except ModelNotFoundError:
        raise ModelNotFoundError(
            f"{folder} holds neither tokenizer.json nor vocab.txt; fetch the model again"
        ) from None
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

    try:
        tokens = file.read_text(encoding="utf-8").rstrip("\n").split("\n")  # not splitlines: U+2028 may be a token
        vocabulary = {token: i for i, token in enumerate(tokens)}
        wordpiece = BertWordPieceTokenizer(
            vocabulary,
            lowercase=settings.get("do_lower_case", True) is True,
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True) is True,
        )
    except Exception as error:
        raise TokenizerError(f"{file} is not a WordPiece vocabulary ({error}); fetch the model again") from error
    fast: FastTokenizer = wordpiece._tokenizer  # the wrapper hides special_tokens_mask and to_str
    return fast


def _max_seq_length(
    folder: Path, settings: dict[str, Any], tokenizer_config: dict[str, Any], config: EncoderConfig
) -> int:
    """sentence_bert_config.json decides; else tokenizer_config.json; never more than there are positions."""
    limit = config.max_position_embeddings
    for file, value in (
        ("sentence_bert_config.json", settings.get("max_seq_length")),
        ("tokenizer_config.json", tokenizer_config.get("model_max_length")),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise ConfigError(f"{folder / file}: the longest text is {value!r}, wanted a positive number of tokens")
        return int(min(value, limit))  # some files say 1e30 for "no limit"
    return limit


def check_max_seq_length(value: object, least: int, config: EncoderConfig) -> int:
    """Validate a ``max_seq_length`` given by the user.

    Raises:
        InputError: not an integer, no room beside the special tokens, or more than the model has positions.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= config.max_position_embeddings:
        raise InputError(
            f"max_seq_length is {value!r}, wanted an integer from {least} (one token and the special ones) to "
            f"{config.max_position_embeddings} (the positions of this model)"
        )
    return value
