"""The commands that follow a text through the encoder and sign off a model: they parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minitrans.cli import options
from minitrans.errors import InputError
from minitrans.words import counted, printable

if TYPE_CHECKING:
    from minitrans.explain.html import Shown


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
@options.COLUMN
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
    from minitrans.audit.digests import Digests
    from minitrans.audit.signoff import sign_off

    if digests is not None and write_digests is not None:
        raise InputError("--digests compares and --write-digests writes; give one of them")
    options.check_outputs({"--write-digests": write_digests}, [file, pruning])
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
        progress=_tell if options.on_terminal(sys.stderr) else None,
    )
    if options.on_terminal(sys.stderr):
        click.echo("\r\x1b[K", nl=False, err=True)
    if as_json:
        options.say(result.to_json(), end="")
    else:
        options.print_all(result.lines())
    if write_digests is not None and result.digests is not None:
        if result.passed:
            result.digests.save(Path(write_digests))
            doubt = ""
            if result.identity is None:
                doubt = "; the digests vouch for what is there now, not for where it came from"
            options.tell(f"{write_digests}: written{doubt}")
        else:
            options.tell(f"{write_digests}: not written, because the audit failed")
    context.exit(0 if result.passed else 1)


def _tell(what: str) -> None:
    """One line that is written over."""
    click.echo(f"\r\x1b[K  checking: {printable(what)} ...", nl=False, err=True)


@click.command(
    cls=options.Command,
    epilog="""minitrans explain "where is the parcel that I ordered on Monday morning?"
    minitrans explain "..." --pruning balanced --classifier intents/ --html report.html
    minitrans explain --input questions.csv --json""",
)
@options.text_options
@click.option("--classifier", "folder", metavar="FOLDER", help="What `minitrans fit` wrote: show its predictions too.")
@click.option("--html", "page", metavar="FILE", help="Write one page to be opened in a browser; it needs no network.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--timing/--no-timing", default=None, help="Time all texts, or none. Default: the first that loses tokens."
)
@options.model_options
def explain(
    texts: tuple[str, ...],
    file: str | None,
    column: str,
    delimiter: str | None,
    folder: str | None,
    page: str | None,
    as_json: bool,
    timing: bool | None,
    model: str | None,
    pruning: str | None,
    local_files_only: bool,
    **encoder: Any,
) -> None:
    """Show what happens to every token of a text.

    Which tokens are dropped where and by which score, what that saves, and how it turns the embedding. The policy is
    that of --pruning, else of the classifier, else the default one.
    """
    from minitrans.encoder.policy import PruningPolicy
    from minitrans.explain.explanation import explain as explain_texts
    from minitrans.explain.html import ROOM, check_page, shown, write_page
    from minitrans.explain.terminal import lines
    from minitrans.sentences.call import Progress

    options.check_outputs({"--html": page}, [file])
    wanted = options.texts(texts, file, column, delimiter)
    if page is not None:
        check_page(page, len(wanted))
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
    timed = 1 if timing is None else None if timing else 0
    explained: list[Shown] = []
    room = ROOM
    mixed = page is None and options.on_terminal(sys.stdout)  # a bar would stand among the lines
    with (bar := Progress(len(wanted), options.progress(len(wanted), many=10) and not mixed)):
        for number, each in enumerate(explain_texts(used, wanted, pruning=policy, classifier=classifier, timed=timed)):
            if as_json:
                options.say(json.dumps(each.to_dict(), allow_nan=False))
            elif page is None:
                options.print_all(["", "-" * 72, ""] if number else [])
                options.print_all(lines(each, options.mark_dropped, options.can_print("█┊»→")))
            if page is not None:
                explained.append(shown(each, room))
                room -= explained[-1].room
            bar.update(1)
    if page is not None:
        write_page(page, used, policy, explained)
        options.tell(f"{page}: written, {counted(len(explained), 'text')} explained; open it in a browser")
