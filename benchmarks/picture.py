"""The figures as one SVG of horizontal bars, written by hand: legible on light and on dark pages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.workloads import Result
from minitrans.files import atomic_file

WIDTH, LABEL, BARS = 760, 178, 420  # of the picture, of the names, of the longest bar
ROW, BAR, GAP = 23, 15, 22  # height of a row, of its bar; space between groups
TOP, HEADING, FOOT = 66, 30, 34
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

STYLE = """
    text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
    text { font-size: 13px; fill: #3d444d }
    .title { font-size: 17px; font-weight: 600; fill: #1f2328 }
    .group { font-size: 13.5px; font-weight: 600; fill: #1f2328 }
    .note { font-size: 12px; fill: #656d76 }
    .name { text-anchor: end }
    .own { font-weight: 600; fill: #1f2328 }
    .ours { fill: #0b7d72 }
    .peer { fill: #b3bcc6 }
    .axis { stroke: #8c959f; stroke-width: 1 }
    @media (prefers-color-scheme: dark) {
      text { fill: #c9d1d9 }
      .title, .group, .own { fill: #f0f6fc }
      .note { fill: #9198a1 }
      .ours { fill: #2bb5a5 }
      .peer { fill: #56606b }
      .axis { stroke: #656c76 }
    }
"""


@dataclass(frozen=True)
class Bar:
    """A contender's speed, which is the length of its bar, and how it is put into words."""

    name: str
    speed: float
    words: str
    ours: bool


@dataclass(frozen=True)
class Group:
    """The bars of one workload."""

    title: str
    bars: list[Bar]


def groups(results: Mapping[str, Result]) -> list[Group]:
    """The workloads of the picture that were measured."""
    found = []
    for key, title in (
        ("banking77", "Many texts at once, 15 tokens each on average"),
        ("one-text", "One text at a time"),
        ("tokens-256", "Texts of 256 tokens"),
    ):
        if key in results:
            result = results[key]
            found.append(Group(title, [_bar(result, name) for name in result.rounds]))
    return found


def draw(drawn: Sequence[Group], title: str, note: str) -> str:
    """The SVG of some groups of bars.

    Args:
        drawn: at least one group with at least one bar.
        title: stands on top, and is read out by screen readers.
        note: stands at the bottom: what was measured on what.
    """
    words = "; ".join(f"{group.title}: {', '.join(f'{bar.name} {bar.words}' for bar in group.bars)}" for group in drawn)
    body, y = [], TOP
    for group in drawn:
        body.append(f'<text class="group" x="{LABEL + 10}" y="{y + 14}">{_text(group.title)}</text>')
        y += HEADING - 6
        longest = max(bar.speed for bar in group.bars)
        top = y
        for bar in group.bars:
            length = max(1.0, BARS * bar.speed / longest)
            middle = y + ROW / 2
            kind, own = ("ours", " own") if bar.ours else ("peer", "")
            body.append(f'<text class="name{own}" x="{LABEL}" y="{middle + 4.5:g}">{_text(bar.name)}</text>')
            body.append(
                f'<rect class="{kind}" x="{LABEL + 10}" y="{middle - BAR / 2:g}" width="{length:.1f}" height="{BAR}" '
                'rx="2"/>'
            )
            body.append(
                f'<text class="value{own}" x="{LABEL + 17 + length:.1f}" y="{middle + 4.5:g}">{_text(bar.words)}</text>'
            )
            y += ROW
        body.append(f'<line class="axis" x1="{LABEL + 10}" y1="{top}" x2="{LABEL + 10}" y2="{y}"/>')
        y += GAP
    height = y - GAP + FOOT
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title desc">',
        f'<title id="title">{_text(title)}</title>',
        f'<desc id="desc">Horizontal bars, longer is faster. {_text(words)}. {_text(note)}</desc>',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="16" y="28">{_text(title)}</text>',
        '<text class="note" x="16" y="48">Longer is faster. Tokenisation and pooling included.</text>',
    ]
    tail = [f'<text class="note" x="16" y="{height - 10}">{_text(note)}</text>', "</svg>"]
    return "\n".join([*head, *body, *tail]) + "\n"


def write_picture(path: Path, results: Mapping[str, Result], note: str) -> None:
    """Draw what was measured; without any of its workloads there is no picture, and no file."""
    if drawn := groups(results):
        with atomic_file(path) as temporary:
            temporary.write_text(draw(drawn, "all-MiniLM-L6-v2 on the CPU", note), encoding="utf-8")


def _bar(result: Result, name: str) -> Bar:
    median = result.figure(name).median
    if result.unit == "ms":
        return Bar(name, 1 / median, f"{median:.2f} ms", name.startswith("minitrans"))
    return Bar(name, median, f"{median:,.0f} {result.unit}", name.startswith("minitrans"))


def _text(words: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", words))
