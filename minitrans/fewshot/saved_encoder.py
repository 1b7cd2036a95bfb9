"""The encoder of a saved classifier: how it is described, found again, and told from others."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitrans.errors import ClassifierError, InputError, MinitransError, ModelNotFoundError
from minitrans.fewshot.saved import Saved
from minitrans.files import sha256_of
from minitrans.models.identity import Identity

if TYPE_CHECKING:
    from minitrans.sentences.sentence_encoder import SentenceEncoder


def describe_encoder(encoder: object, target: Path) -> dict[str, Any]:
    """What classifier.json in the folder ``target`` says of an encoder, as far as that offers it."""
    policy, identity = getattr(encoder, "pruning", None), identity_of(encoder)
    described = {key: getattr(encoder, key, None) for key in ("name_or_path", "precision")}
    described["identity"] = identity.to_dict() if isinstance(identity, Identity) else identity
    described["pruning"] = None if policy is None else policy.to_dict()
    name = described["name_or_path"]
    if isinstance(name, str) and Path(name).is_absolute() and Path(name).is_dir():
        with suppress(ValueError):  # on another drive: it cannot be moved together with the classifier
            described["path"] = Path(os.path.relpath(os.path.realpath(name), target)).as_posix()
    return described


def identity_of(encoder: object) -> Identity | str | None:
    """The identity of a `SentenceEncoder`; of another encoder its ``identity`` or ``model_sha256``, if any."""
    identity = getattr(encoder, "identity", None)
    if isinstance(identity, Identity):
        return identity
    names = (identity, getattr(encoder, "model_sha256", None))
    return next((name for name in names if isinstance(name, str)), None)


def check_identity(saved: Saved, encoder: object) -> None:
    """ClassifierError if it is not the encoder of fit, as far as both say what they are."""
    described = saved.values["encoder"]
    wanted, seen = described.get("identity"), identity_of(encoder)
    if wanted is None and described.get("model_sha256") is not None:  # of versions 1 and 2
        wanted, seen = described["model_sha256"], _weights_sha256(encoder)
    if wanted is None or seen is None:
        return
    if not isinstance(wanted, str):
        try:
            wanted = Identity.from_dict(wanted)
        except InputError as error:
            raise ClassifierError(f"{saved.file}: {error}; save the classifier again") from error
    if wanted == seen:
        return
    if isinstance(wanted, Identity) and isinstance(seen, Identity):
        differs = f"has another {wanted.difference(seen)}, wanted the"
    else:
        own, other = (each.sha256 if isinstance(each, Identity) else each for each in (seen, wanted))
        differs = f"is {own}, wanted {other}, the"
    name, given = described.get("name_or_path"), getattr(encoder, "name_or_path", encoder)
    raise ClassifierError(
        f"{saved.file}: the encoder {given} {differs} encoder {name!r} of fit; load that, or fit again"
    )


def _weights_sha256(encoder: object) -> str | None:
    from minitrans.models.weights import weight_files
    from minitrans.sentences.sentence_encoder import SentenceEncoder

    if not isinstance(encoder, SentenceEncoder):
        seen = identity_of(encoder)
        return seen if isinstance(seen, str) else None
    digests = [sha256_of(file) for file in weight_files(encoder.folder)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def saved_encoder(
    saved: Saved, named: str | os.PathLike[str] | None = None, local_files_only: bool = False
) -> SentenceEncoder:
    """The encoder of a saved classifier: the one that is ``named``, or else the one that it describes.

    Raises:
        ClassifierError: none is described, or it is another one now.
        ModelNotFoundError, DownloadError: it cannot be found.
    """
    from minitrans.sentences.sentence_encoder import SentenceEncoder

    def load(name: str | os.PathLike[str]) -> SentenceEncoder:
        precision = described.get("precision") or "auto"
        encoder = SentenceEncoder(name, pruning=saved.policy, precision=precision, local_files_only=local_files_only)
        check_identity(saved, encoder)
        return encoder

    described = saved.values["encoder"]
    name, path = described.get("name_or_path"), described.get("path")
    if named is not None:
        return load(named)
    if name is None or (described.get("identity") is None and described.get("model_sha256") is None):
        key = "name_or_path" if name is None else "identity"
        raise ClassifierError(
            f"{saved.file} does not identify its encoder, wanted encoder.{key}; pass load(folder, encoder)"
        )
    if path is None and not Path(name).is_absolute():
        return load(name)
    beside = [] if path is None else [os.path.normpath(saved.file.parent.resolve() / path)]
    tried: list[str] = []
    found = False
    for place in dict.fromkeys([*beside, name]):
        if not Path(place).is_dir():
            tried.append(f"{place}: no such folder")
            continue
        try:
            return load(place)
        except MinitransError as error:
            tried.append(f"{place}: {error}")
            found = True
    remedy = "put the model there, or name it: load(folder, encoder=MODEL), `minitrans predict --model MODEL`"
    message = f"{saved.file}: the model of its encoder is not found ({'; '.join(tried)}); {remedy}"
    raise ClassifierError(message) if found else ModelNotFoundError(message)
