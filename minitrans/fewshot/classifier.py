"""FewShotClassifier: intents from a handful of examples, as logistic regression on sentence embeddings.

It follows scikit-learn's conventions without needing scikit-learn. Frozen sentence embeddings with a logistic
regression on top are strong where examples are few; the name of a label ("card_arrival" -> "card arrival") is one more
example of it, which helps the more the fewer examples there are.

Dimension letters: N examples, B texts, H embedding width, K classes.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast, overload

import numpy as np
from numpy.typing import ArrayLike

from minitrans.arguments import check_flag
from minitrans.errors import InputError, InputTypeError
from minitrans.fewshot.examples import Encoder, Label, Labels, encoded, float_rows, label_array, text_list
from minitrans.fewshot.examples import label_text as label_text
from minitrans.fewshot.head import Head, fit_head, merged
from minitrans.fewshot.logistic import check_strength
from minitrans.fewshot.rejection import Answer, Float32, Float64
from minitrans.fewshot.saved import check_folder, read_folder, write_folder
from minitrans.fewshot.saved_encoder import check_identity, describe_encoder, saved_encoder
from minitrans.fewshot.state import State, StateAttributes

Self = TypeVar("Self", bound="FewShotClassifier")

_PARAMETERS = ("encoder", "C", "label_names")


class FewShotClassifier(StateAttributes):
    """Classify texts by multinomial logistic regression on their sentence embeddings.

    Args:
        encoder: any object with ``encode(list of str) -> [B, H] float32``; the name or folder of a model, or None for
            the bundled one, which becomes a `SentenceEncoder` when one is needed. Clones share it.
        C: inverse strength of the L2 penalty, as in scikit-learn (two classes too go through the softmax: see
            `fit_logistic`).
        label_names: whether the name of each label is one more example of its class. Only for labels that are str.

    Attributes:
        classes_: ``[K]`` labels, sorted: str or int64.
        coef_, intercept_: ``[K, H]`` and ``[K]`` float32; the logits are ``embeddings @ coef_.T + intercept_``.
        n_features_in_: H, the width of the embeddings.
        converged_: whether the last fit came within the solver's tolerance.
        encoder_: the encoder in use; None until one is needed, after `fit_embeddings` without one.
        embeddings_, labels_: ``[N, H]`` float32 and ``[N]``: the examples, which `partial_fit` and `remove` change.
        codes_: ``[N]`` int64, the places of `labels_` in `classes_`.
        texts_: their N texts, or None where not all are known.
        name_embeddings_: ``[K, H]`` float32 of the labels' names, or None.
        rejection_: the threshold below which `predict` abstains, a `Rejection`; None until `calibrate_rejection`.

    All of them change in one step, or not at all: a call uses what was learned when it began, whatever other threads
    fit meanwhile. `partial_fit`, `remove` and `calibrate_rejection` start from what other threads have just learned;
    nothing is lost.

    A text that comes several times counts each time. Under contradictory labels its probability is shared among them.
    A single class is predicted with probability one.
    """

    _estimator_type = "classifier"  # scikit-learn before 1.6 asks for this, later ones for __sklearn_tags__

    def __init__(
        self, encoder: Encoder | str | os.PathLike[str] | None = None, *, C: float = 10.0, label_names: bool = True
    ) -> None:
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
            InputError: no texts, lengths that differ, an impossible C, or embeddings that are not finite ``[N, H]``.
            NumericalError: see `fit_logistic`.
        """
        texts = text_list(texts)
        labels = label_array(labels, len(texts), texts)
        encoder = _made(self.encoder)
        return self._set(self._learn(encoder, encoded(encoder, texts), labels, None, texts))

    def partial_fit(self: Self, texts: Iterable[str], labels: Iterable[Label]) -> Self:
        """Add ``texts`` with ``labels``, and classes, to what was learned; the result is that of a fit on all of them.

        Only the new texts are encoded, and the solver starts from the present weights. Without an earlier fit this is
        `fit`. It raises as `fit` does, and where labels are of another kind than before or one of them is what stands
        for rejected texts; nothing has changed then. A calibrated rejection keeps its threshold, though scores move
        with the examples: after many of them, or a new class, call `calibrate_rejection` again.
        """
        texts, known = text_list(texts), self._present
        before = None if known is None else (known.texts, known.head.labels)
        labels = label_array(labels, len(texts), texts, before)
        if known is None:
            encoder = _made(self.encoder)
            if self._swap(None, self._learn(encoder, encoded(encoder, texts), labels, None, texts)):
                return self

        def grown(state: State) -> State:
            state.head.check_kind(labels)
            if known is None or state.head is not known.head:  # another thread was quicker
                label_array(labels, len(texts), texts, (state.texts, state.head.labels))
            rows = np.vstack([state.head.embeddings, state.head.rows(_encoded(state, texts))])  # [N, H]
            all_texts = None if state.texts is None else [*state.texts, *texts]
            return self._learn(state.encoder, rows, labels, None, all_texts, state.head)

        return self._change(self._ready, grown)

    def remove(self: Self, texts: Iterable[str], labels: Iterable[Label] | None = None) -> Self:
        """Take the examples of these ``texts`` away; given ``labels``, only those that have them too.

        The result is that of a fit on the others. All copies of an example go, and a class goes with its last one.
        Nothing is encoded again. A calibrated rejection keeps its threshold, as in `partial_fit`.

        Raises:
            NotFittedError: before `fit`.
            InputTypeError: a text or label of another type.
            InputError: an example that is not there, no other is left, or the texts are not known (see `texts_`).
        """
        texts = text_list(texts)
        given = None if labels is None else label_array(labels, len(texts))

        def reduced(state: State) -> State:
            if state.texts is None:
                raise InputError(
                    "the texts of the examples were not kept, wanted all of them; "
                    "fit_embeddings on embeddings_ and labels_ without what is to go"
                )
            asked, known = set[Any](texts), list[Any](state.texts)
            if given is not None:
                state.head.check_kind(given)
                asked = set(zip(texts, given.tolist(), strict=True))
                known = list(zip(state.texts, state.head.labels.tolist(), strict=True))
            if missing := asked - set(known):
                raise InputError(f"{min(missing)!r:.100} is no example, wanted one of fit; see texts_ and labels_")
            gone = np.array([each in asked for each in known])  # [N]
            if gone.all():
                raise InputError(f"{len(known)} of {len(known)} examples would go, wanted one to stay; call fit anew")
            left = [text for text, goes in zip(state.texts, gone, strict=True) if not goes]
            head = state.head.without(gone)
            return self._learn(state.encoder, head.embeddings, head.labels[:0], None, left, head)

        return self._change(self._state, reduced)

    def fit_embeddings(
        self: Self, embeddings: ArrayLike, labels: Iterable[Label], name_embeddings: ArrayLike | None = None
    ) -> Self:
        """`fit` on texts that are encoded already, as ``embeddings [N, H]`` with N ``labels``. Raises as `fit` does.

        ``name_embeddings [K, H]`` are those of the labels' names (see `label_text`) in the order of `classes_`; without
        them, and with ``label_names``, the encoder is asked for them.
        """
        rows = float_rows(embeddings, "embeddings")
        labels = label_array(labels, len(rows))
        names = None if name_embeddings is None else float_rows(name_embeddings, "name_embeddings")
        return self._set(self._learn(self.encoder, rows, labels, names, None))

    @overload
    def predict(self, texts: str) -> Label: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[str]) -> Labels: ...
    def predict(self, texts: str | Iterable[str]) -> Label | Labels:
        """The most probable label (of equals the first in `classes_`): a str gives one label, a list an array ``[B]``.

        After `calibrate_rejection`, a text that is out of scope gets the label `rejection_.abstention`.

        Raises:
            NotFittedError: before `fit`.
            InputTypeError: a text that is no str.
        """
        head, rows = self._embed(texts)
        best = head.predict(rows)  # [B]
        return best[0].item() if isinstance(texts, str) else best

    def predict_proba(self, texts: str | Iterable[str]) -> Float64:
        """Probabilities in the order of `classes_`: a str gives ``[K]``, a list ``[B, K]``.

        A text's probabilities are the same to the last bit whatever other texts are in the call, if its embedding is.
        Raises as `predict` does.
        """
        head, rows = self._embed(texts)
        p = head.probabilities(rows)  # [B, K]
        return p[0] if isinstance(texts, str) else p

    def predict_embeddings(self, embeddings: ArrayLike) -> Labels:
        """`predict` for embeddings ``[B, H]``: labels ``[B]``."""
        head = self._state().head
        return head.predict(head.rows(embeddings))

    def predict_proba_embeddings(self, embeddings: ArrayLike) -> Float64:
        """`predict_proba` for embeddings ``[B, H]``: ``[B, K]``. InputError where they are not that, or not finite."""
        head = self._state().head
        return head.probabilities(head.rows(embeddings))

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
                `minitrans.fewshot.rejection`). "auto" takes the one of the highest AUROC against ``out_of_scope``, and
                "mahalanobis" without it.
            keep: the share of the texts in scope that is not to be rejected. None: 0.95, or with ``out_of_scope`` what
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
        inside, outside = (None if each is None else text_list(each) for each in (texts, out_of_scope))
        return self._calibrate(
            inside, labels, outside, score=score, keep=keep, abstention=abstention, folds=folds, seed=seed
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
        """`calibrate_rejection` for texts that are encoded already: ``embeddings`` and ``out_of_scope`` are ``[M, H]``.

        ``labels``, ``score``, ``keep``, ``abstention``, ``folds`` and ``seed`` are as there. Raises as it does.
        """
        given = (embeddings, out_of_scope)
        inside, outside = (None if each is None else float_rows(each, "embeddings") for each in given)
        return self._calibrate(
            inside, labels, outside, score=score, keep=keep, abstention=abstention, folds=folds, seed=seed
        )

    @overload
    def score_in_scope(self, texts: str, score: str | None = None) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def score_in_scope(self, texts: Iterable[str], score: str | None = None) -> Float64: ...
    def score_in_scope(self, texts: str | Iterable[str], score: str | None = None) -> float | Float64:
        """How much texts belong to the classes, the higher the more: a str gives a float, a list ``[B]``.

        The name of the ``score`` is as in `calibrate_rejection`; None takes the calibrated one, or else "mahalanobis".
        A text's score is the same to the last bit whatever other ``texts`` are in the call, if its embedding is.
        Raises as `predict` does; InputError for an unknown score.
        """
        head, rows = self._embed(texts)
        scores = head.score_in_scope(rows, score)  # [B]
        return float(scores[0]) if isinstance(texts, str) else scores

    def score_in_scope_embeddings(self, embeddings: ArrayLike, score: str | None = None) -> Float64:
        """`score_in_scope` for ``embeddings [B, H]``, by the same ``score``: ``[B]``."""
        head = self._state().head
        return head.score_in_scope(head.rows(embeddings), score)

    def answer(self, texts: Iterable[str], top: int = 3, *, reject: bool = True) -> list[Answer]:
        """What `predict` says of each of the ``texts``, its ``top`` most probable labels, best first, and its score.

        Without ``reject`` no text is rejected. Raises as `predict` does; InputTypeError for a bare str, InputError for
        a top below one.
        """
        head, rows = self._embed(text_list(texts))
        return head.answer(rows, top, reject)

    def answer_embeddings(self, embeddings: ArrayLike, top: int = 3, *, reject: bool = True) -> list[Answer]:
        """`answer` for ``embeddings [B, H]``; ``top`` and ``reject`` are as there."""
        head = self._state().head
        return head.answer(head.rows(embeddings), top, reject)

    def score(self, texts: Iterable[str], labels: Iterable[Label]) -> float:
        """The share of ``texts`` for which `predict` gives their label in ``labels``: the abstention, if rejected.

        NotFittedError before `fit`; else raises as `fit`.
        """
        self._state()
        texts = text_list(texts)
        labels = label_array(labels, len(texts))
        head, rows = self._embed(texts)
        head.check_kind(labels)
        return float(np.mean(head.predict(rows) == labels))

    def save(self, folder: str | os.PathLike[str], *, keep_texts: bool = True) -> None:
        """Write classifier.json, and its arrays in classifier-<digest>.safetensors; those of a fitted policy likewise.

        All of it is written, or nothing, and whoever loads meanwhile gets what was there before or this, whole. The
        encoder itself is not saved, only which one it was, where, and how it prunes. An existing classifier is
        replaced; its files' permissions are kept. Without ``keep_texts`` the examples are saved as embeddings only.

        Raises:
            NotFittedError: before `fit`.
            InputTypeError, InputError: the folder is there and holds anything but a classifier, its path cannot be one,
                or the texts are too long to be kept.
            WriteError: it cannot be written.
        """
        state, target = self._state(), check_folder(folder)
        described: dict[str, Any] = {
            "C": check_strength(self.C),
            "label_names": check_flag("label_names", self.label_names),
            "encoder": describe_encoder(state.made_encoder, target),
        }
        if keep_texts and state.texts is not None:
            described["texts"] = state.texts
        write_folder(target, state.head, described, getattr(state.made_encoder, "pruning", None))

    @classmethod
    def load(
        cls: type[Self],
        folder: str | os.PathLike[str],
        encoder: Encoder | str | os.PathLike[str] | None = None,
        *,
        local_files_only: bool = False,
    ) -> Self:
        """Read the ``folder`` that `save` wrote.

        Without an ``encoder``, it gets a `SentenceEncoder` of the saved name, precision and pruning, which is never
        downloaded with ``local_files_only``. A model folder is looked for beside the classifier as it lay then, so that
        both can be moved together, then where it was. Another place or name of it may be given as ``encoder``. It must
        be the saved encoder: of the same weights, tokenizer, pooling, prompts and precision.

        Raises:
            ClassifierError: the folder is incomplete, broken or inconsistent, or the encoder is not that which the
                classifier was fitted with.
            ModelNotFoundError, DownloadError: the encoder cannot be found.
        """
        if encoder is None or isinstance(encoder, str | os.PathLike):
            saved = read_folder(folder, with_policy=True)
            used: Encoder = saved_encoder(saved, encoder, local_files_only)
        else:
            used = _made(encoder)
            saved = read_folder(folder, with_policy=False)
            check_identity(saved, used)
        values, state = saved.values, State(used, saved.values.get("texts"), saved.head)
        return cls(used, C=values["C"], label_names=values["label_names"])._set(state)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of ``__init__`` by name. ``deep`` is accepted for scikit-learn; there is nothing below."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self: Self, **params: Any) -> Self:
        """Change arguments of ``__init__``; they count from the next fit on. InputError for an unknown name."""
        if unknown := params.keys() - set(_PARAMETERS):
            raise InputError(f"{min(unknown)!r} is no parameter, wanted some of {', '.join(_PARAMETERS)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.encoder!r}, C={self.C!r}, label_names={self.label_names!r})"

    def __sklearn_clone__(self: Self) -> Self:
        return type(self)(**self.get_params())  # not a deep copy: an encoder is large and is not changed by use

    def __sklearn_is_fitted__(self) -> bool:
        return self._present is not None

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        texts = InputTags(one_d_array=True, two_d_array=False, string=True)
        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags(), input_tags=texts)

    def _learn(
        self,
        encoder: Encoder | str | os.PathLike[str] | None,
        rows: Float32,
        labels: Labels,
        names: Float32 | None,
        texts: list[str] | None,
        before: Head | None = None,
    ) -> State:
        """The state after a fit on embeddings ``rows [N, H]``: of the examples ``before``, then those of ``labels``."""
        classes, codes = merged(before, labels)  # [K], [N]
        if check_flag("label_names", self.label_names) and names is None and classes.dtype.kind == "U":
            known: dict[Any, Float32] = {}
            if before is not None and before.names is not None:
                known = dict(zip(before.classes, before.names, strict=True))
            if new := [label for label in classes if label not in known]:
                encoder = _made(encoder)
                known |= dict(zip(new, encoded(encoder, [label_text(str(label)) for label in new]), strict=True))
            names = np.stack([known[label] for label in classes])  # [K, H]
        return State(encoder, texts, fit_head(rows, classes, codes, names, C=self.C, before=before))

    def _calibrate(
        self: Self,
        inside: list[str] | Float32 | None,
        labels: Iterable[Label] | None,
        outside: list[str] | Float32 | None,
        **options: Any,
    ) -> Self:
        """`Head.calibrated` with these options, by texts or embeddings in and out of scope."""
        if labels is not None and inside is not None:
            labels = label_array(labels, len(inside))

        def calibrated(state: State) -> State:
            given = (inside, outside)
            rows, beyond = (_encoded(state, each) if isinstance(each, list) else each for each in given)
            return replace(state, head=state.head.calibrated(rows, labels, beyond, C=self.C, **options))

        encodes = isinstance(inside, list) or isinstance(outside, list)
        return self._change(self._ready if encodes else self._state, calibrated)

    def _ready(self) -> State:
        """The state, with the encoder made if it is not yet."""
        while True:
            state = self._state()
            ready = replace(state, encoder=_made(state.encoder))
            if ready.encoder is state.encoder:
                return state
            if self._swap(state, ready):
                return ready

    def _embed(self, texts: str | Iterable[str]) -> tuple[Head, Float32]:
        """The head, and the embeddings ``[B, H]`` of the texts, with B = 1 for a str."""
        state = self._state()
        items = [texts] if isinstance(texts, str) else text_list(texts)
        if items:
            state = self._ready()
        return state.head, state.head.rows(_encoded(state, items))


def _encoded(state: State, texts: list[str]) -> Float32:
    return encoded(_made(state.encoder), texts) if texts else np.empty((0, state.head.width), np.float32)


def _made(encoder: object) -> Encoder:
    """The encoder that the argument ``encoder`` stands for. InputTypeError for what cannot be one."""
    if encoder is None or isinstance(encoder, str | os.PathLike):
        from minitrans.sentences.sentence_encoder import SentenceEncoder

        return SentenceEncoder(encoder)
    if isinstance(encoder, type) or not callable(getattr(encoder, "encode", None)):
        seen = f"encoder is {reprlib.repr(encoder)} of type {type(encoder).__name__}"
        raise InputTypeError(f"{seen}, wanted an object with encode(list of str), or the folder or name of a model")
    return cast(Encoder, encoder)
