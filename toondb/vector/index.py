"""VectorIndex: nearest neighbours in memory, by the ids of the user."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Any

import numpy as np

from toondb_protocol.arguments import shown
from toondb_protocol.errors import ValidationError

from .atomic_file import Name, open_regular, replacing
from .hnsw import CHUNK_ROWS, HnswIndex, check_k
from .hnsw_file import read_index, write_index
from .ids import Id, as_id, as_ids, read_ids, write_ids
from .metrics import DEFAULT_EF_CONSTRUCTION, DEFAULT_M, Floats, stored_vector
from .sections import SectionReader, SectionWriter
from .threads import uninterrupted

__all__ = ["VectorIndex"]

Result = list[tuple[Id, float]]


class VectorIndex:
    """An index of vectors in memory, searched approximately by HNSW, that can be saved to a file.

    It is a structure by itself, not a part of a database: what is not saved is gone with the process. Any number of
    threads may search and change it. A search returns as many results as asked for, or all vectors when there are
    fewer.

    Args:
        dimension: Numbers in each vector, 1 to 65,536.
        metric: ``"cosine"`` (distance 1 - cos), ``"euclidean"`` (the length of the difference) or ``"dot_product"``
            (the negated inner product). Lower is nearer.
        m: Neighbours that each vector is linked to, 2 to 512: more finds better and takes more memory
            (8 x m bytes for each vector).
        ef_construction: Candidates that an insertion looks at: more is slower and finds better.
        threads: Used by insertions and by :meth:`search_batch`; None: one for each processor.

    Raises:
        ConfigurationError: An option is unknown or out of bounds.
    """

    def __init__(
        self,
        dimension: int,
        metric: str = "cosine",
        m: int = DEFAULT_M,
        ef_construction: int = DEFAULT_EF_CONSTRUCTION,
        *,
        threads: int | None = None,
    ) -> None:
        self._hnsw = HnswIndex(dimension, metric, m, ef_construction, threads)
        self._labels: dict[Id, int] = {}
        self._ids: dict[int, Id] = {}
        self._next = 0
        self._cleaner: threading.Thread | None = None

    @property
    def dimension(self) -> int:
        """Numbers in each vector."""
        return self._hnsw.dimension

    @property
    def metric(self) -> str:
        """``"cosine"``, ``"euclidean"`` or ``"dot_product"``."""
        return self._hnsw.metric.value

    @property
    def m(self) -> int:
        """Neighbours that each vector is linked to."""
        return self._hnsw.m

    @property
    def ef_construction(self) -> int:
        """Candidates that an insertion looks at."""
        return self._hnsw.ef_construction

    def __len__(self) -> int:
        """The number of vectors."""
        return len(self._labels)

    def __contains__(self, id: object) -> bool:
        """Whether there is a vector of that id."""
        try:
            return as_id(id) in self._labels
        except ValidationError:
            return False

    def __repr__(self) -> str:
        return f"VectorIndex({self.dimension}, {self.metric!r}, m={self.m}, vectors={len(self):,})"

    def ids(self) -> list[Id]:
        """All ids, in the order of insertion."""
        with self._hnsw.reading():
            return [self._ids[label] for label in self._hnsw.labels().tolist()]

    def insert(self, id: Id, vector: Any) -> None:
        """Insert a vector; one of the same id is replaced.

        Args:
            id: A string or an integer.
            vector: Numbers of shape ``(dimension,)``.

        Raises:
            ValidationError: The id is of another type; the vector has NaN or infinity, or no direction (cosine).
            DimensionMismatchError: The vector has another dimension.
        """
        key = as_id(id)
        name = f"the vector of {shown(key)}"
        row = stored_vector(vector, self.dimension, self._hnsw.metric, name)
        uninterrupted(lambda: self._put([key], row))
        self._tend()

    def insert_batch(self, ids: Any, vectors: Any) -> int:
        """Insert many vectors, which is faster than one by one. Nothing is inserted when one cannot be.

        Searches of other threads find the first ones while the later ones are still on their way.

        Args:
            ids: A list or array of strings and integers, each once.
            vectors: A matrix of shape ``(n, dimension)``, or a list of vectors.

        Returns:
            How many were inserted.

        Raises:
            ValidationError: An id is of another type or there twice; not as many ids as vectors; a vector has NaN or
                infinity, or no direction (cosine).
            DimensionMismatchError: The vectors have another dimension.
        """
        keys = as_ids(ids)
        rows = self._hnsw.prepare(vectors)
        if len(keys) != len(rows):
            raise ValidationError(
                f"there are {len(keys):,} ids and {len(rows):,} vectors.", remediation="Give one id for each vector."
            )
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            uninterrupted(partial(self._put, keys[part], rows[part]))
            self._tend()
        return len(rows)

    def delete(self, id: Id) -> bool:
        """Delete a vector.

        Args:
            id: A string or an integer.

        Returns:
            Whether it was there.

        Raises:
            ValidationError: The id is of another type.
        """
        key = as_id(id)
        there = uninterrupted(lambda: self._take(key))
        self._tend()
        return there

    def search(self, vector: Any, k: int = 10, ef_search: int | None = None) -> Result:
        """The nearest vectors.

        Args:
            vector: Numbers of shape ``(dimension,)``.
            k: How many.
            ef_search: Candidates that the search keeps, ``k`` at the least; 64 when omitted. More is slower and finds
                more of the true nearest.

        Returns:
            ``(id, distance)``, nearest first: ``k`` of them, or all when there are fewer.

        Raises:
            ValidationError: ``k`` or ``ef_search`` is not 1 or more; NaN, infinity or no direction (cosine).
            DimensionMismatchError: The vector has another dimension.
        """
        queries = stored_vector(vector, self.dimension, self._hnsw.metric, "the query")
        return self._search(queries, k, ef_search)[0]

    def search_batch(self, vectors: Any, k: int = 10, ef_search: int | None = None) -> list[Result]:
        """The nearest vectors of each of many, searched in parallel.

        Args:
            vectors: A matrix of shape ``(n, dimension)``, or a list of vectors.
            k: As for :meth:`search`.
            ef_search: As for :meth:`search`.

        Returns:
            What :meth:`search` returns, for each.

        Raises:
            ValidationError: As for :meth:`search`.
            DimensionMismatchError: As for :meth:`search`.
        """
        return self._search(self._hnsw.prepare(vectors, "the queries"), k, ef_search)

    def save(self, path: Name) -> None:
        """Save it to a file, which appears whole or not at all and is durable on return.

        Searches go on meanwhile; changes wait until the file is written.

        Args:
            path: The file; one that exists is replaced.

        Raises:
            ValidationError: There can be no file at that path.
            StorageFullError: The disk is full. An existing file is as it was.
            ConfigurationError: A permission is missing.
        """
        with replacing(path) as file:
            with self._hnsw.reading():
                writer = SectionWriter(file)
                labels = self._hnsw.labels()
                kind = write_ids(writer, [self._ids[label] for label in labels.tolist()], labels)
                write_index(writer, self._hnsw, {"ids": kind, "next": self._next})

    @classmethod
    def load(cls, path: Name, *, threads: int | None = None) -> VectorIndex:
        """Load what :meth:`save` or ``toondb-bulk build-index`` wrote.

        Args:
            path: The file.
            threads: As for the class.

        Raises:
            ValidationError: There is no such file, or it is another kind of file.
            CorruptionError: It is damaged or cut short.
            UnsupportedFeatureError: A later ToonDB wrote it.
        """
        with open_regular(path, "the index") as file:
            reader = SectionReader(file, os.fsdecode(path))
            reader.verify()
        index = cls.__new__(cls)
        index._hnsw = read_index(reader, threads)
        labels = index._hnsw.labels()
        ids = read_ids(reader, labels)
        listed: list[Id] = ids if isinstance(ids, list) else ids.tolist()
        index._ids = dict(zip(labels.tolist(), listed, strict=True))
        index._labels = {one: label for label, one in index._ids.items()}
        if len(index._labels) != len(labels):
            raise reader.damaged("an id is there twice")
        last = int(labels[-1]) if len(labels) else -1
        following = reader.about.get("next")
        if not isinstance(following, int) or following <= last:
            raise reader.damaged(f"its next label is {following!r}")
        index._next = following
        index._cleaner = None
        return index

    def _take(self, key: Id) -> bool:
        with self._hnsw.writing():
            label = self._labels.pop(key, None)
            if label is None:
                return False
            del self._ids[label]
            self._hnsw.remove(label)
            return True

    def _put(self, keys: list[Id], rows: Floats) -> None:
        with self._hnsw.writing():
            labels = np.arange(self._next, self._next + len(keys), dtype=np.int64)
            self._next += len(keys)
            self._hnsw.add(labels, rows)
            for key, label in zip(keys, labels.tolist(), strict=True):
                before = self._labels.get(key)
                if before is not None:
                    self._hnsw.remove(before)
                    del self._ids[before]
                self._labels[key] = label
                self._ids[label] = key

    def _search(self, queries: Floats, k: int, ef: int | None) -> list[Result]:
        k = check_k(k)
        with self._hnsw.reading():
            distances, labels = self._hnsw.search(queries, k, ef)
            ids = self._ids
            return [
                [(ids[label], distance) for label, distance in zip(*row, strict=True)]
                for row in zip(labels.tolist(), distances.tolist(), strict=True)
            ]

    def _tend(self) -> None:
        """Start to clean up in the background; when there is far too much to clean, wait for it."""
        if not self._hnsw.wants_rebuild:
            return
        cleaner = self._cleaner
        if cleaner is None or not cleaner.is_alive():
            cleaner = threading.Thread(target=self._hnsw.rebuild, args=(_ending,), name="toondb-vector-rebuild")
            try:
                cleaner.start()
            except RuntimeError:
                return  # the interpreter is ending, and starts no more threads
            self._cleaner = cleaner
        if self._hnsw.needs_rebuild:
            cleaner.join()


def _ending() -> bool:
    # The interpreter waits for its threads when the main thread is through.
    return not threading.main_thread().is_alive()
