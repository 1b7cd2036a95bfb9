"""Digests of a model folder, of every file and every tensor: what is damaged is not only found but located.

A digests file is JSON. Those of published models travel with minitrans; an auditor writes one for any other model, and
compares with it later. It is read as hostile input.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans.arguments import as_int
from minitrans.contents import read_json
from minitrans.errors import ConfigError, InputError, ModelNotFoundError
from minitrans.files import bundled, is_inside, is_sha256, kind_of, write_file
from minitrans.models.identity import Identity
from minitrans.models.manifest import KnownModel
from minitrans.models.weights import StoredTensor, read_tensors

FORMAT, VERSION = "minitrans-digests", 1
SHIPPED = "weights/digests"
LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
NAMED = 4  # elements of a tensor that are named; the others are counted
GROSS = 1000.0  # times what all but the largest hundredth of a tensor's values stay below

_COMMAND = "`minitrans audit --write-digests`"
_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
_ARRAYS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


@dataclass(frozen=True)
class TensorDigest:
    """What a tensor has to be: its element type and shape as the file says them, and the sha256 of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @classmethod
    def of(cls, tensor: StoredTensor) -> TensorDigest:
        """The digest of a tensor that was read."""
        return cls(tensor.dtype, tensor.shape, hashlib.sha256(tensor.data).hexdigest())


@dataclass(frozen=True)
class Digests:
    """What the files of a model have to be.

    Attributes:
        model: what it is called.
        files: path inside the folder -> sha256.
        tensors: weight file -> tensor, as it is called there -> what it has to be. A file may have none on record.
        identity: of the encoder that was read from these files; None where it is not on record.
        source: the name of the file that they were read from, for messages.
    """

    model: str
    files: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, TensorDigest]]
    identity: Identity | None = None
    source: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """What a message calls them: the file that they came from, or the published model."""
        return self.source or self.model

    def save(self, path: Path) -> None:
        """Write a digests file, whole or not at all. InputError, WriteError: see `minitrans.files.atomic_file`."""
        values = {
            "format": FORMAT,
            "version": VERSION,
            "made_by": "minitrans audit --write-digests",
            "model": self.model,
            "files": dict(sorted(self.files.items())),
            "tensors": {
                file: {name: asdict(each) for name, each in sorted(tensors.items())}
                for file, tensors in sorted(self.tensors.items())
            },
        }
        if self.identity is not None:
            values["identity"] = self.identity.to_dict()
        text = re.sub(  # one line a tensor
            r"\{\s*\"dtype\"[^{}]*\}", lambda entry: json.dumps(json.loads(entry[0])), json.dumps(values, indent=1)
        )
        write_file(path, (text + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Digests:
        """Read a digests file.

        Raises:
            InputError: it is missing, no regular file, or a value in it is not what it has to be; the message says
                which.
        """
        origin = "a digests file is written by `minitrans audit --write-digests FILE`"
        try:
            # A device may have no end, and opening a pipe waits for a writer.
            if path.exists() and not path.is_file():
                raise InputError(f"{path} is {kind_of(path)}, wanted a regular file; {origin}")
            values = read_json(path)
        except ConfigError as error:
            raise InputError(f"{error}; {origin}") from None
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; {origin}") from None
        return replace(_Reader(path).digests(values), source=path.name)


@dataclass(frozen=True)
class WeightFile:
    """A weight file, read."""

    name: str
    tensors: Mapping[str, StoredTensor]
    begins: Mapping[str, int]  # tensor -> its first byte in the file

    @classmethod
    def read(cls, path: Path, name: str) -> WeightFile:
        """WeightsError if it is not a valid safetensors file."""
        tensors = read_tensors(path)  # which proves the header sound
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size))
        return cls(name, tensors, {each: 8 + size + header[each]["data_offsets"][0] for each in tensors})

    def place(self, tensor: str) -> str:
        """Where a tensor lies, for messages; bytes are counted from 0, the last one included."""
        stored, begin = self.tensors[tensor], self.begins[tensor]
        return f"{self.name}: {tensor}, {stored.describe()}, bytes {begin} to {begin + len(stored.data) - 1}"


