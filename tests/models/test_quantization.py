"""int8: how far it is from what it stands for, integer sums without any error, and folders written once and for all."""

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from random_models import find_spec, texts, write_model, write_tensors

from minitrans import SentenceEncoder, quantize_folder
from minitrans.backends.products import EXACT, Int8Product, prepare
from minitrans.backends.reference import linear
from minitrans.errors import InputError, ModelNotFoundError, WeightsError
from minitrans.files import sha256_of
from minitrans.models.parameters import Int8Linear, Linear, layer_prefix
from minitrans.models.quantization import TINY, quantize_activations, quantize_rows, with_precision
from minitrans.models.weights import load_parameters

SPEC = find_spec("plain")
LARGEST = 1.5e38  # the range of a row has to be a float32 too
property_test = settings(max_examples=60)


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", SPEC)


def matrices(rows=6, columns=24):
    """float32 matrices whose rows are of very different size: ordinary, huge, tiny, denormal, constant, zero."""
    shape = array_shapes(min_dims=2, max_dims=2, max_side=columns).map(lambda s: (min(s[0], rows), s[1]))
    near_zero = 2.0**-149  # the least denormal
    values = st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, near_zero, -near_zero])
    factors = st.sampled_from([1.0, 1e-3, 1e3, 1e-20, 1e-29, 1e-30, 1e-38, LARGEST, 0.0])

    def draw(shape):
        pairs = st.tuples(arrays(np.float32, shape, elements=values), arrays(np.float64, shape[0], elements=factors))
        return pairs.map(lambda pair: (pair[0] * pair[1][:, None]).astype(np.float32))

    return shape.flatmap(draw)


# --- weights


@property_test
@given(matrices())
def test_rows_of_weights(weight):
    """Each is off by half a step at most, uses the whole range, and depends on itself alone, its sign included."""
    quantized, scale = quantize_rows(weight)
    assert (quantized.dtype, scale.dtype) == (np.int8, np.float32)
    assert (quantized.shape, scale.shape) == (weight.shape, weight.shape[:1])
    assert (scale > 0).all()
    assert quantized.min() >= -127
    error = np.abs(quantized.astype(np.float64) * scale[:, None] - weight)
    assert (error <= scale[:, None] * (0.5 + 1e-4)).all()
    used = np.abs(weight).max(axis=1) > TINY
    assert (np.abs(quantized).max(axis=1) == np.where(used, 127, 0)).all()  # the whole range is used
    assert (scale[~used] == 1).all()
    negative, same_scale = quantize_rows(-weight)
    np.testing.assert_array_equal(negative, -quantized)
    np.testing.assert_array_equal(same_scale, scale)
    for i in range(len(weight)):
        alone, its_scale = quantize_rows(weight[i : i + 1].copy())
        assert alone.tobytes() == quantized[i].tobytes()
        assert its_scale.tobytes() == scale[i].tobytes()


# --- activations


@property_test
@given(matrices())
def test_activations_follow_the_definition(x):
    q, scale, zero = quantize_activations(x)
    assert (q.dtype, scale.dtype, zero.dtype) == (np.uint8, np.float32, np.int32)
    assert (q.shape, scale.shape, zero.shape) == (x.shape, x.shape[:1], x.shape[:1])
    assert (scale > 0).all()
    assert zero.min() >= 0
    assert zero.max() <= 255
    error = np.abs((q.astype(np.float64) - zero[:, None]) * scale[:, None] - x)
    assert (error <= scale[:, None] * (0.5 + 1e-3)).all()
    np.testing.assert_array_equal(q[x == 0], np.broadcast_to(zero[:, None], x.shape)[x == 0])  # zero is exact
    one, limit = np.float32(1), np.float32(255)
    for row, its_q, its_scale, its_zero in zip(x, q, scale, zero, strict=True):
        low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
        step = (high - low) * np.float32(1 / 255) if high - low > TINY else one
        point = min(np.rint(-low * (one / step)), limit)
        assert its_scale == step
        assert its_zero == point
        np.testing.assert_array_equal(its_q, np.clip(np.rint(row * (one / step)) + point, 0, 255))


@property_test
@given(matrices(), st.randoms(use_true_random=False))
def test_a_token_depends_on_itself_alone(x, random):
    whole = quantize_activations(x)
    order = random.sample(range(len(x)), len(x))
    picked = order[: random.randint(1, len(x))]
    for rows in (order, picked, [*order, *order]):
        for seen, wanted in zip(quantize_activations(x[rows]), whole, strict=True):
            assert seen.tobytes() == wanted[rows].tobytes()


