"""The kernels for aarch64, on any Linux machine: compiled here, run by qemu, compared with the reference.

The emulated process and this one share a file that both have mapped at the same address, and all arrays of the backend
lie there: so an address means the same to both, and the backend calls kernels of another machine as if they were its
own. Every call goes to a process that is free, so threads that share a step are emulated side by side.
"""

import ctypes
import dataclasses
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace

import guarded
import kernel_tools
import numpy as np
import pytest

from minitrans.backends.compiled import CompiledBlocks
from minitrans.backends.panels import round_up
from minitrans.backends.reference import ReferenceBlocks
from minitrans.encoder.selection import score_rows
from minitrans.kernels.library.loading import Kernels
from minitrans.kernels.vector.levels import FAMILIES
from minitrans.models.parameters import Int8Linear

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="qemu emulates Linux processes on Linux alone")

RUNNER = Path(__file__).with_name("aarch64_runner.c")
# Processors of the emulator that have what the level asks for, and no more than that in what matters.
PROCESSORS = {"neon_dotprod": "neoverse-n1", "neon": "cortex-a53"}
ADDRESS, SIZE = 0x100000000000, 1 << 28  # far from where programs and libraries lie; the file is as large as is used
MAP_FIXED_NOREPLACE = 0x100000


class Arena(guarded.Memory):
    """Arrays in the shared file, one behind the other, with known bytes around each."""

    def __init__(self, path) -> None:
        super().__init__("arena")
        with path.open("wb") as file:
            file.truncate(SIZE)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED_NOREPLACE
        with path.open("r+b") as file:
            place = libc.mmap(ADDRESS, SIZE, access, flags, file.fileno(), 0)
        assert place == ADDRESS, os.strerror(ctypes.get_errno())
        self.memory = np.frombuffer((ctypes.c_char * SIZE).from_address(place), np.uint8)
        self.used = 0

    def _room(self, count, alignment):
        begin = round_up(self.used + guarded.CANARY, alignment)
        self.used = begin + count + guarded.CANARY
        return self.memory[begin - guarded.CANARY : self.used], guarded.CANARY

    def forget(self):
        """Begin again; what was made before must not be used any more."""
        self.used = 0
        self._buffers.clear()
        self._inputs.clear()


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    path = tmp_path_factory.mktemp("arena") / "memory"
    arena = Arena(path)
    yield SimpleNamespace(memory=arena, path=path)
    arena.memory = None
    ctypes.CDLL(None).munmap(ctypes.c_void_p(ADDRESS), ctypes.c_size_t(SIZE))


def _tools():
    """The module that compiles, the emulator, and the compiler that links for it; skips where one is missing."""
    try:
        from minitrans.kernels.library import build
    except ImportError as error:
        pytest.skip(f"compiling the kernels needs Numba: pip install 'minitrans[jit]' ({error})")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if emulator is None or compiler is None:
        pytest.skip("needs qemu-aarch64 and aarch64-linux-gnu-gcc (Debian: qemu-user, gcc-aarch64-linux-gnu)")
    return build, emulator, compiler


@pytest.fixture(scope="module", params=FAMILIES["aarch64"], ids=lambda level: level.name)
def machine(request, arena, tmp_path_factory):
    """One level: its ``kernels``, which run in the emulator, how many ``calls`` of each there were, its ``object``."""
    build, emulator, compiler = _tools()
    level = request.param
    triple = build.triple_of("aarch64", "linux")
    folder = tmp_path_factory.mktemp(level.name)
    compiled, program = folder / "kernels.o", folder / "runner"
    compiled.write_bytes(build.target_machine(level, triple).emit_object(build.level_module(level, triple)))
    options = ["-static", "-O1", "-Wall", "-Werror", f"-DLEVEL={level.name}", "-o", program]
    subprocess.run([compiler, *options, RUNNER, compiled], check=True, timeout=60)
    command = [emulator, "-cpu", PROCESSORS[level.name], program, arena.path, str(ADDRESS), str(SIZE)]
    processes, idle, calls = [], SimpleQueue(), Counter()

    def entry_point(name):
        def call(*words):
            calls[name] += 1
            try:
                process = idle.get_nowait()
            except Empty:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                process = subprocess.Popen(command, **pipes)
                processes.append(process)
            print(name, *words, file=process.stdin, flush=True)
            assert process.stdout.readline() == "done\n", f"{name}: exit {process.wait(60)}"
            idle.put(process)

        return call

    entry_points = {name: entry_point(name) for name in ("run", "lead", "assist")}
    arena.memory.forget()
    kernels = Kernels(level, "emulated", owner=None, **entry_points)
    yield SimpleNamespace(kernels=kernels, object=compiled, calls=calls)
    for process in processes:
        with process:
            process.stdin.close()
            assert process.wait(60) == 0


@pytest.fixture
def memory(arena):
    """The arena; what a test made in it is checked when it is over."""
    with guarded.all_buffers_in(arena.memory):
        yield arena.memory
    arena.memory.check()


def test_nothing_is_left_for_a_library_to_supply(machine):
    """The runner is linked with the compiler's own library, which would hide it."""
    listed = subprocess.run(["aarch64-linux-gnu-nm", "-u", machine.object], capture_output=True, text=True, check=True)
    assert listed.stdout == ""


SPECS = [spec for spec in guarded.SPECS if spec.name in ("plain", "odd_sizes", "head_dim_64", "31 = 1 x 31, 1")]
LENGTHS = [(1,), (13,), (33,), (0, 33, 0, 1, 13, 5, 0), (70,)]


