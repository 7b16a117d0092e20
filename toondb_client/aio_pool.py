"""The pool of an async client."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque

from toondb_protocol.backoff import delays
from toondb_protocol.errors import (
    ConnectionError,
    DatabaseClosedError,
    PeerNotAllowedError,
    PoolTimeoutError,
    ToonDBError,
)

from . import forks
from .aio_connection import AsyncConnection

__all__ = ["AsyncPool"]


def _closed() -> DatabaseClosedError:
    return DatabaseClosedError("the client is closed.", remediation="Connect again.")


class AsyncPool:
    """Connections to one socket, given out to one task at a time. Belongs to one event loop.

    Args:
        path: Socket path.
        timeout: Seconds that a call may take, waiting for a free connection included.
        max_connections: Connections at the most; further tasks wait, first come first served.
        reconnect_timeout: Seconds during which a lost server is tried again before a call fails.
    """

    def __init__(self, path: str, timeout: float, max_connections: int, reconnect_timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self.max_connections = max_connections
        self.reconnect_timeout = reconnect_timeout
        self.closed = False
        self._idle: list[AsyncConnection] = []
        self._all: set[AsyncConnection] = set()
        self._slots = max_connections
        self._waiters: deque[asyncio.Future[AsyncConnection | None]] = deque()
        self.loop = asyncio.get_running_loop()
        forks.reset_in_child(self)

    def _reset_in_child(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        if self._all:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for connection in self._all:
                connection._reset_in_child(null)
            os.close(null)

    async def first(self) -> AsyncConnection:
        """Connect now, without trying again: a wrong path must fail at once."""
        deadline = asyncio.get_running_loop().time() + self.timeout
        connection = await AsyncConnection.open(self.path, self.timeout, deadline)
        self._slots -= 1
        self._all.add(connection)
        return connection

    async def acquire(self, deadline: float) -> AsyncConnection:
        """A connection for the caller alone.

        Raises:
            PoolTimeoutError: All stayed in use until the deadline.
            ConnectionError, OperationTimeoutError: The server cannot be reached.
            DatabaseClosedError: The client is closed.
        """
        if self.closed:
            raise _closed()
        while self._idle:
            connection = self._idle.pop()
            if connection.clean:
                return connection
            self.discard(connection)
        if self._slots > 0:
            self._slots -= 1
        else:
            handed = await self._wait(deadline)
            if handed is not None:
                return handed
        try:
            connection = await self._connect(deadline)
        except BaseException:
            self._free_slot()
            raise
        self._all.add(connection)
        return connection

    async def _wait(self, deadline: float) -> AsyncConnection | None:
        """A connection handed over by its last user, or None: a slot for a new one."""
        waiter: asyncio.Future[AsyncConnection | None] = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            # Served in the same turn as cancelled or late: it goes to the next in line.
            if not waiter.done() or waiter.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
            elif waiter.exception() is None:
                handed = waiter.result()
                if handed is not None:
                    self.release(handed)
                else:
                    self._free_slot()
            if isinstance(error, TimeoutError) and not isinstance(error, ToonDBError):
                raise PoolTimeoutError(
                    f"all {self.max_connections} connections stayed in use for {self.timeout:g} s."
                ) from None
            raise

    def _wake_one(self, connection: AsyncConnection | None) -> bool:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    async def _connect(self, deadline: float) -> AsyncConnection:
        loop = asyncio.get_running_loop()
        give_up = min(deadline, loop.time() + self.reconnect_timeout)
        for delay in delays():
            try:
                return await AsyncConnection.open(self.path, self.timeout, deadline)
            except PeerNotAllowedError:
                raise
            except ConnectionError:
                if loop.time() + delay >= give_up:
                    raise
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    def release(self, connection: AsyncConnection) -> None:
        """Give a connection back; one that is not clean is closed instead."""
        if self.closed or not connection.clean:
            self.discard(connection)
            return
        # Handed over directly: a task that comes later must not overtake those that wait.
        if not self._wake_one(connection):
            self._idle.append(connection)

    def discard(self, connection: AsyncConnection) -> None:
        """Close a connection whose state is unknown."""
        connection.close()
        if connection in self._all:
            self._all.discard(connection)
            self._free_slot()

    def drop_idle(self) -> None:
        """Close all idle connections: the server they led to is gone."""
        while self._idle:
            self.discard(self._idle.pop())

    def _free_slot(self) -> None:
        # Handed over as well: it never counts as free while somebody waits for it.
        if self.closed or not self._wake_one(None):
            self._slots += 1

    def close(self) -> None:
        """Close idle connections; the others close when they are given back. Idempotent."""
        self.closed = True
        self.drop_idle()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(_closed())
