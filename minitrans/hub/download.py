"""Fetches a model from the hub into the hub's own cache, with its own client: what an encoder reads, nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minitrans.contents import INDEX_FILE, WEIGHTS_FILE, files_to_fetch
from minitrans.errors import DigestError, DownloadError, ModelNotFoundError, UnsupportedModelError
from minitrans.hub.cache import Seal, caches, lacking, missing_files
from minitrans.hub.names import Wanted
from minitrans.models.folder import ModelFolder

if TYPE_CHECKING:
    from tqdm.auto import tqdm

HUB_SECONDS = 5.0  # until the hub's first answer; where it is blocked, the mirror should not have to wait longer

T = TypeVar("T")


def fetch_from_hub(wanted: Wanted, *, force: bool = False, progress: bool = False) -> Path:
    """Fetch a model from the hub into its own cache.

    Args:
        wanted: the model.
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

    own, hub = caches(wanted.cache_folder)
    notes = own / wanted.folder
    # One plain request first: snapshot_download retries a blocked hub for half a minute and logs each attempt.
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_SECONDS)
    api = huggingface_hub.HfApi(token=wanted.token)
    try:
        info = _within(seconds, lambda: api.model_info(wanted.name, revision=wanted.revision, timeout=seconds))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise ModelNotFoundError("it knows no such model or revision, or needs a token to show it") from None
    names = {entry.rfilename for entry in info.siblings or []}
    files = {*files_to_fetch(names)}
    if not any(each.rpartition("/")[2] in (WEIGHTS_FILE, INDEX_FILE) for each in files):
        raise UnsupportedModelError(
            f"{wanted.name} has no safetensors weights on the hub (no {WEIGHTS_FILE}). Ask its authors for them, or "
            "save it as safetensors with transformers and give the folder's path."
        )

    def download(names: Iterable[str], force_download: bool) -> Path:
        with bars(progress) as bar_class:
            return Path(
                huggingface_hub.snapshot_download(
                    wanted.name,
                    revision=wanted.revision,
                    cache_dir=hub,
                    token=wanted.token,
                    allow_patterns=sorted(each.replace("[", "[[]") for each in names),
                    force_download=force_download,
                    tqdm_class=bar_class,
                )
            )

    if info.sha:
        snapshot = hub / f"models--{wanted.folder}" / "snapshots" / info.sha
        Seal(notes / f"{info.sha}.json", snapshot, wanted.known).begin(files)
    snapshot = download(files, force)
    # What has a name of its own (a folder of a module, a shard) is known from the files that have come.
    here = {each for each in names if (snapshot / each).is_file()}
    more = {*files_to_fetch(names, ModelFolder(snapshot).folders), *missing_files(snapshot, wanted.known)}
    if more := more & names - here:
        files |= more
        download(files, False)
    if missing := sorted(each for each in files if not (snapshot / each).is_file()):
        raise DownloadError(lacking(snapshot, missing))
    if added := sorted({*ModelFolder(snapshot).files()} - names):
        raise DigestError(f"{snapshot / added[0]} is none of the files that the hub has of {wanted.name}. Delete it.")
    seal = Seal(notes / f"{snapshot.name}.json", snapshot, wanted.known)
    try:
        seal.check(whole=True)
    except DigestError:
        download(files, True)  # once more: a copy may rot on disk
        seal.check(whole=True)
    return snapshot


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Call with a deadline that holds for name resolution and for hosts with many addresses, too."""
    import threading
    from concurrent.futures import Future, wait

    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    # Not an executor: the end of the program would wait for its threads.
    threading.Thread(target=run, daemon=True, name="minitrans-hub").start()
    wait([answer], seconds)
    if not answer.done():
        raise DownloadError(f"no answer within {seconds:g} s (HF_HUB_ETAG_TIMEOUT sets how long to wait)")
    return answer.result()


@contextmanager
def bars(progress: bool) -> Iterator[type[tqdm[Any]] | None]:
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
