"""What may lie beside a model: each file and key is followed, known not to matter, or refused by name."""

import json
import shutil

import numpy as np
import pytest
from random_models import edit_json, find_spec, vocabulary, write_model, write_safetensors, write_tensors

from minitrans.contents import check_keys, files_to_fetch, read_json
from minitrans.errors import ConfigError, ModelError, ModelNotFoundError, UnsupportedModelError, WeightsError
from minitrans.models.config import EncoderConfig
from minitrans.models.export import quantize_folder
from minitrans.models.folder import ModelFolder
from minitrans.models.sentence import PoolingConfig, sentence_settings
from minitrans.models.tokenization.tokenizer import Tokenizer
from minitrans.models.weights import load_parameters
from minitrans.sentences.sentence_encoder import SentenceEncoder

SPEC = find_spec("plain")
WIDTH = SPEC.hidden_size
PACKAGE = "sentence_transformers.models"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", SPEC)


def tokenizer_of(folder):
    return Tokenizer.from_folder(folder, EncoderConfig.from_folder(folder))


def refusal(error, call, *arguments):
    """The message of the error that a call raises."""
    with pytest.raises(error) as caught:
        call(*arguments)
    assert type(caught.value) is error
    return str(caught.value)


def set_modules(folder, *modules):
    """modules.json of these types and paths."""
    entries = [{"idx": i, "name": str(i), "type": kind, "path": path} for i, (kind, path) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(entries))


# --- files


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_refused_by_name(folder, name, alone):
    if alone:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    (folder / name).write_text("{}")
    message = refusal(UnsupportedModelError, load_parameters, folder)
    assert message.startswith(f"{folder / name} is a PEFT adapter")
    assert "merge_and_unload" in message


def test_an_adapter_beside_an_inner_transformer(folder):
    inner(folder)
    (folder / "0_Transformer" / "adapter_config.json").write_text("{}")
    assert "is a PEFT adapter" in refusal(UnsupportedModelError, load_parameters, folder)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        ".gitattributes",
        "LICENSE",
        "onnx/model.onnx",
        "openvino/openvino_model.xml",
        "pytorch_model.bin",
        "tf_model.h5",
        "training_args.bin",
        "data_config.json",
        "train_script.py",
        "merges.txt",
        "unigram.json",
        "model.fp16.safetensors",
    ],
)
def test_files_that_do_not_matter(folder, name):
    before = tokenizer_of(folder).encode(["play music"])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("anything")
    load_parameters(folder)
    PoolingConfig.from_folder(folder, WIDTH)
    assert tokenizer_of(folder).encode(["play music"]) == before


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 90868376\n"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "modules.json", "tokenizer_config.json", "vocab.txt"]
)
def test_a_git_lfs_pointer_is_called_one(folder, name):
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(ModelError, match="is a Git LFS pointer, not the file itself: run `git lfs") as caught:
        SentenceEncoder(folder, backend="reference")
    assert str(caught.value).startswith(str(folder / name))