def length_by_header(path: Path) -> int | None:
    """How many bytes a safetensors file has by its own header; None if the header says nothing that can be read."""
    try:
        with path.open("rb") as file:
            first = file.read(8)
            size = int.from_bytes(first, "little")
            if len(first) < 8 or size > LONGEST_HEADER:
                return None
            text = file.read(size)
        if len(text) < size:
            return 8 + size  # and the tensors on top, of which nothing is known
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [as_int(entry["data_offsets"][1]) for entry in header.values()]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        return None
    known = [end for end in ends if end is not None]
    return 8 + size + max(known) if known and len(known) == len(ends) else None


def digests_of(model: str, files: Mapping[str, str], weights: Sequence[WeightFile]) -> Digests:
    """The digests of files that were read."""
    tensors = {file.name: {name: TensorDigest.of(each) for name, each in file.tensors.items()} for file in weights}
    return Digests(model, dict(files), tensors)


def published(known: KnownModel) -> Digests:
    """What the manifest says of a known model's files, and the digests of its tensors where some travel with minitrans.

    Raises:
        InputError: the file of the tensor digests is broken.
    """
    try:
        shipped = Digests.load(bundled(f"{SHIPPED}/{known.name.replace('/', '--')}.json"))
    except ModelNotFoundError:
        return Digests(known.name, known.files, {})
    return Digests(known.name, known.files, shipped.tensors)


def as_array(tensor: StoredTensor) -> NDArray[Any] | None:
    """The values of a tensor, bfloat16 as float32; None for an element type that NumPy does not have."""
    if tensor.dtype == "BF16":  # the upper half of a float32
        bits = np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    if tensor.dtype not in _ARRAYS:
        return None
    return np.frombuffer(tensor.data, _ARRAYS[tensor.dtype]).reshape(tensor.shape)


def differing(seen: StoredTensor, wanted: bytes, begin: int) -> Iterator[str]:
    """Which elements of a tensor are not what they should be, a line each: index, both values, first byte in the file.

    Args:
        seen: as it lies in the file.
        wanted: the bytes that it should have, as many.
        begin: its first byte in the file.
    """
    values = as_array(seen)
    right = as_array(StoredTensor(seen.dtype, seen.shape, wanted, seen.file))
    if values is None or right is None or not values.size:
        return
    width = len(wanted) // values.size
    different = np.frombuffer(seen.data, np.uint8) != np.frombuffer(wanted, np.uint8)

    def line(place: int) -> str:
        now, then = _shown(values.flat[place]), _shown(right.flat[place])
        return f"element {_index(place, seen.shape)} is {now}, wanted {then} (byte {begin + place * width})"

    places = np.flatnonzero(different.reshape(-1, width).any(axis=1))
    yield from _named(places, line, f"{values.size - NAMED} elements")


def _named(places: NDArray[np.intp], line: Callable[[int], str], others: str) -> Iterator[str]:
    """A line for each of the first places, then how many others there are."""
    yield from map(line, places[:NAMED].tolist())
    if len(places) > NAMED:
        yield f"and {len(places) - NAMED} of its other {others}"


def _index(place: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(place, shape)]


def implausible(name: str, tensor: StoredTensor) -> Iterator[str]:
    """Elements that no training leaves behind, a line each.

    Of float tensors: values a thousand times larger than what 99 of 100 values stay below. Of int8 matrices, as
    `minitrans quantize` writes them: -128, and rows whose largest value is not 127. A small change is never found.
    """
    values = as_array(tensor)
    if values is None or not values.size:
        return
    if values.dtype == np.int8 and values.ndim == 2:
        yield from _implausible_rows(values)
    if values.dtype.kind != "f":
        return
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(values.astype(np.float64)).ravel()
    if size.size < 2 or not np.isfinite(size).all():
        return  # the weights are refused for that already
    typical = float(np.sort(size)[int(0.99 * (size.size - 1))])  # of few values: the second largest
    if typical == 0:
        return
    gross = size > GROSS * typical
    if name.endswith("_scale"):
        gross &= size != 1  # that of a row of zeros, however small the others are

    def line(place: int) -> str:
        found = f"element {_index(place, tensor.shape)} is {_shown(values.flat[place])}"
        return f"{found}, {size[place] / typical:.0e} times what 99 of 100 of its values stay below"

    yield from _named(np.flatnonzero(gross), line, "elements")


