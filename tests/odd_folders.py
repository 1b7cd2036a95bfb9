"""Model folders that are unlike the usual ones, each of one kind: honoured or refused by name.

Every function is given the folder of the random model "plain" and changes it; `KINDS` says what is to come of it: None
where SentenceTransformer's embeddings are wanted, else the words that a refusal has to hold.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import random_models

SPEC = random_models.find_spec("plain")
ROWS = SPEC.vocab_size
TOKEN = {"content": "<user>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def read(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(folder: Path, name: str, **changes: object) -> None:
    """Change keys of a JSON object; None takes one away."""
    values = read(folder / name) if (folder / name).exists() else {}
    values |= changes
    write(folder / name, {key: value for key, value in values.items() if value is not ...})


def one_row_more(folder: Path) -> None:
    """Room for an added token behind the vocabulary."""
    tensors = random_models.write_tensors(SPEC)
    name = "embeddings.word_embeddings.weight"
    more = np.random.default_rng(7).normal(size=(1, SPEC.hidden_size)).astype(np.float32)
    random_models.write_weights(folder, tensors | {name: np.concatenate([tensors[name], more])})
    edit(folder, "config.json", vocab_size=ROWS + 1)


# Tokens


def added_tokens_json(folder: Path) -> None:
    one_row_more(folder)
    (folder / "tokenizer.json").unlink()
    write(folder / "added_tokens.json", {"<user>": ROWS})


def added_tokens_decoder(folder: Path) -> None:
    one_row_more(folder)
    edit(folder, "tokenizer_config.json", added_tokens_decoder={str(ROWS): TOKEN | {"special": False}})


def additional_special_tokens(folder: Path) -> None:
    """A token of the vocabulary that is whole only because a file says so."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(folder, name, additional_special_tokens=["##tion"])


