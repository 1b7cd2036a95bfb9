"""Whether a model folder is whole, what it should be, and of use: files, digests, weights, tokenizer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minitrans import hub
from minitrans.audit.checks import FOLDER, TOKENIZER, Check, counted, judged, skipped
from minitrans.audit.digests import Digests, WeightFile, digests_of, published
from minitrans.audit.tensors import Sources, read_weights, tensor_checks
from minitrans.calls import sentence_settings
from minitrans.config import EncoderConfig, model_file, optional_file, read_json
from minitrans.errors import MinitransError
from minitrans.manifest import KnownModel
from minitrans.pooling import PoolingConfig
from minitrans.resources import sha256_of
from minitrans.tokenizer import Tokenizer
from minitrans.weights import INDEX_FILE, WEIGHTS_FILE, stored_precision, weight_files

MOST_TOKENS = 2_000_000  # of a vocabulary; a hostile configuration may speak of more
ROUND_TRIPS = ("where is my parcel?", "I'd like to cancel order 4821, please.", "The quick brown fox jumps!")

_OPTIONAL = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
)
_PIECE = re.compile(r"^(##|▁|Ġ)|</w>$")  # how vocabularies mark where a token stands in its word


@dataclass(frozen=True)
class FolderAudit:
    """What was found, and what the folder is."""

    checks: tuple[Check, ...]
    known: KnownModel | None
    digests: Digests  # of the folder as it is
    original: Path | None  # the float32 model that an int8 one was made from, if it is on this machine


def audit_folder(
    folder: Path, name: str | None = None, sealed: Digests | None = None, original: Path | None = None
) -> FolderAudit:
    """Check everything about a model folder that can be checked without running the model.

    Args:
        folder: the model's.
        name: by which the model was asked for, if that was no path: of the hub, short, or of the bundled model.
        sealed: digests that an auditor wrote earlier.
        original: the float32 folder that an int8 model was made from; None looks for it on this machine.

    Raises:
        InputError: ``original`` is not what the model was made from.
    """
    names = files_read(folder)
    sizes, faults = _measure(folder, names)
    published_names = {each for known in hub.known_models() for each in known.files} - {*names}
    more, _ = _measure(folder, (each for each in published_names if (folder / each).is_file()))
    seen = {each: sha256_of(folder / each) for each in sorted({*sizes, *more})}
    weights, unread = read_weights(folder)
    known = recognise(name, seen, weights)
    digests = digests_of(known.name if known else name or folder.name or str(folder), seen, weights)
    config, precision, configuration = _configuration(folder)
    sources = Sources.find(folder, known, precision, original)
    right = published(known) if known is not None else None
    checks = (
        _files(folder, names, sizes, faults),
        *_digests(names, seen, right, sealed),
        configuration,
        *tensor_checks(config, precision, weights, unread, [each for each in (right, sealed) if each], sources),
        *_tokenizer(folder, config),
    )
    return FolderAudit(checks, known, digests, sources.original)


# Files


def files_read(folder: Path) -> list[str]:
    """Every file of a model folder that the encoder reads, whether it is there or not."""
    names = ["config.json", *(name for name in _OPTIONAL if os.path.lexists(folder / name))]
    try:
        modules = read_json(model_file(folder, "modules.json"), list)
    except MinitransError:
        modules = []
    for module in modules:
        kind, path = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if isinstance(path, str) and path and str(kind).endswith(".Pooling"):
            names.append(f"{path}/config.json")
    names.append("vocab.txt" if _only_vocabulary(folder) else "tokenizer.json")
    if (folder / INDEX_FILE).exists() and not (folder / WEIGHTS_FILE).exists():
        names.append(INDEX_FILE)
    try:
        names += [file.relative_to(folder).as_posix() for file in weight_files(folder)]
    except MinitransError:  # the check of the tensors says why
        names.append(WEIGHTS_FILE)
    return list(dict.fromkeys(names))


def _only_vocabulary(folder: Path) -> bool:
    return os.path.lexists(folder / "vocab.txt") and not os.path.lexists(folder / "tokenizer.json")


def _measure(folder: Path, names: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Size of every file that may be read, and what is wrong with the others."""
    sizes, faults = {}, []
    for name in names:
        try:
            path = model_file(folder, name)
            with path.open("rb"):
                sizes[name] = path.stat().st_size
        except (MinitransError, OSError) as error:
            faults.append(str(error))
    return sizes, faults


