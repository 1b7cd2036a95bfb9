"""What the commands share: the options that choose a model, the texts that they take, and how they print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from minitrans.errors import InputError
from minitrans.files import kind_of
from minitrans.words import printable

if TYPE_CHECKING:
    from minitrans.encoder.policy import PruningPolicy
    from minitrans.fewshot.classifier import FewShotClassifier
    from minitrans.sentences.call import OnTruncation
    from minitrans.sentences.sentence_encoder import SentenceEncoder


class Command(click.Command):
    """Shows the examples of the help text as they were written, and refuses arguments that no system could give."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, but with a UsageError for what no path can have: a NUL character, a lone surrogate."""
        for each in args:
            if not _possible(each):
                raise click.UsageError(f"{each!r:.80} has a character that no system can give; leave it out.", ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options; POLICIES and SCORES stand for the names that there are."""
        for option in self.params:
            if isinstance(option, click.Option) and option.help:
                for word, known in {"POLICIES": _policies, "SCORES": _scores}.items():
                    if word in option.help:
                        option.help = option.help.replace(word, ", ".join(known()))
        super().format_options(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog as a list of examples."""
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write_text(line.strip())


def _policies() -> tuple[str, ...]:
    from minitrans.encoder.policy_files import DEFAULT, shipped_policies

    return DEFAULT, *shipped_policies(), "none"


def _scores() -> tuple[str, ...]:
    from minitrans.fewshot.rejection import SCORES

    return "auto", *SCORES


def _possible(argument: str) -> bool:
    try:
        return b"\0" not in os.fsencode(argument)
    except UnicodeEncodeError:
        return False


def _together(*options: Any) -> Callable[[Any], Any]:
    """One decorator in place of several, shown in this order by --help."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(options), function)


LOCAL_FILES_ONLY = click.option("--local-files-only", is_flag=True, help="Never open a connection.")
DELIMITER = click.option("--delimiter", metavar="CHARACTER", help="Of .csv and .tsv. Default: found from the header.")
COLUMN = click.option("--column", default="text", show_default=True, help="Which column of --input.")
EXAMPLE_COLUMNS = _together(
    click.option("--text-column", default="text", show_default=True),
    click.option("--label-column", default="label", show_default=True),
    DELIMITER,
)
CLASSIFIER = _together(
    click.option("--C", "regularization", default=10.0, show_default=True, help="Inverse strength of the L2 penalty."),
    click.option("--label-names/--no-label-names", default=True, help="Use each label's name as one more example."),
)
# Texts as arguments, in a file, or on standard input: the arguments of `texts`.
text_options = _together(
    click.argument("texts", nargs=-1),
    click.option("-i", "--input", "file", metavar="FILE", help="Text file (a text a line), or .csv, .tsv, .jsonl."),
    COLUMN,
    DELIMITER,
)
_PRUNING_HELP = "A policy as JSON, or a name: POLICIES."
PRUNINGS = click.option("--pruning", metavar="FILE", multiple=True, help=f"{_PRUNING_HELP} May be repeated.")
_MODEL = click.option("--model", metavar="NAME", help="Folder or hub name. Default: the bundled int8 all-MiniLM-L6-v2.")
_RUN = (
    click.option("--threads", type=int, help="Default: all processors that are available."),
    LOCAL_FILES_ONLY,
    click.option(
        "--on-truncation",
        type=click.Choice(["warn", "error", "ignore"]),
        default="warn",
        show_default=True,
        help="When a text is too long for the model.",
    ),
)
# A model and how it prunes: the keyword arguments of `encoder`. Commands that compare policies leave --pruning out.
model_options = _together(_MODEL, click.option("--pruning", metavar="FILE", help=_PRUNING_HELP), *_RUN)
encoder_options = _together(_MODEL, *_RUN)


def encoder(model: str | None, pruning: str | None = None, **options: Any) -> SentenceEncoder:
    """The encoder that the options ask for. Raises as ``SentenceEncoder`` and `policy` do."""
    from minitrans.sentences.sentence_encoder import SentenceEncoder

    return SentenceEncoder(model, pruning=policy(pruning), **options)


def classifier(
    folder: str, local_files_only: bool, threads: int | None, on_truncation: OnTruncation
) -> tuple[FewShotClassifier, SentenceEncoder]:
    """What `minitrans fit` wrote, and its encoder with these options. ClassifierError, InputError: it cannot be had."""
    from minitrans.fewshot.classifier import FewShotClassifier
    from minitrans.sentences.sentence_encoder import SentenceEncoder
    from minitrans.sentences.threads import resolve_threads

    found = FewShotClassifier.load(folder, local_files_only=local_files_only)
    if not isinstance(found.encoder_, SentenceEncoder):
        raise InputError(f"{folder} was fitted with an encoder of another kind, wanted a SentenceEncoder")
    found.encoder_.on_truncation = on_truncation
    if threads is not None:
        found.encoder_.threads = resolve_threads(threads)
    return found, found.encoder_


def policy(pruning: str | None) -> PruningPolicy | None:
    """The policy of a file or of a name; None for "none" and for None. PolicyError: there is none."""
    from minitrans.encoder.policy import PruningPolicy

    if pruning in (None, "none"):
        return None
    path = Path(str(pruning))
    return PruningPolicy.load(path) if path.suffix or path.exists() else PruningPolicy.named(str(pruning))


def texts(arguments: tuple[str, ...], file: str | None, column: str, delimiter: str | None = None) -> list[str]:
    """Texts of the command line, of a file, or of standard input: the same bytes are the same texts.

    Blank lines are texts too, so that every line has its answer.

    Raises:
        InputError: both arguments and a file, or none of them; a column or delimiter of no table; what is no UTF-8.
    """
    from minitrans.data.files import read_texts
    from minitrans.data.rows import DELIMITERS, TABLES, decoded, text_lines

    if arguments and file:
        raise InputError("texts were given both as arguments and with --input; give one of them")
    suffix = Path(file).suffix.lower() if file else ""
    if column != "text" and suffix not in TABLES:
        raise InputError(f"--column is {column!r}, but there is no table; give --input FILE as .csv, .tsv or .jsonl")
    if delimiter is not None and suffix not in DELIMITERS:
        raise InputError(f"--delimiter is {delimiter!r}, but there is no table; give --input FILE as .csv or .tsv")
    if arguments:
        return [decoded(os.fsencode(text), f"argument {i}") for i, text in enumerate(arguments, 1)]
    if file and file != "-":
        return read_texts(file, column, delimiter, keep_blank=True)
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("no texts: give them as arguments, with --input FILE, or on standard input")
    return list(text_lines(sys.stdin.buffer))


def check_outputs(outputs: Mapping[str, str | Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse, before the work, files that could not be written after it; folders on the way need not exist yet.

    Args:
        outputs: option -> the file that it names, or None.
        inputs: files and folders that are read; of a folder its files named after splits count.

    Raises:
        InputError: a file is a folder or a device, lies below a file or where nothing may be written, is also read, or
            is named by another option.
    """
    taken = [(file, "which is read too") for each in inputs if each is not None for file in _read(Path(each))]
    for option, given in outputs.items():
        if given is None:
            continue
        file = Path(given)
        if file.exists() and not file.is_file():
            raise InputError(f"{option} is {file}, which is {kind_of(file)}, wanted the name of a file; name another")
        over = next((each for each in file.absolute().parents if each.exists()), Path())
        if not over.is_dir():
            raise InputError(f"{option} is {file}, but {over} is {kind_of(over)}, wanted a folder; name another file")
        if not os.access(over, os.W_OK | os.X_OK):
            raise InputError(f"{option} is {file}, but the folder {over} may not be written to; name another file")
        for other, why in taken:
            if _same(file, other):
                raise InputError(f"{option} is {file}, {why}; name another file")
        taken.append((file, f"which {option} names too"))


def _read(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return [file for file in path.iterdir() if "train" in file.stem or "test" in file.stem]


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return os.path.normpath(one) == os.path.normpath(other)


def on_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is there, and a terminal."""
    return stream is not None and stream.isatty()


def progress(texts: int, many: int = 1000) -> bool:
    """Whether to show a progress bar: there are many texts, and standard error is a terminal."""
    return texts > many and on_terminal(sys.stderr)


def say(text: str, end: str = "\n") -> None:
    """Print a result on standard output as it is. ClickException, exit code 1, where it cannot take it."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"standard output cannot be written: {error.strerror or error}") from error


def tell(text: str) -> None:
    """Print one line about the run on standard error."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(printable(text) + "\n")
    except OSError:  # nobody is left to be told
        return


def print_all(lines: Iterable[str]) -> None:
    """Print lines on standard output."""
    for line in lines:
        say(line)


def mark_dropped(token: str) -> str:
    """A token that was dropped: struck out on a terminal, else (and with NO_COLOR or a dumb one) in brackets."""
    plain = not on_terminal(sys.stdout) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return f"[-{token}-]" if plain else click.style(token, strikethrough=True, dim=True)


def can_print(text: str) -> bool:
    """Whether standard output has all characters of a text."""
    if sys.stdout is None:
        return False
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
