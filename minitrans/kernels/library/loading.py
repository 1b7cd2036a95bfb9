"""The kernels as functions: from the library that the build made, or compiled now by Numba from the same source.

They are called through ctypes, which lets go of Python's lock.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from minitrans.errors import BackendError
from minitrans.kernels.library.processor import choose_level
from minitrans.kernels.library.record import HERE, LIBRARY, why_not_ahead
from minitrans.kernels.steps import EntryPoint
from minitrans.kernels.vector.levels import ENTRY_POINTS, Level, symbol

AHEAD, IN_TIME = "ahead of time", "just in time"
_PROTOTYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)


@dataclass(frozen=True)
class Kernels:
    """The kernels of one level, ready to be called."""

    level: Level
    built: str  # AHEAD or IN_TIME
    run: EntryPoint  # these three: see kernels/run.py
    lead: EntryPoint
    assist: EntryPoint
    owner: Any  # what must stay alive as long as they


@cache
def load_kernels(level_name: str | None = None, built: str | None = None) -> Kernels:
    """The kernels of the best level or the one named: AHEAD if the library can be used, else IN_TIME.

    ``built`` asks for one of the two, and nothing else will do.

    Raises:
        BackendError: there are none; the message says why and what to do.
    """
    level = choose_level(level_name)
    problem = why_not_ahead()
    if problem is None and built in (None, AHEAD):
        library = ctypes.CDLL(str(HERE / LIBRARY))
        entry_points = {name: _PROTOTYPE((symbol(level, name), library)) for name in ENTRY_POINTS}
        return Kernels(level, AHEAD, owner=library, **entry_points)
    if built == AHEAD:
        raise BackendError(f"{problem}; install a C compiler and minitrans again, or use backend='reference'")
    try:
        from minitrans.kernels.library import build
    except ImportError:
        why = problem or "Numba is not installed"
        raise BackendError(
            f"{why}; pip install 'minitrans[jit]' compiles them with Numba, or use backend='reference'"
        ) from None
    address_of, engine = build.compile_now(level)
    entry_points = {name: _PROTOTYPE(address_of(name)) for name in ENTRY_POINTS}
    return Kernels(level, IN_TIME, owner=engine, **entry_points)
