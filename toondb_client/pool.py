"""The pool of a sync client: connections that are made on demand and given out to one user at a time.

Ctrl-C may cut the main thread between any two steps, here and in what uses a connection. So nothing is counted up and
down: a slot is an object that goes with its connection, and is free again when nobody has it any more. And there is no
``threading.Condition``: that is Python code which, cut in the middle, leaves its lock taken. To enter a lock of the
interpreter with ``with``, or to take from its queue, is one step.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from queue import Empty, SimpleQueue

from toondb_protocol.backoff import delays
from toondb_protocol.errors import ConnectionError, DatabaseClosedError, PeerNotAllowedError, PoolTimeoutError

from . import forks
from .connection import SyncConnection

__all__ = ["SyncPool"]

_LOOK_SECONDS = 0.25
"""Who waits looks again by itself after so long: a user that was cut by Ctrl-C tells nobody."""


class _Slot:
    """The right to one connection. It is held by who makes the connection, and then by that."""

    __slots__ = ("__weakref__", "socket")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None


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
        self._begin()
        forks.reset_in_child(self)

    def _begin(self) -> None:
        self._idle: list[SyncConnection] = []
        self._slots: set[weakref.ref[_Slot]] = set()
        self._taking_slot = threading.Lock()
        # Who waits, and what wakes them up.
        self._waiting: set[object] = set()
        self._wakes: SimpleQueue[None] = SimpleQueue()

    def _reset_in_child(self) -> None:
        """In a forked child: close the inherited descriptors (the parent's stay open) and start afresh."""
        for reference in list(self._slots):
            slot = reference()
            if slot is not None and slot.socket is not None:
                slot.socket.close()
        self._begin()

    def first(self) -> SyncConnection:
        """Connect now, without trying again: a wrong path must fail at once."""
        slot = self._take_slot()
        return self._with_slot(SyncConnection(self.path, self.timeout, time.monotonic() + self.timeout), slot)

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
        waiting = object()
        try:
            # Before it looks: what is given back from now on wakes it up.
            self._waiting.add(waiting)
            while True:
                if self.closed:
                    raise DatabaseClosedError("the client is closed.", remediation="Connect again.")
                try:
                    return self._idle.pop()
                except IndexError:
                    slot = self._take_slot()
                if slot is not None:
                    break
                self._wait(deadline)
        except BaseException:
            self._wake_one()  # the wake-up may have been meant for this caller, which leaves
            raise
        finally:
            self._waiting.discard(waiting)
        try:
            return self._with_slot(self._connect(deadline), slot)
        except BaseException:
            del slot  # also when the error, which knows this frame, is kept
            self._wake_one()
            raise

    def _take_slot(self) -> _Slot | None:
        with self._taking_slot:
            if len(self._slots) >= self.max_connections:
                return None
            slot = _Slot()
            self._slots.add(weakref.ref(slot, self._slots.discard))
            return slot

    def _with_slot(self, connection: SyncConnection, slot: _Slot | None) -> SyncConnection:
        if slot is not None:
            slot.socket = connection.sock
            connection.slot = slot
        return connection

    def _wait(self, deadline: float) -> None:
        """Wait until there may be a connection, or a slot for one."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise PoolTimeoutError(f"all {self.max_connections} connections stayed in use for {self.timeout:g} s.")
        try:
            self._wakes.get(timeout=min(left, _LOOK_SECONDS))
        except Empty:
            pass

    def _wake_one(self) -> None:
        # No more than there are callers to wake up: one that came too late for its own is not waited for.
        if self._wakes.qsize() < len(self._waiting):
            self._wakes.put(None)

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
            self._wake_one()

    def give_back(self, connection: SyncConnection) -> None:
        """Release a connection that is clean and open, discard it otherwise."""
        if connection.sock.fileno() < 0:
            self.discard(connection)
        else:
            self.release(connection)

    def discard(self, connection: SyncConnection) -> None:
        """Close a connection whose state is unknown; a late reply must never answer another call. Idempotent."""
        connection.close()
        connection.slot = None
        self._wake_one()

    def drop_idle(self) -> None:
        """Close all idle connections: the server they led to is gone."""
        while True:
            try:
                self.discard(self._idle.pop())
            except IndexError:
                return

    def close(self) -> None:
        """Close idle connections; the others close when they are given back. Idempotent."""
        self.closed = True
        for _ in list(self._waiting):
            self._wakes.put(None)
        self.drop_idle()
