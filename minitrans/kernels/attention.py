"""Self-attention of one text and head at a time; a task is text * heads + head.

    logits = query key^T * factor (+ log size of each key)      [n, n]
    attention = softmax(logits)                                 rows are queries
    context = attention value                                   [n, D]
    received[j] = mean over queries i of attention[i, j]        gathered where asked for

Queries are taken a tile of rows at a time, so memory is linear in the length: the scratch of each thread holds the keys
turned ([D, n], in panels) and the logits of one tile. Rows of the attention stay exponentials, and ``inverse`` holds
1 / the sum of each: results are divided, which are fewer.

First the parts, in the order of their use, then the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from numba import njit

from minitrans.kernels.steps import ATTENTION, BATCH, SCORE, Kernel
from minitrans.kernels.vector import elementary
from minitrans.kernels.vector.emitter import FLOAT, Emitter, Lanes, Part, least, load_word, stack_bytes, vector_code
from minitrans.kernels.vector.levels import Level
from minitrans.kernels.vector.tiles import float32_tile, tile_rows

LOWEST = float("-inf")  # where all logits are this low, the softmax is NaN, as it should be


def _turn(v: Emitter, rows: Lanes, stride: Lanes, to: Lanes) -> None:
    """A square of keys, as many as a vector has lanes, with rows and columns exchanged, into a panel."""
    square = [v.load(rows + stride * r) for r in range(v.lanes)]
    for i, column in enumerate(_transposed(v, square)):
        v.store(to + i * v.level.panel * 4, column)


def _transposed(v: Emitter, rows: list[Lanes]) -> list[Lanes]:
    """A square of vectors with its rows and columns exchanged, by halves of ever smaller blocks."""
    lanes, distance = len(rows), 1
    while distance < lanes:
        low = [(lane & ~distance) + (lanes if lane & distance else 0) for lane in range(lanes)]
        high = [place + distance for place in low]
        new = list(rows)
        for i in range(lanes):
            if not i & distance:
                new[i] = v.shuffle(rows[i], rows[i + distance], low)
                new[i + distance] = v.shuffle(rows[i], rows[i + distance], high)
        rows, distance = new, 2 * distance
    return rows


def _spread(v: Emitter, sums: Lanes, height: Lanes, to: Lanes, to_bytes: Lanes) -> None:
    """A tile's sums to where the rows of logits lie."""

    def row(_: Lanes, sums: Lanes, to: Lanes) -> list[Lanes]:
        for c in range(2):
            v.store(to + c * v.lanes * 4, v.load(sums + c * v.lanes * 4))
        return [sums + v.level.panel * 4, to + to_bytes]

    v.loop(height, [sums, to], row)


def _has_sizes(v: Emitter, log_sizes: Lanes) -> Lanes:
    """1 where there are sizes, 0 where there are none."""
    return Lanes(v, v.builder.zext(v.builder.icmp_signed("!=", log_sizes.value, v.word(0).value), log_sizes.value.type))


def _exponentials(v: Emitter, row: Lanes, n: Lanes, factor_at: Lanes, log_sizes: Lanes, inverse_at: Lanes) -> None:
    """exp(logits - the greatest of them) in place, and 1 / their sum."""
    factor, sized = v.splat(v.load(factor_at, FLOAT)), _has_sizes(v, log_sizes)

    def scale(part: Part, most: Lanes, with_sizes: bool = False) -> list[Lanes]:
        logits = part.load(row) * factor
        if with_sizes:
            logits = logits + part.load(log_sizes)
        part.store(row, logits)
        return [v.greatest(part.keep(logits, LOWEST), most)]

    most = v.each_vector(n * (v.word(1) - sized), [v.constant(LOWEST)], scale, [v.greatest])
    most = v.each_vector(n * sized, most, partial(scale, with_sizes=True))
    top = v.splat(v.fold(most[0], v.greatest))

    def power(part: Part, total: Lanes) -> list[Lanes]:
        value = part.keep(elementary.exp(v, part.load(row) - top))
        part.store(row, value)
        return [total + value]

    total = v.splat(v.total(v.each_vector(n, [v.constant(0.0)], power, [Lanes.__add__])[0]))
    v.store(inverse_at, v.first(v.constant(1.0) / total))


