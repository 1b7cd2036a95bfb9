"""What pruning does: PruningPolicy, frozen and validated; its fitted arrays; the files of both; the shipped ones."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from minitrans.arguments import as_int, as_number
from minitrans.contents import read_json
from minitrans.encoder.fitted import NOTHING_FITTED, Fitted
from minitrans.encoder.policy_files import (
    DEFAULT,
    arrays_in_use,
    arrays_of,
    remove_old_arrays,
    shipped_file,
    shipped_policies,
)
from minitrans.errors import ConfigError, PolicyError
from minitrans.files import target_of
from minitrans.models.config import EncoderConfig
from minitrans.models.parameters import Linear
from minitrans.models.sentence import PoolingMode
from minitrans.together import consistent, content_name, write_together
from minitrans.words import one_of

Score = Literal["attention", "attention_value", "learned", "random", "first"]
Reduce = Literal["drop", "merge", "restore"]

FORMAT, VERSION = "minitrans-pruning-policy", 2
RESTORABLE = ("mean", "mean_sqrt_len_tokens", "cls")  # poolings to which a dropped token can still be added


@dataclass(frozen=True)
class PruningPolicy:
    """Which tokens to give up, where, and what happens to them (arXiv 2408.11799, and extensions of it).

    At layer ``layer``, after its attention block, a text of n tokens with n > ``min_tokens`` keeps its
    ``max(min_tokens, n - floor(quantile * n))`` most important tokens; ties are won by the earlier position. With
    ``max_turn`` each text gives up tokens, the least important first, until its embedding is expected to have turned so
    far, and no more than that share.

    Args:
        min_tokens: s; texts of up to s tokens (specials counted) are left alone, and none falls below s.
        quantile: q in [0, 1), the share of the tokens to give up.
        layer: l, 0-based.
        score: the importance of token j: "attention" is the mean over heads and queries of the attention that
            j receives; "attention_value" weights it by the norm of j's value vector; "learned" is a fitted linear
            function of j's hidden state (adaptation/fitting.py); "random" and "first" (earlier is more important) are
            controls.
        reduce: "drop" removes the rows; "merge" averages each into the most similar kept row, whose size then
            adds log(size) to its attention logit and weights it in the pooling; "restore" adds to the pooling what a
            fitted linear map expects each dropped row to have become.
        max_turn: by how many degrees the embedding may be expected to turn, in (0, 90]; each text then loses what it
            can spare, up to the share ``quantile``. None lets every text give up that share. It needs the "learned"
            score, one stage, and a calibration for the layer, which `minitrans adapt` fits.
        protect_special: never drop what the tokenizer puts around a text ([CLS] and [SEP]).
        stages: several (layer, quantile) pairs, layers ascending, in place of ``layer`` and ``quantile``.
        seed: of the "random" score.
        fitted: the arrays of "learned" and "restore" for the layers of this policy; None where neither is used.
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
    max_turn: float | None = None
    fitted: Fitted | None = field(default=None, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, wanted: str) -> None:
            if not ok:
                raise PolicyError(f"pruning policy: {name} is {getattr(self, name)!r}, wanted {wanted}")

        def take_int(name: str, least: int, below: int, wanted: str) -> None:
            value = as_int(getattr(self, name))
            check(value is not None and least <= value < below, name, wanted)
            object.__setattr__(self, name, value)

        take_int("min_tokens", 1, 2**31, "an integer of at least 1")
        take_int("layer", 0, 2**31, "an integer of at least 0")
        take_int("seed", 0, 2**32, "an integer in [0, 2**32)")
        check(_is_quantile(self.quantile), "quantile", "a number in [0, 1)")
        object.__setattr__(self, "quantile", as_number(self.quantile))
        check(self.score in get_args(Score), "score", f"one of {', '.join(get_args(Score))}")
        check(self.reduce in get_args(Reduce), "reduce", f"one of {', '.join(get_args(Reduce))}")
        check(isinstance(self.protect_special, bool), "protect_special", "true or false")
        check(isinstance(self.provenance, Mapping), "provenance", "a JSON object")
        if self.max_turn is not None:
            degrees = as_number(self.max_turn)
            check(degrees is not None and 0 < degrees <= 90, "max_turn", "a number of degrees in (0, 90], or null")
            object.__setattr__(self, "max_turn", degrees)
        if self.stages is not None:
            self._take_stages(self.stages, check)
        self._check_fitted(check)

    def _take_stages(self, stages: Any, check: Callable[[bool, str, str], None]) -> None:
        wanted = "a non-empty list of (layer, quantile) pairs, layers ascending, quantiles in [0, 1)"
        check(isinstance(stages, list | tuple) and len(stages) > 0, "stages", wanted)
        layers: list[int] = []
        for stage in stages:
            check(isinstance(stage, list | tuple) and len(stage) == 2 and _is_quantile(stage[1]), "stages", wanted)
            layer = as_int(stage[0])
            check(layer is not None and layer >= 0, "stages", wanted)
            layers.append(layer or 0)
        check(layers == sorted(set(layers)), "stages", wanted)
        pairs = zip(layers, stages, strict=True)
        object.__setattr__(self, "stages", tuple((layer, float(stage[1])) for layer, stage in pairs))

    def _check_fitted(self, check: Callable[[bool, str, str], None]) -> None:
        check(isinstance(self.fitted, Fitted | None), "fitted", "a Fitted or None")
        fitted = self.fitted or NOTHING_FITTED
        for name, is_wanted, held in (
            ("score", self.score == "learned", fitted.scorers),
            ("reduce", self.reduce == "restore", fitted.restore),
            ("max_turn", self.max_turn is not None, fitted.turns),
        ):
            missing = [layer for layer in self.plan if layer not in held]
            if is_wanted and missing:
                raise PolicyError(
                    f"pruning policy: {name} is {getattr(self, name)!r} but nothing was fitted for layer {missing[0]}; "
                    "fit it with `minitrans adapt`, or load the file that was written"
                )
        if self.max_turn is not None:
            check(self.score == "learned", "score", "'learned', which max_turn goes by")
            check(len(self.plan) == 1, "stages", "one stage, or max_turn null: a turn is foreseen for one stage")

    @property
    def plan(self) -> dict[int, float]:
        """Layer -> quantile: the stages, or the one pair of ``layer`` and ``quantile``."""
        return dict(self.stages) if self.stages is not None else {self.layer: self.quantile}

    def needed(self, fitted: Fitted) -> Fitted | None:
        """The arrays that this policy uses; None if there are none."""
        scorers = {layer: fitted.scorers[layer] for layer in self.plan if self.score == "learned"}
        restore = {layer: fitted.restore[layer] for layer in self.plan if self.reduce == "restore"}
        turns = {layer: fitted.turns[layer] for layer in self.plan if self.max_turn is not None}
        needs = scorers or restore
        return dataclasses.replace(fitted, scorers=scorers, restore=restore, turns=turns) if needs else None

    def scorer(self, layer: int) -> Linear:
        """The map [1, H] of "learned" at a layer of the plan."""
        return (self.fitted or NOTHING_FITTED).scorers[layer]

    def restore_map(self, layer: int) -> Linear:
        """The map [H, H] of "restore" at a layer of the plan."""
        return (self.fitted or NOTHING_FITTED).restore[layer]

    def turn_map(self, layer: int) -> Linear:
        """The map [1, 3] to the logarithm of the turn that ``max_turn`` goes by, at a layer of the plan."""
        return (self.fitted or NOTHING_FITTED).turns[layer]

    def check_fits(
        self, config: EncoderConfig, pooling: tuple[PoolingMode, ...] = ("mean",), model: str | None = None
    ) -> None:
        """Refuse a policy that cannot run on this model.

        Args:
            config: its sizes.
            pooling: its poolings.
            model: its `Identity.weights`; None checks only the widths of fitted arrays.

        Raises:
            PolicyError: a layer that the model does not have, the pooled token itself could be dropped, or the policy
                was fitted for another model.
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
        if self.reduce == "restore" and (unfit := sorted(set(pooling) - {*RESTORABLE})):
            raise PolicyError(
                f"pruning policy: reduce='restore' works with {', '.join(RESTORABLE)} pooling, this model pools "
                f"{', '.join(unfit)}; use reduce='drop'"
            )
        if self.fitted is None:
            return
        if self.fitted.width not in (0, config.hidden_size):
            raise PolicyError(
                f"pruning policy: it was fitted for hidden states of {self.fitted.width} numbers, this model has "
                f"{config.hidden_size}; fit one for it with `minitrans adapt`"
            )
        if model is not None and model != self.fitted.model:
            raise PolicyError(
                f"pruning policy: it was fitted for a model with the weights {self.fitted.model[:12]}, this one "
                f"has {model[:12]}; fit one for it with `minitrans adapt`"
            )

    @classmethod
    def default_for(cls, config: EncoderConfig, pooling: tuple[PoolingMode, ...] = ("mean",)) -> PruningPolicy:
        """The default policy as far as it fits a model of this ``config`` and ``pooling``.

        It prunes no later than the last layer, and never the token that is pooled.
        """
        layer = min(cls.layer, config.num_hidden_layers - 1)
        return cls(layer=layer, protect_special=bool({"cls", "lasttoken"} & {*pooling}))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` reads them back to an equal policy, given the fitted arrays."""
        values: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        values |= {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.stages is not None:
            values["stages"] = [list(stage) for stage in self.stages]
        if self.fitted is not None:
            lengths = self.fitted.lengths and list(self.fitted.lengths)
            values["fitted"] = {"model": self.fitted.model, "sha256": self.fitted.sha256, "lengths": lengths}
        return values | {"provenance": dict(self.provenance)}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], source: str = "pruning policy", arrays: Path | None = None
    ) -> PruningPolicy:
        """Read what ``to_dict`` wrote. Fields left out take their defaults; unknown ones are refused.

        Args:
            values: the JSON object.
            source: what error messages call it.
            arrays: the file of the fitted arrays, needed where ``values`` speaks of some.

        Raises:
            PolicyError: a field or the arrays are broken or missing.
        """
        if not isinstance(values, Mapping):
            raise PolicyError(f"{source}: holds a {type(values).__name__}, wanted a JSON object")
        if values.get("format", FORMAT) != FORMAT:
            raise PolicyError(f"{source}: format is {values['format']!r}, wanted {FORMAT!r}")
        version = values.get("version", VERSION)
        if as_int(version) not in (1, VERSION):
            raise PolicyError(f"{source}: version is {version!r}, this release reads versions 1 and {VERSION}")
        fields = {key: value for key, value in values.items() if key not in ("format", "version")}
        if version == 1:
            fields = _of_version_1(fields, source)
        unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise PolicyError(f"{source}: unknown fields {unknown}; a newer release may have written them")
        if (described := fields.get("fitted")) is not None:
            names = ("model", "sha256")
            if not isinstance(described, Mapping) or not all(isinstance(described.get(name), str) for name in names):
                raise PolicyError(
                    f"{source}: fitted is {reprlib.repr(described)}, wanted an object of model and sha256"
                )
            if arrays is None:
                raise PolicyError(f"{source}: it has fitted arrays, which are in a file; use PruningPolicy.load")
            fields["fitted"] = Fitted.load(arrays, described["model"], described["sha256"])
        try:
            if described is not None:
                fields["fitted"] = dataclasses.replace(fields["fitted"], lengths=described.get("lengths"))
            return cls(**fields)
        except PolicyError as error:
            raise PolicyError(f"{source}: {str(error).removeprefix('pruning policy: ')}") from None

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON, and its fitted arrays, if any, beside it: policy-<digest>.safetensors.

        Whoever reads meanwhile, or goes on after this process was killed, has the old policy or the new one, whole.

        Raises:
            PolicyError: the path is that of a file of arrays.
            InputTypeError, InputError, WriteError: see `write_together`.
        """
        path = target_of(path)
        if path.suffix == ".safetensors":
            raise PolicyError(f"{path} is the name of a file of arrays, wanted another ending, such as .json")
        data = (json.dumps(self.to_dict(), indent=2) + "\n").encode()
        arrays = {} if self.fitted is None else {content_name(path.stem, self.fitted.sha256): self.fitted.save}
        before = arrays_in_use(path)
        write_together(path, data, arrays, lambda held: remove_old_arrays(path, before, held))

    @classmethod
    def load(cls, path: str | Path) -> PruningPolicy:
        """Read a policy file, and the fitted arrays beside it. PolicyError if it is missing, broken or invalid."""
        file = target_of(path)

        def read() -> PruningPolicy:
            try:
                values = read_json(file)
            except ConfigError as error:
                raise PolicyError(str(error)) from error
            return cls.from_dict(values, str(file), arrays_of(file, values))

        return consistent(file.parent, read)

    @classmethod
    def named(cls, name: str) -> PruningPolicy:
        """The policy of a name: "default", which is ``PruningPolicy()``, or one of ``shipped_policies``.

        Raises:
            PolicyError: there is none of that name.
        """
        if name == DEFAULT:
            return cls()
        if name not in (known := shipped_policies()):
            raise PolicyError(
                f"there is no pruning policy {name!r}, wanted {one_of((DEFAULT, *known))}; "
                "for a policy of your own, PruningPolicy.load its file, or give --pruning the path"
            )
        return _read_shipped(shipped_file(name))


def _of_version_1(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """What a file of version 1 says; its threshold is gone, and its maps restored another thing."""
    if fields.pop("threshold", None) is not None:
        raise PolicyError(f"{source}: threshold is of version 1, and gone; use max_turn, which `minitrans adapt` finds")
    if fields.get("reduce") == "restore":
        raise PolicyError(f"{source}: reduce is 'restore' of version 1, whose map is another; adapt again")
    return fields


def as_policy(pruning: object) -> PruningPolicy | None:
    """A policy, or the one of a name. PolicyError for anything else."""
    if isinstance(pruning, str):
        pruning = PruningPolicy.named(pruning)
    if not isinstance(pruning, PruningPolicy | None):
        raise PolicyError(f"pruning is {pruning!r}, wanted a PruningPolicy, the name of one, or None")
    return pruning


# A call of `encode` may name its policy: what was read once is not read again.


@lru_cache(maxsize=16)
def _read_shipped(path: Path) -> PruningPolicy:
    return PruningPolicy.load(path)


def _is_quantile(value: object) -> bool:
    number = as_number(value)
    return number is not None and 0 <= number < 1


def describe(policy: PruningPolicy | None) -> str:
    """A policy in a few characters, for tables: "s=8 q=0.3 l=2"."""
    if policy is None:
        return "none"
    stages = " ".join(f"q={quantile:g} l={layer}" for layer, quantile in policy.plan.items())
    extras = [] if policy.max_turn is None else [f"max_turn={policy.max_turn:g}"]
    extras += [policy.score] * (policy.score != "attention") + [policy.reduce] * (policy.reduce != "drop")
    return " ".join([f"s={policy.min_tokens} {stages}", *extras, *["protected"] * policy.protect_special])
