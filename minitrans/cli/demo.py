"""The command that shows what the library does: demo."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from minitrans.cli import options
from minitrans.words import printable

if TYPE_CHECKING:
    from minitrans.evaluation.demo import DemoReport, DemoSample


@click.command(cls=options.Command, epilog="minitrans demo")
@click.option("--json", "as_json", is_flag=True)
@options.model_options
def demo(as_json: bool, pruning: str | None, **model: Any) -> None:
    """Show few-shot intents, with and without pruning.

    Uses the bundled model and example data; needs no network.
    """
    from minitrans.evaluation.demo import run_demo

    encoder, policy = options.encoder(**model), options.policy(pruning)
    options.tell("Fitting and testing, with and without pruning ...")
    report = run_demo(encoder, policy)
    if as_json:
        options.say(json.dumps(report.to_dict(), indent=2))
    else:
        options.print_all(_lines(report))


def _lines(report: DemoReport) -> Iterable[str]:
    encoder = report.encoder
    yield printable(
        f"{encoder['model']}: {encoder['precision']}, {encoder['backend']} backend, {encoder['threads']} threads"
    )
    yield (
        f"Few-shot intents: {report.intents} intents learned from {report.training_examples} examples, "
        f"tested on {report.test_examples} others."
    )
    yield ""
    width = max(len("pruning"), *(len(row.pruning) for row in report.rows))
    yield f"{'pruning'.ljust(width)}  accuracy  macro F1  texts/s  tokens kept"
    for row in report.rows:
        yield (
            f"{row.pruning.ljust(width)}  {row.accuracy:8.1%}  {row.macro_f1:8.1%}  {row.texts_per_second:7.0f}"
            f"  {row.tokens_kept:11.1%}"
        )
    yield ""
    yield "Some test utterances, pruned; the tokens that were dropped are " + options.mark_dropped("marked") + ":"
    for sample in report.samples:
        yield ""
        yield "  " + " ".join(_words(sample))
        verdict = "" if sample.predicted == sample.expected else f", expected {sample.expected}"
        yield f"  -> {sample.predicted} ({sample.probability:.0%}{verdict})"
    yield ""
    yield (
        f"Probability of the predicted intent, median: {report.probability_in_scope:.0%} on these intents, "
        f"{report.probability_out_of_scope:.0%} on utterances about something else."
    )


def _words(sample: DemoSample) -> Iterable[str]:
    pairs = zip(sample.tokens, sample.kept, strict=True)
    return (printable(token) if kept else options.mark_dropped(printable(token)) for token, kept in pairs)
