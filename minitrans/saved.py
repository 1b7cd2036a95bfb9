"""The folder of a saved classifier: what it holds, and its validation. Nothing in it is trusted.

Version 1 is a classifier that does not reject. Version 2 has one field more, `rejection`: readers that do not know it
would give labels where the classifier was told to abstain, so they must not read it.

Dimension letters: N examples, H embedding width, K classes.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minitrans.config import JSON_LIMIT, as_int, read_json
from minitrans.errors import ClassifierError, ConfigError, InputError, PolicyError, one_of
from minitrans.rejection import SCORES
from minitrans.resources import atomic_folder

if TYPE_CHECKING:
    from minitrans.model import SentenceEncoder
    from minitrans.policy import PruningPolicy

FORMAT, PLAIN_VERSION, VERSION = "minitrans-classifier", 1, 2
JSON_FILE, TENSOR_FILE = "classifier.json", "classifier.safetensors"
POLICY_FILE = "pruning.safetensors"  # the fitted arrays of the encoder's policy, if it has any
LABEL_LENGTH = 1000  # characters


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that `save` may write: a new one, an empty one, or another classifier's.

    Raises:
        InputError: it holds anything else, or is a file.
    """
    target = Path(folder).resolve()
    held = {path.name for path in target.iterdir()} if target.is_dir() else {"a file"} if target.exists() else set()
    if others := held - {JSON_FILE, TENSOR_FILE, POLICY_FILE}:
        raise InputError(f"{target} holds {min(others)}; wanted a new folder or a classifier's; name another")
    return target


def write_folder(
    target: Path,
    description: dict[str, Any],
    tensors: Mapping[str, NDArray[Any] | None],
    policy: PruningPolicy | None = None,
) -> None:
    """Write all files of a folder that `check_folder` allowed, or none. Tensors that are None are left out."""
    from safetensors.numpy import save

    version = VERSION if "rejection" in description else PLAIN_VERSION
    text = json.dumps({"format": FORMAT, "version": version} | description, indent=2) + "\n"
    if len(text) > JSON_LIMIT:  # it is ASCII: `load` would refuse it
        raise InputError(
            f"{JSON_FILE} would have {len(text)} bytes, wanted at most {JSON_LIMIT}; leave the examples' texts out: "
            "save(folder, keep_texts=False), or `minitrans fit --no-keep-texts`"
        )
    with atomic_folder(target, replace=True) as temporary:
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not None}
        (temporary / TENSOR_FILE).write_bytes(save(contiguous))
        (temporary / JSON_FILE).write_text(text, encoding="utf-8")
        if policy is not None and policy.fitted is not None:
            policy.fitted.save(temporary / POLICY_FILE)


def read_folder(folder: Path) -> tuple[Path, dict[str, Any], dict[str, NDArray[Any]]]:
    """The path of the JSON file, for messages, its values, and the tensors by name.

    Raises:
        ClassifierError: a file is missing, leads out of the folder, or holds anything that `save` would not write.
    """
    file = file_of(folder, JSON_FILE)
    values = read_description(file)
    tensors = read_tensors(file_of(folder, TENSOR_FILE), len(values["classes"]))
    if (texts := values.get("texts")) is not None:
        N = len(tensors["codes"])
        fine = type(texts) is list and all(type(text) is str for text in texts) and len(texts) == N
        _wanted(fine, file, f"texts is {reprlib.repr(texts)}", f"{N} texts, as many as there are examples, or null")
    return file, values, tensors


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
    "version": (
        f"{PLAIN_VERSION} or {VERSION}",
        lambda seen: type(seen) is int and PLAIN_VERSION <= seen <= VERSION,
    ),
    "label_kind": ("'str' or 'int'", lambda seen: seen in ("str", "int")),
    "classes": ("a list of at least one", lambda seen: type(seen) is list and bool(seen)),
    "C": ("a finite float above 0", lambda seen: type(seen) is float and 0 < seen < math.inf),
    "label_names": ("true or false", lambda seen: type(seen) is bool),
    "converged": ("true or false", lambda seen: type(seen) is bool),
    "encoder": ("an object", lambda seen: type(seen) is dict),
}
_FINITE = ("a finite float", lambda seen: type(seen) is float and math.isfinite(seen))
_COUNT = ("an integer of 64 bits, not negative", lambda seen: type(seen) is int and 0 <= seen < 2**63)
_SHARE = ("a float in 0..1", lambda seen: _is_share(seen))
_SHARE_OR_NULL = ("a float in 0..1 or null", lambda seen: seen is None or _is_share(seen))
_REJECTION_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "score": (one_of(SCORES), lambda seen: type(seen) is str and seen in SCORES),
    "threshold": _FINITE,
    "abstention": ("a label", storable),
    "in_scope": _COUNT,
    "out_of_scope": _COUNT,
    "kept": _SHARE,
    "rejected": _SHARE_OR_NULL,
    "accuracy": _SHARE_OR_NULL,
    "auroc": (
        f"null or an object of {one_of(SCORES)} with floats in 0..1",
        lambda seen: (
            seen is None or (type(seen) is dict and seen.keys() == set(SCORES) and all(map(_is_share, seen.values())))
        ),
    ),
}
_ENCODER_FIELDS = {"name_or_path": str, "model_sha256": str, "precision": str, "pruning": dict}


def _is_share(seen: object) -> bool:
    return type(seen) is float and 0 <= seen <= 1


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
    if values["version"] == PLAIN_VERSION:
        _wanted("rejection" not in values, file, f"rejection is there in version {PLAIN_VERSION}", f"version {VERSION}")
    else:
        _check_rejection(values.get("rejection"), classes, kind, file)
    return values


def _check_rejection(seen: Any, classes: list[Any], kind: type, file: Path) -> None:
    _wanted(type(seen) is dict, file, f"rejection is {reprlib.repr(seen)}", "an object")
    unknown = seen.keys() ^ _REJECTION_FIELDS.keys()
    _wanted(not unknown, file, f"rejection has {sorted(seen)}", f"just {sorted(_REJECTION_FIELDS)}")
    for key, (wanted, fits) in _REJECTION_FIELDS.items():
        _wanted(fits(seen[key]), file, f"rejection.{key} is {reprlib.repr(seen[key])}", wanted)
    label = seen["abstention"]
    fine = type(label) is kind and label not in classes
    _wanted(fine, file, f"rejection.abstention is {reprlib.repr(label)}", f"{kind.__name__}, and none of the classes")


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


def saved_encoder(identity: Mapping[str, Any], file: Path, local_files_only: bool) -> SentenceEncoder:
    """The encoder that a classifier's JSON file describes.

    Raises:
        ClassifierError: it is not described, or its pruning policy is broken.
        ModelNotFoundError, DownloadError: it cannot be found.
    """
    from minitrans.model import SentenceEncoder
    from minitrans.policy import PruningPolicy

    for key in ("name_or_path", "model_sha256"):
        if identity.get(key) is None:
            raise ClassifierError(
                f"{file} does not identify its encoder; wanted encoder.{key}; pass load(folder, encoder)"
            )
    pruning = identity.get("pruning")
    try:
        arrays = file_of(file.parent, POLICY_FILE) if pruning and pruning.get("fitted") is not None else None
        policy = None if pruning is None else PruningPolicy.from_dict(pruning, str(file), arrays)
    except PolicyError as error:
        raise ClassifierError(f"{error}; pass load(folder, encoder)") from error
    precision = identity.get("precision") or "auto"
    name = identity["name_or_path"]
    return SentenceEncoder(name, pruning=policy, precision=precision, local_files_only=local_files_only)
