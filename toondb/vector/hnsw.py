"""An HNSW index of int64 labels: the part that knows neither ids nor documents nor files.

Everything here is a cache in memory of vectors that somebody else owns. See ``hnsw_file`` for how it is saved.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from toondb_protocol.arguments import shown
from toondb_protocol.errors import ValidationError

from .graph import Found, Graph, ascending, by_distance, faiss_metric, graph_index
from .linking import MOST_BEFORE
from .metrics import (
    DEFAULT_EF_CONSTRUCTION,
    DEFAULT_EF_SEARCH,
    DEFAULT_M,
    MAX_EF,
    MAX_M,
    Floats,
    Labels,
    Metric,
    as_matrix,
    check_dimension,
    count,
    stored,
)
from .shared_lock import SharedLock
from .tail import TAIL_ROWS, Tail
from .threads import thread_count

__all__ = ["CHUNK_ROWS", "HnswIndex", "check_ef", "check_k"]

_MOST_ASIDE = 8192
"""A scan of so many rows costs a few times what a search in the graph does."""

CHUNK_ROWS = 4096
"""Rows that go into the graph in one step. Readers wait for one step at the most."""


class HnswIndex:
    """Vectors by label, searched by nearness. Thread-safe: searches run side by side, changes one at a time.

    Ctrl-C may cut a change that the main thread makes: let it make them through ``threads.uninterrupted``.

    Rows that are added and queried come from :meth:`prepare`. Labels are the caller's: each is used once in the life of
    an index, and ascending ones are found fastest. To replace a vector, remove its label and add another.

    Args:
        dimension: Numbers in a vector, 1 to 65,536.
        metric: ``"cosine"``, ``"euclidean"`` or ``"dot_product"``.
        m: Neighbours of a node in the graph, 2 to 512; twice as many on the lowest level.
        ef_construction: Candidates that an insertion looks at, 1 to 1,000,000: more is slower and finds better
            neighbours.
        threads: For changes, and for searches of several queries; None or 0: one for each processor.
        half: Keep the vectors of the graph in half precision; for the metric ``"cosine"`` alone. A search then answers
            candidates: those that may be among the ``k`` nearest, with distances that are a little off, for the caller
            to compare again.

    Raises:
        ConfigurationError: An option is unknown or out of bounds.
    """

    def __init__(
        self,
        dimension: int,
        metric: str = Metric.COSINE,
        m: int = DEFAULT_M,
        ef_construction: int = DEFAULT_EF_CONSTRUCTION,
        threads: int | None = None,
        *,
        half: bool = False,
    ) -> None:
        self.dimension = check_dimension(dimension)
        self.metric = Metric.named(metric)
        self.half = half
        self.m = count("m", m, 2, MAX_M)
        self.ef_construction = count("ef_construction", ef_construction, 1, MAX_EF)
        self.threads = thread_count(threads)
        self._lock = SharedLock()
        self._rebuilding = threading.Lock()
        self._removed: list[int] | None = None
        self._graph = self._new_graph()
        self._tail = self._new_tail()
        _indexes.add(self)

    @classmethod
    def restored(
        cls, dimension: int, metric: str, m: int, ef_construction: int, threads: int | None, graph: Graph
    ) -> HnswIndex:
        """An index around a graph that was read from a file."""
        index = cls(dimension, metric, m, ef_construction, threads, half=graph.half)
        graph.settle()
        index._graph = graph
        return index

    # State

    def __len__(self) -> int:
        """The number of labels."""
        with self.reading():
            return len(self._graph) + len(self._tail)

    def __contains__(self, label: int) -> bool:
        """Whether a label is there."""
        with self.reading():
            return label in self._graph or label in self._tail

    def labels(self) -> Labels:
        """All labels, ascending."""
        with self.reading():
            return np.sort(np.concatenate([self._graph.living_labels(), self._tail.living_labels()]))

    @property
    def tombstones(self) -> int:
        """Nodes of the graph that only lead searches on, because what they held was removed."""
        return self._graph.tombstones

    @property
    def wants_rebuild(self) -> bool:
        """Whether :meth:`rebuild` would make searches faster and memory smaller by a third or more."""
        return self._graph.tombstones > max(1024, (self._graph.nodes - self._graph.tombstones) // 2)

    @property
    def needs_rebuild(self) -> bool:
        """Whether there is so much to clean that further changes should wait for it."""
        return self._graph.tombstones > max(4096, 2 * (self._graph.nodes - self._graph.tombstones))

    def reading(self) -> AbstractContextManager[None]:
        """Inside, nothing changes. May be entered again; other threads can read at the same time."""
        held: AbstractContextManager[None] = self._lock.reading()
        return held

    def try_reading(self) -> Any | None:
        """What :meth:`reading` gives, entered already, to be released; None = a writer would have to be waited for."""
        return self._lock.try_reading()

    def writing(self) -> AbstractContextManager[None]:
        """Inside, this thread is alone with the index: to change several things at once."""
        return self._lock.writing()

    @contextmanager
    def parts(self) -> Iterator[tuple[Graph, Tail]]:
        """What there is to save, held still."""
        with self.reading():
            yield self._graph, self._tail

    # Changes

    def prepare(self, vectors: Any, what: str = "the vectors", first: int = 0) -> Floats:
        """Check vectors, and bring them into the form that the index compares.

        Args:
            vectors: Numbers of shape ``(n, dimension)``.
            what: Their name in errors.
            first: The number of the first row in errors.

        Raises:
            DimensionMismatchError: They have another dimension.
            ValidationError: NaN, infinity, a vector without direction (cosine), or no numbers at all.
        """
        return stored(as_matrix(vectors, self.dimension, what, first), self.metric, what, first)

    def add(self, labels: Labels, rows: Floats, *, aside: bool = False) -> None:
        """Add rows from :meth:`prepare` under new labels. Few are kept aside; many go into the graph at once.

        Args:
            labels: The new labels.
            rows: A row for each.
            aside: Keep any number of them aside: nobody waits, and :meth:`grow` puts them into the graph.
        """
        if len(labels) == 0:
            return
        with self.writing():
            if aside or self._tail.has_room(len(rows)):
                self._tail.add(labels, rows)
                return
            earlier, kept = self._tail.living()
            if len(earlier):
                labels, rows = np.concatenate([earlier, labels]), np.concatenate([kept, rows])
            self._graph.add(labels, rows, self.threads)
            self._tail.clear()

    def flush(self) -> None:
        """Put what is kept aside into the graph."""
        with self.writing():
            labels, rows = self._tail.living()
            if len(labels):
                self._graph.add(labels, rows, self.threads)
            self._tail.clear()

    def keep(self, labels: Labels, rows: Floats) -> None:
        """Put rows aside that were aside when they were saved."""
        with self.writing():
            self._tail.add(labels, rows)

    def remove(self, label: int) -> bool:
        """Remove a label; whether it was there."""
        with self.writing():
            if self._removed is not None:
                self._removed.append(label)
            return self._tail.remove(label) or self._graph.remove(label)

    @property
    def wants_growth(self) -> bool:
        """Whether there is so much aside that :meth:`grow` would make searches faster."""
        return len(self._tail) >= max(TAIL_ROWS, min(_MOST_ASIDE, self._graph.nodes // 8))

    def grow(self, cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Put what is aside into the graph: into a copy of it, while others search, and keep new rows aside.

        For an index whose rows are all added ``aside``.

        Args:
            cancelled: Asked now and then; True ends it, and everything stays as it was.

        Returns:
            Whether it was done. It is not while another thread does it, or rebuilds.
        """
        if not self._rebuilding.acquire(blocking=False):
            return False
        try:
            with self.writing():
                self._removed = []
            with self.reading():
                labels, rows = self._tail.living()
                graph = self._graph.copy()
            for part in _steps(len(labels), graph):
                if cancelled():
                    return False
                graph.add(labels[part], rows[part], self.threads)
            graph.settle()
            with self.writing():
                for label in self._removed:
                    graph.remove(label)
                self._graph = graph
                self._tail.drop(labels)
            return True
        finally:
            self._removed = None
            self._rebuilding.release()

    def rebuild(self, cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Make the graph anew, without what was removed.

        Others search and change the index meanwhile; what they changed is caught up at the end.

        Args:
            cancelled: Asked now and then; True ends it, and everything stays as it was.

        Returns:
            Whether it was done. It is not when another thread does it already.
        """
        if not self._rebuilding.acquire(blocking=False):
            return False
        try:
            fresh = self._new_graph()
            with self.reading():
                missing = self._graph.living_labels()
            while len(missing):
                for part in _steps(len(missing), fresh):
                    if cancelled():
                        return False
                    with self.reading():
                        labels, rows = self._graph.rows(missing[part])
                    fresh.add(labels, rows, self.threads)
                with self.reading():
                    missing = np.setdiff1d(self._graph.living_labels(), fresh.living_labels(), assume_unique=True)
                if len(missing) <= CHUNK_ROWS:
                    break  # others wait for no more than that
            with self.writing():
                now, then = self._graph.living_labels(), fresh.living_labels()
                for label in np.setdiff1d(then, now, assume_unique=True).tolist():
                    fresh.remove(label)
                fresh.add(*self._graph.rows(np.setdiff1d(now, then, assume_unique=True)), self.threads)
                fresh.settle()
                self._graph = fresh
            return True
        finally:
            self._rebuilding.release()

    # Searches

    def search(
        self,
        queries: Floats,
        k: int,
        ef: int | None = None,
        allowed: Labels | None = None,
        *,
        exact: bool = False,
        threads: int | None = None,
    ) -> Found:
        """The nearest labels of each query, nearest first.

        Args:
            queries: Rows from :meth:`prepare`.
            k: How many labels.
            ef: How many candidates a search keeps: more is slower and finds more of the true nearest. At least ``k`` is
                used; 64 when omitted.
            allowed: Only these labels are results. Labels that are not in the index do no harm.
            exact: Compare with every vector.
            threads: At the most, for several queries; the number of the index when omitted.

        Returns:
            Distances (lower is nearer) and labels, a row for each query. A row has ``min(k, n)`` entries, ``n``
            being the labels that are there and allowed; in half precision at least so many.

        Raises:
            ValidationError: ``k`` or ``ef`` is not a positive integer.
        """
        k, effort = check_k(k), check_ef(ef)
        several = self.threads if threads is None else thread_count(threads)
        if allowed is not None:
            allowed = ascending(np.asarray(allowed, dtype=np.int64))
        with self.reading():
            found = self._graph.search(queries, k, effort, allowed, several, exact=exact)
            if len(self._tail):
                newest = self._tail.search(queries, k, allowed, several)
                found = by_distance([found, newest], found[0].shape[1] + k if self.half else k)
            return self._possible(found, k) if self.half else found

    def candidates(self, query: Floats, k: int, ef: int | None = None, allowed: Labels | None = None) -> list[int]:
        """The labels among which the ``k`` nearest of one query are: those of :meth:`search`, faster."""
        if allowed is None:
            with self.reading():
                found = None if len(self._tail) else self._graph.candidates(query, k, check_ef(ef))
            if found is not None:
                few: list[int] = found.tolist()
                return few
        labels: list[int] = self.search(query, k, ef, allowed)[1][0].tolist()
        return labels

    def _possible(self, found: Found, k: int) -> Found:
        """Those that may be among the ``k`` nearest."""
        distances, labels = found
        if distances.shape[1] <= k:
            return found
        _, within = self._graph.how_near(distances[:, k - 1 : k])
        low, _ = self._graph.how_near(distances)
        count = int((low <= within).sum(axis=1).max())
        return distances[:, :count], labels[:, :count]

    def _new_graph(self) -> Graph:
        return Graph(
            self.metric, graph_index(self.dimension, self.metric, self.m, self.ef_construction, half=self.half)
        )

    def _new_tail(self) -> Tail:
        return Tail(self.dimension, self.metric, faiss_metric(self.metric))


def _steps(rows: int, graph: Graph) -> Iterator[slice]:
    """Which of so many rows are added at a time to a graph that nobody else uses, while it grows.

    Few of them are not linked roughly to many.
    """
    start = 0
    while start < rows:
        part = slice(start, start + max(CHUNK_ROWS, graph.nodes // MOST_BEFORE))
        yield part
        start = part.stop


_indexes: weakref.WeakSet[HnswIndex] = weakref.WeakSet()


def _after_fork() -> None:
    # A rebuild of the parent does not go on in the child.
    for index in list(_indexes):
        index._rebuilding = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def check_k(k: object) -> int:
    """How many results are asked for: a positive integer.

    Raises:
        ValidationError: It is not.
    """
    return _positive("k", k)


def check_ef(ef: object) -> int:
    """How many candidates a search keeps: a positive integer, the default for None, :data:`MAX_EF` at the most.

    Raises:
        ValidationError: It is not.
    """
    return DEFAULT_EF_SEARCH if ef is None else min(_positive("ef_search", ef), MAX_EF)


def _positive(name: str, value: object) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValidationError(f"{name} is {shown(value)}.", remediation="Give an integer of 1 or more.")
    return int(value)
