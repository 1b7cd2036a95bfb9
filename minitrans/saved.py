"""The folder of a saved classifier: what it holds, and its validation. Nothing in it is trusted.

Dimension letters: N examples, H embedding width, K classes.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans.config import as_int, read_json
from minitrans.errors import ClassifierError, ConfigError, InputError

FORMAT, VERSION = "minitrans-classifier", 1
JSON_FILE, TENSOR_FILE = "classifier.json", "classifier.safetensors"
LABEL_LENGTH = 1000  # characters


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that `save` may write: a new one, an empty one, or another classifier's.

    Raises:
        InputError: it holds anything else, or is a file.
    """
    target = Path(folder).resolve()
    held = {path.name for path in target.iterdir()} if target.is_dir() else {"a file"} if target.exists() else set()
    if others := held - {JSON_FILE, TENSOR_FILE}:
        raise InputError(f"{target} holds {min(others)}; wanted a new folder or a classifier's; name another")
    return target


def storable(label: object) -> bool:
    """Whether a label can be saved, and held in an array that gives each label the room of the longest."""
    if isinstance(label, str):
        return "\0" not in label and len(label) <= LABEL_LENGTH
    number = as_int(label)
    return number is not None and -(2**63) <= number < 2**63


def _wanted(ok: bool, file: Path, seen: str, wanted: str) -> None:
    if not ok:
        raise ClassifierError(f"{file}: {seen}; wanted {wanted}; save the classifier again")


def file_of(folder: Path, name: str) -> Path:
    """The path of a file that is there and lies in the folder."""
    path = folder / name
    _wanted(path.is_file(), path, "no such file", "a folder that FewShotClassifier.save wrote")
    _wanted(path.resolve().parent == folder.resolve(), path, f"it leads to {path.resolve()}", "a file in the folder")
    return path


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": (repr(FORMAT), lambda seen: seen == FORMAT),
    "version": (repr(VERSION), lambda seen: type(seen) is int and seen == VERSION),
    "label_kind": ("'str' or 'int'", lambda seen: seen in ("str", "int")),
    "classes": ("a list of at least one", lambda seen: type(seen) is list and bool(seen)),
    "C": ("a finite float above 0", lambda seen: type(seen) is float and 0 < seen < math.inf),
    "label_names": ("true or false", lambda seen: type(seen) is bool),
    "converged": ("true or false", lambda seen: type(seen) is bool),
    "encoder": ("an object", lambda seen: type(seen) is dict),
}
_ENCODER_FIELDS = {"name_or_path": str, "model_sha256": str, "precision": str, "pruning": dict}


def read_description(file: Path) -> dict[str, Any]:
    """classifier.json, every field checked."""
    try:
        values = read_json(file)
    except ConfigError as error:
        raise ClassifierError(f"{error}; save the classifier again") from error
    for key, (wanted, fits) in _FIELDS.items():
        _wanted(fits(values.get(key)), file, f"{key} is {reprlib.repr(values.get(key))}", wanted)
    classes, kind = values["classes"], {"str": str, "int": int}[values["label_kind"]]
    for label in classes:
        _wanted(type(label) is kind and storable(label), file, f"a class is {reprlib.repr(label)}", kind.__name__)
    for a, b in pairwise(classes):
        _wanted(a < b, file, f"{reprlib.repr(b)} comes after {reprlib.repr(a)}", "classes sorted, each once")
    for key, type_ in _ENCODER_FIELDS.items():
        seen = values["encoder"].get(key)
        fine = isinstance(seen, type_ | None)
        _wanted(fine, file, f"encoder.{key} is {reprlib.repr(seen)}", f"{type_.__name__} or null")
    return values


def read_tensors(file: Path, K: int) -> dict[str, NDArray[Any]]:
    """classifier.safetensors, every tensor checked before its values are read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            stored = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            seen = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in stored.items()}
            N, H = (
                (*seen.get(name, ("", ()))[1], 0, 0)[axis] for name, axis in (("codes", 0), ("coef", 1))
            )  # 0: refused
            wanted = {"coef": ("F32", (K, H)), "intercept": ("F32", (K,)), "names": ("F32", (K, H))}
            wanted |= {"embeddings": ("F32", (N, H)), "codes": ("I64", (N,))}
            for name in sorted(seen.keys() | (wanted.keys() - {"names"})):
                _wanted(name in wanted, file, f"there is a tensor {name!r}", f"only {sorted(wanted)}")
                fine = seen.get(name) == wanted[name] and 0 not in wanted[name][1]
                _wanted(fine, file, f"{name} is {seen.get(name, 'missing')}", "{} {}".format(*wanted[name]))
            tensors: dict[str, NDArray[Any]] = {name: opened.get_tensor(name) for name in seen}
    except (SafetensorError, OSError) as error:
        raise ClassifierError(f"{file} is not safetensors ({error}); wanted a whole file; save it again") from error
    for name, tensor in tensors.items():
        _wanted(bool(np.isfinite(tensor).all()), file, f"{name} holds NaN or infinity", "finite numbers")
    used = np.unique(tensors["codes"])
    _wanted(np.array_equal(used, np.arange(K)), file, f"codes holds {reprlib.repr(used)}", f"each of 0..{K - 1}")
    return tensors
