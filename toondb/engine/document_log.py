"""The document log: which documents of a collection changed with which commit.

An index of a collection is a cache that lives outside of the store; by this log it catches up with the store without
reading every document. It is written in the LMDB transaction of the commit that it describes, into the sub-database
``document_log``. Integers are big-endian in keys and little-endian in values::

    entry  key    collection u32, LSN u64, part u32
           value  CRC-32 (zlib) u32 of the key and all that follows, token (8 bytes), number of ids u16,
                  then for each: length u16, id
    state  key    collection u32
           value  CRC-32 u32 of the key and all that follows, documents u64, ids in the log u64, the LSN after which
                  the log is complete u64, the LSN of the last change u64, its token (8 bytes)

The token is random for each commit. An index that was saved knows the token of the last change that it has seen: in a
store that was restored and went on differently, the same LSN has another one.

The log is trimmed by the commits that write it, to about twice as many ids as there are documents. An index that
needs what is gone is made anew from the documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import takewhile
from struct import Struct
from typing import Any, NamedTuple
from zlib import crc32

from toondb_protocol.errors import CorruptionError

from .environment import Environment, Space
from .snapshot import records

__all__ = [
    "COLLECTION_SIZE",
    "Changes",
    "LogState",
    "changed_ids",
    "documents_of",
    "has_log",
    "is_intact",
    "lsn_of",
    "read_state",
    "token_of",
]

COLLECTION_SIZE = 4
"""The bytes of a collection's number, with which the keys of its documents and of its log begin."""

TOKEN_SIZE = 8
_KEY = Struct(">IQI")
_STATE = Struct(f"<QQQQ{TOKEN_SIZE}s")
_CHECKSUM_SIZE = 4
_IDS_AT = _CHECKSUM_SIZE + TOKEN_SIZE + 2
_PART_BYTES = 1500
"""Of one entry: with a few more it would take pages of its own."""
_KEPT_PER_DOCUMENT = 2
_KEPT_AT_LEAST = 4096
_TRIMMED_AT_LEAST = 256


class LogState(NamedTuple):
    """What is known of a collection's documents.

    Attributes:
        documents: How many there are.
        logged: Ids in the log.
        complete_from: The LSN after which the log is complete.
        changed: The LSN of the last change, 0 = there was none.
        token: The token of the last change.
    """

    documents: int = 0
    logged: int = 0
    complete_from: int = 0
    changed: int = 0
    token: bytes = bytes(TOKEN_SIZE)


class Changes:
    """The documents that a commit has changed so far."""

    __slots__ = ("_by_collection",)

    def __init__(self) -> None:
        self._by_collection: dict[bytes, tuple[list[bytes], list[int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_collection)

    def add(self, key: bytes, more: int) -> None:
        """Note a change of a document; ``more`` is by how many documents the collection grew."""
        collection = key[:COLLECTION_SIZE]
        found = self._by_collection.get(collection)
        if found is None:
            found = self._by_collection[collection] = ([], [])
        found[0].append(key[COLLECTION_SIZE:])
        found[1].append(more)

    def write(self, environment: Environment, txn: Any, lsn: int) -> None:
        """Log them as part of the commit ``lsn``."""
        token = os.urandom(TOKEN_SIZE)
        for collection, (ids, more) in self._by_collection.items():
            _write(environment, txn, collection, lsn, token, ids, sum(more))
        self._by_collection = {}


def _write(
    environment: Environment, txn: Any, collection: bytes, lsn: int, token: bytes, ids: list[bytes], more: int
) -> None:
    database = environment.document_log
    number = int.from_bytes(collection, "big")
    try:
        before = read_state(environment, txn, number)
    except CorruptionError:
        # A commit does not fail for it. Whoever needs the log reads the documents instead.
        before = LogState(_count(environment, txn, collection) - more, 0, lsn)
    for part, some in enumerate(_parts(ids)):
        body = token + len(some).to_bytes(2, "little")
        body += b"".join([len(id).to_bytes(2, "little") + id for id in some])
        _put(txn, database, _KEY.pack(number, lsn, part), body)
    state = LogState(max(0, before.documents + more), before.logged + len(ids), before.complete_from, lsn, token)
    if state.logged > max(_KEPT_AT_LEAST, _KEPT_PER_DOCUMENT * state.documents):
        state = _trim(txn, database, number, state, max(_TRIMMED_AT_LEAST, 2 * len(ids)))
    _put(txn, database, collection, _STATE.pack(*state))


def _count(environment: Environment, txn: Any, collection: bytes) -> int:
    keys = records(txn, environment.spaces[Space.DOCUMENTS], collection, None, values=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].startswith(collection), keys))


def _parts(ids: list[bytes]) -> Iterator[list[bytes]]:
    if len(ids) == 1:
        yield ids
        return
    part: list[bytes] = []
    size = 0
    for id in ids:
        if size + len(id) > _PART_BYTES and part:
            yield part
            part, size = [], 0
        part.append(id)
        size += 2 + len(id)
    yield part


