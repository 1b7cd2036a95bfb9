"""The study's document: its arithmetic and tables on made-up results, and that the stored one is what they give."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "study" / "report.py").is_file():
    pytest.skip("the study is no part of the package", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from study import parts, report, settings  # noqa: E402


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


def speed_of(rows, precision="int8"):
    """What the part `speed` would have found: times come from it, not from those of the rows' own run."""
    about = {"model": "all-MiniLM-L6-v2", "backend": "compiled", "precision": precision, "microseconds_per_text": 1.0}
    return [
        {**about, "texts": each["task"], "policy": each["pruning"], "time_ratio": each["time_ratio"]}
        for each in rows
        if each["task"] in ("banking77", "bbc") and each["shots"] == 10
    ]


# The verdicts


@pytest.mark.parametrize(
    ("saved", "points", "holds", "reached"),
    [
        (0.25, 0.3, "yes", "yes"),
        (0.24, 0.3, "yes", "no"),
        (0.25, 0.31, "yes", "no"),
        (0.18, 0.5, "yes", "no"),
        (0.179, 0.0, "no", "no"),
        (0.9, 0.51, "no", "no"),
        (0.3, -2.0, "yes", "yes"),
    ],
)
def test_verdicts(saved, points, holds, reached):
    found = report._judged("this", {"saved": saved, "points": points}, (0.18, 0.5), (0.25, 0.3))
    assert found == {
        "what": "this",
        "saved": saved,
        "points": points,
        "bar": "18% at 0.5",
        "holds": holds,
        "goal": "25% at 0.3",
        "reached": reached,
    }


def test_goals_are_beyond_the_bars():
    for bar, goal in [*report.BARS.values(), (report.LONG_BAR, report.LONG_GOAL)]:
        assert goal[0] > bar[0]
        assert goal[1] < bar[1]
    assert report.BARS.keys() == settings.LIMITS.keys()


# The document


def test_nothing_stored(results):
    text = document()
    assert text.startswith("# The study: pruning tokens of few-shot intents\n")
    assert "![" not in text
    assert report._pictures() is None


def test_accuracy_and_time(results):
    results("main-intents-int8", {"rows": MAIN})
    assert table(document(), "### int8")[3][-2:] == ["-", "62.3%"]  # not timed yet
    results("speed", speed_of(MAIN))
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


def test_what_was_aimed_at(results):
    results("main-intents-int8", {"rows": MAIN})
    long = [row("none", 10, "bbc"), row("fast", 10, "bbc", -0.004, time=0.3), row("fast", 1, "bbc", -0.5, time=0.9)]
    results("main-long-int8", {"rows": [*long, row("paper q=0.3 l=1", 10, "bbc", -0.1, time=0.5)]})
    float32 = [row("fast-intents", 10, change=0.001), row("fast-intents", 10, "banking77", time=0.6)]
    results("main-intents-float32", {"rows": float32})
    results("speed", speed_of(MAIN) + speed_of(long) + speed_of(float32, "float32"))
    assert table(document(), "### Against what was aimed at")[2:] == [
        ["balanced, int8", "25.9%", "0.20", "18% at 0.5", "yes", "25% at 0.3", "yes"],
        ["fast, int8", "29.0%", "1.30", "30% at 1.5", "no", "40% at 1", "no"],
        ["fast on bbc, int8", "70.0%", "0.40", "50% at 1", "yes", "65% at 0.5", "yes"],
        ["fast-intents, float32", "40.0%", "-0.10", "30% at 1.5", "yes", "40% at 1", "yes"],
    ]


def test_long_inputs(results):
    rows = [row("none", 10, "bbc", accuracy=0.95), row("fast", 10, "bbc", -0.004, 0.002, 0.946, 0.3, 0.25)]
    results("main-long-int8", {"rows": [*rows, row("fast", 1, "bbc", -0.5)]})
    results("speed", speed_of(rows))
    assert table(document(), "### Long inputs")[2:] == [
        ["none", "95.0% ± 1.0%", "-", "100.0%", "100.0%"],
        ["fast", "94.6% ± 1.0%", "-0.40 ± 0.20", "30.0%", "25.0%"],
    ]


@pytest.mark.parametrize(("meets", "verdict"), [(True, "chosen"), (False, "nearest; nothing stays within the limits")])
def test_how_a_policy_was_found(results, meets, verdict):
    results(
        "adaptation-in-domain-fast",
        {
            "chosen": "learned, drop, s=4 l=1 q=0.5",
            "meets": meets,
            "mean_drop": -0.126,
            "bounds": [0.256, 1.876],
            "tried": 123,
            "limits": {"mean_drop": 1.5, "task_drop": 3.0, "confidence": 0.9},
            "table": "| what |\n| ---- |\n| kept as it is |\n",
            "picture": "study-in-domain-fast.svg",
        },
    )
    text = document()
    assert "### fast-intents: on the training and validation splits\n" in text
    assert "Limits: 1.5 points on average, 3 on the worst task, confidence 90%. Of 123 policies: " in text
    assert f"**learned, drop, s=4 l=1 q=0.5** ({verdict}), mean drop -0.13 (bound 0.26), " in text
    assert "worst task's bound 1.88. A negative drop is a gain." in text
    assert "![Accuracy against time](study-in-domain-fast.svg)" in text
    assert table(text, "### fast-intents")[2:] == [["kept as it is"]]


ABLATION = [
    {"layer": layer, "quantile": quantile, "score": score, "reduce": reduce, "protect": protect, "mean_drop": drop}
    for layer, quantile, score, reduce, protect, drop in (
        (0, 0.1, "attention", "drop", False, 1.25),
        (0, 0.5, "attention", "drop", False, 9.0),
        (0, 0.1, "attention", "drop", True, 0.75),
        (2, 0.1, "learned", "restore", False, -0.1),
    )
]


def test_every_layer_and_quantile(results):
    results("ablation", {"rows": ABLATION})
    text = document()
    assert re.findall(r"^\| (layer \d) +\| (q=0.1) \| (q=0.5) \|$", text, re.MULTILINE) == [
        ("layer 0", "q=0.1", "q=0.5"),
        ("layer 2", "q=0.1", "q=0.5"),
    ]
    assert table(text, "| layer 0")[1:] == [
        ["attention, drop", "1.25", "9.00"],
        ["attention, drop, specials protected", "0.75", "-"],
    ]
    assert table(text, "| layer 2")[1:] == [["learned, restore", "-0.10", "-"]]
    assert "](study-ablation.svg)" in text


def test_the_picture_of_layers_and_quantiles(results, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    results("ablation", {"rows": ABLATION})
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(report, "PICTURES", tmp_path / name)
        report._pictures()
        found.append((tmp_path / name / "study-ablation.svg").read_bytes())
    assert found[0] == found[1]
    words = {"".join(node.itertext()) for node in ElementTree.fromstring(found[0]).iter() if node.tag.endswith("text")}
    assert {"attention, drop", "attention, restore", "learned, restore", "layer 2"} <= words


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
    assert table(document(), "## Times on other")[2:] == [
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
    results("main-intents-int8", {"rows": MAIN})
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


# What is stored


def test_the_document_is_what_the_stored_results_give():
    if not settings.DOCUMENT.is_file():
        pytest.skip("there is no docs/study.md")
    text = settings.DOCUMENT.read_text(encoding="utf-8")
    assert text == document(), "run `python -m study report`"
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (settings.PICTURES / picture).is_file()


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
