"""The engine: one open database folder."""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import lmdb

from toondb.interrupts import Event
from toondb_protocol.changes import Change
from toondb_protocol.errors import (
    DatabaseClosedError,
    DatabaseError,
    DatabaseLockedError,
    ToonDBError,
    TransactionConflictError,
    TransactionOutcomeUnknownError,
)
from toondb_protocol.keys import check_key
from toondb_protocol.record import HEADER_SIZE, RECORD_V1, decode_expiry, live_value

from .change_log import read_changes
from .conditional import Conditional
from .environment import DATA_FILE, Environment, Space, prepare_folder, storage_error
from .file_swap import ReadHold
from .options import Access, EngineOptions, Isolation
from .owner_lock import OwnerLock, wait_for_lock
from .snapshot import Snapshot, SnapshotScan, read_lsn
from .transaction import State, Transaction
from .write_set import Scan
from .writer import Checkpoint, Unit, Writer, WriteRequest

__all__ = ["Engine", "LatestReader"]

_PRUNE_AT = 64
_RESERVED_SHARE = 8
_WAIT_FOR_OWNER_SECONDS = 5.0
_POLL_SECONDS = 0.01


class LatestReader:
    """Point reads of the newest commit for one thread, from a view that is renewed only after a commit.

    The owner calls :meth:`release` when a commit was announced, so that an idle view never keeps LMDB from
    reusing pages. A write that was acknowledged is always seen: the writer marks the commit before it answers.

    Attributes:
        bytes_read: Bytes of the values it has read.
    """

    __slots__ = ("_as_of", "_environment", "_get", "_txn", "bytes_read")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.bytes_read = 0
        self._txn: Any = None
        self._get: Any = None
        self._as_of: object = None

    def get(self, key: bytes) -> bytes | None:
        """The raw record of a key, or None; it may have expired."""
        if self._as_of is not self._environment.mark:
            self._renew()
        try:
            raw: bytes | None = self._get(key)
        except lmdb.Error as error:
            raise storage_error(error, "reading") from None
        if raw is not None:
            self.bytes_read += len(raw) - HEADER_SIZE
        return raw

    def _renew(self) -> None:
        self.release()
        # Read the mark first: a commit in between makes the next get renew once more, never miss one.
        as_of = self._environment.mark
        self._txn = self._environment.begin_view()
        self._get = self._txn.get
        # Nobody announces the commits of other processes.
        self._as_of = None if self._environment.shared else as_of
        self._environment.seen(read_lsn(self._environment, self._txn))

    def release_old(self) -> None:
        """Let the view go when there was a commit since."""
        if self._as_of is not self._environment.mark:
            self.release()

    def release(self) -> None:
        """Let the view go; the next get takes a fresh one."""
        if self._txn is not None:
            txn, self._txn = self._txn, None
            self._get = self._as_of = None
            self._environment.end_view(txn)


