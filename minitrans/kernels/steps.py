"""The records through which Python and the kernels speak: rows of 64-bit words, read by their byte offsets.

A block of the encoder is a list of *steps*. A step names a kernel, what it works on and how its work divides into
tasks; tasks of one step touch different memory, so that two threads may share them. What differs from call to call
(the rows, their number) stands in one *batch* record that all steps of a workspace point to.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Kernel: TypeAlias = Callable[[int, int, int], None]  # address of a step, task, which of the threads that share the step
EntryPoint: TypeAlias = Callable[[int, int, int, int], None]  # what is called from outside: see kernels/run.py

ROWS_PER_TASK = 8
PER_ROWS = -1  # the number of tasks of a step that has one for every ROWS_PER_TASK rows
JOB_STEPS, BOARD_JOBS = 8, 64  # the most steps of a job that threads share, and jobs of a board

ACTIVATION = {None: 0, "gelu": 1, "gelu_new": 2, "relu": 3}
SCORE = {None: 0, "attention": 1, "attention_value": 2}


def _record(fields: str, spacing: int = 8) -> Any:
    """The byte offset of each field."""
    names = fields.split()
    offsets: Any = namedtuple("Offsets", names)  # type: ignore[misc]  # a named tuple is what Numba reads as constants
    return offsets(*(place * spacing for place in range(len(names))))


BATCH = _record(
    "tokens texts offsets "  # offsets int64 [texts + 1]
    "ids positions "  # int64 [T]
    "hidden out "  # float32 [T, H]
    "log_sizes "  # float32 [T], or 0
    "received received_bytes score ",  # float32 [A, T], or 0; bytes of its rows; SCORE
)

# Every step begins with these. tasks: their number; PER_ROWS; -n - 1: n for every text.
_STEP = "kernel tasks batch "
STEP = _record(_STEP)
EMBED = _record(_STEP + "table scales positions weight bias width epsilon")
LOAD_ROWS = _record(_STEP + "to to_bytes width")
QUANTIZE = _record(_STEP + "x x_bytes width to to_bytes scale zero")
PRODUCT = _record(
    _STEP + "x x_bytes weight panel_bytes bias depth y y_bytes activation "  # of both kinds
    "column_scale column_sum row_scale row_zero",  # of int8 products
)
ATTENTION = _record(_STEP + "qkv qkv_bytes heads head_size factor context context_bytes scratch scratch_bytes")
LAYER_NORM = _record(_STEP + "x x_bytes weight bias width epsilon")
PRUNE = _record(
    _STEP + "width ranking worth top "  # float32 [T] both, scratch; the bits of the greatest score that counts
    "weight bias "  # [H] of a linear scorer, or 0; the bits of its bias
    "least budgets prefix suffix "  # by the length of a text: int64, and float32 or 0; protected tokens
    "sums sums_bytes mapped "  # float32 [texts, H], or 0; bytes of its rows; the batch record of the map that follows
    "scores kept offsets",  # float32 [T]; int64 [T]; int64 [texts + 1]
)

# Every kernel and the record of its steps. The first word of a step is the kernel's place in this table.
STEPS = {
    "embed": EMBED,
    "load_rows": LOAD_ROWS,
    "quantize_activations": QUANTIZE,
    "float32_product": PRODUCT,
    "int8_product": PRODUCT,
    "attention": ATTENTION,
    "layer_norm": LAYER_NORM,
    "prune": PRUNE,
}
KERNELS = tuple(STEPS)
STEP_WORDS = max(map(len, STEPS.values()))
STEP_BYTES = 8 * STEP_WORDS

# Threads that share blocks (kernels/run.py). Counters that different threads write stand 128 bytes apart.
BOARD = _record("number jobs")  # number of the latest job, -1: closed; address of the jobs
PROGRESS = _record("tasks claimed done", spacing=128)  # of one step
PROGRESS_BYTES = len(PROGRESS) * 128
JOB = _record("steps count progress", spacing=64)  # the progress of each step, one behind the other
JOB_BYTES = JOB.progress + JOB_STEPS * PROGRESS_BYTES


def write_fields(words: NDArray[np.int64], record: Any, **fields: int) -> None:
    """Write fields of a record by their names: numbers, addresses, or the bits of floats."""
    for name, value in fields.items():
        words[getattr(record, name) // 8] = value


def new_step(kernel: str, **fields: int) -> NDArray[np.int64]:
    """A step [STEP_WORDS] of a kernel; fields that are not named are 0."""
    step = np.zeros(STEP_WORDS, np.int64)
    write_fields(step, STEPS[kernel], kernel=KERNELS.index(kernel), **fields)
    return step


def float_bits(number: float) -> int:
    """The bits of a number in float32, as a field holds them."""
    return int(np.float32(number).view(np.int32))
