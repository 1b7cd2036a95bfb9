"""Whether a model folder is whole, what it should be, and of use: files, digests, weights, tokenizer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from minitrans.audit.checks import DIGESTS, FOLDER, TOKENIZER, Check, judged, skipped
from minitrans.audit.digests import Digests, digests_of, length_by_header, published
from minitrans.audit.tensors import Sources, read_weights, tensor_checks
from minitrans.contents import (
    INDEX_FILE,
    OUTER_FILES,
    REFUSED_FILES,
    SENTENCE_CONFIGS,
    TOKEN_FILES,
    TRANSFORMER_FILES,
    WEIGHTS_FILE,
)
from minitrans.errors import InputError, MinitransError
from minitrans.files import sha256_of
from minitrans.models.config import EncoderConfig, stored_precision
from minitrans.models.folder import ModelFolder
from minitrans.models.identity import PROVENANCE
from minitrans.models.manifest import KnownModel, known_models
from minitrans.models.sentence import PoolingConfig, sentence_settings
from minitrans.models.tokenization.tokenizer import Tokenizer
from minitrans.models.weights import canonical_name
from minitrans.words import counted

T = TypeVar("T")

MOST_TOKENS = 2_000_000  # of a vocabulary; a hostile configuration may speak of more
MOST_DECLARED = 10_000  # tokens besides the vocabulary
NO_KNOWN_MODEL = "none"
ROUND_TRIPS = ("where is my parcel?", "I'd like to cancel order 4821, please.", "The quick brown fox jumps!")

_ESSENTIAL = ("config.json", "tokenizer.json", "vocab.txt", WEIGHTS_FILE, INDEX_FILE, "modules.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What can run when it is loaded: code, and formats that are pickles or may hold one.
_CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".sh")
_PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".h5")
_PIECE = re.compile(r"^(##|▁|Ġ)|</w>$")  # how vocabularies mark where a token stands in its word


@dataclass(frozen=True)
class FolderAudit:
    """What was found, and what the folder is."""

    checks: tuple[Check, ...]
    known: KnownModel | None
    digests: Digests  # of the folder as it is
    original: Path | None  # the float32 model that an int8 one was made from, if it is on this machine
    identity: str | None  # what its files were compared with; see Audit


def audit_folder(
    folder: Path,
    name: str | None = None,
    sealed: Digests | None = None,
    original: Path | None = None,
    known_as: str | None = None,
) -> FolderAudit:
    """Check everything about a model folder that can be checked without running the model.

    Args:
        folder: the model's.
        name: by which the model was asked for, if that was no path: of the hub, short, or of the bundled model.
        sealed: digests that an auditor wrote earlier.
        original, known_as: see `minitrans.audit.signoff.sign_off`.

    Raises:
        InputError: ``original`` is not what the model was made from; the folder is no model; no model is ``known_as``.
    """
    if not any(os.path.lexists(folder / each) for each in _ESSENTIAL) and not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} is no model folder: it holds none of {', '.join(_ESSENTIAL)}; give the folder that holds them"
        )
    names = files_read(folder)
    sizes, faults = _sizes(folder, names)
    published_names = {each for known in known_models() for each in known.files} - {*names}
    more, _ = _sizes(folder, (each for each in published_names if (folder / each).is_file()))
    seen = {each: sha256_of(folder / each) for each in sorted({*sizes, *more})}
    weights, unread = read_weights(folder)
    digests = digests_of(name or folder.name or str(folder), seen, weights)
    recognised = recognise(folder, name, known_as, digests, readable=bool(weights) and not unread)
    known = recognised.known
    if known is not None:
        digests = replace(digests, model=known.name)
    config, precision, configuration = _configuration(folder)
    sources = Sources.find(folder, known or _sealed_as(sealed), precision, original)
    right = published(known) if known is not None else None
    checks = (
        _files(folder, names, sizes, faults),
        *_digests(names, seen, right, sealed, recognised),
        configuration,
        *tensor_checks(config, precision, weights, unread, [each for each in (right, sealed) if each], sources),
        *_tokenizer(folder, config),
    )
    by = [title for title, each in (("published digests", right), ("given digests", sealed)) if each is not None]
    return FolderAudit(checks, known, digests, sources.original, " and ".join(by) or None)


def _sealed_as(sealed: Digests | None) -> KnownModel | None:
    """The known model whose weights the given digests ask for, if there is one."""
    wanted = None if sealed is None else sealed.files.get(WEIGHTS_FILE)
    return next((each for each in known_models() if wanted and each.files.get(WEIGHTS_FILE) == wanted), None)


# Files


def files_read(folder: Path) -> list[str]:
    """Every file of a model folder that the encoder reads, whether it is there or not."""
    there = ModelFolder(folder)
    names = {*there.files(), *there.missing(), *([PROVENANCE] if os.path.lexists(folder / PROVENANCE) else [])}
    unread = {there.name("vocab.txt")} if there.has("tokenizer.json") else set()
    return sorted(name for name in names - unread if name.rpartition("/")[2] not in REFUSED_FILES)


def _sizes(folder: Path, names: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Size of every file that may be read, and a fault of each that may not, or is not as long as its header says."""
    sizes, faults = {}, []
    for name in names:
        try:
            path = ModelFolder(folder).inside(name)
            with path.open("rb"):
                sizes[name] = path.stat().st_size
        except (MinitransError, OSError) as error:
            faults.append(str(error))
            continue
        wanted = length_by_header(path) if name.endswith(".safetensors") else None
        if wanted is not None and wanted != sizes[name]:
            short = "cut off" if sizes[name] < wanted else "something was added"
            faults.append(
                f"{name} has {sizes[name]:,} bytes, its header speaks of {wanted:,}: {short}; fetch the model again"
            )
    return sizes, faults