@pytest.mark.parametrize(
    ("row", "q", "scale", "zero"),
    [
        ([0.0] * 4, [0] * 4, 1, 0),
        ([-0.0, 0.0], [0, 0], 1, 0),
        ([2.0**-149, -(2.0**-149)], [0, 0], 1, 0),  # too small to be told from zero
        ([255.0] * 3, [255] * 3, 1, 0),
        ([-255.0] * 3, [0] * 3, 1, 255),
        ([0.0, 255.0], [0, 255], 1, 0),
        ([-255.0, 0.0], [0, 255], 1, 255),
        ([-127.0, 0.0, 128.0], [0, 127, 255], 1, 127),
        ([0.0, 0.5, 1.5, 2.5, 255.0], [0, 0, 2, 2, 255], 1, 0),  # halves go to the even number
        ([-127.5, 127.5], [0, 255], 1, 128),  # both ends round up: the upper one is cut
    ],
)
def test_rows_worked_out_by_hand(row, q, scale, zero):
    seen_q, seen_scale, seen_zero = quantize_activations(np.array([row], np.float32))
    assert seen_q[0].tolist() == q
    assert seen_scale[0] == pytest.approx(scale, rel=1e-6)
    assert seen_zero[0] == zero


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_lost(value):
    product = prepare(Int8Linear(np.ones((3, 2), np.int8), np.ones(3, np.float32), np.zeros(3, np.float32)))
    x = np.array([[1, 2], [value, 1], [0, 0]], np.float32)
    y = linear(x, product, np.array([0, 3]))
    assert not np.isfinite(y[1]).any()
    np.testing.assert_allclose(y[[0, 2]], [[3] * 3, [0] * 3], rtol=1e-2)


# --- products

# Name -> the bytes, weights and zero points to choose from.
BYTES, WEIGHTS = range(256), range(-128, 128)
EXTREMES = {
    "any": (BYTES, WEIGHTS, BYTES),
    "ends": ([0, 255], [-127, 127], [0, 255]),
    "largest": ([255], [127], [0]),
    "least": ([255], [-128], [0]),
    "zero points": ([0], [-128], [255]),
    "nothing": ([93], WEIGHTS, [93]),
}


def int8_product(weight):
    N = len(weight)
    product = prepare(Int8Linear(weight, np.ones(N, np.float32), np.zeros(N, np.float32)))
    assert isinstance(product, Int8Product)
    return product


@pytest.mark.parametrize("K", [1, 24, EXACT - 1, EXACT, EXACT + 1, 1000, 1536, 3 * EXACT + 7, 4096])
@pytest.mark.parametrize("kind", EXTREMES)
def test_integer_sums_are_exact(kind, K):
    random = np.random.default_rng(K)
    T, N = 7, 9
    bytes_, weights, zeros = EXTREMES[kind]
    q = random.choice(bytes_, (T, K)).astype(np.uint8)
    weight = random.choice(weights, (N, K)).astype(np.int8)
    zero = random.choice(zeros, T).astype(np.int32)
    wanted = (q.astype(np.int64) - zero[:, None]) @ weight.T.astype(np.int64)
    seen = int8_product(weight).accumulate(q, zero)
    assert seen.dtype == np.int32
    np.testing.assert_array_equal(seen, wanted)


@property_test
@given(st.data())
def test_integer_sums_of_any_values_are_exact(data):
    T, N, K = (data.draw(st.integers(1, most)) for most in (5, 5, 60))
    q = data.draw(arrays(np.uint8, (T, K)))
    weight = data.draw(arrays(np.int8, (N, K)))
    zero = data.draw(arrays(np.int32, T, elements=st.integers(0, 255)))
    wanted = (q.astype(np.int64) - zero[:, None]) @ weight.T.astype(np.int64)
    np.testing.assert_array_equal(int8_product(weight).accumulate(q, zero), wanted)


