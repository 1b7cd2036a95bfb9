"""How well documents are found by queries: without pruning, and every way in which pruned and unpruned meet."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minitrans import __version__
from minitrans.data.searches import SearchTask
from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import InputError, TruncationWarning
from minitrans.evaluation.few_shot import MEAN, NO_PRUNING, check_names, result_key, with_no_pruning
from minitrans.evaluation.fidelity import turns
from minitrans.evaluation.journal import Journal, foreign_result
from minitrans.evaluation.metrics import Interval, confidence_interval, flat
from minitrans.evaluation.tables import Column, Table
from minitrans.sentences.call import Progress, measuring
from minitrans.sentences.sentence_encoder import SentenceEncoder

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

TOP = 10  # documents that a search shows
BLOCK = 1 << 24  # scores at a time: 64 MB
SIDES = {"both": (True, True), "queries": (True, False), "documents": (False, True)}  # whether queries, documents

COLUMNS = (
    Column("task", "task"),
    Column("pruning", "pruning"),
    Column("pruned", "pruned"),
    Column("queries", "queries"),
    Column("documents", "documents"),
    Column("mrr", "MRR@10", ".3f"),
    Column("mrr_change", "vs none", "+.3f", "mrr_change_ci95"),
    Column("recall", "recall@10", ".3f"),
    Column("recall_change", "recall vs none", "+.3f", "recall_change_ci95"),
    Column("query_turn", "queries °", ".1f"),
    Column("document_turn", "documents °", ".1f"),
)
NARROW = tuple(column for column in COLUMNS if column.key != "recall_change")


@dataclass(frozen=True)
class SearchResult:
    """What a search finds.

    Attributes:
        mrr: mean reciprocal rank of the first relevant document among the first ten, 0 where there is none.
        recall: relevant documents among the first ten, of ten or of all relevant ones where they are fewer; mean.
        mrr_change, recall_change: to no pruning, query by query; None for no pruning itself.
        query_turn, document_turn: mean angle to the embeddings without pruning, in degrees; None where those are used.
    """

    mrr: float
    recall: float
    mrr_change: Interval | None
    recall_change: Interval | None
    query_turn: float | None
    document_turn: float | None


@dataclass(frozen=True)
class SearchRow:
    """The result of a task, a policy, and what is pruned; or the mean of such rows over tasks.

    Attributes:
        pruned: "both", "queries" (against an index without pruning), "documents" (by queries without); None for no
            pruning.
        queries, documents: how many there are.
    """

    task: str
    pruning: str
    pruned: str | None
    queries: int
    documents: int
    result: SearchResult

    def to_dict(self) -> dict[str, Any]:
        """Flat, with the keys of `COLUMNS`; "..._ci95" is half the width of the 95% confidence interval, or None."""
        named = {name: value for name, value in vars(self).items() if name != "result"}
        changes = {name: getattr(self.result, name) for name in ("mrr_change", "recall_change")}
        return named | vars(self.result) | flat(changes)


@dataclass(frozen=True)
class SearchEvaluation:
    """What `evaluate_search` found.

    Attributes:
        encoder: what ran, as of ``SentenceEncoder.info``.
        settings: the policies by name, the digests of the tasks.
        rows: for each task one without pruning, then for each policy one per way; then, of several tasks, their means.
        from_journal, computed: how many pairs of a task and a policy were taken from the journal, and how many were not
            there.
    """

    encoder: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: list[SearchRow]
    from_journal: int
    computed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"minitrans": __version__, **vars(self), "rows": self.table()}

    def table(self) -> list[dict[str, Any]]:
        """The rows, for `COLUMNS`."""
        return [row.to_dict() for row in self.rows]

    def tables(self) -> list[Table]:
        """The table."""
        return [Table("search", COLUMNS, NARROW, self.table())]


def evaluate_search(
    encoder: SentenceEncoder,
    tasks: Iterable[SearchTask],
    policies: Mapping[str, PruningPolicy | None] | None = None,
    journal: Journal | None = None,
    progress: bool = False,
) -> SearchEvaluation:
    """Search the documents of every task by its queries: without pruning, then with each policy in each of three ways.

    Queries are embedded by ``encode_query``, documents by ``encode_document``. What stands in the journal is not
    computed again; what is computed is put there at once.

    Args:
        encoder: its own pruning is not used. Documents are ranked by cosine; by dot product where that is the model's
            similarity.
        tasks: with different names.
        policies: by name. "none", no pruning, is always evaluated too.
        journal: None keeps nothing; one journal serves `minitrans.evaluation.few_shot.evaluate` too.
        progress: show a bar on standard error.

    Raises:
        InputError: no tasks, two of one name, a policy "none" that prunes, or a journal whose results cannot be read.
        PolicyError: a policy does not fit the model.
    """
    found, kept = list(tasks), Journal(None) if journal is None else journal
    named = with_no_pruning(policies)
    check_names([task.name for task in found])
    for policy in named.values():
        encoder.policy_for(policy)  # before the work
    rows: list[SearchRow] = []
    computed = 0
    with (bar := Progress(len(found) * len(named), progress, unit=" searches")):
        for task in found:
            # With another name None is a policy like others, which turns nothing.
            keys = {
                name: result_key(encoder, "search" if name == NO_PRUNING else "pruned search", task.digest, policy)
                | {"similarity": encoder.similarity_fn_name}
                for name, policy in named.items()
            }
            pending = {name: policy for name, policy in named.items() if kept.get(keys[name]) is None}
            computed += len(pending)
            bar.update(len(named) - len(pending))
            for name, results in _searched(encoder, task, pending):
                kept.put(keys[name], {way: asdict(result) for way, result in results.items()})
                bar.update(1)
            for name, key in keys.items():
                counts = len(task.queries), len(task.documents)
                for way, result in _stored(kept.get(key) or {}, name == NO_PRUNING).items():
                    rows.append(SearchRow(task.name, name, None if way == NO_PRUNING else way, *counts, result))
    settings = {
        "policies": {name: None if policy is None else policy.to_dict() for name, policy in named.items()},
        "tasks": {task.name: {"source": task.source, "sha256": task.digest} for task in found},
    }
    if len(found) > 1:
        rows += _means(rows)
    return SearchEvaluation(encoder.info(), settings, rows, len(found) * len(named) - computed, computed)


def top_documents(queries: ArrayLike, documents: ArrayLike, most: int = TOP, block: int = BLOCK) -> NDArray[np.int64]:
    """For each query the rows of the documents with the greatest dot products, the greatest first.

    Of equal ones the earlier document comes first, so that equal embeddings have the same place on every machine.

    Args:
        queries: float32 `[Q, H]`.
        documents: float32 `[D, H]`.
        most: how many to find; fewer documents give fewer.
        block: how many products to hold at a time.

    Returns:
        `[Q, min(most, D)]`.

    Raises:
        InputError: shapes that do not match.
    """
    asked, held = np.asarray(queries, np.float32), np.asarray(documents, np.float32)
    if asked.ndim != 2 or held.ndim != 2 or asked.shape[1] != held.shape[1]:
        raise InputError(f"queries are {list(asked.shape)} and documents {list(held.shape)}, wanted [Q, H] and [D, H]")
    count = min(most, len(held))
    found = np.empty((len(asked), count), np.int64)
    if not count:
        return found
    # The last bits of a float32 product depend on where in the matrix it stands. So whatever may be among the first
    # is multiplied again, in float64 and row by row.
    lengths = np.linalg.norm(asked.astype(np.float64), axis=1)  # [Q]
    longest = float(np.sqrt(np.einsum("dh,dh->d", held, held, dtype=np.float64).max()))
    doubt = 2 * asked.shape[1] * float(np.finfo(np.float32).eps) * longest * lengths  # [Q]
    step = max(1, block // len(held))
    for begin in range(0, len(asked), step):
        products = asked[begin : begin + step] @ held.T  # [q, D]
        least = np.partition(products, -count, axis=1)[:, -count]  # [q]
        for i, row in enumerate(products, begin):
            near = np.flatnonzero(row >= least[i - begin] - doubt[i])
            exact = (held[near].astype(np.float64) * asked[i]).sum(axis=1)
            found[i] = near[np.argsort(-exact, kind="stable")[:count]]
    return found


def reciprocal_ranks(found: ArrayLike, relevant: Sequence[Sequence[int]]) -> Float64:
    """One by the place of the first relevant document, counted from 1, or 0 where none was found: [Q].

    Args:
        found: rows of documents, the best first: `[Q, N]`.
        relevant: for each query the rows of the relevant documents.
    """
    hits = _hits(found, relevant)  # [Q, N]
    return np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0.0)


def recalls(found: ArrayLike, relevant: Sequence[Sequence[int]], most: int = TOP) -> Float64:
    """The relevant documents among those found, of all relevant ones or, where these are more, of the ``most``: [Q].

    So 1 is what the best search reaches. ``found`` and ``relevant`` as for `reciprocal_ranks`.
    """
    there = np.array([min(most, len(rows)) for rows in relevant])  # [Q]
    return _hits(found, relevant).sum(axis=1) / there


def _hits(found: ArrayLike, relevant: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    rows = np.asarray(found)
    if rows.ndim != 2 or len(rows) != len(relevant) or not rows.shape[1]:
        raise InputError(f"found is {list(rows.shape)} for {len(relevant)} queries, wanted at least one for each")
    return np.array([np.isin(each, wanted) for each, wanted in zip(rows, relevant, strict=True)]).reshape(rows.shape)


def _searched(
    encoder: SentenceEncoder, task: SearchTask, policies: Mapping[str, PruningPolicy | None]
) -> Iterator[tuple[str, dict[str, SearchResult]]]:
    """The results of each policy, by the way; of "none" one result of that name."""
    if not policies:
        return
    plain = _embedded(encoder, task, None)
    base = _found(*plain, task)
    for name, policy in policies.items():
        if name == NO_PRUNING:
            mrr, recall = (float(values.mean()) for values in base)
            yield name, {NO_PRUNING: SearchResult(mrr, recall, None, None, None, None)}
            continue
        pruned = _embedded(encoder, task, policy)
        turned = [float(turns(one, other).mean()) for one, other in zip(plain, pruned, strict=True)]
        results = {}
        for way, sides in SIDES.items():
            queries, documents = (pruned[i] if side else plain[i] for i, side in enumerate(sides))
            ranks, shares = _found(queries, documents, task)
            results[way] = SearchResult(
                float(ranks.mean()),
                float(shares.mean()),
                confidence_interval((ranks - base[0]).tolist()),
                confidence_interval((shares - base[1]).tolist()),
                *(turned[i] if side else None for i, side in enumerate(sides)),
            )
        yield name, results


def _embedded(encoder: SentenceEncoder, task: SearchTask, policy: PruningPolicy | None) -> tuple[Float32, Float32]:
    """The queries `[Q, H]` and the documents `[D, H]`."""
    options: dict[str, Any] = {
        "pruning": policy,
        "show_progress_bar": False,
        "normalize_embeddings": encoder.similarity_fn_name != "dot",
    }
    with measuring(), warnings.catch_warnings():
        if policy is not None:  # the same texts were cut, and said to be, without pruning
            warnings.simplefilter("ignore", TruncationWarning)
        queries = encoder.encode_query(task.queries, **options)
        documents = encoder.encode_document(task.documents, **options)
    return np.asarray(queries), np.asarray(documents)


def _found(queries: Float32, documents: Float32, task: SearchTask) -> tuple[Float64, Float64]:
    """Reciprocal rank and recall of each query."""
    found = top_documents(queries, documents)  # [Q, 10]
    return reciprocal_ranks(found, task.relevant), recalls(found, task.relevant)


def _stored(value: Mapping[str, Any], unpruned: bool) -> dict[str, SearchResult]:
    """The results that a journal holds. InputError if it holds something else: anybody may have written the file."""
    ways = [NO_PRUNING] if unpruned else list(SIDES)
    if sorted(value) != sorted(ways) or not all(_is_result(value[way]) for way in ways):
        raise foreign_result(value, f"for {', '.join(ways)} what a search finds")
    return {way: _result(value[way]) for way in ways}


def _result(value: Mapping[str, Any]) -> SearchResult:
    changes = {name: value[name] for name in ("mrr_change", "recall_change")}
    intervals = {name: None if each is None else Interval(**each) for name, each in changes.items()}
    return SearchResult(**{**value, **intervals})


def _is_result(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != set(SearchResult.__annotations__):
        return False
    shares = all(_between(value[name], 0, 1) for name in ("mrr", "recall"))
    angles = all(value[name] is None or _between(value[name], 0, 180) for name in ("query_turn", "document_turn"))
    changes = [value[name] for name in ("mrr_change", "recall_change")]
    return shares and angles and all(change is None or _is_change(change) for change in changes)


def _is_change(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != set(Interval.__annotations__):
        return False
    width = value["half_width"]
    return _between(value["mean"], -1, 1) and (width is None or _between(width, 0, math.inf))


def _between(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and least <= value <= most


def _means(rows: Sequence[SearchRow]) -> list[SearchRow]:
    """The means over the tasks, for each policy and way: every task counts the same."""
    groups: dict[tuple[str, str | None], list[SearchRow]] = {}
    for row in rows:
        groups.setdefault((row.pruning, row.pruned), []).append(row)
    means = []
    for (pruning, pruned), members in groups.items():
        results = [row.result for row in members]
        result = SearchResult(
            _mean([each.mrr for each in results]) or 0.0,
            _mean([each.recall for each in results]) or 0.0,
            _mean_change([each.mrr_change for each in results]),
            _mean_change([each.recall_change for each in results]),
            _mean([each.query_turn for each in results]),
            _mean([each.document_turn for each in results]),
        )
        counts = sum(row.queries for row in members), sum(row.documents for row in members)
        means.append(SearchRow(MEAN, pruning, pruned, *counts, result))
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there are none of them: a column is there for all tasks, or for none."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def _mean_change(changes: Sequence[Interval | None]) -> Interval | None:
    """The mean of changes on different queries, and half the width of its interval, as of normal variables."""
    there = [change for change in changes if change is not None]
    if not there:
        return None
    widths = [change.half_width for change in there]
    known = [width for width in widths if width is not None]
    spread = math.sqrt(math.fsum(width**2 for width in known)) / len(there) if len(known) == len(there) else None
    return Interval(math.fsum(change.mean for change in there) / len(there), spread)
