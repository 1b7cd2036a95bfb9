"""Running the steps of a block: by one thread, or by several that claim tasks from common counters.

Threads that share a block are one that leads and some that assist. Each *job* (the steps of one block) has a record of
its own: the steps, and for each step how many tasks there are, how many were claimed and how many are done. An
assistant that comes late finds all tasks claimed and does nothing; one that never comes is not waited for. Only claimed
tasks are, so an assistant that the system puts to sleep delays the one task it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import njit

from minitrans.kernels.steps import (
    BATCH,
    BOARD,
    JOB,
    JOB_BYTES,
    KERNELS,
    PER_ROWS,
    PROGRESS,
    PROGRESS_BYTES,
    ROWS_PER_TASK,
    STEP,
    STEP_BYTES,
    EntryPoint,
)
from minitrans.kernels.vector.emitter import (
    I64,
    VOID,
    Emitter,
    Lanes,
    atomic_add,
    atomic_load,
    atomic_store,
    least,
    load_word,
    stack_bytes,
    vector_code,
)
from minitrans.kernels.vector.levels import Level
from minitrans.kernels.vector.tiles import tile_registers

CLAIMS = 16  # a thread claims a share of a step's tasks at a time, so that the counters are not what it waits for


@njit(inline="always", error_model="numpy")
def count_tasks(step: int) -> int:
    """How many tasks a step has for the batch at hand."""
    tasks, batch = load_word(step, STEP.tasks), load_word(step, STEP.batch)
    if tasks == PER_ROWS:
        return (load_word(batch, BATCH.tokens) + ROWS_PER_TASK - 1) // ROWS_PER_TASK
    if tasks < 0:
        return load_word(batch, BATCH.texts) * (-1 - tasks)
    return tasks


def _call(v: Emitter, name: str, *words: Lanes) -> None:
    """Call another kernel of the level."""
    v.call(name, VOID, [I64] * len(words), [word.value for word in words])


def _run_steps(level: Level) -> Any:
    @vector_code(level)
    def run_steps(v: Emitter, steps: Lanes, count: Lanes, job: Lanes, member: Lanes) -> None:
        _call(v, "run", steps, count, job, member)

    return run_steps


def _pause(level: Level) -> Callable[[], None]:
    @vector_code(level)
    def pause(v: Emitter) -> None:
        """Tell the processor that this is a waiting loop."""
        if level.is_x86:
            v.call("llvm.x86.sse2.pause", VOID, [], [])

    return pause


def run(level: Level) -> EntryPoint:
    """run(steps, count, job, member): do the tasks of the steps, one step after the other.

    job: 0 for a thread alone, which does them all; else the record of the job, whose tasks are shared.
    member: which of the threads this is: 0 leads.
    """

    @vector_code(level)
    def do_task(v: Emitter, kernel: Lanes, step: Lanes, task: Lanes, member: Lanes) -> None:
        """Call the kernel at that place of the table."""
        v.switch(kernel, [partial(_call, v, name, step, task, member) for name in KERNELS])

    configure, release = tile_registers(level)
    configuration, pause = stack_bytes(64), _pause(level)
    step_bytes, progress_bytes, claims = STEP_BYTES, PROGRESS_BYTES, CLAIMS

    def run(steps: int, count: int, job: int, member: int) -> None:
        configure(configuration())
        for number in range(count):
            step = steps + number * step_bytes
            kernel, share = load_word(step, STEP.kernel), 1
            progress = job + JOB.progress + number * progress_bytes
            if job == 0:
                tasks = count_tasks(step)
                task, end = 0, tasks
            else:
                tasks = load_word(progress, PROGRESS.tasks)
                share = tasks // claims + 1
                task = atomic_add(progress + PROGRESS.claimed, share)
                end = least(task + share, tasks)
            while task < end:
                first = task
                while task < end:
                    do_task(kernel, step, task, member)
                    task += 1
                if job != 0:
                    atomic_add(progress + PROGRESS.done, end - first)
                    task = atomic_add(progress + PROGRESS.claimed, share)
                    end = least(task + share, tasks)
            if job != 0:
                while atomic_load(progress + PROGRESS.done) < tasks:
                    pause()
        release()

    return run


def lead(level: Level) -> EntryPoint:
    """lead(steps, count, board, number): publish the steps as the board's job of that number (from 1), and run them."""
    run_steps, step_bytes, progress_bytes, job_bytes = _run_steps(level), STEP_BYTES, PROGRESS_BYTES, JOB_BYTES

    def lead(steps: int, count: int, board: int, number: int) -> None:
        job = load_word(board, BOARD.jobs) + (number - 1) * job_bytes
        atomic_store(job + JOB.steps, steps)
        atomic_store(job + JOB.count, count)
        for place in range(count):
            progress = job + JOB.progress + place * progress_bytes
            atomic_store(progress + PROGRESS.tasks, count_tasks(steps + place * step_bytes))
        atomic_store(board + BOARD.number, number)
        run_steps(steps, count, job, 0)

    return lead


def assist(level: Level) -> EntryPoint:
    """assist(board, member, patience, _): take part in the board's jobs until it is closed.

    patience: after so many turns of waiting for the next job, leave.
    """
    run_steps, pause, job_bytes = _run_steps(level), _pause(level), JOB_BYTES

    def assist(board: int, member: int, patience: int, unused: int) -> None:
        seen, waited = 0, 0
        while waited < patience:
            number = atomic_load(board + BOARD.number)
            if number < 0:
                return
            if number == seen:
                pause()
                waited += 1
            else:
                seen, waited = number, 0
                job = load_word(board, BOARD.jobs) + (number - 1) * job_bytes
                run_steps(load_word(job, JOB.steps), load_word(job, JOB.count), job, member)

    return assist
