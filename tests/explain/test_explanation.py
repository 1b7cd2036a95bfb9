"""What `minitrans explain` says: facts that can be checked against the encoder and the classifier themselves."""

import json
import math
from typing import get_args

import numpy as np
import pytest
from fitted_policies import fitted_to
from hypothesis import given
from hypothesis import strategies as st

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder
from minitrans.adaptation.fitting import turn_features
from minitrans.data.files import read_examples
from minitrans.encoder.policy import Score
from minitrans.encoder.selection import cost, kept_count
from minitrans.errors import InputError, InputTypeError, NumericalError, PolicyError, TruncationWarning
from minitrans.explain.explanation import INTENTS_APART, RANKED, TURN, Timing, explain, multiply_adds
from minitrans.explain.terminal import lines
from minitrans.explain.trace import trace, trace_text
from minitrans.models.tokenization.tokenizer import Tokenized
from minitrans.words import columns

TEXT = "Where is the parcel that I ordered on Monday morning?"
TRAIN = ["hi there", "good morning", "where is my parcel", "track my order"], ["hi", "hi", "track", "track"]
TEXTS = [TEXT, "track my order", "will it rain tomorrow in Berlin, or can we go out?", "where is my parcel", "hello"]
MERGE = PruningPolicy(min_tokens=3, stages=((1, 0.3), (3, 0.4)), reduce="merge")


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


@pytest.fixture(scope="module")
def classifier(encoder):
    return FewShotClassifier(encoder).fit(*TRAIN)


def bracketed(token):
    return f"[-{token}-]"


@pytest.mark.parametrize(
    "policy", [PruningPolicy(), "balanced", MERGE, None], ids=["paper", "balanced", "merge", "none"]
)
def test_tokens_are_those_of_the_encoder(encoder, policy):
    (found,) = explain(encoder, [TEXT], pruning=policy, timed=False)
    (wanted,) = encoder.pruned_tokens([TEXT], pruning=policy)
    assert [token.token for token in found.tokens] == wanted.tokens
    assert [token.dropped_at is None for token in found.tokens] == wanted.kept
    assert found.kept == [i for i, kept in enumerate(wanted.kept) if kept]
    assert [token.special for token in found.tokens] == [token in ("[CLS]", "[SEP]") for token in wanted.tokens]
    assert [token.id for token in found.tokens] == encoder.tokenize(TEXT).ids.tolist()
    assert found.timings == []
    assert not found.truncated
    if policy is None:
        assert (found.stages, found.cosine, found.work_saved) == ([], pytest.approx(1), 0)


def test_importance_is_there_until_a_token_goes(encoder):
    (found,) = explain(encoder, [TEXT], pruning=MERGE, timed=False)
    plain = trace(encoder, TEXT, pruning=None)[0]
    for place, token in enumerate(found.tokens):
        last = 5 if token.dropped_at is None else token.dropped_at
        assert [value is None for value in token.importance] == [layer > last for layer in range(6)]
        assert token.unpruned == [float(layer.importance[place]) for layer in plain.layers[1:]]
        assert token.importance[:2] == token.unpruned[:2]  # nothing was pruned before
    assert found.rows == [13, 10, 10, 6, 6, 6]


def test_every_merged_token_is_counted_once(encoder):
    (found,) = explain(encoder, [TEXT], pruning=MERGE, timed=False)
    sizes = np.ones(len(found.tokens))
    by_layer = sorted(
        (i for i, token in enumerate(found.tokens) if token.dropped_at is not None),
        key=lambda i: found.tokens[i].dropped_at,
    )
    for i in by_layer:
        token = found.tokens[i]
        taker = found.tokens[token.merged_into]
        assert taker.dropped_at is None or taker.dropped_at > token.dropped_at
        sizes[token.merged_into] += sizes[i]
        sizes[i] = 0
    assert [token.size for token in found.tokens] == sizes.tolist()
    assert len({token.dropped_at for token in found.tokens}) == 3


