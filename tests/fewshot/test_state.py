"""A classifier's state is swapped whole, and its encoder is the one of fit, wherever that lies now."""

import json
import pickle
import shutil

import numpy as np
import pytest
from hash_encoder import LABELS, TEXTS, HashEncoder
from random_models import edit_json

from minitrans import SentenceEncoder
from minitrans.errors import ClassifierError, InputError, InputTypeError, ModelNotFoundError, NotFittedError
from minitrans.fewshot.classifier import FewShotClassifier

OTHER = ["good morning", "good evening", "farewell", "see you"]
OTHER_LABELS = ["hello", "hello", "bye", "bye"]
ATTRIBUTES = [
    "classes_",
    "coef_",
    "intercept_",
    "n_features_in_",
    "converged_",
    "encoder_",
    "embeddings_",
    "codes_",
    "labels_",
    "texts_",
    "name_embeddings_",
]


class Interrupted(HashEncoder):
    """Runs an action once, in the middle of a call: what another thread, a signal or a callback may do there."""

    action = None

    def encode(self, texts):
        action, self.action = self.action, None
        if action is not None:
            action()
        return super().encode(texts)


@pytest.fixture
def encoder():
    return Interrupted()


def same(one, other):
    for name in set(ATTRIBUTES) - {"encoder_"}:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.rejection_ == other.rejection_


# ---------------------------------------------------------------- one state


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.predict(TEXTS).tolist(),
        lambda c: c.predict(TEXTS[0]),
        lambda c: c.predict_proba(TEXTS).tolist(),
        lambda c: c.answer(TEXTS),
        lambda c: c.score_in_scope(TEXTS).tolist(),
        lambda c: c.score(TEXTS, LABELS),
    ],
)
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_call_uses_what_was_learned_when_it_began(encoder, ask, calibrated):
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)
    if calibrated:
        classifier.calibrate_rejection()
    wanted = ask(classifier)
    encoder.action = lambda: classifier.fit_embeddings(HashEncoder(5).encode(OTHER), OTHER_LABELS, np.ones((2, 5)))
    assert ask(classifier) == wanted
    assert classifier.classes_.tolist() == ["bye", "hello"]


def test_a_save_is_of_one_state(encoder, tmp_path):
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)

    class Late(str):
        def __fspath__(self):
            classifier.fit(OTHER, OTHER_LABELS)
            return str(self)

    classifier.save(Late(tmp_path / "saved"))
    same(FewShotClassifier.load(tmp_path / "saved", encoder), FewShotClassifier(encoder).fit(TEXTS, LABELS))


def test_two_partial_fits_at_once_lose_nothing(encoder):
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)
    encoder.action = lambda: classifier.partial_fit(OTHER[:2], OTHER_LABELS[:2])
    classifier.partial_fit(OTHER[2:], OTHER_LABELS[2:])
    assert classifier.texts_ == [*TEXTS, *OTHER]
    assert classifier.classes_.tolist() == sorted({*LABELS, *OTHER_LABELS})
    assert classifier.predict([*TEXTS, *OTHER]).tolist() == [*LABELS, *OTHER_LABELS]


def test_the_first_partial_fits_at_once_lose_nothing(encoder):
    classifier = FewShotClassifier(encoder)
    encoder.action = lambda: classifier.partial_fit(OTHER[:3], OTHER_LABELS[:3])
    classifier.partial_fit(OTHER[3:], OTHER_LABELS[3:])
    assert classifier.texts_ == OTHER


def test_a_fit_during_a_partial_fit_counts(encoder):
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)
    encoder.action = lambda: classifier.fit(OTHER[:3], OTHER_LABELS[:3])
    classifier.partial_fit(OTHER[3:], OTHER_LABELS[3:])
    assert classifier.texts_ == OTHER


def test_a_threshold_is_never_that_of_other_weights(encoder):
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)
    encoder.action = lambda: classifier.fit(OTHER, OTHER_LABELS)
    classifier.calibrate_rejection(out_of_scope=["what now"])
    whole = FewShotClassifier(encoder).fit(OTHER, OTHER_LABELS).calibrate_rejection(out_of_scope=["what now"])
    assert classifier.rejection_ == whole.rejection_


def test_a_calibration_after_another_fit_meanwhile(encoder):
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)
    encoder.action = lambda: classifier.fit(OTHER, OTHER_LABELS)
    with pytest.raises(InputError, match="is no class"):
        classifier.calibrate_rejection(iter(TEXTS), iter(LABELS))
    assert classifier.rejection_ is None


def test_labels_for_a_calibration_may_come_once(encoder):
    one = FewShotClassifier(encoder).fit(TEXTS, LABELS).calibrate_rejection(iter(TEXTS), iter(LABELS))
    other = FewShotClassifier(encoder).fit(TEXTS, LABELS).calibrate_rejection(TEXTS, LABELS)
    assert one.rejection_ == other.rejection_


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(encoder, name):
    unfitted, classifier = FewShotClassifier(encoder), FewShotClassifier(encoder).fit(TEXTS, LABELS)
    assert hasattr(classifier, name)
    assert not hasattr(unfitted, name)
    with pytest.raises(NotFittedError, match="call fit"):
        getattr(unfitted, name)
    with pytest.raises(AttributeError):
        setattr(classifier, name, None)


def test_pickles_keep_everything_that_was_learned(encoder):
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS).calibrate_rejection()
    assert len(pickle.dumps(classifier)) < 20_000  # without what can be made again
    same(pickle.loads(pickle.dumps(classifier)), classifier)
    assert pickle.loads(pickle.dumps(FewShotClassifier(C=2.0))).C == 2.0


