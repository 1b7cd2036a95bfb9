"""Weight files: what is read, to the last bit, and what is refused, with file, tensor, seen and wanted."""

import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
from random_models import edit_json, find_spec, write_model, write_safetensors, write_tensors
from safetensors.numpy import load_file

from minitrans.errors import ConfigError, ModelNotFoundError, UnsupportedModelError, WeightsError
from minitrans.models.export import quantize_folder
from minitrans.models.parameters import Int8Linear, Parameters, tensor_shapes
from minitrans.models.weights import load_parameters, read_tensors, weight_files

SPEC = find_spec("plain")
SHARDED = replace(find_spec("sharded"), num_hidden_layers=2)
INDEX = "model.safetensors.index.json"
QUERY = "encoder.layer.1.attention.self.query"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", SPEC)


@pytest.fixture
def weights(folder):
    return folder / "model.safetensors"


@pytest.fixture
def sharded(tmp_path):
    return write_model(tmp_path / "sharded", SHARDED)


@pytest.fixture
def int8_folder(folder, tmp_path):
    return quantize_folder(folder, tmp_path / "int8")


def refusal(error, folder):
    """The message of the error that loading raises."""
    with pytest.raises(error) as caught:
        load_parameters(folder)
    assert type(caught.value) is error
    return str(caught.value)


def arrays_of(parameters: Parameters) -> dict[str, np.ndarray]:
    """Every array of the records, under a path of field names."""
    arrays = {}

    def walk(path, record):
        if isinstance(record, np.ndarray):
            arrays[path] = record
        elif isinstance(record, tuple):
            for i, item in enumerate(record):
                walk(f"{path}.{i}", item)
        else:
            for name, value in vars(record).items():
                if name != "config":
                    walk(f"{path}.{name}", value)

    walk("", parameters)
    return arrays


def assert_same(one: Parameters, other: Parameters) -> None:
    """Equal to the last bit."""
    a, b = arrays_of(one), arrays_of(other)
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