def _implausible_rows(values: NDArray[np.int8]) -> Iterator[str]:
    largest = np.abs(values.astype(np.int16)).max(axis=1)  # [N]

    def line(row: int) -> str:
        if largest[row] == 128:
            return f"element {[row, int(values[row].argmin())]} is -128, which int8 weights never are"
        return f"the largest value of row {row} is {largest[row]}, which is 127 in every row that was quantised"

    yield from _named(np.flatnonzero((largest != 127) & (largest != 0)), line, "rows")


def _shown(value: Any) -> str:
    return str(int(value)) if isinstance(value, np.integer) else f"{float(value):.9g}"


class _Reader:
    """Turns JSON into records; every complaint names the file and the place in it."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def check(self, fine: bool, where: str, seen: object, wanted: str) -> None:
        if not fine:
            raise InputError(
                f"{self.source}: {where} is {reprlib.repr(seen)}, wanted {wanted}; write the file anew with {_COMMAND}"
            )

    def digests(self, values: Mapping[str, Any]) -> Digests:
        keys = {"format", "version", "made_by", "model", "files", "tensors", *({"identity"} & {*values})}
        self.check(values.get("format") == FORMAT, "format", values.get("format"), repr(FORMAT))
        version = values.get("version")
        self.check(as_int(version) == VERSION, "version", version, f"{VERSION}, which this release reads")
        self.check(set(values) == keys, "the top level", sorted(values), f"the keys {sorted(keys)}")
        model = values["model"]
        self.check(isinstance(model, str) and 0 < len(model) <= 4096, "model", model, "a name")
        files, tensors = (self.table(values[name], name) for name in ("files", "tensors"))
        for where, table in (("files", files), ("tensors", tensors)):
            self.check(bool(table), where, table, "at least one entry: nothing would be compared")
            for name in table:
                self.check(is_inside(name), where, name, "a relative path with forward slashes and without '..'")
                self.check(name in files, where, name, "a file that stands under files too")
        for name, digest in files.items():
            self.sha256(digest, f"files, {name!r}")
        found = {name: self.tensors(entry, f"tensors, {name!r}") for name, entry in tensors.items()}
        try:
            identity = None if values.get("identity") is None else Identity.from_dict(values["identity"])
        except InputError as error:
            raise InputError(f"{self.source}: {error}; write the file anew with {_COMMAND}") from None
        return Digests(model, files, found, identity)

    def tensors(self, entry: object, where: str) -> dict[str, TensorDigest]:
        return {name: self.tensor(each, f"{where}, {name!r}") for name, each in self.table(entry, where).items()}

    def tensor(self, entry: object, where: str) -> TensorDigest:
        values = self.table(entry, where)
        keys = ("dtype", "shape", "sha256")
        self.check(set(values) == {*keys}, where, sorted(values), "the keys dtype, shape and sha256")
        dtype, shape, digest = (values[key] for key in keys)
        named = isinstance(dtype, str) and _DTYPE.fullmatch(dtype) is not None
        self.check(named, f"{where}, dtype", dtype, "the name of an element type, as F32")
        sizes = [as_int(size) for size in shape] if isinstance(shape, list) and len(shape) <= 8 else [None]
        known = tuple(size for size in sizes if size is not None and 0 <= size < 2**48)
        self.check(len(known) == len(sizes), f"{where}, shape", shape, "a list of at most 8 sizes")
        return TensorDigest(dtype, known, self.sha256(digest, where))

    def table(self, value: Any, where: str) -> dict[str, Any]:
        self.check(isinstance(value, dict), where, value, "a JSON object")
        return dict(value)

    def sha256(self, value: Any, where: str) -> str:
        self.check(is_sha256(value), f"{where}, sha256", value, "64 lower-case hexadecimal digits")
        return str(value)
