"""Metrics against their definitions, costs, and the runner: what it computes, what it takes from the journal."""

import json
import math
import mmap
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tasks import PRUNED, WORDS, word_task

from minitrans import FewShotClassifier, PruningPolicy, SentenceEncoder
from minitrans.data.files import Examples
from minitrans.data.tasks import Task, draw, load_task
from minitrans.errors import InputError, PolicyError
from minitrans.evaluation import few_shot as evaluation
from minitrans.evaluation import measurement
from minitrans.evaluation.few_shot import COLUMNS, evaluate, notes
from minitrans.evaluation.fidelity import Fidelity
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.metrics import Interval, accuracy, confidence_interval, macro_metrics, student_t

labels = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain, threads=1)


@pytest.fixture(autouse=True)
def no_rounds(monkeypatch):
    monkeypatch.setattr(measurement, "ROUNDS", 1)


def brute_force(truth, predicted):
    """Precision, recall and F1 from the definition, averaged over the classes in either list."""
    columns = []
    for label in set(truth) | set(predicted):
        pairs = list(zip(truth, predicted, strict=True))
        hits = sum(t == p == label for t, p in pairs)
        wrong = sum(p == label != t for t, p in pairs)
        missed = sum(t == label != p for t, p in pairs)
        precision = hits / (hits + wrong) if hits + wrong else 0
        recall = hits / (hits + missed) if hits + missed else 0
        columns.append((precision, recall, 2 * hits / (2 * hits + wrong + missed)))
    return [sum(column) / len(columns) for column in zip(*columns, strict=True)]


@given(labels)
def test_metrics_are_their_definitions(pairs):
    truth, predicted = [list(column) for column in zip(*pairs, strict=True)]
    scores = macro_metrics(truth, predicted)
    assert [scores.precision, scores.recall, scores.f1] == pytest.approx(brute_force(truth, predicted))


@settings(max_examples=25)
@given(labels)
def test_metrics_agree_with_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    truth, predicted = [list(column) for column in zip(*pairs, strict=True)]
    assert accuracy(truth, predicted) == pytest.approx(metrics.accuracy_score(truth, predicted))
    wanted = metrics.precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)[:3]
    scores = macro_metrics(truth, predicted)
    assert [scores.precision, scores.recall, scores.f1] == pytest.approx(wanted)


def test_perfect_and_hopeless_predictions():
    assert accuracy(["a", "b"], ["a", "b"]) == macro_metrics(["a", "b"], ["a", "b"]).f1 == 1
    assert accuracy(["a", "b"], ["b", "a"]) == macro_metrics(["a", "b"], ["b", "a"]).f1 == 0


@pytest.mark.parametrize("metric", [accuracy, macro_metrics])
@pytest.mark.parametrize(("truth", "predicted"), [([], []), (["a"], ["a", "b"]), (np.array(["a", "b"]), ["a"])])
def test_lists_that_do_not_match_are_refused(metric, truth, predicted):
    with pytest.raises(InputError, match=f"{len(truth)} true and {len(predicted)} predicted"):
        metric(truth, predicted)


@pytest.mark.parametrize(
    ("level", "freedom", "wanted"),  # from the table of Student's distribution
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 4, 2.776), (0.95, 9, 2.262), (0.99, 7, 3.499)],
)
def test_students_t(level, freedom, wanted):
    assert student_t(level, freedom) == pytest.approx(wanted, abs=5e-4)


@settings(max_examples=25)
@given(st.floats(0.01, 0.999), st.integers(1, 60))
def test_students_t_agrees_with_scipy(level, freedom):
    stats = pytest.importorskip("scipy.stats")
    assert student_t(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


def test_confidence_intervals():
    assert confidence_interval([0.5]) == Interval(0.5, None)
    assert confidence_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0)
    interval = confidence_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)


@pytest.mark.parametrize("values", [[], [math.nan]])
def test_confidence_intervals_of_nothing_are_refused(values):
    with pytest.raises(InputError, match="wanted"):
        confidence_interval(values)


