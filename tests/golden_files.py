"""Reads the golden files: what transformers' own layers gave, stored with every intermediate (see golden/README.md).

A file holds one batch, packed without padding: row j of text i stands at offsets[i] + j. Letters: B texts, T tokens,
T' rows left, F tokens of the first `full_texts` texts and F' rows left of them (only these texts have their hidden
states stored), L layers, H hidden size.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from random_models import ModelSpec
from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden"
MINILM = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class GoldenStage:
    """One stage of a pruned run: what every row scored that entered it, and which rows left it."""

    layer: int
    scores: np.ndarray  # [n_l summed over texts] +inf where protect_special holds
    rows: np.ndarray  # [k summed over texts] int32, indices into the packed batch of T tokens
    offsets: np.ndarray  # [B+1] int32, of the rows


@dataclass(frozen=True)
class GoldenRun:
    """One run with a pruning policy."""

    policy: dict  # min_tokens, quantile, layer, score, reduce, protect_special, stages
    stages: tuple[GoldenStage, ...]
    rows: np.ndarray  # [T'] int32, indices into the packed batch of T tokens
    offsets: np.ndarray  # [B+1] int32
    sizes: np.ndarray  # [T'] tokens each row stands for
    hidden: np.ndarray  # [F', H] the last hidden state
    pooled: np.ndarray  # [B, H]

    @property
    def unit(self) -> np.ndarray:
        """`pooled` at length 1: [B, H]."""
        return _unit(self.pooled)


@dataclass(frozen=True)
class Golden:
    """One model on one batch, unpruned and with each policy."""

    name: str
    spec: ModelSpec | None  # None: all-MiniLM-L6-v2 itself
    weights_sha256: str  # random_models.weights_sha256 of the folder
    versions: dict[str, str]
    texts: tuple[str, ...]
    full_texts: int
    ids: np.ndarray  # [T] int32
    offsets: np.ndarray  # [B+1] int32
    hidden: np.ndarray  # [L+1, F, H] embeddings, then each layer
    importance: np.ndarray  # [L, T]
    importance_value: np.ndarray  # [L, T] weighted by the norm of the value vectors
    pooled: np.ndarray  # [B, H] as the model pools, not normalised
    runs: tuple[GoldenRun, ...]

    @property
    def unit(self) -> np.ndarray:
        """`pooled` at length 1: [B, H]."""
        return _unit(self.pooled)


def names() -> list[str]:
    """The golden files at hand."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load(name: str) -> Golden:
    """The golden file of a spec of random_models.SPECS, or of all-MiniLM-L6-v2."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="np") as file:
        record = json.loads(file.metadata()["record"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}

    runs = []
    for i, policy in enumerate(record["policies"]):
        own = {key: value for key, value in part(f"run{i}.").items() if not key.startswith("stage")}
        layers = [layer for layer, _ in policy["stages"] or [(policy["layer"], policy["quantile"])]]
        stages = tuple(GoldenStage(layer, **part(f"run{i}.stage{j}.")) for j, layer in enumerate(layers))
        runs.append(GoldenRun(policy, stages, **own))
    own = {key: value for key, value in arrays.items() if not key.startswith("run")}
    return Golden(
        name=record["name"],
        spec=ModelSpec(**record["spec"]) if record["spec"] else None,
        weights_sha256=record["weights_sha256"],
        versions=record["versions"],
        texts=tuple(record["texts"]),
        full_texts=record["full_texts"],
        runs=tuple(runs),
        **own,
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    exact = vectors.astype(np.float64)
    return (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float32)
