"""What the tests of the compiled kernels share: every build of every level, one kernel on its own, rows to feed it."""

import importlib.util

import numpy as np
import pytest

from minitrans.backends.panels import address, aligned, pack_linears, round_up
from minitrans.backends.workspace import SLACK_ROWS
from minitrans.encoder.selection import TOP, Ranking
from minitrans.kernels.library.loading import AHEAD, IN_TIME, Kernels, load_kernels
from minitrans.kernels.library.processor import usable_levels
from minitrans.kernels.library.record import why_not_ahead
from minitrans.kernels.steps import (
    ACTIVATION,
    BATCH,
    PER_ROWS,
    SCORE,
    STEP_WORDS,
    float_bits,
    new_step,
    write_fields,
)
from minitrans.models.parameters import Int8Linear, LayerNorm, Linear

LEVELS = [level.name for level in usable_levels()]
BUILDS = (AHEAD, IN_TIME)

# Around the heights of tiles (2 to 32 rows) and the widths of vectors (4 to 16 numbers).
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64)
SHUFFLED = (33, 1, 12, 0, 64, 2, 9, 9, 31, 0, 0, 5, 17, 48, 3, 16, 1, 63, 7, 13, 4, 32, 15, 8, 47, 11)
MIXED = ((0, *LENGTHS, 0), LENGTHS[::-1], SHUFFLED)
NOTHING = ((), (0,), (0, 0, 0))


def why_not(built: str) -> str | None:
    """Why there are no kernels of that build here; None if there are."""
    if built == AHEAD:
        return why_not_ahead()
    return None if importlib.util.find_spec("numba") else "Numba is not installed"


def kernels_of(built: str, level: str) -> Kernels:
    """The kernels of a build and level, or the test is skipped."""
    if problem := why_not(built):
        pytest.skip(problem)
    return load_kernels(level, built)


