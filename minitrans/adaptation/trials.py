"""A task as the search for a policy uses it: its draws, every text that they need, and the accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.blas import single_threaded_blas
from minitrans.data.tasks import Draw, Task, draw
from minitrans.encoder.packing import PackedBatch
from minitrans.evaluation.metrics import accuracy
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.models.parameters import Float32
from minitrans.sentences.batches import by_length
from minitrans.sentences.sentence_encoder import SentenceEncoder
from minitrans.sentences.threads import available_cpus, in_order


class Trial:
    """The draws of a task, and every text that they need, once each."""

    def __init__(self, task: Task, shots: Sequence[int], seeds: Sequence[int], test_texts: int) -> None:
        self.name = task.name
        self.draws = [[_smaller(draw(task, count, seed), test_texts) for seed in seeds] for count in shots]
        place: dict[str, int] = {}
        for each in (each for row in self.draws for each in row):
            for text in (*each.train.texts, *each.test.texts, *each.class_names):
                place.setdefault(text, len(place))
        self.texts, self._place = list(place), place
        self.test_texts = self.draws[0][0].test.texts
        self._packed: list[tuple[NDArray[np.int64], PackedBatch]] = []

    def packed(self, encoder: SentenceEncoder) -> list[tuple[NDArray[np.int64], PackedBatch]]:
        """The texts as batches of tokens, each behind the rows of ``texts`` that it holds."""
        if not self._packed:
            self._packed = by_length(encoder.tokenizer, prompted(encoder, self.texts))
        return self._packed

    def accuracies(self, embeddings: Float32) -> NDArray[np.float64]:
        """The accuracy of every draw, [shots, draws], from the embeddings of ``texts``."""

        def rows(texts: Sequence[str]) -> Float32:
            return embeddings[[self._place[text] for text in texts]]

        def one(each: Draw, helpers: int = 0) -> float:
            classifier = FewShotClassifier().fit_embeddings(
                rows(each.train.texts), each.train.labels, rows(each.class_names)
            )
            predicted = classifier.predict_embeddings(rows(each.test.texts))
            return accuracy(each.test.labels, [str(label) for label in predicted])

        draws = [each for row in self.draws for each in row]
        with single_threaded_blas():  # small matrices: several fits at once are faster than several threads in each
            found = list(in_order(one, draws, available_cpus()))
        return np.array(found).reshape(len(self.draws), -1)


def _smaller(each: Draw, most: int) -> Draw:
    """The draw with at most ``most`` test examples, chosen from the whole split."""
    count = len(each.test.texts)
    if count <= most:
        return each
    rows = np.random.default_rng(0).permutation(count)[:most]
    test = type(each.test)([each.test.texts[i] for i in rows], [each.test.labels[i] for i in rows])
    return replace(each, test=test)


def prompted(encoder: SentenceEncoder, texts: Sequence[str]) -> list[str]:
    """The texts as ``encode`` sees them, behind the prompt of the encoder, if it has one."""
    return [encoder.default_prompt + text for text in texts]


def unlabelled_texts(tasks: Sequence[Task], texts: Sequence[str], most: int) -> dict[str, list[str]]:
    """Training texts by task, at most an equal share of ``most`` from each, and the user's own ``texts``."""
    found = {task.name: sorted({*(task.splits.get("train") or task.splits["all"]).texts}) for task in tasks}
    share = max(1, most // len(found))
    for name, pool in found.items():
        order = np.random.default_rng(0).permutation(len(pool))[:share]
        found[name] = [pool[i] for i in sorted(order)]
    return found | ({"(texts)": sorted({*texts})} if texts else {})
