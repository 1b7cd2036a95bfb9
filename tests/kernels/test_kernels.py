"""The compiled kernels: every build of every level against the reference, float64 and exact integers, bit for bit."""

import dataclasses
import math
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, product
from types import SimpleNamespace

import golden_files
import numpy as np
import pytest
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import (
    LENGTHS,
    LEVELS,
    MIXED,
    NOTHING,
    any_kernels,
    attended,
    draw_sizes,
    float32_product,
    int8_product,
    kernels_of,
    normal,
    normalized,
    offsets_of,
    quantized,
)

from minitrans.backends import compiled, reference, team
from minitrans.backends.blas import single_threaded_blas
from minitrans.backends.compiled import CompiledBlocks
from minitrans.backends.panels import address, aligned
from minitrans.backends.reference import ReferenceBlocks, linear
from minitrans.encoder.forward import forward
from minitrans.encoder.packing import PackedBatch, pack
from minitrans.errors import InputError, NumericalError
from minitrans.kernels.library.loading import AHEAD, IN_TIME, load_kernels
from minitrans.kernels.steps import (
    BOARD,
    BOARD_JOBS,
    JOB,
    JOB_BYTES,
    PER_ROWS,
    PROGRESS,
    PROGRESS_BYTES,
    ROWS_PER_TASK,
    STEP,
    write_fields,
)
from minitrans.models.parameters import INT8_INPUTS, Int8Linear, LayerNorm, Linear
from minitrans.models.quantization import quantize_activations, with_precision
from minitrans.models.weights import load_parameters

pytestmark = pytest.mark.skipif(not LEVELS, reason="there are no kernels for this machine")

HIDDEN_BAR = 1e-5  # largest difference of any value of a float32 hidden state
SCORE_BAR = 1e-5  # relative
COSINE_BAR = 0.9999
EDGE = 0.002  # steps of a byte: so far float32 arithmetic in another order may move an activation
ROUNDING = 2.0**-24  # of float32, relative

MODELS = ("plain", "odd_sizes", "head_dim_16", "head_dim_64", "one_layer", "uneven")
UNEVEN = random_models.ModelSpec(  # no size is a multiple of a vector's
    "uneven", vocab_size=201, hidden_size=21, num_attention_heads=3, intermediate_size=37, num_hidden_layers=2, seed=31
)
PRECISIONS = ("float32", "int8")
BATCHES = (*NOTHING, *((n,) for n in LENGTHS), *MIXED)
ATTENTION_CASES = ((False, None), (True, "attention"), (False, "attention_value"))  # with sizes, score wanted

by_level = pytest.mark.parametrize("level", LEVELS)


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    with single_threaded_blas():
        yield


@pytest.fixture(scope="module")
def model_folder(random_folder, tmp_path_factory):
    """A function: one of MODELS -> its folder."""
    uneven = random_models.write_model(tmp_path_factory.mktemp("uneven"), UNEVEN)
    return lambda name: uneven if name == UNEVEN.name else random_folder(name)


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request):
    """One build of each level: that the other gives the same bits is tested below."""
    return any_kernels(request.param)


# Products


@dataclasses.dataclass(frozen=True)
class Bytes:
    """What goes into an int8 product."""

    q: np.ndarray  # [T, K]
    zero: np.ndarray  # [T]
    weight: np.ndarray  # [N, K]

    def exact(self) -> np.ndarray:
        """[T, N], in 64 bits; float64 would do, which holds every integer below 2**53."""
        return ((self.q.astype(np.float64) - self.zero[:, None]) @ self.weight.T.astype(np.float64)).astype(np.int64)

    def seen(self, kernels) -> np.ndarray:
        """[T, N], as float32."""
        ones, nothing = np.ones(len(self.weight), np.float32), np.zeros(len(self.weight), np.float32)
        scale = np.ones(len(self.q), np.float32)
        return int8_product(kernels, self.q, scale, self.zero, Int8Linear(self.weight, ones, nothing))


def draw_bytes(seed, rows, inputs, outputs, extreme):
    random = np.random.default_rng(seed)
    if extreme:
        q = random.choice(np.array([0, 255], np.uint8), (rows, inputs))
        weight = random.choice(np.array([-128, -127, 127], np.int8), (outputs, inputs))
        return Bytes(q, random.choice([0, 255], rows), weight)
    q = random.integers(0, 256, (rows, inputs), np.uint8)
    weight = random.integers(-128, 128, (outputs, inputs), np.int8)
    return Bytes(q, random.integers(0, 256, rows), weight)


SHAPES = {
    "rows": st.integers(1, 70),
    "inputs": st.integers(1, 300) | st.just(1536),
    "outputs": st.integers(1, 100),
}


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), extreme=st.booleans(), **SHAPES)
def test_int8_sums_are_exact(kernels, seed, extreme, rows, inputs, outputs):
    case = draw_bytes(seed, rows, inputs, outputs, extreme)
    assert np.array_equal(case.seen(kernels), case.exact().astype(np.float32))


def test_int8_sums_are_exact_at_every_height(kernels):
    for rows in LENGTHS:
        case = draw_bytes(rows, rows, 67, 33, extreme=False)
        assert np.array_equal(case.seen(kernels), case.exact().astype(np.float32)), rows


@pytest.mark.parametrize("sign", [1, -1])
def test_the_longest_int8_sum_does_not_overflow(kernels, sign):
    q = np.full((3, INT8_INPUTS), 255, np.uint8)
    weight = np.full((2, INT8_INPUTS), sign * 127, np.int8)
    case = Bytes(q, np.array([0, 255, 128]), weight)
    assert abs(case.exact()).max() > 0.999 * 2**31
    assert np.array_equal(case.seen(kernels), case.exact().astype(np.float32))


