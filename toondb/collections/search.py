"""Search by vector, by words, or by both.

Reciprocal rank fusion: Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank
learning methods", SIGIR 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toondb.engine.transaction import Transaction
from toondb.vector.metrics import Metric
from toondb_protocol.errors import CollectionConfigError, DimensionMismatchError

from .catalog import CollectionEntry
from .documents import answer_of, decode, metadata_of, read, vectors_of
from .exact import Query, score_of
from .given import Filter, Vectors
from .text import TextIndex
from .vector_caches import VectorCaches

__all__ = ["Asked", "Searches", "mismatch", "query_of"]

_FUSED_PER_RESULT = 4
_FUSED_AT_LEAST = 100


@dataclass(frozen=True, slots=True)
class Asked:
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


@dataclass(slots=True)
class _Found:
    """A document that was found."""

    id: str
    value: bytes
    score: float
    distance: float | None = None


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
            found = self._by_vector(view, collection, query, asked, asked.k)
        elif query is None:
            found = self._by_words(view, collection, asked, asked.k)
        else:
            found = self._by_both(view, collection, query, asked)
        if asked.min_score is not None:
            found = [each for each in found if each.score >= asked.min_score]
        return [_result(each, asked) for each in found[: asked.k]]

    def _by_vector(
        self, view: Transaction, collection: CollectionEntry, query: Query, asked: Asked, k: int
    ) -> list[_Found]:
        if collection.config.dimension is None:
            return []
        hits = self._caches.search(view, collection, query, None, asked.filter, k, asked.ef_search)
        return [_Found(hit.id, hit.value, score_of(query.metric, hit.distance), hit.distance) for hit in hits]

    def _by_words(self, view: Transaction, collection: CollectionEntry, asked: Asked, k: int) -> list[_Found]:
        assert asked.text_query is not None
        found: list[_Found] = []
        rows = self._text.search(view, collection, asked.text_query)
        try:
            for id, score in rows:
                stored = read(view, collection, id)
                if stored is None or (asked.filter is not None and not asked.filter.matches(metadata_of(stored[1]))):
                    continue
                found.append(_Found(id, stored[1], score))
                if len(found) >= k:
                    break
        finally:
            rows.close()
        return found

    def _by_both(self, view: Transaction, collection: CollectionEntry, query: Query, asked: Asked) -> list[_Found]:
        depth = max(_FUSED_PER_RESULT * asked.k, _FUSED_AT_LEAST)
        near = self._by_vector(view, collection, query, asked, depth)
        fitting = self._by_words(view, collection, asked, depth)
        fused: dict[str, _Found] = {}
        for weight, ranking in ((asked.alpha, near), (1.0 - asked.alpha, fitting)):
            for each, part in zip(ranking, _parts(ranking, asked), strict=True):
                known = fused.setdefault(each.id, _Found(each.id, each.value, 0.0))
                known.score += weight * part
                known.distance = known.distance if each.distance is None else each.distance
        best = sorted(fused.values(), key=_by_score)[: asked.k]
        for each in best:
            if each.distance is None:
                each.distance = _distance(each.value, query)
        return best


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


def _result(found: _Found, asked: Asked) -> list[Any]:
    metadata, content = answer_of(found.value)
    return [
        found.id,
        found.score,
        metadata,
        content if asked.include_content else None,
        decode(found.value).vector if asked.include_vectors else None,
        found.distance,
    ]


def query_of(collection: CollectionEntry, vectors: Vectors, row: int = 0) -> Query:
    """A query vector that fits a collection.

    Raises:
        DimensionMismatchError: It has another dimension.
        ValidationError: It has no direction (cosine), or is too long.
    """
    expected = collection.config.dimension
    if expected is not None and vectors.dimension != expected:
        raise mismatch(collection, "the query vector", vectors.dimension)
    return Query(vectors.rows[row : row + 1], Metric.named(collection.config.metric.value))


def mismatch(collection: CollectionEntry, what: str, actual: int) -> DimensionMismatchError:
    """The error for vectors of another dimension than those of a collection."""
    expected = collection.config.dimension
    return DimensionMismatchError(
        f"{what} has {actual} numbers, those of the collection {collection.config.name!r} have {expected}.",
        remediation=f"Give vectors of {expected} numbers.",
        details={"expected": expected, "actual": actual},
    )
