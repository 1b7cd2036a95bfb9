"""docs/study.md: tables and pictures of the stored results. No figure is typed by hand."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from minitrans.adaptation.report import svg_figure
from minitrans.evaluation.tables import Column, render, save_text
from study.curve import ALLOWED, WEIGHED
from study.settings import (
    ADAPTATION,
    DOCUMENT,
    FEWER_SHOTS,
    LONG,
    ONE_BY_ONE,
    PICTURES,
    PRECISIONS,
    ROOT,
    SHOTS,
    load,
    time_ratios,
)

# What was aimed at: the least share of the time that is saved, in float32 and in int8. `ALLOWED` is what it may cost.
BARS = {
    "balanced": {"banking77": (0.20, 0.15), LONG: (0.25, 0.22)},
    "fast": {"banking77": (0.33, 0.25), LONG: (0.38, 0.34)},
}
SLOWER = 1.03  # the most that texts of 5 to 15 tokens may take one by one, as a share of no pruning
MARK = re.compile(r"(<!-- study: begin -->\n).*?(<!-- study: end -->)", re.DOTALL)


def write() -> None:
    """Write the document and its pictures, and the main table into the README."""
    _pictures()
    save_text(DOCUMENT, "\n\n".join(part.strip() for part in _document()) + "\n")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if MARK.search(text):
        table = _main_table("int8", shots=(10,))
        save_text(readme, MARK.sub(lambda match: f"{match[1]}{table}{match[2]}", text))


def _document() -> Iterator[str]:
    machine = load("machine") or {}
    yield "# The study: what pruning costs and saves"
    yield (
        "Written by `python -m study report` from `study/results/`, which `python -m study run` computes. Accuracies "
        "are means over three intent data sets (BANKING77, CLINC150, HWU64: their test splits), each with five draws "
        "(float32: three) of the training examples; at 5 and 10 shots the first draw is the official one. The "
        "classifier is the one of the package, with label names. Times are interleaved, as shares of no pruning, on "
        f"{_machine(machine)}."
    )
    yield (
        f"The policies `balanced` and `fast` were fitted on the texts of {', '.join(ADAPTATION)} and on prose of free "
        "packages, and chosen on training and validation splits (see the end). The test splits, which all tables but "
        "that one are about, decided nothing. Rows `paper` use averaged attention and dropping, the method of arXiv "
        "2408.11799."
    )
    yield "## Accuracy and time"
    for precision in PRECISIONS:
        yield f"### {precision}, {'bundled' if precision == 'int8' else 'official'} all-MiniLM-L6-v2"
        yield _main_table(precision, shots=SHOTS if precision == "int8" else FEWER_SHOTS)
    yield "## Search"
    yield (
        "MRR@10 in hundredths, and what each policy changes, with a 95 % interval over the queries: where queries and "
        "documents are pruned, where pruned queries search an index without pruning, and where queries without "
        f"pruning search a pruned index. The first sentence of an article of `{LONG}` searches the rest of it, the "
        "first half the second; a test question of BANKING77 searches the training questions of its intent."
    )
    for precision in PRECISIONS:
        if load(f"fidelity-{precision}") is not None:
            yield f"{precision}:"
            yield _search_table(precision)
    yield "## How far embeddings turn"
    yield (
        "Degrees between an embedding and that without pruning, by the length of the text in tokens: mean and, in "
        "brackets, 95th percentile. Similarity: rank correlation of the cosines of all pairs of texts. 5 degrees are a "
        "cosine of 0.996, 10 of 0.985, 16 of 0.961, 23 of 0.921."
    )
    for precision in PRECISIONS:
        if load(f"fidelity-{precision}") is not None:
            yield f"{precision}:"
            yield _turn_table(precision)
    yield "## Against what was aimed at"
    yield _bars()
    yield "## Layers and quantiles"
    yield from _ablation()
    yield "## Which tokens go"
    yield from _tokens()
    yield "## Times on both backends and precisions"
    yield from _speed()
    yield "## Out of scope"
    yield from _out_of_scope()
    yield "## How the policies were found"
    yield from _curve()


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine.get('available_cores', '?')} processors of a machine with {machine.get('cpu', 'no name')}"


def _rows(name: str) -> list[dict[str, Any]]:
    return (load(name) or {"rows": []})["rows"]


def _main_table(precision: str, shots: tuple[int, ...]) -> str:
    """Mean accuracy per number of shots, the change, and the time on BANKING77."""
    rows = _rows(f"main-{precision}")
    columns = [Column("pruning", "pruning")]
    for count in shots:
        columns += [Column(f"accuracy_{count}", f"{count}-shot", ".1%")]
        columns += [Column(f"change_{count}", "points", "+.2f", f"ci_{count}")]
    columns += [Column("time", "time, BANKING77", ".1%"), Column("kept", "tokens kept", ".1%")]
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = table.setdefault(row["pruning"], {"pruning": row["pruning"]})
        if row["task"] == "(mean)" and row["shots"] in shots:
            line[f"accuracy_{row['shots']}"] = row["accuracy"]
            if row["accuracy_change"] is not None:
                line[f"change_{row['shots']}"] = 100 * row["accuracy_change"]
                spread = row["accuracy_change_ci95"]
                line[f"ci_{row['shots']}"] = None if spread is None else 100 * spread
        if row["task"] == "banking77":
            line["time"], line["kept"] = time_ratios(precision, "banking77").get(row["pruning"]), row["tokens_kept"]
    return render(columns, list(table.values()), "markdown")


def _search_table(precision: str) -> str:
    """A line for each search and policy, a column for each way to mix pruned and unpruned."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (load(f"fidelity-{precision}") or {"searches": []})["searches"]:
        line = lines.setdefault((row["task"], row["pruning"]), {"task": row["task"], "pruning": row["pruning"]})
        if row["pruned"] is None:
            line["mrr"] = 100 * row["mrr"]
            continue
        spread = row["mrr_change_ci95"]
        line[row["pruned"]] = 100 * row["mrr_change"]
        line[f"ci_{row['pruned']}"] = None if spread is None else 100 * spread
    columns = [Column("task", "search"), Column("pruning", "pruning"), Column("mrr", "MRR@10", ".1f")]
    columns += [
        Column(way, title, "+.2f", f"ci_{way}")
        for way, title in (("both", "all pruned"), ("queries", "queries pruned"), ("documents", "documents pruned"))
    ]
    return render(columns, list(lines.values()), "markdown")


