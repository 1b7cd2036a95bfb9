"""Whole processes: from the start of one to its first vector, and the most memory it takes to embed many texts.

    python -m benchmarks.processes KIND FILE FOLDER THREADS TEXTS

is what each of them runs: it builds one contender as its users would, embeds one text, says so, embeds the texts of a
JSON file and prints the peak of its memory. The files have been read before, so they come from the system's cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.timing import BenchmarkError

REPOSITORY = Path(__file__).resolve().parents[1]
BATCH_SIZE = 32
FIRST = "where is my parcel?"


class Program(NamedTuple):
    """What a process runs."""

    kind: str  # minitrans, onnxruntime, openvino-f32, openvino, torch or sentence-transformers
    file: Path  # the model folder or the graph
    folder: Path  # of the tokenizer


class Measured(NamedTuple):
    """What one process took."""

    first: float  # seconds to the first vector
    peak: float  # MB


def run(program: Program, threads: int, texts: Path) -> Measured:
    """Run a process to its end; BenchmarkError if it fails."""
    command = [sys.executable, "-m", "benchmarks.processes", *map(str, (*program, threads, texts))]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - start
        rest = process.stdout.read()
    if process.returncode:
        raise BenchmarkError(f"`{' '.join(command)}` ended with {process.returncode}, wanted 0; its error stands above")
    return Measured(first, float(rest))


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    # On Linux ru_maxrss begins with that of the parent, which may have been far larger when it forked.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _encoder(kind: str, file: Path, folder: Path, threads: int) -> Callable[[Sequence[str]], Any]:
    from benchmarks import contenders

    if kind == "minitrans":
        return contenders.load_ours(file, threads).encode
    if kind == "sentence-transformers":
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(threads)
        return SentenceTransformer(str(file), device="cpu").encode
    runs: Mapping[str, Callable[[], contenders.Run]] = {
        "onnxruntime": lambda: contenders.onnxruntime_run(file, threads),
        "openvino": lambda: contenders.openvino_run(file, threads)[0],
        "openvino-f32": lambda: contenders.openvino_run(file, threads, precision="f32")[0],
        "torch": lambda: contenders.torch_runs(file, threads)[0],
    }
    tokenizer, one = contenders.PeerTokenizer(folder), runs[kind]()
    return lambda texts: contenders.encode_sorted(texts, tokenizer, one, BATCH_SIZE)


def main(kind: str, file: str, folder: str, threads: str, texts: str) -> None:
    """One process: the first vector, a line, many vectors, the peak of memory."""
    encode = _encoder(kind, Path(file), Path(folder), int(threads))
    encode([FIRST])
    print("first", flush=True)
    encode(json.loads(Path(texts).read_text(encoding="utf-8")))
    print(peak_memory(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
