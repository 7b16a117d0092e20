"""The async client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, ClassVar, NoReturn, TypeVar

from toondb_protocol.arguments import ScanRange, wait_seconds, whole_number
from toondb_protocol.backoff import Patience, conflict_delays
from toondb_protocol.changes import Change
from toondb_protocol.client_core import ReplyFrame
from toondb_protocol.errors import (
    ConnectionError,
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
from toondb_protocol.rows import Row

from . import calls, forks
from .aio_connection import AsyncConnection
from .aio_pool import AsyncPool
from .aio_store import AsyncStore
from .connection import LostBeforeSending
from .direct import DirectReader
from .ipc import check_options, lost_step, lost_write
from .pipeline import AsyncPipeline
from .target import socket_path

__all__ = ["AsyncIpcClient", "AsyncTransaction"]

T = TypeVar("T")

_ROWS_PER_TURN = 1024


class AsyncIpcClient(AsyncStore):
    """An asyncio client of a ToonDB daemon on this machine. Any number of tasks of one event loop may share it.

    Make one with ``await AsyncIpcClient.connect(...)``. It cannot be used in a forked child.
    """

    def __init__(self, pool: AsyncPool, hello: ServerHello, *, retry_writes: bool, direct: DirectReader | None) -> None:
        self._pool = pool
        self._retry_writes = retry_writes
        self._direct = direct
        self._generation = forks.generation()
        self.server = hello
        forks.reset_in_child(self)

    def _reset_in_child(self) -> None:
        """In a forked child: nothing of it can be used, the environment of direct reads least of all."""
        self._direct = None

    @classmethod
    async def connect(
        cls,
        target: str | os.PathLike[str],
        *,
        timeout: float = 30.0,
        max_connections: int = 32,
        reconnect_timeout: float = 5.0,
        retry_writes: bool = False,
        direct_reads: bool = False,
    ) -> AsyncIpcClient:
        """Connect to a daemon; see :meth:`IpcClient.connect` for the arguments and errors."""
        path = socket_path(target)
        check_options(timeout, max_connections, reconnect_timeout, retry_writes, direct_reads)
        pool = AsyncPool(path, float(timeout), max_connections, float(reconnect_timeout))
        connection = await pool.first()
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

    def _check(self) -> None:
        if self._generation != forks.generation():
            raise ForkedProcessError("this client was connected by the parent process.")
        if asyncio.get_running_loop() is not self._pool.loop:
            raise ConnectionError(
                "this client belongs to another event loop.", remediation="Connect in this event loop."
            )

    async def _call(self, call: calls.Call) -> Any:
        return call.decode(await self._on_connection(lambda c: c.roundtrip(call.frame), retry=call.retry))

    async def _exchange(self, frames: list[bytes]) -> list[ReplyFrame]:
        return await self._on_connection(lambda c: c.exchange(frames), retry=False)

    async def _on_connection(self, action: Callable[[AsyncConnection], Awaitable[T]], *, retry: bool) -> T:
        """Run ``action`` on a connection, again when that is safe, within the timeout."""
        result, connection = await self._hold(action, retry=retry)
        self._pool.release(connection)
        return result

    async def _hold(
        self, action: Callable[[AsyncConnection], Awaitable[T]], *, retry: bool = True
    ) -> tuple[T, AsyncConnection]:
        """Like :meth:`_on_connection`, but the connection stays with the caller on success."""
        self._check()
        pool = self._pool
        loop = pool.loop
        deadline = loop.time() + pool.timeout
        patience: Patience | None = None
        while True:
            connection = await pool.acquire(deadline)
            try:
                return await action(connection), connection
            except (LostBeforeSending, ConnectionLostError) as error:
                pool.discard(connection)
                pool.drop_idle()
                if isinstance(error, ConnectionLostError) and not (retry or self._retry_writes):
                    raise lost_write(error) from None
                patience = patience or Patience(deadline, pool.reconnect_timeout)
                delay = patience.next_delay(loop.time())
                if delay is None:
                    raise ConnectionLostError("the server kept closing the connection.") from None
                await asyncio.sleep(delay)
            except ValidationError:
                pool.release(connection)  # refused before anything was sent
                raise
            except BaseException:
                pool.discard(connection)
                raise

    async def _run(self, operation: calls.Operation[T]) -> T:
        """Run an operation of several steps on one connection."""
        self._check()
        pool = self._pool
        deadline = pool.loop.time() + pool.timeout
        patience = Patience(deadline, pool.reconnect_timeout)
        connection: AsyncConnection | None = None
        try:
            step = next(operation)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        while True:
            if connection is None:
                connection = await pool.acquire(deadline)
            try:
                replies = await connection.exchange(step.frames)
            except (LostBeforeSending, ConnectionLostError) as error:
                pool.discard(connection)
                pool.drop_idle()
                connection = None
                delay = patience.next_delay(pool.loop.time()) if step.loss is calls.Loss.AGAIN else None
                if delay is None:
                    raise lost_step(error, step.loss) from None
                await asyncio.sleep(delay)
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

    def _scan(self, scan: ScanRange) -> AsyncIterator[Row]:
        return super()._scan(scan) if self._direct is None else self._scan_direct(self._direct, scan)

    async def _scan_direct(self, direct: DirectReader, scan: ScanRange) -> AsyncIterator[Row]:
        rows = direct.scan(scan)
        try:
            for count, row in enumerate(rows, 1):
                yield row
                if not count % _ROWS_PER_TURN:
                    await asyncio.sleep(0)  # nothing else lets other tasks run
        finally:
            rows.close()

    async def _batches(self, call: calls.Call) -> AsyncGenerator[list[Any], None]:
        reply, connection = await self._hold(lambda c: c.roundtrip(call.frame), retry=call.retry)
        cursor: int | None = None
        window_bytes = calls.FIRST_WINDOW
        try:
            while True:
                window: calls.Window = call.decode(reply)
                cursor = window.cursor
                for batch in window.batches:
                    yield batch
                if cursor is None:
                    return
                window_bytes = min(calls.LAST_WINDOW, window_bytes * 4)
                following = calls.scan_next(0, cursor, window_bytes, call.decode)
                cursor = None
                try:
                    reply = await connection.roundtrip(following.frame)
                except LostBeforeSending:
                    raise ConnectionLostError("the server closed the connection during the scan.") from None
        finally:
            if cursor is not None:
                # Not awaited: this also runs when the iteration is cancelled or collected.
                connection.close()
            self._pool.release(connection)

    # Reads that can be served from the file

    async def get(self, key: KeyLike) -> bytes | None:
        """The value of a key; None when there is none (an empty value is ``b""``)."""
        if self._direct is not None:
            return self._direct.get(key)
        return await super().get(key)

    async def exists(self, key: KeyLike) -> bool:
        """Whether a key exists, without moving its value."""
        if self._direct is not None:
            return self._direct.exists(key)
        return await super().exists(key)

    async def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        """The values of those keys that exist, by the key as given, in the order given."""
        if self._direct is not None:
            return self._direct.get_many(keys)
        return await super().get_many(keys)

    # Server

    async def ping(self) -> float:
        """The round-trip time to the server in seconds."""
        started = time.perf_counter()
        await self._call(calls.ping())
        return time.perf_counter() - started

    async def checkpoint(self) -> int:
        """Make everything committed so far durable, in any sync mode; answers the LSN."""
        lsn: int = await self._call(calls.checkpoint())
        return lsn

    async def stats(self) -> dict[str, Any]:
        """The counters of the server and its storage engine."""
        stats: dict[str, Any] = await self._call(calls.stats())
        return stats

    async def watch(
        self, prefix: KeyLike = b"", *, since_lsn: int | None = None, timeout: float | None = None
    ) -> AsyncIterator[Change]:
        """The changes of the keys that start with ``prefix``; see :meth:`IpcClient.watch`.

        Without ``since_lsn`` it begins with the changes after its first step.
        """
        start = as_prefix(prefix)
        end = prefix_end(start)
        patience = calls.WatchPatience(wait_seconds(timeout), self._pool.timeout, self._pool.loop.time)
        if self.closed:
            raise DatabaseClosedError("the client is closed.", remediation="Connect again.")
        if since_lsn is None:
            lsn: int = (await self._call(calls.changes(None, start, None, 0))).lsn
        else:
            lsn = whole_number("since_lsn", since_lsn)
        while not self.closed:
            try:
                page: calls.ChangesPage = await self._call(calls.changes(lsn, start, end, patience.wait_ms()))
            except DatabaseClosedError:
                if self._pool.closed:
                    return
                raise
            lsn = page.lsn
            for change in page.changes:
                yield change
            if patience.over(bool(page.changes)):
                return

    def pipeline(self) -> AsyncPipeline:
        """Gather requests and send them together; see :class:`AsyncPipeline`."""
        return AsyncPipeline(0, self._exchange)

    # Transactions

    async def begin_transaction(self, isolation: str = "snapshot", *, read_only: bool = False) -> AsyncTransaction:
        """Begin a transaction; see :meth:`IpcClient.begin_transaction`."""
        call = calls.begin(str(isolation), read_only=read_only)
        reply, connection = await self._hold(lambda c: c.roundtrip(call.frame))
        try:
            return AsyncTransaction(self._pool, connection, call.decode(reply))
        except BaseException:
            self._pool.release(connection)
            raise

    def transaction(self, isolation: str = "snapshot", *, read_only: bool = False) -> _Beginning:
        """A transaction for ``async with`` (or to be awaited, as :meth:`begin_transaction`)."""
        return _Beginning(self, isolation, read_only)

    async def run_transaction(
        self,
        function: Callable[[AsyncTransaction], Awaitable[T]],
        *,
        isolation: str = "snapshot",
        attempts: int = 20,
    ) -> T:
        """Await ``function(transaction)`` and commit; on conflict, again from the start.

        See :meth:`IpcClient.run_transaction`.
        """
        waits = conflict_delays(attempts)
        while True:
            transaction = await self.begin_transaction(isolation)
            try:
                async with transaction:
                    return await function(transaction)
            except TransactionConflictError:
                wait = next(waits, None)
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    async def commit(self, transaction: AsyncTransaction | int) -> int:
        """Commit a transaction given as the object or its id; answers the LSN."""
        return await AsyncTransaction._find(self._pool, transaction).commit()

    async def abort(self, transaction: AsyncTransaction | int) -> None:
        """Abort a transaction given as the object or its id."""
        await AsyncTransaction._find(self._pool, transaction).abort()

    # End

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._pool.closed

    async def close(self) -> None:
        """Close the connections. Idempotent; open transactions are aborted by the server.

        Calls and scans of other tasks that are under way come to their end.
        """
        if self._generation != forks.generation():
            self._pool.closed = True
            return
        if not self._pool.loop.is_closed():
            self._check()
        self._pool.close()
        AsyncTransaction._hang_up(self._pool)
        if self._direct is not None:
            self._direct.close()
        # Aborted transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)

    async def __aenter__(self) -> AsyncIpcClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncIpcClient cannot be pickled; send its socket path and connect there")

    def __repr__(self) -> str:
        return f"<AsyncIpcClient {self._pool.path}{' closed' if self.closed else ''}>"


class _Beginning:
    """A transaction that begins when it is awaited or entered."""

    def __init__(self, client: AsyncIpcClient, isolation: str, read_only: bool) -> None:
        self._client, self._isolation, self._read_only = client, isolation, read_only
        self._transaction: AsyncTransaction | None = None

    def __await__(self) -> Any:
        return self._client.begin_transaction(self._isolation, read_only=self._read_only).__await__()

    async def __aenter__(self) -> AsyncTransaction:
        self._transaction = await self
        return self._transaction

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._transaction is not None
        await self._transaction.__aexit__(*exc_info)


class AsyncTransaction(AsyncStore):
    """A transaction of an :class:`AsyncIpcClient`; see :class:`Transaction`. Its calls run one after another."""

    _open: ClassVar[weakref.WeakValueDictionary[tuple[int, int], AsyncTransaction]] = weakref.WeakValueDictionary()

    def __init__(self, pool: AsyncPool, connection: AsyncConnection, transaction_id: int) -> None:
        self._pool = pool
        self._connection: AsyncConnection | None = connection
        self._txn = transaction_id
        self._generation = forks.generation()
        self._lock = asyncio.Lock()
        self._ended = ""
        self._failure = ""
        # Cursors of streams that nobody reads to the end.
        self._given_up: list[int] = []
        self._open[id(pool), transaction_id] = self

    @classmethod
    def _find(cls, pool: AsyncPool, transaction: AsyncTransaction | int) -> AsyncTransaction:
        """The transaction that an object or id means."""
        if isinstance(transaction, AsyncTransaction):
            return transaction
        if isinstance(transaction, bool) or not isinstance(transaction, int):
            raise ValidationError(f"a transaction or its id is needed, got {transaction!r:.60}.")
        found = cls._open.get((id(pool), transaction))
        if found is None:
            raise TransactionClosedError(f"transaction {transaction!r} is not open here.")
        return found

    @classmethod
    def _hang_up(cls, pool: AsyncPool) -> None:
        """Let the server abort the open transactions of a pool."""
        for reference in cls._open.valuerefs():
            transaction = reference()
            if transaction is not None and transaction._pool is pool and transaction._connection is not None:
                transaction._connection.close()

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

    def _check_process(self) -> None:
        # Before the lock, which a task of the parent may have held.
        if self._generation != forks.generation():
            raise ForkedProcessError("this transaction was begun by the parent process.")

    def _check(self) -> AsyncConnection:
        if self._connection is None:
            if self._failure:
                raise TransactionError(self._failure, remediation="Run it again.")
            raise TransactionClosedError(f"transaction {self._txn} is already {self._ended}.")
        return self._connection

    async def _exchange(self, frames: list[bytes]) -> list[ReplyFrame]:
        self._check_process()
        async with self._lock:
            connection = self._check()
            try:
                return await connection.exchange(frames)
            except ValidationError:
                raise  # refused before anything was sent
            except BaseException as error:
                self._end("lost")
                if isinstance(error, (LostBeforeSending, ConnectionLostError)):
                    raise TransactionError(self._failure, remediation="Run it again.") from None
                raise

    async def _call(self, call: calls.Call) -> Any:
        return call.decode((await self._exchange([call.frame]))[0])

    async def _run(self, operation: calls.Operation[T]) -> T:
        try:
            step = next(operation)
            while True:
                step = operation.send(await self._exchange(step.frames))
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _batches(self, call: calls.Call) -> AsyncGenerator[list[Any], None]:
        if self._given_up:
            closing, self._given_up = self._given_up, []
            await self._exchange([calls.scan_close(self._txn, cursor).frame for cursor in closing])
        cursor: int | None = None
        window_bytes = calls.FIRST_WINDOW
        try:
            while True:
                window: calls.Window = await self._call(call)
                cursor = window.cursor
                for batch in window.batches:
                    yield batch
                if cursor is None:
                    return
                window_bytes = min(calls.LAST_WINDOW, window_bytes * 4)
                call = calls.scan_next(self._txn, cursor, window_bytes, call.decode)
                cursor = None
        finally:
            if cursor is not None:
                # Closing it would need an await where Python may not allow one.
                self._given_up.append(cursor)

    def pipeline(self) -> AsyncPipeline:
        """Gather requests inside this transaction and send them together."""
        return AsyncPipeline(self._txn, self._exchange)

    async def commit(self) -> int:
        """Commit; see :meth:`Transaction.commit`."""
        self._check_process()
        async with self._lock:
            connection = self._check()
            call = calls.commit(self._txn)
            try:
                reply = await connection.roundtrip(call.frame)
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

    async def abort(self) -> None:
        """End it without applying anything. No error when it was aborted already."""
        self._check_process()
        async with self._lock:
            if self._connection is None and self._ended != "committed":
                return
            connection = self._check()
            try:
                await connection.roundtrip(calls.abort(self._txn).frame)
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

    async def __aenter__(self) -> AsyncTransaction:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None:
            # One that was lost must not look committed because the block went on after the error.
            if self.active or self._failure:
                await self.commit()
            return
        if not self.active:
            return
        if not issubclass(exc_type, Exception):
            # Cancelled or interrupted: closing the connection aborts it without another await.
            self._end("lost")
            return
        try:
            await self.abort()
        except ToonDBError:
            pass  # the caller's exception matters more, and the server aborts what is lost

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None and self._generation == forks.generation():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
                # The collector runs in any thread.
                self._pool.loop.call_soon_threadsafe(self._pool.discard, connection)
            warnings.warn(f"transaction {self._txn} was neither committed nor aborted", ResourceWarning, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a transaction cannot be pickled or copied")

    def __repr__(self) -> str:
        return f"<AsyncTransaction {self._txn} {'active' if self.active else self._ended}>"