@pytest.mark.parametrize("K", [24, 1536])
def test_a_product_follows_the_definition(K):
    random = np.random.default_rng(K)
    x = random.standard_normal((5, K)).astype(np.float32)
    linears = [
        Int8Linear(
            random.integers(-127, 128, (N, K)).astype(np.int8),
            random.uniform(1e-3, 1e-1, N).astype(np.float32),
            random.standard_normal(N).astype(np.float32),
        )
        for N in (3, 8)
    ]
    q, scale, zero = quantize_activations(x)
    wanted = []
    for layer in linears:
        sums = (q.astype(np.int64) - zero[:, None]) @ layer.weight.T.astype(np.int64)
        wanted.append(sums * scale[:, None].astype(np.float64) * layer.scale + layer.bias)
    seen = linear(x, prepare(*linears), np.array([0, 2, 5]))
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, np.hstack(wanted), rtol=1e-5, atol=1e-5)


# --- whole models


def records(parameters):
    """Every linear map and embedding table."""
    tables = [parameters.word_embeddings, parameters.position_embeddings, parameters.token_type_embeddings]
    fields = ("query", "key", "value", "attention_output", "intermediate", "output")
    return tables + [getattr(layer, field) for layer in parameters.layers for field in fields]


def test_precision_there_and_back(folder):
    whole = load_parameters(folder)
    small = with_precision(whole, "int8")
    again = with_precision(with_precision(small, "float32"), "int8")
    assert (whole.precision, small.precision, again.precision) == ("float32", "int8", "int8")
    for one, other in zip(records(small), records(again), strict=True):
        np.testing.assert_array_equal(one.weight, other.weight, strict=True)
        np.testing.assert_allclose(one.scale, other.scale, rtol=2e-7)


def test_float32_of_int8_is_what_it_stands_for(folder):
    whole = load_parameters(folder)
    small = with_precision(whole, "int8")
    back = with_precision(small, "float32")
    assert back.precision == "float32"
    for before, one, other in zip(records(whole), records(small), records(back), strict=True):
        assert type(other) is type(before)
        assert other.weight.dtype == np.float32
        np.testing.assert_array_equal(other.weight, one.weight * one.scale[:, None], strict=True)
        assert (np.abs(other.weight - before.weight) <= 0.501 * one.scale[:, None]).all()


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_biases_and_layer_norms_stay_as_they_are(folder, precision):
    whole = load_parameters(folder)
    converted = with_precision(with_precision(whole, "int8"), precision)
    assert converted.config is whole.config
    assert converted.embeddings_norm is whole.embeddings_norm
    for before, after in zip(whole.layers, converted.layers, strict=True):
        assert after.attention_norm is before.attention_norm
        assert after.output_norm is before.output_norm
        assert after.query.bias is before.query.bias
        assert isinstance(before.query, Linear)


def test_a_precision_that_is_there_already(folder):
    whole = load_parameters(folder)
    small = with_precision(whole, "int8")
    for parameters in (whole, small):
        assert with_precision(parameters, "auto") is parameters
        assert with_precision(parameters, parameters.precision) is parameters


@pytest.mark.parametrize("precision", ["int4", "", "INT8", "float16", None])
def test_an_unknown_precision(folder, precision):
    with pytest.raises(InputError, match=f"precision is {precision!r}, wanted 'auto', 'float32' or 'int8'"):
        with_precision(load_parameters(folder), precision)


# --- folders


def tree(folder):
    """Relative path -> bytes of every file."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_same_folder_gives_the_same_bytes(folder, tmp_path):
    (folder / "LICENSE").write_text("Apache-2.0")
    (folder / "NOTICE.txt").write_text("of the model")
    (folder / "README.md").write_text("not copied")
    before = tree(folder)
    one, two = (quantize_folder(folder, tmp_path / "deep" / name) for name in ("one", "two"))
    assert one == tmp_path / "deep" / "one"
    assert tree(one) == tree(two)
    assert tree(folder) == before
    assert set(tree(one)) == {
        "1_Pooling/config.json",
        "LICENSE",
        "NOTICE.txt",
        "config.json",
        "model.safetensors",
        "modules.json",
        "provenance.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in set(tree(one)) - {"config.json", "model.safetensors", "provenance.json"}:
        assert tree(one)[name] == before[name]


def older_layout(folder):
    """As older releases of sentence-transformers wrote it: the transformer in a folder of its own."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != "modules.json":
            path.rename(inner / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(modules))


