"""The kernel that takes out the rows of unimportant tokens; minitrans/encoder/selection.py defines what it computes."""

from __future__ import annotations

from minitrans.kernels.rows import copying
from minitrans.kernels.steps import BATCH, PRUNE, Kernel
from minitrans.kernels.vector.elementary import exp
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
    def clear_row(v: Emitter, to: Lanes, width: Lanes) -> None:
        def clear(part: Part) -> list[Lanes]:
            part.store(to, v.constant(0.0))
            return []

        v.each_vector(width, [], clear)

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

    @vector_code(level)
    def weigh(v: Emitter, ranking: Lanes, top: Lanes, worth: Lanes, count: Lanes) -> None:
        """worth = exp(min(ranking - top, 0))"""
        greatest = v.splat(v.load(top, FLOAT))

        def one(part: Part) -> list[Lanes]:
            part.store(worth, exp(v, v.least(part.load(ranking) - greatest, v.constant(0.0))))
            return []

        v.each_vector(count, [], one)

    def among(
        v: Emitter, ranking: Lanes, worth: Lanes | None, place: Lanes, count: Lanes, comparisons: tuple[str, str]
    ) -> Lanes:
        """What rows of a text are worth together, or how many they are where ``worth`` is None.

        Which: those before a place that compare to the one there as the first comparison says, those from it on as
        the second.
        """
        own = v.splat(v.load(ranking + place * 4, FLOAT))

        def counted(comparison: str, skipped: Lanes, rows: Lanes) -> Lanes:
            def add(part: Part, total: Lanes) -> list[Lanes]:
                holds = v.builder.fcmp_ordered(comparison, part.load(ranking + skipped).value, own.value)
                value = v.constant(1.0) if worth is None else part.load(worth + skipped)
                return [total + part.keep(Lanes(v, v.builder.select(holds, value.value, v.constant(0.0).value)))]

            return v.total(v.each_vector(rows, [v.constant(0.0)], add, [Lanes.__add__])[0])

        return counted(comparisons[0], v.word(0), place) + counted(comparisons[1], place * 4, count - place)

    @vector_code(level, word)
    def better(v: Emitter, ranking: Lanes, place: Lanes, count: Lanes) -> Lanes:
        """How many rows of a text rank before the one at a place: greater ones, and equal ones before it."""
        return Lanes(v, v.builder.fptosi(among(v, ranking, None, place, count, (">=", ">")).value, I64))

    @vector_code(level, word)
    def affordable(
        v: Emitter, ranking: Lanes, worth: Lanes, place: Lanes, count: Lanes, gone: Lanes, budget: Lanes
    ) -> Lanes:
        """Whether giving up the row at a place, and all that rank behind it, ``gone`` rows in all, is in the budget."""
        total = among(v, ranking, worth, place, count, ("<", "<="))
        cost = total * Lanes(v, v.builder.sitofp(gone.value, FLOAT))
        return Lanes(v, v.builder.zext(v.builder.fcmp_ordered("<=", cost.value, v.load(budget, FLOAT).value), I64))

    def prune(step: int, task: int, member: int) -> None:
        batch = load_word(step, PRUNE.batch)
        width, weight = load_word(step, PRUNE.width), load_word(step, PRUNE.weight)
        rankings, worths = load_word(step, PRUNE.ranking), load_word(step, PRUNE.worth)
        scores = load_word(step, PRUNE.scores)
        least, budgets = load_word(step, PRUNE.least), load_word(step, PRUNE.budgets)
        prefix, suffix = load_word(step, PRUNE.prefix), load_word(step, PRUNE.suffix)
        kept, offsets = load_word(step, PRUNE.kept), load_word(step, PRUNE.offsets)
        sums, sums_bytes = load_word(step, PRUNE.sums), load_word(step, PRUNE.sums_bytes)
        mapped = load_word(step, PRUNE.mapped)
        hidden, out = load_word(batch, BATCH.hidden), load_word(batch, BATCH.out)
        row_bytes = width * 4
        to = 0
        store_word(offsets, 0)
        for text in range(load_word(batch, BATCH.texts)):
            begin = load_word(load_word(batch, BATCH.offsets), text * 8)
            end = load_word(load_word(batch, BATCH.offsets), text * 8 + 8)
            count, ranking, worth = end - begin, rankings + begin * 4, worths + begin * 4
            wanted = load_word(least, count * 8)
            if sums != 0:
                clear_row(sums + text * sums_bytes, width)
            if wanted < count or weight != 0:
                for row in range(begin, end):
                    if weight != 0:
                        score(hidden + row * row_bytes, weight, step + PRUNE.bias, scores + row * 4, width)
                    rank(scores + row * 4, rankings + row * 4, row - begin < prefix or row >= end - suffix)
            if wanted < count and budgets != 0:
                weigh(ranking, step + PRUNE.top, worth, count)
            for row in range(begin, end):
                stays = True
                if wanted < count:
                    place = row - begin
                    before = better(ranking, place, count)
                    stays = before < wanted or place < prefix or row >= end - suffix
                    if not stays and budgets != 0:
                        stays = affordable(ranking, worth, place, count, count - before, budgets + count * 4) == 0
                if stays:
                    copy(hidden + row * row_bytes, out + to * row_bytes, width)
                    store_word(kept + to * 8, row)
                    to += 1
                elif sums != 0:
                    add_row(hidden + row * row_bytes, sums + text * sums_bytes, width)
            store_word(offsets + text * 8 + 8, to)
        if mapped != 0:  # where no row goes there is nothing to map
            texts = load_word(batch, BATCH.texts) if to < load_word(batch, BATCH.tokens) else 0
            store_word(mapped + BATCH.tokens, texts)

    return prune