def _files(folder: Path, names: Sequence[str], sizes: Mapping[str, int], faults: Sequence[str]) -> Check:
    there = {entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)} - {*names}
    runnable = sorted(name for name in there if name.casefold().endswith((*_CODE, *_PICKLES)))
    others = sorted(there - {*runnable})
    kinds = {"code or pickles, never opened by minitrans": runnable, "not read by the encoder": others}
    detail = [*faults]
    detail += [f"{kind}: {', '.join(of[:8])}{', ...' if of[8:] else ''}" for kind, of in kinds.items() if of]
    sound = len(names) - len(faults)
    measured = f"{sound} of {counted(len(names), 'file')}, {sum(sizes.values()) / 1e6:.1f} MB"
    values = {"files": sound, "bytes": sum(sizes.values())}
    return judged(FOLDER, "files", not faults, measured, "all there, whole, inside the folder", detail, values)


@dataclass(frozen=True)
class Recognised:
    """Which published model a folder is, or is meant to be.

    Attributes:
        known: None if it is no known one.
        why: what it was recognised by, unless the user named it.
        near: where it was not recognised: which known model it is like nevertheless, and in what it is not.
    """

    known: KnownModel | None = None
    why: str = ""
    near: str = ""


def recognise(
    folder: Path, name: str | None, known_as: str | None, found: Digests, *, readable: bool = True
) -> Recognised:
    """The published model that a folder is meant to be, whole or damaged.

    The user's word decides; then the weights, if more than half of their tensors are those of a known model; then the
    name of the folder. Where the weights cannot be read, more than half of the model's files decide. Weights that can
    be read and are others make it another model, whatever else is equal: one that was trained further.

    Args:
        folder: the model's.
        name: by which the model was asked for, if that was no path.
        known_as: the user's word: the name of a known model; `NO_KNOWN_MODEL` for none of them; None says nothing.
        found: digests of the folder as it is.
        readable: whether all of the weights could be read.

    Raises:
        InputError: there is no known model of the name ``known_as``.
    """
    models = known_models()
    if known_as is not None:
        return Recognised(named_model(known_as))
    for known in models:
        if name is not None and _key(name) in _names(known):
            return Recognised(known)
    shares = {known.name: _tensors_equal(known, found) for known in models}
    best = max(models, key=lambda known: shares[known.name][0] / shares[known.name][1])
    equal, wanted = shares[best.name]
    if 2 * equal > wanted:
        return Recognised(best, f"{equal} of {wanted} tensors are its" if wanted > 1 else f"{WEIGHTS_FILE} is its own")
    for known in models:
        if _is_called(folder, known):
            return Recognised(known, f"the folder {folder} has its name")
    matches = {known.name: sum(found.files.get(each) == sha for each, sha in known.files.items()) for known in models}
    best = max(models, key=lambda known: matches[known.name] / len(known.files))
    if 2 * matches[best.name] <= len(best.files):
        return Recognised()
    share = f"{matches[best.name]} of {counted(len(best.files), 'file')}"
    if not readable:
        return Recognised(best, f"{share} are its")
    return Recognised(
        near=f"{share} are those of {best.name}, but the weights are others, as if trained further; if it must be that "
        f"one: --as {best.name}"
    )


