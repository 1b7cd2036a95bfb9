"""Number formats, files and similarities of finished embeddings."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrans.errors import InputError, InputTypeError
from minitrans.evaluation.tables import check_table_file
from minitrans.fewshot.examples import float_rows
from minitrans.sentences import vectors as module
from minitrans.sentences.vectors import (
    DTYPES,
    as_lines,
    check_output,
    check_precision,
    output_width,
    save_vectors,
    similarity,
    similarity_pairwise,
    to_precision,
)

PRECISIONS = ["float32", "int8", "uint8", "binary", "ubinary"]
NAMES = ["cosine", "dot", "euclidean", "manhattan"]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


# Number formats


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 70), st.sampled_from(PRECISIONS))
def test_a_vector_does_not_depend_on_the_others(seed, B, H, precision):
    vectors = normal(seed, B, H) * np.float32(10) ** np.arange(-4, B - 4, dtype=np.float32)[:, None]
    stored = to_precision(vectors, precision)
    assert stored.dtype == DTYPES[precision]
    assert stored.shape == (B, output_width(H, precision))
    for i in range(B):
        assert np.array_equal(to_precision(vectors[i : i + 1], precision)[0], stored[i])
    assert np.array_equal(to_precision(vectors[::-1], precision)[::-1], stored)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_int8_keeps_cosines(scale):
    vectors = normal(0, 200, 384) * np.float32(scale)
    assert cosine(to_precision(vectors, "int8"), vectors).min() > 1 - 1e-3
    pairs = cosine(vectors[:-1], vectors[1:])
    stored = to_precision(vectors, "int8")
    assert np.abs(cosine(stored[:-1], stored[1:]) - pairs).max() < 3e-3
    assert np.array_equal(np.abs(stored.astype(int)).max(axis=1), np.full(200, 127))


def test_int8_by_hand():
    vectors = np.float32([[1, -0.5, 0.25, 0], [0, 0, 0, 0], [-3, 1, 0.011, 0.013]])
    wanted = np.array([[127, -64, 32, 0], [0, 0, 0, 0], [-127, 42, 0, 1]])  # halves to even: -63.5, 31.75
    assert np.array_equal(to_precision(vectors, "int8"), wanted)
    assert np.array_equal(to_precision(vectors, "uint8"), wanted + 128)


@pytest.mark.parametrize("value", [1e-45, 1e-38, 3e-30, 3.4e38])
def test_int8_at_the_ends_of_float32(value):
    stored = to_precision(np.float32([[value, -value, value / 2, 0]]), "int8")
    assert stored[0, 0] == -stored[0, 1]
    assert stored[0, 0] in (0, 127)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 10))
def test_binary_is_that_of_sentence_transformers(seed, B, bytes_):
    vectors = np.random.default_rng(seed).integers(-1, 2, (B, 8 * bytes_)).astype(np.float32)
    packed = np.packbits(vectors > 0).reshape(B, -1)  # its quantize_embeddings, line by line
    assert np.array_equal(to_precision(vectors, "ubinary"), packed.astype(np.uint8))
    assert np.array_equal(to_precision(vectors, "binary"), (packed - 128).astype(np.int8))


def test_binary_by_hand():
    vectors = np.float32([[1, -1, 0, 2, -3, -4, 5, 6, 7, -8]])  # 1001 0011, 1000 0000
    assert to_precision(vectors, "ubinary").tolist() == [[0b10010011, 0b10000000]]
    assert to_precision(vectors, "binary").tolist() == [[0b10010011 - 128, 0]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_vectors(precision):
    assert to_precision(np.empty((0, 20), np.float32), precision).shape == (0, output_width(20, precision))


@pytest.mark.parametrize("precision", ["int4", "", None, 8, np.array(["int8", "uint8"])], ids=repr)
def test_no_other_format_is_taken_for_one(precision):
    with pytest.raises(InputError, match=r"precision is .*, wanted 'float32', 'int8', 'uint8', 'binary' or 'ubinary'"):
        to_precision(normal(0, 2, 8), precision)


def test_check_precision():
    assert [check_precision(name) for name in PRECISIONS] == PRECISIONS == list(DTYPES)
    with pytest.raises(InputError, match=r"precision is 'int4', wanted 'float32', .* or 'ubinary'"):
        check_precision("int4")


# Files

TEXTS = ["plain", 'quotes " and \\', "line\nbreak\u2028and\ttab", "", "ünïcödé 東京 🎉", "lone \ud800"]


def vectors_of(precision: str) -> np.ndarray:
    vectors = normal(1, len(TEXTS), 24) * np.float32([[1], [1e-30], [1e30], [0], [1e-42], [1]])
    return to_precision(vectors, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_npy_round_trip(tmp_path, precision):
    save_vectors(tmp_path / "x.npy", TEXTS, vectors_of(precision))
    read = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert read.dtype == DTYPES[precision]
    assert np.array_equal(read, vectors_of(precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_jsonl_round_trip(tmp_path, precision):
    save_vectors(str(tmp_path / "x.jsonl"), TEXTS, vectors_of(precision))
    lines = (tmp_path / "x.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    records = [json.loads(line) for line in lines]
    assert [record["text"] for record in records] == TEXTS
    assert all(record.keys() == {"text", "embedding"} for record in records)
    read = np.array([record["embedding"] for record in records], DTYPES[precision])
    assert np.array_equal(read, vectors_of(precision))


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda x: x == np.float32(x)), min_size=1
    )
)
def test_lines_read_back_to_the_same_float32(numbers):
    vectors = np.array([numbers], np.float32)
    (line,) = as_lines(["text"], vectors, as_json=False)
    (record,) = as_lines(["text"], vectors, as_json=True)
    for read in (line.split(" "), json.loads(record)["embedding"]):
        assert np.array(read, np.float32).tobytes() == vectors[0].tobytes()


def test_lines():
    vectors = np.float32([[0.1, -2, 1e-5], [3, 0, 0.3333333]])
    assert list(as_lines(["a", "b"], vectors, as_json=False)) == ["0.1 -2.0 1e-05", "3.0 0.0 0.3333333"]
    assert next(as_lines(["a\nb"], vectors[:1], as_json=True)) == '{"text": "a\\nb", "embedding": [0.1, -2.0, 1e-05]}'
    assert list(as_lines(["a"], np.int8([[1, -7]]), as_json=False)) == ["1 -7"]
    assert list(as_lines([], np.empty((0, 3), np.float32), as_json=True)) == []


@pytest.mark.parametrize("name", ["x.npy", "x.jsonl"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, name):
    path = tmp_path / name
    save_vectors(path, TEXTS, vectors_of("float32"))
    before = path.read_bytes()

    def full_disk(file, *arguments, **options):
        file.write(b"half")
        raise OSError("no space left")

    def breaks_off(*arguments, **options):
        yield "half"
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full_disk)
    monkeypatch.setattr(module, "as_lines", breaks_off)
    with pytest.raises(OSError, match="no space left"):
        save_vectors(path, TEXTS, vectors_of("float32"))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_as_many_texts_as_vectors(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        save_vectors(tmp_path / "x.jsonl", TEXTS[:2], vectors_of("float32"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.txt", "x", "x.npz", "x.NPY", ".npy"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"wanted \.npy or \.jsonl"):
        check_output(tmp_path / name)
    with pytest.raises(InputError):
        save_vectors(tmp_path / name, TEXTS, vectors_of("float32"))
    assert list(tmp_path.iterdir()) == []


# Similarities


def naive(a, b, name):
    a, b = a.astype(np.float64), b.astype(np.float64)
    if name == "cosine":
        return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
    return float({"dot": a @ b, "euclidean": -np.linalg.norm(a - b), "manhattan": -np.abs(a - b).sum()}[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("B", "other"), [(5, 3), (1, 1), (0, 4), (4, 0), (0, 0)])
def test_similarity(name, B, other):
    a, b = normal(2, B, 19), normal(3, other, 19)
    wanted = np.array([[naive(x, y, name) for y in b] for x in a]).reshape(B, other)
    seen = similarity(a, b, name)
    assert seen.dtype == np.float32
    assert seen.shape == (B, other)
    np.testing.assert_allclose(seen, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_similarity_pairwise(name):
    a, b = normal(4, 6, 19), normal(5, 6, 19)
    np.testing.assert_allclose(
        similarity_pairwise(a, b, name), [naive(x, y, name) for x, y in zip(a, b, strict=True)], rtol=1e-5, atol=1e-5
    )
    assert similarity_pairwise(a[0], b[0], name).shape == (1,)


@pytest.mark.parametrize("name", NAMES)
def test_similarity_takes_lists_and_single_vectors(name):
    a, b = normal(6, 4), normal(7, 3, 4)
    assert similarity(a, b, name).shape == (1, 3)
    assert np.array_equal(similarity(a.tolist(), b.tolist(), name), similarity(a, b, name))


def test_a_vector_is_most_similar_to_itself():
    a = normal(8, 7, 16)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    for name in NAMES:
        assert similarity(a, a, name).argmax(axis=1).tolist() == list(range(7))
    for name in ("euclidean", "manhattan"):
        assert np.array_equal(np.diagonal(similarity(a, a, name)), np.zeros(7))


def test_cosine_of_a_zero_vector_is_zero():
    assert similarity(np.zeros((1, 4)), normal(9, 2, 4)).tolist() == [[0, 0]]
    assert similarity_pairwise(np.zeros((1, 4)), normal(9, 1, 4)).tolist() == [0]


@pytest.mark.parametrize("function", [similarity, similarity_pairwise])
def test_similarity_refuses(function):
    with pytest.raises(InputError, match="similarity is 'cos', wanted 'cosine', 'dot', 'euclidean' or 'manhattan'"):
        function(normal(0, 2, 3), normal(0, 2, 3), "cos")
    with pytest.raises(InputError, match="embeddings have 3 and 4 dimensions, wanted the same"):
        function(normal(0, 2, 3), normal(0, 2, 4))
    with pytest.raises(InputError, match=r"embeddings have 3 dimensions, wanted one vector \[H\] or a matrix"):
        function(normal(0, 2, 3, 4), normal(0, 2, 4))


def test_pairs_must_be_as_many():
    with pytest.raises(InputError, match="pairs of embeddings: 2 and 3 rows, wanted as many in both"):
        similarity_pairwise(normal(0, 2, 4), normal(0, 3, 4))


@pytest.mark.parametrize("path", [None, 5, ["x.npy"], "", "a\0.npy"])
@pytest.mark.parametrize("function", [check_output, check_table_file])
def test_what_cannot_be_the_path_of_an_output(function, path):
    with pytest.raises((InputError, InputTypeError)):
        function(path)


def test_masked_embeddings_are_refused():
    rows = np.ma.array([[1.0, 2.0]], mask=[[True, False]])
    for function in (
        lambda: similarity(rows, rows),
        lambda: similarity_pairwise(rows, rows),
        lambda: float_rows(rows, "a"),
    ):
        with pytest.raises(InputError, match="masked"):
            function()
