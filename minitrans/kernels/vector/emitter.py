"""Vector code for Numba: LLVM vector types as Numba values, and small functions that emit instructions.

Numba turns a kernel's loops and address arithmetic into LLVM IR, but its vectorisation of float loops cannot be relied
on. So the arithmetic inside a kernel is written with vectors. An `Emitter` builds instructions from expressions
(`a * b + c` on `Lanes` emits a multiply and an add), and `vector_code` makes a Numba intrinsic of a function that uses
one. Python loops inside such a function are unrolled. Addresses are plain integers, in bytes.

Not one fast-math flag is set: NaN and infinity pass through, and what a result is depends on the order written here
alone. A product and a sum are fused only where the code says `fma`.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing import signature
from numba.extending import intrinsic

from minitrans.kernels.vector.levels import Level

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT, POINTER, VOID = ir.FloatType(), ir.PointerType(), ir.VoidType()

word, nothing = types.intp, types.void  # Numba's types of an address or count, and of no result
WAYS = 4  # sets of running values in one row


class Lanes:
    """A vector or scalar inside an Emitter: arithmetic emits instructions."""

    def __init__(self, emitter: Emitter, value: ir.Value) -> None:
        self.emitter, self.value = emitter, value

    def _apply(self, other: Lanes | float, on_floats: str, on_integers: str) -> Lanes:
        if not isinstance(other, Lanes):
            other = self.emitter.constant(other, self.value.type)
        is_float = getattr(self.value.type, "element", self.value.type) == FLOAT
        emit = getattr(self.emitter.builder, on_floats if is_float else on_integers)
        return Lanes(self.emitter, emit(self.value, other.value))

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._apply(other, "fadd", "add")

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._apply(other, "fsub", "sub")

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._apply(other, "fmul", "mul")

    def __truediv__(self, other: Lanes) -> Lanes:
        return self._apply(other, "fdiv", "sdiv")

    def __and__(self, other: int) -> Lanes:
        return self._apply(other, "and_", "and_")

    def __xor__(self, other: int) -> Lanes:
        return self._apply(other, "xor", "xor")

    def __lshift__(self, other: int) -> Lanes:
        return self._apply(other, "shl", "shl")

    def __rshift__(self, other: int) -> Lanes:
        """Shift right; the sign is kept."""
        return self._apply(other, "ashr", "ashr")


class Emitter:
    """Emits the instructions of one vector function for one level."""

    def __init__(self, builder: ir.IRBuilder, level: Level) -> None:
        self.builder, self.level, self.lanes = builder, level, level.lanes
        self.floats = ir.VectorType(FLOAT, level.lanes)
        self.ints = ir.VectorType(I32, level.lanes)

    # Values

    def constant(self, number: float, kind: ir.Type | None = None) -> Lanes:
        """A number in every lane; float32 ones are rounded to float32."""
        kind = self.floats if kind is None else kind
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        value = struct.unpack("f", struct.pack("f", number))[0] if element == FLOAT else number
        if isinstance(kind, ir.VectorType):
            return Lanes(self, ir.Constant(kind, [ir.Constant(element, value)] * kind.count))
        return Lanes(self, ir.Constant(kind, value))

    def word(self, number: int) -> Lanes:
        """A constant integer as wide as an address."""
        return self.constant(number, I64)

    def splat(self, scalar: Lanes) -> Lanes:
        """A scalar in every lane."""
        kind = ir.VectorType(scalar.value.type, self.lanes)
        empty = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(empty, scalar.value, ir.Constant(I32, 0))
        return Lanes(self, self.builder.shuffle_vector(one, empty, ir.Constant(self.ints, [0] * self.lanes)))

    def shuffle(self, a: Lanes, b: Lanes, order: Sequence[int]) -> Lanes:
        """Lanes of two vectors; those of b count on from those of a."""
        mask = ir.Constant(ir.VectorType(I32, len(order)), list(order))
        return Lanes(self, self.builder.shuffle_vector(a.value, b.value, mask))

    def first(self, vector: Lanes) -> Lanes:
        """The first lane, as a scalar."""
        return Lanes(self, self.builder.extract_element(vector.value, ir.Constant(I32, 0)))

    def narrow(self, number: Lanes) -> Lanes:
        """The lower 32 bits of a word."""
        return Lanes(self, self.builder.trunc(number.value, I32))

    def as_ints(self, vector: Lanes) -> Lanes:
        """The bits of floats."""
        return Lanes(self, self.builder.bitcast(vector.value, self.ints))

    def as_floats(self, vector: Lanes) -> Lanes:
        """Floats from their bits."""
        return Lanes(self, self.builder.bitcast(vector.value, self.floats))

    def to_floats(self, vector: Lanes) -> Lanes:
        """Integers converted to the nearest floats."""
        return Lanes(self, self.builder.sitofp(vector.value, self.floats))

    def opaque(self, number: Lanes) -> Lanes:
        """The same word, of which the optimiser knows nothing: it keeps related addresses in registers of their own."""
        kind = ir.FunctionType(I64, [I64])
        return Lanes(self, self.builder.asm(kind, "", "=r,0", [number.value], side_effect=False))

    # Memory

    def _pointer(self, address: Lanes) -> ir.Value:
        return self.builder.inttoptr(address.value, POINTER)

    def load(self, address: Lanes, kind: ir.Type | None = None) -> Lanes:
        """A vector of floats, or a value of another type, from any address."""
        return Lanes(self, self.builder.load(self._pointer(address), align=1, typ=kind or self.floats))

    def store(self, address: Lanes, value: Lanes) -> None:
        """Write a value to any address."""
        self.builder.store(value.value, self._pointer(address), align=1)

    def prefetch(self, address: Lanes, count: int) -> None:
        """Ask for memory that will be read soon; any address will do."""
        kinds = [POINTER, I32, I32, I32]
        for line in range(0, count, 64):
            self.call("llvm.prefetch.p0", VOID, kinds, [self._pointer(address + line), I32(0), I32(3), I32(1)])

    def load_bytes(self, address: Lanes) -> Lanes:
        """One int8 per lane, as floats."""
        small = self.load(address, ir.VectorType(I8, self.lanes))
        return Lanes(self, self.builder.sitofp(small.value, self.floats))

    def store_bytes(self, address: Lanes, ints: Lanes) -> None:
        """The lowest byte of every lane."""
        self.store(address, Lanes(self, self.builder.trunc(ints.value, ir.VectorType(I8, self.lanes))))

    def _first(self, count: Lanes) -> ir.Value:
        """Which lanes stand before ``count``."""
        numbers = ir.Constant(self.ints, list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.splat(self.narrow(count)).value)

    def load_first(self, address: Lanes, count: Lanes) -> Lanes:
        """The first ``count`` floats and zeros behind them; nothing beyond them is read."""
        kinds = [POINTER, ir.VectorType(I1, self.lanes), self.floats]
        arguments = [self._pointer(address), self._first(count), self.constant(0.0).value]
        return Lanes(self, self.call(f"llvm.masked.load.v{self.lanes}f32.p0", self.floats, kinds, arguments))

    def store_first(self, address: Lanes, value: Lanes, count: Lanes) -> None:
        """Write the first ``count`` floats, and nothing beyond them."""
        kinds = [self.floats, POINTER, ir.VectorType(I1, self.lanes)]
        arguments = [value.value, self._pointer(address), self._first(count)]
        self.call(f"llvm.masked.store.v{self.lanes}f32.p0", VOID, kinds, arguments)

    def keep_first(self, value: Lanes, count: Lanes, otherwise: float = 0.0) -> Lanes:
        """The first ``count`` lanes, and another number in those behind."""
        kept = self.builder.select(self._first(count), value.value, self.constant(otherwise).value)
        return Lanes(self, kept)

    # Arithmetic

    def call(self, name: str, returns: ir.Type, kinds: Sequence[ir.Type], arguments: Sequence[Any]) -> ir.Value:
        """Call an LLVM intrinsic, or another kernel, which is found by its name when the modules are linked."""
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(returns, kinds), name)
        return self.builder.call(function, list(arguments))

    def fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
        """a * b + c, rounded once where the level has the instruction, twice where not."""
        if not self.level.fma:
            return a * b + c
        arguments = [a.value, b.value, c.value]
        return Lanes(self, self.call(f"llvm.fma.v{self.lanes}f32", self.floats, [self.floats] * 3, arguments))

    def least(self, a: Lanes, b: Lanes) -> Lanes:
        """The lesser of each pair; b where either is NaN."""
        return Lanes(self, self.builder.select(self.builder.fcmp_ordered("<", a.value, b.value), a.value, b.value))

    def greatest(self, a: Lanes, b: Lanes) -> Lanes:
        """The greater of each pair; b where either is NaN."""
        return Lanes(self, self.builder.select(self.builder.fcmp_ordered(">", a.value, b.value), a.value, b.value))

    def clip(self, ints: Lanes, low: int, high: int) -> Lanes:
        """Signed integers, none below ``low`` or above ``high``."""
        for limit, comparison in ((low, "<"), (high, ">")):
            bound = self.constant(limit, self.ints).value
            beyond = self.builder.icmp_signed(comparison, ints.value, bound)
            ints = Lanes(self, self.builder.select(beyond, bound, ints.value))
        return ints

    def square_root(self, vector: Lanes) -> Lanes:
        """The square root of each lane, correctly rounded."""
        return Lanes(self, self.call(f"llvm.sqrt.v{self.lanes}f32", self.floats, [self.floats], [vector.value]))

    def fold(self, vector: Lanes, combine: Callable[[Lanes, Lanes], Lanes]) -> Lanes:
        """Combine all lanes, halves first: the result as a scalar."""
        half = self.lanes // 2
        while half:
            order = [(lane + half) % self.lanes for lane in range(self.lanes)]
            vector = combine(vector, self.shuffle(vector, vector, order))
            half //= 2
        return self.first(vector)

    def total(self, vector: Lanes) -> Lanes:
        """The sum of all lanes, as a scalar."""
        return self.fold(vector, Lanes.__add__)

    # Branches and loops

    def switch(self, number: Lanes, cases: Sequence[Callable[[], object]]) -> None:
        """Emit all cases, of which the one whose place is ``number`` will run; the last one for any other number."""
        builder = self.builder
        blocks = [builder.append_basic_block("case") for _ in cases]
        behind = builder.append_basic_block("behind")
        choice = builder.switch(number.value, blocks[-1])
        for place, (block, case) in enumerate(zip(blocks, cases, strict=True)):
            if block is not blocks[-1]:
                choice.add_case(I64(place), block)
            builder.position_at_end(block)
            case()
            builder.branch(behind)
        builder.position_at_end(behind)

    def loop(self, count: Lanes, initial: Sequence[Lanes], body: Callable[..., Sequence[Lanes]]) -> list[Lanes]:
        """values = body(turn, *values), ``count`` times; not once if it is 0."""
        builder = self.builder
        before = builder.block
        head, inside, behind = (builder.append_basic_block(name) for name in ("head", "inside", "behind"))
        builder.branch(head)
        builder.position_at_end(head)
        start = [self.word(0), *initial]
        turn, *values = [Lanes(self, builder.phi(value.value.type)) for value in start]
        builder.cbranch(builder.icmp_signed("<", turn.value, count.value), inside, behind)
        builder.position_at_end(inside)
        following = [turn + 1, *body(turn, *values)]
        for phi, first, later in zip((turn, *values), start, following, strict=True):
            phi.value.add_incoming(first.value, before)
            phi.value.add_incoming(later.value, builder.block)
        builder.branch(head)
        builder.position_at_end(behind)
        return values

    def each_vector(
        self,
        width: Lanes,
        initial: Sequence[Lanes],
        body: Callable[..., Sequence[Lanes]],
        combine: Sequence[Callable[[Lanes, Lanes], Lanes]] = (),
    ) -> list[Lanes]:
        """values = body(part, *values) for every vector of a row of ``width`` numbers, the last one perhaps partial.

        With ``combine``, one function for each value, WAYS sets of values run side by side through the row, so that
        none waits for the one before it, and are combined at its end.
        """

        def at(begin: Lanes, rest: Lanes | None = None) -> Callable[..., Sequence[Lanes]]:
            def one(turn: Lanes, *values: Lanes) -> Sequence[Lanes]:
                return body(Part(self, begin + turn * self.lanes, rest), *values)

            return one

        def side_by_side(turn: Lanes, *values: Lanes) -> list[Lanes]:
            count = len(initial)
            following: list[Lanes] = []
            for way in range(WAYS):
                part = Part(self, (turn * WAYS + way) * self.lanes, None)
                following += body(part, *values[way * count : (way + 1) * count])
            return following

        turns = width >> (self.lanes.bit_length() - 1)
        done, values = self.word(0), list(initial)
        if combine:
            rounds = turns >> (WAYS.bit_length() - 1)
            sets = self.loop(rounds, values * WAYS, side_by_side)
            done = rounds * WAYS
            values = sets[: len(initial)]
            for way in range(1, WAYS):
                more = sets[way * len(initial) : (way + 1) * len(initial)]
                values = [join(a, b) for join, a, b in zip(combine, values, more, strict=True)]
        values = self.loop(turns - done, values, at(done * self.lanes))
        whole = turns * self.lanes
        rest = width - whole
        any_rest = Lanes(self, self.builder.zext(self.builder.icmp_signed(">", rest.value, I64(0)), I64))
        return self.loop(any_rest, values, at(whole, rest))


class Part:
    """A vector's place in a row: all lanes, or the first ``rest`` of them."""

    def __init__(self, emitter: Emitter, begin: Lanes, rest: Lanes | None) -> None:
        self.emitter, self.begin, self.rest = emitter, begin, rest

    def load(self, row: Lanes) -> Lanes:
        """Floats of the row that starts at this address; zeros behind its end."""
        address = row + self.begin * 4
        return self.emitter.load(address) if self.rest is None else self.emitter.load_first(address, self.rest)

    def store(self, row: Lanes, value: Lanes) -> None:
        """Write floats of the row, and nothing behind its end."""
        address = row + self.begin * 4
        if self.rest is None:
            self.emitter.store(address, value)
        else:
            self.emitter.store_first(address, value, self.rest)

    def keep(self, value: Lanes, otherwise: float = 0.0) -> Lanes:
        """The value, with another number behind the row's end."""
        return value if self.rest is None else self.emitter.keep_first(value, self.rest, otherwise)


