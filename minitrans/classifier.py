"""FewShotClassifier: intents from a handful of examples, as logistic regression on sentence embeddings.

It follows scikit-learn's conventions without needing scikit-learn. Frozen sentence embeddings with a logistic
regression on top are strong where examples are few; the name of a label ("card_arrival" -> "card arrival") is one more
example of it, which helps the more the fewer examples there are.

Dimension letters: N examples, B texts, H embedding width, K classes.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.errors import ClassifierError, InputError, InputTypeError, NotFittedError, PolicyError
from minitrans.logistic import fit_logistic, softmax
from minitrans.resources import atomic_folder

Label = str | int
Labels = NDArray[Any]  # of str or int64
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Self = TypeVar("Self", bound="FewShotClassifier")

FORMAT, VERSION = "minitrans-classifier", 1
JSON_FILE, TENSOR_FILE = "classifier.json", "classifier.safetensors"
JSON_LIMIT = 10_000_000  # bytes
PARAMETERS = ("encoder", "C", "label_names")


class Encoder(Protocol):
    """What a classifier needs of an encoder. It may also offer `name_or_path`, `model_sha256`, `precision`, `pruning`."""

    def encode(self, sentences: list[str], /) -> NDArray[Any]:
        """Texts -> `[B, H]` float32."""
        ...


class FewShotClassifier:
    """Classify texts by multinomial logistic regression on their sentence embeddings.

    Args:
        encoder: any object with `encode(list of str) -> [B, H] float32`; None takes `SentenceEncoder()` at the first
            fit. Clones share it.
        C: inverse strength of the L2 penalty, as in scikit-learn (the softmax is used for two classes too: see
            `fit_logistic`).
        label_names: whether the name of each label is one more example of its class. Only for labels that are str.

    Attributes:
        classes_: `[K]` labels, sorted: str or int64.
        coef_: `[K, H]` float32; `intercept_`: `[K]` float32. The logits of a text are `embedding @ coef_.T + intercept_`.
        n_features_in_: H, the width of the embeddings.
        n_iter_: steps of the last fit; `converged_`: whether it reached the solver's tolerance.
        encoder_: the encoder in use.
        embeddings_: `[N, H]` float32, `labels_`: `[N]`: the examples so far, which `partial_fit` adds to.
        name_embeddings_: `[K, H]` float32 of the labels' names, or None.

    The same text may come several times and each time counts. Under contradictory labels its probability is shared
    among them. A single class is predicted with probability one.
    """

    _estimator_type = "classifier"  # scikit-learn before 1.6 asks for this, later ones for __sklearn_tags__

    classes_: Labels
    coef_: Float32
    intercept_: Float32
    n_features_in_: int
    n_iter_: int
    converged_: bool
    encoder_: Encoder
    embeddings_: Float32
    labels_: Labels
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
        """
        texts, labels = _examples(texts, labels)
        encoder = _default_encoder() if self.encoder is None else self.encoder
        return self._learn(encoder, _encode(encoder, texts), labels)

    def partial_fit(self: Self, texts: Iterable[str], labels: Iterable[Label]) -> Self:
        """Add examples, and classes, to what was learned; the result is that of a fit on all of them.

        Only the new texts are encoded, and the solver starts from the present weights. Without an earlier fit this is
        `fit`. If it raises, the classifier stays as it was.

        Raises:
            InputTypeError, InputError: as `fit`; also labels of another kind than those before.
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(texts, labels)
        texts, labels = _examples(texts, labels)
        self._check_kind(labels)
        added = self._check_width(_encode(self._used_encoder(), texts))  # [B, H]
        labels = np.concatenate([self.labels_, labels])  # [N]
        return self._learn(self._used_encoder(), np.vstack([self.embeddings_, added]), labels, keep=True)

    def fit_embeddings(
        self: Self, embeddings: ArrayLike, labels: Iterable[Label], name_embeddings: ArrayLike | None = None
    ) -> Self:
        """`fit` on texts that are encoded already.

        Args:
            embeddings: `[N, H]`.
            labels: N labels.
            name_embeddings: `[K, H]` of the labels' names (see `label_text`) in the order of `classes_`; without it,
                and with `label_names`, the encoder is asked for them.

        Raises:
            InputTypeError, InputError: as `fit`.
        """
        rows, labels = _float32(embeddings, "embeddings"), _label_array(labels)
        _check_length(len(rows), labels)
        names = None if name_embeddings is None else _float32(name_embeddings, "name_embeddings")
        return self._learn(self.encoder, rows, labels, names)

    @overload
    def predict(self, texts: str) -> Label: ...
    @overload
    def predict(self, texts: Iterable[str]) -> Labels: ...
    def predict(self, texts: str | Iterable[str]) -> Label | Labels:
        """The most probable label (of equals the first in `classes_`): a str gives one label, a list an array `[B]`.

        Raises:
            NotFittedError: before `fit`.
            InputTypeError: a text that is no str.
        """
        best: Labels = self.classes_[self._probabilities(texts).argmax(axis=1)]  # [B]
        return best[0].item() if isinstance(texts, str) else best

    def predict_proba(self, texts: str | Iterable[str]) -> Float64:
        """Probabilities in the order of `classes_`: a str gives `[K]`, a list `[B, K]`.

        A text's probabilities are the same to the last bit whatever other texts are in the call, if its embedding is.

        Raises:
            NotFittedError, InputTypeError: as `predict`.
        """
        p = self._probabilities(texts)  # [B, K]
        return p[0] if isinstance(texts, str) else p

    def predict_embeddings(self, embeddings: ArrayLike) -> Labels:
        """`predict` for embeddings `[B, H]`: labels `[B]`."""
        best: Labels = self.classes_[self.predict_proba_embeddings(embeddings).argmax(axis=1)]
        return best

    def predict_proba_embeddings(self, embeddings: ArrayLike) -> Float64:
        """`predict_proba` for embeddings `[B, H]`: probabilities `[B, K]`.

        Raises:
            NotFittedError: before `fit`.
            InputError: embeddings that are not finite `[B, H]`.
        """
        self._check_fitted()
        rows = self._check_width(_float32(embeddings, "embeddings")).astype(np.float64)  # [B, H]
        # One product per row: in a product of all rows, the rounding of one would depend on how many there are.
        logits = np.matmul(rows[:, None, :], self.coef_.T.astype(np.float64))[:, 0] + self.intercept_  # [B, K]
        p: Float64 = softmax(logits)
        return p

    @overload
    def rank(self, texts: str, top: int = ...) -> list[tuple[Label, float]]: ...
    @overload
    def rank(self, texts: Iterable[str], top: int = ...) -> list[list[tuple[Label, float]]]: ...
    def rank(
        self, texts: str | Iterable[str], top: int = 3
    ) -> list[tuple[Label, float]] | list[list[tuple[Label, float]]]:
        """The `top` most probable labels of each text with their probabilities, best first.

        Raises:
            NotFittedError, InputTypeError: as `predict`.
            InputError: top below one.
        """
        if not isinstance(top, int | np.integer) or top < 1:
            raise InputError(f"top is {top!r}; wanted an integer of at least 1")
        p = self._probabilities(texts)  # [B, K]
        order = np.argsort(-p, axis=1, kind="stable")[:, :top]  # [B, top]
        rows = [[(self.classes_[k].item(), float(p[i, k])) for k in ks] for i, ks in enumerate(order)]
        return rows[0] if isinstance(texts, str) else rows

    def score(self, texts: Iterable[str], labels: Iterable[Label]) -> float:
        """The share of texts for which `predict` gives the label.

        Raises:
            NotFittedError: before `fit`.
            InputTypeError, InputError: as `fit`.
        """
        self._check_fitted()
        texts, labels = _examples(texts, labels)
        self._check_kind(labels)
        return float(np.mean(self.predict(texts) == labels))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `classifier.json` and `classifier.safetensors` into a folder, both or neither.

        The encoder itself is not saved, only which one it was. An existing classifier folder is replaced.

        Raises:
            NotFittedError: before `fit`.
            InputError: the folder is there and holds anything but a classifier.
        """
        from safetensors.numpy import save_file

        self._check_fitted()
        target = Path(folder).resolve()
        others = sorted({path.name for path in target.iterdir()} - {JSON_FILE, TENSOR_FILE}) if target.is_dir() else []
        if others or (target.exists() and not target.is_dir()):
            raise InputError(
                f"{target} holds {others[0] if others else 'a file'}; wanted a new folder or one that holds a "
                "classifier alone; name another"
            )
        policy = getattr(self.encoder_, "pruning", None)
        description = {
            "format": FORMAT,
            "version": VERSION,
            "classes": self.classes_.tolist(),
            "label_kind": _kind(self.classes_),
            "C": float(self.C),
            "label_names": bool(self.label_names),
            "n_iter": self.n_iter_,
            "converged": self.converged_,
            "encoder": {
                **{key: getattr(self.encoder_, key, None) for key in ("name_or_path", "model_sha256", "precision")},
                "pruning": None if policy is None else policy.to_dict(),
            },
        }
        tensors = {
            "coef": self.coef_,
            "intercept": self.intercept_,
            "embeddings": self.embeddings_,
            "codes": np.searchsorted(self.classes_, self.labels_).astype(np.int64),
        }
        if self.name_embeddings_ is not None:
            tensors["names"] = self.name_embeddings_
        with atomic_folder(target, replace=True) as temporary:
            save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, temporary / TENSOR_FILE)
            (temporary / JSON_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls: type[Self], folder: str | os.PathLike[str], encoder: Encoder | None = None) -> Self:
        """Read what `save` wrote.

        Args:
            folder: of the classifier.
            encoder: None makes a `SentenceEncoder` of the saved name, precision and pruning policy.

        Raises:
            ClassifierError: the folder is incomplete, broken or inconsistent, or the encoder's weights are not those
                that the classifier was fitted with.
            ModelNotFoundError, DownloadError: the encoder cannot be found.
        """
        root = Path(folder)
        file = _file_of(root, JSON_FILE)
        description = _read_description(file)
        classes = np.array(description["classes"], dtype=np.str_ if description["label_kind"] == "str" else np.int64)
        tensors = _read_tensors(_file_of(root, TENSOR_FILE), len(classes))
        identity = description["encoder"]
        if encoder is None:
            encoder = _saved_encoder(identity, file)
        wanted, seen = identity.get("model_sha256"), getattr(encoder, "model_sha256", None)
        if wanted is not None and seen is not None and wanted != seen:
            raise ClassifierError(
                f"{file}: the encoder's weights have the sha256 {seen}; wanted {wanted}, with which this classifier was "
                f"fitted ({identity.get('name_or_path')!r}); load it with that model or fit it again"
            )
        classifier = cls(encoder, C=description["C"], label_names=description["label_names"])
        classifier.encoder_ = encoder
        classifier.classes_ = classes
        classifier.coef_, classifier.intercept_ = tensors["coef"], tensors["intercept"]
        classifier.embeddings_, classifier.labels_ = tensors["embeddings"], classes[tensors["codes"]]
        classifier.name_embeddings_ = tensors.get("names")
        classifier.n_features_in_ = classifier.coef_.shape[1]
        classifier.n_iter_, classifier.converged_ = description["n_iter"], description["converged"]
        return classifier

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of `__init__` by name. `deep` is accepted for scikit-learn; there is nothing below."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self: Self, **params: Any) -> Self:
        """Change arguments of `__init__`; they count from the next fit on.

        Raises:
            InputError: an unknown name.
        """
        for name in params:
            if name not in PARAMETERS:
                raise InputError(f"{name!r} is no parameter of {type(self).__name__}; wanted {', '.join(PARAMETERS)}")
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

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            regressor_tags=None,
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def _learn(
        self: Self,
        encoder: Encoder | None,
        embeddings: Float32,
        labels: Labels,
        names: Float32 | None = None,
        keep: bool = False,
    ) -> Self:
        """Fit on `embeddings [N, H]`; keep starts from the present weights. All attributes change, or none."""
        classes, y = np.unique(labels, return_inverse=True)  # [K], [N]
        if names is None and self.label_names and classes.dtype.kind == "U":
            encoder = _default_encoder() if encoder is None else encoder
            known = self.name_embeddings_ if keep else None
            names = _name_embeddings(encoder, classes, {} if known is None else dict(zip(self.classes_, known, strict=True)))
        if names is not None and names.shape != (len(classes), embeddings.shape[1]):
            raise InputError(
                f"the embeddings of the label names have shape {names.shape}; wanted {(len(classes), embeddings.shape[1])}"
            )
        X = embeddings if names is None else np.vstack([embeddings, names])  # [N + K, H]
        y = y if names is None else np.append(y, np.arange(len(classes)))  # [N + K]
        start = None
        if keep:
            rows = np.searchsorted(classes, self.classes_)
            coef = np.zeros((len(classes), X.shape[1]))  # [K, H]
            intercept = np.full(len(classes), self.intercept_.min())  # [K]
            coef[rows], intercept[rows] = self.coef_, self.intercept_
            start = coef, intercept
        result = fit_logistic(X, y, C=self.C, start=start)
        if encoder is not None or not hasattr(self, "encoder_"):
            self.encoder_ = encoder
        self.classes_ = classes
        self.coef_, self.intercept_ = result.coef.astype(np.float32), result.intercept.astype(np.float32)
        self.n_features_in_, self.n_iter_, self.converged_ = X.shape[1], result.iterations, result.converged
        self.embeddings_, self.labels_, self.name_embeddings_ = embeddings, labels, names
        return self
