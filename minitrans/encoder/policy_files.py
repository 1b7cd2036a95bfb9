"""The files of pruning policies: those that travel with minitrans, and which arrays belong to a JSON file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from minitrans.contents import JSON_LIMIT, read_json
from minitrans.errors import ConfigError, ModelNotFoundError
from minitrans.files import bundled, is_sha256, remove_stale, remove_unnamed, sha256_of
from minitrans.together import content_name

DEFAULT = "default"  # the name of PruningPolicy()
SHIPPED = "weights/policies"


def shipped_policies() -> tuple[str, ...]:
    """Names of the policies that travel with minitrans, for all-MiniLM-L6-v2."""
    try:
        return _names_in(bundled(SHIPPED))
    except ModelNotFoundError:
        return ()


@lru_cache(maxsize=4)  # a call of `encode` may name its policy
def _names_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def shipped_file(name: str) -> Path:
    """The JSON file of one of `shipped_policies`."""
    return bundled(f"{SHIPPED}/{name}.json")


def arrays_of(path: Path, values: Mapping[str, Any] | None = None) -> Path:
    """The file of the fitted arrays of a policy file, which holds ``values``; None reads them.

    It is policy-<digest>.safetensors, or policy.safetensors as for the policies that travel with minitrans.
    """
    fitted = (read_json(path) if values is None else values).get("fitted")
    sha256 = fitted.get("sha256") if isinstance(fitted, Mapping) else None
    plain = path.with_suffix(".safetensors")
    if not is_sha256(sha256):
        return plain
    named = path.with_name(content_name(path.stem, sha256))
    return plain if plain.exists() and not named.exists() else named


def arrays_in_use(path: Path) -> Path | None:
    """The arrays of a policy that is about to be replaced, if it has any."""
    try:
        arrays = arrays_of(path)
        return arrays if sha256_of(arrays).encode() in path.read_bytes() else None
    except (ConfigError, OSError):
        return None


def remove_old_arrays(path: Path, before: Path | None, held: bool) -> None:
    """Remove the arrays that no policy of this name uses any more, and what killed processes left of such files."""
    stem = path.stem
    remove_stale(path.parent, f"{stem}-")
    names = re.compile(re.escape(stem) + r"-[0-9a-f]{16}\.safetensors")
    named = set()
    with suppress(OSError):
        found = [each for each in path.parent.iterdir() if each.name.startswith(stem) and each.is_file()]
        # Files of another ending may be policies too, such as policy.old.
        policies = [each for each in found if each.stem == stem and each.suffix != ".safetensors"]
        texts = b"".join(each.read_bytes() for each in policies if each.stat().st_size <= JSON_LIMIT)
        for each in found:
            if names.fullmatch(each.name) or each == before:
                sha256 = sha256_of(each)
                own = each == before or each.name == content_name(stem, sha256)  # not just such a name
                if sha256.encode() in texts or not own:
                    named.add(each.name)
        if before is not None and before.name not in named:
            names = re.compile(f"{names.pattern}|{re.escape(before.name)}")
        remove_unnamed(path.parent, names, named, held)
