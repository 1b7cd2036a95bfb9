"""Linear maps with what follows them: y = activation(x @ weight + bias). A task is one panel of columns.

x [T, K] row by row; weight in panels of 2 vectors of columns, [N / panel, K, panel], int8 [N / panel, K / 4, panel, 4];
y [T, N rounded up to whole panels]. Rows up to the next tile are read and written: scratch has room for them. A row's
sums run through the same steps in whatever tile it falls, so its result does not depend on the rows beside it.

    float32   y = activation(sum_k x[t, k] w[k, n] + bias[n])
    int8      y = activation(float(sum_k (q[t, k] - zero[t]) w[k, n]) * (scale[t] scale[n]) + bias[n])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def values(v: Emitter, columns: Sequence[int], bias: Lanes, *_: Lanes) -> Any:
        biases = [v.load(bias + at) for at in columns]
        return lambda sums, *_: lambda c: v.load(sums + columns[c]) + biases[c]

    return _product(level, level.float32_heights, partial(float32_tile, level), values)


def int8_product(level: Level) -> Kernel:
    """x: uint8 rows with ``row_scale`` and ``row_zero``; y float32."""

    def values(v: Emitter, columns: Sequence[int], bias: Lanes, column_scale: Lanes, column_sum: Lanes) -> Any:
        biases = [v.load(bias + at) for at in columns]
        scales = [v.load(column_scale + at) for at in columns]
        totals = [v.load(column_sum + at, v.ints) for at in columns]

        def of_row(sums: Lanes, scale_at: Lanes, zero_at: Lanes) -> Callable[[int], Lanes]:
            scale = v.splat(v.load(scale_at, FLOAT))
            zero = v.splat(v.load(zero_at, I32) - level.zero_shift)

            def of_column(c: int) -> Lanes:
                exact = v.load(sums + columns[c], v.ints) - zero * totals[c]
                return v.fma(v.to_floats(exact), scale * scales[c], biases[c])

            return of_column

        return of_row

    return _product(level, level.int8_heights, partial(int8_tile, level), values)


def _product(level: Level, heights: tuple[int, int, int], tile: Callable[[int], Any], values: Any) -> Kernel:
    """Tile by tile: the sums, what ``values`` makes of them row by row and vector by vector, and the activation."""

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
        columns = [c * level.lanes * 4 for c in range(2)]
        of_row = values(v, columns, bias, column_scale, column_sum)

        def rows(function: Activation) -> None:
            def row(_: Lanes, sums: Lanes, y: Lanes, scale_at: Lanes, zero_at: Lanes) -> list[Lanes]:
                of_column = of_row(sums, scale_at, zero_at)
                for c, at in enumerate(columns):
                    v.store(y + at, function(v, of_column(c)))
                return [sums + level.panel * 4, y + y_bytes, scale_at + 4, zero_at + 4]

            v.loop(height, [sums, y, row_scale, row_zero], row)

        v.switch(activation, [partial(rows, function) for function in ACTIVATIONS])

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
