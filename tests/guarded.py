"""Memory that tells when a kernel reads or writes beside a buffer, and random work for the kernels to do in it.

The kernels learn of every array by its address, and the compiled backend has three sources of those: `aligned` makes
weights, scratch and steps, `np.empty` makes results, and `address` is asked for all arrays, wherever they come from.
`all_buffers_in` replaces the three, so that no buffer is left out.

A mistake that is found may end the process: `in_children` runs jobs in children and says how each of them ended.
"""

import ctypes
import dataclasses
import faulthandler
import itertools
import json
import mmap
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import random_models
from random_models import ModelSpec

from minitrans.backends import compiled, panels, team, workspace
from minitrans.backends.compiled import CompiledBlocks
from minitrans.backends.workspace import Workspace
from minitrans.encoder.selection import Ranking, kept_count
from minitrans.kernels.library.loading import load_kernels
from minitrans.kernels.steps import PRODUCT, PRUNE
from minitrans.models.config import EncoderConfig
from minitrans.models.parameters import Linear, Parameters
from minitrans.models.quantization import with_precision
from minitrans.models.weights import assemble

CANARY = 256  # bytes on both sides
POISON = b"\xc3\xa5\xe1\x7f" * mmap.PAGESIZE  # NaN as float32: what is read by mistake shows in the result
MOST_ROWS = 70
_NO_ACCESS = 0


class Overrun(Exception):
    """Bytes beside a buffer, or of an input, are not what they were."""


class Buffer(NamedTuple):
    """One array and the bytes beside it that can be touched without a fault."""

    name: str
    whole: np.ndarray  # uint8
    begin: int
    end: int

    @property
    def content(self) -> bytes:
        return self.whole[self.begin : self.end].tobytes()

    def check(self) -> None:
        for side, gap in (("before", self.whole[: self.begin]), ("behind", self.whole[self.end :])):
            if gap.tobytes() != POISON[: len(gap)]:
                raise Overrun(f"bytes {side} {self.name} were written")


class Memory:
    """Arrays with nothing beside them that may be touched: what a backend asks for, made elsewhere.

    Args:
        place: "end": an array ends where a page begins that cannot be touched, "begin": it begins where one ends,
            "between": known bytes on both sides, "heap": from malloc, which valgrind watches.

    What has to start at a multiple of 64 may end up to 63 bytes before the page; they are checked like canaries.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._buffers: dict[int, Buffer] = {}  # by address
        self._inputs: dict[int, bytes] = {}

    def aligned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Zeros, as panels.aligned makes them."""
        array = self._make(shape, dtype, panels.ALIGNMENT, "scratch, steps or weights")
        array[...] = 0
        return array

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """NaN if float32; undefined on the heap, where valgrind knows it."""
        array = self._make(shape, dtype, np.dtype(dtype).itemsize, "a result")
        if self.place != "heap":
            array.view(np.uint8)[...] = 0xFF
        return array

    def address(self, array: np.ndarray | None) -> int:
        """Of the array if it was made here, else of a copy: whatever else the kernels are told of, they only read."""
        if array is None or array.ctypes.data in self._buffers:
            return panels.address(array)
        copy = self._make(array.shape, array.dtype, array.dtype.itemsize, "an input")
        copy[...] = array
        self._inputs[copy.ctypes.data] = copy.tobytes()
        return copy.ctypes.data

    def freeze(self) -> None:
        """All that was made so far is input from now on."""
        self._inputs |= {place: buffer.content for place, buffer in self._buffers.items()}

    def check(self) -> None:
        """Overrun if bytes beside any buffer were written, or any input."""
        for place, buffer in self._buffers.items():
            buffer.check()
            if place in self._inputs and self._inputs[place] != buffer.content:
                raise Overrun(f"{buffer.name} was written, and it is an input")

    def _make(self, shape: int | tuple[int, ...], dtype: Any, alignment: int, name: str) -> np.ndarray:
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole, begin = self._room(count, alignment)
        for gap in (whole[:begin], whole[begin + count :]):
            gap[:] = np.frombuffer(POISON, np.uint8, len(gap))
        array = whole[begin : begin + count].view(dtype).reshape(shape)
        buffer = Buffer(f"{name} ({array.dtype} {list(array.shape)})", whole, begin, begin + count)
        self._buffers[array.ctypes.data if count else whole.ctypes.data] = buffer
        return array

    def _room(self, count: int, alignment: int) -> tuple[np.ndarray, int]:
        """Bytes that can be touched, and where among them so many aligned ones are to begin."""
        if self.place == "heap":
            return _from_malloc(count), 0
        if self.place == "between":
            memory = np.empty(count + 2 * CANARY + alignment, np.uint8)
            skipped = -(memory.ctypes.data + CANARY) % alignment
            return memory[skipped : skipped + count + 2 * CANARY], CANARY
        whole = _pages_between_guards(count)
        return whole, 0 if self.place == "begin" else (len(whole) - count) // alignment * alignment


