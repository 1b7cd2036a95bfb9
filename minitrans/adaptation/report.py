"""What a search for a policy found, as a report in Markdown and a picture of accuracy against time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minitrans.adaptation.adapt import Adaptation, TimedRun
from minitrans.adaptation.recipes import METHODS
from minitrans.adaptation.search import Limits, Outcome
from minitrans.errors import InputError
from minitrans.evaluation.retrieval import SIDES
from minitrans.evaluation.tables import Column, render, save_text
from minitrans.files import atomic_file

COLORS = dict(zip(METHODS, ("#888888", "#b58900", "#cb6d51", "#4c9bd6", "#1b5e9e"), strict=True))
LOWEST_SHOWN = 6.0  # points: what loses more is not in the picture

_FRONT = (
    Column("policy", "policy"),
    Column("cost", "predicted time", ".1%"),
    Column("mean_drop", "mean drop", "+.2f"),
    Column("mean_bound", "bound", "+.2f"),
    Column("worst_bound", "worst task's bound", "+.2f"),
    Column("search_drop", "worst drop of MRR@10", "+.2f"),
    Column("turn", "worst turn °", ".1f"),
    Column("tokens_kept", "tokens kept", ".1%"),
    Column("within", "within limits"),
)
_TIMED = (
    Column("name", "what"),
    Column("time_ratio", "measured time", ".1%"),
    Column("mean_drop", "mean drop", "+.2f"),
)


def timing_table(found: Adaptation, style: Any = "text") -> str:
    """Finalists and competitors as a table, the fastest first; the chosen policy is marked."""
    timings = sorted(found.timings, key=lambda timing: timing.time_ratio)
    return render(_TIMED, [vars(each) | {"name": _described(found, each)} for each in timings], style)


def markdown(found: Adaptation, picture: str | None = None) -> str:
    """The report, as Markdown.

    Args:
        found: the search.
        picture: how the report refers to the picture; None for none.
    """
    return "\n\n".join(part.strip() for part in _parts(found, picture)) + "\n"


def save_report(found: Adaptation, path: str | os.PathLike[str]) -> list[Path]:
    """Write the report, and the picture beside it as .svg where matplotlib is installed; which files these are.

    Raises:
        InputError: the name does not end in .md.
    """
    path = check_report_file(path)
    picture = path.with_suffix(".svg")
    drawn = save_picture(found, picture)
    save_text(path, markdown(found, picture.name if drawn else None))
    return [path, picture] if drawn else [path]


def check_report_file(path: str | os.PathLike[str]) -> Path:
    """InputError unless the name ends in .md."""
    if Path(path).suffix.lower() != ".md":
        raise InputError(f"{os.fspath(path)} ends in {Path(path).suffix!r}, wanted .md; the picture goes beside it")
    return Path(path)


def save_picture(found: Adaptation, path: Path) -> bool:
    """Draw accuracy against time as SVG, one point per policy; False where matplotlib is not installed."""
    try:
        with svg_figure(path, (8, 5), font_size=9) as figure:
            _draw(found, figure.subplots())
    except ImportError:
        return False
    return True


@contextmanager
def svg_figure(path: Path, size: tuple[float, float], font_size: float) -> Iterator[Any]:
    """A figure of matplotlib, which is written as SVG when the block ends: the same bytes for the same drawing.

    Args:
        path: the file.
        size: width and height in inches.
        font_size: in points.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "minitrans", "font.size": font_size, "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _draw(found: Adaptation, axes: Any) -> None:
    note: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7}
    shown = [each for each in found.outcomes if each.mean_drop < LOWEST_SHOWN]
    for method, color in COLORS.items():
        mine = [each for each in shown if (each.recipe.score, each.recipe.reduce) == method]
        if mine:
            points = [100 * each.cost for each in mine], [-each.mean_drop for each in mine]
            axes.scatter(*points, s=14, color=color, alpha=0.7, label=", ".join(method), linewidths=0)
    pareto = [each for each in found.pareto() if each.mean_drop < LOWEST_SHOWN]
    axes.plot([100 * each.cost for each in pareto], [-each.mean_drop for each in pareto], color="#1b5e9e", lw=0.8)
    for each in found.timings:
        if each.kind in ("layers", "precision") and each.mean_drop < LOWEST_SHOWN and each.time_ratio < 1.6:
            place = 100 * each.time_ratio, -each.mean_drop
            axes.scatter(*place, marker="x", s=30, color="#a03050")
            axes.annotate(each.name, place, xytext=(5, 3), color="#a03050", **note)
    label = "chosen" if found.policy is not None else "nearest to the limits"
    place = 100 * found.chosen.cost, -found.chosen.mean_drop
    axes.scatter(*place, marker="*", s=170, color="#d62728", zorder=5, label=f"{label}: {found.chosen.recipe}")
    axes.scatter(100, 0, marker="s", s=30, color="black", label="no pruning")
    limit = found.limits.mean_drop if found.baseline else found.limits.of_searches
    axes.axhline(-limit, color="#999999", ls=":", lw=1)
    place = 0.01, -limit
    across = ("axes fraction", "data")
    axes.annotate("limit of the mean drop", place, xycoords=across, xytext=(0, 3), color="#666666", **note)
    axes.set_xlabel("embedding time, % of no pruning (policies: predicted; crosses: measured)")
    words = "accuracy in points, mean over tasks, shots and draws" if found.baseline else "MRR@10 in points, mean"
    axes.set_ylabel(f"change of {words}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="lower right")


def _parts(found: Adaptation, picture: str | None) -> Iterator[str]:
    limits, settings = found.limits, found.settings
    yield "# A pruning policy for " + ", ".join([*settings["tasks"], *settings["searches"]])
    chosen = found.chosen
    if found.policy is not None:
        ratio = found.policy.provenance["time_ratio"]
        yield (
            f"**{chosen.recipe}** embeds in {ratio:.1%} of the time without pruning (measured) and "
            f"{_lost(chosen, limits)} It keeps {chosen.tokens_kept:.1%} of the tokens."
        )
    else:
        yield f"**No policy stays within the limits.** The nearest, {chosen.recipe}, {_lost(chosen, limits)}"
    yield (
        f"Limits: {_limited(found)}. A negative drop is a gain. {len(found.outcomes)} policies were tried; each was "
        "judged on every task and search with arrays fitted to unlabelled texts of the others."
    )
    if picture is not None:
        yield f"![Accuracy against time, one point per policy]({picture})"
    else:
        yield "There is no picture: matplotlib is not installed (`pip install minitrans[report]`)."
    yield "## Measured times"
    yield "Interleaved, as a share of no pruning with the same model; crosses of the picture."
    yield timing_table(found, "markdown")
    yield "## The front"
    yield f"Predicted times: the cost model is within {found.cost_model.error:.1%} of the timings it was fitted to."
    rows = []
    for each in found.pareto():
        mean, worst = each.bounds(limits.confidence)
        shown: dict[str, Any] = {"turn": each.turn, "search_drop": each.search_drop}
        if each.drops:
            shown |= {"mean_drop": each.mean_drop, "mean_bound": mean, "worst_bound": worst}
        mark = " (chosen)" if found.policy is not None and each is chosen else ""
        within = "yes" if each.meets(limits) else "no"
        rows.append(vars(each) | shown | {"policy": f"{each.recipe}{mark}", "within": within})
    there = [column for column in _FRONT if any(row.get(column.key) is not None for row in rows)]
    yield render(there, rows, "markdown")
    if found.baseline:
        yield "## Accuracy without pruning"
        rows = [{"task": name, "accuracy": value} for name, value in found.baseline.items()]
        yield render((Column("task", "task"), Column("accuracy", "accuracy", ".1%")), rows, "markdown")
    if found.search_baseline:
        yield "## MRR@10 without pruning, and points lost"
        rows = [
            {"task": name, "mrr": value, **chosen.search_drops[name]} for name, value in found.search_baseline.items()
        ]
        ways = [Column(way, "both pruned" if way == "both" else f"{way} pruned", "+.2f") for way in SIDES]
        yield render((Column("task", "search"), Column("mrr", "MRR@10", ".3f"), *ways), rows, "markdown")


def _lost(each: Outcome, limits: Limits) -> str:
    """What a policy costs, as the rest of a sentence."""
    parts = []
    if each.drops:
        mean, worst = each.bounds(limits.confidence)
        parts.append(
            f"loses {each.mean_drop:.2f} points of accuracy on average (bound {mean:.2f}), on the worst task at most "
            f"{worst:.2f}"
        )
    if each.search_drop is not None:
        parts.append(f"loses {each.search_drop:.2f} points of MRR@10 on average, whichever side is pruned")
    if each.turns:
        length, turn = max(each.turns.items(), key=lambda pair: pair[1])
        parts.append(f"turns texts of about {length} tokens, which it turns the most, by {turn:.1f} degrees")
    return "; it ".join(parts) + "."


def _limited(found: Adaptation) -> str:
    """The limits in words."""
    limits, settings, parts = found.limits, found.settings, []
    if found.baseline:
        parts.append(
            f"{limits.mean_drop:g} points on average, {limits.task_drop:g} on the worst task, each with a confidence "
            f"of {limits.confidence:.0%} over {len(settings['seeds'])} draws at "
            f"{', '.join(map(str, settings['shots']))} shots"
        )
    if found.search_baseline:
        parts.append(f"{limits.of_searches:g} points of MRR@10")
    if limits.turn is not None:
        parts.append(f"a turn of {limits.turn:g} degrees")
    return "; ".join(parts)


def _described(found: Adaptation, each: TimedRun) -> str:
    if each.kind == "paper":
        return f"{each.name} (the paper's method, at about that time)"
    if found.policy is not None and each.name == str(found.chosen.recipe):
        return f"{each.name} (chosen)"
    return "no pruning" if each.kind == "none" else each.name
