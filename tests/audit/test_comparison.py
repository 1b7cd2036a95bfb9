"""minitrans.audit: backends, precisions, pruning and invariance compared; a backend that is broken is told where."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import random_models
from fitted_policies import fitted_to

from minitrans import PruningPolicy, SentenceEncoder
from minitrans.audit.comparison import (
    BARS,
    INT8_LEAST,
    INT8_MEAN,
    TEXTS,
    Differences,
    Kept,
    Sample,
    Tally,
    distance_from_cut,
    embed,
    embedding_check,
    int8_check,
    number_checks,
    pruning_check,
    series,
    watched,
)
from minitrans.audit.invariance import CHUNKS, invariance_check, settings
from minitrans.backends import load_blocks
from minitrans.backends.reference import ReferenceBlocks
from minitrans.encoder.blocks import Tapped
from minitrans.encoder.forward import forward
from minitrans.encoder.selection import cost
from minitrans.errors import BackendError, NumericalError
from minitrans.models.quantization import with_precision
from minitrans.models.weights import load_parameters

PRECISIONS = ["float32", "int8"]
MODELS = ["plain", "twelve_layers", "cls_pooling", "one_layer"]


class Changed:
    """A backend that does what another does, but for what a test changes."""

    name = "changed"

    def __init__(self, blocks):
        self._blocks = blocks

    def __getattr__(self, name):
        return getattr(self._blocks, name)

    @contextmanager
    def chunk(self, rows, helpers):
        with self._blocks.chunk(rows, helpers) as inside:
            blocks = object.__new__(type(self))
            blocks.__dict__ = self.__dict__ | {"_blocks": inside}
            yield blocks


class Perturbed(Changed):
    """Every other value of its feed-forward block of one layer is off by so much."""

    def __init__(self, blocks, layer, by):
        super().__init__(blocks)
        self.layer, self.by = layer, by

    def feed_forward_block(self, hidden, offsets, layer):
        result = self._blocks.feed_forward_block(hidden, offsets, layer)
        if layer == self.layer:
            result[:, ::2] += np.float32(self.by)
        return result


class Setting:
    """A model in one precision: blocks of both backends, texts, pooling."""

    def __init__(self, folder, precision):
        self.parameters = with_precision(load_parameters(folder), precision)
        self.encoder = SentenceEncoder(folder, precision=precision, on_truncation="ignore")
        self.pooling = self.encoder.pooling
        self.sample = Sample.of(TEXTS, self.encoder.tokenizer)
        self.reference = ReferenceBlocks(self.parameters)
        self.precision = precision

    def compiled(self):
        try:
            return load_blocks("compiled", self.parameters)
        except BackendError as error:
            pytest.skip(str(error))

    def policy(self, **fields):
        layer = min(1, self.parameters.config.num_hidden_layers - 1)
        protect = self.pooling.modes == ("cls",)
        fields = {"layer": layer, "min_tokens": 4, "quantile": 0.4, "protect_special": protect} | fields
        return fitted_to(self.encoder, **fields)


@pytest.fixture(scope="module", params=PRECISIONS)
def plain_setting(request, plain):
    return Setting(plain, request.param)


@pytest.fixture(scope="module", params=[(name, precision) for name in MODELS for precision in PRECISIONS], ids="-".join)
def setting(request, random_folder):
    name, precision = request.param
    return Setting(random_folder(name), precision)


def verdicts(checks):
    return {check.name: check.verdict for check in checks}


# Backends


def test_backends_agree(setting):
    checks = number_checks(setting.reference, setting.compiled(), setting.sample, setting.pooling, setting.precision)
    assert set(verdicts(checks).values()) == {"PASS"}
    assert list(verdicts(checks)) == [f"{what}, {setting.precision}" for what in ("blocks", "layers", "embeddings")]
    layers = setting.parameters.config.num_hidden_layers
    assert len(checks[0].values) == 2 * (1 + 2 * layers)
    assert len(checks[1].values) == 2 * (1 + layers)


def test_a_backend_agrees_with_itself_exactly(plain_setting):
    setting = plain_setting
    *places, embeddings = number_checks(
        setting.reference, setting.reference, setting.sample, setting.pooling, setting.precision
    )
    assert all(check.values and not any(check.values.values()) for check in places)
    assert embeddings.values["largest"] == 0
    assert np.isclose(embeddings.values["least cosine"], 1)


def test_the_side_by_side_run_is_the_references_own(plain_setting):
    """What is compared is what users get: side by side changes nothing."""
    setting = plain_setting
    for _, batch in setting.sample.batches():
        for policy in (None, setting.policy(), setting.policy(reduce="merge")):
            with setting.reference.session():
                alone = forward(setting.reference, batch, policy)
                paired = forward(
                    Tapped(setting.reference, Differences(Perturbed(setting.reference, 0, 1))), batch, policy
                )
            assert np.array_equal(alone.hidden, paired.hidden)
            assert np.array_equal(alone.rows, paired.rows)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_that_is_broken_is_named(plain_setting, layer):
    by = {"float32": 0.002, "int8": 1}[plain_setting.precision]
    broken = Perturbed(plain_setting.reference, layer, by)
    checks = number_checks(
        plain_setting.reference, broken, plain_setting.sample, plain_setting.pooling, plain_setting.precision
    )
    blocks, layers, _ = checks
    assert blocks.verdict == layers.verdict == "FAIL"
    assert blocks.detail[0] == f"over the bar: feed-forward {layer}"
    assert layers.detail[0] == "over the bar: " + ", ".join(f"layer {each}" for each in range(layer, 3))


def checks_of(setting, blocks):
    """The reference against itself, changed by the class ``blocks``."""
    return number_checks(
        setting.reference, blocks(setting.reference), setting.sample, setting.pooling, setting.precision
    )


@pytest.mark.parametrize("block", ["embed", "attention_block"])
def test_a_block_that_is_broken_is_named(plain_setting, block):
    class Broken(Changed):
        def embed(self, ids, offsets):
            return self._blocks.embed(ids, offsets) * np.float32(1.1 if block == "embed" else 1)

        def attention_block(self, hidden, offsets, sizes, layer, want):
            result, scores = self._blocks.attention_block(hidden, offsets, sizes, layer, want)
            return (result * np.float32(1.1) if block == "attention_block" and layer == 1 else result), scores

    checks = checks_of(plain_setting, Broken)
    assert checks[0].detail[0] == f"over the bar: {'embeddings' if block == 'embed' else 'attention 1'}"


def test_a_small_error_everywhere_fails_by_the_mean(plain_setting):
    class Broken(Changed):
        def feed_forward_block(self, hidden, offsets, layer):
            return self._blocks.feed_forward_block(hidden, offsets, layer) * np.float32(1 + 3 * mean)

    mean = BARS[plain_setting.precision].block[1]
    checks = checks_of(plain_setting, Broken)
    assert checks[0].verdict == "FAIL"
    assert checks[0].detail[0] == "over the bar: feed-forward 0, feed-forward 1, feed-forward 2"
    largest = max(value for place, value in checks[0].values.items() if place.endswith("largest"))
    assert largest <= BARS[plain_setting.precision].block[0]


def test_not_a_number_fails(plain_setting):
    class Broken(Changed):
        def feed_forward_block(self, hidden, offsets, layer):
            return self._blocks.feed_forward_block(hidden, offsets, layer) * np.float32(np.nan)

    broken = Broken(plain_setting.reference)
    checks = number_checks(
        plain_setting.reference, broken, plain_setting.sample, plain_setting.pooling, plain_setting.precision
    )
    assert set(verdicts(checks).values()) == {"FAIL"}
    assert "NaN or infinity came out of" in checks[0].detail[0]
    check = pruning_check(
        "p", plain_setting.policy(), plain_setting.reference, broken, plain_setting.sample, plain_setting.precision
    )
    assert check.verdict == "FAIL"


def test_embeddings_that_differ_name_their_text(plain_setting):
    right = embed(plain_setting.reference, plain_setting.sample, plain_setting.pooling)
    other = right.copy()
    other[3] = other[3][::-1]
    check = embedding_check("group", "name", right, other, plain_setting.sample, 0.99)
    assert check.verdict == "FAIL"
    assert len(check.detail) == 1
    assert check.detail[0].startswith("text 3 'Could you tell me")
    assert embedding_check("group", "name", right, right, plain_setting.sample, 0.99, 2e-6).verdict == "PASS"
    other = right + np.float32(1e-5)
    assert embedding_check("group", "name", right, other, plain_setting.sample, 0.99, 2e-6).verdict == "FAIL"
    other = right.copy()
    other[0] = np.nan
    assert embedding_check("group", "name", right, other, plain_setting.sample, 0.99, 2e-6).verdict == "FAIL"


def test_int8_far_from_float32_fails(plain_setting):
    right = embed(plain_setting.reference, plain_setting.sample, plain_setting.pooling)
    texts, width = right.shape

    def at(cosines):
        """Vectors at these cosines of the right ones."""
        orthogonal = np.random.default_rng(0).normal(size=(texts, width))
        orthogonal -= np.sum(orthogonal * right, axis=1, keepdims=True) * right
        orthogonal /= np.linalg.norm(orthogonal, axis=1, keepdims=True)
        cosines = np.asarray(cosines, float)[:, None]
        return (cosines * right + np.sqrt(1 - cosines**2) * orthogonal).astype(np.float32)

    def verdict(cosines):
        return int8_check("name", right, at(cosines), plain_setting.sample)

    assert verdict([0.9999] * texts).verdict == "PASS"
    assert verdict([INT8_MEAN - 1e-3] * texts).verdict == "FAIL"
    one = verdict([0.9999] * 5 + [INT8_LEAST - 1e-3] + [0.9999] * (texts - 6))
    assert one.verdict == "FAIL"
    assert one.detail[0].startswith("least: text 5 ")


def test_a_tally_is_relative_and_keeps_what_is_not_a_number():
    tally = Tally()
    tally.add(np.full((2, 2), 2, np.float32), np.array([[2, 2], [2, 2.5]], np.float32))
    tally.add(np.full((1, 2), -2, np.float32), np.full((1, 2), -2, np.float32))
    tally.add(np.empty((0, 2), np.float32), np.empty((0, 2), np.float32))
    assert tally.relative == (0.25, pytest.approx(0.5 / 6 / 2))
    assert Tally().relative == (0, 0)
    tally.add(np.full((1, 1), np.nan, np.float32), np.zeros((1, 1), np.float32))
    tally.add(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))
    assert math.isnan(tally.largest)


def test_layers_stand_in_one_line():
    values = {"embeddings": 1e-7, **{f"layer {i}": i * 1e-6 for i in range(3)}}
    assert list(series(values, True)) == ["embeddings: 1e-07", "layer 0..2: 0e+00 1e-06 2e-06"]
    lines = list(series({f"layer {i}": 1.0 for i in range(24)}, False))
    assert lines[0].startswith("mean, layer 0..23: ")
    assert len(lines) == 2
    assert list(series({"layer 0": 1.0}, True)) == ["layer: 1e+00"]


# Texts


def test_the_built_in_texts_are_varied(plain):
    encoder = SentenceEncoder(plain, on_truncation="ignore")
    sample = Sample.of(TEXTS, encoder.tokenizer)
    lengths = [len(ids) for ids in sample.ids]
    assert "" in TEXTS
    assert min(lengths) == sample.prefix + sample.suffix
    assert max(lengths) == encoder.max_seq_length
    assert any(not text.isascii() for text in TEXTS)
    assert len(set(TEXTS)) == len(TEXTS)
    minilm = SentenceEncoder(on_truncation="ignore")
    assert max(len(ids) for ids in Sample.of(TEXTS, minilm.tokenizer).ids) == 256


def test_a_text_is_named_by_number_and_beginning(plain):
    sample = Sample.of(["a\x1b'", "b" * 100, ""], SentenceEncoder(plain, on_truncation="ignore").tokenizer)
    assert sample.named(0) == 'text 0 "a\\x1b\'"'
    assert sample.named(1) == "text 1 '" + "b" * 35 + "...'"
    assert sample.named(2) == "text 2, the empty text"
    assert [place for place, _ in sample.batches(1)] == [slice(0, 1), slice(1, 2), slice(2, 3)]


# Pruning


POLICIES = {
    "attention": {},
    "attention value": {"score": "attention_value"},
    "merge": {"reduce": "merge"},
    "random": {"score": "random"},
    "first": {"score": "first"},
    "turn": {"score": "learned", "max_turn": 20, "quantile": 0.9},
    "turn, protected": {"score": "learned", "max_turn": 10, "quantile": 0.9, "protect_special": True},
}


@pytest.mark.parametrize("fields", POLICIES.values(), ids=POLICIES)
def test_backends_keep_the_same_rows(setting, fields):
    check = pruning_check(
        "p", setting.policy(**fields), setting.reference, setting.compiled(), setting.sample, setting.precision
    )
    assert check.verdict == "PASS", check
    assert check.values["same"] + check.values["near ties"] == check.values["texts"] == len(TEXTS)


def test_fitted_policies_are_compared_too():
    """Scorers and restored rows."""
    setting = Setting(SentenceEncoder().folder, "int8")
    check = pruning_check(
        "balanced", PruningPolicy.named("balanced"), setting.reference, setting.compiled(), setting.sample, "int8"
    )
    assert check.verdict == "PASS"
    differences = Differences(setting.reference)
    list(watched(Tapped(setting.reference, differences), setting.sample, PruningPolicy.named("balanced")))
    assert "restored rows" in differences.blocks


def test_restored_rows_that_differ_fail(plain_setting):
    class Broken(Changed):
        def select(self, hidden, offsets, ranking):
            left, selection, restored = self._blocks.select(hidden, offsets, ranking)
            return left, selection, restored + np.float32(1)

    setting = plain_setting
    policy = setting.policy(score="learned", reduce="restore")
    for other, verdict in ((setting.compiled(), "PASS"), (Broken(setting.reference), "FAIL")):
        check = pruning_check("p", policy, setting.reference, other, setting.sample, setting.precision)
        assert check.verdict == verdict, check
    assert check.detail[0].endswith(": restored rows")


@pytest.mark.parametrize("what", ["select", "scores", "sums"])
def test_broken_pruning_fails(plain_setting, what):
    class Broken(Changed):
        def attention_block(self, hidden, offsets, sizes, layer, want):
            result, scores = self._blocks.attention_block(hidden, offsets, sizes, layer, want)
            return result, scores[::-1].copy() if what == "scores" and scores is not None else scores

        def select(self, hidden, offsets, ranking):
            if what == "select":
                ranking = type(ranking)(-ranking.scores, None, ranking.least)
            return self._blocks.select(hidden, offsets, ranking)

        def feed_forward_block(self, hidden, offsets, layer):
            return self._blocks.feed_forward_block(hidden, offsets, layer) + np.float32(what == "sums")

    check = pruning_check(
        "p",
        plain_setting.policy(),
        plain_setting.reference,
        Broken(plain_setting.reference),
        plain_setting.sample,
        plain_setting.precision,
    )
    assert check.verdict == "FAIL"
    message = {
        "select": "from the same states, other rows are kept",
        "scores": "from the same states, scores differ by",
        "sums": "over the bar of",
    }[what]
    assert message in "\n".join(check.detail)
    if what != "sums":
        assert "are kept in one run only" in check.detail[0]


def stage(scores, kept):
    return Kept(0, np.array(scores, np.float32), np.array(kept))


def test_the_distance_from_the_cut_tells_ties_from_faults():
    right = stage([0.5, 0.3, 0.2, 0.2, 0.1], [0, 1, 2])
    mean = 1.3 / 5
    assert distance_from_cut(right, right) == 0
    assert distance_from_cut(right, stage([0] * 5, [0, 1, 3])) == 0  # a tie
    near = stage([0.5, 0.3, 0.2001, 0.1999, 0.1], [0, 1, 2])
    assert distance_from_cut(near, stage([0] * 5, [0, 1, 3])) == pytest.approx(1e-4 / mean, rel=1e-2)
    assert distance_from_cut(right, stage([0] * 5, [1, 2, 3])) == pytest.approx(0.3 / mean, rel=1e-2)
    # A protected row stays with any score, and does not move the cut.
    protected = stage([0.5, 0.3, 0.2, 0.2, 0.001], [0, 1, 4])
    assert distance_from_cut(protected, stage([0] * 5, [0, 2, 4])) == pytest.approx(0.05 / mean, rel=0.1)
    assert distance_from_cut(right, stage([0] * 5, [0, 1, 2, 4])) > 0.3
    assert distance_from_cut(stage([1.0, 1.0], [0, 1]), stage([1.0, 1.0], [0])) == math.inf


@pytest.mark.parametrize(
    ("scores", "kept", "others", "moved"),
    [
        ([9, 8, 7, 6, 5], [0, 1, 2], [0, 1, 2, 3], [5, 6]),  # the other keeps a row that this one could still afford
        ([9, 8, 7, 6, 5], [0, 1, 2], [0, 1], [5, 6, 7]),  # it gives up one that was too dear
        ([9, 8, 7, 1, 6, 5], [0, 1, 2, 3], [0, 1, 2, 3, 4], [5, 6]),  # a protected row is not paid for
    ],
    ids=["kept", "given up", "protected"],
)
def test_a_row_at_the_budget_is_near_by_its_cost(scores, kept, others, moved):
    right, other = stage(scores, kept), stage([0] * len(scores), others)
    by_score = 0.5 / np.mean(scores)
    assert distance_from_cut(right, other) == pytest.approx(by_score)
    budgets = np.ones(len(scores) + 1, np.float32)  # of texts of other lengths
    for apart, wanted in ((1e-4, 1e-4), (-1e-4, 1e-4), (3.0, by_score)):
        budgets[-1] = cost(np.float32(moved))[-1] / (1 + apart)
        assert distance_from_cut(right, other, budgets) == pytest.approx(wanted, rel=0.01)
    assert distance_from_cut(right, right, budgets) == 0


def test_a_near_tie_passes_and_is_counted(plain_setting):
    setting = plain_setting
    fractions = {"float32": 2e-5, "int8": 1e-2}

    class Nudged(Changed):
        """Its scores are what `nudge` makes of them."""

        def attention_block(self, hidden, offsets, sizes, layer, want):
            result, scores = self._blocks.attention_block(hidden, offsets, sizes, layer, want)
            return result, None if scores is None else self.nudge(scores)

        def nudge(self, scores):
            return scores

    class Level(Nudged):
        """All scores alike but for a little: by position in the one, against it in the other."""

        def __init__(self, blocks, sign):
            super().__init__(blocks)
            self.sign = sign

        def nudge(self, scores):
            ramp = np.linspace(0, self.sign * fractions[setting.precision] / 2, len(scores))
            return (1 + ramp).astype(np.float32)

    check = pruning_check(
        "p",
        setting.policy(),
        Level(setting.reference, 1),
        Level(setting.reference, -1),
        setting.sample,
        setting.precision,
    )
    assert check.values["near ties"] > 0
    assert check.values["same"] + check.values["near ties"] == len(TEXTS)
    assert f", {int(check.values['near ties'])} ties of" in check.measured
    # Below the bar of a tie, and for int8 above that of scores from the same state.
    assert check.verdict == ("PASS" if setting.precision == "float32" else "FAIL")


# Invariance


def test_every_order_size_and_number_of_threads_is_tried():
    for threads in ((1, 2, 4), (1, 2, 4, 7)):
        tried = list(settings(threads))
        assert {each.order for each in tried} == {"as given", "reversed", "shuffled"}
        assert {each.batch_size for each in tried} == {1, 3, 32}
        assert {each.threads for each in tried} == set(threads)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("fields", [None, {}, {"reduce": "merge"}], ids=["unpruned", "pruned", "merge"])
def test_bits_do_not_depend_on_the_call(plain_setting, backend, fields):
    setting = plain_setting
    folder = setting.encoder.folder
    encoder = SentenceEncoder(folder, precision=setting.precision, backend=backend, on_truncation="ignore", threads=2)
    policy = None if fields is None else setting.policy(**fields)
    check = invariance_check("name", encoder, setting.sample, policy, 3)
    assert check.verdict == "PASS"
    assert check.measured == f"12 texts in {9 + 1 + len(CHUNKS)} ways"
    assert encoder.threads == 2


def test_a_backend_whose_bits_depend_on_the_batch_fails(plain_setting):
    class Depends(Changed):
        def embed(self, ids, offsets):
            return self._blocks.embed(ids, offsets) * np.float32(1 + 1e-6 * (len(offsets) > 2))

    encoder = SentenceEncoder(plain_setting.encoder.folder, precision=plain_setting.precision, on_truncation="ignore")
    encoder.blocks = Depends(encoder.blocks)
    check = invariance_check("name", encoder, plain_setting.sample, None)
    assert check.verdict == "FAIL"
    text = "\n".join(check.detail)
    assert "order as given, batch_size 3, threads 2" in text
    assert "batch_size 1," not in text
    assert "text 0 'hello'" in text
    assert "chunks of up to 100000 tokens" in text
    assert "numbers differ, by up to" in check.detail[0]


def test_a_backend_that_fails_now_and_then_fails(plain_setting):
    class Fails(Changed):
        def embed(self, ids, offsets):
            if len(offsets) > 2:
                raise NumericalError("no such luck")
            return self._blocks.embed(ids, offsets)

    encoder = SentenceEncoder(plain_setting.encoder.folder, on_truncation="ignore")
    encoder.blocks = Fails(encoder.blocks)
    check = invariance_check("name", encoder, plain_setting.sample, None)
    assert (check.verdict, check.detail) == ("FAIL", ("no such luck",))


def test_a_prompt_of_the_model_does_not_enter(tmp_path):
    """The texts are compared as they are, whatever prompt the model would put before them."""
    folder = random_models.write_model(tmp_path / "prompted", random_models.find_spec("plain"))
    (folder / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "find: "}, "default_prompt_name": "query", "truncate_dim": 20}'
    )
    encoder = SentenceEncoder(folder, on_truncation="ignore")
    assert invariance_check("name", encoder, Sample.of(TEXTS, encoder.tokenizer), None).verdict == "PASS"
