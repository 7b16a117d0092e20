"""Snapshots: a consistent view of the store at one LSN, and scans over it."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice, repeat
from typing import Any

import lmdb

from toondb_protocol.errors import DatabaseClosedError, SnapshotExpiredError, ToonDBError
from toondb_protocol.record import EXPIRY_SIZE, HEADER_SIZE, META_LSN, decode_expiry, live_value, now_ms

from .environment import Environment, Space, storage_error

__all__ = ["Snapshot", "SnapshotScan", "begin_view", "read_lsn", "records", "records_of"]

_SMALL_BYTES = 32 << 20

_unpack_lsn = struct.Struct("<Q").unpack


def read_lsn(environment: Environment, txn: Any) -> int:
    """The LSN that an LMDB transaction sees."""
    raw = txn.get(META_LSN, db=environment.meta)
    lsn: int = _unpack_lsn(raw)[0] if raw else 0
    return lsn


def begin_view(environment: Environment) -> tuple[Any, int]:
    """An LMDB transaction on the newest commit, and the LSN of that; for ``Environment.end_view``.

    Raises:
        ToonDBError: There is none: the database is closed, or too many are open.
    """
    txn = environment.begin_view()
    try:
        return txn, read_lsn(environment, txn)
    except lmdb.Error as error:
        environment.end_view(txn)
        raise storage_error(error, "taking a snapshot") from None


def records_of(environment: Environment, txn: Any, space: Space, keys: list[bytes]) -> list[bytes | None]:
    """The raw records of several keys, None where there is none."""
    # One by one: LMDB's "get several" is no faster, and lets other threads run in between. When one of these closes
    # the environment, the process ends. A single get looks first whether it is open.
    get, database = txn.get, environment.spaces[space]
    try:
        return [get(key, None, database) for key in keys]
    except lmdb.Error as error:
        raise storage_error(error, "reading") from None


def records(
    txn: Any, database: Any, start: bytes, end: bytes | None, *, reverse: bool = False, values: bool = True
) -> Iterator[tuple[bytes, bytes]]:
    """The (key, raw record) pairs of the half-open range [start, end) in key order or reversed.

    The caller stops at the far bound: forward iteration does not look at ``end``, reverse iteration not at
    ``start`` (checking it here would cost a generator frame for every row). With ``values`` off every record
    is ``b""`` and no value is copied.
    """
    cursor = txn.cursor(db=database)
    if reverse:
        found = cursor.last() if end is None or not cursor.set_range(end) else cursor.prev()
        walk = cursor.iterprev
    else:
        found = cursor.set_range(start) if start else cursor.first()
        walk = cursor.iternext
    if not found:
        return iter(())
    if values:
        return iter(walk())
    return zip(walk(keys=True, values=False), repeat(b""))


def live_pairs(pairs: Iterator[tuple[bytes, bytes]], now: int) -> Iterator[tuple[bytes, bytes]]:
    """The pairs whose record has not expired at ``now``, each record in the form of one that never does."""
    for key, raw in pairs:
        expires = decode_expiry(raw)
        if expires is None:
            yield key, raw
        elif expires > now:
            yield key, raw[EXPIRY_SIZE:]


class Snapshot:
    """A read view. Usable from any thread, by one at a time (a lock sees to it).

    Args:
        environment: The open environment.

    Attributes:
        lsn: The last commit it sees.
        opened_at: ``time.monotonic()`` when it was taken.
        touched_at: ``time.monotonic()`` when it was last used through a transaction or scan.
    """

    __slots__ = ("__weakref__", "_ended", "_environment", "_lock", "_txn", "lsn", "opened_at", "touched_at")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        # One that its thread may take again: when Ctrl-C ends a block of :meth:`reading`, the block may still hold it
        # while the snapshot is closed.
        self._lock = threading.RLock()
        self._ended: ToonDBError | None = None
        self._txn: Any
        self._txn, self.lsn = begin_view(environment)
        self.opened_at = self.touched_at = time.monotonic()

    def record(self, space: Space, key: bytes) -> bytes | None:
        """The raw record of a key, or None."""
        environment = self._environment
        if environment.forked:  # before the lock, which a thread that is not here may hold
            raise environment.forked_error()
        with self._lock:
            if self._txn is None:
                raise self._over()
            try:
                raw: bytes | None = self._txn.get(key, db=environment.spaces[space])
            except lmdb.Error as error:
                raise storage_error(error, "reading") from None
            return raw

    def records_of(self, space: Space, keys: list[bytes]) -> list[bytes | None]:
        """The raw records of several keys, None where there is none: faster than :meth:`record` for each."""
        environment = self._environment
        if environment.forked:
            raise environment.forked_error()
        with self._lock:
            if self._txn is None:
                raise self._over()
            return records_of(environment, self._txn, space, keys)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        return live_value(self.record(Space.KV, key))

    def records(self, space: Space, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """All (key, raw record) pairs of [start, end); for validation, which runs on one thread."""
        with self._lock:
            if self._txn is None:
                raise self._over()
            pairs = records(self._txn, self._environment.spaces[space], start, end)
        for key, raw in pairs:
            if end is not None and key >= end:
                return
            yield key, raw

    @property
    def environment(self) -> Environment:
        """The open environment."""
        return self._environment

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """The LMDB transaction, for what reads other sub-databases; nobody can end it until the block does.

        Raises:
            SnapshotExpiredError, DatabaseClosedError: It is gone.
        """
        if self._environment.forked:
            raise self._environment.forked_error()
        with self._lock:
            if self._txn is None:
                raise self._over()
            yield self._txn

    @property
    def closed(self) -> bool:
        return self._txn is None

    def close(self, ended: ToonDBError | None = None) -> None:
        """Release the snapshot. Idempotent.

        Args:
            ended: What later use raises; a DatabaseClosedError when None.
        """
        if self._environment.forked:
            return
        with self._lock:
            txn, self._txn = self._txn, None
            if txn is not None:
                self._ended = ended
                self._environment.end_view(txn)

    def expire(self, why: str) -> None:
        """Release it because it was held for too long; later use raises SnapshotExpiredError."""
        self.close(SnapshotExpiredError(f"the snapshot was {why} and has been released."))

    def _over(self) -> ToonDBError:
        return self._ended or DatabaseClosedError("the snapshot is closed.", remediation="Take a new one.")


class SnapshotScan:
    """A scan over one snapshot, read in batches.

    Args:
        snapshot: The view to read.
        space: The sub-database.
        start, end: The half-open range; ``end`` None = to the last key.
        reverse: Descending order.
        values: False reads keys only; every value is then ``b""``.
        now: The time by which records have expired, milliseconds since 1970 UTC; None = this moment.
        own: Close the snapshot together with the scan.

    Attributes:
        exhausted: The end of the range was reached.
        last_key: The last key given out.
    """

    __slots__ = ("_end", "_own", "_pairs", "_reverse", "_small", "_start", "exhausted", "last_key", "snapshot")

    def __init__(
        self,
        snapshot: Snapshot,
        space: Space,
        start: bytes,
        end: bytes | None,
        *,
        reverse: bool = False,
        values: bool = True,
        now: int | None = None,
        own: bool = False,
    ) -> None:
        self.snapshot = snapshot
        self._start, self._end, self._reverse, self._own = start, end, reverse, own
        self.exhausted = end is not None and start >= end
        self.last_key: bytes | None = None
        # Long values are on pages of their own; without many of those any number of rows is bounded in bytes.
        self._small = False
        environment = snapshot._environment
        if environment.forked:
            raise environment.forked_error()
        with snapshot._lock:
            if snapshot._txn is None:
                raise snapshot._over()
            database = environment.spaces[space]
            try:
                if environment.has_expiring(snapshot._txn):
                    # Whether a record has expired is in the record.
                    pairs = records(snapshot._txn, database, start, end, reverse=reverse)
                    pairs = live_pairs(pairs, now_ms() if now is None else now)
                    self._pairs = pairs if values else ((key, b"") for key, _ in pairs)
                else:
                    self._pairs = records(snapshot._txn, database, start, end, reverse=reverse, values=values)
                    stat = snapshot._txn.stat(database)
                    self._small = stat["overflow_pages"] * stat["psize"] <= _SMALL_BYTES
            except lmdb.Error as error:
                raise storage_error(error, "scanning") from None
        if self.exhausted:
            # An empty range: nobody will step it to its end.
            self.close()

    def batch(self, max_rows: int, max_bytes: int) -> list[bytes]:
        """The next rows as a flat list ``[key, value, key, value, ...]``; empty when exhausted.

        Args:
            max_rows: Rows at the most, 1 or more.
            max_bytes: Stop after the row that reaches so many bytes.

        Raises:
            SnapshotExpiredError, DatabaseClosedError: The snapshot is gone.
        """
        out: list[bytes] = []
        if self.exhausted:
            return out
        append = out.append
        size = 0
        snapshot = self.snapshot
        if snapshot._environment.forked:
            raise snapshot._environment.forked_error()
        with snapshot._lock:
            if snapshot._txn is None:
                raise snapshot._over()
            try:
                if self._reverse:
                    start = self._start
                    for key, raw in self._pairs:
                        if key < start:
                            self.exhausted = True
                            break
                        append(key)
                        append(raw[HEADER_SIZE:])
                        size += len(raw) + len(key)
                        max_rows -= 1
                        if not max_rows or size >= max_bytes:
                            break
                    else:
                        self.exhausted = True
                else:
                    end = self._end
                    for key, raw in self._pairs:
                        if end is not None and key >= end:
                            self.exhausted = True
                            break
                        append(key)
                        append(raw[HEADER_SIZE:])
                        size += len(raw) + len(key)
                        max_rows -= 1
                        if not max_rows or size >= max_bytes:
                            break
                    else:
                        self.exhausted = True
            except lmdb.Error as error:
                raise storage_error(error, "scanning") from None
            if out:
                self.last_key = out[-2]
        snapshot.touched_at = time.monotonic()
        if self.exhausted:
            self.close()
        return out

    def pairs(self, max_rows: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
        """The next rows as pairs of key and value; see :meth:`batch`.

        Where no value can be large, the bytes are not counted.
        """
        if not self._small:
            flat = self.batch(max_rows, max_bytes)
            return list(zip(flat[::2], flat[1::2], strict=True))
        if self.exhausted:
            return []
        snapshot = self.snapshot
        if snapshot._environment.forked:
            raise snapshot._environment.forked_error()
        with snapshot._lock:
            if snapshot._txn is None:
                raise snapshot._over()
            try:
                chunk = list(islice(self._pairs, max_rows))
            except lmdb.Error as error:
                raise storage_error(error, "scanning") from None
        if len(chunk) < max_rows:
            self.exhausted = True
        if chunk:
            last = chunk[-1][0]
            if self._reverse:
                if last < self._start:
                    chunk = [pair for pair in chunk if pair[0] >= self._start]
                    self.exhausted = True
            elif self._end is not None and last >= self._end:
                del chunk[bisect_left(chunk, (self._end,)) :]
                self.exhausted = True
            if chunk:
                self.last_key = chunk[-1][0]
        snapshot.touched_at = time.monotonic()
        if self.exhausted:
            self.close()
        return [(key, raw[HEADER_SIZE:]) for key, raw in chunk]

    def close(self) -> None:
        """Give the cursor up, and the snapshot when it is owned. Idempotent."""
        self._pairs = iter(())
        self.exhausted = True
        if self._own:
            self.snapshot.close()
