"""FewShotClassifier: learning, conventions, and files that cannot be trusted."""

import hashlib
import json
import os
import pickle
import warnings

import numpy as np
import pytest
from fitted_policies import fitted_to
from hash_encoder import LABELS, TEXTS, HashEncoder
from safetensors.numpy import load_file, save

from minitrans import SentenceEncoder
from minitrans.contents import JSON_LIMIT
from minitrans.errors import ClassifierError, DataWarning, InputError, InputTypeError, NotFittedError, PolicyError
from minitrans.fewshot.classifier import FewShotClassifier, label_text


@pytest.fixture
def encoder():
    return HashEncoder()


@pytest.fixture
def fitted(encoder):
    return FewShotClassifier(encoder).fit(TEXTS, LABELS)


# ---------------------------------------------------------------- learning


def test_learns_and_predicts(fitted):
    assert fitted.predict(TEXTS).tolist() == LABELS
    assert fitted.score(TEXTS, LABELS) == 1.0
    assert fitted.predict("has the card come") == "card_arrival"
    assert type(fitted.predict("has the card come")) is str


def test_what_fit_sets(encoder):
    classifier = FewShotClassifier(encoder)
    assert classifier.fit(TEXTS, LABELS) is classifier
    assert classifier.classes_.tolist() == sorted(set(LABELS))
    assert classifier.coef_.shape == (3, 48)
    assert classifier.intercept_.shape == (3,)
    assert classifier.coef_.dtype == classifier.intercept_.dtype == np.float32
    assert classifier.n_features_in_ == 48
    assert classifier.converged_
    assert classifier.encoder_ is encoder
    np.testing.assert_array_equal(classifier.embeddings_, encoder.encode(TEXTS))
    assert classifier.labels_.tolist() == LABELS


def test_probabilities(fitted):
    p = fitted.predict_proba(TEXTS)
    assert p.shape == (9, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (fitted.classes_[p.argmax(axis=1)] == LABELS).all()
    np.testing.assert_array_equal(fitted.predict_proba(TEXTS[4]), p[4])


def test_probabilities_do_not_depend_on_the_neighbours(fitted):
    whole = fitted.predict_proba(TEXTS)
    for count in (1, 2, 5):
        np.testing.assert_array_equal(fitted.predict_proba(TEXTS[:count]), whole[:count])


def test_no_texts_give_no_labels(fitted):
    assert fitted.predict([]).shape == (0,)
    assert fitted.predict_proba([]).shape == (0, 3)
    assert fitted.answer([]) == []


def test_label_names_are_examples(encoder):
    FewShotClassifier(encoder).fit(TEXTS, LABELS)
    assert ["cancel order", "card arrival", "get weather"] in encoder.calls


def test_label_names_make_the_difference_for_an_unseen_word(encoder):
    texts, labels = ["hello there", "so long"], ["greeting", "weather_forecast"]
    with_names = FewShotClassifier(encoder).fit(texts, labels)
    without = FewShotClassifier(encoder, label_names=False).fit(texts, labels)
    asked = "forecast of the weather"
    assert with_names.predict_proba(asked)[1] > without.predict_proba(asked)[1]
    assert without.name_embeddings_ is None


def test_int_labels(encoder):
    labels = [7] * 3 + [-2] * 3 + [40] * 3
    classifier = FewShotClassifier(encoder).fit(TEXTS, labels)
    assert classifier.classes_.tolist() == [-2, 7, 40]
    assert classifier.predict(TEXTS).tolist() == labels
    assert type(classifier.predict(TEXTS[0])) is int
    assert encoder.calls[0] == TEXTS  # and no names
    assert classifier.name_embeddings_ is None


@pytest.mark.parametrize("convert", [np.array, lambda values: np.array(values, dtype=object), tuple, iter])
def test_any_iterable_is_taken(encoder, fitted, convert):
    classifier = FewShotClassifier(encoder).fit(convert(TEXTS), convert(LABELS))
    np.testing.assert_array_equal(classifier.coef_, fitted.coef_)
    assert classifier.predict(convert(TEXTS)).tolist() == LABELS
    assert all(type(text) is str for call in encoder.calls for text in call)


def test_c_matters(encoder, fitted):
    weak = FewShotClassifier(encoder, C=0.01).fit(TEXTS, LABELS)
    assert np.linalg.norm(weak.coef_) < np.linalg.norm(fitted.coef_)


def test_agrees_with_scikit_learn(encoder, fitted):
    linear_model = pytest.importorskip("sklearn.linear_model")
    X = np.vstack([encoder.encode(TEXTS), encoder.encode([label_text(label) for label in fitted.classes_])])
    other = linear_model.LogisticRegression(C=10, tol=1e-8, max_iter=10_000).fit(
        X.astype(np.float64), LABELS + fitted.classes_.tolist()
    )
    asked = [*TEXTS, "an order", "rain"]
    np.testing.assert_allclose(fitted.predict_proba(asked), other.predict_proba(encoder.encode(asked)), atol=2e-3)


# ---------------------------------------------------------------- edges


def test_one_class_has_probability_one(encoder):
    classifier = FewShotClassifier(encoder).fit(TEXTS[:3], ["only"] * 3)
    assert classifier.predict("anything at all") == "only"
    assert classifier.predict_proba(["anything", ""]).tolist() == [[1.0], [1.0]]


def test_duplicates_count(encoder):
    once = FewShotClassifier(encoder, label_names=False).fit(["yes please", "no thanks"], ["yes", "no"])
    often = FewShotClassifier(encoder, label_names=False).fit(["yes please"] * 5 + ["no thanks"], ["yes"] * 5 + ["no"])
    assert often.predict_proba("maybe")[1] > once.predict_proba("maybe")[1]


def test_contradictory_labels_share_the_probability(encoder):
    told = "one text has several labels, which share its probability: 'the same' is 'a' and 'b'"
    with pytest.warns(DataWarning, match=told):
        classifier = FewShotClassifier(encoder, label_names=False).fit(["the same"] * 4, ["a", "a", "a", "b"])
    np.testing.assert_allclose(classifier.predict_proba("the same"), [0.75, 0.25], atol=1e-3)
    with pytest.warns(DataWarning, match="'b' and 'a'"):
        even = FewShotClassifier(encoder, label_names=False).fit(["the same"] * 2, ["b", "a"])
    np.testing.assert_allclose(even.predict_proba("the same"), [0.5, 0.5])


@pytest.mark.parametrize("text", ["", " ", "\u4f60\u597d", "\U0001f44d\U0001f3fd", "\x00\x7f", "a" * 10_000])
def test_any_text_has_a_label(fitted, text):
    assert fitted.predict(text) in LABELS
    assert fitted.predict_proba(text).sum() == pytest.approx(1)


def test_equal_probabilities_take_the_first_class(encoder):
    classifier = FewShotClassifier(encoder, label_names=False).fit(["this", "that"], ["b", "a"])
    classifier.coef_[:], classifier.intercept_[:] = 0, 0
    assert classifier.predict("this") == "a"
    assert classifier.answer(["this"])[0].labels == [("a", 0.5), ("b", 0.5)]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("card_arrival", "card arrival"),
        ("get-weather", "get weather"),
        ("cancelOrder", "cancel order"),
        ("CancelOrder", "cancel order"),
        ("HTTPError2", "http error2"),
        ("B2B_SALES", "b2b sales"),
        ("3DModel", "3d model"),
        ("PDFs", "pdfs"),
        ("Refund_not_showing_up", "refund not showing up"),
        ("100_NIGHT_TRIAL", "100 night trial"),
        ("größeÄndern", "größe ändern"),
        ("two words", "two words"),
        ("__", "__"),
        ("", ""),
    ],
)
def test_words_of_a_label(label, words):
    assert label_text(label) == words


