"""A write batch: what one LMDB transaction of the writer writes, with everything that belongs to it.

Records, the index of those that expire, and the change log are written together here and nowhere else.

The index of expiring records is the sub-database ``expiry``: key = milliseconds since 1970 UTC (u64, big-endian)
and 16 bytes of BLAKE2b of the record's key (a key of LMDB has 511 bytes at the most); value = the record's key. It
has an entry for each record that expires and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, cast

from toondb_protocol.record import Expiring, decode_expiry, encode_record, encode_records, now_ms

from . import change_log, document_log
from .environment import Environment, Space

__all__ = ["RECLAIMED_AT_ONCE", "Reclaim", "WriteBatch", "expiry_key"]

RECLAIMED_AT_ONCE = 1000
_PLAIN: Final[set[type]] = {bytes}


def expiry_key(expires_ms: int, key: bytes) -> bytes:
    """The key in the index of a record that expires."""
    return expires_ms.to_bytes(8, "big") + blake2b(key, digest_size=16).digest()


class WriteBatch:
    """Writes of one LMDB transaction.

    Args:
        environment: The open environment.
        txn: Its LMDB write transaction.

    Attributes:
        txn: The LMDB transaction.
        written: Bytes of keys and values written so far.
    """

    __slots__ = (
        "_by_reference",
        "_changes",
        "_delete",
        "_dense",
        "_documents",
        "_environment",
        "_expiring",
        "_kv",
        "_lsn",
        "_put",
        "txn",
        "written",
    )

    def __init__(self, environment: Environment, txn: Any) -> None:
        self._environment = environment
        self.txn = txn
        self._put, self._delete = txn.put, txn.delete
        self._kv = environment.kv
        self._expiring = environment.has_expiring(txn)
        self._lsn = 0
        self._changes: list[tuple[bytes, bytes | int]] = []
        self._by_reference: list[bytes] = []
        self._dense = False
        self._documents = document_log.Changes()
        self.written = 0

    def get(self, key: bytes, space: Space = Space.KV) -> bytes | None:
        """The raw record of a key as of now, also when it has expired."""
        raw: bytes | None = self.txn.get(key, db=self._environment.spaces[space])
        return raw

    def database(self, space: Space) -> Any:
        """The handle of a space, for scans of ``txn``."""
        return self._environment.spaces[space]

    def put(self, key: bytes, value: bytes, lsn: int) -> None:
        """Write a key's value as part of the commit ``lsn``."""
        if lsn != self._lsn:
            self._begin(lsn)
        if self._expiring:
            self._forget_expiry(key)
        self._put(key, encode_record(key, value, lsn), db=self._kv)
        if type(value) is Expiring:
            self._put(expiry_key(value.expires_ms, key), key, db=self._environment.expiry)
            # Before the commit: whoever sees it must look for what has expired.
            self._expiring = self._environment.may_expire = True
        self._changes.append((key, value))
        self.written += len(key) + len(value)

    def put_all(self, keys: list[bytes], values: list[bytes | None], lsn: int) -> bool:
        """Write many keys, in key order, as part of the commit ``lsn``; False when they must be written one by one.

        The same as :meth:`put` for each, without any Python code for each.
        """
        if self._expiring or set(map(type, values)) != _PLAIN:
            return False
        if lsn != self._lsn:
            self._begin(lsn)
        whole = cast(list[bytes], values)
        cursor = self.txn.cursor(db=self._kv)
        # Keys that follow all others need no search: LMDB only compares each with the one before.
        at_end = not cursor.last() or cursor.key() < keys[0]
        cursor.putmulti(zip(keys, encode_records(keys, whole, lsn), strict=True), append=at_end)
        size, copied = 0, 0
        for value in whole:
            size += len(value)
            if size > change_log.INLINE_COMMIT_BYTES:
                break
            copied += 1
        self._changes.extend(zip(keys[:copied], whole, strict=False))
        self._by_reference, self._dense = keys[copied:], at_end
        self.written += sum(map(len, keys)) + sum(map(len, whole))
        return True

    def delete(self, key: bytes, lsn: int, kind: int = change_log.DELETED) -> bool:
        """Delete a key as part of the commit ``lsn``; whether it was there. One that is absent leaves no trace."""
        if self._expiring:
            self._forget_expiry(key)
        if not self._delete(key, db=self._kv):
            return False
        if lsn != self._lsn:
            self._begin(lsn)
        self._changes.append((key, kind))
        self.written += len(key)
        return True

    def put_record(self, space: Space, key: bytes, value: bytes | None, lsn: int) -> None:
        """Write or delete a record of another space than the keys and values of users."""
        database = self._environment.spaces[space]
        if space is Space.DOCUMENTS:
            if lsn != self._lsn:
                self._begin(lsn)
            self._put_document(database, key, value, lsn)
            return
        if value is None:
            self._delete(key, db=database)
        else:
            self._put(key, encode_record(key, value, lsn), db=database)
            self.written += len(value)
        self.written += len(key)

    def _put_document(self, database: Any, key: bytes, value: bytes | None, lsn: int) -> None:
        self.written += len(key)
        if value is None:
            if self._delete(key, db=database):
                self._documents.add(key, -1)
            return
        record = encode_record(key, value, lsn)
        new = self._put(key, record, db=database, overwrite=False)
        if not new:
            self._put(key, record, db=database)
        self._documents.add(key, int(new))
        self.written += len(value)

    def forget_log(self, prefix: bytes, limit: int) -> bool:
        """Delete some of the document log of a collection that has no documents any more; whether that was all."""
        if self._documents:
            return False  # these are logged with the commit
        cursor = self.txn.cursor(db=self._environment.document_log)
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            if not limit:
                return False
            limit -= 1
            found = cursor.delete() and bool(cursor.key())
        return True

    def finish(self) -> None:
        """Write what belongs to the commits; called once before the LMDB transaction is committed."""
        self._begin(0)
        change_log.trim(self._environment, self.txn)

    def _begin(self, lsn: int) -> None:
        if self._changes or self._by_reference:
            change_log.write_commit(
                self._environment, self.txn, self._lsn, self._changes, self._by_reference, dense=self._dense
            )
            self._changes, self._by_reference = [], []
        if self._documents:
            self._documents.write(self._environment, self.txn, self._lsn)
        self._lsn = lsn

    def _forget_expiry(self, key: bytes) -> None:
        raw = self.txn.get(key, db=self._kv)
        expires = None if raw is None else decode_expiry(raw)
        if expires is not None:
            self._delete(expiry_key(expires, key), db=self._environment.expiry)

    def reclaim(self, key: bytes, expires_ms: int, lsn: int) -> bool:
        """Delete a record that the index says to have expired, as part of the commit ``lsn``; whether it was there."""
        raw = self.txn.get(key, db=self._kv)
        if raw is not None and decode_expiry(raw) == expires_ms:
            return self.delete(key, lsn, change_log.EXPIRED)
        # The index must never say so. If it does, the record counts: what a user stored is not deleted for it.
        self._delete(expiry_key(expires_ms, key), db=self._environment.expiry)
        return False

    def expired_keys(self, limit: int) -> Iterator[tuple[bytes, int]]:
        """Keys of records that have expired, the first to expire first, with that time."""
        cursor = self.txn.cursor(db=self._environment.expiry)
        now = now_ms()
        found = cursor.first()
        while found and limit:
            expires = int.from_bytes(cursor.key()[:8], "big")
            if expires > now:
                return
            yield cursor.value(), expires
            limit -= 1
            found = cursor.next()


class Reclaim:
    """A unit for the writer: deletes records that have expired.

    Args:
        limit: How many at the most.

    Attributes:
        deleted: How many it looked at; at its limit there may be more.
        written_keys: The keys that it deleted.
    """

    def __init__(self, limit: int = RECLAIMED_AT_ONCE) -> None:
        self._limit = limit
        self.deleted = 0
        self.written_keys: list[bytes] = []

    @property
    def unfinished(self) -> bool:
        """Whether it stopped at its limit."""
        return self.deleted >= self._limit

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        """Delete some of them, as one commit."""
        expired = list(batch.expired_keys(self._limit))
        self.deleted = len(expired)
        self.written_keys = [key for key, expires in expired if batch.reclaim(key, expires, lsn + 1)]
        return lsn + bool(expired)
