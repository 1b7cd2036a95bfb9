"""Which instruction-set levels this processor runs, and which of them to use.

The environment variable MINITRANS_LEVEL names a level to use in place of the best.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from minitrans.errors import BackendError
from minitrans.kernels.vector.levels import FAMILIES, Level, this_machine

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # Linux on x86-64


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
    for level in FAMILIES.get(this_machine(), ()):
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
    if name is None:
        raise BackendError(f"there are no compiled kernels for {this_machine()}; use backend='reference'")
    known = ", ".join(level.name for level in levels) or "none"
    raise BackendError(f"instruction-set level is {name!r}, wanted one that this processor runs: {known}")