def test_stages_say_what_was_decided(encoder):
    (found,) = explain(encoder, [TEXT], pruning=MERGE, timed=False)
    entered = list(range(13))
    for stage, (layer, quantile) in zip(found.stages, MERGE.plan.items(), strict=True):
        assert (stage.layer, stage.quantile, stage.entered) == (layer, quantile, entered)
        assert stage.least == len(stage.kept) == kept_count(np.array([len(entered)]), quantile, 3)[0]
        scores = dict(zip(stage.entered, stage.scores, strict=True))
        assert stage.threshold == min(scores[place] for place in stage.kept)
        assert all(score <= stage.threshold for place, score in scores.items() if place not in stage.kept)
        entered = stage.kept


def test_work_is_counted_by_hand(encoder):
    H, I, n, left = 384, 1536, 13, 10  # noqa: E741
    (found,) = explain(encoder, [TEXT], pruning=PruningPolicy(), timed=False)
    whole = 6 * (4 * n * H * H + 2 * n * n * H + 2 * n * H * I)
    assert found.unpruned_multiply_adds == whole == multiply_adds(encoder.config, found.unpruned)
    pruned = 3 * (4 * n * H * H + 2 * n * n * H) + 3 * (4 * left * H * H + 2 * left * left * H)
    pruned += 2 * H * I * (2 * n + 4 * left)
    assert found.multiply_adds == pruned
    assert found.work_saved == (whole - pruned) / whole


def test_the_shift_is_that_of_encode(encoder):
    (found,) = explain(encoder, [TEXT], timed=False, pruning="balanced")
    a, b = (encoder.encode(TEXT, pruning=policy, normalize_embeddings=True) for policy in ("balanced", None))
    assert found.cosine == pytest.approx(float(a @ b), abs=1e-6)
    assert 0.8 < found.cosine < 0.999


def test_times_are_measured_alone_and_among_others(encoder, monkeypatch):
    for name, value in (("SECONDS", 0.0), ("COPIES", 4)):  # the fewest rounds
        monkeypatch.setattr(f"minitrans.explain.explanation.{name}", value)
    found, short = explain(encoder, [TEXT, "hello"], pruning=PruningPolicy())
    assert [timing.texts for timing in found.timings] == [1, 4]
    assert short.timings == []  # nothing was pruned
    for timing in found.timings:
        assert min(timing.unpruned_ms, timing.pruned_ms, timing.noise, timing.rounds) > 0
        assert timing.saved == 1 - timing.pruned_ms / timing.unpruned_ms


