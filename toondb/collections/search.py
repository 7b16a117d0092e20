"""Search by vector, by words, or by both.

Reciprocal rank fusion: Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank
learning methods", SIGIR 2009.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import msgpack

from toondb.engine.transaction import Transaction
from toondb.vector.metrics import Metric
from toondb_protocol.errors import CollectionConfigError, DimensionMismatchError

from .catalog import CollectionEntry
from .documents import DAMAGED, answer_of, damaged, decode, metadata_of, read_all, vectors_of
from .exact import Hit, Query, score_of
from .given import Filter, Vectors
from .text import TextIndex
from .vector_caches import VectorCaches

__all__ = ["Asked", "Searches", "Wanted", "mismatch", "query_of", "rows_of"]

_FUSED_PER_RESULT = 4
_FUSED_AT_LEAST = 100
_READ_AT_ONCE = 64


class Asked(NamedTuple):
    """A search; the fields are those of a ``SearchRequest``."""

    vector: Vectors | None
    text_query: str | None
    k: int
    filter: Filter | None
    alpha: float
    rrf_fusion: bool
    k_rrf: int
    ef_search: int | None
    min_score: float | None
    include_vectors: bool
    include_content: bool


class Wanted(Protocol):
    """What is wanted of documents that were found; see :class:`Asked`."""

    @property
    def min_score(self) -> float | None: ...
    @property
    def include_vectors(self) -> bool: ...
    @property
    def include_content(self) -> bool: ...


@dataclass(slots=True)
class _Found:
    """A document that was found; its value is read when it is needed."""

    id: str
    score: float
    distance: float | None = None
    value: bytes | None = None


class Searches:
    """The searches of a store.

    Args:
        caches: Where vectors are found.
        text: Where words are found.
    """

    def __init__(self, caches: VectorCaches, text: TextIndex) -> None:
        self._caches = caches
        self._text = text

    def search(self, view: Transaction, collection: CollectionEntry, asked: Asked) -> list[list[Any]]:
        """Answer a search, best first."""
        query = None if asked.vector is None else query_of(collection, asked.vector)
        if asked.text_query is not None and not collection.config.enable_hybrid_search:
            raise CollectionConfigError(
                f"the collection {collection.config.name!r} has no index of words.",
                remediation="Create it with enable_hybrid_search=True, or search by vector.",
            )
        if asked.text_query is None:
            assert query is not None
            return self._near(view, collection, query, asked)
        if query is None:
            found = self._by_words(view, collection, asked, asked.k)
        else:
            found = self._by_both(view, collection, query, asked)
        results: list[list[Any]] = []
        for each, value in _read_first(view, collection, found, asked.k):
            if asked.min_score is None or each.score >= asked.min_score:
                distance = each.distance if query is None or each.distance is not None else _distance(value, query)
                results.append(_result(each.id, value, each.score, distance, asked))
        return results

    def _near(self, view: Transaction, collection: CollectionEntry, query: Query, asked: Asked) -> list[list[Any]]:
        """The results of a search by vector alone."""
        return rows_of(self._hits(view, collection, query, asked, asked.k), query, asked)

    def _hits(self, view: Transaction, collection: CollectionEntry, query: Query, asked: Asked, k: int) -> list[Hit]:
        if collection.config.dimension is None:
            return []
        return self._caches.search(view, collection, query, None, asked.filter, k, asked.ef_search)

    def _by_words(self, view: Transaction, collection: CollectionEntry, asked: Asked, k: int) -> list[_Found]:
        assert asked.text_query is not None
        rows = self._text.search(view, collection, asked.text_query)
        try:
            if asked.filter is None:
                return [_Found(id, score) for id, score in islice(rows, k)]
            found: list[_Found] = []
            while len(found) < k and (some := [_Found(id, score) for id, score in islice(rows, _READ_AT_ONCE)]):
                for each, value in _read_first(view, collection, some, len(some)):
                    if asked.filter.matches(metadata_of(value)):
                        found.append(each)
            return found[:k]
        finally:
            rows.close()

    def _by_both(self, view: Transaction, collection: CollectionEntry, query: Query, asked: Asked) -> list[_Found]:
        depth = max(_FUSED_PER_RESULT * asked.k, _FUSED_AT_LEAST)
        near = [
            _Found(id, score_of(query.metric, distance), distance, value)
            for distance, id, value in self._hits(view, collection, query, asked, depth)
        ]
        fitting = self._by_words(view, collection, asked, depth)
        fused: dict[str, _Found] = {}
        for weight, ranking in ((asked.alpha, near), (1.0 - asked.alpha, fitting)):
            for each, part in zip(ranking, _parts(ranking, asked), strict=True):
                known = fused.setdefault(each.id, _Found(each.id, 0.0, each.distance, each.value))
                known.score += weight * part
        return sorted(fused.values(), key=_by_score)


def _read_first(
    view: Transaction, collection: CollectionEntry, found: list[_Found], k: int
) -> Iterator[tuple[_Found, bytes]]:
    """The first ``k`` with their values."""
    read = 0
    for start in range(0, len(found), k):
        some = found[start : start + k]
        lacking = [each for each in some if each.value is None]
        for each, stored in zip(lacking, read_all(view, collection, [each.id for each in lacking]), strict=True):
            each.value = None if stored is None else stored[1]
        for each in some:
            if each.value is not None and read < k:
                read += 1
                yield each, each.value
        if read >= k:
            return


def _parts(ranking: list[_Found], asked: Asked) -> list[float]:
    """What each document of a ranking adds to its fused score."""
    if asked.rrf_fusion:
        return [1.0 / (asked.k_rrf + rank) for rank in range(1, len(ranking) + 1)]
    scores = [each.score for each in ranking]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def _by_score(found: _Found) -> tuple[float, str]:
    return -found.score, found.id


def _distance(value: bytes, query: Query) -> float | None:
    dimension, vectors = vectors_of(value)
    for name, vector in vectors:
        if name is None and dimension == query.prepared.shape[1]:
            return query.distance(vector)
    return None


def _result(id: str, value: bytes, score: float, distance: float | None, asked: Asked) -> list[Any]:
    metadata, content = answer_of(value)
    vector = decode(value).vector if asked.include_vectors else None
    return [id, score, metadata, content if asked.include_content else None, vector, distance]


def rows_of(hits: list[Hit], query: Query, asked: Wanted, at: int = 0) -> list[list[Any]]:
    """The results for documents of one vector each that were found by it.

    Args:
        hits: The documents.
        query: What they were compared with.
        asked: What is wanted of them.
        at: Where each value begins, in records of a store.

    Raises:
        CorruptionError: A document cannot be read.
    """
    start, end, metric = at + len(query.beginning), at + query.end, query.metric
    results: list[list[Any]] = []
    for distance, id, value in hits:
        score = score_of(metric, distance)
        if asked.min_score is not None and score < asked.min_score:
            continue
        try:
            metadata, content = msgpack.unpackb(value[end:])
        except DAMAGED:
            raise damaged(value) from None
        vector = value[start:end] if asked.include_vectors else None
        results.append([id, score, metadata, content if asked.include_content else None, vector, distance])
    return results


def query_of(collection: CollectionEntry, vectors: Vectors, row: int = 0) -> Query:
    """A query vector that fits a collection.

    Raises:
        DimensionMismatchError: It has another dimension.
        ValidationError: It has no direction (cosine), or is too long.
    """
    expected = collection.config.dimension
    if expected is not None and vectors.dimension != expected:
        raise mismatch(collection, "the query vector", vectors.dimension)
    return Query(vectors.rows[row], Metric.named(collection.config.metric.value))


def mismatch(collection: CollectionEntry, what: str, actual: int) -> DimensionMismatchError:
    """The error for vectors of another dimension than those of a collection."""
    expected = collection.config.dimension
    return DimensionMismatchError(
        f"{what} has {actual} numbers, those of the collection {collection.config.name!r} have {expected}.",
        remediation=f"Give vectors of {expected} numbers.",
        details={"expected": expected, "actual": actual},
    )
