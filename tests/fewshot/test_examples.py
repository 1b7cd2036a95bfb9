import warnings

import numpy as np
import pytest

from minitrans import FewShotClassifier
from minitrans.errors import DataWarning, InputError
from minitrans.fewshot.examples import case_warning, conflict_warning, label_array, normalized_label


class Lengths:
    """An encoder without a model: how long a text is, and how many a's it has."""

    def encode(self, texts):
        return np.array([[len(text), text.count("a")] for text in texts], np.float32)


def classifier():
    return FewShotClassifier(Lengths())


@pytest.mark.parametrize(
    "other", ["card ", " card", "card\u00a0", "card\u200b", "c\u200bard", "\ufeffcard", "card\u200d", "card\n"]
)
def test_fit_refuses_one_label_in_two_spellings(other):
    remedy = r"pass \[minitrans.fewshot.examples.normalized_label\(label\) for label in labels\]"
    with pytest.raises(InputError, match=rf"the labels 'card' and .* are one in two spellings .*{remedy}"):
        classifier().fit(["a", "b", "c"], ["card", other, "bye"])
    labels = [normalized_label(label) for label in ["card", other, "bye"]]
    assert classifier().fit(["a", "b", "c"], labels).classes_.tolist() == ["bye", "card"]


def test_composed_and_decomposed_labels_are_told_apart():
    with pytest.raises(InputError, match=r"'caf\\xe9' and 'cafe\\u0301' are one"):
        label_array(["caf\u00e9", "cafe\u0301"], 2)


def test_a_single_spelling_stays_as_it_was_given():
    assert classifier().fit(["a", "bb"], ["card ", "x"]).classes_.tolist() == ["card ", "x"]


def test_partial_fit_compares_with_what_was_learned():
    fitted = classifier().fit(["a", "bb"], ["card", "x"])
    with pytest.raises(InputError, match="are one in two spellings"):
        fitted.partial_fit(["ccc"], ["card "])
    assert fitted.classes_.tolist() == ["card", "x"]
    with pytest.warns(DataWarning, match="differ in case alone .*'card' and 'Card'"):
        fitted.partial_fit(["ccc"], ["Card"])
    with pytest.warns(DataWarning) as told:
        fitted.partial_fit(["A"], ["x"])
    assert "'a' is 'card' and 'x'" in " ".join(str(each.message) for each in told)


def test_fit_warns_of_labels_that_differ_in_case_alone():
    with pytest.warns(DataWarning, match="labels that differ in case alone are several classes: 'Card' and 'card'"):
        assert len(classifier().fit(["a", "bb", "ccc"], ["Card", "card", "x"]).classes_) == 3


def test_fit_warns_of_one_text_with_several_labels():
    with pytest.warns(DataWarning, match="one text has several labels, .*: 'a b' is '1' and '2'"):
        classifier().fit(["a b", "A  b", "c"], [1, 2, 1])


@pytest.mark.parametrize("other", ["cafe\u0301 x", "caf\u00e9\u00a0x", "Caf\u00e9 \u200bX"])
def test_one_text_in_several_spellings_with_several_labels(other):
    with pytest.warns(DataWarning, match="one text has several labels"):
        classifier().fit(["caf\u00e9 x", other], ["a", "b"])


def test_labels_that_are_fine_bring_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier().fit(["a", "b", "b", "c"], ["x", "y", "y", "x y"])
    assert case_warning(["a", "b"]) is None
    assert conflict_warning(["a", "a"], ["x", "x"]) is None
