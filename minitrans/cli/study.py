"""The commands that measure: how well pruning policies do on tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minitrans.cli import options
from minitrans.errors import InputError

if TYPE_CHECKING:
    from minitrans.data.tasks import Task
    from minitrans.encoder.policy import PruningPolicy


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers, wanted for example 1,5,10.") from None


_TASKS = (
    click.option("--task", "sources", metavar="FOLDER", multiple=True, help="Labelled examples. May be repeated."),
    click.option("--search", "searches", metavar="FILE", multiple=True, help="Queries, documents. May be repeated."),
)
_PAIR_COLUMNS = (
    click.option("--query-column", default="query", show_default=True),
    click.option("--document-column", default="document", show_default=True),
)
_SEEDS = click.option(
    "--seeds", default=5, show_default=True, type=click.IntRange(min=1), help="Draws per number of shots."
)


@click.command(
    cls=options.Command,
    epilog="""minitrans evaluate --task my-intents/ --pruning default
    minitrans evaluate --task a/ --task b.csv --shots 5 --output table.md
    minitrans evaluate --task banking77 --journal run.jsonl --json
    minitrans evaluate --task clinc150 --shots 5 --out-of-scope
    minitrans evaluate --search questions.csv --pruning default""",
)
@_TASKS[0]
@_TASKS[1]
@click.option(
    "--shots",
    metavar="NUMBERS",
    default="1,2,3,5,10",
    show_default=True,
    callback=_numbers,
    help="Examples per class, with commas between them.",
)
@_SEEDS
@options.PRUNINGS
@click.option("-o", "--output", metavar="FILE", help="Write the table to .csv, .md or .txt, or everything to .json.")
@click.option("--journal", metavar="FILE", help="Keep what is finished, and go on from what is there.")
@options.CLASSIFIER
@options.EXAMPLE_COLUMNS
@_PAIR_COLUMNS[0]
@_PAIR_COLUMNS[1]
@click.option("--out-of-scope", is_flag=True, help="Another table: how well texts of no class are rejected.")
@click.option("--all-scores", is_flag=True, help="With --out-of-scope: each score, not only the one that is chosen.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON in place of the table.")
@options.encoder_options
def evaluate(
    sources: tuple[str, ...],
    searches: tuple[str, ...],
    shots: list[int],
    seeds: int,
    pruning: tuple[str, ...],
    output: str | None,
    journal: str | None,
    regularization: float,
    label_names: bool,
    text_column: str,
    label_column: str,
    delimiter: str | None,
    query_column: str,
    document_column: str,
    out_of_scope: bool,
    all_scores: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Compare pruning policies on few-shot tasks, and on searches.

    A task is a folder of train.csv and test.csv (.tsv, .jsonl), a single such file, or banking77, clinc150, hwu64 from
    the hub. No pruning is always measured too, as the row "none". Texts of no class, for --out-of-scope, are labelled
    oos or lie in files oos_test.csv (or out_of_scope.csv) and oos_train.csv.

    A search is a .csv, .tsv or .jsonl with a query and a document that answers it in each row. It is tried with queries
    and documents pruned, and with one of them.
    """
    from minitrans.data.searches import load_search
    from minitrans.evaluation import few_shot, retrieval
    from minitrans.evaluation import out_of_scope as rejection
    from minitrans.evaluation.journal import Journal
    from minitrans.evaluation.tables import TABLES, render, save_tables, table_files, to_json

    if not sources and not searches:
        raise click.UsageError("Missing option '--task' or '--search'.")
    if out_of_scope and not sources:
        raise InputError("--out-of-scope is about tasks, and there is none; give --task too")
    if all_scores and not out_of_scope:
        raise InputError("--all-scores is about the table of --out-of-scope; give both, or none")
    files = [] if output is None else table_files(output, TABLES)
    outputs = {"--output" if place == 0 else f"--output for {TABLES[place]}": file for place, file in enumerate(files)}
    options.check_outputs(outputs | {"--journal": journal}, [*sources, *searches, *pruning])
    policies = _policies(pruning)
    tasks = _tasks(sources, text_column, label_column, delimiter, model["local_files_only"])
    found = [load_search(file, query_column, document_column, delimiter) for file in searches]
    notes = few_shot.notes(tasks, shots, range(seeds))
    if out_of_scope:
        notes += rejection.with_out_of_scope(tasks)[1]
    for note in notes:
        options.tell(f"Note: {note}")
    encoder, journaled, bar = options.encoder(**model), Journal(journal), options.on_terminal(sys.stderr)
    what = encoder, tasks, shots, range(seeds), policies, journaled, bar
    results: list[few_shot.Evaluation | rejection.ScopeEvaluation | retrieval.SearchEvaluation] = []
    values: dict[str, Any] = {}
    if tasks:
        result = few_shot.evaluate(*what, C=regularization, label_names=label_names)
        results.append(result)
        values |= result.to_dict()
    if out_of_scope:
        scope = rejection.evaluate_scope(*what, C=regularization, label_names=label_names, all_scores=all_scores)
        results.append(scope)
        values["out_of_scope"] = scope.to_dict()
    if found:
        search = retrieval.evaluate_search(encoder, found, policies, journaled, bar)
        results.append(search)
        values["search"] = search.to_dict()
    if journal is not None:
        there, new = sum(each.from_journal for each in results), sum(each.computed for each in results)
        options.tell(f"{journal}: {there} cells were there, {new} are new")
    tables = [table for each in results for table in each.tables()]
    if output is not None:
        for line in save_tables(output, tables, values):
            options.tell(line)
    if as_json:
        options.say(to_json(values), end="")
        return
    options.say("\n".join(render(table.narrow, table.rows) for table in tables), end="")


