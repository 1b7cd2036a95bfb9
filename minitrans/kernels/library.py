"""Finding the compiled kernels: the library that the build made, or Numba compiling the same source now.

What is found is one C function for the instruction-set level in use, `run` of kernels/run.py, called through ctypes (which
lets go of Python's lock). The environment variable MINITRANS_LEVEL names a level to use in place of the best.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from minitrans.errors import BackendError
from minitrans.kernels.levels import ENTRY_POINTS, FAMILIES, Level, symbol, this_machine

HERE = Path(__file__).parent
LIBRARY, RECORD = "kernels.so", "kernels.json"  # what a build leaves beside this file
AHEAD, IN_TIME = "ahead of time", "just in time"
_PROTOTYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)  # letting go of Python's lock
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # Linux on x86-64

Function = Callable[[int, int, int, int], None]


@dataclass(frozen=True)
class Kernels:
    """The kernels of one level, ready to be called."""

    level: Level
    built: str  # AHEAD or IN_TIME
    run: Function  # these three: see kernels/run.py
    lead: Function
    assist: Function
    owner: Any  # what must stay alive as long as they


def source_digest() -> str:
    """sha256 of the source that the kernels are compiled from."""
    digest = hashlib.sha256()
    for file in sorted([*HERE.glob("*.py"), HERE.parent / "backends" / "activations.py"]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def family() -> tuple[Level, ...]:
    """The levels of this machine's architecture, best first; none where the kernels know nothing of it."""
    return FAMILIES.get(this_machine(), ())


@cache
def processor_features() -> frozenset[str]:
    """What the processor and the system offer, by the names that levels use."""
    if this_machine() == "aarch64":
        if sys.platform != "linux":
            return frozenset({"neon", "dotprod"})  # every Apple processor has it
        hwcap = ctypes.CDLL(None).getauxval(16)
        return frozenset({"neon"} | ({"dotprod"} if hwcap >> 20 & 1 else set()))
    try:
        with Path("/proc/cpuinfo").open() as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        flags = ""
    return frozenset(flags.partition(":")[2].split())


def usable_levels() -> Iterator[Level]:
    """The levels of this machine that its processor can run, best first."""
    for level in family():
        if level.needs <= processor_features() and (level.int8_dot != "amx" or _allow_amx()):
            yield level


@cache
def _allow_amx() -> bool:
    """Linux gives the tile registers to processes that ask."""
    request = (_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
    try:
        return sys.platform == "linux" and ctypes.CDLL(None).syscall(*request) == 0
    except (OSError, AttributeError):
        return False


def choose_level(name: str | None = None) -> Level:
    """The best level, or the one named (or MINITRANS_LEVEL).

    Raises:
        BackendError: no level of that name that this processor can run.
    """
    name = name or os.environ.get("MINITRANS_LEVEL") or None
    levels = list(usable_levels())
    for level in levels:
        if name is None or level.name == name:
            return level
    known = ", ".join(level.name for level in levels) or "none"
    wanted = f"one that this processor runs: {known}"
    if name is None:
        raise BackendError(f"there are no compiled kernels for {this_machine()}; use backend='reference'")
    raise BackendError(f"instruction-set level is {name!r}, wanted {wanted}")


def why_not_ahead() -> str | None:
    """Why the library that a build made cannot be used; None if it can."""
    if not (HERE / LIBRARY).exists():
        return "this installation was built without compiled kernels"
    try:
        record = json.loads((HERE / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{HERE / RECORD} cannot be read ({error})"
    built_for, here = (record.get("machine"), record.get("platform")), (this_machine(), sys.platform)
    if built_for != here:
        return f"the kernels were built for {built_for}, and this is {here}"
    if record.get("source") != source_digest():
        return "the kernels were built from other source files; install again to build them"
    return None


@cache
def load_kernels(level_name: str | None = None, built: str | None = None) -> Kernels:
    """The kernels of the best level or the one named, however they can be had, or in the way asked for.

    Raises:
        BackendError: they cannot be had; the message says why and what to do.
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
        from minitrans.kernels import build
    except ImportError:
        why = problem or "Numba is not installed"
        raise BackendError(f"{why}; pip install 'minitrans[jit]' compiles them with Numba, or use backend='reference'") from None
    address_of, engine = build.compile_now(level)
    entry_points = {name: _PROTOTYPE(address_of(name)) for name in ENTRY_POINTS}
    return Kernels(level, IN_TIME, owner=engine, **entry_points)
