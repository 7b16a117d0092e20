"""The search that nearly all are: by one vector alone, in what is committed, when the vectors in memory have it all.

A search in a graph is short, and leaves no cache of the processor as it was: what Python does around it costs more than
it does by itself. So this is one pass over few functions, on a view instead of a transaction. Whatever is not as it
mostly is, an argument or what is in the store, is left to the general search, which answers or refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from toondb.engine.document_log import read_state
from toondb.engine.environment import Environment, Space
from toondb.engine.view import View
from toondb.vector.metrics import DEFAULT_EF_SEARCH
from toondb_protocol.errors import CorruptionError, ToonDBError
from toondb_protocol.record import HEADER_SIZE, decode_lsn

from .catalog import collection_named
from .exact import FLOAT32, Query
from .given import MAX_EF, MAX_K
from .search import rows_of
from .vector_cache import Known, VectorCache
from .vector_caches import VectorCaches

__all__ = ["PlainSearches"]

_NEEDED = {"namespace", "collection", "vector", "k"}
_USUAL = _NEEDED | {"ef_search"}
_ALLOWED = _USUAL | {"min_score", "include_vectors", "include_content"}
_FLOAT_SIZE = 4

_SHORT_K = 128
_SHORT_BYTES = 512 * 1024
"""A short search has so many bytes of vectors as candidates: about a millisecond of work."""


class _Asked(NamedTuple):
    """What a plain search asks."""

    namespace: str
    collection: str
    vector: bytes
    k: int
    ef_search: int | None
    min_score: float | None = None
    include_vectors: bool = False
    include_content: bool = True

    @property
    def is_short(self) -> bool:
        """Whether it looks at few numbers."""
        candidates = max(self.k, DEFAULT_EF_SEARCH if self.ef_search is None else self.ef_search)
        return self.k <= _SHORT_K and candidates * len(self.vector) <= _SHORT_BYTES


class PlainSearches:
    """Plain searches of a store.

    Args:
        environment: The open environment.
        caches: Where vectors are found.
    """

    def __init__(self, environment: Environment, caches: VectorCaches) -> None:
        self._environment = environment
        self._caches = caches

    def search(self, arguments: Mapping[str, Any]) -> list[list[Any]] | None:
        """Answer a search outside transactions; None = it is not plain.

        Args:
            arguments: Of the operation ``search``, as they came.

        Raises:
            ToonDBError: As the general search.
        """
        asked = _asked(arguments)
        if asked is None:
            return None
        with View(self._environment) as view:
            cache = self._cache(view, asked)
            return None if cache is None else _search(view, cache, asked)

    def search_at_once(self, arguments: Mapping[str, Any]) -> list[list[Any]] | None:
        """:meth:`search` for who must not wait, if it is short; None = it is not, or would have to wait."""
        asked = _asked(arguments)
        if asked is None or not asked.is_short:
            return None
        with View(self._environment) as view:
            cache = self._cache(view, asked)
            held = None if cache is None else cache.try_reading()
            if cache is None or held is None:
                return None
            try:
                return _search(view, cache, asked)
            finally:
                for lock in held:
                    lock.release()

    def _cache(self, view: View, asked: _Asked) -> VectorCache | None:
        """The cache of the collection that is asked, if there is one."""
        try:
            collection = collection_named(view, asked.namespace, asked.collection)
        except (ToonDBError, UnicodeError):  # also for names that nothing can have
            return None
        return self._caches.known(collection.id)


def _asked(arguments: Mapping[str, Any]) -> _Asked | None:
    """What is asked, when it is a search by vector alone and everything of the right kind."""
    names = arguments.keys() if type(arguments) is dict else set()
    if not _NEEDED <= names <= _ALLOWED:
        return None
    asked = _Asked(
        arguments["namespace"], arguments["collection"], arguments["vector"], arguments["k"], arguments.get("ef_search")
    )
    k, ef = asked.k, asked.ef_search
    if not type(asked.namespace) is type(asked.collection) is str or type(asked.vector) is not bytes:
        return None
    if type(k) is not int or not 1 <= k <= MAX_K:
        return None
    if ef is not None and (type(ef) is not int or not 1 <= ef <= MAX_EF):
        return None
    return asked if names <= _USUAL else _with_options(asked, arguments)


def _with_options(asked: _Asked, arguments: Mapping[str, Any]) -> _Asked | None:
    least = arguments.get("min_score")
    vectors, content = arguments.get("include_vectors", False), arguments.get("include_content", True)
    if not (least is None or (type(least) is float and math.isfinite(least))):
        return None
    if type(vectors) is not bool or type(content) is not bool:
        return None
    return asked._replace(min_score=least, include_vectors=vectors, include_content=content)


def _search(view: View, cache: VectorCache, asked: _Asked) -> list[list[Any]] | None:
    vector = asked.vector
    if len(vector) != _FLOAT_SIZE * cache.hnsw.dimension:
        return None
    query = Query(np.frombuffer(vector, FLOAT32), cache.hnsw.metric)
    with cache.reading():
        if not _is_near(cache, view):
            return None
        allowed, _ = cache.allowed(None, None)
        found = cache.nearest(query.prepared, asked.k, asked.ef_search, allowed)
    records = _records(view, cache.collection.prefix, found)
    hits = None if records is None else query.ranked([known.id for known in found], records, asked.k, HEADER_SIZE)
    if hits is None:
        return None
    try:
        return rows_of(hits, query, asked, HEADER_SIZE)
    except CorruptionError:
        return None


def _records(view: View, prefix: bytes, found: list[Known]) -> list[bytes] | None:
    """The records of documents; None = the store has another one in the place of one of them."""
    records: list[bytes] = []
    for known, raw in zip(
        found, view.records_of(Space.DOCUMENTS, [prefix + known.id.encode() for known in found]), strict=True
    ):
        if raw is None or decode_lsn(raw) != known.lsn:
            return None
        records.append(raw)
    return records


def _is_near(cache: VectorCache, view: View) -> bool:
    """Whether a cache has just what a view sees of its collection."""
    if cache.lsn == view.lsn:
        return cache.upto == cache.lsn
    if cache.lsn > view.lsn or cache.upto != cache.lsn:
        return False
    try:
        return read_state(view.environment, view.txn, cache.collection.id).changed <= cache.lsn
    except CorruptionError:
        return False