# ---------------------------------------------------------------- adding examples


def same_model(one, other):
    assert one.classes_.tolist() == other.classes_.tolist()
    np.testing.assert_allclose(one.predict_proba(TEXTS), other.predict_proba(TEXTS), atol=1e-3)
    np.testing.assert_array_equal(one.embeddings_, other.embeddings_)
    assert one.labels_.tolist() == other.labels_.tolist()


@pytest.mark.parametrize("names", [{label: label for label in LABELS}, dict(zip(LABELS[::3], [5, 1, 9], strict=True))])
@pytest.mark.parametrize("label_names", [True, False])
@pytest.mark.parametrize("first", [2, 8])
def test_partial_fit_and_remove_equal_a_fit_on_all(encoder, first, label_names, names):
    # Taken in turn, the classes come in at different times and not in their order.
    order = [6, 0, 3, 7, 1, 4, 8, 2, 5]
    texts, labels = [TEXTS[i] for i in order], [names[LABELS[i]] for i in order]
    options = {"label_names": label_names}
    whole = FewShotClassifier(encoder, **options).fit(texts, labels)
    parts = FewShotClassifier(encoder, **options).fit(texts[:first], labels[:first])
    assert parts.partial_fit(texts[first:], labels[first:]) is parts
    same_model(parts, whole)
    encoder.calls.clear()
    assert parts.remove(texts[first:], labels[first:]) is parts
    assert encoder.calls == []
    same_model(parts, FewShotClassifier(encoder, **options).fit(texts[:first], labels[:first]))
    assert parts.texts_ == texts[:first]


@pytest.mark.filterwarnings("ignore::minitrans.errors.DataWarning")
def test_which_examples_are_removed(encoder):
    texts, labels = ["a", "b", "b", "b", "c"], ["x", "x", "y", "y", "z"]
    by_label = FewShotClassifier(encoder).fit(texts, labels).remove(["b"], ["y"])
    assert list(zip(by_label.texts_, by_label.labels_, strict=True)) == [("a", "x"), ("b", "x"), ("c", "z")]
    assert by_label.classes_.tolist() == ["x", "z"]
    assert FewShotClassifier(encoder).fit(texts, labels).remove(["b"]).texts_ == ["a", "c"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["nowhere"],), InputError, "'nowhere' is no example, wanted one of fit"),
        ((TEXTS[:1], LABELS[-1:]), InputError, "is no example"),
        ((TEXTS,), InputError, "9 of 9 examples would go"),
        ((TEXTS[:1], [5]), InputTypeError, "wanted the kind of the classes"),
        (("a text",), InputTypeError, "texts is a str"),
    ],
)
def test_examples_that_cannot_be_removed(fitted, arguments, error, message):
    before = pickle.dumps(vars(fitted))
    with pytest.raises(error, match=message):
        fitted.remove(*arguments)
    assert pickle.dumps(vars(fitted)) == before