def _turn_table(precision: str) -> str:
    found = (load(f"fidelity-{precision}") or {"turns": {}})["turns"]
    lines, lengths = [], {}
    for policy, each in found.items():
        line = {"policy": policy, "similarity": each["similarity"]}
        for length in each["lengths"]:
            name = str(length["length"])
            lengths[name] = None
            line[name] = f"{length['turn']:.1f} ({length['turn_p95']:.1f})"
        lines.append(line)
    columns = [Column("policy", "policy"), *(Column(name, f"{name} tokens") for name in lengths)]
    return render([*columns, Column("similarity", "similarity", ".3f")], lines, "markdown")


def _bars() -> str:
    """Each policy and precision, in each respect, against its bar."""
    lines = []
    for name, bars in BARS.items():
        allowed = ALLOWED[name]
        for place, precision in enumerate(("float32", "int8")):

            def judge(what: str, value: float, bar: float, most: bool, form: str, policy: str) -> None:
                holds = value <= bar if most else value >= bar
                limit = f"at {'most' if most else 'least'} {bar:{form}}"
                lines.append({"policy": policy, "what": what, "found": f"{value:{form}}", "bar": limit, "holds": holds})

            policy = f"{name}, {precision}"
            for texts in ("banking77", LONG):
                if (ratio := time_ratios(precision, texts).get(name)) is not None:
                    judge(f"time saved, {texts}", 1 - ratio, bars[texts][place], False, ".1%", policy)
            if (ratio := time_ratios(precision, ONE_BY_ONE).get(name)) is not None:
                judge("time, 5 to 15 tokens one by one", ratio, SLOWER, True, ".1%", policy)
            for row in _rows(f"main-{precision}"):
                if (row["task"], row["shots"], row["pruning"]) == ("(mean)", 10, name):
                    judge(
                        "points of accuracy, 10 shots",
                        -100 * row["accuracy_change"],
                        allowed.accuracy,
                        True,
                        ".2f",
                        policy,
                    )
            found = load(f"fidelity-{precision}") or {"searches": [], "turns": {}}
            for row in found["searches"]:
                if row["pruning"] == name and row["task"] == "(mean)":
                    what = f"MRR@10 lost, {'all' if row['pruned'] == 'both' else row['pruned']} pruned"
                    judge(what, -100 * row["mrr_change"], allowed.mrr, True, ".2f", policy)
            for length, cosine in found["turns"].get(name, {"cosines": {}})["cosines"].items():
                if int(length) in WEIGHED:
                    judge(f"mean cosine, {length} tokens", cosine, allowed.cosine, False, ".3f", policy)
    columns = [Column(name, name) for name in ("policy", "what", "found", "bar", "holds")]
    return render(columns, [{**line, "holds": "yes" if line["holds"] else "**no**"} for line in lines], "markdown")


