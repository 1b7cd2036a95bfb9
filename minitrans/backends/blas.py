"""BLAS on one thread while the reference backend runs: the chunks of a call are what runs in parallel.

BLAS threads of its own would fight with them, would ignore ``threads=`` and the cgroup quota, and split products
differently on different machines.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


class _Limit:
    """How many calls are inside; the first sets the limit, the last restores what was there."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self.limiter: Any = None


_limit = _Limit()
# A fork while another thread holds the lock must not leave it locked in the child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: setattr(_limit, "lock", threading.Lock()))


@cache
def _controller() -> Any:
    import numpy  # noqa: F401  (its BLAS has to be loaded before it can be found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread; calls may overlap and nest."""
    with _limit.lock:
        if _limit.calls == 0:
            _limit.limiter = _controller().limit(limits=1)
        _limit.calls += 1
    try:
        yield
    finally:
        with _limit.lock:
            _limit.calls -= 1
            if _limit.calls == 0:
                _limit.limiter.restore_original_limits()
