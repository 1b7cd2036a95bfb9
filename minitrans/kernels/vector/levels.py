"""The instruction-set levels that the kernels are compiled for, best first; one library holds those of a family."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One instruction set, and the shapes of the kernels' tiles that suit its registers."""

    name: str
    needs: frozenset[str]  # what the processor and the system must offer, as `processor_features` names it
    cpu: str  # LLVM's name of the base
    features: str  # LLVM's names of what is added to it
    lanes: int  # float32 or int32 numbers in a vector
    float32_heights: tuple[int, int, int]  # rows of a tile of 2 vectors, greatest first: what the registers hold
    int8_heights: tuple[int, int, int]
    int8_dot: str  # how 4 products of bytes are added to an int32: see `vector.tiles.int8_tile`
    fma: bool = True

    @property
    def panel(self) -> int:
        """Columns of a tile: the width of the panels that weights are packed in."""
        return 2 * self.lanes

    @property
    def depth_multiple(self) -> int:
        """int8 products run over a depth that is a multiple of this, filled with zeros."""
        return 64 if self.int8_dot == "amx" else 4

    @property
    def is_x86(self) -> bool:
        """Whether this is of the x86-64 family."""
        return self.cpu.startswith("x86")

    @property
    def zero_shift(self) -> int:
        """What the tile subtracts from every activation, where only signed bytes can be multiplied."""
        return 128 if self.int8_dot in ("sdot", "widen") else 0


def _level(name: str, needs: str, cpu: str, features: str, lanes: int, dot: str, **options: object) -> Level:
    floats = (12, 8, 4) if lanes == 16 or cpu == "generic" else (6, 4, 2)
    ints = {"amx": (32, 16, 16), "madd": (8, 4, 4) if lanes == 16 else (4, 2, 2)}.get(dot, floats)
    return Level(name, frozenset(needs.split()), cpu, features, lanes, floats, ints, dot, **options)  # type: ignore[arg-type]


_AVX2 = "avx2 fma"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512dq avx512vl"
_AMX = "+avx512vnni,+amx-tile,+amx-int8"

FAMILIES: dict[str, tuple[Level, ...]] = {
    "x86_64": (
        _level("avx512_amx", f"{_AVX512} avx512_vnni amx_int8", "x86-64-v4", _AMX, 16, "amx"),
        _level("avx512_vnni", f"{_AVX512} avx512_vnni", "x86-64-v4", "+avx512vnni", 16, "vnni"),
        _level("avx512", _AVX512, "x86-64-v4", "", 16, "madd"),
        _level("avx_vnni", f"{_AVX2} avx_vnni", "x86-64-v3", "+avxvnni", 8, "vnni"),
        _level("avx2", _AVX2, "x86-64-v3", "", 8, "madd"),
        _level("baseline", "", "x86-64", "", 4, "madd", fma=False),
    ),
    "aarch64": (
        _level("neon_dotprod", "neon dotprod", "generic", "+neon,+dotprod", 4, "sdot"),
        _level("neon", "neon", "generic", "+neon", 4, "widen"),
    ),
}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def this_machine() -> str:
    """The key of this machine in FAMILIES, or what the system calls it."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


ENTRY_POINTS = ("run", "lead", "assist")  # what can be called from outside: see kernels/run.py


def symbol(level: Level, entry_point: str) -> str:
    """The name of a level's entry point in the library."""
    return f"minitrans_{level.name}_{entry_point}"
