"""FewShotClassifier: intents from a handful of examples, as logistic regression on sentence embeddings.

It follows scikit-learn's conventions without needing scikit-learn. Frozen sentence embeddings with a logistic
regression on top are strong where examples are few; the name of a label ("card_arrival" -> "card arrival") is one more
example of it, which helps the more the fewer examples there are.

Dimension letters: N examples, B texts, H embedding width, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans.errors import ClassifierError, InputError, InputTypeError, NotFittedError
from minitrans.inputs import Encoder, Label, Labels, abstention_label, encoded, float_rows, label_array, text_list
from minitrans.inputs import label_text as label_text
from minitrans.logistic import fit_logistic, softmax
from minitrans.rejection import DEFAULT_SCORE, Answer, HeldOut, KnownClasses, Rejection, calibrate, cross_fit, logits
from minitrans.saved import check_folder, read_folder, saved_encoder, write_folder

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Self = TypeVar("Self", bound="FewShotClassifier")

_PARAMETERS = ("encoder", "C", "label_names")


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
        texts_: their N texts, or None where not all are known.
        name_embeddings_: `[K, H]` float32 of the labels' names, or None.
        rejection_: the threshold below which `predict` abstains, a `Rejection`; None until `calibrate_rejection`.

    A text that comes several times counts each time. Under contradictory labels its probability is shared among them.
    A single class is predicted with probability one.
    """

    _estimator_type = "classifier"  # scikit-learn before 1.6 asks for this, later ones for __sklearn_tags__

    classes_: Labels
    coef_: Float32
    intercept_: Float32
    encoder_: Encoder | None
    name_embeddings_: Float32 | None
    texts_: list[str] | None
    rejection_: Rejection | None = None
    _known: KnownClasses | None = None  # made when needed, from what was learned

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
        texts = text_list(texts)
        labels = label_array(labels, len(texts), texts)
        encoder = _default_encoder() if self.encoder is None else self.encoder
        return self._learn(encoder, encoded(encoder, texts), labels, None, texts)

    def partial_fit(self: Self, texts: Iterable[str], labels: Iterable[Label]) -> Self:
        """Add `texts` with `labels`, and classes, to what was learned; the result is that of a fit on all of them.

        Only the new texts are encoded, and the solver starts from the present weights. Without an earlier fit this is
        `fit`. It raises as `fit` does, and where labels are of another kind than before or one of them is what stands
        for rejected texts; nothing has changed then. A calibrated rejection keeps its threshold, though scores move
        with the examples: after many of them, or a new class, call `calibrate_rejection` again.
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(texts, labels)
        texts = text_list(texts)
        labels = label_array(labels, len(texts), texts, (self.texts_, self.labels_))
        self._check_kind(labels)
        encoder = self._used_encoder()
        embeddings = np.vstack([self.embeddings_, self._check_width(encoded(encoder, texts))])  # [N, H]
        all_texts = None if self.texts_ is None else [*self.texts_, *texts]
        return self._learn(encoder, embeddings, np.concatenate([self.labels_, labels]), None, all_texts, keep=True)

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
        rows = float_rows(embeddings, "embeddings")
        labels = label_array(labels, len(rows))
        names = None if name_embeddings is None else float_rows(name_embeddings, "name_embeddings")
        return self._learn(self.encoder, rows, labels, names, None)

    @overload
    def predict(self, texts: str) -> Label: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[str]) -> Labels: ...
    def predict(self, texts: str | Iterable[str]) -> Label | Labels:
        """The most probable label (of equals the first in `classes_`): a str gives one label, a list an array `[B]`.

        After `calibrate_rejection`, a text that is out of scope gets the label `rejection_.abstention`.

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
        if self.rejection_ is None:
            return best
        accepted = self.score_in_scope_embeddings(embeddings) >= self.rejection_.threshold  # [B]
        return np.where(accepted, best, np.array(self.rejection_.abstention, best.dtype.type))

    def predict_proba_embeddings(self, embeddings: ArrayLike) -> Float64:
        """`predict_proba` for embeddings `[B, H]`: probabilities `[B, K]`.

        Raises:
            NotFittedError: before `fit`.
            InputError: embeddings that are not finite `[B, H]`.
        """
        self._check_fitted()
        rows = self._check_width(float_rows(embeddings, "embeddings"))  # [B, H]
        p: Float64 = softmax(logits(rows, self.coef_, self.intercept_))
        return p

    def calibrate_rejection(
        self: Self,
        texts: Iterable[str] | None = None,
        labels: Iterable[Label] | None = None,
        *,
        out_of_scope: Iterable[str] | None = None,
        score: str = "auto",
        keep: float | None = None,
        abstention: Label | None = None,
        folds: int = 5,
        seed: int = 0,
    ) -> Self:
        """Let `predict` abstain where a text belongs to none of the classes; `rejection_` says what was measured.

        Args:
            texts: texts in scope that were not in `fit`. None takes the examples of `fit`, each scored by a classifier
                fitted on the other folds (see `cross_fit`).
            labels: their labels, to measure the accuracy; None where they are not known.
            out_of_scope: texts that belong to no class, if there are any.
            score: how much a text is in scope: "probability", "energy", "nearest" or "mahalanobis" (see
                `minitrans.rejection`). "auto" takes the one of the highest AUROC against `out_of_scope`, and
                "mahalanobis" without it.
            keep: the share of the texts in scope that is not to be rejected. None: 0.95, or with `out_of_scope` what
                gives the highest mean of the share kept in scope and the share rejected out of scope.
            abstention: the label of what is rejected, which must be none of the classes. None: "oos", or -1 where the
                labels are int.
            folds, seed: of the cross-fitting.

        Raises:
            NotFittedError: before `fit`.
            InputTypeError: a text or label of another type.
            InputError: an argument that is out of range, labels without texts or of no class, an abstention that is a
                class, or a single example, which leaves nothing to fit on.
        """
        self._check_fitted()
        rows = None if texts is None else self._embed(text_list(texts))
        outside = None if out_of_scope is None else self._embed(text_list(out_of_scope))
        return self.calibrate_rejection_embeddings(
            rows, labels, out_of_scope=outside, score=score, keep=keep, abstention=abstention, folds=folds, seed=seed
        )

    def calibrate_rejection_embeddings(
        self: Self,
        embeddings: ArrayLike | None = None,
        labels: Iterable[Label] | None = None,
        *,
        out_of_scope: ArrayLike | None = None,
        score: str = "auto",
        keep: float | None = None,
        abstention: Label | None = None,
        folds: int = 5,
        seed: int = 0,
    ) -> Self:
        """`calibrate_rejection` for texts that are encoded already: `embeddings` and `out_of_scope` are `[M, H]`.

        `labels`, `score`, `keep`, `abstention`, `folds` and `seed` are as there. Raises as it does.
        """
        self._check_fitted()
        abstention = abstention_label(abstention, self.classes_)
        if score in ("probability", "energy") and len(self.classes_) == 1:
            raise InputError(f"score is {score!r}, equal for all texts where there is one class; wanted 'mahalanobis'")
        outside = None if out_of_scope is None else self._scores(out_of_scope)
        if embeddings is not None:
            held_out = HeldOut(self._scores(embeddings), None if labels is None else self._right(embeddings, labels))
        elif labels is not None:
            raise InputError("there are labels without texts; wanted both, or neither to hold out examples of fit")
        else:
            codes = np.searchsorted(self.classes_, self.labels_)  # [N]
            held_out = cross_fit(self.embeddings_, codes, self.name_embeddings_, C=self.C, folds=folds, seed=seed)
        self.rejection_ = calibrate(held_out, outside, abstention=abstention, score=score, keep=keep)
        return self

    @overload
    def score_in_scope(self, texts: str, score: str | None = None) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def score_in_scope(self, texts: Iterable[str], score: str | None = None) -> Float64: ...
    def score_in_scope(self, texts: str | Iterable[str], score: str | None = None) -> float | Float64:
        """How much texts belong to the classes, the higher the more: a str gives a float, a list `[B]`.

        A text's score is the same to the last bit whatever other texts are in the call, if its embedding is.

        Args:
            texts: one or several.
            score: its name (see `calibrate_rejection`); None takes the calibrated one, or else "mahalanobis".

        Raises as `predict` does; InputError for an unknown score.
        """
        scores = self.score_in_scope_embeddings(self._embed(texts), score)  # [B]
        return float(scores[0]) if isinstance(texts, str) else scores

    def score_in_scope_embeddings(self, embeddings: ArrayLike, score: str | None = None) -> Float64:
        """`score_in_scope` for `embeddings [B, H]`, by the same `score`: `[B]`."""
        self._check_fitted()
        if score is None:
            score = DEFAULT_SCORE if self.rejection_ is None else self.rejection_.score
        return self._known_classes().score(score, self._check_width(float_rows(embeddings, "embeddings")))

    def rank(self, texts: Iterable[str], top: int = 3) -> list[list[tuple[Label, float]]]:
        """The `top` most probable labels of each of the `texts` with their probabilities, best first.

        Raises as `predict` does; InputTypeError for a bare str, InputError for a top below one.
        """
        return self._ranked(self._embed(text_list(texts)), top)

    def answer(self, texts: Iterable[str], top: int = 3, *, reject: bool = True) -> list[Answer]:
        """What `predict` and `rank` say of each of the `texts`, and with which score.

        `top` is that of `rank`. Without `reject` no text is rejected. Raises as `rank` does.
        """
        rows = self._embed(text_list(texts))  # [B, H]
        ranked = self._ranked(rows, top)
        if self.rejection_ is None:
            return [Answer(labels[0][0], labels, False, None) for labels in ranked]
        scores = self.score_in_scope_embeddings(rows).tolist()  # [B]
        return [self.rejection_.answer(labels, score, reject) for labels, score in zip(ranked, scores, strict=True)]

    def score(self, texts: Iterable[str], labels: Iterable[Label]) -> float:
        """The share of `texts` whose label in `labels` is what `predict` gives: `rejection_.abstention` if rejected.

        NotFittedError before `fit`; else raises as `fit`.
        """
        self._check_fitted()
        texts = text_list(texts)
        labels = label_array(labels, len(texts))
        self._check_kind(labels)
        return float(np.mean(self.predict(texts) == labels))

    def save(self, folder: str | os.PathLike[str], *, keep_texts: bool = True) -> None:
        """Write `classifier.json`, `classifier.safetensors` and, for a fitted policy, `pruning.safetensors`.

        All of it is written, or nothing. The encoder itself is not saved, only which one it was and how it prunes. An
        existing classifier folder is replaced. Without `keep_texts` the examples are saved as embeddings only.

        Raises:
            NotFittedError: before `fit`.
            InputError: the folder is there and holds anything but a classifier, or the texts are too long to be kept.
        """
        self._check_fitted()
        target = check_folder(folder)
        policy = getattr(self.encoder_, "pruning", None)
        identity = {key: getattr(self.encoder_, key, None) for key in ("name_or_path", "model_sha256", "precision")}
        description = {
            "label_kind": "str" if self.classes_.dtype.kind == "U" else "int",
            "classes": self.classes_.tolist(),
            "C": float(self.C),
            "label_names": bool(self.label_names),
            "converged": self.converged_,
            "encoder": identity | {"pruning": None if policy is None else policy.to_dict()},
        }
        if keep_texts and self.texts_ is not None:
            description["texts"] = self.texts_
        if self.rejection_ is not None:
            description["rejection"] = asdict(self.rejection_)
        codes = np.searchsorted(self.classes_, self.labels_).astype(np.int64)  # [N]
        learned = {"coef": self.coef_, "intercept": self.intercept_, "embeddings": self.embeddings_}
        write_folder(target, description, {**learned, "names": self.name_embeddings_, "codes": codes}, policy)

    @classmethod
    def load(
        cls: type[Self],
        folder: str | os.PathLike[str],
        encoder: Encoder | None = None,
        *,
        local_files_only: bool = False,
    ) -> Self:
        """Read the `folder` that `save` wrote.

        Without an `encoder`, it gets a `SentenceEncoder` of the saved name, precision and pruning, which is never
        downloaded with `local_files_only`. Its weights must have the saved sha256.

        Raises:
            ClassifierError: the folder is incomplete, broken or inconsistent, or the encoder's weights are not those
                that the classifier was fitted with.
            ModelNotFoundError, DownloadError: the encoder cannot be found.
        """
        file, values, tensors = read_folder(Path(folder))
        classes = np.array(values["classes"], dtype=np.str_ if values["label_kind"] == "str" else np.int64)
        encoder = saved_encoder(values["encoder"], file, local_files_only) if encoder is None else encoder
        wanted, seen = values["encoder"].get("model_sha256"), getattr(encoder, "model_sha256", None)
        if wanted is not None and seen is not None and wanted != seen:
            name = values["encoder"].get("name_or_path")
            seen = f"the encoder's weights have the sha256 {seen}"
            raise ClassifierError(f"{file}: {seen}; wanted {wanted}, those of {name!r} in fit; load that, or fit again")
        classifier = cls(encoder, C=values["C"], label_names=values["label_names"])
        classifier.encoder_, classifier.classes_ = encoder, classes
        classifier.coef_, classifier.intercept_ = tensors["coef"], tensors["intercept"]
        classifier.embeddings_, classifier.labels_ = tensors["embeddings"], classes[tensors["codes"]]
        classifier.texts_, classifier.name_embeddings_ = values.get("texts"), tensors.get("names")
        classifier.n_features_in_, classifier.converged_ = classifier.coef_.shape[1], values["converged"]
        classifier.rejection_ = None if values.get("rejection") is None else Rejection(**values["rejection"])
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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_known"}  # can be made again

    def __sklearn_clone__(self: Self) -> Self:
        return type(self)(**self.get_params())  # not a deep copy: an encoder is large and is not changed by use

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        texts = InputTags(one_d_array=True, two_d_array=False, string=True)
        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags(), input_tags=texts)

    def _learn(
        self: Self,
        encoder: Encoder | None,
        rows: Float32,
        labels: Labels,
        names: Float32 | None,
        texts: list[str] | None,
        keep: bool = False,
    ) -> Self:
        """Fit on embeddings `rows [N, H]`; keep starts from the present weights. All attributes change, or none."""
        classes, y = np.unique(labels, return_inverse=True)  # [K], [N]
        rejection = self.rejection_ if keep else None
        if rejection is not None:
            abstention_label(rejection.abstention, classes)
        K, H = len(classes), rows.shape[1]
        if names is None and self.label_names and classes.dtype.kind == "U":
            encoder = _default_encoder() if encoder is None else encoder
            known = {}
            if keep and self.name_embeddings_ is not None:
                known = dict(zip(self.classes_, self.name_embeddings_, strict=True))
            if new := [label for label in classes if label not in known]:
                known |= dict(zip(new, encoded(encoder, [label_text(str(label)) for label in new]), strict=True))
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
        self.embeddings_, self.labels_, self.texts_, self.name_embeddings_ = rows, labels, texts, names
        self.rejection_, self._known = rejection, None
        return self

    def _known_classes(self) -> KnownClasses:
        if self._known is None:
            rows, codes = self.embeddings_, np.searchsorted(self.classes_, self.labels_)  # [N, H], [N]
            if self.name_embeddings_ is not None:
                rows = np.vstack([rows, self.name_embeddings_])  # [N + K, H]
                codes = np.append(codes, np.arange(len(self.classes_)))  # [N + K]
            self._known = KnownClasses(self.coef_, self.intercept_, rows, codes)
        return self._known

    def _scores(self, embeddings: ArrayLike) -> dict[str, Float64]:
        return self._known_classes().scores(self._check_width(float_rows(embeddings, "embeddings")))

    def _ranked(self, rows: Float32, top: int) -> list[list[tuple[Label, float]]]:
        if not isinstance(top, int | np.integer) or top < 1:
            raise InputError(f"top is {top!r}; wanted an integer of at least 1")
        p = self.predict_proba_embeddings(rows)  # [B, K]
        order = np.argsort(-p, axis=1, kind="stable")[:, :top]  # [B, top]
        return [[(self.classes_[k].item(), float(p[i, k])) for k in row] for i, row in enumerate(order)]

    def _right(self, embeddings: ArrayLike, labels: Iterable[Label]) -> NDArray[np.bool_]:
        """Whether the most probable classes of `embeddings [M, H]` are the labels: `[M]`."""
        p = self.predict_proba_embeddings(embeddings)  # [M, K]
        labels = label_array(labels, len(p))
        self._check_kind(labels)
        if unknown := set(labels.tolist()) - set(self.classes_.tolist()):
            raise InputError(f"the label {min(unknown)!r} is no class; wanted texts in scope; give it as out_of_scope")
        right: NDArray[np.bool_] = self.classes_[p.argmax(axis=1)] == labels
        return right

    def _embed(self, texts: str | Iterable[str]) -> Float32:
        """`[B, H]`, with B = 1 for a str."""
        self._check_fitted()
        items = [texts] if isinstance(texts, str) else text_list(texts)
        return encoded(self._used_encoder(), items) if items else np.empty((0, self.n_features_in_), np.float32)

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


def _default_encoder() -> Encoder:
    from minitrans.model import SentenceEncoder

    return SentenceEncoder()
