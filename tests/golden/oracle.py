"""The oracle: the layers of transformers' own BertModel, run one by one, with rows removed between them.

Written from the definition of the method, not from the package, and shares no code with it. One text at a time and no
padding, so that there is no mask to get wrong. Slow and plain on purpose.

Letters: n tokens of the text, n_l of them left at layer l, k kept at a stage, L layers, H hidden size.

A policy is a dict: min_tokens (s), quantile (q), layer (l, 0-based), score ("attention", "attention_value", "first"),
reduce ("drop", "merge"), protect_special, stages ([[layer, quantile], ...] in place of layer and quantile).
"""

import json
import math
from functools import lru_cache
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import BertModel

DEFAULT_POLICY = {
    "min_tokens": 8,
    "quantile": 0.3,
    "layer": 2,
    "score": "attention",
    "reduce": "drop",
    "protect_special": False,
    "stages": None,
}
NEAR_TIE = 1e-6  # relative: below it, rounding may decide which row stays


@lru_cache(maxsize=2)
def load(folder: str, dtype: torch.dtype = torch.float32) -> BertModel:
    """The model of a folder, in evaluation mode, with attention that returns its probabilities."""
    return BertModel.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()


@torch.inference_mode()
def run(folder, ids: list[int], policy: dict | None = None, dtype: torch.dtype = torch.float32) -> dict:
    """Encode one text; arrays are NumPy.

    Returns hidden: L+1 arrays [n_l, H] (the embeddings, then each layer's output); importance and importance_value:
    L arrays, the two scores of every row that entered that layer; stages: a list of dicts (layer, scores [n_l], rows
    [k]: positions in the original text, gap: the relative distance of the scores at the cut); rows and sizes of the
    rows left at the end; pooled [H] and unit [H]; near_tie: whether rounding may decide a stage otherwise.
    """
    model = load(str(folder), dtype)
    stages = _stages(policy)
    policy = {**DEFAULT_POLICY, **(policy or {})}

    n = len(ids)
    hidden = model.embeddings(input_ids=torch.tensor([ids]))[0]  # [n, H]
    rows = torch.arange(n)  # [n_l] the position of each row in the original text
    sizes = torch.ones(n, dtype=dtype)  # [n_l] how many tokens each row stands for
    states, importance, importance_value, reports = [hidden], [], [], []

    for index, layer in enumerate(model.encoder.layer):
        mask = sizes.log()[None, None, None, :]  # [1, 1, 1, n_l]: a row of size m weighs as m equal tokens
        # log(1) = 0, so that without merging this is no mask at all
        attended, probabilities = layer.attention(hidden[None], mask)  # [1, n_l, H], [1, heads, n_l, n_l]
        attended, probabilities = attended[0], probabilities[0]  # [n_l, H], [heads, n_l, n_l]
        importance.append(_importance(probabilities))
        importance_value.append(_importance(probabilities, _value_norms(layer, hidden)))

        if index in stages:
            scores = {
                "attention": importance[-1],
                "attention_value": importance_value[-1],
                "first": -torch.arange(len(rows), dtype=dtype),
            }[policy["score"]].clone()  # [n_l]
            if policy["protect_special"]:
                scores[(rows == 0) | (rows == n - 1)] = math.inf
            kept, gap = _select(scores, _count(len(rows), stages[index], policy["min_tokens"]))  # [k]
            if policy["reduce"] == "merge":
                attended, sizes, merge_gap = _merge(attended, sizes, kept)  # [k, H], [k]
                gap = min(gap, merge_gap)
            else:
                attended, sizes = attended[kept], sizes[kept]  # [k, H], [k]
            rows = rows[kept]  # [k]
            reports.append({"layer": index, "scores": scores.numpy(), "rows": rows.numpy(), "gap": gap})

        hidden = layer.output(layer.intermediate(attended[None]), attended[None])[0]  # [n_l, H]
        states.append(hidden)

    pooled = _pool(hidden, sizes, _pooling_mode(folder))  # [H]
    return {
        "hidden": [state.numpy() for state in states],
        "importance": [scores.numpy() for scores in importance],
        "importance_value": [scores.numpy() for scores in importance_value],
        "stages": reports,
        "rows": rows.numpy(),
        "sizes": sizes.numpy(),
        "pooled": pooled.numpy(),
        "unit": normalize(pooled, dim=0).numpy(),
        "near_tie": any(report["gap"] < NEAR_TIE for report in reports),
    }


