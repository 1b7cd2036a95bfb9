"""BLAS held at one thread: while the reference backend runs, which runs chunks in parallel, and in every fit.

BLAS threads of its own would fight with the chunks, would ignore ``threads=`` and the cgroup quota, and split products
differently on different machines. They also make `fork` unsafe: OpenBLAS stops its threads before a fork, and a product
that another thread has shared out among them at that moment may stop the whole process for good.

The number of BLAS threads belongs to the whole process. What was there is restored when the last call ends; a program
that changes it from another thread while a call runs will see the two restore over each other. What remains: products
that a program makes itself, `similarity` among them, use as many threads as BLAS has.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


class _Limit:
    """Which calls are inside, and in which threads; the first sets the limit, the last restores what was there.

    A signal handler or a ``__del__`` may call in the middle of a call on its thread. So the lock lets its own thread
    in again, and what is done while it is held may be done twice: a nested call that comes and goes changes nothing.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.inside: dict[object, int] = {}
        self.before: list[tuple[Any, int]] = []  # the libraries and their numbers of threads

    def enter(self, call: object) -> None:
        self.inside[call] = threading.get_ident()
        with self.lock:
            if not self.before:
                seen = [(library, library.num_threads) for library in _libraries()]
                self.before = self.before or seen  # a nested call saw them before any was set
            for library, _ in self.before:
                _set_threads(library, 1)

    def restore(self) -> None:
        with self.lock:
            if not self.inside:
                for library, threads in self.before:
                    _set_threads(library, threads)
                self.before = []


_limit = _Limit()


def _after_fork() -> None:
    # Only the thread that forked is left: the others will neither release the lock nor leave.
    _limit.lock = threading.RLock()
    _limit.inside = {call: thread for call, thread in _limit.inside.items() if thread == threading.get_ident()}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _libraries() -> list[Any]:
    import numpy  # noqa: F401  (its BLAS has to be loaded before it can be found)
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _set_threads(library: Any, threads: int) -> None:
    # threadpoolctl 3.8 and later leave OpenBLAS to the thread that first set a limit, and silently ignore the others.
    # The limit is the process's, though, and the first call in and the last one out may come from two threads.
    getattr(library, "_real_set_num_threads", library.set_num_threads)(threads)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread; calls may overlap and nest. Also a decorator."""
    call = object()
    try:
        _limit.enter(call)
        yield
    finally:
        _limit.inside.pop(call, None)
        try:
            _limit.restore()
        except BaseException:  # such as Ctrl-C, in the middle of it
            _limit.restore()
            raise
