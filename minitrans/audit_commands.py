"""The commands that follow a text through the encoder and sign off a model: they parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minitrans import options
from minitrans.errors import InputError

if TYPE_CHECKING:
    from minitrans.audit.report import Shown


@click.command(
    cls=options.Command,
    epilog="""minitrans audit
    minitrans audit my-model/ --as all-MiniLM-L6-v2
    minitrans audit my-model/ --against transformers --json
    minitrans audit my-model/ --write-digests my-model.digests.json
    minitrans audit my-model/ --digests my-model.digests.json""",
)
@click.argument("model", required=False)
@click.option(
    "--against",
    type=click.Choice(["transformers", "sentence-transformers"]),
    help="Insist on it; where installed, it is asked anyway.",
)
@click.option("-i", "--input", "file", metavar="FILE", help="More texts: a text a line, or .csv, .tsv, .jsonl.")
@click.option("--column", default="text", show_default=True, help="Which column of --input.")
@options.DELIMITER
@click.option("--pruning", metavar="FILE", help="One more policy to check: as JSON, or a name.")
@click.option("--threads", type=int, help="One more number of threads to check, besides 1, 2 and 4.")
@click.option("--as", "known_as", metavar="NAME", help="The published model that it must be; none: no published one.")
@click.option("--original", metavar="FOLDER", help="The float32 model that an int8 one was made from.")
@click.option("--digests", metavar="FILE", help="Compare with what was written earlier.")
@click.option("--write-digests", metavar="FILE", help="Write what the files and tensors are now, if all is well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all details.")
@click.pass_context
def audit(
    context: click.Context,
    model: str | None,
    against: str | None,
    file: str | None,
    column: str,
    delimiter: str | None,
    pruning: str | None,
    threads: int | None,
    known_as: str | None,
    original: str | None,
    digests: str | None,
    write_digests: str | None,
    as_json: bool,
) -> None:
    """Check a model: files, weights, numbers, invariance.

    MODEL is a folder or a name, by default the bundled model; nothing is downloaded. Ends with PASS and exit code 0, or
    with FAIL, exit code 1 and what is wrong where; the last line also says what was not checked. Exit code 2: the audit
    could not be made (no such model, no model in that folder, an option that cannot be used).
    """
    from minitrans.audit.digests import Digests, check_destination
    from minitrans.audit.signoff import sign_off

    if digests is not None and write_digests is not None:
        raise InputError("--digests compares and --write-digests writes; give one of them")
    if write_digests is not None:
        check_destination(write_digests)
    policy = options.policy(pruning)
    result = sign_off(
        model,
        against=against,
        texts=() if file is None else options.texts((), file, column, delimiter),
        pruning=None if policy is None else {Path(str(pruning)).stem: policy},
        threads=threads,
        digests=None if digests is None else Digests.load(Path(digests)),
        original=original,
        known_as=known_as,
        progress=_tell if sys.stderr.isatty() else None,
    )
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    if as_json:
        click.echo(result.to_json(), nl=False)
    else:
        options.print_all(result.lines())
    if write_digests is not None and result.digests is not None:
        if result.passed:
            result.digests.save(Path(write_digests))
            doubt = ""
            if result.identity is None:
                doubt = "; the digests vouch for what is there now, not for where it came from"
            click.echo(f"{write_digests}: written{doubt}", err=True)
        else:
            click.echo(f"{write_digests}: not written, because the audit failed", err=True)
    context.exit(0 if result.passed else 1)


def _tell(what: str) -> None:
    """One line that is written over."""
    click.echo(f"\r\x1b[K  checking: {what} ...", nl=False, err=True)


@click.command(
    cls=options.Command,
    epilog="""minitrans explain "where is the parcel that I ordered on Monday morning?"
    minitrans explain "..." --pruning balanced --classifier intents/ --html report.html
    minitrans explain --input questions.csv --json""",
)
@click.argument("texts", nargs=-1)
@click.option("-i", "--input", "file", metavar="FILE", help="Text file (a text a line), or .csv, .tsv, .jsonl.")
@click.option("--column", default="text", show_default=True, help="Which column of --input.")
@options.DELIMITER
@click.option("--classifier", "folder", metavar="FOLDER", help="What `minitrans fit` wrote: show its predictions too.")
@click.option("--html", "page", metavar="FILE", help="Write one page to be opened in a browser; it needs no network.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--no-timing", is_flag=True, help="Leave out the times, the one thing that differs from run to run.")
@options.model_options
def explain(
    texts: tuple[str, ...],
    file: str | None,
    column: str,
    delimiter: str | None,
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
    from minitrans.audit.report import check_page, shown, write_page
    from minitrans.audit.terminal import lines
    from minitrans.policy import PruningPolicy

    if page is not None:
        check_page(page)
    wanted = options.texts(texts, file, column, delimiter)
    classifier = None
    if folder is None:
        used = options.encoder(model, None, local_files_only=local_files_only, **encoder)
    elif model is not None:
        raise InputError(f"--model is {model!r}, but a classifier names its own; leave --model out")
    else:
        classifier, used = options.classifier(folder, local_files_only=local_files_only, **encoder)
    policy = options.policy(pruning)
    if pruning is None:
        policy = used.pruning or PruningPolicy.default_for(used.config, used.pooling.modes)
    explained: list[Shown | None] = []
    for each in explain_texts(used, wanted, pruning=policy, classifier=classifier, timed=not no_timing):
        if as_json:
            click.echo(json.dumps(each.to_dict(), allow_nan=False))
        elif page is None:
            options.print_all(["", "-" * 72, ""] if explained else [])
            options.print_all(lines(each, options.mark_dropped, options.can_print("█┊»→")))
        explained.append(None if page is None else shown(each))
    if page is not None:
        write_page(page, used, policy, [each for each in explained if each is not None])
        count = "1 text" if len(explained) == 1 else f"{len(explained)} texts"
        click.echo(f"{page}: written, {count} explained; open it in a browser", err=True)
