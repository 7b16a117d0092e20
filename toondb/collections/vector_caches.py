"""The vectors in memory of all collections that were searched: when they are loaded, brought up to date and saved."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from toondb.engine.engine import Engine
from toondb.engine.environment import Space
from toondb.engine.options import Access
from toondb.engine.transaction import Transaction
from toondb.engine.write_set import ABSENT
from toondb.vector.threads import uninterrupted
from toondb_protocol.errors import ToonDBError

from . import documents
from .catalog import CollectionEntry
from .exact import Hit, Query
from .given import Filter
from .index_file import load, save
from .vector_cache import VectorCache
from .vector_search import search_exactly, search_vectors

__all__ = ["VectorCaches"]

_AT_ONCE = 1024
"""So many documents a search adds to the cache itself; more are added in the background."""

_MOST_EXACT = 100_000
"""Until the cache is up to date, so many documents are compared one by one rather than waited for."""

_SAVED_FROM = 1024
"""Fewer vectors are read from the store as fast as from a file."""

_SAVE_AFTER = 20_000

_MOST_BYTES = 2 << 30
"""What all caches of a store may take; one of them may take more."""


class VectorCaches:
    """The caches of a store.

    Args:
        engine: The open engine.
        wake: Asks for :meth:`tend` on another thread.
    """

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._wake = wake
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = {}
        self._caches: dict[int, VectorCache] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._caches)

    # Searches

    def search(
        self,
        view: Transaction,
        collection: CollectionEntry,
        query: Query,
        name: str | None,
        filter: Filter | None,
        k: int,
        ef: int | None,
    ) -> list[Hit]:
        """The ``k`` documents nearest to a query, or all that there are; nearest first."""
        view.check_active()
        if not _is_committed(view, collection):
            # Nobody else knows it yet, and its number may be another's after an abort.
            return search_exactly(view, collection, query, name, filter, k)
        cache = self._of(collection)
        cache.used_at = time.monotonic()
        for attempt in range(2):
            self._bring(cache, view, filter, wait=attempt > 0)
            hits = search_vectors(view, cache, collection, query, name, filter, k, ef)
            if hits is not None:
                return hits
            if documents.count(view, collection) <= _MOST_EXACT:
                break
        return search_exactly(view, collection, query, name, filter, k)

    def known(self, id: int) -> VectorCache | None:
        """The cache of a collection that was searched before; it counts as used."""
        cache = self._caches.get(id)
        if cache is not None:
            cache.used_at = time.monotonic()
        return cache

    def _of(self, collection: CollectionEntry) -> VectorCache:
        cache = self._caches.get(collection.id)
        if cache is not None:
            return cache
        with self._lock:
            opening = self._opening.setdefault(collection.id, threading.Lock())
        with opening:
            cache = self._caches.get(collection.id)
            if cache is None:
                with contextlib.closing(self._engine.private_snapshot()) as snapshot:
                    found = load(self._engine.folder, self._store, collection, snapshot)
                cache = self._caches[collection.id] = found or VectorCache(collection)
                if len(self._caches) > 1:
                    self._wake()
        return cache

    @property
    def _store(self) -> str:
        return str(self._engine.format.get("id", ""))

    def _bring(self, cache: VectorCache, view: Transaction, filter: Filter | None, *, wait: bool) -> None:
        """Bring a cache near to a view, when that is little work or it is waited for."""
        if cache.lsn >= view.snapshot.lsn and (filter is None or cache.knows(filter)):
            return
        if wait:
            with cache.updating:
                self._catch_up(cache, filter)
        # Ctrl-C between taking it and what gives it back would leave it taken for ever.
        elif not uninterrupted(lambda: self._try_to_catch_up(cache, filter)):
            return
        if cache.hnsw.wants_growth or cache.hnsw.wants_rebuild or cache.unsaved > _SAVE_AFTER:
            self._wake()

    def _try_to_catch_up(self, cache: VectorCache, filter: Filter | None) -> bool:
        """Bring a cache up to date when that is little work, and nobody else does it."""
        if not cache.updating.acquire(blocking=False):
            return False
        try:
            little = self._catch_up(cache, filter, _AT_ONCE)
        finally:
            cache.updating.release()
        if not little:
            self._wake()
        return little

    def _catch_up(self, cache: VectorCache, filter: Filter | None, most: int | None = None) -> bool:
        """Bring a cache up to date, unless more than ``most`` documents changed; whether it was done."""
        with contextlib.closing(self._engine.private_snapshot()) as snapshot:
            if most is not None and cache.missing(snapshot, most) is None:
                return False
            cache.catch_up(snapshot)
            if filter is not None:
                cache.learn(filter, snapshot)
        return True

    # In the background

    def tend(self, stopping: Callable[[], bool]) -> None:
        """Bring all caches up to date, clean them up, and save them now and then; let those go that are gone."""
        for cache in list(self._caches.values()):
            if stopping():
                return
            with cache.updating:
                with contextlib.closing(self._engine.private_snapshot()) as snapshot:
                    if snapshot.record(Space.CATALOG, cache.collection.key) is None:
                        self.forget({cache.collection.id})
                        continue
                    cache.catch_up(snapshot)
            # Not while ``updating`` is held: what is committed meanwhile has to be found.
            while cache.hnsw.wants_growth and not stopping() and cache.hnsw.grow(stopping):
                pass
            if cache.hnsw.wants_rebuild:
                cache.hnsw.rebuild(stopping)
            with cache.updating:
                if cache.unsaved > max(_SAVE_AFTER, len(cache) // 4):
                    self._save(cache)

        self._shrink()

    def _shrink(self) -> None:
        """Let caches go that were not used for the longest time, when all of them take too much memory."""
        caches = sorted(self._caches.values(), key=lambda cache: cache.used_at)
        size = sum(cache.size for cache in caches)
        for cache in caches[:-1]:
            if size <= _MOST_BYTES:
                return
            size -= cache.size
            with cache.updating:
                if cache.unsaved:
                    self._save(cache)
                self.forget({cache.collection.id})

    def forget(self, ids: set[int]) -> None:
        """Let the caches of collections go that are gone."""
        with self._lock:
            for id in ids:
                self._caches.pop(id, None)
                self._opening.pop(id, None)

    def close(self) -> None:
        """Save what is worth it."""
        for cache in list(self._caches.values()):
            with cache.updating:
                if cache.unsaved:
                    self._save(cache)
        self._caches.clear()

    def _save(self, cache: VectorCache) -> None:
        if self._engine.access is Access.READ or len(cache.hnsw) < _SAVED_FROM:
            return
        # What cannot be saved is made anew from the store.
        with contextlib.suppress(ToonDBError, OSError):
            save(self._engine.folder, self._store, cache)


def _is_committed(view: Transaction, collection: CollectionEntry) -> bool:
    return view.written(collection.key, Space.CATALOG) is ABSENT