def test_what_is_fetched_is_what_is_read():
    names = [
        "README.md",
        "LICENSE",
        ".gitattributes",
        "config.json",
        "model.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "onnx/config.json",
        "onnx/model.onnx",
        "onnx/model.safetensors",
        "openvino/config.json",
        "tf_model.h5",
        "train_script.py",
        "adapter_config.json",
        "adapter_model.safetensors",
        "1_Pooling/modules.json",
        "deep/1_Pooling/config.json",
    ]
    wanted = [
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "adapter_config.json",
        "added_tokens.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert files_to_fetch(names) == wanted
    assert "onnx/config.json" in files_to_fetch(names, ["onnx"])


def test_shards_and_an_inner_transformer_are_fetched():
    shards = [f"0_Transformer/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = [*shards, "0_Transformer/model.safetensors.index.json", "0_Transformer/vocab.txt", "modules.json"]
    assert files_to_fetch(
        [*names, "onnx/model-00001-of-00002.safetensors", "model.fp16-00001-of-00002.safetensors"]
    ) == (sorted(names))


@pytest.mark.parametrize("modules", [None, ["", "1_Pooling", "2_Dense"]])
def test_weights_of_other_modules_are_not_fetched(modules):
    names = ["2_Dense/config.json", "config.json", "model.safetensors", "modules.json"]
    more = ["1_Pooling/model.safetensors", "2_Dense/model.safetensors", "2_Dense/x-00001-of-00002.safetensors"]
    assert files_to_fetch([*names, *more, "2_Dense/model.safetensors.index.json"], modules) == names


# --- modules


@pytest.mark.parametrize(
    "kind",
    [
        "my_package.Transformer",
        "custom_st.Transformer",
        "Transformer",
        "sentence_transformers_x.models.Transformer",
        "",
    ],
)
def test_code_of_the_models_own_is_refused(folder, kind):
    set_modules(folder, (kind, ""), (f"{PACKAGE}.Pooling", "1_Pooling"))
    message = refusal(UnsupportedModelError, load_parameters, folder)
    assert f"the type {kind!r} is no module of sentence-transformers" in message


def test_the_modules_of_other_releases(folder):
    set_modules(
        folder,
        ("sentence_transformers.base.modules.transformer.Transformer", "."),
        ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "./1_Pooling/"),
        ("sentence_transformers.sentence_transformer.modules.dropout.Dropout", "2_Dropout"),
        ("sentence_transformers.base.modules.normalize.Normalize", "3_Normalize"),
    )
    (folder / "2_Dropout").mkdir()
    (folder / "2_Dropout" / "config.json").write_text('{"dropout": 0.3}')
    load_parameters(folder)
    assert PoolingConfig.from_folder(folder, WIDTH) == PoolingConfig(("mean",), normalize=True)


@pytest.mark.parametrize(
    "kinds",
    [
        ("Pooling", "Transformer"),
        ("Transformer", "Dropout", "Pooling"),
        ("Pooling",),
        ("Transformer", "Pooling", "Dropout", "Pooling"),
        ("Dropout", "Transformer", "Pooling"),
    ],
)
def test_modules_that_are_out_of_place(folder, kinds):
    set_modules(folder, *((f"{PACKAGE}.{kind}", "1_Pooling" if kind == "Pooling" else "") for kind in kinds))
    assert "is out of place" in refusal(UnsupportedModelError, PoolingConfig.from_folder, folder, WIDTH)


def test_two_transformers(folder):
    set_modules(
        folder, (f"{PACKAGE}.Transformer", ""), (f"{PACKAGE}.Transformer", "1"), (f"{PACKAGE}.Pooling", "1_Pooling")
    )
    assert "2 Transformer modules, wanted one" in refusal(UnsupportedModelError, load_parameters, folder)


def test_two_modules_of_one_name(folder):
    modules = [{"name": "0", "type": f"{PACKAGE}.{kind}", "path": ""} for kind in ("Transformer", "Pooling")]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "two modules are named '0'" in refusal(ConfigError, load_parameters, folder)


def test_a_normalisation_of_something_else(folder):
    (folder / "2_Normalize").mkdir(exist_ok=True)
    config = folder / "2_Normalize" / "config.json"
    config.write_text('{"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}')
    assert PoolingConfig.from_folder(folder, WIDTH).normalize
    config.write_text('{"module_input_name": "token_embeddings"}')
    assert "wanted 'sentence_embedding'" in refusal(UnsupportedModelError, PoolingConfig.from_folder, folder, WIDTH)


# --- a transformer in a folder of its own


def inner(folder, name="0_Transformer"):
    """Move what belongs to the transformer into a folder of its own, as old sentence-transformers wrote it."""
    (folder / name).mkdir()
    for file in [*folder.glob("*.json"), *folder.glob("*.safetensors"), folder / "vocab.txt"]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(folder / name / file.name)
    set_modules(folder, (f"{PACKAGE}.Transformer", name), (f"{PACKAGE}.Pooling", "1_Pooling"))
    return folder / name


@pytest.mark.parametrize("name", ["0_Transformer", "0_BERT"])
def test_a_transformer_in_a_folder_of_its_own(folder, name):
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=9)
    set_modules(folder, (f"{PACKAGE}.Transformer", ""), (f"{PACKAGE}.Pooling", "1_Pooling"))
    flat = SentenceEncoder(shutil.copytree(folder, folder.parent / "flat"), backend="reference", threads=1)
    there = inner(folder, name)
    encoder = SentenceEncoder(folder, backend="reference", threads=1)
    assert (encoder.max_seq_length, encoder.pooling.modes) == (9, ("cls",))
    np.testing.assert_array_equal(encoder.encode("play music"), flat.encode("play music"))
    message = refusal(ConfigError, load_parameters, there)
    assert f"give {folder}" in message
    copy = quantize_folder(folder, folder.parent / "int8")
    assert load_parameters(copy).precision == "int8"
    assert tokenizer_of(copy).encode(["play"]) == tokenizer_of(folder).encode(["play"])
    assert load_parameters(shutil.copytree(there, folder.parent / "alone")).precision == "float32"