def one_token_too_many(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", added_tokens_decoder={str(ROWS): TOKEN})


def cased(folder: Path) -> None:
    """tokenizer.json does not lower-case, and nothing says that it should not."""
    tokenizer = read(folder / "tokenizer.json")
    tokenizer["normalizer"]["lowercase"] = False
    write(folder / "tokenizer.json", tokenizer)
    edit(folder, "tokenizer_config.json", do_lower_case=...)


def accents_null(folder: Path) -> None:
    tokenizer = read(folder / "tokenizer.json")
    tokenizer["normalizer"]["strip_accents"] = False
    write(folder / "tokenizer.json", tokenizer)
    edit(folder, "tokenizer_config.json", strip_accents=None)


def no_tokenizer_config(folder: Path) -> None:
    cased(folder)
    (folder / "tokenizer_config.json").unlink()


def lower_case_of_sentences(folder: Path) -> None:
    cased(folder)
    edit(folder, "tokenizer_config.json", do_lower_case=False)
    edit(folder, "sentence_bert_config.json", do_lower_case=True)


def other_tokenizer_class(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit(folder, "tokenizer_config.json", tokenizer_class="BertweetTokenizer")


def normaliser_bomb(folder: Path) -> None:
    tokenizer = read(folder / "tokenizer.json")
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [double] * 60}
    write(folder / "tokenizer.json", tokenizer)


def newer_tokenizer(folder: Path) -> None:
    tokenizer = read(folder / "tokenizer.json")
    tokenizer["normalizer"] = {"type": "NormalizerOfTomorrow"}
    write(folder / "tokenizer.json", tokenizer)


# Modules and settings


def modules(folder: Path, *types: str, first: str = "") -> None:
    paths = [first, *(f"{i}_{name.rpartition('.')[2]}" for i, name in enumerate(types) if i)]
    write(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": paths[i], "type": name} for i, name in enumerate(types)],
    )


def old_layout(folder: Path) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [each for each in folder.iterdir() if each.is_file() and each.name != "modules.json"]:
        shutil.move(file, inner / file.name)
    edit(folder, "1_Pooling/config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    names = ("Transformer", "Pooling", "Normalize")
    modules(folder, *(f"sentence_transformers.models.{name}" for name in names), first="0_Transformer")


def foreign_module(folder: Path) -> None:
    modules(folder, "sentence_transformers.models.Transformer", "my_package.models.Pooling")


def unknown_module(folder: Path) -> None:
    modules(
        folder,
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
        "sentence_transformers.models.LayerNorm",
    )


def dropout(folder: Path) -> None:
    names = ("Transformer", "Pooling", "Dropout")
    modules(folder, *(f"sentence_transformers.models.{name}" for name in names), first=".")
    (folder / "2_Dropout").mkdir()
    write(folder / "2_Dropout" / "config.json", {"dropout": 0.5})


def sentence_key(key: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "sentence_bert_config.json", **{key: value})


def limit(value: int) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "sentence_bert_config.json", max_seq_length=value)


def limit_of_tokenizer(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", model_max_length=20)


def prompts(folder: Path) -> None:
    settings = {"prompts": {"query": "find ", "document": "note: ", "odd": "[SEP] "}, "default_prompt_name": "odd"}
    write(folder / "config_sentence_transformers.json", settings | {"similarity_fn_name": "dot", "truncate_dim": 12})


# Weights


def adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "target_modules": ["query"]}
    write(folder / "adapter_config.json", settings)
    name = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    random_models.write_safetensors(folder / "adapter_model.safetensors", {name: np.ones((2, 32), np.float32)})


def heads(folder: Path) -> None:
    more = {f"{name}.weight": np.ones((2, 32), np.float32) for name in ("qa_outputs", "score", "crf", "my.head")}
    random_models.write_weights(folder, random_models.write_tensors(SPEC) | more)


def pointer(name: str) -> Callable[[Path], None]:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    return lambda folder: (folder / name).write_text(text) and None


KINDS: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "added_tokens.json": (added_tokens_json, None),
    "added_tokens_decoder": (added_tokens_decoder, None),
    "additional_special_tokens": (additional_special_tokens, None),
    "one token too many": (one_token_too_many, "<user>"),
    "do_lower_case missing": (cased, None),
    "strip_accents null": (accents_null, None),
    "no tokenizer_config.json": (no_tokenizer_config, None),
    "do_lower_case of sentences": (lower_case_of_sentences, None),
    "another tokenizer class": (other_tokenizer_class, "BertweetTokenizer"),
    "a normaliser bomb": (normaliser_bomb, "normalizer"),
    "a newer tokenizer": (newer_tokenizer, "tokenizer.json"),
    "0_Transformer": (old_layout, None),
    "a foreign module": (foreign_module, "my_package.models.Pooling"),
    "another module": (unknown_module, "LayerNorm"),
    "Dropout and a path of .": (dropout, None),
    "query_length": (sentence_key("query_length", 4), "query_length"),
    "document_length": (sentence_key("document_length", 4), "document_length"),
    "tokenizer_args": (sentence_key("tokenizer_args", {"do_lower_case": False}), "tokenizer_args"),
    "tokenizer_name_or_path": (sentence_key("tokenizer_name_or_path", "bert-base-cased"), "tokenizer_name_or_path"),
    "a limit of 16 tokens": (limit(16), None),
    "a limit of the tokenizer": (limit_of_tokenizer, None),
    "prompts and dimensions": (prompts, None),
    "an adapter": (adapter, "adapter"),
    "heads": (heads, None),
    "weights that are a pointer": (pointer("model.safetensors"), "Git LFS"),
    "a tokenizer that is a pointer": (pointer("tokenizer.json"), "Git LFS"),
    "a configuration that is a pointer": (pointer("config.json"), "Git LFS"),
}


def make(folder: Path, kind: str) -> Path:
    """The folder of this kind."""
    random_models.write_model(folder, SPEC)
    KINDS[kind][0](folder)
    return folder