def _files(folder: Path, names: Sequence[str], sizes: Mapping[str, int], faults: Sequence[str]) -> Check:
    others = sorted({entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)} - {*names})
    detail = [*faults]
    if others:
        detail.append(f"not read by the encoder: {', '.join(others[:8])}{', ...' if others[8:] else ''}")
    measured = f"{len(sizes)} of {counted(len(names), 'file')}, {sum(sizes.values()) / 1e6:.1f} MB"
    values = {"files": len(sizes), "bytes": sum(sizes.values())}
    return judged(FOLDER, "files", not faults, measured, "all there, inside the folder", detail, values)


def recognise(name: str | None, seen: Mapping[str, str], weights: Sequence[WeightFile]) -> KnownModel | None:
    """The published model that a folder is, or is a damaged copy of.

    By the name it was asked for, or by its files: all that are there but one have the published digests. If that one is
    the weights, half of their tensors have to be the published ones, as far as these are on record: a model that was
    trained further may share all other files.
    """
    for known in hub.known_models():
        if name is not None and name.casefold() in {each.casefold() for each in (known.name, *known.aliases)}:
            return known
    best: tuple[int, KnownModel] | None = None
    for known in hub.known_models():
        there = [each for each in known.files if each in seen]
        wrong = [each for each in there if seen[each] != known.files[each]]
        if len(there) - len(wrong) < 4 or len(wrong) > 1 or (wrong == [WEIGHTS_FILE] and not _alike(known, weights)):
            continue
        if best is None or len(there) - len(wrong) > best[0]:
            best = len(there) - len(wrong), known
    return None if best is None else best[1]


def _alike(known: KnownModel, weights: Sequence[WeightFile]) -> bool:
    """Whether weights could be a damaged copy of a known model's."""
    wanted = published(known).tensors.get(WEIGHTS_FILE, {})
    found = digests_of("", {}, weights).tensors.get(WEIGHTS_FILE)
    if found is None or not wanted:
        return True  # they cannot be read, or nothing is on record
    return 2 * sum(found.get(name) == digest for name, digest in wanted.items()) >= len(wanted)


def _digests(
    names: Sequence[str], seen: Mapping[str, str], right: Digests | None, sealed: Digests | None
) -> Iterator[Check]:
    if right is not None:
        yield _compared("published digests", names, seen, right)
    if sealed is not None:
        yield _compared("sealed digests", names, seen, sealed)
    if right is None and sealed is None:
        detail = [f"{seen[name]}  {name}" for name in seen]
        remedy = "write down what it is now with --write-digests FILE, compare later with --digests FILE"
        yield skipped(FOLDER, "digests", "no published model is like this one", remedy, detail)


def _compared(title: str, names: Sequence[str], seen: Mapping[str, str], right: Digests) -> Check:
    both = [name for name in right.files if name in seen]
    wrong = [name for name in both if seen[name] != right.files[name]]
    detail = [f"{name}: sha256 {seen[name][:16]}.., wanted {right.files[name][:16]}.." for name in wrong]
    # What the encoder reads only where it is there has an effect by not being there.
    counts = {*names, *_OPTIONAL, "tokenizer.json", WEIGHTS_FILE}
    missing = [name for name in right.files if name not in seen and name in counts]
    detail += [f"{name}: missing or not readable, wanted sha256 {right.files[name][:16]}.." for name in missing]
    rest = sorted(set(names) & set(seen) - set(right.files))
    equal = len(both) - len(wrong)
    measured = f"{equal} of {counted(len(both) + len(missing), 'file')}"
    note = [f"without a digest to compare with: {', '.join(rest)}"] if rest else []
    values = {"equal": equal, "compared": len(both) + len(missing)}
    return judged(FOLDER, title, not detail, measured, f"as in {right.model}", [*detail, *note], values)