def _short_exponentials(
    v: Emitter,
    sums: Lanes,
    height: Lanes,
    n: Lanes,
    factor_at: Lanes,
    log_sizes: Lanes,
    to: Lanes,
    to_bytes: Lanes,
    inverse: Lanes,
) -> None:
    """The same for all rows of a tile, where a row is one vector: from the tile's sums to the rows of logits."""
    factor = v.splat(v.load(factor_at, FLOAT))
    more = v.load_first(log_sizes, n * _has_sizes(v, log_sizes))  # nothing is read without sizes

    def row(_: Lanes, sums: Lanes, to: Lanes, inverse: Lanes) -> list[Lanes]:
        logits = v.load(sums) * factor + more
        top = v.splat(v.fold(v.keep_first(logits, n, LOWEST), v.greatest))
        values = v.keep_first(elementary.exp(v, logits - top), n)
        v.store(to, values)
        v.store(inverse, v.first(v.constant(1.0) / v.splat(v.total(values))))
        return [sums + v.level.panel * 4, to + to_bytes, inverse + 4]

    v.loop(height, [sums, to, inverse], row)


def _place(v: Emitter, sums: Lanes, height: Lanes, inverse: Lanes, to: Lanes, to_bytes: Lanes, width: Lanes) -> None:
    """A panel of the context, or its first columns if ``width`` is less, divided by the sums of the rows."""

    def narrow(sums: Lanes, factor: Lanes, to: Lanes) -> None:
        def move(part: Part) -> list[Lanes]:
            part.store(to, part.load(sums) * factor)
            return []

        v.each_vector(width, [], move)

    def whole(sums: Lanes, factor: Lanes, to: Lanes) -> None:
        for c in range(2):
            v.store(to + c * v.lanes * 4, v.load(sums + c * v.lanes * 4) * factor)

    def rows(move: Callable[[Lanes, Lanes, Lanes], None]) -> None:
        def row(_: Lanes, sums: Lanes, inverse: Lanes, to: Lanes) -> list[Lanes]:
            move(sums, v.splat(v.load(inverse, FLOAT)), to)
            return [sums + v.level.panel * 4, inverse + 4, to + to_bytes]

        v.loop(height, [sums, inverse, to], row)

    v.switch(width >> (v.level.panel.bit_length() - 1), [partial(rows, narrow), partial(rows, whole)])


def _clear(v: Emitter, row: Lanes, n: Lanes) -> None:
    """Zeros, before anything is added up."""

    def write(part: Part) -> list[Lanes]:
        part.store(row, v.constant(0.0))
        return []

    v.each_vector(n, [], write)


def _gather(v: Emitter, row: Lanes, row_bytes: Lanes, height: Lanes, inverse: Lanes, n: Lanes, received: Lanes) -> None:
    """received[j] += attention[i, j] for the queries i of the tile."""

    def column(part: Part) -> list[Lanes]:
        def add(_: Lanes, row: Lanes, inverse: Lanes, total: Lanes) -> list[Lanes]:
            return [row + row_bytes, inverse + 4, v.fma(part.load(row), v.splat(v.load(inverse, FLOAT)), total)]

        part.store(received, v.loop(height, [row, inverse, part.load(received)], add)[2])
        return []

    v.each_vector(n, [], column)


def _average(v: Emitter, row: Lanes, n: Lanes) -> None:
    """Divide by the number of queries."""
    count = v.splat(Lanes(v, v.builder.sitofp(n.value, FLOAT)))

    def divide(part: Part) -> list[Lanes]:
        part.store(row, part.load(row) / count)
        return []

    v.each_vector(n, [], divide)


def _times_length(v: Emitter, place: Lanes, value: Lanes, width: Lanes) -> None:
    """Multiply a number by the Euclidean length of a row."""

    def square(part: Part, total: Lanes) -> list[Lanes]:
        return [v.fma(part.load(value), part.load(value), total)]

    total = v.total(v.each_vector(width, [v.constant(0.0)], square)[0])
    length = v.square_root(v.splat(total)) * v.splat(v.load(place, FLOAT))
    v.store(place, v.first(length))


