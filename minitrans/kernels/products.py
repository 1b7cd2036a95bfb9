"""Linear maps with what follows them: y = activation(x @ weight + bias). A task is one panel of columns.

x [T, K] row by row; weight in panels of 2 vectors of columns, [N / panel, K, panel], int8 [N / panel, K / 4, panel, 4];
y [T, N rounded up to whole panels]. Rows up to the next tile are read and written: scratch has room for them. A row's
sums run through the same steps in whatever tile it falls, so its result does not depend on the rows beside it.

    float32   y = activation(sum_k x[t, k] w[k, n] + bias[n])
    int8      y = activation(float(sum_k (q[t, k] - zero[t]) w[k, n]) * (scale[t] scale[n]) + bias[n])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minitrans.kernels.rows import Kernel
from minitrans.kernels.steps import BATCH, PRODUCT
from minitrans.kernels.vector import elementary
from minitrans.kernels.vector.emitter import (
    FLOAT,
    I32,
    Emitter,
    Lanes,
    load_word,
    nothing,
    stack_bytes,
    vector_code,
    word,
)
from minitrans.kernels.vector.levels import Level
from minitrans.kernels.vector.tiles import float32_tile, int8_tile

Function = Callable[[Emitter, Lanes], Lanes]
FUNCTIONS: tuple[Function, ...] = (  # in the order of steps.ACTIVATION
    lambda v, x: x,
    elementary.gelu,
    elementary.gelu_new,
    elementary.relu,
)


def _float32_epilogue(level: Level, function: Function) -> Any:
    @vector_code(level, nothing, word, word, word, word, word)
    def finish(v: Emitter, sums: Lanes, height: Lanes, bias: Lanes, y: Lanes, y_bytes: Lanes) -> None:
        biases = [v.load(bias + c * level.lanes * 4) for c in range(2)]

        def row(_: Lanes, sums: Lanes, y: Lanes) -> list[Lanes]:
            for c in range(2):
                at = c * level.lanes * 4
                v.store(y + at, function(v, v.load(sums + at) + biases[c]))
            return [sums + level.panel * 4, y + y_bytes]

        v.loop(height, [sums, y], row)

    return finish


def _int8_epilogue(level: Level, function: Function) -> Any:
    @vector_code(level, nothing, word, word, word, word, word, word, word, word, word)
    def finish(
        v: Emitter,
        sums: Lanes,
        height: Lanes,
        bias: Lanes,
        y: Lanes,
        y_bytes: Lanes,
        column_scale: Lanes,
        column_sum: Lanes,
        row_scale: Lanes,
        row_zero: Lanes,
    ) -> None:
        columns = [c * level.lanes * 4 for c in range(2)]
        biases = [v.load(bias + at) for at in columns]
        scales = [v.load(column_scale + at) for at in columns]
        totals = [v.load(column_sum + at, v.ints) for at in columns]

        def row(_: Lanes, sums: Lanes, y: Lanes, scale_at: Lanes, zero_at: Lanes) -> list[Lanes]:
            scale = v.splat(v.load(scale_at, FLOAT))
            zero = v.splat(v.load(zero_at, I32) - level.zero_shift)
            for c, at in enumerate(columns):
                exact = v.load(sums + at, v.ints) - zero * totals[c]
                v.store(y + at, function(v, v.fma(v.to_floats(exact), scale * scales[c], biases[c])))
            return [sums + level.panel * 4, y + y_bytes, scale_at + 4, zero_at + 4]

        v.loop(height, [sums, y, row_scale, row_zero], row)

    return finish


def float32_product(level: Level) -> Kernel:
    """x and y float32."""
    tall, middle, low = level.float32_heights
    tall_tile, middle_tile, low_tile = (float32_tile(level, height) for height in level.float32_heights)
    plain, gelu, gelu_new, relu = (_float32_epilogue(level, function) for function in FUNCTIONS)
    panel_row = level.panel * 4
    scratch = stack_bytes(tall * panel_row)

    def float32_product(step: int, task: int, member: int) -> None:
        rows = load_word(load_word(step, PRODUCT.batch), BATCH.tokens)
        x, x_bytes = load_word(step, PRODUCT.x), load_word(step, PRODUCT.x_bytes)
        y, y_bytes = load_word(step, PRODUCT.y) + task * panel_row, load_word(step, PRODUCT.y_bytes)
        weight = load_word(step, PRODUCT.weight) + task * load_word(step, PRODUCT.panel_bytes)
        bias = load_word(step, PRODUCT.bias) + task * panel_row
        depth, activation = load_word(step, PRODUCT.depth), load_word(step, PRODUCT.activation)
        sums = scratch()
        row = 0
        while row < rows:
            if rows - row > middle:
                height = tall
                tall_tile(x + row * x_bytes, x_bytes, weight, panel_row, depth, sums)
            elif rows - row > low:
                height = middle
                middle_tile(x + row * x_bytes, x_bytes, weight, panel_row, depth, sums)
            else:
                height = low
                low_tile(x + row * x_bytes, x_bytes, weight, panel_row, depth, sums)
            if activation == 0:
                plain(sums, height, bias, y + row * y_bytes, y_bytes)
            elif activation == 1:
                gelu(sums, height, bias, y + row * y_bytes, y_bytes)
            elif activation == 2:
                gelu_new(sums, height, bias, y + row * y_bytes, y_bytes)
            else:
                relu(sums, height, bias, y + row * y_bytes, y_bytes)
            row += height

    return float32_product


def int8_product(level: Level) -> Kernel:
    """x: uint8 rows with ``row_scale`` and ``row_zero``; y float32."""
    heights = (*level.int8_heights, level.int8_heights[-1])[:3]
    tall, middle, low = heights
    tall_tile, middle_tile, low_tile = (int8_tile(level, height) for height in heights)
    plain, gelu, gelu_new, relu = (_int8_epilogue(level, function) for function in FUNCTIONS)
    panel_row = level.panel * 4
    scratch = stack_bytes(tall * panel_row)

    def int8_product(step: int, task: int, member: int) -> None:
        rows = load_word(load_word(step, PRODUCT.batch), BATCH.tokens)
        x, x_bytes = load_word(step, PRODUCT.x), load_word(step, PRODUCT.x_bytes)
        y, y_bytes = load_word(step, PRODUCT.y) + task * panel_row, load_word(step, PRODUCT.y_bytes)
        weight = load_word(step, PRODUCT.weight) + task * load_word(step, PRODUCT.panel_bytes)
        bias = load_word(step, PRODUCT.bias) + task * panel_row
        depth, activation = load_word(step, PRODUCT.depth), load_word(step, PRODUCT.activation)
        scale = load_word(step, PRODUCT.column_scale) + task * panel_row
        total = load_word(step, PRODUCT.column_sum) + task * panel_row
        row_scale, row_zero = load_word(step, PRODUCT.row_scale), load_word(step, PRODUCT.row_zero)
        sums = scratch()
        row = 0
        while row < rows:
            if rows - row > middle:
                height = tall
                tall_tile(x + row * x_bytes, x_bytes, weight, panel_row, depth, sums)
            elif rows - row > low:
                height = middle
                middle_tile(x + row * x_bytes, x_bytes, weight, panel_row, depth, sums)
            else:
                height = low
                low_tile(x + row * x_bytes, x_bytes, weight, panel_row, depth, sums)
            to, scale_at, zero_at = y + row * y_bytes, row_scale + row * 4, row_zero + row * 4
            if activation == 0:
                plain(sums, height, bias, to, y_bytes, scale, total, scale_at, zero_at)
            elif activation == 1:
                gelu(sums, height, bias, to, y_bytes, scale, total, scale_at, zero_at)
            elif activation == 2:
                gelu_new(sums, height, bias, to, y_bytes, scale, total, scale_at, zero_at)
            else:
                relu(sums, height, bias, to, y_bytes, scale, total, scale_at, zero_at)
            row += height

    return int8_product
