"""Out-of-scope rejection: scores, thresholds and metrics on arrays, and the calibrated classifier."""

import json
import pickle
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minitrans.errors import ClassifierError, InputError, InputTypeError
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.fewshot.logistic import fit_logistic
from minitrans.fewshot.rejection import (
    DEFAULT_SCORE,
    SCORES,
    SHRINKAGE,
    HeldOut,
    KnownClasses,
    auroc,
    calibrate,
    cross_fit,
    fpr_at,
    threshold_between,
    threshold_that_keeps,
)

H = 12
every_score = pytest.mark.parametrize("score", SCORES)

# Few values, so that ties are frequent.
numbers = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)


def clouds(seed=0, classes=4, each=6, spread=0.2):
    """Classes around random directions: `X [N, H]` float32, `y [N]` and directions `[classes, H]`."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, H))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    y = np.repeat(np.arange(classes), each)
    return (centres[y] + spread * random.normal(size=(len(y), H))).astype(np.float32), y, centres.astype(np.float32)


def known_classes(X, y):
    fitted = fit_logistic(X, y)
    return KnownClasses(fitted.coef, fitted.intercept, X, y)


# ---------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def known():
    return known_classes(*clouds()[:2])


@pytest.fixture(scope="module")
def asked():
    return np.random.default_rng(1).normal(size=(9, H)).astype(np.float32)


def test_logit_scores_are_the_formulas(known, asked):
    z = asked.astype(np.float64) @ known.coef.T + known.intercept
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(known.score("probability", asked), p.max(axis=1))
    np.testing.assert_allclose(known.score("energy", asked), np.log(np.exp(z).sum(axis=1)))


def test_nearest_is_the_largest_cosine(known, asked):
    cosines = [
        max(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in known.examples.astype(np.float64))
        for a in asked.astype(np.float64)
    ]
    np.testing.assert_allclose(known.score("nearest", asked), cosines, rtol=1e-5)
    np.testing.assert_allclose(known.score("nearest", known.examples * 3), 1, rtol=1e-6)
    assert known.score("nearest", np.zeros((1, H), np.float32)) == 0


def test_mahalanobis_is_the_formula(known, asked):
    X, y = known.examples.astype(np.float64), known.codes
    means = np.stack([X[y == k].mean(axis=0) for k in np.unique(y)])
    scatter = (X - means[y]).T @ (X - means[y]) / (len(X) - len(means))
    covariance = (1 - SHRINKAGE) * scatter + SHRINKAGE * np.trace(scatter) / H * np.eye(H)
    apart = asked[:, None, :] - means  # [B, K, H]
    distances = np.einsum("bkh,hi,bki->bk", apart, np.linalg.inv(covariance), apart)
    np.testing.assert_allclose(known.score("mahalanobis", asked), -distances.min(axis=1))


def test_mahalanobis_at_a_class_mean_is_zero(known):
    mean = known.examples[known.codes == 2].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(known.score("mahalanobis", mean[None]), 0, atol=1e-9)
    assert known.score("mahalanobis", mean[None]) <= 0


@pytest.mark.parametrize(("classes", "each"), [(3, 1), (2, 2), (1, 4)])
def test_mahalanobis_with_fewer_examples_than_features(classes, each, asked):
    X, y, _ = clouds(classes=classes, each=each)
    known = known_classes(X, y)
    scores = known.score("mahalanobis", asked)
    assert np.isfinite(scores).all()
    assert known.score("mahalanobis", X).mean() > scores.mean()
    if each == 1:  # no scatter within the classes: the Euclidean distance
        distances = ((asked[:, None, :].astype(np.float64) - X) ** 2).sum(axis=2)
        np.testing.assert_allclose(scores, -distances.min(axis=1))


@every_score
def test_scores_are_higher_in_scope(known, score):
    _, _, centres = clouds()
    beyond = np.random.default_rng(5).normal(size=(50, H)).astype(np.float32)
    beyond /= np.linalg.norm(beyond, axis=1, keepdims=True)
    assert auroc(known.score(score, centres), known.score(score, beyond)) > 0.9


@every_score
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_scores_do_not_depend_on_the_neighbours(known, asked, score, count):
    whole = known.score(score, asked)
    np.testing.assert_array_equal(known.score(score, asked[:count]), whole[:count])
    np.testing.assert_array_equal(known.score(score, asked[-count:]), whole[-count:])
    np.testing.assert_array_equal(known.score(score, np.asfortranarray(asked)), whole)


@every_score
def test_no_rows_have_no_scores(known, score):
    assert known.score(score, np.empty((0, H), np.float32)).shape == (0,)


@pytest.mark.parametrize("name", ["msp", "", None, 3, ["energy"]])
def test_unknown_scores(known, asked, name):
    with pytest.raises(InputError, match=r"score is .*, wanted 'probability', 'energy', 'nearest' or 'mahalanobis'"):
        known.score(name, asked)


# ---------------------------------------------------------------- metrics and thresholds


@given(numbers, numbers)
def test_auroc_is_the_share_of_ordered_pairs(inside, outside):
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside))


@given(numbers, numbers)
def test_metrics_agree_with_scikit_learn(inside, outside):
    metrics = pytest.importorskip("sklearn.metrics")
    truth, scores = [1] * len(inside) + [0] * len(outside), inside + outside
    assert auroc(inside, outside) == pytest.approx(metrics.roc_auc_score(truth, scores))
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert fpr_at(inside, outside) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


@given(numbers, st.floats(0.01, 1))
def test_the_threshold_keeps_the_share_and_is_the_highest(scores, keep):
    values = np.array(scores)
    threshold = threshold_that_keeps(values, keep)
    assert (values >= threshold).mean() >= keep
    above = values[values > threshold]
    assert not len(above) or (values >= above.min()).mean() < keep


@given(numbers, numbers)
def test_the_threshold_between_has_the_highest_mean_recall(inside, outside):
    a, b = np.array(inside), np.array(outside)

    def mean_recall(threshold):
        return ((a >= threshold).mean() + (b < threshold).mean()) / 2

    threshold = threshold_between(a, b)
    assert mean_recall(threshold) >= max(map(mean_recall, [*inside, *outside])) - 1e-12
    assert min(inside + outside) <= threshold <= max(inside + outside)


def test_the_threshold_between_lies_in_the_middle():
    assert threshold_between([3.0, 4.0, 5.0], [0.0, 1.0]) == 2.0
    assert threshold_between([1.0, 1.0], [1.0]) == 1.0  # nothing can be told apart: nothing is rejected
    tiny = np.nextafter(1.0, 2.0)
    assert threshold_between([tiny], [1.0]) == tiny


@pytest.mark.parametrize("values", [[], [[1.0]], [np.nan], [np.inf, 0.0], ["a"], 1.0])
@pytest.mark.parametrize("use", [auroc, fpr_at, threshold_between])
def test_scores_that_cannot_be_used(use, values):
    with pytest.raises(InputError, match=r"in_scope has shape .*, wanted finite numbers"):
        use(values, [1.0])
    with pytest.raises(InputError, match=r"out_of_scope has shape .*, wanted finite numbers"):
        use([1.0], values)


@pytest.mark.parametrize("keep", [0, -0.5, 1.01, float("nan"), "all", True])
def test_shares_that_cannot_be_kept(keep):
    with pytest.raises(InputError, match=r"keep is .*, wanted a share above 0 and up to 1"):
        threshold_that_keeps([1.0, 2.0], keep)


# ---------------------------------------------------------------- cross-fitting


def test_each_example_is_scored_without_itself():
    X, y, names = clouds(each=3)
    held_out = cross_fit(X, y, names, C=10.0, folds=len(X))  # leave one out
    for i in range(len(X)):
        rest = np.delete(np.arange(len(X)), i)
        examples, codes = np.vstack([X[rest], names]), np.append(y[rest], np.arange(4))
        fitted = fit_logistic(examples, codes)
        others = KnownClasses(fitted.coef, fitted.intercept, examples, codes)
        for name in SCORES:
            np.testing.assert_allclose(held_out.scores[name][i], others.score(name, X[i : i + 1])[0], rtol=1e-6)
        assert held_out.right[i] == ((X[i] @ fitted.coef.T + fitted.intercept).argmax() == y[i])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(2, 5), st.booleans(), st.integers(0, 3))
@settings(max_examples=40)
def test_which_examples_are_held_out(counts, folds, named, seed):
    assume(sum(counts) > 1 or named)
    y = np.repeat(np.arange(len(counts)), counts)
    random = np.random.default_rng(seed)
    X = random.normal(size=(len(y), H)).astype(np.float32)
    names = random.normal(size=(len(counts), H)).astype(np.float32) if named else None
    held_out = cross_fit(X, y, names, C=10.0, folds=folds, seed=seed)
    several = sum(count for count in counts if count > 1)
    expected = len(y) if named or not several else several
    for name in SCORES:
        assert held_out.scores[name].shape == (expected,)
        assert np.isfinite(held_out.scores[name]).all()
    if named or several:
        assert held_out.right.shape == (expected,)
    else:  # every class vanishes with its only example, so that no prediction could be right
        assert held_out.right is None


def test_folds_are_drawn_by_seed():
    X, y, names = clouds(spread=0.5)
    one, same, other = (cross_fit(X, y, names, C=10.0, seed=seed).scores for seed in (0, 0, 1))
    for name in SCORES:
        np.testing.assert_array_equal(one[name], same[name])
        assert (one[name] != other[name]).any()


def test_folds_are_stratified(monkeypatch):
    seen = []

    def spy(X, y, **options):
        seen.append(np.bincount(y))
        return fit_logistic(X, y, **options)

    monkeypatch.setattr("minitrans.fewshot.rejection.fit_logistic", spy)
    X, y, _ = clouds(classes=3, each=5)
    cross_fit(X, y, None, C=10.0, folds=5)
    assert [counts.tolist() for counts in seen] == [[4, 4, 4]] * 5


@pytest.mark.parametrize(
    ("what", "value"), [("folds", 1), ("folds", 2.0), ("folds", True), ("seed", -1), ("seed", None)]
)
def test_refused_folds_and_seeds(what, value):
    X, y, _ = clouds()
    with pytest.raises(InputError, match=f"{what} is {value}, wanted an integer of at least"):
        cross_fit(X, y, None, C=10.0, **{what: value})


def test_a_single_example_cannot_be_held_out():
    with pytest.raises(InputError, match="there is 1 example, wanted 2 to hold one out"):
        cross_fit(np.ones((1, H), np.float32), np.zeros(1, np.int64), None, C=10.0)


# ---------------------------------------------------------------- calibration


def held_out_scores(**given_scores):
    return {name: np.array(given_scores.get(name, [0.0, 0.0])) for name in SCORES}


def test_auto_takes_the_score_that_tells_them_apart():
    inside = held_out_scores(energy=[2.0, 3.0], nearest=[2.0, 0.0])
    outside = held_out_scores(energy=[0.0, 1.0], nearest=[1.0, 1.0])
    chosen = calibrate(HeldOut(inside, np.array([True, False])), outside, abstention="oos")
    assert (chosen.score, chosen.threshold) == ("energy", 1.5)
    assert chosen.auroc == {"probability": 0.5, "energy": 1.0, "nearest": 0.5, "mahalanobis": 0.5}
    assert (chosen.in_scope, chosen.out_of_scope, chosen.kept, chosen.rejected, chosen.accuracy) == (2, 2, 1, 1, 0.5)


def test_auto_takes_the_default_where_nothing_says_otherwise():
    scores = held_out_scores()
    assert calibrate(HeldOut(scores, None), scores, abstention="oos").score == DEFAULT_SCORE
    alone = calibrate(HeldOut(scores, None), None, abstention="oos")
    assert alone.score == DEFAULT_SCORE
    assert (alone.auroc, alone.rejected, alone.accuracy, alone.out_of_scope) == (None, None, None, 0)


def test_a_share_to_keep_goes_before_the_texts_out_of_scope():
    inside, outside = held_out_scores(energy=[1.0, 4.0]), held_out_scores(energy=[2.0, 3.0])
    assert calibrate(HeldOut(inside, None), outside, abstention="oos", score="energy").threshold == 3.5
    kept = calibrate(HeldOut(inside, None), outside, abstention="oos", score="energy", keep=1.0)
    assert (kept.threshold, kept.kept, kept.rejected) == (1.0, 1.0, 0.0)


# ---------------------------------------------------------------- the classifier


class WordEncoder:
    """Words, hashed to random directions and summed to unit vectors: texts with no word in common are unrelated."""

    name_or_path, model_sha256, precision, pruning = "words", "ab" * 32, "float32", None

    def encode(self, texts):
        rows = np.zeros((len(texts), 32))
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row += np.random.default_rng(zlib.crc32(word.encode())).normal(size=32)
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


OPENINGS = ["please", "could you", "i would like to", "can i", "help me", "how do i", "hello", "hey there"]
THINGS = {"play_music": "play a song", "set_alarm": "wake me up at seven", "card_lost": "my card was lost"}
TEXTS = [f"{opening} {words}" for words in THINGS.values() for opening in OPENINGS]
LABELS = [label for label in THINGS for _ in OPENINGS]
BEYOND = ["quantum field theory", "roasted chestnuts", "the emperor of japan", "seven green bottles", "hello volcano"]
ASKED = ["now play a song", "wake me up at seven then", "my card was lost today", "tectonic plates drift", "an old oak"]
EXPECTED = ["play_music", "set_alarm", "card_lost", "oos", "oos"]


@pytest.fixture
def encoder():
    return WordEncoder()


@pytest.fixture
def fitted(encoder):
    return FewShotClassifier(encoder).fit(TEXTS, LABELS)


@pytest.fixture
def calibrated(fitted):
    return fitted.calibrate_rejection(out_of_scope=BEYOND)


def test_without_calibration_nothing_is_rejected(fitted):
    assert fitted.rejection_ is None
    assert set(fitted.predict(BEYOND)) <= set(LABELS)
    assert FewShotClassifier().rejection_ is None


@pytest.mark.parametrize("score", ["auto", *SCORES])
@pytest.mark.parametrize("out_of_scope", [BEYOND, None])
def test_calibration(fitted, score, out_of_scope):
    before = fitted.predict_proba(ASKED)
    assert fitted.calibrate_rejection(out_of_scope=out_of_scope, score=score) is fitted
    rejection = fitted.rejection_
    assert rejection.score == score or score == "auto"
    assert rejection.abstention == "oos"
    assert (rejection.in_scope, rejection.out_of_scope) == (len(TEXTS), len(out_of_scope or []))
    if out_of_scope is None:
        assert rejection.kept >= 0.95
    else:
        assert (rejection.kept + rejection.rejected) / 2 > 0.8
    assert fitted.predict(ASKED).tolist() == EXPECTED
    np.testing.assert_array_equal(fitted.predict_proba(ASKED), before)
    assert [answer.labels[0][0] for answer in fitted.answer(ASKED)] == fitted.classes_[before.argmax(axis=1)].tolist()


def test_labels_are_abstained_from_below_the_threshold(calibrated):
    scores = calibrated.score_in_scope(ASKED)
    np.testing.assert_array_equal(calibrated.predict(ASKED) == "oos", scores < calibrated.rejection_.threshold)
    np.testing.assert_array_equal(calibrated.score_in_scope(ASKED, calibrated.rejection_.score), scores)


def test_a_score_equal_to_the_threshold_is_in_scope(fitted):
    fitted.calibrate_rejection(ASKED[:1], keep=1.0)
    assert fitted.score_in_scope(ASKED[0]) == fitted.rejection_.threshold
    assert fitted.predict(ASKED[0]) == "play_music"


def test_a_single_text(calibrated):
    assert calibrated.predict(ASKED[0]) == "play_music"
    assert calibrated.predict(ASKED[3]) == "oos"
    assert type(calibrated.predict(ASKED[3])) is str
    assert type(calibrated.score_in_scope(ASKED[3])) is float
    assert calibrated.predict([]).shape == calibrated.score_in_scope([]).shape == (0,)


def test_scores_without_calibration(fitted):
    np.testing.assert_array_equal(fitted.score_in_scope(ASKED), fitted.score_in_scope(ASKED, DEFAULT_SCORE))


def test_texts_that_were_not_in_fit(fitted):
    fitted.calibrate_rejection(ASKED[:3], ["play_music", "set_alarm", "set_alarm"], keep=1.0)
    assert (fitted.rejection_.in_scope, fitted.rejection_.kept) == (3, 1.0)
    assert fitted.rejection_.accuracy == pytest.approx(2 / 3)
    assert fitted.rejection_.threshold == fitted.score_in_scope(ASKED[:3]).min()
    assert fitted.calibrate_rejection(ASKED[:3]).rejection_.accuracy is None
    # What was calibrated before does not count when the accuracy is measured again.
    assert fitted.calibrate_rejection(ASKED[:3], EXPECTED[:3], keep=0.3).rejection_.accuracy == pytest.approx(1 / 3)
    assert fitted.calibrate_rejection(ASKED[:3], EXPECTED[:3], keep=1.0).rejection_.accuracy == 1.0


def test_the_share_of_right_labels_counts_rejections(calibrated):
    assert calibrated.score(ASKED, EXPECTED) == 1.0
    assert calibrated.score(ASKED[3:], ["play_music", "oos"]) == 0.5


def test_int_labels(encoder):
    numbers = [list(THINGS).index(label) * 5 for label in LABELS]
    classifier = FewShotClassifier(encoder).fit(TEXTS, numbers).calibrate_rejection(out_of_scope=BEYOND)
    assert classifier.predict(ASKED).tolist() == [0, 5, 10, -1, -1]
    assert classifier.predict(ASKED).dtype == np.int64
    assert type(classifier.predict(ASKED[4])) is int
    assert classifier.calibrate_rejection(abstention=np.int64(99)).predict(ASKED[4]) == 99


def test_an_abstention_longer_than_the_labels(fitted):
    label = "this belongs to none of the intents"
    assert fitted.calibrate_rejection(abstention=label).predict(ASKED).tolist() == [*EXPECTED[:3], label, label]


@pytest.mark.parametrize("names", [True, False])
def test_one_shot(encoder, names):
    classifier = FewShotClassifier(encoder, label_names=names).fit(list(THINGS.values()), list(THINGS))
    rejection = classifier.calibrate_rejection().rejection_
    assert rejection.in_scope == 3
    assert (rejection.accuracy is None) == (not names)
    assert classifier.predict(ASKED[:3]).tolist() == EXPECTED[:3]  # the threshold is on the safe side


def test_a_class_of_one_example_without_a_name_is_not_held_out(encoder):
    classifier = FewShotClassifier(encoder, label_names=False).fit([*TEXTS, "good morning"], [*LABELS, "greet"])
    assert classifier.calibrate_rejection().rejection_.in_scope == len(TEXTS)


def test_a_single_class(encoder):
    classifier = FewShotClassifier(encoder).fit(TEXTS[:8], LABELS[:8])
    assert classifier.calibrate_rejection(out_of_scope=BEYOND).rejection_.score in ("nearest", "mahalanobis")
    assert classifier.predict(ASKED[:1] + ASKED[3:]).tolist() == ["play_music", "oos", "oos"]
    for score in ("probability", "energy"):
        with pytest.raises(InputError, match=f"score is '{score}', .* one class, wanted 'mahalanobis'"):
            classifier.calibrate_rejection(score=score)


def test_a_single_example(encoder):
    classifier = FewShotClassifier(encoder, label_names=False).fit(TEXTS[:1], LABELS[:1])
    with pytest.raises(InputError, match="there is 1 example"):
        classifier.calibrate_rejection()
    assert classifier.calibrate_rejection(TEXTS[1:8]).rejection_.in_scope == 7


def test_calibration_is_the_same_each_time(encoder, fitted):
    first = fitted.calibrate_rejection(out_of_scope=BEYOND, seed=3).rejection_
    again = FewShotClassifier(encoder).fit(TEXTS, LABELS).calibrate_rejection(out_of_scope=BEYOND, seed=3)
    assert again.rejection_ == first
    assert fitted.calibrate_rejection(seed=4).rejection_ != fitted.calibrate_rejection(seed=5).rejection_


def test_fit_forgets_the_threshold(calibrated):
    assert calibrated.fit(TEXTS, LABELS).rejection_ is None
    assert "oos" not in calibrated.predict(ASKED)


def test_partial_fit_keeps_the_threshold_and_moves_the_scores(calibrated, encoder):
    before, low = calibrated.rejection_, calibrated.score_in_scope("boil two eggs")
    calibrated.partial_fit(["boil two eggs", "please boil two eggs"], ["cook", "cook"])
    assert calibrated.rejection_ is before
    assert calibrated.score_in_scope("boil two eggs") > low
    assert calibrated.predict("boil two eggs") == "cook"
    assert calibrated.predict(ASKED[4]) == "oos"


@every_score
def test_remove_keeps_the_threshold_where_its_score_still_tells(fitted, score):
    before = fitted.calibrate_rejection(score=score).rejection_
    assert fitted.remove(TEXTS[:8]).rejection_ is before
    if score in ("probability", "energy"):
        with pytest.raises(InputError, match=f"score is '{score}', .* one class"):
            fitted.remove(TEXTS[8:16])
    else:
        assert fitted.remove(TEXTS[8:16]).classes_.tolist() == ["card_lost"]


def test_a_loaded_head_scores_without_a_solver(calibrated, encoder, tmp_path, monkeypatch):
    wanted = calibrated.score_in_scope(ASKED)
    calibrated.save(tmp_path / "saved")

    def solved(*_, **__):
        raise AssertionError("a solver was called")

    monkeypatch.setattr("minitrans.fewshot.head.fit_logistic", solved)
    monkeypatch.setattr("minitrans.fewshot.rejection.fit_logistic", solved)
    monkeypatch.setattr(np.linalg, "solve", solved)
    np.testing.assert_array_equal(FewShotClassifier.load(tmp_path / "saved", encoder).score_in_scope(ASKED), wanted)


def test_partial_fit_refuses_the_abstention_as_a_class(calibrated):
    before = pickle.dumps(vars(calibrated))
    with pytest.raises(InputError, match="abstention is 'oos' of type str, which is a class"):
        calibrated.partial_fit(BEYOND, ["oos"] * len(BEYOND))
    assert pickle.dumps(vars(calibrated)) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"score": "msp"}, InputError, "score is 'msp', wanted 'auto', 'probability'"),
        ({"keep": 0.0}, InputError, "keep is 0.0"),
        ({"folds": 1}, InputError, "folds is 1, wanted an integer of at least 2"),
        ({"seed": -1}, InputError, "seed is -1"),
        ({"abstention": "set_alarm"}, InputError, "abstention is 'set_alarm' of type str, which is a class"),
        ({"abstention": "set_alarm\u200b "}, InputError, "which is a class, wanted a label that is none"),
        ({"abstention": "\u200b"}, InputError, "which shows nothing, wanted a name"),
        ({"score": np.array(["auto", "energy"])}, InputError, "score is array"),
        ({"abstention": -1}, InputTypeError, "abstention is -1 of type int, wanted the kind of the classes"),
        ({"abstention": "a\0"}, InputError, "wanted a str without NUL"),
        ({"abstention": 1.5}, InputTypeError, "abstention is 1.5 of type float, wanted str or int"),
        ({"labels": ["set_alarm"]}, InputError, "labels without texts, wanted both, or neither"),
        ({"texts": ["a"], "labels": ["oos"]}, InputError, "the label 'oos' is no class, .* give it as out_of_scope"),
        ({"texts": ["a"], "labels": [1]}, InputTypeError, "wanted the kind of the classes"),
        ({"texts": ["a", "b"], "labels": ["set_alarm"]}, InputError, "2 texts and 1 labels"),
        ({"texts": "a text"}, InputTypeError, "texts is a str, wanted a list"),
        ({"texts": []}, InputError, r"in_scope has shape \(0,\)"),
        ({"out_of_scope": []}, InputError, "out_of_scope has 0 texts, wanted at least one"),
        ({"out_of_scope": [1]}, InputTypeError, "text 0 is 1"),
    ],
)
def test_refused_calibrations_change_nothing(calibrated, arguments, error, message):
    before = calibrated.rejection_
    with pytest.raises(error, match=message):
        calibrated.calibrate_rejection(**arguments)
    assert calibrated.rejection_ is before


def test_a_class_that_is_called_oos(encoder):
    classifier = FewShotClassifier(encoder).fit(TEXTS, ["oos" if label == "set_alarm" else label for label in LABELS])
    with pytest.raises(InputError, match=r"'oos' .*, which is a class, wanted a label that is none; name one"):
        classifier.calibrate_rejection()
    assert classifier.calibrate_rejection(abstention="none").predict(ASKED[1]) == "oos"


# ---------------------------------------------------------------- files


@pytest.fixture
def folder(calibrated, tmp_path):
    calibrated.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("out_of_scope", [BEYOND, None])
@pytest.mark.parametrize("score", SCORES)
def test_round_trip(fitted, encoder, tmp_path, score, out_of_scope):
    fitted.calibrate_rejection(score=score, out_of_scope=out_of_scope).save(tmp_path / "saved")
    again = FewShotClassifier.load(tmp_path / "saved", encoder)
    assert again.rejection_ == fitted.rejection_
    np.testing.assert_array_equal(again.score_in_scope(ASKED + BEYOND), fitted.score_in_scope(ASKED + BEYOND))
    assert again.predict(ASKED + BEYOND).tolist() == fitted.predict(ASKED + BEYOND).tolist()


def test_round_trip_of_int_labels(encoder, tmp_path):
    classifier = FewShotClassifier(encoder).fit(TEXTS, [len(label) for label in LABELS]).calibrate_rejection()
    classifier.save(tmp_path / "saved")
    assert FewShotClassifier.load(tmp_path / "saved", encoder).rejection_ == classifier.rejection_


def test_what_the_json_says(calibrated, folder):
    values = json.loads((folder / "classifier.json").read_text())
    assert values["rejection"] == asdict(calibrated.rejection_)


def test_json_of_an_uncalibrated_classifier(calibrated, folder):
    calibrated.fit(TEXTS, LABELS).save(folder)
    assert "rejection" not in json.loads((folder / "classifier.json").read_text())


def change(folder, **fields):
    """Change fields of the stored rejection."""
    values = json.loads((folder / "classifier.json").read_text())
    values["rejection"] |= fields
    (folder / "classifier.json").write_text(json.dumps(values))


def refused(folder, message):
    with pytest.raises(ClassifierError, match=message) as caught:
        FewShotClassifier.load(folder, WordEncoder())
    assert str(folder) in str(caught.value)
    assert "wanted" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("score", "msp", "rejection.score is 'msp', wanted 'probability', "),
        ("score", ["energy"], "rejection.score is"),
        ("threshold", float("nan"), "rejection.threshold is nan, wanted a finite float"),
        ("threshold", float("-inf"), "rejection.threshold is -inf"),
        ("threshold", "0.5", "rejection.threshold is '0.5'"),
        ("threshold", None, "rejection.threshold is None"),
        ("threshold", 10**400, "rejection.threshold is 1000"),
        ("abstention", "set_alarm", "rejection.abstention is 'set_alarm', wanted str, and none of the classes"),
        ("abstention", -1, "rejection.abstention is -1, wanted str"),
        ("abstention", None, "rejection.abstention is None"),
        ("abstention", ["oos"], r"rejection.abstention is \['oos'\]"),
        ("abstention", "a" * 1_000_000, "rejection.abstention is 'aaa"),
        ("in_scope", -1, "rejection.in_scope is -1, wanted an integer"),
        ("in_scope", True, "rejection.in_scope is True"),
        ("out_of_scope", 1.5, "rejection.out_of_scope is 1.5"),
        ("out_of_scope", 2**63, "rejection.out_of_scope is 9223372036854775808"),
        ("kept", None, "rejection.kept is None, wanted a float in 0..1"),
        ("kept", 1.5, "rejection.kept is 1.5"),
        ("kept", float("nan"), "rejection.kept is nan"),
        ("rejected", -0.1, "rejection.rejected is -0.1, wanted a float in 0..1 or null"),
        ("accuracy", "all", "rejection.accuracy is 'all'"),
        ("auroc", 0.5, "rejection.auroc is 0.5, wanted null or an object"),
        ("auroc", {"energy": 0.5}, "rejection.auroc is"),
        ("auroc", dict.fromkeys(SCORES, 2.0), "rejection.auroc is"),
        ("extra", 1, "rejection has .*'extra'.*, wanted just"),
    ],
)
def test_hostile_fields(folder, key, value, message):
    change(folder, **{key: value})
    refused(folder, message)


@pytest.mark.parametrize("value", [None, [], "oos", 1, {}])
def test_a_rejection_of_another_kind(folder, value):
    values = json.loads((folder / "classifier.json").read_text())
    values["rejection"] = value
    (folder / "classifier.json").write_text(json.dumps(values))
    refused(folder, r"rejection (is|has) .*, wanted (an object|just)")


def test_a_rejection_in_the_version_without_one(folder):
    values = json.loads((folder / "classifier.json").read_text())
    (folder / "classifier.json").write_text(json.dumps(values | {"version": 1}))
    refused(folder, "rejection is there in version 1, wanted version 3")
