"""The engine: one open database folder."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from toondb_protocol.errors import DatabaseClosedError, ForkedProcessError, ToonDBError
from toondb_protocol.record import HEADER_SIZE

from .environment import DATA_FILE, Environment, Space, prepare_folder, storage_error
from .options import EngineOptions, Isolation
from .owner_lock import OwnerLock
from .snapshot import Snapshot, SnapshotScan
from .transaction import State, Transaction
from .write_set import Scan
from .writer import Checkpoint, Unit, Writer, WriteRequest

__all__ = ["Engine", "LatestReader"]

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class LatestReader:
    """Point reads of the newest commit for one thread, from a view that is renewed only after a commit.

    The owner calls :meth:`release` when a commit was announced, so that an idle view never keeps LMDB from
    reusing pages. A write that was acknowledged is always seen: the writer counts the commit before it answers.
    """

    __slots__ = ("_as_of", "_database", "_environment", "_get", "_txn", "_writer")

    def __init__(self, environment: Environment, writer: Writer) -> None:
        self._environment = environment
        self._database = environment.kv
        self._writer = writer
        self._txn: Any = None
        self._get: Any = None
        self._as_of = -1

    def get(self, key: bytes) -> bytes | None:
        """The raw record of a key (value after ``HEADER_SIZE`` bytes), or None."""
        if self._as_of != self._writer.commits:
            self._renew()
        raw: bytes | None = self._get(key)
        return raw

    def _renew(self) -> None:
        self.release()
        # Read the counter first: a commit in between makes the next get renew once more, never miss one.
        as_of = self._writer.commits
        self._txn = self._environment.lmdb.begin(db=self._database)
        self._get = self._txn.get
        self._as_of = as_of

    def release(self) -> None:
        """Let the view go; the next get takes a fresh one."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = self._get = None
            self._as_of = -1