def named_model(known_as: str) -> KnownModel | None:
    """The known model of this name, base name or alias; None for `NO_KNOWN_MODEL`. InputError: there is none."""
    if known_as.casefold() == NO_KNOWN_MODEL:
        return None
    for known in known_models():
        if _key(known_as) in _names(known):
            return known
    names = ", ".join(known.name for known in known_models())
    raise InputError(f"no known model is called {known_as!r}, wanted one of {names}, or {NO_KNOWN_MODEL}")


def _key(name: str) -> str:
    """A name as it is compared: folders have "--" or "_" where names have "/"."""
    return re.sub("--|_", "/", name.casefold())


def _names(known: KnownModel) -> set[str]:
    return {_key(each) for each in (known.name, known.name.rpartition("/")[2], *known.aliases)}


def _is_called(folder: Path, known: KnownModel) -> bool:
    """Whether the folder has the name of a known model, or the caches' folder around it does and no other commit."""
    for path in (folder, folder.resolve()):
        if _key(path.name) in _names(known):
            return True
        commit = _COMMIT.fullmatch(path.name)
        in_cache = path.parent.name == "snapshots"
        repository = path.parent.parent.name.removeprefix("models--") if in_cache else path.parent.name
        if (in_cache or commit) and _key(repository) in _names(known) and (not commit or path.name == known.revision):
            return True
    return False


def _tensors_equal(known: KnownModel, found: Digests) -> tuple[int, int]:
    """How many of a known model's tensors are in the folder, of how many: as far as these are on record."""
    if found.files.get(WEIGHTS_FILE) == known.files.get(WEIGHTS_FILE, ""):
        return 1, 1  # of some not even the tensors are on record
    wanted = published(known).tensors.get(WEIGHTS_FILE, {})
    there = {canonical_name(name): digest for file in found.tensors.values() for name, digest in file.items()}
    equal = sum(there.get(canonical_name(name)) == digest for name, digest in wanted.items())
    return equal, max(len(wanted), 1)


def _digests(
    names: Sequence[str],
    seen: Mapping[str, str],
    right: Digests | None,
    sealed: Digests | None,
    recognised: Recognised,
) -> Iterator[Check]:
    if right is not None:
        check = _compared("published digests", names, seen, right)
        if recognised.why and check.verdict == "FAIL":
            hint = f"taken for {right.model}: {recognised.why}; if it is another model: --as {NO_KNOWN_MODEL}"
            check = replace(check, detail=(*check.detail, hint))
        yield check
    if sealed is not None:
        yield _compared("sealed digests", names, seen, sealed, complete=True)
    if right is None and sealed is None:
        detail = [recognised.near] if recognised.near else []
        detail += [f"{seen[name]}  {name}" for name in seen]
        remedy = "write down what it is now with --write-digests FILE, compare later with --digests FILE"
        yield skipped(FOLDER, DIGESTS, "not recognised as a known model", remedy, detail)


