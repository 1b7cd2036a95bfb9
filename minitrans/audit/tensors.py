"""Whether the weights of a model folder are sound, and the ones they should be; what is not is located."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minitrans.audit.checks import FOLDER, Check, judged, skipped
from minitrans.audit.digests import Digests, TensorDigest, WeightFile, differing, implausible
from minitrans.contents import WEIGHTS_FILE
from minitrans.errors import InputError, MinitransError, WeightsError
from minitrans.files import sha256_of
from minitrans.hub.resolve import find_local
from minitrans.models.config import EncoderConfig
from minitrans.models.folder import ModelFolder
from minitrans.models.identity import PROVENANCE
from minitrans.models.manifest import KnownModel, known_models
from minitrans.models.parameters import named_arrays, tensor_shapes
from minitrans.models.quantization import with_precision
from minitrans.models.weights import StoredTensor, canonical_name, convert, is_ignored, load_parameters, weight_files
from minitrans.words import counted

NO_ORIGINAL = "the float32 original is not on this machine"


@dataclass(frozen=True)
class Sources:
    """Other folders on this machine that know what a tensor should be.

    Attributes:
        copy: another copy of the same published model.
        original: the float32 model that an int8 one was made from.
        remedy: how to have the original, where it is not there.
    """

    copy: Path | None
    original: Path | None
    remedy: str

    @classmethod
    def find(cls, folder: Path, known: KnownModel | None, precision: str | None, given: Path | None) -> Sources:
        """Look for both.

        Args:
            folder: of the model.
            known: the published model that it is.
            precision: of its weights; None where that cannot be told.
            given: the original, as the user named it.

        Raises:
            InputError: the original that was given is not what the model was made from.
            ModelError: it is no model.
        """
        copy = None if known is None else _local(known.name)
        if copy is not None and copy.resolve() == folder.resolve():
            copy = None
        if precision != "int8":
            if given is not None:
                raise InputError(f"{folder} is a {precision or 'broken'} model, wanted an int8 one beside an original")
            return cls(copy, None, "")
        name, wanted = _made_from(folder, known)
        remedy = f"`minitrans pull {name}`, or --original FOLDER" if name else "--original FOLDER"
        original = given if given is not None or name is None else _local(name)
        if original is not None and wanted is not None:
            try:
                seen = {file.name: sha256_of(file) for file in weight_files(original)}
            except MinitransError:
                if given is not None:
                    raise
                seen = None
            if seen != wanted and given is not None:
                made = f"the weights that {folder} was made from"
                raise InputError(f"{given} holds {seen}, wanted {dict(wanted)}, {made}; give another original")
            if seen != wanted:
                original = None
        return cls(copy, original, remedy)

    @cached_property
    def requantised(self) -> Mapping[str, NDArray[np.float32] | NDArray[np.int8]] | None:
        """What `minitrans quantize` makes of the original's tensors, by name; None without an original."""
        return None if self.original is None else named_arrays(with_precision(load_parameters(self.original), "int8"))

    @cached_property
    def _copied(self) -> dict[str, bytes]:
        if self.copy is None:
            return {}
        files = [WeightFile.read(path, path.name) for path in weight_files(self.copy)]
        return {name: tensor.data for file in files for name, tensor in file.tensors.items()}

    def bytes_of(self, name: str, sha256: str) -> bytes | None:
        """The bytes of a tensor with this digest, if one of the folders has them."""
        candidates = []
        try:
            candidates.append(self._copied.get(name))
            made = (self.requantised or {}).get(name)
            candidates.append(None if made is None else made.tobytes())
        except MinitransError:
            pass  # a folder that cannot be read is no help
        fitting = (each for each in candidates if each is not None and hashlib.sha256(each).hexdigest() == sha256)
        return next(fitting, None)


def _local(name: str) -> Path | None:
    try:
        return find_local(name)
    except MinitransError:
        return None


