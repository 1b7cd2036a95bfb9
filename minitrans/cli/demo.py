"""The command that shows what the library does: demo."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from minitrans.cli import options
from minitrans.words import printable

if TYPE_CHECKING:
    from minitrans.evaluation.demo import DemoReport


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
        options.say(json.dumps(asdict(report), indent=2))
    else:
        options.print_all(_lines(report))


def _lines(report: DemoReport) -> Iterable[str]:
    from minitrans.evaluation.tables import Column, render

    encoder = report.encoder
    yield printable(
        f"{encoder['model']}: {encoder['precision']}, {encoder['backend']} backend, {encoder['threads']} threads"
    )
    yield (
        f"Few-shot intents: {report.intents} intents learned from {report.training_examples} examples, "
        f"tested on {report.test_examples} others."
    )
    yield ""
    yield render(
        (
            Column("pruning", "pruning"),
            Column("accuracy", "accuracy", ".1%"),
            Column("macro_f1", "macro F1", ".1%"),
            Column("texts_per_second", "texts/s", ".0f"),
            Column("tokens_kept", "tokens kept", ".1%"),
        ),
        list(map(vars, report.rows)),
    )  # its line end stands for the empty line
    yield "Some test utterances, pruned; the tokens that were dropped are " + options.mark_dropped("marked") + ":"
    for sample in report.samples:
        yield ""
        tokens = zip(map(printable, sample.tokens), sample.kept, strict=True)
        yield "  " + " ".join(token if kept else options.mark_dropped(token) for token, kept in tokens)
        verdict = "" if sample.predicted == sample.expected else f", expected {sample.expected}"
        yield f"  -> {sample.predicted} ({sample.probability:.0%}{verdict})"
    yield ""
    yield (
        f"Probability of the predicted intent, median: {report.probability_in_scope:.0%} on these intents, "
        f"{report.probability_out_of_scope:.0%} on utterances about something else."
    )