def test_one_row_per_task_shots_and_policy_then_the_means(encoder):
    tasks = [word_task("first"), word_task("second", words=dict(list(WORDS.items())[:2]))]
    found = evaluate(encoder, tasks, [1, 2], range(3), {"half": PRUNED})
    assert [(row.task, row.shots, row.pruning) for row in found.rows] == [
        (task, shots, policy)
        for task in ("first", "second", "(mean)")
        for shots in (1, 2)
        for policy in ("none", "half")
    ]
    assert all(row.draws == 3 for row in found.rows)
    assert len(found.cells) == found.computed == 2 * 2 * 2 * 3
    assert found.from_journal == 0
    first, second, mean = (
        next(row for row in found.rows if (row.task, row.shots, row.pruning) == (task, 2, "half"))
        for task in ("first", "second", "(mean)")
    )
    assert mean.accuracy.mean == pytest.approx((first.accuracy.mean + second.accuracy.mean) / 2)
    assert mean.cost.time_ratio == pytest.approx(math.sqrt(first.cost.time_ratio * second.cost.time_ratio))
    json.dumps(found.to_dict(), allow_nan=False)
    assert {key for column in COLUMNS for key in (column.key, column.spread) if key} == set(found.table()[0])


@pytest.mark.parametrize("policy", [None, PRUNED])
@pytest.mark.parametrize("label_names", [True, False])
def test_a_cell_is_a_classifier_fitted_and_tested_on_the_draw(plain, encoder, policy, label_names):
    task = word_task()
    found = evaluate(encoder, [task], [2], [1], {"it": policy}, C=3.0, label_names=label_names)
    few = draw(task, 2, 1)
    pruning_encoder = SentenceEncoder(plain, pruning=policy, threads=1)
    classifier = FewShotClassifier(pruning_encoder, C=3.0, label_names=label_names).fit(
        few.train.texts, few.train.labels
    )
    predicted = list(classifier.predict(few.test.texts))
    (cell,) = [cell for cell in found.cells if cell.pruning == "it"]
    assert cell.accuracy == accuracy(few.test.labels, predicted)
    assert cell.f1 == macro_metrics(few.test.labels, predicted).f1
    assert (cell.train_examples, cell.test_examples) == (6, 6)


def test_rows_are_means_of_their_cells_and_changes_are_paired(encoder):
    found = evaluate(encoder, [word_task()], [1], range(4), {"half": PRUNED})
    scores = {name: [cell.accuracy for cell in found.cells if cell.pruning == name] for name in ("none", "half")}
    unpruned, pruned = found.rows
    assert pruned.accuracy == confidence_interval(scores["half"])
    assert unpruned.accuracy_change is None
    assert pruned.accuracy_change == confidence_interval(list(np.subtract(scores["half"], scores["none"])))


def test_texts_out_of_scope_never_count(encoder):
    without = evaluate(encoder, [word_task()], [2], range(2))
    beyond = evaluate(encoder, [word_task(out_of_scope=["play music", "book flight"])], [2], range(2))
    assert without.cells == beyond.cells
    assert beyond.cells[0].test_examples == 6


def test_each_text_is_embedded_once_per_policy(encoder, monkeypatch):
    calls = []
    encode = SentenceEncoder.encode
    monkeypatch.setattr(evaluation, "embedding_costs", lambda encoder, texts, policies: dict.fromkeys(policies, COST))
    monkeypatch.setattr(evaluation, "measure_fidelity", lambda encoder, texts, policies: dict.fromkeys(policies, NEAR))
    monkeypatch.setattr(
        SentenceEncoder, "encode", lambda self, texts, **o: calls.append(texts) or encode(self, texts, **o)
    )
    evaluate(encoder, [word_task()], [1, 4], range(2), {"half": PRUNED})
    assert len(calls) == 2
    assert all(len(texts) == len(set(texts)) for texts in calls)
    assert set(calls[0]) == {text for texts in WORDS.values() for text in texts} | set(WORDS)


COST = measurement.Cost(100.0, 1.0, 1.0, None)
NEAR = Fidelity(1.0, 2.0, 0.9, ())