def test_int8_scales_and_bias(kernels):
    case = draw_bytes(1, 21, 40, 70, extreme=False)
    scale, column_scale, bias = np.abs(normal(2, 21)) + 0.1, np.abs(normal(3, 70)) + 0.1, normal(4, 70, scale=50)
    scale, column_scale = scale.astype(np.float32), column_scale.astype(np.float32)
    seen = int8_product(kernels, case.q, scale, case.zero, Int8Linear(case.weight, column_scale, bias))
    exact = case.exact() * scale[:, None].astype(np.float64) * column_scale
    bound = 3 * ROUNDING * (np.abs(exact) * 1.01 + np.abs(bias))  # the product of the scales, its product, the sum
    assert (np.abs(seen - (exact + bias)) <= bound).all()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), **SHAPES)
def test_float32_product(kernels, seed, rows, inputs, outputs):
    x, layer = normal(seed, rows, inputs), Linear(normal(seed + 1, outputs, inputs), normal(seed + 2, outputs))
    exact = x.astype(np.float64) @ layer.weight.T.astype(np.float64) + layer.bias
    # each of the sum's steps rounds once or twice (Higham, Accuracy and Stability of Numerical Algorithms, 3.1)
    bound = (inputs + 2) * ROUNDING * (np.abs(x).astype(np.float64) @ np.abs(layer.weight.T) + np.abs(layer.bias))
    assert (np.abs(float32_product(kernels, x, layer) - exact) <= bound).all()


def test_float32_product_of_integers_is_exact_at_every_height(kernels):
    random = np.random.default_rng(1)
    for rows in LENGTHS:
        shapes = (rows, 37), (33, 37), (33,)
        x, weight, bias = (random.integers(-9, 10, shape).astype(np.float32) for shape in shapes)
        assert np.array_equal(float32_product(kernels, x, Linear(weight, bias)), x @ weight.T + bias), rows


# Activations


def exact_gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def exact_gelu_new(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"gelu": exact_gelu, "gelu_new": exact_gelu_new, "relu": lambda x: max(x, 0.0), None: lambda x: x}
by_activation = pytest.mark.parametrize("activation", ACTIVATIONS)

one_wide = Linear(np.ones((1, 1), np.float32), np.zeros(1, np.float32))
one_wide_int8 = Int8Linear(np.ones((1, 1), np.int8), np.ones(1, np.float32), np.zeros(1, np.float32))


@cache
def grid(activation):
    """Numbers, and what their activation is."""
    near = np.concatenate([np.linspace(-12, 12, 12_001), np.geomspace(1e-30, 1, 500), -np.geomspace(1e-30, 1, 500)])
    x = near.astype(np.float32)
    return x, np.array([ACTIVATIONS[activation](value) for value in x.tolist()])


def activated(kernels, x, activation):
    return float32_product(kernels, np.asarray(x, np.float32)[:, None], one_wide, activation)[:, 0]


@by_activation
def test_activations(kernels, activation):
    x, wanted = grid(activation)
    assert (np.abs(activated(kernels, x, activation) - wanted) <= 4e-7 * np.abs(x)).all()


@by_activation
def test_activations_of_int8_products_are_the_same(kernels, activation):
    scale = np.linspace(0.001, 8, 300).astype(np.float32)
    for q, zero in ((1, 0), (0, 1)):
        bytes_, zeros = np.full((300, 1), q, np.uint8), np.full(300, zero)
        seen = int8_product(kernels, bytes_, scale, zeros, one_wide_int8, activation)[:, 0]
        assert np.array_equal(seen, activated(kernels, (q - zero) * scale, activation))


@by_activation
def test_activations_of_large_numbers(kernels, activation):
    x = np.array([15, 90, 1e5, 1e13, 3e38, np.inf], np.float32)
    assert np.array_equal(activated(kernels, x, activation), x)
    if activation is not None:
        assert np.abs(activated(kernels, -x[:-1], activation)).max() <= 1e-7 * 15


def test_relu_of_minus_infinity(kernels):
    assert activated(kernels, [-np.inf], "relu").tolist() == [0]


@by_activation
def test_activations_keep_nan_to_its_row(kernels, activation):
    seen = activated(kernels, [1, np.nan, 2, -np.nan, 3], activation)
    assert np.isnan(seen).tolist() == [False, True, False, True, False]


# Rows


def assert_quantized_as_defined(kernels, x):
    with np.errstate(all="ignore"):
        q, scale, zero = quantize_activations(x)
    finite = np.isfinite(scale)
    for from_scratch in (True, False):
        seen_q, seen_scale, seen_zero = quantized(kernels, x, from_scratch)
        assert np.array_equal(seen_scale[finite], scale[finite])
        assert np.array_equal(seen_zero[finite], zero[finite])
        assert np.array_equal(seen_q[finite], q[finite])
        assert not np.isfinite(seen_scale[~finite]).any()


@settings(max_examples=40)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70))
def test_quantized_rows_are_exactly_as_defined(kernels, values):
    x = np.array(values, np.float32)
    assert_quantized_as_defined(kernels, np.stack([x, np.abs(x), -np.abs(x), np.zeros_like(x), x * np.float32(1e-30)]))