def _pages_between_guards(count: int) -> np.ndarray:
    """At least so many bytes, from one page that cannot be touched to the next."""
    size = panels.round_up(max(count, 1), mmap.PAGESIZE)
    pages = np.frombuffer(mmap.mmap(-1, size + 2 * mmap.PAGESIZE), np.uint8)
    for guard in (0, mmap.PAGESIZE + size):
        _forbid(pages.ctypes.data + guard, mmap.PAGESIZE)
    return pages[mmap.PAGESIZE : -mmap.PAGESIZE]


def _from_malloc(count: int) -> np.ndarray:
    """As many bytes, never freed."""
    place = ctypes.c_void_p()
    failed = _libc().posix_memalign(ctypes.byref(place), ctypes.c_size_t(panels.ALIGNMENT), ctypes.c_size_t(count or 1))
    assert not failed, os.strerror(failed)
    return np.frombuffer((ctypes.c_char * (count or 1)).from_address(place.value), np.uint8)[:count]


def _forbid(start: int, size: int) -> None:
    failed = _libc().mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), _NO_ACCESS)
    assert not failed, os.strerror(ctypes.get_errno())


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class _OtherEmpty:
    """NumPy with another `empty`, and zeros made of it."""

    def __init__(self, empty: Callable[..., np.ndarray]) -> None:
        self.empty = empty

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Other values for some attributes, which have to be there (unittest.mock takes seconds to import in valgrind)."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def all_buffers_in(memory: Any) -> Iterator[None]:
    """Every array that kernels are told of lies in a Memory, or whatever else has its three methods."""
    both = {"aligned": memory.aligned, "address": memory.address}
    with (
        replaced(panels, aligned=memory.aligned),
        replaced(workspace, **both),
        replaced(team, **both),
        replaced(compiled, address=memory.address, np=_OtherEmpty(memory.empty)),
    ):
        yield


# Work


def _tiny(hidden: int, heads: int, inner: int, act: str = "gelu") -> ModelSpec:
    return ModelSpec(
        f"{hidden} = {heads} x {hidden // heads}, {inner}",
        vocab_size=7,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_act=act,
        seed=hidden,
    )


# Widths around whole vectors and panels; heads of 1 number and more; one layer is as good as another.
SPECS = tuple(
    dataclasses.replace(spec, num_hidden_layers=1, max_position_embeddings=MOST_ROWS)
    for spec in (
        *map(random_models.find_spec, ("plain", "odd_sizes", "head_dim_16", "head_dim_64")),
        _tiny(8, 1, 9, "relu"),
        _tiny(9, 3, 31),
        _tiny(12, 12, 5, "gelu_new"),
        _tiny(15, 1, 64),
        _tiny(16, 2, 16, "relu"),
        _tiny(17, 1, 33),
        _tiny(20, 4, 130, "gelu_new"),
        _tiny(31, 1, 1),
        _tiny(34, 2, 50),
        _tiny(40, 8, 44, "relu"),
    )
)


@cache
def parameters_of(spec: ModelSpec, precision: str) -> Parameters:
    """The random weights of a spec, without a file between."""
    names = {field.name for field in dataclasses.fields(EncoderConfig)}
    config = EncoderConfig(**{name: value for name, value in vars(spec).items() if name in names})
    return with_precision(assemble(config, random_models.write_tensors(spec)), precision)


