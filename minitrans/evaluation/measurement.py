"""What embedding takes under each policy: time, memory of the process, and the share of the tokens that is kept."""

from __future__ import annotations

import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import PruningWarning, TruncationWarning
from minitrans.sentences.sentence_encoder import SentenceEncoder

ROUNDS = 5  # of timing; the median counts

_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Cost:
    """What embedding some texts under a policy takes.

    Attributes:
        microseconds_per_text: median of the rounds.
        time_ratio: to the time without pruning in the same round; median of the rounds.
        tokens_kept: share of the tokens, special ones included, that are left at the end.
        peak_memory: bytes of the process at their most while it embeds; None where the system does not tell.
    """

    microseconds_per_text: float
    time_ratio: float
    tokens_kept: float
    peak_memory: int | None


def embedding_costs(
    encoder: SentenceEncoder, texts: Sequence[str], policies: Mapping[str, PruningPolicy | None]
) -> dict[str, Cost]:
    """Embed the texts under each policy, in turn, several times.

    Args:
        encoder: runs with its own number of threads.
        texts: at least one.
        policies: by name; one of them must be None, no pruning: the time ratios refer to it.
    """
    runs = {
        name: partial(encoder.encode, texts, pruning=policy, show_progress_bar=False)
        for name, policy in policies.items()
    }
    unpruned = next(name for name, policy in policies.items() if policy is None)
    peaks = {}
    with warnings.catch_warnings():
        for each in (TruncationWarning, PruningWarning):
            warnings.simplefilter("ignore", each)  # whoever asks for costs embeds the same texts for a purpose too
        for name, run in runs.items():  # the memory first: this warms up, and is not timed
            reset_peak_memory()
            run()
            peaks[name] = peak_memory()
        seconds = interleaved(runs, ROUNDS, warm_up=False)
        kept = {name: tokens_kept(encoder, texts, policy) for name, policy in policies.items()}
    return {
        name: Cost(statistics.median(seconds[name]) / len(texts) * 1e6, ratio, kept[name], peaks[name])
        for name, ratio in ratios(seconds, unpruned).items()
    }


def tokens_kept(encoder: SentenceEncoder, texts: Sequence[str], policy: PruningPolicy | None) -> float:
    """Share of all tokens of the texts, special ones included, that the policy keeps to the end."""
    if policy is None:
        return 1.0
    kept = [flag for text in encoder.pruned_tokens(texts, pruning=policy) for flag in text.kept]
    return sum(kept) / len(kept)


def reset_peak_memory() -> None:
    """Start the measurement of `peak_memory` anew, where the system can do that (Linux)."""
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def peak_memory() -> int | None:
    """Most bytes that the process held since `reset_peak_memory`, or since its start; None where nothing tells."""
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s*(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kB elsewhere


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of every run, in turn, for a number of rounds; before them one round to warm up, which does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + warm_up):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: each[warm_up:] for name, each in seconds.items()}


def ratios(seconds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, float]:
    """The time of each run divided by the baseline's time in the same round: medians over the rounds."""
    base = seconds[baseline]
    return {
        name: statistics.median(mine / other for mine, other in zip(own, base, strict=True))
        for name, own in seconds.items()
    }
