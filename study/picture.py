"""The pictures of stored speeds: docs/overview.svg, for the README, and docs/speed.svg. No figure is typed by hand.

docs/overview.svg is narrow, so that its letters can still be read on a phone: speed beside other runtimes on top, below
it what pruning does to accuracy and time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from benchmarks.picture import write_picture
from benchmarks.run import caption
from benchmarks.workloads import Result
from minitrans.evaluation.tables import save_text
from study.settings import PICTURES, PRECISIONS, ROOT, load, time_ratios

SPEED = ROOT / "benchmarks" / "results" / "speed.json"  # of `python -m benchmarks --quick --json <that file>`
OURS, SHOTS = "minitrans", 10

WIDTH, LEFT, RIGHT = 560, 16, 544
NAMES, LONGEST = 130, 352  # where the names of bars end; pixels of the longest bar
ROW, BAR = 24, 16
PLOT_LEFT, PLOT_RIGHT, PLOT_HEIGHT = 52, 540, 270
LETTER = 8.8  # pixels, about the width of one of 14 pixels height in the widest of the fonts, where it is bold
RADIUS = 6

STYLE = """
    text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #3d444d }
    .title { font-size: 19px; font-weight: 600; fill: #1f2328 }
    .group { font-weight: 600 }
    .note { font-size: 12.5px; fill: #59636e }
    .end { text-anchor: end }
    .middle { text-anchor: middle }
    .own { font-weight: 600; fill: #1f2328 }
    .ours { fill: #0b7d72; stroke: #0b7d72 }
    .peer { fill: #b3bcc6 }
    .paper { fill: #8c959f; stroke: #8c959f }
    .none { fill: #1f2328; stroke: #1f2328 }
    circle { stroke-width: 2.5 }
    .pair { stroke-width: 1.5; opacity: 0.6 }
    rect { stroke: none !important }
    .axis { stroke: #8c959f }
    .grid { stroke: #d8dee4 }
    .float32 { fill: none !important }
    @media (prefers-color-scheme: dark) {
      text { fill: #c9d1d9 }
      .title, .own { fill: #f0f6fc }
      .note { fill: #9198a1 }
      .ours { fill: #2bb5a5; stroke: #2bb5a5 }
      .peer { fill: #56606b }
      .paper { fill: #8b949e; stroke: #8b949e }
      .none { fill: #f0f6fc; stroke: #f0f6fc }
      .axis { stroke: #656c76 }
      .grid { stroke: #30363d }
    }
"""


@dataclass(frozen=True)
class Bar:
    """The bulk speed of a contender."""

    name: str
    contender: str  # what the benchmark calls it
    speed: float  # texts/s

    @property
    def ours(self) -> bool:
        """Whether it is minitrans."""
        return self.contender.startswith(OURS)


@dataclass(frozen=True)
class Point:
    """A policy on one precision's weights: its time, and the mean accuracy at 10 shots."""

    policy: str
    precision: str
    time: float  # share of no pruning
    accuracy: float  # share
    change: float  # points of accuracy, against no pruning
    interval: float  # half the width of the 95% confidence interval of the change


Place = tuple[float, float]  # x, y
Box = tuple[float, float, float, float]  # left, top, right, bottom


def write() -> None:
    """Write the pictures of what is stored."""
    if not SPEED.is_file():
        return
    about, results = stored_speed()
    write_picture(PICTURES / "speed.svg", results, caption(about))
    if all(load(name) is not None for name in ("machine", "speed", *(_main(precision) for precision in PRECISIONS))):
        save_text(PICTURES / "overview.svg", overview())


def stored_speed() -> tuple[dict[str, Any], dict[str, Result]]:
    """What is known of the stored run of the benchmark, and its workloads by their keys."""
    about = json.loads(SPEED.read_text(encoding="utf-8"))
    found = [{key: row[key] for key in row if key != "figures"} for row in about.pop("results")]
    return about, {row["key"]: Result(**row) for row in found}


def bars(about: Mapping[str, Any], result: Result) -> dict[str, list[Bar]]:
    """The contenders of a workload, the fastest first: those in float32, and those in something smaller."""
    groups: dict[str, list[Bar]] = {"int8": [], "float32": []}
    for name in result.rounds:
        runtime, precision = name.rpartition(" ")[0], about["contenders"][name]
        group = groups["float32" if precision == "float32" else "int8"]
        label = runtime if precision in groups else f"{runtime} {precision}"
        group.append(Bar(label, name, result.figure(name).median))
    return {name: sorted(group, key=lambda bar: -bar.speed) for name, group in groups.items()}


def lead(result: Result, group: Sequence[Bar]) -> float:
    """How many times as fast ours is as the fastest of the others: the median over the rounds."""
    ours = next(bar.contender for bar in group if bar.ours)
    return min(result.ratio(ours, bar.contender).median for bar in group if not bar.ours)


def points(precision: str) -> list[Point]:
    """Every policy of the study's main table."""
    times = time_ratios(precision, "banking77")
    return [
        Point(
            row["pruning"],
            precision,
            times[row["pruning"]],
            row["accuracy"],
            100 * (row["accuracy_change"] or 0),
            100 * (row["accuracy_change_ci95"] or 0),
        )
        for row in load(_main(precision))["rows"]
        if (row["task"], row["shots"]) == ("(mean)", SHOTS)
    ]


def _main(precision: str) -> str:
    return f"main-{precision}"


def overview() -> str:
    """The SVG."""
    about, results = stored_speed()
    result = results["banking77"]
    groups = bars(about, result)
    found = [point for precision in PRECISIONS for point in points(precision)]
    balanced = next(point for point in found if (point.policy, point.precision) == ("balanced", "int8"))
    titles = [
        f"{lead(result, groups['int8']):.1f} times as fast as the next runtime",
        f"Pruning saves {1 - balanced.time:.0%} of the time for {max(0, -balanced.change):.1f} points",
    ]
    body, y = _speed(about, result, groups, titles[0], 28)
    drawn, y = _pruning(found, titles[1], y + 44)
    speeds = "; ".join(
        f"{name}: {', '.join(f'{bar.name} {bar.speed:,.0f}' for bar in group)}" for name, group in groups.items()
    )
    policies = ", ".join(
        f"{shown(point.policy)} {point.precision} {point.accuracy:.1%} in {point.time:.0%} of the time"
        for point in found
    )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" height="{y:g}" '
        'role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(". ".join(titles))}</title>',
        f'<desc id="desc">Texts per second, {escape(speeds)}. Accuracy and time, {escape(policies)}.</desc>',
        f"<style>{STYLE}</style>",
    ]
    return "\n".join([*head, *body, *drawn, "</svg>"]) + "\n"


def _speed(
    about: Mapping[str, Any], result: Result, groups: Mapping[str, Sequence[Bar]], title: str, y: float
) -> tuple[list[str], float]:
    notes = (
        f"Texts per second, {result.amount:.0f} of BANKING77 at once, all-MiniLM-L6-v2;",
        f"{about['machine']['cpu']}, {about['threads']} threads each, median of {about['rounds']} rounds",
    )
    body = _heading(y, title, notes)
    y += 52
    longest = max(bar.speed for group in groups.values() for bar in group)
    for group in groups.values():
        precisions = dict.fromkeys(about["contenders"][bar.contender] for bar in group)
        heading = f"{' and '.join(precisions)}: {lead(result, group):.1f} times the next"
        body.append(_text(LEFT, y + 16, heading, "group"))
        y += 22
        for bar in group:
            length, middle = LONGEST * bar.speed / longest, y + ROW / 2
            own = "own" if bar.ours else ""
            body += [
                _text(NAMES, middle + 5, bar.name, f"end {own}".strip()),
                f'<rect class="{"ours" if bar.ours else "peer"}" x="{NAMES + 8}" '
                f'y="{middle - BAR / 2:g}" width="{length:.1f}" height="{BAR}"/>',
                _text(NAMES + 14 + length, middle + 5, f"{bar.speed:,.0f}", own),
            ]
            y += ROW
        y += 8
    return body, y


def _pruning(found: Sequence[Point], title: str, y: float) -> tuple[list[str], float]:
    machine = load("machine")
    intervals = [point.interval for point in found if point.interval]
    lowest = math.floor(100 * min(point.accuracy for point in found))
    highest = math.ceil(100 * max(point.accuracy for point in found))
    first = 10 * math.floor(10 * min(point.time for point in found))
    last = 10 * math.ceil(10 * max(point.time for point in found))
    notes = (
        "The policy balanced, int8. Accuracy is the mean of BANKING77, CLINC150",
        f"and HWU64 at {SHOTS} shots; 95% intervals of its change: ±{min(intervals):.2f} to ±{max(intervals):.2f}.",
    )
    body = _heading(y, title, notes)
    y += 59
    x = PLOT_LEFT + 6
    for precision in PRECISIONS:
        body.append(f'<circle class="none {precision}" cx="{x}" cy="{y + 4}" r="{RADIUS - 1}"/>')
        body.append(_text(x + 12, y + 8, precision))
        x += 70
    top = y + 24
    bottom = top + PLOT_HEIGHT

    def across(share: float) -> float:
        return PLOT_LEFT + 12 + (PLOT_RIGHT - PLOT_LEFT - 24) * (100 * share - first) / (last - first)

    def down(share: float) -> float:
        return bottom - PLOT_HEIGHT * (100 * share - lowest) / (highest - lowest)

    lines = [down(accuracy / 100) for accuracy in range(lowest, highest + 1)]
    for accuracy, line in zip(range(lowest, highest + 1), lines, strict=True):
        style = "axis" if accuracy == lowest else "grid"
        body.append(f'<line class="{style}" x1="{PLOT_LEFT}" y1="{line:.1f}" x2="{PLOT_RIGHT}" y2="{line:.1f}"/>')
        body.append(_text(PLOT_LEFT - 8, line + 5, f"{accuracy}%", "end"))
    for time in range(first, last + 1, 10):
        x = across(time / 100)
        body.append(f'<line class="axis" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}"/>')
        body.append(_text(x, bottom + 21, f"{time}%", "middle"))
    pairs: dict[str, list[Place]] = {}
    for point in found:
        pairs.setdefault(point.policy, []).append((across(point.time), down(point.accuracy)))
    for policy, ends in pairs.items():
        (x1, y1), (x2, y2) = between(ends[0], ends[-1])
        body.append(f'<line class="pair {kind(policy)}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for point in found:
        x, middle = across(point.time), down(point.accuracy)
        body.append(
            f'<circle class="{kind(point.policy)} {point.precision}" cx="{x:.1f}" cy="{middle:.1f}" r="{RADIUS}"/>'
        )
    for policy, box in labels(pairs, (PLOT_LEFT, top - 8, PLOT_RIGHT + 4, bottom), lines).items():
        body.append(_text(box[0] + 2, box[3] - 5, shown(policy), "own" if kind(policy) == "ours" else ""))
    below = (
        "Embedding time on BANKING77, as a share of no pruning; both axes are cut;",
        f"{machine['cpu']}, {machine['available_cores']} threads",
    )
    body += [_text(PLOT_LEFT, bottom + 42 + 17 * i, note, "note") for i, note in enumerate(below)]
    return body, bottom + 72


def _heading(y: float, title: str, notes: Sequence[str]) -> list[str]:
    lines = (_text(LEFT, y + 22 + 17 * i, note, "note") for i, note in enumerate(notes))
    return [_text(LEFT, y, title, "title"), *lines]


def kind(policy: str) -> str:
    """What colour a policy has."""
    return "none" if policy == "none" else "paper" if policy.startswith("paper") else "ours"


def shown(policy: str) -> str:
    """How a policy is called in the picture."""
    return "no pruning" if policy == "none" else policy


def between(one: Place, other: Place) -> tuple[Place, Place]:
    """The line from the rim of one point to that of another."""
    length = math.dist(one, other)
    share = min(0.5, (RADIUS + 1) / length) if length else 0.5
    x, y = share * (other[0] - one[0]), share * (other[1] - one[1])
    return (one[0] + x, one[1] + y), (other[0] - x, other[1] - y)


def labels(pairs: Mapping[str, Sequence[Place]], room: Box, lines: Sequence[float] = ()) -> dict[str, Box]:
    """Where the names of policies stand: beside one of their points, apart from points, their lines and other names.

    Args:
        pairs: a policy's points, which a line joins.
        room: where names may stand.
        lines: heights of horizontal lines, which are avoided where possible.
    """
    taken = [box for ends in pairs.values() for box in _covered(ends)]
    found: dict[str, Box] = {}
    for policy, ends in pairs.items():
        options = [box for end in ends for box in _around(end, LETTER * len(shown(policy)) + 4) if _within(box, room)]
        free = [box for box in options if not any(_meet(box, other) for other in taken)]
        clear = [box for box in free if not any(box[1] + 4 < line < box[3] - 4 for line in lines)]
        found[policy] = (clear or free or options)[0]
        taken.append(found[policy])
    return found


def _covered(ends: Sequence[Place]) -> Iterator[Box]:
    (x1, y1), (x2, y2) = ends[0], ends[-1]
    for x, y in ends:
        yield x - RADIUS - 1, y - RADIUS - 1, x + RADIUS + 1, y + RADIUS + 1
    for step in range(21):
        x, y = x1 + (x2 - x1) * step / 20, y1 + (y2 - y1) * step / 20
        yield x - 1, y - 1, x + 1, y + 1


def _around(end: Place, width: float) -> Iterator[Box]:
    (x, y), height, gap = end, 18, RADIUS + 3
    for side in (0, -1, 1, -2, 2):
        middle = y + side * (gap + height / 2)
        for left in (x - width / 2, x - gap, x - width + gap, x, x - width) if side else (x + gap, x - gap - width):
            yield left, middle - height / 2, left + width, middle + height / 2


def _within(box: Box, room: Box) -> bool:
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _text(x: float, y: float, words: str, style: str = "") -> str:
    style = f' class="{style}"' if style else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
