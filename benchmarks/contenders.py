"""Ours and the peers behind one record: texts in, unit-length mean-pooled embeddings out, tokenisation included.

Nobody is handicapped:

- Peers sort the texts by length, longest first, and pad each batch to its longest text. They tokenise all texts in
  one call of `tokenizers`, which uses several threads.
- Mean pooling and scaling to length 1 are part of the peers' graphs, as they are part of our encoder.
- A peer's fastest setting counts, workload by workload: batches of 32 or 64, the graph as exported or as fused by ONNX
  Runtime's optimizer. The workload "tuned" adds what few programs do: batches of 8 and 16, and a batch for each thread
  in place of all threads on one batch.
- All thread pools keep their default spinning while they run, and fall asleep before the next contender starts
  (`timing.settle`). Ours has one setting: the defaults of `SentenceEncoder`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks.models import Model
    from minitrans import PruningPolicy, SentenceEncoder

BATCH_SIZES = (32, 64)
SMALL_BATCH_SIZES = (8, 16)
MAX_TOKENS = 512
LEAST_COSINE = {"float32": 0.9999, "bf16": 0.999}
LEAST_COSINE_INT8 = {"ours": 0.99, "theirs": 0.95}

Encode = Callable[[Sequence[str]], NDArray]  # texts -> [B, H]
EncodeOne = Callable[[str], NDArray]  # text -> [H]
Run = Callable[[NDArray, NDArray], NDArray]  # ids [B, n], mask [B, n] -> [B, H]


@dataclass(frozen=True)
class Runs:
    """One graph, run in two ways."""

    whole: Run  # all threads work on a batch
    each: Run  # one thread works on a batch; may be called from several threads at once


@dataclass(frozen=True)
class Contender:
    """One runtime in one precision, with all its settings."""

    name: str
    precision: str
    least_cosine: float  # to the reference, for every text
    bulk: Callable[[int, bool], Mapping[str, Encode]]  # number of texts, tuned -> settings that differ for so many
    single: Mapping[str, EncodeOne]  # setting -> encode one text
    tokenize: Callable[[Sequence[str]], object]


@dataclass(frozen=True)
class Left:
    """A contender that cannot take part."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"left out: {self.name} ({self.reason})"