def test_examples_without_texts_cannot_be_removed(encoder):
    arrays = FewShotClassifier(encoder).fit_embeddings(encoder.encode(TEXTS), LABELS)
    with pytest.raises(InputError, match=r"were not kept, wanted all of them; fit_embeddings on"):
        arrays.remove(TEXTS[:1])


def test_first_partial_fit_is_fit(encoder, fitted):
    np.testing.assert_array_equal(FewShotClassifier(encoder).partial_fit(TEXTS, LABELS).coef_, fitted.coef_)


def test_partial_fit_encodes_only_what_is_new(encoder, fitted):
    encoder.calls.clear()
    fitted.partial_fit(["good morning", "and another card"], ["say_hello", "card_arrival"])
    assert encoder.calls == [["good morning", "and another card"], ["say hello"]]


def test_partial_fit_takes_the_present_parameters(encoder, fitted):
    fitted.set_params(C=0.1, label_names=False).partial_fit(["good morning"], ["hello"])
    whole = FewShotClassifier(encoder, C=0.1, label_names=False).fit([*TEXTS, "good morning"], [*LABELS, "hello"])
    same_model(fitted, whole)
    fitted.set_params(label_names=True).partial_fit(["good evening"], ["hello"])
    assert fitted.name_embeddings_.shape == (4, 48)


@pytest.mark.parametrize(("texts", "labels"), [([3], ["a"]), (["x"], [1]), (["x"], ["a", "b"]), ([], [])])
def test_a_failed_partial_fit_changes_nothing(fitted, texts, labels):
    before = pickle.dumps(vars(fitted))
    with pytest.raises((InputError, InputTypeError)):
        fitted.partial_fit(texts, labels)
    assert pickle.dumps(vars(fitted)) == before


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("calibrated", [True, False])
def test_embeddings_say_what_their_texts_say(encoder, fitted, calibrated):
    rows, beyond = encoder.encode(TEXTS), ["zzz zzz", "qqq"]
    arrays = FewShotClassifier(encoder).fit_embeddings(rows, LABELS)
    if calibrated:
        fitted.calibrate_rejection(TEXTS, LABELS, out_of_scope=beyond)
        arrays.calibrate_rejection_embeddings(rows, LABELS, out_of_scope=encoder.encode(beyond))
    np.testing.assert_array_equal(arrays.coef_, fitted.coef_)
    assert arrays.rejection_ == fitted.rejection_
    asked = [*TEXTS, *beyond]
    for name, arguments in (("predict", ()), ("predict_proba", ()), ("score_in_scope", ()), ("answer", (2,))):
        said = getattr(fitted, name)(asked, *arguments)
        assert list(map(str, getattr(arrays, f"{name}_embeddings")(encoder.encode(asked), *arguments))) == [
            *map(str, said)
        ]


def test_answers(fitted):
    answers = fitted.answer(TEXTS, 2)
    assert [len(answer.labels) for answer in answers] == [2] * 9
    assert [answer.labels[0][0] for answer in answers] == [answer.label for answer in answers] == LABELS
    assert all(answer.labels[0][1] >= answer.labels[1][1] for answer in answers)
    json.dumps([answer.to_dict() for answer in answers])  # plain str and float
    assert len(fitted.answer(TEXTS[:1], 99)[0].labels) == 3


@pytest.mark.parametrize("top", [0, -1, 1.5, "2", True])
def test_how_many_labels_an_answer_may_have(fitted, top):
    with pytest.raises(InputError, match="top is"):
        fitted.answer(TEXTS, top)


def test_embeddings_and_names_need_no_encoder(encoder, fitted):
    names = encoder.encode([label_text(label) for label in fitted.classes_])
    arrays = FewShotClassifier().fit_embeddings(encoder.encode(TEXTS), LABELS, names)
    np.testing.assert_array_equal(arrays.coef_, fitted.coef_)
    assert arrays.encoder_ is None


def test_embeddings_are_copied(encoder):
    rows = encoder.encode(TEXTS)
    classifier = FewShotClassifier(encoder).fit_embeddings(rows, LABELS)
    rows[:] = 0
    assert classifier.embeddings_.any()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones(3), r"embeddings: shape \(3,\)"),
        (np.ones((2, 3)), "3 wide, wanted 48"),
        (np.full((1, 48), np.nan), "row 0 holds NaN"),
        (np.full((1, 48), 1e60), "row 0 holds NaN or infinity, wanted finite"),
        ([["a"]], "wanted numbers"),
    ],
)
def test_embeddings_that_do_not_fit(fitted, rows, message):
    with pytest.raises(InputError, match=message):
        fitted.predict_proba_embeddings(rows)


def test_names_that_do_not_fit(encoder):
    with pytest.raises(InputError, match=r"shape \(2, 48\), wanted \(3, 48\)"):
        FewShotClassifier(encoder).fit_embeddings(encoder.encode(TEXTS), LABELS, np.ones((2, 48)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.ones((1, 8), np.float32), "returned 1 embeddings, wanted 9"),
        (np.ones(9, np.float32), r"shape \(9,\)"),
        (np.full((9, 8), np.nan, np.float32), "row 0 holds NaN"),
    ],
)
def test_an_encoder_that_misbehaves(answer, message):
    class Broken:
        def encode(self, texts):
            return answer

    with pytest.raises(InputError, match=message):
        FewShotClassifier(Broken()).fit(TEXTS, LABELS)


