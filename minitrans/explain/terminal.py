"""An explanation as lines for a terminal: scores as bars, with the threshold through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import click

from minitrans.explain.explanation import RANKED, Explanation, Prediction, Stage, less
from minitrans.words import columns, isolated, padded, printable, shortened

Mark: TypeAlias = Callable[[str], str]  # how a dropped token is written

BAR = 40  # columns
MOST_TOKEN = 24  # columns of a token
_FORMS = {True: ("█", "┊", "»", "→"), False: ("#", ":", ">", "->")}  # by whether the terminal can show the first


def lines(explanation: Explanation, mark: Mark, pictures: bool = True) -> Iterator[str]:
    """The report of one text.

    Args:
        explanation: of it.
        mark: makes a dropped token stand out.
        pictures: whether block characters and arrows can be shown; else ASCII.
    """
    arrow = _FORMS[pictures][3]
    yield _shown(explanation.text) if explanation.text.strip() else "(the empty text)"
    if explanation.truncated:
        yield f"(cut to {len(explanation.tokens)} tokens, the most that this model takes)"
    for stage in explanation.stages:
        yield ""
        yield from _stage_lines(explanation, stage, mark, pictures)
    if not explanation.stages:
        yield ""
        yield " ".join(_shown(token.token) for token in explanation.tokens)
    yield ""
    marks = [mark if token.dropped_at is not None else str for token in explanation.tokens]
    yield "  " + " ".join(put(_shown(token.token)) for put, token in zip(marks, explanation.tokens, strict=True))
    yield ""
    total, kept = len(explanation.tokens), len(explanation.kept)
    yield (
        f"tokens      {kept} of {total} reach the end; rows after layers 0 to {len(explanation.rows) - 1}: "
        f"{' '.join(map(str, explanation.rows))}"
    )
    yield (
        f"work        {less(explanation.work_saved)}: {explanation.unpruned_multiply_adds / 1e6:.1f} {arrow} "
        f"{explanation.multiply_adds / 1e6:.1f} million multiply-adds"
    )
    for timing in explanation.timings:
        yield (
            f"{'time' if timing.texts == 1 else '':<11} {timing.verdict}: {timing.unpruned_ms:.2f} {arrow} "
            f"{timing.pruned_ms:.2f} ms {'alone' if timing.texts == 1 else f'as one of {timing.texts} texts'}"
        )
    yield f"embedding   turned by {explanation.angle:.1f} degrees: {explanation.meaning}"
    if explanation.warning is not None:
        yield f"WARNING     {explanation.warning}"
    if explanation.prediction is not None and explanation.unpruned_prediction is not None:
        yield from _prediction_lines(explanation.unpruned_prediction, explanation.prediction)


def _stage_lines(explanation: Explanation, stage: Stage, mark: Mark, pictures: bool) -> Iterator[str]:
    turn = "" if stage.max_turn is None else f", expected to turn at most {stage.max_turn:g} degrees"
    yield (
        f"layer {stage.layer}, quantile {stage.quantile:g}{turn}, ranked by {RANKED[stage.score]}: "
        f"{len(stage.kept)} of {len(stage.entered)} tokens stay"
        + ("" if stage.threshold is None else f", threshold {stage.threshold:.4f}")
    )
    names = [shortened(printable(explanation.tokens[place].token), MOST_TOKEN) for place in stage.entered]
    width = max(map(columns, names), default=0) + 4
    drawn = _bars(explanation, stage, pictures)
    for place, name, score, bar in zip(stage.entered, map(isolated, names), stage.scores, drawn, strict=True):
        token = explanation.tokens[place]
        if place in stage.kept:
            yield f"  {padded(name, width)} {score:8.4f} {bar}".rstrip()
            continue
        fate = "dropped"
        if token.merged_into is not None and token.dropped_at == stage.layer:
            fate = f"merged into {_shown(explanation.tokens[token.merged_into].token)} (token {token.merged_into})"
        marked = mark(name)
        padding = " " * (width - columns(click.unstyle(marked)))
        yield f"  {marked}{padding} {score:8.4f} {bar.ljust(BAR + 1)} {fate}"
    full, tick, over, _ = _FORMS[pictures]
    legend = [f"{tick} the threshold"] * (stage.threshold is not None)
    legend += [f"{over} goes on"] * any(bar.endswith(over) for bar in drawn)
    legend += [f"{full} begins at the lowest score"] * (min(stage.scores, default=0) < 0)
    if legend:
        yield f"  {' ' * width}          {', '.join(legend)}"


def _bars(explanation: Explanation, stage: Stage, pictures: bool) -> list[str]:
    """A bar per score, from 0 or the lowest; special tokens may run out of the picture."""
    full, tick, over, _ = _FORMS[pictures]
    scores = stage.scores
    ordinary = [
        score
        for place, score in zip(stage.entered, scores, strict=True)
        if not explanation.tokens[place].special and math.isfinite(score)
    ]
    low, high = min([0.0, *ordinary, *scores]), max([*ordinary, stage.threshold or 0.0])
    span = (high - low) or 1.0
    at = None if stage.threshold is None else _column(stage.threshold, low, span)
    bars = []
    for score in scores:
        length = _column(score, low, span)
        bar = full * length + " " * (BAR - length)
        if at is not None and at >= length:
            bar = bar[:at] + tick + bar[at + 1 :]
        bars.append(bar.rstrip() if score <= high else full * BAR + over)
    return bars


def _column(score: float, low: float, span: float) -> int:
    return min(BAR, max(0, round((score - low) / span * BAR))) if math.isfinite(score) else 0


def _shown(text: object) -> str:
    return isolated(printable(str(text)))


def _prediction_lines(before: Prediction, after: Prediction) -> Iterator[str]:
    for name, each in (("unpruned", before), ("pruned", after)):
        best, share = each.probabilities[0]
        said = _shown(each.label) + (f" (rejected; would be {_shown(best)})" if each.rejected else "")
        yield f"{name.ljust(11)} {said}, {share:.0%}; nearest examples:"
        for near in each.nearest:
            example = "" if near.text is None else f': "{_shown(near.text)}"'
            yield f"            {near.cosine:.3f}  {_shown(near.label)}{example}"
