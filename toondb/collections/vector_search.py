"""Search by vector in a view of the store: the cache finds candidates, the view decides.

A transaction sees the store as of its snapshot, with its own writes; the cache reflects another commit, older or
newer. Documents that changed between the two, and those that the transaction wrote, are compared one by one; all
others are in the cache as they are in the view.
"""

from __future__ import annotations

import heapq

from toondb.engine import document_log
from toondb.engine.environment import Space
from toondb.engine.transaction import Transaction
from toondb_protocol.keys import prefix_end

from .catalog import CollectionEntry
from .documents import metadata_of, own_ids, read_all, read_many, scan
from .exact import Hit, Query, nearest_of
from .given import Filter
from .vector_cache import VectorCache

__all__ = ["search_exactly", "search_vectors"]

MOST_DIFFERENT = 4096
"""When more documents differ between cache and view, all of them are compared."""


def search_exactly(
    view: Transaction, collection: CollectionEntry, query: Query, name: str | None, filter: Filter | None, k: int
) -> list[Hit]:
    """The nearest documents, by comparing with each that the view has."""
    return nearest_of(scan(view, collection), query, name, filter, k)


def search_vectors(
    view: Transaction,
    cache: VectorCache,
    collection: CollectionEntry,
    query: Query,
    name: str | None,
    filter: Filter | None,
    k: int,
    ef: int | None,
) -> list[Hit] | None:
    """The nearest documents: ``k`` of them, or all that there are.

    Returns:
        Nearest first; None when the cache cannot tell, and must be compared with the view.
    """
    with cache.reading():
        different = _different(view, cache, collection)
        if different is None:
            return None
        allowed, can_tell = cache.allowed(name, filter)
        if not can_tell:
            return None
        # Each of those takes the place of a result that is dropped below.
        surplus = sum(known.vectors for id in different if (known := cache.known(id)) is not None)
        found = cache.nearest(query.prepared, k + surplus, ef, allowed)
    if different:
        found = [known for known in found if known.id not in different]
    ids: list[str] = []
    values: list[bytes] = []
    for known, stored in zip(found, read_all(view, collection, [known.id for known in found]), strict=True):
        if stored is None or stored[0] != known.lsn or (filter and not filter.matches(metadata_of(stored[1]))):
            return None  # it disagrees with the store, which is right
        ids.append(known.id)
        values.append(stored[1])
    prefix = collection.prefix
    view.note_range(prefix, prefix_end(prefix), Space.DOCUMENTS)
    hits = query.ranked(ids, values, k) if name is None else None
    if hits is None:
        hits = nearest_of(zip(ids, values, strict=True), query, name, None, k)
    if not different:
        return hits
    others = ((id, value) for id, _, value in read_many(view, collection, list(different)))
    return heapq.nsmallest(k, [*hits, *nearest_of(others, query, name, filter, k)])


def _different(view: Transaction, cache: VectorCache, collection: CollectionEntry) -> dict[str, None] | None:
    """The ids of documents that may be other in the view than in the cache; None when they are too many."""
    snapshot = view.snapshot
    low, high = min(snapshot.lsn, cache.lsn), max(snapshot.lsn, cache.upto)
    found: dict[str, None] | None = {}
    if low < high:
        environment = snapshot.environment
        if high <= snapshot.lsn:
            with snapshot.reading() as txn:
                found = document_log.changed_ids(environment, txn, collection.id, low, high, MOST_DIFFERENT)
        else:
            newest = environment.begin_view()
            try:
                if not document_log.has_log(environment, newest, collection.id):
                    return None  # it was deleted since, and its log was reclaimed
                found = document_log.changed_ids(environment, newest, collection.id, low, high, MOST_DIFFERENT)
            finally:
                environment.end_view(newest)
    if found is not None:
        found.update(dict.fromkeys(own_ids(view, collection)))
    return found
