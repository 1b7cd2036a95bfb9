"""Writes the golden files beside this script.

    python tests/golden/make.py                                    the random models of tests/random_models.py
    python tests/golden/make.py --model FOLDER_OF_all-MiniLM-L6-v2   that model too

Every cut is checked to be clear: the scores on its two sides differ by more than MARGIN, and float64 keeps the same
rows, so that every correct implementation must keep them. Two runs on one machine give the same bytes.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import golden_files  # noqa: E402
import oracle  # noqa: E402
import random_models  # noqa: E402

MARGIN = 2e-5  # least relative gap at a cut (and least gap of the cosines of a merge)
RANDOM_TEXTS = (0, 1, 2, 4, 5, 7)  # which of random_models.texts()
FULL_TEXTS = {"plain": 6, "odd_sizes": 6, "one_layer": 6, "twelve_layers": 6}  # texts with hidden states; else 3

MINILM_TEXTS = (
    "Hello",
    "Where is my parcel?",
    "Please move my dentist appointment to Thursday at half past four.",
    "The café's naïve parser crashed again :( ticket #4711",
    "I was charged twice for the same coffee this morning; how do I get one of the payments back?",
    "unfriendliness",
    "Could you tell me whether the early train to the coast still runs on public holidays, and if it does, where I can "
    "leave my bicycle?",
    "Token pruning removes the words that contribute least to the meaning of a sentence, so that the remaining layers "
    "have less to compute, at a small price in accuracy.",
    "My new phone does not charge any more. I have tried another cable, another socket and even my neighbour's charger "
    "but the screen stays black and the little green light never comes on. Is this covered by the warranty, or do I "
    "have to pay for the repair?",
)
MINILM_FULL_TEXTS = 5


def policies(num_layers: int, pooling: str) -> list[dict]:
    """The policies of a model of that many layers. Where the first token is the embedding, it must not go."""
    second, third, last = min(1, num_layers - 1), min(2, num_layers - 1), num_layers - 1
    two_stages = [[0, 0.3], [third, 0.4]] if third else [[0, 0.3]]
    changes = (
        {"min_tokens": 4, "quantile": 0.3, "layer": second},
        {"min_tokens": 2, "quantile": 0.65, "layer": 0},
        {"min_tokens": 4, "quantile": 0.5, "layer": second, "score": "attention_value"},
        {"min_tokens": 4, "quantile": 0.5, "layer": second, "reduce": "merge"},
        {"min_tokens": 4, "quantile": 0.5, "layer": last, "protect_special": True},
        {"min_tokens": 4, "stages": two_stages},
        {"min_tokens": 4, "stages": two_stages, "reduce": "merge", "protect_special": True},
        {"min_tokens": 4, "quantile": 0.4, "layer": second, "score": "first"},
        {"min_tokens": 16, "quantile": 0.5, "layer": third},
        {"min_tokens": 4, "quantile": 0.0, "layer": second},
    )
    always = {"protect_special": True} if pooling == "cls" else {}
    return [{**oracle.DEFAULT_POLICY, **change, **always} for change in changes]


def build(name: str, folder: Path, spec: random_models.ModelSpec | None, texts: list[str], full_texts: int) -> str:
    """Write the golden file of one model and return a line on how well conditioned it is."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    batch = [tokenizer.encode(text).ids for text in texts]
    offsets = _offsets([len(ids) for ids in batch])  # [B+1]

    plain = [oracle.plain(folder, ids) for ids in batch]
    exact = [oracle.run(folder, ids, dtype=torch.float64) for ids in batch]
    unpruned = [oracle.run(folder, ids) for ids in batch]
    noise = max(_distance(run["hidden"], other["hidden"]) for run, other in zip(unpruned, exact, strict=True))
    difference = max(_distance(run["hidden"], other["hidden"]) for run, other in zip(unpruned, plain, strict=True))
    if difference > 1e-5 or noise > 5e-5:
        raise SystemExit(f"{name}: {difference:.1e} from BertModel's own forward, {noise:.1e} from float64")

    arrays = {
        "ids": np.concatenate(batch).astype(np.int32),  # [T]
        "offsets": offsets,
        "hidden": _layers(unpruned[:full_texts], "hidden"),  # [L+1, F, H]
        "importance": _layers(unpruned, "importance"),  # [L, T]
        "importance_value": _layers(unpruned, "importance_value"),  # [L, T]
        "pooled": np.stack(_column(unpruned, "pooled")),  # [B, H]
    }
    chosen = policies(len(unpruned[0]["importance"]), spec.pooling if spec else "mean")
    for i, policy in enumerate(chosen):
        runs = [oracle.run(folder, ids, policy) for ids in batch]
        for text, ids, run in zip(texts, batch, runs, strict=True):
            _check_cuts(run, oracle.run(folder, ids, policy, dtype=torch.float64), f"{name}, {policy}, {text!r}")
        arrays |= {f"run{i}.{key}": value for key, value in _pack(runs, offsets).items()}
        arrays[f"run{i}.hidden"] = np.concatenate([run["hidden"][-1] for run in runs[:full_texts]])  # [F', H]
        arrays[f"run{i}.pooled"] = np.stack(_column(runs, "pooled"))  # [B, H]

    record = {
        "name": name,
        "spec": asdict(spec) if spec else None,
        "weights_sha256": random_models.weights_sha256(folder),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, safetensors, tokenizers)}
        | {"numpy": np.__version__},
        "texts": texts,
        "full_texts": full_texts,
        "policies": chosen,
    }
    path = FOLDER / f"{name}.safetensors"
    random_models.write_safetensors(path, arrays, {"record": json.dumps(record, ensure_ascii=False)})
    return f"{path.stat().st_size:8d} bytes, {difference:.1e} from BertModel, {noise:.1e} from float64, {name}"


