"""Threads that help with one chunk: a text that comes alone is worked on by every processor there is.

Assistants wait in a loop inside the kernels, for the time of one chunk; between chunks they sleep. Nothing waits for
them to come, so a busy machine only means less help. A text's bits do not depend on them: they share out tasks, and a
task is the same whoever does it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from queue import SimpleQueue

import numpy as np

from minitrans.backends.panels import address, aligned
from minitrans.backends.workspace import Program
from minitrans.kernels.library.loading import Kernels
from minitrans.kernels.steps import BOARD, BOARD_JOBS, JOB_BYTES, write_fields

MOST_MEMBERS = 4  # that work on one chunk
MOST_ASSISTANTS = 6  # threads: some may still be leaving when others are called
PATIENCE = 50_000  # turns of the waiting loop: about a millisecond


class Team:
    """The board of one leader and its assistants."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._board = aligned((len(BOARD),), np.int64)
        self._jobs = aligned((BOARD_JOBS, JOB_BYTES // 8), np.int64)
        write_fields(self._board, BOARD, jobs=address(self._jobs))
        self._address = address(self._board)
        self._number = 0
        self._members: list[_Assistant] = []
        self._programs: list[Program] = []  # of the jobs: a late assistant reads what steps they had

    @property
    def is_free(self) -> bool:
        """Whether all assistants have left."""
        return not any(assistant.busy for assistant in self._members)

    def open(self, assistants: int) -> bool:
        """Begin, and call up to so many assistants. Returns whether any could be called."""
        self._jobs[: self._number] = 0
        self._programs.clear()
        self._number = 0
        write_fields(self._board, BOARD, number=0)
        self._members = _idle_assistants(assistants)
        processors = _other_processors()
        for member, assistant in enumerate(self._members, start=1):
            assistant.call(partial(self._assist, member), processors)
        return bool(self._members)

    def close(self) -> None:
        """Send the assistants away."""
        write_fields(self._board, BOARD, number=-1)

    def run(self, program: Program) -> None:
        """Run the steps of a block together."""
        if self._number == BOARD_JOBS:
            self._kernels.run(program.address, program.count, 0, 0)
            return
        self._number += 1
        self._programs.append(program)
        self._kernels.lead(program.address, program.count, self._address, self._number)

    def _assist(self, member: int) -> None:
        # A method of the team, so that its memory lives as long as an assistant may look at it.
        self._kernels.assist(self._address, member, PATIENCE, 0)


class _Assistant:
    """A thread that sleeps until it is called."""

    def __init__(self) -> None:
        self.busy = False
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._processors: set[int] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="minitrans-assistant")
        self._thread.start()

    def call(self, task: Callable[[], None], processors: set[int]) -> None:
        """Do a task, on one of the processors if any are named."""
        if processors and processors != self._processors and self._thread.native_id is not None:
            with suppress(OSError):  # a sandbox may forbid it
                os.sched_setaffinity(self._thread.native_id, processors)  # of that thread alone
            self._processors = processors
        self.busy = True
        self._tasks.put(task)

    def _serve(self) -> None:
        while True:
            self._tasks.get()()
            self.busy = False


_assistants: list[_Assistant] = []  # of this process
_chunks: list[object] = []  # an entry for each that is being worked on


if hasattr(os, "register_at_fork"):  # the threads are gone
    os.register_at_fork(after_in_child=_assistants.clear)
    os.register_at_fork(after_in_child=_chunks.clear)


def _idle_assistants(count: int) -> list[_Assistant]:
    """As many assistants that nobody has called, started if need be; fewer where all are at work or none can start.

    Called by one thread at a time: that of the only chunk.
    """
    idle = [assistant for assistant in _assistants if not assistant.busy][:count]
    with suppress(RuntimeError):
        while len(idle) < count and len(_assistants) < MOST_ASSISTANTS:
            idle.append(_Assistant())
            _assistants.append(idle[-1])
    return idle


def _other_processors() -> set[int]:
    """The processors that the calling thread may use and does not run on; none where that cannot be told.

    Left to itself, the system may wake an assistant on the processor of the thread that calls it, and leave it there.
    """
    if sys.platform != "linux":
        return set()
    processors = os.sched_getaffinity(0)
    with suppress(AttributeError):  # a C library without it
        processors.discard(_libc().sched_getcpu())
    return processors


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@contextmanager
def register_chunk() -> Iterator[bool]:
    """Count a chunk in while it is worked on. Gives whether it is the only one, so that processors would be idle.

    Without a lock, which a signal handler that encodes too would wait for in vain: changes of a list are atomic.
    """
    chunk = object()
    try:
        _chunks.append(chunk)
        yield _chunks[:1] == [chunk]
    finally:
        if chunk in _chunks:  # a forked child has none
            _chunks.remove(chunk)
