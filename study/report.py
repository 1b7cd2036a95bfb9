"""docs/study.md: tables and pictures of the stored results. No figure is typed by hand."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from minitrans.adaptation.report import svg_figure
from minitrans.evaluation.tables import Column, render, save_text
from study.settings import (
    ADAPTATION,
    DOCUMENT,
    FEWER_SHOTS,
    LIMITS,
    LONG,
    LONG_POLICY,
    PICTURES,
    PRECISIONS,
    ROOT,
    SHOTS,
    load,
    time_ratios,
)

BARS = {  # mode: least share of time saved, most points lost; the same as goals
    "balanced": ((0.18, 0.5), (0.25, 0.3)),
    "fast": ((0.30, 1.5), (0.40, 1.0)),
}
LONG_BAR, LONG_GOAL = (0.50, 1.0), (0.65, 0.5)
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
    yield "# The study: pruning tokens of few-shot intents"
    yield (
        "Written by `python -m study report` from `study/results/`, which `python -m study run` computes. Accuracies "
        "are means over three intent data sets (BANKING77, CLINC150, HWU64: their test splits), each with five draws "
        "(float32 and long inputs: three) of the training examples; at 5 and 10 shots the first draw is the official "
        "one. The classifier is the one of the package, with label names. Times are interleaved, as shares of no "
        f"pruning, on {_machine(machine)}."
    )
    yield (
        f"The policies `balanced` and `fast` were chosen, and their arrays fitted, on {', '.join(ADAPTATION)} alone. "
        "`balanced-intents` and `fast-intents` are a second variant: chosen and fitted on the training and validation "
        "splits of the three sets that are reported. The test splits decided nothing. Rows `paper` use averaged "
        "attention and dropping, the method of arXiv 2408.11799."
    )
    yield "## Accuracy and time"
    for precision in PRECISIONS:
        yield f"### {precision}, {'bundled' if precision == 'int8' else 'official'} all-MiniLM-L6-v2"
        yield _main_table(precision, shots=SHOTS if precision == "int8" else FEWER_SHOTS)
    yield "### Against what was aimed at"
    yield _bars()
    yield f"### Long inputs: {LONG}, up to 256 tokens"
    for precision in PRECISIONS:
        yield f"{precision}:"
        yield _long_table(precision)
    yield from _long_choice()
    yield "## How the policies were found"
    for variant, words in (("transfer", "on other data sets"), ("in-domain", "on the training and validation splits")):
        for name in LIMITS:
            yield from _adaptation(variant, name, words)
    yield "## Every layer and quantile"
    yield from _ablation()
    yield "## Which tokens go"
    yield from _tokens()
    yield "## Times on other backends, precisions and depths"
    yield from _speed()
    yield "## Out of scope"
    yield from _out_of_scope()


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine.get('available_cores', '?')} processors of a machine with {machine.get('cpu', 'no name')}"


def _rows(name: str) -> list[dict[str, Any]]:
    return (load(name) or {"rows": []})["rows"]


def _saved(policy: str, precision: str, texts: str) -> float:
    return 1 - time_ratios(precision, texts).get(policy, math.nan)


def _main_table(precision: str, shots: tuple[int, ...]) -> str:
    """Mean accuracy per number of shots, the change, and the time on BANKING77."""
    rows = _rows(f"main-intents-{precision}")
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


def _long_table(precision: str) -> str:
    rows = [row for row in _rows(f"main-long-{precision}") if row["shots"] == 10]
    lines = [
        {
            **row,
            "time": time_ratios(precision, LONG).get(row["pruning"]),
            "points": None if row["accuracy_change"] is None else 100 * row["accuracy_change"],
            "ci": None if row["accuracy_change_ci95"] is None else 100 * row["accuracy_change_ci95"],
        }
        for row in rows
    ]
    columns = (
        Column("pruning", "pruning"), Column("accuracy", "10-shot", ".1%", "accuracy_ci95"),
        Column("points", "points", "+.2f", "ci"), Column("time", "time", ".1%"),
        Column("tokens_kept", "tokens kept", ".1%"),
    )  # fmt: skip
    return render(columns, lines, "markdown")


def _long_choice() -> Iterator[str]:
    found = load("long")
    if found is None:
        return
    yield (
        "`long` is the strongest of these policies that loses nothing on held-out texts of the training split (10 "
        "shots, three draws); its arrays saw the short texts of the other data sets only:"
    )
    lines = [
        {**row, "policy": row["policy"] + (" (chosen)" * (row["policy"] == found["chosen"]))} for row in found["rows"]
    ]
    columns = (
        Column("policy", "policy"), Column("mean_drop", "points lost, training split", "+.2f"),
        Column("rows", "rows left, all layers", ".1%"),
    )  # fmt: skip
    yield render(columns, lines, "markdown")


def _bars() -> str:
    """Each mode against its bar and goal: time on BANKING77, points at 10 shots over the three sets."""
    lines = []
    for precision in PRECISIONS:
        found: dict[str, dict[str, float]] = {}
        for row in _rows(f"main-intents-{precision}"):
            if row["task"] == "(mean)" and row["shots"] == 10 and row["accuracy_change"] is not None:
                found.setdefault(row["pruning"], {})["points"] = -100 * row["accuracy_change"]
            if row["task"] == "banking77" and row["shots"] == 10:
                found.setdefault(row["pruning"], {})["saved"] = _saved(row["pruning"], precision, "banking77")
        for mode, (bar, goal) in BARS.items():
            for name in (mode, f"{mode}-intents"):
                if name in found:
                    lines.append(_judged(f"{name}, {precision}", found[name], bar, goal))
        for row in _rows(f"main-long-{precision}"):
            if row["shots"] == 10 and row["pruning"].removesuffix("-intents") in (*BARS, LONG_POLICY):
                values = {"saved": _saved(row["pruning"], precision, LONG), "points": -100 * row["accuracy_change"]}
                lines.append(_judged(f"{row['pruning']} on {LONG}, {precision}", values, LONG_BAR, LONG_GOAL))
    columns = (
        Column("what", "what"), Column("saved", "time saved", ".1%"), Column("points", "points lost", ".2f"),
        Column("bar", "bar"), Column("holds", "holds"), Column("goal", "goal"), Column("reached", "reached"),
    )  # fmt: skip
    return render(columns, lines, "markdown")


def _judged(
    what: str, values: Mapping[str, float], bar: tuple[float, float], goal: tuple[float, float]
) -> dict[str, Any]:
    def holds(limit: tuple[float, float]) -> str:
        return "yes" if values["saved"] >= limit[0] and values["points"] <= limit[1] else "no"

    words = ["{:.0%} at {:g}".format(*limit) for limit in (bar, goal)]
    return {"what": what, **values, "bar": words[0], "holds": holds(bar), "goal": words[1], "reached": holds(goal)}


def _adaptation(variant: str, name: str, words: str) -> Iterator[str]:
    found = load(f"adaptation-{variant}-{name}")
    if found is None:
        return
    yield f"### {name}{'' if variant == 'transfer' else '-intents'}: {words}"
    limits, (mean, worst) = found["limits"], found["bounds"]
    verdict = "chosen" if found["meets"] else "nearest; nothing stays within the limits"
    yield (
        f"Limits: {limits['mean_drop']:g} points on average, {limits['task_drop']:g} on the worst task, confidence "
        f"{limits['confidence']:.0%}. Of {found['tried']} policies: **{found['chosen']}** ({verdict}), mean drop "
        f"{found['mean_drop']:.2f} (bound {mean:.2f}), worst task's bound {worst:.2f}. A negative drop is a gain."
    )
    yield f"![Accuracy against time]({found['picture']})"
    yield found["table"]


def _ablation() -> Iterator[str]:
    found = load("ablation")
    if found is None:
        return
    yield (
        "int8, 10 shots, the official draw, s=6: points of accuracy lost, mean over the three sets. `learned` and "
        "`restore` use arrays fitted on the other data sets. Differences under 0.3 are noise."
    )
    quantiles = sorted({row["quantile"] for row in found["rows"]})
    for layer in sorted({row["layer"] for row in found["rows"]}):
        lines: dict[str, dict[str, Any]] = {}
        for row in found["rows"]:
            if row["layer"] == layer:
                name = f"{row['score']}, {row['reduce']}" + (", specials protected" if row["protect"] else "")
                lines.setdefault(name, {"what": name})[str(row["quantile"])] = row["mean_drop"]
        columns = [Column("what", f"layer {layer}")] + [Column(str(q), f"q={q:g}", ".2f") for q in quantiles]
        yield render(columns, list(lines.values()), "markdown")
    yield "![Points lost by layer and quantile](study-ablation.svg)"


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
    yield (
        "Embedding time as a share of no pruning. The 12-layer model has random weights of the shape of MiniLM-L12, "
        "and policies whose arrays were fitted to the other model: it shows times only, its accuracy was not measured."
    )
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
    found = load("ablation")
    if found is None:
        return
    with svg_figure(PICTURES / "study-ablation.svg", (9, 3.2), font_size=8) as figure:
        methods = (("attention", "drop"), ("attention", "restore"), ("learned", "restore"))
        for axes, (score, reduce) in zip(figure.subplots(1, 3, sharey=True), methods, strict=True):
            rows = [
                row for row in found["rows"] if (row["score"], row["reduce"], row["protect"]) == (score, reduce, False)
            ]
            for layer in sorted({row["layer"] for row in rows}):
                points = sorted((row["quantile"], -row["mean_drop"]) for row in rows if row["layer"] == layer)
                axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=f"layer {layer}")
            axes.set_title(f"{score}, {reduce}")
            axes.set_xlabel("quantile")
            axes.set_ylim(-12, 2)
            axes.grid(alpha=0.25)
        figure.axes[0].set_ylabel("change of accuracy, points")
        figure.axes[-1].legend(fontsize=7)
