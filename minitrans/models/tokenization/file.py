"""The tokenizer of a model folder, built from its files as transformers 5 does, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitrans.contents import TOKEN_FILES, is_token_key, lfs_pointer
from minitrans.errors import ConfigError, ModelNotFoundError, TokenizerError, UnsupportedModelError
from minitrans.models.folder import ModelFolder
from minitrans.models.tokenization.program import MOST_ADDED_TOKENS, check_added_characters, check_program

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as FastTokenizer

FILE_LIMIT = 64 * 1024 * 1024  # bytes; that of a vocabulary of 250,000 pieces has 17 MB

# What transformers 5 reads as BERT's tokenizer: the vocabulary, and all else by BERT's own rules.
BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ConvBertTokenizer", "MobileBertTokenizer", "ElectraTokenizer")
# What it takes from tokenizer.json as it stands.
FILE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend", "XLMRobertaTokenizer", "HerbertTokenizer")

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_BERT_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
_BLANKS = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


@contextmanager
def library_errors(what: Callable[[], str], remedy: str = "fetch the model again") -> Iterator[None]:
    """Turn whatever the library raises into a TokenizerError: plain exceptions, and panics of its Rust code.

    Args:
        what: puts what was tried into words; called only for an error, as this runs for every text.
        remedy: what to do about it.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, TokenizerError):
        raise
    except BaseException as error:
        raise TokenizerError(f"{what()} ({error}); {remedy}") from error


@dataclass(frozen=True)
class Added:
    """The tokens that the files name besides the vocabulary, in the order in which transformers adds them.

    Attributes:
        tokens: each with the id that the files give it, or None.
        named: what each special token is, by its name: "cls_token" and so on.
        implied: those of them that are BERT's usual ones, which it has whether a file names them or not.
        whole: whether the files list every added token, those of tokenizer.json included.
    """

    tokens: list[tuple[AddedToken, int | None]] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    implied: frozenset[str] = frozenset()
    whole: bool = False