# ---------------------------------------------------------------- which encoder


@pytest.fixture
def model(plain, tmp_path):
    """A model folder that may be changed."""
    return shutil.copytree(plain, tmp_path / "here" / "model")


@pytest.fixture
def beside(model):
    """A classifier beside its model."""
    FewShotClassifier(SentenceEncoder(model, threads=1)).fit(TEXTS, LABELS).save(model.parent / "intents")
    return model.parent / "intents"


@pytest.mark.parametrize("convert", [str, lambda path: path])
def test_the_name_of_a_model_in_place_of_an_encoder(model, convert):
    name = convert(model)
    classifier = FewShotClassifier(name)
    assert classifier.get_params()["encoder"] is name
    assert classifier.fit(TEXTS, LABELS).get_params()["encoder"] is name
    wanted = FewShotClassifier(SentenceEncoder(model, threads=1)).fit(TEXTS, LABELS)
    np.testing.assert_allclose(classifier.coef_, wanted.coef_, atol=1e-5)
    late = FewShotClassifier(name, label_names=False).fit_embeddings(wanted.embeddings_, LABELS)
    assert late.encoder_ is None
    assert late.predict(TEXTS[0]) in LABELS
    assert isinstance(late.encoder_, SentenceEncoder)


def test_a_name_that_is_none():
    with pytest.raises(ModelNotFoundError):
        FewShotClassifier("./no-such-model").fit(TEXTS, LABELS)


@pytest.mark.parametrize("encoder", [5, b"model", ["model"], HashEncoder, object()])
def test_what_is_no_encoder(encoder):
    with pytest.raises(InputTypeError, match="wanted an object with encode"):
        FewShotClassifier(encoder).fit(TEXTS, LABELS)


def test_a_classifier_moves_with_its_model(beside):
    wanted = FewShotClassifier.load(beside).predict_proba(TEXTS)
    there = beside.parent.rename(beside.parents[1] / "there")
    again = FewShotClassifier.load(there / "intents")
    assert again.encoder_.name_or_path == str(there / "model")
    np.testing.assert_array_equal(again.predict_proba(TEXTS), wanted)
    again.save(there / "intents")
    assert json.loads((there / "intents" / "classifier.json").read_text())["encoder"]["path"] == "../model"


def test_a_classifier_moves_without_its_model(beside):
    alone = beside.parents[1] / "a" / "b" / "intents"
    shutil.copytree(beside, alone)
    assert FewShotClassifier.load(alone).encoder_.name_or_path == str(beside.parent / "model")


def test_another_model_beside_a_moved_classifier(beside, random_folder):
    there = beside.parents[1] / "there"
    shutil.copytree(beside, there / "intents")
    shutil.copytree(random_folder("twelve_layers"), there / "model")
    assert FewShotClassifier.load(there / "intents").encoder_.name_or_path == str(beside.parent / "model")
    shutil.rmtree(beside.parent)
    with pytest.raises(ClassifierError, match=r"(?s)another weights.*no such folder.*minitrans predict --model"):
        FewShotClassifier.load(there / "intents")


def test_a_model_that_is_gone_is_named(beside, plain):
    shutil.rmtree(beside.parent / "model")
    with pytest.raises(ModelNotFoundError, match=r"model: no such folder.*load\(folder, encoder=MODEL\)"):
        FewShotClassifier.load(beside)
    for name in (plain, str(plain)):
        assert FewShotClassifier.load(beside, name).encoder_.name_or_path == str(plain)
    with pytest.raises(ModelNotFoundError):
        FewShotClassifier.load(beside, beside.parent / "nowhere")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda model: edit_json(model / "tokenizer_config.json", do_lower_case=False), "tokenizer"),
        (lambda model: edit_json(model / "sentence_bert_config.json", max_seq_length=7), "tokenizer"),
        (lambda model: edit_json(model / "1_Pooling" / "config.json", pooling_mode="cls"), "pooling"),
        (
            lambda model: edit_json(
                model / "config_sentence_transformers.json", prompts={"q": "ask: "}, default_prompt_name="q"
            ),
            "prompts",
        ),
    ],
    ids=["lower case", "length", "pooling", "prompts"],
)
@pytest.mark.parametrize("given", ["nothing", "encoder", "path"])
def test_a_model_that_was_changed_is_another(beside, model, change, part, given):
    if part == "prompts":
        (model / "config_sentence_transformers.json").write_text("{}")
    if part == "tokenizer" and not (model / "sentence_bert_config.json").exists():
        (model / "sentence_bert_config.json").write_text("{}")
    change(model)
    encoder = {"nothing": None, "encoder": SentenceEncoder(model, threads=1), "path": model}[given]
    with pytest.raises(ClassifierError, match=f"has another {part}, wanted the encoder .* of fit"):
        FewShotClassifier.load(beside, encoder)


def test_a_folder_that_shadows_a_name_is_not_the_model(tmp_path, monkeypatch):
    """A model of the hub stays that, whatever lies in the working folder at the time of a save."""
    (tmp_path / "hash").mkdir()
    monkeypatch.chdir(tmp_path)
    FewShotClassifier(HashEncoder()).fit(TEXTS, LABELS).save("intents")
    assert "path" not in json.loads((tmp_path / "intents" / "classifier.json").read_text())["encoder"]


def test_an_encoder_of_no_identity_is_taken(beside):
    class Plain:
        encode = staticmethod(HashEncoder(32).encode)

    assert FewShotClassifier.load(beside, Plain()).predict(TEXTS[0]) in LABELS
