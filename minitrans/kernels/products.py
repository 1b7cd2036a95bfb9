"""Linear maps with what follows them: y = activation(x @ weight + bias). A task is one panel of columns.

x [T, K] row by row; weight in panels of 2 vectors of columns, [N / panel, K, panel], int8 [N / panel, K / 4, panel, 4];
y [T, N rounded up to whole panels]. Rows up to the next tile are read and written: scratch has room for them. A row's
sums run through the same steps in whatever tile it falls, so its result does not depend on the rows beside it.

    float32   y = activation(sum_k x[t, k] w[k, n] + bias[n])
    int8      y = activation(float(sum_k (q[t, k] - zero[t]) w[k, n]) * (scale[t] scale[n]) + bias[n])
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from minitrans.kernels.steps import ACTIVATION, BATCH, PRODUCT, Kernel
from minitrans.kernels.vector import elementary
from minitrans.kernels.vector.emitter import FLOAT, I32, Emitter, Lanes, load_word, stack_bytes, vector_code
from minitrans.kernels.vector.levels import Level
from minitrans.kernels.vector.tiles import float32_tile, int8_tile, tile_rows

Activation: TypeAlias = Callable[[Emitter, Lanes], Lanes]
_CODE: dict[str | None, Activation] = {
    None: lambda v, x: x,
    "gelu": elementary.gelu,
    "gelu_new": elementary.gelu_new,
    "relu": elementary.relu,
}
ACTIVATIONS = [_CODE[name] for name in ACTIVATION]  # each at its number


def float32_product(level: Level) -> Kernel:
    """x and y float32."""

    @vector_code(level)
    def epilogue(
        v: Emitter,
        activation: Lanes,
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
        """y = activation(sums + bias) for the rows of a tile."""
        columns = [c * level.lanes * 4 for c in range(2)]
        biases = [v.load(bias + at) for at in columns]

        def rows(function: Activation) -> None:
            def row(_: Lanes, sums: Lanes, y: Lanes) -> list[Lanes]:
                for c, at in enumerate(columns):
                    v.store(y + at, function(v, v.load(sums + at) + biases[c]))
                return [sums + level.panel * 4, y + y_bytes]

            v.loop(height, [sums, y], row)

        v.switch(activation, [partial(rows, function) for function in ACTIVATIONS])

    return _product(level, level.float32_heights, partial(float32_tile, level), epilogue)


def int8_product(level: Level) -> Kernel:
    """x: uint8 rows with ``row_scale`` and ``row_zero``; y float32."""

    @vector_code(level)
    def epilogue(
        v: Emitter,
        activation: Lanes,
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
        """y = activation((sums - zero * column_sum) * scale + bias) for the rows of a tile."""
        columns = [c * level.lanes * 4 for c in range(2)]
        biases = [v.load(bias + at) for at in columns]
        scales = [v.load(column_scale + at) for at in columns]
        totals = [v.load(column_sum + at, v.ints) for at in columns]

        def rows(function: Activation) -> None:
            def row(_: Lanes, sums: Lanes, y: Lanes, scale_at: Lanes, zero_at: Lanes) -> list[Lanes]:
                scale = v.splat(v.load(scale_at, FLOAT))
                zero = v.splat(v.load(zero_at, I32) - level.zero_shift)
                for c, at in enumerate(columns):
                    exact = v.load(sums + at, v.ints) - zero * totals[c]
                    v.store(y + at, function(v, v.fma(v.to_floats(exact), scale * scales[c], biases[c])))
                return [sums + level.panel * 4, y + y_bytes, scale_at + 4, zero_at + 4]

            v.loop(height, [sums, y, row_scale, row_zero], row)

        v.switch(activation, [partial(rows, function) for function in ACTIVATIONS])

    return _product(level, level.int8_heights, partial(int8_tile, level), epilogue)


def _product(level: Level, heights: tuple[int, int, int], tile: Callable[[int], Any], epilogue: Any) -> Kernel:
    """Tile by tile: the sums, then what the epilogue makes of them."""
    choose_height, multiply = tile_rows(heights, tile)
    panel_row = level.panel * 4
    scratch = stack_bytes(heights[0] * panel_row)

    def product(step: int, task: int, member: int) -> None:
        rows = load_word(load_word(step, PRODUCT.batch), BATCH.tokens)
        x, x_bytes = load_word(step, PRODUCT.x), load_word(step, PRODUCT.x_bytes)
        y, y_bytes = load_word(step, PRODUCT.y) + task * panel_row, load_word(step, PRODUCT.y_bytes)
        weight = load_word(step, PRODUCT.weight) + task * load_word(step, PRODUCT.panel_bytes)
        bias = load_word(step, PRODUCT.bias) + task * panel_row
        depth, activation = load_word(step, PRODUCT.depth), load_word(step, PRODUCT.activation)
        scale = load_word(step, PRODUCT.column_scale) + task * panel_row  # these four: of int8 products
        total = load_word(step, PRODUCT.column_sum) + task * panel_row
        row_scale, row_zero = load_word(step, PRODUCT.row_scale), load_word(step, PRODUCT.row_zero)
        sums = scratch()
        row = 0
        while row < rows:
            height = choose_height(rows - row)
            multiply(height, x + row * x_bytes, x_bytes, weight, panel_row, depth, sums)
            to, scale_at, zero_at = y + row * y_bytes, row_scale + row * 4, row_zero + row * 4
            epilogue(activation, sums, height, bias, to, y_bytes, scale, total, scale_at, zero_at)
            row += height

    return product
