"""The collections of a store, made when they are first used: whoever uses keys alone never loads NumPy and faiss."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from toondb.engine.engine import Engine
from toondb_protocol.errors import DatabaseClosedError

if TYPE_CHECKING:
    from .engine import CollectionsEngine

__all__ = ["LazyCollections"]


class LazyCollections:
    """Opens a :class:`CollectionsEngine` on demand. One for each engine: its indexes are in memory once.

    Args:
        engine: The open engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._collections: CollectionsEngine | None = None
        self._closed = False

    def __call__(self) -> CollectionsEngine:
        """The collections of the store.

        Raises:
            DatabaseClosedError: The store is closed.
        """
        self._engine.check_open()  # before the lock, which a thread that is not in a forked child may hold
        collections = self._collections
        if collections is None:
            from .engine import CollectionsEngine

            with self._lock:
                if self._closed:
                    raise DatabaseClosedError("the database is closed.")
                if self._collections is None:
                    self._collections = CollectionsEngine(self._engine)
                collections = self._collections
        return collections

    @property
    def opened(self) -> CollectionsEngine | None:
        """The collections of the store, when they are in use already."""
        return self._collections

    def close(self) -> None:
        """Save the indexes, if there are any. Idempotent. Before the engine is closed."""
        if self._engine.environment.forked:
            return
        with self._lock:
            self._closed = True
            collections, self._collections = self._collections, None
        if collections is not None:
            collections.close()
