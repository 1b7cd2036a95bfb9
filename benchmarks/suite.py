"""One run: models, contenders, agreement, then the chosen workloads in turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import agreement, workloads
from benchmarks.contenders import Contender, Left, our_contender, ours
from benchmarks.machine import describe_backend
from benchmarks.models import GRAPHS, Model, float32_folder, missing, prepare, random_model
from benchmarks.peers import PACKAGES, build_peers, obstacle
from benchmarks.processes import Program, run
from benchmarks.texts import Corpus, banking77, generate, read_tokenizer
from benchmarks.timing import interleaved
from benchmarks.workloads import POLICY, Result, Size
from minitrans import SentenceEncoder

AGREEMENT_TEXTS = 48
Say = Callable[[str], None]


@dataclass
class Field:
    """All contenders on one model."""

    model: Model
    encoders: dict[str, SentenceEncoder]  # ours, by precision
    contenders: list[Contender]
    left: list[Left]
    least_cosine: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """What a run is made of.

    Args:
        size: how much is timed.
        threads: for everyone.
        rounds: of each workload.
        cache: folder of what is made from the weights.
        say: is told what happens next.
    """

    size: Size
    threads: int
    rounds: int
    cache: Path
    say: Say

    def about(self, lined_up: Field, corpus: Corpus) -> dict[str, Any]:
        """What the results rest on."""
        return {
            "model": lined_up.model.name,
            "sha256": lined_up.model.sha256,
            "texts": corpus.origin,
            "threads": self.threads,
            "rounds": self.rounds,
            "backend": describe_backend(lined_up.encoders["int8"]),
            "contenders": {contender.name: contender.precision for contender in lined_up.contenders},
            "left_out": {left.name: left.reason for left in lined_up.left},
            "least_cosine": lined_up.least_cosine,
        }

    def load(self) -> tuple[Model, Corpus]:
        """The model and the texts of most workloads."""
        model = prepare("all-MiniLM-L6-v2", float32_folder(), self.cache)
        return model, banking77(read_tokenizer(model.float32))

    def line_up(self, model: Model, corpus: Corpus) -> Field:
        """Build all contenders on a model, and check that they agree."""
        self.say(f"{model.name}: loading the contenders")
        own = {precision: ours(model, precision, self.threads) for precision in ("int8", "float32")}
        peers, left = build_peers(model, self.threads)
        contenders = [*(contender for contender, _ in own.values()), *peers]
        texts = corpus.texts[:: max(1, len(corpus.texts) // AGREEMENT_TEXTS)]
        long = generate(workloads.LENGTHS, read_tokenizer(model.float32))
        self.say(f"{model.name}: checking that they agree on {len(texts) + len(long)} texts")
        on_short, on_long = agreement.check(contenders, texts), agreement.check(contenders, long)
        least = {name: min(cosine, on_long[name]) for name, cosine in on_short.items()}
        return Field(model, {precision: encoder for precision, (_, encoder) in own.items()}, contenders, left, least)

    def run(self, lined_up: Field, corpus: Corpus, names: Sequence[str]) -> Iterator[Result]:
        """The workloads of those names on all-MiniLM-L6-v2, one after the other."""
        if "bulk" in names:
            yield from self._bulk(lined_up, corpus, self.size.bulk)
        if "tuned" in names:
            yield self._bulk(lined_up, corpus, self.size.bulk, tuned=True)[0]
        if "one-text" in names:
            yield self._one(lined_up, corpus)
        if "lengths" in names:
            yield from self._lengths(lined_up)
        if "pruning" in names:
            yield from self._pruning(lined_up, corpus)

    def run_12_layers(self, model: Model, corpus: Corpus) -> tuple[Field, list[Result]]:
        """Bulk and one text on a model of 12 layers with random weights, of the shape of all-MiniLM-L12-v2."""
        folder = random_model(model.float32, model.home)
        lined_up = self.line_up(prepare("MiniLM-L12 shape, random weights", folder, self.cache), corpus)
        results = [self._bulk(lined_up, corpus, self.size.layers_12)[0], self._one(lined_up, corpus)]
        return lined_up, [
            replace(result, key=f"layers-12-{result.key}", title=f"12 layers: {result.title}") for result in results
        ]

    def _bulk(self, lined_up: Field, corpus: Corpus, count: int, tuned: bool = False) -> list[Result]:
        part = corpus.part(count, read_tokenizer(lined_up.model.float32))
        title = f"{len(part.texts):,} texts of BANKING77 at once" + ", peers tuned further" * tuned
        self.say(title)
        key = "banking77-tuned" if tuned else "banking77"
        choosing = self.size.choosing
        return workloads.bulk(key, title, lined_up.contenders, part, self.rounds, choosing, tuned=tuned)

    def _one(self, lined_up: Field, corpus: Corpus) -> Result:
        texts = corpus.texts[:: max(1, len(corpus.texts) // self.size.single)][: self.size.single]
        title = f"one text at a time, {len(texts)} of BANKING77"
        self.say(title)
        return workloads.one_text("one-text", title, lined_up.contenders, texts, self.rounds)

    def _lengths(self, lined_up: Field) -> Iterator[Result]:
        for length in self.size.lengths:
            corpus = self._long(lined_up, length)
            title = f"{len(corpus.texts)} texts of {length} tokens"
            self.say(title)
            key = f"tokens-{length}"
            yield workloads.bulk(key, title, lined_up.contenders, corpus, self.rounds, self.size.choosing, "tokens/s")[
                0
            ]

    def _pruning(self, lined_up: Field, corpus: Corpus) -> Iterator[Result]:
        for key, title, part in (
            (
                "pruning-banking77",
                "bulk BANKING77",
                corpus.part(self.size.bulk, read_tokenizer(lined_up.model.float32)),
            ),
            ("pruning-256", "256 tokens", self._long(lined_up, 256)),
        ):
            self.say(f"pruned and not: {title}")
            contenders = [
                our_contender(encoder, f"minitrans {precision}{suffix}", 0, policy)
                for precision, encoder in lined_up.encoders.items()
                for suffix, policy in (("", None), (", pruned", POLICY))
            ]
            saved = workloads.work_saved(part.lengths, lined_up.encoders["int8"].config)
            yield workloads.pruning(key, title, contenders, part.texts, self.rounds, saved)

    def _long(self, lined_up: Field, length: int) -> Corpus:
        tokenizer = read_tokenizer(lined_up.model.float32)
        texts = generate([length] * max(1, self.size.tokens // length), tokenizer, seed=length)
        return Corpus.of(texts, "generated", tokenizer)

    def run_processes(self, model: Model, corpus: Corpus, folder: Path) -> list[Result]:
        """Whole processes of every runtime that is there, each repetition all of them in turn."""
        texts = corpus.part(self.size.bulk, read_tokenizer(model.float32)).texts
        file = folder / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        programs = self.programs(model)
        works = {name: partial(run, program, self.threads, file) for name, program in programs.items()}
        self.say(f"{len(works)} kinds of whole processes, {self.size.repetitions} times each and once before")
        for work in works.values():
            work()  # reads the files into the system's cache
        timed = interleaved(works, self.size.repetitions)
        first = {name: [each.first for each in values] for name, values in timed.items()}
        peak = {name: [each.peak for each in values] for name, values in timed.items()}
        return [
            Result("process-start", "process start to first vector", "s", 1, first),
            Result("process-memory", f"peak memory, {len(texts):,} texts of BANKING77", "MB", 1, peak),
        ]

    def programs(self, model: Model) -> dict[str, Program]:
        """Name -> process, of every runtime that can run here."""
        found = {
            "minitrans int8": Program("minitrans", model.int8, model.float32),
            "minitrans float32": Program("minitrans", model.float32, model.float32),
        }
        here = [name for name in PACKAGES if obstacle(name, model) is None]
        for precision in ("int8", "float32"):
            if f"ONNX Runtime {precision}" in here:
                for kind in GRAPHS:
                    graph = model.graph(kind, precision)
                    found[f"ONNX Runtime {precision}, {kind} graph"] = Program("onnxruntime", graph, model.float32)
        for name, kind in (("OpenVINO default", "openvino"), ("OpenVINO float32", "openvino-f32")):
            if name in here:
                found[name] = Program(kind, model.graph("plain", "float32"), model.float32)
        if "torch float32" in here:
            found["torch float32 (transformers)"] = Program("torch", model.float32, model.float32)
            if not missing(["sentence-transformers"]):
                found["sentence-transformers"] = Program("sentence-transformers", model.float32, model.float32)
        return found
