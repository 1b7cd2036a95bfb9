"""BLAS on one thread while the reference backend runs: the chunks of a call are what runs in parallel.

BLAS threads of its own would fight with them, would ignore ``threads=`` and the cgroup quota, and split products
differently on different machines.

The number of BLAS threads belongs to the whole process. What was there is restored when the last call ends; a program
that changes it from another thread while a call runs will see the two restore over each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


class _Limit:
    """Which threads are inside, once per call; the first call sets the limit, the last restores what was there."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside: list[int] = []
        self.limiter: Any = None


_limit = _Limit()


def _after_fork() -> None:
    # Only the thread that forked is left: the others will neither release the lock nor leave.
    _limit.lock = threading.Lock()
    _limit.inside = [thread for thread in _limit.inside if thread == threading.get_ident()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _controller() -> Any:
    import numpy  # noqa: F401  (its BLAS has to be loaded before it can be found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread; calls may overlap and nest."""
    thread = threading.get_ident()
    with _limit.lock:
        if _limit.limiter is None:
            with _from_any_thread():
                _limit.limiter = _controller().limit(limits=1)
        _limit.inside.append(thread)
    try:
        yield
    finally:
        with _limit.lock:
            _limit.inside.remove(thread)
            if not _limit.inside:
                with _from_any_thread():
                    _limit.limiter.restore_original_limits()
                _limit.limiter = None


@contextmanager
def _from_any_thread() -> Iterator[None]:
    """threadpoolctl 3.8 and later leave OpenBLAS to the thread that first set a limit, and silently ignore the others.

    The limit is the process's, though, and the first call in and the last one out may come from two threads.
    """
    from threadpoolctl import OpenBLASController

    release = getattr(OpenBLASController, "clear_controlling_thread", lambda force: None)
    release(force=True)
    yield
    release(force=True)