def _batches(spec):
    random = np.random.default_rng(len(spec.name))
    for number, lengths in enumerate(LENGTHS):
        rows = sum(lengths)
        offsets = np.array([0, *np.cumsum(lengths)])
        sizes = random.integers(1, 5, rows).astype(np.float32) if number % 2 else None
        want = ("attention", "attention_value", None)[number % 3]
        yield guarded.Batch(random.integers(0, spec.vocab_size, rows), offsets, sizes, want)


def _assert_close(got, wanted, precision):
    if precision == "float32":
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5)
        return
    # Two roundings of nearly the same number may differ in the last bit of a byte.
    cosines = (got * wanted).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert cosines.min() >= 0.9999


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_blocks_agree_with_the_reference(machine, memory, spec, precision):
    parameters = guarded.parameters_of(spec, precision)
    blocks, reference = CompiledBlocks(parameters, machine.kernels), ReferenceBlocks(parameters)
    memory.freeze()
    for batch in _batches(spec):
        ids, offsets, sizes, want = batch
        embedded = reference.embed(ids, offsets)
        attended, scores = reference.attention_block(embedded, offsets, sizes, 0, want)
        with blocks.chunk(len(ids), 0) as inside:
            np.testing.assert_allclose(inside.embed(ids, offsets), embedded, rtol=1e-4, atol=2e-5)
            mine, my_scores = inside.attention_block(embedded, offsets, sizes, 0, want)
            _assert_close(mine, attended, precision)
            assert (my_scores is None) == (scores is None)
            if scores is not None:
                tolerance = 1e-4 if precision == "float32" else 2e-2
                np.testing.assert_allclose(my_scores, scores, rtol=tolerance, atol=tolerance / 5)
            result = reference.feed_forward_block(attended, offsets, 0)
            _assert_close(inside.feed_forward_block(attended, offsets, 0), result, precision)
        memory.check()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_pruning_agrees_with_the_reference(machine, memory, spec):
    parameters = guarded.parameters_of(spec, "float32")
    blocks, reference = CompiledBlocks(parameters, machine.kernels), ReferenceBlocks(parameters)
    memory.freeze()
    for batch in _batches(spec):
        hidden = reference.embed(batch.ids, batch.offsets)
        with blocks.chunk(len(batch.ids), 0) as inside:
            for ranking in guarded.rankings(batch, spec.hidden_size):
                left, selection, restored = inside.select(hidden, batch.offsets, ranking)
                np.testing.assert_allclose(selection.scores, score_rows(hidden, ranking), rtol=1e-4, atol=2e-5)
                same = dataclasses.replace(ranking, scores=selection.scores)
                wanted, wanted_selection, expected = reference.select(hidden, batch.offsets, same)
                assert np.array_equal(left, wanted)
                assert np.array_equal(selection.kept, wanted_selection.kept)
                assert np.array_equal(selection.offsets, wanted_selection.offsets)
                assert (restored is None) == (expected is None)
                if restored is not None:
                    np.testing.assert_allclose(restored, expected, rtol=1e-4, atol=1e-3)
        memory.check()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_bits_do_not_depend_on_other_texts_or_on_helpers(machine, memory, precision):
    spec = SPECS[0]
    blocks = CompiledBlocks(guarded.parameters_of(spec, precision), machine.kernels)
    batch = next(batch for batch in _batches(spec) if len(batch.offsets) > 2)
    wanted = guarded.three_blocks(blocks, batch)
    for begin, end in zip(batch.offsets, batch.offsets[1:], strict=False):
        rows, sizes = slice(begin, end), None if batch.sizes is None else batch.sizes[begin:end].copy()
        alone = guarded.Batch(batch.ids[rows].copy(), np.array([0, end - begin]), sizes, batch.want)
        for got, want in zip(guarded.three_blocks(blocks, alone), wanted, strict=True):
            assert want is None or np.array_equal(got, want[rows])
    machine.calls.clear()
    with guarded.every_chunk_shared():
        for _ in range(5):
            with blocks.chunk(len(batch.ids), helpers=3) as inside:
                shared = guarded.three_blocks(inside, batch)
            for got, want in zip(shared, wanted, strict=True):
                assert want is None or np.array_equal(got, want)
            deadline = time.monotonic() + 60
            while not all(team.is_free for team in blocks._teams):
                assert time.monotonic() < deadline
                time.sleep(0.001)
    assert machine.calls == {"lead": 15, "assist": 15}  # 3 blocks, and 3 helpers, of 5 chunks


@pytest.mark.parametrize("depth", [1, 37, 130, 512])  # 512 * 255 * 127 < 2**24: float32 holds every sum
@pytest.mark.parametrize("rows", [1, 5, 12, 27])
def test_int8_sums_are_exact(machine, memory, rows, depth):
    random = np.random.default_rng(rows * depth)
    outputs = 3 * machine.kernels.level.panel - 1
    weight = random.integers(-127, 127, (outputs, depth), endpoint=True).astype(np.int8)
    weight[0], weight[1] = 127, -127
    x = random.integers(0, 255, (rows, depth), endpoint=True).astype(np.uint8)
    x[0] = 255
    zero = random.integers(0, 255, rows, endpoint=True).astype(np.int32)
    zero[0] = 0
    linear = Int8Linear(weight, np.ones(outputs, np.float32), np.zeros(outputs, np.float32))
    with guarded.replaced(kernel_tools, aligned=memory.aligned, address=memory.address):
        seen = kernel_tools.int8_product(machine.kernels, x, np.ones(rows, np.float32), zero, linear)
    assert np.array_equal(seen, (x.astype(np.int64) - zero[:, None]) @ weight.T.astype(np.int64))