def more_tokens(folder):
    """The last token is not in tokenizer.json, but in a file beside it."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.pop(max(vocabulary, key=vocabulary.get))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "added_tokens.json").write_text(json.dumps({"zyx": len(vocabulary)}))


@pytest.mark.parametrize("change", [older_layout, more_tokens, lambda folder: (folder / "tokenizer.json").unlink()])
def test_all_that_is_read_is_copied(tmp_path, change):
    source = write_model(tmp_path / "float", find_spec("plain"))
    change(source)
    found = SentenceEncoder(quantize_folder(source, tmp_path / "int8")).identity
    assert SentenceEncoder(source).identity.difference(found) == "precision"


def test_where_a_folder_came_from(folder, tmp_path):
    provenance = json.loads((quantize_folder(str(folder), str(tmp_path / "int8")) / "provenance.json").read_text())
    assert provenance["weights"] == load_parameters(tmp_path / "int8").sha256
    assert provenance["from"] == {
        "weights": load_parameters(folder).sha256,
        "weights_sha256": {"model.safetensors": sha256_of(folder / "model.safetensors")},
    }
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    stored = config.pop("quantization_config")
    assert (stored["quant_method"], stored["version"]) == ("minitrans-int8", 1)
    assert config == json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ["plain", "odd_sizes", "bert_prefix", "float16", "bfloat16", "sharded", "cls_pooling"])
def test_the_result_is_the_model_converted_in_memory(tmp_path, name):
    source = write_model(tmp_path / name, find_spec(name))
    destination = quantize_folder(source, tmp_path / "int8")
    encoder = SentenceEncoder(destination)
    whole = SentenceEncoder(source)
    assert (encoder.precision, whole.precision) == ("int8", "float32")
    vectors = encoder.encode(texts())
    np.testing.assert_array_equal(vectors, SentenceEncoder(source, precision="int8").encode(texts()))
    cosine = (unit(vectors) * unit(whole.encode(texts()))).sum(axis=1)
    assert cosine.min() > 0.99
    assert (encoder.pooling, encoder.max_seq_length) == (whole.pooling, whole.max_seq_length)


def test_an_older_model_keeps_its_vocabulary(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    destination = quantize_folder(folder, tmp_path / "int8")
    assert (destination / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    SentenceEncoder(destination).encode("play music")


def test_a_pooling_folder_of_another_name(folder, tmp_path):
    (folder / "1_Pooling").rename(folder / "pooling")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert SentenceEncoder(quantize_folder(folder, tmp_path / "int8")).pooling == SentenceEncoder(folder).pooling


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_a_destination_that_exists(folder, tmp_path, make):
    destination = tmp_path / "int8"
    getattr(destination, make)()
    with pytest.raises(InputError, match=f"{destination} exists already") as error:
        quantize_folder(folder, destination)
    assert "name a new folder" in str(error.value)
    assert not destination.is_dir() or not list(destination.iterdir())


def test_a_source_that_is_int8_already(folder, tmp_path):
    int8 = quantize_folder(folder, tmp_path / "int8")
    with pytest.raises(InputError, match=f"{int8} is an int8 model already"):
        quantize_folder(int8, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "step",
    [
        "safetensors.numpy.save",
        "minitrans.models.export._write_json",
        "shutil.copyfile",
        "minitrans.models.export.sha256_of",
    ],
)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["OSError", "KeyboardInterrupt"])
def test_a_failure_in_the_middle_leaves_nothing(folder, tmp_path, monkeypatch, step, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(step, fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(type(error)):
        quantize_folder(folder, tmp_path / "int8")
    assert sorted(tmp_path.iterdir()) == before


def test_a_source_that_is_broken_leaves_nothing(folder, tmp_path):
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(WeightsError):
        quantize_folder(folder, tmp_path / "int8")
    with pytest.raises(ModelNotFoundError):
        quantize_folder(tmp_path / "nowhere", tmp_path / "int8")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(os.name != "posix", reason="file modes are of POSIX")
@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_modes_follow_the_umask(folder, tmp_path, umask, file_mode, folder_mode):
    (folder / "tokenizer.json").chmod(0o400)  # the source's own modes do not matter
    before = os.umask(umask)
    try:
        destination = quantize_folder(folder, tmp_path / "int8")
    finally:
        os.umask(before)
    for path in (destination, *destination.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (folder_mode if path.is_dir() else file_mode), path


def test_scales_of_rows_without_weights(tmp_path):
    spec = replace(SPEC, num_hidden_layers=1)
    name = f"{layer_prefix(0)}output.dense.weight"
    tensors = write_tensors(spec)
    tensors[name][3] = 0
    source = write_model(tmp_path / "model", spec, tensors)
    output = load_parameters(quantize_folder(source, tmp_path / "int8")).layers[0].output
    assert output.scale[3] == 1
    assert not output.weight[3].any()