def _curve() -> Iterator[str]:
    found = load("policies")
    if found is None:
        return
    yield (
        "Scores, maps and the turn that is foreseen were fitted on utterances of the data sets for "
        "adaptation and on as many pieces of prose of 6 to 190 words (see `study/texts.py` for the packages; the "
        "policies' files name them and their digests). These turns were then tried on training halves: work (rows "
        "that go through the layers) and time, as shares of no pruning, on 600 questions of BANKING77 and on 16 texts "
        "of 256 tokens; points of accuracy at 10 shots on the validation splits; MRR@10 in hundredths, mean of three "
        "searches, the worst way to mix pruned and unpruned; cosines on the texts that the turn was fitted to, which "
        "the scores and maps did not see. "
        + " ".join(
            f"`{name}` is the one with the least work of those that lose at most {limit['accuracy']:g} points and "
            f"{limit['mrr']:g} of MRR and keep a mean cosine of {limit['cosine']:g} at 16, 64 and 256 tokens"
            + (": " if found["chosen"][name]["meets"] else "; none does, and the nearest to that is named: ")
            + f"layer {found['chosen'][name]['layer']}, {found['chosen'][name]['turn']:g} degrees."
            for name, limit in found["allowed"].items()
        )
    )
    lines = [
        {
            **row,
            **{f"work_{kind}": share for kind, share in row["work"].items()},
            **{f"cosine_{length}": row["cosine"].get(str(length)) for length in WEIGHED},
        }
        for row in found["rows"]
    ]
    columns = [
        Column("layer", "layer"), Column("turn", "turn foreseen", ".0f"),
        Column("work_short", "work, BANKING77", ".1%"), Column("short", "time, BANKING77", ".1%"),
        Column("work_long", "work, 256 tokens", ".1%"), Column("long", "time, 256 tokens", ".1%"),
        Column("accuracy", "points", ".2f"), Column("mrr", "MRR", ".2f"),
        *(Column(f"cosine_{length}", f"cosine, {length}", ".3f") for length in WEIGHED),
        Column("p95", "95 % turn", ".1f"),
    ]  # fmt: skip
    yield render(columns, lines, "markdown")
    yield "![Work against turn, MRR and accuracy](study-curve.svg)"


def _ablation() -> Iterator[str]:
    found = load("ablation")
    if found is None:
        return
    yield (
        "int8, 10 shots, the official draw, s=6: points of accuracy lost, mean over the three sets. Rows `learned` and "
        "`restore` use arrays fitted on the other data sets. Differences under 0.3 are noise."
    )
    quantiles = sorted({row["quantile"] for row in found["rows"]})
    for layer in sorted({row["layer"] for row in found["rows"]}):
        lines: dict[str, dict[str, Any]] = {}
        for row in found["rows"]:
            if row["layer"] == layer:
                name = f"{row['score']}, {row['reduce']}"
                lines.setdefault(name, {"what": name})[str(row["quantile"])] = row["mean_drop"]
        columns = [Column("what", f"layer {layer}")] + [Column(str(q), f"q={q:g}", ".2f") for q in quantiles]
        yield render(columns, list(lines.values()), "markdown")