def _made_from(folder: Path, known: KnownModel | None) -> tuple[str | None, Mapping[str, str] | None]:
    """Name and weight digests of what an int8 folder was made from: as the manifest or its provenance says."""
    if known is not None and known.derived_from is not None:
        source = next((each for each in known_models() if each.name == known.derived_from), None)
        digests = None if source is None else {WEIGHTS_FILE: source.files.get(WEIGHTS_FILE, "")}
        return known.derived_from, digests
    try:
        said = ModelFolder(folder).read(PROVENANCE).get("from")
    except MinitransError:
        said = None
    said = said if isinstance(said, dict) else {}
    name, digests = said.get("model"), said.get("weights_sha256")
    return name if isinstance(name, str) else None, digests if isinstance(digests, dict) else None


def read_weights(folder: Path) -> tuple[list[WeightFile], list[str]]:
    """The weight files that can be read, and what is wrong with the others."""
    try:
        paths = weight_files(folder)
    except MinitransError as error:
        return [], [str(error)]
    weights, faults = [], []
    for path in paths:
        try:
            weights.append(WeightFile.read(path, path.relative_to(folder).as_posix()))
        except WeightsError as error:
            faults.append(str(error))
    return weights, faults


def tensor_checks(
    config: EncoderConfig | None,
    precision: str | None,
    weights: Sequence[WeightFile],
    unread: Sequence[str],
    digests: Sequence[Digests],
    sources: Sources,
) -> Iterator[Check]:
    """Every check of the weights.

    Args:
        config, precision: what they should be; None where the configuration cannot be read.
        weights: the weight files that could be read.
        unread: what is wrong with the others.
        digests: what to compare with.
        sources: other folders, to tell which elements of a tensor are wrong.
    """
    yield _sound(config, precision, weights, unread)
    recorded = [each for each in digests if each.tensors]
    for each in recorded:
        yield _compared(each, weights, sources, "tensor digests" if len(recorded) == 1 else f"tensors, {each.label}")
    if not recorded:
        yield _plausible(weights)
    if precision == "int8":
        yield _requantised(weights, sources)


def _sound(
    config: EncoderConfig | None, precision: str | None, weights: Sequence[WeightFile], unread: Sequence[str]
) -> Check:
    """Every fault of every tensor, by the very checks that loading makes, which stops at the first."""
    wanted = "as configured, finite, scales above 0"
    if config is None or precision is None:
        return skipped(FOLDER, "tensors", "the configuration does not say what they should be", "", unread)
    stored: dict[str, StoredTensor] = {}
    faults = list(unread)
    for file in weights:
        for name, tensor in file.tensors.items():
            if (canonical := canonical_name(name)) in stored:
                faults.append(f"{file.name}: tensor {name!r} is also in {stored[canonical].file.name}, wanted it once")
            stored[canonical] = tensor
    shapes = {name: (kind, shape) for name, kind, shape in tensor_shapes(config, precision)}
    missing = [name for name in shapes if name not in stored] if weights else []
    faults += [f"tensor {name!r} is missing, wanted {list(shapes[name][1])}" for name in missing]
    sound = 0
    for name in shapes.keys() & stored.keys():
        kind, shape = shapes[name]
        try:
            convert(name, stored[name], kind, shape)
            sound += 1
        except WeightsError as error:
            faults.append(str(error))
    for name in sorted(set(stored) - set(shapes)):
        if not is_ignored(name):
            faults.append(f"{stored[name].file}: tensor {name!r} is unexpected, config.json speaks of none")
    measured = f"{sound} of {counted(len(shapes), 'tensor')}"
    return judged(FOLDER, "tensors", not faults, measured, wanted, faults, {"sound": sound, "wanted": len(shapes)})


