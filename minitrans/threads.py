"""How many processors this process may use (its affinity mask and its cgroup's quota), and work spread over them."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from minitrans.config import check_int

S = TypeVar("S")
T = TypeVar("T")


def available_cpus(cgroup_root: Path = Path("/sys/fs/cgroup"), self_cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that this process may use, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup_root, self_cgroup)
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def resolve_threads(threads: int | None) -> int:
    """Check the ``threads`` argument; None means every processor that is available.

    Raises:
        InputError: not a positive integer.
    """
    if threads is None:
        return available_cpus()
    return check_int("threads", threads, "a positive integer (the default is all available processors)")


def _cgroup_quota(root: Path, self_cgroup: Path) -> float | None:
    """CPU quota in processors: the least over this process's cgroup and its parents (version 1 or 2), or None."""
    quotas = []
    for line in _read(self_cgroup).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        place = base / path.lstrip("/")
        for folder in (place, *place.parents):
            quotas.append(_quota_v1(folder) if controllers else _quota_v2(folder))
            if folder == base:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    fields = _read(folder / "cpu.max").split()  # "max 100000" or "<quota> <period>", microseconds
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) == 0:
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(folder: Path) -> float | None:
    quota = _read(folder / "cpu.cfs_quota_us").strip()  # -1 means unlimited
    period = _read(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def in_order(work: Callable[..., T], items: Sequence[S], threads: int) -> Iterator[T]:
    """``work`` on every item, in order, as many at once as there are threads.

    Where one item runs alone, ``work`` is told as ``helpers`` how many processors are idle meanwhile.
    """
    if threads == 1 or len(items) < 2:
        yield from (work(item, helpers=threads - 1) for item in items)
        return
    # A pool per call, not per encoder: none is left behind to break a fork.
    pool = ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="minitrans")
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * threads:  # results wait here, so bound them
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