class Engine:
    """An open store. All methods may be called from any thread of the process that opened it.

    Args:
        path: The database folder.
        options: See :class:`EngineOptions`.
        role: What other processes are told of this owner.
        socket: The daemon's socket, for the same purpose.
        shared: Share the folder with other processes that do so too. Beside a daemon it is opened for reading only,
            and another exclusive owner is waited for, for 5 seconds at the most.

    Raises:
        DatabaseLockedError: Another process owns the folder, or its file is being replaced.
        ConfigurationError, DatabaseNotFoundError, StorageError, CorruptionError: See ``Environment``.

    Attributes:
        access: How it holds the folder.
        turn: A lock for writers that had better take turns.
        bytes_read: Bytes of the values that were read with :meth:`get`, and that callers added for other reads.
        queries_executed: Queries that callers counted.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: EngineOptions | None = None,
        *,
        role: str = "embedded",
        socket: str | None = None,
        shared: bool = False,
    ) -> None:
        self.options = options or EngineOptions()
        self.folder: Path = prepare_folder(path, create=self.options.create_if_missing)
        self._lock: OwnerLock | ReadHold
        if shared:
            self._open_shared(role)
        else:
            self._lock = OwnerLock(self.folder, role, socket)
            self._open_environment(Access.EXCLUSIVE)
        try:
            view = self._environment.begin_view()
            self._environment.announce(read_lsn(self._environment, view))
            self._environment.end_view(view)
            self._writer = None if self.access is Access.READ else Writer(self._environment)
        except BaseException:
            self._environment.close()
            self._lock.release()
            raise
        self._kv = self._environment.kv
        self._closed = False
        self._close_lock = threading.Lock()
        self._ids = itertools.count(1)
        # For writers that would conflict with each other in any case, whatever handle they come from.
        self.turn = threading.Lock()
        # Not kept alive by this table: what Ctrl-C takes from whoever had just begun it ends by itself.
        self._open: weakref.WeakValueDictionary[int, Transaction | Snapshot] = weakref.WeakValueDictionary()
        self._open_lock = threading.Lock()
        self._prune_at = _PRUNE_AT
        # The rest is for point reads, maintenance and direct readers: whoever opens too many stops himself only.
        self._most_open = self.options.max_readers - self.options.max_readers // _RESERVED_SHARE
        self.transactions_aborted = 0
        self.conflicts = 0
        self.bytes_read = 0
        self.queries_executed = 0

    def _open_shared(self, role: str) -> None:
        give_up = time.monotonic() + _WAIT_FOR_OWNER_SECONDS
        while True:
            lock = wait_for_lock(self.folder, role, give_up)
            if lock is not None:
                self._lock = lock
                self._open_environment(Access.SHARED)
                return
            try:
                self._lock = ReadHold(self.folder / DATA_FILE)
                self._open_environment(Access.READ)
                return
            except (DatabaseError, DatabaseLockedError):
                # A daemon that has just started may still be making the store, or bringing it up to date.
                if time.monotonic() >= give_up:
                    raise
            time.sleep(_POLL_SECONDS)

    def _open_environment(self, access: Access) -> None:
        self.access = access
        try:
            self._environment = Environment(self.folder, self.options, access)
        except BaseException:
            self._lock.release()
            raise

    @property
    def writer(self) -> Writer:
        """The writer.

        Raises:
            DatabaseLockedError: The folder was opened for reading, beside the daemon that serves it.
        """
        if self._writer is None:
            raise DatabaseLockedError(
                f"the database {self.folder} was opened for reading, beside the daemon that served it then.",
                remediation=f"Write through the daemon: IpcClient.connect({str(self.folder)!r}).",
            )
        return self._writer

    # Reads

    def reader(self) -> LatestReader:
        """A reader of the newest commit for the calling thread."""
        self.check_open()
        return LatestReader(self._environment)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key in the newest commit, or None."""
        if not 0 < len(key) <= 511:
            check_key(key)
        try:
            # The snapshot ends with its only reference.
            raw: bytes | None = self._environment.begin_read(self._kv).get(key)
        except lmdb.Error:
            raw = self._get_slowly(key)
        if raw is None:
            return None
        self.bytes_read += len(raw) - HEADER_SIZE
        return raw[HEADER_SIZE:] if raw[0] == RECORD_V1 else live_value(raw)

    def _get_slowly(self, key: bytes) -> bytes | None:
        """The raw record, when the quick way failed: the reason is told, or LMDB refused a new view for good."""
        self.check_open()
        environment = self._environment
        view = environment.begin_view()
        try:
            raw: bytes | None = view.get(key)
        except lmdb.Error as error:
            raise storage_error(error, "reading") from None
        finally:
            environment.end_view(view)
        return raw

    def get_with_expiry(self, key: bytes) -> tuple[bytes | None, int | None]:
        """The value of a key in the newest commit, and when it expires (milliseconds since 1970 UTC)."""
        self.check_open()
        raw = self._get_slowly(check_key(key))
        value = live_value(raw)
        return value, None if raw is None or value is None else decode_expiry(raw)

    def read_changes(
        self, since_lsn: int | None, start: bytes = b"", end: bytes | None = None, *, max_bytes: int = 256 * 1024
    ) -> Generator[list[Change], None, int]:
        """The changes of keys in [start, end) after a commit, see ``change_log.read_changes``.

        It holds a snapshot from its first step until it ends.
        """
        self.check_open()

        def steps() -> Generator[list[Change], None, int]:
            return (yield from read_changes(self.snapshot(), since_lsn, start, end, max_bytes=max_bytes))

        return steps()

    def wait_for_commit(self, lsn: int, seconds: float) -> None:
        """Wait until there may be a commit after ``lsn``, for so long at the most."""
        self.check_open()
        if self.access is not Access.EXCLUSIVE:
            # Nobody tells this process of the commits of others.
            seconds = min(seconds, _POLL_SECONDS)
        self._environment.wait_for_commit(lsn, seconds)

    def snapshot(self) -> Snapshot:
        """A read view of the newest commit; close it."""
        self.check_open()
        snapshot = Snapshot(self._environment)
        self._register(next(self._ids), snapshot, snapshot)
        return snapshot

    def private_snapshot(self) -> Snapshot:
        """A read view that its owner closes and that never expires."""
        self.check_open()
        snapshot = Snapshot(self._environment)
        self._environment.seen(snapshot.lsn)
        return snapshot

    def _register(self, key: int, item: Transaction | Snapshot, snapshot: Snapshot) -> None:
        self._environment.seen(snapshot.lsn)
        with self._open_lock:
            if self._closed:
                # Too late for close() to find it.
                snapshot.close()
                raise _closed()
            # Closed ones leave here lazily; the table stays as small as what is open.
            if len(self._open) > self._prune_at:
                self._prune()
                self._prune_at = max(_PRUNE_AT, 2 * len(self._open))
            if len(self._open) >= self._most_open:
                self._prune()
                if len(self._open) >= self._most_open:
                    snapshot.close()
                    raise DatabaseError(
                        f"{self._most_open} transactions and snapshots are open at once.",
                        remediation="End some of them; they also end by themselves when idle for too long.",
                        details={"limit": self._most_open},
                    )
            self._open[key] = item

    def _prune(self) -> None:
        self._open = weakref.WeakValueDictionary({key: item for key, item in self._open.items() if not _over(item)})

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
        self.check_open()
        transaction = Transaction(
            self._environment,
            next(self._ids),
            isolation=isolation,
            read_only=read_only,
            max_bytes=self.options.max_transaction_bytes,
        )
        self._register(transaction.id, transaction, transaction.snapshot)
        return transaction

    def abort(self, transaction: Transaction, ended: ToonDBError | None = None) -> None:
        """End a transaction without applying it. Idempotent.

        Raises:
            TransactionError: Its commit is under way.
        """
        if transaction.abort(ended):
            self.transactions_aborted += 1
            self._forget(transaction)

    def commit(self, transaction: Transaction) -> int:
        """Commit and wait.

        Returns:
            The LSN of the commit, or of the snapshot when nothing was written.

        Raises:
            TransactionConflictError: Another transaction committed first; this one is over.
            StorageError: It could not be stored; it is over.
        """
        self.check_open()
        try:
            transaction.flush()
        except BaseException:
            # As at any other commit that fails, nothing of it stays open.
            self.abort(transaction)
            raise
        done = self.commit_read_only(transaction)
        if done is not None:
            return done
        writer = self.writer
        result: int | ToonDBError
        started = False
        try:
            transaction.start_commit()
            started = True
            results = writer.commit_now([transaction])
            if results is not None:
                self.settle(transaction, results[0])
        except BaseException as error:
            if isinstance(error, ToonDBError) and not started:
                raise
            # Ctrl-C in the middle of it: the transaction ends, whatever became of it.
            outcome = TransactionOutcomeUnknownError(f"the commit of transaction {transaction.id} was interrupted.")
            self.settle(transaction, error if isinstance(error, ToonDBError) else outcome)
            raise
        result = self._commit_by_thread(transaction) if results is None else results[0]
        if isinstance(result, ToonDBError):
            raise result
        return result

    def _commit_by_thread(self, transaction: Transaction) -> int | ToonDBError:
        # On the writer thread: also when the caller is interrupted while it waits, the transaction ends.
        def settle(request: WriteRequest) -> None:
            self.settle(transaction, request.results[0])

        try:
            return self._write([transaction], settle)[0]
        except DatabaseClosedError as error:
            self.settle(transaction, error)
            raise

    def commit_read_only(self, transaction: Transaction) -> int | None:
        """End a transaction that wrote nothing; None when it did write."""
        if transaction.dirty:
            return None
        lsn = transaction.end_unwritten()
        self._forget(transaction)
        return lsn

    def settle(self, transaction: Transaction, result: int | ToonDBError) -> None:
        """Note the outcome of a submitted commit."""
        if isinstance(result, ToonDBError):
            if transaction.rejected(result):
                self.transactions_aborted += 1
                self.conflicts += isinstance(result, TransactionConflictError)
        else:
            transaction.committed(result)
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
                if not item.expire(why):
                    continue
                self.transactions_aborted += 1
            else:
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
        self.check_open()
        self.writer.submit(WriteRequest(units, on_done, tag))

    def write(self, units: list[Unit]) -> list[int | ToonDBError]:
        """Apply units and wait; one result for each."""
        results = self.commit_now(units)
        return self._write(units, lambda _: None) if results is None else results

    def _write(self, units: list[Unit], on_done: Callable[[WriteRequest], None]) -> list[int | ToonDBError]:
        self.check_open()
        done = Event()

        def finish(request: WriteRequest) -> None:
            try:
                on_done(request)
            finally:
                done.set()

        request = WriteRequest(units, finish)
        self.writer.submit(request)
        done.wait()
        return request.results

    def put(self, key: bytes, value: bytes) -> int:
        """Store one value in a transaction of its own and wait; returns the LSN.

        Raises:
            InvalidKeyError, KeyTooLargeError: The key is not 1 to 511 bytes.
            StorageFullError, StorageError: It was not stored.
        """
        return self._one((check_key(key), value))

    def delete(self, key: bytes) -> int:
        """Delete one key in a transaction of its own and wait; returns the LSN.

        When the key is absent nothing is committed, and the LSN is that of the newest commit.
        """
        return self._one((check_key(key), None))

    def apply(self, unit: Conditional) -> Any:
        """Apply a write that depends on what is there, in a transaction of its own; answers its result."""
        self._one(unit)
        return unit.result

    def checkpoint(self) -> int:
        """Make everything committed so far durable, in any sync mode; returns the LSN."""
        return self._one(Checkpoint())

    def commit_now(self, units: list[Unit]) -> list[int | ToonDBError] | None:
        """Apply units on the calling thread, see :meth:`Writer.commit_now`; None when the writer is busy."""
        self.check_open()
        return self.writer.commit_now(units)

    def _one(self, unit: Unit) -> int:
        result = self.write([unit])[0]
        if isinstance(result, ToonDBError):
            raise result
        return result

    # State

    def stats(self) -> dict[str, Any]:
        """Counters and sizes of the storage engine; sizes in bytes."""
        self.check_open()
        environment = self._environment
        view = environment.begin_view()
        try:
            kv = view.stat(environment.kv)
            lsn = read_lsn(environment, view)
            info = environment.lmdb.info()
        except lmdb.Error as error:
            raise storage_error(error, "reading statistics") from None
        finally:
            environment.end_view(view)
        with self._open_lock:
            snapshots = sum(not _over(item) for item in self._open.values())
        writer = self._writer
        return {
            "keys_count": kv["entries"],
            "lsn": lsn,
            "commits": writer.commits if writer else 0,
            "transactions_committed": writer.transactions if writer else 0,
            "transactions_aborted": self.transactions_aborted,
            "transactions_conflicted": self.conflicts,
            "active_transactions": self.active_transactions,
            "open_snapshots": snapshots,
            "bytes_written": writer.bytes_written if writer else 0,
            "bytes_read": self.bytes_read,
            "queries_executed": self.queries_executed,
            "storage_file_bytes": self._file_size(),
            "storage_used_bytes": (info["last_pgno"] + 1) * kv["psize"],
            "storage_map_bytes": info["map_size"],
            "storage_readers": info["num_readers"],
            "storage_failed": str(writer.failed) if writer and writer.failed else None,
            "sync_mode": str(self.options.sync_mode),
        }

    def _file_size(self) -> int:
        try:
            return (self.folder / DATA_FILE).stat().st_size
        except OSError:
            # Deleted or moved away: the open file still serves.
            return 0

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
        """Finish queued writes, abort what is open, sync, release the folder. Idempotent.

        Raises:
            StorageError: Writes that were acknowledged in a lazy sync mode could not be synced. It is closed.
        """
        if self._environment.forked:
            return
        # A second caller waits here until it is closed indeed.
        with self._close_lock:
            if self._closed:
                return
            if self._writer is not None:
                self._writer.close()
            with self._open_lock:
                self._closed = True
                open_now = list(self._open.values())
                self._open.clear()
            ended = DatabaseClosedError("the database was closed.")
            for item in open_now:
                if not isinstance(item, Transaction):
                    item.close(ended)
                elif not item.rejected(ended):
                    item.abort(ended)
            self._environment.stop_waiting()
            self._environment.close()
            self._lock.release()
        if self._writer is not None and self._writer.lost is not None:
            raise self._writer.lost

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def check_open(self) -> None:
        """Raise when it is closed, or this is a forked child."""
        if self._environment.forked:
            raise self._environment.forked_error()
        if self._closed:
            raise _closed()


def _closed() -> DatabaseClosedError:
    return DatabaseClosedError("the database is closed.")


def _over(item: Transaction | Snapshot) -> bool:
    return item.state is not State.ACTIVE and item.snapshot.closed if isinstance(item, Transaction) else item.closed
