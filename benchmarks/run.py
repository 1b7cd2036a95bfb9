"""The sequence of a run, and what it prints."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from benchmarks.bars import judge
from benchmarks.machine import describe_machine, versions
from benchmarks.models import missing
from benchmarks.picture import write_picture
from benchmarks.report import bars_table, pruning_table, result_table, write_json
from benchmarks.suite import Suite
from benchmarks.workloads import FULL, QUICK, Result, Size


def run(
    quick: bool,
    names: Sequence[str],
    threads: int,
    rounds: int,
    cache: Path,
    scratch: Path,
    json_file: Path | None,
    svg_file: Path | None,
    size: Size | None = None,
) -> list[Result]:
    """Time the workloads of those names, print tables, and write the files that were asked for.

    Args:
        quick, names, threads, rounds, cache, json_file, svg_file: the options of the command.
        scratch: a folder for temporary files.
        size: how much to time, in place of what ``quick`` says.
    """
    suite = Suite(size or (QUICK if quick else FULL), threads, rounds, cache, lambda text: click.echo(text, err=True))
    model, corpus = suite.load()
    machine = describe_machine()
    about: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": versions(),
    }
    lined_up = suite.line_up(model, corpus)
    about |= suite.about(lined_up, corpus)
    print(describe(about))
    for left in lined_up.left:
        print(left)
    print()

    results: list[Result] = []

    def show(result: Result) -> None:
        results.append(result)
        print(result_table(result), end="\n\n", flush=True)

    for result in suite.run(lined_up, corpus, names):
        show(result)
    if pruned := [result for result in results if result.key.startswith("pruning-")]:
        print(pruning_table(pruned), end="\n\n")
    del lined_up
    gc.collect()  # the runtimes of one model, before those of the next
    if "layers-12" in names:
        larger, of_larger = suite.run_12_layers(model, corpus)
        about["layers_12"] = {"sha256": larger.model.sha256, "least_cosine": larger.least_cosine}
        for result in of_larger:
            show(result)
        del larger
        gc.collect()
    if "processes" in names:
        if missing(["sentence-transformers"]):
            print("left out: sentence-transformers (not installed)")
        for result in suite.run_processes(model, corpus, scratch):
            show(result)

    by_key = {result.key: result for result in results}
    verdicts = judge(by_key)
    print(bars_table(verdicts))
    if json_file is not None:
        write_json(json_file, about, results, verdicts)
    if svg_file is not None:
        write_picture(svg_file, by_key, caption(about))
    return results


def describe(about: dict[str, Any]) -> str:
    """The machine, the software and the agreement, in some lines."""
    machine, backend = about["machine"], about["backend"]
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    details = ", ".join(f"{name} {value}" for name, value in backend.items() if name != "name")
    cosines = ", ".join(f"{name} {cosine:.5f}" for name, cosine in about["least_cosine"].items())
    return "\n".join(
        [
            f"{machine['cpu']} ({' '.join(machine['flags'])}), {machine['available_cores']} of {machine['cores']} "
            f"cores, {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}",
            packages,
            f"{about['model']}, {about['texts']}, {about['threads']} threads, {about['rounds']} rounds; "
            f"minitrans: {backend['name']} backend{f' ({details})' if details else ''}",
            f"least cosine: {cosines}",
        ]
    )


def caption(about: dict[str, Any]) -> str:
    """One line for the picture."""
    default = about["contenders"].get("OpenVINO default")
    return f"{about['machine']['cpu']}, {about['threads']} threads, median of {about['rounds']} rounds" + (
        f"; OpenVINO's default is {default} here" if default else ""
    )
