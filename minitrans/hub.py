"""From a model's name to a folder on this machine.

In this order: the bundled model, a local folder, our own cache of mirrored models, the hub's cache, the hub, and the
mirrors of known models. The first three need no network and do not import huggingface_hub. Files of a known model
are checked against published digests before they are used for the first time; what differs is never used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minitrans.errors import (
    DigestError,
    DownloadError,
    InputError,
    InputTypeError,
    MinitransError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from minitrans.manifest import KnownModel, Seal, load_manifest, missing_files, verify
from minitrans.mirror import fetch
from minitrans.resources import bundled

if TYPE_CHECKING:
    from tqdm.auto import tqdm

__all__ = ["DEFAULT_MODEL", "KnownModel", "find_local", "known_models", "load_manifest", "pull", "resolve", "verify"]

DEFAULT_MODEL = "all-MiniLM-L6-v2-int8"

# What an encoder reads. Everything else on the hub (other frameworks' weights, training logs) stays there.
ALLOW_PATTERNS = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*/config.json",
)

HUB_SECONDS = 5.0  # until the hub's first answer; where it is blocked, the mirror should not have to wait longer

_NAME = re.compile(r"[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?(/[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?)?", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The few BERT models that the hub keeps without an organisation; any other short name is sentence-transformers'.
_BARE_NAME = re.compile(r"(distil)?bert-(base|large)-(chinese|((german|multilingual)-)?(un)?cased)")

T = TypeVar("T")


@dataclass(frozen=True)
class _Wanted:
    """A name on the hub, a revision, and the known model whose digests apply to just this revision."""

    name: str
    revision: str | None
    known: KnownModel | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name} (revision {self.revision})"

    @property
    def folder(self) -> str:
        return self.name.replace("/", "--")


def known_models() -> tuple[KnownModel, ...]:
    """Return the models of the manifest, in its order.

    Raises:
        ConfigError: the manifest is broken.
    """
    return tuple(load_manifest().values())


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
    wanted = _identify(str(name_or_path), revision)
    offline = _offline(local_files_only)
    notes = [f"no {Path(str(name_or_path)).absolute()}"]
    try:
        folder, tried = _cached(wanted, cache_folder)
    except DigestError as error:
        if offline:
            raise
        folder, tried = None, [str(error)]
    if folder is not None:
        return folder
    if offline:
        raise ModelNotFoundError(
            f"{wanted} is not on this machine, and {offline} forbids the network. Looked in:{_lines(notes + tried)}\n"
            f"Run `minitrans pull {wanted.name}` while the network may be used, or give the path of a model folder."
        )
    return _download(wanted, cache_folder, token, "auto", notes + tried, force=False, progress=False)


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
    return found if found is not None else _cached(_identify(str(name_or_path), revision), cache_folder)[0]


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
    if source not in ("auto", "hub", "mirror"):
        raise InputError(f"source is {source!r}, wanted 'auto', 'hub' or 'mirror'")
    if not isinstance(name, str):
        raise InputTypeError(f"name is {type(name).__name__}, wanted str: the name of a model on the hub")
    carried = _bundled_folder(name, revision)
    if carried is not None:
        return carried
    wanted = _identify(name, revision)
    tried: list[str] = []
    if not force:
        try:
            folder, tried = _cached(wanted, cache_folder)
        except DigestError as error:
            folder, tried = None, [str(error)]
        if folder is not None:
            return folder
    if offline := _offline():
        raise DownloadError(f"{wanted} cannot be pulled: {offline} forbids the network. Unset it and pull again.")
    return _download(wanted, cache_folder, token, source, tried, force=force, progress=progress)


def _without_network(name_or_path: str | os.PathLike[str] | None, revision: str | None) -> Path | None:
    """The folder of None, of a path or of a bundled name; None for any other name."""
    if name_or_path is None:
        return _bundled_folder(DEFAULT_MODEL, revision)
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputTypeError(f"the model is {type(name_or_path).__name__}, wanted str, a path or None")
    text = str(name_or_path)
    path = Path(text).expanduser().absolute()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # too long to be a path
        is_folder = is_file = False
    if is_folder and text:
        return path
    if is_file:
        raise ModelNotFoundError(f"{path} is a file. Give the folder that holds the model's files: {path.parent}")
    if isinstance(name_or_path, os.PathLike) or _looks_like_path(text):
        raise ModelNotFoundError(
            f"There is no model folder {text!r}: tried {path}, and it cannot be a name on the hub "
            "('name' or 'organisation/name'). Check the path, or give a name."
        )
    return _bundled_folder(text, revision)


def _looks_like_path(text: str) -> bool:
    return not _NAME.fullmatch(text) or "--" in text or ".." in text


def _bundled_folder(name: str, revision: str | None) -> Path | None:
    folder: str | None = DEFAULT_MODEL
    if name != DEFAULT_MODEL:  # the default works without reading the manifest
        known = _known(name)
        folder = known.bundled if known else None
    if folder is None:
        return None
    if revision is not None:
        raise InputError(f"revision is {revision!r}, but {name} travels with minitrans and has no others: leave it out")
    return bundled(f"weights/{folder}")


def _known(name: str) -> KnownModel | None:
    wanted = name.casefold()
    for model in load_manifest().values():
        if wanted in (model.name.casefold(), *(alias.casefold() for alias in model.aliases)):
            return model
    return None


def _identify(name: str, revision: str | None) -> _Wanted:
    if _looks_like_path(name):
        raise InputError(f"{name!r} cannot be a name on the hub, wanted 'name' or 'organisation/name'")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(f"revision is {revision!r}, wanted a commit, branch or tag of the hub")
    known = _known(name)
    if known is not None:
        pinned = revision in (None, known.revision)
        return _Wanted(known.name, known.revision if pinned else revision, known if pinned else None)
    if "/" not in name and not _BARE_NAME.fullmatch(name):
        name = f"sentence-transformers/{name}"
    return _Wanted(name, revision, None)


def _offline(local_files_only: bool = False) -> str | None:
    """What forbids the network, or None."""
    if local_files_only:
        return "local_files_only=True"
    from huggingface_hub import constants

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # huggingface_hub honours both, but as of its import
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{variable}={os.environ[variable]}"
    return "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None


def _caches(cache_folder: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    """Our own cache and the hub's."""
    if cache_folder is not None:
        folder = Path(cache_folder).expanduser()
        return folder / "minitrans", folder
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE, "minitrans"), Path(constants.HF_HUB_CACHE)


