"""transformers as the second opinion: the folder's own weights in its BertModel, and its tokenizer, compared with ours.

This module and `sentence_oracle` import torch and transformers, and only inside functions: nothing else needs them.
The model is built from those keys of config.json that minitrans reads and validates, and filled with the weights that
it validated, as float32; nothing is fetched, no code of the folder is run. One text at a time and no padding, so that
there is no mask to get wrong.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minitrans.audit.checks import PEER, Check, broken, judged
from minitrans.audit.comparison import (
    BARS,
    Kept,
    Sample,
    Tallies,
    Tally,
    difference_check,
    embedding_check,
    kept_rows,
    stages_of,
    unit_vectors,
    watched,
)
from minitrans.contents import TRANSFORMER_FILES
from minitrans.encoder.blocks import Blocks
from minitrans.encoder.packing import pack, segments
from minitrans.encoder.policy import PruningPolicy
from minitrans.encoder.selection import rank, select
from minitrans.errors import BackendError, MinitransError
from minitrans.models.config import EncoderConfig
from minitrans.models.folder import ModelFolder
from minitrans.models.parameters import Float32, Parameters, named_arrays
from minitrans.models.sentence import PoolingConfig
from minitrans.words import counted, listed, without_surrogates

MODULES = ("torch", "transformers")
BLIND = ("random", "first")  # scores that look at no number
REMEDY = 'pip install "minitrans[transformers]"'


def why_not() -> str | None:
    """Why transformers cannot be asked, or None."""
    return cannot_import(MODULES, "BertModel")


def cannot_import(modules: Sequence[str], name: str) -> str | None:
    """Why a name of the last of these modules cannot be imported, in words; None if it can."""
    if missing := listed([_shown(module) for module in modules if find_spec(module) is None]):
        return f"{missing} not installed"
    try:
        with quiet():
            getattr(import_module(modules[-1]), name)
    except Exception as error:  # of torch, scipy and scikit-learn too, whatever they raise
        return f"{_shown(modules[-1])} cannot be imported: {first_line(error)}"
    return None


def versions(modules: Sequence[str]) -> dict[str, str]:
    """Package -> version, of modules that are installed."""
    return {_shown(module): str(import_module(module).__version__) for module in modules}


def _shown(module: str) -> str:
    return module.replace("_", "-")


@dataclass(frozen=True)
class Opinion:
    """What transformers makes of one text, nothing pruned."""

    hidden: list[Float32]  # L + 1 of [n, H]: the embeddings, then each layer's output
    attention: list[Float32]  # per layer [A, n, n], rows are queries
    attended: list[Float32]  # per layer [n, H]: what leaves the attention block
    value: list[Float32]  # per layer [n, H]: the values of all heads


class Oracle:
    """A BertModel with the weights of a folder.

    Args:
        folder: where config.json and the tokenizer are.
        parameters: the weights, in float32.

    Raises:
        BackendError: the model cannot be built.
        ConfigError: config.json cannot be read.
    """

    def __init__(self, folder: Path, parameters: Parameters) -> None:
        import torch
        from transformers import BertConfig, BertModel

        self.folder = ModelFolder.open(folder)
        sizes = encoder_keys(self.folder.config)
        with as_backend_error("build its BertModel"):
            # padding and dropout play no part: one text at a time, in evaluation mode
            config = BertConfig(
                **sizes,
                pad_token_id=None,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                attn_implementation="eager",
            )
            self.model = BertModel(config, add_pooling_layer=False).eval()
            weights = {name: torch.from_numpy(np.array(array)) for name, array in named_arrays(parameters).items()}
            missing, unexpected = self.model.load_state_dict(weights, strict=False)
        if unexpected or [name for name in missing if not name.endswith("position_ids")]:
            raise BackendError(f"transformers' BertModel lacks weights {missing} and has no place for {unexpected}")

    def ask(self, ids: tuple[int, ...]) -> Opinion:
        """Run one text [n]. BackendError: it cannot be run, or not all comes back that has to be compared."""
        import torch

        kept: dict[str, list[Any]] = {"attended": [], "value": []}

        def keep(name: str, module: object, inputs: object, output: Any) -> None:
            kept[name].append(output[0] if isinstance(output, tuple) else output)

        layers = self.model.encoder.layer
        hooks = [layer.attention.register_forward_hook(partial(keep, "attended")) for layer in layers]
        hooks += [layer.attention.self.value.register_forward_hook(partial(keep, "value")) for layer in layers]
        try:
            with torch.inference_mode(), as_backend_error("run its BertModel"):
                output = self.model(
                    input_ids=torch.tensor([ids]), output_hidden_states=True, output_attentions=True, return_dict=True
                )
        finally:
            for hook in hooks:
                hook.remove()
        if not output.attentions or len(output.attentions) != len(layers):
            raise BackendError(
                "transformers returns no attentions; install the release that the extra names: " + REMEDY
            )
        found = (output.hidden_states, output.attentions, kept["attended"], kept["value"])
        return Opinion(*([tensor[0].numpy() for tensor in tensors] for tensors in found))

    def token_ids(self, texts: tuple[str, ...], limit: int) -> list[list[int]]:
        """The ids that transformers' own tokenizer of this folder gives, at most ``limit`` a text."""
        from tokenizers import normalizers
        from transformers import AutoTokenizer

        # Its loader reads far more of a config.json than says which tokenizer this is.
        values = self.folder.config
        config = {"model_type": "bert", **{key: values[key] for key in ("tokenizer_class",) if key in values}}
        with TemporaryDirectory() as name:
            copy = Path(name)
            for each in filter(self.folder.has, TRANSFORMER_FILES):
                shutil.copyfile(self.folder.file(each), copy / each)
            (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
            tokenizer = AutoTokenizer.from_pretrained(str(copy), local_files_only=True, trust_remote_code=False)
        if self.folder.sentence_settings()[1].get("do_lower_case") is True:  # a step that sentence-transformers adds
            backend = tokenizer.backend_tokenizer
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])
        encoded = (tokenizer(without_surrogates(text), truncation=True, max_length=limit) for text in texts)
        return [[int(i) for i in each["input_ids"]] for each in encoded]


