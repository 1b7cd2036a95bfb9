"""Side by side with other runtimes, from the same float32 weights: python -m benchmarks [--quick]

Run it from the root of the repository, on a machine that does nothing else. The float32 all-MiniLM-L6-v2 has to be here
(`minitrans pull all-MiniLM-L6-v2`, or a folder in MINITRANS_FLOAT32). What is installed of onnxruntime, openvino,
torch with transformers, and sentence-transformers takes part; onnx is needed to make the graphs of the first two.
Without the BANKING77 test set (MINITRANS_DATA), texts of the same lengths take its place.

Who runs how is told in contenders.py, how time is taken in timing.py. Everyone gets the same number of threads:
ONNX Runtime by intra_op_num_threads (inter_op 1), torch by set_num_threads, OpenVINO by INFERENCE_NUM_THREADS, the
tokenizers by RAYON_NUM_THREADS. Waiting threads keep the spinning that each runtime comes with, which makes it faster;
nobody is timed before all threads of the others sleep. OMP_WAIT_POLICY and its like are taken out of the environment,
so that torch's threads do fall asleep.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

WORKLOADS = ("bulk", "tuned", "one-text", "lengths", "pruning", "layers-12", "processes")
SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def chosen(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """The workloads of a comma-separated list."""
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in WORKLOADS:
            raise click.BadParameter(f"{name!r} is no workload, wanted some of {','.join(WORKLOADS)}")
    return names


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="A small subset of the texts: some minutes instead of half an hour.")
@click.option("--workloads", default=",".join(WORKLOADS), callback=chosen, show_default=True, help="Which to run.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="For every contender.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of every workload.")
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Keeps the graphs for the next run.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every number here.")
@click.option("--svg", "svg_file", type=click.Path(path_type=Path, dir_okay=False), help="Draw the main figures here.")
def main(
    quick: bool,
    workloads: Sequence[str],
    threads: int,
    rounds: int,
    cache: Path | None,
    json_file: Path | None,
    svg_file: Path | None,
) -> None:
    for name in SPINNING:
        os.environ.pop(name, None)
    # Before any of the libraries is loaded, and for the processes that are started.
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    from benchmarks.run import run
    from benchmarks.timing import BenchmarkError
    from minitrans import MinitransError

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minitrans-benchmarks-")))
        try:
            run(quick, workloads, threads, rounds, cache or folder, folder, json_file, svg_file)
        except (BenchmarkError, MinitransError) as error:
            raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m benchmarks"))
