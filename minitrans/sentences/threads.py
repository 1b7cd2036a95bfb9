"""How many processors this process may use (its affinity mask and its cgroup's quota), and work spread over them."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeAlias, TypeVar

from minitrans.arguments import check_int

S = TypeVar("S")
T = TypeVar("T")
_Outcome: TypeAlias = Callable[[], T]


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
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            quotas.append(_quota([field for file in files for field in _read(folder / file).split()]))
            if folder == base:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(fields: list[str]) -> float | None:
    """In processors, of a quota and its period in microseconds; a quota of "max" (version 2) or -1 (1) is none."""
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) == 0:
        return None
    return int(fields[0]) / int(fields[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def in_order(work: Callable[..., T], items: Sequence[S], threads: int) -> Iterator[T]:
    """``work`` on every item, in order, as many at once as there are threads, the calling one among them.

    Where the system refuses threads, or the interpreter is ending, those that there are do all of it. Nothing takes a
    lock that a signal handler, which may come here too, would wait for. Where one item runs alone, ``work`` is told as
    ``helpers`` how many processors are idle meanwhile.
    """
    if threads == 1 or len(items) < 2:
        yield from (work(item, helpers=threads - 1) for item in items)
        return
    todo: SimpleQueue[Any] = SimpleQueue()  # numbers of items; anything else is the end
    done: SimpleQueue[tuple[int, _Outcome[T]]] = SimpleQueue()

    caller = _Caller()
    gone = weakref.ref(caller, todo.put)  # the end, also where an interrupt kept ``finally`` from saying so

    def help_out() -> None:
        while isinstance(place := todo.get(), int):
            done.put((place, _outcome(work, items[place], BaseException)))
        todo.put(gone)  # for the next

    helpers: list[threading.Thread] = []
    found: dict[int, _Outcome[T]] = {}
    given = 0
    try:
        for wanted in range(len(items)):
            while given < min(wanted + 2 * threads, len(items)):  # results wait here, so bound them
                todo.put(given)
                given += 1
            if not wanted:
                _start(help_out, min(threads, len(items)) - 1, helpers)
            while wanted not in found:
                with suppress(Empty):
                    found.update([done.get_nowait()])
                    continue
                try:
                    place = todo.get_nowait()
                except Empty:
                    found.update([done.get()])  # a helper has it
                else:
                    found[place] = _outcome(work, items[place], Exception)
            yield found.pop(wanted)()
    finally:
        with suppress(Empty):
            while True:
                todo.get_nowait()
        todo.put(gone)
        for helper in helpers:
            if helper is not threading.current_thread():  # which may be collecting an iterator that was left
                helper.join()


class _Caller:
    """Is gone when the call is that holds it."""


def _outcome(work: Callable[[S], T], item: S, catch: type[BaseException]) -> _Outcome[T]:
    """A function that gives what ``work`` gave, or raises what it raised."""
    try:
        result = work(item)
    except catch as error:
        return partial(_raise, [error])
    return lambda: result


def _raise(errors: list[BaseException]) -> NoReturn:
    raise errors.pop()  # popped, because its traceback leads back here


def _start(target: Callable[[], None], count: int, threads: list[threading.Thread]) -> None:
    """Start so many threads, or as many as the system allows. Daemons: an interpreter that ends waits for no call."""
    with suppress(RuntimeError):
        for _ in range(count):
            thread = threading.Thread(target=target, name="minitrans", daemon=True)
            thread.start()
            threads.append(thread)
