"""What a model is (EncoderConfig) and what pruning does (PruningPolicy): frozen, validated, JSON in and out."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, overload

import numpy as np

from minitrans.errors import (
    ConfigError,
    InputError,
    ModelNotFoundError,
    PolicyError,
    UnsupportedModelError,
    one_of,
)

Activation = Literal["gelu", "gelu_new", "relu"]
Score = Literal["attention", "attention_value", "random", "first"]
Reduce = Literal["drop", "merge"]
PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

_J = TypeVar("_J", dict[str, Any], list[Any])

JSON_LIMIT = 16 * 1024 * 1024  # bytes; the largest honest file of this kind is under 100 kB
SUPPORTED = "minitrans runs BERT-family encoders: model_type 'bert' with absolute positions"

# The same function under the names that models use for it.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}


@overload
def read_json(path: Path) -> dict[str, Any]: ...
@overload
def read_json(path: Path, kind: type[_J]) -> _J: ...
def read_json(path: Path, kind: type[Any] = dict) -> Any:
    """Read a JSON object (or a list). ConfigError if it is missing, too large, not JSON, or of another kind."""
    try:
        with path.open("rb") as file:
            data = file.read(JSON_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > JSON_LIMIT:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes, wanted at most {JSON_LIMIT}")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}), wanted a {kind.__name__}; restore the file") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}, wanted a {kind.__name__}")
    return value


def model_file(folder: Path, name: str) -> Path:
    """The path of a file of a model folder, refused where it would leave the folder.

    The hub cache's own layout is the one exception: there ``snapshots/<revision>/x`` links to ``blobs/y``.

    Raises:
        ConfigError: an absolute name, one with "..", or a symlink that leads out.
        ModelNotFoundError: no such file.
    """
    path = folder / name
    try:
        root, target = folder.resolve(), path.resolve()
        is_file = target.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a NUL in it, links that go round in circles
        raise ConfigError(f"{folder}: {name!r} cannot name a file ({error}); fetch the model again") from error
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    plain = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not plain or not any(target.is_relative_to(place) for place in allowed):
        raise ConfigError(f"{folder}: {name!r} leads to {target}, wanted a relative name inside the model folder")
    if not is_file:
        raise ModelNotFoundError(f"{path} is missing; fetch the model again")
    return path


def optional_file(folder: Path, name: str) -> Path | None:
    """The path of a file that a model folder need not have; a dangling link counts as there, and is refused."""
    return model_file(folder, name) if os.path.lexists(folder / name) else None


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of a BERT encoder, under the names that ``config.json`` of the hub uses.

    Args:
        vocab_size: rows of the word embedding.
        hidden_size: H, the width of a token's hidden state; a multiple of num_attention_heads.
        num_hidden_layers: L.
        num_attention_heads: A; each head is hidden_size / A wide.
        intermediate_size: I, the width between the two products of the feed-forward block.
        max_position_embeddings: the longest text in tokens.
        type_vocab_size: rows of the token type embedding; row 0 is used.
        layer_norm_eps: added to the variance in layer normalisation.
        hidden_act: "gelu" (exact), "gelu_new" (tanh approximation) or "relu".

    Raises:
        ConfigError: a value of the wrong type or out of range, with the name of the field.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: Activation = "gelu"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            value = as_int(getattr(self, name))
            if value is None or not 1 <= value < 2**31:
                raise ConfigError(f"config: {name} is {getattr(self, name)!r}, wanted a positive integer")
            object.__setattr__(self, name, value)
        if self.num_hidden_layers > 1000:
            raise ConfigError(f"config: num_hidden_layers is {self.num_hidden_layers}, wanted at most 1000")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        eps = _as_number(self.layer_norm_eps)
        if eps is None or not 0 < eps < 1:
            raise ConfigError(f"config: layer_norm_eps is {self.layer_norm_eps!r}, wanted a number between 0 and 1")
        if self.hidden_act not in get_args(Activation):
            raise UnsupportedModelError(
                f"config: hidden_act {self.hidden_act!r} is not supported, wanted one of {sorted(_ACTIVATIONS)}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head: hidden_size / num_attention_heads."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> EncoderConfig:
        """Read the fields of a hub ``config.json``; refuse by name what this encoder does not compute.

        Raises:
            UnsupportedModelError: another architecture, relative positions, a decoder, another activation.
            ConfigError: a field is missing or has an impossible value.
        """
        model_type = values.get("model_type")
        if model_type != "bert":
            raise UnsupportedModelError(f"{source}: model_type {model_type!r} is not supported; {SUPPORTED}")
        positions = values.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise UnsupportedModelError(
                f"{source}: position_embedding_type {positions!r} is not supported; {SUPPORTED}"
            )
        for flag in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            if values.get(flag):
                raise UnsupportedModelError(f"{source}: {flag} is set, so this is a decoder; {SUPPORTED}")
        embedding_size = values.get("embedding_size", values.get("hidden_size"))
        if embedding_size != values.get("hidden_size"):
            raise UnsupportedModelError(
                f"{source}: embedding_size {embedding_size!r} differs from hidden_size; factorised embeddings "
                f"are not supported; {SUPPORTED}"
            )
        act = values.get("hidden_act", "gelu")
        if not isinstance(act, str) or act not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"{source}: hidden_act {act!r} is not supported, wanted one of {sorted(_ACTIVATIONS)}"
            )
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values} | {
            "hidden_act": _ACTIVATIONS[act]
        }
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in known]
        if missing:
            raise ConfigError(f"{source}: {', '.join(missing)} missing; a BERT configuration needs them")
        try:
            return cls(**known)
        except ConfigError as error:
            raise type(error)(f"{source}: {error}") from None

    @classmethod
    def from_folder(cls, folder: Path) -> EncoderConfig:
        """Read ``config.json`` of a model folder."""
        return cls.from_dict(read_json(model_file(folder, "config.json")), str(folder / "config.json"))


@dataclass(frozen=True)
class PruningPolicy:
    """Which tokens to give up, where, and what happens to them (arXiv 2408.11799, and what it leaves open).

    At layer ``layer``, after its attention block, a text of n tokens with n > ``min_tokens`` keeps its
    ``max(min_tokens, n - floor(quantile * n))`` most important tokens; ties are won by the earlier position.

    Args:
        min_tokens: s; texts of up to s tokens (specials counted) are left alone, and none falls below s.
        quantile: q in [0, 1), the share of the tokens to give up.
        layer: l, 0-based.
        score: the importance of token j: "attention" is the mean over heads and queries of the attention that
            j receives; "attention_value" weights it by the norm of j's value vector; "random" and "first"
            (earlier is more important) are controls.
        reduce: "drop" removes the rows; "merge" averages each into the most similar kept row, whose size then
            adds log(size) to its attention logit and weights it in the pooling.
        protect_special: never drop what the tokenizer puts around a text ([CLS] and [SEP]).
        stages: several (layer, quantile) pairs, layers ascending, in place of ``layer`` and ``quantile``.
        seed: of the "random" score.
        provenance: where the policy came from: tasks, accuracy and time found, date, model hash; free-form JSON.

    Raises:
        PolicyError: a value out of range, with the name of the field.
    """

    min_tokens: int = 8
    quantile: float = 0.3
    layer: int = 2
    score: Score = "attention"
    reduce: Reduce = "drop"
    protect_special: bool = False
    stages: tuple[tuple[int, float], ...] | None = None
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, wanted: str) -> None:
            if not ok:
                raise PolicyError(f"pruning policy: {name} is {getattr(self, name)!r}, wanted {wanted}")

        def take_int(name: str, least: int, below: int, wanted: str) -> None:
            value = as_int(getattr(self, name))
            check(value is not None and least <= value < below, name, wanted)
            object.__setattr__(self, name, value)

        def is_quantile(value: object) -> bool:
            number = _as_number(value)
            return number is not None and 0 <= number < 1

        take_int("min_tokens", 1, 2**31, "an integer of at least 1")
        take_int("layer", 0, 2**31, "an integer of at least 0")
        take_int("seed", 0, 2**32, "an integer in [0, 2**32)")
        check(is_quantile(self.quantile), "quantile", "a number in [0, 1)")
        object.__setattr__(self, "quantile", _as_number(self.quantile))
        check(self.score in get_args(Score), "score", f"one of {', '.join(get_args(Score))}")
        check(self.reduce in get_args(Reduce), "reduce", f"one of {', '.join(get_args(Reduce))}")
        check(isinstance(self.protect_special, bool), "protect_special", "true or false")
        check(isinstance(self.provenance, Mapping), "provenance", "a JSON object")
        if self.stages is None:
            return
        wanted = "a non-empty list of (layer, quantile) pairs, layers ascending, quantiles in [0, 1)"
        check(isinstance(self.stages, list | tuple) and len(self.stages) > 0, "stages", wanted)
        layers: list[int] = []
        for stage in self.stages:
            check(isinstance(stage, list | tuple) and len(stage) == 2 and is_quantile(stage[1]), "stages", wanted)
            layer = as_int(stage[0])
            check(layer is not None and layer >= 0, "stages", wanted)
            layers.append(layer or 0)
        check(layers == sorted(set(layers)), "stages", wanted)
        pairs = zip(layers, self.stages, strict=True)
        object.__setattr__(self, "stages", tuple((layer, float(stage[1])) for layer, stage in pairs))

    @property
    def plan(self) -> dict[int, float]:
        """Layer -> quantile: the stages, or the one pair of ``layer`` and ``quantile``."""
        return dict(self.stages) if self.stages is not None else {self.layer: self.quantile}

    def check_fits(self, config: EncoderConfig, pooling: tuple[PoolingMode, ...] = ("mean",)) -> None:
        """Refuse a policy that cannot run on this model.

        Raises:
            PolicyError: a layer that the model does not have, or the pooled token itself could be dropped.
        """
        for layer in self.plan:
            if layer >= config.num_hidden_layers:
                raise PolicyError(
                    f"pruning policy: layer {layer} is out of range, the model has layers 0 to "
                    f"{config.num_hidden_layers - 1}"
                )
        for mode in ("cls", "lasttoken"):
            if mode in pooling and not self.protect_special:
                raise PolicyError(
                    f"pruning policy: this model pools the {mode} token, which the policy could drop; "
                    "set protect_special=True"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` reads them back to an equal policy."""
        values: dict[str, Any] = {"format": "minitrans-pruning-policy", "version": 1}
        values |= {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.stages is not None:
            values["stages"] = [list(stage) for stage in self.stages]
        return values | {"provenance": dict(self.provenance)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "pruning policy") -> PruningPolicy:
        """Read what ``to_dict`` wrote. Fields left out take their defaults; unknown ones are refused."""
        if not isinstance(values, Mapping):
            raise PolicyError(f"{source}: holds a {type(values).__name__}, wanted a JSON object")
        if values.get("format", "minitrans-pruning-policy") != "minitrans-pruning-policy":
            raise PolicyError(f"{source}: format is {values['format']!r}, wanted 'minitrans-pruning-policy'")
        if values.get("version", 1) != 1:
            raise PolicyError(f"{source}: version is {values['version']!r}, this release reads version 1")
        fields = {key: value for key, value in values.items() if key not in ("format", "version")}
        unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise PolicyError(f"{source}: unknown fields {unknown}; a newer release may have written them")
        try:
            return cls(**fields)
        except PolicyError as error:
            raise PolicyError(f"{source}: {str(error).removeprefix('pruning policy: ')}") from None

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON, whole or not at all."""
        from minitrans.resources import atomic_file

        with atomic_file(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> PruningPolicy:
        """Read a policy file. PolicyError if it is missing, broken or invalid."""
        try:
            values = read_json(Path(path))
        except ConfigError as error:
            raise PolicyError(str(error)) from error
        return cls.from_dict(values, str(path))


def as_int(value: object) -> int | None:
    """An integer of any kind (NumPy's too) as an int; None for a bool or anything else."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_int(name: str, value: object, wanted: str = "a positive integer") -> int:
    """An integer of at least 1, of any kind. InputError names the argument."""
    number = as_int(value)
    if number is None or number < 1:
        raise InputError(f"{name} is {value!r}, wanted {wanted}")
    return number


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """InputError unless the value is one of the choices."""
    if value not in (known := tuple(choices)):
        raise InputError(f"{name} is {value!r}, wanted {one_of(known)}")


def _as_number(value: object) -> int | float | None:
    """An integer or finite float of any kind as Python's own; None for anything else."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return as_int(value)
