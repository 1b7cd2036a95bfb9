"""The study: its arithmetic and tables on made-up results, its texts, and that the document is what is stored."""

import bz2
import gzip
import io
import json
import math
import random
import re
import statistics
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minitrans.data.files import Examples
from minitrans.data.tasks import Task

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "study" / "report.py").is_file():
    pytest.skip("the study is no part of the package", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from study import curve, parts, picture, report, settings, texts  # noqa: E402


@pytest.fixture
def results(tmp_path, monkeypatch):
    """results(name, values): store what a part found; at first there is nothing."""
    monkeypatch.setattr(settings, "RESULTS", tmp_path / "results")
    return settings.save


def document():
    return "\n\n".join(part.strip() for part in report._document()) + "\n"


def table(text, heading):
    """Cells of the first table that follows a line which starts so."""
    lines = iter(text[re.search(f"^{re.escape(heading)}", text, re.MULTILINE).end() :].splitlines())
    found = []
    for line in lines:
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
        elif found:
            break
    return found


def row(pruning, shots, task="(mean)", change=None, spread=None, accuracy=0.8, time=1.0, kept=1.0):
    return {
        "task": task,
        "shots": shots,
        "pruning": pruning,
        "accuracy": accuracy,
        "accuracy_ci95": 0.01,
        "accuracy_change": change,
        "accuracy_change_ci95": spread,
        "time_ratio": time,
        "tokens_kept": kept,
    }


MAIN = [
    row("none", 1, accuracy=0.5),
    row("none", 10),
    row("none", 10, "banking77"),
    row("balanced", 1, accuracy=0.496, change=-0.004, spread=0.002),
    row("balanced", 10, accuracy=0.798, change=-0.002, spread=0.001),
    row("balanced", 10, "banking77", time=0.741, kept=0.623),
    row("fast", 10, accuracy=0.787, change=-0.013),
    row("fast", 10, "banking77", time=0.71, kept=0.5),
    row("fast", 10, "hwu64", change=-0.9, time=0.1),
]


def speed_of(times, precision="int8", **other):
    """What the part `speed` would have found: {(texts, policy): time}."""
    about = {"model": "all-MiniLM-L6-v2", "backend": "compiled", "precision": precision, "microseconds_per_text": 1.0}
    return [
        {**about, "texts": kind, "policy": policy, "time_ratio": ratio, **other}
        for (kind, policy), ratio in times.items()
    ]


# The document


def test_nothing_stored(results):
    text = document()
    assert text.startswith("# The study: what pruning costs and saves\n")
    assert "![" not in text
    assert report._pictures() is None


def test_accuracy_and_time(results):
    results("main-int8", {"rows": MAIN})
    assert table(document(), "### int8")[3][-2:] == ["-", "62.3%"]  # not timed yet
    times = {("banking77", "none"): 1.0, ("banking77", "balanced"): 0.741, ("banking77", "fast"): 0.71}
    others = [
        *speed_of({("banking77", "fast"): 0.1}, model="other"),
        *speed_of({("banking77", "fast"): 0.2}, backend="reference"),
        *speed_of({("banking77", "fast"): 0.3}, "float32"),
        *speed_of({("bbc", "fast"): 0.4}),
    ]
    results("speed", speed_of(times) + others)
    found = table(document(), "### int8")
    assert found[0] == [
        "pruning", "1-shot", "points", "2-shot", "points", "3-shot", "points", "5-shot", "points", "10-shot", "points",
        "time, BANKING77", "tokens kept",
    ]  # fmt: skip
    gap = ["-"] * 6
    assert found[2:] == [
        ["none", "50.0%", "-", *gap, "80.0%", "-", "100.0%", "100.0%"],
        ["balanced", "49.6%", "-0.40 ± 0.20", *gap, "79.8%", "-0.20 ± 0.10", "74.1%", "62.3%"],
        ["fast", "-", "-", *gap, "78.7%", "-1.30", "71.0%", "50.0%"],
    ]
    assert table(document(), "### float32")[2:] == []


def searched(task, pruning, pruned=None, change=None, spread=None, mrr=0.5):
    about = {"task": task, "pruning": pruning, "pruned": pruned, "mrr": mrr}
    return about | {"mrr_change": change, "mrr_change_ci95": spread}


def test_search(results):
    rows = [
        searched("bbc, halves", "none", mrr=0.9123),
        searched("bbc, halves", "fast", "both", -0.0125, 0.002),
        searched("bbc, halves", "fast", "documents", 0.003),
        searched("banking77", "none", mrr=0.8),
    ]
    results("fidelity-int8", {"turns": {}, "searches": rows})
    assert table(document(), "## Search") == [
        ["search", "pruning", "MRR@10", "all pruned", "queries pruned", "documents pruned"],
        ["-" * 11, "-" * 7, "-----:", "-" * 11 + ":", "-" * 14, "-" * 15 + ":"],
        ["bbc, halves", "none", "91.2", "-", "-", "-"],
        ["bbc, halves", "fast", "-", "-1.25 ± 0.20", "-", "+0.30"],
        ["banking77", "none", "80.0", "-", "-", "-"],
    ]
    assert table(report._search_table("float32"), "")[2:] == []


def turned(lengths, similarity=None, cosines=()):
    lengths = [{"length": length, "texts": 3, "turn": turn, "turn_p95": most} for length, turn, most in lengths]
    return {"turn": 1.0, "turn_p95": 2.0, "similarity": similarity, "lengths": lengths, "cosines": dict(cosines)}


def test_turns(results):
    turns = {"balanced": turned([(8, 0.0, 0.04), (16, 9.96, 12.34)], 0.98765), "fast": turned([(16, 15.0, 21.0)])}
    results("fidelity-float32", {"turns": turns, "searches": []})
    found = table(report._turn_table("float32"), "")
    assert found[0] == ["policy", "8 tokens", "16 tokens", "similarity"]
    assert found[2:] == [["balanced", "0.0 (0.0)", "10.0 (12.3)", "0.988"], ["fast", "-", "15.0 (21.0)", "-"]]
    assert table(document(), "float32:")[2:] == []  # of the searches
    assert "| balanced | 0.0 (0.0) |" in document()


def test_what_was_aimed_at(results):
    """Every kind of bar, where it holds and where it does not, at its edge where a binary number can be there."""
    same = {("banking77", "balanced"): 0.84, ("bbc", "balanced"): 0.76, ("one by one", "balanced"): 1.03}
    worse = {("one by one", "balanced"): 1.04, ("banking77", "fast"): 0.5, ("banking77", "paper q=0.3 l=1"): 0.9}
    results("speed", speed_of(same, "float32") + speed_of(same | worse))
    results("main-float32", {"rows": [row("balanced", 10, change=-0.0039), row("none", 10)]})
    other = [row("balanced", 5, change=-0.5), row("balanced", 10, "hwu64", change=-0.5)]
    rows = [*other, row("balanced", 10, change=-0.0041), row("fast", 10, change=0.001)]
    results("main-int8", {"rows": [*rows, row("paper q=0.3 l=1", 10, change=-0.1)]})
    searches = [
        searched("(mean)", "none"),
        searched("banking77", "balanced", "both", -0.9),
        searched("(mean)", "balanced", "both", -0.005),
        searched("(mean)", "balanced", "queries", -0.0051),
        searched("(mean)", "balanced", "documents", 0.002),
        searched("(mean)", "fast", "queries", -0.0051),
    ]
    cosines = {"8": 0.1, "16": 0.96, "64": 0.959, "256": 0.99}
    turns = {"balanced": turned([], None, cosines), "fast": turned([], None, {"64": 0.959})}
    results("fidelity-int8", {"turns": turns, "searches": searches})
    found = table(document(), "## Against what was aimed at")
    assert found[0] == ["policy", "what", "found", "bar", "holds"]
    assert found[2:] == [
        ["balanced, float32", "time saved, banking77", "16.0%", "at least 20.0%", "**no**"],
        ["balanced, float32", "time saved, bbc", "24.0%", "at least 25.0%", "**no**"],
        ["balanced, float32", "time, 5 to 15 tokens one by one", "103.0%", "at most 103.0%", "yes"],
        ["balanced, float32", "points of accuracy, 10 shots", "0.39", "at most 0.40", "yes"],
        ["balanced, int8", "time saved, banking77", "16.0%", "at least 15.0%", "yes"],
        ["balanced, int8", "time saved, bbc", "24.0%", "at least 22.0%", "yes"],
        ["balanced, int8", "time, 5 to 15 tokens one by one", "104.0%", "at most 103.0%", "**no**"],
        ["balanced, int8", "points of accuracy, 10 shots", "0.41", "at most 0.40", "**no**"],
        ["balanced, int8", "MRR@10 lost, all pruned", "0.50", "at most 0.50", "yes"],
        ["balanced, int8", "MRR@10 lost, queries pruned", "0.51", "at most 0.50", "**no**"],
        ["balanced, int8", "MRR@10 lost, documents pruned", "-0.20", "at most 0.50", "yes"],
        ["balanced, int8", "mean cosine, 16 tokens", "0.960", "at least 0.960", "yes"],
        ["balanced, int8", "mean cosine, 64 tokens", "0.959", "at least 0.960", "**no**"],
        ["balanced, int8", "mean cosine, 256 tokens", "0.990", "at least 0.960", "yes"],
        ["fast, int8", "time saved, banking77", "50.0%", "at least 25.0%", "yes"],
        ["fast, int8", "points of accuracy, 10 shots", "-0.10", "at most 1.20", "yes"],
        ["fast, int8", "MRR@10 lost, queries pruned", "0.51", "at most 1.50", "yes"],
        ["fast, int8", "mean cosine, 64 tokens", "0.959", "at least 0.920", "yes"],
    ]


def test_policies_are_chosen_by_no_laxer_limits_than_aimed_at():
    assert report.BARS.keys() == curve.ALLOWED.keys()
    for name, (accuracy, mrr, cosine) in {"balanced": (0.4, 0.5, 0.96), "fast": (1.2, 1.5, 0.92)}.items():
        allowed = curve.ALLOWED[name]
        assert allowed.accuracy <= accuracy
        assert allowed.mrr <= mrr
        assert allowed.cosine >= cosine
    assert curve.WEIGHED == (16, 64, 256)


def tried(layer, turn, short, long, accuracy=0.0, mrr=0.0, cosines=(0.99, 0.99, 0.99)):
    """A row of the part `policies`."""
    cosine = dict(zip(("16", "64", "256"), cosines, strict=True))
    turns = {length: math.degrees(math.acos(value)) for length, value in cosine.items()}
    rest = {"accuracy": accuracy, "mrr": mrr, "cosine": cosine, "turns": turns, "p95": 23.45}
    work = {"short": short - 0.01, "long": long - 0.02}
    return {"layer": layer, "turn": turn, "short": short, "long": long, "work": work, **rest}


CURVE = {
    "rows": [
        tried(0, 8.0, 0.9, 0.8, 0.1, 0.2),
        tried(0, 14.0, 0.7, 0.6, 0.5, 0.7, (0.97, 0.95, 0.9)),
        tried(1, 8.0, 0.95, 0.85, -0.1, -0.2),
        tried(1, 14.0, 0.75, 0.65, 0.3, 0.4, (0.98, 0.97, 0.96)),
    ],
    "chosen": {
        "balanced": {"layer": 1, "turn": 14.0, "meets": True},
        "fast": {"layer": 0, "turn": 14.0, "meets": False},
    },
    "allowed": {
        "balanced": {"accuracy": 0.4, "mrr": 0.5, "cosine": 0.96},
        "fast": {"accuracy": 1.2, "mrr": 1.5, "cosine": 0.92},
    },
}


def test_how_the_policies_were_found(results):
    results("policies", CURVE)
    text = document()
    found = table(text, "## How the policies were found")
    assert found[0][2:] == [
        "work, BANKING77", "time, BANKING77", "work, 256 tokens", "time, 256 tokens",
        "points", "MRR", "cosine, 16", "cosine, 64", "cosine, 256", "95 % turn",
    ]  # fmt: skip
    assert found[2:4] == [
        ["0", "8", "89.0%", "90.0%", "78.0%", "80.0%", "0.10", "0.20", "0.990", "0.990", "0.990", "23.4"],
        ["0", "14", "69.0%", "70.0%", "58.0%", "60.0%", "0.50", "0.70", "0.970", "0.950", "0.900", "23.4"],
    ]
    assert len(found) == 6
    balanced, fast = re.findall(r"(`(?:balanced|fast)` is the one .*? degrees\.)", text)
    assert re.findall(r"\d+(?:\.\d+)?", balanced) == ["0.4", "0.5", "0.96", "16", "64", "256", "1", "14"]
    assert re.findall(r"\d+(?:\.\d+)?", fast) == ["1.2", "1.5", "0.92", "16", "64", "256", "0", "14"]
    assert "none does" in fast
    assert "none does" not in balanced


def test_the_curves_are_drawn_where_they_are(results, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure()

    @contextmanager
    def kept(*_, **__):
        yield figure

    monkeypatch.setattr(report, "svg_figure", kept)
    results("policies", CURVE)
    report._pictures()
    for axes, values in zip(
        figure.axes,
        ([[8.11, 18.19], [8.11, 14.07]], [[0.2, 0.7], [-0.2, 0.4]], [[0.1, 0.5], [-0.1, 0.3]]),
        strict=True,
    ):
        works = [[89, 69], [78, 58], [94, 74], [83, 63]]  # short and long texts, by layer
        heights = [values[0], values[0], values[1], values[1]]
        for line, across, up in zip(axes.lines, works, heights, strict=True):
            assert np.allclose(line.get_xdata(), across)
            assert np.allclose(line.get_ydata(), up, atol=0.01)
        notes = {note.get_text(): note.xy for note in axes.texts}
        assert notes == {
            "balanced": pytest.approx((74, values[1][1]), abs=0.01),
            "fast": pytest.approx((69, values[0][1]), abs=0.01),
        }


def test_the_picture_of_the_curves_is_the_same_each_time(results, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    results("policies", CURVE)
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(report, "PICTURES", tmp_path / name)
        report._pictures()
        assert "](study-curve.svg)" in document()
        found.append((tmp_path / name / "study-curve.svg").read_bytes())
    assert found[0] == found[1]
    words = {"".join(node.itertext()) for node in ElementTree.fromstring(found[0]).iter() if node.tag.endswith("text")}
    assert {"balanced", "fast", "layer 0, BANKING77", "layer 1, 256 tokens"} <= words


def test_every_layer_and_quantile(results):
    rows = [
        {"layer": layer, "quantile": quantile, "score": score, "reduce": reduce, "mean_drop": drop}
        for layer, quantile, score, reduce, drop in (
            (0, 0.3, "attention", "drop", 1.25),
            (0, 0.5, "attention", "drop", 9.0),
            (0, 0.3, "attention", "merge", 0.75),
            (2, 0.3, "learned", "restore", -0.1),
        )
    ]
    results("ablation", {"rows": rows})
    text = document()
    assert table(text, "## Layers and quantiles")[0] == ["layer 0", "q=0.3", "q=0.5"]
    assert table(text, "| layer 0")[1:] == [["attention, drop", "1.25", "9.00"], ["attention, merge", "0.75", "-"]]
    assert table(text, "| layer 2")[1:] == [["learned, restore", "-0.10", "-"]]


def test_which_tokens_go(results):
    results(
        "tokens",
        {
            "kinds": {"fast": {"number": [8, 2], "special": [10, 0]}, "paper": {"number": [8, 4]}},
            "accuracy": {
                "all": {"none": [0.9, 0.8, 0.7], "fast": [0.8, 0.8, 0.8]},
                "size": {"banking77": [100, 12, 34], "hwu64": [50, 5, 6]},
                "with a number": {"none": [0.5, 0.5, 0.8], "fast": [0.4, 0.4, 0.4]},
            },
        },
    )
    text = document()
    assert table(text, "int8. Share of the tokens")[2:] == [["fast", "25.0%", "0.0%"], ["paper", "50.0%", "-"]]
    assert table(text, "Accuracy at 10 shots (official")[2:] == [["none", "80.0%", "60.0%"], ["fast", "80.0%", "40.0%"]]
    assert "banking77 100, 12 with a negation, 34 with a number; hwu64 50, 5 with a negation, 6 with a number." in text


def test_times(results):
    rows = [
        {
            "model": model,
            "backend": "compiled",
            "precision": "int8",
            "texts": "bbc",
            "policy": policy,
            "time_ratio": ratio,
            "microseconds_per_text": 1000 * ratio,
        }
        for model, policy, ratio in (("six", "none", 1.0), ("six", "fast", 0.5), ("twelve", "none", 2.0))
    ]
    results("speed", rows)
    assert table(document(), "## Times on both")[2:] == [
        ["six", "compiled", "int8", "bbc", "1000", "50.0%"],
        ["twelve", "compiled", "int8", "bbc", "2000", "-"],
    ]


def test_out_of_scope(results):
    shares = {
        "auroc": 0.95,
        "fpr_at_95": 0.2,
        "out_of_scope_recall": 0.6,
        "out_of_scope_precision": 0.7,
        "in_scope_accuracy": 0.8,
        "accuracy_without_rejection": 0.9,
    }
    about = {"task": "clinc150", "shots": 5, "calibrated": "without"}
    results("out-of-scope", [{**about, "score": name, "chosen": name == "oos", **shares} for name in ("oos", "margin")])
    figures = ["95.0%", "20.0%", "60.0%", "70.0%", "80.0%", "90.0%"]
    found = [line[3:] for line in table(document(), "## Out of scope")[2:]]
    assert found == [["oos *", *figures], ["margin", *figures]]


def test_write_fills_the_marked_part_of_the_readme(results, tmp_path, monkeypatch):
    results("main-int8", {"rows": MAIN})
    results("machine", {"cpu": "Abacus", "available_cores": 3})
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "study.md")
    (tmp_path / "README.md").write_text("before\n<!-- study: begin -->\nold\n<!-- study: end -->\nafter\n")
    report.write()
    assert (tmp_path / "study.md").read_text(encoding="utf-8") == document()
    assert "on 3 processors of a machine with Abacus." in document()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- study: begin -->\n| pruning  | 10-shot |")
    assert readme.endswith("|\n<!-- study: end -->\nafter\n")
    assert "old" not in readme
    report.write()
    assert (tmp_path / "README.md").read_text() == readme


# Kinds of tokens

KINDS = {
    "[CLS]": "special",
    "##ing": "word piece",
    "##7": "word piece",
    "not": "negation",
    "t": "negation",
    "cannot": "negation",
    "?": "punctuation",
    "'": "punctuation",
    "...": "punctuation",
    "7": "number",
    "4th": "number",
    "the": "stop word",
    "what": "stop word",
    "card": "other word",
    "notice": "other word",
    "é": "other word",
}


@pytest.mark.parametrize("token", KINDS)
def test_kinds_of_tokens(token):
    assert parts.token_kind(token, token == "[CLS]") == KINDS[token]


def test_word_lists_share_nothing():
    assert not parts.STOP_WORDS & parts.NEGATIONS


def test_unknown_parts_are_refused(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(parts, "PARTS", {name: lambda name=name: ran.append(name) for name in ("first", "second")})
    with pytest.raises(SystemExit, match="there is no part 'third', wanted some of first, second"):
        parts.run(["first", "third"])
    assert not ran
    parts.run(["second"])
    parts.run([])
    parts.run(["second", "first"])
    assert ran == ["second", "first", "second", "first", "second"]


def test_few_tokens_are_as_many_of_each_length(monkeypatch):
    def encode(found):
        return SimpleNamespace(lengths=[len(text.split()) for text in found])

    monkeypatch.setattr(parts, "encoder", lambda _: SimpleNamespace(tokenizer=SimpleNamespace(encode=encode)))
    many = [f"{i} " + "word " * (length - 1) for i in range(5) for length in range(3, 20) if i < 2 or length != 9]
    found = parts._of_few_tokens(many)
    assert [len(text.split()) for text in found] == [*range(5, 16)] * 2  # a third text of 9 tokens there is not
    assert len({*found}) == 22


@pytest.mark.parametrize("precision", settings.PRECISIONS)
@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_every_length_of_few_tokens_is_timed(precision, backend):
    model = SimpleNamespace(precision=precision, backend=backend)
    found = {name: parts._sample(model, name) for name in ("banking77", settings.LONG, settings.ONE_BY_ONE)}
    assert min(found.values()) >= 1
    assert found[settings.ONE_BY_ONE] % 11 == 0


def test_one_by_one_is_a_call_for_each_text():
    calls = []
    model = SimpleNamespace(encode=lambda call, **_: calls.append(call))
    parts._embed(model, ["one", "two"], None)
    parts._embed(model, [["one", "two"]], None)
    assert calls == ["one", "two", ["one", "two"]]


def test_cosines_by_length(monkeypatch):
    """Texts turned by 10 and by 30 degrees; the longest is cut."""
    angles = {"a": 10, "b": 30, "c": 10}

    def encode(found, pruning):
        turned = np.radians([angles[text] if pruning else 0 for text in found])
        return np.stack([np.cos(turned), np.sin(turned)], axis=1)

    lengths = SimpleNamespace(encode=lambda _: SimpleNamespace(lengths=[16, 15, 900]))
    model = SimpleNamespace(encode=encode, tokenizer=lengths, max_seq_length=128)
    monkeypatch.setattr(parts, "policies", lambda: {"some": object()})
    found = parts._turns(model, [*angles])["some"]
    cosine = {angle: math.cos(math.radians(angle)) for angle in (10, 30)}
    assert found["cosines"] == pytest.approx({"16": (cosine[10] + cosine[30]) / 2, "128": cosine[10]})
    assert {each["length"]: each["turn"] for each in found["lengths"]} == pytest.approx({16: 20, 128: 10})


# The choice of policies

LIMITS = curve.Allowed(accuracy=0.4, mrr=0.5, cosine=0.96)


@pytest.mark.parametrize(
    ("less", "is_chosen"),
    [
        (tried(0, 14.0, 0.7, 0.7, 0.4, 0.5, (0.96, 0.96, 0.96)), True),  # at every limit
        (tried(0, 14.0, 0.7, 0.7, -1.0, -1.0, (1.0, 1.0, 1.0)), True),
        (tried(0, 14.0, 0.7, 0.7, 0.41), False),
        (tried(0, 14.0, 0.7, 0.7, 0.0, 0.51), False),
        *[
            (tried(0, 14.0, 0.7, 0.7, 0.0, 0.0, tuple(np.roll((0.959, 0.99, 0.99), i).tolist())), False)
            for i in range(3)
        ],
        (tried(0, 14.0, 0.95, 0.4), True),  # both kinds of texts count alike
        (tried(0, 14.0, 0.6, 1.2), False),  # more, in sum
        (tried(0, 14.0, 0.84, 0.85, cosines=(0.989, 0.99, 0.99)), False),  # about equal, and it costs more
        (tried(0, 14.0, 0.855, 0.855, cosines=(0.991, 0.991, 0.991)), True),  # about equal, and it costs less
        (tried(0, 14.0, 0.865, 0.865, cosines=(0.991, 0.991, 0.991)), False),  # too much more for that
    ],
)
def test_the_least_work_within_the_limits_is_chosen(less, is_chosen):
    rows = [tried(0, 10.0, 0.9, 0.9), tried(1, 8.0, 0.85, 0.85), less]
    assert curve.choice(rows, LIMITS) is rows[2 if is_chosen else 1]
    assert curve.choice(rows[::-1], LIMITS) is rows[2 if is_chosen else 1]


def test_the_nearest_is_chosen_where_none_is_within_the_limits():
    rows = [
        tried(0, 22.0, 0.5, 0.5, 4.0),  # ten times what is allowed
        tried(0, 16.0, 0.7, 0.7, 0.1, 0.1, (0.95, 0.99, 0.9)),  # 2.5 times, at 256 tokens
        tried(1, 16.0, 0.8, 0.8, 0.0, 1.0),  # twice
        tried(1, 14.0, 0.9, 0.9, 0.9, 0.6),  # 2.25 times
    ]
    assert [curve.overrun(each, LIMITS) for each in rows] == pytest.approx([10, 2.5, 2, 2.25])
    assert curve.choice(rows, LIMITS) is rows[2]


def test_no_test_split_decides(monkeypatch):
    def fake(name):
        splits = {}
        for split, count in (("train", 900), ("valid", 30), ("test", 30)):
            found = [f"The {name} {split} text {i} begins. Then it goes on {i}." for i in range(count)]
            splits[split] = Examples(found, [f"label {i % 5}" for i in range(count)])
        return Task(name, splits, {}, name)

    for module in (curve, settings):
        monkeypatch.setattr(module, "task", fake)
    searches = curve._searches()
    assert len({search.name for search in searches}) == 3
    used = [[*search.queries, *search.documents] for search in searches]
    assert all(" train text " in text or "Then it goes on" in text for found in used for text in found)
    assert not any(" test text " in text or " valid text " in text for found in used for text in found)
    assert not {*searches[2].queries} & {*searches[2].documents}
    assert len(searches[2].queries) == 300
    assert len({*searches[0].documents}) == 500
    halves = [int(text.split()[4]) for text in searches[1].queries]
    assert halves == [*range(500, 800)]  # other articles than those whose headlines are searched
    left = settings.without_test("banking77")
    assert {split: each.texts[0].split()[2] for split, each in left.splits.items()} == {
        "train": "train",
        "test": "valid",
    }


# Texts

SENTENCE = "This paragraph of {} is long enough to be taken, which is sixty letters and more."
WIKI = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def article(title, text):
    return f'<page><title>{title}</title><revision><text xml:space="preserve">{text}</text></revision></page>\n'


def wheel(folder, articles):
    file = folder / "gensim-4.4.0-cp311-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("gensim/test/test_data/other.bz2", bz2.compress(article("Other", "other").encode()))
        archive.writestr(WIKI, bz2.compress("".join(articles).encode()))
    return file


def debian(folder, name, files):
    """A Debian package: an ar archive whose members fill to an even length; the tar's order is not that of names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for path, data in sorted(files.items(), reverse=True):
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = b"!<arch>\n"
    for member, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        ("data.tar.xz", buffer.getvalue()),
    ):
        data += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        data += b"\n" * (len(content) % 2)
    file = folder / f"{name}_1.0_all.deb"
    file.write_bytes(data)
    return file


def read(name, package):
    (source,) = [source for source in texts.SOURCES if source.name == name]
    return [*source.paragraphs(package)]


MARKUP = """{{Infobox|a={{b|{{c}}}}
|d=e}}
'''Rome''' is a [[city]] of [[Italy|the Italians]],&lt;ref name=a&gt;x&lt;/ref&gt;
older&amp;nbsp;than&lt;ref name=a/&gt; others.
[[File:a.png|thumb|A [[picture]] of it]]It has &quot;hills&quot; &amp;amp; a [http://example.org river].
{| class=wide
| cell
|}
== History ==
* first
&lt;!-- a
remark --&gt;It fell &lt;small&gt;late&lt;/small&gt;.
# second
a | b
"""


def test_articles_without_their_markup(tmp_path):
    articles = [article("Rome", MARKUP), article("Roma", "#REDIRECT [[Rome]]"), article("Talk:Rome", "What a city.")]
    found = read("Wikipedia", wheel(tmp_path, [*articles, article("Last", "The end.")]))
    assert found == [
        "Rome is a city of the Italians,",
        "older than others.",
        'It has "hills" & a river.',
        "It fell late.",
        "The end.",
    ]


def test_entries_of_the_dictionary(tmp_path):
    entries = (
        "00-database-info\n\n   About {it}.\n\nbit\n\n   <unit> <jargon> A {binary digit},\n   the least.\n\n"
        "   It is 0 or 1.\n\n   (1995-03-04)\n\nbyte\n   Eight bits.\n"
    )
    files = {
        "usr/share/dictd/foldoc.dict.dz": gzip.compress(entries.encode()),
        "usr/share/dictd/foldoc.index": b"bit\tA\tB",
        "usr/share/doc/foldoc.dict.dz": b"not this one",
    }
    found = read("FOLDOC", debian(tmp_path, "dict-foldoc", files))
    assert [each for each in found if each] == [
        "About it.",
        "A binary digit, the least.",
        "It is 0 or 1.",
        "Eight bits.",
    ]


def test_pages_of_two_packages(tmp_path):
    page = "<page><title>no</title><p>{0} <gui>{0}</gui>\n  &amp; more</p><note><p>Again.</p></note></page>"
    pages = {f"usr/share/help/{path}": page.format(path[0]).encode() for path in (
        "C/gnome-help/b.page", "C/gnome-help/a.page", "de/gnome-help/a.page", "C/other/a.page", "C/gnome-help/a.svg",
    )}  # fmt: skip
    pages["usr/share/help/C/gnome-help/a.page"] = b"<p>First.</p>"
    assert read("GNOME Help", debian(tmp_path, "gnome-user-docs", pages)) == ["First.", "C C & more", "Again."]
    html = {
        f"usr/share/doc/python3.11/html/{path}": f"<h1>no</h1><p>{path}</p><p class='x'>no</p>".encode()
        for path in ("tutorial/index.html", "howto/sorting.html", "library/re.html", "tutorial/index.txt")
    }
    found = read("Python's documentation", debian(tmp_path, "python3.11-doc", html))
    assert found == ["howto/sorting.html", "tutorial/index.html"]


def test_pieces_are_whole_runs_of_words_of_spread_lengths():
    words = [[f"{i}.{j}" for j in range(10 + i % 7)] for i in range(3000)]
    found = [each.split() for each in texts._pieces([" ".join(each) for each in words], 2000, random.Random(1))]
    everything = [word for each in words for word in each]
    place = {word: i for i, word in enumerate(everything)}
    assert all(piece[0].endswith(".0") for piece in found)
    assert all(piece == everything[place[piece[0]] : place[piece[0]] + len(piece)] for piece in found)
    lengths = [len(piece) for piece in found]
    assert min(lengths) >= 6
    assert max(lengths) <= 190
    for least in (6, 12, 24, 48):  # an octave is a fifth of them: 401
        assert 340 < sum(least <= length < 2 * least for length in lengths) < 460
    assert statistics.median(lengths) == pytest.approx(math.sqrt(6 * 190), rel=0.1)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of four small packages, and data sets of 500 utterances and of 2."""
    folder = tmp_path / "packages"
    folder.mkdir()
    many = {
        source.name: [SENTENCE.format(f"{source.name}, {i}") for i in range(300)] + ["Too short."]
        for source in texts.SOURCES
    }
    wheel(folder, [article("A", "\n".join(many["Wikipedia"]))])
    entries = "".join(f"entry\n\n   {each}\n\n" for each in many["FOLDOC"])
    debian(folder, "dict-foldoc", {"usr/share/dictd/foldoc.dict.dz": gzip.compress(entries.encode(), mtime=0)})
    for name, package, path in (
        ("GNOME Help", "gnome-user-docs", "usr/share/help/C/gnome-help/a.page"),
        ("Python's documentation", "python3.11-doc", "usr/share/doc/python3.11/html/howto/a.html"),
    ):
        debian(folder, package, {path: "".join(f"<p>{each}</p>" for each in many[name]).encode()})

    def fake(name):
        found = [f"{name} utterance {i}" for i in range(2 if name == "snips" else 500)]
        splits = {
            split: Examples([f"{each} {split}" for each in found], ["label"] * len(found))
            for split in ("train", "test")
        }
        return Task(name, splits, {}, name)

    monkeypatch.setattr(texts, "task", fake)
    monkeypatch.setenv("MINITRANS_STUDY_TEXTS", str(folder))
    return folder


def test_texts_are_of_every_source_and_held_out_ones_apart(packages):
    learn, held_out, seen = texts.fit_texts()
    utterances = [[text for text in found if " utterance " in text] for found in (learn, held_out)]
    each = (texts.UTTERANCES + texts.HELD_OUT) // 4
    assert [len(found) for found in utterances] == [2 + 3 * each - texts.HELD_OUT, texts.HELD_OUT]
    assert len({*utterances[0], *utterances[1]}) == 2 + 3 * each
    assert all(text.endswith(" train") for found in utterances for text in found)
    prose = [[text for text in found if " utterance " not in text] for found in (learn, held_out)]
    assert [len(found) for found in prose] == pytest.approx([texts.PROSE, texts.HELD_OUT], abs=2)
    numbers = [{int(n) for text in found for n in re.findall(r", (\d+) ", text)} for found in prose]
    assert numbers[0]
    assert max(numbers[0]) < min(numbers[1])  # no paragraph is on both sides
    everything = prose[0] + prose[1]
    assert not any("Too short" in text for text in everything)
    for source in texts.SOURCES:
        of_it = [text for text in everything if text.startswith(f"This paragraph of {source.name}"[: len(text)])]
        assert len(of_it) == pytest.approx((texts.PROSE + texts.HELD_OUT) * source.share, abs=1)
        assert any(f"{source.package}" in name and source.licence in name for name in seen)
    assert len(seen) == 8


def test_the_same_folder_gives_the_same_texts(packages):
    first, again = texts.fit_texts(), texts.fit_texts()
    assert first == again
    debian(packages, "gnome-user-docs", {"usr/share/help/C/gnome-help/a.page": f"<p>{SENTENCE}</p>".encode() * 9})
    learn, _, seen = texts.fit_texts()
    assert learn != first[0]
    assert {name.split()[0] for name in seen if seen[name] != first[2][name]} == {"GNOME"}


@pytest.mark.parametrize("source", texts.SOURCES, ids=lambda source: source.name)
def test_a_missing_package_is_named_with_its_command(packages, source):
    (file,) = packages.glob(f"{source.package}*")
    file.rename(file.with_name(f"old-{file.name}"))
    with pytest.raises(SystemExit) as error:
        texts.fit_texts()
    said, *rest = str(error.value).splitlines()
    assert f"{packages} has no {source.package}" in said
    commands = [line for line in rest if re.search(r"^ +(pip|apt-get) download ", line)]
    assert any(re.search(rf"\s{re.escape(source.package[:-1])}(==\S+)?(\s|$)", line) for line in commands)


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRANS_STUDY_TEXTS", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"nowhere is missing: .*MINITRANS_STUDY_TEXTS(?s:.)*apt-get download"):
        texts.fit_texts()


def test_a_package_without_its_prose_is_named(packages):
    debian(packages, "dict-foldoc", {"usr/share/doc/readme": b"moved"})
    with pytest.raises(SystemExit, match=r"dict-foldoc_1\.0_all\.deb holds no prose where FOLDOC should be"):
        texts.fit_texts()
    with zipfile.ZipFile(next(packages.glob("gensim-*")), "w") as archive:
        archive.writestr("gensim/nothing", b"")
    with pytest.raises(SystemExit, match=r"gensim-.* holds no prose where Wikipedia should be"):
        texts.fit_texts()


# What is stored


def names_that_are_read(monkeypatch, tmp_path):
    """The results that the report and the pictures ask for."""
    found = set()
    real = settings.load

    def spy(name):
        found.add(name)
        return real(name)

    for module in (settings, report, picture):
        monkeypatch.setattr(module, "load", spy)
    monkeypatch.setattr(picture, "PICTURES", tmp_path)
    document()
    picture.write()
    return found


def test_no_stored_result_is_lying_about(monkeypatch, tmp_path):
    stored = {file.stem for file in settings.RESULTS.iterdir()}
    assert stored <= names_that_are_read(monkeypatch, tmp_path), (
        "files in study/results that nothing reads: delete them"
    )


def test_no_stored_picture_is_lying_about():
    shown = {f"{name}.svg" for name in re.findall(r"\]\((study-[^)]+)\.svg\)", document())}
    assert {file.name for file in settings.PICTURES.glob("study-*.svg")} == shown, "run `python -m study report`"


def test_what_the_parts_store_is_what_is_read(results, monkeypatch, tmp_path):
    written = set()
    for module in (parts, curve):
        for name in re.findall(r"\bsave\(\s*f?\"([^\"]+)\"", Path(module.__file__).read_text(encoding="utf-8")):
            written |= {name.format(precision=precision) for precision in settings.PRECISIONS}
    assert written == names_that_are_read(monkeypatch, tmp_path)


def test_the_document_is_what_the_stored_results_give():
    if not settings.DOCUMENT.is_file():
        pytest.skip("there is no docs/study.md")
    text = settings.DOCUMENT.read_text(encoding="utf-8")
    assert text == document(), "run `python -m study report`"
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (settings.PICTURES / name).is_file()


def test_the_readme_holds_the_stored_table():
    match = report.MARK.search((ROOT / "README.md").read_text(encoding="utf-8"))
    if match is None or not settings.DOCUMENT.is_file():
        pytest.skip("there is no docs/study.md, or no place for its table")
    wanted = f"{match[1]}{report._main_table('int8', shots=(10,))}{match[2]}"
    assert match[0] == wanted, "run `python -m study report`"


def test_stored_results_hold_no_bare_nan():
    def refuse(name):
        raise AssertionError(f"{file}: {name}")

    for file in settings.RESULTS.glob("*.json"):
        json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