def _tokens() -> Iterator[str]:
    found = load("tokens")
    if found is None:
        return
    yield "int8. Share of the tokens of each kind that is dropped, over the three test splits:"
    names = sorted({kind for counts in found["kinds"].values() for kind in counts})
    lines = [
        {"policy": policy, **{kind: counts[kind][1] / counts[kind][0] for kind in counts}}
        for policy, counts in found["kinds"].items()
    ]
    yield render([Column("policy", "policy"), *(Column(name, name, ".1%") for name in names)], lines, "markdown")
    yield (
        "Accuracy at 10 shots (official draw, mean over the three sets) on all utterances, and on those with a "
        "negation or a number:"
    )
    groups = [group for group in found["accuracy"] if group != "size"]
    policies = list(found["accuracy"][groups[0]])
    lines = [
        {"policy": policy, **{group: statistics.fmean(found["accuracy"][group][policy]) for group in groups}}
        for policy in policies
    ]
    yield render([Column("policy", "policy"), *(Column(group, group, ".1%") for group in groups)], lines, "markdown")
    sizes = found["accuracy"]["size"]
    yield (
        "Utterances: "
        + "; ".join(
            f"{name} {counts[0]}, {counts[1]} with a negation, {counts[2]} with a number"
            for name, counts in sizes.items()
        )
        + "."
    )


def _speed() -> Iterator[str]:
    rows = load("speed")
    if rows is None:
        return
    yield "Embedding time as a share of no pruning. `one by one`: texts of 5 to 15 tokens, one in a call."
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    names: list[str] = []
    for row in rows:
        key = row["model"], row["backend"], row["precision"], row["texts"]
        line = lines.setdefault(key, dict(zip(("model", "backend", "precision", "texts"), key, strict=True)))
        if row["policy"] == "none":
            line["none"] = row["microseconds_per_text"]
        else:
            line[row["policy"]] = row["time_ratio"]
            names.append(row["policy"])
    columns = [Column(name, name) for name in ("model", "backend", "precision", "texts")]
    columns += [Column("none", "µs/text unpruned", ".0f")]
    columns += [Column(name, name, ".1%") for name in dict.fromkeys(names)]
    yield render(columns, list(lines.values()), "markdown")


def _out_of_scope() -> Iterator[str]:
    rows = load("out-of-scope")
    if rows is None:
        return
    yield (
        "int8, no pruning. The threshold is calibrated without the test set: to keep 95 % of the cross-fitted training "
        "examples, or, with 100 texts out of scope, for the best mean of what is kept and what is rejected. A star "
        'marks the score that `score="auto"` takes.'
    )
    lines = [{**row, "score": row["score"] + (" *" if row["chosen"] else "")} for row in rows]
    columns = (
        Column("task", "set"), Column("shots", "shots"), Column("calibrated", "calibrated"), Column("score", "score"),
        Column("auroc", "AUROC", ".1%"), Column("fpr_at_95", "FPR at 95 %", ".1%"),
        Column("out_of_scope_recall", "oos recall", ".1%"), Column("out_of_scope_precision", "oos precision", ".1%"),
        Column("in_scope_accuracy", "in-scope accuracy", ".1%"),
        Column("accuracy_without_rejection", "without rejection", ".1%"),
    )  # fmt: skip
    yield render(columns, lines, "markdown")


def _pictures() -> None:
    found = load("policies")
    if found is None:
        return
    with svg_figure(PICTURES / "study-curve.svg", (9, 3.4), font_size=8) as figure:
        axes = figure.subplots(1, 3)
        shown = (
            (lambda row: row["turns"]["64"], "mean turn at 64 tokens, degrees"),
            (lambda row: row["mrr"], "MRR@10 given up, hundredths"),
            (lambda row: row["accuracy"], "accuracy given up, points"),
        )
        for plot, (value, title) in zip(axes, shown, strict=True):
            for layer in sorted({row["layer"] for row in found["rows"]}):
                rows = [row for row in found["rows"] if row["layer"] == layer]
                for texts, style in (("short", "-"), ("long", "--")):
                    label = f"layer {layer}, {'BANKING77' if texts == 'short' else '256 tokens'}"
                    points = [(100 * row["work"][texts], value(row)) for row in rows]
                    plot.plot(*zip(*points, strict=True), style, color=f"C{layer}", marker="o", ms=3, label=label)
            for name, chosen in found["chosen"].items():
                (row,) = [
                    row for row in found["rows"] if (row["layer"], row["turn"]) == (chosen["layer"], chosen["turn"])
                ]
                plot.annotate(name, (100 * row["work"]["short"], value(row)), textcoords="offset points", xytext=(5, 5))
            plot.set_title(title)
            plot.set_xlabel("work, % of no pruning")
            plot.grid(alpha=0.25)
        axes[0].legend(fontsize=7)