def test_costs_say_what_pruning_saves(encoder):
    found = evaluate(encoder, [word_task()], [1], [0], {"half": PRUNED})
    unpruned, pruned = (row.cost for row in found.rows)
    assert (unpruned.time_ratio, unpruned.tokens_kept) == (1, 1)
    assert 0.4 < pruned.tokens_kept < 0.8
    assert pruned.time_ratio == pytest.approx(pruned.microseconds_per_text / unpruned.microseconds_per_text)
    assert unpruned.microseconds_per_text > 0


def test_the_share_of_tokens_counts_specials_and_stages(encoder):
    texts = WORDS["card"]
    pruned = [text.kept for text in encoder.pruned_tokens(texts, pruning=PRUNED)]
    wanted = sum(map(sum, pruned)) / sum(map(len, pruned))
    assert measurement.tokens_kept(encoder, texts, PRUNED) == wanted
    assert measurement.tokens_kept(encoder, texts, None) == 1


def test_peak_memory_follows_what_is_taken():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not reset the peak")
    measurement.reset_peak_memory()
    before = measurement.peak_memory()
    with mmap.mmap(-1, 64 << 20) as block:  # pages of its own: an array may come from memory freed before
        np.frombuffer(block, np.uint8).fill(1)
        assert measurement.peak_memory() >= before + len(block) * 0.9
    measurement.reset_peak_memory()
    assert measurement.peak_memory() < before + (32 << 20)


def test_peak_memory_where_the_system_has_no_proc(monkeypatch, tmp_path):
    pytest.importorskip("resource")
    monkeypatch.setattr(measurement, "_PROCESS", tmp_path / "nowhere")
    measurement.reset_peak_memory()
    assert 10 << 20 < measurement.peak_memory() < 1 << 40
    monkeypatch.setitem(sys.modules, "resource", None)
    assert measurement.peak_memory() is None


def test_an_interrupted_run_goes_on_and_ends_the_same(encoder, tmp_path, monkeypatch):
    tasks, shots, seeds, policies = [word_task("a"), word_task("b")], [1, 2], range(2), {"half": PRUNED}
    whole = evaluate(encoder, tasks[:1], shots, seeds, policies)
    fits = []
    fit = FewShotClassifier.fit_embeddings

    def counted(self, *arguments):
        if len(fits) == stop:
            raise KeyboardInterrupt
        fits.append(arguments)
        return fit(self, *arguments)

    monkeypatch.setattr(FewShotClassifier, "fit_embeddings", counted)
    stop = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate(encoder, tasks[:1], shots, seeds, policies, Journal(tmp_path / "j"))
    assert len(fits) == 5
    stop = None
    found = evaluate(encoder, tasks[:1], shots, seeds, policies, Journal(tmp_path / "j"))
    assert (found.from_journal, found.computed, len(fits)) == (5, 3, 8)
    assert found.cells == whole.cells

    def never(*_, **__):
        raise AssertionError("this was in the journal")

    monkeypatch.setattr(evaluation, "embedding_costs", never)
    monkeypatch.setattr(evaluation, "measure_fidelity", never)
    again = evaluate(encoder, tasks[:1], shots, seeds, policies, Journal(tmp_path / "j"))
    assert (again.from_journal, again.computed, len(fits)) == (8, 0, 8)
    assert again.rows == found.rows
    assert evaluate(encoder, tasks[1:], shots, seeds, policies, Journal(tmp_path / "j")).computed == 0  # the same texts


def test_whatever_a_cell_depends_on_makes_it_another(plain, encoder, tmp_path):
    task, journal = word_task(), Journal(tmp_path / "j")
    base = {"tasks": [task], "shots": [2], "seeds": [0], "policies": {"it": PRUNED}, "journal": journal}
    assert evaluate(encoder, **base).computed == 2
    assert evaluate(encoder, **base).computed == 0
    other = Task(task.name, {**task.splits, "valid": Examples(["hi"], ["card"])}, {}, task.source)
    for change in (
        {"shots": [1]},
        {"seeds": [1]},
        {"C": 1.0},
        {"label_names": False},
        {"tasks": [other]},
    ):
        assert evaluate(encoder, **base | change).computed == 2, change
    assert evaluate(encoder, **base | {"policies": {"it": replace(PRUNED, quantile=0.4)}}).computed == 1
    assert evaluate(encoder, **base | {"policies": {"it": replace(PRUNED, provenance={"by": "hand"})}}).computed == 0
    assert evaluate(encoder, **base | {"policies": {"renamed": PRUNED}}).computed == 0
    shorter = SentenceEncoder(plain, threads=1)
    shorter.max_seq_length = 16
    assert evaluate(shorter, **base).computed == 2


