"""How the contestants of the vector rows are driven: collections embedded and through the daemon, faiss and hnswlib.

Operations:

``search*EF``, ``search*EF*N``
    The 10 nearest of one query after the other, ``EF`` candidates; with ``N`` those in the first ``N`` of 1,000
    buckets, which is a filter.
``search-new*EF*N``
    The same with a filter that was never asked for before.
``search-new-equal*EF*N``
    The same with one that names the buckets: equality of a field, which was asked for before with other values.
``hybrid``, ``hybrid-short``, ``words``
    A search by vector and eight words, by vector and three words, and by eight words alone.
``insert``, ``insert-searched``, ``insert-words``
    One document after the other, each durable, into a collection that nobody searches, into one whose index follows,
    and into one that knows words.
``build*NAME``
    See :mod:`benchmarks.vector_builders`.

Everybody searches with one thread, in graphs of the same parameters. The answers of all queries are looked at: a
driver gives the recall of an operation.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.drivers import DriverError, Loop
from benchmarks.servers import cpu_seconds
from benchmarks.sql_drivers import each
from benchmarks.vector_builders import BUILDERS, EF_CONSTRUCTION, M
from benchmarks.vector_data import EMBEDDING_DIMENSION, K, Labels, VectorData, recall
from benchmarks.workload import Workload

__all__ = ["VECTOR_DRIVERS"]

_TIMEOUT = 60
_BATCH = 1000
_FEW_WORDS = 3
_NAMESPACE = "benchmark"
_IDLE_SHARE, _IDLE_SECONDS, _IDLE_WITHIN = 0.05, 0.3, 300.0
_PEER = struct.Struct("iII")

Answer = Callable[[int], list[int]]
"""The numbers of the documents that a query finds, by the number of the query."""


def _parts(operation: str) -> tuple[str, list[int]]:
    name, *numbers = operation.split("*")
    return name, [int(number) for number in numbers]


class _Searcher:
    """Something that can be searched."""

    def __init__(self, address: str, workload: Workload, seed: int) -> None:
        self._data, self._seed = VectorData(workload), seed
        self._open(address)

    def _open(self, address: str) -> None:
        raise NotImplementedError

    def load(self, workload: Workload) -> None:
        """What is needed is made when it is first needed."""

    def close(self) -> None:
        """Close it."""
        raise NotImplementedError

    def _search(self, ef: int, buckets: int) -> Callable[[int], Any]:
        """What searches for a query; 0 buckets = without a filter."""
        raise NotImplementedError

    def _numbers(self, answer: Any) -> list[int]:
        """The numbers of the documents in an answer."""
        raise NotImplementedError

    def _made(self, operation: str) -> Callable[[int], Any]:
        name, numbers = _parts(operation)
        if name != "search":
            raise DriverError(f"{type(self).__name__} has no operation {operation!r}")
        return self._search(numbers[0], numbers[1] if len(numbers) > 1 else 0)

    def loop(self, operation: str) -> Loop:
        """The loop for an operation."""
        return each(self._made(operation), range(len(self._data.queries)))

    def recall(self, operation: str) -> float:
        """The recall of an operation over all queries."""
        name, numbers = _parts(operation)
        search = self._made(operation)
        buckets = numbers[1] if name.startswith("search") and len(numbers) > 1 else 0
        among: Labels | None = self._data.matching(buckets) if buckets else None
        found = [self._numbers(search(query)) for query in range(len(self._data.queries))]
        wanted = K if among is None else min(K, len(among))
        short = min(map(len, found))
        if short < wanted and not isinstance(self, _Graph):
            raise DriverError(f"{operation} found {short} documents instead of {wanted}")
        return recall(found, self._data.vectors, self._data.queries, among)


# ToonDB


class _CollectionDriver(_Searcher):
    """Collections of a store."""

    def _open(self, address: str) -> None:
        self._address = address
        self._store = self._connected(address)
        self._collections: dict[str, Any] = {}
        self._new = count(1)

    def _connected(self, address: str) -> Any:
        raise NotImplementedError

    def _cpu_seconds(self) -> float:
        """Processor time of the process that has the index."""
        raise NotImplementedError

    def _collection(self, name: str) -> Any:
        """A collection; ``texts`` has all documents and their words, the others are for inserts and begin empty."""
        found = self._collections.get(name)
        if found is None:
            from toondb_protocol.errors import CollectionExistsError, NamespaceExistsError

            # Other processes make the same.
            with suppress(NamespaceExistsError):
                self._store.create_namespace(_NAMESPACE)
            with suppress(CollectionExistsError):
                self._store.namespace(_NAMESPACE).create_collection(
                    name,
                    dimension=EMBEDDING_DIMENSION,
                    m=M,
                    ef_construction=EF_CONSTRUCTION,
                    enable_hybrid_search=name in ("texts", "words"),
                )
            found = self._collections[name] = self._store.collection(_NAMESPACE, name)
        return found

    def _texts(self) -> Any:
        """The collection of all texts, filled and with its index made."""
        known = "texts" in self._collections
        collection = self._collection("texts")
        if not known:
            data = self._data
            if collection.count() < len(data.vectors):
                for start in range(0, len(data.vectors), _BATCH):
                    numbers = range(start, min(start + _BATCH, len(data.vectors)))
                    collection.insert_batch(
                        data.vectors[numbers.start : numbers.stop],
                        [data.metadata(number) for number in numbers],
                        [str(number) for number in numbers],
                        data.texts[numbers.start : numbers.stop],
                    )
            self._settle(lambda: collection.vector_search(data.queries[0], K))
        return collection

    def _settle(self, search: Callable[[], object]) -> None:
        """Wait until the index is made: a search begins it, then it goes on in the background."""
        deadline = perf_counter() + _IDLE_WITHIN
        while perf_counter() < deadline:
            search()
            before = self._cpu_seconds()
            time.sleep(_IDLE_SECONDS)
            if self._cpu_seconds() - before < _IDLE_SHARE * _IDLE_SECONDS:
                return
        raise DriverError(f"the index was not made within {_IDLE_WITHIN:.0f} s")

    def _search(self, ef: int, buckets: int) -> Callable[[int], Any]:
        search, queries = self._texts().vector_search, self._data.queries
        if not buckets:
            return lambda query: search(queries[query], K, ef_search=ef)
        filter = {"bucket": {"$lt": buckets}}
        return lambda query: search(queries[query], K, filter, ef_search=ef)

    def _made(self, operation: str) -> Callable[[int], Any]:
        name, numbers = _parts(operation)
        queries, questions = self._data.queries, self._data.questions
        if name == "search-new":
            ef, buckets = numbers
            search, new = self._texts().vector_search, self._new
            return lambda query: search(
                queries[query], K, {"bucket": {"$lt": buckets}, "number": {"$gte": -next(new)}}, ef_search=ef
            )
        if name == "search-new-equal":
            ef, buckets = numbers
            search, new, wanted = self._texts().vector_search, self._new, list(range(buckets))
            return lambda query: search(
                queries[query], K, {"bucket": {"$in": wanted}, "number": {"$gte": -next(new)}}, ef_search=ef
            )
        if name in ("hybrid", "hybrid-short"):
            both = self._texts().hybrid_search
            if name == "hybrid-short":
                questions = [" ".join(question.split()[:_FEW_WORDS]) for question in questions]
            return lambda query: both(queries[query], questions[query], K)
        if name == "words":
            words = self._texts().keyword_search
            return lambda query: words(questions[query], K)
        if name.startswith("insert"):
            return self._insert(name)
        return super()._made(operation)

    def _insert(self, name: str) -> Callable[[int], Any]:
        data, own = self._data, f"{os.getpid()}-"
        collection = self._collection({"insert": "plain", "insert-searched": "searched", "insert-words": "words"}[name])
        rows, texts = data.inserted
        size = len(rows)
        if name == "insert-searched":
            collection.vector_search(rows[0], K)

        def insert(_: int) -> Any:
            number = next(self._new)
            at = number % size
            return collection.insert(rows[at], {"number": number, "source": "benchmark"}, f"{own}{number}", texts[at])

        insert(0)
        stored = collection.get(f"{own}{next(self._new) - 1}")
        if stored is None or stored.content is None or len(stored.vector or ()) != rows.shape[1]:
            raise DriverError(f"what was inserted is there as {stored!r}"[:300])
        return insert

    def _numbers(self, answer: Any) -> list[int]:
        return [int(result.id) for result in answer]

    def close(self) -> None:
        self._store.close()


class EmbeddedVectorDriver(_CollectionDriver):
    """``Database.open``."""

    def _connected(self, address: str) -> Any:
        from toondb import Database

        return Database.open(address)

    def _cpu_seconds(self) -> float:
        return time.process_time()


class IpcVectorDriver(_CollectionDriver):
    """The public synchronous client."""

    def _connected(self, address: str) -> Any:
        from toondb_client import IpcClient

        return IpcClient.connect(address, timeout=_TIMEOUT)

    def _cpu_seconds(self) -> float:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.connect(self._address)
            peer, _, _ = _PEER.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return cpu_seconds(peer)


# Peers


class _Graph(_Searcher):
    """A graph of another library in this process, with nothing around it. A filter of it may find fewer than 10."""

    def _open(self, address: str) -> None:
        self._index: Any = None

    def _numbers(self, answer: Any) -> list[int]:
        return [number for number in np.asarray(answer).ravel().tolist() if number >= 0]

    def close(self) -> None:
        self._index = None


class FaissDriver(_Graph):
    """``faiss.IndexHNSWFlat``; a filter is its selector, ready made."""

    def _search(self, ef: int, buckets: int) -> Callable[[int], Any]:
        # In the same way as ToonDB: threads that wait for each other sleep.
        from toondb.vector.faiss_library import faiss

        if self._index is None:
            self._index = faiss.IndexHNSWFlat(self._data.vectors.shape[1], M, faiss.METRIC_L2)
            self._index.hnsw.efConstruction = EF_CONSTRUCTION
            self._index.add(self._data.vectors)
        search, queries = self._index.search, self._data.queries
        parameters = faiss.SearchParametersHNSW(efSearch=ef)
        if buckets:
            allowed = np.zeros(len(self._data.vectors), np.bool_)
            allowed[self._data.matching(buckets)] = True
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            parameters.sel = selector
            # The C++ objects only point to these.
            parameters.kept = (bits, selector)
        return lambda query: search(queries[query : query + 1], K, params=parameters)[1]


class HnswlibDriver(_Graph):
    """``hnswlib.Index``."""

    def _search(self, ef: int, buckets: int) -> Callable[[int], Any]:
        import hnswlib

        if buckets:
            raise DriverError("it calls Python for every vector that it looks at, which is not measured")
        if self._index is None:
            rows = self._data.vectors
            self._index = hnswlib.Index("cosine", rows.shape[1])
            self._index.init_index(len(rows), M=M, ef_construction=EF_CONSTRUCTION)
            self._index.add_items(rows)
            self._index.set_num_threads(1)
        index, queries = self._index, self._data.queries

        def search(query: int) -> Any:
            index.set_ef(ef)
            return index.knn_query(queries[query], K)[0]

        return search


VECTOR_DRIVERS: dict[str, Any] = {
    "vector-embedded": EmbeddedVectorDriver,
    "vector-ipc": IpcVectorDriver,
    "vector-faiss": FaissDriver,
    "vector-hnswlib": HnswlibDriver,
    **BUILDERS,
}
"""Drivers by name."""
