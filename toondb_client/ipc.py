"""The sync client."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

from toondb_protocol.client_core import ReplyFrame
from toondb_protocol.errors import (
    ConnectionLostError,
    ForkedProcessError,
    OperationTimeoutError,
    ToonDBError,
    TransactionClosedError,
    TransactionConflictError,
    TransactionError,
    TransactionOutcomeUnknownError,
    ValidationError,
)
from toondb_protocol.hello import ServerHello
from toondb_protocol.keys import KeyLike

from . import calls, forks
from .backoff import delays
from .connection import LostBeforeSending, SyncConnection
from .direct import DirectReader
from .pipeline import Pipeline
from .pool import SyncPool
from .rows import Row, pair_rows
from .store import SyncStore
from .target import socket_path

__all__ = ["IpcClient", "Transaction", "check_timeout", "lost_write"]

T = TypeVar("T")


def check_timeout(name: str, value: float) -> float:
    """Return ``value`` when it is a positive number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ValidationError(f"{name} is a positive number of seconds, got {value!r}.")
    return float(value)


def lost_write(error: ConnectionLostError) -> ConnectionLostError:
    """The same loss for a request that changes data: it may have been applied."""
    return ConnectionLostError(
        f"{error.message} The write may or may not have been applied.",
        remediation="Read it back before you write it again, or allow repeats with retry_writes=True.",
        details={**error.details, "maybe_applied": True},
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
        if isinstance(max_connections, bool) or not isinstance(max_connections, int) or max_connections < 1:
            raise ValidationError(f"max_connections must be at least 1, got {max_connections!r}.")
        pool = SyncPool(
            path,
            check_timeout("timeout", timeout),
            max_connections,
            check_timeout("reconnect_timeout", reconnect_timeout),
        )
        try:
            connection = pool.first()
        except LostBeforeSending:
            raise ConnectionLostError(f"the peer at {path} closed the connection at once.") from None
        try:
            direct = DirectReader(connection.hello) if direct_reads else None
        except BaseException:
            connection.close()
            raise
        client = cls(pool, connection.hello, retry_writes=retry_writes, direct=direct)
        pool.release(connection)
        return client

    # Plumbing

    def _call(self, call: calls.Call) -> Any:
        return call.decode(self._on_connection(lambda c: c.roundtrip(call.frame), retry=call.retry))

    def _exchange(self, frames: list[bytes]) -> list[ReplyFrame]:
        return self._on_connection(lambda c: c.exchange(frames), retry=False)

    def _on_connection(self, action: Callable[[SyncConnection], T], *, retry: bool) -> T:
        """Run ``action`` on a connection, again when that is safe, within the timeout."""
        pool = self._pool
        deadline = time.monotonic() + pool.timeout
        waits = delays()
        while True:
            connection = pool.acquire(deadline)
            try:
                result = action(connection)
            except LostBeforeSending:
                # The server was restarted since: its other idle connections are dead as well.
                pool.discard(connection)
                pool.drop_idle()
                if time.monotonic() >= deadline:
                    raise OperationTimeoutError("the server kept closing the connection.") from None
                time.sleep(next(waits))
                continue
            except ConnectionLostError as error:
                pool.discard(connection)
                pool.drop_idle()
                delay = next(waits)
                if not (retry or self._retry_writes):
                    raise lost_write(error) from None
                if time.monotonic() + delay >= deadline:
                    raise
                time.sleep(delay)
                continue
            except ValidationError:
                pool.release(connection)  # refused before anything was sent
                raise
            except BaseException:
                pool.discard(connection)
                raise
            pool.release(connection)
            return result

    def _run(self, operation: calls.Operation[T]) -> T:
        """Run an operation of several steps on one connection. Its first step begins it: not sent again later."""
        pool = self._pool
        deadline = time.monotonic() + pool.timeout
        try:
            frames = next(operation)
        except StopIteration as stop:
            result: T = stop.value
            return result
        for _ in range(pool.max_connections + 1):
            connection = pool.acquire(deadline)
            try:
                replies = connection.exchange(frames)
            except LostBeforeSending:
                pool.discard(connection)
                continue
            except ValidationError:
                pool.release(connection)  # refused before anything was sent
                raise
            except BaseException:
                pool.discard(connection)
                raise
            return _drive(operation, connection, pool, replies)
        raise ConnectionLostError("the server kept closing the connection.")

    def _scan(self, scan: calls.ScanRange) -> Iterator[Row]:
        if self._direct is not None:
            return self._direct.scan(scan)
        return self._scan_windows(scan)

    def _scan_windows(self, scan: calls.ScanRange) -> Iterator[Row]:
        pool = self._pool
        call = calls.scan_start(0, scan, calls.FIRST_WINDOW)
        # The first window may come from any connection; the cursor keeps that connection for this scan.
        held: list[SyncConnection] = []

        def first(connection: SyncConnection) -> ReplyFrame:
            reply = connection.roundtrip(call.frame)
            held.append(connection)
            return reply

        reply = self._hold(first)
        connection = held[-1]
        yield from _windows(reply, call, connection, pool)

    def _hold(self, action: Callable[[SyncConnection], T]) -> T:
        """Like :meth:`_on_connection` for a read, but the connection stays with the caller on success."""
        pool = self._pool
        deadline = time.monotonic() + pool.timeout
        waits = delays()
        while True:
            connection = pool.acquire(deadline)
            try:
                return action(connection)
            except (LostBeforeSending, ConnectionLostError) as error:
                pool.discard(connection)
                pool.drop_idle()
                if time.monotonic() >= deadline:
                    raise ConnectionLostError("the server kept closing the connection.") from error
                time.sleep(next(waits))
            except ValidationError:
                pool.release(connection)  # refused before anything was sent
                raise
            except BaseException:
                pool.discard(connection)
                raise

    # Reads that can be served from the file

    def get(self, key: KeyLike) -> bytes | None:
        """The value of a key; None when there is none (an empty value is ``b""``)."""
        if self._direct is not None:
            return self._direct.get(key)
        return super().get(key)

    def exists(self, key: KeyLike) -> bool:
        """Whether a key exists, without moving its value."""
        if self._direct is not None:
            return self._direct.exists(key)
        return super().exists(key)

    def get_many(self, keys: Any) -> dict[Any, bytes]:
        """The values of those keys that exist, by the key as given, in the order given."""
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
        held: list[SyncConnection] = []

        def first(connection: SyncConnection) -> ReplyFrame:
            reply = connection.roundtrip(call.frame)
            held.append(connection)
            return reply

        reply = self._hold(first)
        try:
            return Transaction(self._pool, held[-1], call.decode(reply))
        except ToonDBError:
            self._pool.release(held[-1])
            raise

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
        waits = delays(0.001, 0.1)
        for attempt in range(1, attempts + 1):
            transaction = self.begin_transaction(isolation)
            try:
                with transaction:
                    result = function(transaction)
            except TransactionConflictError:
                if attempt >= attempts:
                    raise
                time.sleep(next(waits))
                continue
            return result
        raise ValidationError(f"attempts must be at least 1, got {attempts!r}.")

    def commit(self, transaction: Transaction | int) -> int:
        """Commit a transaction given as the object or its id; answers the LSN."""
        return Transaction.find(self._pool, transaction).commit()

    def abort(self, transaction: Transaction | int) -> None:
        """Abort a transaction given as the object or its id."""
        Transaction.find(self._pool, transaction).abort()

    # End

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._pool.closed

    def close(self) -> None:
        """Close the connections. Idempotent; open transactions are aborted by the server."""
        self._pool.close()
        if self._direct is not None:
            self._direct.close()

    def __enter__(self) -> IpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<IpcClient {self._pool.path}{' closed' if self.closed else ''}>"


def _drive(operation: calls.Operation[T], connection: SyncConnection, pool: SyncPool, replies: list[ReplyFrame]) -> T:
    try:
        while True:
            replies = connection.exchange(operation.send(replies))
    except StopIteration as stop:
        pool.release(connection)
        result: T = stop.value
        return result
    except LostBeforeSending:
        pool.discard(connection)
        raise ConnectionLostError("the server closed the connection between two steps; nothing was applied.") from None
    except ConnectionLostError as error:
        pool.discard(connection)
        raise lost_write(error) from None
    except ToonDBError as error:
        # An answer of the server leaves the connection usable; a time-out does not, and it is not clean then.
        if isinstance(error, OperationTimeoutError):
            pool.discard(connection)
        else:
            pool.release(connection)
        raise
    except BaseException:
        pool.discard(connection)
        raise


def _windows(reply: ReplyFrame, call: calls.Call, connection: SyncConnection, pool: SyncPool) -> Iterator[Row]:
    """The rows of a scan that owns its connection until it ends."""
    generation = forks.generation()
    cursor: int | None = None
    window_bytes = calls.FIRST_WINDOW
    try:
        while True:
            window: calls.Window = call.decode(reply)
            cursor = window.cursor
            for batch in window.batches:
                yield from pair_rows(batch)
            if cursor is None:
                return
            if forks.generation() != generation:
                raise ForkedProcessError("this scan was started by the parent process.", remediation="Scan again.")
            window_bytes = min(calls.LAST_WINDOW, window_bytes * 4)
            call = calls.scan_next(0, cursor, window_bytes)
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
        self._connection: SyncConnection | None = connection
        self._txn = transaction_id
        self._generation = forks.generation()
        self._lock = threading.RLock()
        self._ended = ""
        self._failure: ToonDBError | None = None
        self._open[id(pool), transaction_id] = self

    @classmethod
    def find(cls, pool: SyncPool, transaction: Transaction | int) -> Transaction:
        """The transaction that an object or id means."""
        if isinstance(transaction, Transaction):
            return transaction
        found = cls._open.get((id(pool), transaction)) if isinstance(transaction, int) else None
        if found is None:
            raise TransactionClosedError(f"transaction {transaction!r} is not open on this client.")
        return found

    @property
    def id(self) -> int:
        """The id that the server gave it."""
        return self._txn

    @property
    def active(self) -> bool:
        """Whether it can still be used."""
        return self._connection is not None

    def _check(self) -> SyncConnection:
        if self._generation != forks.generation():
            raise ForkedProcessError("this transaction was begun by the parent process.")
        if self._connection is None:
            if self._failure is not None:
                raise self._failure
            raise TransactionClosedError(f"transaction {self._txn} is already {self._ended}.")
        return self._connection

    def _exchange(self, frames: list[bytes]) -> list[ReplyFrame]:
        with self._lock:
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
                    self._failure = TransactionError(
                        f"the connection of transaction {self._txn} was lost; the server has aborted it.",
                        remediation="Run it again.",
                    )
                    raise self._failure from None
                raise

    def _call(self, call: calls.Call) -> Any:
        return call.decode(self._exchange([call.frame])[0])

    def _run(self, operation: calls.Operation[T]) -> T:
        try:
            frames = next(operation)
            while True:
                frames = operation.send(self._exchange(frames))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _scan(self, scan: calls.ScanRange) -> Iterator[Row]:
        call = calls.scan_start(self._txn, scan, calls.FIRST_WINDOW)
        window_bytes = calls.FIRST_WINDOW
        cursor: int | None = None
        try:
            while True:
                window: calls.Window = self._call(call)
                cursor = window.cursor
                for batch in window.batches:
                    yield from pair_rows(batch)
                if cursor is None:
                    return
                window_bytes = min(calls.LAST_WINDOW, window_bytes * 4)
                call = calls.scan_next(self._txn, cursor, window_bytes)
                cursor = None
        finally:
            if cursor is not None and self.active and self._generation == forks.generation():
                try:
                    self._call(calls.scan_close(self._txn, cursor))
                except ToonDBError:
                    pass  # the transaction is ending; the server drops its cursors with it

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
        with self._lock:
            connection = self._check()
            call = calls.commit(self._txn)
            try:
                reply = connection.roundtrip(call.frame)
            except LostBeforeSending:
                self._end("lost")
                raise TransactionError(
                    f"the connection of transaction {self._txn} was lost; the server has aborted it.",
                    remediation="Run it again.",
                ) from None
            except (ConnectionLostError, OperationTimeoutError) as error:
                self._end("lost")
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
        with self._lock:
            if self._connection is None and self._ended != "committed":
                return
            connection = self._check()
            try:
                connection.roundtrip(calls.abort(self._txn).frame)
            except (ConnectionLostError, LostBeforeSending, OperationTimeoutError):
                self._end("lost")
                return
            except BaseException:
                self._end("lost")
                raise
            self._end("aborted")

    def _end(self, how: str) -> None:
        connection, self._connection = self._connection, None
        self._ended = "aborted" if how == "lost" else how
        self._open.pop((id(self._pool), self._txn), None)
        if connection is not None:
            if how == "lost":
                self._pool.discard(connection)
            else:
                self._pool.release(connection)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if not self.active:
            return
        if exc_type is None:
            self.commit()
            return
        try:
            self.abort()
        except ToonDBError:
            pass  # the caller's exception matters more, and the server aborts what is lost

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None and self._generation == forks.generation():
            warnings.warn(f"transaction {self._txn} was neither committed nor aborted", ResourceWarning, stacklevel=2)
            self._pool.discard(connection)

    def __repr__(self) -> str:
        return f"<Transaction {self._txn} {'active' if self.active else self._ended}>"