def _compared(
    title: str, names: Sequence[str], seen: Mapping[str, str], right: Digests, *, complete: bool = False
) -> Check:
    """Each file against its digest; ``complete`` digests list all that the encoder read, so one more is a fault."""
    both = [name for name in right.files if name in seen]
    wrong = [name for name in both if seen[name] != right.files[name]]
    detail = [f"{name}: sha256 {seen[name][:16]}.., wanted {right.files[name][:16]}.." for name in wrong]
    # A file that is read only if it is present changes the result by its absence too.
    counts = {*names, *OUTER_FILES, PROVENANCE, *TRANSFORMER_FILES, WEIGHTS_FILE} - {"vocab.txt"}
    missing = [name for name in right.files if name not in seen and name in counts]
    detail += [f"{name}: missing or not readable, wanted sha256 {right.files[name][:16]}.." for name in missing]
    rest = sorted(set(names) & set(seen) - set(right.files))
    equal, compared = len(both) - len(wrong), len(both) + len(missing)
    note = []
    if complete:
        remedy = "remove it, or write the digests anew if it belongs there"
        detail += [f"{name}: the encoder reads it, {right.label} does not list it; {remedy}" for name in rest]
        compared += len(rest)
    elif rest:
        note = [f"without a digest to compare with: {', '.join(rest)}"]
    measured = f"{equal} of {counted(compared, 'file')}"
    values = {"equal": equal, "compared": compared}
    return judged(FOLDER, title, not detail, measured, f"as in {right.label}", [*detail, *note], values)


# Configuration and tokenizer


def _configuration(folder: Path) -> tuple[EncoderConfig | None, str | None, Check]:
    config, precision, pooling = None, None, None
    faults: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except MinitransError as error:
            faults.append(str(error))
            return None

    there = attempt(lambda: ModelFolder.open(folder))
    if there is not None:
        config = attempt(lambda: EncoderConfig.from_folder(there))
        precision = attempt(lambda: stored_precision(there))
        if config is not None:
            width = config.hidden_size
            pooling = attempt(lambda: PoolingConfig.from_folder(there, width))
        attempt(lambda: sentence_settings(there))
        attempt(there.sentence_settings)
    measured = counted(len(set(faults)), "fault")
    if config is not None and not faults:
        modes = "+".join(pooling.modes if pooling is not None else ())
        measured = f"{counted(config.num_hidden_layers, 'layer')} of {config.hidden_size}, {precision}, {modes} pooling"
    wanted = "a BERT encoder that can be run"
    return config, precision, judged(FOLDER, "configuration", not faults, measured, wanted, dict.fromkeys(faults))


def _tokenizer(folder: Path, config: EncoderConfig | None) -> Iterator[Check]:
    names = ("tokenizer", "special tokens", "added tokens", "token ids", "limits")
    if config is None:
        yield from (skipped(TOKENIZER, name, "the configuration cannot be read") for name in names)
        return
    try:
        there = ModelFolder.open(folder)
        tokenizer = Tokenizer.from_folder(there, config)
        special = _special_tokens(there)
        declared = declared_tokens(folder)
        encoded = tokenizer.encode(["a", *ROUND_TRIPS]).ids
    except MinitransError as error:
        yield judged(TOKENIZER, names[0], False, "cannot be used", "one that fits the weights", [str(error)])
        yield from (skipped(TOKENIZER, name, "the tokenizer cannot be used") for name in names[1:])
        return
    tokens = tokenizer.tokens(range(min(config.vocab_size, MOST_TOKENS)))
    known = sum(token != f"[{i}]" for i, token in enumerate(tokens))
    measured = f"{known} tokens, up to {tokenizer.max_seq_length} a text"
    yield judged(TOKENIZER, names[0], known > 0, measured, f"ids below {config.vocab_size}")

    missing = [token for token in special if token not in tokens]
    around = tokenizer.tokens(encoded[0])
    first, last = special[0], special[-1]
    detail = [f"{token!a} has no id" for token in missing]
    if around[0] != first or around[-1] != last:
        detail.append(f"a text becomes {around!a}, wanted {first!a} first and {last!a} last")
    yield judged(TOKENIZER, names[1], not detail, " ".join(special), "known, the outer ones around a text", detail)
    yield _added_tokens(names[2], tokenizer, declared)

    faults = []
    for text, ids in zip(ROUND_TRIPS, encoded[1:], strict=True):
        if not all(0 <= i < config.vocab_size for i in ids):
            faults.append(f"{text!r}: ids from {min(ids)} to {max(ids)}")
        inner = tokenizer.tokens(ids[tokenizer.prefix : len(ids) - tokenizer.suffix])
        back = "".join(_PIECE.sub("", token) for token in inner)
        if back.casefold() != "".join(text.split()).casefold() and len(ids) < tokenizer.max_seq_length:
            faults.append(f"{text!r} becomes {inner!a}")
    measured = f"{len(ROUND_TRIPS) - len(faults)} of {counted(len(ROUND_TRIPS), 'text')} come back"
    yield judged(TOKENIZER, names[3], not faults, measured, f"all, with ids below {config.vocab_size}", faults)
    yield _limits(names[4], there, tokenizer, config)