# Configuration and tokenizer


def _configuration(folder: Path) -> tuple[EncoderConfig | None, str | None, Check]:
    config, precision, pooling, faults = None, None, None, []
    try:
        config = EncoderConfig.from_folder(folder)
    except MinitransError as error:
        faults.append(str(error))
    try:
        precision = stored_precision(folder)
    except MinitransError as error:
        faults.append(str(error))
    try:
        if config is not None:
            pooling = PoolingConfig.from_folder(folder, config.hidden_size)
        sentence_settings(folder)
    except MinitransError as error:
        faults.append(str(error))
    measured = counted(len(set(faults)), "fault")
    if config is not None and not faults:
        modes = "+".join(pooling.modes if pooling is not None else ())
        measured = f"{counted(config.num_hidden_layers, 'layer')} of {config.hidden_size}, {precision}, {modes} pooling"
    wanted = "a BERT encoder that can be run"
    return config, precision, judged(FOLDER, "configuration", not faults, measured, wanted, dict.fromkeys(faults))


def _tokenizer(folder: Path, config: EncoderConfig | None) -> Iterator[Check]:
    names = ("tokenizer", "special tokens", "token ids")
    if config is None:
        yield from (skipped(TOKENIZER, name, "the configuration cannot be read") for name in names)
        return
    try:
        tokenizer = Tokenizer.from_folder(folder, config)
        special = _special_tokens(folder)
        encoded = tokenizer.encode(["a", *ROUND_TRIPS]).ids
    except MinitransError as error:
        yield judged(TOKENIZER, names[0], False, "cannot be used", "one that fits the weights", [str(error)])
        yield from (skipped(TOKENIZER, name, "the tokenizer cannot be used") for name in names[1:])
        return
    tokens = tokenizer.tokens(range(min(config.vocab_size, MOST_TOKENS)))
    there = sum(token != f"[{i}]" for i, token in enumerate(tokens))
    measured = f"{there} tokens, up to {tokenizer.max_seq_length} a text"
    yield judged(TOKENIZER, names[0], there > 0, measured, f"ids below {config.vocab_size}")

    missing = [token for token in special if token not in tokens]
    around = tokenizer.tokens(encoded[0])
    first, last = special[0], special[-1]
    detail = [f"{token!a} has no id" for token in missing]
    if around[0] != first or around[-1] != last:
        detail.append(f"a text becomes {around!a}, wanted {first!a} first and {last!a} last")
    yield judged(TOKENIZER, names[1], not detail, " ".join(special), "known, the outer ones around a text", detail)

    faults = []
    for text, ids in zip(ROUND_TRIPS, encoded[1:], strict=True):
        if not all(0 <= i < config.vocab_size for i in ids):
            faults.append(f"{text!r}: ids from {min(ids)} to {max(ids)}")
        inner = tokenizer.tokens(ids[tokenizer.prefix : len(ids) - tokenizer.suffix])
        back = "".join(_PIECE.sub("", token) for token in inner)
        if back.casefold() != "".join(text.split()).casefold() and len(ids) < tokenizer.max_seq_length:
            faults.append(f"{text!r} becomes {inner!a}")
    measured = f"{len(ROUND_TRIPS) - len(faults)} of {counted(len(ROUND_TRIPS), 'text')} come back"
    yield judged(TOKENIZER, names[2], not faults, measured, f"all, with ids below {config.vocab_size}", faults)


def _special_tokens(folder: Path) -> list[str]:
    """What stands before a text, for an unknown word, and behind a text: as tokenizer_config.json says, or BERT's."""
    file = optional_file(folder, "tokenizer_config.json")
    settings = {} if file is None else read_json(file)
    tokens = []
    for key, usual in (("cls_token", "[CLS]"), ("unk_token", "[UNK]"), ("sep_token", "[SEP]")):
        token = settings.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        tokens.append(token if isinstance(token, str) else usual)
    return tokens
