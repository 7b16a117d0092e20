"""What there is of namespaces and collections: records of the sub-database ``catalog``.

====================================== ==============================================================
``namespace/<name>``                   msgpack map: ``id``, ``display_name``, ``labels``
``collection/<namespace id>/<name>``   msgpack map: ``id`` and the arguments of ``collection_create``
``gone/<id>``                          a namespace or collection that was deleted, and still has records
``last_id``                            the last id that was given, msgpack
====================================== ==============================================================

Ids are numbers of 32 bits, written with 8 hexadecimal digits; each is used once in the life of a store. So whatever
the records of a deleted collection are, no new one ever meets them.

Whatever depends on a namespace or collection makes the commit depend on its record (``Transaction.require``): a
document is never committed into a collection that was deleted meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import msgpack

from toondb.engine.environment import Space
from toondb.engine.transaction import Transaction
from toondb_protocol.collections import config_of, creation_arguments
from toondb_protocol.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    CorruptionError,
    DatabaseError,
    NamespaceExistsError,
    NamespaceNotFoundError,
)
from toondb_protocol.keys import prefix_end
from toondb_protocol.search import CollectionConfig, NamespaceConfig

__all__ = [
    "GONE",
    "CollectionEntry",
    "NamespaceEntry",
    "all_collections",
    "collection_named",
    "collection_names",
    "create_collection",
    "create_namespace",
    "delete_collection",
    "delete_namespace",
    "gone_ids",
    "gone_key",
    "namespace_named",
    "namespace_names",
    "set_dimension",
]

_NAMESPACE = b"namespace/"
_COLLECTION = b"collection/"
_LAST_ID = b"last_id"
_MOST_IDS = (1 << 32) - 1
_ROWS = 1024

GONE = b"gone/"


class NamespaceEntry(NamedTuple):
    """A namespace of the catalog.

    Attributes:
        id: Its number.
        key: The key of its record.
        config: What it was created with.
    """

    id: int
    key: bytes
    config: NamespaceConfig

    @property
    def prefix(self) -> bytes:
        """What its keys begin with."""
        return self.id.to_bytes(4, "big")


class CollectionEntry(NamedTuple):
    """A collection of the catalog.

    Attributes:
        id: Its number.
        key: The key of its record.
        namespace: The name of its namespace.
        config: What it was created with, and its dimension as it is now.
    """

    id: int
    key: bytes
    namespace: str
    config: CollectionConfig

    @property
    def prefix(self) -> bytes:
        """What the keys of its documents begin with."""
        return self.id.to_bytes(4, "big")


def gone_key(id: int) -> bytes:
    """The key of the mark of something deleted."""
    return GONE + b"%08x" % id


class Reader(Protocol):
    """What records are read from: a transaction, or a view."""

    def get(self, key: bytes, space: Space, /) -> bytes | None:
        """The value of a key, or None."""


def _get(reader: Reader, key: bytes) -> bytes | None:
    return reader.get(key, Space.CATALOG)


def _put(transaction: Transaction, key: bytes, fields: Any) -> None:
    transaction.put(key, msgpack.packb(fields), Space.CATALOG)


def _names(transaction: Transaction, prefix: bytes) -> Iterator[tuple[str, bytes]]:
    """The names behind a prefix, in order, with their records."""
    scan = transaction.scan(prefix, prefix_end(prefix), space=Space.CATALOG)
    try:
        while not scan.exhausted:
            for key, value in scan.pairs(_ROWS, 1 << 20):
                yield key[len(prefix) :].decode(), value
    finally:
        scan.close()


def _next_id(transaction: Transaction) -> int:
    raw = _get(transaction, _LAST_ID)
    id: int = (0 if raw is None else msgpack.unpackb(raw)) + 1
    if id > _MOST_IDS:
        raise DatabaseError("the store has given all numbers that a collection can have.")
    _put(transaction, _LAST_ID, id)
    return id


# Namespaces


def create_namespace(transaction: Transaction, config: NamespaceConfig) -> NamespaceEntry:
    """Create a namespace."""
    key = _NAMESPACE + config.name.encode()
    if _get(transaction, key) is not None:
        raise NamespaceExistsError(f"there is a namespace {config.name!r} already.")
    id = _next_id(transaction)
    _put(transaction, key, {"id": id, "display_name": config.display_name, "labels": dict(config.labels)})
    return NamespaceEntry(id, key, config)


def namespace_named(reader: Reader, name: str) -> NamespaceEntry:
    """A namespace that exists."""
    key = _NAMESPACE + name.encode()
    raw = _get(reader, key)
    if raw is None:
        raise NamespaceNotFoundError(f"there is no namespace {name!r}.")
    return _namespace(name, key, raw)


@lru_cache(maxsize=1024)
def _namespace(name: str, key: bytes, raw: bytes) -> NamespaceEntry:
    try:
        found = msgpack.unpackb(raw)
        return NamespaceEntry(int(found["id"]), key, NamespaceConfig(name, found["display_name"], found["labels"]))
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        raise CorruptionError(f"the record of the namespace {name!r} cannot be read.") from None


def namespace_names(transaction: Transaction) -> list[str]:
    """The names of all namespaces, in order."""
    return [name for name, _ in _names(transaction, _NAMESPACE)]


def delete_namespace(transaction: Transaction, name: str) -> list[int] | None:
    """Delete a namespace with its collections; answers their numbers, None when there was none of that name."""
    key = _NAMESPACE + name.encode()
    raw = _get(transaction, key)
    if raw is None:
        return None
    namespace = _namespace(name, key, raw)
    collections = _collections_of(namespace)
    # A collection that somebody creates in it meanwhile must not be left behind.
    transaction.require_range(collections, prefix_end(collections), Space.CATALOG)
    gone = [namespace.id]
    for each, record in list(_names(transaction, collections)):
        collection = _collection(name, each, collections + each.encode(), record)
        transaction.delete(collection.key, Space.CATALOG)
        gone.append(collection.id)
    transaction.delete(key, Space.CATALOG)
    for id in gone:
        transaction.put(gone_key(id), b"", Space.CATALOG)
    return gone


# Collections


def _collections_of(namespace: NamespaceEntry) -> bytes:
    return _COLLECTION + b"%08x/" % namespace.id


def create_collection(transaction: Transaction, namespace: str, config: CollectionConfig) -> CollectionEntry:
    """Create a collection."""
    home = namespace_named(transaction, namespace)
    key = _collections_of(home) + config.name.encode()
    if _get(transaction, key) is not None:
        raise CollectionExistsError(f"there is a collection {config.name!r} in the namespace {namespace!r} already.")
    transaction.require(home.key, Space.CATALOG)
    collection = CollectionEntry(_next_id(transaction), key, namespace, config)
    _write(transaction, collection)
    return collection


def _write(transaction: Transaction, collection: CollectionEntry) -> None:
    fields = creation_arguments(collection.namespace, collection.config)
    del fields["namespace"]
    _put(transaction, collection.key, {"id": collection.id, **fields})


def collection_named(reader: Reader, namespace: str, name: str) -> CollectionEntry:
    """A collection that exists."""
    key = _collections_of(namespace_named(reader, namespace)) + name.encode()
    raw = _get(reader, key)
    if raw is None:
        raise CollectionNotFoundError(f"there is no collection {name!r} in the namespace {namespace!r}.")
    return _collection(namespace, name, key, raw)


@lru_cache(maxsize=1024)
def _collection(namespace: str, name: str, key: bytes, raw: bytes) -> CollectionEntry:
    try:
        found = msgpack.unpackb(raw)
        return CollectionEntry(int(found["id"]), key, namespace, config_of(found))
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        raise CorruptionError(f"the record of the collection {name!r} cannot be read.") from None


def collection_names(transaction: Transaction, namespace: str) -> list[str]:
    """The names of the collections of a namespace, in order."""
    return [name for name, _ in _names(transaction, _collections_of(namespace_named(transaction, namespace)))]


def all_collections(transaction: Transaction) -> set[int]:
    """The numbers of all collections."""
    return {int(msgpack.unpackb(record)["id"]) for _, record in _names(transaction, _COLLECTION)}


def delete_collection(transaction: Transaction, namespace: str, name: str) -> int | None:
    """Delete a collection; answers its number, None when there was none of that name."""
    key = _collections_of(namespace_named(transaction, namespace)) + name.encode()
    raw = _get(transaction, key)
    if raw is None:
        return None
    collection = _collection(namespace, name, key, raw)
    transaction.delete(key, Space.CATALOG)
    transaction.put(gone_key(collection.id), b"", Space.CATALOG)
    return collection.id


def set_dimension(transaction: Transaction, collection: CollectionEntry, dimension: int) -> CollectionEntry:
    """Give a collection the dimension of its first vector."""
    fields = creation_arguments(collection.namespace, collection.config)
    config = config_of({**fields, "dimension": dimension})
    changed = collection._replace(config=config)
    _write(transaction, changed)
    return changed


# What is left of what was deleted


def gone_ids(transaction: Transaction) -> list[int]:
    """The numbers of what was deleted and still has records."""
    return [int(name, 16) for name, _ in _names(transaction, GONE)]
