"""Exact distances: what the approximate index is compared with, and takes turns with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toondb.vector.metrics import Floats, Metric, stored_vector
from toondb_protocol.errors import ValidationError

from .documents import beginning_of_one, metadata_of, vectors_of
from .given import Filter

__all__ = ["Hit", "Query", "by_distance", "nearest_of", "ranked", "score_of"]

_ROWS = 2048
_FLOAT_SIZE = 4
_NOISE = 1e-12
"""Of a cosine distance: the rounding of float32 turns a vector further."""

Distances: TypeAlias = NDArray[np.floating[Any]]


class Query:
    """A query vector.

    Args:
        row: Its numbers, of shape (1, dimension).
        metric: How it is compared.

    Attributes:
        prepared: In the form in which the index is asked.
        beginning: How the values of documents with one vector of its dimension begin.

    Raises:
        ValidationError: It has no direction (cosine), or is too long.
    """

    def __init__(self, row: Floats, metric: Metric) -> None:
        self.metric = metric
        self._row = row[0]
        self.prepared = stored_vector(row[0], row.shape[1], metric, "the query vector")
        self.beginning = beginning_of_one(row.shape[1])

    @cached_property
    def _wide(self) -> tuple[NDArray[np.float64], float]:
        """The query as it was given, in double precision, and the square of its length."""
        wide = self._row.astype(np.float64)
        return wide, float(wide @ wide)

    def distances(self, rows: Floats) -> Distances:
        """The distances of vectors as they are stored in documents.

        Raises:
            ValidationError: One has no direction (cosine).
        """
        if self.metric is Metric.COSINE:
            # In double precision the angle needs no vectors of length 1.
            wide = rows.astype(np.float64)
            squares = np.einsum("ij,ij->i", wide, wide)
            if not squares.all():
                raise ValidationError("a vector of length 0 has no angle.")
            query, square = self._wide
            distances: Distances = 1.0 - wide @ query / np.sqrt(squares * square)
            distances[distances < _NOISE] = 0.0
            return distances
        if self.metric is Metric.DOT_PRODUCT:
            raw: Floats = rows @ self.prepared[0]
        else:
            difference = rows - self.prepared
            raw = np.einsum("ij,ij->i", difference, difference)
        return self.metric.distances(raw)

    def distance(self, vector: bytes) -> float:
        """The distance of one vector as it is stored in a document."""
        return float(self.distances(np.frombuffer(vector, dtype="<f4").reshape(1, -1))[0])


class Hit(NamedTuple):
    """A document that was found by its vector.

    Attributes:
        distance: Its distance, lower is nearer.
        id: Its id.
        value: Its record's value.
    """

    distance: float
    id: str
    value: bytes


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
    dimension = query.prepared.shape[1]
    rows = _with_vectors(documents, dimension, name, filter)
    while chunk := list(islice(rows, _ROWS)):
        matrix = np.frombuffer(b"".join([vector for _, _, vector in chunk]), dtype="<f4").reshape(-1, dimension)
        distances = _distances(query, matrix)
        places: NDArray[np.intp] = np.arange(len(chunk))
        if len(chunk) > k:
            # Those as near as the k-th are all kept: their ids decide.
            places = np.flatnonzero(distances <= np.partition(distances, k - 1)[k - 1])
        best += [Hit(float(distances[at]), chunk[at][0], chunk[at][1]) for at in places.tolist()]
        best.sort(key=by_distance)
        del best[k:]
    return best


def ranked(documents: list[tuple[str, bytes]], query: Query, name: str | None, k: int) -> list[Hit]:
    """What :func:`nearest_of` answers for a few documents without a filter, faster."""
    start = len(query.beginning)
    end = start + _FLOAT_SIZE * query.prepared.shape[1]
    vectors = [value[start:end] for _, value in documents if value.startswith(query.beginning) and len(value) > end]
    if name is not None or len(vectors) != len(documents):
        return nearest_of(documents, query, name, None, k)
    matrix = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), query.prepared.shape[1])
    distances = _distances(query, matrix).tolist()
    best = sorted(zip(distances, documents, strict=True))
    return [Hit(distance, id, value) for distance, (id, value) in best[:k]]


def by_distance(hit: Hit) -> tuple[float, str]:
    """The order of hits: nearest first, equally near ones by id."""
    return hit.distance, hit.id


def _distances(query: Query, matrix: Floats) -> Distances:
    try:
        return query.distances(matrix)
    except ValidationError:
        # One that was stored before it was refused: it is nowhere near.
        far: Distances = np.full(len(matrix), np.inf)
        for at in range(len(matrix)):
            try:
                far[at] = query.distances(matrix[at : at + 1])[0]
            except ValidationError:
                continue
        return far


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
