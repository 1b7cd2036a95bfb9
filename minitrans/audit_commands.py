"""The command that signs off a model: parses, calls, prints."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from minitrans import options
from minitrans.errors import InputError


@click.command(
    cls=options.Command,
    epilog="""minitrans audit
    minitrans audit my-model/ --against transformers --json
    minitrans audit my-model/ --write-digests my-model.digests.json
    minitrans audit my-model/ --digests my-model.digests.json""",
)
@click.argument("model", required=False)
@click.option(
    "--against", type=click.Choice(["transformers"]), help="Insist on it; where installed, it is asked anyway."
)
@click.option("-i", "--input", "file", metavar="FILE", help="More texts: a text a line, or .csv, .tsv, .jsonl.")
@click.option("--column", default="text", show_default=True, help="Which column of --input.")
@click.option("--pruning", metavar="FILE", help="One more policy to check: as JSON, or a name.")
@click.option("--threads", type=int, help="One more number of threads to check, besides 1, 2 and 4.")
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
    pruning: str | None,
    threads: int | None,
    original: str | None,
    digests: str | None,
    write_digests: str | None,
    as_json: bool,
) -> None:
    """Check a model: files, weights, numbers, invariance.

    MODEL is a folder or a name, by default the bundled model; nothing is downloaded. Ends with PASS and exit code 0, or
    with FAIL, exit code 1 and what is wrong where.
    """
    from minitrans.audit.digests import Digests
    from minitrans.audit.signoff import sign_off

    if digests is not None and write_digests is not None:
        raise InputError("--digests compares and --write-digests writes; give one of them")
    policy = options.policy(pruning)
    result = sign_off(
        model,
        against=against,
        texts=() if file is None else options.texts((), file, column),
        pruning=None if policy is None else {Path(str(pruning)).stem: policy},
        threads=threads,
        digests=None if digests is None else Digests.load(Path(digests)),
        original=original,
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
            click.echo(f"{write_digests}: written", err=True)
        else:
            click.echo(f"{write_digests}: not written, because the audit failed", err=True)
    context.exit(0 if result.passed else 1)


def _tell(what: str) -> None:
    """One line that is written over."""
    click.echo(f"\r\x1b[K  checking: {what} ...", nl=False, err=True)