def declared_tokens(folder: Path) -> dict[str, str]:
    """Every token that a file declares besides the vocabulary -> that file; read without the tokenizer's reader.

    Raises:
        ConfigError: a file that cannot be read.
    """
    found: dict[str, str] = {}
    there = ModelFolder(folder)
    for name in filter(there.has, ("tokenizer.json", *TOKEN_FILES)):
        values = there.read(there.name(name))
        for each in values if name == "added_tokens.json" else _tokens_in(values):
            found.setdefault(each, name)
    return found


def _tokens_in(values: Mapping[str, Any]) -> Iterator[str]:
    """What a tokenizer's file of JSON declares; some tokens are objects, some strings."""
    entries: list[Any] = [value for key, value in values.items() if key.endswith("_token")]
    for key in ("added_tokens", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        more = values.get(key)
        entries += more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    for entry in entries:
        token = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(token, str) and token:
            yield token


def _added_tokens(title: str, tokenizer: Tokenizer, declared: Mapping[str, str]) -> Check:
    """A declared token that falls to pieces gives other embeddings than the model was trained with."""
    detail = []
    texts = list(declared)[:MOST_DECLARED]
    for token in texts:
        try:
            ids = tokenizer.encode([token]).ids[0]
        except MinitransError as error:
            detail.append(f"{token!a} of {declared[token]}: {error}")
            continue
        inner = tokenizer.tokens(ids[tokenizer.prefix : len(ids) - tokenizer.suffix])
        if inner != [token]:
            detail.append(f"{token!a} of {declared[token]} becomes {inner!a:.100}")
    measured = f"{len(texts) - len(detail)} of {counted(len(texts), 'token')}"
    return judged(TOKENIZER, title, not detail, measured, "one id each", detail)


def _limits(title: str, there: ModelFolder, tokenizer: Tokenizer, config: EncoderConfig) -> Check:
    """Whether texts of about the greatest length are cut where they should be, and what the files say of it."""
    limit, special = tokenizer.max_seq_length, tokenizer.prefix + tokenizer.suffix
    faults = []
    if limit > config.max_position_embeddings:
        faults.append(f"{limit} tokens, but positions end at {config.max_position_embeddings}")
    for words in (limit - special - 1, limit - special, limit - special + 1):
        tokenized = tokenizer.encode(["a " * words])
        ids, length = tokenized.ids[0], tokenized.lengths[0]
        if len(ids) != min(length, limit) or length != words + special:
            faults.append(f"a text of {words} words and {special} special tokens becomes {len(ids)} of {length} ids")
    says = [f"{config.max_position_embeddings} positions"]
    for name, key in (
        *((name, "max_seq_length") for name in SENTENCE_CONFIGS),
        ("tokenizer_config.json", "model_max_length"),
    ):
        value = there.read(there.name(name)).get(key) if there.has(name) else None
        if value is not None:
            says.append(f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value!r:.40}")
    wanted = "one id a word, cut at the limit"
    return judged(TOKENIZER, title, not faults, f"up to {limit} tokens a text", wanted, [*faults, ", ".join(says)])


def _special_tokens(there: ModelFolder) -> list[str]:
    """What stands before a text, for an unknown word, and behind a text: as tokenizer_config.json says, or BERT's."""
    settings = there.read(there.name("tokenizer_config.json")) if there.has("tokenizer_config.json") else {}
    tokens = []
    for key, usual in (("cls_token", "[CLS]"), ("unk_token", "[UNK]"), ("sep_token", "[SEP]")):
        token = settings.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        tokens.append(token if isinstance(token, str) else usual)
    return tokens
