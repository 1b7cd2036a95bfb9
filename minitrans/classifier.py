"""FewShotClassifier: intents from a handful of examples, as logistic regression on sentence embeddings.

It follows scikit-learn's conventions without needing scikit-learn. Frozen sentence embeddings with a logistic
regression on top are strong where examples are few; the name of a label ("card_arrival" -> "card arrival") is one more
example of it, which helps the more the fewer examples there are.

Dimension letters: N examples, B texts, H embedding width, K classes.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.errors import ClassifierError, InputError, InputTypeError, NotFittedError, PolicyError
from minitrans.logistic import checked_rows, fit_logistic, softmax
from minitrans.resources import atomic_folder
from minitrans.saved import (
    FORMAT,
    JSON_FILE,
    LABEL_LENGTH,
    TENSOR_FILE,
    VERSION,
    check_folder,
    file_of,
    read_description,
    read_tensors,
    storable,
)

Label = str | int
Labels = NDArray[Any]  # of str or int64
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Self = TypeVar("Self", bound="FewShotClassifier")

_PARAMETERS = ("encoder", "C", "label_names")


class Encoder(Protocol):
    """What a classifier needs; `name_or_path`, `model_sha256`, `precision` and `pruning` are saved where offered."""

    def encode(self, sentences: list[str], /) -> NDArray[Any]:
        """Texts -> `[B, H]` float32."""


class FewShotClassifier:
    """Classify texts by multinomial logistic regression on their sentence embeddings.

    Args:
        encoder: any object with `encode(list of str) -> [B, H] float32`; None takes `SentenceEncoder()` when one is
            needed. Clones share it.
        C: inverse strength of the L2 penalty, as in scikit-learn (two classes too go through the softmax: see
            `fit_logistic`).
        label_names: whether the name of each label is one more example of its class. Only for labels that are str.

    Attributes:
        classes_: `[K]` labels, sorted: str or int64.
        coef_, intercept_: `[K, H]` and `[K]` float32; the logits are `embeddings @ coef_.T + intercept_`.
        n_features_in_: H, the width of the embeddings.
        converged_: whether the last fit came within the solver's tolerance.
        encoder_: the encoder in use; None until one is needed, after `fit_embeddings` without one.
        embeddings_, labels_: `[N, H]` float32 and `[N]`: the examples so far, which `partial_fit` adds to.
        name_embeddings_: `[K, H]` float32 of the labels' names, or None.

    A text that comes several times counts each time. Under contradictory labels its probability is shared among them.
    A single class is predicted with probability one.
    """

    _estimator_type = "classifier"  # scikit-learn before 1.6 asks for this, later ones for __sklearn_tags__

    classes_: Labels
    coef_: Float32
    intercept_: Float32
    encoder_: Encoder | None
    name_embeddings_: Float32 | None

    def __init__(self, encoder: Encoder | None = None, *, C: float = 10.0, label_names: bool = True) -> None:
        self.encoder = encoder
        self.C = C
        self.label_names = label_names

    def fit(self: Self, texts: Iterable[str], labels: Iterable[Label]) -> Self:
        """Learn from texts and their labels, forgetting what was learned before.

        Args:
            texts: N >= 1 texts.
            labels: N labels, all str or all int.

        Raises:
            InputTypeError: a bare str for texts; a text or label of another type; str and int labels mixed.
            InputError: no texts, lengths that differ, an impossible C, or embeddings that are not finite `[N, H]`.
            NumericalError: see `fit_logistic`.
        """
        texts = _text_list(texts)
        labels = _label_array(labels, len(texts))
        encoder = _default_encoder() if self.encoder is None else self.encoder
        return self._learn(encoder, _encode(encoder, texts), labels, None)

    def partial_fit(self: Self, texts: Iterable[str], labels: Iterable[Label]) -> Self:
        """Add examples, and classes, to what was learned; the result is that of a fit on all of them.

        Only the new texts are encoded, and the solver starts from the present weights. Without an earlier fit this is
        `fit`. It raises as `fit` does, and where labels are of another kind than before; nothing has changed then.
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(texts, labels)
        texts = _text_list(texts)
        labels = _label_array(labels, len(texts))
        self._check_kind(labels)
        encoder = self._used_encoder()
        embeddings = np.vstack([self.embeddings_, self._check_width(_encode(encoder, texts))])  # [N, H]
        return self._learn(encoder, embeddings, np.concatenate([self.labels_, labels]), None, keep=True)

    def fit_embeddings(
        self: Self, embeddings: ArrayLike, labels: Iterable[Label], name_embeddings: ArrayLike | None = None
    ) -> Self:
        """`fit` on texts that are encoded already.

        Args:
            embeddings: `[N, H]`.
            labels: N labels.
            name_embeddings: `[K, H]` of the labels' names (see `label_text`) in the order of `classes_`; without it,
                and with `label_names`, the encoder is asked for them.

        Raises as `fit` does.
        """
        rows = _rows(embeddings, "embeddings")
        labels = _label_array(labels, len(rows))
        names = None if name_embeddings is None else _rows(name_embeddings, "name_embeddings")
        return self._learn(self.encoder, rows, labels, names)

    @overload
    def predict(self, texts: str) -> Label: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[str]) -> Labels: ...
    def predict(self, texts: str | Iterable[str]) -> Label | Labels:
        """The most probable label (of equals the first in `classes_`): a str gives one label, a list an array `[B]`.

        Raises:
            NotFittedError: before `fit`.
            InputTypeError: a text that is no str.
        """
        best = self.predict_embeddings(self._embed(texts))  # [B]
        return best[0].item() if isinstance(texts, str) else best

    def predict_proba(self, texts: str | Iterable[str]) -> Float64:
        """Probabilities in the order of `classes_`: a str gives `[K]`, a list `[B, K]`.

        A text's probabilities are the same to the last bit whatever other texts are in the call, if its embedding is.
        Raises as `predict` does.
        """
        p = self.predict_proba_embeddings(self._embed(texts))  # [B, K]
        return p[0] if isinstance(texts, str) else p

    def predict_embeddings(self, embeddings: ArrayLike) -> Labels:
        """`predict` for embeddings `[B, H]`: labels `[B]`."""
        p = self.predict_proba_embeddings(embeddings)  # [B, K]
        best: Labels = self.classes_[p.argmax(axis=1)]
        return best

    def predict_proba_embeddings(self, embeddings: ArrayLike) -> Float64:
        """`predict_proba` for embeddings `[B, H]`: probabilities `[B, K]`.

        Raises:
            NotFittedError: before `fit`.
            InputError: embeddings that are not finite `[B, H]`.
        """
        self._check_fitted()
        rows = self._check_width(_rows(embeddings, "embeddings")).astype(np.float64)  # [B, H]
        weights = self.coef_.T.astype(np.float64, order="C")  # [H, K]; the order too decides on the rounding
        # One product per row: in a product of all rows, the rounding of one would depend on how many there are.
        logits = np.matmul(rows[:, None, :], weights)[:, 0] + self.intercept_  # [B, K]
        p: Float64 = softmax(logits)
        return p

    def rank(self, texts: Iterable[str], top: int = 3) -> list[list[tuple[Label, float]]]:
        """The `top` most probable labels of each text with their probabilities, best first.

        Raises as `predict` does; InputTypeError for a bare str, InputError for a top below one.
        """
        if not isinstance(top, int | np.integer) or top < 1:
            raise InputError(f"top is {top!r}; wanted an integer of at least 1")
        p = self.predict_proba(_text_list(texts))  # [B, K]
        order = np.argsort(-p, axis=1, kind="stable")[:, :top]  # [B, top]
        return [[(self.classes_[k].item(), float(p[i, k])) for k in row] for i, row in enumerate(order)]

    def score(self, texts: Iterable[str], labels: Iterable[Label]) -> float:
        """The share of texts for which `predict` gives the label. NotFittedError before `fit`; else raises as `fit`."""
        self._check_fitted()
        texts = _text_list(texts)
        labels = _label_array(labels, len(texts))
        self._check_kind(labels)
        return float(np.mean(self.predict(texts) == labels))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `classifier.json` and `classifier.safetensors` into a folder, both or neither.

        The encoder itself is not saved, only which one it was. An existing classifier folder is replaced.

        Raises:
            NotFittedError: before `fit`.
            InputError: the folder is there and holds anything but a classifier.
        """
        from safetensors.numpy import save

        self._check_fitted()
        target = check_folder(folder)
        policy = getattr(self.encoder_, "pruning", None)
        identity = {key: getattr(self.encoder_, key, None) for key in ("name_or_path", "model_sha256", "precision")}
        description = {
            "format": FORMAT,
            "version": VERSION,
            "label_kind": "str" if self.classes_.dtype.kind == "U" else "int",
            "classes": self.classes_.tolist(),
            "C": float(self.C),
            "label_names": bool(self.label_names),
            "converged": self.converged_,
            "encoder": identity | {"pruning": None if policy is None else policy.to_dict()},
        }
        codes = np.searchsorted(self.classes_, self.labels_).astype(np.int64)  # [N]
        tensors = {"coef": self.coef_, "intercept": self.intercept_, "embeddings": self.embeddings_, "codes": codes}
        if self.name_embeddings_ is not None:
            tensors["names"] = self.name_embeddings_
        with atomic_folder(target, replace=True) as temporary:
            contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
            (temporary / TENSOR_FILE).write_bytes(save(contiguous))
            (temporary / JSON_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls: type[Self],
        folder: str | os.PathLike[str],
        encoder: Encoder | None = None,
        *,
        local_files_only: bool = False,
    ) -> Self:
        """Read what `save` wrote; without an encoder, a `SentenceEncoder` of the saved name, precision and pruning.

        With `local_files_only` that encoder is never downloaded. Its weights must have the saved sha256.

        Raises:
            ClassifierError: the folder is incomplete, broken or inconsistent, or the encoder's weights are not those
                that the classifier was fitted with.
            ModelNotFoundError, DownloadError: the encoder cannot be found.
        """
        file = file_of(Path(folder), JSON_FILE)
        values = read_description(file)
        classes = np.array(values["classes"], dtype=np.str_ if values["label_kind"] == "str" else np.int64)
        tensors = read_tensors(file_of(Path(folder), TENSOR_FILE), len(classes))
        encoder = _saved_encoder(values["encoder"], file, local_files_only) if encoder is None else encoder
        wanted, seen = values["encoder"].get("model_sha256"), getattr(encoder, "model_sha256", None)
        if wanted is not None and seen is not None and wanted != seen:
            name = values["encoder"].get("name_or_path")
            seen = f"the encoder's weights have the sha256 {seen}"
            raise ClassifierError(f"{file}: {seen}; wanted {wanted}, those of {name!r} in fit; load that, or fit again")
        classifier = cls(encoder, C=values["C"], label_names=values["label_names"])
        classifier.encoder_, classifier.classes_ = encoder, classes
        classifier.coef_, classifier.intercept_ = tensors["coef"], tensors["intercept"]
        classifier.embeddings_, classifier.labels_ = tensors["embeddings"], classes[tensors["codes"]]
        classifier.name_embeddings_ = tensors.get("names")
        classifier.n_features_in_, classifier.converged_ = classifier.coef_.shape[1], values["converged"]
        return classifier

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of `__init__` by name. `deep` is accepted for scikit-learn; there is nothing below."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self: Self, **params: Any) -> Self:
        """Change arguments of `__init__`; they count from the next fit on. InputError for an unknown name."""
        if unknown := params.keys() - set(_PARAMETERS):
            raise InputError(f"{min(unknown)!r} is no parameter; wanted some of {', '.join(_PARAMETERS)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.encoder!r}, C={self.C!r}, label_names={self.label_names!r})"

    def __sklearn_clone__(self: Self) -> Self:
        return type(self)(**self.get_params())  # not a deep copy: an encoder is large and is not changed by use

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        texts = InputTags(one_d_array=True, two_d_array=False, string=True)
        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags(), input_tags=texts)

    def _learn(
        self: Self, encoder: Encoder | None, rows: Float32, labels: Labels, names: Float32 | None, keep: bool = False
    ) -> Self:
        """Fit on embeddings `rows [N, H]`; keep starts from the present weights. All attributes change, or none."""
        classes, y = np.unique(labels, return_inverse=True)  # [K], [N]
        K, H = len(classes), rows.shape[1]
        if names is None and self.label_names and classes.dtype.kind == "U":
            encoder = _default_encoder() if encoder is None else encoder
            known = {}
            if keep and self.name_embeddings_ is not None:
                known = dict(zip(self.classes_, self.name_embeddings_, strict=True))
            if new := [label for label in classes if label not in known]:
                known |= dict(zip(new, _encode(encoder, [label_text(str(label)) for label in new]), strict=True))
            names = np.stack([known[label] for label in classes])  # [K, H]
        if names is not None and names.shape != (K, H):
            raise InputError(f"the label names' embeddings have shape {names.shape}; wanted {(K, H)}")
        X = rows if names is None else np.vstack([rows, names])  # [N + K, H]
        y = y if names is None else np.append(y, np.arange(K))  # [N + K]
        start = None
        if keep:
            coef, intercept = np.zeros((K, H)), np.full(K, self.intercept_.min())  # [K, H], [K]
            before = np.searchsorted(classes, self.classes_)
            coef[before], intercept[before] = self.coef_, self.intercept_
            start = coef, intercept
        result = fit_logistic(X, y, C=self.C, start=start)
        self.encoder_, self.classes_ = encoder, classes
        self.coef_, self.intercept_ = result.coef.astype(np.float32), result.intercept.astype(np.float32)
        self.n_features_in_, self.converged_ = H, result.converged
        self.embeddings_, self.labels_, self.name_embeddings_ = rows, labels, names
        return self

    def _embed(self, texts: str | Iterable[str]) -> Float32:
        """`[B, H]`, with B = 1 for a str."""
        self._check_fitted()
        items = [texts] if isinstance(texts, str) else _text_list(texts)
        return _encode(self._used_encoder(), items) if items else np.empty((0, self.n_features_in_), np.float32)

    def _used_encoder(self) -> Encoder:
        if self.encoder_ is None:
            self.encoder_ = _default_encoder()
        return self.encoder_

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"{self!r} is not fitted; call fit(texts, labels) or load(folder) first")

    def _check_width(self, rows: Float32) -> Float32:
        if rows.shape[1] != self.n_features_in_:
            seen, wanted = rows.shape[1], self.n_features_in_
            raise InputError(f"the embeddings are {seen} wide; wanted {wanted}, as in fit; use the same encoder")
        return rows

    def _check_kind(self, labels: Labels) -> None:
        if labels.dtype.kind != self.classes_.dtype.kind:
            raise InputTypeError(f"label 0 is {labels[0]!r}; wanted the kind of the classes, as {self.classes_[0]!r}")


def label_text(label: str) -> str:
    """The words of a label's name: "card_arrival", "card-arrival" and "cardArrival" give "card arrival".

    Acronyms stay in one piece: "HTTPError2" gives "http error2", "B2B_SALES" gives "b2b sales".
    """
    words = ""
    for i, letter in enumerate(label):
        tail = label[i + 1 : i + 3]
        # A capital begins a word after a small letter, or where at least two small letters follow it.
        if i and letter.isupper() and (label[i - 1].islower() or (len(tail) == 2 and all(map(str.islower, tail)))):
            words += " "
        words += " " if letter in "_-" else letter
    return " ".join(words.lower().split()) or label


def _default_encoder() -> Encoder:
    from minitrans.model import SentenceEncoder

    return SentenceEncoder()


def _saved_encoder(identity: Mapping[str, Any], file: Path, local_files_only: bool) -> Encoder:
    from minitrans.config import PruningPolicy
    from minitrans.model import SentenceEncoder

    for key in ("name_or_path", "model_sha256"):
        if identity.get(key) is None:
            raise ClassifierError(
                f"{file} does not identify its encoder; wanted encoder.{key}; pass load(folder, encoder)"
            )
    pruning = identity.get("pruning")
    try:
        policy = None if pruning is None else PruningPolicy.from_dict(pruning, str(file))
    except PolicyError as error:
        raise ClassifierError(f"{error}; pass load(folder, encoder)") from error
    precision = identity.get("precision") or "auto"
    name = identity["name_or_path"]
    return SentenceEncoder(name, pruning=policy, precision=precision, local_files_only=local_files_only)


def _encode(encoder: Encoder, texts: list[str]) -> Float32:
    rows = _rows(encoder.encode(texts), "the encoder's answer")  # [B, H]
    if len(rows) != len(texts):
        raise InputError(f"the encoder returned {len(rows)} embeddings; wanted {len(texts)}, one for each text")
    return rows


def _rows(values: ArrayLike, what: str) -> Float32:
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        return checked_rows(checked_rows(values, what).astype(np.float32), what)


def _items(values: Iterable[Any], what: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputTypeError(f"{what} is a {type(values).__name__}; wanted a list; put a single one in brackets")
    if (ndim := getattr(values, "ndim", 1)) != 1:
        raise InputTypeError(f"{what} has {ndim} dimensions; wanted one; pass a single column")
    return list(values)


def _text_list(texts: Iterable[str]) -> list[str]:
    items = _items(texts, "texts")
    for i, text in enumerate(items):
        if not isinstance(text, str):
            raise InputTypeError(f"text {i} is {reprlib.repr(text)} of type {type(text).__name__}; wanted str; drop it")
    return [str(text) for text in items]  # numpy.str_ too


def _label_array(labels: Iterable[Label], count: int) -> Labels:
    """`[count]` of str or int64."""
    items = _items(labels, "labels")
    for i, label in enumerate(items):
        seen = f"label {i} is {reprlib.repr(label)} of type {type(label).__name__}"
        if isinstance(label, bool | np.bool_) or not isinstance(label, str | int | np.integer):
            raise InputTypeError(f"{seen}; wanted str or int; drop the example or name its class")
        if isinstance(label, str) != isinstance(items[0], str):
            raise InputTypeError(f"{seen}, but label 0 is {items[0]!r}; wanted all str or all int; convert them")
        if not storable(label):
            wanted = f"a str without NUL of at most {LABEL_LENGTH} characters, or an integer of 64 bits"
            raise InputError(f"{seen}; wanted {wanted}; rename the class")
    if not count or count != len(items):
        raise InputError(f"{count} texts and {len(items)} labels; wanted as many of each, and at least one")
    return np.array(items, dtype=np.str_ if isinstance(items[0], str) else np.int64)