class PeerTokenizer:
    """The model's own tokenizer as the peers use it."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        # Without offsets it is faster; releases before 0.20.1 do not have it.
        self._batch = getattr(self._tokenizer, "encode_batch_fast", self._tokenizer.encode_batch)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [encoding.ids for encoding in self._batch(list(texts))]

    def one(self, text: str) -> tuple[NDArray, NDArray]:
        """Ids [1, n] and mask [1, n] of one text."""
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        return ids, np.ones_like(ids)


def padded(ids: Sequence[Sequence[int]]) -> tuple[NDArray, NDArray]:
    """Ids [B, n] and mask [B, n], n being the longest of them."""
    array = np.zeros((len(ids), max(map(len, ids))), np.int64)
    mask = np.zeros_like(array)
    for row, text in enumerate(ids):
        array[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return array, mask


def encode_sorted(
    texts: Sequence[str], tokenizer: PeerTokenizer, run: Run, batch_size: int, pool: ThreadPoolExecutor | None = None
) -> NDArray:
    """Embed texts in batches, the longest first, and put the embeddings into the order of the texts.

    Args:
        texts: B of them.
        tokenizer: gives their ids.
        run: one padded batch through the model.
        batch_size: texts per batch.
        pool: runs several batches at once; None runs one after the other.
    """
    ids = tokenizer(texts)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)

    def work(begin: int) -> NDArray:
        return run(*padded([ids[i] for i in order[begin : begin + batch_size]]))

    begins = range(0, len(order), batch_size)
    results = np.concatenate(list((pool.map if pool else map)(work, begins)))  # [B, H]
    vectors = np.empty_like(results)
    vectors[order] = results
    return vectors


def encode_one(text: str, tokenizer: PeerTokenizer, run: Run) -> NDArray:
    """Embed one text."""
    return run(*tokenizer.one(text))[0]


def ours(model: Model, precision: str, threads: int) -> tuple[Contender, SentenceEncoder]:
    """Our encoder with its defaults, apart from the number of threads and the longest text."""
    encoder = load_ours(model.int8 if precision == "int8" else model.float32, threads)
    least = LEAST_COSINE_INT8["ours"] if precision == "int8" else LEAST_COSINE[precision]
    return our_contender(encoder, f"minitrans {precision}", least), encoder


def our_contender(
    encoder: SentenceEncoder, name: str, least_cosine: float, pruning: PruningPolicy | None = None
) -> Contender:
    """An encoder as a contender, with or without pruning."""

    def encode(texts: Any) -> NDArray:
        return encoder.encode(texts, pruning=pruning)

    return Contender(
        name,
        encoder.precision,
        least_cosine,
        lambda *_: {"default": encode},
        {"default": encode},
        encoder.tokenizer.encode,
    )


def peer(name: str, precision: str, least: float, folder: Path, threads: int, runs: Mapping[str, Runs]) -> Contender:
    """A peer with all its settings.

    Args:
        name, precision, least: as in Contender.
        folder: of the tokenizer.
        threads: how many batches run at once when each has one thread.
        runs: the graphs it can use, by name.
    """
    tokenizer = PeerTokenizer(folder)
    pool = ThreadPoolExecutor(threads)
    ways = {
        f"{graph}, {how}": (run, workers)
        for graph, both in runs.items()
        for how, run, workers in (("all threads", both.whole, None), ("one thread", both.each, pool))
    }

    def bulk(texts: int, tuned: bool) -> dict[str, Encode]:
        batch_sizes = (*SMALL_BATCH_SIZES, *BATCH_SIZES) if tuned else BATCH_SIZES
        sizes = [size for smaller, size in pairwise((0, *batch_sizes)) if smaller < texts]
        return {
            f"{way} per batch of {size}": partial(
                encode_sorted, tokenizer=tokenizer, run=run, batch_size=size, pool=workers
            )
            for way, (run, workers) in ways.items()
            if tuned or workers is None
            for size in sizes
        }

    single = {way: partial(encode_one, tokenizer=tokenizer, run=run) for way, (run, _) in ways.items()}
    return Contender(name, precision, least, bulk, single, tokenizer)


def load_ours(folder: Path, threads: int) -> SentenceEncoder:
    """Our encoder on a model folder."""
    from minitrans import SentenceEncoder

    encoder = SentenceEncoder(folder, threads=threads)
    encoder.max_seq_length = MAX_TOKENS
    return encoder


def onnxruntime_run(file: Path, threads: int) -> Run:
    """A graph in ONNX Runtime, so many threads within an operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def openvino_run(file: Path, threads: int, streams: int = 1, precision: str | None = None) -> tuple[Run, str]:
    """A graph in OpenVINO, and the precision that it computes in.

    Args:
        file: the ONNX graph.
        threads: in all.
        streams: how many batches may run at once.
        precision: "f32", or None for what OpenVINO takes by itself: bf16 where the processor has it.
    """
    import openvino

    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(str(file), "CPU", options)
    own = threading.local()  # a request serves one caller at a time

    def run(ids: NDArray, mask: NDArray) -> NDArray:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return own.request.infer({"input_ids": ids, "attention_mask": mask})[0].copy()

    return run, compiled.get_property("INFERENCE_PRECISION_HINT").to_string()


def torch_runs(folder: Path, *threads: int) -> list[Run]:
    """transformers' BertModel with torch's own attention: one model, once for each number of threads."""
    from benchmarks.torch_model import PooledBert, TorchRun

    model = PooledBert(folder, "sdpa")
    return [TorchRun(model, number) for number in threads]
