"""Exact distances: what the approximate index is compared with, and takes turns with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np

from toondb.vector.metrics import Floats, Metric, stored_vector

from .documents import beginning_of_one, metadata_of, vectors_of
from .given import Filter

__all__ = ["FLOAT32", "Hit", "Query", "nearest_of", "score_of"]

FLOAT32 = np.dtype("<f4")
"""Of the vectors in documents and requests."""

_ROWS = 2048
_FLOAT_SIZE = 4
_NOISE = 1e-12
"""Of a cosine distance: the rounding of float32 turns a vector further."""


Hit: TypeAlias = tuple[float, str, bytes]
"""A document that was found by its vector: its distance (lower is nearer), its id and its record's value.

Hits are in the order of tuples: nearest first, equally near ones by id.
"""


class Query:
    """A query vector.

    Args:
        vector: Its numbers, of shape (dimension,).
        metric: How it is compared.

    Attributes:
        prepared: In the form in which the index is asked.
        beginning: How the values of documents with one vector of its dimension begin.
        end: Where that vector ends.

    Raises:
        ValidationError: It has no direction (cosine), or is too long.
    """

    def __init__(self, vector: Floats, metric: Metric) -> None:
        self.metric = metric
        dimension = len(vector)
        self.beginning = beginning_of_one(dimension)
        self.end = len(self.beginning) + _FLOAT_SIZE * dimension
        self.prepared = stored_vector(vector, dimension, metric, "the query vector")
        self._wide = wide = vector.astype(np.float64)
        self._square = float(wide.dot(wide))

    def distances(self, vectors: Sequence[bytes]) -> list[float]:
        """The distances of vectors as they are stored in documents, in double precision.

        One that has no direction (cosine) is infinitely far.
        """
        rows = np.frombuffer(b"".join(vectors), FLOAT32).reshape(len(vectors), len(self._wide))
        wide = rows.astype(np.float64)
        distances: list[float]
        if self.metric is Metric.COSINE:
            # In double precision the angle needs no vectors of length 1.
            square, sqrt, inf = self._square, math.sqrt, math.inf
            products, squares = wide.dot(self._wide).tolist(), np.vecdot(wide, wide).tolist()
            return [
                inf if not own else distance if (distance := 1.0 - product / sqrt(own * square)) >= _NOISE else 0.0
                for product, own in zip(products, squares, strict=True)
            ]
        if self.metric is Metric.DOT_PRODUCT:
            distances = (-wide.dot(self._wide)).tolist()
        else:
            wide -= self._wide
            distances = np.sqrt(np.vecdot(wide, wide)).tolist()
        return distances

    def distance(self, vector: bytes) -> float:
        """The distance of one vector as it is stored in a document."""
        return self.distances([vector])[0]

    def ranked(self, ids: Sequence[str], values: Sequence[bytes], k: int, at: int = 0) -> list[Hit] | None:
        """The ``k`` nearest of documents with one vector each, nearest first; None = one of them is another kind.

        Args:
            ids: Their ids.
            values: Their values.
            k: How many.
            at: Where each value begins, in records of a store.
        """
        beginning = self.beginning
        start, end = at + len(beginning), at + self.end
        vectors = [value[start:end] for value in values if value.startswith(beginning, at) and len(value) > end]
        if len(vectors) != len(values):
            return None
        return sorted(zip(self.distances(vectors), ids, values, strict=True))[:k]


def score_of(metric: Metric, distance: float) -> float:
    """The score of a distance, higher is better."""
    if metric is Metric.COSINE:
        return 1.0 - distance
    if metric is Metric.EUCLIDEAN:
        return 1.0 / (1.0 + distance)
    return -distance


def nearest_of(
    documents: Iterable[tuple[str, bytes]], query: Query, name: str | None, filter: Filter | None, k: int
) -> list[Hit]:
    """The ``k`` nearest of some documents, nearest first, by comparing with each.

    Args:
        documents: Ids and values.
        query: The query.
        name: The vector of which name is compared; None = the one vector.
        filter: Only documents that meet it.
        k: How many.
    """
    best: list[Hit] = []
    rows = _with_vectors(documents, query.prepared.shape[1], name, filter)
    while chunk := list(islice(rows, _ROWS)):
        distances = query.distances([vector for _, _, vector in chunk])
        # Those as near as the k-th are all kept: their ids decide.
        within = float(np.partition(distances, k - 1)[k - 1]) if len(chunk) > k else math.inf
        best += [
            (distance, id, value)
            for distance, (id, value, _) in zip(distances, chunk, strict=True)
            if distance <= within
        ]
        best.sort()
        del best[k:]
    return best


def _with_vectors(
    documents: Iterable[tuple[str, bytes]], dimension: int, name: str | None, filter: Filter | None
) -> Iterator[tuple[str, bytes, bytes]]:
    for id, value in documents:
        if filter is not None and not filter.matches(metadata_of(value)):
            continue
        own, vectors = vectors_of(value)
        if own != dimension:
            continue
        for called, vector in vectors:
            if called == name:
                yield id, value, vector