def _intrinsic(emit: Callable[..., Any], returns: types.Type) -> Any:
    """A function of words that Numba kernels can call, of ``emit``, which takes the builder and their values."""
    names = list(inspect.signature(emit).parameters)[1:]

    def typing(context: Any, *_: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[ir.Value]) -> Any:
            result = emit(builder, *values)
            return context.get_dummy_value() if returns is nothing else result

        return signature(returns, *[word] * len(names)), generate

    typing.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("context", *names)]
    )
    typing.__name__ = emit.__name__
    return intrinsic(typing)


def vector_code(level: Level, returns: types.Type = nothing) -> Callable[[Callable[..., Lanes | None]], Any]:
    """Decorator: a function (emitter, *words) that emits code becomes one of words that Numba kernels can call."""

    def decorate(function: Callable[..., Lanes | None]) -> Any:
        @wraps(function)
        def emit(builder: ir.IRBuilder, *values: ir.Value) -> Any:
            emitter = Emitter(builder, level)
            result = function(emitter, *(Lanes(emitter, value) for value in values))
            return None if result is None else result.value

        return _intrinsic(emit, returns)  # which sees the parameters of the function

    return decorate


def _word_code(returns: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: the same for a function (builder, *words) of no level."""
    return lambda emit: _intrinsic(emit, returns)


@_word_code(word)
def load_word(builder: ir.IRBuilder, record: ir.Value, offset: ir.Value) -> ir.Value:
    """The 64-bit word of a record at a byte offset."""
    return builder.load(builder.inttoptr(builder.add(record, offset), POINTER), typ=I64)


@_word_code(nothing)
def store_word(builder: ir.IRBuilder, address: ir.Value, number: ir.Value) -> ir.Value:
    """Write a 64-bit word."""
    return builder.store(number, builder.inttoptr(address, POINTER), align=8)


@_word_code(word)
def least(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The lesser of two integers (Python's `min` would be a call of a function outside)."""
    return builder.select(builder.icmp_signed("<", a, b), a, b)


@_word_code(word)
def atomic_add(builder: ir.IRBuilder, address: ir.Value, number: ir.Value) -> ir.Value:
    """Add to the word at an address and return what it was; orders memory for all threads."""
    return builder.atomic_rmw("add", builder.inttoptr(address, POINTER), number, "seq_cst")


@_word_code(word)
def atomic_load(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """The word at an address, with all that was written before it by the thread that wrote it."""
    return builder.load_atomic(builder.inttoptr(address, POINTER), "acquire", 8, typ=I64)


@_word_code(nothing)
def atomic_store(builder: ir.IRBuilder, address: ir.Value, number: ir.Value) -> ir.Value:
    """Write a word, after all that this thread wrote before."""
    return builder.store_atomic(number, builder.inttoptr(address, I64.as_pointer()), "release", 8)


def stack_bytes(count: int) -> Any:
    """A function that Numba kernels can call: the address of as many bytes on the stack, aligned to 64."""

    @_word_code(word)
    def allocate(builder: ir.IRBuilder) -> ir.Value:
        with builder.goto_entry_block():
            place = builder.alloca(I8, count)
        place.align = 64
        return builder.ptrtoint(place, I64)

    return allocate