def _put(txn: Any, database: Any, key: bytes, body: bytes) -> None:
    txn.put(key, crc32(body, crc32(key)).to_bytes(_CHECKSUM_SIZE, "little") + body, db=database)


def _trim(txn: Any, database: Any, number: int, state: LogState, most: int) -> LogState:
    """Delete the oldest entries, with about ``most`` ids, but none of the newest commit."""
    cursor = txn.cursor(db=database)
    logged, complete_from = state.logged, state.complete_from
    end = _KEY.pack(number, state.changed, 0)
    found = cursor.set_range(_KEY.pack(number, 0, 0))
    while found and most > 0 and cursor.key() < end:
        size = int.from_bytes(cursor.value()[_IDS_AT - 2 : _IDS_AT], "little")
        logged -= size
        most -= max(1, size)
        complete_from = max(complete_from, int.from_bytes(cursor.key()[4:12], "big"))
        found = cursor.delete() and bool(cursor.key())
    return state._replace(logged=max(0, logged), complete_from=complete_from)


# Reading, in an LMDB transaction of any kind


def is_intact(key: bytes, value: bytes) -> bool:
    """Whether an entry or a state is what was written."""
    if len(key) not in (COLLECTION_SIZE, _KEY.size) or len(value) <= _CHECKSUM_SIZE:
        return False
    if crc32(value[_CHECKSUM_SIZE:], crc32(key)) != int.from_bytes(value[:_CHECKSUM_SIZE], "little"):
        return False
    return len(key) == _KEY.size or len(value) == _CHECKSUM_SIZE + _STATE.size


def lsn_of(key: bytes, value: bytes) -> int:
    """The LSN of an entry, or that of the last change in a state; for ``check``."""
    if len(key) == _KEY.size:
        return int.from_bytes(key[4:12], "big")
    return LogState(*_STATE.unpack_from(value, _CHECKSUM_SIZE)).changed


def documents_of(key: bytes, value: bytes) -> int:
    """The number of documents that a state tells of, 0 for an entry; for ``check``."""
    return 0 if len(key) == _KEY.size else LogState(*_STATE.unpack_from(value, _CHECKSUM_SIZE)).documents


def read_state(environment: Environment, txn: Any, collection: int) -> LogState:
    """The state of a collection.

    Raises:
        CorruptionError: It cannot be read.
    """
    key = collection.to_bytes(COLLECTION_SIZE, "big")
    raw = txn.get(key, db=environment.document_log)
    if raw is None:
        return LogState()
    if not is_intact(key, raw):
        raise CorruptionError(f"what the document log says of the collection {collection} is damaged.")
    return LogState(*_STATE.unpack_from(raw, _CHECKSUM_SIZE))


def has_log(environment: Environment, txn: Any, collection: int) -> bool:
    """Whether anything is known of a collection: it had a document once, and was not reclaimed."""
    return txn.get(collection.to_bytes(COLLECTION_SIZE, "big"), db=environment.document_log) is not None


def token_of(environment: Environment, txn: Any, collection: int, lsn: int) -> bytes | None:
    """The token of the commit ``lsn``, when the log has that commit and it changed the collection."""
    key = _KEY.pack(collection, lsn, 0)
    raw = txn.get(key, db=environment.document_log)
    if raw is None or not is_intact(key, raw):
        return None
    token: bytes = raw[_CHECKSUM_SIZE : _CHECKSUM_SIZE + TOKEN_SIZE]
    return token


def changed_ids(
    environment: Environment, txn: Any, collection: int, since: int, upto: int, most: int | None = None
) -> dict[str, None] | None:
    """The ids of the documents that changed after the commit ``since``, up to the commit ``upto``, in order.

    Args:
        environment: The open environment.
        txn: An LMDB transaction that sees ``upto``.
        collection: The number of the collection.
        since, upto: LSNs.
        most: Give up when there are more.

    Returns:
        The ids, each once; None when the log no longer has them all, is damaged, or there are too many.
    """
    found: dict[str, None] = {}
    if since >= upto:
        return found
    try:
        if since < read_state(environment, txn, collection).complete_from:
            return None
    except CorruptionError:
        return None
    cursor = txn.cursor(db=environment.document_log)
    more = cursor.set_range(_KEY.pack(collection, since + 1, 0))
    end = _KEY.pack(collection, upto + 1, 0)
    while more:
        key, value = cursor.item()
        if key >= end:
            break
        if not is_intact(key, value):
            return None
        at, size = _IDS_AT, len(value)
        while at < size:
            length = int.from_bytes(value[at : at + 2], "little")
            found[value[at + 2 : at + 2 + length].decode()] = None
            at += 2 + length
        if most is not None and len(found) > most:
            return None
        more = cursor.next()
    return found