def attention(level: Level) -> Kernel:
    """qkv [T, 3H] -> context [T, H]; batch.log_sizes and batch.received may be 0."""
    code = vector_code(level)
    turn, spread, place = code(_turn), code(_spread), code(_place)
    exponentials, short_exponentials = code(_exponentials), code(_short_exponentials)
    clear, gather, average, times_length = code(_clear), code(_gather), code(_average), code(_times_length)
    choose_height, multiply = tile_rows(level.float32_heights, partial(float32_tile, level))
    tall, lanes, panel_width, panel_row = level.float32_heights[0], level.lanes, level.panel, level.panel * 4
    sums_scratch, inverse_scratch = stack_bytes(tall * panel_row), stack_bytes(tall * 4)
    weighted = SCORE["attention_value"]

    @njit(inline="always", error_model="numpy")
    def turn_keys(key: int, stride: int, n: int, size: int, turned: int, turned_bytes: int) -> None:
        """key [n, D] -> turned, panels [D, panel] of keys."""
        for row in range(0, n, lanes):
            to = turned + row // panel_width * turned_bytes + row % panel_width * 4
            for column in range(0, size, lanes):
                turn(key + row * stride + column * 4, stride, to + column * panel_row)

    @njit(inline="always", error_model="numpy")
    def finish_received(received: int, score: int, value: int, stride: int, n: int, size: int) -> None:
        """From sums to means, weighted by the length of each value where the score asks for it."""
        average(received, n)
        if score == weighted:
            for j in range(n):
                times_length(received + j * 4, value + j * stride, size)

    def attention(step: int, task: int, member: int) -> None:
        batch, offsets = load_word(step, ATTENTION.batch), load_word(load_word(step, ATTENTION.batch), BATCH.offsets)
        heads, size = load_word(step, ATTENTION.heads), load_word(step, ATTENTION.head_size)
        text = task // heads
        head = task - text * heads
        begin = load_word(offsets, text * 8)
        n = load_word(offsets, text * 8 + 8) - begin
        if n == 0:
            return
        stride = load_word(step, ATTENTION.qkv_bytes)
        query = load_word(step, ATTENTION.qkv) + begin * stride + head * size * 4
        key = query + heads * size * 4
        value = key + heads * size * 4
        context_bytes = load_word(step, ATTENTION.context_bytes)
        context = load_word(step, ATTENTION.context) + begin * context_bytes + head * size * 4
        log_sizes = load_word(batch, BATCH.log_sizes)
        if log_sizes != 0:
            log_sizes += begin * 4
        received = load_word(batch, BATCH.received)
        if received != 0:
            received += head * load_word(batch, BATCH.received_bytes) + begin * 4
            clear(received, n)

        panels = (n + panel_width - 1) // panel_width
        logits_bytes = panels * panel_row
        logits = load_word(step, ATTENTION.scratch) + member * load_word(step, ATTENTION.scratch_bytes)
        turned = logits + tall * logits_bytes
        turned_bytes = (size + lanes - 1) // lanes * lanes * panel_row  # of a panel of keys
        turn_keys(key, stride, n, size, turned, turned_bytes)

        sums, inverse, factor = sums_scratch(), inverse_scratch(), step + ATTENTION.factor
        row = 0
        while row < n:
            height, queries = choose_height(n - row), query + row * stride
            for panel in range(panels):
                multiply(height, queries, stride, turned + panel * turned_bytes, panel_row, size, sums)
                if n > lanes:
                    spread(sums, height, logits + panel * panel_row, logits_bytes)
            rows = least(height, n - row)
            if n > lanes:
                for i in range(rows):
                    exponentials(logits + i * logits_bytes, n, factor, log_sizes, inverse + i * 4)
            else:
                short_exponentials(sums, rows, n, factor, log_sizes, logits, logits_bytes, inverse)
            for column in range(0, size, panel_width):
                multiply(height, logits, logits_bytes, value + column * 4, stride, n, sums)
                to = context + row * context_bytes + column * 4
                place(sums, rows, inverse, to, context_bytes, size - column)
            if received != 0:
                gather(logits, logits_bytes, rows, inverse, n, received)
            row += height
        if received != 0:
            finish_received(received, load_word(batch, BATCH.score), value, stride, n, size)

    return attention
