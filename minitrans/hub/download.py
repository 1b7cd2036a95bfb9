"""Fetches a model from the hub into the hub's own cache, with its own client: what an encoder reads, nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minitrans.contents import INDEX_FILE, WEIGHTS_FILE, files_to_fetch
from minitrans.errors import DigestError, DownloadError, ModelNotFoundError, UnsupportedModelError
from minitrans.hub.cache import Seal, lacking, missing_files
from minitrans.hub.manifest import KnownModel, files_read, module_folders

if TYPE_CHECKING:
    from tqdm.auto import tqdm

HUB_SECONDS = 5.0  # until the hub's first answer; where it is blocked, the mirror should not have to wait longer

T = TypeVar("T")


def fetch_from_hub(
    name: str,
    revision: str | None,
    known: KnownModel | None,
    cache: Path,
    notes: Path,
    token: str | bool | None,
    *,
    force: bool = False,
    progress: bool = False,
) -> Path:
    """Fetch a model from the hub.

    Args:
        name, revision: on the hub.
        known: the model whose digests apply to this revision, or None.
        cache: the hub's cache.
        notes: the folder for the note that the model was checked.
        token: for private models.
        force: fetch again what is there.
        progress: show the client's progress bars.

    Returns:
        The model's folder in the cache.

    Raises:
        ModelNotFoundError: the hub does not know it.
        UnsupportedModelError: it is there, but not as safetensors.
        DownloadError: the hub gives no answer in time, or not all files.
        DigestError: a file is not the published one.
        Exception: whatever the client and its HTTP library raise besides.
    """

    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    # One plain request first: snapshot_download retries a blocked hub for half a minute and logs each attempt.
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_SECONDS)
    api = huggingface_hub.HfApi(token=token)
    try:
        info = _within(seconds, lambda: api.model_info(name, revision=revision, timeout=seconds))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise ModelNotFoundError("it knows no such model or revision, or needs a token to show it") from None
    names = {entry.rfilename for entry in info.siblings or []}
    wanted = {*files_to_fetch(names)}
    if not any(each.rpartition("/")[2] in (WEIGHTS_FILE, INDEX_FILE) for each in wanted):
        raise UnsupportedModelError(
            f"{name} has no safetensors weights on the hub (no {WEIGHTS_FILE}). Ask its authors for them, or save it "
            "as safetensors with transformers and give the folder's path."
        )

    def download(files: Iterable[str], force_download: bool) -> Path:
        with _bars(progress) as bar_class:
            return Path(
                huggingface_hub.snapshot_download(
                    name,
                    revision=revision,
                    cache_dir=cache,
                    token=token,
                    allow_patterns=sorted(each.replace("[", "[[]") for each in files),
                    force_download=force_download,
                    tqdm_class=bar_class,
                )
            )

    if info.sha:
        repository = f"models--{name.replace('/', '--')}"
        Seal(notes / f"{info.sha}.json", cache / repository / "snapshots" / info.sha, known).begin(wanted)
    snapshot = download(wanted, force)
    # What has a name of its own (a folder of a module, a shard) is known from the files that have come.
    here = {each for each in names if (snapshot / each).is_file()}
    more = {*files_to_fetch(names, module_folders(snapshot)), *missing_files(snapshot, known)} & names - here
    if more:
        wanted |= more
        download(wanted, False)
    if missing := sorted(each for each in wanted if not (snapshot / each).is_file()):
        raise DownloadError(lacking(snapshot, missing))
    if added := sorted({*files_read(snapshot)} - names):
        raise DigestError(f"{snapshot / added[0]} is none of the files that the hub has of {name}. Delete it.")
    seal = Seal(notes / f"{snapshot.name}.json", snapshot, known)
    try:
        seal.check(whole=True)
    except DigestError:
        download(wanted, True)  # once more: a copy may rot on disk
        seal.check(whole=True)
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