def _column(runs: list[dict], key: str) -> list:
    return [run[key] for run in runs]


def _layers(runs: list[dict], key: str) -> np.ndarray:
    return np.stack([np.concatenate(parts) for parts in zip(*_column(runs, key), strict=True)])


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _distance(states: list[np.ndarray], others: list[np.ndarray]) -> float:
    return max(float(np.abs(state - other).max()) for state, other in zip(states, others, strict=True))


def _pack(runs: list[dict], offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as indices into the packed batch, for every stage and at the end."""

    def rows(parts: list[np.ndarray]) -> dict[str, np.ndarray]:
        shifted = [part + start for part, start in zip(parts, offsets[:-1], strict=True)]
        return {"rows": np.concatenate(shifted).astype(np.int32), "offsets": _offsets([len(part) for part in parts])}

    packed = rows(_column(runs, "rows")) | {"sizes": np.concatenate(_column(runs, "sizes"))}
    for j, stages in enumerate(zip(*_column(runs, "stages"), strict=True)):
        stage = rows([stage["rows"] for stage in stages]) | {"scores": np.concatenate(_column(stages, "scores"))}
        packed |= {f"stage{j}.{key}": value for key, value in stage.items()}
    return packed


def _check_cuts(run: dict, exact: dict, what: str) -> None:
    gap = min(stage["gap"] for stage in run["stages"])
    if gap < MARGIN:
        raise SystemExit(f"{what}: the gap at a cut is {gap:.1e}, wanted {MARGIN}; choose another text")
    for stage, other in zip(run["stages"], exact["stages"], strict=True):
        if not np.array_equal(stage["rows"], other["rows"]):
            raise SystemExit(f"{what}: float64 keeps other rows; choose another text")
    if not np.array_equal(run["sizes"], exact["sizes"]):
        raise SystemExit(f"{what}: float64 merges otherwise; choose another text")
    if (noise := _distance(run["hidden"], exact["hidden"])) > 5e-5:
        raise SystemExit(f"{what}: {noise:.1e} from float64, wanted 5e-5")


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the float32 all-MiniLM-L6-v2")
    model = parser.parse_args().model

    torch.set_num_threads(1)  # one order of summation
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    texts = [random_models.texts()[i] for i in RANDOM_TEXTS]
    for spec in random_models.SPECS:
        with tempfile.TemporaryDirectory() as folder:
            random_models.write_model(Path(folder), spec)
            print(build(spec.name, Path(folder), spec, texts, FULL_TEXTS.get(spec.name, 3)))  # noqa: T201
    if model:
        print(build(golden_files.MINILM, model, None, list(MINILM_TEXTS), MINILM_FULL_TEXTS))  # noqa: T201


if __name__ == "__main__":
    main()
