"""Kernels that work on rows: embeddings, layer normalisation, quantisation, copying. A task is ROWS_PER_TASK rows."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

from minitrans.kernels.steps import BATCH, EMBED, LAYER_NORM, LOAD_ROWS, QUANTIZE, ROWS_PER_TASK, Kernel
from minitrans.kernels.vector.elementary import ROUNDER, ROUNDER_BITS, rint
from minitrans.kernels.vector.emitter import FLOAT, Emitter, Lanes, Part, least, load_word, vector_code
from minitrans.kernels.vector.levels import Level


@njit(inline="always", error_model="numpy")
def end_of(task: int, batch: int) -> int:
    """The row behind the last one of a task, whose first is task * ROWS_PER_TASK."""
    return least(task * ROWS_PER_TASK + ROWS_PER_TASK, load_word(batch, BATCH.tokens))


def _normalized(
    v: Emitter, row: Callable[[Part], Lanes], out: Lanes, weight: Lanes, bias: Lanes, width: Lanes, epsilon: Lanes
) -> None:
    """out = (x - mean) / sqrt(variance + epsilon) * weight + bias; ``row`` gives a part of x."""
    zero = v.constant(0.0)

    def add(part: Part, total: Lanes) -> list[Lanes]:
        x = row(part)
        part.store(out, x)
        return [total + x]

    count = v.splat(Lanes(v, v.builder.sitofp(width.value, FLOAT)))
    mean = v.splat(v.total(v.each_vector(width, [zero], add, [Lanes.__add__])[0])) / count

    def spread(part: Part, total: Lanes) -> list[Lanes]:
        centered = part.keep(part.load(out) - mean)
        return [v.fma(centered, centered, total)]

    variance = v.splat(v.total(v.each_vector(width, [zero], spread, [Lanes.__add__])[0])) / count
    inverse = v.constant(1.0) / v.square_root(variance + v.splat(v.load(epsilon, FLOAT)))

    def finish(part: Part) -> list[Lanes]:
        part.store(out, v.fma((part.load(out) - mean) * inverse, part.load(weight), part.load(bias)))
        return []

    v.each_vector(width, [], finish)


def layer_norm(level: Level) -> Kernel:
    """batch.out[t] = layer_norm(x[t] + batch.hidden[t])"""

    @vector_code(level)
    def normalize(
        v: Emitter, x: Lanes, hidden: Lanes, out: Lanes, weight: Lanes, bias: Lanes, width: Lanes, epsilon: Lanes
    ) -> None:
        _normalized(v, lambda part: part.load(x) + part.load(hidden), out, weight, bias, width, epsilon)

    def layer_norm(step: int, task: int, member: int) -> None:
        batch = load_word(step, LAYER_NORM.batch)
        x, x_bytes = load_word(step, LAYER_NORM.x), load_word(step, LAYER_NORM.x_bytes)
        weight, bias = load_word(step, LAYER_NORM.weight), load_word(step, LAYER_NORM.bias)
        width = load_word(step, LAYER_NORM.width)
        hidden, out = load_word(batch, BATCH.hidden), load_word(batch, BATCH.out)
        for row in range(task * ROWS_PER_TASK, end_of(task, batch)):
            at = row * width * 4
            normalize(x + row * x_bytes, hidden + at, out + at, weight, bias, width, step + LAYER_NORM.epsilon)

    return layer_norm


def embed(level: Level) -> Kernel:
    """batch.out[t] = layer_norm(table[ids[t]] (times its scale, if int8) + positions[position of t])

    ``positions`` [P, H] are the position embeddings with the token type's already added.
    """

    @vector_code(level)
    def from_floats(
        v: Emitter, entry: Lanes, position: Lanes, out: Lanes, weight: Lanes, bias: Lanes, width: Lanes, epsilon: Lanes
    ) -> None:
        _normalized(v, lambda part: part.load(entry) + part.load(position), out, weight, bias, width, epsilon)

    @vector_code(level)
    def from_bytes(
        v: Emitter,
        entry: Lanes,
        scale: Lanes,
        position: Lanes,
        out: Lanes,
        weight: Lanes,
        bias: Lanes,
        width: Lanes,
        epsilon: Lanes,
    ) -> None:
        factor = v.splat(v.load(scale, FLOAT))

        def row(part: Part) -> Lanes:
            return part.keep(v.load_bytes(entry + part.begin) * factor) + part.load(position)

        _normalized(v, row, out, weight, bias, width, epsilon)

    def embed(step: int, task: int, member: int) -> None:
        batch = load_word(step, EMBED.batch)
        table, scales = load_word(step, EMBED.table), load_word(step, EMBED.scales)
        positions, width = load_word(step, EMBED.positions), load_word(step, EMBED.width)
        weight, bias, epsilon = load_word(step, EMBED.weight), load_word(step, EMBED.bias), step + EMBED.epsilon
        for row in range(task * ROWS_PER_TASK, end_of(task, batch)):
            index = load_word(load_word(batch, BATCH.ids), row * 8)
            position = positions + load_word(load_word(batch, BATCH.positions), row * 8) * width * 4
            out = load_word(batch, BATCH.out) + row * width * 4
            if scales == 0:
                from_floats(table + index * width * 4, position, out, weight, bias, width, epsilon)
            else:
                from_bytes(table + index * width, scales + index * 4, position, out, weight, bias, width, epsilon)

    return embed


def copying(level: Level) -> Kernel:
    """copy(row, to, width), for kernels to call."""

    @vector_code(level)
    def copy(v: Emitter, row: Lanes, to: Lanes, width: Lanes) -> None:
        def move(part: Part) -> list[Lanes]:
            part.store(to, part.load(row))
            return []

        v.each_vector(width, [], move)

    return copy


def load_rows(level: Level) -> Kernel:
    """to[t] = batch.hidden[t]: into scratch, where a product may read rows behind the last one."""
    copy = copying(level)

    def load_rows(step: int, task: int, member: int) -> None:
        batch = load_word(step, LOAD_ROWS.batch)
        hidden, width = load_word(batch, BATCH.hidden), load_word(step, LOAD_ROWS.width)
        to, to_bytes = load_word(step, LOAD_ROWS.to), load_word(step, LOAD_ROWS.to_bytes)
        for row in range(task * ROWS_PER_TASK, end_of(task, batch)):
            copy(hidden + row * width * 4, to + row * to_bytes, width)

    return load_rows


def quantize_activations(level: Level) -> Kernel:
    """Unsigned bytes with a scale and a zero point for each row, as models/quantization.py defines them.

    x is 0 for batch.hidden.

    NaN and infinity end up in the scale, and so in every result of the row.
    """

    @vector_code(level)
    def quantize(v: Emitter, x: Lanes, width: Lanes, to: Lanes, scale_at: Lanes, zero_at: Lanes) -> None:
        nil = v.constant(0.0)

        def extremes(part: Part, low: Lanes, high: Lanes, damage: Lanes) -> list[Lanes]:
            value = part.load(x)
            return [v.least(value, low), v.greatest(value, high), v.fma(value, nil, damage)]

        low, high, damage = v.each_vector(width, [nil, nil, nil], extremes, [v.least, v.greatest, Lanes.__add__])
        low = v.splat(v.fold(low, v.least))
        high = v.splat(v.fold(high, v.greatest))
        damage = v.splat(v.total(damage))  # 0, or NaN if any number was NaN or infinite
        span = (high - low) + damage
        empty = v.builder.fcmp_ordered("<=", span.value, v.constant(1e-30).value)
        scale = Lanes(v, v.builder.select(empty, v.constant(1.0).value, (span * (1 / 255)).value))
        inverse = v.constant(1.0) / scale
        zero = v.least(rint(v, (nil - low) * inverse), v.constant(255.0))

        # Integers that are the bits of floats: those of ROUNDER are taken off, the zero point is put on.
        shift = v.as_ints(zero + ROUNDER) - v.constant(2 * ROUNDER_BITS, v.ints)

        def convert(part: Part) -> list[Lanes]:
            q = v.as_ints(part.load(x) * inverse + ROUNDER) + shift  # the sum's lowest bits are the integer
            v.store_bytes(to + part.begin, v.clip(q, 0, 255))
            return []

        v.each_vector(width, [], convert)
        v.store(scale_at, v.first(scale))
        integer = v.as_ints(zero + ROUNDER) & 0xFF
        v.store(zero_at, v.first(integer))

    def quantize_activations(step: int, task: int, member: int) -> None:
        batch = load_word(step, QUANTIZE.batch)
        x, x_bytes = load_word(step, QUANTIZE.x), load_word(step, QUANTIZE.x_bytes)
        width = load_word(step, QUANTIZE.width)
        to, to_bytes = load_word(step, QUANTIZE.to), load_word(step, QUANTIZE.to_bytes)
        scale, zero = load_word(step, QUANTIZE.scale), load_word(step, QUANTIZE.zero)
        if x == 0:
            x = load_word(batch, BATCH.hidden)
        for row in range(task * ROWS_PER_TASK, end_of(task, batch)):
            quantize(x + row * x_bytes, width, to + row * to_bytes, scale + row * 4, zero + row * 4)

    return quantize_activations
