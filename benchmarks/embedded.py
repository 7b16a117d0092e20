"""How the stores inside a process are driven: ToonDB embedded, raw LMDB, SQLite, diskcache, and sochdb.

Operations: ``get``, ``put`` (durable, one at a time), ``scan`` (counts items), ``scan-batched`` (ToonDB's plain
tuples), and ``bulk``: :data:`BULK` new records in one durable transaction, again and again (counts records).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.drivers import DriverError, Loop, check_value, each_key, each_put, scans
from benchmarks.workload import KEY_PREFIX, Workload

__all__ = ["BULK", "EMBEDDED"]

BULK = 20_000

_bulk_numbers = count()


def bulks(store: Callable[[list[tuple[bytes, bytes]]], object], value: bytes) -> Loop:
    """Bulk loads of new keys in key order; making the records is not part of the time."""

    def loop(deadline: float) -> int:
        done, spent = 0, 0.0
        started = perf_counter()
        while True:
            number = next(_bulk_numbers)
            records = [(b"bulk:%08d:%08d" % (number, at), value) for at in range(BULK)]
            begun = perf_counter()
            store(records)
            spent += perf_counter() - begun
            done += BULK
            if perf_counter() >= deadline:
                # The caller divides by the time of the whole loop.
                return round(done * (perf_counter() - started) / spent)

    return loop


class _InProcess:
    """A store in this process, in a folder."""

    def __init__(self, address: str, workload: Workload, seed: int) -> None:
        self._workload, self._keys = workload, workload.sample(seed)
        Path(address).mkdir(exist_ok=True)
        self._open(address)

    def _open(self, folder: str) -> None:
        raise NotImplementedError

    def _get(self, key: bytes) -> object:
        raise NotImplementedError

    def _put(self, key: bytes, value: bytes) -> object:
        raise NotImplementedError

    def _put_all(self, records: Iterable[tuple[bytes, bytes]]) -> object:
        raise NotImplementedError

    def _scan(self) -> Iterable[object]:
        raise NotImplementedError

    def loop(self, operation: str) -> Loop:
        """The loop for an operation."""
        if operation == "put":
            return each_put(self._put, self._keys, self._workload.value)
        if operation == "bulk":
            return bulks(self._put_all, self._workload.value)
        check_value(self._get(self._keys[0]), self._workload)
        if operation == "get":
            return each_key(self._get, self._keys)
        if operation == "scan":
            return scans(self._scan, self._workload.keys)
        raise DriverError(f"{type(self).__name__} has no operation {operation!r}")

    def load(self, workload: Workload) -> None:
        """Store all records."""
        self._put_all(list(workload.records()))

    def close(self) -> None:
        """Close the store."""
        raise NotImplementedError


class EmbeddedDriver(_InProcess):
    """``Database.open``."""

    concurrent = False

    def _open(self, folder: str) -> None:
        from toondb import Database

        self._db = Database.open_concurrent(folder) if self.concurrent else Database.open(folder)
        self._get = self._db.get  # type: ignore[method-assign]
        self._put = self._db.put  # type: ignore[method-assign]

    def _put_all(self, records: Iterable[tuple[bytes, bytes]]) -> object:
        return self._db.put_many(records)

    def _scan(self) -> Iterable[object]:
        return self._db.scan(KEY_PREFIX)

    def loop(self, operation: str) -> Loop:
        if operation == "scan-batched":
            end = KEY_PREFIX + b"\xff"
            return scans(lambda: self._db.scan_batched(KEY_PREFIX, end), self._workload.keys)
        return super().loop(operation)

    def close(self) -> None:
        self._db.close()


class ConcurrentDriver(EmbeddedDriver):
    """``Database.open_concurrent``, in every process of the row."""

    concurrent = True


class RawLmdbDriver(_InProcess):
    """LMDB by itself: a snapshot for each get, a synchronous commit for each put, ``putmulti`` for bulk loads."""

    def _open(self, folder: str) -> None:
        import lmdb

        self._env: Any = lmdb.open(folder, map_size=1 << 36, max_dbs=2, max_readers=256)
        self._db: Any = self._env.open_db(b"kv")

    def _get(self, key: bytes) -> object:
        with self._env.begin(db=self._db) as txn:
            return txn.get(key)

    def _put(self, key: bytes, value: bytes) -> object:
        with self._env.begin(db=self._db, write=True) as txn:
            return txn.put(key, value)

    def _put_all(self, records: Iterable[tuple[bytes, bytes]]) -> object:
        with self._env.begin(db=self._db, write=True) as txn, txn.cursor() as cursor:
            return cursor.putmulti(records)

    def _scan(self) -> Iterator[object]:
        with self._env.begin(db=self._db) as txn, txn.cursor() as cursor:
            if cursor.set_range(KEY_PREFIX):
                yield from cursor

    def close(self) -> None:
        self._env.close()


class SqliteDriver(_InProcess):
    """Python's own ``sqlite3``: one table of keys and values, write-ahead log, synchronous=FULL."""

    def _open(self, folder: str) -> None:
        import sqlite3

        self._db = sqlite3.connect(f"{folder}/kv.sqlite", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def _get(self, key: bytes) -> object:
        row = self._db.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def _put(self, key: bytes, value: bytes) -> object:
        return self._db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def _put_all(self, records: Iterable[tuple[bytes, bytes]]) -> object:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", records)
        return self._db.execute("COMMIT")

    def _scan(self) -> Iterable[object]:
        return self._db.execute(
            "SELECT key, value FROM kv WHERE key >= ? AND key < ? ORDER BY key", (KEY_PREFIX, KEY_PREFIX + b"\xff")
        )

    def close(self) -> None:
        self._db.close()


class DiskcacheDriver(_InProcess):
    """``diskcache.Cache``; it does not wait for the disk."""

    def _open(self, folder: str) -> None:
        import diskcache

        self._db: Any = diskcache.Cache(folder, eviction_policy="none")

    def _get(self, key: bytes) -> object:
        return self._db.get(key)

    def _put(self, key: bytes, value: bytes) -> object:
        return self._db.set(key, value)

    def _put_all(self, records: Iterable[tuple[bytes, bytes]]) -> object:
        with self._db.transact():
            for key, value in records:
                self._db.set(key, value)
        return None

    def _scan(self) -> Iterator[object]:
        db = self._db
        for key in db:
            yield key, db.get(key)

    def close(self) -> None:
        self._db.close()


class SochDbDriver(_InProcess):
    """``sochdb.Database``."""

    def _open(self, folder: str) -> None:
        import sochdb

        self._db: Any = sochdb.Database.open(folder)

    def _get(self, key: bytes) -> object:
        return self._db.get(key)

    def _put(self, key: bytes, value: bytes) -> object:
        return self._db.put(key, value)

    def _put_all(self, records: Iterable[tuple[bytes, bytes]]) -> object:
        with self._db.transaction() as txn:
            for key, value in records:
                txn.put(key, value)
        return None

    def _scan(self) -> Iterator[object]:
        yield from self._db.scan_prefix(KEY_PREFIX)

    def close(self) -> None:
        self._db.close()


EMBEDDED = {
    "embedded": EmbeddedDriver,
    "concurrent": ConcurrentDriver,
    "rawlmdb": RawLmdbDriver,
    "sqlite": SqliteDriver,
    "diskcache": DiskcacheDriver,
    "sochdb": SochDbDriver,
}
"""Drivers by name; each is also the name of its kind of store in :mod:`benchmarks.servers`."""
