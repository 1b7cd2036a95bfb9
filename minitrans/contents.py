"""What may lie beside a model: the one list of files and keys that are understood, irrelevant or refused.

Each file that transformers or sentence-transformers would read for a BERT encoder stands here, and each key of its
JSON files. What is understood is honoured; what is known not to change an embedding is passed over; the rest is
refused by name. Any other file in a model folder is read by neither library and is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from minitrans.errors import ConfigError, UnsupportedModelError

_J = TypeVar("_J", dict[str, Any], list[Any])

JSON_LIMIT = 16 * 1024 * 1024  # bytes; the largest honest file of this kind is under 100 kB
_LFS_POINTER = b"version https://git-lfs.github.com/"

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# sentence-transformers takes the first of these that says anything.
SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    *(f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta")),
    "sentence_xlnet_config.json",
)
# Read where they are, beside modules.json.
OUTER_FILES = ("modules.json", "config_sentence_transformers.json")
# Read where they are, in the folder of the transformer: the same folder, or one that modules.json names.
TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TRANSFORMER_FILES = ("config.json", "tokenizer.json", "vocab.txt", *SENTENCE_CONFIGS, *TOKEN_FILES)
_ADAPTER = (
    "a PEFT adapter, which changes the weights; merge it into the model with peft "
    "(PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)) and give the merged folder, "
    "or remove the adapter's files to get the embeddings of the base model alone"
)
_PROCESSOR = (
    "the settings of a processor of images or sound, wanted a model of texts alone; remove the file if it is one"
)
REFUSED_FILES = {
    "adapter_config.json": _ADAPTER,
    "adapter_model.safetensors": _ADAPTER,
    "adapter_model.bin": _ADAPTER,
    "processor_config.json": _PROCESSOR,
    "preprocessor_config.json": _PROCESSOR,
}
MODULE_FOLDER = re.compile(r"\d+_\w+")
_SHARD = re.compile(r"\w+-\d{5}-of-\d{5}\.safetensors")


def files_to_fetch(names: Iterable[str], modules: Iterable[str] | None = None) -> list[str]:
    """Which files of a repository a model needs here: those that are read, and the small ones that get it refused.

    Args:
        names: every file of the repository, with forward slashes.
        modules: the folders that its modules.json names; None takes those that are named as modules are ("1_Pooling").
    """
    known = {*names}
    folders = None if modules is None else {*modules}

    def is_needed(name: str) -> bool:
        folder, _, file = name.rpartition("/")
        if folder and not (MODULE_FOLDER.fullmatch(folder) if folders is None else folder in folders):
            return False
        if (
            folder
            and file.endswith(("safetensors", INDEX_FILE))
            and known.isdisjoint(f"{folder}/{each}" for each in ("tokenizer.json", "vocab.txt"))
        ):
            return False  # the weights of a module that is refused, not of a transformer
        if file in TRANSFORMER_FILES or (file in REFUSED_FILES and file.endswith(".json")):
            return True
        if f"{folder}/{WEIGHTS_FILE}".lstrip("/") in known:
            return file == WEIGHTS_FILE or name in OUTER_FILES
        return file == INDEX_FILE or name in OUTER_FILES or bool(_SHARD.fullmatch(file))

    return sorted(name for name in known if is_needed(name))


# Keys


@dataclass(frozen=True)
class _Keys:
    """The keys of one JSON file; ``refused`` has the reason for each.

    A refused key may be there with a value that says nothing, or with one of its ``harmless`` values. A key that is
    none of these is refused too, unless the file has keys for ``others`` than encoders.
    """

    understood: frozenset[str] = frozenset()
    irrelevant: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    harmless: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    others: bool = False


def word_set(*lines: str) -> frozenset[str]:
    """The words of some lines."""
    return frozenset(" ".join(lines).split())


_NOTHING: tuple[Any, ...] = (None, False, "", [], {})
_LIMITS = "limits of their own for queries and documents are not supported; delete the key to cut both at {limit}"
_ARGUMENTS = "arguments for transformers are not supported; write what they say into {where} and delete the key"
_CODE = "code of the model's own is not run; there is no way to use this model here"
_PROCESSED = "a processor of other inputs than texts is not supported"
SUPPORTED = "minitrans runs BERT-family encoders: model_type 'bert' with absolute positions"

_KEYS: dict[str, _Keys] = {
    "config.json": _Keys(
        refused={
            "auto_map": "so the model is computed by code of its own, which is not run; delete the key only if the "
            "folder holds a plain BERT that needs none",
            "pruned_heads": "attention heads that were removed; save the model without the key and with whole matrices",
            "processor_class": _PROCESSED,
            **dict.fromkeys(
                ("is_decoder", "add_cross_attention", "is_encoder_decoder"), f"so this is a decoder; {SUPPORTED}"
            ),
        },
        others=True,
    ),
    "modules.json": _Keys(word_set("type path name"), word_set("idx kwargs")),
    "sentence_bert_config.json": _Keys(
        word_set("max_seq_length do_lower_case"),
        word_set("unpad_inputs"),
        {
            **dict.fromkeys(("query_length", "document_length"), _LIMITS.format(limit="max_seq_length")),
            "query_expansion": "expanded queries are those of multi-vector models, which are not supported",
            **dict.fromkeys(("tokenizer_args", "processor_kwargs"), _ARGUMENTS.format(where="tokenizer_config.json")),
            **dict.fromkeys(
                ("model_args", "model_kwargs", "config_args", "config_kwargs"), _ARGUMENTS.format(where="config.json")
            ),
            "processing_kwargs": "arguments for the tokenizer's calls are not supported; delete the key to use none",
            "tokenizer_name_or_path": "the tokenizer is that of the model's own folder; copy the files of this one "
            "there and delete the key",
            "transformer_task": "wanted 'feature-extraction'; heads of other tasks are not supported",
            "modality_config": "wanted the last hidden state of texts; other outputs and inputs are not supported",
            "module_output_name": "wanted 'token_embeddings'; other outputs are not supported",
        },
        {
            "transformer_task": ("feature-extraction",),
            "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
            "module_output_name": ("token_embeddings",),
        },
    ),
    "Pooling": _Keys(
        word_set(
            "embedding_dimension word_embedding_dimension pooling_mode include_prompt",
            "pooling_mode_cls_token pooling_mode_max_tokens pooling_mode_mean_tokens",
            "pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken",
        )
    ),
    "Normalize": _Keys(
        refused=dict.fromkeys(
            ("module_input_name", "module_output_name"), "wanted 'sentence_embedding', the vector of the whole text"
        ),
        harmless=dict.fromkeys(("module_input_name", "module_output_name"), ("sentence_embedding",)),
    ),
    "Dropout": _Keys(irrelevant=word_set("dropout")),
    "config_sentence_transformers.json": _Keys(
        word_set("prompts default_prompt_name similarity_fn_name truncate_dim"),
        word_set("__version__ requirements"),
        {
            "model_type": "wanted 'SentenceTransformer': one vector per text; other kinds of models are not supported",
            "activation_fn": "the activation of a cross-encoder, which is not supported",
            "max_active_dims": "a setting of sparse encoders, which are not supported",
        },
        {"model_type": ("SentenceTransformer",)},
    ),
    "tokenizer_config.json": _Keys(
        word_set(
            "added_tokens_decoder additional_special_tokens extra_special_tokens model_specific_special_tokens",
            "do_lower_case strip_accents tokenize_chinese_chars tokenizer_class",
            "model_max_length max_len truncation_side",
        ),
        word_set(
            # names and notes
            "name_or_path _name_or_path special_tokens_map_file tokenizer_file vocab_file full_tokenizer_file backend",
            "is_local local_files_only files_loaded init_inputs verbose slow_tokenizer_class use_fast from_slow legacy",
            "cache_dir force_download resume_download revision subfolder use_auth_token token trust_remote_code",
            "transformers_version model_type task device_map _commit_hash",
            # padding, which is never done, and truncation, which is at model_max_length
            "padding padding_side pad_to_multiple_of pad_token_type_id pad_to_max_length",
            "max_length truncation truncation_strategy stride max_seq_length return_tensors",
            # what comes out beside the ids, and what is done when ids become text again
            "model_input_names return_token_type_ids return_attention_mask clean_up_tokenization_spaces",
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output wordpieces_prefix",
            # of conversations
            "chat_template response_template response_schema chat_control_tokens",
            # of tokenizers in Python, or of SentencePiece: tokenizer.json has their effect
            "do_basic_tokenize never_split clean_text sp_model_kwargs add_prefix_space keep_accents remove_space",
            "lang src_lang tgt_lang separate_vocabs",
        ),
        {
            "split_special_tokens": "splitting special tokens is not supported; delete the key to keep them whole",
            "auto_map": _CODE,
            "processor_class": _PROCESSED,
            "fast_tokenizer_files": "tokenizers that depend on a release are not supported; delete the key to use "
            "tokenizer.json",
            **dict.fromkeys(
                ("add_bos_token", "add_eos_token"),
                "tokens around a text follow the template of tokenizer.json; delete the key to follow it",
            ),
        },
    ),
    "special_tokens_map.json": _Keys(
        word_set("additional_special_tokens extra_special_tokens model_specific_special_tokens")
    ),
}
_KEYS |= dict.fromkeys(SENTENCE_CONFIGS, _KEYS["sentence_bert_config.json"])


def is_token_key(key: str) -> bool:
    """Whether a key of a tokenizer's settings names a special token: "cls_token", or a model's own "user_token"."""
    return key.endswith("_token") and not key.startswith("add_")


def check_keys(values: Mapping[str, Any], kind: str, source: str) -> None:
    """Refuse by name each key that would change an embedding and is not followed, and each that is not known.

    Args:
        values: the object.
        kind: the name of the file, or the kind of the module that it configures.
        source: the file, for the message.

    Raises:
        UnsupportedModelError: names the key, its value and a remedy.
    """
    keys = _KEYS[kind]
    for key, value in values.items():
        known = key in keys.understood or key in keys.irrelevant or (keys.others and key not in keys.refused)
        if known or (kind in TOKEN_FILES and is_token_key(key)):
            continue
        if any(type(value) is type(each) and value == each for each in (*_NOTHING, *keys.harmless.get(key, ()))):
            continue
        why = keys.refused.get(key)
        if why is None:
            why = "which is not known here and may change the embeddings; delete the key if it does not"
        raise UnsupportedModelError(f"{source}: {key} is {value!r:.100}, {why}")


# Files


@overload
def read_json(path: Path) -> dict[str, Any]: ...
@overload
def read_json(path: Path, kind: type[_J]) -> _J: ...
def read_json(path: Path, kind: type[Any] = dict) -> Any:
    """Read a JSON object (or a list). ConfigError if it is missing, too large, not JSON, or of another kind."""
    try:
        with path.open("rb") as file:
            data = file.read(JSON_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > JSON_LIMIT:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes, wanted at most {JSON_LIMIT}")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        wrong = f"is not valid JSON ({error}), wanted a {kind.__name__}; restore the file"
        raise ConfigError(f"{path} {lfs_pointer(path) or wrong}") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}, wanted a {kind.__name__}")
    return value


def lfs_pointer(path: Path) -> str:
    """What is wrong with a file that is a Git LFS pointer, and the remedy; "" if it is none."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return (
                "is a Git LFS pointer, not the file itself: run `git lfs install` and `git lfs pull` in "
                f"{path.parent}, or fetch the model with `minitrans pull`"
            )
    return ""
