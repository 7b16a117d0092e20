"""Group commit: one thread owns all LMDB writes.

It takes everything that is waiting, applies it in one LMDB transaction, commits (one sync of the device
for all of it) and then answers. While the device syncs, the next batch gathers; there is no delay to tune.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias

import lmdb

from toondb_protocol.errors import (
    DatabaseClosedError,
    InternalError,
    StorageError,
    StorageFullError,
    ToonDBError,
)
from toondb_protocol.record import META_LSN, encode_record

from .environment import Environment, storage_error
from .options import SyncMode
from .snapshot import read_lsn

__all__ = ["Checkpoint", "Unit", "WriteRequest", "Writer"]

_pack_lsn = struct.Struct("<Q").pack
_MAX_REQUESTS_PER_BATCH = 1024
_TIDY_SECONDS = 5.0
_FLUSH_SECONDS = 1.0


class CommitUnit(Protocol):
    """Something that is applied as one transaction. May be applied again after a failed batch."""

    def apply(self, txn: Any, lsn: int) -> int:
        """Apply to the LMDB transaction and return the LSN after it; raise ToonDBError to change nothing."""


class Checkpoint:
    """A unit that makes everything before it durable, whatever the sync mode."""

    def apply(self, txn: Any, lsn: int) -> int:
        """Nothing to write; the writer syncs after the batch."""
        return lsn


Unit: TypeAlias = tuple[bytes, bytes | None] | CommitUnit
"""One transaction: a plain (key, value) write (value None deletes), or a unit that knows how to apply itself."""


class WriteRequest:
    """Units of one submitter, each a transaction of its own, applied in order.

    Args:
        units: What to apply.
        on_done: Called once on the writer thread when ``results`` is complete; must not raise or block.

    Attributes:
        results: For each unit the LSN of its commit, or the error that says why it was not applied.
    """

    __slots__ = ("on_done", "results", "tag", "units")

    def __init__(self, units: list[Unit], on_done: Callable[[WriteRequest], None], tag: Any = None) -> None:
        self.units = units
        self.on_done = on_done
        self.results: list[int | ToonDBError] = []
        self.tag = tag


class Writer:
    """The writer thread.

    Args:
        environment: The open environment.

    Attributes:
        commits: LMDB commits so far; a reader that caches a view compares it to know when to renew.
        transactions: Units applied so far.
        failed: The storage failure that stopped writing, if any.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._queue: SimpleQueue[WriteRequest | None] = SimpleQueue()
        self._closing = False
        self._unsynced = False
        self.commits = 0
        self.transactions = 0
        self.bytes_written = 0
        self.failed: ToonDBError | None = None
        self._thread = threading.Thread(target=self._run, name="toondb-writer", daemon=True)
        self._thread.start()

    def submit(self, request: WriteRequest) -> None:
        """Queue a request.

        Raises:
            DatabaseClosedError: The writer is closed.
        """
        if self._closing:
            raise DatabaseClosedError("the database is closing and takes no more writes.")
        self._queue.put(request)

    def close(self) -> None:
        """Apply what is queued, sync, and end the thread. Idempotent."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        self._thread.join()

    # The thread

    def _run(self) -> None:
        stop = False
        while not stop:
            batch: list[WriteRequest] = []
            try:
                first = self._queue.get(timeout=_FLUSH_SECONDS if self._unsynced else _TIDY_SECONDS)
            except Empty:
                self._tidy()
                continue
            with contextlib.suppress(Empty):
                request: WriteRequest | None = first
                while True:
                    if request is None:
                        stop = True
                        break
                    batch.append(request)
                    if len(batch) >= _MAX_REQUESTS_PER_BATCH:
                        break
                    request = self._queue.get_nowait()
            if batch:
                self._commit(batch)
        # A submitter that passed the closing check just before it was set.
        with contextlib.suppress(Empty):
            while True:
                late = self._queue.get_nowait()
                if late is not None:
                    self._commit([late])
        with contextlib.suppress(lmdb.Error):
            self._environment.lmdb.sync(True)

    def _tidy(self) -> None:
        """Bound what power loss can cost in the lazy modes, and clear reader slots of killed processes."""
        with contextlib.suppress(lmdb.Error):
            if self._unsynced:
                self._environment.lmdb.sync(True)
                self._unsynced = False
            else:
                self._environment.lmdb.reader_check()

    def _commit(self, batch: list[WriteRequest]) -> None:
        error = self._try(batch)
        if isinstance(error, StorageFullError) and sum(len(request.units) for request in batch) > 1:
            # One large write must not take the others down with it.
            self._replay(batch)
        elif error is not None:
            for request in batch:
                request.results = [error] * len(request.units)
        for request in batch:
            request.on_done(request)

    def _replay(self, batch: list[WriteRequest]) -> None:
        for request in batch:
            results: list[int | ToonDBError] = []
            for unit in request.units:
                single = WriteRequest([unit], request.on_done)
                error = self._try([single])
                results.append(error if error is not None else single.results[0])
            request.results = results

    def _try(self, batch: list[WriteRequest]) -> ToonDBError | None:
        """Apply a batch in one LMDB transaction; the error when nothing of it was kept."""
        if self.failed is not None:
            return self.failed
        environment = self._environment
        try:
            txn = environment.lmdb.begin(write=True)
            try:
                before = lsn = read_lsn(environment, txn)
                checkpoint = False
                for request in batch:
                    lsn = self._apply(txn, request, lsn)
                    checkpoint = checkpoint or any(type(unit) is Checkpoint for unit in request.units)
                if lsn != before:
                    txn.put(META_LSN, _pack_lsn(lsn), db=environment.meta)
                    txn.commit()
                else:
                    txn.abort()
            except BaseException:
                with contextlib.suppress(lmdb.Error):
                    txn.abort()
                raise
            if lsn != before:
                self.commits += 1
                self.transactions += lsn - before
                self._unsynced = environment.sync_mode is not SyncMode.FULL
            if checkpoint and self._unsynced:
                environment.lmdb.sync(True)
                self._unsynced = False
        except lmdb.Error as error:
            return self._storage_failed(storage_error(error, "committing"))
        except Exception as error:
            # A defect must answer its submitters; swallowing it here would hang them.
            return InternalError(f"the writer failed: {type(error).__name__}: {error}")
        return None

    def _storage_failed(self, error: ToonDBError) -> ToonDBError:
        if isinstance(error, StorageError) and not isinstance(error, StorageFullError):
            # After a failed sync the kernel may have dropped dirty pages, so a later sync that succeeds
            # would prove nothing. Refuse writes until a restart re-reads the device.
            self.failed = error
        return error

    def _apply(self, txn: Any, request: WriteRequest, lsn: int) -> int:
        database = self._environment.kv
        put = txn.put
        results: list[int | ToonDBError] = []
        written = 0
        for unit in request.units:
            if type(unit) is tuple:
                key, value = unit
                if value is not None:
                    lsn += 1
                    put(key, encode_record(key, value, lsn), db=database)
                    written += len(value)
                elif txn.delete(key, db=database):
                    lsn += 1
                results.append(lsn)
            else:
                try:
                    lsn = unit.apply(txn, lsn)  # type: ignore[union-attr]
                    results.append(lsn)
                except ToonDBError as error:
                    results.append(error)
        request.results = results
        self.bytes_written += written
        return lsn
