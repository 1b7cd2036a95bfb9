"""The bars that the project set itself, and which of them the figures meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.timing import Spread
from benchmarks.workloads import Result

INT8, FLOAT32 = "minitrans int8", "minitrans float32"
ORT_INT8, ORT_FLOAT32, TORCH = "ONNX Runtime int8", "ONNX Runtime float32", "torch float32"


@dataclass(frozen=True)
class Bar:
    """How many times as fast one contender has to be as another in some workload."""

    result: str  # key of the workload
    what: str
    ours: str
    theirs: str
    bar: float
    goal: float | None  # None: what the saved work would give


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured; None where it was not."""

    bar: Bar
    goal: float | None
    measured: Spread | None
    met: str  # goal, bar, no, not measured


BARS = (
    Bar("banking77", "bulk BANKING77", INT8, ORT_INT8, 1.6, 2.2),
    Bar("banking77", "bulk BANKING77", FLOAT32, ORT_FLOAT32, 1.2, 1.45),
    Bar("banking77", "bulk BANKING77", FLOAT32, TORCH, 2.0, 3.0),
    Bar("one-text", "one text, median", INT8, ORT_INT8, 1.2, 2.0),
    Bar("one-text", "one text, median", FLOAT32, ORT_FLOAT32, 1.1, 1.6),
    Bar("tokens-256", "256 tokens", INT8, ORT_INT8, 1.4, 2.0),
    Bar("tokens-512", "512 tokens", INT8, ORT_INT8, 1.4, 2.0),
    Bar("tokens-256", "256 tokens", FLOAT32, ORT_FLOAT32, 1.2, 1.4),
    Bar("pruning-banking77", "pruned, bulk BANKING77", f"{INT8}, pruned", INT8, 1.12, None),
    Bar("pruning-banking77", "pruned, bulk BANKING77", f"{FLOAT32}, pruned", FLOAT32, 1.12, None),
    Bar("pruning-256", "pruned, 256 tokens", f"{INT8}, pruned", INT8, 1.22, None),
    Bar("pruning-256", "pruned, 256 tokens", f"{FLOAT32}, pruned", FLOAT32, 1.22, None),
)


def judge(results: Mapping[str, Result], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """Hold the median ratios against the bars and goals."""
    verdicts = []
    for bar in bars:
        result = results.get(bar.result)
        if result is None or not {bar.ours, bar.theirs} <= result.rounds.keys():
            verdicts.append(Verdict(bar, bar.goal, None, "not measured"))
            continue
        goal = result.extra["speedup_if_time_followed_work"] if bar.goal is None else bar.goal
        measured = result.ratio(bar.ours, bar.theirs)
        # The goal of pruning can lie below its bar: when the texts are so short that next to nothing is pruned.
        met = "no" if measured.median < bar.bar else "goal" if measured.median >= goal else "bar"
        verdicts.append(Verdict(bar, goal, measured, met))
    return verdicts
