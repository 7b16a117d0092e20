"""Search by several vectors: the documents whose vectors fit the query vectors of the same names best.

Each name has a ranking of its own. A document that is in none of them as far as they were read cannot have a better
score than one made of the last scores that were read; when enough documents have that much, no other can be among the
best (the threshold algorithm: Fagin, Lotem and Naor, "Optimal aggregation algorithms for middleware", 2003).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toondb.engine.transaction import Transaction
from toondb_protocol.search import Aggregation

from .catalog import CollectionEntry
from .documents import decode, vectors_of
from .exact import Query, score_of
from .given import Filter, Vectors
from .search import query_of
from .vector_caches import VectorCaches

__all__ = ["AskedMulti", "search_multi"]

_RANKED_PER_RESULT = 4
_RANKED_AT_LEAST = 64
_WIDER = 4


@dataclass(frozen=True, slots=True)
class AskedMulti:
    """A search by several vectors; see ``Collection.multi_vector_search``."""

    names: list[str]
    vectors: Vectors
    k: int
    aggregation: Aggregation
    weights: dict[str, float]
    filter: Filter | None
    ef_search: int | None

    def score(self, scores: dict[str, float]) -> float:
        """One score from those by name. A name that is not there counts as 0, and is not looked at for the highest."""
        if self.aggregation is Aggregation.MAX_POOLING:
            return max(scores.values())
        if self.aggregation is Aggregation.MEAN_POOLING:
            return sum(scores.values()) / len(self.names)
        return sum(self.weights.get(name, 1.0) * score for name, score in scores.items())


def search_multi(
    view: Transaction, collection: CollectionEntry, caches: VectorCaches, asked: AskedMulti
) -> list[list[Any]]:
    """Answer a search by several vectors, best first."""
    queries = {name: query_of(collection, asked.vectors, at) for at, name in enumerate(asked.names)}
    if collection.config.dimension is None:
        return []
    depth = max(_RANKED_PER_RESULT * asked.k, _RANKED_AT_LEAST)
    while True:
        values: dict[str, bytes] = {}
        last: dict[str, float] = {}
        for name, query in queries.items():
            hits = caches.search(view, collection, query, name, asked.filter, depth, asked.ef_search)
            values.update((id, value) for _, id, value in hits)
            if len(hits) == depth:
                # A document may also lack this name, which counts as 0.
                last[name] = max(0.0, score_of(query.metric, hits[-1][0]))
        found = sorted(((_score(value, queries, asked), id) for id, value in values.items()), key=_best_first)
        if not last or (len(found) >= asked.k and found[asked.k - 1][0] >= asked.score(last)):
            break
        depth *= _WIDER
    results: list[list[Any]] = []
    for score, id in found[: asked.k]:
        contents = decode(values[id])
        results.append([id, score, contents.metadata, contents.content, None, None])
    return results


def _best_first(found: tuple[float, str]) -> tuple[float, str]:
    return -found[0], found[1]


def _score(value: bytes, queries: dict[str, Query], asked: AskedMulti) -> float:
    scores: dict[str, float] = {}
    for name, vector in vectors_of(value)[1]:
        query = queries.get(name) if name is not None else None
        if query is not None and name is not None:
            scores[name] = score_of(query.metric, query.distance(vector))
    return asked.score(scores)
