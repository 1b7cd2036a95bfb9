"""Explanations as one page for a browser: it holds its data, its style and its script, and loads nothing.

The page is drawn by the script in page/ from the data that are put into it here. Texts are data all the way: they are
escaped as JSON, and the script puts them into the page as text, never as markup. A content security policy in the page
allows just this script and this style, by their digests, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from minitrans import __version__
from minitrans.encoder.policy import PruningPolicy, describe
from minitrans.encoder.pooling import normalized
from minitrans.encoder.selection import numbers_of
from minitrans.errors import InputError
from minitrans.explain.explanation import RANKED, Explanation
from minitrans.explain.trace import TracedText
from minitrans.files import write_file
from minitrans.sentences.sentence_encoder import SentenceEncoder
from minitrans.words import counted

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("selection.js", "page.js")
LONGEST = 64  # tokens of a text whose heads are all in the page; of longer ones the average alone
ROOM = 32_000_000  # characters of attention in a page; what does not fit is left out, the heads first
MOST_TEXTS = 2000
FULL = 65535  # an attention of 1


def check_page(path: str | Path, texts: int = 1) -> Path:
    """The path of a page of so many texts, if it can be one.

    Raises:
        InputError: another ending, or more than `MOST_TEXTS` texts.
    """
    path = Path(path)
    if texts > MOST_TEXTS:
        raise InputError(
            f"a page of {texts} texts is too large for a browser, wanted at most {MOST_TEXTS}; take fewer, or --json"
        )
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path} does not end in .html, wanted a name as report.html")
    return path


@dataclass(frozen=True)
class Shown:
    """What the page holds of one explanation; much smaller than the explanation itself."""

    values: dict[str, Any]  # plain JSON values
    room: int  # characters of attention


def shown(explanation: Explanation, room: int = ROOM) -> Shown:
    """What the page holds of an explanation, with as much of its attention as goes into so many characters."""
    both = normalized(np.stack([explanation.pruned.embedding, explanation.unpruned.embedding]))  # [2, H]
    pruned, unpruned = ([round(float(value), 5) for value in vector] for vector in both)
    attention = _attention(explanation.pruned, room)
    taken = sum(len(layer["data"]) for layer in attention["attention"])
    return Shown({**explanation.to_dict(), **attention, "embedding": pruned, "unpruned_embedding": unpruned}, taken)


def write_page(
    path: str | Path, encoder: SentenceEncoder, policy: PruningPolicy | None, explained: Sequence[Shown]
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: ends in .html; a file that is there is replaced.
        encoder: that of the explanations.
        policy: likewise.
        explained: at least one.

    Raises:
        InputError: the path cannot be that of a page, or there are no explanations.
        WriteError: it cannot be written.
    """
    path = check_page(path, len(explained))
    if not explained:
        raise InputError("there are no explanations, wanted at least one")
    write_file(path, page(page_data(encoder, policy, explained)).encode())
    return path


def page(data: dict[str, Any]) -> str:
    """The HTML around the data of `page_data`."""
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "title": f"minitrans: {counted(len(data['texts']), 'text')} explained",
        "style_hash": _digest(style),
        "script_hash": _digest(script),
        "style": style,
        "script": script,
        "data": _embedded(data),
    }
    template = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], template)


def page_data(encoder: SentenceEncoder, policy: PruningPolicy | None, explained: Sequence[Shown]) -> dict[str, Any]:
    """What the page draws, as plain JSON values."""
    left_out = ("fitted", "provenance")
    config = encoder.config
    return {
        "version": __version__,
        "model": {
            "name": Path(encoder.name_or_path).name if Path(encoder.name_or_path).is_dir() else encoder.name_or_path,
            "precision": encoder.precision,
            "backend": encoder.backend,
            "heads": config.num_attention_heads,
            "layers_list": list(range(config.num_hidden_layers)),
            "pooling": " and ".join(encoder.pooling.modes),
        },
        "policy": policy and {f.name: getattr(policy, f.name) for f in fields(policy) if f.name not in left_out},
        "policy_text": describe(policy),
        "turn": None if policy is None else _turn(policy),
        "ranked": RANKED,
        "special": {"prefix": encoder.tokenizer.prefix, "suffix": encoder.tokenizer.suffix},
        "texts": [each.values for each in explained],
    }


def _turn(policy: PruningPolicy) -> list[float] | None:
    """The three weights and the bias of `Fitted.turns` that ``max_turn`` goes by; None without it."""
    if policy.max_turn is None:
        return None
    ((layer, _),) = policy.plan.items()
    return list(numbers_of(policy.turn_map(layer)))


def _attention(traced: TracedText, room: int) -> dict[str, Any]:
    """Per layer the tokens that entered and, as 16-bit shares, their attention [maps, n, n]: the average, each head.

    No layers where not even the averages fit.
    """
    average = sum(4 * -(-2 * len(layer.entered) ** 2 // 3) for layer in traced.layers[1:])  # characters
    if average > room:
        return {"attention": [], "maps": 0}
    heads = len(traced.layers[1].attention[0])
    if len(traced.batch.ids) > LONGEST or average * (1 + heads) > room:
        heads = 0
    layers = []
    for layer in traced.layers[1:]:
        attention = layer.attention[0]  # [A, n, n]
        maps = np.concatenate([attention.mean(axis=0)[None], attention[:heads]])  # [maps, n, n]
        shares = np.rint(maps.clip(0, 1) * FULL).astype("<u2")
        layers.append({"entered": layer.entered.tolist(), "data": base64.b64encode(shares.tobytes()).decode()})
    return {"attention": layers, "maps": 1 + heads}


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(data: dict[str, Any]) -> str:
    """JSON that no HTML parser can take for anything else: it holds no <, > or &."""
    escapes = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(escapes)
