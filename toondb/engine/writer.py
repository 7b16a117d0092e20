"""Group commit: one thread writes, for everybody who waits.

It takes everything that is waiting, applies it in one LMDB transaction, commits (one sync of the device
for all of it) and then answers. While the device syncs, the next batch gathers; there is no delay to tune.
A caller that has nobody else to serve may commit by itself, in its turn (:meth:`Writer.commit_now`).
"""

from __future__ import annotations

import contextlib
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
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
from toondb_protocol.record import META_LSN

from .environment import Environment, disk_full, storage_error
from .options import SyncMode
from .snapshot import read_lsn
from .write_batch import RECLAIMED_AT_ONCE, Reclaim, WriteBatch

__all__ = ["Checkpoint", "Unit", "WriteRequest", "Writer"]

_pack_lsn = struct.Struct("<Q").pack
_MAX_REQUESTS_PER_BATCH = 1024
_TIDY_SECONDS = 5.0
_RECLAIM_SECONDS = 1.0
_FLUSH_SECONDS = 1.0


class CommitUnit(Protocol):
    """Something that is applied as one transaction. May be applied again after a failed batch.

    One that writes keys names them in an attribute ``written_keys``.
    """

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        """Write into the batch and return the LSN after it; raise ToonDBError to change nothing."""


class Checkpoint:
    """A unit that makes everything before it durable, whatever the sync mode."""

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        """Nothing to write; the writer syncs after the batch."""
        return lsn


Unit: TypeAlias = tuple[bytes, bytes | None] | CommitUnit
"""One transaction: a plain (key, value) write (value None deletes), or a unit that knows how to apply itself."""


class WriteRequest:
    """Units of one submitter, each a transaction of its own, applied in order.

    Args:
        units: What to apply.
        on_done: Called once on the writer thread when ``results`` is complete; must not block. What it raises goes
            to ``threading.excepthook`` and harms nobody else.

    Attributes:
        results: For each unit the LSN of its commit, or the error that says why it was not applied.
    """

    __slots__ = ("on_done", "results", "tag", "units")

    def __init__(self, units: list[Unit], on_done: Callable[[WriteRequest], None], tag: Any = None) -> None:
        self.units = units
        self.on_done = on_done
        self.results: list[int | ToonDBError] = []
        self.tag = tag


def _ignore(request: WriteRequest) -> None:
    """Nobody waits for this request."""


def _written_keys(units: list[Unit]) -> Iterator[bytes]:
    for unit in units:
        if type(unit) is tuple:
            yield unit[0]
        else:
            yield from getattr(unit, "written_keys", ())


