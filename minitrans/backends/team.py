"""Threads that help with one chunk: a text that comes alone is worked on by every processor there is.

Assistants wait in a loop inside the kernels, for the time of one chunk; between chunks they sleep. Nothing waits for them
to come, so a busy machine only means less help. What a text's bits are does not depend on them: they share out tasks,
and a task is the same whoever does it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np

from minitrans.backends.panels import address, aligned
from minitrans.kernels.library import Kernels
from minitrans.kernels.steps import BOARD, BOARD_JOBS, JOB_BYTES

MOST_MEMBERS = 4
PATIENCE = 5000  # turns of the waiting loop: some tenths of a millisecond


class Team:
    """The board of one leader and its assistants."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._board = aligned((len(BOARD),), np.int64)
        self._jobs = aligned((BOARD_JOBS, JOB_BYTES // 8), np.int64)
        self._board[BOARD.jobs // 8] = address(self._jobs)
        self._address = address(self._board)
        self._number = 0
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def is_free(self) -> bool:
        """Whether all assistants have left."""
        return self._inside == 0

    def open(self, assistants: int) -> None:
        """Begin, and call assistants."""
        self._jobs[: self._number] = 0
        self._board[BOARD.number // 8] = self._number = 0
        self._inside = assistants
        for member in range(1, assistants + 1):
            _call_assistant(lambda member=member: self._assist(member))  # type: ignore[misc]

    def close(self) -> None:
        """Send them away."""
        self._board[BOARD.number // 8] = -1

    def run(self, steps: int, count: int) -> None:
        """Run steps together."""
        if self._number == BOARD_JOBS:
            self._kernels.run(steps, count, 0, 0)
            return
        self._number += 1
        self._kernels.lead(steps, count, self._address, self._number)

    def _assist(self, member: int) -> None:
        self._kernels.assist(self._address, member, PATIENCE, 0)
        with self._lock:
            self._inside -= 1


class _Assistants:
    """Sleeping threads of this process, and how many chunks are being worked on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.queue: SimpleQueue[object] = SimpleQueue()
        self.threads = 0
        self.waiting = 0
        self.chunks = 0


_assistants = _Assistants()


def _after_fork() -> None:
    global _assistants
    _assistants = _Assistants()  # the threads are gone, and the lock may have been held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _call_assistant(task: object) -> None:
    state = _assistants
    with state.lock:
        if state.threads < MOST_MEMBERS - 1:
            state.threads += 1
            threading.Thread(target=_serve, args=(state,), daemon=True, name="minitrans-assistant").start()
    state.queue.put(task)


def _serve(state: _Assistants) -> None:
    while True:
        task = state.queue.get()
        task()  # type: ignore[operator]


@contextmanager
def alone() -> Iterator[bool]:
    """Whether no other chunk of this process is being worked on: processors would be idle."""
    state = _assistants
    with state.lock:
        state.chunks += 1
        first = state.chunks == 1
    try:
        yield first
    finally:
        with state.lock:
            state.chunks -= 1