def test_an_inner_transformer_in_the_hubs_cache(folder, tmp_path):
    inner(folder)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for i, file in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / str(i))
        link.symlink_to(blobs / str(i))
    load_parameters(snapshot)
    tokenizer_of(snapshot)


@pytest.mark.parametrize("path", ["../model", "/etc", "a/../../b"])
def test_a_transformer_outside_the_folder(folder, path):
    set_modules(folder, (f"{PACKAGE}.Transformer", path), (f"{PACKAGE}.Pooling", "1_Pooling"))
    assert "inside the model folder" in refusal(ConfigError, load_parameters, folder)


def test_an_inner_folder_that_is_missing(folder):
    set_modules(folder, (f"{PACKAGE}.Transformer", "0_Transformer"), (f"{PACKAGE}.Pooling", "1_Pooling"))
    assert str(folder / "0_Transformer" / "config.json") in refusal(ModelNotFoundError, load_parameters, folder)


# --- keys

SENTENCE_KEYS = {
    "query_length": 4,
    "document_length": 4,
    "query_expansion": {"length": 8},
    "tokenizer_args": {"do_lower_case": False},
    "processor_kwargs": {"do_lower_case": False},
    "model_args": {"num_hidden_layers": 1},
    "config_args": {"num_hidden_layers": 1},
    "tokenizer_name_or_path": "bert-base-cased",
    "transformer_task": "fill-mask",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
    "processing_kwargs": {"text": {"max_length": 8}},
    "something_new": 1,
}


@pytest.mark.parametrize(("key", "value"), SENTENCE_KEYS.items())
@pytest.mark.parametrize("file", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_keys_of_the_transformer_that_are_refused(folder, file, key, value):
    (folder / "sentence_bert_config.json").unlink()
    (folder / file).write_text(json.dumps({key: value}))
    message = refusal(UnsupportedModelError, tokenizer_of, folder)
    assert message.startswith(f"{folder / file}: {key} is {value!r}, ")


def test_keys_that_say_nothing(folder):
    text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    values = dict.fromkeys(SENTENCE_KEYS) | {"tokenizer_args": {}, "transformer_task": "feature-extraction"}
    values |= {"modality_config": text, "module_output_name": "token_embeddings", "unpad_inputs": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(values))
    assert tokenizer_of(folder).max_seq_length == 64


def test_limits_under_the_name_of_another_kind_of_model(folder):
    (folder / "sentence_bert_config.json").write_text("{}")
    (folder / "sentence_distilbert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    assert tokenizer_of(folder).max_seq_length == 12


@pytest.mark.parametrize("value", [0, 1, "true", []])
def test_lower_case_that_is_no_choice(folder, value):
    edit_json(folder / "sentence_bert_config.json", do_lower_case=value)
    assert "do_lower_case is" in refusal(ConfigError, tokenizer_of, folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "CrossEncoder"),
        ("model_type", "SparseEncoder"),
        ("activation_fn", "torch.nn.Sigmoid"),
        ("max_active_dims", 256),
        ("query_prefix", "[Q] "),
    ],
)
def test_settings_of_other_kinds_of_models(folder, key, value):
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps({"__version__": {}, "model_type": "SentenceTransformer", key: value}))
    assert refusal(UnsupportedModelError, lambda: sentence_settings(ModelFolder.open(folder))).startswith(
        f"{file}: {key} is {value!r}, "
    )


@pytest.mark.parametrize(("key", "value"), [("pooling_mode_median", True), ("attention", "full"), ("dropout", 0.1)])
def test_keys_of_the_pooling_that_are_not_known(folder, key, value):
    edit_json(folder / "1_Pooling" / "config.json", **{key: value})
    assert f"{key} is {value!r}" in refusal(UnsupportedModelError, PoolingConfig.from_folder, folder, WIDTH)


