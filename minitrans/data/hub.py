"""The intent data sets that can be named instead of a folder, and how their files come from the hub."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minitrans.errors import DownloadError, InputError
from minitrans.hub.download import HUB_SECONDS, bars

_PARQUET = "-00000-of-00001.parquet"


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub at one commit.

    Attributes:
        repository: "organisation/name" among the hub's data sets.
        revision: the commit.
        files: split -> path inside the repository; .jsonl, or .parquet, which needs pyarrow.
        text_column, label_column: where the files keep texts and labels.
    """

    repository: str
    revision: str
    files: Mapping[str, str]
    text_column: str = "text"
    label_column: str = "label"


# PolyAI/banking77 itself holds no data, only a script that fetches them; this copy has the names of the labels.
KNOWN: Mapping[str, HubDataset] = {
    "banking77": HubDataset(
        "mteb/banking77",
        "0fd18e25b25c072e09e0d92ab615fda904d66300",
        {"train": "train.jsonl", "test": "test.jsonl"},
        label_column="label_text",
    ),
    "clinc150": HubDataset(
        "clinc/clinc_oos",
        "155b9c710419136e17307b80d0a13e68cd46b4ec",
        {"train": f"plus/train{_PARQUET}", "valid": f"plus/validation{_PARQUET}", "test": f"plus/test{_PARQUET}"},
        label_column="intent",
    ),
    "hwu64": HubDataset(
        "FastFit/hwu_64",
        "9fb5bff1e37c4c5a6d46c1ff6f286b6d3f362222",
        {"train": f"data/train{_PARQUET}", "valid": f"data/validation{_PARQUET}", "test": f"data/test{_PARQUET}"},
    ),
}


def fetch(name: str, local_files_only: bool = False) -> dict[str, Path]:
    """Bring the files of a known data set to this machine: split -> path. What is cached needs no network.

    Raises:
        InputError: the name is none of `KNOWN`.
        DownloadError: the hub could not deliver, or ``local_files_only`` forbids to ask it; the message says why and
            what to do instead.
    """
    if name not in KNOWN:
        raise InputError(f"{name!r} is no known data set, wanted one of {', '.join(KNOWN)}")
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    known = KNOWN[name]

    def download(local_files_only: bool) -> dict[str, Path]:
        options = {"repo_type": "dataset", "revision": known.revision, "etag_timeout": HUB_SECONDS}
        get = partial(huggingface_hub.hf_hub_download, known.repository, local_files_only=local_files_only, **options)
        return {split: Path(get(file)) for split, file in known.files.items()}

    with bars(False):
        try:
            return download(True)
        except LocalEntryNotFoundError:
            if local_files_only:
                raise DownloadError(
                    f"{name} ({known.repository}, revision {known.revision[:7]}) is not on this machine, and "
                    "local_files_only forbids the network; run without it once, or give a folder"
                ) from None
        try:
            # One plain request first: a download retries a blocked hub for half a minute and logs each attempt.
            huggingface_hub.HfApi().dataset_info(known.repository, revision=known.revision, timeout=HUB_SECONDS)
            return download(False)
        except Exception as error:  # whatever the hub's client and its HTTP library may raise
            raise DownloadError(
                f"{name} could not be fetched from the hub ({known.repository}, revision {known.revision[:7]}): "
                f"{_reason(error)}. Check the network (proxy, HF_ENDPOINT, HF_HUB_OFFLINE), or give a "
                "folder that holds train.csv and test.csv."
            ) from error


def read_parquet(path: Path, text_column: str, label_column: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a Parquet file; labels that are numbers become the names that the file has for them.

    Raises:
        InputError: pyarrow is not installed, or the file is broken or of other columns.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")  # nothing else needs it: an extra
    except ImportError as error:
        raise InputError(
            f"{path.name} is a Parquet file, and pyarrow is not installed to read it ({error}); "
            'run `pip install "minitrans[datasets]"`, or give a folder that holds train.csv and test.csv'
        ) from error
    try:
        table = parquet.read_table(path, columns=[text_column, label_column])
        texts, labels = table[text_column].to_pylist(), table[label_column].to_pylist()
        names = _label_names(table.schema.metadata or {}, label_column)
    except Exception as error:  # pyarrow's errors share no base class
        raise InputError(f"cannot read {path}: {_reason(error)}; fetch it again") from error
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        named = isinstance(label, int) and 0 <= label < len(names)
        if not isinstance(text, str) or not text.strip() or not (named or (isinstance(label, str) and label.strip())):
            raise InputError(
                f"{path}, row {row}: {text_column} is {text!r:.60} and {label_column} {label!r:.60}, wanted a text and "
                f"its label, or the number of one of the {len(names)} names in the file"
            )
    return texts, [names[label] if isinstance(label, int) else label for label in labels]


def _label_names(metadata: Mapping[bytes, bytes], column: str) -> list[str]:
    """The names that the datasets library keeps beside a column of class numbers."""
    names: Any = json.loads(metadata.get(b"huggingface", b"{}"))
    for key in ("info", "features", column, "names"):
        names = names.get(key, {}) if isinstance(names, dict) else {}
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _reason(error: Exception) -> str:
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{type(error).__name__}: {first.rstrip('.'):.300}"
