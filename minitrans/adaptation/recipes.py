"""Which pruning policies the search tries: first a coarse grid, then the neighbours of what did well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from minitrans.encoder.fitted import Fitted
from minitrans.encoder.policy import PruningPolicy, Reduce, Score

T = TypeVar("T")

METHODS: tuple[tuple[Score, Reduce], ...] = (
    ("attention", "drop"),  # the paper's
    ("attention", "merge"),
    ("attention", "restore"),
    ("learned", "drop"),
    ("learned", "restore"),
)
QUANTILES = (0.2, 0.35, 0.5, 0.65)
LEARNED_QUANTILES = (0.3, 0.5)  # the rest of a learned method's share of the grid are turns
MIN_TOKENS = 6
DEEPEST = 3  # pruning later than this saves too little to be worth a search
CAP = 0.7  # the most that a text loses however little it turns
TURNS = (6.0, 8.0, 10.0, 12.0, 14.0, 17.0, 20.0, 25.0)  # degrees; every second one is in the grid
LEAST_OF_TURNS = 4  # tokens: a text that can spare none keeps all, however short it is


@dataclass(frozen=True)
class Recipe:
    """A policy without its fitted arrays; its fields mean what they mean in `PruningPolicy`."""

    stages: tuple[tuple[int, float], ...]
    score: Score
    reduce: Reduce
    min_tokens: int = MIN_TOKENS
    protect_special: bool = False
    max_turn: float | None = None

    @property
    def layer(self) -> int:
        """The first layer at which it prunes."""
        return self.stages[0][0]

    @property
    def is_fitted(self) -> bool:
        """Whether it needs fitted arrays."""
        return self.score == "learned" or self.reduce == "restore"

    @property
    def simplicity(self) -> tuple[int, int, int, int]:
        """Smaller is simpler: fewer fitted parts, fewer stages, fewer exceptions."""
        fitted = (self.score == "learned") + (self.reduce == "restore")
        return fitted, len(self.stages), (self.max_turn is not None) + self.protect_special, self.reduce == "merge"

    def policy(self, fitted: Fitted | None, provenance: dict[str, Any] | None = None) -> PruningPolicy:
        """The policy, with those of the arrays that it needs."""
        (layer, quantile), *more = self.stages
        policy = PruningPolicy(
            min_tokens=self.min_tokens,
            quantile=quantile,
            layer=layer,
            score=self.score,
            reduce=self.reduce,
            protect_special=self.protect_special,
            stages=self.stages if more else None,
            max_turn=self.max_turn,
            fitted=fitted if self.is_fitted else None,
            provenance=provenance or {},
        )
        return policy if policy.fitted is None else replace(policy, fitted=policy.needed(policy.fitted))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"stages": [list(stage) for stage in self.stages]}

    def __str__(self) -> str:
        if self.max_turn is None:
            where = ", ".join(f"l={layer} q={quantile:g}" for layer, quantile in self.stages)
        else:
            where = ", ".join(f"l={layer}" for layer, _ in self.stages) + f" turn={self.max_turn:g}"
        protected = ", specials protected" if self.protect_special else ""
        return f"{self.score}, {self.reduce}, s={self.min_tokens} {where}{protected}"


def grid(num_layers: int) -> list[Recipe]:
    """Every method at every layer, by some quantiles and, where the score is learned, turns; the gentlest first."""
    found = []
    for score, reduce in METHODS:
        for layer in range(min(DEEPEST + 1, max(1, num_layers - 1))):
            quantiles = LEARNED_QUANTILES if score == "learned" else QUANTILES
            found += [Recipe(((layer, quantile),), score, reduce) for quantile in quantiles]
            if score == "learned":
                found += [_by_turn(layer, score, reduce, degrees) for degrees in TURNS[::2]]
    return found


def _by_turn(layer: int, score: Score, reduce: Reduce, degrees: float) -> Recipe:
    return Recipe(((layer, CAP),), score, reduce, LEAST_OF_TURNS, max_turn=degrees)


def neighbours(recipe: Recipe, num_layers: int) -> list[Recipe]:
    """Policies that differ from this one in one respect."""
    (layer, quantile), *more = recipe.stages
    found = [replace(recipe, min_tokens=least) for least in (4, 8, 10)]
    found.append(replace(recipe, protect_special=True))
    if recipe.max_turn is None and not more:
        found += [
            replace(recipe, stages=((layer, round(quantile + step, 2)),))
            for step in (-0.05, 0.05)
            if 0 < quantile + step < CAP
        ]
        found += [
            replace(recipe, stages=((layer, quantile), (later, second)))
            for later in (layer + 1, layer + 2)
            if later < num_layers
            for second in (0.3, 0.5)
        ]
    if recipe.max_turn is not None:
        gentler = [degrees for degrees in TURNS if degrees < recipe.max_turn]
        farther = [degrees for degrees in TURNS if degrees > recipe.max_turn]
        found += [replace(recipe, max_turn=degrees) for degrees in (*gentler[-1:], *farther[:1])]
    return [other for other in found if other != recipe]


def is_milder(recipe: Recipe, other: Recipe) -> bool:
    """Whether a recipe prunes less than another one of its kind, at the same layers; a second stage only adds to it."""
    alike = replace(recipe, stages=other.stages, max_turn=other.max_turn) == other and recipe.layer == other.layer
    if not alike or recipe.stages[1:] not in ((), other.stages[1:]):
        return False
    if recipe.max_turn is not None and other.max_turn is not None:
        return recipe.stages == other.stages and recipe.max_turn < other.max_turn
    return recipe.max_turn == other.max_turn and recipe.stages[0][1] < other.stages[0][1]


def new_ones(recipes: Iterable[Recipe], known: Iterable[Recipe]) -> list[Recipe]:
    """The recipes that are not among the known ones, each once, in order."""
    seen = set(known)
    return [recipe for recipe in dict.fromkeys(recipes) if recipe not in seen]


def front(items: Iterable[T], price: Callable[[T], tuple[float, float]]) -> list[T]:
    """Those that no other beats in both numbers of their ``price``, by the first one; of equal ones the first."""
    best: list[T] = []
    for each in sorted(items, key=price):
        if not best or price(each)[1] < price(best[-1])[1]:
            best.append(each)
    return best
