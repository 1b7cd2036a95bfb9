"""The arrays of a policy that were fitted to one model: scorers of tokens, and maps that restore dropped ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitrans.arguments import as_int
from minitrans.errors import PolicyError
from minitrans.files import write_file
from minitrans.models.parameters import Linear

TURN_FEATURES = 3  # log cost, log n, (log n)**2
TENSOR_LIMIT = 1 << 30  # bytes of a policy's arrays
_TENSOR = re.compile(r"layer\.(0|[1-9][0-9]{0,3})\.(scorer|restore|turn)\.(weight|bias)")


@dataclass(frozen=True, eq=False)
class Fitted:
    """What `minitrans adapt` fits for one model: linear maps of a token's hidden state after a layer's attention block.

    Args:
        model: `Identity.weights` of the model they were fitted for.
        scorers: layer -> map [1, H] to the logarithm of the shift of the embedding without the token, times the square
            of the text's tokens (see adaptation/fitting.py).
        restore: layer -> map [H, H] to how far the token's final hidden state lies from the mean of its text's, with
            which a dropped token enters the pooling.
        turns: layer -> map [1, 3] to the logarithm of the turn of the embedding, in degrees, of what it costs to give
            up some tokens (see `minitrans.encoder.selection.cost`) of a text of n: the logarithm of the cost, log n,
            (log n)**2. More cost turns it farther.
        lengths: tokens of the shortest and of the longest text that they were fitted on; None where that is not known.

    Raises:
        PolicyError: an array of another shape or dtype, or that is not finite; lengths that are none.
    """

    model: str
    scorers: Mapping[int, Linear]
    restore: Mapping[int, Linear]
    turns: Mapping[int, Linear] = field(default_factory=dict)
    lengths: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.lengths is not None:
            object.__setattr__(self, "lengths", _checked_lengths(self.lengths))
        for name in ("scorers", "restore", "turns"):
            found = {layer: _laid_out(linear) for layer, linear in getattr(self, name).items()}
            object.__setattr__(self, name, found)
        widths = {linear.weight.shape[-1] for linear in self._linears() if linear.weight.ndim}
        if len(widths) > 1:
            raise PolicyError(f"pruning policy: the fitted arrays are {sorted(widths)} wide, wanted one width")
        for layer, linear in self.scorers.items():
            _check_linear(f"layer {layer}, scorer", linear, 1)
        for layer, linear in self.restore.items():
            _check_linear(f"layer {layer}, restore", linear, linear.weight.shape[-1] if linear.weight.ndim else 1)
        for layer, linear in self.turns.items():
            _check_linear(f"layer {layer}, turn", linear, 1, TURN_FEATURES)
            if linear.weight[0, 0] <= 0:
                raise PolicyError(
                    f"pruning policy: layer {layer}, turn weighs the cost by {linear.weight[0, 0]}, wanted more than "
                    "0; adapt again"
                )

    @property
    def width(self) -> int:
        """H, the width of the hidden states that the maps take; 0 where there are no maps."""
        return next((linear.weight.shape[1] for linear in self._linears()), 0)

    def _linears(self) -> tuple[Linear, ...]:
        return *self.scorers.values(), *self.restore.values()

    @cached_property
    def _bytes(self) -> bytes:
        from safetensors.numpy import save

        tensors: dict[str, NDArray[np.float32]] = {}
        for kind, linears in (("scorer", self.scorers), ("restore", self.restore), ("turn", self.turns)):
            for layer, linear in linears.items():
                tensors[f"layer.{layer}.{kind}.weight"] = np.ascontiguousarray(linear.weight)
                tensors[f"layer.{layer}.{kind}.bias"] = np.ascontiguousarray(linear.bias)
        return save(tensors)

    @cached_property
    def sha256(self) -> str:
        """Digest of the arrays as they are stored."""
        return hashlib.sha256(self._bytes).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fitted):
            return NotImplemented
        return (self.model, self.sha256) == (other.model, other.sha256)

    def __hash__(self) -> int:
        return hash((self.model, self.sha256))

    def __reduce__(self) -> tuple[Any, ...]:
        return Fitted, (self.model, self.scorers, self.restore, self.turns, self.lengths)

    def save(self, path: Path, like: Path | None = None) -> None:
        """Write the arrays as safetensors, whole or not at all, with the permissions of ``like``."""
        write_file(path, self._bytes, like)

    @classmethod
    def load(cls, path: Path, model: str, sha256: str) -> Fitted:
        """Read what ``save`` wrote. PolicyError if it is missing, broken, or has another digest."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            with path.open("rb") as file:
                data = file.read(TENSOR_LIMIT + 1)
        except OSError as error:
            raise PolicyError(
                f"cannot read {path}: {error.strerror or error}; a fitted policy is two files, copy both"
            ) from error
        if (seen := hashlib.sha256(data).hexdigest()) != sha256:
            raise PolicyError(f"{path} has the sha256 {seen}, wanted {sha256}; the two files belong to two policies")
        try:
            tensors = load(data)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"{path} is not safetensors ({error}), wanted a policy's arrays; adapt again") from error
        parts: dict[str, dict[int, dict[str, Any]]] = {"scorer": {}, "restore": {}, "turn": {}}
        for name, tensor in tensors.items():
            match = _TENSOR.fullmatch(name)
            if match is None:
                raise PolicyError(
                    f"{path} holds a tensor {name!r}, wanted layer.<n>.<scorer, restore or turn>.<weight or bias>"
                )
            parts[match[2]].setdefault(int(match[1]), {})[match[3]] = tensor
        try:
            maps = {kind: {n: Linear(**part) for n, part in sorted(found.items())} for kind, found in parts.items()}
        except TypeError:
            raise PolicyError(f"{path}: a map lacks its weight or its bias; adapt again") from None
        try:
            return cls(model, maps["scorer"], maps["restore"], maps["turn"])
        except PolicyError as error:
            raise PolicyError(f"{path}: {str(error).removeprefix('pruning policy: ')}") from None


NOTHING_FITTED = Fitted("", {}, {})


def _laid_out(linear: Linear) -> Linear:
    """The map with its arrays laid out row by row, as the kernels read them."""
    return Linear(np.asarray(linear.weight, order="C"), np.asarray(linear.bias, order="C"))


def _check_linear(name: str, linear: Linear, outputs: int, inputs: int | None = None) -> None:
    weight, bias = linear.weight, linear.bias
    fine = weight.ndim == 2 and len(weight) == outputs and weight.shape[1] > 0 and bias.shape == (outputs,)
    fine = fine and inputs in (None, weight.shape[1])
    if not fine or weight.dtype != np.float32 or bias.dtype != np.float32:
        seen = f"{weight.dtype} {list(weight.shape)} and {bias.dtype} {list(bias.shape)}"
        wanted = f"float32 [{outputs}, {inputs or 'H'}] and [{outputs}]"
        raise PolicyError(f"pruning policy: {name} is {seen}, wanted {wanted}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise PolicyError(f"pruning policy: {name} holds NaN or infinity, wanted finite numbers; adapt again")


def _checked_lengths(lengths: Any) -> tuple[int, int]:
    numbers = [as_int(each) or 0 for each in lengths] if isinstance(lengths, list | tuple) else []
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        wanted = "the least and the most tokens of the texts that it was fitted on, or null"
        raise PolicyError(f"pruning policy: lengths is {lengths!r:.100}, wanted {wanted}")
    return numbers[0], numbers[1]
