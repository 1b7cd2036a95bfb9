"""All that `FewShotClassifier.fit` sets, in one immutable value that is swapped whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from minitrans.errors import NotFittedError
from minitrans.fewshot.examples import Encoder, Labels
from minitrans.fewshot.head import Head
from minitrans.fewshot.rejection import Rejection

Float32 = NDArray[np.float32]
Self = TypeVar("Self", bound="StateAttributes")

_SWAP = threading.RLock()  # held for the moment of a comparison and an assignment
if hasattr(os, "register_at_fork"):  # a child has no other threads: what they hold would stay locked in it
    os.register_at_fork(before=_SWAP.acquire, after_in_parent=_SWAP.release, after_in_child=_SWAP.release)


@dataclass(frozen=True, eq=False)
class State:
    """What a classifier knows at one moment: who reads it once has all of one fit, whatever others fit meanwhile.

    Attributes:
        encoder: a name, a folder or None stands for an encoder that was not needed yet.
        texts: of the examples, or None where not all are known.
        head: what was learned from their embeddings.
    """

    encoder: Encoder | str | os.PathLike[str] | None
    texts: list[str] | None
    head: Head


class StateAttributes:
    """The attributes that `fit` sets, read off the present state. NotFittedError, an AttributeError, before `fit`."""

    _present: State | None = None

    @property
    def classes_(self) -> Labels:
        """``[K]``; `FewShotClassifier` describes this and the following."""
        return self._state().head.classes

    @property
    def coef_(self) -> Float32:
        """``[K, H]``."""
        return self._state().head.coef

    @property
    def intercept_(self) -> Float32:
        """``[K]``."""
        return self._state().head.intercept

    @property
    def n_features_in_(self) -> int:
        """H."""
        return self._state().head.width

    @property
    def converged_(self) -> bool:
        """Whether the last fit came within the solver's tolerance."""
        return self._state().head.converged

    @property
    def encoder_(self) -> Encoder | None:
        """None until one is needed."""
        encoder = self._state().encoder
        return None if isinstance(encoder, str | os.PathLike) else encoder

    @property
    def embeddings_(self) -> Float32:
        """``[N, H]``."""
        return self._state().head.embeddings

    @property
    def codes_(self) -> NDArray[np.int64]:
        """``[N]``."""
        return self._state().head.codes

    @property
    def labels_(self) -> Labels:
        """``[N]``, made when asked for."""
        return self._state().head.labels

    @property
    def texts_(self) -> list[str] | None:
        """The N texts, or None."""
        return self._state().texts

    @property
    def name_embeddings_(self) -> Float32 | None:
        """``[K, H]``, or None."""
        return self._state().head.names

    @property
    def rejection_(self) -> Rejection | None:
        """None until `calibrate_rejection`."""
        return None if self._present is None else self._present.head.rejection

    def _state(self) -> State:
        if self._present is None:
            raise NotFittedError(f"{self!r} is not fitted; call fit(texts, labels) or load(folder) first")
        return self._present

    def _set(self: Self, state: State) -> Self:
        with _SWAP:
            self._present = state
        return self

    def _swap(self, before: State | None, after: State) -> bool:
        """Put one state in the place of another, unless another thread has put one there meanwhile."""
        with _SWAP:
            if self._present is not before:
                return False
            self._present = after
            return True

    def _change(self: Self, state: Callable[[], State], change: Callable[[State], State]) -> Self:
        """Put what ``change`` makes of the state in its place; made again where another thread was quicker."""
        while True:
            before = state()
            if self._swap(before, change(before)):
                return self
