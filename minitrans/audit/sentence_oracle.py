"""SentenceTransformer as the third opinion: what its users get from this folder, compared with what ours get.

transformers is given what minitrans read. SentenceTransformer reads the folder by itself, every configuration file that
lies there, so that a file or a key that minitrans passes over shows in its tokens or its embeddings. It works on a copy
without code and pickles; config.json is reduced to what makes the encoder; nothing is fetched and no code of the folder
is run. One text at a time, so that there is no padding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minitrans.audit.checks import SENTENCES, Check, broken, judged
from minitrans.audit.comparison import BARS, Sample, embedding_check
from minitrans.audit.oracle import as_backend_error, cannot_import, encoder_keys, quiet, token_check
from minitrans.contents import INDEX_FILE, JSON_LIMIT, WEIGHTS_FILE, read_json
from minitrans.errors import BackendError, ConfigError, MinitransError, ModelNotFoundError
from minitrans.models.config import stored_precision
from minitrans.models.folder import ModelFolder
from minitrans.models.parameters import Parameters, named_arrays
from minitrans.models.weights import weight_files
from minitrans.sentences.sentence_encoder import SentenceEncoder
from minitrans.words import counted, without_surrogates

MODULES = ("torch", "transformers", "sentence_transformers")
PROMPTS = 16  # of a model that are tried
_READ = (".json", ".txt", ".jinja", ".model")  # what it may read besides weights; neither code nor pickles
_WEIGHTS = (".safetensors", ".index.json")


def why_not() -> str | None:
    """Why SentenceTransformer cannot be asked, or None."""
    if why := cannot_import(MODULES, "SentenceTransformer"):
        return why
    from sentence_transformers import SentenceTransformer

    if not hasattr(SentenceTransformer, "encode_query"):
        return "sentence-transformers is older than 5.0, which brought encode_query"
    return None


def how_many(encoder: SentenceEncoder) -> int:
    """The number of checks that `sentence_checks` makes: settings, ids, three ways to encode, prompts if there are."""
    return 5 + bool(encoder.prompts)


def sentence_checks(folder: Path, encoder: SentenceEncoder, parameters: Parameters, sample: Sample) -> Iterator[Check]:
    """Everything that SentenceTransformer can be asked about.

    Args:
        folder: the model's.
        encoder: of it, in float32, unpruned, with the limits and prompts of its files.
        parameters: its weights in float32, which stand in for those of an int8 folder.
        sample: the texts.

    Raises:
        BackendError: SentenceTransformer cannot load the folder, or has to import what is not its own.
    """
    with _sentence_transformer(folder, parameters) as model:
        yield _settings(encoder, model)
        tokenize = model.preprocess if hasattr(model, "preprocess") else model.tokenize

        def token_ids() -> list[list[int]]:
            return [list(map(int, tokenize([without_surrogates(text)])["input_ids"][0])) for text in sample.texts]

        yield token_check(SENTENCES, sample, token_ids)
        by_length = sorted(sample.texts, key=len)
        few = Sample.of(dict.fromkeys((by_length[0], sample.texts[0], by_length[-1])), encoder.tokenizer)
        yield _compared("embeddings", encoder.encode, model.encode, sample)
        yield _compared("queries", encoder.encode_query, model.encode_query, few)
        yield _compared("documents", encoder.encode_document, model.encode_document, few)
        if encoder.prompts:
            yield _prompts(encoder, model, few)


def _settings(encoder: SentenceEncoder, model: Any) -> Check:
    """What a user of either can ask the model for."""
    width = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    both = {
        "max_seq_length": (encoder.max_seq_length, model.max_seq_length),
        "dimension": (encoder.get_embedding_dimension(), width()),
        "similarity": (encoder.similarity_fn_name, model.similarity_fn_name),
        "default prompt": (encoder.default_prompt, model.prompts.get(model.default_prompt_name, "")),
        "prompts": tuple({name: text for name, text in each.prompts.items() if text} for each in (encoder, model)),
    }
    apart = {key: pair for key, pair in both.items() if pair[0] != pair[1]}
    faults = [f"{key} is {ours!r:.100}, wanted {theirs!r:.100}" for key, (ours, theirs) in apart.items()]
    measured = f"{len(both) - len(faults)} of {len(both)} alike"
    return judged(SENTENCES, "settings", not faults, measured, ", ".join(both), faults)


def _compared(name: str, ours: Callable[..., Any], theirs: Callable[..., Any], sample: Sample, **options: Any) -> Check:
    """The same call of both, all texts; differences are relative to the length of its vectors."""
    try:
        with as_backend_error("encode", "SentenceTransformer"):
            texts = map(without_surrogates, sample.texts)
            right = np.stack([theirs(text, show_progress_bar=False, **options) for text in texts])  # [B, W]
        seen = ours(list(sample.texts), pruning=None, **options)  # [B, W]
    except MinitransError as error:
        return broken(SENTENCES, name, "the same vectors", error)
    if right.shape != seen.shape:
        return judged(SENTENCES, name, False, f"{seen.shape[1]} numbers a text", f"{right.shape[1]}")
    length = np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-12)  # [B, 1]
    bars = BARS["float32"]
    return embedding_check(SENTENCES, name, right / length, seen / length, sample, bars.cosine, bars.unit)


def _prompts(encoder: SentenceEncoder, model: Any, sample: Sample) -> Check:
    """One text behind each prompt, together as one check."""
    names = list(encoder.prompts)[:PROMPTS]
    checks = [_compared(name, encoder.encode, model.encode, sample, prompt_name=name) for name in names]
    faults = [
        f"{check.name!r}: {line}"
        for check in checks
        if check.verdict == "FAIL"
        for line in check.detail or (f"{check.measured}, wanted {check.wanted}",)
    ]
    measured = f"{sum(check.verdict == 'PASS' for check in checks)} of {counted(len(checks), 'prompt')}"
    return judged(SENTENCES, "prompts", not faults, measured, "the same vectors", faults)


# The copy that it is given


@contextmanager
def _sentence_transformer(folder: Path, parameters: Parameters) -> Iterator[Any]:
    """The model as SentenceTransformer loads it. BackendError: it cannot."""
    import torch
    from sentence_transformers import SentenceTransformer

    with TemporaryDirectory(ignore_cleanup_errors=True) as name, quiet():
        copy = Path(name) / "model"
        lay_out(folder, copy, parameters)
        with as_backend_error("load this folder", "SentenceTransformer"):
            model = SentenceTransformer(
                str(copy),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            )
        yield model


def lay_out(folder: Path, copy: Path, parameters: Parameters) -> None:
    """Copy what SentenceTransformer may read of a model folder, as far as it lies inside it.

    Args:
        folder: the model's.
        copy: where the copy goes; it does not exist yet.
        parameters: the weights in float32: those of an int8 folder are written anew, as only minitrans reads them.

    Raises:
        BackendError: a module is none of SentenceTransformer's own, so that loading it would run other code.
    """
    there = ModelFolder(folder)  # not opened, which checks: the other library is to judge by itself
    for each in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        name = each.relative_to(folder).as_posix()
        if not name.endswith(_READ) or name.endswith(_WEIGHTS):
            continue
        try:
            file = there.inside(name)
        except (ConfigError, ModelNotFoundError):
            continue  # a folder, or a link out of this one
        if file.stat().st_size <= 4 * JSON_LIMIT:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy / name)
            if each.name == "config.json" and "model_type" in (values := read_json(file)):
                kept = {"model_type": values["model_type"], **encoder_keys(values)}
                (copy / name).write_text(json.dumps(kept), encoding="utf-8")
    _check_modules(copy / "modules.json")
    _place_weights(there, copy, parameters)


def _check_modules(file: Path) -> None:
    if not file.exists():
        return
    for module in read_json(file, list):
        kind = module.get("type") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise BackendError(
                f"modules.json names {kind!r:.100}, wanted modules of sentence_transformers: another is code of its own"
            )


def _place_weights(there: ModelFolder, copy: Path, parameters: Parameters) -> None:
    inner = copy / there.transformer
    if stored_precision(there) == "int8":
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(array) for name, array in named_arrays(parameters).items()}
        save_file(arrays, inner / WEIGHTS_FILE, {"format": "pt"})
        return
    files = weight_files(there)
    for file in files:
        _link(file, inner / file.name)
    if files[0].name != WEIGHTS_FILE:
        _link(there.file(INDEX_FILE), inner / INDEX_FILE)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:  # not every system lets every user
        shutil.copyfile(source, target)