# ---------------------------------------------------------------- refused input


@pytest.mark.parametrize("method", ["fit", "partial_fit", "score"])
@pytest.mark.parametrize(
    ("texts", "labels", "error", "message"),
    [
        ("a text", ["a"], InputTypeError, "texts is a str, wanted a list"),
        (b"a text", ["a"], InputTypeError, "texts is a bytes"),
        ({"a": 1}, ["a"], InputTypeError, "texts is a dict"),
        (5, ["a"], InputTypeError, "texts is a int"),
        (np.array([["a", "b"]]), ["a"], InputTypeError, "texts has 2 dimensions"),
        (["a", 5], ["a", "b"], InputTypeError, "text 1 is 5 of type int, wanted str"),
        (["a", None], ["a", "b"], InputTypeError, "text 1 is None of type NoneType"),
        (["a"], "a", InputTypeError, "labels is a str"),
        (["a", "b"], ["a", None], InputTypeError, "label 1 is None of type NoneType"),
        (["a", "b"], ["a", float("nan")], InputTypeError, "label 1 is nan of type float"),
        (["a", "b"], [True, False], InputTypeError, "label 0 is True of type bool"),
        (["a", "b"], ["a", 1], InputTypeError, "label 1 is 1 of type int, but label 0 is 'a'"),
        (["a", "b"], [1, "a"], InputTypeError, "label 1 is 'a' of type str, but label 0 is 1"),
        (["a"], ["a\0"], InputError, "wanted a str without NUL"),
        (["a"], [2**63], InputError, "an integer of 64 bits"),
        (["a", "b"], ["a"], InputError, "2 texts and 1 labels"),
        (["a"], ["a", "b"], InputError, "1 texts and 2 labels"),
        ([], [], InputError, "0 texts and 0 labels, wanted .* at least one"),
    ],
)
def test_refused_examples(encoder, fitted, method, texts, labels, error, message):
    classifier = FewShotClassifier(encoder) if method == "fit" else fitted
    with pytest.raises(error, match=message):
        getattr(classifier, method)(texts, labels)


@pytest.mark.parametrize("method", ["partial_fit", "score"])
def test_labels_of_another_kind_than_before(fitted, method):
    with pytest.raises(InputTypeError, match=r"label 0 is .*1.*, wanted the kind of the classes, as .*cancelOrder"):
        getattr(fitted, method)(["a"], [1])


@pytest.mark.parametrize("C", [0, -1.0, float("nan"), float("inf"), "10", None, 10**400, True, np.array([1.0, 2.0])])
def test_c_is_checked_at_fit(encoder, C):
    classifier = FewShotClassifier(encoder, C=C)
    assert classifier.C is C
    with pytest.raises(InputError, match="C is"):
        classifier.fit(TEXTS, LABELS)


@pytest.mark.parametrize("C", [np.float16(2), np.float32(2), np.int8(2), 2])
def test_numbers_of_numpy_are_numbers(encoder, C):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = FewShotClassifier(encoder, C=C).fit(TEXTS, LABELS)
    assert np.array_equal(classifier.coef_, FewShotClassifier(encoder, C=2.0).fit(TEXTS, LABELS).coef_)


@pytest.mark.parametrize("value", ["false", 0, None, np.array([True, False])])
def test_label_names_is_a_flag(encoder, value):
    with pytest.raises(InputError, match=r"label_names is .*, wanted True or False"):
        FewShotClassifier(encoder, label_names=value).fit(TEXTS, LABELS)


@pytest.mark.parametrize(("name", "value"), [("C", "10"), ("C", 10**400), ("label_names", "no")])
def test_parameters_are_checked_when_saved(encoder, tmp_path, name, value):
    fitted = FewShotClassifier(encoder).fit(TEXTS, LABELS).set_params(**{name: value})
    with pytest.raises(InputError, match=f"{name} is"):
        fitted.save(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["predict", "predict_proba", "answer"])
@pytest.mark.parametrize(("texts", "seen"), [([1], "text 0 is 1"), (None, "texts is a NoneType"), (b"x", "a bytes")])
def test_refused_texts(fitted, method, texts, seen):
    with pytest.raises(InputTypeError, match=seen):
        getattr(fitted, method)(texts)