@torch.inference_mode()
def plain(folder, ids: list[int], dtype: torch.dtype = torch.float32) -> dict:
    """What BertModel itself returns for one text, in one call: the check on `run` without a policy."""
    output = load(str(folder), dtype)(
        input_ids=torch.tensor([ids]), output_hidden_states=True, output_attentions=True, return_dict=True
    )
    return {
        "hidden": [state[0].numpy() for state in output.hidden_states],
        "importance": [_importance(probabilities[0]).numpy() for probabilities in output.attentions],
    }


def _stages(policy: dict | None) -> dict[int, float]:
    """Layer -> quantile."""
    if policy is None:
        return {}
    policy = {**DEFAULT_POLICY, **policy}
    return dict(policy["stages"] or [(policy["layer"], policy["quantile"])])


def _count(n: int, quantile: float, min_tokens: int) -> int:
    """How many of n rows stay."""
    return max(min_tokens, n - math.floor(quantile * n + 1e-9)) if n > min_tokens else n


def _importance(probabilities: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """What each position receives, mean over heads and query positions; each key weighted by `weights` [heads, n]."""
    if weights is not None:
        probabilities = probabilities * weights[:, None, :]  # [heads, n, n]
    heads, n, _ = probabilities.shape
    return probabilities.sum(dim=(0, 1)) / (heads * n)  # [n]


def _value_norms(layer, hidden: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of every value vector, bias included: [heads, n]."""
    attention = layer.attention.self
    value = attention.value(hidden).view(len(hidden), attention.num_attention_heads, -1)  # [n, heads, H / heads]
    return value.norm(dim=-1).T


def _select(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """The `count` best rows in their original order (ties to the earlier), and the relative gap at the cut."""
    order = torch.sort(scores, descending=True, stable=True).indices
    if count == len(scores):
        return order.sort().values, math.inf
    worst_kept, best_dropped = scores[order[count - 1]].item(), scores[order[count]].item()
    gap = math.inf if math.isinf(worst_kept) else (worst_kept - best_dropped) / abs(worst_kept or 1.0)
    return order[:count].sort().values, gap


def _merge(hidden: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Average every dropped row into the kept row it resembles most; also the least gap between the best two."""
    sums, totals, least_gap = hidden[kept] * sizes[kept, None], sizes[kept].clone(), math.inf  # [k, H], [k]
    directions = normalize(hidden, dim=1)  # [n, H]
    for row in sorted(set(range(len(hidden))) - set(kept.tolist())):
        similarity = directions[kept] @ directions[row]  # [k]
        best = torch.sort(similarity, descending=True, stable=True)
        if len(kept) > 1:
            least_gap = min(least_gap, (best.values[0] - best.values[1]).item())
        target = best.indices[0]
        sums[target] += sizes[row] * hidden[row]
        totals[target] += sizes[row]
    merged = sums / totals[:, None]  # [k, H]
    untouched = totals == sizes[kept]
    merged[untouched] = hidden[kept][untouched]  # not even rounded
    return merged, totals, least_gap


def _pooling_mode(folder) -> str:
    """mean or cls, from 1_Pooling/config.json in either style."""
    config = json.loads((Path(folder) / "1_Pooling" / "config.json").read_text())
    mode = config.get("pooling_mode") or ("cls" if config.get("pooling_mode_cls_token") else "mean")
    if mode not in ("mean", "cls"):
        raise ValueError(f"the oracle pools by mean or cls, not {mode}")
    return mode


def _pool(hidden: torch.Tensor, sizes: torch.Tensor, mode: str) -> torch.Tensor:
    """The mean of the rows left, weighted by their sizes; or the first row left: [H]."""
    if mode == "cls":
        return hidden[0].clone()
    return (hidden * sizes[:, None]).sum(dim=0) / sizes.sum()
