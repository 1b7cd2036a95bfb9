"""The folder of a saved classifier: what it holds, how it changes, and its validation. Nothing in it is trusted.

Its files change together (see `minitrans.together`); nothing else may lie in it.

Version 3 is this. Versions 1 and 2 (with ``rejection``) had fixed names and no digests; they are read.

Dimension letters: N examples, H embedding width, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minitrans.contents import JSON_LIMIT, read_json
from minitrans.errors import ClassifierError, ConfigError, InputError, PolicyError
from minitrans.fewshot.examples import storable
from minitrans.fewshot.head import CLASSES_LIMIT, Head
from minitrans.fewshot.rejection import SCORES, Rejection
from minitrans.files import is_sha256, remove_stale, remove_unnamed, reporting, target_of, write_file
from minitrans.together import consistent, content_name, write_together
from minitrans.words import one_of

if TYPE_CHECKING:
    from minitrans.encoder.policy import PruningPolicy

FORMAT, VERSION = "minitrans-classifier", 3
JSON_FILE = "classifier.json"
_ARRAYS = re.compile(r"(classifier|pruning)(-[0-9a-f]{16})?\.safetensors")
# What may lie in such a folder besides: a killed save's, a volume's, and what NFS keeps for those that still read it.
_BESIDE = re.compile(rf"{re.escape(JSON_FILE)}|\.(classifier|pruning).*\.tmp|lost\+found|\.nfs.*", re.DOTALL)


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that `save` may write: a new one, an empty one, or another classifier's.

    Raises:
        InputTypeError, InputError: it holds anything else, is a file, or its path cannot be one.
        WriteError: it cannot be looked into.
    """
    target = target_of(folder)
    with reporting(target):
        try:
            target = target.resolve()
        except RuntimeError as error:  # links that go round in circles
            raise InputError(f"{target} leads nowhere ({error}); name another folder") from None
        held = {path.name for path in target.iterdir()} if target.is_dir() else {"a file"} if target.exists() else set()
    if others := {name for name in held if not _ARRAYS.fullmatch(name) and not _BESIDE.fullmatch(name)}:
        raise InputError(f"{target} holds {min(others)}, wanted a new folder or a classifier's; name another")
    return target


def write_folder(target: Path, head: Head, described: Mapping[str, Any], policy: PruningPolicy | None = None) -> None:
    """Write all files of a folder that `check_folder` allowed, or none.

    classifier.json says what is ``described`` besides the head; the policy is the encoder's, if it has one.
    """
    from safetensors.numpy import save

    tensors = {"coef": head.coef, "intercept": head.intercept, "embeddings": head.embeddings, "codes": head.codes}
    tensors |= {} if head.names is None else {"names": head.names}
    data = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    values: dict[str, Any] = {"format": FORMAT, "version": VERSION, "tensors": sha256}
    values |= {"label_kind": "str" if head.classes.dtype.kind == "U" else "int", "classes": head.classes.tolist()}
    values |= {"converged": head.converged, **described}
    if head.rejection is not None:
        values["rejection"] = asdict(head.rejection)
    text = json.dumps(values, indent=2) + "\n"
    if len(text) > JSON_LIMIT:  # it is ASCII: `load` would refuse it
        raise InputError(
            f"{JSON_FILE} would have {len(text)} bytes, wanted at most {JSON_LIMIT}; leave the examples' texts out: "
            "save(folder, keep_texts=False), or `minitrans fit --no-keep-texts`"
        )
    arrays: dict[str, Callable[[Path, Path], object]] = {
        content_name("classifier", sha256): lambda path, like: write_file(path, data, like)
    }
    if policy is not None and policy.fitted is not None:
        arrays[content_name("pruning", policy.fitted.sha256)] = policy.fitted.save
    write_together(target / JSON_FILE, text.encode(), arrays, lambda held: _clean(target, held))


def _named(values: Mapping[str, Any]) -> set[str]:
    """The files of arrays that belong to a description."""
    fitted = (values["encoder"].get("pruning") or {}).get("fitted")
    if values["version"] < VERSION:
        return {"classifier.safetensors", "pruning.safetensors"}
    names = {content_name("classifier", values["tensors"])}
    if isinstance(fitted, Mapping) and isinstance(fitted.get("sha256"), str):
        names.add(content_name("pruning", fitted["sha256"]))
    return names


def _clean(target: Path, held: bool) -> None:
    """Remove what classifier.json does not name: the state before, and what killed processes left."""
    for kind in ("classifier", "pruning"):
        remove_stale(target, kind)
    file = target / JSON_FILE
    with suppress(ClassifierError):  # a broken one may still be mended
        named = _named(read_description(file)) if os.path.lexists(file) else set()
        remove_unnamed(target, _ARRAYS, named, held)