@pytest.mark.parametrize(("key", "value"), [("include_prompt", None), ("pooling_mode_cls_token", 1)])
def test_choices_of_the_pooling_that_are_none(folder, key, value):
    edit_json(folder / "1_Pooling" / "config.json", **{key: value})
    message = refusal(ConfigError, PoolingConfig.from_folder, folder, WIDTH)
    assert f"{key} is {value!r}, wanted true or false" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split_special_tokens", True),
        ("auto_map", {"AutoTokenizer": ["own.Tokenizer", None]}),
        ("fast_tokenizer_files", ["tokenizer.4.0.json"]),
        ("add_eos_token", True),
        ("vocab", {"a": 0}),
    ],
)
def test_keys_of_the_tokenizer_that_are_refused(folder, key, value):
    edit_json(folder / "tokenizer_config.json", **{key: value})
    assert f"{key} is {value!r}" in refusal(UnsupportedModelError, tokenizer_of, folder)


def test_keys_of_the_tokenizer_that_do_not_matter(folder):
    before = tokenizer_of(folder).encode(["play"])
    harmless = {"name_or_path": "x", "max_length": 3, "stride": 1, "padding_side": "left", "never_split": None}
    harmless |= {"clean_up_tokenization_spaces": True, "add_bos_token": False, "chat_template": "{}", "new_key": None}
    edit_json(folder / "tokenizer_config.json", **harmless)
    assert tokenizer_of(folder).encode(["play"]) == before


@pytest.mark.parametrize("key", ["auto_map", "pruned_heads", "processor_class"])
def test_keys_of_the_configuration_that_are_refused(folder, key):
    edit_json(folder / "config.json", **{key: {"0": [1]}})
    message = refusal(UnsupportedModelError, load_parameters, folder)
    assert message.startswith(f"{folder / 'config.json'}: {key} is ")
    edit_json(folder / "config.json", **{key: {}})
    load_parameters(folder)


def test_a_configuration_that_does_not_say_what_it_is(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    assert 'add "model_type": "bert"' in refusal(UnsupportedModelError, load_parameters, folder)


def test_values_of_another_type_are_not_nothing():
    check_keys({"query_length": None, "tokenizer_args": {}}, "sentence_bert_config.json", "x")
    with pytest.raises(UnsupportedModelError, match="query_length is 0"):  # 0 == False
        check_keys({"query_length": 0}, "sentence_bert_config.json", "x")


# --- heads


@pytest.mark.parametrize(
    "name", ["qa_outputs.weight", "score.weight", "crf.transitions", "heads.0.bias", "encoder_2.x"]
)
def test_heads_of_any_name(folder, name):
    write_safetensors(folder / "model.safetensors", write_tensors(SPEC) | {name: np.full(3, np.nan, np.float32)})
    load_parameters(folder)


@pytest.mark.parametrize("name", ["encoder.layer.0.x", "embeddings.x", "encoder.relative.weight", "lora_A.weight"])
def test_tensors_inside_the_encoder_are_refused(folder, name):
    write_safetensors(folder / "model.safetensors", write_tensors(SPEC) | {name: np.ones(3, np.float32)})
    assert f"unexpected tensors: {name}" in refusal(WeightsError, load_parameters, folder)


def test_a_folder_that_was_only_looked_at_is_refused_too(folder):
    (folder / "adapter_config.json").write_text("{}")
    looked = ModelFolder(folder)
    assert looked.has("adapter_config.json")
    for load in (load_parameters, EncoderConfig.from_folder, ModelFolder.open):
        assert "is a PEFT adapter" in refusal(UnsupportedModelError, load, looked)


def test_each_json_file_is_read_once(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "minitrans.models.folder.read_json", lambda *given: seen.append(given[0].name) or read_json(*given)
    )
    SentenceEncoder(folder, backend="reference")
    wanted = {"modules.json", "config.json", "tokenizer_config.json", "sentence_bert_config.json"}
    assert wanted <= {*seen}
    assert len(seen) == len({*seen}) + 1  # config.json is the name of the pooling's file, too


def test_a_folder_without_modules(folder):
    (folder / "modules.json").unlink()
    for name in ("config_sentence_transformers.json", "1_Pooling/config.json"):
        (folder / name).touch()
        message = refusal(ConfigError, ModelFolder.open, folder)
        assert message.startswith(f"{folder} has {name} but no modules.json, which says how to pool")
        (folder / name).unlink()
    assert ModelFolder.open(folder).transformer == ""
    assert SentenceEncoder(folder, backend="reference").pooling == PoolingConfig(("mean",), normalize=False)
    assert len(vocabulary(SPEC)) == load_parameters(folder).config.vocab_size