def read_tokenizer(folder: ModelFolder, rows: int) -> FastTokenizer:
    """Build the tokenizer of a folder.

    Args:
        folder: the model's.
        rows: of the word embedding; an added token without a row is refused by name.

    Raises:
        ModelNotFoundError: there is none.
        UnsupportedModelError: it is of another class, or asks for steps that are not run.
        TokenizerError: it is broken, contradicts itself, or has an id without a row.
        ConfigError: a setting beside it is broken.
    """
    settings = folder.settings("tokenizer_config.json")
    kind = _tokenizer_class(folder, settings)
    bert = kind in BERT_CLASSES
    added = _added_tokens(folder, settings, bert)
    if folder.has("tokenizer.json"):
        file = folder.file("tokenizer.json")
        fast = _from_file(file)
        if bert:
            _check_bert(fast, added, file)
    elif folder.has("vocab.txt") and bert:
        file = folder.file("vocab.txt")
        for name in ("unk_token", "cls_token", "sep_token"):
            if settings.get(name, "") is None:
                raise ConfigError(f"{folder.place('tokenizer_config.json')}: {name} is null, wanted a token")
        fast = _from_vocabulary(file, added)
    elif bert:
        raise ModelNotFoundError(
            f"{folder.place('')} holds neither tokenizer.json nor vocab.txt; fetch the model again"
        )
    else:
        raise ModelNotFoundError(
            f"{folder.place('tokenizer.json')} is missing, and a {kind} is read from nothing else here; "
            "write it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    if bert:
        _set_normalizer(fast, settings, folder)
    _add(fast, added, rows, folder)
    if bert:
        _set_template(fast, added.named, file)
    return fast


def _tokenizer_class(folder: ModelFolder, settings: Mapping[str, Any]) -> str:
    name, source = settings.get("tokenizer_class"), "tokenizer_config.json"
    if name is None:
        name, source = folder.config.get("tokenizer_class"), "config.json"
    if name is None:
        return BERT_CLASSES[0]
    kind = name.removesuffix("Fast") if isinstance(name, str) and name != "PreTrainedTokenizerFast" else name
    if kind not in (*BERT_CLASSES, *FILE_CLASSES):
        remedy = "; if its tokenizer.json holds all that it does, set tokenizer_class to 'PreTrainedTokenizerFast'"
        remedy = remedy if folder.has("tokenizer.json") else ""
        raise UnsupportedModelError(
            f"{folder.place(source)}: tokenizer_class is {name!r:.100}, wanted one of "
            f"{', '.join((*BERT_CLASSES, *FILE_CLASSES))}{remedy}"
        )
    return str(kind)


# Tokens that are added to the vocabulary


def _added_tokens(folder: ModelFolder, settings: dict[str, Any], bert: bool) -> Added:
    """The tokens of tokenizer_config.json; without an added_tokens_decoder, of the older files too."""
    source = str(folder.place("tokenizer_config.json"))
    listed: dict[int, AddedToken] = {}
    whole = "added_tokens_decoder" in settings
    values = dict(settings)
    if whole:
        decoder = settings["added_tokens_decoder"] or {}
        if not isinstance(decoder, dict):
            raise ConfigError(f"{source}: added_tokens_decoder is {decoder!r:.100}, wanted a JSON object")
        for key, value in decoder.items():
            if not key.isascii() or not key.isdigit():
                raise ConfigError(f"{source}: added_tokens_decoder has the id {key!r:.50}, wanted digits")
            listed[int(key)] = _token(value, f"{source}: added_tokens_decoder[{key}]", special=None)
    else:
        older = folder.settings("special_tokens_map.json")
        _check_agree(values, older, source)
        values |= older
    named, implied, extra = _special_tokens(values, source, bert)
    if not whole and folder.has("added_tokens.json"):
        # Additional ones of special_tokens_map.json are added as special, but found as words of a text are.
        special = {named[name].content for name in _NAMED if name in named}
        special |= {*_contents(values.get("extra_special_tokens") or settings.get("additional_special_tokens"))}
        file = folder.file("added_tokens.json")
        for content, place in folder.read(folder.name("added_tokens.json")).items():
            if not isinstance(place, int) or isinstance(place, bool) or place < 0:
                raise ConfigError(f"{file}: {content!r:.50} has the id {place!r:.50}, wanted a number of at least 0")
            flags = {"special": content in special, "normalized": content not in special}
            listed[place] = _token({"content": content, **flags}, str(file), special=None)
    if len(listed) > MOST_ADDED_TOKENS:
        raise TokenizerError(f"{source}: {len(listed)} added tokens, wanted at most {MOST_ADDED_TOKENS}")
    tokens: list[tuple[AddedToken, int | None]] = [(listed[place], place) for place in sorted(listed)]
    there = {token.content for token in listed.values()}
    if len(there) != len(listed):
        raise TokenizerError(f"{source}: an added token has two ids, wanted one for each")
    contents = {token.content for token in named.values()}
    for token, _ in tokens:
        if token.content in contents and not token.special:
            token.special = True
    for token in (*named.values(), *extra):
        if token.content not in there:
            there.add(token.content)
            tokens.append((token, None))
    check_added_characters(there, source)
    return Added(tokens, {name: token.content for name, token in named.items()}, implied, whole)


def _special_tokens(
    values: Mapping[str, Any], source: str, bert: bool
) -> tuple[dict[str, AddedToken], frozenset[str], list[AddedToken]]:
    """The special tokens that have a name, those of them that are BERT's usual ones, and those without a name."""
    given: dict[str, Any] = {name: values.get(name) for name in _NAMED}
    given |= {key: value for key, value in values.items() if is_token_key(key) and value is not None}
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    for more in (extra, values.get("model_specific_special_tokens")):
        if isinstance(more, dict):
            given |= more
    extra = [] if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise ConfigError(f"{source}: additional_special_tokens is {extra!r:.100}, wanted a list of tokens")
    implied = set()
    for name, usual in _BERT_TOKENS.items() if bert else ():
        if given[name] is None and (name not in values or name not in ("pad_token", "mask_token")):
            given[name] = usual
        if given[name] == usual:
            implied.add(usual)
    named = {
        name: _token(value, f"{source}: {name}", special=True) for name, value in given.items() if value is not None
    }
    return named, frozenset(implied), [_token(each, f"{source}: additional_special_tokens", True) for each in extra]


def _check_agree(values: Mapping[str, Any], older: Mapping[str, Any], source: str) -> None:
    """Refuse additional tokens that both files list, and differently: which list counts depends on transformers."""
    both = [
        [token for key in _LISTS for token in _contents(each.get(key))]
        for each in (values, older)
        if any(isinstance(each.get(key, {}), list | None) for key in _LISTS)
    ]
    if len(both) == 2 and both[0] != both[1]:
        raise ConfigError(
            f"{source}: {' and '.join(_LISTS)} are {both[0]!r:.100}, in special_tokens_map.json they are "
            f"{both[1]!r:.100}; make them the same"
        )


def _contents(tokens: object) -> list[str]:
    each = tokens if isinstance(tokens, list) else []
    return [str(token.get("content")) if isinstance(token, dict) else str(token) for token in each]


def _token(value: object, source: str, special: bool | None) -> AddedToken:
    """A token as files write it: its text, or an object with its text and flags."""
    from tokenizers import AddedToken

    if isinstance(value, str):
        value = {"content": value}
    flags = {key: each for key, each in value.items() if key != "__type"} if isinstance(value, dict) else {}
    content = flags.pop("content", None)
    flags.pop("id", None)
    known = all(key in _FLAGS and isinstance(each, bool) for key, each in flags.items())
    if not isinstance(content, str) or not content or not known:
        raise ConfigError(
            f"{source} is {value!r:.150}, wanted text, or an object with content and, as true or false, "
            f"{', '.join(_FLAGS)}"
        )
    if special is not None:
        flags["special"] = special
    return AddedToken(content, **flags)


def _add(fast: FastTokenizer, added: Added, rows: int, folder: ModelFolder) -> None:
    """Add the tokens, and see that each has the id that the files give it, and a row of the embedding."""
    tokens = added.tokens
    new = [token.content for token, _ in tokens if fast.token_to_id(token.content) is None]
    if fast.get_vocab_size() + len(new) > rows and added.implied.issuperset(new):
        # Nor has the vocabulary: transformers could not embed a text with them, and no other text needs them.
        tokens = [(token, place) for token, place in tokens if token.content not in new]
    where = folder.place("")
    with library_errors(lambda: f"{where}: the added tokens do not fit"):
        fast.add_tokens([token for token, _ in tokens])
    for token, place in tokens:
        seen = fast.token_to_id(token.content)
        if seen is None or (place is not None and place != seen):
            raise TokenizerError(
                f"{where}: the token {token.content!r:.50} has the id {place} in {_naming(folder, token.content)} and "
                f"{seen} in the vocabulary; save the tokenizer again with transformers"
            )
        if seen >= rows:
            named = _naming(folder, token.content)
            raise TokenizerError(f"{where}: {added_without_row(token.content, seen, rows)} from {named}")


def added_without_row(token: str | None, place: int, rows: int) -> str:
    """What is wrong with an added token whose id lies behind the word embedding, and the remedy, for messages."""
    return (
        f"the tokenizer has id {place}, but the model's vocabulary ends at {rows - 1}: the token {token!r:.50} was "
        "added to the tokenizer and not to the weights; call model.resize_token_embeddings(len(tokenizer)) in "
        "transformers and save both, or remove the token"
    )


def _naming(folder: ModelFolder, content: str) -> str:
    """The files that name a token, in words."""
    names = [name for name in (*TOKEN_FILES, "tokenizer.json") if folder.has(name)]
    written = {json.dumps(content, ensure_ascii=escaped) for escaped in (True, False)}
    found = [name for name in names if any(each in _text(folder.file(name), name) for each in written)]
    return " and ".join(found or names)


# BERT's own rules


def _check_bert(fast: FastTokenizer, added: Added, file: Path) -> None:
    """Refuse a tokenizer.json that is more than BERT's: transformers 4 would follow it and transformers 5 would not."""
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    model, normalizer = fast.model, fast.normalizer
    found = {
        "normalizer": isinstance(normalizer, BertNormalizer) and normalizer.clean_text,
        "pre_tokenizer": isinstance(fast.pre_tokenizer, BertPreTokenizer),
        "model": isinstance(model, WordPiece)
        and (model.continuing_subword_prefix, model.max_input_chars_per_word) == ("##", 100),
        "unk_token of the model": getattr(model, "unk_token", None) == added.named["unk_token"],
    }
    listed = {token.content for token, _ in added.tokens}
    found["added_tokens"] = not added.whole or all(
        token.content in listed for token in fast.get_added_tokens_decoder().values()
    )
    if wrong := [name for name, right in found.items() if not right]:
        raise UnsupportedModelError(
            f"{file}: {', '.join(wrong)} not as a BertTokenizer has it, which is the class that tokenizer_config.json "
            "names or leaves out; if tokenizer.json is right, set tokenizer_class to 'PreTrainedTokenizerFast' there, "
            "else save the tokenizer again with transformers"
        )


def _set_normalizer(fast: FastTokenizer, settings: Mapping[str, Any], folder: ModelFolder) -> None:
    """Set the normaliser of BERT with the flags of tokenizer_config.json; what tokenizer.json says does not count."""
    from tokenizers.normalizers import BertNormalizer

    flags: dict[str, Any] = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
    for key, usual in flags.items():
        flags[key] = value = settings.get(key, usual)
        if not isinstance(value, bool) and (key != "strip_accents" or value is not None):
            raise ConfigError(f"{folder.place('tokenizer_config.json')}: {key} is {value!r:.50}, wanted true or false")
    fast.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=flags["tokenize_chinese_chars"],
        strip_accents=flags["strip_accents"],
        lowercase=flags["do_lower_case"],
    )


