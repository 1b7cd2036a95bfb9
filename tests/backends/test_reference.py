"""Each function of the reference backend against an oracle of its own: float64, plain loops, or exact integers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrans.backends import load_blocks
from minitrans.backends.blas import single_threaded_blas
from minitrans.backends.products import PANEL, FloatProduct, prepare
from minitrans.backends.reference import ReferenceBlocks, layer_norm, linear, lookup
from minitrans.encoder.activations import ACTIVATIONS, erf, gelu, gelu_new, relu, softmax_in_place
from minitrans.encoder.packing import pack, segments
from minitrans.errors import BackendError
from minitrans.models.parameters import Embedding, Int8Embedding, LayerNorm, Linear
from minitrans.models.quantization import quantize_linear, with_precision
from minitrans.models.weights import load_parameters


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    with single_threaded_blas():
        yield


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def random_linear(seed: int, N: int, K: int) -> Linear:
    return Linear(normal(seed, N, K), normal(seed + 1, N))


def offsets_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


# Activations


def test_erf():
    x = np.concatenate([np.linspace(-6, 6, 400_001), np.linspace(-1e-3, 1e-3, 1001)]).astype(np.float32)
    exact = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(erf(x) - exact).max() <= 5e-7


def test_erf_at_the_ends_of_float32():
    largest = np.finfo(np.float32).max
    x = np.array([np.inf, largest, 3.92, 0.0, -3.92, -largest, -np.inf], np.float32)
    np.testing.assert_allclose(erf(x), [1, 1, 1, 0, -1, -1, -1], rtol=0, atol=5e-7)
    assert np.isnan(erf(np.array([np.nan], np.float32))).all()


def test_erf_leaves_its_argument_alone():
    x = normal(0, 50, scale=3)
    before = x.copy()
    erf(x)
    assert np.array_equal(x, before)


def exact_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def exact_gelu_new(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("function", "exact"), [(gelu, exact_gelu), (gelu_new, exact_gelu_new), (relu, lambda x: max(x, 0.0))]
)
def test_activations(function, exact):
    x = np.linspace(-12, 12, 100_001).astype(np.float32)
    wanted = np.array([exact(value) for value in x.tolist()])
    assert function(x).dtype == np.float32
    assert (np.abs(function(x) - wanted) <= 5e-7 * np.maximum(np.abs(x), 1)).all()


def test_activations_by_name():
    assert [ACTIVATIONS[name] for name in ("gelu", "gelu_new", "relu")] == [gelu, gelu_new, relu]
    assert len(ACTIVATIONS) == 3


# Layer norm, softmax, tables


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 0.0), (30.0, 20.0)])
def test_layer_norm(eps, scale, shift):
    x = normal(1, 7, 96, scale=scale) + np.float32(shift)
    norm = LayerNorm(normal(2, 96), normal(3, 96))
    exact = x.astype(np.float64)
    mean, variance = exact.mean(-1, keepdims=True), exact.var(-1, keepdims=True)
    wanted = (exact - mean) / np.sqrt(variance + eps) * norm.weight + norm.bias
    np.testing.assert_allclose(layer_norm(x, norm, eps), wanted, rtol=0, atol=2e-5)


def test_layer_norm_of_equal_values_is_the_bias():
    norm = LayerNorm(normal(2, 8), normal(3, 8))
    assert np.array_equal(layer_norm(np.full((1, 8), 4, np.float32), norm, 1e-12)[0], norm.bias)


def test_softmax():
    logits = normal(4, 3, 5, 17, scale=4)
    exact = np.exp(logits.astype(np.float64))
    wanted = exact / exact.sum(-1, keepdims=True)
    np.testing.assert_allclose(softmax_in_place(logits), wanted, rtol=2e-6)


def test_softmax_of_large_logits():
    probabilities = softmax_in_place(np.array([[1e30, 0, -1e30], [3e38, 3e38, 0]], np.float32))
    assert np.array_equal(probabilities, np.array([[1, 0, 0], [0.5, 0.5, 0]], np.float32))


def test_lookup():
    ids = np.array([2, 0, 2])
    weight = normal(5, 4, 6)
    assert np.array_equal(lookup(Embedding(weight), ids), weight[[2, 0, 2]])
    small = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    scale = np.array([0.5, 1, 0.25, 2], np.float32)
    wanted = [[0.0, 0.25, 0.5, 0.75, 1.0, 1.25], [-6.0, -5.5, -5.0, -4.5, -4.0, -3.5]]
    assert np.array_equal(lookup(Int8Embedding(small, scale), ids), np.float32([wanted[0], wanted[1], wanted[0]]))


# Products


@pytest.mark.parametrize("N", [1, 24, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL, 3 * PANEL + 40])
@pytest.mark.parametrize(("K", "lengths"), [(32, [1]), (33, [3, 1, 12]), (96, [0, 40, 0, 7]), (8, [])])
def test_float_product(N, K, lengths):
    layer = random_linear(6, N, K)
    x = normal(7, sum(lengths), K)
    product = prepare(layer)
    assert isinstance(product, FloatProduct)
    wanted = x.astype(np.float64) @ layer.weight.T.astype(np.float64) + layer.bias
    y = linear(x, product, offsets_of(lengths))
    assert y.shape == (sum(lengths), N)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("quantize", [lambda layer: layer, quantize_linear], ids=["float32", "int8"])
def test_linear_maps_side_by_side_are_what_they_are_alone(quantize):
    layers = [quantize(random_linear(seed, N, 40)) for seed, N in ((1, 24), (3, 24), (5, 130))]
    x, offsets = normal(8, 9, 40), offsets_of([4, 5])
    together = linear(x, prepare(*layers), offsets)
    each = [linear(x, prepare(layer), offsets) for layer in layers]
    np.testing.assert_allclose(together, np.concatenate(each, axis=1), rtol=0, atol=1e-5)


def test_int8_product_follows_its_definition():
    layer = quantize_linear(random_linear(9, 30, 50))
    x = normal(10, 6, 50, scale=2)
    x[3] = 0
    y = linear(x, prepare(layer), offsets_of([2, 4]))
    for row, values in zip(y, x, strict=True):
        low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
        scale = (high - low) / np.float32(255) or np.float32(1)
        zero = round(-low / scale)
        q = [min(max(round(value / scale) + zero, 0), 255) for value in values]
        sums = layer.weight.astype(np.int64) @ (np.array(q) - zero)
        # an activation on the edge between two bytes may fall to either side: one step of one activation
        step = scale * np.abs(layer.weight).max(axis=1) * layer.scale
        assert (np.abs(row - (sums * scale * layer.scale + layer.bias)) <= step * 1.01).all()


def test_int8_product_approximates_the_float_one():
    layer = random_linear(11, 64, 384)
    x, offsets = normal(12, 20, 384), offsets_of([20])
    exact, rough = (linear(x, prepare(each), offsets) for each in (layer, quantize_linear(layer)))
    assert np.abs(rough - exact).max() <= 0.02 * np.abs(exact).max()


# Blocks


@pytest.fixture(scope="module", params=["odd_sizes", "head_dim_64", "head_dim_16"])
def parameters(request, random_folder):
    return load_parameters(random_folder(request.param))


def naive_linear(x, layer):
    return x @ layer.weight.T.astype(np.float64) + layer.bias


def naive_norm(x, norm, eps):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * norm.weight + norm.bias


def naive_attention(hidden, offsets, sizes, parameters, layer):
    """Head by head, query by query, in float64: hidden [T, H], and both scores [T]."""
    weights, config = parameters.layers[layer], parameters.config
    A, D = config.num_attention_heads, config.head_size
    hidden = hidden.astype(np.float64)
    query, key, value = (naive_linear(hidden, part) for part in (weights.query, weights.key, weights.value))
    context = np.zeros_like(hidden)
    scores = {"attention": np.zeros(len(hidden)), "attention_value": np.zeros(len(hidden))}
    for text in segments(offsets):
        rows = range(text.start, text.stop)
        for head in range(A):
            part = slice(head * D, (head + 1) * D)
            for i in rows:
                logits = [float(query[i, part] @ key[j, part]) / math.sqrt(D) + math.log(sizes[j]) for j in rows]
                exponentials = [math.exp(logit - max(logits)) for logit in logits]
                for j, exponential in zip(rows, exponentials, strict=True):
                    attention = exponential / sum(exponentials)
                    context[i, part] += attention * value[j, part]
                    scores["attention"][j] += attention / (A * len(rows))
                    norm = math.sqrt(sum(v * v for v in value[j, part]))
                    scores["attention_value"][j] += attention * norm / (A * len(rows))
    output = naive_linear(context, weights.attention_output)
    return naive_norm(output + hidden, weights.attention_norm, config.layer_norm_eps), scores


@pytest.mark.parametrize("with_sizes", [False, True], ids=["ones", "sizes"])
def test_attention_block(parameters, with_sizes):
    lengths = [5, 1, 0, 9]
    offsets, T = offsets_of(lengths), sum(lengths)
    hidden = normal(13, T, parameters.config.hidden_size)
    sizes = np.random.default_rng(14).integers(1, 6, T).astype(np.float32) if with_sizes else None
    wanted, scores = naive_attention(hidden, offsets, np.ones(T) if sizes is None else sizes, parameters, 1)
    blocks = ReferenceBlocks(parameters)
    before = hidden.copy()
    for want in ("attention", "attention_value"):
        seen, seen_scores = blocks.attention_block(hidden, offsets, sizes, 1, want)
        np.testing.assert_allclose(seen, wanted, rtol=0, atol=2e-5)
        np.testing.assert_allclose(seen_scores, scores[want], rtol=1e-5)
    assert np.array_equal(hidden, before)


@pytest.mark.parametrize("want", [None, "random", "first"])
def test_attention_block_gathers_only_the_wanted_score(parameters, want):
    hidden, offsets = normal(13, 6, parameters.config.hidden_size), offsets_of([4, 2])
    blocks = ReferenceBlocks(parameters)
    seen, scores = blocks.attention_block(hidden, offsets, None, 0, want)
    assert scores is None
    assert np.array_equal(seen, blocks.attention_block(hidden, offsets, None, 0, "attention")[0])


def test_a_row_of_size_m_counts_as_m_equal_tokens(parameters):
    width = parameters.config.hidden_size
    once = normal(15, 4, width)
    repeated = np.concatenate([once, once[[1, 1]]])
    blocks = ReferenceBlocks(parameters)
    weighted, _ = blocks.attention_block(once, offsets_of([4]), np.float32([1, 3, 1, 1]), 0, None)
    written_out, _ = blocks.attention_block(repeated, offsets_of([6]), None, 0, None)
    np.testing.assert_allclose(weighted, written_out[:4], rtol=0, atol=1e-5)


def test_feed_forward_block(parameters):
    offsets = offsets_of([3, 0, 5])
    hidden = normal(16, 8, parameters.config.hidden_size)
    weights = parameters.layers[1]
    exact = {"gelu": exact_gelu, "gelu_new": exact_gelu_new}[parameters.config.hidden_act]
    inner = np.vectorize(exact)(naive_linear(hidden.astype(np.float64), weights.intermediate))
    output = naive_linear(inner, weights.output) + hidden
    wanted = naive_norm(output, weights.output_norm, parameters.config.layer_norm_eps)
    before = hidden.copy()
    seen = ReferenceBlocks(parameters).feed_forward_block(hidden, offsets, 1)
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=2e-5)
    assert np.array_equal(hidden, before)


def test_embed_counts_positions_per_text(parameters):
    batch = pack([[2, 9, 3], [], [7], [9, 9]])
    words, positions = parameters.word_embeddings.weight, parameters.position_embeddings.weight
    token_type = parameters.token_type_embeddings.weight[0]
    rows = [words[i] + positions[p] + token_type for i, p in ((2, 0), (9, 1), (3, 2), (7, 0), (9, 0), (9, 1))]
    wanted = naive_norm(np.array(rows, np.float64), parameters.embeddings_norm, parameters.config.layer_norm_eps)
    seen = ReferenceBlocks(parameters).embed(batch.ids, batch.offsets)
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 12), max_size=5), st.booleans(), st.booleans())
def test_importance_of_a_text_sums_to_one(plain, seed, lengths, int8, with_sizes):
    parameters = with_precision(load_parameters(plain), "int8" if int8 else "float32")
    offsets, T = offsets_of(lengths), sum(lengths)
    sizes = np.random.default_rng(seed).integers(1, 9, T).astype(np.float32) if with_sizes else None
    _, scores = ReferenceBlocks(parameters).attention_block(normal(seed, T, 32), offsets, sizes, 0, "attention")
    assert (scores >= 0).all()
    for text, length in zip(segments(offsets), lengths, strict=True):
        assert scores[text].sum() == pytest.approx(1 if length else 0, abs=1e-5)


def test_load_blocks(plain):
    parameters = load_parameters(plain)
    blocks = load_blocks("reference", parameters)
    assert (blocks.name, blocks.info()) == ("reference", {"kernels": None, "instruction_set": None})
    assert load_blocks("auto", parameters).name in ("reference", "compiled")
    with pytest.raises(BackendError, match="backend is 'numba', wanted 'auto', 'compiled' or 'reference'"):
        load_blocks("numba", parameters)