def test_many_quantized_rows_are_exactly_as_defined(kernels):
    for width in (1, 3, 4, 5, 15, 16, 17, 31, 33, 64, 100, 384):
        x = normal(width, 300, width) * np.geomspace(1e-25, 1e25, 300).astype(np.float32)[:, None]
        x[::3] = np.abs(x[::3])
        x[1::7] = -np.abs(x[1::7])
        halves = np.random.default_rng(width).integers(-255, 256, (50, width)).astype(np.float32) / 2
        halves[:, 0] = np.where(np.arange(50) % 2, 255, -255)
        assert_quantized_as_defined(kernels, np.concatenate([x, halves, halves * 2, halves / 1024]))


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_damage_ends_in_the_scale_of_its_row(kernels, damage, width):
    clean = normal(5, width, width)
    x = clean.copy()
    x[np.arange(width), np.arange(width)] = damage
    _, scale, _ = quantized(kernels, np.concatenate([x, clean]), from_scratch=True)
    assert not np.isfinite(scale[:width]).any()
    assert np.array_equal(scale[width:], quantize_activations(clean)[1])


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 0.0), (30.0, 20.0)])
def test_layer_norm(kernels, eps, scale, shift):
    for width in (2, 3, 8, 17, 31, 96, 100):
        x, hidden = normal(1, 21, width, scale=scale), normal(2, 21, width, scale=scale) + np.float32(shift)
        norm = LayerNorm(normal(3, width), normal(4, width))
        exact = (x + hidden).astype(np.float64)
        wanted = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + eps)
        seen = normalized(kernels, x, hidden, norm, eps)
        np.testing.assert_allclose(seen, wanted * norm.weight + norm.bias, rtol=0, atol=2e-5)


@pytest.mark.parametrize("width", [1, 8, 9])
def test_layer_norm_of_equal_values_is_the_bias(kernels, width):
    norm = LayerNorm(normal(2, width), normal(3, width))
    seen = normalized(kernels, np.full((1, width), 3, np.float32), np.ones((1, width), np.float32), norm, 1e-12)
    assert np.array_equal(seen[0], norm.bias)


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_layer_norm_keeps_damage_to_its_row(kernels, damage):
    x = normal(1, 9, 19)
    x[4, 18] = damage
    seen = normalized(kernels, x, np.zeros_like(x), LayerNorm(normal(2, 19), normal(3, 19)), 1e-5)
    assert np.isnan(seen).any(axis=1).tolist() == [row == 4 for row in range(9)]


# Attention


def test_exponentials(kernels):
    """Of two keys, the second with logit x <= 0 below the first, the second receives e^x / (1 + e^x)."""
    x = np.linspace(-85, 0, 4001).astype(np.float32)
    qkv = np.zeros((2 * len(x), 3), np.float32)  # heads of size 1
    qkv[:, 0], qkv[1::2, 1] = 1, x
    qkv[1::2, 2] = 1
    context, received = attended(kernels, qkv, [2] * len(x), heads=1, factor=1.0)
    exact = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(received[0, 1::2], exact / (1 + exact), rtol=4e-7)
    np.testing.assert_allclose(context[:, 0], np.repeat(exact / (1 + exact), 2), rtol=4e-7)


def test_logits_far_apart(kernels):
    qkv = np.zeros((3, 3), np.float32)
    qkv[:, 0], qkv[:, 1], qkv[:, 2] = 1, [0, -1e4, 3e38], [1, 2, 3]
    context, received = attended(kernels, qkv, [3], heads=1, factor=1.0)
    assert context[:, 0].tolist() == [3, 3, 3]
    np.testing.assert_allclose(received[0], [0, 0, 1], rtol=0, atol=1e-37)


