"""The innermost loops: a tile of some rows x 2 vectors of a matrix product, its sums held in registers.

A tile walks over the depth once. At each step it loads 2 vectors of the panel b and, for every row of a, one number (4
bytes for int8) that is copied to all lanes. The sums are left in `out` [height, 2 vectors], float32 or int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from minitrans.kernels.vector.emitter import (
    FLOAT,
    I8,
    I16,
    I32,
    I64,
    POINTER,
    VOID,
    Emitter,
    Lanes,
    vector_code,
)
from minitrans.kernels.vector.levels import Level

ROWS_PER_POINTER = 3  # addresses p, p + stride, p + 2 * stride cost nothing more on x86
PREFETCH_BYTES = 6144  # how far before its use a panel's memory is asked for (measured: 4096 to 16384 are alike)
UNROLL = 2
SIGN_BITS = -0x7F7F7F80  # 0x80808080: flipping them takes 128 from each of 4 unsigned bytes


def float32_tile(level: Level, height: int) -> Any:
    """out[r, c] = sum over k of a[r, k] * b[k, c], k ascending, one rounding per step with fma."""

    @vector_code(level)
    def tile(v: Emitter, a: Lanes, a_bytes: Lanes, b: Lanes, b_bytes: Lanes, depth: Lanes, out: Lanes) -> None:
        def step(k: int, rows: list[Lanes], b: Lanes, sums: list[Lanes]) -> list[Lanes]:
            right = [v.load(b), v.load(b + v.level.lanes * 4)]
            new = []
            for r in range(height):
                left = v.splat(v.load(_row(rows, a_bytes, r) + 4 * k, FLOAT))
                new += [v.fma(left, right[c], sums[2 * r + c]) for c in range(2)]
            return new

        sums = _over_depth(v, height, a, a_bytes, b, b_bytes, depth, step, v.constant(0.0))
        _store(v, sums, out)

    return tile


def _row(pointers: list[Lanes], stride: Lanes, r: int) -> Lanes:
    behind = r % ROWS_PER_POINTER
    return pointers[r // ROWS_PER_POINTER] + stride * behind if behind else pointers[r // ROWS_PER_POINTER]


def _over_depth(
    v: Emitter,
    height: int,
    a: Lanes,
    a_bytes: Lanes,
    b: Lanes,
    b_bytes: Lanes,
    depth: Lanes,
    step: Any,
    zero: Lanes,
) -> list[Lanes]:
    """Carry the row pointers, the panel pointer and the sums through the depth, 4 bytes of a row per step."""
    pointers = [v.opaque(a + a_bytes * r) for r in range(0, height, ROWS_PER_POINTER)]
    many = len(pointers)

    def steps(count: int) -> Any:
        def body(_: Lanes, *values: Lanes) -> list[Lanes]:
            rows, b, sums = list(values[:many]), values[many], list(values[many + 1 :])
            v.prefetch(b + PREFETCH_BYTES, count * 2 * v.lanes * 4)
            for k in range(count):
                sums = step(k, rows, b + b_bytes * k if k else b, sums)
            return [*(v.opaque(row + 4 * count) for row in rows), b + b_bytes * count, *sums]

        return body

    values = [*pointers, b, *[zero] * (2 * height)]
    values = v.loop(depth >> (UNROLL.bit_length() - 1), values, steps(UNROLL))
    return v.loop(depth & (UNROLL - 1), values, steps(1))[many + 1 :]


def _store(v: Emitter, sums: list[Lanes], out: Lanes) -> None:
    for i, total in enumerate(sums):
        v.store(out + i * v.level.lanes * 4, total)


def int8_tile(level: Level, height: int) -> Any:
    """out[r, c] = sum over k of (a[r, k] - zero_shift) * b[k, c], exact in int32; a is unsigned, b signed.

    b is packed so that the 4 bytes of an int32 lane are 4 steps of k of one column: [K / 4, columns, 4]. How a lane's 4
    products are added is the level's ``int8_dot``:

        amx    tiles of 16 rows x 64 bytes; a row of `a` is used as it lies
        vnni   one instruction, unsigned times signed
        sdot   one instruction, signed times signed: 128 is taken from `a`
        madd   pairs of int16: even bytes, then odd ones (the instruction for bytes would saturate)
        widen  the same with plain multiplications, 128 taken from `a`
    """
    if level.int8_dot == "amx":
        return _amx_tile(level, height)
    dot = {"vnni": _vnni, "sdot": _sdot, "madd": _madd, "widen": _widen}[level.int8_dot]

    @vector_code(level)
    def tile(v: Emitter, a: Lanes, a_bytes: Lanes, b: Lanes, b_bytes: Lanes, depth: Lanes, out: Lanes) -> None:
        def step(k: int, rows: list[Lanes], b: Lanes, sums: list[Lanes]) -> list[Lanes]:
            right = [v.load(b, v.ints), v.load(b + v.level.lanes * 4, v.ints)]
            new = []
            for r in range(height):  # loaded one by one, right where it is used, so that registers suffice
                left = v.load(_row(rows, a_bytes, r) + 4 * k, I32)
                new += dot(v, left, right, sums[2 * r : 2 * r + 2])
            return new

        zero = v.constant(0, v.ints)
        _store(v, _over_depth(v, height, a, a_bytes, b, b_bytes, depth >> 2, step, zero), out)

    return tile


def _vnni(v: Emitter, left: Lanes, right: list[Lanes], sums: list[Lanes]) -> list[Lanes]:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * v.lanes}"
    wide = v.splat(left)
    return [
        Lanes(v, v.call(name, v.ints, [v.ints] * 3, [total.value, wide.value, b.value]))
        for total, b in zip(sums, right, strict=True)
    ]


def _sdot(v: Emitter, left: Lanes, right: list[Lanes], sums: list[Lanes]) -> list[Lanes]:
    small = ir.VectorType(I8, 4 * v.lanes)
    wide = v.builder.bitcast(v.splat(left ^ SIGN_BITS).value, small)
    name, kinds = "llvm.aarch64.neon.sdot.v4i32.v16i8", [v.ints, small, small]
    return [
        Lanes(v, v.call(name, v.ints, kinds, [total.value, wide, v.builder.bitcast(b.value, small)]))
        for total, b in zip(sums, right, strict=True)
    ]


def _madd(v: Emitter, left: Lanes, right: list[Lanes], sums: list[Lanes]) -> list[Lanes]:
    pairs = ir.VectorType(I16, 2 * v.lanes)
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[v.lanes]
    even = left & 0x00FF00FF
    odd = Lanes(v, v.builder.lshr(left.value, I32(8))) & 0x00FF00FF
    halves = [v.builder.bitcast(v.splat(half).value, pairs) for half in (even, odd)]
    new = []
    for total, b in zip(sums, right, strict=True):
        both = Lanes(v, v.builder.bitcast(b.value, pairs))
        for wide, column in zip(halves, ((both << 8) >> 8, both >> 8), strict=True):
            total = total + Lanes(v, v.call(name, v.ints, [pairs, pairs], [wide, column.value]))
        new.append(total)
    return new


def _widen(v: Emitter, left: Lanes, right: list[Lanes], sums: list[Lanes]) -> list[Lanes]:
    new = list(sums)
    for byte in range(4):
        up = 24 - 8 * byte
        wide = v.splat(((left ^ SIGN_BITS) << up) >> 24)
        for c, b in enumerate(right):
            new[c] = new[c] + wide * ((b << up) >> 24)
    return new


def _amx_tile(level: Level, height: int) -> Any:
    """Tile registers 0 to 3 hold the sums (16 rows x 16 columns each), 4 and 5 rows of a, 6 and 7 columns of b."""
    row_blocks = range(height // 16)

    @vector_code(level)
    def tile(v: Emitter, a: Lanes, a_bytes: Lanes, b: Lanes, b_bytes: Lanes, depth: Lanes, out: Lanes) -> None:
        def register(number: int) -> ir.Value:
            return I8(number)

        def load(number: int, address: Lanes, stride: Lanes) -> None:
            pointer = v.builder.inttoptr(address.value, POINTER)
            v.call("llvm.x86.tileloadd64", VOID, [I8, POINTER, I64], [register(number), pointer, stride.value])

        for r in row_blocks:
            for c in range(2):
                v.call("llvm.x86.tilezero", VOID, [I8], [register(2 * r + c)])

        def body(_: Lanes, a: Lanes, b: Lanes) -> list[Lanes]:
            v.prefetch(b + PREFETCH_BYTES, 2048)
            for c in range(2):
                load(6 + c, b + 64 * c, b_bytes)
            for r in row_blocks:
                load(4 + r, a + a_bytes * (16 * r), a_bytes)
                for c in range(2):
                    registers = [register(2 * r + c), register(4 + r), register(6 + c)]
                    v.call("llvm.x86.tdpbusd", VOID, [I8] * 3, registers)
            return [a + 64, b + b_bytes * 16]

        v.loop(depth >> 6, [a, b], body)
        for r in row_blocks:
            for c in range(2):
                pointer = v.builder.inttoptr((out + (16 * r * 128 + 64 * c)).value, POINTER)
                kinds = [I8, POINTER, I64]
                v.call("llvm.x86.tilestored64", VOID, kinds, [register(2 * r + c), pointer, I64(128)])

    return tile


def tile_registers(level: Level) -> tuple[Any, Any]:
    """Two functions to call before and after int8 tiles: set up the tile registers, and give them back.

    Without AMX they do nothing.
    """
    uses_tiles = level.int8_dot == "amx"

    @vector_code(level)
    def configure(v: Emitter, memory: Lanes) -> None:
        """``memory``: 64 bytes to write the configuration to: palette 1, all 8 registers 16 rows x 64 bytes."""
        if uses_tiles:
            widths = [64 | 64 << 16 | 64 << 32 | 64 << 48] * 2
            rows = sum(16 << 8 * register for register in range(8))
            for i, number in enumerate([1, 0, *widths, 0, 0, rows, 0]):
                v.store(memory + 8 * i, v.word(number))
            v.call("llvm.x86.ldtilecfg", VOID, [POINTER], [v.builder.inttoptr(memory.value, POINTER)])

    @vector_code(level)
    def release(v: Emitter) -> None:
        if uses_tiles:
            v.call("llvm.x86.tilerelease", VOID, [], [])

    return configure, release


def tile_rows(heights: tuple[int, int, int], tile: Callable[[int], Any]) -> tuple[Any, Any]:
    """Two functions that Numba kernels can call: which height of tile suits the rows that are left, and that tile.

    Args:
        heights: of the tiles, greatest first.
        tile: makes the tile of a height.
    """
    tall, middle, low = heights
    tall_tile, middle_tile, low_tile = map(tile, heights)

    @njit(inline="always", error_model="numpy")
    def choose(left: int) -> int:
        if left <= low:
            return low
        if left <= middle:
            return middle
        return tall

    @njit(inline="always", error_model="numpy")
    def multiply(height: int, a: int, a_bytes: int, b: int, b_bytes: int, depth: int, out: int) -> None:
        if height == tall:
            tall_tile(a, a_bytes, b, b_bytes, depth, out)
        elif height == middle:
            middle_tile(a, a_bytes, b, b_bytes, depth, out)
        else:
            low_tile(a, a_bytes, b, b_bytes, depth, out)

    return choose, multiply