def test_a_new_policy_is_timed_in_turn_with_no_pruning(encoder, monkeypatch):
    journal, measured = Journal(None), []
    monkeypatch.setattr(
        evaluation,
        "embedding_costs",
        lambda _, texts, policies: measured.append(list(policies)) or dict.fromkeys(policies, COST),
    )
    evaluate(encoder, [word_task()], [1], [0], {"a": PRUNED}, journal)
    evaluate(encoder, [word_task()], [1], [0], {"a": PRUNED, "b": replace(PRUNED, quantile=0.3)}, journal)
    assert measured == [["none", "a"], ["none", "b"]]


GOOD = {"microseconds_per_text": 9.0, "time_ratio": 1.0, "tokens_kept": 1.0, "peak_memory": None}


@pytest.mark.parametrize(
    "change", [{"time_ratio": 0}, {"tokens_kept": "1"}, {"tokens_kept": -1}, {"tokens_kept": None}, {"more": 2}, None]
)
def test_a_journal_with_other_results_is_refused(encoder, change):
    class Foreign(Journal):
        def get(self, key):
            value = {} if change is None else GOOD | change
            return value if key["kind"] == "cost" else None

    with pytest.raises(InputError, match=r"the journal holds .*; start a new one"):
        evaluate(encoder, [word_task()], [1], [0], {}, Foreign(None))


def test_impossible_evaluations_are_refused(encoder):
    task = word_task()
    for tasks, shots, seeds, policies, message in (
        ([], [1], [0], {}, "the tasks are none"),
        ([task, task], [1], [0], {}, "the tasks are tiny, tiny"),
        ([task], [], [0], {}, r"shots are \[\]"),
        ([task], [1], [], {}, r"seeds \[\]"),
        ([task], [0], [0], {}, "shots is 0"),
        ([task], [1], [-1], {}, "seed is -1"),
        ([task], [1], [0], {"none": PRUNED}, "the policy 'none' prunes"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(encoder, tasks, shots, seeds, policies)
    with pytest.raises(PolicyError, match="layer 9"):
        evaluate(encoder, [task], [1], [0], {"deep": PruningPolicy(layer=9)})


def test_progress_is_shown_when_asked_for(encoder, capsys):
    evaluate(encoder, [word_task()], [1], [0], progress=True)
    assert "cells" in capsys.readouterr().err
    evaluate(encoder, [word_task()], [1], [0])
    assert capsys.readouterr() == ("", "")


def test_notes_name_leaks_and_classes_left_out(tmp_path):
    assert notes([word_task()], [1], [0]) == []
    (tmp_path / "leaky").mkdir()
    (tmp_path / "leaky" / "train.csv").write_text("text,label\nHello  There,a\nbye,b\n")
    (tmp_path / "leaky" / "test.csv").write_text("text,label\nhello there,b\nwho,c\nnobody,d\n")
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\nc,single\n")
    lines = notes([load_task(tmp_path / "leaky"), load_task(tmp_path / "one.csv")], [1], range(3))
    assert lines == [
        "leaky: 1 of 3 test texts are in train too, 1 of them under another label; for example 'hello there' (b)",
        "leaky: in the test but not in train, so never predicted: c, d",
        "one: left out, with too few texts to learn from and to test on: single",
    ]


@pytest.mark.data
def test_more_shots_and_real_data(data_folder):
    found = evaluate(SentenceEncoder(), [load_task(Path(data_folder) / "hint3_sofmattress")], [1, 5], range(2))
    one, five = found.rows
    assert 0.4 < one.accuracy.mean < five.accuracy.mean < 0.9
    assert {cell.test_examples for cell in found.cells} == {253}
