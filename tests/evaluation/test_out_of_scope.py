"""Out-of-scope rejection over tasks and draws: what is computed, what its rows are, what a journal keeps."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hash_encoder import LABELS, TEXTS, HashEncoder
from tiny_tasks import PRUNED, WORDS, word_task

from minitrans import FewShotClassifier, SentenceEncoder
from minitrans.data.files import Examples, read_examples
from minitrans.data.tasks import Task, draw
from minitrans.errors import InputError
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.metrics import confidence_interval
from minitrans.evaluation.out_of_scope import (
    COLUMNS,
    MEASURES,
    WITH,
    WITHOUT,
    RejectionRow,
    ScopeCell,
    _rows,
    evaluate_scope,
    measure_rejection,
    with_out_of_scope,
)
from minitrans.fewshot.rejection import DEFAULT_SCORE, SCORES, auroc

OUTSIDE = ["play music", "book flight", "number of words", "play an alarm"]
BEYOND = ["tell a story", "music today", "who is it"]


def with_train(task):
    return replace(task, out_of_scope={**task.out_of_scope, "train": BEYOND})


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain, threads=1)


@pytest.fixture(scope="module")
def task():
    return with_train(word_task(out_of_scope=OUTSIDE))


@pytest.fixture(scope="module")
def found(encoder, task):
    return evaluate_scope(encoder, [task], [1, 2], range(3), {"half": PRUNED}, all_scores=True)


def test_one_row_per_shots_policy_calibration_and_score(found):
    assert [(row.shots, row.pruning, row.calibration, row.score) for row in found.rows] == [
        (shots, policy, calibration, score)
        for shots in (1, 2)
        for policy in ("none", "half")
        for calibration in (WITHOUT, WITH)
        for score in SCORES
    ]
    assert (found.computed, found.from_journal, len(found.cells)) == (12, 0, 24)
    assert {key for column in COLUMNS for key in (column.key, column.spread) if key} == set(found.table()[0])
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("label_names", [True, False])
@pytest.mark.parametrize("policy", [None, PRUNED])
def test_a_cell_is_what_a_single_classifier_does(plain, encoder, task, policy, label_names):
    cells = evaluate_scope(encoder, [task], [2], [1], {"it": policy}, C=3.0, label_names=label_names).cells
    few, own = draw(task, 2, 1), SentenceEncoder(plain, pruning=policy, threads=1)
    for calibration, beyond in ((WITHOUT, None), (WITH, BEYOND)):
        (cell,) = [each for each in cells if (each.pruning, each.calibration) == ("it", calibration)]
        assert [row["score"] for row in cell.scores] == list(SCORES)
        for row in cell.scores:
            classifier = FewShotClassifier(own, C=3.0, label_names=label_names).fit(few.train.texts, few.train.labels)
            assert row.keys() == RejectionRow.__annotations__.keys()
            assert row["accuracy_without_rejection"] == classifier.score(few.test.texts, few.test.labels)
            classifier.calibrate_rejection(out_of_scope=beyond, score=row["score"])
            assert row["threshold"] == classifier.rejection_.threshold
            assert row["in_scope_accuracy"] == classifier.score(few.test.texts, few.test.labels)
            assert row["out_of_scope_recall"] == classifier.score(OUTSIDE, ["oos"] * len(OUTSIDE))
            inside, outside = (classifier.score_in_scope(texts) for texts in (few.test.texts, OUTSIDE))
            assert row["auroc"] == auroc(inside, outside)
        chosen = classifier.calibrate_rejection(out_of_scope=beyond).rejection_.score
        assert [row["score"] for row in cell.scores if row["chosen"]] == [chosen]


def test_the_precision_of_rejection():
    encoder = HashEncoder()
    classifier = FewShotClassifier(encoder).fit(TEXTS, LABELS)
    inside, beyond = encoder.encode(TEXTS), encoder.encode(["quantum field theory", "roasted chestnuts", "volcano"])
    # All that is in scope comes out of scope too, so that half of what is rejected is wrongly so.
    rows = measure_rejection(classifier, beyond, [LABELS[0]] * len(beyond), beyond, {"same": None})["same"]
    assert {row["out_of_scope_precision"] for row in rows} - {None} == {0.5}
    assert {row["auroc"] for row in rows} == {0.5}
    rows = measure_rejection(classifier, inside, LABELS, inside, {"same": None}, keep=1.0)["same"]
    assert {row["out_of_scope_precision"] for row in rows} == {None}


def test_rows_are_means_over_the_draws(found):
    for row in found.rows:
        cells = [
            cell.of(row.score)
            for cell in found.cells
            if (cell.shots, cell.pruning, cell.calibration) == (row.shots, row.pruning, row.calibration)
        ]
        assert row.draws == len(cells) == 3
        assert row.chosen == np.mean([cell["chosen"] for cell in cells])
        for name in MEASURES:
            values = [cell[name] for cell in cells if cell[name] is not None]
            assert row.measures[name] == (confidence_interval(values) if values else None)


def test_the_score_that_auto_takes(encoder, task, found):
    auto = evaluate_scope(encoder, [task], [1, 2], range(3), {"half": PRUNED})
    assert auto.cells == found.cells
    assert len(auto.rows) == len(found.rows) / 4
    assert {row.score for row in auto.rows if row.calibration == WITHOUT} == {"mahalanobis"}
    assert all(row.chosen == 1 for row in auto.rows)


def scores(chosen, precision=0.5):
    return [
        {"score": name, "chosen": name == chosen, "threshold": -1.0}
        | dict.fromkeys(MEASURES, i / 4)
        | {"out_of_scope_precision": precision}
        for i, name in enumerate(SCORES)
    ]


def test_draws_that_differ_in_the_score_or_reject_nothing():
    cells = [
        ScopeCell("a", "none", 1, 0, WITHOUT, scores("energy", None)),
        ScopeCell("a", "none", 1, 1, WITHOUT, scores("mahalanobis", 0.75)),
    ]
    (row,) = _rows(cells, ("auto",))
    assert (row.score, row.chosen) == ("energy/mahalanobis", 1)
    assert row.measures["auroc"].mean == 0.5
    assert row.measures["out_of_scope_precision"] == confidence_interval([0.75])
    (row,) = _rows(cells[:1], ("auto",))
    assert row.to_dict()["out_of_scope_precision"] is None


def test_several_tasks_end_in_means_of_what_all_have(encoder, task):
    other = word_task("other", OUTSIDE, dict(list(WORDS.items())[:2]))
    rows = evaluate_scope(encoder, [task, other, word_task("without")], [2], range(2)).rows
    assert [(row.task, row.calibration) for row in rows] == [
        ("tiny", WITHOUT),
        ("tiny", WITH),
        ("other", WITHOUT),
        ("(mean)", WITHOUT),
    ]
    for name in ("auroc", "in_scope_accuracy"):
        assert math.isclose(
            rows[3].measures[name].mean, (rows[0].measures[name].mean + rows[2].measures[name].mean) / 2
        )


def test_a_single_file_tests_on_its_own_texts_out_of_scope(encoder):
    rows = [(text, label) for label, texts in WORDS.items() for text in texts]
    task = Task("one", {"all": Examples(*map(list, zip(*rows, strict=True)))}, {"all": OUTSIDE}, "made up")
    (row,) = evaluate_scope(encoder, [task], [2], [0]).rows
    assert row.calibration == WITHOUT


def test_tasks_without_texts_out_of_scope_are_named(encoder, task):
    bare = word_task("bare")
    assert with_out_of_scope([bare, task]) == (
        [task],
        ["bare: no texts out of scope to test with, so only in the first table"],
    )
    for tasks in ([bare], [replace(bare, out_of_scope={"train": BEYOND})], []):
        with pytest.raises(InputError, match="no texts out of scope to test with; wanted some"):
            evaluate_scope(encoder, tasks, [1], [0])


def test_each_text_is_embedded_once_per_policy(encoder, task, monkeypatch):
    calls = []
    encode = SentenceEncoder.encode
    monkeypatch.setattr(
        SentenceEncoder, "encode", lambda self, texts, **o: calls.append(texts) or encode(self, texts, **o)
    )
    evaluate_scope(encoder, [task], [1, 4], range(2), {"half": PRUNED})
    assert len(calls) == 2
    assert all(len(texts) == len(set(texts)) for texts in calls)
    assert set(calls[0]) == {text for texts in WORDS.values() for text in texts} | {*WORDS, *OUTSIDE, *BEYOND}


def test_an_interrupted_run_goes_on_and_ends_the_same(encoder, task, found, tmp_path, monkeypatch):
    fits, fit = [], FewShotClassifier.fit_embeddings

    def counted(self, *arguments):
        if len(fits) == stop:
            raise KeyboardInterrupt
        fits.append(arguments)
        return fit(self, *arguments)

    monkeypatch.setattr(FewShotClassifier, "fit_embeddings", counted)
    arguments = encoder, [task], [1, 2], range(3), {"half": PRUNED}
    stop = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate_scope(*arguments, Journal(tmp_path / "j"))
    stop = None
    again = evaluate_scope(*arguments, Journal(tmp_path / "j"), all_scores=True)
    assert (again.from_journal, again.computed, len(fits)) == (5, 7, 12)
    assert (again.cells, again.rows) == (found.cells, found.rows)
    monkeypatch.setattr(SentenceEncoder, "encode", None)  # all of it is in the journal
    assert evaluate_scope(*arguments, Journal(tmp_path / "j"), all_scores=True).rows == found.rows
    assert evaluate_scope(*arguments, Journal(tmp_path / "j")).computed == 0


def change(**fields):
    rows = scores("energy")
    return {WITHOUT: [rows[0] | fields, *rows[1:]]}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {WITHOUT: None},
        {WITHOUT: []},
        {WITHOUT: scores("energy")[:3]},
        {WITHOUT: scores("none")},
        {WITHOUT: [None] * 4},
        {WITHOUT: scores("energy"), WITH: scores("energy")},
        {WITH: scores("energy")},
        {"accuracy": 1.0},
        change(auroc=1.5),
        change(auroc=None),
        change(auroc="1"),
        change(chosen=1),
        change(threshold=None),
        change(score="msp"),
        change(more=1),
    ],
)
def test_a_journal_with_other_results_is_refused(encoder, value):
    class Foreign(Journal):
        def get(self, key):
            return value

    with pytest.raises(InputError, match=r"the journal holds .*; start a new one"):
        evaluate_scope(encoder, [word_task(out_of_scope=OUTSIDE)], [1], [0], {}, Foreign(None))


def test_progress_is_shown_when_asked_for(encoder, task, capsys):
    evaluate_scope(encoder, [task], [1], [0], progress=True)
    assert "cells" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.data
def test_rejection_on_clinc150(data_folder):
    data, model = data_folder / "clinc150", SentenceEncoder()
    train, test, beyond = (read_examples(data / f"{name}.csv") for name in ("train_10shot", "test", "oos_test"))
    classifier = FewShotClassifier(model).fit(train.texts, train.labels)
    inside, outside = model.encode(test.texts), model.encode(beyond.texts)
    rows = measure_rejection(classifier, inside, test.labels, outside, {WITHOUT: None})[WITHOUT]
    best = next(row for row in rows if row["chosen"])
    assert best["score"] == DEFAULT_SCORE
    assert best["auroc"] >= max(row["auroc"] for row in rows)
    assert best["auroc"] >= 0.957
    assert best["in_scope_recall"] >= 0.95
    assert best["out_of_scope_recall"] >= 0.78
    assert best["accuracy_without_rejection"] - best["in_scope_accuracy"] <= 0.04


@pytest.mark.data
def test_real_data(data_folder):
    from minitrans.data.tasks import load_task

    found = evaluate_scope(SentenceEncoder(), [load_task(data_folder / "hint3_sofmattress")], [5], range(2))
    (row,) = found.rows
    assert 0.8 < row.measures["auroc"].mean < 0.95
    assert row.measures["in_scope_accuracy"].mean <= row.measures["accuracy_without_rejection"].mean