class Batch(NamedTuple):
    """What three blocks are called with."""

    ids: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray | None
    want: str | None

    @staticmethod
    def draw(random: np.random.Generator, spec: ModelSpec, rows: int, texts: int | None = None) -> "Batch":
        """So many rows in some texts, empty ones among them; the table's last row is used."""
        texts = int(random.integers(1, 6)) if texts is None else texts
        cuts = np.sort(random.integers(0, rows, texts - 1, endpoint=True))
        ids = random.integers(0, spec.vocab_size, rows)
        ids[rows // 2 : rows // 2 + 1] = spec.vocab_size - 1
        sizes = random.integers(1, 5, rows).astype(np.float32) if random.random() < 0.5 else None
        want = (None, "attention", "attention_value")[random.integers(3)]
        return Batch(ids, np.array([0, *cuts, rows]), sizes, want)


def three_blocks(blocks: Any, batch: Batch, after_each: Callable[[], None] = lambda: None) -> list[np.ndarray | None]:
    """Embeddings, hidden states after attention, scores, hidden states at the end."""
    embedded = blocks.embed(batch.ids, batch.offsets)
    after_each()
    attended, scores = blocks.attention_block(embedded, batch.offsets, batch.sizes, 0, batch.want)
    after_each()
    result = blocks.feed_forward_block(attended, batch.offsets, 0)
    after_each()
    return [embedded, attended, scores, result]


def rankings(batch: Batch, width: int) -> Iterator[Ranking]:
    """By scores that are there and by a scorer; with and without budgets, protected tokens and a map."""
    random = np.random.default_rng(len(batch.ids))
    lengths = np.arange(np.diff(batch.offsets).max(initial=0) + 1)
    least = kept_count(lengths, random.random(), 2)
    budgets = np.exp(random.uniform(-16, 0, len(lengths))).astype(np.float32)
    restore = Linear(square_map(width), random.standard_normal(width).astype(np.float32))
    scores = random.integers(0, 5, len(batch.ids)).astype(np.float32)  # ties
    yield Ranking(scores, None, least)
    yield Ranking(scores, None, least, budgets, prefix=1, suffix=1, restore=restore)
    weight, bias = random.standard_normal((1, width)), random.standard_normal(1)
    scorer = Linear(weight.astype(np.float32), bias.astype(np.float32))
    yield Ranking(None, scorer, least, budgets, restore=restore)
    yield Ranking(None, scorer, np.minimum(lengths, 1), suffix=2)


def square_map(width: int) -> np.ndarray:
    """Some float32 [H, H]."""
    return np.random.default_rng(width).standard_normal((width, width)).astype(np.float32)


def pruning_blocks(
    blocks: Any, batch: Batch, hidden: np.ndarray, after_each: Callable[[], None] = lambda: None
) -> list[np.ndarray | None]:
    """All that comes out of the selections of `rankings`."""
    made: list[np.ndarray | None] = []
    for ranking in rankings(batch, hidden.shape[1]):
        left, selection, restored = blocks.select(hidden, batch.offsets, ranking)
        made += [left, selection.scores, selection.kept, selection.offsets, restored]
        after_each()
    return made


@contextmanager
def every_chunk_shared() -> Iterator[None]:
    """Helpers are called however little there is to do."""
    with replaced(compiled, MUCH_WORK=0, MANY_BYTES=0):
        yield


# Jobs for children


def cases(place: str, level: str, numbers: list[int], helpers: int) -> None:
    """Random batches through random models: the same bits as in other memory, and nothing beside a buffer touched.

    Args:
        place: see Memory.
        level: of the kernels.
        numbers: of the cases; the same number gives the same case.
        helpers: that may join in every third case.
    """
    kernels = load_kernels(level)
    with every_chunk_shared():
        for number in numbers:
            random = np.random.default_rng(number)
            spec, precision = SPECS[number // 2 % len(SPECS)], ("float32", "int8")[number % 2]
            rows = (number * 29 + int(random.integers(3))) % (MOST_ROWS + 1)
            batches = [Batch.draw(random, spec, rows), Batch.draw(random, spec, MOST_ROWS - number % 9, texts=1)]
            print(f"{place} {level} case {number}: {spec.name}, {precision}, {rows} rows", flush=True)
            _one_case(kernels, parameters_of(spec, precision), batches, Memory(place), helpers * (number % 3 == 0))


def _one_case(kernels: Any, parameters: Parameters, batches: list[Batch], memory: Memory, helpers: int) -> None:
    elsewhere = CompiledBlocks(parameters, kernels)
    wanted = [three_blocks(elsewhere, batch) for batch in batches]
    pruned = [pruning_blocks(elsewhere, batch, made[1]) for batch, made in zip(batches, wanted, strict=True)]
    with all_buffers_in(memory):
        blocks = CompiledBlocks(parameters, kernels)
        memory.freeze()
        # Scratch for not one row more than there are, and in the end as the backend makes it.
        for number, exact in ((0, True), (1, True), (1, False)):
            batch, rows = batches[number], len(batches[number].ids)
            with blocks.chunk(rows, helpers) as inside:
                if exact:
                    inside._chunk.workspace = Workspace(blocks._model, max(rows, 1), compiled.MOST_MEMBERS)
                if helpers:
                    time.sleep(0.0005)  # so that they are there when the work begins
                made = three_blocks(inside, batch, memory.check)
                made += pruning_blocks(inside, batch, made[1], memory.check)
                for got, want in zip(made, [*wanted[number], *pruned[number]], strict=True):
                    np.testing.assert_array_equal(got, want)  # bits: NaN and all
                    assert got is None or np.isfinite(got).all()


def mistake(place: str, level: str, precision: str, what: str) -> None:
    """Steps that are wrong on purpose; ends well if nobody notices."""
    spec, rows, memory = SPECS[0], 48, Memory(place)  # 48: whole tiles of every height, so no row more is written
    batch = Batch.draw(np.random.default_rng(0), spec, rows)
    with all_buffers_in(memory):
        blocks = CompiledBlocks(parameters_of(spec, precision), load_kernels(level))
        memory.freeze()
        hidden = three_blocks(blocks, batch, memory.check)[0]
        chunk = blocks._chunk = compiled._Chunk()
        chunk.workspace = blocks._workspaces[-1]
        space = chunk.workspace
        ranking = next(rankings(batch, hidden.shape[1]))
        blocks.select(hidden, batch.offsets, ranking)
        ((_, pruning, *_),) = space._prunings.values()
        product, weight = space.feed_forward[0].records[-2], blocks._model.layers[0].output.weight
        if what == "write before":
            product[PRODUCT.y // 8] -= 64
        elif what == "write behind":
            product[PRODUCT.y // 8] += space._y.nbytes - rows * space._y.strides[0] + 64
        elif what == "wide rows":
            product[PRODUCT.y_bytes // 8] *= 3
        elif what == "read behind":
            product[PRODUCT.weight // 8] += 64
        elif what == "few rows":
            chunk.workspace = Workspace(blocks._model, 1, members=1)
            chunk.workspace.rows = rows
        elif what == "write input":
            product[PRODUCT.y // 8] = memory.address(weight)
        elif what == "rank behind":
            pruning.records[0, PRUNE.ranking // 8] += space._ranking.nbytes
        elif what == "wide pruning":
            pruning.records[0, PRUNE.width // 8] *= 3
        print(f"{place} {level} {precision}: {what}", flush=True)
        hidden, _ = blocks.attention_block(hidden, batch.offsets.copy(), batch.sizes, 0, batch.want)
        blocks.feed_forward_block(hidden, batch.offsets, 0)
        blocks.select(hidden, batch.offsets, ranking)
        memory.check()


def late_assistants(level: str) -> None:
    """Threads that start to help when the chunk, its team and perhaps all weights are long gone.

    What is freed cannot be touched any more: every look at it ends the process.
    """
    pages = []

    def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pages.append(mmap.mmap(-1, panels.round_up(count, mmap.PAGESIZE)))  # kept: nobody else gets the address
        memory = np.frombuffer(pages[-1], np.uint8)
        weakref.finalize(memory, _forbid, memory.ctypes.data, len(memory)).atexit = False
        return memory[:count].view(dtype).reshape(shape)

    delays = itertools.cycle((0, 0.0001, 0.003, 0.0005, 0.002))

    def serve(assistant: Any) -> None:
        while True:
            task = assistant._tasks.get()
            time.sleep(next(delays))  # a busy machine
            task()
            assistant.busy = False

    kernels, parameters = load_kernels(level), parameters_of(SPECS[0], "float32")
    batch = Batch.draw(np.random.default_rng(0), SPECS[0], 60)
    wanted = three_blocks(CompiledBlocks(parameters, kernels), batch)
    make = SimpleNamespace(aligned=aligned, empty=np.empty, address=panels.address)
    with every_chunk_shared(), replaced(team._Assistant, _serve=serve), all_buffers_in(make):
        for turn in range(60):
            if turn % 4 == 0:
                blocks = None  # the old ones are freed before the new ones are made
                blocks = CompiledBlocks(parameters, kernels)
            with blocks.chunk(60, 3) as inside:
                got = three_blocks(inside, batch)
            for mine, want in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(mine, want)
            time.sleep(0.001 * (turn % 3))
        time.sleep(0.05)


def in_children(jobs: list[list[Any]]) -> None:
    """Each job (a function of this module and its arguments) in a child; prints [[status, last words, pid], ..]."""
    outcomes = []
    for name, *arguments in jobs:
        if name in ("cases", "mistake"):
            load_kernels(arguments[1])  # compiled once, if they have to be
        with tempfile.TemporaryDirectory() as folder:
            words = Path(folder) / "words"
            child = os.fork()
            if child == 0:
                _run_job(name, arguments, words)
            status = os.waitpid(child, 0)[1]
            outcomes.append([os.waitstatus_to_exitcode(status), words.read_text()[-3000:], child])
    print(json.dumps(outcomes))


def _run_job(name: str, arguments: list[Any], words: Path) -> None:
    """Never returns."""
    with words.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        faulthandler.enable(file)
        status = 1
        try:
            globals()[name](*arguments)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            sys.stdout.flush()
            os._exit(status)