@dataclass(frozen=True)
class Saved:
    """What a folder holds, all of one save.

    Attributes:
        file: classifier.json, for messages.
        values: what it holds, checked.
        head: what was learned.
        policy: of the encoder; None where it has none, or was not asked for.
    """

    file: Path
    values: dict[str, Any]
    head: Head
    policy: PruningPolicy | None


def read_folder(folder: str | os.PathLike[str], with_policy: bool) -> Saved:
    """Read a folder that may be saved to at the same time.

    Raises:
        InputTypeError, InputError: the path cannot be one.
        ClassifierError: a file is missing, leads out of the folder, or holds anything that `save` would not write.
    """
    path = target_of(folder)

    def read() -> Saved:
        file = file_of(path, JSON_FILE)
        values = read_description(file)
        tensors = _read_tensors(path, values)
        if (texts := values.get("texts")) is not None:
            N = len(tensors["codes"])
            fine = type(texts) is list and all(type(text) is str for text in texts) and len(texts) == N
            _wanted(fine, file, f"texts is {reprlib.repr(texts)}", f"{N} texts, as many as there are examples, or null")
        names = tensors.pop("names", None)
        head = Head(
            classes=np.array(values["classes"], dtype=np.str_ if values["label_kind"] == "str" else np.int64),
            converged=values["converged"],
            rejection=None if values.get("rejection") is None else Rejection(**values["rejection"]),
            names=names,
            **tensors,
        )
        return Saved(file, values, head, _read_policy(path, values) if with_policy else None)

    return consistent(path, read)


def _wanted(ok: bool, file: Path, seen: str, wanted: str) -> None:
    if not ok:
        raise ClassifierError(f"{file}: {seen}, wanted {wanted}; save the classifier again")


def file_of(folder: Path, name: str) -> Path:
    """The path of a file that is there and lies in the folder."""
    path = folder / name
    try:
        is_file = path.is_file()
    except OSError as error:
        raise ClassifierError(f"cannot read {path}: {error}, wanted a folder that may be looked into") from error
    _wanted(is_file, path, "no such file", "a folder that FewShotClassifier.save wrote")
    _wanted(path.resolve().parent == folder.resolve(), path, f"it leads to {path.resolve()}", "a file in the folder")
    return path


def _is_share(seen: object) -> bool:
    return type(seen) is float and 0 <= seen <= 1


