"""The sync client."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NoReturn, TypeVar

from toondb_protocol.arguments import ScanRange, wait_seconds, whole_number
from toondb_protocol.backoff import Patience, conflict_delays
from toondb_protocol.changes import Change
from toondb_protocol.client_core import ReplyFrame
from toondb_protocol.errors import (
    ConfigurationError,
    ConnectionLostError,
    DatabaseClosedError,
    ForkedProcessError,
    ProtocolError,
    ToonDBError,
    TransactionClosedError,
    TransactionConflictError,
    TransactionError,
    TransactionOutcomeUnknownError,
    ValidationError,
)
from toondb_protocol.hello import ServerHello
from toondb_protocol.keys import KeyLike, as_prefix, prefix_end
from toondb_protocol.own_lock import OwnLock
from toondb_protocol.rows import Row

from . import calls, forks
from .connection import LostBeforeSending, SyncConnection
from .direct import DirectReader
from .pipeline import Pipeline
from .pool import SyncPool
from .store import SyncStore
from .target import socket_path

__all__ = ["IpcClient", "Transaction", "check_options", "lost_step", "lost_write"]

T = TypeVar("T")


def check_options(
    timeout: float, max_connections: int, reconnect_timeout: float, retry_writes: bool, direct_reads: bool
) -> None:
    """Check what ``connect`` was given.

    Raises:
        ConfigurationError: Something of it cannot be.
    """
    for name, seconds in (("timeout", timeout), ("reconnect_timeout", reconnect_timeout)):
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
            raise ConfigurationError(f"{name} is a positive number of seconds, got {seconds!r}.")
    if isinstance(max_connections, bool) or not isinstance(max_connections, int) or max_connections < 1:
        raise ConfigurationError(f"max_connections must be at least 1, got {max_connections!r}.")
    for name, switch in (("retry_writes", retry_writes), ("direct_reads", direct_reads)):
        if not isinstance(switch, bool):
            raise ConfigurationError(f"{name} is True or False, got {switch!r}.")


def lost_write(error: ConnectionLostError) -> ConnectionLostError:
    """The same loss for a request that changes data: it may have been applied."""
    return ConnectionLostError(
        f"{error.message} The write may or may not have been applied.",
        remediation="Read it back before you write it again, or allow repeats with retry_writes=True.",
        details={**error.details, "maybe_applied": True},
    )


def lost_step(error: Exception, loss: calls.Loss) -> ConnectionLostError:
    """The error for an operation that lost its connection at a step."""
    if loss is calls.Loss.UNKNOWN and isinstance(error, ConnectionLostError):
        return lost_write(error)
    return ConnectionLostError(
        "the connection was lost on the way; nothing was applied.", details={"maybe_applied": False}
    )


class IpcClient(SyncStore):
    """A client of a ToonDB daemon on this machine. Safe to share between threads.

    Make one with :meth:`connect` and keep it for the life of the process. In a forked child it drops the
    inherited sockets and connects anew.
    """

    def __init__(self, pool: SyncPool, hello: ServerHello, *, retry_writes: bool, direct: DirectReader | None) -> None:
        self._pool = pool
        self._retry_writes = retry_writes
        self._direct = direct
        self.server = hello
        forks.reset_in_child(self)

    def _reset_in_child(self) -> None:
        """In a forked child: read through the socket, because LMDB cannot open the parent's file again."""
        self._direct = None

    @classmethod
    def connect(
        cls,
        target: str | os.PathLike[str],
        *,
        timeout: float = 30.0,
        max_connections: int = 32,
        reconnect_timeout: float = 5.0,
        retry_writes: bool = False,
        direct_reads: bool = False,
    ) -> IpcClient:
        """Connect to a daemon.

        Args:
            target: Socket path, ``toondb+unix://`` URL, or the database folder.
            timeout: Seconds that one call may take in all.
            max_connections: Connections at the most; each open transaction, scan or concurrent call uses one.
            reconnect_timeout: Seconds during which a lost server is tried again before a call fails.
            retry_writes: Also send single writes again when the connection was lost before their reply. Such
                a write may then be applied twice, around another client's write to the same key.
            direct_reads: Serve reads outside transactions from the database file (needs permission on its
                files); writes go through the daemon, and a read after an acknowledged write sees it.

        Raises:
            ConnectionError: Nothing listens there, or this user may not connect.
            ConfigurationError: The target or an option cannot be.
            ProtocolError: What listens there is not a ToonDB server of this protocol version.
        """
        path = socket_path(target)
        check_options(timeout, max_connections, reconnect_timeout, retry_writes, direct_reads)
        pool = SyncPool(path, float(timeout), max_connections, float(reconnect_timeout))
        connection = pool.first()
        try:
            direct = DirectReader(connection.hello) if direct_reads else None
        except BaseException:
            connection.close()
            raise
        client = cls(pool, connection.hello, retry_writes=retry_writes, direct=direct)
        pool.release(connection)
        return client

    # Plumbing

    @property
    def _max_frame(self) -> int:
        return self.server.max_frame

    def _call(self, call: calls.Call) -> Any:
        return call.decode(self._on_connection(lambda c: c.roundtrip(call.frame), retry=call.retry))

    def _exchange(self, frames: list[bytes]) -> list[ReplyFrame]:
        return self._on_connection(lambda c: c.exchange(frames), retry=False)

    def _on_connection(self, action: Callable[[SyncConnection], T], *, retry: bool) -> T:
        """Run ``action`` on a connection, again when that is safe, within the timeout."""
        result, connection = self._hold(action, retry=retry)
        self._pool.release(connection)
        return result

    def _hold(self, action: Callable[[SyncConnection], T], *, retry: bool) -> tuple[T, SyncConnection]:
        """Like :meth:`_on_connection`, but the connection stays with the caller on success."""
        pool = self._pool
        deadline = time.monotonic() + pool.timeout
        patience: Patience | None = None
        while True:
            connection = pool.acquire(deadline)
            try:
                return action(connection), connection
            except (LostBeforeSending, ConnectionLostError) as error:
                # The server was restarted since: its other idle connections are dead as well.
                pool.discard(connection)
                pool.drop_idle()
                if isinstance(error, ConnectionLostError) and not (retry or self._retry_writes):
                    raise lost_write(error) from None
                patience = patience or Patience(deadline, pool.reconnect_timeout)
                delay = patience.next_delay(time.monotonic())
                if delay is None:
                    raise ConnectionLostError("the server kept closing the connection.") from None
                time.sleep(delay)
            except ValidationError:
                pool.release(connection)  # refused before anything was sent
                raise
            except BaseException:
                pool.discard(connection)
                raise

    def _run(self, operation: calls.Operation[T]) -> T:
        """Run an operation of several steps on one connection."""
        pool = self._pool
        deadline = time.monotonic() + pool.timeout
        patience: Patience | None = None
        connection: SyncConnection | None = None
        try:
            step = next(operation)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        while True:
            if connection is None:
                connection = pool.acquire(deadline)
            try:
                replies = connection.exchange(step.frames)
            except (LostBeforeSending, ConnectionLostError) as error:
                pool.discard(connection)
                pool.drop_idle()
                connection = None
                patience = patience or Patience(deadline, pool.reconnect_timeout)
                delay = patience.next_delay(time.monotonic()) if step.loss is calls.Loss.AGAIN else None
                if delay is None:
                    raise lost_step(error, step.loss) from None
                time.sleep(delay)
                continue
            except BaseException:
                # Also when nothing was sent: a transaction that this operation began ends with its connection.
                pool.discard(connection)
                raise
            try:
                step = operation.send(replies)
            except StopIteration as stop:
                pool.release(connection)
                return stop.value  # type: ignore[no-any-return]
            except ProtocolError:
                pool.discard(connection)
                raise
            except ToonDBError:
                pool.release(connection)  # an answer of the server leaves it usable
                raise
            except BaseException:
                pool.discard(connection)
                raise

    def _scan(self, scan: ScanRange) -> Iterator[Row]:
        if self._direct is not None:
            return self._direct.scan(scan)
        return super()._scan(scan)

    def _batches(self, call: calls.Call) -> Iterator[list[Any]]:
        # The first window may come from any connection; the cursor keeps that connection for this stream.
        reply, connection = self._hold(lambda c: c.roundtrip(call.frame), retry=call.retry)
        yield from _windows(reply, call, connection, self._pool)

    # Reads that can be served from the file

    def get(self, key: KeyLike) -> bytes | None:
        direct = self._direct
        if direct is not None:
            return direct.get(key)
        return super().get(key)

    def exists(self, key: KeyLike) -> bool:
        if self._direct is not None:
            return self._direct.exists(key)
        return super().exists(key)

    def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        if self._direct is not None:
            return self._direct.get_many(keys)
        return super().get_many(keys)

    # Server

    def ping(self) -> float:
        """The round-trip time to the server in seconds."""
        started = time.perf_counter()
        self._call(calls.ping())
        return time.perf_counter() - started

    def checkpoint(self) -> int:
        """Make everything committed so far durable, in any sync mode; answers the LSN."""
        lsn: int = self._call(calls.checkpoint())
        return lsn

    def stats(self) -> dict[str, Any]:
        """The counters of the server and its storage engine."""
        stats: dict[str, Any] = self._call(calls.stats())
        return stats

    def watch(
        self, prefix: KeyLike = b"", *, since_lsn: int | None = None, timeout: float | None = None
    ) -> Iterator[Change]:
        """The changes of the keys that start with ``prefix``, as they are committed.

        Args:
            prefix: Of the keys; empty = all.
            since_lsn: Begin with the changes after this commit; None = after now.
            timeout: End when no change came for so many seconds, 0 = with those that are there; None = never end.

        Yields:
            A :class:`Change` for each, in the order of the commits. The history is bounded: a watcher that lags too
            far behind is told.

        Raises:
            HistoryTrimmedError: The changes after ``since_lsn`` are no longer all there.
        """
        start = as_prefix(prefix)
        seconds = wait_seconds(timeout)
        if self.closed:
            raise DatabaseClosedError("the client is closed.", remediation="Connect again.")
        if since_lsn is None:
            lsn: int = self._call(calls.changes(None, start, None, 0)).lsn
        else:
            lsn = whole_number("since_lsn", since_lsn)
        return self._watch(lsn, start, prefix_end(start), seconds)

    def _watch(self, lsn: int, start: bytes, end: bytes | None, seconds: float | None) -> Iterator[Change]:
        patience = calls.WatchPatience(seconds, self._pool.timeout, time.monotonic)
        while not self.closed:
            try:
                page: calls.ChangesPage = self._call(calls.changes(lsn, start, end, patience.wait_ms()))
            except DatabaseClosedError:
                if self._pool.closed:
                    return
                raise
            lsn = page.lsn
            yield from page.changes
            if patience.over(bool(page.changes)):
                return

    def pipeline(self) -> Pipeline:
        """Gather requests and send them together; see :class:`Pipeline`."""
        return Pipeline(0, self._exchange)

    # Transactions

    def begin_transaction(self, isolation: str = "snapshot", *, read_only: bool = False) -> Transaction:
        """Begin a transaction; use it with ``with`` or end it by ``commit()`` or ``abort()``.

        Args:
            isolation: ``"snapshot"`` (first committer wins on written keys) or ``"serializable"`` (also
                whatever was read must be unchanged at commit).
            read_only: Refuse writes.
        """
        call = calls.begin(str(isolation), read_only=read_only)
        reply, connection = self._hold(lambda c: c.roundtrip(call.frame), retry=True)
        try:
            transaction_id = call.decode(reply)
        except ToonDBError:
            self._pool.release(connection)
            raise
        except BaseException:
            self._pool.discard(connection)  # the server has begun it
            raise
        return Transaction(self._pool, connection, transaction_id)

    transaction = begin_transaction

    def run_transaction(
        self,
        function: Callable[[Transaction], T],
        *,
        isolation: str = "snapshot",
        attempts: int = 20,
    ) -> T:
        """Call ``function(transaction)`` and commit; on conflict, again from the start.

        Args:
            function: Must be safe to call again. It may commit or abort the transaction itself.
            isolation: See :meth:`begin_transaction`.
            attempts: Tries at the most; then the conflict is raised.

        Returns:
            What the function returned.
        """
        waits = conflict_delays(attempts)
        while True:
            transaction = self.begin_transaction(isolation)
            try:
                with transaction:
                    return function(transaction)
            except TransactionConflictError:
                wait = next(waits, None)
                if wait is None:
                    raise
            time.sleep(wait)

    def commit(self, transaction: Transaction | int) -> int:
        """Commit a transaction given as the object or its id; answers the LSN."""
        return Transaction._find(self._pool, transaction).commit()

    def abort(self, transaction: Transaction | int) -> None:
        """Abort a transaction given as the object or its id."""
        Transaction._find(self._pool, transaction).abort()

    # End

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._pool.closed

    def close(self) -> None:
        """Close the connections. Idempotent; open transactions are aborted by the server.

        Calls and scans of other threads that are under way come to their end.
        """
        self._pool.close()
        Transaction._hang_up(self._pool)
        if self._direct is not None:
            self._direct.close()

    def __enter__(self) -> IpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an IpcClient cannot be pickled; send its socket path and connect there")

    def __repr__(self) -> str:
        return f"<IpcClient {self._pool.path}{' closed' if self.closed else ''}>"


