"""The vectors of one collection in memory: an HNSW index, and where each of its vectors comes from.

It is a cache. What is true is in the store; a search re-checks every document that it finds here, and compares it
again, as the vectors here may be rounded. The cache reflects one commit (``lsn``) and knows the LSN of the record of
each document, so that a search in any snapshot can tell which documents it must look at itself: those that the document
log names between the two.

Labels are numbers that only this cache uses, ascending, each used once. A document of several vectors has several,
one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from toondb.engine import document_log
from toondb.engine.document_log import LogState
from toondb.engine.environment import Space
from toondb.engine.snapshot import Snapshot, records
from toondb.vector.hnsw import HnswIndex
from toondb.vector.metrics import Floats, Labels
from toondb.vector.shared_lock import SharedLock
from toondb.vector.threads import uninterrupted
from toondb_protocol.errors import CorruptionError
from toondb_protocol.record import HEADER_SIZE, decode_lsn
from toondb_protocol.search import CollectionConfig, DistanceMetric

from .catalog import CollectionEntry
from .documents import vectors_of
from .given import Filter
from .known_filters import KnownFilters, Met
from .label_set import LabelSet, common

__all__ = ["Known", "VectorCache", "is_half"]

_ROWS_AT_ONCE = 1024
"""Searches wait while so many rows are added."""

_FLOAT_SIZE = _LINK_SIZE = 4
_HALF_SIZE = 2
_BYTES_PER_LABEL = 500
"""Of what is kept of a vector beside its numbers and its neighbours."""
_SCAN_ROWS = 1024
_SCAN_BYTES = 4 << 20


def is_half(config: CollectionConfig) -> bool:
    """Whether the vectors are kept in half precision: those of length 1, whose numbers have a known range."""
    return config.metric is DistanceMetric.COSINE


class Known(NamedTuple):
    """What the cache knows of a document.

    Attributes:
        id: Its id.
        lsn: The LSN of the record that it was made from.
        first: The label of its first vector.
        vectors: How many vectors it has.
    """

    id: str
    lsn: int
    first: int
    vectors: int

    @property
    def labels(self) -> range:
        """The labels of its vectors."""
        return range(self.first, self.first + self.vectors)


class _Change(NamedTuple):
    """What a document has become; ``lsn`` 0 = it is gone."""

    id: str
    lsn: int
    value: bytes


class _Reading:
    """Documents of a snapshot that are in a cache as they are in the store.

    Args:
        snapshot: The snapshot.
        collection: Their collection.
        known: What the cache knows, by id.
    """

    def __init__(self, snapshot: Snapshot, collection: CollectionEntry, known: Mapping[str, Known]) -> None:
        self._snapshot = snapshot
        self._collection = collection
        self._known = known

    def all(self) -> Iterator[tuple[Known, bytes]]:
        """All of them, with their values."""
        return self._as_known(documents_of(self._snapshot, self._collection))

    def some(self, ids: Iterable[str]) -> Iterator[tuple[Known, bytes]]:
        """Those of some ids, with their values."""
        prefix = self._collection.prefix
        raws = ((id, self._snapshot.record(Space.DOCUMENTS, prefix + id.encode())) for id in ids)
        return self._as_known((id, decode_lsn(raw), raw[HEADER_SIZE:]) for id, raw in raws if raw is not None)

    def _as_known(self, documents: Iterable[tuple[str, int, bytes]]) -> Iterator[tuple[Known, bytes]]:
        for id, lsn, value in documents:
            known = self._known.get(id)
            if known is not None and known.lsn == lsn:
                yield known, value


class VectorCache:
    """The vectors of a collection. Searches run side by side, changes one at a time.

    Args:
        collection: The collection, with its dimension.

    Attributes:
        collection: The collection.
        hnsw: The index.
        lsn: It has what was committed up to this LSN.
        upto: It may already have some of what was committed up to this LSN; the same as ``lsn`` between two changes.
        state: What the document log said of the collection at ``lsn``.
        updating: Held by whoever brings it up to date.
        unsaved: Changes since it was saved or loaded.
        used_at: ``time.monotonic()`` when it was last searched.
    """

    def __init__(self, collection: CollectionEntry, hnsw: HnswIndex | None = None) -> None:
        config = collection.config
        assert config.dimension is not None
        self.collection = collection
        self.hnsw = hnsw or HnswIndex(
            config.dimension, config.metric.value, config.m, config.ef_construction, half=is_half(config)
        )
        self.lsn = self.upto = 0
        self.state = LogState()
        self.updating = threading.Lock()
        self.unsaved = 0
        self.next_label = 0
        self.used_at = 0.0
        self._lock = SharedLock()
        self._documents: dict[str, Known] = {}
        self._owners: dict[int, Known] = {}
        self._names: dict[str | None, LabelSet] = {}
        self._filters = KnownFilters()

    def __len__(self) -> int:
        """The number of documents with vectors."""
        return len(self._documents)

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        hnsw = self.hnsw
        row = (_HALF_SIZE if hnsw.half else _FLOAT_SIZE) * hnsw.dimension
        return len(self._owners) * (row + _LINK_SIZE * 2 * hnsw.m + _BYTES_PER_LABEL) + self._filters.size

    def reading(self) -> AbstractContextManager[None]:
        """Inside, nothing changes."""
        return self._lock.reading()  # type: ignore[no-any-return]

    def try_reading(self) -> tuple[Any, ...] | None:
        """For who must not wait: the locks of :meth:`reading` and of the index, taken already; None = one cannot be."""
        own = self._lock.try_reading()
        if own is None:
            return None
        index = self.hnsw.try_reading()
        if index is None:
            own.release()
            return None
        return own, index

    # What is saved

    def rows_saved(self) -> tuple[Labels, list[str], Labels, list[str | None]]:
        """For each label, ascending: id, LSN of its record, name. Inside :meth:`reading`."""
        labels = self.hnsw.labels()
        owners = [self._owners[label] for label in labels.tolist()]
        ids = [known.id for known in owners]
        lsns = np.fromiter((known.lsn for known in owners), np.int64, len(owners))
        names: list[str | None] = [None] * len(ids)
        if set(self._names) - {None}:
            names = [next(name for name, own in self._names.items() if label in own) for label in labels.tolist()]
        return labels, ids, lsns, names

    def restore(
        self, rows: tuple[Labels, list[str], Labels, list[str | None]], next_label: int, lsn: int, state: LogState
    ) -> bool:
        """Take over what was saved; False when it contradicts itself."""
        for label, id, own_lsn, name in zip(rows[0].tolist(), rows[1], rows[2].tolist(), rows[3], strict=True):
            known = self._documents.get(id)
            if known is None:
                known = Known(id, own_lsn, label, 1)
            elif label != known.first + known.vectors or own_lsn != known.lsn:
                return False
            else:
                known = known._replace(vectors=known.vectors + 1)
            self._documents[id] = known
            for own in known.labels:
                self._owners[own] = known
            if name not in self._names:
                self._names[name] = LabelSet()
            self._names[name].add((label,))
        self.next_label, self.lsn, self.upto, self.state = next_label, lsn, lsn, state
        return len(rows[0]) == 0 or int(rows[0][-1]) < next_label

    # Bringing it up to date. By one thread at a time, which holds ``updating``.

    def missing(self, snapshot: Snapshot, most: int) -> int | None:
        """How many documents changed since; None when they are more than ``most``, or nobody knows."""
        if self.lsn >= snapshot.lsn:
            return 0
        environment, number = snapshot.environment, self.collection.id
        with snapshot.reading() as view:
            if not self.lsn:
                documents = _state(snapshot, view, number).documents
                return documents if documents <= most else None
            changed = document_log.changed_ids(environment, view, number, self.lsn, snapshot.lsn, most)
        return None if changed is None else len(changed)

    def catch_up(self, snapshot: Snapshot) -> None:
        """Bring it to what a snapshot sees: by the log, or by reading all documents.

        When this fails half-way, the cache stays usable: ``upto`` tells how far it may be ahead.
        """
        if self.lsn >= snapshot.lsn:
            return
        with snapshot.reading() as view:
            environment = snapshot.environment
            number = self.collection.id
            state = _state(snapshot, view, number)
            # At first all documents are read in their order, which is faster than one by one.
            changed = document_log.changed_ids(environment, view, number, self.lsn, snapshot.lsn) if self.lsn else None
        self.upto = max(self.upto, snapshot.lsn)
        changes = self._scanned(snapshot) if changed is None else self._logged(snapshot, list(changed))
        while chunk := list(islice(changes, _ROWS_AT_ONCE)):
            self._apply(chunk)
        self.lsn = snapshot.lsn
        self.state = state

    def _logged(self, snapshot: Snapshot, ids: list[str]) -> Iterator[_Change]:
        prefix = self.collection.prefix
        for id in ids:
            raw = snapshot.record(Space.DOCUMENTS, prefix + id.encode())
            change = _Change(id, 0, b"") if raw is None else _Change(id, decode_lsn(raw), raw[HEADER_SIZE:])
            known = self._documents.get(id)
            if change.lsn != (0 if known is None else known.lsn):
                yield change

    def _scanned(self, snapshot: Snapshot) -> Iterator[_Change]:
        """All documents that are not here as they are in the store."""
        gone = dict.fromkeys(self._documents)
        for id, lsn, value in documents_of(snapshot, self.collection):
            gone.pop(id, None)
            known = self._documents.get(id)
            if known is None or known.lsn != lsn:
                yield _Change(id, lsn, value)
        for id in gone:
            yield _Change(id, 0, b"")

    def _apply(self, changes: Sequence[_Change]) -> None:
        dimension = self.hnsw.dimension
        rows: list[bytes] = []
        added: list[tuple[_Change, list[str | None]]] = []
        for change in changes:
            names: list[str | None] = []
            if change.lsn:
                own, vectors = vectors_of(change.value)
                if own == dimension:
                    names = [name for name, _ in vectors]
                    rows += [vector for _, vector in vectors]
            added.append((change, names))
        matrix = np.frombuffer(b"".join(rows), dtype="<f4").reshape(-1, dimension)
        prepared = self.hnsw.prepare(matrix)
        uninterrupted(lambda: self._write(added, prepared))

    def _write(self, added: list[tuple[_Change, list[str | None]]], rows: Floats) -> None:
        # What can fail comes before anything is changed: a damaged record, a filter.
        meets = [self._filters.met_by(change.value) if names else None for change, names in added]
        with self._lock.writing():
            labels = np.arange(self.next_label, self.next_label + len(rows), dtype=np.int64)
            self.hnsw.add(labels, rows, aside=True)
            noted: list[tuple[Met, range]] = []
            for (change, names), met in zip(added, meets, strict=True):
                self._forget(change.id)
                if met is None:
                    continue
                known = Known(change.id, change.lsn, self.next_label, len(names))
                self.next_label += len(names)
                self._documents[change.id] = known
                for label, name in zip(known.labels, names, strict=True):
                    self._owners[label] = known
                    if name not in self._names:
                        self._names[name] = LabelSet()
                    self._names[name].add((label,))
                noted.append((met, known.labels))
            self._filters.add(noted, len(self._owners))
            self.unsaved += len(added)

    def _forget(self, id: str) -> None:
        known = self._documents.pop(id, None)
        if known is None:
            return
        for label in known.labels:
            self.hnsw.remove(label)
            del self._owners[label]
        for name in [name for name, own in self._names.items() if known.first in own or known.vectors > 1]:
            self._names[name].remove(known.labels)
            if not self._names[name]:
                del self._names[name]
        self._filters.remove(known.labels)

    # Filters

    def knows(self, filter: Filter) -> bool:
        """Whether the labels of a filter are known."""
        return filter in self._filters

    def learn(self, filter: Filter, snapshot: Snapshot) -> None:
        """Find the labels of a filter; ``snapshot`` is what the cache reflects. By who holds ``updating``."""
        if filter in self._filters:
            return
        labels = self._filters.find(filter, self._owners, _Reading(snapshot, self.collection, self._documents))
        uninterrupted(lambda: self._keep(filter, labels))

    def _keep(self, filter: Filter, labels: LabelSet) -> None:
        with self._lock.writing():
            self._filters.keep(filter, labels)

    # Searches. Inside reading().

    def known(self, id: str) -> Known | None:
        """What is known of a document."""
        return self._documents.get(id)

    def allowed(self, name: str | None, filter: Filter | None) -> tuple[Labels | None, bool]:
        """The labels that a search may answer (None = all), and whether the filter is known here."""
        matching: Labels | None = None
        if filter is not None:
            matching = self._filters.labels(filter)
            if matching is None:
                return None, False
        named = self._names.get(name)
        if named is None:
            return np.empty(0, np.int64), True
        return common(named.array() if len(self._names) > 1 else None, matching), True

    def nearest(self, query: Floats, k: int, ef: int | None, allowed: Labels | None) -> list[Known]:
        """The documents whose vectors are the ``k`` nearest, and perhaps some more."""
        owners = self._owners
        return [owners[label] for label in self.hnsw.candidates(query, k, ef, allowed)]


def _state(snapshot: Snapshot, view: Any, number: int) -> LogState:
    try:
        return document_log.read_state(snapshot.environment, view, number)
    except CorruptionError:
        return LogState()


def documents_of(snapshot: Snapshot, collection: CollectionEntry) -> Iterator[tuple[str, int, bytes]]:
    """All documents that a snapshot sees: id, LSN of the record, value. In steps: others may use it in between."""
    prefix = collection.prefix
    database = snapshot.environment.spaces[Space.DOCUMENTS]
    start = prefix
    while True:
        chunk: list[tuple[bytes, bytes]] = []
        size = 0
        with snapshot.reading() as view:
            for key, raw in records(view, database, start, None):
                if not key.startswith(prefix) or len(chunk) >= _SCAN_ROWS or size >= _SCAN_BYTES:
                    break
                chunk.append((key, raw))
                size += len(raw)
        if not chunk:
            return
        start = chunk[-1][0] + b"\0"
        for key, raw in chunk:
            yield key[len(prefix) :].decode(), decode_lsn(raw), raw[HEADER_SIZE:]
