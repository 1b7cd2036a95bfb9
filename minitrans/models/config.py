"""What a model is: EncoderConfig, frozen and validated, and the precision of what is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from minitrans.arguments import as_int, as_number
from minitrans.contents import SUPPORTED, check_keys
from minitrans.errors import ConfigError, ModelError, UnsupportedModelError
from minitrans.models.folder import ModelFolder

Activation = Literal["gelu", "gelu_new", "relu"]

# The same function under the names that models use for it.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}


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
        for name in [field.name for field in dataclasses.fields(self) if field.type == "int"]:
            value = as_int(getattr(self, name))
            if value is None or not 1 <= value < 2**31:
                raise ConfigError(f"config: {name} is {getattr(self, name)!r}, wanted a positive integer")
            object.__setattr__(self, name, value)
        if self.num_hidden_layers > 1000:
            raise ConfigError(f"config: num_hidden_layers is {self.num_hidden_layers}, wanted at most 1000")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config: hidden_size is {self.hidden_size}, wanted a multiple of num_attention_heads, "
                f"{self.num_attention_heads}"
            )
        eps = as_number(self.layer_norm_eps)
        if eps is None or not 0 < eps < 1:
            raise ConfigError(f"config: layer_norm_eps is {self.layer_norm_eps!r}, wanted a number between 0 and 1")
        if self.hidden_act not in get_args(Activation):
            raise UnsupportedModelError(
                f"config: hidden_act is {self.hidden_act!r}, wanted one of {sorted(_ACTIVATIONS)}"
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
        if values.get("model_type") is None:
            raise UnsupportedModelError(
                f"{source}: model_type is None, wanted 'bert'; if this is a BERT encoder (its architectures are "
                f'{values.get("architectures")!r:.100}), add "model_type": "bert"; {SUPPORTED}'
            )
        check_keys(values, "config.json", source)
        for key, wanted in (
            ("model_type", "bert"),
            ("position_embedding_type", "absolute"),
            ("embedding_size", values.get("hidden_size")),  # else they are factorised
        ):
            if values.get(key, wanted) != wanted:
                raise UnsupportedModelError(f"{source}: {key} is {values[key]!r}, wanted {wanted!r}; {SUPPORTED}")
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        if isinstance(act := values.get("hidden_act"), str):
            known["hidden_act"] = _ACTIVATIONS.get(act, act)
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in known]
        if missing:
            raise ConfigError(f"{source}: {', '.join(missing)} missing; a BERT configuration needs them")
        try:
            return cls(**known)
        except ModelError as error:
            raise type(error)(f"{source}: {error}") from None

    @classmethod
    def from_folder(cls, folder: Path | ModelFolder) -> EncoderConfig:
        """Read ``config.json`` of a model folder."""
        there = ModelFolder.open(folder)
        return cls.from_dict(there.config, str(there.file("config.json")))


INT8_FORMAT = "minitrans-int8"


def stored_precision(folder: ModelFolder) -> str:
    """The precision, "int8" or "float32" (in whatever storage), as ``config.json`` says.

    Raises:
        ConfigError, UnsupportedModelError: it says something else.
    """
    quantization = folder.config.get("quantization_config")
    if quantization is None:
        return "float32"
    file = folder.file("config.json")
    if not isinstance(quantization, dict):
        raise ConfigError(f"{file}: quantization_config is {quantization!r}, wanted a JSON object")
    method = quantization.get("quant_method")
    if method != INT8_FORMAT:
        raise UnsupportedModelError(
            f"{file}: quant_method is {method!r}, wanted {INT8_FORMAT!r}, as `minitrans quantize` writes it, or none"
        )
    if (version := quantization.get("version")) != 1:
        raise UnsupportedModelError(f"{file}: the version of {INT8_FORMAT} is {version!r}, wanted 1 here")
    return "int8"
