"""What a name means: a folder, a known model, or a repository on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minitrans.errors import InputError, InputTypeError
from minitrans.hub.manifest import KnownModel, load_manifest

DEFAULT_MODEL = "all-MiniLM-L6-v2-int8"


_NAME = re.compile(r"[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?(/[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?)?", re.ASCII)


_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


_COMMIT = re.compile(r"[0-9a-f]{40}")


# The few BERT models that the hub keeps without an organisation; any other short name is sentence-transformers'.
_BARE_NAME = re.compile(r"(distil)?bert-(base|large)-(chinese|((german|multilingual)-)?(un)?cased)")


@dataclass(frozen=True)
class Wanted:
    """A name on the hub, a revision, and the known model whose digests apply to just this revision."""

    name: str
    revision: str | None
    known: KnownModel | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name} (revision {self.revision})"

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return self.name.replace("/", "--")


def known_models() -> tuple[KnownModel, ...]:
    """Return the models of the manifest, in its order.

    Raises:
        ConfigError: the manifest is broken.
    """
    return tuple(load_manifest().values())


def _looks_like_path(text: str) -> bool:
    return not _NAME.fullmatch(text) or "--" in text or ".." in text


def known_model(name: str) -> KnownModel | None:
    """The model of the manifest that a name or an alias of it means, whatever its case."""
    wanted = name.casefold()
    for model in load_manifest().values():
        if wanted in (model.name.casefold(), *(alias.casefold() for alias in model.aliases)):
            return model
    return None


def identify(name: str, revision: str | None) -> Wanted:
    """What a name means on the hub. InputError for one that cannot be a name there."""
    if _looks_like_path(name):
        raise InputError(f"{name!r} cannot be a name on the hub, wanted 'name' or 'organisation/name'")
    if not isinstance(revision, str | None):
        raise InputTypeError(f"revision is {type(revision).__name__}, wanted str or None")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(f"revision is {revision!r}, wanted a commit, branch or tag of the hub")
    known = known_model(name)
    if known is not None:
        pinned = revision in (None, known.revision)
        return Wanted(known.name, known.revision if pinned else revision, known if pinned else None)
    if "/" not in name and not _BARE_NAME.fullmatch(name):
        name = f"sentence-transformers/{name}"
    return Wanted(name, revision, None)
