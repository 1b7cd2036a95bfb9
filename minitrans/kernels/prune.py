"""The kernel that takes out the rows of unimportant tokens; minitrans/encoder/selection.py defines what it computes."""

from __future__ import annotations

from minitrans.kernels.rows import copying
from minitrans.kernels.steps import BATCH, PRUNE, Kernel
from minitrans.kernels.vector.emitter import FLOAT, I64, Emitter, Lanes, Part, load_word, store_word, vector_code, word
from minitrans.kernels.vector.levels import Level


def prune(level: Level) -> Kernel:
    """Score the rows, rank those of each text, and move the best together in batch.out; add up the others.

    There is one task: where a text's rows go depends on how many of the texts before it stayed.
    """

    copy = copying(level)

    @vector_code(level)
    def score(v: Emitter, row: Lanes, weight: Lanes, bias: Lanes, to: Lanes, width: Lanes) -> None:
        def add(part: Part, total: Lanes) -> list[Lanes]:
            return [v.fma(part.load(row), part.load(weight), total)]

        product = v.each_vector(width, [v.constant(0.0)], add, [Lanes.__add__])[0]
        v.store(to, v.total(product) + v.load(bias, FLOAT))

    @vector_code(level)
    def add_row(v: Emitter, row: Lanes, to: Lanes, width: Lanes) -> None:
        def add(part: Part) -> list[Lanes]:
            part.store(to, part.load(to) + part.load(row))
            return []

        v.each_vector(width, [], add)

    @vector_code(level)
    def rank(v: Emitter, score: Lanes, to: Lanes, is_protected: Lanes) -> None:
        safe = v.builder.icmp_signed("!=", is_protected.value, I64(0))
        best = v.constant(float("inf"), FLOAT).value
        v.store(to, Lanes(v, v.builder.select(safe, best, v.load(score, FLOAT).value)))

    @vector_code(level, word)
    def better(v: Emitter, ranking: Lanes, count: Lanes, place: Lanes) -> Lanes:
        """How many rows of a text rank before the one at a place: greater ones, and equal ones before it."""
        own = v.splat(v.load(ranking + place * 4, FLOAT))

        def counted(comparison: str, begin: Lanes, rows: Lanes) -> Lanes:
            def add(part: Part, total: Lanes) -> list[Lanes]:
                is_better = v.builder.fcmp_ordered(comparison, part.load(begin).value, own.value)
                one = Lanes(v, v.builder.select(is_better, v.constant(1.0).value, v.constant(0.0).value))
                return [total + part.keep(one)]

            return v.total(v.each_vector(rows, [v.constant(0.0)], add)[0])

        total = counted(">=", ranking, place) + counted(">", ranking + place * 4, count - place)
        return Lanes(v, v.builder.fptosi(total.value, I64))

    @vector_code(level, word)
    def reaches(v: Emitter, at: Lanes, threshold: Lanes) -> Lanes:
        one, other = v.load(at, FLOAT), v.load(threshold, FLOAT)
        return Lanes(v, v.builder.zext(v.builder.fcmp_ordered(">=", one.value, other.value), I64))

    def prune(step: int, task: int, member: int) -> None:
        batch = load_word(step, PRUNE.batch)
        width, weight = load_word(step, PRUNE.width), load_word(step, PRUNE.weight)
        ranking, scores, least = (
            load_word(step, PRUNE.ranking),
            load_word(step, PRUNE.scores),
            load_word(step, PRUNE.least),
        )
        prefix, suffix = load_word(step, PRUNE.prefix), load_word(step, PRUNE.suffix)
        kept, offsets, sums = load_word(step, PRUNE.kept), load_word(step, PRUNE.offsets), load_word(step, PRUNE.sums)
        hidden, out = load_word(batch, BATCH.hidden), load_word(batch, BATCH.out)
        row_bytes = width * 4
        to = 0
        store_word(offsets, 0)
        for text in range(load_word(batch, BATCH.texts)):
            begin = load_word(load_word(batch, BATCH.offsets), text * 8)
            end = load_word(load_word(batch, BATCH.offsets), text * 8 + 8)
            for row in range(begin, end):
                if weight != 0:
                    score(hidden + row * row_bytes, weight, step + PRUNE.bias, scores + row * 4, width)
                rank(scores + row * 4, ranking + row * 4, row - begin < prefix or row >= end - suffix)
            own, wanted = ranking + begin * 4, load_word(least, text * 8)
            for row in range(begin, end):
                stays = better(own, end - begin, row - begin) < wanted
                if stays or reaches(ranking + row * 4, step + PRUNE.threshold) != 0:
                    copy(hidden + row * row_bytes, out + to * row_bytes, width)
                    store_word(kept + to * 8, row)
                    to += 1
                elif sums != 0:
                    add_row(hidden + row * row_bytes, sums + text * row_bytes, width)
            store_word(offsets + text * 8 + 8, to)

    return prune
