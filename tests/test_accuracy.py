"""Accuracy on real intent data. The bars are those that the project set itself; the figures: benchmarks/accuracy.py."""

import numpy as np
import pytest

from benchmarks.accuracy import SETS, evaluate
from minitrans import SentenceEncoder
from minitrans.data.files import read_examples
from minitrans.files import bundled
from minitrans.models.export import quantize_folder

# Percent at 1, 5 and 10 shots with float32 weights.
BARS = {"BANKING77": (69.0, 81.5, 86.0), "CLINC150": (78.0, 88.0, 90.3), "HWU64": (64.5, 78.5, 83.4)}
INT8_LOSS = 0.5  # points


@pytest.fixture(scope="module")
def float32_encoder(float32_folder):
    return SentenceEncoder(float32_folder)


@pytest.mark.float32
@pytest.mark.data
@pytest.mark.parametrize("name", SETS)
def test_few_shot_accuracy_reaches_the_bars(float32_encoder, data_folder, name):
    full = evaluate(float32_encoder, data_folder / SETS[name])
    small = evaluate(SentenceEncoder(), data_folder / SETS[name])
    for shots, bar in zip(("1", "5", "10"), BARS[name], strict=True):
        assert full[shots] >= bar, f"{name}, {shots} shots, float32"
        assert small[shots] >= full[shots] - INT8_LOSS, f"{name}, {shots} shots, int8"


@pytest.mark.float32
@pytest.mark.data
def test_int8_embeddings_stay_close_to_float32(float32_encoder, data_folder):
    texts = read_examples(data_folder / "banking77" / "test.csv").texts
    full, small = (encoder.encode(texts, normalize_embeddings=True) for encoder in (float32_encoder, SentenceEncoder()))
    cosine = (full * small).sum(axis=-1)
    assert cosine.mean() >= 0.9985
    assert cosine.min() >= 0.995


@pytest.mark.float32
def test_the_bundled_model_is_the_original_quantised(float32_folder, tmp_path):
    folder = quantize_folder(float32_folder, tmp_path / "int8")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        assert file.read_bytes() == bundled(f"weights/all-MiniLM-L6-v2-int8/{name}").read_bytes(), name


def test_the_bundled_model_has_its_licence_and_attribution():
    folder = bundled("weights/all-MiniLM-L6-v2-int8")
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "sentence-transformers/all-MiniLM-L6-v2" in (folder / "README.md").read_text()


def test_the_bundled_model_tells_related_from_unrelated_texts():
    encoder = SentenceEncoder()
    vectors = encoder.encode(["How do I reset my password?", "I forgot my login details", "The soup was too salty"])
    cosines = encoder.similarity(vectors, vectors)
    assert np.allclose(np.diag(cosines), 1, atol=1e-6)
    assert cosines[0, 1] > cosines[0, 2] + 0.3
