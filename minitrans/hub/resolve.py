"""From a model's name to a folder on this machine.

In this order: the bundled model, a local folder, our own cache of mirrored models, the hub's cache, the hub, and the
mirrors of known models. The first three need no network and do not import huggingface_hub. Files of a known model
are checked against published digests before they are used for the first time; what differs is never used.
"""

from __future__ import annotations

import os
from pathlib import Path

from minitrans.arguments import check_choice
from minitrans.contents import WEIGHTS_FILE
from minitrans.errors import (
    DigestError,
    DownloadError,
    InputError,
    InputTypeError,
    MinitransError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from minitrans.files import bundled
from minitrans.hub.cache import MIRRORED, Seal, cached, caches, constants_of_the_hub, expanded
from minitrans.hub.download import fetch_from_hub
from minitrans.hub.mirrors import fetch
from minitrans.hub.names import DEFAULT_MODEL, Wanted, identify, looks_like_path
from minitrans.models.manifest import known_model

# A folder with one of these is meant to be a model, and is refused for what it is, not for its name.
_SIGNS = ("config.json", "modules.json", WEIGHTS_FILE, "adapter_config.json", "adapter_model.safetensors")


def resolve(
    name_or_path: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Find the folder of a model, downloading it if need be.

    Args:
        name_or_path: a local folder, a name on the hub, or None for the bundled default. A name without organisation
            means ``sentence-transformers/<name>``, as there.
        revision: a commit, branch or tag of the hub; None is the pinned commit of a known model, else ``main``. Not
            used for a local folder.
        cache_folder: in place of the hub's cache; our own cache is then ``<cache_folder>/minitrans``.
        local_files_only: never use the network, as if ``HF_HUB_OFFLINE`` were set.
        token: for private models, as in huggingface_hub.

    Returns:
        A folder that holds the model. A copy that is cached already is used as it is: `pull` with ``force`` renews it.

    Raises:
        ModelNotFoundError: no such folder or name, or not on this machine and no network may be used.
        DigestError: a file of a known model is not the published one.
        DownloadError: neither the hub nor a mirror could deliver.
        UnsupportedModelError: the hub has the model, but not as safetensors.
        InputError, InputTypeError: a name, path or revision that cannot be one.
    """
    found = _without_network(name_or_path, revision)
    if found is not None:
        return found
    wanted = identify(str(name_or_path), revision, cache_folder, token)
    offline = _offline(local_files_only)
    notes = [f"no {_shown(Path(str(name_or_path)))}"]
    wrong = False
    try:
        folder, tried = cached(wanted)
    except DigestError as error:
        if offline:
            raise
        folder, tried, wrong = None, [str(error)], True
    if folder is not None:
        return folder
    if offline:
        raise ModelNotFoundError(
            f"{wanted} is not on this machine, and {offline} forbids the network. Looked in:{_lines(notes + tried)}\n"
            f"Run `minitrans pull {wanted.name}` while the network may be used, or give the path of a model folder."
        )
    return _download(wanted, "auto", notes + tried, force=wrong, progress=False)


def find_local(
    name_or_path: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
) -> Path | None:
    """Find the folder of a model on this machine, as `resolve` does; never uses the network.

    Returns:
        The folder, or None if a model of that name is not here.

    Raises:
        ModelNotFoundError: a path that does not exist.
        DigestError: the only copy here has a file that is not the published one.
        InputError, InputTypeError: a name, path or revision that cannot be one.
    """
    found = _without_network(name_or_path, revision)
    return found if found is not None else cached(identify(str(name_or_path), revision, cache_folder))[0]


def pull(
    name: str,
    *,
    revision: str | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    source: str = "auto",
    force: bool = False,
    progress: bool = False,
) -> Path:
    """Bring a model of the hub to this machine, from the hub or else from a mirror.

    Args:
        name: a name on the hub, or a short name.
        revision, cache_folder, token: as for `resolve`.
        source: ``"hub"``, ``"mirror"``, or ``"auto"`` for one after the other.
        force: fetch again what is here already.
        progress: show progress bars on standard error.

    Returns:
        The model's folder.

    Raises:
        DownloadError: no source could deliver; the message lists each with its reason, and the remedy.
        DigestError: the same, and at least one source delivered a file that is not the published one.
        ModelNotFoundError: the hub knows no such model or revision.
        UnsupportedModelError: the hub has the model, but not as safetensors.
        InputError, InputTypeError: an argument that cannot be used.
    """
    check_choice("source", source, ("auto", "hub", "mirror"))
    if not isinstance(name, str):
        raise InputTypeError(f"name is {type(name).__name__}, wanted str: the name of a model on the hub")
    carried = _bundled_folder(name, revision)
    if carried is not None:
        return carried
    wanted = identify(name, revision, cache_folder, token)
    tried: list[str] = []
    if not force:
        try:
            folder, tried = cached(wanted)
        except DigestError as error:
            folder, tried, force = None, [str(error)], True
        if folder is not None:
            return folder
    if offline := _offline():
        raise DownloadError(f"{wanted} cannot be pulled: {offline} forbids the network. Unset it and pull again.")
    return _download(wanted, source, tried, force=force, progress=progress)


def _without_network(name_or_path: str | os.PathLike[str] | None, revision: str | None) -> Path | None:
    """The folder of None, of a path or of a bundled name; None for any other name."""
    if name_or_path is None:
        return _bundled_folder(DEFAULT_MODEL, revision)
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputTypeError(f"the model is {type(name_or_path).__name__}, wanted str, a path or None")
    text = os.fspath(name_or_path)
    if not isinstance(text, str):
        raise InputTypeError(f"the model is a path of {type(text).__name__}, wanted one of str")
    is_name = isinstance(name_or_path, str) and not looks_like_path(text)
    path = expanded(text, "the model")
    why = ""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # too long to be a path, not to be looked at, or a NUL in it
        is_folder = is_file = False
        why = f" ({getattr(error, 'strerror', None) or error})"
    if is_folder and text:
        if is_name and not any((path / each).exists() for each in _SIGNS):
            raise ModelNotFoundError(
                f"{_shown(path)} is a folder without a model (no config.json, no modules.json), and a folder comes "
                f"before the name {text!r}. Rename or remove it, or work in another folder, to have the model of that "
                "name; or give the folder that holds a model."
            )
        return path.absolute()
    if is_file:
        otherwise = f"; or rename the file, or work in another folder, to have the model of the name {text!r}"
        otherwise = otherwise if is_name else ""
        raise ModelNotFoundError(
            f"{_shown(path)} is a file. Give the folder that holds the model's files: {_shown(path.parent)}{otherwise}"
        )
    if not is_name:
        raise ModelNotFoundError(
            f"There is no model folder {text!r:.300}: tried {_shown(path)}{why}, and it cannot be a name on the hub "
            "('name' or 'organisation/name'). Check the path, or give a name."
        )
    return _bundled_folder(text, revision)


def _shown(path: Path) -> str:
    """A path for messages, in full unless the working folder is gone."""
    try:
        path = path.absolute()
    except OSError:
        return f"{str(path)!r:.300} in the working folder, which is gone"
    return str(path) if str(path).isprintable() and len(str(path)) < 300 else f"{str(path)!r:.300}"


def _bundled_folder(name: str, revision: str | None) -> Path | None:
    folder: str | None = DEFAULT_MODEL
    if name != DEFAULT_MODEL:  # the default works without reading the manifest
        known = known_model(name)
        folder = known.bundled if known else None
    if folder is None:
        return None
    if revision is not None:
        raise InputError(f"revision is {revision!r}, but {name} travels with minitrans and has no others: leave it out")
    return bundled(f"weights/{folder}")


def _offline(local_files_only: bool = False) -> str | None:
    """What forbids the network, or None."""
    if local_files_only:
        return "local_files_only=True"
    constants = constants_of_the_hub()
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # huggingface_hub honours both, but as of its import
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{variable}={os.environ[variable]}"
    return "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None


def _lines(items: list[str]) -> str:
    return "".join(f"\n  - {item}" for item in items)


def _download(wanted: Wanted, source: str, tried: list[str], *, force: bool, progress: bool) -> Path:
    """From the hub, or else from a mirror; the error of last resort lists what was ``tried``."""
    own, _ = caches(wanted.cache_folder)
    failures: list[Exception] = []
    lines = list(tried)
    if source != "mirror":
        try:
            return fetch_from_hub(wanted, force=force, progress=progress)
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever the hub's client and its HTTP library may raise
            failures.append(error)
            lines.append(f"the hub: {_reason(error)}")
    if source != "hub" and not (wanted.known and wanted.known.mirrors):
        lines.append("mirrors: none is known for this model and revision")
    elif source != "hub" and wanted.known:
        for mirror in wanted.known.mirrors:
            target = own / wanted.folder / str(wanted.revision)
            try:
                fetch(wanted.known, mirror, target, replace=force, progress=progress)
                Seal(target.with_name(f"{target.name}{MIRRORED}"), target, wanted.known).check(whole=True)
                return target
            except (MinitransError, OSError) as error:
                failures.append(error)
                lines.append(f"{mirror}: {_reason(error)}")
    kind: type[MinitransError] = DownloadError
    if any(isinstance(error, DigestError) for error in failures):
        kind = DigestError
    elif failures and all(isinstance(error, ModelNotFoundError) for error in failures):
        kind = ModelNotFoundError
    raise kind(
        f"{wanted} could not be fetched:{_lines(lines)}\n"
        "Check the name, the network (proxy, HF_ENDPOINT, HF_TOKEN, pip's index) and whether the cache can be written "
        "(HF_HOME, or cache_folder names another), or copy the model's folder from another machine and give its path. "
        "The bundled model needs no network: SentenceEncoder() without a name."
    ) from (failures[0] if failures else None)


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, MinitransError) else f"{type(error).__name__}: {text.splitlines()[0][:300]}"
