import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrans.errors import InputError
from minitrans.evaluation import accuracy, macro_f1

labels = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40)


@given(labels)
def test_metrics_agree_with_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    truth, predicted = [list(column) for column in zip(*pairs, strict=True)]
    assert accuracy(truth, predicted) == pytest.approx(metrics.accuracy_score(truth, predicted))
    wanted = metrics.f1_score(truth, predicted, average="macro", zero_division=0)
    assert macro_f1(truth, predicted) == pytest.approx(wanted)


def test_perfect_and_hopeless_predictions():
    assert accuracy(["a", "b"], ["a", "b"]) == macro_f1(["a", "b"], ["a", "b"]) == 1
    assert accuracy(["a", "b"], ["b", "a"]) == macro_f1(["a", "b"], ["b", "a"]) == 0


@pytest.mark.parametrize("metric", [accuracy, macro_f1])
@pytest.mark.parametrize(("truth", "predicted"), [([], []), (["a"], ["a", "b"]), (np.array(["a", "b"]), ["a"])])
def test_lists_that_do_not_match_are_refused(metric, truth, predicted):
    with pytest.raises(InputError, match=f"{len(truth)} true and {len(predicted)} predicted"):
        metric(truth, predicted)