@click.command(
    cls=options.Command,
    epilog="""minitrans adapt --task a.csv --task b.csv --task c.csv -o policy.json
    minitrans adapt --task a/ --task b/ --max-drop 0.5 --max-task-drop 1 --texts log.txt -o mild.json
    minitrans adapt --task a/ --search questions.csv --max-turn 12 -o policy.json""",
)
@_TASKS[0]
@_TASKS[1]
@click.option("--max-drop", default=1.0, show_default=True, help="Points of accuracy, mean over the tasks.")
@click.option("--max-task-drop", type=float, help="Points on the worst task. Default: twice --max-drop.")
@click.option("--confidence", default=0.9, show_default=True, help="How sure both must be, over the draws.")
@click.option("--max-turn", metavar="DEGREES", type=float, help="Of embeddings, at every length. Default: no limit.")
@click.option("--max-search-drop", metavar="POINTS", type=float, help="Of MRR@10, on average. Default: --max-drop.")
@click.option("-o", "--output", metavar="FILE", required=True, help="The policy, as .json.")
@click.option("--report", metavar="FILE", help="Default: beside the policy, as .md with a picture.")
@click.option("--journal", metavar="FILE", help="What is finished. Default: beside the policy.")
@click.option("--shots", callback=_numbers, default="5,10", show_default=True, help="Examples per class.")
@_SEEDS
@click.option("--texts", metavar="FILE", help="More unlabelled texts to learn from: a text a line, or a table.")
@click.option("--fit-texts", default=2000, show_default=True, type=click.IntRange(min=1), help="Texts to learn from.")
@click.option("--test-texts", default=1000, show_default=True, type=click.IntRange(min=1), help="Per task, at most.")
@options.EXAMPLE_COLUMNS
@_PAIR_COLUMNS[0]
@_PAIR_COLUMNS[1]
@options.encoder_options
def adapt(
    sources: tuple[str, ...],
    searches: tuple[str, ...],
    max_drop: float,
    max_task_drop: float | None,
    confidence: float,
    max_turn: float | None,
    max_search_drop: float | None,
    output: str,
    report: str | None,
    journal: str | None,
    shots: list[int],
    seeds: int,
    texts: str | None,
    fit_texts: int,
    test_texts: int,
    text_column: str,
    label_column: str,
    delimiter: str | None,
    query_column: str,
    document_column: str,
    **model: Any,
) -> None:
    """Find one pruning policy for several tasks and searches.

    Tries hundreds of policies on few-shot classifiers of every task, and on every search, and writes the fastest one
    that stays within the limits, a report, and a picture of accuracy against time. Interrupted, it goes on from its
    journal. Tasks and searches are as for evaluate; what you will evaluate on does not belong here.
    """
    from minitrans.adaptation import adapt as adaptation
    from minitrans.adaptation import report as adaptation_report
    from minitrans.adaptation.search import Limits, SearchSettings
    from minitrans.data.files import read_texts
    from minitrans.data.searches import load_search
    from minitrans.evaluation.journal import Journal

    if not sources and not searches:
        raise click.UsageError("Missing option '--task' or '--search'.")
    if not output.endswith(".json"):
        raise InputError(f"{output} does not end in .json, wanted a name as policy.json")
    policy_file = Path(output)
    report_file = adaptation_report.check_report_file(report or policy_file.with_suffix(".md"))
    journal_file = journal or policy_file.with_suffix(".journal.jsonl")
    outputs = {"--output": policy_file, "--report": report_file, "--journal": journal_file}
    options.check_outputs(outputs, [*sources, *searches, texts])
    worst = 2 * max_drop if max_task_drop is None else max_task_drop
    limits = Limits(max_drop, worst, confidence, max_turn, max_search_drop)
    found = adaptation.adapt(
        options.encoder(**model),
        _tasks(sources, text_column, label_column, delimiter, model["local_files_only"]),
        limits,
        SearchSettings(
            shots,
            range(seeds),
            () if texts is None else read_texts(texts, text_column, delimiter),
            fit_texts,
            test_texts,
            [load_search(file, query_column, document_column, delimiter) for file in searches],
        ),
        journal=Journal(journal_file),
        progress=options.on_terminal(sys.stderr),
    )
    for file in adaptation_report.save_report(found, report_file):
        options.tell(f"{file}: written")
    options.say(adaptation_report.timing_table(found), end="")
    found.save_policy(policy_file)
    options.tell(f"{policy_file}: written; use it with SentenceEncoder(pruning=PruningPolicy.load({output!r}))")


def _tasks(
    sources: tuple[str, ...], text_column: str, label_column: str, delimiter: str | None, local_files_only: bool
) -> list[Task]:
    from minitrans.data.tasks import load_task

    return [
        load_task(each, text_column, label_column, delimiter=delimiter, local_files_only=local_files_only)
        for each in sources
    ]


def _policies(pruning: tuple[str, ...]) -> dict[str, PruningPolicy | None]:
    """The policies by name: a file's name without its ending."""
    policies: dict[str, PruningPolicy | None] = {}
    for file in dict.fromkeys(pruning):
        name = Path(file).stem
        if name in policies:
            raise InputError(f"two policies are called {name!r}: {', '.join(pruning)}; rename a file")
        policies[name] = options.policy(file)
    return policies