def any_kernels(level: str) -> Kernels:
    """The kernels of a level, however they can be had here."""
    return kernels_of(IN_TIME if why_not(AHEAD) else AHEAD, level)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def offsets_of(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def draw_sizes(seed: int, rows: int) -> np.ndarray:
    """[T] tokens that each row stands for."""
    return np.random.default_rng(seed).integers(1, 5, rows).astype(np.float32)


# One kernel on its own


def room_for(rows: int) -> int:
    """Rows of scratch for a batch of so many, as a workspace has them."""
    return round_up(rows, SLACK_ROWS) + SLACK_ROWS


def in_scratch(values: np.ndarray, width: int, filler: float) -> np.ndarray:
    """A copy [room, width] with something else in all places that hold no value: what was left by others."""
    scratch = aligned((room_for(len(values)), width), values.dtype)
    scratch[...] = filler
    scratch[: len(values), : values.shape[1]] = values
    return scratch


class Guarded:
    """Memory to write to, with rows behind it that nobody may touch."""

    UNTOUCHED = 8

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self.array = aligned((shape[0] + self.UNTOUCHED, *shape[1:]), dtype)
        self.array.view(np.uint8)[...] = 0x5A
        self._before = self.array[-self.UNTOUCHED :].copy()

    def written(self, rows: int) -> np.ndarray:
        assert np.array_equal(self.array[-self.UNTOUCHED :], self._before), "written behind the end"
        return self.array[:rows].copy()


def _words(fields: dict[str, object]) -> dict[str, int]:
    """Fields of a record: numbers as they are, floats as their bits, arrays as their addresses."""
    made = {}
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            made[name] = address(value)
        else:
            made[name] = float_bits(value) if isinstance(value, float | np.float32) else int(value)
    return made


def run_step(kernels: Kernels, kernel: str, fields: dict[str, object], **batch: object) -> None:
    """Run one kernel; fields of its record and of the batch are numbers, or arrays for their addresses."""
    described, step = aligned((len(BATCH),), np.int64), aligned((STEP_WORDS,), np.int64)
    write_fields(described, BATCH, **_words(batch))
    step[:] = new_step(kernel, batch=address(described), **_words(fields))
    kernels.run(address(step), 1, 0, 0)


def float32_product(kernels: Kernels, x: np.ndarray, linear: Linear, activation: str | None = None) -> np.ndarray:
    """activation(x @ weight.T + bias): [T, K] -> [T, N]"""
    return _product(kernels, "float32_product", in_scratch(x, round_up(x.shape[1], 16), np.nan), x, linear, activation)


def int8_product(
    kernels: Kernels, q: np.ndarray, scale: np.ndarray, zero: np.ndarray, linear: Int8Linear, activation=None
) -> np.ndarray:
    """The same for bytes [T, K] with scales [T] and zero points [T]."""
    width = round_up(q.shape[1], 64)
    rows = {
        "row_scale": in_scratch(scale[:, None], 1, np.nan),
        "row_zero": in_scratch(zero[:, None].astype(np.int32), 1, 77),
    }
    return _product(kernels, "int8_product", in_scratch(q, width, 255), q, linear, activation, rows)


def _product(kernels, kernel, scratch, x, linear, activation, row_fields=None):
    packed = pack_linears(kernels.level, linear)
    y = Guarded((len(scratch), packed.panels * kernels.level.panel), np.float32)
    step = {
        "tasks": packed.panels,
        "x": scratch,
        "x_bytes": scratch.strides[0],
        "weight": packed.weight,
        "panel_bytes": packed.weight.strides[0],
        "bias": packed.bias,
        "depth": packed.depth,
        "y": y.array,
        "y_bytes": y.array.strides[0],
        "activation": ACTIVATION[activation],
    }
    if row_fields is not None:
        step |= {"column_scale": packed.scale, "column_sum": packed.column_sum, **row_fields}
    run_step(kernels, kernel, step, tokens=len(x))
    return y.written(len(x))[:, : packed.outputs]


def quantized(kernels: Kernels, x: np.ndarray, from_scratch: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes [T, K], scales [T] and zero points [T] of rows that lie in scratch, or are those of the batch."""
    rows, width = x.shape
    scratch = in_scratch(x, round_up(width, 16), np.nan) if from_scratch else np.ascontiguousarray(x)
    to = Guarded((rows, round_up(width, 64)), np.uint8)
    scale, zero = Guarded((rows,), np.float32), Guarded((rows,), np.int32)
    step = {
        "tasks": PER_ROWS,
        "x": scratch if from_scratch else 0,
        "x_bytes": scratch.strides[0],
        "width": width,
        "to": to.array,
        "to_bytes": to.array.strides[0],
        "scale": scale.array,
        "zero": zero.array,
    }
    run_step(kernels, "quantize_activations", step, tokens=rows, hidden=0 if from_scratch else scratch)
    return to.written(rows)[:, :width], scale.written(rows), zero.written(rows)


def normalized(kernels: Kernels, x: np.ndarray, hidden: np.ndarray, norm: LayerNorm, eps: float) -> np.ndarray:
    """layer_norm(x + hidden): [T, H], [T, H] -> [T, H]"""
    rows, width = x.shape
    scratch = in_scratch(x, round_up(width, 16), np.nan)
    out = Guarded((rows, width), np.float32)
    step = {
        "tasks": PER_ROWS,
        "x": scratch,
        "x_bytes": scratch.strides[0],
        "weight": norm.weight,
        "bias": norm.bias,
        "width": width,
        "epsilon": float(eps),
    }
    run_step(kernels, "layer_norm", step, tokens=rows, hidden=np.ascontiguousarray(hidden), out=out.array)
    return out.written(rows)


def attended(kernels: Kernels, qkv: np.ndarray, lengths, heads: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Self-attention of query, key and value side by side, [T, 3H]: context [T, H], what each key received [A, T]."""
    rows, width = qkv.shape
    hidden, panel = width // 3, kernels.level.panel
    longest, head_size = max(lengths), hidden // heads
    scratch = in_scratch(qkv, round_up(width, panel) + panel, np.nan)
    context = Guarded((room_for(rows), round_up(hidden, 16)), np.float32)
    received = Guarded((heads, round_up(rows, 16)), np.float32)
    own = round_up(longest, panel) * 4 * (kernels.level.float32_heights[0] + round_up(head_size, kernels.level.lanes))
    step = {
        "tasks": -1 - heads,
        "qkv": scratch,
        "qkv_bytes": scratch.strides[0],
        "heads": heads,
        "head_size": head_size,
        "factor": float(factor),
        "context": context.array,
        "context_bytes": context.array.strides[0],
        "scratch": aligned((own,), np.uint8),
        "scratch_bytes": own,
    }
    run_step(
        kernels,
        "attention",
        step,
        tokens=rows,
        texts=len(lengths),
        offsets=offsets_of(lengths),
        received=received.array,
        received_bytes=received.array.strides[0],
        score=SCORE["attention"],
    )
    return context.written(rows)[:, :hidden], received.written(heads)[:, :rows]


def pruned(kernels: Kernels, hidden: np.ndarray, offsets: np.ndarray, ranking: Ranking) -> list[np.ndarray | None]:
    """Hidden [T', H], scores [T], kept [T'], offsets [B + 1], and sums [B, H] of the rows that go, or None.

    This is what selection.select defines, but for the map that restores.
    """
    rows, width = hidden.shape
    texts, linear = len(offsets) - 1, ranking.scorer if ranking.scores is None else None
    out, ranks, worth = (Guarded(shape, np.float32) for shape in ((rows, width), (rows,), (rows,)))
    kept, new_offsets, sums = Guarded((rows,), np.int64), Guarded((texts + 1,), np.int64), None
    scores, sums_here = Guarded((rows,), np.float32), Guarded((texts, width), np.float32)
    if linear is None:
        scores.array[:rows] = ranking.scores
    if ranking.restore is not None:
        sums = sums_here
    step = {
        "tasks": 1,
        "width": width,
        "ranking": ranks.array,
        "worth": worth.array,
        "top": TOP,
        "scores": scores.array,
        "weight": 0 if linear is None else linear.weight,
        "bias": 0 if linear is None else linear.bias[0],
        "least": ranking.least,
        "budgets": 0 if ranking.budgets is None else ranking.budgets,
        "prefix": ranking.prefix,
        "suffix": ranking.suffix,
        "kept": kept.array,
        "offsets": new_offsets.array,
        "sums": 0 if sums is None else sums.array,
        "sums_bytes": width * 4,
    }
    run_step(kernels, "prune", step, tokens=rows, texts=texts, offsets=offsets, hidden=hidden, out=out.array)
    for scratch in (ranks, worth):
        scratch.written(rows)
    sums_here.written(texts)
    stayed = int(new_offsets.written(texts + 1)[-1])
    assert (out.array[stayed:].view(np.uint8) == 0x5A).all(), "a row was written that did not stay"
    return [
        out.written(stayed),
        scores.written(rows),
        kept.written(stayed),
        new_offsets.written(texts + 1),
        None if sums is None else sums.written(texts),
    ]
