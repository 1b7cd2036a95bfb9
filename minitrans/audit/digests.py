"""Digests of a model folder, of every file and every tensor: what is damaged is not only found but located.

A digests file is JSON. Those of published models travel with minitrans; an auditor writes one for any other model, and
compares with it later. It is read as hostile input.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from minitrans.arguments import as_int
from minitrans.contents import read_json
from minitrans.errors import ConfigError, InputError, ModelNotFoundError
from minitrans.files import bundled, is_inside, is_sha256, write_file
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
        """Write a digests file, whole or not at all. InputError: as `check_destination` has it."""
        check_destination(path)
        values = {
            "format": FORMAT,
            "version": VERSION,
            "made_by": "minitrans audit --write-digests",
            "model": self.model,
            "files": dict(sorted(self.files.items())),
            "tensors": {
                file: {
                    name: {"dtype": each.dtype, "shape": list(each.shape), "sha256": each.sha256}
                    for name, each in sorted(tensors.items())
                }
                for file, tensors in sorted(self.tensors.items())
            },
        }
        if self.identity is not None:
            values["identity"] = self.identity.to_dict()
        text = re.sub(r"\{\s*(\"dtype\"[^{}]*)\}", _one_line, json.dumps(values, indent=1))
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
                raise InputError(f"{path} is {_kind(path)}, wanted a regular file; {origin}")
            values = read_json(path)
        except ConfigError as error:
            raise InputError(f"{error}; {origin}") from None
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; {origin}") from None
        return replace(_Reader(path).digests(values), source=path.name)


def check_destination(path: str | os.PathLike[str]) -> Path:
    """The path of a digests file that can be written; folders on the way to it need not exist yet.

    Raises:
        InputError: it is a folder or a device, or the folder for it cannot be had or written to.
    """
    path = Path(path)
    name_another = "name another file for the digests"
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is {_kind(path)}, wanted the name of a file; {name_another}")
        parent = next(each for each in path.absolute().parents if each.exists())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; {name_another}") from None
    if not parent.is_dir():
        raise InputError(f"cannot write {path}: {parent} is {_kind(parent)}, wanted a folder; {name_another}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: the folder {parent} may not be written to; {name_another}")
    return path


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    kinds = {stat.S_ISREG: "a file", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


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
    tensors = {
        file.name: {
            name: TensorDigest(stored.dtype, stored.shape, hashlib.sha256(stored.data).hexdigest())
            for name, stored in file.tensors.items()
        }
        for file in weights
    }
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
    places = np.flatnonzero(different.reshape(-1, width).any(axis=1))
    for place in places[:NAMED].tolist():
        index = [int(i) for i in np.unravel_index(place, seen.shape)]
        yield (
            f"element {index} is {_shown(values.flat[place])}, wanted {_shown(right.flat[place])} "
            f"(byte {begin + place * width})"
        )
    if len(places) > NAMED:
        yield f"and {len(places) - NAMED} of its other {values.size - NAMED} elements"


def implausible(name: str, tensor: StoredTensor) -> Iterator[str]:
    """Elements that no training leaves behind, a line each.

    Of float tensors: values a thousand times larger than what 99 of 100 values stay below. Of int8 matrices, as
    `minitrans quantize` writes them: -128, and rows whose largest value is not 127. A small change is never found.

    Args:
        name: of the tensor; the scale of a row of zeros is 1, however small the others are.
        tensor: as it was read.
    """
    values = as_array(tensor)
    if values is None or not values.size or values.dtype.kind == "u":
        return
    if values.dtype == np.int8:
        if values.ndim == 2:
            yield from _implausible_rows(values)
        return
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
        gross &= size != 1
    places = np.flatnonzero(gross)
    for place in places[:NAMED].tolist():
        index = [int(i) for i in np.unravel_index(place, tensor.shape)]
        yield (
            f"element {index} is {_shown(values.flat[place])}, {size[place] / typical:.0e} times what 99 of 100 of its "
            "values stay below"
        )
    if len(places) > NAMED:
        yield f"and {len(places) - NAMED} of its other elements"


def _implausible_rows(values: NDArray[np.int8]) -> Iterator[str]:
    largest = np.abs(values.astype(np.int16)).max(axis=1)  # [N]
    rows = np.flatnonzero((largest != 127) & (largest != 0))
    for row in rows[:NAMED].tolist():
        if largest[row] == 128:
            yield f"element {[row, int(values[row].argmin())]} is -128, which int8 weights never are"
        else:
            yield f"the largest value of row {row} is {largest[row]}, which is 127 in every row that was quantised"
    if len(rows) > NAMED:
        yield f"and {len(rows) - NAMED} of its other rows"


def _one_line(entry: re.Match[str]) -> str:
    return json.dumps(json.loads(entry[0]))


def _shown(value: Any) -> str:
    return str(int(value)) if isinstance(value, np.integer) else f"{float(value):.9g}"


class _Reader:
    """Turns JSON into records; every complaint names the file and the place in it."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def digests(self, values: Mapping[str, Any]) -> Digests:
        keys = {"format", "version", "made_by", "model", "files", "tensors", *({"identity"} & {*values})}
        if values.get("format") != FORMAT:
            self.fail("format", values.get("format"), repr(FORMAT))
        if as_int(values.get("version")) != VERSION:  # which True and 1.0 equal, too
            self.fail("version", values.get("version"), f"{VERSION}, which this release reads")
        if set(values) != keys:
            self.fail("the top level", sorted(values), f"the keys {sorted(keys)}")
        model = values["model"]
        if not isinstance(model, str) or not 0 < len(model) <= 4096:
            self.fail("model", model, "a name")
        files = self.table(values["files"], "files", empty=False)
        for name, digest in files.items():
            self.path(name, "files")
            self.sha256(digest, f"files, {name!r}")
        tensors = self.table(values["tensors"], "tensors", empty=False)
        for name in tensors:
            self.path(name, "tensors")
            if name not in files:
                self.fail("tensors", name, "a file that stands under files too")
        found = {name: self.tensors(entry, name) for name, entry in tensors.items()}
        return Digests(model, files, found, self.identity(values.get("identity")))

    def identity(self, entry: object) -> Identity | None:
        if entry is None:
            return None
        try:
            return Identity.from_dict(entry)
        except InputError as error:
            raise InputError(f"{self.source}: {error}; write the file anew with {_COMMAND}") from None

    def tensors(self, entry: object, file: str) -> dict[str, TensorDigest]:
        found = {}
        for name, values in self.table(entry, f"tensors, {file!r}").items():
            where = f"tensors, {file!r}, {name!r}"
            values = self.table(values, where)
            if set(values) != {"dtype", "shape", "sha256"}:
                self.fail(where, sorted(values), "the keys dtype, shape and sha256")
            dtype, shape = values["dtype"], values["shape"]
            if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
                self.fail(f"{where}, dtype", dtype, "the name of an element type, as F32")
            sizes = [as_int(size) for size in shape] if isinstance(shape, list) and len(shape) <= 8 else [None]
            if not all(size is not None and 0 <= size < 2**48 for size in sizes):
                self.fail(f"{where}, shape", shape, "a list of at most 8 sizes")
            found[name] = TensorDigest(
                dtype, tuple(size for size in sizes if size is not None), self.sha256(values["sha256"], where)
            )
        return found

    def table(self, value: object, where: str, *, empty: bool = True) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(where, value, "a JSON object")
        if not value and not empty:
            self.fail(where, value, "at least one entry: nothing would be compared")
        return value

    def path(self, name: str, where: str) -> None:
        if not is_inside(name):
            self.fail(where, name, "a relative path with forward slashes and without '..'")

    def sha256(self, value: object, where: str) -> str:
        if not is_sha256(value):
            self.fail(f"{where}, sha256", value, "64 lower-case hexadecimal digits")
        return value

    def fail(self, where: str, seen: object, wanted: str) -> NoReturn:
        raise InputError(
            f"{self.source}: {where} is {reprlib.repr(seen)}, wanted {wanted}; write the file anew with {_COMMAND}"
        )
