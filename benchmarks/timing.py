"""Rounds that alternate, the choice of settings, and the statistics of both.

A machine's speed drifts, so no two contenders are compared over different minutes: every round runs each contender
once, starting with another one each time, and a ratio is taken inside a round before the median over the rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

IDLE_SHARE = 0.1  # of one processor: less than this counts as idle
IDLE_WINDOW = 0.01  # seconds; longer than a tick of the kernel's accounting
IDLE_LIMIT = 2.0  # seconds
FINALISTS = 3  # settings that are tried again after the first pass
TRIES = 2  # how often


class BenchmarkError(Exception):
    """The run cannot go on; the message says why, and what to do."""


class Spread(NamedTuple):
    """Median, least and greatest of some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Theirs over ours, round by round: above 1 where ours took less."""
    return Spread.of([their / our for our, their in zip(ours, theirs, strict=True)])


def percentile(values: Sequence[float], percent: int) -> float:
    """With linear interpolation between the two nearest values."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def settle() -> None:
    """Wait until this process burns no processor time any more.

    Thread pools spin for a while after their last job (ONNX Runtime's for some 30 ms, OpenBLAS's for longer), which
    would be charged to whoever is timed next.

    Raises:
        BenchmarkError: something goes on spinning.
    """
    give_up = time.perf_counter() + IDLE_LIMIT
    while True:
        wall, cpu = time.perf_counter(), time.process_time()
        time.sleep(IDLE_WINDOW)
        now = time.perf_counter()
        share = (time.process_time() - cpu) / (now - wall)
        if share < IDLE_SHARE:
            return
        if now > give_up:
            raise BenchmarkError(
                f"threads of an idle runtime still use {share:.0%} of a processor after {IDLE_LIMIT} s, wanted under "
                f"{IDLE_SHARE:.0%}: the timings of the others would be wrong; look for a setting that makes them spin "
                "(OMP_WAIT_POLICY, KMP_BLOCKTIME) and unset it"
            )


def interleaved(work: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each piece of work returns, round by round; every round runs all of them, idle in between."""
    names = list(work)
    results: dict[str, list[T]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # what the runtimes loaded: one's objects should not slow another's garbage collection
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                settle()
                results[name].append(work[name]())
    finally:
        gc.unfreeze()
    return results


def fastest(settings: Mapping[str, Callable[[], object]]) -> tuple[str, dict[str, float]]:
    """The setting that takes the least time, and what each took: one pass over all, then two over the best three."""
    took: dict[str, float] = {}
    for name, work in settings.items():
        settle()
        took[name] = seconds(work)
    for _ in range(TRIES if len(settings) > 1 else 0):
        for name in sorted(took, key=took.__getitem__)[:FINALISTS]:
            settle()
            took[name] = min(took[name], seconds(settings[name]))
    return min(took, key=took.__getitem__), took