class Writer:
    """The writer thread.

    A batch that cannot be kept as a whole (the store or disk is full, or a unit has a defect) is tried again in
    halves, down to single units, so that only those that cannot be kept are refused.

    When the device fails, nothing of the batch is kept, ``failed`` is set and every later write is refused with it:
    after a failed sync the kernel may have dropped dirty pages, so a later sync that succeeds would prove nothing.
    Reads go on.

    Args:
        environment: The open environment.

    Attributes:
        commits: LMDB commits so far.
        transactions: Units applied so far.
        on_commit: Each is called with the keys that a commit wrote (and perhaps others), after ``mark`` was replaced
            and before anybody is told; on the thread that commits. Must not raise or block.
        bytes_written: Bytes of the keys and values in them.
        failed: The storage failure that stopped writing, if any.
        lost: The failure to sync what had been acknowledged in a lazy sync mode, if any.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._queue: SimpleQueue[WriteRequest | None] = SimpleQueue()
        self._lock = threading.Lock()
        # Held by whoever commits: the writer thread, or a caller of commit_now.
        self._turn = threading.Lock()
        self._closing = False
        self._ended: ToonDBError | None = None
        self._taken: list[WriteRequest] = []
        self._reclaimed_at_once = RECLAIMED_AT_ONCE
        # A predecessor in another sync mode may have left commits that the device does not have.
        self._unsynced = True
        self.commits = 0
        self.transactions = 0
        self.bytes_written = 0
        self.on_commit: list[Callable[[Iterable[bytes]], None]] = []
        self.failed: ToonDBError | None = None
        self.lost: ToonDBError | None = None
        self._thread = threading.Thread(target=self._run, name="toondb-writer", daemon=True)
        self._thread.start()

    def submit(self, request: WriteRequest) -> None:
        """Queue a request.

        Raises:
            DatabaseClosedError: The writer is closed.
        """
        # The lock puts every accepted request before the end mark of close(): none is left unanswered.
        with self._lock:
            if self._closing:
                if self._ended is not None:
                    raise self._ended
                raise DatabaseClosedError("the database is closing and takes no more writes.")
            self._queue.put(request)

    def commit_now(self, units: list[Unit]) -> list[int | ToonDBError] | None:
        """Apply units on the calling thread when nothing else is being written; None when something is.

        It saves two hand-overs between threads, which cost a lone client about as much as a fast device does.
        The caller waits for the device, so it must have nobody else to serve.
        """
        if self._turn.locked() or self._comes_later():
            return None
        # By "with" and not by acquire(blocking=False): after Ctrl-C between that and its "try" nobody would ever have
        # a turn again. Whoever is quicker from now on is waited for.
        with self._turn:
            if self._comes_later():
                return None
            was_unsynced = self._unsynced
            try:
                results = self._results(units)
            except BaseException:
                # Ctrl-C, perhaps between the commit and what belongs to it: nobody may go on with an older view.
                self._unsynced = True
                self._announce_newest()
                self._queue.put(WriteRequest([], _ignore))
                raise
            if self._unsynced and not was_unsynced:
                # The thread sleeps until the next tidying; a request without units makes it look at the clock.
                self._queue.put(WriteRequest([], _ignore))
            return results

    def _comes_later(self) -> bool:
        # Requests that wait came first, also those that the thread has taken and not yet begun with.
        return self._closing or bool(self._taken) or not self._queue.empty()

    def _announce_newest(self) -> None:
        environment = self._environment
        with contextlib.suppress(ToonDBError, lmdb.Error):
            view = environment.begin_view()
            try:
                environment.announce(read_lsn(environment, view))
            finally:
                environment.end_view(view)

    def close(self) -> None:
        """Apply what is queued, sync, and end the thread. Idempotent."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._queue.put(None)
        self._thread.join()

    # The thread

    def _run(self) -> None:
        try:
            self._serve()
            with self._turn:
                if self._unsynced and self.failed is None:
                    self._sync()
        except BaseException as error:
            # A defect: whoever waits must hear of it, and nobody may wait from now on.
            self._give_up(InternalError(f"the writer ended: {type(error).__name__}: {error}"))
            raise

    def _serve(self) -> None:
        tidy_at = flush_at = reclaim_at = time.monotonic() + _FLUSH_SECONDS
        stop = False
        while not stop:
            wake_at = min(tidy_at, reclaim_at, flush_at if self._unsynced else tidy_at)
            stop = self._take(max(0.0, wake_at - time.monotonic()))
            if self._taken:
                was_unsynced = self._unsynced
                with self._turn:
                    self._commit(self._taken)
                self._taken = []
                if self._unsynced and not was_unsynced:
                    flush_at = time.monotonic() + _FLUSH_SECONDS
            # By the clock and not only when idle: a store that is never idle needs both just as much.
            now = time.monotonic()
            if self._unsynced and now >= flush_at:
                # In turn: a commit during the sync would be marked as synced with it.
                with self._turn:
                    if self._unsynced and self.failed is None:
                        self._sync()
                flush_at = now + _FLUSH_SECONDS
            if now >= reclaim_at and not stop:
                pause = self._reclaim()
                reclaim_at = time.monotonic() + pause
            if now >= tidy_at:
                # Reader slots of killed processes would keep old pages for ever.
                with contextlib.suppress(lmdb.Error):
                    self._environment.lmdb.reader_check()
                tidy_at = now + _TIDY_SECONDS

    def _reclaim(self) -> float:
        """Delete some of the records that have expired; in how many seconds to go on with it."""
        environment = self._environment
        try:
            view = environment.begin_view()
        except ToonDBError:
            return _TIDY_SECONDS
        try:
            expiring = environment.has_expiring(view)
        except lmdb.Error:
            return _TIDY_SECONDS
        finally:
            environment.end_view(view)
        if not expiring or self.failed is not None:
            return _TIDY_SECONDS
        began = time.monotonic()
        unit = Reclaim(self._reclaimed_at_once)
        with self._turn:
            result = self._results([unit])[0]
        if isinstance(result, ToonDBError):
            # A store that is full may have the room to delete a few, which makes room for more.
            if self._reclaimed_at_once > 1:
                self._reclaimed_at_once = max(1, self._reclaimed_at_once // 8)
                return 0.0
        elif unit.unfinished:
            # Those who wait get half of the time, not all of it: a store that is never idle would
            # keep for ever what has expired, which is as much as is put with a time to live.
            return 0.0 if self._queue.empty() else time.monotonic() - began
        self._reclaimed_at_once = RECLAIMED_AT_ONCE
        return _RECLAIM_SECONDS

    def _take(self, timeout: float) -> bool:
        """Take what is waiting, or wait for something; whether the end mark was met."""
        with contextlib.suppress(Empty):
            request = self._queue.get(timeout=timeout)
            while request is not None:
                self._taken.append(request)
                if len(self._taken) >= _MAX_REQUESTS_PER_BATCH:
                    return False
                request = self._queue.get_nowait()
            return True
        return False

    def _give_up(self, error: ToonDBError) -> None:
        with self._lock:
            self._closing = True
        self.failed = self.failed or error
        self._ended = error
        with contextlib.suppress(Empty):
            while True:
                request = self._queue.get_nowait()
                if request is not None:
                    self._taken.append(request)
        for request in self._taken:
            # One that was answered already has its results.
            if len(request.results) != len(request.units):
                request.results = [error] * len(request.units)
                self._answer(request)

    def _commit(self, batch: list[WriteRequest]) -> None:
        if len(batch) == 1:
            batch[0].results = self._results(batch[0].units)
        else:
            results = self._results([unit for request in batch for unit in request.units])
            at = 0
            for request in batch:
                end = at + len(request.units)
                request.results = results[at:end]
                at = end
        for request in batch:
            self._answer(request)

    def _answer(self, request: WriteRequest) -> None:
        try:
            request.on_done(request)
        except BaseException:
            # The defect is one submitter's; the writer must live on for the others.
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    def _results(self, units: list[Unit]) -> list[int | ToonDBError]:
        """Apply units in order, in one commit if possible; the result of each."""
        results, error = self._try(units)
        if error is None:
            return results
        if len(units) == 1 or self.failed is not None:
            return [error] * len(units)
        half = len(units) // 2
        return self._results(units[:half]) + self._results(units[half:])

    def _try(self, units: list[Unit]) -> tuple[list[int | ToonDBError], ToonDBError | None]:
        """Apply units in one LMDB transaction: their results, or the error when nothing of them was kept."""
        if self.failed is not None:
            return [], self.failed
        environment = self._environment
        results: list[int | ToonDBError] = []
        batch: WriteBatch | None = None
        before_view: Any = None
        try:
            environment.begin_turn()
            txn = environment.lmdb.begin(write=True)
            try:
                before = read_lsn(environment, txn)
                batch = WriteBatch(environment, txn)
                lsn, checkpoint = self._apply(batch, units, before, results)
                if lsn != before:
                    batch.finish()
                    txn.put(META_LSN, _pack_lsn(lsn), db=environment.meta)
                    # If LMDB fails to write its root page it refuses every new transaction, also for reading:
                    # this one stays then. It pins nothing that the commit could reuse.
                    with contextlib.suppress(lmdb.Error):
                        before_view = environment.lmdb.begin(environment.kv)
                    txn.commit()
                else:
                    txn.abort()
            except BaseException:
                with contextlib.suppress(lmdb.Error):
                    txn.abort()
                raise
        except lmdb.Error as error:
            return [], self._not_committed(error, before_view, batch.written if batch is not None else 0)
        except Exception as error:
            # A defect must answer its submitters; swallowing it here would hang them.
            return [], InternalError(f"the writer failed: {type(error).__name__}: {error}")
        finally:
            environment.end_turn()
            if before_view is not None:
                environment.end_view(before_view)
        if lsn != before:
            self.commits += 1
            self.transactions += lsn - before
            self.bytes_written += batch.written
            self._unsynced = environment.sync_mode is not SyncMode.FULL
            environment.announce(lsn)
            for listener in self.on_commit:
                listener(_written_keys(units))
        # Another process may write in a lazier mode than this one.
        if checkpoint and (self._unsynced or environment.shared):
            failure = self._sync()
            if failure is not None:
                # The commit stands; only the promise that it is on the device cannot be given.
                return [
                    failure if type(unit) is Checkpoint else r for unit, r in zip(units, results, strict=True)
                ], None
        return results, None

    def _apply(
        self, batch: WriteBatch, units: list[Unit], lsn: int, results: list[int | ToonDBError]
    ) -> tuple[int, bool]:
        """Apply units and append their results; the LSN after them, and whether one is a checkpoint."""
        put, delete = batch.put, batch.delete
        checkpoint = False
        for unit in units:
            if type(unit) is tuple:
                key, value = unit
                if value is not None:
                    lsn += 1
                    put(key, value, lsn)
                else:
                    lsn += delete(key, lsn + 1)
                results.append(lsn)
            else:
                checkpoint = checkpoint or type(unit) is Checkpoint
                try:
                    lsn = unit.apply(batch, lsn)  # type: ignore[union-attr]
                except ToonDBError as error:
                    results.append(error)
                else:
                    results.append(lsn)
        return lsn, checkpoint

    # Failures

    def _not_committed(self, error: lmdb.Error, before_view: Any, written: int) -> ToonDBError:
        environment = self._environment
        failure = storage_error(error, "committing")
        if self._refuses_all():
            environment.last_view = before_view
            failure = StorageError(f"the storage failed: {error} while writing the root page.")
        elif type(failure) is StorageError and not environment.has_room(2 * written):
            failure = disk_full(str(error), "committing")
        if isinstance(failure, StorageError) and not isinstance(failure, StorageFullError):
            self.failed = failure
        return failure

    def _refuses_all(self) -> bool:
        try:
            self._environment.lmdb.begin().abort()
        except lmdb.PanicError:
            return True
        except lmdb.Error:
            pass
        return False

    def _sync(self) -> ToonDBError | None:
        """Make what was committed in a lazy mode durable; the failure to do so."""
        try:
            self._environment.lmdb.sync(True)
        except lmdb.Error as error:
            self.failed = self.lost = StorageError(
                f"the storage failed: {error} while syncing; what was written since the last sync may not survive "
                "power loss."
            )
            return self.failed
        self._unsynced = False
        return None