@pytest.mark.parametrize(
    "use",
    [
        lambda c, folder: c.predict(["a"]),
        lambda c, folder: c.predict("a"),
        lambda c, folder: c.predict([]),
        lambda c, folder: c.predict_proba(["a"]),
        lambda c, folder: c.predict_embeddings(np.ones((1, 48))),
        lambda c, folder: c.calibrate_rejection(),
        lambda c, folder: c.calibrate_rejection_embeddings(np.ones((1, 48))),
        lambda c, folder: c.score_in_scope("a"),
        lambda c, folder: c.score_in_scope_embeddings(np.ones((1, 48))),
        lambda c, folder: c.answer(["a"]),
        lambda c, folder: c.answer_embeddings(np.ones((1, 48))),
        lambda c, folder: c.remove(["a"]),
        lambda c, folder: c.score(["a"], ["a"]),
        lambda c, folder: c.save(folder / "x"),
    ],
)
def test_not_fitted(encoder, tmp_path, use):
    with pytest.raises(NotFittedError, match=r"call fit\(texts, labels\)"):
        use(FewShotClassifier(encoder), tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- scikit-learn's conventions


def test_parameters(encoder):
    classifier = FewShotClassifier(encoder, C=3.0, label_names=False)
    assert classifier.get_params() == {"encoder": encoder, "C": 3.0, "label_names": False}
    assert classifier.set_params(C=4.0) is classifier
    assert classifier.C == 4.0
    with pytest.raises(InputError, match="'penalty' is no parameter, wanted some of encoder, C, label_names"):
        classifier.set_params(penalty="l1", C=5.0)
    assert classifier.C == 4.0


def test_repr(encoder):
    encoder.__class__.__repr__ = lambda self: "<hash>"
    try:
        assert repr(FewShotClassifier(encoder, C=2)) == "FewShotClassifier(<hash>, C=2, label_names=True)"
        assert repr(FewShotClassifier()) == "FewShotClassifier(None, C=10.0, label_names=True)"
    finally:
        del encoder.__class__.__repr__


def test_clone(fitted):
    sklearn = pytest.importorskip("sklearn")
    again = sklearn.clone(fitted)
    assert again.get_params() == fitted.get_params()
    assert again.encoder is fitted.encoder
    assert not hasattr(again, "coef_")


def test_it_is_a_classifier(encoder):
    base = pytest.importorskip("sklearn.base")
    assert base.is_classifier(FewShotClassifier(encoder))


def test_tags(encoder):
    utils = pytest.importorskip("sklearn.utils")
    if not hasattr(utils, "get_tags"):
        pytest.skip("scikit-learn before 1.6 has no such tags")
    tags = utils.get_tags(FewShotClassifier(encoder))
    assert tags.estimator_type == "classifier"
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert tags.target_tags.required


def test_check_is_fitted(encoder, fitted):
    validation = pytest.importorskip("sklearn.utils.validation")
    exceptions = pytest.importorskip("sklearn.exceptions")
    validation.check_is_fitted(fitted)
    with pytest.raises(exceptions.NotFittedError):
        validation.check_is_fitted(FewShotClassifier(encoder))


@pytest.mark.parametrize("convert", [list, np.array])
def test_cross_validation(encoder, convert):
    selection = pytest.importorskip("sklearn.model_selection")
    scores = selection.cross_val_score(FewShotClassifier(encoder), convert(TEXTS), convert(LABELS), cv=3)
    assert scores.shape == (3,)
    assert scores.mean() > 0.5
    p = selection.cross_val_predict(FewShotClassifier(encoder), TEXTS, LABELS, cv=3, method="predict_proba")
    assert p.shape == (9, 3)


def test_grid_search(encoder):
    selection = pytest.importorskip("sklearn.model_selection")
    grid = {"C": [0.1, 10.0], "label_names": [True, False]}
    search = selection.GridSearchCV(FewShotClassifier(encoder), grid, cv=3).fit(TEXTS, LABELS)
    assert search.best_params_["C"] in grid["C"]
    assert search.predict(TEXTS).tolist() == LABELS


def test_pipeline(encoder):
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    lower = preprocessing.FunctionTransformer(lambda texts: [text.lower() for text in texts])
    model = pipeline.make_pipeline(lower, FewShotClassifier(encoder))
    model.fit([text.upper() for text in TEXTS], LABELS)
    assert model.predict([text.title() for text in TEXTS]).tolist() == LABELS
    assert model.predict_proba(TEXTS).shape == (9, 3)
    assert model.score(TEXTS, LABELS) == 1.0
    assert model.classes_.tolist() == sorted(set(LABELS))


# ---------------------------------------------------------------- the encoder by default


def test_default_encoder_is_made_when_needed(monkeypatch, encoder):
    monkeypatch.setattr("minitrans.sentences.sentence_encoder.SentenceEncoder", {None: encoder}.__getitem__)
    classifier = FewShotClassifier()
    assert classifier.encoder is None
    classifier.fit(TEXTS, LABELS)
    assert classifier.encoder is None
    assert classifier.encoder_ is encoder
    late = FewShotClassifier(label_names=False).fit_embeddings(encoder.encode(TEXTS), LABELS)
    assert late.encoder_ is None
    assert late.predict(TEXTS[0]) == LABELS[0]
    assert late.encoder_ is encoder


# ---------------------------------------------------------------- files


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    return tmp_path / "saved"


def arrays_of(folder):
    """The file of the arrays that the JSON file names."""
    digest = json.loads((folder / "classifier.json").read_text())["tensors"]
    return folder / f"classifier-{digest[:16]}.safetensors"


def write_arrays(folder, data):
    """Other arrays, with the digest that makes them the classifier's."""
    arrays_of(folder).unlink()
    edit(folder, lambda values: values.update(tensors=hashlib.sha256(data).hexdigest()))
    arrays_of(folder).write_bytes(data)


def test_round_trip(fitted, folder, encoder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(["classifier.json", arrays_of(folder).name])
    again = FewShotClassifier.load(folder, encoder)
    assert again.get_params() == fitted.get_params()
    np.testing.assert_array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    for name in ("classes_", "coef_", "intercept_", "embeddings_", "labels_", "name_embeddings_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted, name))
        assert getattr(again, name).dtype == getattr(fitted, name).dtype
    assert again.n_features_in_ == 48
    assert again.converged_


@pytest.mark.parametrize("labels", [[3] * 4 + [-1] * 5, ["ä\u2028b"] * 4 + ["\ud800"] * 5, ["one"] * 9])
@pytest.mark.parametrize("label_names", [True, False])
def test_round_trip_of_labels(encoder, tmp_path, labels, label_names):
    classifier = FewShotClassifier(encoder, C=2, label_names=label_names).fit(TEXTS, labels)
    classifier.save(tmp_path / "saved")
    again = FewShotClassifier.load(str(tmp_path / "saved"), encoder)
    assert again.predict(TEXTS).tolist() == classifier.predict(TEXTS).tolist()
    assert again.labels_.tolist() == labels
    assert (again.C, again.label_names) == (2.0, label_names)


def test_what_the_json_says(folder):
    values = json.loads((folder / "classifier.json").read_text())
    assert values == {
        "format": "minitrans-classifier",
        "version": 3,
        "tensors": hashlib.sha256(arrays_of(folder).read_bytes()).hexdigest(),
        "label_kind": "str",
        "classes": ["cancelOrder", "card_arrival", "get-weather"],
        "C": 10.0,
        "label_names": True,
        "converged": True,
        "encoder": {"name_or_path": "hash", "precision": "float32", "identity": "ab" * 32, "pruning": None},
        "texts": TEXTS,
    }


def test_texts_are_kept_as_long_as_all_are_known(encoder, tmp_path):
    classifier = FewShotClassifier(encoder).fit(TEXTS[:7], LABELS[:7])
    assert classifier.texts_ == TEXTS[:7]
    assert classifier.partial_fit(TEXTS[7:], LABELS[7:]).texts_ == TEXTS
    classifier.save(tmp_path / "with")
    assert FewShotClassifier.load(tmp_path / "with", encoder).texts_ == TEXTS
    classifier.save(tmp_path / "without", keep_texts=False)
    again = FewShotClassifier.load(tmp_path / "without", encoder)
    same_model(again, classifier)
    assert again.texts_ is None
    assert again.partial_fit(["one more"], LABELS[:1]).texts_ is None
    assert FewShotClassifier(encoder).fit_embeddings(encoder.encode(TEXTS), LABELS).texts_ is None


def test_texts_too_long_to_be_kept_leave_what_was_there(encoder, tmp_path, monkeypatch):
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)
    classifier.save(tmp_path / "saved")
    before = (tmp_path / "saved" / "classifier.json").read_bytes()
    monkeypatch.setattr("minitrans.fewshot.saved.JSON_LIMIT", len(before) - 1)
    with pytest.raises(InputError, match="keep_texts=False"):
        classifier.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "classifier.json").read_bytes() == before
    classifier.save(tmp_path / "saved", keep_texts=False)


def test_an_encoder_without_identity(tmp_path, encoder):
    class Plain:
        encode = staticmethod(encoder.encode)

    FewShotClassifier(Plain()).fit(TEXTS, LABELS).save(tmp_path / "saved")
    assert FewShotClassifier.load(tmp_path / "saved", encoder).predict(TEXTS).tolist() == LABELS
    with pytest.raises(ClassifierError, match=r"does not identify its encoder, .*pass load\(folder, encoder\)"):
        FewShotClassifier.load(tmp_path / "saved")


def test_another_model_is_refused(folder):
    other = HashEncoder()
    other.identity = "cd" * 32
    with pytest.raises(ClassifierError, match=f"hash is {'cd' * 32}, wanted {'ab' * 32}, the encoder 'hash' of fit"):
        FewShotClassifier.load(folder, other)


def test_load_makes_the_encoder_that_was_saved(monkeypatch, tmp_path, encoder):
    import minitrans.encoder.policy
    import minitrans.sentences.sentence_encoder

    class Policy:
        fitted = None

        def to_dict(self):
            return {"layer": 1}

        @classmethod
        def from_dict(cls, values, source, arrays):
            assert arrays is None
            if values != {"layer": 1}:
                raise PolicyError(f"{source}: unknown fields")
            return ("policy", values["layer"])

    made = []

    def build(*args, **kwargs):
        made.append((args, kwargs))
        return encoder

    monkeypatch.setattr(minitrans.sentences.sentence_encoder, "SentenceEncoder", build)
    monkeypatch.setattr(minitrans.encoder.policy, "PruningPolicy", Policy)
    encoder.pruning, encoder.precision = Policy(), "int8"
    FewShotClassifier(encoder).fit(TEXTS, LABELS).save(tmp_path / "saved")
    assert FewShotClassifier.load(tmp_path / "saved").encoder is encoder
    assert made == [(("hash",), {"pruning": ("policy", 1), "precision": "int8", "local_files_only": False})]

    edit(tmp_path / "saved", lambda values: values["encoder"].update(pruning={"layer": 2}))
    with pytest.raises(ClassifierError, match=r"classifier.json: unknown fields; pass load\(folder, encoder\)"):
        FewShotClassifier.load(tmp_path / "saved")


def test_save_replaces_a_classifier(folder, encoder):
    FewShotClassifier(encoder).fit(TEXTS[:6], LABELS[:6]).save(folder)
    assert len(FewShotClassifier.load(folder, encoder).classes_) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_save_makes_parents_and_takes_an_empty_folder(fitted, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b"):
        fitted.save(place)
        assert (place / "classifier.json").is_file()


def test_save_refuses_a_folder_with_anything_else(fitted, folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes.txt, wanted a new folder.*name another"):
        fitted.save(folder)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fails_at", ["safetensors.numpy.save", "pathlib.Path.write_bytes", "pathlib.Path.replace"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_save_leaves_nothing_half_written(monkeypatch, encoder, tmp_path, fails_at, exists):
    target = tmp_path / "saved"
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)
    if exists:
        FewShotClassifier(encoder).fit(TEXTS[:6], LABELS[:6]).save(target)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(fails_at, fail)
    with pytest.raises(OSError, match="disk full"):
        classifier.save(target)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert target.exists() == exists


def edit(folder, change):
    """Change the JSON by a function of its values."""
    values = json.loads((folder / "classifier.json").read_text())
    change(values)
    (folder / "classifier.json").write_text(json.dumps(values))


def refused(folder, message):
    with pytest.raises(ClassifierError, match=message) as caught:
        FewShotClassifier.load(folder, HashEncoder())
    assert str(folder) in str(caught.value)
    assert "wanted" in str(caught.value)


def emptied(path):
    path.unlink()
    path.mkdir()


def led_away(path):
    path.symlink_to(path.rename(path.parents[1] / "elsewhere"))


def in_a_circle(path):
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("find", [lambda folder: folder / "classifier.json", arrays_of], ids=["JSON", "arrays"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (emptied, "no such file"),
        (in_a_circle, "no such file"),
        (led_away, "it leads to .*elsewhere, wanted a file in the folder"),
    ],
)
def test_files_that_are_none(folder, find, damage, message):
    path = find(folder)
    damage(path)
    refused(folder, f"{path.name}: {message}")


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", "no such file")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"{'a': 1}", b"[" * 200_000, b'{"C": ' + b"1" * 10_000 + b"}", b"[1, 2]"],
    ids=["empty", "cut", "not UTF-8", "not JSON", "nested", "a huge number", "a list"],
)
def test_not_json(folder, content):
    (folder / "classifier.json").write_bytes(content)
    refused(folder, "is not valid JSON|format is None|a JSON list, wanted a dict")


def test_huge_json(folder):
    os.truncate(folder / "classifier.json", JSON_LIMIT + 1)
    refused(folder, f"{JSON_LIMIT + 1} bytes, wanted at most {JSON_LIMIT}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "something-else", "format is 'something-else', wanted 'minitrans-classifier'"),
        ("format", None, "format is None"),
        ("version", 2, "rejection is None, wanted an object"),
        ("version", 4, "version is 4, wanted 1 to 3"),
        ("version", 0, "version is 0, wanted 1 to 3"),
        ("rejection", {}, "rejection has .*, wanted just"),
        ("rejection", None, "rejection is None, wanted an object"),
        ("tensors", None, "tensors is None, wanted a sha256"),
        ("tensors", "../" * 21 + "a", "tensors is .*, wanted a sha256"),
        ("version", True, "version is True"),
        ("version", "1", "version is '1'"),
        ("label_kind", "float", "label_kind is 'float', wanted 'str' or 'int'"),
        ("label_kind", ["str"], "label_kind is "),
        ("label_kind", "int", "a class is 'cancelOrder', wanted int"),
        ("classes", "abc", "classes is 'abc', wanted a list"),
        ("classes", [], "wanted a list of at least one"),
        ("classes", ["a", 1, "c"], "a class is 1, wanted str"),
        ("classes", ["a", None, "c"], "a class is None"),
        ("classes", ["a" * 1_000_000, "b", "c"], "a class is 'aaa.*, wanted str"),
        ("classes", ["a", "b\0", "c"], "a class is 'b.*wanted str"),
        ("classes", ["a", "a", "c"], "'a' comes after 'a', wanted classes sorted, each once"),
        ("classes", ["b", "a", "c"], "'a' comes after 'b'"),
        ("classes", ["a", "b"], r"is \('F32', \(3,.*wanted F32 \(2,"),
        ("C", 0.0, "C is 0.0, wanted a finite float above 0"),
        ("C", -1.0, "C is -1.0"),
        ("C", float("nan"), "C is nan"),
        ("C", float("inf"), "C is inf"),
        ("C", "10", "C is '10'"),
        ("label_names", 1, "label_names is 1, wanted true or false"),
        ("converged", "yes", "converged is 'yes'"),
        ("encoder", "hash", "encoder is 'hash', wanted an object"),
        ("encoder", {"name_or_path": 5}, "encoder.name_or_path is 5, wanted str or null"),
        ("encoder", {"identity": ["ab"]}, "encoder.identity is"),
        ("encoder", {"identity": {"weights": "ab"}}, "an encoder's identity is .* wanted an object of weights"),
        ("encoder", {"path": 5}, "encoder.path is 5, wanted str or null"),
        ("encoder", {"precision": 8}, "encoder.precision is 8"),
        ("encoder", {"pruning": "all"}, "encoder.pruning is 'all', wanted dict or null"),
        ("texts", "abc", f"texts is 'abc', wanted {len(TEXTS)} texts"),
        ("texts", ["a"], f"texts is .* wanted {len(TEXTS)} texts, as many as there are examples"),
        ("texts", [*TEXTS[1:], 5], "texts is"),
    ],
)
def test_json_with_wrong_values(folder, key, value, message):
    edit(folder, lambda values: values.update({key: value}))
    refused(folder, message)