@pytest.mark.parametrize("column", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_attention_keeps_damage_to_its_text(kernels, damage, column):
    qkv = normal(1, 12, 3 * 8)
    clean, _ = attended(kernels, qkv, [4, 3, 5], heads=2, factor=0.5)
    qkv[5, 8 * column : 8 * column + 8] = damage
    context, _ = attended(kernels, qkv, [4, 3, 5], heads=2, factor=0.5)
    touched = slice(5, 6) if column == 0 else slice(4, 7)  # a query touches its own row only
    assert np.isnan(context[touched]).all() or (np.isposinf(damage) and not np.isfinite(context[touched]).all())
    others = np.ones(12, bool)
    others[touched] = False
    assert np.array_equal(context[others], clean[others])


# Blocks


class Recorded:
    """While entered: what went into the linear maps of the reference, and what came out; the last of a block counts."""

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(reference, "linear", self.linear)
        return self

    def __exit__(self, *_):
        self.patch.undo()

    def linear(self, x, weights, offsets):
        self.x, self.y = x, linear(x, weights, offsets)
        return self.y


def possible_steps(x):
    """[T, K]: how much of each quantised activation depends on rounding: one step at the edge between two bytes.

    Where the zero point itself is at an edge, so are the first and the last byte, at which values are cut off.
    """
    q, scale, _ = quantize_activations(x)

    def at_edge(place):
        return np.abs(place - np.floor(place) - 0.5) < EDGE

    ends = (q == 0) | (q == 255)
    zero_at_edge = at_edge(np.minimum(x.min(axis=1), 0) / scale)
    return (at_edge(x / scale[:, None]) | (ends & zero_at_edge[:, None])) * scale[:, None]


def reach(recorded, linear, hidden, norm):
    """[T]: how far (Euclidean) a row of layer_norm(product(x) + hidden) may lie from the reference's, product int8.

    The product moves by at most the possible steps times the size of their weights. Then, of vectors u and v whose
    means are taken out, |u / |u| - v / |v|| <= 2 |u - v| / (|u| + |v|) (Dunkl and Williams 1964), and layer norm
    multiplies such a direction by sqrt(H) and its weights.
    """
    weight = np.abs(linear.weight).astype(np.float32) * linear.scale[:, None]  # [N, K]
    moved = np.linalg.norm(possible_steps(recorded.x) @ weight.T, axis=1)  # [T]
    before = recorded.y + hidden
    length = np.linalg.norm(before - before.mean(axis=1, keepdims=True), axis=1)  # [T]
    turned = 2 * moved / np.maximum(2 * length - moved, 1e-9)
    width = np.sqrt(hidden.shape[1])
    return (turned * np.abs(norm.weight).max() + HIDDEN_BAR) * width


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the reference makes of some rows."""

    hidden: np.ndarray  # [T, H]
    reach: np.ndarray | None  # [T] int8: how far a row may lie from it; None: no value further than HIDDEN_BAR

    @classmethod
    def of(cls, hidden, recorded, linear, before, norm):
        return cls(hidden, reach(recorded, linear, before, norm) if isinstance(linear, Int8Linear) else None)

    def check(self, seen):
        assert seen.dtype == np.float32
        assert seen.shape == self.hidden.shape
        if self.reach is None:
            assert np.abs(seen - self.hidden).max(initial=0) <= HIDDEN_BAR
        else:
            assert (np.linalg.norm(seen - self.hidden, axis=1) <= self.reach).all()
        lengths = np.linalg.norm(seen, axis=1) * np.linalg.norm(self.hidden, axis=1)
        assert ((seen * self.hidden).sum(axis=1) >= COSINE_BAR * lengths).all()


class Model:
    """A random model in one precision, rows for it, and what the reference makes of them."""

    def __init__(self, folder, precision):
        self.parameters = with_precision(load_parameters(folder), precision)
        self.layer = len(self.parameters.layers) - 1
        self.reference = ReferenceBlocks(self.parameters)
        self.text, self.embedded, self.attended, self.fed = map(
            cache, (self._text, self._embedded, self._attended, self._fed)
        )

    def _text(self, n):
        """ids [n], hidden [n, H] and sizes [n] of the text of that length."""
        config = self.parameters.config
        ids = np.random.default_rng(n).integers(0, config.vocab_size, n)
        ids[:2] = (config.vocab_size - 1, 0)[:n]
        return ids, normal(n, n, config.hidden_size), draw_sizes(n, n)

    def rows(self, lengths):
        """A batch of such texts: ids, hidden, sizes, offsets."""
        ids, hidden, sizes = map(np.concatenate, zip(self.text(0), *map(self.text, lengths), strict=True))
        return SimpleNamespace(ids=ids, hidden=hidden, sizes=sizes, offsets=offsets_of(lengths))

    def blocks(self, kernels):
        return CompiledBlocks(self.parameters, kernels)

    def _embedded(self, lengths):
        rows = self.rows(lengths)
        return Wanted(self.reference.embed(rows.ids, rows.offsets), None)

    def _attended(self, lengths, sized, want):
        rows, layer = self.rows(lengths), self.layer
        sizes = rows.sizes if sized else None
        with Recorded() as recorded:
            hidden, scores = self.reference.attention_block(rows.hidden, rows.offsets, sizes, layer, want)
        weights = self.parameters.layers[layer]
        wanted = Wanted.of(hidden, recorded, weights.attention_output, rows.hidden, weights.attention_norm)
        return wanted, scores

    def _fed(self, lengths):
        rows, layer = self.rows(lengths), self.layer
        with Recorded() as recorded:
            hidden = self.reference.feed_forward_block(rows.hidden, rows.offsets, layer)
        weights = self.parameters.layers[layer]
        return Wanted.of(hidden, recorded, weights.output, rows.hidden, weights.output_norm)

    def results(self, blocks, rows):
        """All that the blocks make of some rows, in a list of arrays with T rows each."""
        made = [blocks.embed(rows.ids, rows.offsets), blocks.feed_forward_block(rows.hidden, rows.offsets, self.layer)]
        for sized, want in ATTENTION_CASES:
            sizes = rows.sizes if sized else None
            hidden, scores = blocks.attention_block(rows.hidden, rows.offsets, sizes, self.layer, want)
            made += [hidden] if want is None else [hidden, scores]
        return made


@pytest.fixture(scope="module", params=product(MODELS, PRECISIONS), ids=" ".join)
def model(request, model_folder):
    name, precision = request.param
    return Model(model_folder(name), precision)


@pytest.fixture(scope="module")
def plain_models(plain):
    return [Model(plain, precision) for precision in PRECISIONS]


def check_blocks(model, blocks, batches):
    for lengths in batches:
        rows = model.rows(lengths)
        model.embedded(lengths).check(blocks.embed(rows.ids, rows.offsets))
        model.fed(lengths).check(blocks.feed_forward_block(rows.hidden, rows.offsets, model.layer))
        for sized, want in ATTENTION_CASES:
            wanted, wanted_scores = model.attended(lengths, sized, want)
            sizes = rows.sizes if sized else None
            hidden, scores = blocks.attention_block(rows.hidden, rows.offsets, sizes, model.layer, want)
            wanted.check(hidden)
            if want is None:
                assert scores is None
            else:
                assert np.abs(scores / wanted_scores - 1).max(initial=0) <= SCORE_BAR


def test_blocks(model, kernels):
    check_blocks(model, model.blocks(kernels), BATCHES)


LONG = ((512,), (1, 257, 0, 129))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("level", LEVELS[:1] + LEVELS[-2:-1])
def test_blocks_of_a_real_shape_with_long_texts(random_folder, level, precision):
    model = Model(random_folder("paraphrase-MiniLM-L3"), precision)
    check_blocks(model, model.blocks(any_kernels(level)), LONG)


@by_level
def test_blocks_leave_their_arguments_alone(plain_models, level):
    for model in plain_models:
        rows = model.rows((5, 9))
        before = pickle.dumps(rows)
        model.results(model.blocks(any_kernels(level)), rows)
        assert pickle.dumps(rows) == before


@by_level
@pytest.mark.parametrize("want", ["random", "first"])
def test_other_scores_are_not_gathered(plain_models, level, want):
    rows = plain_models[0].rows((5, 9))
    blocks = plain_models[0].blocks(any_kernels(level))
    assert blocks.attention_block(rows.hidden, rows.offsets, None, 0, want)[1] is None


GOLDEN = [pytest.param(golden_files.MINILM, marks=pytest.mark.float32), *(spec.name for spec in random_models.SPECS)]


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request, random_folder):
    golden = golden_files.load(request.param)
    folder = request.getfixturevalue("float32_folder") if golden.spec is None else random_folder(golden.name)
    batch = pack([golden.ids[begin:end] for begin, end in pairwise(golden.offsets)])
    return SimpleNamespace(**vars(golden), batch=batch, parameters=load_parameters(folder))


@by_level
def test_golden_files(golden, level):
    blocks, offsets = CompiledBlocks(golden.parameters, any_kernels(level)), golden.batch.offsets
    full = golden.offsets[golden.full_texts]
    hidden = blocks.embed(golden.batch.ids, offsets)
    for layer, (importance, importance_value) in enumerate(
        zip(golden.importance, golden.importance_value, strict=True)
    ):
        np.testing.assert_allclose(hidden[:full], golden.hidden[layer], rtol=0, atol=1e-4)
        _, scores = blocks.attention_block(hidden, offsets, None, layer, "attention")
        np.testing.assert_allclose(scores, importance, rtol=1e-4)
        hidden, scores = blocks.attention_block(hidden, offsets, None, layer, "attention_value")
        np.testing.assert_allclose(scores, importance_value, rtol=1e-4)
        hidden = blocks.feed_forward_block(hidden, offsets, layer)
    np.testing.assert_allclose(hidden[:full], golden.hidden[-1], rtol=0, atol=1e-4)


# Bits


def test_rows_do_not_depend_on_their_neighbours(model, kernels):
    blocks = model.blocks(kernels)
    alone = {n: model.results(blocks, model.rows((n,))) for n in (0, *LENGTHS)}
    for lengths in MIXED:
        wanted = [np.concatenate(parts) for parts in zip(*(alone[n] for n in lengths), strict=True)]
        for seen, bits in zip(model.results(blocks, model.rows(lengths)), wanted, strict=True):
            assert np.array_equal(seen, bits)


def test_rows_do_not_depend_on_damaged_neighbours(model, kernels):
    blocks, lengths = model.blocks(kernels), (3, 17, 1, 8, 5, 33, 2)
    rows = model.rows(lengths)
    wanted = model.results(blocks, rows)
    for place in range(len(lengths)):
        damaged, touched = rows.hidden.copy(), slice(*rows.offsets[place : place + 2])
        damaged[touched] = [np.nan, np.inf, -np.inf][place % 3]
        others = np.ones(len(rows.ids), bool)
        others[touched] = False
        seen = model.results(blocks, SimpleNamespace(**vars(rows) | {"hidden": damaged}))
        assert not np.isfinite(seen[1][touched]).any()
        for now, before in zip(seen, wanted, strict=True):
            assert np.array_equal(now[others], before[others])
    assert all(map(np.array_equal, model.results(blocks, rows), wanted))


@pytest.mark.parametrize("level", LEVELS[:1])  # compiling takes seconds
def test_both_builds_give_the_same_bits(model, level):
    ahead, in_time = (model.blocks(kernels_of(built, level)) for built in (AHEAD, IN_TIME))
    for lengths in ((13,), MIXED[2]):
        rows = model.rows(lengths)
        assert all(map(np.array_equal, model.results(ahead, rows), model.results(in_time, rows)))


@pytest.mark.parametrize("level", LEVELS[:1])
def test_single_kernels_of_both_builds_give_the_same_bits(level):
    x, linear = normal(1, 45, 77, scale=3), Linear(normal(2, 50, 77), normal(3, 50))
    case, norm = draw_bytes(4, 45, 77, 50, extreme=False), LayerNorm(normal(5, 77), normal(6, 77))
    results = []
    for built in (AHEAD, IN_TIME):
        kernels = kernels_of(built, level)
        made = [float32_product(kernels, x, linear, activation) for activation in ACTIVATIONS]
        made += [case.seen(kernels), *quantized(kernels, x, from_scratch=True), normalized(kernels, x, x, norm, 1e-5)]
        results.append([*made, *attended(kernels, normal(7, 45, 72), [1, 31, 13], heads=3, factor=0.4)])
    assert all(map(np.array_equal, *results))


def test_int8_bytes_are_equal_on_all_levels():
    x = normal(1, 50, 101, scale=3)
    first, *others = (quantized(any_kernels(level), x, from_scratch=True) for level in LEVELS)
    assert all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


# Damage


def with_layer(parameters, layer, **records):
    """The parameters with other records in one layer."""
    layers = list(parameters.layers)
    layers[layer] = dataclasses.replace(layers[layer], **records)
    return dataclasses.replace(parameters, layers=tuple(layers))


def with_value(linear, value):
    """A linear map with one bad weight, or, for int8, one bad scale."""
    field = "scale" if isinstance(linear, Int8Linear) else "weight"
    values = getattr(linear, field).copy()
    values[-1] = value
    return dataclasses.replace(linear, **{field: values})


PLACES = {
    "query": "attention block",
    "key": "attention block",
    "value": "attention block",
    "attention_output": "attention block",
    "intermediate": "feed-forward block",
    "output": "feed-forward block",
}


def broken_place(blocks, vocabulary):
    ids = np.arange(30) % vocabulary
    with np.errstate(all="ignore"), pytest.raises(NumericalError, match="NaN or infinity came out of") as error:
        forward(blocks, PackedBatch(ids, offsets_of([11, 0, 19])))
    return str(error.value)


@by_level
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38], ids=["NaN", "infinity", "overflow"])
@pytest.mark.parametrize("field", PLACES)
def test_damaged_weights_are_reported_with_their_layer(plain_models, level, field, value):
    for model in plain_models:
        linear = with_value(getattr(model.parameters.layers[1], field), value)
        blocks = CompiledBlocks(with_layer(model.parameters, 1, **{field: linear}), any_kernels(level))
        assert f"the {PLACES[field]} of layer 1;" in broken_place(blocks, 200)


@by_level
def test_logits_that_all_overflow_are_reported(plain_models, level):
    """No key is left that a query could look at: the softmax of nothing but minus infinity is not a number."""
    for model in plain_models:
        layer = model.parameters.layers[1]
        query = dataclasses.replace(layer.query, bias=np.full(32, 1e25, np.float32))
        key = dataclasses.replace(layer.key, bias=np.full(32, -1e25, np.float32))
        blocks = CompiledBlocks(with_layer(model.parameters, 1, query=query, key=key), any_kernels(level))
        assert "the attention block of layer 1;" in broken_place(blocks, 200)


@by_level
def test_damaged_embeddings_are_reported(plain_models, level):
    for model in plain_models:
        norm = dataclasses.replace(model.parameters.embeddings_norm, bias=np.full(32, np.inf, np.float32))
        blocks = CompiledBlocks(dataclasses.replace(model.parameters, embeddings_norm=norm), any_kernels(level))
        assert "the embeddings;" in broken_place(blocks, 200)


# Shared work


@pytest.fixture
def helpers_always_pay(monkeypatch):
    monkeypatch.setattr(compiled, "MANY_BYTES", 0)
    monkeypatch.setattr(compiled, "MUCH_WORK", 0)


@by_level
def test_an_assistant_alone_does_a_whole_job(plain_models, level):
    kernels = any_kernels(level)
    for model in plain_models:
        blocks, rows = model.blocks(kernels), model.rows((3, 40, 0, 9))
        wanted = blocks.attention_block(rows.hidden, rows.offsets, None, 0, None)[0]
        workspace, out = blocks._workspaces[-1], np.zeros_like(wanted)
        workspace.describe(len(rows.ids), 0, 0, address(rows.hidden), address(out), 0, 0)
        program = workspace.attention[0]
        board, job = aligned((len(BOARD),), np.int64), aligned((2, JOB_BYTES // 8), np.int64)
        write_fields(board, BOARD, jobs=address(job), number=1)
        write_fields(job[0], JOB, steps=program.address, count=program.count)
        for place, tasks in enumerate(program.records[:, STEP.tasks // 8].tolist()):
            known = {
                PER_ROWS: -(-len(rows.ids) // ROWS_PER_TASK),
                -1 - model.parameters.config.num_attention_heads: 4 * 4,
            }
            job[0, (JOB.progress + place * PROGRESS_BYTES + PROGRESS.tasks) // 8] = known.get(tasks, tasks)
        kernels.assist(address(board), 3, 1, 0)
        assert np.array_equal(out, wanted)
        out[:] = 7
        kernels.run(program.address, program.count, address(job), 0)
        assert (out == 7).all(), "all tasks were claimed"


@by_level
@pytest.mark.parametrize(("number", "patience"), [(-1, 1), (1, 0)], ids=["closed", "impatient"])
def test_an_assistant_leaves(level, number, patience):
    board = aligned((len(BOARD),), np.int64)
    write_fields(board, BOARD, number=number)
    any_kernels(level).assist(address(board), 1, patience, 0)


@by_level
def test_shared_work_gives_the_same_bits(plain_models, helpers_always_pay, level):
    for model in plain_models:
        blocks = model.blocks(any_kernels(level))
        for lengths in ((), (1,), (9,), MIXED[2]):
            rows = model.rows(lengths)
            wanted = model.results(blocks, rows)
            for helpers in (1, 3, 3, 3, 3):
                with blocks.chunk(len(rows.ids), helpers) as inside:
                    assert all(map(np.array_equal, model.results(inside, rows), wanted))
    assert any(thread.name == "minitrans-assistant" for thread in threading.enumerate())


@pytest.mark.parametrize("level", LEVELS[:1])
def test_shared_work_again_and_again(plain_models, helpers_always_pay, level):
    model = plain_models[1]
    blocks, rows = model.blocks(any_kernels(level)), model.rows((31, 9, 17))
    wanted = model.results(blocks, rows)
    for _ in range(100):
        with blocks.chunk(len(rows.ids), helpers=3) as inside:
            assert all(map(np.array_equal, model.results(inside, rows), wanted))


@by_level
def test_more_blocks_than_a_board_has_jobs(plain_models, helpers_always_pay, level):
    for model in plain_models:
        deep = dataclasses.replace(model.parameters, layers=model.parameters.layers * 14)
        assert 2 * len(deep.layers) > BOARD_JOBS
        blocks, rows = CompiledBlocks(deep, any_kernels(level)), model.rows((12, 30))
        batch = PackedBatch(rows.ids, rows.offsets)
        wanted = forward(blocks, batch).hidden
        for _ in range(5):
            with blocks.chunk(len(rows.ids), helpers=3) as inside:
                assert np.array_equal(forward(inside, batch).hidden, wanted)


@by_level
def test_eight_threads_share_blocks(plain_models, helpers_always_pay, level):
    callers = 8
    barrier = threading.Barrier(callers, timeout=60)
    pairs = [(model, model.blocks(any_kernels(level))) for model in plain_models]
    batches = [(n,) for n in (1, 5, 16, 33)] + [(9, 0, 31), (64, 2)]
    wanted = {
        (place, lengths): model.results(blocks, model.rows(lengths))
        for place, (model, blocks) in enumerate(pairs)
        for lengths in batches
    }

    def call(shift):
        barrier.wait()
        for place, lengths in list(wanted)[shift:] + list(wanted)[:shift]:
            model, blocks = pairs[place]
            rows = model.rows(lengths)
            with blocks.chunk(len(rows.ids), helpers=3) as inside:
                assert all(map(np.array_equal, model.results(inside, rows), wanted[place, lengths]))

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(callers)))
    assert team._chunks == []


def test_a_chunk_ends_well_after_an_error(plain_models, helpers_always_pay):
    model = plain_models[0]
    blocks, rows = model.blocks(load_kernels(LEVELS[0])), model.rows((9,))
    wanted = model.results(blocks, rows)
    with pytest.raises(InputError), blocks.chunk(9, helpers=3) as inside:
        inside.embed(rows.ids - 1, rows.offsets)
    assert team._chunks == []
    with blocks.chunk(9, helpers=3) as inside:
        assert all(map(np.array_equal, model.results(inside, rows), wanted))


def test_a_chunk_runs_alone_where_the_system_refuses_a_thread(plain_models, helpers_always_pay, monkeypatch):
    model = plain_models[0]
    blocks, rows = model.blocks(load_kernels(LEVELS[0])), model.rows((9,))
    wanted = model.results(blocks, rows)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team, "_assistants", [])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with blocks.chunk(9, helpers=3) as inside:
            assert inside._chunk.team is None
            assert all(map(np.array_equal, model.results(inside, rows), wanted))
    assert team._chunks == []
    with blocks.chunk(9, helpers=3) as inside:
        assert inside._chunk.team is not None
        assert all(map(np.array_equal, model.results(inside, rows), wanted))


FORK = """
import os, signal, sys, threading, warnings
from pathlib import Path
import numpy as np
from minitrans.backends import compiled
from minitrans.backends.compiled import CompiledBlocks
from minitrans.encoder.forward import forward
from minitrans.kernels.library.loading import load_kernels
from minitrans.encoder.packing import PackedBatch
from minitrans.models.quantization import with_precision
from minitrans.models.weights import load_parameters

warnings.simplefilter("ignore", DeprecationWarning)  # of the fork itself; that it is safe is what is tested here
folder, precision, place = sys.argv[1:]
compiled.MANY_BYTES = compiled.MUCH_WORK = 0
blocks = CompiledBlocks(with_precision(load_parameters(Path(folder)), precision), load_kernels())
batch = PackedBatch(np.arange(60), np.array([0, 17, 17, 60]))
wanted = forward(blocks, batch).hidden

def shared():
    with blocks.chunk(60, helpers=3) as inside:
        return forward(inside, batch).hidden

def inside():
    with blocks.chunk(60, helpers=3):
        entered.set()
        leave.wait()

assert np.array_equal(shared(), wanted)
assert [thread.name for thread in threading.enumerate()].count("minitrans-assistant") == 3
entered, leave = threading.Event(), threading.Event()
if place == "inside":
    with blocks.chunk(60, helpers=3) as blocks_inside:
        hidden = blocks_inside.embed(batch.ids, batch.offsets)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
        for layer in range(blocks.num_layers):
            hidden, _ = blocks_inside.attention_block(hidden, batch.offsets, None, layer, None)
            hidden = blocks_inside.feed_forward_block(hidden, batch.offsets, layer)
    assert np.array_equal(hidden, wanted)
else:
    other = threading.Thread(target=inside, daemon=True)
    other.start()
    entered.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
for _ in range(20 if child == 0 else 0):
    assert np.array_equal(shared(), wanted)
if child == 0:
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
if place == "beside":
    leave.set()
    other.join()
assert np.array_equal(shared(), wanted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("place", ["inside", "beside"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_shared_work_in_a_forked_child(run_python, plain, precision, place):
    run_python(FORK, plain, precision, place)


# What comes from outside


@pytest.fixture(scope="module")
def blocks_and_rows(plain_models):
    model = plain_models[0]  # 200 ids, 64 positions, 32 wide
    return model.blocks(any_kernels(LEVELS[0])), model.rows((5, 0, 9))


def call_blocks(blocks, rows, layer=0):
    blocks.embed(rows.ids, rows.offsets)
    blocks.attention_block(rows.hidden, rows.offsets, rows.sizes, layer, "attention")
    blocks.feed_forward_block(rows.hidden, rows.offsets, layer)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("ids", lambda ids: ids.astype(np.int32), r"ids is int32 \[14\], wanted C-contiguous int64 \[14\]"),
        ("ids", lambda ids: ids[:, None], r"ids is int64 \[14, 1\], wanted"),
        ("ids", lambda ids: np.repeat(ids, 2)[::2], "ids is int64"),
        ("ids", lambda ids: ids.astype(">i8"), "ids is >i8"),
        ("ids", lambda ids: ids - 1, "token ids go from -1 to 198, wanted 0 to 199"),
        ("ids", lambda ids: ids + 1, "token ids go from 1 to 200, wanted 0 to 199"),
        ("ids", lambda ids: ids[:13], r"\b13\b"),
        ("hidden", lambda hidden: hidden.astype(np.float64), "hidden is float64"),
        ("hidden", lambda hidden: hidden.astype(np.float16), "hidden is float16"),
        ("hidden", lambda hidden: hidden[:, :31], r"hidden is float32 \[14, 31\], wanted"),
        ("hidden", lambda hidden: hidden[:, :31].copy(), r"hidden is float32 \[14, 31\], wanted"),
        ("hidden", lambda hidden: np.asfortranarray(hidden), "hidden is float32"),
        ("hidden", lambda hidden: hidden[::-1], "hidden is float32"),
        ("hidden", lambda hidden: hidden.ravel(), r"hidden is float32 \[448\]"),
        ("hidden", lambda hidden: np.concatenate([hidden, hidden]), r"\b28\b"),
        ("sizes", lambda sizes: sizes.astype(np.int64), r"sizes is int64 \[14\], wanted C-contiguous float32 \[14\]"),
        ("sizes", lambda sizes: sizes[:13], r"sizes is float32 \[13\]"),
        ("sizes", lambda sizes: np.repeat(sizes, 2)[::2], "sizes is float32"),
        ("offsets", lambda offsets: offsets.astype(np.int32), "offsets is int32"),
        ("offsets", lambda offsets: offsets.astype(np.float64), "offsets is float64"),
        ("offsets", lambda offsets: offsets[:, None], "offsets is int64"),
        ("offsets", lambda offsets: np.repeat(offsets, 2)[::2], "offsets is int64"),
        ("offsets", lambda offsets: np.array([0, 9, 5, 14]), r"offsets are \[0, 9, 5, 14\], wanted to rise from 0"),
        ("offsets", lambda offsets: np.array([0, 15, 14]), "wanted to rise"),
        ("offsets", lambda offsets: np.array([0, -1, 14]), "wanted to rise"),
        ("offsets", lambda offsets: np.array([1, 14]), "wanted to rise"),
        ("offsets", lambda offsets: np.array([0, 13]), "wanted to rise"),
        ("offsets", lambda offsets: np.array([0, 15]), "wanted to rise"),
        ("offsets", lambda offsets: np.array([0, 2**63 - 1, -(2**63), 14]), "wanted to rise"),
        ("offsets", lambda offsets: np.array([14]), "wanted to rise"),
        ("offsets", lambda offsets: np.array([], np.int64), "wanted to rise"),
    ],
)
def test_arrays_that_the_kernels_cannot_read_are_refused(blocks_and_rows, field, change, message):
    blocks, rows = blocks_and_rows
    call_blocks(blocks, rows)
    changed = SimpleNamespace(**vars(rows) | {field: change(getattr(rows, field))})
    with pytest.raises(InputError, match=message):
        call_blocks(blocks, changed)
    call_blocks(blocks, rows)


def test_rows_that_do_not_fit_the_last_offsets_are_refused(blocks_and_rows):
    blocks, rows = blocks_and_rows
    call_blocks(blocks, rows)
    with pytest.raises(InputError, match="wanted to rise from 0 to 13, the number of rows"):
        blocks.feed_forward_block(rows.hidden[:13], rows.offsets, 0)


def test_texts_longer_than_the_positions_are_refused(blocks_and_rows):
    blocks, _ = blocks_and_rows
    blocks.embed(np.zeros(65, np.int64), np.array([0, 1, 65]))
    with pytest.raises(InputError, match="a text has 65 tokens, wanted at most 64"):
        blocks.embed(np.zeros(66, np.int64), np.array([0, 1, 66]))


def test_offsets_changed_in_place_are_seen(blocks_and_rows):
    blocks, rows = blocks_and_rows
    offsets = rows.offsets.copy()
    before = blocks.attention_block(rows.hidden, offsets, None, 0, None)[0]
    offsets[1:-1] = 9
    changed = blocks.attention_block(rows.hidden, offsets, None, 0, None)[0]
    assert not np.array_equal(changed, before)
    assert np.array_equal(changed, blocks.attention_block(rows.hidden, offsets.copy(), None, 0, None)[0])
    offsets[1] = 10**7
    with pytest.raises(InputError, match="wanted to rise from 0 to 14"):
        blocks.attention_block(rows.hidden, offsets, None, 0, None)


@pytest.mark.parametrize("layer", [3, -1, 10**6])
def test_layers_that_are_not_there_are_refused(blocks_and_rows, layer):
    blocks, rows = blocks_and_rows
    with pytest.raises(InputError, match=f"layer is {layer}, wanted 0 to 2"):
        blocks.attention_block(rows.hidden, rows.offsets, None, layer, None)
    with pytest.raises(InputError, match=f"layer is {layer}, wanted 0 to 2"):
        blocks.feed_forward_block(rows.hidden, rows.offsets, layer)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pickled_blocks_give_the_same_bits(plain, precision):
    model = Model(plain, precision)
    blocks, rows = model.blocks(load_kernels()), model.rows((5, 0, 20))
    restored = pickle.loads(pickle.dumps(blocks))
    assert all(map(np.array_equal, model.results(restored, rows), model.results(blocks, rows)))
    assert isinstance(restored, CompiledBlocks)
