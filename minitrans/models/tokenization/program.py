"""``tokenizer.json`` is a small program, and is run only where it is bounded.

It says what is normalised, split and put around a text. Its steps have to be known, few, and unable to make a text
grow much: a few lines that are none of these would take hours or all memory, while loading or at some later text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from minitrans.contents import word_set
from minitrans.errors import TokenizerError, UnsupportedModelError

MOST_ADDED_TOKENS = 100_000
MOST_ADDED_CHARACTERS = 1_000_000  # of all added tokens together; the search for them has a state for each
MOST_STEPS = 16  # of the normaliser, and of each of the other parts; honest ones have up to four
MOST_GROWTH = 16  # times as long as the text
MOST_AROUND = 64  # tokens that a template puts around a text, or a step into it
MOST_PIECE_BYTES = 4_000_000  # of all pieces of Unigram together, which takes up to 350 bytes for each; honest: 2.7 MB
MOST_CHARACTERS_PER_WORD = 1000  # of WordPiece, whose time grows with their square; BERT's is 100
MOST_IN_PATTERN = 200  # characters

_NORMALIZERS = word_set(
    "BertNormalizer Sequence Lowercase NFC NFD NFKC NFKD Nmt Strip StripAccents Precompiled Replace Prepend"
)
_PRE_TOKENIZERS = word_set(
    "BertPreTokenizer Sequence Whitespace WhitespaceSplit Punctuation Digits Metaspace ByteLevel Split",
    "CharDelimiterSplit UnicodeScripts",
)
_POST_PROCESSORS = word_set("TemplateProcessing BertProcessing RobertaProcessing ByteLevel Sequence")
_MODELS = ("WordPiece", "WordLevel", "Unigram", "BPE", None)  # the oldest files do not say which
# One character or class after another; only the last may be repeated: matching takes time in proportion to the text.
# None of them matches without taking a character, as anchors do: those could double a text in each step.
_PLAIN_REGEX = re.compile(
    r"\^?(?:\\[pP]\{\^?\w+\}|\\[^\dAbBGKyYzZ]|\[(?:\\.|[^\[\]\\])+\]|[^\\()\[\]{}|*+?^$])+"
    r"(?:\+|\{[1-9]\d?(?:,\d{0,2})?\})?"
)
# One character may become many, but what it became stays: only a step between two of these can start it again.
_FORMS = word_set("NFC NFD NFKC NFKD Precompiled")
_GROWTH_OF_FORMS = 4.0  # of each after the first


def check_program(content: Mapping[str, Any], file: str, remedy: str) -> None:
    """Refuse what a tokenizer.json asks for where it is not known, or takes no bounded time and room.

    Args:
        content: the file's object, with its model an object.
        file: its path, for the message.
        remedy: what to do about a step or model that is not known here.

    Raises:
        UnsupportedModelError: a step, pattern, template or model that is not run.
        TokenizerError: a part that is broken.
    """
    growth = 1.0
    forms = 0
    for part, inner, known in (
        ("normalizer", "normalizers", _NORMALIZERS),
        ("pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS),
        ("post_processor", "processors", _POST_PROCESSORS),
    ):
        steps = list(islice(_steps(content.get(part), inner), MOST_STEPS + 1))
        _at_most(MOST_STEPS, len(steps), f"{file}: the number of steps of {part}")
        for step in steps:
            kind = step.get("type") if isinstance(step, dict) else step
            if not isinstance(kind, str) or kind not in known:
                raise UnsupportedModelError(
                    f"{file}: a step of {part} is {kind!r:.100}, wanted one of {', '.join(sorted(known))}; {remedy}"
                )
            growth *= _growth(step, kind, f"{file}: {kind} of {part}")
            forms += kind in _FORMS
    growth *= _GROWTH_OF_FORMS ** max(0, forms - 1)
    _at_most(MOST_GROWTH, growth, f"{file}: the factor by which normalizer and pre_tokenizer can lengthen a text")
    model = content["model"]
    kind = model.get("type")
    if kind not in _MODELS:
        raise TokenizerError(
            f"{file} is not a tokenizer that can be read: its model is {kind!r:.100}, wanted WordPiece, WordLevel, "
            f"Unigram or BPE; {remedy}"
        )
    pieces = vocabulary if isinstance(vocabulary := model.get("vocab"), list) else []
    named = [str(piece[0]) for piece in pieces if isinstance(piece, list) and piece]
    _at_most(MOST_PIECE_BYTES, len("".join(named).encode(errors="replace")), f"{file}: the size of its pieces in bytes")
    letters = model.get("max_input_chars_per_word", 0)
    if not isinstance(letters, int) or letters > MOST_CHARACTERS_PER_WORD:
        raise UnsupportedModelError(
            f"{file}: max_input_chars_per_word is {letters!r:.50}, wanted at most {MOST_CHARACTERS_PER_WORD}"
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):  # tried with each piece of each word
        _at_most(MOST_AROUND, len(str(model.get(key))), f"{file}: the length of {key}")
    tokens = content.get("added_tokens") or []
    if not isinstance(tokens, list) or len(tokens) > MOST_ADDED_TOKENS:
        raise TokenizerError(f"{file}: added_tokens is {tokens!r:.50}, wanted a list of at most {MOST_ADDED_TOKENS}")
    contents = (token.get("content") for token in tokens if isinstance(token, dict))
    check_added_characters((content for content in contents if isinstance(content, str)), file)


def _at_most(most: int, seen: float, what: str) -> None:
    if seen > most:
        raise UnsupportedModelError(f"{what} is {seen}, wanted at most {most}")


def check_added_characters(contents: Iterable[str], file: str) -> None:
    """TokenizerError if the added tokens are too long together."""
    if (count := sum(map(len, contents))) > MOST_ADDED_CHARACTERS:
        raise TokenizerError(
            f"{file}: the added tokens have {count} characters together, wanted at most {MOST_ADDED_CHARACTERS}"
        )


def _steps(step: object, inner: str, depth: int = 0) -> Iterator[Any]:
    """The steps of a part, those of a sequence one after another."""
    if step is None:
        return
    yield step
    if isinstance(step, dict) and step.get("type") == "Sequence" and depth < MOST_STEPS:
        below = step.get(inner)
        for each in below if isinstance(below, list) else ():
            yield from _steps(each, inner, depth + 1)


def _growth(step: dict[str, Any], kind: str, source: str) -> float:
    """How many times as long a text can become in a step."""
    if kind == "Replace":
        content = step.get("content")
        shortest = _shortest_match(step.get("pattern"), source)
        return max(1.0, len(content) / shortest) if isinstance(content, str) else 1.0
    if kind == "Split":
        _shortest_match(step.get("pattern"), source)
    elif kind == "Prepend":
        _at_most(MOST_AROUND, len(str(step.get("prepend"))), f"{source}: the length of what it prepends")
    elif kind == "Precompiled":
        _check_charsmap(step.get("precompiled_charsmap"), source)
    elif kind == "TemplateProcessing":
        _check_template(step, source)
    elif kind in ("Metaspace", "ByteLevel"):
        return 2.0
    return 1.0


def _shortest_match(pattern: object, source: str) -> int:
    """The fewest characters that a pattern matches."""
    pair = list(pattern.items()) if isinstance(pattern, dict) else []
    kind, text = pair[0] if len(pair) == 1 else ("", "")
    if kind == "String" and isinstance(text, str) and text:
        return len(text)
    if kind == "Regex" and isinstance(text, str) and len(text) <= MOST_IN_PATTERN and _PLAIN_REGEX.fullmatch(text):
        return 1
    raise UnsupportedModelError(
        f"{source} has the pattern {pattern!r:.100}, wanted text, or characters and classes of which only the last is "
        "repeated"
    )


def _check_charsmap(charsmap: object, source: str) -> None:
    """The pieces of text of a SentencePiece map lie behind its trie, each ended by a zero byte."""
    if charsmap is None:
        return
    try:
        data = base64.b64decode(charsmap if isinstance(charsmap, str) else "", validate=True)
    except binascii.Error as error:
        raise TokenizerError(f"{source} is not base64 ({error}); fetch the model again") from error
    pieces = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
    _at_most(MOST_AROUND, max(map(len, pieces)), f"{source}: the number of bytes in place of a character")


def _check_template(step: Mapping[str, Any], source: str) -> None:
    single, special = step.get("single"), step.get("special_tokens")
    pieces = single if isinstance(single, list) else []
    if sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces) != 1 or len(pieces) > MOST_AROUND:
        raise UnsupportedModelError(
            f"{source}: the template of a single text has {len(pieces)} pieces, wanted the text once and at most "
            f"{MOST_AROUND} in all"
        )
    for name, token in special.items() if isinstance(special, dict) else ():
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or len(ids) > MOST_AROUND:
            raise UnsupportedModelError(
                f"{source}: {name!r:.50} stands for {ids!r:.50}, wanted up to {MOST_AROUND} ids"
            )
