"""What the study runs on: tasks, models, policies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.models import float32_folder
from minitrans import PruningPolicy, SentenceEncoder
from minitrans.data.tasks import Task, load_task
from minitrans.encoder.policy_files import shipped_policies
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.tables import save_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "study" / "results"
DOCUMENT = ROOT / "docs" / "study.md"
PICTURES = ROOT / "docs"

ADAPTATION = ("snips", "hint3_curekart", "hint3_powerplay11", "hint3_sofmattress")
EVALUATION = ("banking77", "clinc150", "hwu64")
LONG, ONE_BY_ONE = "bbc", "one by one"
SHOTS, DRAWS = (1, 2, 3, 5, 10), 5
FEWER_SHOTS, FEWER_DRAWS = (5, 10), 3  # float32
ROUNDS = 15  # of timing: many short ones, as other programs of a machine come and go
PRECISIONS = ("int8", "float32")
PAPER = {  # the paper's own score and reduction
    "paper q=0.3 l=1": PruningPolicy(layer=1, quantile=0.3, min_tokens=6),
    "paper q=0.5 l=2": PruningPolicy(layer=2, quantile=0.5, min_tokens=6),
}


def data_folder() -> Path:
    """Where the data sets lie: the environment's MINITRANS_DATA."""
    folder = Path(os.environ.get("MINITRANS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing: name the folder of the data sets with MINITRANS_DATA")
    return folder


def task(name: str) -> Task:
    """The data set of that name."""
    return load_task(data_folder() / name)


def without_test(name: str) -> Task:
    """A data set with its validation split in the place of its test split, which is left out."""
    whole = task(name)
    return Task(f"{name} (valid)", {"train": whole.splits["train"], "test": whole.splits["valid"]}, {}, whole.source)


def encoder(precision: str, backend: str = "auto") -> SentenceEncoder:
    """The bundled int8 all-MiniLM-L6-v2, or the float32 one."""
    folder = None if precision == "int8" else float32_folder()
    return SentenceEncoder(folder, backend=backend, on_truncation="ignore")


def policies() -> dict[str, PruningPolicy]:
    """The paper's and the shipped ones."""
    return PAPER | {name: PruningPolicy.named(name) for name in shipped_policies()}


def cache() -> Path:
    """Where parts keep what they have finished."""
    place = Path(os.environ.get("MINITRANS_STUDY_CACHE", Path.home() / ".cache" / "minitrans-study"))
    place.mkdir(parents=True, exist_ok=True)
    return place


def journal(name: str) -> Journal:
    """What a part has finished, so that it goes on from there when it was interrupted."""
    return Journal(cache() / f"{name}.jsonl")


def save(name: str, values: Any) -> None:
    """Store what a part found."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    save_text(RESULTS / f"{name}.json", json.dumps(values, indent=1) + "\n")


def load(name: str) -> Any:
    """What a part found; None if it was not run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def time_ratios(precision: str, texts: str) -> dict[str, float]:
    """By policy, the share of the time without pruning on the compiled backend, from the part `speed`."""
    wanted = ("all-MiniLM-L6-v2", "compiled", precision, texts)
    return {
        row["policy"]: row["time_ratio"]
        for row in load("speed") or []
        if (row["model"], row["backend"], row["precision"], row["texts"]) == wanted
    }
