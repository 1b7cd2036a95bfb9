"""An explanation as lines for a terminal: scores as bars, with the threshold through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import click

from minitrans.audit.checks import printable
from minitrans.audit.explanation import Explanation, Prediction, Stage

Mark: TypeAlias = Callable[[str], str]  # how a dropped token is written

BAR = 40  # columns
MOST_TOKEN = 24  # columns of a token
RANKED = {
    "attention": "the attention received",
    "attention_value": "the attention received, weighted by the values",
    "learned": "the learned score",
    "random": "chance",
    "first": "place: the first stay",
}
_FORMS = {True: ("█", "┊", "»", "→"), False: ("#", ":", ">", "->")}  # by whether the terminal can show the first


def lines(explanation: Explanation, mark: Mark, pictures: bool = True) -> Iterator[str]:
    """The report of one text.

    Args:
        explanation: of it.
        mark: makes a dropped token stand out.
        pictures: whether block characters and arrows can be shown; else ASCII.
    """
    arrow = _FORMS[pictures][3]
    yield printable(explanation.text) if explanation.text.strip() else "(the empty text)"
    if explanation.truncated:
        yield f"(cut to {len(explanation.tokens)} tokens, the most that this model takes)"
    for stage in explanation.stages:
        yield ""
        yield from _stage_lines(explanation, stage, mark, pictures)
    if not explanation.stages:
        yield ""
        yield " ".join(printable(token.token) for token in explanation.tokens)
    yield ""
    yield "  " + " ".join(_final(explanation, mark))
    yield ""
    total, kept = len(explanation.tokens), len(explanation.kept)
    yield (
        f"tokens      {kept} of {total} reach the end; rows after layers 0 to {len(explanation.rows) - 1}: "
        f"{_numbers(explanation.rows)}"
    )
    yield (
        f"work        {_change(explanation.work_saved)}: {explanation.unpruned_multiply_adds / 1e6:.1f} {arrow} "
        f"{explanation.multiply_adds / 1e6:.1f} million multiply-adds"
    )
    for timing in explanation.timings:
        yield (
            f"{'time' if timing.texts == 1 else '':<11} "
            f"{_change(timing.saved) if abs(timing.saved) > timing.noise else 'about the same'}: "
            f"{timing.unpruned_ms:.2f} {arrow} "
            f"{timing.pruned_ms:.2f} ms {'alone' if timing.texts == 1 else f'as one of {timing.texts} texts'}"
        )
    angle = math.degrees(math.acos(min(1.0, max(-1.0, explanation.cosine))))
    yield f"embedding   turned by {angle:.1f} degrees: cosine {explanation.cosine:.4f} to the one without pruning"
    if explanation.prediction is not None and explanation.unpruned_prediction is not None:
        yield from _prediction_lines(explanation.unpruned_prediction, explanation.prediction)


def _stage_lines(explanation: Explanation, stage: Stage, mark: Mark, pictures: bool) -> Iterator[str]:
    yield (
        f"layer {stage.layer}, quantile {stage.quantile:g}, ranked by {RANKED[stage.score]}: "
        f"{len(stage.kept)} of {len(stage.entered)} tokens stay"
        + ("" if stage.threshold is None else f", threshold {stage.threshold:.4f}")
    )
    names = (printable(explanation.tokens[place].token) for place in stage.entered)
    width = min(MOST_TOKEN, max(map(len, names), default=0)) + 4
    drawn = _bars(explanation, stage, pictures)
    for place, score, bar in zip(stage.entered, stage.scores, drawn, strict=True):
        token = explanation.tokens[place]
        name = printable(token.token)
        name = name if len(name) <= MOST_TOKEN else name[: MOST_TOKEN - 1] + "~"
        if place in stage.kept:
            yield f"  {name.ljust(width)} {score:8.4f} {bar}".rstrip()
            continue
        fate = "dropped"
        if token.merged_into is not None and token.dropped_at == stage.layer:
            fate = f"merged into {printable(explanation.tokens[token.merged_into].token)} (token {token.merged_into})"
        marked = mark(name)
        padding = " " * (width - len(click.unstyle(marked)))
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


def _final(explanation: Explanation, mark: Mark) -> Iterator[str]:
    for token in explanation.tokens:
        name = printable(token.token)
        yield name if token.dropped_at is None else mark(name)


def _prediction_lines(before: Prediction, after: Prediction) -> Iterator[str]:
    for name, each in (("unpruned", before), ("pruned", after)):
        best, share = each.probabilities[0]
        said = f"{each.label} (rejected; would be {best})" if each.rejected else f"{each.label}"
        yield f"{name.ljust(11)} {printable(said)}, {share:.0%}; nearest examples:"
        for near in each.nearest:
            example = "" if near.text is None else f': "{near.text}"'
            yield f"            {near.cosine:.3f}  {printable(f'{near.label}{example}')}"


def _change(saved: float) -> str:
    return f"{saved:.0%} less" if saved >= 0 else f"{-saved:.0%} more"


def _numbers(values: Sequence[int]) -> str:
    return " ".join(map(str, values))