@pytest.mark.parametrize(("timed", "wanted"), [(1, [0, 1, 0]), (2, [0, 1, 1]), (None, [0, 1, 1]), (0, [0, 0, 0])])
def test_only_so_many_texts_are_timed(plain, monkeypatch, timed, wanted):
    """The first that lose tokens: a text that loses none has nothing to time."""
    monkeypatch.setattr("minitrans.explain.explanation._time", lambda *_: Timing(1, 2.0, 1.0, 0.0, 3))
    found = explain(SentenceEncoder(plain), ["a", TEXT, TEXT], pruning=PruningPolicy(layer=1), timed=timed)
    assert [len(each.timings) // 2 for each in found] == wanted


def test_every_score_has_its_words():
    assert RANKED.keys() == {*get_args(Score)}


@pytest.mark.parametrize(
    ("unpruned", "pruned", "noise", "verdict"),
    [
        (4.03, 2.12, 0.9, "47% less, but the runs differ by as much"),
        (4.03, 2.12, 0.1, "47% less"),
        (2.0, 1.9, 0.06, "about the same"),
        (2.0, 1.8, 0.05, "10% less"),
        (2.0, 3.0, 0.05, "50% more"),
        (2.0, 2.001, 0.0, "about the same"),
    ],
)
def test_the_verdict_follows_from_the_numbers(unpruned, pruned, noise, verdict):
    assert Timing(1, unpruned, pruned, noise, 5).verdict == verdict


@given(*[st.floats(0.01, 100)] * 2, st.floats(0, 10))
def test_times_that_differ_are_never_the_same(unpruned, pruned, noise):
    timing = Timing(1, unpruned, pruned, noise, 5)
    assert timing.verdict != "about the same" or abs(timing.saved) <= 0.1


def test_a_large_turn_is_warned_about(encoder):
    mild, hard = (
        next(explain(encoder, [TEXT], pruning=PruningPolicy(quantile=quantile, min_tokens=2), timed=0))
        for quantile in (0.1, 0.9)
    )
    assert mild.angle < TURN < hard.angle
    assert (mild.warning, mild.to_dict()["warning"]) == (None, None)
    assert not any("WARNING" in line for line in lines(mild, bracketed))
    assert hard.to_dict()["angle"] == pytest.approx(math.degrees(math.acos(hard.cosine)))
    assert f"{hard.angle:.1f} degrees" in hard.to_dict()["warning"]
    assert f"WARNING     {hard.warning}" in list(lines(hard, bracketed))


def turning(encoder, **fields):
    return fitted_to(encoder, **({"score": "learned", "min_tokens": 3, "quantile": 0.8, "max_turn": 15} | fields))


@pytest.mark.parametrize("protects", [False, True])
def test_the_expected_turn_is_that_of_what_went(encoder, protects):
    policy = turning(encoder, protect_special=protects)
    cut_short = 0
    for found in explain(encoder, TEXTS, pruning=policy, timed=0):
        (stage,) = found.stages
        n, gone = len(found.tokens), len(found.tokens) - len(stage.kept)
        guard = {0, n - 1} if protects else set()
        scores = sorted(score for place, score in enumerate(stage.scores) if place not in guard)
        spent = cost(np.float32(scores)).astype(float)
        turn = policy.turn_map(2)
        wanted = np.exp(turn_features(spent, np.full(len(spent), n)) @ turn.weight[0] + turn.bias[0])
        assert found.expected_angle == (pytest.approx(wanted[gone - 1], rel=1e-4) if gone else 0)
        assert found.expected_angle <= 15.01
        if stage.least < len(stage.kept):  # one more would have been too many
            assert wanted[gone] > 15
            cut_short += 1
        assert stage.max_turn == found.to_dict()["stages"][0]["max_turn"] == 15
        said = list(lines(found, bracketed))
        assert any(f"{found.expected_angle:.1f} degrees expected" in line for line in said)
        assert said[2].startswith("layer 2, quantile 0.8, expected to turn at most 15 degrees, ranked by")
    assert cut_short
    (plain,) = explain(encoder, [TEXT], pruning=PruningPolicy(), timed=0)
    assert (plain.expected_angle, plain.stages[0].max_turn) == (None, None)
    assert "expected" not in plain.meaning


def test_an_expected_turn_ends_somewhere(encoder):
    """Whatever was fitted: a turn is an angle, and JSON has no infinity."""
    policy = turning(encoder, max_turn=90, quantile=0.9)
    policy.fitted.scorers[2].bias[:] = -300  # what goes costs the least there is
    (found,) = explain(encoder, [TEXT], pruning=policy, timed=0)
    assert 0 < found.expected_angle < 1e-6
    assert len(found.kept) == 3
    policy = turning(encoder, max_turn=90, quantile=0.9)
    policy.fitted.turns[2].weight[:] = np.float32([[1e-3, 900, 0]])  # the budget is the least there is
    policy.fitted.scorers[2].bias[:] = -84
    (found,) = explain(encoder, [TEXT], pruning=policy, timed=0)
    assert len(found.kept) < 13
    assert found.expected_angle == 180


def test_the_nearest_text_is_found_among_the_given(encoder):
    policy = PruningPolicy(min_tokens=2, quantile=0.9, layer=0)
    plain, pruned = (
        encoder.encode(TEXTS, pruning=each, normalize_embeddings=True).astype(float) for each in (None, policy)
    )
    before, after = ((rows @ rows.T - 9 * np.eye(len(rows))) for rows in (plain, pruned))
    changed = before.argmax(1) != after.argmax(1)
    assert changed.any()
    assert not changed.all()
    for i, found in enumerate(explain(encoder, TEXTS, pruning=policy, timed=0)):
        near = found.nearest
        assert (near.others, near.examples, near.same) == (4, False, not changed[i])
        assert (near.unpruned, near.pruned) == (TEXTS[before[i].argmax()], TEXTS[after[i].argmax()])
        assert near.angle == pytest.approx(math.degrees(math.acos(before[i].max())), abs=0.01)
        stays = "is no longer" if changed[i] else "stays"
        line = f"; the nearest of 4 other texts, {near.angle:.0f} degrees away, {stays} the nearest"
        assert found.meaning == f"cosine {found.cosine:.4f}{line}" == found.to_dict()["meaning"]
        assert f"embedding   turned by {found.angle:.1f} degrees: {found.meaning}" in list(lines(found, bracketed))
        assert found.to_dict()["nearest"]["same"] is near.same


def test_texts_that_read_the_same_are_the_same(encoder, monkeypatch):
    """Which of the two is nearest is up to rounding."""
    flips = iter([0, 1] * 9)

    def encode(texts, pruning):
        rows = np.eye(3, dtype=np.float32)
        rows[next(flips)] += 1e-3
        return rows[[0, 1, 2]] + np.float32([[0.5, 0.5, 0]])

    monkeypatch.setattr(encoder, "encode", encode)
    same, other = (
        list(explain(encoder, texts, pruning=PruningPolicy(), timed=0))[2]
        for texts in (["a", "a", "b"], ["a", "c", "b"])
    )
    assert (same.nearest.same, other.nearest.same) == (True, False)


def test_what_a_turn_is_held_against(encoder, plain, monkeypatch):
    mild = PruningPolicy(layer=1, min_tokens=3)
    for texts in ([TEXT], [TEXT, TEXTS[1]]):  # of one other text it is always the nearest
        found = next(explain(encoder, texts, pruning=mild, timed=0))
        assert (found.nearest, found.apart) == (None, INTENTS_APART)
        assert found.meaning.endswith("; texts of one intent lie some 52 apart, of two some 78")
    (found,) = explain(SentenceEncoder(plain), [TEXT], pruning=mild, timed=0)  # measured on the bundled model alone
    assert (found.nearest, found.apart, found.meaning) == (None, None, f"cosine {found.cosine:.4f}")
    unpruned = list(explain(encoder, TEXTS, pruning=None, timed=0))
    assert {each.nearest for each in unpruned} == {None}
    assert {each.meaning for each in unpruned} == {"cosine 1.0000"}
    monkeypatch.setattr("minitrans.explain.explanation.MOST_COMPARED", 4)
    assert [each.nearest for each in explain(encoder, TEXTS, pruning=mild, timed=0)] == [None] * 5


@pytest.mark.slow
@pytest.mark.data
def test_how_far_apart_intents_lie(encoder, data_folder):
    rows = read_examples(data_folder / "banking77" / "test.csv")
    vectors = encoder.encode(rows.texts, pruning=None, normalize_embeddings=True)
    angles = np.degrees(np.arccos(np.clip(vectors @ vectors.T, -1, 1)))
    labels = np.array(rows.labels)
    same, itself = labels[:, None] == labels, np.eye(len(labels), dtype=bool)
    measured = angles[same & ~itself].mean(), angles[~same].mean()
    assert measured == pytest.approx(INTENTS_APART, abs=1)


def test_wide_and_right_to_left_tokens_keep_the_columns(encoder):
    policy = PruningPolicy(layer=1, min_tokens=3, quantile=0.5)
    (found,) = explain(
        encoder, ["\u5317\u4eac \u05e9\u05dc\u05d5\u05dd ok then, \u00e9t\u00e9"], pruning=policy, timed=0
    )
    seen = [line for line in lines(found, bracketed) if "0." in line and line.startswith("  ")][: len(found.tokens)]
    assert len({columns(line[: line.index("0.")]) for line in seen}) == 1
    assert any("\u2068\u05e9\u2069" in line for line in seen)


@pytest.mark.parametrize("policy", [PruningPolicy(), "balanced"], ids=["paper", "balanced"])
def test_predictions_are_those_of_the_classifier(encoder, classifier, policy):
    (found,) = explain(encoder, [TEXT], pruning=policy, classifier=classifier, timed=False)
    for said, each in ((found.prediction, policy), (found.unpruned_prediction, None)):
        vector = encoder.encode([TEXT], pruning=each)
        assert said.label == classifier.predict_embeddings(vector)[0] == "track"
        shares = classifier.predict_proba_embeddings(vector)[0]
        assert [label for label, _ in said.probabilities] == ["track", "hi"]
        assert [share for _, share in said.probabilities] == sorted(shares.tolist(), reverse=True)
        cosines = encoder.similarity(vector, encoder.encode(TRAIN[0]))[0]
        order = np.argsort(-cosines)[:3]
        assert [near.text for near in said.nearest] == [TRAIN[0][i] for i in order]
        assert [near.label for near in said.nearest] == [TRAIN[1][i] for i in order]
        assert [near.cosine for near in said.nearest] == pytest.approx(cosines[order], abs=1e-6)
        assert not said.rejected
    first = found.prediction.nearest[0].text, found.unpruned_prediction.nearest[0].text
    near = found.nearest
    assert (near.pruned, near.unpruned, near.same) == (*first, first[0] == first[1])
    assert (near.others, near.examples) == (4, True)
    assert math.cos(math.radians(near.angle)) == pytest.approx(found.unpruned_prediction.nearest[0].cosine, abs=1e-6)
    assert "; the nearest of 4 examples, " in found.meaning


def test_a_rejected_text_is_said_to_be(encoder):
    rejecting = FewShotClassifier(encoder).fit(*TRAIN).calibrate_rejection(keep=0.5)
    (found,) = explain(encoder, ["the chemistry of medieval dyes"], classifier=rejecting, timed=False)
    assert found.prediction.rejected
    assert found.prediction.label == "oos"
    assert any("oos (rejected; would be" in line for line in lines(found, bracketed))


def test_examples_without_their_texts(encoder, classifier, tmp_path):
    classifier.save(tmp_path / "kept")
    classifier.save(tmp_path / "forgotten", keep_texts=False)
    assert "parcel" not in (tmp_path / "forgotten" / "classifier.json").read_text()
    kept, forgotten = (FewShotClassifier.load(tmp_path / name, encoder) for name in ("kept", "forgotten"))
    assert (kept.texts_, forgotten.texts_) == (TRAIN[0], None)
    (found,) = explain(encoder, [TEXT], pruning=PruningPolicy(), classifier=forgotten, timed=False)
    assert [near.text for near in found.prediction.nearest] == [None] * 3
    assert found.nearest is None  # its embeddings alone do not say what they were under another policy
    assert not any("nearest" in line and "parcel" in line for line in lines(found, bracketed))


def test_examples_of_a_pruning_classifier_are_compared_unpruned(plain):
    policy = PruningPolicy(min_tokens=2, quantile=0.8, layer=0)
    pruning = SentenceEncoder(plain, pruning=policy)
    fitted = FewShotClassifier(pruning).fit(*TRAIN)
    (found,) = explain(pruning, [TRAIN[0][0]], pruning=policy, classifier=fitted, timed=0)
    assert found.nearest.examples
    assert found.nearest.unpruned == TRAIN[0][0]
    assert found.nearest.angle == pytest.approx(0, abs=0.1)


def test_a_long_text_is_cut_with_one_warning(plain):
    encoder = SentenceEncoder(plain)
    encoder.max_seq_length = 10
    with pytest.warns(TruncationWarning) as warned:
        long, short = explain(encoder, ["a b c d e f g h i j k l m n", "a b"], pruning=None, timed=False)
    assert len(warned) == 1
    assert (long.truncated, short.truncated) == (True, False)
    assert len(long.tokens) == 10
    assert any("cut to 10 tokens" in line for line in lines(long, bracketed))


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_any_backend_and_precision(plain, backend, precision):
    encoder = SentenceEncoder(plain, backend=backend, precision=precision)
    policy = fitted_to(encoder, min_tokens=2, quantile=0.5, layer=1, score="learned", reduce="restore")
    for found in explain(encoder, ["", "one", TEXT], pruning=policy, timed=False):
        json.dumps(found.to_dict(), allow_nan=False)
        assert math.isfinite(found.cosine)
        assert found.stages[0].threshold is None or len(found.kept) < len(found.tokens)
        assert list(lines(found, bracketed))


def test_bad_input(encoder, classifier):
    with pytest.raises(InputError, match="no texts"):
        explain(encoder, [])
    with pytest.raises(InputTypeError, match="text 1 is 3 of type int"):
        explain(encoder, ["a", 3])
    with pytest.raises(PolicyError, match="layer 9"):
        explain(encoder, ["a"], pruning=PruningPolicy(layer=9))
    with pytest.raises(InputTypeError):
        explain(encoder, "a bare string")


def test_it_goes_text_by_text(encoder, monkeypatch):
    """A long list must not be held in memory: each text is run when it is asked for."""
    ran = []
    monkeypatch.setattr(
        "minitrans.explain.explanation.trace_text", lambda *a, **k: ran.append(1) or trace_text(*a, **k)
    )
    found = explain(encoder, (text for text in ["one", "two", "three"]), timed=False)
    assert ran == []
    assert next(found).text == "one"
    assert len(ran) == 2
    assert next(found).unpruned.layers[1].attention == ()


def test_the_prompt_counts(plain):
    encoder = SentenceEncoder(plain, prompts={"p": "one two three four five six "}, default_prompt_name="p")
    encoder.max_seq_length = 6
    with pytest.warns(TruncationWarning):
        (found,) = explain(encoder, ["seven"], pruning=None, timed=False)
    assert found.truncated
    assert found.pruned.batch.ids.tolist() == encoder.tokenizer.encode(["one two three four five six seven"]).ids[0]


def test_scores_that_are_not_finite_are_reported(plain):
    encoder = SentenceEncoder(plain, backend="reference")
    policy = fitted_to(encoder, min_tokens=2, layer=1, score="learned")
    policy.fitted.scorers[1].weight[:] = np.float32(3e38)
    with pytest.raises(NumericalError, match="scores at layer 1"), np.errstate(all="ignore"):
        list(explain(encoder, [TEXT], pruning=policy, timed=False))


def test_what_steers_a_terminal_is_written_out(encoder):
    classifier = FewShotClassifier(encoder).fit(["a \x1b]0;name\x07", "other"], ["x\x1b[2J", "y"])
    (found,) = explain(encoder, ["a \x1b]0;name\x07 b"], classifier=classifier, timed=False)
    printed = "".join(lines(found, bracketed))
    assert "\\x1b" in printed
    assert printed.isprintable()


def test_no_tokens_at_all(plain, monkeypatch):
    encoder = SentenceEncoder(plain)
    monkeypatch.setattr(
        type(encoder.tokenizer), "encode", lambda self, texts: Tokenized([[]] * len(texts), [0] * len(texts))
    )
    (found,) = explain(encoder, [""], pruning=PruningPolicy(layer=1), timed=False)
    assert (found.tokens, found.work_saved) == ([], 0)
    assert list(lines(found, bracketed))
    json.dumps(found.to_dict(), allow_nan=False)


# On the terminal


def test_the_lines_of_a_text():
    encoder = SentenceEncoder(precision="float32")
    (found,) = explain(encoder, [TEXT], pruning=PruningPolicy(), timed=False)
    seen = list(lines(found, bracketed))
    assert seen[0] == TEXT
    assert seen[2].startswith(
        "layer 2, quantile 0.3, ranked by the attention received: 10 of 13 tokens stay, threshold 0.0"
    )
    drawn = {line.split()[0]: line for line in seen[3:16]}
    assert len(drawn) == 13
    scored = list(zip(found.tokens, found.stages[0].scores, strict=True))
    most = max(score for token, score in scored if not token.special)
    for token, score in scored:
        name = token.token if token.dropped_at is None else f"[-{token.token}-]"
        assert f"{score:8.4f}" in drawn[name]
        assert drawn[name].endswith("dropped") == (token.dropped_at is not None)
        length = drawn[name].count("█")
        most = max(
            score for other, score in zip(found.tokens, found.stages[0].scores, strict=True) if not other.special
        )
        assert length == min(40, round(score / most * 40))
    columns = {line.index("┊") for line in drawn.values() if "┊" in line}
    assert len(columns) == 1  # the threshold stands above itself
    assert "»" in drawn["[CLS]"]
    assert any("[-that-]" in line and "parcel" in line for line in seen)
    assert any(line.startswith("work        14% less: 138.8 → 119.2 million multiply-adds") for line in seen)
    for character in "".join(lines(found, bracketed, pictures=False)):
        assert ord(character) < 128


def test_merged_tokens_name_who_took_them(encoder):
    (found,) = explain(encoder, [TEXT], pruning=MERGE, timed=False)
    seen = [line for line in lines(found, bracketed) if "merged into" in line]
    wanted = [
        (token.token, f"{found.tokens[token.merged_into].token} (token {token.merged_into})")
        for token in found.tokens
        if token.merged_into is not None
    ]
    assert sorted((line.split()[0][2:-2], line.split("merged into ")[1]) for line in seen) == sorted(wanted)