class Engine:
    """An open store. All methods may be called from any thread of the process that opened it.

    Args:
        path: The database folder.
        options: See :class:`EngineOptions`.
        role: What other processes are told of this owner.
        socket: The daemon's socket, for the same purpose.

    Raises:
        DatabaseLockedError: Another process owns the folder.
        ConfigurationError, DatabaseNotFoundError, StorageError, CorruptionError: See ``Environment``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: EngineOptions | None = None,
        *,
        role: str = "embedded",
        socket: str | None = None,
    ) -> None:
        self.options = options or EngineOptions()
        self.folder: Path = prepare_folder(path, create=self.options.create_if_missing)
        self._lock = OwnerLock(self.folder, role, socket)
        try:
            self._environment = Environment(self.folder, self.options)
        except BaseException:
            self._lock.release()
            raise
        self.writer = Writer(self._environment)
        self._forks = _forks
        self._closed = False
        self._ids = itertools.count(1)
        self._open: dict[int, Transaction | Snapshot] = {}
        self._open_lock = threading.Lock()
        self.transactions_aborted = 0
        self.conflicts = 0

    # Reads

    def reader(self) -> LatestReader:
        """A reader of the newest commit for the calling thread."""
        self._check()
        return LatestReader(self._environment, self.writer)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key in the newest commit, or None."""
        self._check()
        try:
            with self._environment.lmdb.begin(db=self._environment.kv) as txn:
                raw: bytes | None = txn.get(key)
        except lmdb.Error as error:
            raise storage_error(error, "reading") from None
        return None if raw is None else raw[HEADER_SIZE:]

    def snapshot(self) -> Snapshot:
        """A read view of the newest commit; close it."""
        self._check()
        snapshot = Snapshot(self._environment)
        with self._open_lock:
            # Closed ones leave here lazily; the table stays as small as what is open.
            if len(self._open) > 64:
                self._open = {key: value for key, value in self._open.items() if not _over(value)}
            self._open[next(self._ids)] = snapshot
        return snapshot

    def scan(
        self,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        values: bool = True,
        space: Space = Space.KV,
    ) -> Scan:
        """A scan of [start, end) on a snapshot of now, which it owns."""
        snapshot = self.snapshot()
        try:
            return SnapshotScan(snapshot, space, start, end, reverse=reverse, values=values, own=True)
        except BaseException:
            snapshot.close()
            raise

    # Transactions

    def begin(self, isolation: Isolation = Isolation.SNAPSHOT, *, read_only: bool = False) -> Transaction:
        """Begin a transaction on a snapshot of now."""
        self._check()
        transaction = Transaction(
            self._environment,
            next(self._ids),
            isolation=isolation,
            read_only=read_only,
            max_bytes=self.options.max_transaction_bytes,
        )
        with self._open_lock:
            self._open[transaction.id] = transaction
        return transaction

    def abort(self, transaction: Transaction, ended: ToonDBError | None = None) -> None:
        """End a transaction without applying it. Idempotent."""
        if transaction.state is State.ACTIVE:
            self.transactions_aborted += 1
        transaction.abort(ended)
        self._forget(transaction)

    def commit(self, transaction: Transaction) -> int:
        """Commit and wait.

        Returns:
            The LSN of the commit, or of the snapshot when nothing was written.

        Raises:
            TransactionConflictError: Another transaction committed first; this one is over.
            StorageError: It could not be stored; it is over.
        """
        self._check()
        done = self.commit_read_only(transaction)
        if done is not None:
            return done
        transaction.start_commit()
        result = self.write([transaction])[0]
        self.settle(transaction, result)
        if isinstance(result, ToonDBError):
            raise result
        return result

    def commit_read_only(self, transaction: Transaction) -> int | None:
        """End a transaction that wrote nothing; None when it did write."""
        if transaction.dirty:
            return None
        transaction.start_commit()
        lsn = transaction.snapshot.lsn
        transaction.committed()
        self._forget(transaction)
        return lsn

    def settle(self, transaction: Transaction, result: int | ToonDBError) -> None:
        """Note the outcome of a submitted commit."""
        if isinstance(result, ToonDBError):
            self.conflicts += 1
            self.abort(transaction, result)
        else:
            transaction.committed()
            self._forget(transaction)

    def _forget(self, transaction: Transaction) -> None:
        with self._open_lock:
            self._open.pop(transaction.id, None)

    def expire(self) -> int:
        """End transactions and snapshots that were idle or open for longer than the options allow.

        Returns:
            How many were ended.
        """
        now = time.monotonic()
        idle, age = self.options.transaction_idle_seconds, self.options.transaction_age_seconds
        with self._open_lock:
            open_now = list(self._open.items())
        ended = 0
        for key, item in open_now:
            if _over(item):
                with self._open_lock:
                    self._open.pop(key, None)
                continue
            snapshot = item.snapshot if isinstance(item, Transaction) else item
            if idle and now - snapshot.touched_at > idle:
                why = f"idle for more than {idle:g} s"
            elif age and now - snapshot.opened_at > age:
                why = f"open for more than {age:g} s"
            else:
                continue
            if isinstance(item, Transaction):
                if item.state is not State.ACTIVE:
                    continue
                self.transactions_aborted += 1
            item.expire(why)
            ended += 1
        return ended

    @property
    def active_transactions(self) -> int:
        """Transactions that are open."""
        with self._open_lock:
            return sum(isinstance(item, Transaction) and not _over(item) for item in self._open.values())

    # Writes

    def submit(self, units: list[Unit], on_done: Callable[[WriteRequest], None], tag: Any = None) -> None:
        """Queue units for the writer thread; ``on_done`` is called on that thread."""
        self._check()
        self.writer.submit(WriteRequest(units, on_done, tag))

    def write(self, units: list[Unit]) -> list[int | ToonDBError]:
        """Apply units and wait; one result for each."""
        self._check()
        done = threading.Event()
        request = WriteRequest(units, lambda _: done.set())
        self.writer.submit(request)
        done.wait()
        return request.results

    def put(self, key: bytes, value: bytes) -> int:
        """Store one value in a transaction of its own and wait; returns the LSN."""
        return self._one((key, value))

    def delete(self, key: bytes) -> int:
        """Delete one key in a transaction of its own and wait; returns the LSN."""
        return self._one((key, None))

    def checkpoint(self) -> int:
        """Make everything committed so far durable, in any sync mode; returns the LSN."""
        return self._one(Checkpoint())

    def _one(self, unit: Unit) -> int:
        result = self.write([unit])[0]
        if isinstance(result, ToonDBError):
            raise result
        return result

    # State

    def stats(self) -> dict[str, Any]:
        """Counters and sizes of the storage engine; sizes in bytes."""
        self._check()
        environment = self._environment
        with environment.lmdb.begin() as txn:
            kv = txn.stat(environment.kv)
            raw = txn.get(b"lsn", db=environment.meta) or bytes(8)
        info = environment.lmdb.info()
        with self._open_lock:
            snapshots = sum(not _over(item) for item in self._open.values())
        return {
            "keys_count": kv["entries"],
            "lsn": int.from_bytes(raw, "little"),
            "commits": self.writer.commits,
            "transactions_committed": self.writer.transactions,
            "transactions_aborted": self.transactions_aborted,
            "transactions_conflicted": self.conflicts,
            "active_transactions": self.active_transactions,
            "open_snapshots": snapshots,
            "bytes_written": self.writer.bytes_written,
            "storage_file_bytes": (self.folder / DATA_FILE).stat().st_size,
            "storage_used_bytes": (info["last_pgno"] + 1) * kv["psize"],
            "storage_map_bytes": info["map_size"],
            "storage_readers": info["num_readers"],
            "storage_failed": str(self.writer.failed) if self.writer.failed else None,
            "sync_mode": str(self.options.sync_mode),
        }

    @property
    def environment(self) -> Environment:
        """The LMDB environment, for units that write other spaces."""
        return self._environment

    @property
    def format(self) -> dict[str, Any]:
        """The store's format record: version, id, creation time."""
        return self._environment.format

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Finish queued writes, abort what is open, sync, release the folder. Idempotent."""
        if self._closed or self._forks != _forks:
            return
        self._closed = True
        self.writer.close()
        with self._open_lock:
            open_now, self._open = list(self._open.values()), {}
        ended = DatabaseClosedError("the database was closed.")
        for item in open_now:
            if isinstance(item, Transaction):
                item.abort(ended)
            else:
                item.close(ended)
        self._environment.close()
        self._lock.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._forks != _forks:
            raise ForkedProcessError("this database was opened by the parent process.")
        if self._closed:
            raise DatabaseClosedError("the database is closed.")


def _over(item: Transaction | Snapshot) -> bool:
    return item.state is not State.ACTIVE and item.snapshot.closed if isinstance(item, Transaction) else item.closed