def encoder_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values of a config.json those that say what the encoder computes, as far as they are there.

    Any other may be hostile, or ask a library for something that does not change what the encoder computes.
    """
    return {field.name: values[field.name] for field in dataclasses.fields(EncoderConfig) if field.name in values}


@contextmanager
def as_backend_error(what: str, who: str = "transformers") -> Iterator[None]:
    """Whatever a library raises for a model that it does not understand becomes a BackendError."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"{who} cannot {what}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries without progress bars, warnings, log lines and requests, on one thread; afterwards as before.

    On texts this short torch's threads mostly wait for each other.
    """
    import torch
    from huggingface_hub import constants
    from transformers.utils import logging as of_transformers

    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels = [logger.level for logger in loggers]
    bars, threads = of_transformers.is_progress_bar_enabled(), torch.get_num_threads()
    offline = constants.HF_HUB_OFFLINE
    of_transformers.disable_progress_bar()
    torch.set_num_threads(1)
    constants.HF_HUB_OFFLINE = True
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        constants.HF_HUB_OFFLINE = offline
        torch.set_num_threads(threads)
        if bars:
            of_transformers.enable_progress_bar()


def pooled(hidden: Float32, modes: tuple[str, ...]) -> Float32:
    """The poolings of sentence-transformers, written anew: [n, H] -> a vector of length 1, [H * modes]"""
    place = np.arange(1, len(hidden) + 1, dtype=np.float32)[:, None]  # [n, 1]
    parts = {
        "cls": lambda: hidden[0],
        "lasttoken": lambda: hidden[-1],
        "max": lambda: hidden.max(axis=0),
        "mean": lambda: hidden.sum(axis=0) / len(hidden),
        "mean_sqrt_len_tokens": lambda: hidden.sum(axis=0) / np.sqrt(len(hidden)),
        "weightedmean": lambda: (hidden * place).sum(axis=0) / place.sum(),
    }
    vector = np.concatenate([parts[mode]() for mode in modes])
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def first_stage(
    opinion: Opinion, ids: tuple[int, ...], policy: PruningPolicy, sample: Sample, config: EncoderConfig
) -> Kept:
    """The rows that the policy's first stage keeps by transformers' own numbers, as `select` defines them."""
    layer = next(iter(policy.plan))
    heads, n = config.num_attention_heads, len(ids)
    scores = None
    if policy.score in ("attention", "attention_value"):
        attention = opinion.attention[layer].astype(np.float64)  # [A, n, n]
        if policy.score == "attention_value":
            value = opinion.value[layer].reshape(n, heads, -1).astype(np.float64)  # [n, A, D]
            attention = attention * np.linalg.norm(value, axis=2).T[:, None, :]
        scores = (attention.sum(axis=(0, 1)) / (heads * n)).astype(np.float32)  # [n]
    batch = pack([ids], sample.prefix, sample.suffix)
    ranking = rank(policy, layer, scores, batch, np.arange(n), batch.offsets)
    _, selection, _ = select(np.ascontiguousarray(opinion.attended[layer]), batch.offsets, ranking)
    return next(stages_of(layer, selection, batch.offsets))


def how_many(blocks: Mapping[str, Blocks], policies: Mapping[str, PruningPolicy]) -> int:
    """The number of checks that `oracle_checks` makes with these: ids, layers, embeddings, rows."""
    return 1 + 2 * len(blocks) + sum(policy.score not in BLIND for policy in policies.values())


def oracle_checks(
    folder: Path,
    parameters: Parameters,
    blocks: Mapping[str, Blocks],
    sample: Sample,
    probes: Sample,
    pooling: PoolingConfig,
    limit: int,
    policies: Mapping[str, PruningPolicy],
) -> Iterator[Check]:
    """Everything that transformers can be asked about.

    Args:
        folder: the model's.
        parameters: its weights in float32.
        blocks: name -> a backend with these weights.
        sample: the texts.
        probes: these and more, of which the token ids are compared.
        pooling: as the model's files say.
        limit: max_seq_length.
        policies: name -> policy, of which the first stage is compared.

    Raises:
        BackendError: transformers cannot build or run the model.
    """
    with quiet():
        oracle = Oracle(folder, parameters)
        yield token_check(PEER, probes, lambda: oracle.token_ids(probes.texts, limit))
        opinions = [oracle.ask(ids) for ids in sample.ids]
        right = np.stack([pooled(opinion.hidden[-1], pooling.modes) for opinion in opinions])  # [B, W]
    for name, each in blocks.items():
        yield from _number_checks(name, each, opinions, right, sample, pooling)
    for name, policy in policies.items():
        if policy.score in BLIND:
            continue
        theirs = [
            [first_stage(opinion, ids, policy, sample, parameters.config)]
            for opinion, ids in zip(opinions, sample.ids, strict=True)
        ]
        yield _kept_check(name, policy, next(iter(blocks.values())), theirs, sample)


def token_check(group: str, sample: Sample, theirs: Callable[[], list[list[int]]]) -> Check:
    """The ids of a sample against those that another library gives."""
    title = "token ids"
    try:
        wanted = theirs()
    except Exception as error:  # whatever its loader raises for a folder that it does not understand
        return judged(group, title, False, "its tokenizer cannot be loaded", "the same ids", [first_line(error)])
    faults = []
    for text, (ours, ids) in enumerate(zip(sample.ids, wanted, strict=True)):
        if list(ours) != ids:
            apart = (i for i, (one, other) in enumerate(zip(ours, ids, strict=False)) if one != other)
            place = next(apart, min(len(ours), len(ids)))
            faults.append(f"{sample.named(text)}: {len(ours)} ids, wanted {len(ids)}; they differ from id {place} on")
    measured = f"equal for {len(wanted) - len(faults)} of {counted(len(wanted), 'text')}"
    return judged(group, title, not faults, measured, "all", faults)


def _number_checks(
    name: str, blocks: Blocks, opinions: list[Opinion], right: Float32, sample: Sample, pooling: PoolingConfig
) -> Iterator[Check]:
    layers: Tallies = defaultdict(Tally)
    ours = []
    try:
        for part, batch, watch, encoded in watched(blocks, sample):
            ours.append(unit_vectors(encoded, pooling))
            for opinion, rows in zip(opinions[part], segments(batch.offsets), strict=True):
                for (place, state), theirs in zip(watch.states.items(), opinion.hidden, strict=True):
                    layers[place].add(theirs, state[rows])
    except MinitransError as error:
        yield broken(PEER, f"layers, {name}", "finite numbers", error)
        return
    bars = BARS["float32"]
    yield difference_check(PEER, f"layers, {name}", layers, bars.layer)
    yield embedding_check(PEER, f"embeddings, {name}", right, np.concatenate(ours), sample, bars.cosine, bars.unit)


def _kept_check(name: str, policy: PruningPolicy, blocks: Blocks, theirs: list[list[Kept]], sample: Sample) -> Check:
    title, bar = f"rows, {name}", BARS["float32"].tie
    try:
        ours = [stages[:1] for _, _, watch, _ in watched(blocks, sample, policy) for stages in watch.stages]
    except MinitransError as error:
        return broken(PEER, title, "the same rows", error)
    measured, faults, _ = kept_rows(theirs, ours, sample, bar, policy)
    more = len(policy.plan) - 1
    note = [f"the first of {more + 1} stages; the others start from fewer rows"] if more else []
    return judged(PEER, title, not faults, measured, f"all but ties up to {bar:.0e}", [*faults, *note])
