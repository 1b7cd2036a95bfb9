"""What a name means: a folder, a known model, or a repository on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from minitrans.errors import InputError, InputTypeError
from minitrans.models.manifest import KnownModel, known_model

DEFAULT_MODEL = "all-MiniLM-L6-v2-int8"

COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?(/[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?)?", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
# The few BERT models that the hub keeps without an organisation; any other short name is sentence-transformers'.
_BARE_NAME = re.compile(r"(distil)?bert-(base|large)-(chinese|((german|multilingual)-)?(un)?cased)")


@dataclass(frozen=True)
class Wanted:
    """Which model is wanted, and how to get at it.

    Attributes:
        name: on the hub.
        revision: a commit, branch or tag; None is ``main``.
        known: the model of the manifest whose digests apply to just this revision, or None.
        cache_folder: in place of the hub's cache.
        token: for private models.
    """

    name: str
    revision: str | None
    known: KnownModel | None
    cache_folder: str | os.PathLike[str] | None = None
    token: str | bool | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name} (revision {self.revision})"

    @property
    def folder(self) -> str:
        """The name of its folder in a cache."""
        return self.name.replace("/", "--")


def looks_like_path(text: str) -> bool:
    """Whether a text cannot be a name on the hub."""
    return not _NAME.fullmatch(text) or "--" in text or ".." in text


def identify(
    name: str,
    revision: str | None,
    cache_folder: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Wanted:
    """What a name means on the hub. InputError for one that cannot be a name there."""
    if looks_like_path(name):
        raise InputError(f"{name!r} cannot be a name on the hub, wanted 'name' or 'organisation/name'")
    if not isinstance(revision, str | None):
        raise InputTypeError(f"revision is {type(revision).__name__}, wanted str or None")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(f"revision is {revision!r}, wanted a commit, branch or tag of the hub")
    known = known_model(name)
    if known is not None:
        pinned = revision in (None, known.revision)
        revision = known.revision if pinned else revision
        return Wanted(known.name, revision, known if pinned else None, cache_folder, token)
    if "/" not in name and not _BARE_NAME.fullmatch(name):
        name = f"sentence-transformers/{name}"
    return Wanted(name, revision, None, cache_folder, token)
