"""Documents: how one is stored, and how a transaction reads and writes them.

The record of a document is in the sub-database ``documents`` under the number of its collection (u32, big-endian) and
its id. Its value, integers and numbers little-endian::

    kind u8             0 no vector, 1 one vector, 2 several with names
    vectors u16         how many
    dimension u32       numbers in each
    vectors             float32, one after the other
    the rest            msgpack: [metadata, content], of kind 2 [metadata, content, names]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from struct import error as _struct_error
from typing import Any, NamedTuple

import msgpack

from toondb.engine.document_log import read_state
from toondb.engine.environment import Space
from toondb.engine.options import Isolation
from toondb.engine.transaction import Transaction
from toondb.engine.write_set import ABSENT
from toondb_protocol.errors import CorruptionError, ValidationError
from toondb_protocol.keys import prefix_end
from toondb_protocol.record import HEADER_SIZE, decode_lsn

from .catalog import CollectionEntry

__all__ = [
    "DAMAGED",
    "OWN",
    "Contents",
    "answer_of",
    "beginning_of_one",
    "count",
    "damaged",
    "decode",
    "encode",
    "metadata_of",
    "own_ids",
    "read",
    "read_all",
    "read_many",
    "scan",
    "vectors_of",
]

OWN = -1
"""In the place of the LSN of a record that the transaction itself has written."""

DAMAGED = (ValueError, IndexError, TypeError, ArithmeticError, _struct_error, msgpack.UnpackException)
"""What reading a value raises that is no document."""

NONE, ONE, NAMED = range(3)
_HEAD = Struct("<BHI")
_FLOAT_SIZE = 4
_SERIALIZABLE = Isolation.SERIALIZABLE
_SCAN_ROWS = 512
_SCAN_BYTES = 1 << 20


class Contents(NamedTuple):
    """A decoded document.

    Attributes:
        dimension: Numbers in each vector; 0 when it has none.
        vectors: Its vectors, one after the other.
        names: Their names; None for a document of one vector or of none.
        metadata: Its metadata.
        content: Its text.
    """

    dimension: int
    vectors: bytes
    names: list[str] | None
    metadata: dict[str, Any]
    content: str | None

    @property
    def vector(self) -> bytes | None:
        """Its one vector."""
        return self.vectors if self.names is None and self.dimension else None

    def named(self) -> Iterator[tuple[str | None, bytes]]:
        """Its vectors with their names; the one vector has the name None."""
        if not self.dimension:
            return
        if self.names is None:
            yield None, self.vectors
            return
        size = _FLOAT_SIZE * self.dimension
        for at, name in enumerate(self.names):
            yield name, self.vectors[at * size : (at + 1) * size]


def encode(
    dimension: int, vectors: bytes, names: list[str] | None, metadata: dict[str, Any], content: str | None
) -> bytes:
    """The value of a document.

    Raises:
        ValidationError: A text in it cannot be stored.
    """
    count = len(vectors) // (_FLOAT_SIZE * dimension) if dimension else 0
    kind = NAMED if names is not None else ONE if count else NONE
    try:
        rest = msgpack.packb([metadata, content] if names is None else [metadata, content, names])
    except UnicodeEncodeError:
        raise ValidationError("a text of the document is not valid Unicode.") from None
    value: bytes = _HEAD.pack(kind, count, dimension) + vectors + rest
    return value


def decode(value: bytes) -> Contents:
    """What a value holds.

    Raises:
        CorruptionError: It is no document.
    """
    try:
        kind, count, dimension = _HEAD.unpack_from(value)
        end = _HEAD.size + _FLOAT_SIZE * count * dimension
        rest = msgpack.unpackb(value[end:])
        metadata, content = rest[:2]
        names = rest[2] if kind == NAMED else None
    except DAMAGED:
        raise damaged(value) from None
    return Contents(dimension, value[_HEAD.size : end], names, metadata, content)


def vectors_of(value: bytes) -> tuple[int, list[tuple[str | None, bytes]]]:
    """The dimension and the vectors in a value with their names; the one vector has the name None.

    Raises:
        CorruptionError: It is no document.
    """
    try:
        kind, count, dimension = _HEAD.unpack_from(value)
    except _struct_error:
        raise damaged(value) from None
    if kind == NONE:
        return 0, []
    if kind == NAMED:
        return dimension, list(decode(value).named())
    vector = value[_HEAD.size : _HEAD.size + _FLOAT_SIZE * dimension]
    if count != 1 or len(vector) != _FLOAT_SIZE * dimension:
        raise damaged(value)
    return dimension, [(None, vector)]


def beginning_of_one(dimension: int) -> bytes:
    """How the values of all documents with one vector of this dimension begin; the vector follows."""
    return _HEAD.pack(ONE, 1, dimension)


def metadata_of(value: bytes) -> dict[str, Any]:
    """The metadata in a value.

    Raises:
        CorruptionError: It is no document.
    """
    try:
        _, count, dimension = _HEAD.unpack_from(value)
        metadata: dict[str, Any] = msgpack.unpackb(value[_HEAD.size + _FLOAT_SIZE * count * dimension :])[0]
    except DAMAGED:
        raise damaged(value) from None
    return metadata


def answer_of(value: bytes) -> tuple[dict[str, Any], str | None]:
    """The metadata and the text in a value.

    Raises:
        CorruptionError: It is no document.
    """
    try:
        _, count, dimension = _HEAD.unpack_from(value)
        rest = msgpack.unpackb(value[_HEAD.size + _FLOAT_SIZE * count * dimension :])
        return rest[0], rest[1]
    except DAMAGED:
        raise damaged(value) from None


def damaged(value: bytes) -> CorruptionError:
    """The error for a value that is no document."""
    return CorruptionError(f"a document of {len(value)} bytes cannot be read.")


# In a transaction


def _key(collection: CollectionEntry, id: str) -> bytes:
    return collection.prefix + id.encode()


def read(transaction: Transaction, collection: CollectionEntry, id: str) -> tuple[int, bytes] | None:
    """A document as a transaction sees it: the LSN of its record (:data:`OWN`) and its value."""
    key = _key(collection, id)
    written = transaction.written(key, Space.DOCUMENTS)
    if written is not ABSENT:
        return None if written is None else (OWN, written)  # type: ignore[return-value]
    raw = transaction.snapshot.record(Space.DOCUMENTS, key)
    transaction.note_read(key, Space.DOCUMENTS)
    return None if raw is None else (decode_lsn(raw), raw[HEADER_SIZE:])


def read_all(
    transaction: Transaction, collection: CollectionEntry, ids: Sequence[str]
) -> list[tuple[int, bytes] | None]:
    """What :func:`read` answers for each of several ids: faster than one by one."""
    if transaction.isolation is _SERIALIZABLE or len(transaction.writes[Space.DOCUMENTS]):
        return [read(transaction, collection, id) for id in ids]
    prefix = collection.prefix
    records = transaction.snapshot.records_of(Space.DOCUMENTS, [prefix + id.encode() for id in ids])
    return [None if raw is None else (decode_lsn(raw), raw[HEADER_SIZE:]) for raw in records]


def read_many(
    transaction: Transaction, collection: CollectionEntry, ids: Iterator[str] | list[str]
) -> Iterator[tuple[str, int, bytes]]:
    """The documents of these ids that there are, in that order."""
    transaction.check_active()
    for id in ids:
        found = read(transaction, collection, id)
        if found is not None:
            yield id, *found


def scan(
    transaction: Transaction, collection: CollectionEntry, after: str | None = None
) -> Iterator[tuple[str, bytes]]:
    """The documents as a transaction sees them, by id."""
    prefix = collection.prefix
    start = prefix if after is None else prefix + after.encode() + b"\0"
    opened = transaction.scan(start, prefix_end(prefix), space=Space.DOCUMENTS)
    try:
        while not opened.exhausted:
            for key, value in opened.pairs(_SCAN_ROWS, _SCAN_BYTES):
                yield key[len(prefix) :].decode(), value
    finally:
        opened.close()


def own_ids(transaction: Transaction, collection: CollectionEntry) -> list[str]:
    """The ids of documents that a transaction itself has written or deleted."""
    prefix = collection.prefix
    written = transaction.writes[Space.DOCUMENTS].range(prefix, prefix_end(prefix))
    return [key[len(prefix) :].decode() for key, _ in written]


def count(transaction: Transaction, collection: CollectionEntry) -> int:
    """How many documents there are, as a transaction sees it."""
    transaction.check_active()
    prefix = collection.prefix
    snapshot = transaction.snapshot
    with snapshot.reading() as view:
        number = read_state(snapshot.environment, view, collection.id).documents
    transaction.note_range(prefix, prefix_end(prefix), Space.DOCUMENTS)
    for key, value in transaction.writes[Space.DOCUMENTS].range(prefix, prefix_end(prefix)):
        there = snapshot.record(Space.DOCUMENTS, key) is not None
        number += (value is not None) - there
    return number
