"""SentenceEncoder(folder): every layout of a model folder loads and encodes, and what cannot work says so."""

import json
from dataclasses import replace

import numpy as np
import pytest
from random_models import FAMILY_SPECS, SPECS, edit_json, find_spec, texts, write_model, write_tensors

from minitrans import SentenceEncoder
from minitrans.errors import (
    BackendError,
    InputError,
    ModelNotFoundError,
    NumericalError,
    UnsupportedModelError,
)
from minitrans.models.sentence import PoolingConfig

SPEC = find_spec("plain")


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", SPEC)


@pytest.fixture
def encoder(folder):
    return SentenceEncoder(folder, threads=1)


def check(encoder, spec, sentences):
    """The encoder is what the spec says, and its vectors have the right size and length."""
    vectors = encoder.encode(sentences)
    assert vectors.shape == (len(sentences), spec.hidden_size)
    assert vectors.dtype == np.float32
    assert encoder.get_embedding_dimension() == spec.hidden_size
    assert encoder.pooling == PoolingConfig((spec.pooling,), spec.normalize)
    assert encoder.max_seq_length == (spec.max_seq_length or spec.max_position_embeddings)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.isfinite(lengths).all()
    assert np.allclose(lengths, 1, atol=1e-5) == spec.normalize
    assert encoder.encode(sentences[0]).tobytes() == vectors[0].tobytes()


# --- every layout


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_small_models(tmp_path, spec):
    folder = write_model(tmp_path / spec.name, spec)
    encoder = SentenceEncoder(folder, backend="reference", threads=1)
    check(encoder, spec, texts())
    assert (encoder.folder, encoder.precision, encoder.backend) == (folder, "float32", "reference")
    assert encoder.config.num_hidden_layers == spec.num_hidden_layers
    assert encoder.config.head_size == spec.hidden_size // spec.num_attention_heads
    check(SentenceEncoder(str(folder), precision="int8"), spec, texts())


@pytest.mark.parametrize("spec", FAMILY_SPECS, ids=lambda spec: spec.name)
def test_families_of_the_hub(tmp_path, spec):
    spec = replace(spec, num_hidden_layers=2, vocab_size=1000)  # of up to 12 and 30,522: more of the same
    encoder = SentenceEncoder(write_model(tmp_path / spec.name, spec), threads=1)
    check(encoder, spec, ["play music"])
    assert encoder.config.num_attention_heads == 12
    assert encoder.config.head_size == 32


@pytest.mark.parametrize("gone", ["tokenizer.json", "sentence_bert_config.json", "tokenizer_config.json"])
def test_files_that_may_be_missing(folder, encoder, gone):
    (folder / gone).unlink()
    without = SentenceEncoder(folder, threads=1)
    assert without.pooling == PoolingConfig(("mean",), normalize=True)
    vectors = without.encode(texts(), normalize_embeddings=True)
    np.testing.assert_allclose(vectors, encoder.encode(texts()), rtol=0, atol=1e-6)


def test_two_modes_make_a_longer_vector(folder):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls+mean"}))
    encoder = SentenceEncoder(folder, threads=1)
    assert encoder.get_embedding_dimension() == 64
    both = encoder.encode(texts())
    assert both.shape == (12, 64)
    tokens = encoder.encode(texts(), output_value="token_embeddings")
    wanted = np.array([np.concatenate([rows[0], rows.mean(axis=0)]) for rows in tokens])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(both, wanted, atol=1e-6)


def test_a_folder_that_is_refused(folder):
    edit_json(folder / "config.json", model_type="roberta")
    with pytest.raises(UnsupportedModelError) as caught:
        SentenceEncoder(folder)
    assert str(folder / "config.json") in str(caught.value)


# --- precision and backend


def test_conversions_of_precision(folder):
    whole, small = (SentenceEncoder(folder, precision=precision, threads=1) for precision in ("float32", "int8"))
    assert (whole.precision, small.precision) == ("float32", "int8")
    one, other = whole.encode(texts()), small.encode(texts())
    assert (one * other).sum(axis=1).min() > 0.99
    assert not np.array_equal(one, other)
    assert one.tobytes() == SentenceEncoder(folder, precision="auto", threads=1).encode(texts()).tobytes()


@pytest.mark.parametrize("precision", ["float16", "", None])
def test_an_unknown_precision(folder, precision):
    with pytest.raises(InputError, match=f"precision is {precision!r}, wanted 'auto', 'float32' or 'int8'"):
        SentenceEncoder(folder, precision=precision)


@pytest.mark.parametrize("backend", ["torch", "", "Reference", None])
def test_an_unknown_backend(folder, backend):
    with pytest.raises(BackendError, match=f"backend is {backend!r}, wanted 'auto'"):
        SentenceEncoder(folder, backend=backend)


# --- max_seq_length


@pytest.mark.parametrize("value", [0, -1, 2, 65, 512, True, 32.0, "32", None])
def test_a_length_that_the_model_does_not_have(encoder, value):
    with pytest.raises(InputError, match=r"wanted an integer from 3 \(.*\) to 64") as error:
        encoder.max_seq_length = value
    assert f"max_seq_length is {value!r}" in str(error.value)
    assert encoder.max_seq_length == 64


@pytest.mark.parametrize("name", ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"])
def test_a_dangling_link_counts_as_there(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder / "nowhere")
    with pytest.raises(ModelNotFoundError, match=f"{name} is missing"):
        SentenceEncoder(folder)


def test_a_length_that_is_set_holds(folder, encoder):
    encoder.max_seq_length = 5
    encoder.on_truncation = "ignore"
    tokens = encoder.encode(texts(), output_value="token_embeddings")
    assert max(len(rows) for rows in tokens) == 5
    edit_json(folder / "sentence_bert_config.json", max_seq_length=5)
    stored = SentenceEncoder(folder, threads=1, on_truncation="ignore")
    assert stored.max_seq_length == 5
    assert stored.encode(texts()).tobytes() == encoder.encode(texts()).tobytes()


# --- numbers that leave the range of float32

HUGE = {
    "embeddings.LayerNorm.weight": "the embeddings",
    "encoder.layer.0.attention.output.LayerNorm.weight": "the attention block of layer 0",
    "encoder.layer.1.attention.self.query.weight": "the attention block of layer 1",
    "encoder.layer.1.attention.self.value.bias": "the attention block of layer 1",
    "encoder.layer.2.intermediate.dense.weight": "the feed-forward block of layer 2",
    "encoder.layer.2.output.LayerNorm.weight": "the feed-forward block of layer 2",
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's own word about an overflow comes first
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("name", "place"), HUGE.items())
def test_weights_that_are_finite_but_huge(tmp_path, name, place, precision):
    tensors = write_tensors(SPEC)
    tensors[name] = np.sign(tensors[name]) * np.float32(3.4e38)
    encoder = SentenceEncoder(write_model(tmp_path / "model", SPEC, tensors), precision=precision, threads=1)
    with pytest.raises(NumericalError, match=f"NaN or infinity came out of {place};"):
        encoder.encode(texts())


def test_large_weights_that_are_still_in_range(tmp_path):
    spec = replace(SPEC, normalize=False)
    tensors = write_tensors(spec)
    name = "encoder.layer.2.output.LayerNorm.weight"
    tensors[name] *= np.float32(1e30)
    vectors = SentenceEncoder(write_model(tmp_path / "model", spec, tensors), threads=1).encode(texts())
    assert np.isfinite(vectors).all()
    assert np.abs(vectors).max() > 1e29
