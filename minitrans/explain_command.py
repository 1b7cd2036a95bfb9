"""The command that follows texts through the encoder: parses, calls, prints."""

from __future__ import annotations

import json
from typing import Any

import click

from minitrans import options
from minitrans.errors import InputError


@click.command(
    cls=options.Command,
    epilog="""minitrans explain "where is the parcel that I ordered on Monday morning?"
    minitrans explain "..." --pruning balanced --classifier intents/ --html report.html
    minitrans explain --input questions.csv --json""",
)
@click.argument("texts", nargs=-1)
@click.option("-i", "--input", "file", metavar="FILE", help="Text file (a text a line), or .csv, .tsv, .jsonl.")
@click.option("--column", default="text", show_default=True, help="Which column of --input.")
@click.option("--classifier", "folder", metavar="FOLDER", help="What `minitrans fit` wrote: show its predictions too.")
@click.option("--html", "page", metavar="FILE", help="Write one page to be opened in a browser; it needs no network.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--no-timing", is_flag=True, help="Leave out the times, the one thing that differs from run to run.")
@options.model_options
def explain(
    texts: tuple[str, ...],
    file: str | None,
    column: str,
    folder: str | None,
    page: str | None,
    as_json: bool,
    no_timing: bool,
    model: str | None,
    pruning: str | None,
    local_files_only: bool,
    **encoder: Any,
) -> None:
    """Show what happens to every token of a text.

    Which tokens are dropped where and by which score, what that saves, and how it turns the embedding. The policy is
    that of --pruning, else of the classifier, else the default one.
    """
    from minitrans.audit.explanation import explain as explain_texts
    from minitrans.audit.report import check_page, write_page
    from minitrans.audit.terminal import lines
    from minitrans.classifier import FewShotClassifier
    from minitrans.model import SentenceEncoder
    from minitrans.policy import PruningPolicy

    if page is not None:
        check_page(page)
    wanted = options.texts(texts, file, column)
    given = options.encoder(model, None, local_files_only=local_files_only, **encoder) if model or not folder else None
    classifier = None if folder is None else FewShotClassifier.load(folder, given, local_files_only=local_files_only)
    used = given if classifier is None else classifier.encoder_
    if not isinstance(used, SentenceEncoder):
        raise InputError(f"{folder} was fitted with an encoder of another kind, wanted a SentenceEncoder")
    policy = options.policy(pruning) or used.pruning or PruningPolicy()
    found = explain_texts(used, wanted, pruning=policy, classifier=classifier, timed=not no_timing)
    if page is not None:
        write_page(page, used, policy, found)
        click.echo(f"{page}: {len(found)} texts explained; open it in a browser", err=True)
    if as_json:
        options.print_all(json.dumps(each.to_dict()) for each in found)
    elif page is None:
        for number, each in enumerate(found):
            if number:
                options.print_all(["", "-" * 72, ""])
            options.print_all(lines(each, options.mark_dropped, options.can_print("█┊»→")))