def write_raw(path, header, body=b""):
    """A safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def entry(begin, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


# --- what is read


def test_every_tensor_goes_where_it_belongs(folder):
    tensors = write_tensors(SPEC)
    parameters = load_parameters(folder)
    layer = parameters.layers[1]
    for name, seen in (
        ("embeddings.word_embeddings.weight", parameters.word_embeddings.weight),
        ("embeddings.position_embeddings.weight", parameters.position_embeddings.weight),
        ("embeddings.token_type_embeddings.weight", parameters.token_type_embeddings.weight),
        ("embeddings.LayerNorm.weight", parameters.embeddings_norm.weight),
        ("embeddings.LayerNorm.bias", parameters.embeddings_norm.bias),
        ("encoder.layer.1.attention.self.query.weight", layer.query.weight),
        ("encoder.layer.1.attention.self.query.bias", layer.query.bias),
        ("encoder.layer.1.attention.self.key.weight", layer.key.weight),
        ("encoder.layer.1.attention.self.key.bias", layer.key.bias),
        ("encoder.layer.1.attention.self.value.weight", layer.value.weight),
        ("encoder.layer.1.attention.self.value.bias", layer.value.bias),
        ("encoder.layer.1.attention.output.dense.weight", layer.attention_output.weight),
        ("encoder.layer.1.attention.output.dense.bias", layer.attention_output.bias),
        ("encoder.layer.1.attention.output.LayerNorm.weight", layer.attention_norm.weight),
        ("encoder.layer.1.attention.output.LayerNorm.bias", layer.attention_norm.bias),
        ("encoder.layer.1.intermediate.dense.weight", layer.intermediate.weight),
        ("encoder.layer.1.intermediate.dense.bias", layer.intermediate.bias),
        ("encoder.layer.1.output.dense.weight", layer.output.weight),
        ("encoder.layer.1.output.dense.bias", layer.output.bias),
        ("encoder.layer.1.output.LayerNorm.weight", layer.output_norm.weight),
        ("encoder.layer.1.output.LayerNorm.bias", layer.output_norm.bias),
    ):
        assert seen.dtype == np.float32
        np.testing.assert_array_equal(seen, tensors[name], err_msg=name, strict=True)
    assert len(arrays_of(parameters)) == len(tensors) == len(list(tensor_shapes(parameters.config, "float32")))


def half_precision_values(dtype, count):
    """Every kind of finite value of a half-precision type, from its bits: [count] float32."""
    exponent = {"float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
    bits = np.random.default_rng(0).integers(0, 2**16, 2 * count)
    bits = bits[bits & exponent != exponent][:count]  # no NaN, no infinity
    extremes = [0, 0x8000, 1, 0x8001, exponent - 1, 0x8000 | (exponent - 1)]  # zeros, least denormals, largest
    bits[: len(extremes)] = extremes
    if dtype == "float16":
        values = [struct.unpack("<e", struct.pack("<H", pattern))[0] for pattern in bits]
    else:
        values = [struct.unpack("<f", b"\0\0" + struct.pack("<H", pattern))[0] for pattern in bits]
    return np.array(values, np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_values_are_exact(tmp_path, dtype):
    spec = replace(SPEC, dtype=dtype)
    tensors = write_tensors(spec)
    name = "embeddings.word_embeddings.weight"
    tensors[name] = half_precision_values(dtype, tensors[name].size).reshape(tensors[name].shape)
    parameters = load_parameters(write_model(tmp_path / dtype, spec, tensors))
    assert parameters.precision == "float32"
    assert parameters.word_embeddings.weight.tobytes() == tensors[name].tobytes()
    assert parameters.layers[2].output.weight.tobytes() == tensors["encoder.layer.2.output.dense.weight"].tobytes()


def test_shards_are_the_same_as_one_file(sharded, tmp_path):
    assert len(weight_files(sharded)) == 3
    single = write_model(tmp_path / "single", replace(SHARDED, shards=1))
    assert_same(load_parameters(sharded), load_parameters(single))


def test_the_prefix_of_a_head_is_taken_off(folder, tmp_path):
    prefixed = write_model(tmp_path / "prefixed", replace(SPEC, prefix="bert."))
    assert all(name.startswith(("bert.", "cls.")) for name in load_file(prefixed / "model.safetensors"))
    assert_same(load_parameters(prefixed), load_parameters(folder))


def test_the_oldest_names_of_layer_norms(folder, weights):
    wanted = load_parameters(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, values in write_tensors(SPEC).items():
        for new, oldest in old.items():
            name = name.replace(new, oldest)
        tensors[name] = values
    assert sum(name.endswith(("gamma", "beta")) for name in tensors) == 2 * (1 + 2 * SPEC.num_hidden_layers)
    write_safetensors(weights, tensors)
    assert_same(load_parameters(folder), wanted)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_parts_of_a_checkpoint_that_are_passed_over(folder, tmp_path, prefix):
    spec = replace(SPEC, prefix=prefix)
    ignored = {
        f"{prefix}embeddings.position_ids": np.arange(64)[None],
        f"{prefix}pooler.dense.weight": np.full((32, 32), np.nan, np.float32),
        f"{prefix}pooler.dense.bias": np.zeros(7, np.float64),
        "cls.predictions.decoder.weight": np.ones((200, 32), np.float32),
        "classifier.weight": np.ones((2, 32), np.float32),
    }
    other = write_model(tmp_path / "other", spec, write_tensors(spec) | ignored)
    assert_same(load_parameters(other), load_parameters(folder))


def test_a_header_that_leaves_the_data_unaligned(folder, weights):
    wanted = load_parameters(folder)
    content = weights.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    text = json.dumps(header).encode()
    write_raw(weights, text + b" " * ((5 - len(text)) % 8), body)
    assert_same(load_parameters(folder), wanted)


def test_metadata_of_a_file_is_no_tensor(weights):
    write_raw(weights, {"__metadata__": {"format": "pt"}, "a": entry(0, 8)}, bytes(8))
    assert list(read_tensors(weights)) == ["a"]


# --- broken files

TWO = {"a": entry(0, 8), "b": entry(8, 16)}
BROKEN = {
    "empty": b"",
    "shorter than its header's size": b"\1\0\0",
    "nothing but a size": (2).to_bytes(8, "little"),
    "header of no bytes": bytes(8),
    "header beyond the end": (100).to_bytes(8, "little") + b"{}",
    "header of more than a hundred megabytes": (100_000_001).to_bytes(8, "little") + b"{}",
    "header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "header of 2**64 - 1 bytes": b"\xff" * 8 + b"{}",
    "html": b"<!doctype html><html><body>404</body></html>",
    "pickle": b"\x80\x04\x95" + bytes(100),
}
BROKEN_HEADERS = {
    "not JSON": (b"{'a': 1}", 0),
    "not UTF-8": (b'{"a\xff": {}}', 0),
    "cut off": (b'{"a": {"dtype": "F32"', 0),
    "a list": ([], 0),
    "nested deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 0),
    "a tensor that is a number": ({"a": 3}, 0),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8),
    "an unknown dtype": ({"a": entry(0, 8, dtype="F33")}, 8),
    "metadata that is no text": ({"__metadata__": {"n": 1}, **TWO}, 16),
    "overlapping offsets": ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
    "the same offsets twice": ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
    "a gap between tensors": ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
    "a gap before the first": ({"a": entry(4, 12)}, 12),
    "offsets beyond the end": (TWO, 12),
    "bytes behind the last": (TWO, 24),
    "offsets far beyond the end": ({"a": entry(0, 2**62)}, 8),
    "negative offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, 8),
    "an end before its begin": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, 8),
    "one offset": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, 8),
    "a shape of another size": ({"a": entry(0, 8, shape=[3])}, 8),
    "a shape that overflows": ({"a": entry(0, 8, shape=[2**32, 2**32, 2])}, 8),
    "a negative shape": ({"a": entry(0, 8, shape=[-2])}, 8),
}


@pytest.mark.parametrize("content", [*BROKEN.values(), *BROKEN_HEADERS.values()], ids=[*BROKEN, *BROKEN_HEADERS])
def test_files_that_are_no_safetensors(folder, weights, content):
    if isinstance(content, bytes):
        weights.write_bytes(content)
    else:
        header, size = content
        write_raw(weights, header, bytes(size))
    assert refusal(WeightsError, folder).startswith(f"{weights} is not a valid safetensors file (")


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.99])
def test_a_download_that_broke_off(folder, weights, share):
    os.truncate(weights, int(weights.stat().st_size * share))
    message = refusal(WeightsError, folder)
    assert message.startswith(f"{weights} is not a valid safetensors file (")
    assert message.endswith("fetch the model again")


@pytest.mark.parametrize("change", [-1, 1])
def test_one_byte_less_or_more(folder, weights, change):
    os.truncate(weights, weights.stat().st_size + change)
    assert str(weights) in refusal(WeightsError, folder)


def test_a_broken_shard_is_named(sharded):
    shard = weight_files(sharded)[1]
    os.truncate(shard, shard.stat().st_size - 1)
    assert refusal(WeightsError, sharded).startswith(str(shard))


# --- tensors that do not fit


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (np.zeros((32, 32), np.int64), "I64 [32, 32]"),
        (np.zeros((32, 32), np.float64), "F64 [32, 32]"),
        (np.zeros((32, 32), np.int8), "I8 [32, 32]"),
        (np.zeros((32, 32), np.uint16), "U16 [32, 32]"),
        (np.zeros((32, 31), np.float32), "F32 [32, 31]"),
        (np.zeros((64, 32), np.float32), "F32 [64, 32]"),
        (np.zeros(1024, np.float32), "F32 [1024]"),
        (np.zeros((1, 32, 32), np.float32), "F32 [1, 32, 32]"),
        (np.zeros((), np.float32), "F32 []"),
        (np.zeros((32, 0), np.float32), "F32 [32, 0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dtypes_and_shapes(folder, weights, values, seen):
    write_safetensors(weights, write_tensors(SPEC) | {f"{QUERY}.weight": values})
    wanted = f"{weights}: tensor '{QUERY}.weight' is {seen}, wanted F32 or F16 or BF16 [32, 32]"
    assert refusal(WeightsError, folder) == wanted


def test_a_matrix_that_lies_on_its_side(folder, weights):
    name = "encoder.layer.0.intermediate.dense.weight"
    write_safetensors(weights, write_tensors(SPEC) | {name: write_tensors(SPEC)[name].T})
    assert f"{name!r} is F32 [32, 64], wanted F32 or F16 or BF16 [64, 32]" in refusal(WeightsError, folder)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "BOOL", "C64"])
def test_element_types_without_a_numpy_name(weights, folder, dtype):
    write_safetensors(weights, write_tensors(SPEC))
    content = weights.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    width = {"F8_E4M3": 1, "BOOL": 1, "C64": 8}[dtype]
    tensor = header["embeddings.LayerNorm.weight"]
    header["embeddings.LayerNorm.weight"] = tensor | {"dtype": dtype, "shape": [128 // width]}
    write_raw(weights, header, body)
    message = refusal(WeightsError, folder)
    assert str(weights) in message
    if "not a valid safetensors file" not in message:  # older releases of the library do not know them all
        assert f"'embeddings.LayerNorm.weight' is {dtype} [{128 // width}], wanted F32 or F16 or BF16 [32]" in message


@pytest.mark.parametrize("count", [4, 5])
def test_missing_tensors(folder, weights, count):
    tensors = write_tensors(SPEC)
    gone = sorted(tensors)[:count]
    write_safetensors(weights, {name: tensors[name] for name in tensors if name not in gone})
    message = refusal(WeightsError, folder)
    assert message.startswith(f"{folder}: the weights do not fit config.json (3 layers, float32)")
    assert f"{count} tensors missing: {', '.join(gone[:4])}" in message
    assert message.endswith(", ...") == (count > 4)
    assert "unexpected" not in message


@pytest.mark.parametrize("count", [4, 5])
def test_unexpected_tensors(folder, weights, count):
    extra = [f"adapter.{i}.weight" for i in range(count)]
    write_safetensors(weights, write_tensors(SPEC) | {name: np.ones(1, np.float32) for name in extra})
    message = refusal(WeightsError, folder)
    assert f"{count} unexpected tensors: {', '.join(extra[:4])}" in message
    assert message.endswith(", ...") == (count > 4)
    assert "missing" not in message


def test_missing_and_unexpected_tensors_are_told_together(folder, weights):
    tensors = write_tensors(SPEC)
    tensors[f"{QUERY}.lora"] = tensors.pop(f"{QUERY}.weight")
    write_safetensors(weights, tensors)
    message = refusal(WeightsError, folder)
    assert message.endswith(f"1 tensors missing: {QUERY}.weight; 1 unexpected tensors: {QUERY}.lora")


def test_a_file_without_tensors(folder, weights):
    write_raw(weights, {})
    assert "tensors missing" in refusal(WeightsError, folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_that_are_not_finite(folder, weights, dtype, value):
    tensors = write_tensors(replace(SPEC, dtype=dtype))
    tensors[f"{QUERY}.weight"][3, 5] = value
    tensors[f"{QUERY}.weight"][30, 1] = np.nan  # the first one is told
    write_safetensors(weights, tensors, dtype=dtype)
    wanted = f"{weights}: tensor '{QUERY}.weight' holds {value} at [3, 5], wanted finite values"
    assert refusal(WeightsError, folder) == wanted


def test_a_signalling_nan_of_half_precision(folder, weights):
    values = np.zeros(32, np.uint16)
    values[7] = 0x7C01
    write_safetensors(weights, write_tensors(SPEC) | {"embeddings.LayerNorm.bias": values.view(np.float16)})
    assert "'embeddings.LayerNorm.bias' holds nan at [7]" in refusal(WeightsError, folder)


def test_a_tensor_with_and_without_its_prefix(folder, weights):
    tensors = write_tensors(SPEC)
    write_safetensors(weights, tensors | {f"bert.{QUERY}.bias": tensors[f"{QUERY}.bias"]})
    wanted = f"{weights}: tensor '{QUERY}.bias' is also in model.safetensors, wanted it once"
    assert refusal(WeightsError, folder) == wanted


# --- int8 folders


def rewrite(folder, **changes):
    """Replace tensors of an int8 folder; the keywords say weight or scale of the query matrix."""
    path = folder / "model.safetensors"
    write_safetensors(path, load_file(path) | {f"{QUERY}.{key}": values for key, values in changes.items()})
    return path


def test_an_int8_folder(int8_folder):
    stored = load_file(int8_folder / "model.safetensors")
    parameters = load_parameters(int8_folder)
    query = parameters.layers[1].query
    assert parameters.precision == "int8"
    assert isinstance(query, Int8Linear)
    assert (query.weight.dtype, query.scale.dtype, query.bias.dtype) == (np.int8, np.float32, np.float32)
    np.testing.assert_array_equal(query.weight, stored[f"{QUERY}.weight"], strict=True)
    np.testing.assert_array_equal(query.scale, stored[f"{QUERY}.weight_scale"], strict=True)
    assert len(arrays_of(parameters)) == len(stored) == len(list(tensor_shapes(parameters.config, "int8")))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.0, "0.0, wanted scales above 0"),
        (-0.5, "-0.5, wanted scales above 0"),
        (np.nan, "nan at [9], wanted finite values"),
        (np.inf, "inf at [9], wanted finite values"),
    ],
)
def test_scales_that_are_none(int8_folder, value, wanted):
    scale = np.full(32, 0.01, np.float32)
    scale[9] = value
    path = rewrite(int8_folder, weight_scale=scale)
    assert refusal(WeightsError, int8_folder) == f"{path}: tensor '{QUERY}.weight_scale' holds {wanted}"


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"weight": np.zeros((32, 32), np.float32)}, "weight' is F32 [32, 32], wanted I8 [32, 32]"),
        ({"weight": np.zeros((32, 32), np.uint8)}, "weight' is U8 [32, 32], wanted I8 [32, 32]"),
        ({"weight_scale": np.ones((32, 1), np.float32)}, "weight_scale' is F32 [32, 1], wanted F32 [32]"),
        ({"weight_scale": np.ones((), np.float32)}, "weight_scale' is F32 [], wanted F32 [32]"),
        ({"weight_scale": np.ones(32, np.float16)}, "weight_scale' is F16 [32], wanted F32 [32]"),
        ({"bias": np.ones(32, np.int8)}, "bias' is I8 [32], wanted F32 or F16 or BF16 [32]"),
    ],
)
def test_dtypes_and_shapes_of_int8(int8_folder, changes, seen):
    path = rewrite(int8_folder, **changes)
    assert refusal(WeightsError, int8_folder) == f"{path}: tensor '{QUERY}.{seen}"


def test_a_float_folder_that_says_int8(folder, int8_folder):
    edit_json(
        folder / "config.json",
        quantization_config=json.loads((int8_folder / "config.json").read_text())["quantization_config"],
    )
    message = refusal(WeightsError, folder)
    assert "(3 layers, int8)" in message
    assert "weight_scale" in message


def test_an_int8_folder_that_says_float(int8_folder):
    edit_json(int8_folder / "config.json", quantization_config=None)
    message = refusal(WeightsError, int8_folder)
    assert "(3 layers, float32)" in message
    assert "21 unexpected tensors" in message


@pytest.mark.parametrize(
    ("quantization", "error", "seen"),
    [
        ({"quant_method": "bitsandbytes"}, UnsupportedModelError, "'bitsandbytes'"),
        ({}, UnsupportedModelError, "None"),
        ({"quant_method": "minitrans-int8"}, UnsupportedModelError, "is None, wanted 1 here"),
        (
            {"quant_method": "minitrans-int8", "version": 2},
            UnsupportedModelError,
            "is 2, wanted 1 here",
        ),
        ("minitrans-int8", ConfigError, "'minitrans-int8', wanted a JSON object"),
        ([1], ConfigError, "[1], wanted a JSON object"),
    ],
)
def test_other_quantisations(folder, quantization, error, seen):
    edit_json(folder / "config.json", quantization_config=quantization)
    message = refusal(error, folder)
    assert message.startswith(f"{folder / 'config.json'}: ")
    assert seen in message


# --- which files are read


def test_a_tensor_in_two_shards(sharded):
    first, second, _ = weight_files(sharded)
    name = next(iter(load_file(first)))
    write_safetensors(second, load_file(second) | {name: load_file(first)[name]})
    assert refusal(WeightsError, sharded) == f"{second}: tensor {name!r} is also in {first.name}, wanted it once"


def set_file(sharded, value):
    """Let the index say that a tensor is in another file."""
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][f"{QUERY}.weight"] = value
    (sharded / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../x.safetensors", "1_Pooling/../../x.safetensors", "{outside}", "{inside}"])
def test_an_index_that_points_elsewhere(sharded, name):
    outside = sharded.parent / "x.safetensors"
    write_safetensors(outside, {f"{QUERY}.weight": np.zeros((32, 32), np.float32)})
    name = name.format(outside=outside, inside=weight_files(sharded)[0])
    set_file(sharded, name)
    message = refusal(WeightsError, sharded)
    assert str(sharded) in message
    assert repr(name) in message
    assert "inside the model folder" in message


@pytest.mark.parametrize(
    "value", [None, 3, True, [], ["a.safetensors"], {}, "", "weights.bin", "model.safetensors.exe"]
)
def test_an_index_whose_values_name_no_safetensors_file(sharded, value):
    set_file(sharded, value)
    wanted = f"{sharded / INDEX}: weight_map names {value!r}, wanted a .safetensors file"
    assert refusal(WeightsError, sharded) == wanted


@pytest.mark.parametrize("value", ["a\0.safetensors", "a\ud800.safetensors", "a" * 5000 + ".safetensors"])
def test_an_index_with_names_that_no_file_has(sharded, value):
    set_file(sharded, value)
    assert repr(value) in refusal(WeightsError, sharded)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "model.safetensors"}])
def test_an_index_without_a_map(sharded, index):
    (sharded / INDEX).write_text(json.dumps(index))
    assert refusal(WeightsError, sharded).startswith(f"{sharded / INDEX}: weight_map is missing or empty")


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_an_index_that_is_no_json_object(sharded, content):
    (sharded / INDEX).write_text(content)
    assert str(sharded / INDEX) in refusal(ConfigError, sharded)


def test_a_missing_shard(sharded):
    shard = weight_files(sharded)[1]
    shard.unlink()
    assert refusal(ModelNotFoundError, sharded).startswith(f"{shard} is missing")


def test_a_shard_that_the_index_leaves_out(sharded):
    index = json.loads((sharded / INDEX).read_text())
    names = sorted(set(index["weight_map"].values()))
    kept = {name: file for name, file in index["weight_map"].items() if file != names[2]}
    (sharded / INDEX).write_text(json.dumps({"weight_map": kept}))
    assert "tensors missing" in refusal(WeightsError, sharded)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_a_link_out_of_the_folder(folder, weights, name):
    outside = folder.parent / "outside"
    weights.rename(outside)
    (folder / name).symlink_to(outside)
    message = refusal(WeightsError, folder)
    assert f"{folder}: {name!r} leads to {outside}" in message


def test_a_shard_that_is_a_link_out_of_the_folder(sharded):
    shard = weight_files(sharded)[0]
    shard.rename(sharded.parent / "outside")
    shard.symlink_to("../outside")
    assert f"{shard.name!r} leads to {sharded.parent / 'outside'}" in refusal(WeightsError, sharded)


def test_a_link_within_the_folder(folder, weights):
    wanted = load_parameters(folder)
    weights.rename(folder / "1_Pooling" / "w")
    weights.symlink_to("1_Pooling/w")
    assert_same(load_parameters(folder), wanted)


def test_the_layout_of_the_hubs_cache(sharded, tmp_path):
    wanted = load_parameters(sharded)
    snapshot, blobs = tmp_path / "m" / "snapshots" / "0123abcd", tmp_path / "m" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    sharded.rename(snapshot)
    for i, file in enumerate([file for file in snapshot.rglob("*") if file.is_file()]):
        file.rename(blobs / f"{i:064x}")
        file.symlink_to(os.path.relpath(blobs / f"{i:064x}", file.parent))
    assert_same(load_parameters(snapshot), wanted)


@pytest.mark.parametrize("other", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.onnx", "tf_model.h5"])
def test_only_other_formats(folder, weights, other):
    weights.rename(folder / other)
    message = refusal(UnsupportedModelError, folder)
    assert message.startswith(f"{folder} holds {other} but no model.safetensors")
    assert "safetensors only" in message
    assert "safe_serialization=True" in message


def test_other_formats_beside_safetensors_do_not_matter(folder):
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    load_parameters(folder)


def test_no_weights_at_all(folder, weights):
    weights.unlink()
    message = refusal(ModelNotFoundError, folder)
    assert message.startswith(f"{folder} holds neither model.safetensors nor {INDEX}")


def test_a_folder_in_place_of_the_weights(folder, weights):
    weights.unlink()
    weights.mkdir()
    assert str(weights) in refusal(ModelNotFoundError, folder)


def test_no_configuration(folder):
    (folder / "config.json").unlink()
    assert str(folder / "config.json") in refusal(ModelNotFoundError, folder)
