"""Tasks and searches as the search for a policy uses them: their texts, and what is measured on the embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from minitrans.backends.blas import single_threaded_blas
from minitrans.data.searches import SearchTask
from minitrans.data.tasks import Draw, Task, draw
from minitrans.encoder.packing import PackedBatch
from minitrans.encoder.pooling import normalized
from minitrans.evaluation.fidelity import nearest_length, turns
from minitrans.evaluation.metrics import accuracy
from minitrans.evaluation.retrieval import SIDES, reciprocal_ranks, top_documents
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.models.parameters import Float32
from minitrans.sentences.batches import by_length
from minitrans.sentences.sentence_encoder import DOCUMENT_PROMPTS, QUERY_PROMPTS, SentenceEncoder
from minitrans.sentences.threads import available_cpus, in_order


class _Texts:
    """The texts of a trial, which are embedded under every policy.

    Attributes:
        name: of the task.
        texts: without prompts.
        own: how many of them, the first ones, count for turns: the names of classes do not.
    """

    def __init__(self, name: str, texts: list[str], own: int) -> None:
        self.name, self.texts, self.own = name, texts, own
        self._packed: list[tuple[NDArray[np.int64], PackedBatch]] = []

    def prompted(self, encoder: SentenceEncoder) -> list[str]:
        """The texts as the encoder sees them."""
        return prompted(encoder, self.texts)

    def packed(self, encoder: SentenceEncoder) -> list[tuple[NDArray[np.int64], PackedBatch]]:
        """The texts as batches of tokens, each behind the rows of ``texts`` that it holds."""
        if not self._packed:
            self._packed = by_length(encoder.tokenizer, self.prompted(encoder))
        return self._packed

    def lengths(self, encoder: SentenceEncoder) -> NDArray[np.int64]:
        """Tokens of the texts that count for turns: [own]."""
        lengths = np.empty(len(self.texts), np.int64)
        for rows, batch in self.packed(encoder):
            lengths[rows] = np.diff(batch.offsets)
        return lengths[: self.own]

    def turned(self, encoder: SentenceEncoder, unpruned: Float32, pruned: Float32) -> list[tuple[int, int, float]]:
        """Of each of `fidelity.LENGTHS` that there is: the length, the texts, their mean turn in degrees."""
        near = nearest_length(self.lengths(encoder).tolist())
        angles = turns(unpruned[: self.own], pruned[: self.own])
        found = [(int(length), angles[near == length]) for length in np.unique(near)]
        return [(length, len(some), float(some.mean())) for length, some in found]


class Trial(_Texts):
    """The draws of a task, and every text that they need, once each."""

    def __init__(self, task: Task, shots: Sequence[int], seeds: Sequence[int], test_texts: int) -> None:
        self.draws = [[_smaller(draw(task, count, seed), test_texts) for seed in seeds] for count in shots]
        place: dict[str, int] = {}
        draws = [each for row in self.draws for each in row]
        for text in (text for each in draws for text in (*each.train.texts, *each.test.texts)):
            place.setdefault(text, len(place))
        own = len(place)
        for text in (text for each in draws for text in each.class_names):
            place.setdefault(text, len(place))
        super().__init__(task.name, list(place), own)
        self._place = place
        self.timed_texts = self.draws[0][0].test.texts

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


class SearchTrial(_Texts):
    """The queries and the documents of a search, behind one another."""

    def __init__(self, task: SearchTask, most: int) -> None:
        self.task = smaller_search(task, most)
        texts = [*self.task.queries, *self.task.documents]
        super().__init__(task.name, texts, len(texts))
        order = np.random.default_rng(0).permutation(len(texts))
        self.timed_texts = [texts[row] for row in order]

    def prompted(self, encoder: SentenceEncoder) -> list[str]:
        """The texts as `encode_query` and `encode_document` see them."""
        return prompted_search(encoder, self.task)

    def mrr(self, encoder: SentenceEncoder, unpruned: Float32, pruned: Float32) -> dict[str, float]:
        """MRR@10 in [0, 1] of every way in which pruned and unpruned embeddings [texts, H] meet (`SIDES`)."""
        if encoder.similarity_fn_name != "dot":
            unpruned, pruned = normalized(unpruned), normalized(pruned)
        count, found = len(self.task.queries), {}
        for way, (queries, documents) in SIDES.items():
            asked, held = (pruned if queries else unpruned)[:count], (pruned if documents else unpruned)[count:]
            found[way] = float(reciprocal_ranks(top_documents(asked, held), self.task.relevant).mean())
        return found


def _smaller(each: Draw, most: int) -> Draw:
    """The draw with at most ``most`` test examples, chosen from the whole split."""
    count = len(each.test.texts)
    if count <= most:
        return each
    rows = np.random.default_rng(0).permutation(count)[:most]
    test = type(each.test)([each.test.texts[i] for i in rows], [each.test.labels[i] for i in rows])
    return replace(each, test=test)


def smaller_search(task: SearchTask, most: int) -> SearchTask:
    """The search with at most ``most`` queries, and as many documents, or all that answer these where they are more."""
    if max(len(task.queries), len(task.documents)) <= most:
        return task
    random = np.random.default_rng(0)
    asked = sorted(random.permutation(len(task.queries))[:most].tolist())
    answers = {row for query in asked for row in task.relevant[query]}
    others = [row for row in random.permutation(len(task.documents)).tolist() if row not in answers]
    held = sorted([*answers, *others[: max(0, most - len(answers))]])
    place = {row: i for i, row in enumerate(held)}
    return SearchTask(
        task.name,
        [task.queries[query] for query in asked],
        [task.documents[row] for row in held],
        [[place[row] for row in task.relevant[query]] for query in asked],
        task.source,
    )


def prompted(encoder: SentenceEncoder, texts: Sequence[str]) -> list[str]:
    """The texts as ``encode`` sees them, behind the prompt of the encoder, if it has one."""
    return [encoder.default_prompt + text for text in texts]


def prompted_search(encoder: SentenceEncoder, task: SearchTask) -> list[str]:
    """The queries, then the documents, each behind the prompt for such; no such prompt is no prompt."""
    prompts = [
        next((encoder.prompts[name] for name in names if name in encoder.prompts), "")
        for names in (QUERY_PROMPTS, DOCUMENT_PROMPTS)
    ]
    return [prompts[0] + text for text in task.queries] + [prompts[1] + text for text in task.documents]


def unlabelled_texts(
    encoder: SentenceEncoder,
    tasks: Sequence[Task],
    texts: Sequence[str],
    most: int,
    searches: Sequence[SearchTask] = (),
) -> dict[str, list[str]]:
    """Training texts by task, all texts by search, and the user's own ``texts``, behind the encoder's prompts.

    Of each task and search at most an equal share of ``most``.
    """
    pools: dict[str, Iterable[str]] = {
        task.name: prompted(encoder, (task.splits.get("train") or task.splits["all"]).texts) for task in tasks
    }
    pools |= {search.name: prompted_search(encoder, search) for search in searches}
    share = max(1, most // len(pools))
    found = {}
    for name, texts_of in pools.items():
        pool = sorted({*texts_of})
        order = np.random.default_rng(0).permutation(len(pool))[:share]
        found[name] = [pool[i] for i in sorted(order)]
    return found | ({"(texts)": prompted(encoder, sorted({*texts}))} if texts else {})