_Fields = Mapping[str, tuple[str, Callable[[Any], bool]]]  # name -> what is wanted, in words and as a check
_FIELDS: _Fields = {
    "format": (repr(FORMAT), lambda seen: seen == FORMAT),
    "version": (f"1 to {VERSION}", lambda seen: type(seen) is int and 1 <= seen <= VERSION),
    "label_kind": ("'str' or 'int'", lambda seen: seen in ("str", "int")),
    "classes": ("a list of at least one", lambda seen: type(seen) is list and bool(seen)),
    "C": ("a finite float above 0", lambda seen: type(seen) is float and 0 < seen < math.inf),
    "label_names": ("true or false", lambda seen: type(seen) is bool),
    "converged": ("true or false", lambda seen: type(seen) is bool),
    "encoder": ("an object", lambda seen: type(seen) is dict),
}
_FINITE = ("a finite float", lambda seen: type(seen) is float and math.isfinite(seen))
_COUNT = ("an integer of 64 bits, not negative", lambda seen: type(seen) is int and 0 <= seen < 2**63)
_SHARE = ("a float in 0..1", _is_share)
_SHARE_OR_NULL = ("a float in 0..1 or null", lambda seen: seen is None or _is_share(seen))
_REJECTION_FIELDS: _Fields = {
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
_STR_OR_NULL = ("str or null", lambda seen: isinstance(seen, str | None))
_ENCODER_FIELDS: _Fields = {
    **dict.fromkeys(("name_or_path", "path", "precision", "model_sha256"), _STR_OR_NULL),
    "pruning": ("dict or null", lambda seen: isinstance(seen, dict | None)),
    "identity": ("str, dict or null", lambda seen: isinstance(seen, str | dict | None)),
}


def read_description(file: Path) -> dict[str, Any]:
    """classifier.json, every field checked."""
    try:
        values = read_json(file)
    except ConfigError as error:
        raise ClassifierError(f"{error}; save the classifier again") from error
    _check_fields(values, _FIELDS, "", file)
    classes, kind = values["classes"], {"str": str, "int": int}[values["label_kind"]]
    for label in classes:
        if type(label) is not kind or not storable(label):  # in words only then: there may be a million
            _wanted(False, file, f"a class is {reprlib.repr(label)}", kind.__name__)
    size = 4 * len(classes) * max(map(len, classes)) if kind is str else 0
    seen = f"classes at the length of the longest take {size} bytes"
    _wanted(size <= CLASSES_LIMIT, file, seen, f"at most {CLASSES_LIMIT}")
    for a, b in pairwise(classes):
        if a >= b:
            _wanted(False, file, f"{reprlib.repr(b)} comes after {reprlib.repr(a)}", "classes sorted, each once")
    _check_fields(values["encoder"], _ENCODER_FIELDS, "encoder.", file)
    version, digest = values["version"], values.get("tensors")
    if version == 1:
        _wanted("rejection" not in values, file, "rejection is there in version 1", f"version {VERSION}")
    elif version == 2 or "rejection" in values:
        _check_rejection(values.get("rejection"), classes, kind, file)
    if version == VERSION:
        _wanted(is_sha256(digest), file, f"tensors is {reprlib.repr(digest)}", "a sha256 of 64 hexadecimal digits")
    return values


def _check_fields(values: Mapping[str, Any], fields: _Fields, prefix: str, file: Path) -> None:
    for key, (wanted, fits) in fields.items():
        _wanted(fits(values.get(key)), file, f"{prefix}{key} is {reprlib.repr(values.get(key))}", wanted)


def _check_rejection(seen: Any, classes: list[Any], kind: type, file: Path) -> None:
    _wanted(type(seen) is dict, file, f"rejection is {reprlib.repr(seen)}", "an object")
    unknown = seen.keys() ^ _REJECTION_FIELDS.keys()
    _wanted(not unknown, file, f"rejection has {sorted(seen)}", f"just {sorted(_REJECTION_FIELDS)}")
    _check_fields(seen, _REJECTION_FIELDS, "rejection.", file)
    label = seen["abstention"]
    fine = type(label) is kind and label not in classes
    _wanted(fine, file, f"rejection.abstention is {reprlib.repr(label)}", f"{kind.__name__}, and none of the classes")


def _read_tensors(folder: Path, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a description, every tensor checked before its values are read."""
    from safetensors import SafetensorError, deserialize

    plain = values["version"] < VERSION
    file = file_of(folder, "classifier.safetensors" if plain else content_name("classifier", values["tensors"]))
    try:
        data = file.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        _wanted(plain or sha256 == values["tensors"], file, f"its sha256 is {sha256}", f"{values.get('tensors')}")
        stored = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError) as error:
        raise ClassifierError(f"{file} is not safetensors ({error}), wanted a whole file; save it again") from error
    seen = {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in stored.items()}
    sizes = ((*seen.get(name, ("", ()))[1], 0, 0)[axis] for name, axis in (("codes", 0), ("coef", 1)))  # 0: refused
    K, (N, H) = len(values["classes"]), sizes
    wanted = {"coef": ("F32", (K, H)), "intercept": ("F32", (K,)), "names": ("F32", (K, H))}
    wanted |= {"embeddings": ("F32", (N, H)), "codes": ("I64", (N,))}
    tensors: dict[str, NDArray[Any]] = {}
    for name in sorted(seen.keys() | (wanted.keys() - {"names"})):
        _wanted(name in wanted, file, f"there is a tensor {name!r}", f"only {sorted(wanted)}")
        fine = seen.get(name) == wanted[name] and 0 not in wanted[name][1]
        _wanted(fine, file, f"{name} is {seen.get(name, 'missing')}", "{} {}".format(*wanted[name]))
        dtype, shape = wanted[name]
        tensors[name] = np.frombuffer(stored[name]["data"], "<f4" if dtype == "F32" else "<i8").reshape(shape)
        _wanted(bool(np.isfinite(tensors[name]).all()), file, f"{name} holds NaN or infinity", "finite numbers")
    used = np.unique(tensors["codes"])
    _wanted(np.array_equal(used, np.arange(K)), file, f"codes holds {reprlib.repr(used)}", f"each of 0..{K - 1}")
    return tensors


def _read_policy(folder: Path, values: Mapping[str, Any]) -> PruningPolicy | None:
    from minitrans.encoder.policy import PruningPolicy

    pruning, arrays = values["encoder"].get("pruning"), None
    if pruning is None:
        return None
    if (fitted := pruning.get("fitted")) is not None:
        sha256 = fitted.get("sha256") if isinstance(fitted, Mapping) else None
        plain = values["version"] < VERSION or not is_sha256(sha256)
        arrays = file_of(folder, "pruning.safetensors" if plain else content_name("pruning", str(sha256)))
    try:
        return PruningPolicy.from_dict(pruning, str(folder / JSON_FILE), arrays)
    except PolicyError as error:
        raise ClassifierError(f"{error}; pass load(folder, encoder)") from error
