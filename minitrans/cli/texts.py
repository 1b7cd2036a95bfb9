"""The commands that read texts: embed, fit, predict."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import Any

import click

from minitrans.cli import options
from minitrans.errors import DataWarning, InputError


@click.command(
    cls=options.Command,
    epilog="""minitrans embed "hello"
    minitrans embed --input questions.csv --column text --output vectors.npy
    cat texts.txt | minitrans embed --json""",
)
@options.text_options
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
    from minitrans.sentences.vectors import as_lines, check_output, save_vectors

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


@click.command(
    cls=options.Command,
    epilog="""minitrans fit train.csv intents/
    minitrans fit train.jsonl intents/ --text-column utterance --label-column intent
    minitrans fit train.csv intents/ --out-of-scope chatter.txt""",
)
@click.argument("data")
@click.argument("folder")
@options.EXAMPLE_COLUMNS
@options.CLASSIFIER
@click.option("--reject", is_flag=True, help="Let `predict` abstain where a text belongs to no label.")
@click.option("--out-of-scope", metavar="FILE", help="Texts that belong to no label, to do so better.")
@click.option("--keep", metavar="SHARE", type=float, help="Share of the texts in scope to keep. Default: 0.95.")
@click.option("--score", metavar="NAME", help="What a text is rejected by: SCORES. Default: auto.")
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
    from minitrans.arguments import check_choice
    from minitrans.data.files import read_examples, read_texts
    from minitrans.fewshot.classifier import FewShotClassifier
    from minitrans.fewshot.rejection import SCORES
    from minitrans.fewshot.saved import JSON_FILE, check_folder

    reject = reject or out_of_scope is not None
    if score is not None:
        check_choice("--score", score, ("auto", *SCORES))
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
        classifier.calibrate_rejection(out_of_scope=outside, keep=keep, score=score or "auto", abstention=abstention)
    classifier.save(folder, keep_texts=keep_texts)
    classes = [str(label) for label in classifier.classes_]
    options.tell(f"{folder}: {len(classes)} classes from {len(examples.texts)} examples")
    rejection = classifier.rejection_
    if rejection is not None:
        options.tell(f"{folder}: {rejection.summary()}")
    if as_json:
        fitted = {"folder": folder, "classes": classes, "examples": len(examples.texts)}
        options.say(json.dumps(fitted | {"rejection": None if rejection is None else asdict(rejection)}))


@click.command(
    cls=options.Command,
    epilog="""minitrans predict intents/ "where is my parcel?"
    minitrans predict intents/ --input questions.csv --json --top 3""",
)
@click.argument("folder")
@options.text_options
@click.option("--top", default=1, show_default=True, type=click.IntRange(min=1), help="How many labels per text.")
@click.option("--no-reject", is_flag=True, help="Never abstain, whatever was calibrated.")
@click.option("--model", metavar="NAME", help="Where the model of `fit` is now, if it was moved: folder or hub name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@options.LOCAL_FILES_ONLY
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
    from minitrans.fewshot.classifier import FewShotClassifier

    wanted = options.texts(texts, file, column, delimiter)
    classifier = FewShotClassifier.load(folder, model, local_files_only=local_files_only)
    answers = zip(wanted, classifier.answer(wanted, top, reject=not no_reject), strict=True)
    if as_json:
        options.print_all(json.dumps({"text": text, **answer.to_dict()}) for text, answer in answers)
    else:
        options.print_all(line for text, answer in answers for line in answer.to_lines(text, top))