def _windows(reply: ReplyFrame, call: calls.Call, connection: SyncConnection, pool: SyncPool) -> Iterator[list[Any]]:
    """The batches of a stream that owns its connection until it ends."""
    generation = forks.generation()
    cursor: int | None = None
    window_bytes = calls.FIRST_WINDOW
    try:
        while True:
            window: calls.Window = call.decode(reply)
            cursor = window.cursor
            yield from window.batches
            if cursor is None:
                return
            if forks.generation() != generation:
                raise ForkedProcessError("this scan was started by the parent process.", remediation="Scan again.")
            window_bytes = min(calls.LAST_WINDOW, window_bytes * 4)
            call = calls.scan_next(0, cursor, window_bytes, call.decode)
            cursor = None
            try:
                reply = connection.roundtrip(call.frame)
            except LostBeforeSending:
                raise ConnectionLostError("the server closed the connection during the scan.") from None
    finally:
        if forks.generation() == generation:
            if cursor is not None:
                try:
                    connection.roundtrip(calls.scan_close(0, cursor).frame)
                except (ToonDBError, LostBeforeSending):
                    connection.close()
            pool.give_back(connection)


class Transaction(SyncStore):
    """A transaction of an :class:`IpcClient`: a snapshot of when it began, with its own writes over it.

    It keeps one connection until it ends. With ``with`` it commits when the block ends and aborts when it
    raises. After its end every call raises ``TransactionError``.
    """

    _open: ClassVar[weakref.WeakValueDictionary[tuple[int, int], Transaction]] = weakref.WeakValueDictionary()

    def __init__(self, pool: SyncPool, connection: SyncConnection, transaction_id: int) -> None:
        self._pool = pool
        self._txn = transaction_id
        self._generation = forks.generation()
        self._lock = OwnLock()
        self._ended = ""
        self._failure = ""
        # Last: who has it gives it back, also when Ctrl-C cuts this short.
        self._connection: SyncConnection | None = connection
        self._open[id(pool), transaction_id] = self

    @classmethod
    def _find(cls, pool: SyncPool, transaction: Transaction | int) -> Transaction:
        """The transaction that an object or id means."""
        if isinstance(transaction, Transaction):
            return transaction
        if isinstance(transaction, bool) or not isinstance(transaction, int):
            raise ValidationError(f"a transaction or its id is needed, got {transaction!r:.60}.")
        found = cls._open.get((id(pool), transaction))
        if found is None:
            raise TransactionClosedError(f"transaction {transaction!r} is not open here.")
        return found

    @classmethod
    def _hang_up(cls, pool: SyncPool) -> None:
        """Let the server abort the open transactions of a pool. Safe while other threads use them."""
        for reference in cls._open.valuerefs():
            transaction = reference()
            if transaction is None or transaction._pool is not pool or transaction._generation != forks.generation():
                continue
            connection = transaction._connection
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    @property
    def id(self) -> int:
        """The id that the server gave it."""
        return self._txn

    @property
    def active(self) -> bool:
        """Whether it can still be used."""
        return self._connection is not None

    @property
    def _max_frame(self) -> int:
        return self._check().hello.max_frame

    def _check_caller(self) -> None:
        # Before the lock, which a thread of the parent may have held.
        if self._generation != forks.generation():
            raise ForkedProcessError("this transaction was begun by the parent process.")
        if self._lock.mine:
            # In a signal handler or finalizer: its reply would be taken for that of the call.
            raise TransactionError("a transaction cannot be used inside a call of it.")

    def _check(self) -> SyncConnection:
        if self._connection is None:
            if self._failure:
                raise TransactionError(self._failure, remediation="Run it again.")
            raise TransactionClosedError(f"transaction {self._txn} is already {self._ended}.")
        return self._connection

    def _exchange(self, frames: list[bytes]) -> list[ReplyFrame]:
        self._check_caller()
        with self._lock.held:
            connection = self._check()
            try:
                if len(frames) == 1:
                    return [connection.roundtrip(frames[0])]
                return connection.exchange(frames)
            except ValidationError:
                raise  # refused before anything was sent
            except BaseException as error:
                self._end("lost")
                if isinstance(error, (LostBeforeSending, ConnectionLostError)):
                    raise TransactionError(self._failure, remediation="Run it again.") from None
                raise

    def _call(self, call: calls.Call) -> Any:
        return call.decode(self._exchange([call.frame])[0])

    def _run(self, operation: calls.Operation[T]) -> T:
        try:
            step = next(operation)
            while True:
                step = operation.send(self._exchange(step.frames))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _batches(self, call: calls.Call) -> Iterator[list[Any]]:
        window_bytes = calls.FIRST_WINDOW
        cursor: int | None = None
        try:
            while True:
                window: calls.Window = self._call(call)
                cursor = window.cursor
                yield from window.batches
                if cursor is None:
                    return
                window_bytes = min(calls.LAST_WINDOW, window_bytes * 4)
                call = calls.scan_next(self._txn, cursor, window_bytes, call.decode)
                cursor = None
        finally:
            if cursor is not None and self._generation == forks.generation():
                self._close_cursor(cursor)

    def _close_cursor(self, cursor: int) -> None:
        # This may run in the garbage collector, in the middle of a call of this very transaction. The cursor
        # then waits for the end of the transaction, which drops it.
        def close() -> None:
            try:
                if self._connection is not None:
                    self._connection.roundtrip(calls.scan_close(self._txn, cursor).frame)
            except (ToonDBError, LostBeforeSending):
                self._end("lost")

        self._lock.if_free(close)

    def pipeline(self) -> Pipeline:
        """Gather requests inside this transaction and send them together."""
        return Pipeline(self._txn, self._exchange)

    def commit(self) -> int:
        """Commit.

        Returns:
            The LSN of the commit.

        Raises:
            TransactionConflictError: Another transaction committed first; nothing of this one was applied.
            TransactionOutcomeUnknownError: The server was lost before it answered.
        """
        self._check_caller()
        with self._lock.held:
            connection = self._check()
            call = calls.commit(self._txn)
            try:
                reply = connection.roundtrip(call.frame)
            except LostBeforeSending:
                self._end("lost")
                raise TransactionError(self._failure, remediation="Run it again.") from None
            except ToonDBError as error:
                self._end("sent for commit, with an unknown outcome", usable=False)
                raise TransactionOutcomeUnknownError(
                    f"the outcome of the commit of transaction {self._txn} is unknown: {error.message}"
                ) from None
            except BaseException:
                self._end("lost")
                raise
            try:
                lsn: int = call.decode(reply)
            except BaseException:
                self._end("aborted")
                raise
            self._end("committed")
            return lsn

    def abort(self) -> None:
        """End it without applying anything. No error when it was aborted already."""
        self._check_caller()
        with self._lock.held:
            if self._connection is None and self._ended != "committed":
                return
            connection = self._check()
            try:
                connection.roundtrip(calls.abort(self._txn).frame)
            except (ToonDBError, LostBeforeSending):
                self._end("aborted", usable=False)  # with its connection
                return
            except BaseException:
                self._end("lost")
                raise
            self._end("aborted")

    def _end(self, how: str, *, usable: bool = True) -> None:
        """Note the end: ``committed``, ``aborted`` or ``lost``, which is an abort that nobody asked for."""
        connection, self._connection = self._connection, None
        self._ended = "aborted" if how == "lost" else how
        if how == "lost":
            self._failure = f"the connection of transaction {self._txn} was lost; the server has aborted it."
        if self._open.get((id(self._pool), self._txn)) is self:  # a restarted server gives the same ids again
            del self._open[id(self._pool), self._txn]
        if connection is not None:
            if how == "lost" or not usable:
                self._pool.discard(connection)
            else:
                self._pool.release(connection)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None:
            # One that was lost must not look committed because the block went on after the error.
            if self.active or self._failure:
                self.commit()
            return
        if not self.active:
            return
        try:
            self.abort()
        except ToonDBError:
            pass  # the caller's exception matters more, and the server aborts what is lost

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None and self._generation == forks.generation():
            self._pool.discard(connection)
            warnings.warn(f"transaction {self._txn} was neither committed nor aborted", ResourceWarning, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a transaction cannot be pickled or copied")

    def __repr__(self) -> str:
        return f"<Transaction {self._txn} {'active' if self.active else self._ended}>"
