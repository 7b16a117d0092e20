"""The pool of a sync client: connections that are made on demand and given out to one user at a time."""

from __future__ import annotations

import threading
import time

from toondb_protocol.backoff import delays
from toondb_protocol.errors import ConnectionError, DatabaseClosedError, PeerNotAllowedError, PoolTimeoutError

from . import forks
from .connection import SyncConnection

__all__ = ["SyncPool"]


class SyncPool:
    """Connections to one socket.

    Args:
        path: Socket path.
        timeout: Seconds that a call may take, waiting for a free connection included.
        max_connections: Connections at the most; further callers wait.
        reconnect_timeout: Seconds during which a lost server is tried again before a call fails.
    """

    def __init__(self, path: str, timeout: float, max_connections: int, reconnect_timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self.max_connections = max_connections
        self.reconnect_timeout = reconnect_timeout
        self.closed = False
        self._idle: list[SyncConnection] = []
        self._all: set[SyncConnection] = set()
        self._slots = max_connections
        self._waiting = 0
        self._changed = threading.Condition()
        forks.reset_in_child(self)

    def _reset_in_child(self) -> None:
        """In a forked child: close the inherited descriptors (the parent's stay open) and start afresh."""
        for connection in self._all:
            connection.close()
        self._idle = []
        self._all = set()
        self._slots = self.max_connections
        self._waiting = 0
        self._changed = threading.Condition()

    def first(self) -> SyncConnection:
        """Connect now, without trying again: a wrong path must fail at once."""
        connection = SyncConnection(self.path, self.timeout, time.monotonic() + self.timeout)
        with self._changed:
            self._slots -= 1
            self._all.add(connection)
        return connection

    def acquire(self, deadline: float) -> SyncConnection:
        """A connection for the caller alone.

        Raises:
            PoolTimeoutError: All stayed in use until the deadline.
            ConnectionError, OperationTimeoutError: The server cannot be reached.
            DatabaseClosedError: The client is closed.
        """
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    if self.closed:
                        raise DatabaseClosedError("the client is closed.", remediation="Connect again.")
                    if self._idle:
                        return self._idle.pop()
                    if self._slots > 0:
                        self._slots -= 1
                        break
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise PoolTimeoutError(
                            f"all {self.max_connections} connections stayed in use for {self.timeout:g} s."
                        )
                    # Woken or late, look again: a wake-up that comes with the deadline must not be lost.
                    self._changed.wait(left)
            except BaseException:
                self._changed.notify()  # the wake-up may have been meant for this caller, which leaves
                raise
            finally:
                self._waiting -= 1
        try:
            connection = self._connect(deadline)
        except BaseException:
            self._free_slot()
            raise
        with self._changed:
            self._all.add(connection)
        return connection

    def _connect(self, deadline: float) -> SyncConnection:
        give_up = min(deadline, time.monotonic() + self.reconnect_timeout)
        for delay in delays():
            try:
                return SyncConnection(self.path, self.timeout, deadline)
            except PeerNotAllowedError:
                raise
            except ConnectionError:
                if time.monotonic() + delay >= give_up:
                    raise
            time.sleep(delay)
        raise AssertionError("unreachable")

    def release(self, connection: SyncConnection) -> None:
        """Give a connection back; one with replies outstanding is closed instead."""
        if not connection.clean:
            self.discard(connection)
            return
        self._idle.append(connection)
        # Looked at last: close() may come in between.
        if self.closed:
            self.drop_idle()
        elif self._waiting:
            with self._changed:
                self._changed.notify()

    def give_back(self, connection: SyncConnection) -> None:
        """Release a connection that is clean and open, discard it otherwise."""
        if connection.sock.fileno() < 0:
            self.discard(connection)
        else:
            self.release(connection)

    def discard(self, connection: SyncConnection) -> None:
        """Close a connection whose state is unknown; a late reply must never answer another call."""
        connection.close()
        with self._changed:
            known = connection in self._all
            self._all.discard(connection)
        if known:
            self._free_slot()

    def drop_idle(self) -> None:
        """Close all idle connections: the server they led to is gone."""
        while True:
            try:
                self.discard(self._idle.pop())
            except IndexError:
                return

    def _free_slot(self) -> None:
        with self._changed:
            self._slots += 1
            self._changed.notify()

    def close(self) -> None:
        """Close idle connections; the others close when they are given back. Idempotent."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self.drop_idle()
