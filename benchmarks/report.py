"""Results as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bars import Verdict
from benchmarks.timing import Spread
from benchmarks.workloads import Result
from minitrans.files import atomic_file

OURS = "minitrans"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up: the first to the left, the others to the right."""
    lines = [[_cell(text) for text in row] for row in (header, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (aligned[0], rule, *aligned[1:]))


def result_table(result: Result) -> str:
    """Absolute figures, and how many times as fast ours is as each; medians over the rounds, least and greatest."""
    own = [name for name in result.rounds if name.startswith(OURS)]
    if len(own) == len(result.rounds):
        own = []  # nobody to be compared with
    p95 = result.extra.get("p95_seconds")
    header = [result.title, result.unit, *(["p95"] if p95 else []), *(f"{name} over it" for name in own), "setting"]
    rows = []
    for name in result.rounds:
        row = [name, spread(result.figure(name))]
        if p95:
            row.append(spread(Spread.of([1000 * value for value in p95[name]])))
        row += ["" if name == mine else times(result.ratio(mine, name)) for mine in own]
        rows.append([*row, result.settings.get(name, "")])
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows)


def pruning_table(results: Sequence[Result]) -> str:
    """Pruned against unpruned, beside the work that pruning saves."""
    header = ["pruned against unpruned", "ratio", "work saved", "ratio if time followed work"]
    rows = [
        [
            f"{result.title}, {name.removeprefix(OURS).split(',')[0].strip()}",
            times(result.ratio(name, name.removesuffix(", pruned"))),
            f"{result.extra['work_saved']:.1%}",
            f"{result.extra['speedup_if_time_followed_work']:.2f}",
        ]
        for result in results
        for name in result.rounds
        if name.endswith(", pruned")
    ]
    return table(header, rows)


def bars_table(verdicts: Sequence[Verdict]) -> str:
    """Each bar, its goal, what was measured, and whether it is met."""
    rows = [
        [
            f"{verdict.bar.what}: {verdict.bar.ours} over {verdict.bar.theirs}",
            f"{verdict.bar.bar:g}",
            "work saved" if verdict.goal is None else f"{verdict.goal:.2f}",
            times(verdict.measured) if verdict.measured else "-",
            {"goal": "yes, and the goal", "bar": "yes"}.get(verdict.met, verdict.met),
        ]
        for verdict in verdicts
    ]
    return table(["how many times as fast", "bar", "goal", "measured", "met"], rows)


def spread(value: Spread) -> str:
    """Three digits that matter: "1520 (1490-1540)"."""
    return f"{_number(value.median)} ({_number(value.low)}-{_number(value.high)})"


def times(value: Spread) -> str:
    """A ratio: "1.62x (1.58-1.66)"."""
    return f"{value.median:.2f}x ({value.low:.2f}-{value.high:.2f})"


def write_json(path: Path, about: Mapping[str, Any], results: Sequence[Result], verdicts: Sequence[Verdict]) -> None:
    """Everything, with the raw numbers of every round."""
    values = dict(about) | {
        "results": [
            asdict(result) | {"figures": {name: result.figure(name)._asdict() for name in result.rounds}}
            for result in results
        ],
        "bars": [
            asdict(verdict) | {"measured": verdict.measured._asdict() if verdict.measured else None}
            for verdict in verdicts
        ],
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