@pytest.mark.parametrize(
    "key", ["format", "version", "label_kind", "classes", "C", "label_names", "converged", "encoder"]
)
def test_json_with_a_field_missing(folder, key):
    edit(folder, lambda values: values.pop(key))
    refused(folder, f"{key} is None")


def with_value(array, value):
    array = array.copy()
    array.flat[0] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("coef"), "coef is missing"),
        (lambda t: t.pop("intercept"), "intercept is missing"),
        (lambda t: t.pop("embeddings"), "embeddings is missing"),
        (lambda t: t.pop("codes"), "codes is missing"),
        (lambda t: t.update(extra=np.ones(1)), "there is a tensor 'extra', wanted only"),
        (lambda t: t.update(coef=t["coef"].astype(np.float64)), r"coef is \('F64'.*wanted F32 \(3, 48\)"),
        (lambda t: t.update(coef=t["coef"].astype(np.float16)), r"coef is \('F16'"),
        (lambda t: t.update(codes=t["codes"].astype(np.int32)), r"codes is \('I32'.*wanted I64 \(9,\)"),
        (lambda t: t.update(coef=t["coef"][:, :5].copy()), r"embeddings is .*\(9, 48\).*wanted F32 \(9, 5\)"),
        (lambda t: t.update(coef=t["coef"].ravel()), r"coef is .*\(144,\)"),
        (lambda t: t.update(coef=t["coef"][0].copy()), r"coef is .*\(48,\)"),
        (lambda t: t.update(intercept=t["intercept"][:2].copy()), r"intercept is .*\(2,\).*wanted F32 \(3,\)"),
        (lambda t: t.update(embeddings=t["embeddings"][:4].copy()), r"embeddings is .*\(4, 48\).*wanted F32 \(9, 48\)"),
        (lambda t: t.update(embeddings=t["embeddings"].ravel()), r"embeddings is .*\(432,\).*wanted F32 \(9, 48\)"),
        (lambda t: t.update(names=t["names"][:1].copy()), r"names is .*\(1, 48\).*wanted F32 \(3, 48\)"),
        (lambda t: t.update(embeddings=t["embeddings"][:0], codes=t["codes"][:0]), "wanted"),
        (lambda t: t.update(coef=with_value(t["coef"], np.nan)), "coef holds NaN or infinity"),
        (lambda t: t.update(intercept=with_value(t["intercept"], np.inf)), "intercept holds NaN or infinity"),
        (lambda t: t.update(embeddings=with_value(t["embeddings"], -np.inf)), "embeddings holds NaN"),
        (lambda t: t.update(names=with_value(t["names"], np.nan)), "names holds NaN"),
        (lambda t: t.update(codes=with_value(t["codes"], 3)), r"codes holds .*wanted each of 0..2"),
        (lambda t: t.update(codes=with_value(t["codes"], -1)), "codes holds"),
        (lambda t: t.update(codes=np.zeros_like(t["codes"])), "codes holds"),
    ],
)
def test_wrong_tensors(folder, change, message):
    tensors = load_file(arrays_of(folder))
    change(tensors)
    write_arrays(folder, save(tensors))
    refused(folder, message)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:-4],
        lambda data: data + b"more",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: data[:8] + b"\xff" + data[9:],
    ],
    ids=["empty", "no header", "cut", "longer", "huge header", "no JSON", "no UTF-8"],
)
def test_broken_safetensors(folder, damage):
    data = damage(arrays_of(folder).read_bytes())
    write_arrays(folder, data)
    refused(folder, "classifier-.*safetensors is not safetensors")