def lowercase_first(fast: FastTokenizer) -> None:
    """Lower-case a text before all else, as ``do_lower_case`` of sentence_bert_config.json asks; added tokens stay."""
    from tokenizers.normalizers import BertNormalizer, Lowercase, Sequence

    normalizer = fast.normalizer
    if isinstance(normalizer, BertNormalizer) and normalizer.lowercase:
        return
    fast.normalizer = Lowercase() if normalizer is None else Sequence([Lowercase(), normalizer])


def _set_template(fast: FastTokenizer, named: Mapping[str, str], file: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    first, last = named["cls_token"], named["sep_token"]
    ids = [fast.token_to_id(first), fast.token_to_id(last)]
    with library_errors(lambda: f"{file}: the template of the special tokens cannot be run"):
        seen = fast.encode("").ids
    if file.name == "tokenizer.json" and seen != ids:
        raise TokenizerError(
            f"{file} puts {[fast.id_to_token(i) for i in seen]!r:.100} around a text, tokenizer_config.json says "
            f"{first!r} and {last!r}; make both the same, or set tokenizer_class to 'PreTrainedTokenizerFast' to "
            "follow tokenizer.json"
        )
    with library_errors(lambda: f"{file}: {first!r} and {last!r} cannot stand around a text"):
        fast.post_processor = TemplateProcessing(
            single=f"{first}:0 $A:0 {last}:0",
            pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
            special_tokens=[(first, ids[0]), (last, ids[1])],
        )


def _from_vocabulary(file: Path, added: Added) -> FastTokenizer:
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer

    what = f"{file} is not a WordPiece vocabulary"
    text = _text(file, what)
    # Not splitlines, and blanks as Rust has them: so the library reads such a file.
    tokens = [line.rstrip(_BLANKS) for line in text.removesuffix("\n").split("\n")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = added.named["unk_token"]
    for token in (unknown, *(added.named[name] for name in ("cls_token", "sep_token"))):
        if token not in vocabulary and (token == unknown or token in added.implied):
            raise TokenizerError(f"{what} ({token!r:.50} not found in it); fetch the model again")
    with library_errors(lambda: what):
        fast = FastTokenizer(WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
        fast.pre_tokenizer = BertPreTokenizer()
    return fast


def _text(file: Path, what: str) -> str:
    with library_errors(lambda: what):
        with file.open("rb") as opened:
            data = opened.read(FILE_LIMIT + 1)
        if len(data) > FILE_LIMIT:
            raise TokenizerError(f"{file} has {file.stat().st_size} bytes, wanted at most {FILE_LIMIT}")
        if wrong := lfs_pointer(file):
            raise TokenizerError(f"{file} {wrong}")
        return data.decode().replace("\r\n", "\n")


# tokenizer.json


def _from_file(file: Path) -> FastTokenizer:
    import tokenizers

    what = f"{file} is not a tokenizer that can be read"
    text = _text(file, what)
    with library_errors(lambda: what):
        content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise TokenizerError(f"{what} (it holds no model); fetch the model again")
    remedy = (
        "if a newer release of the tokenizers library wrote it than the one installed here "
        f"({tokenizers.__version__}): pip install --upgrade tokenizers; else fetch the model again"
    )
    check_program(content, str(file), remedy)
    with library_errors(lambda: what, remedy):
        fast = tokenizers.Tokenizer.from_str(text)
    fast.no_truncation()
    fast.no_padding()
    return fast