def _cached(wanted: _Wanted, cache_folder: str | os.PathLike[str] | None) -> tuple[Path | None, list[str]]:
    """The cached folder, or None and where it was looked for. DigestError if the only complete copy is a wrong one."""
    own, hub = _caches(cache_folder)
    tried: list[str] = []
    wrong: DigestError | None = None
    if wanted.known is not None and wanted.known.mirrors:
        folder = own / wanted.folder / str(wanted.revision)  # checked when it was stored, and renamed in one step
        if not (missing := [name for name in wanted.known.files if not (folder / name).is_file()]):
            return folder, tried
        tried.append(_lacking(folder, missing))
    for snapshot in _snapshots(wanted, hub):
        seal = Seal(own / wanted.folder / f"{snapshot.name}.json", snapshot, wanted.known)
        if seal.holds():
            return snapshot, tried
        if missing := missing_files(snapshot, wanted.known):
            tried.append(_lacking(snapshot, missing))
            continue
        try:
            seal.check()
        except DigestError as error:
            if snapshot.name == wanted.revision:
                wrong = error
            tried.append(str(error))
        else:
            return snapshot, tried
    if wrong is not None:
        raise DigestError(f"{wrong} It is not used. Delete {hub / f'models--{wanted.folder}'} and pull again.")
    return None, tried


def _snapshots(wanted: _Wanted, hub: Path) -> Iterator[Path]:
    """The folders of the hub's cache that may hold the model, the likeliest first."""
    repository = hub / f"models--{wanted.folder}"
    snapshots = repository / "snapshots"
    revision = wanted.revision or "main"
    if not _COMMIT.fullmatch(revision):
        try:
            revision = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
        except OSError:
            yield repository / "refs" / revision
            return
        if not _COMMIT.fullmatch(revision):  # the file could say "../.."
            yield repository / "refs" / (wanted.revision or "main")
            return
    yield snapshots / revision
    # A known model's bytes are what counts: other revisions with the same files serve as well.
    if wanted.known is not None and snapshots.is_dir():
        yield from sorted(path for path in snapshots.iterdir() if path.name != revision and path.is_dir())


