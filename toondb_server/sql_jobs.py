"""SQL statements of clients: run on worker threads, their rows streamed as the client takes them.

The event loop never waits for SQLite. A statement runs on a thread of :class:`SqlWorkers`; its rows reach the job of the
session through a bounded backlog, and a client that does not read holds up its own statement only.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack

from toondb_protocol.errors import InternalError, SqlInterruptedError, ToonDBError

__all__ = ["SqlTask", "SqlWorkers"]

_BACKLOG_BYTES = 1 << 20
_BATCH_BYTES = 128 * 1024


class SqlWorkers:
    """The threads that run SQL; started with the first statement.

    Args:
        threads: Statements that run at once; more wait for their turn.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, run: Callable[[], None]) -> None:
        """Run something on a thread."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="toondb-sql")
        self._pool.submit(run)

    def close(self) -> None:
        """Wait for what is running; what waits is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class SqlTask:
    """One statement on a worker thread, and its rows on their way to the event loop.

    Args:
        loop: The event loop.
        wake: Called on the loop when there is something new.

    Attributes:
        done: The statement is over; ``failure`` says how, None = well.
        end: What the closing frame says, once it is over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop, self._wake = loop, wake
        self._room = threading.Condition()
        self._batches: deque[bytes] = deque()
        self._bytes = 0
        self._cancelled = False
        self._interrupt: Callable[[], None] = lambda: None
        self.done = False
        self.failure: ToonDBError | None = None
        self.end: dict[str, Any] = {}

    # On the worker thread

    def run(self, statement: Callable[[SqlTask], dict[str, Any]]) -> None:
        """Run a statement, which gives its rows to :meth:`rows` and answers what the closing frame says."""
        try:
            if self._cancelled:
                raise SqlInterruptedError("the client is gone.")
            self.end = statement(self)
        except ToonDBError as error:
            self.failure = error
        except BaseException as error:
            self.failure = InternalError(f"the server failed on this statement: {type(error).__name__}: {error}")
        self.done = True
        self._notify()

    def rows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Pack rows into batches and hand them over, waiting while too many are on their way."""
        flat: list[Any] = []
        size = 0
        for row in rows:
            for cell in row:
                flat.append(cell)
                size += 8 + (len(cell) if isinstance(cell, (str, bytes)) else 0)
            if size >= _BATCH_BYTES:
                self._hand_over(flat)
                flat, size = [], 0
        if flat:
            self._hand_over(flat)

    def _hand_over(self, flat: list[Any]) -> None:
        packed: bytes = msgpack.packb(flat)
        with self._room:
            self._room.wait_for(lambda: self._bytes < _BACKLOG_BYTES or self._cancelled)
            if self._cancelled:
                raise SqlInterruptedError("the client is gone.")
            self._batches.append(packed)
            self._bytes += len(packed)
        self._notify()

    def on_cancel(self, interrupt: Callable[[], None]) -> None:
        """What ends the statement that is running now."""
        self._interrupt = interrupt
        if self._cancelled:
            interrupt()

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            pass  # the loop is closed: a shutdown was forced

    # On the event loop

    def take(self) -> bytes | None:
        """The next batch of rows, a flat msgpack array; None when there is none now."""
        with self._room:
            if not self._batches:
                return None
            packed = self._batches.popleft()
            self._bytes -= len(packed)
            self._room.notify_all()
            return packed

    def cancel(self) -> None:
        """The client is gone: end the statement."""
        with self._room:
            self._cancelled = True
            self._room.notify_all()
        self._interrupt()
