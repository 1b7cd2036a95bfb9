"""All that `FewShotClassifier.fit` sets, in one immutable value that is swapped whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from minitrans.errors import NotFittedError
from minitrans.fewshot.examples import Encoder, Labels
from minitrans.fewshot.head import Head
from minitrans.fewshot.rejection import Codes, Float32, Rejection

T = TypeVar("T")
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

    @property
    def made_encoder(self) -> Encoder | None:
        """The encoder, if it was needed already."""
        return None if isinstance(self.encoder, str | os.PathLike) else self.encoder


class _Learned(Generic[T]):
    """An attribute that is read off the present state, and cannot be set."""

    def __init__(self, read: Callable[[State], T]) -> None:
        self._read = read

    def __get__(self, classifier: StateAttributes | None, kind: type | None = None) -> T:
        return self if classifier is None else self._read(classifier._state())  # type: ignore[return-value]

    def __set__(self, classifier: StateAttributes, value: object) -> NoReturn:
        raise AttributeError("what fit has learned cannot be set; call fit, or load")


class StateAttributes:
    """The attributes that `fit` sets: see `FewShotClassifier`. NotFittedError, an AttributeError, before `fit`."""

    _present: State | None = None

    classes_ = _Learned[Labels](lambda state: state.head.classes)  # [K]
    coef_ = _Learned[Float32](lambda state: state.head.coef)  # [K, H]
    intercept_ = _Learned[Float32](lambda state: state.head.intercept)  # [K]
    n_features_in_ = _Learned[int](lambda state: state.head.width)
    converged_ = _Learned[bool](lambda state: state.head.converged)
    encoder_ = _Learned["Encoder | None"](lambda state: state.made_encoder)
    embeddings_ = _Learned[Float32](lambda state: state.head.embeddings)  # [N, H]
    codes_ = _Learned[Codes](lambda state: state.head.codes)  # [N]
    labels_ = _Learned[Labels](lambda state: state.head.labels)  # [N]
    texts_ = _Learned["list[str] | None"](lambda state: state.texts)
    name_embeddings_ = _Learned["Float32 | None"](lambda state: state.head.names)  # [K, H]

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