def _lacking(folder: Path, missing: list[str]) -> str:
    return (
        f"{folder}: lacks {', '.join(missing[:4])}{' ...' if missing[4:] else ''}"
        if folder.is_dir()
        else f"no {folder}"
    )


def _lines(items: list[str]) -> str:
    return "".join(f"\n  - {item}" for item in items)


def _download(
    wanted: _Wanted,
    cache_folder: str | os.PathLike[str] | None,
    token: str | bool | None,
    source: str,
    tried: list[str],
    *,
    force: bool,
    progress: bool,
) -> Path:
    own, hub = _caches(cache_folder)
    failures: list[Exception] = []
    lines = list(tried)
    if source != "mirror":
        try:
            return _from_hub(wanted, own, hub, token, force=force, progress=progress)
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
                return fetch(wanted.known, mirror, target, replace=force, progress=progress)
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
        "Check the name and the network (proxy, HF_ENDPOINT, HF_TOKEN, pip's index), or copy the model's folder from "
        "another machine and give its path. The bundled model needs no network: SentenceEncoder() without a name."
    ) from (failures[0] if failures else None)


def _from_hub(wanted: _Wanted, own: Path, hub: Path, token: str | bool | None, *, force: bool, progress: bool) -> Path:
    import fnmatch

    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    # One plain request first: snapshot_download retries a blocked hub for half a minute and logs each attempt.
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_SECONDS)
    api = huggingface_hub.HfApi(token=token)
    try:
        info = _within(seconds, lambda: api.model_info(wanted.name, revision=wanted.revision, timeout=seconds))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise ModelNotFoundError("it knows no such model or revision, or needs a token to show it") from None
    names = [entry.rfilename for entry in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in names):
        raise UnsupportedModelError(
            f"{wanted} has no safetensors weights on the hub. Ask its authors for them, or save it as safetensors with "
            "transformers and give the folder's path."
        )
    needed = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOW_PATTERNS)]

    def download(patterns: list[str], force_download: bool) -> Path:
        with _bars(progress) as bar_class:
            return Path(
                huggingface_hub.snapshot_download(
                    wanted.name,
                    revision=wanted.revision,
                    cache_dir=hub,
                    token=token,
                    allow_patterns=patterns,
                    force_download=force_download,
                    tqdm_class=bar_class,
                )
            )

    snapshot = download(list(ALLOW_PATTERNS), force)
    if missing := [name for name in needed if not (snapshot / name).is_file()]:
        raise DownloadError(_lacking(snapshot, missing))
    seal = Seal(own / wanted.folder / f"{snapshot.name}.json", snapshot, wanted.known)
    try:
        seal.check(whole=True)
    except DigestError:
        download(list(wanted.known.files) if wanted.known else [], True)  # once more: a copy may rot on disk
        try:
            seal.check(whole=True)
        except DigestError as error:
            raise DigestError(f"{error} It is not used. Delete {snapshot.parent.parent}.") from None
    return snapshot


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Call with a deadline that holds for name resolution and for hosts with many addresses, too."""
    import threading

    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="minitrans-hub")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise DownloadError(f"no answer within {seconds:g} s (HF_HUB_ETAG_TIMEOUT sets how long to wait)")
    return results[0]


@contextmanager
def _bars(progress: bool) -> Iterator[type[tqdm[Any]] | None]:
    """The progress bar class for huggingface_hub: its own, or one that stays silent."""
    if progress:
        yield None
        return
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call, unused-ignore]

    # Releases before 2 draw one bar per file with a class of their own, which only their switch reaches.
    group = "huggingface_hub"
    switch = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled(group)
    if switch:
        disable_progress_bars(group)
    try:
        yield Silent
    finally:
        if switch:
            enable_progress_bars(group)


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, MinitransError) else f"{type(error).__name__}: {text.splitlines()[0][:300]}"