def test_arrays_of_another_digest(folder):
    data = arrays_of(folder).read_bytes()
    arrays_of(folder).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(folder, f"its sha256 is .*, wanted {hashlib.sha256(data).hexdigest()}")


def test_a_label_of_any_length_would_cost_memory_for_all(encoder):
    with pytest.raises(InputError, match="at most 1000 characters"):
        FewShotClassifier(encoder).fit(TEXTS, ["x" * 1001, *LABELS[1:]])


def test_a_fitted_policy_is_saved_with_the_classifier(tmp_path):
    encoder = SentenceEncoder(threads=1)
    policy = fitted_to(encoder, score="learned", reduce="restore", max_turn=20)
    encoder = SentenceEncoder(pruning=policy, threads=1)
    texts, labels = ["where is my parcel", "track my order", "play some jazz", "put on a song"], ["a", "a", "b", "b"]
    classifier = FewShotClassifier(encoder).fit(texts, labels)
    classifier.save(tmp_path / "clf")
    loaded = FewShotClassifier.load(tmp_path / "clf", local_files_only=True)
    assert loaded.encoder_.pruning == policy
    assert np.array_equal(loaded.predict_proba(texts), classifier.predict_proba(texts))
    arrays = tmp_path / "clf" / f"pruning-{policy.fitted.sha256[:16]}.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ClassifierError, match="sha256"):
        FewShotClassifier.load(tmp_path / "clf")
    arrays.unlink()
    with pytest.raises(ClassifierError, match=r"pruning-.*\.safetensors: no such file"):
        FewShotClassifier.load(tmp_path / "clf")
    FewShotClassifier(SentenceEncoder(threads=1)).fit(texts, labels).save(tmp_path / "clf")  # replaces all files
    assert len(list((tmp_path / "clf").iterdir())) == 2
