"""Which encoder is this: all that an embedding depends on, in parts, so that a refusal can say in what two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from minitrans.errors import InputError, MinitransError, ModelError, ModelNotFoundError
from minitrans.files import is_sha256
from minitrans.models.config import EncoderConfig
from minitrans.models.folder import ModelFolder
from minitrans.models.parameters import Parameters
from minitrans.models.sentence import PoolingConfig
from minitrans.models.weights import load_parameters, weight_files
from minitrans.words import listed

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Identity:
    """What an encoder is. Two encoders of one identity give every text the same vector, up to the backend's rounding.

    Attributes:
        weights: sha256 of all weights, sizes and activation. The int8 form of a model has that of the float32 model
            which its provenance names, and no other model has it.
        tokenizer: sha256 of what turns a text into token ids, ``max_seq_length`` included.
        pooling: modes, normalisation and ``truncate_dim``, in words.
        prompts: sha256 of the prompts and of which one is the default; a prompt without text counts as none.
        precision: "float32" or "int8"; "float32 from int8" for int8 weights that are computed with in float32.
    """

    weights: str
    tokenizer: str
    pooling: str
    prompts: str
    precision: str

    @classmethod
    def of(
        cls,
        weights: str,
        tokenizer: str,
        pooling: PoolingConfig,
        truncate_dim: int | None,
        prompts: Mapping[str, str],
        default_prompt: str,
        precision: str,
    ) -> Identity:
        """Put together what an encoder has; ``default_prompt`` is the text itself."""
        words = ["+".join(pooling.modes)]
        words += ["normalized"] if pooling.normalize else []
        words += [] if truncate_dim is None else [f"first {truncate_dim} dimensions"]
        named = {name: text for name, text in prompts.items() if text}
        prompted = sha256_of_json({"named": named, "default": default_prompt})
        return cls(weights, tokenizer, ", ".join(words), prompted, precision)

    @property
    def sha256(self) -> str:
        """Digest of all parts together."""
        return sha256_of_json(asdict(self))

    def to_dict(self) -> dict[str, str]:
        """The digest of all parts, then each part: plain JSON values, for `from_dict`."""
        return {"sha256": self.sha256, **asdict(self)}

    @classmethod
    def from_dict(cls, values: object) -> Identity:
        """Read what `to_dict` wrote. InputError if it is anything else."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or not all(isinstance(values.get(name), str) for name in names):
            raise InputError(f"an encoder's identity is {values!r:.100}, wanted an object of {', '.join(names)}")
        identity = cls(**{name: values[name] for name in names})
        if dict(values) != identity.to_dict():
            raise InputError(f"an encoder's identity is {values!r:.100}, whose sha256 should be {identity.sha256}")
        return identity

    def difference(self, other: Identity) -> str:
        """In what parts ``other`` is another encoder, for messages: "tokenizer and prompts"; "" if in none."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]
        return listed(names)


def sha256_of_json(value: object) -> str:
    """Equal plain JSON values give equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def weights_identity(folder: ModelFolder, parameters: Parameters) -> str:
    """`Identity.weights` of a model folder, from the weights as they were read.

    The provenance of an int8 folder counts only beside the very weights that it was written with.
    """
    own = parameters.sha256
    if parameters.precision == "int8":
        with suppress(MinitransError):
            said = folder.read(PROVENANCE)
            source = said["from"].get("weights") if isinstance(said.get("from"), dict) else None
            if said.get("weights") == own and is_sha256(source):
                return source
    return own


def weight_states(folder: ModelFolder) -> dict[str, tuple[int, int, int]]:
    """Size and times of the weight files: equal as long as nobody writes to them. ModelNotFoundError if one is gone."""
    states = {}
    for path in weight_files(folder):
        try:
            state = path.stat()
        except OSError as error:
            raise ModelNotFoundError(f"cannot read {path}: {error.strerror or error}; fetch the model again") from None
        states[str(path)] = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return states


def weights_read_again(path: Path, config: EncoderConfig, states: Mapping[str, tuple[int, int, int]]) -> str:
    """`Identity.weights` of a folder that was read with this ``config`` when its weights were in these ``states``.

    ModelError if they are not any more.
    """
    folder = ModelFolder.open(path)
    stored = load_parameters(folder)
    identity = weights_identity(folder, stored)
    if stored.config != config or weight_states(folder) != states:
        raise ModelError(f"{path}: its weights are not those that were read; make a new SentenceEncoder")
    return identity