def _compared(digests: Digests, weights: Sequence[WeightFile], sources: Sources, title: str) -> Check:
    """Each tensor against its digest; one that differs is located as closely as can be."""
    detail: list[str] = []
    equal = wanted = 0
    by_name = {file.name: file for file in weights}
    for name, tensors in digests.tensors.items():
        wanted += len(tensors)
        file = by_name.pop(name, None)
        if file is None:
            detail.append(f"{name}: not there, or not readable")
            continue
        for tensor, digest in tensors.items():
            found = _differs(file, tensor, digest, sources)
            equal += not found
            detail += found
        detail += [f"{file.place(each)}: not in {digests.label}" for each in file.tensors if each not in tensors]
    detail += [f"{name}: not in {digests.label}" for name in by_name]
    measured = f"{equal} of {counted(wanted, 'tensor')}"
    return judged(
        FOLDER, title, not detail, measured, f"as in {digests.label}", detail, {"equal": equal, "compared": wanted}
    )


def _differs(file: WeightFile, name: str, digest: TensorDigest, sources: Sources) -> list[str]:
    """Nothing for a tensor that is as it should be; else where it lies, and as far as can be told, what is wrong."""
    if name not in file.tensors:
        return [f"{file.name}: {name} is missing, wanted {digest.dtype} {list(digest.shape)}"]
    tensor = file.tensors[name]
    seen = TensorDigest.of(tensor)
    if seen == digest:
        return []
    if (seen.dtype, seen.shape) != (digest.dtype, digest.shape):
        return [f"{file.place(name)}: wanted {digest.dtype} {list(digest.shape)}"]
    right = sources.bytes_of(name, digest.sha256)
    lines = list(implausible(name, tensor) if right is None else differing(tensor, right, file.begins[name]))
    if right is None and not lines:
        beside = f"or the original: {sources.remedy}" if sources.remedy else "of the model"
        lines = [f"which elements differ can be told only beside another copy {beside}"]
    return _located(file, name, [f"sha256 {seen.sha256[:16]}.., wanted {digest.sha256[:16]}..", *lines])


def _located(file: WeightFile, name: str, lines: Iterable[str]) -> list[str]:
    return [file.place(name), *(f"  {line}" for line in lines)]


def _plausible(weights: Sequence[WeightFile]) -> Check:
    if not weights:
        return skipped(FOLDER, "plausible values", "the weights cannot be read")
    found: list[str] = []
    for file in weights:
        for name, tensor in file.tensors.items():
            if lines := list(implausible(name, tensor)):
                found += _located(file, name, lines)
    hint = "finds gross damage only: small changes, and most of int8 weights, show in digests alone"
    measured = f"{sum(len(file.tensors) for file in weights)} tensors looked at"
    wanted = "no value far outside its tensor"
    return judged(FOLDER, "plausible values", not found, measured, wanted, [*found, hint])


def _requantised(weights: Sequence[WeightFile], sources: Sources) -> Check:
    """An int8 model is a function of its original: each tensor can be made again."""
    title = "as quantised"
    try:
        right = sources.requantised
    except MinitransError as error:
        why = f"the original cannot be read: {error}"
        return skipped(FOLDER, title, why, sources.remedy, reason="the original cannot be read")
    if right is None:
        return skipped(FOLDER, title, NO_ORIGINAL, sources.remedy, reason="no original here")
    detail: list[str] = []
    equal = 0
    for file in weights:
        for name, tensor in file.tensors.items():
            made = right.get(name)
            if made is None or made.shape != tensor.shape or made.nbytes != len(tensor.data):
                detail.append(f"{file.place(name)}: the original has no such tensor")
            elif made.tobytes() != tensor.data:
                detail += _located(file, name, differing(tensor, made.tobytes(), file.begins[name]))
            else:
                equal += 1
    measured = f"{equal} of {counted(len(right), 'tensor')}"
    wanted = "what quantising the original gives"
    return judged(FOLDER, title, equal == len(right) and not detail, measured, wanted, detail, {"equal": equal})
